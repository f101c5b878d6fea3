/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtual machine generation ID: sixteen bytes that are others whenever the machine goes on from a point where it, or a copy,
 * has been before, so that a guest's kernel mixes new randomness into its generator.
 *
 * Source: Microsoft, "Virtual Machine Generation ID" (2012).  The guest finds the address by the ACPI device
 * VM_Gen_Counter (vm/acpi.c) and is told of a change by general-purpose event VMGENID_GPE.
 */
#ifndef VIV_DEV_CHIPSET_VMGENID_H
#define VIV_DEV_CHIPSET_VMGENID_H

#include "dev/chipset/acpi_pm.h"

#define VMGENID_BASE	   0xfed90000u
#define VMGENID_BASE_IOMMU 0xfed94000u /* where an IOMMU has the address above */
#define VMGENID_BYTES	   16
#define VMGENID_GPE	   5

static inline uint32_t vmgenid_base(bool has_iommu)
{
	return has_iommu ? VMGENID_BASE_IOMMU : VMGENID_BASE;
}

struct vmgenid {
	struct device dev;
	struct dev_env env;
	struct acpi_pm *pm;
	struct bus_range *range;
	uint8_t id[VMGENID_BYTES];
};

extern const struct device_class vmgenid_class;

/** vmgenid_create() - with ID @id; @pm is borrowed.  0 or -errno with @err set. */
int vmgenid_create(struct vmgenid **out, const struct dev_env *env, struct acpi_pm *pm,
		   const uint8_t id[VMGENID_BYTES], struct error *err);
/** vmgenid_set() - another ID, and the guest is told. */
void vmgenid_set(struct vmgenid *v, const uint8_t id[VMGENID_BYTES]);

#endif
