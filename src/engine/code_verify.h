/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verifier of emitted code: reads a block again with a decoder that is not ours (Zydis) and proves
 * that it can touch nothing but the vCPU's state, the host stack as agreed, and checked guest memory.
 *
 * What is proved for every instruction of a block, in order
 *  1. It is none of: system call, software interrupt, privileged or segment-base instruction, port I/O,
 *     far or indirect transfer (but the one branch-table form), string instruction, gather, masked move
 *     through rdi, XSAVE family, return.
 *  2. A direct jump stays in the block, or goes to a listed stub; the only call goes to the miss stub.
 *  3. A memory operand is gs:[disp] inside struct dbt_cpu, or gs:[r14 * 8 + disp] with r14 an index that pext
 *     has just bounded to a table there, or [r14] / [rcx] while that
 *     register holds a checked pointer, no larger than was checked, and written only after a write check.
 *  4. A pointer is checked only by the soft-TLB sequence, in its exact order; any other write to the
 *     register ends it.
 *  5. rsp changes only by push and pop of the flag sequences, in balance.
 *
 * The isolation promise of the dbt engine rests on this file: it is meant to be read in one sitting.
 */
#ifndef VIV_ENGINE_CODE_VERIFY_H
#define VIV_ENGINE_CODE_VERIFY_H

#include "base/util.h"

struct code_verify_env {
	const uint8_t *stubs[6]; /* executable addresses blocks may jump to; NULL: none */
	const uint8_t *miss;	 /* the one they may call */
	uint32_t cpu_bytes;	 /* size of struct dbt_cpu */
	uint32_t off_tlb_mask, off_page_mask, off_jc_mask, off_jc_code;
	/* The soft TLB of the block's mode. */
	uint32_t off_rneg, off_wneg, off_xlat;
};

/**
 * code_verify() - check one block before it is linked anywhere.
 * @code: the writable view; @exec: address the code will run at; @len: bytes
 * @why: receives what is wrong and where
 * Returns true when the block is as the rules above demand.
 */
bool code_verify(const uint8_t *code, const uint8_t *exec, size_t len,
		 const struct code_verify_env *env, char why[160]);

#endif
