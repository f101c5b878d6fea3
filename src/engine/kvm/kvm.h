/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the kvm engine: guest code runs on the host's hardware through /dev/kvm.
 *
 *   vm.c      VM, memory slots, MSIs, clock, dirty log, the ops table
 *   vcpu.c    creation, CPUID, the run loop, kick, interrupt injection
 *   state.c   struct x86_state in and out
 *   step.c    what KVM cannot emulate: one instruction on the dbt engine
 *   probe.c   is this KVM worth using?
 *
 * Who owns what
 *  - The LAPIC is in the kernel (split irqchip).  PIC, IOAPIC and PIT are the machine's.  MSIs and
 *    IOAPIC messages go in by KVM_SIGNAL_MSI.  A level-triggered vector gets an entry in KVM's
 *    routing table on its first use, for no other purpose than that its EOI exits to us.
 *  - PIC interrupts: while the INTR line is high we ask for an interrupt window; when it is open
 * the vector is placed by KVM_SET_VCPU_EVENTS, not KVM_INTERRUPT, whose queue cannot be read back:
 *    with events a vector in flight is part of the state at any moment.
 *  - HLT, INIT and SIPI are handled in the kernel: vcpu_run never returns RUN_HALTED, and
 * application processors wait for their SIPI inside vcpu_run.
 *
 * Kick: requests are set first, then kvm_run.immediate_exit, then, if the vCPU's thread is in
 * KVM_RUN, KVM_KICK_SIGNAL is sent to exactly this thread.  The run loop clears immediate_exit
 * before it looks at the requests, so no kick is lost whichever way the two meet.  The signal's
 * handler does nothing; it is installed process-wide at the first vm_create and unblocked by each
 * vCPU thread.
 *
 * Invariants
 *  1. vcpu_run leaves only when no instruction is half done: a served port or memory access is
 *     completed first by a KVM_RUN with immediate_exit set (it may bring further accesses).
 *  2. Only the vCPU's thread issues vCPU ioctls.  Others set words below marked "any thread".
 *  3. slots[] equals what KVM was told.
 *
 * Source: Linux Documentation/virt/kvm/api.rst (section numbers in the code).
 */
#ifndef VIV_KVM_KVM_H
#define VIV_KVM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>

#include "base/host.h"
#include "engine/engine.h"

#define KVM_KICK_SIGNAL SIGRTMIN

#define KVM_APIC_PAGE  0xfee00000ULL
#define KVM_APIC_BYTES 1024
#define KVM_APIC_TSC_DEADLINE                                                                      \
	0x3f8 /* place of IA32_TSC_DEADLINE in the register page (engine.h)  \
				     */

/* One row an MSR (or a regular run of them) of struct x86_state. */
struct kvm_msr_row {
	const char *name;
	uint32_t index, count, stride; /* MSR index of element i: index + i * stride */
	uint32_t offset;	       /* in struct x86_state; elements are adjacent */
};
extern const struct kvm_msr_row kvm_msr_rows[];
#define KVM_MSR_MAX 64 /* all rows' counts together, checked at creation */

struct kvm_slot {
	gpa_t gpa;
	uint64_t size_bytes, offset;
	bool is_readonly, is_used;
};

struct kvm_vm {
	int dev_fd, fd;
	size_t run_bytes; /* of the shared struct kvm_run mapping */
	struct guest_ram *ram;
	struct engine_config cfg;     /* cfg.model points to @model */
	struct cpu_model model;	      /* what remains after KVM's own limits */
	struct kvm_cpuid2 *supported; /* KVM_GET_SUPPORTED_CPUID */
	uint64_t supported_xcr0;
	uint32_t tsc_khz;
	bool has_exception_payload, has_tsc_offset, has_triple_fault_event;
	struct kvm_slot slots[RAM_MAX_REGIONS];
	bool is_logging; /* dirty log */

	pthread_mutex_t lock; /* the words below */
	bool level_vectors[256];
	unsigned nlevel;
	struct engine_vm *step_vm; /* dbt side, made at the first instruction that needs it */
	bool is_msr_reported[KVM_MSR_MAX], is_tsc_reported;
};

enum { KVM_REQ_KICKED = 1, KVM_REQ_NMI_WAITS = 2 };

enum kvm_counter {
	KVMC_RUNS,
	KVMC_PIO,
	KVMC_MMIO,
	KVMC_EOI,
	KVMC_WINDOWS,
	KVMC_EXTINTS,
	KVMC_NMIS,
	KVMC_KICKS,
	KVMC_STEPS,
	KVMC_DEBUG,
	KVMC_COUNT
};

struct kvm_vcpu {
	struct kvm_vm *vm;
	int fd;
	struct kvm_run *run;
	unsigned index;
	struct vcpu_up up;
	_Atomic uint32_t requests;  /* any thread */
	_Atomic bool intr_line;	    /* any thread */
	_Atomic int tid;	    /* any thread reads: the thread in vcpu_run, 0 when none is */
	_Atomic int64_t tsc_offset; /* as of the last return of vcpu_run; any thread reads */
	int signal_tid;		    /* thread that has the kick signal unblocked */
	bool needs_completion;	    /* invariant 1 */
	bool is_window_known;	    /* run->ready_for_interrupt_injection is of the present state */
	struct engine_debug debug;
	bool msr_ok[KVM_MSR_MAX]; /* readable, by position in the expanded rows */
	struct engine_vcpu *step; /* dbt vCPU */
	uint64_t step_cr8;	  /* CR8 during a step */
	uint64_t counters[KVMC_COUNT];
	struct error broken; /* text set: the vCPU cannot go on, vcpu_run reports it */
};

static inline struct kvm_vm *to_kvm_vm(struct engine_vm *vm)
{
	return (struct kvm_vm *)(void *)vm;
}
static inline struct kvm_vcpu *to_kvm_vcpu(struct engine_vcpu *v)
{
	return (struct kvm_vcpu *)(void *)v;
}

/** kvm_ioctl() - host.ioctl, restarted after EINTR (not for KVM_RUN).  >= 0 or -errno. */
int kvm_ioctl(int fd, unsigned long request, void *arg);

/* probe.c */
void kvm_probe(struct engine_probe *out);

/* vcpu.c */
int kvm_vcpu_create(struct engine_vcpu **out, struct engine_vm *vm, unsigned index,
		    const struct vcpu_up *up, struct error *err);
void kvm_vcpu_destroy(struct engine_vcpu *v);
enum run_result kvm_vcpu_run(struct engine_vcpu *v, struct error *err);
void kvm_vcpu_kick(struct engine_vcpu *v);
void kvm_vcpu_set_intr(struct engine_vcpu *v, bool level);
void kvm_vcpu_raise_nmi(struct engine_vcpu *v);
int kvm_vcpu_set_debug(struct engine_vcpu *v, const struct engine_debug *dbg);
int64_t kvm_vcpu_get_tsc_offset(struct engine_vcpu *v);
void kvm_vcpu_set_tsc_offset(struct engine_vcpu *v, int64_t offset);

/** kvm_filter_model() - subtract from @m what KVM_GET_SUPPORTED_CPUID (@sup) does not offer. */
void kvm_filter_model(struct cpu_model *m, const struct kvm_cpuid2 *sup, bool has_tsc_deadline);
/** kvm_build_cpuid() - every leaf of @m as KVM_SET_CPUID2 wants it; at most @max entries.
 * Returns the number, or -E2BIG. */
int kvm_build_cpuid(const struct cpu_model *m, const struct kvm_cpuid2 *sup, unsigned apic_id,
		    struct kvm_cpuid_entry2 *out, unsigned max);

/* state.c */
void kvm_state_find_msrs(struct kvm_vcpu *v); /* fills msr_ok */
/** kvm_state_get() - returns 0 or -errno; @out undefined then. */
int kvm_state_get(struct kvm_vcpu *v, struct x86_state *out, struct error *err);
/** kvm_state_put() - @base not NULL: only what differs from it, and never the TSC. */
int kvm_state_put(struct kvm_vcpu *v, const struct x86_state *in, const struct x86_state *base,
		  struct error *err);
void kvm_get_state(struct engine_vcpu *v, struct x86_state *out);
int kvm_set_state(struct engine_vcpu *v, const struct x86_state *in, struct error *err);
int kvm_get_lapic(struct engine_vcpu *v, uint8_t regs[KVM_APIC_BYTES]);
int kvm_set_lapic(struct engine_vcpu *v, const uint8_t regs[KVM_APIC_BYTES]);

/* vm.c */
/** kvm_own_signal() - install KVM_KICK_SIGNAL's handler, if it is not.  Returns 0 or -errno. */
int kvm_own_signal(void);
/** kvm_learn_level() - make EOIs of @vector exit.  Returns 0 or -errno. */
int kvm_learn_level(struct kvm_vm *vm, uint8_t vector);

/* step.c */
/** kvm_step() - the instruction KVM failed on.  RUN_KICKED: done, go on. */
enum run_result kvm_step(struct kvm_vcpu *v, struct error *err);

#endif
