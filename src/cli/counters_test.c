/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/unit.h"
#include "base/util.h"
#include "cli/counters.h"

static json_t *parse(const char *text)
{
	json_error_t err;
	json_t *json = json_loads(text, 0, &err);

	if (!json)
		fail_msg("%s", err.text);
	return json;
}

static void test_since(void **state)
{
	json_t *before =
		parse("{\"counters\": [{\"a\": 5, \"code_bytes\": 10, \"gone\": 1, \"down\": 9}],"
		      " \"devices\": {\"pit\": 2}}");
	json_t *after = parse("{\"counters\": [{\"a\": 7, \"code_bytes\": 30, \"new\": 4, "
			      "\"down\": 3}, {\"a\": 1}],"
			      " \"devices\": {\"pit\": 2, \"rtc\": 8}, \"state\": \"running\"}");
	json_t *want = parse("{\"counters\": [{\"a\": 2, \"code_bytes\": 30, \"new\": 4, \"down\": "
			     "3}, {\"a\": 1}],"
			     " \"devices\": {\"pit\": 0, \"rtc\": 8}}");
	json_t *since = counters_since(before, after);

	(void)state;
	if (!json_equal(since, want))
		fail_msg("%s", json_dumps(since, 0));
	json_decref(before);
	json_decref(after);
	json_decref(want);
	json_decref(since);
}

static char *printed(const char *text)
{
	json_t *info = parse(text);
	char *out = NULL;
	size_t len;
	FILE *f = open_memstream(&out, &len);

	counters_print(info, f);
	fclose(f);
	json_decref(info);
	return out;
}

/* The position of a line that begins with @name and ends with @end; -1: there is none. */
static int line_of(const char *text, const char *name, const char *end)
{
	int n = 0;

	for (const char *p = text; *p; n++) {
		size_t len = strcspn(p, "\n"), skip = strspn(p, " ");

		if (strncmp(p + skip, name, strlen(name)) == 0 && len >= strlen(end) &&
		    strncmp(p + len - strlen(end), end, strlen(end)) == 0)
			return n;
		p += len + (p[len] == '\n');
	}
	return -1;
}

static void test_tables(void **state)
{
	char *text = printed(
		"{\"counters\": [{\"cpu_time_ns\": 500000000, \"entries\": 30, \"code_bytes\": 77,"
		" \"interpreted_IRET\": 1, \"interpreted_CPUID\": 4},"
		" {\"cpu_time_ns\": 1500000000, \"entries\": 10, \"interpreted_IRET\": 8}],"
		" \"devices\": {\"pit\": 2, \"rtc\": 8}}");

	(void)state;
	/* sums of both CPUs, and by the second of processor time; a level has no rate */
	assert_true(line_of(text, "entries", " 20") > 0);
	assert_non_null(strstr(text, " 40 "));
	assert_true(line_of(text, "code_bytes", " 77") > 0);
	/* the most frequent first */
	int iret = line_of(text, "IRET", ""), cpuid = line_of(text, "CPUID", "");
	int rtc = line_of(text, "rtc", ""), pit = line_of(text, "pit", "");

	assert_true(iret > 0 && iret < cpuid && cpuid < rtc && rtc < pit);
	free(text);
}

/* What comes from the machine's process is not trusted to have the right form. */
static void test_odd_answers(void **state)
{
	static const char *const odd[] = {
		"{}", "[]", "{\"counters\": 3, \"devices\": []}",
		"{\"counters\": [1, {\"a\": \"x\"}, {\"cpu_time_ns\": -5, \"b\": 1}]}"
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
		json_t *json = parse(odd[i]), *since = counters_since(json, json);

		assert_non_null(since);
		json_decref(since);
		json_decref(json);
		free(printed(odd[i]));
	}
	char *text = printed(odd[3]);

	assert_true(line_of(text, "b", " 1") > 0 || line_of(text, "b", "") > 0);
	assert_int_equal(line_of(text, "a", ""), -1);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_since),
		cmocka_unit_test(test_tables),
		cmocka_unit_test(test_odd_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
