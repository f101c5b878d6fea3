/* SPDX-License-Identifier: Apache-2.0 */
/* DHCPv6 messages from guests: nothing outside of them is read, and an answer is a whole message with the same number. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/dhcp6.h"

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	/* A solicit: who, what for (an address with a hint, a prefix), what is wanted, and at once if possible. */
	static const uint8_t seed[] =
		"\1\xab\xcd\xef\0\1\0\x0a\0\3\0\1\x52\x54\0\0\0\1"
		"\0\3\0\x28\0\0\0\1\0\0\0\0\0\0\0\0"
		"\0\5\0\x18\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0"
		"\0\x19\0\x0c\0\0\0\2\0\0\0\0\0\0\0\0"
		"\0\6\0\4\0\x17\0\x18\0\x0e\0\0\0\x08\0\2\0\0";

	if (cap < sizeof(seed) - 1)
		abort();
	memcpy(data, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

static void check_options(const uint8_t *b, size_t len)
{
	size_t at = 0;

	while (at < len) {
		if (len - at < 4)
			abort();
		uint16_t code = net_get16(b + at), size = net_get16(b + at + 2);
		at += 4;
		if (size > len - at)
			abort();
		if (code == 3 || code == 25)
			check_options(b + at + 12, size - 12u);
		if (code == 4)
			check_options(b + at + 4, size - 4u);
		at += size;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct policy *p;
	uint8_t reply[DHCP6_REPLY_MAX];
	struct net_prefix v4;
	struct error err;

	if (!p) {
		p = policy_create("demo");
		if (!p || net_prefix_parse("10.1.0.0/24", &v4) < 0 ||
		    policy_add_network(p, "n", &v4, NULL, false, -1, &err) < 0 ||
		    policy_add_machine(p, "m", &err) < 0 || policy_add_port(p, 0, 0, NULL, &err) < 0)
			abort();
	}
	uint8_t *m = malloc(len + !len);
	if (!m)
		return 0;
	memcpy(m, data, len);
	size_t n = dhcp6_reply(p, 0, m, len, reply);
	if (n) {
		if (n < 4 || n > sizeof(reply) || memcmp(reply + 1, m + 1, 3) != 0 ||
		    (reply[0] != 2 && reply[0] != 7))
			abort();
		check_options(reply + 4, n - 4);
	}
	free(m);
	return 0;
}
