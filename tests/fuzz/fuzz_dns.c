/* SPDX-License-Identifier: Apache-2.0 */
/* DNS messages from guests and from the host's resolver: nothing outside of the message is read. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/dns.h"

static void count(void *arg, const struct net_addr *a, uint32_t ttl_s)
{
	(void)a;
	(void)ttl_s;
	++*(int *)arg;
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const uint8_t seed[] =
		"\0\1\x81\x80\0\1\0\1\0\0\0\2\7updates\7example\3org\0\0\1\0\1"
		"\xc0\x0c\0\1\0\1\0\0\1\0\0\4\1\2\3\4"
		"\0\0\x29\x04\xd0\0\0\x80\0\0\4\0\x0a\0\0"
		"\0\0\x10\0\1\0\0\0\5\0\2\1x";

	if (cap < sizeof(seed) - 1)
		abort();
	memcpy(data, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

/* An answer that came, as one that is sent on: it is still one, and its options are the gateway's. */
static void pass_on(uint8_t *m, size_t len, const struct dns_question *q, bool has_edns, size_t max)
{
	struct dns_edns edns = { .is_there = has_edns, .udp_size = 512 }, got;
	struct dns_answer a, again;
	int n = 0;

	if (!dns_parse_answer(m, len, q, &a))
		return;
	if (!a.is_truncated && (a.end > len || a.end < q->end))
		abort();
	size_t fit = dns_fit(m, len, q, &a, &edns, a.rcode & DNS_RCODE, max);
	if (fit > max || fit > len + DNS_OPT_BYTES || !dns_parse_answer(m, fit, q, &again) ||
	    again.rcode != (a.rcode & DNS_RCODE))
		abort();
	if (!dns_parse_edns(m, fit, q, &got) || got.is_there != has_edns)
		abort();
	if (dns_each_address(m, fit, q, count, &n) != (unsigned)n || (again.is_truncated && n))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct dns_question q;
	struct dns_edns edns = { .udp_size = DNS_UDP_PLAIN };
	uint8_t query[DNS_QUERY_MAX];

	uint8_t *m = malloc(len + DNS_OPT_BYTES);
	if (!m)
		return 0;
	memcpy(m, data, len);
	if (dns_parse_question(m, len, &q)) {
		if (q.end > len || strlen(q.name) > DNS_NAME_MAX)
			abort();
		bool is_fine = dns_parse_edns(m, len, &q, &edns);
		if (is_fine && (edns.udp_size < DNS_UDP_PLAIN || dns_udp_max(&edns) > DNS_UDP_MAX))
			abort();
		size_t n = dns_make_query(query, m, &q, 1, DNS_RD, &edns);
		struct dns_question same;
		if (n > DNS_QUERY_MAX || !dns_parse_question(query, n, &same) ||
		    same.end != q.end || strcmp(same.name, q.name) != 0)
			abort();
		/* The first bytes are the number: as good as any choice. */
		pass_on(m, len, &q, m[0] & 1, m[1] & 1 ? DNS_MESSAGE_MAX : DNS_UDP_PLAIN);
	}
	free(m);
	return 0;
}
