/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How software reaches the local APIC: the xAPIC page, the x2APIC MSRs (SDM table 10-6), IA32_APIC_BASE
 * (figure 10-27), CR8, and the exchange format with engines that own the LAPIC.
 *
 * In x2APIC mode reserved bits and registers fault; in xAPIC mode reserved bits are ignored and
 * reserved registers set the ESR.
 */
#include <errno.h>
#include <string.h>

#include "dev/chipset/lapic_regs.h"

#define MSR_APIC_BASE	 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC	 0x800

/* ICR bits that can be written; 12 (delivery status) reads as 0. */
#define ICR_WRITABLE	    0x000ccfffu
#define X2APIC_ICR_RESERVED 0xfff32000u

uint32_t lapic_lvt_writable(const struct lapic *l, unsigned lvt)
{
	switch (lvt) {
	case LAPIC_LVT_TIMER:
		return 0x300ffu | (l->bus->cfg.has_tsc_deadline ? LVT_TIMER_DEADLINE : 0);
	case LAPIC_LVT_LINT0:
	case LAPIC_LVT_LINT1:
		return 0x1a7ffu;
	case LAPIC_LVT_ERROR:
		return 0x100ffu;
	default:
		return 0x107ffu;
	}
}

/* ---- registers, the same for both modes ---- */

/* False: there is no such register to read. */
static bool reg_read(const struct lapic *l, unsigned reg, uint32_t *v)
{
	bool is_x2 = lapic_is_x2apic(l);

	switch (reg) {
	case REG_ID:
		*v = is_x2 ? l->id : l->id << 24;
		return true;
	case REG_VERSION:
		*v = LAPIC_VERSION;
		return true;
	case REG_TPR:
		*v = l->tpr;
		return true;
	case REG_APR:
	case REG_RRD:
		*v = 0;
		return !is_x2;
	case REG_PPR:
		*v = lapic_ppr(l);
		return true;
	case REG_EOI:
		*v = 0;
		return !is_x2;
	case REG_LDR:
		*v = l->ldr;
		return true;
	case REG_DFR:
		*v = l->dfr;
		return !is_x2;
	case REG_SVR:
		*v = l->svr;
		return true;
	case REG_ISR ... REG_ISR + 0x70:
		*v = l->isr[(reg - REG_ISR) >> 4];
		return true;
	case REG_TMR ... REG_TMR + 0x70:
		*v = l->tmr[(reg - REG_TMR) >> 4];
		return true;
	case REG_IRR ... REG_IRR + 0x70:
		*v = l->irr[(reg - REG_IRR) >> 4];
		return true;
	case REG_ESR:
		*v = l->esr;
		return true;
	case REG_ICR:
		*v = (uint32_t)l->icr;
		return true;
	case REG_ICR_HIGH:
		*v = l->icr_high;
		return !is_x2;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		*v = l->lvt[(reg - REG_LVT_TIMER) >> 4];
		return true;
	case REG_TMICT:
		*v = l->timer_initial;
		return true;
	case REG_TMCCT:
		*v = lapic_timer_count(l);
		return true;
	case REG_TDCR:
		*v = l->timer_divide;
		return true;
	default:
		return false;
	}
}

static void write_svr(struct lapic *l, uint32_t v)
{
	l->svr = v & 0x1ff;
	if (!lapic_is_soft_enabled(l))
		for (unsigned i = 0; i < LAPIC_NLVT; i++)
			l->lvt[i] |= LVT_MASKED;
}

static void write_lvt(struct lapic *l, unsigned i, uint32_t v)
{
	uint32_t old = l->lvt[i];

	if (i == LAPIC_LVT_TIMER)
		lapic_timer_settle(l);
	v &= lapic_lvt_writable(l, i);
	if (!lapic_is_soft_enabled(l))
		v |= LVT_MASKED;
	l->lvt[i] = v;
	if (i == LAPIC_LVT_TIMER)
		lapic_timer_write_lvt(l, old);
	/* a level-triggered LINT0 unmasked while asserted */
	if (i == LAPIC_LVT_LINT0 && (old & LVT_MASKED) && !(v & LVT_MASKED) && l->is_lint0_high &&
	    (v & LVT_LEVEL) && LVT_MODE(v) == APIC_FIXED)
		lapic_fire_lvt(l, i);
}

/* Writes of registers that both modes have. */
static void reg_write(struct lapic *l, unsigned reg, uint32_t v)
{
	switch (reg) {
	case REG_TPR:
		l->tpr = v & 0xff;
		break;
	case REG_EOI:
		lapic_eoi(l);
		break;
	case REG_SVR:
		write_svr(l, v);
		break;
	case REG_ESR:
		l->esr = l->esr_pending;
		l->esr_pending = 0;
		break;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		write_lvt(l, (reg - REG_LVT_TIMER) >> 4, v);
		break;
	case REG_TMICT:
		lapic_timer_write_initial(l, v);
		break;
	case REG_TDCR:
		lapic_timer_write_divide(l, v);
		break;
	default:
		break;
	}
	lapic_update(l);
}

/* ---- xAPIC page ---- */

static void page_write(struct lapic *l, unsigned reg, uint32_t v)
{
	switch (reg) {
	case REG_ID:
		l->id = v >> 24;
		break;
	case REG_LDR:
		l->ldr = v & 0xff000000;
		break;
	case REG_DFR:
		l->dfr = v | 0x0fffffff;
		break;
	case REG_ICR:
		l->icr = v & ICR_WRITABLE;
		lapic_send_icr(l, (uint64_t)(l->icr_high >> 24) << 32 | l->icr);
		break;
	case REG_ICR_HIGH:
		l->icr_high = v & 0xff000000;
		break;
	case REG_VERSION:
	case REG_APR:
	case REG_PPR:
	case REG_RRD:
	case REG_ISR ... REG_ISR + 0x70:
	case REG_TMR ... REG_TMR + 0x70:
	case REG_IRR ... REG_IRR + 0x70:
	case REG_TMCCT:
		break; /* read-only */
	case REG_TPR:
	case REG_EOI:
	case REG_SVR:
	case REG_ESR:
	case REG_LVT_TIMER ... REG_LVT_ERROR:
	case REG_TMICT:
	case REG_TDCR:
		reg_write(l, reg, v);
		break;
	default:
		log_guest("lapic", "cpu %u: write of reserved register %#x", (unsigned)l->cpu, reg);
		lapic_error(l, ESR_ILLEGAL_REGISTER);
		break;
	}
}

bool lapic_mmio(struct lapic *l, uint64_t gpa, unsigned size, bool is_write, uint64_t *data)
{
	unsigned offset = gpa & 0xfff, reg = offset & 0xff0, byte = offset & 0xf;
	uint32_t v = 0;

	if (!lapic_is_enabled(l) || lapic_is_x2apic(l) || (gpa ^ l->base) & ~0xfffull)
		return false;
	lapic_pv_sync(l);
	if (is_write) {
		/* SDM 10.4.1: aligned 32-bit accesses only; the rest is undefined */
		if (byte || size < 4)
			log_guest("lapic", "cpu %u: write of %u bytes at %#x", (unsigned)l->cpu,
				  size, offset);
		else
			page_write(l, reg, (uint32_t)*data);
		return true;
	}
	if (byte < 4 && !reg_read(l, reg, &v)) {
		log_guest("lapic", "cpu %u: read of reserved register %#x", (unsigned)l->cpu, reg);
		lapic_error(l, ESR_ILLEGAL_REGISTER);
	}
	*data = byte < 4 ? v >> byte * 8 : 0;
	if (size < 4)
		*data &= (1ull << size * 8) - 1;
	return true;
}

/* ---- x2APIC MSRs ---- */

static int x2apic_read(const struct lapic *l, unsigned reg, uint64_t *out)
{
	uint32_t v;

	if (reg == REG_ICR) {
		*out = l->icr;
		return 0;
	}
	if (!reg_read(l, reg, &v))
		return -EPERM;
	*out = v;
	return 0;
}

static int x2apic_write(struct lapic *l, unsigned reg, uint64_t value)
{
	uint32_t v = (uint32_t)value, writable;
	unsigned i;

	if (reg == REG_ICR) {
		if (v & X2APIC_ICR_RESERVED)
			return -EPERM;
		l->icr = value & ~0x1000ull;
		lapic_send_icr(l, l->icr);
		return 0;
	}
	switch (reg) {
	case REG_EOI:
	case REG_ESR:
		writable = 0;
		break;
	case REG_TPR:
	case REG_SELF_IPI:
		writable = 0xff;
		break;
	case REG_SVR:
		writable = 0x1ff;
		break;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		/* delivery status and remote IRR (of the LINT pins) are read-only, not reserved */
		i = (reg - REG_LVT_TIMER) >> 4;
		writable = lapic_lvt_writable(l, i) | 0x1000;
		if (i == LAPIC_LVT_LINT0 || i == LAPIC_LVT_LINT1)
			writable |= 0x4000;
		break;
	case REG_TMICT:
		writable = UINT32_MAX;
		break;
	case REG_TDCR:
		writable = 0xb;
		break;
	default:
		return -EPERM;
	}
	if (value & ~(uint64_t)writable)
		return -EPERM;
	if (reg == REG_SELF_IPI)
		lapic_send_icr(l, 1u << 18 | v);
	else
		reg_write(l, reg, v);
	return 0;
}

/* ---- IA32_APIC_BASE ---- */

static uint32_t x2apic_ldr(uint32_t id)
{
	return (id >> 4) << 16 | 1u << (id & 15);
}

static int write_base(struct lapic *l, uint64_t value)
{
	const struct lapic_bus_config *cfg = &l->bus->cfg;
	const uint32_t mode_bits = LAPIC_BASE_ENABLE | LAPIC_BASE_X2APIC;
	uint32_t from = l->base & mode_bits, to = value & mode_bits;
	uint64_t reserved = ~((1ull << cfg->phys_bits) - 1) | 0x2ff;

	if (!cfg->has_x2apic)
		reserved |= LAPIC_BASE_X2APIC;
	if ((value & reserved) || to == LAPIC_BASE_X2APIC)
		return -EPERM;
	/* x2APIC is entered from xAPIC only, and left to "disabled" only */
	if ((to == mode_bits && from == 0) || (to == LAPIC_BASE_ENABLE && from == mode_bits))
		return -EPERM;
	l->base = value;
	if (from != to) {
		l->id = (uint32_t)l->cpu;
		if (to == mode_bits) {
			l->ldr = x2apic_ldr(l->id);
			l->icr_high = 0;
		} else if (to == 0) {
			uint32_t tpr = l->tpr; /* CR8 goes on working */

			lapic_reset_regs(l);
			l->tpr = tpr;
		}
	}
	if (cfg->up.base_changed)
		cfg->up.base_changed(cfg->up.ctx, (unsigned)l->cpu, value);
	lapic_update(l);
	return 0;
}

void lapic_set_base(struct lapic *l, uint64_t base)
{
	l->base = base;
	if (lapic_is_x2apic(l)) {
		l->id = (uint32_t)l->cpu;
		l->ldr = x2apic_ldr(l->id);
	}
	lapic_update(l);
}

int lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *out)
{
	if (msr == MSR_APIC_BASE) {
		*out = l->base;
		return 0;
	}
	if (msr == MSR_TSC_DEADLINE && l->bus->cfg.has_tsc_deadline) {
		*out = l->tsc_deadline;
		return 0;
	}
	if (msr < MSR_X2APIC || msr > MSR_X2APIC + 0xff || !lapic_is_x2apic(l))
		return -EPERM;
	lapic_pv_sync(l);
	return x2apic_read(l, (msr - MSR_X2APIC) << 4, out);
}

int lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value)
{
	if (msr == MSR_APIC_BASE) {
		lapic_pv_sync(l);
		return write_base(l, value);
	}
	if (msr == MSR_TSC_DEADLINE && l->bus->cfg.has_tsc_deadline) {
		lapic_timer_write_deadline(l, value);
		return 0;
	}
	if (msr < MSR_X2APIC || msr > MSR_X2APIC + 0xff || !lapic_is_x2apic(l))
		return -EPERM;
	lapic_pv_sync(l);
	return x2apic_write(l, (msr - MSR_X2APIC) << 4, value);
}

/* ---- CR8 ---- */

uint64_t lapic_get_cr8(const struct lapic *l)
{
	return l->tpr >> 4;
}

int lapic_set_cr8(struct lapic *l, uint64_t value)
{
	if (value & ~0xfull)
		return -EPERM;
	l->tpr = (uint32_t)value << 4;
	lapic_update(l);
	return 0;
}

/* ---- exchange ---- */

static void put(uint8_t regs[1024], unsigned reg, uint32_t v)
{
	memcpy(regs + reg, &v, 4);
}

static uint32_t get(const uint8_t regs[1024], unsigned reg)
{
	uint32_t v;

	memcpy(&v, regs + reg, 4);
	return v;
}

#define REG_DEADLINE 0x3f8

void lapic_get_regs(struct lapic *l, uint8_t regs[1024])
{
	uint32_t v;

	lapic_pv_sync(l); /* the other engine knows nothing of an offer */
	memset(regs, 0, 1024);
	for (unsigned reg = 0; reg < 1024; reg += 16)
		if (reg_read(l, reg, &v))
			put(regs, reg, v);
	if (lapic_is_x2apic(l))
		put(regs, REG_ICR_HIGH, (uint32_t)(l->icr >> 32));
	memcpy(regs + REG_DEADLINE, &l->tsc_deadline, 8);
}

void lapic_set_regs(struct lapic *l, const uint8_t regs[1024])
{
	bool is_x2 = lapic_is_x2apic(l);

	l->id = is_x2 ? (uint32_t)l->cpu : get(regs, REG_ID) >> 24;
	l->tpr = get(regs, REG_TPR) & 0xff;
	l->ldr = is_x2 ? x2apic_ldr(l->id) : get(regs, REG_LDR) & 0xff000000;
	l->dfr = is_x2 ? 0xffffffff : get(regs, REG_DFR) | 0x0fffffff;
	l->svr = get(regs, REG_SVR) & 0x1ff;
	for (unsigned i = 0; i < 8; i++) {
		l->isr[i] = get(regs, REG_ISR + i * 16);
		l->tmr[i] = get(regs, REG_TMR + i * 16);
		l->irr[i] = get(regs, REG_IRR + i * 16);
	}
	l->isr[0] &= ~0xffffu;
	l->irr[0] &= ~0xffffu;
	l->esr = get(regs, REG_ESR);
	l->esr_pending = 0;
	l->pv_eoi_pending = false;
	l->icr = get(regs, REG_ICR) & ICR_WRITABLE;
	l->icr_high = is_x2 ? 0 : get(regs, REG_ICR_HIGH) & 0xff000000;
	if (is_x2)
		l->icr |= (uint64_t)get(regs, REG_ICR_HIGH) << 32;
	for (unsigned i = 0; i < LAPIC_NLVT; i++)
		l->lvt[i] = get(regs, REG_LVT_TIMER + i * 16) & lapic_lvt_writable(l, i);
	l->timer_divide = get(regs, REG_TDCR) & 0xb;
	lapic_timer_stop(l);
	l->timer_initial = get(regs, REG_TMICT);
	lapic_timer_set_count(l, get(regs, REG_TMCCT));
	if ((l->lvt[LAPIC_LVT_TIMER] & LVT_TIMER_MODE) == LVT_TIMER_DEADLINE)
		memcpy(&l->tsc_deadline, regs + REG_DEADLINE, 8);
	lapic_timer_rearm(l);
	l->intr_known = false;
	lapic_update(l);
}
