/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which arithmetic flags are live where, and flags that are made again.
 *
 * A check of an access is shorter and quicker where no flags are live (translate.c).  Within a block that is known, going
 * backward: live are the flags that are read before they are written again.  At its end all of them are, for what comes after
 * it is not known.  But often the instruction that has set them, the setter, can be executed a second time: a comparison of
 * registers that are as they were, or an addition whose result is there.  Then it is, just before the end, and in between
 * no flags are kept.
 *
 *   cmp rax, rbx            the setter
 *   jne ...                 reads flags: up to here they are the host's
 *   mov rdi, [rsi]          its check destroys them; where it leaves the block it makes them again first
 *   (cmp rax, rbx)
 *   call ...                the end
 *
 * Invariants
 *  1. Between the setter and the end no instruction writes flags, or a register that the setter names, except that
 *     PUSH and POP move the stack pointer by constants.
 *  2. Nothing between them can raise an exception of the host's: no vectors, no division.  What leaves the block there does so by
 *     cold code, which makes the flags first (struct cold, needs_flags).
 *  3. Strict code keeps all flags.
 */
#include "engine/dbt/translate.h"

bool tr_may_keep_flags(const struct insn *in)
{
	switch (in->desc->id) {
	case I_SHL:
	case I_SHR:
	case I_SAR:
	case I_ROL:
	case I_ROR:
	case I_RCL:
	case I_RCR:
	case I_SHLD:
	case I_SHRD:
		return !in->imm_len || !(in->imm & 31);
	case I_BSF:
	case I_BSR:
		return true;
	default:
		return false;
	}
}

bool tr_flags_live_before(const struct ctx *c)
{
	const struct insn *in = &c->in[c->cur];
	unsigned killed = tr_may_keep_flags(in) || !c->x->has_dead_flags ? 0 : in->desc->flags_written;

	return ((c->live_after[c->cur] & ~killed) | in->desc->flags_read) & FL_ARITH;
}

bool tr_flags_live_after(const struct ctx *c)
{
	return c->live_after[c->cur] & FL_ARITH;
}

/* ---- the setter --------------------------------------------------------------------------- */

static unsigned gpr_of(const struct insn *in, const struct opnd *op)
{
	switch (op->kind) {
	case OPND_GPR_RM:
		return in->has_mem ? 0xff : in->rm;
	case OPND_GPR_REG:
		return in->reg;
	case OPND_FIXED_GPR:
		return op->reg;
	default:
		return 0xff;
	}
}

#define IMM_MAX (1 << 30)

/* The registers that making @in's flags again reads; 0: it can't be done. */
static uint16_t needed_by(const struct ctx *c, const struct insn *in)
{
	const struct opnd *to = &in->op[0], *from = &in->op[1];
	unsigned d = gpr_of(in, to), s = gpr_of(in, from);

	if (in->has_mem || in->nops != 2 || d == 0xff || (s == 0xff && from->kind != OPND_IMM) ||
	    insn_is_high8(in, to, d) || (s != 0xff && insn_is_high8(in, from, s)))
		return 0;
	uint16_t both = (uint16_t)(1u << d | (s == 0xff ? 0 : 1u << s));
	unsigned nloaded =
		(emit_host_reg[d] == H_NONE) + (s != 0xff && s != d && emit_host_reg[s] == H_NONE);

	switch (in->desc->id) {
	case I_CMP:
	case I_TEST: /* one scratch register is there */
		return nloaded < 2 ? both : 0;
	case I_AND:
	case I_OR:
	case I_XOR:
		return to->size >= 4 ? (uint16_t)(1u << d) : 0;
	case I_ADD:
	case I_SUB:
		if (to->size < 4)
			return 0;
		if (s == 0xff)
			return in->imm > -IMM_MAX && in->imm < IMM_MAX ? both : 0;
		return d != s && !nloaded ? both : 0;
	default:
		return 0;
	}
}

/* What PUSH and POP add to the stack pointer; false: it is none of these. */
static bool moves_stack(const struct insn *in, int32_t *by)
{
	switch (in->desc->id) {
	case I_PUSH_REG:
	case I_PUSH_RM:
	case I_PUSH_IMM:
		*by = -(int32_t)in->opsize;
		return true;
	case I_POP_REG:
	case I_POP_RM:
		*by = in->opsize;
		return !in->has_mem && !(in->op[0].kind == OPND_GPR_RM && in->rm == R_RSP) &&
		       !(in->desc->id == I_POP_REG && ((in->opcode & 7) | (in->rex_b ? 8u : 0u)) == R_RSP);
	default:
		return false;
	}
}

/* May @in stand between the setter and the end? */
static bool may_be_between(const struct insn *in)
{
	int32_t by;

	if (in->desc->attr & (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX | INSN_VEX_W_GPR | INSN_ENDS_BLOCK))
		return false;
	if (in->desc->kind == INSN_NATIVE)
		return in->desc->id != I_DIV && in->desc->id != I_IDIV;
	switch (in->desc->id) {
	case I_JCC:
	case I_LEA:
	case I_NOP:
		return true;
	default:
		return moves_stack(in, &by);
	}
}

/* Where the block ends: at its last instruction, or behind it; 0: in a way that nothing is gained by. */
static unsigned end_of(const struct ctx *c)
{
	const struct insn *last = &c->in[c->n - 1];

	switch (last->desc->id) {
	case I_JMP_REL:
	case I_JMP_IND:
	case I_CALL_REL:
	case I_CALL_IND:
	case I_RET:
		return c->n - 1;
	default:
		return last->desc->attr & INSN_BRANCH	 ? 0
		       : last->desc->kind == INSN_SYSTEM ? c->n - 1
							 : c->n;
	}
}

static bool has_access(const struct insn *in)
{
	switch (in->desc->id) {
	case I_PUSH_REG:
	case I_PUSH_IMM:
	case I_PUSH_RM:
	case I_POP_REG:
	case I_POP_RM:
	case I_CALL_REL:
	case I_CALL_IND:
	case I_RET:
		return true;
	default:
		return in->mem_access;
	}
}

/* Can @in's flags be made again after the stack pointer, which it names, has moved by a constant? */
static bool may_move(const struct ctx *c, const struct insn *in)
{
	return (in->desc->id == I_ADD || in->desc->id == I_SUB) && gpr_of(in, &in->op[0]) == R_RSP &&
	       gpr_of(in, &in->op[1]) != R_RSP && c->sp_size >= in->op[0].size && c->sp_size != 2;
}

static void plan_again(struct ctx *c)
{
	struct again *g = &c->again;
	uint16_t written = 0;
	bool has_gain = false, is_read = false, is_moved = false;

	g->is_on = g->is_done = false;
	if (!c->n || !c->x->has_dead_flags || !(g->end = end_of(c)) || c->off[c->n] > 4096)
		return;
	if (g->end < c->n && c->in[g->end].desc->kind != INSN_SYSTEM)
		has_gain = has_access(&c->in[g->end]);
	for (unsigned i = g->end; i-- > 0;) {
		const struct insn *in = &c->in[i];
		int32_t by;

		if (in->desc->flags_written) {
			uint16_t needed = needed_by(c, in);

			g->setter = i;
			g->is_on = has_gain && needed && !(needed & written) &&
				   in->desc->flags_written == FL_ARITH &&
				   in->desc->kind == INSN_NATIVE &&
				   !(is_moved && needed >> R_RSP & 1 && !may_move(c, in));
			return;
		}
		if (!may_be_between(in))
			return;
		is_read |= in->desc->flags_read || in->desc->attr & INSN_BRANCH;
		has_gain |= !is_read && has_access(in);
		if (moves_stack(in, &by)) {
			is_moved = true;
			written |= in->gpr_write & (uint16_t) ~(1u << R_RSP);
		} else {
			written |= in->gpr_write;
		}
	}
}

/* What has been added to the stack pointer since the setter, before instruction c->cur. */
static int32_t stack_moved(const struct ctx *c)
{
	int32_t sum = 0, by;

	for (unsigned i = c->again.setter + 1; i < c->cur; i++)
		if (moves_stack(&c->in[i], &by))
			sum += by;
	return sum;
}

/* ADD and SUB: from the value that was there before. */
static void emit_again_sum(struct ctx *c, const struct insn *in)
{
	struct emit *e = &c->e;
	unsigned size = in->op[0].size, d = gpr_of(in, &in->op[0]), s = gpr_of(in, &in->op[1]);
	bool is_add = in->desc->id == I_ADD;
	int32_t moved = d == R_RSP ? stack_moved(c) : 0;

	if (s == 0xff) {
		int32_t imm = (int32_t)in->imm;
		unsigned h = emit_guest_get(e, d, H_RCX);

		emit_lea(e, H_RCX, h, H_NONE, 1, (is_add ? -imm : imm) - moved, size);
		emit_op_reg(e, 0, size == 8, (const uint8_t[]){ 0x81 }, 1, is_add ? 0 : 5, H_RCX);
		emit_u32(e, (uint32_t)imm);
		return;
	}
	emit_lea(e, H_RCX, emit_host_reg[d], H_NONE, 1, -moved, size);
	emit_op_reg(e, 0, size == 8, (const uint8_t[]){ is_add ? 0x2b : 0x03 }, 1, H_RCX,
		    emit_host_reg[s]);
	emit_op_reg(e, 0, size == 8, (const uint8_t[]){ is_add ? 0x03 : 0x2b }, 1, H_RCX,
		    emit_host_reg[s]);
}

void tr_emit_flags(struct ctx *c)
{
	struct emit *e = &c->e;
	const struct insn *in = &c->in[c->again.setter];

	switch (in->desc->id) {
	case I_ADD:
	case I_SUB:
		emit_again_sum(c, in);
		break;
	case I_AND:
	case I_OR:
	case I_XOR: {
		unsigned h = emit_guest_get(e, gpr_of(in, &in->op[0]), H_RCX);

		emit_op_reg(e, 0, in->op[0].size == 8, (const uint8_t[]){ 0x85 }, 1, h, h); /* test */
		break;
	}
	default:
		e->keeps_base = true;
		if (!emit_native(e, in, 0))
			e->is_full = true; /* needed_by() has seen to it that it can */
		e->keeps_base = false;
		break;
	}
}

bool tr_flags_missing(const struct ctx *c)
{
	const struct again *g = &c->again;

	return g->is_on && !g->is_done && c->cur > g->setter && c->cur <= g->end;
}

void tr_end_flags(struct ctx *c)
{
	if (!tr_flags_missing(c))
		return;
	tr_emit_flags(c);
	c->again.is_done = true;
}

bool tr_flags_live_at_end(const struct ctx *c)
{
	return !tr_flags_missing(c) || c->cur != c->again.end;
}

/* ---- liveness ----------------------------------------------------------------------------- */

void tr_find_live(struct ctx *c)
{
	plan_again(c);
	bool is_behind = c->again.is_on && c->again.end == c->n;
	uint16_t live = is_behind ? 0 : FL_ARITH;

	for (unsigned i = c->n; i-- > 0;) {
		const struct insn_desc *d = c->in[i].desc;

		c->live_after[i] = live;
		if (c->again.is_on && i == c->again.end)
			live = 0;
		else if ((d->attr & INSN_BRANCH) || d->kind == INSN_SYSTEM || !c->x->has_dead_flags)
			live = FL_ARITH;
		else if (tr_may_keep_flags(&c->in[i]))
			live |= d->flags_read;
		else
			live = (uint16_t)((live & ~d->flags_written) | d->flags_read);
	}
	c->live_in = live;
}
