/* SPDX-License-Identifier: Apache-2.0 */
/* Machines that are copied while a lab is up, and the records by which others come. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "net/identity.h"
#include "net/labfile.h"
#include "net/packet.h"
#include "net/testing.h"

static const char file[] =
	"networks:\n"
	"  dmz: {subnet: 10.1.0.0/24, uplink: nat}\n"
	"  app: {subnet: 10.2.0.0/24}\n"
	"machines:\n"
	"  web: {kernel: k, networks: [{dmz: {address: 10.1.0.50}}, {app: {faults: {loss: 1%}}}]}\n"
	"  db: {kernel: k, networks: [app]}\n"
	"  ops: {kernel: k, networks: [dmz]}\n"
	"allow:\n"
	"  - dmz.web -> app.db : tcp/5432\n"
	"  - dmz.ops -> app.web : icmp\n"
	"  - dmz.* -> internet : {names: [updates.example.org], ports: [80, 443]}\n"
	"deny:\n"
	"  - dmz.ops -> dmz.web : tcp/22\n";
enum { WEB, DB, OPS };

static struct error err;
static struct faults faults[POLICY_PORTS_MAX];

static struct lab *parse(const char *text)
{
	struct lab *l;

	if (lab_parse(&l, text, strlen(text), "file", "demo", &err) < 0)
		fail_msg("%s", err.text);
	return l;
}

static struct policy_verdict decide(const struct policy *p, int from, int to, uint8_t proto, uint16_t dport)
{
	struct policy_flow f = { .from = from, .to = to, .proto = proto, .dport = dport };

	f.dst = frame_addr("93.184.216.34");
	f.has_ports = proto != IP_ICMP;
	return policy_decide(p, &f, NULL);
}

static bool is_allowed(const struct policy *p, int from, int to, uint8_t proto, uint16_t dport)
{
	return decide(p, from, to, proto, dport).is_allowed;
}

/* What is decided for the one is decided for the other, in both directions. */
static void assert_same_rights(const struct policy *p, int a, int b)
{
	static const struct {
		uint8_t proto;
		uint16_t dport;
	} kinds[] = { { IP_TCP, 22 }, { IP_TCP, 80 }, { IP_TCP, 5432 }, { IP_UDP, 53 }, { IP_ICMP, 0 } };

	for (int other = POLICY_OUTSIDE; other < (int)p->nports; other++)
		for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
			if (other == a || other == b)
				continue;
			assert_int_equal(is_allowed(p, a, other, kinds[k].proto, kinds[k].dport),
					 is_allowed(p, b, other, kinds[k].proto, kinds[k].dport));
			assert_int_equal(is_allowed(p, other, a, kinds[k].proto, kinds[k].dport),
					 is_allowed(p, other, b, kinds[k].proto, kinds[k].dport));
		}
}

static void test_a_copy_has_the_same_rights(void **state)
{
	struct lab *l = parse(file);
	struct policy *p = l->policy;
	unsigned rules = p->nrules;
	int w1 = policy_copy_machine(p, WEB, "w1", &err);

	assert_int_equal(w1, 3);
	assert_true(p->machines[w1].is_copy);
	assert_int_equal(p->nrules, rules + 3);
	for (int network = 0; network < 2; network++) {
		int old = policy_find_port(p, WEB, network), new = policy_find_port(p, w1, network);
		assert_true(new >= 0);
		assert_memory_not_equal(p->ports[old].mac, p->ports[new].mac, 6);
		assert_false(net_addr_is_equal(&p->ports[old].v4, &p->ports[new].v4));
		assert_int_equal(policy_port_by_addr(p, &p->ports[new].v4), new);
		assert_int_equal(policy_port_by_addr(p, &p->ports[old].v4), old);
		assert_int_equal(p->ports[new].is_default, p->ports[old].is_default);
		assert_same_rights(p, old, new);
	}
	assert_int_equal(policy_copy_machine(p, WEB, "w1", &err), -EEXIST);
	assert_int_equal(policy_copy_machine(p, WEB, "no_name", &err), -EINVAL);
	lab_free(l);
}

static void test_a_copy_of_the_cut_off_is_cut_off(void **state)
{
	struct lab *l = parse(file);

	l->policy->machines[WEB].is_quarantined = true;
	int w1 = policy_copy_machine(l->policy, WEB, "w1", &err);
	assert_true(l->policy->machines[w1].is_quarantined);
	assert_true(policy_is_cut_off(l->policy, (unsigned)policy_find_port(l->policy, w1, 0)));
	lab_free(l);
}

static void test_the_forgotten_is_gone(void **state)
{
	struct lab *l = parse(file);
	struct policy *p = l->policy;
	unsigned rules = p->nrules;
	int w1 = policy_copy_machine(p, WEB, "w1", &err), port = policy_find_port(p, w1, 0),
	    db = policy_find_port(p, DB, 1);
	struct net_addr old = p->ports[port].v4;

	policy_forget_machine(p, (unsigned)w1);
	assert_int_equal(p->nrules, rules);
	assert_int_equal(policy_find_machine(p, "w1"), -1);
	assert_int_equal(policy_find_machine(p, ""), -1);
	assert_int_equal(policy_find_port(p, w1, 0), -1);
	assert_int_equal(policy_port_by_addr(p, &old), -1);
	assert_false(is_allowed(p, port, db, IP_TCP, 5432));
	assert_false(policy_may_see(p, (unsigned)port, (unsigned)db));
	/* Its address is not given to the next one while there are others. */
	int w2 = policy_copy_machine(p, WEB, "w2", &err);
	assert_false(net_addr_is_equal(&p->ports[policy_find_port(p, w2, 0)].v4, &old));
	lab_free(l);
}

static void test_places_are_used_again(void **state)
{
	struct lab *l = parse(file);
	struct policy *p = l->policy;
	char name[16];
	int r = 0;

	for (unsigned i = 0; r >= 0; i++) {
		snprintf(name, sizeof(name), "c%u", i);
		r = policy_copy_machine(p, OPS, name, &err);
	}
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(p->nmachines, POLICY_MACHINES_MAX);
	for (unsigned round = 0; round < 300; round++) {
		snprintf(name, sizeof(name), "d%u", round);
		policy_forget_machine(p, 100);
		assert_int_equal(policy_copy_machine(p, OPS, name, &err), 100);
		assert_int_equal(policy_find_machine(p, name), 100);
	}
	assert_int_equal(p->nmachines, POLICY_MACHINES_MAX);
	assert_true(p->nports <= POLICY_PORTS_MAX);
	lab_free(l);
}

static void test_a_record_leads_to_a_copy(void **state)
{
	struct lab *l = parse(file);
	struct policy *p = l->policy;
	json_t *web = identity_of(p, WEB, l->faults, NULL);

	assert_int_equal(identity_check(web, &err), 0);
	assert_string_equal(identity_lab(web), "demo");
	assert_string_equal(identity_machine(web), "web");
	memcpy(faults, l->faults, sizeof(faults));
	int w1 = identity_add(p, faults, "w1", web, &err);
	assert_int_equal(w1, 3);
	assert_same_rights(p, policy_find_port(p, WEB, 0), policy_find_port(p, w1, 0));
	assert_int_equal(faults[policy_find_port(p, w1, 1)].loss_ppm, 10000);
	/* A copy of the copy, after the copy was forgotten: of the machine that both are copies of. */
	json_t *record = identity_of(p, (unsigned)w1, faults, web);
	assert_string_equal(json_string_value(json_array_get(json_object_get(record, "copy_of"), 0)),
			    "web");
	policy_forget_machine(p, (unsigned)w1);
	int x = identity_add(p, faults, "x", record, &err);
	assert_true(x >= 0);
	assert_same_rights(p, policy_find_port(p, WEB, 0), policy_find_port(p, x, 0));
	json_decref(record);
	json_decref(web);
	lab_free(l);
}

/* Another lab, which knows none of the machines but db, and denies something. */
static void test_a_record_is_enough(void **state)
{
	static const char other[] = "name: other\n"
				    "networks:\n"
				    "  dmz: {subnet: 10.1.0.0/24, uplink: nat}\n"
				    "  app: {subnet: 10.2.0.0/24}\n"
				    "machines:\n"
				    "  db: {kernel: k, networks: [app]}\n"
				    "  plain: {kernel: k, networks: [dmz]}\n"
				    "deny:\n"
				    "  - dmz.* -> internet : tcp/80\n";
	struct lab *from = parse(file), *to = parse(other);
	struct policy *p = to->policy;
	json_t *web = identity_of(from->policy, WEB, from->faults, NULL);

	memset(faults, 0, sizeof(faults));
	int m = identity_add(p, faults, "web", web, &err);
	assert_true(m >= 0);
	int dmz = policy_find_port(p, m, 0), db = policy_find_port(p, 0, 1),
	    plain = policy_find_port(p, 1, 0);
	struct net_addr address = frame_addr("10.1.0.50");
	assert_true(net_addr_is_equal(&p->ports[dmz].v4, &address));
	assert_true(is_allowed(p, dmz, db, IP_TCP, 5432));
	assert_false(is_allowed(p, dmz, db, IP_TCP, 5433));
	/* "dmz.*" was narrowed to this machine, and what the lab denies stays denied. */
	assert_true(is_allowed(p, dmz, POLICY_OUTSIDE, IP_TCP, 443));
	assert_false(is_allowed(p, dmz, POLICY_OUTSIDE, IP_TCP, 80));
	assert_false(is_allowed(p, plain, POLICY_OUTSIDE, IP_TCP, 443));
	assert_int_equal(faults[policy_find_port(p, m, 1)].loss_ppm, 10000);
	/* A second one finds the address taken. */
	json_object_set_new(web, "machine", json_string("other"));
	int c = identity_add(p, faults, "c", web, &err);
	assert_true(c >= 0);
	assert_false(net_addr_is_equal(&p->ports[policy_find_port(p, c, 0)].v4, &p->ports[dmz].v4));
	json_decref(web);
	lab_free(from);
	lab_free(to);
}

static void test_a_network_that_is_not_there(void **state)
{
	struct lab *from = parse(file),
		   *to = parse("name: small\nnetworks: {app: {subnet: 10.2.0.0/24}}\n"
			       "machines: {db: {kernel: k, networks: [app]}}\n");
	json_t *web = identity_of(from->policy, WEB, NULL, NULL);

	assert_int_equal(identity_add(to->policy, faults, "web", web, &err), -ENOENT);
	assert_non_null(strstr(err.text, "dmz"));
	json_decref(web);
	lab_free(from);
	lab_free(to);
}

/* Each member of the record, and of what is in it: missing, or of another kind. */
static void refuse_damaged(json_t *record, json_t *at)
{
	char keys[16][32];
	const char *key;
	unsigned n = 0;
	json_t *value;

	json_object_foreach(at, key, value) snprintf(keys[n++], sizeof(keys[0]), "%s", key);
	for (unsigned i = 0; i < n; i++) {
		const char *name = keys[i];
		json_t *kept = json_incref(json_object_get(at, name));
		bool may_be_anything = strcmp(name, "subnet6") == 0;
		json_object_set_new(at, name, json_integer(7));
		assert_int_equal(identity_check(record, &err), may_be_anything ? 0 : -EINVAL);
		json_object_del(at, name);
		assert_int_equal(identity_check(record, &err),
				 may_be_anything || strcmp(name, "names") == 0 ? 0 : -EINVAL);
		json_object_set_new(at, name, kept);
		assert_int_equal(identity_check(record, &err), 0);
	}
}

static json_t *first_card(json_t *record)
{
	return json_array_get(json_object_get(record, "cards"), 0);
}

static void test_damaged_records(void **state)
{
	struct lab *l = parse(file);
	json_t *web = identity_of(l->policy, WEB, l->faults, NULL), *o;
	size_t i;

	refuse_damaged(web, web);
	json_array_foreach(json_object_get(web, "cards"), i, o) refuse_damaged(web, o);
	json_array_foreach(json_object_get(web, "rules"), i, o) refuse_damaged(web, o);
	assert_int_equal(identity_check(NULL, &err), -EINVAL);
	/* A card that is told twice is not two, and does not stand for another one. */
	json_t *twice = json_deep_copy(web), *cards = json_object_get(twice, "cards");
	json_array_set_new(cards, 1, json_deep_copy(first_card(twice)));
	assert_int_equal(identity_check(twice, &err), -EINVAL);
	json_object_set_new(first_card(twice), "network", json_string("DMZ"));
	assert_int_equal(identity_check(twice, &err), -EINVAL);
	json_decref(twice);
	struct identity_card c;
	assert_true(identity_card(web, 0, &c));
	assert_string_equal(c.address, "10.1.0.50/24");
	assert_string_equal(c.gateway, "10.1.0.1");
	assert_true(identity_card(web, 1, &c));
	assert_string_equal(c.gateway, "");
	assert_false(identity_card(web, 2, &c));
	json_decref(web);
	lab_free(l);
}

/* ---- from another host ---- */

static const char other_host[] = "networks:\n"
				 "  dmz: {subnet: 10.1.0.0/24, uplink: nat}\n"
				 "  app: {subnet: 10.2.0.0/24}\n"
				 "machines:\n"
				 "  db: {kernel: k, networks: [{app: {address: 10.2.0.77}}]}\n"
				 "  ops: {kernel: k, networks: [{dmz: {address: 10.1.0.77}}]}\n";

static void test_a_machine_moves(void **state)
{
	for (unsigned has_rules = 0; has_rules < 2; has_rules++) {
		struct lab *from = parse(file), *to = parse(other_host);
		struct policy *p = to->policy;
		json_t *web = identity_of(from->policy, WEB, from->faults, NULL);
		json_object_set_new(first_card(web), "may_spoof", json_true());
		memset(faults, 0, sizeof(faults));
		int m = identity_move(p, faults, "w", web, has_rules, &err);
		assert_true(m >= 0);
		/* Under another name, too, it has what its guest knows. */
		for (int network = 0; network < 2; network++) {
			const struct policy_port *old = &from->policy->ports[policy_find_port(
							 from->policy, WEB, network)],
						 *new = &p->ports[policy_find_port(p, m, network)];
			assert_memory_equal(old->mac, new->mac, 6);
			assert_true(net_addr_is_equal(&old->v4, &new->v4));
			assert_true(net_addr_is_equal(&old->v6, &new->v6));
			assert_true(net_addr_is_equal(&old->ll, &new->ll));
			assert_int_equal(old->is_default, new->is_default);
			assert_false(new->may_spoof);
		}
		assert_int_equal(faults[policy_find_port(p, m, 1)].loss_ppm, 10000);
		/* What denies it something always comes along, what allows it something if somebody says so. */
		int dmz = policy_find_port(p, m, 0), db = policy_find_port(p, 0, 1),
		    ops = policy_find_port(p, 1, 0);
		assert_false(is_allowed(p, ops, dmz, IP_TCP, 22));
		assert_true(is_allowed(p, ops, dmz, IP_TCP, 80));
		assert_int_equal(is_allowed(p, dmz, db, IP_TCP, 5432), has_rules);
		assert_int_equal(is_allowed(p, dmz, POLICY_OUTSIDE, IP_TCP, 443), has_rules);
		assert_false(is_allowed(p, ops, POLICY_OUTSIDE, IP_TCP, 443));
		assert_int_equal(identity_is_same(p, (unsigned)m, web, &err), 0);
		assert_int_equal(identity_is_same(p, 0, web, &err), -EEXIST);
		json_decref(web);
		lab_free(from);
		lab_free(to);
	}
}

/* The record of web with one thing changed. */
static void assert_refused(const char *key, const char *value, int r)
{
	struct lab *from = parse(file), *to = parse(other_host);
	json_t *web = identity_of(from->policy, WEB, NULL, NULL);

	json_object_set_new(first_card(web), key, json_string(value));
	assert_int_equal(identity_move(to->policy, faults, "w", web, true, &err), r);
	json_decref(web);
	lab_free(from);
	lab_free(to);
}

static void test_a_machine_that_has_no_place(void **state)
{
	struct lab *to = parse(other_host);
	const uint8_t *m = to->policy->ports[1].mac, *g = to->policy->networks[1].gateway_mac;
	char ops[18], gateway[18];

	snprintf(ops, sizeof(ops), "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
	snprintf(gateway, sizeof(gateway), "%02x:%02x:%02x:%02x:%02x:%02x", g[0], g[1], g[2], g[3],
		 g[4], g[5]);
	assert_refused("network", "far", -ENOENT);
	assert_refused("subnet", "10.3.0.0/24", -EEXIST);
	assert_refused("subnet6", "fd00:1::/64", -EEXIST);
	assert_refused("address", "10.1.0.77", -EEXIST);
	assert_refused("address", "10.1.0.1", -EEXIST); /* the gateway's */
	assert_refused("address", "10.9.0.1", -EINVAL);
	assert_refused("mac", ops, -EEXIST);
	assert_refused("mac", gateway, -EEXIST);
	assert_refused("mac", "00:00:00:00:00:00", -EINVAL);
	assert_refused("mac", "01:00:5e:00:00:01", -EINVAL);
	assert_refused("mac", "::::::::::::::::0", -EINVAL);
	/* Cut off it stays cut off. */
	struct lab *from = parse(file);
	from->policy->machines[WEB].is_quarantined = true;
	json_t *web = identity_of(from->policy, WEB, NULL, NULL);
	int w = identity_move(to->policy, faults, "web", web, true, &err);
	assert_true(w >= 0 && to->policy->machines[w].is_quarantined);
	assert_int_equal(identity_move(to->policy, faults, "web", web, true, &err), -EEXIST);
	json_decref(web);
	lab_free(from);
	lab_free(to);
}

/* Its place is kept here: what it is denied comes along all the same. */
static void test_a_machine_comes_to_its_place(void **state)
{
	struct lab *from = parse(file), *to = parse(other_host);
	struct policy *p = to->policy;
	json_t *web = identity_of(from->policy, WEB, from->faults, NULL);
	int m = identity_move(p, faults, "web", web, false, &err);

	assert_true(m >= 0);
	int dmz = policy_find_port(p, m, 0), db = policy_find_port(p, 0, 1),
	    ops = policy_find_port(p, 1, 0);
	unsigned rules = p->nrules;
	assert_int_equal(identity_restrict(p, (unsigned)m, web, &err), 0);
	assert_int_equal(p->nrules, rules); /* it has them */
	assert_false(p->machines[m].is_quarantined);
	json_array_append_new(json_object_get(web, "rules"),
			      json_pack("{s:s, s:s, s:s}", "action", "deny", "rule",
					"dmz.ops -> dmz.web", "what", "tcp/80"));
	json_object_set_new(web, "quarantine", json_true());
	assert_true(is_allowed(p, ops, dmz, IP_TCP, 80));
	assert_int_equal(identity_restrict(p, (unsigned)m, web, &err), 0);
	assert_true(p->machines[m].is_quarantined);
	p->machines[m].is_quarantined = false;
	assert_false(is_allowed(p, ops, dmz, IP_TCP, 80));
	assert_false(is_allowed(p, dmz, db, IP_TCP, 5432)); /* nothing is allowed by it */
	/* What is denied to many here is denied to it, and not once more. */
	struct policy_rule wide;
	assert_int_equal(policy_parse_rule(p, "dmz.* -> dmz.*", "tcp/81", &wide, &err), 0);
	assert_int_equal(policy_add_rule(p, 0, &wide, &err), 0);
	rules = p->nrules;
	json_array_append_new(json_object_get(web, "rules"),
			      json_pack("{s:s, s:s, s:s}", "action", "deny", "rule",
					"dmz.* -> dmz.*", "what", "tcp/81"));
	assert_int_equal(identity_restrict(p, (unsigned)m, web, &err), 0);
	assert_int_equal(p->nrules, rules);
	/* That it is free where it comes from frees it of nothing here. */
	json_object_set_new(web, "quarantine", json_false());
	p->machines[m].is_quarantined = true;
	assert_int_equal(identity_restrict(p, (unsigned)m, web, &err), 0);
	assert_true(p->machines[m].is_quarantined);
	json_decref(web);
	lab_free(from);
	lab_free(to);
}

/* What denies it something is not lost because there is no room for it. */
static void test_a_lab_that_is_full(void **state)
{
	struct lab *from = parse(file), *to = parse(other_host);
	struct policy *p = to->policy;
	json_t *web = identity_of(from->policy, WEB, from->faults, NULL);
	struct policy_rule r;
	char port[16];

	for (unsigned i = 1; p->nrules < POLICY_RULES_MAX; i++) {
		snprintf(port, sizeof(port), "tcp/%u", i);
		assert_int_equal(policy_parse_rule(p, "dmz.ops -> app.db", port, &r, &err), 0);
		assert_int_equal(policy_add_rule(p, p->nrules, &r, &err), 0);
	}
	assert_int_equal(identity_move(p, faults, "web", web, false, &err), -ENOSPC);
	assert_int_equal(identity_restrict(p, (unsigned)policy_find_machine(p, "web"), web, &err),
			 -ENOSPC);
	json_decref(web);
	lab_free(from);
	lab_free(to);
}

/* By a person's word: a card in each network, and no right that others there don't have. */
static void test_a_machine_that_is_admitted(void **state)
{
	struct lab *l = parse(file);
	struct policy *p = l->policy;
	unsigned rules = p->nrules;
	json_t *both = json_pack("[s, s]", "app", "dmz"), *none = json_array(),
	       *bad = json_pack("[s]", "far");
	int m = identity_admit(p, "new", both, &err);

	assert_true(m >= 0 && p->machines[m].is_copy);
	assert_int_equal(p->nrules, rules);
	int app = policy_find_port(p, m, 1), dmz = policy_find_port(p, m, 0),
	    db = policy_find_port(p, DB, 1);
	assert_true(app >= 0 && dmz >= 0);
	assert_true(p->ports[dmz].is_default && !p->ports[app].is_default);
	assert_true(is_allowed(p, app, db, IP_TCP, 1));
	assert_false(is_allowed(p, dmz, db, IP_TCP, 5432));
	assert_int_equal(identity_admit(p, "new", both, &err), -EEXIST);
	assert_int_equal(identity_admit(p, "x1", none, &err), -EINVAL);
	assert_int_equal(identity_admit(p, "x2", NULL, &err), -EINVAL);
	assert_int_equal(identity_admit(p, "x3", bad, &err), -ENOENT);
	json_decref(both);
	json_decref(none);
	json_decref(bad);
	lab_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_copy_has_the_same_rights),
		cmocka_unit_test(test_a_copy_of_the_cut_off_is_cut_off),
		cmocka_unit_test(test_the_forgotten_is_gone),
		cmocka_unit_test(test_places_are_used_again),
		cmocka_unit_test(test_a_record_leads_to_a_copy),
		cmocka_unit_test(test_a_record_is_enough),
		cmocka_unit_test(test_a_network_that_is_not_there),
		cmocka_unit_test(test_damaged_records),
		cmocka_unit_test(test_a_machine_moves),
		cmocka_unit_test(test_a_machine_comes_to_its_place),
		cmocka_unit_test(test_a_lab_that_is_full),
		cmocka_unit_test(test_a_machine_that_has_no_place),
		cmocka_unit_test(test_a_machine_that_is_admitted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
