/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The translator: blocks of re-encoded guest instructions, found by physical address, chained.
 *
 * A block is a run of instructions of one guest-physical page, translated for one mode key.  It is
 * position-independent in guest-virtual addresses: gs:pc_base holds RIP minus the offset in the page, so
 * that RIP of any instruction of the block is pc_base + its offset in the page.
 *
 *   far entry   gs:s.rip holds the block's RIP: sets pc_base, falls into the near entry
 *   near entry  pc_base is right already (chained from a block of the same page)
 *
 * Its code is in two places: what is executed normally, close together for the host's caches; and the ways
 * out, in the cold part of the code cache.  Backward jumps poll, and so do all that go through the branch table.
 *
 * Far links: a direct jump to another page of 64-bit code checks that the target's linear page is still the page of RAM
 * where it was found, in a table of code pages, and jumps to the block itself.  Processes that share the code share
 * the link; what each has to find out again is pages, not targets.
 *
 * A block follows not-taken branches and ends at a call or another unconditional transfer, at an instruction that is
 * interpreted, where another block begins, at the end of its page or at its size limit.
 *
 * Invariants
 *  1. The code cache is append-only between flushes; a flush stops the world, so code is never freed
 *     under a running vCPU.  Code memory has two mappings, one writable, one executable.
 *  2. A live block's page has RAM_PAGE_CODE, and no vCPU holds a write mapping of it.
 *  3. A dead block's far entry is patched to leave to the dispatcher, and the landing of its call to look the
 *     return address up; no live block jumps to it.
 *  4. Every exit leaves s.rip exact and all registers in s, and so does an instruction that is interpreted in
 *     between (xlate_step).
 *  5. Blocks, links and the hash table change under vm->lock only; lookups are lock-free.
 */
#ifndef VIV_DBT_XLATE_H
#define VIV_DBT_XLATE_H

#include <ucontext.h>

#include "engine/dbt/dbt.h"
#include "engine/dbt/emit.h"

/* Why translated code came back (rax of the exit stub). */
enum xlate_exit {
	XEXIT_LOOKUP, /* continue at s.rip: not in the branch table */
	XEXIT_LINK,   /* continue at s.rip; exit_info is the struct xlate_link to patch */
	XEXIT_INTERP, /* the instruction at s.rip is the interpreter's (only if xlate_cpu.is_watched) */
	XEXIT_POLL, /* poll was set, or the dispatcher has to look around */
	XEXIT_COUNT,
};

struct xlate_block;

/* A direct jump out of a block: to its own stub, or patched to a block of the same page; or far: of another page. */
struct xlate_link {
	uint8_t *site;		       /* writable address of the rel32 */
	intptr_t stub;		       /* rel32 value that leads to the stub */
	struct xlate_block *from, *to; /* to: NULL while unpatched */
	struct xlate_link *next_in;    /* other links into @to */
	uint16_t page_off;	       /* target's offset in the page */
	uint32_t key_extra; /* the target's key has these bits besides the mode: DBT_MODE_EACH or 0 */
	/* Far links. */
	uint8_t *ram_page; /* writable address of the number of the page of RAM that is checked for; NULL: not far */
	int32_t page_delta; /* bytes from the jump's page to the target's */
	int32_t info;	    /* exit_info of the jump */
};

/* No page of RAM has this number: a far link that is not patched. */
#define XLATE_NO_RAM_PAGE 0x7fffffffu
/* Page numbers below keep the sum of xlate_ct_entry() unambiguous. */
#define XLATE_RAM_PAGES_MAX ((1u << 28) - (1u << 16))

/**
 * xlate_ct_entry() - that linear page @va is page of RAM @page, for the branch-table key @key.
 *
 * The check is rot(va) + page + key + entry == 0.  Rotated, the address has its page number above bit 27 and nothing but
 * copies of its highest bit below bit 16, so that two pairs of pages with the same sum are the same; the key is secret.
 */
static inline uint64_t xlate_ct_entry(uint64_t va, uint64_t page, uint64_t key)
{
	va &= ~0xfffULL;
	return 0 - ((va << 16 | va >> 48) + page + key);
}

#define XLATE_NO_PAGE 2ULL

struct xlate_insn_map {
	uint32_t host_off; /* where the instruction's host code starts, from block->code */
	uint16_t page_off;
};

#define XLATE_MAX_INSNS	   64
#define XLATE_LOOP_ROUNDS  1024 /* of a loop between two polls */
#define XLATE_MAX_BRANCHES 19	/* conditional ones that a block goes on after */
#define XLATE_MAX_LINKS	   144	/* branches, the end, checks of groups; a loop's twice */

struct xlate_block {
	uint64_t phys; /* RAM offset of the first byte */
	/* A block of one instruction that goes on in another page: the RAM offset of that page, with bit 0 set;
	 * XLATE_NO_PAGE: it could not be fetched.  Of others 0. */
	uint64_t phys2;
	uint32_t key;			/* mode key */
	uint16_t guest_len, guest_len2; /* bytes in the page of phys, of phys2 */
	uint16_t ninsns, nlinks;
	uint16_t nmap; /* entries of map: ninsns, and of a loop as many again */
	bool is_dead;
	bool has_tsc;	/* reads the TSC: two runs differ */
	bool is_interp; /* starts with an instruction that is interpreted */
	bool is_loop;	/* goes round in itself (translate_loop.c) */
	uint8_t loop_host[16]; /* register map of code from loop_off on, from far_entry; UINT32_MAX: none */
	uint32_t loop_off;
	uint8_t *far_entry, *near_entry; /* executable addresses */
	uint32_t code_len;		 /* from far_entry, without the cold part */
	struct xlate_block *page_next, *page2_next;
	struct xlate_link *in; /* links that jump here */
	struct xlate_link *links;
	struct xlate_insn_map *map;
	uint32_t landing; /* where its call comes back to, from far_entry; 8-byte aligned code; 0: nowhere */
};

#define XLATE_JC_HASHES	 4096u
#define XLATE_CODE_PAGES 65536u

/* Per-vCPU counters. */
struct xlate_cpu {
	uint64_t compared, compared_again, compared_not; /* blocks, by the lockstep checker */
	uint64_t entries, exits_lookup, exits_link, exits_interp, exits_poll, translations;
	uint64_t interp_by_id[I_COUNT]; /* what the interpreter executed */
	uint64_t steps;			/* instructions interpreted without leaving */
	uint64_t fill_true, fill_false, table_fills, far_fills, ret_overflows;
	struct insn called; /* the one in execution: a flush may free the block's */
	uint64_t entered;   /* generation of the code that was entered */
	bool is_watched; /* interpreted instructions leave: somebody compares blocks, or ENGINE_IN_PLACE is off */
	struct check *check; /* lockstep checker, NULL when off (check.h) */
	/* Pages with entries in the branch table: a hash of the entry's page + 1 (0: no entry), and how many have
	 * each hash. */
	uint16_t jc_page[DBT_JC_SIZE], jc_count[XLATE_JC_HASHES];
	uint64_t code_pages[XLATE_CODE_PAGES / 64]; /* hashed set: pages from which code may have run */
	uint8_t *ret_stack;			    /* guard page, then the returns */
};

struct code_cache {
	uint8_t *rw, *rx; /* the two views */
	size_t size;
	size_t used, stubs_end; /* [0, stubs_end): stubs, kept by a flush; then blocks, to cold_start */
	size_t cold_start, cold_used; /* then their cold parts, from cold_start to cold_used */
};

/*
 * The table of blocks: open addressing, linear probing.  A reader without the lock may take the words of a slot from
 * two blocks that were there one after the other, so it looks into the block: that stays until the next flush.
 */
#define XLATE_HASH_BITS 18
#define XLATE_HASH_SIZE (1u << XLATE_HASH_BITS)
#define XLATE_HASH_MAX	(XLATE_HASH_SIZE / 4 * 3)

struct xlate_slot {
	_Atomic uint64_t tag; /* phys << 17 | key; 0: free; XLATE_TAG_GONE */
	_Atomic(struct xlate_block *) b;
};
#define XLATE_TAG_GONE UINT64_MAX

struct xlate_vm {
	struct code_cache cc;
	struct xlate_slot hash[XLATE_HASH_SIZE];
	struct xlate_block **by_page;  /* list of blocks by RAM page index */
	struct xlate_block **by_page2; /* of those that have it as phys2 */
	/* Blocks by ascending far_entry; never moves, so that a signal handler may search it. */
	struct xlate_block **order;
	_Atomic size_t norder;
	struct {
		uint8_t *p, *end;
	} arena; /* metadata, dropped by a flush */
	struct arena_chunk *chunks;
	/* Stubs: executable addresses. */
	unsigned (*enter)(struct dbt_cpu *cpu, void *code);
	uint8_t *ret_miss, *ret_again, *ret_dead; /* see stubs.c, "returns" */
	uint8_t *exit_lookup, *exit_branch, *exit_far, *exit_link, *exit_interp, *exit_call,
		*exit_poll, *miss, *miss_group, *fault_exit;
	uint8_t *exit_syscall, *exit_sysret;
	uint8_t *string[2][DBT_TLB_MODES][4]; /* STOS, MOVS; log2 of the element's size (translate_sys.c) */
	bool has_bmi2;
	bool has_far_links;
	bool has_returns;    /* calls and returns are the host's */
	bool has_dead_flags; /* flags that the program does not read need not be kept */
	uint64_t flushes, invalidations, smc_hits;
	uint64_t verify_failures; /* blocks that the verifier refused: then vcpu_run fails ... */
	char refused[160];	  /* ... and says why the last of them was */
	uint64_t generation;	  /* of flushes */
};

int xlate_vm_create(struct dbt_vm *vm, struct error *err);
void xlate_vm_destroy(struct dbt_vm *vm);
int xlate_cpu_create(struct dbt_cpu *cpu, struct error *err);
void xlate_cpu_destroy(struct dbt_cpu *cpu);

/** xlate_find() - the block for the present s.rip, translating it if needed, with
 * @key_extra (DBT_MODE_EACH or 0) added to the key; NULL when this place can't be
 * translated (not RAM, fetch faults, mode is the interpreter's). */
struct xlate_block *xlate_find(struct dbt_cpu *cpu, uint32_t key_extra);
/** xlate_lookup_fast() - the miss of the branch table, called by the stub with only s.rip and the mode exact:
 * far entry of the block for s.rip, now in the table; NULL: leave to the dispatcher. */
void *xlate_lookup_fast(struct dbt_cpu *cpu);
/** xlate_far() - the same for a far link, which exit_info points to; pc_base is the target's already. */
void *xlate_far(struct dbt_cpu *cpu);
/**
 * xlate_step() - interpret the instruction at s.rip, called by a stub with all state in s.
 *
 * Goes on to interpret where that is needed (interrupt shadow), for a few instructions.
 * Returns the code to go on at, or an enum xlate_exit: to the dispatcher.
 */
uint64_t xlate_step(struct dbt_cpu *cpu);
/** xlate_call() - the same for an instruction that was decoded with the block; exit_info points to it. */
uint64_t xlate_call(struct dbt_cpu *cpu);
/** xlate_go_on() - what they do after the instruction. */
uint64_t xlate_go_on(struct dbt_cpu *cpu);
/**
 * xlate_syscall(), xlate_sysret() - xlate_call() of these instructions in 64-bit mode, from and to 64-bit mode; exit_info
 * is the length of SYSCALL (sys_call.c).
 */
uint64_t xlate_syscall(struct dbt_cpu *cpu);
uint64_t xlate_sysret(struct dbt_cpu *cpu);
/** xlate_run() - enter @b; returns an enum xlate_exit; s is complete. */
unsigned xlate_run(struct dbt_cpu *cpu, struct xlate_block *b);
/** xlate_link_patch() - make the link of cpu->exit_info jump to @b directly, if it may. */
void xlate_link_patch(struct dbt_cpu *cpu, struct xlate_link *l, struct xlate_block *b);
/** xlate_jc_set() - remember @b for s.rip in the branch table. */
void xlate_jc_set(struct dbt_cpu *cpu, uint64_t rip, struct xlate_block *b);
/** xlate_flush() - drop all translations; the world is stopped by the caller or single. */
void xlate_flush(struct dbt_vm *vm);
/** xlate_signal() - a host signal with its pc in translated code: set up an exit to the interpreter
 * (dbt_xlate_fault in thunk.h). */
bool xlate_signal(struct dbt_cpu *cpu, ucontext_t *uc, int sig);

/** xlate_mode_ok() - may code of this mode key be translated? */
bool xlate_mode_ok(uint32_t key);

/* translate.c */
/** xlate_translate() - build a block; called with vm->lock.  NULL when the cache is full.
 * @phys2: as in struct xlate_block */
struct xlate_block *xlate_translate(struct dbt_cpu *cpu, uint64_t phys, uint64_t phys2, uint32_t key);
/** xlate_has_block() - is there a block that starts at @phys? */
bool xlate_has_block(struct xlate_vm *x, uint64_t phys, uint32_t key);
/* stubs.c */
int xlate_emit_stubs(struct dbt_vm *vm, struct error *err);
void *xlate_alloc(struct xlate_vm *x, size_t bytes);
/* translate_sys.c: the stubs of string instructions. */
void xlate_emit_strings(struct xlate_vm *x, struct emit *e);

/* dispatch.c: a vCPU is "running" between these two; enter waits for an exclusive section to end. */
void dbt_run_enter(struct dbt_cpu *cpu);
void dbt_run_leave(struct dbt_cpu *cpu);
/** dbt_must_look() - is there an event for the dispatcher, or something that only the interpreter may execute? */
bool dbt_must_look(const struct dbt_cpu *cpu);
enum run_result dbt_run(struct dbt_cpu *cpu);

/** dbt_probe() - engine_ops.probe: runs a small guest and measures (src/engine/dbt_probe.c). */
void dbt_probe(struct engine_probe *out);

#endif
