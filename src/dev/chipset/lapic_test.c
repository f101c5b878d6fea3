/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/lapic.h"
#include "dev/testing.h"

#define N	4
#define TSC_KHZ 2000000u

static struct test_env t;
static struct lapic_bus *bus;
static struct lapic *apic[N];

static struct {
	bool intr[N];
	unsigned nmi[N], init[N], sipi[N];
	uint8_t sipi_vector[N];
	unsigned eois;
	uint8_t eoi_vector;
	unsigned extints;
	uint8_t extint_vector;
	uint64_t base[N];
} up;

static void set_intr(void *ctx, unsigned cpu, bool level)
{
	up.intr[cpu] = level;
}

static void raise_nmi(void *ctx, unsigned cpu)
{
	up.nmi[cpu]++;
}

static void init(void *ctx, unsigned cpu)
{
	up.init[cpu]++;
}

static void sipi(void *ctx, unsigned cpu, uint8_t vector)
{
	up.sipi[cpu]++;
	up.sipi_vector[cpu] = vector;
}

static uint64_t read_tsc(void *ctx, unsigned cpu)
{
	return (uint64_t)vclock_now_ns(&t.clock) * (TSC_KHZ / 1000000);
}

static void base_changed(void *ctx, unsigned cpu, uint64_t base)
{
	up.base[cpu] = base;
}

static void eoi(void *ctx, uint8_t vector)
{
	up.eois++;
	up.eoi_vector = vector;
}

static uint8_t extint_ack(void *ctx)
{
	struct irq_line l = lapic_bus_lint0_line(bus);

	up.extints++;
	irq_set(&l, false);
	return up.extint_vector;
}

static int setup(void **state)
{
	struct lapic_bus_config cfg = {
		.up = { set_intr, raise_nmi, init, sipi, read_tsc, base_changed, eoi, extint_ack, NULL },
		.tsc_khz = TSC_KHZ,
		.phys_bits = 40,
		.has_x2apic = true,
		.has_tsc_deadline = true,
	};

	test_env_init(&t);
	memset(&up, 0, sizeof(up));
	assert_int_equal(lapic_bus_create(&bus, &cfg, NULL), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(lapic_create(&apic[i], &t.env, bus, i, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	for (unsigned i = 0; i < N; i++)
		apic[i]->dev.cls->destroy(&apic[i]->dev);
	lapic_bus_destroy(bus);
	test_env_fini(&t);
	return 0;
}

static uint32_t rd(unsigned cpu, unsigned reg)
{
	uint64_t v = 0;

	assert_true(lapic_mmio(apic[cpu], LAPIC_DEFAULT_BASE + reg, 4, false, &v));
	return (uint32_t)v;
}

static void wr(unsigned cpu, unsigned reg, uint32_t v)
{
	uint64_t data = v;

	assert_true(lapic_mmio(apic[cpu], LAPIC_DEFAULT_BASE + reg, 4, true, &data));
}

static uint64_t rdmsr(unsigned cpu, uint32_t msr)
{
	uint64_t v = 0;

	assert_int_equal(lapic_msr_read(apic[cpu], msr, &v), 0);
	return v;
}

static void wrmsr(unsigned cpu, uint32_t msr, uint64_t v)
{
	assert_int_equal(lapic_msr_write(apic[cpu], msr, v), 0);
}

static void enable(unsigned cpu)
{
	wr(cpu, 0xf0, 0x1ff);
}

static void enable_all(void)
{
	for (unsigned i = 0; i < N; i++)
		enable(i);
}

static void to_x2apic(unsigned cpu)
{
	wrmsr(cpu, 0x1b, rdmsr(cpu, 0x1b) | 0x400);
}

static void icr(unsigned cpu, uint32_t dest, uint32_t low)
{
	wr(cpu, 0x310, dest << 24);
	wr(cpu, 0x300, low);
}

/* Who has @vector requested: a bit a cpu; takes the interrupts. */
static unsigned takers(uint8_t vector)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < N; i++) {
		int v = lapic_ack(apic[i]);

		if (v == vector)
			mask |= 1u << i;
		else
			assert_int_equal(v, -1);
		if (v >= 0) {
			if (apic[i]->base & 0x400)
				wrmsr(i, 0x80b, 0);
			else
				wr(i, 0xb0, 0);
		}
		assert_false(up.intr[i]);
	}
	return mask;
}

static void test_power_on(void **state)
{
	assert_int_equal(rdmsr(0, 0x1b), 0xfee00900);
	assert_int_equal(rdmsr(1, 0x1b), 0xfee00800);
	assert_int_equal(rd(2, 0x20), 2u << 24);
	assert_int_equal(rd(0, 0x30), 0x50014);
	assert_int_equal(rd(0, 0xf0), 0xff);
	assert_int_equal(rd(0, 0xe0), 0xffffffff);
	assert_int_equal(rd(0, 0x320), 0x10000);
	assert_int_equal(rd(0, 0x350), 0x700); /* virtual wire of the BSP */
	assert_int_equal(rd(1, 0x350), 0x10000);
	assert_int_equal(lapic_ack(apic[0]), -1);
}

static void test_self_ipi_and_priority(void **state)
{
	enable(0);
	icr(0, 0, 0x40000 | 0x41);
	icr(0, 0, 0x40000 | 0x62);
	icr(0, 0, 0x40000 | 0x61);
	assert_true(up.intr[0]);
	assert_int_equal(rd(0, 0x230), 6);
	assert_int_equal(lapic_ack(apic[0]), 0x62);
	assert_int_equal(rd(0, 0x130), 4);
	assert_int_equal(rd(0, 0xa0), 0x60);
	assert_false(up.intr[0]); /* 61 is of the same class, 41 below */
	icr(0, 0, 0x40000 | 0x70);
	assert_true(up.intr[0]);
	assert_int_equal(lapic_ack(apic[0]), 0x70);
	wr(0, 0xb0, 0);
	assert_false(up.intr[0]);
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[0]), 0x61);
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	wr(0, 0xb0, 0);
	wr(0, 0xb0, 0);		      /* nothing in service */
	assert_int_equal(up.eois, 0); /* all were edges */
}

static void test_tpr_and_cr8(void **state)
{
	enable(0);
	wr(0, 0x80, 0x45);
	assert_int_equal(lapic_get_cr8(apic[0]), 4);
	assert_int_equal(rd(0, 0xa0), 0x45);
	icr(0, 0, 0x40000 | 0x4f);
	assert_false(up.intr[0]);
	assert_int_equal(lapic_set_cr8(apic[0], 3), 0);
	assert_int_equal(rd(0, 0x80), 0x30);
	assert_true(up.intr[0]);
	assert_int_equal(lapic_set_cr8(apic[0], 15), 0);
	assert_false(up.intr[0]);
	assert_int_equal(lapic_ack(apic[0]), -1); /* went away between INTR and INTA */
	assert_int_equal(lapic_set_cr8(apic[0], 16), -EPERM);
	assert_int_equal(lapic_set_cr8(apic[0], 0), 0);
	assert_int_equal(lapic_ack(apic[0]), 0x4f);
}

static void test_soft_disable(void **state)
{
	icr(1, 0, 0x40000 | 0x41);
	assert_false(up.intr[1]);
	enable(1);
	wr(1, 0x320, 0x41);
	assert_int_equal(rd(1, 0x320), 0x41);
	wr(1, 0xf0, 0xff);
	assert_int_equal(rd(1, 0x320), 0x10041);
	wr(1, 0x320, 0x41);
	assert_int_equal(rd(1, 0x320), 0x10041);
}

static void test_physical_destinations(void **state)
{
	enable_all();
	icr(0, 2, 0x50);
	assert_int_equal(takers(0x50), 4);
	icr(0, 0xff, 0x50);
	assert_int_equal(takers(0x50), 15);
	icr(0, 7, 0x50);
	assert_int_equal(takers(0x50), 0);
	icr(1, 0, 0x80000 | 0x50); /* all including self */
	assert_int_equal(takers(0x50), 15);
	icr(1, 0, 0xc0000 | 0x50); /* all but self */
	assert_int_equal(takers(0x50), 13);
	wr(3, 0x20, 0x12000000);
	icr(1, 0x12, 0x50);
	assert_int_equal(takers(0x50), 8);
}

static void test_logical_flat(void **state)
{
	enable_all();
	for (unsigned i = 0; i < N; i++)
		wr(i, 0xd0, 1u << (24 + i));
	for (unsigned dest = 0; dest < 0xff; dest++) {
		icr(0, dest, 0x800 | 0x50);
		assert_int_equal(takers(0x50), dest & 15);
	}
	wr(3, 0xd0, 0);
	icr(0, 0xff, 0x800 | 0x50);
	assert_int_equal(takers(0x50), 15); /* broadcast */
	icr(0, 0xfe, 0x800 | 0x50);
	assert_int_equal(takers(0x50), 6);
}

static void test_logical_cluster(void **state)
{
	enable_all();
	for (unsigned i = 0; i < N; i++) {
		wr(i, 0xe0, 0);
		assert_int_equal(rd(i, 0xe0), 0x0fffffff);
		wr(i, 0xd0, ((i / 2) << 4 | 1u << (i & 1)) << 24);
	}
	icr(0, 0x01, 0x800 | 0x50);
	assert_int_equal(takers(0x50), 1);
	icr(0, 0x03, 0x800 | 0x50);
	assert_int_equal(takers(0x50), 3);
	icr(0, 0x1f, 0x800 | 0x50);
	assert_int_equal(takers(0x50), 12);
	icr(0, 0x23, 0x800 | 0x50);
	assert_int_equal(takers(0x50), 0);
	icr(0, 0xff, 0x800 | 0x50);
	assert_int_equal(takers(0x50), 15);
}

static void test_lowest_priority(void **state)
{
	enable_all();
	wr(0, 0x80, 0x20);
	wr(2, 0x80, 0x20);
	icr(0, 0xff, 0x100 | 0x50);
	assert_int_equal(takers(0x50), 2);
	icr(0, 0xff, 0x100 | 0x50);
	assert_int_equal(takers(0x50), 8); /* takes turns */
	icr(0, 0xff, 0x100 | 0x50);
	assert_int_equal(takers(0x50), 2);
	wr(1, 0xf0, 0xff);
	icr(0, 0xff, 0x100 | 0x50);
	icr(0, 0xff, 0x100 | 0x50);
	assert_int_equal(takers(0x50), 8);
	icr(0, 9, 0x100 | 0x50); /* nobody */
	assert_int_equal(takers(0x50), 0);
}

static void test_nmi_init_sipi(void **state)
{
	enable_all();
	icr(0, 1, 0x4400);
	assert_int_equal(up.nmi[1], 1);
	wr(1, 0xf0, 0xff); /* NMIs reach a soft-disabled APIC */
	icr(0, 1, 0x400);
	assert_int_equal(up.nmi[1], 2);
	wr(1, 0x80, 0x33);
	icr(0, 1, 0xc500);
	assert_int_equal(up.init[1], 1);
	assert_int_equal(rd(1, 0x80), 0);
	assert_int_equal(rd(1, 0x20), 1u << 24);
	icr(0, 1, 0x8500); /* level de-assert */
	assert_int_equal(up.init[1], 1);
	icr(0, 1, 0x4600 | 0x9a);
	assert_int_equal(up.sipi[1], 1);
	assert_int_equal(up.sipi_vector[1], 0x9a);
	icr(0, 0, 0xc0000 | 0x4600 | 0x10);
	assert_int_equal(up.sipi[0], 0);
	assert_int_equal(up.sipi[2] + up.sipi[3], 2);
	lapic_inject_nmi(apic[0]);
	assert_int_equal(up.nmi[0], 0); /* LINT1 masked */
	wr(0, 0x360, 0x400);
	lapic_inject_nmi(apic[0]);
	assert_int_equal(up.nmi[0], 1);
	/* SMI goes nowhere */
	icr(0, 1, 0x200);
	icr(0, 1, 0x300);
}

static void test_errors(void **state)
{
	enable(0);
	wr(0, 0x370, 0x40);
	icr(0, 0, 0x40000 | 5);
	assert_int_equal(rd(0, 0x280), 0); /* latched by a write only */
	wr(0, 0x280, 0);
	assert_int_equal(rd(0, 0x280), 0x20);
	assert_int_equal(lapic_ack(apic[0]), 0x40);
	wr(0, 0xb0, 0);
	wr(0, 0x280, 0);
	assert_int_equal(rd(0, 0x280), 0);
	lapic_bus_msi(bus, 0xfee00000, 0x0f);
	wr(0, 0x280, 0);
	assert_int_equal(rd(0, 0x280), 0x40);
	rd(0, 0x40);
	wr(0, 0x3f0, 0x41);
	wr(0, 0x280, 0);
	assert_int_equal(rd(0, 0x280), 0x80);
	/* an error whose interrupt is illegal itself */
	wr(0, 0x370, 3);
	icr(0, 0, 0x40000 | 5);
	wr(0, 0x280, 0);
	assert_int_equal(rd(0, 0x280), 0x20);
}

static void test_msi_and_level_eoi(void **state)
{
	enable_all();
	lapic_bus_msi(bus, 0xfee02000, 0xc000 | 0x55); /* level, asserted, to 2 */
	assert_int_equal(lapic_ack(apic[2]), 0x55);
	assert_int_equal(rd(2, 0x1a0), 1u << 21);
	assert_int_equal(up.eois, 0);
	wr(2, 0xb0, 0);
	assert_int_equal(up.eois, 1);
	assert_int_equal(up.eoi_vector, 0x55);
	lapic_bus_msi(bus, 0xfee02000, 0x55); /* edge */
	assert_int_equal(lapic_ack(apic[2]), 0x55);
	assert_int_equal(rd(2, 0x1a0), 0);
	wr(2, 0xb0, 0);
	assert_int_equal(up.eois, 1);
	lapic_bus_msi(bus, 0xfee02000, 0x8000 | 0x55); /* level, de-asserted */
	lapic_bus_msi(bus, 0xfec02000, 0x55);	       /* not an interrupt */
	assert_int_equal(takers(0x55), 0);
	lapic_bus_msi(bus, 0xfeeff000, 0x55); /* broadcast */
	assert_int_equal(takers(0x55), 15);
	lapic_bus_msi(bus, 0xfee01000, 0x400); /* NMI */
	assert_int_equal(up.nmi[1], 1);
}

static void test_extint(void **state)
{
	struct irq_line lint0 = lapic_bus_lint0_line(bus);

	up.extint_vector = 0x33;
	irq_set(&lint0, true);
	assert_true(up.intr[0]);
	assert_false(up.intr[1]);
	assert_int_equal(lapic_ack(apic[0]), 0x33);
	assert_int_equal(up.extints, 1);
	assert_false(up.intr[0]);
	enable(0);
	wr(0, 0x350, 0x10700);
	irq_set(&lint0, true);
	assert_false(up.intr[0]);
	wr(0, 0x350, 0x700);
	assert_true(up.intr[0]);
	/* with the APIC off the pin is INTR itself */
	wr(0, 0x350, 0x10700);
	assert_false(up.intr[0]);
	wrmsr(0, 0x1b, 0xfee00100);
	assert_true(up.intr[0]);
	assert_int_equal(lapic_ack(apic[0]), 0x33);
	/* LINT0 as an ordinary interrupt, edge and level */
	wrmsr(0, 0x1b, 0xfee00900);
	enable(0);
	wr(0, 0x350, 0x44);
	irq_set(&lint0, true);
	assert_int_equal(lapic_ack(apic[0]), 0x44);
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[0]), -1);
	irq_set(&lint0, false);
	wr(0, 0x350, 0x8044);
	irq_set(&lint0, true);
	assert_int_equal(lapic_ack(apic[0]), 0x44);
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[0]), 0x44);
	irq_set(&lint0, false);
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[0]), -1);
}

static void test_timer_one_shot(void **state)
{
	enable(0);
	wr(0, 0x320, 0x80);
	wr(0, 0x3e0, 0xb); /* divide by 1 */
	wr(0, 0x380, 1000);
	assert_int_equal(rd(0, 0x390), 1000);
	test_advance(&t, 400);
	assert_int_equal(rd(0, 0x390), 600);
	assert_false(up.intr[0]);
	test_advance(&t, 600);
	assert_int_equal(rd(0, 0x390), 0);
	assert_int_equal(rd(0, 0x380), 1000);
	assert_int_equal(lapic_ack(apic[0]), 0x80);
	wr(0, 0xb0, 0);
	test_advance(&t, 100000);
	assert_false(up.intr[0]);
	/* dividers */
	static const struct {
		uint32_t tdcr, div;
	} divs[] = { { 0, 2 },	{ 1, 4 },  { 2, 8 },	{ 3, 16 },
		     { 8, 32 }, { 9, 64 }, { 10, 128 }, { 11, 1 } };

	for (unsigned i = 0; i < ARRAY_SIZE(divs); i++) {
		wr(0, 0x3e0, divs[i].tdcr);
		wr(0, 0x380, 100);
		test_advance(&t, 50 * divs[i].div);
		assert_int_equal(rd(0, 0x390), 50);
	}
	/* changed while it runs: the count stays */
	wr(0, 0x3e0, 0);
	assert_int_equal(rd(0, 0x390), 50);
	test_advance(&t, 99);
	assert_false(up.intr[0]);
	test_advance(&t, 1);
	assert_true(up.intr[0]);
	wr(0, 0x380, 100);
	wr(0, 0x380, 0); /* stops */
	assert_int_equal(rd(0, 0x390), 0);
}

static void test_timer_periodic(void **state)
{
	unsigned ticks = 0;

	enable(0);
	wr(0, 0x3e0, 0xb);
	wr(0, 0x320, 0x20080);
	wr(0, 0x380, 100000);
	for (unsigned i = 0; i < 100; i++) {
		test_advance(&t, 10000);
		if (lapic_ack(apic[0]) == 0x80) {
			ticks++;
			wr(0, 0xb0, 0);
		}
	}
	assert_int_equal(ticks, 10);
	assert_int_equal(rd(0, 0x390), 100000);
	/* late host: ticks coalesce, the phase stays */
	test_advance_late(&t, 250000);
	assert_int_equal(lapic_ack(apic[0]), 0x80);
	wr(0, 0xb0, 0);
	assert_int_equal(rd(0, 0x390), 50000);
	test_advance(&t, 49999);
	assert_false(up.intr[0]);
	test_advance(&t, 1);
	assert_true(up.intr[0]);
	/* a period of one count does not hold up the host */
	wr(0, 0x380, 1);
	test_advance(&t, 10000000);
	assert_int_equal(rd(0, 0x390), 1);
}

static void test_timer_mode_changes(void **state)
{
	enable(0);
	wr(0, 0x3e0, 0xb);
	wr(0, 0x320, 0x10080);
	wr(0, 0x380, 1000000);
	wr(0, 0x320, 0x30080);
	assert_int_equal(rd(0, 0x380), 1000000);
	test_advance(&t, 700000);
	assert_int_equal(rd(0, 0x390), 300000); /* went on from where it was */
	test_advance(&t, 400000);
	assert_int_equal(rd(0, 0x390), 900000);
	wr(0, 0x320, 0x10080);
	test_advance(&t, 900000);
	assert_int_equal(rd(0, 0x390), 0);
	wr(0, 0x320, 0x30080);
	test_advance(&t, 900000);
	assert_int_equal(rd(0, 0x390), 0); /* ended: does not start by itself */
	assert_false(up.intr[0]);	   /* masked all the time */
	/* to TSC-deadline and back: stopped, initial count gone */
	wr(0, 0x380, 1000000);
	wr(0, 0x320, 0x40080);
	assert_int_equal(rd(0, 0x380), 0);
	wr(0, 0x380, 1000);
	assert_int_equal(rd(0, 0x380), 0);
	wr(0, 0x320, 0x80);
	test_advance(&t, 2000000);
	assert_false(up.intr[0]);
}

/* The count reads 0 and the host has not come to the expiry: what the guest writes then finds it done. */
static void test_timer_late_host(void **state)
{
	static const struct {
		uint16_t reg;
		uint32_t value;
	} writes[] = {
		{ 0x320, 0x20081 }, /* periodic, another vector */
		{ 0x320, 0x10080 }, /* masked */
		{ 0x380, 5000000 },
		{ 0x3e0, 0 },
	};

	enable(0);
	for (unsigned i = 0; i < ARRAY_SIZE(writes); i++) {
		wr(0, 0x3e0, 0xb);
		wr(0, 0x320, 0x80);
		wr(0, 0x380, 1000000);
		vclock_set(&t.clock, vclock_now_ns(&t.clock) + 1300000);
		assert_int_equal(rd(0, 0x390), 0);
		wr(0, writes[i].reg, writes[i].value);
		assert_int_equal(rd(0, 0x390), writes[i].reg == 0x380 ? 5000000 : 0);
		assert_int_equal(lapic_ack(apic[0]), 0x80);
		wr(0, 0xb0, 0);
		test_advance(&t, 2000000); /* nothing is left of it */
		assert_false(up.intr[0]);
		wr(0, 0x380, 0);
	}
	/* periodic: what it had reached goes on */
	wr(0, 0x3e0, 0xb);
	wr(0, 0x320, 0x20080);
	wr(0, 0x380, 1000000);
	vclock_set(&t.clock, vclock_now_ns(&t.clock) + 1300000);
	wr(0, 0x320, 0x80);
	assert_int_equal(rd(0, 0x390), 700000);
	assert_int_equal(lapic_ack(apic[0]), 0x80);
}

static void test_tsc_deadline(void **state)
{
	enable(0);
	wrmsr(0, 0x6e0, 1000); /* not in that mode: ignored */
	assert_int_equal(rdmsr(0, 0x6e0), 0);
	wr(0, 0x320, 0x40080);
	test_advance(&t, 1000000);
	wrmsr(0, 0x6e0, 2000000 + 20000); /* 10 us from now */
	assert_int_equal(rdmsr(0, 0x6e0), 2020000);
	test_advance(&t, 9999);
	assert_false(up.intr[0]);
	test_advance(&t, 2);
	assert_int_equal(lapic_ack(apic[0]), 0x80);
	assert_int_equal(rdmsr(0, 0x6e0), 0);
	wr(0, 0xb0, 0);
	wrmsr(0, 0x6e0, 5); /* in the past: now */
	assert_int_equal(lapic_ack(apic[0]), 0x80);
	assert_int_equal(rdmsr(0, 0x6e0), 0);
	wr(0, 0xb0, 0);
	wrmsr(0, 0x6e0, UINT64_MAX);
	test_advance(&t, 1000000000);
	assert_false(up.intr[0]);
	assert_true(rdmsr(0, 0x6e0) == UINT64_MAX);
	wrmsr(0, 0x6e0, 0);
	assert_false(vtimer_is_armed(apic[0]->timer));
}

static int try_base(unsigned cpu, uint64_t v)
{
	return lapic_msr_write(apic[cpu], 0x1b, v);
}

static void test_apic_base(void **state)
{
	uint64_t v;

	/* xAPIC */
	assert_int_equal(try_base(0, 0xfee00500), -EPERM); /* x2APIC without enable */
	assert_int_equal(try_base(0, 0xfee00901), -EPERM);
	assert_int_equal(try_base(0, 0xfee00b00), -EPERM);
	assert_int_equal(try_base(0, 1ull << 40 | 0xfee00900), -EPERM);
	assert_int_equal(try_base(0, 0xfee00d00), 0);
	/* x2APIC */
	assert_false(lapic_mmio(apic[0], 0xfee00030, 4, false, &v));
	assert_int_equal(try_base(0, 0xfee00900), -EPERM);
	assert_int_equal(try_base(0, 0xfee00500), -EPERM);
	assert_int_equal(try_base(0, 0xfee00100), 0);
	/* off */
	assert_int_equal(up.base[0], 0xfee00100);
	assert_false(lapic_mmio(apic[0], 0xfee00030, 4, false, &v));
	assert_int_equal(lapic_msr_read(apic[0], 0x803, &v), -EPERM);
	assert_int_equal(lapic_set_cr8(apic[0], 5), 0);
	assert_int_equal(lapic_get_cr8(apic[0]), 5);
	assert_int_equal(try_base(0, 0xfee00d00), -EPERM);
	assert_int_equal(try_base(0, 0xfee00500), -EPERM);
	/* elsewhere */
	assert_int_equal(try_base(0, 0xfed40900), 0);
	assert_false(lapic_mmio(apic[0], 0xfee00030, 4, false, &v));
	assert_true(lapic_mmio(apic[0], 0xfed40030, 4, false, &v));
	assert_int_equal(v, 0x50014);
	assert_true(lapic_mmio(apic[0], 0xfed40080, 4, false, &v));
	assert_int_equal(v, 0x50);
	assert_int_equal(try_base(0, 0xfee00900), 0);
	/* a changed xAPIC id is forgotten by switching off and on */
	wr(0, 0x20, 0x77000000);
	assert_int_equal(rd(0, 0x20), 0x77000000);
	assert_int_equal(try_base(0, 0xfee00100), 0);
	assert_int_equal(try_base(0, 0xfee00900), 0);
	assert_int_equal(rd(0, 0x20), 0);
}

static void test_x2apic_registers(void **state)
{
	/* readable, writable with 0 */
	static const struct {
		uint16_t msr;
		bool r, w;
	} regs[] = {
		{ 0x802, 1, 0 }, { 0x803, 1, 0 }, { 0x808, 1, 1 }, { 0x809, 0, 0 }, { 0x80a, 1, 0 },
		{ 0x80b, 0, 1 }, { 0x80c, 0, 0 }, { 0x80d, 1, 0 }, { 0x80e, 0, 0 }, { 0x80f, 1, 1 },
		{ 0x810, 1, 0 }, { 0x817, 1, 0 }, { 0x818, 1, 0 }, { 0x827, 1, 0 }, { 0x828, 1, 1 },
		{ 0x829, 0, 0 }, { 0x82f, 0, 0 }, { 0x830, 1, 1 }, { 0x831, 0, 0 }, { 0x832, 1, 1 },
		{ 0x837, 1, 1 }, { 0x838, 1, 1 }, { 0x839, 1, 0 }, { 0x83a, 0, 0 }, { 0x83e, 1, 1 },
		{ 0x83f, 0, 1 }, { 0x840, 0, 0 }, { 0x8ff, 0, 0 }, { 0x800, 0, 0 },
	};
	uint64_t v;

	to_x2apic(1);
	for (unsigned i = 0; i < ARRAY_SIZE(regs); i++) {
		assert_int_equal(lapic_msr_read(apic[1], regs[i].msr, &v), regs[i].r ? 0 : -EPERM);
		assert_int_equal(lapic_msr_write(apic[1], regs[i].msr, 0), regs[i].w ? 0 : -EPERM);
		if (regs[i].msr != 0x830)
			assert_int_equal(lapic_msr_write(apic[1], regs[i].msr, UINT64_MAX), -EPERM);
		/* the other mode */
		assert_int_equal(lapic_msr_read(apic[0], regs[i].msr, &v), -EPERM);
		assert_int_equal(lapic_msr_write(apic[0], regs[i].msr, 0), -EPERM);
	}
	assert_int_equal(rdmsr(1, 0x802), 1);
	assert_int_equal(rdmsr(1, 0x80d), 2);
	assert_int_equal(lapic_msr_write(apic[1], 0x83f, 0x100), -EPERM);
	assert_int_equal(lapic_msr_write(apic[1], 0x80b, 1), -EPERM);
	assert_int_equal(lapic_msr_write(apic[1], 0x828, 1), -EPERM);
	wrmsr(1, 0x835, 0x5700); /* read-only bits of LINT0: ignored (Xen's shutdown) */
	assert_int_equal(rdmsr(1, 0x835) & ~0x10000ULL, 0x700);
	assert_int_equal(lapic_msr_write(apic[1], 0x832, 0x4000), -EPERM);
	wrmsr(1, 0x80f, 0x1ff);
	wrmsr(1, 0x83f, 0xf1);
	assert_int_equal(lapic_ack(apic[1]), 0xf1);
	wrmsr(1, 0x80b, 0);
}

static void test_x2apic_destinations(void **state)
{
	for (unsigned i = 0; i < N; i++) {
		enable(i);
		to_x2apic(i);
	}
	wrmsr(0, 0x830, 2ull << 32 | 0x50);
	assert_true(rdmsr(0, 0x830) == (2ull << 32 | 0x50));
	assert_int_equal(takers(0x50), 4);
	wrmsr(0, 0x830, 0xffffffffull << 32 | 0x50);
	assert_int_equal(takers(0x50), 15);
	wrmsr(0, 0x830, 0xffull << 32 | 0x50);
	assert_int_equal(takers(0x50), 0); /* an id like others here */
	wrmsr(0, 0x830, 0x5ull << 32 | 0x850);
	assert_int_equal(takers(0x50), 5);
	wrmsr(0, 0x830, 0x10005ull << 32 | 0x850);
	assert_int_equal(takers(0x50), 0);
	/* messages from outside still name 8 bits */
	lapic_bus_msi(bus, 0xfee0d004, 0x50);
	assert_int_equal(takers(0x50), 13);
	lapic_bus_msi(bus, 0xfeeff000, 0x50);
	assert_int_equal(takers(0x50), 15);
}

static void test_pv_ipi(void **state)
{
	uint64_t who[2] = { 5, 1 };

	enable_all();
	assert_int_equal(lapic_pv_send_ipi(apic[0], who, 64, 0, 0x50), 2);
	assert_int_equal(takers(0x50), 5);
	assert_int_equal(lapic_pv_send_ipi(apic[0], who, 32, 1, 0x50), 2);
	assert_int_equal(takers(0x50), 10);
	who[0] = who[1] = UINT64_MAX;
	assert_int_equal(lapic_pv_send_ipi(apic[0], who, 64, UINT32_MAX, 0x50), 0);
	assert_int_equal(lapic_pv_send_ipi(apic[0], who, 64, 0, 0x850), -EINVAL);
	assert_int_equal(lapic_pv_send_ipi(apic[0], who, 64, 0, 0x40050), -EINVAL);
	assert_int_equal(lapic_pv_send_ipi(apic[0], who, 64, 0, 0x400), 4);
	assert_int_equal(up.nmi[3], 1);
}

/* ---- end of interrupt in memory ---- */

#define PV_EOI_GPA 0x1234

static uint8_t pv_flag(void)
{
	uint8_t v;

	assert_int_equal(ram_read(t.env.ram, PV_EOI_GPA, &v, 1), 0);
	return v;
}

/* What a guest does: test and clear; true: no EOI write is needed. */
static bool pv_guest_eoi(void)
{
	uint8_t v = pv_flag(), cleared = v & 0xfe;

	assert_int_equal(ram_write(t.env.ram, PV_EOI_GPA, &cleared, 1), 0);
	return v & 1;
}

static void pv_setup(void)
{
	uint8_t other_bits = 0x50;

	enable_all();
	assert_int_equal(ram_write(t.env.ram, PV_EOI_GPA, &other_bits, 1), 0);
	assert_int_equal(lapic_set_pv_eoi(apic[0], PV_EOI_GPA | 2 | 1), -EPERM);
	assert_int_equal(lapic_set_pv_eoi(apic[0], PV_EOI_GPA | 1), 0);
}

static void self_ipi(uint8_t vector)
{
	icr(1, 0, vector); /* from CPU 1: CPU 0 makes no access */
}

static void test_pv_eoi(void **state)
{
	pv_setup();
	self_ipi(0x41);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	assert_int_equal(pv_flag(), 0x51);
	assert_true(pv_guest_eoi());
	assert_int_equal(rd(0, 0x120), 0); /* ISR: an access finds that it ended */
	/* and so does the next interrupt, of lower priority */
	self_ipi(0x91);
	assert_int_equal(lapic_ack(apic[0]), 0x91);
	assert_true(pv_guest_eoi());
	assert_false(up.intr[0]);
	self_ipi(0x31);
	assert_true(up.intr[0]);
	assert_int_equal(lapic_ack(apic[0]), 0x31);
	assert_true(pv_guest_eoi());
	/* the write works as ever, and takes the offer back */
	self_ipi(0x41);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	wr(0, 0xb0, 0);
	assert_int_equal(pv_flag(), 0x50);
	assert_int_equal(rd(0, 0x120), 0);
	assert_int_equal(up.eois, 0);
}

/* A request before the end: INTR asks; the offer is taken back, or was taken. */
static void test_pv_eoi_waiting(void **state)
{
	pv_setup();
	self_ipi(0x91);
	assert_int_equal(lapic_ack(apic[0]), 0x91);
	self_ipi(0x31);
	assert_true(up.intr[0]);
	assert_int_equal(lapic_ack(apic[0]), -1); /* 91H is in service */
	assert_false(up.intr[0]);
	assert_false(pv_guest_eoi());
	wr(0, 0xb0, 0);
	assert_true(up.intr[0]);
	assert_int_equal(lapic_ack(apic[0]), 0x31);

	/* the other way round: ended before the vCPU comes */
	assert_true(pv_guest_eoi());
	self_ipi(0x91);
	assert_int_equal(lapic_ack(apic[0]), 0x91);
	self_ipi(0x31);
	assert_true(pv_guest_eoi());
	assert_int_equal(lapic_ack(apic[0]), 0x31);

	/* the task priority holds it back */
	assert_true(pv_guest_eoi());
	wr(0, 0x80, 0x40);
	self_ipi(0x91);
	assert_int_equal(lapic_ack(apic[0]), 0x91);
	self_ipi(0x31);
	assert_false(up.intr[0]);

	/* nested: no offer for either, each is ended by a write */
	wr(0, 0x80, 0);
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[0]), 0x31);
	assert_int_equal(pv_flag() & 1, 1);
	self_ipi(0x51);
	assert_int_equal(lapic_ack(apic[0]), 0x51);
	assert_false(pv_guest_eoi());
	wr(0, 0xb0, 0);
	assert_int_equal(rd(0, 0x110), 1u << 17);
	wr(0, 0xb0, 0);
	assert_int_equal(rd(0, 0x110), 0);
}

/* No offer: level-triggered, another request waits, not enabled, not RAM, after INIT. */
static void test_pv_eoi_refused(void **state)
{
	pv_setup();
	lapic_bus_msi(bus, 0xfee00000, 0xc041);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	assert_false(pv_guest_eoi());
	wr(0, 0xb0, 0);
	assert_int_equal(up.eois, 1);
	self_ipi(0x41);
	self_ipi(0x91);
	assert_int_equal(lapic_ack(apic[0]), 0x91);
	assert_false(pv_guest_eoi());
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	assert_int_equal(lapic_set_pv_eoi(apic[0], 0), 0);
	assert_false(pv_guest_eoi());
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_set_pv_eoi(apic[0], 0xfffffffff001), 0);
	self_ipi(0x41);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	assert_false(apic[0]->pv_eoi_pending);
	wr(0, 0xb0, 0);
	assert_int_equal(lapic_set_pv_eoi(apic[0], PV_EOI_GPA | 1), 0);
	lapic_init_signal(apic[0]);
	enable(0);
	self_ipi(0x41);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	assert_false(pv_guest_eoi());
}

/* An offer moves with the state; to an engine that has its own LAPIC it does not go. */
static void test_pv_eoi_moves(void **state)
{
	uint8_t regs[1024];

	pv_setup();
	self_ipi(0x41);
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	test_move_state(&apic[0]->dev, &apic[2]->dev);
	lapic_load_pv_eoi(apic[2], PV_EOI_GPA | 1);
	assert_true(pv_guest_eoi());
	assert_int_equal(rd(2, 0x120), 0);

	self_ipi(0x41); /* CPU 0 still believes in its offer, which was taken */
	assert_int_equal(lapic_ack(apic[0]), 0x41);
	lapic_get_regs(apic[0], regs);
	assert_false(pv_guest_eoi());
	assert_int_equal(rd(0, 0x120), 2);
}

static void test_odd_accesses(void **state)
{
	uint64_t v = 0xdead;

	enable(0);
	assert_true(lapic_mmio(apic[0], LAPIC_DEFAULT_BASE + 0xf1, 1, false, &v));
	assert_int_equal(v, 1);
	assert_true(lapic_mmio(apic[0], LAPIC_DEFAULT_BASE + 0xf8, 8, false, &v));
	assert_int_equal(v, 0);
	assert_true(lapic_mmio(apic[0], LAPIC_DEFAULT_BASE + 0xfff, 8, false, &v));
	v = 0;
	assert_true(lapic_mmio(apic[0], LAPIC_DEFAULT_BASE + 0xf0, 1, true, &v));
	assert_true(lapic_mmio(apic[0], LAPIC_DEFAULT_BASE + 0xf4, 4, true, &v));
	assert_int_equal(rd(0, 0xf0), 0x1ff);
	assert_false(lapic_mmio(apic[0], LAPIC_DEFAULT_BASE + 0x1000, 4, false, &v));
}

static void test_exchange(void **state)
{
	uint8_t regs[1024], again[1024];

	enable(1);
	wr(1, 0x80, 0x21);
	wr(1, 0xd0, 0x02000000);
	wr(1, 0x320, 0x20081);
	wr(1, 0x3e0, 3);
	wr(1, 0x380, 5000);
	icr(1, 0, 0x40000 | 0x41);
	icr(1, 0, 0x40000 | 0x91);
	assert_int_equal(lapic_ack(apic[1]), 0x91);
	test_advance(&t, 32000);
	lapic_get_regs(apic[1], regs);
	apic[1]->dev.cls->reset(&apic[1]->dev);
	assert_false(up.intr[1]);
	lapic_set_regs(apic[1], regs);
	lapic_get_regs(apic[1], again);
	assert_memory_equal(regs, again, sizeof(regs));
	assert_int_equal(rd(1, 0x390), 3000);
	test_advance(&t, 48000);
	wr(1, 0x80, 0);
	wr(1, 0xb0, 0);
	assert_int_equal(lapic_ack(apic[1]), 0x81);
	/* x2APIC, deadline */
	wr(1, 0x320, 0x40081);
	wrmsr(1, 0x6e0, 12345678901);
	to_x2apic(1);
	wrmsr(1, 0x830, 7ull << 32 | 0x50);
	lapic_get_regs(apic[1], regs);
	lapic_set_regs(apic[1], regs);
	lapic_get_regs(apic[1], again);
	assert_memory_equal(regs, again, sizeof(regs));
	assert_true(rdmsr(1, 0x6e0) == 12345678901);
	/* anything may come from outside */
	memset(regs, 0xff, sizeof(regs));
	lapic_set_regs(apic[1], regs);
	test_advance(&t, 1000000000);
}

static void test_state_moves(void **state)
{
	enable(2);
	wr(2, 0x3e0, 0xb);
	wr(2, 0x320, 0x81);
	wr(2, 0x380, 50000);
	icr(2, 0, 0x40000 | 0x41);
	test_move_state(&apic[2]->dev, &apic[3]->dev);
	assert_true(up.intr[3]);
	assert_int_equal(lapic_ack(apic[3]), 0x41);
	wr(3, 0xb0, 0);
	test_advance(&t, 50000);
	assert_int_equal(lapic_ack(apic[3]), 0x81);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	/* clang-format off */
	const struct CMUnitTest tests[] = {
		T(test_power_on), T(test_self_ipi_and_priority), T(test_tpr_and_cr8),
		T(test_soft_disable), T(test_physical_destinations), T(test_logical_flat),
		T(test_logical_cluster), T(test_lowest_priority), T(test_nmi_init_sipi),
		T(test_errors), T(test_msi_and_level_eoi), T(test_extint), T(test_timer_one_shot),
		T(test_timer_periodic), T(test_timer_mode_changes), T(test_timer_late_host), T(test_tsc_deadline),
		T(test_apic_base), T(test_x2apic_registers), T(test_x2apic_destinations),
		T(test_pv_ipi), T(test_pv_eoi), T(test_pv_eoi_waiting), T(test_pv_eoi_refused),
		T(test_pv_eoi_moves), T(test_odd_accesses), T(test_exchange), T(test_state_moves),
	};
	/* clang-format on */

	return cmocka_run_group_tests(tests, NULL, NULL);
}
