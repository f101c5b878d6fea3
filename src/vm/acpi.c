/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "dev/chipset/acpi_pm.h"
#include "dev/chipset/vmgenid.h"
#include "dev/chipset/gsi.h"
#include "dev/chipset/ioapic.h"
#include "dev/iommu/vtd.h"
#include "dev/pci/pci.h"
#include "dev/pci/pci_host.h"
#include "vm/acpi.h"
#include "vm/aml.h"

#define RSDP_OFFSET_RSDT 16
#define RSDP_OFFSET_XSDT 24

/* ---- parts of every table ---- */

static void add_pointer(struct acpi_tables *t, bool in_rsdp, uint32_t offset, uint8_t size)
{
	assert(t->npointers < ACPI_MAX_POINTERS);
	t->pointers[t->npointers].in_rsdp = in_rsdp;
	t->pointers[t->npointers].offset = offset;
	t->pointers[t->npointers++].size = size;
}

static void add_sum(struct acpi_tables *t, bool in_rsdp, uint32_t offset, uint32_t start, uint32_t len)
{
	assert(t->nsums < ACPI_MAX_SUMS);
	t->sums[t->nsums].in_rsdp = in_rsdp;
	t->sums[t->nsums].offset = offset;
	t->sums[t->nsums].start = start;
	t->sums[t->nsums++].len = len;
}

static uint32_t table_align(struct acpi_tables *t, unsigned align)
{
	while (t->tables.len % align && !t->tables.is_failed)
		bytes_put_u8(&t->tables, 0);
	return (uint32_t)t->tables.len;
}

/* 5.2.6 System Description Table Header; length and checksum come with table_end(). */
static uint32_t table_begin(struct acpi_tables *t, const char sig[4], uint8_t revision)
{
	struct bytes *b = &t->tables;
	uint32_t at = table_align(t, 16);

	bytes_put(b, sig, 4);
	bytes_put_u32(b, 0);
	bytes_put_u8(b, revision);
	bytes_put_u8(b, 0);
	bytes_put(b, "VIVRM ", 6);
	bytes_put(b, "VIVPC   ", 8);
	bytes_put_u32(b, 1);
	bytes_put(b, "VIV ", 4);
	bytes_put_u32(b, 1);
	return at;
}

static void table_end(struct acpi_tables *t, uint32_t at)
{
	uint32_t len = (uint32_t)t->tables.len - at;

	if (!t->tables.is_failed)
		memcpy(t->tables.data + at + 4, &len, 4);
	add_sum(t, false, at + 9, at, len);
}

/* ---- DSDT ---- */

static void put_isa_device(struct bytes *b, const char *name, const char *hid, int uid, struct bytes *res)
{
	size_t dev = aml_begin_device(b, name);

	aml_name(b, "_HID");
	aml_eisa_id(b, hid);
	if (uid >= 0)
		aml_name_int(b, "_UID", (uint64_t)uid);
	aml_name_int(b, "_STA", 0xf);
	aml_name_resources(b, "_CRS", res);
	aml_end(b, dev);
}

static void put_isa_devices(struct bytes *b, const struct acpi_config *cfg)
{
	static const struct {
		uint16_t port;
		uint8_t irq;
	} com[4] = { { 0x3f8, 4 }, { 0x2f8, 3 }, { 0x3e8, 4 }, { 0x2e8, 3 } };
	struct bytes r = { 0 };

	aml_res_io(&r, 0x70, 2);
	aml_res_irq(&r, 8);
	put_isa_device(b, "RTC", "PNP0B00", -1, &r);

	aml_res_io(&r, 0x60, 1);
	aml_res_io(&r, 0x64, 1);
	aml_res_irq(&r, 1);
	put_isa_device(b, "KBD", "PNP0303", -1, &r);

	aml_res_irq(&r, 12);
	put_isa_device(b, "MOU", "PNP0F13", -1, &r);

	for (int i = 0; i < 4; i++) {
		char name[5] = "COM1";

		if (!cfg->has_serial[i])
			continue;
		name[3] = (char)('1' + i);
		aml_res_io(&r, com[i].port, 8);
		aml_res_irq(&r, com[i].irq);
		put_isa_device(b, name, "PNP0501", i + 1, &r);
	}
}

/* One entry a slot and pin: { slot << 16 | ffff, pin, 0, GSI }; GSIs of @is_apic or of the PIC pair. */
static void put_prt(struct bytes *b, bool is_apic)
{
	size_t pkg = aml_begin_package(b, PCI_SLOTS * 4 - 4);

	for (unsigned slot = 1; slot < PCI_SLOTS; slot++) {
		for (unsigned pin = 0; pin < 4; pin++) {
			unsigned gsi = GSI_PCI_BASE + pci_intx_index(slot, pin);
			size_t row = aml_begin_package(b, 4);

			aml_int(b, slot << 16 | 0xffff);
			aml_int(b, pin);
			aml_int(b, 0);
			aml_int(b, is_apic ? gsi : gsi_pic_input(gsi));
			aml_end(b, row);
		}
	}
	aml_end(b, pkg);
}

static void put_pci_root(struct bytes *b, const struct acpi_config *cfg)
{
	struct bytes r = { 0 };
	size_t dev = aml_begin_device(b, "PCI0");

	aml_name(b, "_HID");
	aml_eisa_id(b, "PNP0A03");
	aml_name_int(b, "_UID", 0);
	aml_name_int(b, "_BBN", 0);

	aml_res_word(&r, AML_BUS, 0, 0);
	aml_res_io(&r, 0xcf8, 8);
	aml_res_word(&r, AML_IO, 0, 0xcf7);
	aml_res_word(&r, AML_IO, 0xd00, 0xffff);
	aml_res_dword(&r, AML_MEMORY, PCI_MMIO_BASE, PCI_MMIO_END);
	aml_name_resources(b, "_CRS", &r);

	aml_name(b, "PRTA");
	put_prt(b, true);
	aml_name(b, "PRTP");
	put_prt(b, false);
	size_t method = aml_begin_method(b, "_PRT", 0);
	size_t cond = aml_begin_if(b);

	aml_name_string(b, "\\PICF");
	aml_return(b);
	aml_name_string(b, "PRTA");
	aml_end(b, cond);
	aml_return(b);
	aml_name_string(b, "PRTP");
	aml_end(b, method);

	put_isa_devices(b, cfg);
	aml_end(b, dev);
}

static void put_cpus(struct bytes *b, const struct acpi_config *cfg)
{
	for (unsigned i = 0; i < cfg->cpus; i++) {
		char name[8];
		size_t dev;

		snprintf(name, sizeof(name), "C%03X", i & 0xfff);
		dev = aml_begin_device(b, name);
		aml_name(b, "_HID");
		aml_string(b, "ACPI0007");
		aml_name_int(b, "_UID", i);
		aml_name_int(b, "_STA", 0xf);
		aml_end(b, dev);
	}
}

/* Microsoft, "Virtual Machine Generation ID": found by _CID or _DDN; ADDR is its address, low and high half. */
static void put_generation_id(struct bytes *b, const struct acpi_config *cfg)
{
	size_t dev = aml_begin_device(b, "VGEN");

	aml_name(b, "_HID");
	aml_string(b, "VIVA0001");
	aml_name(b, "_CID");
	aml_string(b, "VM_Gen_Counter");
	aml_name(b, "_DDN");
	aml_string(b, "VM_Gen_Counter");
	aml_name(b, "ADDR");
	size_t pkg = aml_begin_package(b, 2);

	aml_int(b, vmgenid_base(cfg->has_iommu));
	aml_int(b, 0);
	aml_end(b, pkg);
	aml_end(b, dev);
}

static uint32_t put_dsdt(struct acpi_tables *t, const struct acpi_config *cfg)
{
	struct bytes *b = &t->tables;
	uint32_t at = table_begin(t, "DSDT", 2);

	/* 5.8.1: the OS says which interrupt controllers it uses: 0 PIC, 1 APIC. */
	aml_name_int(b, "\\PICF", 0);
	size_t m = aml_begin_method(b, "\\_PIC", 1);

	aml_store_arg0(b, "PICF");
	aml_end(b, m);

	size_t sb = aml_begin_scope(b, "\\_SB");

	put_pci_root(b, cfg);
	put_cpus(b, cfg);
	put_generation_id(b, cfg);
	aml_end(b, sb);

	/* 5.6.4.1: _Exx for an edge-triggered event */
	size_t gpe = aml_begin_scope(b, "\\_GPE");
	size_t event = aml_begin_method(b, "_E05", 0);

	_Static_assert(VMGENID_GPE == 5, "the method's name");
	aml_notify(b, "\\_SB.VGEN", 0x80);
	aml_end(b, event);
	aml_end(b, gpe);

	aml_name(b, "\\_S5");
	size_t pkg = aml_begin_package(b, 4);

	aml_int(b, ACPI_S5_SLP_TYP);
	aml_int(b, ACPI_S5_SLP_TYP);
	aml_int(b, 0);
	aml_int(b, 0);
	aml_end(b, pkg);
	table_end(t, at);
	return at;
}

/* ---- fixed tables ---- */

/* 5.2.3.2 Generic Address Structure in I/O space. */
static void put_gas_io(struct bytes *b, uint8_t bits, uint8_t access, uint64_t port)
{
	bytes_put_u8(b, port ? 1 : 0);
	bytes_put_u8(b, bits);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, access);
	bytes_put_u64(b, port);
}

static uint32_t put_facs(struct acpi_tables *t)
{
	uint32_t at = table_align(t, 64);
	uint8_t facs[64] = "FACS";

	facs[4] = sizeof(facs);
	facs[32] = 1; /* version */
	bytes_put(&t->tables, facs, sizeof(facs));
	return at;
}

/* 5.2.9, as revision 3 (ACPI 2.0): what every system of the last 20 years reads. */
static uint32_t put_fadt(struct acpi_tables *t, uint32_t facs, uint32_t dsdt)
{
	enum { LEGACY_DEVICES = 1, HAS_8042 = 2, NO_VGA = 4 };
	enum {
		WBINVD = 1 << 0,
		PROC_C1 = 1 << 2,
		SLP_BUTTON = 1 << 5,
		FIX_RTC = 1 << 6,
		TMR_VAL_EXT = 1 << 8,
		RESET_REG_SUP = 1 << 10
	};
	struct bytes *b = &t->tables;
	uint32_t at = table_begin(t, "FACP", 3);

	add_pointer(t, false, (uint32_t)b->len, 4);
	bytes_put_u32(b, facs);
	add_pointer(t, false, (uint32_t)b->len, 4);
	bytes_put_u32(b, dsdt);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0); /* preferred profile: unspecified */
	bytes_put_u16(b, GSI_SCI);
	bytes_put_u32(b, 0); /* SMI_CMD: ACPI mode is always on */
	bytes_put_u32(b, 0); /* ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT */
	bytes_put_u32(b, ACPI_PM1A_EVT);
	bytes_put_u32(b, 0);
	bytes_put_u32(b, ACPI_PM1A_CNT);
	bytes_put_u32(b, 0);
	bytes_put_u32(b, 0);
	bytes_put_u32(b, ACPI_PM_TMR);
	bytes_put_u32(b, ACPI_GPE0);
	bytes_put_u32(b, 0);
	bytes_put_u8(b, 4); /* PM1_EVT_LEN */
	bytes_put_u8(b, 2); /* PM1_CNT_LEN */
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 4); /* PM_TMR_LEN */
	bytes_put_u8(b, 4); /* GPE0_BLK_LEN */
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0);
	bytes_put_u16(b, 0xfff); /* no C2 */
	bytes_put_u16(b, 0xfff); /* no C3 */
	bytes_put_u32(b, 0);	 /* FLUSH_SIZE, FLUSH_STRIDE */
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0x32); /* CENTURY */
	bytes_put_u16(b, LEGACY_DEVICES | HAS_8042 | NO_VGA);
	bytes_put_u8(b, 0);
	bytes_put_u32(b, WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | TMR_VAL_EXT | RESET_REG_SUP);
	put_gas_io(b, 8, 1, PCI_RESET_PORT);
	bytes_put_u8(b, PCI_RESET_VALUE);
	bytes_put_u16(b, 0);
	bytes_put_u8(b, 0);
	bytes_put_u64(b, 0); /* X_FIRMWARE_CTRL: the 32-bit one is used */
	add_pointer(t, false, (uint32_t)b->len, 8);
	bytes_put_u64(b, dsdt);
	put_gas_io(b, 32, 2, ACPI_PM1A_EVT);
	put_gas_io(b, 0, 0, 0);
	put_gas_io(b, 16, 2, ACPI_PM1A_CNT);
	put_gas_io(b, 0, 0, 0);
	put_gas_io(b, 0, 0, 0);
	put_gas_io(b, 32, 3, ACPI_PM_TMR);
	put_gas_io(b, 32, 1, ACPI_GPE0);
	put_gas_io(b, 0, 0, 0);
	table_end(t, at);
	return at;
}

static void put_override(struct bytes *b, uint8_t irq, uint32_t gsi, uint16_t flags)
{
	bytes_put_u8(b, 2);
	bytes_put_u8(b, 10);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, irq);
	bytes_put_u32(b, gsi);
	bytes_put_u16(b, flags);
}

/* 5.2.12 */
static uint32_t put_madt(struct acpi_tables *t, const struct acpi_config *cfg)
{
	struct bytes *b = &t->tables;
	uint32_t at = table_begin(t, "APIC", 3);

	bytes_put_u32(b, 0xfee00000);
	bytes_put_u32(b, 1); /* PCAT_COMPAT: there is a PIC pair */
	for (unsigned i = 0; i < cfg->cpus; i++) {
		if (i < 255) {
			bytes_put_u8(b, 0);
			bytes_put_u8(b, 8);
			bytes_put_u8(b, (uint8_t)i);
			bytes_put_u8(b, (uint8_t)i);
			bytes_put_u32(b, 1);
		} else { /* 5.2.12.12 local x2APIC */
			bytes_put_u8(b, 9);
			bytes_put_u8(b, 16);
			bytes_put_u16(b, 0);
			bytes_put_u32(b, i);
			bytes_put_u32(b, 1);
			bytes_put_u32(b, i);
		}
	}
	bytes_put_u8(b, 1); /* IOAPIC */
	bytes_put_u8(b, 12);
	bytes_put_u8(b, 0);
	bytes_put_u8(b, 0);
	bytes_put_u32(b, cfg->ioapic_addr);
	bytes_put_u32(b, 0);
	put_override(b, 0, 2, 0);
	put_override(b, GSI_SCI, GSI_SCI, 0xd); /* active high, level */
	bytes_put_u8(b, 4);			/* NMI: LINT1 of all CPUs */
	bytes_put_u8(b, 6);
	bytes_put_u8(b, 0xff);
	bytes_put_u16(b, 0);
	bytes_put_u8(b, 1);
	table_end(t, at);
	return at;
}

/* VT-d specification, rev. 2.3, 8.1, 8.3: one unit for all of PCI and the IOAPIC. */
static uint32_t put_dmar(struct acpi_tables *t, const struct acpi_config *cfg)
{
	enum { INTR_REMAP = 1, INCLUDE_PCI_ALL = 1, SCOPE_IOAPIC = 3 };
	static const uint8_t reserved[10];
	struct bytes *b = &t->tables;
	uint32_t at = table_begin(t, "DMAR", 1);

	bytes_put_u8(b, (uint8_t)(cfg->phys_bits - 1));
	bytes_put_u8(b, INTR_REMAP);
	bytes_put(b, reserved, sizeof(reserved));
	bytes_put_u16(b, 0); /* DRHD */
	bytes_put_u16(b, 16 + 8);
	bytes_put_u8(b, INCLUDE_PCI_ALL);
	bytes_put_u8(b, 0);
	bytes_put_u16(b, 0); /* segment */
	bytes_put_u64(b, VTD_BASE);
	bytes_put_u8(b, SCOPE_IOAPIC);
	bytes_put_u8(b, 8);
	bytes_put_u16(b, 0);
	bytes_put_u8(b, 0); /* its id in the MADT */
	bytes_put_u8(b, IOAPIC_SOURCE_ID >> 8);
	bytes_put_u8(b, IOAPIC_SOURCE_ID >> 3 & 31);
	bytes_put_u8(b, IOAPIC_SOURCE_ID & 7);
	table_end(t, at);
	return at;
}

static uint32_t put_sdt(struct acpi_tables *t, const char sig[4], uint8_t size,
			const uint32_t *list, unsigned n)
{
	struct bytes *b = &t->tables;
	uint32_t at = table_begin(t, sig, 1);

	for (unsigned i = 0; i < n; i++) {
		add_pointer(t, false, (uint32_t)b->len, size);
		if (size == 4)
			bytes_put_u32(b, list[i]);
		else
			bytes_put_u64(b, list[i]);
	}
	table_end(t, at);
	return at;
}

/* 5.2.5.3 */
static void make_rsdp(struct acpi_tables *t, uint32_t rsdt, uint64_t xsdt)
{
	uint32_t len = ACPI_RSDP_BYTES;

	memset(t->rsdp, 0, sizeof(t->rsdp));
	memcpy(t->rsdp, "RSD PTR ", 8);
	memcpy(t->rsdp + 9, "VIVRM ", 6);
	t->rsdp[15] = 2;
	memcpy(t->rsdp + RSDP_OFFSET_RSDT, &rsdt, 4);
	memcpy(t->rsdp + 20, &len, 4);
	memcpy(t->rsdp + RSDP_OFFSET_XSDT, &xsdt, 8);
	add_pointer(t, true, RSDP_OFFSET_RSDT, 4);
	add_pointer(t, true, RSDP_OFFSET_XSDT, 8);
	add_sum(t, true, 8, 0, 20);
	add_sum(t, true, 32, 0, ACPI_RSDP_BYTES);
}

int acpi_build(struct acpi_tables *t, const struct acpi_config *cfg, struct error *err)
{
	uint32_t facs, dsdt, list[3];
	unsigned n = 0;

	*t = (struct acpi_tables){ 0 };
	facs = put_facs(t);
	dsdt = put_dsdt(t, cfg);
	list[n++] = put_fadt(t, facs, dsdt);
	list[n++] = put_madt(t, cfg);
	if (cfg->has_iommu)
		list[n++] = put_dmar(t, cfg);
	uint32_t rsdt = put_sdt(t, "RSDT", 4, list, n);
	uint32_t xsdt = put_sdt(t, "XSDT", 8, list, n);

	make_rsdp(t, rsdt, xsdt);
	if (t->tables.is_failed)
		return error_set(err, -ENOMEM, "no memory for the ACPI tables");
	return 0;
}

void acpi_free(struct acpi_tables *t)
{
	bytes_free(&t->tables);
}

int acpi_place(const struct acpi_tables *t, uint64_t base, uint64_t max, struct bytes *out,
	       struct error *err)
{
	const uint32_t head = 64; /* RSDP, then the tables where FACS keeps its alignment */
	struct bytes b = { 0 };

	if (head + t->tables.len > max)
		return error_set(err, -ENOSPC, "the ACPI tables for this many CPUs need %zu bytes, %llu are there",
				 head + t->tables.len, (unsigned long long)max);
	bytes_put(&b, t->rsdp, ACPI_RSDP_BYTES);
	while (b.len < head && !b.is_failed)
		bytes_put_u8(&b, 0);
	bytes_put(&b, t->tables.data, t->tables.len);
	if (b.is_failed) {
		bytes_free(&b);
		return error_set(err, -ENOMEM, "no memory for the ACPI tables");
	}
	for (unsigned i = 0; i < t->npointers; i++) {
		uint8_t *p = b.data + (t->pointers[i].in_rsdp ? 0 : head) + t->pointers[i].offset;
		uint64_t v = 0;

		memcpy(&v, p, t->pointers[i].size);
		v += base + head;
		memcpy(p, &v, t->pointers[i].size);
	}
	for (unsigned i = 0; i < t->nsums; i++) {
		uint8_t *p = b.data + (t->sums[i].in_rsdp ? 0 : head);
		uint8_t sum = 0;

		for (uint32_t k = 0; k < t->sums[i].len; k++)
			sum = (uint8_t)(sum + p[t->sums[i].start + k]);
		p[t->sums[i].offset] = (uint8_t)(p[t->sums[i].offset] - sum);
	}
	bytes_free(out);
	*out = b;
	return 0;
}

/* ---- linker/loader script: commands of 128 bytes ---- */

static void put_file_name(struct bytes *b, const char *name)
{
	char field[56] = { 0 };

	memcpy(field, name, MIN(strlen(name), sizeof(field) - 1));
	bytes_put(b, field, sizeof(field));
}

static void end_command(struct bytes *b, size_t start)
{
	static const uint8_t zeros[128];

	bytes_put(b, zeros, start + 128 - b->len);
}

static void put_allocate(struct bytes *b, const char *file, uint32_t align, uint8_t zone)
{
	size_t start = b->len;

	bytes_put_u32(b, 1);
	put_file_name(b, file);
	bytes_put_u32(b, align);
	bytes_put_u8(b, zone); /* 1: high memory, 2: F segment */
	end_command(b, start);
}

int acpi_loader_script(const struct acpi_tables *t, struct bytes *out)
{
	put_allocate(out, ACPI_FILE_TABLES, 64, 1);
	put_allocate(out, ACPI_FILE_RSDP, 16, 2);
	for (unsigned i = 0; i < t->npointers && !out->is_failed; i++) {
		size_t start = out->len;

		bytes_put_u32(out, 2);
		put_file_name(out, t->pointers[i].in_rsdp ? ACPI_FILE_RSDP : ACPI_FILE_TABLES);
		put_file_name(out, ACPI_FILE_TABLES);
		bytes_put_u32(out, t->pointers[i].offset);
		bytes_put_u8(out, t->pointers[i].size);
		end_command(out, start);
	}
	for (unsigned i = 0; i < t->nsums && !out->is_failed; i++) {
		size_t start = out->len;

		bytes_put_u32(out, 3);
		put_file_name(out, t->sums[i].in_rsdp ? ACPI_FILE_RSDP : ACPI_FILE_TABLES);
		bytes_put_u32(out, t->sums[i].offset);
		bytes_put_u32(out, t->sums[i].start);
		bytes_put_u32(out, t->sums[i].len);
		end_command(out, start);
	}
	return out->is_failed ? -ENOMEM : 0;
}
