/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding the block to go on with, entering it, and what happens at its ends.  See xlate.h for the invariants.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <ucontext.h>

#include "engine/dbt/check.h"
#include "engine/dbt/interp_user.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/xlate.h"

#define JC_PER_PAGE	2048u /* consecutive indices that a page's RIPs have */
#define CROSS_MAX	16u /* an instruction that goes on in the next page starts so far before it */
#define RET_STACK_BYTES (256 * KIB)
#define RET_STACK_GUARD GUEST_PAGE_SIZE
#define RET_STACK_ABOVE 256 /* ret_again looks so far above the top */
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
	x->is_counting = vm->cfg.is_counting;
	x->has_segments = x->has_bmi2 && !(vm->cfg.without & ENGINE_SEGMENTS);
	x->has_dead_flags = !vm->cfg.is_strict && !(vm->cfg.without & ENGINE_DEAD_FLAGS);
	int rc = xlate_table_create(vm, err);

	if (!rc)
		rc = xlate_cache_create(vm, err);
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
	xlate_cache_destroy(x);
	xlate_table_destroy(x);
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

void xlate_jc_forget(struct dbt_cpu *cpu, const uint8_t *from, const uint8_t *to)
{
	for (unsigned i = 0; i < DBT_JC_SIZE; i++) {
		const uint8_t *code = cpu->jc_code[i];

		if (code >= from && code < to)
			jc_drop(cpu, i);
	}
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
	uint64_t secret[2]; /* mode.c, branch_key() */

	if (getrandom(secret, sizeof(secret), 0) != sizeof(secret))
		return error_set(err, -EIO,
				 "the host gives no random numbers for a vCPU's branch table: %m");
	cpu->as_gen = secret[0];
	cpu->jc_poison = secret[1];
	cpu->self = cpu;
	cpu->base = (char *)cpu + DBT_BASE;
	if (cpu->vm->cfg.without & ENGINE_IN_PLACE)
		cpu->xlate->is_watched = true;
	cpu->page_mask = ~0xfffULL;
	cpu->jc_mask = (uint64_t)(DBT_JC_SIZE - 1) << 1;
	cpu->ct_mask = (uint64_t)(DBT_CT_SIZE - 1) << GUEST_PAGE_SHIFT;
	cpu->line_mask = DBT_LINE - 1;
	cpu->line_size = DBT_LINE;
	cpu->sign_mask = 1ULL << 63;
	cpu->attr_mask = SEG_ATTR_G | SEG_ATTR_DB | SEG_ATTR_AVL;
	cpu->df_mask = X86_FL_DF;
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

/* The linear address of @rip. */
static uint64_t linear(const struct dbt_cpu *cpu, uint64_t rip)
{
	return cpu->code_bits == 64 ? rip : (uint32_t)(rip + cpu->s.seg[SEG_CS].base);
}

void xlate_jc_set(struct dbt_cpu *cpu, uint64_t rip, struct xlate_block *b)
{
	struct xlate_cpu *x = cpu->xlate;
	unsigned i = jc_index(rip), hash = jc_page_hash(rip);

	uint8_t *code = xlate_far_entry(cpu->vm->xlate, b);

	if (cpu->jc_code[i] == code && cpu->jc_neg[i] == 0 - (rip + cpu->jc_key))
		return;
	const struct xlate_crossing *c = xlate_block_crossing(b);

	/* Where nothing is, something may come without notice. */
	if (c && c->page2 == XLATE_NO_RAM_PAGE)
		return;
	uint64_t lin = linear(cpu, rip);

	if (cpu->cpl < 3 &&
	    (!mmu_is_code_global(cpu, lin) || (c && !mmu_is_code_global(cpu, next_page(lin)))))
		cpu->has_local_code = true;
	x->has_based_code |= lin != rip;
	if (cpu->vm->cfg.without & ENGINE_BRANCH_TABLE)
		return;
	if (x->jc_page[i])
		x->jc_count[x->jc_page[i] - 1]--;
	x->jc_page[i] = (uint16_t)(hash + 1);
	x->jc_count[hash]++;
	cpu->jc_code[i] = code;
	cpu->jc_neg[i] = 0 - (rip + cpu->jc_key);
}

/* Branch-table entries of all modes and address spaces.  Not of code whose RIP is not linear (has_based_code). */
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
	if (has_code && x->has_based_code) {
		cpu->as_gen++;
		x->has_based_code = false;
		dbt_mode_changed(cpu);
	}
	if (has_code)
		dbt_returns_changed(cpu);
}

bool xlate_mode_ok(const struct xlate_vm *x, uint32_t key)
{
	unsigned code = key & 3;
	bool is_plain = code == DBT_MODE_CODE64 ||
			(code == DBT_MODE_CODE32 && key & DBT_MODE_SS32 && key & DBT_MODE_FLAT);

	return !(key & DBT_MODE_ALIGN) && (is_plain || x->has_segments);
}

static bool is_near_end(uint64_t phys)
{
	return (phys & 0xfff) > 4096 - CROSS_MAX;
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
	uint64_t lin = linear(cpu, cpu->s.rip), va = next_page(lin), offset;
	unsigned avail;

	if (cpu->code_bits != 64) { /* an instruction has at most INSN_MAX_LEN - 1 bytes there */
		uint64_t last = cpu->s.rip + (va - lin) + INSN_MAX_LEN - 2;

		if (last > cpu->s.seg[SEG_CS].limit && cpu->s.seg[SEG_CS].limit != 0xffffffff)
			return XLATE_NO_PAGE;
		va = (uint32_t)va;
	}
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

static struct xlate_block *translate_at(struct dbt_cpu *cpu, uint64_t phys, uint32_t key, bool is_jump)
{
	struct dbt_vm *vm = cpu->vm;
	struct xlate_vm *x = vm->xlate;

	dbt_fpu_to_mem(cpu); /* making room and stopping others call the C library, which may use vector registers */
	for (;;) {
		protect_page(cpu, phys);
		uint64_t phys2 = is_crossing(cpu, phys) ? second_page(cpu) : 0;

		if (phys2 & 1)
			protect_page(cpu, phys2);
		pthread_mutex_lock(&vm->lock);
		/* Somebody's write may have cleared the flag again before we got the lock. */
		bool is_safe = is_protected(vm, phys) && (!(phys2 & 1) || is_protected(vm, phys2));
		struct xlate_block *b = xlate_lookup(x, phys, phys2, key);

		if (b) {
			pthread_mutex_unlock(&vm->lock);
			return b;
		}
		bool has_room = xlate_cache_has_room(x);

		if (is_safe && has_room) {
			b = xlate_translate(cpu, phys, phys2, key, is_jump);
			if (b) {
				cpu->xlate->translations++;
				xlate_block_insert(cpu, b);
			}
			pthread_mutex_unlock(&vm->lock);
			return b; /* NULL: it cannot be; the interpreter goes on */
		}
		pthread_mutex_unlock(&vm->lock);
		if (!has_room)
			xlate_cache_make_room(cpu);
	}
}

/* May code at s.rip, @off bytes into its page, be translated as its code segment lies?  Adds to *@key. */
static bool is_in_segment(const struct dbt_cpu *cpu, unsigned off, uint32_t *key)
{
	uint64_t limit = cpu->s.seg[SEG_CS].limit, rip = cpu->s.rip;

	if (cpu->code_bits == 16) /* where IP wraps */
		limit = MIN(limit, 0xffffULL);
	if (limit == 0xffffffff)
		return true;
	if (rip - off + GUEST_PAGE_SIZE - 1 > limit || rip > limit)
		return false;
	if (rip < off)
		*key |= DBT_MODE_EDGE;
	return true;
}

/*
 * RAM offset of the byte at s.rip if its code may be translated, and the key of its block; false also for a fetch that
 * faults.
 */
static bool code_at_rip(struct dbt_cpu *cpu, uint64_t *phys, uint32_t *key)
{
	uint64_t lin = linear(cpu, cpu->s.rip), offset;
	unsigned avail;

	*key = cpu->mode_key;
	if (!xlate_mode_ok(cpu->vm->xlate, *key) ||
	    (cpu->code_bits != 64 && !is_in_segment(cpu, lin & 0xfff, key)) ||
	    !mmu_fetch_probe(cpu, lin, &avail, &offset))
		return false;
	*phys = offset | (lin & 0xfff);
	note_code_page(cpu, lin);
	return true;
}

static struct xlate_block *lookup_at_rip(struct dbt_cpu *cpu, uint64_t phys, uint32_t key)
{
	struct xlate_block *b = xlate_lookup(cpu->vm->xlate, phys, 0, key);

	if (unlikely(!b && is_near_end(phys)))
		b = xlate_lookup(cpu->vm->xlate, phys, second_page(cpu), key);
	if (b)
		xlate_cache_used(cpu->vm->xlate, b);
	return b;
}

struct xlate_block *xlate_find(struct dbt_cpu *cpu, uint32_t key_extra, bool is_jump)
{
	uint64_t phys;
	uint32_t key;

	if (!code_at_rip(cpu, &phys, &key))
		return NULL;
	key |= key_extra;
	struct xlate_block *b = lookup_at_rip(cpu, phys, key);

	if (!b)
		b = translate_at(cpu, phys, key, is_jump);
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
	uint32_t key;

	if (is_called_out(cpu) || !code_at_rip(cpu, &phys, &key))
		return NULL;
	struct xlate_block *b = lookup_at_rip(cpu, phys, key);

	if (!b)
		return NULL;
	cpu->xlate->table_fills++;
	xlate_jc_set(cpu, cpu->s.rip, b);
	return xlate_far_entry(cpu->vm->xlate, b);
}

void *xlate_far(struct dbt_cpu *cpu)
{
	struct dbt_vm *vm = cpu->vm;
	struct xlate_link *l = xlate_exit_link(cpu);
	struct xlate_block *b = NULL;
	uint64_t phys, va = cpu->pc_base;
	uint32_t key;

	cpu->s.rip = va + xlate_link_off(l);
	if (!is_called_out(cpu) && code_at_rip(cpu, &phys, &key)) {
		if (cpu->cpl < 3 && !mmu_is_code_global(cpu, va))
			cpu->has_local_code = true;
		cpu->ct[ct_index(va)] = xlate_ct_entry(va, phys >> GUEST_PAGE_SHIFT, cpu->jc_key);
		b = xlate_lookup(vm->xlate, phys, 0, key);
	}
	if (!b) { /* to the dispatcher, as from any branch */
		const struct xlate_far *far = xlate_link_far(l);

		cpu->pc_base = va - (uint64_t)(int64_t)(far->delta & ~0xfff);
		cpu->exit_info = (uint32_t)far->info;
		return NULL;
	}
	cpu->xlate->far_fills++;
	xlate_cache_used(vm->xlate, b);
	if (!l->to) {
		pthread_mutex_lock(&vm->lock);
		if (!l->to && !xlate_link_from(l)->is_dead && !b->is_dead)
			xlate_link_to(vm->xlate, l, b);
		pthread_mutex_unlock(&vm->lock);
	}
	return xlate_far_entry(vm->xlate, b);
}

#define STEP_MAX 8

/* After an interpreted instruction: where to go on, or why to leave. */
uint64_t xlate_go_on(struct dbt_cpu *cpu)
{
	for (unsigned n = 0; n < STEP_MAX; n++) {
		cpu->xlate->steps++;
		/* After code was dropped the returns may lead nowhere: only a new entry forgets them. */
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
		if (!cpu->s.interrupt_shadow || cpu->dr6_pending || cpu->is_debug_hit ||
		    dbt_is_at_stop(cpu))
			break;
		interp_one(cpu);
	}
	return XEXIT_POLL;
}

/* Stubs add the offset in the page to pc_base. */
static void wrap_rip(struct dbt_cpu *cpu)
{
	if (unlikely(cpu->code_bits != 64))
		cpu->s.rip = (uint32_t)cpu->s.rip;
}

/* Would a branch to s.rip fault? */
static bool is_rip_bad(const struct dbt_cpu *cpu)
{
	return cpu->code_bits == 64 ? !mmu_is_canonical(cpu->s.rip)
				    : cpu->s.rip > cpu->s.seg[SEG_CS].limit;
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
	const uint64_t *from = (const void *)(cpu->vm->xlate->cc.meta + (uint32_t)cpu->exit_info);
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
	exit = cpu->vm->xlate->enter(cpu, xlate_far_entry(cpu->vm->xlate, b));
	if (exit == XEXIT_LINK)
		s->rip = cpu->pc_base + xlate_link_off(xlate_exit_link(cpu));
	wrap_rip(cpu);
	if (unlikely(exit == XEXIT_LOOKUP && is_rip_bad(cpu)) && (int32_t)cpu->exit_info != -1) {
		/* The branch faults, not its target: back to before it (emit_indirect), the interpreter raises. */
		int32_t info = (int32_t)cpu->exit_info;

		s->rip = cpu->pc_base + (info & 0xfff);
		cpu->left++;
		wrap_rip(cpu);
		user_reg_write(cpu, R_RSP, user_sp_size(cpu),
			       s->gpr[R_RSP] - (uint64_t)(int64_t)(info >> 12));
		return XEXIT_INTERP;
	}
	return exit;
}

/* ---- host faults in translated code ------------------------------------------------------- */

/* The next number of seven bits a byte. */
static uint32_t map_read(const uint8_t **p)
{
	uint32_t v = 0;
	unsigned shift = 0;

	do
		v |= (uint32_t)(**p & 0x7f) << shift;
	while (shift += 7, *(*p)++ & 0x80);
	return v;
}

int xlate_map_find(struct xlate_block *b, uint32_t off, unsigned *index)
{
	const uint8_t *p = xlate_block_map(b);
	uint32_t host = 0;
	int page_off = 0, found = -1;

	for (unsigned i = 0; i < b->nmap; i++) {
		host += map_read(&p);
		uint32_t step = map_read(&p);

		if (host > off)
			break;
		page_off += (int)(step >> 1 ^ (0 - (step & 1)));
		found = page_off;
		*index = i;
	}
	return found;
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
	struct xlate_block *b = xlate_cache_find(x, pc);
	uint32_t off = b ? (uint32_t)(pc - xlate_code(x, b)) : 0;
	unsigned index = 0;
	int page_off = b ? xlate_map_find(b, off, &index) : -1;

	if (page_off < 0)
		return false;
	/*
	 * Destinations are written after everything that can fault, so the registers are those before the
	 * instruction; the interpreter executes it again and raises what it has to.
	 */
	const struct xlate_loop *loop = xlate_block_loop(b);
	const uint8_t *host = loop && off >= loop->off ? loop->host : emit_host_reg;

	for (unsigned r = 0; r < 16; r++)
		if (host[r] != H_NONE)
			cpu->s.gpr[r] = (uint64_t)g[greg_of[host[r]]];
	cpu->s.rflags = (cpu->s.rflags & ~(uint64_t)FL_ARITH) | ((uint64_t)g[REG_EFL] & FL_ARITH);
	cpu->s.rip = cpu->pc_base + (unsigned)page_off;
	wrap_rip(cpu);
	if (x->is_counting)
		cpu->left += b->ninsns - index;
	g[REG_RIP] = (greg_t)(uintptr_t)x->fault_exit;
	return true;
}
