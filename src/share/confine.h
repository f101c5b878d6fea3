/* SPDX-License-Identifier: Apache-2.0 */
/* What the server of a shared folder may still ask of the kernel, and which files it sees: that folder's. */
#ifndef VIV_SHARE_CONFINE_H
#define VIV_SHARE_CONFINE_H

#include "base/error.h"

struct share_confinement {
	bool has_namespaces; /* own user, mount, network, IPC, UTS and cgroup namespaces, and the folder as their root */
	int landlock_abi;     /* 0: no Landlock */
	struct error why_not; /* why there are no namespaces */
};

/**
 * share_enter() - open the folder @path, as the root of namespaces of its own where the kernel gives them.  Called without other threads.
 * Returns its descriptor (O_PATH), or -errno with @err set.
 */
int share_enter(const char *path, bool is_readonly, struct share_confinement *c, struct error *err);

/**
 * share_confine() - from now on, and for good: no capability, no new privileges, by Landlock no file outside of the folder @root_fd, and only the
 * system calls that it takes to serve it; any other kills the process.  0 or -errno with @err set.
 */
int share_confine(int root_fd, bool is_readonly, struct share_confinement *c, struct error *err);

#endif
