/* SPDX-License-Identifier: Apache-2.0 */
#include "net/tcp_wire.h"

#include <arpa/inet.h>
#include <string.h>

#include "net/offload.h"

enum {
	ETH_HEADER = 14,
	TYPE_IPV4 = 0x0800,
	IP_HEADER = 20,
	TCP_HEADER = 20,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	IP_DONT_FRAGMENT = 0x4000,
	IP_FRAGMENT = 0x3fff, /* more to come, or an offset */
	TTL = 64,
	ICMP_UNREACHABLE = 3,
};
enum { OPT_END = 0, OPT_NOP = 1, OPT_MSS = 2, OPT_WSCALE = 3 };

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v & 0xffff);
}

static void parse_options(const uint8_t *p, const uint8_t *end, struct tcp_segment *out)
{
	while (p < end && *p != OPT_END) {
		if (*p == OPT_NOP) {
			p++;
			continue;
		}
		if (end - p < 2 || p[1] < 2 || p[1] > end - p)
			return;
		if (*p == OPT_MSS && p[1] == 4)
			out->mss = get16(p + 2);
		if (*p == OPT_WSCALE && p[1] == 3)
			out->wscale = MIN(p[2], TCP_WSCALE_MAX);
		p += p[1];
	}
}

bool tcp_parse(const uint8_t *frame, size_t len, struct tcp_segment *out)
{
	const uint8_t *ip = frame + ETH_HEADER;

	if (len < ETH_HEADER + IP_HEADER + TCP_HEADER || get16(frame + 12) != TYPE_IPV4)
		return false;
	size_t ihl = (ip[0] & 15) * 4u, total = get16(ip + 2);
	if (ip[0] >> 4 != 4 || ihl < IP_HEADER || ip[9] != PROTO_TCP ||
	    get16(ip + 6) & IP_FRAGMENT || total > len - ETH_HEADER || total < ihl + TCP_HEADER)
		return false;
	const uint8_t *tcp = ip + ihl;
	size_t thl = (tcp[12] >> 4) * 4u;
	if (thl < TCP_HEADER || thl > total - ihl)
		return false;
	*out = (struct tcp_segment){
		.ends.src_port = get16(tcp),
		.ends.dst_port = get16(tcp + 2),
		.seq = get32(tcp + 4),
		.ack = get32(tcp + 8),
		.flags = tcp[13],
		.window = get16(tcp + 14),
		.wscale = -1,
		.payload = tcp + thl,
		.len = total - ihl - thl,
	};
	memcpy(out->ends.dst_mac, frame, 6);
	memcpy(out->ends.src_mac, frame + 6, 6);
	memcpy(&out->ends.src_ip, ip + 12, 4);
	memcpy(&out->ends.dst_ip, ip + 16, 4);
	if (out->flags & TCP_SYN)
		parse_options(tcp + TCP_HEADER, tcp + thl, out);
	return true;
}

struct tcp_ends tcp_reverse(const struct tcp_ends *e)
{
	struct tcp_ends r = {
		.src_ip = e->dst_ip, .dst_ip = e->src_ip, .src_port = e->dst_port, .dst_port = e->src_port
	};

	memcpy(r.src_mac, e->dst_mac, 6);
	memcpy(r.dst_mac, e->src_mac, 6);
	return r;
}

/* Ethernet and IPv4 before @len bytes of @proto. */
static void build_ip(uint8_t *frame, const struct tcp_ends *e, uint8_t proto, size_t len)
{
	uint8_t *ip = frame + ETH_HEADER;

	memcpy(frame, e->dst_mac, 6);
	memcpy(frame + 6, e->src_mac, 6);
	put16(frame + 12, TYPE_IPV4);
	memset(ip, 0, IP_HEADER);
	ip[0] = 0x45;
	put16(ip + 2, (unsigned)(IP_HEADER + len));
	put16(ip + 6, IP_DONT_FRAGMENT);
	ip[8] = TTL;
	ip[9] = proto;
	memcpy(ip + 12, &e->src_ip, 4);
	memcpy(ip + 16, &e->dst_ip, 4);
	uint16_t sum = net_checksum_fold(net_checksum(ip, IP_HEADER, 0));
	memcpy(ip + 10, &sum, 2);
}

/* The header without options. */
static void build_tcp(uint8_t *tcp, const struct tcp_segment *s, size_t header_len)
{
	put16(tcp, s->ends.src_port);
	put16(tcp + 2, s->ends.dst_port);
	put32(tcp + 4, s->seq);
	put32(tcp + 8, s->ack);
	tcp[12] = (uint8_t)(header_len / 4 << 4);
	tcp[13] = s->flags;
	put16(tcp + 14, s->window);
	put32(tcp + 16, 0);
}

size_t tcp_build(const struct tcp_segment *s, unsigned mss, uint8_t headers[TCP_HEADERS_MAX],
		 struct net_offload *off)
{
	uint8_t *tcp = headers + ETH_HEADER + IP_HEADER, *opt = tcp + TCP_HEADER;

	if (s->flags & TCP_SYN && s->mss) {
		opt[0] = OPT_MSS;
		opt[1] = 4;
		put16(opt + 2, s->mss);
		opt += 4;
	}
	if (s->flags & TCP_SYN && s->wscale >= 0) {
		opt[0] = OPT_WSCALE;
		opt[1] = 3;
		opt[2] = (uint8_t)s->wscale;
		opt[3] = OPT_END;
		opt += 4;
	}
	size_t thl = (size_t)(opt - tcp), head = ETH_HEADER + IP_HEADER + thl;

	build_ip(headers, &s->ends, PROTO_TCP, thl + s->len);
	build_tcp(tcp, s, thl);
	/* The pseudo header's sum: who needs the whole one sums the rest (virtio 1.2, 5.1.6.2). */
	uint64_t sum = net_checksum(headers + ETH_HEADER + 12, 8, 0) + htons(PROTO_TCP) +
		       (uint64_t)htons((uint16_t)(thl + s->len));
	uint16_t partial = (uint16_t)~net_checksum_fold(sum);
	memcpy(tcp + 16, &partial, 2);
	*off = (struct net_offload){
		.flags = NET_OFF_NEEDS_CSUM,
		.csum_start = ETH_HEADER + IP_HEADER,
		.csum_offset = 16,
	};
	if (s->len > mss) {
		off->gso_type = NET_GSO_TCP4;
		off->gso_size = (uint16_t)mss;
		off->hdr_len = (uint16_t)head;
	}
	return head;
}

void tcp_build_unreachable(const struct tcp_segment *s, uint8_t code, uint8_t frame[ICMP_FRAME_LEN])
{
	struct tcp_ends back = tcp_reverse(&s->ends);
	uint8_t copy[ETH_HEADER + IP_HEADER], tcp[TCP_HEADER], *icmp = frame + ETH_HEADER + IP_HEADER;
	enum { QUOTED = 8, ICMP_LEN = 8 + IP_HEADER + QUOTED };

	build_ip(frame, &back, PROTO_ICMP, ICMP_LEN);
	memset(icmp, 0, 8);
	icmp[0] = ICMP_UNREACHABLE;
	icmp[1] = code;
	build_ip(copy, &s->ends, PROTO_TCP, TCP_HEADER + s->len);
	memcpy(icmp + 8, copy + ETH_HEADER, IP_HEADER);
	build_tcp(tcp, s, TCP_HEADER);
	memcpy(icmp + 8 + IP_HEADER, tcp, QUOTED);
	uint16_t sum = net_checksum_fold(net_checksum(icmp, ICMP_LEN, 0));
	memcpy(icmp + 2, &sum, 2);
}
