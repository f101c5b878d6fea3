/* SPDX-License-Identifier: Apache-2.0 */
/* What a process gives up of itself, for those that are confined (ctl/confine.h, net/confine.h).  Called without other threads. */
#ifndef VIV_BASE_JAIL_H
#define VIV_BASE_JAIL_H

#include <sys/types.h>

/** jail_map_user() - in a user namespace just made: its only user is who it was outside, @uid and @gid there.  0 or -errno. */
int jail_map_user(uid_t uid, gid_t gid);
/** jail_empty_root() - in mount and user namespaces of its own: a root with nothing in it, read-only.  0 or -errno. */
int jail_empty_root(void);
/** jail_drop_capabilities() - all of them, and those that programs could gain.  0 or -errno. */
int jail_drop_capabilities(void);

#endif
