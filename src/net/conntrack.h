/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flows that were allowed, so that their answers pass: one table for both IP versions.
 *
 * Bounds: each owner (the port that opened a flow, or the outside) has CONNTRACK_PER_OWNER entries, taken from nobody
 * else; when they are used up its own oldest goes.  A flood costs only who floods.
 */
#ifndef VIV_NET_CONNTRACK_H
#define VIV_NET_CONNTRACK_H

#include "net/packet.h"

#define CONNTRACK_PER_OWNER 4096

/* ICMP: an echo's id is both ports, and only a reply is an answer. */
enum conn_icmp { CONN_NO_ICMP, CONN_REQUEST, CONN_REPLY, CONN_OTHER_ICMP };

/* From who opened it to whom. */
struct conn_key {
	struct net_addr src, dst;
	uint16_t sport, dport;
	uint8_t proto, icmp; /* icmp: enum conn_icmp */
};

enum conn_state { CONN_NEW, CONN_ANSWERED, CONN_CLOSING };

struct conn {
	struct conn_key key;
	int from, to;	     /* the caller's: ports */
	uint32_t generation; /* the caller's: of the policy that allowed it */
	int rule;	     /* the caller's */
	uint32_t rule_id;
	uint8_t why;
	/* conntrack's own */
	uint8_t state; /* enum conn_state */
	bool is_used, has_fin[2];
	unsigned owner;
	int64_t expires_ms;
	struct conn *next;	    /* in its bucket */
	struct conn *older, *newer; /* among its owner's */
};

struct conntrack;

/** conntrack_create() - for owners 0 to @nowners - 1.  NULL: no memory. */
struct conntrack *conntrack_create(unsigned nowners);
void conntrack_destroy(struct conntrack *t); /* NULL is fine */

/** conntrack_key() - of a packet with its upper layer's header. */
struct conn_key conntrack_key(const struct packet *p);
/**
 * conntrack_find() - the flow that a packet with @key belongs to.
 * @is_answer: receives whether it goes towards who opened the flow
 * NULL: none.  What it returns is valid until the next conntrack_add() or conntrack_remove().
 */
struct conn *conntrack_find(struct conntrack *t, const struct conn_key *key, int64_t now_ms,
			    bool *is_answer);
/** conntrack_add() - a flow that was not found, opened by @owner; maybe in place of its oldest.  NULL: no memory. */
struct conn *conntrack_add(struct conntrack *t, const struct conn_key *key, unsigned owner,
			   int64_t now_ms);
/** conntrack_seen() - a packet of it passes. @tcp_flags: 0 if it is not TCP. */
void conntrack_seen(struct conntrack *t, struct conn *c, bool is_answer, uint8_t tcp_flags,
		    int64_t now_ms);
void conntrack_remove(struct conntrack *t, struct conn *c);
/** conntrack_forget() - all flows from and to the caller's port @port. */
void conntrack_forget(struct conntrack *t, int port);
/** conntrack_count() - entries of @owner, those included that have expired and are not yet reused. */
unsigned conntrack_count(const struct conntrack *t, unsigned owner);

#endif
