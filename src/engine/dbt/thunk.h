/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Thunks: single guest instructions run on the host CPU, and the host side around them (GS base, alternate
 * signal stack, fault signals, FPU state).
 *
 * Life cycle: thunk_cpu_create() once per vCPU; thunk_thread_init() on the thread that is going to run it,
 * before interp_one(), dbt_fpu_to_regs() or translated code; thunk_thread_finish() before that thread
 * ends; thunk_cpu_destroy().
 */
#ifndef VIV_DBT_THUNK_H
#define VIV_DBT_THUNK_H

#include <signal.h>
#include <ucontext.h>

#include "engine/dbt/dbt.h"

/** thunk_cpu_create() - allocate cpu->thunk: decode cache, executable memory (memfd mapped twice, RW and RX).
 * Returns 0, or -errno with @err set. */
int thunk_cpu_create(struct dbt_cpu *cpu, struct error *err);
void thunk_cpu_destroy(struct dbt_cpu *cpu); /* NULL cpu->thunk is fine */

/**
 * thunk_thread_init() - make the calling thread the one that runs @cpu: GS base = @cpu, alternate signal stack.
 * Cheap when already so; may be called again with another vCPU (tests, lockstep).  Installs the
 * process-wide signal handlers at its first call.  Returns 0, or -errno with @err set.
 */
int thunk_thread_init(struct dbt_cpu *cpu, struct error *err);
void thunk_thread_finish(void);
/** thunk_thread_cpu() - the vCPU of the calling thread, or NULL.  Async-signal-safe. */
struct dbt_cpu *thunk_thread_cpu(void);

/** dbt_signal_init() - SIGFPE, SIGSEGV, SIGBUS, SIGILL handlers; idempotent.  Part of making a VM, and of thunk_thread_init(). */
int dbt_signal_init(struct error *err);

/*
 * Consulted on such a signal when the pc is not in a thunk.  Returns true when it has changed @uc so that the
 * thread goes on; false: not its code, and the process dies by the signal's default action.
 * Runs on the alternate stack; may read cpu, must not lock or allocate.
 */
extern bool (*dbt_xlate_fault)(struct dbt_cpu *cpu, ucontext_t *uc, int sig);

/** dbt_fault_vector() - guest exception of a host fault: EXC_DE, EXC_UD, EXC_GP, EXC_MF, EXC_XM; -1 when the
 * host's own trouble (page fault).  Honours CR4.OSXMMEXCPT. */
int dbt_fault_vector(const struct dbt_cpu *cpu, const ucontext_t *uc);

/** dbt_host_xsave_mask() - components that host and guest share: 7, or 3 on hosts without AVX. */
uint64_t dbt_host_xsave_mask(void);

/* ---- decode cache, for interp_one() ---- */

/* An instruction and its thunk. */
struct decoded {
	struct insn in;
	uint8_t key[16];     /* bytes, zero-padded; key[15] = mode (16, 32, 64), 0: empty */
	uint32_t generation; /* thunk is valid while it equals thunk_cpu.generation */
	const void *thunk;
};
#define THUNK_DECODE_ENTRIES 4096u

/** thunk_decode_slot() - where the instruction at linear @va is cached, if it is. */
struct decoded *thunk_decode_slot(struct dbt_cpu *cpu, uint64_t va);

/** native_exec_cached() - native_exec() of a cached instruction with its thunk. */
void native_exec_cached(struct dbt_cpu *cpu, struct decoded *d);

/** thunk_set_fpu_pointers() - the guest's x87 instruction and data pointers and opcode, while its state is in
 * the host's registers (thunk.c, invariant 4). */
void thunk_set_fpu_pointers(struct dbt_cpu *cpu, uint64_t fip, uint64_t fdp, uint16_t fop);

/** thunk_fpu_image() - the FPU state as an image to read, every component of it; it is in the registers afterwards, too. */
const uint8_t *thunk_fpu_image(struct dbt_cpu *cpu);

/** dbt_host_mxcsr_mask() - MXCSR bits that exist on this host. */
uint32_t dbt_host_mxcsr_mask(void);

#endif
