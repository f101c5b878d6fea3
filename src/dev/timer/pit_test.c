/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/timer/pit.h"
#include "dev/testing.h"

static struct test_env t;
static struct pit *pit;
static int64_t slack_ns;

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(pit_create(&pit, &t.env, test_line(&t, 0), NULL), 0);
	t.lines[0].rises = t.lines[0].falls = 0;
	slack_ns = 0;
	return 0;
}

static int teardown(void **state)
{
	pit->dev.cls->destroy(&pit->dev);
	test_env_fini(&t);
	return 0;
}

/* Machine time such that @n ticks have passed since 0; a little later each time, so that ticks
 * counted from an earlier call are complete, too. */
static void to_tick(uint64_t n)
{
	int64_t at =
		(int64_t)(((unsigned __int128)n * 1000000000 + PIT_HZ - 1) / PIT_HZ) + 2 * slack_ns++;

	test_advance(&t, at - vclock_now_ns(&t.clock));
}

static void program(unsigned ch, unsigned mode, uint16_t v)
{
	test_outb(&t, 0x43, (uint8_t)(ch << 6 | 0x30 | mode << 1));
	test_outb(&t, (uint16_t)(0x40 + ch), (uint8_t)v);
	test_outb(&t, (uint16_t)(0x40 + ch), (uint8_t)(v >> 8));
}

static uint16_t read16(unsigned ch)
{
	uint8_t lo = test_inb(&t, (uint16_t)(0x40 + ch));

	return (uint16_t)(test_inb(&t, (uint16_t)(0x40 + ch)) << 8 | lo);
}

static bool out2(void)
{
	return test_inb(&t, 0x61) & 0x20;
}

static uint8_t status(unsigned ch)
{
	test_outb(&t, 0x43, (uint8_t)(0xe0 | 2u << ch));
	return test_inb(&t, (uint16_t)(0x40 + ch));
}

static void test_mode0(void **state)
{
	program(0, 0, 1000);
	assert_false(t.lines[0].level);
	to_tick(400);
	assert_int_equal(read16(0), 600);
	assert_int_equal(status(0), 0x30);
	to_tick(999);
	assert_int_equal(t.lines[0].rises, 0);
	to_tick(1000);
	assert_int_equal(t.lines[0].rises, 1);
	assert_true(t.lines[0].level);
	assert_int_equal(status(0), 0xb0);
	to_tick(1001);
	assert_int_equal(read16(0), 0xffff); /* wraps and goes on */
	to_tick(200000);
	assert_int_equal(t.lines[0].rises, 1);
	/* the first byte of a new count stops it and lowers OUT */
	test_outb(&t, 0x40, 10);
	assert_false(t.lines[0].level);
	to_tick(201000);
	assert_int_equal(t.lines[0].rises, 1);
	test_outb(&t, 0x40, 0);
	to_tick(201011);
	assert_int_equal(t.lines[0].rises, 2);
}

static void test_mode2(void **state)
{
	program(0, 2, 100);
	assert_true(t.lines[0].level);
	to_tick(1);
	assert_int_equal(read16(0), 99);
	to_tick(99);
	assert_int_equal(read16(0), 1);
	assert_int_equal(status(0), 0x34);
	to_tick(100);
	assert_int_equal(t.lines[0].rises, 1);
	assert_int_equal(read16(0), 100);
	to_tick(100000);
	assert_int_equal(t.lines[0].rises, 1000); /* no drift */
	/* a new count waits for the end of the period */
	to_tick(100010);
	test_outb(&t, 0x40, 50);
	test_outb(&t, 0x40, 0);
	assert_int_equal(status(0), 0xf4);
	assert_int_equal(read16(0), 90);
	to_tick(100100);
	assert_int_equal(read16(0), 50);
	assert_int_equal(status(0), 0xb4);
	assert_int_equal(t.lines[0].rises, 1001);
	to_tick(100150);
	assert_int_equal(t.lines[0].rises, 1002);
}

static void test_mode3(void **state)
{
	program(2, 3, 6);
	test_outb(&t, 0x61, 1);
	static const uint8_t even[] = { 6, 4, 2, 6, 4, 2 };

	for (unsigned i = 0; i < 12; i++) {
		to_tick(i);
		assert_int_equal(read16(2), even[i % 6]);
		assert_int_equal(out2(), i % 6 < 3);
	}
	test_outb(&t, 0x61, 0);
	to_tick(20);
	assert_true(out2());
	program(2, 3, 5);
	test_outb(&t, 0x61, 1);
	static const uint8_t odd[] = { 4, 2, 0, 4, 2 };

	for (unsigned i = 0; i < 10; i++) {
		to_tick(20 + i);
		assert_int_equal(read16(2), odd[i % 5]);
		assert_int_equal(out2(), i % 5 < 3);
	}
}

static void test_gate_holds_mode0(void **state)
{
	test_outb(&t, 0x61, 1);
	program(2, 0, 100);
	assert_false(out2());
	to_tick(30);
	test_outb(&t, 0x61, 0);
	to_tick(1000);
	assert_int_equal(read16(2), 70);
	assert_false(out2());
	test_outb(&t, 0x61, 1);
	to_tick(1069);
	assert_false(out2());
	to_tick(1071);
	assert_true(out2());
	test_outb(&t, 0x61, 0); /* stays high */
	to_tick(2000);
	assert_true(out2());
	test_outb(&t, 0x61, 1);
	assert_true(out2());
	/* a count written while the gate is low waits */
	test_outb(&t, 0x61, 0);
	program(2, 0, 100);
	to_tick(5000);
	assert_false(out2());
	test_outb(&t, 0x61, 1);
	to_tick(5101);
	assert_true(out2());
}

static void test_mode1(void **state)
{
	program(2, 1, 50);
	assert_true(out2());
	to_tick(100);
	assert_true(out2());
	assert_int_equal(status(2), 0xf2); /* null count: not loaded yet */
	test_outb(&t, 0x61, 1);
	assert_false(out2());
	assert_int_equal(status(2), 0x32);
	to_tick(130);
	test_outb(&t, 0x61, 0); /* falling does nothing, rising again retriggers */
	assert_false(out2());
	test_outb(&t, 0x61, 1);
	to_tick(179);
	assert_false(out2());
	to_tick(181);
	assert_true(out2());
	/* counter 0 has no gate to trigger it */
	program(0, 1, 50);
	to_tick(1000);
	assert_int_equal(t.lines[0].falls, 0);
}

static void test_modes_4_and_5(void **state)
{
	test_outb(&t, 0x61, 1);
	program(2, 4, 10);
	assert_true(out2());
	to_tick(10);
	assert_false(out2());
	to_tick(11);
	assert_true(out2());
	to_tick(10 + 65536);
	assert_true(out2()); /* strobes once */
	program(0, 4, 10);
	to_tick(10 + 65536 + 12);
	assert_int_equal(t.lines[0].falls, 1);
	test_outb(&t, 0x61, 0);
	to_tick(100000);
	program(2, 5, 10);
	to_tick(100050);
	assert_true(out2());
	test_outb(&t, 0x61, 1);
	to_tick(100060);
	assert_false(out2());
	to_tick(100062);
	assert_true(out2());
}

static void test_latches(void **state)
{
	program(0, 2, 1000);
	to_tick(10);
	test_outb(&t, 0x43, 0x00);
	to_tick(20);
	test_outb(&t, 0x43, 0x00); /* ignored until read */
	assert_int_equal(read16(0), 990);
	assert_int_equal(read16(0), 980);
	/* read-back of both: status first */
	test_outb(&t, 0x43, 0xc2);
	to_tick(30);
	assert_int_equal(test_inb(&t, 0x40), 0xb4);
	assert_int_equal(read16(0), 980);
	assert_int_equal(read16(0), 970);
	/* several channels at once */
	test_outb(&t, 0x61, 1);
	program(2, 2, 500);
	test_outb(&t, 0x43, 0xda); /* latch counts of 0 and 2 */
	to_tick(40);
	assert_int_equal(read16(0), 970);
	assert_int_equal(read16(2), 500);
	/* one byte only */
	test_outb(&t, 0x43, 0x14);
	test_outb(&t, 0x40, 200);
	assert_int_equal(test_inb(&t, 0x40), 200);
	assert_int_equal(test_inb(&t, 0x40), 200);
	test_outb(&t, 0x43, 0x24);
	test_outb(&t, 0x40, 3);
	assert_int_equal(test_inb(&t, 0x40), 3);
	assert_int_equal(test_inb(&t, 0x43), 0xff);
}

static void test_bcd(void **state)
{
	test_outb(&t, 0x43, 0x35);
	test_outb(&t, 0x40, 0x00);
	test_outb(&t, 0x40, 0x12);
	assert_int_equal(read16(0), 0x1200);
	to_tick(1);
	assert_int_equal(read16(0), 0x1199);
	test_outb(&t, 0x43, 0x31); /* mode 0: wraps at 10000 */
	test_outb(&t, 0x40, 0x00);
	test_outb(&t, 0x40, 0x00);
	to_tick(2);
	assert_int_equal(read16(0), 0x9999);
	to_tick(1 + 10001);
	assert_int_equal(read16(0), 0x9999);
	assert_true(t.lines[0].level);
	/* not decimal: still bounded */
	test_outb(&t, 0x40, 0xff);
	test_outb(&t, 0x40, 0xff);
	to_tick(20000);
	assert_true(read16(0) <= 0x9999);
}

static void test_refresh_toggles(void **state)
{
	uint8_t a = test_inb(&t, 0x61);

	test_advance(&t, 15085);
	assert_int_equal(a ^ test_inb(&t, 0x61), 0x10);
	test_outb(&t, 0x61, 0xfe);
	assert_int_equal(test_inb(&t, 0x61) & 0x0f, 0x0e);
}

static void test_late_and_tiny(void **state)
{
	unsigned before;

	program(0, 2, 1193); /* about 1 ms */
	before = t.lines[0].rises;
	test_advance_late(&t, 5000000);
	assert_true(t.lines[0].rises > before);
	for (unsigned i = 0; i < 100; i++)
		test_advance(&t, 100000);
	assert_in_range(t.lines[0].rises - before, 14, 16); /* all were caught up */
	before = t.lines[0].rises;
	test_advance_late(&t, 10000000000);
	test_advance(&t, 10000000);
	assert_in_range(t.lines[0].rises - before, 5, 40); /* too many to be */
	program(0, 2, 1);
	before = t.lines[0].rises;
	test_advance(&t, 10000000);
	assert_in_range(t.lines[0].rises - before, 400, 510);
}

static void test_state_moves(void **state)
{
	struct test_env u;
	struct pit *p2;

	test_env_init(&u);
	assert_int_equal(pit_create(&p2, &u.env, test_line(&u, 0), NULL), 0);
	program(0, 2, 1000);
	to_tick(700);
	vclock_set(&u.clock, vclock_now_ns(&t.clock));
	test_move_state(&pit->dev, &p2->dev);
	u.lines[0].rises = 0;
	test_advance(&u, 300 * 839);
	assert_int_equal(u.lines[0].rises, 1);
	p2->dev.cls->destroy(&p2->dev);
	test_env_fini(&u);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_mode0),		 T(test_mode2),
		T(test_mode3),		 T(test_gate_holds_mode0),
		T(test_mode1),		 T(test_modes_4_and_5),
		T(test_latches),	 T(test_bcd),
		T(test_refresh_toggles), T(test_late_and_tiny),
		T(test_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
