/* SPDX-License-Identifier: Apache-2.0 */
#include "net/dns.h"

#include <string.h>

enum { HEADER = 12, QDCOUNT = 4, ANCOUNT = 6, NSCOUNT = 8, ARCOUNT = 10, CLASS_IN = 1 };
enum { OPT_DO = 0x8000 };

/* ---- the door ---- */

/* A name at @at, labels dotted, lower case; @at moves behind it.  False: malformed. */
static bool read_name(const uint8_t *m, size_t len, size_t *at, char *out)
{
	size_t pos = *at, n = 0;

	for (;;) {
		if (pos >= len)
			return false;
		uint8_t label = m[pos++];
		if (label > 63 || label > len - pos)
			return false;
		if (!label)
			break;
		if (n + !!n + label > DNS_NAME_MAX)
			return false;
		if (n)
			out[n++] = '.';
		for (unsigned i = 0; i < label; i++) {
			char c = (char)m[pos++];
			bool is_fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
				       (c >= '0' && c <= '9') || c == '-' || c == '_';
			if (!is_fine)
				return false;
			out[n++] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
		}
	}
	out[n] = 0;
	*at = pos;
	return true;
}

/* The owner of a record: what it says is nobody's matter, where it ends is. */
static bool skip_name(const uint8_t *m, size_t len, size_t *at)
{
	size_t pos = *at;

	while (pos < len) {
		uint8_t label = m[pos++];
		if (label >= 0xc0) { /* a pointer is the last */
			*at = pos + 1;
			return *at <= len;
		}
		if (label > 63 || label > len - pos)
			return false;
		pos += label;
		if (!label) {
			*at = pos;
			return true;
		}
	}
	return false;
}

struct record {
	size_t at, name_end, data;
	uint16_t type, class, size;
	uint32_t ttl;
};

/* The one at @at, which moves behind it. */
static bool next_record(const uint8_t *m, size_t len, size_t *at, struct record *out)
{
	out->at = *at;
	if (!skip_name(m, len, at) || len - *at < 10)
		return false;
	const uint8_t *r = m + *at;
	out->name_end = *at;
	out->type = net_get16(r);
	out->class = net_get16(r + 2);
	out->ttl = net_get32(r + 4);
	out->size = net_get16(r + 8);
	out->data = *at + 10;
	*at = out->data + out->size;
	return out->size <= len - out->data;
}

bool dns_parse_question(const uint8_t *m, size_t len, struct dns_question *out)
{
	struct dns_question q;
	size_t at = HEADER;

	if (len < HEADER || net_get16(m + QDCOUNT) != 1)
		return false;
	q.id = net_get16(m);
	q.flags = net_get16(m + 2);
	if (!read_name(m, len, &at, q.name) || len - at < 4 || net_get16(m + at + 2) != CLASS_IN)
		return false;
	q.type = net_get16(m + at);
	q.end = at + 4;
	*out = q;
	return true;
}

static unsigned count_records(const uint8_t *m)
{
	return (unsigned)net_get16(m + ANCOUNT) + net_get16(m + NSCOUNT) + net_get16(m + ARCOUNT);
}

/* All records, to @end; the OPT record among them, which belongs into the last section and to the root (RFC 6891, 6.1.1). */
static bool walk(const uint8_t *m, size_t len, const struct dns_question *q, struct record *opt,
		 bool *has_opt, uint16_t *before_opt, size_t *end)
{
	unsigned n = count_records(m), others = n - net_get16(m + ARCOUNT);
	size_t at = q->end;
	struct record r;

	*has_opt = false;
	for (unsigned i = 0; i < n; i++) {
		if (!next_record(m, len, &at, &r))
			return false;
		if (r.type != DNS_OPT)
			continue;
		if (*has_opt || i < others || r.name_end != r.at + 1)
			return false;
		*has_opt = true;
		*opt = r;
		*before_opt = (uint16_t)(i - others);
	}
	*end = at;
	return true;
}

bool dns_parse_edns(const uint8_t *m, size_t len, const struct dns_question *q, struct dns_edns *out)
{
	struct dns_edns e = { .udp_size = DNS_UDP_PLAIN };
	struct record opt;
	uint16_t before;
	size_t end;

	if (!walk(m, len, q, &opt, &e.is_there, &before, &end))
		return false;
	if (e.is_there) {
		e.version = (uint8_t)(opt.ttl >> 16);
		e.wants_dnssec = opt.ttl & OPT_DO;
		e.udp_size = MAX(opt.class, (uint16_t)DNS_UDP_PLAIN); /* RFC 6891, 6.2.3 */
	}
	*out = e;
	return true;
}

bool dns_parse_answer(const uint8_t *m, size_t len, const struct dns_question *q, struct dns_answer *out)
{
	struct dns_answer a = { .end = len };
	struct dns_question own;
	struct record opt;

	if (!dns_parse_question(m, len, &own) || !(own.flags & DNS_QR) || own.id != q->id ||
	    own.type != q->type || strcmp(own.name, q->name) != 0)
		return false;
	a.rcode = own.flags & DNS_RCODE;
	a.is_truncated = own.flags & DNS_TC;
	if (!a.is_truncated) {
		if (!walk(m, len, &own, &opt, &a.has_opt, &a.before_opt, &a.end))
			return false;
		if (a.has_opt) {
			a.end = opt.at;
			a.rcode |= opt.ttl >> 24 << 4;
		}
	}
	*out = a;
	return true;
}

unsigned dns_each_address(const uint8_t *m, size_t len, const struct dns_question *q,
			  void (*fn)(void *arg, const struct net_addr *a, uint32_t ttl_s), void *arg)
{
	unsigned found = 0;
	size_t at = q->end;
	struct record r;

	for (unsigned i = 0, n = net_get16(m + ANCOUNT); i < n && next_record(m, len, &at, &r); i++) {
		bool is_v4 = r.type == DNS_A && r.size == 4, is_v6 = r.type == DNS_AAAA && r.size == 16;
		if (!is_v4 && !is_v6)
			continue;
		struct net_addr a = is_v4 ? net_addr_v4(m + r.data) : net_addr_v6(m + r.data);
		fn(arg, &a, r.ttl);
		found++;
	}
	return found;
}

/* ---- making them ---- */

static size_t put_opt(uint8_t *out, unsigned rcode, bool wants_dnssec)
{
	out[0] = 0;
	net_put16(out + 1, DNS_OPT);
	net_put16(out + 3, DNS_UDP_MAX);
	net_put32(out + 5, (uint32_t)(rcode >> 4) << 24 | (wants_dnssec ? OPT_DO : 0));
	net_put16(out + 9, 0);
	return DNS_OPT_BYTES;
}

static void clear_counts(uint8_t *m)
{
	net_put16(m + ANCOUNT, 0);
	net_put16(m + NSCOUNT, 0);
	net_put16(m + ARCOUNT, 0);
}

size_t dns_make_query(uint8_t out[DNS_QUERY_MAX], const uint8_t *query, const struct dns_question *q,
		      uint16_t id, uint16_t flags, const struct dns_edns *edns)
{
	memcpy(out, query, q->end);
	net_put16(out, id);
	net_put16(out + 2, flags);
	clear_counts(out);
	net_put16(out + ARCOUNT, edns != NULL);
	return q->end + (edns ? put_opt(out + q->end, 0, edns->wants_dnssec) : 0);
}

size_t dns_make_empty(uint8_t *out, const uint8_t *query, const struct dns_question *q, unsigned rcode)
{
	memcpy(out, query, q->end);
	net_put16(out + 2, DNS_QR | DNS_AA | DNS_RA | (q->flags & (DNS_RD | DNS_OPCODE)) |
				   (rcode & DNS_RCODE));
	clear_counts(out);
	return q->end;
}

size_t dns_udp_max(const struct dns_edns *edns)
{
	return edns->is_there ? MIN((size_t)edns->udp_size, (size_t)DNS_UDP_MAX) : DNS_UDP_PLAIN;
}

size_t dns_fit(uint8_t *m, size_t len, const struct dns_question *q, const struct dns_answer *a,
	       const struct dns_edns *edns, unsigned rcode, size_t max)
{
	size_t opt = edns->is_there ? DNS_OPT_BYTES : 0;

	/* Names point backwards only, so what stands behind another's OPT record can go, and nothing else has to move. */
	if (a)
		len = a->end;
	if (a && a->has_opt)
		net_put16(m + ARCOUNT, a->before_opt);
	net_put16(m + 2, (net_get16(m + 2) & ~(unsigned)DNS_RCODE) | (rcode & DNS_RCODE));
	if (len + opt > max || (a && a->is_truncated)) {
		len = q->end;
		clear_counts(m);
		net_put16(m + 2, net_get16(m + 2) | DNS_TC);
	}
	if (opt) {
		put_opt(m + len, rcode, edns->wants_dnssec);
		net_put16(m + ARCOUNT, net_get16(m + ARCOUNT) + 1u);
	}
	return len + opt;
}
