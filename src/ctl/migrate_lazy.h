/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The target's side of post-copy: a machine that runs while a part of its memory is still at the source.
 *
 *   create -> note (the map of missing pages) -> begin -> next... -> destroy
 *
 * Theory: missing pages have no page frames, and a userfaultfd holds whoever touches one: translated code, a device's thread, the page walker, all
 * of which are this process's own code.  It handles faults of user mode only, which every user may have; what the kernel is to access for us
 * has been touched before (mem/ram.h, invariant 6).  So the engine "kvm", whose guest faults inside of the kernel, cannot do this.
 *
 * Two threads: FAULTS reads the faults and asks for pages; LINK reads link 0, fills in what comes, and hears the source's words.  Neither
 * ever takes the machine's lock, which may be held by who waits for a page.  A link that is lost is replaced by one that somebody connects to
 * the door, a socket that viv receive has made.
 *
 * Invariants
 *  1. A page whose bit in @missing is set has no frame; the bit goes after the page is in place.
 *  2. A page that faults without the bit is a zero page that was never touched, or comes back from the balloon: it gets zeros.
 *  3. From begin to destroy nobody else reads link 0, and who writes to it does it by migrate_lazy_tell().
 */
#ifndef VIV_CTL_MIGRATE_LAZY_H
#define VIV_CTL_MIGRATE_LAZY_H

#include "ctl/migrate_link.h"
#include "vm/migrate.h"

struct engine_ops;
struct migrate_lazy;

struct migrate_lazy_config {
	struct guest_ram *ram;	   /* borrowed, as all */
	struct migrate_link *link; /* link 0 */
	const struct engine_ops *engine;
	/* Taken, also on failure. */
	int door_fd;   /* listening; -1: a lost link stays lost */
	int faults_fd; /* -1: none */
};

/** migrate_faults_open() - a userfaultfd of this process's memory, for a machine that comes; before system calls are filtered.  A descriptor, or -errno. */
int migrate_faults_open(struct error *err);

/** migrate_lazy_create() - 0; -EOPNOTSUPP: this host, or the engine, can't do it; -ENOMEM. */
int migrate_lazy_create(struct migrate_lazy **out, const struct migrate_lazy_config *cfg,
			struct error *err);
/** migrate_lazy_destroy() - threads end; pages that are missing still read as zero from here on, so nothing runs.  NULL is fine. */
void migrate_lazy_destroy(struct migrate_lazy *z);

/** migrate_lazy_note() - a MISSING record.  0 or -errno. */
int migrate_lazy_note(struct migrate_lazy *z, const uint8_t *payload, size_t len, struct error *err);
/** migrate_lazy_is_noted() - has a whole map come? */
bool migrate_lazy_is_noted(const struct migrate_lazy *z);
/** migrate_lazy_sums() - a SUMS record: compare what is there, keep the sums of what is missing until it comes.  0, -EBADMSG, -errno. */
int migrate_lazy_sums(struct migrate_lazy *z, const uint8_t *payload, size_t len, struct error *err);
/** migrate_lazy_begin() - from here on missing pages are fetched when they are touched.  0 or -errno. */
int migrate_lazy_begin(struct migrate_lazy *z, struct error *err);

/**
 * migrate_lazy_next() - what happens next: MIGRATE_EV_COMMIT, MIGRATE_EV_FETCHED (once, after the commit), MIGRATE_EV_LOST and
 * MIGRATE_EV_BACK in turn, MIGRATE_EV_CANCEL (the link's stop_fd).
 * @timeout_ms: -1: none; after it MIGRATE_EV_LOST
 */
enum migrate_event migrate_lazy_next(struct migrate_lazy *z, int timeout_ms, struct error *err);
/** migrate_lazy_still_since_ns() - after MIGRATE_EV_COMMIT: since when, by migrate_now_ns(), the machine stands still, as the commit tells; else now. */
int64_t migrate_lazy_still_since_ns(struct migrate_lazy *z);
/** migrate_lazy_tell() - one record to the source.  As migrate_link_tell(). */
int migrate_lazy_tell(struct migrate_lazy *z, enum migrate_record type, const void *payload,
		      size_t len, struct error *err);
/** migrate_lazy_end() - after FETCHED: everything is there; threads end, the machine is like any other, link 0 is the caller's again. */
void migrate_lazy_end(struct migrate_lazy *z);

/** migrate_lazy_is_lacking() - is anything missing still? */
bool migrate_lazy_is_lacking(const struct migrate_lazy *z);

/* ---- the door ---- */

/** migrate_door_listen() - for viv receive: the door of migration @id.  A descriptor, or -errno. */
int migrate_door_listen(const uint8_t id[MIGRATE_ID_BYTES], struct error *err);
/** migrate_door_close() - its name goes. */
void migrate_door_close(const uint8_t id[MIGRATE_ID_BYTES]);
/** migrate_door_pass() - hand the link @fd, from which ASK was read, to the machine of @id that waits for one.  0: it answers; -ENOENT: none does. */
int migrate_door_pass(const uint8_t id[MIGRATE_ID_BYTES], int fd, struct error *err);

#endif
