/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DNS over TCP for the machines of a lab (RFC 7766), at port 53 of their gateways: as much of TCP (RFC 9293) as a server needs that
 * only answers.  It makes no host calls but for random numbers; segments come in by a function and leave by a callback, time is told.
 *
 *   SYN -> conn: SYN-ACK -> question in, complete -> ask() ... dns_tcp_answer() -> segments, sent again until acknowledged -> FIN
 *
 * Questions may come one behind the other (RFC 7766, 6.2.1.1); answers go in the order in which they are known.
 *
 * Bounds: DNS_TCP_PER_PORT connections of a port, a further one takes the place of the one that said nothing for longest; of each
 * DNS_TCP_IN bytes of questions, and DNS_TCP_ASKED questions under way or answers that are not acknowledged.  Who says nothing for
 * DNS_TCP_IDLE_MS is hung up on, who acknowledges nothing is forgotten.
 *
 * Not done: window scaling, selective acknowledgements, urgent data, congestion control: the way is a link of the lab, and what is sent without
 * acknowledgement has a bound of its own.
 */
#ifndef VIV_NET_DNS_TCP_H
#define VIV_NET_DNS_TCP_H

#include "net/dns.h"
#include "net/packet.h"

#define DNS_TCP_PER_PORT  4
#define DNS_TCP_IN	  2048
#define DNS_TCP_QUESTION  1232 /* bytes of a question; a longer one is hung up on */
#define DNS_TCP_ASKED	  2
#define DNS_TCP_FLIGHT	  16384 /* bytes sent and not acknowledged */
#define DNS_TCP_IDLE_MS	  10000 /* RFC 7766, 6.2.3: a few seconds */
#define DNS_TCP_RESEND_MS 1000	/* RFC 6298, 2.1 */
#define DNS_TCP_TRIES	  6

struct dns_tcp_ops {
	/* A segment from @src, a gateway's address, to the machine at @port; its checksum is left to be filled in. */
	void (*send)(void *ctx, unsigned port, const struct net_addr *src,
		     const struct net_addr *dst, const uint8_t *segment, size_t len);
	/* A message came.  It is answered by dns_tcp_answer() with @conn, now or later.  False: it never is. */
	bool (*ask)(void *ctx, unsigned port, const struct net_addr *gateway,
		    const struct net_addr *client, uint32_t conn, const uint8_t *m, size_t len);
	int64_t (*now_ms)(void *ctx);
	void *ctx;
};

struct dns_tcp;

/** dns_tcp_create() - NULL: no memory. */
struct dns_tcp *dns_tcp_create(const struct dns_tcp_ops *ops);
void dns_tcp_destroy(struct dns_tcp *t); /* NULL is fine */

/** dns_tcp_input() - a TCP segment from the machine at @port to port 53 of its gateway, parsed whole. */
void dns_tcp_input(struct dns_tcp *t, unsigned port, const struct packet *p);
/** dns_tcp_answer() - to what was asked; a connection that is not there any more is fine. */
void dns_tcp_answer(struct dns_tcp *t, unsigned port, uint32_t conn, const uint8_t *m, size_t len);
/** dns_tcp_forget() - the machine at @port is another one from now on. */
void dns_tcp_forget(struct dns_tcp *t, unsigned port);
/** dns_tcp_tick() - what is due; @timeout_ms: lowered to when it must be called at the latest. */
void dns_tcp_tick(struct dns_tcp *t, uint32_t *timeout_ms);
/** dns_tcp_count() - connections of @port. */
unsigned dns_tcp_count(const struct dns_tcp *t, unsigned port);

#endif
