/* SPDX-License-Identifier: Apache-2.0 */
/* Whoever comes first decides about a claim, and it stays so; the mark; offers come out as they went in. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "ctl/migrate_offer.h"
#include "ctl/paths.h"

static struct error err;
static char home[] = "/tmp/viv-claim-XXXXXX";

static void must(int r)
{
	if (r < 0)
		fail_msg("%s", err.text);
}

static int setup(void **state)
{
	if (!mkdtemp(home))
		return -1;
	setenv("VIVARIUM_HOME", home, 1);
	return 0;
}

static int teardown(void **state)
{
	return paths_remove_tree(home, &err);
}

static void test_claim(void **state)
{
	uint8_t id[MIGRATE_ID_BYTES];

	/* Taken first. */
	must(migrate_id_new(id, &err));
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_UNKNOWN);
	must(claim_open(id, &err));
	must(claim_take(id, &err));
	must(claim_sync(&err));
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_RAN);
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_RAN);
	assert_int_equal(claim_open(id, &err), -EEXIST);
	claim_forget(id);
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_UNKNOWN);
	/* Asked first. */
	must(migrate_id_new(id, &err));
	must(claim_open(id, &err));
	assert_int_equal(claim_open(id, &err), -EEXIST);
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_ABORTED);
	assert_int_equal(claim_take(id, &err), -ECANCELED);
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_ABORTED);
	claim_forget(id); /* of one that ran only */
	assert_int_equal(claim_ask(id, &err), MIGRATE_ANSWER_ABORTED);
}

static void test_ids(void **state)
{
	uint8_t id[MIGRATE_ID_BYTES], again[MIGRATE_ID_BYTES];
	char text[MIGRATE_ID_TEXT];

	must(migrate_id_new(id, &err));
	migrate_id_text(text, id);
	must(migrate_id_parse(again, text, &err));
	assert_memory_equal(id, again, sizeof(id));
	assert_int_equal(migrate_id_parse(again, "../../../../../../../../etc/pass", &err), -EINVAL);
	assert_int_equal(migrate_id_parse(again, text + 1, &err), -EINVAL);
}

static void test_mark(void **state)
{
	struct migrate_mark mark = { .id = "00112233445566778899aabbccddeeff", .to = "unix:/there" }, got;
	_cleanup_free_ char *dir = paths_vm("m", NULL, &err);

	must(paths_make(dir, &err));
	assert_int_equal(mark_get("m", &got, &err), -ENOENT);
	must(mark_put("m", &mark, &err));
	must(mark_get("m", &got, &err));
	assert_string_equal(got.id, mark.id);
	assert_string_equal(got.to, mark.to);
	assert_false(got.has_moved);
	mark.has_moved = true;
	must(mark_put("m", &mark, &err));
	must(mark_get("m", &got, &err));
	assert_true(got.has_moved);
	must(mark_remove("m", &err));
	assert_int_equal(mark_get("m", &got, &err), -ENOENT);
	must(mark_remove("m", &err));
}

static void make_offer(struct migrate_offer *o)
{
	must(migrate_offer_init(o, &err));
	must(migrate_id_new(o->id, &err));
	must(vmconfig_set(&o->config.name, "web", &err));
	must(vmconfig_set(&o->folder, "/home/x/vms/web", &err));
	must(vmconfig_add_disk(&o->config, "/home/x/vms/web/disk.raw", "raw", false, false, &err));
	o->mapping_bytes = o->config.mem_bytes + 256 * KIB;
	o->nlinks = 3;
	o->verifies = true;
	o->disks[0] = (struct migrate_file){ 1, 2, 1 * GIB };
	snprintf(o->viv, sizeof(o->viv), "1.2.3");
	snprintf(o->host_boot, sizeof(o->host_boot), "a-host");
}

static int parse(json_t *j)
{
	_cleanup_free_ char *text = json_dumps(j, 0);
	struct migrate_offer o;

	must(migrate_offer_init(&o, &err));
	int r = migrate_offer_parse(&o, text, strlen(text), &err);

	migrate_offer_free(&o);
	return r;
}

static void test_offer(void **state)
{
	struct migrate_offer o, got;

	make_offer(&o);
	json_t *j = migrate_offer_json(&o);
	_cleanup_free_ char *text = json_dumps(j, 0);

	must(migrate_offer_init(&got, &err));
	must(migrate_offer_parse(&got, text, strlen(text), &err));
	json_t *again = migrate_offer_json(&got);

	assert_true(json_equal(j, again));
	json_decref(again);
	migrate_offer_free(&got);
	/* Cut anywhere, and with any member missing or of another kind. */
	for (size_t n = 0; n < strlen(text); n++) {
		must(migrate_offer_init(&got, &err));
		assert_true(migrate_offer_parse(&got, text, n, &err) < 0);
		migrate_offer_free(&got);
	}
	const char *key;
	json_t *v;

	json_object_foreach(j, key, v)
	{
		json_t *copy = json_deep_copy(j);

		json_object_del(copy, key);
		assert_true(parse(copy) < 0);
		json_object_set_new(copy, key, json_null());
		assert_true(parse(copy) < 0);
		json_decref(copy);
	}
	json_object_set_new(j, "format", json_integer(MIGRATE_FORMAT + 1));
	assert_int_equal(parse(j), -ENOTSUP);
	json_decref(j);
	migrate_offer_free(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_claim),
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_mark),
		cmocka_unit_test(test_offer),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
