/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ways to another host.  A link is a stream socket that is handed to the process of a machine; parsers of other protocols stay in other
 * processes.
 *
 *   ssh://[USER@]HOST[:PORT]   runs "viv receive --stdio" there, by the ssh of PATH, which is a process of its own; one link
 *   unix:PATH            a socket on which viv receive listens
 *   fd:N[,N...]          descriptors that whoever started viv has connected
 */
#ifndef VIV_CLI_TRANSPORT_H
#define VIV_CLI_TRANSPORT_H

#include "base/error.h"

#define TRANSPORT_MAX_LINKS 16

struct transport {
	int fds[TRANSPORT_MAX_LINKS];
	unsigned n;
};

/**
 * transport_connect() - @n links to @where, or as many as it gives.
 * Returns 0; -EINVAL: no way is called so; -errno.  transport_close() after success.
 */
int transport_connect(struct transport *t, const char *where, unsigned n, struct error *err);
void transport_close(struct transport *t);

#endif
