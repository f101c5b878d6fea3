/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the source: migrate_source.c (states and what they ask for), migrate_send.c (rounds of memory), migrate_serve.c (post-copy), migrate_upgrade.c (to
 * another process here).
 *
 * Fields of struct migrator are the migration's thread's while it lives, but for those marked.
 */
#ifndef VIV_CTL_MIGRATE_INT_H
#define VIV_CTL_MIGRATE_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "ctl/migrate.h"
#include "ctl/migrate_link.h"

/* What one link's sender has learned about how to send pages. */
/* Of a page in a codec: time, and what is left of it; 0: unknown. */
struct migrate_cost {
	double ns, ratio;
	unsigned since_trial; /* records since it was last tried though it did not pay */
};

struct migrate_sender {
	struct migrator *g;
	unsigned index;
	pthread_t thread; /* of this round; of link 0 the migration's own */
	struct migrate_packer packer;
	uint8_t *pages;	 /* MIGRATE_PAGES_MAX copies */
	uint8_t *deltas; /* as many: what they differ in from what was sent */
	struct migrate_sent *sent;
	struct migrate_cost pack, delta;
	double byte_ns;	     /* of the link */
	uint64_t zero_first; /* zero pages not told yet */
	uint32_t nzero;
	struct error err;
	int result;
};

/* Figures, written by the migration's threads, read by any. */
struct migrate_figures {
	_Atomic uint64_t pages_sent, pages_zero, pages_zstd, pages_delta, bytes_sent;
	_Atomic uint64_t pages_left; /* of this round, or dirty since */
	_Atomic uint64_t dirty_pages_per_s;
	_Atomic uint32_t rounds, throttle_percent;
	_Atomic uint64_t expected_downtime_ns;
	_Atomic int64_t begin_ns, end_ns; /* CLOCK_MONOTONIC */
	_Atomic uint64_t first_pause_ns, downtime_ns;
	_Atomic uint64_t disk_bytes_sent, disk_bytes_left;
	_Atomic uint64_t pages_late, pages_wanted; /* sent after the machine had gone; of these, asked for */
};

/* What is copied of files (migrate_disk.c). */
struct migrate_disks {
	bool any, is_first;		   /* in the first pass what is zero need not be said */
	uint64_t *todo[MACHINE_MAX_DISKS]; /* a bit for each BLOCK_TRACK_BYTES; NULL: not copied */
	uint8_t *buf;			   /* MIGRATE_CHUNK_BYTES */
	uint32_t round;
	uint64_t unsynced_bytes;	     /* that the target has not made stable */
	double byte_ns, pack_ns, pack_ratio; /* of the link; of zstd: a byte, and what is left of it */
	unsigned since_trial;
};

struct migrator {
	struct migrator_config cfg;
	/* Under the machine's lock. */
	enum migrate_source_state state;
	bool is_active; /* there is a thread, or doubt */
	bool has_thread, is_recovering;
	pthread_t thread;
	migrator_done_fn done;
	void *ctx;
	struct error failure; /* why it is KEPT, or in DOUBT */
	char *to;

	_Atomic bool is_stopping; /* somebody wants it to end; stop_fd is readable then */
	int stop_fd;
	struct migrate_figures f;

	/* Of this migration. */
	uint64_t max_downtime_ns, deadline_ns, bytes_per_s;
	enum migrate_priority priority;
	struct migrate_offer offer;
	struct migrate_link links[MIGRATE_STREAMS_MAX];
	struct migrate_sender senders[MIGRATE_STREAMS_MAX];
	unsigned nlinks;
	struct migrate_disks disks;
	struct bytes first_state;
	uint8_t *resets; /* of the guest's connections through NAT; NULL: none */
	size_t resets_bytes;
	uint64_t *todo; /* a bit a page: to be sent; in a round each word is one link's thread's */
	uint32_t round;
	bool has_mark, is_sharing_log, was_paused, are_disks_away, is_paused;
	int64_t paused_at_ns;
	/* To another process here. */
	bool is_upgrade, has_given;
	struct handover_ends ends;
	struct handover_ram ram;
	/* Post-copy. */
	bool can_be_lazy;	  /* the target says so */
	bool is_lazy;		  /* what is in todo goes after the machine */
	uint64_t cursor;	  /* where todo is looked at next */
	uint64_t nahead;	  /* pages sent that the target has not said to have */
	double page_ns, trip_ns;  /* measured: of a page with everything; of a round without any */
	uint64_t throttled_bytes; /* sent since limit_from_ns */
	int64_t limit_from_ns;
};

/**
 * migrate_send_round() - the pages of g->todo over all links, with a ROUND record after them.  What was sent is not in todo any more: nothing is, but
 * when the deadline came, and the rest can go after the machine.
 * @waits: until the target has them (ROUND_DONE), and learn from it
 */
int migrate_send_round(struct migrator *g, bool waits, struct error *err);
/** migrate_send_pages() - @n pages, ascending, over link 0 at once; a page of zeros costs next to nothing. */
int migrate_send_pages(struct migrator *g, const uint64_t *pages, unsigned n, struct error *err);

/** migrate_serve_record() - of a target that lacks memory, while something else is awaited: true if it was one (WANT, GOT) that is dealt with, *@r then
 * 0 or -errno. */
bool migrate_serve_record(struct migrator *g, const struct migrate_header *h, int *r, struct error *err);
/** migrate_serve() - send todo, what is asked for first, until the target lacks nothing: 0, or -errno as of links. */
int migrate_serve(struct migrator *g, struct error *err);
/** migrate_serve_again() - over a new link: todo is what the target says.  0 or -errno. */
int migrate_serve_again(struct migrator *g, struct error *err);

/** migrate_upgrade_take() - it is one, if @ends are given, which are taken.  migrate_upgrade_end() in any case. */
void migrate_upgrade_take(struct migrator *g, const struct handover_ends *ends);
/** migrate_upgrade_check() - can it be?  With the lock.  0 or -errno. */
int migrate_upgrade_check(const struct migrator *g, struct error *err);
/** migrate_upgrade_offer() - what the new process needs to build the machine.  With the lock. */
int migrate_upgrade_offer(struct migrator *g, struct error *err);
/** migrate_upgrade_copy() - memory moves into the file. */
int migrate_upgrade_copy(struct migrator *g, struct error *err);
/** migrate_upgrade_rest() - what goes besides the state.  With the lock, the machine stands still. */
int migrate_upgrade_rest(struct migrator *g, struct error *err);
/** migrate_upgrade_keep() - it stays: what was given is this process's.  With the lock. */
void migrate_upgrade_keep(struct migrator *g);
/** migrate_upgrade_ask() - the link was lost after the commit: MIGRATE_EV_RAN, MIGRATE_EV_ABORTED. */
enum migrate_event migrate_upgrade_ask(struct migrator *g);
/** migrate_upgrade_end() - at the end, whatever it is. */
void migrate_upgrade_end(struct migrator *g);

int migrate_senders_init(struct migrator *g, struct error *err);
void migrate_senders_free(struct migrator *g);
uint64_t migrate_count_pages(const struct migrator *g);
/** migrate_flush_link0() - send what is in link 0's buffer.  0; -ECONNREFUSED: the target said why not; -errno. */
int migrate_flush_link0(struct migrator *g, struct error *err);
/** migrate_await_round() - the target's word, @type, that it has all up to round @want.  0, -ECONNREFUSED: it said why not; -EPROTO, -errno. */
int migrate_await_round(struct migrator *g, enum migrate_record type, uint32_t want, int limit_ms,
			struct error *err);

/* All without the machine's lock, but for the last. */
/** migrate_disks_measure() - used_bytes of the offer's disks. */
int migrate_disks_measure(struct migrator *g, struct error *err);
/** migrate_disks_copy() - everything that the target has asked for, until few of it changes; or the deadline is over. */
int migrate_disks_copy(struct migrator *g, struct error *err);
/** migrate_disks_round() - what was written since. */
int migrate_disks_round(struct migrator *g, struct error *err);
/** migrate_disks_left_ns() - that the rest would take now. */
uint64_t migrate_disks_left_ns(const struct migrator *g);
/** migrate_disks_rest() - the last of it; the machine stands still. */
int migrate_disks_rest(struct migrator *g, struct error *err);
/** migrate_disks_end() - with the lock; zeroed is fine. */
void migrate_disks_end(struct migrator *g);

#endif
