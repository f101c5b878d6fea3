/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of the local APIC: register offsets (SDM vol. 3 table 10-1) and insides. */
#ifndef VIV_DEV_CHIPSET_LAPIC_REGS_H
#define VIV_DEV_CHIPSET_LAPIC_REGS_H

#include "dev/chipset/lapic.h"

enum {
	REG_ID = 0x020,
	REG_VERSION = 0x030,
	REG_TPR = 0x080,
	REG_APR = 0x090,
	REG_PPR = 0x0a0,
	REG_EOI = 0x0b0,
	REG_RRD = 0x0c0,
	REG_LDR = 0x0d0,
	REG_DFR = 0x0e0,
	REG_SVR = 0x0f0,
	REG_ISR = 0x100,
	REG_TMR = 0x180,
	REG_IRR = 0x200,
	REG_ESR = 0x280,
	REG_ICR = 0x300,
	REG_ICR_HIGH = 0x310,
	REG_LVT_TIMER = 0x320, /* .. LVT_ERROR 370H */
	REG_LVT_ERROR = 0x370,
	REG_TMICT = 0x380,
	REG_TMCCT = 0x390,
	REG_TDCR = 0x3e0,
	REG_SELF_IPI = 0x3f0,
};

#define LAPIC_VERSION (0x14u | (LAPIC_NLVT - 1) << 16)

#define SVR_ENABLE	   0x100u
#define LVT_MASKED	   0x10000u
#define LVT_LEVEL	   0x8000u
#define LVT_MODE(lvt)	   ((lvt) >> 8 & 7)
#define LVT_TIMER_MODE	   0x60000u
#define LVT_TIMER_PERIODIC 0x20000u
#define LVT_TIMER_DEADLINE 0x40000u

#define ESR_SEND_ILLEGAL     0x20u
#define ESR_RECEIVE_ILLEGAL  0x40u
#define ESR_ILLEGAL_REGISTER 0x80u

struct lapic_bus {
	struct lapic_bus_config cfg;
	struct lapic *cpu[LAPIC_MAX_CPUS];
	unsigned n;	      /* one above the highest index in use */
	unsigned last_lowest; /* who got the last lowest-priority message */
	bool lint0;
};

static inline bool lapic_is_enabled(const struct lapic *l)
{
	return l->base & LAPIC_BASE_ENABLE;
}
static inline bool lapic_is_x2apic(const struct lapic *l)
{
	return l->base & LAPIC_BASE_X2APIC;
}
static inline bool lapic_is_soft_enabled(const struct lapic *l)
{
	return l->svr & SVR_ENABLE;
}

/* lapic.c */
void lapic_update(struct lapic *l);
void lapic_error(struct lapic *l, uint32_t esr_bit);
/* Take a message that was found to be for this LAPIC. */
void lapic_accept(struct lapic *l, uint8_t delivery, uint8_t vector, bool is_level);
void lapic_fire_lvt(struct lapic *l, unsigned lvt);
uint8_t lapic_ppr(const struct lapic *l);
void lapic_reset_regs(struct lapic *l);
void lapic_set_lint0(struct lapic *l, bool level);
void lapic_eoi(struct lapic *l);

/* lapic_pv.c */
/* On the vCPU's thread: what the guest did to the bit in its memory counts from now on as done. */
void lapic_pv_sync(struct lapic *l);
/* Vector @v just went into service: let the guest end it in memory if nothing waits for that. */
void lapic_pv_offer(struct lapic *l, unsigned v);

/* lapic_timer.c */
void lapic_timer_fired(void *lapic);
void lapic_timer_stop(struct lapic *l);
/** lapic_timer_settle() - an expiry that is due and that the host has not come to yet: now, before what it depends on changes. */
void lapic_timer_settle(struct lapic *l);
void lapic_timer_write_initial(struct lapic *l, uint32_t count);
void lapic_timer_write_divide(struct lapic *l, uint32_t value);
void lapic_timer_write_lvt(struct lapic *l, uint32_t old_lvt);
void lapic_timer_write_deadline(struct lapic *l, uint64_t tsc);
uint32_t lapic_timer_count(const struct lapic *l);
void lapic_timer_set_count(struct lapic *l, uint32_t count); /* restart from @count */
void lapic_timer_rearm(struct lapic *l);		     /* after load */

/* lapic_bus.c */
void lapic_send_icr(struct lapic *l, uint64_t icr); /* in x2APIC layout: destination in 63..32 */

/* lapic_access.c */
uint32_t lapic_lvt_writable(const struct lapic *l, unsigned lvt);

#endif
