/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/debug/edu.h"
#include "dev/iommu/vtd.h"
#include "dev/pci/pci_host.h"
#include "dev/testing.h"

#define SLOT 2
#define DATA 0x20000u

static struct test_env t;
static struct pci_host *host;
static struct edu *edu;
static uint64_t regs;

static int setup_with(bool has_iommu)
{
	struct irq_line intx[PCI_INTX_LINES];
	struct vtd *v;

	test_env_init(&t);
	if (has_iommu) {
		assert_int_equal(vtd_create(&v, &t.env, 40, NULL), 0);
		t.env.iommu = &v->iommu;
	}
	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = test_line(&t, i);
	assert_int_equal(pci_host_create(&host, &t.env, intx, NULL), 0);
	assert_int_equal(edu_create(&edu, &t.env, pci_host_bus(host), SLOT, NULL), 0);
	assert_int_equal(pci_bus_assign(pci_host_bus(host), NULL), 0);
	pci_config_write(&edu->pci, 4, 2, 6);
	regs = pci_bar_address(&edu->pci, 0);
	assert_true(regs);
	return 0;
}

static int setup(void **state)
{
	return setup_with(false);
}

static int teardown(void **state)
{
	edu->dev.cls->destroy(&edu->dev);
	host->dev.cls->destroy(&host->dev);
	if (t.env.iommu) {
		struct vtd *v = container_of(t.env.iommu, struct vtd, iommu);

		v->dev.cls->destroy(&v->dev);
	}
	test_env_fini(&t);
	return 0;
}

static uint64_t rd(unsigned reg, unsigned size)
{
	return bus_read(t.env.bus, BUS_MMIO, regs + reg, size);
}

static void wr(unsigned reg, unsigned size, uint64_t value)
{
	bus_write(t.env.bus, BUS_MMIO, regs + reg, size, value);
}

static bool intx(void)
{
	return t.lines[pci_intx_index(SLOT, 0)].level;
}

static void test_registers(void **state)
{
	assert_int_equal(pci_config_get(&edu->pci, 0, 4), 0x11e81234);
	assert_int_equal(rd(0, 4), 0x010000ed);
	wr(4, 4, 0x12345678);
	assert_int_equal(rd(4, 4), 0xedcba987);
	/* 4 bytes below 80H, 4 or 8 from there on */
	wr(4, 8, 0);
	wr(4, 1, 0);
	wr(5, 4, 0);
	assert_int_equal(rd(4, 4), 0xedcba987);
	assert_int_equal(rd(4, 2), 0xffff);
	wr(0x80, 8, 0x1122334455667788);
	assert_int_equal(rd(0x80, 8), 0x1122334455667788);
	assert_int_equal(rd(0x84, 4), 0x11223344);
	wr(0x84, 4, 0xaabbccdd);
	wr(0x80, 4, 1);
	assert_int_equal(rd(0x80, 8), 0xaabbccdd00000001);
	assert_int_equal(rd(0x100, 4), 0xffffffff);
	wr(0x100, 4, 5);
}

static void test_factorial(void **state)
{
	static const uint32_t rows[][2] = {
		{ 0, 1 },	    { 1, 1 },		{ 5, 120 }, { 12, 479001600 },
		{ 13, 1932053504 }, { 33, 2147483648 }, { 34, 0 },  { UINT32_MAX, 0 },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		wr(8, 4, rows[i][0]);
		assert_int_equal(rd(0x20, 4), 1);
		wr(8, 4, 7); /* not while it computes */
		test_advance(&t, EDU_WORK_NS);
		assert_int_equal(rd(0x20, 4), 0);
		assert_int_equal(rd(8, 4), rows[i][1]);
		assert_false(intx());
	}
	wr(0x20, 4, 0xff);
	assert_int_equal(rd(0x20, 4), 0x80);
	wr(8, 4, 3);
	test_advance(&t, EDU_WORK_NS);
	assert_true(intx());
	assert_int_equal(rd(0x24, 4), 1);
	wr(0x64, 4, 1);
	assert_false(intx());
}

static void test_interrupts(void **state)
{
	wr(0x60, 4, 0);
	assert_false(intx());
	wr(0x60, 4, 6);
	assert_true(intx());
	wr(0x64, 4, 2);
	assert_true(intx());
	assert_int_equal(rd(0x24, 4), 4);
	wr(0x64, 4, 0xff);
	assert_false(intx());
	/* MSI: address, upper address, data, enable */
	unsigned cap = pci_config_get(&edu->pci, 0x34, 1);

	assert_int_equal(pci_config_get(&edu->pci, cap, 4), 0x00800005);
	pci_config_write(&edu->pci, cap + 4, 4, 0xfee01003);
	pci_config_write(&edu->pci, cap + 8, 4, 0);
	pci_config_write(&edu->pci, cap + 12, 2, 0x4071);
	pci_config_write(&edu->pci, cap + 2, 2, 1);
	wr(0x60, 4, 1);
	assert_false(intx());
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.addr, 0xfee01000);
	assert_int_equal(t.msi.data, 0x4071);
	wr(0x60, 4, 1); /* each raise is a message */
	assert_int_equal(t.msi.count, 2);
	/* no bus master, no message; MSI off, the line again */
	pci_config_write(&edu->pci, 4, 2, 2);
	wr(0x60, 4, 1);
	assert_int_equal(t.msi.count, 2);
	pci_config_write(&edu->pci, cap + 2, 2, 0);
	assert_true(intx());
}

static void start_dma(uint64_t from, uint64_t to, uint64_t count, unsigned command)
{
	wr(0x80, 8, from);
	wr(0x88, 8, to);
	wr(0x90, 8, count);
	wr(0x98, 8, command);
}

static void transfer(uint64_t from, uint64_t to, uint64_t count, unsigned command)
{
	start_dma(from, to, count, command);
	assert_int_equal(rd(0x98, 8) & 1, 1);
	wr(0x80, 8, 0x123); /* held while it runs */
	assert_int_equal(rd(0x80, 8), from);
	test_advance(&t, EDU_WORK_NS);
	assert_int_equal(rd(0x98, 8) & 1, 0);
}

static void test_dma(void **state)
{
	uint8_t data[EDU_BUFFER_BYTES], back[EDU_BUFFER_BYTES];

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7);
	assert_int_equal(ram_write(&t.ram, DATA, data, sizeof(data)), 0);
	transfer(DATA, EDU_BUFFER, sizeof(data), 1);
	transfer(EDU_BUFFER + 100, DATA + 0x10000, sizeof(data) - 100, 3);
	assert_int_equal(ram_read(&t.ram, DATA + 0x10000, back, sizeof(back)), 0);
	assert_memory_equal(back, data + 100, sizeof(data) - 100);
	assert_int_equal(back[sizeof(data) - 100], 0);
	assert_false(intx());
	/* 28 bits of address, and an interrupt */
	transfer(EDU_BUFFER, 0x70000000 | DATA, 4, 7);
	assert_true(intx());
	assert_int_equal(rd(0x24, 4), 0x100);
	wr(0x64, 4, 0x100);
	/* outside of the buffer, outside of memory, nothing at all, no bus master: nothing happens */
	memset(edu->buffer, 0x5a, sizeof(edu->buffer));
	memcpy(back, edu->buffer, sizeof(back));
	transfer(DATA, EDU_BUFFER + 1, sizeof(data), 1);
	transfer(DATA, EDU_BUFFER - 1, 4, 1);
	transfer(DATA, EDU_BUFFER, UINT64_MAX, 1);
	transfer(DATA, UINT64_MAX, 4, 1);
	transfer(0xfffff00, EDU_BUFFER, 4, 1);
	transfer(DATA, EDU_BUFFER, 0, 1);
	pci_config_write(&edu->pci, 4, 2, 2);
	transfer(DATA, EDU_BUFFER, 4, 1);
	assert_memory_equal(edu->buffer, back, sizeof(back));
}

/* Its DMA and MSI go through the IOMMU under its own name. */
static void test_behind_iommu(void **state)
{
	uint64_t root = 0x2000 | 1, context[2] = { 0x3000 | 1, 1 }, l3 = 0x4000 | 3,
		 l2 = 0x5000 | 3, page = DATA | 3, word = 0x1234;

	teardown(state);
	setup_with(true);
	ram_write(&t.ram, 0x1000, &root, 8);
	ram_write(&t.ram, 0x2000 + (SLOT << 3) * 16, context, 16);
	ram_write(&t.ram, 0x3000, &l3, 8);
	ram_write(&t.ram, 0x4000, &l2, 8);
	ram_write(&t.ram, 0x5000 + 7 * 8, &page, 8);
	ram_write(&t.ram, DATA + 8, &word, 8);
	bus_write(t.env.bus, BUS_MMIO, VTD_BASE + 0x20, 8, 0x1000);
	bus_write(t.env.bus, BUS_MMIO, VTD_BASE + 0x18, 4, 1u << 30);
	bus_write(t.env.bus, BUS_MMIO, VTD_BASE + 0x18, 4, 1u << 31 | 1u << 25);
	transfer(0x7008, EDU_BUFFER, 8, 1);
	transfer(EDU_BUFFER, 0x7010, 8, 3);
	word = 0;
	ram_read(&t.ram, DATA + 0x10, &word, 8);
	assert_int_equal(word, 0x1234);
	transfer(EDU_BUFFER, 0x8000, 8, 3);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VTD_BASE + 0x34, 4), 2);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VTD_BASE + 0x228, 8) & 0xffff, SLOT << 3);
	bus_write(t.env.bus, BUS_MMIO, VTD_BASE + 0x22c, 4, 1u << 31);
	/* a message in compatibility format is blocked */
	unsigned cap = pci_config_get(&edu->pci, 0x34, 1);

	pci_config_write(&edu->pci, cap + 4, 4, 0xfee01000);
	pci_config_write(&edu->pci, cap + 2, 2, 1);
	wr(0x60, 4, 1);
	assert_int_equal(t.msi.count, 0);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VTD_BASE + 0x238, 8) >> 32 & 0xff, 0x25);
}

/* Work under way goes on where the state is loaded. */
static void test_state_moves(void **state)
{
	struct test_env a = t;
	struct pci_host *a_host = host;
	struct edu *a_edu = edu;

	wr(8, 4, 5);
	start_dma(DATA, EDU_BUFFER, 16, 5);
	setup(state);
	test_move_state(&a_edu->dev, &edu->dev);
	test_move_state(&a_host->dev, &host->dev);
	assert_int_equal(rd(0x20, 4), 1);
	test_advance(&t, EDU_WORK_NS);
	assert_int_equal(rd(8, 4), 120);
	assert_int_equal(rd(0x98, 4), 4);
	assert_true(intx());
	a_edu->dev.cls->destroy(&a_edu->dev);
	a_host->dev.cls->destroy(&a_host->dev);
	test_env_fini(&a);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_registers), T(test_factorial),	 T(test_interrupts),
		T(test_dma),	   T(test_behind_iommu), T(test_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
