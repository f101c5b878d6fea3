/* SPDX-License-Identifier: Apache-2.0 */
/* The seed that `viv run` gives a machine (cli/cloudinit.h): from its options to a disk of the machine's. */
#ifndef VIV_CLI_SEED_H
#define VIV_CLI_SEED_H

#include "cli/cloudinit.h"
#include "ctl/vmconfig.h"

struct seed_args {
	struct opt_list cloud_init;
	const char *user_data, *meta_data, *network_config; /* files; NULL: none */
};

/** seed_is_asked() - is there any of the options? */
bool seed_is_asked(const struct seed_args *a);
/** seed_read() - check them, and read their files; passwords of the command line are overwritten there.  0, -EINVAL, -errno; cloudinit_free() in any case. */
int seed_read(struct cloudinit *ci, const struct seed_args *a, struct error *err);
/**
 * seed_add() - the seed in the folder of machine @c->name, as its last disk, read-only. viv's own key goes into it, for viv ssh.
 * @is_named: its name is its host name as well
 */
int seed_add(struct cloudinit *ci, struct vmconfig *c, bool is_named, struct error *err);

#endif
