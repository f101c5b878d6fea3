/* SPDX-License-Identifier: Apache-2.0 */
#include <elf.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "vm/boot.h"

#define MEM (64 * MIB)

struct world {
	struct guest_ram ram;
	struct x86_state s;
	struct boot_blob kernel, initrd;
	struct boot_request rq;
	struct error err;
};

static int setup_world(void **state)
{
	struct world *w = aligned_alloc(64, ALIGN_UP(sizeof(*w), (size_t)64));

	assert_non_null(w);
	memset(w, 0, sizeof(*w));
	assert_int_equal(ram_create(&w->ram, MEM, 0, &w->err), 0);
	w->kernel = (struct boot_blob){ .name = "dir/kernel" };
	w->initrd = (struct boot_blob){ .name = "dir/initrd" };
	w->rq = (struct boot_request){
		.ram = &w->ram, .kernel = &w->kernel, .cmdline = "a=b quiet", .rsdp = BOOT_ACPI_BASE
	};
	*state = w;
	return 0;
}

static int teardown_world(void **state)
{
	struct world *w = *state;

	boot_blob_free(&w->kernel);
	boot_blob_free(&w->initrd);
	ram_destroy(&w->ram);
	free(w);
	return 0;
}

static void make_blob(struct boot_blob *b, size_t len)
{
	boot_blob_free(b);
	b->data = calloc(1, len);
	b->len = len;
	assert_non_null(b->data);
}

static void put(struct boot_blob *b, size_t off, uint64_t v, size_t n)
{
	assert_true(off + n <= b->len);
	memcpy(b->data + off, &v, n);
}

static uint64_t guest(struct world *w, gpa_t gpa, size_t n)
{
	uint64_t v = 0;

	assert_int_equal(ram_read(&w->ram, gpa, &v, n), 0);
	return v;
}

static const char *guest_str(struct world *w, gpa_t gpa)
{
	char *p = ram_ptr(&w->ram, gpa, 1);

	assert_non_null(p);
	return p;
}

/* ---- bzImage ---- */

#define BZ_SETUP  4
#define BZ_KERNEL 0x9000

static void make_bzimage(struct boot_blob *b, unsigned version, bool is_64)
{
	make_blob(b, (BZ_SETUP + 1) * 512 + BZ_KERNEL);
	put(b, 0x1f1, BZ_SETUP, 1);
	put(b, 0x1f4, BZ_KERNEL / 16, 4);
	put(b, 0x1fe, 0xaa55, 2);
	put(b, 0x200, 0x66eb, 2);
	memcpy(b->data + 0x202, "HdrS", 4);
	put(b, 0x206, version, 2);
	put(b, 0x211, 1, 1);
	put(b, 0x214, 0x100000, 4);
	put(b, 0x22c, 0x1ffffff, 4);
	put(b, 0x230, 0x200000, 4);
	put(b, 0x234, 1, 1);
	put(b, 0x236, is_64 ? 1 : 0, 2);
	put(b, 0x238, 2047, 4);
	put(b, 0x258, 0x1000000, 8);
	put(b, 0x260, 0x100000, 4);
	for (size_t i = 0; i < BZ_KERNEL; i++)
		b->data[(BZ_SETUP + 1) * 512 + i] = (uint8_t)(i * 7 + 1);
}

static void test_bzimage_64(void **state)
{
	struct world *w = *state;

	make_bzimage(&w->kernel, 0x20f, true);
	make_blob(&w->initrd, 5000);
	memset(w->initrd.data, 0x5a, 5000);
	w->rq.initrd = &w->initrd;
	assert_int_equal(boot_detect(&w->kernel), BOOT_BZIMAGE);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);

	/* kernel at its preferred address, entered 200H bytes in, in long mode */
	assert_int_equal(w->s.rip, 0x1000200);
	assert_memory_equal(ram_ptr(&w->ram, 0x1000000, BZ_KERNEL), w->kernel.data + 2560, BZ_KERNEL);
	assert_int_equal(w->s.efer, X86_EFER_LME | X86_EFER_LMA);
	assert_int_equal(w->s.cr0 & (X86_CR0_PE | X86_CR0_PG), X86_CR0_PE | X86_CR0_PG);
	assert_true(w->s.cr4 & X86_CR4_PAE);
	assert_int_equal(w->s.seg[1].selector, 0x10);
	assert_int_equal(w->s.seg[1].attr & (SEG_ATTR_L | SEG_ATTR_DB), SEG_ATTR_L);
	assert_int_equal(w->s.seg[3].selector, 0x18);
	assert_int_equal(w->s.rflags, 2);
	/* what the descriptor cache holds is what the GDT says */
	assert_int_equal(guest(w, w->s.gdtr.base + 0x10, 8), 0x00af9b000000ffffULL);

	/* identity map of 4G */
	for (uint64_t va = 0; va < 4 * GIB; va += 0x3ff7001) {
		uint64_t pml4e = guest(w, w->s.cr3 + (va >> 39 & 511) * 8, 8);
		uint64_t pdpte = guest(w, (pml4e & ~0xfffULL) + (va >> 30 & 511) * 8, 8);
		uint64_t pde = guest(w, (pdpte & ~0xfffULL) + (va >> 21 & 511) * 8, 8);

		assert_int_equal(pml4e & 3, 3);
		assert_int_equal(pdpte & 0x83, 3);
		assert_int_equal(pde & 0x83, 0x83);
		assert_int_equal((pde & ~0x1fffffULL) | (va & 0x1fffff), va);
	}

	/* zero page */
	gpa_t zp = w->s.gpr[R_RSI];

	assert_int_equal(zp & 0xfff, 0);
	assert_int_equal(guest(w, zp + 0x202, 4), 0x53726448);
	assert_int_equal(guest(w, zp + 0x210, 1), 0xff);
	assert_int_equal(guest(w, zp + 0x214, 4), 0x1000000);
	assert_int_equal(guest(w, zp + 0x070, 8), BOOT_ACPI_BASE);
	assert_string_equal(guest_str(w, guest(w, zp + 0x228, 4)), "a=b quiet");
	gpa_t initrd = guest(w, zp + 0x218, 4);

	assert_int_equal(guest(w, zp + 0x21c, 4), 5000);
	assert_true(initrd + 5000 <= 0x2000000 && initrd >= 0x1100000 && initrd % 4096 == 0);
	assert_memory_equal(ram_ptr(&w->ram, initrd, 5000), w->initrd.data, 5000);

	unsigned n = (unsigned)guest(w, zp + 0x1e8, 1);
	uint64_t ram = 0, last = 0;

	assert_in_range(n, 4, E820_MAX);
	for (unsigned i = 0; i < n; i++) {
		uint64_t addr = guest(w, zp + 0x2d0 + i * 20, 8),
			 len = guest(w, zp + 0x2d8 + i * 20, 8);

		assert_true(addr >= last && len > 0);
		last = addr + len;
		if (guest(w, zp + 0x2e0 + i * 20, 4) == E820_RAM)
			ram += len;
	}
	assert_int_equal(ram, MEM - MIB + BOOT_EBDA);
}

static void test_bzimage_32(void **state)
{
	struct world *w = *state;

	/* a 32-bit kernel, and one too old for xloadflags */
	for (unsigned i = 0; i < 2; i++) {
		make_bzimage(&w->kernel, i ? 0x20b : 0x20f, i == 1);
		assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
		assert_int_equal(w->s.rip, 0x1000000);
		assert_int_equal(w->s.cr0 & (X86_CR0_PE | X86_CR0_PG), X86_CR0_PE);
		assert_int_equal(w->s.efer, 0);
		assert_int_equal(w->s.seg[1].attr & (SEG_ATTR_L | SEG_ATTR_DB), SEG_ATTR_DB);
		assert_int_equal(w->s.seg[2].limit, 0xffffffff);
	}
}

static void test_bzimage_relocates(void **state)
{
	struct world *w = *state;

	make_bzimage(&w->kernel, 0x20f, true);
	put(&w->kernel, 0x258, 0x10000000, 8); /* prefers an address beyond RAM */
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
	assert_int_equal(w->s.rip, 0x200200); /* lowest place, aligned as it wants */
	put(&w->kernel, 0x258, 5 * GIB, 8);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
	put(&w->kernel, 0x234, 0, 1);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), -ENOMEM);
	assert_non_null(strstr(w->err.text, "dir/kernel"));
}

static void expect_bz_error(struct world *w, int error, const char *part)
{
	struct x86_state before = w->s;

	w->err.text[0] = 0;
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), error);
	assert_non_null(strstr(w->err.text, part));
	assert_memory_equal(&before, &w->s, sizeof(before));
}

static void test_bzimage_errors(void **state)
{
	struct world *w = *state;
	static char cmdline[4096];

	make_bzimage(&w->kernel, 0x20f, true);
	memset(cmdline, 'x', 2047);
	w->rq.cmdline = cmdline;
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
	cmdline[2047] = 'x';
	expect_bz_error(w, -EINVAL, "2048 bytes");
	w->rq.cmdline = "";

	w->rq.initrd = &w->initrd;
	make_blob(&w->initrd, 32 * MIB); /* larger than what is free below initrd_addr_max */
	expect_bz_error(w, -ENOMEM, "initrd");
	w->rq.initrd = NULL;

	put(&w->kernel, 0x211, 0, 1);
	expect_bz_error(w, -ENOEXEC, "zImage");
	put(&w->kernel, 0x211, 1, 1);
	put(&w->kernel, 0x206, 0x1ff, 2);
	expect_bz_error(w, -ENOEXEC, "protocol 1.");
	put(&w->kernel, 0x206, 0x20f, 2);
	put(&w->kernel, 0x230, 0x3000, 4);
	expect_bz_error(w, -ENOEXEC, "kernel_alignment");
	put(&w->kernel, 0x230, 0x200000, 4);
	put(&w->kernel, 0x236, 0, 2); /* neither 64-bit nor 32-bit entry: real-mode code only */
	put(&w->kernel, 0x214, 0, 4);
	expect_bz_error(w, -ENOEXEC, "--disk");
	put(&w->kernel, 0x236, 1, 2);
	put(&w->kernel, 0x214, 0x100000, 4);
	put(&w->kernel, 0x260, 0xffffffff, 4);
	expect_bz_error(w, -ENOMEM, "--mem");
	put(&w->kernel, 0x260, 0x100000, 4);
	for (size_t len = w->kernel.len - 16; len > 0; len -= MIN(len, (size_t)97)) {
		size_t whole = w->kernel.len;

		w->kernel.len = len;
		expect_bz_error(w, -ENOEXEC, "dir/kernel");
		w->kernel.len = whole;
	}
}

/* ---- ELF ---- */

static void make_elf32(struct boot_blob *b, uint32_t paddr, uint32_t filesz, uint32_t memsz)
{
	Elf32_Ehdr eh = { .e_type = ET_EXEC,
			  .e_machine = EM_386,
			  .e_version = 1,
			  .e_entry = paddr + 0x40,
			  .e_phoff = sizeof(eh),
			  .e_ehsize = sizeof(eh),
			  .e_phentsize = sizeof(Elf32_Phdr),
			  .e_phnum = 2 };
	Elf32_Phdr ph[2] = {
		{ .p_type = PT_LOAD,
		  .p_offset = 0x1000,
		  .p_vaddr = paddr,
		  .p_paddr = paddr,
		  .p_filesz = filesz,
		  .p_memsz = memsz },
		{ .p_type = PT_NOTE, .p_offset = 0x800, .p_filesz = 0x40 },
	};

	memcpy(eh.e_ident, ELFMAG, 4);
	eh.e_ident[EI_CLASS] = ELFCLASS32;
	eh.e_ident[EI_DATA] = ELFDATA2LSB;
	make_blob(b, 0x1000 + filesz);
	memcpy(b->data, &eh, sizeof(eh));
	memcpy(b->data + sizeof(eh), ph, sizeof(ph));
	memset(b->data + 0x1000, 0xc3, filesz);
}

static void make_elf64(struct boot_blob *b, uint64_t vaddr, uint64_t paddr, uint64_t filesz, uint64_t memsz)
{
	Elf64_Ehdr eh = { .e_type = ET_EXEC,
			  .e_machine = EM_X86_64,
			  .e_version = 1,
			  .e_entry = vaddr + 0x40,
			  .e_phoff = sizeof(eh),
			  .e_ehsize = sizeof(eh),
			  .e_phentsize = sizeof(Elf64_Phdr),
			  .e_phnum = 2 };
	Elf64_Phdr ph[2] = {
		{ .p_type = PT_LOAD,
		  .p_offset = 0x1000,
		  .p_vaddr = vaddr,
		  .p_paddr = paddr,
		  .p_filesz = filesz,
		  .p_memsz = memsz },
		{ .p_type = PT_NOTE, .p_offset = 0x800, .p_filesz = 0x40 },
	};

	memcpy(eh.e_ident, ELFMAG, 4);
	eh.e_ident[EI_CLASS] = ELFCLASS64;
	eh.e_ident[EI_DATA] = ELFDATA2LSB;
	make_blob(b, 0x1000 + filesz);
	memcpy(b->data, &eh, sizeof(eh));
	memcpy(b->data + sizeof(eh), ph, sizeof(ph));
	memset(b->data + 0x1000, 0xc3, filesz);
}

static void put_multiboot(struct boot_blob *b, size_t off, uint32_t flags)
{
	put(b, off, 0x1badb002, 4);
	put(b, off + 4, flags, 4);
	put(b, off + 8, 0u - (0x1badb002u + flags), 4);
}

/* Another vendor's note first, then Xen's entry address. */
static void put_pvh_note(struct boot_blob *b, size_t off, uint32_t entry)
{
	static const uint32_t gnu[] = { 4, 6, 1, 0x00554e47, 0x11111111, 0x2222 };

	memcpy(b->data + off, gnu, sizeof(gnu));
	put(b, off + 24, 4, 4);
	put(b, off + 28, 4, 4);
	put(b, off + 32, 18, 4);
	memcpy(b->data + off + 36, "Xen", 4);
	put(b, off + 40, entry, 4);
}

static void check_flat32(const struct x86_state *s)
{
	assert_int_equal(s->cr0 & (X86_CR0_PE | X86_CR0_PG), X86_CR0_PE);
	assert_int_equal(s->rflags & (X86_FL_IF | X86_FL_VM), 0);
	for (unsigned i = 0; i < 6; i++) {
		assert_int_equal(s->seg[i].base, 0);
		assert_int_equal(s->seg[i].limit, 0xffffffff);
		assert_true(s->seg[i].attr & SEG_ATTR_P && s->seg[i].attr & SEG_ATTR_DB);
	}
	assert_true(s->seg[1].attr & 8); /* code */
	assert_int_equal(s->tr.base, 0);
	assert_int_equal(s->tr.limit, 0x67);
}

static void test_multiboot_elf(void **state)
{
	struct world *w = *state;

	for (unsigned is_64 = 0; is_64 < 2; is_64++) {
		if (is_64)
			make_elf64(&w->kernel, 0xffffffff80400000, 0x400000, 0x3000, 0x5000);
		else
			make_elf32(&w->kernel, 0x400000, 0x3000, 0x5000);
		put_multiboot(&w->kernel, 0x1000, 0);
		make_blob(&w->initrd, 100);
		memcpy(w->initrd.data, "FOO=bar\n", 8);
		w->rq.initrd = &w->initrd;
		memset(ram_ptr(&w->ram, 0x403000, 0x2000), 0xee, 0x2000); /* bss must become zero */
		assert_int_equal(boot_detect(&w->kernel), BOOT_MULTIBOOT);
		assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
		check_flat32(&w->s);
		assert_int_equal(w->s.rip, 0x400040);
		assert_int_equal(w->s.gpr[R_RAX], 0x2badb002);
		assert_memory_equal(ram_ptr(&w->ram, 0x400000, 0x3000), w->kernel.data + 0x1000, 0x3000);
		for (unsigned i = 0; i < 0x2000; i += 8)
			assert_int_equal(guest(w, 0x403000 + i, 8), 0);

		gpa_t mbi = w->s.gpr[R_RBX];
		uint32_t flags = (uint32_t)guest(w, mbi, 4);

		assert_int_equal(flags & 0x4d, 0x4d);
		assert_int_equal(guest(w, mbi + 4, 4), BOOT_EBDA / 1024);
		assert_int_equal(guest(w, mbi + 8, 4), (MEM - MIB) / 1024);
		assert_string_equal(guest_str(w, guest(w, mbi + 16, 4)), "dir/kernel a=b quiet");
		assert_int_equal(guest(w, mbi + 20, 4), 1);
		gpa_t mod = guest(w, mbi + 24, 4);
		gpa_t start = guest(w, mod, 4);

		assert_int_equal(guest(w, mod + 4, 4) - start, 100);
		assert_true(start >= 0x405000 && start % 4096 == 0);
		assert_string_equal(guest_str(w, guest(w, mod + 8, 4)), "dir/initrd");
		assert_memory_equal(guest_str(w, start), "FOO=bar\n", 8);

		/* memory map: entries of size 20, first is RAM from 0 */
		gpa_t map = guest(w, mbi + 48, 4);
		uint64_t len = guest(w, mbi + 44, 4), ram = 0;

		for (uint64_t at = 0; at < len; at += guest(w, map + at, 4) + 4)
			if (guest(w, map + at + 20, 4) == 1)
				ram += guest(w, map + at + 12, 8);
		assert_int_equal(ram, MEM - MIB + BOOT_EBDA);
	}
}

/* Where the module lies in RAM. */
static gpa_t module_start(struct world *w)
{
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
	gpa_t start = guest(w, guest(w, w->s.gpr[R_RBX] + 24, 4), 4);

	assert_memory_equal(guest_str(w, start), "FOO=bar\n", 8);
	return start;
}

/* A module is above the image's last segment, not between two; below only when nothing is above. */
static void test_multiboot_module_place(void **state)
{
	struct world *w = *state;
	Elf32_Phdr second = { .p_type = PT_LOAD, .p_offset = 0x1000, .p_filesz = 0x1000, .p_memsz = 0x2000 };

	make_elf32(&w->kernel, 0x400000, 0x3000, 0x5000);
	put_multiboot(&w->kernel, 0x1000, 0);
	make_blob(&w->initrd, 100);
	memcpy(w->initrd.data, "FOO=bar\n", 8);
	w->rq.initrd = &w->initrd;
	second.p_vaddr = second.p_paddr = 0x800000;
	memcpy(w->kernel.data + sizeof(Elf32_Ehdr) + sizeof(second), &second, sizeof(second));
	assert_true(module_start(w) >= 0x802000);
	second.p_vaddr = second.p_paddr = MEM - 0x2000;
	memcpy(w->kernel.data + sizeof(Elf32_Ehdr) + sizeof(second), &second, sizeof(second));
	gpa_t start = module_start(w);

	assert_true(start >= MIB && start + 100 <= MEM - 0x2000);
}

static void test_multiboot_addresses(void **state)
{
	struct world *w = *state;

	make_blob(&w->kernel, 0x4000);
	for (unsigned i = 0; i < 0x4000; i++)
		w->kernel.data[i] = (uint8_t)(i * 3);
	put_multiboot(&w->kernel, 0x104, 1 << 16 | 3);
	put(&w->kernel, 0x104 + 12, 0x200104, 4); /* header_addr */
	put(&w->kernel, 0x104 + 16, 0x200004, 4); /* load_addr: file offset 4 */
	put(&w->kernel, 0x104 + 20, 0x203004, 4); /* load_end_addr */
	put(&w->kernel, 0x104 + 24, 0x206000, 4); /* bss_end_addr */
	put(&w->kernel, 0x104 + 28, 0x200200, 4);
	memset(ram_ptr(&w->ram, 0x200000, 0x8000), 0xee, 0x8000);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
	assert_int_equal(w->s.rip, 0x200200);
	assert_memory_equal(ram_ptr(&w->ram, 0x200004, 0x3000), w->kernel.data + 4, 0x3000);
	assert_int_equal(guest(w, 0x203004, 8), 0);
	assert_int_equal(guest(w, 0x205ff8, 8), 0);
	assert_int_equal(guest(w, 0x206000, 4), 0xeeeeeeee);

	put(&w->kernel, 0x104 + 20, 0, 4); /* to the end of the file, no bss */
	put(&w->kernel, 0x104 + 24, 0, 4);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);

	struct {
		unsigned off;
		uint32_t value;
	} bad[] = {
		{ 20, 0x300000 }, /* load end beyond the file */
		{ 20, 0x200004 }, /* nothing to load */
		{ 24, 0x200008 }, /* bss ends before the data */
		{ 16, 0x200105 }, /* loads from behind the header */
		{ 16, 0x100000 }, /* would start before the file */
		{ 12, 0xffffffff },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		uint32_t was;

		memcpy(&was, w->kernel.data + 0x104 + bad[i].off, 4);
		put(&w->kernel, 0x104 + bad[i].off, bad[i].value, 4);
		assert_int_equal(boot_load(&w->rq, &w->s, &w->err), -EINVAL);
		put(&w->kernel, 0x104 + bad[i].off, was, 4);
	}
	put_multiboot(&w->kernel, 0x104, 1 << 16 | 0x10);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), -ENOEXEC);
	put_multiboot(&w->kernel, 0x104, 0);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), -ENOEXEC); /* no ELF file */
	put(&w->kernel, 0x104 + 8, 1, 4); /* wrong checksum: no multiboot header */
	assert_int_equal(boot_detect(&w->kernel), BOOT_UNKNOWN);
}

static void test_pvh(void **state)
{
	struct world *w = *state;

	for (unsigned is_64 = 0; is_64 < 2; is_64++) {
		if (is_64)
			make_elf64(&w->kernel, 0xffffffff81000000, 0x1000000, 0x3000, 0x5000);
		else
			make_elf32(&w->kernel, 0x1000000, 0x3000, 0x5000);
		put_pvh_note(&w->kernel, 0x800, 0x1000123);
		make_blob(&w->initrd, 9000);
		memset(w->initrd.data, 0x77, 9000);
		w->rq.initrd = &w->initrd;
		assert_int_equal(boot_detect(&w->kernel), BOOT_PVH);
		assert_int_equal(boot_load(&w->rq, &w->s, &w->err), 0);
		check_flat32(&w->s);
		assert_int_equal(w->s.rip, 0x1000123);

		gpa_t si = w->s.gpr[R_RBX];

		assert_int_equal(guest(w, si, 4), 0x336ec578);
		assert_int_equal(guest(w, si + 4, 4), 1);
		assert_int_equal(guest(w, si + 12, 4), 1);
		gpa_t mod = guest(w, si + 16, 8);

		assert_int_equal(guest(w, mod + 8, 8), 9000);
		assert_memory_equal(ram_ptr(&w->ram, guest(w, mod, 8), 9000), w->initrd.data, 9000);
		assert_string_equal(guest_str(w, guest(w, si + 24, 8)), "a=b quiet");
		assert_int_equal(guest(w, si + 32, 8), BOOT_ACPI_BASE);
		gpa_t map = guest(w, si + 40, 8);
		unsigned n = (unsigned)guest(w, si + 48, 4);
		uint64_t ram = 0;

		for (unsigned i = 0; i < n; i++)
			if (guest(w, map + i * 24 + 16, 4) == 1)
				ram += guest(w, map + i * 24 + 8, 8);
		assert_int_equal(ram, MEM - MIB + BOOT_EBDA);
	}
	w->rq.initrd = NULL;
	put(&w->kernel, 0x800 + 32, 17, 4);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), -ENOEXEC);
	assert_non_null(strstr(w->err.text, "PVH"));
}

static void test_elf_errors(void **state)
{
	struct world *w = *state;
	size_t ph = sizeof(Elf64_Ehdr);
	struct {
		size_t off;
		uint64_t value;
		int error;
	} bad[] = {
		{ ph + 8, 1ULL << 40, -EINVAL }, /* p_offset outside of the file */
		{ ph + 8, ~0ULL, -EINVAL },
		{ ph + 32, ~0ULL, -EINVAL },  /* p_filesz */
		{ ph + 32, 0x2fff, 0 },	      /* (a smaller one is fine) */
		{ ph + 40, 0x2fff, -EINVAL }, /* p_memsz < p_filesz */
		{ ph + 40, ~0ULL, -ENOMEM },
		{ ph + 24, MEM - 0x1000, -ENOMEM }, /* p_paddr: over the end of RAM */
		{ ph + 24, ~0ULL - 0x100, -ENOMEM },
		{ ph + 24, 0x9f000, -ENOMEM }, /* into the EBDA and beyond */
		{ ph + 24, 0xe0000, -ENOMEM }, /* over the ACPI tables */
		{ 32, ~0ULL - 10, -ENOEXEC },  /* e_phoff */
		{ 54, 1, -ENOEXEC },	       /* e_phentsize, e_phnum */
		{ 18, EM_AARCH64, -ENOEXEC },
	};

	make_elf64(&w->kernel, 0x1000000, 0x1000000, 0x3000, 0x5000);
	put_pvh_note(&w->kernel, 0x800, 0x1000000);
	uint8_t *good = malloc(w->kernel.len);

	assert_non_null(good);
	memcpy(good, w->kernel.data, w->kernel.len);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		put(&w->kernel, bad[i].off, bad[i].value, bad[i].off < 64 && bad[i].off != 32 ? 2 : 8);
		assert_int_equal(boot_load(&w->rq, &w->s, &w->err), bad[i].error);
		memcpy(w->kernel.data, good, w->kernel.len);
	}
	/* two segments that overlap: the note's header turned into a second PT_LOAD */
	memcpy(w->kernel.data + ph + sizeof(Elf64_Phdr), w->kernel.data + ph, sizeof(Elf64_Phdr));
	struct elf_file f;
	struct boot_map map;

	boot_map_init(&map, &w->ram);
	assert_int_equal(elf_open(&f, &w->kernel, &w->err), 0);
	assert_int_equal(elf_load(&f, &map, &w->err), -ENOMEM);
	assert_non_null(strstr(w->err.text, "overlaps"));
	free(good);
}

/* ---- all formats: damaged files end in an error or a load, never in anything else ---- */

static void test_damaged(void **state)
{
	struct world *w = *state;
	uint32_t seed = 0x12345678;

	for (unsigned format = 0; format < 4; format++) {
		switch (format) {
		case 0:
			make_bzimage(&w->kernel, 0x20f, true);
			break;
		case 1:
			make_elf32(&w->kernel, 0x400000, 0x3000, 0x5000);
			put_multiboot(&w->kernel, 0x1000, 0);
			break;
		case 2:
			make_elf64(&w->kernel, 0x1000000, 0x1000000, 0x3000, 0x5000);
			put_pvh_note(&w->kernel, 0x800, 0x1000000);
			break;
		default:
			make_blob(&w->kernel, 0x4000);
			put_multiboot(&w->kernel, 0x104, 1 << 16);
			put(&w->kernel, 0x104 + 12, 0x200104, 4);
			put(&w->kernel, 0x104 + 16, 0x200004, 4);
		}
		size_t whole = w->kernel.len;
		unsigned loaded = 0, refused = 0;
		uint8_t *good = malloc(whole);

		assert_non_null(good);
		memcpy(good, w->kernel.data, whole);
		for (unsigned i = 0; i < 3000; i++) {
			for (unsigned k = 0; k < 3; k++) {
				seed = seed * 1664525 + 1013904223;
				size_t at = (seed >> 8) % (format == 2 ? 0x840 : 0x290);

				w->kernel.data[at] ^= (uint8_t)(1 << (seed >> 4 & 7));
			}
			w->kernel.len = i % 4 == 0 ? whole - (seed >> 12) % whole : whole;
			if (boot_load(&w->rq, &w->s, &w->err) == 0)
				loaded++;
			else
				refused++;
			memcpy(w->kernel.data, good, whole);
		}
		w->kernel.len = whole;
		free(good);
		assert_true(loaded > 0);
		assert_true(refused > 0);
	}
}

/* ---- the rest ---- */

static void test_unknown(void **state)
{
	struct world *w = *state;

	make_blob(&w->kernel, 3);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), -ENOEXEC);
	make_blob(&w->kernel, 10000);
	assert_int_equal(boot_load(&w->rq, &w->s, &w->err), -ENOEXEC);
	assert_non_null(strstr(w->err.text, "dir/kernel"));
}

static void test_placing(void **state)
{
	struct world *w = *state;
	struct boot_map map;
	gpa_t a, b, c;

	boot_map_init(&map, &w->ram);
	assert_non_null(boot_place_at(&map, 0x200000, 0x1000, "x", &w->err));
	assert_null(boot_place_at(&map, 0x200fff, 1, "x", &w->err));
	assert_null(boot_place_at(&map, 0xffff0000, 0x1000, "x", &w->err));
	assert_null(boot_place_at(&map, 0x300000, 0, "x", &w->err));
	assert_non_null(boot_place_low(&map, 0x1800, 0x1000, 0x1ff000, 4 * GIB, "x", &a, &w->err));
	assert_int_equal(a, 0x201000); /* 1ff000 would overlap */
	assert_non_null(boot_place_high(&map, 0x1800, 0x1000, MIB, 4 * GIB, "x", &b, &w->err));
	assert_int_equal(b, MEM - 0x2000);
	assert_non_null(boot_place_high(&map, 0x1000, 0x1000, MIB, 4 * GIB, "x", &c, &w->err));
	assert_int_equal(c, MEM - 0x3000);
	assert_null(boot_place_high(&map, MEM, 0x1000, MIB, 4 * GIB, "x", &c, &w->err));
	assert_null(boot_place_low(&map, 0x1000, 0x1000, 0x200000, 0x201000, "x", &c, &w->err));
	while (map.n < BOOT_MAX_PLACED)
		assert_non_null(boot_place_low(&map, 1, 1, MIB, 4 * GIB, "x", &c, &w->err));
	assert_null(boot_place_low(&map, 1, 1, MIB, 4 * GIB, "x", &c, &w->err));
}

static void test_blob(void **state)
{
	struct boot_blob b;
	struct error err;
	FILE *f = tmpfile();

	(void)state;
	assert_non_null(f);
	assert_int_equal(boot_blob_read(&b, fileno(f), "empty", 100, &err), -ENOEXEC);
	fputs("hello", f);
	fflush(f);
	assert_int_equal(boot_blob_read(&b, fileno(f), "f", 4, &err), -EFBIG);
	assert_int_equal(boot_blob_read(&b, fileno(f), "f", 5, &err), 0);
	assert_memory_equal(b.data, "hello", 5);
	assert_non_null(boot_blob_at(&b, 0, 5));
	assert_non_null(boot_blob_at(&b, 5, 0));
	assert_null(boot_blob_at(&b, 1, 5));
	assert_null(boot_blob_at(&b, ~0ULL, 2));
	assert_null(boot_blob_at(&b, 2, ~0ULL));
	boot_blob_free(&b);
	fclose(f);
	f = fopen("/", "r");
	assert_non_null(f);
	assert_int_equal(boot_blob_read(&b, fileno(f), "/", 5, &err), -EISDIR);
	fclose(f);
}

static void test_firmware(void **state)
{
	struct guest_ram ram;
	struct boot_blob fw = { .name = "bios" };
	struct error err;

	(void)state;
	make_blob(&fw, 256 * KIB);
	assert_int_equal(firmware_check(&fw, &err), 0);
	for (size_t i = 0; i < fw.len; i++)
		fw.data[i] = (uint8_t)(i >> 10);
	assert_int_equal(ram_create(&ram, 4 * MIB, fw.len, &err), 0);
	void *rom = ram_add_rom(&ram, 4 * GIB - fw.len, fw.len, &err);

	assert_non_null(rom);
	firmware_load(&fw, &ram, rom);
	assert_memory_equal(ram_ptr(&ram, 4 * GIB - fw.len, fw.len), fw.data, fw.len);
	assert_memory_equal(ram_ptr(&ram, 0xe0000, 128 * KIB), fw.data + 128 * KIB, 128 * KIB);
	ram_destroy(&ram);
	fw.len--;
	assert_int_equal(firmware_check(&fw, &err), -ENOEXEC);
	fw.len = 4096;
	assert_int_equal(firmware_check(&fw, &err), -ENOEXEC);
	boot_blob_free(&fw);
}

/* Each real-mode vector leads to an IRET inside the reserved EBDA. */
static void test_bios_stubs(void **state)
{
	struct world *w = *state;

	assert_int_equal(boot_place_bios_stubs(&w->ram, &w->err), 0);
	for (unsigned v = 0; v < 256; v++) {
		uint64_t entry = guest(w, 4 * v, 4), gpa = (entry >> 16) * 16 + (entry & 0xffff);
		unsigned len = 0;

		assert_in_range(gpa, BOOT_EBDA + 1, 0x9ffff);
		while (guest(w, gpa + len, 1) != 0xcf)
			assert_true(++len < 16);
	}
	assert_int_equal(guest(w, 0x15 * 4, 4), guest(w, 0x13 * 4, 4));
	assert_int_not_equal(guest(w, 0x12 * 4, 4), guest(w, 0x13 * 4, 4));
	assert_int_not_equal(guest(w, 0x08 * 4, 4), guest(w, 0x70 * 4, 4));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup_world, teardown_world)
		T(test_bzimage_64),
		T(test_bzimage_32),
		T(test_bzimage_relocates),
		T(test_bzimage_errors),
		T(test_multiboot_elf),
		T(test_multiboot_module_place),
		T(test_multiboot_addresses),
		T(test_pvh),
		T(test_elf_errors),
		T(test_damaged),
		T(test_unknown),
		T(test_placing),
		T(test_bios_stubs),
		cmocka_unit_test(test_blob),
		cmocka_unit_test(test_firmware),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
