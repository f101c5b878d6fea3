/* SPDX-License-Identifier: Apache-2.0 */
/* What options mean, and where a group is looked for, in a tree of plain files that looks like the kernel's. */
#include "base/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "ctl/cgroup.h"
#include "ctl/paths.h"

static char root[] = "/tmp/viv-cgroup-XXXXXX";

static void put(const char *dir, const char *file, const char *text)
{
	char path[300];

	snprintf(path, sizeof(path), "%s/%s", root, dir);
	assert_int_equal(paths_make(path, NULL), 0);
	snprintf(path, sizeof(path), "%s/%s/%s", root, dir, file);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static const char *text_of(const char *dir, const char *file)
{
	static char text[200];
	char path[300];

	snprintf(path, sizeof(path), "%s/%s/%s", root, dir, file);
	FILE *f = fopen(path, "r");

	assert_non_null(f);
	text[fread(text, 1, sizeof(text) - 1, f)] = 0;
	fclose(f);
	return text;
}

static void group(const char *dir, const char *has, const char *hands_on, const char *procs)
{
	put(dir, "cgroup.controllers", has);
	put(dir, "cgroup.subtree_control", hands_on);
	put(dir, "cgroup.procs", procs);
	put(dir, "cgroup.type", "domain\n");
}

static int set_up(void **state)
{
	strcpy(strrchr(root, '-'), "-XXXXXX");
	return !mkdtemp(root);
}

static int tear_down(void **state)
{
	return paths_remove_tree(root, NULL);
}

/* ---- options ---- */

static void test_cpu(void **state)
{
	static const struct {
		const char *text;
		uint64_t percent;
	} cases[] = { { "150%", 150 }, { "1.5", 150 }, { "2", 200 },	{ "0.5", 50 },
		      { ".25", 25 },   { "1%", 1 },    { "99.6%", 100 } };
	static const char *const bad[] = { "",	  "%",	 "0",	 "0%",	     "-1",
					   "1e3", "nan", "1x",	 "1%%",	     "1.2.3",
					   " 1",  "1 ",	 "0x10", "99999999", "200000%" };
	uint64_t v = 7;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		if (cgroup_parse_cpu(cases[i].text, &v) < 0)
			fail_msg("%s was not taken", cases[i].text);
		assert_int_equal(v, cases[i].percent);
	}
	v = 7;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (cgroup_parse_cpu(bad[i], &v) == 0)
			fail_msg("%s was taken", bad[i]);
	assert_int_equal(v, 7);
}

static void test_io(void **state)
{
	static const char *const bad[] = {
		"",	  "x",	      "0",	  "read",	  "read=", "read=0",
		"read=x", "reads=1M", "read=1M,", "read-iops=1M", "50M,x"
	};
	struct cgroup_limits l = { 0 };
	struct error err;

	assert_int_equal(cgroup_wanted(&l), 0);
	assert_int_equal(cgroup_parse_io("50M", &l, &err), 0);
	assert_true(l.read_bps == 50 * MIB && l.write_bps == 50 * MIB && !l.read_iops);
	assert_int_equal(cgroup_wanted(&l), CGROUP_IO);
	l = (struct cgroup_limits){ 0 };
	assert_int_equal(cgroup_parse_io("read=1M,write-iops=5,write=2M,read-iops=4", &l, &err), 0);
	assert_true(l.read_bps == MIB && l.write_bps == 2 * MIB && l.read_iops == 4 && l.write_iops == 5);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (cgroup_parse_io(bad[i], &l, &err) != -EINVAL)
			fail_msg("%s was taken", bad[i]);
}

/* ---- where ---- */

static void own_is(const char *self, const char *mounts, const char *want)
{
	_cleanup_free_ char *mount = NULL;
	_cleanup_free_ char *got = cgroup_own_path(self, mounts, &mount);

	if (!want) {
		assert_null(got);
		return;
	}
	assert_non_null(got);
	assert_string_equal(got, want);
}

static void test_own_path(void **state)
{
	static const char unified[] = "24 1 0:22 / /proc rw - proc proc rw\n30 24 0:26 / "
				      "/sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
	static const char hybrid[] =
		"31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n32 30 0:28 / "
		"/sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
	static const char part[] =
		"30 24 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

	own_is("0::/user.slice/a.scope\n", unified, "/sys/fs/cgroup/user.slice/a.scope");
	own_is("4:memory:/x\n0::/\n", hybrid, "/sys/fs/cgroup/unified");
	own_is("0::/docker/abc/d\n", part, "/sys/fs/cgroup/d");
	own_is("0::/docker/abc\n", part, "/sys/fs/cgroup");
	own_is("0::/docker/abcd\n", part, NULL);
	own_is("0::/../x\n", unified, NULL);
	own_is("0::/a (deleted)\n", unified, NULL);
	own_is("4:memory:/x\n", unified, NULL);
	own_is("0::/a\n", "", NULL);
	own_is("", unified, NULL);
	own_is("0::/a\n", "1 2 3 - cgroup2 x\ngarbage - cgroup2 y\n - cgroup2 \n", NULL);
}

static void found_is(const char *own, unsigned wanted, bool is_dry, const char *want, unsigned lacks)
{
	char path[300], expected[300];
	unsigned missing = 99;

	snprintf(path, sizeof(path), "%s/%s", root, own);
	snprintf(expected, sizeof(expected), "%s/%s", root, want ? want : "");
	_cleanup_free_ char *got = cgroup_find_parent(path, root, wanted, is_dry, &missing);

	if (!want) {
		assert_null(got);
		assert_int_equal(missing, lacks);
	} else {
		assert_non_null(got);
		assert_string_equal(got, expected);
	}
}

/* As systemd has it for a user: a scope with processes in it, below a slice that hands on two controllers. */
static void test_find_parent(void **state)
{
	group("app", "cpu io memory pids\n", "cpu memory\n", "");
	group("app/scope", "cpu memory\n", "", "1\n2\n");
	found_is("app/scope", CGROUP_CPU, true, "app", 0);
	found_is("app/scope", CGROUP_CPU | CGROUP_MEMORY, true, "app", 0);
	/* would, if it was asked; plain files show what was written */
	found_is("app/scope", CGROUP_IO, true, "app", 0);
	assert_string_equal(text_of("app", "cgroup.subtree_control"), "cpu memory\n");
	found_is("app/scope", CGROUP_IO, false, "app", 0);
	assert_string_equal(text_of("app", "cgroup.subtree_control"), "+io memory\n");
	/* one that is another user's is no way up */
	group("top/app", "cpu\n", "", "3\n");
	found_is("top/app", CGROUP_CPU, true, NULL, CGROUP_CPU);
	/* the nearest that has it all; the most that there is */
	group("a", "cpu io memory\n", "cpu io memory\n", "");
	group("a/b", "cpu\n", "cpu\n", "");
	group("a/b/c", "cpu\n", "", "4\n");
	found_is("a/b/c", CGROUP_CPU, true, "a/b", 0);
	found_is("a/b/c", CGROUP_CPU | CGROUP_IO, true, "a", 0);
	group("x", "cpu\n", "cpu\n", "");
	found_is("x", CGROUP_CPU | CGROUP_MEMORY | CGROUP_IO, true, NULL, CGROUP_MEMORY | CGROUP_IO);
}

static void test_make(void **state)
{
	struct cgroup_limits l = { .cpu_percent = 150, .mem_bytes = 2 * GIB };
	struct error err;
	char path[300];

	put("m", "cpu.max", "");
	put("m", "memory.max", "");
	snprintf(path, sizeof(path), "%s/m", root);
	assert_int_equal(cgroup_make(path, &l, &err), 0);
	assert_string_equal(text_of("m", "cpu.max"), "150000 100000");
	assert_string_equal(text_of("m", "memory.max"), "2147483648");
	/* no disk of the kernel's */
	l = (struct cgroup_limits){ .read_bps = MIB };
	assert_int_equal(cgroup_make(path, &l, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "--io-limit"));
	/* a controller that is not there */
	l = (struct cgroup_limits){ .cpu_percent = 50 };
	snprintf(path, sizeof(path), "%s/new", root);
	assert_true(cgroup_make(path, &l, &err) < 0);
	assert_non_null(strstr(err.text, "--cpu-limit"));
	assert_int_equal(access(path, F_OK), 0);
}

/* Without a limit nothing is asked for, whatever the host has. */
static void test_none(void **state)
{
	const struct cgroup_limits l = { .ndevices = 0 };
	struct cgroup g;
	struct error err;

	assert_int_equal(cgroup_enter(&g, &l, "m", &err), 0);
	assert_null(g.path);
	assert_int_equal(cgroup_add(&g, getpid(), &err), 0);
	cgroup_leave(&g);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_cpu),	     T(test_io),   T(test_own_path),
		T(test_find_parent), T(test_make), T(test_none),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
