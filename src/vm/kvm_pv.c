/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steal time.  Of the time that a vCPU wants to execute, what its thread did not get on a core of the
 * host is stolen: the host's clock minus the thread's CPU time, from the moment something woke the vCPU
 * until it halts.  The sum lies in guest memory alone and is added to: nothing to save.
 *
 * The preempted byte is the whole of the TLB flush protocol.  Two sides:
 *   this CPU     stops using its TLB; byte = PREEMPTED ...... old = xchg(byte, 0); if old & FLUSH: flush; execute
 *   another CPU  changes a page table; reads the byte: if PREEMPTED, cmpxchg(byte, byte | FLUSH_TLB), else interrupts
 * The exchange orders the flag against the page walks after it; a failed cmpxchg makes the other CPU
 * interrupt, as ever.  Between two instructions only: an instruction that was taken apart by an exit
 * may still use an address it has translated.
 */
#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "base/log.h"
#include "mem/ram.h"
#include "vm/kvm_pv.h"

#define MSR_ENABLE	   1ull
#define MSR_RESERVED	   0x3eull
#define UPDATE_INTERVAL_NS 1000000

_Static_assert(sizeof(struct kvm_steal_time) == 64, "as the guest has it");

static int64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

int64_t steal_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

/* The guest's structure where it can be written, or NULL.  Aligned, so never over a page's end. */
static struct kvm_steal_time *structure(const struct steal_clock *s, const struct guest_ram *ram)
{
	gpa_t gpa = s->msr & ~(MSR_ENABLE | MSR_RESERVED);
	const struct ram_region *r = s->msr & MSR_ENABLE ? ram_find(ram, gpa) : NULL;

	return r && !r->is_readonly ? ram_ptr(ram, gpa, sizeof(struct kvm_steal_time)) : NULL;
}

int steal_msr_write(struct steal_clock *s, uint64_t value)
{
	if (value & MSR_RESERVED)
		return -EPERM;
	s->msr = value;
	return 0;
}

static void look(struct steal_clock *s)
{
	s->wall_ns = clock_ns(CLOCK_MONOTONIC);
	s->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void add(struct steal_clock *s, struct guest_ram *ram, int64_t stolen_ns)
{
	struct kvm_steal_time *t = structure(s, ram);

	if (!t || stolen_ns <= 0)
		return;
	_Atomic uint32_t *version = (_Atomic uint32_t *)&t->version;
	uint32_t v = atomic_load_explicit(version, memory_order_relaxed) | 1;

	atomic_store_explicit(version, v, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	atomic_store_explicit((_Atomic uint64_t *)&t->steal_ns, t->steal_ns + (uint64_t)stolen_ns,
			      memory_order_relaxed);
	atomic_store_explicit(version, v + 1, memory_order_release);
	ram_note_write_ptr(ram, t, sizeof(*t));
}

void steal_start(struct steal_clock *s, struct guest_ram *ram, int64_t late_ns)
{
	if (!(s->msr & MSR_ENABLE))
		return;
	add(s, ram, late_ns);
	look(s);
	s->runs = true;
}

static void settle(struct steal_clock *s, struct guest_ram *ram)
{
	int64_t wall = s->wall_ns, cpu = s->cpu_ns;

	look(s);
	add(s, ram, (s->wall_ns - wall) - (s->cpu_ns - cpu));
}

void steal_update(struct steal_clock *s, struct guest_ram *ram)
{
	if (s->runs && clock_ns(CLOCK_MONOTONIC) - s->wall_ns >= UPDATE_INTERVAL_NS)
		settle(s, ram);
}

void steal_stop(struct steal_clock *s, struct guest_ram *ram)
{
	if (s->runs)
		settle(s, ram);
	s->runs = false;
}

void preempted_set(const struct steal_clock *s, struct guest_ram *ram)
{
	struct kvm_steal_time *t = structure(s, ram);

	if (!t)
		return;
	atomic_store_explicit((_Atomic uint8_t *)&t->preempted, KVM_VCPU_PREEMPTED, memory_order_seq_cst);
	ram_note_write_ptr(ram, &t->preempted, 1);
}

bool preempted_clear(const struct steal_clock *s, struct guest_ram *ram)
{
	struct kvm_steal_time *t = structure(s, ram);

	if (!t)
		return false;
	uint8_t old =
		atomic_exchange_explicit((_Atomic uint8_t *)&t->preempted, 0, memory_order_seq_cst);

	ram_note_write_ptr(ram, &t->preempted, 1);
	return old & KVM_VCPU_FLUSH_TLB;
}
