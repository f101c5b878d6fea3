/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image store by content.
 *
 *   images/NAME/image.json, disk.raw, vmlinuz ...     an image: what it is called
 *   images/NAME/digests                               SHA-256 of each of its files, as sha256sum(1) writes them
 *   images/.blobs/HEX                                 each of these files once, by its digest: hard links to them
 *   images/.lock                                      flock(2): see below
 *
 * Machines name blobs, not images: an image that is replaced or removed changes no machine. What is called by no image, machine or snapshot any more
 * goes with `viv image gc`.
 *
 * Images are built in folders "images/.NAME.XXXXXX", under the lock "images/.NAME.lock", and renamed when they are whole.
 *
 * Rules
 *  1. A blob is made by link(2) from a whole, synced file, and never written again.
 *  2. Who takes a blob for a machine or an image holds the lock, shared, from before he looks until a machine.json or an image has it. Who removes one
 *     holds it exclusively, and has looked since.
 *  3. A blob is needed while it has another name (an image's file, one of a snapshot, another home's), or while its digest stands in the description of any machine, on
 *     or off, read as bytes: one that this version does not understand counts as well. Snapshots need nothing outside of themselves (ctl/snapstore.h).
 *  4. An image without digests, as build-image.sh leaves it, is used by its own files' names.
 */
#ifndef VIV_CLI_STORE_H
#define VIV_CLI_STORE_H

#include "base/error.h"

#define STORE_HEX	64 /* digits of a digest */
#define STORE_DIGESTS	"digests"
#define STORE_FILES_MAX 8 /* of an image */

struct store_file {
	char name[64];
	char hex[STORE_HEX + 1];
};

struct store_digests {
	struct store_file files[STORE_FILES_MAX]; /* by name */
	unsigned n;
	char image[STORE_HEX + 1]; /* of the record's lines but that of image.json: stands for all content */
};

/** store_lock() - images/.lock; waits for others.  A descriptor to be closed, or -errno; @is_exclusive: to remove blobs. */
int store_lock(bool is_exclusive, struct error *err);

/** store_lock_builder() - images/.NAME.lock: who makes folders ".NAME.XXXXXX" there holds it.  Waits.  A descriptor or -errno. */
int store_lock_builder(const char *image, struct error *err);

/** store_hash() - of a file's content, with progress.  0 or -errno. */
int store_hash(const char *path, char hex[STORE_HEX + 1], struct error *err);

/** store_read() - what is recorded of image @name; -ENOENT, without @err: nothing, or a file is newer than the record. */
int store_read(const char *name, struct store_digests *out, struct error *err);
/** store_parse() - hostile text of a file "digests".  0 or -EINVAL. */
int store_parse(const char *text, size_t len, struct store_digests *out, struct error *err);
/** store_blob() - the path of @image's @file by its digest, allocated; NULL: it has none, its own name is to be used. */
char *store_blob(const char *image, const char *file);

/**
 * store_seal() - record the digests of the files in @dir, an image's folder that nobody writes any more, and have each once: one that is a blob already is
 * replaced by a link to it. With the lock, shared.
 */
int store_seal(const char *dir, struct error *err);
/** store_verify() - are image @name's files what is recorded?  0; -EBADMSG, -ENOENT: nothing is recorded; -errno. */
int store_verify(const char *name, struct error *err);

/** store_remove() - image @name; its blobs stay until they are collected.  -EBUSY: a machine uses files of it by their own names, -ENOENT. */
int store_remove(const char *name, struct error *err);

/* What gc found, or removed. */
typedef void (*store_gone_fn)(void *arg, const char *what, uint64_t bytes);
/** store_collect() - blobs that nothing needs, and what builders that were killed left.  @is_dry: only tell. */
int store_collect(bool is_dry, store_gone_fn gone, void *arg, struct error *err);

#endif
