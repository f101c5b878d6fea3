/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections to the guest from programs of this host, without a port of the host's: a UNIX socket beside the machine's control socket, which only the machine's
 * user can reach (`viv tunnel`, `viv ssh`).
 *
 *   client                                     network process
 *     connect(net.sock), "22\n"  ------------>  a connection to port 22 of the guest, as from the gateway
 *     bytes  <------------------------------->  bytes
 *
 * There is no answer but the guest's bytes; where nobody listens, the socket is closed.
 *
 * Clients are trusted no more than others: TUNNEL_ASKING of them may be connected and not have said a port, each for TUNNEL_LIMIT_MS.
 */
#ifndef VIV_NET_TUNNEL_H
#define VIV_NET_TUNNEL_H

#include <poll.h>

#include "base/error.h"

#define TUNNEL_ASKING	16
#define TUNNEL_POLLS	(1 + TUNNEL_ASKING) /* that tunnel_fill() fills at most */
#define TUNNEL_LIMIT_MS 10000
#define TUNNEL_LINE_MAX 6 /* "65535\n" */

struct tunnel_client {
	int fd;
	int64_t until_ms;
	char text[TUNNEL_LINE_MAX]; /* of its line, @len bytes */
	unsigned len;
};

struct tunnel {
	int fd; /* listening, not blocking; -1: there are no tunnels */
	struct tunnel_client asking[TUNNEL_ASKING];
	unsigned n;
	unsigned npolled;	 /* of asking, in the last poll set */
	int64_t accept_after_ms; /* there was no descriptor left */
	/* The client on @fd, which is taken, wants @port of the guest. */
	void (*call)(void *ctx, int fd, uint16_t port);
	int64_t (*now_ms)(void *ctx); /* a clock that never goes back */
	void *ctx;
};

/** tunnel_parse() - "1\n" to "65535\n"; the port, 0: it is not all there yet, -EINVAL: it is none.  @len: at most TUNNEL_LINE_MAX. */
int tunnel_parse(const char *text, size_t len);

/** tunnel_fill() - what to poll for, as uplink_fill(). */
unsigned tunnel_fill(struct tunnel *t, struct pollfd pfds[TUNNEL_POLLS], uint32_t *timeout_ms);
/** tunnel_polled() - after poll(); calls @call. */
void tunnel_polled(struct tunnel *t, const struct pollfd *pfds, unsigned n);
/** tunnel_close() - all that have not said a port, and the socket. */
void tunnel_close(struct tunnel *t);

#endif
