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

#define PTR_SLOTS 8
#define FRAME	  16 /* r15, for a call, or come back from it */

/* What is known at a place in the block. */
struct known {
	enum step step;
	bool is_flag_free;
	bool can_write, rcx_is_ptr;
	bool is_index; /* r14 is bounded to a table */
	unsigned size; /* bytes checked */
	int depth;     /* words on the host stack: 0, 1, or FRAME */
	struct {
		unsigned size; /* 0: no checked pointer */
		bool can_write;
	} slot[PTR_SLOTS];
};

#define MAX_FORWARD 4096
#define MAX_AGAIN   4096

struct ver {
	const struct code_verify_env *env;
	const uint8_t *exec;
	size_t len, pos;
	ZydisDecodedInstruction in;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	struct known k;
	bool is_reached; /* the instruction before falls through to this one */
	unsigned again_left;
	size_t again; /* read again from here, where less is known than was assumed; SIZE_MAX: no need */
	struct {      /* jumps to places not read yet */
		size_t pos;
		struct known k;
	} forward[MAX_FORWARD];
	unsigned nforward;
	struct { /* by position: what was known where an instruction starts */
		bool is_start;
		struct known k;
	} * seen;
	const char *why;
};

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
			v->k.can_write = v->op[1].mem.disp.value == e->off_wneg;
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
			v->k.size = (unsigned)v->op[1].mem.disp.value + 1;
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
			v->k.size = 4096 - (unsigned)v->op[1].imm.value.u;
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

/* Is everything that @a relies on so in @b, too? */
static bool is_implied(const struct known *a, const struct known *b)
{
	if (a->step != ST_NONE && (a->step != b->step || a->is_flag_free != b->is_flag_free ||
				   a->can_write > b->can_write || a->size > b->size))
		return false;
	if (a->rcx_is_ptr > b->rcx_is_ptr || a->is_index > b->is_index || a->depth != b->depth)
		return false;
	for (unsigned i = 0; i < PTR_SLOTS; i++)
		if (a->slot[i].size > b->slot[i].size ||
		    (a->slot[i].size && a->slot[i].can_write > b->slot[i].can_write))
			return false;
	return true;
}

/* Rule 6: what holds on both ways to a place. */
static void meet(struct known *a, const struct known *b)
{
	if (a->step != b->step || a->is_flag_free != b->is_flag_free)
		a->step = ST_NONE;
	a->can_write &= b->can_write;
	a->rcx_is_ptr &= b->rcx_is_ptr;
	a->is_index &= b->is_index;
	a->size = MIN(a->size, b->size);
	for (unsigned i = 0; i < PTR_SLOTS; i++) {
		a->slot[i].size = MIN(a->slot[i].size, b->slot[i].size);
		a->slot[i].can_write &= b->slot[i].can_write;
	}
}

static bool note_jump(struct ver *v, size_t to)
{
	if (to <= v->pos) {
		if (!v->seen[to].is_start)
			return bad(v, "jump into an instruction");
		if (is_implied(&v->seen[to].k, &v->k))
			return true;
		if (v->seen[to].k.depth != v->k.depth)
			return bad(v, "ways with different host stacks meet");
		if (v->again == SIZE_MAX || to < v->again)
			v->again = to;
		meet(&v->seen[to].k, &v->k);
		return true;
	}
	if (v->nforward == MAX_FORWARD)
		return bad(v, "too many jumps");
	v->forward[v->nforward].pos = to;
	v->forward[v->nforward].k = v->k;
	/* The flag-free guard: taken when the bits above the page offset are zero. */
	if (v->k.step == ST_TEST)
		v->forward[v->nforward].k.step =
			v->in.mnemonic == ZYDIS_MNEMONIC_JRCXZ ? ST_PTR : ST_NONE;
	v->nforward++;
	return true;
}

/* All ways that lead to the instruction at pos. */
static bool arrive(struct ver *v)
{
	for (unsigned i = 0; i < v->nforward;) {
		if (v->forward[i].pos > v->pos) {
			i++;
			continue;
		}
		if (v->forward[i].pos < v->pos)
			return bad(v, "jump into an instruction");
		if (!v->is_reached)
			v->k = v->forward[i].k;
		else if (v->k.depth != v->forward[i].k.depth)
			return bad(v, "ways with different host stacks meet");
		else
			meet(&v->k, &v->forward[i].k);
		v->is_reached = true;
		v->forward[i] = v->forward[--v->nforward];
	}
	/* What came here when it was read before. */
	if (v->seen[v->pos].is_start) {
		if (v->is_reached && v->k.depth != v->seen[v->pos].k.depth)
			return bad(v, "ways with different host stacks meet");
		if (v->is_reached)
			meet(&v->k, &v->seen[v->pos].k);
		else
			v->k = v->seen[v->pos].k;
		v->is_reached = true;
	}
	/* Other blocks come here, and code that no one reaches may rely on nothing. */
	if (v->pos == v->env->near_entry || !v->is_reached)
		v->k = (struct known){ 0 };
	v->seen[v->pos].is_start = true;
	v->seen[v->pos].k = v->k;
	return true;
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
	const uint8_t *target = v->exec + v->pos + v->in.length + o->imm.value.s;

	if (v->in.mnemonic == ZYDIS_MNEMONIC_CALL &&
	    (target == v->env->miss[0] || target == v->env->miss[1]))
		return v->k.depth == 0 ? true
				       : bad(v, "call of a stub with something on the host stack");
	if (v->in.mnemonic == ZYDIS_MNEMONIC_CALL) {
		if (v->k.depth != FRAME)
			return bad(v, "call that is not to a miss stub and has pushed nothing");
		if (target <= v->exec + v->pos || target >= v->exec + v->len)
			return bad(v, "call out of the block, or back");
		v->k = (struct known){ 0 };
		if (!note_jump(v, (size_t)(target - v->exec)))
			return false;
		v->k.depth = FRAME; /* it comes back */
		return true;
	}
	if (v->k.depth != 0)
		return bad(v, "transfer with something on the host stack");
	if (is_stub(v, target))
		return true;
	if (target < v->exec || target >= v->exec + v->len)
		return bad(v, "jump out of the block");
	return note_jump(v, (size_t)(target - v->exec));
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
	v->k.slot[slot].size = v->k.size;
	v->k.slot[slot].can_write = v->k.can_write;
	return true;
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
	if (m->segment == ZYDIS_REGISTER_GS) {
		bool is_plain = m->index == ZYDIS_REGISTER_NONE;

		if (m->base != ZYDIS_REGISTER_NONE ||
		    (!is_plain && (m->index != ZYDIS_REGISTER_R14 || m->scale != 8)))
			return bad(v, "state operand with a free register");
		if (m->disp.value < 0 || (uint64_t)m->disp.value + bytes > v->env->cpu_bytes)
			return bad(v, "state operand outside of the vCPU");
		if (!is_plain && !v->k.is_index)
			return bad(v, "table read with a free index");
		if (!is_plain && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			return bad(v, "indexed write to the state");
		return is_plain && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			       ? note_slot_write(v, (uint64_t)m->disp.value, bytes)
			       : true;
	}
	if (m->segment == ZYDIS_REGISTER_FS)
		return bad(v, "operand in the host's thread-local storage");
	bool is_r14 = m->base == ZYDIS_REGISTER_R14 && v->k.step == ST_PTR;
	bool is_rcx = m->base == ZYDIS_REGISTER_RCX && v->k.rcx_is_ptr;

	if ((!is_r14 && !is_rcx) || m->index != ZYDIS_REGISTER_NONE || m->disp.value < 0)
		return bad(v, "memory operand that was not checked");
	if ((uint64_t)m->disp.value + bytes > v->k.size)
		return bad(v, "memory operand larger than its check");
	if ((o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !v->k.can_write)
		return bad(v, "write after a read check");
	return true;
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
		if (v->op[1].mem.base == ZYDIS_REGISTER_RSP && v->op[1].mem.disp.value == 8 &&
		    v->k.depth == 1) {
			v->k.depth--;
			return true;
		}
		break;
	default:
		break;
	}
	return bad(v, "write to the host stack pointer");
}

static bool writes_reg(const struct ver *v, ZydisRegister wide)
{
	for (unsigned i = 0; i < v->in.operand_count; i++) {
		const ZydisDecodedOperand *o = &v->op[i];

		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o->reg.value) == wide)
			return true;
	}
	return false;
}

static bool check_one(struct ver *v)
{
	enum step next = advance(v);

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
	if (!is_call && !is_ret && writes_reg(v, ZYDIS_REGISTER_RSP) && !check_stack(v))
		return false;
	/* What is known of r14 and rcx afterwards. */
	if (writes_reg(v, ZYDIS_REGISTER_R14))
		v->k.is_index = next == ST_INDEX || (v->in.mnemonic == ZYDIS_MNEMONIC_PEXT &&
						     is_gs_abs(&v->op[2], v->env->off_jc_mask));
	if (v->in.mnemonic == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_RCX) &&
	    is_reg(&v->op[1], ZYDIS_REGISTER_R14))
		v->k.rcx_is_ptr = v->k.step == ST_PTR;
	else if (writes_reg(v, ZYDIS_REGISTER_RCX))
		v->k.rcx_is_ptr = false;
	int slot = v->in.mnemonic == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_R14) &&
				   v->op[1].type == ZYDIS_OPERAND_TYPE_MEMORY &&
				   v->op[1].mem.disp.value >= 0 &&
				   is_gs_abs(&v->op[1], (uint32_t)v->op[1].mem.disp.value)
			   ? slot_of(v, (uint64_t)v->op[1].mem.disp.value)
			   : -1;

	if (next != ST_NONE) {
		v->k.step = next;
	} else if (slot >= 0 && v->k.slot[slot].size) {
		v->k.step = ST_PTR;
		v->k.size = v->k.slot[slot].size;
		v->k.can_write = v->k.slot[slot].can_write;
	} else if (v->k.step != ST_PTR || writes_reg(v, ZYDIS_REGISTER_R14) || is_call) {
		v->k.step = ST_NONE;
	}
	if (is_call)
		v->k.rcx_is_ptr = v->k.is_index = false;
	v->is_reached = v->in.mnemonic != ZYDIS_MNEMONIC_JMP && !is_ret;
	return true;
}

static bool verify_all(struct ver *v)
{
	ZydisDecoder dec;

	ZydisDecoderInit(&dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	while (v->pos < v->len) {
		v->why = "bytes that are no instruction";
		v->again = SIZE_MAX;
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&dec, v->env->code + v->pos,
							 v->len - v->pos, &v->in, v->op)) ||
		    !arrive(v) || !check_one(v))
			return false;
		if (v->again == SIZE_MAX) {
			v->pos += v->in.length;
		} else if (v->again_left-- > 0) {
			v->pos = v->again;
			v->is_reached = false; /* seen[] has it all */
		} else {
			return bad(v, "too many jumps back");
		}
	}
	if (v->is_reached)
		return bad(v, "end that runs into what follows");
	return v->nforward ? bad(v, "jump into an instruction") : true;
}

bool code_verify(size_t len, const struct code_verify_env *env, char why[160])
{
	struct ver *v = calloc(1, sizeof(*v));
	bool is_good = false;

	snprintf(why, 160, "no memory to verify it");
	if (v && (v->seen = calloc(len + 1, sizeof(*v->seen)))) {
		v->env = env;
		v->exec = env->exec;
		v->len = len;
		v->is_reached = true;
		v->again_left = MAX_AGAIN;
		is_good = verify_all(v);
		if (!is_good)
			snprintf(why, 160, "%s (%s at offset %zu of %zu)", v->why,
				 ZydisMnemonicGetString(v->in.mnemonic), v->pos, len);
	}
	if (v)
		free(v->seen);
	free(v);
	return is_good;
}
