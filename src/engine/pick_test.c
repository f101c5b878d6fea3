/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/pick.h"

static struct engine_probe hw, soft;

static void probe_hw(struct engine_probe *out)
{
	*out = hw;
}

static void probe_soft(struct engine_probe *out)
{
	*out = soft;
}

static const struct engine_ops ops_hw = { .name = "hw", .probe = probe_hw };
static const struct engine_ops ops_soft = { .name = "soft", .probe = probe_soft };
static const struct engine_ops *const list[] = { &ops_hw, &ops_soft, NULL };

static void set(struct engine_probe *p, bool is_usable, double mips, const char *reason)
{
	p->is_usable = is_usable;
	p->mips = mips;
	snprintf(p->reason, sizeof(p->reason), "%s", reason);
}

static void test_auto(void **state)
{
	char reason[256];
	struct error err = { "" };

	(void)state;
	set(&soft, true, 400, "runs everywhere");
	set(&hw, true, 3000, "3000 MIPS");
	assert_ptr_equal(engine_pick_from(list, "auto", reason, &err), &ops_hw);
	assert_string_equal(reason, "3000 MIPS");
	/* opens, but emulates ring 0 */
	set(&hw, true, 1.1, "1 MIPS in ring 0");
	assert_ptr_equal(engine_pick_from(list, "auto", reason, &err), &ops_soft);
	assert_string_equal(reason, "runs everywhere (hw: 1 MIPS in ring 0)");
	set(&hw, false, 0, "no /dev/hw");
	assert_ptr_equal(engine_pick_from(list, "auto", reason, &err), &ops_soft);
	assert_non_null(strstr(reason, "no /dev/hw"));
	/* the last resort may be slow */
	set(&soft, true, 10, "slow");
	assert_ptr_equal(engine_pick_from(list, "auto", reason, &err), &ops_soft);
	set(&soft, false, 0, "old CPU");
	assert_null(engine_pick_from(list, "auto", reason, &err));
	assert_non_null(strstr(err.text, "hw: no /dev/hw; soft: old CPU"));
}

static void test_named(void **state)
{
	char reason[256];
	struct error err = { "" };

	(void)state;
	set(&soft, true, 400, "runs everywhere");
	set(&hw, true, 1.1, "1 MIPS in ring 0");
	assert_ptr_equal(engine_pick_from(list, "soft", reason, &err), &ops_soft);
	assert_string_equal(reason, "asked for; runs everywhere");
	assert_ptr_equal(engine_pick_from(list, "hw", reason, &err), &ops_hw); /* slow, but wanted */
	set(&hw, false, 0, "no /dev/hw");
	assert_null(engine_pick_from(list, "hw", reason, &err));
	assert_non_null(strstr(err.text, "no /dev/hw"));
	assert_null(engine_pick_from(list, "qemu", reason, &err));
	assert_non_null(strstr(err.text, "auto, hw, soft"));
}

static void test_long_reasons(void **state)
{
	char reason[256], text[256];
	struct error err;

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	set(&hw, false, 0, text);
	set(&soft, true, 0, text);
	assert_ptr_equal(engine_pick_from(list, "auto", reason, &err), &ops_soft);
	assert_int_equal(strlen(reason), 255);
	set(&soft, false, 0, text);
	assert_null(engine_pick_from(list, "auto", reason, &err));
}

static void test_techniques(void **state)
{
	struct error err = { "" };
	uint64_t mask;

	assert_int_equal(engine_parse_techniques("returns", &mask, &err), 0);
	assert_int_equal(mask, ENGINE_RETURNS);
	assert_int_equal(engine_parse_techniques("coalescing,dead-flags", &mask, &err), 0);
	assert_int_equal(mask, ENGINE_COALESCING | ENGINE_DEAD_FLAGS);
	assert_int_equal(engine_parse_techniques("none", &mask, &err), 0);
	assert_int_equal(mask, 0);
	static const char *const bad[] = { "", "return", "returns,", "returns,,chaining",
					   "returns chaining" };

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(engine_parse_techniques(bad[i], &mask, &err), -EINVAL);
	assert_non_null(strstr(err.text, "branch-table"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_auto),
		cmocka_unit_test(test_named),
		cmocka_unit_test(test_long_reasons),
		cmocka_unit_test(test_techniques),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
