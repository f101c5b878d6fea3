/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a packet goes on: as part of a flow, as the first of one that the policy allows, or as a fragment of such. */
#include "net/fabric_int.h"

enum { FRAGMENTS_MS = 30000 };

/* ---- fragments ---- */

/* IPv6: what a later part says is its next header does not count (RFC 8200, 4.5). */
static bool is_of(const struct fragments *g, const struct packet *p)
{
	return g->id == p->frag_id && (p->kind == PACKET_IPV6 || g->proto == p->proto) &&
	       net_addr_is_equal(&g->src, &p->src) && net_addr_is_equal(&g->dst, &p->dst);
}

static struct fragments *find_fragments(struct input *in, int64_t now_ms)
{
	struct fabric_port *port = fabric_port_of(in->f, in->port);

	for (unsigned i = 0; i < FABRIC_FRAGMENTS; i++)
		if (port->fragments[i].expires_ms > now_ms && is_of(&port->fragments[i], &in->p))
			return &port->fragments[i];
	return NULL;
}

static void keep_fragments(struct input *in, int to, int rule, int64_t now_ms)
{
	struct fabric_port *port = fabric_port_of(in->f, in->port);
	struct fragments *g = find_fragments(in, now_ms);
	const struct packet *p = &in->p;

	if (!g)
		g = &port->fragments[port->next_fragments++ % FABRIC_FRAGMENTS];
	*g = (struct fragments){ .src = p->src,
				 .dst = p->dst,
				 .id = p->frag_id,
				 .proto = p->proto,
				 .to = to,
				 .rule = rule,
				 .generation = in->f->generation,
				 .first_len = (uint16_t)(p->end - p->frag_at),
				 .expires_ms = now_ms + FRAGMENTS_MS };
}

/* ---- flows ---- */

static enum fabric_reason reason_of(const struct policy_verdict *v)
{
	if (v->is_allowed)
		return FABRIC_PASSED;
	switch (v->why) {
	case POLICY_QUARANTINE:
		return FABRIC_QUARANTINE;
	case POLICY_BY_RULE:
		return FABRIC_RULE;
	case POLICY_BLOCKED:
		return FABRIC_BLOCKED;
	case POLICY_NO_UPLINK:
		return FABRIC_NO_UPLINK;
	default:
		return FABRIC_DEFAULT;
	}
}

/* A flow that was allowed keeps the addresses that its rule's names had then. */
struct held_names {
	const struct policy_names *names;
	uint32_t rule_id;
};

static bool has_held(void *ctx, unsigned port, uint32_t rule_id, const struct net_addr *a)
{
	const struct held_names *h = ctx;

	return rule_id == h->rule_id ||
	       (h->names->has && h->names->has(h->names->ctx, port, rule_id, a));
}

static struct policy_verdict decide(struct fabric *f, const struct conn_key *k, int from, int to,
				    bool has_ports, uint32_t held)
{
	struct held_names h = { &f->ops.names, held };
	struct policy_names names = { has_held, &h };
	struct policy_flow flow = {
		.from = from, .to = to, .dst = k->dst, .proto = k->proto, .dport = k->dport, .has_ports = has_ports
	};

	return policy_decide(f->policy, &flow, &names);
}

static bool has_ports(uint8_t proto)
{
	return proto == IP_TCP || proto == IP_UDP;
}

/* Invariant 3. */
static enum fabric_reason ask_again(struct fabric *f, struct conn *c)
{
	if (c->generation == f->generation)
		return FABRIC_PASSED;
	struct policy_verdict v =
		decide(f, &c->key, c->from, c->to, has_ports(c->key.proto), c->rule_id);
	if (!v.is_allowed) {
		conntrack_remove(f->flows, c);
		return reason_of(&v);
	}
	c->generation = f->generation;
	c->rule = v.rule;
	c->rule_id = v.rule >= 0 ? f->policy->rules[v.rule].id : 0;
	return FABRIC_PASSED;
}

/* An ICMP error passes if it is about a flow, and goes from one end of it to the other. */
static enum fabric_reason check_related(struct input *in, int to, const struct packet *quoted, int *rule)
{
	struct fabric *f = in->f;
	struct conn_key k = conntrack_key(quoted);
	bool is_answer;
	struct conn *c = conntrack_find(f->flows, &k, f->ops.now_ms(f->ops.ctx), &is_answer);

	if (!c || (is_answer ? c->to : c->from) != to || (is_answer ? c->from : c->to) != in->port ||
	    !net_addr_is_equal(&in->p.dst, &quoted->src))
		return FABRIC_NO_FLOW;
	enum fabric_reason reason = ask_again(f, c);
	*rule = reason == FABRIC_PASSED ? c->rule : -1;
	return reason;
}

static bool is_echo_reply(const struct packet *p)
{
	return p->kind == PACKET_IPV4 ? p->proto == IP_ICMP && p->icmp_type == ICMP_ECHO_REPLY
				      : p->proto == IP_ICMP6 && p->icmp_type == ICMP6_ECHO_REPLY;
}

/* Is it the beginning of something? */
static bool may_open(const struct packet *p)
{
	if (p->proto == IP_TCP)
		return (p->tcp_flags & (PACKET_SYN | PACKET_ACK | PACKET_RST | PACKET_FIN)) == PACKET_SYN;
	return !is_echo_reply(p);
}

static enum fabric_reason open_flow(struct input *in, int to, const struct conn_key *k,
				    int64_t now_ms, int *rule)
{
	struct fabric *f = in->f;
	const struct packet *p = &in->p;

	/* Rules first: what is denied anyhow is called that. */
	struct policy_verdict v = decide(f, k, in->port, to, p->has_l4 && has_ports(p->proto), 0);
	*rule = v.rule;
	if (!v.is_allowed)
		return reason_of(&v);
	if (!may_open(p)) {
		*rule = -1;
		return FABRIC_NO_FLOW;
	}
	if (to == POLICY_OUTSIDE &&
	    !bucket_take(&f->ports[in->port].outside, now_ms, FABRIC_OUTSIDE_PER_S, 1))
		return FABRIC_FLOOD;
	unsigned owner = in->port == POLICY_OUTSIDE ? FABRIC_OUTSIDE : (unsigned)in->port;
	struct conn *c = conntrack_add(f->flows, k, owner, now_ms);
	if (!c)
		return FABRIC_FLOOD;
	c->from = in->port;
	c->to = to;
	c->generation = f->generation;
	c->rule = v.rule;
	c->rule_id = v.rule >= 0 ? f->policy->rules[v.rule].id : 0;
	conntrack_seen(f->flows, c, false, p->tcp_flags, now_ms);
	fabric_port_of(f, in->port)->counts.in.flows++;
	if (v.rule >= 0)
		f->rules[v.rule].flows++;
	return FABRIC_PASSED;
}

/* May this packet go on to @to?  Invariant 2. */
enum fabric_reason fabric_check_flow(struct input *in, int to, int *rule)
{
	struct fabric *f = in->f;
	const struct packet *p = &in->p;
	int64_t now_ms = f->ops.now_ms(f->ops.ctx);
	struct packet quoted;
	enum fabric_reason reason;
	bool is_answer;

	*rule = -1;
	if (p->is_fragment && p->frag_offset) {
		const struct fragments *g = find_fragments(in, now_ms);
		if (!g || g->to != to || g->generation != in->f->generation || p->frag_offset < g->first_len)
			return FABRIC_FRAGMENT;
		*rule = g->rule;
		return FABRIC_PASSED;
	}
	if (packet_quoted(p, &quoted))
		return check_related(in, to, &quoted, rule);
	struct conn_key k = conntrack_key(p);
	struct conn *c = conntrack_find(f->flows, &k, now_ms, &is_answer);
	/* An ended connection's ports may be used anew. */
	if (c && c->state == CONN_CLOSING && p->proto == IP_TCP && may_open(p)) {
		conntrack_remove(f->flows, c);
		c = NULL;
	}
	if (c && ((is_answer ? c->to : c->from) != in->port || (is_answer ? c->from : c->to) != to))
		return FABRIC_NO_FLOW;
	if (!c) {
		reason = open_flow(in, to, &k, now_ms, rule);
	} else {
		reason = ask_again(f, c);
		if (reason == FABRIC_PASSED) {
			*rule = c->rule;
			conntrack_seen(f->flows, c, is_answer,
				       p->proto == IP_TCP ? p->tcp_flags : 0, now_ms);
		}
	}
	if (reason == FABRIC_PASSED && p->is_fragment)
		keep_fragments(in, to, *rule, now_ms);
	return reason;
}

bool fabric_may_hear(const struct input *in, unsigned to)
{
	const struct packet *p = &in->p;
	struct conn_key k = conntrack_key(p);

	return decide(in->f, &k, in->port, (int)to, p->has_l4 && has_ports(p->proto), 0).is_allowed;
}
