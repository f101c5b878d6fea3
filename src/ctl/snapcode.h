/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of translated code in the folders of snapshots (vm/code_set.h), and the secret that they are believed by.
 *
 * The secret is a file of the user's, in the data root, made at the first need.  The process that starts a machine reads it and hands the machine's
 * process no more than the key of the one snapshot that it goes on from (snapcode_key()).
 *
 * A thread reads, checks and takes over one part after the other beside the running guest; and so it is written while the machine runs.  Names of files are the caller's thread's matter.
 */
#ifndef VIV_CTL_SNAPCODE_H
#define VIV_CTL_SNAPCODE_H

#include "engine/engine.h"
#include "vm/code_set.h"

#define SNAPCODE_SECRET_FILE "code-secret"

/** snapcode_key() - of snapshot @name of @vm; makes the secret if there is none yet.  0 or -errno: no code is loaded nor kept. */
int snapcode_key(const char *vm, const char *name, uint8_t key[CODE_SET_KEY_BYTES], struct error *err);

struct snapcode_reader;
/** snapcode_read() - begin to read the file of snapshot @name of @vm; NULL: it has none, or cannot be read. */
struct snapcode_reader *snapcode_read(const char *vm, const char *name,
				      const uint8_t key[CODE_SET_KEY_BYTES]);
/** snapcode_head() - part 0 of the code, of any origin (engine_ops.code_expect); until snapcode_read_end(). */
const uint8_t *snapcode_head(const struct snapcode_reader *r, size_t *len);
/**
 * snapcode_load() - have the engine take it over, once it is read; what comes of it is told in the log.  At most once.
 * @vm: its dirty log runs, since memory was as in the snapshot; it lives until snapcode_read_end() has returned
 */
void snapcode_load(struct snapcode_reader *r, const struct engine_ops *ops, struct engine_vm *vm);
/** snapcode_read_wait() - until all of it is taken over, after snapcode_load().  NULL is fine. */
void snapcode_read_wait(struct snapcode_reader *r);
/** snapcode_read_end() - stop whatever is under way.  NULL is fine. */
void snapcode_read_end(struct snapcode_reader *r);

struct snapcode_writer;
/** snapcode_write() - begin to write the file at @path; takes @code's bytes, also on failure. */
struct snapcode_writer *snapcode_write(const char *path, const uint8_t key[CODE_SET_KEY_BYTES],
				       struct engine_code *code, struct error *err);
/** snapcode_write_is_done() - snapcode_write_end() does not wait any more. */
bool snapcode_write_is_done(const struct snapcode_writer *w);
/** snapcode_write_end() - wait until all is written, and give it its name; what becomes of it is told in the log.  NULL is fine. */
void snapcode_write_end(struct snapcode_writer *w);

#endif
