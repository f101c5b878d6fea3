/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes of files and of the file system. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "share/server_int.h"

/* Linux 6.6; the headers of Debian 12 do not have its number. */
#define SYS_FCHMODAT2 452

#define GETATTR_BASIC 0x7ffu
#define GETATTR_BTIME 0x800u
enum {
	SET_MODE = 1,
	SET_UID = 2,
	SET_GID = 4,
	SET_SIZE = 8,
	SET_ATIME = 0x10,
	SET_MTIME = 0x20,
	SET_CTIME = 0x40,
	SET_ATIME_TO = 0x80,
	SET_MTIME_TO = 0x100,
	SET_ALL = 0x1ff,
};

SHARE_HANDLER(statfs)
{
	struct statfs st;
	struct fid *f;
	int r = fid_get(s, bytes_get_u32(in), &f);

	if (!p9_is_whole(in))
		r = -EINVAL;
	if (r == 0 && fstatfs(s->root_fd, &st) < 0)
		r = -errno;
	if (r < 0)
		return r;
	uint64_t id;

	memcpy(&id, &st.f_fsid, sizeof(id));
	p9_put_u32(out, (uint32_t)st.f_type);
	p9_put_u32(out, (uint32_t)st.f_bsize);
	p9_put_u64(out, st.f_blocks);
	p9_put_u64(out, st.f_bfree);
	p9_put_u64(out, st.f_bavail);
	p9_put_u64(out, st.f_files);
	p9_put_u64(out, st.f_ffree);
	p9_put_u64(out, id);
	p9_put_u32(out, (uint32_t)st.f_namelen);
	return 0;
}

static void put_time(struct p9_out *out, const struct statx_timestamp *t)
{
	p9_put_u64(out, (uint64_t)t->tv_sec);
	p9_put_u64(out, t->tv_nsec);
}

SHARE_HANDLER(getattr)
{
	struct statx st;
	struct fid *f;
	int r = fid_get(s, bytes_get_u32(in), &f);

	bytes_get_u64(in); /* all there is costs no more than some of it */
	if (!p9_is_whole(in))
		r = -EINVAL;
	if (r == 0)
		r = stat_fid(s, f, &st);
	if (r < 0)
		return r;
	const struct p9_qid q = qid_of(s, &st);
	bool has_birth = st.stx_mask & STATX_BTIME;

	p9_put_u64(out, GETATTR_BASIC | (has_birth ? GETATTR_BTIME : 0));
	p9_put_qid(out, &q);
	p9_put_u32(out, st.stx_mode);
	p9_put_u32(out, st.stx_uid);
	p9_put_u32(out, st.stx_gid);
	p9_put_u64(out, st.stx_nlink);
	p9_put_u64(out, makedev(st.stx_rdev_major, st.stx_rdev_minor));
	p9_put_u64(out, st.stx_size);
	p9_put_u64(out, st.stx_blksize);
	p9_put_u64(out, st.stx_blocks);
	put_time(out, &st.stx_atime);
	put_time(out, &st.stx_mtime);
	put_time(out, &st.stx_ctime);
	put_time(out, has_birth ? &st.stx_btime : &(struct statx_timestamp){ 0 });
	p9_put_u64(out, 0); /* generation */
	p9_put_u64(out, 0); /* data version */
	return 0;
}

/* ---- changing them ---- */

struct wish {
	uint32_t valid, mode, uid, gid;
	uint64_t size;
	struct timespec times[2]; /* atime, mtime */
};

static void get_time(struct byte_reader *in, struct timespec *t, bool is_wanted, bool is_given,
		     bool *is_bad)
{
	uint64_t sec = bytes_get_u64(in), nsec = bytes_get_u64(in);

	*is_bad |= is_wanted && is_given && nsec >= 1000000000;
	*t = !is_wanted ? (struct timespec){ .tv_nsec = UTIME_OMIT }
	     : is_given ? (struct timespec){ (time_t)sec, (long)nsec }
			: (struct timespec){ .tv_nsec = UTIME_NOW };
}

static int get_wish(struct byte_reader *in, struct wish *w)
{
	bool is_bad = false;

	w->valid = bytes_get_u32(in);
	w->mode = bytes_get_u32(in);
	w->uid = bytes_get_u32(in);
	w->gid = bytes_get_u32(in);
	w->size = bytes_get_u64(in);
	get_time(in, &w->times[0], w->valid & SET_ATIME, w->valid & SET_ATIME_TO, &is_bad);
	get_time(in, &w->times[1], w->valid & SET_MTIME, w->valid & SET_MTIME_TO, &is_bad);
	return is_bad || w->valid & ~SET_ALL || !p9_is_whole(in) ? -EINVAL : 0;
}

/* Without following a link at the end: by the call that can do so, else through an open file. */
static int change_mode(struct share_server *s, const struct fid *f, uint32_t mode)
{
	_cleanup_place_ struct place p = { 0 };

	if (f->fd >= 0)
		return fchmod(f->fd, mode) < 0 ? -errno : 0;
	int r = place_of(s, f->node, false, &p);

	if (r < 0)
		return r;
	if (syscall(SYS_FCHMODAT2, p.dir, p.name, mode, AT_SYMLINK_NOFOLLOW) == 0)
		return 0;
	if (errno != ENOSYS)
		return -errno;
	_cleanup_close_ int fd = open_node(s, f->node, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);

	if (fd == -EACCES) /* its owner may write it, perhaps */
		fd = open_node(s, f->node, O_WRONLY | O_NONBLOCK | O_NOCTTY, 0);
	return fd < 0 ? fd : fchmod(fd, mode) < 0 ? -errno : 0;
}

static int change_size(struct share_server *s, const struct fid *f, uint64_t size)
{
	if (f->fd >= 0 && (f->flags & O_ACCMODE) != O_RDONLY)
		return ftruncate(f->fd, (off_t)size) < 0 ? -errno : 0;
	_cleanup_close_ int fd = open_node(s, f->node, O_WRONLY | O_NONBLOCK | O_NOCTTY, 0);

	return fd < 0 ? fd : ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
}

static int change_times(struct share_server *s, const struct fid *f, const struct timespec times[2])
{
	_cleanup_place_ struct place p = { 0 };

	if (f->fd >= 0)
		return futimens(f->fd, times) < 0 ? -errno : 0;
	int r = place_of(s, f->node, false, &p);

	return r < 0 ? r : utimensat(p.dir, p.name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

SHARE_HANDLER(setattr)
{
	struct wish w;
	struct statx st;
	struct fid *f;
	int r = fid_get(s, bytes_get_u32(in), &f);

	if (get_wish(in, &w) < 0)
		r = -EINVAL;
	if (r == 0)
		r = stat_fid(s, f, &st);
	if (r < 0)
		return r;
	/* All that is refused comes before anything is done. */
	if ((w.valid & SET_UID && w.uid != st.stx_uid) || (w.valid & SET_GID && w.gid != st.stx_gid))
		return -EPERM;
	if (w.valid & SET_MODE && is_special_mode(w.mode, st.stx_mode))
		return -EPERM;
	if (w.valid & SET_MODE && S_ISLNK(st.stx_mode))
		return -EOPNOTSUPP;
	if (w.valid & SET_SIZE && !S_ISREG(st.stx_mode))
		return S_ISDIR(st.stx_mode) ? -EISDIR : -EINVAL;
	if (w.valid & SET_MODE && (!S_ISREG(st.stx_mode) && !S_ISDIR(st.stx_mode)))
		return -EPERM;
	if (w.valid & SET_SIZE)
		r = change_size(s, f, w.size);
	if (r == 0 && w.valid & SET_MODE)
		r = change_mode(s, f, w.mode & 07777);
	if (r == 0 && w.valid & (SET_ATIME | SET_MTIME))
		r = change_times(s, f, w.times);
	return r;
}
