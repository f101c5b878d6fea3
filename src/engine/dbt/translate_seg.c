/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translation of accesses by segments that have a base or a limit: all of 16-bit code, real and virtual-8086 mode, stacks
 * with a 16-bit pointer, and FS, GS and what is not flat in 32-bit code.
 *
 * The offset is wrapped to the address size, compared with how far the segment may be used (dbt_cpu.seg_end), and the
 * base added; then comes the soft TLB as for any linear address.  Bases and ends are read when the code runs, so that
 * blocks know nothing of them.  An end of 0 sends to the interpreter what a comparison cannot say: expand-down
 * segments, what may not be read or written, NULL selectors.  So does an access that does not pass; it raises the fault.
 *
 * Below protected mode a load of DS, ES, FS or GS changes base and selector, never the limit, so that the ends stay: it is
 * translated.  SS is the interpreter's, for the shadow that follows, and so is every load in protected mode.
 *
 * Invariants
 *  1. Isolation does not rest on any of this: a linear address is checked by the soft TLB however it came about.
 *  2. One check may stand for several accesses, or one of many bytes, only if none of them wraps: those lie within the
 *     segment and, with 16-bit addresses, within 64 KiB.
 */
#include "engine/dbt/translate.h"

enum { CC_AE = 3 };

bool tr_is_segmented(const struct ctx *c, unsigned seg)
{
	return c->bits != 64 && (!c->is_flat || seg == SEG_FS || seg == SEG_GS);
}

bool tr_is_seg_off(const struct ctx *c, const struct insn *in)
{
	return in->has_mem && !c->x->has_segments && tr_is_segmented(c, in->seg);
}

void tr_seg_base(struct ctx *c, unsigned seg)
{
	bool was_base = emit_take_base(&c->e);

	emit_load_gs(&c->e, H_R15, CPU_SEG_OFF(seg, base), 8);
	emit_lea(&c->e, H_RCX, H_RCX, H_R15, 1, 0, 4);
	emit_put_base(&c->e, was_base);
}

void tr_seg_check(struct ctx *c, unsigned seg, unsigned size, bool is_write, bool is_64k, bool live)
{
	struct emit *e = &c->e;
	int32_t end = CPU_OFF(seg_end[0][0][0]) +
		      (int32_t)(sizeof(c->cpu->seg_end[0]) * seg + 16 * is_write + 8 * is_64k);

	bool was_base = emit_take_base(e);

	if (!live) {
		unsigned last = H_RCX;

		if (size > 1) {
			emit_lea(e, H_R15, H_RCX, H_NONE, 1, (int32_t)size - 1, 8);
			last = H_R15;
		}
		emit_op_mem(e, 0, true, (const uint8_t[]){ 0x3b }, 1, last, H_NONE, end); /* cmp */
		emit_u8(e, 0x0f);
		emit_u8(e, 0x80 | CC_AE);
		emit_u32(e, 0);
		tr_cold_add(c, COLD_INTERP);
		tr_seg_base(c, seg);
		emit_put_base(e, was_base);
		return;
	}
	/* The sign of end - 1 - last. */
	emit_lea(e, H_R14, H_RCX, H_NONE, 1, (int32_t)size - 1, 8);
	emit_mov_rr(e, H_R15, H_RCX, 8);
	emit_load_gs(e, H_RCX, end, 8);
	OP(0x49, 0xf7, 0xd6); /* not r14 */
	emit_lea(e, H_R14, H_R14, H_RCX, 1, 0, 8);
	tr_emit_pext_gs(c, H_RCX, H_R14, CPU_OFF(sign_mask), false);
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_INTERP);
	emit_load_gs(e, H_RCX, CPU_SEG_OFF(seg, base), 8);
	emit_lea(e, H_RCX, H_RCX, H_R15, 1, 0, 4);
	emit_put_base(e, was_base);
}

/* ---- selectors ---------------------------------------------------------------------------- */

/* Is a load of @seg that of a paragraph number? */
static bool is_real_load(const struct ctx *c, unsigned seg)
{
	return c->x->has_segments && !(c->key & (DBT_MODE_PE | DBT_MODE_VM86)) && seg < SEG_COUNT &&
	       seg != SEG_CS && seg != SEG_SS;
}

/* As seg_set_real(); the selector is in rcx, zero-extended. */
static void emit_real_load(struct ctx *c, unsigned seg)
{
	struct emit *e = &c->e;
	int32_t attr = CPU_SEG_OFF(seg, attr);

	emit_store_gs(e, CPU_SEG_OFF(seg, selector), H_RCX, 2);
	emit_lea(e, H_RCX, H_NONE, H_RCX, 8, 0, 8);
	emit_lea(e, H_RCX, H_RCX, H_RCX, 1, 0, 8);
	emit_store_gs(e, CPU_SEG_OFF(seg, base), H_RCX, 8);
	emit_load_gs(e, H_RCX, attr, 2);
	tr_emit_pext_gs(c, H_RCX, H_RCX, CPU_OFF(attr_mask), false);
	tr_emit_pext_gs(c, H_RCX, H_RCX, CPU_OFF(attr_mask), true);
	emit_lea(e, H_RCX, H_RCX, H_NONE, 1, SEG_ATTR_P | SEG_ATTR_S | 3, 8);
	emit_store_gs(e, attr, H_RCX, 2);
}

enum done tr_mov_seg_r(struct ctx *c, const struct insn *in)
{
	unsigned seg = in->reg & 7;

	if (!is_real_load(c, seg))
		return DONE_INTERP;
	if (in->has_mem) {
		tr_emit_check(c, EA_INSN, 0, 2, false, true);
		tr_emit_load_r14(c, H_RCX, 2);
	} else { /* movzx ecx, reg16 */
		emit_op_reg(&c->e, 0, false, (const uint8_t[]){ 0x0f, 0xb7 }, 2, H_RCX,
			    emit_guest_get(&c->e, in->rm, H_RCX));
	}
	emit_real_load(c, seg);
	return DONE_NEXT;
}

enum done tr_push_seg(struct ctx *c, const struct insn *in)
{
	if (c->bits == 64 || !c->x->has_segments)
		return DONE_INTERP;
	tr_emit_check(c, EA_STACK, -(int32_t)in->opsize, in->opsize, true, true);
	emit_load_gs(&c->e, H_RCX, CPU_SEG_OFF(in->op[0].reg, selector), 2);
	tr_emit_store_r14(c, H_RCX, in->opsize);
	tr_emit_sp_add(c, -(int32_t)in->opsize);
	return DONE_NEXT;
}

enum done tr_pop_seg(struct ctx *c, const struct insn *in)
{
	if (!is_real_load(c, in->op[0].reg))
		return DONE_INTERP;
	tr_emit_check(c, EA_STACK, 0, in->opsize, false, true);
	tr_emit_load_r14(c, H_RCX, 2);
	emit_real_load(c, in->op[0].reg);
	tr_emit_sp_add(c, in->opsize);
	return DONE_NEXT;
}

/* LDS, LES, LFS, LGS: the offset, and the selector behind it. */
enum done tr_load_far(struct ctx *c, const struct insn *in)
{
	unsigned id = in->desc->id, seg = id == I_LDS	? SEG_DS
					  : id == I_LES ? SEG_ES
					  : id == I_LFS ? SEG_FS
							: SEG_GS;

	if (!is_real_load(c, seg))
		return DONE_INTERP;
	tr_emit_check(c, EA_INSN, in->opsize, 2, false, true);
	tr_emit_load_r14(c, H_RCX, 2);
	emit_store_gs(&c->e, CPU_OFF(tmp[1]), H_RCX, 8);
	tr_emit_check(c, EA_INSN, 0, in->opsize, false, true);
	tr_emit_get_r14(c, in->reg, in->opsize);
	emit_load_gs(&c->e, H_RCX, CPU_OFF(tmp[1]), 8);
	emit_real_load(c, seg);
	return DONE_NEXT;
}

/* ---- all registers at once ---------------------------------------------------------------- */

/* All eight live in registers of the host, and the check is one of all bytes. */
enum done tr_pusha(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;

	if (!c->x->has_segments)
		return DONE_INTERP;
	tr_emit_check(c, EA_STACK, -8 * (int32_t)size, 8 * size, true, tr_flags_live_before(c));
	for (unsigned r = 0; r < 8; r++) {
		c->ptr_disp = (int32_t)((7 - r) * size);
		tr_emit_store_r14(c, emit_host_reg[r], size);
	}
	tr_emit_sp_add(c, -8 * (int32_t)size);
	return DONE_NEXT;
}

enum done tr_popa(struct ctx *c, const struct insn *in)
{
	unsigned size = in->opsize;

	if (!c->x->has_segments)
		return DONE_INTERP;
	tr_emit_check(c, EA_STACK, 0, 8 * size, false, tr_flags_live_before(c));
	for (unsigned r = 0; r < 8; r++) {
		c->ptr_disp = (int32_t)((7 - r) * size);
		if (r != R_RSP)
			tr_emit_get_r14(c, r, size);
	}
	tr_emit_sp_add(c, 8 * (int32_t)size);
	return DONE_NEXT;
}
