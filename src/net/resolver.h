/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gateway's DNS: names of the lab's machines, and what the policy lets a machine look up outside.
 *
 *   web, web.lab, web.app, web.app.lab     a machine, or its card in a network; told to who may reach it
 *   anything else                          passed to the host's resolver if policy_may_ask(), else refused
 *
 * What is answered for a name of a rule is kept: those addresses are what the rule allows (resolver_names()).  A rule
 * with names lets only A and AAAA be asked for.
 *
 * The host's resolver is asked over UDP with EDNS0; without, if it does not know that (RFC 6891, 7); over TCP, if its answer is truncated and the
 * guest asks over TCP, or if none came within RESOLVER_UDP_MS.  A guest that asked over UDP gets what is too long for it as a truncated
 * answer, and asks again over TCP (RFC 7766, 5); of such an answer nothing is learnt, as it has no addresses.
 *
 * Untrusted are the questions and the answers.  Bounds: RESOLVER_PENDING questions under way, RESOLVER_PER_PORT for one
 * port, and for one machine as many as it leaves free, each on a socket of its own, with up to 64 KiB of an answer over TCP; 256 addresses for
 * one port, which nobody else's questions push out.
 */
#ifndef VIV_NET_RESOLVER_H
#define VIV_NET_RESOLVER_H

#include <netinet/in.h>
#include <poll.h>

#include "net/dns.h"
#include "net/policy.h"

#define RESOLVER_PENDING  64
#define RESOLVER_PER_PORT 16
#define RESOLVER_UDP_MS	  2000 /* for an answer over UDP */
#define RESOLVER_MS	  5000 /* for an answer at all: then it is SERVFAIL */

/* Who asked, and how. */
struct dns_client {
	unsigned port;
	struct net_addr gateway, addr; /* asked, asking */
	uint16_t udp_port;
	uint32_t conn; /* dns_tcp.h's; 0: over UDP */
};

struct resolver;

struct resolver_ops {
	/* To who asked. */
	void (*reply)(void *ctx, const struct dns_client *to, const uint8_t *m, size_t len);
	int64_t (*now_ms)(void *ctx);
	/* As fabric_addr6(). */
	struct net_addr (*addr6)(void *ctx, unsigned port);
	void *ctx;
};

/** resolver_create() - @upstream: NULL: there is none, all questions for outside fail.  NULL: no memory. */
struct resolver *resolver_create(const struct sockaddr_storage *upstream, const struct resolver_ops *ops);
void resolver_destroy(struct resolver *r); /* NULL is fine */
/** resolver_host_upstream() - the first server of @path, as /etc/resolv.conf.  0 or -ENOENT. */
int resolver_host_upstream(const char *path, struct sockaddr_storage *out);

/** resolver_ask() - a question, answered now or later.  False: it is none, and has no answer. */
bool resolver_ask(struct resolver *r, const struct policy *policy, const struct dns_client *from,
		  const uint8_t *m, size_t len);
/** resolver_forget() - what the machine at @port has asked for and learnt: it is another one from now on. */
void resolver_forget(struct resolver *r, unsigned port);
/** resolver_fill(), resolver_polled() - as uplink_fill(); resolver_polled() also when nothing happened. */
unsigned resolver_fill(struct resolver *r, struct pollfd *pfds, unsigned max, uint32_t *timeout_ms);
void resolver_polled(struct resolver *r, const struct policy *policy, const struct pollfd *pfds,
		     unsigned n);
/** resolver_names() - what was learnt, for policy_decide(); borrows @r. */
struct policy_names resolver_names(struct resolver *r);

#endif
