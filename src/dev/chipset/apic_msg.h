/* SPDX-License-Identifier: Apache-2.0 */
/* An interrupt message on its way to local APICs; Intel SDM vol. 3 10.6, MSI: 10.11. */
#ifndef VIV_DEV_CHIPSET_APIC_MSG_H
#define VIV_DEV_CHIPSET_APIC_MSG_H

#include "base/util.h"

enum apic_delivery {
	APIC_FIXED = 0,
	APIC_LOWEST = 1,
	APIC_SMI = 2,
	APIC_NMI = 4,
	APIC_INIT = 5,
	APIC_SIPI = 6,
	APIC_EXTINT = 7,
};

struct apic_msg {
	uint32_t dest;
	bool is_logical;
	bool is_level; /* trigger mode */
	bool is_assert;
	uint8_t delivery; /* enum apic_delivery, 3 is reserved */
	uint8_t vector;
};

#define APIC_MSI_BASE 0xfee00000u

/** apic_msg_to_msi() - destination is cut to 8 bits. */
static inline void apic_msg_to_msi(const struct apic_msg *m, uint64_t *addr, uint32_t *data)
{
	*addr = APIC_MSI_BASE | (m->dest & 0xff) << 12 | (m->delivery == APIC_LOWEST ? 8u : 0) |
		(m->is_logical ? 4u : 0);
	*data = (m->is_level ? 0x8000u : 0) | (m->is_assert ? 0x4000u : 0) |
		(uint32_t)(m->delivery & 7) << 8 | m->vector;
}

/** apic_msg_from_msi() - false: not an interrupt message address. */
static inline bool apic_msg_from_msi(struct apic_msg *m, uint64_t addr, uint32_t data)
{
	if ((addr & ~0xfffffull) != APIC_MSI_BASE)
		return false;
	*m = (struct apic_msg){
		.dest = addr >> 12 & 0xff,
		.is_logical = addr & 4,
		.is_level = data & 0x8000,
		/* edge messages have no level */
		.is_assert = !(data & 0x8000) || (data & 0x4000),
		.delivery = data >> 8 & 7,
		.vector = data & 0xff,
	};
	return true;
}

#endif
