/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ways to another host.  A link is a stream socket that is handed to the process of a machine; parsers of other protocols stay in other
 * processes.
 *
 *   ssh://[USER@]HOST[:PORT]   runs "viv receive --stdio" there, by the ssh of PATH, which is a process of its own; one link
 *   tls://HOST:PORT      TLS 1.3 with certificates of both sides, to viv receive --listen tls://
 *   tcp://HOST:PORT      neither encrypted nor anybody's: only if somebody says that he knows
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

struct transport_options {
	const char *certificates; /* folder, see tls.h; NULL: tls/ in the data root */
	bool is_insecure;	  /* tcp:// is fine */
};

/**
 * transport_connect() - @n links to @where, or as many as it gives.
 * Returns 0; -EINVAL: no way is called so; -EACCES: not believed; -EPERM: not encrypted; -errno.  transport_close() after success.
 */
int transport_connect(struct transport *t, const char *where, unsigned n,
		      const struct transport_options *o, struct error *err);
void transport_close(struct transport *t);

/** transport_may_be_plain() - 0, or -EPERM with what to say about @where. */
int transport_may_be_plain(const char *where, const struct transport_options *o, struct error *err);

#endif
