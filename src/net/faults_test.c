/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "net/faults.h"

#define MS 1000000LL

static struct error err;

static void set(struct faults *f, const char *key, const char *value)
{
	assert_int_equal(faults_set(f, key, value, &err), 0);
}

static void test_texts(void **state)
{
	static const char *const bad[][2] = { { "latency", "20" },   { "latency", "11s" },
					      { "latency", "-1ms" }, { "loss", "1" },
					      { "loss", "101%" },    { "loss", "nan%" },
					      { "bandwidth", "x" },  { "partition", "yes" },
					      { "lost", "1%" } };
	struct faults f = { 0 };
	char text[128];

	set(&f, "latency", "20ms");
	set(&f, "jitter", "5ms");
	set(&f, "loss", "0.5%");
	set(&f, "bandwidth", "1M");
	assert_string_equal(faults_format(&f, text, sizeof(text)),
			    "latency=20ms jitter=5ms loss=0.5% bandwidth=1M");
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(faults_set(&f, bad[i][0], bad[i][1], &err), -EINVAL);
	assert_non_null(strstr(err.text, "loss"));
	set(&f, "none", "on");
	assert_true(faults_is_none(&f));
	assert_string_equal(faults_format(&f, text, sizeof(text)), "none");
}

static void test_latency(void **state)
{
	struct faults f = { .latency_ns = 20 * MS, .jitter_ns = 10 * MS };
	struct fault_link l;
	int64_t last = 0, spread = 0;

	fault_link_init(&l, &f, 1);
	for (int64_t now = 0; now < 1000 * MS; now += MS) {
		int64_t at = fault_link_pass(&l, now, 100);
		assert_true(at >= now + 20 * MS && at <= now + 30 * MS && at >= last);
		spread = MAX(spread, at - now - 20 * MS);
		last = at;
	}
	assert_true(spread > 9 * MS);
	/* What was sent before the latency went comes first. */
	int64_t before = fault_link_pass(&l, 1000 * MS, 100);
	l.faults = (struct faults){ 0 };
	assert_true(fault_link_pass(&l, 1000 * MS, 100) >= before);
	assert_int_equal(fault_link_pass(&l, 2000 * MS, 100), 2000 * MS);
}

static unsigned count_lost(uint64_t seed, uint32_t ppm, uint64_t *pattern)
{
	struct faults f = { .loss_ppm = ppm };
	struct fault_link l;
	unsigned lost = 0;

	*pattern = 0;
	fault_link_init(&l, &f, seed);
	for (unsigned i = 0; i < 100000; i++) {
		bool is_lost = fault_link_pass(&l, i, 100) < 0;
		lost += is_lost;
		if (i < 64)
			*pattern |= (uint64_t)is_lost << i;
	}
	return lost;
}

static void test_loss(void **state)
{
	uint64_t a, b, c;
	unsigned lost = count_lost(1, 100000, &a);

	assert_in_range(lost, 9500, 10500);
	assert_int_equal(count_lost(1, 100000, &b), lost);
	assert_true(a == b);
	count_lost(2, 100000, &c);
	assert_true(a != c);
	assert_int_equal(count_lost(1, 0, &a), 0);
	assert_int_equal(count_lost(1, 1000000, &a), 100000);
}

static void test_bandwidth(void **state)
{
	struct faults f = { .bytes_per_s = 1000000 };
	struct fault_link l;
	unsigned passed = 0;
	int64_t last = 0;

	/* Ten seconds' worth within one: what the link sends in that time, and what it holds, comes through. */
	fault_link_init(&l, &f, 1);
	for (unsigned i = 0; i < 10000; i++) {
		int64_t at = fault_link_pass(&l, i * MS / 10, 1000);
		if (at < 0)
			continue;
		passed++;
		assert_true(!last || at - last >= MS);
		last = at;
	}
	assert_in_range(passed, 1450, 1550);
}

static void test_reorder_and_cut(void **state)
{
	struct faults f = { .latency_ns = 20 * MS, .reorder_ppm = 200000 };
	struct fault_link l;
	unsigned overtook = 0;

	fault_link_init(&l, &f, 1);
	for (unsigned i = 0; i < 1000; i++)
		overtook += fault_link_pass(&l, i * MS, 100) < i * MS + 20 * MS;
	assert_in_range(overtook, 150, 250);
	f = (struct faults){ .is_cut = true };
	fault_link_init(&l, &f, 1);
	assert_int_equal(fault_link_pass(&l, 0, 1), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_texts),
		cmocka_unit_test(test_latency),
		cmocka_unit_test(test_loss),
		cmocka_unit_test(test_bandwidth),
		cmocka_unit_test(test_reorder_and_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
