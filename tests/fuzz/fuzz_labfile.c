/* SPDX-License-Identifier: Apache-2.0 */
/* Lab files: taken or refused with a place; what is taken can be drawn. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/plan.h"

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const char seed[] =
		"networks:\n"
		"  dmz: {subnet: 10.1.0.0/24, uplink: nat, vlan: 7}\n"
		"  app: {subnet: 10.2.0.0/24, subnet6: 'fd00:2::/64', faults: {loss: 5%}}\n"
		"machines:\n"
		"  web: {image: debian, networks: [dmz, {app: {address: 10.2.0.9}}], forward: "
		"['8080:80']}\n"
		"  db: {kernel: k, networks: [app]}\n"
		"allow:\n"
		"  - dmz.web -> app.db : tcp/5432,60-70\n"
		"  - dmz.* -> internet : {names: [a.example], ports: [80]}\n";

	if (cap < sizeof(seed) - 1)
		abort();
	memcpy(data, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct error err = { "" };
	struct bytes text = { 0 };
	struct lab *l;

	char *copy = malloc(len + 1); /* a block of its own, without a NUL behind it */
	if (!copy)
		return 0;
	memcpy(copy, data, len);
	int r = lab_parse(&l, copy, len, "x", "lab", &err);
	free(copy);
	if (r < 0) {
		if (strncmp(err.text, "x:", 2) != 0)
			abort();
		return 0;
	}
	plan_text(l->policy, &text);
	if (text.is_failed)
		abort();
	bytes_free(&text);
	lab_free(l);
	return 0;
}
