/* SPDX-License-Identifier: Apache-2.0 */
/* What the server does for a guest that means well; and that what it refuses is refused. */
#include "share/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "share/server_int.h"

static struct share_rig r;

static int set_up(void **state)
{
	share_rig_open(&r, false);
	return 0;
}

static int set_up_readonly(void **state)
{
	share_rig_open(&r, false);
	share_host_write(&r, "share/file", "text");
	share_rig_serve(&r, true);
	share_rig_attach(&r, 65536);
	return 0;
}

static int tear_down(void **state)
{
	share_rig_close(&r);
	return 0;
}

static void version(void **state)
{
	share_begin(&r, P9_TVERSION);
	bytes_put_u32(&r.req, 8192);
	share_text(&r, "9P2000.u");
	assert_int_equal(share_call(&r), 0);
	char text[16];

	assert_int_equal(bytes_get_u32(&r.in), 8192);
	assert_int_equal(p9_get_text(&r.in, text, sizeof(text)), 0);
	assert_string_equal(text, "unknown");
	/* Without one that both speak nothing is done; nor with messages that are too short for any. */
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, ""), -EPROTO);
	share_begin(&r, P9_TVERSION);
	bytes_put_u32(&r.req, 100);
	share_text(&r, "9P2000.L");
	assert_int_equal(share_call(&r), -EMSGSIZE);
	share_rig_attach(&r, 4096);
	share_rig_attach(&r, 1 << 30);
	assert_int_equal(share_server_fids(r.s), 1);
}

static void files(void **state)
{
	struct share_attr a;

	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, ""), 0);
	assert_int_equal(share_create(&r, 2, "file", O_RDWR | O_EXCL, 0640), 0);
	assert_int_equal(share_write(&r, 2, 0, "hello"), 0);
	assert_int_equal(share_write(&r, 2, 5, " world"), 0);
	assert_string_equal(share_read(&r, 2, 6), "world");
	assert_string_equal(share_host_read(&r, "share/file"), "hello world");
	assert_int_equal(share_getattr(&r, 2, &a), 0);
	assert_int_equal(a.size, 11);
	assert_int_equal(a.mode, S_IFREG | 0640);
	assert_int_equal(a.uid, getuid());
	share_begin(&r, P9_TFSYNC);
	bytes_put_u32(&r.req, 2);
	bytes_put_u32(&r.req, 1);
	assert_int_equal(share_call(&r), 0);
	assert_int_equal(share_clunk(&r, 2), 0);
	assert_int_equal(share_clunk(&r, 2), -EBADF);
	/* It exists now. */
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, ""), 0);
	assert_int_equal(share_create(&r, 2, "file", O_RDWR | O_EXCL, 0640), -EEXIST);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "file"), 0);
	assert_int_equal(share_open(&r, 3, O_RDONLY), 0);
	assert_int_equal(share_open(&r, 3, O_RDONLY), -EINVAL);
	assert_int_equal(share_write(&r, 3, 0, "x"), -EBADF);
	assert_string_equal(share_read(&r, 3, 100), "");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 4, "file"), 0);
	assert_int_equal(share_open(&r, 4, O_WRONLY | O_TRUNC), 0);
	assert_string_equal(share_host_read(&r, "share/file"), "");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 5, "file/below"), -ENOENT);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 5, "nothing"), -ENOENT);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "file"), -EEXIST);
}

static void directories(void **state)
{
	char name[16];

	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "dir", 0755), 0);
	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "dir", 0755), -EEXIST);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "dir"), 0);
	for (unsigned i = 0; i < 300; i++) {
		snprintf(name, sizeof(name), "share/dir/%03u", i);
		share_host_write(&r, name, "x");
	}
	assert_int_equal(share_walk(&r, 2, 3, ""), 0);
	assert_int_equal(share_open(&r, 3, O_RDONLY | O_DIRECTORY), 0);
	const char *all = share_list(&r, 3, 65000);

	assert_int_equal(strlen(all), 2 + 3 + 300 * 4);
	assert_int_equal(strncmp(all, ". .. 000 001 ", 13), 0);
	char *copy = strdup(all);

	/* The same in small pieces; nothing is given in too little room, which would look like the end. */
	assert_string_equal(share_list(&r, 3, 100), copy);
	free(copy);
	share_begin(&r, P9_TREADDIR);
	bytes_put_u32(&r.req, 3);
	bytes_put_u64(&r.req, 0);
	bytes_put_u32(&r.req, 10);
	assert_int_equal(share_call(&r), -EINVAL);
	assert_string_equal(share_read(&r, 3, 0), "-21"); /* EISDIR */
	assert_int_equal(share_walk(&r, SHARE_ROOT, 4, "dir"), 0);
	assert_int_equal(share_open(&r, 4, O_RDWR), -EISDIR);
	assert_int_equal(share_unlink_at(&r, SHARE_ROOT, "dir", AT_REMOVEDIR), -ENOTEMPTY);
	assert_int_equal(share_unlink_at(&r, 2, "000", AT_REMOVEDIR), -ENOTDIR);
	assert_int_equal(share_unlink_at(&r, 2, "000", 0), 0);
	assert_int_equal(share_unlink_at(&r, 2, "000", 0), -ENOENT);
	assert_int_equal(share_unlink_at(&r, 2, "001", 1), -EINVAL);
}

/* v9fs asks for the bit below a folder that has it (fs/9p/vfs_inode_dotl.c), as the host's kernel would give it anyway. */
static void directories_with_a_group(void **state)
{
	struct share_attr a;

	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "dir", 0755), 0);
	assert_int_equal(chmod(share_path(&r, "share/dir"), 02755), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "dir"), 0);
	assert_int_equal(share_mkdir(&r, 2, "below", S_IFDIR | 02750), 0);
	assert_int_equal(share_walk(&r, 2, 3, "below"), 0);
	assert_int_equal(share_getattr(&r, 3, &a), 0);
	assert_int_equal(a.mode, S_IFDIR | 02750);
	assert_int_equal(share_mkdir(&r, 2, "other", S_IFDIR | 06750), -EPERM);
	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "other", S_IFDIR | 02750), -EPERM);
}

/* Names change: who has a file in hand has it still. */
static void renames(void **state)
{
	struct share_attr a, b;

	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "a", 0755), 0);
	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "b", 0755), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "a"), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "b"), 0);
	share_host_write(&r, "share/a/file", "one");
	assert_int_equal(share_walk(&r, 2, 4, "file"), 0);
	assert_int_equal(share_getattr(&r, 4, &a), 0);
	assert_int_equal(share_rename_at(&r, 2, "file", 3, "other"), 0);
	assert_string_equal(share_host_read(&r, "share/b/other"), "one");
	assert_int_equal(share_getattr(&r, 4, &b), 0);
	assert_int_equal(a.qid_path, b.qid_path);
	/* What is below a directory that moves goes along. */
	assert_int_equal(share_rename_at(&r, SHARE_ROOT, "b", 2, "c"), 0);
	assert_int_equal(share_getattr(&r, 4, &b), 0);
	assert_int_equal(share_open(&r, 4, O_RDONLY), 0);
	assert_string_equal(share_read(&r, 4, 0), "one");
	assert_int_equal(share_rename_at(&r, SHARE_ROOT, "a", 3, "itself"), -EINVAL);
	/* What is replaced is not what has its name now. */
	share_host_write(&r, "share/x", "x");
	share_host_write(&r, "share/y", "y");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 5, "x"), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 6, "y"), 0);
	share_begin(&r, P9_TRENAME);
	bytes_put_u32(&r.req, 5);
	bytes_put_u32(&r.req, SHARE_ROOT);
	share_text(&r, "y");
	assert_int_equal(share_call(&r), 0);
	assert_int_equal(share_getattr(&r, 6, &b), -ENOENT);
	assert_int_equal(share_open(&r, 5, O_RDONLY), 0);
	assert_string_equal(share_read(&r, 5, 0), "x");
	share_begin(&r, P9_TRENAME);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u32(&r.req, 2);
	share_text(&r, "z");
	assert_int_equal(share_call(&r), -EBUSY);
	/* Two names of one file stay two. */
	share_begin(&r, P9_TLINK);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u32(&r.req, 5);
	share_text(&r, "z");
	assert_int_equal(share_call(&r), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 7, "z"), 0);
	assert_int_equal(share_rename_at(&r, SHARE_ROOT, "z", SHARE_ROOT, "y"), 0);
	assert_int_equal(share_getattr(&r, 7, &b), 0);
	assert_int_equal(b.nlink, 2);
}

/* An open file without a name can be used on, as in Linux. */
static void removed(void **state)
{
	struct share_attr a;

	share_host_write(&r, "share/file", "text");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "file"), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "file"), 0);
	assert_int_equal(share_open(&r, 2, O_RDWR), 0);
	assert_int_equal(share_unlink_at(&r, SHARE_ROOT, "file", 0), 0);
	assert_int_equal(share_write(&r, 2, 4, "!"), 0);
	assert_string_equal(share_read(&r, 2, 0), "text!");
	assert_int_equal(share_getattr(&r, 2, &a), 0);
	assert_int_equal(a.nlink, 0);
	assert_int_equal(share_setattr(&r, 2, 8, 0, 0, 2), 0);
	assert_int_equal(share_getattr(&r, 3, &a), -ENOENT);
	/* Another one of that name is another one. */
	share_host_write(&r, "share/file", "new");
	assert_int_equal(share_open(&r, 3, O_RDONLY), -ENOENT);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 4, "file"), 0);
	share_begin(&r, P9_TREMOVE);
	bytes_put_u32(&r.req, 4);
	assert_int_equal(share_call(&r), 0);
	assert_int_equal(share_clunk(&r, 4), -EBADF);
	assert_int_equal(access(share_path(&r, "share/file"), F_OK), -1);
}

static void attributes(void **state)
{
	struct share_attr a;
	uint32_t me = getuid();

	share_host_write(&r, "share/file", "text");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "file"), 0);
	assert_int_equal(share_setattr(&r, 2, 1, 0600, 0, 0), 0);
	assert_int_equal(share_setattr(&r, 2, 8, 0, 0, 2), 0);
	assert_int_equal(share_setattr(&r, 2, 0x20 | 0x100, 0, 0, 0), 0);
	assert_int_equal(share_getattr(&r, 2, &a), 0);
	assert_int_equal(a.mode, S_IFREG | 0600);
	assert_int_equal(a.size, 2);
	assert_int_equal(a.mtime_s, 1001);
	assert_int_equal(a.mtime_ns, 6);
	assert_int_equal(share_setattr(&r, 2, 0x10 | 0x20, 0, 0, 0), 0); /* now */
	assert_int_equal(share_getattr(&r, 2, &a), 0);
	assert_true(a.mtime_s > 1000000000);
	/* Owners are what they are, and no bits appear that lend the user's rights to others. */
	assert_int_equal(share_setattr(&r, 2, 2, 0, me, 0), 0);
	assert_int_equal(share_setattr(&r, 2, 2, 0, me + 1, 0), -EPERM);
	assert_int_equal(share_setattr(&r, 2, 4, 0, getgid() + 1, 0), -EPERM);
	assert_int_equal(share_setattr(&r, 2, 1, 04755, 0, 0), -EPERM);
	assert_int_equal(share_setattr(&r, 2, 1, 02755, 0, 0), -EPERM);
	assert_int_equal(share_setattr(&r, 2, 0x200, 0, 0, 0), -EINVAL);
	assert_int_equal(chmod(share_path(&r, "share/file"), 02700), 0);
	assert_int_equal(share_setattr(&r, 2, 1, 02750, 0, 0), 0); /* it was there */
	assert_int_equal(share_setattr(&r, SHARE_ROOT, 8, 0, 0, 0), -EISDIR);
	assert_int_equal(share_setattr(&r, SHARE_ROOT, 1, 0750, 0, 0), 0);
	assert_int_equal(share_symlink(&r, SHARE_ROOT, "link", "file"), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "link"), 0);
	assert_int_equal(share_setattr(&r, 3, 1, 0644, 0, 0), -EOPNOTSUPP);
	assert_int_equal(share_setattr(&r, 3, 8, 0, 0, 0), -EINVAL);
	assert_int_equal(share_setattr(&r, 3, 0x30, 0, 0, 0), 0);
	share_begin(&r, P9_TREADLINK);
	bytes_put_u32(&r.req, 3);
	assert_int_equal(share_call(&r), 0);
	char target[16];

	assert_int_equal(p9_get_text(&r.in, target, sizeof(target)), 0);
	assert_string_equal(target, "file");
	share_begin(&r, P9_TSTATFS);
	bytes_put_u32(&r.req, SHARE_ROOT);
	assert_int_equal(share_call(&r), 0);
	assert_int_equal(r.in.len - r.in.pos, 60);
}

static int make_node(const char *name, uint32_t mode)
{
	share_begin(&r, P9_TMKNOD);
	bytes_put_u32(&r.req, SHARE_ROOT);
	share_text(&r, name);
	bytes_put_u32(&r.req, mode);
	bytes_put_u32(&r.req, 1);
	bytes_put_u32(&r.req, 3);
	bytes_put_u32(&r.req, 0);
	return share_call(&r);
}

/* mknod(2) makes regular files, too. */
static void file_by_mknod(void **state)
{
	struct share_attr a;

	assert_int_equal(make_node("file", S_IFREG | 0640), 0);
	assert_int_equal(bytes_get_u8(&r.in), P9_QT_FILE);
	bytes_get_u32(&r.in);
	uint64_t qid_path = bytes_get_u64(&r.in);

	assert_true(p9_is_whole(&r.in));
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "file"), 0);
	assert_int_equal(share_getattr(&r, 2, &a), 0);
	assert_int_equal(a.qid_path, qid_path);
	assert_int_equal(a.mode, S_IFREG | 0640);
	assert_int_equal(make_node("file", S_IFREG | 0640), -EEXIST);
	assert_int_equal(make_node("../file", S_IFREG | 0640), -EINVAL);
	assert_int_equal(share_symlink(&r, SHARE_ROOT, "link", "new"), 0);
	assert_int_equal(make_node("link", S_IFREG | 0640), -EEXIST);
}

static void refused(void **state)
{
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, ""), 0);
	assert_int_equal(share_create(&r, 2, "s", O_RDWR, 04755), -EPERM);
	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "s", 02755), -EPERM);
	static const uint32_t modes[] = { S_IFCHR | 0666,  S_IFBLK | 0666, S_IFIFO | 0666,
					  S_IFSOCK | 0666, S_IFDIR | 0777, S_IFREG | 04755 };

	for (unsigned i = 0; i < ARRAY_SIZE(modes); i++)
		assert_int_equal(make_node("node", modes[i]), -EPERM);
	assert_int_equal(access(share_path(&r, "share/node"), F_OK), -1);
	/* Those that the host has are not opened: the server would wait, or do what devices do. */
	assert_int_equal(mkfifo(share_path(&r, "share/fifo"), 0666), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "fifo"), 0);
	assert_int_equal(share_open(&r, 3, O_RDONLY), -EACCES);
	/* Not even for a moment: who waits at the other end would see somebody come and go. */
	struct pollfd end = { .fd = open(share_path(&r, "share/fifo"), O_RDONLY | O_NONBLOCK),
			      .events = POLLIN };

	assert_true(end.fd >= 0);
	assert_int_equal(share_create(&r, 2, "fifo", O_RDWR, 0644), -EACCES);
	assert_int_equal(share_create(&r, 2, "fifo", O_RDWR | O_EXCL, 0644), -EEXIST);
	assert_int_equal(poll(&end, 1, 0), 0);
	close(end.fd);
	share_begin(&r, P9_TXATTRWALK);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u32(&r.req, 9);
	share_text(&r, "user.x");
	assert_int_equal(share_call(&r), -EOPNOTSUPP);
	share_begin(&r, P9_TAUTH);
	assert_int_equal(share_call(&r), -EOPNOTSUPP);
	share_begin(&r, 112); /* Topen of the first 9P2000 */
	assert_int_equal(share_call(&r), -EOPNOTSUPP);
	share_begin(&r, P9_TATTACH);
	bytes_put_u32(&r.req, 9);
	bytes_put_u32(&r.req, P9_NOFID);
	share_text(&r, "root");
	share_text(&r, "/etc");
	bytes_put_u32(&r.req, 0);
	assert_int_equal(share_call(&r), -ENOENT);
}

static void locks(void **state)
{
	share_host_write(&r, "share/file", "text");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "file"), 0);
	for (unsigned i = 0; i < 2; i++) {
		for (unsigned get = 0; get < 2; get++) {
			share_begin(&r, get ? P9_TGETLOCK : P9_TLOCK);
			bytes_put_u32(&r.req, 2);
			bytes_put_u8(&r.req, 1);
			if (!get)
				bytes_put_u32(&r.req, 1);
			bytes_put_u64(&r.req, 0);
			bytes_put_u64(&r.req, 0);
			bytes_put_u32(&r.req, 42);
			share_text(&r, "guest");
			assert_int_equal(share_call(&r), i ? 0 : -EBADF);
			if (i)
				assert_int_equal(bytes_get_u8(&r.in), get ? 2 : 0);
		}
		if (!i)
			assert_int_equal(share_open(&r, 2, O_RDWR), 0);
	}
}

static void readonly(void **state)
{
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "file"), 0);
	assert_int_equal(share_open(&r, 2, O_RDWR), -EROFS);
	assert_int_equal(share_open(&r, 2, O_RDONLY | O_TRUNC), -EROFS);
	assert_int_equal(share_open(&r, 2, O_RDONLY), 0);
	assert_string_equal(share_read(&r, 2, 0), "text");
	assert_int_equal(share_write(&r, 2, 0, "x"), -EROFS);
	assert_int_equal(share_setattr(&r, 2, 1, 0600, 0, 0), -EROFS);
	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "d", 0755), -EROFS);
	assert_int_equal(share_symlink(&r, SHARE_ROOT, "l", "x"), -EROFS);
	assert_int_equal(share_rename_at(&r, SHARE_ROOT, "file", SHARE_ROOT, "x"), -EROFS);
	assert_int_equal(share_unlink_at(&r, SHARE_ROOT, "file", 0), -EROFS);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, ""), 0);
	assert_int_equal(share_create(&r, 3, "new", O_RDWR, 0644), -EROFS);
	share_begin(&r, P9_TLINK);
	bytes_put_u32(&r.req, SHARE_ROOT);
	bytes_put_u32(&r.req, 2);
	share_text(&r, "z");
	assert_int_equal(share_call(&r), -EROFS);
	/* The fid goes all the same. */
	share_begin(&r, P9_TREMOVE);
	bytes_put_u32(&r.req, 2);
	assert_int_equal(share_call(&r), -EROFS);
	assert_int_equal(share_clunk(&r, 2), -EBADF);
	assert_string_equal(share_host_read(&r, "share/file"), "text");
}

static void bounds(void **state)
{
	int e = 0;
	unsigned n = 2;

	share_host_write(&r, "share/file", "text");
	while (e == 0 && n < SHARE_FIDS_MAX + 10)
		e = share_walk(&r, SHARE_ROOT, n++, "file");
	assert_int_equal(e, -ENFILE);
	assert_int_equal(share_server_fids(r.s), SHARE_FIDS_MAX);
	assert_int_equal(share_server_nodes(r.s), 1); /* one file, however often */
	share_server_reset(r.s);
	assert_int_equal(share_server_fids(r.s), 0);
	assert_int_equal(share_server_nodes(r.s), 0);
	share_rig_attach(&r, 65536);
	for (n = 2, e = 0; e == 0; n++) {
		assert_int_equal(share_walk(&r, SHARE_ROOT, n, "file"), 0);
		e = share_open(&r, n, O_RDONLY);
	}
	assert_int_equal(e, -EMFILE);
	assert_int_equal(n - 2, SHARE_OPEN_MAX + 1);
	/* Longer than was agreed on. */
	share_begin(&r, P9_TWRITE);
	for (unsigned i = 0; i < 65536; i++)
		bytes_put_u8(&r.req, 0);
	assert_int_equal(share_call(&r), -EMSGSIZE);
}

static unsigned longest_chain(void)
{
	unsigned longest = 0;

	for (unsigned i = 0; i < FID_BUCKETS; i++) {
		unsigned n = 0;

		for (const struct fid *f = r.s->fids[i]; f; f = f->next)
			n++;
		longest = MAX(longest, n);
	}
	return longest;
}

/* Multiples of what undoes a multiplication by the usual constant: who knows the table's function has them all in one chain. */
static void chosen_fids(void **state)
{
	for (uint32_t i = 2; i < 4096; i++)
		assert_int_equal(share_walk(&r, SHARE_ROOT, i * 244002641u, ""), 0);
	assert_int_equal(244002641u * 2654435761u, 1);
	assert_true(longest_chain() < 256);
}

/* ---- snapshots ---- */

static struct bytes saved;

static unsigned move_on(bool is_readonly)
{
	struct error err;
	unsigned stale = 99;

	saved.len = 0;
	assert_int_equal(share_server_save(r.s, &saved), 0);
	assert_int_equal(share_state_check(saved.data, saved.len, &err), 0);
	share_rig_serve(&r, is_readonly);
	assert_int_equal(share_server_load(r.s, saved.data, saved.len, &stale, &err), 0);
	return stale;
}

static void state_of_files(void **state)
{
	struct bytes text = { 0 }, again = { 0 };
	struct share_attr a;
	struct error err;

	assert_int_equal(share_mkdir(&r, SHARE_ROOT, "dir", 0755), 0);
	share_host_write(&r, "share/dir/file", "text");
	share_host_write(&r, "share/dir/gone", "text");
	share_host_write(&r, "share/dir/other", "text");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "dir/file"), 0);
	assert_int_equal(share_open(&r, 2, O_RDWR | O_APPEND), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 3, "dir"), 0);
	assert_int_equal(share_open(&r, 3, O_RDONLY), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 4, "dir/gone"), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 5, "dir/other"), 0);
	assert_int_equal(share_open(&r, 5, O_RDONLY), 0);
	assert_int_equal(share_walk(&r, SHARE_ROOT, 6, "dir/gone"), 0);
	assert_int_equal(share_open(&r, 6, O_RDONLY), 0);
	assert_int_equal(share_unlink_at(&r, 3, "gone", 0), 0);
	/* What has no name can't be found again. */
	assert_int_equal(move_on(false), 2);
	assert_int_equal(share_server_fids(r.s), 6);
	assert_int_equal(share_write(&r, 2, 0, "!"), 0);
	assert_string_equal(share_host_read(&r, "share/dir/file"), "text!");
	assert_string_equal(share_list(&r, 3, 4096), ". .. file other ");
	assert_int_equal(share_getattr(&r, 4, &a), -ESTALE);
	assert_string_equal(share_read(&r, 6, 0), "-116");
	assert_int_equal(share_walk(&r, 4, 9, ".."), -ESTALE);
	assert_int_equal(share_clunk(&r, 4), 0);
	/* Nor what is another file of the name. */
	assert_int_equal(unlink(share_path(&r, "share/dir/other")), 0);
	assert_int_equal(mkdir(share_path(&r, "share/dir/other"), 0755), 0);
	assert_int_equal(move_on(false), 2);
	assert_string_equal(share_read(&r, 5, 0), "-116");
	assert_string_equal(share_read(&r, 2, 0), "text!");
	/* The same bytes again, and as text. */
	assert_int_equal(share_server_save(r.s, &again), 0);
	assert_int_equal(again.len > 0 && share_state_show(again.data, again.len, &text, &err) == 0, 1);
	assert_non_null(memmem(text.data, text.len, ": dir\n", 6));
	bytes_free(&text);
	bytes_free(&again);
	/* What may not be written any more is not opened for writing. */
	assert_int_equal(move_on(true), 3);
	assert_string_equal(share_read(&r, 2, 0), "-116");
	bytes_free(&saved);
}

static void state_is_hostile(void **state)
{
	struct error err;
	unsigned stale;

	share_host_write(&r, "share/file", "text");
	assert_int_equal(share_walk(&r, SHARE_ROOT, 2, "file"), 0);
	assert_int_equal(share_open(&r, 2, O_RDONLY), 0);
	saved.len = 0;
	assert_int_equal(share_server_save(r.s, &saved), 0);
	for (size_t i = 0; i < saved.len; i++) {
		assert_int_equal(share_state_check(saved.data, i, &err), -EINVAL);
		for (unsigned bit = 0; bit < 8; bit++) {
			saved.data[i] ^= 1u << bit;
			bool is_fine = share_state_check(saved.data, saved.len, &err) == 0;

			assert_int_equal(share_server_load(r.s, saved.data, saved.len, &stale, &err) == 0,
					 is_fine);
			saved.data[i] ^= 1u << bit;
		}
	}
	/* A name that leads elsewhere is none. */
	uint8_t *name = memmem(saved.data, saved.len, "file", 4);

	memcpy(name, "../.", 4);
	assert_int_equal(share_state_check(saved.data, saved.len, &err), -EINVAL);
	bytes_free(&saved);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(version),
		TEST(files),
		TEST(directories),
		TEST(directories_with_a_group),
		TEST(renames),
		TEST(removed),
		TEST(attributes),
		TEST(file_by_mknod),
		TEST(refused),
		TEST(locks),
		TEST(bounds),
		TEST(chosen_fids),
		TEST(state_of_files),
		TEST(state_is_hostile),
		cmocka_unit_test_setup_teardown(readonly, set_up_readonly, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
