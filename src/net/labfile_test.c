/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "net/plan.h"

static struct error err;

static const char demo[] =
	"# a lab\n"
	"networks:\n"
	"  dmz:  {subnet: 10.1.0.0/24, uplink: nat}\n"
	"  app:  {subnet: 10.2.0.0/24, subnet6: 'fd00:2::/64'}\n"
	"  mal:  {subnet: 10.66.0.0/24, vlan: 66, faults: {latency: 20ms}}\n"
	"machines:\n"
	"  web: {image: debian, networks: [dmz, app], forward: [\"8080:80\"]}\n"
	"  db:  {image: debian, networks: [{app: {address: 10.2.0.77}}], memory: 512M}\n"
	"  sus: {kernel: k, initrd: i, networks: [{mal: {may_spoof: true, faults: {loss: 5%}}}]}\n"
	"allow:\n"
	"  - dmz.web -> app.db : tcp/5432\n"
	"  - dmz.* -> internet : {names: [updates.example.org], ports: [80, 443]}\n"
	"  - app.db -> dmz.web\n"
	"deny:\n"
	"  - app.db -> dmz.web : {proto: udp, ports: [53, 60-70]}\n";

static int parse(struct lab **l, const char *text)
{
	return lab_parse(l, text, strlen(text), "lab.yaml", "demo", &err);
}

static void test_demo(void **state)
{
	struct lab *l;
	char text[128], addr[NET_ADDR_TEXT];

	if (parse(&l, demo) != 0)
		fail_msg("%s", err.text);
	const struct policy *p = l->policy;
	assert_string_equal(p->name, "demo");
	assert_int_equal(p->nnetworks, 3);
	assert_true(p->networks[0].has_uplink && !p->networks[1].has_uplink);
	assert_string_equal(net_prefix_format(&p->networks[1].v6, addr), "fd00:2::/64");
	assert_int_equal(p->networks[2].vlan, 66);
	assert_int_equal(p->nports, 4);
	assert_string_equal(net_addr_format(&p->ports[2].v4, addr), "10.2.0.77");
	assert_true(p->ports[3].may_spoof);
	assert_string_equal(faults_format(&l->faults[3], text, sizeof(text)),
			    "latency=20ms loss=5%");
	assert_string_equal(l->machines[1].memory, "512M");
	assert_string_equal(l->machines[2].initrd, "i");
	assert_int_equal(p->nforwards, 1);
	assert_int_equal(p->forwards[0].host_port, 8080);
	/* Denials first. */
	assert_int_equal(p->nrules, 4);
	assert_false(p->rules[0].is_allow);
	assert_string_equal(policy_format_rule(p, &p->rules[0], text, sizeof(text)),
			    "app.db -> dmz.web : udp/53,60-70");
	assert_string_equal(policy_format_rule(p, &p->rules[2], text, sizeof(text)),
			    "dmz.* -> internet : tcp/80,443 @updates.example.org");
	lab_free(l);
}

/* What goes on to viv run as it stands: one text, or several. */
static void test_texts(void **state)
{
	static const char text[] =
		"networks: {n: {subnet: 10.1.0.0/24}}\n"
		"machines:\n"
		"  one: {image: i, networks: [n], share: 'src:tag,ro', user-data: u.yaml}\n"
		"  two: {image: i, networks: [n], share: [a, b], cloud-init: ['user=x', "
		"'hostname=y']}\n";
	struct lab *l;

	if (parse(&l, text) != 0)
		fail_msg("%s", err.text);
	const struct lab_machine *one = &l->machines[0], *two = &l->machines[1];
	assert_int_equal(one->share.n, 1);
	assert_string_equal(one->share.text[0], "src:tag,ro");
	assert_string_equal(one->user_data, "u.yaml");
	assert_int_equal(one->cloud_init.n, 0);
	assert_int_equal(two->share.n, 2);
	assert_string_equal(two->share.text[1], "b");
	assert_int_equal(two->cloud_init.n, 2);
	assert_string_equal(two->cloud_init.text[0], "user=x");
	lab_free(l);
}

/* One card in several networks: each a port of its own, with the card's MAC and a tag. */
static void test_trunk(void **state)
{
	static const char text[] = "networks:\n"
				   "  a: {subnet: 10.1.0.0/24}\n"
				   "  b: {subnet: 10.2.0.0/24, vlan: 20}\n"
				   "  c: {subnet: 10.3.0.0/24, vlan: 30, faults: {loss: 1%}}\n"
				   "machines:\n"
				   "  fw:  {kernel: k, networks: [a, trunk: {b: 21, c: {address: "
				   "10.3.0.9, may_spoof: true}}]}\n"
				   "  tap: {kernel: k, networks: [{trunk: [b, c]}]}\n"
				   "  pc:  {kernel: k, networks: [b]}\n";
	static const struct {
		unsigned card;
		int vlan;
		bool is_trunk;
	} ports[] = { { 0, -1, false }, { 1, 21, true },  { 1, 30, false },
		      { 3, 20, true },	{ 3, 30, false }, { 5, 20, false } };
	char addr[NET_ADDR_TEXT];
	struct lab *l;

	if (parse(&l, text) != 0)
		fail_msg("%s", err.text);
	const struct policy *p = l->policy;
	assert_int_equal(p->nports, ARRAY_SIZE(ports));
	for (unsigned i = 0; i < ARRAY_SIZE(ports); i++) {
		assert_int_equal(p->ports[i].card, ports[i].card);
		assert_int_equal(p->ports[i].vlan, ports[i].vlan);
		assert_int_equal(p->ports[i].is_trunk, ports[i].is_trunk);
	}
	assert_memory_equal(p->ports[1].mac, p->ports[2].mac, 6);
	assert_memory_not_equal(p->ports[0].mac, p->ports[1].mac, 6);
	assert_memory_not_equal(p->ports[3].mac, p->ports[1].mac, 6);
	assert_memory_equal(p->ports[1].v6.b + 8, p->ports[2].v6.b + 8, 8);
	assert_memory_not_equal(p->ports[1].v6.b, p->ports[2].v6.b, 8);
	assert_string_equal(net_addr_format(&p->ports[2].v4, addr), "10.3.0.9");
	assert_true(p->ports[2].may_spoof && !p->ports[1].may_spoof);
	assert_int_equal(l->faults[2].loss_ppm, 10000);
	lab_free(l);
}

static void test_interfaces(void **state)
{
	struct lab *l;

	if (parse(&l,
		  "networks:\n  a: {subnet: 10.1.0.0/24, uplink: {tap: tap0}}\n  b: {subnet: "
		  "10.2.0.0/24, uplink: {bridge: br0}}\n"
		  "  c: {subnet: 10.3.0.0/24}\nmachines:\n  m: {image: i, networks: [a, b, c]}\n"
		  "allow:\n  - a.m -> internet : tcp/80\n") != 0)
		fail_msg("%s", err.text);
	assert_true(l->policy->networks[0].has_uplink && l->policy->networks[0].is_tap &&
		    !l->taps[0].is_bridge);
	assert_string_equal(l->taps[0].name, "tap0");
	assert_true(l->policy->networks[1].is_tap && l->taps[1].is_bridge);
	assert_string_equal(l->taps[1].name, "br0");
	assert_false(l->policy->networks[2].is_tap || l->policy->networks[2].has_uplink);
	lab_free(l);
}

/* Each file is the demo with one line exchanged for another. */
static void test_refused(void **state)
{
	static const struct {
		const char *old, *new, *says;
	} bad[] = {
		{ "subnet: 10.1.0.0/24", "subnet: 10.1.0.1/24", "lab.yaml:3:18: " },
		{ "subnet: 10.1.0.0/24", "subnet: 10.2.0.0/16",
		  "lab.yaml:4:3: the subnet 10.2.0.0/24 overlaps" },
		{ "subnet: 10.1.0.0/24", "subnett: 10.1.0.0/24",
		  "lab.yaml:3:10: unknown key \"subnett\"; did you mean \"subnet\"?" },
		{ "uplink: nat", "uplink: bridge", "lab.yaml:3:39: there is no uplink" },
		{ "subnet: 10.1.0.0/24, ", "", "lab.yaml:3:3: network \"dmz\" has no subnet" },
		{ "uplink: nat", "uplink: {tap: t0, bridge: b0}",
		  "lab.yaml:3:57: a network has one uplink" },
		{ "uplink: nat", "uplink: {}", "lab.yaml:3:39: an uplink is nat" },
		{ "uplink: nat", "uplink: {tap: a/b}", "lab.yaml:3:45: \"a/b\" names no interface" },
		{ "uplink: nat", "uplink: {tap: sixteen-letters-}", "names no interface" },
		{ "uplink: nat", "uplink: {tpa: t0}", "unknown key \"tpa\"; did you mean \"tap\"?" },
		{ "uplink: nat", "uplink: {tap: t0}", "has an uplink by NAT" },
		{ "vlan: 66", "vlan: 4095", "a VLAN" },
		{ "  app:  {", "  dmz:  {", "lab.yaml:4:3: the key \"dmz\" is there twice" },
		{ "networks: [dmz, app]", "networks: [dmz, apq]",
		  "lab.yaml:7:40: there is no network \"apq\"; did you mean \"app\"?" },
		{ "networks: [dmz, app]", "networks: [dmz, dmz]", "is in network \"dmz\" twice" },
		{ "networks: [dmz, app]", "networks: []", "is in no network" },
		{ "networks: [dmz, app]", "networks: [dmz, {trunk: [app]}]",
		  "lab.yaml:7:49: network \"app\" has no VLAN" },
		{ "networks: [dmz, app]", "networks: [dmz, {trunk: {}}]",
		  "lab.yaml:7:41: a trunk carries networks" },
		{ "networks: [dmz, app]", "networks: [dmz, {trunk: app}]", "is a list" },
		{ "networks: [dmz, app]", "networks: [dmz, {trunk: [mal, app]}]",
		  "network \"app\" has no VLAN" },
		{ "networks: [dmz, app]", "networks: [{trunk: {dmz: 7, app: 7}}]",
		  "lab.yaml:7:52: a trunk has VLAN 7 for network \"dmz\" already" },
		{ "networks: [dmz, app]", "networks: [{trunk: {dmz: 7, app: 4095}}]",
		  "lab.yaml:7:57: a VLAN has a number from 1 to 4094" },
		{ "networks: [dmz, app]", "networks: [{trunk: {dmz: 7, apq: 8}}]",
		  "there is no network \"apq\"" },
		{ "networks: [dmz, app]", "networks: [dmz, {trunk: {dmz: 7}}]",
		  "is in network \"dmz\" twice" },
		{ "networks: [dmz, app]", "networks: [{trunk: {dmz: {vlan: 7, loss: 1}}}]",
		  "unknown key \"loss\"" },
		{ "networks: [dmz, app]", "networks: [dmz, trunk]", "there is no network \"trunk\"" },
		{ "  app:  {", "  trunk:  {", "lab.yaml:4:3: a network can't be called \"trunk\"" },
		{ "networks: [dmz, app]", "networks: dmz", "is a list" },
		{ "image: debian, networks: [dmz", "networks: [dmz", "needs an image or a kernel" },
		{ "image: debian, networks: [dmz", "image: --net=nat, networks: [dmz",
		  "lab.yaml:7:16: image can't begin with -" },
		{ "kernel: k, initrd", "image: k, initrd", "an initrd goes with a kernel" },
		{ "10.2.0.77", "10.3.0.77", "is no address for a machine in network" },
		{ "memory: 512M", "memory: lots", "is no size" },
		{ "memory: 512M", "share: {a: b}", "is a list" },
		{ "memory: 512M", "share: ['']", "share is empty" },
		{ "memory: 512M", "share: [a, b, c, d, e, f, g, h, i]",
		  "lab.yaml:8:97: share has at most 8 entries" },
		{ "memory: 512M", "user-data: [a]", "user-data is a text" },
		{ "\"8080:80\"", "\"8080\"", "is no port forward" },
		{ "\"8080:80\"", "\"8080:80\", \"8080:81\"", "is forwarded twice" },
		{ "memory: 512M", "forward: [\"1:1\"]", "none of its networks has an uplink by NAT" },
		{ "dmz.web -> app.db : tcp/5432", "dmz.web -> app.bd : tcp/5432",
		  "lab.yaml:11:5: there is no machine \"bd\"" },
		{ "dmz.web -> app.db : tcp/5432", "dmz.web -> app.db : tcp/0", "no port" },
		{ "dmz.web -> app.db : tcp/5432", "dmz.web", "FROM -> TO" },
		{ "dmz.web -> app.db : tcp/5432", "a: b\n    c: d", "one rule is one entry" },
		{ "dmz.web -> app.db : tcp/5432", "mal.sus -> internet",
		  "has an uplink, so nothing would pass" },
		{ "app.db -> dmz.web\n", "app.db -> dmz.web : {proto: udp, ports: [53, 60-70]}\n",
		  "both allowed and denied" },
		{ "updates.example.org", "http://example.org", "is no domain name" },
		{ "updates.example.org", "", "lab.yaml:12:33: names is an empty list" },
		{ "ports: [80, 443]", "ports: []", "ports is an empty list" },
		{ "{names: [updates.example.org], ", "{name: [x], ",
		  "unknown key \"name\"; did you mean \"names\"?" },
		{ "# a lab", "x: 1", "lab.yaml:1:1: unknown key \"x\"" },
		{ "# a lab", "name: a/b", "is no name for a lab" },
		{ "# a lab", "a: &x [*x]", "lab.yaml:1:4: anchors and aliases are refused" },
		{ "  app:  {", "  app:  [[[[[[[[[[[[[[[[[[[[", "levels" },
		{ "machines:", "machines", "lab.yaml:" },
		{ "loss: 5%", "loss: 500%", "loss can't be 500%" },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		char text[4096];
		struct lab *l = NULL;
		const char *at = strstr(demo, bad[i].old);
		assert_non_null(at);
		snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - demo), demo, bad[i].new,
			 at + strlen(bad[i].old));
		if (parse(&l, text) != -EINVAL)
			fail_msg("taken: %s", bad[i].new);
		if (!strstr(err.text, bad[i].says))
			fail_msg("%s: %s", bad[i].says, err.text);
		assert_null(l);
	}
	struct lab *l;
	assert_int_equal(parse(&l, ""), -EINVAL);
	assert_int_equal(parse(&l, "---\na: b\n---\nc: d\n"), -EINVAL);
	assert_int_equal(parse(&l, "[1, 2]"), -EINVAL);
	assert_int_equal(parse(&l, "networks: {a: {subnet: 10.0.0.0/24}}"), -EINVAL);
}

static void test_plan(void **state)
{
	struct bytes text = { 0 };
	struct lab *l;

	assert_int_equal(parse(&l, demo), 0);
	plan_text(l->policy, &text);
	bytes_put_u8(&text, 0);
	static const char *const lines[] = {
		"  dmz.web          -> app.db           tcp/5432\n",
		"  dmz.web          -> internet         tcp/80,443 only updates.example.org\n",
		"  app.web          -> app.db           all\n",
		"  app.db           -> app.web          all\n",
		"  app.db           -> dmz.web          tcp udp/0-52,54-59,71-65535 icmp other\n",
		"  host 127.0.0.1:8080 -> dmz.web tcp/80\n",
	};
	for (unsigned i = 0; i < ARRAY_SIZE(lines); i++)
		if (!strstr((char *)text.data, lines[i]))
			fail_msg("%s is not in\n%s", lines[i], (char *)text.data);
	assert_null(strstr((char *)text.data, "mal.sus          ->"));
	assert_null(strstr((char *)text.data, "-> mal.sus"));
	bytes_free(&text);
	plan_svg(l->policy, &text);
	bytes_put_u8(&text, 0);
	assert_non_null(strstr((char *)text.data, "tcp/5432</text>"));
	assert_non_null(
		strstr((char *)text.data, "host 127.0.0.1:8080 leads to dmz.web tcp/80</text>"));
	assert_non_null(strstr((char *)text.data, "</svg>"));
	bytes_free(&text);
	json_t *json = plan_json(l->policy);
	assert_non_null(json);
	assert_int_equal(json_array_size(json_object_get(json, "cards")), 4);
	assert_int_equal(json_array_size(json_object_get(json, "reach")), 4 * 4 - 2);
	json_decref(json);
	lab_free(l);
}

static void test_order(void **state)
{
	static const char head[] = "networks: {n: {subnet: 10.1.0.0/24}}\nmachines:\n";
	struct lab *l;
	char text[512];

	snprintf(text, sizeof(text),
		 "%s  a: {kernel: k, networks: [n], after: [b, c]}\n"
		 "  b: {kernel: k, networks: [n]}\n  c: {kernel: k, networks: [n], after: [b]}\n",
		 head);
	if (parse(&l, text) != 0)
		fail_msg("%s", err.text);
	assert_true(l->machines[0].after[1] && l->machines[0].after[2] && l->machines[2].after[1]);
	assert_false(l->machines[1].after[0] || l->machines[2].after[0]);
	lab_free(l);
	snprintf(text, sizeof(text),
		 "%s  a: {kernel: k, networks: [n], after: [b]}\n"
		 "  b: {kernel: k, networks: [n], after: [a]}\n",
		 head);
	assert_int_equal(parse(&l, text), -EINVAL);
	assert_string_equal(err.text, "lab.yaml:4:41: machine \"b\" would wait for itself");
	snprintf(text, sizeof(text), "%s  a: {kernel: k, networks: [n], after: [a]}\n", head);
	assert_int_equal(parse(&l, text), -EINVAL);
	assert_non_null(strstr(err.text, "wait for itself"));
	snprintf(text, sizeof(text), "%s  abc: {kernel: k, networks: [n], after: [abd]}\n", head);
	assert_int_equal(parse(&l, text), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_demo),	cmocka_unit_test(test_texts),
		cmocka_unit_test(test_trunk),	cmocka_unit_test(test_interfaces),
		cmocka_unit_test(test_refused), cmocka_unit_test(test_order),
		cmocka_unit_test(test_plan),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
