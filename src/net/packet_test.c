/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "net/offload.h"
#include "net/testing.h"

static const uint8_t mac_a[6] = { 0x52, 0x54, 0, 1, 2, 3 };

static struct frame_ends ends(bool is_v6)
{
	struct frame_ends e = { .src_mac = { 0x52, 0x54, 0, 1, 2, 3 },
				.dst_mac = { 0x52, 0x54, 0, 4, 5, 6 } };

	e.src = frame_addr(is_v6 ? "fd00::1" : "10.1.0.10");
	e.dst = frame_addr(is_v6 ? "fd00::2" : "10.1.0.11");
	return e;
}

static enum packet_error parse(struct packet *p, struct frame *f)
{
	return packet_parse(p, f->b, f->len);
}

static void test_addresses(void **state)
{
	struct net_prefix p, q;
	char text[NET_ADDR_TEXT];
	struct net_addr a = frame_addr("10.1.0.77");

	assert_int_equal(net_prefix_parse("10.1.0.0/24", &p), 0);
	assert_true(net_prefix_has(&p, &a));
	a = frame_addr("10.1.1.0");
	assert_false(net_prefix_has(&p, &a));
	assert_string_equal(net_prefix_format(&p, text), "10.1.0.0/24");
	assert_int_equal(net_prefix_parse("10.1.0.1/24", &q), -ERANGE);
	assert_int_equal(net_prefix_parse("10.1.0.0/33", &q), -EINVAL);
	assert_int_equal(net_prefix_parse("10.1.0.0", &q), -EINVAL);
	assert_int_equal(net_prefix_parse("10.1.0.0/", &q), -EINVAL);
	assert_int_equal(net_prefix_parse("10.0.0.0/8", &q), 0);
	assert_true(net_prefix_overlaps(&p, &q) && net_prefix_overlaps(&q, &p));
	assert_int_equal(net_prefix_parse("fd00:1::/64", &q), 0);
	assert_false(net_prefix_overlaps(&p, &q));
	assert_string_equal(net_prefix_format(&q, text), "fd00:1::/64");
	a = net_prefix_eui64(&q, mac_a);
	assert_string_equal(net_addr_format(&a, text), "fd00:1::5054:ff:fe01:203");
	a = net_prefix_host(&p, 10);
	assert_string_equal(net_addr_format(&a, text), "10.1.0.10");
	a = frame_addr("255.255.255.255");
	assert_true(net_addr_is_multicast(&a));
	a = frame_addr("0.0.0.0");
	assert_true(net_addr_is_any(&a) && net_addr_is_v4(&a));
	a = frame_addr("::");
	assert_true(net_addr_is_any(&a) && !net_addr_is_v4(&a));
	a = frame_addr("febf::1");
	assert_true(net_addr_is_link_local(&a));
}

static void test_layers(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		struct frame_ends e = ends(v6);
		struct frame f;
		struct packet p;

		frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
		assert_int_equal(parse(&p, &f), PACKET_FINE);
		assert_int_equal(p.kind, v6 ? PACKET_IPV6 : PACKET_IPV4);
		assert_true(net_addr_is_equal(&p.src, &e.src) && net_addr_is_equal(&p.dst, &e.dst));
		assert_true(p.has_l4 && p.proto == IP_TCP && p.sport == 1000 && p.dport == 80);
		assert_int_equal(p.tcp_flags, PACKET_SYN);
		assert_int_equal(p.payload, f.len);
		frame_udp(&f, &e, 1000, 53, "abc", 3);
		assert_int_equal(parse(&p, &f), PACKET_FINE);
		assert_true(p.has_l4 && p.proto == IP_UDP && p.dport == 53);
		frame_echo(&f, &e, false, 77);
		assert_int_equal(parse(&p, &f), PACKET_FINE);
		assert_true(p.has_l4 && p.icmp_id == 77);
		frame_tag(&f, 20);
		assert_int_equal(parse(&p, &f), PACKET_FINE);
		assert_true(p.vlan == 20 && p.icmp_id == 77 && p.l3 == 18);
		frame_tag(&f, 10); /* a second tag is no IP */
		assert_int_equal(parse(&p, &f), PACKET_FINE);
		assert_int_equal(p.kind, PACKET_OTHER);
	}
}

/* A frame that is cut anywhere is an error or understood without what was cut: never a step outside. */
static void test_every_length(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		struct frame_ends e = ends(v6);
		struct frame f;
		struct packet p;

		frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
		for (size_t len = 0; len < f.len; len++) {
			uint8_t *copy = malloc(len + !len);
			memcpy(copy, f.b, len);
			assert_int_not_equal(packet_parse(&p, copy, len), PACKET_FINE);
			free(copy);
		}
	}
}

static void test_ipv4_headers(void **state)
{
	struct frame_ends e = ends(false);
	struct frame f;
	struct packet p;

	frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
	f.b[14] = 0x44; /* header of 16 bytes */
	assert_int_equal(parse(&p, &f), PACKET_BAD_HEADER);
	f.b[14] = 0x65;
	assert_int_equal(parse(&p, &f), PACKET_BAD_HEADER);
	frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
	net_put16(f.b + 16, 41); /* one byte more than there is */
	assert_int_equal(parse(&p, &f), PACKET_SHORT);
	net_put16(f.b + 16, 39); /* the last byte is Ethernet's padding: no TCP header is left */
	assert_int_equal(parse(&p, &f), PACKET_SHORT);
	/* A loose source route before 20 bytes of TCP. */
	frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
	memmove(f.b + 42, f.b + 34, 20);
	memcpy(f.b + 34, "\x83\x07\x04\x0a\x00\x00\x01\x00", 8);
	f.b[14] = 0x47;
	net_put16(f.b + 16, 48);
	f.len += 8;
	assert_int_equal(parse(&p, &f), PACKET_BAD_HEADER);
	f.b[34] = 0x94; /* router alert in its place */
	f.b[35] = 4;
	f.b[38] = 0;
	assert_int_equal(parse(&p, &f), PACKET_FINE);
	assert_true(p.has_options && p.dport == 80);
}

static void test_fragments(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		struct frame_ends e = ends(v6);
		struct frame f;
		struct packet p;
		uint8_t payload[64] = { 0 };

		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 0, 16, true, 5);
		assert_int_equal(parse(&p, &f), PACKET_FINE);
		assert_true(p.is_fragment && p.has_more && p.has_l4 && p.dport == 53 && p.frag_id == 5);
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 16, 56, false, 5);
		assert_int_equal(parse(&p, &f), PACKET_FINE);
		assert_true(p.is_fragment && !p.has_more && !p.has_l4 && p.frag_offset == 16);
		assert_int_equal(p.proto, IP_UDP);
		/* The header does not fit into the first one. */
		frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
		frame_fragment(&f, 0, 8, true, 5);
		assert_int_equal(parse(&p, &f), PACKET_BAD_FRAGMENT);
		/* All but the last are multiples of 8. */
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 16, 9, true, 5);
		assert_int_equal(parse(&p, &f), PACKET_BAD_FRAGMENT);
		/* Beyond the longest packet: the ping of death. */
		frame_udp(&f, &e, 1000, 53, payload, sizeof(payload));
		frame_fragment(&f, 0, 64, true, 5);
		net_put16(f.b + (v6 ? 56 : 20), v6 ? 65528 : 8191);
		assert_int_equal(parse(&p, &f), PACKET_BAD_FRAGMENT);
	}
}

static void test_ipv6_extensions(void **state)
{
	struct frame_ends e = ends(true);
	uint8_t chain[160] = { 0 };
	struct frame f;
	struct packet p;

	/* Destination options eight times, then UDP. */
	for (unsigned n = 7; n <= 9; n++) {
		memset(chain, 0, sizeof(chain));
		for (unsigned i = 0; i < n; i++)
			chain[i * 8] = i == n - 1 ? IP_UDP : 60;
		net_put16(chain + n * 8 + 2, 53);
		net_put16(chain + n * 8 + 4, 8);
		frame_ip(&f, &e, 60, chain, n * 8 + 8);
		assert_int_equal(parse(&p, &f), n > 8 ? PACKET_TOO_DEEP : PACKET_FINE);
		if (n <= 8)
			assert_int_equal(p.dport, 53);
	}
	/* A routing header with segments left. */
	memset(chain, 0, sizeof(chain));
	chain[0] = IP_UDP;
	chain[3] = 1;
	net_put16(chain + 12, 8);
	frame_ip(&f, &e, 43, chain, 16);
	assert_int_equal(parse(&p, &f), PACKET_TOO_DEEP);
	/* Hop-by-hop behind another. */
	chain[0] = 0;
	chain[3] = 0;
	frame_ip(&f, &e, 60, chain, 16);
	assert_int_equal(parse(&p, &f), PACKET_TOO_DEEP);
	/* ICMP of the other version. */
	frame_ip(&f, &e, IP_ICMP, chain, 16);
	assert_int_equal(parse(&p, &f), PACKET_BAD_HEADER);
	/* IPv4's addresses in IPv6. */
	e.src = frame_addr("10.0.0.1");
	frame_udp(&f, &e, 1, 2, "", 0);
	memcpy(f.b, e.dst_mac, 6);
	struct frame_ends v6 = ends(true);
	frame_udp(&f, &v6, 1, 2, "", 0);
	memcpy(f.b + 22, e.src.b, 16);
	assert_int_equal(parse(&p, &f), PACKET_BAD_HEADER);
}

static void test_arp_nd_dhcp(void **state)
{
	struct frame_ends e = ends(false);
	struct frame f;
	struct packet p;

	frame_arp(&f, &e, 2);
	assert_int_equal(parse(&p, &f), PACKET_FINE);
	assert_true(p.kind == PACKET_ARP && p.arp_op == 2 && net_addr_is_equal(&p.src, &e.src));
	assert_memory_equal(p.arp_sha, mac_a, 6);
	f.b[ETH_HEADER + 4] = 8;
	assert_int_equal(parse(&p, &f), PACKET_BAD_HEADER);

	e = ends(true);
	struct net_addr target = frame_addr("fd00::9");
	frame_nd(&f, &e, ICMP6_NS, &target, mac_a);
	assert_int_equal(parse(&p, &f), PACKET_FINE);
	assert_true(net_addr_is_equal(&p.nd_target, &target) && p.has_nd_lladdr);
	f.b[ETH_HEADER + 7] = 64; /* it came over a router */
	assert_int_equal(parse(&p, &f), PACKET_BAD_HEADER);
	f.b[ETH_HEADER + 7] = 255;
	f.b[ETH_HEADER + 40 + 25] = 0; /* an option without length */
	assert_int_equal(parse(&p, &f), PACKET_SHORT);
	for (unsigned more = 0; more < 2; more++) {
		frame_nd(&f, &e, ICMP6_NS, &target, mac_a);
		frame_fragment(&f, 0, 32, more, 1);
		assert_int_equal(parse(&p, &f), PACKET_BAD_FRAGMENT);
	}

	frame_dhcp(&f, mac_a, mac_a, 1);
	assert_int_equal(parse(&p, &f), PACKET_FINE);
	assert_true(p.is_dhcp && p.dhcp_op == 1 && p.dhcp_type == 1);
	assert_memory_equal(p.dhcp_chaddr, mac_a, 6);
}

static void test_hints(void **state)
{
	struct frame_ends e = ends(false);
	struct frame f;
	struct packet p;
	struct net_offload off = { .flags = 1, .csum_start = 34, .csum_offset = 16 };

	frame_tcp(&f, &e, 1000, 80, PACKET_ACK);
	parse(&p, &f);
	assert_true(packet_check_offload(&p, &off));
	off.csum_offset = 17; /* over the urgent pointer */
	assert_false(packet_check_offload(&p, &off));
	off = (struct net_offload){ .flags = 1,
				    .gso_type = NET_GSO_TCP4,
				    .gso_size = 1460,
				    .csum_start = 34,
				    .csum_offset = 16,
				    .hdr_len = 9999 };
	assert_true(packet_check_offload(&p, &off));
	assert_int_equal(off.hdr_len, 54);
	off.gso_size = 1461;
	assert_false(packet_check_offload(&p, &off));
	off.gso_size = 4;
	assert_false(packet_check_offload(&p, &off));
	off.gso_size = 1460;
	off.gso_type = NET_GSO_TCP6;
	assert_false(packet_check_offload(&p, &off));
	off.gso_type = NET_GSO_UDP;
	assert_false(packet_check_offload(&p, &off));
}

static void test_quoted(void **state)
{
	struct frame_ends e = ends(false), back = { .src = e.dst, .dst = e.src };
	uint8_t icmp[8 + 28] = { ICMP_UNREACHABLE, 3 };
	struct frame f;
	struct packet p, q;

	frame_udp(&f, &e, 1000, 53, "", 0);
	memcpy(icmp + 8, f.b + ETH_HEADER, 28);
	frame_ip(&f, &back, IP_ICMP, icmp, sizeof(icmp));
	assert_int_equal(parse(&p, &f), PACKET_FINE);
	assert_true(packet_quoted(&p, &q));
	assert_true(q.proto == IP_UDP && q.sport == 1000 && q.dport == 53 &&
		    net_addr_is_equal(&q.src, &e.src));
	frame_ip(&f, &back, IP_ICMP, icmp, sizeof(icmp) - 1);
	assert_int_equal(parse(&p, &f), PACKET_FINE);
	assert_false(packet_quoted(&p, &q));
	icmp[0] = ICMP_ECHO;
	frame_ip(&f, &back, IP_ICMP, icmp, sizeof(icmp));
	parse(&p, &f);
	assert_false(packet_quoted(&p, &q));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_addresses),    cmocka_unit_test(test_layers),
		cmocka_unit_test(test_every_length), cmocka_unit_test(test_ipv4_headers),
		cmocka_unit_test(test_fragments),    cmocka_unit_test(test_ipv6_extensions),
		cmocka_unit_test(test_arp_nd_dhcp),  cmocka_unit_test(test_hints),
		cmocka_unit_test(test_quoted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
