/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/acpi_pm.h"

#include <errno.h>
#include <string.h>

#define NS_PER_S 1000000000
#define PM_BYTES 12

/* PM1 status and enable */
#define PM1_TMR	     0x0001
#define PM1_BM	     0x0010
#define PM1_GBL	     0x0020
#define PM1_PWRBTN   0x0100
#define PM1_SLPBTN   0x0200
#define PM1_RTC	     0x0400
#define PM1_WAK	     0x8000
#define PM1_STS_BITS (PM1_TMR | PM1_BM | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC | PM1_WAK)
#define PM1_EN_BITS  (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)

/* PM1 control */
#define CNT_SCI_EN     0x0001
#define CNT_BM_RLD     0x0002
#define CNT_SLP_TYP(v) ((v) >> 10 & 7)
#define CNT_SLP_EN     0x2000
#define CNT_KEPT       (CNT_BM_RLD | 7 << 10)

static int64_t now_ns(const struct acpi_pm *p)
{
	return vclock_now_ns(p->env.clock);
}

static uint64_t ticks_at(int64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * ACPI_PM_TMR_HZ / NS_PER_S);
}

static void update_sci(struct acpi_pm *p)
{
	irq_set(&p->sci, (p->pm1_sts & p->pm1_en) || (p->gpe_sts & p->gpe_en));
}

/* TMR_STS is set whenever the timer's top bit changes. */
static void catch_up(struct acpi_pm *p)
{
	int64_t now = now_ns(p);

	if (now <= p->tmr_seen_ns)
		return;
	if (ticks_at(now) >> 31 != ticks_at(p->tmr_seen_ns) >> 31)
		p->pm1_sts |= PM1_TMR;
	p->tmr_seen_ns = now;
	update_sci(p);
}

static void arm(struct acpi_pm *p)
{
	unsigned __int128 next;

	if (!(p->pm1_en & ~p->pm1_sts & PM1_TMR)) {
		vtimer_cancel(p->timer);
		return;
	}
	next = (unsigned __int128)((ticks_at(now_ns(p)) >> 31) + 1) << 31;
	vtimer_arm(p->timer, (int64_t)((next * NS_PER_S + ACPI_PM_TMR_HZ - 1) / ACPI_PM_TMR_HZ));
}

static void on_timer(void *arg)
{
	struct acpi_pm *p = arg;

	catch_up(p);
	arm(p);
}

static void write_control(struct acpi_pm *p, uint16_t v)
{
	p->pm1_cnt = (v & CNT_KEPT) | CNT_SCI_EN;
	if (!(v & CNT_SLP_EN))
		return;
	if (CNT_SLP_TYP(v) == ACPI_S5_SLP_TYP || CNT_SLP_TYP(v) == PIIX4_SOFT_OFF)
		p->env.request_poweroff(p->env.ctx);
	else
		log_guest("acpi", "sleep type %u is not one of this machine", CNT_SLP_TYP(v));
}

/* ---- ports ---- */

static uint8_t pm_byte(const struct acpi_pm *p, unsigned offset)
{
	uint32_t timer = (uint32_t)ticks_at(now_ns(p));

	switch (offset) {
	case 0:
	case 1:
		return (uint8_t)(p->pm1_sts >> offset * 8);
	case 2:
	case 3:
		return (uint8_t)(p->pm1_en >> (offset - 2) * 8);
	case 4:
	case 5:
		return (uint8_t)(p->pm1_cnt >> (offset - 4) * 8);
	case 8 ... 11:
		return (uint8_t)(timer >> (offset - 8) * 8);
	default:
		return 0;
	}
}

static uint64_t pm_read(void *dev, uint64_t offset, unsigned size)
{
	struct acpi_pm *p = dev;
	uint64_t v = 0;

	/* the timer must not move between its bytes */
	if (offset == 8 && size == 4)
		return (uint32_t)ticks_at(now_ns(p));
	catch_up(p);
	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)pm_byte(p, (unsigned)offset + i) << i * 8;
	return v;
}

static void set_byte(uint16_t *reg, unsigned byte, uint8_t v)
{
	*reg = (uint16_t)((*reg & ~(0xffu << byte * 8)) | (unsigned)v << byte * 8);
}

static void pm_write_byte(struct acpi_pm *p, unsigned offset, uint8_t v)
{
	uint16_t cnt = p->pm1_cnt;

	switch (offset) {
	case 0:
	case 1:
		p->pm1_sts &= (uint16_t) ~((unsigned)v << offset * 8);
		break;
	case 2:
	case 3:
		set_byte(&p->pm1_en, offset - 2, v);
		p->pm1_en &= PM1_EN_BITS;
		break;
	case 4:
	case 5:
		set_byte(&cnt, offset - 4, v);
		write_control(p, cnt);
		break;
	default: /* the timer is read-only */
		break;
	}
}

static void pm_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *p = dev;

	catch_up(p);
	for (unsigned i = 0; i < size; i++)
		pm_write_byte(p, (unsigned)offset + i, (uint8_t)(value >> i * 8));
	update_sci(p);
	arm(p);
}

static uint64_t gpe_read(void *dev, uint64_t offset, unsigned size)
{
	const struct acpi_pm *p = dev;
	uint32_t v = p->gpe_sts | (uint32_t)p->gpe_en << 16;

	return v >> offset * 8;
}

static void gpe_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct acpi_pm *p = dev;

	for (unsigned i = 0; i < size; i++) {
		unsigned byte = (unsigned)offset + i;
		uint8_t v = (uint8_t)(value >> i * 8);

		if (byte < 2)
			p->gpe_sts &= (uint16_t) ~((unsigned)v << byte * 8);
		else
			set_byte(&p->gpe_en, byte - 2, v);
	}
	update_sci(p);
}

static const struct bus_ops pm_ops = { pm_read, pm_write };
static const struct bus_ops gpe_ops = { gpe_read, gpe_write };

/* ---- from the machine ---- */

void acpi_pm_set_window(struct acpi_pm *p, uint16_t base)
{
	int rc;

	bus_remove(p->env.bus, p->window);
	p->window = NULL;
	if (!base)
		return;
	/* the guest chooses the address: whatever else is there stays reachable */
	rc = bus_add(p->env.bus, BUS_PIO, base, PM_BYTES, -1, &pm_ops, p, &p->window);
	if (rc)
		log_guest("acpi", "no registers at port %#x: %s", base, strerror(-rc));
}

void acpi_pm_power_button(struct acpi_pm *p)
{
	p->pm1_sts |= PM1_PWRBTN;
	update_sci(p);
}

void acpi_pm_gpe(struct acpi_pm *p, unsigned n)
{
	if (n > 15)
		return;
	p->gpe_sts |= (uint16_t)(1u << n);
	update_sci(p);
}

/* ---- life cycle ---- */

static int check(const void *obj, struct error *err)
{
	const struct acpi_pm *p = obj;

	if ((p->pm1_sts & ~PM1_STS_BITS) || (p->pm1_en & ~PM1_EN_BITS) ||
	    (p->pm1_cnt & ~(CNT_KEPT | CNT_SCI_EN)) || !(p->pm1_cnt & CNT_SCI_EN) || p->tmr_seen_ns < 0)
		return error_set(err, -EINVAL, "power management state is impossible");
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct acpi_pm, dev),
	F_HOST(struct acpi_pm, env),
	F_HOST(struct acpi_pm, sci),
	F_HOST(struct acpi_pm, ranges),
	F_HOST(struct acpi_pm, window),
	F_HOST(struct acpi_pm, timer),
	F_U16(struct acpi_pm, pm1_sts),
	F_U16(struct acpi_pm, pm1_en),
	F_U16(struct acpi_pm, pm1_cnt),
	F_U16(struct acpi_pm, gpe_sts),
	F_U16(struct acpi_pm, gpe_en),
	F_HOST(struct acpi_pm, pad_),
	F_I64(struct acpi_pm, tmr_seen_ns),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "acpi_pm",
	.version = 1,
	.size = sizeof(struct acpi_pm),
	.fields = fields,
	.check = check,
};

static void reset(struct device *d)
{
	struct acpi_pm *p = container_of(d, struct acpi_pm, dev);

	p->pm1_sts = p->pm1_en = 0;
	p->pm1_cnt = CNT_SCI_EN;
	p->gpe_sts = p->gpe_en = 0;
	p->tmr_seen_ns = now_ns(p);
	update_sci(p);
	arm(p);
}

static void after_load(struct device *d)
{
	struct acpi_pm *p = container_of(d, struct acpi_pm, dev);

	update_sci(p);
	arm(p);
}

static void destroy(struct device *d)
{
	struct acpi_pm *p = container_of(d, struct acpi_pm, dev);

	vtimer_destroy(p->timer);
	bus_remove(p->env.bus, p->window);
	bus_remove(p->env.bus, p->ranges[0]);
	bus_remove(p->env.bus, p->ranges[1]);
	free(p);
}

const struct device_class acpi_pm_class = {
	.name = "acpi_pm",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

int acpi_pm_create(struct acpi_pm **out, const struct dev_env *env, struct irq_line sci, struct error *err)
{
	struct acpi_pm *p = calloc(1, sizeof(*p));
	int rc = 0;

	if (!p)
		return error_set(err, -ENOMEM, "no memory for power management");
	device_init(&p->dev, &acpi_pm_class, "acpi_pm");
	p->env = *env;
	p->sci = sci;
	p->timer = vtimer_create(env->loop, env->clock, on_timer, p);
	if (!p->timer)
		rc = -ENOMEM;
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, ACPI_PM_BASE, PM_BYTES, 0, &pm_ops, p, &p->ranges[0]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, ACPI_GPE0, 4, 0, &gpe_ops, p, &p->ranges[1]);
	if (rc) {
		destroy(&p->dev);
		return error_set(err, rc, "power management cannot be set up: %s", strerror(-rc));
	}
	reset(&p->dev);
	*out = p;
	return 0;
}
