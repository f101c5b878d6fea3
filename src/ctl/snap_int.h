/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the snapper: snaptake.c (taking), snapback.c (going back), snapfork.c (living copies), snapcommon.c (what
 * they share: the log of changed pages, layers of disks, processes that are forked off).
 */
#ifndef VIV_CTL_SNAP_INT_H
#define VIV_CTL_SNAP_INT_H

#include "block/block.h"
#include "ctl/snaptake.h"
#include "vm/machine.h"
#include "vm/snapshot_mend.h"

struct take;
struct forking;
struct pending;
struct below;
struct recording;

struct snapper {
	struct machine *m;
	struct vmconfig *config;
	struct vmdisks *disks;
	const struct block_backing_rule *backing;
	json_t *(*identity)(void *arg);
	void *identity_arg;
	snapper_child_fn child;
	void *child_arg;
	/* What memory is compared with: the last snapshot taken or restored. */
	char *base_name;
	struct ram_files base;
	struct snapshot_state base_state;
	uint64_t *dirty; /* changed since then, as far as collected; as many words behind it are for collecting */
	bool is_logging;
	uint64_t writes[MACHINE_MAX_DISKS]; /* machine_block_writes() at that time */
	struct snapper_moment base_moment;
	struct ram_mend *mend; /* memory being put together again; or NULL */
	/* Threads of a start from a snapshot, under way or at their end: its code, and its memory; or NULL. */
	struct snapcode_reader *code;
	struct working_set_reader *ahead;
	struct below *below;  /* layers of a disk being merged; or NULL */
	struct agent *agent;  /* the guest's; or NULL */
	struct vclock *clock; /* never stops */
	struct pending *pending; /* what waits for the guest, or for a lock, before it begins; or NULL */
	bool is_frozen;		 /* they are, at this very moment */
	struct agent_job *thaw_job; /* it is being asked to thaw them; or NULL */
	unsigned nthaws;
	struct agent_job *time_job;  /* or NULL */
	void (*on_clock)(void *arg); /* snapper_on_clock(); NULL: nobody wants to know */
	void *on_clock_arg;
	struct agent_job *mac_job;   /* or NULL */
	const uint8_t *code_key;     /* as in struct snapper_config */
	struct recording *recording; /* of the working set and the code; or NULL */
	unsigned log_starts;	     /* how often snap_log_start() */
	struct take *take;	     /* a snapshot under way; or NULL */
	struct forking *forking;     /* copies being made; or NULL */
};

uint64_t snap_now_us(void);
/** snap_stop_threads() - that put memory together again, read it ahead or load code: before memory is mapped anew, logged anew or forked. */
void snap_stop_threads(struct snapper *s);

/* ---- the log of changed pages ---- */
size_t snap_bitmap_words(const struct snapper *s);
void snap_forget_base(struct snapper *s);
/** snap_log_collect() - add what was logged to s->dirty.  The machine is paused. */
int snap_log_collect(struct snapper *s, struct error *err);
/** snap_log_start() - from now on against what memory is now.  The machine is paused. */
int snap_log_start(struct snapper *s, struct error *err);

/* ---- new layers of the disks ---- */
struct snap_layers {
	/* In the configuration, not on top yet; formats of what is below. */
	bool is_announced[MACHINE_MAX_DISKS], has_any;
	char *old_formats[MACHINE_MAX_DISKS];
	struct block_req flushes[MACHINE_MAX_DISKS];
	unsigned nflushing;
	bool is_failed;
	void (*flushed)(void *arg);
	void *arg;
};
/** snap_layers_keep() - throw-away disks get files, which snap_layers_save() fills. */
int snap_layers_keep(struct snapper *s, struct error *err);
/** snap_layers_save() - in a forked child, before it closes the files that it shares with the machine. */
int snap_layers_save(const struct snapper *s, struct error *err);
/** snap_layers_saved() - it did. */
void snap_layers_saved(struct snapper *s);
/** snap_layers_prepare() - empty layers in the configuration: until they are on top, disks read the same through either. */
int snap_layers_prepare(struct snapper *s, struct snap_layers *l, struct error *err);
/** snap_layers_push() - on top with them; the machine is paused. */
int snap_layers_push(struct snapper *s, struct snap_layers *l, struct error *err);
/** snap_layers_drop() - those that did not come on top. */
void snap_layers_drop(struct snapper *s, struct snap_layers *l);
/** snap_layers_flush() - what is below the top to stable storage.  @flushed: when the last is done; it is not called where
 * there is none (nflushing is 0). */
void snap_layers_flush(struct snapper *s, struct snap_layers *l, void (*flushed)(void *arg), void *arg);
void snap_layers_free(struct snap_layers *l);
/** snap_note_writes() - disks are now what the base says. */
void snap_note_writes(struct snapper *s);

/* ---- the guest's part (snapguest.c) ---- */
/* What is to be begun. */
enum snap_verb { SNAP_TAKE, SNAP_FORK, SNAP_RESTORE };
struct snap_order {
	enum snap_verb verb;
	const char *const *names; /* of the copies, or of the snapshot; borrowed */
	unsigned n;
	struct snapper_waking waking; /* SNAP_RESTORE */
	snapper_done_fn done;
	void *ctx;
};
/** snap_freeze() - freeze its file systems; when that is done, begin, and thaw.  0: @done comes later. */
int snap_freeze(struct snapper *s, const struct snap_order *o, struct error *err);
/** snap_wait() - begin when nobody exchanges files of snapshots any more: the loop must not wait.  0: @done comes later. */
int snap_wait(struct snapper *s, const struct snap_order *o, struct error *err);
/** snap_pending_cancel() - if it is for @ctx. */
void snap_pending_cancel(struct snapper *s, const void *ctx);
void snap_guest_destroy(struct snapper *s);
/** snap_recording_end() - without a result, if there is none yet. */
void snap_recording_end(struct snapper *s);

/* ---- beginning; each takes @lock, of snapstore_lock(), and has closed it before it forks ---- */
int snap_begin_take(struct snapper *s, const char *name, int lock, snapper_done_fn done, void *ctx,
		    struct error *err);
int snap_begin_fork(struct snapper *s, const char *const *names, unsigned n, int lock,
		    snapper_done_fn done, void *ctx, struct error *err);
/** snap_go_back() - @lock: -1 where it is the base and disks are not known to have changed; -EAGAIN then: they have, and somebody has the lock. */
int snap_go_back(struct snapper *s, const char *name, const struct snapper_waking *waking, int lock,
		 json_t *result, struct error *err);

/* ---- layers below the tops (snapbelow.c) ---- */
bool snap_below_progress(const struct below *b, uint64_t *done_bytes, uint64_t *total_bytes);
/** snap_below_cancel() - if it is for @ctx, who is not told; NULL: whoever it is for, who is.  Under the lock of the snapshots. */
void snap_below_cancel(struct snapper *s, const void *ctx);
void snap_below_destroy(struct snapper *s);

/* ---- copies ---- */
/** snap_forking_cancel() - kill what makes them. */
void snap_forking_cancel(struct forking *f);
bool snap_forking_is_for(const struct forking *f, const void *ctx);

/* ---- a process that was forked off ---- */
/** snap_make_pipes() - @child_ends: [0] to be written, [1] to be read by the child. */
int snap_make_pipes(int *from_child, int *to_child, int child_ends[2], struct error *err);
/** snap_tell() - a line to the parent; false: it does not listen any more. */
bool snap_tell(int fd, const char *text);
/* Lines of a child, put together from what its pipe gives at a time; start with zeroes. */
struct snap_lines {
	char line[1024];
	size_t len;
};
/**
 * snap_read_lines() - what is to be read now; @take for each whole line, without its end.  What is too long is cut.
 * Returns true while more may come: false at the end of the pipe.
 */
bool snap_read_lines(struct snap_lines *l, int fd, void (*take)(void *arg, const char *line), void *arg);
/** snap_give_word() - the child waits for it; one that is gone is noticed by its pipe. */
void snap_give_word(int fd);
/**
 * snap_dismiss() - the child is not wanted any more: it is killed, or, where a confined machine may kill nobody, ends when it sees that nobody
 * speaks to it or listens.  The pipes are closed; it is still to be waited for.
 * @from_child: NULL: what it says last is still heard
 */
void snap_dismiss(pid_t pid, int *to_child, int *from_child);
/** snap_await_word() - 0, or -ECANCELED: the parent is gone. */
int snap_await_word(int fd, struct error *err);
/** snap_close_others() - all descriptors but @keep: a socket held open here would outlive the machine. */
void snap_close_others(const int *keep, size_t nkeep);

#endif
