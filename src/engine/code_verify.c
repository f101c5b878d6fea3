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
	ST_INDEX,  /* r14 = pext(rcx, tlb_mask) */
	ST_TAG,	   /* r15 = minus the tag */
	ST_HOST,   /* r14 = host address of the page */
	ST_DIFF,   /* r15 = rcx - tag (+ size - 1 in the flag-free form) */
	ST_CMP,	   /* compared (flags form) */
	ST_GUARD,  /* ja miss passed (flags form) */
	ST_OFFSET, /* rcx = low 16 bits of the address */
	ST_SUM,	   /* flag-free form: r14 = host + offset, not yet guarded */
	ST_TEST,   /* flag-free form: rcx = bits of r15 above the page offset */
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

/* What is known at a place in the block.  Of 16-bit members only, so that it can be compared as bytes. */
struct known {
	uint16_t step; /* enum step */
	uint16_t is_flag_free;
	uint16_t table; /* enum table */
	uint16_t depth; /* words on the host stack: 0, 1, or FRAME */
	uint16_t line, line_at, line_size;
	uint16_t r15_below, rcx_below; /* their values are smaller than that; 0: any */
	struct ptr r14;		       /* of the sequence in progress until step is ST_PTR */
	struct ptr rcx, slot[PTR_SLOTS];
};
_Static_assert(sizeof(struct known) == 29 * sizeof(uint16_t), "no padding");

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
		if (m != ZYDIS_MNEMONIC_MOV || !is_reg(&v->op[0], ZYDIS_REGISTER_R15))
			break;
		if (is_gs_indexed(&v->op[1], e->off_rneg) || is_gs_indexed(&v->op[1], e->off_wneg)) {
			v->k.r14.can_write = v->op[1].mem.disp.value == e->off_wneg;
			return ST_TAG;
		}
		break;
	case ST_TAG:
		if (m == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_R14) &&
		    is_gs_indexed(&v->op[1], e->off_xlat))
			return ST_HOST;
		break;
	case ST_HOST:
		if (m == ZYDIS_MNEMONIC_ADD && is_reg(&v->op[0], ZYDIS_REGISTER_R15) &&
		    is_reg(&v->op[1], ZYDIS_REGISTER_RCX)) {
			v->k.is_flag_free = false;
			return ST_DIFF;
		}
		if (is_lea(v, ZYDIS_REGISTER_R15, ZYDIS_REGISTER_R15, ZYDIS_REGISTER_RCX) &&
		    v->op[1].mem.disp.value >= 0 && v->op[1].mem.disp.value < 4096) {
			v->k.is_flag_free = true;
			v->k.r14.size = (uint16_t)(v->op[1].mem.disp.value + 1);
			return ST_DIFF;
		}
		break;
	case ST_DIFF:
		if (v->k.is_flag_free) {
			if (m == ZYDIS_MNEMONIC_MOVZX && is_reg(&v->op[0], ZYDIS_REGISTER_ECX) &&
			    is_reg(&v->op[1], ZYDIS_REGISTER_CX))
				return ST_OFFSET;
		} else if (m == ZYDIS_MNEMONIC_CMP && is_reg(&v->op[0], ZYDIS_REGISTER_R15) &&
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
		if (m == ZYDIS_MNEMONIC_MOVZX && is_reg(&v->op[0], ZYDIS_REGISTER_ECX) &&
		    is_reg(&v->op[1], ZYDIS_REGISTER_CX))
			return ST_OFFSET;
		break;
	case ST_OFFSET:
		if (v->k.is_flag_free &&
		    is_lea(v, ZYDIS_REGISTER_R14, ZYDIS_REGISTER_R14, ZYDIS_REGISTER_RCX) &&
		    v->op[1].mem.disp.value == 0)
			return ST_SUM;
		if (!v->k.is_flag_free && m == ZYDIS_MNEMONIC_ADD &&
		    is_reg(&v->op[0], ZYDIS_REGISTER_R14) && is_reg(&v->op[1], ZYDIS_REGISTER_RCX))
			return ST_PTR;
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

static bool is_callable(const struct ver *v, const uint8_t *target)
{
	for (unsigned i = 0; i < ARRAY_SIZE(v->env->miss); i++)
		if (v->env->miss[i] == target)
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

/* Rule 6: what holds on both ways to a place.  Returns whether that is less than @a was. */
static bool meet(struct known *a, const struct known *b)
{
	const struct known was = *a;

	if (a->step != b->step || a->is_flag_free != b->is_flag_free)
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
	if (k.line != LN_ONE)
		k.line = is_zero && k.line == LN_TEST ? LN_ONE : LN_NONE;
	return go_to(v, to, &k);
}

/* Rule 2, and the indirect form. */
static bool check_branch(struct ver *v)
{
	const ZydisDecodedOperand *o = &v->op[0];

	if (is_plain_ret(v))
		return v->k.depth == 0 ? true : bad(v, "return with something on the host stack");
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
		v->k = (struct known){ 0 };
		if (!jump_to(v, to))
			return false;
		v->k.depth = FRAME; /* it comes back */
		return true;
	}
	if (v->k.depth != 0)
		return bad(v, "transfer with something on the host stack");
	if (is_stub(v, target))
		return true;
	return to == SIZE_MAX ? bad(v, "jump out of the block") : jump_to(v, to);
}

/* The slot that a gs: operand at @off is, or -1. */
static int slot_of(const struct ver *v, uint64_t off)
{
	if (off < v->env->off_ptr || off >= v->env->off_ptr + 8 * v->env->nptr || off % 8)
		return -1;
	return (int)(off - v->env->off_ptr) / 8;
}

/* Rule 7: the slots of checked pointers are written with checked pointers only. */
static bool note_slot_write(struct ver *v, uint64_t off, unsigned bytes)
{
	int slot = slot_of(v, off);

	if (off + bytes <= v->env->off_ptr || off >= v->env->off_ptr + 8 * v->env->nptr)
		return true;
	if (slot < 0 || v->in.mnemonic != ZYDIS_MNEMONIC_MOV ||
	    !is_reg(&v->op[1], ZYDIS_REGISTER_R14) || v->k.step != ST_PTR)
		return bad(v, "write to a pointer slot that is no checked pointer");
	v->k.slot[slot] = v->k.r14;
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
	const struct ptr *p = m->base == ZYDIS_REGISTER_R14 && v->k.step == ST_PTR ? &v->k.r14
			      : m->base == ZYDIS_REGISTER_RCX			   ? &v->k.rcx
										   : NULL;

	if (!p || !p->size || m->index != ZYDIS_REGISTER_NONE || m->disp.value < 0)
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
		bool is_frame = is_reg(&v->op[0], ZYDIS_REGISTER_R15);

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

/* What is known of the scratch registers after the instruction. */
static void learn(struct ver *v, enum step next, enum line line)
{
	ZydisMnemonic m = v->in.mnemonic;
	struct known *k = &v->k;
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
	} else if (k->step != ST_PTR || v->written & W_R14 || is_call) {
		k->step = ST_NONE;
	}
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
	/* Code that no one reaches may rely on nothing. */
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
	/* Other blocks come here with nothing known. */
	v->at[0].is_reached = true;
	if (env->near_entry < v->len)
		v->at[env->near_entry].is_reached = true;
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
