/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source where the machine stays on its host and goes on in another process (handover.h): memory is not sent, and what the process holds goes along.
 *
 * The states are those of every migration.  What is different: COPY moves memory into the file, nothing is marked (whoever has the machine's lock has the machine, and both
 * processes have it), and doubt does not last, as the token can be read at once.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "ctl/migrate_int.h"

void migrate_upgrade_take(struct migrator *g, const struct handover_ends *ends)
{
	g->is_upgrade = ends != NULL;
	g->ends = ends ? *ends : (struct handover_ends){ -1, -1, -1 };
	memset(&g->ram, 0, sizeof(g->ram));
}

int migrate_upgrade_check(const struct migrator *g, struct error *err)
{
	const struct vmconfig *c = g->cfg.config;

	if (!g->cfg.give)
		return error_set(err, -ENODEV, "this machine's process can't hand it over");
	for (unsigned i = 0; i < c->ndisks; i++)
		if (c->disks[i].is_snapshot)
			return error_set(
				err, -EOPNOTSUPP,
				"what was written to disk %u is thrown away at the machine's end, "
				"and no other process can see "
				"it; viv snapshot create keeps it, and then it can be handed over",
				i);
	return 0;
}

int migrate_upgrade_offer(struct migrator *g, struct error *err)
{
	struct handover_cards cards = { .n = 0 };

	g->cfg.cards(g->cfg.arg, &cards);
	return handover_send_cards(g->ends.hatch, &cards, err);
}

int migrate_upgrade_copy(struct migrator *g, struct error *err)
{
	return handover_share_ram(g->cfg.machine, g->ends.ram, &g->is_stopping, &g->ram, err);
}

int migrate_upgrade_rest(struct migrator *g, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	_cleanup_bytes_ struct bytes console = { 0 };
	struct handover h;

	handover_init(&h);
	g->has_given = true;
	int r = g->cfg.give(g->cfg.arg, &h, &console, err);

	if (r == 0 && console.is_failed)
		r = error_set(err, -ENOMEM, "no memory for the console");
	if (r == 0)
		r = handover_send(g->ends.hatch, &h, err);
	if (r == 0 && console.len && console.len <= MIGRATE_PAYLOAD_MAX)
		migrate_record_put(&l->out, MIGRATE_R_CONSOLE, &l->seq_out, console.data, console.len);
	return r;
}

void migrate_upgrade_keep(struct migrator *g)
{
	if (g->has_given)
		g->cfg.keep(g->cfg.arg);
	g->has_given = false;
}

enum migrate_event migrate_upgrade_ask(struct migrator *g)
{
	return handover_claim(g->ends.token) == 0 ? MIGRATE_EV_ABORTED : MIGRATE_EV_RAN;
}

void migrate_upgrade_end(struct migrator *g)
{
	struct error err;

	if (g->is_upgrade && migrate_source_runs(g->state) &&
	    handover_unshare_ram(g->cfg.machine, g->ends.ram, NULL, &g->ram, &err) < 0)
		log_error("migrate", "%s", err.text);
	handover_ends_close(&g->ends);
}
