/* SPDX-License-Identifier: Apache-2.0 */
/* DNS messages from guests and from the host's resolver: nothing outside of the message is read. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/resolver.h"

static void count(void *arg, const struct net_addr *a, uint32_t ttl_s)
{
	(void)a;
	(void)ttl_s;
	++*(int *)arg;
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const uint8_t seed[] =
		"\0\1\x81\x80\0\1\0\1\0\0\0\0\7updates\7example\3org\0\0\1\0\1"
		"\xc0\x0c\0\1\0\1\0\0\1\0\0\4\1\2\3\4";

	if (cap < sizeof(seed) - 1)
		abort();
	memcpy(data, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct dns_question q;
	int n = 0;

	uint8_t *m = malloc(len + !len);
	if (!m)
		return 0;
	memcpy(m, data, len);
	if (dns_parse_question(m, len, &q)) {
		if (q.end > len || strlen(q.name) > POLICY_DOMAIN_MAX)
			abort();
		int found = dns_each_address(m, len, &q, count, &n);
		if (found >= 0 && found != n)
			abort();
	}
	free(m);
	return 0;
}
