/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lockstep checker: a block both ways, translated and interpreted, and the results compared.
 *
 * The translated run comes first; every page it writes is copied before the first write (no soft-TLB
 * entry permits a write at the start, so each page's first write passes the miss, which calls
 * check_note_fill).  Then memory and registers are put back and the interpreter executes the same
 * instructions.  While checking is on, blocks are neither chained nor entered through the branch table, so
 * that a block comes back to the dispatcher.  Other vCPUs are stopped meanwhile.
 *
 * What differs in memory is looked at again, for it need not be the block's doing:
 *  - A and D bits depend on what the soft TLB held: an entry that the translated run has filled keeps the interpreter
 *    from walking.  Both runs are made again, each with an empty TLB.
 *  - Devices, and the machine for steal time, write when they like: they do not do so each time.  Only bytes that the
 *    translated run changed are put back, and a foreign one among them is found by its being missing afterwards.
 *  - What a device has written in between may be what the block asks for, and the interpreter goes another way.  It is
 *    stopped where it leaves the block; so far it has written what the translated run wrote, and that is put back.
 * A difference is one that comes CHECK_TRIES times.
 *
 * Not checked: blocks that read the TSC, and those left for an event.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/dbt/check.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"

#define CHECK_MAX_PAGES	  64
#define CHECK_MAX_FOREIGN 256
#define CHECK_TRIES	  3

struct check_page {
	uint64_t offset;
	uint8_t before[4096], after[4096];
};

enum { PTE_A = 1 << 5, PTE_D = 1 << 6 };
enum memory { MEMORY_SAME, MEMORY_OTHER_AD, MEMORY_OTHER, MEMORY_UNKNOWN };

struct check {
	bool is_on;
	bool is_overflow;
	unsigned npages;
	struct check_page page[CHECK_MAX_PAGES];
	/* Bytes that were put back and that the interpreter did not write: a device's, or a difference. */
	unsigned nforeign;
	struct {
		uint64_t offset;
		uint8_t val;
	} foreign[CHECK_MAX_FOREIGN];
	struct x86_state start, translated;
	uint64_t counter;
	int64_t left_start, left_translated; /* struct dbt_cpu, left */
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

/*
 * An instruction that raised an exception of the FPU has set its flags (FSW 7:0 and B, MXCSR 5:0) when it is left to the interpreter,
 * which has not come to it yet.
 */
static bool is_sticky_only(const uint8_t *translated, const uint8_t *interpreted, unsigned i)
{
	uint8_t flags = i == 2 ? 0xff : i == 3 ? 0x80 : i == 24 ? 0x3f : 0;

	return !((translated[i] ^ interpreted[i]) & ~flags) && !(interpreted[i] & ~translated[i]);
}

/*
 * @is_at_interp: the translated run was left for the interpreter, which executes the next instruction at once, whatever waits:
 * after an STI there is no need of the shadow.
 */
static bool same_state(struct check *k, const struct x86_state *a, const struct x86_state *b,
		       bool is_at_interp)
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
	/* Segments, control registers, MSRs, events. */
	const uint8_t *pa = (const uint8_t *)a, *pb = (const uint8_t *)b;

	for (size_t i = offsetof(struct x86_state, seg); i < offsetof(struct x86_state, xsave); i++) {
		if (pa[i] == pb[i] || (is_at_interp && i == offsetof(struct x86_state, interrupt_shadow)))
			continue;
		snprintf(k->text, sizeof(k->text),
			 "x86_state byte %zu translated %x interpreted %x", i, pa[i], pb[i]);
		return false;
	}
	/* Everything of the FPU but the instruction and data pointers. */
	for (unsigned i = 0; i < X86_XSAVE_BYTES; i++) {
		if (a->xsave[i] == b->xsave[i] || (i >= 6 && i < 24) || (i >= 464 && i < 576))
			continue;
		if (is_at_interp && is_sticky_only(a->xsave, b->xsave, i))
			continue;
		snprintf(k->text, sizeof(k->text), "xsave byte %u translated %x interpreted %x", i,
			 a->xsave[i], b->xsave[i]);
		return false;
	}
	return true;
}

static bool same_count(const struct dbt_cpu *cpu, struct check *k)
{
	if (!cpu->vm->cfg.is_counting || cpu->left == k->left_translated)
		return true;
	snprintf(k->text, sizeof(k->text), "instructions translated %lld interpreted %lld",
		 (long long)(k->left_start - k->left_translated),
		 (long long)(k->left_start - cpu->left));
	return false;
}

/* Remember a byte that only the translated run has written, or a device meanwhile. */
static void note_foreign(struct check *k, uint64_t offset, uint8_t val)
{
	for (unsigned i = 0; i < k->nforeign; i++)
		if (k->foreign[i].offset == offset)
			return;
	if (k->nforeign < CHECK_MAX_FOREIGN) {
		k->foreign[k->nforeign].offset = offset;
		k->foreign[k->nforeign++].val = val;
	}
}

/* A and D lie in the lowest byte of an entry, which is aligned. */
static enum memory same_memory(struct dbt_cpu *cpu, struct check *k)
{
	enum memory result = MEMORY_SAME;

	for (unsigned n = 0; n < k->npages; n++) {
		const struct check_page *p = &k->page[n];
		const uint8_t *now = cpu->vm->ram->base + p->offset;

		if (likely(!memcmp(now, p->after, 4096)))
			continue;
		for (unsigned i = 0; i < 4096; i++) {
			uint8_t val = now[i];

			if (val == p->after[i])
				continue;
			snprintf(k->text, sizeof(k->text),
				 "memory %llx before %x translated %x interpreted %x",
				 (unsigned long long)p->offset + i, p->before[i], p->after[i], val);
			if (!(i % 4) && !((val ^ p->after[i]) & ~(PTE_A | PTE_D))) {
				if (result == MEMORY_SAME)
					result = MEMORY_OTHER_AD;
				continue;
			}
			result = MEMORY_OTHER;
			if (val == p->before[i])
				note_foreign(k, p->offset + i, p->after[i]);
		}
	}
	return result;
}

static void report(struct dbt_cpu *cpu, struct check *k, const struct xlate_block *b)
{
	char bytes[3 * 128 + 1] = "";
	unsigned n = MIN((unsigned)b->guest_len, 128u);
	uint64_t phys = xlate_block_phys(b);

	dbt_fpu_to_mem(cpu);
	for (unsigned i = 0; i < n; i++)
		snprintf(bytes + 3 * i, 4, "%02x ", cpu->vm->ram->base[phys + i]);
	fprintf(stderr, "lockstep: block at %llx (physical %llx, key %x): %s\n  exit %llx\n  bytes %s\n",
		(unsigned long long)k->start.rip, (unsigned long long)phys, xlate_block_key(b),
		k->text, (unsigned long long)k->translated.rip, bytes);
	for (unsigned i = 0; i < 16; i++)
		fprintf(stderr, "  r%-2u start %016llx translated %016llx interpreted %016llx\n", i,
			(unsigned long long)k->start.gpr[i],
			(unsigned long long)k->translated.gpr[i], (unsigned long long)cpu->s.gpr[i]);
}

const char *check_difference(const struct dbt_cpu *cpu)
{
	return cpu->xlate->check->difference;
}

/* Both runs of a repeated check begin with nothing in the soft TLB but the walk to the code. */
static void empty_tlb(struct dbt_cpu *cpu, const struct xlate_block *b)
{
	uint64_t lin = cpu->s.rip + (cpu->code_bits == 64 ? 0 : cpu->s.seg[SEG_CS].base), offset;
	unsigned avail;

	mmu_flush_all(cpu);
	mmu_fetch_probe(cpu, lin, &avail, &offset);
	mmu_fetch_probe(cpu, lin + b->guest_len - 1, &avail, &offset);
}

static unsigned run_translated(struct dbt_cpu *cpu, struct check *k, struct xlate_block *b)
{
	k->npages = 0;
	k->is_overflow = false;
	k->is_on = true;
	dbt_fpu_to_regs(cpu);
	unsigned exit = xlate_run(cpu, b);

	k->is_on = false;
	dbt_fpu_to_mem(cpu);
	memcpy(&k->translated, &cpu->s, sizeof(k->translated));
	k->left_translated = cpu->left;
	for (unsigned n = 0; n < k->npages; n++)
		memcpy(k->page[n].after, cpu->vm->ram->base + k->page[n].offset, 4096);
	return exit;
}

static void put_back(struct dbt_cpu *cpu, struct check *k)
{
	for (unsigned n = 0; n < k->npages; n++) {
		const struct check_page *p = &k->page[n];
		uint8_t *now = cpu->vm->ram->base + p->offset;

		for (unsigned i = 0; i < 4096; i += 8) {
			uint64_t a, b;

			__builtin_memcpy(&a, p->before + i, 8);
			__builtin_memcpy(&b, p->after + i, 8);
			for (unsigned j = i; a != b && j < i + 8; j++)
				if (p->before[j] != p->after[j])
					now[j] = p->before[j];
		}
	}
	memcpy(&cpu->s, &k->start, sizeof(cpu->s));
	cpu->left = k->left_start;
}

/* After equal runs: the devices' bytes that an earlier try has put back. */
static void restore_foreign(struct dbt_cpu *cpu, struct check *k)
{
	for (unsigned i = 0; i < k->nforeign; i++)
		cpu->vm->ram->base[k->foreign[i].offset] = k->foreign[i].val;
}

/*
 * Execute by the interpreter what was translated, up to where the translated run left, and compare memory there;
 * MEMORY_UNKNOWN: it did not get there with the same registers.  What differs is in k->text.
 */
static enum memory run_interpreter(struct dbt_cpu *cpu, struct check *k,
				   const struct xlate_block *b, bool is_at_interp)
{
	enum memory result = MEMORY_UNKNOWN;

	/* A loop may have gone round often, and been left by a fault at an instruction that it came by before. */
	unsigned rounds = b->has_loop ? XLATE_LOOP_ROUNDS + 2 : 1;

	k->text[0] = 0;
	for (unsigned i = 0; i < rounds * b->ninsns; i++) {
		if (cpu->s.rip - k->start.rip >= b->guest_len && !b->is_crossing)
			break; /* it is elsewhere */
		interp_one(cpu);
		if (cpu->s.rip != k->translated.rip)
			continue;
		dbt_fpu_to_mem(cpu);
		if (!same_state(k, &k->translated, &cpu->s, is_at_interp) || !same_count(cpu, k))
			continue;
		result = same_memory(cpu, k);
		if (result < MEMORY_OTHER)
			break;
	}
	if (!k->text[0])
		snprintf(k->text, sizeof(k->text), "interpreter went elsewhere: %llx",
			 (unsigned long long)cpu->s.rip);
	return result;
}

/* Left before the first instruction: to the interpreter, or to a block with other checks. */
static bool is_early(struct dbt_cpu *cpu, const struct check *k, unsigned exit)
{
	return k->translated.rip == k->start.rip &&
	       (exit == XEXIT_INTERP || (exit == XEXIT_LINK && xlate_link_extra(xlate_exit_link(cpu))));
}

/* False on a difference.  Nobody else executes. */
static bool both_ways(struct dbt_cpu *cpu, struct check *k, struct xlate_block *b, unsigned *exit)
{
	uint64_t generation = cpu->vm->xlate->generation;
	enum memory memory = MEMORY_SAME;

	dbt_fpu_to_mem(cpu);
	memcpy(&k->start, &cpu->s, sizeof(k->start));
	k->left_start = cpu->left;
	k->nforeign = 0;
	for (unsigned i = 0;; i++) {
		bool is_cold = memory == MEMORY_OTHER_AD;

		if (is_cold)
			empty_tlb(cpu, b);
		else
			mmu_drop_all_writes(cpu);
		*exit = run_translated(cpu, k, b);
		if (*exit == XEXIT_POLL || k->is_overflow || is_early(cpu, k, *exit)) {
			cpu->xlate->compared_not++;
			break;
		}
		put_back(cpu, k);
		if (is_cold)
			empty_tlb(cpu, b);
		memory = run_interpreter(cpu, k, b, *exit == XEXIT_INTERP);
		cpu->xlate->compared += !i;
		cpu->xlate->compared_again += i == 1;
		if (memory == MEMORY_SAME)
			break;
		/* A block that has written into itself is gone. */
		if (i + 1 == CHECK_TRIES || b->is_dead || cpu->vm->xlate->generation != generation)
			return false;
		put_back(cpu, k);
	}
	restore_foreign(cpu, k);
	return true;
}

bool check_run(struct dbt_cpu *cpu, struct xlate_block *b, unsigned *exit)
{
	struct check *k = cpu->xlate->check;
	uint64_t generation = cpu->vm->xlate->generation;

	if (!k)
		return true;
	bool is_chosen = is_due(k, cpu->vm->cfg.check_every);

	if (!is_chosen || b->has_tsc) {
		cpu->xlate->compared_not += is_chosen;
		*exit = xlate_run(cpu, b);
		return true;
	}
	if (cpu->vm->ncpus > 1)
		dbt_exclusive_begin(cpu);
	bool is_same = true;

	if (cpu->vm->xlate->generation == generation && !b->is_dead)
		is_same = both_ways(cpu, k, b, exit);
	else
		*exit = XEXIT_POLL; /* the block may be gone */
	if (cpu->vm->ncpus > 1)
		dbt_exclusive_end(cpu);
	if (is_same)
		return true;
	snprintf(k->difference, sizeof(k->difference), "%s, in the block at %llx", k->text,
		 (unsigned long long)k->start.rip);
	report(cpu, k, b);
	return false;
}
