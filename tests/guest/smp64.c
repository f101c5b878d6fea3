/* SPDX-License-Identifier: Apache-2.0 */
/* Several CPUs: start-up, IPIs, atomic operations, TLB shootdown, cross-modifying code, and the memory
 * order that x86 promises (SDM vol. 3 8.2.3). */
#include "guest.h"

static unsigned n; /* CPUs */

static void wait_all(void)
{
	for (unsigned i = 1; i < n; i++)
		wait_cpu(i);
}

static void on_all(void (*fn)(void *), void *arg)
{
	for (unsigned i = 1; i < n; i++)
		on_cpu(i, fn, arg);
	fn(arg);
	wait_all();
}

/* ---- atomics ---- */

#define ROUNDS	    2000
#define SPLIT_EVERY 20 /* stops all CPUs, however many share a host core */

static struct {
	volatile uint64_t inc, add, xadd, cas, cas16[2], bts_wins, and_or;
	volatile uint8_t byte;
	char pad[63];
	volatile uint32_t split_lines[32]; /* one operand across cache lines */
} at __attribute__((aligned(64)));
static volatile uint32_t bit_words[ROUNDS / 32 + 1];

static void atomics(void *arg)
{
	uint64_t before = 1, wins = 0;

	(void)arg;
	for (unsigned i = 0; i < ROUNDS; i++) {
		__asm__ volatile("lock incq %0" : "+m"(at.inc) : : "cc");
		__asm__ volatile("lock addq $3, %0" : "+m"(at.add) : : "cc");
		before = 1;
		__asm__ volatile("lock xaddq %1, %0" : "+m"(at.xadd), "+r"(before) : : "cc");
		uint64_t old = at.cas;
		while (!__atomic_compare_exchange_n(&at.cas, &old, old + 5, false, __ATOMIC_SEQ_CST,
						    __ATOMIC_SEQ_CST))
			;
		__asm__ volatile("lock incb %0" : "+m"(at.byte) : : "cc");
		uint8_t was;
		__asm__ volatile("lock btsl %2, %1; setc %0"
				 : "=q"(was), "+m"(bit_words[0])
				 : "r"(i)
				 : "memory", "cc");
		wins += !was;
		if (i % SPLIT_EVERY)
			continue;
		__asm__ volatile("lock addl $1, %0"
				 : "+m"(*(volatile uint32_t *)((uintptr_t)at.split_lines + 62))
				 :
				 : "cc");
	}
	__sync_fetch_and_add(&at.bts_wins, wins);
}

static void atomics16(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < 300; i++) {
		uint64_t a = at.cas16[0], d = at.cas16[1];
		uint8_t ok;

		do
			__asm__ volatile("lock cmpxchg16b %1; setz %0"
					 : "=q"(ok), "+m"(at.cas16), "+a"(a), "+d"(d)
					 : "b"(a + 1), "c"(d + 2)
					 : "cc", "memory");
		while (!ok);
	}
}

static void test_atomics(void)
{
	on_all(atomics, NULL);
	check_eq(at.inc, n * ROUNDS, "LOCK INC");
	check_eq(at.add, n * ROUNDS * 3ull, "LOCK ADD");
	check_eq(at.xadd, n * ROUNDS, "LOCK XADD");
	check_eq(at.cas, n * ROUNDS * 5ull, "LOCK CMPXCHG");
	check_eq(at.byte, (uint8_t)(n * ROUNDS), "LOCK INC of a byte");
	check_eq(at.bts_wins, ROUNDS, "LOCK BTS is won once");
	check_eq(*(volatile uint32_t *)((uintptr_t)at.split_lines + 62), n * (ROUNDS / SPLIT_EVERY),
		 "LOCK ADD across cache lines");
	if (cpuid(1, 0).c & 1 << 13) {
		on_all(atomics16, NULL);
		check(at.cas16[0] == n * 300 && at.cas16[1] == n * 600, "LOCK CMPXCHG16B");
	} else {
		skip("LOCK CMPXCHG16B", "not shown");
	}
}

/* A locked operand across pages, on all CPUs at once. */
static void across_pages(void *arg)
{
	for (unsigned i = 0; i < 300; i++)
		__asm__ volatile("lock incq %0" : "+m"(*(volatile uint64_t *)arg) : : "cc");
}

static void test_across_pages(void)
{
	uint8_t *a = alloc_page(), *b = alloc_page();
	void *p = (void *)(TEST_BASE + 4093);

	map(TEST_BASE, (uintptr_t)a, PT_P | PT_W);
	map(TEST_BASE + 4096, (uintptr_t)b, PT_P | PT_W);
	on_all(across_pages, p);
	check_eq(*(volatile uint64_t *)p, n * 300, "LOCK INC across pages");
}

/* ---- spin locks, IPIs ---- */

static volatile int lock;
static volatile uint64_t guarded[2];

static void locked_work(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < 1000; i++) {
		while (__sync_lock_test_and_set(&lock, 1))
			while (lock)
				pause();
		guarded[0]++;
		guarded[1] += 2;
		__sync_lock_release(&lock);
	}
}

static volatile unsigned ipis[MAX_CPUS];

static void on_ipi(struct frame *f)
{
	(void)f;
	ipis[cpu_index()]++;
	lapic_eoi();
}

static volatile bool stop;

static void take_ipis(void *arg)
{
	(void)arg;
	sti();
	while (!stop)
		__asm__ volatile("pause" : : : "memory");
	cli();
}

static void halt_once(void *arg)
{
	unsigned me = cpu_index(), want = *(volatile unsigned *)arg;

	while (ipis[me] < want)
		sti_hlt_cli();
}

static bool wait_ipis(unsigned want)
{
	for (unsigned t = 0; t < 20000; t++) {
		bool all = true;

		for (unsigned i = 1; i < n; i++)
			all &= ipis[i] >= want;
		if (all)
			return true;
		delay_us(50);
	}
	return false;
}

static volatile unsigned nmis;

static void on_nmi(struct frame *f)
{
	(void)f;
	__sync_fetch_and_add(&nmis, 1);
}

static void test_ipis(void)
{
	static volatile unsigned want = 20;

	locked_work(NULL);
	guarded[0] = guarded[1] = 0;
	on_all(locked_work, NULL);
	check(guarded[0] == n * 1000 && guarded[1] == n * 2000, "spin lock");
	set_handler(0x50, on_ipi);
	set_handler(NMI_VECTOR, on_nmi);
	for (unsigned i = 1; i < n; i++)
		on_cpu(i, take_ipis, NULL);
	bool is_right = true;
	for (unsigned i = 1; i <= 20; i++) {
		for (unsigned c = 1; c < n; c++)
			lapic_ipi(c, 0x4050);
		is_right &= wait_ipis(i);
	}
	check(is_right, "IPIs to each");
	lapic_write(0x300, 0xc4050); /* all but self */
	check(wait_ipis(21), "IPI to all others");
	check_eq(ipis[0], 0, "not to self");
	lapic_write(0x300, 0xc4400);
	for (unsigned t = 0; t < 10000 && nmis < n - 1; t++)
		delay_us(20);
	check_eq(nmis, n - 1, "NMI to all others");
	/* logical destination: each CPU's bit */
	stop = true;
	wait_all();
	/* halted CPUs wake */
	want = 40;
	for (unsigned i = 1; i < n; i++) {
		ipis[i] = 0;
		on_cpu(i, halt_once, (void *)&want);
	}
	is_right = true;
	for (unsigned i = 1; i <= 40; i++) {
		delay_us(i % 4 * 30);
		lapic_write(0x300, 0xc4050);
		is_right &= wait_ipis(i);
	}
	wait_all();
	check(is_right, "IPIs wake halted CPUs");
	set_handler(NMI_VECTOR, NULL);
}

/* ---- TLB shootdown ---- */

static volatile uint64_t *const shot = (void *)(TEST_BASE + 0x100000);
static volatile unsigned flushed[MAX_CPUS];
static volatile unsigned wrong;
static volatile uint64_t phase; /* what the page must hold from now on, at least */

static void on_flush(struct frame *f)
{
	(void)f;
	invlpg((void *)shot);
	flushed[cpu_index()]++;
	lapic_eoi();
}

static void reader(void *arg)
{
	(void)arg;
	sti();
	while (!stop) {
		uint64_t least = phase;
		__asm__ volatile("" : : : "memory");
		if (*shot < least)
			__sync_fetch_and_add(&wrong, 1);
	}
	cli();
}

static void test_shootdown(void)
{
	uint64_t *pages[2] = { alloc_page(), alloc_page() };

	set_handler(0x51, on_flush);
	map((uintptr_t)shot, (uintptr_t)pages[0], PT_P | PT_W);
	*shot = 0;
	phase = 0;
	stop = false;
	for (unsigned i = 1; i < n; i++)
		on_cpu(i, reader, NULL);
	bool is_right = true;
	for (uint64_t i = 1; i <= 60; i++) {
		*pages[i % 2] = i;
		*pte((uintptr_t)shot, 1) = (uintptr_t)pages[i % 2] | PT_P | PT_W;
		invlpg((void *)shot);
		lapic_write(0x300, 0xc4051);
		for (unsigned c = 1; c < n; c++) {
			unsigned t = 0;
			while (flushed[c] < i && t++ < 100000)
				delay_us(10);
			is_right &= flushed[c] >= i;
		}
		phase = i; /* nobody may see the old page any more */
		delay_us(50);
	}
	stop = true;
	wait_all();
	check(is_right, "shootdown IPIs arrive");
	check_eq(wrong, 0, "no stale translation after a shootdown");
}

/* ---- cross-modifying code: write, then a serializing handshake (SDM vol. 3 8.1.3) ---- */

static uint8_t *xcode;
static volatile uint32_t xstep, xseen[MAX_CPUS], xbad;

static uint32_t call(const void *p)
{
	uint32_t v;

	__asm__ volatile("call *%1" : "=a"(v) : "r"(p) : "memory", "cc");
	return v;
}

static void runner(void *arg)
{
	uint32_t last = 0;
	unsigned me = cpu_index();

	(void)arg;
	while (last < 100) {
		while (xstep == last)
			pause();
		last = xstep;
		(void)cpuid(0, 0); /* serialize */
		if (call(xcode) != last)
			__sync_fetch_and_add(&xbad, 1);
		xseen[me] = last;
	}
}

/* Without a handshake: a single aligned store of one immediate; each value is old or new. */
static void any_value(void *arg)
{
	uint32_t last = 0;

	(void)arg;
	while (!stop) {
		uint32_t v = call(xcode);

		if (v < last || v > 1000000)
			__sync_fetch_and_add(&xbad, 1);
		last = v;
	}
}

static void test_cross_modifying(void)
{
	xcode = alloc_page();
	xcode += 3; /* the immediate is 4-aligned */
	xcode[0] = 0xb8;
	*(volatile uint32_t *)(xcode + 1) = 0;
	xcode[5] = 0xc3;
	for (unsigned i = 1; i < n; i++)
		on_cpu(i, runner, NULL);
	for (uint32_t s = 1; s <= 100; s++) {
		*(volatile uint32_t *)(xcode + 1) = s;
		xstep = s;
		for (unsigned i = 1; i < n; i++)
			while (xseen[i] != s)
				pause();
	}
	wait_all();
	check_eq(xbad, 0, "cross-modifying code with a handshake");
	stop = false;
	xbad = 0;
	*(volatile uint32_t *)(xcode + 1) = 0;
	for (unsigned i = 1; i < n; i++)
		on_cpu(i, any_value, NULL);
	for (uint32_t s = 1; s <= 2000; s++)
		*(volatile uint32_t *)(xcode + 1) = s;
	delay_us(20000);
	stop = true;
	wait_all();
	check_eq(xbad, 0, "an immediate stored while others run it: old or new, never back");
	check_eq(call(xcode), 2000, "and at last the new");
}

/* ---- litmus tests ---- */

#define TURNS 300
static struct {
	volatile uint32_t r[4];
} seen[TURNS];
static volatile unsigned gate[2];

/* Both sides meet, then act: two CPUs, @side 0 or 1. */
static void meet(unsigned side, unsigned turn)
{
	gate[side] = turn + 1;
	while (gate[1 - side] < turn + 1)
		;
}

enum litmus { MP, SB, SB_FENCE, LB, SB_LOCK };
static volatile enum litmus kind;
static struct {
	volatile uint32_t x;
	char pad[124];
	volatile uint32_t y;
	char pad2[124];
} vars[TURNS];

static void side(unsigned s)
{
	for (unsigned i = 0; i < TURNS; i++) {
		volatile uint32_t *a = s ? &vars[i].y : &vars[i].x, *b = s ? &vars[i].x : &vars[i].y;
		uint32_t v = 0, w = 0, one = 1;

		meet(s, i);
		switch (kind) {
		case MP: /* 0 stores x then y; 1 loads y then x */
			if (s == 0)
				__asm__ volatile("movl $1, %0; movl $1, %1"
						 : "=m"(vars[i].x), "=m"(vars[i].y));
			else
				__asm__ volatile("movl %2, %0; movl %3, %1"
						 : "=&r"(v), "=&r"(w)
						 : "m"(vars[i].y), "m"(vars[i].x));
			break;
		case SB:
			__asm__ volatile("movl $1, %0; movl %2, %1" : "=m"(*a), "=&r"(v) : "m"(*b));
			break;
		case SB_FENCE:
			__asm__ volatile("movl $1, %0; mfence; movl %2, %1"
					 : "=m"(*a), "=&r"(v)
					 : "m"(*b));
			break;
		case SB_LOCK:
			__asm__ volatile("xchgl %3, %0; movl %2, %1"
					 : "+m"(*a), "=&r"(v)
					 : "m"(*b), "r"(one));
			break;
		case LB:
			__asm__ volatile("movl %2, %1; movl $1, %0" : "=m"(*b), "=&r"(v) : "m"(*a));
			break;
		}
		seen[i].r[2 * s] = v;
		seen[i].r[2 * s + 1] = w;
	}
}

static void other_side(void *arg)
{
	(void)arg;
	side(1);
}

static unsigned run_litmus(enum litmus k)
{
	unsigned forbidden = 0;

	kind = k;
	memset(vars, 0, sizeof(vars));
	gate[0] = gate[1] = 0;
	on_cpu(1, other_side, NULL);
	side(0);
	wait_cpu(1);
	for (unsigned i = 0; i < TURNS; i++) {
		volatile uint32_t *r = seen[i].r;

		switch (k) {
		case MP:
			forbidden += r[2] == 1 && r[3] == 0;
			break;
		case LB:
			forbidden += r[0] == 1 && r[2] == 1;
			break;
		default:
			forbidden += r[0] == 0 && r[2] == 0;
			break;
		}
	}
	return forbidden;
}

static void test_litmus(void)
{
	check_eq(run_litmus(MP), 0, "litmus: stores are seen in order");
	check_eq(run_litmus(LB), 0, "litmus: loads are not moved behind stores");
	check_eq(run_litmus(SB_FENCE), 0, "litmus: MFENCE orders store and load");
	check_eq(run_litmus(SB_LOCK), 0, "litmus: XCHG orders store and load");
	print("# store buffering seen %u times of %u (allowed)\n", run_litmus(SB), TURNS);
}

void guest_main(void)
{
	n = start_cpus();
	print("# %u CPUs\n", n);
	check(n >= 2, "more than one CPU");
	if (n < 2)
		return;
	test_atomics();
	test_across_pages();
	test_ipis();
	test_shootdown();
	test_cross_modifying();
	test_litmus();
}
