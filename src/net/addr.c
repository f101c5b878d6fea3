/* SPDX-License-Identifier: Apache-2.0 */
#include "net/addr.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static const uint8_t v4_mark[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };

struct net_addr net_addr_v4(const uint8_t b[4])
{
	struct net_addr a;

	memcpy(a.b, v4_mark, 12);
	memcpy(a.b + 12, b, 4);
	return a;
}

struct net_addr net_addr_v6(const uint8_t b[16])
{
	struct net_addr a;

	memcpy(a.b, b, 16);
	return a;
}

bool net_addr_is_v4(const struct net_addr *a)
{
	return memcmp(a->b, v4_mark, 12) == 0;
}

bool net_addr_is_equal(const struct net_addr *a, const struct net_addr *b)
{
	return memcmp(a->b, b->b, 16) == 0;
}

bool net_addr_is_any(const struct net_addr *a)
{
	static const uint8_t zero[16];

	return memcmp(a->b + (net_addr_is_v4(a) ? 12 : 0), zero, net_addr_is_v4(a) ? 4 : 16) == 0;
}

bool net_addr_is_multicast(const struct net_addr *a)
{
	if (!net_addr_is_v4(a))
		return a->b[0] == 0xff;
	return a->b[12] >> 4 == 14 || net_get32(a->b + 12) == 0xffffffff;
}

bool net_addr_is_link_local(const struct net_addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

struct net_prefix net_prefix_of(const struct net_addr *a, unsigned bits)
{
	struct net_prefix p = { *a, (uint8_t)bits };

	for (unsigned b = bits; b < 128; b++)
		p.addr.b[b / 8] &= (uint8_t) ~(0x80 >> b % 8);
	return p;
}

bool net_prefix_has(const struct net_prefix *p, const struct net_addr *a)
{
	unsigned bytes = p->bits / 8, rest = p->bits % 8;

	return memcmp(p->addr.b, a->b, bytes) == 0 &&
	       (!rest || !((p->addr.b[bytes] ^ a->b[bytes]) & (0xff00 >> rest) & 0xff));
}

bool net_prefix_overlaps(const struct net_prefix *a, const struct net_prefix *b)
{
	return a->bits <= b->bits ? net_prefix_has(a, &b->addr) : net_prefix_has(b, &a->addr);
}

struct net_addr net_prefix_host(const struct net_prefix *p, uint32_t n)
{
	struct net_addr a = p->addr;

	net_put32(a.b + 12, net_get32(a.b + 12) + n);
	return a;
}

struct net_addr net_prefix_eui64(const struct net_prefix *p, const uint8_t mac[6])
{
	struct net_addr a = p->addr;

	memcpy(a.b + 8, mac, 3);
	a.b[8] ^= 2;
	a.b[11] = 0xff;
	a.b[12] = 0xfe;
	memcpy(a.b + 13, mac + 3, 3);
	return a;
}

int net_addr_parse(const char *text, struct net_addr *out)
{
	uint8_t b[16];

	if (inet_pton(AF_INET, text, b) == 1)
		*out = net_addr_v4(b);
	else if (inet_pton(AF_INET6, text, b) == 1)
		*out = net_addr_v6(b);
	else
		return -EINVAL;
	return 0;
}

int net_prefix_parse(const char *text, struct net_prefix *out)
{
	char copy[NET_ADDR_TEXT], *slash, *end;
	struct net_prefix p;

	if (strlen(text) >= sizeof(copy))
		return -EINVAL;
	strcpy(copy, text);
	slash = strchr(copy, '/');
	if (!slash || slash[1] < '0' || slash[1] > '9')
		return -EINVAL;
	*slash = 0;
	unsigned long bits = strtoul(slash + 1, &end, 10);
	if (*end || net_addr_parse(copy, &p.addr) < 0)
		return -EINVAL;
	unsigned offset = strchr(copy, ':') ? 0 : 96;
	if (bits > 128 - offset)
		return -EINVAL;
	p.bits = (uint8_t)(bits + offset);
	for (unsigned i = p.bits; i < 128; i++)
		if (p.addr.b[i / 8] & 0x80 >> i % 8)
			return -ERANGE;
	*out = p;
	return 0;
}

const char *net_addr_format(const struct net_addr *a, char buf[NET_ADDR_TEXT])
{
	if (net_addr_is_v4(a))
		inet_ntop(AF_INET, a->b + 12, buf, NET_ADDR_TEXT);
	else
		inet_ntop(AF_INET6, a->b, buf, NET_ADDR_TEXT);
	return buf;
}

const char *net_prefix_format(const struct net_prefix *p, char buf[NET_ADDR_TEXT])
{
	bool is_v4 = net_addr_is_v4(&p->addr) && p->bits >= 96;

	net_addr_format(&p->addr, buf);
	size_t len = strlen(buf);
	snprintf(buf + len, NET_ADDR_TEXT - len, "/%u", p->bits - (is_v4 ? 96 : 0));
	return buf;
}

int net_mac_parse(const char *text, uint8_t mac[6])
{
	unsigned b[6];

	if (strlen(text) != NET_MAC_TEXT - 1)
		return -EINVAL;
	/* sscanf() alone would take signs and spaces for digits. */
	for (unsigned i = 0; i < NET_MAC_TEXT - 1; i++)
		if (i % 3 == 2 ? text[i] != ':' : !isxdigit((unsigned char)text[i]))
			return -EINVAL;
	if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]) != 6)
		return -EINVAL;
	for (unsigned i = 0; i < 6; i++)
		mac[i] = (uint8_t)b[i];
	return 0;
}

const char *net_mac_format(const uint8_t mac[6], char buf[NET_MAC_TEXT])
{
	snprintf(buf, NET_MAC_TEXT, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
		 mac[4], mac[5]);
	return buf;
}
