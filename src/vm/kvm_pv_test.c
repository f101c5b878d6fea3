/* SPDX-License-Identifier: Apache-2.0 */
/* Steal time, and the protocol by which one CPU leaves a TLB flush to another that does not run. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/error.h"
#include "mem/ram.h"
#include "vm/kvm_pv.h"

#define GPA 0x1040

static struct guest_ram ram;
static struct kvm_steal_time *st;
static struct steal_clock clk;

static int setup(void **state)
{
	struct error err;

	assert_int_equal(ram_create(&ram, 2 * MIB, GUEST_PAGE_SIZE, &err), 0);
	assert_non_null(ram_add_rom(&ram, 0xfff000, GUEST_PAGE_SIZE, &err));
	st = (struct kvm_steal_time *)(void *)(ram.base + GPA);
	memset(&clk, 0, sizeof(clk));
	assert_int_equal(steal_msr_write(&clk, GPA | 1), 0);
	return 0;
}

static int teardown(void **state)
{
	ram_destroy(&ram);
	return 0;
}

static void test_register(void **state)
{
	for (unsigned bit = 1; bit < 6; bit++)
		assert_int_equal(steal_msr_write(&clk, GPA | 1 | 1u << bit), -EPERM);
	assert_int_equal(clk.msr, GPA | 1);
}

static int64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* A thread that sleeps gets nothing of a core: all of it is stolen but for its own time, and the lateness. */
static void test_steal(void **state)
{
	const int64_t nap_ns = 3000000;

	st->version = 7; /* a guest that did not clear it */
	steal_start(&clk, &ram, 1000000000);
	assert_int_equal(st->steal_ns, 1000000000);
	assert_int_equal(st->version, 8);
	int64_t wall = steal_now_ns(), cpu = cpu_ns();

	nanosleep(&(struct timespec){ .tv_nsec = nap_ns }, NULL);
	steal_update(&clk, &ram);
	cpu = cpu_ns() - cpu;
	wall = steal_now_ns() - wall;
	assert_true((int64_t)st->steal_ns >= 1000000000 + nap_ns - cpu);
	uint64_t steal_ns = st->steal_ns;

	steal_stop(&clk, &ram);
	steal_ns = st->steal_ns;
	/* halted: nothing is stolen */
	nanosleep(&(struct timespec){ .tv_nsec = nap_ns }, NULL);
	steal_update(&clk, &ram);
	steal_start(&clk, &ram, 0);
	assert_int_equal(st->steal_ns, steal_ns);
	assert_int_equal(st->version & 1, 0);
	assert_int_equal(st->flags | st->preempted, 0);
}

static void test_flush(void **state)
{
	assert_false(preempted_clear(&clk, &ram));
	preempted_set(&clk, &ram);
	assert_int_equal(st->preempted, KVM_VCPU_PREEMPTED);
	assert_false(preempted_clear(&clk, &ram));
	assert_int_equal(st->preempted, 0);
	preempted_set(&clk, &ram);
	st->preempted |= KVM_VCPU_FLUSH_TLB;
	assert_true(preempted_clear(&clk, &ram));
	assert_int_equal(st->preempted, 0);
	/* the dirty log sees it */
	ram.page_flags[GPA >> GUEST_PAGE_SHIFT] = RAM_PAGE_TRACK;
	preempted_set(&clk, &ram);
	assert_int_equal(ram.page_flags[GPA >> GUEST_PAGE_SHIFT], RAM_PAGE_DIRTY);
}

/* Switched off, in a hole, in ROM: nothing is written, nothing asked. */
static void test_nowhere(void **state)
{
	static const uint64_t msrs[] = { GPA, 0x800001, 0xfff001, ~0x3eull };
	uint8_t *rom = ram_ptr(&ram, 0xfff000, 64);

	memset(rom, 0xff, 64);
	memset(st, 0xff, sizeof(*st));
	for (unsigned i = 0; i < ARRAY_SIZE(msrs); i++) {
		assert_int_equal(steal_msr_write(&clk, msrs[i]), 0);
		steal_start(&clk, &ram, 1000);
		preempted_set(&clk, &ram);
		assert_false(preempted_clear(&clk, &ram));
		steal_stop(&clk, &ram);
	}
	for (unsigned i = 0; i < 64; i++) {
		assert_int_equal(rom[i], 0xff);
		assert_int_equal(((uint8_t *)st)[i], 0xff);
	}
}

/*
 * One thread is a vCPU with a TLB of one entry; it executes and is preempted in turn.  The other changes
 * the page table and flushes as Linux does: by flag if the vCPU is preempted, else by interrupt and answer.
 * Once the flush is done, the vCPU must not execute with the entry of before.
 */
#define ROUNDS 20000
static atomic_uint page_table, flushed, ipi, ack;
static atomic_bool is_done;

static void *vcpu_main(void *arg)
{
	unsigned tlb = 0;

	while (!is_done) {
		if (preempted_clear(&clk, &ram))
			tlb = page_table;
		for (unsigned i = 0; i < 3; i++) {
			unsigned must_have = flushed;

			if (ack != ipi) {
				tlb = page_table;
				ack = (unsigned)ipi;
			} else if ((int)(tlb - must_have) < 0) {
				return "an entry that was flushed";
			}
		}
		/* There may be one core for both: the other meets this one in each state. */
		sched_yield();
		preempted_set(&clk, &ram);
		sched_yield();
	}
	return NULL;
}

static void test_flush_race(void **state)
{
	_Atomic uint8_t *preempted = (_Atomic uint8_t *)&st->preempted;
	unsigned by_flag = 0;
	pthread_t thread;
	void *trouble;

	page_table = flushed = ipi = ack = 0;
	is_done = false;
	assert_int_equal(pthread_create(&thread, NULL, vcpu_main, NULL), 0);
	for (unsigned i = 1; i <= ROUNDS; i++) {
		page_table = i;
		uint8_t old = *preempted;

		if (old & KVM_VCPU_PREEMPTED &&
		    atomic_compare_exchange_strong(preempted, &old, old | KVM_VCPU_FLUSH_TLB)) {
			by_flag++;
		} else {
			ipi = i;
			/* a vCPU that is preempted takes the interrupt when it runs again */
			while (ack != i) {
				if (!pthread_tryjoin_np(thread, &trouble))
					fail_msg("%s", (const char *)trouble);
				sched_yield();
			}
		}
		flushed = i;
		/* so that flushes meet it in both states */
		while (i % 2 && !*preempted == (i % 4 == 1)) {
			if (!pthread_tryjoin_np(thread, &trouble))
				fail_msg("%s", (const char *)trouble);
			sched_yield();
		}
	}
	is_done = true;
	pthread_join(thread, &trouble);
	if (trouble)
		fail_msg("%s", (const char *)trouble);
	print_message("%u of %u flushes by flag\n", by_flag, ROUNDS);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = { T(test_register), T(test_steal), T(test_flush),
					    T(test_nowhere), T(test_flush_race) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
