/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's paravirtual clock for engines that are not KVM (Linux Documentation/virt/kvm/x86/msr.rst):
 * guests read machine time from their TSC with a scale told in guest memory, and need not calibrate
 * the TSC against a timer, which goes wrong on a loaded host.
 *
 * All vCPUs are told the same pair of TSC and time: their TSCs have one offset, so the clock is the same
 * everywhere (the "TSC stable" flag).  The pair stays right over a pause, which stops TSC and machine
 * time alike; a reset sets a new TSC offset and takes a new pair.
 */
#include <errno.h>
#include <time.h>

#include "vm/kvmclock.h"
#include "vm/machine_int.h"

#define PVCLOCK_TSC_STABLE 1

struct pvclock_vcpu_time_info {
	uint32_t version; /* odd while being changed */
	uint32_t pad0;
	uint64_t tsc_timestamp;
	uint64_t system_time_ns;
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags;
	uint8_t pad[2];
} __attribute__((packed));

struct pvclock_wall_clock {
	uint32_t version, sec, nsec;
} __attribute__((packed));

void kvmclock_scale(uint32_t tsc_khz, uint32_t *mul, int8_t *shift)
{
	uint64_t tsc_hz = (uint64_t)tsc_khz * 1000, ns_hz = 1000000000;
	int s = 0;

	/* time = (tsc << shift) * mul >> 32 with mul in [2^31, 2^32) */
	while (tsc_hz > 2 * ns_hz) {
		tsc_hz >>= 1;
		s--;
	}
	while (tsc_hz <= ns_hz) {
		tsc_hz <<= 1;
		s++;
	}
	*mul = (uint32_t)((ns_hz << 32) / tsc_hz);
	*shift = (int8_t)s;
}

static int write_time(struct vcpu *v, gpa_t gpa)
{
	struct machine *m = v->m;
	struct pvclock_vcpu_time_info t = { .version = 2, .flags = PVCLOCK_TSC_STABLE };

	if (!m->has_kvmclock) {
		m->kvmclock_tsc = m->ops->read_tsc(v->ev);
		m->kvmclock_ns = (uint64_t)vclock_now_ns(&m->clock);
		m->has_kvmclock = true;
	}
	t.tsc_timestamp = m->kvmclock_tsc;
	t.system_time_ns = m->kvmclock_ns;
	uint32_t mul;

	kvmclock_scale(m->tsc_khz, &mul, &t.tsc_shift);
	t.tsc_to_system_mul = mul;
	return ram_write(&m->ram, gpa, &t, sizeof(t));
}

void kvmclock_publish(struct vcpu *v, uint64_t msr)
{
	if (msr & 1 && write_time(v, msr & ~1ULL) < 0)
		log_guest("kvmclock", "structure outside of RAM at %#llx", (unsigned long long)msr);
}

static int write_wall(struct vcpu *v, gpa_t gpa)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	int64_t boot_ns = ts.tv_sec * 1000000000LL + ts.tv_nsec - vclock_now_ns(&v->m->clock);
	struct pvclock_wall_clock w = {
		.version = 2,
		.sec = (uint32_t)(boot_ns / 1000000000),
		.nsec = (uint32_t)(boot_ns % 1000000000),
	};

	return ram_write(&v->m->ram, gpa, &w, sizeof(w));
}

bool kvmclock_is_msr(uint64_t msr)
{
	return msr == KVM_MSR_WALL_CLOCK || msr == KVM_MSR_SYSTEM_TIME;
}

int kvmclock_msr_write(struct vcpu *v, uint64_t msr, uint64_t value)
{
	int r = 0;

	/* Memory that is not there gets nothing; the register keeps its value, as on KVM. */
	if (msr == KVM_MSR_WALL_CLOCK)
		r = write_wall(v, value & ~3ULL);
	else if (value & 1)
		r = write_time(v, value & ~1ULL);
	if (r < 0)
		log_guest("kvmclock", "structure outside of RAM at %#llx", (unsigned long long)value);
	return 0;
}
