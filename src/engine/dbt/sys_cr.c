/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control and debug registers, XCR0, and TLB invalidation.
 *
 * Each set_crN() checks everything, then changes the register and what follows from it: LMA, the
 * PAE page-directory pointers, the TLB, the mode key.
 *
 * Source: SDM vol. 3 2.5 (control registers), 4.1 (paging modes), 4.4.1 (PDPTEs), 4.10.4 (PCID and
 * invalidation), 9.8.5 (IA-32e initialization), 17.2 (debug registers).
 */
#include "engine/dbt/sys.h"

#define DR6_BD	     (1u << 13)
#define DR6_FIXED    0xffff0ff0ULL
#define DR6_WRITABLE 0xe00fULL
#define DR7_GD	     (1u << 13)
#define DR7_FIXED    0x400ULL
#define DR7_WRITABLE 0xffff23ffULL
#define CR3_NO_FLUSH (1ULL << 63)
#define CR3_PCID     0xfffULL

#define CR0_KNOWN                                                                                  \
	(X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET | X86_CR0_NE |             \
	 X86_CR0_WP | X86_CR0_AM | X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)

/* ---- PAE page-directory pointers ---- */

/* Eight bytes of guest-physical memory; all ones outside of RAM. */
static uint64_t phys_read64(const struct dbt_cpu *cpu, gpa_t gpa)
{
	const struct guest_ram *ram = cpu->vm->ram;
	uint64_t val = ~0ULL;

	for (unsigned i = 0; i < ram->nregions; i++) {
		const struct ram_region *r = &ram->regions[i];

		if (gpa >= r->gpa && gpa - r->gpa <= r->size_bytes - 8)
			memcpy(&val, ram->base + r->offset + (gpa - r->gpa), 8);
	}
	return val;
}

bool cr_load_pdptes(struct dbt_cpu *cpu, uint64_t cr3)
{
	const uint64_t reserved = ~cpu->vm->phys_mask | 0x1e6;
	uint64_t pdpte[4];

	for (unsigned i = 0; i < 4; i++) {
		pdpte[i] = phys_read64(cpu, (cr3 & 0xffffffe0) + i * 8);
		if (pdpte[i] & 1 && pdpte[i] & reserved)
			return false;
	}
	memcpy(cpu->pdpte, pdpte, sizeof(pdpte));
	return true;
}

static bool is_pae(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
	return cr0 & X86_CR0_PG && cr4 & X86_CR4_PAE && !(efer & X86_EFER_LMA);
}

/* ---- CR0 ---- */

/* EFER as it will be with paging on or off; raises if long mode can't be entered. */
static uint64_t efer_for_paging(struct dbt_cpu *cpu, bool is_on)
{
	const struct x86_state *s = &cpu->s;

	if (!(s->efer & X86_EFER_LME))
		return s->efer;
	if (!is_on)
		return s->efer & ~(uint64_t)X86_EFER_LMA;
	if (!(s->cr4 & X86_CR4_PAE) || s->seg[SEG_CS].attr & SEG_ATTR_L)
		sys_gp0(cpu);
	if (!(s->tr.attr & SEG_ATTR_UNUSABLE) && s->tr.attr & SEG_ATTR_P && !tss_is_wide(cpu))
		sys_gp0(cpu);
	return s->efer | X86_EFER_LMA;
}

static void set_cr0(struct dbt_cpu *cpu, uint64_t val)
{
	struct x86_state *s = &cpu->s;
	uint64_t changed, efer = s->efer;

	if (val >> 32)
		sys_gp0(cpu);
	val = (val & CR0_KNOWN) | X86_CR0_ET;
	changed = val ^ s->cr0;
	if ((val & X86_CR0_PG && !(val & X86_CR0_PE)) || (val & X86_CR0_NW && !(val & X86_CR0_CD)))
		sys_gp0(cpu);
	if (changed & X86_CR0_PG) {
		if (!(val & X86_CR0_PG) && (s->cr4 & X86_CR4_PCIDE || cpu->code_bits == 64))
			sys_gp0(cpu);
		efer = efer_for_paging(cpu, val & X86_CR0_PG);
	}
	if (changed & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW) && is_pae(val, s->cr4, efer) &&
	    !cr_load_pdptes(cpu, s->cr3))
		sys_gp0(cpu);

	s->cr0 = val;
	s->efer = efer;
	if (changed & (X86_CR0_PG | X86_CR0_WP))
		mmu_flush_all(cpu);
	dbt_mode_changed(cpu);
}

/* ---- CR3 ---- */

static void set_cr3(struct dbt_cpu *cpu, uint64_t val)
{
	struct x86_state *s = &cpu->s;
	bool keep = s->cr4 & X86_CR4_PCIDE && val & CR3_NO_FLUSH;

	if (keep)
		val &= ~CR3_NO_FLUSH;
	if (dbt_is_long(cpu) && val & ~(cpu->vm->phys_mask | 0xfff))
		sys_gp0(cpu);
	if (cr_uses_pdptes(cpu) && !cr_load_pdptes(cpu, val))
		sys_gp0(cpu);
	s->cr3 = val;
	mmu_switch(cpu, keep);
}

/* ---- CR4 ---- */

static uint64_t cr4_known(const struct cpu_model *m)
{
	static const struct {
		uint32_t bits;
		uint8_t feature; /* enum cpu_feature */
	} rows[] = {
		// clang-format off
		{ X86_CR4_VME | X86_CR4_PVI, CPUF_VME },
		{ X86_CR4_TSD,        CPUF_TSC },
		{ X86_CR4_DE,         CPUF_DE },
		{ X86_CR4_PSE,        CPUF_PSE },
		{ X86_CR4_PAE,        CPUF_PAE },
		{ X86_CR4_MCE,        CPUF_MCE },
		{ X86_CR4_PGE,        CPUF_PGE },
		{ X86_CR4_PCE,        CPUF_NONE },
		{ X86_CR4_OSFXSR,     CPUF_FXSR },
		{ X86_CR4_OSXMMEXCPT, CPUF_SSE },
		{ X86_CR4_UMIP,       CPUF_UMIP },
		{ X86_CR4_FSGSBASE,   CPUF_FSGSBASE },
		{ X86_CR4_PCIDE,      CPUF_PCID },
		{ X86_CR4_OSXSAVE,    CPUF_XSAVE },
		{ X86_CR4_SMEP,       CPUF_SMEP },
		{ X86_CR4_SMAP,       CPUF_SMAP },
		// clang-format on
	};
	uint64_t known = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
		if (cpu_has(m, rows[i].feature))
			known |= rows[i].bits;
	return known;
}

static void set_cr4(struct dbt_cpu *cpu, uint64_t val)
{
	const uint64_t paging = X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_SMEP;
	struct x86_state *s = &cpu->s;
	uint64_t changed = val ^ s->cr4;

	if (val & ~cr4_known(&cpu->vm->model))
		sys_gp0(cpu);
	if (dbt_is_long(cpu) && !(val & X86_CR4_PAE))
		sys_gp0(cpu);
	if (changed & val & X86_CR4_PCIDE && (!dbt_is_long(cpu) || s->cr3 & CR3_PCID))
		sys_gp0(cpu);
	if (changed & paging && is_pae(s->cr0, val, s->efer) && !cr_load_pdptes(cpu, s->cr3))
		sys_gp0(cpu);
	s->cr4 = val;
	if (changed & (paging | X86_CR4_PCIDE | X86_CR4_SMAP))
		mmu_flush_all(cpu);
	dbt_mode_changed(cpu);
}

/* ---- MOV CR ---- */

static unsigned reg_size(const struct insn *in)
{
	return in->mode == 64 ? 8 : 4;
}

static uint64_t cr8_read(struct dbt_cpu *cpu)
{
	struct vcpu_exit x = { .kind = EXIT_CR8, .size = 8 };

	if (dbt_exit(cpu, &x))
		sys_gp0(cpu);
	return x.data;
}

static void cr8_write(struct dbt_cpu *cpu, uint64_t val)
{
	struct vcpu_exit x = { .kind = EXIT_CR8, .is_write = true, .size = 8, .data = val };

	if (val & ~15ULL || dbt_exit(cpu, &x))
		sys_gp0(cpu);
}

void sys_mov_r_cr(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val;

	switch (in->reg) {
	case 0:
		val = cpu->s.cr0;
		break;
	case 2:
		val = cpu->s.cr2;
		break;
	case 3:
		val = cpu->s.cr3;
		break;
	case 4:
		val = cpu->s.cr4;
		break;
	case 8:
		val = cr8_read(cpu);
		break;
	default:
		dbt_raise(cpu, EXC_UD);
	}
	gpr_set(cpu, in, in->rm, reg_size(in), val & sys_low_mask(reg_size(in)));
}

void sys_mov_cr_r(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val = gpr_get(cpu, in, in->rm, reg_size(in));

	switch (in->reg) {
	case 0:
		set_cr0(cpu, val);
		break;
	case 2:
		cpu->s.cr2 = val;
		break;
	case 3:
		set_cr3(cpu, val);
		break;
	case 4:
		set_cr4(cpu, val);
		break;
	case 8:
		cr8_write(cpu, val);
		break;
	default:
		dbt_raise(cpu, EXC_UD);
	}
}

void sys_lmsw(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val = sys_rm_read16(cpu, in) & 15; /* PE MP EM TS; PE can't be cleared */

	set_cr0(cpu, (cpu->s.cr0 & ~14ULL) | val);
}

void sys_smsw(struct dbt_cpu *cpu, const struct insn *in)
{
	sys_check_umip(cpu);
	if (in->has_mem)
		mem_write(cpu, in->seg, insn_ea(cpu, in), 2, cpu->s.cr0 & 0xffff);
	else
		gpr_set(cpu, in, in->rm, in->opsize, cpu->s.cr0 & sys_low_mask(in->opsize));
}

void sys_clts(struct dbt_cpu *cpu, const struct insn *in)
{
	cpu->s.cr0 &= ~(uint64_t)X86_CR0_TS;
	dbt_mode_changed(cpu);
}

static void set_ac(struct dbt_cpu *cpu, bool val)
{
	if (cpu->cpl != 0)
		dbt_raise(cpu, EXC_UD);
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)X86_FL_AC) | (val ? X86_FL_AC : 0);
	dbt_mode_changed(cpu);
}

void sys_clac(struct dbt_cpu *cpu, const struct insn *in)
{
	set_ac(cpu, false);
}

void sys_stac(struct dbt_cpu *cpu, const struct insn *in)
{
	set_ac(cpu, true);
}

/* ---- MOV DR ---- */

/* DR4 and DR5 are DR6 and DR7 unless CR4.DE; DR7.GD traps every access. */
static unsigned dr_check(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned n = in->reg;

	if (n > 7 || ((n == 4 || n == 5) && cpu->s.cr4 & X86_CR4_DE))
		dbt_raise(cpu, EXC_UD);
	if (cpu->s.dr7 & DR7_GD) {
		exc_note_debug(cpu, DR6_BD);
		dbt_raise(cpu, EXC_DB);
	}
	return n == 4 || n == 5 ? n + 2 : n;
}

void sys_mov_r_dr(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned n = dr_check(cpu, in);
	uint64_t val = n < 4 ? cpu->s.dr[n] : n == 6 ? cpu->s.dr6 : cpu->s.dr7;

	gpr_set(cpu, in, in->rm, reg_size(in), val & sys_low_mask(reg_size(in)));
}

void sys_mov_dr_r(struct dbt_cpu *cpu, const struct insn *in)
{
	unsigned n = dr_check(cpu, in);
	uint64_t val = gpr_get(cpu, in, in->rm, reg_size(in));

	if (n < 4) {
		cpu->s.dr[n] = val;
		return;
	}
	if (val >> 32)
		sys_gp0(cpu);
	if (n == 6)
		cpu->s.dr6 = (val & DR6_WRITABLE) | DR6_FIXED;
	else
		cpu->s.dr7 = (val & DR7_WRITABLE) | DR7_FIXED;
}

/* ---- XSETBV ---- */

void sys_xsetbv(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t val = (uint32_t)cpu->s.gpr[R_RAX] | cpu->s.gpr[R_RDX] << 32;

	if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
		dbt_raise(cpu, EXC_UD);
	if ((uint32_t)cpu->s.gpr[R_RCX] != 0 || !(val & 1) || val & ~cpu->vm->model.xcr0_mask ||
	    (val & 6) == 4)
		sys_gp0(cpu);
	cpu->s.xcr0 = val;
	dbt_mode_changed(cpu);
}

/* ---- invalidation ---- */

void sys_invlpg(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t va = insn_ea(cpu, in);

	if (in->mode == 64) {
		if (in->seg == SEG_FS || in->seg == SEG_GS)
			va += cpu->s.seg[in->seg].base;
		if (!va_is_canonical(va))
			return;
	} else {
		va = (uint32_t)(va + cpu->s.seg[in->seg].base);
	}
	mmu_flush_page(cpu, va);
}

void sys_invpcid(struct dbt_cpu *cpu, const struct insn *in)
{
	uint64_t ea = insn_ea(cpu, in), type = gpr_get(cpu, in, in->reg, reg_size(in));
	uint64_t pcid = mem_read(cpu, in->seg, ea, 8);
	uint64_t va = mem_read(cpu, in->seg, sys_ea_at(in, ea, 8), 8);

	if (type > 3 || pcid >> 12)
		sys_gp0(cpu);
	if (type < 2 && pcid && !(cpu->s.cr4 & X86_CR4_PCIDE))
		sys_gp0(cpu);
	switch (type) {
	case 0:
		if (!va_is_canonical(va))
			sys_gp0(cpu);
		mmu_flush_page_of(cpu, (uint16_t)pcid, va);
		break;
	case 1:
		mmu_flush_space(cpu, (uint16_t)pcid);
		break;
	case 2:
		mmu_flush_all(cpu);
		break;
	default:
		mmu_flush_spaces(cpu);
		break;
	}
}
