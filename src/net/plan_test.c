/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a plan says against what the data plane does: every pair of cards, every protocol, both IP versions, ports on both
 * sides of each boundary.  A packet gets through exactly if the plan has it open.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "net/fabric_testing.h"
#include "net/plan.h"

static struct lab_fixture lab;
static unsigned tried, passed;

static bool gets_through(unsigned from, int to, enum plan_proto proto, uint16_t port, bool is_v6)
{
	struct frame_ends e =
		lab_ends(lab.policy, from, to == POLICY_OUTSIDE ? from : (unsigned)to, is_v6);
	static uint16_t sport = 1024;
	struct frame f;

	if (to == POLICY_OUTSIDE) {
		e.dst = frame_addr(is_v6 ? "2606:4700::1111" : LAB_LEARNT);
		memcpy(e.dst_mac, lab.policy->networks[lab.policy->ports[from].network].gateway_mac, 6);
	}
	sport = sport == 65535 ? 1024 : sport + 1;
	lab.now_ms += 100; /* errors have a rate */
	if (proto == PLAN_TCP)
		frame_tcp(&f, &e, sport, port, PACKET_SYN);
	else if (proto == PLAN_UDP)
		frame_udp(&f, &e, sport, port, "x", 1);
	else if (proto == PLAN_ICMP)
		frame_echo(&f, &e, false, sport);
	else
		frame_ip(&f, &e, 132, "some bytes", 10);
	if (lab_tags[from] >= 0)
		frame_tag(&f, (uint16_t)lab_tags[from]);
	lab_send(&lab, from, &f);
	return lab_got(&lab, to) != NULL;
}

static const uint16_t samples[] = { 1,	  21,	22,   23,   66,	  69,	 79,   80,   81,
				    442,  443,	444,  545,  548,  5431,	 5432, 5433, 5999,
				    6000, 6001, 6009, 6010, 6011, 40000, 65535 };

static void check_pair(unsigned from, int to, const struct plan_access *a)
{
	for (unsigned proto = 0; proto < PLAN_PROTOS; proto++)
		for (unsigned v6 = 0; v6 < 2; v6++)
			for (unsigned i = 0; i < ARRAY_SIZE(samples); i++) {
				bool planned = plan_access_has(a, proto, samples[i]);
				bool came = gets_through(from, to, proto, samples[i], v6);
				/* By name there are the addresses that were learnt, and here they are IPv4. */
				if (to == POLICY_OUTSIDE && v6 && a->is_named)
					planned = false;
				tried++;
				passed += came;
				if (planned != came)
					fail_msg("port %u to %d, %u/%u, IPv%d: planned %d, came %d", from,
						 to, proto, samples[i], v6 ? 6 : 4, planned, came);
				if (proto == PLAN_ICMP || proto == PLAN_OTHER)
					break;
			}
}

static void check_all(void)
{
	for (unsigned from = 0; from < LAB_PORTS; from++)
		for (int to = POLICY_OUTSIDE; to < LAB_PORTS; to++) {
			struct plan_access a;
			if (to >= 0 && lab.policy->ports[from].machine == lab.policy->ports[to].machine)
				continue;
			assert_int_equal(plan_access(lab.policy, from, to, &a), 0);
			check_pair(from, to, &a);
			plan_access_free(&a);
		}
}

static void test_plan_is_reality(void **state)
{
	lab_set_up(&lab);
	check_all();
	assert_true(passed > 500 && passed < tried / 2);
	/* And after the policy was changed under it. */
	struct policy *p = policy_copy(lab.policy);
	struct policy_rule r;
	struct error err;
	assert_int_equal(policy_parse_rule(p, "mal.sus -> *.db", "tcp/66-69", &r, &err), 0);
	r.is_allow = true;
	assert_int_equal(policy_add_rule(p, 0, &r, &err), 0);
	assert_int_equal(policy_parse_rule(p, "tag.* -> *.*", "udp/443", &r, &err), 0);
	assert_int_equal(policy_add_rule(p, 0, &r, &err), 0);
	p->machines[M_OPS].is_quarantined = true;
	assert_int_equal(fabric_set_policy(lab.f, p), 0);
	lab.policy = p;
	check_all();
	print_message("%u packets tried, %u passed\n", tried, passed);
	lab_tear_down(&lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_plan_is_reality) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
