/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest: 4 MiB of RAM, page tables that map the arena and the code pages for user mode, every feature of the
 * host shown.  Exceptions are not delivered but noted: the linker sends exc_deliver_raised() here (--wrap).
 */
#include <asm/prctl.h>
#include <cpuid.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"
#include "native.h"

#include "engine/dbt/mmu.h"
#include "engine/dbt/thunk.h"

#define PT_GPA	  0x10000u /* PML4, PDPT, PD, two PTs */
#define ARENA_GPA 0x100000u
#define CODE_GPA  0x110000u

enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40 };
#define PTE_NX (1ULL << 63)

static struct dt_guest *current;

void __wrap_exc_deliver_raised(struct dbt_cpu *cpu);
void __wrap_exc_deliver_raised(struct dbt_cpu *cpu)
{
	current->vector = cpu->raise_vector;
	current->error = cpu->raise_has_error ? cpu->raise_error : 0;
}

static void put_pte(struct dt_guest *g, uint64_t table, unsigned index, uint64_t pte)
{
	memcpy(g->ram.base + table + 8 * index, &pte, 8);
}

static void map_page(struct dt_guest *g, uint64_t va, uint64_t gpa, uint64_t flags)
{
	const uint64_t link = PTE_P | PTE_W | PTE_U | PTE_A;
	uint64_t pt = PT_GPA + 0x3000 + (va >> 21 & 1) * 0x1000;

	put_pte(g, PT_GPA, va >> 39 & 511, (PT_GPA + 0x1000) | link);
	put_pte(g, PT_GPA + 0x1000, va >> 30 & 511, (PT_GPA + 0x2000) | link);
	put_pte(g, PT_GPA + 0x2000, va >> 21 & 511, pt | link);
	put_pte(g, pt, va >> 12 & 511, gpa | flags);
}

/* The host's vendor, and every feature in the list that its CPUID shows. */
static int fill_model(struct cpu_model *m, struct error *err)
{
	static const struct {
		uint32_t leaf, subleaf;
		uint8_t reg, bit;
	} features[CPUF_COUNT] = {
#define X(name, leaf_, subleaf_, reg_, bit_) [CPUF_##name] = { leaf_, subleaf_, reg_, bit_ },
#include "engine/cpu_features.def"
#undef X
	};

	int ret = cpu_model_init(m, "host", 1, err);

	for (unsigned f = 1; !ret && f < CPUF_COUNT; f++) {
		uint32_t r[4];

		m->has[f] = false;
		if (__get_cpuid_count(features[f].leaf, features[f].subleaf, &r[0], &r[1], &r[2], &r[3]))
			m->has[f] = r[features[f].reg] >> features[f].bit & 1;
	}
	m->xcr0_mask = dbt_host_xsave_mask();
	return ret;
}

static void fill_state(struct x86_state *s)
{
	const struct x86_seg data = { .limit = 0xffffffff, .selector = 0x2b, .attr = 0xc0f3 };
	uint64_t base;

	s->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP | X86_CR0_NE | X86_CR0_ET | X86_CR0_MP;
	s->cr3 = PT_GPA;
	s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
	s->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
	s->xcr0 = dbt_host_xsave_mask();
	s->dr6 = 0xffff0ff0;
	s->dr7 = 0x400;
	s->rflags = 2;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = data;
	s->seg[SEG_CS] = (struct x86_seg){ .limit = 0xffffffff, .selector = 0x33, .attr = 0xa0fb };
	/* FS and GS as natively: a segment override then means the same on both sides. */
	syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
	s->seg[SEG_FS].base = base;
	syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	s->seg[SEG_GS].base = base;
}

static struct cpu_model model;

/* The guest has no devices: nothing it does leaves the engine. */
static int no_exit(void *ctx, struct vcpu_exit *x)
{
	fprintf(stderr, "difftest: unexpected exit of kind %d at %llx\n", x->kind,
		(unsigned long long)x->addr);
	abort();
}

static int no_interrupt(void *ctx)
{
	return -1;
}

int dt_guest_create(struct dt_guest *g, bool is_strict)
{
	struct engine_config cfg = { .ram = &g->ram, .model = &model, .vcpus = 1, .is_strict = is_strict };
	const struct vcpu_up up = { .on_exit = no_exit, .intr_ack = no_interrupt };
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;
	struct error err = { { 0 } };

	if (fill_model(&model, &err) < 0)
		goto fail;
	if (ram_create(&g->ram, 4 * MIB, 0, &err) < 0)
		goto fail;
	if (engine_dbt.vm_create(&vm, &cfg, &err) < 0)
		goto fail;
	g->vm = (struct dbt_vm *)(void *)vm;
	if (engine_dbt.vcpu_create(&vcpu, vm, 0, &up, &err) < 0)
		goto fail;
	g->cpu = (struct dbt_cpu *)(void *)vcpu;
	if (thunk_thread_init(g->cpu, &err) < 0)
		goto fail;
	fill_state(&g->cpu->s);
	dbt_mode_changed(g->cpu);
	mmu_flush_all(g->cpu);

	for (unsigned i = 0; i < ARENA_PAGES; i++)
		map_page(g, ARENA_VA + i * 4096, ARENA_GPA + i * 4096,
			 PTE_P | PTE_U | PTE_A | PTE_D | PTE_NX | (i < ARENA_RW_PAGES ? PTE_W : 0));
	for (unsigned i = 0; i < CODE_PAGES; i++)
		map_page(g, CODE_VA + i * 4096, CODE_GPA + i * 4096, PTE_P | PTE_U | PTE_A);
	g->arena = g->ram.base + ARENA_GPA;
	g->code = g->ram.base + CODE_GPA;
	current = g;
	return 0;
fail:
	fprintf(stderr, "difftest: %s\n", err.text);
	dt_guest_destroy(g);
	return -1;
}

void dt_guest_set_mode(struct dt_guest *g, unsigned bits)
{
	struct x86_state *s = &g->cpu->s;
	const struct x86_seg data16 = { .base = DATA16_VA, .limit = 0xffff, .selector = 0xf, .attr = 0x00f3 };

	if (bits == 32)
		s->seg[SEG_CS] =
			(struct x86_seg){ .limit = 0xffffffff, .selector = 0x23, .attr = 0xc0fb };
	if (bits == 16) {
		s->seg[SEG_CS] =
			(struct x86_seg){ .base = CODE_VA, .limit = 0xffff, .selector = 7, .attr = 0x00fb };
		s->seg[SEG_DS] = s->seg[SEG_ES] = s->seg[SEG_SS] = data16;
	}
	dbt_mode_changed(g->cpu);
}

void dt_guest_put_code(struct dt_guest *g, unsigned off, const uint8_t *bytes, unsigned len)
{
	if (bytes)
		memcpy(g->code + off, bytes, len);
	else
		memset(g->code + off, 0xcc, len);
	ram_note_write_ptr(&g->ram, g->code + off, len);
}

void dt_guest_destroy(struct dt_guest *g)
{
	thunk_thread_finish();
	engine_dbt.vcpu_destroy((struct engine_vcpu *)(void *)g->cpu);
	engine_dbt.vm_destroy((struct engine_vm *)(void *)g->vm);
	ram_destroy(&g->ram);
}
