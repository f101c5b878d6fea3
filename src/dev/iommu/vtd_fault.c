/* SPDX-License-Identifier: Apache-2.0 */
/* Recording of refused requests and the unit's own two interrupts: 7.2, 7.3, 10.4.9 to 10.4.14. */
#include "dev/iommu/vtd_regs.h"

#define FSTS_WRITE_1_CLEARS (VTD_PFO | VTD_IQE)

static bool any_recorded(const struct vtd *v)
{
	for (unsigned i = 0; i < VTD_FAULTS; i++)
		if (v->faults[i].high & VTD_FAULT_F)
			return true;
	return false;
}

uint32_t vtd_fsts(const struct vtd *v)
{
	return v->fsts | (any_recorded(v) ? VTD_PPF : 0);
}

/* ---- events ---- */

void vtd_event(struct vtd *v, uint32_t *control, uint32_t addr, uint32_t upper, uint32_t data)
{
	if (*control & VTD_EVENT_MASK) {
		*control |= VTD_EVENT_PENDING;
		return;
	}
	*control &= ~VTD_EVENT_PENDING;
	v->env.msi.send(v->env.msi.ctx, (uint64_t)upper << 32 | addr, data);
}

void vtd_event_control_write(struct vtd *v, uint32_t *control, uint32_t value, uint32_t addr,
			     uint32_t upper, uint32_t data)
{
	*control = (*control & VTD_EVENT_PENDING) | (value & VTD_EVENT_MASK);
	if (*control == VTD_EVENT_PENDING)
		vtd_event(v, control, addr, upper, data);
}

/* 7.3: one event for all conditions until software has cleared every one. */
static void fault_event(struct vtd *v, uint32_t fsts_before)
{
	if (!(fsts_before & (VTD_PFO | VTD_PPF | VTD_IQE)))
		vtd_event(v, &v->fectl, v->feaddr, v->feuaddr, v->fedata);
}

/* Nothing left to tell: nothing is pending either. */
static void settle(struct vtd *v)
{
	if (!(vtd_fsts(v) & (VTD_PFO | VTD_PPF | VTD_IQE)))
		v->fectl &= ~VTD_EVENT_PENDING;
}

void vtd_fault_status(struct vtd *v, uint32_t bits)
{
	uint32_t before = vtd_fsts(v);

	v->fsts |= bits;
	fault_event(v, before);
}

/* ---- recording (7.2.1) ---- */

void vtd_fault(struct vtd *v, uint16_t source_id, uint64_t info, bool is_read, enum vtd_fault reason)
{
	struct vtd_fault_record *f = &v->faults[v->next_fault];
	uint32_t before = vtd_fsts(v);

	log_guest("vtd", "%02x:%02x.%x: %s of %#llx refused, reason %#x", source_id >> 8,
		  source_id >> 3 & 31, source_id & 7, is_read ? "read" : "write or interrupt",
		  (unsigned long long)info, reason);
	if (before & VTD_PFO)
		return;
	for (unsigned i = 0; i < VTD_FAULTS; i++) /* one a requester is enough */
		if ((v->faults[i].high & VTD_FAULT_F) && (uint16_t)v->faults[i].high == source_id)
			return;
	if (f->high & VTD_FAULT_F) {
		vtd_fault_status(v, VTD_PFO);
		return;
	}
	if (!(before & VTD_PPF)) /* FRI: where software starts to look */
		v->fsts = (v->fsts & ~0xff00u) | v->next_fault << 8;
	f->low = info;
	f->high = VTD_FAULT_F | (is_read ? VTD_FAULT_READ : 0) | (uint64_t)reason << 32 | source_id;
	v->next_fault = (v->next_fault + 1) % VTD_FAULTS;
	fault_event(v, before);
}

void vtd_frcd_write(struct vtd *v, unsigned i, uint32_t value)
{
	if (value >> 31)
		v->faults[i].high &= ~VTD_FAULT_F;
	settle(v);
}

void vtd_fsts_write(struct vtd *v, uint32_t value)
{
	bool was_stopped = v->fsts & VTD_IQE;

	v->fsts &= ~(value & FSTS_WRITE_1_CLEARS);
	settle(v);
	if (was_stopped && !(v->fsts & VTD_IQE))
		vtd_queue_run(v); /* software has mended the descriptor */
}
