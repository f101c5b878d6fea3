/* SPDX-License-Identifier: Apache-2.0 */
/* KVM's paravirtual clock where the engine is not KVM (kvmclock.c). */
#ifndef VIV_VM_KVMCLOCK_H
#define VIV_VM_KVMCLOCK_H

#include "base/util.h"

#define KVM_MSR_WALL_CLOCK  0x4b564d00u
#define KVM_MSR_SYSTEM_TIME 0x4b564d01u

struct vcpu;

/** kvmclock_scale() - TSC ticks to nanoseconds: ns = (ticks << shift) * mul >> 32 (shift may be negative).
 * @tsc_khz: 1 .. 2^32 - 1 */
void kvmclock_scale(uint32_t tsc_khz, uint32_t *mul, int8_t *shift);

bool kvmclock_is_msr(uint64_t msr);
/** kvmclock_msr_write() - the guest names where it wants the clock; fills it in.  Lock held; returns 0. */
int kvmclock_msr_write(struct vcpu *v, uint64_t msr, uint64_t value);

/** kvmclock_publish() - tell the guest, whose register MSR_KVM_SYSTEM_TIME_NEW is @msr, the machine's pair of TSC and
 * time.  The vCPU is held. */
void kvmclock_publish(struct vcpu *v, uint64_t msr);

#endif
