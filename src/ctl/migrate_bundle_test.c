/* SPDX-License-Identifier: Apache-2.0 */
/* What is no snapshot is refused with a sentence, and leaves nothing; tests/e2e/test_migrate.py sends real ones. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/unit.h"
#include "ctl/migrate_bundle.h"
#include "ctl/paths.h"

#define TOKEN "00112233445566778899aabbccddeeff"

static struct error err;
static char home[] = "/tmp/viv-bundle-XXXXXX";

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

static unsigned machines(void)
{
	char path[64];
	unsigned n = 0;

	snprintf(path, sizeof(path), "%s/vms", home);
	DIR *d = opendir(path);

	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

struct said {
	enum migrate_record type;
	const char *text;
};

/* What is answered to @n records and the end of the link: a REFUSE, whose text is in @why. */
static void refuse(const struct said *said, unsigned n, struct error *why)
{
	struct migrate_link source, target;
	struct migrate_header h;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(migrate_link_init(&source, fds[0], -1, true, &err), 0);
	assert_int_equal(migrate_link_init(&target, fds[1], -1, false, &err), 0);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(migrate_link_tell(&source, said[i].type, said[i].text,
						   strlen(said[i].text), &err),
				 0);
	shutdown(fds[0], SHUT_WR);
	assert_int_equal(migrate_link_receive(&target, &h, 1000, &err), 0);
	assert_true(bundle_serve(&target, &h, &err) < 0);
	migrate_link_close(&target);
	assert_int_equal(migrate_link_receive(&source, &h, 1000, &err), 0);
	assert_int_equal(h.type, MIGRATE_R_REFUSE);
	migrate_link_text(&source, &h, why);
	migrate_link_close(&source);
	assert_int_equal(machines(), 0);
}

#define BUNDLE(json)                                                                               \
	{                                                                                          \
		{ MIGRATE_R_BUNDLE, json }, { MIGRATE_R_BUNDLE_DATA, "no snapshot" },              \
		{                                                                                  \
			MIGRATE_R_BUNDLE_DATA, ""                                                  \
		}                                                                                  \
	}

static void test_refused(void **state)
{
	static const struct {
		struct said said[3];
		const char *says;
	} bad[] = {
		{ BUNDLE(""), "no snapshot" },
		{ BUNDLE("{}"), "no snapshot" },
		{ BUNDLE("{\"token\": \"" TOKEN "\", \"snapshot\": 3}"), "no snapshot" },
		{ BUNDLE("{\"token\": \"../../../../../../../../tmp\", \"snapshot\": \"s\"}"), "" },
		{ BUNDLE("{\"token\": \"" TOKEN "0\", \"snapshot\": \"s\"}"), "no snapshot" },
		{ BUNDLE("{\"token\": \"" TOKEN "\", \"snapshot\": \"../s\"}"),
		  "no name for a snapshot" },
		{ BUNDLE("{\"token\": \"" TOKEN "\", \"snapshot\": \"s\"}"),
		  "no file of viv snapshot export" },
		{ { { MIGRATE_R_BUNDLE, "{\"token\": \"" TOKEN "\", \"snapshot\": \"s\"}" },
		    { MIGRATE_R_HELLO, "{}" },
		    { MIGRATE_R_BUNDLE_DATA, "" } },
		  "no snapshot" },
	};
	struct error why;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		refuse(bad[i].said, 3, &why);
		if (!strstr(why.text, bad[i].says))
			fail_msg("%zu: %s", i, why.text);
	}
	/* The link ends in the middle. */
	refuse(bad[6].said, 2, &why);
}

static void test_nothing_came(void **state)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/vms/m", home);
	assert_int_equal(paths_make(path, &err), 0);
	assert_int_equal(bundle_adopt(TOKEN, "m", &err), -ENOENT);
	assert_int_equal(bundle_adopt("../m", "m", &err), -EINVAL);
	snprintf(path, sizeof(path), "%s/vms/incoming-x", home);
	assert_int_equal(paths_make(path, &err), 0);
	bundle_clean();
	assert_int_equal(machines(), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_nothing_came),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
