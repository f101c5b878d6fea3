/* SPDX-License-Identifier: Apache-2.0 */
/* What a network's process may still ask of the kernel once it serves. */
#ifndef VIV_NET_CONFINE_H
#define VIV_NET_CONFINE_H

#include <stdbool.h>

#include "base/error.h"

/**
 * confine_network() - from now on, and for good: sockets, descriptors it has, memory, files in folders it is given; every
 * other call fails with EPERM: no other program, no other process, no change of what it is, and no capability, not root's either.
 * @has_uplink: else it is in namespaces of its own, too, where the kernel gives them: no network of the host, no file by its name
 * Returns 1 (it is in such), 0 or -errno with @err set.
 */
int confine_network(bool has_uplink, struct error *err);

#endif
