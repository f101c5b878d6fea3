/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server of one shared folder: a request of 9P2000.L in, an answer out.
 *
 * Everything is done as the user whose process it is, without any capability, one request after the other.
 *
 * How files are found.  A fid, the guest's number for a file, leads to a node: a name below another node, up to the folder itself.  No
 * descriptor is kept of a file that is not open.  Each operation opens the folder that its file is in by the path of the nodes, with
 * openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV) from the descriptor of the shared folder, and names only the last
 * component from there, by calls that do not follow links.  So a fid is a path and nothing else, which a snapshot can tell (state.c).
 *
 * Invariants, whatever the guest sends and whoever else renames files meanwhile
 *  1. No call leads out of the folder, through no link, no "..", no mount point below it.
 *  2. Nodes are a tree: each has one parent and one name there, unless it is gone (removed, or something was put in its place); a gone
 *     node and all below it have no path.
 *  3. Only regular files and directories are opened; nothing else is made but those and symbolic links.
 *  4. With is_readonly nothing of the folder changes, by the server's own checks, wherever else that is enforced.
 *  5. What grows is bounded: SHARE_FIDS_MAX fids, SHARE_OPEN_MAX of them open, SHARE_NODES_MAX nodes with SHARE_NAMES_MAX bytes of names, messages of P9_MSIZE_MAX.
 *
 * What it refuses: devices, pipes and sockets, set-user-id and set-group-id bits that a file does not have, other owners, extended attributes. Locks are
 * granted always: they hold between the programs of one guest, whose kernel keeps them.
 */
#ifndef VIV_SHARE_SERVER_H
#define VIV_SHARE_SERVER_H

#include "base/error.h"
#include "share/p9.h"

#define SHARE_FIDS_MAX	65536
#define SHARE_OPEN_MAX	1024
#define SHARE_NODES_MAX 81920
#define SHARE_NAMES_MAX (4 * MIB)

struct share_server;

/**
 * share_server_create() - nothing attached yet.
 * @root_fd: the folder, O_PATH or opened for reading; taken in any case
 * Returns 0, -ENOTDIR, -ENOMEM, -errno with @err set.
 */
int share_server_create(struct share_server **out, int root_fd, bool is_readonly, struct error *err);
void share_server_destroy(struct share_server *s); /* NULL is fine */

/** share_server_reset() - as after create: no fid, no session. */
void share_server_reset(struct share_server *s);

/**
 * share_server_handle() - the answer to the message @req of @len bytes, which may be anything.
 * @reply: P9_MSIZE_MAX bytes
 * Returns how long the answer is, at least P9_HEADER.
 */
size_t share_server_handle(struct share_server *s, const uint8_t *req, size_t len, uint8_t *reply);

unsigned share_server_fids(const struct share_server *s);
unsigned share_server_nodes(const struct share_server *s);

/* ---- what a snapshot holds of it (state.c) ---- */

#define SHARE_STATE_MAX (8 * MIB)

/** share_server_save() - append the session, its fids as paths, to @out.  0 or -ENOMEM. */
int share_server_save(struct share_server *s, struct bytes *out);
/**
 * share_server_load() - become what was saved; hostile bytes.
 * Files are found by their paths, and open ones opened again; whoever is not the file that it was is stale: every use of its fid gives ESTALE.
 * @nstale: receives how many
 * Returns 0, -EINVAL, -ENOMEM with @err set; then no session is left.
 */
int share_server_load(struct share_server *s, const uint8_t *data, size_t len, unsigned *nstale,
		      struct error *err);
/** share_state_check() - would share_server_load() take @data?  Knows nothing of the folder.  0 or -EINVAL with @err set. */
int share_state_check(const uint8_t *data, size_t len, struct error *err);
/** share_state_show() - the same as readable text into @out.  0, -EINVAL, -ENOMEM. */
int share_state_show(const uint8_t *data, size_t len, struct bytes *out, struct error *err);

#endif
