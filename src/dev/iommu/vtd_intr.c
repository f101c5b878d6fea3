/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupt remapping: requests 5.1.2, the table 5.1.3, what is refused 5.1.4, entries 9.10. */
#include "dev/chipset/apic_msg.h"
#include "dev/chipset/ioapic.h"
#include "dev/iommu/vtd_regs.h"

/* 5.1.2.2: a message in remappable format; the index has its highest bit apart */
#define ADDR_REMAPPABLE	 (1u << 4)
#define ADDR_SHV	 (1u << 3) /* the data has a subindex */
#define ADDR_INDEX(addr) (((addr) >> 5 & 0x7fff) | ((addr) >> 2 & 1) << 15)

#define IRTA_ENTRIES(irta) (2u << ((irta)&0xf)) /* 10.4.29 */
#define IRTA_MASK	   0xfffffffffffff000ULL

/* 9.10 */
#define IRTE_PRESENT  1ULL
#define IRTE_FPD      2ULL
#define IRTE_LOGICAL  4ULL
#define IRTE_REDIRECT 8ULL
#define IRTE_LEVEL    0x10ULL
#define IRTE_LOW_RSVD                                                                              \
	0xffff00ffff00f000ULL /* with IM, posted; the destination is bits 47:40 (xAPIC) */
#define IRTE_HIGH_RSVD 0xfffffffffff00000ULL

/*
 * Does the entry take interrupts of @source_id?  SVT and SQ of 9.10.  The check is against devices that make up messages by
 * DMA.  The IOAPIC's entries are written by the guest's CPUs only, and there are guests (the public kvm-unit-tests) that
 * let one name the device whose line it is in place of the IOAPIC: its messages pass, as they do in QEMU.
 */
static bool is_allowed(uint64_t high, uint16_t source_id)
{
	static const uint16_t ignored[4] = { 0, 4, 6, 7 };
	uint16_t sid = (uint16_t)high, mask = (uint16_t)~ignored[high >> 16 & 3];

	if (source_id == IOAPIC_SOURCE_ID)
		return true;
	switch (high >> 18 & 3) {
	case 0:
		return true;
	case 1:
		return ((sid ^ source_id) & mask) == 0;
	default: /* a range of buses */
		return source_id >> 8 >= sid >> 8 && source_id >> 8 <= (sid & 0xff);
	}
}

static void refuse(struct vtd *v, uint16_t source_id, uint32_t index, enum vtd_fault reason)
{
	vtd_fault(v, source_id, (uint64_t)index << 48, false, reason);
}

/* The entry of @index, checked; false: refused. */
static bool find_entry(struct vtd *v, uint16_t source_id, uint32_t index, uint64_t e[2])
{
	if (index >= IRTA_ENTRIES(v->intr_table)) {
		refuse(v, source_id, index, VTD_INTR_INDEX);
		return false;
	}
	if (ram_read(v->env.ram, (v->intr_table & IRTA_MASK) + index * 16ULL, e, 16) < 0) {
		refuse(v, source_id, index, VTD_INTR_ACCESS);
		return false;
	}
	enum vtd_fault reason;

	if (!(e[0] & IRTE_PRESENT))
		reason = VTD_INTR_NOT_PRESENT;
	else if ((e[0] & IRTE_LOW_RSVD) || (e[1] & IRTE_HIGH_RSVD) || (e[1] >> 18 & 3) == 3)
		reason = VTD_IRTE_RESERVED;
	else if (!is_allowed(e[1], source_id))
		reason = VTD_INTR_SOURCE;
	else
		return true;
	if (!(e[0] & IRTE_FPD))
		refuse(v, source_id, index, reason);
	return false;
}

static void remap(struct vtd *v, uint16_t source_id, uint32_t addr, uint32_t data)
{
	uint32_t index = ADDR_INDEX(addr);
	uint64_t e[2];

	if (addr & ADDR_SHV) {
		if (data >> 16) {
			refuse(v, source_id, index, VTD_INTR_RESERVED);
			return;
		}
		index += data & 0xffff;
	}
	if (!find_entry(v, source_id, index, e))
		return;
	struct apic_msg m = {
		.dest = (uint32_t)(e[0] >> 40 & 0xff),
		.is_logical = e[0] & IRTE_LOGICAL,
		.is_level = e[0] & IRTE_LEVEL,
		.is_assert = true,
		.delivery = e[0] >> 5 & 7,
		.vector = (uint8_t)(e[0] >> 16),
	};
	uint64_t out_addr;
	uint32_t out_data;

	apic_msg_to_msi(&m, &out_addr, &out_data);
	if (e[0] & IRTE_REDIRECT)
		out_addr |= ADDR_SHV; /* the same bit of a message to APICs: redirection hint */
	v->env.msi.send(v->env.msi.ctx, out_addr, out_data);
}

void vtd_msi(struct iommu *u, uint16_t source_id, uint64_t addr, uint32_t data)
{
	struct vtd *v = container_of(u, struct vtd, iommu);

	if (!(v->gsts & VTD_IRE) || (addr & ~0xfffffULL) != APIC_MSI_BASE)
		v->env.msi.send(v->env.msi.ctx, addr, data);
	else if (addr & ADDR_REMAPPABLE)
		remap(v, source_id, (uint32_t)addr, data);
	else if (v->gsts & VTD_CFI)
		v->env.msi.send(v->env.msi.ctx, addr, data);
	else
		refuse(v, source_id, 0, VTD_INTR_COMPATIBILITY);
}
