/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/pic.h"
#include "dev/testing.h"

static struct test_env t;
static struct pic *pic;

static void program(uint8_t icw1, uint8_t icw4)
{
	test_outb(&t, 0x20, icw1);
	test_outb(&t, 0x21, 0x30);
	test_outb(&t, 0x21, 0x04);
	test_outb(&t, 0x21, icw4);
	test_outb(&t, 0xa0, icw1);
	test_outb(&t, 0xa1, 0x38);
	test_outb(&t, 0xa1, 0x02);
	test_outb(&t, 0xa1, icw4);
}

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(pic_create(&pic, &t.env, test_line(&t, 0), NULL), 0);
	program(0x11, 0x01);
	return 0;
}

static int teardown(void **state)
{
	pic->dev.cls->destroy(&pic->dev);
	test_env_fini(&t);
	return 0;
}

static void pulse(unsigned n)
{
	pic_set_irq(pic, n, true);
	pic_set_irq(pic, n, false);
}

static bool intr(void)
{
	return t.lines[0].level;
}

static uint8_t read_isr(uint16_t port)
{
	test_outb(&t, port, 0x0b);
	return test_inb(&t, port);
}

static uint8_t read_irr(uint16_t port)
{
	test_outb(&t, port, 0x0a);
	return test_inb(&t, port);
}

static void test_silent_at_power_on(void **state)
{
	pic->dev.cls->reset(&pic->dev);
	pulse(0);
	assert_false(intr());
}

static void test_edge_ack_eoi(void **state)
{
	pulse(1);
	assert_true(intr());
	assert_int_equal(read_irr(0x20), 0x02);
	assert_int_equal(pic_inta(pic), 0x31);
	assert_false(intr());
	assert_int_equal(read_isr(0x20), 0x02);
	assert_int_equal(read_irr(0x20), 0);
	pulse(1); /* latched, blocked by itself */
	pulse(3);
	assert_false(intr());
	pulse(0); /* higher priority nests */
	assert_true(intr());
	assert_int_equal(pic_inta(pic), 0x30);
	test_outb(&t, 0x20, 0x20); /* non-specific: the highest in service */
	assert_int_equal(read_isr(0x20), 0x02);
	test_outb(&t, 0x20, 0x61); /* specific */
	assert_int_equal(read_isr(0x20), 0);
	assert_int_equal(pic_inta(pic), 0x31);
	test_outb(&t, 0x20, 0x20);
	assert_int_equal(pic_inta(pic), 0x33);
}

static void test_cascade(void **state)
{
	pulse(12);
	assert_int_equal(pic_inta(pic), 0x3c);
	assert_int_equal(read_isr(0x20), 0x04);
	assert_int_equal(read_isr(0xa0), 0x10);
	pulse(8); /* higher on the slave, but blocked in the master: not special fully nested */
	assert_false(intr());
	test_outb(&t, 0x20, 0x20);
	assert_true(intr());
	assert_int_equal(pic_inta(pic), 0x38);
	test_outb(&t, 0xa0, 0x20);
	test_outb(&t, 0x20, 0x20);
	assert_int_equal(read_isr(0xa0), 0x10);
	pulse(13);
	assert_false(intr());
	test_outb(&t, 0xa0, 0x20);
	assert_true(intr());
	assert_int_equal(pic_inta(pic), 0x3d);
	/* input 2 of the master has no line of its own */
	pic_set_irq(pic, 2, true);
	assert_int_equal(read_irr(0x20), 0);
}

static void test_special_fully_nested(void **state)
{
	program(0x11, 0x11);
	pulse(12);
	assert_int_equal(pic_inta(pic), 0x3c);
	pulse(8);
	assert_true(intr());
	assert_int_equal(pic_inta(pic), 0x38);
}

static void test_mask(void **state)
{
	test_outb(&t, 0x21, 0x08);
	assert_int_equal(test_inb(&t, 0x21), 0x08);
	pulse(3);
	assert_false(intr());
	test_outb(&t, 0x21, 0);
	assert_true(intr()); /* the edge was kept */
	assert_int_equal(pic_inta(pic), 0x33);
	/* special mask mode: 3 in service and masked does not block 5 */
	pulse(5);
	assert_false(intr());
	test_outb(&t, 0x20, 0x68);
	test_outb(&t, 0x21, 0x08);
	assert_true(intr());
	assert_int_equal(pic_inta(pic), 0x35);
	test_outb(&t, 0x20, 0x20);
	assert_int_equal(read_isr(0x20), 0x08); /* masked one stays */
	test_outb(&t, 0x20, 0x48);
	test_outb(&t, 0x20, 0x20);
	assert_int_equal(read_isr(0x20), 0);
}

static void test_level(void **state)
{
	test_outb(&t, 0x4d0, 0xff);
	test_outb(&t, 0x4d1, 0xff);
	assert_int_equal(test_inb(&t, 0x4d0), 0xf8);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0x4d0, 2), 0xdef8);
	pic_set_irq(pic, 11, true);
	assert_int_equal(pic_inta(pic), 0x3b);
	test_outb(&t, 0xa0, 0x20);
	test_outb(&t, 0x20, 0x20);
	assert_true(intr()); /* still asserted */
	pic_set_irq(pic, 11, false);
	assert_false(intr());
	/* the request goes away between INTR and INTA: spurious, nothing in service */
	assert_int_equal(pic_inta(pic), 0x37);
	assert_int_equal(read_isr(0x20), 0);
	/* LTIM makes all inputs level-triggered */
	program(0x19, 0x01);
	pic_set_irq(pic, 1, true);
	assert_int_equal(pic_inta(pic), 0x31);
	test_outb(&t, 0x20, 0x20);
	assert_true(intr());
	pic_set_irq(pic, 1, false);
	assert_false(intr());
}

static void test_rotation(void **state)
{
	test_outb(&t, 0x20, 0xc2); /* set priority: 2 lowest, 3 highest */
	pulse(1);
	pulse(4);
	assert_int_equal(pic_inta(pic), 0x34);
	test_outb(&t, 0x20, 0xa0); /* rotate on non-specific EOI: 4 lowest */
	pulse(4);
	pulse(5);
	assert_int_equal(pic_inta(pic), 0x35);
	test_outb(&t, 0x20, 0xe5); /* rotate on specific EOI: 5 lowest */
	assert_int_equal(pic_inta(pic), 0x31);
	test_outb(&t, 0x20, 0x20);
	assert_int_equal(pic_inta(pic), 0x34);
}

static void test_auto_eoi(void **state)
{
	program(0x11, 0x03);
	pulse(6);
	assert_int_equal(pic_inta(pic), 0x36);
	assert_int_equal(read_isr(0x20), 0);
	test_outb(&t, 0x20, 0x80); /* rotate in auto EOI mode */
	pulse(0);
	assert_int_equal(pic_inta(pic), 0x30); /* 0 becomes the lowest */
	pulse(0);
	pulse(7);
	assert_int_equal(pic_inta(pic), 0x37);
	test_outb(&t, 0x20, 0x00);
}

static void test_poll(void **state)
{
	test_outb(&t, 0x20, 0x0c);
	assert_int_equal(test_inb(&t, 0x20), 0);
	pulse(6);
	test_outb(&t, 0x20, 0x0c);
	assert_int_equal(test_inb(&t, 0x20), 0x86);
	assert_false(intr());
	assert_int_equal(read_isr(0x20), 0x40);
}

static void test_state_moves(void **state)
{
	struct test_env u;
	struct pic *p2;

	test_env_init(&u);
	assert_int_equal(pic_create(&p2, &u.env, test_line(&u, 0), NULL), 0);
	pulse(9);
	pulse(4);
	assert_int_equal(pic_inta(pic), 0x39);
	test_move_state(&pic->dev, &p2->dev);
	assert_int_equal(u.lines[0].level, t.lines[0].level);
	test_outb(&u, 0xa0, 0x20);
	test_outb(&u, 0x20, 0x20);
	assert_true(u.lines[0].level);
	assert_int_equal(pic_inta(p2), 0x34);
	p2->dev.cls->destroy(&p2->dev);
	test_env_fini(&u);
}

static void test_ports_taken(void **state)
{
	struct pic *p2 = NULL;
	struct error err;

	assert_int_equal(pic_create(&p2, &t.env, test_line(&t, 1), &err), -EEXIST);
	assert_null(p2);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_silent_at_power_on),
		T(test_edge_ack_eoi),
		T(test_cascade),
		T(test_special_fully_nested),
		T(test_mask),
		T(test_level),
		T(test_rotation),
		T(test_auto_eoi),
		T(test_poll),
		T(test_state_moves),
		T(test_ports_taken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
