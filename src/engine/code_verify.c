/* SPDX-License-Identifier: Apache-2.0 */
/* See code_verify.h for what is proved. */
#include <Zydis/Zydis.h>
#include <stdio.h>
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
	ST_SKIP,   /* flag-free form: jrcxz over the jump to the miss */
	ST_PTR,	   /* r14 is a checked pointer */
};

struct ver {
	const struct code_verify_env *env;
	const uint8_t *exec;
	size_t len, pos;
	ZydisDecodedInstruction in;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	enum step step;
	bool is_flag_free;
	bool can_write, rcx_is_ptr;
	bool is_index; /* r14 is bounded to a table */
	unsigned size; /* bytes checked */
	int depth;     /* pushes on the host stack */
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
	switch (v->step) {
	case ST_INDEX:
		if (m != ZYDIS_MNEMONIC_MOV || !is_reg(&v->op[0], ZYDIS_REGISTER_R15))
			break;
		if (is_gs_indexed(&v->op[1], e->off_rneg) || is_gs_indexed(&v->op[1], e->off_wneg)) {
			v->can_write = v->op[1].mem.disp.value == e->off_wneg;
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
			v->is_flag_free = false;
			return ST_DIFF;
		}
		if (is_lea(v, ZYDIS_REGISTER_R15, ZYDIS_REGISTER_R15, ZYDIS_REGISTER_RCX) &&
		    v->op[1].mem.disp.value >= 0 && v->op[1].mem.disp.value < 4096) {
			v->is_flag_free = true;
			v->size = (unsigned)v->op[1].mem.disp.value + 1;
			return ST_DIFF;
		}
		break;
	case ST_DIFF:
		if (v->is_flag_free) {
			if (m == ZYDIS_MNEMONIC_MOVZX && is_reg(&v->op[0], ZYDIS_REGISTER_ECX) &&
			    is_reg(&v->op[1], ZYDIS_REGISTER_CX))
				return ST_OFFSET;
		} else if (m == ZYDIS_MNEMONIC_CMP && is_reg(&v->op[0], ZYDIS_REGISTER_R15) &&
			   v->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && v->op[1].imm.value.u < 4096) {
			v->size = 4096 - (unsigned)v->op[1].imm.value.u;
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
		if (v->is_flag_free &&
		    is_lea(v, ZYDIS_REGISTER_R14, ZYDIS_REGISTER_R14, ZYDIS_REGISTER_RCX) &&
		    v->op[1].mem.disp.value == 0)
			return ST_SUM;
		if (!v->is_flag_free && m == ZYDIS_MNEMONIC_ADD &&
		    is_reg(&v->op[0], ZYDIS_REGISTER_R14) && is_reg(&v->op[1], ZYDIS_REGISTER_RCX))
			return ST_PTR;
		break;
	case ST_SUM:
		if (m == ZYDIS_MNEMONIC_PEXT && is_reg(&v->op[0], ZYDIS_REGISTER_RCX) &&
		    is_reg(&v->op[1], ZYDIS_REGISTER_R15) && is_gs_abs(&v->op[2], e->off_page_mask))
			return ST_TEST;
		break;
	case ST_TEST:
		if (m == ZYDIS_MNEMONIC_JRCXZ && v->op[0].imm.value.s == 5)
			return ST_SKIP;
		break;
	case ST_SKIP:
		if (m == ZYDIS_MNEMONIC_JMP && v->in.length == 5)
			return ST_PTR;
		break;
	default:
		break;
	}
	return ST_NONE;
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
	case ZYDIS_CATEGORY_RET:
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

/* Rule 2, and the indirect form. */
static bool check_branch(struct ver *v)
{
	const ZydisDecodedOperand *o = &v->op[0];

	if (o->type == ZYDIS_OPERAND_TYPE_MEMORY)
		return v->in.mnemonic == ZYDIS_MNEMONIC_JMP && is_gs_indexed(o, v->env->off_jc_code)
			       ? true
			       : bad(v, "indirect transfer that is not the branch table's");
	if (o->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !o->imm.is_relative)
		return bad(v, "indirect or far transfer");
	const uint8_t *target = v->exec + v->pos + v->in.length + o->imm.value.s;

	if (v->in.mnemonic == ZYDIS_MNEMONIC_CALL)
		return target == v->env->miss ? true : bad(v, "call that is not to the miss stub");
	if ((target >= v->exec && target < v->exec + v->len) || is_stub(v, target))
		return v->depth == 0 ? true : bad(v, "transfer with something on the host stack");
	return bad(v, "jump out of the block");
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
		if (!is_plain && !v->is_index)
			return bad(v, "table read with a free index");
		if (!is_plain && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
			return bad(v, "indexed write to the state");
		return true;
	}
	if (m->segment == ZYDIS_REGISTER_FS)
		return bad(v, "operand in the host's thread-local storage");
	bool is_r14 = m->base == ZYDIS_REGISTER_R14 && v->step == ST_PTR;
	bool is_rcx = m->base == ZYDIS_REGISTER_RCX && v->rcx_is_ptr;

	if ((!is_r14 && !is_rcx) || m->index != ZYDIS_REGISTER_NONE || m->disp.value != 0)
		return bad(v, "memory operand that was not checked");
	if (bytes > v->size)
		return bad(v, "memory operand larger than its check");
	if ((o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && !v->can_write)
		return bad(v, "write after a read check");
	return true;
}

/* Rule 5: the flag sequences push and pop one word. */
static bool check_stack(struct ver *v)
{
	switch (v->in.mnemonic) {
	case ZYDIS_MNEMONIC_PUSHFQ:
		v->depth++;
		return true;
	case ZYDIS_MNEMONIC_PUSH:
		if (!is_reg(&v->op[0], ZYDIS_REGISTER_RCX))
			return bad(v, "push of something else than flags");
		v->depth++;
		return v->depth <= 1 ? true : bad(v, "host stack too deep");
	case ZYDIS_MNEMONIC_POPFQ:
		v->depth--;
		return v->depth >= 0 ? true : bad(v, "host stack underflow");
	case ZYDIS_MNEMONIC_POP:
		if (!is_reg(&v->op[0], ZYDIS_REGISTER_R15))
			return bad(v, "pop into another register");
		v->depth--;
		return v->depth >= 0 ? true : bad(v, "host stack underflow");
	case ZYDIS_MNEMONIC_LEA: /* drop one word */
		if (v->op[1].mem.base == ZYDIS_REGISTER_RSP && v->op[1].mem.disp.value == 8 &&
		    v->depth == 1) {
			v->depth--;
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
	bool is_call = v->in.mnemonic == ZYDIS_MNEMONIC_CALL;

	for (unsigned i = 0; i < v->in.operand_count; i++) {
		const ZydisDecodedOperand *o = &v->op[i];
		bool is_hidden_stack =
			(uses_stack || is_call) && o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;

		if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && !is_hidden_stack && !check_memory(v, o))
			return false;
		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) &&
		    ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_SEGMENT)
			return bad(v, "write to a segment register");
	}
	if (!is_call && writes_reg(v, ZYDIS_REGISTER_RSP) && !check_stack(v))
		return false;
	/* What is known of r14 and rcx afterwards. */
	if (writes_reg(v, ZYDIS_REGISTER_R14))
		v->is_index = next == ST_INDEX || (v->in.mnemonic == ZYDIS_MNEMONIC_PEXT &&
						   is_gs_abs(&v->op[2], v->env->off_jc_mask));
	if (v->in.mnemonic == ZYDIS_MNEMONIC_MOV && is_reg(&v->op[0], ZYDIS_REGISTER_RCX) &&
	    is_reg(&v->op[1], ZYDIS_REGISTER_R14))
		v->rcx_is_ptr = v->step == ST_PTR;
	else if (writes_reg(v, ZYDIS_REGISTER_RCX))
		v->rcx_is_ptr = false;
	if (next != ST_NONE)
		v->step = next;
	else if (v->step != ST_PTR || writes_reg(v, ZYDIS_REGISTER_R14))
		v->step = ST_NONE;
	return true;
}

bool code_verify(const uint8_t *code, const uint8_t *exec, size_t len,
		 const struct code_verify_env *env, char why[160])
{
	struct ver v = { .env = env, .exec = exec, .len = len };
	ZydisDecoder dec;

	ZydisDecoderInit(&dec, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	while (v.pos < len) {
		v.why = "bytes that are no instruction";
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&dec, code + v.pos, len - v.pos, &v.in, v.op)) ||
		    !check_one(&v)) {
			snprintf(why, 160, "%s (%s at offset %zu of %zu)", v.why,
				 ZydisMnemonicGetString(v.in.mnemonic), v.pos, len);
			return false;
		}
		v.pos += v.in.length;
	}
	return true;
}
