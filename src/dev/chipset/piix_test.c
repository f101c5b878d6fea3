/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/piix.h"
#include "dev/pci/pci_host.h"
#include "dev/testing.h"

static struct test_env t;
static struct pci_host *host;
static struct acpi_pm *pm;
static struct piix *piix;

static int setup(void **state)
{
	struct irq_line intx[PCI_INTX_LINES];

	test_env_init(&t);
	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = test_line(&t, i);
	assert_int_equal(pci_host_create(&host, &t.env, intx, NULL), 0);
	assert_int_equal(acpi_pm_create(&pm, &t.env, test_line(&t, 9), NULL), 0);
	assert_int_equal(piix_create(&piix, pci_host_bus(host), pm, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	piix->dev.cls->destroy(&piix->dev);
	pm->dev.cls->destroy(&pm->dev);
	host->dev.cls->destroy(&host->dev);
	test_env_fini(&t);
	return 0;
}

static uint32_t cfg_read(unsigned function, unsigned offset, unsigned size)
{
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x80000800u | function << 8 | (offset & 0xfc));
	return (uint32_t)bus_read(t.env.bus, BUS_PIO, 0xcfc + (offset & 3), size);
}

static void cfg_write(unsigned function, unsigned offset, unsigned size, uint32_t v)
{
	bus_write(t.env.bus, BUS_PIO, 0xcf8, 4, 0x80000800u | function << 8 | (offset & 0xfc));
	bus_write(t.env.bus, BUS_PIO, 0xcfc + (offset & 3), size, v);
}

static void test_functions(void **state)
{
	assert_int_equal(cfg_read(0, 0, 4), 0x70008086);
	assert_int_equal(cfg_read(0, 0x0a, 2), 0x0601);
	assert_int_equal(cfg_read(0, 0x0e, 1), 0x80); /* there are more functions */
	assert_int_equal(cfg_read(1, 0, 4), 0xffffffff);
	assert_int_equal(cfg_read(3, 0, 4), 0x71138086);
	assert_int_equal(cfg_read(3, 0x0e, 1), 0);
}

static uint32_t in(uint16_t port, unsigned size)
{
	return (uint32_t)bus_read(t.env.bus, BUS_PIO, port, size);
}

/* Each firmware puts the registers where it likes; where ACPI's tables say they are, they stay. */
static void test_pm_window(void **state)
{
	assert_true(cfg_read(3, 0x58, 4) & 1u << 25); /* no SMM handler is waited for */
	assert_int_equal(cfg_read(3, 0x40, 4), 1);
	test_advance(&t, 1000000000);
	cfg_write(3, 0x40, 4, 0xb03f);
	assert_int_equal(cfg_read(3, 0x40, 4), 0xb001);
	assert_int_equal(in(0xb008, 4), UINT32_MAX); /* not on yet */
	cfg_write(3, 0x80, 1, 0xff);
	assert_int_equal(cfg_read(3, 0x80, 1), 1);
	assert_int_equal(in(0xb008, 4), ACPI_PM_TMR_HZ);
	assert_int_equal(in(ACPI_PM_TMR, 4), ACPI_PM_TMR_HZ);
	cfg_write(3, 0x41, 1, 0xe4);
	assert_int_equal(in(0xb008, 4), UINT32_MAX);
	bus_write(t.env.bus, BUS_PIO, 0xe404, 2, 0x2000);
	assert_int_equal(t.poweroffs, 1);
	cfg_write(3, 0x80, 1, 0);
	assert_int_equal(in(0xe408, 4), UINT32_MAX);
	/* the tables' own address is as good as any */
	cfg_write(3, 0x80, 1, 1);
	cfg_write(3, 0x40, 2, ACPI_PM_BASE);
	assert_int_equal(in(ACPI_PM_TMR, 4), ACPI_PM_TMR_HZ);
	cfg_write(3, 0x40, 2, 0xb000);
	piix->dev.cls->reset(&piix->dev);
	assert_int_equal(cfg_read(3, 0x40, 4), 1);
	assert_int_equal(in(0xb008, 4), UINT32_MAX);
	assert_int_equal(in(ACPI_PM_TMR, 4), ACPI_PM_TMR_HZ);
}

static void test_routes(void **state)
{
	assert_int_equal(cfg_read(0, 0x60, 4), 0x80808080);
	cfg_write(0, 0x60, 4, 0x0b0b0afa);
	assert_int_equal(cfg_read(0, 0x60, 4), 0x0b0b0a8a);
	piix->dev.cls->reset(&piix->dev);
	assert_int_equal(cfg_read(0, 0x60, 4), 0x80808080);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_functions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pm_window, setup, teardown),
		cmocka_unit_test_setup_teardown(test_routes, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
