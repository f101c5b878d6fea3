/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the data plane: fabric.c, fabric_flow.c, guard.c and gateway.c. */
#ifndef VIV_NET_FABRIC_INT_H
#define VIV_NET_FABRIC_INT_H

#include "net/conntrack.h"
#include "net/fabric.h"

enum { FABRIC_OUTSIDE = POLICY_PORTS_MAX }; /* its place among ports: they may become more */

struct bucket { /* of tokens */
	int64_t at_ms;
	uint32_t tokens;
};

/* An IPv6 address that the machine has announced as its own. */
struct bound {
	struct net_addr addr;
	uint64_t used; /* when, in the order of uses */
};

/* A packet in fragments, whose first one passed. */
struct fragments {
	struct net_addr src, dst;
	uint32_t id;
	uint8_t proto;
	int to;
	int rule;
	uint32_t generation;
	uint16_t first_len; /* bytes of the first one: nothing may be laid over them */
	int64_t expires_ms; /* 0: unused */
};

struct fabric_port {
	struct bucket flood, work, errors, outside;
	struct fragments fragments[FABRIC_FRAGMENTS];
	unsigned next_fragments;
	struct bound bound[FABRIC_BOUND];
	unsigned nbound;
	uint64_t uses;
	bool has_v6; /* it has announced the address that the policy has for it */
	struct fabric_port_counts counts;
};

struct fabric {
	struct policy *policy;
	uint32_t generation;
	struct fabric_ops ops;
	struct conntrack *flows; /* owners as ports */
	struct fabric_counts *rules;
	struct fabric_port *ports; /* FABRIC_OUTSIDE + 1 */
	uint16_t ip_id;
};

/* One frame on its way in. */
struct input {
	struct fabric *f;
	int port; /* or POLICY_OUTSIDE */
	unsigned network;
	struct packet p;
	struct net_offload off;
	bool is_told; /* seen() was called */
};

static inline const struct policy_network *input_network(const struct input *in)
{
	return &in->f->policy->networks[in->network];
}

static inline struct fabric_port *fabric_port_of(struct fabric *f, int port)
{
	return &f->ports[port == POLICY_OUTSIDE ? FABRIC_OUTSIDE : (unsigned)port];
}

/** bucket_take() - @n tokens, at most @per_s, of @per_s a second; one second's worth is kept. */
bool bucket_take(struct bucket *b, int64_t now_ms, uint32_t per_s, uint32_t n);

/** fabric_told() - what becomes of it; once, before the frame is changed. */
void fabric_told(struct input *in, enum fabric_reason reason, int rule);
/** fabric_output() - a frame with FABRIC_HEADROOM to the machine at @port. */
void fabric_output(struct fabric *f, unsigned port, const struct net_offload *off, uint8_t *frame,
		   size_t len);

/** fabric_check_flow() - may this packet go on to @to?  @rule: receives the rule that says so, -1: none.  Invariant 2. */
enum fabric_reason fabric_check_flow(struct input *in, int to, int *rule);
/** fabric_may_hear() - a packet for many, which opens no flow: may the machine at @to have it? */
bool fabric_may_hear(const struct input *in, unsigned to);

/** binding_claim() - the machine at @port announces @a as its own.  False: that can't be; true: it is. */
bool binding_claim(struct fabric *f, unsigned port, const struct net_addr *a);
/** binding_has() - @a is bound to @port, and is in use. */
bool binding_has(struct fabric *f, unsigned port, const struct net_addr *a);

/** guard_check() - is the sender who it says? FABRIC_PASSED, or why not. */
enum fabric_reason guard_check(const struct input *in);

/** gateway_take() - frames of @in that are for the gateway itself; false: it is not for it, nothing was done. */
bool gateway_take(struct input *in);
/** gateway_error() - an ICMP error about the packet back to its sender, if it may be sent (RFC 1122, 3.2.2). */
void gateway_error(struct input *in, uint8_t type4, uint8_t code4, uint8_t type6, uint8_t code6);
/** gateway_advertise() - a router advertisement to @port. */
void gateway_advertise(struct fabric *f, unsigned port);

#endif
