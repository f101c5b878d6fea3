/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <cpuid.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/util.h"
#include "engine/cpuid.h"

static const struct cpuid_env reset_env = { .apic_id = 3, .xcr0 = 1, .apic_enabled = true };

static struct cpu_model model(const char *name, unsigned vcpus)
{
	struct error err = { "" };
	struct cpu_model m;

	if (cpu_model_init(&m, name, vcpus, &err))
		fail_msg("%s", err.text);
	return m;
}

static struct cpuid_regs ask(const struct cpu_model *m, const struct cpuid_env *env, uint32_t leaf,
			     uint32_t subleaf)
{
	struct cpuid_regs r;

	cpuid_query(m, env, leaf, subleaf, &r);
	return r;
}

static const struct {
	const char *name;
	uint32_t leaf, subleaf;
	unsigned reg, bit;
} rows[] = {
#define X(name_, leaf_, subleaf_, reg_, bit_) { #name_, leaf_, subleaf_, reg_, bit_ },
#include "engine/cpu_features.def"
#undef X
};

static uint32_t reg_of(const struct cpuid_regs *r, unsigned reg)
{
	return reg == 0 ? r->eax : reg == 1 ? r->ebx : reg == 2 ? r->ecx : r->edx;
}

/* Every feature's bit stands in its leaf exactly if the model has it. */
static void test_feature_bits(void **state)
{
	static const char *const names[] = { "host", "x86-64-v2", "x86-64-v3" };

	for (unsigned n = 0; n < ARRAY_SIZE(names); n++) {
		struct cpu_model m = model(names[n], 2);
		uint32_t max = ask(&m, &reset_env, 0x80000000, 0).eax;

		for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
			struct cpuid_regs r = ask(&m, &reset_env, rows[i].leaf, rows[i].subleaf);

			if (rows[i].leaf & 0x80000000 && rows[i].leaf > max) {
				assert_false(m.has[i + 1]);
				continue;
			}
			if ((reg_of(&r, rows[i].reg) >> rows[i].bit & 1) != m.has[i + 1])
				fail_msg("%s: %s", names[n], rows[i].name);
		}
	}
}

/* What runs on the host is shown only if the host has it. */
static void test_native_features(void **state)
{
	struct cpu_model m = model("host", 1);
	static const uint8_t native[] = { CPUF_AVX, CPUF_AVX2, CPUF_FMA,   CPUF_BMI2,
					  CPUF_SHA, CPUF_AES,  CPUF_SSE42, CPUF_CX16,
					  CPUF_ADX, CPUF_GFNI, CPUF_VAES,  CPUF_RDRAND };

	for (unsigned i = 0; i < ARRAY_SIZE(native); i++) {
		unsigned row = native[i] - 1;
		struct cpuid_regs r = { 0 };

		if (!m.has[native[i]])
			continue;
		assert_true(__get_cpuid_count(rows[row].leaf, rows[row].subleaf, &r.eax, &r.ebx,
					      &r.ecx, &r.edx));
		if (!(reg_of(&r, rows[row].reg) >> rows[row].bit & 1))
			fail_msg("%s is not the host's", rows[row].name);
	}
}

static void test_not_shown(void **state)
{
	struct cpu_model m = model("host", 1);
	struct cpuid_regs r = ask(&m, &reset_env, 7, 0);

	assert_false(m.has[CPUF_SMAP]);
	assert_false(m.has[CPUF_MONITOR]);
	assert_int_equal(r.ebx & (1u << 14 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31), 0); /* MPX, AVX-512 */
	assert_int_equal(r.ecx & (1u << 3 | 1u << 7 | 1u << 16), 0); /* PKU, CET, LA57 */
	assert_int_equal(r.edx & 1u << 20, 0);			     /* CET IBT */
	r = ask(&m, &reset_env, 0x80000001, 0);
	assert_int_equal(r.ecx & 1u << 2, 0);			      /* SVM */
	assert_int_equal(ask(&m, &reset_env, 1, 0).ecx & 1u << 5, 0); /* VMX */
	assert_int_equal(ask(&m, &reset_env, 0x8000001f, 0).eax, 0);  /* SEV */
}

static void test_levels(void **state)
{
	struct cpu_model v2 = model("x86-64-v2", 1), v3 = model("x86-64-v3", 1);

	assert_true(v2.has[CPUF_SSE42] && v2.has[CPUF_CX16] && v2.has[CPUF_POPCNT]);
	assert_false(v2.has[CPUF_AVX] || v2.has[CPUF_XSAVE] || v2.has[CPUF_BMI1]);
	assert_int_equal(v2.xcr0_mask, 3);
	assert_int_equal(ask(&v2, &reset_env, 0xd, 0).eax, 0);
	assert_int_equal(v3.xcr0_mask, v3.has[CPUF_AVX] ? 7 : 3);
	assert_false(v3.has[CPUF_SHA]);
}

static void test_identity(void **state)
{
	struct cpu_model m = model("host", 1);
	struct cpuid_regs r = ask(&m, &reset_env, 0, 0);
	unsigned a, b, c, d;

	__cpuid(0, a, b, c, d);
	assert_int_equal(r.ebx, b);
	assert_int_equal(r.ecx, c);
	assert_int_equal(r.edx, d);
	__cpuid(1, a, b, c, d);
	assert_int_equal(ask(&m, &reset_env, 1, 0).eax, a & 0x0fff3fff);
	r = ask(&m, &reset_env, 0x80000002, 0);
	assert_memory_equal(&r, "Vivarium Virtual", 16);
	r = ask(&m, &reset_env, 0x40000000, 0);
	assert_memory_equal(&r.ebx, "KVMKVMKVM\0\0\0", 12); /* whose hypercalls it answers */
	assert_int_equal(ask(&m, &reset_env, 0x40000001, 0).eax, CPUID_KVM_FEATURES);
}

static void test_environment(void **state)
{
	struct cpu_model m = model("host", 1);
	struct cpuid_env env = reset_env;

	assert_true(ask(&m, &env, 1, 0).edx & 1u << 9);
	assert_false(ask(&m, &env, 1, 0).ecx & 1u << 27);
	assert_int_equal(ask(&m, &env, 1, 0).ebx >> 24, 3);
	env.apic_enabled = false;
	env.cr4 = 1u << 18;
	assert_false(ask(&m, &env, 1, 0).edx & 1u << 9);
	assert_true(ask(&m, &env, 1, 0).ecx & 1u << 27);
}

static void test_xsave_sizes(void **state)
{
	struct cpu_model m = model("host", 1);
	struct cpuid_env env = reset_env;

	if (!m.has[CPUF_AVX]) {
		print_message("this host has no AVX: sizes of its state not checked\n");
		return;
	}
	env.xcr0 = 3;
	assert_int_equal(ask(&m, &env, 0xd, 0).ebx, 576);
	assert_int_equal(ask(&m, &env, 0xd, 0).ecx, 832);
	env.xcr0 = 7;
	assert_int_equal(ask(&m, &env, 0xd, 0).ebx, 832);
	assert_int_equal(ask(&m, &env, 0xd, 0).eax, 7);
	assert_int_equal(ask(&m, &env, 0xd, 2).eax, 256);
	assert_int_equal(ask(&m, &env, 0xd, 2).ebx, 576);
	assert_int_equal(ask(&m, &env, 0xd, 3).eax, 0);
}

static void test_topology(void **state)
{
	struct cpu_model m = model("host", 6);
	struct cpuid_env env = { .apic_id = 5 };
	struct cpuid_regs r = ask(&m, &env, 0xb, 0);

	assert_int_equal(r.eax, 0);
	assert_int_equal(r.ebx, 1);
	assert_int_equal(r.ecx, 1u << 8);
	assert_int_equal(r.edx, 5);
	r = ask(&m, &env, 0xb, 1);
	assert_int_equal(r.eax, 3); /* ids 0..5 need three bits */
	assert_int_equal(r.ebx, 6);
	assert_int_equal(r.ecx, 2u << 8 | 1);
	r = ask(&m, &env, 0xb, 2);
	assert_int_equal(r.ebx, 0);
	assert_int_equal(r.ecx, 2);
	assert_int_equal(ask(&m, &env, 1, 0).ebx >> 16 & 0xff, 6);
	assert_true(ask(&m, &env, 1, 0).edx & 1u << 28);
	m = model("host", 1);
	assert_false(ask(&m, &env, 1, 0).edx & 1u << 28);
}

/* Leaf 15H on Intel tells the TSC exactly; the vendor rule for leaves that do not exist. */
static void test_vendor_rules(void **state)
{
	struct cpu_model m = model("host", 1);
	struct cpuid_regs r;

	m.tsc_khz = 2794567;
	m.is_amd = false;
	r = ask(&m, &reset_env, 0x15, 0);
	assert_int_equal((uint64_t)r.ecx * r.ebx / r.eax, 2794567000ULL);
	r = ask(&m, &reset_env, 0x12345, 0);
	assert_int_equal(r.eax, 2794); /* as leaf 16H */
	m.is_amd = true;
	r = ask(&m, &reset_env, 0x12345, 0);
	assert_int_equal(r.eax | r.ebx | r.ecx | r.edx, 0);
	assert_int_equal(ask(&m, &reset_env, 0x15, 0).eax, 0);
	r = ask(&m, &reset_env, 0xc0000000, 0);
	assert_int_equal(r.eax | r.ebx | r.ecx | r.edx, 0);
}

static void test_bad_arguments(void **state)
{
	struct error err = { "" };
	struct cpu_model m;

	assert_int_equal(cpu_model_init(&m, "pentium", 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "x86-64-v3"));
	assert_int_equal(cpu_model_init(&m, "host", 0, &err), -EINVAL);
	assert_int_equal(cpu_model_init(&m, "host", 256, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_feature_bits), cmocka_unit_test(test_native_features),
		cmocka_unit_test(test_not_shown),    cmocka_unit_test(test_levels),
		cmocka_unit_test(test_identity),     cmocka_unit_test(test_environment),
		cmocka_unit_test(test_xsave_sizes),  cmocka_unit_test(test_topology),
		cmocka_unit_test(test_vendor_rules), cmocka_unit_test(test_bad_arguments),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
