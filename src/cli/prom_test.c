/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/unit.h"
#include "base/util.h"
#include "cli/prom.h"

static json_t *parse(const char *text)
{
	json_error_t err;
	json_t *json = json_loads(text, 0, &err);

	if (!json)
		fail_msg("%s", err.text);
	return json;
}

/* What is printed for machines "a" and "b" that answered so; NULL: no answer. */
static char *printed(const char *a, const char *b)
{
	struct prom_machine m[] = { { "a", a ? parse(a) : NULL, a ? 4096 : -1 },
				    { "b", b ? parse(b) : NULL, -1 } };
	char *out = NULL;
	size_t len;
	FILE *f = open_memstream(&out, &len);

	prom_print(m, ARRAY_SIZE(m), f);
	fclose(f);
	json_decref(m[0].info);
	json_decref(m[1].info);
	return out;
}

static void expect_line(const char *text, const char *line)
{
	const char *p = strstr(text, line);

	if (!p || (p != text && p[-1] != '\n') || p[strlen(line)] != '\n')
		fail_msg("no line %s in\n%s", line, text);
}

static void expect_none(const char *text, const char *part)
{
	if (strstr(text, part))
		fail_msg("%s is in\n%s", part, text);
}

static void test_samples(void **state)
{
	char *text = printed(
		"{\"state\": \"running\", \"engine\": \"dbt\", \"cpu\": \"host\", \"cpus\": 2, "
		"\"clock_ns\": 1000000001,"
		" \"counters\": [{\"cpu_time_ns\": 2500000000, \"exits_pio\": 3, \"translations\": "
		"5, \"code_bytes\": 9},"
		"                {\"cpu_time_ns\": 7, \"exits_pio\": 4, \"translations\": 6}],"
		" \"disk_counters\": [{\"reads\": 1, \"read_bytes\": 512}, {\"reads\": 2}],"
		" \"card_counters\": [{\"rx_bytes\": 60, \"tx_bytes\": 70}],"
		" \"process\": {\"major_faults\": 8}, \"devices\": {\"pit\": 12}}",
		"{\"state\": \"paused\", \"counters\": [{\"exits_pio\": 9}]}");

	expect_line(text, "viv_vm_up{vm=\"a\"} 1");
	expect_line(text, "viv_vm_up{vm=\"b\"} 1");
	expect_line(text, "viv_vm_paused{vm=\"a\"} 0");
	expect_line(text, "viv_vm_paused{vm=\"b\"} 1");
	expect_line(text, "viv_vm_info{vm=\"a\",engine=\"dbt\",cpu=\"host\"} 1");
	expect_line(text, "viv_vm_process_resident_bytes{vm=\"a\"} 4096");
	expect_line(text, "viv_vm_cpus{vm=\"a\"} 2");
	expect_line(text, "viv_vm_clock_seconds{vm=\"a\"} 1.000000001");
	expect_line(text, "viv_vm_vcpu_cpu_seconds_total{vm=\"a\",vcpu=\"0\"} 2.500000000");
	expect_line(text, "viv_vm_vcpu_cpu_seconds_total{vm=\"a\",vcpu=\"1\"} 0.000000007");
	expect_line(text, "viv_vm_vcpu_exits_total{vm=\"a\",vcpu=\"1\",kind=\"pio\"} 4");
	expect_line(text, "viv_vm_vcpu_exits_total{vm=\"b\",vcpu=\"0\",kind=\"pio\"} 9");
	expect_line(text, "viv_vm_dbt_translated_blocks_total{vm=\"a\"} 11");
	expect_line(text, "viv_vm_dbt_code_bytes{vm=\"a\"} 9");
	expect_line(text, "viv_vm_disk_operations_total{vm=\"a\",disk=\"1\",operation=\"read\"} 2");
	expect_line(text, "viv_vm_disk_bytes_total{vm=\"a\",disk=\"0\",operation=\"read\"} 512");
	expect_line(text,
		    "viv_vm_network_bytes_total{vm=\"a\",card=\"0\",direction=\"receive\"} 60");
	expect_line(text,
		    "viv_vm_network_bytes_total{vm=\"a\",card=\"0\",direction=\"transmit\"} 70");
	expect_line(text, "viv_vm_process_page_faults_total{vm=\"a\",severity=\"major\"} 8");
	expect_line(text, "viv_vm_device_accesses_total{vm=\"a\",device=\"pit\"} 12");
	/* One header a metric, before both machines' samples; none for what nobody has. */
	const char *head = strstr(text, "# TYPE viv_vm_vcpu_exits_total counter\n");

	assert_non_null(head);
	assert_null(strstr(head + 1, "# TYPE viv_vm_vcpu_exits_total"));
	assert_true(head < strstr(text, "viv_vm_vcpu_exits_total{vm=\"a\""));
	expect_none(text, "viv_vm_disk_errors_total");
	free(text);
}

/* Label values and help texts: \, " and the end of a line are escaped. */
static void test_escaping(void **state)
{
	char *text = printed("{\"engine\": \"a\\\\b\\\"c\\nd\", \"cpu\": \"\xc3\xa9\"}", NULL);

	expect_line(text, "viv_vm_info{vm=\"a\",engine=\"a\\\\b\\\"c\\nd\",cpu=\"\xc3\xa9\"} 1");
	expect_line(text, "viv_vm_up{vm=\"b\"} 0");
	free(text);
}

/* What comes from a machine's process is not trusted to have the right form. */
static void test_odd_answers(void **state)
{
	static const char *const odd[] = {
		"[]",
		"{\"counters\": 3, \"devices\": [], \"process\": 1, \"disk_counters\": {}, "
		"\"card_counters\": \"x\"}",
		"{\"state\": 1, \"engine\": [], \"cpu\": null, \"cpus\": \"2\", \"mem\": 1.5, "
		"\"clock_ns\": -1}",
		"{\"counters\": [1, null, {\"translations\": \"x\", \"exits_pio\": -5}], "
		"\"devices\": {\"pit\": -1, \"rtc\": {}}}",
		"{\"counters\": [{\"translations\": 9223372036854775807}, {\"translations\": 1}]}", /* no sum */
	};

	for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
		char *text = printed(odd[i], NULL);

		expect_line(text, "viv_vm_up{vm=\"a\"} 1");
		for (const char *p = text; *p; p += strcspn(p, "\n") + 1) {
			if (*p != '#' && strncmp(p, "viv_vm_up{", 10) != 0 &&
			    strncmp(p, "viv_vm_process_resident_bytes{", 30) != 0)
				fail_msg("answer %zu gives %s", i, p);
		}
		free(text);
	}
}

static char *printed_labs(const char *a, const char *b)
{
	json_t *labs[] = { parse(a), parse(b) };
	char *out = NULL;
	size_t len;
	FILE *f = open_memstream(&out, &len);

	prom_print_labs(labs, ARRAY_SIZE(labs), f);
	fclose(f);
	json_decref(labs[0]);
	json_decref(labs[1]);
	return out;
}

static void test_labs(void **state)
{
	char *text =
		printed_labs("{\"lab\": \"shop\", \"rules\": [{\"id\": 3, \"action\": \"deny\", "
			     "\"rule\": \"a.* -> \\\"b\\\"\", \"frames\": 7, \"flows\": 0}],"
			     " \"cards\": [{\"card\": \"app.db\", \"dropped\": 1, \"lost\": 2, "
			     "\"denied\": {\"rule\": 7, \"spoofed-ip\": 4}}]}",
			     "{\"lab\": \"other\", \"rules\": [{\"id\": 1, \"action\": \"allow\", "
			     "\"rule\": \"x\", \"frames\": 9, \"flows\": 5}], \"cards\": []}");

	expect_line(text, "viv_lab_rule_frames_total{lab=\"shop\",id=\"3\",action=\"deny\",rule="
			  "\"a.* -> \\\"b\\\"\"} 7");
	expect_line(
		text,
		"viv_lab_rule_flows_total{lab=\"other\",id=\"1\",action=\"allow\",rule=\"x\"} 5");
	expect_line(text, "viv_lab_card_denied_frames_total{lab=\"shop\",card=\"app.db\",reason="
			  "\"spoofed-ip\"} 4");
	expect_line(
		text,
		"viv_lab_card_denied_frames_total{lab=\"shop\",card=\"app.db\",reason=\"full\"} 1");
	expect_line(text, "viv_lab_card_denied_frames_total{lab=\"shop\",card=\"app.db\",reason="
			  "\"fault\"} 2");
	free(text);
	text = printed_labs("[]", "{\"lab\": 1, \"rules\": [1, {}, {\"id\": -1}], \"cards\": "
				  "[null, {\"card\": \"x\", \"denied\": [1]}]}");
	assert_string_equal(text, "");
	free(text);
}

static void test_migration(void **state)
{
	char *text = printed("{\"migration\": {\"dirty_bytes_per_s\": 4096, \"sent_bytes\": 5, "
			     "\"pages_left\": 6, \"throttle_percent\": 7}}",
			     "{}");

	expect_line(text, "viv_vm_migration_dirty_bytes_per_second{vm=\"a\"} 4096");
	expect_line(text, "viv_vm_migration_left_pages{vm=\"a\"} 6");
	expect_none(text, "viv_vm_migration_sent_bytes{vm=\"b\"");
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_samples),	    cmocka_unit_test(test_escaping),
		cmocka_unit_test(test_odd_answers), cmocka_unit_test(test_labs),
		cmocka_unit_test(test_migration),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
