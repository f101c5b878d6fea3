/* SPDX-License-Identifier: Apache-2.0 */
/* Records of machines in labs: what is taken leads to a machine with at least a card, or to a refusal; the record of that machine is fine. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/identity.h"
#include "net/labfile.h"

static const char file[] = "networks:\n"
			   "  dmz: {subnet: 10.1.0.0/24, uplink: nat}\n"
			   "  app: {subnet: 10.2.0.0/24}\n"
			   "machines:\n"
			   "  db: {kernel: k, networks: [app]}\n"
			   "deny:\n"
			   "  - dmz.* -> internet : tcp/25\n";

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const char seed[] = "{\"lab\": \"demo\", \"machine\": \"web\", \"copy_of\": "
				   "[\"old\"], \"quarantine\": false,"
				   " \"cards\": [{\"network\": \"dmz\", \"subnet\": "
				   "\"10.1.0.0/24\", \"subnet6\": \"fd00::/64\","
				   " \"mac\": \"52:54:00:00:00:01\", \"address\": \"10.1.0.9\", "
				   "\"address6\": \"fd00::9\","
				   " \"gateway\": \"10.1.0.1\", \"default\": true, \"may_spoof\": "
				   "false, \"faults\": \"loss=5%\"}],"
				   " \"rules\": [{\"action\": \"allow\", \"rule\": \"dmz.web -> "
				   "app.db\", \"what\": \"tcp/5432\"},"
				   " {\"action\": \"allow\", \"rule\": \"dmz.* -> internet\", "
				   "\"what\": \"tcp/80\", \"names\": [\"a.example\"]}]}";

	if (cap < sizeof(seed) - 1)
		abort();
	memcpy(data, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct faults faults[POLICY_PORTS_MAX];
	json_t *record = json_loadb((const char *)data, len, 0, NULL), *own;
	struct identity_card card;
	struct error err = { "" };
	struct lab *l;

	if (!record)
		return 0;
	if (lab_parse(&l, file, sizeof(file) - 1, "x", "demo", &err) < 0)
		abort();
	int machine = identity_add(l->policy, faults, "new", record, &err);
	if (machine < 0 && !err.text[0])
		abort();
	if (machine >= 0) {
		own = identity_of(l->policy, (unsigned)machine, faults, record);
		if (identity_check(own, &err) < 0 || !identity_card(own, 0, &card) ||
		    !identity_card(record, 0, &card))
			abort();
		json_decref(own);
	}
	lab_free(l);
	if (lab_parse(&l, file, sizeof(file) - 1, "x", "demo", &err) < 0)
		abort();
	/* From another host: what it gets is what it has, and nothing that is another's. */
	machine = identity_move(l->policy, faults, "moved", record, true, &err);
	if (machine < 0 && !err.text[0])
		abort();
	if (machine >= 0 && identity_is_same(l->policy, (unsigned)machine, record, &err) < 0)
		abort();
	json_decref(record);
	lab_free(l);
	return 0;
}
