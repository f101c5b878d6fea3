/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "net/conntrack.h"
#include "net/fabric_testing.h"
#include "net/offload.h"

static struct lab_fixture lab;

static int set_up(void **state)
{
	lab_set_up(&lab);
	return 0;
}

static int tear_down(void **state)
{
	lab_tear_down(&lab);
	return 0;
}

static void to_wire(unsigned port, struct frame *f)
{
	if (lab_tags[port] >= 0)
		frame_tag(f, (uint16_t)lab_tags[port]);
}

static enum fabric_reason send_tcp(unsigned from, unsigned to, bool v6, uint16_t sport,
				   uint16_t dport, uint8_t flags)
{
	struct frame_ends e = lab_ends(lab.policy, from, to, v6);
	struct frame f;

	frame_tcp(&f, &e, sport, dport, flags);
	to_wire(from, &f);
	return lab_send(&lab, from, &f);
}

static enum fabric_reason send_echo(unsigned from, unsigned to, bool v6, bool is_reply, uint16_t id)
{
	struct frame_ends e = lab_ends(lab.policy, from, to, v6);
	struct frame f;

	frame_echo(&f, &e, is_reply, id);
	to_wire(from, &f);
	return lab_send(&lab, from, &f);
}

static struct packet parsed(const struct sent *s)
{
	struct packet p;

	assert_non_null(s);
	assert_int_equal(packet_parse(&p, (uint8_t *)(uintptr_t)s->frame.b, s->frame.len), PACKET_FINE);
	return p;
}

/* The sum over the IPv4 header must be right after the router changed it. */
static void assert_ipv4_sum(const struct packet *p)
{
	assert_int_equal(net_checksum_fold(net_checksum(p->data + p->l3, p->l4 - p->l3, 0)), 0);
}

static void test_routed_flow(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		/* An answer before the question, and the middle of a connection, are of no flow. */
		assert_int_equal(send_tcp(DB, WEB_DMZ, v6, 5432, 1000, PACKET_SYN | PACKET_ACK),
				 FABRIC_DEFAULT);
		assert_int_equal(send_tcp(WEB_DMZ, DB, v6, 1000, 5432, PACKET_ACK), FABRIC_NO_FLOW);
		assert_int_equal(send_tcp(WEB_DMZ, DB, v6, 1000, 5432, PACKET_SYN), FABRIC_PASSED);
		struct packet p = parsed(lab_got(&lab, DB));
		assert_int_equal(p.ttl, 63);
		assert_memory_equal(p.dst_mac, lab.policy->ports[DB].mac, 6);
		assert_memory_equal(p.src_mac, lab.policy->networks[APP].gateway_mac, 6);
		if (!v6)
			assert_ipv4_sum(&p);
		assert_int_equal(send_tcp(DB, WEB_DMZ, v6, 5432, 1000, PACKET_SYN | PACKET_ACK),
				 FABRIC_PASSED);
		assert_non_null(lab_got(&lab, WEB_DMZ));
		assert_int_equal(send_tcp(WEB_DMZ, DB, v6, 1000, 5432, PACKET_ACK), FABRIC_PASSED);
		/* Of other ports, other machines: nothing; and who asked is told. */
		assert_int_equal(send_tcp(WEB_DMZ, DB, v6, 1000, 5433, PACKET_SYN), FABRIC_DEFAULT);
		assert_null(lab_got(&lab, DB));
		p = parsed(lab_got(&lab, WEB_DMZ));
		assert_int_equal(p.proto, v6 ? IP_ICMP6 : IP_ICMP);
		assert_int_equal(p.icmp_type, v6 ? ICMP6_UNREACHABLE : ICMP_UNREACHABLE);
		assert_int_equal(send_tcp(SUS, DB, v6, 1000, 5432, PACKET_SYN), FABRIC_DEFAULT);
		assert_int_equal(send_tcp(DB, WEB_DMZ, v6, 5432, 1001, PACKET_SYN | PACKET_ACK),
				 FABRIC_DEFAULT);
	}
	assert_int_equal(fabric_rule_counts(lab.f, 0).flows, 2);
	assert_int_equal(fabric_rule_counts(lab.f, 0).frames, 6);
}

static void test_same_network(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		assert_int_equal(send_tcp(SUS, EVIL, v6, 1, 2, PACKET_SYN), FABRIC_PASSED);
		struct packet p = parsed(lab_got(&lab, EVIL));
		assert_int_equal(p.ttl, 64); /* switched, not routed */
		assert_int_equal(send_tcp(OPS, WEB_DMZ, v6, 1, 22, PACKET_SYN), FABRIC_RULE);
		assert_int_equal(send_tcp(OPS, WEB_DMZ, v6, 1, 23, PACKET_SYN), FABRIC_PASSED);
		assert_int_equal(send_tcp(WEB_DMZ, OPS, v6, 1, 22, PACKET_SYN), FABRIC_PASSED);
	}
}

static void test_echo(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		/* An id has two ends: both may ask with the same one, if both may ask. */
		assert_int_equal(send_echo(DB, OPS, v6, false, 7), FABRIC_PASSED);
		assert_int_equal(send_echo(OPS, DB, v6, false, 7), FABRIC_DEFAULT);
		assert_int_equal(send_echo(OPS, DB, v6, true, 8), FABRIC_DEFAULT);
		assert_int_equal(send_echo(OPS, DB, v6, true, 7), FABRIC_PASSED);
		assert_int_equal(send_echo(DB, OPS, v6, false, 0), FABRIC_PASSED);
		assert_int_equal(send_echo(OPS, DB, v6, false, 0), FABRIC_DEFAULT);
		assert_int_equal(send_echo(SUS, EVIL, v6, false, 9), FABRIC_PASSED);
		assert_int_equal(send_echo(EVIL, SUS, v6, false, 9), FABRIC_PASSED);
		assert_int_equal(send_echo(EVIL, SUS, v6, true, 9), FABRIC_PASSED);
	}
}

static void test_gateway(void **state)
{
	const struct policy_port *q = &lab.policy->ports[SUS];
	const struct policy_network *n = &lab.policy->networks[MAL];
	struct frame f;

	for (unsigned v6 = 0; v6 < 2; v6++) {
		struct frame_ends e = { .src = v6 ? q->v6 : q->v4,
					.dst = v6 ? n->gateway_v6 : n->gateway_v4 };
		memcpy(e.src_mac, q->mac, 6);
		memcpy(e.dst_mac, n->gateway_mac, 6);
		frame_echo(&f, &e, false, 3);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
		struct packet p = parsed(lab_got(&lab, SUS));
		assert_int_equal(p.icmp_id, 3);
		/* The checksum is right: the sum over all with the pseudo header is -0. */
		uint8_t *l4 = p.data + p.l4;
		uint16_t sum = net_get16(l4 + 2);
		packet_put_sum(l4, p.end - p.l4, 2, &p.src, &p.dst, p.proto);
		assert_int_equal(net_get16(l4 + 2), sum);
		frame_udp(&f, &e, 1000, 53, "question", 8);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
		assert_int_equal(lab.dns_questions, v6 + 1);
		frame_tcp(&f, &e, 1000, 22, PACKET_SYN);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_DEFAULT);
		frame_tcp(&f, &e, 1000, 53, PACKET_SYN);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
		assert_int_equal(lab.dns_segments, v6 + 1);
		/* A segment of the gateway's, with its checksum. */
		uint8_t segment[23] = { 0, 53, 3, 232, [12] = 0x50, [20] = 'a', 'b', 'c' };
		lab.nsent = 0;
		fabric_send_tcp(lab.f, SUS, &e.dst, &e.src, segment, sizeof(segment));
		p = parsed(lab_got(&lab, SUS));
		assert_true(p.proto == IP_TCP && p.sport == 53 && p.dport == 1000);
		assert_int_equal(p.end - p.payload, 3);
		l4 = p.data + p.l4;
		sum = net_get16(l4 + 16);
		packet_put_sum(l4, p.end - p.l4, 16, &p.src, &p.dst, p.proto);
		assert_int_equal(net_get16(l4 + 16), sum);
	}
	/* Another network's gateway is no way in. */
	struct frame_ends e = { .src = q->v4, .dst = lab.policy->networks[APP].gateway_v4 };
	memcpy(e.src_mac, q->mac, 6);
	memcpy(e.dst_mac, n->gateway_mac, 6);
	frame_echo(&f, &e, false, 3);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_NOBODY);
}

static void test_arp(void **state)
{
	static const uint8_t all[6] = { 255, 255, 255, 255, 255, 255 };
	const struct policy_port *q = &lab.policy->ports[SUS];
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, false);
	struct frame f;

	memcpy(e.dst_mac, all, 6);
	frame_arp(&f, &e, 1);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	assert_int_equal(lab.nsent, 2);
	assert_non_null(lab_got(&lab, EVIL));
	assert_non_null(lab_got(&lab, FW_MAL));
	e.dst = lab.policy->networks[MAL].gateway_v4;
	frame_arp(&f, &e, 1);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	struct packet p = parsed(lab_got(&lab, SUS));
	assert_true(p.arp_op == 2 && net_addr_is_equal(&p.src, &lab.policy->networks[MAL].gateway_v4));
	/* Poison: the gateway's, a neighbor's address; another's MAC inside. */
	e.src = lab.policy->networks[MAL].gateway_v4;
	e.dst = lab.policy->ports[EVIL].v4;
	frame_arp(&f, &e, 2);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ARP);
	e.src = q->v4;
	frame_arp(&f, &e, 2);
	f.b[ETH_HEADER + 8] ^= 2;
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ARP);
}

static void deny_first(const char *ends, const char *what)
{
	struct policy *p = policy_copy(lab.policy);
	struct policy_rule r;
	struct error err;

	assert_int_equal(policy_parse_rule(p, ends, what, &r, &err), 0);
	assert_int_equal(policy_add_rule(p, 0, &r, &err), 0);
	assert_int_equal(fabric_set_policy(lab.f, p), 0);
	lab.policy = fabric_policy(lab.f);
}

/* Neighbors that may open nothing to each other do not talk about addresses either. */
static void test_denied_neighbors(void **state)
{
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, false),
			  e6 = lab_ends(lab.policy, SUS, EVIL, true);
	struct frame one, many, nd;

	frame_arp(&one, &e, 1);
	memset(e.dst_mac, 255, 6);
	frame_arp(&many, &e, 1);
	frame_nd(&nd, &e6, ICMP6_NS, &e6.dst, e6.src_mac);
	deny_first("mal.sus -> mal.evil", NULL);
	for (unsigned both = 0; both < 2; both++) {
		deny_first("mal.evil -> mal.sus", both ? NULL : "tcp/1-65535");
		assert_int_equal(lab_send(&lab, SUS, &one), both ? FABRIC_RULE : FABRIC_PASSED);
		assert_int_equal(lab_send(&lab, SUS, &nd), both ? FABRIC_RULE : FABRIC_PASSED);
		assert_int_equal(lab_send(&lab, SUS, &many), FABRIC_PASSED);
		assert_int_equal(lab_got(&lab, EVIL) == NULL, both);
		assert_non_null(lab_got(&lab, FW_MAL));
	}
}

/* Duplicate address detection of @a, by the machine at @port. */
static enum fabric_reason claim(unsigned port, const struct net_addr *a)
{
	struct frame_ends e = { .src = frame_addr("::"),
				.dst = frame_addr("ff02::1:ff00:0"),
				.dst_mac = { 0x33, 0x33, 0xff, a->b[13], a->b[14], a->b[15] } };
	struct frame f;

	memcpy(e.src_mac, lab.policy->ports[port].mac, 6);
	memcpy(e.dst.b + 13, a->b + 13, 3);
	frame_nd(&f, &e, ICMP6_NS, a, NULL);
	return lab_send(&lab, port, &f);
}

static void test_nd(void **state)
{
	const struct policy_port *q = &lab.policy->ports[SUS], *other = &lab.policy->ports[EVIL];
	const struct policy_network *n = &lab.policy->networks[MAL];
	struct frame_ends e = { .src = q->ll,
				.dst = frame_addr("ff02::1:ff00:1"),
				.dst_mac = { 0x33, 0x33, 0xff, 0, 0, 1 } };
	struct frame f;
	struct packet p;

	memcpy(e.src_mac, q->mac, 6);
	frame_nd(&f, &e, ICMP6_NS, &n->gateway_ll, q->mac);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	p = parsed(lab_got(&lab, SUS));
	assert_int_equal(p.icmp_type, ICMP6_NA);
	assert_memory_equal(p.nd_lladdr, n->gateway_mac, 6);
	frame_nd(&f, &e, ICMP6_NS, &other->v6, q->mac);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	assert_non_null(lab_got(&lab, EVIL));
	frame_nd(&f, &e, ICMP6_NS, &other->v6, other->mac);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ND);
	frame_nd(&f, &e, ICMP6_NA, &other->v6, q->mac);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ND);
	frame_nd(&f, &e, ICMP6_NA, &q->v6, q->mac);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	frame_nd(&f, &e, ICMP6_RA, &q->v6, NULL);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ND);
	frame_nd(&f, &e, ICMP6_REDIRECT, &q->v6, NULL);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ND);
	frame_nd(&f, &e, ICMP6_RS, &q->v6, NULL);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	p = parsed(lab_got(&lab, SUS));
	assert_int_equal(p.icmp_type, ICMP6_RA);
	static const uint8_t search[] = { 31, 2, 0, 0, 0, 0, 7, 8, 3, 'l', 'a', 'b', 0, 0, 0, 0 };
	assert_memory_equal(p.data + p.end - sizeof(search), search, sizeof(search)); /* RFC 8106, 5.2 */
	/* About a link, it stays there, whatever a rule says of ICMP. */
	e = lab_ends(lab.policy, DB, OPS, true);
	frame_nd(&f, &e, ICMP6_NS, &lab.policy->ports[OPS].v6, lab.policy->ports[DB].mac);
	assert_int_equal(lab_send(&lab, DB, &f), FABRIC_NOBODY);
	assert_int_equal(lab.nsent, 0);
	/* Duplicate address detection: the own address, not another's. */
	assert_int_equal(claim(SUS, &q->v6), FABRIC_PASSED);
	assert_int_equal(claim(SUS, &other->v6), FABRIC_SPOOFED_ND);
}

/* Addresses of the guest's own making. */
static void test_announced(void **state)
{
	const struct policy_network *n = &lab.policy->networks[MAL];
	struct net_addr made = n->v6.addr, local = frame_addr("fe80::7777"), bound[FABRIC_BOUND], a;
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, true);
	struct frame f;

	made.b[15] = 0x77;
	e.src = made;
	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_IP);
	assert_int_equal(fabric_port_by_addr(lab.f, &made), -1);
	a = fabric_addr6(lab.f, SUS);
	assert_memory_equal(&a, &lab.policy->ports[SUS].v6, sizeof(a));

	assert_int_equal(claim(SUS, &made), FABRIC_PASSED);
	assert_int_equal(claim(SUS, &local), FABRIC_PASSED);
	assert_int_equal(fabric_bound(lab.f, SUS, bound), 2);
	assert_int_equal(fabric_port_by_addr(lab.f, &made), SUS);
	assert_int_equal(fabric_port_by_addr(lab.f, &local), -1); /* it means nothing outside of its network */
	a = fabric_addr6(lab.f, SUS);
	assert_memory_equal(&a, &made, sizeof(a));
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	e = lab_ends(lab.policy, EVIL, SUS, true);
	e.dst = made;
	frame_tcp(&f, &e, 2, 1, PACKET_SYN | PACKET_ACK);
	assert_int_equal(lab_send(&lab, EVIL, &f), FABRIC_PASSED);
	assert_non_null(lab_got(&lab, SUS));

	/* Who came first has it; a link-local one may be had once in each network. */
	assert_int_equal(claim(EVIL, &made), FABRIC_SPOOFED_ND);
	assert_int_equal(claim(EVIL, &local), FABRIC_SPOOFED_ND);
	assert_int_equal(claim(WEB_APP, &local), FABRIC_PASSED);
	/* Of the gateway, the way out, any router, another network or nowhere: nobody's to have. */
	struct net_addr outside = net_prefix_host(&n->v6, 2), any_router = n->v6.addr,
			app = lab.policy->networks[APP].v6.addr, world = frame_addr("2606:4700::9");
	app.b[15] = 0x77;
	assert_int_equal(claim(SUS, &n->gateway_ll), FABRIC_SPOOFED_ND);
	assert_int_equal(claim(SUS, &n->gateway_v6), FABRIC_SPOOFED_ND);
	assert_int_equal(claim(SUS, &outside), FABRIC_SPOOFED_ND);
	assert_int_equal(claim(SUS, &any_router), FABRIC_SPOOFED_ND);
	assert_int_equal(claim(SUS, &app), FABRIC_SPOOFED_ND);
	assert_int_equal(claim(SUS, &world), FABRIC_SPOOFED_ND);
	/* Asked to one machine only, it is no announcement. */
	a = made;
	a.b[15] = 0x78;
	e = lab_ends(lab.policy, SUS, EVIL, true);
	e.src = frame_addr("::");
	frame_nd(&f, &e, ICMP6_NS, &a, NULL);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ND);

	/* So many, then the one that was longest not used makes room. */
	for (unsigned i = 0; i < FABRIC_BOUND - 1; i++) {
		a.b[15] = (uint8_t)(0x80 + i);
		assert_int_equal(claim(SUS, &a), FABRIC_PASSED);
		assert_int_equal(fabric_port_by_addr(lab.f, &made), SUS);
		e = lab_ends(lab.policy, SUS, EVIL, true);
		e.src = made;
		frame_echo(&f, &e, false, 1);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	}
	assert_int_equal(fabric_bound(lab.f, SUS, bound), FABRIC_BOUND);
	assert_int_equal(claim(EVIL, &local), FABRIC_PASSED);

	/* Once the policy's own was announced, others are told that one. */
	assert_int_equal(claim(SUS, &lab.policy->ports[SUS].v6), FABRIC_PASSED);
	a = fabric_addr6(lab.f, SUS);
	assert_memory_equal(&a, &lab.policy->ports[SUS].v6, sizeof(a));
}

/* What a DHCP message says; it has to be @len bytes. */
static const uint8_t *dhcp_option(const struct packet *p, uint8_t code, uint8_t len)
{
	for (const uint8_t *o = p->data + p->payload + 240; *o != 255; o += 2 + o[1])
		if (*o == code) {
			assert_int_equal(o[1], len);
			return o + 2;
		}
	fail_msg("there is no option %u", code);
	return NULL;
}

static void test_dhcp(void **state)
{
	const struct policy_port *q = &lab.policy->ports[SUS];
	struct frame f;

	frame_dhcp(&f, q->mac, q->mac, 1);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	assert_int_equal(lab.nsent, 1);
	struct packet p = parsed(lab_got(&lab, SUS));
	assert_true(p.is_dhcp && p.dhcp_op == 2 && p.dhcp_type == 2);
	assert_memory_equal(p.data + p.payload + 16, q->v4.b + 12, 4);
	/* Single names are completed by either: web is web.lab. */
	assert_memory_equal(dhcp_option(&p, 15, 3), "lab", 3);
	assert_memory_equal(dhcp_option(&p, 119, 5), "\3lab", 5);
	assert_memory_equal(dhcp_option(&p, 12, 3), "sus", 3);
	assert_memory_equal(dhcp_option(&p, 6, 4), lab.policy->networks[MAL].gateway_v4.b + 12, 4);
	/* For another's hardware address; a request for an address that is not its own. */
	frame_dhcp(&f, q->mac, lab.policy->ports[EVIL].mac, 1);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_DHCP);
	frame_dhcp(&f, q->mac, q->mac, 3);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	p = parsed(lab_got(&lab, SUS));
	assert_int_equal(p.dhcp_type, 6);
	/* A server of its own. */
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, false);
	frame_udp(&f, &e, 67, 68, "", 0);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_DHCP);
	e = lab_ends(lab.policy, SUS, EVIL, true);
	frame_udp(&f, &e, 547, 546, "", 0);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_DHCP);
}

static void test_spoofed(void **state)
{
	struct frame f;

	for (unsigned v6 = 0; v6 < 2; v6++) {
		struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, v6);
		e.src_mac[5] ^= 1;
		frame_tcp(&f, &e, 1, 2, PACKET_SYN);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_MAC);
		e = lab_ends(lab.policy, SUS, EVIL, v6);
		e.src.b[15] ^= 1;
		frame_tcp(&f, &e, 1, 2, PACKET_SYN);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_IP);
		/* A neighbor's MAC with an address that is not its own: it would route. */
		e = lab_ends(lab.policy, WEB_APP, DB, v6);
		struct frame_ends own = lab_ends(lab.policy, OPS, WEB_DMZ, v6);
		own.dst = e.dst;
		frame_tcp(&f, &own, 1, 5432, PACKET_SYN);
		assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_NOBODY);
		/* A frame for all with an address of one. */
		e = lab_ends(lab.policy, SUS, EVIL, v6);
		memset(e.dst_mac, 255, 6);
		frame_tcp(&f, &e, 1, 2, PACKET_SYN);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_NOBODY);
	}
}

/* A card that may spoof: its senders are its affair, and what nobody else has goes to it; rules hold for it all the same. */
static void test_may_spoof(void **state)
{
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, false), back;
	struct policy *p = policy_copy(lab.policy);
	struct frame f;

	p->ports[SUS].may_spoof = true;
	assert_int_equal(fabric_set_policy(lab.f, p), 0);
	lab.policy = p;
	e.src = frame_addr("10.66.0.99");
	e.src_mac[5] ^= 1;
	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	assert_non_null(lab_got(&lab, EVIL));
	back = lab_ends(p, EVIL, SUS, false);
	back.dst = e.src;
	memcpy(back.dst_mac, e.src_mac, 6);
	frame_tcp(&f, &back, 2, 1, PACKET_SYN | PACKET_ACK);
	assert_int_equal(lab_send(&lab, EVIL, &f), FABRIC_PASSED);
	assert_non_null(lab_got(&lab, SUS));
	e = lab_ends(p, SUS, DB, false);
	e.src = p->ports[OLD].v4; /* who may */
	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_DEFAULT);
	assert_null(lab_got(&lab, DB));
}

static void test_redirects(void **state)
{
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, false);
	static const uint8_t types[] = { 5, 9 };
	uint8_t icmp[36] = { 0 };
	struct frame f;

	for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
		icmp[0] = types[i];
		frame_ip(&f, &e, IP_ICMP, icmp, sizeof(icmp));
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_SPOOFED_ND);
	}
}

static void test_vlan(void **state)
{
	struct frame_ends e = lab_ends(lab.policy, OLD, NEW, false);
	struct frame f;

	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	assert_int_equal(lab_send(&lab, OLD, &f), FABRIC_VLAN); /* no tag */
	frame_tag(&f, 21);
	assert_int_equal(lab_send(&lab, OLD, &f), FABRIC_VLAN);
	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	frame_tag(&f, 20);
	assert_int_equal(lab_send(&lab, OLD, &f), FABRIC_PASSED);
	struct packet p = parsed(lab_got(&lab, NEW));
	assert_int_equal(p.vlan, 20);
	/* Two tags. */
	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	frame_tag(&f, 1);
	frame_tag(&f, 20);
	assert_int_equal(lab_send(&lab, OLD, &f), FABRIC_VLAN);
	/* Where there are no tags, none passes: no hop into another VLAN. */
	e = lab_ends(lab.policy, SUS, EVIL, false);
	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	frame_tag(&f, 20);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_VLAN);
	/* Routed between a network with and one without tags, hints included. */
	e = lab_ends(lab.policy, OLD, DB, false);
	frame_tcp(&f, &e, 1, 2, PACKET_SYN);
	frame_tag(&f, 20);
	assert_int_equal(lab_send(&lab, OLD, &f), FABRIC_PASSED);
	p = parsed(lab_got(&lab, DB));
	assert_true(p.vlan == -1 && p.dport == 2);
}

static void test_fragments(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		struct frame_ends e = lab_ends(lab.policy, OPS, DB, v6);
		uint8_t payload[64] = { 0 };
		struct frame f;

		/* Later parts pass behind their first one only. */
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 32, 40, false, 9);
		assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_FRAGMENT);
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 0, 32, true, 9);
		assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_PASSED);
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 32, 40, false, 9);
		assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_PASSED);
		assert_non_null(lab_got(&lab, DB));
		/* Over the bytes of the first one: the ports would be others. */
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 8, 64, false, 9);
		assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_FRAGMENT);
		/* Of one that was denied. */
		e = lab_ends(lab.policy, SUS, DB, v6);
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 0, 32, true, 10);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_DEFAULT);
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 32, 40, false, 10);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_FRAGMENT);
		/* Half a minute later the beginning is forgotten. */
		e = lab_ends(lab.policy, OPS, DB, v6);
		lab.now_ms += 31000;
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 32, 40, false, 9);
		assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_FRAGMENT);
	}
}

/* Extension headers behind the fragment header are bytes of the first part, too: what lies over its end, where the ports
 * are, is refused (RFC 5722). */
static void test_fragments_over_extensions(void **state)
{
	enum { OPTIONS = 24, UDP = 16 };
	struct frame_ends e = lab_ends(lab.policy, OPS, DB, true);
	uint8_t payload[64] = { 17, OPTIONS / 8 - 1, 1, OPTIONS - 4 }, *udp = payload + OPTIONS;
	struct frame f;

	net_put16(udp, 1000);
	net_put16(udp + 2, 53);
	net_put16(udp + 4, sizeof(payload) - OPTIONS);
	frame_ip(&f, &e, 60, payload, sizeof(payload));
	frame_fragment(&f, 0, OPTIONS + UDP, true, 9);
	assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_PASSED);
	frame_ip(&f, &e, 60, payload, sizeof(payload));
	frame_fragment(&f, OPTIONS, sizeof(payload) - OPTIONS, false, 9);
	f.b[ETH_HEADER + 40] = IP_UDP; /* a later part may name any next header */
	assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_FRAGMENT);
	frame_ip(&f, &e, 60, payload, sizeof(payload));
	frame_fragment(&f, OPTIONS + UDP, sizeof(payload) - OPTIONS - UDP, false, 9);
	assert_int_equal(lab_send(&lab, OPS, &f), FABRIC_PASSED);
}

static void test_ttl(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		struct frame_ends e = lab_ends(lab.policy, WEB_DMZ, DB, v6);
		struct frame f;

		frame_tcp(&f, &e, 1000, 5432, PACKET_SYN);
		f.b[ETH_HEADER + (v6 ? 7 : 8)] = 1;
		assert_int_equal(lab_send(&lab, WEB_DMZ, &f), FABRIC_TTL);
		struct packet p = parsed(lab_got(&lab, WEB_DMZ)), q;
		assert_int_equal(p.icmp_type, v6 ? ICMP6_TIME_EXCEEDED : ICMP_TIME_EXCEEDED);
		assert_true(packet_quoted(&p, &q) && q.dport == 5432);
	}
}

static void test_related_errors(void **state)
{
	struct frame_ends e = lab_ends(lab.policy, OPS, DB, false),
			  back = lab_ends(lab.policy, DB, OPS, false);
	struct frame f, question;
	uint8_t icmp[8 + 28] = { ICMP_UNREACHABLE, 3 };

	frame_udp(&question, &e, 1000, 99, "", 0);
	memcpy(icmp + 8, question.b + ETH_HEADER, 28);
	frame_ip(&f, &back, IP_ICMP, icmp, sizeof(icmp));
	assert_int_equal(lab_send(&lab, DB, &f), FABRIC_NO_FLOW);
	assert_int_equal(lab_send(&lab, OPS, &question), FABRIC_PASSED);
	assert_int_equal(lab_send(&lab, DB, &f), FABRIC_PASSED);
	assert_non_null(lab_got(&lab, OPS));
	/* Of a machine that is not the flow's other end, and may send nothing to its first: not even what it overheard. */
	back = lab_ends(lab.policy, SUS, OPS, false);
	frame_ip(&f, &back, IP_ICMP, icmp, sizeof(icmp));
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_NO_FLOW);
	assert_null(lab_got(&lab, OPS));
	/* The same about somebody else's flow. */
	back = lab_ends(lab.policy, DB, WEB_APP, false);
	frame_ip(&f, &back, IP_ICMP, icmp, sizeof(icmp));
	assert_int_equal(lab_send(&lab, DB, &f), FABRIC_NO_FLOW);
}

static void test_internet(void **state)
{
	struct frame_ends e = lab_ends(lab.policy, WEB_DMZ, DB, false);
	struct frame f;
	struct {
		uint8_t room[FABRIC_HEADROOM];
		struct frame f;
	} in;
	struct net_offload none = { 0 };

	e.dst = frame_addr(LAB_LEARNT);
	frame_tcp(&f, &e, 1000, 443, PACKET_SYN);
	assert_int_equal(lab_send(&lab, WEB_DMZ, &f), FABRIC_PASSED);
	assert_non_null(lab_got(&lab, POLICY_OUTSIDE));
	/* The answer comes in; a question from there does not. */
	struct frame_ends back = { .src = e.dst, .dst = e.src };
	frame_tcp(&in.f, &back, 443, 1000, PACKET_SYN | PACKET_ACK);
	lab.nsent = 0;
	fabric_uplink_input(lab.f, DMZ, &none, in.f.b, in.f.len);
	assert_non_null(lab_got(&lab, WEB_DMZ));
	frame_tcp(&in.f, &back, 443, 1001, PACKET_SYN);
	lab.nsent = 0;
	fabric_uplink_input(lab.f, DMZ, &none, in.f.b, in.f.len);
	assert_int_equal(lab.nsent, 0);
	frame_tcp(&in.f, &back, 443, 80, PACKET_SYN); /* the forwarded port */
	fabric_uplink_input(lab.f, DMZ, &none, in.f.b, in.f.len);
	assert_non_null(lab_got(&lab, WEB_DMZ));
	/* A caller on this host appears as the uplink's address: answers find the way, nothing else does. */
	struct frame_ends local = { .src = lab.policy->networks[DMZ].uplink_v4, .dst = e.src };
	frame_tcp(&in.f, &local, 5000, 80, PACKET_SYN);
	lab.nsent = 0;
	fabric_uplink_input(lab.f, DMZ, &none, in.f.b, in.f.len);
	assert_non_null(lab_got(&lab, WEB_DMZ));
	struct frame_ends answer = e;
	answer.dst = local.src;
	frame_tcp(&f, &answer, 80, 5000, PACKET_SYN | PACKET_ACK);
	assert_int_equal(lab_send(&lab, WEB_DMZ, &f), FABRIC_PASSED);
	assert_non_null(lab_got(&lab, POLICY_OUTSIDE));
	frame_tcp(&f, &answer, 80, 5001, PACKET_SYN);
	assert_int_equal(lab_send(&lab, WEB_DMZ, &f), FABRIC_BLOCKED);
	memset(answer.dst_mac, 255, 6);
	frame_arp(&f, &answer, 1);
	assert_int_equal(lab_send(&lab, WEB_DMZ, &f), FABRIC_GATEWAY);
	assert_non_null(lab_got(&lab, WEB_DMZ));
	/* Flows to the outside have a rate. */
	lab.now_ms += 10000;
	unsigned opened = 0;
	for (unsigned i = 0; i < 3 * FABRIC_OUTSIDE_PER_S; i++) {
		frame_tcp(&f, &e, (uint16_t)(10000 + i), 443, PACKET_SYN);
		opened += lab_send(&lab, WEB_DMZ, &f) == FABRIC_PASSED;
	}
	assert_int_equal(opened, FABRIC_OUTSIDE_PER_S);
	/* By the uplink of another network nothing comes to it. */
	lab.nsent = 0;
	frame_tcp(&in.f, &back, 443, 80, PACKET_SYN);
	fabric_uplink_input(lab.f, APP, &none, in.f.b, in.f.len);
	assert_int_equal(lab.nsent, 0);
	e.dst = frame_addr("1.1.1.1"); /* by no name */
	frame_tcp(&f, &e, 1000, 443, PACKET_SYN);
	assert_int_equal(lab_send(&lab, WEB_DMZ, &f), FABRIC_DEFAULT);
	e.dst = frame_addr("169.254.169.254");
	frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
	assert_int_equal(lab_send(&lab, WEB_DMZ, &f), FABRIC_BLOCKED);
	e = lab_ends(lab.policy, DB, OPS, false);
	e.dst = frame_addr(LAB_LEARNT);
	frame_tcp(&f, &e, 1000, 443, PACKET_SYN);
	assert_int_equal(lab_send(&lab, DB, &f), FABRIC_NO_UPLINK);
}

static void test_policy_changes(void **state)
{
	struct policy *p;
	struct policy_rule r;
	struct error err;

	assert_int_equal(send_tcp(WEB_DMZ, DB, false, 1000, 5432, PACKET_SYN), FABRIC_PASSED);
	assert_int_equal(send_tcp(DB, WEB_DMZ, false, 5432, 1000, PACKET_SYN | PACKET_ACK), FABRIC_PASSED);
	assert_int_equal(fabric_rule_counts(lab.f, 0).frames, 2);
	/* Denied before the rule that allows it: the flow ends with its next packet, counters stay with their rule. */
	p = policy_copy(fabric_policy(lab.f));
	assert_int_equal(policy_parse_rule(p, "dmz.web -> app.*", NULL, &r, &err), 0);
	assert_int_equal(policy_add_rule(p, 0, &r, &err), 0);
	assert_int_equal(fabric_set_policy(lab.f, p), 0);
	lab.policy = p;
	assert_int_equal(fabric_rule_counts(lab.f, 1).frames, 2);
	assert_int_equal(send_tcp(DB, WEB_DMZ, false, 5432, 1000, PACKET_ACK), FABRIC_RULE);
	assert_int_equal(send_tcp(WEB_DMZ, DB, false, 1000, 5432, PACKET_SYN), FABRIC_RULE);
	/* Quarantine: not even its neighbors, the gateway or ARP. */
	assert_int_equal(send_tcp(SUS, EVIL, false, 1, 2, PACKET_SYN), FABRIC_PASSED);
	p = policy_copy(fabric_policy(lab.f));
	p->machines[M_SUS].is_quarantined = true;
	assert_int_equal(fabric_set_policy(lab.f, p), 0);
	lab.policy = p;
	assert_int_equal(send_tcp(SUS, EVIL, false, 1, 2, PACKET_ACK), FABRIC_QUARANTINE);
	assert_int_equal(send_tcp(EVIL, SUS, false, 2, 1, PACKET_ACK), FABRIC_QUARANTINE);
	struct frame f;
	frame_dhcp(&f, p->ports[SUS].mac, p->ports[SUS].mac, 1);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_QUARANTINE);
	struct frame_ends e = lab_ends(p, EVIL, SUS, false);
	memset(e.dst_mac, 255, 6);
	frame_arp(&f, &e, 1);
	lab_send(&lab, EVIL, &f);
	assert_null(lab_got(&lab, SUS));
	assert_int_equal(lab.nsent, 1); /* to the third one there */
}

static int tag_of(const struct sent *s)
{
	return net_get16(s->frame.b + 12) == ETH_VLAN ? (int)net_get16(s->frame.b + 14) : -1;
}

/* A card in three networks: its tag says in which a frame is, and nothing but the tag. */
static void test_trunk(void **state)
{
	const struct policy *p = lab.policy;
	struct frame_ends e = lab_ends(p, FW_MAL, SUS, false);
	struct frame f, g;

	assert_memory_equal(p->ports[FW_MAL].mac, p->ports[FW_APP].mac, 6);
	assert_int_equal(p->ports[FW_APP].card, FW_MAL);
	for (unsigned v6 = 0; v6 < 2; v6++) {
		e = lab_ends(p, FW_MAL, SUS, v6);
		frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
		g = f;
		frame_tag(&f, 30);
		assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_PASSED);
		assert_int_equal(lab.nsent, 1);
		assert_int_equal(tag_of(lab_got(&lab, SUS)), -1);
		/* The answer has the tag again; an answer only. */
		e = lab_ends(p, SUS, FW_MAL, v6);
		frame_tcp(&f, &e, 80, 1000, PACKET_SYN | PACKET_ACK);
		assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
		assert_int_equal(tag_of(lab_got(&lab, FW_MAL)), 30);
		/* The same frame by another tag is spoofed: the address is the other network's. */
		static const int others[] = { 20, 31 };
		for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
			f = g;
			frame_tag(&f, (uint16_t)others[i]);
			assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_SPOOFED_IP);
		}
		/* Tags of nobody, none, two of which either would be right, and a provider's. */
		static const int none[] = { 0, 1, 10, 29, 4095 };
		for (unsigned i = 0; i < ARRAY_SIZE(none); i++) {
			f = g;
			frame_tag(&f, (uint16_t)none[i]);
			assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_VLAN);
		}
		assert_int_equal(lab_send(&lab, FW_MAL, &g), FABRIC_VLAN);
		f = g;
		frame_tag(&f, 31);
		frame_tag(&f, 30);
		assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_VLAN);
		f = g;
		frame_tag(&f, 30);
		f.b[12] = 0x88;
		f.b[13] = 0xa8;
		assert_true(lab_send(&lab, FW_MAL, &f) != FABRIC_PASSED);
		assert_int_equal(lab.nsent, 0);
		/* Nobody's else card takes the trunk's tags. */
		e = lab_ends(p, EVIL, FW_MAL, v6);
		frame_tcp(&f, &e, 1, 80, PACKET_SYN);
		frame_tag(&f, 30);
		assert_int_equal(lab_send(&lab, EVIL, &f), FABRIC_VLAN);
	}
	/* Priority in the tag says nothing of the network. */
	e = lab_ends(p, FW_TAG, OLD, false);
	frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
	frame_tag(&f, 0xe000 | 20);
	assert_int_equal(lab_send(&lab, FW_TAG, &f), FABRIC_PASSED);
	assert_int_equal(tag_of(lab_got(&lab, OLD)), 20);
	/* Between its own networks it needs a rule as everybody does. */
	e = lab_ends(p, FW_MAL, DB, false);
	frame_tcp(&f, &e, 1000, 5432, PACKET_SYN);
	frame_tag(&f, 30);
	assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_DEFAULT);
	e = lab_ends(p, FW_MAL, FW_APP, false);
	frame_tcp(&f, &e, 1000, 5432, PACKET_SYN);
	frame_tag(&f, 30);
	assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_DEFAULT);
	assert_int_equal(fabric_port_counts(lab.f, FW_APP)->in.frames, 2); /* by VLAN 31 */
	assert_true(fabric_port_counts(lab.f, FW_MAL)->in.frames > 8);
	assert_true(fabric_port_counts(lab.f, FW_TAG)->in.frames > 0);
}

/* The gateway serves each of its networks, in that one's VLAN. */
static void test_trunk_gateway(void **state)
{
	const struct policy_port *q = &lab.policy->ports[FW_APP];
	struct frame_ends e = { .src = q->v4, .dst = lab.policy->networks[APP].gateway_v4 };
	struct frame f;

	frame_dhcp(&f, q->mac, q->mac, 1);
	frame_tag(&f, 31);
	assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_GATEWAY);
	struct packet p = parsed(lab_got(&lab, FW_APP));
	assert_int_equal(p.vlan, 31);
	assert_true(p.is_dhcp && p.dhcp_op == 2);
	assert_int_equal(lab.nsent, 1);
	memcpy(e.src_mac, q->mac, 6);
	memset(e.dst_mac, 0xff, 6);
	frame_arp(&f, &e, 1);
	frame_tag(&f, 31);
	assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_GATEWAY);
	assert_int_equal(tag_of(lab_got(&lab, FW_APP)), 31);
	/* The whole machine is cut off, in all of them. */
	struct policy *c = policy_copy(fabric_policy(lab.f));
	c->machines[M_FW].is_quarantined = true;
	assert_int_equal(fabric_set_policy(lab.f, c), 0);
	lab.policy = c;
	assert_int_equal(lab_send(&lab, FW_MAL, &f), FABRIC_QUARANTINE);
}

/* One port opens as many flows as it likes: another's stay. */
static void test_flood(void **state)
{
	assert_int_equal(send_tcp(WEB_DMZ, DB, false, 1000, 5432, PACKET_SYN), FABRIC_PASSED);
	for (unsigned i = 0; i < 3 * CONNTRACK_PER_OWNER; i++)
		assert_int_equal(send_tcp(OLD, DB, false, (uint16_t)i, (uint16_t)(i / 7), PACKET_SYN),
				 FABRIC_PASSED);
	assert_true(fabric_flows(lab.f, OLD) <= CONNTRACK_PER_OWNER);
	assert_int_equal(send_tcp(DB, WEB_DMZ, false, 5432, 1000, PACKET_SYN | PACKET_ACK), FABRIC_PASSED);
	/* Frames for all have a rate. */
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, false);
	struct frame f;
	unsigned passed = 0;
	memset(e.dst_mac, 255, 6);
	frame_arp(&f, &e, 1);
	for (unsigned i = 0; i < 3 * FABRIC_FLOOD_PER_S; i++)
		passed += lab_send(&lab, SUS, &f) == FABRIC_PASSED;
	assert_int_equal(passed, FABRIC_FLOOD_PER_S);
	lab.now_ms += 100;
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	/* Errors have one, too. */
	unsigned errors = 0;
	for (unsigned i = 0; i < 10 * FABRIC_ERRORS_PER_S; i++) {
		send_tcp(SUS, DB, false, 1, 1, PACKET_SYN);
		errors += lab.nsent;
	}
	assert_int_equal(errors, FABRIC_ERRORS_PER_S);
}

static unsigned flood_for_all(struct lab_fixture *l, unsigned port, unsigned n, bool is_arp)
{
	static const uint8_t all[6] = { 255, 255, 255, 255, 255, 255 };
	const struct policy_port *q = &l->policy->ports[port];
	struct frame_ends e = { .src = q->v4,
				.dst = frame_addr(is_arp ? "10.9.0.99" : "255.255.255.255") };
	unsigned passed = 0;
	struct frame f;

	memcpy(e.src_mac, q->mac, 6);
	memcpy(e.dst_mac, all, 6);
	if (is_arp)
		frame_arp(&f, &e, 1);
	else
		frame_udp(&f, &e, 1000, 1000, "x", 1);
	for (unsigned i = 0; i < n; i++)
		passed += lab_send(l, port, &f) == FABRIC_PASSED;
	return passed;
}

/* A frame for all costs as many decisions and copies as there are who hear it: who sends many of them holds up nobody. */
static void test_flood_in_a_large_network(void **state)
{
	enum { MACHINES = 60, RULES = 4000 };
	struct policy *p = policy_create("large");
	struct net_prefix v4;
	struct error err;
	char name[16], what[16];

	assert_int_equal(net_prefix_parse("10.9.0.0/24", &v4), 0);
	assert_int_equal(policy_add_network(p, "n", &v4, NULL, false, -1, &err), 0);
	for (unsigned i = 0; i < MACHINES; i++) {
		snprintf(name, sizeof(name), "m%u", i);
		assert_int_equal(policy_add_machine(p, name, &err), i);
		assert_int_equal(policy_add_port(p, i, 0, NULL, &err), i);
	}
	for (unsigned i = 0; i < RULES; i++) {
		struct policy_rule r;
		snprintf(what, sizeof(what), "tcp/%u", i + 1);
		assert_int_equal(policy_parse_rule(p, "n.m1 -> n.m2", what, &r, &err), 0);
		r.is_allow = true;
		assert_int_equal(policy_add_rule(p, p->nrules, &r, &err), 0);
	}
	struct lab_fixture l;
	lab_set_up_with(&l, p);
	const unsigned arps = FABRIC_FLOOD_WORK_PER_S / (MACHINES * (FABRIC_COPY_WORK + 2 * RULES)),
		       others = FABRIC_FLOOD_WORK_PER_S / (MACHINES * (FABRIC_COPY_WORK + RULES));
	assert_true(arps < others && others < FABRIC_FLOOD_PER_S);
	assert_int_equal(flood_for_all(&l, 0, 900, true), arps);
	assert_int_equal(flood_for_all(&l, 1, 900, false), others);
	/* Each has its own share, and a second later again. */
	assert_int_equal(flood_for_all(&l, 2, 1, false), 1);
	l.now_ms += 1000;
	assert_int_equal(flood_for_all(&l, 1, 900, false), others);
	lab_tear_down(&l);
}

static void test_expiry(void **state)
{
	assert_int_equal(send_echo(DB, OPS, false, false, 7), FABRIC_PASSED);
	lab.now_ms += 29000;
	assert_int_equal(send_echo(OPS, DB, false, true, 7), FABRIC_PASSED);
	lab.now_ms += 31000;
	assert_int_equal(send_echo(OPS, DB, false, true, 7), FABRIC_DEFAULT);
	/* A connection that ended may begin anew at once. */
	assert_int_equal(send_tcp(WEB_DMZ, DB, false, 1000, 5432, PACKET_SYN), FABRIC_PASSED);
	assert_int_equal(send_tcp(DB, WEB_DMZ, false, 5432, 1000, PACKET_RST | PACKET_ACK), FABRIC_PASSED);
	assert_int_equal(send_tcp(WEB_DMZ, DB, false, 1000, 5432, PACKET_SYN), FABRIC_PASSED);
	lab.now_ms += 11000;
	assert_int_equal(send_tcp(DB, WEB_DMZ, false, 5432, 1000, PACKET_SYN | PACKET_ACK), FABRIC_PASSED);
}

static void test_hints(void **state)
{
	static struct {
		uint8_t room[FABRIC_HEADROOM];
		uint8_t b[70000];
	} big;
	struct frame_ends e = lab_ends(lab.policy, OLD, DB, false);
	struct net_offload off = { .flags = 1,
				   .gso_type = NET_GSO_TCP4,
				   .gso_size = 1400,
				   .hdr_len = 58,
				   .csum_start = 38,
				   .csum_offset = 16 };
	struct frame f;

	frame_tcp(&f, &e, 1000, 5432, PACKET_SYN);
	frame_tag(&f, 20);
	assert_int_equal(lab_send(&lab, OLD, &f), FABRIC_PASSED);
	/* A long segment goes on with its hints, at their new places. */
	f.b[18 + 20 + 13] = PACKET_ACK;
	memcpy(big.b, f.b, f.len);
	net_put16(big.b + 20, 40 + 1900);
	lab.nsent = 0;
	fabric_input(lab.f, OLD, &off, big.b, f.len + 1900);
	const struct sent *s = lab_got(&lab, DB);
	assert_non_null(s);
	assert_int_equal(s->off.csum_start, 34);
	assert_int_equal(s->off.hdr_len, 54);
	assert_int_equal(s->off.gso_size, 1400);
	/* Without hints it is too long. */
	memcpy(big.b, f.b, f.len);
	off = (struct net_offload){ 0 };
	lab.nsent = 0;
	fabric_input(lab.f, OLD, &off, big.b, f.len + 1900);
	assert_int_equal(lab.verdict.reason, FABRIC_HINTS);
	assert_int_equal(lab.nsent, 0);
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_may_spoof),
		T(test_redirects),
		T(test_routed_flow),
		T(test_same_network),
		T(test_echo),
		T(test_gateway),
		T(test_arp),
		T(test_nd),
		T(test_announced),
		T(test_denied_neighbors),
		T(test_dhcp),
		T(test_spoofed),
		T(test_vlan),
		T(test_trunk),
		T(test_trunk_gateway),
		T(test_fragments),
		T(test_fragments_over_extensions),
		T(test_ttl),
		T(test_related_errors),
		T(test_internet),
		T(test_flood),
		T(test_flood_in_a_large_network),
		T(test_expiry),
		T(test_hints),
		T(test_policy_changes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
