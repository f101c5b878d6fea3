/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/serial/uart.h"
#include "dev/testing.h"

/* A backend that takes as many bytes as the test allows. */
struct tap {
	struct char_dev chr;
	uint8_t out[4096];
	size_t nout, allowance;
	const uint8_t *in;
	size_t nin;
};

static size_t tap_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	struct tap *tap = container_of(c, struct tap, chr);
	size_t n = MIN(len, tap->allowance);

	memcpy(tap->out + tap->nout, data, n);
	tap->nout += n;
	tap->allowance -= n;
	return n;
}

static void tap_rx_ready(struct char_dev *c)
{
	struct tap *tap = container_of(c, struct tap, chr);

	while (tap->nin && chardev_room(c)) {
		size_t n = MIN(tap->nin, chardev_room(c));

		chardev_give(c, tap->in, n);
		tap->in += n;
		tap->nin -= n;
	}
}

static const struct char_ops tap_ops = { tap_write, tap_rx_ready, NULL };

static struct test_env t;
static struct tap tap;
static struct uart *uart;

static int setup(void **state)
{
	test_env_init(&t);
	memset(&tap, 0, sizeof(tap));
	tap.chr.ops = &tap_ops;
	tap.allowance = SIZE_MAX;
	assert_int_equal(uart_create(&uart, &t.env, 0, test_line(&t, 4), &tap.chr, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	uart->dev.cls->destroy(&uart->dev);
	assert_null(tap.chr.user.receive);
	test_env_fini(&t);
	return 0;
}

static uint8_t rd(unsigned reg)
{
	return test_inb(&t, (uint16_t)(0x3f8 + reg));
}

static void wr(unsigned reg, uint8_t v)
{
	test_outb(&t, (uint16_t)(0x3f8 + reg), v);
}

static void type(const char *s)
{
	tap.in = (const uint8_t *)s;
	tap.nin = strlen(s);
	tap_rx_ready(&tap.chr);
}

static bool irq(void)
{
	return t.lines[4].level;
}

static void test_registers(void **state)
{
	assert_int_equal(rd(2), 0x01);
	assert_int_equal(rd(5), 0x60);
	assert_int_equal(rd(6), 0xb0);
	wr(7, 0xa5);
	assert_int_equal(rd(7), 0xa5);
	wr(1, 0xff);
	assert_int_equal(rd(1), 0x0f);
	wr(4, 0xff);
	assert_int_equal(rd(4), 0x1f);
	wr(4, 0);
	wr(3, 0x83);
	wr(0, 0x01);
	wr(1, 0x02);
	assert_int_equal(rd(0), 0x01);
	assert_int_equal(rd(1), 0x02);
	wr(3, 0x03);
	assert_int_equal(rd(1), 0x0f);
	assert_int_equal(tap.nout, 0);
	wr(2, 0x01);
	assert_int_equal(rd(2) & 0xc0, 0xc0);
	wr(2, 0x00);
	assert_int_equal(rd(2) & 0xc0, 0);
	assert_int_equal(uart_port(2), 0x3e8);
}

static void test_thre_interrupt(void **state)
{
	assert_false(irq());
	wr(1, 0x02); /* enabling with an empty THR asks at once */
	assert_true(irq());
	assert_int_equal(rd(2), 0x02);
	assert_false(irq()); /* reading it clears it */
	assert_int_equal(rd(2), 0x01);
	wr(0, 'x');
	assert_true(irq());
	unsigned rises = t.lines[4].rises;

	wr(0, 'y'); /* without reading IIR: still an edge for each */
	assert_true(irq());
	assert_int_equal(t.lines[4].rises, rises + 1);
	wr(1, 0);
	assert_false(irq());
	wr(1, 0x02);
	assert_true(irq());
	assert_int_equal(tap.nout, 2);
	assert_memory_equal(tap.out, "xy", 2);
}

static void test_slow_backend_loses_nothing(void **state)
{
	static const char text[] = "0123456789abcdefghijklmnopqrstuvwxyz";
	unsigned i = 0;

	wr(2, 0x01);
	wr(1, 0x02);
	tap.allowance = 0;
	for (unsigned round = 0; i < sizeof(text) - 1; round++) {
		assert_true(round < 1000);
		if (rd(5) & 0x20)
			for (unsigned k = 0; k < 16 && i < sizeof(text) - 1; k++)
				wr(0, (uint8_t)text[i++]);
		if (round == 0) {
			assert_int_equal(rd(5) & 0x60, 0);
			assert_false(irq());
			/* neither of these throws bytes away */
			wr(2, 0x07);
			wr(2, 0x00);
			wr(2, 0x01);
			uart->dev.cls->reset(&uart->dev);
			wr(2, 0x01);
			wr(1, 0x02);
			assert_false(irq());
		}
		tap.allowance = 5;
		tap.chr.user.writable(tap.chr.user.ctx);
	}
	tap.allowance = 100;
	tap.chr.user.writable(tap.chr.user.ctx);
	assert_true(irq());
	assert_int_equal(rd(5) & 0x60, 0x60);
	assert_int_equal(tap.nout, sizeof(text) - 1);
	assert_memory_equal(tap.out, text, sizeof(text) - 1);
}

static void test_full_fifo(void **state)
{
	tap.allowance = 0;
	for (unsigned i = 0; i < 40; i++) /* a guest that does not look at THRE */
		wr(0, (uint8_t)i);
	tap.allowance = 100;
	tap.chr.user.writable(tap.chr.user.ctx);
	assert_int_equal(tap.nout, 16);
}

static void test_receive(void **state)
{
	type("abc");
	assert_int_equal(tap.nin, 2); /* no FIFO: one byte */
	assert_int_equal(rd(5), 0x61);
	assert_false(irq());
	wr(1, 0x01);
	assert_true(irq());
	assert_int_equal(rd(2), 0x04);
	assert_int_equal(rd(0), 'a');
	assert_int_equal(rd(0), 'b');
	assert_int_equal(rd(0), 'c');
	assert_int_equal(rd(0), 0);
	assert_false(irq());
	assert_int_equal(rd(5), 0x60);
}

static void test_receive_fifo(void **state)
{
	wr(2, 0x81); /* trigger at 8 */
	wr(1, 0x01);
	type("0123456789abcdefghij");
	assert_int_equal(tap.nin, 4);
	assert_int_equal(rd(2), 0xc4);
	for (unsigned i = 0; i < 13; i++)
		rd(0);
	assert_int_equal(rd(2), 0xcc); /* below the trigger: timeout */
	assert_true(irq());
	wr(2, 0x83); /* clear */
	assert_int_equal(rd(5) & 1, 0);
	assert_false(irq());
	type("z");
	assert_int_equal(rd(0), 'z');
}

static void test_priorities(void **state)
{
	wr(4, 0x10); /* loopback */
	rd(6);
	wr(1, 0x0f);
	wr(4, 0x13); /* CTS and DSR rise */
	wr(0, 'a');
	wr(0, 'b'); /* overrun */
	assert_int_equal(rd(2), 0x06);
	assert_int_equal(rd(5), 0x63);
	assert_int_equal(rd(2), 0x04);
	assert_int_equal(rd(0), 'a');
	assert_int_equal(rd(2), 0x02);
	assert_int_equal(rd(2), 0x00);
	assert_int_equal(rd(6), 0x33);
	assert_int_equal(rd(2), 0x01);
	assert_false(irq());
	assert_int_equal(tap.nout, 0);
}

static void test_loopback_modem(void **state)
{
	wr(4, 0x1f);
	assert_int_equal(rd(6) & 0xf0, 0xf0);
	wr(4, 0x1b);
	assert_int_equal(rd(6), 0xb4); /* trailing edge of RI */
	type("q");		       /* the line is cut */
	assert_int_equal(tap.nin, 1);
	wr(3, 0x43); /* break */
	assert_int_equal(rd(5), 0x71);
	assert_int_equal(rd(0), 0);
	wr(4, 0x0b);
	assert_int_equal(tap.nin, 0);
	assert_int_equal(rd(0), 'q');
}

static void test_wide_access(void **state)
{
	bus_write(t.env.bus, BUS_PIO, 0x3fb, 1, 0x83);
	bus_write(t.env.bus, BUS_PIO, 0x3f8, 2, 0x0201);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0x3f8, 2), 0x0201);
}

static void test_state_moves(void **state)
{
	struct test_env u;
	struct uart *other;
	struct tap tap2 = { .chr.ops = &tap_ops, .allowance = SIZE_MAX };

	test_env_init(&u);
	assert_int_equal(uart_create(&other, &u.env, 0, test_line(&u, 4), &tap2.chr, NULL), 0);
	wr(1, 0x02);
	tap.allowance = 1;
	wr(0, 'a');
	wr(0, 'b');
	wr(0, 'c');
	test_move_state(&uart->dev, &other->dev);
	assert_int_equal(tap2.nout, 2);
	assert_memory_equal(tap2.out, "bc", 2);
	assert_true(u.lines[4].level); /* the transmit interrupt is not lost */
	other->dev.cls->destroy(&other->dev);
	test_env_fini(&u);
}

static void test_not_connected(void **state)
{
	struct uart *u2;

	assert_int_equal(uart_create(&u2, &t.env, 1, test_line(&t, 3), NULL, NULL), 0);
	test_outb(&t, 0x2f8, 'x');
	assert_int_equal(test_inb(&t, 0x2fd), 0x60);
	assert_int_equal(test_inb(&t, 0x2f8), 0);
	u2->dev.cls->destroy(&u2->dev);
	assert_int_equal(uart_create(&u2, &t.env, 0, test_line(&t, 3), NULL, NULL), -EEXIST);
	assert_int_equal(uart_create(&u2, &t.env, 4, test_line(&t, 3), NULL, NULL), -EINVAL);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_registers),   T(test_thre_interrupt), T(test_slow_backend_loses_nothing),
		T(test_full_fifo),   T(test_receive),	     T(test_receive_fifo),
		T(test_priorities),  T(test_loopback_modem), T(test_wide_access),
		T(test_state_moves), T(test_not_connected),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
