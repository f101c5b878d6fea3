/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile frames against a model of the policy that shares nothing with it: what leaves the data plane is read byte by
 * byte here, and who may send what to whom is written out as conditions.
 *
 *   test_net_hostile [FRAMES [SEED]]     100,000 frames unless more are wanted
 *
 * Each frame begins as a proper one between two random ends, then mostly gets something wrong: senders, targets, tags,
 * fragments, bits, lengths.  For each that comes out:
 *   - it came with a tag of its card's, if that has any, and leaves with the one of its network at the other card, or none
 *   - the machine it goes to is no other than the one with the address, or it is for all of the network
 *   - its sender is the port that sent it, with its own addresses, in its own network or over the gateway
 *   - the lab allows it, or it is the answer to something that the lab allowed and that came out before
 * And proper frames that the lab allows do come out.
 */
#include <stdio.h>

#include "net/fabric_testing.h"

static uint64_t state;

/* xorshift64* */
static uint32_t rnd(uint32_t below)
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

static bool lab_allows(int from, int to, unsigned proto, unsigned dport)
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

static const struct policy *policy; /* for the addresses only */

static bool is_own(int port, const struct view *v, const uint8_t *a)
{
	const struct policy_port *q = &policy->ports[port];

	return v->is_v6 ? memcmp(a, q->v6.b, 16) == 0 || memcmp(a, q->ll.b, 16) == 0
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
	return v->ttl == 255 ? NULL : "neighbor discovery from afar";
}

static const char *judge_flow(int from, int to, const struct view *v)
{
	unsigned bit = v->proto == 1 || v->proto == 58 ? 1 : 0;
	bool is_reply = bit && v->type == (v->is_v6 ? 129 : 0);

	if (v->is_later_fragment)
		return is_marked(hash_parts(v)) ? NULL : "a fragment without its beginning";
	if (!is_reply && lab_allows(from, to, v->proto, v->dport)) {
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
		return lab_allows(from, s->port, v.proto, v.dport) || is_error(&v)
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

	/* An address of somewhere else as the target. */
	switch (rnd(12)) {
	case 0:
		e.dst = frame_addr(is_v6 ? "2606:4700::1111" : LAB_LEARNT);
		memcpy(e.dst_mac, policy->networks[network_of[from]].gateway_mac, 6);
		break;
	case 1:
		e.dst = frame_addr(is_v6 ? "::1" : "169.254.169.254");
		memcpy(e.dst_mac, policy->networks[network_of[from]].gateway_mac, 6);
		break;
	case 2:
		e.dst = is_v6 ? policy->networks[rnd(4)].gateway_v6 : policy->networks[rnd(4)].gateway_v4;
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
	const struct policy_port *q = &policy->ports[rnd(LAB_PORTS)];
	const struct policy_network *n = &policy->networks[rnd(4)];

	switch (rnd(6)) {
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

	if (rnd(2))
		back.src = policy->ports[rnd(LAB_PORTS)].v4;
	if (is_v6 == net_addr_is_v4(&back.src))
		back.src = e->dst;
	frame_tcp(&q, &back, some_ports[rnd(ARRAY_SIZE(some_ports))], (uint16_t)(1000 + rnd(8)),
		  PACKET_SYN);
	size_t len = MIN(q.len - ETH_HEADER, sizeof(icmp) - 8);
	memcpy(icmp + 8, q.b + ETH_HEADER, len);
	frame_ip(f, e, is_v6 ? IP_ICMP6 : IP_ICMP, icmp, 8 + len);
}

static void make(struct frame *f, const struct frame_ends *e, bool is_v6, unsigned from)
{
	uint16_t port = some_ports[rnd(ARRAY_SIZE(some_ports))], low = (uint16_t)(1000 + rnd(8));
	bool is_back = rnd(3) == 0;
	uint8_t payload[200] = { 0 };

	switch (rnd(8)) {
	case 0:
	case 1:
		frame_tcp(f, e, is_back ? port : low, is_back ? low : port,
			  (uint8_t)(rnd(2) ? PACKET_SYN : rnd(64)));
		break;
	case 2:
		frame_udp(f, e, is_back ? port : low, is_back ? low : port, payload,
			  rnd(sizeof(payload)));
		break;
	case 3:
		frame_echo(f, e, rnd(2), (uint16_t)rnd(4));
		break;
	case 4:
		frame_ip(f, e, (uint8_t)rnd(256), payload, rnd(sizeof(payload)));
		break;
	case 5:
		quote(f, e, is_v6);
		break;
	case 6:
		if (is_v6)
			frame_nd(f, e, (uint8_t)(133 + rnd(5)), rnd(2) ? &e->src : &e->dst,
				 rnd(3) ? e->src_mac : NULL);
		else
			frame_arp(f, e, (uint16_t)rnd(4));
		break;
	case 7:
		if (rnd(2))
			frame_dhcp(f, e->src_mac, policy->ports[rnd(4) ? from : rnd(LAB_PORTS)].mac,
				   (uint8_t)rnd(9));
		else
			frame_udp(f, e, low, port, payload, rnd(sizeof(payload)));
		break;
	}
}

static void damage(struct frame *f)
{
	static const uint16_t tags[] = { 20, 30, 31, 0, 1, 4095 };

	switch (rnd(6)) {
	case 0:
		f->b[rnd((uint32_t)f->len)] ^= (uint8_t)(1 << rnd(8));
		break;
	case 1:
		f->len = rnd((uint32_t)f->len + 1);
		break;
	case 2:
		for (unsigned i = 0; i < 4; i++)
			f->b[rnd((uint32_t)f->len)] = (uint8_t)rnd(256);
		break;
	case 3: /* one tag, or one over the other */
		for (unsigned i = 0; i < 1 + rnd(2) && f->len >= ETH_HEADER; i++)
			frame_tag(f, (uint16_t)(rnd(3) ? tags[rnd(ARRAY_SIZE(tags))] : rnd(65536)));
		if (f->len >= ETH_HEADER && rnd(8) == 0)
			f->b[12] = 0x88, f->b[13] = 0xa8; /* of a provider (802.1ad) */
		break;
	case 4:
		if (f->len > 80 && (f->b[12] == 8 || f->b[12] == 0x86)) {
			size_t all = f->len - (f->b[12] == 8 ? 34 : 54), from = rnd(4) * 8;
			if (all > from + 16)
				frame_fragment(f, from, rnd(2) ? all - from : 16, rnd(2), rnd(4));
		}
		break;
	case 5:
		if (f->len > 40)
			f->b[ETH_HEADER + rnd(24)] = (uint8_t)rnd(256);
		break;
	}
}

int main(int argc, char **argv)
{
	unsigned long frames = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	unsigned long out = 0, must = 0, reasons[FABRIC_REASONS] = { 0 };
	static struct lab_fixture lab;

	state = seed * 0x9e3779b97f4a7c15ULL + 1;
	lab_set_up(&lab);
	policy = lab.policy;
	for (unsigned long n = 0; n < frames; n++) {
		unsigned from = rnd(LAB_PORTS), to = rnd(LAB_PORTS);
		bool is_v6 = rnd(2), is_proper = rnd(10) == 0;
		struct frame f;

		lab.now_ms += rnd(3);
		if (is_proper) {
			struct frame_ends e = lab_ends(policy, from, to, is_v6);
			uint16_t dport = some_ports[rnd(ARRAY_SIZE(some_ports))];
			frame_tcp(&f, &e, (uint16_t)(20000 + rnd(40000)), dport, PACKET_SYN);
			if (tag_of[from] >= 0)
				frame_tag(&f, (uint16_t)tag_of[from]);
			reasons[lab_send(&lab, from, &f)]++;
			bool has_come = lab_got(&lab, (int)to) && to != from;
			if (from != to && has_come != lab_allows((int)from, (int)to, 6, dport) &&
			    /* or what was opened before with the same ports is going on */
			    !(has_come && lab.verdict.reason == FABRIC_PASSED)) {
				printf("frame %lu of seed %llu: %u to %u port %u came: %d\n", n,
				       (unsigned long long)seed, from, to, dport, has_come);
				return 1;
			}
			must += has_come;
		} else {
			struct frame_ends e = random_ends(from, to, is_v6);
			if (rnd(3) == 0)
				spoof(&e, is_v6);
			if (net_addr_is_v4(&e.src) != net_addr_is_v4(&e.dst))
				continue;
			make(&f, &e, is_v6, from);
			if (tag_of[from] >= 0 && rnd(10)) /* of a trunk mostly the right one */
				frame_tag(&f, (uint16_t)(from >= FW_MAL && rnd(4) == 0
								 ? tag_of[FW_MAL + rnd(3)]
								 : tag_of[from]));
			if (rnd(2))
				damage(&f);
			if (rnd(8) == 0)
				damage(&f);
			if (rnd(20) == 0)
				lab.hints =
					(struct net_offload){ .flags = (uint8_t)rnd(4),
							      .gso_type = (uint8_t)rnd(6),
							      .gso_size = (uint16_t)rnd(3000),
							      .csum_start = (uint16_t)(30 + rnd(40)),
							      .csum_offset = (uint16_t)rnd(20) };
			reasons[lab_send(&lab, from, &f)]++;
			lab.hints = (struct net_offload){ 0 };
		}
		for (unsigned i = 0; i < lab.nsent; i++, out++) {
			const struct net_offload *o = &lab.sent[i].off;
			const char *wrong = judge(origin_of(from, &f), &lab.sent[i]);
			if (!wrong &&
			    (o->csum_start + o->csum_offset + 2u > lab.sent[i].frame.len ||
			     (o->gso_type && (o->gso_size < 48 || o->hdr_len > lab.sent[i].frame.len))))
				wrong = "hints that lead out of it";
			if (wrong) {
				printf("frame %lu of seed %llu, from port %u to %d: %s\n", n,
				       (unsigned long long)seed, from, lab.sent[i].port, wrong);
				for (size_t b = 0; b < lab.sent[i].frame.len; b++)
					printf("%02x%s", lab.sent[i].frame.b[b],
					       b % 32 == 31 ? "\n" : " ");
				printf("\n");
				return 1;
			}
		}
	}
	printf("%lu frames of seed %llu, %lu came out, %lu of them proper ones; none that should "
	       "not\n",
	       frames, (unsigned long long)seed, out, must);
	for (unsigned i = 0; i < FABRIC_REASONS; i++)
		printf("  %8lu  %s\n", reasons[i], fabric_reason_names[i]);
	/* A run in which nothing passed, or nothing was refused for some reason, has tested nothing. */
	bool is_thorough = out && must;
	for (unsigned i = 0; i < FABRIC_REASONS; i++)
		is_thorough &= reasons[i] || i == FABRIC_QUARANTINE || i == FABRIC_FLOOD ||
			       frames < 100000;
	lab_tear_down(&lab);
	return is_thorough ? 0 : 1;
}
