/* SPDX-License-Identifier: Apache-2.0 */
#include "net/fabric.h"

#include <errno.h>
#include <string.h>

#include "net/fabric_int.h"
#include "net/offload.h"

enum { ETH_MIN = 14 };

// clang-format off
const char *const fabric_reason_names[FABRIC_REASONS] = {
	[FABRIC_PASSED]       = "passed",
	[FABRIC_GATEWAY]      = "for the gateway",
	[FABRIC_MALFORMED]    = "malformed",
	[FABRIC_HINTS]        = "hints that don't fit, or too long",
	[FABRIC_VLAN]         = "VLAN tag",
	[FABRIC_ETHERTYPE]    = "neither ARP nor IP",
	[FABRIC_SPOOFED_MAC]  = "spoofed MAC",
	[FABRIC_SPOOFED_IP]   = "spoofed IP",
	[FABRIC_SPOOFED_ARP]  = "spoofed ARP",
	[FABRIC_SPOOFED_ND]   = "spoofed neighbor discovery",
	[FABRIC_SPOOFED_DHCP] = "spoofed DHCP",
	[FABRIC_FRAGMENT]     = "fragment without a beginning",
	[FABRIC_NO_FLOW]      = "of no flow",
	[FABRIC_NOBODY]       = "nobody has the address",
	[FABRIC_TTL]          = "TTL",
	[FABRIC_FLOOD]        = "flood",
	[FABRIC_QUARANTINE]   = "quarantine",
	[FABRIC_RULE]         = "denied by a rule",
	[FABRIC_BLOCKED]      = "no internet address",
	[FABRIC_NO_UPLINK]    = "no uplink",
	[FABRIC_DEFAULT]      = "allowed by no rule",
};
// clang-format on

struct fabric *fabric_create(struct policy *policy, const struct fabric_ops *ops)
{
	struct fabric *f = calloc(1, sizeof(*f));

	if (!f) {
		policy_free(policy);
		return NULL;
	}
	f->policy = policy;
	f->ops = *ops;
	f->generation = 1;
	f->flows = conntrack_create(FABRIC_OUTSIDE + 1);
	f->ports = calloc(FABRIC_OUTSIDE + 1, sizeof(*f->ports));
	f->rules = calloc(policy->nrules + 1, sizeof(*f->rules));
	if (f->flows && f->ports && f->rules)
		return f;
	fabric_destroy(f);
	return NULL;
}

void fabric_destroy(struct fabric *f)
{
	if (!f)
		return;
	policy_free(f->policy);
	conntrack_destroy(f->flows);
	free(f->ports);
	free(f->rules);
	free(f);
}

const struct policy *fabric_policy(const struct fabric *f)
{
	return f->policy;
}

/* Another card than before, or a first one: nothing of its predecessor's is its. */
static void begin_port(struct fabric *f, unsigned port)
{
	conntrack_forget(f->flows, (int)port);
	memset(&f->ports[port], 0, sizeof(f->ports[port]));
}

int fabric_set_policy(struct fabric *f, struct policy *policy)
{
	struct fabric_counts *rules = calloc(policy->nrules + 1, sizeof(*rules));

	if (!rules) {
		policy_free(policy);
		return -ENOMEM;
	}
	/* Both are nearly in the same order: the search goes on where the last one ended. */
	for (unsigned i = 0, j = 0; i < policy->nrules; i++)
		for (unsigned n = 0; n < f->policy->nrules; n++, j++) {
			j = j < f->policy->nrules ? j : 0;
			if (f->policy->rules[j].id == policy->rules[i].id) {
				rules[i] = f->rules[j];
				break;
			}
		}
	for (unsigned i = 0; i < policy->nports; i++)
		if (i >= f->policy->nports ||
		    memcmp(f->policy->ports[i].mac, policy->ports[i].mac, 6) != 0)
			begin_port(f, i);
	free(f->rules);
	policy_free(f->policy);
	f->rules = rules;
	f->policy = policy;
	f->generation++;
	return 0;
}

bool bucket_take(struct bucket *b, int64_t now_ms, uint32_t per_s, uint32_t n)
{
	int64_t passed = now_ms - b->at_ms;

	if (passed >= 1000) {
		b->tokens = per_s;
		b->at_ms = now_ms;
	} else if (passed * per_s >= 1000) {
		uint32_t more = (uint32_t)(passed * per_s / 1000);
		b->tokens = MIN(b->tokens + more, per_s);
		b->at_ms = now_ms;
	}
	if (b->tokens < n)
		return false;
	b->tokens -= n;
	return true;
}

void fabric_told(struct input *in, enum fabric_reason reason, int rule)
{
	struct fabric *f = in->f;

	if (in->is_told)
		return;
	in->is_told = true;
	fabric_port_of(f, in->port)->counts.reasons[reason]++;
	if (rule >= 0) {
		f->rules[rule].frames++;
		f->rules[rule].bytes += in->p.len;
	}
	if (f->ops.seen) {
		struct fabric_verdict v = { reason, rule };
		f->ops.seen(f->ops.ctx, in->port, in->network, &v, in->p.data, in->p.len);
	}
}

void fabric_output(struct fabric *f, unsigned port, const struct net_offload *off, uint8_t *frame,
		   size_t len)
{
	int vlan = f->policy->ports[port].vlan;
	struct fabric_counts *out = &f->ports[port].counts.out;
	struct net_offload tagged = *off;

	out->frames++;
	out->bytes += len;
	if (vlan < 0) {
		f->ops.send(f->ops.ctx, port, off, frame, len);
		return;
	}
	uint8_t *start = frame - ETH_TAG;
	memmove(start, frame, 12);
	net_put16(start + 12, ETH_VLAN);
	net_put16(start + 14, (unsigned)vlan);
	if (off->flags & NET_OFF_NEEDS_CSUM)
		tagged.csum_start += ETH_TAG;
	if (off->hdr_len)
		tagged.hdr_len += ETH_TAG;
	f->ops.send(f->ops.ctx, port, &tagged, start, len + ETH_TAG);
	memmove(frame, start, 12);
}

/* ---- the switch ---- */

static int port_by_mac(const struct policy *policy, unsigned network, const uint8_t mac[6])
{
	for (unsigned i = 0; i < policy->nports; i++)
		if (!policy->ports[i].is_gone && policy->ports[i].network == network &&
		    memcmp(policy->ports[i].mac, mac, 6) == 0)
			return (int)i;
	return -1;
}

static bool has_addr(struct fabric *f, unsigned port, const struct net_addr *a)
{
	const struct policy_port *q = &f->policy->ports[port];

	return net_addr_is_equal(a, &q->v4) || net_addr_is_equal(a, &q->v6) ||
	       net_addr_is_equal(a, &q->ll) || binding_has(f, port, a);
}

static bool is_nd(const struct packet *p)
{
	return p->kind == PACKET_IPV6 && p->has_l4 && p->proto == IP_ICMP6 &&
	       p->icmp_type >= ICMP6_RS && p->icmp_type <= ICMP6_REDIRECT;
}

static bool is_quarantined(const struct fabric *f, unsigned port)
{
	return policy_is_cut_off(f->policy, port);
}

/* ARP and neighbor discovery are no flows. */
static bool is_link_talk(const struct packet *p)
{
	return p->kind == PACKET_ARP || is_nd(p);
}

/* They pass between two of a network that may open something to each other, in either direction. */
static bool may_talk(const struct input *in, unsigned to)
{
	const struct policy *p = in->f->policy;

	return policy_may_see(p, (unsigned)in->port, to) || policy_may_see(p, to, (unsigned)in->port);
}

static void switch_one(struct input *in, unsigned to)
{
	struct fabric *f = in->f;
	const struct policy_port *q = &f->policy->ports[to];
	enum fabric_reason reason = FABRIC_PASSED;
	int rule = -1;

	if (is_quarantined(f, to))
		reason = FABRIC_QUARANTINE;
	else if ((int)to == in->port)
		reason = FABRIC_NOBODY; /* a switch sends nothing back to where it came from */
	else if (in->p.kind != PACKET_ARP && !has_addr(f, to, &in->p.dst) && !q->may_spoof)
		reason = FABRIC_NOBODY; /* invariant 5 */
	else if (!is_link_talk(&in->p))
		reason = fabric_check_flow(in, (int)to, &rule);
	else if (!may_talk(in, to))
		reason = FABRIC_RULE;
	fabric_told(in, reason, rule);
	if (reason == FABRIC_PASSED)
		fabric_output(f, to, &in->off, in->p.data, in->p.len);
}

/* The MACs of cards are known.  Another one can only be behind a port whose sender addresses are its own affair. */
static void switch_unknown(struct input *in)
{
	const struct policy *policy = in->f->policy;

	for (unsigned i = 0; i < policy->nports; i++)
		if ((int)i != in->port && policy->ports[i].network == in->network &&
		    policy->ports[i].may_spoof)
			switch_one(in, i);
	fabric_told(in, FABRIC_NOBODY, -1);
}

/* Multicasts open no flow: each port that may be sent the like gets a copy. */
static bool may_hear(struct input *in, unsigned to)
{
	struct fabric *f = in->f;
	const struct packet *p = &in->p;

	if ((int)to == in->port || f->policy->ports[to].network != in->network || is_quarantined(f, to))
		return false;
	return is_link_talk(p) ? may_talk(in, to) : fabric_may_hear(in, to);
}

static bool is_subnet_broadcast(const struct policy_network *n, const struct net_addr *a)
{
	struct net_addr last = n->v4.addr;

	for (unsigned i = n->v4.bits; i < 128; i++)
		last.b[i / 8] |= (uint8_t)(0x80 >> i % 8);
	return net_addr_is_equal(a, &last);
}

/* What it takes to decide about it for each who may hear it, and to copy it. */
static uint32_t work_of(const struct input *in)
{
	const struct policy *policy = in->f->policy;
	uint32_t listeners = 0;

	for (unsigned i = 0; i < policy->nports; i++)
		listeners += policy->ports[i].network == in->network;
	return listeners * (FABRIC_COPY_WORK + (is_link_talk(&in->p) ? 2 : 1) * policy->nrules);
}

static bool may_flood(struct input *in)
{
	struct fabric_port *port = &in->f->ports[in->port];
	int64_t now_ms = in->f->ops.now_ms(in->f->ops.ctx);

	return bucket_take(&port->flood, now_ms, FABRIC_FLOOD_PER_S, 1) &&
	       bucket_take(&port->work, now_ms, FABRIC_FLOOD_WORK_PER_S, work_of(in));
}

static void flood(struct input *in)
{
	struct fabric *f = in->f;
	const struct packet *p = &in->p;

	if (!may_flood(in)) {
		fabric_told(in, FABRIC_FLOOD, -1);
		return;
	}
	/* Unicast in a frame for many is what firewalls are passed with; probes of neighbors are the exception. */
	if (p->kind != PACKET_ARP && !net_addr_is_multicast(&p->dst) &&
	    !(p->kind == PACKET_IPV4 && is_subnet_broadcast(input_network(in), &p->dst))) {
		fabric_told(in, FABRIC_NOBODY, -1);
		return;
	}
	if (p->is_fragment) {
		fabric_told(in, FABRIC_FRAGMENT, -1);
		return;
	}
	fabric_told(in, FABRIC_PASSED, -1);
	for (unsigned i = 0; i < f->policy->nports; i++)
		if (may_hear(in, i))
			fabric_output(f, i, &in->off, p->data, p->len);
}

/* ---- the router ---- */

static void decrement_ttl(struct packet *p)
{
	uint8_t *ip = p->data + p->l3;

	if (p->kind == PACKET_IPV6) {
		ip[7]--;
		return;
	}
	/* RFC 1624, equation 3, for a word that becomes 0x0100 less. */
	uint32_t sum = net_get16(ip + 10) + 0x0100u;
	ip[8]--;
	net_put16(ip + 10, (sum & 0xffff) + (sum >> 16));
}

static void set_macs(struct input *in, const uint8_t dst[6], const uint8_t src[6])
{
	memcpy(in->p.data, dst, 6);
	memcpy(in->p.data + 6, src, 6);
}

static void deny(struct input *in, enum fabric_reason reason, int rule)
{
	fabric_told(in, reason, rule);
	if (reason == FABRIC_NOBODY)
		gateway_error(in, ICMP_UNREACHABLE, 1, ICMP6_UNREACHABLE, 3);
	else if (reason >= FABRIC_RULE)
		gateway_error(in, ICMP_UNREACHABLE, 13, ICMP6_UNREACHABLE, 1);
}

static void route_to_port(struct input *in, unsigned to)
{
	struct fabric *f = in->f;
	const struct policy_port *q = &f->policy->ports[to];
	int rule;
	enum fabric_reason reason = fabric_check_flow(in, (int)to, &rule);

	if (reason != FABRIC_PASSED) {
		deny(in, reason, rule);
		return;
	}
	fabric_told(in, reason, rule);
	if (in->port != POLICY_OUTSIDE)
		decrement_ttl(&in->p);
	set_macs(in, q->mac, f->policy->networks[q->network].gateway_mac);
	fabric_output(f, to, &in->off, in->p.data, in->p.len);
}

static void route_outside(struct input *in)
{
	struct fabric *f = in->f;
	int rule;
	enum fabric_reason reason = fabric_check_flow(in, POLICY_OUTSIDE, &rule);

	if (reason != FABRIC_PASSED) {
		deny(in, reason, rule);
		return;
	}
	fabric_told(in, reason, rule);
	decrement_ttl(&in->p);
	f->ops.uplink(f->ops.ctx, in->network, &in->off, in->p.data, in->p.len);
}

static bool is_in_lab(const struct policy *policy, const struct net_addr *a)
{
	for (unsigned i = 0; i < policy->nnetworks; i++)
		if (net_prefix_has(&policy->networks[i].v4, a) ||
		    net_prefix_has(&policy->networks[i].v6, a))
			return true;
	return false;
}

static void route(struct input *in)
{
	struct fabric *f = in->f;
	const struct packet *p = &in->p;

	if (is_nd(p) || net_addr_is_link_local(&p->dst) || net_addr_is_link_local(&p->src) ||
	    net_addr_is_any(&p->src) || net_addr_is_multicast(&p->dst)) {
		fabric_told(in, FABRIC_NOBODY, -1); /* stays on its link (RFC 4291, 2.5.6) */
		return;
	}
	if (p->ttl <= 1) {
		fabric_told(in, FABRIC_TTL, -1);
		gateway_error(in, ICMP_TIME_EXCEEDED, 0, ICMP6_TIME_EXCEEDED, 0);
		return;
	}
	const struct policy_network *n = input_network(in);
	int to = fabric_port_by_addr(f, &p->dst);
	if (to >= 0)
		route_to_port(in, (unsigned)to);
	else if (n->has_uplink && net_addr_is_equal(&p->dst, &n->uplink_v4))
		route_outside(in); /* an answer to a caller on the host; all else is no internet */
	else if (is_in_lab(f->policy, &p->dst))
		deny(in, FABRIC_NOBODY, -1);
	else
		route_outside(in);
}

/* ---- in ---- */

/* Takes off the tag by which a frame at a card belongs to one of its networks; false: to none. */
static bool untag(struct input *in, unsigned card, uint8_t **frame, size_t *len)
{
	uint8_t *b = *frame;
	bool has_tag = *len >= ETH_MIN + ETH_TAG && net_get16(b + 12) == ETH_VLAN;
	int port = policy_port_by_tag(in->f->policy, card, has_tag ? net_get16(b + 14) & 0xfff : -1);

	if (port < 0)
		return false;
	in->port = port;
	in->network = in->f->policy->ports[port].network;
	if (!has_tag)
		return true;
	memmove(b + ETH_TAG, b, 12);
	*frame += ETH_TAG;
	*len -= ETH_TAG;
	if (in->off.flags & NET_OFF_NEEDS_CSUM)
		in->off.csum_start = in->off.csum_start >= ETH_TAG ? in->off.csum_start - ETH_TAG : 0;
	return true;
}

/* What is wrong with it before anybody asks where it goes. */
static enum fabric_reason check_input(struct input *in, enum packet_error e, bool is_of_network)
{
	if (is_quarantined(in->f, (unsigned)in->port))
		return FABRIC_QUARANTINE;
	if (!is_of_network)
		return FABRIC_VLAN;
	if (e != PACKET_FINE)
		return e == PACKET_BAD_FRAGMENT ? FABRIC_FRAGMENT : FABRIC_MALFORMED;
	if (in->p.vlan >= 0)
		return FABRIC_VLAN; /* the one that it came by is off already */
	if (in->p.src_mac[0] & 1)
		return FABRIC_SPOOFED_MAC;
	if (in->p.kind == PACKET_OTHER)
		return FABRIC_ETHERTYPE;
	if (!packet_check_offload(&in->p, &in->off))
		return FABRIC_HINTS;
	return guard_check(in);
}

void fabric_input(struct fabric *f, unsigned card, const struct net_offload *off, uint8_t *frame,
		  size_t len)
{
	struct input in = {
		.f = f, .port = (int)card, .network = f->policy->ports[card].network, .off = *off
	};
	size_t bytes = len;
	bool is_of_network = untag(&in, card, &frame, &len);
	struct fabric_counts *count = &f->ports[in.port].counts.in;

	count->frames++;
	count->bytes += bytes;
	enum packet_error e = packet_parse(&in.p, frame, len);
	enum fabric_reason reason = check_input(&in, e, is_of_network);
	if (reason != FABRIC_PASSED) {
		fabric_told(&in, reason, -1);
		return;
	}
	if (gateway_take(&in))
		return;
	if (in.p.dst_mac[0] & 1) {
		flood(&in);
		return;
	}
	if (memcmp(in.p.dst_mac, input_network(&in)->gateway_mac, 6) == 0) {
		route(&in);
		return;
	}
	int to = port_by_mac(f->policy, in.network, in.p.dst_mac);
	if (to < 0)
		switch_unknown(&in);
	else
		switch_one(&in, (unsigned)to);
}

void fabric_uplink_input(struct fabric *f, unsigned network, const struct net_offload *off,
			 uint8_t *frame, size_t len)
{
	struct input in = { .f = f, .port = POLICY_OUTSIDE, .network = network, .off = *off };
	enum packet_error e = packet_parse(&in.p, frame, len);

	if (e != PACKET_FINE || (in.p.kind != PACKET_IPV4 && in.p.kind != PACKET_IPV6)) {
		fabric_told(&in, e == PACKET_FINE ? FABRIC_ETHERTYPE : FABRIC_MALFORMED, -1);
		return;
	}
	int to = fabric_port_by_addr(f, &in.p.dst);
	if (to < 0 || f->policy->ports[to].network != network)
		fabric_told(&in, FABRIC_NOBODY, -1);
	else
		route_to_port(&in, (unsigned)to);
}

void fabric_port_up(struct fabric *f, unsigned port)
{
	if (!is_quarantined(f, port))
		gateway_advertise(f, port);
}

/* ---- queries ---- */

const struct fabric_port_counts *fabric_port_counts(const struct fabric *f, unsigned port)
{
	return &f->ports[port].counts;
}

struct fabric_counts fabric_rule_counts(const struct fabric *f, unsigned rule)
{
	return f->rules[rule];
}

unsigned fabric_flows(const struct fabric *f, unsigned port)
{
	return conntrack_count(f->flows, port);
}
