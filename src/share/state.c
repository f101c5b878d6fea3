/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a snapshot holds of a shared folder: not its files, but which of them the guest had in hand.  Integers little-endian, nothing aligned.
 *
 *   state = "VIVSHARE", u32 version, u32 msize (0: no session), u32 nodes, u32 fids, node..., fid...
 *   node  = u32 parent, u8 length, name         numbered from 1; 0 is the folder itself; parents come first
 *   fid   = u32 number, u32 node (all ones: it has no name any more), u8 is open, u32 flags of open(2), then which file it was:
 *           u64 qid path, u32 S_IFMT bits, i64 and u32 time of birth (0: none known)        ascending by number
 */
#include <errno.h>
#include <string.h>

#include "share/server_int.h"

static const char magic[8] = "VIVSHARE";
#define VERSION	  1u
#define NO_NODE	  0xffffffffu
#define NODE_MIN  6 /* bytes */
#define FID_BYTES 37

/* ---- out ---- */

struct saver {
	struct bytes nodes, fids;
	struct node **stack; /* of all nodes */
	uint32_t nnodes;
};

/* Parents first. */
static uint32_t number_node(struct saver *w, struct node *n)
{
	size_t depth = 0;

	for (struct node *p = n; p->parent && !p->index; p = p->parent)
		w->stack[depth++] = p;
	while (depth) {
		struct node *p = w->stack[--depth];

		p->index = ++w->nnodes;
		bytes_put_u32(&w->nodes, p->parent->parent ? p->parent->index : 0);
		bytes_put_u8(&w->nodes, (uint8_t)p->name_len);
		bytes_put(&w->nodes, p->name, p->name_len);
	}
	return n->parent ? n->index : 0;
}

static void save_fid(struct saver *w, const struct fid *f)
{
	char path[PATH_MAX];
	bool has_name = !f->is_stale && node_path(f->node, path) == 0;

	bytes_put_u32(&w->fids, f->id);
	bytes_put_u32(&w->fids, has_name ? number_node(w, f->node) : NO_NODE);
	bytes_put_u8(&w->fids, f->fd >= 0);
	bytes_put_u32(&w->fids, f->fd >= 0 ? f->flags : 0);
	bytes_put_u64(&w->fids, f->ident.qid_path);
	bytes_put_u32(&w->fids, f->ident.format);
	bytes_put_u64(&w->fids, (uint64_t)f->ident.birth_s);
	bytes_put_u32(&w->fids, f->ident.birth_ns);
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = (*(struct fid *const *)a)->id, y = (*(struct fid *const *)b)->id;

	return (x > y) - (x < y);
}

int share_server_save(struct share_server *s, struct bytes *out)
{
	struct saver w = { .stack = calloc(s->nnodes + 1, sizeof(*w.stack)) };
	struct fid **sorted = calloc(s->nfids + 1, sizeof(struct fid *));
	unsigned n = 0;
	int r = w.stack && sorted ? 0 : -ENOMEM;

	for (unsigned i = 0; r == 0 && i < FID_BUCKETS; i++)
		for (struct fid *f = s->fids[i]; f; f = f->next)
			sorted[n++] = f;
	if (n)
		qsort(sorted, n, sizeof(*sorted), compare_ids);
	for (unsigned i = 0; i < n; i++)
		save_fid(&w, sorted[i]);
	for (unsigned i = 0; i < n; i++)
		for (struct node *p = sorted[i]->node; p && p->index; p = p->parent)
			p->index = 0;
	if (r == 0) {
		bytes_put(out, magic, sizeof(magic));
		bytes_put_u32(out, VERSION);
		bytes_put_u32(out, s->msize);
		bytes_put_u32(out, w.nnodes);
		bytes_put_u32(out, n);
		bytes_put(out, w.nodes.data, w.nodes.len);
		bytes_put(out, w.fids.data, w.fids.len);
		if (out->is_failed || w.nodes.is_failed || w.fids.is_failed)
			r = -ENOMEM;
	}
	bytes_free(&w.nodes);
	bytes_free(&w.fids);
	free(w.stack);
	free(sorted);
	return r;
}

/* ---- in ---- */

struct saved_node {
	uint32_t parent;
	char name[P9_NAME_MAX + 1];
};
struct saved_fid {
	uint32_t id, node, flags;
	uint8_t is_open;
	struct ident ident;
};
struct image {
	uint32_t msize, nnodes, nfids, nopen;
	struct byte_reader nodes, fids; /* at the first of each */
};

static int damaged(struct error *err, const char *how)
{
	return error_set(err, -EINVAL, "the saved state of a shared folder is damaged: %s", how);
}

static bool get_node(struct byte_reader *in, uint32_t index, struct saved_node *n)
{
	n->parent = bytes_get_u32(in);
	uint8_t len = bytes_get_u8(in);

	if (!bytes_get(in, n->name, len) || n->parent >= index || p9_check_name(n->name, len) < 0)
		return false;
	n->name[len] = 0;
	return true;
}

static bool is_format(uint32_t format)
{
	static const uint32_t formats[] = { S_IFREG, S_IFDIR,  S_IFLNK, S_IFCHR,
					    S_IFBLK, S_IFSOCK, S_IFIFO };

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (format == formats[i])
			return true;
	return false;
}

static bool get_fid(struct byte_reader *in, const struct image *im, struct saved_fid *f)
{
	f->id = bytes_get_u32(in);
	f->node = bytes_get_u32(in);
	f->is_open = bytes_get_u8(in);
	f->flags = bytes_get_u32(in);
	f->ident.qid_path = bytes_get_u64(in);
	f->ident.format = bytes_get_u32(in);
	f->ident.birth_s = (int64_t)bytes_get_u64(in);
	f->ident.birth_ns = bytes_get_u32(in);
	return !in->is_failed && f->id != P9_NOFID && (f->node <= im->nnodes || f->node == NO_NODE) &&
	       f->is_open <= 1 && !(f->flags & ~(uint32_t)SHARE_REOPEN_FLAGS) &&
	       (f->flags & O_ACCMODE) != O_ACCMODE && (f->is_open || !f->flags) &&
	       is_format(f->ident.format) && f->ident.birth_ns < 1000000000;
}

static int parse(struct image *im, const uint8_t *data, size_t len, struct error *err)
{
	struct byte_reader in = { .data = data, .len = len };
	struct saved_node node;
	struct saved_fid fid;
	uint64_t names = 0, last = 0;
	char mark[sizeof(magic)];

	*im = (struct image){ 0 };
	if (!bytes_get(&in, mark, sizeof(mark)) || memcmp(mark, magic, sizeof(magic)) != 0)
		return damaged(err, "it does not begin as one");
	uint32_t version = bytes_get_u32(&in);

	if (!in.is_failed && version != VERSION)
		return error_set(err, -EINVAL, "the saved state of a shared folder has version %u, this program knows version %u",
				 version, VERSION);
	im->msize = bytes_get_u32(&in);
	im->nnodes = bytes_get_u32(&in);
	im->nfids = bytes_get_u32(&in);
	if (in.is_failed || im->nnodes > SHARE_NODES_MAX || im->nfids > SHARE_FIDS_MAX ||
	    im->nnodes > len / NODE_MIN || im->nfids > len / FID_BYTES)
		return damaged(err, "it is cut off");
	if (im->msize ? im->msize < P9_MSIZE_MIN || im->msize > P9_MSIZE_MAX : im->nnodes || im->nfids)
		return damaged(err, "its session is none");
	im->nodes = in;
	for (uint32_t i = 1; i <= im->nnodes; i++) {
		if (!get_node(&in, i, &node))
			return damaged(err, "a name is wrong");
		names += strlen(node.name);
	}
	im->fids = in;
	for (uint32_t i = 0; i < im->nfids; i++) {
		if (!get_fid(&in, im, &fid) || (i && fid.id <= last))
			return damaged(err, "a file is wrong");
		last = fid.id;
		im->nopen += fid.is_open;
	}
	if (names > SHARE_NAMES_MAX || im->nopen > SHARE_OPEN_MAX || in.pos != in.len)
		return damaged(err, "it is too long");
	return 0;
}

int share_state_check(const uint8_t *data, size_t len, struct error *err)
{
	struct image im;

	return parse(&im, data, len, err);
}

int share_state_show(const uint8_t *data, size_t len, struct bytes *out, struct error *err)
{
	struct image im;
	struct saved_node node;
	struct saved_fid f;
	int r = parse(&im, data, len, err);

	if (r < 0)
		return r;
	bytes_printf(out, "msize = %u\n", im.msize);
	for (uint32_t i = 1; i <= im.nnodes && get_node(&im.nodes, i, &node); i++) {
		/* A guest's names may steer a terminal. */
		for (char *c = node.name; *c; c++)
			if ((unsigned char)*c < ' ' || (unsigned char)*c > '~')
				*c = '?';
		bytes_printf(out, "node %u = in %u: %s\n", i, node.parent, node.name);
	}
	for (uint32_t i = 0; i < im.nfids && get_fid(&im.fids, &im, &f); i++)
		bytes_printf(out, "fid %u = node %d%s, flags %#x, inode %llu, type %#o\n", f.id,
			     (int)f.node, f.is_open ? ", open" : "", f.flags,
			     (unsigned long long)f.ident.qid_path, f.ident.format);
	return out->is_failed ? error_set(err, -ENOMEM, "no memory to show the state") : 0;
}

static bool is_same(const struct ident *a, const struct ident *b)
{
	return a->qid_path == b->qid_path && a->format == b->format && a->birth_s == b->birth_s &&
	       a->birth_ns == b->birth_ns;
}

/* Is it there, and the same? */
static bool find_again(struct share_server *s, struct fid *f, const struct saved_fid *saved)
{
	struct ident now;
	struct statx st;

	f->ident = saved->ident;
	if (saved->node == NO_NODE || stat_node(s, f->node, &st) < 0)
		return false;
	now = ident_of(s, &st);
	if (!is_same(&now, &saved->ident))
		return false;
	if (!saved->is_open)
		return true;
	bool is_fine = reopen_fid(s, f, saved->flags, &st) == 0 && is_same(&f->ident, &saved->ident);

	f->ident = saved->ident;
	return is_fine;
}

static int load_fids(struct share_server *s, struct image *im, struct node **nodes, unsigned *nstale)
{
	struct saved_fid saved;
	struct fid *f;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < im->nfids && get_fid(&im->fids, im, &saved); i++) {
		r = fid_make(s, saved.id, saved.node == NO_NODE ? &s->root : nodes[saved.node], &f);
		if (r == 0 && !find_again(s, f, &saved)) {
			fid_close(s, f);
			f->is_stale = true;
			(*nstale)++;
		}
	}
	return r;
}

int share_server_load(struct share_server *s, const uint8_t *data, size_t len, unsigned *nstale,
		      struct error *err)
{
	struct saved_node node;
	struct image im;
	uint32_t made = 0;
	unsigned stale = 0;
	int r = parse(&im, data, len, err);

	share_server_reset(s);
	if (r < 0)
		return r;
	struct node **nodes = calloc(im.nnodes + 1, sizeof(struct node *));

	r = nodes ? 0 : -ENOMEM;
	if (r == 0)
		nodes[0] = &s->root;
	while (r == 0 && made < im.nnodes && get_node(&im.nodes, made + 1, &node)) {
		r = node_child(s, nodes[node.parent], node.name, &nodes[made + 1]);
		made += r == 0;
	}
	if (r == 0)
		r = load_fids(s, &im, nodes, &stale);
	/* What no file leads to goes again. */
	while (made)
		node_put(s, nodes[made--]);
	free(nodes);
	s->msize = im.msize;
	if (r < 0) {
		share_server_reset(s);
		return error_set(err, r, "the saved state of a shared folder can't be loaded: %s",
				 strerror(-r));
	}
	*nstale = stale;
	return 0;
}
