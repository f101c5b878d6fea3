/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translation of one element of a string instruction: MOVS, STOS, LODS, CMPS and SCAS without REP, in code of every
 * size.  Compilers that save bytes copy with them, and so does much of what was written for 16 bits.
 *
 * Both operands are checked before anything is written; a source is read before the destination's check, and read again if
 * that sends the instruction to the interpreter.  So it does where DF is set.
 */
#include "engine/dbt/interp_user.h"
#include "engine/dbt/translate.h"

/* rSI or rDI moves on, as the address size says. */
static void emit_move_on(struct ctx *c, const struct insn *in, unsigned host, unsigned size)
{
	emit_lea(&c->e, host, host, H_NONE, 1, (int32_t)size, in->addrsize);
}

/* The interpreter's if DF is set.  Clobbers rcx; flags live on. */
static void emit_df_check(struct ctx *c)
{
	emit_load_gs(&c->e, H_RCX, CPU_OFF(s.rflags), 8);
	tr_emit_pext_gs(c, H_RCX, H_RCX, CPU_OFF(df_mask), false);
	OP(0xe3, 0x05); /* jrcxz +5 */
	tr_emit_jmp_cold(c, COLD_INTERP);
}

/* @opc and @opc - 1: of elements, of bytes; the operand is at r14. */
static void emit_element(struct ctx *c, unsigned size, uint8_t opc, unsigned reg)
{
	uint8_t byte = size == 1 ? (uint8_t)(opc - 1) : opc;

	emit_op_mem(&c->e, size == 2 ? 0x66 : 0, size == 8, &byte, 1, reg, H_R14, c->ptr_disp);
}

static void emit_load_element(struct ctx *c, unsigned size)
{
	static const uint8_t movzx8[] = { 0x0f, 0xb6 };

	if (size == 1)
		emit_op_mem(&c->e, 0, false, movzx8, 2, H_RCX, H_R14, c->ptr_disp);
	else
		tr_emit_load_r14(c, H_RCX, size);
}

enum done tr_string_one(struct ctx *c, const struct insn *in)
{
	unsigned id = in->desc->id, size = in->opcode & 1 ? in->opsize : 1;
	bool has_src = id == I_MOVS || id == I_LODS || id == I_CMPS, has_dst = id != I_LODS;
	bool is_write = id == I_MOVS || id == I_STOS, live = tr_flags_live_before(c);
	unsigned seg = user_mem_seg(in);
	bool is_fs_gs = has_src && (seg == SEG_FS || seg == SEG_GS);

	if (!c->x->has_bmi2 || in->rep || in->repne ||
	    (is_fs_gs && (c->bits == 64 || !c->x->has_segments)))
		return DONE_INTERP;
	emit_df_check(c);
	if (has_src) {
		tr_emit_check(c, EA_SOURCE, 0, size, false, live);
		if (id == I_LODS)
			emit_element(c, size, 0x8b, H_RAX);
		else
			emit_load_element(c, size);
	}
	if (has_src && has_dst) {
		emit_store_gs(&c->e, CPU_OFF(tmp[1]), H_RCX, 8);
		tr_emit_check(c, EA_DESTINATION, 0, size, is_write, live);
		emit_load_gs(&c->e, H_RCX, CPU_OFF(tmp[1]), 8);
	} else if (has_dst) {
		tr_emit_check(c, EA_DESTINATION, 0, size, is_write, live);
	}
	if (has_dst) /* mov [r14], reg or cmp reg, [r14] */
		emit_element(c, size, is_write ? 0x89 : 0x3b, has_src ? H_RCX : H_RAX);
	if (has_src)
		emit_move_on(c, in, H_RSI, size);
	if (has_dst)
		emit_move_on(c, in, H_RDI, size);
	return DONE_NEXT;
}
