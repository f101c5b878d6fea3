/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verifier of emitted code: reads a block again with a decoder that is not ours (Zydis) and proves
 * that it can touch nothing but the vCPU's state, the host stack as agreed, and checked guest memory.
 *
 * What is proved for every instruction of a block, in order
 *  1. It is none of: system call, software interrupt, privileged or segment-base instruction, port I/O,
 *     far or indirect transfer (but the one branch-table form), string instruction, gather, masked move
 *     through rdi, XSAVE family.
 *  2. A direct jump stays in the block, or goes to a listed stub; the only calls go to listed stubs, or
 *     to code of the block that relies on nothing but the base, with r14 pushed just before and one word popped into r15
 *     where it comes back.
 *     A return has nothing else above what a call has left on the host stack.
 *  3. A memory operand is gs:[disp] inside struct dbt_cpu, written only where the guest's state and scratch words are,
 *     or the same by r15 where that is the base; or gs:[r14 * 8 + table] for reading, with r14 an index that pext has bounded to that table, or [r14 + disp] /
 *     [rcx + disp] while that register holds a checked pointer, within what was checked, and written only after a
 *     write check.
 *  4. A pointer is checked only by the soft-TLB sequence, in its exact order; any other write to the
 *     register ends it.
 *  5. rsp changes only by push and pop of the flag sequences, in balance.
 *  6. Where ways meet, only what holds on each of them is known; a jump back goes where no more is relied
 *     on than is known at the jump; no jump goes into the middle of an instruction.
 *  7. gs:ptr[] are written with checked pointers only, and what is read back from one that was not written in this
 *     block is none.
 *  8. A locked operand (LOCK, XCHG) of several bytes is at r14, and the check that it lies in one cache line precedes
 *     it; but for CMPXCHG16B, which faults where it is not aligned.
 *  9. A bit offset in a register (BT and its like) is in rcx, and pext has bounded it to the operand.
 * 10. In a loop, an operand at r14 and a register that moves (translate_loop.c) lies in the page that was checked: the
 *     register is followed, constant by constant; rcx counts the rounds, each of which may move it by so much, and was
 *     computed from the room that the check had left in the page, the least of all windows.
 *
 * 11. r15 is the base, what gs:base holds, from the start on, until something else is written to it. Other blocks rely on it:
 *     it is so at each return, call and jump by the table, and at each jump that can be patched to go to one.
 *
 * A place is read again when a way leads to it on which less is known than on those before, until nothing changes.
 *
 * The isolation promise of the dbt engine rests on this file: it is meant to be read in one sitting.
 */
#ifndef VIV_ENGINE_CODE_VERIFY_H
#define VIV_ENGINE_CODE_VERIFY_H

#include "base/util.h"

struct code_verify_env {
	const uint8_t *stubs[9]; /* executable addresses blocks may jump to; NULL: none */
	const uint8_t *miss[2];	 /* those they may call */
	const uint8_t *calls[24]; /* and these, which check for themselves what they access; NULL: none */
	const uint8_t *code, *exec; /* the block: its writable view, and the address that it will run at */
	const uint8_t *cold_code, *cold_exec; /* the same of its second part; it may be anywhere */
	size_t cold_len;
	size_t near_entry; /* offset at which other blocks enter it, besides 0 */
	uint32_t off_base, base; /* the word that holds r15's value, and how far that is into struct dbt_cpu */
	const uint8_t *linked[2]; /* stubs that patched jumps went to */
	uint32_t off_ptr, nptr;	  /* slots for checked pointers */
	uint32_t off_rounds;	  /* rounds of a loop that are left */
	uint32_t off_kept[4]; /* guest registers that live in the state: misses do not touch them */
	uint32_t cpu_bytes;   /* size of struct dbt_cpu */
	uint32_t off_tlb_mask, off_page_mask, off_jc_mask, off_jc_neg, off_jc_code, off_ct_mask, off_ct;
	uint32_t off_line_mask, off_line_size, line_bytes;
	struct {
		uint32_t from, to;
	} writable[2]; /* what blocks may write of the state */
	/* The soft TLB of the block's mode. */
	uint32_t off_rneg, off_wneg, off_xlat;
};

/**
 * code_verify() - check one block before it is linked anywhere.
 * @len: bytes of its first part
 * @why: receives what is wrong and where
 * Returns true when the block is as the rules above demand.
 */
bool code_verify(size_t len, const struct code_verify_env *env, char why[160]);

#endif
