/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI tables of this PC (ACPI 6.4): RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT, and DMAR where there is an IOMMU.
 *
 * Built once with addresses relative to the start of the blob.  A direct boot places them with
 * acpi_place(); firmware gets them by fw_cfg with a loader script (acpi_loader_script) that tells it
 * where pointers and checksums are.
 */
#ifndef VIV_VM_ACPI_H
#define VIV_VM_ACPI_H

#include "base/bytes.h"
#include "base/error.h"

#define ACPI_RSDP_BYTES	  36
#define ACPI_MAX_POINTERS 24
#define ACPI_MAX_SUMS	  16

struct acpi_config {
	unsigned cpus; /* APIC ids 0..cpus-1 */
	uint32_t ioapic_addr;
	bool has_serial[4]; /* COM1..COM4 */
	bool has_iommu;
	unsigned phys_bits; /* with an IOMMU: width of physical addresses */
};

struct acpi_tables {
	struct bytes tables;
	uint8_t rsdp[ACPI_RSDP_BYTES];
	unsigned npointers, nsums;
	struct { /* a pointer into @tables, stored as offset */
		bool in_rsdp;
		uint32_t offset;
		uint8_t size; /* 4 or 8 */
	} pointers[ACPI_MAX_POINTERS];
	struct { /* a checksum byte */
		bool in_rsdp;
		uint32_t offset, start, len;
	} sums[ACPI_MAX_SUMS];
};

/** acpi_build() - 0 or -ENOMEM with @err set; acpi_free() in either case. */
int acpi_build(struct acpi_tables *t, const struct acpi_config *cfg, struct error *err);
void acpi_free(struct acpi_tables *t);

/**
 * acpi_place() - RSDP, padding, tables, with all addresses for @base (64-byte aligned).
 * @out: receives the bytes; 0, or -ENOSPC when they exceed @max, -ENOMEM.
 */
int acpi_place(const struct acpi_tables *t, uint64_t base, uint64_t max, struct bytes *out,
	       struct error *err);

/**
 * acpi_loader_script() - the "etc/table-loader" file for firmware: allocate "etc/acpi/tables" and
 * "etc/acpi/rsdp", add pointers, then checksums (QEMU's linker/loader interface, as implemented by
 * SeaBIOS src/fw/romfile_loader.h and OVMF).
 */
int acpi_loader_script(const struct acpi_tables *t, struct bytes *out);
#define ACPI_FILE_TABLES "etc/acpi/tables"
#define ACPI_FILE_RSDP	 "etc/acpi/rsdp"
#define ACPI_FILE_LOADER "etc/table-loader"

#endif
