/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses "HOST:PORT" of TCP; an address of IPv6 stands in brackets. */
#ifndef VIV_CLI_TCPLINK_H
#define VIV_CLI_TCPLINK_H

#include "base/error.h"

struct tcplink_address {
	char host[256]; /* without brackets; "": every address of this host */
	char port[8];	/* a number, 0 to 65535 */
};

/** tcplink_parse() - @text is what stands behind "@scheme://"; -EINVAL. */
int tcplink_parse(struct tcplink_address *out, const char *scheme, const char *text, struct error *err);
/** tcplink_connect() - a connected socket; a peer that answers nothing for a minute ends it.  -EINVAL (no such host), -errno. */
int tcplink_connect(const struct tcplink_address *a, struct error *err);
/** tcplink_listen() - a listening socket, blocking; @a->port gets the real one if it was 0. */
int tcplink_listen(struct tcplink_address *a, struct error *err);
/** tcplink_tune() - of an accepted connection: no delay, and dead peers are noticed. */
void tcplink_tune(int fd);

#endif
