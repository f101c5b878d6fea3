/* SPDX-License-Identifier: Apache-2.0 */
#include "net/offload.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

enum {
	ETH_HEADER = 14,
	TYPE_IPV4 = 0x0800,
	TYPE_IPV6 = 0x86dd,
	TYPE_VLAN = 0x8100,
	TYPE_QINQ = 0x88a8,
	PROTO_TCP = 6,
	IPV4_MIN = 20,
	IPV6_HEADER = 40,
	TCP_MIN = 20,
	HEADERS_MAX = 512, /* of all layers together */
};
enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80 };

/* ---- bytes ---- */

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static void put16(uint8_t *p, uint16_t v)
{
	p[0] = v >> 8;
	p[1] = v;
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v);
}

uint64_t net_checksum(const void *data, size_t len, uint64_t sum)
{
	const uint8_t *p = data;
	uint64_t w = 0;

	/* One's complement sums don't care how the words are grouped. */
	for (; len >= 4; p += 4, len -= 4) {
		uint32_t v;
		memcpy(&v, p, 4);
		sum += v;
	}
	memcpy(&w, p, len);
	return sum + w;
}

uint16_t net_checksum_fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* ---- parsing ---- */

/* Where the network layer starts, and its type; -EINVAL. */
static int parse_ethernet(const uint8_t *frame, size_t len, uint16_t *type)
{
	size_t at = ETH_HEADER;

	if (len < at)
		return -EINVAL;
	*type = get16(frame + 12);
	for (unsigned tags = 0; tags < 2 && (*type == TYPE_VLAN || *type == TYPE_QINQ); tags++) {
		if (len < at + 4)
			return -EINVAL;
		*type = get16(frame + at + 2);
		at += 4;
	}
	return (int)at;
}

/* Where TCP starts behind an IPv6 header and its options; -EINVAL. */
static int parse_ipv6(const uint8_t *frame, size_t len, size_t at)
{
	if (len < at + IPV6_HEADER || frame[at] >> 4 != 6)
		return -EINVAL;
	uint8_t next = frame[at + 6];
	at += IPV6_HEADER;
	for (unsigned n = 0; n < 8 && next != PROTO_TCP; n++) {
		/* hop-by-hop, routing, destination options (RFC 8200) */
		if ((next != 0 && next != 43 && next != 60) || len < at + 8)
			return -EINVAL;
		next = frame[at];
		at += (size_t)(frame[at + 1] + 1) * 8;
	}
	return next == PROTO_TCP && at < HEADERS_MAX ? (int)at : -EINVAL;
}

static int parse_ipv4(const uint8_t *frame, size_t len, size_t at)
{
	if (len < at + IPV4_MIN || frame[at] >> 4 != 4)
		return -EINVAL;
	size_t ihl = (frame[at] & 15) * 4u;
	/* no fragments */
	if (ihl < IPV4_MIN || frame[at + 9] != PROTO_TCP || get16(frame + at + 6) & 0x3fff)
		return -EINVAL;
	return (int)(at + ihl);
}

/* A TCP frame of the kind that @off announces. */
static int parse_tcp(const struct net_offload *off, const uint8_t *frame, size_t len,
		     struct net_packet *pkt)
{
	uint16_t type;
	int l3 = parse_ethernet(frame, len, &type);

	if (l3 < 0)
		return l3;
	pkt->is_ipv6 = (off->gso_type & ~NET_GSO_ECN) == NET_GSO_TCP6;
	if (type != (pkt->is_ipv6 ? TYPE_IPV6 : TYPE_IPV4))
		return -EINVAL;
	int l4 = pkt->is_ipv6 ? parse_ipv6(frame, len, l3) : parse_ipv4(frame, len, l3);
	if (l4 < 0 || len < (size_t)l4 + TCP_MIN)
		return -EINVAL;
	size_t payload = l4 + (frame[l4 + 12] >> 4) * 4u;
	if (payload < (size_t)l4 + TCP_MIN || payload > len || payload > HEADERS_MAX || len - l3 > UINT16_MAX)
		return -EINVAL;
	pkt->l3 = l3;
	pkt->l4 = l4;
	pkt->payload = payload;
	return 0;
}

static bool is_tcp_gso(const struct net_offload *off)
{
	uint8_t type = off->gso_type & ~NET_GSO_ECN;

	return type == NET_GSO_TCP4 || type == NET_GSO_TCP6;
}

/* ---- filling in ---- */

/* Lengths and checksums of a TCP packet of @len bytes. */
static void finish_tcp(uint8_t *frame, size_t len, const struct net_packet *pkt)
{
	uint8_t *ip = frame + pkt->l3, *tcp = frame + pkt->l4;
	uint16_t l4_len = len - pkt->l4, sum;
	uint64_t pseudo;

	if (pkt->is_ipv6) {
		put16(ip + 4, len - pkt->l3 - IPV6_HEADER);
		pseudo = net_checksum(ip + 8, 32, 0);
	} else {
		put16(ip + 2, len - pkt->l3);
		put16(ip + 10, 0);
		sum = net_checksum_fold(net_checksum(ip, pkt->l4 - pkt->l3, 0));
		memcpy(ip + 10, &sum, 2);
		pseudo = net_checksum(ip + 12, 8, 0);
	}
	pseudo += htons(l4_len) + (uint64_t)htons(PROTO_TCP);
	put16(tcp + 16, 0);
	sum = net_checksum_fold(net_checksum(tcp, l4_len, pseudo));
	memcpy(tcp + 16, &sum, 2);
}

/* The field holds the pseudo header's sum; what comes in is summed from csum_start (5.1.6.2). */
static int fill_plain(const struct net_offload *off, uint8_t *frame, size_t len)
{
	size_t start = off->csum_start, field = start + off->csum_offset;

	if (start >= len || field + 2 > len)
		return -EINVAL;
	uint16_t sum = net_checksum_fold(net_checksum(frame + start, len - start, 0));
	if (!sum)
		sum = 0xffff; /* 0 says "none" in UDP, and is the same number elsewhere */
	memcpy(frame + field, &sum, 2);
	return 0;
}

int offload_checksum(const struct net_offload *off, uint8_t *frame, size_t len)
{
	struct net_packet pkt;

	if (off->gso_type == NET_GSO_NONE)
		return off->flags & NET_OFF_NEEDS_CSUM ? fill_plain(off, frame, len) : 0;
	if (!is_tcp_gso(off) || parse_tcp(off, frame, len, &pkt) < 0)
		return -EINVAL;
	finish_tcp(frame, len, &pkt);
	return 0;
}

int offload_segment(const struct net_offload *off, uint8_t *frame, size_t len,
		    int (*emit)(void *arg, const uint8_t *frame, size_t len), void *arg)
{
	struct net_packet pkt;
	uint8_t headers[HEADERS_MAX];

	if (off->gso_type == NET_GSO_NONE) {
		int r = offload_checksum(off, frame, len);
		return r < 0 ? r : emit(arg, frame, len);
	}
	if (!is_tcp_gso(off) || off->gso_size < NET_GSO_SIZE_MIN || parse_tcp(off, frame, len, &pkt) < 0)
		return -EINVAL;

	size_t mss = off->gso_size, at = pkt.payload;
	uint32_t seq = get32(frame + pkt.l4 + 4);
	uint16_t id = get16(frame + pkt.l3 + 4);
	uint8_t flags = frame[pkt.l4 + 13];
	memcpy(headers, frame, pkt.payload);
	for (unsigned i = 0;; i++) {
		size_t part = MIN(mss, len - at);
		bool is_last = at + part == len;
		/* In place: the headers go over the end of the segment before, which is gone. */
		uint8_t *out = frame + at - pkt.payload;
		memcpy(out, headers, pkt.payload);
		put32(out + pkt.l4 + 4, seq + (uint32_t)(at - pkt.payload));
		if (!pkt.is_ipv6)
			put16(out + pkt.l3 + 4, id + i);
		out[pkt.l4 + 13] = flags & ~((is_last ? 0 : TCP_FIN | TCP_PSH) | (i ? TCP_CWR : 0));
		finish_tcp(out, pkt.payload + part, &pkt);
		int r = emit(arg, out, pkt.payload + part);
		if (r < 0 || is_last)
			return r;
		at += part;
	}
}
