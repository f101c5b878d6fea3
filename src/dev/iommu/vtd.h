/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A DMA and interrupt remapping unit.  Source: Intel, "Virtualization Technology for Directed I/O, Architecture
 * Specification", revision 2.3 (D51397-007); section numbers here are that revision's.
 *
 *   DMA of a PCI device -> translate: root table -> context table -> second-level table -> guest RAM   (vtd_walk.c, 3.4-3.7)
 *   MSI, IOAPIC         -> msi: interrupt remapping table -> local APICs                              (vtd_intr.c, 5.1)
 *   what is refused     -> fault recording registers, an interrupt                                     (vtd_fault.c, 7)
 *   guest's commands    -> registers, invalidation queue                                       (vtd.c, vtd_queue.c, 10, 6.5)
 *
 * Version 1.0 with second-level translation of 3 and 4 levels, pages of 4K, 2M and 1G, pass-through, queued
 * invalidation and interrupt remapping; neither first-level tables, device TLBs, posted interrupts, advanced fault log nor
 * 32-bit APIC ids (EIM).
 *
 * Nothing is cached: every request walks the tables as they are at that moment.  So invalidation has nothing to
 * do but to be answered, in order.  A request for which a device holds host vectors already (dma.h) is under way; whoever
 * takes its pages away before it is done stops the device first, as with any hardware: by the device's reset or
 * its bus master bit, which wait for it.  Accordingly draining (CAP.DWD, DRD) is not offered.
 *
 * Invariants
 *  1. A walk reads at most a root entry, a context entry and 4 table entries, whatever memory holds.
 *  2. One kick of the queue handles at most as many descriptors as the queue has.
 *  3. What the unit reads and writes lies in guest RAM (ram_read, ram_write); it is not itself translated.
 *  4. Its own interrupts are not remapped (5.1).
 */
#ifndef VIV_DEV_IOMMU_VTD_H
#define VIV_DEV_IOMMU_VTD_H

#include "dev/device.h"
#include "dev/iommu/dma.h"

#define VTD_BASE   0xfed90000u
#define VTD_BYTES  4096
#define VTD_FAULTS 8 /* fault recording registers */

struct vtd_fault_record {
	uint64_t low, high; /* 10.4.14 */
};

/* Registers are named as in chapter 10. */
struct vtd {
	struct device dev;
	struct iommu iommu;
	struct dev_env env; /* its msi: to the local APICs */
	struct bus_range *range;
	uint64_t host_bits; /* host address width: bits of addresses above it are reserved */
	/* state */
	uint64_t rtaddr, root; /* as written, as taken over by SRTP */
	uint64_t irta, intr_table;
	uint64_t ccmd, iotlb, iqa;
	uint32_t gsts, fsts, fectl, fedata, feaddr, feuaddr;
	uint32_t iqh, iqt; /* byte offsets */
	uint32_t ics, iectl, iedata, ieaddr, ieuaddr;
	uint32_t next_fault; /* the fault recording register that is filled next */
	struct vtd_fault_record faults[VTD_FAULTS];
};

extern const struct device_class vtd_class;

/**
 * vtd_create() - at VTD_BASE.
 * @env: its msi is where remapped interrupts go
 * @host_bits: width of physical addresses, 32..52
 * Returns 0, -ENOMEM, -EEXIST with @err set.
 */
int vtd_create(struct vtd **out, const struct dev_env *env, unsigned host_bits, struct error *err);

#endif
