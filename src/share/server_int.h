/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the server: server.c (messages, sessions, walking), fids.c (fids and nodes), server_file.c (open files), server_names.c (what changes
 * names), server_attr.c (attributes), state.c (snapshots).
 */
#ifndef VIV_SHARE_SERVER_INT_H
#define VIV_SHARE_SERVER_INT_H

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include "share/server.h"

#define FID_BUCKETS  4096
#define NODE_BUCKETS 4096
#define DIRENT_BYTES 32768

/* What of the flags it was opened with a file is opened again with, from a snapshot. */
#define SHARE_REOPEN_FLAGS (O_ACCMODE | O_APPEND | O_DSYNC | O_SYNC)

/* A file by its name.  Counted: by fids, by nodes below it, by who holds it. */
struct node {
	struct node *parent; /* NULL: the folder itself */
	struct node *next;   /* of its bucket */
	unsigned refs;
	bool is_gone;	/* not in the table any more */
	uint32_t index; /* while a state is saved; else 0 */
	char *name;
	size_t name_len;
};

/* Which file it was. */
struct ident {
	uint64_t qid_path;
	uint32_t format; /* S_IFMT bits */
	uint32_t birth_ns;
	int64_t birth_s; /* 0: the file system tells none */
};

struct fid {
	uint32_t id;
	uint32_t flags; /* of open(2), as it was opened */
	struct fid *next;
	struct node *node;
	struct ident ident;
	int fd; /* -1: not open */
	bool is_stale;
};

struct share_server {
	int root_fd;
	uint64_t root_dev;
	bool is_readonly;
	uint32_t msize; /* 0: no session */
	struct node root;
	uint64_t fid_key; /* random; of the table */
	struct fid *fids[FID_BUCKETS];
	struct node *nodes[NODE_BUCKETS];
	unsigned nfids, nopen, nnodes;
	size_t name_bytes;
	uint8_t dirents[DIRENT_BYTES] __attribute__((aligned(8)));
};

/* ---- fids.c ---- */

/** fid_find() - NULL: there is none. */
struct fid *fid_find(struct share_server *s, uint32_t id);
/** fid_get() - one that can be used.  0, -EBADF, -ESTALE. */
int fid_get(struct share_server *s, uint32_t id, struct fid **out);
/** fid_make() - a new one of @node, of which it takes a reference of its own.  0, -EEXIST, -ENFILE, -ENOMEM. */
int fid_make(struct share_server *s, uint32_t id, struct node *node, struct fid **out);
void fid_close(struct share_server *s, struct fid *f); /* its file; it stays */
void fid_drop(struct share_server *s, struct fid *f);
void fid_drop_all(struct share_server *s);

/** node_child() - the node of @name below @parent, made if there is none; a reference.  0, -ENOMEM. */
int node_child(struct share_server *s, struct node *parent, const char *name, struct node **out);
/** node_find() - borrowed; NULL: there is none. */
struct node *node_find(struct share_server *s, const struct node *parent, const char *name);
struct node *node_ref(struct node *n);
void node_put(struct share_server *s, struct node *n);
/** node_forget() - what was called so is no more. */
void node_forget(struct share_server *s, struct node *n);
/** node_move() - it is called @name below @parent now. */
void node_move(struct share_server *s, struct node *n, struct node *parent, const char *name);
/** node_path() - from the folder, "." for itself.  0, -ENOENT: it is gone; -ENAMETOOLONG. */
int node_path(const struct node *n, char path[PATH_MAX]);

/* ---- files by nodes (server.c); 0 or a descriptor, or -errno ---- */

/* The folder that a file is in, and its name there. */
struct place {
	int dir;
	bool is_own; /* dir is to be closed */
	const char *name;
};

/** open_node() - beneath the folder, never through a link. */
int open_node(struct share_server *s, const struct node *n, int flags, mode_t mode);
/** open_child() - the same of @name in it. */
int open_child(struct share_server *s, const struct node *dir, const char *name, int flags, mode_t mode);
/** place_of() - of a node; -EBUSY: of the folder itself with @is_changed. */
int place_of(struct share_server *s, const struct node *n, bool is_changed, struct place *out);
/** place_in() - of @name, borrowed, in @dir. */
int place_in(struct share_server *s, const struct node *dir, const char *name, struct place *out);
void place_close(struct place *p);
#define _cleanup_place_ __attribute__((cleanup(place_close)))

int stat_node(struct share_server *s, const struct node *n, struct statx *st);
int stat_fd(int fd, struct statx *st);
/** stat_fid() - of the open file, else by its name. */
int stat_fid(struct share_server *s, const struct fid *f, struct statx *st);
struct p9_qid qid_of(const struct share_server *s, const struct statx *st);
struct ident ident_of(const struct share_server *s, const struct statx *st);

/* ---- messages: 0 or -errno ---- */

#define SHARE_HANDLER(name)                                                                        \
	int do_##name(struct share_server *s, struct byte_reader *in, struct p9_out *out)
SHARE_HANDLER(lopen);
SHARE_HANDLER(lcreate);
SHARE_HANDLER(read);
SHARE_HANDLER(write);
SHARE_HANDLER(readdir);
SHARE_HANDLER(fsync);
SHARE_HANDLER(lock);
SHARE_HANDLER(getlock);
SHARE_HANDLER(statfs);
SHARE_HANDLER(getattr);
SHARE_HANDLER(setattr);
SHARE_HANDLER(readlink);
SHARE_HANDLER(symlink);
SHARE_HANDLER(mknod);
SHARE_HANDLER(mkdir);
SHARE_HANDLER(link);
SHARE_HANDLER(rename);
SHARE_HANDLER(renameat);
SHARE_HANDLER(unlinkat);
SHARE_HANDLER(remove);

/** reopen_fid() - open @f by its name, with @flags as the guest said them; not if it is no file or directory. */
int reopen_fid(struct share_server *s, struct fid *f, uint32_t flags, struct statx *st);
/** is_special_mode() - would it set set-user-id or set-group-id bits that @now has not? */
static inline bool is_special_mode(uint32_t mode, uint32_t now)
{
	return mode & ~now & (S_ISUID | S_ISGID);
}

#endif
