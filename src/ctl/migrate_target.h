/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving a machine: the target's side, in the process of the machine to be.
 *
 *   open:   links and offer, the first state          (no machine yet)
 *   begin:  the machine is built after the first state and stands still; threads receive memory into it
 *   arrived or failed: told once, on the loop
 *
 * What goes wrong before begin is told by migrate_target_refuse().
 */
#ifndef VIV_CTL_MIGRATE_TARGET_H
#define VIV_CTL_MIGRATE_TARGET_H

#include "block/block.h"
#include "ctl/handover.h"
#include "ctl/migrate_offer.h"
#include "vm/machine.h"
#include "vm/snapshot_state.h"

struct migrate_target;

struct migrate_fds {
	const int *links; /* in their order, each behind its first record */
	unsigned nlinks;
	int door;   /* migrate_door_listen()'s, or -1 */
	int faults; /* migrate_faults_open()'s, or -1 */
};

/**
 * migrate_target_open() - for machine @name, whose folder migrate_make_folder() made.
 * @fds: taken, also on failure
 * Waits for the first state.  0 or -errno; migrate_target_destroy() after success.
 */
int migrate_target_open(struct migrate_target **out, const char *name,
			const struct migrate_fds *fds, struct error *err);
/**
 * migrate_target_take_over() - the same for a machine of this host whose process hands it over (handover.h).
 * @config: as its folder has it; the old process has to have the same
 * @link, @ends: taken, also on failure
 * @cards: receives what there are; descriptors are the caller's
 * What fails is told on @link.
 */
int migrate_target_take_over(struct migrate_target **out, const struct vmconfig *config, int link,
			     const struct handover_ends *ends, struct handover_cards *cards,
			     struct error *err);
/** migrate_target_destroy() - without the lock; threads end first.  NULL is fine.  Returns migrate_target_has_arrived() of then. */
bool migrate_target_destroy(struct migrate_target *t);

/** migrate_target_restore() - what to give machine_create(). */
const struct machine_restore *migrate_target_restore(const struct migrate_target *t);
/** migrate_target_stand_in() - an empty file for disk @i in place of its own until then, in *@path (allocated); NULL: the disk is read-only,
 * its own file will do.  To be unlinked once it is open. */
int migrate_target_stand_in(const struct migrate_target *t, unsigned i, char **path, struct error *err);

/** migrate_target_refuse() - tell the source that it will not be. */
void migrate_target_refuse(struct migrate_target *t, const struct error *why);

struct migrate_target_config {
	struct machine *machine; /* started, paused */
	const struct vmconfig *config;
	const struct block_backing_rule *backing;
	/* On the loop, with the lock: the machine runs (or is paused, as it was), and its memory is its own; or why it does not run: it is to end. */
	void (*done)(void *ctx, const struct error *err);
	/*
	 * Of migrate_target_take_over(), with the lock, once it is decided and before the machine runs: what goes along is this process's.  Descriptors of @h that it takes
	 * become -1; its cards stay.  What it cannot use it says in the log: the machine runs in any case.
	 */
	void (*take)(void *ctx, struct handover *h, const struct bytes *console);
	void *ctx;
};
/** migrate_target_begin() - with the lock.  0 or -errno. */
int migrate_target_begin(struct migrate_target *t, const struct migrate_target_config *cfg,
			 struct error *err);

/**
 * migrate_target_forgo() - the machine is to end.  True: memory is missing, for which a CPU or a device may wait for ever, and none must go on without it, so
 * the process has to end at once, as in a power cut; the source has been told that no more is needed.  No lock.
 */
bool migrate_target_forgo(struct migrate_target *t);

/** migrate_target_has_arrived() - the machine is this host's; any thread. */
bool migrate_target_has_arrived(const struct migrate_target *t);

#endif
