/* SPDX-License-Identifier: Apache-2.0 */
/* The table of system-level instructions, and those too small for a file of their own. */
#include <errno.h>

#include "engine/dbt/sys.h"

static void sys_int(struct dbt_cpu *cpu, const struct insn *in)
{
	exc_software(cpu, in->imm & 0xff, EXC_SOFT_INT);
}

static void sys_int3(struct dbt_cpu *cpu, const struct insn *in)
{
	exc_software(cpu, EXC_BP, EXC_SOFT_INT3_INTO);
}

static void sys_into(struct dbt_cpu *cpu, const struct insn *in)
{
	if (cpu->s.rflags & FL_OF)
		exc_software(cpu, EXC_OF, EXC_SOFT_INT3_INTO);
}

static void sys_int1(struct dbt_cpu *cpu, const struct insn *in)
{
	exc_software(cpu, EXC_DB, EXC_SOFT_INT1);
}

static void sys_hlt(struct dbt_cpu *cpu, const struct insn *in)
{
	cpu->s.mp_state = MP_HALTED;
}

/* INVD, WBINVD: memory and caches are one. */
static void sys_nop(struct dbt_cpu *cpu, const struct insn *in)
{
}

static void sys_ud(struct dbt_cpu *cpu, const struct insn *in)
{
	dbt_raise(cpu, EXC_UD);
}

/* MONITOR and MWAIT have no effect but their checks: MWAIT may always return at once. */
static void sys_monitor(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t ea = cpu->s.gpr[R_RAX] & sys_low_mask(in->addrsize);

	if (cpu->cpl != 0)
		dbt_raise(cpu, EXC_UD);
	if ((uint32_t)cpu->s.gpr[R_RCX])
		sys_gp0(cpu);
	mem_read(cpu, in->seg == SEG_NONE ? SEG_DS : in->seg, ea, 1);
}

static void sys_mwait(struct dbt_cpu *cpu, const struct insn *in)
{
	if (cpu->cpl != 0)
		dbt_raise(cpu, EXC_UD);
	if ((uint32_t)cpu->s.gpr[R_RCX])
		sys_gp0(cpu);
}

static void sys_vmcall(struct dbt_cpu *cpu, const struct insn *in)
{
	static const uint8_t args[4] = { R_RBX, R_RCX, R_RDX, R_RSI };
	uint64_t mask = cpu->code_bits == 64 ? ~0ULL : 0xffffffff;
	struct vcpu_exit x = { .kind = EXIT_HYPERCALL,
			       .size = cpu->code_bits == 64 ? 8 : 4,
			       .addr = cpu->s.gpr[R_RAX] & mask };

	if (!cpu->vm->model.has_kvm_pv)
		dbt_raise(cpu, EXC_UD);
	for (unsigned i = 0; i < 4; i++)
		x.arg[i] = cpu->s.gpr[args[i]] & mask;
	if (cpu->cpl != 0)
		x.data = (uint64_t)-EPERM;
	else if (dbt_exit(cpu, &x))
		sys_gp0(cpu);
	cpu->s.gpr[R_RAX] = x.data & mask;
}

/* CLZERO: the cache line that rAX points into (APM vol. 3). */
static void sys_clzero(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t ea = cpu->s.gpr[R_RAX] & sys_low_mask(in->addrsize) & ~63ULL;
	unsigned seg = in->seg == SEG_NONE ? SEG_DS : in->seg;
	struct mem_op op;

	mem_begin(cpu, &op, seg, ea, 64, ACC_WRITE, false);
	memset(op.ptr, 0, 64);
	mem_commit(cpu, &op);
}

const insn_handler interp_sys_handlers[I_COUNT] = {
	// clang-format off
	[I_PUSH_SEG] = sys_push_seg,
	[I_POP_SEG] = sys_pop_seg,
	[I_MOV_R_SEG] = sys_mov_r_seg,
	[I_MOV_SEG_R] = sys_mov_seg_r,
	[I_LDS] = sys_load_far_pointer,
	[I_LES] = sys_load_far_pointer,
	[I_LSS] = sys_load_far_pointer,
	[I_LFS] = sys_load_far_pointer,
	[I_LGS] = sys_load_far_pointer,
	[I_JMP_FAR] = sys_jmp_far,
	[I_JMP_FAR_MEM] = sys_jmp_far_mem,
	[I_CALL_FAR] = sys_call_far,
	[I_CALL_FAR_MEM] = sys_call_far_mem,
	[I_RETF] = sys_retf,
	[I_IRET] = sys_iret,
	[I_INT] = sys_int,
	[I_INT3] = sys_int3,
	[I_INTO] = sys_into,
	[I_INT1] = sys_int1,
	[I_SYSCALL] = sys_syscall,
	[I_SYSRET] = sys_sysret,
	[I_SYSENTER] = sys_sysenter,
	[I_SYSEXIT] = sys_sysexit,
	[I_SWAPGS] = sys_swapgs,
	[I_IN] = sys_in,
	[I_OUT] = sys_out,
	[I_INS] = sys_ins,
	[I_OUTS] = sys_outs,
	[I_CLI] = sys_cli,
	[I_STI] = sys_sti,
	[I_HLT] = sys_hlt,
	[I_CLTS] = sys_clts,
	[I_CLAC] = sys_clac,
	[I_STAC] = sys_stac,
	[I_MOV_R_CR] = sys_mov_r_cr,
	[I_MOV_CR_R] = sys_mov_cr_r,
	[I_MOV_R_DR] = sys_mov_r_dr,
	[I_MOV_DR_R] = sys_mov_dr_r,
	[I_LMSW] = sys_lmsw,
	[I_SMSW] = sys_smsw,
	[I_LGDT] = sys_lgdt,
	[I_LIDT] = sys_lidt,
	[I_SGDT] = sys_sgdt,
	[I_SIDT] = sys_sidt,
	[I_LLDT] = sys_lldt,
	[I_SLDT] = sys_sldt,
	[I_LTR] = sys_ltr,
	[I_STR] = sys_str,
	[I_VERR] = sys_verr,
	[I_VERW] = sys_verw,
	[I_LAR] = sys_lar,
	[I_LSL] = sys_lsl,
	[I_ARPL] = sys_arpl,
	[I_INVLPG] = sys_invlpg,
	[I_INVPCID] = sys_invpcid,
	[I_INVD] = sys_nop,
	[I_WBINVD] = sys_nop,
	[I_RDMSR] = sys_rdmsr,
	[I_WRMSR] = sys_wrmsr,
	[I_RDPMC] = sys_rdpmc,
	[I_XSETBV] = sys_xsetbv,
	[I_MONITOR] = sys_monitor,
	[I_MWAIT] = sys_mwait,
	[I_VMCALL] = sys_vmcall,
	[I_VMMCALL] = sys_vmcall,
	[I_RSM] = sys_ud,
	[I_CLZERO] = sys_clzero,
	// clang-format on
};
