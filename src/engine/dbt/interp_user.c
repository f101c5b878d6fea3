/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User-level instructions written by hand: near control flow, stack, what 64-bit mode lacks, and small ones.
 * Strings are in interp_string.c, FPU state and masked vectors in interp_fpu.c.
 *
 * A handler either completes or raises with nothing changed: checks and memory accesses come first, registers
 * last.  Source of every handler: its page in SDM vol. 2; APM vol. 3 where AMD differs is said.
 */
#include <cpuid.h>
#include <errno.h>
#include <sys/random.h>

#include "engine/dbt/interp_user.h"

#define FLAGS_SYSTEM_CPL0 (X86_FL_IF | X86_FL_IOPL)

/* ---- operands ---- */

/* Number of the general register that @op names (not for memory). */
static unsigned opnd_reg(const struct insn *in, const struct opnd *op)
{
	switch (op->kind) {
	case OPND_GPR_REG:
		return in->reg;
	case OPND_GPR_VVVV:
		return in->vvvv;
	case OPND_GPR_OPCODE:
		return (in->opcode & 7u) | (in->rex_b ? 8u : 0u);
	case OPND_FIXED_GPR:
		return op->reg;
	default:
		return in->rm;
	}
}

/* Register or memory operand in ModRM.rm. */
static uint64_t rm_read(struct dbt_cpu *cpu, const struct insn *in, unsigned size)
{
	return in->has_mem ? mem_read(cpu, in->seg, insn_ea(cpu, in), size)
			   : gpr_get(cpu, in, in->rm, size);
}

/* ---- near control flow ---- */

static void jump(struct dbt_cpu *cpu, const struct insn *in, uint64_t target)
{
	target &= user_mask(in->opsize);
	if (cpu->code_bits == 64 ? (uint64_t)((int64_t)target >> 47) + 1 > 1
				 : target > cpu->s.seg[SEG_CS].limit)
		dbt_raise_err(cpu, EXC_GP, 0);
	cpu->next_rip = target;
}

static bool is_condition(const struct dbt_cpu *cpu, unsigned cc)
{
	uint64_t f = cpu->s.rflags;
	bool r;

	switch (cc >> 1) {
	case 0:
		r = f & FL_OF;
		break;
	case 1:
		r = f & FL_CF;
		break;
	case 2:
		r = f & FL_ZF;
		break;
	case 3:
		r = f & (FL_CF | FL_ZF);
		break;
	case 4:
		r = f & FL_SF;
		break;
	case 5:
		r = f & FL_PF;
		break;
	case 6:
		r = !(f & FL_SF) != !(f & FL_OF);
		break;
	default:
		r = f & FL_ZF || !(f & FL_SF) != !(f & FL_OF);
		break;
	}
	return r != (cc & 1);
}

static void user_jcc(struct dbt_cpu *cpu, const struct insn *in)
{
	if (is_condition(cpu, in->opcode & 15))
		jump(cpu, in, cpu->next_rip + (uint64_t)in->imm);
}

static void user_jmp_rel(struct dbt_cpu *cpu, const struct insn *in)
{
	jump(cpu, in, cpu->next_rip + (uint64_t)in->imm);
}

static void user_jmp_ind(struct dbt_cpu *cpu, const struct insn *in)
{
	jump(cpu, in, rm_read(cpu, in, in->opsize));
}

static void call(struct dbt_cpu *cpu, const struct insn *in, uint64_t target)
{
	uint64_t ret = cpu->next_rip;

	jump(cpu, in, target);
	stack_push(cpu, in->opsize, ret);
}

static void user_call_rel(struct dbt_cpu *cpu, const struct insn *in)
{
	call(cpu, in, cpu->next_rip + (uint64_t)in->imm);
}

static void user_call_ind(struct dbt_cpu *cpu, const struct insn *in)
{
	call(cpu, in, rm_read(cpu, in, in->opsize));
}

static void user_ret(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned extra = in->imm_len ? (uint16_t)in->imm : 0;

	jump(cpu, in, stack_peek(cpu, in->opsize, 0));
	user_reg_write(cpu, R_RSP, user_sp_size(cpu), cpu->s.gpr[R_RSP] + in->opsize + extra);
}

static void user_loop(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t count = (cpu->s.gpr[R_RCX] - 1) & user_mask(in->addrsize);
	bool zf = cpu->s.rflags & FL_ZF;
	unsigned id = in->desc->id;

	/* AMD's CPUs take the condition from a REP prefix, if there is one, and Intel's from the opcode. */
	if (id != I_LOOP && (in->rep || in->repne) && cpu->vm->model.is_amd)
		id = in->rep ? I_LOOPE : I_LOOPNE;
	if (count && (id == I_LOOP || zf == (id == I_LOOPE)))
		jump(cpu, in, cpu->next_rip + (uint64_t)in->imm);
	user_reg_write(cpu, R_RCX, in->addrsize, count);
}

static void user_jcxz(struct dbt_cpu *cpu, const struct insn *in)
{
	if (!(cpu->s.gpr[R_RCX] & user_mask(in->addrsize)))
		jump(cpu, in, cpu->next_rip + (uint64_t)in->imm);
}

/* ---- stack ---- */

static void user_push_reg(struct dbt_cpu *cpu, const struct insn *in)
{
	stack_push(cpu, in->opsize, cpu->s.gpr[opnd_reg(in, &in->op[0])]);
}

static void user_pop_reg(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val = stack_pop(cpu, in->opsize);

	user_reg_write(cpu, opnd_reg(in, &in->op[0]), in->opsize, val);
}

static void user_push_rm(struct dbt_cpu *cpu, const struct insn *in)
{
	stack_push(cpu, in->opsize, rm_read(cpu, in, in->opsize));
}

static void user_pop_rm(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val, ea, old_sp = cpu->s.gpr[R_RSP], new_sp;

	if (!in->has_mem) {
		val = stack_pop(cpu, in->opsize);
		user_reg_write(cpu, in->rm, in->opsize, val);
		return;
	}
	/* An address by rsp is computed after the increment. */
	val = stack_pop(cpu, in->opsize);
	new_sp = cpu->s.gpr[R_RSP];
	ea = insn_ea(cpu, in);
	cpu->s.gpr[R_RSP] = old_sp;
	mem_write(cpu, in->seg, ea, in->opsize, val);
	cpu->s.gpr[R_RSP] = new_sp;
}

static void user_push_imm(struct dbt_cpu *cpu, const struct insn *in)
{
	stack_push(cpu, in->opsize, (uint64_t)in->imm);
}

static void user_pusha(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned sp_size = user_sp_size(cpu), size = in->opsize;
	uint64_t sp = cpu->s.gpr[R_RSP], mask = user_mask(sp_size);

	for (unsigned r = 0; r < 8; r++)
		mem_write(cpu, SEG_SS, (sp - (r + 1) * size) & mask, size, cpu->s.gpr[r]);
	user_reg_write(cpu, R_RSP, sp_size, sp - 8 * size);
}

static void user_popa(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned sp_size = user_sp_size(cpu), size = in->opsize;
	uint64_t val[8];

	for (unsigned i = 0; i < 8; i++)
		val[7 - i] = stack_peek(cpu, size, i * size);
	for (unsigned r = 0; r < 8; r++)
		if (r != R_RSP)
			user_reg_write(cpu, r, size, val[r]);
	user_reg_write(cpu, R_RSP, sp_size, cpu->s.gpr[R_RSP] + 8 * size);
}

static unsigned iopl(const struct dbt_cpu *cpu)
{
	return cpu->s.rflags >> 12 & 3;
}

static bool is_vm86(const struct dbt_cpu *cpu)
{
	return cpu->s.rflags & X86_FL_VM;
}

/* Virtual-8086 mode below IOPL 3: 16-bit PUSHF and POPF work on VIF with CR4.VME, the rest faults. */
static bool is_vme_flags(struct dbt_cpu *cpu, const struct insn *in)
{
	if (!is_vm86(cpu) || iopl(cpu) == 3)
		return false;
	if (!(cpu->s.cr4 & X86_CR4_VME) || in->opsize != 2)
		dbt_raise_err(cpu, EXC_GP, 0);
	return true;
}

static void user_pushf(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val = cpu->s.rflags & ~(uint64_t)(X86_FL_VM | X86_FL_RF);

	if (is_vme_flags(cpu, in)) {
		val &= ~(uint64_t)X86_FL_IF;
		val |= X86_FL_IOPL | (cpu->s.rflags & X86_FL_VIF ? X86_FL_IF : 0);
	}
	stack_push(cpu, in->opsize, val);
}

static void user_popf(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t mask = FL_ARITH | X86_FL_TF | X86_FL_DF | X86_FL_NT | X86_FL_AC | X86_FL_ID,
		 old = cpu->s.rflags;
	uint64_t val = stack_peek(cpu, in->opsize, 0);

	if (is_vme_flags(cpu, in)) {
		if (val & X86_FL_TF || (val & X86_FL_IF && old & X86_FL_VIP))
			dbt_raise_err(cpu, EXC_GP, 0);
		mask |= X86_FL_VIF;
		val = (val & ~(uint64_t)X86_FL_VIF) | (val & X86_FL_IF ? X86_FL_VIF : 0);
	} else {
		if (in->opsize == 2)
			mask &= 0xffff;
		if (cpu->cpl == 0)
			mask |= FLAGS_SYSTEM_CPL0;
		else if (is_vm86(cpu) || cpu->cpl <= iopl(cpu))
			mask |= X86_FL_IF;
	}
	if (in->opsize == 2)
		mask &= 0xffff | X86_FL_VIF;
	cpu->s.rflags = (old & ~mask) | (val & mask) | 2;
	user_reg_write(cpu, R_RSP, user_sp_size(cpu), cpu->s.gpr[R_RSP] + in->opsize);
	if ((old ^ cpu->s.rflags) & X86_FL_AC)
		dbt_mode_changed(cpu);
}

/* A stack pointer @bytes lower; what lies above the stack's address size stays. */
static uint64_t step_down(uint64_t sp, uint64_t bytes, uint64_t mask)
{
	return (sp & ~mask) | ((sp - bytes) & mask);
}

static void user_enter(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned size = in->opsize, sp_size = user_sp_size(cpu), level = (unsigned)in->imm2 & 31;
	uint64_t mask = user_mask(sp_size), sp = cpu->s.gpr[R_RSP], bp = cpu->s.gpr[R_RBP], frame;
	uint64_t alloc = (uint16_t)in->imm;
	struct mem_op probe;

	sp = step_down(sp, size, mask);
	mem_write(cpu, SEG_SS, sp & mask, size, bp);
	frame = sp;
	for (unsigned i = 1; i < level; i++) {
		uint64_t link;

		bp = step_down(bp, size, mask);
		link = mem_read(cpu, SEG_SS, bp & mask, size);
		sp = step_down(sp, size, mask);
		mem_write(cpu, SEG_SS, sp & mask, size, link);
	}
	if (level) {
		sp = step_down(sp, size, mask);
		mem_write(cpu, SEG_SS, sp & mask, size, frame);
	}
	sp = step_down(sp, alloc, mask);
	/* The new top of the stack must be writable, though nothing is written. */
	mem_begin(cpu, &probe, SEG_SS, sp & mask, size, ACC_WRITE, false);
	mem_abort(cpu, &probe);

	user_reg_write(cpu, R_RSP, sp_size, sp);
	user_reg_write(cpu, R_RBP, size,
		       sp_size == 2 ? (cpu->s.gpr[R_RBP] & ~0xffffULL) | (frame & 0xffff) : frame);
}

static void user_leave(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned sp_size = user_sp_size(cpu);
	uint64_t bp = cpu->s.gpr[R_RBP];
	uint64_t val = mem_read(cpu, SEG_SS, bp & user_mask(sp_size), in->opsize);

	user_reg_write(cpu, R_RSP, sp_size, bp + in->opsize);
	user_reg_write(cpu, R_RBP, in->opsize, val);
}

/*
 * ---- decimal adjustment ----
 *
 * The manual leaves many of their flags undefined.  They are set as real CPUs were seen to.  AMD (Zen 3): DAA,
 * DAS and AAD as the addition or subtraction behind them of bytes, AAA and AAS of words.  Intel (Sapphire
 * Rapids): OF is 0 except after AAD, the others are the result's.
 */

static void set_flags(struct dbt_cpu *cpu, uint64_t mask, uint64_t val)
{
	cpu->s.rflags = (cpu->s.rflags & ~mask) | (val & mask);
}

static uint64_t flags_szp(uint64_t v, unsigned size)
{
	v &= user_mask(size);
	return (v >> (8 * size - 1) ? FL_SF : 0) | (v ? 0 : FL_ZF) |
	       (__builtin_parity(v & 0xff) ? 0 : FL_PF);
}

/* Overflow of a + b = r or a - b = r with @size bytes. */
static uint64_t flag_of(uint64_t a, uint64_t b, uint64_t r, bool is_sub, unsigned size)
{
	uint64_t v = is_sub ? (a ^ b) & (a ^ r) : (a ^ r) & (b ^ r);

	return v >> (8 * size - 1) & 1 ? FL_OF : 0;
}

static void user_daa(struct dbt_cpu *cpu, const struct insn *in)
{
	uint8_t al = (uint8_t)cpu->s.gpr[R_RAX], adjust = 0, r;
	bool is_sub = in->desc->id == I_DAS, cf = cpu->s.rflags & FL_CF, af = cpu->s.rflags & FL_AF,
	     carry = false;

	if ((al & 15) > 9 || af) {
		adjust = 6;
		carry = cf || (is_sub ? al < 6 : al > 0xf9);
		af = true;
	}
	if (al > 0x99 || cf) {
		adjust += 0x60;
		carry = true;
	}
	r = is_sub ? (uint8_t)(al - adjust) : (uint8_t)(al + adjust);
	user_reg_write(cpu, R_RAX, 1, r);
	set_flags(cpu, FL_ARITH,
		  (carry ? FL_CF : 0) | (af ? FL_AF : 0) | flags_szp(r, 1) |
			  (cpu->vm->model.is_amd ? flag_of(al, adjust, r, is_sub, 1) : 0));
}

static void user_aaa(struct dbt_cpu *cpu, const struct insn *in)
{
	uint16_t ax = (uint16_t)cpu->s.gpr[R_RAX], r = ax, adjust = 0;
	bool is_sub = in->desc->id == I_AAS;

	if ((ax & 15) > 9 || cpu->s.rflags & FL_AF) {
		adjust = 0x106;
		r = is_sub ? (uint16_t)(ax - adjust) : (uint16_t)(ax + adjust);
	}
	user_reg_write(cpu, R_RAX, 2, r & 0xff0f);
	set_flags(cpu, FL_ARITH,
		  (adjust ? FL_CF | FL_AF : 0) |
			  (cpu->vm->model.is_amd ? flags_szp(r, 2) | flag_of(ax, adjust, r, is_sub, 2)
						 : flags_szp(r & 0xf, 1)));
}

static void user_aam(struct dbt_cpu *cpu, const struct insn *in)
{
	uint8_t al = (uint8_t)cpu->s.gpr[R_RAX], base = (uint8_t)in->imm;

	if (!base)
		dbt_raise(cpu, EXC_DE);
	user_reg_write(cpu, R_RAX, 2, (uint64_t)((al / base) << 8 | al % base));
	set_flags(cpu, FL_ARITH, flags_szp(al % base, 1));
}

static void user_aad(struct dbt_cpu *cpu, const struct insn *in)
{
	uint8_t al = (uint8_t)cpu->s.gpr[R_RAX],
		add = (uint8_t)((cpu->s.gpr[R_RAX] >> 8) * (uint64_t)in->imm);
	uint8_t r = (uint8_t)(al + add);

	user_reg_write(cpu, R_RAX, 2, r);
	set_flags(cpu, FL_ARITH,
		  (r < al ? FL_CF : 0) | ((al ^ add ^ r) & FL_AF) | flags_szp(r, 1) |
			  flag_of(al, add, r, false, 1));
}

static void user_salc(struct dbt_cpu *cpu, const struct insn *in)
{
	user_reg_write(cpu, R_RAX, 1, cpu->s.rflags & FL_CF ? 0xff : 0);
}

static void user_bound(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t ea = insn_ea(cpu, in), sign = 1ULL << (8 * in->opsize - 1);
	/* Signed comparison of unsigned numbers: flip the sign bits. */
	uint64_t index = gpr_get(cpu, in, in->reg, in->opsize) ^ sign;
	uint64_t lower = mem_read(cpu, in->seg, ea, in->opsize) ^ sign, upper;

	/* Intel's CPUs don't look at the upper bound then, AMD's do. */
	if (index < lower && !cpu->vm->model.is_amd)
		dbt_raise(cpu, EXC_BR);
	upper = mem_read(cpu, in->seg, (ea + in->opsize) & user_mask(in->addrsize), in->opsize) ^ sign;

	if (index < lower || index > upper)
		dbt_raise(cpu, EXC_BR);
}

/* ---- moves ---- */

static void user_xlat(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t ea = (cpu->s.gpr[R_RBX] + (cpu->s.gpr[R_RAX] & 0xff)) & user_mask(in->addrsize);

	user_reg_write(cpu, R_RAX, 1, mem_read(cpu, user_mem_seg(in), ea, 1));
}

static void user_lea(struct dbt_cpu *cpu, const struct insn *in)
{
	user_reg_write(cpu, in->reg, in->opsize, insn_ea(cpu, in));
}

static void user_mov_moffs(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned size = in->opcode & 1 ? in->opsize : 1;
	uint64_t ea = (uint64_t)in->disp & user_mask(in->addrsize);

	if (in->opcode & 2)
		mem_write(cpu, user_mem_seg(in), ea, size, cpu->s.gpr[R_RAX]);
	else
		user_reg_write(cpu, R_RAX, size, mem_read(cpu, user_mem_seg(in), ea, size));
}

static void user_movnti(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned size = in->rex_w ? 8 : 4;

	mem_write(cpu, in->seg, insn_ea(cpu, in), size, cpu->s.gpr[in->reg]);
}

/* ---- small ones ---- */

static void user_nop(struct dbt_cpu *cpu, const struct insn *in)
{
}

static void user_pause(struct dbt_cpu *cpu, const struct insn *in)
{
	dbt_pause(cpu);
}

static void user_cld(struct dbt_cpu *cpu, const struct insn *in)
{
	cpu->s.rflags &= ~(uint64_t)X86_FL_DF;
}

static void user_std(struct dbt_cpu *cpu, const struct insn *in)
{
	cpu->s.rflags |= X86_FL_DF;
}

static void user_ud(struct dbt_cpu *cpu, const struct insn *in)
{
	dbt_raise(cpu, EXC_UD);
}

static void user_cpuid(struct dbt_cpu *cpu, const struct insn *in)
{
	struct x86_state *s = &cpu->s;
	struct cpuid_env env = {
		.apic_id = cpu->index,
		.xcr0 = s->xcr0,
		.xss = s->xss,
		.cr4 = s->cr4,
		.apic_enabled = s->apic_base >> 11 & 1,
	};
	struct cpuid_regs r;

	cpuid_query(&cpu->vm->model, &env, (uint32_t)s->gpr[R_RAX], (uint32_t)s->gpr[R_RCX], &r);
	s->gpr[R_RAX] = r.eax;
	s->gpr[R_RBX] = r.ebx;
	s->gpr[R_RCX] = r.ecx;
	s->gpr[R_RDX] = r.edx;
}

static void user_rdtsc(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t tsc;

	if (cpu->s.cr4 & X86_CR4_TSD && cpu->cpl)
		dbt_raise_err(cpu, EXC_GP, 0);
	tsc = dbt_rdtsc(cpu);
	cpu->s.gpr[R_RAX] = (uint32_t)tsc;
	cpu->s.gpr[R_RDX] = tsc >> 32;
	if (in->desc->id == I_RDTSCP)
		cpu->s.gpr[R_RCX] = (uint32_t)cpu->s.tsc_aux;
}

static void user_rdpid(struct dbt_cpu *cpu, const struct insn *in)
{
	cpu->s.gpr[in->rm] = (uint32_t)cpu->s.tsc_aux;
}

/* A random number from the host CPU, else from the host kernel.  False: none now. */
static bool random_number(uint64_t *out)
{
	static _Atomic int known; /* 1: no RDRAND, 2: there is */
	unsigned a, b, c, d;
	bool ok;

	if (!known)
		known = __get_cpuid(1, &a, &b, &c, &d) && c & bit_RDRND ? 2 : 1;
	if (known == 2) {
		__asm__ volatile("rdrand %0; setc %1" : "=r"(*out), "=qm"(ok) : : "cc");
		return ok;
	}
	return getrandom(out, sizeof(*out), GRND_NONBLOCK) == sizeof(*out);
}

static void user_rdrand(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val = 0;
	bool ok = random_number(&val);

	user_reg_write(cpu, in->rm, in->opsize, ok ? val : 0);
	set_flags(cpu, FL_ARITH, ok ? FL_CF : 0);
}

static void user_cmpxchg8b(struct dbt_cpu *cpu, const struct insn *in)
{
	struct mem_op op;
	uint32_t eax = (uint32_t)cpu->s.gpr[R_RAX], edx = (uint32_t)cpu->s.gpr[R_RDX];
	bool zf;

	mem_begin(cpu, &op, in->seg, insn_ea(cpu, in), 8, ACC_RW, in->lock);
	if (in->lock)
		__asm__ volatile("lock cmpxchg8b %3; setz %2"
				 : "+a"(eax), "+d"(edx), "=qm"(zf), "+m"(*(uint64_t *)op.ptr)
				 : "b"((uint32_t)cpu->s.gpr[R_RBX]), "c"((uint32_t)cpu->s.gpr[R_RCX])
				 : "cc", "memory");
	else
		__asm__ volatile("cmpxchg8b %3; setz %2"
				 : "+a"(eax), "+d"(edx), "=qm"(zf), "+m"(*(uint64_t *)op.ptr)
				 : "b"((uint32_t)cpu->s.gpr[R_RBX]), "c"((uint32_t)cpu->s.gpr[R_RCX])
				 : "cc", "memory");
	mem_commit(cpu, &op);
	if (!zf) {
		cpu->s.gpr[R_RAX] = eax;
		cpu->s.gpr[R_RDX] = edx;
	}
	set_flags(cpu, FL_ZF, zf ? FL_ZF : 0);
}

static void user_cmpxchg16b(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t ea = insn_ea(cpu, in), rax = cpu->s.gpr[R_RAX], rdx = cpu->s.gpr[R_RDX];
	struct mem_op op;
	bool zf;

	if (insn_is_misaligned(cpu, in, ea, 16))
		dbt_raise_err(cpu, EXC_GP, 0);
	mem_begin(cpu, &op, in->seg, ea, 16, ACC_RW, in->lock);
	__asm__ volatile("lock cmpxchg16b %3; setz %2"
			 : "+a"(rax), "+d"(rdx), "=qm"(zf), "+m"(*(struct { uint64_t w[2]; } *)op.ptr)
			 : "b"(cpu->s.gpr[R_RBX]), "c"(cpu->s.gpr[R_RCX])
			 : "cc", "memory");
	mem_commit(cpu, &op);
	cpu->s.gpr[R_RAX] = rax;
	cpu->s.gpr[R_RDX] = rdx;
	set_flags(cpu, FL_ZF, zf ? FL_ZF : 0);
}

static void user_fence(struct dbt_cpu *cpu, const struct insn *in)
{
	__asm__ volatile("mfence" : : : "memory");
}

/* CLFLUSH, CLFLUSHOPT, CLWB: checked as a read of a byte, without touching a device. */
static void user_clflush(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t va = mem_linear(cpu, in->seg, insn_ea(cpu, in), 1, ACC_READ);
	struct mmu_page page;
	uint32_t pf_err;

	if (!mmu_walk(cpu, va, cpu->tlb_mode, ACC_READ, &page, &pf_err))
		dbt_raise_pf(cpu, va, pf_err);
}

static void check_fsgsbase(struct dbt_cpu *cpu)
{
	if (!(cpu->s.cr4 & X86_CR4_FSGSBASE))
		dbt_raise(cpu, EXC_UD);
}

static void user_rdfsgsbase(struct dbt_cpu *cpu, const struct insn *in)
{
	check_fsgsbase(cpu);
	user_reg_write(cpu, in->rm, in->opsize,
		       cpu->s.seg[in->desc->id == I_RDFSBASE ? SEG_FS : SEG_GS].base);
}

static void user_wrfsgsbase(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val = gpr_get(cpu, in, in->rm, in->opsize);

	check_fsgsbase(cpu);
	if ((uint64_t)((int64_t)val >> 47) + 1 > 1)
		dbt_raise_err(cpu, EXC_GP, 0);
	cpu->s.seg[in->desc->id == I_WRFSBASE ? SEG_FS : SEG_GS].base = val;
}

// clang-format off
const insn_handler interp_user_handlers[I_COUNT] = {
	[I_JCC] = user_jcc,		[I_JMP_REL] = user_jmp_rel,	[I_JMP_IND] = user_jmp_ind,
	[I_CALL_REL] = user_call_rel,	[I_CALL_IND] = user_call_ind,	[I_RET] = user_ret,
	[I_LOOP] = user_loop,		[I_LOOPE] = user_loop,		[I_LOOPNE] = user_loop,
	[I_JCXZ] = user_jcxz,
	[I_PUSH_REG] = user_push_reg,	[I_POP_REG] = user_pop_reg,	[I_PUSH_RM] = user_push_rm,
	[I_POP_RM] = user_pop_rm,	[I_PUSH_IMM] = user_push_imm,	[I_PUSHA] = user_pusha,
	[I_POPA] = user_popa,		[I_PUSHF] = user_pushf,		[I_POPF] = user_popf,
	[I_ENTER] = user_enter,		[I_LEAVE] = user_leave,
	[I_MOVS] = user_movs,		[I_STOS] = user_stos,		[I_LODS] = user_lods,
	[I_CMPS] = user_cmps,		[I_SCAS] = user_scas,
	[I_AAA] = user_aaa,		[I_AAS] = user_aaa,		[I_AAM] = user_aam,
	[I_AAD] = user_aad,		[I_DAA] = user_daa,		[I_DAS] = user_daa,
	[I_BOUND] = user_bound,		[I_SALC] = user_salc,		[I_XLAT] = user_xlat,
	[I_LEA] = user_lea,		[I_MOV_MOFFS] = user_mov_moffs,
	[I_NOP] = user_nop,		[I_PAUSE] = user_pause,		[I_CLD] = user_cld,
	[I_STD] = user_std,		[I_UD] = user_ud,		[I_CPUID] = user_cpuid,
	[I_RDTSC] = user_rdtsc,		[I_RDTSCP] = user_rdtsc,	[I_RDPID] = user_rdpid,
	[I_RDRAND] = user_rdrand,	[I_RDSEED] = user_rdrand,
	[I_CMPXCHG8B] = user_cmpxchg8b,	[I_CMPXCHG16B] = user_cmpxchg16b,
	[I_MASKMOV] = user_maskmov,	[I_VMASKMOV] = user_vmaskmov,	[I_VGATHER] = user_vgather,
	[I_FENCE] = user_fence,		[I_CLFLUSH] = user_clflush,	[I_PREFETCH] = user_nop,
	[I_FNSTENV] = user_fnstenv,	[I_FLDENV] = user_fldenv,	[I_FNSAVE] = user_fnsave,
	[I_FRSTOR] = user_frstor,	[I_FXSAVE] = user_fxsave,	[I_FXRSTOR] = user_fxrstor,
	[I_FWAIT] = user_fwait,		[I_EMMS] = user_emms,
	[I_XSAVE] = user_xsave,		[I_XSAVEC] = user_xsave,	[I_XSAVEOPT] = user_xsave,
	[I_XSAVES] = user_xsave,	[I_XRSTOR] = user_xrstor,	[I_XRSTORS] = user_xrstor,
	[I_XGETBV] = user_xgetbv,
	[I_LDMXCSR] = user_ldmxcsr,	[I_MOVNTI] = user_movnti,
	[I_VZEROUPPER] = user_vzeroupper, [I_VZEROALL] = user_vzeroupper,
	[I_RDFSBASE] = user_rdfsgsbase,	[I_RDGSBASE] = user_rdfsgsbase,
	[I_WRFSBASE] = user_wrfsgsbase,	[I_WRGSBASE] = user_wrfsgsbase,
};
// clang-format on
