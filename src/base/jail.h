/* SPDX-License-Identifier: Apache-2.0 */
/* What a process gives up of itself, for those that are confined (ctl/confine.h, net/confine.h).  Called without other threads. */
#ifndef VIV_BASE_JAIL_H
#define VIV_BASE_JAIL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** jail_map_user() - in a user namespace just made: its only user is who it was outside, @uid and @gid there.  0 or -errno. */
int jail_map_user(uid_t uid, gid_t gid);
/** jail_empty_root() - in mount and user namespaces of its own: a root with nothing in it, read-only.  0 or -errno. */
int jail_empty_root(void);
/**
 * jail_stack_root(), jail_leave_root() - the two halves of it.  The first is quick; the second waits for all CPUs of the host (RCU), and
 * may be done by another process of the same mount namespace, whose root was the same: until it is, the old root can be reached.
 */
int jail_stack_root(void);
int jail_leave_root(void);
/**
 * jail_root() - in mount and user namespaces of its own: the root is the folder @path, with what is mounted below it; devices, programs and
 * set-user-id bits there count for nothing, and with @is_readonly nobody writes there.  0 or -errno.
 */
int jail_root(const char *path, bool is_readonly);
/** jail_drop_capabilities() - all of them, and those that programs could gain.  0 or -errno. */
int jail_drop_capabilities(void);

/* Rights to files that all versions of Landlock know, and those that came later, by number: the headers of Debian 12 do not have them. */
#define JAIL_LANDLOCK_FILES    ((1ULL << 13) - 1)
#define JAIL_LANDLOCK_REFER    (1ULL << 13)
#define JAIL_LANDLOCK_TRUNCATE (1ULL << 14)
/** jail_landlock_abi() - 0: this kernel has no Landlock. */
int jail_landlock_abi(void);
/**
 * jail_landlock() - no file by any name in whatever folder, no TCP, no signals or abstract sockets to others, as far as the kernel's version knows how to.
 * @dir: a folder below which @rights are left; -1: none is
 * @abi: receives the version in force; 0: there is no Landlock, which is no error
 * It gains no privileges any more.  0 or -errno.
 */
int jail_landlock(int dir, uint64_t rights, int *abi);

#endif
