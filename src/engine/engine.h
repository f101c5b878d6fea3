/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine seam: everything the machine knows of what executes guest instructions.
 *
 * An engine is a const table of functions (struct engine_ops).  vCPU state crosses as one plain
 * struct (x86_state); what the engine cannot do itself crosses as one tagged union (vcpu_exit) given
 * to the machine's callback, on the vCPU's own thread, in the middle of the instruction.
 *
 * Rules
 *  1. vcpu_run, get_state, set_state of one vCPU are called by one thread at a time, its own.
 *  2. vcpu_kick, set_intr, raise_nmi, unhalt, flush_tlb may be called by any thread at any time.
 *  3. Callbacks (struct vcpu_up) are called on the vCPU's thread without any engine lock held; the
 *     callee may take the machine's lock.  They never call back into vcpu_run.
 *  4. A guest can make an engine return any result below, never an abort, never an endless stay:
 *     after vcpu_kick, vcpu_run returns within a bounded number of instructions.
 */
#ifndef VIV_ENGINE_ENGINE_H
#define VIV_ENGINE_ENGINE_H

#include "base/bytes.h"
#include "base/error.h"
#include "engine/cpuid.h"
#include "engine/x86_state.h"
#include "mem/ram.h"

struct engine_vm;   /* an engine's part of a machine */
struct engine_vcpu; /* an engine's part of a vCPU */

enum exit_kind {
	EXIT_PIO,  /* port access; string I/O comes one element at a time */
	EXIT_MMIO, /* physical access outside RAM */
	EXIT_CR8,  /* read or write of the task priority (CR8) */
	EXIT_MSR, /* an MSR the machine owns: x2APIC 800H..8FFH, IA32_APIC_BASE, TSC_DEADLINE; writes of
		    * KVM's paravirtual ones, whose values are in x86_state */
	EXIT_HYPERCALL, /* VMCALL / VMMCALL in ring 0: addr is the number, data the result */
	EXIT_EOI, /* only where owns_lapic: EOI of vector addr, seen before as a level MSI (IOAPIC) */
};

struct vcpu_exit {
	enum exit_kind kind;
	bool is_write;
	uint8_t size;  /* PIO: 1 2 4; MMIO: 1..8; hypercall: 4 or 8, of its registers; others: 8 */
	uint64_t addr; /* port, guest-physical address, MSR index, 0 for CR8 */
	uint64_t data; /* written, or to be filled by the callee (zero-extended) */
	uint64_t arg[4]; /* hypercall: rBX, rCX, rDX, rSI */
};

/* What the machine gives each vCPU. */
struct vcpu_up {
	/*
	 * Serve an exit.  Returns 0, or -EPERM: the access faults (#GP(0)) as hardware would (unknown
	 * MSR, reserved bits).  PIO and MMIO never fail: reads of nothing give all ones.
	 */
	int (*on_exit)(void *ctx, struct vcpu_exit *x);
	/*
	 * INTA cycle: the vector of the interrupt to deliver now, acknowledged; -1 when it went away.
	 * Only called by engines that do not own the LAPIC, when set_intr said there is one.
	 */
	int (*intr_ack)(void *ctx);
	/*
	 * The guest spins (PAUSE): let other threads have the host's core.  Between two instructions;
	 * flush_tlb may have been called when it returns.  May be NULL.
	 */
	void (*yield)(void *ctx);
	void *ctx;
};

/* Why vcpu_run came back. */
enum run_result {
	RUN_KICKED,   /* vcpu_kick, or time to look around */
	RUN_HALTED,   /* HLT, nothing deliverable: state.mp_state is MP_HALTED.  The caller waits */
	RUN_SHUTDOWN, /* triple fault: the machine resets */
	RUN_DEBUG,    /* a breakpoint, watchpoint or single step asked for by set_debug */
	RUN_FAILED, /* the engine cannot go on; error set.  The machine stops with that sentence */
};

/* Techniques of the dbt engine that can be switched off, to measure what each brings. */
#define ENGINE_TECHNIQUES(X)                                                                       \
	X(DEAD_FLAGS, "dead-flags")	/* flags that nothing reads are not kept */                \
	X(COALESCING, "coalescing")	/* one check for several accesses of a block */            \
	X(LOOPS, "loops")		/* one check for several rounds of a loop */               \
	X(RETURNS, "returns")		/* calls and returns are the host's */                     \
	X(CHAINING, "chaining")		/* direct jumps between blocks of a page */                \
	X(FAR_LINKS, "far-links")	/* and to those of other pages */                          \
	X(BRANCH_TABLE, "branch-table") /* an inline table for other targets */                    \
	X(SECOND_TLB, "second-tlb")	/* what walks found, for all address spaces */             \
	X(SYSTEM, "system")	/* system calls by a short way, system and string instructions */  \
	X(IN_PLACE, "in-place") /* interpreting without leaving translated code */                 \
	X(SEGMENTS, "segments") /* 16-bit code, and segments that are not flat, are translated */  \
	X(CODE_ROOM, "code-room") /* room for more than some hundred blocks */
#define ENGINE_TECHNIQUE_BIT(name, text)  ENGINE_BIT_##name,
#define ENGINE_TECHNIQUE_MASK(name, text) ENGINE_##name = 1 << ENGINE_BIT_##name,
enum { ENGINE_TECHNIQUES(ENGINE_TECHNIQUE_BIT) ENGINE_NTECHNIQUES };
enum { ENGINE_TECHNIQUES(ENGINE_TECHNIQUE_MASK) };

/** engine_parse_techniques() - "coalescing,returns" to a mask, "none" to 0; 0 or -EINVAL, which names those there are. */
int engine_parse_techniques(const char *text, uint64_t *mask, struct error *err);

struct engine_config {
	struct guest_ram *ram;	       /* borrowed, complete before creation */
	const struct cpu_model *model; /* borrowed */
	unsigned vcpus;
	bool is_strict;	      /* dbt: exact dead flags, verifier on every block (tests) */
	unsigned check_every; /* dbt: lockstep check of every n-th block; 0: off */
	bool use_interp_only; /* dbt: no translation (tests) */
	uint32_t tsc_khz; /* dbt: of the host's TSC, where it is known; 0: measured, which takes 10 ms */
	bool is_counting; /* dbt: counts instructions exactly (count, stop_at) */
	uint32_t without; /* dbt: ENGINE_* techniques that are off (tests) */
};

/* Figures of a probe; strings are static or inside the struct. */
struct engine_probe {
	bool is_usable;
	double mips;	  /* ring-0 long-mode instructions, measured; 0 when not measured */
	char reason[256]; /* one clause, for people: why usable or why not */
};

struct engine_debug { /* guest debug by the host (gdb stub) */
	bool single_step;
	unsigned nbreak;
	struct {
		gva_t addr;
		uint8_t kind; /* 0 execute, 1 write, 3 read or write (DR7 encoding) */
		uint8_t len;
	} bp[4];
};

/* Code of the guest's that an engine has made something of, in parts: what it is, then the rest, the first that was made first. */
#define ENGINE_CODE_PARTS    49u
#define ENGINE_CODE_PART_MAX (2 * MIB) /* bytes of one */
struct engine_code {
	struct bytes bytes; /* one after the other; owned */
	unsigned nparts;
	uint32_t len[ENGINE_CODE_PARTS];
};
struct engine_code_source {
	unsigned nparts;
	const uint32_t *len;
	/* The bytes of part @i; 0 or -errno with @err set. */
	int (*read)(void *arg, unsigned i, uint8_t *to, struct error *err);
	void *arg;
};

struct engine_ops {
	const char *name;    /* "dbt", "kvm" */
	bool runs_in_kernel; /* the guest touches memory inside of the host's kernel */
	bool owns_lapic; /* LAPIC is inside the engine: set_intr is ExtINT only, use deliver_msi */
	bool has_plain_state; /* a vCPU's state is read and set on any thread while it is out of vcpu_run; else on its own */

	/* Takes at most 200 ms; never prints. */
	void (*probe)(struct engine_probe *out);

	int (*vm_create)(struct engine_vm **out, const struct engine_config *cfg, struct error *err);
	void (*vm_destroy)(struct engine_vm *vm); /* after all its vCPUs; NULL is fine */
	/* RAM regions changed (ROM added, PAM): called with all vCPUs out of vcpu_run. */
	int (*vm_ram_changed)(struct engine_vm *vm, struct error *err);
	/* Only where owns_lapic: an MSI write; returns 0 or -errno.  Data bit 15 (level) makes the engine
	 * report the vector's EOI as EXIT_EOI. */
	int (*deliver_msi)(struct engine_vm *vm, uint64_t addr, uint32_t data);

	/* @index is the APIC id.  @up is copied. */
	int (*vcpu_create)(struct engine_vcpu **out, struct engine_vm *vm, unsigned index,
			   const struct vcpu_up *up, struct error *err);
	void (*vcpu_destroy)(struct engine_vcpu *v); /* NULL is fine */

	enum run_result (*vcpu_run)(struct engine_vcpu *v, struct error *err);
	void (*vcpu_kick)(struct engine_vcpu *v);

	void (*get_state)(struct engine_vcpu *v, struct x86_state *out);
	int (*set_state)(struct engine_vcpu *v, const struct x86_state *in, struct error *err);
	/* LAPIC registers (4 KiB page layout, SDM vol. 3 table 10-1), only where owns_lapic; bytes
	 * 3F8H..3FFH carry IA32_TSC_DEADLINE.  Loaded after set_state, whose APIC_BASE and TSC they
	 * depend on; NULL loads the power-up values (after a reset). */
	int (*get_lapic)(struct engine_vcpu *v, uint8_t regs[1024]);
	int (*set_lapic)(struct engine_vcpu *v, const uint8_t regs[1024]);

	/* Level of the CPU's INTR input.  Wakes a vCPU that is inside vcpu_run; the caller wakes one it
	 * keeps waiting itself. */
	void (*set_intr)(struct engine_vcpu *v, bool level);
	void (*raise_nmi)(struct engine_vcpu *v);
	/* The present HLT, or else the next one, ends at once, even with interrupts off (KVM_HC_KICK_CPU).
	 * NULL where owns_lapic. */
	void (*unhalt)(struct engine_vcpu *v);
	/* Forget all translations of linear addresses before the next instruction.  NULL where owns_lapic. */
	void (*flush_tlb)(struct engine_vcpu *v);
	/*
	 * Around a change of guest memory that guests change by locked instructions too, in a callback of the vCPU: the
	 * engine may be executing something of another vCPU twice to compare it, and what is written in between would be
	 * lost.  No lock is taken between them.  NULL: nothing is executed twice.
	 */
	void (*write_begin)(struct engine_vcpu *v);
	void (*write_end)(struct engine_vcpu *v);

	uint64_t (*read_tsc)(struct engine_vcpu *v); /* any thread */
	uint32_t (*tsc_khz)(struct engine_vm *vm);
	/* Guest TSC = host TSC + offset.  set_state with another tsc changes it too, but only this sets all
	 * vCPUs to the very same clock.  Called with all vCPUs out of vcpu_run. */
	int64_t (*get_tsc_offset)(struct engine_vcpu *v);
	void (*set_tsc_offset)(struct engine_vcpu *v, int64_t offset);
	/* Where kvmclock is the engine's (NULL otherwise): make it read @now_ns of machine time.  Called at
	 * start, resume and restore, with all vCPUs out of vcpu_run. */
	int (*set_clock)(struct engine_vm *vm, int64_t now_ns, struct error *err);

	/* The dirty log: start, collect-and-clear into @bitmap (a bit per page of the mapping, by host
	 * offset), stop.  Called with all vCPUs out of vcpu_run, except collect. */
	int (*dirty_start)(struct engine_vm *vm, struct error *err);
	int (*dirty_collect)(struct engine_vm *vm, uint64_t *bitmap, struct error *err);
	void (*dirty_stop)(struct engine_vm *vm);

	/*
	 * What the engine has made of the guest's code, for a later start from the same memory; NULL: it makes nothing of it.
	 *
	 * code_save: what was made of pages that have not changed since dirty_start, or the last dirty_collect, nor are in @dirty (a bit per
	 * page; NULL: none); the dirty log runs.  The vCPUs may run, and stand still while it is copied.  *@out is replaced.
	 * Returns 0; -EALREADY: too little that code_load did not give; -errno.
	 *
	 * code_expect: before any vCPU has run: code_load may come, with a part 0 of these @len bytes (of any origin: where that
	 * code lies is kept free).  @len 0, at any time: it does not.
	 *
	 * code_load: take over what is of pages that have not changed since the first dirty_start, which was called when all RAM was as then;
	 * beside the vCPUs, on a thread of its own, one call at a time.  It ends where the log is collected, stopped or started once more, before
	 * or meanwhile, and where *@stop (NULL: never) becomes true.  The parts were written by code_save and by nobody else: they are
	 * code of the host.  Each is asked for once, and in their order.  Returns how many pieces were taken over, or, with what was taken over by
	 * then: -ESTALE: of another build, CPU model or configuration; -EINVAL: damaged, or the log does not say it; -EBUSY: other code is where
	 * it was; -ECANCELED; -ENOSPC; -ENOMEM; what @in said.
	 */
	int (*code_save)(struct engine_vm *vm, const uint64_t *dirty, struct engine_code *out,
			 struct error *err);
	void (*code_expect)(struct engine_vm *vm, const uint8_t *head, size_t len);
	int (*code_load)(struct engine_vm *vm, const struct engine_code_source *in,
			 const _Atomic bool *stop, struct error *err);

	int (*set_debug)(struct engine_vcpu *v, const struct engine_debug *dbg);

	/*
	 * Counting mode (engine_config.is_counting); NULL where an engine has none.  On the vCPU's thread, in callbacks
	 * too, or while the vCPU is out of vcpu_run.
	 *
	 * count: instructions retired since creation.  One with REP counts once, at its end; what faults does not, nor does the
	 * delivery of an event.
	 * stop_at: vcpu_run returns RUN_KICKED with @count instructions retired, before anything else is executed; events that
	 * wait when it is called there are delivered first.  At once if so many are retired already; UINT64_MAX: no more.
	 */
	uint64_t (*count)(struct engine_vcpu *v);
	void (*stop_at)(struct engine_vcpu *v, uint64_t count);

	/*
	 * Counters for `viv info --engine`: fills at most @max names (static strings) and values, returns how
	 * many.  Names that end in _size or _bytes are levels, all others only grow; what all vCPUs share is
	 * told by the first one only.  Lock held; the vCPUs may run, so values are a moment's, no more.
	 */
	unsigned (*counters)(struct engine_vcpu *v, const char **names, uint64_t *values, unsigned max);
};

#define ENGINE_COUNTERS_MAX 1024 /* no engine has more */

extern const struct engine_ops engine_dbt;
extern const struct engine_ops engine_kvm;

/**
 * engine_pick() - choose an engine.
 * @want: "auto", "dbt", "kvm"
 * @reason: filled with the sentence that is told to the user (never empty)
 * Returns the engine, or NULL with @err set (unknown name; wanted engine can't serve here).
 */
const struct engine_ops *engine_pick(const char *want, char reason[256], struct error *err);

#endif
