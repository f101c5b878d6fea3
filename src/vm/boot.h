/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boot loaders: a file from the user becomes bytes in guest RAM and the first state of the first CPU.
 *
 * Formats are told apart by content, in this order: Linux bzImage, multiboot 1, ELF with a PVH
 * note.  Files are hostile: every offset and length in them is checked against the file and
 * against RAM before it is used, and everything placed in RAM is placed through one map
 * (boot_place) that refuses overlaps.  Errors are one sentence.
 *
 * Guest-physical layout made for a direct boot
 *   0 .. 0x1000         nothing (real-mode vectors)
 *   0x1000 .. 0x9fc00   what the protocols want low: GDT, page tables, zero page, command line ...
 *   0x9fc00 .. 0xa0000  EBDA, reserved
 *   0xe0000 .. 0x100000 ACPI tables (RSDP first), reserved
 *   1M ..               kernel; initrd at the top of RAM below 4G
 */
#ifndef VIV_VM_BOOT_H
#define VIV_VM_BOOT_H

#include "base/error.h"
#include "engine/x86_state.h"
#include "mem/ram.h"

/* A file in memory. */
struct boot_blob {
	const char *name; /* for messages and for multiboot's command line; borrowed */
	uint8_t *data;
	size_t len;
};

/**
 * boot_blob_read() - read all of @fd from offset 0.
 * @max_bytes: larger files are refused with -EFBIG
 * Returns 0 or -errno with @err set.  boot_blob_free() releases.
 */
int boot_blob_read(struct boot_blob *b, int fd, const char *name, size_t max_bytes, struct error *err);
void boot_blob_free(struct boot_blob *b); /* empty is fine */

/* @n bytes at @off of a blob, or NULL: the checked accessor of file bytes. */
const uint8_t *boot_blob_at(const struct boot_blob *b, uint64_t off, uint64_t n);

/* ---- the memory map told to guests ---- */
enum { E820_RAM = 1, E820_RESERVED = 2, E820_ACPI = 3 };
struct e820_entry {
	uint64_t addr, len;
	uint32_t type;
} __attribute__((packed));
#define E820_MAX 16
/** e820_build() - the map of @ram for a direct boot; returns the number of entries. */
unsigned e820_build(const struct guest_ram *ram, struct e820_entry out[E820_MAX]);

#define BOOT_EBDA	0x9fc00ULL
#define BOOT_LOW_START	0x1000ULL
#define BOOT_ACPI_BASE	0xe0000ULL
#define BOOT_ACPI_BYTES 0x20000ULL
#define BOOT_HIGH_START (1 * MIB)

/* ---- placing things ---- */
#define BOOT_MAX_PLACED 64
struct boot_map {
	struct guest_ram *ram;
	unsigned n;
	struct {
		gpa_t start, end; /* [start, end) */
	} used[BOOT_MAX_PLACED];
};
void boot_map_init(struct boot_map *map, struct guest_ram *ram);

/** boot_place_at() - claim [@gpa, +@len) and return its host pointer; what was there stays there (after a
 * reset RAM is not zero).
 * @what: for the message.  Returns NULL with @err set: not RAM, or taken. */
void *boot_place_at(struct boot_map *map, gpa_t gpa, uint64_t len, const char *what, struct error *err);
/** boot_place_low() / _high() - the lowest / highest free place of @len bytes, @align a power of two,
 * inside [@min, @max).  Claims it; *@gpa is set. */
void *boot_place_low(struct boot_map *map, uint64_t len, uint64_t align, gpa_t min, gpa_t max,
		     const char *what, gpa_t *gpa, struct error *err);
void *boot_place_high(struct boot_map *map, uint64_t len, uint64_t align, gpa_t min, gpa_t max,
		      const char *what, gpa_t *gpa, struct error *err);

/** boot_place_bios_stubs() - real-mode vectors (0-400H) and the code in the EBDA they lead to, for guests that
 * call a BIOS after a direct boot.  Returns 0 or -EFAULT with @err set. */
int boot_place_bios_stubs(struct guest_ram *ram, struct error *err);

/* ---- loading ---- */
struct boot_request {
	struct guest_ram *ram;
	const struct boot_blob *kernel;
	const struct boot_blob *initrd; /* NULL: none */
	const char *cmdline;		/* never NULL */
	gpa_t rsdp;			/* 0: no ACPI */
};

enum boot_format { BOOT_UNKNOWN, BOOT_BZIMAGE, BOOT_MULTIBOOT, BOOT_PVH };
enum boot_format boot_detect(const struct boot_blob *kernel);

/**
 * boot_load() - put kernel, initrd and boot data into RAM and set the first CPU's registers.
 * @bsp: holds the state after reset on entry; changed only on success
 * Returns 0; -ENOEXEC (not a kernel that can be booted), -ENOMEM (guest RAM too small), -EINVAL
 * (broken file, command line too long), with @err naming file and remedy.
 */
int boot_load(const struct boot_request *rq, struct x86_state *bsp, struct error *err);

/* The loaders behind it. */
int boot_load_bzimage(const struct boot_request *rq, struct x86_state *bsp, struct error *err);
int boot_load_multiboot(const struct boot_request *rq, struct x86_state *bsp, struct error *err);
int boot_load_pvh(const struct boot_request *rq, struct x86_state *bsp, struct error *err);

/** boot_set_flat32() - protected mode, flat 4G segments, no paging, IF clear; GDT at *@map's low memory. */
int boot_set_flat32(struct boot_map *map, struct x86_state *s, uint32_t eip, struct error *err);

/** multiboot_find_header() - file offset of the header, or -1. */
int64_t multiboot_find_header(const struct boot_blob *kernel);

/* ---- ELF, as far as loaders need it ---- */
struct elf_segment {
	uint32_t type;
	uint64_t offset, vaddr, paddr, filesz, memsz, align;
};
struct elf_file {
	const struct boot_blob *blob;
	bool is_64;
	uint64_t entry;
	uint64_t phoff;
	unsigned phentsize, phnum;
};
/** elf_open() - check the header; 0 or -ENOEXEC with @err. */
int elf_open(struct elf_file *f, const struct boot_blob *blob, struct error *err);
/** elf_segment() - the @i-th program header; 0 or -EINVAL. */
int elf_segment(const struct elf_file *f, unsigned i, struct elf_segment *out, struct error *err);
/** elf_load() - place all PT_LOAD segments at their physical addresses. */
int elf_load(const struct elf_file *f, struct boot_map *map, struct error *err);
/** elf_entry_phys() - the entry address, translated through the segment that holds it. */
uint64_t elf_entry_phys(const struct elf_file *f);
/** elf_find_note() - descriptor of note @type of @owner ("Xen"): true with its bytes. */
bool elf_find_note(const struct elf_file *f, const char *owner, uint32_t type, const uint8_t **desc,
		   uint32_t *desc_len);

/* ---- firmware ---- */
#define FIRMWARE_MIN_BYTES (64 * KIB)
#define FIRMWARE_MAX_BYTES (16 * MIB)
/** firmware_check() - size rules: 64K..16M, a multiple of 4K.  0 or -ENOEXEC with @err. */
int firmware_check(const struct boot_blob *fw, struct error *err);
/** firmware_load() - copy to @rom (the region ending at 4G) and its end below 1M. */
void firmware_load(const struct boot_blob *fw, struct guest_ram *ram, void *rom);

#endif
