/* SPDX-License-Identifier: Apache-2.0 */
/* The walker against an independent model over random tables; coherence of the TLB under random use. */
#include "engine/dbt/mmu_test.h"

static uint64_t below(uint64_t n)
{
	return (rnd() >> 11) % n;
}
static bool one_in(uint64_t n)
{
	return below(n) == 0;
}

/* ---- the walker against a model ------------------------------------------------------------ */

enum paging { PAGING_NONE, PAGING_32, PAGING_PAE, PAGING_LONG, PAGING_KINDS };

/* What the model says: outcome and the entries that get new bits, in order. */
struct model {
	bool is_ok;
	uint32_t err;
	uint64_t gpa, size;
	bool is_global;
	unsigned nwrites;
	struct {
		uint64_t gpa, bits;
	} writes[4];
};

static uint64_t model_load(uint64_t gpa, unsigned bytes)
{
	uint64_t v = ~0ULL;

	gpa &= vm.phys_mask;
	if (gpa < ram.low_bytes)
		memcpy(&v, ram.base + gpa, bytes);
	else if (gpa >= 0xf0000000 && gpa < 0xf0010000)
		memcpy(&v, ram.base + ram.low_bytes + (gpa - 0xf0000000), bytes);
	return bytes == 4 ? (uint32_t)v : v;
}

/*
 * Written from the manual's tables, level by level from the entries' values collected first: unlike
 * the walker it gathers the whole chain, then judges it.
 */
static struct model model_walk(enum paging kind, uint64_t va, unsigned mode, unsigned acc)
{
	struct model m = { 0 };
	const struct x86_state *s = &cpu->s;
	bool nxe = s->efer & X86_EFER_NXE && (kind == PAGING_PAE || kind == PAGING_LONG);
	uint64_t e[4], at[4], lo[4]; /* value, address, lowest address bit that the level resolves */
	unsigned width = kind == PAGING_32 ? 4 : 8, n = 0, levels, leaf = 0;
	uint64_t table;

	if (kind == PAGING_NONE) {
		m.is_ok = true;
		m.gpa = va & 0xfffff000;
		m.size = 4096;
		return m;
	}
	levels = kind == PAGING_LONG ? 4 : 2;
	table = kind == PAGING_LONG ? s->cr3 & 0xffffffffff000
		: kind == PAGING_32 ? s->cr3 & 0xfffff000
				    : cpu->pdpte[(va >> 30) & 3] & 0xffffffffff000;
	if (kind == PAGING_PAE && !(cpu->pdpte[(va >> 30) & 3] & 1))
		levels = 0;
	bool is_present = levels > 0;
	for (n = 0; n < levels; n++) {
		unsigned bits = kind == PAGING_32 ? 10 : 9;
		lo[n] = 12 + (levels - 1 - n) * bits;
		at[n] = table + ((va >> lo[n]) & ((1u << bits) - 1)) * width;
		e[n] = model_load(at[n], width);
		leaf = n;
		if (!(e[n] & 1)) {
			is_present = false;
			break;
		}
		bool can_be_large = kind == PAGING_32 ? s->cr4 & X86_CR4_PSE
				    : lo[n] == 21     ? true
				    : lo[n] == 30     ? vm.model.has[CPUF_GBPAGES]
						      : false;
		if (lo[n] > 12 && e[n] & 0x80 && can_be_large)
			break;
		table = e[n] & (kind == PAGING_32 ? 0xfffff000 : 0xffffffffff000);
	}
	bool is_user = true, is_writable = true, is_nx = false, is_rsvd = false;
	for (unsigned i = 0; i <= leaf && levels; i++) {
		uint64_t v = e[i], bad = 0;
		if (!(v & 1))
			break;
		bool is_page = i == leaf && is_present;
		if (kind != PAGING_32) {
			for (unsigned b = 0; b < 52; b++)
				if (!(vm.phys_mask >> b & 1))
					bad |= 1ULL << b;
			if (kind == PAGING_PAE)
				for (unsigned b = 52; b < 63; b++)
					bad |= 1ULL << b;
			if (!nxe)
				bad |= 1ULL << 63;
			if (lo[i] == 39 || (lo[i] == 30 && !vm.model.has[CPUF_GBPAGES]))
				bad |= 0x80;
			if (is_page || (v & 0x80 && (lo[i] == 21 || lo[i] == 30)))
				for (unsigned b = 13; b < lo[i]; b++)
					bad |= 1ULL << b;
		} else if (lo[i] == 22 && v & 0x80 && s->cr4 & X86_CR4_PSE) {
			bad |= 1u << 21;
			for (unsigned b = 13; b <= 20; b++)
				if (!(vm.phys_mask >> (b - 13 + 32) & 1))
					bad |= 1u << b;
		}
		if (v & bad) { /* the walk ends here */
			is_rsvd = true;
			leaf = i;
			break;
		}
		is_user = is_user && v & 4;
		is_writable = is_writable && v & 2;
		is_nx = is_nx || (nxe && v >> 63);
	}
	bool is_fetch = acc == ACC_EXEC, is_write = acc == ACC_WRITE, by_user = mode == DBT_TLB_USER;
	bool is_denied = false;
	if (by_user && !is_user)
		is_denied = true;
	if (is_write && !is_writable && (by_user || s->cr0 & X86_CR0_WP))
		is_denied = true;
	if (is_fetch && is_nx)
		is_denied = true;
	if (is_fetch && !by_user && is_user && s->cr4 & X86_CR4_SMEP)
		is_denied = true;
	if (!is_fetch && !by_user && is_user && s->cr4 & X86_CR4_SMAP && mode != DBT_TLB_KERNEL_AC)
		is_denied = true;
	m.is_ok = is_present && !is_rsvd && !is_denied;
	m.err = (is_write ? 2 : 0) | (by_user ? 4 : 0) |
		(is_fetch && (nxe || s->cr4 & X86_CR4_SMEP) ? 16 : 0);
	if (is_rsvd)
		m.err |= 1 | 8;
	else if (is_present)
		m.err |= 1;
	/* Accessed bits of all entries passed, of the last one only if the access is allowed. */
	for (unsigned i = 0; i <= leaf && levels; i++) {
		uint64_t bits = 0x20;
		if (i == leaf) {
			if (!m.is_ok)
				break;
			if (is_write)
				bits |= 0x40;
		}
		uint64_t gpa = at[i] & vm.phys_mask;
		if (gpa < ram.low_bytes && (e[i] & bits) != bits) {
			m.writes[m.nwrites].gpa = gpa;
			m.writes[m.nwrites++].bits = bits;
		}
	}
	if (!m.is_ok)
		return m;
	m.size = 1ULL << lo[leaf];
	uint64_t base = e[leaf] & 0xffffffffff000 & ~(m.size - 1);
	if (kind == PAGING_32 && lo[leaf] == 22)
		base = (e[leaf] & 0xffc00000) | (e[leaf] & 0x1fe000) << 19;
	m.gpa = (base + (va & (m.size - 1) & ~0xfffULL)) & vm.phys_mask;
	m.is_global = e[leaf] & 0x100 && s->cr4 & X86_CR4_PGE;
	return m;
}

static uint64_t random_entry(unsigned width)
{
	uint64_t e = 0;

	e |= one_in(12) ? 0 : 1;
	e |= one_in(4) ? 0 : 2;
	e |= one_in(4) ? 0 : 4;
	e |= rnd() & 0x78; /* PWT PCD A D */
	e |= one_in(5) ? 0x80 : 0;
	e |= rnd() & 0xf00;
	if (one_in(16))
		e |= rnd() & 0xffffffffff000; /* anywhere */
	else if (one_in(16))
		e |= 0xf0000000 + (below(16) << 12); /* in ROM */
	else
		e |= below(ram.low_bytes >> 12) << 12;
	if (e & 0x80 && !one_in(4)) /* a well-formed large page */
		e &= width == 4 ? ~0x3ff000ULL | 0x1000 : ~0x1ff000ULL | 0x1000;
	if (width == 8) {
		e |= one_in(6) ? 1ULL << 63 : 0;
		e |= one_in(24) ? rnd() & 0x7ff0000000000000 : 0;
		e |= one_in(32) ? 1ULL << (40 + below(12)) : 0;
	}
	return e;
}

static void fill_random_tables(unsigned width)
{
	for (uint64_t i = 0; i < ram.low_bytes + 0x10000; i += width) {
		uint64_t e = random_entry(width);
		memcpy(ram.base + i, &e, width);
	}
}

static void set_mode(enum paging kind)
{
	struct x86_state *s = &cpu->s;

	s->cr0 = X86_CR0_PE | (kind == PAGING_NONE ? 0 : X86_CR0_PG) | (rnd() & X86_CR0_WP);
	s->cr4 = rnd() & (X86_CR4_PSE | X86_CR4_PGE | X86_CR4_SMEP | X86_CR4_SMAP | X86_CR4_PCIDE);
	s->efer = rnd() & X86_EFER_NXE;
	if (kind == PAGING_PAE || kind == PAGING_LONG)
		s->cr4 |= X86_CR4_PAE;
	if (kind == PAGING_LONG)
		s->efer |= X86_EFER_LME | X86_EFER_LMA;
	s->cr3 = below(ram.low_bytes >> 12) << 12 | (rnd() & 0xfff);
	if (one_in(50))
		s->cr3 = 0x80000000; /* a hole */
	for (unsigned i = 0; i < 4; i++)
		cpu->pdpte[i] = below(ram.low_bytes >> 12) << 12 | !one_in(8);
	vm.phys_mask = (1ULL << (36 + below(17))) - 1;
	vm.model.has[CPUF_GBPAGES] = rnd() & 1;
}

static void walker_matches_model(void **state)
{
	static const unsigned accs[] = { ACC_READ, ACC_WRITE, ACC_EXEC };
	unsigned seen_ok = 0, seen_rsvd = 0, seen_np = 0, seen_prot = 0, seen_large = 0;
	struct error err;

	make(MIB, 64 * KIB);
	assert_non_null(ram_add_rom(&ram, 0xf0000000, 64 * KIB, &err));
	uint8_t *shadow = malloc(ram.size_bytes);
	for (enum paging kind = 0; kind < PAGING_KINDS; kind++) {
		for (unsigned round = 0; round < 40; round++) {
			fill_random_tables(kind == PAGING_32 ? 4 : 8);
			memcpy(shadow, ram.base, ram.size_bytes);
			for (unsigned step = 0; step < 2000; step++) {
				if (step % 50 == 0)
					set_mode(kind);
				uint64_t va = kind == PAGING_LONG
						      ? (uint64_t)((int64_t)(rnd() << 16) >> 16)
						      : (uint32_t)rnd();
				unsigned mode = (unsigned)below(3), acc = accs[below(3)];
				struct model m = model_walk(kind, va, mode, acc);
				struct mmu_page p = { 0 };
				uint32_t pf = 0;
				bool is_ok = mmu_walk(cpu, va, mode, acc, &p, &pf);

				assert_int_equal(is_ok, m.is_ok);
				for (unsigned i = 0; i < m.nwrites; i++) {
					uint8_t *b = shadow + m.writes[i].gpa;
					b[0] |= (uint8_t)m.writes[i].bits;
					assert_int_equal(*b, ram.base[m.writes[i].gpa]);
				}
				if (step % 100 == 99)
					assert_memory_equal(shadow, ram.base, ram.size_bytes);
				gpa_t peeked;
				if (mmu_peek(cpu, va, &peeked) && is_ok)
					assert_int_equal(peeked, p.gpa | (va & 0xfff));
				if (!is_ok) {
					assert_int_equal(pf, m.err);
					seen_rsvd += !!(pf & PF_RSVD);
					seen_np += !(pf & PF_P);
					seen_prot += (pf & (PF_P | PF_RSVD)) == PF_P;
					continue;
				}
				seen_ok++;
				seen_large += p.size > 4096;
				assert_int_equal(p.gpa, m.gpa);
				assert_int_equal(p.size, m.size);
				assert_int_equal(p.is_global, m.is_global);
				assert_int_equal(p.is_ram, ram_find(&ram, p.gpa) != NULL);
				if (p.is_ram)
					assert_ptr_equal(ram.base + p.offset, ram_ptr(&ram, p.gpa, 4096));
				/* can_write is what a write would find. */
				if (kind != PAGING_NONE) {
					struct model w = model_walk(kind, va, mode, ACC_WRITE);
					assert_int_equal(p.can_write, w.is_ok);
				}
			}
		}
	}
	free(shadow);
	print_message("ok %u, large %u, not present %u, denied %u, reserved %u\n", seen_ok,
		      seen_large, seen_np, seen_prot, seen_rsvd);
	assert_true(seen_ok > 10000 && seen_large > 1000 && seen_np > 10000 && seen_prot > 10000 &&
		    seen_rsvd > 1000);
}

static unsigned count_valid(unsigned mode)
{
	unsigned n = 0;

	for (unsigned i = 0; i < DBT_TLB_MAX; i++)
		n += !!(cpu->tlb[mode].phys[i] & DBT_TLB_VALID);
	return n;
}

/* ---- TLB ----------------------------------------------------------------------------------- */

static void invalid_entries_never_hit(void **state)
{
	make_long(16 * MIB, 0);
	for (unsigned i = 0; i < DBT_TLB_MAX; i++)
		for (unsigned k = 0; k < 64; k++) {
			uint64_t va = k < 32 ? rnd() : (1ULL << 63) + (k & 1) * 4096 + (rnd() & 0xfff);
			va = (va & ~((uint64_t)(DBT_TLB_MAX - 1) << 12)) | (uint64_t)i << 12;
			assert_true(va + DBT_TLB_INVALID(i) >= 4096);
			for (unsigned b = DBT_TLB_BITS_MIN; b < DBT_TLB_BITS_MAX; b++)
				assert_true(va + DBT_TLB_INVALID(i & ((1u << b) - 1)) >= 4096);
		}
	assert_tlb_true();
}

static void fill_rules(void **state)
{
	const uint64_t va = 0x7f1234567000;
	uint64_t gpa = DATA_BASE + 0x5000;

	make_long(16 * MIB, 0);
	uint64_t *pte = pte_of(va, 12);
	assert_false(mmu_fill(cpu, va, 1, false, DBT_TLB_KERNEL));
	*pte = gpa | 3; /* present, writable, neither A nor D */
	assert_true(mmu_fill(cpu, va + 8, 8, false, DBT_TLB_KERNEL));
	assert_int_equal(*pte & 0x60, 0x20);
	assert_ptr_equal(emitted_lookup(va + 8, DBT_TLB_KERNEL, false), ram.base + gpa + 8);
	assert_null(emitted_lookup(va + 8, DBT_TLB_KERNEL, true)); /* D is clear */
	assert_false(mmu_fill(cpu, va, 8, false, DBT_TLB_USER));
	assert_int_equal(ram.page_flags[gpa >> 12], 0);
	assert_true(mmu_fill(cpu, va + 8, 8, true, DBT_TLB_KERNEL));
	assert_int_equal(*pte & 0x60, 0x60);
	assert_ptr_equal(emitted_lookup(va + 8, DBT_TLB_KERNEL, true), ram.base + gpa + 8);
	assert_int_equal(ram.page_flags[gpa >> 12], RAM_PAGE_WMAP);
	assert_false(mmu_fill(cpu, va + 4090, 8, false, DBT_TLB_KERNEL)); /* crosses */
	assert_false(mmu_fill(cpu, 0x800000000000, 8, false, DBT_TLB_KERNEL));
	assert_tlb_true();

	/* A write mapping goes when asked, and comes back only when the flags allow. */
	static const uint8_t notice[] = { RAM_PAGE_CODE, RAM_PAGE_TRACK, RAM_PAGE_WATCH };
	for (unsigned i = 0; i < 3; i++) {
		assert_true(mmu_fill(cpu, va, 8, true, DBT_TLB_KERNEL));
		ram.page_flags[gpa >> 12] |= notice[i];
		mmu_drop_write(cpu, gpa);
		assert_null(emitted_lookup(va, DBT_TLB_KERNEL, true));
		assert_non_null(emitted_lookup(va, DBT_TLB_KERNEL, false));
		assert_false(mmu_fill(cpu, va, 8, true, DBT_TLB_KERNEL));
		assert_true(mmu_fill(cpu, va, 8, false, DBT_TLB_KERNEL));
		assert_null(emitted_lookup(va, DBT_TLB_KERNEL, true));
		ram.page_flags[gpa >> 12] = 0;
	}
	assert_true(mmu_fill(cpu, va, 8, true, DBT_TLB_KERNEL));
	mmu_drop_all_writes(cpu);
	assert_null(emitted_lookup(va, DBT_TLB_KERNEL, true));
	cpu->s.dr7 = 1;
	assert_false(mmu_fill(cpu, va, 8, true, DBT_TLB_KERNEL)); /* debugging: interpreter's */
	cpu->s.dr7 = 0;
	*pte = 0xfee00000 | 0x63; /* a device */
	mmu_flush_page(cpu, va);
	assert_false(mmu_fill(cpu, va, 8, false, DBT_TLB_KERNEL));
	assert_tlb_true();
}

static void flushes_and_globals(void **state)
{
	const uint64_t user = 0x400000, kernel = 0xffffffff81000000;

	make_long(16 * MIB, 0);
	*pte_of(user, 12) = DATA_BASE | 7;
	*pte_of(kernel, 12) = (DATA_BASE + 0x1000) | 0x103;
	assert_true(mmu_fill(cpu, user, 1, true, DBT_TLB_USER));
	assert_true(mmu_fill(cpu, user, 1, true, DBT_TLB_KERNEL));
	assert_true(mmu_fill(cpu, kernel, 1, true, DBT_TLB_KERNEL));
	cpu->cpl = 3;
	mmu_flush_nonglobal(cpu);
	uint64_t key = cpu->jc_key;
	mmu_flush_nonglobal(cpu);
	assert_int_not_equal(cpu->jc_key, key); /* nothing of the branch table is left */
	cpu->cpl = 0;
	assert_null(emitted_lookup(user, DBT_TLB_USER, false));
	assert_null(emitted_lookup(user, DBT_TLB_KERNEL, false));
	assert_non_null(emitted_lookup(kernel, DBT_TLB_KERNEL, true));
	unsigned n = nmapping_changed;
	mmu_flush_page(cpu, kernel + 123); /* INVLPG drops global pages too */
	assert_true(nmapping_changed > n);
	assert_null(emitted_lookup(kernel, DBT_TLB_KERNEL, true));
	assert_true(mmu_fill(cpu, kernel, 1, true, DBT_TLB_KERNEL));
	mmu_flush_all(cpu);
	assert_int_equal(count_valid(DBT_TLB_KERNEL), 0);

	/* A slot that changes between kinds. */
	for (unsigned i = 0; i < 20; i++) {
		*pte_of(user, 12) = DATA_BASE | 7 | (i & 1 ? 0x100 : 0);
		mmu_flush_page(cpu, user);
		assert_true(mmu_fill(cpu, user, 1, false, DBT_TLB_USER));
		assert_tlb_true();
		if (i % 3 == 2)
			mmu_flush_nonglobal(cpu);
		assert_int_equal(emitted_lookup(user, DBT_TLB_USER, false) != NULL, i % 3 != 2 || i & 1);
	}
	/* Without CR4.PGE nothing is global. */
	cpu->s.cr4 &= ~(uint64_t)X86_CR4_PGE;
	mmu_flush_all(cpu);
	assert_true(mmu_fill(cpu, kernel, 1, true, DBT_TLB_KERNEL));
	mmu_flush_nonglobal(cpu);
	assert_int_equal(count_valid(DBT_TLB_KERNEL), 0);
}

static void invlpg_covers_large_pages(void **state)
{
	static const struct {
		unsigned shift;
		uint64_t size;
	} kinds[] = { { 21, 2 * MIB }, { 30, GIB } };

	make_long(3 * GIB, 0);
	for (unsigned k = 0; k < 2; k++) {
		const uint64_t va = 0xffff888040000000;
		*pte_of(va, kinds[k].shift) = 0x40000000 | 0x83;
		for (uint64_t i = 0; i < 64; i++) /* each in a slot of its own */
			assert_true(mmu_fill(cpu, va + i * (kinds[k].size / 64 - 4096), 1, true,
					     DBT_TLB_KERNEL));
		assert_int_equal(count_valid(DBT_TLB_KERNEL), 64);
		assert_tlb_true();
		mmu_flush_page(cpu, va + kinds[k].size - 1); /* an address never entered */
		assert_int_equal(count_valid(DBT_TLB_KERNEL), 0);
		mmu_flush_all(cpu);
	}
	/* 4M page of 32-bit paging: the other half of it. */
	cpu->s.cr4 = X86_CR4_PSE;
	cpu->s.efer = 0;
	uint32_t pde = 0x00800000 | 0x83;
	memcpy(ram.base + cpu->s.cr3 + (0x10000000 >> 22) * 4, &pde, 4);
	mmu_flush_all(cpu);
	assert_true(mmu_fill(cpu, 0x10001000, 1, true, DBT_TLB_KERNEL));
	assert_true(mmu_fill(cpu, 0x103ff000, 1, true, DBT_TLB_KERNEL));
	mmu_flush_page(cpu, 0x10200000);
	assert_int_equal(count_valid(DBT_TLB_KERNEL), 0);
}

static void tlb_grows(void **state)
{
	make_long(64 * MIB, 0);
	const uint64_t va = 0x10000000;
	for (unsigned i = 0; i < 8192; i++)
		*pte_of(va + i * 4096ULL, 12) = (DATA_BASE + i * 4096ULL) | 0x67 | (i % 3 ? 0 : 0x100);
	assert_int_equal(cpu->tlb_bits, DBT_TLB_BITS_MIN);
	for (unsigned pass = 0; pass < 3; pass++)
		for (unsigned i = 0; i < 8192; i++) {
			uint64_t a = va + i * 4096ULL;
			if (!emitted_lookup(a, DBT_TLB_USER, i & 1))
				assert_true(mmu_fill(cpu, a, 4, i & 1, DBT_TLB_USER));
			assert_ptr_equal(emitted_lookup(a, DBT_TLB_USER, i & 1),
					 ram.base + DATA_BASE + i * 4096ULL);
			if (i % 1024 == 0)
				assert_tlb_true();
		}
	assert_int_equal(cpu->tlb_bits, DBT_TLB_BITS_MAX);
	assert_int_equal(cpu->tlb_mask, (DBT_TLB_MAX - 1) << 12);
	assert_int_equal(count_valid(DBT_TLB_USER), 8192); /* now it all fits */
	uint64_t misses = cpu->tlb_misses;
	for (unsigned i = 0; i < 8192; i++)
		assert_non_null(emitted_lookup(va + i * 4096ULL, DBT_TLB_USER, true));
	assert_int_equal(cpu->tlb_misses, misses);
	assert_tlb_true();
	mmu_flush_nonglobal(cpu);
	assert_int_equal(count_valid(DBT_TLB_USER), 2731);
	assert_tlb_true();
	mmu_flush_all(cpu);
	assert_int_equal(count_valid(DBT_TLB_USER), 0);
	assert_tlb_true();
}

static void fetches(void **state)
{
	const uint64_t va = 0x401000, kva = 0xffffffff81000000;
	unsigned avail;
	uint64_t off;

	make_long(16 * MIB, 0);
	*pte_of(va, 12) = DATA_BASE | 5;
	cpu->cpl = 3;
	assert_ptr_equal(mmu_fetch(cpu, va + 0xff0, &avail, &off), ram.base + DATA_BASE + 0xff0);
	assert_int_equal(avail, 16);
	assert_int_equal(off, DATA_BASE);
	assert_int_equal(*pte_of(va, 12) & 0x20, 0x20);
	cpu->cpl = 0; /* the supervisor may execute it, too: no SMEP */
	assert_non_null(mmu_fetch_probe(cpu, va, &avail, &off));
	assert_tlb_true();
	cpu->s.cr4 |= X86_CR4_SMEP;
	mmu_flush_all(cpu);
	assert_null(mmu_fetch_probe(cpu, va, &avail, &off));
	assert_true(RAISES(mmu_fetch(cpu, va + 5, &avail, &off)));
	assert_int_equal(raised.vector, EXC_PF);
	assert_int_equal(raised.err, PF_P | PF_I);
	assert_int_equal(raised.cr2, va + 5);
	cpu->cpl = 3;
	assert_non_null(mmu_fetch_probe(cpu, va, &avail, &off));
	cpu->cpl = 0;
	assert_null(mmu_fetch_probe(cpu, va, &avail, &off)); /* the user's entry is not the kernel's */
	cpu->cpl = 3;

	*pte_of(va, 12) |= 1ULL << 63;
	assert_non_null(mmu_fetch_probe(cpu, va, &avail, &off)); /* cached, as hardware */
	mmu_flush_page(cpu, va);
	assert_true(RAISES(mmu_fetch(cpu, va, &avail, &off)));
	assert_int_equal(raised.err, PF_P | PF_U | PF_I);

	/* Global code survives MOV CR3, other code does not. */
	cpu->cpl = 0;
	*pte_of(kva, 12) = DATA_BASE | 0x101;
	*pte_of(kva + 4096, 12) = (DATA_BASE + 4096) | 1;
	assert_non_null(mmu_fetch_probe(cpu, kva, &avail, &off));
	assert_non_null(mmu_fetch_probe(cpu, kva + 4096, &avail, &off));
	mmu_flush_nonglobal(cpu);
	*pte_of(kva, 12) = *pte_of(kva + 4096, 12) = 0;
	assert_non_null(mmu_fetch_probe(cpu, kva, &avail, &off));
	assert_null(mmu_fetch_probe(cpu, kva + 4096, &avail, &off));
	mmu_flush_page(cpu, kva);
	assert_null(mmu_fetch_probe(cpu, kva, &avail, &off));

	*pte_of(kva, 12) = 0xfee00001; /* no memory there */
	assert_null(mmu_fetch(cpu, kva, &avail, &off));
	assert_true(RAISES(mmu_fetch(cpu, 0x800000000000, &avail, &off)));
	assert_int_equal(raised.vector, EXC_GP);
	assert_null(mmu_fetch_probe(cpu, 0x800000000000, &avail, &off));
}

/* Random use with the invalidations that the architecture asks for: at no time a false entry. */
static void tlb_stays_coherent(void **state)
{
	enum { PAGES = 1536 };
	static const uint64_t bases[] = { 0x400000, 0x7fffff000000, 0xffff888000000000 };
	unsigned hits = 0;

	make_long(32 * MIB, 0);
	for (unsigned i = 0; i < 3 * PAGES; i++)
		if (!one_in(6))
			*pte_of(bases[i % 3] + i / 3 * 4096ULL, 12) =
				(DATA_BASE + below(4096) * 4096) | (rnd() & 0x165) | 3;
	for (unsigned step = 0; step < 60000; step++) {
		uint64_t va = bases[below(3)] + below(PAGES) * 4096;
		unsigned mode = (unsigned)below(3), avail;
		uint64_t off;
		uint64_t data = DATA_BASE + below(4096) * 4096;
		switch (below(12)) {
		case 0: { /* change a mapping, then INVLPG */
			bool is_large = one_in(4);
			uint64_t *e = pte_of(va, is_large ? 21 : 12);
			uint64_t v = (rnd() & 0x167) | (one_in(8) ? 0 : 3) | (rnd() & 1ULL << 63);
			if (is_large)
				v |= 0x80;
			if (is_large && !(*e & 0x80) && *e & 1)
				break; /* keep the table: its pages would all need INVLPG */
			*e = v | (is_large ? data & ~0x1fffffULL : data);
			mmu_flush_page(cpu, va + below(4096));
			break;
		}
		case 1: /* D and A cleared by the guest, flushed by CR3 unless global */
			if (one_in(20)) {
				uint64_t *e = pte_of(va, 12);
				if (!(*e & 0x100)) {
					*e &= ~0x60ULL;
					mmu_flush_nonglobal(cpu);
				}
			}
			break;
		case 2:
			if (one_in(200))
				mmu_flush_all(cpu);
			break;
		case 3: /* the translator takes a page */
			if (one_in(4)) {
				uint8_t old = atomic_fetch_or(&ram.page_flags[data >> 12],
							      1u << below(4) & ~RAM_PAGE_DIRTY);
				if (old & RAM_PAGE_WMAP) {
					mmu_drop_write(cpu, data);
					atomic_fetch_and(&ram.page_flags[data >> 12],
							 (uint8_t)~RAM_PAGE_WMAP);
				}
			} else {
				atomic_fetch_and(&ram.page_flags[data >> 12], RAM_PAGE_WMAP);
			}
			break;
		case 4:
		case 5:
			cpu->cpl = one_in(2) ? 3 : 0;
			mmu_fetch_probe(cpu, va, &avail, &off);
			break;
		case 6:
			cpu->tlb_mode = (uint8_t)mode;
			(void)RAISES(mem_write_lin(cpu, va + below(4096), 8, rnd()));
			break;
		default:
			hits += mmu_fill(cpu, va, 1, one_in(2), mode);
		}
		if (step % 64 == 0)
			assert_tlb_true();
	}
	assert_tlb_true();
	print_message("%u fills, %u bits\n", hits, cpu->tlb_bits);
	assert_true(hits > 10000 && cpu->tlb_bits > DBT_TLB_BITS_MIN);
}

/* ---- address spaces ------------------------------------------------------------------------ */

#define KERNEL_BASE 0xffff888000000000ULL

/* Another table root that shares the upper half of the first. */
static uint64_t new_space(void)
{
	uint64_t root = new_table(), first = cpu->s.cr3 & ~0xfffULL;

	(void)pte_of(KERNEL_BASE, 12);
	memcpy(entry_at(root + 2048), entry_at(first + 2048), 2048);
	return root;
}

static void switch_to(uint64_t root, uint64_t pcid, bool keep)
{
	cpu->s.cr3 = root | pcid;
	mmu_switch(cpu, keep);
}

/* How many walks a read by @mode takes; fails if what is found is not @gpa. */
static uint64_t walks_for(uint64_t va, unsigned mode, uint64_t gpa)
{
	uint64_t walks = cpu->tlb_walks;

	if (!emitted_lookup(va, mode, false))
		assert_true(mmu_fill(cpu, va, 1, false, mode));
	assert_ptr_equal(emitted_lookup(va, mode, false), ram.base + gpa);
	return cpu->tlb_walks - walks;
}

static uint64_t user_key(void)
{
	cpu->cpl = 3;
	dbt_mode_changed(cpu);
	uint64_t key = cpu->jc_key;
	cpu->cpl = 0;
	return key;
}

static void spaces_keep_what_is_theirs(void **state)
{
	enum { VA = 0x400000, A = DATA_BASE, B = DATA_BASE + 0x1000, G = DATA_BASE + 0x2000 };
	const uint64_t global = KERNEL_BASE;

	make_long(16 * MIB, 0);
	cpu->s.cr4 |= X86_CR4_PCIDE;
	cpu->s.seg[SEG_SS].attr = 3 << SEG_ATTR_DPL_SHIFT; /* CPL 3 for the key */
	uint64_t first = cpu->s.cr3, second;
	*pte_of(VA, 12) = A | 7;
	*pte_of(global, 12) = G | 0x103;
	second = new_space();
	switch_to(second, 5, true);
	*pte_of(VA, 12) = B | 7;
	assert_int_equal(walks_for(VA, DBT_TLB_USER, B), 1);
	assert_int_equal(walks_for(global, DBT_TLB_KERNEL, G), 1);
	uint64_t key = user_key();
	switch_to(first, 0, true);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 1);
	assert_int_equal(walks_for(VA, DBT_TLB_KERNEL, A), 0); /* one walk serves all modes */
	assert_int_equal(walks_for(global, DBT_TLB_KERNEL, G), 0);
	assert_int_not_equal(user_key(), key);
	for (unsigned i = 0; i < 4; i++) {
		switch_to(second, 5, true);
		assert_int_equal(user_key(), key);
		assert_int_equal(walks_for(VA, DBT_TLB_USER, B), 0);
		switch_to(first, 0, true);
		assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 0);
	}
	/* INVLPG is of the current PCID and of global pages. */
	mmu_flush_page(cpu, VA);
	mmu_flush_page(cpu, global);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 1);
	switch_to(second, 5, true);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, B), 0);
	assert_int_equal(walks_for(global, DBT_TLB_KERNEL, G), 1);
	/* MOV CR3 with bit 63 clear is of the new PCID. */
	switch_to(first, 0, false);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 1);
	assert_int_equal(walks_for(global, DBT_TLB_KERNEL, G), 0);
	switch_to(second, 5, true);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, B), 0);
	switch_to(first, 0, true);
	/* INVPCID, types 0 to 3, from the other space; what is left of: the other, this one, global. */
	for (unsigned type = 0; type < 4; type++) {
		if (type == 0)
			mmu_flush_page_of(cpu, 5, VA);
		else if (type == 1)
			mmu_flush_space(cpu, 5);
		else if (type == 2)
			mmu_flush_all(cpu);
		else
			mmu_flush_spaces(cpu);
		assert_int_equal(walks_for(global, DBT_TLB_KERNEL, G), type == 2);
		assert_int_equal(walks_for(VA, DBT_TLB_USER, A), type >= 2);
		switch_to(second, 5, true);
		assert_int_equal(walks_for(VA, DBT_TLB_USER, B), 1);
		assert_true((user_key() != key) == (type > 0));
		key = user_key();
		switch_to(first, 0, true);
		assert_tlb_true();
	}
	mmu_flush_space(cpu, 0); /* the current one */
	assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 1);
	mmu_flush_space(cpu, 9); /* has nothing */
	mmu_flush_page_of(cpu, 9, VA);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 0);
	/* Without PCIDs there is one space. */
	cpu->s.cr4 &= ~(uint64_t)X86_CR4_PCIDE;
	mmu_flush_all(cpu);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 1);
	switch_to(second, 0, false);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, B), 1);
	switch_to(first, 0, false);
	assert_int_equal(walks_for(VA, DBT_TLB_USER, A), 1);
}

/* Supervisor code: one key for all spaces while it is in global pages only. */
static void kernel_keys(void **state)
{
	make_long(16 * MIB, 0);
	cpu->s.cr4 |= X86_CR4_PCIDE;
	uint64_t first = cpu->s.cr3, key = (dbt_mode_changed(cpu), cpu->jc_key);
	uint64_t second = new_space();
	switch_to(second, 5, true);
	assert_int_equal(cpu->jc_key, key);
	cpu->has_local_code = true; /* as the branch table's filler found */
	switch_to(first, 0, true);
	assert_int_not_equal(cpu->jc_key, key);
	assert_false(cpu->has_local_code);
	key = cpu->jc_key;
	switch_to(second, 5, false);
	assert_int_equal(cpu->jc_key, key);
}

static void spaces_and_large_pages(void **state)
{
	enum { VA = 0x40000000 };

	make_long(256 * MIB, 0);
	cpu->s.cr4 |= X86_CR4_PCIDE;
	uint64_t first = cpu->s.cr3, second = new_space();
	*pte_of(VA, 21) = 0x2000000 | 0xe7;
	switch_to(second, 5, true);
	*pte_of(VA, 21) = 0x4000000 | 0xe7;
	for (uint64_t o = 0; o < 2 * MIB; o += 4096)
		assert_int_equal(walks_for(VA + o, DBT_TLB_USER, 0x4000000 + o), 1);
	switch_to(first, 0, true);
	for (uint64_t o = 0; o < 2 * MIB; o += 4096)
		assert_int_equal(walks_for(VA + o, DBT_TLB_USER, 0x2000000 + o), 1);
	mmu_flush_page(cpu, VA + 0x5000);
	assert_int_equal(count_valid(DBT_TLB_USER), 0);
	for (uint64_t o = 0; o < 2 * MIB; o += 4096)
		assert_int_equal(walks_for(VA + o, DBT_TLB_USER, 0x2000000 + o), 1);
	switch_to(second, 5, true);
	for (uint64_t o = 0; o < 2 * MIB; o += 4096)
		assert_int_equal(walks_for(VA + o, DBT_TLB_USER, 0x4000000 + o), 0);
	switch_to(first, 0, true);
	mmu_flush_page_of(cpu, 5, VA + 0x123000);
	switch_to(second, 5, true);
	for (uint64_t o = 0; o < 2 * MIB; o += 4096)
		assert_int_equal(walks_for(VA + o, DBT_TLB_USER, 0x4000000 + o), 1);
	assert_tlb_true();
	/* More spans than can be noted: whose note goes, his fragments go; INVLPG is still of whole pages. */
	for (uint64_t i = 1; i < 4000; i++) {
		*pte_of(VA + i * 2 * MIB, 21) = (i % 100 * 2 * MIB) | 0xe7;
		for (unsigned k = 0; k < 3; k++)
			(void)walks_for(VA + i * 2 * MIB + k * 4096, DBT_TLB_USER,
					i % 100 * 2 * MIB + k * 4096);
		if (i % 500 == 0)
			assert_tlb_true();
	}
	assert_tlb_true();
	for (uint64_t i = 0; i < 4000; i++) {
		*pte_of(VA + i * 2 * MIB, 21) = 0;
		mmu_flush_page(cpu, VA + i * 2 * MIB + 0x77000);
		if (i % 500 == 0)
			assert_tlb_true();
	}
	assert_int_equal(count_valid(DBT_TLB_USER), 0);
	assert_tlb_true();
}

/* Tags are numbered; when the numbers end, nothing of before may answer. */
static void tags_end(void **state)
{
	enum { VA = 0x400000 };

	make_long(16 * MIB, 0);
	cpu->s.cr4 |= X86_CR4_PCIDE;
	uint64_t first = cpu->s.cr3, second = new_space();
	unsigned avail;
	uint64_t off;
	for (unsigned i = 0; i < 2; i++) {
		*pte_of(VA, 12) = DATA_BASE | 7;
		assert_int_equal(walks_for(VA, DBT_TLB_KERNEL, DATA_BASE), 1);
		assert_non_null(mmu_fetch_probe(cpu, VA, &avail, &off));
		uint64_t gen = cpu->as_gen;
		cpu->mmu.spaces.next_tag = (1u << 28) - 1 + i;
		*pte_of(VA, 12) = (DATA_BASE + 0x1000) | 7;
		for (unsigned k = 0; k < 10; k++) {
			switch_to(second, 5, false);
			assert_false(mmu_fill(cpu, VA, 1, false, DBT_TLB_KERNEL));
			assert_null(mmu_fetch_probe(cpu, VA, &avail, &off));
			switch_to(first, 0, false);
			assert_int_equal(walks_for(VA, DBT_TLB_KERNEL, DATA_BASE + 0x1000), 1);
			assert_non_null(mmu_fetch_probe(cpu, VA, &avail, &off));
			assert_int_equal(off, DATA_BASE + 0x1000);
			assert_tlb_true();
		}
		assert_true(cpu->mmu.spaces.next_tag < 1000);
		assert_int_equal(cpu->as_gen, gen + 1);
		mmu_flush_all(cpu);
	}
}

/* Dirty tracking and code pages are asked again whenever a write mapping is made. */
static void second_level_claims_no_writes(void **state)
{
	enum { VA = 0x400000, PAGE = DATA_BASE >> 12 };

	make_long(16 * MIB, 0);
	cpu->s.cr4 |= X86_CR4_PCIDE;
	uint64_t first = cpu->s.cr3, second = new_space();
	*pte_of(VA, 12) = DATA_BASE | 7;
	assert_true(mmu_fill(cpu, VA, 1, true, DBT_TLB_USER));
	switch_to(second, 5, true);
	ram.page_flags[PAGE] = RAM_PAGE_TRACK; /* WMAP cleared: no first level has the page */
	switch_to(first, 0, true);
	uint64_t walks = cpu->tlb_walks;
	assert_false(mmu_fill(cpu, VA, 1, true, DBT_TLB_USER));
	assert_true(mmu_fill(cpu, VA, 1, false, DBT_TLB_USER));
	assert_null(emitted_lookup(VA, DBT_TLB_USER, true));
	ram.page_flags[PAGE] = 0;
	assert_true(mmu_fill(cpu, VA, 1, true, DBT_TLB_USER));
	assert_int_equal(ram.page_flags[PAGE], RAM_PAGE_WMAP);
	assert_int_equal(cpu->tlb_walks, walks);
	/* D is set by the first write, whatever reads have cached. */
	*pte_of(VA + 4096, 12) = (DATA_BASE + 4096) | 7;
	assert_true(mmu_fill(cpu, VA + 4096, 1, false, DBT_TLB_USER));
	switch_to(second, 5, true);
	switch_to(first, 0, true);
	assert_int_equal(*pte_of(VA + 4096, 12) & 0x60, 0x20);
	assert_true(mmu_fill(cpu, VA + 4096, 1, true, DBT_TLB_USER));
	assert_int_equal(*pte_of(VA + 4096, 12) & 0x60, 0x60);
	/* Rights are judged anew by mode and by CR0.WP, CR4.SMAP, CR4.SMEP. */
	*pte_of(VA + 8192, 12) = (DATA_BASE + 8192) | 0x65; /* read-only, user's, D set */
	assert_true(mmu_fill(cpu, VA + 8192, 1, false, DBT_TLB_USER));
	assert_false(mmu_fill(cpu, VA + 8192, 1, true, DBT_TLB_KERNEL));
	cpu->s.cr0 &= ~(uint64_t)X86_CR0_WP;
	mmu_flush_all(cpu);
	assert_true(mmu_fill(cpu, VA + 8192, 1, true, DBT_TLB_KERNEL));
	assert_false(mmu_fill(cpu, VA + 8192, 1, true, DBT_TLB_USER));
	cpu->s.cr4 |= X86_CR4_SMAP;
	mmu_flush_all(cpu);
	assert_true(mmu_fill(cpu, VA + 8192, 1, false, DBT_TLB_USER));
	assert_false(mmu_fill(cpu, VA + 8192, 1, false, DBT_TLB_KERNEL));
	assert_true(mmu_fill(cpu, VA + 8192, 1, false, DBT_TLB_KERNEL_AC));
	assert_tlb_true();
}

/* Random use of more PCIDs than have room, each with the invalidations that the architecture asks for. */
static void spaces_stay_coherent(void **state)
{
	enum { PCIDS = 24, ROOTS = 5, PAGES = 96 };
	static const uint64_t bases[] = { 0x400000, 0x40000000, KERNEL_BASE };
	uint64_t roots[ROOTS], hits = 0, pcid = 0;

	make_long(32 * MIB, 0);
	cpu->s.cr4 |= X86_CR4_PCIDE;
	roots[0] = cpu->s.cr3;
	for (unsigned i = 1; i < ROOTS; i++)
		roots[i] = new_space();
	for (unsigned step = 0; step < 60000; step++) {
		unsigned region = (unsigned)below(3), avail;
		uint64_t va = bases[region] + below(PAGES) * (region == 1 && one_in(2) ? 2 * MIB : 4096);
		uint64_t off, data = DATA_BASE + below(4096) * 4096;
		unsigned op = (unsigned)below(16);

		if (op == 0) { /* change a mapping of some space, which need not be the current one */
			uint64_t cr3 = cpu->s.cr3, root = below(ROOTS);
			bool is_large = region == 1 && one_in(2), was_table;
			uint64_t *e, v = (rnd() & 0x67) | (one_in(6) ? 0 : 3) | (rnd() & 1ULL << 63);

			cpu->s.cr3 = roots[root];
			e = pte_of(va, is_large ? 21 : 12);
			cpu->s.cr3 = cr3;
			was_table = is_large && *e & 1 && !(*e & 0x80);
			*e = v | (is_large ? 0x80 | (data & ~0x1fffffULL) : data) |
			     (region == 2 && one_in(2) ? 0x100 : 0);
			for (uint64_t p = 0; p < PCIDS; p++)
				if (region == 2 || p % ROOTS == root) {
					if (was_table || one_in(8))
						mmu_flush_space(cpu, (uint16_t)p);
					else
						mmu_flush_page_of(cpu, (uint16_t)p, va + below(4096));
				}
			mmu_flush_page(cpu, va); /* global entries have no PCID */
		} else if (op < 4) {
			pcid = below(PCIDS);
			switch_to(roots[pcid % ROOTS], pcid, !one_in(8));
			assert_tlb_true();
		} else if (op == 4 && one_in(50)) {
			mmu_flush_spaces(cpu);
		} else if (op == 4 && one_in(50)) {
			mmu_flush_all(cpu);
		} else if (op < 7) {
			cpu->cpl = one_in(2) ? 3 : 0;
			(void)mmu_fetch_probe(cpu, va, &avail, &off);
		} else {
			hits += mmu_fill(cpu, va, 1, one_in(2), (unsigned)below(3));
		}
		if (step % 64 == 0)
			assert_tlb_true();
	}
	print_message("%llu fills, %llu walks\n", (unsigned long long)hits,
		      (unsigned long long)cpu->tlb_walks);
	assert_true(hits > 5000 && cpu->tlb_walks > 5000);
}

static void walk_notes_its_own_writes(void **state)
{
	const uint64_t va = 0x400000;
	struct mmu_page p;
	uint32_t err;

	make_long(16 * MIB, 0);
	uint64_t *pte = pte_of(va, 12);
	uint64_t off = (uint64_t)((uint8_t *)pte - ram.base);
	*pte = DATA_BASE | 7;
	ram.page_flags[off >> 12] = RAM_PAGE_CODE | RAM_PAGE_TRACK;
	assert_true(mmu_walk(cpu, va, DBT_TLB_USER, ACC_READ, &p, &err));
	assert_int_equal(ncode_hits, 1);
	assert_int_equal(code_hits[0].offset, off);
	assert_int_equal(ram.page_flags[off >> 12], RAM_PAGE_CODE | RAM_PAGE_DIRTY);
	assert_true(mmu_walk(cpu, va, DBT_TLB_USER, ACC_READ, &p, &err));
	assert_int_equal(ncode_hits, 1); /* nothing to set, nothing written */
	assert_true(mmu_walk(cpu, va, DBT_TLB_USER, ACC_WRITE, &p, &err));
	assert_int_equal(ncode_hits, 2);
	gpa_t gpa;
	*pte &= ~0x60ULL;
	assert_true(mmu_peek(cpu, va + 5, &gpa));
	assert_int_equal(gpa, DATA_BASE + 5);
	assert_int_equal(*pte & 0x60, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(walker_matches_model),
		T(invalid_entries_never_hit),
		T(fill_rules),
		T(flushes_and_globals),
		T(invlpg_covers_large_pages),
		T(tlb_grows),
		T(fetches),
		T(tlb_stays_coherent),
		T(spaces_keep_what_is_theirs),
		T(kernel_keys),
		T(spaces_and_large_pages),
		T(tags_end),
		T(second_level_claims_no_writes),
		T(spaces_stay_coherent),
		T(walk_notes_its_own_writes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
