/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses of both IP versions in one form: 16 bytes as on the wire, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2); and
 * prefixes of them.  An IPv4 prefix of length N is one of 96 + N here.
 */
#ifndef VIV_NET_ADDR_H
#define VIV_NET_ADDR_H

#include "base/error.h"

#define NET_ADDR_TEXT 56 /* an address or a prefix with its NUL */

struct net_addr {
	uint8_t b[16];
};
struct net_prefix {
	struct net_addr addr; /* the bits behind the prefix are zero */
	uint8_t bits;	      /* 0 to 128 */
};

struct net_addr net_addr_v4(const uint8_t b[4]);
struct net_addr net_addr_v6(const uint8_t b[16]);
bool net_addr_is_v4(const struct net_addr *a);
bool net_addr_is_equal(const struct net_addr *a, const struct net_addr *b);
/** net_addr_is_any() - 0.0.0.0 or ::. */
bool net_addr_is_any(const struct net_addr *a);
/** net_addr_is_multicast() - multicast, or IPv4's 255.255.255.255. */
bool net_addr_is_multicast(const struct net_addr *a);
bool net_addr_is_link_local(const struct net_addr *a); /* fe80::/10 */

/** net_prefix_of() - the one of @bits that @a is in. */
struct net_prefix net_prefix_of(const struct net_addr *a, unsigned bits);
/** net_prefix_has() - @a is in @p. */
bool net_prefix_has(const struct net_prefix *p, const struct net_addr *a);
/** net_prefix_overlaps() - some address is in both. */
bool net_prefix_overlaps(const struct net_prefix *a, const struct net_prefix *b);
/** net_prefix_host() - the @n-th address of @p, counted from its first; @p has at most 2^32 that are counted. */
struct net_addr net_prefix_host(const struct net_prefix *p, uint32_t n);
/** net_prefix_eui64() - the address in @p, a /64, that SLAAC makes of @mac (RFC 4291, appendix A). */
struct net_addr net_prefix_eui64(const struct net_prefix *p, const uint8_t mac[6]);

/** net_addr_parse() - of either version.  0 or -EINVAL. */
int net_addr_parse(const char *text, struct net_addr *out);
/** net_prefix_parse() - "10.1.0.0/24", "fd00:1::/64"; 0, -EINVAL: none, -ERANGE: bits are set behind the prefix. */
int net_prefix_parse(const char *text, struct net_prefix *out);
const char *net_addr_format(const struct net_addr *a, char buf[NET_ADDR_TEXT]);
const char *net_prefix_format(const struct net_prefix *p, char buf[NET_ADDR_TEXT]);

#define NET_MAC_TEXT 18 /* "52:54:00:12:34:56" */
/** net_mac_parse() - six pairs of hexadecimal digits with colons between them, nothing else.  0 or -EINVAL, and @mac is as it was. */
int net_mac_parse(const char *text, uint8_t mac[6]);
/** net_mac_format() - in lower case.  Returns @buf. */
const char *net_mac_format(const uint8_t mac[6], char buf[NET_MAC_TEXT]);

/* Bytes of the wire. */
static inline uint16_t net_get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}
static inline uint32_t net_get32(const uint8_t *p)
{
	return (uint32_t)net_get16(p) << 16 | net_get16(p + 2);
}
static inline void net_put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}
static inline void net_put32(uint8_t *p, uint32_t v)
{
	net_put16(p, v >> 16);
	net_put16(p + 2, v & 0xffff);
}

#endif
