/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/i8042.h"
#include "dev/testing.h"

static struct test_env t;
static struct i8042 *k;

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(i8042_create(&k, &t.env, test_line(&t, 1), test_line(&t, 12), NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	k->dev.cls->destroy(&k->dev);
	test_env_fini(&t);
	return 0;
}

static void command(uint8_t v)
{
	test_outb(&t, 0x64, v);
}

static void data(uint8_t v)
{
	test_outb(&t, 0x60, v);
}

/* The next byte, which must be there. */
static uint8_t get(void)
{
	assert_int_equal(test_inb(&t, 0x64) & 1, 1);
	return test_inb(&t, 0x60);
}

static bool is_empty(void)
{
	return !(test_inb(&t, 0x64) & 1);
}

static uint8_t ask(uint8_t cmd)
{
	command(cmd);
	return get();
}

static void mouse(uint8_t v)
{
	command(0xd4);
	data(v);
}

static void set_ccb(uint8_t v)
{
	command(0x60);
	data(v);
}

static void test_controller(void **state)
{
	assert_int_equal(test_inb(&t, 0x64), 0x1c);
	assert_int_equal(ask(0xaa), 0x55);
	assert_int_equal(ask(0xab), 0);
	assert_int_equal(ask(0xa9), 0);
	assert_int_equal(ask(0x20), 0x65);
	set_ccb(0x47);
	assert_int_equal(ask(0x20), 0x47);
	command(0xad);
	command(0xa7);
	assert_int_equal(ask(0x20), 0x77);
	command(0xae);
	command(0xa8);
	assert_int_equal(ask(0x20), 0x47);
	command(0x71);
	data(0x5a);
	assert_int_equal(ask(0x31), 0x5a);
	assert_int_equal(ask(0xc0), 0x80);
	assert_int_equal(test_inb(&t, 0x64) & 8, 8);
	data(0xee);
	assert_int_equal(test_inb(&t, 0x64) & 8, 0);
	assert_int_equal(get(), 0xee);
	assert_true(is_empty());
	command(0xd2);
	data(0x12);
	assert_int_equal(test_inb(&t, 0x64) & 0x21, 0x01);
	assert_int_equal(get(), 0x12);
	command(0xd3);
	data(0x34);
	assert_int_equal(test_inb(&t, 0x64) & 0x21, 0x21);
	assert_true(t.lines[12].level);
	assert_int_equal(get(), 0x34);
	assert_false(t.lines[12].level);
	command(0x99);
	assert_true(is_empty());
}

static void test_reset_and_a20(void **state)
{
	assert_int_equal(ask(0xd0) & 3, 3);
	command(0xd1);
	data(0xdd); /* A20 off */
	assert_int_equal(ask(0xd0) & 3, 1);
	assert_int_equal(test_inb(&t, 0x92), 0);
	test_outb(&t, 0x92, 2);
	assert_int_equal(ask(0xd0) & 3, 3);
	command(0xdd);
	assert_int_equal(test_inb(&t, 0x92), 0);
	command(0xdf);
	assert_int_equal(test_inb(&t, 0x92), 2);
	assert_int_equal(t.resets, 0);
	command(0xff);
	assert_int_equal(t.resets, 0);
	command(0xfe);
	assert_int_equal(t.resets, 1);
	command(0xd1);
	data(0x02);
	assert_int_equal(t.resets, 2);
	test_outb(&t, 0x92, 3);
	assert_int_equal(t.resets, 3);
	test_outb(&t, 0x92, 3); /* no new edge */
	assert_int_equal(t.resets, 3);
	assert_int_equal(test_inb(&t, 0x92), 3);
}

static void test_keyboard(void **state)
{
	set_ccb(0x05); /* no translation */
	data(0xff);
	assert_true(t.lines[1].level);
	assert_int_equal(get(), 0xfa);
	assert_int_equal(get(), 0xaa);
	assert_false(t.lines[1].level);
	data(0xf2);
	assert_int_equal(get(), 0xfa);
	assert_int_equal(get(), 0xab);
	assert_int_equal(get(), 0x83);
	data(0xed);
	assert_int_equal(get(), 0xfa);
	data(0x07);
	assert_int_equal(get(), 0xfa);
	data(0xf0);
	assert_int_equal(get(), 0xfa);
	data(0x00);
	assert_int_equal(get(), 0xfa);
	assert_int_equal(get(), 0x02);
	data(0xf0);
	assert_int_equal(get(), 0xfa);
	data(0x03);
	assert_int_equal(get(), 0xfe); /* set 3 is not there */
	data(0x01);
	assert_int_equal(get(), 0xfe); /* no such command */
	data(0xfe);
	assert_int_equal(get(), 0xfe); /* the last byte again */
	assert_true(is_empty());
	/* a bit of everything must not overflow the queue */
	command(0xad);
	for (unsigned i = 0; i < 200; i++) {
		set_ccb(0x15);
		data(0xf2);
	}
	for (unsigned i = 0; i < 200 && !is_empty(); i++)
		get();
	assert_true(is_empty());
}

static void test_keys(void **state)
{
	static const uint8_t press[] = { 0x1c }, release[] = { 0xf0, 0x1c }, up[] = { 0xe0, 0xf0, 0x75 };
	unsigned rises;

	i8042_key(k, press, 1); /* translated */
	i8042_key(k, release, 2);
	assert_int_equal(get(), 0x1e);
	assert_int_equal(get(), 0x9e);
	i8042_key(k, up, 3);
	assert_int_equal(get(), 0xe0);
	assert_int_equal(get(), 0xc8);
	/* an answer comes before a key that was not read, and the key is not lost */
	i8042_key(k, release, 2);
	assert_int_equal(ask(0xaa), 0x55);
	assert_int_equal(get(), 0x9e);
	/* each byte is an edge */
	rises = t.lines[1].rises;
	i8042_key(k, up, 3);
	get();
	get();
	assert_int_equal(t.lines[1].rises, rises + 2);
	set_ccb(0x05);
	i8042_key(k, up, 3);
	assert_int_equal(get(), 0xe0);
	assert_int_equal(get(), 0xf0);
	assert_int_equal(get(), 0x75);
	/* scan code set 1 by the keyboard itself */
	data(0xf0);
	get();
	data(0x01);
	get();
	i8042_key(k, release, 2);
	assert_int_equal(get(), 0x9e);
	/* disabled */
	data(0xf5);
	get();
	i8042_key(k, press, 1);
	assert_true(is_empty());
	data(0xf4);
	get();
	command(0xad);
	i8042_key(k, press, 1);
	assert_true(is_empty());
	command(0xae);
	assert_int_equal(get(), 0x1c);
	for (unsigned i = 0; i < 1000; i++)
		i8042_key(k, press, 1); /* nobody reads: bounded */
	assert_true(k->kbd.q.len <= PS2_QUEUE);
}

static void test_mouse(void **state)
{
	set_ccb(0x47);
	mouse(0xff);
	assert_true(t.lines[12].level);
	assert_int_equal(test_inb(&t, 0x64) & 0x21, 0x21);
	assert_int_equal(get(), 0xfa);
	assert_int_equal(get(), 0xaa);
	assert_int_equal(get(), 0x00);
	mouse(0xf2);
	assert_int_equal(get(), 0xfa);
	assert_int_equal(get(), 0x00);
	i8042_mouse(k, 5, 5, 0, 1); /* not reporting */
	assert_true(is_empty());
	mouse(0xf4);
	assert_int_equal(get(), 0xfa);
	i8042_mouse(k, 5, -3, 0, 1);
	assert_int_equal(get(), 0x29);
	assert_int_equal(get(), 5);
	assert_int_equal(get(), 0xfd);
	/* the wheel */
	static const uint8_t knock[] = { 200, 100, 80 };

	for (unsigned i = 0; i < 3; i++) {
		mouse(0xf3);
		assert_int_equal(get(), 0xfa);
		mouse(knock[i]);
		assert_int_equal(get(), 0xfa);
	}
	mouse(0xf2);
	assert_int_equal(get(), 0xfa);
	assert_int_equal(get(), 0x03);
	i8042_mouse(k, -1000, 1000, -1, 4);
	assert_int_equal(get(), 0x1c);
	assert_int_equal(get(), 0x00);
	assert_int_equal(get(), 0xff);
	assert_int_equal(get(), 0xff);
	mouse(0xe9);
	assert_int_equal(get(), 0xfa);
	assert_int_equal(get(), 0x22);
	assert_int_equal(get(), 0x02);
	assert_int_equal(get(), 80);
	mouse(0xe8);
	assert_int_equal(get(), 0xfa);
	mouse(0x03);
	assert_int_equal(get(), 0xfa);
	mouse(0xeb);
	for (unsigned i = 0; i < 5; i++)
		get();
	assert_true(is_empty());
	mouse(0xee);
	assert_int_equal(get(), 0xfa);
	mouse(0x42);
	assert_int_equal(get(), 0x42);
	mouse(0xec);
	assert_int_equal(get(), 0xfa);
	mouse(0x42);
	assert_int_equal(get(), 0xfe);
	for (unsigned i = 0; i < 1000; i++)
		i8042_mouse(k, 1, 1, 1, 0);
	assert_true(k->mouse.q.len <= PS2_QUEUE);
}

static void test_state_moves(void **state)
{
	static const uint8_t key[] = { 0x1c };
	struct test_env u;
	struct i8042 *k2;

	test_env_init(&u);
	assert_int_equal(i8042_create(&k2, &u.env, test_line(&u, 1), test_line(&u, 12), NULL), 0);
	i8042_key(k, key, 1);
	i8042_key(k, key, 1);
	test_move_state(&k->dev, &k2->dev);
	assert_true(u.lines[1].level);
	assert_int_equal(test_inb(&u, 0x60), 0x1e);
	assert_int_equal(test_inb(&u, 0x60), 0x1e);
	assert_false(u.lines[1].level);
	k2->dev.cls->destroy(&k2->dev);
	test_env_fini(&u);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_controller), T(test_reset_and_a20), T(test_keyboard),
		T(test_keys),	    T(test_mouse),	   T(test_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
