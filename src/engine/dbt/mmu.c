/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page walks and the soft TLB.
 *
 * How it works: walk() reads the guest's paging structures as the manual says and gives a struct
 * mmu_page, which the second level (tlb2.h) keeps for all address spaces; mmu_translate() enters it into the
 * direct-mapped arrays of the access mode, for the current address space.  There an entry is reached
 * only by its slot, so each flush is a visit to slots: two lists per mode name the slots filled with
 * non-global and with global entries since they were last flushed.
 *
 * Invariants
 *  1. A valid slot is in the list of its kind (it may be in both: the slot held the other kind before).
 *     An invalid slot has rneg = wneg = DBT_TLB_INVALID(slot); its xlat still points into RAM.
 *  2. Slots from the size in use up to DBT_TLB_MAX are memory that nobody has touched: an idle guest never needs most of it.
 *  3. wneg valid implies RAM_PAGE_WMAP set for the page and CODE, TRACK, WATCH clear, the D bit set and
 *     the page writable in the mode: at the time of the fill, and until the vCPU's next safepoint.
 *  4. A span of 2M (1G) of which a 4K fragment is cached, in whatever form, is in large[0] (large[1]) with the
 *     fragment's tag.  A span leaves it only together with all its fragments.
 *  5. The first level holds global pages and the current address space's; an entry of the code TLB counts only
 *     with the tag of one of these.
 *
 * Not handled: 5-level paging, protection keys (not shown by CPUID).
 */
#include "engine/dbt/mmu.h"

#include "engine/dbt/tlb2.h"

enum {
	PTE_P = 1 << 0,
	PTE_W = 1 << 1,
	PTE_U = 1 << 2,
	PTE_A = 1 << 5,
	PTE_D = 1 << 6,
	PTE_PS = 1 << 7,
	PTE_G = 1 << 8,
};
#define PTE_NX	     (1ULL << 63)
#define PTE_ADDR     0x000ffffffffff000ULL
#define PAGE_OFFSET  0xfffULL
#define NOTICE_FLAGS (RAM_PAGE_CODE | RAM_PAGE_TRACK | RAM_PAGE_WATCH)

/* ---- paging-structure entries ------------------------------------------------------------- */

struct entry {
	uint8_t *ptr; /* NULL: not RAM */
	uint64_t offset;
	bool is_writable;
	bool is_wide; /* 8 bytes, not 4 */
	uint64_t val;
};

/* What is not memory reads as all ones, as an unclaimed bus cycle does. */
static void entry_read(struct dbt_cpu *cpu, gpa_t gpa, bool is_wide, struct entry *e)
{
	const struct ram_region *r = ram_find(cpu->vm->ram, gpa & cpu->vm->phys_mask);

	e->is_wide = is_wide;
	if (!r) {
		e->ptr = NULL;
		e->val = is_wide ? ~0ULL : ~0U;
		return;
	}
	e->offset = r->offset + ((gpa & cpu->vm->phys_mask) - r->gpa);
	ram_note_seen(cpu->vm->ram, e->offset);
	e->ptr = cpu->vm->ram->base + e->offset;
	e->is_writable = !r->is_readonly;
	e->val = is_wide ? __atomic_load_n((uint64_t *)(void *)e->ptr, __ATOMIC_ACQUIRE)
			 : __atomic_load_n((uint32_t *)(void *)e->ptr, __ATOMIC_ACQUIRE);
}

/*
 * Set @bits (A, D) in the entry if it still is what was read; false when it changed.  In ROM and nothing
 * the write vanishes.
 */
static bool entry_set(struct dbt_cpu *cpu, struct entry *e, uint64_t bits)
{
	bool is_set;

	if ((e->val & bits) == bits || !e->ptr || !e->is_writable)
		return true;
	if (e->is_wide) {
		uint64_t old = e->val;
		is_set = __atomic_compare_exchange_n((uint64_t *)(void *)e->ptr, &old, e->val | bits,
						     false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	} else {
		uint32_t old = (uint32_t)e->val;
		is_set = __atomic_compare_exchange_n((uint32_t *)(void *)e->ptr, &old,
						     (uint32_t)(e->val | bits), false,
						     __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	if (!is_set)
		return false;
	e->val |= bits;
	/* The locked exchange orders the write before this look at the flags. */
	if (ram_note_dirty(cpu->vm->ram, e->offset) & RAM_PAGE_CODE)
		dbt_code_written(cpu->vm, e->offset, e->is_wide ? 8 : 4);
	return true;
}

/* ---- the walk (SDM vol. 3 4.3 to 4.7) ----------------------------------------------------- */

enum walk_end { WALK_OK, WALK_FAULT, WALK_AGAIN };

struct walk {
	struct dbt_cpu *cpu;
	uint64_t va;
	unsigned mode, acc;
	bool set_ad; /* update A and D */
	bool is_nxe; /* XD exists: EFER.NXE with 64-bit entries */
	/* Rights gathered on the way. */
	bool is_user, is_writable, is_nx;
	struct mmu_page *out;
	uint32_t err;
};

/* The access's own bits of the error code. */
static uint32_t err_base(const struct walk *w)
{
	uint32_t err = 0;

	if (w->acc == ACC_WRITE)
		err |= PF_W;
	if (w->mode == DBT_TLB_USER)
		err |= PF_U;
	if (w->acc == ACC_EXEC && (w->is_nxe || w->cpu->s.cr4 & X86_CR4_SMEP))
		err |= PF_I;
	return err;
}

static enum walk_end walk_fault(struct walk *w, uint32_t bits)
{
	w->err = err_base(w) | bits;
	return WALK_FAULT;
}

/* SDM vol. 3 4.6; @rights: TLB2_U, TLB2_W, TLB2_NX. */
static bool is_allowed(const struct x86_state *s, unsigned rights, unsigned mode, unsigned acc)
{
	if (mode == DBT_TLB_USER)
		return rights & TLB2_U && !(acc == ACC_WRITE && !(rights & TLB2_W)) &&
		       !(acc == ACC_EXEC && rights & TLB2_NX);
	if (acc == ACC_EXEC)
		return !(rights & TLB2_NX) && !(rights & TLB2_U && s->cr4 & X86_CR4_SMEP);
	if (rights & TLB2_U && s->cr4 & X86_CR4_SMAP && mode != DBT_TLB_KERNEL_AC)
		return false;
	return acc != ACC_WRITE || rights & TLB2_W || !(s->cr0 & X86_CR0_WP);
}

/* The leaf @e maps @size bytes at @base. */
static enum walk_end walk_leaf(struct walk *w, struct entry *e, gpa_t base, uint64_t size)
{
	const struct x86_state *s = &w->cpu->s;
	unsigned rights =
		(w->is_user ? TLB2_U : 0) | (w->is_writable ? TLB2_W : 0) | (w->is_nx ? TLB2_NX : 0);

	if (!is_allowed(s, rights, w->mode, w->acc))
		return walk_fault(w, PF_P);
	if (w->set_ad && !entry_set(w->cpu, e, PTE_A | (w->acc == ACC_WRITE ? PTE_D : 0)))
		return WALK_AGAIN;
	w->out->gpa = base + (w->va & (size - 1) & ~PAGE_OFFSET);
	w->out->size = size;
	w->out->is_global = e->val & PTE_G && s->cr4 & X86_CR4_PGE;
	w->out->rights = (uint8_t)rights;
	w->out->can_write = is_allowed(s, rights, w->mode, ACC_WRITE);
	w->out->is_dirty = e->val & PTE_D;
	return WALK_OK;
}

/* 32-bit paging, SDM vol. 3 4.3. */
static enum walk_end walk_legacy(struct walk *w)
{
	struct dbt_cpu *cpu = w->cpu;
	struct entry e;

	entry_read(cpu, (cpu->s.cr3 & 0xfffff000) + (w->va >> 22 & 0x3ff) * 4, false, &e);
	if (!(e.val & PTE_P))
		return walk_fault(w, 0);
	w->is_user = e.val & PTE_U;
	w->is_writable = e.val & PTE_W;
	if (e.val & PTE_PS && cpu->s.cr4 & X86_CR4_PSE) {
		/* PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved. */
		gpa_t base = (e.val & 0xffc00000) | (e.val >> 13 & 0xff) << 32;
		if (e.val & 1 << 21 || base & ~cpu->vm->phys_mask)
			return walk_fault(w, PF_P | PF_RSVD);
		return walk_leaf(w, &e, base, 4 * MIB);
	}
	if (w->set_ad && !entry_set(cpu, &e, PTE_A))
		return WALK_AGAIN;
	entry_read(cpu, (e.val & 0xfffff000) + (w->va >> 12 & 0x3ff) * 4, false, &e);
	if (!(e.val & PTE_P))
		return walk_fault(w, 0);
	w->is_user &= !!(e.val & PTE_U);
	w->is_writable &= !!(e.val & PTE_W);
	return walk_leaf(w, &e, e.val & 0xfffff000, 4 * KIB);
}

/* PAE and 4-level paging, SDM vol. 3 4.4 and 4.5, from the table at @base that is indexed by va >> @shift. */
static enum walk_end walk_wide(struct walk *w, gpa_t base, unsigned shift, bool is_pae)
{
	struct dbt_cpu *cpu = w->cpu;
	uint64_t rsvd = PTE_ADDR & ~cpu->vm->phys_mask;
	struct entry e;

	if (is_pae)
		rsvd |= 0x7ff0000000000000; /* 62:52, ignored in 4-level paging */
	if (!w->is_nxe)
		rsvd |= PTE_NX;
	w->is_user = w->is_writable = true;
	for (;; shift -= 9) {
		uint64_t bad = rsvd;
		bool is_leaf = shift == 12;

		entry_read(cpu, base + (w->va >> shift & 0x1ff) * 8, true, &e);
		if (!(e.val & PTE_P))
			return walk_fault(w, 0);
		if (e.val & PTE_PS && !is_leaf) {
			is_leaf = shift == 21 || (shift == 30 && cpu->vm->model.has[CPUF_GBPAGES]);
			/* The page's low address bits (12 is PAT), or PS where there is no such page. */
			bad |= is_leaf ? ((1ULL << shift) - 1) & ~0x1fffULL : PTE_PS;
		}
		if (e.val & bad)
			return walk_fault(w, PF_P | PF_RSVD);
		w->is_user &= !!(e.val & PTE_U);
		w->is_writable &= !!(e.val & PTE_W);
		w->is_nx |= !!(e.val & PTE_NX);
		if (is_leaf)
			return walk_leaf(w, &e, e.val & PTE_ADDR & ~((1ULL << shift) - 1), 1ULL << shift);
		if (w->set_ad && !entry_set(cpu, &e, PTE_A))
			return WALK_AGAIN;
		base = e.val & PTE_ADDR;
	}
}

static enum walk_end walk_once(struct walk *w)
{
	struct dbt_cpu *cpu = w->cpu;
	bool is_wide = cpu->s.cr4 & X86_CR4_PAE;

	w->is_nxe = is_wide && cpu->s.efer & X86_EFER_NXE;
	w->is_nx = false;
	if (!(cpu->s.cr0 & X86_CR0_PG)) {
		*w->out = (struct mmu_page){
			.gpa = w->va & 0xfffff000, .size = 4 * KIB, .can_write = true, .is_dirty = true
		};
		return WALK_OK;
	}
	if (dbt_is_long(cpu))
		return walk_wide(w, cpu->s.cr3 & PTE_ADDR, 39, false);
	if (is_wide) {
		uint64_t pdpte = cpu->pdpte[w->va >> 30 & 3];
		if (!(pdpte & PTE_P))
			return walk_fault(w, 0);
		return walk_wide(w, pdpte & PTE_ADDR, 21, true);
	}
	return walk_legacy(w);
}

static bool walk(struct walk *w, uint32_t *pf_err)
{
	enum walk_end end;

	/* Again only when another CPU has changed an entry in between: somebody makes progress. */
	do
		end = walk_once(w);
	while (end == WALK_AGAIN);
	if (end == WALK_FAULT) {
		*pf_err = w->err;
		return false;
	}
	w->out->gpa &= w->cpu->vm->phys_mask;
	const struct ram_region *r = ram_find(w->cpu->vm->ram, w->out->gpa);
	w->out->is_ram = r;
	w->out->is_writable = r && !r->is_readonly;
	w->out->offset = r ? r->offset + (w->out->gpa - r->gpa) : 0;
	if (r && w->set_ad)
		ram_note_seen(w->cpu->vm->ram, w->out->offset);
	return true;
}

/* Outside of 64-bit address spaces linear addresses have 32 bits. */
static uint64_t wrap_linear(const struct dbt_cpu *cpu, uint64_t va)
{
	return dbt_is_long(cpu) ? va : va & 0xffffffff;
}

bool mmu_walk(struct dbt_cpu *cpu, uint64_t va, unsigned mode, unsigned acc, struct mmu_page *out,
	      uint32_t *pf_err)
{
	struct walk w = {
		.cpu = cpu, .va = wrap_linear(cpu, va), .mode = mode, .acc = acc, .set_ad = true, .out = out
	};

	return walk(&w, pf_err);
}

bool mmu_peek(struct dbt_cpu *cpu, uint64_t va, gpa_t *gpa)
{
	struct mmu_page page;
	uint32_t err;
	struct walk w = { .cpu = cpu,
			  .va = wrap_linear(cpu, va),
			  .mode = DBT_TLB_KERNEL_AC,
			  .acc = ACC_READ,
			  .out = &page };

	if (!walk(&w, &err))
		return false;
	*gpa = page.gpa | (va & PAGE_OFFSET);
	return true;
}

/* ---- slots -------------------------------------------------------------------------------- */

static uint32_t tlb_size(const struct dbt_cpu *cpu)
{
	return 1u << cpu->tlb_bits;
}

static uint32_t tlb_slot(const struct dbt_cpu *cpu, uint64_t va)
{
	return (va & cpu->tlb_mask) >> GUEST_PAGE_SHIFT;
}

/* The page a valid slot translates. */
static uint64_t slot_page(const struct dbt_tlb *t, uint32_t i)
{
	return 0 - t->rneg[i];
}

static void slot_clear(struct dbt_tlb *t, uint32_t i)
{
	t->rneg[i] = t->wneg[i] = DBT_TLB_INVALID(i);
	t->phys[i] &= ~DBT_TLB_VALID;
}

/* Note the slot for the flush that will have to visit it. */
static void slot_list(struct dbt_cpu *cpu, unsigned mode, uint32_t i, bool is_global)
{
	struct dbt_tlb *t = &cpu->tlb[mode];
	uint64_t flag = is_global ? DBT_TLB_LISTED_G : DBT_TLB_LISTED;

	if (t->phys[i] & flag)
		return;
	t->phys[i] |= flag;
	cpu->mmu.listed[mode][is_global].slot[cpu->mmu.listed[mode][is_global].n++] = (uint16_t)i;
}

/* Clear the listed slots that hold entries of the list's kind, and empty the list. */
static void flush_list(struct dbt_cpu *cpu, unsigned mode, bool is_global)
{
	struct dbt_tlb *t = &cpu->tlb[mode];
	uint64_t flag = is_global ? DBT_TLB_LISTED_G : DBT_TLB_LISTED;
	uint32_t n = cpu->mmu.listed[mode][is_global].n;

	for (uint32_t k = 0; k < n; k++) {
		uint32_t i = cpu->mmu.listed[mode][is_global].slot[k];
		t->phys[i] &= ~flag;
		if (!!(t->phys[i] & DBT_TLB_GLOBAL) == is_global)
			slot_clear(t, i);
	}
	cpu->mmu.listed[mode][is_global].n = 0;
}

/* Zero memory is no invalid slot: slot 0 would answer for page 0. */
static void slots_init(struct dbt_cpu *cpu, uint32_t first, uint32_t end)
{
	uint64_t ram = (uint64_t)(uintptr_t)cpu->vm->ram->base;

	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++)
		for (uint32_t i = first; i < end; i++) {
			cpu->tlb[mode].phys[i] = 0;
			cpu->tlb[mode].xlat[i] = ram;
			slot_clear(&cpu->tlb[mode], i);
		}
}

void mmu_init(struct dbt_cpu *cpu)
{
	spaces_reset(cpu, 0);
	cpu->tlb_bits = DBT_TLB_BITS_MIN;
	slots_init(cpu, 0, tlb_size(cpu));
	cpu->tlb_mask = (uint64_t)(tlb_size(cpu) - 1) << GUEST_PAGE_SHIFT;
}

/* Double the size.  Entry i goes to i or to i + old size, by the next bit of its page number. */
static void tlb_grow(struct dbt_cpu *cpu)
{
	uint32_t old = tlb_size(cpu);

	cpu->mmu.conflicts = 0;
	if (cpu->tlb_bits >= DBT_TLB_BITS_MAX)
		return;
	cpu->tlb_bits++;
	cpu->tlb_mask = (uint64_t)(tlb_size(cpu) - 1) << GUEST_PAGE_SHIFT;
	slots_init(cpu, old, tlb_size(cpu));
	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++) {
		struct dbt_tlb *t = &cpu->tlb[mode];
		cpu->mmu.listed[mode][0].n = cpu->mmu.listed[mode][1].n = 0;
		for (uint32_t i = 0; i < old; i++) {
			t->phys[i] &= ~(DBT_TLB_LISTED | DBT_TLB_LISTED_G);
			if (!(t->phys[i] & DBT_TLB_VALID))
				continue;
			uint32_t j = tlb_slot(cpu, slot_page(t, i));
			if (j != i) {
				t->wneg[j] = t->wneg[i]; /* both slots' invalid value is one */
				t->rneg[j] = t->rneg[i];
				t->xlat[j] = t->xlat[i];
				t->phys[j] = t->phys[i];
				slot_clear(t, i);
			}
			slot_list(cpu, mode, j, t->phys[j] & DBT_TLB_GLOBAL);
		}
	}
}

/* ---- large pages -------------------------------------------------------------------------- */

static const unsigned span_shift[2] = { 21, 30 };

static void drop_slots(struct dbt_cpu *cpu, uint64_t page)
{
	uint32_t i = tlb_slot(cpu, page);

	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++) {
		struct dbt_tlb *t = &cpu->tlb[mode];
		if (t->phys[i] & DBT_TLB_VALID && slot_page(t, i) == page)
			slot_clear(t, i);
	}
	struct dbt_ctlb_entry *c = &cpu->ctlb[page >> GUEST_PAGE_SHIFT & (DBT_CTLB_SIZE - 1)];
	if ((c->page & ~PAGE_OFFSET) == page)
		c->page = 0;
}

/* Everything that agrees with @va above bit 30; in the second level only @tag's. */
static void drop_gib(struct dbt_cpu *cpu, uint64_t va, uint32_t tag)
{
	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++)
		for (unsigned kind = 0; kind < 2; kind++)
			for (uint32_t k = 0; k < cpu->mmu.listed[mode][kind].n; k++) {
				struct dbt_tlb *t = &cpu->tlb[mode];
				uint32_t i = cpu->mmu.listed[mode][kind].slot[k];
				if (t->phys[i] & DBT_TLB_VALID && slot_page(t, i) >> 30 == va >> 30)
					slot_clear(t, i);
			}
	for (unsigned i = 0; i < DBT_CTLB_SIZE; i++)
		if (cpu->ctlb[i].page >> 30 == va >> 30)
			cpu->ctlb[i].page = 0;
	tlb2_drop_gib(cpu, va, tag);
	xlate_mapping_changed(cpu, 0, 0);
}

static void drop_span(struct dbt_cpu *cpu, uint64_t va, unsigned kind, uint32_t tag)
{
	if (kind == 1) {
		drop_gib(cpu, va, tag);
		return;
	}
	va &= ~(2 * MIB - 1);
	xlate_mapping_changed(cpu, va, 2 * MIB / GUEST_PAGE_SIZE);
	for (uint64_t end = va + 2 * MIB; va != end; va += GUEST_PAGE_SIZE) {
		drop_slots(cpu, va);
		tlb2_drop(cpu, va, tag);
	}
}

static uint64_t span_key(uint64_t va, unsigned kind, uint32_t tag)
{
	return tlb2_key(va >> span_shift[kind], tag);
}

static uint64_t *span_set(struct dbt_cpu *cpu, uint64_t va, unsigned kind, uint32_t tag)
{
	return cpu->mmu.large[kind][tlb2_hash(va >> span_shift[kind], tag) % DBT_LARGE_SETS];
}

/* A fragment of the span is about to be entered.  When there is no room another span's fragments go. */
static void span_add(struct dbt_cpu *cpu, uint64_t va, unsigned kind, uint32_t tag)
{
	uint64_t *set = span_set(cpu, va, kind, tag), key = span_key(va, kind, tag);
	unsigned way = DBT_LARGE_WAYS;

	for (unsigned i = 0; i < DBT_LARGE_WAYS; i++) {
		if (set[i] == key)
			return;
		if (!set[i])
			way = i;
	}
	if (way == DBT_LARGE_WAYS) {
		way = cpu->mmu.large_hand++ % DBT_LARGE_WAYS;
		drop_span(cpu, tlb2_va(cpu, set[way], span_shift[kind]), kind, tlb2_tag(set[way]));
	}
	set[way] = key;
}

static void note_large(struct dbt_cpu *cpu, uint64_t va, const struct mmu_page *p)
{
	uint32_t tag = p->is_global ? cpu->mmu.spaces.global_tag : cpu->mmu.spaces.tag;

	if (likely(p->size <= 4 * KIB))
		return;
	span_add(cpu, va, p->size == GIB, tag);
	if (p->size == 4 * MIB)
		span_add(cpu, va ^ 2 * MIB, 0, tag);
}

static void drop_spans_of(struct dbt_cpu *cpu, uint64_t va, uint32_t tag)
{
	for (unsigned kind = 0; kind < 2; kind++) {
		uint64_t *set = span_set(cpu, va, kind, tag), key = span_key(va, kind, tag);

		for (unsigned i = 0; i < DBT_LARGE_WAYS; i++)
			if (unlikely(set[i] == key)) {
				set[i] = 0;
				drop_span(cpu, va, kind, tag);
			}
	}
}

/* A 4M page is two spans. */
static void drop_large(struct dbt_cpu *cpu, uint64_t va, uint32_t tag)
{
	drop_spans_of(cpu, va, tag);
	if (!(cpu->s.cr4 & X86_CR4_PAE))
		drop_spans_of(cpu, va ^ 2 * MIB, tag);
}

/* Drops what may be cached for @va globally and for the address space of @tag. */
static void flush_page(struct dbt_cpu *cpu, uint64_t va, uint32_t tag)
{
	uint32_t global = cpu->mmu.spaces.global_tag;

	va &= ~PAGE_OFFSET;
	drop_large(cpu, va, tag);
	drop_large(cpu, va, global);
	drop_slots(cpu, va);
	tlb2_drop(cpu, va, tag);
	tlb2_drop(cpu, va, global);
	xlate_mapping_changed(cpu, va, 1);
}

/* ---- second level ------------------------------------------------------------------------- */

static const uint64_t page_sizes[4] = { 4 * KIB, 2 * MIB, 4 * MIB, GIB };

static uint64_t tlb2_val(const struct mmu_page *p)
{
	unsigned size = 0;

	while (page_sizes[size] != p->size)
		size++;
	return p->offset | p->rights | (p->is_dirty ? TLB2_D : 0) | (p->is_global ? TLB2_GLOBAL : 0) |
	       (p->is_writable ? 0 : TLB2_READONLY) | size << TLB2_SIZE_SHIFT;
}

/* mmu_walk() by way of the second level; out->gpa is not set where that answered. */
static bool translate(struct dbt_cpu *cpu, uint64_t va, unsigned mode, unsigned acc,
		      struct mmu_page *out, uint32_t *pf_err)
{
	bool is_paging = cpu->s.cr0 & X86_CR0_PG;
	bool has_second = is_paging && !(cpu->vm->cfg.without & ENGINE_SECOND_TLB);
	uint64_t val;

	if (has_second && tlb2_find(cpu, va, &val) &&
	    is_allowed(&cpu->s, (unsigned)val, mode, acc) && (acc != ACC_WRITE || val & TLB2_D)) {
		out->offset = val & ~PAGE_OFFSET;
		out->size = page_sizes[val >> TLB2_SIZE_SHIFT & 3];
		out->rights = val & (TLB2_U | TLB2_W | TLB2_NX);
		out->is_ram = true;
		out->is_writable = !(val & TLB2_READONLY);
		out->is_global = val & TLB2_GLOBAL;
		out->is_dirty = val & TLB2_D;
		out->can_write = is_allowed(&cpu->s, (unsigned)val, mode, ACC_WRITE);
		return true;
	}
	cpu->tlb_walks++;
	if (!mmu_walk(cpu, va, mode, acc, out, pf_err))
		return false;
	if (is_paging && out->is_ram) {
		note_large(cpu, va, out);
		if (has_second)
			tlb2_enter(cpu, va, tlb2_val(out));
	}
	return true;
}

/* ---- fill --------------------------------------------------------------------------------- */

/* May the page be written without notice from now on (mem/ram.h, invariant 5)? */
static bool claim_write(struct guest_ram *ram, uint64_t offset)
{
	_Atomic uint8_t *flags = &ram->page_flags[offset >> GUEST_PAGE_SHIFT];
	uint8_t old = atomic_load(flags);

	if (!(old & (NOTICE_FLAGS | RAM_PAGE_WMAP)))
		old = atomic_fetch_or(flags, RAM_PAGE_WMAP);
	return !(old & NOTICE_FLAGS);
}

static void tlb_enter(struct dbt_cpu *cpu, uint64_t va, unsigned mode, const struct mmu_page *p)
{
	struct dbt_tlb *t = &cpu->tlb[mode];
	uint64_t page = va & ~PAGE_OFFSET;
	uint32_t i = tlb_slot(cpu, va);

	cpu->tlb_misses++;
	cpu->tlb_misses_by_mode[mode]++;
	if (t->phys[i] & DBT_TLB_VALID && slot_page(t, i) != page &&
	    ++cpu->mmu.conflicts >= tlb_size(cpu) / 2) {
		tlb_grow(cpu);
		i = tlb_slot(cpu, va);
	}
	slot_list(cpu, mode, i, p->is_global);
	t->rneg[i] = 0 - page;
	t->wneg[i] = p->can_write && p->is_dirty && p->is_writable && claim_write(cpu->vm->ram, p->offset)
			     ? 0 - page
			     : DBT_TLB_INVALID(i);
	t->xlat[i] = (uint64_t)(uintptr_t)cpu->vm->ram->base + p->offset;
	t->phys[i] = p->offset | DBT_TLB_VALID | (p->is_global ? DBT_TLB_GLOBAL : 0) |
		     (t->phys[i] & (DBT_TLB_LISTED | DBT_TLB_LISTED_G));
}

bool mmu_translate(struct dbt_cpu *cpu, uint64_t va, unsigned mode, unsigned acc,
		   struct mmu_page *out, uint32_t *pf_err)
{
	va = wrap_linear(cpu, va);
	if (!translate(cpu, va, mode, acc, out, pf_err)) {
		flush_page(cpu, va, cpu->mmu.spaces.tag);
		return false;
	}
	if (out->is_ram)
		tlb_enter(cpu, va, mode, out);
	return true;
}

bool mmu_fill(struct dbt_cpu *cpu, uint64_t va, unsigned size, bool is_write, unsigned mode)
{
	struct mmu_page page;
	uint32_t err;

	va = wrap_linear(cpu, va);
	if ((va & PAGE_OFFSET) + size > GUEST_PAGE_SIZE || cpu->s.dr7 & 0xff || cpu->debug.nbreak ||
	    (dbt_is_long(cpu) && !mmu_is_canonical(va)))
		return false;
	if (!mmu_translate(cpu, va, mode, is_write ? ACC_WRITE : ACC_READ, &page, &err))
		return false;
	uint32_t i = tlb_slot(cpu, va);
	const struct dbt_tlb *t = &cpu->tlb[mode];
	return page.is_ram && va + (is_write ? t->wneg[i] : t->rneg[i]) < GUEST_PAGE_SIZE;
}

/* ---- code --------------------------------------------------------------------------------- */

static bool is_code_hit(const struct dbt_cpu *cpu, const struct dbt_ctlb_entry *c, uint64_t va)
{
	return (c->page & ~PAGE_OFFSET) == (va & ~PAGE_OFFSET) &&
	       (c->tag == cpu->mmu.spaces.tag || c->tag == cpu->mmu.spaces.global_tag);
}

static void ctlb_enter(struct dbt_cpu *cpu, uint64_t va, unsigned bit, const struct mmu_page *p)
{
	struct dbt_ctlb_entry *c = &cpu->ctlb[va >> GUEST_PAGE_SHIFT & (DBT_CTLB_SIZE - 1)];
	uint64_t phys = p->offset | (p->is_global ? DBT_TLB_GLOBAL : 0);

	/* The other privilege level's bit survives if it says the same. */
	uint64_t keep = is_code_hit(cpu, c, va) && c->phys == phys ? c->page & PAGE_OFFSET : 0;

	c->page = (va & ~PAGE_OFFSET) | keep | bit;
	c->phys = phys;
	c->tag = p->is_global ? cpu->mmu.spaces.global_tag : cpu->mmu.spaces.tag;
}

bool mmu_is_code_global(const struct dbt_cpu *cpu, uint64_t va)
{
	const struct dbt_ctlb_entry *c = &cpu->ctlb[va >> GUEST_PAGE_SHIFT & (DBT_CTLB_SIZE - 1)];

	return is_code_hit(cpu, c, va) && c->phys & DBT_TLB_GLOBAL;
}

static bool is_code_address(struct dbt_cpu *cpu, uint64_t *va)
{
	*va = wrap_linear(cpu, *va);
	return !dbt_is_long(cpu) || mmu_is_canonical(*va);
}

/* NULL with @err 0: not RAM; NULL with @err a page-fault code. */
static const uint8_t *fetch(struct dbt_cpu *cpu, uint64_t va, unsigned *avail, uint64_t *offset,
			    bool *is_fault, uint32_t *err)
{
	bool is_user = cpu->cpl == 3;
	unsigned bit = is_user ? 1 : 2;
	const struct dbt_ctlb_entry *c = &cpu->ctlb[va >> GUEST_PAGE_SHIFT & (DBT_CTLB_SIZE - 1)];
	struct mmu_page page;
	uint64_t at;

	*is_fault = false;
	if (is_code_hit(cpu, c, va) && c->page & bit) {
		at = c->phys & ~PAGE_OFFSET;
	} else {
		if (!translate(cpu, va, is_user ? DBT_TLB_USER : DBT_TLB_KERNEL, ACC_EXEC, &page, err)) {
			*is_fault = true;
			return NULL;
		}
		if (!page.is_ram)
			return NULL;
		ctlb_enter(cpu, va, bit, &page);
		at = page.offset;
	}
	*avail = GUEST_PAGE_SIZE - (va & PAGE_OFFSET);
	*offset = at;
	return cpu->vm->ram->base + at + (va & PAGE_OFFSET);
}

const uint8_t *mmu_fetch(struct dbt_cpu *cpu, uint64_t va, unsigned *avail, uint64_t *offset)
{
	bool is_fault;
	uint32_t err = 0;

	if (!is_code_address(cpu, &va))
		dbt_raise_err(cpu, EXC_GP, 0);
	const uint8_t *p = fetch(cpu, va, avail, offset, &is_fault, &err);
	if (is_fault) {
		flush_page(cpu, va, cpu->mmu.spaces.tag);
		dbt_raise_pf(cpu, va, err);
	}
	return p;
}

const uint8_t *mmu_fetch_probe(struct dbt_cpu *cpu, uint64_t va, unsigned *avail, uint64_t *offset)
{
	bool is_fault;
	uint32_t err;

	if (!is_code_address(cpu, &va))
		return NULL;
	return fetch(cpu, va, avail, offset, &is_fault, &err);
}

/* ---- invalidation ------------------------------------------------------------------------- */

static uint16_t current_pcid(const struct dbt_cpu *cpu)
{
	return cpu->s.cr4 & X86_CR4_PCIDE ? cpu->s.cr3 & 0xfff : 0;
}

void mmu_flush_all(struct dbt_cpu *cpu)
{
	cpu->tlb_flushes++;
	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++) {
		flush_list(cpu, mode, false);
		flush_list(cpu, mode, true);
	}
	memset(cpu->mmu.large, 0, sizeof(cpu->mmu.large));
	spaces_reset(cpu, current_pcid(cpu));
	xlate_mapping_changed(cpu, 0, 0);
}

/* The current tag is another one now. */
static void space_changed(struct dbt_cpu *cpu)
{
	cpu->tlb_flushes++;
	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++)
		flush_list(cpu, mode, false);
	dbt_space_changed(cpu);
}

void mmu_switch(struct dbt_cpu *cpu, bool keep)
{
	if (spaces_switch(cpu, current_pcid(cpu), keep))
		space_changed(cpu);
}

void mmu_flush_nonglobal(struct dbt_cpu *cpu)
{
	mmu_switch(cpu, false);
}

void mmu_flush_space(struct dbt_cpu *cpu, uint16_t pcid)
{
	if (spaces_flush(cpu, pcid))
		space_changed(cpu);
}

void mmu_flush_spaces(struct dbt_cpu *cpu)
{
	spaces_flush_others(cpu);
	mmu_flush_nonglobal(cpu);
}

void mmu_flush_page(struct dbt_cpu *cpu, uint64_t va)
{
	flush_page(cpu, wrap_linear(cpu, va), cpu->mmu.spaces.tag);
}

void mmu_flush_page_of(struct dbt_cpu *cpu, uint16_t pcid, uint64_t va)
{
	uint32_t tag = spaces_tag(cpu, pcid);

	if (tag)
		flush_page(cpu, wrap_linear(cpu, va), tag);
}

/* The page at @offset, or every page with @is_all. */
static void drop_write(struct dbt_cpu *cpu, uint64_t offset, bool is_all)
{
	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++)
		for (unsigned kind = 0; kind < 2; kind++)
			for (uint32_t k = 0; k < cpu->mmu.listed[mode][kind].n; k++) {
				struct dbt_tlb *t = &cpu->tlb[mode];
				uint32_t i = cpu->mmu.listed[mode][kind].slot[k];
				if (is_all || (t->phys[i] & ~PAGE_OFFSET) == offset)
					t->wneg[i] = DBT_TLB_INVALID(i);
			}
}

void mmu_drop_write(struct dbt_cpu *cpu, uint64_t offset)
{
	drop_write(cpu, offset & ~PAGE_OFFSET, false);
}

void mmu_drop_all_writes(struct dbt_cpu *cpu)
{
	drop_write(cpu, 0, true);
}

/* ---- verification ------------------------------------------------------------------------- */

static bool verify_slot(struct dbt_cpu *cpu, unsigned mode, uint32_t i)
{
	const struct dbt_tlb *t = &cpu->tlb[mode];
	struct guest_ram *ram = cpu->vm->ram;
	struct mmu_page page;
	uint64_t va = slot_page(t, i);
	uint32_t err;
	struct walk w = { .cpu = cpu, .va = va, .mode = mode, .acc = ACC_READ, .out = &page };

	bool is_global = t->phys[i] & DBT_TLB_GLOBAL;

	if (tlb_slot(cpu, va) != i || !(t->phys[i] & (is_global ? DBT_TLB_LISTED_G : DBT_TLB_LISTED)))
		return false;
	if (!walk(&w, &err) || !page.is_ram || page.offset != (t->phys[i] & ~PAGE_OFFSET) ||
	    page.is_global != is_global)
		return false;
	if (t->xlat[i] != (uint64_t)(uintptr_t)ram->base + page.offset)
		return false;
	if (t->wneg[i] == DBT_TLB_INVALID(i))
		return true;
	uint8_t flags = atomic_load(&ram->page_flags[page.offset >> GUEST_PAGE_SHIFT]);
	return t->wneg[i] == t->rneg[i] && page.can_write && page.is_dirty && page.is_writable &&
	       flags & RAM_PAGE_WMAP && !(flags & NOTICE_FLAGS);
}

/* Entries of other address spaces wait for their own turn. */
static bool is_current_tag(const struct dbt_cpu *cpu, uint32_t tag)
{
	return tag == cpu->mmu.spaces.tag || tag == cpu->mmu.spaces.global_tag;
}

/* Invariant 4. */
static bool is_span_noted(struct dbt_cpu *cpu, uint64_t va, uint64_t size, uint32_t tag)
{
	unsigned kind = size == GIB;
	const uint64_t *set = span_set(cpu, va, kind, tag);

	for (unsigned i = 0; i < DBT_LARGE_WAYS; i++)
		if (set[i] == span_key(va, kind, tag))
			return true;
	return size == 4 * KIB;
}

static bool verify_tlb2(struct dbt_cpu *cpu, uint64_t key, uint64_t val)
{
	struct mmu_page page;
	uint32_t err;
	struct walk w = { .cpu = cpu,
			  .va = tlb2_va(cpu, key, GUEST_PAGE_SHIFT),
			  .mode = val & TLB2_U ? DBT_TLB_USER : DBT_TLB_KERNEL_AC,
			  .acc = ACC_READ,
			  .out = &page };

	if (!key || !is_current_tag(cpu, tlb2_tag(key)))
		return true;
	if (!walk(&w, &err) || !page.is_ram)
		return false;
	page.is_dirty &= !!(val & TLB2_D); /* D set meanwhile is found by the next write */
	return val == tlb2_val(&page) && is_span_noted(cpu, w.va, page.size, tlb2_tag(key)) &&
	       !(val & TLB2_GLOBAL) == (tlb2_tag(key) == cpu->mmu.spaces.tag);
}

static bool verify_code(struct dbt_cpu *cpu, const struct dbt_ctlb_entry *c)
{
	static const uint8_t modes[] = { DBT_TLB_USER, DBT_TLB_KERNEL };

	for (unsigned k = 0; k < 2; k++) {
		struct mmu_page page;
		uint32_t err;
		struct walk w = { .cpu = cpu,
				  .va = c->page & ~PAGE_OFFSET,
				  .mode = modes[k],
				  .acc = ACC_EXEC,
				  .out = &page };
		if (!(c->page >> k & 1) || !is_current_tag(cpu, c->tag))
			continue;
		if (!walk(&w, &err) || !page.is_ram || page.offset != (c->phys & ~PAGE_OFFSET) ||
		    page.is_global != !!(c->phys & DBT_TLB_GLOBAL))
			return false;
	}
	return true;
}

bool mmu_verify_tlb(struct dbt_cpu *cpu, uint64_t *bad_va)
{
	for (unsigned mode = 0; mode < DBT_TLB_MODES; mode++)
		for (uint32_t i = 0; i < tlb_size(cpu); i++) {
			const struct dbt_tlb *t = &cpu->tlb[mode];
			bool is_ok;
			if (t->phys[i] & DBT_TLB_VALID)
				is_ok = verify_slot(cpu, mode, i);
			else
				is_ok = !(t->phys[i] & DBT_TLB_VALID) &&
					t->rneg[i] == DBT_TLB_INVALID(i) &&
					t->wneg[i] == DBT_TLB_INVALID(i);
			if (!is_ok) {
				*bad_va = slot_page(t, i);
				return false;
			}
		}
	for (unsigned n = 0; n < DBT_TLB2_SETS; n++)
		for (unsigned i = 0; i < DBT_TLB2_WAYS; i++)
			if (!verify_tlb2(cpu, cpu->mmu.tlb2[n].key[i], cpu->mmu.tlb2[n].val[i])) {
				*bad_va = tlb2_va(cpu, cpu->mmu.tlb2[n].key[i], GUEST_PAGE_SHIFT);
				return false;
			}
	for (unsigned i = 0; i < DBT_CTLB_SIZE; i++)
		if (!verify_code(cpu, &cpu->ctlb[i])) {
			*bad_va = cpu->ctlb[i].page & ~PAGE_OFFSET;
			return false;
		}
	return true;
}
