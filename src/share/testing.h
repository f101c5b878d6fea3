/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of the server: a folder, something beside it that nobody may reach, and a client that says one message after the other.
 *
 *	DIR/share/          what is shared
 *	DIR/secret          "secret", never to be seen
 */
#ifndef VIV_SHARE_TESTING_H
#define VIV_SHARE_TESTING_H

#include "base/unit.h"
#include "share/server.h"

#define SHARE_ROOT 1u /* fid of the folder, once attached */

struct share_rig {
	char dir[64];
	char share[80];
	struct share_server *s;
	struct bytes req;
	uint8_t reply[P9_MSIZE_MAX];
	struct byte_reader in; /* the last answer, behind its header */
};

/** share_rig_open() - with a session of @msize and SHARE_ROOT attached. */
void share_rig_open(struct share_rig *r, bool is_readonly);
/** share_rig_serve() - another server of the same folder in place of the one that is there. */
void share_rig_serve(struct share_rig *r, bool is_readonly);
void share_rig_attach(struct share_rig *r, uint32_t msize);
void share_rig_close(struct share_rig *r); /* removes all of it */

/* A message: begin, fields by bytes_put_...(&r->req), call.  0 or the error that the answer says, negative. */
void share_begin(struct share_rig *r, uint8_t type);
void share_text(struct share_rig *r, const char *text);
int share_call(struct share_rig *r);

/* Whole ones; 0 or -errno. */
int share_walk(struct share_rig *r, uint32_t fid, uint32_t newfid,
	       const char *path); /* parts by slashes; all of it, or an error */
int share_open(struct share_rig *r, uint32_t fid, uint32_t flags);
int share_create(struct share_rig *r, uint32_t fid, const char *name, uint32_t flags, uint32_t mode);
int share_mkdir(struct share_rig *r, uint32_t fid, const char *name, uint32_t mode);
int share_symlink(struct share_rig *r, uint32_t fid, const char *name, const char *target);
int share_rename_at(struct share_rig *r, uint32_t from, const char *name, uint32_t to,
		    const char *new_name);
int share_unlink_at(struct share_rig *r, uint32_t fid, const char *name, uint32_t flags);
int share_clunk(struct share_rig *r, uint32_t fid);
/** share_read() - at most 255 bytes, as text; "-ERRNO" as a number where it fails. */
const char *share_read(struct share_rig *r, uint32_t fid, uint64_t offset);
int share_write(struct share_rig *r, uint32_t fid, uint64_t offset, const char *text);
struct share_attr {
	uint64_t qid_path, size, nlink;
	uint32_t mode, uid, gid;
	int64_t mtime_s;
	uint64_t mtime_ns;
};
int share_getattr(struct share_rig *r, uint32_t fid, struct share_attr *out);
int share_setattr(struct share_rig *r, uint32_t fid, uint32_t valid, uint32_t mode, uint32_t uid,
		  uint64_t size);
/** share_list() - all names of the open directory @fid, sorted, with a space after each. */
const char *share_list(struct share_rig *r, uint32_t fid, uint32_t count);

/* The host's side: a path below DIR. */
const char *share_path(const struct share_rig *r, const char *path);
void share_host_write(const struct share_rig *r, const char *path, const char *text);
const char *share_host_read(const struct share_rig *r, const char *path); /* "" where there is none */

#endif
