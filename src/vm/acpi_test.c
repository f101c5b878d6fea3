/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "vm/acpi.h"
#include "vm/aml.h"

#define BASE 0xe0000ULL

static const struct acpi_config config = { .cpus = 3,
					   .ioapic_addr = 0xfec00000,
					   .has_serial = { true, true } };

static uint64_t get(const struct bytes *b, uint64_t off, unsigned n)
{
	uint64_t v = 0;

	assert_true(off + n <= b->len);
	memcpy(&v, b->data + off, n);
	return v;
}

static void check_sum(const struct bytes *b, uint64_t off, uint64_t len)
{
	uint8_t sum = 0;

	assert_true(off + len <= b->len);
	for (uint64_t i = 0; i < len; i++)
		sum = (uint8_t)(sum + b->data[off + i]);
	assert_int_equal(sum, 0);
}

/* Offset in @b of the table with @sig that an SDT at @sdt lists with pointers of @size. */
static uint64_t find(const struct bytes *b, uint64_t sdt, unsigned size, const char *sig)
{
	uint64_t len = get(b, sdt + 4, 4);

	for (uint64_t at = 36; at < len; at += size) {
		uint64_t off = get(b, sdt + at, size) - BASE;

		assert_true(off + 36 <= b->len);
		check_sum(b, off, get(b, off + 4, 4));
		if (memcmp(b->data + off, sig, 4) == 0)
			return off;
	}
	fail_msg("no table %s", sig);
	return 0;
}

static void test_tables(void **state)
{
	struct acpi_tables t;
	struct bytes b = { 0 };
	struct error err;

	(void)state;
	assert_int_equal(acpi_build(&t, &config, &err), 0);
	assert_int_equal(acpi_place(&t, BASE, 0x20000, &b, &err), 0);
	assert_memory_equal(b.data, "RSD PTR ", 8);
	check_sum(&b, 0, 20);
	check_sum(&b, 0, 36);
	uint64_t rsdt = get(&b, 16, 4) - BASE, xsdt = get(&b, 24, 8) - BASE;

	assert_memory_equal(b.data + rsdt, "RSDT", 4);
	assert_memory_equal(b.data + xsdt, "XSDT", 4);
	check_sum(&b, rsdt, get(&b, rsdt + 4, 4));
	check_sum(&b, xsdt, get(&b, xsdt + 4, 4));
	assert_int_equal(find(&b, rsdt, 4, "FACP"), find(&b, xsdt, 8, "FACP"));

	uint64_t fadt = find(&b, xsdt, 8, "FACP");
	uint64_t dsdt = get(&b, fadt + 40, 4) - BASE;

	assert_int_equal(get(&b, fadt + 4, 4), 244);
	assert_int_equal(get(&b, fadt + 140, 8) - BASE, dsdt);
	assert_memory_equal(b.data + dsdt, "DSDT", 4);
	check_sum(&b, dsdt, get(&b, dsdt + 4, 4));
	uint64_t facs = get(&b, fadt + 36, 4);

	assert_int_equal(facs % 64, 0);
	assert_memory_equal(b.data + facs - BASE, "FACS", 4);
	assert_int_equal(get(&b, fadt + 46, 2), 9);
	assert_int_equal(get(&b, fadt + 76, 4), 0x608);
	assert_int_equal(get(&b, fadt + 116 + 4, 8), 0xcf9);
	assert_int_equal(get(&b, fadt + 128, 1), 6);

	/* MADT: three CPUs, one IOAPIC, IRQ 0 on pin 2, SCI level */
	uint64_t madt = find(&b, xsdt, 8, "APIC"), end = madt + get(&b, madt + 4, 4);
	unsigned cpus = 0, ioapics = 0, overrides = 0, nmis = 0;

	for (uint64_t at = madt + 44; at < end; at += get(&b, at + 1, 1)) {
		switch (get(&b, at, 1)) {
		case 0:
			assert_int_equal(get(&b, at + 3, 1), cpus++);
			assert_int_equal(get(&b, at + 4, 4), 1);
			break;
		case 1:
			assert_int_equal(get(&b, at + 4, 4), 0xfec00000);
			ioapics++;
			break;
		case 2:
			if (get(&b, at + 3, 1) == 0)
				assert_int_equal(get(&b, at + 4, 4), 2);
			else
				assert_int_equal(get(&b, at + 8, 2), 0xd);
			overrides++;
			break;
		case 4:
			nmis++;
			break;
		default:
			fail();
		}
		assert_true(get(&b, at + 1, 1) > 0);
	}
	assert_int_equal(cpus, 3);
	assert_int_equal(ioapics, 1);
	assert_int_equal(overrides, 2);
	assert_int_equal(nmis, 1);
	bytes_free(&b);
	assert_int_equal(acpi_place(&t, BASE, 512, &b, &err), -ENOSPC);
	acpi_free(&t);
}

/* What firmware does with the script gives the same bytes as acpi_place(). */
static void test_loader_script(void **state)
{
	struct acpi_tables t;
	struct bytes script = { 0 }, placed = { 0 };
	struct error err;
	uint64_t tables_at = BASE + 64;
	unsigned allocs = 0;

	(void)state;
	assert_int_equal(acpi_build(&t, &config, &err), 0);
	assert_int_equal(acpi_place(&t, BASE, 0x20000, &placed, &err), 0);
	assert_int_equal(acpi_loader_script(&t, &script), 0);
	assert_int_equal(script.len % 128, 0);
	uint8_t rsdp[ACPI_RSDP_BYTES];
	uint8_t *tables = malloc(t.tables.len);

	assert_non_null(tables);
	memcpy(rsdp, t.rsdp, sizeof(rsdp));
	memcpy(tables, t.tables.data, t.tables.len);
	for (size_t at = 0; at < script.len; at += 128) {
		uint32_t cmd = (uint32_t)get(&script, at, 4);
		const char *file = (const char *)script.data + at + 4;
		bool is_rsdp = strcmp(file, ACPI_FILE_RSDP) == 0;
		uint8_t *p = is_rsdp ? rsdp : tables;
		size_t size = is_rsdp ? sizeof(rsdp) : t.tables.len;

		assert_true(is_rsdp || strcmp(file, ACPI_FILE_TABLES) == 0);
		if (cmd == 1) {
			allocs++;
		} else if (cmd == 2) {
			uint32_t off = (uint32_t)get(&script, at + 116, 4);
			uint8_t n = (uint8_t)get(&script, at + 120, 1);
			uint64_t v = 0;

			assert_string_equal((const char *)script.data + at + 60, ACPI_FILE_TABLES);
			assert_true(off + n <= size);
			memcpy(&v, p + off, n);
			v += tables_at;
			memcpy(p + off, &v, n);
		} else {
			uint32_t off = (uint32_t)get(&script, at + 60, 4);
			uint32_t start = (uint32_t)get(&script, at + 64, 4);
			uint32_t len = (uint32_t)get(&script, at + 68, 4);
			uint8_t sum = 0;

			assert_int_equal(cmd, 3);
			assert_true(off < size && start + len <= size);
			for (uint32_t i = 0; i < len; i++)
				sum = (uint8_t)(sum + p[start + i]);
			p[off] = (uint8_t)(p[off] - sum);
		}
	}
	assert_int_equal(allocs, 2);
	assert_memory_equal(placed.data, rsdp, sizeof(rsdp));
	assert_memory_equal(placed.data + 64, tables, t.tables.len);
	free(tables);
	bytes_free(&script);
	bytes_free(&placed);
	acpi_free(&t);
}

/* The remapping unit, for all of PCI and the IOAPIC that the MADT names. */
static void test_dmar(void **state)
{
	struct acpi_tables t;
	struct acpi_config cfg = config;
	struct bytes b = { 0 };
	struct error err;

	(void)state;
	cfg.has_iommu = true;
	cfg.phys_bits = 42;
	assert_int_equal(acpi_build(&t, &cfg, &err), 0);
	assert_int_equal(acpi_place(&t, BASE, 0x20000, &b, &err), 0);
	uint64_t dmar = find(&b, get(&b, 24, 8) - BASE, 8, "DMAR");

	assert_int_equal(dmar, find(&b, get(&b, 16, 4) - BASE, 4, "DMAR"));
	assert_int_equal(get(&b, dmar + 4, 4), 48 + 24);
	assert_int_equal(get(&b, dmar + 36, 2), 0x0129); /* width 42, interrupt remapping */
	assert_int_equal(get(&b, dmar + 48, 8), 0x0000000100180000);
	assert_int_equal(get(&b, dmar + 56, 8), 0xfed90000);
	assert_int_equal(get(&b, dmar + 64, 8), 0x071ff00000000803);
	bytes_free(&b);
	acpi_free(&t);
}

static void test_many_cpus(void **state)
{
	struct acpi_tables t;
	struct acpi_config cfg = config;
	struct bytes b = { 0 };
	struct error err;

	(void)state;
	cfg.cpus = 300; /* the last ones have x2APIC entries */
	assert_int_equal(acpi_build(&t, &cfg, &err), 0);
	assert_int_equal(acpi_place(&t, BASE, 0x20000, &b, &err), 0);
	uint64_t madt = find(&b, get(&b, 24, 8) - BASE, 8, "APIC"), end = madt + get(&b, madt + 4, 4);
	unsigned n = 0;

	for (uint64_t at = madt + 44; at < end; at += get(&b, at + 1, 1))
		n += get(&b, at, 1) == 9;
	assert_int_equal(n, 45);
	bytes_free(&b);
	acpi_free(&t);
}

static void test_aml(void **state)
{
	struct bytes b = { 0 };

	(void)state;
	/* EISAID ("PNP0A03") as in every disassembly */
	aml_eisa_id(&b, "PNP0A03");
	assert_memory_equal(b.data, "\x0c\x41\xd0\x0a\x03", 5);
	b.len = 0;
	aml_name_string(&b, "\\_SB.PCI0");
	assert_memory_equal(b.data, "\\\x2e_SB_PCI0", 10);
	b.len = 0;
	aml_name_string(&b, "A.B.C");
	assert_memory_equal(b.data,
			    "\x2f\x03"
			    "A___B___C___",
			    14);

	/* PkgLength at its borders: total of 63, 64, 4095, 4096, 1048575, 1048576 bytes behind the opcode */
	static const size_t contents[] = { 62, 63, 4093, 4094, 1048572, 1048573 };
	static const size_t lengths[] = { 1, 2, 2, 3, 3, 4 };

	for (unsigned i = 0; i < ARRAY_SIZE(contents); i++) {
		b.len = 0;
		size_t m = aml_begin_if(&b);

		for (size_t k = 0; k < contents[i]; k++)
			bytes_put_u8(&b, 0xa3);
		aml_end(&b, m);
		assert_int_equal(b.len, 1 + lengths[i] + contents[i]);
		assert_int_equal(b.data[1] >> 6, lengths[i] - 1);
		uint64_t total = lengths[i] == 1 ? b.data[1] : b.data[1] & 0xfu;

		for (size_t k = 1; k < lengths[i]; k++)
			total |= (uint64_t)b.data[1 + k] << (4 + 8 * (k - 1));
		assert_int_equal(total, lengths[i] + contents[i]);
		assert_int_equal(b.data[1 + lengths[i]], 0xa3);
	}
	bytes_free(&b);
}

/* The reference disassembler and compiler agree with every table. */
static void test_iasl(void **state)
{
	static const char *const sigs[] = { "FACP", "APIC", "DMAR" };
	struct acpi_config cfg = config;
	struct acpi_tables t;
	struct bytes b = { 0 };
	struct error err;
	char dir[] = "/tmp/viv-acpi-XXXXXX", cmd[512], line[256];
	unsigned compiled = 0;

	(void)state;
	if (system("command -v iasl >/dev/null 2>&1") != 0) {
		print_message("skipped: disassembly of the tables (iasl of acpica-tools is not "
			      "installed)\n");
		return;
	}
	assert_non_null(mkdtemp(dir));
	cfg.has_iommu = true;
	cfg.phys_bits = 42;
	assert_int_equal(acpi_build(&t, &cfg, &err), 0);
	assert_int_equal(acpi_place(&t, BASE, 0x20000, &b, &err), 0);
	uint64_t xsdt = get(&b, 24, 8) - BASE;

	for (unsigned i = 0; i <= ARRAY_SIZE(sigs); i++) {
		uint64_t off = i == ARRAY_SIZE(sigs) ? get(&b, find(&b, xsdt, 8, "FACP") + 40, 4) - BASE
						     : find(&b, xsdt, 8, sigs[i]);
		FILE *f;

		snprintf(cmd, sizeof(cmd), "%s/t%u.aml", dir, i);
		f = fopen(cmd, "w");
		assert_non_null(f);
		assert_int_equal(fwrite(b.data + off, 1, get(&b, off + 4, 4), f), get(&b, off + 4, 4));
		fclose(f);
		/* Disassemble, then compile the result: no error, no warning. */
		snprintf(cmd, sizeof(cmd),
			 "cd %s && iasl -d t%u.aml >d%u.log 2>&1 && iasl -p out t%u.dsl 2>&1", dir,
			 i, i, i);
		f = popen(cmd, "r");
		assert_non_null(f);
		while (fgets(line, sizeof(line), f)) {
			if (strstr(line, "Compilation successful. 0 Errors, 0 Warnings"))
				compiled++;
			if (strstr(line, "Error ") || strstr(line, "Warning "))
				print_message("%s", line);
		}
		assert_int_equal(pclose(f), 0);
	}
	assert_int_equal(compiled, ARRAY_SIZE(sigs) + 1);
	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	assert_int_equal(system(cmd), 0);
	bytes_free(&b);
	acpi_free(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_aml),	      cmocka_unit_test(test_tables),
		cmocka_unit_test(test_loader_script), cmocka_unit_test(test_dmar),
		cmocka_unit_test(test_many_cpus),     cmocka_unit_test(test_iasl),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
