/* SPDX-License-Identifier: Apache-2.0 */
/* The actions of `viv snapshot`, and what they have in common. */
#ifndef VIV_CLI_SNAPSHOT_H
#define VIV_CLI_SNAPSHOT_H

#include "cli/cli.h"
#include "ctl/snapstore.h"

struct snapshot_args {
	const char *net;
	bool json, prefault, skip_time, freeze;
};

/* Each returns 0, or -errno with @err set. */
int snapshot_list(const char *vm, bool as_tree, bool json, struct error *err);
int snapshot_show(const char *vm, const char *name, bool json, struct error *err);
int snapshot_verify(const char *vm, const char *name, bool json, struct error *err);
int snapshot_export(const char *vm, const char *name, const char *path, struct error *err);
/** snapshot_import() - @net: of the machine, if it is made; NULL: as the snapshot says, unless that is a lab or a network of the host's. */
int snapshot_import(const char *vm, const char *name, const char *path, const char *net,
		    struct error *err);
int snapshot_restore(const char *vm, const char *name, bool is_prefault, bool skips_time,
		     struct error *err);

/**
 * snapshot_instantiate() - fill the directory of the new machine @c->name, which is empty, from a snapshot: it gets the
 * snapshot under the same name, and files of its own, all of them links.
 * @c: gets the snapshot's configuration besides its name; the caller saves it
 * @net: its network; NULL: that of the snapshot, if it is one that everybody may have, or that its machine has
 */
int snapshot_instantiate(const struct snapshot_info *from, struct vmconfig *c, const char *net,
			 bool is_throwaway, struct error *err);

#endif
