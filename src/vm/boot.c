/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/host.h"
#include "vm/boot.h"

/* ---- files ---- */

int boot_blob_read(struct boot_blob *b, int fd, const char *name, size_t max_bytes, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot read %s: %s", name, strerror(errno));
	if (S_ISDIR(st.st_mode))
		return error_set(err, -EISDIR, "%s is a directory; give a file", name);
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s is not a regular file", name);
	if (st.st_size == 0)
		return error_set(err, -ENOEXEC, "%s is empty", name);
	if ((uint64_t)st.st_size > max_bytes)
		return error_set(err, -EFBIG, "%s has %lld bytes, at most %zu can be loaded", name,
				 (long long)st.st_size, max_bytes);

	size_t len = (size_t)st.st_size;
	_cleanup_free_ uint8_t *data = host.malloc(len);

	if (!data)
		return error_set(err, -ENOMEM, "no memory for the %zu bytes of %s", len, name);
	for (size_t done = 0; done < len;) {
		ssize_t n = host.pread(fd, data + done, len - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, -errno, "cannot read %s: %s", name, strerror(errno));
		if (n == 0)
			return error_set(err, -EIO, "%s became shorter while it was read", name);
		done += (size_t)n;
	}
	*b = (struct boot_blob){ .name = name, .data = data, .len = len };
	data = NULL;
	return 0;
}

void boot_blob_free(struct boot_blob *b)
{
	free(b->data);
	b->data = NULL;
	b->len = 0;
}

const uint8_t *boot_blob_at(const struct boot_blob *b, uint64_t off, uint64_t n)
{
	if (off > b->len || n > b->len - off)
		return NULL;
	return b->data + off;
}

/* ---- memory map ---- */

unsigned e820_build(const struct guest_ram *ram, struct e820_entry out[E820_MAX])
{
	unsigned n = 0;

	out[n++] = (struct e820_entry){ 0, BOOT_EBDA, E820_RAM };
	out[n++] = (struct e820_entry){ BOOT_EBDA, 0xa0000 - BOOT_EBDA, E820_RESERVED };
	out[n++] = (struct e820_entry){ BOOT_ACPI_BASE, BOOT_ACPI_BYTES, E820_RESERVED };
	out[n++] = (struct e820_entry){ BOOT_HIGH_START, ram->low_bytes - BOOT_HIGH_START, E820_RAM };
	if (ram->high_bytes)
		out[n++] = (struct e820_entry){ 4 * GIB, ram->high_bytes, E820_RAM };
	return n;
}

/* ---- placing ---- */

void boot_map_init(struct boot_map *map, struct guest_ram *ram)
{
	*map = (struct boot_map){ .ram = ram };
}

static bool map_overlaps(const struct boot_map *map, gpa_t start, gpa_t end, gpa_t *other_start,
			 gpa_t *other_end)
{
	for (unsigned i = 0; i < map->n; i++) {
		if (start < map->used[i].end && map->used[i].start < end) {
			*other_start = map->used[i].start;
			*other_end = map->used[i].end;
			return true;
		}
	}
	return false;
}

static void *map_claim(struct boot_map *map, gpa_t gpa, uint64_t len, const char *what, struct error *err)
{
	uint8_t *p = ram_ptr(map->ram, gpa, len);

	if (!p || map->n == BOOT_MAX_PLACED) {
		error_set(err, -ENOMEM, "%s has too many parts", what);
		return NULL;
	}
	map->used[map->n].start = gpa;
	map->used[map->n++].end = gpa + len;
	ram_note_write(map->ram, gpa, len);
	return p;
}

/* Free for a loader: RAM below the EBDA but for the first page, and from 1M on. */
static bool map_is_usable(const struct boot_map *map, gpa_t gpa, uint64_t len)
{
	if (len == 0 || gpa + len < gpa || !ram_ptr(map->ram, gpa, len))
		return false;
	return gpa >= BOOT_HIGH_START || gpa + len <= BOOT_EBDA;
}

void *boot_place_at(struct boot_map *map, gpa_t gpa, uint64_t len, const char *what, struct error *err)
{
	gpa_t s, e;

	if (!map_is_usable(map, gpa, len)) {
		error_set(err, -ENOMEM,
			  "%s wants %#llx bytes at %#llx, where this machine has no free RAM; give "
			  "it "
			  "more memory if the address is below 3G",
			  what, (unsigned long long)len, (unsigned long long)gpa);
		return NULL;
	}
	if (map_overlaps(map, gpa, gpa + len, &s, &e)) {
		error_set(err, -EINVAL, "%s wants %#llx..%#llx, which overlaps %#llx..%#llx", what,
			  (unsigned long long)gpa, (unsigned long long)(gpa + len),
			  (unsigned long long)s, (unsigned long long)e);
		return NULL;
	}
	return map_claim(map, gpa, len, what, err);
}

static int place_fail(struct boot_map *map, uint64_t len, const char *what, struct error *err)
{
	return error_set(err, -ENOMEM, "no room for %s (%llu KiB) in %llu MiB of RAM; use a larger --mem",
			 what, (unsigned long long)((len + 1023) / 1024),
			 (unsigned long long)(map->ram->low_bytes / MIB));
}

void *boot_place_low(struct boot_map *map, uint64_t len, uint64_t align, gpa_t min, gpa_t max,
		     const char *what, gpa_t *gpa, struct error *err)
{
	max = MIN(max, map->ram->low_bytes);
	/* Each round passes at least one placed range: ends after BOOT_MAX_PLACED + 1 rounds. */
	for (gpa_t at = ALIGN_UP(min, align); at < max && len <= max - at;) {
		gpa_t s, e;

		if (!map_overlaps(map, at, at + len, &s, &e)) {
			if (!map_is_usable(map, at, len))
				break;
			void *p = map_claim(map, at, len, what, err);

			if (p)
				*gpa = at;
			return p;
		}
		at = ALIGN_UP(e, align);
	}
	place_fail(map, len, what, err);
	return NULL;
}

void *boot_place_high(struct boot_map *map, uint64_t len, uint64_t align, gpa_t min, gpa_t max,
		      const char *what, gpa_t *gpa, struct error *err)
{
	max = MIN(max, map->ram->low_bytes);
	for (gpa_t top = max; len <= top && top - len >= min;) {
		gpa_t s, e, at = ALIGN_DOWN(top - len, align);

		if (at < min)
			break;
		if (!map_overlaps(map, at, at + len, &s, &e)) {
			if (!map_is_usable(map, at, len))
				break;
			void *p = map_claim(map, at, len, what, err);

			if (p)
				*gpa = at;
			return p;
		}
		top = s;
	}
	place_fail(map, len, what, err);
	return NULL;
}

/* ---- first state ---- */

/* GDT for the protocols that come with flat segments: CS 10H, DS 18H as Linux wants (boot.rst). */
static const uint64_t flat_gdt[] = { 0, 0, 0x00cf9b000000ffffULL, 0x00cf93000000ffffULL,
				     0x00008b0000000067ULL };

int boot_set_flat32(struct boot_map *map, struct x86_state *s, uint32_t eip, struct error *err)
{
	gpa_t gdt;
	void *p = boot_place_low(map, sizeof(flat_gdt), 4096, BOOT_LOW_START, BOOT_EBDA, "the GDT",
				 &gdt, err);

	if (!p)
		return -ENOMEM;
	memcpy(p, flat_gdt, sizeof(flat_gdt));

	for (unsigned i = 0; i < 6; i++)
		s->seg[i] = (struct x86_seg){ .selector = 0x18,
					      .limit = 0xffffffff,
					      .attr = 3 | SEG_ATTR_S | SEG_ATTR_P | SEG_ATTR_DB |
						      SEG_ATTR_G };
	s->seg[1].selector = 0x10;
	s->seg[1].attr = 0xb | SEG_ATTR_S | SEG_ATTR_P | SEG_ATTR_DB | SEG_ATTR_G;
	s->tr = (struct x86_seg){ .selector = 0x20, .limit = 0x67, .attr = 0xb | SEG_ATTR_P };
	s->gdtr = (struct x86_dtable){ .base = gdt, .limit = sizeof(flat_gdt) - 1 };
	s->idtr = (struct x86_dtable){ 0 };
	s->cr0 = X86_CR0_PE | X86_CR0_ET;
	s->cr3 = 0;
	s->cr4 = 0;
	s->efer = 0;
	s->rflags = 2;
	memset(s->gpr, 0, sizeof(s->gpr));
	s->rip = eip;
	return 0;
}

/* ---- dispatch ---- */

enum boot_format boot_detect(const struct boot_blob *kernel)
{
	const uint8_t *h = boot_blob_at(kernel, 0x1fe, 8);

	/* Boot flag at 1FEH and "HdrS" at 202H (Linux Documentation/arch/x86/boot.rst). */
	if (h && h[0] == 0x55 && h[1] == 0xaa && memcmp(h + 4, "HdrS", 4) == 0)
		return BOOT_BZIMAGE;
	if (multiboot_find_header(kernel) >= 0)
		return BOOT_MULTIBOOT;
	const uint8_t *magic = boot_blob_at(kernel, 0, 4);

	if (magic && memcmp(magic, "\177ELF", 4) == 0)
		return BOOT_PVH;
	return BOOT_UNKNOWN;
}

int boot_load(const struct boot_request *rq, struct x86_state *bsp, struct error *err)
{
	struct x86_state s = *bsp;
	int r;

	switch (boot_detect(rq->kernel)) {
	case BOOT_BZIMAGE:
		r = boot_load_bzimage(rq, &s, err);
		break;
	case BOOT_MULTIBOOT:
		r = boot_load_multiboot(rq, &s, err);
		break;
	case BOOT_PVH:
		r = boot_load_pvh(rq, &s, err);
		break;
	case BOOT_UNKNOWN:
	default:
		return error_set(
			err, -ENOEXEC,
			"%s is not a kernel that can be booted: it is neither a Linux bzImage, "
			"nor multiboot, nor ELF with a PVH note",
			rq->kernel->name);
	}
	if (r < 0)
		return r;
	*bsp = s;
	return 0;
}

/* ---- firmware ---- */

int firmware_check(const struct boot_blob *fw, struct error *err)
{
	if (fw->len < FIRMWARE_MIN_BYTES || fw->len > FIRMWARE_MAX_BYTES || fw->len % GUEST_PAGE_SIZE)
		return error_set(
			err, -ENOEXEC,
			"%s is no firmware image: its size must be 64K to 16M and a multiple "
			"of 4K, not %zu bytes",
			fw->name, fw->len);
	return 0;
}

void firmware_load(const struct boot_blob *fw, struct guest_ram *ram, void *rom)
{
	uint64_t low = MIN((uint64_t)fw->len, 128 * KIB);

	memcpy(rom, fw->data, fw->len);
	ram_note_write_ptr(ram, rom, fw->len);
	/* The alias below 1M is RAM, as with shadowing switched on: firmware writes its variables there. */
	int r = ram_write(ram, 1 * MIB - low, fw->data + fw->len - low, low);

	(void)r; /* 1M of RAM is always there: MACHINE_MIN_MEM */
}
