/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IOAPIC with 24 inputs (Intel 82093AA data sheet 290566; version 20H with the EOI register of
 * ICH 5 data sheet 252516 9.5).  Messages leave as MSIs through env->msi, so the same device serves
 * LAPICs here and in the kernel, and through the IOMMU where there is one: then bits 55:48 of a redirection entry exist, too
 * (VT-d specification, rev. 2.3, 5.1.2.1).  Inputs are logical levels: the polarity bit is stored, not applied.
 */
#ifndef VIV_DEV_CHIPSET_IOAPIC_H
#define VIV_DEV_CHIPSET_IOAPIC_H

#include "dev/device.h"

#define IOAPIC_PINS 24
#define IOAPIC_BASE 0xfec00000u
/* Behind an IOMMU it sends as a requester of its own (the DMAR table says which): bus F0H, 1FH.7. */
#define IOAPIC_SOURCE_ID 0xf0ff

struct ioapic {
	struct device dev;
	struct dev_env env;
	struct bus_range *range;
	uint64_t redir[IOAPIC_PINS];
	uint32_t lines; /* input levels */
	uint8_t id;	/* 0..15 */
	uint8_t select; /* IOREGSEL */
	uint8_t pad_[2];
};

extern const struct device_class ioapic_class;

int ioapic_create(struct ioapic **out, const struct dev_env *env, struct error *err);
/** ioapic_set_irq() - level of pin @n (others are ignored).  Fits irq_line.set. */
void ioapic_set_irq(void *ioapic, unsigned n, bool level);
/** ioapic_eoi() - EOI broadcast of a LAPIC: pins with @vector may fire again. */
void ioapic_eoi(void *ioapic, uint8_t vector);

#endif
