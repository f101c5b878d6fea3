/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/host.h"
#include "mem/ram.h"

#define HUGE_PAGE	   (2 * MIB)
#define RAM_MAX_BYTES	   (1ULL << 40)
#define MAP_ANON_NORESERVE (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

static bool is_page_aligned(uint64_t v)
{
	return v % GUEST_PAGE_SIZE == 0;
}

/*
 * Address space with guards on both sides, the accessible part aligned to huge pages so that the kernel
 * can back it with them.
 */
static uint8_t *map_guarded(uint64_t size)
{
	uint64_t span = RAM_GUARD_BYTES + HUGE_PAGE + size + RAM_GUARD_BYTES;
	uint8_t *all = host.mmap(NULL, span, PROT_NONE, MAP_ANON_NORESERVE, -1, 0);

	if (all == MAP_FAILED)
		return NULL;
	uint8_t *base = (uint8_t *)ALIGN_UP((uintptr_t)all + RAM_GUARD_BYTES, HUGE_PAGE);
	uint8_t *start = base - RAM_GUARD_BYTES;
	uint8_t *end = base + size + RAM_GUARD_BYTES;
	if (host.mmap(base, size, PROT_READ | PROT_WRITE, MAP_ANON_NORESERVE | MAP_FIXED, -1, 0) ==
	    MAP_FAILED) {
		int e = errno;
		munmap(all, span);
		errno = e;
		return NULL;
	}
	if (start > all)
		munmap(all, (size_t)(start - all));
	if (all + span > end)
		munmap(end, (size_t)(all + span - end));
	/* Fewer host TLB misses; a kernel without huge pages refuses, which is fine. */
	madvise(base, size, MADV_HUGEPAGE);
	return base;
}

int ram_create(struct guest_ram *ram, uint64_t ram_bytes, uint64_t rom_bytes, struct error *err)
{
	if (!is_page_aligned(ram_bytes) || !is_page_aligned(rom_bytes) || ram_bytes < MIB ||
	    ram_bytes > RAM_MAX_BYTES || rom_bytes > GIB)
		return error_set(
			err, -EINVAL,
			"guest memory of %llu bytes is not possible: it must be 1M to 1T, in pages",
			(unsigned long long)ram_bytes);
	uint64_t size = ram_bytes + rom_bytes;
	struct guest_ram r = {
		.size_bytes = size,
		.low_bytes = MIN(ram_bytes, PC_LOW_RAM_MAX),
	};
	r.high_bytes = ram_bytes - r.low_bytes;
	r.base = map_guarded(size);
	if (!r.base) {
		int e = -errno;
		return error_set(err, e == -ENOMEM ? e : -ENOMEM,
				 "cannot reserve %llu MiB of memory for the guest: %s",
				 (unsigned long long)(size / MIB), strerror(-e));
	}
	void *flags = host.mmap(NULL, size >> GUEST_PAGE_SHIFT, PROT_READ | PROT_WRITE,
				MAP_ANON_NORESERVE, -1, 0);
	if (flags == MAP_FAILED) {
		int e = errno;
		munmap(r.base - RAM_GUARD_BYTES, size + 2 * RAM_GUARD_BYTES);
		return error_set(err, -ENOMEM, "cannot allocate page flags for the guest: %s",
				 strerror(e));
	}
	r.page_flags = flags;
	r.regions[r.nregions++] = (struct ram_region){ .size_bytes = r.low_bytes };
	if (r.high_bytes)
		r.regions[r.nregions++] = (struct ram_region){ .gpa = 4 * GIB,
							       .size_bytes = r.high_bytes,
							       .offset = r.low_bytes };
	*ram = r;
	return 0;
}

void ram_destroy(struct guest_ram *ram)
{
	if (ram->base)
		munmap(ram->base - RAM_GUARD_BYTES, ram->size_bytes + 2 * RAM_GUARD_BYTES);
	if (ram->page_flags)
		munmap((void *)ram->page_flags, ram->size_bytes >> GUEST_PAGE_SHIFT);
	*ram = (struct guest_ram){ 0 };
}

/* @regions without [@gpa, @gpa+@size) and, with @add, that in its place.  At most RAM_MAX_REGIONS + 2. */
static unsigned cut_regions(const struct guest_ram *ram, gpa_t gpa, uint64_t size,
			    const struct ram_region *add, struct ram_region *out)
{
	unsigned n = 0;
	gpa_t end = gpa + size;
	bool is_added = !add;

	for (unsigned i = 0; i < ram->nregions; i++) {
		struct ram_region r = ram->regions[i];
		gpa_t r_end = r.gpa + r.size_bytes;

		if (r.gpa < gpa) {
			out[n] = r;
			out[n++].size_bytes = MIN(r_end, gpa) - r.gpa;
		}
		if (!is_added && r_end > gpa) {
			out[n++] = *add;
			is_added = true;
		}
		if (r_end > end) {
			uint64_t skip = end > r.gpa ? end - r.gpa : 0;
			out[n] = r;
			out[n].gpa += skip;
			out[n].offset += skip;
			out[n++].size_bytes -= skip;
		}
	}
	if (!is_added)
		out[n++] = *add;
	return n;
}

static int set_regions(struct guest_ram *ram, gpa_t gpa, uint64_t size,
		       const struct ram_region *add, struct error *err)
{
	struct ram_region regions[2 * RAM_MAX_REGIONS + 1];
	unsigned n;

	if (!size || !is_page_aligned(gpa) || !is_page_aligned(size) || gpa + size < gpa)
		return error_set(err, -EINVAL, "a memory region at %#llx of %#llx bytes is not in pages",
				 (unsigned long long)gpa, (unsigned long long)size);
	n = cut_regions(ram, gpa, size, add, regions);
	if (n > RAM_MAX_REGIONS)
		return error_set(err, -ENOSPC, "too many memory regions (%u)", n);
	memcpy(ram->regions, regions, n * sizeof(regions[0]));
	ram->nregions = n;
	return 0;
}

void *ram_add_rom(struct guest_ram *ram, gpa_t gpa, uint64_t size_bytes, struct error *err)
{
	uint64_t offset = ram->low_bytes + ram->high_bytes + ram->rom_used_bytes;

	if (size_bytes > ram->size_bytes - offset) {
		error_set(err, -ENOSPC, "a ROM of %llu bytes does not fit: %llu are left",
			  (unsigned long long)size_bytes,
			  (unsigned long long)(ram->size_bytes - offset));
		return NULL;
	}
	struct ram_region rom = { .gpa = gpa, .size_bytes = size_bytes, .offset = offset, .is_readonly = true };
	if (set_regions(ram, gpa, size_bytes, &rom, err))
		return NULL;
	ram->rom_used_bytes += size_bytes;
	return ram->base + offset;
}

int ram_punch(struct guest_ram *ram, gpa_t gpa, uint64_t size_bytes, struct error *err)
{
	return set_regions(ram, gpa, size_bytes, NULL, err);
}

int ram_map(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd, struct error *err)
{
	int flags = fd < 0 ? MAP_ANON_NORESERVE : MAP_PRIVATE | MAP_NORESERVE;

	if (!is_page_aligned(offset) || !is_page_aligned(len) || offset > ram->size_bytes ||
	    len > ram->size_bytes - offset)
		return error_set(err, -EINVAL, "[%#llx, +%#llx) is no part of guest memory",
				 (unsigned long long)offset, (unsigned long long)len);
	if (host.mmap(ram->base + offset, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd,
		      fd < 0 ? 0 : (off_t)offset) == MAP_FAILED)
		return error_set(err, -errno, "cannot map guest memory: %s", strerror(errno));
	if (fd < 0)
		madvise(ram->base + offset, len, MADV_HUGEPAGE); /* as ram_create() */
	return 0;
}

/* ---- handing it over ---- */

/* The next run of pages in [@at, @end) that are not zero; false: none. */
static bool next_run(const uint8_t *base, uint64_t *at, uint64_t *len, uint64_t end)
{
	uint64_t from = *at, to;

	while (from < end && bytes_are_zero(base + from, GUEST_PAGE_SIZE))
		from += GUEST_PAGE_SIZE;
	for (to = from; to < end && !bytes_are_zero(base + to, GUEST_PAGE_SIZE);)
		to += GUEST_PAGE_SIZE;
	*at = from;
	*len = to - from;
	return to > from;
}

static int map_shared(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd)
{
	return host.mmap(ram->base + offset, len, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED
		       ? -errno
		       : 0;
}

static int not_handed_over(int r, struct error *err)
{
	return error_set(err, r, "guest memory can't be handed over: %s", strerror(-r));
}

int ram_share(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd, struct error *err)
{
	uint64_t n;
	int r = 0;

	for (uint64_t at = offset; r == 0 && next_run(ram->base, &at, &n, offset + len); at += n)
		r = host_pwrite_all(fd, ram->base + at, n, at);
	if (r == 0)
		r = map_shared(ram, offset, len, fd);
	return r < 0 ? not_handed_over(r, err) : 0;
}

int ram_adopt(struct guest_ram *ram, int fd, struct error *err)
{
	int r = map_shared(ram, 0, ram->size_bytes, fd);

	return r < 0 ? not_handed_over(r, err) : 0;
}

/* Is nothing of it in the file? */
static bool is_hole(int fd, uint64_t offset, uint64_t len)
{
	off_t data = lseek(fd, (off_t)offset, SEEK_DATA);

	return data < 0 ? errno == ENXIO : (uint64_t)data >= offset + len;
}

int ram_unshare(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd, struct error *err)
{
	bool is_empty = is_hole(fd, offset, len);
	_cleanup_free_ uint8_t *copy = is_empty ? NULL : host.malloc(len);
	uint64_t n;

	if (!is_empty && !copy)
		return not_handed_over(-ENOMEM, err);
	if (copy)
		memcpy(copy, ram->base + offset, len);
	int r = ram_map(ram, offset, len, -1, err);

	if (r < 0 || !copy)
		return r;
	for (uint64_t at = 0; next_run(copy, &at, &n, len); at += n)
		memcpy(ram->base + offset + at, copy + at, n);
	/* Where it stays, it goes with the file's last user. */
	(void)host.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len);
	return 0;
}

int ram_discard(struct guest_ram *ram, gpa_t gpa, uint64_t len)
{
	uint8_t *p = ram_ptr(ram, gpa, len);

	if (!p)
		return 0;
	int r = madvise(p, len, MADV_DONTNEED) < 0 ? -errno : 0;

	/* Of a file it is the file that has to forget them; what is private memory still is done already. */
	while (r == 0 && ram->is_shared && len) {
		uint64_t n = MIN(len, RAM_PIECE_BYTES - (uint64_t)(p - ram->base) % RAM_PIECE_BYTES);

		if (madvise(p, n, MADV_REMOVE) < 0 && errno != EINVAL)
			r = -errno;
		p += n;
		len -= n;
	}
	return r;
}

void *ram_ptr(const struct guest_ram *ram, gpa_t gpa, uint64_t len)
{
	const struct ram_region *r = ram_find(ram, gpa);

	if (!r || len > r->size_bytes - (gpa - r->gpa))
		return NULL;
	return ram->base + r->offset + (gpa - r->gpa);
}

/* Does all of [@gpa, +@len) lie in regions (writable ones with @for_write)? */
static bool is_covered(const struct guest_ram *ram, gpa_t gpa, uint64_t len, bool for_write)
{
	while (len) {
		const struct ram_region *r = ram_find(ram, gpa);
		if (!r || (for_write && r->is_readonly))
			return false;
		uint64_t n = MIN(len, r->size_bytes - (gpa - r->gpa));
		len -= n;
		if (len && gpa + n < gpa)
			return false;
		gpa += n;
	}
	return true;
}

static void note_seen(const struct guest_ram *ram, uint64_t offset, uint64_t len)
{
	if (likely(!atomic_load_explicit(&ram->notes_seen, memory_order_relaxed)))
		return;
	for (uint64_t at = offset & ~(GUEST_PAGE_SIZE - 1); at < offset + len; at += GUEST_PAGE_SIZE)
		ram_note_seen(ram, at);
}

/* The host bytes at @gpa that lie together, at most @len. */
static uint8_t *piece(const struct guest_ram *ram, gpa_t gpa, uint64_t len, uint64_t *n)
{
	const struct ram_region *r = ram_find(ram, gpa);
	uint64_t in = gpa - r->gpa;

	*n = MIN(len, r->size_bytes - in);
	note_seen(ram, r->offset + in, *n);
	return ram->base + r->offset + in;
}

int ram_read(const struct guest_ram *ram, gpa_t gpa, void *dst, uint64_t len)
{
	uint64_t n;

	if (!is_covered(ram, gpa, len, false))
		return -EFAULT;
	for (; len; len -= n, gpa += n, dst = (uint8_t *)dst + n) {
		const uint8_t *src = piece(ram, gpa, len, &n);
		memcpy(dst, src, n);
	}
	return 0;
}

int ram_write(struct guest_ram *ram, gpa_t gpa, const void *src, uint64_t len)
{
	uint64_t n;

	if (!is_covered(ram, gpa, len, true))
		return -EFAULT;
	for (; len; len -= n, gpa += n, src = (const uint8_t *)src + n) {
		uint8_t *dst = piece(ram, gpa, len, &n);
		memcpy(dst, src, n);
		ram_note_write_ptr(ram, dst, n);
	}
	return 0;
}

/* Invariant 6. */
static void touch(const uint8_t *p, uint64_t len)
{
	const uint8_t *end = p + len;

	for (; p < end; p = (const uint8_t *)(((uintptr_t)p & ~(GUEST_PAGE_SIZE - 1)) + GUEST_PAGE_SIZE))
		(void)*(const volatile uint8_t *)p;
}

int ram_iov(const struct guest_ram *ram, gpa_t gpa, uint64_t len, bool for_write, struct iovec *iov,
	    unsigned max, unsigned *n)
{
	unsigned used = *n;

	if (!is_covered(ram, gpa, len, for_write))
		return -EFAULT;
	while (len) {
		uint64_t part;
		uint8_t *p = piece(ram, gpa, len, &part);
		if (used >= max)
			return -E2BIG;
		if (unlikely(atomic_load_explicit(&ram->is_lazy, memory_order_relaxed)))
			touch(p, part);
		iov[used++] = (struct iovec){ .iov_base = p, .iov_len = part };
		gpa += part;
		len -= part;
	}
	*n = used;
	return 0;
}

void ram_note_write(struct guest_ram *ram, gpa_t gpa, uint64_t len)
{
	while (len) {
		const struct ram_region *r = ram_find(ram, gpa);
		uint64_t n = MIN(len, GUEST_PAGE_SIZE - gpa % GUEST_PAGE_SIZE);
		if (r) {
			uint64_t in = gpa - r->gpa;
			n = MIN(len, r->size_bytes - in);
			ram_note_write_ptr(ram, ram->base + r->offset + in, n);
		}
		gpa += n;
		len -= n;
	}
}

void ram_note_write_ptr(struct guest_ram *ram, const void *ptr, uint64_t len)
{
	uint64_t offset = (uint64_t)((const uint8_t *)ptr - ram->base);

	/* The bytes are visible before the flags are read: a translator marks the page before it reads
	 * the bytes, so it meets either them or this notice. */
	atomic_thread_fence(memory_order_seq_cst);
	while (len) {
		uint64_t n = MIN(len, GUEST_PAGE_SIZE - offset % GUEST_PAGE_SIZE);
		if (ram_note_dirty(ram, offset) & RAM_PAGE_CODE && ram->on_code_write)
			ram->on_code_write(ram->on_code_write_arg, offset, n);
		offset += n;
		len -= n;
	}
}

/* ---- the dirty log ---- */

/* Eight pages at a time: there are a quarter of a million in a GiB, and machines stand still meanwhile. */
#define EACH(flag)     (0x0101010101010101ULL * (flag))
#define PAGES_PER_WORD 8

static uint64_t log_words(const struct guest_ram *ram)
{
	return ((ram->size_bytes >> GUEST_PAGE_SHIFT) + PAGES_PER_WORD - 1) / PAGES_PER_WORD;
}

/* The flags were mapped in whole host pages, so the last word is there. */
static void change_flags(struct guest_ram *ram, uint64_t clear, uint64_t set)
{
	uint64_t *words = (uint64_t *)(void *)(uintptr_t)ram->page_flags, n = log_words(ram);

	for (uint64_t i = 0; i < n; i++) {
		uint64_t old = __atomic_load_n(&words[i], __ATOMIC_RELAXED), new;

		do
			new = (old & ~clear) | set;
		while (new != old && !__atomic_compare_exchange_n(&words[i], &old, new, true,
								  __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	}
}

void ram_log_start(struct guest_ram *ram)
{
	change_flags(ram, EACH(RAM_PAGE_DIRTY), EACH(RAM_PAGE_TRACK));
}

void ram_log_stop(struct guest_ram *ram)
{
	change_flags(ram, EACH(RAM_PAGE_DIRTY | RAM_PAGE_TRACK), 0);
}

/* One word of flags that has DIRTY pages. */
static uint64_t collect_word(uint64_t *word, uint64_t first_page, uint64_t *bitmap)
{
	uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED), dirty, n = 0;

	do
		dirty = old & EACH(RAM_PAGE_DIRTY);
	while (!__atomic_compare_exchange_n(word, &old,
					    (old & ~dirty) | dirty / RAM_PAGE_DIRTY * RAM_PAGE_TRACK,
					    true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	for (; dirty; dirty &= dirty - 1, n++) {
		uint64_t page = first_page + (uint64_t)__builtin_ctzll(dirty) / 8;

		bitmap[page / 64] |= 1ULL << page % 64;
	}
	return n;
}

uint64_t ram_log_collect(struct guest_ram *ram, uint64_t *bitmap)
{
	uint64_t *words = (uint64_t *)(void *)(uintptr_t)ram->page_flags, n = log_words(ram), found = 0;

	for (uint64_t i = 0; i < n; i++)
		if (__atomic_load_n(&words[i], __ATOMIC_RELAXED) & EACH(RAM_PAGE_DIRTY))
			found += collect_word(&words[i], i * PAGES_PER_WORD, bitmap);
	return found;
}
