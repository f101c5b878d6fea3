/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Intel's and AMD's CPUs do differently, on any host: the differential test sees only the host's.
 *
 * Sources: SDM vol. 2 and APM vol. 3 where they say it; else seen with tests/difftest on Sapphire Rapids and Zen 3.
 */
#include "base/unit.h"

#include <string.h>

/* The engine's names of these are for its own files. */
#define memcpy	dt_memcpy_unused
#define memmove dt_memmove_unused
#define memset	dt_memset_unused
#define memcmp	dt_memcmp_unused
#include "engine/dbt/interp.h"
#include "engine/dbt/thunk.h"
#undef memcpy
#undef memmove
#undef memset
#undef memcmp

#include "guest.h"
#include "native.h"

#define END (ARENA_VA + ARENA_BYTES)	       /* the first byte that is not mapped */
#define RO  (ARENA_VA + ARENA_RW_PAGES * 4096) /* the first one that may not be written */

enum { PF_WRITE = 6, PF_WRITE_RO = 7 }; /* error codes of user mode */
enum { X_FSW = 2, X_MXCSR = 24, X_ST0 = 32, X_XMM = 160, X_BV = 512, X_YMM = 576 };

static struct dt_guest guest;
static struct x86_state *s;

static int setup(void **state)
{
	if (dt_guest_create(&guest, true) < 0)
		return -1;
	s = &guest.cpu->s;
	return 0;
}

static int teardown(void **state)
{
	dbt_fpu_to_mem(guest.cpu);
	dt_guest_destroy(&guest);
	return 0;
}

static void put_x(unsigned off, const void *p, unsigned n)
{
	memcpy(s->xsave + off, p, n);
}

static void put_x16(unsigned off, uint16_t v)
{
	put_x(off, &v, 2);
}

static uint32_t get_x32(unsigned off)
{
	uint32_t v;

	memcpy(&v, s->xsave + off, 4);
	return v;
}

/* Registers and memory as at the start of every case. */
static void start(bool is_amd, const uint8_t *code, unsigned len)
{
	dbt_fpu_to_mem(guest.cpu);
	guest.vm->model.is_amd = is_amd;
	memset(s->gpr, 0, sizeof(s->gpr));
	memset(s->xsave, 0, XSAVE_BYTES);
	put_x16(0, 0x37f);
	put_x16(X_MXCSR, 0x1f80);
	s->xsave[X_BV] = 7;
	s->rflags = 2;
	s->cr2 = 0;
	s->rip = CODE_VA + 0x800;
	memset(guest.arena, 0, ARENA_BYTES);
	dt_guest_put_code(&guest, 0x800, NULL, 16);
	dt_guest_put_code(&guest, 0x800, code, len);
}
#define START(is_amd, ...)                                                                         \
	start(is_amd, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* One instruction; its exception, or -1. */
static int step(void)
{
	guest.vector = -1;
	guest.error = 0;
	interp_one(guest.cpu);
	dbt_fpu_to_mem(guest.cpu);
	return guest.vector;
}

static bool host_lacks(enum cpu_feature f, const char *name)
{
	if (cpu_has(&guest.vm->model, f))
		return false;
	print_message("skipped: the host has no %s\n", name);
	return true;
}

static void test_rep_with_short_addresses(void **state)
{
	static const uint64_t high = 0x1234567800000000;

	for (int amd = 0; amd < 2; amd++) {
		uint64_t kept = amd ? high : 0;

		START(amd, 0x67, 0xf3, 0xa4); /* rep movsb, ecx = 0 */
		s->gpr[R_RCX] = s->gpr[R_RSI] = s->gpr[R_RDI] = high;
		assert_int_equal(step(), -1);
		assert_int_equal(s->gpr[R_RCX], kept);
		assert_int_equal(s->gpr[R_RSI], kept);
		assert_int_equal(s->gpr[R_RDI], kept);

		START(amd, 0x67, 0xf3, 0xac); /* rep lodsb */
		s->gpr[R_RCX] = s->gpr[R_RSI] = high;
		assert_int_equal(step(), -1);
		assert_int_equal(s->gpr[R_RCX], kept);
		assert_int_equal(s->gpr[R_RSI], high);
	}
}

static void test_repeated_compare_faults(void **state)
{
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0xf3, 0xa6); /* repe cmpsb: two are equal, the third is not there */
		s->gpr[R_RCX] = 5;
		s->gpr[R_RSI] = ARENA_VA;
		s->gpr[R_RDI] = END - 2;
		s->rflags |= FL_CF;
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(s->gpr[R_RCX], 3);
		assert_int_equal(s->rflags & FL_ARITH, amd ? FL_ZF | FL_PF : FL_CF);

		START(amd, 0xa6); /* both are not there */
		s->gpr[R_RSI] = END;
		s->gpr[R_RDI] = END + 1;
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(s->cr2, amd ? END : END + 1);
	}
}

/* LOOPNE, LOOPE and LOOP with F3 and F2: is the jump taken with ZF set? */
static void test_loops_with_rep(void **state)
{
	static const bool is_taken[2][3][2] = { { { false, false }, { true, true }, { true, true } },
						{ { true, false }, { true, false }, { true, true } } };

	for (int amd = 0; amd < 2; amd++)
		for (unsigned n = 0; n < 6; n++) {
			START(amd, n & 1 ? 0xf2 : 0xf3, (uint8_t)(0xe0 + n / 2), 0x10);
			s->gpr[R_RCX] = 2;
			s->rflags |= FL_ZF;
			assert_int_equal(step(), -1);
			assert_int_equal(s->gpr[R_RCX], 1);
			assert_int_equal(s->rip,
					 CODE_VA + 0x803 + (is_taken[amd][n / 2][n & 1] ? 0x10 : 0));
		}
}

static void test_decimal_flags(void **state)
{
	dt_guest_set_mode(&guest, 32);
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0x27); /* daa: 7F + 06 = 85 */
		s->gpr[R_RAX] = 0x7f;
		assert_int_equal(step(), -1);
		assert_int_equal(s->gpr[R_RAX], 0x85);
		assert_int_equal(s->rflags & FL_ARITH, FL_SF | FL_AF | (amd ? FL_OF : 0));

		START(amd, 0x2f); /* das: 80 - 06 = 7A */
		s->gpr[R_RAX] = 0x80;
		s->rflags |= FL_AF;
		assert_int_equal(step(), -1);
		assert_int_equal(s->gpr[R_RAX], 0x7a);
		assert_int_equal(s->rflags & FL_ARITH, FL_AF | (amd ? FL_OF : 0));

		START(amd, 0x37); /* aaa: 7FFA + 0106 = 8100 */
		s->gpr[R_RAX] = 0x7ffa;
		assert_int_equal(step(), -1);
		assert_int_equal(s->gpr[R_RAX], 0x8100);
		assert_int_equal(s->rflags & FL_ARITH,
				 FL_CF | FL_AF | FL_PF | (amd ? FL_SF | FL_OF : FL_ZF));
	}
}

static void test_bound(void **state)
{
	dt_guest_set_mode(&guest, 32);
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0x62, 0x06); /* bound eax, [esi]: the upper bound is not there */
		s->gpr[R_RAX] = 0xffffffff;
		s->gpr[R_RSI] = END - 4;
		assert_int_equal(step(), amd ? EXC_PF : EXC_BR);
	}
}

static void test_masked_stores(void **state)
{
	static const uint8_t all[16] = { [0 ... 15] = 0x80 };

	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0x66, 0x0f, 0xf7, 0xc1); /* maskmovdqu xmm0, xmm1 */
		s->gpr[R_RDI] = END - 8;
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(s->cr2, amd ? END - 8 : END);
		assert_int_equal(guest.error, amd ? PF_WRITE_RO : PF_WRITE);
	}
	if (host_lacks(CPUF_AVX2, "AVX2"))
		return;
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0xc4, 0xe2, 0x71, 0x8e, 0x06); /* vpmaskmovd [rsi], xmm1, xmm0 */
		s->gpr[R_RSI] = RO - 8;
		put_x(X_XMM + 16, all, 16);
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(s->cr2, amd ? RO : RO + 7);
		assert_int_equal(guest.error, PF_WRITE_RO);
	}
}

static void test_masked_loads_at_the_end(void **state)
{
	static const uint32_t third[4] = { 0, 0, 0x80000000 };

	if (host_lacks(CPUF_AVX2, "AVX2"))
		return;
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0x67, 0xc4, 0xe2, 0x71, 0x8c, 0x06); /* vpmaskmovd xmm0, xmm1, [esi] */
		s->gpr[R_RSI] = 0xfffffff8;
		put_x(X_XMM + 16, third, 16);
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(s->cr2, amd ? 0 : 0x100000000);
	}
}

static void test_gather_faults(void **state)
{
	static const uint32_t mask[4] = { 0x80000000, 0x80000000, 0, 0x90000000 },
			      index[4] = { 0, ARENA_BYTES }, junk = 0x01020304;

	if (host_lacks(CPUF_AVX2, "AVX2"))
		return;
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0xc4, 0xe2, 0x71, 0x90, 0x04, 0x16); /* vpgatherdd xmm0, [rsi+xmm2], xmm1 */
		s->gpr[R_RSI] = ARENA_VA;
		memcpy(guest.arena, &junk, 4);
		for (unsigned i = 0; i < 2; i++)
			put_x(X_YMM + 16 * i, &junk, 4);
		put_x(X_XMM + 16, mask, 16);
		put_x(X_XMM + 32, index, 16);
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(s->cr2, END);
		assert_int_equal(get_x32(X_XMM), junk); /* the first element is complete */
		assert_int_equal(get_x32(X_XMM + 16), 0);
		assert_int_equal(get_x32(X_XMM + 20), amd ? mask[1] : ~0u);
		assert_int_equal(get_x32(X_XMM + 24), 0);
		assert_int_equal(get_x32(X_XMM + 28), amd ? mask[3] : ~0u);
		assert_int_equal(get_x32(X_YMM), amd ? junk : 0);
		assert_int_equal(get_x32(X_YMM + 16), amd ? junk : 0);
	}
}

static void test_xsave_areas(void **state)
{
	for (int amd = 0; amd < 2; amd++) {
		/* Only the header is there, and nothing is asked for. */
		START(amd, 0x0f, 0xae, 0x26); /* xsave [rsi] */
		s->gpr[R_RSI] = ARENA_VA - 512;
		assert_int_equal(step(), amd ? EXC_PF : -1);

		START(amd, 0x0f, 0xae, 0x2e); /* xrstor [rsi] */
		s->gpr[R_RSI] = ARENA_VA - 512;
		assert_int_equal(step(), amd ? EXC_PF : -1);
		guest.arena[16] = 1; /* a reserved byte of the header */
		s->rip = CODE_VA + 0x800;
		assert_int_equal(step(), amd ? EXC_PF : EXC_GP);

		/* The compacted format is looked at before what it describes, the standard one after. */
		s->gpr[R_RAX] = 1;
		s->rip = CODE_VA + 0x800;
		assert_int_equal(step(), EXC_PF);
		guest.arena[15] = 0x80;
		s->rip = CODE_VA + 0x800;
		assert_int_equal(step(), amd ? EXC_PF : EXC_GP);
	}
}

static void test_work_before_stores(void **state)
{
	static const uint8_t snan[10] = { 1, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f };
	static const uint32_t third = 0x3eaaaaab;

	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0x0f, 0x7f, 0x06); /* movq [rsi], mm0 */
		s->gpr[R_RSI] = END;
		put_x16(X_FSW, 3 << 11);
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(get_x32(X_FSW) >> 11 & 7, amd ? 3 : 0);

		START(amd, 0xd9, 0x16); /* fst dword [rsi], invalid is unmasked */
		s->gpr[R_RSI] = END;
		put_x16(0, 0x37e);
		s->xsave[4] = 0xff;
		put_x(X_ST0, snan, 10);
		assert_int_equal(step(), amd ? EXC_PF : -1);
		assert_int_equal(!(s->xsave[X_FSW] & 0x80), amd);

		START(amd, 0xdb, 0x3e); /* fstp tbyte [rsi] */
		s->gpr[R_RSI] = RO - 8;
		s->xsave[4] = 0xff;
		put_x(X_ST0, snan, 10);
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(s->cr2, RO);
		assert_int_equal(guest.arena[RO - 8 - ARENA_VA], !amd);
		assert_int_equal(get_x32(X_FSW) >> 11 & 7, 0); /* not popped */
	}
	if (host_lacks(CPUF_F16C, "F16C"))
		return;
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0xc4, 0xe3, 0x79, 0x1d, 0x06, 0); /* vcvtps2ph [rsi], xmm0, 0 */
		s->gpr[R_RSI] = END;
		put_x(X_XMM, &third, 4);
		assert_int_equal(step(), EXC_PF);
		assert_int_equal(get_x32(X_MXCSR), amd ? 0x1f80 : 0x1fa0);
	}
}

static void test_operands(void **state)
{
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0x66, 0x63, 0x06); /* movsxd ax, [rsi] */
		s->gpr[R_RSI] = END - 2;
		assert_int_equal(step(), amd ? EXC_PF : -1);

		START(amd, 0xf3, 0x41, 0x90); /* xchg r8, rax; pause */
		s->gpr[R_RAX] = 1;
		assert_int_equal(step(), -1);
		assert_int_equal(s->gpr[R_R8], amd);
		assert_int_equal(s->rip, CODE_VA + 0x803);
	}
	if (host_lacks(CPUF_SHA, "SHA"))
		return;
	for (int amd = 0; amd < 2; amd++) {
		START(amd, 0x0f, 0x38, 0xc9, 0x06); /* sha1msg1 xmm0, [rsi] */
		s->gpr[R_RSI] = END + 1;
		assert_int_equal(step(), amd ? EXC_PF : EXC_GP);
	}
}

int main(void)
{
#define GUEST_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		GUEST_TEST(test_rep_with_short_addresses),
		GUEST_TEST(test_repeated_compare_faults),
		GUEST_TEST(test_loops_with_rep),
		GUEST_TEST(test_decimal_flags),
		GUEST_TEST(test_bound),
		GUEST_TEST(test_masked_stores),
		GUEST_TEST(test_masked_loads_at_the_end),
		GUEST_TEST(test_gather_faults),
		GUEST_TEST(test_xsave_areas),
		GUEST_TEST(test_work_before_stores),
		GUEST_TEST(test_operands),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
