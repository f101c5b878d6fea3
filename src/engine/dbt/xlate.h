/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The translator: blocks of re-encoded guest instructions, found by physical address, chained.
 *
 * A block is a run of instructions of one guest-physical page, translated for one mode key.  It is
 * position-independent in guest-virtual addresses: gs:pc_base holds RIP minus the offset in the page, so
 * that RIP of any instruction of the block is pc_base + its offset in the page.
 *
 *   far entry   gs:s.rip holds the block's RIP: sets pc_base, and goes on at the near entry
 *   near entry  pc_base is right already (chained from a block of the same page)
 *
 * The far entry stands before the near one; of a block that was translated for a jump, to be chained, among the ways out.
 *
 * Its code is in two places: what is executed normally, close together for the host's caches; and the ways
 * out, in the cold part of its segment.  Backward jumps poll, and so do all that go through the branch table.
 *
 * Far links: a direct jump to another page of 64-bit code checks that the target's linear page is still the page of RAM
 * where it was found, in a table of code pages, and jumps to the block itself.  Processes that share the code share
 * the link; what each has to find out again is pages, not targets.
 *
 * RIP is not linear where CS has a base: pc_base is what RIP is further than the offset in the page, below zero where the
 * segment begins within it.  Such a page has blocks of its own (DBT_MODE_EDGE), whose jumps to before their start go by the branch
 * table; code in the page of the segment's end is interpreted.  Everywhere else a page is wholly in its segment, and jumps
 * within it need no check.
 *
 * A block follows not-taken branches and ends at a call or another unconditional transfer, at an instruction that is
 * interpreted, where another block begins, at the end of its page or at its size limit.
 *
 * Memory: segments, each with code, ways out and records of blocks, filled one after the other.  After a boot most blocks
 * are never run again, so the number of segments is limited: at the limit the one that is used least is emptied.  Who
 * needs dropped blocks soon again gets more segments (cache.c).  Records are named by 32-bit references,
 * their offsets in the memory of records; 0 is none.
 *
 * Invariants
 *  1. In a segment code is only appended to; it is emptied with the world stopped and counted in generation, so that
 *     code and records are never freed under a running vCPU, and whoever comes out of a stop knows that what it
 *     remembers may be gone.  Code memory has two mappings, one writable, one executable.
 *     Code that was kept fills segments that were reserved for it, beside the running guest (keep_load.c).
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
	XEXIT_LINK,   /* continue at s.rip; exit_info refers to the struct xlate_link to patch */
	XEXIT_INTERP, /* the instruction at s.rip is the interpreter's (only if xlate_cpu.is_watched) */
	XEXIT_POLL, /* poll was set, or the dispatcher has to look around */
	XEXIT_COUNT,
};

struct xlate_block;

/* A direct jump out of a block: to its own stub, or patched to a block of the same page; or far: of another page. */
struct xlate_link {
	uint32_t site; /* offset of the rel32 in the code cache; 0: the jump was not emitted after all */
	int32_t stub;	  /* rel32 value that leads to the stub */
	uint32_t to;	  /* block; 0 while unpatched */
	uint32_t next_in; /* other links into @to */
	uint16_t target;  /* its offset in the page, and XLATE_LINK_EACH */
	uint8_t index;	  /* in the block's links */
	uint8_t far;	  /* which of its struct xlate_far is this one's, plus 1; 0: not far */
};
#define XLATE_LINK_EACH 0x8000u /* the target's key has DBT_MODE_EACH besides the mode */

/* What a far link has besides. */
struct xlate_far {
	int32_t delta; /* bytes from the jump's page to the target's; its low 12 bits: from the number of the page
			* of RAM that is checked for to the site */
	int32_t info; /* exit_info of the jump */
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
	uint32_t host_off; /* where the instruction's host code starts, in the block's */
	uint16_t page_off;
};

#define XLATE_MAX_INSNS	   64
#define XLATE_LOOP_ROUNDS  1024 /* of a loop between two polls */
#define XLATE_MAX_BRANCHES 19	/* conditional ones that a block goes on after */
#define XLATE_MAX_LINKS	   144	/* branches, the end, checks of groups; a loop's twice */

/*
 * The record of a block, in its segment.  Behind it come its links, the far ones' rest, struct xlate_crossing and
 * struct xlate_loop if it has them, and its map: of each instruction what it is further than the one before, in host code and in the guest's
 * page, as two numbers of seven bits a byte, low ones first; the second is signed by its lowest bit (xlate_map_find()).  Then, 8-byte aligned,
 * the decoded forms of instructions that are interpreted.  The order of blocks in a segment is that of their records, their
 * code and their cold parts alike.
 */
struct xlate_block {
	uint64_t tag;	    /* xlate_tag() */
	uint32_t code;	    /* offset of its code in the code cache */
	uint32_t entry;	    /* ... of the far entry */
	uint32_t page_next; /* block: another of the page */
	uint32_t in;	    /* link: one that jumps here */
	uint16_t code_len;  /* without the cold part */
	uint16_t landing; /* where its call comes back to, from code on; 8-byte aligned code; 0: nowhere */
	uint16_t guest_len; /* bytes in the page of phys */
	uint8_t near;	    /* near entry, from code on */
	uint8_t ninsns, nlinks, nfars;
	uint8_t nmap; /* entries of the map: ninsns, and of a loop as many again */
	bool is_dead;
	bool has_tsc : 1;     /* reads the TSC: two runs differ */
	bool is_interp : 1;   /* starts with an instruction that is interpreted */
	bool is_crossing : 1; /* has a struct xlate_crossing */
	bool has_loop : 1;    /* has a struct xlate_loop */
	uint8_t ndecoded;     /* interpreted instructions behind the map */
	uint16_t cold_len;    /* of its cold part */
	struct xlate_link links[];
};

/* A block of one instruction that goes on in another page. */
struct xlate_crossing {
	uint32_t page2; /* number of that page of RAM; XLATE_NO_RAM_PAGE: it could not be fetched */
	uint32_t page2_next; /* block: another that has it */
	uint32_t guest_len2; /* bytes there */
};

/* A loop with registers of its own. */
struct xlate_loop {
	uint8_t host[16]; /* register map of its code */
	uint32_t off;	  /* where that begins, in the block's code */
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
	struct insn called;  /* the one in execution: the block's may be dropped */
	uint64_t entered;    /* generation of the code that was entered */
	bool has_based_code; /* the branch table may have RIPs that are no linear addresses */
	bool is_watched; /* interpreted instructions leave: somebody compares blocks, or ENGINE_IN_PLACE is off */
	struct check *check; /* lockstep checker, NULL when off (check.h) */
	/* Pages with entries in the branch table: a hash of the entry's page + 1 (0: no entry), and how many have
	 * each hash. */
	uint16_t jc_page[DBT_JC_SIZE], jc_count[XLATE_JC_HASHES];
	uint64_t code_pages[XLATE_CODE_PAGES / 64]; /* hashed set: pages from which code may have run */
	uint8_t *ret_stack;			    /* guard page, then the returns */
};

/* Sizes of the parts that a segment has room for; how much of them all is filled is XLATE_SEGMENT_BYTES. */
#define XLATE_SEGMENTS	    128u
#define XLATE_SEGMENT_BYTES (1 * MIB)
#define XLATE_HOT_BYTES	    (768 * KIB)
#define XLATE_COLD_BYTES    (384 * KIB)
#define XLATE_META_BYTES    (512 * KIB)
#define XLATE_STUB_BYTES    (64 * KIB) /* at the start of the code cache */
#define XLATE_DROPPED_BITS  16

/*
 * Under vm->lock.  Blocks are in the order of their code; the last words of the records' part, downwards, name
 * them in that order, so that a signal handler may search it.
 */
struct xlate_segment {
	uint32_t hot, cold, meta; /* bytes used of each part */
	uint32_t born;		  /* cc.births when it was begun; 0: empty */
	_Atomic uint32_t n;	  /* blocks, dead ones included */
};

struct code_cache {
	uint8_t *rw, *rx; /* the two views: stubs, hot parts of all segments, cold parts */
	size_t size;
	size_t used, stubs_end; /* [0, stubs_end): stubs, kept by a flush */
	uint8_t *meta;		/* records of all segments */
	struct xlate_segment seg[XLATE_SEGMENTS];
	_Atomic uint32_t used_of[XLATE_SEGMENTS]; /* how often a block of it was looked for; any vCPU, unlocked */
	bool is_reserved[XLATE_SEGMENTS]; /* empty, and kept free for code that is being loaded */
	unsigned now, nsegs; /* the segment that is being filled; how many are not empty, reserved ones included */
	unsigned nreserved;
	unsigned limit; /* that many may be filled, and it stays between these: */
	unsigned limit_min, limit_max;
	uint32_t segment_bytes; /* when one counts as full */
	uint32_t births;	/* segments begun */
	unsigned fresh, again; /* translations, the last segment's most; blocks among them that had been dropped */
	uint16_t *dropped; /* what is remembered of blocks that were dropped (cache.c) */
};

/*
 * The table of blocks: open addressing, linear probing.  A slot is a reference to a block, in units of 8 bytes, with
 * XLATE_SLOT_BITS of the tag's hash below; 0: free; or XLATE_SLOT_GONE.
 */
#define XLATE_SLOT_BITS	    9
#define XLATE_SLOT_GONE	    1u
#define XLATE_HASH_BITS_MIN 15
#define XLATE_HASH_BITS_MAX 19
#define XLATE_SEEN_BITS	    20
_Static_assert((uint64_t)XLATE_SEGMENTS *XLATE_META_BYTES / 8 <= 1u << (32 - XLATE_SLOT_BITS),
	       "a slot holds it");

struct xlate_table {
	_Atomic uint32_t *slot; /* of XLATE_HASH_BITS_MAX; the first 1 << bits are used */
	/* A bit for each XLATE_SEEN_BITS of a hash that some block may have: most questions are for blocks that are not there. */
	_Atomic uint64_t *seen;
	unsigned bits;	  /* changes while the world is stopped */
	unsigned nused;	  /* slots that are not free */
	unsigned nblocks; /* live ones */
};

/* Offsets in the code cache of a segment's two parts. */
static inline uint32_t xlate_hot_at(unsigned s)
{
	return (uint32_t)(XLATE_STUB_BYTES + s * XLATE_HOT_BYTES);
}
static inline uint32_t xlate_cold_at(unsigned s)
{
	return (uint32_t)(xlate_hot_at(XLATE_SEGMENTS) + s * XLATE_COLD_BYTES);
}

struct xlate_vm {
	struct code_cache cc;
	struct xlate_table table;
	uint32_t *by_page;  /* block: list of those in a page of RAM, by its number */
	uint32_t *by_page2; /* of those that have it as page2 */
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
	bool is_counting;    /* counting.c */
	bool has_segments;   /* 16-bit code, and segments that are not flat (translate_seg.c) */
	bool has_dead_flags; /* flags that the program does not read need not be kept */
	uint64_t flushes, invalidations, smc_hits;
	uint64_t evictions, evicted, translated_again;
	uint64_t loaded;	  /* blocks that came from elsewhere (keep.c) */
	uint64_t verify_failures; /* blocks that the verifier refused: then vcpu_run fails ... */
	char refused[160];	  /* ... and says why the last of them was */
	uint64_t generation;	  /* of flushes and of segments emptied */
};

/* ---- records ---- */

#define XLATE_KEY_BITS 18

/** xlate_tag() - what names a block but for its second page.  No host has 2^46 bytes of RAM for a guest. */
static inline uint64_t xlate_tag(uint64_t phys, uint32_t key)
{
	return phys << XLATE_KEY_BITS | key;
}
/** xlate_hash() - of a tag; its high bits are the best. */
static inline uint64_t xlate_hash(uint64_t tag)
{
	return tag * 0x9e3779b97f4a7c15ULL;
}
/** xlate_block_phys() - RAM offset of the block's first byte. */
static inline uint64_t xlate_block_phys(const struct xlate_block *b)
{
	return b->tag >> XLATE_KEY_BITS;
}
/** xlate_block_key() - its mode key. */
static inline uint32_t xlate_block_key(const struct xlate_block *b)
{
	return b->tag & ((1u << XLATE_KEY_BITS) - 1);
}
/** xlate_ref() - the reference of a record (block or link), xlate_block_at() and xlate_link_at() - the other way. */
static inline uint32_t xlate_ref(const struct xlate_vm *x, const void *record)
{
	return (uint32_t)((const uint8_t *)record - x->cc.meta);
}
static inline struct xlate_block *xlate_block_at(const struct xlate_vm *x, uint32_t ref)
{
	return (struct xlate_block *)(void *)(x->cc.meta + ref);
}
static inline struct xlate_link *xlate_link_at(const struct xlate_vm *x, uint32_t ref)
{
	return (struct xlate_link *)(void *)(x->cc.meta + ref);
}
/** xlate_far_entry(), xlate_code() - executable addresses. */
static inline uint8_t *xlate_far_entry(const struct xlate_vm *x, const struct xlate_block *b)
{
	return x->cc.rx + b->entry;
}
static inline uint8_t *xlate_code(const struct xlate_vm *x, const struct xlate_block *b)
{
	return x->cc.rx + b->code;
}
/** xlate_link_from() - the block that the link is of. */
static inline struct xlate_block *xlate_link_from(struct xlate_link *l)
{
	return (struct xlate_block *)(void *)((uint8_t *)(l - l->index) -
					      offsetof(struct xlate_block, links));
}
static inline struct xlate_far *xlate_block_fars(struct xlate_block *b)
{
	return (struct xlate_far *)(void *)(b->links + b->nlinks);
}
/** xlate_link_far() - the rest of a far link. */
static inline struct xlate_far *xlate_link_far(struct xlate_link *l)
{
	return xlate_block_fars(xlate_link_from(l)) + l->far - 1;
}
/** xlate_block_crossing() - NULL if it is none. */
static inline struct xlate_crossing *xlate_block_crossing(struct xlate_block *b)
{
	return b->is_crossing ? (struct xlate_crossing *)(void *)(xlate_block_fars(b) + b->nfars) : NULL;
}
/* What lies behind the rests of far links and the crossing. */
static inline uint8_t *xlate_block_tail(struct xlate_block *b)
{
	return (uint8_t *)(xlate_block_fars(b) + b->nfars) +
	       (b->is_crossing ? sizeof(struct xlate_crossing) : 0);
}
/** xlate_block_loop() - NULL if it has none. */
static inline struct xlate_loop *xlate_block_loop(struct xlate_block *b)
{
	return b->has_loop ? (struct xlate_loop *)(void *)xlate_block_tail(b) : NULL;
}
/** xlate_block_map() - the map. */
static inline uint8_t *xlate_block_map(struct xlate_block *b)
{
	return xlate_block_tail(b) + (b->has_loop ? sizeof(struct xlate_loop) : 0);
}
/** xlate_link_extra() - what the target's key has besides the mode: DBT_MODE_EACH or 0. */
static inline uint32_t xlate_link_extra(const struct xlate_link *l)
{
	return l->target & XLATE_LINK_EACH ? DBT_MODE_EACH : 0;
}
/** xlate_link_off() - the target's offset in its page. */
static inline uint16_t xlate_link_off(const struct xlate_link *l)
{
	return l->target & 0xfff;
}
/** xlate_exit_link() - the link that a vCPU left by (XEXIT_LINK). */
static inline struct xlate_link *xlate_exit_link(const struct dbt_cpu *cpu)
{
	return xlate_link_at(cpu->vm->xlate, (uint32_t)cpu->exit_info);
}

int xlate_vm_create(struct dbt_vm *vm, struct error *err);
void xlate_vm_destroy(struct dbt_vm *vm);
int xlate_cpu_create(struct dbt_cpu *cpu, struct error *err);
void xlate_cpu_destroy(struct dbt_cpu *cpu);

/** xlate_find() - the block for the present s.rip, translating it if needed, with
 * @key_extra (DBT_MODE_EACH or 0) added to the key, @is_jump: for a jump that is going to be chained to it;
 * NULL when this place can't be translated (not RAM, fetch faults, mode is the interpreter's). */
struct xlate_block *xlate_find(struct dbt_cpu *cpu, uint32_t key_extra, bool is_jump);
/** xlate_lookup_fast() - the miss of the branch table, called by the stub with only s.rip and the mode exact:
 * far entry of the block for s.rip, now in the table; NULL: leave to the dispatcher. */
void *xlate_lookup_fast(struct dbt_cpu *cpu);
/** xlate_far() - the same for a far link, which exit_info refers to; pc_base is the target's already. */
void *xlate_far(struct dbt_cpu *cpu);
/**
 * xlate_step() - interpret the instruction at s.rip, called by a stub with all state in s.
 *
 * Goes on to interpret where that is needed (interrupt shadow), for a few instructions.
 * Returns the code to go on at, or an enum xlate_exit: to the dispatcher.
 */
uint64_t xlate_step(struct dbt_cpu *cpu);
/** xlate_call() - the same for an instruction that was decoded with the block; exit_info refers to it. */
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
/** xlate_signal() - a host signal with its pc in translated code: set up an exit to the interpreter
 * (dbt_xlate_fault in thunk.h). */
bool xlate_signal(struct dbt_cpu *cpu, ucontext_t *uc, int sig);

/** xlate_mode_ok() - may code of this mode key be translated? */
bool xlate_mode_ok(const struct xlate_vm *x, uint32_t key);

/* translate.c */
/** xlate_translate() - build a block in the present segment; called with vm->lock.  NULL when it can't be.
 * @is_jump: as in xlate_find()
 * @phys2: XLATE_NO_PAGE, or the RAM offset of the page where its only instruction goes on, with bit 0 set; 0: it does not */
struct xlate_block *xlate_translate(struct dbt_cpu *cpu, uint64_t phys, uint64_t phys2,
				    uint32_t key, bool is_jump);
/**
 * xlate_verify() - the independent reading of block @b, which is not linked (code_verify.h).  A block that fails it is never run.
 * @cold: offset of its cold part in the code cache, of @b->cold_len bytes
 */
bool xlate_verify(struct dbt_cpu *cpu, const struct xlate_block *b, uint32_t cold);
/**
 * xlate_is_verified() - the same, and nothing else, on any thread that is no vCPU's; false with @why.
 * @code, @cold_code: copies of its parts, wherever they are
 */
bool xlate_is_verified(const struct dbt_vm *vm, const struct xlate_block *b, const uint8_t *code,
		       uint32_t cold, const uint8_t *cold_code, char why[160]);
/* stubs.c */
int xlate_emit_stubs(struct dbt_vm *vm, struct error *err);

/*
 * cache.c: the memory of code and records.  All with vm->lock, but where it says otherwise.
 */
int xlate_cache_create(struct dbt_vm *vm, struct error *err);
void xlate_cache_destroy(struct xlate_vm *x);
/** xlate_cache_has_room() - for any block, in the present segment and the table? */
bool xlate_cache_has_room(const struct xlate_vm *x);
/** xlate_cache_make_room() - begin another segment, emptying one if needed.  Without vm->lock, at a safepoint of @cpu. */
void xlate_cache_make_room(struct dbt_cpu *cpu);
/** xlate_alloc() - @bytes of the present segment, 8-byte aligned, not cleared; NULL: too many for it. */
void *xlate_alloc(struct xlate_vm *x, size_t bytes);
/** xlate_hot(), xlate_cold() - writable addresses of where the next block's parts go in the present segment; *@end: of
 * their ends. */
uint8_t *xlate_hot(struct xlate_vm *x, uint8_t **end);
uint8_t *xlate_cold(struct xlate_vm *x, uint8_t **end);
/** xlate_cache_take() - the block has been built: so many bytes were used. */
void xlate_cache_take(struct xlate_vm *x, struct xlate_block *b, size_t hot, size_t cold);
/** xlate_cache_block() - block @i of segment @s. */
struct xlate_block *xlate_cache_block(const struct xlate_vm *x, unsigned s, unsigned i);
/** xlate_cache_name() - where the reference of block @i of segment @s stands. */
uint32_t *xlate_cache_name(const struct xlate_vm *x, unsigned s, unsigned i);
/** xlate_cache_reserve() - nothing is translated into segment @s from now on; false: something was. */
bool xlate_cache_reserve(struct xlate_vm *x, unsigned s);
/** xlate_cache_release() - it may be again; was it reserved? */
bool xlate_cache_release(struct xlate_vm *x, unsigned s);
/** xlate_cache_adopt() - the reserved segment @s has these contents from now on. */
void xlate_cache_adopt(struct xlate_vm *x, unsigned s, const struct xlate_segment *contents);
/** xlate_cache_give_back() - the pages of a segment that is not to be filled at once go to the host. */
void xlate_cache_give_back(struct xlate_vm *x, unsigned s);
/** xlate_cache_find() - the block whose hot part has @pc; NULL: none.  Any time on a running vCPU's thread. */
struct xlate_block *xlate_cache_find(struct xlate_vm *x, const uint8_t *pc);
/** xlate_segment_of() - the segment that a record is in. */
static inline unsigned xlate_segment_of(uint32_t ref)
{
	return ref / (uint32_t)XLATE_META_BYTES;
}
/** xlate_cache_used() - the block was looked for.  Unlocked: that one of two counts, when two vCPUs do, is enough. */
static inline void xlate_cache_used(struct xlate_vm *x, const struct xlate_block *b)
{
	_Atomic uint32_t *n = &x->cc.used_of[xlate_segment_of(xlate_ref(x, b))];

	atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1, memory_order_relaxed);
}
/** xlate_flush() - drop all translations; the world is stopped by the caller or single.  Without vm->lock. */
void xlate_flush(struct dbt_vm *vm);
/** xlate_cache_bytes() - of code, in all segments; xlate_cache_meta_bytes() - of records. */
uint64_t xlate_cache_bytes(const struct xlate_vm *x);
uint64_t xlate_cache_meta_bytes(const struct xlate_vm *x);

/*
 * blocks.c: the table of blocks, and links between them.  All with vm->lock, but for lookups.
 */
int xlate_table_create(struct dbt_vm *vm, struct error *err);
void xlate_table_destroy(struct xlate_vm *x);
/** xlate_lookup() - lock-free.  @phys2: as in xlate_translate() */
struct xlate_block *xlate_lookup(struct xlate_vm *x, uint64_t phys, uint64_t phys2, uint32_t key);
/** xlate_has_block() - is there a block that starts at @phys, and does not go on in another page? */
bool xlate_has_block(struct xlate_vm *x, uint64_t phys, uint32_t key);
/** xlate_block_insert() - a new block: found from now on, linked to the others. */
void xlate_block_insert(struct dbt_cpu *cpu, struct xlate_block *b);
/** xlate_block_enter() - the same without links. */
void xlate_block_enter(struct xlate_vm *x, struct xlate_block *b);
/** xlate_link_key() - the key of the block that @l may lead to. */
uint32_t xlate_link_key(struct xlate_link *l);
/** xlate_phys2() - as in xlate_translate(). */
uint64_t xlate_phys2(struct xlate_block *b);
/** xlate_link_to() - patch @l to jump to @b. */
void xlate_link_to(struct xlate_vm *x, struct xlate_link *l, struct xlate_block *b);
/** xlate_blocks_drop() - forget the blocks of segment @s; nobody runs. */
void xlate_blocks_drop(struct dbt_vm *vm, unsigned s);
/** xlate_blocks_clear() - forget all blocks; nobody runs. */
void xlate_blocks_clear(struct dbt_vm *vm);
/** xlate_table_prepare() - it gets @n blocks soon; it is empty, or is rebuilt. */
void xlate_table_prepare(struct xlate_vm *x, unsigned n);
/** xlate_table_has_room() - for @n more blocks?  xlate_table_rebuild() - with the world stopped. */
bool xlate_table_has_room(const struct xlate_vm *x, unsigned n);
void xlate_table_rebuild(struct xlate_vm *x);
/** xlate_page_release() - if page @page of RAM has no block, it may be written freely. */
void xlate_page_release(struct dbt_vm *vm, uint64_t page);

/** xlate_jc_forget() - no entry of the vCPU's branch table leads to code in [@from, @to). */
void xlate_jc_forget(struct dbt_cpu *cpu, const uint8_t *from, const uint8_t *to);
/** xlate_map_find() - offset in the page of the instruction whose host code has byte @off of the block, and which one of the
 * map it is; -1: none. */
int xlate_map_find(struct xlate_block *b, uint32_t off, unsigned *index);
/* translate_sys.c: the stubs of string instructions. */
void xlate_emit_strings(struct xlate_vm *x, struct emit *e);

/*
 * keep.c, keep_load.c: translated code kept for another process (engine.h, code_save, code_expect and code_load).
 */
int xlate_code_save(struct dbt_vm *vm, const uint64_t *dirty, struct engine_code *out, struct error *err);
void xlate_code_expect(struct dbt_vm *vm, const uint8_t *data, size_t len);
int xlate_code_load(struct dbt_vm *vm, const struct engine_code_source *in,
		    const _Atomic bool *stop, struct error *err);
/** xlate_code_ident() - how many of the bytes say what they are of (tests). */
size_t xlate_code_ident(void);

/* dispatch.c: a vCPU is "running" between these two; enter waits for an exclusive section to end. */
void dbt_run_enter(struct dbt_cpu *cpu);
void dbt_run_leave(struct dbt_cpu *cpu);
/** dbt_must_look() - is there an event for the dispatcher, or something that only the interpreter may execute? */
bool dbt_must_look(const struct dbt_cpu *cpu);
enum run_result dbt_run(struct dbt_cpu *cpu);
/** dbt_is_near_stop() - are fewer instructions left than a block may have?  Then they are interpreted. */
static inline bool dbt_is_near_stop(const struct dbt_cpu *cpu)
{
	return unlikely(cpu->vm->cfg.is_counting) && cpu->left < XLATE_MAX_INSNS;
}
static inline bool dbt_is_at_stop(const struct dbt_cpu *cpu)
{
	return unlikely(cpu->vm->cfg.is_counting) && cpu->left <= 0;
}

/** dbt_probe() - engine_ops.probe: runs a small guest and measures (src/engine/dbt_probe.c). */
void dbt_probe(struct engine_probe *out);

#endif
