/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the translator: the block under construction, and the pieces that the families of instructions
 * share.
 */
#ifndef VIV_DBT_TRANSLATE_H
#define VIV_DBT_TRANSLATE_H

#include "engine/dbt/mmu.h"
#include "engine/dbt/xlate.h"

/* A link of the block under construction: what becomes of it is said in xlate.h. */
struct new_link {
	uint8_t *site; /* writable address of the rel32 */
	intptr_t stub; /* rel32 value that leads to the stub */
	uint16_t page_off;
	bool is_each; /* the target's key has DBT_MODE_EACH */
	bool is_far;
	uint8_t *ram_page; /* far: writable address of the number of the page of RAM that is checked for, before the site */
	int32_t page_delta, info;
};

/* A cold piece of code, emitted after the block's main line. */
struct cold {
	enum {
		COLD_MISS,
		COLD_GROUP,
		COLD_INTERP,
		COLD_POLL,
		COLD_LINK,
		COLD_SIDE,
		COLD_FAR,
		COLD_FAR_MISS,
		COLD_BRANCH,
		COLD_CALL,
		COLD_RETURN,
		COLD_DECODED
	} kind;
	uint8_t *jump;	/* writable address of the rel32 that comes here (end of the jump) */
	uint8_t *retry; /* MISS, GROUP: writable address of the check */
	const struct insn *in;
	uint16_t page_off; /* of the instruction (MISS, INTERP, POLL) or of the target (LINK) */
	uint16_t size;	   /* MISS */
	uint8_t is_write;  /* MISS */
	bool is_swapped;   /* a loop's register map is in force where it comes from */
	bool has_base;	   /* r15 is the base there */
	bool needs_flags;  /* flags are to be made again first (translate_flags.c) */
	uint8_t is_first_write; /* GROUP: the access at hand writes */
	uint8_t ea_kind;	/* MISS, GROUP: how to compute the address again */
	int32_t ea_disp;
	struct new_link *link;
};

/* operand of the insn; rsp + disp; rbp + disp; of a string: rsi, rdi */
enum ea_kind { EA_INSN, EA_STACK, EA_STACK_FRAME, EA_SOURCE, EA_DESTINATION };

#define MAX_COLD 400

/*
 * Accesses that one check covers (coalesce.c): same base, index and scale, the registers changed in between by
 * known constants only.  The check is made at the first access that is emitted, for all bytes from dmin to dmax.
 */
#define GROUP_SPAN_MAX 256
#define MAX_GROUPS     48

struct group {
	uint8_t base, index, scale, seg, addrsize; /* base 0xff: none; BASE_RIP: the block's page base */
	bool is_write;				   /* some access writes */
	bool is_checked;			   /* the check was emitted */
	uint8_t slot; /* of gs:ptr[] that keeps the pointer; SLOT_NONE */
	uint16_t base_ver, index_ver, branches;
	uint16_t members, last; /* last: instruction of the last member */
	int64_t dmin, dmax; /* bytes covered, from base + index * scale as they were at the block's start */
};
#define BASE_RIP  0xfe
#define SLOT_NONE 0xff

struct access {
	int8_t group; /* index, or -1: an access that is checked by itself */
	int64_t disp; /* of its first byte, in the group's terms */
};

/* The two memory operands that an instruction can have. */
enum { ACC_OPERAND, ACC_STACK, ACC_MAX };

/* A block that ends with a conditional jump to its start (translate_loop.c). */
#define MAX_WINDOWS 8
struct loop {
	bool is_on;
	uint8_t *start; /* writable address of the first copy's first instruction */
	uint8_t *jump;	/* writable address of the end of its jump back; NULL: none was emitted */
	uint8_t *top;	/* writable address of the second copy; NULL: none */
	/* The second copy's register map: guest register g[] is where d[] is elsewhere, and d[] in memory. */
	uint8_t host[16];
	unsigned nswaps;
	struct {
		uint8_t g, d;
	} swap[4];
	bool is_swapped; /* what is emitted now has it */
	unsigned nwindows;
	struct window {
		int32_t coef[17]; /* address = sum of coef[] * register at the round's start, ... */
		int64_t kmin, kmax; /* ... + constant: bytes covered; [16]: of gs:pc_base */
		uint8_t seg;	    /* SEG_FS, SEG_GS: and its base; else SEG_SS */
		uint8_t varies;	    /* guest register that moves the address; 0xff: nothing does */
		int32_t by;	    /* bytes a round */
		bool is_write;
		unsigned branches;
	} window[MAX_WINDOWS];
	struct {
		int8_t window; /* -1: checked each time */
		int64_t at;    /* the operand is at [gs:ptr[window] + varies * coef + at] */
	} of[XLATE_MAX_INSNS];
};

struct ctx {
	struct dbt_cpu *cpu;
	struct xlate_vm *x;
	struct emit e;
	uint32_t key;
	unsigned bits;	  /* 16, 32 or 64 */
	unsigned sp_size; /* bytes of stack pointer operations: 2, 4 or 8 */
	bool is_flat;	  /* DBT_MODE_FLAT, and no address wraps at 64 KiB */
	uint64_t phys;	  /* of the block */
	unsigned n;
	struct insn in[XLATE_MAX_INSNS + 1];
	uint16_t off[XLATE_MAX_INSNS + 2];    /* page offsets; off[n] is one past the last */
	uint16_t live_after[XLATE_MAX_INSNS]; /* flags live after the instruction */
	uint16_t live_in;		      /* ... at the start */
	/* Flags that are made again at the block's end (translate_flags.c): by the instruction @setter, before @end's own work. */
	struct again {
		bool is_on, is_done;
		unsigned setter, end;
	} again;
	unsigned ncold;
	struct cold cold[MAX_COLD];
	struct new_link links[XLATE_MAX_LINKS];
	uint32_t links_ref; /* of the first, once the record has a place */
	unsigned nlinks;
	unsigned ndecoded; /* struct insn behind the record */
	uint32_t landing;  /* as in struct xlate_block */
	unsigned cur;
	uint8_t *count_at[2]; /* counting.c: numbers to be filled in */
	unsigned counted;     /* instructions that the block counts as it is entered */
	unsigned polled;      /* the jump that has been polled for already */
	/* Coalescing. */
	unsigned ngroups;
	struct group group[MAX_GROUPS];
	struct access acc[XLATE_MAX_INSNS][ACC_MAX];
	int held;	  /* group whose pointer is in r14, or -1 */
	unsigned slots;	  /* bit n: gs:ptr[n] is in use */
	int32_t ptr_disp; /* the operand last checked is at [r14 + ptr_disp] */
	struct loop loop;
};

enum done {
	DONE_NEXT,   /* emitted, go on */
	DONE_END,    /* emitted, nothing falls through */
	DONE_INTERP, /* not translatable: exit to the interpreter */
};

/* pext/pdep dst, src, gs:[off] */
static inline void tr_emit_pext_gs(struct ctx *c, unsigned dst, unsigned src, int32_t off, bool is_pdep)
{
	emit_pext_gs(&c->e, dst, src, off, is_pdep);
}

#define NO_UNDO INT32_MIN

#define OP(...)                                                                                    \
	do {                                                                                       \
		static const uint8_t op_[] = { __VA_ARGS__ };                                      \
		tr_emit_op(c, op_, sizeof(op_));                                                   \
	} while (0)

/** coalesce_plan() - find the groups of the block's accesses (acc[], group[]). */
void coalesce_plan(struct ctx *c);

/** tr_is_jump_back() - does the block's last instruction, @in, go round to its first? */
bool tr_is_jump_back(const struct ctx *c, const struct insn *in);
/** tr_loop_plan() - is the block a loop that goes round by itself, and how?  Sets loop.is_on. */
void tr_loop_plan(struct ctx *c);
/**
 * tr_loop_emit() - where loop.jump goes: the rounds that are checked together.
 * @map: receives the places of the rounds' instructions; returns how many.
 */
unsigned tr_loop_emit(struct ctx *c, struct xlate_insn_map *map);
/** tr_loop_swap() - to the loop's register map, or @back. */
void tr_loop_swap(struct ctx *c, bool back);
/** tr_loop_enter() - what comes before a loop's first instruction. */
void tr_loop_enter(struct ctx *c);

/* What each does stands at its definition in translate.c. */
void tr_emit_op(struct ctx *c, const uint8_t *b, unsigned n);
void tr_emit_check(struct ctx *c, unsigned ea_kind, int32_t disp, unsigned size, bool is_write, bool live);
struct cold *tr_cold_add(struct ctx *c, int kind);
void tr_emit_jmp_cold(struct ctx *c, int kind);
/* translate_flags.c */
/** tr_find_live() - fills live_after and live_in of the instructions that were decoded, and plans @again. */
void tr_find_live(struct ctx *c);
/** tr_flags_live_before() - are arithmetic flags live just before the current instruction's own work?  ..._after(): behind it? */
bool tr_flags_live_before(const struct ctx *c);
bool tr_flags_live_after(const struct ctx *c);
/** tr_may_keep_flags() - may @in leave flags it names as written as they were: a shift by zero, on some CPUs a scan of zero? */
bool tr_may_keep_flags(const struct insn *in);
/** tr_flags_live_at_end() - as tr_flags_live_before(), of the instruction that ends the block: not if tr_end_flags() comes. */
bool tr_flags_live_at_end(const struct ctx *c);
/** tr_end_flags() - all checks of the block's end are made: its flags again, if that was planned.  Clobbers rcx. */
void tr_end_flags(struct ctx *c);
/** tr_flags_missing() - at the current instruction flags are not kept that will be made again. */
bool tr_flags_missing(const struct ctx *c);
/** tr_emit_flags() - make them.  Clobbers rcx. */
void tr_emit_flags(struct ctx *c);
void tr_emit_rip(struct ctx *c, unsigned reg, int32_t off);
void tr_emit_sp_add(struct ctx *c, int32_t delta);
void tr_emit_jmp_exec(struct ctx *c, const uint8_t *exec_target);
unsigned tr_key_cpl(uint32_t key);
int tr_tlb_mode(uint32_t key);
void tr_emit_store_r14(struct ctx *c, unsigned reg, unsigned size);
void tr_emit_load_r14(struct ctx *c, unsigned reg, unsigned size);
void tr_emit_get_r14(struct ctx *c, unsigned guest, unsigned size);
void tr_emit_indirect(struct ctx *c, int32_t sp_moved);
void tr_emit_rel_to(struct ctx *c, const uint8_t *exec_target);
void tr_free_slots(struct ctx *c);
void tr_emit_poll(struct ctx *c, bool live);
void tr_emit_link(struct ctx *c, int cc, uint16_t off);
void tr_emit_goto(struct ctx *c, int32_t off, int32_t sp_moved);
enum done tr_insn(struct ctx *c, const struct insn *in);
/* The soft-TLB check of @size bytes at rcx: r14 = host pointer, r15, the base no more, = offset in the page; else to @miss (writable address).
 * Clobbers rcx, flags. */
void tr_emit_lookup_or(struct ctx *c, unsigned size, bool is_write, const uint8_t *miss);

/* counting.c */
void tr_count_enter(struct ctx *c);
/** tr_count_finish() - how many instructions were translated, and does an interpreted one follow? */
void tr_count_finish(struct ctx *c, unsigned ninsns, bool is_tail_interpreted);
/** tr_count_back() - cold code leaves the block before its instruction; clobbers rcx.  tr_count_miss() - it may do so. */
void tr_count_back(struct ctx *c, const struct cold *k);
void tr_count_miss(struct ctx *c, const struct cold *k);

/* translate_seg.c */
/** tr_is_segmented() - does an access by @seg need its base and limit?  (In 64-bit code emit_ea() adds what bases there are.) */
bool tr_is_segmented(const struct ctx *c, unsigned seg);
/** tr_is_seg_off() - is @in's memory operand by a segment that is not translated (ENGINE_SEGMENTS)? */
bool tr_is_seg_off(const struct ctx *c, const struct insn *in);
/** tr_seg_base() - the offset in rcx becomes a linear address.  Flags live on. */
void tr_seg_base(struct ctx *c, unsigned seg);
/**
 * tr_seg_check() - the same, after the check that @size bytes from there on may be accessed; else the instruction is
 * interpreted.  @is_64k: they may not run over 64 KiB either.  Clobbers r14; flags only where they are dead (@live).
 */
void tr_seg_check(struct ctx *c, unsigned seg, unsigned size, bool is_write, bool is_64k, bool live);
enum done tr_push_seg(struct ctx *c, const struct insn *in);
enum done tr_pop_seg(struct ctx *c, const struct insn *in);
enum done tr_mov_seg_r(struct ctx *c, const struct insn *in);
enum done tr_load_far(struct ctx *c, const struct insn *in);
enum done tr_pusha(struct ctx *c, const struct insn *in);
enum done tr_popa(struct ctx *c, const struct insn *in);

/* translate_string.c */
enum done tr_string_one(struct ctx *c, const struct insn *in);

/* translate_sys.c */
enum done tr_mov_r_seg(struct ctx *c, const struct insn *in);
enum done tr_mov_r_cr(struct ctx *c, const struct insn *in);
enum done tr_fsgsbase(struct ctx *c, const struct insn *in);
enum done tr_string(struct ctx *c, const struct insn *in);
enum done tr_syscall(struct ctx *c, const struct insn *in);
enum done tr_sysret(struct ctx *c, const struct insn *in);

#endif
