/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segment registers and descriptors.
 *
 * Invariants
 *  1. Descriptors are read with supervisor rights whatever the CPL (sys_read).
 *  2. In protected mode SS's DPL is the CPL, also when SS is NULL (dbt_mode_changed relies on it).
 *  3. A segment register changes only after everything that can fault has been done.
 */
#include "engine/dbt/segment.h"

_Noreturn void seg_fault(struct dbt_cpu *cpu, unsigned vector, uint16_t sel)
{
	dbt_raise_err(cpu, vector, (sel & 0xfffcu) | cpu->exc_ext);
}

static uint64_t table_va(const struct dbt_cpu *cpu, uint64_t base, unsigned off)
{
	return dbt_is_long(cpu) ? base + off : (uint32_t)(base + off);
}

static bool desc_read(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d, unsigned len)
{
	unsigned off = sel & 0xfff8u;
	uint64_t base, raw;
	uint32_t limit;

	if (sel & 4) {
		if (cpu->s.ldtr.attr & SEG_ATTR_UNUSABLE || !(cpu->s.ldtr.attr & SEG_ATTR_P))
			return false;
		base = cpu->s.ldtr.base;
		limit = cpu->s.ldtr.limit;
	} else {
		base = cpu->s.gdtr.base;
		limit = cpu->s.gdtr.limit;
	}
	if (off + len - 1 > limit)
		return false;
	d->va = table_va(cpu, base, off);
	raw = sys_read(cpu, d->va, 8);
	d->lo = (uint32_t)raw;
	d->hi = (uint32_t)(raw >> 32);
	d->lo2 = d->hi2 = 0;
	if (len == 16) {
		raw = sys_read(cpu, table_va(cpu, base, off + 8), 8);
		d->lo2 = (uint32_t)raw;
		d->hi2 = (uint32_t)(raw >> 32);
	}
	return true;
}

bool desc_fetch(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d)
{
	return desc_read(cpu, sel, d, 8);
}

bool desc_fetch_system(struct dbt_cpu *cpu, uint16_t sel, struct seg_desc *d)
{
	return desc_read(cpu, sel, d, dbt_is_long(cpu) ? 16 : 8);
}

void desc_set_accessed(struct dbt_cpu *cpu, struct seg_desc *d)
{
	if (d->hi & 0x100)
		return;
	d->hi |= 0x100;
	sys_write(cpu, d->va + 5, 1, d->hi >> 8 & 0xff);
}

void desc_set_busy(struct dbt_cpu *cpu, const struct seg_desc *d, bool is_busy)
{
	uint32_t access = sys_read(cpu, d->va + 5, 1);

	sys_write(cpu, d->va + 5, 1, is_busy ? access | 2 : access & ~2u);
}

void seg_fill(struct x86_seg *s, uint16_t sel, const struct seg_desc *d)
{
	s->selector = sel;
	s->base = desc_base(d);
	s->limit = desc_limit(d);
	s->attr = (d->hi >> 8 & 0xff) | (d->hi >> 8 & 0xf000);
}

void seg_fill_system(struct x86_seg *s, uint16_t sel, const struct seg_desc *d)
{
	seg_fill(s, sel, d);
	s->base |= (uint64_t)d->lo2 << 32;
}

void seg_set_null(struct x86_seg *s, uint16_t sel, unsigned cpl)
{
	s->selector = sel;
	s->base = 0;
	s->limit = 0;
	s->attr = SEG_ATTR_UNUSABLE | cpl << SEG_ATTR_DPL_SHIFT;
}

void seg_set_vm86(struct x86_seg *s, uint16_t selector)
{
	s->selector = selector;
	s->base = (uint32_t)selector << 4;
	s->limit = 0xffff;
	s->attr = SEG_ATTR_P | 3u << SEG_ATTR_DPL_SHIFT | SEG_ATTR_S | 3;
}

void seg_set_flat(struct x86_seg *s, uint16_t selector, uint16_t attr)
{
	s->selector = selector;
	s->base = 0;
	s->limit = 0xffffffff;
	s->attr = attr;
}

void seg_set_real(struct dbt_cpu *cpu, unsigned seg, uint16_t selector)
{
	struct x86_seg *s = &cpu->s.seg[seg];

	if (cpu->s.cr0 & X86_CR0_PE) { /* virtual-8086 */
		seg_set_vm86(s, selector);
	} else {
		/* Limit, G and D/B stay what protected mode left ("unreal" mode); the rest is as
		 * after RESET. */
		s->selector = selector;
		s->base = (uint32_t)selector << 4;
		s->attr = (s->attr & (SEG_ATTR_G | SEG_ATTR_DB | SEG_ATTR_AVL)) | SEG_ATTR_P |
			  SEG_ATTR_S | 3;
	}
	dbt_mode_changed(cpu);
}

static void seg_load_null(struct dbt_cpu *cpu, unsigned seg, uint16_t sel)
{
	if (seg == SEG_SS && (cpu->code_bits != 64 || cpu->cpl == 3 || (sel & 3) != cpu->cpl))
		seg_fault(cpu, EXC_GP, 0);
	seg_set_null(&cpu->s.seg[seg], sel, seg == SEG_SS ? cpu->cpl : 0);
	dbt_mode_changed(cpu);
}

void seg_load(struct dbt_cpu *cpu, unsigned seg, uint16_t sel)
{
	struct seg_desc d;
	unsigned rpl = sel & 3, cpl = cpu->cpl;

	if (!dbt_is_protected(cpu)) {
		seg_set_real(cpu, seg, sel);
		return;
	}
	if (sel_is_null(sel)) {
		seg_load_null(cpu, seg, sel);
		return;
	}
	if (!desc_fetch(cpu, sel, &d))
		seg_fault(cpu, EXC_GP, sel);
	if (seg == SEG_SS) {
		if (rpl != cpl || !desc_is_writable_data(&d) || desc_dpl(&d) != cpl)
			seg_fault(cpu, EXC_GP, sel);
		if (!desc_is_present(&d))
			seg_fault(cpu, EXC_SS, sel);
	} else {
		bool is_checked = !desc_is_code(&d) || !desc_is_conforming(&d);

		if (!desc_is_readable(&d) || (is_checked && (desc_dpl(&d) < rpl || desc_dpl(&d) < cpl)))
			seg_fault(cpu, EXC_GP, sel);
		if (!desc_is_present(&d))
			seg_fault(cpu, EXC_NP, sel);
	}
	desc_set_accessed(cpu, &d);
	seg_fill(&cpu->s.seg[seg], sel, &d);
	dbt_mode_changed(cpu);
}

void seg_drop_outer(struct dbt_cpu *cpu, unsigned cpl)
{
	static const uint8_t segs[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };

	for (unsigned i = 0; i < ARRAY_SIZE(segs); i++) {
		struct x86_seg *s = &cpu->s.seg[segs[i]];

		if (s->attr & SEG_ATTR_UNUSABLE || (s->attr & 0x1c) == 0x1c) /* conforming code */
			continue;
		if (seg_dpl(s) < cpl) {
			/* The base stays: 64-bit mode goes on using FS and GS. */
			s->selector = 0;
			s->attr |= SEG_ATTR_UNUSABLE;
		}
	}
}

uint64_t code_check_rip(struct dbt_cpu *cpu, const struct seg_desc *d, uint64_t rip)
{
	if (dbt_is_long(cpu) && desc_is_long(d)) {
		if (!va_is_canonical(rip))
			seg_fault(cpu, EXC_GP, 0);
		return rip;
	}
	rip = (uint32_t)rip;
	if (rip > desc_limit(d))
		seg_fault(cpu, EXC_GP, 0);
	return rip;
}

/* ---- stacks ---- */

void stack_frame_init(struct dbt_cpu *cpu, struct stack_frame *f, const struct x86_seg *ss,
		      uint64_t sp, unsigned cpl, bool is_long, uint32_t err)
{
	f->ss = *ss;
	f->cpl = cpl;
	f->is_long = is_long;
	f->err = err;
	f->mask = is_long ? ~0ULL : ss->attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;
	f->sp = sp & f->mask;
}

void stack_frame_current(struct dbt_cpu *cpu, struct stack_frame *f)
{
	stack_frame_init(cpu, f, &cpu->s.seg[SEG_SS], cpu->s.gpr[R_RSP], cpu->cpl,
			 cpu->code_bits == 64, cpu->exc_ext);
}

/* Linear address of [@off, +@size) in the stack segment; #SS outside of it. */
static uint64_t stack_linear(struct dbt_cpu *cpu, const struct stack_frame *f, uint64_t off, unsigned size)
{
	uint32_t first = (uint32_t)off, last = first + size - 1;
	bool is_ok;

	if (f->is_long) {
		if (!va_is_canonical(off) || !va_is_canonical(off + size - 1))
			dbt_raise_err(cpu, EXC_SS, f->err);
		return off;
	}
	if (f->ss.attr & SEG_ATTR_UNUSABLE)
		is_ok = false;
	else if ((f->ss.attr & 12) == 4) /* expand-down data */
		is_ok = first > f->ss.limit && last >= first &&
			(f->ss.attr & SEG_ATTR_DB || last <= 0xffff);
	else
		is_ok = last >= first && last <= f->ss.limit;
	if (!is_ok)
		dbt_raise_err(cpu, EXC_SS, f->err);
	return (uint32_t)(f->ss.base + first);
}

void stack_frame_push(struct dbt_cpu *cpu, struct stack_frame *f, unsigned size, uint64_t val)
{
	uint64_t sp = (f->sp - size) & f->mask;
	uint64_t va = stack_linear(cpu, f, sp, size);

	if (f->cpl == cpu->cpl)
		mem_write_lin(cpu, va, size, val);
	else
		sys_write(cpu, va, size, val);
	f->sp = sp;
}

uint64_t stack_frame_read(struct dbt_cpu *cpu, const struct stack_frame *f, unsigned size, unsigned off)
{
	uint64_t va = stack_linear(cpu, f, (f->sp + off) & f->mask, size);

	return f->cpl == cpu->cpl ? mem_read_lin(cpu, va, size) : sys_read(cpu, va, size);
}

void stack_set_sp(struct dbt_cpu *cpu, const struct stack_frame *f, uint64_t sp)
{
	if (f->mask == 0xffff)
		cpu->s.gpr[R_RSP] = (cpu->s.gpr[R_RSP] & ~0xffffULL) | (sp & 0xffff);
	else
		cpu->s.gpr[R_RSP] = sp & f->mask;
}

/* ---- inner stacks ---- */

static void inner_stack_long(struct dbt_cpu *cpu, unsigned cpl, unsigned ist, struct x86_seg *ss,
			     uint64_t *sp)
{
	unsigned off = ist ? 0x24 + 8 * (ist - 1) : 4 + 8 * cpl;

	if (off + 7 > cpu->s.tr.limit)
		seg_fault(cpu, EXC_TS, cpu->s.tr.selector);
	*sp = sys_read(cpu, cpu->s.tr.base + off, 8);
	if (!va_is_canonical(*sp))
		seg_fault(cpu, EXC_SS, 0);
	seg_set_null(ss, cpl, cpl);
}

void tss_inner_stack(struct dbt_cpu *cpu, unsigned cpl, unsigned ist, struct x86_seg *ss, uint64_t *sp)
{
	const struct x86_seg *tr = &cpu->s.tr;
	struct seg_desc d;
	uint16_t sel;
	unsigned off;

	if (dbt_is_long(cpu)) {
		inner_stack_long(cpu, cpl, ist, ss, sp);
		return;
	}
	if (tss_is_wide(cpu)) {
		off = 4 + 8 * cpl;
		if (off + 5 > tr->limit)
			seg_fault(cpu, EXC_TS, tr->selector);
		*sp = sys_read(cpu, (uint32_t)(tr->base + off), 4);
		sel = sys_read(cpu, (uint32_t)(tr->base + off + 4), 2);
	} else {
		off = 2 + 4 * cpl;
		if (off + 3 > tr->limit)
			seg_fault(cpu, EXC_TS, tr->selector);
		*sp = sys_read(cpu, (uint32_t)(tr->base + off), 2);
		sel = sys_read(cpu, (uint32_t)(tr->base + off + 2), 2);
	}
	if (sel_is_null(sel))
		seg_fault(cpu, EXC_TS, 0);
	if (!desc_fetch(cpu, sel, &d) || (sel & 3u) != cpl || desc_dpl(&d) != cpl ||
	    !desc_is_writable_data(&d))
		seg_fault(cpu, EXC_TS, sel);
	if (!desc_is_present(&d))
		seg_fault(cpu, EXC_SS, sel);
	desc_set_accessed(cpu, &d);
	seg_fill(ss, sel, &d);
}
