/* SPDX-License-Identifier: Apache-2.0 */
#include "net/testing.h"

#include <arpa/inet.h>
#include <assert.h>

#include "net/offload.h"

struct net_addr frame_addr(const char *text)
{
	struct net_addr a;

	if (net_addr_parse(text, &a) < 0)
		abort();
	return a;
}

void frame_ip(struct frame *f, const struct frame_ends *e, uint8_t proto, const void *payload, size_t len)
{
	size_t at = packet_put_eth(f->b, e->dst_mac, e->src_mac,
				   net_addr_is_v4(&e->src) ? ETH_IPV4 : ETH_IPV6);

	at += packet_put_ip(f->b + at, &e->src, &e->dst, proto, 64, len);
	memcpy(f->b + at, payload, len);
	f->len = at + len;
}

void frame_tcp(struct frame *f, const struct frame_ends *e, uint16_t sport, uint16_t dport, uint8_t flags)
{
	uint8_t t[20] = { 0 };

	net_put16(t, sport);
	net_put16(t + 2, dport);
	t[12] = 0x50;
	t[13] = flags;
	net_put16(t + 14, 64240);
	packet_put_sum(t, sizeof(t), 16, &e->src, &e->dst, IP_TCP);
	frame_ip(f, e, IP_TCP, t, sizeof(t));
}

void frame_udp(struct frame *f, const struct frame_ends *e, uint16_t sport, uint16_t dport,
	       const void *payload, size_t len)
{
	memcpy(f->b + packet_udp_at(&e->src), payload, len);
	f->len = packet_put_udp(f->b, e->dst_mac, e->src_mac, &e->src, &e->dst, sport, dport, len);
}

void frame_echo(struct frame *f, const struct frame_ends *e, bool is_reply, uint16_t id)
{
	bool is_v4 = net_addr_is_v4(&e->src);
	uint8_t i[16] = { 0 };

	i[0] = is_v4 ? (is_reply ? ICMP_ECHO_REPLY : ICMP_ECHO)
		     : (is_reply ? ICMP6_ECHO_REPLY : ICMP6_ECHO);
	net_put16(i + 4, id);
	packet_put_sum(i, sizeof(i), 2, &e->src, &e->dst, is_v4 ? IP_ICMP : IP_ICMP6);
	frame_ip(f, e, is_v4 ? IP_ICMP : IP_ICMP6, i, sizeof(i));
}

void frame_arp(struct frame *f, const struct frame_ends *e, uint16_t op)
{
	uint8_t *a = f->b + packet_put_eth(f->b, e->dst_mac, e->src_mac, ETH_ARP);

	net_put16(a, 1);
	net_put16(a + 2, ETH_IPV4);
	a[4] = 6;
	a[5] = 4;
	net_put16(a + 6, op);
	memcpy(a + 8, e->src_mac, 6);
	memcpy(a + 14, e->src.b + 12, 4);
	memcpy(a + 18, e->dst_mac, 6);
	memcpy(a + 24, e->dst.b + 12, 4);
	f->len = ETH_HEADER + 28;
}

void frame_nd(struct frame *f, const struct frame_ends *e, uint8_t type,
	      const struct net_addr *target, const uint8_t *lladdr)
{
	uint8_t n[32] = { type };
	size_t len = type == ICMP6_RS ? 8 : 24;

	memcpy(n + 8, target->b, 16);
	if (lladdr) {
		n[len] = type == ICMP6_NA ? 2 : 1;
		n[len + 1] = 1;
		memcpy(n + len + 2, lladdr, 6);
		len += 8;
	}
	packet_put_sum(n, len, 2, &e->src, &e->dst, IP_ICMP6);
	frame_ip(f, e, IP_ICMP6, n, len);
	f->b[ETH_HEADER + 7] = 255;
}

void frame_dhcp(struct frame *f, const uint8_t mac[6], const uint8_t chaddr[6], uint8_t type)
{
	struct frame_ends e = { .dst_mac = { 255, 255, 255, 255, 255, 255 },
				.src = frame_addr("0.0.0.0"),
				.dst = frame_addr("255.255.255.255") };
	uint8_t d[300] = { 1, 1, 6 };

	memcpy(e.src_mac, mac, 6);
	net_put32(d + 4, 0x1234);
	memcpy(d + 28, chaddr, 6);
	net_put32(d + 236, 0x63825363);
	d[240] = 53;
	d[241] = 1;
	d[242] = type;
	d[243] = 255;
	frame_udp(f, &e, 68, 67, d, sizeof(d));
}

void frame_tag(struct frame *f, uint16_t vid)
{
	memmove(f->b + 16, f->b + 12, f->len - 12);
	net_put16(f->b + 12, ETH_VLAN);
	net_put16(f->b + 14, vid);
	f->len += ETH_TAG;
}

void frame_fragment(struct frame *f, size_t from, size_t n, bool has_more, uint32_t id)
{
	uint8_t *ip = f->b + ETH_HEADER, part[2048];

	if (ip[0] >> 4 == 4) {
		memcpy(part, ip + 20 + from, n);
		memcpy(ip + 20, part, n);
		net_put16(ip + 2, (unsigned)(20 + n));
		net_put16(ip + 4, id & 0xffff);
		net_put16(ip + 6, (unsigned)(from / 8) | (has_more ? 0x2000 : 0));
		net_put16(ip + 10, 0);
		uint16_t sum = net_checksum_fold(net_checksum(ip, 20, 0));
		memcpy(ip + 10, &sum, 2);
		f->len = ETH_HEADER + 20 + n;
	} else {
		memcpy(part, ip + 40 + from, n);
		memcpy(ip + 48, part, n);
		ip[40] = ip[6];
		ip[41] = 0;
		ip[6] = 44;
		net_put16(ip + 42, (unsigned)from | has_more);
		net_put32(ip + 44, id);
		net_put16(ip + 4, (unsigned)(8 + n));
		f->len = ETH_HEADER + 48 + n;
	}
}
