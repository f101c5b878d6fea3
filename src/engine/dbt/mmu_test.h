/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of mmu.c and mem.c: the rest of the engine as doubles, and a small guest address space.
 * Included by exactly one file of each test program.
 */
#ifndef VIV_DBT_MMU_TEST_H
#define VIV_DBT_MMU_TEST_H

#include "base/unit.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "engine/dbt/mmu.h"

/* ---- the rest of the engine, as doubles ---------------------------------------------------- */

static struct guest_ram ram;
static struct dbt_vm vm;
static struct dbt_cpu *cpu;

static jmp_buf raise_jmp;
static struct {
	int vector; /* -1: nothing raised */
	uint32_t err;
	uint64_t cr2;
} raised;

void dbt_raise_err(struct dbt_cpu *c, unsigned vector, uint32_t err_code)
{
	raised.vector = (int)vector;
	raised.err = err_code;
	longjmp(raise_jmp, 1);
}

void dbt_raise_pf(struct dbt_cpu *c, uint64_t va, uint32_t err_code)
{
	raised.cr2 = va;
	dbt_raise_err(c, EXC_PF, err_code);
}

static struct {
	bool is_write;
	uint8_t size;
	uint64_t addr, data;
} mmio[64];
static unsigned nmmio;
int dbt_exit(struct dbt_cpu *c, struct vcpu_exit *x)
{
	assert_int_equal(x->kind, EXIT_MMIO);
	assert_true(nmmio < ARRAY_SIZE(mmio));
	if (!x->is_write) { /* each byte reads as the low byte of its address plus 1 */
		x->data = 0;
		for (unsigned i = 0; i < x->size; i++)
			x->data |= ((x->addr + i + 1) & 0xff) << (8 * i);
	}
	mmio[nmmio].is_write = x->is_write;
	mmio[nmmio].size = x->size;
	mmio[nmmio].addr = x->addr;
	mmio[nmmio++].data = x->data;
	return 0;
}

static int exclusive_depth;
static unsigned nexclusive;
static void (*while_waiting)(void);
void dbt_exclusive_begin(struct dbt_cpu *c)
{
	assert_int_equal(exclusive_depth++, 0);
	nexclusive++;
	if (while_waiting)
		while_waiting();
}

void dbt_exclusive_end(struct dbt_cpu *c)
{
	assert_int_equal(--exclusive_depth, 0);
}

static struct {
	uint64_t offset, len;
} code_hits[8];
static unsigned ncode_hits;
void dbt_code_written(struct dbt_vm *v, uint64_t offset, uint64_t len)
{
	code_hits[ncode_hits % 8].offset = offset;
	code_hits[ncode_hits++ % 8].len = len;
}

static unsigned nmapping_changed;
void xlate_mapping_changed(struct dbt_cpu *c, uint64_t va, unsigned npages)
{
	nmapping_changed++;
}

/* Runs a statement; true if it raised.  No local that is read after a raise changes in between. */
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wclobbered"
#endif
#define RAISES(stmt)                                                                               \
	({                                                                                         \
		raised.vector = -1;                                                                \
		if (!setjmp(raise_jmp)) {                                                          \
			stmt;                                                                      \
		}                                                                                  \
		raised.vector >= 0;                                                                \
	})

static uint64_t rng_state;
static uint64_t rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state * 0x2545f4914f6cdd1d;
}

static void make(uint64_t ram_bytes, uint64_t rom_bytes)
{
	struct error err;

	assert_int_equal(ram_create(&ram, ram_bytes, rom_bytes, &err), 0);
	vm = (struct dbt_vm){ .ram = &ram, .phys_mask = (1ULL << 46) - 1 };
	vm.model.has[CPUF_GBPAGES] = true;
	assert_int_equal(posix_memalign((void **)&cpu, 4096, sizeof(*cpu)), 0);
	memset(cpu, 0, sizeof(*cpu));
	cpu->vm = &vm;
	mmu_init(cpu);
	rng_state = 0x1234567887654321;
	nmmio = ncode_hits = nexclusive = 0;
	exclusive_depth = 0;
	while_waiting = NULL;
}

static int teardown(void **state)
{
	free(cpu);
	cpu = NULL;
	ram_destroy(&ram);
	return 0;
}

/* ---- a small guest address space for the other tests --------------------------------------- */

#define DATA_BASE 0x400000ULL /* RAM above here is data, below it tables */
static uint64_t next_table;

static uint64_t new_table(void)
{
	uint64_t t = next_table;

	next_table += 4096;
	assert_true(next_table <= DATA_BASE);
	memset(ram.base + t, 0, 4096);
	return t;
}

static uint64_t *entry_at(uint64_t gpa)
{
	return (uint64_t *)(void *)(ram.base + gpa);
}

/* The entry that maps @va at the level that resolves bit @shift; makes the tables above. */
static uint64_t *pte_of(uint64_t va, unsigned shift)
{
	uint64_t table = cpu->s.cr3 & ~0xfffULL;

	for (unsigned s = 39;; s -= 9) {
		uint64_t *e = entry_at(table + ((va >> s) & 511) * 8);
		if (s == shift)
			return e;
		if (!(*e & 1) || *e & 0x80)
			*e = new_table() | 7;
		table = *e & 0xffffffffff000;
	}
}

static void make_long(uint64_t ram_bytes, uint64_t rom_bytes)
{
	make(ram_bytes, rom_bytes);
	next_table = 0x1000;
	cpu->s.cr3 = new_table();
	cpu->s.cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP;
	cpu->s.cr4 = X86_CR4_PAE | X86_CR4_PGE;
	cpu->s.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
	cpu->mode_key = DBT_MODE_CODE64 | DBT_MODE_PE | DBT_MODE_FLAT;
	cpu->code_bits = 64;
	cpu->tlb_mode = DBT_TLB_KERNEL;
	mmu_flush_all(cpu);
}

static void assert_tlb_true(void)
{
	uint64_t va = 0;

	if (!mmu_verify_tlb(cpu, &va))
		fail_msg("TLB entry of %#llx is not what a walk gives", (unsigned long long)va);
}

/* An entry as emitted code uses it. */
static uint8_t *emitted_lookup(uint64_t va, unsigned mode, bool is_write)
{
	uint32_t i = (uint32_t)((va & cpu->tlb_mask) >> 12);
	const struct dbt_tlb *t = &cpu->tlb[mode];

	if (va + (is_write ? t->wneg[i] : t->rneg[i]) >= 4096)
		return NULL;
	return (uint8_t *)(uintptr_t)(t->xlat[i] + va % GUEST_PAGE_SIZE);
}

#endif
