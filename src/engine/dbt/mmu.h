/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as instructions see it: page walks, the soft TLB, checked operands.
 *
 * Linear addresses in, host pointers out.  All functions that may raise say so; they raise #PF with the
 * architectural error code, #GP/#SS for segment and canonical violations, #AC for alignment.
 *
 * tlb_mask changes in mmu_fill, mmu_translate and every mem_ and sys_ function: emitted code computes
 * its index again after a call.
 *
 * A walk that sets A or D bits in a page with RAM_PAGE_CODE calls dbt_code_written: no lock that this
 * takes may be held around functions here.
 *
 * Source: SDM vol. 3 chapter 4 (paging), 5 (protection); APM vol. 2 chapter 5.
 */
#ifndef VIV_DBT_MMU_H
#define VIV_DBT_MMU_H

#include "engine/dbt/dbt.h"

/** mmu_init() - an empty TLB of the smallest size; first of all, in @cpu that is zero but for @cpu->vm. */
void mmu_init(struct dbt_cpu *cpu);

enum { ACC_READ = 1, ACC_WRITE = 2, ACC_RW = 3, ACC_EXEC = 4 };

/* Page-fault error code bits. */
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16, PF_PK = 32 };

struct mmu_page {
	gpa_t gpa;	  /* of the page */
	uint64_t offset;  /* in the RAM mapping; only if is_ram */
	bool is_ram;	  /* else a hole or a device */
	bool is_writable; /* RAM and not read-only */
	bool is_global;
	bool can_write; /* a write in the walk's mode would be allowed */
	bool is_dirty;	/* D is set */
	uint8_t rights; /* TLB2_U, _W, _NX of the whole walk (tlb2.h); with paging only */
	uint64_t size;	/* 4K, 2M, 4M, 1G: of the translation */
};

/**
 * mmu_walk() - translate the page of @va for an access; sets A/D bits as the access would.
 * @mode: whose rights (enum dbt_tlb_mode);  @acc: one of ACC_READ, ACC_WRITE, ACC_EXEC
 * Returns true, or false with the #PF error code in @pf_err.  Never raises.
 */
bool mmu_walk(struct dbt_cpu *cpu, uint64_t va, unsigned mode, unsigned acc, struct mmu_page *out,
	      uint32_t *pf_err);
/** mmu_translate() - mmu_walk that enters the page into the TLB; on failure the page's entries are dropped, as a
 * page fault does.  out->gpa is set only where it is not RAM. */
bool mmu_translate(struct dbt_cpu *cpu, uint64_t va, unsigned mode, unsigned acc,
		   struct mmu_page *out, uint32_t *pf_err);
/** mmu_peek() - as mmu_walk with supervisor rights and no A/D updates (debuggers, introspection). */
bool mmu_peek(struct dbt_cpu *cpu, uint64_t va, gpa_t *gpa);

/**
 * mmu_fill() - slow path of emitted code: can [@va, +@size) be accessed directly now?
 * Walks, fills the entry of @mode and returns true; false when the access must be interpreted
 * (fault, device, page crossing, noticed write, debug).  Never raises, never calls up.
 */
bool mmu_fill(struct dbt_cpu *cpu, uint64_t va, unsigned size, bool is_write, unsigned mode);

/** mmu_fetch() - host pointer to code at linear @va, and how many bytes until the page ends.
 * @offset: where the page lies in the RAM mapping.  Raises #PF; returns NULL if it is not RAM. */
const uint8_t *mmu_fetch(struct dbt_cpu *cpu, uint64_t va, unsigned *avail, uint64_t *offset);
/** mmu_fetch_probe() - the same for the dispatcher: NULL instead of raising. */
const uint8_t *mmu_fetch_probe(struct dbt_cpu *cpu, uint64_t va, unsigned *avail, uint64_t *offset);

/** mmu_is_code_global() - is @va, from where mmu_fetch has just succeeded, in a global page? */
bool mmu_is_code_global(const struct dbt_cpu *cpu, uint64_t va);

/*
 * Invalidation (SDM vol. 3 4.10.4); each also tells the translator.  They look at CR3 and CR4.PCIDE as they are
 * after the change.
 */
void mmu_flush_all(struct dbt_cpu *cpu); /* CR0/CR4 paging bits, INVPCID 2, reset */
/** mmu_switch() - MOV CR3; @keep: with bit 63 set while CR4.PCIDE. */
void mmu_switch(struct dbt_cpu *cpu, bool keep);
void mmu_flush_nonglobal(struct dbt_cpu *cpu);	       /* the current PCID's */
void mmu_flush_page(struct dbt_cpu *cpu, uint64_t va); /* INVLPG, #PF on the page; covers large pages */
void mmu_flush_page_of(struct dbt_cpu *cpu, uint16_t pcid, uint64_t va); /* INVPCID 0 */
void mmu_flush_space(struct dbt_cpu *cpu, uint16_t pcid);		 /* INVPCID 1 */
void mmu_flush_spaces(struct dbt_cpu *cpu);				 /* INVPCID 3 */
/** mmu_drop_write() - the RAM page at @offset must not be write-mapped any more.  The vCPU is the
 * caller's own or stopped.  Needed only if the page has RAM_PAGE_WMAP (mem/ram.h, invariant 5), which the
 * caller clears once all vCPUs are done. */
void mmu_drop_write(struct dbt_cpu *cpu, uint64_t offset);
/** mmu_drop_all_writes() - the same for every page (dirty log). */
void mmu_drop_all_writes(struct dbt_cpu *cpu);

/**
 * mmu_verify_tlb() - for tests and debugging: is every valid entry what a fresh walk without side
 * effects gives?  False with the linear address in *@bad_va; also false where the guest changed a mapping
 * and has not invalidated it yet.
 */
bool mmu_verify_tlb(struct dbt_cpu *cpu, uint64_t *bad_va);

/* Bits 63..47 equal: a linear address of 4-level paging. */
static inline bool mmu_is_canonical(uint64_t va)
{
	return (uint64_t)((int64_t)(va << 16) >> 16) == va;
}

/* ---- operands of interpreted instructions (may raise) ---- */

/** mem_linear() - segment + offset -> linear, with the mode's limit, type and canonical checks. */
uint64_t mem_linear(struct dbt_cpu *cpu, unsigned seg, uint64_t ea, unsigned size, unsigned acc);

/* Little-endian values of 1, 2, 4, 8 bytes at seg:ea with the current rights. */
uint64_t mem_read(struct dbt_cpu *cpu, unsigned seg, uint64_t ea, unsigned size);
void mem_write(struct dbt_cpu *cpu, unsigned seg, uint64_t ea, unsigned size, uint64_t val);
/* By linear address (segment already applied). */
uint64_t mem_read_lin(struct dbt_cpu *cpu, uint64_t va, unsigned size);
void mem_write_lin(struct dbt_cpu *cpu, uint64_t va, unsigned size, uint64_t val);
/* Descriptor tables, TSS, exception frames: supervisor rights whatever the CPL.  A non-canonical address raises
 * #GP(0); stacks are checked by the caller, who knows when it is #SS. */
uint64_t sys_read(struct dbt_cpu *cpu, uint64_t va, unsigned size);
void sys_write(struct dbt_cpu *cpu, uint64_t va, unsigned size, uint64_t val);
/** sys_check_write() - raise now if sys_write of [@va, +@len) would (all-or-nothing frames). */
void sys_check_write(struct dbt_cpu *cpu, uint64_t va, unsigned len);

/*
 * A memory operand of up to 1024 bytes for a thunk.  mem_begin checks the whole access (raising before
 * anything is changed) and gives a pointer to use: straight into RAM where possible (locked
 * instructions are then atomic, and within a cache line), else a bounce buffer filled from memory or device when @acc reads.
 * mem_commit writes a bounced operand back, marks dirty, drops translated code.
 */
struct mem_span {	 /* the part of an operand in one page */
	uint64_t offset; /* in the RAM mapping */
	gpa_t gpa;
	uint32_t len;
	bool is_ram, is_writable;
};
struct mem_op {
	void *ptr;
	uint64_t va;
	uint32_t size;
	uint8_t acc;
	bool is_bounced;
	bool is_noted; /* direct, but a write must be followed by dbt_code_written / dirty marking */
	bool is_exclusive; /* a locked access that had to stop the world */
	uint64_t note_offset;
	struct mem_span span[2]; /* bounced */
	_Alignas(64) uint8_t bounce[1024];
};
void mem_begin(struct dbt_cpu *cpu, struct mem_op *op, unsigned seg, uint64_t ea, unsigned size,
	       unsigned acc, bool is_locked);
void mem_commit(struct dbt_cpu *cpu, struct mem_op *op);
/** mem_abort() - the instruction faulted after mem_begin: undo is_exclusive, nothing is written. */
void mem_abort(struct dbt_cpu *cpu, struct mem_op *op);

#endif
