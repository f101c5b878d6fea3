/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM: one private host mapping, some regions of guest-physical space in it, one checked
 * door for everybody outside the engines, and one flag byte per page.
 *
 *   host offset   0 ........ low_size | ........ size | rom ...
 *   guest gpa     0 ........ low_size | 4G ...        | wherever
 *
 * Invariants
 *  1. The mapping never moves and never shrinks while the machine lives; it ends in a guard area
 *     of RAM_GUARD_BYTES without access (the translator's speculation bound relies on it).
 *  2. Every write to guest RAM that does not come from an engine's own vCPU goes through ram_write
 *     or is followed by ram_note_write: it marks pages dirty and drops translated code.
 *  3. A page's flag byte is changed with atomic operations only.
 *  4. Regions are disjoint and sorted by address; they change only while no vCPU runs.
 *  5. RAM_PAGE_WMAP: a vCPU sets it, with a read-modify-write that also tells it the other flags, before
 *     it enters a write mapping of the page; whoever sets CODE, TRACK or WATCH sees in the old
 *     value whether some vCPU may hold one.  If so: stop the vCPUs, drop their mappings (only then
 *     clear WMAP), go on.  If not, nobody holds one and none can come.
 *  6. While is_lazy, a page may not be there yet: who touches it waits for it (userfaultfd), but a system call that is given its address
 *     fails.  So ram_iov, which is where such addresses come from, touches what it gives out.
 *  7. While is_shared, parts of the mapping, or all of it, are those of a file that another process has, too: what a fork(2) would
 *     write there, both would see.  So nothing is forked meanwhile.
 */
#ifndef VIV_MEM_RAM_H
#define VIV_MEM_RAM_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "base/util.h"

struct error;

#define GUEST_PAGE_SHIFT 12
#define GUEST_PAGE_SIZE	 4096ULL
#define RAM_GUARD_BYTES	 (1 * MIB)
#define RAM_MAX_REGIONS	 16

/* Flags of a page, by host offset >> 12. */
enum {
	RAM_PAGE_CODE = 1,  /* holds translated code: engines must not map it writable */
	RAM_PAGE_TRACK = 2, /* dirty log armed: the first write must be noticed (clears this bit) */
	RAM_PAGE_DIRTY = 4, /* written since the dirty log was last collected */
	RAM_PAGE_WATCH = 8, /* a watchpoint: every write takes the slow path */
	RAM_PAGE_WMAP = 16, /* some vCPU may hold a mapping that writes without notice (invariant 5) */
	RAM_PAGE_SEEN = 32, /* somebody came by it since notes_seen became true */
};

struct ram_region {
	gpa_t gpa;	     /* page-aligned */
	uint64_t size_bytes; /* page-aligned */
	uint64_t offset;     /* in the host mapping, page-aligned */
	bool is_readonly;    /* ROM: guest writes are dropped */
};

struct guest_ram {
	uint8_t *base;		     /* host mapping */
	uint64_t size_bytes;	     /* of all regions together */
	uint64_t low_bytes;	     /* RAM below 4G (at most 3 GiB), the region at gpa 0 */
	uint64_t high_bytes;	     /* RAM from 4G on */
	uint64_t rom_used_bytes;     /* of the ROM part, which starts at low_bytes + high_bytes */
	_Atomic uint8_t *page_flags; /* size_bytes >> 12 bytes */
	unsigned nregions;
	struct ram_region regions[RAM_MAX_REGIONS];
	_Atomic bool is_lazy;	/* invariant 6 */
	_Atomic bool is_shared; /* invariant 7; whoever calls ram_share() and the like keeps it */
	/* Pages that vCPUs and devices come by get RAM_PAGE_SEEN; set before any vCPU runs.  An engine that runs_in_kernel does not say it. */
	_Atomic bool notes_seen;
	/* Called after a write by ram_note_write hit a RAM_PAGE_CODE page; set by the engine. */
	void (*on_code_write)(void *arg, uint64_t offset, uint64_t len);
	void *on_code_write_arg;
};

#define PC_LOW_RAM_MAX (3 * GIB) /* PCI hole from 3G to 4G */

/**
 * ram_create() - reserve and map RAM.
 * @ram_bytes: guest RAM, page-aligned, 1 MiB .. 1 TiB; lies at 0..3G and from 4G on
 * @rom_bytes: further page-aligned bytes at the end of the mapping for ROM regions, may be 0
 * Pages are zero and not yet backed.  Returns 0, -ENOMEM, -EINVAL with @err set.
 */
int ram_create(struct guest_ram *ram, uint64_t ram_bytes, uint64_t rom_bytes, struct error *err);
void ram_destroy(struct guest_ram *ram); /* half-built is fine */

/**
 * ram_add_rom() - give @size_bytes of the ROM part a guest address; returns its host pointer.
 * It covers what was there: RAM underneath is no longer reachable.  NULL with @err set: not
 * page-aligned, ROM part used up, too many regions.
 */
void *ram_add_rom(struct guest_ram *ram, gpa_t gpa, uint64_t size_bytes, struct error *err);
/** ram_punch() - make [@gpa, +@size_bytes) a hole (device memory).  0, -EINVAL, -ENOSPC. */
int ram_punch(struct guest_ram *ram, gpa_t gpa, uint64_t size_bytes, struct error *err);

/**
 * ram_map() - make [@offset, +@len) of the mapping (pages) show the same bytes of the file @fd, privately: read when
 * touched, copied when written; the file stays the caller's and must not become shorter.  @fd -1: zero pages.
 * No vCPU runs, and the caller tells engines of the change (ram_note_write_ptr) where they exist already.
 * Returns 0, or -errno: the old bytes may be gone.
 */
int ram_map(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd, struct error *err);

/*
 * Handing RAM to another process without a second copy of it: the one moves it into a file, piece by piece, and maps the file; the other maps the file, and moves
 * it back into memory of its own.  Each page has one frame at any time, but for one piece.
 */
#define RAM_PIECE_BYTES (2 * MIB) /* a good size for a piece: a huge page */
/**
 * ram_share() - the bytes of [@offset, +@len) (pages) go to the same bytes of the file @fd, which reads as zero there, and the file is mapped in their place, shared.
 * Nobody writes to them meanwhile.  Pages that are zero take no room in the file until they are touched.
 * Returns 0, or -errno with @err set: they are where they were.
 */
int ram_share(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd, struct error *err);
/** ram_adopt() - all of RAM is what is in @fd, of size_bytes, shared.  No vCPU runs; the caller tells the engine.  0 or -errno: RAM may be gone. */
int ram_adopt(struct guest_ram *ram, int fd, struct error *err);
/**
 * ram_unshare() - [@offset, +@len), mapped from @fd by ram_share() or ram_adopt(), becomes private memory with the same bytes, and a hole in the file.
 * Nobody accesses them meanwhile.
 * Returns 0; -ENOMEM: nothing was changed; -errno: the bytes are in the file, but may not be mapped any more.
 */
int ram_unshare(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd, struct error *err);
/** ram_discard() - pages that the guest does without: they read as zero from here on, and cost nothing.  0 or -errno. */
int ram_discard(struct guest_ram *ram, gpa_t gpa, uint64_t len);

/** ram_find() - the region that holds @gpa, or NULL (a hole, a device). */
static inline const struct ram_region *ram_find(const struct guest_ram *ram, gpa_t gpa)
{
	for (unsigned i = 0; i < ram->nregions; i++)
		if (gpa - ram->regions[i].gpa < ram->regions[i].size_bytes)
			return &ram->regions[i];
	return NULL;
}

/** ram_ptr() - host pointer to [@gpa, @gpa+@len), NULL unless all of it lies in one region. */
void *ram_ptr(const struct guest_ram *ram, gpa_t gpa, uint64_t len);

/* The checked door.  Return 0 or -EFAULT (part of the range is not RAM; nothing was copied). */
int ram_read(const struct guest_ram *ram, gpa_t gpa, void *dst, uint64_t len);
int ram_write(struct guest_ram *ram, gpa_t gpa, const void *src, uint64_t len);

/**
 * ram_iov() - translate a guest range to at most @max host vectors (appends at *@n).
 * @for_write: refuse read-only regions; the caller calls ram_note_write after writing.
 * What it gives may be passed to system calls (invariant 6).
 * Returns 0, -EFAULT, or -E2BIG.
 */
int ram_iov(const struct guest_ram *ram, gpa_t gpa, uint64_t len, bool for_write, struct iovec *iov,
	    unsigned max, unsigned *n);

/** ram_note_write() - the host wrote [@gpa, +@len): dirty, and translated code dropped.
 * TRACK becomes DIRTY; on_code_write is called for each touched page with CODE.  What is not RAM
 * is passed over. */
void ram_note_write(struct guest_ram *ram, gpa_t gpa, uint64_t len);
/** ram_note_write_ptr() - the same, by host pointer inside the mapping. */
void ram_note_write_ptr(struct guest_ram *ram, const void *ptr, uint64_t len);

/** ram_note_dirty() - the dirty half alone, for one page by host offset: if TRACK is armed, it is cleared
 * and DIRTY set.  Returns the page's flags before. */
static inline uint8_t ram_note_dirty(const struct guest_ram *ram, uint64_t offset)
{
	_Atomic uint8_t *flags = &ram->page_flags[offset >> GUEST_PAGE_SHIFT];
	uint8_t old = atomic_load_explicit(flags, memory_order_relaxed);

	while (old & RAM_PAGE_TRACK &&
	       !atomic_compare_exchange_weak(flags, &old, (old & ~RAM_PAGE_TRACK) | RAM_PAGE_DIRTY))
		;
	return old;
}

/** ram_note_seen() - the page of host offset @offset was come by, for whatever access. */
static inline void ram_note_seen(const struct guest_ram *ram, uint64_t offset)
{
	if (likely(!atomic_load_explicit(&ram->notes_seen, memory_order_relaxed)))
		return;
	_Atomic uint8_t *flags = &ram->page_flags[offset >> GUEST_PAGE_SHIFT];

	if (!(atomic_load_explicit(flags, memory_order_relaxed) & RAM_PAGE_SEEN))
		atomic_fetch_or_explicit(flags, RAM_PAGE_SEEN, memory_order_relaxed);
}

/**
 * ram_log_start() - arm the dirty log: every page TRACK, none DIRTY.  No vCPU writes meanwhile, and the engine then
 * drops the mappings that write without notice (invariant 5).
 */
void ram_log_start(struct guest_ram *ram);
/** ram_log_stop() - no page TRACK or DIRTY. */
void ram_log_stop(struct guest_ram *ram);
/** ram_log_collect() - set the bits of the DIRTY pages in @bitmap (a bit a page by host offset) and arm those again; other
 * bits are left alone.  Returns how many there were. */
uint64_t ram_log_collect(struct guest_ram *ram, uint64_t *bitmap);

#endif
