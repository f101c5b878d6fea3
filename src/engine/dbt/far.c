/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Far transfers: JMP, CALL, RET and IRET through code segments, call gates, task gates and TSSs.
 *
 * Each is written as: read and check everything, push on the (new) stack, commit.  Nothing after
 * the commit raises, so that a fault finds the state as before the instruction.  Task switches
 * are the exception: task.c commits in the middle, as the manual says.
 *
 * The new RIP goes to cpu->next_rip.
 *
 * Source: SDM vol. 2 (JMP, CALL, RET, IRET), vol. 3 5.8, 7.3, 21.3 (virtual-8086).
 */
#include "engine/dbt/segment.h"

static uint64_t opsize_mask(unsigned opsize)
{
	return opsize == 8 ? ~0ULL : opsize == 4 ? 0xffffffff : 0xffff;
}

/* ---- real and virtual-8086 mode ---- */

static void real_check_rip(struct dbt_cpu *cpu, uint64_t rip)
{
	if (rip > cpu->s.seg[SEG_CS].limit)
		dbt_raise_err(cpu, EXC_GP, 0);
}

static void real_transfer(struct dbt_cpu *cpu, uint16_t sel, uint64_t rip)
{
	seg_set_real(cpu, SEG_CS, sel);
	cpu->next_rip = rip;
}

/* ---- protected mode ---- */

static void commit_cs(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d, unsigned cpl, uint64_t rip)
{
	seg_fill(&cpu->s.seg[SEG_CS], (sel & 0xfffc) | cpl, d);
	cpu->next_rip = rip;
}

/* L and D both set is reserved in long mode. */
static bool is_bad_long(const struct dbt_cpu *cpu, const struct seg_desc *d)
{
	return dbt_is_long(cpu) && desc_is_long(d) && desc_is_big(d);
}

/* Direct JMP or CALL to the code segment @d: same privilege only. */
static void check_code_direct(struct dbt_cpu *cpu, uint16_t sel, const struct seg_desc *d)
{
	unsigned cpl = cpu->cpl;

	if (!desc_is_code(d))
		seg_fault(cpu, EXC_GP, sel);
	if (desc_is_conforming(d) ? desc_dpl(d) > cpl : (sel & 3u) > cpl || desc_dpl(d) != cpl)
		seg_fault(cpu, EXC_GP, sel);
	if (is_bad_long(cpu, d))
		seg_fault(cpu, EXC_GP, sel);
	if (!desc_is_present(d))
		seg_fault(cpu, EXC_NP, sel);
}

static void check_gate_access(struct dbt_cpu *cpu, uint16_t sel, const struct seg_desc *d)
{
	if (desc_dpl(d) < cpu->cpl || desc_dpl(d) < (sel & 3u))
		seg_fault(cpu, EXC_GP, sel);
}

/* What a call gate leads to. */
struct gate_target {
	uint16_t sel;
	struct seg_desc code;
	uint64_t rip;
	unsigned size;	  /* of the values pushed: 2, 4, 8 */
	unsigned nparams; /* to copy */
};

static void call_gate_read(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d, bool is_call,
			   struct gate_target *t)
{
	bool is_long = dbt_is_long(cpu);
	struct seg_desc *c = &t->code;

	check_gate_access(cpu, sel, d);
	if (!desc_is_present(d))
		seg_fault(cpu, EXC_NP, sel);
	if (is_long) {
		if (!desc_fetch_system(cpu, sel, d) || d->hi2 & 0x1f00)
			seg_fault(cpu, EXC_GP, sel);
	}
	t->size = is_long ? 8 : desc_type(d) == DESC_CALL32 ? 4 : 2;
	t->nparams = is_long ? 0 : d->hi & 31;
	t->sel = d->lo >> 16;
	t->rip = d->lo & 0xffff;
	if (t->size != 2)
		t->rip |= d->hi & 0xffff0000;
	if (is_long)
		t->rip |= (uint64_t)d->lo2 << 32;

	if (sel_is_null(t->sel))
		seg_fault(cpu, EXC_GP, 0);
	if (!desc_fetch(cpu, t->sel, c) || !desc_is_code(c) || desc_dpl(c) > cpu->cpl)
		seg_fault(cpu, EXC_GP, t->sel);
	if (is_long && (!desc_is_long(c) || desc_is_big(c)))
		seg_fault(cpu, EXC_GP, t->sel);
	if (!is_call && !desc_is_conforming(c) && desc_dpl(c) != cpu->cpl)
		seg_fault(cpu, EXC_GP, t->sel);
	if (!desc_is_present(c))
		seg_fault(cpu, EXC_NP, t->sel);
}

static void call_gate_same(struct dbt_cpu *cpu, struct gate_target *t)
{
	struct stack_frame f;

	stack_frame_current(cpu, &f);
	if (dbt_is_long(cpu)) { /* the gate leads to 64-bit code: its stack is flat */
		f.is_long = true;
		f.mask = ~0ULL;
		f.sp = cpu->s.gpr[R_RSP];
	}
	stack_frame_push(cpu, &f, t->size, cpu->s.seg[SEG_CS].selector);
	stack_frame_push(cpu, &f, t->size, cpu->next_rip);
	t->rip = code_check_rip(cpu, &t->code, t->rip);
	desc_set_accessed(cpu, &t->code);
	stack_set_sp(cpu, &f, f.sp);
	commit_cs(cpu, t->sel, &t->code, cpu->cpl, t->rip);
	dbt_mode_changed(cpu);
}

static void call_gate_inner(struct dbt_cpu *cpu, struct gate_target *t)
{
	unsigned cpl = desc_dpl(&t->code);
	struct stack_frame old, f;
	struct x86_seg ss;
	uint64_t sp;

	tss_inner_stack(cpu, cpl, 0, &ss, &sp);
	stack_frame_current(cpu, &old);
	stack_frame_init(cpu, &f, &ss, sp, cpl, dbt_is_long(cpu), ss.selector & 0xfffc);
	stack_frame_push(cpu, &f, t->size, cpu->s.seg[SEG_SS].selector);
	stack_frame_push(cpu, &f, t->size, cpu->s.gpr[R_RSP]);
	for (unsigned i = t->nparams; i-- > 0;)
		stack_frame_push(cpu, &f, t->size, stack_frame_read(cpu, &old, t->size, i * t->size));
	stack_frame_push(cpu, &f, t->size, cpu->s.seg[SEG_CS].selector);
	stack_frame_push(cpu, &f, t->size, cpu->next_rip);
	t->rip = code_check_rip(cpu, &t->code, t->rip);
	desc_set_accessed(cpu, &t->code);

	cpu->s.seg[SEG_SS] = ss;
	stack_set_sp(cpu, &f, f.sp);
	commit_cs(cpu, t->sel, &t->code, cpl, t->rip);
	dbt_mode_changed(cpu);
}

static void transfer_call_gate(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d, bool is_call)
{
	struct gate_target t;

	call_gate_read(cpu, sel, d, is_call, &t);
	if (!is_call) {
		t.rip = code_check_rip(cpu, &t.code, t.rip);
		desc_set_accessed(cpu, &t.code);
		commit_cs(cpu, t.sel, &t.code, cpu->cpl, t.rip);
		dbt_mode_changed(cpu);
	} else if (!desc_is_conforming(&t.code) && desc_dpl(&t.code) < cpu->cpl) {
		call_gate_inner(cpu, &t);
	} else {
		call_gate_same(cpu, &t);
	}
}

/* JMP or CALL whose selector names a system descriptor. */
static void transfer_system(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d, bool is_call)
{
	enum task_source source = is_call ? TASK_CALL : TASK_JMP;
	bool is_long = dbt_is_long(cpu);

	switch (desc_type(d)) {
	case DESC_CALL16:
		if (is_long)
			break;
		transfer_call_gate(cpu, sel, d, is_call);
		return;
	case DESC_CALL32:
		transfer_call_gate(cpu, sel, d, is_call);
		return;
	case DESC_TASK_GATE:
		if (is_long)
			break;
		check_gate_access(cpu, sel, d);
		if (!desc_is_present(d))
			seg_fault(cpu, EXC_NP, sel);
		task_switch(cpu, d->lo >> 16, source, false, 0);
		return;
	case DESC_TSS16:
	case DESC_TSS32:
		if (is_long)
			break;
		check_gate_access(cpu, sel, d);
		task_switch(cpu, sel, source, false, 0);
		return;
	default:
		break;
	}
	seg_fault(cpu, EXC_GP, sel);
}

void far_jump(struct dbt_cpu *cpu, uint16_t sel, uint64_t offset, unsigned opsize)
{
	uint64_t rip = offset & opsize_mask(opsize);
	struct seg_desc d;

	if (!dbt_is_protected(cpu)) {
		real_check_rip(cpu, rip);
		real_transfer(cpu, sel, rip);
		return;
	}
	if (sel_is_null(sel))
		seg_fault(cpu, EXC_GP, 0);
	if (!desc_fetch(cpu, sel, &d))
		seg_fault(cpu, EXC_GP, sel);
	if (!desc_is_segment(&d)) {
		transfer_system(cpu, sel, &d, false);
		return;
	}
	check_code_direct(cpu, sel, &d);
	rip = code_check_rip(cpu, &d, rip);
	desc_set_accessed(cpu, &d);
	commit_cs(cpu, sel, &d, cpu->cpl, rip);
	dbt_mode_changed(cpu);
}

void far_call(struct dbt_cpu *cpu, uint16_t sel, uint64_t offset, unsigned opsize)
{
	uint64_t rip = offset & opsize_mask(opsize);
	struct stack_frame f;
	struct seg_desc d;

	stack_frame_current(cpu, &f);
	if (!dbt_is_protected(cpu)) {
		real_check_rip(cpu, rip);
		stack_frame_push(cpu, &f, opsize, cpu->s.seg[SEG_CS].selector);
		stack_frame_push(cpu, &f, opsize, cpu->next_rip);
		stack_set_sp(cpu, &f, f.sp);
		real_transfer(cpu, sel, rip);
		return;
	}
	if (sel_is_null(sel))
		seg_fault(cpu, EXC_GP, 0);
	if (!desc_fetch(cpu, sel, &d))
		seg_fault(cpu, EXC_GP, sel);
	if (!desc_is_segment(&d)) {
		transfer_system(cpu, sel, &d, true);
		return;
	}
	check_code_direct(cpu, sel, &d);
	stack_frame_push(cpu, &f, opsize, cpu->s.seg[SEG_CS].selector);
	stack_frame_push(cpu, &f, opsize, cpu->next_rip);
	rip = code_check_rip(cpu, &d, rip);
	desc_set_accessed(cpu, &d);
	stack_set_sp(cpu, &f, f.sp);
	commit_cs(cpu, sel, &d, cpu->cpl, rip);
	dbt_mode_changed(cpu);
}

/* ---- returns (RETF and IRET) ---- */

/* The code segment a return goes to. */
static void check_code_return(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d)
{
	unsigned rpl = sel & 3;

	if (sel_is_null(sel))
		seg_fault(cpu, EXC_GP, 0);
	if (!desc_fetch(cpu, sel, d) || !desc_is_code(d) || rpl < cpu->cpl)
		seg_fault(cpu, EXC_GP, sel);
	if (desc_is_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl)
		seg_fault(cpu, EXC_GP, sel);
	if (is_bad_long(cpu, d))
		seg_fault(cpu, EXC_GP, sel);
	if (!desc_is_present(d))
		seg_fault(cpu, EXC_NP, sel);
}

/* The stack segment that goes with it; @cpl is the privilege level returned to. */
static void check_stack_return(struct dbt_cpu *cpu, uint16_t sel, const struct seg_desc *code,
			       unsigned cpl, struct x86_seg *ss)
{
	struct seg_desc d;

	if (sel_is_null(sel)) {
		if (!dbt_is_long(cpu) || !desc_is_long(code) || cpl == 3 || (sel & 3u) != cpl)
			seg_fault(cpu, EXC_GP, 0);
		seg_set_null(ss, sel, cpl);
		return;
	}
	if (!desc_fetch(cpu, sel, &d) || (sel & 3u) != cpl || !desc_is_writable_data(&d) ||
	    desc_dpl(&d) != cpl)
		seg_fault(cpu, EXC_GP, sel);
	if (!desc_is_present(&d))
		seg_fault(cpu, EXC_SS, sel);
	desc_set_accessed(cpu, &d);
	seg_fill(ss, sel, &d);
}

/* Commit of a return that loads SS:rSP too. */
static void commit_return(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *code, uint64_t rip,
			  const struct x86_seg *ss, uint64_t sp)
{
	unsigned cpl = sel & 3;
	bool is_outward = cpl > cpu->cpl;
	struct stack_frame f;

	stack_frame_init(cpu, &f, ss, sp, cpl, dbt_is_long(cpu) && desc_is_long(code), 0);
	cpu->s.seg[SEG_SS] = *ss;
	stack_set_sp(cpu, &f, sp);
	commit_cs(cpu, sel, code, cpl, rip);
	if (is_outward)
		seg_drop_outer(cpu, cpl);
	dbt_mode_changed(cpu);
}

void far_return(struct dbt_cpu *cpu, unsigned opsize, unsigned pop_bytes)
{
	struct stack_frame f;
	struct x86_seg ss;
	struct seg_desc code;
	uint64_t rip, sp;
	uint16_t sel, ss_sel;

	stack_frame_current(cpu, &f);
	rip = stack_frame_read(cpu, &f, opsize, 0);
	sel = stack_frame_read(cpu, &f, opsize, opsize);
	if (!dbt_is_protected(cpu)) {
		real_check_rip(cpu, rip);
		stack_set_sp(cpu, &f, f.sp + 2 * opsize + pop_bytes);
		real_transfer(cpu, sel, rip);
		return;
	}
	check_code_return(cpu, sel, &code);
	if ((sel & 3u) == cpu->cpl) {
		rip = code_check_rip(cpu, &code, rip);
		desc_set_accessed(cpu, &code);
		stack_set_sp(cpu, &f, f.sp + 2 * opsize + pop_bytes);
		commit_cs(cpu, sel, &code, cpu->cpl, rip);
		dbt_mode_changed(cpu);
		return;
	}
	sp = stack_frame_read(cpu, &f, opsize, 2 * opsize + pop_bytes);
	ss_sel = stack_frame_read(cpu, &f, opsize, 3 * opsize + pop_bytes);
	check_stack_return(cpu, ss_sel, &code, sel & 3, &ss);
	rip = code_check_rip(cpu, &code, rip);
	desc_set_accessed(cpu, &code);
	commit_return(cpu, sel, &code, rip, &ss, sp + pop_bytes);
}

/* ---- IRET ---- */

#define FL_IRET_16 (FL_ARITH | X86_FL_TF | X86_FL_DF | X86_FL_NT)
#define FL_IRET_32 (FL_IRET_16 | X86_FL_RF | X86_FL_AC | X86_FL_ID)

static void set_rflags(struct dbt_cpu *cpu, uint64_t val, uint64_t mask)
{
	cpu->s.rflags = (cpu->s.rflags & ~mask) | (val & mask) | 2;
	cpu->is_rf_cleared = false; /* RF is what was popped */
}

static void iret_real(struct dbt_cpu *cpu, unsigned opsize)
{
	uint64_t mask = X86_FL_IF | X86_FL_IOPL | (opsize == 2 ? FL_IRET_16 : FL_IRET_32);
	struct stack_frame f;
	uint64_t rip, flags;
	uint16_t sel;

	stack_frame_current(cpu, &f);
	rip = stack_frame_read(cpu, &f, opsize, 0);
	sel = stack_frame_read(cpu, &f, opsize, opsize);
	flags = stack_frame_read(cpu, &f, opsize, 2 * opsize);
	real_check_rip(cpu, rip);
	stack_set_sp(cpu, &f, f.sp + 3 * opsize);
	real_transfer(cpu, sel, rip);
	set_rflags(cpu, flags, mask);
	dbt_mode_changed(cpu);
}

/* SDM vol. 3 21.3.1.1 and 21.4 (IRET in the VME). */
static void iret_vm86(struct dbt_cpu *cpu, unsigned opsize)
{
	uint64_t mask = opsize == 2 ? FL_IRET_16 : FL_IRET_32;
	bool is_vme = (cpu->s.rflags & X86_FL_IOPL) != X86_FL_IOPL;
	struct stack_frame f;
	uint64_t rip, flags;
	uint16_t sel;

	if (is_vme && (!(cpu->s.cr4 & X86_CR4_VME) || opsize != 2))
		dbt_raise_err(cpu, EXC_GP, 0);
	stack_frame_current(cpu, &f);
	rip = stack_frame_read(cpu, &f, opsize, 0);
	sel = stack_frame_read(cpu, &f, opsize, opsize);
	flags = stack_frame_read(cpu, &f, opsize, 2 * opsize);
	real_check_rip(cpu, rip);
	if (is_vme) {
		if (flags & X86_FL_TF || (flags & X86_FL_IF && cpu->s.rflags & X86_FL_VIP))
			dbt_raise_err(cpu, EXC_GP, 0);
		flags = (flags & ~(uint64_t)X86_FL_VIF) | (flags & X86_FL_IF ? X86_FL_VIF : 0);
		mask |= X86_FL_VIF;
	} else {
		mask |= X86_FL_IF;
	}
	stack_set_sp(cpu, &f, f.sp + 3 * opsize);
	real_transfer(cpu, sel, rip);
	set_rflags(cpu, flags, mask);
	dbt_mode_changed(cpu);
}

/* From CPL 0 into virtual-8086 mode; the nine values lie on the stack @f. */
static void iret_to_vm86(struct dbt_cpu *cpu, const struct stack_frame *f, uint32_t rip,
			 uint16_t cs, uint32_t flags)
{
	static const uint8_t order[] = { SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	uint32_t sp = stack_frame_read(cpu, f, 4, 12);
	uint16_t sel[ARRAY_SIZE(order)];

	for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
		sel[i] = stack_frame_read(cpu, f, 4, 16 + 4 * i);
	if (rip > 0xffff)
		dbt_raise_err(cpu, EXC_GP, 0);
	cpu->s.gpr[R_RSP] = sp;
	for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
		seg_set_vm86(&cpu->s.seg[order[i]], sel[i]);
	seg_set_vm86(&cpu->s.seg[SEG_CS], cs);
	cpu->next_rip = rip;
	set_rflags(cpu, flags, FL_IRET_32 | X86_FL_IF | X86_FL_IOPL | X86_FL_VM | X86_FL_VIF | X86_FL_VIP);
	dbt_mode_changed(cpu);
}

static void iret_protected(struct dbt_cpu *cpu, unsigned opsize)
{
	unsigned cpl = cpu->cpl, iopl = cpu->s.rflags >> 12 & 3;
	uint64_t mask = opsize == 2 ? FL_IRET_16 : FL_IRET_32;
	struct stack_frame f;
	struct x86_seg ss;
	struct seg_desc code;
	uint64_t rip, flags, sp;
	uint16_t sel, ss_sel;

	stack_frame_current(cpu, &f);
	rip = stack_frame_read(cpu, &f, opsize, 0);
	sel = stack_frame_read(cpu, &f, opsize, opsize);
	flags = stack_frame_read(cpu, &f, opsize, 2 * opsize);
	if (opsize == 4 && flags & X86_FL_VM && cpl == 0 && !dbt_is_long(cpu)) {
		iret_to_vm86(cpu, &f, rip, sel, flags);
		return;
	}
	check_code_return(cpu, sel, &code);
	if (cpl <= iopl)
		mask |= X86_FL_IF;
	if (cpl == 0)
		mask |= X86_FL_IOPL | (opsize == 2 ? 0 : X86_FL_VIF | X86_FL_VIP);

	if ((sel & 3u) == cpl && cpu->code_bits != 64) {
		rip = code_check_rip(cpu, &code, rip);
		desc_set_accessed(cpu, &code);
		stack_set_sp(cpu, &f, f.sp + 3 * opsize);
		commit_cs(cpu, sel, &code, cpl, rip);
	} else {
		sp = stack_frame_read(cpu, &f, opsize, 3 * opsize);
		ss_sel = stack_frame_read(cpu, &f, opsize, 4 * opsize);
		check_stack_return(cpu, ss_sel, &code, sel & 3, &ss);
		rip = code_check_rip(cpu, &code, rip);
		desc_set_accessed(cpu, &code);
		commit_return(cpu, sel, &code, rip, &ss, sp);
	}
	set_rflags(cpu, flags, mask);
	dbt_mode_changed(cpu);
}

void far_iret(struct dbt_cpu *cpu, unsigned opsize)
{
	/* NMIs are unblocked even if the IRET faults (SDM vol. 3 6.7.1). */
	if (!(cpu->s.rflags & X86_FL_VM) || (cpu->s.rflags & X86_FL_IOPL) == X86_FL_IOPL)
		cpu->s.nmi_blocked = 0;
	if (!(cpu->s.cr0 & X86_CR0_PE)) {
		iret_real(cpu, opsize);
	} else if (cpu->s.rflags & X86_FL_VM) {
		iret_vm86(cpu, opsize);
	} else if (cpu->s.rflags & X86_FL_NT) {
		if (dbt_is_long(cpu))
			dbt_raise_err(cpu, EXC_GP, 0);
		task_switch(cpu, sys_read(cpu, (uint32_t)cpu->s.tr.base, 2), TASK_IRET, false, 0);
	} else {
		iret_protected(cpu, opsize);
	}
}
