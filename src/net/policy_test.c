/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "net/policy.h"
#include "net/testing.h"

static struct error err;

static int add_network(struct policy *p, const char *name, const char *v4, bool has_uplink)
{
	struct net_prefix prefix;

	assert_int_equal(net_prefix_parse(v4, &prefix), 0);
	return policy_add_network(p, name, &prefix, NULL, has_uplink, -1, &err);
}

static int add_rule(struct policy *p, bool is_allow, const char *ends, const char *what)
{
	struct policy_rule r;
	int ret = policy_parse_rule(p, ends, what, &r, &err);

	r.is_allow = is_allow;
	return ret < 0 ? ret : policy_add_rule(p, p->nrules, &r, &err);
}

enum { WEB_DMZ, WEB_APP, DB, SUS, EVIL };

/* The lab of the design page. */
static struct policy *make(void)
{
	struct policy *p = policy_create("demo");

	assert_non_null(p);
	assert_int_equal(add_network(p, "dmz", "10.1.0.0/24", true), 0);
	assert_int_equal(add_network(p, "app", "10.2.0.0/24", false), 1);
	assert_int_equal(add_network(p, "mal", "10.66.0.0/24", false), 2);
	assert_int_equal(policy_add_machine(p, "web", &err), 0);
	assert_int_equal(policy_add_machine(p, "db", &err), 1);
	assert_int_equal(policy_add_machine(p, "sus", &err), 2);
	assert_int_equal(policy_add_machine(p, "evil", &err), 3);
	assert_int_equal(policy_add_port(p, 0, 0, NULL, &err), WEB_DMZ);
	assert_int_equal(policy_add_port(p, 0, 1, NULL, &err), WEB_APP);
	assert_int_equal(policy_add_port(p, 1, 1, NULL, &err), DB);
	assert_int_equal(policy_add_port(p, 2, 2, NULL, &err), SUS);
	assert_int_equal(policy_add_port(p, 3, 2, NULL, &err), EVIL);
	return p;
}

static struct policy_verdict decide(const struct policy *p, int from, int to, uint8_t proto,
				    uint16_t dport, const char *dst)
{
	struct policy_flow f = { .from = from, .to = to, .proto = proto, .dport = dport };

	f.has_ports = proto == IP_TCP || proto == IP_UDP;
	if (dst)
		f.dst = frame_addr(dst);
	return policy_decide(p, &f, NULL);
}

static bool allows(const struct policy *p, int from, int to, uint8_t proto, uint16_t dport)
{
	return decide(p, from, to, proto, dport, NULL).is_allowed;
}

static void test_addresses(void **state)
{
	struct policy *p = make();
	char text[NET_ADDR_TEXT];
	struct net_addr a = frame_addr("10.1.0.99");
	struct net_prefix v6;

	assert_string_equal(net_addr_format(&p->ports[WEB_DMZ].v4, text), "10.1.0.10");
	assert_string_equal(net_addr_format(&p->ports[EVIL].v4, text), "10.66.0.11");
	assert_string_equal(net_addr_format(&p->networks[0].gateway_v4, text), "10.1.0.1");
	assert_int_equal(p->networks[0].v6.addr.b[0], 0xfd);
	assert_true(net_prefix_has(&p->networks[1].v6, &p->ports[DB].v6));
	assert_int_equal(policy_port_by_addr(p, &p->ports[DB].v6), DB);
	assert_int_equal(policy_port_by_addr(p, &a), -1);
	assert_true(p->ports[WEB_DMZ].is_default);
	assert_false(p->ports[WEB_APP].is_default);
	assert_true(p->ports[DB].is_default);
	assert_int_equal(policy_add_port(p, 1, 0, &a, &err), 5);
	assert_int_equal(policy_add_port(p, 2, 0, &a, &err), -EEXIST);
	a = frame_addr("10.1.0.255");
	assert_int_equal(policy_add_port(p, 2, 0, &a, &err), -EINVAL);
	a = frame_addr("10.1.0.1"); /* the gateway's */
	assert_int_equal(policy_add_port(p, 2, 0, &a, &err), -EEXIST);
	assert_int_equal(policy_add_port(p, 1, 1, NULL, &err), -EEXIST);
	/* The same names give the same addresses. */
	struct policy *q = make();
	assert_memory_equal(p->ports[DB].mac, q->ports[DB].mac, 6);
	assert_int_equal(net_prefix_parse("fe80::/64", &v6), 0);
	struct net_prefix v4;
	net_prefix_parse("10.3.0.0/24", &v4);
	assert_int_equal(policy_add_network(p, "x", &v4, &v6, false, -1, &err), -EINVAL);
	policy_free(q);
	policy_free(p);
}

static void test_bad_networks(void **state)
{
	struct policy *p = make();

	assert_int_equal(add_network(p, "dmz", "10.9.0.0/24", false), -EEXIST);
	assert_int_equal(add_network(p, "wide", "10.0.0.0/8", false), -EINVAL);
	assert_non_null(strstr(err.text, "overlaps"));
	assert_int_equal(add_network(p, "tiny", "10.9.0.0/30", false), -EINVAL);
	assert_int_equal(add_network(p, "lo", "127.0.0.0/24", false), -EINVAL);
	assert_int_equal(add_network(p, "internet", "10.9.0.0/24", false), -EINVAL);
	assert_int_equal(add_network(p, "a.b", "10.9.0.0/24", false), -EINVAL);
	/* A subnet of /29: .3 to .6 are for machines. */
	int n = add_network(p, "tiny", "10.9.0.0/29", false);
	for (int i = 0; i < 4; i++)
		assert_true(policy_add_port(p, (unsigned)i, (unsigned)n, NULL, &err) >= 0);
	int m = policy_add_machine(p, "late", &err);
	assert_int_equal(policy_add_port(p, (unsigned)m, (unsigned)n, NULL, &err), -ENOSPC);
	policy_free(p);
}

static void test_rule_texts(void **state)
{
	struct policy *p = make();
	struct policy_rule r;
	char text[256];

	assert_int_equal(policy_parse_rule(p, "dmz.web->app.db", "tcp/80,443,8000-8080", &r, &err), 0);
	assert_string_equal(policy_format_rule(p, &r, text, sizeof(text)),
			    "dmz.web -> app.db : tcp/80,443,8000-8080");
	static const struct {
		const char *ends, *what, *says;
	} bad[] = {
		{ "dmz.web", NULL, "FROM -> TO" },
		{ "dmz.wep -> app.db", NULL, "did you mean \"web\"" },
		{ "dmx.web -> app.db", NULL, "did you mean \"dmz\"" },
		{ "dmz.db -> app.db", NULL, "is not in network" },
		{ "internet -> app.db", NULL, "forward" },
		{ "dmz.web -> app", NULL, "no end" },
		{ " -> app.db", NULL, "an end" },
		{ "dmz.web -> app.db", "tcp/0", "no port" },
		{ "dmz.web -> app.db", "tcp/70000", "no port" },
		{ "dmz.web -> app.db", "tcp/9-8", "no port" },
		{ "dmz.web -> app.db", "tcp/", "no port" },
		{ "dmz.web -> app.db", "icmp/8", "have ports" },
		{ "dmz.web -> app.db", "sctp", "no protocol" },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(policy_parse_rule(p, bad[i].ends, bad[i].what, &r, &err), -EINVAL);
		if (!strstr(err.text, bad[i].says))
			fail_msg("%s: %s", bad[i].says, err.text);
	}
	policy_free(p);
}

static void test_contradictions(void **state)
{
	struct policy *p = make();

	assert_int_equal(add_rule(p, true, "dmz.web -> app.db", "tcp/5432"), 0);
	assert_int_equal(add_rule(p, true, "dmz.web -> app.db", "tcp/5432"), -EEXIST);
	assert_int_equal(add_rule(p, false, "dmz.web -> app.db", "tcp/5432"), -EEXIST);
	assert_non_null(strstr(err.text, "both allowed and denied"));
	assert_int_equal(add_rule(p, true, "mal.* -> internet", NULL), -EINVAL);
	assert_int_equal(add_rule(p, true, "app.web -> internet", NULL), -EINVAL);
	assert_int_equal(add_rule(p, true, "*.web -> internet", NULL), 0);
	policy_free(p);
}

static void test_decisions(void **state)
{
	struct policy *p = make();

	/* Nobody reaches another segment; all reach their own. */
	for (int a = 0; a <= EVIL; a++)
		for (int b = 0; b <= EVIL; b++)
			assert_int_equal(allows(p, a, b, IP_TCP, 80),
					 p->ports[a].network == p->ports[b].network);
	assert_int_equal(add_rule(p, true, "dmz.web -> app.db", "tcp/5432"), 0);
	assert_true(allows(p, WEB_DMZ, DB, IP_TCP, 5432));
	assert_false(allows(p, WEB_DMZ, DB, IP_TCP, 5433));
	assert_false(allows(p, WEB_DMZ, DB, IP_UDP, 5432));
	assert_false(allows(p, DB, WEB_DMZ, IP_TCP, 5432));
	assert_false(allows(p, SUS, DB, IP_TCP, 5432));
	/* ICMP of both versions is one. */
	assert_int_equal(add_rule(p, true, "dmz.web -> app.db", "icmp"), 0);
	assert_true(allows(p, WEB_DMZ, DB, IP_ICMP, 0) && allows(p, WEB_DMZ, DB, IP_ICMP6, 0));
	/* The first rule decides, also within a network. */
	assert_int_equal(add_rule(p, false, "mal.sus -> mal.evil", NULL), 0);
	assert_int_equal(add_rule(p, true, "mal.* -> mal.*", "tcp/1"), 0);
	assert_false(allows(p, SUS, EVIL, IP_TCP, 1));
	assert_true(allows(p, EVIL, SUS, IP_TCP, 1));
	p->machines[1].is_quarantined = true;
	assert_false(allows(p, WEB_DMZ, DB, IP_TCP, 5432));
	assert_int_equal(decide(p, DB, WEB_APP, IP_TCP, 1, NULL).why, POLICY_QUARANTINE);
	policy_free(p);
}

static bool is_learnt(void *ctx, unsigned port, uint32_t rule, const struct net_addr *a)
{
	struct net_addr known = frame_addr("93.184.216.34");

	assert_int_equal(port, WEB_DMZ);
	return rule == *(uint32_t *)ctx && net_addr_is_equal(a, &known);
}

static void test_internet(void **state)
{
	struct policy *p = make();
	char names[2][POLICY_DOMAIN_MAX + 1] = { "updates.example.org", "*.example.net" };
	struct policy_rule r;
	uint32_t id = 1;
	struct policy_names learnt = { is_learnt, &id };

	assert_false(decide(p, WEB_DMZ, POLICY_OUTSIDE, IP_TCP, 80, "93.184.216.34").is_allowed);
	assert_int_equal(policy_parse_rule(p, "dmz.* -> internet", "tcp/80,443", &r, &err), 0);
	r.is_allow = true;
	r.names = names;
	r.nnames = 2;
	assert_int_equal(policy_add_rule(p, 0, &r, &err), 0);
	assert_true(decide(p, WEB_DMZ, POLICY_OUTSIDE, IP_TCP, 80, "93.184.216.34").is_allowed);
	assert_int_equal(decide(p, WEB_APP, POLICY_OUTSIDE, IP_TCP, 80, "93.184.216.34").why,
			 POLICY_NO_UPLINK);
	struct policy_flow f = { WEB_DMZ, POLICY_OUTSIDE, frame_addr("93.184.216.34"), IP_TCP, 443,
				 true };
	assert_true(policy_decide(p, &f, &learnt).is_allowed);
	f.dst = frame_addr("93.184.216.35");
	assert_false(policy_decide(p, &f, &learnt).is_allowed);
	f.dst = frame_addr("93.184.216.34");
	f.dport = 22;
	assert_false(policy_decide(p, &f, &learnt).is_allowed);
	/* What is no internet stays closed to a rule for all of it. */
	assert_int_equal(add_rule(p, true, "dmz.* -> internet", NULL), 0);
	static const char *const never[] = { "127.0.0.1",
					     "169.254.169.254",
					     "192.168.1.1",
					     "10.77.0.1",
					     "172.31.0.1",
					     "100.100.1.1",
					     "224.0.0.1",
					     "255.255.255.255",
					     "0.0.0.0",
					     "168.63.129.16",
					     "::1",
					     "fe80::1",
					     "fd00:ec2::254",
					     "ff02::1",
					     "64:ff9b::7f00:1",
					     "2002:7f00:1::",
					     "::ffff:127.0.0.1" };
	for (unsigned i = 0; i < ARRAY_SIZE(never); i++)
		assert_int_equal(decide(p, WEB_DMZ, POLICY_OUTSIDE, IP_TCP, 80, never[i]).why,
				 POLICY_BLOCKED);
	assert_true(decide(p, WEB_DMZ, POLICY_OUTSIDE, IP_UDP, 80, "2606:4700::1111").is_allowed);
	assert_true(decide(p, WEB_DMZ, POLICY_OUTSIDE, IP_UDP, 80, "8.8.8.8").is_allowed);
	struct net_prefix own;
	net_prefix_parse("8.8.0.0/16", &own);
	assert_int_equal(policy_block(p, &own), 0);
	assert_false(decide(p, WEB_DMZ, POLICY_OUTSIDE, IP_UDP, 80, "8.8.8.8").is_allowed);
	assert_int_equal(policy_block_host(p, &err), 0);
	policy_free(p);
}

static void test_names(void **state)
{
	struct policy *p = make();
	char names[2][POLICY_DOMAIN_MAX + 1] = { "updates.example.org", "*.example.net" };
	struct policy_rule r;

	assert_int_equal(policy_parse_rule(p, "dmz.* -> internet", "tcp", &r, &err), 0);
	r.is_allow = true;
	r.names = names;
	r.nnames = 2;
	assert_int_equal(policy_add_rule(p, 0, &r, &err), 0);
	assert_true(policy_may_ask(p, WEB_DMZ, "Updates.Example.org"));
	assert_true(policy_may_ask(p, WEB_DMZ, "a.b.example.net"));
	assert_false(policy_may_ask(p, WEB_DMZ, "example.net"));
	assert_false(policy_may_ask(p, WEB_DMZ, "badexample.net"));
	assert_false(policy_may_ask(p, WEB_DMZ, "x.updates.example.org"));
	assert_false(policy_may_ask(p, WEB_APP, "updates.example.org"));
	assert_true(policy_may_see(p, WEB_APP, DB) && !policy_may_see(p, WEB_DMZ, DB) &&
		    !policy_may_see(p, SUS, DB));
	static const char *const bad[] = { "",	   ".",	  "a..b", "-a.b", "a-.b",
					   "a.b-", "a b", "a.*",  "*.",	  "a.b." };
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(policy_check_domain(bad[i], &err), -EINVAL);
	assert_int_equal(policy_check_domain("*.a-b.example", &err), 0);
	/* A copy shares nothing. */
	struct policy *q = policy_copy(p);
	policy_free(p);
	assert_true(policy_may_ask(q, WEB_DMZ, "updates.example.org"));
	policy_free(q);
}

static void test_forwards(void **state)
{
	struct policy *p = make();
	struct policy_forward f = { .host_addr = frame_addr("127.0.0.1"),
				    .host_port = 8080,
				    .port = WEB_DMZ,
				    .guest_port = 80 };

	assert_false(allows(p, POLICY_OUTSIDE, WEB_DMZ, IP_TCP, 80));
	assert_int_equal(policy_add_forward(p, &f, &err), 0);
	assert_int_equal(decide(p, POLICY_OUTSIDE, WEB_DMZ, IP_TCP, 80, NULL).why, POLICY_FORWARDED);
	assert_true(allows(p, POLICY_OUTSIDE, WEB_DMZ, IP_TCP, 80));
	assert_false(allows(p, POLICY_OUTSIDE, WEB_DMZ, IP_UDP, 80));
	assert_false(allows(p, POLICY_OUTSIDE, WEB_DMZ, IP_TCP, 8080));
	assert_false(allows(p, POLICY_OUTSIDE, DB, IP_TCP, 80));
	f.host_addr = frame_addr("0.0.0.0");
	assert_int_equal(policy_add_forward(p, &f, &err), -EEXIST);
	f.is_udp = true;
	f.port = DB;
	assert_int_equal(policy_add_forward(p, &f, &err), -EINVAL);
	p->machines[0].is_quarantined = true;
	assert_false(allows(p, POLICY_OUTSIDE, WEB_DMZ, IP_TCP, 80));
	policy_free(p);
}

static void test_macs(void **state)
{
	static const char *const bad[] = { "",
					   "52:54:00:12:34",
					   "52:54:00:12:34:5",
					   "52:54:00:12:34:567",
					   "52:54:00:12:34:5g",
					   "52:54:00:12:34-56",
					   "52:54:00:12:34: 5",
					   "52:54:00:12:34:+5",
					   "5254:00:12:34::56" };
	uint8_t mac[6], same[6];
	char text[NET_MAC_TEXT];

	assert_int_equal(net_mac_parse("52:54:00:aB:0f:f0", mac), 0);
	assert_memory_equal(mac, "\x52\x54\0\xab\x0f\xf0", 6);
	assert_string_equal(net_mac_format(mac, text), "52:54:00:ab:0f:f0");
	memcpy(same, mac, 6);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(net_mac_parse(bad[i], mac), -EINVAL);
	assert_memory_equal(mac, same, 6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_macs),	       cmocka_unit_test(test_addresses),
		cmocka_unit_test(test_bad_networks),   cmocka_unit_test(test_rule_texts),
		cmocka_unit_test(test_contradictions), cmocka_unit_test(test_decisions),
		cmocka_unit_test(test_internet),       cmocka_unit_test(test_names),
		cmocka_unit_test(test_forwards),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
