/* SPDX-License-Identifier: Apache-2.0 */
/* Shared folders of a configuration, as people say them: FOLDER[:TAG][,ro]. */
#ifndef VIV_CLI_SHARE_H
#define VIV_CLI_SHARE_H

#include "ctl/vmconfig.h"

/** share_add() - another one, by @spec.  0, -EINVAL, -errno with @err set. */
int share_add(struct vmconfig *c, const char *spec, struct error *err);
/** share_give() - the folder of one that @c has by its tag, but no folder: it comes from a snapshot.  Errors as there; -ENOENT: there is none of that tag. */
int share_give(struct vmconfig *c, const char *spec, struct error *err);
/** share_check() - has each one its folder?  0, or -EINVAL naming one that has not. */
int share_check(const struct vmconfig *c, struct error *err);

#endif
