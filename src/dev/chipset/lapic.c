/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local APIC proper: acceptance, priorities, in-service, the INTR output, life cycle.
 *
 * Invariants
 *  1. After any change of irr, isr, tpr, lvt[LINT0], base or LINT0's level, lapic_update() runs
 *     before control goes back to the caller: INTR given to the machine = lapic_has_intr().
 *  2. A bit in irr or isr is 16..255.
 *  3. While pv_eoi_pending the vector in service may have ended without notice: INTR is then given as if it
 *     had, and lapic_ack() finds out.
 *  4. tmr tells the trigger mode of the vector's last acceptance.
 */
#include <errno.h>
#include <string.h>

#include "dev/chipset/lapic_regs.h"

/* ---- vectors ---- */

static int highest(const uint32_t bits[8])
{
	for (int i = 7; i >= 0; i--)
		if (bits[i])
			return i * 32 + 31 - __builtin_clz(bits[i]);
	return -1;
}

static void set_bit(uint32_t bits[8], unsigned v, bool value)
{
	uint32_t b = 1u << (v & 31);

	bits[v / 32] = value ? bits[v / 32] | b : bits[v / 32] & ~b;
}

static bool test_bit(const uint32_t bits[8], unsigned v)
{
	return bits[v / 32] >> (v & 31) & 1;
}

/* Processor priority, SDM 10.8.3.1. */
uint8_t lapic_ppr(const struct lapic *l)
{
	int isrv = highest(l->isr);
	uint32_t in_service = isrv < 0 ? 0 : (uint32_t)isrv & 0xf0;

	return (l->tpr & 0xf0) >= in_service ? (uint8_t)l->tpr : (uint8_t)in_service;
}

/* ---- INTR ---- */

/* The PIC's interrupt reaches the CPU: by LINT0 as ExtINT, or past an APIC that is switched off (BSP). */
static bool has_extint(const struct lapic *l)
{
	uint32_t lvt = l->lvt[LAPIC_LVT_LINT0];

	if (!l->is_lint0_high)
		return false;
	if (!lapic_is_enabled(l))
		return l->cpu == 0;
	return !(lvt & LVT_MASKED) && LVT_MODE(lvt) == APIC_EXTINT;
}

/* The vector to deliver while the processor's priority is @ppr, or -1. */
static int deliverable(const struct lapic *l, uint32_t ppr)
{
	int v;

	if (!lapic_is_enabled(l))
		return -1;
	v = highest(l->irr);
	return v >= 0 && (uint32_t)(v & 0xf0) > (ppr & 0xf0) ? v : -1;
}

bool lapic_has_intr(const struct lapic *l)
{
	return has_extint(l) || deliverable(l, l->pv_eoi_pending ? l->tpr : lapic_ppr(l)) >= 0;
}

void lapic_update(struct lapic *l)
{
	bool level = lapic_has_intr(l);

	if (l->intr_known && l->intr_level == level)
		return;
	l->intr_known = true;
	l->intr_level = level;
	l->bus->cfg.up.set_intr(l->bus->cfg.up.ctx, (unsigned)l->cpu, level);
}

int lapic_ack(struct lapic *l)
{
	int v;

	lapic_pv_sync(l);
	if (has_extint(l))
		/* the PIC's output follows through lapic_set_lint0 */
		return l->bus->cfg.up.extint_ack(l->bus->cfg.up.ctx);
	v = deliverable(l, lapic_ppr(l));
	if (v >= 0) {
		set_bit(l->irr, (unsigned)v, false);
		set_bit(l->isr, (unsigned)v, true);
		lapic_pv_offer(l, (unsigned)v);
	}
	lapic_update(l);
	return v;
}

/* ---- acceptance ---- */

void lapic_error(struct lapic *l, uint32_t esr_bit)
{
	uint32_t lvt = l->lvt[LAPIC_LVT_ERROR];

	l->esr_pending |= esr_bit;
	/* an illegal vector here must not report itself for ever */
	if (!(lvt & LVT_MASKED) && (lvt & 0xff) >= 16)
		lapic_accept(l, APIC_FIXED, lvt & 0xff, false);
}

void lapic_accept(struct lapic *l, uint8_t delivery, uint8_t vector, bool is_level)
{
	const struct lapic_up *up = &l->bus->cfg.up;

	if (!lapic_is_enabled(l) && delivery != APIC_INIT && delivery != APIC_SIPI)
		return;
	switch (delivery) {
	case APIC_FIXED:
	case APIC_LOWEST:
		if (!lapic_is_soft_enabled(l))
			return;
		if (vector < 16) {
			lapic_error(l, ESR_RECEIVE_ILLEGAL);
			return;
		}
		set_bit(l->irr, vector, true);
		set_bit(l->tmr, vector, is_level);
		lapic_update(l);
		break;
	case APIC_NMI:
		up->raise_nmi(up->ctx, (unsigned)l->cpu);
		break;
	case APIC_INIT:
		lapic_init_signal(l);
		break;
	case APIC_SIPI:
		up->sipi(up->ctx, (unsigned)l->cpu, vector);
		break;
	default: /* SMI: no SMM.  ExtINT as a message: no PIC sends one here. */
		log_guest("lapic", "cpu %u: message with delivery mode %u dropped",
			  (unsigned)l->cpu, delivery);
		break;
	}
}

void lapic_fire_lvt(struct lapic *l, unsigned i)
{
	uint32_t lvt = l->lvt[i];
	/* timer and error entries have no delivery mode: fixed */
	uint8_t mode = i == LAPIC_LVT_TIMER || i == LAPIC_LVT_ERROR ? APIC_FIXED : LVT_MODE(lvt);
	bool is_lint = i == LAPIC_LVT_LINT0 || i == LAPIC_LVT_LINT1;

	if ((lvt & LVT_MASKED) || mode == APIC_EXTINT)
		return;
	lapic_accept(l, mode, lvt & 0xff, is_lint && (lvt & LVT_LEVEL));
}

void lapic_set_lint0(struct lapic *l, bool level)
{
	bool is_rise = level && !l->is_lint0_high;

	l->is_lint0_high = level;
	if (is_rise && lapic_is_enabled(l))
		lapic_fire_lvt(l, LAPIC_LVT_LINT0);
	lapic_update(l);
}

void lapic_inject_nmi(struct lapic *l)
{
	if (lapic_is_enabled(l))
		lapic_fire_lvt(l, LAPIC_LVT_LINT1);
}

void lapic_eoi(struct lapic *l)
{
	int v = highest(l->isr);
	uint32_t lint0 = l->lvt[LAPIC_LVT_LINT0];

	if (v < 0)
		return;
	set_bit(l->isr, (unsigned)v, false);
	if (test_bit(l->tmr, (unsigned)v)) {
		l->bus->cfg.up.eoi(l->bus->cfg.up.ctx, (uint8_t)v);
		/* a level-triggered LINT0 that is still asserted asks again */
		if (l->is_lint0_high && (lint0 & LVT_LEVEL) && (lint0 & 0xff) == (uint32_t)v &&
		    LVT_MODE(lint0) == APIC_FIXED)
			lapic_fire_lvt(l, LAPIC_LVT_LINT0);
	}
	lapic_update(l);
}

/* ---- life cycle ---- */

/* SDM 10.4.7.1, and what firmware sets up on the BSP before it starts a kernel: the virtual wire. */
void lapic_reset_regs(struct lapic *l)
{
	l->ldr = 0;
	l->dfr = 0xffffffff;
	l->svr = 0xff;
	l->tpr = 0;
	l->esr = l->esr_pending = 0;
	l->icr = 0;
	l->icr_high = 0;
	memset(l->isr, 0, sizeof(l->isr));
	memset(l->tmr, 0, sizeof(l->tmr));
	memset(l->irr, 0, sizeof(l->irr));
	for (unsigned i = 0; i < LAPIC_NLVT; i++)
		l->lvt[i] = LVT_MASKED;
	if (l->cpu == 0)
		l->lvt[LAPIC_LVT_LINT0] = APIC_EXTINT << 8;
	lapic_timer_stop(l);
	l->timer_initial = 0;
	l->timer_divide = 0;
	l->pv_eoi = 0;
	l->pv_eoi_pending = false;
}

void lapic_init_signal(struct lapic *l)
{
	const struct lapic_up *up = &l->bus->cfg.up;

	lapic_reset_regs(l);
	l->intr_known = false;
	up->init(up->ctx, (unsigned)l->cpu);
	lapic_update(l);
}

static void reset(struct device *d)
{
	struct lapic *l = container_of(d, struct lapic, dev);

	l->base = LAPIC_DEFAULT_BASE | LAPIC_BASE_ENABLE | (l->cpu == 0 ? LAPIC_BASE_BSP : 0);
	l->id = (uint32_t)l->cpu;
	lapic_reset_regs(l);
	l->is_lint0_high = l->bus->lint0;
	l->intr_known = false;
	lapic_update(l);
}

static void after_load(struct device *d)
{
	struct lapic *l = container_of(d, struct lapic, dev);

	l->intr_known = false;
	lapic_timer_rearm(l);
	lapic_update(l);
}

static void destroy(struct device *d)
{
	struct lapic *l = container_of(d, struct lapic, dev);

	if (l->bus->cpu[l->cpu] == l)
		l->bus->cpu[l->cpu] = NULL;
	vtimer_destroy(l->timer);
	free(l);
}

static int check(const void *obj, struct error *err)
{
	const struct lapic *l = obj;
	const struct lapic_bus_config *cfg = &l->bus->cfg;
	bool is_x2 = lapic_is_x2apic(l);
	uint32_t illegal = (l->irr[0] | l->isr[0]) & 0xffff;

	for (unsigned i = 0; i < LAPIC_NLVT; i++)
		illegal |= l->lvt[i] & ~lapic_lvt_writable(l, i);
	if (l->base >> cfg->phys_bits || (l->base & 0x2ff) ||
	    (is_x2 && (!cfg->has_x2apic || !lapic_is_enabled(l))) ||
	    (is_x2 ? l->id != l->cpu : l->id > 0xff) || illegal || l->tpr > 0xff ||
	    (l->svr & ~0x1ffu) || (!is_x2 && l->icr >> 32) || (l->timer_divide & ~0xbu) ||
	    l->timer_end_ns < 0 || l->timer_end_ns > INT64_MAX / 2 ||
	    (l->timer_runs && (!l->timer_initial || l->tsc_deadline)))
		return error_set(err, -EINVAL, "local APIC state is impossible");
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct lapic, dev),
	F_HOST(struct lapic, env),
	F_HOST(struct lapic, bus),
	F_HOST(struct lapic, timer),
	F_HOST(struct lapic, cpu),
	F_HOST(struct lapic, intr_level),
	F_HOST(struct lapic, intr_known),
	F_HOST(struct lapic, pad_host_),
	F_HOST(struct lapic, pv_eoi), /* the CPU's state has it */
	F_U64(struct lapic, base),
	F_U32(struct lapic, id),
	F_U32(struct lapic, ldr),
	F_U32(struct lapic, dfr),
	F_U32(struct lapic, svr),
	F_U32(struct lapic, tpr),
	F_U32(struct lapic, esr),
	F_U32(struct lapic, esr_pending),
	F_U32(struct lapic, icr_high),
	F_U64(struct lapic, icr),
	F_ARRAY(FIELD_U32, struct lapic, isr),
	F_ARRAY(FIELD_U32, struct lapic, tmr),
	F_ARRAY(FIELD_U32, struct lapic, irr),
	F_ARRAY(FIELD_U32, struct lapic, lvt),
	F_U32(struct lapic, timer_initial),
	F_U32(struct lapic, timer_divide),
	F_BOOL(struct lapic, is_lint0_high),
	F_BOOL(struct lapic, timer_runs),
	FIELD_(FIELD_BOOL, struct lapic, pv_eoi_pending, 2),
	F_HOST(struct lapic, pad_),
	F_I64(struct lapic, timer_end_ns),
	F_U64(struct lapic, tsc_deadline),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "lapic",
	.version = 2,
	.size = sizeof(struct lapic),
	.fields = fields,
	.check = check,
};

const struct device_class lapic_class = {
	.name = "lapic",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

int lapic_create(struct lapic **out, const struct dev_env *env, struct lapic_bus *bus, unsigned cpu,
		 struct error *err)
{
	struct lapic *l;
	char id[24];

	if (cpu >= LAPIC_MAX_CPUS)
		return error_set(err, -EINVAL, "vCPU %u: at most %u are possible", cpu, LAPIC_MAX_CPUS);
	if (bus->cpu[cpu])
		return error_set(err, -EEXIST, "vCPU %u has a local APIC already", cpu);
	l = calloc(1, sizeof(*l));
	if (!l)
		return error_set(err, -ENOMEM, "no memory for a local APIC");
	snprintf(id, sizeof(id), "lapic%u", cpu);
	device_init(&l->dev, &lapic_class, id);
	l->env = *env;
	l->bus = bus;
	l->cpu = cpu;
	l->timer = vtimer_create(env->loop, env->clock, lapic_timer_fired, l);
	if (!l->timer) {
		free(l);
		return error_set(err, -ENOMEM, "no memory for a local APIC");
	}
	bus->cpu[cpu] = l;
	bus->n = MAX(bus->n, cpu + 1);
	reset(&l->dev);
	*out = l;
	return 0;
}
