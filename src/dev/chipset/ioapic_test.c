/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/gsi.h"
#include "dev/chipset/ioapic.h"
#include "dev/chipset/pic.h"
#include "dev/testing.h"

static struct test_env t;
static struct ioapic *io;
static struct pic *pic;
static struct gsi *gsi;

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(ioapic_create(&io, &t.env, NULL), 0);
	assert_int_equal(pic_create(&pic, &t.env, test_line(&t, 0), NULL), 0);
	assert_int_equal(gsi_create(&gsi, &t.env, pic, io, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	gsi->dev.cls->destroy(&gsi->dev);
	pic->dev.cls->destroy(&pic->dev);
	io->dev.cls->destroy(&io->dev);
	test_env_fini(&t);
	return 0;
}

static uint32_t rd(uint8_t reg)
{
	bus_write(t.env.bus, BUS_MMIO, IOAPIC_BASE, 4, reg);
	return (uint32_t)bus_read(t.env.bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4);
}

static void wr(uint8_t reg, uint32_t v)
{
	bus_write(t.env.bus, BUS_MMIO, IOAPIC_BASE, 4, reg);
	bus_write(t.env.bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4, v);
}

static void redir(unsigned pin, uint64_t v)
{
	wr((uint8_t)(0x11 + pin * 2), (uint32_t)(v >> 32));
	wr((uint8_t)(0x10 + pin * 2), (uint32_t)v);
}

static void test_registers(void **state)
{
	assert_int_equal(rd(1), 0x170020);
	wr(1, 0);
	assert_int_equal(rd(1), 0x170020);
	wr(0, 0xffffffff);
	assert_int_equal(rd(0), 0x0f000000);
	assert_int_equal(rd(2), 0x0f000000);
	wr(2, 0);
	assert_int_equal(rd(2), 0x0f000000);
	assert_int_equal(rd(0x10), 0x10000);
	redir(23, UINT64_MAX);
	assert_int_equal(rd(0x3e), 0x1afff);
	assert_int_equal(rd(0x3f), 0xff000000);
	assert_int_equal(rd(0x40), 0);
	wr(0x40, 1);
	wr(0xff, 1);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, IOAPIC_BASE + 0xffc, 4), 0);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, IOAPIC_BASE, 1), 0xff);
}

static void test_edge(void **state)
{
	redir(14, 0x0300000000000941); /* to 3, logical, lowest priority */
	gsi_set(gsi, 14, true);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.addr, 0xfee0300c);
	assert_int_equal(t.msi.data, 0x4141);
	gsi_set(gsi, 14, true);
	assert_int_equal(t.msi.count, 1);
	gsi_set(gsi, 14, false);
	gsi_set(gsi, 14, true);
	assert_int_equal(t.msi.count, 2);
	gsi_set(gsi, 14, false);
	/* an edge while masked is lost */
	redir(14, 0x10041);
	gsi_set(gsi, 14, true);
	gsi_set(gsi, 14, false);
	redir(14, 0x41);
	assert_int_equal(t.msi.count, 2);
}

static void test_level(void **state)
{
	redir(20, 0x0100000000008051);
	gsi_set(gsi, 20, true);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.data, 0xc051);
	assert_int_equal(rd(0x38), 0xc051);
	gsi_set(gsi, 20, false);
	gsi_set(gsi, 20, true);
	assert_int_equal(t.msi.count, 1); /* in service */
	ioapic_eoi(io, 0x52);
	assert_int_equal(t.msi.count, 1);
	ioapic_eoi(io, 0x51);
	assert_int_equal(t.msi.count, 2);
	gsi_set(gsi, 20, false);
	/* the destination may change in between */
	redir(20, 0x0200000000008051);
	assert_int_equal(rd(0x38) & 0x4000, 0x4000);
	bus_write(t.env.bus, BUS_MMIO, IOAPIC_BASE + 0x40, 4, 0x51); /* EOI register */
	assert_int_equal(t.msi.count, 2);
	assert_int_equal(rd(0x38) & 0x4000, 0);
	/* masked, asserted, unmasked */
	redir(20, 0x18051);
	gsi_set(gsi, 20, true);
	assert_int_equal(t.msi.count, 2);
	redir(20, 0x08051);
	assert_int_equal(t.msi.count, 3);
	/* masked in the handler: EOI clears remote IRR, unmasking sends again */
	redir(20, 0x18051);
	ioapic_eoi(io, 0x51);
	assert_int_equal(t.msi.count, 3);
	redir(20, 0x08051);
	assert_int_equal(t.msi.count, 4);
	/* to edge: remote IRR goes */
	redir(20, 0x51);
	assert_int_equal(rd(0x38), 0x51);
	assert_int_equal(t.msi.count, 4);
}

static void test_routing(void **state)
{
	for (unsigned n = 0; n < IOAPIC_PINS; n++)
		redir(n, 0x40 + n);
	gsi_set(gsi, 0, true);
	assert_int_equal(t.msi.data, 0x4042); /* IRQ 0 is pin 2 */
	gsi_set(gsi, 2, true);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(pic->chip[0].lines, 1);
	gsi_set(gsi, 4, true);
	assert_int_equal(t.msi.data, 0x4044);
	assert_int_equal(pic->chip[0].lines, 0x11);
	/* PCI lines have pins of their own, and share ISA IRQs 10 and 11 */
	unsigned before = t.msi.count;
	gsi_set(gsi, 17, true);
	assert_int_equal(t.msi.count, before + 2); /* pin 10, pin 17 */
	assert_int_equal(t.msi.data, 0x4051);
	gsi_set(gsi, 10, true);
	assert_int_equal(t.msi.count, before + 2);
	gsi_set(gsi, 18, true);
	assert_int_equal(t.msi.count, before + 3);
	assert_int_equal(pic->chip[1].lines, 4);
	gsi_set(gsi, 17, false);
	gsi_set(gsi, 10, false);
	assert_int_equal(pic->chip[1].lines, 4);
	gsi_set(gsi, 18, false);
	assert_int_equal(pic->chip[1].lines, 0);
	gsi_set(gsi, 23, true);
	assert_int_equal(t.msi.data, 0x4057);
	assert_int_equal(pic->chip[1].lines, 8);
	gsi_set(gsi, 24, true);
	assert_int_equal(t.msi.data, 0x4057);
}

static void test_state_moves(void **state)
{
	struct test_env u;
	struct ioapic *io2;

	test_env_init(&u);
	assert_int_equal(ioapic_create(&io2, &u.env, NULL), 0);
	redir(9, 0x8061);
	gsi_set(gsi, 9, true);
	test_move_state(&io->dev, &io2->dev);
	assert_int_equal(u.msi.count, 0);
	ioapic_eoi(io2, 0x61);
	assert_int_equal(u.msi.count, 1);
	io2->dev.cls->destroy(&io2->dev);
	test_env_fini(&u);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_registers), T(test_edge),	T(test_level),
		T(test_routing),   T(test_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
