/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lockstep checker: a block both ways, translated and interpreted, and the results compared.
 *
 * The translated run comes first; every page it writes is copied before the first write (no soft-TLB
 * entry permits a write at the start, so each page's first write passes the miss, which calls
 * check_note_fill).  Then memory and registers are put back and the interpreter executes the same
 * instructions.  While checking is on, blocks are neither chained nor entered through the branch table, so
 * that a block comes back to the dispatcher.
 *
 * Not checked: blocks that read the TSC, and what other vCPUs or devices change in between (run it with
 * one vCPU).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/dbt/check.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"

#define CHECK_MAX_PAGES 64

struct check_page {
	uint64_t offset;
	uint8_t before[4096], after[4096];
};

struct check {
	bool is_on;
	bool is_overflow;
	unsigned npages;
	struct check_page page[CHECK_MAX_PAGES];
	struct x86_state start, translated;
	uint64_t counter;
	char text[512], difference[560];
};

int check_create(struct dbt_cpu *cpu, struct error *err)
{
	if (!cpu->vm->cfg.check_every)
		return 0;
	cpu->xlate->check = aligned_alloc(64, ALIGN_UP(sizeof(struct check), 64));
	if (!cpu->xlate->check)
		return error_set(err, -ENOMEM, "no memory for the lockstep checker");
	memset(cpu->xlate->check, 0, sizeof(struct check));
	cpu->xlate->is_watched = true;
	return 0;
}

void check_destroy(struct dbt_cpu *cpu)
{
	free(cpu->xlate->check);
	cpu->xlate->check = NULL;
}

void check_note_fill(struct dbt_cpu *cpu, uint64_t va)
{
	struct check *k = cpu->xlate->check;

	if (!k || !k->is_on)
		return;
	const struct dbt_tlb *t = &cpu->tlb[cpu->tlb_mode];
	uint64_t i = (va & cpu->tlb_mask) >> 12;
	uint64_t offset = t->phys[i] & ~0xfffULL;

	if (t->wneg[i] == DBT_TLB_INVALID(i))
		return;
	for (unsigned n = 0; n < k->npages; n++)
		if (k->page[n].offset == offset)
			return;
	if (k->npages == CHECK_MAX_PAGES) {
		k->is_overflow = true;
		return;
	}
	struct check_page *p = &k->page[k->npages++];

	p->offset = offset;
	memcpy(p->before, cpu->vm->ram->base + offset, 4096);
}

static bool is_due(struct check *k, unsigned every)
{
	return k && ++k->counter % every == 0;
}

static bool same_state(struct check *k, const struct x86_state *a, const struct x86_state *b)
{
	static const char *const names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp",
					       "rsi", "rdi", "r8",  "r9",  "r10", "r11",
					       "r12", "r13", "r14", "r15" };

	k->text[0] = 0;
	for (unsigned i = 0; i < 16; i++) {
		if (a->gpr[i] == b->gpr[i])
			continue;
		snprintf(k->text, sizeof(k->text), "%s translated %llx interpreted %llx", names[i],
			 (unsigned long long)a->gpr[i], (unsigned long long)b->gpr[i]);
		return false;
	}
	if ((a->rflags ^ b->rflags) & ~(uint64_t)X86_FL_RF) {
		snprintf(k->text, sizeof(k->text), "rflags translated %llx interpreted %llx",
			 (unsigned long long)a->rflags, (unsigned long long)b->rflags);
		return false;
	}
	/* Everything of the FPU but the instruction and data pointers. */
	for (unsigned i = 0; i < X86_XSAVE_BYTES; i++) {
		if (a->xsave[i] == b->xsave[i] || (i >= 6 && i < 24) || (i >= 464 && i < 576))
			continue;
		snprintf(k->text, sizeof(k->text), "xsave byte %u translated %x interpreted %x", i,
			 a->xsave[i], b->xsave[i]);
		return false;
	}
	return true;
}

static bool same_memory(struct dbt_cpu *cpu, struct check *k)
{
	for (unsigned n = 0; n < k->npages; n++) {
		const uint8_t *now = cpu->vm->ram->base + k->page[n].offset;

		for (unsigned i = 0; i < 4096; i++) {
			if (now[i] == k->page[n].after[i])
				continue;
			snprintf(k->text, sizeof(k->text),
				 "memory %llx before %x translated %x interpreted %x",
				 (unsigned long long)k->page[n].offset + i, k->page[n].before[i],
				 k->page[n].after[i], now[i]);
			return false;
		}
	}
	return true;
}

static void report(struct dbt_cpu *cpu, struct check *k, const struct xlate_block *b)
{
	char bytes[3 * 128 + 1] = "";
	unsigned n = MIN((unsigned)b->guest_len, 128u);

	dbt_fpu_to_mem(cpu);
	for (unsigned i = 0; i < n; i++)
		snprintf(bytes + 3 * i, 4, "%02x ", cpu->vm->ram->base[b->phys + i]);
	fprintf(stderr, "lockstep: block at %llx (physical %llx, key %x): %s\n  exit %llx\n  bytes %s\n",
		(unsigned long long)k->start.rip, (unsigned long long)b->phys, b->key, k->text,
		(unsigned long long)k->translated.rip, bytes);
	for (unsigned i = 0; i < 16; i++)
		fprintf(stderr, "  r%-2u start %016llx translated %016llx interpreted %016llx\n", i,
			(unsigned long long)k->start.gpr[i],
			(unsigned long long)k->translated.gpr[i], (unsigned long long)cpu->s.gpr[i]);
}

const char *check_difference(const struct dbt_cpu *cpu)
{
	return cpu->xlate->check->difference;
}

bool check_run(struct dbt_cpu *cpu, struct xlate_block *b, unsigned *exit)
{
	struct check *k = cpu->xlate->check;

	if (!k)
		return true;
	if (!is_due(k, cpu->vm->cfg.check_every) || b->has_tsc) {
		*exit = xlate_run(cpu, b);
		return true;
	}
	dbt_fpu_to_mem(cpu);
	memcpy(&k->start, &cpu->s, sizeof(k->start));
	mmu_drop_all_writes(cpu);
	k->npages = 0;
	k->is_overflow = false;
	k->is_on = true;
	dbt_fpu_to_regs(cpu);
	*exit = xlate_run(cpu, b);
	k->is_on = false;
	dbt_fpu_to_mem(cpu);
	memcpy(&k->translated, &cpu->s, sizeof(k->translated));
	/* Left before the first instruction: to the interpreter, or to a block with other checks. */
	bool is_early = k->translated.rip == k->start.rip &&
			(*exit == XEXIT_INTERP ||
			 (*exit == XEXIT_LINK &&
			  ((const struct xlate_link *)(uintptr_t)cpu->exit_info)->key_extra));

	if (*exit == XEXIT_POLL || k->is_overflow || is_early)
		return true;

	for (unsigned n = 0; n < k->npages; n++) {
		uint8_t *now = cpu->vm->ram->base + k->page[n].offset;

		memcpy(k->page[n].after, now, 4096);
		memcpy(now, k->page[n].before, 4096);
	}
	memcpy(&cpu->s, &k->start, sizeof(cpu->s));
	for (unsigned i = 0; i < b->ninsns; i++) {
		interp_one(cpu);
		if (cpu->s.rip != k->translated.rip)
			continue;
		dbt_fpu_to_mem(cpu);
		if (same_state(k, &k->translated, &cpu->s) && same_memory(cpu, k))
			return true;
	}
	if (!k->text[0])
		snprintf(k->text, sizeof(k->text), "interpreter went elsewhere: %llx",
			 (unsigned long long)cpu->s.rip);
	snprintf(k->difference, sizeof(k->difference), "%s, in the block at %llx", k->text,
		 (unsigned long long)k->start.rip);
	report(cpu, k, b);
	return false;
}
