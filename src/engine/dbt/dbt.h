/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the dbt engine: the vCPU as emitted code, interpreter and MMU see it.
 *
 * Rooms
 *   decode.c            bytes -> struct insn (insn.def)
 *   native.c thunk.c    run an INSN_NATIVE instruction on the host CPU (emit_native, thunks)
 *   interp_user.c       INSN_HAND handlers       interp_sys.c, task.c   INSN_SYSTEM handlers
 *   exception.c         delivery of exceptions and interrupts in every mode
 *   mmu.c mem.c         page walks, soft TLB, checked guest memory operands
 *   translate.c ...     blocks, chaining, dispatch (xlate.h)
 *   dbt.c               the engine_ops
 *
 * Invariants
 *  1. cpu->s is the truth whenever C code runs, but for the FPU: while cpu->is_fpu_in_regs the x87,
 *     SSE and AVX state is in the host's registers and s.xsave is stale.
 *  2. Everything under src/engine/dbt is compiled -mgeneral-regs-only and calls nothing that may touch
 *     vector registers while is_fpu_in_regs (dbt_fpu_to_mem() first: before every call up through
 *     vcpu_up, before logging, before libc functions other than the asm-labelled ones below).
 *  3. An instruction either completes or raises; a raise leaves cpu->s as before the instruction (but for
 *     what the manual says: CR2, completed string iterations ...).
 *  4. Raising is dbt_raise*(): it does not return.  Only code under interp_one() or
 *     dbt_deliver_interrupt() may raise.
 *  5. Translated code runs only when: no interrupt shadow, TF = 0, no enabled debug register, no guest
 *     debug, and no pending event.  All those cases are the interpreter's.
 */
#ifndef VIV_DBT_DBT_H
#define VIV_DBT_DBT_H

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>

#include "engine/dbt/decode.h"
#include "engine/engine.h"

/* Vector-free libc replacements (dbt_libc.c): also what the compiler's implicit calls resolve to. */
extern void *memcpy(void *, const void *, size_t) __asm__("dbt_memcpy");
extern void *memmove(void *, const void *, size_t) __asm__("dbt_memmove");
extern void *memset(void *, int, size_t) __asm__("dbt_memset");
extern int memcmp(const void *, const void *, size_t) __asm__("dbt_memcmp");

/* ---- soft TLB ----------------------------------------------------------------------------- */
/*
 * Direct-mapped, one set of arrays per access mode.  Index of a linear address: (va >> 12) & (size - 1);
 * emitted code computes it with pext(va, tlb_mask) where tlb_mask = (size - 1) << 12.
 *
 *   rneg[i], wneg[i]  minus the page address if reads / writes may go straight to memory, else
 *                     DBT_TLB_INVALID(i).  va + rneg[i] < 4096 is a hit.
 *   xlat[i]           host address of the page.  Emitted code adds the low 16 bits of va + neg, so that speculation
 *                     with a wrong va stays within 64 KiB of a RAM page (RAM_GUARD_BYTES).
 *   phys[i]           offset of the page in the RAM mapping | DBT_TLB_* flags; for C code only
 *
 * Only plain RAM enters.  wneg is valid only if a write would need no notice: page writable in this
 * mode, D bit set, RAM not read-only, page flags & (CODE | TRACK | WATCH) == 0.
 */
enum dbt_tlb_mode {
	DBT_TLB_USER,	   /* CPL 3 */
	DBT_TLB_KERNEL,	   /* CPL 0..2; with CR4.SMAP: RFLAGS.AC = 0 */
	DBT_TLB_KERNEL_AC, /* CPL 0..2 with CR4.SMAP and AC = 1 */
	DBT_TLB_MODES
};
#define DBT_TLB_BITS_MAX   13
#define DBT_TLB_MAX	   (1u << DBT_TLB_BITS_MAX)
#define DBT_TLB_BITS_MIN   10
#define DBT_TLB_INVALID(i) (0 - ((1ULL << 63) | ((uint64_t)(~(i)&1) << 12)))
#define DBT_TLB_GLOBAL	   1ULL /* survives MOV CR3 */
#define DBT_TLB_VALID	   2ULL
#define DBT_TLB_LISTED	   4ULL /* the slot is in mmu.listed[mode][0] (non-global), ... */
#define DBT_TLB_LISTED_G   8ULL /* ... in listed[mode][1] (global) */

struct dbt_tlb {
	uint64_t rneg[DBT_TLB_MAX];
	uint64_t wneg[DBT_TLB_MAX];
	uint64_t xlat[DBT_TLB_MAX];
	uint64_t phys[DBT_TLB_MAX];
};

/* Code fetch TLB (instruction fetch permission is separate: NX, SMEP). */
#define DBT_CTLB_SIZE 512u
struct dbt_ctlb_entry {
	uint64_t page; /* linear page address | 1 = valid for user, | 2 = valid for kernel */
	uint64_t phys; /* offset in the RAM mapping | DBT_TLB_GLOBAL */
	uint32_t tag;  /* of the address space */
};

/* Second level (tlb2.h): results of walks, of all address spaces, in sets of a cache line each. */
#define DBT_TLB2_SETS 4096u
#define DBT_TLB2_WAYS 4u
struct dbt_tlb2_set {
	uint64_t key[DBT_TLB2_WAYS]; /* page number << 28 | tag; 0: empty */
	uint64_t val[DBT_TLB2_WAYS];
};

#define DBT_LARGE_SETS 256u
#define DBT_LARGE_WAYS 4u

/* The address spaces (PCIDs) that have translations: others have none. */
#define DBT_SPACES 16u
struct dbt_spaces {
	struct {
		uint32_t tag; /* 0: free */
		uint16_t pcid;
	} of[DBT_SPACES];
	uint32_t tag, global_tag; /* of the current one; of global pages */
	uint32_t next_tag;	  /* never given out before */
	uint8_t current, hand;
};

/* Bookkeeping of mmu.c: what a flush has to touch. */
struct dbt_mmu {
	struct {
		uint32_t n;
		uint16_t slot[DBT_TLB_MAX];
	} listed[DBT_TLB_MODES][2];
	uint32_t conflicts; /* valid entries pushed out since the TLB last grew */
	/* Spans of 2M and of 1G from which a fragment was entered, with its tag (INVLPG drops all fragments):
	 * span number << 28 | tag; 0: none. */
	uint64_t large[2][DBT_LARGE_SETS][DBT_LARGE_WAYS];
	struct dbt_spaces spaces;
	uint8_t tlb2_hand, large_hand;
	_Alignas(64) struct dbt_tlb2_set tlb2[DBT_TLB2_SETS];
};

/* ---- inline branch table (jump cache), see xlate.h ---- */
#define DBT_JC_SIZE 32768u /* a system call of Linux takes some hundred indirect branches */

#define DBT_KEYS 16u /* keys of it that are remembered */

/* ---- inline table of code pages (xlate.h, "far links") ---- */
#define DBT_CT_SIZE 8192u

/* ---- what a vCPU is asked to do at its next safepoint (cpu->requests, atomic) ---- */
enum {
	DBT_REQ_KICK = 1,	/* leave vcpu_run */
	DBT_REQ_INTR = 2,	/* INTR line is high (level: stays set while the line is) */
	DBT_REQ_NMI = 4,	/* an NMI waits */
	DBT_REQ_EXCLUSIVE = 8,	/* another vCPU wants the world stopped */
	DBT_REQ_TLB_FLUSH = 16, /* flush everything (RAM layout or dirty tracking changed) */
	DBT_REQ_UNHALT = 32,	/* end the present HLT, else the next one */
};

/* A locked operand that crosses a host cache line would lock the host's bus, for all that run there; hosts that
 * look for that trap it (tens of milliseconds) or kill us.  Such an access is made in an exclusive section. */
#define DBT_LINE 64u

/* Mode bits: everything a translation depends on besides its bytes (cpu->mode_key). */
enum {
	DBT_MODE_CODE16 = 0,
	DBT_MODE_CODE32 = 1,
	DBT_MODE_CODE64 = 2,	/* bits 1..0 */
	DBT_MODE_USER = 1 << 2, /* CPL 3 */
	DBT_MODE_SS32 = 1 << 3, /* stack address size 32 (not 16) outside 64-bit mode */
	DBT_MODE_FLAT = 1 << 4, /* CS DS ES SS: base 0, limit 4G, usable; always set in 64-bit mode, never below
				 * protected mode */
	DBT_MODE_NO_FPU = 1 << 5, /* CR0.EM or CR0.TS */
	DBT_MODE_NO_SSE = 1 << 6, /* !CR4.OSFXSR or EM or TS */
	DBT_MODE_NO_AVX = 1 << 7, /* !CR4.OSXSAVE or XCR0[2:1] != 3 or TS */
	DBT_MODE_PE = 1 << 8,	  /* protected mode (CR0.PE, not VM86) */
	DBT_MODE_VM86 = 1 << 9,
	DBT_MODE_AC_TLB = 1 << 10, /* data accesses use DBT_TLB_KERNEL_AC */
	DBT_MODE_ALIGN = 1 << 11,  /* alignment checks on (CR0.AM, AC, CPL 3) */
	DBT_MODE_CPL_SHIFT = 12,   /* bits 13..12: CPL */
	DBT_MODE_EACH = 1 << 15, /* of blocks only: every access is checked by itself (coalesce.c) */
	DBT_MODE_TSD = 1 << 14,	 /* CR4.TSD */
	DBT_MODE_FSGSBASE = 1 << 16, /* CR4.FSGSBASE */
	DBT_MODE_EDGE = 1 << 17, /* of blocks only: the code segment begins within the page (xlate.h) */
};

struct dbt_vm;
struct insn;

struct dbt_cpu {
	/*
	 * Hot words of emitted code.  The last sixteen of them and the registers of s are what a displacement of one byte
	 * reaches from r15 (DBT_BASE).  What blocks write is together, from tmp to pc_base.
	 */
	uint64_t jc_poison; /* nothing a guest could guess */
	uint64_t host_rsp;  /* stack of the dispatcher while translated code runs */
	uint64_t ret_base; /* where rsp starts in translated code: the top of the returns (stubs.c) */
	uint64_t tmp[8];   /* scratch of emitted code */
	uint64_t count_fix; /* what the block has ahead at the miss that was called last */
	uint64_t ptr[8];    /* checked pointers that a block keeps over other checks */
	uint64_t rounds;    /* of a loop, before it has to be looked at again (translate_loop.c) */
	uint64_t loop_wait; /* rounds before that is tried */
	int64_t left; /* instructions before the stop (counting.c); less those that the running block has ahead */
	uint64_t exit_info; /* set by emitted exits */
	uint64_t pc_base; /* RIP minus the offset in its guest-physical page, of the running block */
	_Atomic uint64_t poll; /* non-zero: leave translated code at the next poll point */
	/* What emitted code reads as jc_key: that, or jc_poison while poll is set, which finds nothing in the
	 * branch table, so that every miss is a poll. */
	_Atomic uint64_t jc_key_now;
	uint64_t ret_key;   /* jc_key + ret_gen: RIP + key tells returns apart */
	uint64_t tlb_mask;  /* (size - 1) << 12 */
	uint64_t page_mask; /* ~0xfff: constant operand of emitted pext */
	uint64_t jc_mask;   /* bits of RIP that index the branch table: constant operand */
	uint64_t ct_mask;   /* bits of an address that index ct: constant operand */

	struct x86_state s;

	char *base;	      /* this struct + DBT_BASE: r15 of emitted code */
	uint64_t jc_key;      /* of mode_key and, at CPL 3, the address space's tag */
	struct dbt_cpu *self; /* this struct */
	uint64_t line_mask;   /* DBT_LINE - 1, DBT_LINE: constant operands */
	uint64_t line_size;
	uint64_t df_mask; /* X86_FL_DF: constant operand */
	uint64_t not_df;  /* ~X86_FL_DF, ~X86_FL_IF: constant operands */
	uint64_t not_if;
	uint64_t sign_mask; /* bit 63: constant operand */
	uint64_t attr_mask; /* attributes of a segment that a load below protected mode keeps: constant operand */
	/*
	 * Outside of 64-bit code: the bytes of an access by segment [n] lie below that offset, 0: the interpreter looks.
	 * [.][0] for reading, [.][1] for writing; [.][.][1] within 64 KiB.  Of limit and attributes, kept by
	 * dbt_mode_changed().
	 */
	uint64_t seg_end[SEG_COUNT][2][2];
	uint64_t ct[DBT_CT_SIZE]; /* xlate_ct_entry(): which code page of guest RAM a linear page is; 0: empty */
	uint64_t jc_neg[DBT_JC_SIZE]; /* -(rip + key): rip + jc_key + jc_neg[i] == 0 is a hit */
	void *jc_code[DBT_JC_SIZE];   /* far entry of the block */
	struct dbt_tlb tlb[DBT_TLB_MODES];

	/* Cold. */
	struct dbt_ctlb_entry ctlb[DBT_CTLB_SIZE];
	_Atomic uint64_t requests; /* DBT_REQ_* */
	_Atomic uint8_t nmi_count; /* NMIs that wait: one in service and one after it, or two (SDM vol. 3 6.7.1) */
	uint32_t mode_key;   /* DBT_MODE_*, kept by dbt_mode_changed() */
	uint8_t cpl;	     /* cached, kept by dbt_mode_changed() */
	uint8_t code_bits;   /* 16, 32, 64 */
	uint8_t tlb_mode;    /* enum dbt_tlb_mode of explicit data accesses now */
	bool is_fpu_in_regs; /* invariant 1 */
	bool is_shutdown;    /* triple fault */
	bool in_exception;   /* delivering: for double and triple faults */
	uint8_t tlb_bits;    /* log2 of the size in use */
	uint64_t tlb_misses, tlb_walks, tlb_flushes; /* counters */
	uint64_t tlb_misses_by_mode[DBT_TLB_MODES];
	int64_t tsc_offset;	 /* guest TSC = host TSC + offset */
	_Atomic bool is_running; /* executing guest instructions: exclusive sections wait for false */

	/* Interpreter. */
	void *raise_jmp[5]; /* __builtin_setjmp buffer of interp_one */
	uint64_t next_rip;  /* RIP after the current instruction (handlers change it) */
	uint8_t raise_vector;
	bool raise_has_error;
	uint32_t raise_error;
	uint64_t dr6_pending; /* #DB bits gathered by the current instruction (data breakpoints, TF, task) */
	bool is_rf_cleared; /* RF is cleared at the end of the instruction */
	bool no_step_trap;  /* this instruction swallows the TF trap (MOV SS ...) */
	bool is_partial;    /* the instruction is not done: it is resumed, and does not count yet */
	uint64_t count_end; /* instructions retired + left */
	uint64_t insn_count; /* instructions interpreted: counter */

	uint64_t pause_first, pause_last; /* host TSC: the first and last PAUSE of the present spin loop */
	uint64_t pauses_yielded;	  /* counter */

	/* System level. */
	uint64_t pdpte[4]; /* PAE paging: the page-directory pointers, loaded when CR3 is (SDM
				    * vol. 3 4.4.1); the walker uses these.  cr_load_pdptes() after set_state */
	uint64_t as_gen;   /* part of jc_key.  Random from xlate_cpu_create() on; whoever
				    * wants every inline branch entry forgotten adds 1 and calls dbt_mode_changed() */
	uint32_t kernel_gen; /* part of jc_key below CPL 3: changes with the address space if has_local_code */
	bool has_local_code; /* the branch table has code below CPL 3 in pages that are not global */
	struct dbt_key {
		uint64_t from, key; /* jc_key of address space, generation and */
		uint32_t mode_key;  /* mode; no mode is 0 in 64-bit code */
	} keys[DBT_KEYS];
	uint64_t ret_gen; /* part of ret_key: another when the mapping of a page changes; nothing a guest could guess */
	uint32_t exc_ext; /* EXT bit for error codes raised while an event is delivered: 0 or 1 */

	struct dbt_mmu mmu;

	struct dbt_vm *vm;
	unsigned index; /* APIC id */
	struct vcpu_up up;
	struct engine_debug debug;
	bool is_debug_hit;
	struct xlate_cpu *xlate; /* translator's part */
	struct thunk_cpu *thunk; /* thunk interpreter's part (decode cache ...) */
	pthread_t thread;
};

/* r15 of emitted code is that far into struct dbt_cpu. */
#define DBT_BASE ((int32_t)offsetof(struct dbt_cpu, s))

struct dbt_vm {
	struct guest_ram *ram;
	struct cpu_model model; /* a copy */
	struct engine_config cfg;
	unsigned ncpus;
	struct dbt_cpu *cpus[255];
	uint32_t tsc_khz;
	uint64_t phys_mask;   /* bits of a physical address that exist */
	pthread_mutex_t lock; /* translation, code table, list of vCPUs, exclusive state */
	/* Stop the world (dispatch.c): excl_owner is written under excl_lock, read by anybody. */
	pthread_mutex_t excl_lock;
	pthread_cond_t excl_stopped, excl_done;
	_Atomic(void *) excl_owner; /* a struct dbt_cpu, or the struct dbt_vm for a foreign thread */
	unsigned excl_depth; /* sections that the owner has begun within its own; the owner's */
	bool is_dirty_logging;
	uint64_t log_epoch; /* how often the log was started, stopped or collected; under lock */
	struct xlate_vm *xlate;
	struct thunk_vm *thunk;
};

/* ---- common services ---- */

/** dbt_raise() - the current instruction faults; @err_code for vectors that have one. */
_Noreturn void dbt_raise(struct dbt_cpu *cpu, unsigned vector);
_Noreturn void dbt_raise_err(struct dbt_cpu *cpu, unsigned vector, uint32_t err_code);
/** dbt_raise_pf() - page fault at @va: sets CR2. */
_Noreturn void dbt_raise_pf(struct dbt_cpu *cpu, uint64_t va, uint32_t err_code);

/* clang-format off */
enum { EXC_DE, EXC_DB, EXC_NMI, EXC_BP, EXC_OF, EXC_BR, EXC_UD, EXC_NM, EXC_DF, EXC_TS = 10, EXC_NP, EXC_SS,
       EXC_GP, EXC_PF, EXC_MF = 16, EXC_AC, EXC_MC, EXC_XM };
/* clang-format on */

/** dbt_mode_changed() - recompute mode_key, cpl, code_bits, tlb_mode, jc_key after a change of CR0, CR4, EFER,
 * XCR0, a segment, RFLAGS.VM/AC.  Cheap; does not flush any TLB. */
void dbt_mode_changed(struct dbt_cpu *cpu);

/* counting.c */
void dbt_count_init(struct dbt_cpu *cpu);
/** dbt_count(), dbt_count_stop_at() - engine_ops.count, stop_at. */
uint64_t dbt_count(const struct dbt_cpu *cpu);
void dbt_count_stop_at(struct dbt_cpu *cpu, uint64_t count);

/** dbt_fpu_to_mem() / dbt_fpu_to_regs() - move the FPU state (invariant 1); idempotent.  After to_mem the
 * host registers hold the ABI's defaults. */
void dbt_fpu_to_mem(struct dbt_cpu *cpu);
void dbt_fpu_to_regs(struct dbt_cpu *cpu);

/** dbt_exit() - call the machine for an exit; saves the FPU first.  Returns what on_exit did. */
int dbt_exit(struct dbt_cpu *cpu, struct vcpu_exit *x);

/** dbt_pause() - the guest executed PAUSE.  After a long row of them the host's core goes to somebody else
 * (vcpu_up.yield).  Called between two instructions, without an exclusive section; leaves and enters. */
void dbt_pause(struct dbt_cpu *cpu);

/** dbt_exclusive_begin() - wait until every other vCPU is outside of guest execution and keep them
 * there until dbt_exclusive_end().  The caller is a vCPU thread at a safepoint in C code, or already in a section of
 * its own: they nest. */
void dbt_exclusive_begin(struct dbt_cpu *cpu);
void dbt_exclusive_end(struct dbt_cpu *cpu);
/* The same for a thread that is no vCPU's (the machine's): its own vCPUs may run meanwhile. */
void dbt_exclusive_begin_foreign(struct dbt_vm *vm);
void dbt_exclusive_end_foreign(struct dbt_vm *vm);

/** dbt_code_written() - RAM [@offset, +@len) changed and the page has RAM_PAGE_CODE: drop blocks. */
void dbt_code_written(struct dbt_vm *vm, uint64_t offset, uint64_t len);

/** dbt_space_changed() - another address space, or another tag of it: a new jc_key. */
void dbt_space_changed(struct dbt_cpu *cpu);

/** xlate_mapping_changed() - linear-to-physical changed for @npages pages from @va on, in any address space; 0: for
 * all pages. */
void xlate_mapping_changed(struct dbt_cpu *cpu, uint64_t va, unsigned npages);

/** dbt_returns_changed() - forget all returns that translated code has noted: another ret_key. */
void dbt_returns_changed(struct dbt_cpu *cpu);

/** dbt_poll_set() - any thread: translated code is to be left soon. */
static inline void dbt_poll_set(struct dbt_cpu *cpu)
{
	atomic_store_explicit(&cpu->poll, 1, memory_order_seq_cst);
	atomic_store_explicit(&cpu->jc_key_now, cpu->jc_poison, memory_order_seq_cst);
}

/** dbt_poll_refresh() - the vCPU's thread, after it has changed jc_key or cleared poll. */
static inline void dbt_poll_refresh(struct dbt_cpu *cpu)
{
	atomic_store_explicit(&cpu->jc_key_now, cpu->jc_key, memory_order_seq_cst);
	if (atomic_load_explicit(&cpu->poll, memory_order_seq_cst))
		atomic_store_explicit(&cpu->jc_key_now, cpu->jc_poison, memory_order_seq_cst);
}

static inline uint64_t dbt_rdtsc(const struct dbt_cpu *cpu)
{
	return __builtin_ia32_rdtsc() + (uint64_t)cpu->tsc_offset;
}
static inline bool dbt_is_long(const struct dbt_cpu *cpu)
{
	return cpu->s.efer & X86_EFER_LMA;
}
static inline bool dbt_is_protected(const struct dbt_cpu *cpu) /* PE and not VM86 */
{
	return cpu->mode_key & DBT_MODE_PE;
}

#endif
