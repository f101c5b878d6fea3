/* SPDX-License-Identifier: Apache-2.0 */
/* What the present mode is: everything the interpreter and translations depend on. */
#include "engine/dbt/dbt.h"

/* Base 0, limit 4 GiB, and of @type as MOV from and to it needs. */
static bool seg_is_flat(const struct x86_seg *s, unsigned type_mask, unsigned type)
{
	return s->base == 0 && s->limit == 0xffffffff && !(s->attr & SEG_ATTR_UNUSABLE) &&
	       s->attr & SEG_ATTR_P && (s->attr & type_mask) == type;
}

static bool is_flat(const struct x86_state *s)
{
	const unsigned data_mask = SEG_ATTR_S | 0xe, data = SEG_ATTR_S | 2; /* writable, expand-up */

	return seg_is_flat(&s->seg[SEG_CS], SEG_ATTR_S | 2, SEG_ATTR_S | 2) && /* readable */
	       seg_is_flat(&s->seg[SEG_SS], data_mask, data) &&
	       seg_is_flat(&s->seg[SEG_DS], data_mask, data) &&
	       seg_is_flat(&s->seg[SEG_ES], data_mask, data);
}

/* A permutation of 64-bit values with good diffusion (SplitMix64's finalizer). */
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

/*
 * Key of inline branch entries: RIP + key tells entries apart.  Keys of modes, of address spaces, of generations and,
 * outside flat 64-bit code, of code segments differ by what a guest cannot guess (as_gen starts random): where it jumps
 * to is any 64-bit value, so a known difference would lead it to code that was translated for another mode.
 *
 * At CPL 3 the key is the address space's: back in it, its entries are good again.  Below, code is mostly in
 * global pages and one key serves all; if not (has_local_code), dbt_space_changed() takes another.
 */
static uint64_t branch_key(struct dbt_cpu *cpu)
{
	const struct x86_seg *cs = &cpu->s.seg[SEG_CS];
	uint64_t x;
	uint32_t space = cpu->cpl == 3 ? cpu->mmu.spaces.tag : cpu->kernel_gen;

	x = cpu->as_gen + ((uint64_t)space << 32);
	if (cpu->code_bits != 64) {
		x += mix(cs->base << 32 | cs->limit);
		return mix(mix(x) + cpu->mode_key);
	}
	/* The way into a kernel and out of it changes between few of them. */
	struct dbt_key *k = &cpu->keys[(space << 1 | cpu->cpl >> 1) % DBT_KEYS];

	if (unlikely(k->from != x || k->mode_key != cpu->mode_key))
		*k = (struct dbt_key){ .from = x,
				       .mode_key = cpu->mode_key,
				       .key = mix(mix(x) + cpu->mode_key) };
	return k->key;
}

static void set_branch_keys(struct dbt_cpu *cpu)
{
	cpu->jc_key = branch_key(cpu);
	dbt_poll_refresh(cpu);
	cpu->ret_key = cpu->jc_key + cpu->ret_gen;
}

#define END_4G (1ULL << 62) /* what runs over the end of 4G wraps, as in mem_linear() */

/* Up to where the translator may use @s without asking: the checks of mem_linear(), expand-up segments only. */
static void set_ends(uint64_t end[2][2], const struct x86_seg *s, bool is_protected)
{
	bool is_code = s->attr & 8, is_down = (s->attr & (SEG_ATTR_S | 0xc)) == (SEG_ATTR_S | 4);
	uint64_t all = s->limit == 0xffffffff ? END_4G : s->limit + 1ULL;

	if (is_down || (is_protected && s->attr & SEG_ATTR_UNUSABLE))
		all = 0;
	end[0][0] = is_protected && is_code && !(s->attr & 2) ? 0 : all;
	end[1][0] = is_protected && (is_code || !(s->attr & 2)) ? 0 : all;
	for (unsigned i = 0; i < 2; i++)
		end[i][1] = MIN(end[i][0], 0x10000ULL);
}

void dbt_mode_changed(struct dbt_cpu *cpu)
{
	const struct x86_state *s = &cpu->s;
	bool is_pe = s->cr0 & X86_CR0_PE, is_vm86 = is_pe && s->rflags & X86_FL_VM;
	bool has_ts = s->cr0 & X86_CR0_TS, has_em = s->cr0 & X86_CR0_EM;
	uint32_t key = 0;

	if (is_vm86)
		cpu->cpl = 3;
	else
		cpu->cpl = is_pe ? s->seg[SEG_SS].attr >> SEG_ATTR_DPL_SHIFT & 3 : 0;

	if (s->efer & X86_EFER_LMA && s->seg[SEG_CS].attr & SEG_ATTR_L)
		cpu->code_bits = 64;
	else
		cpu->code_bits = !is_vm86 && s->seg[SEG_CS].attr & SEG_ATTR_DB ? 32 : 16;

	if (cpu->code_bits == 64) {
		key |= DBT_MODE_CODE64 | DBT_MODE_FLAT;
	} else {
		if (cpu->code_bits == 32)
			key |= DBT_MODE_CODE32;
		if (s->seg[SEG_SS].attr & SEG_ATTR_DB)
			key |= DBT_MODE_SS32;
		if (is_pe && !is_vm86 && is_flat(s))
			key |= DBT_MODE_FLAT;
		for (unsigned i = 0; i < SEG_COUNT; i++)
			set_ends(cpu->seg_end[i], &s->seg[i], is_pe && !is_vm86);
	}
	if (cpu->cpl == 3)
		key |= DBT_MODE_USER;
	if (has_em || has_ts)
		key |= DBT_MODE_NO_FPU;
	if (s->cr4 & X86_CR4_TSD)
		key |= DBT_MODE_TSD;
	if (s->cr4 & X86_CR4_FSGSBASE)
		key |= DBT_MODE_FSGSBASE;
	if (!(s->cr4 & X86_CR4_OSFXSR) || has_em || has_ts)
		key |= DBT_MODE_NO_SSE;
	if (!(s->cr4 & X86_CR4_OSXSAVE) || (s->xcr0 & 6) != 6 || has_ts)
		key |= DBT_MODE_NO_AVX;
	if (is_vm86)
		key |= DBT_MODE_VM86;
	else if (is_pe)
		key |= DBT_MODE_PE;

	if (cpu->cpl == 3) {
		cpu->tlb_mode = DBT_TLB_USER;
	} else if (s->cr4 & X86_CR4_SMAP && s->rflags & X86_FL_AC) {
		cpu->tlb_mode = DBT_TLB_KERNEL_AC;
		key |= DBT_MODE_AC_TLB;
	} else {
		cpu->tlb_mode = DBT_TLB_KERNEL;
	}
	if (cpu->cpl == 3 && s->cr0 & X86_CR0_AM && s->rflags & X86_FL_AC)
		key |= DBT_MODE_ALIGN;
	key |= (uint32_t)cpu->cpl << DBT_MODE_CPL_SHIFT;

	cpu->mode_key = key;
	set_branch_keys(cpu);
}

void dbt_returns_changed(struct dbt_cpu *cpu)
{
	cpu->ret_gen = mix(cpu->ret_gen ^ __builtin_ia32_rdtsc());
	cpu->ret_key = cpu->jc_key + cpu->ret_gen;
}

void dbt_space_changed(struct dbt_cpu *cpu)
{
	if (cpu->has_local_code && !++cpu->kernel_gen)
		cpu->as_gen++;
	cpu->has_local_code = false;
	set_branch_keys(cpu);
}
