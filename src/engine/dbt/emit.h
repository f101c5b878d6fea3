/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Emitter: writes host instructions into a bounded buffer.
 *
 * Host register roles of emitted code (docs/design/engine): guest rax rdx rbx rbp rsi rdi r8 r12 live in
 * themselves; guest rcx, r13, r14 in r9, r10, r11; guest rsp in r13; guest r9 r10 r11 r15 in memory
 * (the state).  rcx and r14 are scratch; rsp is the host stack; gs base is the struct dbt_cpu, and r15, between
 * instructions and wherever blocks go on in others, is DBT_BASE into it: operands in the state are shorter by it.
 */
#ifndef VIV_DBT_EMIT_H
#define VIV_DBT_EMIT_H

#include "engine/dbt/dbt.h"

/* Host register numbers. */
/* clang-format off */
enum { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14,
       H_R15, H_NONE = 0xff };
/* clang-format on */

#define H_ADDR H_R14 /* checked host pointer of the memory operand */

struct emit {
	uint8_t *p, *start, *end; /* writing past end sets is_full and drops the bytes */
	bool is_full;
	bool used_addr; /* emit_native() took H_ADDR as a scratch register */
	bool keeps_rcx; /* emit_native() fails where it would need rcx */
	/* Of emit_native()'s memory operand, which is at [H_ADDR + index * scale + disp]; scale 0: no index. */
	uint8_t index, scale;
	/* r15 is the base.  What is emitted in a block begins with it so; who takes r15 as a scratch register puts it back. */
	bool has_base;
	bool keeps_base; /* emit_native() fails where it would need r15 */
	/* After the native instruction that ended here rcx holds a guest register that lives in memory; NULL: none. */
	const uint8_t *kept_at;
	uint8_t kept_guest;
	const uint8_t *host; /* the register map: emit_host_reg, or a loop's own (translate_loop.c) */
	intptr_t exec_delta; /* executable address - p (W^X by two mappings); 0 for thunks in tests */
};

static inline void emit_u8(struct emit *e, uint8_t b)
{
	if (unlikely(e->p >= e->end)) {
		e->is_full = true;
		return;
	}
	*e->p++ = b;
}
static inline void emit_u32(struct emit *e, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		emit_u8(e, (uint8_t)(v >> (8 * i)));
}
static inline void emit_u64(struct emit *e, uint64_t v)
{
	for (int i = 0; i < 8; i++)
		emit_u8(e, (uint8_t)(v >> (8 * i)));
}
static inline void emit_bytes(struct emit *e, const uint8_t *b, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		emit_u8(e, b[i]);
}

/* Where a guest register lives: host register, or H_NONE for the four in memory. */
extern const uint8_t emit_host_reg[16];

/* Offset of guest register @r in struct dbt_cpu, for gs: operands. */
#define CPU_OFF(member) ((int32_t)offsetof(struct dbt_cpu, member))
#define CPU_GPR_OFF(r)	((int32_t)(offsetof(struct dbt_cpu, s.gpr) + 8 * (r)))
/* ... of @member of segment register @n. */
#define CPU_SEG_OFF(n, member)                                                                     \
	((int32_t)(offsetof(struct dbt_cpu, s.seg) + (n) * sizeof(struct x86_seg) +                \
		   offsetof(struct x86_seg, member)))

/* r15 is taken, and put back: emit_take_base() returns whether there is anything to put back. */
bool emit_take_base(struct emit *e);
void emit_put_base(struct emit *e, bool was_base);

/* mov, flags untouched.  @size 4 or 8 (4 zero-extends). */
void emit_mov_rr(struct emit *e, unsigned dst, unsigned src, unsigned size);
void emit_mov_ri(struct emit *e, unsigned dst, uint64_t imm);
void emit_load_gs(struct emit *e, unsigned dst, int32_t off, unsigned size); /* dst = gs:[off] */
void emit_store_gs(struct emit *e, int32_t off, unsigned src, unsigned size); /* gs:[off] = src; size 1 2 4 8 */
void emit_store_gs_imm(struct emit *e, int32_t off, int32_t imm, unsigned size);
/* mov dst, gs:[idx * 8 + off]; both forms of state operands are called so, by gs and by r15 */
void emit_load_gs_idx(struct emit *e, unsigned dst, unsigned idx, int32_t off);
/* The same for another instruction with one opcode byte: REX bits (48H: 64 bits), reg. */
void emit_gs_idx(struct emit *e, unsigned rex, uint8_t opcode, unsigned reg, unsigned idx, int32_t off);
/* pext (pdep) dst, src, gs:[off]; hosts with BMI2 only, flags untouched. */
void emit_pext_gs(struct emit *e, unsigned dst, unsigned src, int32_t off, bool is_pdep);
/* lea dst, [base + index * scale + disp]; base or index may be H_NONE; @size 2 (the rest of dst stays), 4 or 8. */
void emit_lea(struct emit *e, unsigned dst, unsigned base, unsigned index, unsigned scale,
	      int32_t disp, unsigned size);
/* One instruction with ModRM memory operand [base + disp], by opcode bytes (prefix/REX computed).
 * @prefix: 66H, F2H, F3H or 0;  @base H_NONE: the state at @disp.  Not for byte registers 4..7. */
void emit_op_mem(struct emit *e, uint8_t prefix, bool rex_w, const uint8_t *opc, unsigned nopc,
		 unsigned reg, unsigned base, int32_t disp);
/* The same with a register in ModRM.rm. */
void emit_op_reg(struct emit *e, uint8_t prefix, bool rex_w, const uint8_t *opc, unsigned nopc,
		 unsigned reg, unsigned rm);

/**
 * emit_guest_get() - host register holding guest @r: its own, or @scratch loaded from memory.
 * emit_guest_put() - write host @src to guest @r (64 bits).
 */
unsigned emit_guest_get(struct emit *e, unsigned r, unsigned scratch);
void emit_guest_put(struct emit *e, unsigned r, unsigned src);

/**
 * emit_native() - an INSN_NATIVE instruction over the register map, flags live on both sides.
 *
 * The memory operand, if any, is at [H_ADDR + @disp] (checked, permitted).  Uses rcx freely, r14 too when
 * there is no memory operand, and r15, which a block gets back.  Loads guest registers kept in memory, stores those it changed; handles
 * implicit rcx (shift counts), AH..BH, 16- and 32-bit code (re-encoded for 64-bit mode), LOCK.
 * Returns false when this form has no native encoding (the caller interprets it), or none without rcx (struct emit,
 * keeps_rcx); what was emitted then is to be dropped.
 */
bool emit_native(struct emit *e, const struct insn *in, int32_t disp);

/**
 * emit_ea() - linear address of the memory operand into host @dst (rcx, r14 or r15); @tmp is another of them, and not
 * r15 where that is the base.
 * Wrapped to the address size, base of FS and GS added from the state (ES CS SS DS are taken as flat), in
 * 16- and 32-bit code wrapped to 32 bits.  Checks nothing: no limit, no canonical form.  Flags untouched.
 * RIP-relative: uses pc_base + @page_off_next (offset of the next instruction in its page).
 * For BT/BTS/BTR/BTC with a register bit offset the address is that of the addressed unit of
 * memory (mem_size bytes), as insn_ea() does; only on hosts with BMI2 (emit_has_bmi2()).
 */
void emit_ea(struct emit *e, const struct insn *in, unsigned dst, unsigned tmp, uint32_t page_off_next);
/** emit_ea_seg() - the same with the bases of all segments added when @is_flat is false. */
void emit_ea_seg(struct emit *e, const struct insn *in, unsigned dst, unsigned tmp,
		 uint32_t page_off_next, bool is_flat);

/** emit_has_bmi2() - the host has BMI2 (pext, sarx: flag-free bit operations). */
bool emit_has_bmi2(void);

/** insn_is_bit_string() - BT, BTS, BTR, BTC on memory with the bit offset in a register, which moves the address. */
bool insn_is_bit_string(const struct insn *in);

/** insn_is_high8() - byte register @reg of @in's operand @op names AH, CH, DH or BH. */
bool insn_is_high8(const struct insn *in, const struct opnd *op, unsigned reg);

#endif
