/* SPDX-License-Identifier: Apache-2.0 */
#include <time.h>

#include "dev/testing.h"
#include "dev/timer/rtc.h"

#define S     1000000000ll
#define START 1700000000ll /* 2023-11-14 22:13:20 UTC, a Tuesday */

static struct test_env t;
static struct rtc *rtc;
static const struct rtc_config cfg = {
	.wall_ns_at_zero = START * S,
	.low_ram_bytes = 3 * GIB,
	.high_ram_bytes = 5 * GIB,
	.boot_order = 2,
	.cpus = 4,
};

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(rtc_create(&rtc, &t.env, test_line(&t, 8), &cfg, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	rtc->dev.cls->destroy(&rtc->dev);
	test_env_fini(&t);
	return 0;
}

static uint8_t rd(uint8_t reg)
{
	test_outb(&t, 0x70, reg);
	return test_inb(&t, 0x71);
}

static void wr(uint8_t reg, uint8_t v)
{
	test_outb(&t, 0x70, reg);
	test_outb(&t, 0x71, v);
}

static void expect_time(const char *hex)
{
	char got[32];

	snprintf(got, sizeof(got), "%02x%02x-%02x-%02x %02x:%02x:%02x %x", rd(0x32), rd(9), rd(8),
		 rd(7), rd(4), rd(2), rd(0), rd(6));
	assert_string_equal(got, hex);
}

static void test_reads_time(void **state)
{
	expect_time("2023-11-14 22:13:20 3");
	test_advance(&t, 100 * S);
	expect_time("2023-11-14 22:15:00 3");
	test_advance(&t, 2 * 3600 * S);
	expect_time("2023-11-15 00:15:00 4");
	wr(0x0b, 0x06); /* binary */
	assert_int_equal(rd(9), 23);
	assert_int_equal(rd(2), 15);
	assert_int_equal(rd(0x32), 0x20); /* always BCD */
	wr(0x0b, 0x00);			  /* BCD, 12 hours */
	assert_int_equal(rd(4), 0x12);	  /* midnight */
	test_advance(&t, 3600 * S);
	assert_int_equal(rd(4), 0x01);
	test_advance(&t, 11 * 3600 * S);
	assert_int_equal(rd(4), 0x92); /* noon */
	test_advance(&t, 3600 * S);
	assert_int_equal(rd(4), 0x81);
}

/* Against the C library, over centuries. */
static void test_calendar(void **state)
{
	unsigned seed = 7;

	wr(0x0b, 0x06);
	for (unsigned i = 0; i < 20000; i++) {
		time_t when = ((int64_t)rand_r(&seed) << 20 ^ rand_r(&seed)) % 6000000000;
		struct tm tm;

		gmtime_r(&when, &tm);
		rtc->offset_ns = when * S;
		rtc->seen_ns = 0;
		assert_int_equal(rd(0), tm.tm_sec);
		assert_int_equal(rd(2), tm.tm_min);
		assert_int_equal(rd(4), tm.tm_hour);
		assert_int_equal(rd(6), tm.tm_wday + 1);
		assert_int_equal(rd(7), tm.tm_mday);
		assert_int_equal(rd(8), tm.tm_mon + 1);
		assert_int_equal(rd(9), tm.tm_year % 100);
		/* written back: the same moment */
		wr(0x0b, 0x86);
		wr(0x0b, 0x06);
		assert_true(rtc->offset_ns == when * S);
	}
}

static void test_set_time(void **state)
{
	test_advance(&t, S / 4);
	wr(0x0b, 0x82); /* SET */
	test_advance(&t, 10 * S);
	expect_time("2023-11-14 22:13:20 3"); /* stands still */
	wr(0, 0x59);
	wr(2, 0x59);
	wr(4, 0x23);
	wr(7, 0x28);
	wr(8, 0x02);
	wr(9, 0x24);
	wr(0x0b, 0x02);
	expect_time("2024-02-28 23:59:59 4");
	test_advance(&t, S * 3 / 4 - 1); /* the fraction of the second was kept */
	expect_time("2024-02-28 23:59:59 4");
	test_advance(&t, 1);
	expect_time("2024-02-29 00:00:00 5");
	/* by the divider: the first update half a second after it starts */
	wr(0x0a, 0x70);
	wr(0, 0x30);
	test_advance(&t, 5 * S);
	assert_int_equal(rd(0), 0x30);
	wr(0x0a, 0x26);
	test_advance(&t, S / 2 - 1);
	assert_int_equal(rd(0), 0x30);
	test_advance(&t, 1);
	assert_int_equal(rd(0), 0x31);
	/* while running, and nonsense */
	wr(2, 0x15);
	expect_time("2024-02-29 00:15:31 5");
	for (unsigned i = 0; i < 10; i++)
		wr((uint8_t)i, 0xff);
	wr(0x32, 0xff);
	rd(0);
	wr(0x0b, 0x86);
	for (unsigned i = 0; i < 10; i++)
		wr((uint8_t)i, 0xff);
	wr(0x0b, 0x02);
	rd(0);
}

static void test_uip(void **state)
{
	assert_int_equal(rd(0x0a), 0x26);
	test_advance(&t, S - 244000);
	assert_int_equal(rd(0x0a), 0xa6);
	test_advance(&t, 244000);
	assert_int_equal(rd(0x0a), 0x26);
	test_advance(&t, S - 100);
	wr(0x0b, 0x82);
	assert_int_equal(rd(0x0a), 0x26); /* not while SET */
	wr(0x0a, 0xff);
	assert_int_equal(rd(0x0a), 0x7f);
}

static void test_update_interrupt(void **state)
{
	test_advance(&t, S / 2);
	assert_int_equal(rd(0x0c), 0x40);
	test_advance(&t, S);
	assert_false(vtimer_is_armed(rtc->timer)); /* nobody listens */
	assert_int_equal(rd(0x0c) & 0x10, 0x10);   /* but the flag is there */
	assert_int_equal(rd(0x0c), 0);
	wr(0x0a, 0x20);
	wr(0x0b, 0x12);
	test_advance(&t, S / 2);
	assert_true(t.lines[8].level);
	test_advance(&t, 5 * S);
	assert_int_equal(t.lines[8].rises, 1);
	assert_int_equal(rd(0x0c) & 0x90, 0x90);
	assert_false(t.lines[8].level);
	test_advance(&t, S);
	assert_int_equal(t.lines[8].rises, 2);
	wr(0x0b, 0x92); /* SET clears UIE */
	assert_int_equal(rd(0x0b), 0x82);
}

static void test_alarm(void **state)
{
	wr(1, 0x05);
	wr(3, 0x14);
	wr(5, 0x22);
	wr(0x0b, 0x22);
	test_advance(&t, 45 * S - 1);
	assert_false(t.lines[8].level);
	test_advance(&t, 1);
	assert_true(t.lines[8].level);
	assert_int_equal(rd(0x0c) & 0xa0, 0xa0);
	test_advance(&t, 86400 * S - 1);
	assert_false(t.lines[8].level);
	test_advance(&t, 1);
	assert_true(t.lines[8].level);
	rd(0x0c);
	/* any hour, any minute */
	wr(5, 0xff);
	wr(3, 0xc0);
	test_advance(&t, 60 * S);
	assert_true(t.lines[8].level);
	rd(0x0c);
	/* every second */
	wr(1, 0xc1);
	test_advance(&t, S);
	assert_true(t.lines[8].level);
	rd(0x0c);
	/* never */
	wr(1, 0x70);
	test_advance(&t, 90000 * S);
	assert_false(t.lines[8].level);
	assert_false(vtimer_is_armed(rtc->timer));
	/* polled */
	wr(0x0b, 0x02);
	wr(1, 0x00);
	test_advance(&t, 61 * S);
	assert_int_equal(rd(0x0c) & 0x20, 0x20);
}

static void test_periodic(void **state)
{
	wr(0x0a, 0x26); /* 1024 Hz */
	rd(0x0c);
	test_advance(&t, 1000000);
	assert_int_equal(rd(0x0c), 0x40);
	wr(0x0b, 0x42);
	for (unsigned i = 0; i < 1000; i++) {
		test_advance(&t, 1000000);
		rd(0x0c);
	}
	assert_in_range(t.lines[8].rises, 976, 1024);
	/* 2 Hz; a guest that does not acknowledge gets no more */
	wr(0x0a, 0x2f);
	unsigned before = t.lines[8].rises;

	test_advance(&t, 3 * S);
	assert_int_equal(t.lines[8].rises, before + 1);
	wr(0x0a, 0x20);
	rd(0x0c);
	assert_false(vtimer_is_armed(rtc->timer));
	/* rates 1 and 2 are those of 8 and 9 */
	wr(0x0a, 0x21);
	test_advance(&t, 4000000);
	assert_true(t.lines[8].level);
}

static void test_memory(void **state)
{
	assert_int_equal(rd(0x0d), 0x80);
	assert_int_equal(rd(0x15) | rd(0x16) << 8, 640);
	assert_int_equal(rd(0x17) | rd(0x18) << 8, 0xffff);
	assert_int_equal(rd(0x34) | rd(0x35) << 8, (3 * GIB - 16 * MIB) >> 16);
	assert_int_equal(rd(0x5b) | rd(0x5c) << 8 | rd(0x5d) << 16, 5 * GIB >> 16);
	assert_int_equal(rd(0x5f), 3);
	wr(0x0d, 0);
	assert_int_equal(rd(0x0d), 0x80);
	wr(0x40, 0xab);
	assert_int_equal(rd(0xc0), 0xab); /* bit 7 is the NMI mask */
	assert_true(rtc->is_nmi_masked);
	assert_int_equal(test_inb(&t, 0x70), 0xff);
	bus_write(t.env.bus, BUS_PIO, 0x70, 2, 0x5541);
	assert_int_equal(rd(0x41), 0x55);
	rtc->dev.cls->reset(&rtc->dev);
	assert_int_equal(rd(0x41), 0x55);
	wr(0x0b, 0x72);
	rtc->dev.cls->reset(&rtc->dev);
	assert_int_equal(rd(0x0b), 0x02);
}

static void test_state_moves(void **state)
{
	struct test_env u;
	struct rtc *r2;

	test_env_init(&u);
	assert_int_equal(rtc_create(&r2, &u.env, test_line(&u, 8), &cfg, NULL), 0);
	wr(0x0b, 0x12);
	wr(2, 0x30);
	test_advance(&t, S / 4);
	vclock_set(&u.clock, S / 4);
	test_move_state(&rtc->dev, &r2->dev);
	test_advance(&u, S * 3 / 4);
	assert_true(u.lines[8].level);
	test_outb(&u, 0x70, 2);
	assert_int_equal(test_inb(&u, 0x71), 0x30);
	r2->dev.cls->destroy(&r2->dev);
	test_env_fini(&u);
}

/* A machine that goes on from a snapshot: machine time stood still, real time did not. */
static void test_real_time_went_by(void **state)
{
	rtc_advance(rtc, 3600 * S + S / 2);
	expect_time("2023-11-14 23:13:20 3");
	test_advance(&t, S / 2);
	expect_time("2023-11-14 23:13:21 3");
	rtc_advance(rtc, 0);
	rtc_advance(rtc, -5 * S);
	rtc_advance(rtc, INT64_MAX);
	expect_time("2023-11-14 23:13:21 3");
	/* An alarm that it slept through. */
	wr(5, 0x23);
	wr(3, 0x15);
	wr(1, 0x00);
	wr(0x0b, 0x22);
	rd(0x0c);
	rtc_advance(rtc, 60 * S);
	assert_false(t.lines[8].level);
	rtc_advance(rtc, 60 * S);
	assert_true(t.lines[8].level);
	assert_int_equal(rd(0x0c) & 0xa0, 0xa0);
	/* Set by the guest just now. */
	wr(0x0b, 0x82);
	rtc_advance(rtc, 60 * S);
	expect_time("2023-11-14 23:15:21 3");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_reads_time),	  T(test_calendar),
		T(test_set_time),	  T(test_uip),
		T(test_update_interrupt), T(test_alarm),
		T(test_periodic),	  T(test_memory),
		T(test_state_moves),	  T(test_real_time_went_by),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
