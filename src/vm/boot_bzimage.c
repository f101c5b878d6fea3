/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linux bzImage: the 64-bit boot protocol from 2.12 on where the kernel says it can (xloadflags
 * bit 0), the 32-bit one for older and for 32-bit kernels.
 *
 * Source: Linux Documentation/arch/x86/boot.rst and zero-page.rst; offsets are those of the file and
 * of the zero page alike.
 */
#include <errno.h>
#include <string.h>

#include "vm/boot.h"

// clang-format off
enum { /* setup header */
	H_SETUP_SECTS   = 0x1f1, /* u8 */
	H_SYSSIZE       = 0x1f4, /* u32, 16-byte units */
	H_JUMP_LEN      = 0x201, /* u8: the header ends at 202H + this */
	H_VERSION       = 0x206, /* u16 */
	H_LOADER_TYPE   = 0x210, /* u8 */
	H_LOADFLAGS     = 0x211, /* u8 */
	H_CODE32_START  = 0x214, /* u32 */
	H_RAMDISK_IMAGE = 0x218, /* u32 */
	H_RAMDISK_SIZE  = 0x21c, /* u32 */
	H_CMD_LINE_PTR  = 0x228, /* u32 */
	H_INITRD_MAX    = 0x22c, /* u32, 2.03+ */
	H_ALIGNMENT     = 0x230, /* u32, 2.05+ */
	H_RELOCATABLE   = 0x234, /* u8, 2.05+ */
	H_XLOADFLAGS    = 0x236, /* u16, 2.12+ */
	H_CMDLINE_SIZE  = 0x238, /* u32, 2.06+ */
	H_PREF_ADDRESS  = 0x258, /* u64, 2.10+ */
	H_INIT_SIZE     = 0x260, /* u32, 2.10+ */
	H_END_MAX       = 0x290, /* edd_mbr_sig_buffer follows in the zero page */
};
enum { /* zero page */
	Z_RSDP          = 0x070, /* u64 */
	Z_E820_ENTRIES  = 0x1e8, /* u8 */
	Z_E820_TABLE    = 0x2d0,
	Z_BYTES         = 4096,
};
// clang-format on
#define LOADED_HIGH   0x01
#define XLF_KERNEL_64 0x0001

struct bz {
	const struct boot_blob *blob;
	const uint8_t *setup; /* setup_bytes of them */
	uint64_t setup_bytes, kernel_bytes;
	unsigned version;
	bool is_64;
	bool is_relocatable;
	uint64_t alignment, pref_address, init_size, initrd_max, cmdline_max;
};

static uint32_t get_le(const struct bz *z, unsigned off, unsigned size)
{
	uint32_t v = 0;

	/* bz_open made sure that the header up to H_END_MAX is in the file. */
	memcpy(&v, z->setup + off, size);
	return v;
}

static int bz_open(struct bz *z, const struct boot_blob *blob, struct error *err)
{
	const char *name = blob->name;

	*z = (struct bz){ .blob = blob, .setup = boot_blob_at(blob, 0, H_END_MAX) };
	if (!z->setup)
		return error_set(err, -ENOEXEC, "%s is cut off in its setup header", name);
	z->version = get_le(z, H_VERSION, 2);
	if (z->version < 0x0200)
		return error_set(err, -ENOEXEC,
				 "%s speaks boot protocol %u.%02u, 2.00 is the oldest known", name,
				 z->version >> 8, z->version & 0xff);
	if (!(get_le(z, H_LOADFLAGS, 1) & LOADED_HIGH))
		return error_set(err, -ENOEXEC, "%s is a zImage, loaded below 1M; build a bzImage", name);

	unsigned sects = get_le(z, H_SETUP_SECTS, 1);

	z->setup_bytes = ((sects ? sects : 4) + 1) * 512ULL;
	if (z->setup_bytes >= blob->len)
		return error_set(err, -ENOEXEC, "%s is cut off: it ends before the kernel itself", name);
	z->kernel_bytes = blob->len - z->setup_bytes;
	/* In units of 16 bytes, not reliable before 2.04; from then on it tells of a truncated file. */
	if (z->version >= 0x0204 && get_le(z, H_SYSSIZE, 4) * 16ULL >= z->kernel_bytes + 16)
		return error_set(err, -ENOEXEC,
				 "%s is cut off: its header promises %llu bytes of kernel, "
				 "there are %llu",
				 name, get_le(z, H_SYSSIZE, 4) * 16ULL,
				 (unsigned long long)z->kernel_bytes);

	z->initrd_max = z->version >= 0x0203 ? get_le(z, H_INITRD_MAX, 4) : 0x37ffffff;
	z->cmdline_max = z->version >= 0x0206 ? get_le(z, H_CMDLINE_SIZE, 4) : 255;
	z->is_relocatable = z->version >= 0x0205 && get_le(z, H_RELOCATABLE, 1);
	z->alignment = z->version >= 0x0205 ? get_le(z, H_ALIGNMENT, 4) : 0;
	z->pref_address = BOOT_HIGH_START;
	z->init_size = z->kernel_bytes;
	if (z->version >= 0x020a) {
		memcpy(&z->pref_address, z->setup + H_PREF_ADDRESS, 8);
		z->init_size = MAX(z->init_size, (uint64_t)get_le(z, H_INIT_SIZE, 4));
	}
	if (z->is_relocatable &&
	    (z->alignment == 0 || (z->alignment & (z->alignment - 1)) || z->alignment > GIB))
		return error_set(err, -ENOEXEC, "%s has a broken setup header: kernel_alignment %#llx",
				 name, (unsigned long long)z->alignment);
	z->is_64 = z->version >= 0x020c && (get_le(z, H_XLOADFLAGS, 2) & XLF_KERNEL_64);
	/* iPXE's .lkrn: nothing behind its real-mode code can be entered. */
	if (!z->is_64 && get_le(z, H_CODE32_START, 4) == 0)
		return error_set(err, -ENOEXEC,
				 "%s has no 32-bit entry point, its real-mode code needs a BIOS; "
				 "put it on a disk with a boot loader and give that with --disk "
				 "instead of --kernel",
				 name);
	if (z->is_64 && z->kernel_bytes < 0x200 + 16)
		return error_set(err, -ENOEXEC, "%s is too short for its 64-bit entry point", name);
	return 0;
}

/* Where the kernel goes: where it likes best, else (relocatable) the lowest place. */
static void *place_kernel(const struct bz *z, struct boot_map *map, gpa_t *at, struct error *err)
{
	gpa_t pref = z->pref_address;

	/* A kernel that cannot be moved is loaded at 1M and moves itself to pref_address. */
	if (!z->is_relocatable)
		pref = BOOT_HIGH_START;
	uint64_t span = z->init_size;

	if (!z->is_relocatable && z->pref_address > BOOT_HIGH_START)
		span = MIN(z->pref_address, 4 * GIB) - BOOT_HIGH_START + z->init_size;
	if (pref >= BOOT_HIGH_START && pref < 4 * GIB && span <= 4 * GIB - pref &&
	    ram_ptr(map->ram, pref, span)) {
		*at = pref;
		return boot_place_at(map, pref, span, z->blob->name, err);
	}
	if (!z->is_relocatable) {
		error_set(err, -ENOMEM, "%s needs %llu MiB of RAM at %#llx; use a larger --mem",
			  z->blob->name, (unsigned long long)(span / MIB + 1), (unsigned long long)pref);
		return NULL;
	}
	return boot_place_low(map, span, z->alignment, BOOT_HIGH_START, 4 * GIB, z->blob->name, at, err);
}

static void put_le(uint8_t *p, uint64_t v, unsigned size)
{
	memcpy(p, &v, size);
}

/* Command line, initrd, memory map: the zero page. */
static int make_zero_page(const struct bz *z, const struct boot_request *rq, struct boot_map *map,
			  gpa_t *zp_at, struct error *err)
{
	size_t cmd_len = strlen(rq->cmdline);
	gpa_t cmd_at, initrd_at;
	uint8_t *zp = boot_place_low(map, Z_BYTES, 4096, BOOT_LOW_START, BOOT_EBDA, "the zero page",
				     zp_at, err);

	if (!zp)
		return -ENOMEM;
	memset(zp, 0, Z_BYTES);
	if (cmd_len > z->cmdline_max)
		return error_set(err, -EINVAL, "the command line has %zu bytes, %s takes at most %llu",
				 cmd_len, rq->kernel->name, (unsigned long long)z->cmdline_max);
	char *cmd = boot_place_low(map, cmd_len + 1, 16, BOOT_LOW_START, BOOT_EBDA,
				   "the command line", &cmd_at, err);

	if (!cmd)
		return -ENOMEM;
	memcpy(cmd, rq->cmdline, cmd_len + 1);

	/* The setup header is taken over as far as this kernel's header goes. */
	uint64_t end = MIN((uint64_t)0x202 + z->setup[H_JUMP_LEN], (uint64_t)H_END_MAX);

	memcpy(zp + H_SETUP_SECTS, z->setup + H_SETUP_SECTS, end - H_SETUP_SECTS);
	put_le(zp + H_LOADER_TYPE, 0xff, 1); /* no id assigned */
	put_le(zp + H_CMD_LINE_PTR, cmd_at, 4);
	put_le(zp + H_RAMDISK_IMAGE, 0, 4);
	put_le(zp + H_RAMDISK_SIZE, 0, 4);

	if (rq->initrd) {
		void *p = boot_place_high(map, rq->initrd->len, 4096, BOOT_HIGH_START,
					  z->initrd_max + 1, "the initrd", &initrd_at, err);

		if (!p)
			return -ENOMEM;
		memcpy(p, rq->initrd->data, rq->initrd->len);
		put_le(zp + H_RAMDISK_IMAGE, initrd_at, 4);
		put_le(zp + H_RAMDISK_SIZE, rq->initrd->len, 4);
	}

	struct e820_entry e820[E820_MAX];
	unsigned n = e820_build(rq->ram, e820);

	put_le(zp + Z_E820_ENTRIES, n, 1);
	memcpy(zp + Z_E820_TABLE, e820, n * sizeof(e820[0]));
	put_le(zp + Z_RSDP, rq->rsdp, 8);
	return 0;
}

/* Identity map of the first 4G by 2M pages: PML4, PDPT, four page directories. */
static int make_page_tables(struct boot_map *map, gpa_t *cr3, struct error *err)
{
	gpa_t at;
	uint64_t *t = boot_place_low(map, 6 * 4096, 4096, BOOT_LOW_START, BOOT_EBDA,
				     "the page tables", &at, err);

	if (!t)
		return -ENOMEM;
	memset(t, 0, 6 * 4096);
	t[0] = (at + 4096) | 7;
	for (unsigned i = 0; i < 4; i++)
		t[512 + i] = (at + (2 + i) * 4096) | 7;
	for (uint64_t i = 0; i < 2048; i++)
		t[1024 + i] = i << 21 | 0xe7; /* present, writable, user, accessed, dirty, large */
	*cr3 = at;
	return 0;
}

/* boot.rst, "64-bit boot protocol": CS 10H is __BOOT_CS, the others __BOOT_DS. */
static int set_long_mode(struct boot_map *map, struct x86_state *s, struct error *err)
{
	gpa_t cr3;
	int r = make_page_tables(map, &cr3, err);

	if (r < 0)
		return r;
	uint64_t *gdt = ram_ptr(map->ram, s->gdtr.base, s->gdtr.limit + 1);

	gdt[2] = 0x00af9b000000ffffULL;
	s->seg[1].attr = (uint16_t)((s->seg[1].attr & ~SEG_ATTR_DB) | SEG_ATTR_L);
	s->cr3 = cr3;
	s->cr4 = X86_CR4_PAE;
	s->efer = X86_EFER_LME | X86_EFER_LMA;
	s->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_PG;
	return 0;
}

int boot_load_bzimage(const struct boot_request *rq, struct x86_state *bsp, struct error *err)
{
	struct boot_map map;
	struct bz z;
	gpa_t kernel_at, zp_at;
	int r = bz_open(&z, rq->kernel, err);

	if (r < 0)
		return r;
	boot_map_init(&map, rq->ram);
	void *kernel = place_kernel(&z, &map, &kernel_at, err);

	if (!kernel)
		return -ENOMEM;
	memcpy(kernel, z.blob->data + z.setup_bytes, z.kernel_bytes);

	r = boot_set_flat32(&map, bsp, (uint32_t)kernel_at, err);
	if (r < 0)
		return r;
	r = make_zero_page(&z, rq, &map, &zp_at, err);
	if (r < 0)
		return r;
	uint8_t *zp = ram_ptr(rq->ram, zp_at, Z_BYTES);

	put_le(zp + H_CODE32_START, kernel_at, 4);
	bsp->gpr[R_RSI] = zp_at;
	if (z.is_64) {
		r = set_long_mode(&map, bsp, err);
		if (r < 0)
			return r;
		bsp->rip = kernel_at + 0x200;
	}
	return 0;
}
