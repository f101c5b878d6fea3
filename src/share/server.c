/* SPDX-License-Identifier: Apache-2.0 */
#include "share/server.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>

#include "share/server_int.h"

#define BENEATH (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)
#define TRIES                                                                                      \
	16 /* a ".." that races with a rename gives EAGAIN; none is ever asked for, but the kernel may */

/* ---- files by nodes ---- */

static int open_path(struct share_server *s, const char *path, int flags, mode_t mode)
{
	const struct open_how how = { .flags = (uint64_t)(flags | O_NOFOLLOW | O_CLOEXEC),
				      .mode = mode,
				      .resolve = BENEATH };
	int fd;

	for (int i = 0; i < TRIES; i++) {
		fd = (int)syscall(SYS_openat2, s->root_fd, path, &how, sizeof(how));
		if (fd >= 0 || (errno != EAGAIN && errno != EINTR))
			break;
	}
	return fd < 0 ? -errno : fd;
}

int open_node(struct share_server *s, const struct node *n, int flags, mode_t mode)
{
	char path[PATH_MAX];
	int r = node_path(n, path);

	return r < 0 ? r : open_path(s, path, flags, mode);
}

int open_child(struct share_server *s, const struct node *dir, const char *name, int flags, mode_t mode)
{
	char path[PATH_MAX];
	int r = node_path(dir, path);

	if (r < 0)
		return r;
	size_t len = strlen(path), need = strlen(name) + 2;

	if (need > sizeof(path) - len)
		return -ENAMETOOLONG;
	path[len] = '/';
	memcpy(path + len + 1, name, need - 1);
	return open_path(s, path, flags, mode);
}

int place_in(struct share_server *s, const struct node *dir, const char *name, struct place *out)
{
	int fd = open_node(s, dir, O_PATH | O_DIRECTORY, 0);

	if (fd < 0)
		return fd;
	*out = (struct place){ fd, true, name };
	return 0;
}

int place_of(struct share_server *s, const struct node *n, bool is_changed, struct place *out)
{
	if (n->parent)
		return n->is_gone ? -ENOENT : place_in(s, n->parent, n->name, out);
	if (is_changed)
		return -EBUSY;
	*out = (struct place){ s->root_fd, false, "." };
	return 0;
}

void place_close(struct place *p)
{
	if (p->is_own)
		close(p->dir);
	p->is_own = false;
}

int stat_fd(int fd, struct statx *st)
{
	return statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, st) < 0 ? -errno : 0;
}

int stat_node(struct share_server *s, const struct node *n, struct statx *st)
{
	if (!n->parent)
		return stat_fd(s->root_fd, st);
	_cleanup_close_ int fd = open_node(s, n, O_PATH, 0);

	return fd < 0 ? fd : stat_fd(fd, st);
}

int stat_fid(struct share_server *s, const struct fid *f, struct statx *st)
{
	return f->fd >= 0 ? stat_fd(f->fd, st) : stat_node(s, f->node, st);
}

/* Inodes of one file system have numbers; those of others that may lie below it, like volumes of btrfs, are told apart. */
static uint64_t path_of(const struct share_server *s, const struct statx *st)
{
	uint64_t dev = (uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor;

	return dev == s->root_dev ? st->stx_ino : st->stx_ino ^ dev * 0x9e3779b97f4a7c15ull;
}

struct p9_qid qid_of(const struct share_server *s, const struct statx *st)
{
	return (struct p9_qid){
		.type = S_ISDIR(st->stx_mode)	? P9_QT_DIR
			: S_ISLNK(st->stx_mode) ? P9_QT_SYMLINK
						: P9_QT_FILE,
		.version = (uint32_t)st->stx_mtime.tv_sec ^ st->stx_mtime.tv_nsec ^
			   (uint32_t)st->stx_size << 8,
		.path = path_of(s, st),
	};
}

struct ident ident_of(const struct share_server *s, const struct statx *st)
{
	bool has_birth = st->stx_mask & STATX_BTIME;

	return (struct ident){ .qid_path = path_of(s, st),
			       .format = st->stx_mode & S_IFMT,
			       .birth_s = has_birth ? st->stx_btime.tv_sec : 0,
			       .birth_ns = has_birth ? st->stx_btime.tv_nsec : 0 };
}

/* ---- sessions ---- */

int share_server_create(struct share_server **out, int root_fd, bool is_readonly, struct error *err)
{
	struct share_server *s = calloc(1, sizeof(*s));
	struct statx st;
	int r = s ? stat_fd(root_fd, &st) : -ENOMEM;

	if (r == 0 && !S_ISDIR(st.stx_mode))
		r = -ENOTDIR;
	if (r == 0 && getrandom(&s->fid_key, sizeof(s->fid_key), 0) != sizeof(s->fid_key))
		r = -EIO;
	if (r < 0) {
		close(root_fd);
		free(s);
		return error_set(err, r, "the folder can't be shared: %s", strerror(-r));
	}
	s->root_fd = root_fd;
	s->root_dev = (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor;
	s->is_readonly = is_readonly;
	s->root.refs = 1;
	*out = s;
	return 0;
}

void share_server_reset(struct share_server *s)
{
	fid_drop_all(s);
	s->msize = 0;
}

void share_server_destroy(struct share_server *s)
{
	if (!s)
		return;
	fid_drop_all(s);
	close(s->root_fd);
	free(s);
}

unsigned share_server_fids(const struct share_server *s)
{
	return s->nfids;
}

unsigned share_server_nodes(const struct share_server *s)
{
	return s->nnodes;
}

static SHARE_HANDLER(version)
{
	uint32_t msize = bytes_get_u32(in);
	char version[32];

	if (p9_get_text(in, version, sizeof(version)) < 0 || !p9_is_whole(in))
		return -EINVAL;
	if (msize < P9_MSIZE_MIN)
		return -EMSGSIZE;
	share_server_reset(s);
	bool is_ours = strcmp(version, P9_VERSION) == 0;
	const char *answer = is_ours ? P9_VERSION : "unknown";

	msize = MIN(msize, P9_MSIZE_MAX);
	s->msize = is_ours ? msize : 0;
	p9_put_u32(out, msize);
	p9_put_text(out, answer, strlen(answer));
	return 0;
}

static SHARE_HANDLER(attach)
{
	uint32_t id = bytes_get_u32(in), afid = bytes_get_u32(in);
	char user[P9_NAME_MAX + 1], tree[P9_NAME_MAX + 1];
	struct statx st;
	struct fid *f;

	if (p9_get_text(in, user, sizeof(user)) < 0 || p9_get_text(in, tree, sizeof(tree)) < 0)
		return -EINVAL;
	bytes_get_u32(in); /* the guest's user: all is done as the user of this process */
	if (!p9_is_whole(in) || afid != P9_NOFID)
		return -EINVAL;
	if (tree[0] && strcmp(tree, "/") != 0)
		return -ENOENT;
	int r = stat_node(s, &s->root, &st);

	if (r == 0)
		r = fid_make(s, id, &s->root, &f);
	if (r < 0)
		return r;
	f->ident = ident_of(s, &st);
	const struct p9_qid q = qid_of(s, &st);

	p9_put_qid(out, &q);
	return 0;
}

/* One component: @at, a reference, becomes what @name leads to. */
static int step(struct share_server *s, struct node **at, const char *name, struct statx *st)
{
	struct node *next;
	int r = 0;

	if (strcmp(name, "..") == 0)
		next = node_ref((*at)->parent ? (*at)->parent : *at);
	else
		r = node_child(s, *at, name, &next);
	if (r == 0) {
		r = stat_node(s, next, st);
		if (r < 0) {
			node_put(s, next);
			return r;
		}
		node_put(s, *at);
		*at = next;
	}
	return r;
}

static int get_step_name(struct byte_reader *in, char name[P9_NAME_MAX + 1])
{
	static const uint8_t up[] = { 2, 0, '.', '.' };

	if (in->len - in->pos >= sizeof(up) && memcmp(in->data + in->pos, up, sizeof(up)) == 0) {
		in->pos += sizeof(up);
		memcpy(name, "..", 3);
		return 0;
	}
	return p9_get_name(in, name);
}

/* @newid becomes @node. */
static int put_walked(struct share_server *s, struct fid *from, uint32_t newid, struct node *node,
		      const struct ident *ident)
{
	struct fid *f = from;

	if (newid == from->id) {
		struct node *old = f->node;

		f->node = node_ref(node);
		node_put(s, old);
	} else {
		int r = fid_make(s, newid, node, &f);

		if (r < 0)
			return r;
	}
	f->ident = *ident;
	return 0;
}

static SHARE_HANDLER(walk)
{
	uint32_t id = bytes_get_u32(in), newid = bytes_get_u32(in);
	unsigned n = bytes_get_u16(in), done = 0;
	char names[P9_WALK_MAX][P9_NAME_MAX + 1];
	struct p9_qid qids[P9_WALK_MAX];
	struct ident ident;
	struct fid *f;
	int r = in->is_failed || n > P9_WALK_MAX ? -EINVAL : 0;

	for (unsigned i = 0; r == 0 && i < n; i++)
		r = get_step_name(in, names[i]);
	if (r == 0 && !p9_is_whole(in))
		r = -EINVAL;
	if (r == 0)
		r = fid_get(s, id, &f);
	if (r == 0 && (newid == id ? f->fd >= 0 && n : fid_find(s, newid) != NULL))
		r = newid == id ? -EBUSY : -EEXIST;
	if (r < 0)
		return r;
	struct node *at = node_ref(f->node);

	ident = f->ident;
	for (; r == 0 && done < n; done += r == 0) {
		struct statx st;

		r = step(s, &at, names[done], &st);
		if (r == 0) {
			qids[done] = qid_of(s, &st);
			ident = ident_of(s, &st);
		}
	}
	/* Some of the way is an answer, too; but no fid. */
	if (done == n)
		r = put_walked(s, f, newid, at, &ident);
	else if (done)
		r = 0;
	node_put(s, at);
	if (r < 0)
		return r;
	p9_put_u16(out, (uint16_t)done);
	for (unsigned i = 0; i < done; i++)
		p9_put_qid(out, &qids[i]);
	return 0;
}

static SHARE_HANDLER(clunk)
{
	struct fid *f = fid_find(s, bytes_get_u32(in));

	if (!p9_is_whole(in))
		return -EINVAL;
	if (!f)
		return -EBADF;
	fid_drop(s, f);
	return 0;
}

/* One request after the other: what is to be flushed has been answered. */
static SHARE_HANDLER(flush)
{
	bytes_get_u16(in);
	return p9_is_whole(in) ? 0 : -EINVAL;
}

static SHARE_HANDLER(refuse)
{
	return -EOPNOTSUPP;
}

/* ---- messages ---- */

// clang-format off
static const struct row {
	uint8_t type;
	bool changes; /* the folder; what Tlopen changes is its own matter */
	int (*fn)(struct share_server *s, struct byte_reader *in, struct p9_out *out);
} rows[] = {
	{ P9_TVERSION,     false, do_version },
	{ P9_TAUTH,        false, do_refuse }, /* nobody has to */
	{ P9_TATTACH,      false, do_attach },
	{ P9_TFLUSH,       false, do_flush },
	{ P9_TWALK,        false, do_walk },
	{ P9_TCLUNK,       false, do_clunk },
	{ P9_TLOPEN,       false, do_lopen },
	{ P9_TLCREATE,     true,  do_lcreate },
	{ P9_TREAD,        false, do_read },
	{ P9_TWRITE,       true,  do_write },
	{ P9_TREADDIR,     false, do_readdir },
	{ P9_TFSYNC,       false, do_fsync },
	{ P9_TLOCK,        false, do_lock },
	{ P9_TGETLOCK,     false, do_getlock },
	{ P9_TSTATFS,      false, do_statfs },
	{ P9_TGETATTR,     false, do_getattr },
	{ P9_TSETATTR,     true,  do_setattr },
	{ P9_TXATTRWALK,   false, do_refuse },
	{ P9_TXATTRCREATE, false, do_refuse },
	{ P9_TREADLINK,    false, do_readlink },
	{ P9_TSYMLINK,     true,  do_symlink },
	{ P9_TMKNOD,       true,  do_mknod },
	{ P9_TMKDIR,       true,  do_mkdir },
	{ P9_TLINK,        true,  do_link },
	{ P9_TRENAME,      true,  do_rename },
	{ P9_TRENAMEAT,    true,  do_renameat },
	{ P9_TUNLINKAT,    true,  do_unlinkat },
	{ P9_TREMOVE,      true,  do_remove },
};
// clang-format on

static const struct row *find_row(uint8_t type)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (rows[i].type == type)
			return &rows[i];
	return NULL;
}

static int dispatch(struct share_server *s, uint8_t type, struct byte_reader *in, struct p9_out *out)
{
	const struct row *row = find_row(type);

	if (!row)
		return -EOPNOTSUPP;
	if (!s->msize && type != P9_TVERSION)
		return -EPROTO;
	if (s->msize && in->len > s->msize)
		return -EMSGSIZE;
	if (row->changes && s->is_readonly && type != P9_TREMOVE)
		return -EROFS;
	int r = row->fn(s, in, out);

	return r == 0 && out->is_full ? -EMSGSIZE : r;
}

size_t share_server_handle(struct share_server *s, const uint8_t *req, size_t len, uint8_t *reply)
{
	struct byte_reader in = { .data = req, .len = len };
	struct p9_out out = { .data = reply, .cap = P9_MSIZE_MAX };
	uint32_t size = bytes_get_u32(&in);
	uint8_t type = bytes_get_u8(&in);
	uint16_t tag = bytes_get_u16(&in);

	if (s->msize)
		out.cap = s->msize;
	p9_put_u32(&out, 0);
	p9_put_u8(&out, (uint8_t)(type + 1));
	p9_put_u16(&out, tag);
	int r = in.is_failed || size != len ? -EINVAL : dispatch(s, type, &in, &out);

	if (r < 0) {
		p9_error(reply, tag, -r);
		return P9_ERROR_LEN;
	}
	p9_poke_u32(&out, 0, (uint32_t)out.len);
	return out.len;
}
