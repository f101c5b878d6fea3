/* SPDX-License-Identifier: Apache-2.0 */
/* What KVM gives a guest beyond a CPU (Linux Documentation/virt/kvm/x86): end of interrupt in memory, steal
 * time, HLT ended by hypercall, TLB flushes left to a CPU that does not run. */
#include "guest.h"

#define FEATURE_STEAL_TIME  5
#define FEATURE_PV_EOI	    6
#define FEATURE_PV_UNHALT   7
#define FEATURE_TLB_FLUSH   9
#define FEATURE_SCHED_YIELD 13

#define MSR_STEAL_TIME 0x4b564d03
#define MSR_PV_EOI     0x4b564d04

#define HC_KICK_CPU    5
#define HC_SCHED_YIELD 11

#define PREEMPTED 1
#define FLUSH_TLB 2

static uint32_t features;
static bool is_amd;

static bool has(unsigned feature)
{
	return features >> feature & 1;
}

static int64_t hypercall(uint64_t nr, uint64_t a0, uint64_t a1)
{
	int64_t r;

	if (is_amd)
		__asm__ volatile("vmmcall" : "=a"(r) : "a"(nr), "b"(a0), "c"(a1) : "memory");
	else
		__asm__ volatile("vmcall" : "=a"(r) : "a"(nr), "b"(a0), "c"(a1) : "memory");
	return r;
}

struct msr_write {
	uint32_t msr;
	uint64_t value;
};

static void write_it(void *arg)
{
	struct msr_write *w = arg;

	wrmsr(w->msr, w->value);
}

/* ---- end of interrupt ---- */

static volatile uint32_t pv_eoi __attribute__((aligned(64)));
static volatile unsigned ticks, offers, writes;
static bool takes_offers;

static void on_tick(struct frame *f)
{
	uint8_t was_set;

	(void)f;
	ticks++;
	__asm__ volatile("btrl $0, %0; setc %1" : "+m"(pv_eoi), "=q"(was_set) : : "cc");
	if (was_set)
		offers++;
	if (was_set && takes_offers)
		return;
	writes++;
	lapic_eoi();
}

static void ticks_come(unsigned rounds, const char *name)
{
	ticks = 0;
	for (unsigned i = 0; i < rounds && ticks == 2 * i; i++) {
		lapic_write(0x300, 0x40051); /* self */
		lapic_write(0x300, 0x40041); /* waits for the first to end */
		sti();
		for (unsigned n = 0; ticks < 2 * i + 2 && n < 200000; n++)
			pause();
		cli();
	}
	check_eq(ticks, 2 * rounds, name);
	check_eq(lapic_read(0x110) | lapic_read(0x120), 0, "nothing stays in service");
}

static void test_pv_eoi(void)
{
	struct msr_write reserved = { MSR_PV_EOI, (uintptr_t)&pv_eoi | 3 };

	if (!has(FEATURE_PV_EOI)) {
		skip("end of interrupt in memory", "not shown");
		return;
	}
	set_handler(0x41, on_tick);
	set_handler(0x51, on_tick);
	lapic_enable();
	check_fault(catch (write_it, &reserved), GP, 0, "reserved bit of PV_EOI_EN");
	wrmsr(MSR_PV_EOI, (uintptr_t)&pv_eoi | 1);
	check_eq(rdmsr(MSR_PV_EOI), (uintptr_t)&pv_eoi | 1, "PV_EOI_EN reads back");
	takes_offers = true;
	ticks_come(200, "interrupts ended in memory");
	if (offers)
		check(writes < ticks, "some need no write");
	else
		skip("some need no write", "this hypervisor offered none");
	takes_offers = false;
	ticks_come(200, "offers that are not taken");
	wrmsr(MSR_PV_EOI, 0);
	offers = 0;
	ticks_come(20, "switched off");
	check_eq(offers, 0, "no offer when switched off");
}

/* ---- steal time ---- */

static struct steal_time {
	volatile uint64_t steal;
	volatile uint32_t version, flags;
	volatile uint8_t preempted;
	uint8_t pad[47];
} steal[MAX_CPUS] __attribute__((aligned(64)));

static void steal_on(void *arg)
{
	struct steal_time *s = &steal[cpu_index()];

	(void)arg;
	wrmsr(MSR_STEAL_TIME, (uintptr_t)s | 1);
}

static void steal_off(void *arg)
{
	(void)arg;
	wrmsr(MSR_STEAL_TIME, 0);
}

static void test_steal(void)
{
	struct msr_write reserved = { MSR_STEAL_TIME, (uintptr_t)steal | 5 };
	uint64_t last = 0;
	bool is_monotonic = true, is_preempted = false;

	if (!has(FEATURE_STEAL_TIME)) {
		skip("steal time", "not shown");
		return;
	}
	check_fault(catch (write_it, &reserved), GP, 0, "reserved bit of STEAL_TIME");
	steal_on(NULL);
	check_eq(rdmsr(MSR_STEAL_TIME), (uintptr_t)steal | 1, "STEAL_TIME reads back");
	for (unsigned i = 0; i < 20; i++) {
		delay_us(500);
		is_monotonic &= steal->steal >= last;
		is_preempted |= steal->preempted & PREEMPTED;
		last = steal->steal;
	}
	check(is_monotonic, "steal time never runs back");
	check_eq(steal->version & 1, 0, "its version is even");
	check_eq(steal->flags, 0, "its flags are zero");
	check(!is_preempted, "who looks runs");
	steal_off(NULL);
}

/* ---- KICK_CPU ---- */

#define KICKS 500
static volatile unsigned baton;

/* CPU @arg takes the baton when it is @arg's parity, and waits in HLT with interrupts off. */
static void pass_baton(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;

	while (baton < KICKS) {
		while ((baton & 1) != me && baton < KICKS)
			__asm__ volatile("hlt" : : : "memory");
		if (baton < KICKS) {
			baton++;
			hypercall(HC_KICK_CPU, 0, 1 - me);
		}
	}
	hypercall(HC_KICK_CPU, 0, 1 - me);
}

static void test_kick(void)
{
	if (!has(FEATURE_PV_UNHALT)) {
		skip("HLT ended by KICK_CPU", "not shown");
		return;
	}
	baton = 0;
	on_cpu(1, pass_baton, (void *)1);
	pass_baton((void *)0);
	wait_cpu(1);
	check_eq(baton, KICKS, "HLT with interrupts off ended by KICK_CPU");
	check_eq((uint64_t)hypercall(HC_KICK_CPU, 0, 200), 0, "KICK_CPU of nobody");
}

/* ---- TLB flushes ---- */

static volatile uint64_t *const shot = (void *)(TEST_BASE + 0x200000);
static volatile unsigned answers, wrong;
static volatile uint64_t least;
static volatile bool stop;

static void on_flush(struct frame *f)
{
	(void)f;
	invlpg((void *)shot);
	lapic_eoi();
	answers++;
}

/* Reads, and is away between reads: spinning, yielding, halted. */
static void reader(void *arg)
{
	(void)arg;
	steal_on(NULL);
	sti();
	for (unsigned i = 0; !stop; i++) {
		for (unsigned k = 0; k < 20; k++) {
			uint64_t at_least = least;

			__asm__ volatile("" : : : "memory");
			if (*shot < at_least)
				wrong++;
		}
		if (i & 1)
			hypercall(HC_SCHED_YIELD, 0, 0);
		else
			for (unsigned k = 0; k < 300; k++)
				pause();
	}
	cli();
	steal_off(NULL);
}

static void test_flush(void)
{
	uint8_t *pages[2] = { alloc_page(), alloc_page() };
	uint64_t *entry;
	unsigned by_flag = 0, by_ipi = 0;

	if (!has(FEATURE_TLB_FLUSH) || !has(FEATURE_STEAL_TIME) || !has(FEATURE_SCHED_YIELD)) {
		skip("TLB flush of a CPU that does not run", "not shown");
		return;
	}
	set_handler(0x61, on_flush);
	map((uintptr_t)shot, (uintptr_t)pages[0], PT_P | PT_W);
	entry = pte((uintptr_t)shot, 1);
	on_cpu(1, reader, NULL);
	for (uint64_t i = 1; i <= 3000; i++) {
		uint8_t seen;

		/* the other page becomes current, with the value that readers must see from now on */
		*(volatile uint64_t *)pages[i & 1] = i;
		*(volatile uint64_t *)entry = (uintptr_t)pages[i & 1] | PT_P | PT_W;
		__sync_synchronize();
		seen = steal[1].preempted;
		if (seen & PREEMPTED &&
		    __sync_bool_compare_and_swap(&steal[1].preempted, seen, seen | FLUSH_TLB)) {
			by_flag++;
		} else {
			unsigned before = answers;

			by_ipi++;
			lapic_ipi(1, 0x61);
			while (answers == before)
				pause();
		}
		invlpg((void *)shot);
		least = i;
		for (unsigned k = 0; k < (i & 63); k++)
			pause();
	}
	stop = true;
	wait_cpu(1);
	print("%u flushes by flag, %u by interrupt\n", by_flag, by_ipi);
	check_eq(wrong, 0, "no read through an entry that was flushed");
}

void guest_main(void)
{
	struct cpuid id = cpuid(0x40000000, 0), vendor = cpuid(0, 0);

	is_amd = vendor.c == 0x444d4163 || vendor.c == 0x656e6975; /* "cAMD"; "uine" of HygonGenuine */
	if (id.b == 0x4b4d564b && id.c == 0x564b4d56 && id.d == 0x4d)
		features = cpuid(0x40000001, 0).a;
	test_pv_eoi();
	test_steal();
	check_eq(start_cpus() >= 2, 1, "two CPUs");
	test_kick();
	test_flush();
	done();
}
