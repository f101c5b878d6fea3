/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "dev/chipset/vmgenid.h"
#include "dev/iommu/dma.h"
#include "dev/testing.h"

static void test_id(void **state)
{
	static const uint8_t first[VMGENID_BYTES] = { 1, 2,  3,	 4,  5,	 6,  7,	 8,
						      9, 10, 11, 12, 13, 14, 15, 16 };
	static const uint8_t second[VMGENID_BYTES] = { 0xff };
	struct test_env t;
	struct acpi_pm *pm;
	struct vmgenid *v;
	struct error err;

	test_env_init(&t);
	assert_int_equal(acpi_pm_create(&pm, &t.env, test_line(&t, 9), &err), 0);
	assert_int_equal(vmgenid_create(&v, &t.env, pm, first, &err), 0);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VMGENID_BASE, 8), 0x0807060504030201ull);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VMGENID_BASE + 15, 1), 16);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VMGENID_BASE + 5, 4), 0x09080706);
	bus_write(t.env.bus, BUS_MMIO, VMGENID_BASE, 4, 0); /* the guest cannot change it */
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VMGENID_BASE, 1), 1);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, ACPI_GPE0, 2), 0);
	vmgenid_set(v, second);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VMGENID_BASE, 8), 0xff);
	assert_int_equal(bus_read(t.env.bus, BUS_PIO, ACPI_GPE0, 2), 1 << VMGENID_GPE);
	v->dev.cls->destroy(&v->dev);
	/* an IOMMU has that address */
	struct iommu u = { 0 };

	t.env.iommu = &u;
	assert_int_equal(vmgenid_create(&v, &t.env, pm, first, &err), 0);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VMGENID_BASE, 1), 0xff);
	assert_int_equal(bus_read(t.env.bus, BUS_MMIO, VMGENID_BASE_IOMMU + 15, 1), 16);
	v->dev.cls->destroy(&v->dev);
	pm->dev.cls->destroy(&pm->dev);
	test_env_fini(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_id) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
