/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The code cache and the table of blocks: finding, linking, dropping.  See xlate.h for the invariants.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "engine/dbt/check.h"
#include "engine/dbt/interp.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/xlate.h"

#define CODE_CACHE_BYTES (128 * MIB)
#define CODE_HOT_BYTES	 (CODE_CACHE_BYTES / 4 * 3)
#define JC_PER_PAGE	 2048u /* consecutive indices that a page's RIPs have */
#define CROSS_MAX	 16u /* an instruction that goes on in the next page starts so far before it */
#define ARENA_CHUNK	 (1 * MIB)
#define RET_STACK_BYTES	 (256 * KIB)
#define RET_STACK_GUARD	 GUEST_PAGE_SIZE
#define RET_STACK_ABOVE	 256 /* ret_again looks so far above the top */
#define CODE_BLOCK_MIN	 24  /* the entry and a jump are longer */
/* Least room a translation may start with, of each kind. */
#define CODE_BLOCK_MAX (64 * KIB)

struct arena_chunk {
	struct arena_chunk *next;
	uint8_t data[];
};

/* A key has 17 bits; no host has 2^47 bytes of RAM for a guest. */
static uint64_t tag_of(uint64_t phys, uint32_t key)
{
	return phys << 17 | key;
}

static unsigned hash_of(uint64_t tag)
{
	return (unsigned)(tag * 0x9e3779b97f4a7c15ULL >> (64 - XLATE_HASH_BITS));
}

static unsigned next_slot(unsigned i)
{
	return (i + 1) & (XLATE_HASH_SIZE - 1);
}

void *xlate_alloc(struct xlate_vm *x, size_t bytes)
{
	bytes = ALIGN_UP(bytes, 16);
	if ((size_t)(x->arena.end - x->arena.p) < bytes) {
		struct arena_chunk *c = malloc(ARENA_CHUNK);

		if (!c)
			return NULL;
		c->next = x->chunks;
		x->chunks = c;
		x->arena.p = (uint8_t *)ALIGN_UP((uintptr_t)c->data, 16);
		x->arena.end = (uint8_t *)c + ARENA_CHUNK;
	}
	void *p = x->arena.p;

	x->arena.p += bytes;
	return p;
}

static void arena_free(struct xlate_vm *x)
{
	while (x->chunks) {
		struct arena_chunk *c = x->chunks;

		x->chunks = c->next;
		free(c);
	}
	x->arena.p = x->arena.end = NULL;
}

static int cache_map(struct code_cache *cc, struct error *err)
{
	int fd = memfd_create("viv-code", MFD_CLOEXEC);

	if (fd < 0)
		return error_set(err, -errno, "cannot create the code cache (memfd_create: %m)");
	cc->size = CODE_CACHE_BYTES;
	cc->cold_start = cc->cold_used = CODE_HOT_BYTES;
	if (ftruncate(fd, (off_t)cc->size) < 0) {
		int rc = error_set(err, -errno, "cannot size the code cache: %m");

		close(fd);
		return rc;
	}
	cc->rw = mmap(NULL, cc->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cc->rx = mmap(NULL, cc->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	close(fd);
	if (cc->rw == MAP_FAILED || cc->rx == MAP_FAILED) {
		int rc = error_set(err, -ENOMEM, "cannot map the code cache of %zu MiB: %m",
				   cc->size >> 20);

		if (cc->rw != MAP_FAILED)
			munmap(cc->rw, cc->size);
		if (cc->rx != MAP_FAILED)
			munmap(cc->rx, cc->size);
		cc->rw = cc->rx = NULL;
		return rc;
	}
	return 0;
}

int xlate_vm_create(struct dbt_vm *vm, struct error *err)
{
	struct xlate_vm *x = calloc(1, sizeof(*x));

	if (!x)
		return error_set(err, -ENOMEM, "no memory for the translator");
	vm->xlate = x;
	__builtin_cpu_init();
	x->has_bmi2 = __builtin_cpu_supports("bmi2");
	x->has_far_links = x->has_bmi2 && !(vm->cfg.without & (ENGINE_CHAINING | ENGINE_FAR_LINKS)) &&
			   vm->ram->size_bytes >> GUEST_PAGE_SHIFT < XLATE_RAM_PAGES_MAX;
	x->has_returns = x->has_bmi2 && !(vm->cfg.without & ENGINE_RETURNS);
	x->has_dead_flags = !vm->cfg.is_strict && !(vm->cfg.without & ENGINE_DEAD_FLAGS);
	x->by_page = calloc(vm->ram->size_bytes >> GUEST_PAGE_SHIFT, sizeof(*x->by_page));
	x->by_page2 = calloc(vm->ram->size_bytes >> GUEST_PAGE_SHIFT, sizeof(*x->by_page2));
	x->order = calloc(CODE_HOT_BYTES / CODE_BLOCK_MIN, sizeof(*x->order));
	if (!x->by_page || !x->by_page2 || !x->order) {
		xlate_vm_destroy(vm);
		return error_set(err, -ENOMEM, "no memory for the tables of translated blocks");
	}
	int rc = cache_map(&x->cc, err);

	if (!rc)
		rc = xlate_emit_stubs(vm, err);
	if (rc)
		xlate_vm_destroy(vm);
	return rc;
}

void xlate_vm_destroy(struct dbt_vm *vm)
{
	struct xlate_vm *x = vm->xlate;

	if (!x)
		return;
	if (x->cc.rw)
		munmap(x->cc.rw, x->cc.size);
	if (x->cc.rx)
		munmap(x->cc.rx, x->cc.size);
	arena_free(x);
	free(x->by_page);
	free(x->by_page2);
	free(x->order);
	free(x);
	vm->xlate = NULL;
}

/* Entry @i is empty: jc_neg 0 hits no RIP, and where it would, the code leaves. */
static void jc_drop(struct dbt_cpu *cpu, unsigned i)
{
	struct xlate_cpu *x = cpu->xlate;

	if (x->jc_page[i])
		x->jc_count[x->jc_page[i] - 1]--;
	x->jc_page[i] = 0;
	cpu->jc_neg[i] = 0;
	cpu->jc_code[i] = cpu->vm->xlate->exit_lookup;
}

static void jc_clear(struct dbt_cpu *cpu)
{
	for (unsigned i = 0; i < DBT_JC_SIZE; i++)
		jc_drop(cpu, i);
}

static int returns_create(struct dbt_cpu *cpu, struct error *err)
{
	const size_t bytes = RET_STACK_GUARD + RET_STACK_BYTES;
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return error_set(err, -errno, "no memory for a vCPU's returns: %m");
	cpu->xlate->ret_stack = p;
	if (mprotect(p, RET_STACK_GUARD, PROT_NONE) < 0)
		return error_set(err, -errno, "cannot protect the end of a vCPU's returns: %m");
	cpu->ret_base = (uint64_t)(uintptr_t)p + bytes - RET_STACK_ABOVE;
	for (unsigned i = 0; i < RET_STACK_ABOVE; i += 8)
		memcpy(p + bytes - RET_STACK_ABOVE + i, &cpu->vm->xlate->ret_miss, 8);
	dbt_returns_changed(cpu);
	return 0;
}

int xlate_cpu_create(struct dbt_cpu *cpu, struct error *err)
{
	cpu->xlate = calloc(1, sizeof(*cpu->xlate));
	if (!cpu->xlate)
		return error_set(err, -ENOMEM, "no memory for a vCPU's translator state");
	if (check_create(cpu, err))
		return -ENOMEM;
	int rc = returns_create(cpu, err);

	if (rc)
		return rc;
	cpu->self = cpu;
	if (cpu->vm->cfg.without & ENGINE_IN_PLACE)
		cpu->xlate->is_watched = true;
	cpu->page_mask = ~0xfffULL;
	cpu->jc_mask = (uint64_t)(DBT_JC_SIZE - 1) << 1;
	cpu->ct_mask = (uint64_t)(DBT_CT_SIZE - 1) << GUEST_PAGE_SHIFT;
	cpu->line_mask = DBT_LINE - 1;
	cpu->line_size = DBT_LINE;
	cpu->not_df = ~(uint64_t)X86_FL_DF;
	cpu->not_if = ~(uint64_t)X86_FL_IF;
	jc_clear(cpu);
	return 0;
}

void xlate_cpu_destroy(struct dbt_cpu *cpu)
{
	if (cpu->xlate)
		check_destroy(cpu);
	if (cpu->xlate && cpu->xlate->ret_stack)
		munmap(cpu->xlate->ret_stack, RET_STACK_GUARD + RET_STACK_BYTES);
	free(cpu->xlate);
	cpu->xlate = NULL;
}

static unsigned ct_index(uint64_t va)
{
	return (va >> GUEST_PAGE_SHIFT) & (DBT_CT_SIZE - 1);
}

static unsigned jc_index(uint64_t rip)
{
	return (rip >> 1) & (DBT_JC_SIZE - 1);
}

static unsigned jc_page_hash(uint64_t va)
{
	return (unsigned)(((va >> 12) * 0x9e3779b97f4a7c15ULL) >> 52);
}

static unsigned code_page_hash(uint64_t va)
{
	return (unsigned)(((va >> 12) * 0x9e3779b97f4a7c15ULL) >> 48);
}

static uint64_t next_page(uint64_t va)
{
	return (va & ~(GUEST_PAGE_SIZE - 1)) + GUEST_PAGE_SIZE;
}

void xlate_jc_set(struct dbt_cpu *cpu, uint64_t rip, struct xlate_block *b)
{
	struct xlate_cpu *x = cpu->xlate;
	unsigned i = jc_index(rip), hash = jc_page_hash(rip);

	if (cpu->jc_code[i] == b->far_entry && cpu->jc_neg[i] == 0 - (rip + cpu->jc_key))
		return;
	/* Where nothing is, something may come without notice. */
	if (b->phys2 == XLATE_NO_PAGE)
		return;
	if (cpu->cpl < 3 &&
	    (!mmu_is_code_global(cpu, rip) || (b->phys2 && !mmu_is_code_global(cpu, next_page(rip)))))
		cpu->has_local_code = true;
	if (cpu->vm->cfg.without & ENGINE_BRANCH_TABLE)
		return;
	if (x->jc_page[i])
		x->jc_count[x->jc_page[i] - 1]--;
	x->jc_page[i] = (uint16_t)(hash + 1);
	x->jc_count[hash]++;
	cpu->jc_code[i] = b->far_entry;
	cpu->jc_neg[i] = 0 - (rip + cpu->jc_key);
}

/* Four bytes of code within eight aligned ones, at once for all CPUs that may be executing them.  With vm->lock. */
static void write_code(uint8_t *at, uint32_t v)
{
	uint8_t *word = (uint8_t *)((uintptr_t)at & ~(uintptr_t)7);
	uint64_t bytes;

	memcpy(&bytes, word, 8);
	memcpy((uint8_t *)&bytes + (at - word), &v, 4);
	__atomic_store_n((uint64_t *)(void *)word, bytes, __ATOMIC_RELEASE);
}

static void site_write(struct xlate_link *l, intptr_t rel)
{
	write_code(l->site, (uint32_t)rel);
}

static void far_write(struct xlate_link *l, uint64_t page)
{
	write_code(l->ram_page, (uint32_t)page);
}

static void link_undo(struct xlate_link *l)
{
	if (l->ram_page)
		far_write(l, XLATE_NO_RAM_PAGE);
	site_write(l, l->stub);
	l->to = NULL;
}

static uint32_t link_key(const struct xlate_link *l)
{
	return (l->from->key & ~(uint32_t)DBT_MODE_EACH) | l->key_extra;
}

/* With vm->lock. */
static void link_to(struct xlate_vm *x, struct xlate_link *l, struct xlate_block *b)
{
	l->to = b;
	l->next_in = b->in;
	b->in = l;
	site_write(l, b->near_entry - (l->site + (x->cc.rx - x->cc.rw) + 4));
	if (l->ram_page) /* after the jump, which nobody takes before */
		far_write(l, b->phys >> GUEST_PAGE_SHIFT);
}

void xlate_link_patch(struct dbt_cpu *cpu, struct xlate_link *l, struct xlate_block *b)
{
	struct dbt_vm *vm = cpu->vm;

	if (vm->cfg.without & ENGINE_CHAINING)
		return;
	pthread_mutex_lock(&vm->lock);
	if (!l->to && !l->from->is_dead && !b->is_dead && !b->phys2 && link_key(l) == b->key &&
	    (l->from->phys >> 12) == (b->phys >> 12) && l->page_off == (b->phys & 0xfff))
		link_to(vm->xlate, l, b);
	pthread_mutex_unlock(&vm->lock);
}

static struct xlate_block *lookup(struct xlate_vm *x, uint64_t phys, uint64_t phys2, uint32_t key);

/* A new block's links to blocks that are there, itself included.  With vm->lock. */
static void link_new(struct dbt_cpu *cpu, struct xlate_block *b)
{
	struct xlate_vm *x = cpu->vm->xlate;

	if (cpu->vm->cfg.without & ENGINE_CHAINING || cpu->xlate->check)
		return;
	for (unsigned i = 0; i < b->nlinks; i++) {
		struct xlate_link *l = &b->links[i];

		if (l->ram_page)
			continue;
		struct xlate_block *to = lookup(x, (b->phys & ~0xfffULL) | l->page_off, 0, link_key(l));

		if (to)
			link_to(x, l, to);
	}
}

static void unlink_incoming(struct xlate_block *b)
{
	while (b->in) {
		struct xlate_link *l = b->in;

		b->in = l->next_in;
		link_undo(l);
	}
}

static void drop_link(struct xlate_link *l)
{
	struct xlate_link **pp = &l->to->in;

	while (*pp != l)
		pp = &(*pp)->next_in;
	*pp = l->next_in;
	l->to = NULL;
}

/* jmp rel32 to @stub over the code at @at (executable address, 8-byte aligned), at once for all CPUs. */
static void patch_jump(struct xlate_vm *x, uint8_t *at, const uint8_t *stub)
{
	uint8_t *w = at - (x->cc.rx - x->cc.rw);
	uint64_t v;

	memcpy(&v, w, 8);
	uint32_t rel = (uint32_t)(stub - (at + 5));

	v = (v & ~0xffffffffffULL) | 0xe9 | (uint64_t)rel << 8;
	__atomic_store_n((uint64_t *)(void *)w, v, __ATOMIC_RELEASE);
}

static struct xlate_block **page2_list(struct xlate_vm *x, const struct xlate_block *b)
{
	return b->phys2 & 1 ? &x->by_page2[b->phys2 >> 12] : NULL;
}

/* A page without blocks may be written freely. */
static void release_page(struct dbt_vm *vm, uint64_t page)
{
	const struct xlate_vm *x = vm->xlate;

	if (!x->by_page[page] && !x->by_page2[page])
		atomic_fetch_and_explicit(&vm->ram->page_flags[page], (uint8_t)~RAM_PAGE_CODE,
					  memory_order_seq_cst);
}

/* With vm->lock. */
static void block_kill(struct dbt_vm *vm, struct xlate_block *b)
{
	struct xlate_vm *x = vm->xlate;
	unsigned slot = hash_of(tag_of(b->phys, b->key));
	struct xlate_block **pp = &x->by_page[b->phys >> 12], **pp2 = page2_list(x, b);

	while (x->hash[slot].b != b)
		slot = next_slot(slot);
	atomic_store_explicit(&x->hash[slot].tag, XLATE_TAG_GONE, memory_order_release);
	while (*pp != b)
		pp = &(*pp)->page_next;
	*pp = b->page_next;
	if (pp2) {
		while (*pp2 != b)
			pp2 = &(*pp2)->page2_next;
		*pp2 = b->page2_next;
		release_page(vm, b->phys2 >> 12);
	}
	release_page(vm, b->phys >> 12);
	unlink_incoming(b);
	for (unsigned i = 0; i < b->nlinks; i++)
		if (b->links[i].to)
			drop_link(&b->links[i]);
	b->is_dead = true;
	x->invalidations++;

	patch_jump(x, b->far_entry, x->exit_lookup); /* s.rip is exact there */
	if (b->landing)
		patch_jump(x, b->far_entry + b->landing, x->ret_dead);
}

void dbt_code_written(struct dbt_vm *vm, uint64_t offset, uint64_t len)
{
	struct xlate_vm *x = vm->xlate;

	if (!len)
		return;
	pthread_mutex_lock(&vm->lock);
	x->smc_hits++;
	uint64_t last = (offset + len - 1) >> 12;

	for (uint64_t page = offset >> 12; page <= last; page++) {
		for (struct xlate_block *b = x->by_page[page], *next; b; b = next) {
			next = b->page_next;
			if (b->phys < offset + len && b->phys + b->guest_len > offset)
				block_kill(vm, b);
		}
		for (struct xlate_block *b = x->by_page2[page], *next; b; b = next) {
			next = b->page2_next;
			if (offset < (page << 12) + b->guest_len2)
				block_kill(vm, b);
		}
		release_page(vm, page);
	}
	pthread_mutex_unlock(&vm->lock);
}

void xlate_flush(struct dbt_vm *vm)
{
	struct xlate_vm *x = vm->xlate;

	pthread_mutex_lock(&vm->lock);
	for (size_t i = 0; i < x->norder; i++) {
		uint64_t page = x->order[i]->phys >> 12;

		struct xlate_block **second = page2_list(x, x->order[i]);

		x->by_page[page] = NULL;
		release_page(vm, page);
		if (second) {
			*second = NULL;
			release_page(vm, x->order[i]->phys2 >> 12);
		}
	}
	memset((void *)x->hash, 0, sizeof(x->hash));
	x->norder = 0;
	arena_free(x);
	x->cc.used = x->cc.stubs_end;
	x->cc.cold_used = x->cc.cold_start;
	x->flushes++;
	x->generation++;
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i])
			jc_clear(vm->cpus[i]);
	pthread_mutex_unlock(&vm->lock);
}

/* Branch-table entries of all modes and address spaces.  RIP is linear in code that is translated (xlate_mode_ok). */
static void drop_page(struct dbt_cpu *cpu, uint64_t page)
{
	const struct xlate_cpu *x = cpu->xlate;
	unsigned hash = jc_page_hash(page), first = jc_index(page);

	for (unsigned i = first; x->jc_count[hash] && i < first + JC_PER_PAGE; i++)
		if (x->jc_page[i] == hash + 1)
			jc_drop(cpu, i);
	/* Of the page before, instructions that go on in this one. */
	uint64_t tail = page - CROSS_MAX;

	hash = jc_page_hash(tail);
	for (uint64_t rip = tail; rip < page; rip += 2)
		if (x->jc_page[jc_index(rip)] == hash + 1)
			jc_drop(cpu, jc_index(rip));
}

static void note_code_page(struct dbt_cpu *cpu, uint64_t va)
{
	unsigned hash = code_page_hash(va);

	cpu->xlate->code_pages[hash / 64] |= 1ULL << hash % 64;
}

void xlate_mapping_changed(struct dbt_cpu *cpu, uint64_t va, unsigned npages)
{
	struct xlate_cpu *x = cpu->xlate;
	bool has_code = false;

	if (!npages) {
		cpu->as_gen++;
		memset(x->code_pages, 0, sizeof(x->code_pages));
		dbt_mode_changed(cpu);
		return;
	}
	for (va &= ~0xfffULL; npages; npages--, va += GUEST_PAGE_SIZE) {
		unsigned hash = code_page_hash(va);

		if (!(x->code_pages[hash / 64] >> hash % 64 & 1))
			continue;
		has_code = true;
		drop_page(cpu, va);
		cpu->ct[ct_index(va)] = 0;
	}
	if (has_code)
		dbt_returns_changed(cpu);
}

bool xlate_mode_ok(uint32_t key)
{
	unsigned code = key & 3;

	if (code == DBT_MODE_CODE16 || !(key & DBT_MODE_PE) || !(key & DBT_MODE_FLAT))
		return false;
	if (code == DBT_MODE_CODE32 && !(key & DBT_MODE_SS32))
		return false;
	return !(key & DBT_MODE_ALIGN);
}

static bool is_near_end(uint64_t phys)
{
	return (phys & 0xfff) > 4096 - CROSS_MAX;
}

static struct xlate_block *lookup(struct xlate_vm *x, uint64_t phys, uint64_t phys2, uint32_t key)
{
	uint64_t tag = tag_of(phys, key), found;

	for (unsigned i = hash_of(tag);; i = next_slot(i)) {
		found = atomic_load_explicit(&x->hash[i].tag, memory_order_acquire);
		if (!found)
			return NULL;
		if (found != tag)
			continue;
		struct xlate_block *b = atomic_load_explicit(&x->hash[i].b, memory_order_acquire);

		if (b->phys == phys && b->key == key && b->phys2 == phys2)
			return b;
	}
}

bool xlate_has_block(struct xlate_vm *x, uint64_t phys, uint32_t key)
{
	return lookup(x, phys, 0, key);
}

static void insert(struct xlate_vm *x, struct xlate_block *b)
{
	uint64_t tag = tag_of(b->phys, b->key);
	unsigned i = hash_of(tag);

	for (uint64_t there; (there = atomic_load_explicit(&x->hash[i].tag, memory_order_relaxed)) &&
			     there != XLATE_TAG_GONE;)
		i = next_slot(i);
	atomic_store_explicit(&x->hash[i].b, b, memory_order_release);
	atomic_store_explicit(&x->hash[i].tag, tag, memory_order_release);
}

static bool is_protected(const struct dbt_vm *vm, uint64_t phys)
{
	uint8_t f = atomic_load_explicit(&vm->ram->page_flags[phys >> 12], memory_order_seq_cst);

	return (f & RAM_PAGE_CODE) && !(f & RAM_PAGE_WMAP);
}

/* No vCPU may keep a write mapping of a page that is about to hold translated code. */
static void protect_page(struct dbt_cpu *cpu, uint64_t phys)
{
	struct dbt_vm *vm = cpu->vm;
	_Atomic uint8_t *flags = &vm->ram->page_flags[phys >> 12];
	uint8_t old = atomic_fetch_or_explicit(flags, RAM_PAGE_CODE, memory_order_seq_cst);

	if (!(old & RAM_PAGE_WMAP))
		return;
	if (vm->ncpus > 1)
		dbt_exclusive_begin(cpu);
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i])
			mmu_drop_write(vm->cpus[i], phys & ~0xfffULL);
	atomic_fetch_and_explicit(flags, (uint8_t)~RAM_PAGE_WMAP, memory_order_seq_cst);
	if (vm->ncpus > 1)
		dbt_exclusive_end(cpu);
}

/* phys2 of a block whose only instruction, at s.rip, goes on in the next page. */
static uint64_t second_page(struct dbt_cpu *cpu)
{
	uint64_t va = next_page(cpu->s.rip), offset;
	unsigned avail;

	if (!mmu_fetch_probe(cpu, va, &avail, &offset))
		return XLATE_NO_PAGE;
	note_code_page(cpu, va);
	return (offset & ~0xfffULL) | 1;
}

/* Is the instruction at @phys one that goes on in the next page? */
static bool is_crossing(struct dbt_cpu *cpu, uint64_t phys)
{
	struct insn in;
	unsigned left = 4096 - (phys & 0xfff);

	return is_near_end(phys) &&
	       interp_decode(cpu, &in, cpu->vm->ram->base + phys, left, cpu->code_bits) == DECODE_MORE;
}

static void flush_world(struct dbt_cpu *cpu)
{
	dbt_exclusive_begin(cpu);
	xlate_flush(cpu->vm);
	dbt_exclusive_end(cpu);
}

static struct xlate_block *translate_at(struct dbt_cpu *cpu, uint64_t phys, uint32_t key)
{
	struct dbt_vm *vm = cpu->vm;
	struct xlate_vm *x = vm->xlate;

	dbt_fpu_to_mem(cpu); /* the C library's malloc() and free() use vector registers */
	for (;;) {
		protect_page(cpu, phys);
		uint64_t phys2 = is_crossing(cpu, phys) ? second_page(cpu) : 0;

		if (phys2 & 1)
			protect_page(cpu, phys2);
		pthread_mutex_lock(&vm->lock);
		/* Somebody's write may have cleared the flag again before we got the lock. */
		bool is_safe = is_protected(vm, phys) && (!(phys2 & 1) || is_protected(vm, phys2));
		struct xlate_block *b = lookup(x, phys, phys2, key);

		if (b) {
			pthread_mutex_unlock(&vm->lock);
			return b;
		}
		bool is_full = x->cc.cold_start - x->cc.used < CODE_BLOCK_MAX ||
			       x->cc.size - x->cc.cold_used < CODE_BLOCK_MAX ||
			       x->norder >= XLATE_HASH_MAX;

		if (is_safe && !is_full) {
			b = xlate_translate(cpu, phys, phys2, key);
			if (b) {
				cpu->xlate->translations++;
				x->order[x->norder] = b;
				atomic_store_explicit(&x->norder, x->norder + 1, memory_order_release);
				b->page_next = x->by_page[phys >> 12];
				x->by_page[phys >> 12] = b;
				struct xlate_block **second = page2_list(x, b);

				if (second) {
					b->page2_next = *second;
					*second = b;
				}
				insert(x, b);
				link_new(cpu, b);
			}
			pthread_mutex_unlock(&vm->lock);
			return b; /* NULL: no memory for it; the interpreter goes on */
		}
		pthread_mutex_unlock(&vm->lock);
		if (is_full)
			flush_world(cpu);
	}
}

/* RAM offset of the byte at s.rip if its code may be translated; false also for a fetch that faults. */
static bool code_at_rip(struct dbt_cpu *cpu, uint64_t *phys)
{
	unsigned avail;
	uint64_t offset;

	if (!xlate_mode_ok(cpu->mode_key) || !mmu_fetch_probe(cpu, cpu->s.rip, &avail, &offset))
		return false;
	*phys = offset | (cpu->s.rip & 0xfff);
	note_code_page(cpu, cpu->s.rip);
	return true;
}

static struct xlate_block *lookup_at_rip(struct dbt_cpu *cpu, uint64_t phys, uint32_t key)
{
	struct xlate_block *b = lookup(cpu->vm->xlate, phys, 0, key);

	if (unlikely(!b && is_near_end(phys)))
		b = lookup(cpu->vm->xlate, phys, second_page(cpu), key);
	return b;
}

struct xlate_block *xlate_find(struct dbt_cpu *cpu, uint32_t key_extra)
{
	uint32_t key = cpu->mode_key | key_extra;
	uint64_t phys;

	if (!code_at_rip(cpu, &phys))
		return NULL;
	struct xlate_block *b = lookup_at_rip(cpu, phys, key);

	if (!b)
		b = translate_at(cpu, phys, key);
	return b;
}

/*
 * Is a miss of the tables to leave?  Somebody who asked just before the vCPU looked may have put the poison there after it:
 * then nothing waits, and the key is put back.
 */
static bool is_called_out(struct dbt_cpu *cpu)
{
	if (unlikely(cpu->xlate->check) || atomic_load_explicit(&cpu->poll, memory_order_relaxed))
		return true;
	if (unlikely(atomic_load_explicit(&cpu->jc_key_now, memory_order_relaxed) != cpu->jc_key))
		dbt_poll_refresh(cpu);
	return false;
}

void *xlate_lookup_fast(struct dbt_cpu *cpu)
{
	uint64_t phys;

	if (is_called_out(cpu) || !code_at_rip(cpu, &phys))
		return NULL;
	struct xlate_block *b = lookup_at_rip(cpu, phys, cpu->mode_key);

	if (!b)
		return NULL;
	cpu->xlate->table_fills++;
	xlate_jc_set(cpu, cpu->s.rip, b);
	return b->far_entry;
}

void *xlate_far(struct dbt_cpu *cpu)
{
	struct dbt_vm *vm = cpu->vm;
	struct xlate_link *l = (struct xlate_link *)(uintptr_t)cpu->exit_info;
	struct xlate_block *b = NULL;
	uint64_t phys, va = cpu->pc_base;

	cpu->s.rip = va + l->page_off;
	if (!is_called_out(cpu) && code_at_rip(cpu, &phys)) {
		if (cpu->cpl < 3 && !mmu_is_code_global(cpu, va))
			cpu->has_local_code = true;
		cpu->ct[ct_index(va)] = xlate_ct_entry(va, phys >> GUEST_PAGE_SHIFT, cpu->jc_key);
		b = lookup(vm->xlate, phys, 0, cpu->mode_key);
	}
	if (!b) { /* to the dispatcher, as from any branch */
		cpu->pc_base = va - (uint64_t)(int64_t)l->page_delta;
		cpu->exit_info = (uint32_t)l->info;
		return NULL;
	}
	cpu->xlate->far_fills++;
	if (!l->to) {
		pthread_mutex_lock(&vm->lock);
		if (!l->to && !l->from->is_dead && !b->is_dead)
			link_to(vm->xlate, l, b);
		pthread_mutex_unlock(&vm->lock);
	}
	return b->far_entry;
}

#define STEP_MAX 8

/* After an interpreted instruction: where to go on, or why to leave. */
uint64_t xlate_go_on(struct dbt_cpu *cpu)
{
	for (unsigned n = 0; n < STEP_MAX; n++) {
		cpu->xlate->steps++;
		/* After a flush the returns lead nowhere: only a new entry forgets them. */
		if (likely(!dbt_must_look(cpu) && cpu->xlate->entered == cpu->vm->xlate->generation)) {
			unsigned i = jc_index(cpu->s.rip);
			void *code = likely(!(cpu->s.rip + cpu->jc_key + cpu->jc_neg[i]))
					     ? cpu->jc_code[i]
					     : xlate_lookup_fast(cpu);

			if (!code)
				break;
			dbt_fpu_to_regs(cpu);
			return (uintptr_t)code;
		}
		/* The shadow of STI and MOV SS is one instruction long; nothing comes between. */
		if (!cpu->s.interrupt_shadow || cpu->dr6_pending || cpu->is_debug_hit)
			break;
		interp_one(cpu);
	}
	return XEXIT_POLL;
}

/* Stubs add the offset in the page to pc_base. */
static void wrap_rip(struct dbt_cpu *cpu)
{
	if (unlikely(cpu->code_bits == 32))
		cpu->s.rip = (uint32_t)cpu->s.rip;
}

uint64_t xlate_step(struct dbt_cpu *cpu)
{
	wrap_rip(cpu);
	if (unlikely(cpu->xlate->is_watched))
		return XEXIT_INTERP;
	interp_one(cpu);
	return xlate_go_on(cpu);
}

uint64_t xlate_call(struct dbt_cpu *cpu)
{
	struct insn *in = &cpu->xlate->called;
	const uint64_t *from = (const void *)(uintptr_t)cpu->exit_info;
	uint64_t *to = (void *)in;

	_Static_assert(!(sizeof(*in) % 8), "copied by words");
	wrap_rip(cpu);
	if (unlikely(cpu->xlate->is_watched))
		return XEXIT_INTERP;
	for (unsigned i = 0; i < sizeof(*in) / 8; i++)
		to[i] = from[i];
	interp_decoded(cpu, in);
	return xlate_go_on(cpu);
}

unsigned xlate_run(struct dbt_cpu *cpu, struct xlate_block *b)
{
	struct x86_state *s = &cpu->s;
	unsigned exit;

	cpu->xlate->entries++;
	cpu->xlate->entered = cpu->vm->xlate->generation;
	exit = cpu->vm->xlate->enter(cpu, b->far_entry);
	if (exit == XEXIT_LINK)
		s->rip = cpu->pc_base + ((const struct xlate_link *)(uintptr_t)cpu->exit_info)->page_off;
	wrap_rip(cpu);
	if (unlikely(exit == XEXIT_LOOKUP && cpu->code_bits == 64 && !mmu_is_canonical(s->rip)) &&
	    (int32_t)cpu->exit_info != -1) {
		/* The branch faults, not its target: back to before it (emit_indirect), the interpreter raises. */
		int32_t info = (int32_t)cpu->exit_info;

		s->rip = cpu->pc_base + (info & 0xfff);
		s->gpr[R_RSP] -= (uint64_t)(int64_t)(info >> 12);
		return XEXIT_INTERP;
	}
	return exit;
}

/* ---- host faults in translated code ------------------------------------------------------- */

static struct xlate_block *block_by_pc(struct xlate_vm *x, const uint8_t *pc)
{
	size_t lo = 0, hi = atomic_load_explicit(&x->norder, memory_order_acquire);

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (x->order[mid]->far_entry <= pc)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo)
		return NULL;
	struct xlate_block *b = x->order[lo - 1];

	return pc < b->far_entry + b->code_len ? b : NULL;
}

enum { TRAP_PF = 14 };

bool xlate_signal(struct dbt_cpu *cpu, ucontext_t *uc, int sig)
{
	static const uint8_t greg_of[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
					     REG_RSI, REG_RDI, REG_R8,	REG_R9,	 REG_R10, REG_R11,
					     REG_R12, REG_R13, REG_R14, REG_R15 };
	struct xlate_vm *x = cpu->vm->xlate;
	greg_t *g = uc->uc_mcontext.gregs;
	const uint8_t *pc = (const uint8_t *)(uintptr_t)g[REG_RIP];

	if (!x || pc < x->cc.rx || pc >= x->cc.rx + x->cc.size)
		return false;
	/* The returns are full: forget them.  Pairs of words are pushed, so that a call has both or none. */
	if (g[REG_TRAPNO] == TRAP_PF &&
	    (uint64_t)g[REG_CR2] - (uint64_t)(uintptr_t)cpu->xlate->ret_stack < RET_STACK_GUARD) {
		cpu->xlate->ret_overflows++;
		g[REG_RSP] = (greg_t)cpu->ret_base;
		return true;
	}
	struct xlate_block *b = block_by_pc(x, pc);

	if (!b)
		return false;
	uint32_t off = (uint32_t)(pc - b->far_entry);
	unsigned i = b->nmap;

	while (i > 0 && b->map[i - 1].host_off > off)
		i--;
	if (!i)
		return false;
	/*
	 * Destinations are written after everything that can fault, so the registers are those before the
	 * instruction; the interpreter executes it again and raises what it has to.
	 */
	const uint8_t *host = off >= b->loop_off ? b->loop_host : emit_host_reg;

	for (unsigned r = 0; r < 16; r++)
		if (host[r] != H_NONE)
			cpu->s.gpr[r] = (uint64_t)g[greg_of[host[r]]];
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)FL_ARITH) | ((uint64_t)g[REG_EFL] & FL_ARITH);
	cpu->s.rip = cpu->pc_base + b->map[i - 1].page_off;
	if (cpu->code_bits == 32)
		cpu->s.rip = (uint32_t)cpu->s.rip;
	g[REG_RIP] = (greg_t)(uintptr_t)x->fault_exit;
	return true;
}
