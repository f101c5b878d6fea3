/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving the machine of this process to another one: the source's side (migrate_source.c, migrate_send.c).
 *
 * A thread of its own goes through the states of vm/migrate.h and does what they say; it takes the machine's lock for moments only.  Links are
 * descriptors that a client hands over: who speaks TLS or SSH at their other end is another process.
 *
 * All functions are called with the machine's lock held.
 */
#ifndef VIV_CTL_MIGRATE_H
#define VIV_CTL_MIGRATE_H

#include <jansson.h>

#include "block/block.h"
#include "ctl/handover.h"
#include "ctl/migrate_offer.h"
#include "ctl/snaptake.h"
#include "vm/migrate.h"

#define MIGRATE_MAX_DOWNTIME_NS 100000000ULL /* unless somebody says otherwise */

struct migrator;

struct migrator_config {
	struct machine *machine;
	struct vmconfig *config; /* borrowed; of this machine */
	struct snapper *snapper; /* borrowed: its log of changed pages */
	const struct block_backing_rule *backing;
	/*
	 * For another process on this host (handover.h); NULL: there will be none.  With the lock, the last two while the machine stands still.
	 * cards: what there are, descriptors borrowed.
	 * give: what goes along, borrowed, and the console's record; from then on this process leaves it alone.
	 * keep: it does not go.
	 */
	void (*cards)(void *arg, struct handover_cards *c);
	int (*give)(void *arg, struct handover *h, struct bytes *console, struct error *err);
	void (*keep)(void *arg);
	void *arg;
};

int migrator_create(struct migrator **out, const struct migrator_config *cfg, struct error *err);
/** migrator_destroy() - what is under way is given up, or stays in doubt.  (Releases the lock.)  NULL is fine. */
void migrator_destroy(struct migrator *g);

enum migrate_priority {
	MIGRATE_KEEP_RUNNING, /* the guest is never slowed down for it; what cannot be done in time is given up */
	MIGRATE_FINISH, /* it is to get there: at the deadline the machine stands still for as long as it takes */
};

struct migrate_request {
	const int *fds; /* the links, link 0 first; taken, also on failure */
	unsigned nfds;
	const char *to;	    /* where to, as the user says it */
	const char *name;   /* at the target; NULL: as here */
	const char *engine; /* at the target; NULL: as here */
	const char *network; /* at the target, as viv run --net; NULL: as here, in a lab with its place there */
	const char *token; /* migrate_token_path(); NULL: none */
	const char *snapshots; /* token of snapshots that are there already, migrate_bundle.h; NULL: none */
	uint64_t max_downtime_ns;
	uint64_t deadline_ns; /* from now; 0: none */
	uint64_t bytes_per_s; /* 0: no limit; not while the machine stands still */
	enum migrate_priority priority;
	bool verifies; /* compare all pages, and disks that are copied, by checksum at the target before it runs; the machine stands still for it */
	bool copies_all; /* disks and the like are copied also where the target sees them */
	const struct handover_ends *upgrade; /* it goes on in another process here; taken, also on failure; NULL: no */
};

/* Called once, on the loop, with the lock: with the report, or NULL and the reason.  The machine ends right after the report of a move. */
typedef void (*migrator_done_fn)(void *ctx, json_t *report, const struct error *err);

/** migrator_begin() - 0: @done comes later; -EBUSY, -EINVAL, -errno. */
int migrator_begin(struct migrator *g, const struct migrate_request *rq, migrator_done_fn done,
		   void *ctx, struct error *err);
/** migrator_recover() - in doubt: ask over the new link @fd (taken), and act on the answer; the report's "state" is "moved" or "kept".  As migrator_begin(); -EALREADY: nothing is in doubt. */
int migrator_recover(struct migrator *g, int fd, migrator_done_fn done, void *ctx, struct error *err);
/** migrator_forget() - nobody waits for the result any more; the migration goes on. */
void migrator_forget(struct migrator *g, const void *ctx);
/** migrator_cancel() - 0: it will not happen; -EALREADY: nothing is under way; -EBUSY: it is too late. */
int migrator_cancel(struct migrator *g, struct error *err);

/** migrator_status() - into @out; also when nothing is under way. */
void migrator_status(const struct migrator *g, json_t *out);
/** migrator_is_active() - snapshots and the like are out of the question. */
bool migrator_is_active(const struct migrator *g);
/** migrator_has_gone_on() - it has moved to another process here, which has its folder and all else. */
bool migrator_has_gone_on(const struct migrator *g);
/** migrator_has_moved() - the machine is somewhere else. */
bool migrator_has_moved(const struct migrator *g);

#endif
