/* SPDX-License-Identifier: Apache-2.0 */
/* The library itself: output, catching, ring 3, page tables, more CPUs. */
#include "guest.h"

static void fault_ud(void *arg)
{
	(void)arg;
	__asm__ volatile("ud2");
}

static void user_fn(void *arg)
{
	(void)arg;
	user_return(0x1234);
}

static void user_cli(void *arg)
{
	(void)arg;
	__asm__ volatile("cli");
}

static void mark(void *arg)
{
	*(volatile unsigned *)arg = cpu_index();
}

void guest_main(void)
{
	word v = 0;
	static volatile unsigned seen[MAX_CPUS];

	check(true, "output");
	check_fault(catch (fault_ud, NULL), UD, 0, "catch a fault");
	struct fault f = call_user(user_fn, NULL, &v);
	check(f.vector == -1 && v == 0x1234, "ring 3 and back");
	check_fault(call_user(user_cli, NULL, &v), GP, 0, "ring 3 is not privileged");
	f = catch (touch_write, (void *)TEST_BASE);
	check_fault(f, PF, 2, "nothing is mapped at TEST_BASE");
	check_eq(f.cr2, TEST_BASE, "its address is in CR2");
	map(TEST_BASE, (uintptr_t)alloc_page(), PT_P | PT_W);
	check_fault(catch (touch_write, (void *)TEST_BASE), -1, 0, "map");
	unsigned n = start_cpus();
	print("%u CPUs\n", n);
	for (unsigned i = 1; i < n; i++) {
		on_cpu(i, mark, (void *)&seen[i]);
		wait_cpu(i);
		check_eq(seen[i], i, "work on another CPU");
	}
}
