/* SPDX-License-Identifier: Apache-2.0 */
/* Paths, and machine.json. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/host.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "ctl/vmconfig.h"

static char home[] = "/tmp/viv-config-XXXXXX";

static int setup(void **state)
{
	(void)state;
	assert_non_null(mkdtemp(home));
	return setenv("VIVARIUM_HOME", home, 1);
}

static int teardown(void **state)
{
	(void)state;
	return paths_remove_tree(home, NULL);
}

static void test_names(void **state)
{
	static const char *const good[] = { "a", "A1", "debian-12.5_x", "0" };
	static const char *const bad[] = { "",	  ".",	 "..", "-x",  ".x",
					   "a/b", "a b", "ä",  "a\n", "../x" };
	char name[PATHS_NAME_MAX + 2];
	struct error err;

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(paths_check_name("a machine", good[i], &err), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(paths_check_name("a machine", bad[i], &err), -EINVAL);
	memset(name, 'x', sizeof(name));
	name[PATHS_NAME_MAX] = 0;
	assert_int_equal(paths_check_name("a machine", name, &err), 0);
	name[PATHS_NAME_MAX] = 'x';
	name[PATHS_NAME_MAX + 1] = 0;
	assert_int_equal(paths_check_name("a machine", name, &err), -EINVAL);
}

static void expect_path(char *path, const char *want)
{
	assert_non_null(path);
	assert_string_equal(path, want);
	free(path);
}

static void test_roots(void **state)
{
	struct error err;

	(void)state;
	setenv("VIVARIUM_HOME", "/v", 1);
	setenv("XDG_DATA_HOME", "/d", 1);
	setenv("XDG_RUNTIME_DIR", "/r", 1);
	setenv("HOME", "/h", 1);
	expect_path(paths_vm("a", "lock", &err), "/v/vms/a/lock");
	expect_path(paths_run("a", "control.sock", &err), "/v/run/a/control.sock");
	unsetenv("VIVARIUM_HOME");
	expect_path(paths_vm("a", NULL, &err), "/d/vivarium/vms/a");
	expect_path(paths_run("a", NULL, &err), "/r/vivarium/a");
	setenv("XDG_DATA_HOME", "relative", 1); /* invalid: ignored */
	expect_path(paths_image("a", "image.json", &err),
		    "/h/.local/share/vivarium/images/a/image.json");
	setenv("VIVARIUM_HOME", home, 1);
}

static void test_files(void **state)
{
	struct error err;
	char path[128], *text;
	struct stat st;
	size_t len;

	(void)state;
	snprintf(path, sizeof(path), "%s/a/b/c", home);
	assert_int_equal(paths_make(path, &err), 0);
	assert_int_equal(paths_make(path, &err), 0);
	snprintf(path, sizeof(path), "%s/a/b/c/file", home);
	assert_int_equal(paths_write_file(path, "hello", 5, &err), 0);
	assert_int_equal(paths_write_file(path, "hallo", 5, &err), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(paths_read_file(path, 5, &text, &len, &err), 0);
	assert_string_equal(text, "hallo");
	free(text);
	assert_int_equal(paths_read_file(path, 4, &text, &len, &err), -EFBIG);
	/* a tree goes, what a link in it points to stays */
	char link[128], kept[128];

	snprintf(kept, sizeof(kept), "%s/kept", home);
	snprintf(link, sizeof(link), "%s/a/link", home);
	assert_int_equal(paths_make(kept, &err), 0);
	assert_int_equal(symlink(kept, link), 0);
	snprintf(path, sizeof(path), "%s/a", home);
	assert_int_equal(paths_remove_tree(path, &err), 0);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(access(kept, F_OK), 0);
	assert_int_equal(paths_remove_tree(path, &err), 0);
}

static char watched[128];
static unsigned nunlinked;

static int see_unlink(int dir, const char *name, int flags)
{
	nunlinked++;
	assert_int_equal(access(watched, F_OK), -1);
	return host_calls_real.unlinkat(dir, name, flags);
}

/* Nobody finds a part of it under its name. */
static void test_removed_at_once(void **state)
{
	char path[160];
	struct error err;

	snprintf(watched, sizeof(watched), "%s/vms/web", home);
	assert_int_equal(paths_remove_at_once(watched, &err), 0); /* there is none */
	snprintf(path, sizeof(path), "%s/snapshots/s", watched);
	assert_int_equal(paths_make(path, &err), 0);
	for (unsigned i = 0; i < 3; i++) {
		static const char *const names[] = { "lock", "handover.json", "machine.json" };

		snprintf(path, sizeof(path), "%s/%s", watched, names[i]);
		assert_int_equal(paths_write_file(path, "x", 1, &err), 0);
	}
	host.unlinkat = see_unlink;
	assert_int_equal(paths_remove_at_once(watched, &err), 0);
	host = host_calls_real;
	assert_true(nunlinked >= 6);
	snprintf(path, sizeof(path), "%s/vms", home);
	assert_int_equal(rmdir(path), 0); /* nothing is left in it */
}

static void test_sockets(void **state)
{
	struct error err;
	char dir[600], path[700];
	struct stat st;

	(void)state;
	/* longer than a socket's address may be */
	snprintf(dir, sizeof(dir), "%s/%0150d/%0150d", home, 1, 2);
	assert_int_equal(paths_make(dir, &err), 0);
	snprintf(path, sizeof(path), "%s/control.sock", dir);
	assert_int_equal(socket_connect(path, &err), -ENOENT);
	int fd = socket_listen(path, &err);

	assert_true(fd >= 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	int conn = socket_connect(path, &err);

	assert_true(conn >= 0);
	assert_int_equal(socket_listen(path, &err), -EADDRINUSE);
	close(conn);
	close(fd);
	/* stale: nobody listens */
	assert_int_equal(socket_connect(path, &err), -ECONNREFUSED);
	fd = socket_listen(path, &err);
	assert_true(fd >= 0);
	close(fd);
}

static void test_config(void **state)
{
	struct vmconfig a, b;
	struct error err;

	(void)state;
	assert_int_equal(vmconfig_init(&a, &err), 0);
	assert_int_equal(vmconfig_set(&a.name, "m", &err), 0);
	assert_int_equal(vmconfig_set(&a.kernel, "/k \"x\" ü", &err), 0);
	a.cpus = 3;
	a.mem_bytes = 5 * GIB;
	a.no_reboot = true;
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
		assert_int_equal(vmconfig_add_disk(&a, "/disk", "raw", i & 1, i & 2, &err), 0);
	assert_int_equal(vmconfig_add_disk(&a, "/disk", "raw", true, true, &err), -EINVAL);
	assert_int_equal(vmconfig_add_forward(&a, "2222:22", &err), 0);
	assert_int_equal(vmconfig_set(&a.disks[2].pristine, "/before", &err), 0);
	assert_int_equal(vmconfig_set(&a.disks[2].pristine_format, "raw", &err), 0);
	char dir[128];

	snprintf(dir, sizeof(dir), "%s/vms/m", home);
	assert_int_equal(paths_make(dir, &err), 0);
	assert_int_equal(vmconfig_save(&a, &err), 0);
	assert_int_equal(vmconfig_init(&b, &err), 0);
	assert_int_equal(vmconfig_load(&b, "m", &err), 0);
	json_t *ja = vmconfig_to_json(&a), *jb = vmconfig_to_json(&b);

	assert_true(json_equal(ja, jb));
	assert_string_equal(b.kernel, "/k \"x\" ü");
	assert_int_equal(b.mem_bytes, 5 * GIB);
	assert_string_equal(b.disks[2].pristine, "/before");
	vmconfig_own_disk(&b.disks[2]);
	assert_null(b.disks[2].pristine);
	assert_true(b.no_reboot && b.disks[3].is_readonly && b.disks[3].is_snapshot);

	struct machine_config mc;

	vmconfig_machine(&b, &mc);
	assert_int_equal(mc.ndisks, MACHINE_MAX_DISKS);
	assert_string_equal(mc.disks[7].path, "/disk");
	json_decref(ja);
	json_decref(jb);
	vmconfig_free(&a);
	vmconfig_free(&b);
	assert_int_equal(vmconfig_init(&b, &err), 0);
	assert_int_equal(vmconfig_load(&b, "other", &err), -ENOENT);
	vmconfig_free(&b);
}

static void test_bad_config(void **state)
{
	static const char *const bad[] = {
		"[]",
		"{}", /* no name */
		"{\"name\": 5}",
		"{\"name\": \"../x\"}",
		"{\"name\": \"a\\u0000b\"}",
		"{\"name\": \"a\", \"cpus\": 0}",
		"{\"name\": \"a\", \"cpus\": -1}",
		"{\"name\": \"a\", \"cpus\": 1000000}",
		"{\"name\": \"a\", \"cpus\": \"2\"}",
		"{\"name\": \"a\", \"mem\": 4096}",
		"{\"name\": \"a\", \"mem\": 268435457}",
		"{\"name\": \"a\", \"no_reboot\": 1}",
		"{\"name\": \"a\", \"colour\": \"red\"}",
		"{\"name\": \"a\", \"disks\": {}}",
		"{\"name\": \"a\", \"disks\": [{}]}",
		"{\"name\": \"a\", \"disks\": "
		"[{\"path\":\"x\",\"format\":\"raw\",\"readonly\":true,\"snapshot\":true,\"x\":1}]"
		"}",
		"{\"name\": \"a\", \"forwards\": [5]}",
	};
	uint8_t mac[6];
	struct error err;

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		json_t *json = json_loads(bad[i], JSON_ALLOW_NUL, NULL);
		struct vmconfig c;

		assert_non_null(json);
		assert_int_equal(vmconfig_init(&c, &err), 0);
		err.text[0] = 0;
		assert_int_equal(vmconfig_from_json(&c, json, &err), -EINVAL);
		assert_true(err.text[0]);
		vmconfig_free(&c);
		json_decref(json);
	}
	assert_int_equal(vmconfig_parse_mac("52:54:00:aB:01:ff", mac, &err), 0);
	assert_memory_equal(mac, "\x52\x54\x00\xab\x01\xff", 6);
	assert_int_equal(vmconfig_parse_mac("53:54:00:aB:01:ff", mac, &err), -EINVAL);
	assert_int_equal(vmconfig_parse_mac("52:54:00:aB:01", mac, &err), -EINVAL);
	assert_int_equal(vmconfig_parse_mac("52-54-00-aB-01-ff", mac, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),  cmocka_unit_test(test_roots),
		cmocka_unit_test(test_files),  cmocka_unit_test(test_removed_at_once),
		cmocka_unit_test(test_files),  cmocka_unit_test(test_sockets),
		cmocka_unit_test(test_config), cmocka_unit_test(test_bad_config),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
