/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's steal time where the engine is not KVM (kvm_pv.c): what a vCPU tells its guest about the time it
 * could not run, whether it runs now, and whether its TLB may be flushed without it.
 */
#ifndef VIV_VM_KVM_PV_H
#define VIV_VM_KVM_PV_H

#include "base/util.h"

#define KVM_MSR_STEAL_TIME 0x4b564d03u
#define KVM_MSR_PV_EOI	   0x4b564d04u

struct guest_ram;
struct x86_state;
struct vcpu;

/* The guest's structure, in its memory (Linux Documentation/virt/kvm/x86/msr.rst). */
struct kvm_steal_time {
	uint64_t steal_ns;
	uint32_t version; /* odd while being changed */
	uint32_t flags;
	uint8_t preempted; /* KVM_VCPU_*, changed by any CPU with locked accesses */
	uint8_t u8_pad[3];
	uint32_t pad[11];
};
#define KVM_VCPU_PREEMPTED 1
#define KVM_VCPU_FLUSH_TLB 2 /* the guest asks: flush before this vCPU executes again */

/* Of each vCPU; touched only by its own thread. */
struct steal_clock {
	uint64_t msr;		 /* as the guest wrote it */
	int64_t wall_ns, cpu_ns; /* host's clocks at the last look */
	bool runs;		 /* between steal_start() and steal_stop() */
};

/** steal_now_ns() - the clock of @late_ns. */
int64_t steal_now_ns(void);
/** steal_msr_write() - the guest names its structure.  Returns 0, or -EPERM: reserved bits. */
int steal_msr_write(struct steal_clock *s, uint64_t value);

/** steal_start() - the vCPU wants to execute from now on; it waited for that for @late_ns already. */
void steal_start(struct steal_clock *s, struct guest_ram *ram, int64_t late_ns);
/** steal_update() - tell the guest, if the last time was long ago. */
void steal_update(struct steal_clock *s, struct guest_ram *ram);
/** steal_stop() - it has nothing to execute. */
void steal_stop(struct steal_clock *s, struct guest_ram *ram);

/**
 * preempted_set() - the vCPU does not execute, and its thread uses no translation of its TLB until
 * preempted_clear(): other CPUs may leave KVM_VCPU_FLUSH_TLB there instead of interrupting it.
 */
void preempted_set(const struct steal_clock *s, struct guest_ram *ram);
/** preempted_clear() - it is about to execute.  True: flush its TLB first. */
bool preempted_clear(const struct steal_clock *s, struct guest_ram *ram);

#endif
