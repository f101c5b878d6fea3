/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Task switches through 16-bit and 32-bit TSSs (SDM vol. 3 7.3 and table 7-1).
 *
 * How it works: everything of the old task's context that can fault is done first: the descriptor
 * checks, reading the new TSS, and checking that the old one, the back link and both descriptors
 * can be written.  Then the switch is committed: old state saved, busy bits, TR, CR3, and the new
 * registers with all segment registers not yet valid.  What faults from there on (#TS #NP #SS #GP)
 * faults in the new task, on its first instruction.
 *
 * The old task's EIP is cpu->next_rip: callers that deliver a fault put the faulting RIP there.
 * There are no task switches in long mode.
 */
#include "engine/dbt/segment.h"

#define TSS_LIMIT16 0x2b
#define TSS_LIMIT32 0x67

/* What a TSS holds of a task. */
struct tss_image {
	uint32_t cr3, eip, eflags;
	uint32_t gpr[8];
	uint16_t seg[6]; /* SEG_ES .. SEG_GS */
	uint16_t ldt;
	bool is_trap;
};

struct tss_layout {
	uint8_t limit, word; /* smallest limit; bytes of a register */
	uint8_t eip, eflags, gpr, seg, seg_step, nseg, ldt;
};

static const struct tss_layout tss16 = { TSS_LIMIT16, 2, 0x0e, 0x10, 0x12, 0x22, 2, 4, 0x2a };
static const struct tss_layout tss32 = { TSS_LIMIT32, 4, 0x20, 0x24, 0x28, 0x48, 4, 6, 0x60 };

static uint32_t lin32(uint64_t base, unsigned off)
{
	return (uint32_t)(base + off);
}

static void find_new_tss(struct dbt_cpu *cpu, uint16_t sel, enum task_source source, struct seg_desc *d)
{
	bool is_iret = source == TASK_IRET;
	unsigned vector = is_iret ? EXC_TS : EXC_GP, type;

	if (sel_is_null(sel) || sel & 4 || !desc_fetch(cpu, sel, d))
		seg_fault(cpu, vector, sel);
	type = desc_type(d);
	if (desc_is_segment(d) || (type & 5) != 1 || !!(type & 2) != is_iret)
		seg_fault(cpu, vector, sel);
	if (!desc_is_present(d))
		seg_fault(cpu, EXC_NP, sel);
	if (desc_limit(d) < (type & 8 ? TSS_LIMIT32 : TSS_LIMIT16))
		seg_fault(cpu, EXC_TS, sel);
}

static void tss_read(struct dbt_cpu *cpu, uint64_t base, const struct tss_layout *l, struct tss_image *t)
{
	bool is_wide = l->word == 4;

	t->cr3 = is_wide ? sys_read(cpu, lin32(base, 0x1c), 4) : 0;
	t->eip = sys_read(cpu, lin32(base, l->eip), l->word);
	t->eflags = sys_read(cpu, lin32(base, l->eflags), l->word);
	/* The upper halves that a 16-bit TSS lacks become all ones, as on a 80386. */
	for (unsigned i = 0; i < 8; i++)
		t->gpr[i] = sys_read(cpu, lin32(base, l->gpr + i * l->word), l->word) |
			    (is_wide ? 0 : 0xffff0000);
	for (unsigned i = 0; i < 6; i++)
		t->seg[i] = i < l->nseg ? sys_read(cpu, lin32(base, l->seg + i * l->seg_step), 2) : 0;
	t->ldt = sys_read(cpu, lin32(base, l->ldt), 2);
	t->is_trap = is_wide && sys_read(cpu, lin32(base, 0x64), 2) & 1;
}

static void tss_save(struct dbt_cpu *cpu, uint64_t base, const struct tss_layout *l, uint32_t eflags)
{
	sys_write(cpu, lin32(base, l->eip), l->word, cpu->next_rip);
	sys_write(cpu, lin32(base, l->eflags), l->word, eflags);
	for (unsigned i = 0; i < 8; i++)
		sys_write(cpu, lin32(base, l->gpr + i * l->word), l->word, cpu->s.gpr[i]);
	for (unsigned i = 0; i < l->nseg; i++)
		sys_write(cpu, lin32(base, l->seg + i * l->seg_step), 2, cpu->s.seg[i].selector);
}

static void load_ldt(struct dbt_cpu *cpu, uint16_t sel)
{
	struct seg_desc d;

	if (sel_is_null(sel))
		return;
	if (sel & 4 || !desc_fetch(cpu, sel, &d) || desc_is_segment(&d) ||
	    desc_type(&d) != DESC_LDT || !desc_is_present(&d))
		seg_fault(cpu, EXC_TS, sel);
	seg_fill_system(&cpu->s.ldtr, sel, &d);
}

static void load_cs(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d)
{
	unsigned rpl = sel & 3;

	if (sel_is_null(sel) || !desc_fetch(cpu, sel, d) || !desc_is_code(d) ||
	    (desc_is_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl))
		seg_fault(cpu, EXC_TS, sel);
	if (!desc_is_present(d))
		seg_fault(cpu, EXC_NP, sel);
	desc_set_accessed(cpu, d);
	seg_fill(&cpu->s.seg[SEG_CS], sel, d);
	dbt_mode_changed(cpu);
}

static void load_ss(struct dbt_cpu *cpu, uint16_t sel)
{
	unsigned cpl = cpu->cpl;
	struct seg_desc d;

	if (sel_is_null(sel) || !desc_fetch(cpu, sel, &d) || (sel & 3u) != cpl ||
	    !desc_is_writable_data(&d) || desc_dpl(&d) != cpl)
		seg_fault(cpu, EXC_TS, sel);
	if (!desc_is_present(&d))
		seg_fault(cpu, EXC_SS, sel);
	desc_set_accessed(cpu, &d);
	seg_fill(&cpu->s.seg[SEG_SS], sel, &d);
	dbt_mode_changed(cpu);
}

static void load_data(struct dbt_cpu *cpu, unsigned seg, uint16_t sel)
{
	unsigned rpl = sel & 3;
	struct seg_desc d;

	if (sel_is_null(sel))
		return;
	if (!desc_fetch(cpu, sel, &d) || !desc_is_readable(&d))
		seg_fault(cpu, EXC_TS, sel);
	if (!(desc_is_code(&d) && desc_is_conforming(&d)) &&
	    (desc_dpl(&d) < rpl || desc_dpl(&d) < cpu->cpl))
		seg_fault(cpu, EXC_TS, sel);
	if (!desc_is_present(&d))
		seg_fault(cpu, EXC_NP, sel);
	desc_set_accessed(cpu, &d);
	seg_fill(&cpu->s.seg[seg], sel, &d);
	dbt_mode_changed(cpu);
}

/* The new task's registers; its segment registers hold selectors only. */
static void commit_registers(struct dbt_cpu *cpu, const struct tss_image *t, uint32_t eflags)
{
	unsigned cpl = eflags & X86_FL_VM ? 3 : t->seg[SEG_CS] & 3;

	cpu->s.rip = cpu->next_rip = t->eip;
	cpu->s.rflags = (eflags & 0x3f7fd5) | 2;
	for (unsigned i = 0; i < 8; i++)
		cpu->s.gpr[i] = t->gpr[i];
	for (unsigned i = 0; i < 6; i++) {
		if (eflags & X86_FL_VM)
			seg_set_vm86(&cpu->s.seg[i], t->seg[i]);
		else
			seg_set_null(&cpu->s.seg[i], t->seg[i], cpl);
	}
	seg_set_null(&cpu->s.ldtr, t->ldt, 0);
	cpu->s.dr7 &= ~0x155ULL; /* local breakpoints */
	cpu->is_rf_cleared = false;
	cpu->no_step_trap = true;
	cpu->s.interrupt_shadow = 0;
	dbt_mode_changed(cpu);
}

static void load_segments(struct dbt_cpu *cpu, const struct tss_image *t)
{
	static const uint8_t data[] = { SEG_DS, SEG_ES, SEG_FS, SEG_GS };
	struct seg_desc cs;

	load_ldt(cpu, t->ldt);
	if (cpu->s.rflags & X86_FL_VM) {
		if (t->eip > 0xffff)
			seg_fault(cpu, EXC_GP, 0);
		return;
	}
	load_cs(cpu, t->seg[SEG_CS], &cs);
	load_ss(cpu, t->seg[SEG_SS]);
	for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
		load_data(cpu, data[i], t->seg[data[i]]);
	code_check_rip(cpu, &cs, t->eip);
}

static void load_cr3(struct dbt_cpu *cpu, uint32_t cr3)
{
	if (!(cpu->s.cr0 & X86_CR0_PG))
		return;
	if (cr_uses_pdptes(cpu) && !cr_load_pdptes(cpu, cr3))
		seg_fault(cpu, EXC_GP, 0);
	cpu->s.cr3 = cr3;
	mmu_flush_nonglobal(cpu);
}

void task_switch(struct dbt_cpu *cpu, uint16_t selector, enum task_source source, bool has_error,
		 uint32_t error_code)
{
	bool is_nested = source == TASK_CALL || source == TASK_INT;
	const struct tss_layout *old_l = tss_is_wide(cpu) ? &tss32 : &tss16, *new_l;
	uint64_t old_base = cpu->s.tr.base, new_base;
	uint32_t old_flags = (uint32_t)cpu->s.rflags, new_flags;
	uint16_t old_sel = cpu->s.tr.selector;
	struct seg_desc d, old_d;
	struct stack_frame f;
	struct tss_image t;

	find_new_tss(cpu, selector, source, &d);
	new_l = desc_type(&d) & 8 ? &tss32 : &tss16;
	new_base = desc_base(&d);
	/* The old TSS must be able to take the state (real hardware would write past its limit). */
	if (cpu->s.tr.attr & SEG_ATTR_UNUSABLE || cpu->s.tr.limit < old_l->limit)
		seg_fault(cpu, EXC_TS, old_sel);
	if (!desc_fetch(cpu, old_sel & 0xfff8, &old_d))
		seg_fault(cpu, EXC_TS, old_sel);
	tss_read(cpu, new_base, new_l, &t);
	sys_check_write(cpu, lin32(old_base, old_l->eip),
			old_l->seg + old_l->nseg * old_l->seg_step - old_l->eip);
	sys_check_write(cpu, old_d.va, 8);
	sys_check_write(cpu, d.va, 8);
	sys_check_write(cpu, lin32(new_base, 0), 2);

	if (source == TASK_JMP || source == TASK_IRET)
		desc_set_busy(cpu, &old_d, false);
	if (source == TASK_IRET)
		old_flags &= ~X86_FL_NT;
	tss_save(cpu, old_base, old_l, old_flags);
	if (is_nested)
		sys_write(cpu, lin32(new_base, 0), 2, old_sel);
	if (source != TASK_IRET)
		desc_set_busy(cpu, &d, true);
	new_flags = is_nested ? t.eflags | X86_FL_NT : t.eflags;
	d.hi |= 0x200; /* busy */
	seg_fill_system(&cpu->s.tr, selector, &d);
	cpu->s.cr0 |= X86_CR0_TS;
	commit_registers(cpu, &t, new_flags);

	if (new_l->word == 4)
		load_cr3(cpu, t.cr3);
	load_segments(cpu, &t);
	if (has_error) {
		stack_frame_current(cpu, &f);
		stack_frame_push(cpu, &f, new_l->word, error_code);
		stack_set_sp(cpu, &f, f.sp);
	}
	if (t.is_trap)
		cpu->dr6_pending |= 1u << 15; /* BT: #DB before the first instruction */
}
