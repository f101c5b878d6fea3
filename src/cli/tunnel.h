/* SPDX-License-Identifier: Apache-2.0 */
/* Connections to a machine's ports through its network's process. */
#ifndef VIV_CLI_TUNNEL_H
#define VIV_CLI_TUNNEL_H

#include "base/error.h"

/** tunnel_open() - a stream to @port of machine @name, blocking. -ESRCH (it does not run), -ENOTSUP (it is not behind NAT), other -errno. */
int tunnel_open(const char *name, uint16_t port, struct error *err);

#endif
