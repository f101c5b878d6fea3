/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots of the machine of this process, and going back to them.
 *
 * Taking one: the machine pauses, its state is saved to memory, the process forks, the machine goes on.  The
 * child has the memory as it was (the kernel copies what the parent writes), writes it to the snapshot's folder at leisure
 * and ends.  The folder gets its name when all is synced.
 *
 *   parent: prepare folder --> pause, state, fork, resume --> progress ........ "go" --> done: reply
 *   child:                                     write memory, state, sync --> "written" --> rename --> exit
 *
 * "go" is the parent's word that the disks' part is on stable storage too.  A parent that dies, or cancels, closes the
 * pipe: the child then removes what it made.
 *
 * After a snapshot was taken or restored, the engine logs which pages change, so that the next snapshot writes those only
 * and going back to this one reads those only.
 *
 * Everything under the machine's lock.
 */
#ifndef VIV_CTL_SNAPTAKE_H
#define VIV_CTL_SNAPTAKE_H

#include "ctl/agent.h"
#include "ctl/vmdisks.h"

/* How a machine goes on from a snapshot. */
struct snapper_waking {
	bool tells_guest; /* as for snapper_woke() */
	/* All its clocks jump by the time that went by since (machine_skip()), in place of the real-time clock alone: a kernel that asks nobody
	 * has the right time at once, and all that waited for so long is late. */
	bool skips_time;
};

struct snapper;
/** snap_real_ns() - real time since 1970, as in struct snapper_moment. */
int64_t snap_real_ns(void);
/*
 * The life of a copy, in a process that was forked off: the machine @name, whose directory is complete, goes on from
 * @restore, which is @moment.  Tells @status_fd "r NAME\n" when it runs, or "e sentence\n".  Does not return.
 */
typedef void (*snapper_child_fn)(void *arg, const char *name, const struct machine_restore *restore,
				 const struct snapper_moment *moment, int status_fd);

struct snapper_config {
	struct machine *machine;
	struct vmconfig *config; /* borrowed; of this machine */
	struct vmdisks *disks;	 /* borrowed; of this machine */
	struct agent *agent;	 /* borrowed; NULL: the guest has none */
	const uint8_t *code_key; /* borrowed; of the snapshot that it goes on from (snapcode.h); NULL: its code is not kept */
	/* What its layers may name; borrowed. */
	const struct block_backing_rule *backing;
	struct vclock *clock; /* borrowed; never stops */
	/* Its record in its lab (net/identity.h), to be json_decref'ed; NULL: it is in none.  It may ask the lab, and must not wait long. */
	json_t *(*identity)(void *arg);
	void *identity_arg;
	snapper_child_fn child;
	void *child_arg;
};

int snapper_create(struct snapper **out, const struct snapper_config *cfg, struct error *err);
/** snapper_identity() - the machine's record in its lab, as the lab tells it now, to be json_decref'ed; NULL: it is in none. */
json_t *snapper_identity(struct snapper *s);
/** snapper_destroy() - cancels what is under way; NULL is fine. */
void snapper_destroy(struct snapper *s);

/** snapper_forget() - whoever waits for the answer of @ctx is gone: what it asked for is canceled. */
void snapper_forget(struct snapper *s, void *ctx);

/* Called once: with the result (borrowed) and NULL, or with NULL and the reason. */
typedef void (*snapper_done_fn)(void *ctx, json_t *result, const struct error *err);

/**
 * snapper_take() - begin a snapshot @name of the machine, running or paused.
 * @freezes: its agent freezes its file systems meanwhile; -ENODEV: it has none
 * The result: "pause_us", "bytes" (written), "parent".  Returns 0: @done comes later, never from inside; -EBUSY (one is under way), -EEXIST, -EINVAL, -errno.
 */
int snapper_take(struct snapper *s, const char *name, bool freezes, snapper_done_fn done, void *ctx,
		 struct error *err);

/**
 * snapper_merged() - files of the machine's disks were exchanged (snapmerge.h): those that have no name any more are closed, and what
 * @layer, which is directly below the top of disk @disk and nobody else's, holds goes into the top, which can do without it then.
 * @layer: NULL: there is none
 * Whatever else begins with the disks cancels it.  Returns as snapper_take().
 */
int snapper_merged(struct snapper *s, unsigned disk, const char *layer, snapper_done_fn done,
		   void *ctx, struct error *err);

/** snapper_progress() - of what is under way: bytes done and in all, 0 where that is not known; false: nothing is. */
bool snapper_progress(const struct snapper *s, uint64_t *done_bytes, uint64_t *total_bytes);

/** snapper_restored() - the machine was created from snapshot @from, of @files and @state, which are taken: log changes against it. */
int snapper_restored(struct snapper *s, const struct snapshot_info *from, struct ram_files *files,
		     struct snapshot_state *state, struct error *err);

struct snapcode_reader;
struct working_set_reader;
/** snapper_take_readers() - takes those of its code, which is loaded from here on, beside the guest, and of its memory; or NULL. */
void snapper_take_readers(struct snapper *s, struct snapcode_reader *code,
			  struct working_set_reader *ahead);
/**
 * snapper_on_clock() - have @fn called, once, when the guest's clock, which snapper_woke() has its agent set, is right, or can't be set; the caller
 * cares for guests whose agent does not answer.  false: nobody sets it.  @fn NULL: not any more.
 */
bool snapper_on_clock(struct snapper *s, void (*fn)(void *arg), void *arg);
/** snapper_await_readers() - until they have done all that they have to do. */
void snapper_await_readers(struct snapper *s);

/** snapper_record() - some seconds from now: the working set of the snapshot that snapper_restored() was told,
 * unless @has_set: it is known (vm/working_set.h), and the code that was translated, unless most of it was loaded (vm/code_set.h). */
void snapper_record(struct snapper *s, bool has_set);
/** snapper_base() - the moment of the snapshot that snapper_restored() was told. */
const struct snapper_moment *snapper_base(const struct snapper *s);

/**
 * snapper_woke() - the machine goes on from @moment: its agent thaws what was frozen then.  With @tells_guest it also sets the clock, and the MAC address of a
 * machine that was another one then.  Without an agent that answers nothing comes of it.
 */
void snapper_woke(struct snapper *s, const struct snapper_moment *moment, bool tells_guest);

/** snapper_slept() - after its state was loaded: what its clocks know of the time since @moment. */
void snapper_slept(struct machine *m, const struct snapper_moment *moment,
		   const struct snapper_waking *waking);

/**
 * snapper_restore() - go back to snapshot @name in place, running or paused, and go on from there.
 * @result: gets "pause_us", "pages"
 * Returns 0; -EINPROGRESS: @done comes later, with a result of its own; or -errno with @err set, and the machine as it was before.
 */
int snapper_restore(struct snapper *s, const char *name, const struct snapper_waking *waking,
		    json_t *result, snapper_done_fn done, void *ctx, struct error *err);

/*
 * The log of changed pages for somebody else as well, who collects it too (migration); snapshots miss nothing by it.
 * snapper_share_log(): from now on; snapper_unshare_log(): no more.  The machine is paused for both.
 * snapper_collect_log(): set the bits of the pages that changed since (a bit a page by host offset).  0 or -errno.
 */
int snapper_share_log(struct snapper *s, struct error *err);
int snapper_collect_log(struct snapper *s, uint64_t *bitmap, struct error *err);
void snapper_unshare_log(struct snapper *s);
/** snapper_is_busy() - a snapshot or copies are being made. */
bool snapper_is_busy(const struct snapper *s);

/**
 * snapper_fork() - begin making living copies of the machine, each a process and a machine of its own, that share its memory until they
 * write.
 * @names: of the copies, whose directories do not exist yet; @n of them
 * @freezes: as for snapper_take()
 * The result: "pause_us", "names".  Returns as snapper_take().
 */
int snapper_fork(struct snapper *s, const char *const *names, unsigned n, bool freezes,
		 snapper_done_fn done, void *ctx, struct error *err);

#endif
