/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "dev/debug/debugports.h"
#include "dev/debug/testdev.h"
#include "dev/testing.h"

static struct test_env t;
static struct debugports *ports;
static struct testdev *dev;

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(debugports_create(&ports, &t.env, true, NULL), 0);
	assert_int_equal(testdev_create(&dev, &t.env, test_line(&t, 0), NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	ports->dev.cls->destroy(&ports->dev);
	dev->dev.cls->destroy(&dev->dev);
	test_env_fini(&t);
	return 0;
}

static void test_exit(void **state)
{
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xf4, 4), 0);
	bus_write(t.env.bus, BUS_PIO, 0xf4, 4, 0x12345);
	assert_int_equal(t.exits, 1);
	assert_int_equal(t.exit_code, 0x12345);
	test_outb(&t, 0xf4, 7);
	assert_int_equal(t.exit_code, 7);
}

static void test_no_exit(void **state)
{
	ports->dev.cls->destroy(&ports->dev);
	assert_int_equal(debugports_create(&ports, &t.env, false, NULL), 0);
	test_outb(&t, 0xf4, 7);
	assert_int_equal(t.exits, 0);
}

static void test_post_and_consoles(void **state)
{
	FILE *log = tmpfile();
	char text[1024] = { 0 };

	test_outb(&t, 0x80, 0x42);
	assert_int_equal(test_inb(&t, 0x80), 0x42);
	assert_int_equal(test_inb(&t, 0xe9), 0xe9);
	assert_int_equal(test_inb(&t, 0x402), 0xe9);
	log_set_fd(fileno(log));
	log_set_level(LOG_DEBUG);
	for (const char *s = "hello\x1b there\r\n"; *s; s++)
		test_outb(&t, 0xe9, (uint8_t)*s);
	for (unsigned i = 0; i < 450; i++)
		test_outb(&t, 0x402, 'x');
	log_set_level(LOG_WARN);
	log_set_fd(2);
	assert_true(pread(fileno(log), text, sizeof(text) - 1, 0) > 0);
	assert_non_null(strstr(text, "hello there\n")); /* no control characters */
	assert_int_equal(strlen(strchr(text, 'x')) > 400, 1);
	fclose(log);
}

static void test_testdev(void **state)
{
	struct bus *b = t.env.bus;

	bus_write(b, BUS_PIO, 0xe0, 4, 0x11223344);
	assert_int_equal(bus_read(b, BUS_PIO, 0xe0, 4), 0x11223344);
	assert_int_equal(bus_read(b, BUS_PIO, 0xe0, 2), 0x3344);
	bus_write(b, BUS_PIO, 0xe0, 1, 0x99);
	assert_int_equal(bus_read(b, BUS_PIO, 0xe0, 4), 0x11223399);
	bus_write(b, BUS_PIO, 0xe4, 4, 0x1000);
	test_outb(&t, 0xe8, 0x77);
	assert_int_equal(test_inb(&t, 0xe8), 0x77);
	test_outb(&t, 0x200e, 1);
	assert_true(t.lines[14].level);
	bus_write(b, BUS_PIO, 0x200e, 4, 0);
	assert_false(t.lines[14].level);
	bus_write(b, BUS_PIO, 0x2017, 1, 1);
	assert_true(t.lines[23].level);
	for (unsigned size = 1; size <= 8; size++) {
		bus_write(b, BUS_MMIO, TESTDEV_IOMEM + 4096 - size, size, 0x8877665544332211);
		assert_true(bus_read(b, BUS_MMIO, TESTDEV_IOMEM + 4096 - size, size) ==
			    (0x8877665544332211 & (~0ull >> (64 - size * 8))));
	}
	assert_int_equal(bus_read(b, BUS_MMIO, TESTDEV_IOMEM + 4095, 2), 0xff88);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_exit),
		T(test_no_exit),
		T(test_post_and_consoles),
		T(test_testdev),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
