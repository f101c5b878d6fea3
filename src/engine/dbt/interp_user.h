/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of the user-level interpreter. */
#ifndef VIV_DBT_INTERP_USER_H
#define VIV_DBT_INTERP_USER_H

#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"

static inline uint64_t user_mask(unsigned size) /* of 1, 2, 4, 8 bytes */
{
	return ~0ULL >> (64 - 8 * size);
}

/** user_sp_size() - bytes of a stack address now: 2, 4, 8. */
static inline unsigned user_sp_size(const struct dbt_cpu *cpu)
{
	return cpu->code_bits == 64 ? 8 : cpu->s.seg[SEG_SS].attr & SEG_ATTR_DB ? 4 : 2;
}

/** user_mem_seg() - segment of the memory operand; DS where the decoder names none (strings, XLAT). */
static inline unsigned user_mem_seg(const struct insn *in)
{
	return in->seg < SEG_COUNT ? in->seg : SEG_DS;
}

/** user_reg_write() - register of @size bytes = @val, written as the address size does (32 zero-extends). */
static inline void user_reg_write(struct dbt_cpu *cpu, unsigned reg, unsigned size, uint64_t val)
{
	uint64_t *r = &cpu->s.gpr[reg];

	*r = size == 8	 ? val
	     : size == 4 ? (uint32_t)val
			 : (*r & ~user_mask(size)) | (val & user_mask(size));
}

/* interp_string.c */
void user_movs(struct dbt_cpu *cpu, const struct insn *in);
void user_stos(struct dbt_cpu *cpu, const struct insn *in);
void user_lods(struct dbt_cpu *cpu, const struct insn *in);
void user_cmps(struct dbt_cpu *cpu, const struct insn *in);
void user_scas(struct dbt_cpu *cpu, const struct insn *in);

/* interp_fpu.c */
void user_fnstenv(struct dbt_cpu *cpu, const struct insn *in);
void user_fldenv(struct dbt_cpu *cpu, const struct insn *in);
void user_fnsave(struct dbt_cpu *cpu, const struct insn *in);
void user_frstor(struct dbt_cpu *cpu, const struct insn *in);
void user_fxsave(struct dbt_cpu *cpu, const struct insn *in);
void user_fxrstor(struct dbt_cpu *cpu, const struct insn *in);
void user_fwait(struct dbt_cpu *cpu, const struct insn *in);
void user_emms(struct dbt_cpu *cpu, const struct insn *in);
void user_xsave(struct dbt_cpu *cpu, const struct insn *in);
void user_xrstor(struct dbt_cpu *cpu, const struct insn *in);
void user_xgetbv(struct dbt_cpu *cpu, const struct insn *in);
void user_ldmxcsr(struct dbt_cpu *cpu, const struct insn *in);
void user_vzeroupper(struct dbt_cpu *cpu, const struct insn *in);
void user_maskmov(struct dbt_cpu *cpu, const struct insn *in);
void user_vmaskmov(struct dbt_cpu *cpu, const struct insn *in);
void user_vgather(struct dbt_cpu *cpu, const struct insn *in);

#endif
