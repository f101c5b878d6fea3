/* SPDX-License-Identifier: Apache-2.0 */
/* See code_verify.h for what is proved. */
#include <Zydis/Zydis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/code_verify.h"

/* Progress of the soft-TLB sequence that makes r14 a pointer. */
enum step {
	ST_NONE,
	ST_INDEX, /* r14 = pext(rcx, tlb_mask) */
	/* where flags may change */
	ST_DIFF,  /* rcx = address - tag */
	ST_CMP,	  /* compared with what the page has room for */
	ST_GUARD, /* ja miss passed: rcx is the offset in the page */
	ST_PAGE,  /* r14 = host address of the page */
	ST_PARTS, /* rcx = its low 16 bits: r14 + rcx is a checked pointer */
	/* where they may not */
	ST_TAG,	   /* r15 = minus the tag */
	ST_HOST,   /* r14 = host address of the page */
	ST_END,	   /* r15 = address - tag + size - 1 */
	ST_OFFSET, /* rcx = low 16 bits of that */
	ST_SUM,	   /* r14 += rcx - (size - 1), not yet guarded */
	ST_TEST,   /* rcx = bits of r15 above the page offset */
	ST_PTR,	   /* r14 is a checked pointer */
};

/* Progress of the check that a locked operand lies in one cache line. */
enum line {
	LN_NONE,
	LN_ADDR,   /* rcx = r14 + line_at */
	LN_OFFSET, /* rcx = the offset of that in its line */
	LN_END,	   /* rcx = the offset of the last of line_size bytes, from the same line's start */
	LN_TEST,   /* rcx = 0 if that lies in the line */
	LN_ONE,	   /* they lie in one line */
};

/* What r14 is bounded to as an index. */
enum table { TABLE_NONE, TABLE_TLB, TABLE_BRANCH, TABLE_PAGES };

#define PTR_SLOTS    8
#define FRAME	     16 /* r15, for a call, or come back from it */
#define NOBODY	     UINT32_MAX
#define MAX_PER_BYTE 64 /* readings, on average: ways that meet again and again */

struct ptr {
	uint16_t size, can_write; /* bytes checked from it on; 0: no checked pointer */
};

/*
 * Rule 10: @reg * @scale + the pointer in the slot is the first of size checked bytes, but for @moved, and stays so while that
 * register moves by up to 1 << shift bytes for each round that is left.  A way to a stub may put the register away in the
 * state, and get it back.
 */
struct window {
	struct ptr p; /* size 0: none */
	uint16_t reg, scale;
	uint16_t shift, is_down; /* how far, and which way */
	int16_t moved;		 /* bytes since the last round was counted */
	uint16_t home, is_away; /* where the register was stored: 1 + offset, 0: nowhere; and has something else now */
};

/* Rule 10: what rcx is on the way to a number of rounds. */
enum rounds {
	RD_NONE,
	RD_ROOM,  /* 4096 - the size that r14 is checked for */
	RD_BYTES, /* how far r14 may move up in its page */
	RD_DOWN,  /* ... down */
	RD_COUNT, /* in units of 1 << shift */
};

/* What is known at a place in the block.  Of 16-bit members only, so that it can be compared as bytes. */
struct known {
	uint16_t step;	/* enum step */
	uint16_t table; /* enum table */
	uint16_t depth; /* words on the host stack: 0, 1, or FRAME */
	uint16_t line, line_at, line_size;
	uint16_t r15_below, rcx_below; /* their values are smaller than that; 0: any */
	struct ptr r14;		       /* of the sequence in progress until step is ST_PTR */
	struct ptr rcx, slot[PTR_SLOTS];
	/* Rule 10. */
	uint16_t rcx_is_offset, r15_is_offset; /* the register is the offset of r14 in its page */
	uint16_t r15_reg, r15_scale;	       /* r15 = reg * scale; 0: no register */
	uint16_t rounds, shift, is_down;       /* enum rounds, of rcx */
	uint16_t r14_reg, r14_scale; /* r14 is a checked pointer less reg * scale; 0: no register */
	uint16_t r14_window;	     /* 1 + the window whose slot r14 was loaded from; 0: none */
	uint16_t rcx_covers, word_covers; /* windows that rcx, gs:rounds are no more rounds than allowed for */
	uint16_t is_compared,
		is_nonzero; /* the instruction before: cmp ecx, gs:rounds; jrcxz that was not taken */
	uint16_t is_base;   /* rule 11: r15 is */
	struct window window[PTR_SLOTS];
};
_Static_assert(sizeof(struct known) == (43 + 9 * PTR_SLOTS) * sizeof(uint16_t), "no padding");

struct place {
	bool is_start; /* an instruction was read here */
	bool is_reached, is_waiting;
	uint32_t next; /* waiting to be read again */
	struct known k;
};

/* The registers that mean something here; a mask of what the instruction writes. */
enum { W_RCX = 1, W_RSP = 2, W_R14 = 4, W_R15 = 8 };

struct ver {
	const struct code_verify_env *env;
	size_t len, pos; /* positions: the first part, then the second one */
	ZydisDecodedInstruction in;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	unsigned written;
	struct known k;
	struct place *at; /* by position */
	size_t read_to;	  /* what lies before was read at least once */
	uint32_t again; /* places to be read again, as less is known there than was assumed; NOBODY: none */
	const char *why;
};

static const uint8_t *exec_at(const struct ver *v, size_t pos)
{
	return pos < v->len ? v->env->exec + pos : v->env->cold_exec + (pos - v->len);
}

/* The position of an executable address, SIZE_MAX outside of the block. */
static size_t pos_of(const struct ver *v, const uint8_t *exec)
{
	uintptr_t hot = (uintptr_t)exec - (uintptr_t)v->env->exec,
		  cold = (uintptr_t)exec - (uintptr_t)v->env->cold_exec;

	return hot < v->len ? hot : cold < v->env->cold_len ? v->len + cold : SIZE_MAX;
}

static bool bad(struct ver *v, const char *why)
{
	v->why = why;
	return false;
}

static bool is_gs_abs(const ZydisDecodedOperand *o, uint32_t off)
{
	return o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.segment == ZYDIS_REGISTER_GS &&
	       o->mem.base == ZYDIS_REGISTER_NONE && o->mem.index == ZYDIS_REGISTER_NONE &&
	       o->mem.disp.value == off;
}

static bool is_gs_indexed(const ZydisDecodedOperand *o, uint32_t off)
{
	return o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.segment == ZYDIS_REGISTER_GS &&
	       o->mem.base == ZYDIS_REGISTER_NONE && o->mem.index == ZYDIS_REGISTER_R14 &&
	       o->mem.scale == 8 && o->mem.disp.value == off;
}

static bool is_reg(const ZydisDecodedOperand *o, ZydisRegister r)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->reg.value == r;
}

/* lea @dst, [@base + @index + disp] */
static bool is_lea(const struct ver *v, ZydisRegister dst, ZydisRegister base, ZydisRegister index)
{
	const ZydisDecodedOperandMem *m = &v->op[1].mem;

	return v->in.mnemonic == ZYDIS_MNEMONIC_LEA && is_reg(&v->op[0], dst) && m->base == base &&
	       m->index == index && (index == ZYDIS_REGISTER_NONE || m->scale == 1);
}

/* Rule 4: one step of the sequence, or ST_NONE. */
static enum step advance(struct ver *v)
{
	const struct code_verify_env *e = v->env;
	ZydisMnemonic m = v->in.mnemonic;

	if (m == ZYDIS_MNEMONIC_PEXT && is_reg(&v->op[0], ZYDIS_REGISTER_R14) &&
	    is_reg(&v->op[1], ZYDIS_REGISTER_RCX) && is_gs_abs(&v->op[2], e->off_tlb_mask))
		return ST_INDEX;
	switch (v->k.step) {
	case ST_INDEX:
		if (!is_gs_indexed(&v->op[1], e->off_rneg) && !is_gs_indexed(&v->op[1], e->off_wneg))
			break;
		v->k.r14.can_write = v->op[1].mem.disp.value == e->off_wneg;
		if (m == ZYDIS_MNEMONIC_ADD && is_reg(&v->op[0], ZYDIS_REGISTER_RCX))
			return ST_DIFF;
		if (m == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_R15))
			return ST_TAG;
		break;
	case ST_DIFF:
		if (m == ZYDIS_MNEMONIC_CMP && is_reg(&v->op[0], ZYDIS_REGISTER_RCX) &&
		    v->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && v->op[1].imm.value.u < 4096) {
			v->k.r14.size = (uint16_t)(4096 - v->op[1].imm.value.u);
			return ST_CMP;
		}
		break;
	case ST_CMP:
		if (m == ZYDIS_MNEMONIC_JNBE)
			return ST_GUARD;
		break;
	case ST_GUARD:
	case ST_TAG:
		if (m == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_R14) &&
		    is_gs_indexed(&v->op[1], e->off_xlat))
			return v->k.step == ST_GUARD ? ST_PAGE : ST_HOST;
		break;
	case ST_PAGE:
		if (m == ZYDIS_MNEMONIC_MOVZX && is_reg(&v->op[0], ZYDIS_REGISTER_ECX) &&
		    is_reg(&v->op[1], ZYDIS_REGISTER_CX))
			return ST_PARTS;
		break;
	case ST_PARTS:
		if (m == ZYDIS_MNEMONIC_ADD && is_reg(&v->op[0], ZYDIS_REGISTER_R14) &&
		    is_reg(&v->op[1], ZYDIS_REGISTER_RCX))
			return ST_PTR;
		break;
	case ST_HOST:
		if (is_lea(v, ZYDIS_REGISTER_R15, ZYDIS_REGISTER_R15, ZYDIS_REGISTER_RCX) &&
		    v->op[1].mem.disp.value >= 0 && v->op[1].mem.disp.value < 4096) {
			v->k.r14.size = (uint16_t)(v->op[1].mem.disp.value + 1);
			return ST_END;
		}
		break;
	case ST_END:
		if (m == ZYDIS_MNEMONIC_MOVZX && is_reg(&v->op[0], ZYDIS_REGISTER_ECX) &&
		    is_reg(&v->op[1], ZYDIS_REGISTER_R15W))
			return ST_OFFSET;
		break;
	case ST_OFFSET:
		if (is_lea(v, ZYDIS_REGISTER_R14, ZYDIS_REGISTER_R14, ZYDIS_REGISTER_RCX) &&
		    v->op[1].mem.disp.value == 1 - (int64_t)v->k.r14.size)
			return ST_SUM;
		break;
	case ST_SUM:
		if (m == ZYDIS_MNEMONIC_PEXT && is_reg(&v->op[0], ZYDIS_REGISTER_RCX) &&
		    is_reg(&v->op[1], ZYDIS_REGISTER_R15) && is_gs_abs(&v->op[2], e->off_page_mask))
			return ST_TEST;
		break;
	default:
		break;
	}
	return ST_NONE;
}

/* Rule 8: one step of the check for a cache line, or LN_NONE. */
static enum line advance_line(struct ver *v)
{
	const struct code_verify_env *e = v->env;
	bool is_pext = v->in.mnemonic == ZYDIS_MNEMONIC_PEXT &&
		       is_reg(&v->op[0], ZYDIS_REGISTER_RCX) && is_reg(&v->op[1], ZYDIS_REGISTER_RCX);
	int64_t disp = v->op[1].mem.disp.value;

	if (is_lea(v, ZYDIS_REGISTER_RCX, ZYDIS_REGISTER_R14, ZYDIS_REGISTER_NONE) &&
	    v->k.step == ST_PTR && disp >= 0 && disp < 4096) {
		v->k.line_at = (uint16_t)disp;
		return LN_ADDR;
	}
	switch (v->k.line) {
	case LN_ADDR:
		return is_pext && is_gs_abs(&v->op[2], e->off_line_mask) ? LN_OFFSET : LN_NONE;
	case LN_OFFSET:
		if (!is_lea(v, ZYDIS_REGISTER_RCX, ZYDIS_REGISTER_RCX, ZYDIS_REGISTER_NONE) ||
		    disp < 0 || disp >= e->line_bytes)
			return LN_NONE;
		v->k.line_size = (uint16_t)(disp + 1);
		return LN_END;
	case LN_END:
		return is_pext && is_gs_abs(&v->op[2], e->off_line_size) ? LN_TEST : LN_NONE;
	case LN_ONE:
		return v->written & W_R14 ? LN_NONE : LN_ONE;
	default:
		return LN_NONE;
	}
}

static bool is_plain_ret(const struct ver *v)
{
	return v->in.mnemonic == ZYDIS_MNEMONIC_RET &&
	       v->in.meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR && v->in.length == 1;
}

static bool forbidden(const struct ver *v)
{
	switch (v->in.meta.category) {
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_STRINGOP:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_RDWRFSGS:
	case ZYDIS_CATEGORY_VTX:
	case ZYDIS_CATEGORY_SGX:
	case ZYDIS_CATEGORY_PKU:
	case ZYDIS_CATEGORY_CET:
	case ZYDIS_CATEGORY_GATHER:
	case ZYDIS_CATEGORY_AVX2GATHER:
	case ZYDIS_CATEGORY_XSAVE:
	case ZYDIS_CATEGORY_XSAVEOPT:
		/* RDTSC reads nothing of the host's but time. */
		return v->in.mnemonic != ZYDIS_MNEMONIC_RDTSC && v->in.mnemonic != ZYDIS_MNEMONIC_XGETBV;
	default:
		break;
	}
	if (v->in.meta.category == ZYDIS_CATEGORY_RET)
		return !is_plain_ret(v);
	switch (v->in.mnemonic) {
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_XBEGIN:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_XGETBV:
	case ZYDIS_MNEMONIC_XSETBV:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_STD:
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI:
		return true;
	default:
		return v->in.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED;
	}
}

static bool is_stub(const struct ver *v, const uint8_t *target)
{
	for (unsigned i = 0; i < ARRAY_SIZE(v->env->stubs); i++)
		if (v->env->stubs[i] && v->env->stubs[i] == target)
			return true;
	return false;
}

static bool is_miss(const struct ver *v, const uint8_t *target)
{
	for (unsigned i = 0; i < ARRAY_SIZE(v->env->miss); i++)
		if (v->env->miss[i] == target)
			return true;
	return false;
}

static bool is_callable(const struct ver *v, const uint8_t *target)
{
	if (is_miss(v, target))
		return true;
	for (unsigned i = 0; i < ARRAY_SIZE(v->env->calls); i++)
		if (v->env->calls[i] && v->env->calls[i] == target)
			return true;
	return false;
}

static void meet_ptr(struct ptr *a, const struct ptr *b)
{
	a->size = MIN(a->size, b->size);
	a->can_write = MIN(a->can_write, b->can_write);
}

static void meet_rounds(struct known *a, const struct known *b)
{
	a->rcx_is_offset &= b->rcx_is_offset;
	a->r15_is_offset &= b->r15_is_offset;
	if (a->r15_reg != b->r15_reg || a->r15_scale != b->r15_scale)
		a->r15_reg = a->r15_scale = 0;
	if (a->rounds != b->rounds || a->shift != b->shift || a->is_down != b->is_down)
		a->rounds = a->shift = a->is_down = 0;
	if (a->r14_reg != b->r14_reg || a->r14_scale != b->r14_scale)
		a->r14_reg = a->r14_scale = 0;
	if (a->r14_window != b->r14_window)
		a->r14_window = 0;
	a->rcx_covers &= b->rcx_covers;
	a->word_covers &= b->word_covers;
	a->is_base &= b->is_base;
	a->is_compared &= b->is_compared;
	a->is_nonzero &= b->is_nonzero;
	for (unsigned i = 0; i < PTR_SLOTS; i++)
		if (memcmp(&a->window[i], &b->window[i], sizeof(a->window[i])) != 0)
			a->window[i] = (struct window){ 0 };
}

/* Rule 6: what holds on both ways to a place.  Returns whether that is less than @a was. */
static bool meet(struct known *a, const struct known *b)
{
	const struct known was = *a;

	if (a->step != b->step)
		a->step = ST_NONE;
	if (a->table != b->table)
		a->table = TABLE_NONE;
	if (a->line != b->line || a->line_at != b->line_at || a->line_size != b->line_size)
		a->line = LN_NONE;
	if (a->r15_below != b->r15_below)
		a->r15_below = 0;
	if (a->rcx_below != b->rcx_below)
		a->rcx_below = 0;
	meet_ptr(&a->r14, &b->r14);
	meet_ptr(&a->rcx, &b->rcx);
	for (unsigned i = 0; i < PTR_SLOTS; i++)
		meet_ptr(&a->slot[i], &b->slot[i]);
	meet_rounds(a, b);
	return memcmp(&was, a, sizeof(was));
}

/* A way with @k known leads to @to.  Where an instruction was read already with more known, it is read again. */
static bool go_to(struct ver *v, size_t to, const struct known *k)
{
	struct place *p = &v->at[to];

	if (to < v->read_to && !p->is_start)
		return bad(v, "jump into an instruction");
	if (!p->is_reached) {
		p->is_reached = true;
		p->k = *k;
		return true;
	}
	if (p->k.depth != k->depth)
		return bad(v, "ways with different host stacks meet");
	if (meet(&p->k, k) && p->is_start && !p->is_waiting) {
		p->is_waiting = true;
		p->next = v->again;
		v->again = (uint32_t)to;
	}
	return true;
}

static bool jump_to(struct ver *v, size_t to)
{
	struct known k = v->k;
	bool is_zero = v->in.mnemonic == ZYDIS_MNEMONIC_JRCXZ;

	/* The guards that are taken when something is zero. */
	if (k.step == ST_TEST)
		k.step = is_zero ? ST_PTR : ST_NONE;
	k.is_nonzero = k.is_compared = 0;
	if (k.line != LN_ONE)
		k.line = is_zero && k.line == LN_TEST ? LN_ONE : LN_NONE;
	return go_to(v, to, &k);
}

#define NO_BASE "way to another block without the base in r15"

static bool is_linked(const struct ver *v, const uint8_t *target)
{
	for (unsigned i = 0; i < ARRAY_SIZE(v->env->linked); i++)
		if (v->env->linked[i] == target)
			return true;
	return false;
}

/* Rule 2, and the indirect form. */
static bool check_branch(struct ver *v)
{
	const ZydisDecodedOperand *o = &v->op[0];

	if (is_plain_ret(v))
		return v->k.depth != 0 ? bad(v, "return with something on the host stack")
		       : v->k.is_base  ? true
				       : bad(v, NO_BASE);
	if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && !v->k.is_base)
		return bad(v, NO_BASE);
	if (o->type == ZYDIS_OPERAND_TYPE_MEMORY)
		return v->in.mnemonic == ZYDIS_MNEMONIC_JMP && is_gs_indexed(o, v->env->off_jc_code)
			       ? true
			       : bad(v, "indirect transfer that is not the branch table's");
	if (o->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !o->imm.is_relative)
		return bad(v, "indirect or far transfer");
	const uint8_t *target = exec_at(v, v->pos) + v->in.length + o->imm.value.s;
	size_t to = pos_of(v, target);

	if (v->in.mnemonic == ZYDIS_MNEMONIC_CALL && is_callable(v, target))
		return v->k.depth == 0 ? true
				       : bad(v, "call of a stub with something on the host stack");
	if (v->in.mnemonic == ZYDIS_MNEMONIC_CALL) {
		if (v->k.depth != FRAME)
			return bad(v, "call that is not to a stub and has pushed nothing");
		if (to <= v->pos || to == SIZE_MAX)
			return bad(v, "call out of the block, or back");
		if (!v->k.is_base)
			return bad(v, NO_BASE);
		v->k = (struct known){ .is_base = true };
		if (!jump_to(v, to))
			return false;
		v->k.depth = FRAME; /* it comes back */
		return true;
	}
	if (v->k.depth != 0)
		return bad(v, "transfer with something on the host stack");
	if (is_stub(v, target))
		return v->k.is_base || !is_linked(v, target) ? true : bad(v, NO_BASE);
	return to == SIZE_MAX ? bad(v, "jump out of the block") : jump_to(v, to);
}

/* The slot that a gs: operand at @off is, or -1. */
static int slot_of(const struct ver *v, uint64_t off)
{
	if (off < v->env->off_ptr || off >= v->env->off_ptr + 8 * v->env->nptr || off % 8)
		return -1;
	return (int)(off - v->env->off_ptr) / 8;
}

/* Rule 10: r14, a checked pointer less a register, goes into @slot; rcx are the rounds. */
static bool note_window(struct ver *v, unsigned slot)
{
	struct known *k = &v->k;

	if (k->rounds != RD_COUNT)
		return bad(v, "window without a number of rounds");
	k->slot[slot] = (struct ptr){ 0 };
	k->window[slot] = (struct window){
		.p = k->r14,
		.reg = k->r14_reg,
		.scale = k->r14_scale,
		.shift = k->shift,
		.is_down = k->is_down,
	};
	/* What was known of this slot's window is so no more; of others rcx says nothing. */
	k->word_covers &= (uint16_t) ~(1u << slot);
	k->rcx_covers = (uint16_t)(1u << slot);
	return true;
}

/* Rule 7: the slots of checked pointers are written with checked pointers only. */
static bool note_slot_write(struct ver *v, uint64_t off, unsigned bytes)
{
	int slot = slot_of(v, off);

	if (off + bytes <= v->env->off_ptr || off >= v->env->off_ptr + 8 * v->env->nptr)
		return true;
	if (slot < 0 || v->in.mnemonic != ZYDIS_MNEMONIC_MOV || !is_reg(&v->op[1], ZYDIS_REGISTER_R14))
		return bad(v, "write to a pointer slot that is no checked pointer");
	if (v->k.r14_reg)
		return note_window(v, (unsigned)slot);
	if (v->k.step != ST_PTR)
		return bad(v, "write to a pointer slot that is no checked pointer");
	v->k.slot[slot] = v->k.r14;
	v->k.window[slot] = (struct window){ 0 };
	return true;
}

/* Rule 3, operands in the vCPU's state. */
static bool check_state(struct ver *v, const ZydisDecodedOperand *o)
{
	const struct code_verify_env *e = v->env;
	const ZydisDecodedOperandMem *m = &o->mem;
	unsigned bytes = o->size / 8;
	uint64_t off = (uint64_t)m->disp.value;
	bool is_write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	if (m->base != ZYDIS_REGISTER_NONE)
		return bad(v, "state operand with a free register");
	if (m->index != ZYDIS_REGISTER_NONE) {
		bool is_tlb = off == e->off_rneg || off == e->off_wneg || off == e->off_xlat;
		bool is_branch = off == e->off_jc_neg || off == e->off_jc_code;

		if (m->index != ZYDIS_REGISTER_R14 || m->scale != 8 || bytes > 8 ||
		    !((is_tlb && v->k.table == TABLE_TLB) || (is_branch && v->k.table == TABLE_BRANCH) ||
		      (off == e->off_ct && v->k.table == TABLE_PAGES)))
			return bad(v, "table read with a free index");
		return is_write ? bad(v, "indexed write to the state") : true;
	}
	if (m->disp.value < 0 || off + bytes > e->cpu_bytes)
		return bad(v, "state operand outside of the vCPU");
	if (!is_write)
		return true;
	for (unsigned i = 0; i < ARRAY_SIZE(e->writable); i++)
		if (off >= e->writable[i].from && off + bytes <= e->writable[i].to)
			return note_slot_write(v, off, bytes);
	return bad(v, "write to state that is not the guest's");
}

/* Rule 8. */
static bool check_locked(struct ver *v, const ZydisDecodedOperand *o)
{
	int64_t at = o->mem.disp.value;
	unsigned bytes = o->size / 8;

	if (bytes == 1 || v->in.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B)
		return true;
	return v->k.line == LN_ONE && o->mem.base == ZYDIS_REGISTER_R14 && at >= v->k.line_at &&
			       at + bytes <= v->k.line_at + v->k.line_size
		       ? true
		       : bad(v, "locked operand that may lie in two cache lines");
}

/* Rule 9: a bit offset in a register moves the address. */
static bool check_bit_offset(struct ver *v, const ZydisDecodedOperand *o)
{
	switch (v->in.mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		break;
	default:
		return true;
	}
	if (v->op[1].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return true;
	return ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, v->op[1].reg.value) ==
				       ZYDIS_REGISTER_RCX &&
			       v->k.rcx_below && v->k.rcx_below <= o->size
		       ? true
		       : bad(v, "bit offset that may leave the operand");
}

/* Rule 10: an operand at r14 and a register that moves. */
static bool check_in_window(struct ver *v, const ZydisDecodedOperand *o)
{
	const ZydisDecodedOperandMem *m = &o->mem;
	const struct window *w = v->k.r14_window ? &v->k.window[v->k.r14_window - 1] : NULL;
	int64_t bytes = o->size / 8;

	if (!w || !w->p.size || w->is_away || m->index != w->reg || m->scale != w->scale)
		return bad(v, "memory operand that was not checked");
	int64_t at = m->disp.value + w->moved;

	if (m->disp.value != (int32_t)m->disp.value || at < 0 || at + bytes > w->p.size)
		return bad(v, "memory operand larger than its check");
	if ((o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !w->p.can_write)
		return bad(v, "write after a read check");
	return check_bit_offset(v, o);
}

/* Rule 3. */
static bool check_memory(struct ver *v, const ZydisDecodedOperand *o)
{
	const ZydisDecodedOperandMem *m = &o->mem;
	unsigned bytes = o->size / 8;

	if (v->in.mnemonic == ZYDIS_MNEMONIC_NOP) /* padding: touches nothing */
		return true;
	if (m->type != ZYDIS_MEMOP_TYPE_MEM)
		return m->type == ZYDIS_MEMOP_TYPE_AGEN ? true : bad(v, "vector-indexed memory operand");
	if (!bytes)
		return bad(v, "memory operand of unknown size");
	if (((v->in.attributes & ZYDIS_ATTRIB_HAS_LOCK) || v->in.mnemonic == ZYDIS_MNEMONIC_XCHG) &&
	    !check_locked(v, o))
		return false;
	if (m->segment == ZYDIS_REGISTER_GS)
		return check_state(v, o);
	if (m->segment == ZYDIS_REGISTER_FS)
		return bad(v, "operand in the host's thread-local storage");
	const bool is_parts = m->index == ZYDIS_REGISTER_RCX && m->scale == 1;

	if (m->base == ZYDIS_REGISTER_R14 && m->index != ZYDIS_REGISTER_NONE && !is_parts)
		return check_in_window(v, o);
	const struct ptr *p =
		m->base == ZYDIS_REGISTER_RCX ? &v->k.rcx
		: m->base != ZYDIS_REGISTER_R14 || v->k.step != (is_parts ? ST_PARTS : ST_PTR)
			? NULL
			: &v->k.r14;

	if (!p || !p->size || (m->index != ZYDIS_REGISTER_NONE && p != &v->k.r14) || m->disp.value < 0)
		return bad(v, "memory operand that was not checked");
	if ((uint64_t)m->disp.value + bytes > p->size)
		return bad(v, "memory operand larger than its check");
	if ((o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !p->can_write)
		return bad(v, "write after a read check");
	return check_bit_offset(v, o);
}

/* Rule 5: the flag sequences push and pop one word. */
static bool check_stack(struct ver *v)
{
	switch (v->in.mnemonic) {
	case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_PUSH: {
		bool is_frame = is_reg(&v->op[0], ZYDIS_REGISTER_R14);

		if (v->in.mnemonic == ZYDIS_MNEMONIC_PUSH && !is_frame &&
		    !is_reg(&v->op[0], ZYDIS_REGISTER_RCX))
			return bad(v, "push of something else than flags");
		if (v->k.depth != 0)
			return bad(v, "host stack too deep");
		v->k.depth = v->in.mnemonic == ZYDIS_MNEMONIC_PUSH && is_frame ? FRAME : 1;
		return true;
	}
	case ZYDIS_MNEMONIC_POPFQ:
		if (v->k.depth != 1)
			return bad(v, "flags that were not pushed");
		v->k.depth = 0;
		return true;
	case ZYDIS_MNEMONIC_POP:
		if (!is_reg(&v->op[0], ZYDIS_REGISTER_R15))
			return bad(v, "pop into another register");
		if (v->k.depth == 0)
			return bad(v, "host stack underflow");
		v->k.depth = 0;
		return true;
	case ZYDIS_MNEMONIC_LEA: /* drop one word */
		if (is_lea(v, ZYDIS_REGISTER_RSP, ZYDIS_REGISTER_RSP, ZYDIS_REGISTER_NONE) &&
		    v->op[1].mem.disp.value == 8 && v->k.depth == 1) {
			v->k.depth = 0;
			return true;
		}
		break;
	default:
		break;
	}
	return bad(v, "write to the host stack pointer");
}

static unsigned written_regs(const struct ver *v)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < v->in.operand_count; i++) {
		const ZydisDecodedOperand *o = &v->op[i];

		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		switch (ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o->reg.value)) {
		case ZYDIS_REGISTER_RCX:
			mask |= W_RCX;
			break;
		case ZYDIS_REGISTER_RSP:
			mask |= W_RSP;
			break;
		case ZYDIS_REGISTER_R14:
			mask |= W_R14;
			break;
		case ZYDIS_REGISTER_R15:
			mask |= W_R15;
			break;
		default:
			break;
		}
	}
	return mask;
}

/* The slot that the instruction loads r14 from, or -1. */
static int loaded_slot(const struct ver *v)
{
	const ZydisDecodedOperand *from = &v->op[1];

	if (v->in.mnemonic != ZYDIS_MNEMONIC_MOV || !is_reg(&v->op[0], ZYDIS_REGISTER_R14) ||
	    from->type != ZYDIS_OPERAND_TYPE_MEMORY || from->mem.disp.value < 0 ||
	    !is_gs_abs(from, (uint32_t)from->mem.disp.value))
		return -1;
	return slot_of(v, (uint64_t)from->mem.disp.value);
}

static ZydisRegister whole(ZydisRegister r)
{
	return ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r);
}

/* What the instruction adds to @reg, all of its 64 bits; false: no constant. */
static bool adds_constant(const struct ver *v, ZydisRegister reg, int64_t *by)
{
	const ZydisDecodedOperand *a = &v->op[0], *b = &v->op[1];

	if (!is_reg(a, reg))
		return false;
	switch (v->in.mnemonic) {
	case ZYDIS_MNEMONIC_INC:
		*by = 1;
		return true;
	case ZYDIS_MNEMONIC_DEC:
		*by = -1;
		return true;
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		*by = v->in.mnemonic == ZYDIS_MNEMONIC_ADD ? b->imm.value.s : -b->imm.value.s;
		return b->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	case ZYDIS_MNEMONIC_LEA:
		*by = b->mem.disp.value;
		return b->mem.base == reg && b->mem.index == ZYDIS_REGISTER_NONE;
	default:
		return false;
	}
}

#define MOVED_MAX 4096

/* Is gs:[at] a place that a miss leaves as it is? */
static bool is_kept(const struct code_verify_env *e, int64_t at)
{
	for (unsigned i = 0; i < ARRAY_SIZE(e->off_kept); i++)
		if (e->off_kept[i] == at)
			return at < UINT16_MAX;
	return false;
}

/* Rule 10: a register that goes to the state, or comes back from there. */
static void follow_homes(struct ver *v)
{
	const ZydisDecodedOperand *a = &v->op[0], *b = &v->op[1];
	bool is_mov = v->in.mnemonic == ZYDIS_MNEMONIC_MOV;
	bool is_store = a->type == ZYDIS_OPERAND_TYPE_MEMORY && a->mem.segment == ZYDIS_REGISTER_GS &&
			a->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

	for (unsigned n = 0; n < PTR_SLOTS; n++) {
		struct window *w = &v->k.window[n];

		if (!w->p.size)
			continue;
		if (is_store) {
			int64_t at = a->mem.disp.value;
			bool is_over = w->home && at < w->home - 1 + 8 && at + a->size / 8 > w->home - 1;

			if (is_over && w->is_away)
				*w = (struct window){ 0 };
			else if (is_over)
				w->home = 0;
			if (is_mov && w->p.size && !w->is_away && is_reg(b, (ZydisRegister)w->reg) &&
			    is_gs_abs(a, (uint32_t)at) && is_kept(v->env, at))
				w->home = (uint16_t)(at + 1);
		} else if (is_mov && w->is_away && is_reg(a, (ZydisRegister)w->reg) &&
			   is_gs_abs(b, w->home - 1u)) {
			w->home = w->is_away = 0;
		}
	}
}

/* Rule 10: registers that windows follow. */
static void follow_registers(struct ver *v)
{
	struct known *k = &v->k;

	for (unsigned i = 0; i < v->in.operand_count; i++) {
		const ZydisDecodedOperand *o = &v->op[i];
		int64_t by = 0;

		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		    !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			continue;
		ZydisRegister reg = whole(o->reg.value);
		bool is_known = adds_constant(v, reg, &by) && by >= -MOVED_MAX && by <= MOVED_MAX;

		if (k->r15_reg == reg)
			k->r15_reg = k->r15_scale = 0;
		if (k->r14_reg == reg)
			k->r14_reg = k->r14_scale = 0;
		for (unsigned n = 0; n < PTR_SLOTS; n++) {
			struct window *w = &k->window[n];
			int64_t moved = w->moved + by * w->scale;

			if (!w->p.size || w->is_away || w->reg != reg)
				continue;
			if (w->home && !is_known) {
				w->is_away = 1;
				continue;
			}
			w->home = 0;
			if (is_known && moved >= -MOVED_MAX && moved <= MOVED_MAX)
				w->moved = (int16_t)moved;
			else
				*w = (struct window){ 0 };
		}
	}
}

/* Rule 10: a round is over, and rcx one less than it was. */
static void count_round(struct known *k)
{
	for (unsigned n = 0; n < PTR_SLOTS; n++) {
		struct window *w = &k->window[n];
		int by = w->is_down ? -w->moved : w->moved;

		if (!w->p.size || !w->moved)
			continue;
		if ((k->rcx_covers >> n & 1) && by > 0 && by <= 1 << w->shift)
			w->moved = 0;
		else
			*w = (struct window){ 0 };
	}
	k->word_covers = 0;
}

/* Rule 10: rcx. */
static void learn_rounds(struct ver *v)
{
	struct known *k = &v->k;
	const uint32_t word = v->env->off_rounds;
	const ZydisDecodedOperand *a = &v->op[0], *b = &v->op[1];
	ZydisMnemonic m = v->in.mnemonic;
	bool was_compared = k->is_compared, was_nonzero = k->is_nonzero;
	bool has_imm = b->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	enum rounds next = RD_NONE;

	k->is_compared = m == ZYDIS_MNEMONIC_CMP && is_reg(a, ZYDIS_REGISTER_ECX) && is_gs_abs(b, word);
	k->is_nonzero = m == ZYDIS_MNEMONIC_JRCXZ;
	if (m == ZYDIS_MNEMONIC_MOV && is_gs_abs(a, word) && is_reg(b, ZYDIS_REGISTER_RCX))
		k->word_covers = k->rcx_covers;
	else if (a->type == ZYDIS_OPERAND_TYPE_MEMORY && a->mem.segment == ZYDIS_REGISTER_GS &&
		 (a->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && a->mem.disp.value < word + 8 &&
		 a->mem.disp.value + a->size / 8 > word)
		k->word_covers = 0;
	if (!(v->written & W_RCX))
		return;
	if (m == ZYDIS_MNEMONIC_CMOVNBE && was_compared && is_reg(a, ZYDIS_REGISTER_ECX) &&
	    is_gs_abs(b, word)) {
		k->rcx_covers |= k->word_covers;
	} else if (is_lea(v, ZYDIS_REGISTER_RCX, ZYDIS_REGISTER_RCX, ZYDIS_REGISTER_NONE) &&
		   b->mem.disp.value == -1 && was_nonzero) {
		count_round(k);
	} else if (m == ZYDIS_MNEMONIC_MOV && is_reg(a, ZYDIS_REGISTER_RCX) && is_gs_abs(b, word)) {
		k->rcx_covers = k->word_covers;
	} else {
		k->rcx_covers = 0;
		if (m == ZYDIS_MNEMONIC_MOV && is_reg(a, ZYDIS_REGISTER_ECX) && k->step == ST_PTR &&
		    k->r15_is_offset) {
			if (has_imm && b->imm.value.u == 4096u - k->r14.size)
				next = RD_ROOM;
			else if (is_reg(b, ZYDIS_REGISTER_R15D))
				next = RD_DOWN;
		} else if (m == ZYDIS_MNEMONIC_SUB && k->rounds == RD_ROOM && k->r15_is_offset &&
			   is_reg(a, ZYDIS_REGISTER_ECX) && is_reg(b, ZYDIS_REGISTER_R15D)) {
			next = RD_BYTES;
		} else if (m == ZYDIS_MNEMONIC_SHR && is_reg(a, ZYDIS_REGISTER_ECX) && has_imm &&
			   b->imm.value.u < 12 && (k->rounds == RD_BYTES || k->rounds == RD_DOWN)) {
			k->shift = (uint16_t)b->imm.value.u;
			k->is_down = k->rounds == RD_DOWN;
			next = RD_COUNT;
		}
	}
	k->rounds = next;
	if (next != RD_COUNT)
		k->shift = k->is_down = 0;
}

/* Rule 10: r14 and r15.  @from: what r14 pointed to before */
static void learn_windows(struct ver *v, const struct known *before)
{
	struct known *k = &v->k;
	const ZydisDecodedOperand *a = &v->op[0], *b = &v->op[1];
	ZydisMnemonic m = v->in.mnemonic;
	int slot = loaded_slot(v);

	if (v->written & W_R14) {
		bool is_less = m == ZYDIS_MNEMONIC_SUB && is_reg(a, ZYDIS_REGISTER_R14) &&
			       is_reg(b, ZYDIS_REGISTER_R15) && before->step == ST_PTR &&
			       before->r15_reg;

		k->r14_reg = is_less ? before->r15_reg : 0;
		k->r14_scale = is_less ? before->r15_scale : 0;
		k->r14_window = slot >= 0 && k->window[slot].p.size ? (uint16_t)(slot + 1) : 0;
		/* The sum that completes the check leaves rcx as the guard has it. */
		k->rcx_is_offset = k->step == ST_PTR && before->step == ST_PARTS;
		k->r15_is_offset = 0;
		if (!is_less)
			k->rounds = k->shift = k->is_down = 0;
	}
	if (v->written & W_RCX)
		k->rcx_is_offset = 0;
	if (v->written & W_R15) {
		ZydisRegister reg = ZYDIS_REGISTER_NONE;
		uint16_t scale = 1;

		if (m == ZYDIS_MNEMONIC_MOV && is_reg(a, ZYDIS_REGISTER_R15) &&
		    b->type == ZYDIS_OPERAND_TYPE_REGISTER) {
			reg = b->reg.value;
		} else if (m == ZYDIS_MNEMONIC_LEA && is_reg(a, ZYDIS_REGISTER_R15) &&
			   b->mem.base == ZYDIS_REGISTER_NONE && !b->mem.disp.value) {
			reg = b->mem.index;
			scale = b->mem.scale;
		}
		bool is_guests = ZydisRegisterGetClass(reg) == ZYDIS_REGCLASS_GPR64 &&
				 reg != ZYDIS_REGISTER_RCX && reg != ZYDIS_REGISTER_RSP &&
				 reg != ZYDIS_REGISTER_R14 && reg != ZYDIS_REGISTER_R15;

		k->r15_is_offset = before->rcx_is_offset && m == ZYDIS_MNEMONIC_MOV &&
				   is_reg(a, ZYDIS_REGISTER_R15D) && is_reg(b, ZYDIS_REGISTER_ECX);
		k->r15_reg = is_guests ? (uint16_t)reg : 0;
		k->r15_scale = is_guests ? scale : 0;
	}
}

/* A call of a stub: scratch registers are lost, and but for misses the guest's too. */
static void forget_scratch(struct ver *v)
{
	struct known *k = &v->k;

	if (!is_miss(v, exec_at(v, v->pos) + v->in.length + v->op[0].imm.value.s))
		memset(k->window, 0, sizeof(k->window));
	k->rcx_is_offset = k->r15_is_offset = k->r15_reg = k->r15_scale = 0;
	k->r14_reg = k->r14_scale = k->r14_window = 0;
	k->rounds = k->shift = k->is_down = 0;
	k->rcx_covers = 0;
}

/* Rule 11; stubs that come back put it there. */
static void learn_base(struct ver *v, bool is_call)
{
	if (is_call)
		v->k.is_base = true;
	else if (v->written & W_R15)
		v->k.is_base = v->in.mnemonic == ZYDIS_MNEMONIC_MOV &&
			       is_reg(&v->op[0], ZYDIS_REGISTER_R15) &&
			       is_gs_abs(&v->op[1], v->env->off_base);
}

/* Rule 11: operands by the base, seen as those by gs that they are. */
static void resolve_base(struct ver *v)
{
	for (unsigned i = 0; i < v->in.operand_count; i++) {
		ZydisDecodedOperand *o = &v->op[i];

		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type != ZYDIS_MEMOP_TYPE_MEM ||
		    o->mem.base != ZYDIS_REGISTER_R15 || !v->k.is_base ||
		    (o->mem.segment != ZYDIS_REGISTER_DS && o->mem.segment != ZYDIS_REGISTER_NONE))
			continue;
		o->mem.segment = ZYDIS_REGISTER_GS;
		o->mem.base = ZYDIS_REGISTER_NONE;
		o->mem.disp.value += v->env->base;
	}
}

/* What is known of the scratch registers after the instruction. */
static void learn(struct ver *v, enum step next, enum line line)
{
	ZydisMnemonic m = v->in.mnemonic;
	struct known *k = &v->k;
	const struct known before = *k;
	bool is_call = m == ZYDIS_MNEMONIC_CALL;
	int slot = loaded_slot(v);

	if (m == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_RCX) &&
	    is_reg(&v->op[1], ZYDIS_REGISTER_R14) && k->step == ST_PTR)
		k->rcx = k->r14;
	else if (v->written & W_RCX || is_call)
		k->rcx = (struct ptr){ 0 };
	if (v->written & W_RCX || is_call)
		k->rcx_below = m == ZYDIS_MNEMONIC_PEXT && is_reg(&v->op[2], ZYDIS_REGISTER_R15D)
				       ? k->r15_below
				       : 0;
	if (v->written & W_R15 || is_call)
		k->r15_below = m == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_R15D) &&
					       v->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE &&
					       v->op[1].imm.value.u < 64
				       ? (uint16_t)(v->op[1].imm.value.u + 1)
				       : 0;
	if (v->written & W_R14 || is_call)
		k->table = next == ST_INDEX ? TABLE_TLB
			   : m == ZYDIS_MNEMONIC_PEXT && is_gs_abs(&v->op[2], v->env->off_jc_mask)
				   ? TABLE_BRANCH
			   : m == ZYDIS_MNEMONIC_PEXT && is_gs_abs(&v->op[2], v->env->off_ct_mask)
				   ? TABLE_PAGES
				   : TABLE_NONE;
	k->line = is_call ? LN_NONE : line;
	if (next != ST_NONE) {
		k->step = next;
	} else if (slot >= 0 && k->slot[slot].size) {
		k->step = ST_PTR;
		k->r14 = k->slot[slot];
	} else if ((k->step != ST_PTR && k->step != ST_PARTS) || v->written & W_R14 || is_call ||
		   (k->step == ST_PARTS && v->written & W_RCX)) {
		k->step = ST_NONE;
	}
	learn_base(v, is_call);
	learn_rounds(v);
	learn_windows(v, &before);
	follow_registers(v);
	follow_homes(v);
	if (is_call)
		forget_scratch(v);
}

static bool check_one(struct ver *v)
{
	enum step next = advance(v);
	enum line line = advance_line(v);

	if (forbidden(v))
		return bad(v, "instruction that emitted code may not contain");
	if (v->in.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && !check_branch(v))
		return false;
	bool uses_stack =
		v->in.mnemonic == ZYDIS_MNEMONIC_PUSHFQ || v->in.mnemonic == ZYDIS_MNEMONIC_POPFQ ||
		v->in.mnemonic == ZYDIS_MNEMONIC_PUSH || v->in.mnemonic == ZYDIS_MNEMONIC_POP;
	bool is_ret = is_plain_ret(v), is_call = v->in.mnemonic == ZYDIS_MNEMONIC_CALL;

	for (unsigned i = 0; i < v->in.operand_count; i++) {
		const ZydisDecodedOperand *o = &v->op[i];
		bool is_hidden_stack = (uses_stack || is_call || is_ret) &&
				       o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;

		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && !is_hidden_stack && !check_memory(v, o))
			return false;
		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_SEGMENT)
			return bad(v, "write to a segment register");
	}
	if (!is_call && !is_ret && (v->written & W_RSP) && !check_stack(v))
		return false;
	learn(v, next, line);
	if (v->in.mnemonic == ZYDIS_MNEMONIC_JMP || is_ret)
		return true;
	size_t next_pos = v->pos + v->in.length;

	if (next_pos == v->len || next_pos == v->len + v->env->cold_len)
		return bad(v, "end that runs into what follows");
	return go_to(v, next_pos, &v->k);
}

/* The next instruction that nobody has read.  Ways that lead into it would make it another one. */
static bool note_start(struct ver *v)
{
	for (size_t i = v->pos + 1; i < v->pos + v->in.length; i++)
		if (v->at[i].is_reached)
			return bad(v, "jump into an instruction");
	/* Code that no one reaches may rely on nothing but the base. */
	v->at[v->pos].is_start = v->at[v->pos].is_reached = true;
	v->read_to = v->pos + v->in.length;
	return true;
}

static bool verify_all(struct ver *v)
{
	const struct code_verify_env *env = v->env;
	size_t len = v->len + env->cold_len, left = MAX_PER_BYTE * len;
	ZydisDecoder dec;

	ZydisDecoderInit(&dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	/* Other blocks come here with nothing known but the base. */
	v->at[0].is_reached = true;
	if (env->near_entry < v->len)
		v->at[env->near_entry].is_reached = true;
	for (size_t i = 0; i < len; i++)
		v->at[i].k.is_base = true; /* until a way leads there */
	while (v->again != NOBODY || v->read_to < len) {
		struct place *p = &v->at[v->again != NOBODY ? v->again : v->read_to];

		v->pos = (size_t)(p - v->at);
		if (p->is_waiting)
			v->again = p->next;
		p->is_waiting = false;
		v->k = p->k;
		v->why = "bytes that are no instruction";
		const bool is_cold = v->pos >= v->len;

		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(
			    &dec, is_cold ? env->cold_code + (v->pos - v->len) : env->code + v->pos,
			    (is_cold ? len : v->len) - v->pos, &v->in, v->op)))
			return false;
		v->written = written_regs(v);
		resolve_base(v);
		if ((!p->is_start && !note_start(v)) || !check_one(v))
			return false;
		if (!left--)
			return bad(v, "ways that meet too often");
	}
	return true;
}

bool code_verify(size_t len, const struct code_verify_env *env, char why[160])
{
	struct ver *v = calloc(1, sizeof(*v));
	bool is_good = false;

	snprintf(why, 160, "no memory to verify it");
	if (v && (v->at = calloc(len + env->cold_len + 1, sizeof(*v->at)))) {
		v->env = env;
		v->len = len;
		v->again = NOBODY;
		is_good = verify_all(v);
		if (!is_good)
			snprintf(why, 160, "%s (%s at offset %zu of %zu)", v->why,
				 ZydisMnemonicGetString(v->in.mnemonic), v->pos, len);
	}
	if (v)
		free(v->at);
	free(v);
	return is_good;
}
