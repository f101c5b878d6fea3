/* SPDX-License-Identifier: Apache-2.0 */
/* x87, SSE and AVX state: kept over exceptions, interrupts and switches between two tasks; FXSAVE,
 * XSAVE and XRSTOR in their forms; XCR0. */
#include "guest.h"

static uint8_t area[2][1024] __attribute__((aligned(64)));
static bool has_xsave, has_avx;

struct vectors {
	uint64_t q[16][4]; /* YMM0..15 */
};

#define EACH(X)                                                                                    \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

static void load_vectors(const struct vectors *v)
{
	if (has_avx) {
#define L(n) __asm__ volatile("vmovups %0, %%ymm" #n : : "m"(v->q[n]));
		EACH(L)
#undef L
	} else {
#define L(n) __asm__ volatile("movups %0, %%xmm" #n : : "m"(v->q[n]));
		EACH(L)
#undef L
	}
}

static void store_vectors(struct vectors *v)
{
	if (has_avx) {
#define S_(n) __asm__ volatile("vmovups %%ymm" #n ", %0" : "=m"(v->q[n]));
		EACH(S_)
#undef S_
	} else {
#define S_(n) __asm__ volatile("movups %%xmm" #n ", %0" : "=m"(v->q[n]));
		EACH(S_)
#undef S_
	}
}

static void fill(struct vectors *v, uint64_t seed)
{
	memset(v, 0, sizeof(*v));
	for (unsigned i = 0; i < 16; i++)
		for (unsigned j = 0; j < (has_avx ? 4u : 2u); j++)
			v->q[i][j] = seed * (i * 4 + j + 1) * 0x9e3779b97f4a7c15ull;
}

static struct vectors want, got;

static void check_vectors(const char *name)
{
	memset(&got, 0, sizeof(got));
	store_vectors(&got);
	check(!memcmp(&got, &want, sizeof(want)), name);
}

static void save(void *p)
{
	if (has_xsave)
		__asm__ volatile("xsave (%0)" : : "r"(p), "a"(7), "d"(0) : "memory");
	else
		__asm__ volatile("fxsave (%0)" : : "r"(p) : "memory");
}

static void restore(const void *p)
{
	if (has_xsave)
		__asm__ volatile("xrstor (%0)" : : "r"(p), "a"(7), "d"(0) : "memory");
	else
		__asm__ volatile("fxrstor (%0)" : : "r"(p) : "memory");
}

static void set_xcr0(void *v)
{
	__asm__ volatile("xsetbv" : : "c"(0), "a"((uint32_t)(uintptr_t)v), "d"(0));
}

static uint32_t get_xcr0(void)
{
	uint32_t a, d;

	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return a;
}

static void use_xgetbv(void *arg)
{
	(void)arg;
	(void)get_xcr0();
}

static void use_avx(void *arg)
{
	(void)arg;
	__asm__ volatile("vxorps %%ymm0, %%ymm0, %%ymm0" : : : "memory");
}

static void test_enable(void)
{
	struct cpuid c = cpuid(1, 0);

	has_xsave = c.c & 1 << 26;
	if (!has_xsave) {
		skip("XSAVE", "not shown");
		check_fault(catch (use_xgetbv, NULL), UD, 0, "no XGETBV");
		return;
	}
	check_fault(catch (use_xgetbv, NULL), UD, 0, "no XGETBV without OSXSAVE");
	check(!(c.c & 1 << 27), "CPUID.OSXSAVE is clear");
	write_cr4(read_cr4() | 1 << 18);
	check(cpuid(1, 0).c & 1 << 27, "CPUID.OSXSAVE follows CR4");
	check_eq(get_xcr0(), 1, "XCR0 after reset");
	uint32_t all = cpuid(0xd, 0).a;
	if (c.c & 1 << 28) {
		check_fault(catch (use_avx, NULL), UD, 0, "no AVX before XCR0 has it");
		check_fault(catch (set_xcr0, (void *)5), GP, 0, "#GP AVX without SSE");
	}
	check_fault(catch (set_xcr0, (void *)2), GP, 0, "#GP XCR0 without x87");
	check_fault(catch (set_xcr0, (void *)(uintptr_t)(all | 0x400)), GP, 0, "#GP XCR0 reserved bit");
	check_fault(catch (set_xcr0, (void *)(uintptr_t)(all & 7)), -1, 0, "XCR0 with all that is shown");
	has_avx = c.c & 1 << 28;
	check_eq(get_xcr0(), all & 7, "XCR0 reads back");
	if (has_avx)
		check(cpuid(0xd, 0).b >= 832 && cpuid(0xd, 2).a == 256 && cpuid(0xd, 2).b == 576,
		      "leaf 0DH: AVX at 576");
}

/* ---- over exceptions and interrupts ---- */

static volatile unsigned ticks;

static void on_int3(struct frame *f)
{
	(void)f;
	/* The handler uses the unit for something else, and puts it back. */
	static uint8_t mine[1024] __attribute__((aligned(64)));
	static struct vectors other;

	save(mine);
	fill(&other, 99);
	load_vectors(&other);
	__asm__ volatile("fninit; fldpi; fldz");
	restore(mine);
	ticks++;
}

static void test_exceptions(void)
{
	double x = 1.5, y = 0;

	fill(&want, 1);
	set_handler(BP, on_int3);
	load_vectors(&want);
	__asm__ volatile("fninit; fldl %0; fld1" : : "m"(x));
	for (unsigned i = 0; i < 20; i++)
		__asm__ volatile("int3" : : : "memory");
	check_vectors("vectors over 20 exceptions");
	__asm__ volatile("faddp; fstpl %0" : "=m"(y));
	check(*(uint64_t *)&y == 0x4004000000000000, "the x87 stack over 20 exceptions");
	set_handler(BP, NULL);
}

static void on_timer(struct frame *f)
{
	on_int3(f);
	lapic_eoi();
}

static void test_interrupts(void)
{
	uint64_t sum[2] = { 0, 0 };
	bool is_right = true;

	lapic_enable();
	set_handler(0x40, on_timer);
	ticks = 0;
	fill(&want, 2);
	load_vectors(&want);
	lapic_write(0x3e0, 3);
	lapic_write(0x320, 0x20040);
	lapic_write(0x380, 20000);
	sti();
	for (unsigned i = 0; i < 1000000 && ticks < 10; i++) {
		__asm__ volatile("movq %%xmm3, %0; paddq %%xmm4, %%xmm4; psubq %%xmm4, %%xmm4"
				 : "=r"(sum[0]));
		if (i == 0)
			sum[1] = sum[0];
		is_right &= sum[0] == sum[1];
		pause();
	}
	cli();
	lapic_write(0x320, 0x10000);
	check(ticks >= 10 && is_right, "registers over timer interrupts");
}

/* ---- two tasks that switch lazily, by CR0.TS and #NM ---- */

static unsigned running, owner;
static volatile unsigned faults;

static void on_nm(struct frame *f)
{
	(void)f;
	__asm__ volatile("clts");
	if (owner != running) {
		save(area[owner]);
		restore(area[running]);
		owner = running;
	}
	faults++;
}

static void test_lazy(void)
{
	struct vectors v[2];
	bool is_right = true;

	for (unsigned i = 0; i < 2; i++) {
		fill(&v[i], 10 + i);
		load_vectors(&v[i]);
		__asm__ volatile("fninit");
		for (unsigned k = 0; k <= i; k++)
			__asm__ volatile("fld1");
		save(area[i]);
	}
	owner = 1;
	set_handler(NM, on_nm);
	for (unsigned i = 0; i < 30; i++) {
		running = i % 3 % 2; /* 0 1 0 0 1 0 ... */
		write_cr0(read_cr0() | 8);
		want = v[running];
		memset(&got, 0, sizeof(got));
		store_vectors(&got);
		is_right &= !memcmp(&got, &want, sizeof(want));
		uint16_t sw;
		__asm__ volatile("fnstsw %0" : "=m"(sw));
		is_right &= (sw >> 11 & 7) == 7 - running;
		v[running].q[5][1] += i;
		load_vectors(&v[running]);
	}
	set_handler(NM, NULL);
	__asm__ volatile("clts");
	check(is_right, "lazy switching between two tasks");
	check_eq(faults, 30, "each use after TS faults once");
}

/* ---- forms of saving ---- */

static void test_forms(void)
{
	uint8_t *a = area[0];

	fill(&want, 5);
	load_vectors(&want);
	__asm__ volatile("fninit; fldpi; fld1");
	memset(a, 0xcc, 1024);
	__asm__ volatile("fxsave (%0)" : : "r"(a) : "memory");
	check(*(uint16_t *)a == 0x37f && a[4] == 0xc0, "FXSAVE: FCW and abridged tag");
	check(*(uint32_t *)(a + 24) == 0x1f80, "FXSAVE: MXCSR");
	check(!memcmp(a + 160, want.q[0], 16) && !memcmp(a + 160 + 15 * 16, want.q[15], 16),
	      "FXSAVE: XMM");
	check(a[32 + 9] == 0x3f && a[32 + 7] == 0x80, "FXSAVE: ST0 is 1.0");
	check(a[464] == 0xcc && a[511] == 0xcc, "FXSAVE leaves the software's bytes");
	if (!has_xsave)
		return;
	memset(a, 0, 1024);
	save(a);
	check_eq(*(uint64_t *)(a + 512) & 3, 3, "XSAVE: XSTATE_BV");
	/* XRSTOR of a component that is not there initializes it. */
	*(uint64_t *)(a + 512) = 1;
	restore(a);
	struct vectors v;
	memset(&v, 0xff, sizeof(v));
	store_vectors(&v);
	check(v.q[0][0] == 0 && v.q[15][1] == 0, "XRSTOR initializes SSE");
	*(uint64_t *)(a + 512) = 1 << 9;
	check_fault(catch ((void (*)(void *))(void *)restore, a), GP, 0,
		    "#GP XRSTOR: XSTATE_BV beyond XCR0");
	*(uint64_t *)(a + 512) = 3;
	a[512 + 16] = 1;
	check_fault(catch ((void (*)(void *))(void *)restore, a), GP, 0, "#GP XRSTOR: reserved header");
	a[512 + 16] = 0;
	*(uint32_t *)(a + 24) = 0xffff0000;
	check_fault(catch ((void (*)(void *))(void *)restore, a), GP, 0, "#GP XRSTOR: MXCSR");
	*(uint32_t *)(a + 24) = 0x1f80;
	check_fault(catch ((void (*)(void *))(void *)restore, a + 16), GP, 0, "#GP XRSTOR: misaligned");
	check_fault(catch ((void (*)(void *))(void *)restore, a), -1, 0, "XRSTOR");
	if (has_avx) {
		fill(&want, 6);
		load_vectors(&want);
		save(a);
		check(!memcmp(a + 576 + 16 * 7, &want.q[7][2], 16), "XSAVE: upper halves of YMM");
		__asm__ volatile("vzeroupper");
		restore(a);
		check_vectors("XRSTOR: YMM");
		__asm__ volatile("vzeroall");
		memset(&v, 0xff, sizeof(v));
		store_vectors(&v);
		check(v.q[3][0] == 0 && v.q[3][3] == 0, "VZEROALL");
		load_vectors(&want);
		__asm__ volatile("movaps %xmm1, %xmm0");
		store_vectors(&v);
		check(v.q[0][2] == want.q[0][2] && v.q[0][0] == want.q[1][0],
		      "legacy SSE keeps the upper half");
		__asm__ volatile("vmovaps %xmm1, %xmm0");
		store_vectors(&v);
		check(v.q[0][2] == 0 && v.q[0][0] == want.q[1][0], "VEX.128 clears the upper half");
	}
}

static void test_x87(void)
{
	uint16_t sw, cw = 0x27f;
	uint32_t env[7];
	long double t = 0;
	double d = 3;

	__asm__ volatile("fninit; fldl %1; fsqrt; fstpt %0" : "=m"(t) : "m"(d));
	check_eq(*(uint64_t *)&t, 0xddb3d742c265539e, "FSQRT in 64 bits of precision");
	__asm__ volatile("fninit; fldcw %2; fldl %1; fsqrt; fstpt %0" : "=m"(t) : "m"(d), "m"(cw));
	check_eq(*(uint64_t *)&t, 0xddb3d742c2655000, "FSQRT in 53 bits");
	__asm__ volatile("fninit; fldz; fld1; fcompp; fnstsw %0" : "=m"(sw));
	check_eq(sw & 0x4500, 0, "FCOMPP");
	__asm__ volatile("fninit; fldz; fldz; fldz; fldz; fldz; fldz; fldz; fldz; fld1; fnstsw %0"
			 : "=m"(sw));
	check((sw & 0x241) == 0x241, "stack overflow: IE, SF, C1");
	__asm__ volatile("fninit; fld1; fnstenv %0" : "=m"(env));
	check((env[0] & 0xffff) == 0x37f && (env[2] & 0xffff) == 0x3fff, "FNSTENV");
	/* FIP and FDP are the guest's, not the host's: 32-bit form of FNSTENV after a load from a known address */
	__asm__ volatile("fninit; fldl %1; fnstenv %0" : "=m"(env) : "m"(d));
	check(env[3] == 0 || (env[3] >= 0x100000 && env[3] < 0x200000),
	      "FIP is none but the guest's");
	__asm__ volatile("fninit; fldln2; f2xm1; fld1; faddp; fstpt %0" : "=m"(t));
	check((*(uint64_t *)&t >> 60) == 0xc, "F2XM1");
	__asm__ volatile("fninit");
}

void guest_main(void)
{
	test_enable();
	test_exceptions();
	test_interrupts();
	test_lazy();
	test_forms();
	test_x87();
}
