/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Multiboot 1: ELF images (32 and 64 bits) and images with load addresses in the header.
 *
 * Source: Multiboot Specification version 0.6.96, section numbers in the comments.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vm/boot.h"

#define MB_HEADER_MAGIC 0x1badb002
#define MB_BOOT_MAGIC	0x2badb002
#define MB_SEARCH	8192 /* 3.1: the header lies whole in the first 8192 bytes, 4-aligned */

enum {
	MB_ALIGN_MODULES = 1 << 0,
	MB_MEMORY_INFO = 1 << 1,
	MB_VIDEO = 1 << 2,
	MB_ADDRESSES = 1 << 16
};
enum {
	MBI_MEMORY = 1 << 0,
	MBI_CMDLINE = 1 << 2,
	MBI_MODS = 1 << 3,
	MBI_MMAP = 1 << 6,
	MBI_LOADER_NAME = 1 << 9
};

struct mb_header { /* 3.1.1 */
	uint32_t magic, flags, checksum;
	uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

struct mb_info { /* 3.3 */
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4];
	uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table, boot_loader_name;
	uint32_t apm_table, vbe[4];
};
struct mb_module {
	uint32_t start, end, string, reserved;
};
struct mb_mmap {
	uint32_t size; /* of what follows */
	uint64_t addr, len;
	uint32_t type;
} __attribute__((packed));

struct mb_block {
	struct mb_info info;
	struct mb_module module;
	struct mb_mmap mmap[E820_MAX];
	char loader[16];
	char strings[]; /* command line, module string */
};

int64_t multiboot_find_header(const struct boot_blob *kernel)
{
	for (uint64_t off = 0; off + 12 <= MB_SEARCH; off += 4) {
		const uint8_t *p = boot_blob_at(kernel, off, 12);
		uint32_t w[3];

		if (!p)
			return -1;
		memcpy(w, p, sizeof(w));
		if (w[0] == MB_HEADER_MAGIC && w[0] + w[1] + w[2] == 0)
			return (int64_t)off;
	}
	return -1;
}

/* 3.1.3: the image is loaded by the addresses in its header. */
static int load_flat(const struct boot_blob *k, uint64_t header_off, const struct mb_header *h,
		     struct boot_map *map, struct error *err)
{
	uint64_t before = (uint64_t)h->header_addr - h->load_addr;

	if (h->header_addr < h->load_addr || before > header_off)
		return error_set(err, -EINVAL,
				 "%s has a broken multiboot header: load_addr does not fit", k->name);
	uint64_t off = header_off - before;
	uint64_t file_bytes = k->len - off;

	if (h->load_end_addr) {
		if (h->load_end_addr <= h->load_addr || h->load_end_addr - h->load_addr > file_bytes)
			return error_set(err, -EINVAL,
					 "%s is cut off or its multiboot header is broken: "
					 "load_end_addr does "
					 "not fit",
					 k->name);
		file_bytes = h->load_end_addr - h->load_addr;
	}
	uint64_t mem_bytes = file_bytes;

	if (h->bss_end_addr) {
		if (h->bss_end_addr < h->load_addr + file_bytes)
			return error_set(err, -EINVAL, "%s has a broken multiboot header: bss_end_addr does not fit",
					 k->name);
		mem_bytes = h->bss_end_addr - h->load_addr;
	}
	void *dst = boot_place_at(map, h->load_addr, mem_bytes, k->name, err);

	if (!dst)
		return -ENOMEM;
	memcpy(dst, boot_blob_at(k, off, file_bytes), file_bytes);
	memset((uint8_t *)dst + file_bytes, 0, mem_bytes - file_bytes);
	return 0;
}

static int load_image(const struct boot_request *rq, struct boot_map *map, uint32_t *entry,
		      struct error *err)
{
	const struct boot_blob *k = rq->kernel;
	int64_t off = multiboot_find_header(k);
	struct mb_header h = { 0 };

	memcpy(&h, boot_blob_at(k, (uint64_t)off, 12), 12);
	/* 3.1.2: bits 0 to 15 are demands.  Modules are always page-aligned and memory always told; a
	 * video mode is a wish ("if there is a text mode, it may be used"). */
	if (h.flags & 0xffff & ~(uint32_t)(MB_ALIGN_MODULES | MB_MEMORY_INFO | MB_VIDEO))
		return error_set(err, -ENOEXEC, "%s demands unknown multiboot features (flags %#x)",
				 k->name, h.flags);
	if (h.flags & MB_ADDRESSES) {
		const uint8_t *p = boot_blob_at(k, (uint64_t)off, sizeof(h));

		if (!p)
			return error_set(err, -EINVAL, "%s is cut off in its multiboot header", k->name);
		memcpy(&h, p, sizeof(h));
		*entry = h.entry_addr;
		return load_flat(k, (uint64_t)off, &h, map, err);
	}

	struct elf_file elf;
	int r = elf_open(&elf, k, err);

	if (r < 0)
		return r;
	r = elf_load(&elf, map, err);
	if (r < 0)
		return r;
	uint64_t phys = elf_entry_phys(&elf);

	if (phys >= 4 * GIB)
		return error_set(err, -ENOEXEC,
				 "%s has its entry point above 4G, multiboot starts in 32-bit mode",
				 k->name);
	*entry = (uint32_t)phys;
	return 0;
}

/* The end of the highest thing placed so far. */
static gpa_t placed_end(const struct boot_map *map)
{
	gpa_t end = BOOT_HIGH_START;

	for (unsigned i = 0; i < map->n; i++)
		end = MAX(end, map->used[i].end);
	return end;
}

/*
 * Low, where 32-bit kernels with small maps still see it, but above the whole image: kernels take
 * all from their first byte to their last as theirs, gaps between segments included (seL4 checks it).
 */
static void *place_module(const struct boot_request *rq, struct boot_map *map, gpa_t image_end,
			  gpa_t *at, struct error *err)
{
	void *p = boot_place_low(map, rq->initrd->len, 4096, ALIGN_UP(image_end, MIB), 4 * GIB,
				 "the initrd", at, err);

	if (p) /* else the image ends with RAM: anywhere */
		return p;
	return boot_place_high(map, rq->initrd->len, 4096, BOOT_HIGH_START, 4 * GIB, "the initrd",
			       at, err);
}

int boot_load_multiboot(const struct boot_request *rq, struct x86_state *bsp, struct error *err)
{
	struct boot_map map;
	uint32_t entry = 0;
	gpa_t at, initrd;

	boot_map_init(&map, rq->ram);
	int r = load_image(rq, &map, &entry, err);

	if (r < 0)
		return r;
	gpa_t image_end = placed_end(&map);

	r = boot_set_flat32(&map, bsp, entry, err);
	if (r < 0)
		return r;

	/* "kernel-path command line" (3.3: "the command line ... as GRUB gives it"), then the module's. */
	size_t name_len = strlen(rq->kernel->name), cmd_len = strlen(rq->cmdline);
	size_t line_bytes = name_len + 1 + cmd_len + 1;
	size_t mod_bytes = rq->initrd ? strlen(rq->initrd->name) + 1 : 0;
	struct mb_block *b =
		boot_place_low(&map, sizeof(*b) + line_bytes + mod_bytes, 4096, BOOT_LOW_START,
			       BOOT_EBDA, "the multiboot information", &at, err);

	if (!b)
		return -ENOMEM;
	memset(b, 0, sizeof(*b));
	memcpy(b->strings, rq->kernel->name, name_len);
	b->strings[name_len] = ' ';
	memcpy(b->strings + name_len + 1, rq->cmdline, cmd_len + 1);
	memcpy(b->loader, "vivarium", sizeof("vivarium"));

	struct e820_entry e820[E820_MAX];
	unsigned n = e820_build(rq->ram, e820);

	for (unsigned i = 0; i < n; i++)
		b->mmap[i] = (struct mb_mmap){ sizeof(struct mb_mmap) - 4, e820[i].addr,
					       e820[i].len, e820[i].type };
	b->info = (struct mb_info){
		.flags = MBI_MEMORY | MBI_CMDLINE | MBI_MODS | MBI_MMAP | MBI_LOADER_NAME,
		.mem_lower = (uint32_t)(BOOT_EBDA / KIB),
		.mem_upper = (uint32_t)((rq->ram->low_bytes - MIB) / KIB),
		.cmdline = (uint32_t)(at + offsetof(struct mb_block, strings)),
		.mods_addr = (uint32_t)(at + offsetof(struct mb_block, module)),
		.mmap_length = (uint32_t)(n * sizeof(struct mb_mmap)),
		.mmap_addr = (uint32_t)(at + offsetof(struct mb_block, mmap)),
		.boot_loader_name = (uint32_t)(at + offsetof(struct mb_block, loader)),
	};
	if (rq->initrd) {
		void *p = place_module(rq, &map, image_end, &initrd, err);

		if (!p)
			return -ENOMEM;
		memcpy(p, rq->initrd->data, rq->initrd->len);
		memcpy(b->strings + line_bytes, rq->initrd->name, mod_bytes);
		b->module = (struct mb_module){
			.start = (uint32_t)initrd,
			.end = (uint32_t)(initrd + rq->initrd->len),
			.string = (uint32_t)(at + offsetof(struct mb_block, strings) + line_bytes),
		};
		b->info.mods_count = 1;
	}
	bsp->gpr[R_RAX] = MB_BOOT_MAGIC;
	bsp->gpr[R_RBX] = at + offsetof(struct mb_block, info);
	return 0;
}
