/* SPDX-License-Identifier: Apache-2.0 */
/* Whoever comes first decides about a claim, and it stays so; the mark; offers come out as they went in. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
	o->disks[0] = (struct migrate_file){ 1, 2, 1 * GIB, 5 * MIB, true };
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

static int accept_parse(struct migrate_offer *o, const char *text)
{
	o->disks[0].is_copied = o->kernel.is_copied = false;
	return migrate_accept_parse(o, text, strlen(text), &err);
}

static void test_accept(void **state)
{
	static const char *const bad[] = { "",
					   "[]",
					   "{}",
					   "{\"copy\": 1}",
					   "{\"copy\": [1]}",
					   "{\"copy\": [257]}",
					   "{\"copy\": [-1]}",
					   "{\"copy\": [\"0\"]}",
					   "{\"copy\": [4294967296]}",
					   "{\"copy\": [0.5]}",
					   "{\"copy\": [], \"copy\": []}" };
	struct migrate_offer o;

	make_offer(&o);
	must(vmconfig_set(&o.config.kernel, "/k", &err));
	o.kernel.is_copied = true;
	json_t *j = migrate_accept_json(&o);
	_cleanup_free_ char *text = json_dumps(j, 0);

	json_decref(j);
	must(accept_parse(&o, text));
	assert_true(o.disks[0].is_copied && o.kernel.is_copied);
	must(accept_parse(&o, "{\"copy\": []}"));
	assert_false(o.disks[0].is_copied || o.kernel.is_copied);
	/* What the machine does not have cannot be asked for. */
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(accept_parse(&o, bad[i]), -EPROTO);
	migrate_offer_free(&o);
}

/* The folder of a machine none of whose files are seen here: empty files in their place; nothing is left where there is no room. */
static void test_folder(void **state)
{
	_cleanup_free_ char *folder = paths_vm("web", NULL, &err);
	struct migrate_offer o, got;
	struct stat st;

	make_offer(&o);
	must(vmconfig_set(&o.config.kernel, "/etc/passwd", &err)); /* ours: not what the source has there */
	o.kernel.size_bytes = 12345;
	o.disks[0].is_copied = false; /* not the source's to say */
	int lock = migrate_make_folder(&o, &err);

	must(lock);
	close(lock);
	assert_true(!strncmp(o.config.kernel, folder, strlen(folder)));
	assert_true(!strncmp(o.config.disks[0].path, folder, strlen(folder)));
	assert_int_equal(stat(o.config.kernel, &st), 0);
	assert_int_equal(st.st_size, 12345);
	assert_int_equal(stat(o.config.disks[0].path, &st), 0);
	assert_int_equal(st.st_size, 1 * GIB);
	must(migrate_offer_init(&got, &err));
	must(migrate_load_incoming(&got, "web", &err));
	assert_true(got.kernel.is_copied && got.disks[0].is_copied && !got.initrd.is_copied);
	migrate_offer_free(&got);
	migrate_offer_free(&o);
	must(migrate_settle("web", &err));
	assert_int_equal(stat(folder, &st), -1);

	/* Storage that another host shares: the file is the same, and the source has left its token beside it. */
	_cleanup_free_ char *disk = paths_format(&err, "%s/d.raw", home);
	_cleanup_free_ char *token = migrate_token_path(disk, "00112233445566778899aabbccddeeff", &err);

	for (unsigned i = 0; i < 5; i++) {
		make_offer(&o);
		snprintf(o.token, sizeof(o.token), "00112233445566778899aabbccddeeff");
		must(vmconfig_set(&o.config.disks[0].path, disk, &err));
		must(paths_write_file(disk, "x", 1, &err));
		assert_int_equal(truncate(disk, 1 * MIB), 0);
		assert_int_equal(stat(disk, &st), 0);
		/* 1: no token; 2: another file; 3: it is a link; 4: copied all the same */
		o.disks[0] = (struct migrate_file){ .dev = 99,
						    .ino = st.st_ino + (i == 2),
						    .size_bytes = 1 * MIB };
		o.copies_all = i == 4;
		unlink(token);
		if (i == 3)
			assert_int_equal(symlink(disk, token), 0);
		else if (i != 1)
			must(paths_write_file(token, "", 0, &err));
		lock = migrate_make_folder(&o, &err);
		must(lock);
		close(lock);
		assert_int_equal(o.disks[0].is_copied, i > 0);
		assert_int_equal(!strcmp(o.config.disks[0].path, disk), i == 0);
		must(migrate_settle("web", &err));
		migrate_offer_free(&o);
	}

	/* A source elsewhere cannot have a file of this host's used as what a disk begins with. */
	for (unsigned i = 0; i < 4; i++) {
		make_offer(&o);
		o.disks[0].size_bytes = 1 * MIB;
		o.config.is_throwaway = i & 1;
		o.config.disks[0].is_snapshot = i & 2;
		must(vmconfig_set(&o.config.disks[0].path, "/etc/passwd", &err));
		if (!(i & 2))
			must(vmconfig_set(&o.config.disks[0].pristine, "/etc/passwd", &err));
		must(vmconfig_allow_backing(&o.config, "/etc", &err));
		lock = migrate_make_folder(&o, &err);
		assert_int_equal(lock >= 0, i & 1);
		if (lock >= 0) {
			assert_null(o.config.disks[0].pristine);
			assert_null(o.config.disks[0].backing[0]);
			assert_false(o.config.disks[0].is_snapshot);
			assert_non_null(strstr(o.config.disks[0].path, "disk-0.raw"));
			close(lock);
			must(migrate_settle("web", &err));
		}
		assert_int_equal(stat(folder, &st), -1);
		migrate_offer_free(&o);
	}

	make_offer(&o);
	o.disks[0].size_bytes = o.disks[0].used_bytes = 1ULL << 50;
	vmconfig_free(&o.config);
	must(vmconfig_init(&o.config, &err));
	must(vmconfig_set(&o.config.name, "web", &err));
	must(vmconfig_add_disk(&o.config, "/nowhere/d", "qcow2", false, false, &err));
	assert_true(migrate_make_folder(&o, &err) < 0);
	assert_int_equal(stat(folder, &st), -1);
	migrate_offer_free(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_claim),  cmocka_unit_test(test_ids),
		cmocka_unit_test(test_mark),   cmocka_unit_test(test_offer),
		cmocka_unit_test(test_accept), cmocka_unit_test(test_folder),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
