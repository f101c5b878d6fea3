/* SPDX-License-Identifier: Apache-2.0 */
/* Segment registers, descriptor tables, and the instructions that look at descriptors. */
#include "engine/dbt/sys.h"

/* MOV SS and POP SS hold off interrupts and debug traps for one instruction (SDM vol. 3 6.8.3). */
static void note_ss_loaded(struct dbt_cpu *cpu)
{
	cpu->s.interrupt_shadow = 2;
	cpu->no_step_trap = true;
}

void sys_push_seg(struct dbt_cpu *cpu, const struct insn *in)
{
	stack_push(cpu, in->opsize, cpu->s.seg[in->op[0].reg].selector);
}

void sys_pop_seg(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned seg = in->op[0].reg;
	struct stack_frame f;
	uint16_t sel;

	stack_frame_current(cpu, &f);
	sel = stack_frame_read(cpu, &f, in->opsize, 0);
	seg_load(cpu, seg, sel);
	stack_set_sp(cpu, &f, f.sp + in->opsize);
	if (seg == SEG_SS)
		note_ss_loaded(cpu);
}

void sys_mov_r_seg(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned seg = in->reg & 7;

	if (seg >= SEG_COUNT)
		dbt_raise(cpu, EXC_UD);
	sys_rm_write16(cpu, in, cpu->s.seg[seg].selector);
}

void sys_mov_seg_r(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned seg = in->reg & 7;

	if (seg >= SEG_COUNT || seg == SEG_CS)
		dbt_raise(cpu, EXC_UD);
	seg_load(cpu, seg, sys_rm_read16(cpu, in));
	if (seg == SEG_SS)
		note_ss_loaded(cpu);
}

/* ---- far pointers ---- */

static uint64_t read_far_pointer(struct dbt_cpu *cpu, const struct insn *in, uint16_t *sel)
{
	uint64_t ea = insn_ea(cpu, in), off = mem_read(cpu, in->seg, ea, in->opsize);

	*sel = mem_read(cpu, in->seg, sys_ea_at(in, ea, in->opsize), 2);
	return off;
}

void sys_load_far_pointer(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned seg;
	uint64_t off;
	uint16_t sel;

	switch (in->desc->id) {
	case I_LDS:
		seg = SEG_DS;
		break;
	case I_LES:
		seg = SEG_ES;
		break;
	case I_LSS:
		seg = SEG_SS;
		break;
	case I_LFS:
		seg = SEG_FS;
		break;
	default:
		seg = SEG_GS;
		break;
	}
	off = read_far_pointer(cpu, in, &sel);
	seg_load(cpu, seg, sel);
	gpr_set(cpu, in, in->reg, in->opsize, off);
}

void sys_jmp_far(struct dbt_cpu *cpu, const struct insn *in)
{
	far_jump(cpu, in->imm2, in->imm, in->opsize);
}

void sys_call_far(struct dbt_cpu *cpu, const struct insn *in)
{
	far_call(cpu, in->imm2, in->imm, in->opsize);
}

void sys_jmp_far_mem(struct dbt_cpu *cpu, const struct insn *in)
{
	uint16_t sel;
	uint64_t off = read_far_pointer(cpu, in, &sel);

	far_jump(cpu, sel, off, in->opsize);
}

void sys_call_far_mem(struct dbt_cpu *cpu, const struct insn *in)
{
	uint16_t sel;
	uint64_t off = read_far_pointer(cpu, in, &sel);

	far_call(cpu, sel, off, in->opsize);
}

void sys_retf(struct dbt_cpu *cpu, const struct insn *in)
{
	far_return(cpu, in->opsize, in->opcode == 0xca ? in->imm & 0xffff : 0);
}

void sys_iret(struct dbt_cpu *cpu, const struct insn *in)
{
	far_iret(cpu, in->opsize);
}

/* ---- descriptor-table registers ---- */

static void load_table(struct dbt_cpu *cpu, const struct insn *in, struct x86_dtable *t)
{
	uint64_t ea = insn_ea(cpu, in), base;
	uint16_t limit = mem_read(cpu, in->seg, ea, 2);

	base = mem_read(cpu, in->seg, sys_ea_at(in, ea, 2), in->mode == 64 ? 8 : 4);
	if (in->mode == 64) {
		if (!va_is_canonical(base))
			sys_gp0(cpu);
	} else if (in->opsize == 2) {
		base &= 0xffffff;
	}
	t->base = base;
	t->limit = limit;
}

static void store_table(struct dbt_cpu *cpu, const struct insn *in, const struct x86_dtable *t)
{
	uint64_t ea = insn_ea(cpu, in);

	sys_check_umip(cpu);
	mem_write(cpu, in->seg, ea, 2, t->limit);
	mem_write(cpu, in->seg, sys_ea_at(in, ea, 2), in->mode == 64 ? 8 : 4, t->base);
}

void sys_lgdt(struct dbt_cpu *cpu, const struct insn *in)
{
	load_table(cpu, in, &cpu->s.gdtr);
}

void sys_lidt(struct dbt_cpu *cpu, const struct insn *in)
{
	load_table(cpu, in, &cpu->s.idtr);
}

void sys_sgdt(struct dbt_cpu *cpu, const struct insn *in)
{
	store_table(cpu, in, &cpu->s.gdtr);
}

void sys_sidt(struct dbt_cpu *cpu, const struct insn *in)
{
	store_table(cpu, in, &cpu->s.idtr);
}

static void fetch_system(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d)
{
	if (sel & 4 || !desc_fetch_system(cpu, sel, d) || desc_is_segment(d))
		seg_fault(cpu, EXC_GP, sel);
	if (dbt_is_long(cpu) &&
	    (d->hi2 & 0x1f00 || !va_is_canonical(desc_base(d) | (uint64_t)d->lo2 << 32)))
		seg_fault(cpu, EXC_GP, sel);
}

void sys_lldt(struct dbt_cpu *cpu, const struct insn *in)
{
	uint16_t sel = sys_rm_read16(cpu, in);
	struct seg_desc d;

	if (sel_is_null(sel)) {
		seg_set_null(&cpu->s.ldtr, sel, 0);
		return;
	}
	fetch_system(cpu, sel, &d);
	if (desc_type(&d) != DESC_LDT)
		seg_fault(cpu, EXC_GP, sel);
	if (!desc_is_present(&d))
		seg_fault(cpu, EXC_NP, sel);
	seg_fill_system(&cpu->s.ldtr, sel, &d);
}

void sys_ltr(struct dbt_cpu *cpu, const struct insn *in)
{
	uint16_t sel = sys_rm_read16(cpu, in);
	struct seg_desc d;

	if (sel_is_null(sel))
		sys_gp0(cpu);
	fetch_system(cpu, sel, &d);
	if (desc_type(&d) != DESC_TSS32 && (desc_type(&d) != DESC_TSS16 || dbt_is_long(cpu)))
		seg_fault(cpu, EXC_GP, sel);
	if (!desc_is_present(&d))
		seg_fault(cpu, EXC_NP, sel);
	desc_set_busy(cpu, &d, true);
	d.hi |= 0x200;
	seg_fill_system(&cpu->s.tr, sel, &d);
}

void sys_sldt(struct dbt_cpu *cpu, const struct insn *in)
{
	sys_check_umip(cpu);
	sys_rm_write16(cpu, in, cpu->s.ldtr.selector);
}

void sys_str(struct dbt_cpu *cpu, const struct insn *in)
{
	sys_check_umip(cpu);
	sys_rm_write16(cpu, in, cpu->s.tr.selector);
}

/* ---- looking at descriptors ---- */

static void set_zf(struct dbt_cpu *cpu, bool val)
{
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)FL_ZF) | (val ? FL_ZF : 0);
}

/* Is @d accessible from the CPL and the selector's RPL?  Conforming code always is. */
static bool is_accessible(const struct dbt_cpu *cpu, uint16_t sel, const struct seg_desc *d)
{
	if (desc_is_code(d) && desc_is_conforming(d))
		return true;
	return desc_dpl(d) >= cpu->cpl && desc_dpl(d) >= (sel & 3u);
}

static bool can_verify(struct dbt_cpu *cpu, const struct insn *in, bool for_write)
{
	uint16_t sel = sys_rm_read16(cpu, in);
	struct seg_desc d;

	if (sel_is_null(sel) || !desc_fetch(cpu, sel, &d) || !is_accessible(cpu, sel, &d))
		return false;
	return for_write ? desc_is_writable_data(&d) : desc_is_readable(&d);
}

void sys_verr(struct dbt_cpu *cpu, const struct insn *in)
{
	set_zf(cpu, can_verify(cpu, in, false));
}

void sys_verw(struct dbt_cpu *cpu, const struct insn *in)
{
	set_zf(cpu, can_verify(cpu, in, true));
}

/* The descriptor LAR or LSL asks for; @types: bit n = system type n is known to it. */
static bool fetch_for_info(struct dbt_cpu *cpu, const struct insn *in, unsigned types, struct seg_desc *d)
{
	uint16_t sel = sys_rm_read16(cpu, in);

	if (sel_is_null(sel) || !desc_fetch(cpu, sel, d))
		return false;
	if (!desc_is_segment(d)) {
		if (!(types >> desc_type(d) & 1))
			return false;
		if (dbt_is_long(cpu) && (!desc_fetch_system(cpu, sel, d) || d->hi2 & 0x1f00))
			return false;
	}
	return is_accessible(cpu, sel, d);
}

#define TYPE_BIT(t)    (1u << DESC_##t)
#define LSL_TYPES_LONG (TYPE_BIT(LDT) | TYPE_BIT(TSS32) | TYPE_BIT(TSS32_BUSY))
#define LSL_TYPES      (LSL_TYPES_LONG | TYPE_BIT(TSS16) | TYPE_BIT(TSS16_BUSY))
#define LAR_TYPES_LONG (LSL_TYPES_LONG | TYPE_BIT(CALL32))
#define LAR_TYPES      (LSL_TYPES | TYPE_BIT(CALL16) | TYPE_BIT(TASK_GATE) | TYPE_BIT(CALL32))

void sys_lar(struct dbt_cpu *cpu, const struct insn *in)
{
	struct seg_desc d;
	bool is_ok = fetch_for_info(cpu, in, dbt_is_long(cpu) ? LAR_TYPES_LONG : LAR_TYPES, &d);

	if (is_ok)
		gpr_set(cpu, in, in->reg, in->opsize, d.hi & 0xf0ff00 & sys_low_mask(in->opsize));
	set_zf(cpu, is_ok);
}

void sys_lsl(struct dbt_cpu *cpu, const struct insn *in)
{
	struct seg_desc d;
	bool is_ok = fetch_for_info(cpu, in, dbt_is_long(cpu) ? LSL_TYPES_LONG : LSL_TYPES, &d);

	if (is_ok)
		gpr_set(cpu, in, in->reg, in->opsize, desc_limit(&d) & sys_low_mask(in->opsize));
	set_zf(cpu, is_ok);
}

void sys_arpl(struct dbt_cpu *cpu, const struct insn *in)
{
	uint16_t dst = sys_rm_read16(cpu, in), src = gpr_get(cpu, in, in->reg, 2);
	bool is_lower = (dst & 3) < (src & 3);

	if (is_lower) {
		dst = (dst & ~3) | (src & 3);
		if (in->has_mem)
			mem_write(cpu, in->seg, insn_ea(cpu, in), 2, dst);
		else
			gpr_set(cpu, in, in->rm, 2, dst);
	}
	set_zf(cpu, is_lower);
}
