/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/pci/pci_host.h"
#include "dev/testing.h"

static struct test_env t;
static struct pci_host *host;
static struct pci_dev dev;
static uint32_t reg;

static uint64_t reg_read(void *opaque, uint64_t offset, unsigned size)
{
	return *(uint32_t *)opaque + offset;
}

static void reg_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	*(uint32_t *)opaque = (uint32_t)value;
}

static const struct bus_ops reg_ops = { reg_read, reg_write };

static const struct pci_id id = { 0x1af4, 0x1042, 0x1af4, 0x1100, 0x018000, 1 };

static int setup(void **state)
{
	struct irq_line intx[PCI_INTX_LINES];

	test_env_init(&t);
	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = test_line(&t, i);
	assert_int_equal(pci_host_create(&host, &t.env, intx, NULL), 0);
	memset(&dev, 0, sizeof(dev));
	assert_int_equal(pci_dev_init(&dev, pci_host_bus(host), -1, &id, NULL), 0);
	assert_int_equal(dev.slot, 1);
	assert_int_equal(pci_add_bar(&dev, 0, PCI_BAR_IO, 64, &reg_ops, &reg), 0);
	assert_int_equal(pci_add_bar(&dev, 2, PCI_BAR_MEM64, 16384, &reg_ops, &reg), 0);
	assert_int_equal(pci_msix_init(&dev, 3, 1), 0);
	return 0;
}

static int teardown(void **state)
{
	pci_dev_destroy(&dev);
	host->dev.cls->destroy(&host->dev);
	test_env_fini(&t);
	return 0;
}

static void pick(unsigned slot, unsigned offset)
{
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x80000000u | slot << 11 | (offset & 0xfc));
}

static uint32_t cfg_read(unsigned slot, unsigned offset, unsigned size)
{
	pick(slot, offset);
	return (uint32_t)bus_read(t.env.bus, BUS_PIO, 0xcfc + (offset & 3), size);
}

static void cfg_write(unsigned slot, unsigned offset, unsigned size, uint32_t v)
{
	pick(slot, offset);
	bus_write(t.env.bus, BUS_PIO, 0xcfc + (offset & 3), size, v);
}

static void test_config_ports(void **state)
{
	assert_int_equal(cfg_read(0, 0, 4), 0x12378086);
	assert_int_equal(cfg_read(0, 0x2c, 4), 0x11001af4);
	assert_int_equal(cfg_read(1, 0, 4), 0x10421af4);
	assert_int_equal(cfg_read(1, 2, 2), 0x1042);
	assert_int_equal(cfg_read(1, 0x0b, 1), 0x01);
	assert_int_equal(cfg_read(2, 0, 4), 0xffffffff);
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x80010000); /* bus 1 */
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x80000900); /* function 1 */
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x00000800); /* not enabled */
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0xffffffff);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcf8, 4), 0x80fffffc);
	/* only the whole register can be written */
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 2, 0);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcf8, 4), 0x80fffffc);
	/* its low bits read as 0, and name the byte nevertheless */
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x80000802);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcf8, 4), 0x80000800);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcfc, 2), 0x1042);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcfe, 2), 0x1042);
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x800008ff);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xcfc, 4), 0xffffffff);
	/* read-only bytes */
	cfg_write(1, 0, 4, 0x12345678);
	cfg_write(1, 8, 4, 0x12345678);
	assert_int_equal(cfg_read(1, 0, 4), 0x10421af4);
	assert_int_equal(cfg_read(1, 8, 4), 0x01800001);
	cfg_write(1, 0x3c, 1, 5);
	assert_int_equal(cfg_read(1, 0x3c, 2), 0x0105);
}

static void test_reset_register(void **state)
{
	test_outb(&t, PCI_RESET_PORT, 0x02);
	assert_int_equal(test_inb(&t, PCI_RESET_PORT), 0x02);
	assert_int_equal(t.resets, 0);
	test_outb(&t, PCI_RESET_PORT, PCI_RESET_VALUE);
	assert_int_equal(t.resets, 1);
}

static void test_bar_sizing_and_mapping(void **state)
{
	assert_int_equal(cfg_read(1, 0x10, 4), 1);
	cfg_write(1, 0x10, 4, 0xffffffff);
	assert_int_equal(cfg_read(1, 0x10, 4), 0xffffffc1);
	cfg_write(1, 0x18, 4, 0xffffffff);
	cfg_write(1, 0x1c, 4, 0xffffffff);
	assert_int_equal(cfg_read(1, 0x18, 4), 0xffffc004);
	assert_int_equal(cfg_read(1, 0x1c, 4), 0xffffffff);
	cfg_write(1, 0x20, 4, 0xffffffff); /* no such BAR */
	assert_int_equal(cfg_read(1, 0x20, 4), 0);

	cfg_write(1, 0x10, 4, 0xc000);
	assert_int_equal(pci_bar_address(&dev, 0), 0);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xc000, 4), 0xffffffff);
	cfg_write(1, 4, 2, 1);
	assert_int_equal(pci_bar_address(&dev, 0), 0xc000);
	bus_write(t.env.bus, BUS_PIO, 0xc000, 4, 0x1000);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xc010, 4), 0x1010);
	cfg_write(1, 0x10, 4, 0xd000);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xc010, 4), 0xffffffff);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xd010, 4), 0x1010);

	cfg_write(1, 0x18, 4, 0x00004000);
	cfg_write(1, 0x1c, 4, 0x12);
	cfg_write(1, 4, 2, 2);
	assert_true(pci_bar_address(&dev, 2) == 0x1200004000);
	assert_true(bus_read(t.env.bus, BUS_MMIO, 0x1200004004, 4) == 0x1004);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xd010, 4), 0xffffffff);
	pci_dev_reset(&dev);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, 0x1200004004, 4), 0xffffffff);
}

static void test_overlapping_bars(void **state)
{
	struct pci_dev other = { 0 };
	uint32_t reg2 = 0x5000;

	assert_int_equal(pci_dev_init(&other, pci_host_bus(host), 5, &id, NULL), 0);
	assert_int_equal(pci_add_bar(&other, 0, PCI_BAR_IO, 64, &reg_ops, &reg2), 0);
	reg = 0x1000;
	cfg_write(1, 0x10, 4, 0xc000);
	cfg_write(1, 4, 2, 1);
	cfg_write(5, 0x10, 4, 0xc000);
	cfg_write(5, 4, 2, 1);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xc000, 4), 0x1000);
	cfg_write(1, 0x10, 4, 0xc100); /* the loser gets its place */
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xc000, 4), 0x5000);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, 0xc100, 4), 0x1000);
	/* over a platform device: stays away */
	cfg_write(5, 0x10, 4, 0xcc0);
	assert_int_equal(cfg_read(1, 0, 4), 0x10421af4);
	assert_int_equal(pci_bar_address(&other, 0), 0);
	pci_dev_destroy(&other);
	assert_null(pci_bus_dev(pci_host_bus(host), 5));
	/* a slot taken, a slot that is not there */
	assert_int_equal(pci_dev_init(&other, pci_host_bus(host), 1, &id, NULL), -EEXIST);
	assert_int_equal(pci_dev_init(&other, pci_host_bus(host), 32, &id, NULL), -EEXIST);
}

static void test_bad_bars(void **state)
{
	struct pci_dev d = { 0 };

	assert_int_equal(pci_dev_init(&d, pci_host_bus(host), -1, &id, NULL), 0);
	assert_int_equal(pci_add_bar(&d, 6, PCI_BAR_IO, 64, &reg_ops, &reg), -EINVAL);
	assert_int_equal(pci_add_bar(&d, 5, PCI_BAR_MEM64, 64, &reg_ops, &reg), -EINVAL);
	assert_int_equal(pci_add_bar(&d, 0, PCI_BAR_IO, 512, &reg_ops, &reg), -EINVAL);
	assert_int_equal(pci_add_bar(&d, 0, PCI_BAR_MEM32, 48, &reg_ops, &reg), -EINVAL);
	assert_int_equal(pci_add_bar(&d, 0, PCI_BAR_MEM32 | PCI_BAR_IO, 64, &reg_ops, &reg), -EINVAL);
	assert_int_equal(pci_add_bar(&d, 0, PCI_BAR_MEM64, 64, &reg_ops, &reg), 0);
	assert_int_equal(pci_add_bar(&d, 1, PCI_BAR_IO, 64, &reg_ops, &reg), -EINVAL);
	assert_int_equal(pci_msix_init(&d, PCI_MSIX_MAX + 1, 2), -EINVAL);
	pci_dev_destroy(&d);
}

static void test_capabilities(void **state)
{
	static const uint8_t body[] = { 1, 2, 3 }, mask[] = { 0, 0xff, 0 };
	int off = pci_add_cap(&dev, 9, 5, body, mask);

	assert_int_equal(off, 0x4c);
	assert_int_equal(cfg_read(1, 6, 2) & 0x10, 0x10);
	assert_int_equal(cfg_read(1, 0x34, 1), 0x40);
	assert_int_equal(cfg_read(1, 0x40, 4), 0x00024c11);
	assert_int_equal(cfg_read(1, 0x4c, 4), 0x02010009);
	cfg_write(1, 0x4c, 4, 0xffffffff);
	assert_int_equal(cfg_read(1, 0x4c, 4), 0xff010009);
	assert_int_equal(pci_add_cap(&dev, 9, 0xb0, NULL, NULL), -ENOSPC);
}

static void test_intx(void **state)
{
	unsigned line = pci_intx_index(1, 0);

	pci_set_intx(&dev, true);
	assert_true(t.lines[line].level);
	assert_int_equal(cfg_read(1, 6, 2) & 8, 8);
	cfg_write(1, 4, 2, 0x400); /* INTx off: the status still tells */
	assert_false(t.lines[line].level);
	assert_int_equal(cfg_read(1, 6, 2) & 8, 8);
	cfg_write(1, 4, 2, 0);
	assert_true(t.lines[line].level);
	cfg_write(1, 0x42, 2, 0x8000);
	assert_false(t.lines[line].level);
	cfg_write(1, 0x42, 2, 0);
	pci_set_intx(&dev, false);
	assert_false(t.lines[line].level);
	assert_int_equal(cfg_read(1, 6, 2) & 8, 0);
}

static void test_shared_intx(void **state)
{
	struct pci_dev other = { 0 };
	unsigned line = pci_intx_index(1, 0);

	assert_int_equal(pci_intx_index(9, 0), line);
	assert_int_equal(pci_dev_init(&other, pci_host_bus(host), 9, &id, NULL), 0);
	pci_set_intx(&dev, true);
	pci_set_intx(&other, true);
	pci_set_intx(&dev, false);
	assert_true(t.lines[line].level);
	pci_dev_destroy(&other); /* takes its level along */
	assert_false(t.lines[line].level);
}

#define MSIX 0xe0000000u

static void msix_on(void)
{
	cfg_write(1, 0x14, 4, MSIX);
	cfg_write(1, 4, 2, 6);
	bus_write(t.env.bus, BUS_MMIO, MSIX + 16, 8, 0xfee01000);
	bus_write(t.env.bus, BUS_MMIO, MSIX + 24, 4, 0x41);
	cfg_write(1, 0x42, 2, 0x8000);
}

static void test_msix(void **state)
{
	assert_int_equal(cfg_read(1, 0x40, 4) & 0xff, 0x11);
	assert_int_equal(cfg_read(1, 0x42, 2), 2);
	assert_int_equal(cfg_read(1, 0x44, 4), 1);
	assert_int_equal(cfg_read(1, 0x48, 4), 0x801);
	pci_msix_notify(&dev, 1);
	assert_int_equal(t.msi.count, 0); /* off */
	msix_on();
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, MSIX + 28, 4), 1);
	pci_msix_notify(&dev, 1);
	assert_int_equal(t.msi.count, 0);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, MSIX + 0x800, 8), 2);
	bus_write(t.env.bus, BUS_MMIO, MSIX + 28, 4, 0);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.addr, 0xfee01000);
	assert_int_equal(t.msi.data, 0x41);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, MSIX + 0x800, 8), 0);
	pci_msix_notify(&dev, 1);
	assert_int_equal(t.msi.count, 2);
	/* function mask */
	cfg_write(1, 0x42, 2, 0xc000);
	pci_msix_notify(&dev, 1);
	pci_msix_notify(&dev, 1);
	assert_int_equal(t.msi.count, 2);
	cfg_write(1, 0x42, 2, 0x8000);
	assert_int_equal(t.msi.count, 3);
	/* bus mastering off */
	cfg_write(1, 4, 2, 2);
	pci_msix_notify(&dev, 1);
	assert_int_equal(t.msi.count, 3);
	cfg_write(1, 4, 2, 6);
	assert_int_equal(t.msi.count, 4);
	/* the device is wrong: nothing happens */
	pci_msix_notify(&dev, 3);
	pci_msix_notify(&dev, UINT32_MAX);
	assert_int_equal(t.msi.count, 4);
}

static void test_msix_table_is_bounded(void **state)
{
	msix_on();
	for (unsigned off = 48; off < 4096; off += 4)
		bus_write(t.env.bus, BUS_MMIO, MSIX + off, 4, 0xffffffff);
	for (unsigned off = 48; off < 4096; off++)
		assert_int_equal(bus_read(t.env.bus, BUS_MMIO, MSIX + off, 1), 0);
	bus_write(t.env.bus, BUS_MMIO, MSIX + 1, 4, 0xffffffff); /* not aligned */
	bus_write(t.env.bus, BUS_MMIO, MSIX + 0, 2, 0xffffffff);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, MSIX, 8), 0);
	bus_write(t.env.bus, BUS_MMIO, MSIX + 40, 8, UINT64_MAX);
	assert_true(bus_read(t.env.bus, BUS_MMIO, MSIX + 40, 8) == 0x1ffffffff);
	/* across the end of the BAR */
	assert_true(bus_read(t.env.bus, BUS_MMIO, MSIX + 4092, 8) == 0xffffffff00000000);
}

static void test_assign(void **state)
{
	assert_int_equal(pci_bus_assign(pci_host_bus(host), NULL), 0);
	assert_int_equal(pci_bar_address(&dev, 0), PCI_IO_BASE);
	assert_int_equal(pci_bar_address(&dev, 2), PCI_MMIO_BASE);
	assert_int_equal(pci_bar_address(&dev, 1), PCI_MMIO_BASE + 16384);
}

static void test_state_moves(void **state)
{
	struct pci_dev copy;
	struct bytes b = { 0 };
	struct byte_reader r;
	struct error err;

	msix_on();
	pci_msix_notify(&dev, 0);
	pci_set_intx(&dev, true);
	assert_int_equal(state_save(&pci_dev_state, &dev, &b), 0);
	copy = dev;
	pci_dev_reset(&dev);
	assert_int_equal(pci_bar_address(&dev, 1), 0);
	r = (struct byte_reader){ .data = b.data, .len = b.len };
	assert_int_equal(state_load(&pci_dev_state, &dev, &r, &err), 0);
	pci_dev_after_load(&dev);
	assert_int_equal(pci_bar_address(&dev, 1), MSIX);
	assert_memory_equal(dev.config, copy.config, sizeof(dev.config));
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, MSIX + 0x800, 8), 1);
	/* a stream that changes a read-only byte is refused */
	dev.config[0] ^= 1;
	b.len = 0;
	assert_int_equal(state_save(&pci_dev_state, &dev, &b), 0);
	dev.config[0] ^= 1;
	r = (struct byte_reader){ .data = b.data, .len = b.len };
	assert_int_equal(state_load(&pci_dev_state, &dev, &r, &err), -EINVAL);
	bytes_free(&b);
}

static unsigned hook_offset, hook_size, hook_reads;

static void written(struct pci_dev *d, unsigned offset, unsigned size)
{
	hook_offset = offset;
	hook_size = size;
}

static void before_read(struct pci_dev *d, unsigned offset, unsigned size)
{
	pci_config_set(d, 0x50, 4, ++hook_reads);
}

static void test_hooks(void **state)
{
	dev.config_written = written;
	dev.config_before_read = before_read;
	assert_int_equal(cfg_read(1, 0x50, 4), 1);
	assert_int_equal(cfg_read(1, 0x50, 4), 2);
	cfg_write(1, 0x52, 1, 0);
	assert_int_equal(hook_offset, 0x52);
	assert_int_equal(hook_size, 1);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_config_ports),
		T(test_reset_register),
		T(test_bar_sizing_and_mapping),
		T(test_overlapping_bars),
		T(test_bad_bars),
		T(test_capabilities),
		T(test_intx),
		T(test_shared_intx),
		T(test_msix),
		T(test_msix_table_is_bounded),
		T(test_assign),
		T(test_state_moves),
		T(test_hooks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
