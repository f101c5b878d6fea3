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
	HEADERS_MAX = NET_HEADERS_MAX,
};
enum { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_PSH = 0x08, TCP_CWR = 0x80 };
enum { OPT_END = 0, OPT_NOP = 1, OPT_MSS = 2, OPT_MSS_LEN = 4 };
enum { IP_MORE = 0x2000, IP_OFFSET = 0x1fff };

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

static int parse_any_tcp(const uint8_t *frame, size_t len, struct net_packet *pkt)
{
	uint16_t type;
	int l3 = parse_ethernet(frame, len, &type);

	if (l3 < 0 || (type != TYPE_IPV4 && type != TYPE_IPV6))
		return -EINVAL;
	pkt->is_ipv6 = type == TYPE_IPV6;
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

/* A TCP frame of the kind that @off announces. */
static int parse_tcp(const struct net_offload *off, const uint8_t *frame, size_t len,
		     struct net_packet *pkt)
{
	bool is_ipv6 = (off->gso_type & ~NET_GSO_ECN) == NET_GSO_TCP6;

	return parse_any_tcp(frame, len, pkt) < 0 || pkt->is_ipv6 != is_ipv6 ? -EINVAL : 0;
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

/* ---- long segments ---- */

/* The place of the MSS option's value in a TCP header; 0: none. */
static size_t find_mss(const uint8_t *frame, const struct net_packet *pkt)
{
	size_t at = pkt->l4 + TCP_MIN;

	while (at < pkt->payload && frame[at] != OPT_END) {
		if (frame[at] == OPT_NOP) {
			at++;
			continue;
		}
		if (at + 2 > pkt->payload || frame[at + 1] < 2 || frame[at + 1] > pkt->payload - at)
			return 0;
		if (frame[at] == OPT_MSS)
			return frame[at + 1] == OPT_MSS_LEN ? at + 2 : 0;
		at += frame[at + 1];
	}
	return 0;
}

/* RFC 1624, equation 3.  An odd place in the packet swaps the bytes. */
static void update_checksum(uint8_t *field, uint16_t old, uint16_t new, bool is_odd)
{
	if (is_odd) {
		old = (uint16_t)(old << 8 | old >> 8);
		new = (uint16_t)(new << 8 | new >> 8);
	}
	uint32_t sum = (uint16_t)~get16(field) + (uint32_t)(uint16_t)~old + new;

	sum = (sum & 0xffff) + (sum >> 16);
	put16(field, (uint16_t) ~(sum + (sum >> 16)));
}

bool offload_raise_mss(uint8_t *frame, size_t len, uint16_t mss)
{
	struct net_packet pkt;

	if (parse_any_tcp(frame, len, &pkt) < 0 || !(frame[pkt.l4 + 13] & TCP_SYN))
		return false;
	size_t at = find_mss(frame, &pkt);
	uint16_t least = NET_MTU - TCP_MIN - (pkt.is_ipv6 ? IPV6_HEADER : IPV4_MIN);
	if (!at || get16(frame + at) < least || get16(frame + at) >= mss)
		return false;
	update_checksum(frame + pkt.l4 + 16, get16(frame + at), mss, (at - pkt.l4) & 1);
	put16(frame + at, mss);
	return true;
}

int offload_long_tcp(const uint8_t *frame, size_t len, uint8_t headers[NET_HEADERS_MAX],
		     struct net_offload *off)
{
	struct net_packet pkt;

	if (parse_any_tcp(frame, len, &pkt) < 0 || pkt.payload - pkt.l3 > NET_MTU / 2)
		return -EINVAL;
	memcpy(headers, frame, pkt.payload);
	/* The receiver sums the rest itself, if it wants to (5.1.6.2): here is the pseudo header. */
	uint64_t sum = pkt.is_ipv6 ? net_checksum(frame + pkt.l3 + 8, 32, 0)
				   : net_checksum(frame + pkt.l3 + 12, 8, 0);
	uint16_t partial = ~net_checksum_fold(sum + htons(len - pkt.l4) + (uint64_t)htons(PROTO_TCP));
	memcpy(headers + pkt.l4 + 16, &partial, 2);
	*off = (struct net_offload){
		.flags = NET_OFF_NEEDS_CSUM,
		.gso_type = pkt.is_ipv6 ? NET_GSO_TCP6 : NET_GSO_TCP4,
		.hdr_len = pkt.payload,
		.gso_size = NET_MTU - (pkt.payload - pkt.l3),
		.csum_start = pkt.l4,
		.csum_offset = 16,
	};
	return pkt.payload;
}

int offload_fragment(const uint8_t *frame, size_t len,
		     int (*emit)(void *arg, const uint8_t *frame, size_t len), void *arg)
{
	uint8_t out[ETH_HEADER + 8 + NET_MTU];
	uint16_t type;
	int l3 = parse_ethernet(frame, len, &type);

	if (l3 < 0 || type != TYPE_IPV4 || len < (size_t)l3 + IPV4_MIN || frame[l3] >> 4 != 4)
		return -EINVAL;
	size_t ihl = (frame[l3] & 15) * 4u, total = get16(frame + l3 + 2), head = l3 + ihl;
	if (ihl < IPV4_MIN || total < ihl || total > len - l3)
		return -EINVAL;
	uint16_t word = get16(frame + l3 + 6);
	size_t most = (NET_MTU - ihl) & ~(size_t)7, base = (word & IP_OFFSET) * 8u;
	memcpy(out, frame, head);
	for (size_t at = 0; at < total - ihl;) {
		size_t part = MIN(most, total - ihl - at);
		bool is_last = at + part == total - ihl;
		uint16_t offset = (uint16_t)((base + at) / 8);
		memcpy(out + head, frame + head + at, part);
		put16(out + l3 + 2, ihl + part);
		put16(out + l3 + 6, (word & ~(IP_OFFSET | IP_MORE)) | offset |
					    (is_last ? word & IP_MORE : IP_MORE));
		put16(out + l3 + 10, 0);
		uint16_t sum = net_checksum_fold(net_checksum(out + l3, ihl, 0));
		memcpy(out + l3 + 10, &sum, 2);
		int r = emit(arg, out, head + part);
		if (r < 0)
			return r;
		at += part;
	}
	return 0;
}
