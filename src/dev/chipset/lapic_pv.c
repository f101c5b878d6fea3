/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's paravirtual end of interrupt: the guest clears a bit in its memory instead of writing the EOI
 * register, which costs it an exit (Linux Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN).
 *
 * How it works: when a vector goes into service and nothing waits for its end (edge-triggered, alone in
 * service, no other request), the bit is set and the LAPIC remembers the offer (pv_eoi_pending).  Whenever
 * the vCPU comes by and the answer could matter, lapic_pv_sync() takes the offer back: a cleared
 * bit was an EOI, a set one is cleared, and the guest will write the register.
 *
 * A request that arrives meanwhile raises INTR as if the vector had ended (lapic_has_intr): the vCPU
 * then comes to lapic_ack() as soon as its guest takes interrupts, which is where the truth is found.
 *
 * The bit is touched only on the vCPU's thread and while its guest does not execute: neither side
 * needs a locked access.  Memory that is not RAM, or is the guest's own nonsense, hurts nobody but it.
 */
#include <errno.h>

#include "dev/chipset/lapic_regs.h"

#define PV_EOI_ENABLE 1u
#define PV_EOI_BIT    1u

static gpa_t flag_gpa(const struct lapic *l)
{
	return l->pv_eoi & ~3ull;
}

void lapic_pv_sync(struct lapic *l)
{
	uint8_t flag = 0;

	if (!l->pv_eoi_pending)
		return;
	l->pv_eoi_pending = false;
	if (ram_read(l->env.ram, flag_gpa(l), &flag, 1) < 0 || !(flag & PV_EOI_BIT)) {
		lapic_eoi(l);
		return;
	}
	flag &= (uint8_t)~PV_EOI_BIT;
	(void)ram_write(l->env.ram, flag_gpa(l), &flag, 1);
	lapic_update(l);
}

/* Is there one vector in service, and no request? */
static bool is_alone(const struct lapic *l, unsigned v)
{
	for (unsigned i = 0; i < 8; i++)
		if (l->irr[i] || l->isr[i] != (i == v / 32 ? 1u << (v & 31) : 0))
			return false;
	return true;
}

void lapic_pv_offer(struct lapic *l, unsigned v)
{
	uint8_t flag;

	if (!(l->pv_eoi & PV_EOI_ENABLE) || l->tmr[v / 32] >> (v & 31) & 1 || !is_alone(l, v))
		return;
	if (ram_read(l->env.ram, flag_gpa(l), &flag, 1) < 0)
		return;
	flag |= PV_EOI_BIT;
	/* ROM keeps its content: then there is no offer. */
	if (ram_write(l->env.ram, flag_gpa(l), &flag, 1) < 0)
		return;
	l->pv_eoi_pending = true;
}

int lapic_set_pv_eoi(struct lapic *l, uint64_t value)
{
	if (value & 2)
		return -EPERM;
	lapic_pv_sync(l);
	l->pv_eoi = value;
	return 0;
}

void lapic_load_pv_eoi(struct lapic *l, uint64_t value)
{
	l->pv_eoi = value;
}
