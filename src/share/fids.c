/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "share/server_int.h"

/* ---- fids ---- */

/* The guest picks the numbers: without the key it can't pick those of one bucket. */
static unsigned fid_bucket(const struct share_server *s, uint32_t id)
{
	return (unsigned)(XXH64(&id, sizeof(id), s->fid_key) % FID_BUCKETS);
}

static struct fid **fid_slot(struct share_server *s, uint32_t id)
{
	struct fid **p = &s->fids[fid_bucket(s, id)];

	while (*p && (*p)->id != id)
		p = &(*p)->next;
	return p;
}

struct fid *fid_find(struct share_server *s, uint32_t id)
{
	return *fid_slot(s, id);
}

int fid_get(struct share_server *s, uint32_t id, struct fid **out)
{
	*out = fid_find(s, id);
	return !*out ? -EBADF : (*out)->is_stale ? -ESTALE : 0;
}

int fid_make(struct share_server *s, uint32_t id, struct node *node, struct fid **out)
{
	struct fid **slot = fid_slot(s, id);

	if (*slot || id == P9_NOFID)
		return -EEXIST;
	if (s->nfids == SHARE_FIDS_MAX)
		return -ENFILE;
	struct fid *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->id = id;
	f->fd = -1;
	f->node = node_ref(node);
	*slot = f;
	s->nfids++;
	*out = f;
	return 0;
}

void fid_close(struct share_server *s, struct fid *f)
{
	if (f->fd < 0)
		return;
	close(f->fd);
	f->fd = -1;
	s->nopen--;
}

void fid_drop(struct share_server *s, struct fid *f)
{
	*fid_slot(s, f->id) = f->next;
	s->nfids--;
	fid_close(s, f);
	node_put(s, f->node);
	free(f);
}

void fid_drop_all(struct share_server *s)
{
	for (unsigned i = 0; i < FID_BUCKETS; i++)
		while (s->fids[i])
			fid_drop(s, s->fids[i]);
}

/* ---- nodes ---- */

static unsigned bucket_of(const struct node *parent, const char *name, size_t len)
{
	uint64_t h = 0xcbf29ce484222325ull ^ (uintptr_t)parent >> 4;

	for (size_t i = 0; i < len; i++)
		h = (h ^ (uint8_t)name[i]) * 0x100000001b3ull;
	return (unsigned)(h ^ h >> 32) % NODE_BUCKETS;
}

struct node *node_find(struct share_server *s, const struct node *parent, const char *name)
{
	size_t len = strlen(name);

	for (struct node *n = s->nodes[bucket_of(parent, name, len)]; n; n = n->next)
		if (n->parent == parent && n->name_len == len && memcmp(n->name, name, len) == 0)
			return n;
	return NULL;
}

struct node *node_ref(struct node *n)
{
	n->refs++;
	return n;
}

static void hash(struct share_server *s, struct node *n)
{
	struct node **b = &s->nodes[bucket_of(n->parent, n->name, n->name_len)];

	n->next = *b;
	*b = n;
}

static void unhash(struct share_server *s, struct node *n)
{
	struct node **p = &s->nodes[bucket_of(n->parent, n->name, n->name_len)];

	while (*p != n)
		p = &(*p)->next;
	*p = n->next;
}

void node_put(struct share_server *s, struct node *n)
{
	/* The folder's own node is never freed. */
	while (--n->refs == 0) {
		struct node *parent = n->parent;

		if (!n->is_gone)
			unhash(s, n);
		s->nnodes--;
		s->name_bytes -= n->name_len;
		free(n->name);
		free(n);
		n = parent;
	}
}

int node_child(struct share_server *s, struct node *parent, const char *name, struct node **out)
{
	struct node *n = node_find(s, parent, name);
	size_t len = strlen(name);

	if (n) {
		*out = node_ref(n);
		return 0;
	}
	if (s->nnodes == SHARE_NODES_MAX || s->name_bytes + len > SHARE_NAMES_MAX)
		return -ENOMEM;
	n = calloc(1, sizeof(*n));
	if (!n)
		return -ENOMEM;
	n->name = strdup(name);
	if (!n->name) {
		free(n);
		return -ENOMEM;
	}
	n->name_len = len;
	n->parent = node_ref(parent);
	n->refs = 1;
	hash(s, n);
	s->nnodes++;
	s->name_bytes += len;
	*out = n;
	return 0;
}

void node_forget(struct share_server *s, struct node *n)
{
	if (!n->parent || n->is_gone)
		return;
	unhash(s, n);
	n->is_gone = true;
}

void node_move(struct share_server *s, struct node *n, struct node *parent, const char *name)
{
	char *copy = strdup(name);
	bool is_below = false;

	/* The kernel puts no directory below itself; if names changed under us, the tree still is one. */
	for (const struct node *p = parent; p; p = p->parent)
		is_below |= p == n;
	size_t len = strlen(name);

	if (!copy || is_below || s->name_bytes - n->name_len + len > SHARE_NAMES_MAX) {
		free(copy);
		node_forget(s, n);
		return;
	}
	struct node *old = n->parent;

	unhash(s, n);
	free(n->name);
	s->name_bytes += len - n->name_len;
	n->name = copy;
	n->name_len = len;
	n->parent = node_ref(parent);
	hash(s, n);
	node_put(s, old);
}

int node_path(const struct node *n, char path[PATH_MAX])
{
	size_t at = PATH_MAX - 1;

	if (!n->parent) {
		memcpy(path, ".", 2);
		return 0;
	}
	path[at] = 0;
	for (; n->parent; n = n->parent) {
		if (n->is_gone)
			return -ENOENT;
		if (n->name_len + 1 > at)
			return -ENAMETOOLONG;
		at -= n->name_len;
		memcpy(path + at, n->name, n->name_len);
		if (n->parent->parent)
			path[--at] = '/';
	}
	memmove(path, path + at, PATH_MAX - at);
	return 0;
}
