/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translated code for another process of the same program, which has the same bytes in the same pages of RAM: the parts of
 * the segments, as they are.  keep.c writes them, keep_load.c takes them over.
 *
 * Code is relative to the code cache, whose stubs are in the same places in each process of a build, and names records by their
 * offsets; so a segment goes where it was.  Blocks that were dropped, or whose pages have changed, are dead there, and stay dead.  What has
 * an address in it is made again: the description of a decoded instruction.  Links are undone in the copy; which block
 * each led to is kept, and it is linked again if that block is one that it may lead to.  Tables and lists are built anew.
 *
 *   part 0: struct keep_head; then one for each segment:
 *   u32 record of each block, in order; u32 start of each block's cold part in that of the segment; code; cold code; records,
 *   each padded to 8 bytes
 */
#ifndef VIV_DBT_KEEP_H
#define VIV_DBT_KEEP_H

#include "base/build_id.h"
#include "engine/dbt/xlate.h"

#define KEEP_SEGMENTS_MAX                                                                          \
	(ENGINE_CODE_PARTS - 1) /* of a guest's first seconds; with more of them it would take longer than translating again */

/* Compared byte by byte. */
struct keep_ident {
	uint8_t build[BUILD_ID_BYTES];
	uint8_t has_bmi2, has_far_links, has_returns, is_counting, has_segments, has_dead_flags,
		is_strict, is_compared, is_amd;
	uint32_t without, npages, vcpus, cpu_bytes, stubs_end;
	uint32_t stubs[19 + 2 * DBT_TLB_MODES * 4];
	uint64_t xcr0_mask;
	char vendor[16];
	uint8_t has[CPUF_COUNT];
};

struct keep_segment {
	uint32_t index, n, hot, cold, meta, zero;
};

struct keep_head {
	struct keep_ident ident;
	uint32_t nsegments, nblocks;			 /* dead ones included */
	struct keep_segment segments[KEEP_SEGMENTS_MAX]; /* those that there are not: zero */
};
_Static_assert(sizeof(struct keep_head) % 8 == 0, "parts are aligned");

/* The parts of a segment within the bytes. */
struct keep_parts {
	struct keep_segment s;
	uint32_t *names, *colds;
	uint8_t *hot, *cold, *meta;
};

/** keep_ident() - of this process and machine; false: it does not know which build it is. */
bool keep_ident(const struct dbt_vm *vm, struct keep_ident *id);
/** keep_part_bytes() - what the part of a segment takes. */
static inline size_t keep_part_bytes(const struct keep_segment *s)
{
	return 8 * (size_t)s->n + ALIGN_UP((size_t)s->hot, 8) + ALIGN_UP((size_t)s->cold, 8) +
	       ALIGN_UP((size_t)s->meta, 8);
}

/** keep_lay_out() - sets the pointers of @p, whose @p->s is known, for parts that begin at @at; returns where they end. */
uint8_t *keep_lay_out(struct keep_parts *p, uint8_t *at);
/** keep_map_end() - of block @b's map; NULL: it goes on behind @end. */
const uint8_t *keep_map_end(struct xlate_block *b, const uint8_t *end);

/** keep_block() - the copy of the record @ref of the segment. */
static inline struct xlate_block *keep_block(const struct keep_parts *p, uint32_t ref)
{
	return (struct xlate_block *)(void *)(p->meta + ref % (uint32_t)XLATE_META_BYTES);
}

/** keep_decoded() - the decoded instructions of @b, whose map ends at @map_end. */
static inline struct insn *keep_decoded(struct xlate_block *b, const uint8_t *map_end)
{
	uint8_t *record = (uint8_t *)b;

	return (struct insn *)(void *)(record + ALIGN_UP((size_t)(map_end - record), 8));
}

#endif
