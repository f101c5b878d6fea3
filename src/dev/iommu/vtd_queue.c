/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The invalidation queue (6.5.2): descriptors of 16 bytes in guest memory, from the head, which is ours, to the
 * tail, which is software's.  Caches there are none, so only the wait descriptor does something.
 */
#include "dev/iommu/vtd_regs.h"

#define DESC_BYTES     16
#define IQA_MASK       0xfffffffffffff000ULL
#define IQA_BYTES(iqa) (4096u << ((iqa)&7)) /* 10.4.23: QS */

/* 6.5.2.1 to 6.5.2.5; of device TLBs (3) there are none, and PASIDs belong to first-level tables. */
enum { CONTEXT_CACHE = 1, IOTLB = 2, INTERRUPT_CACHE = 4, WAIT = 5 };

#define GRANULARITY(low) ((low) >> 4 & 3) /* 0 is reserved */
#define WAIT_INTERRUPT	 (1ULL << 4)
#define WAIT_STATUS	 (1ULL << 5)

/* Bits that must be 0, by type. */
static bool has_reserved(const uint64_t d[2])
{
	switch (d[0] & 0xf) {
	case CONTEXT_CACHE:
		return (d[0] & 0xfffc00000000ffc0ULL) || d[1];
	case IOTLB:
		return (d[0] & 0xffffffff0000ff00ULL) || (d[1] & 0xf80ULL);
	case INTERRUPT_CACHE:
		return (d[0] & 0xffff000007ffffe0ULL) || d[1];
	default:
		return (d[0] & 0xffffff80ULL) || (d[1] & 3);
	}
}

/* The message of IECTL, once until software clears ICS: 6.5.2.4 and 10.4.24. */
static void completed(struct vtd *v)
{
	if (v->ics & VTD_IWC)
		return;
	v->ics |= VTD_IWC;
	vtd_event(v, &v->iectl, v->ieaddr, v->ieuaddr, v->iedata);
}

static void wait(struct vtd *v, const uint64_t d[2])
{
	uint32_t status = (uint32_t)(d[0] >> 32);

	if ((d[0] & WAIT_STATUS) && ram_write(v->env.ram, d[1], &status, 4) < 0)
		log_guest("vtd", "invalidation status to %#llx, which is no RAM",
			  (unsigned long long)d[1]);
	if (d[0] & WAIT_INTERRUPT)
		completed(v);
}

/* False: the queue stands still at this descriptor. */
static bool handle(struct vtd *v, const uint64_t d[2])
{
	unsigned type = d[0] & 0xf;

	if ((type != CONTEXT_CACHE && type != IOTLB && type != INTERRUPT_CACHE && type != WAIT) ||
	    has_reserved(d))
		return false;
	if ((type == CONTEXT_CACHE || type == IOTLB) && !GRANULARITY(d[0]))
		return false;
	if (type == WAIT)
		wait(v, d);
	return true;
}

void vtd_queue_run(struct vtd *v)
{
	uint32_t bytes = IQA_BYTES(v->iqa);
	uint64_t d[2];

	if (!(v->gsts & VTD_QIE) || (v->fsts & VTD_IQE))
		return;
	while (v->iqh != v->iqt) { /* at most once around: the head meets the tail (invariant 2) */
		if (v->iqt >= bytes || v->iqh >= bytes ||
		    ram_read(v->env.ram, (v->iqa & IQA_MASK) + v->iqh, d, DESC_BYTES) < 0 ||
		    !handle(v, d)) {
			log_guest("vtd", "the invalidation queue is in error at %#x", v->iqh);
			vtd_fault_status(v, VTD_IQE);
			return;
		}
		v->iqh = (v->iqh + DESC_BYTES) % bytes;
	}
}
