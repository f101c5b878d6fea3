/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a target on another host sees that it shares storage with the source: beside each file of the machine, outside of its own folder, lies an empty file with a name
 * that nobody can guess (ctl/migrate_offer.h) as long as the migration lasts.
 */
#ifndef VIV_CLI_TOKENS_H
#define VIV_CLI_TOKENS_H

#include "ctl/migrate_claim.h"
#include "vm/machine.h"

struct tokens {
	char text[MIGRATE_ID_TEXT]; /* what the source is to tell; "": nothing was left anywhere */
	char *files[MACHINE_MAX_DISKS + 3];
	unsigned n;
};

/** tokens_leave() - for machine @name, where its folders let us: elsewhere files count as not shared.  0 or -errno; tokens_remove() in any case. */
int tokens_leave(struct tokens *t, const char *name, struct error *err);
void tokens_remove(struct tokens *t);

#endif
