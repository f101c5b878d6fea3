/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <string.h>

#include "base/bytes.h"
#include "engine/x86_state.h"
#include "state/field.h"

static void test_table(void **state)
{
	struct error err = { "" };

	if (state_desc_verify(&x86_state_desc, &err))
		fail_msg("%s", err.text);
}

static void test_reset(void **state)
{
	struct x86_state s;

	memset(&s, 0xff, sizeof(s));
	x86_state_reset(&s, true);
	assert_int_equal(s.seg[1].base + s.rip, 0xfffffff0);
	assert_int_equal(s.cr0, 0x60000010);
	assert_int_equal(s.rflags, 2);
	assert_int_equal(s.mp_state, MP_RUNNABLE);
	assert_int_equal(s.apic_base, 0xfee00900);
	assert_int_equal(s.cr4 | s.efer | s.tsc | s.lstar, 0);

	x86_state_reset(&s, false);
	assert_int_equal(s.mp_state, MP_WAIT_SIPI);
	assert_int_equal(s.apic_base, 0xfee00800);
	x86_state_sipi(&s, 0x9a);
	assert_int_equal(s.seg[1].selector, 0x9a00);
	assert_int_equal(s.seg[1].base, 0x9a000);
	assert_int_equal(s.rip, 0);
	assert_int_equal(s.mp_state, MP_RUNNABLE);
}

/* INIT keeps the FPU, MSRs, the APIC base and the cache bits; nothing else of the program. */
static void test_init(void **state)
{
	struct x86_state s;

	x86_state_reset(&s, true);
	s.cr0 = 0x80000033; /* CD and NW clear */
	s.efer = 0x501;
	s.cr3 = 0x1000;
	s.lstar = 0x1234;
	s.pat = 0x0606060606060606;
	s.xsave[40] = 0x5a;
	s.seg[3].base = 77;
	s.tsc_aux = 5;
	x86_state_init(&s, true);
	assert_int_equal(s.cr0, 0x10);
	assert_int_equal(s.efer, 0);
	assert_int_equal(s.cr3, 0);
	assert_int_equal(s.seg[3].base, 0);
	assert_int_equal(s.rip, 0xfff0);
	assert_int_equal(s.lstar, 0x1234);
	assert_int_equal(s.pat, 0x0606060606060606);
	assert_int_equal(s.xsave[40], 0x5a);
	assert_int_equal(s.tsc_aux, 5);
}

static int reload(const struct x86_state *in, struct x86_state *out)
{
	_cleanup_bytes_ struct bytes b = { 0 };
	struct byte_reader r;
	struct error err;

	assert_int_equal(state_save(&x86_state_desc, in, &b), 0);
	r = (struct byte_reader){ .data = b.data, .len = b.len };
	return state_load(&x86_state_desc, out, &r, &err);
}

static void test_round_trip(void **state)
{
	struct x86_state a, b;

	x86_state_reset(&a, true);
	for (unsigned i = 0; i < 16; i++)
		a.gpr[i] = 0x0101010101010101ULL * i;
	a.seg[2].selector = 0x2b;
	a.idtr.limit = 0xfff;
	a.exception_error = 0x10203040;
	memset(a.xsave + 160, 0xc3, 256);
	memset(&b, 0, sizeof(b));
	assert_int_equal(reload(&a, &b), 0);
	assert_memory_equal(&a, &b, sizeof(a));
}

/* Each of these would reach the host or the engine as a state no CPU can be in. */
static void test_impossible(void **state)
{
	struct x86_state good, s, out;

	x86_state_reset(&good, true);
	memset(&out, 0, sizeof(out));
#define REFUSED(change)                                                                            \
	do {                                                                                       \
		s = good;                                                                          \
		change;                                                                            \
		assert_true(reload(&s, &out) < 0);                                                 \
	} while (0)
	REFUSED(s.xsave[512] = 8);
	REFUSED(s.xsave[512 + 15] = 0x80);
	REFUSED(s.xsave[512 + 20] = 1);
	REFUSED(s.xsave[27] = 0x80);
	REFUSED(s.xcr0 = 5);
	REFUSED(s.xcr0 = 0);
	REFUSED(s.mp_state = 3);
	REFUSED(s.interrupt_shadow = 9);
	REFUSED(s.exception_vector = 32);
	REFUSED(s.cr0 |= X86_CR0_PG);
	REFUSED(s.efer |= X86_EFER_LMA);
	REFUSED(s.dr7 |= 1ULL << 40);
#undef REFUSED
	assert_int_equal(reload(&good, &out), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table),	   cmocka_unit_test(test_reset),
		cmocka_unit_test(test_init),	   cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_impossible),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
