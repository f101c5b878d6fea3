/* SPDX-License-Identifier: Apache-2.0 */
#include "net/packet.h"

#include <arpa/inet.h>
#include <string.h>

#include "net/offload.h"

enum { IPV4_MIN = 20, IPV6_MIN = 40, TCP_MIN = 20, UDP_MIN = 8, ICMP_MIN = 8, ARP_LEN = 28 };
enum { EXT_HOP = 0, EXT_ROUTING = 43, EXT_FRAGMENT = 44, EXT_DEST = 60, NO_NEXT = 59 };
enum { IP_MORE = 0x2000, IP_OFFSET = 0x1fff, IP_EVIL = 0x8000 };
enum { IPOPT_END = 0, IPOPT_NOP = 1, IPOPT_LSRR = 131, IPOPT_SSRR = 137 };
enum {
	DHCP_SERVER = 67,
	DHCP_CLIENT = 68,
	DHCP_FIXED = 236,
	DHCP_OPTIONS = 240,
	DHCP_COOKIE = 0x63825363
};

uint8_t *packet_at(const struct packet *p, size_t at, size_t n)
{
	return at <= p->end && n <= p->end - at ? p->data + at : NULL;
}

/* ---- ARP ---- */

static enum packet_error parse_arp(struct packet *p)
{
	p->end = (uint32_t)p->len;
	const uint8_t *a = packet_at(p, p->l3, ARP_LEN);

	if (!a)
		return PACKET_SHORT;
	if (net_get16(a) != 1 || net_get16(a + 2) != ETH_IPV4 || a[4] != 6 || a[5] != 4)
		return PACKET_BAD_HEADER;
	p->arp_op = net_get16(a + 6);
	memcpy(p->arp_sha, a + 8, 6);
	p->src = net_addr_v4(a + 14);
	p->dst = net_addr_v4(a + 24);
	return p->arp_op == 1 || p->arp_op == 2 ? PACKET_FINE : PACKET_BAD_HEADER;
}

/* ---- upper layers ---- */

static void parse_dhcp(struct packet *p)
{
	const uint8_t *d = packet_at(p, p->payload, DHCP_OPTIONS);

	if (!d || d[1] != 1 || d[2] != 6 || net_get32(d + DHCP_FIXED) != DHCP_COOKIE)
		return;
	p->dhcp_op = d[0];
	memcpy(p->dhcp_chaddr, d + 28, 6);
	for (size_t at = p->payload + DHCP_OPTIONS;;) {
		const uint8_t *o = packet_at(p, at, 1);
		if (!o || *o == 255)
			return;
		at++;
		if (*o == 0)
			continue;
		const uint8_t *len = packet_at(p, at, 1);
		if (!len || !packet_at(p, at + 1, *len))
			return;
		if (*o == 53 && *len == 1)
			p->dhcp_type = len[1];
		if (*o == 50 && *len == 4)
			p->dhcp_requested = net_addr_v4(len + 1);
		at += 1u + *len;
	}
}

static enum packet_error parse_udp(struct packet *p)
{
	const uint8_t *u = packet_at(p, p->l4, UDP_MIN);

	if (!u)
		return PACKET_SHORT;
	p->sport = net_get16(u);
	p->dport = net_get16(u + 2);
	p->payload = p->l4 + UDP_MIN;
	/* A first fragment holds less than the whole. */
	size_t udp_len = net_get16(u + 4);
	if (udp_len < UDP_MIN || (!p->is_fragment && udp_len > p->end - p->l4))
		return PACKET_SHORT;
	p->is_dhcp = p->kind == PACKET_IPV4 && (p->dport == DHCP_SERVER || p->dport == DHCP_CLIENT);
	if (p->is_dhcp && !p->is_fragment)
		parse_dhcp(p);
	return p->is_dhcp && p->is_fragment ? PACKET_BAD_FRAGMENT : PACKET_FINE;
}

static enum packet_error parse_tcp(struct packet *p)
{
	const uint8_t *t = packet_at(p, p->l4, TCP_MIN);

	if (!t)
		return PACKET_SHORT;
	size_t header = (t[12] >> 4) * 4u;
	if (header < TCP_MIN || !packet_at(p, p->l4, header))
		return PACKET_SHORT;
	p->sport = net_get16(t);
	p->dport = net_get16(t + 2);
	p->tcp_flags = t[13];
	p->payload = (uint16_t)(p->l4 + header);
	return PACKET_FINE;
}

/* Options of neighbor discovery (RFC 4861, 4.6): each has a length, none is 0. */
static enum packet_error parse_nd_options(struct packet *p, size_t at, uint8_t wanted)
{
	while (at < p->end) {
		const uint8_t *o = packet_at(p, at, 8);
		if (!o || !o[1] || !packet_at(p, at, o[1] * 8u))
			return PACKET_SHORT;
		if (o[0] == wanted) {
			/* Two that differ: who is to be believed? */
			if (o[1] != 1 || (p->has_nd_lladdr && memcmp(p->nd_lladdr, o + 2, 6) != 0))
				return PACKET_BAD_HEADER;
			memcpy(p->nd_lladdr, o + 2, 6);
			p->has_nd_lladdr = true;
		}
		at += o[1] * 8u;
	}
	return PACKET_FINE;
}

static enum packet_error parse_nd(struct packet *p)
{
	const uint8_t *n;

	/* RFC 6980: never in fragments, of one part neither.  RFC 4861, 7.1: hop limit 255, code 0.  Extension headers are
	 * no part of it but for who wants to get past a filter (RFC 7113, 2.1). */
	if (p->has_fragment_header)
		return PACKET_BAD_FRAGMENT;
	if (p->ttl != 255 || p->icmp_code != 0 || p->has_options)
		return PACKET_BAD_HEADER;
	switch (p->icmp_type) {
	case ICMP6_RS:
		return parse_nd_options(p, p->l4 + 8u, 1);
	case ICMP6_NS:
	case ICMP6_NA:
		n = packet_at(p, p->l4, 24);
		if (!n)
			return PACKET_SHORT;
		p->nd_target = net_addr_v6(n + 8);
		return parse_nd_options(p, p->l4 + 24u, p->icmp_type == ICMP6_NS ? 1 : 2);
	}
	return PACKET_FINE;
}

static enum packet_error parse_icmp(struct packet *p)
{
	const uint8_t *i = packet_at(p, p->l4, ICMP_MIN);
	bool is_v6 = p->proto == IP_ICMP6;

	if (!i)
		return PACKET_SHORT;
	p->icmp_type = i[0];
	p->icmp_code = i[1];
	if (is_v6 ? i[0] == ICMP6_ECHO || i[0] == ICMP6_ECHO_REPLY
		  : i[0] == ICMP_ECHO || i[0] == ICMP_ECHO_REPLY)
		p->icmp_id = net_get16(i + 4);
	return is_v6 && i[0] >= ICMP6_RS && i[0] <= ICMP6_REDIRECT ? parse_nd(p) : PACKET_FINE;
}

static enum packet_error parse_l4(struct packet *p)
{
	enum packet_error e = PACKET_FINE;

	/* One version's ICMP in the other is what no receiver understands, and a filter might take for its own. */
	if (p->proto == (p->kind == PACKET_IPV4 ? IP_ICMP6 : IP_ICMP))
		return PACKET_BAD_HEADER;
	if (p->is_fragment && p->frag_offset)
		return PACKET_FINE;
	if (p->proto == IP_TCP)
		e = parse_tcp(p);
	else if (p->proto == IP_UDP)
		e = parse_udp(p);
	else if (p->proto == (p->kind == PACKET_IPV4 ? IP_ICMP : IP_ICMP6))
		e = parse_icmp(p);
	p->has_l4 = e == PACKET_FINE;
	/* RFC 1858, RFC 7112: the first fragment holds the whole header. */
	return e == PACKET_SHORT && p->is_fragment ? PACKET_BAD_FRAGMENT : e;
}

/* A fragment's place: all but the last carry a multiple of 8 bytes, none beyond the longest packet. */
static enum packet_error check_fragment(struct packet *p)
{
	size_t part = p->end - p->frag_at;

	if (!p->has_more && !p->frag_offset)
		p->is_fragment = false; /* RFC 6946: an atomic fragment is none */
	if (!p->is_fragment)
		return PACKET_FINE;
	if (!part || (p->has_more && part % 8) || p->frag_offset + part > UINT16_MAX)
		return PACKET_BAD_FRAGMENT;
	return PACKET_FINE;
}

/* ---- IP ---- */

/* Source routes take a packet where its address does not say (RFC 7126, 4.3 and 4.4). */
static enum packet_error check_ipv4_options(const uint8_t *o, size_t len)
{
	while (len && *o != IPOPT_END) {
		if (*o == IPOPT_NOP) {
			o++;
			len--;
			continue;
		}
		if (*o == IPOPT_LSRR || *o == IPOPT_SSRR || len < 2 || o[1] < 2 || o[1] > len)
			return PACKET_BAD_HEADER;
		len -= o[1];
		o += o[1];
	}
	return PACKET_FINE;
}

static enum packet_error parse_ipv4(struct packet *p)
{
	const uint8_t *ip = p->data + p->l3;

	if (p->len - p->l3 < IPV4_MIN)
		return PACKET_SHORT;
	size_t ihl = (ip[0] & 15) * 4u, total = net_get16(ip + 2);
	if (ip[0] >> 4 != 4 || ihl < IPV4_MIN)
		return PACKET_BAD_HEADER;
	if (total < ihl || total > p->len - p->l3)
		return PACKET_SHORT;
	p->src = net_addr_v4(ip + 12);
	p->dst = net_addr_v4(ip + 16);
	p->ttl = ip[8];
	p->proto = ip[9];
	p->l4 = p->frag_at = (uint16_t)(p->l3 + ihl);
	p->end = (uint32_t)(p->l3 + total);
	p->has_options = ihl > IPV4_MIN;
	uint16_t word = net_get16(ip + 6);
	p->has_more = word & IP_MORE;
	p->frag_offset = (uint16_t)((word & IP_OFFSET) * 8);
	p->frag_id = net_get16(ip + 4);
	p->is_fragment = p->has_more || p->frag_offset;
	enum packet_error e = word & IP_EVIL ? PACKET_BAD_HEADER
					     : check_ipv4_options(ip + IPV4_MIN, ihl - IPV4_MIN);
	if (!e)
		e = check_fragment(p);
	return e ? e : parse_l4(p);
}

/* One extension header at p->l4 of type @next; the type behind it, or -1 with @e. */
static int skip_extension(struct packet *p, uint8_t next, enum packet_error *e)
{
	const uint8_t *x = packet_at(p, p->l4, 8);

	*e = PACKET_SHORT;
	if (!x)
		return -1;
	if (next == EXT_FRAGMENT) {
		*e = PACKET_BAD_FRAGMENT;
		if (p->is_fragment) /* a second one */
			return -1;
		p->is_fragment = p->has_fragment_header = true;
		p->has_more = x[3] & 1;
		p->frag_offset = net_get16(x + 2) & 0xfff8;
		p->frag_id = net_get32(x + 4);
		p->l4 += 8;
		p->frag_at = p->l4;
		return x[0];
	}
	size_t len = (x[1] + 1u) * 8;
	if (!packet_at(p, p->l4, len))
		return -1;
	/* RFC 5095: type 0 is refused; others with segments left would be routed on as well. */
	if (next == EXT_ROUTING && x[3]) {
		*e = PACKET_TOO_DEEP;
		return -1;
	}
	p->has_options = true;
	p->l4 = (uint16_t)(p->l4 + len);
	return x[0];
}

static enum packet_error parse_ipv6(struct packet *p)
{
	const uint8_t *ip = p->data + p->l3;
	enum packet_error e;

	if (p->len - p->l3 < IPV6_MIN)
		return PACKET_SHORT;
	size_t total = IPV6_MIN + net_get16(ip + 4);
	if (ip[0] >> 4 != 6)
		return PACKET_BAD_HEADER;
	if (total > p->len - p->l3)
		return PACKET_SHORT;
	p->src = net_addr_v6(ip + 8);
	p->dst = net_addr_v6(ip + 24);
	/* IPv4 in disguise must not compare equal to the real one. */
	if (net_addr_is_v4(&p->src) || net_addr_is_v4(&p->dst))
		return PACKET_BAD_HEADER;
	p->ttl = ip[7];
	p->l4 = (uint16_t)(p->l3 + IPV6_MIN);
	p->end = (uint32_t)(p->l3 + total);
	int next = ip[6];
	for (unsigned n = 0;
	     next == EXT_HOP || next == EXT_ROUTING || next == EXT_FRAGMENT || next == EXT_DEST; n++) {
		/* Hop-by-hop only directly behind the header (RFC 8200, 4.1). */
		if (n == PACKET_EXTENSIONS_MAX || (next == EXT_HOP && n))
			return PACKET_TOO_DEEP;
		bool is_fragment_header = next == EXT_FRAGMENT;
		next = skip_extension(p, (uint8_t)next, &e);
		if (next < 0)
			return e;
		/* What a later fragment holds is no header. */
		if (is_fragment_header && p->frag_offset)
			break;
	}
	p->proto = (uint8_t)next;
	e = check_fragment(p);
	return e ? e : parse_l4(p);
}

enum packet_error packet_parse(struct packet *out, uint8_t *frame, size_t len)
{
	memset(out, 0, sizeof(*out));
	out->data = frame;
	out->len = len;
	out->vlan = -1;
	if (len < ETH_HEADER || len > NET_FRAME_MAX)
		return PACKET_SHORT;
	memcpy(out->dst_mac, frame, 6);
	memcpy(out->src_mac, frame + 6, 6);
	out->ethertype = net_get16(frame + 12);
	out->l3 = ETH_HEADER;
	out->end = (uint32_t)len;
	if (out->ethertype == ETH_VLAN) {
		if (len < ETH_HEADER + ETH_TAG)
			return PACKET_SHORT;
		out->vlan = net_get16(frame + 14) & 0xfff;
		out->ethertype = net_get16(frame + 16);
		out->l3 += ETH_TAG;
	}
	switch (out->ethertype) {
	case ETH_ARP:
		out->kind = PACKET_ARP;
		return parse_arp(out);
	case ETH_IPV4:
		out->kind = PACKET_IPV4;
		return parse_ipv4(out);
	case ETH_IPV6:
		out->kind = PACKET_IPV6;
		return parse_ipv6(out);
	}
	return PACKET_FINE;
}

/* ---- hints ---- */

/* Where the checksum is in the upper layer; 0: it has none that could be filled in. */
static uint16_t checksum_field(const struct packet *p)
{
	if (!p->has_l4 || p->is_fragment)
		return 0;
	return p->proto == IP_TCP ? 16 : p->proto == IP_UDP ? 6 : 0;
}

bool packet_check_offload(const struct packet *p, struct net_offload *off)
{
	struct net_offload made = { 0 };
	uint16_t field = checksum_field(p);

	if (off->flags & NET_OFF_NEEDS_CSUM || off->gso_type != NET_GSO_NONE) {
		if (!field || (off->flags & NET_OFF_NEEDS_CSUM &&
			       (off->csum_start != p->l4 || off->csum_offset != field)))
			return false;
		made.flags = NET_OFF_NEEDS_CSUM;
		made.csum_start = p->l4;
		made.csum_offset = field;
	}
	if (off->gso_type == NET_GSO_NONE) {
		*off = made;
		return p->len - p->l3 <= NET_MTU;
	}
	uint8_t type = p->kind == PACKET_IPV4 ? NET_GSO_TCP4 : NET_GSO_TCP6;
	if (p->proto != IP_TCP || (off->gso_type & ~NET_GSO_ECN) != type ||
	    off->gso_size < NET_GSO_SIZE_MIN || off->gso_size > NET_MTU - (p->payload - p->l3) ||
	    p->payload - p->l3 > NET_MTU / 2)
		return false;
	made.gso_type = off->gso_type;
	made.gso_size = off->gso_size;
	made.hdr_len = p->payload;
	*off = made;
	return true;
}

static bool is_icmp_error(const struct packet *p)
{
	if (!p->has_l4 || p->is_fragment)
		return false;
	if (p->kind == PACKET_IPV4)
		return p->proto == IP_ICMP &&
		       (p->icmp_type == ICMP_UNREACHABLE || p->icmp_type == ICMP_TIME_EXCEEDED ||
			p->icmp_type == ICMP_PARAMETER);
	return p->proto == IP_ICMP6 && p->icmp_type >= ICMP6_UNREACHABLE &&
	       p->icmp_type <= ICMP6_PARAMETER;
}

bool packet_quoted(const struct packet *p, struct packet *out)
{
	size_t at = p->l4 + 8u, header = p->kind == PACKET_IPV4 ? IPV4_MIN : IPV6_MIN;
	const uint8_t *ip = is_icmp_error(p) ? packet_at(p, at, header + 8) : NULL;

	if (!ip)
		return false;
	memset(out, 0, sizeof(*out));
	out->kind = p->kind;
	if (p->kind == PACKET_IPV4) {
		/* No options, no later fragments: nothing that we let through is quoted with them. */
		if (ip[0] != 0x45 || net_get16(ip + 6) & IP_OFFSET)
			return false;
		out->src = net_addr_v4(ip + 12);
		out->dst = net_addr_v4(ip + 16);
		out->proto = ip[9];
	} else {
		if (ip[0] >> 4 != 6)
			return false;
		out->src = net_addr_v6(ip + 8);
		out->dst = net_addr_v6(ip + 24);
		out->proto = ip[6];
	}
	const uint8_t *l4 = ip + header;
	out->sport = net_get16(l4);
	out->dport = net_get16(l4 + 2);
	out->icmp_type = l4[0];
	out->icmp_id = net_get16(l4 + 4);
	return out->proto == IP_TCP || out->proto == IP_UDP || out->proto == IP_ICMP ||
	       out->proto == IP_ICMP6;
}

/* ---- making frames ---- */

size_t packet_put_eth(uint8_t *frame, const uint8_t dst[6], const uint8_t src[6], uint16_t ethertype)
{
	memcpy(frame, dst, 6);
	memcpy(frame + 6, src, 6);
	net_put16(frame + 12, ethertype);
	return ETH_HEADER;
}

size_t packet_put_arp_reply(uint8_t *frame, const struct packet *request, const uint8_t mac[6])
{
	uint8_t *a = frame + packet_put_eth(frame, request->arp_sha, mac, ETH_ARP);

	net_put16(a, 1);
	net_put16(a + 2, ETH_IPV4);
	a[4] = 6;
	a[5] = 4;
	net_put16(a + 6, 2);
	memcpy(a + 8, mac, 6);
	memcpy(a + 14, request->dst.b + 12, 4);
	memcpy(a + 18, request->arp_sha, 6);
	memcpy(a + 24, request->src.b + 12, 4);
	return ETH_HEADER + 28;
}

size_t packet_put_ip(uint8_t *p, const struct net_addr *src, const struct net_addr *dst,
		     uint8_t proto, uint8_t ttl, size_t len)
{
	if (!net_addr_is_v4(src)) {
		net_put32(p, 0x60000000);
		net_put16(p + 4, (unsigned)len);
		p[6] = proto;
		p[7] = ttl;
		memcpy(p + 8, src->b, 16);
		memcpy(p + 24, dst->b, 16);
		return IPV6_MIN;
	}
	memset(p, 0, IPV4_MIN);
	p[0] = 0x45;
	net_put16(p + 2, (unsigned)(IPV4_MIN + len));
	p[8] = ttl;
	p[9] = proto;
	memcpy(p + 12, src->b + 12, 4);
	memcpy(p + 16, dst->b + 12, 4);
	uint16_t sum = net_checksum_fold(net_checksum(p, IPV4_MIN, 0));
	memcpy(p + 10, &sum, 2);
	return IPV4_MIN;
}

void packet_put_sum(uint8_t *l4, size_t len, size_t field, const struct net_addr *src,
		    const struct net_addr *dst, uint8_t proto)
{
	uint64_t pseudo = 0;

	if (proto != IP_ICMP) {
		size_t skip = net_addr_is_v4(src) ? 12 : 0;
		pseudo = net_checksum(src->b + skip, 16 - skip, 0);
		pseudo = net_checksum(dst->b + skip, 16 - skip, pseudo);
		pseudo += htons((uint16_t)len) + (uint64_t)htons(proto);
	}
	net_put16(l4 + field, 0);
	uint16_t sum = net_checksum_fold(net_checksum(l4, len, pseudo));
	if (!sum && proto == IP_UDP)
		sum = 0xffff;
	memcpy(l4 + field, &sum, 2);
}

size_t packet_udp_at(const struct net_addr *src)
{
	return ETH_HEADER + (net_addr_is_v4(src) ? IPV4_MIN : IPV6_MIN) + UDP_MIN;
}

size_t packet_put_udp(uint8_t *frame, const uint8_t dst_mac[6], const uint8_t src_mac[6],
		      const struct net_addr *src, const struct net_addr *dst, uint16_t sport,
		      uint16_t dport, size_t len)
{
	size_t at = packet_put_eth(frame, dst_mac, src_mac, net_addr_is_v4(src) ? ETH_IPV4 : ETH_IPV6);

	at += packet_put_ip(frame + at, src, dst, IP_UDP, 64, UDP_MIN + len);
	net_put16(frame + at, sport);
	net_put16(frame + at + 2, dport);
	net_put16(frame + at + 4, (unsigned)(UDP_MIN + len));
	packet_put_sum(frame + at, UDP_MIN + len, 6, src, dst, IP_UDP);
	return at + UDP_MIN + len;
}
