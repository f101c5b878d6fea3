/* SPDX-License-Identifier: Apache-2.0 */
#include "net/dhcp6.h"

#include <string.h>

enum {
	SOLICIT = 1,
	ADVERTISE,
	REQUEST,
	CONFIRM,
	RENEW,
	REBIND,
	REPLY,
	RELEASE,
	DECLINE,
	INFORMATION_REQUEST = 11,
};
enum {
	OPT_CLIENT = 1,
	OPT_SERVER = 2,
	OPT_IA_NA = 3,
	OPT_IA_TA = 4,
	OPT_IAADDR = 5,
	OPT_WANTED = 6,
	OPT_PREFERENCE = 7,
	OPT_STATUS = 13,
	OPT_RAPID_COMMIT = 14,
	OPT_DNS = 23,
	OPT_SEARCH = 24,
	OPT_IA_PD = 25,
};
enum { SUCCESS = 0, NO_ADDRS_AVAIL = 2, NOT_ON_LINK = 4, NO_PREFIX_AVAIL = 6 };
enum {
	HEADER = 4,
	DUID_MAX = 130,
	DUID_LL = 3,
	SERVER_DUID = 10,
	IA_HEADER = 12,
	IA_TA_HEADER = 4,
	IAADDR_LEN = 24
};

/* ---- the door ---- */

struct option {
	uint16_t code, len;
	const uint8_t *data;
};

/* The one at @at, which moves behind it.  False: the end, or it leads out of @len bytes. */
static bool next_option(const uint8_t *m, size_t len, size_t *at, struct option *out)
{
	if (len - *at < 4)
		return false;
	*out = (struct option){ net_get16(m + *at), net_get16(m + *at + 2), m + *at + 4 };
	if (out->len > len - *at - 4)
		return false;
	*at += 4u + out->len;
	return true;
}

struct message {
	uint8_t type;
	const uint8_t *m;
	size_t len;
	struct option client, server; /* data NULL: there is none */
	bool is_rapid, has_wishes, wants_dns, wants_search;
	unsigned nias; /* of any kind */
};

static size_t ia_header(uint16_t code)
{
	return code == OPT_IA_TA			? IA_TA_HEADER
	       : code == OPT_IA_NA || code == OPT_IA_PD ? IA_HEADER
							: 0;
}

static bool take_option(struct message *q, const struct option *o)
{
	size_t ia = ia_header(o->code);

	if (ia) {
		q->nias++;
		return o->len >= ia;
	}
	switch (o->code) {
	case OPT_CLIENT:
	case OPT_SERVER:
		if (o->len < 1 || o->len > DUID_MAX)
			return false;
		*(o->code == OPT_CLIENT ? &q->client : &q->server) = *o;
		return true;
	case OPT_RAPID_COMMIT:
		q->is_rapid = true;
		return true;
	case OPT_WANTED:
		q->has_wishes = true;
		for (unsigned i = 0; i + 2 <= o->len; i += 2) {
			q->wants_dns |= net_get16(o->data + i) == OPT_DNS;
			q->wants_search |= net_get16(o->data + i) == OPT_SEARCH;
		}
		return true;
	}
	return true;
}

static bool parse(struct message *q, const uint8_t *m, size_t len)
{
	size_t at = HEADER;
	struct option o;

	*q = (struct message){ .m = m, .len = len };
	if (len < HEADER)
		return false;
	q->type = m[0];
	while (next_option(m, len, &at, &o))
		if (!take_option(q, &o))
			return false;
	return at == len;
}

/* Link-layer DUID of the gateway (RFC 8415, 11.4). */
static void make_duid(uint8_t out[SERVER_DUID], const struct policy_network *n)
{
	net_put16(out, DUID_LL);
	net_put16(out + 2, 1);
	memcpy(out + 4, n->gateway_mac, 6);
}

/* RFC 8415, 16: what has to be there, and what must not. */
static bool is_valid(const struct message *q, const uint8_t duid[SERVER_DUID])
{
	bool is_ours = q->server.data && q->server.len == SERVER_DUID &&
		       memcmp(q->server.data, duid, SERVER_DUID) == 0;

	switch (q->type) {
	case SOLICIT:
	case CONFIRM:
	case REBIND:
		return q->client.data && !q->server.data;
	case REQUEST:
	case RENEW:
	case RELEASE:
	case DECLINE:
		return q->client.data && is_ours;
	case INFORMATION_REQUEST:
		return (!q->server.data || is_ours) && !q->nias;
	}
	return false;
}

/* ---- the answer ---- */

struct reply {
	uint8_t *b;
	size_t len;
	bool is_full;
};

static uint8_t *put(struct reply *r, uint16_t code, size_t len)
{
	static uint8_t nowhere[DHCP6_REPLY_MAX];

	if (r->is_full || len + 4 > DHCP6_REPLY_MAX - r->len) {
		r->is_full = true;
		return nowhere;
	}
	uint8_t *at = r->b + r->len;
	net_put16(at, code);
	net_put16(at + 2, (unsigned)len);
	r->len += 4 + len;
	return at + 4;
}

static void put_bytes(struct reply *r, uint16_t code, const void *data, size_t len)
{
	memcpy(put(r, code, len), data, len);
}

static void put_status(struct reply *r, uint16_t status)
{
	net_put16(put(r, OPT_STATUS, 2), status);
}

static void put_address(struct reply *r, const uint8_t a[16], uint32_t lifetime_s)
{
	uint8_t *at = put(r, OPT_IAADDR, IAADDR_LEN);

	memcpy(at, a, 16);
	net_put32(at + 16, lifetime_s);
	net_put32(at + 20, lifetime_s);
}

/* The @i-th address that the client says it has; NULL: there are no more. */
static const uint8_t *ia_address(const struct option *ia, unsigned i)
{
	size_t at = ia_header(ia->code);
	struct option o;

	while (next_option(ia->data, ia->len, &at, &o))
		if (o.code == OPT_IAADDR && o.len >= IAADDR_LEN && !i--)
			return o.data;
	return NULL;
}

/* An answer to @ia; its length is filled in when all of it is there. */
static void put_ia(struct reply *r, const struct message *q, const struct option *ia,
		   const struct policy_port *port, bool is_first)
{
	bool is_na = ia->code == OPT_IA_NA, is_given = is_na && is_first;
	size_t start = r->len, header = ia_header(ia->code);
	uint8_t *at = put(r, ia->code, header);
	const uint8_t *a;

	memcpy(at, ia->data, 4); /* IAID */
	if (header == IA_HEADER) {
		net_put32(at + 4, is_given ? DHCP6_LEASE_S / 2 : 0);
		net_put32(at + 8, is_given ? DHCP6_LEASE_S / 5 * 4 : 0);
	}
	if (is_given)
		put_address(r, port->v6.b, DHCP6_LEASE_S);
	else
		put_status(r, ia->code == OPT_IA_PD ? NO_PREFIX_AVAIL : NO_ADDRS_AVAIL);
	/* What it has, and is another's or nobody's, it is to give up (RFC 8415, 18.3.4). */
	for (unsigned i = 0; is_na && q->type != SOLICIT && (a = ia_address(ia, i)); i++)
		if (!is_given || memcmp(a, port->v6.b, 16) != 0)
			put_address(r, a, 0);
	if (!r->is_full)
		net_put16(r->b + start + 2, (unsigned)(r->len - start - 4));
}

static void put_ias(struct reply *r, const struct message *q, const struct policy_port *port)
{
	bool is_first = true;
	size_t at = HEADER;
	struct option o;

	while (next_option(q->m, q->len, &at, &o)) {
		if (!ia_header(o.code))
			continue;
		put_ia(r, q, &o, port, is_first);
		is_first &= o.code != OPT_IA_NA;
	}
}

/* RFC 8415, 18.3.3: whether all that it has is its own.  -1: it has nothing, and is not answered. */
static int check_addresses(const struct message *q, const struct policy_port *port)
{
	size_t at = HEADER;
	struct option o;
	const uint8_t *a;
	int status = -1;

	while (next_option(q->m, q->len, &at, &o))
		for (unsigned i = 0; o.code == OPT_IA_NA && (a = ia_address(&o, i)); i++) {
			if (memcmp(a, port->v6.b, 16) != 0)
				return NOT_ON_LINK;
			status = SUCCESS;
		}
	return status;
}

static void put_settings(struct reply *r, const struct message *q, const struct policy_network *n)
{
	if (q->wants_dns || !q->has_wishes)
		put_bytes(r, OPT_DNS, n->gateway_v6.b, 16);
	if (q->wants_search || !q->has_wishes)
		put_bytes(r, OPT_SEARCH, "\3lab", 5);
}

static bool put_answer(struct reply *r, const struct message *q, const struct policy_port *port,
		       const struct policy_network *n)
{
	int status;

	switch (q->type) {
	case SOLICIT:
		/* Nobody else will answer: it need not wait. */
		if (q->is_rapid)
			put(r, OPT_RAPID_COMMIT, 0);
		else
			*put(r, OPT_PREFERENCE, 1) = 255;
		/* fall through */
	case REQUEST:
	case RENEW:
	case REBIND:
		put_ias(r, q, port);
		put_settings(r, q, n);
		return true;
	case INFORMATION_REQUEST:
		put_settings(r, q, n);
		return true;
	case CONFIRM:
		status = check_addresses(q, port);
		if (status < 0)
			return false;
		put_status(r, (uint16_t)status);
		return true;
	default: /* it gives its address back, which stays its own */
		put_status(r, SUCCESS);
		return true;
	}
}

size_t dhcp6_reply(const struct policy *policy, unsigned port, const uint8_t *m, size_t len,
		   uint8_t reply[DHCP6_REPLY_MAX])
{
	const struct policy_port *p = &policy->ports[port];
	const struct policy_network *n = &policy->networks[p->network];
	struct reply r = { .b = reply, .len = HEADER };
	uint8_t duid[SERVER_DUID];
	struct message q;

	make_duid(duid, n);
	if (!parse(&q, m, len) || !is_valid(&q, duid))
		return 0;
	memcpy(reply, m, HEADER); /* the number of the transaction */
	reply[0] = q.type == SOLICIT && !q.is_rapid ? ADVERTISE : REPLY;
	if (q.client.data)
		put_bytes(&r, OPT_CLIENT, q.client.data, q.client.len);
	put_bytes(&r, OPT_SERVER, duid, sizeof(duid));
	return put_answer(&r, &q, p, n) && !r.is_full ? r.len : 0;
}
