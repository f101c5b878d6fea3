/* SPDX-License-Identifier: Apache-2.0 */
/* Handlers of the system-level instructions, by file; interp_sys.c has the table. */
#ifndef VIV_DBT_SYS_H
#define VIV_DBT_SYS_H

#include "engine/dbt/segment.h"

#define SYS_HANDLER(name) void sys_##name(struct dbt_cpu *cpu, const struct insn *in)

/* sys_seg.c: segment registers, descriptor tables, far transfers */
SYS_HANDLER(push_seg);
SYS_HANDLER(pop_seg);
SYS_HANDLER(mov_r_seg);
SYS_HANDLER(mov_seg_r);
SYS_HANDLER(load_far_pointer);
SYS_HANDLER(jmp_far);
SYS_HANDLER(jmp_far_mem);
SYS_HANDLER(call_far);
SYS_HANDLER(call_far_mem);
SYS_HANDLER(retf);
SYS_HANDLER(iret);
SYS_HANDLER(lgdt);
SYS_HANDLER(lidt);
SYS_HANDLER(sgdt);
SYS_HANDLER(sidt);
SYS_HANDLER(lldt);
SYS_HANDLER(ltr);
SYS_HANDLER(sldt);
SYS_HANDLER(str);
SYS_HANDLER(verr);
SYS_HANDLER(verw);
SYS_HANDLER(lar);
SYS_HANDLER(lsl);
SYS_HANDLER(arpl);

/* sys_call.c: SYSCALL, SYSENTER and their returns */
SYS_HANDLER(syscall);
SYS_HANDLER(sysret);
SYS_HANDLER(sysenter);
SYS_HANDLER(sysexit);
SYS_HANDLER(swapgs);

/* sys_io.c: ports, IF */
SYS_HANDLER(in);
SYS_HANDLER(out);
SYS_HANDLER(ins);
SYS_HANDLER(outs);
SYS_HANDLER(cli);
SYS_HANDLER(sti);

/* sys_cr.c: control and debug registers, TLB */
SYS_HANDLER(mov_r_cr);
SYS_HANDLER(mov_cr_r);
SYS_HANDLER(mov_r_dr);
SYS_HANDLER(mov_dr_r);
SYS_HANDLER(lmsw);
SYS_HANDLER(smsw);
SYS_HANDLER(clts);
SYS_HANDLER(clac);
SYS_HANDLER(stac);
SYS_HANDLER(xsetbv);
SYS_HANDLER(invlpg);
SYS_HANDLER(invpcid);

/* sys_msr.c */
SYS_HANDLER(rdmsr);
SYS_HANDLER(wrmsr);
SYS_HANDLER(rdpmc);

#undef SYS_HANDLER

static inline _Noreturn void sys_gp0(struct dbt_cpu *cpu)
{
	dbt_raise_err(cpu, EXC_GP, 0);
}

/** sys_check_umip() - #GP(0) for SGDT, SIDT, SLDT, STR, SMSW outside of CPL 0 with CR4.UMIP. */
static inline void sys_check_umip(struct dbt_cpu *cpu)
{
	if (cpu->s.cr4 & X86_CR4_UMIP && cpu->cpl != 0)
		sys_gp0(cpu);
}

/** sys_ea_at() - @off bytes behind the effective address @ea, wrapped to the address size. */
static inline uint64_t sys_ea_at(const struct insn *in, uint64_t ea, unsigned off)
{
	ea += off;
	return in->addrsize == 8 ? ea : in->addrsize == 4 ? (uint32_t)ea : (uint16_t)ea;
}

/** sys_rm_read16() - the 16-bit operand in ModRM.rm, register or memory. */
static inline uint16_t sys_rm_read16(struct dbt_cpu *cpu, const struct insn *in)
{
	if (in->has_mem)
		return mem_read(cpu, in->seg, insn_ea(cpu, in), 2);
	return gpr_get(cpu, in, in->rm, 2);
}

/** sys_rm_write16() - store a 16-bit system value: 16 bits to memory, zero-extended to the operand
 * size into a register. */
static inline void sys_rm_write16(struct dbt_cpu *cpu, const struct insn *in, uint16_t val)
{
	if (in->has_mem)
		mem_write(cpu, in->seg, insn_ea(cpu, in), 2, val);
	else
		gpr_set(cpu, in, in->rm, in->opsize, val);
}

/** sys_low_mask() - bits of a value of @size bytes (2, 4, 8). */
static inline uint64_t sys_low_mask(unsigned size)
{
	return size == 8 ? ~0ULL : (1ULL << size * 8) - 1;
}

#endif
