/* SPDX-License-Identifier: Apache-2.0 */
#include "net/hostile_model.h"

#include <stdio.h>

static uint64_t state;
static const struct policy *policy;
static bool has_announcements;

/* xorshift64* */
uint32_t hostile_rnd(uint32_t below)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (uint32_t)((state * 0x2545f4914f6cdd1dULL) >> 33) % MAX(below, 1u);
}

/* ---- the model ---- */

static const int network_of[LAB_PORTS] = { DMZ, DMZ, APP, APP, MAL, MAL, TAG, TAG, MAL, TAG, APP };
static const int tag_of[LAB_PORTS] = { -1, -1, -1, -1, -1, -1, 20, 20, 30, 20, 31 };

static int tag_in(const uint8_t *b, size_t len)
{
	return len >= 18 && b[12] == 0x81 && b[13] == 0 ? (b[14] & 15) << 8 | b[15] : -1;
}

/* By the card of which port, and so from which port, a frame comes; -1: its tag belongs to none. */
static int origin_of(unsigned from, const struct frame *f)
{
	int tag = tag_in(f->b, f->len);

	if (from < FW_MAL)
		return tag == tag_of[from] ? (int)from : -1;
	for (int i = FW_MAL; i <= FW_APP; i++)
		if (tag == tag_of[i])
			return i;
	return -1;
}

bool hostile_allows(int from, int to, unsigned proto, unsigned dport)
{
	bool is_icmp = proto == 1 || proto == 58;

	if (from == WEB_DMZ && to == DB && proto == 6 &&
	    (dport == 5432 || (dport >= 6000 && dport <= 6010)))
		return true;
	if (from == DB && to == OPS && is_icmp)
		return true;
	if (from == OPS && network_of[to] == APP && proto == 17)
		return true;
	if (from == OLD && to == DB)
		return true;
	if (from == OPS && to == WEB_DMZ && proto == 6 && dport == 22)
		return false;
	return network_of[from] == network_of[to];
}

/* What came out so far, a bit for each hash: enough to know that an answer has its question. */
static uint8_t known[1 << 21];

struct view { /* of a frame that came out */
	bool is_v6;
	uint8_t src[16], dst[16];
	unsigned proto, sport, dport, type, ttl;
	bool is_later_fragment;
	uint32_t frag_id;
};

static uint32_t hash_flow(const uint8_t *a, unsigned ap, const uint8_t *b, unsigned bp, unsigned proto)
{
	uint32_t h = 2166136261u;

	for (unsigned i = 0; i < 16; i++)
		h = (h ^ a[i]) * 16777619u;
	h = (h ^ ap) * 16777619u;
	for (unsigned i = 0; i < 16; i++)
		h = (h ^ b[i]) * 16777619u;
	h = (h ^ bp) * 16777619u;
	h = (h ^ proto) * 16777619u;
	return (h ^ h >> 15) & (sizeof(known) * 8 - 1);
}

/* Of a packet in fragments.  In IPv6 a later part does not say whose it is (RFC 8200, 4.5). */
static uint32_t hash_parts(const struct view *v)
{
	return hash_flow(v->src, 70000, v->dst, v->frag_id, v->is_v6 ? 0 : v->proto);
}

static void mark(uint32_t h)
{
	known[h / 8] |= (uint8_t)(1 << h % 8);
}

static bool is_marked(uint32_t h)
{
	return known[h / 8] >> h % 8 & 1;
}

static bool read_ip(const uint8_t *b, size_t len, struct view *v)
{
	unsigned next, at, offset = 0;

	memset(v, 0, sizeof(*v));
	if (b[12] == 8 && b[13] == 0) {
		memcpy(v->src + 12, b + 26, 4);
		memcpy(v->dst + 12, b + 30, 4);
		v->ttl = b[22];
		next = b[23];
		at = 14 + (b[14] & 15) * 4u;
		offset = (b[20] & 0x1fu) << 8 | b[21];
		v->frag_id = (uint32_t)b[18] << 8 | b[19];
	} else if (b[12] == 0x86 && b[13] == 0xdd) {
		v->is_v6 = true;
		memcpy(v->src, b + 22, 16);
		memcpy(v->dst, b + 38, 16);
		v->ttl = b[21];
		next = b[20];
		at = 54;
		while (next == 0 || next == 60 || next == 43 || next == 44) {
			unsigned size = 8 + (next == 44 ? 0 : b[at + 1] * 8u);
			if (next == 44) {
				offset = (unsigned)(b[at + 2] << 8 | b[at + 3]) >> 3;
				memcpy(&v->frag_id, b + at + 4, 4);
			}
			next = b[at];
			at += size;
			if (offset)
				break;
		}
	} else {
		return false;
	}
	v->proto = next;
	v->is_later_fragment = offset != 0;
	if (offset || at + 8 > len)
		return true;
	if (next == 6 || next == 17) {
		v->sport = (unsigned)b[at] << 8 | b[at + 1];
		v->dport = (unsigned)b[at + 2] << 8 | b[at + 3];
	} else if (next == 1 || next == 58) {
		v->type = b[at];
		v->sport = v->dport = (unsigned)b[at + 4] << 8 | b[at + 5];
	}
	return true;
}

/* Addresses that guests make, few in each network and the same link-local ones everywhere, so that they meet. */
enum { MADE = 4, MADE_LOCAL = 2 };
static int made_owner[4][MADE]; /* 0: nobody, else port + 1 */

static struct net_addr made_addr(unsigned network, unsigned i)
{
	struct net_addr a = i < MADE_LOCAL ? frame_addr("fe80::") : policy->networks[network].v6.addr;

	a.b[9] = 0xab;
	a.b[15] = (uint8_t)i;
	return a;
}

static int *owner_of_made(int network, const uint8_t *a)
{
	for (unsigned i = 0; i < MADE; i++) {
		struct net_addr made = made_addr((unsigned)network, i);
		if (memcmp(made.b, a, 16) == 0)
			return &made_owner[network][i];
	}
	return NULL;
}

static bool is_own(int port, const struct view *v, const uint8_t *a)
{
	const struct policy_port *q = &policy->ports[port];
	const int *made = v->is_v6 ? owner_of_made(network_of[port], a) : NULL;

	return v->is_v6 ? memcmp(a, q->v6.b, 16) == 0 || memcmp(a, q->ll.b, 16) == 0 ||
				  (made && *made == port + 1)
			: memcmp(a + 12, q->v4.b + 12, 4) == 0;
}

static bool is_for_many(const struct view *v)
{
	return v->is_v6 ? v->dst[0] == 0xff : (v->dst[12] >> 4) == 14 || v->dst[15] == 255;
}

static bool is_nd(const struct view *v)
{
	return v->is_v6 && v->proto == 58 && v->type >= 133 && v->type <= 137;
}

static bool is_error(const struct view *v)
{
	return v->is_v6 ? v->proto == 58 && v->type >= 1 && v->type <= 4
			: v->proto == 1 && (v->type == 3 || v->type == 11 || v->type == 12);
}

static const char *judge_arp(int from, const uint8_t *b, bool is_gateway)
{
	static const uint8_t zero[4];

	if (is_gateway)
		return NULL;
	if (memcmp(b + 22, policy->ports[from].mac, 6) != 0)
		return "ARP with another's MAC";
	if (memcmp(b + 28, policy->ports[from].v4.b + 12, 4) != 0 && memcmp(b + 28, zero, 4) != 0)
		return "ARP for another's address";
	return b[21] == 2 && memcmp(b + 28, zero, 4) == 0 ? "an ARP answer for nobody" : NULL;
}

static const char *judge_nd(int from, const uint8_t *b, const struct view *v)
{
	if (v->type == 134 || v->type == 137)
		return "a router's message from a machine";
	if (v->type == 136 && !is_own(from, v, b + 62))
		return "a neighbor's message for another's address";
	static const uint8_t nobody[16];
	if (v->type == 135 && memcmp(v->src, nobody, 16) == 0) {
		int *made = owner_of_made(network_of[from], b + 62);
		if (made && !*made)
			*made = from + 1;
		if (!is_own(from, v, b + 62))
			return "it announces another's address";
	}
	return v->ttl == 255 ? NULL : "neighbor discovery from afar";
}

static const char *judge_flow(int from, int to, const struct view *v)
{
	unsigned bit = v->proto == 1 || v->proto == 58 ? 1 : 0;
	bool is_reply = bit && v->type == (v->is_v6 ? 129 : 0);

	if (v->is_later_fragment)
		return is_marked(hash_parts(v)) ? NULL : "a fragment without its beginning";
	if (!is_reply && hostile_allows(from, to, v->proto, v->dport)) {
		mark(hash_flow(v->src, v->sport, v->dst, v->dport, v->proto));
		mark(hash_flow(v->src, 80000, v->dst, 0, 0));
		mark(hash_flow(v->dst, 80000, v->src, 0, 0));
		mark(hash_parts(v));
		return NULL;
	}
	if (is_error(v) && is_marked(hash_flow(v->dst, 80000, v->src, 0, 0)))
		return NULL;
	if (is_marked(hash_flow(v->dst, v->dport, v->src, v->sport, v->proto))) {
		mark(hash_parts(v));
		return bit && !is_reply ? "an echo request as an answer" : NULL;
	}
	return "nothing allows it";
}

static const char *judge_outside(int from, const struct view *v)
{
	static const uint8_t learnt[4] = { 93, 184, 216, 34 };

	if (network_of[from] != DMZ)
		return "from a network without uplink";
	if (!is_own(from, v, v->src))
		return "spoofed to the outside";
	if (v->is_v6 || memcmp(v->dst + 12, learnt, 4) != 0)
		return "to an address that was not learnt";
	if (v->is_later_fragment)
		return is_marked(hash_parts(v)) ? NULL : "a fragment outside";
	if (is_error(v))
		return NULL; /* about a flow to there; what it quotes is judged by the unit tests */
	mark(hash_parts(v));
	return v->proto == 6 && (v->dport == 80 || v->dport == 443) ? NULL : "to a port that is closed";
}

/* What is wrong with it; NULL: nothing. */
static const char *judge(int from, const struct sent *s)
{
	uint8_t untagged[2048];
	const uint8_t *b = s->frame.b;
	size_t len = s->frame.len;
	struct view v;

	if (from < 0)
		return "its tag belongs to no network of the card";
	if (tag_in(b, len) != (s->port == POLICY_OUTSIDE ? -1 : tag_of[s->port]))
		return "another tag than its network's at that card";
	if (tag_in(b, len) >= 0) {
		memcpy(untagged, b, 12);
		memcpy(untagged + 12, b + 16, len - 16);
		b = untagged;
		len -= 4;
	}
	int network = s->port == POLICY_OUTSIDE ? network_of[from] : network_of[s->port];
	bool is_gateway = memcmp(b + 6, policy->networks[network].gateway_mac, 6) == 0;
	if (!is_gateway && memcmp(b + 6, policy->ports[from].mac, 6) != 0 && s->port != POLICY_OUTSIDE)
		return "another's MAC";
	if (!is_gateway && s->port != POLICY_OUTSIDE && network_of[from] != network)
		return "it crossed the networks without the router";
	if (b[12] == 8 && b[13] == 6)
		return judge_arp(from, b, is_gateway);
	if (!read_ip(b, len, &v))
		return "neither ARP nor IP";
	if (s->port == POLICY_OUTSIDE)
		return judge_outside(from, &v);
	if (is_gateway && s->port == from)
		return is_own(from, &v, v.dst) || is_for_many(&v)
			       ? NULL
			       : "the gateway's answer to somebody else";
	if (is_nd(&v))
		return judge_nd(from, b, &v);
	if (!is_own(from, &v, v.src))
		return "a spoofed address";
	if (is_for_many(&v))
		return hostile_allows(from, s->port, v.proto, v.dport) || is_error(&v)
			       ? NULL
			       : "a multicast that is denied";
	if (!is_own(s->port, &v, v.dst))
		return "it came to somebody else";
	if (v.proto == 17 && (v.dport == 68 || v.sport == 67 || v.dport == 546 || v.sport == 547))
		return "a DHCP server's message";
	return judge_flow(from, s->port, &v);
}

/* ---- frames ---- */

static struct frame_ends random_ends(unsigned from, unsigned to, bool is_v6)
{
	struct frame_ends e = lab_ends(policy, from, to, is_v6);

	/* An address of somewhere else as the target, or one that the guest there may have made. */
	switch (hostile_rnd(12)) {
	case 4:
		if (is_v6)
			e.dst = made_addr((unsigned)network_of[to], hostile_rnd(MADE));
		break;
	case 0:
		e.dst = frame_addr(is_v6 ? "2606:4700::1111" : LAB_LEARNT);
		memcpy(e.dst_mac, policy->networks[network_of[from]].gateway_mac, 6);
		break;
	case 1:
		e.dst = frame_addr(is_v6 ? "::1" : "169.254.169.254");
		memcpy(e.dst_mac, policy->networks[network_of[from]].gateway_mac, 6);
		break;
	case 2:
		e.dst = is_v6 ? policy->networks[hostile_rnd(4)].gateway_v6
			      : policy->networks[hostile_rnd(4)].gateway_v4;
		memcpy(e.dst_mac, policy->networks[network_of[from]].gateway_mac, 6);
		break;
	case 3:
		e.dst = frame_addr(is_v6 ? "ff02::fb" : "255.255.255.255");
		memset(e.dst_mac, 255, 6);
		break;
	}
	return e;
}

static const uint16_t some_ports[] = { 22,   53,   67,	 68,   80,   443,  546,	 547,
				       5431, 5432, 5433, 5999, 6000, 6005, 6010, 6011 };

static void spoof(struct frame_ends *e, bool is_v6)
{
	const struct policy_port *q = &policy->ports[hostile_rnd(LAB_PORTS)];
	const struct policy_network *n = &policy->networks[hostile_rnd(4)];

	switch (hostile_rnd(7)) {
	case 6:
		if (is_v6)
			e->src = made_addr(q->network, hostile_rnd(MADE));
		break;
	case 0:
		memcpy(e->src_mac, q->mac, 6);
		break;
	case 1:
		e->src = is_v6 ? q->v6 : q->v4;
		break;
	case 2:
		e->src = is_v6 ? n->gateway_v6 : n->gateway_v4;
		break;
	case 3:
		memcpy(e->dst_mac, q->mac, 6);
		break;
	case 4:
		memcpy(e->dst_mac, n->gateway_mac, 6);
		break;
	case 5:
		e->src = frame_addr(is_v6 ? "::" : "0.0.0.0");
		break;
	}
}

static void quote(struct frame *f, const struct frame_ends *e, bool is_v6)
{
	struct frame_ends back = { .src = e->dst, .dst = e->src };
	uint8_t icmp[96] = { is_v6 ? 1 : 3, 3 };
	struct frame q;

	if (hostile_rnd(2))
		back.src = policy->ports[hostile_rnd(LAB_PORTS)].v4;
	if (is_v6 == net_addr_is_v4(&back.src))
		back.src = e->dst;
	frame_tcp(&q, &back, some_ports[hostile_rnd(ARRAY_SIZE(some_ports))],
		  (uint16_t)(1000 + hostile_rnd(8)), PACKET_SYN);
	size_t len = MIN(q.len - ETH_HEADER, sizeof(icmp) - 8);
	memcpy(icmp + 8, q.b + ETH_HEADER, len);
	frame_ip(f, e, is_v6 ? IP_ICMP6 : IP_ICMP, icmp, 8 + len);
}

static void announce(struct frame *f, const struct frame_ends *e, unsigned network)
{
	struct net_addr target = hostile_rnd(4) ? made_addr(network, hostile_rnd(MADE))
						: policy->ports[hostile_rnd(LAB_PORTS)].v6;
	struct frame_ends to_many = { .src = frame_addr("::"), .dst = frame_addr("ff02::1:ff00:0") };

	memcpy(to_many.src_mac, e->src_mac, 6);
	memset(to_many.dst_mac, 0x33, 6);
	memcpy(to_many.dst.b + 13, target.b + 13, 3);
	frame_nd(f, &to_many, ICMP6_NS, &target, NULL);
}

/* False: it is to stay as it is.  With a wrong bit it announces what the model does not know of. */
static bool make(struct frame *f, const struct frame_ends *e, bool is_v6, unsigned from)
{
	uint16_t port = some_ports[hostile_rnd(ARRAY_SIZE(some_ports))],
		 low = (uint16_t)(1000 + hostile_rnd(8));
	bool is_back = hostile_rnd(3) == 0;
	uint8_t payload[200] = { 0 };

	switch (hostile_rnd(8)) {
	case 0:
	case 1:
		frame_tcp(f, e, is_back ? port : low, is_back ? low : port,
			  (uint8_t)(hostile_rnd(2) ? PACKET_SYN : hostile_rnd(64)));
		break;
	case 2:
		frame_udp(f, e, is_back ? port : low, is_back ? low : port, payload,
			  hostile_rnd(sizeof(payload)));
		break;
	case 3:
		frame_echo(f, e, hostile_rnd(2), (uint16_t)hostile_rnd(4));
		break;
	case 4:
		frame_ip(f, e, (uint8_t)hostile_rnd(256), payload, hostile_rnd(sizeof(payload)));
		break;
	case 5:
		quote(f, e, is_v6);
		break;
	case 6:
		if (is_v6 && has_announcements && hostile_rnd(3) == 0) {
			announce(f, e, (unsigned)network_of[from]);
			return false;
		}
		if (is_v6)
			frame_nd(f, e, (uint8_t)(133 + hostile_rnd(5)),
				 hostile_rnd(2) ? &e->src : &e->dst, hostile_rnd(3) ? e->src_mac : NULL);
		else
			frame_arp(f, e, (uint16_t)hostile_rnd(4));
		break;
	case 7:
		if (hostile_rnd(2))
			frame_dhcp(f, e->src_mac,
				   policy->ports[hostile_rnd(4) ? from : hostile_rnd(LAB_PORTS)].mac,
				   (uint8_t)hostile_rnd(9));
		else
			frame_udp(f, e, low, port, payload, hostile_rnd(sizeof(payload)));
		break;
	}
	return true;
}

static void damage(struct frame *f)
{
	static const uint16_t tags[] = { 20, 30, 31, 0, 1, 4095 };

	switch (hostile_rnd(6)) {
	case 0:
		f->b[hostile_rnd((uint32_t)f->len)] ^= (uint8_t)(1 << hostile_rnd(8));
		break;
	case 1:
		f->len = hostile_rnd((uint32_t)f->len + 1);
		break;
	case 2:
		for (unsigned i = 0; i < 4; i++)
			f->b[hostile_rnd((uint32_t)f->len)] = (uint8_t)hostile_rnd(256);
		break;
	case 3: /* one tag, or one over the other */
		for (unsigned i = 0; i < 1 + hostile_rnd(2) && f->len >= ETH_HEADER; i++)
			frame_tag(f, (uint16_t)(hostile_rnd(3) ? tags[hostile_rnd(ARRAY_SIZE(tags))]
							       : hostile_rnd(65536)));
		if (f->len >= ETH_HEADER && hostile_rnd(8) == 0)
			f->b[12] = 0x88, f->b[13] = 0xa8; /* of a provider (802.1ad) */
		break;
	case 4:
		if (f->len > 80 && (f->b[12] == 8 || f->b[12] == 0x86)) {
			size_t all = f->len - (f->b[12] == 8 ? 34 : 54), from = hostile_rnd(4) * 8;
			if (all > from + 16)
				frame_fragment(f, from, hostile_rnd(2) ? all - from : 16,
					       hostile_rnd(2), hostile_rnd(4));
		}
		break;
	case 5:
		if (f->len > 40)
			f->b[ETH_HEADER + hostile_rnd(24)] = (uint8_t)hostile_rnd(256);
		break;
	}
}

void hostile_seed(const struct policy *of, uint64_t seed, bool announces)
{
	policy = of;
	state = seed * 0x9e3779b97f4a7c15ULL + 1;
	has_announcements = announces;
	memset(known, 0, sizeof(known));
	memset(made_owner, 0, sizeof(made_owner));
}

void hostile_proper(struct hostile_frame *h)
{
	*h = (struct hostile_frame){ .from = hostile_rnd(LAB_PORTS),
				     .to = hostile_rnd(LAB_PORTS),
				     .is_v6 = hostile_rnd(2),
				     .dport = some_ports[hostile_rnd(ARRAY_SIZE(some_ports))] };
	struct frame_ends e = lab_ends(policy, h->from, h->to, h->is_v6);

	frame_tcp(&h->frame, &e, (uint16_t)(20000 + hostile_rnd(40000)), h->dport, PACKET_SYN);
	if (tag_of[h->from] >= 0)
		frame_tag(&h->frame, (uint16_t)tag_of[h->from]);
}

static bool make_ends(struct hostile_frame *h, struct frame_ends *e)
{
	*h = (struct hostile_frame){ .from = hostile_rnd(LAB_PORTS),
				     .to = hostile_rnd(LAB_PORTS),
				     .is_v6 = hostile_rnd(2) };
	*e = random_ends(h->from, h->to, h->is_v6);
	if (hostile_rnd(3) == 0)
		spoof(e, h->is_v6);
	return net_addr_is_v4(&e->src) == net_addr_is_v4(&e->dst);
}

void hostile_make(struct hostile_frame *h)
{
	struct frame_ends e;

	while (!make_ends(h, &e))
		;
	bool may_damage = make(&h->frame, &e, h->is_v6, h->from);
	if (tag_of[h->from] >= 0 && hostile_rnd(10)) /* of a trunk mostly the right one */
		frame_tag(&h->frame, (uint16_t)(h->from >= FW_MAL && hostile_rnd(4) == 0
							? tag_of[FW_MAL + hostile_rnd(3)]
							: tag_of[h->from]));
	if (may_damage && hostile_rnd(2))
		damage(&h->frame);
	if (may_damage && hostile_rnd(8) == 0)
		damage(&h->frame);
	if (hostile_rnd(20) == 0)
		h->hints = (struct net_offload){ .flags = (uint8_t)hostile_rnd(4),
						 .gso_type = (uint8_t)hostile_rnd(6),
						 .gso_size = (uint16_t)hostile_rnd(3000),
						 .csum_start = (uint16_t)(30 + hostile_rnd(40)),
						 .csum_offset = (uint16_t)hostile_rnd(20) };
}

const char *hostile_judge(const struct hostile_frame *h, const struct sent *s)
{
	const struct net_offload *o = &s->off;
	const char *wrong = judge(origin_of(h->from, &h->frame), s);

	if (!wrong && (o->csum_start + o->csum_offset + 2u > s->frame.len ||
		       (o->gso_type && (o->gso_size < 48 || o->hdr_len > s->frame.len))))
		return "hints that lead out of it";
	return wrong;
}

void hostile_print(const struct sent *s)
{
	for (size_t b = 0; b < s->frame.len; b++)
		printf("%02x%s", s->frame.b[b], b % 32 == 31 ? "\n" : " ");
	printf("\n");
}
