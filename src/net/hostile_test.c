/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile frames through the data plane, and what comes out before the model of hostile_model.h.  And proper frames that the lab allows
 * do come out.
 *
 *   test_net_hostile [FRAMES [SEED]]     100,000 frames unless more are wanted
 */
#include <stdio.h>
#include <stdlib.h>

#include "net/hostile_model.h"

static bool is_proper_right(const struct lab_fixture *lab, const struct hostile_frame *h, bool has_come)
{
	if (h->from == h->to || has_come == hostile_allows((int)h->from, (int)h->to, 6, h->dport))
		return true;
	/* Or what was opened before with the same ports is going on. */
	return has_come && lab->verdict.reason == FABRIC_PASSED;
}

int main(int argc, char **argv)
{
	unsigned long frames = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	unsigned long out = 0, must = 0, reasons[FABRIC_REASONS] = { 0 };
	static struct lab_fixture lab;
	struct hostile_frame h;

	lab_set_up(&lab);
	hostile_seed(lab.policy, seed, true);
	for (unsigned long n = 0; n < frames; n++) {
		bool is_proper = hostile_rnd(10) == 0, has_come;

		lab.now_ms += hostile_rnd(3);
		if (is_proper)
			hostile_proper(&h);
		else
			hostile_make(&h);
		lab.hints = h.hints;
		reasons[lab_send(&lab, h.from, &h.frame)]++;
		has_come = lab_got(&lab, (int)h.to) && h.to != h.from;
		if (is_proper && !is_proper_right(&lab, &h, has_come)) {
			printf("frame %lu of seed %llu: %u to %u port %u came: %d\n", n,
			       (unsigned long long)seed, h.from, h.to, h.dport, has_come);
			return 1;
		}
		must += is_proper && has_come;
		for (unsigned i = 0; i < lab.nsent; i++, out++) {
			const char *wrong = hostile_judge(&h, &lab.sent[i]);
			if (!wrong)
				continue;
			printf("frame %lu of seed %llu, from port %u to %d: %s\n", n,
			       (unsigned long long)seed, h.from, lab.sent[i].port, wrong);
			hostile_print(&lab.sent[i]);
			return 1;
		}
	}
	printf("%lu frames of seed %llu, %lu came out, %lu of them proper ones; none that should "
	       "not\n",
	       frames, (unsigned long long)seed, out, must);
	for (unsigned i = 0; i < FABRIC_REASONS; i++)
		printf("  %8lu  %s\n", reasons[i], fabric_reason_names[i]);
	/* A run in which nothing passed, or nothing was refused for some reason, has tested nothing. */
	bool is_thorough = out && must;
	for (unsigned i = 0; i < FABRIC_REASONS; i++)
		is_thorough &= reasons[i] || i == FABRIC_QUARANTINE || i == FABRIC_FLOOD ||
			       frames < 100000;
	lab_tear_down(&lab);
	return is_thorough ? 0 : 1;
}
