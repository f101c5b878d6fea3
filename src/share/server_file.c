/* SPDX-License-Identifier: Apache-2.0 */
/* Open files and directories. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

#include "share/server_int.h"

/* Linux's numbers are the protocol's.  Others are hints, or for files that are not opened here. */
#define OPEN_FLAGS  (O_ACCMODE | O_TRUNC | O_APPEND | O_DSYNC | O_SYNC | O_DIRECTORY)
#define OPEN_ALWAYS (O_NONBLOCK | O_NOCTTY)

/* 0, -ELOOP, -EACCES. */
static int check_openable(const struct statx *st)
{
	if (S_ISREG(st->stx_mode) || S_ISDIR(st->stx_mode))
		return 0;
	return S_ISLNK(st->stx_mode) ? -ELOOP : -EACCES;
}

/* Nothing but these is ever held open; a name may lead to something else since it was looked at. */
static int keep_open(struct share_server *s, struct fid *f, int fd, uint32_t flags, struct statx *st)
{
	int r = fd < 0 ? fd : stat_fd(fd, st);

	if (r == 0)
		r = check_openable(st);
	if (r < 0) {
		if (fd >= 0)
			close(fd);
		return r;
	}
	f->fd = fd;
	f->flags = flags & SHARE_REOPEN_FLAGS;
	f->ident = ident_of(s, st);
	s->nopen++;
	return 0;
}

int reopen_fid(struct share_server *s, struct fid *f, uint32_t flags, struct statx *st)
{
	int r = stat_node(s, f->node, st);
	bool writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;

	if (r == 0)
		r = check_openable(st);
	if (r < 0)
		return r;
	if (writes && S_ISDIR(st->stx_mode))
		return -EISDIR;
	if (writes && s->is_readonly)
		return -EROFS;
	if (s->nopen == SHARE_OPEN_MAX)
		return -EMFILE;
	return keep_open(s, f, open_node(s, f->node, (int)(flags & OPEN_FLAGS) | OPEN_ALWAYS, 0),
			 flags, st);
}

static void put_opened(struct share_server *s, struct p9_out *out, const struct statx *st)
{
	const struct p9_qid q = qid_of(s, st);

	p9_put_qid(out, &q);
	p9_put_u32(out, 0); /* as much a message as one holds */
}

SHARE_HANDLER(lopen)
{
	uint32_t id = bytes_get_u32(in), flags = bytes_get_u32(in);
	struct statx st;
	struct fid *f;
	int r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;

	if (r == 0 && ((flags & O_ACCMODE) == O_ACCMODE || f->fd >= 0))
		r = -EINVAL;
	if (r == 0)
		r = reopen_fid(s, f, flags, &st);
	if (r == 0)
		put_opened(s, out, &st);
	return r;
}

SHARE_HANDLER(lcreate)
{
	uint32_t id = bytes_get_u32(in);
	char name[P9_NAME_MAX + 1];
	int r = p9_get_name(in, name);
	uint32_t flags = bytes_get_u32(in), mode = bytes_get_u32(in);
	struct node *child;
	struct statx st;
	struct fid *f;

	bytes_get_u32(in); /* the guest's group */
	if (r == 0)
		r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;
	if (r == 0 && ((flags & O_ACCMODE) == O_ACCMODE || f->fd >= 0))
		r = -EINVAL;
	if (r == 0 && is_special_mode(mode, 0))
		r = -EPERM;
	if (r == 0 && s->nopen == SHARE_OPEN_MAX)
		r = -EMFILE;
	if (r == 0)
		r = node_child(s, f->node, name, &child);
	if (r < 0)
		return r;
	int how = (int)(flags & (OPEN_FLAGS | O_EXCL) & ~(uint32_t)O_DIRECTORY) | O_CREAT | OPEN_ALWAYS;

	/* What is there already is opened, too: a pipe's other end, or a device, would notice. */
	if (!(how & O_EXCL) && stat_node(s, child, &st) == 0)
		r = check_openable(&st);
	if (r == 0)
		r = keep_open(s, f,
			      open_child(s, f->node, name, how, mode & 07777 & ~(S_ISUID | S_ISGID)),
			      flags, &st);
	if (r == 0) {
		node_put(s, f->node);
		f->node = child;
		put_opened(s, out, &st);
	} else {
		node_put(s, child);
	}
	return r;
}

/* A fid whose file is open for data. */
static int get_file(struct share_server *s, uint32_t id, struct fid **f)
{
	int r = fid_get(s, id, f);

	if (r == 0 && (*f)->fd < 0)
		r = -EBADF;
	if (r == 0 && (*f)->ident.format == S_IFDIR)
		r = -EISDIR;
	return r;
}

SHARE_HANDLER(read)
{
	uint32_t id = bytes_get_u32(in);
	uint64_t offset = bytes_get_u64(in);
	uint32_t count = bytes_get_u32(in);
	struct fid *f;
	int r = p9_is_whole(in) ? get_file(s, id, &f) : -EINVAL;

	if (r < 0)
		return r;
	p9_put_u32(out, 0);
	ssize_t n = pread(f->fd, out->data + out->len, MIN((size_t)count, out->cap - out->len),
			  (off_t)offset);

	if (n < 0)
		return -errno;
	p9_poke_u32(out, P9_HEADER, (uint32_t)n);
	out->len += (size_t)n;
	return 0;
}

SHARE_HANDLER(write)
{
	uint32_t id = bytes_get_u32(in);
	uint64_t offset = bytes_get_u64(in);
	uint32_t count = bytes_get_u32(in);
	struct fid *f;
	int r = !in->is_failed && count == in->len - in->pos ? get_file(s, id, &f) : -EINVAL;

	if (r < 0)
		return r;
	ssize_t n = pwrite(f->fd, in->data + in->pos, count, (off_t)offset);

	if (n < 0)
		return -errno;
	p9_put_u32(out, (uint32_t)n);
	return 0;
}

SHARE_HANDLER(fsync)
{
	uint32_t id = bytes_get_u32(in), is_data = 0;
	struct fid *f;

	if (in->pos < in->len) /* older clients leave it out */
		is_data = bytes_get_u32(in);
	int r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;

	if (r == 0 && f->fd < 0)
		r = -EBADF;
	if (r < 0)
		return r;
	return (is_data ? fdatasync(f->fd) : fsync(f->fd)) < 0 ? -errno : 0;
}

/* ---- directories ---- */

/* What getdents64(2) gives (its manual page; the C library's struct dirent is the same). */
static int put_entry(struct share_server *s, const struct dirent *e, struct p9_out *out, size_t end)
{
	size_t len = strlen(e->d_name);
	const struct p9_qid q = { .type = e->d_type == DT_DIR	? P9_QT_DIR
					  : e->d_type == DT_LNK ? P9_QT_SYMLINK
								: P9_QT_FILE,
				  .path = e->d_ino };

	if (13 + 8 + 1 + 2 + len > end - out->len)
		return -ENOSPC;
	p9_put_qid(out, &q);
	p9_put_u64(out, (uint64_t)e->d_off);
	p9_put_u8(out, e->d_type);
	p9_put_text(out, e->d_name, len);
	return 0;
}

/* As many as fit before @end. */
static int put_entries(struct share_server *s, int fd, struct p9_out *out, size_t end)
{
	size_t begin = out->len;

	for (;;) {
		long n = syscall(SYS_getdents64, fd, s->dirents, sizeof(s->dirents));

		if (n <= 0)
			return n < 0 && out->len == begin ? -errno : 0;
		for (long at = 0; at < n;) {
			const struct dirent *e = (const void *)(s->dirents + at);

			if (put_entry(s, e, out, end) < 0)
				return out->len == begin ? -EINVAL : 0; /* not even one */
			at += e->d_reclen;
		}
	}
}

SHARE_HANDLER(readdir)
{
	uint32_t id = bytes_get_u32(in);
	uint64_t offset = bytes_get_u64(in);
	uint32_t count = bytes_get_u32(in);
	struct fid *f;
	int r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;

	if (r == 0 && f->fd < 0)
		r = -EBADF;
	if (r == 0 && f->ident.format != S_IFDIR)
		r = -ENOTDIR;
	if (r == 0 && lseek(f->fd, (off_t)offset, SEEK_SET) < 0)
		r = -errno;
	if (r < 0)
		return r;
	p9_put_u32(out, 0);
	size_t begin = out->len;

	r = put_entries(s, f->fd, out, begin + MIN((size_t)count, out->cap - begin));
	if (r == 0)
		p9_poke_u32(out, P9_HEADER, (uint32_t)(out->len - begin));
	return r;
}

/* ---- locks: the guest's kernel has arbitrated between its programs ---- */

enum { LOCK_SUCCESS = 0, LOCK_UNLOCKED = 2 };

SHARE_HANDLER(lock)
{
	uint32_t id = bytes_get_u32(in);
	uint8_t type = bytes_get_u8(in);
	char client[P9_NAME_MAX + 1];
	struct fid *f;

	bytes_get_u32(in);
	bytes_get_u64(in);
	bytes_get_u64(in);
	bytes_get_u32(in);
	int r = p9_get_text(in, client, sizeof(client));

	if (r == 0)
		r = p9_is_whole(in) && type <= LOCK_UNLOCKED ? fid_get(s, id, &f) : -EINVAL;
	if (r == 0 && f->fd < 0)
		r = -EBADF;
	if (r == 0)
		p9_put_u8(out, LOCK_SUCCESS);
	return r;
}

SHARE_HANDLER(getlock)
{
	uint32_t id = bytes_get_u32(in);
	uint8_t type = bytes_get_u8(in);
	uint64_t start = bytes_get_u64(in), length = bytes_get_u64(in);
	uint32_t process = bytes_get_u32(in);
	char client[P9_NAME_MAX + 1];
	struct fid *f;
	int r = p9_get_text(in, client, sizeof(client));

	if (r == 0)
		r = p9_is_whole(in) && type <= LOCK_UNLOCKED ? fid_get(s, id, &f) : -EINVAL;
	if (r == 0 && f->fd < 0)
		r = -EBADF;
	if (r < 0)
		return r;
	p9_put_u8(out, LOCK_UNLOCKED);
	p9_put_u64(out, start);
	p9_put_u64(out, length);
	p9_put_u32(out, process);
	p9_put_text(out, client, strlen(client));
	return 0;
}
