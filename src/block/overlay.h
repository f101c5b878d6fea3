/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The throw-away layer over a read-only image: a sparse, unlinked temporary file of the image's size and
 * one bit a sector that says which of the two holds the sector's content.
 *
 * The bit is per sector, not per some larger cluster: then no write ever has to copy the rest of a
 * cluster up first, and writers to neighbouring sectors need no lock between them.  It costs 1/4096 of the image
 * in memory that is touched only where the guest wrote.
 *
 * Safe from several threads for requests that don't overlap; of overlapping ones either may win.
 */
#ifndef VIV_BLOCK_OVERLAY_H
#define VIV_BLOCK_OVERLAY_H

#include "block/block.h"

struct overlay {
	int fd;
	uint64_t nsectors;
	_Atomic uint64_t *bits; /* mapped; set: the overlay holds the sector */
	size_t bits_len;
};

/** overlay_open() - an empty layer in $TMPDIR or /var/tmp.  0 or -errno with @err set. */
int overlay_open(struct overlay *o, uint64_t size_bytes, struct error *err);
void overlay_close(struct overlay *o); /* half-open is fine */
/** overlay_reset() - it holds nothing any more.  No request is in flight. */
void overlay_reset(struct overlay *o);

/** overlay_run() - how long, from @sector, the same file holds the content; at most @max sectors. */
uint64_t overlay_run(const struct overlay *o, uint64_t sector, uint64_t max, bool *is_in_overlay);

/** overlay_mark() - [@sector, @sector+@n) was written to the overlay. */
void overlay_mark(struct overlay *o, uint64_t sector, uint64_t n);

#endif
