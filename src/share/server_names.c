/* SPDX-License-Identifier: Apache-2.0 */
/* What makes, changes and removes names. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "share/server_int.h"

/* The qid of @name, made a moment ago in @p. */
static int put_qid_at(struct share_server *s, const struct place *p, struct p9_out *out)
{
	struct statx st;

	if (statx(p->dir, p->name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st) < 0)
		return -errno;
	const struct p9_qid q = qid_of(s, &st);

	p9_put_qid(out, &q);
	return 0;
}

SHARE_HANDLER(readlink)
{
	_cleanup_place_ struct place p = { 0 };
	char target[PATH_MAX];
	struct fid *f;
	int r = fid_get(s, bytes_get_u32(in), &f);

	if (!p9_is_whole(in))
		r = -EINVAL;
	if (r == 0)
		r = place_of(s, f->node, false, &p);
	if (r < 0)
		return r;
	ssize_t n = readlinkat(p.dir, p.name, target, sizeof(target));

	if (n < 0)
		return -errno;
	p9_put_text(out, target, (size_t)n);
	return 0;
}

SHARE_HANDLER(symlink)
{
	_cleanup_place_ struct place p = { 0 };
	uint32_t id = bytes_get_u32(in);
	char name[P9_NAME_MAX + 1], target[PATH_MAX];
	struct fid *f;
	int r = p9_get_name(in, name);

	if (r == 0)
		r = p9_get_text(in, target, sizeof(target));
	bytes_get_u32(in); /* the guest's group */
	if (r == 0)
		r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;
	if (r == 0)
		r = place_in(s, f->node, name, &p);
	if (r < 0)
		return r;
	return symlinkat(target, p.dir, name) < 0 ? -errno : put_qid_at(s, &p, out);
}

/* Regular files.  Neither devices, which are the host's, nor pipes and sockets, on which programs of the host would wait. */
SHARE_HANDLER(mknod)
{
	uint32_t id = bytes_get_u32(in);
	char name[P9_NAME_MAX + 1];
	struct statx st;
	struct fid *f;
	int r = p9_get_name(in, name);
	uint32_t mode = bytes_get_u32(in);

	bytes_get_u32(in); /* of a device */
	bytes_get_u32(in);
	bytes_get_u32(in); /* the guest's group */
	if (r == 0)
		r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;
	if (r == 0 && (!S_ISREG(mode) || is_special_mode(mode, 0)))
		r = -EPERM;
	if (r < 0)
		return r;
	_cleanup_close_ int fd = open_child(s, f->node, name, O_WRONLY | O_CREAT | O_EXCL, mode & 01777);

	r = fd < 0 ? fd : stat_fd(fd, &st);
	if (r < 0)
		return r;
	const struct p9_qid q = qid_of(s, &st);

	p9_put_qid(out, &q);
	return 0;
}

SHARE_HANDLER(mkdir)
{
	_cleanup_place_ struct place p = { 0 };
	uint32_t id = bytes_get_u32(in);
	char name[P9_NAME_MAX + 1];
	struct fid *f;
	int r = p9_get_name(in, name);
	uint32_t mode = bytes_get_u32(in);
	struct statx st;

	bytes_get_u32(in); /* the guest's group */
	if (r == 0)
		r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;
	if (r == 0)
		r = place_in(s, f->node, name, &p);
	if (r == 0)
		r = stat_fd(p.dir, &st);
	/* v9fs asks for the group of a folder that hands it on; the kernel sees to that. */
	if (r == 0 && is_special_mode(mode, st.stx_mode & S_ISGID))
		r = -EPERM;
	if (r < 0)
		return r;
	return mkdirat(p.dir, name, mode & 01777) < 0 ? -errno : put_qid_at(s, &p, out);
}

SHARE_HANDLER(link)
{
	_cleanup_place_ struct place from = { 0 }, to = { 0 };
	uint32_t dir_id = bytes_get_u32(in), id = bytes_get_u32(in);
	char name[P9_NAME_MAX + 1];
	struct fid *dir, *f;
	int r = p9_get_name(in, name);

	if (r == 0)
		r = p9_is_whole(in) ? fid_get(s, dir_id, &dir) : -EINVAL;
	if (r == 0)
		r = fid_get(s, id, &f);
	if (r == 0)
		r = place_of(s, f->node, true, &from);
	if (r == 0)
		r = place_in(s, dir->node, name, &to);
	if (r < 0)
		return r;
	return linkat(from.dir, from.name, to.dir, name, 0) < 0 ? -errno : 0;
}

/* Two names of one file: rename(2) leaves both. */
static bool is_there(const struct place *p)
{
	struct statx st;

	return statx(p->dir, p->name, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) == 0;
}

static int rename_node(struct share_server *s, struct node *from_dir, const char *from,
		       struct node *to_dir, const char *to)
{
	_cleanup_place_ struct place a = { 0 }, b = { 0 };
	int r = place_in(s, from_dir, from, &a);

	if (r == 0)
		r = place_in(s, to_dir, to, &b);
	if (r == 0 && renameat(a.dir, from, b.dir, to) < 0)
		r = -errno;
	if (r < 0)
		return r;
	struct node *moved = node_find(s, from_dir, from), *replaced = node_find(s, to_dir, to);

	if (moved == replaced ? moved != NULL : is_there(&a))
		return 0;
	if (replaced)
		node_forget(s, replaced);
	if (moved)
		node_move(s, moved, to_dir, to);
	return 0;
}

SHARE_HANDLER(rename)
{
	uint32_t id = bytes_get_u32(in), dir_id = bytes_get_u32(in);
	char name[P9_NAME_MAX + 1], old[P9_NAME_MAX + 1];
	struct fid *f, *dir;
	int r = p9_get_name(in, name);

	if (r == 0)
		r = p9_is_whole(in) ? fid_get(s, id, &f) : -EINVAL;
	if (r == 0)
		r = fid_get(s, dir_id, &dir);
	if (r == 0 && !f->node->parent)
		r = -EBUSY;
	if (r == 0 && f->node->is_gone)
		r = -ENOENT;
	if (r < 0)
		return r;
	memcpy(old, f->node->name, f->node->name_len + 1); /* it may be freed with its node's place */
	return rename_node(s, f->node->parent, old, dir->node, name);
}

SHARE_HANDLER(renameat)
{
	uint32_t from_id = bytes_get_u32(in);
	char from[P9_NAME_MAX + 1], to[P9_NAME_MAX + 1];
	struct fid *from_dir, *to_dir;
	int r = p9_get_name(in, from);
	uint32_t to_id = bytes_get_u32(in);

	if (r == 0)
		r = p9_get_name(in, to);
	if (r == 0)
		r = p9_is_whole(in) ? fid_get(s, from_id, &from_dir) : -EINVAL;
	if (r == 0)
		r = fid_get(s, to_id, &to_dir);
	return r < 0 ? r : rename_node(s, from_dir->node, from, to_dir->node, to);
}

static int unlink_in(struct share_server *s, struct node *dir, const char *name, int flags)
{
	_cleanup_place_ struct place p = { 0 };
	int r = place_in(s, dir, name, &p);

	if (r == 0 && unlinkat(p.dir, name, flags) < 0)
		r = -errno;
	struct node *gone = r == 0 ? node_find(s, dir, name) : NULL;

	if (gone)
		node_forget(s, gone);
	return r;
}

SHARE_HANDLER(unlinkat)
{
	uint32_t id = bytes_get_u32(in);
	char name[P9_NAME_MAX + 1];
	struct fid *dir;
	int r = p9_get_name(in, name);
	uint32_t flags = bytes_get_u32(in);

	if (r == 0)
		r = p9_is_whole(in) && !(flags & ~(uint32_t)AT_REMOVEDIR) ? fid_get(s, id, &dir)
									  : -EINVAL;
	return r < 0 ? r : unlink_in(s, dir->node, name, (int)flags);
}

/* The fid goes, whatever comes of it. */
SHARE_HANDLER(remove)
{
	uint32_t id = bytes_get_u32(in);
	struct fid *f;
	struct statx st;

	if (!p9_is_whole(in))
		return -EINVAL;
	int r = fid_get(s, id, &f);

	if (!f)
		return r;
	struct node *n = f->node;

	if (r == 0 && s->is_readonly)
		r = -EROFS;
	if (r == 0 && !n->parent)
		r = -EBUSY;
	if (r == 0)
		r = stat_node(s, n, &st);
	if (r == 0)
		r = unlink_in(s, n->parent, n->name, S_ISDIR(st.stx_mode) ? AT_REMOVEDIR : 0);
	fid_drop(s, f);
	return r;
}
