/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Second-level TLB and address-space tags; used by mmu.c only.
 *
 * The first level (struct dbt_tlb) knows the current address space and one access mode.  Behind it stands a table of
 * what walks found, with the rights gathered on the way: one entry answers for reads, writes and fetches of all modes
 * and survives a change of address space.
 *
 * Each PCID with translations has a tag, as have global pages; a tag is never given out twice (when
 * the numbers end, everything is flushed).  To flush an address space is to give it another tag.
 *
 * Invariants
 *  1. An entry is a 4K page of RAM that a walk with paging on has found, with A set; W, U, NX are the rights of
 *     the whole walk, D the leaf's.
 *  2. At most one entry has a given key.  A key's tag is that of a PCID or of global pages, or is dead.
 *  3. At most one slot has a PCID; the current PCID has one.
 *
 * Source: SDM vol. 3 4.10 (caching translation information).
 */
#ifndef VIV_DBT_TLB2_H
#define VIV_DBT_TLB2_H

#include "engine/dbt/dbt.h"

/* val: offset of the page in the RAM mapping and these. */
enum {
	TLB2_W = 1,
	TLB2_U = 2,
	TLB2_NX = 4,
	TLB2_D = 8,
	TLB2_GLOBAL = 16,
	TLB2_READONLY = 32,  /* ROM */
	TLB2_SIZE_SHIFT = 6, /* 2 bits: 4K, 2M, 4M, 1G */
};

/** tlb2_find() - the entry for @va in the current address space; false: walk. */
bool tlb2_find(struct dbt_cpu *cpu, uint64_t va, uint64_t *val);
/** tlb2_enter() - after a walk for @va in the current address space. */
void tlb2_enter(struct dbt_cpu *cpu, uint64_t va, uint64_t val);
/** tlb2_drop() - forget the page of @va for @tag. */
void tlb2_drop(struct dbt_cpu *cpu, uint64_t va, uint32_t tag);
/** tlb2_drop_gib() - forget all pages for @tag that agree with @va above bit 30. */
void tlb2_drop_gib(struct dbt_cpu *cpu, uint64_t va, uint32_t tag);

/* Keys: number of a page (or a larger span) and tag. */
static inline uint64_t tlb2_key(uint64_t n, uint32_t tag)
{
	return n << 28 | tag;
}

/** tlb2_hash() - neighbours are neighbours; the same page of several processes is not. */
static inline uint32_t tlb2_hash(uint64_t n, uint32_t tag)
{
	return (uint32_t)(n ^ n >> 12) ^ tag * 0x9e3779b1u >> 16;
}

static inline uint32_t tlb2_tag(uint64_t key)
{
	return key & ((1u << 28) - 1);
}

/** tlb2_va() - linear address of the page (@shift 12) or span that @key names. */
static inline uint64_t tlb2_va(const struct dbt_cpu *cpu, uint64_t key, unsigned shift)
{
	uint64_t va = key >> 28 << shift;

	return dbt_is_long(cpu) ? (uint64_t)((int64_t)(va << 16) >> 16) : va;
}

/** spaces_reset() - new tags for everything, @pcid is the current address space. */
void spaces_reset(struct dbt_cpu *cpu, uint16_t pcid);
/** spaces_switch() - @pcid becomes current, with what is cached for it if @keep.
 * Returns false if that leaves the current tag as it was. */
bool spaces_switch(struct dbt_cpu *cpu, uint16_t pcid, bool keep);
/** spaces_flush() - forget @pcid's translations (not the global ones).  True if it is the current one. */
bool spaces_flush(struct dbt_cpu *cpu, uint16_t pcid);
/** spaces_flush_others() - forget all but the current address space's. */
void spaces_flush_others(struct dbt_cpu *cpu);
/** spaces_tag() - tag of @pcid, 0 if nothing is cached for it. */
uint32_t spaces_tag(const struct dbt_cpu *cpu, uint16_t pcid);

#endif
