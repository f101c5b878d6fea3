/* SPDX-License-Identifier: Apache-2.0 */
/* The scale of the paravirtual clock: right within one part in 10^8 for every TSC there is. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include "vm/kvmclock.h"

static uint64_t to_ns(uint64_t ticks, uint32_t mul, int8_t shift)
{
	unsigned __int128 t = ticks;

	t = shift < 0 ? t >> -shift : t << shift;
	return (uint64_t)(t * mul >> 32);
}

static void test_scale(void **state)
{
	static const uint32_t khz[] = { 1000,	 500000,  999999,  1000000, 1000001, 1996800,
					2000000, 2595995, 3700000, 4000000, 6000001, 4294967295u };

	for (unsigned i = 0; i < ARRAY_SIZE(khz); i++) {
		uint32_t mul;
		int8_t shift;

		kvmclock_scale(khz[i], &mul, &shift);
		uint64_t ns = to_ns((uint64_t)khz[i] * 1000 * 1000, mul, shift); /* 1000 s of ticks */
		uint64_t want = 1000ULL * 1000000000, diff = ns > want ? ns - want : want - ns;

		if (diff > want / 100000000)
			fail_msg("%u kHz: 1000 s read as %llu ns", khz[i], (unsigned long long)ns);
	}
}

static void test_registers(void **state)
{
	assert_true(kvmclock_is_msr(0x4b564d00));
	assert_true(kvmclock_is_msr(0x4b564d01));
	assert_false(kvmclock_is_msr(0x4b564d02));
	assert_false(kvmclock_is_msr(0x12));
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_scale),
					    cmocka_unit_test(test_registers) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
