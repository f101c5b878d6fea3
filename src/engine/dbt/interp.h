/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interpreter: the right path for every instruction.
 *
 * interp_one() fetches, decodes, checks and executes one instruction, or delivers the exception it
 * raises; it handles RF, TF, debug breakpoints and the interrupt shadow.  Handlers get the decoded
 * instruction; cpu->next_rip is the following instruction and may be changed; cpu->s.rip is
 * still the current one until the handler has returned.
 */
#ifndef VIV_DBT_INTERP_H
#define VIV_DBT_INTERP_H

#include "engine/dbt/dbt.h"

typedef void (*insn_handler)(struct dbt_cpu *cpu, const struct insn *in);

/* By enum insn_id; NULL where the id is not the table's.  INSN_HAND: user, INSN_SYSTEM: sys. */
extern const insn_handler interp_user_handlers[I_COUNT];
extern const insn_handler interp_sys_handlers[I_COUNT];

/** interp_one() - one instruction.  Afterwards: s is consistent, is_shutdown or mp_state may have changed. */
void interp_one(struct dbt_cpu *cpu);

/** interp_decoded() - interp_one() where translated code may run (dbt.h, invariant 5): @in is the instruction at
 * s.rip.  It outlives the call, also where that leaves the exclusion of others (dbt_exit). */
void interp_decoded(struct dbt_cpu *cpu, const struct insn *in);

/** insn_check() - raise #UD #NM #GP #MF if the instruction may not run in the present mode. */
void insn_check(struct dbt_cpu *cpu, const struct insn *in);

/** insn_ea() - effective address (offset in insn.seg), wrapped to the address size. */
uint64_t insn_ea(const struct dbt_cpu *cpu, const struct insn *in);

/** insn_is_misaligned() - is the linear address of the operand at @ea no multiple of @align?  Operands that must
 * be aligned are checked for that before anything else. */
static inline bool insn_is_misaligned(const struct dbt_cpu *cpu, const struct insn *in, uint64_t ea,
				      unsigned align)
{
	bool has_base = cpu->code_bits != 64 || in->seg == SEG_FS || in->seg == SEG_GS;

	return (ea + (has_base ? cpu->s.seg[in->seg].base : 0)) & (align - 1);
}

/** interp_decode() - insn_decode() for @cpu's model: what a missing feature turns into another instruction
 * (TZCNT, LZCNT without BMI1, ABM) is decoded as that.  The translator decodes with it, too. */
enum decode_result interp_decode(const struct dbt_cpu *cpu, struct insn *out, const uint8_t *code,
				 unsigned avail, unsigned mode);

/** fpu_is_error_pending() - an unmasked x87 exception waits (FSW.ES). */
bool fpu_is_error_pending(const struct dbt_cpu *cpu);

/** native_exec() - run an INSN_NATIVE instruction in a thunk (thunk.c).  May raise. */
void native_exec(struct dbt_cpu *cpu, const struct insn *in);

/* Register access by operand size; 32-bit writes zero-extend; AH..BH by INSN_HIGH8_OK rules. */
uint64_t gpr_get(const struct dbt_cpu *cpu, const struct insn *in, unsigned reg, unsigned size);
void gpr_set(struct dbt_cpu *cpu, const struct insn *in, unsigned reg, unsigned size, uint64_t val);

/* Stack, by the stack's address size; no state is changed when they raise. */
void stack_push(struct dbt_cpu *cpu, unsigned size, uint64_t val);
uint64_t stack_pop(struct dbt_cpu *cpu, unsigned size);
uint64_t stack_peek(struct dbt_cpu *cpu, unsigned size, unsigned byte_off);

/* exception.c */
/** exc_deliver_raised() - deliver cpu->raise_*; contributory, double and triple faults included. */
void exc_deliver_raised(struct dbt_cpu *cpu);
/** exc_interrupt() - deliver an external interrupt, or an NMI (vector 2, @is_nmi). */
void exc_interrupt(struct dbt_cpu *cpu, unsigned vector, bool is_nmi);
/** exc_note_debug() - a #DB with the DR6 conditions @bits is about to be raised: DR6 takes them, DR7.GD
 * is cleared, nothing is pending any more (SDM vol. 3 17.2.3).  The raiser calls it, not the delivery. */
void exc_note_debug(struct dbt_cpu *cpu, uint64_t bits);
/** exc_software() - INT n, INT3, INTO, INT1: called by handlers; may raise. */
enum exc_soft { EXC_SOFT_INT, EXC_SOFT_INT3_INTO, EXC_SOFT_INT1 };
void exc_software(struct dbt_cpu *cpu, unsigned vector, enum exc_soft kind);

/* sys_cr.c */
/** cr_load_pdptes() - PAE paging: load cpu->pdpte from the table @cr3 points to.  Returns false with
 * nothing changed when one of them has reserved bits set (SDM vol. 3 4.4.1). */
bool cr_load_pdptes(struct dbt_cpu *cpu, uint64_t cr3);
/** cr_uses_pdptes() - CR0.PG = 1, CR4.PAE = 1, EFER.LMA = 0: after set_state cr_load_pdptes() is due. */
static inline bool cr_uses_pdptes(const struct dbt_cpu *cpu)
{
	return cpu->s.cr0 & X86_CR0_PG && cpu->s.cr4 & X86_CR4_PAE && !(cpu->s.efer & X86_EFER_LMA);
}

/* segment.c */
/** seg_load() - load a data or stack segment register as MOV/POP do; raises. */
void seg_load(struct dbt_cpu *cpu, unsigned seg, uint16_t selector);
/** seg_set_real() - real and virtual-8086 mode load: base = selector << 4. */
void seg_set_real(struct dbt_cpu *cpu, unsigned seg, uint16_t selector);
/** far transfers (JMP, CALL, RET, IRET and gates, task switches included); raise. */
void far_jump(struct dbt_cpu *cpu, uint16_t selector, uint64_t offset, unsigned opsize);
void far_call(struct dbt_cpu *cpu, uint16_t selector, uint64_t offset, unsigned opsize);
void far_return(struct dbt_cpu *cpu, unsigned opsize, unsigned pop_bytes);
void far_iret(struct dbt_cpu *cpu, unsigned opsize);
/** task_switch() - SDM vol. 3 7.3.  @source: jump, call, iret, or interrupt through a task gate. */
enum task_source { TASK_JMP, TASK_CALL, TASK_IRET, TASK_INT };
void task_switch(struct dbt_cpu *cpu, uint16_t selector, enum task_source source, bool has_error,
		 uint32_t error_code);

#endif
