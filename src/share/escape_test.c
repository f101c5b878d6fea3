/* SPDX-License-Identifier: Apache-2.0 */
/* Ways out of the folder, each tried: none leads there, with nothing but the server's own care, unconfined. */
#include "share/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static struct share_rig r;

static int set_up(void **state)
{
	share_rig_open(&r, false);
	return 0;
}

static int tear_down(void **state)
{
	assert_string_equal(share_host_read(&r, "secret"), "secret");
	share_rig_close(&r);
	return 0;
}

/* Above the folder is the folder. */
static void upwards(void **state)
{
	struct share_attr root, a;

	assert_int_equal(share_getattr(&r, SHARE_ROOT, &root), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, ".."), 0);
	assert_int_equal(share_getattr(&r, 2, &a), 0);
	assert_int_equal(a.qid_path, root.qid_path);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "../../../.."), 0);
	assert_int_equal(share_getattr(&r, 3, &a), 0);
	assert_int_equal(a.qid_path, root.qid_path);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 4, "../secret"), -ENOENT);
	assert_int_equal(share_walk(&r, 2, 4, "../../etc/passwd"), -ENOENT);
	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "d", 0755), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 5, "d/../d/../../d"), 0);
}

struct bytes_of_name {
	const char *name;
	uint16_t len;
};

static void put_name(const struct bytes_of_name *n)
{
	bytes_put_u16(&r.req, n->len);
	bytes_put(&r.req, n->name, n->len);
}

/* A message with one name, of type @type, about SHARE_ROOT. */
static int say(uint8_t type, const struct bytes_of_name *n)
{
	static const struct bytes_of_name good = { "good", 4 };

	share_begin(&r, type);
	bytes_put_u32(&r.req, SHARE_ROOT);
	switch (type) {
	case P9_TWALK:
		bytes_put_u32(&r.req, 77);
		bytes_put_u16(&r.req, 1);
		put_name(n);
		break;
	case P9_TLCREATE:
		put_name(n);
		bytes_put_u32(&r.req, O_RDWR);
		bytes_put_u32(&r.req, 0644);
		bytes_put_u32(&r.req, 0);
		break;
	case P9_TSYMLINK:
		put_name(n);
		put_name(&good);
		bytes_put_u32(&r.req, 0);
		break;
	case P9_TMKDIR:
		put_name(n);
		bytes_put_u32(&r.req, 0755);
		bytes_put_u32(&r.req, 0);
		break;
	case P9_TLINK:
	case P9_TRENAME:
		bytes_put_u32(&r.req, 2);
		put_name(n);
		break;
	case P9_TRENAMEAT:
		put_name(n);
		bytes_put_u32(&r.req, SHARE_ROOT);
		put_name(&good);
		break;
	case P9_TUNLINKAT:
		put_name(n);
		bytes_put_u32(&r.req, 0);
		break;
	}
	return share_call(&r);
}

/* Names that are paths, or end early, are none: in every message that takes one. */
static void names(void **state)
{
	static const uint8_t types[] = { P9_TWALK, P9_TLCREATE, P9_TSYMLINK,  P9_TMKDIR,
					 P9_TLINK, P9_TRENAME,	P9_TRENAMEAT, P9_TUNLINKAT };
	static char longest[300];
	memset(longest, 'n', sizeof(longest));
	const struct bytes_of_name bad[] = {
		{ "../secret", 9 }, { "/etc/passwd", 11 },
		{ "/", 1 },	    { "a/b", 3 },
		{ "a/", 2 },	    { ".", 1 },
		{ "..", 2 },	    { "", 0 },
		{ "a\0b", 3 },	    { "\0", 1 },
		{ "..\0", 3 },	    { "secret/..", 9 },
		{ longest, 300 },
	};

	share_host_write(&r, "share/file", "text");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "file"), 0);
	for (size_t t = 0; t < ARRAY_SIZE(types); t++)
		for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
			if (types[t] == P9_TWALK && bad[i].len == 2 && bad[i].name[0] == '.')
				continue; /* upwards() */
			assert_int_equal(say(types[t], &bad[i]),
					 bad[i].len == 300 ? -ENAMETOOLONG : -EINVAL);
		}
	/* The other name of Trenameat; and lengths that go on behind the message. */
	assert_int_equal(share_rename_at(&r, SHARE_ROOT, "file", SHARE_ROOT, "../stolen"), -EINVAL);
	share_begin(&r, P9_TUNLINKAT);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u16(&r.req, 60000);
	assert_int_equal(share_call(&r), -EINVAL);
	assert_string_equal(share_host_read(&r, "share/file"), "text");
}

/* A link that the guest, or somebody else, made is a file that says a text. */
static void links(void **state)
{
	struct stat before, after;
	struct share_attr a;

	assert_int_equal(share_symlink(&r, SHARE_ROOT, "up", ".."), 0);
	assert_int_equal(share_symlink(&r, SHARE_ROOT, "abs", r.dir), 0);
	assert_int_equal(share_symlink(&r, SHARE_ROOT, "file", "../secret"), 0);
	assert_int_equal(share_symlink(&r, SHARE_ROOT, "proc", "/proc/self/root"), 0);
	assert_int_equal(stat(share_path(&r, "secret"), &before), 0);
	static const char *const ways[] = { "up/secret", "abs/secret", "proc/etc/passwd", "up/share/up" };

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
		assert_int_equal(share_walk(&r, SHARE_ROOT, 9, ways[i]), -ENOENT);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "up"), 0);
	assert_int_equal(share_getattr(&r, 2, &a), 0);
	assert_int_equal(a.mode & S_IFMT, S_IFLNK);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "file"), 0);
	for (uint32_t fid = 2; fid <= 3; fid++) {
		assert_int_equal(share_open(&r, fid, O_RDONLY), -ELOOP);
		assert_int_equal(share_open(&r, fid, O_RDWR | O_TRUNC), -ELOOP);
		assert_int_equal(share_setattr(&r, fid, 1, 0777, 0, 0), -EOPNOTSUPP);
		assert_int_equal(share_setattr(&r, fid, 8, 0, 0, 0), -EINVAL);
		assert_int_equal(share_setattr(&r, fid, 0x1b0, 0, 0, 0), 0); /* its own times */
		assert_true(share_create(&r, fid, "planted", O_RDWR, 0644) < 0);
		assert_true(share_mkdir(&r, fid, "planted", 0755) < 0);
		assert_true(share_symlink(&r, fid, "planted", "x") < 0);
		assert_true(share_unlink_at(&r, fid, "secret", 0) < 0);
		assert_true(share_rename_at(&r, fid, "secret", SHARE_ROOT, "stolen") < 0);
		assert_true(share_rename_at(&r, SHARE_ROOT, "abs", fid, "planted") < 0);
	}
	/* By a name that exists as a link nothing is created where it leads. */
	assert_int_equal(share_walk(&r, SHARE_ROOT, 4, ""), 0);
	assert_true(share_create(&r, 4, "file", O_RDWR | O_TRUNC, 0644) < 0);
	/* Another name of a link is one of the link. */
	share_begin(&r, P9_TLINK);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u32(&r.req, 3);
	share_text(&r, "again");
	assert_int_equal(share_call(&r), 0);
	assert_int_equal(stat(share_path(&r, "secret"), &after), 0);
	assert_int_equal(after.st_nlink, 1);
	assert_int_equal(after.st_mode, before.st_mode);
	assert_int_equal(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
	assert_int_equal(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
	assert_int_equal(after.st_size, 6);
	assert_int_equal(access(share_path(&r, "planted"), F_OK), -1);
}

/* A directory that somebody on the host takes out of the folder is not in it any more. */
static void moved_out(void **state)
{
	struct share_attr a;

	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "dir", 0755), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "dir"), 0);
	assert_int_equal(rename(share_path(&r, "share/dir"), share_path(&r, "dir")), 0);
	share_host_write(&r, "dir/inside", "secret");
	assert_int_equal(share_getattr(&r, 2, &a), -ENOENT);
	assert_int_equal(share_walk(&r, 2, 3, "inside"), -ENOENT);
	assert_int_equal(share_walk(&r, 2, 3, "../secret"), -ENOENT);
	assert_int_equal(share_create(&r, 2, "planted", O_RDWR, 0644), -ENOENT);
}

/* ---- races ---- */

static volatile bool is_over;

/* The directory and a link to what is outside exchange their names, as fast as may be. */
static void *exchange(void *arg)
{
	const char *a = share_path(&r, "share/dir"), *b = share_path(&r, "share/link");

	while (!is_over)
		syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 2 /* RENAME_EXCHANGE */);
	return NULL;
}

static void races(void **state)
{
	struct stat before, after;
	pthread_t thread;

	assert_int_equal(stat(share_path(&r, "secret"), &before), 0);
	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "dir", 0755), 0);
	assert_int_equal(share_symlink(&r, SHARE_ROOT, "link", ".."), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "dir"), 0);
	is_over = false;
	assert_int_equal(pthread_create(&thread, NULL, exchange, NULL), 0);
	for (unsigned i = 0; i < 20000; i++) {
		assert_true(share_walk(&r, 2, 3, "secret") < 0);
		assert_true(share_unlink_at(&r, 2, "secret", 0) < 0);
		assert_true(share_rename_at(&r, 2, "secret", SHARE_ROOT, "stolen") < 0);
		/* In the directory it works, outside never. */
		if (share_walk(&r, 2, 4, "") == 0) {
			if (share_create(&r, 4, "mine", O_RDWR, 0644) == 0)
				assert_int_equal(share_setattr(&r, 4, 1, 0600, 0, 0), 0);
			assert_int_equal(share_clunk(&r, 4), 0);
		}
		if (share_walk(&r, 2, 5, "mine") == 0) {
			(void)share_setattr(&r, 5, 0x1b1, 0640, 0, 0);
			assert_int_equal(share_clunk(&r, 5), 0);
		}
		(void)share_unlink_at(&r, 2, "mine", 0);
	}
	is_over = true;
	pthread_join(thread, NULL);
	assert_int_equal(access(share_path(&r, "mine"), F_OK), -1);
	assert_int_equal(stat(share_path(&r, "secret"), &after), 0);
	assert_int_equal(after.st_mode, before.st_mode);
	assert_int_equal(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = { TEST(upwards), TEST(names), TEST(links),
					    TEST(moved_out), TEST(races) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
