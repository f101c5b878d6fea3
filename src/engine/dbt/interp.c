/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interpreter's main path: fetch, decode, check, dispatch, and what happens around an instruction.
 *
 * Order of events in interp_one() (SDM vol. 3 6.9, table 6-2, from the instruction's side):
 *   1. instruction breakpoints (DR0-3; suppressed by RF), then the host's
 *   2. fetch faults, decode faults (#UD, #GP for length), checks (#UD, #NM, #MF, #GP for privilege)
 *   3. the instruction, which completes or raises
 *   4. RIP moves on, RF and the old interrupt shadow end, traps are taken: TF, data breakpoints, task switch;
 *      they wait one instruction after MOV SS and POP SS
 *
 * Decoded instructions are cached by linear address and compared with the bytes in memory every time, so
 * code that was changed by whomever is seen at once.
 */
#include "engine/dbt/emit.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"

/* ---- raising ---- */

static _Noreturn void raise_now(struct dbt_cpu *cpu, unsigned vector, bool has_error, uint32_t err_code)
{
	cpu->raise_vector = (uint8_t)vector;
	cpu->raise_has_error = has_error;
	cpu->raise_error = err_code;
	__builtin_longjmp(cpu->raise_jmp, 1);
}

_Noreturn void dbt_raise(struct dbt_cpu *cpu, unsigned vector)
{
	raise_now(cpu, vector, false, 0);
}

_Noreturn void dbt_raise_err(struct dbt_cpu *cpu, unsigned vector, uint32_t err_code)
{
	raise_now(cpu, vector, true, err_code);
}

_Noreturn void dbt_raise_pf(struct dbt_cpu *cpu, uint64_t va, uint32_t err_code)
{
	cpu->s.cr2 = va;
	raise_now(cpu, EXC_PF, true, err_code);
}

/* ---- registers and addresses ---- */

static bool is_high8(const struct insn *in, unsigned reg, unsigned size)
{
	return size == 1 && reg - 4 < 4 && !in->has_rex && !in->vex && in->desc->attr & INSN_HIGH8_OK;
}

uint64_t gpr_get(const struct dbt_cpu *cpu, const struct insn *in, unsigned reg, unsigned size)
{
	switch (size) {
	case 1:
		if (is_high8(in, reg, size))
			return cpu->s.gpr[reg - 4] >> 8 & 0xff;
		return cpu->s.gpr[reg] & 0xff;
	case 2:
		return cpu->s.gpr[reg] & 0xffff;
	case 4:
		return (uint32_t)cpu->s.gpr[reg];
	default:
		return cpu->s.gpr[reg];
	}
}

void gpr_set(struct dbt_cpu *cpu, const struct insn *in, unsigned reg, unsigned size, uint64_t val)
{
	uint64_t *r = &cpu->s.gpr[reg];

	switch (size) {
	case 1:
		if (is_high8(in, reg, size)) {
			r = &cpu->s.gpr[reg - 4];
			*r = (*r & ~0xff00ULL) | (val & 0xff) << 8;
		} else {
			*r = (*r & ~0xffULL) | (val & 0xff);
		}
		break;
	case 2:
		*r = (*r & ~0xffffULL) | (val & 0xffff);
		break;
	case 4:
		*r = (uint32_t)val;
		break;
	default:
		*r = val;
		break;
	}
}

static uint64_t wrap(uint64_t addr, unsigned size)
{
	return size == 8 ? addr : size == 4 ? (uint32_t)addr : (uint16_t)addr;
}

uint64_t insn_ea(const struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t ea = (uint64_t)in->disp;

	if (in->rip_rel)
		ea += cpu->s.rip + in->len;
	if (in->base != 0xff)
		ea += cpu->s.gpr[in->base];
	if (in->index != 0xff && !(in->desc->attr & INSN_VSIB))
		ea += cpu->s.gpr[in->index] * in->scale;
	if (unlikely(insn_is_bit_string(in))) {
		int64_t off = (int64_t)cpu->s.gpr[in->reg];

		off = in->opsize == 2	? (int16_t)off >> 4
		      : in->opsize == 4 ? (int32_t)off >> 5
					: off >> 6;
		ea += (uint64_t)off * in->opsize;
	}
	return wrap(ea, in->addrsize);
}

/* ---- stack ---- */

static unsigned stack_addr_size(const struct dbt_cpu *cpu)
{
	if (cpu->code_bits == 64)
		return 8;
	return cpu->s.seg[SEG_SS].attr & SEG_ATTR_DB ? 4 : 2;
}

static void set_sp(struct dbt_cpu *cpu, uint64_t sp)
{
	uint64_t *r = &cpu->s.gpr[R_RSP];

	switch (stack_addr_size(cpu)) {
	case 8:
		*r = sp;
		break;
	case 4:
		*r = (uint32_t)sp;
		break;
	default:
		*r = (*r & ~0xffffULL) | (uint16_t)sp;
		break;
	}
}

void stack_push(struct dbt_cpu *cpu, unsigned size, uint64_t val)
{
	uint64_t sp = wrap(cpu->s.gpr[R_RSP] - size, stack_addr_size(cpu));

	mem_write(cpu, SEG_SS, sp, size, val);
	set_sp(cpu, sp);
}

uint64_t stack_peek(struct dbt_cpu *cpu, unsigned size, unsigned byte_off)
{
	return mem_read(cpu, SEG_SS, wrap(cpu->s.gpr[R_RSP] + byte_off, stack_addr_size(cpu)), size);
}

uint64_t stack_pop(struct dbt_cpu *cpu, unsigned size)
{
	uint64_t val = stack_peek(cpu, size, 0);

	set_sp(cpu, cpu->s.gpr[R_RSP] + size);
	return val;
}

/* ---- fetch and decode ---- */

/* The instruction again as it is without its bytes @drop before the opcode; its length stays. */
static enum decode_result decode_without(struct insn *out, const uint8_t *code, unsigned mode, uint8_t drop)
{
	uint8_t bytes[INSN_MAX_LEN];
	unsigned len = out->len, n = 0;
	enum decode_result r;

	for (unsigned i = 0; i < len; i++)
		if (i >= out->opcode_off || code[i] != drop)
			bytes[n++] = code[i];
	r = insn_decode(out, bytes, n, mode);
	out->len = (uint8_t)len;
	return r;
}

enum decode_result interp_decode(const struct dbt_cpu *cpu, struct insn *out, const uint8_t *code,
				 unsigned avail, unsigned mode)
{
	const struct cpu_model *model = &cpu->vm->model;
	enum decode_result r = insn_decode(out, code, avail, mode);

	if (r != DECODE_OK)
		return r;
	/*
	 * Without BMI1 and LZCNT their F3 prefix means nothing: TZCNT is BSF, LZCNT is BSR (SDM vol. 2,
	 * TZCNT; compilers write `rep bsf` and rely on it).
	 */
	if (unlikely(!cpu_has(model, out->desc->feature)) && out->map == MAP_0F &&
	    out->pp == 0xf3 && (out->opcode | 1) == 0xbd)
		return decode_without(out, code, mode, 0xf3);
	/* F3 90 with REX.B: AMD's CPUs exchange r8 and rAX, Intel's PAUSE. */
	if (out->desc->id == I_XCHG && out->opcode == 0x90 && out->rep && !model->is_amd)
		return decode_without(out, code, mode, code[out->opcode_off - 1]);
	return r;
}

/* memcmp() for a few bytes: the host's string instruction takes longer to begin. */
static bool is_equal(const uint8_t *a, const uint8_t *b, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (a[i] != b[i])
			return false;
	return true;
}

/* Is @d, which fits into the @avail bytes at @p, still what is there? */
static bool same_bytes(const struct decoded *d, const uint8_t *p, unsigned avail)
{
	unsigned len = d->in.len;
	uint64_t a, b, k[2];

	if (unlikely(avail < 16))
		return is_equal(d->key, p, len);
	__builtin_memcpy(&a, p, 8);
	__builtin_memcpy(&b, p + 8, 8);
	__builtin_memcpy(k, d->key, 16);
	if (len < 8)
		return !((a ^ k[0]) & ((1ULL << 8 * len) - 1));
	return a == k[0] && !((b ^ k[1]) & ((1ULL << 8 * (len - 8)) - 1));
}

/* @buf holds @n of at most INSN_MAX_LEN bytes at @lin; returns how many there are after fetching more. */
static unsigned fetch_more(struct dbt_cpu *cpu, uint64_t lin, uint8_t *buf, unsigned n, unsigned max)
{
	uint64_t va = lin + n, offset;
	const uint8_t *p;
	unsigned avail;

	if (cpu->code_bits != 64)
		va = (uint32_t)va;
	p = mmu_fetch(cpu, va, &avail, &offset);
	if (!p) {
		/* Code in a device's memory: byte by byte, only what is needed. */
		buf[n] = (uint8_t)mem_read_lin(cpu, va, 1);
		return n + 1;
	}
	avail = MIN(avail, max - n);
	memcpy(buf + n, p, avail);
	return n + avail;
}

/* Is @d, which has more than the @avail bytes at @p, still what is at @lin?  Raises if its second page can't be fetched. */
static bool same_over_pages(struct dbt_cpu *cpu, const struct decoded *d, uint64_t lin,
			    const uint8_t *p, unsigned avail)
{
	unsigned rest = d->in.len - avail;
	uint64_t va = lin + avail, offset;

	if (!is_equal(d->key, p, avail))
		return false;
	if (cpu->code_bits != 64)
		va = (uint32_t)va;
	p = mmu_fetch(cpu, va, &avail, &offset);
	return p && is_equal(d->key + d->in.len - rest, p, rest);
}

static struct decoded *fetch(struct dbt_cpu *cpu, uint64_t lin)
{
	const struct x86_seg *cs = &cpu->s.seg[SEG_CS];
	unsigned mode = cpu->code_bits, max = INSN_MAX_LEN, avail, n;
	struct decoded *d = thunk_decode_slot(cpu, lin);
	uint8_t buf[INSN_MAX_LEN];
	enum decode_result r;
	const uint8_t *p;
	uint64_t offset;

	if (mode != 64) {
		if (cpu->s.rip > cs->limit)
			dbt_raise_err(cpu, EXC_GP, 0);
		max = (unsigned)MIN(cs->limit - cpu->s.rip + 1, (uint64_t)INSN_MAX_LEN);
	} else if ((uint64_t)((int64_t)cpu->s.rip >> 47) + 1 > 1) {
		dbt_raise_err(cpu, EXC_GP, 0);
	}
	p = mmu_fetch(cpu, lin, &avail, &offset);
	if (likely(p && d->key[15] == mode && d->in.len <= max) &&
	    (likely(d->in.len <= avail) ? same_bytes(d, p, avail) : same_over_pages(cpu, d, lin, p, avail)))
		return d;

	/* The slot is nobody's until it is whole: the fetch of a second page may raise. */
	d->key[15] = 0;
	n = 0;
	for (;;) {
		n = fetch_more(cpu, lin, buf, n, max);
		r = interp_decode(cpu, &d->in, buf, n, mode);
		if (r != DECODE_MORE || n >= max)
			break;
	}
	d->generation = 0;
	if (r == DECODE_UD)
		dbt_raise(cpu, EXC_UD);
	if (r != DECODE_OK) /* too long, or beyond the segment's limit */
		dbt_raise_err(cpu, EXC_GP, 0);
	memset(d->key, 0, sizeof(d->key));
	memcpy(d->key, buf, d->in.len);
	d->key[15] = (uint8_t)mode;
	return d;
}

/* ---- checks ---- */

bool fpu_is_error_pending(const struct dbt_cpu *cpu)
{
	uint16_t fsw;

	if (cpu->is_fpu_in_regs) {
		__asm__ volatile("fnstsw %0" : "=a"(fsw));
	} else {
		if (!(cpu->s.xsave[512] & 1))
			return false; /* x87 state is initial */
		memcpy(&fsw, cpu->s.xsave + 2, 2);
	}
	return fsw & 0x80; /* ES */
}

/* CVTPI2PS and CVTPI2PD from memory touch no MMX register and so don't mind a pending exception. */
static bool uses_mmx(const struct insn *in)
{
	return in->desc->attr & INSN_MMX && !(in->has_mem && in->map == MAP_0F && in->opcode == 0x2a);
}

void insn_check(struct dbt_cpu *cpu, const struct insn *in)
{
	const struct insn_desc *d = in->desc;
	const struct x86_state *s = &cpu->s;
	uint32_t attr = d->attr;

	if (cpu->xlate) /* tests of the interpreter have no translator */
		cpu->xlate->interp_by_id[d->id]++;
	if (unlikely(!cpu_has(&cpu->vm->model, d->feature)))
		dbt_raise(cpu, EXC_UD);
	if (unlikely((in->vex || attr & INSN_NO_REAL) && (!(s->cr0 & X86_CR0_PE) || s->rflags & X86_FL_VM)))
		dbt_raise(cpu, EXC_UD);
	if (attr & (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX) || d->id == I_FWAIT) {
		if (d->id == I_FWAIT) {
			if ((s->cr0 & (X86_CR0_MP | X86_CR0_TS)) == (X86_CR0_MP | X86_CR0_TS))
				dbt_raise(cpu, EXC_NM);
		} else if (attr & INSN_X87) {
			if (s->cr0 & (X86_CR0_EM | X86_CR0_TS))
				dbt_raise(cpu, EXC_NM);
		}
		if (attr & INSN_AVX && (!(s->cr4 & X86_CR4_OSXSAVE) || (s->xcr0 & 6) != 6))
			dbt_raise(cpu, EXC_UD);
		if (attr & INSN_SSE && !(attr & INSN_AVX) && !(s->cr4 & X86_CR4_OSFXSR))
			dbt_raise(cpu, EXC_UD);
		if (attr & (INSN_SSE | INSN_MMX) && !(attr & INSN_AVX) && s->cr0 & X86_CR0_EM)
			dbt_raise(cpu, EXC_UD);
		if (attr & (INSN_SSE | INSN_MMX | INSN_AVX) && s->cr0 & X86_CR0_TS)
			dbt_raise(cpu, EXC_NM);
		if (((attr & INSN_X87 && !(attr & INSN_X87_NOWAIT)) || uses_mmx(in) || d->id == I_FWAIT) &&
		    fpu_is_error_pending(cpu))
			dbt_raise(cpu, EXC_MF);
	}
	if (attr & INSN_CPL0 && cpu->cpl)
		dbt_raise_err(cpu, EXC_GP, 0);
}

/* ---- debug ---- */

enum { DR6_BS = 1 << 14, DR6_ONES = 0xffff0ff0, DR7_GD = 1 << 13 };

static _Noreturn void raise_db(struct dbt_cpu *cpu, uint64_t bits)
{
	cpu->s.dr6 = (cpu->s.dr6 & ~0xfULL) | DR6_ONES | bits;
	cpu->s.dr7 &= ~(uint64_t)DR7_GD;
	cpu->dr6_pending = 0;
	dbt_raise(cpu, EXC_DB);
}

/* Enabled instruction breakpoints at @lin, as DR6 bits. */
static unsigned code_breakpoints(const struct dbt_cpu *cpu, uint64_t lin)
{
	unsigned hits = 0;

	for (unsigned i = 0; i < 4; i++)
		if (cpu->s.dr7 >> (2 * i) & 3 && !(cpu->s.dr7 >> (16 + 4 * i) & 3) && cpu->s.dr[i] == lin)
			hits |= 1u << i;
	return hits;
}

static bool is_host_breakpoint(const struct dbt_cpu *cpu, uint64_t lin)
{
	for (unsigned i = 0; i < cpu->debug.nbreak; i++)
		if (cpu->debug.bp[i].kind == 0 && cpu->debug.bp[i].addr == lin)
			return true;
	return false;
}

/* ---- the instruction ---- */

/* @d: the decode cache's entry of @in, if it has one. */
static inline __attribute__((always_inline)) void execute(struct dbt_cpu *cpu,
							  const struct insn *in, struct decoded *d)
{
	struct x86_state *s = &cpu->s;
	bool tf = s->rflags & X86_FL_TF;
	insn_handler handler;

	cpu->next_rip = s->rip + in->len;
	if (cpu->code_bits != 64)
		cpu->next_rip = (uint32_t)cpu->next_rip;
	cpu->is_rf_cleared = true;
	cpu->no_step_trap = cpu->is_partial = false;
	insn_check(cpu, in);

	switch (in->desc->kind) {
	case INSN_NATIVE:
		if (d)
			native_exec_cached(cpu, d);
		else
			native_exec(cpu, in);
		break;
	case INSN_HAND:
		handler = interp_user_handlers[in->desc->id];
		if (!handler)
			dbt_raise(cpu, EXC_UD);
		handler(cpu, in);
		break;
	default:
		handler = interp_sys_handlers[in->desc->id];
		if (!handler)
			dbt_raise(cpu, EXC_UD);
		handler(cpu, in);
		break;
	}

	s->rip = cpu->next_rip;
	cpu->insn_count++;
	cpu->left -= !cpu->is_partial;
	if (cpu->is_rf_cleared)
		s->rflags &= ~(uint64_t)X86_FL_RF;
	if (unlikely(tf) && !cpu->no_step_trap)
		cpu->dr6_pending |= DR6_BS;
	if (unlikely(cpu->dr6_pending) && s->interrupt_shadow != 2)
		raise_db(cpu, cpu->dr6_pending);
}

static __attribute__((noinline)) void step(struct dbt_cpu *cpu)
{
	struct x86_state *s = &cpu->s;
	struct decoded *d;
	uint64_t lin = s->rip;

	if (cpu->code_bits != 64)
		lin = (uint32_t)(lin + s->seg[SEG_CS].base);
	/* Intel holds instruction breakpoints off after MOV SS, AMD does not. */
	if (unlikely(s->dr7 & 0xff) && !(s->rflags & X86_FL_RF) &&
	    (s->interrupt_shadow != 2 || cpu->vm->model.is_amd)) {
		unsigned hits = code_breakpoints(cpu, lin);

		if (hits)
			raise_db(cpu, hits);
	}
	if (unlikely(cpu->debug.nbreak) && is_host_breakpoint(cpu, lin)) {
		cpu->is_debug_hit = true;
		return;
	}

	s->interrupt_shadow = 0;
	d = fetch(cpu, lin);
	execute(cpu, &d->in, d);
}

void interp_one(struct dbt_cpu *cpu)
{
	if (__builtin_setjmp(cpu->raise_jmp)) {
		cpu->dr6_pending = 0;
		exc_deliver_raised(cpu);
	} else {
		step(cpu);
	}
	if (unlikely(cpu->debug.single_step))
		cpu->is_debug_hit = true;
}

/* Apart from the setjmp, so that what is inlined there is kept in no register over it. */
static __attribute__((noinline)) void call(struct dbt_cpu *cpu, const struct insn *in)
{
	execute(cpu, in, NULL);
}

void interp_decoded(struct dbt_cpu *cpu, const struct insn *in)
{
	if (__builtin_setjmp(cpu->raise_jmp)) {
		cpu->dr6_pending = 0;
		exc_deliver_raised(cpu);
	} else {
		call(cpu, in);
		/* A tail call, which clang makes of it, would leave the frame that a raise comes back to. */
		__asm__ volatile("" : : : "memory");
	}
}
