/* SPDX-License-Identifier: Apache-2.0 */
#include "share/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

const char *share_path(const struct share_rig *r, const char *path)
{
	static char texts[4][512];
	static unsigned turn;
	char *text = texts[turn++ % 4];

	snprintf(text, sizeof(texts[0]), "%s/%s", r->dir, path);
	return text;
}

void share_host_write(const struct share_rig *r, const char *path, const char *text)
{
	int fd = open(share_path(r, path), O_WRONLY | O_CREAT | O_TRUNC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

const char *share_host_read(const struct share_rig *r, const char *path)
{
	static char text[256];
	int fd = open(share_path(r, path), O_RDONLY);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

	text[n > 0 ? n : 0] = 0;
	if (fd >= 0)
		close(fd);
	return text;
}

void share_rig_serve(struct share_rig *r, bool is_readonly)
{
	struct error err;
	int fd = open(r->share, O_PATH | O_DIRECTORY | O_CLOEXEC);

	share_server_destroy(r->s);
	assert_true(fd >= 0);
	assert_int_equal(share_server_create(&r->s, fd, is_readonly, &err), 0);
}

void share_rig_attach(struct share_rig *r, uint32_t msize)
{
	share_begin(r, P9_TVERSION);
	bytes_put_u32(&r->req, msize);
	share_text(r, "9P2000.L");
	assert_int_equal(share_call(r), 0);
	assert_int_equal(bytes_get_u32(&r->in), MIN(msize, P9_MSIZE_MAX));
	share_begin(r, P9_TATTACH);
	bytes_put_u32(&r->req, SHARE_ROOT);
	bytes_put_u32(&r->req, P9_NOFID);
	share_text(r, "root");
	share_text(r, "");
	bytes_put_u32(&r->req, 0);
	assert_int_equal(share_call(r), 0);
}

void share_rig_open(struct share_rig *r, bool is_readonly)
{
	memset(r, 0, sizeof(*r));
	snprintf(r->dir, sizeof(r->dir), "/tmp/viv-share-XXXXXX");
	assert_non_null(mkdtemp(r->dir));
	snprintf(r->share, sizeof(r->share), "%s/share", r->dir);
	assert_int_equal(mkdir(r->share, 0755), 0);
	share_host_write(r, "secret", "secret");
	share_rig_serve(r, is_readonly);
	share_rig_attach(r, 65536);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	return remove(path);
}

void share_rig_close(struct share_rig *r)
{
	share_server_destroy(r->s);
	bytes_free(&r->req);
	assert_int_equal(nftw(r->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* ---- messages ---- */

void share_begin(struct share_rig *r, uint8_t type)
{
	r->req.len = 0;
	bytes_put_u32(&r->req, 0);
	bytes_put_u8(&r->req, type);
	bytes_put_u16(&r->req, 7);
}

void share_text(struct share_rig *r, const char *text)
{
	bytes_put_u16(&r->req, (uint16_t)strlen(text));
	bytes_put(&r->req, text, strlen(text));
}

int share_call(struct share_rig *r)
{
	uint32_t size = (uint32_t)r->req.len;

	memcpy(r->req.data, &size, 4);
	size_t len = share_server_handle(r->s, r->req.data, r->req.len, r->reply);

	r->in = (struct byte_reader){ .data = r->reply, .len = len };
	assert_int_equal(bytes_get_u32(&r->in), len);
	uint8_t type = bytes_get_u8(&r->in);

	assert_int_equal(bytes_get_u16(&r->in), 7);
	if (type == P9_RLERROR)
		return -(int)bytes_get_u32(&r->in);
	assert_int_equal(type, r->req.data[4] + 1);
	return 0;
}

int share_walk(struct share_rig *r, uint32_t fid, uint32_t newfid, const char *path)
{
	char copy[512], *save = NULL;
	uint16_t n = 0;

	share_begin(r, P9_TWALK);
	bytes_put_u32(&r->req, fid);
	bytes_put_u32(&r->req, newfid);
	size_t at = r->req.len;

	bytes_put_u16(&r->req, 0);
	snprintf(copy, sizeof(copy), "%s", path);
	for (char *p = strtok_r(copy, "/", &save); p; p = strtok_r(NULL, "/", &save), n++)
		share_text(r, p);
	memcpy(r->req.data + at, &n, 2);
	int e = share_call(r);

	return e < 0 ? e : bytes_get_u16(&r->in) == n ? 0 : -ENOENT;
}

int share_open(struct share_rig *r, uint32_t fid, uint32_t flags)
{
	share_begin(r, P9_TLOPEN);
	bytes_put_u32(&r->req, fid);
	bytes_put_u32(&r->req, flags);
	return share_call(r);
}

int share_create(struct share_rig *r, uint32_t fid, const char *name, uint32_t flags, uint32_t mode)
{
	share_begin(r, P9_TLCREATE);
	bytes_put_u32(&r->req, fid);
	share_text(r, name);
	bytes_put_u32(&r->req, flags);
	bytes_put_u32(&r->req, mode);
	bytes_put_u32(&r->req, 0);
	return share_call(r);
}

int share_mkdir(struct share_rig *r, uint32_t fid, const char *name, uint32_t mode)
{
	share_begin(r, P9_TMKDIR);
	bytes_put_u32(&r->req, fid);
	share_text(r, name);
	bytes_put_u32(&r->req, mode);
	bytes_put_u32(&r->req, 0);
	return share_call(r);
}

int share_symlink(struct share_rig *r, uint32_t fid, const char *name, const char *target)
{
	share_begin(r, P9_TSYMLINK);
	bytes_put_u32(&r->req, fid);
	share_text(r, name);
	share_text(r, target);
	bytes_put_u32(&r->req, 0);
	return share_call(r);
}

int share_rename_at(struct share_rig *r, uint32_t from, const char *name, uint32_t to, const char *new_name)
{
	share_begin(r, P9_TRENAMEAT);
	bytes_put_u32(&r->req, from);
	share_text(r, name);
	bytes_put_u32(&r->req, to);
	share_text(r, new_name);
	return share_call(r);
}

int share_unlink_at(struct share_rig *r, uint32_t fid, const char *name, uint32_t flags)
{
	share_begin(r, P9_TUNLINKAT);
	bytes_put_u32(&r->req, fid);
	share_text(r, name);
	bytes_put_u32(&r->req, flags);
	return share_call(r);
}

int share_clunk(struct share_rig *r, uint32_t fid)
{
	share_begin(r, P9_TCLUNK);
	bytes_put_u32(&r->req, fid);
	return share_call(r);
}

const char *share_read(struct share_rig *r, uint32_t fid, uint64_t offset)
{
	static char text[256];

	share_begin(r, P9_TREAD);
	bytes_put_u32(&r->req, fid);
	bytes_put_u64(&r->req, offset);
	bytes_put_u32(&r->req, sizeof(text) - 1);
	int e = share_call(r);

	if (e < 0) {
		snprintf(text, sizeof(text), "%d", e);
		return text;
	}
	uint32_t n = bytes_get_u32(&r->in);

	assert_true(n < sizeof(text) && bytes_get(&r->in, text, n) && p9_is_whole(&r->in));
	text[n] = 0;
	return text;
}

int share_write(struct share_rig *r, uint32_t fid, uint64_t offset, const char *text)
{
	share_begin(r, P9_TWRITE);
	bytes_put_u32(&r->req, fid);
	bytes_put_u64(&r->req, offset);
	bytes_put_u32(&r->req, (uint32_t)strlen(text));
	bytes_put(&r->req, text, strlen(text));
	int e = share_call(r);

	if (e == 0)
		assert_int_equal(bytes_get_u32(&r->in), strlen(text));
	return e;
}

int share_getattr(struct share_rig *r, uint32_t fid, struct share_attr *out)
{
	share_begin(r, P9_TGETATTR);
	bytes_put_u32(&r->req, fid);
	bytes_put_u64(&r->req, 0x7ff);
	int e = share_call(r);

	if (e < 0)
		return e;
	assert_int_equal(bytes_get_u64(&r->in) & 0x7ff, 0x7ff);
	bytes_get_u8(&r->in);
	bytes_get_u32(&r->in);
	out->qid_path = bytes_get_u64(&r->in);
	out->mode = bytes_get_u32(&r->in);
	out->uid = bytes_get_u32(&r->in);
	out->gid = bytes_get_u32(&r->in);
	out->nlink = bytes_get_u64(&r->in);
	bytes_get_u64(&r->in);
	out->size = bytes_get_u64(&r->in);
	r->in.pos += 16 + 16; /* block size, blocks, atime */
	out->mtime_s = (int64_t)bytes_get_u64(&r->in);
	out->mtime_ns = bytes_get_u64(&r->in);
	r->in.pos += 16 + 16 + 16; /* ctime, btime, generation, version */
	assert_true(p9_is_whole(&r->in));
	return 0;
}

int share_setattr(struct share_rig *r, uint32_t fid, uint32_t valid, uint32_t mode, uint32_t uid,
		  uint64_t size)
{
	share_begin(r, P9_TSETATTR);
	bytes_put_u32(&r->req, fid);
	bytes_put_u32(&r->req, valid);
	bytes_put_u32(&r->req, mode);
	bytes_put_u32(&r->req, uid);
	bytes_put_u32(&r->req, uid);
	bytes_put_u64(&r->req, size);
	for (unsigned i = 0; i < 2; i++) {
		bytes_put_u64(&r->req, 1000 + i);
		bytes_put_u64(&r->req, 5 + i);
	}
	return share_call(r);
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

const char *share_list(struct share_rig *r, uint32_t fid, uint32_t count)
{
	static char text[65536], names[2000][64], *sorted[2000];
	uint64_t offset = 0;
	unsigned n = 0;

	for (;;) {
		share_begin(r, P9_TREADDIR);
		bytes_put_u32(&r->req, fid);
		bytes_put_u64(&r->req, offset);
		bytes_put_u32(&r->req, count);
		assert_int_equal(share_call(r), 0);
		uint32_t len = bytes_get_u32(&r->in);

		assert_int_equal(len, r->in.len - r->in.pos);
		assert_true(len <= count);
		if (!len)
			break;
		while (r->in.pos < r->in.len) {
			r->in.pos += 13;
			offset = bytes_get_u64(&r->in);
			bytes_get_u8(&r->in);
			assert_int_equal(p9_get_text(&r->in, names[n], sizeof(names[0])), 0);
			assert_true(n < ARRAY_SIZE(names) - 1);
			sorted[n] = names[n];
			n++;
		}
	}
	qsort(sorted, n, sizeof(sorted[0]), compare);
	text[0] = 0;
	for (unsigned i = 0; i < n; i++) {
		strcat(text, sorted[i]);
		strcat(text, " ");
	}
	return text;
}
