/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gateway's DNS (RFC 1035): names of the lab's machines, and what the policy lets a machine look up outside.
 *
 *   web, web.lab, web.app, web.app.lab     a machine, or its card in a network; told to who may reach it
 *   anything else                          passed to the host's resolver if policy_may_ask(), else refused
 *
 * What is answered for a name of a rule is kept: those addresses are what the rule allows (resolver_names()).  A rule
 * with names lets only A and AAAA be asked for.
 *
 * Untrusted are the questions and the answers.  Bounds: RESOLVER_PENDING questions under way, RESOLVER_PER_PORT for one
 * port, each on a socket of its own; 256 addresses for one port, which nobody else's questions push out.  UDP only.
 */
#ifndef VIV_NET_RESOLVER_H
#define VIV_NET_RESOLVER_H

#include <netinet/in.h>
#include <poll.h>

#include "net/packet.h"
#include "net/policy.h"

#define RESOLVER_PENDING  64
#define RESOLVER_PER_PORT 16
#define DNS_MESSAGE_MAX	  1232 /* of an answer: fits every frame (DNS flag day 2020) */

enum { DNS_A = 1, DNS_CNAME = 5, DNS_AAAA = 28 };

struct dns_question {
	uint16_t id, flags, type;
	char name[POLICY_DOMAIN_MAX + 1]; /* lower case, no dot at the end */
	size_t end;			  /* behind the question in the message */
};

/** dns_parse_question() - a query with one question.  False: it is none, or its name has other bytes than a host's. */
bool dns_parse_question(const uint8_t *m, size_t len, struct dns_question *out);
/**
 * dns_each_address() - the A and AAAA records in the answer section.
 * @q: the question that the message must be about
 * Returns how many there were, or -EBADMSG: it is no answer to that, or malformed.
 */
int dns_each_address(const uint8_t *m, size_t len, const struct dns_question *q,
		     void (*fn)(void *arg, const struct net_addr *a, uint32_t ttl_s), void *arg);

struct resolver;

struct resolver_ops {
	/* To the machine at @port; as fabric_send_udp(). */
	void (*reply)(void *ctx, unsigned port, const struct net_addr *src, const struct net_addr *dst,
		      uint16_t sport, uint16_t dport, const void *payload, size_t len);
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

/** resolver_ask() - a question in packet @p from the machine at @port. */
void resolver_ask(struct resolver *r, const struct policy *policy, unsigned port,
		  const struct packet *p, const uint8_t *payload, size_t len);
/** resolver_fill(), resolver_polled() - as uplink_fill(). */
unsigned resolver_fill(struct resolver *r, struct pollfd *pfds, unsigned max, uint32_t *timeout_ms);
void resolver_polled(struct resolver *r, const struct policy *policy, const struct pollfd *pfds,
		     unsigned n);
/** resolver_names() - what was learnt, for policy_decide(); borrows @r. */
struct policy_names resolver_names(struct resolver *r);

#endif
