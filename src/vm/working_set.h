/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The working set of a snapshot: the pages of memory that a machine touched in its first seconds after it went on from there.  Recorded
 * once, it is read ahead at every later start, while the machine already runs: what it needs first is in the page cache before it
 * asks.  A hint: one that is missing, damaged or of another machine changes nothing but the time.
 *
 * On the wire; integers little-endian
 *   "VIVWKSET", u32 version (2), u64 bytes of RAM, run..., u64 XXH64 of all before
 *   run = u32 first page, u32 pages, of which the highest bit: they were written, too; in order, without overlap
 */
#ifndef VIV_VM_WORKING_SET_H
#define VIV_VM_WORKING_SET_H

#include "base/bytes.h"
#include "base/error.h"
#include "mem/ram.h"

#define WORKING_SET_FILE     "working-set"
#define WORKING_SET_MAX	     (4 * MIB)		       /* bytes of the file */
#define WORKING_SET_RUNS_MAX (WORKING_SET_MAX / 8 - 8) /* what does not fit is left out */

struct page_run {
	uint32_t first, n; /* pages of the mapping */
	bool is_written;   /* that process has its own copies of them */
};
struct working_set {
	uint64_t ram_bytes;
	struct page_run *runs;
	size_t nruns;
};
void working_set_free(struct working_set *w); /* zeroed is fine */

/**
 * working_set_add() - the pages of @ram from @first_page on, @npages of them, that this process has in place by now (proc(5), pagemap).
 * The kernel puts some neighbours in place with each: @is_seen: only those count that RAM_PAGE_SEEN says.  Called with growing @first_page.
 * Returns 0, -ENOMEM, -errno: the host does not tell.
 */
int working_set_add(struct working_set *w, const struct guest_ram *ram, uint64_t first_page,
		    uint64_t npages, bool is_seen, struct error *err);
uint64_t working_set_pages(const struct working_set *w);

/** working_set_save() - append to @out. */
int working_set_save(const struct working_set *w, struct bytes *out, struct error *err);
/** working_set_parse() - hostile bytes.  0, -EINVAL, -ENOMEM; working_set_free() after success. */
int working_set_parse(struct working_set *w, const uint8_t *data, size_t len, struct error *err);

struct ram_files;
struct working_set_reader;
/**
 * working_set_read_ahead() - have a thread ask the host for these pages of @ram, which is mapped from @files (borrowed for the call), beside all else.
 * Takes the runs of @w.  NULL: it does not, as they are of another machine, or the host has no thread or descriptors for it.
 */
struct working_set_reader *working_set_read_ahead(struct working_set *w, const struct guest_ram *ram,
						  const struct ram_files *files);
/**
 * working_set_put_in_place() - from here on it puts them in place, too, and makes copies of those that were written: not before the machine is
 * built, as its mappings would wait for pages that are read.  NULL is fine.
 */
void working_set_put_in_place(struct working_set_reader *r);
/** working_set_read_wait() - until all of them are in place.  NULL is fine. */
void working_set_read_wait(struct working_set_reader *r);
/** working_set_read_end() - stop that, before memory is mapped anew, or goes, and before a fork.  NULL is fine. */
void working_set_read_end(struct working_set_reader *r);

#endif
