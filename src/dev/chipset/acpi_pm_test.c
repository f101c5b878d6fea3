/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/acpi_pm.h"
#include "dev/testing.h"

static struct test_env t;
static struct acpi_pm *pm;

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(acpi_pm_create(&pm, &t.env, test_line(&t, 9), NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	pm->dev.cls->destroy(&pm->dev);
	test_env_fini(&t);
	return 0;
}

static uint32_t rd(uint16_t port, unsigned size)
{
	return (uint32_t)bus_read(t.env.bus, BUS_PIO, port, size);
}

static void wr(uint16_t port, unsigned size, uint32_t v)
{
	bus_write(t.env.bus, BUS_PIO, port, size, v);
}

static void test_timer(void **state)
{
	assert_int_equal(rd(ACPI_PM_TMR, 4), 0);
	test_advance(&t, 1000000000);
	assert_int_equal(rd(ACPI_PM_TMR, 4), 3579545);
	assert_int_equal(rd(ACPI_PM_TMR, 1), 3579545 & 0xff);
	assert_int_equal(rd(ACPI_PM_TMR + 2, 2), 3579545 >> 16);
	wr(ACPI_PM_TMR, 4, 0);
	assert_int_equal(rd(ACPI_PM_TMR, 4), 3579545);
	test_advance(&t, 3600ll * 1000000000);
	assert_int_equal(rd(ACPI_PM_TMR, 4), (uint32_t)(3601ull * 3579545)); /* 32 bits wide */
}

static void test_timer_status(void **state)
{
	const int64_t half = (int64_t)((1ull << 31) * 1000000000 / 3579545 + 1);

	assert_false(vtimer_is_armed(pm->timer));
	test_advance(&t, half);
	assert_int_equal(rd(ACPI_PM1A_EVT, 2), 1);
	wr(ACPI_PM1A_EVT, 2, 1);
	assert_int_equal(rd(ACPI_PM1A_EVT, 2), 0);
	wr(ACPI_PM1A_EVT + 2, 2, 1);
	test_advance(&t, half - 1000);
	assert_false(t.lines[9].level);
	test_advance(&t, 2000);
	assert_true(t.lines[9].level);
	wr(ACPI_PM1A_EVT, 2, 1);
	assert_false(t.lines[9].level);
}

static void test_power_button(void **state)
{
	acpi_pm_power_button(pm);
	assert_false(t.lines[9].level);
	assert_int_equal(rd(ACPI_PM1A_EVT, 2), 0x100);
	wr(ACPI_PM1A_EVT + 2, 2, 0x100);
	assert_true(t.lines[9].level);
	wr(ACPI_PM1A_EVT, 2, 0x001);
	assert_true(t.lines[9].level);
	wr(ACPI_PM1A_EVT, 2, 0x100);
	assert_false(t.lines[9].level);
	wr(ACPI_PM1A_EVT, 4, 0xffffffff);
	assert_int_equal(rd(ACPI_PM1A_EVT, 4), 0x07210000);
}

static void test_sleep(void **state)
{
	assert_int_equal(rd(ACPI_PM1A_CNT, 2), 1); /* ACPI mode */
	wr(ACPI_PM1A_CNT, 2, 0);
	assert_int_equal(rd(ACPI_PM1A_CNT, 2), 1);
	wr(ACPI_PM1A_CNT, 2, ACPI_S5_SLP_TYP << 10);
	assert_int_equal(t.poweroffs, 0);
	assert_int_equal(rd(ACPI_PM1A_CNT, 2), ACPI_S5_SLP_TYP << 10 | 1);
	wr(ACPI_PM1A_CNT, 2, 1 << 10 | 0x2000); /* S3: there is none */
	assert_int_equal(t.poweroffs, 0);
	wr(ACPI_PM1A_CNT, 2, ACPI_S5_SLP_TYP << 10 | 0x2000);
	assert_int_equal(t.poweroffs, 1);
	assert_int_equal(rd(ACPI_PM1A_CNT, 2) & 0x2000, 0);
	wr(ACPI_PM1A_CNT, 2, PIIX4_SOFT_OFF << 10 | 0x2000);
	assert_int_equal(t.poweroffs, 2);
}

static void test_gpe(void **state)
{
	acpi_pm_gpe(pm, 3);
	acpi_pm_gpe(pm, 16);
	assert_int_equal(rd(ACPI_GPE0, 4), 0x8);
	assert_false(t.lines[9].level);
	wr(ACPI_GPE0 + 2, 1, 0x08);
	assert_true(t.lines[9].level);
	wr(ACPI_GPE0, 1, 0x08);
	assert_false(t.lines[9].level);
	assert_int_equal(rd(ACPI_GPE0, 4), 0x80000);
}

static void test_state_moves(void **state)
{
	struct test_env u;
	struct acpi_pm *p2;

	test_env_init(&u);
	assert_int_equal(acpi_pm_create(&p2, &u.env, test_line(&u, 9), NULL), 0);
	wr(ACPI_PM1A_EVT + 2, 2, 0x101);
	acpi_pm_power_button(pm);
	test_move_state(&pm->dev, &p2->dev);
	assert_true(u.lines[9].level);
	assert_true(vtimer_is_armed(p2->timer));
	p2->dev.cls->destroy(&p2->dev);
	test_env_fini(&u);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_timer), T(test_timer_status), T(test_power_button),
		T(test_sleep), T(test_gpe),	     T(test_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
