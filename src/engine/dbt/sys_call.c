/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS (SDM vol. 2; APM vol. 3).
 *
 * Vendors differ.  SYSCALL and SYSRET are #UD outside of 64-bit mode on Intel's CPUs, SYSENTER and SYSEXIT in long
 * mode on AMD's.  SYSRET with a non-canonical RCX is #GP(0) in ring 0 as on Intel's, on both.  SYSRET loads fixed
 * attributes into SS (Intel).
 */
#include "engine/dbt/sys.h"
#include "engine/dbt/xlate.h"

#define ATTR_CODE64  (SEG_ATTR_G | SEG_ATTR_L | SEG_ATTR_P | SEG_ATTR_S | 11)
#define ATTR_CODE32  (SEG_ATTR_G | SEG_ATTR_DB | SEG_ATTR_P | SEG_ATTR_S | 11)
#define ATTR_DATA32  (SEG_ATTR_G | SEG_ATTR_DB | SEG_ATTR_P | SEG_ATTR_S | 3)
#define ATTR_DPL3    (3u << SEG_ATTR_DPL_SHIFT)
#define DR6_BS	     (1u << 14)
#define SYSRET_FLAGS 0x3c7fd7ULL

/* CS and SS for ring 0, or for ring 3. */
static void set_flat_segments(struct dbt_cpu *cpu, uint16_t cs, uint16_t ss, bool is_code64, bool is_user)
{
	uint16_t dpl = is_user ? ATTR_DPL3 : 0, rpl = is_user ? 3 : 0;

	seg_set_flat(&cpu->s.seg[SEG_CS], (cs & 0xfffc) | rpl,
		     (is_code64 ? ATTR_CODE64 : ATTR_CODE32) | dpl);
	seg_set_flat(&cpu->s.seg[SEG_SS], (ss & 0xfffc) | rpl, ATTR_DATA32 | dpl);
}

static void check_syscall(struct dbt_cpu *cpu)
{
	if (!(cpu->s.efer & X86_EFER_SCE) || !(cpu->s.cr0 & X86_CR0_PE) ||
	    (cpu->code_bits != 64 && !cpu->vm->model.is_amd))
		dbt_raise(cpu, EXC_UD);
}

static void check_sysenter(struct dbt_cpu *cpu)
{
	if (dbt_is_long(cpu) && cpu->vm->model.is_amd)
		dbt_raise(cpu, EXC_UD);
}

/* SYSCALL in long mode; the segments are the caller's to set. */
static void syscall_long(struct dbt_cpu *cpu)
{
	struct x86_state *s = &cpu->s;

	s->gpr[R_RCX] = cpu->next_rip;
	s->gpr[R_R11] = s->rflags & ~(uint64_t)X86_FL_RF;
	cpu->next_rip = cpu->code_bits == 64 ? s->lstar : s->cstar;
	s->rflags = (s->rflags & ~(s->fmask | X86_FL_RF)) | 2;
}

void sys_syscall(struct dbt_cpu *cpu, const struct insn *in)
{
	struct x86_state *s = &cpu->s;
	uint16_t cs = s->star >> 32;

	check_syscall(cpu);
	if (dbt_is_long(cpu)) {
		syscall_long(cpu);
	} else {
		s->gpr[R_RCX] = (uint32_t)cpu->next_rip;
		cpu->next_rip = (uint32_t)s->star;
		s->rflags &= ~(uint64_t)(X86_FL_VM | X86_FL_IF | X86_FL_RF);
	}
	set_flat_segments(cpu, cs, cs + 8, dbt_is_long(cpu), false);
	/* A trap is taken only if TF is still set at the end. */
	if (!(s->rflags & X86_FL_TF))
		cpu->no_step_trap = true;
	dbt_mode_changed(cpu);
}

void sys_sysret(struct dbt_cpu *cpu, const struct insn *in)
{
	struct x86_state *s = &cpu->s;
	uint16_t base = s->star >> 48;
	bool to_64 = dbt_is_long(cpu) && in->opsize == 8;

	check_syscall(cpu);
	if (cpu->cpl != 0 || (to_64 && !va_is_canonical(s->gpr[R_RCX])))
		sys_gp0(cpu);
	if (dbt_is_long(cpu))
		s->rflags = (s->gpr[R_R11] & SYSRET_FLAGS) | 2;
	else
		s->rflags |= X86_FL_IF;
	cpu->next_rip = to_64 ? s->gpr[R_RCX] : (uint32_t)s->gpr[R_RCX];
	set_flat_segments(cpu, to_64 ? base + 16 : base, base + 8, to_64, true);
	/* A trap is taken if TF is set at the end, whatever it was before. */
	if (s->rflags & X86_FL_TF)
		cpu->dr6_pending |= DR6_BS;
	else
		cpu->no_step_trap = true;
	dbt_mode_changed(cpu);
}

/*
 * The same from translated code.  There are no traps pending there (dbt.h, invariant 5); whatever the handlers above would
 * look at beside what is looked at here, the block's mode has settled.
 */
static bool is_short(const struct dbt_cpu *cpu)
{
	return likely(!cpu->xlate->is_watched && cpu->s.efer & X86_EFER_SCE);
}

static uint64_t done_shortly(struct dbt_cpu *cpu, unsigned id)
{
	cpu->s.rip = cpu->next_rip;
	cpu->insn_count++;
	cpu->xlate->interp_by_id[id]++;
	dbt_mode_changed(cpu);
	return xlate_go_on(cpu);
}

uint64_t xlate_syscall(struct dbt_cpu *cpu)
{
	uint16_t cs = cpu->s.star >> 32;

	if (!is_short(cpu))
		return xlate_step(cpu);
	cpu->next_rip = cpu->s.rip + cpu->exit_info;
	syscall_long(cpu);
	set_flat_segments(cpu, cs, cs + 8, true, false);
	return done_shortly(cpu, I_SYSCALL);
}

uint64_t xlate_sysret(struct dbt_cpu *cpu)
{
	struct x86_state *s = &cpu->s;
	uint16_t base = s->star >> 48;

	if (!is_short(cpu) || !va_is_canonical(s->gpr[R_RCX]) || s->gpr[R_R11] & X86_FL_TF)
		return xlate_step(cpu);
	s->rflags = (s->gpr[R_R11] & SYSRET_FLAGS) | 2;
	cpu->next_rip = s->gpr[R_RCX];
	set_flat_segments(cpu, base + 16, base + 8, true, true);
	return done_shortly(cpu, I_SYSRET);
}

void sys_sysenter(struct dbt_cpu *cpu, const struct insn *in)
{
	struct x86_state *s = &cpu->s;
	uint16_t cs = s->sysenter_cs;
	bool is_long = dbt_is_long(cpu);

	check_sysenter(cpu);
	if (!(s->cr0 & X86_CR0_PE) || sel_is_null(cs))
		sys_gp0(cpu);
	s->rflags &= ~(uint64_t)(X86_FL_VM | X86_FL_IF | X86_FL_RF);
	s->gpr[R_RSP] = is_long ? s->sysenter_esp : (uint32_t)s->sysenter_esp;
	cpu->next_rip = is_long ? s->sysenter_eip : (uint32_t)s->sysenter_eip;
	set_flat_segments(cpu, cs, (cs & 0xfffc) + 8, is_long, false);
	dbt_mode_changed(cpu);
}

void sys_sysexit(struct dbt_cpu *cpu, const struct insn *in)
{
	struct x86_state *s = &cpu->s;
	uint16_t cs = s->sysenter_cs & 0xfffc;
	bool to_64 = in->opsize == 8;

	check_sysenter(cpu);
	if (!(s->cr0 & X86_CR0_PE) || cpu->cpl != 0 || sel_is_null(cs))
		sys_gp0(cpu);
	if (to_64 && (!va_is_canonical(s->gpr[R_RDX]) || !va_is_canonical(s->gpr[R_RCX])))
		sys_gp0(cpu);
	s->gpr[R_RSP] = to_64 ? s->gpr[R_RCX] : (uint32_t)s->gpr[R_RCX];
	cpu->next_rip = to_64 ? s->gpr[R_RDX] : (uint32_t)s->gpr[R_RDX];
	set_flat_segments(cpu, to_64 ? cs + 32 : cs + 16, to_64 ? cs + 40 : cs + 24, to_64, true);
	dbt_mode_changed(cpu);
}

void sys_swapgs(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t base = cpu->s.seg[SEG_GS].base;

	if (cpu->code_bits != 64)
		dbt_raise(cpu, EXC_UD);
	if (cpu->cpl != 0)
		sys_gp0(cpu);
	cpu->s.seg[SEG_GS].base = cpu->s.kernel_gs_base;
	cpu->s.kernel_gs_base = base;
}
