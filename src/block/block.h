/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block interface: what a disk controller sees of an image.
 *
 * Requests are asynchronous; the callback runs on the loop's thread under the machine's lock, never
 * inside the submit call.  Any number in flight; no order among them except by flush: a flush
 * completes after every write that had COMPLETED before the flush was submitted is stable.
 *
 * What needs no waiting, such as a read that the host's page cache answers, is done on the spot by try_now:
 * handing a request to another thread and back costs many times the copy.
 *
 * Layers (raw, later qcow2) implement struct block_ops; image files are locked against use by another machine
 * (open file description locks): exclusive for writers, shared for readers.
 */
#ifndef VIV_BLOCK_BLOCK_H
#define VIV_BLOCK_BLOCK_H

#include <sys/uio.h>

#include "base/error.h"
#include "base/loop.h"

#define BLOCK_SECTOR 512ULL

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES };

struct block_req {
	enum block_op op;
	bool is_fua;		 /* writes: stable before completion */
	bool may_unmap;		 /* write zeroes: deallocation is fine */
	uint64_t offset_bytes;	 /* multiple of 512 */
	uint64_t len_bytes;	 /* multiple of 512; the iovecs add up to it for read and write */
	const struct iovec *iov; /* borrowed until done */
	unsigned niov;
	void (*done)(struct block_req *req, int result); /* 0 or -errno (-EIO, -ENOSPC, -EROFS) */
	void *owner;					 /* the submitter's */
	void *priv[4];					 /* the layer's */
};

struct block_info {
	uint64_t size_bytes;
	bool is_readonly, can_discard, can_write_zeroes, has_write_cache;
};

struct block_dev;
struct block_ops {
	const char *name;
	void (*submit)(struct block_dev *b, struct block_req *req);
	void (*info)(const struct block_dev *b, struct block_info *out);
	void (*drain)(struct block_dev *b); /* returns when nothing is in flight; runs the callbacks */
	void (*close)(struct block_dev *b); /* drained first; NULL is fine */
	/* Do @req here and now if it takes no longer than copying its bytes: 0 or -errno, and done is not
	 * called; -EAGAIN: it would wait, nothing counts as done, submit it.  NULL: always -EAGAIN. */
	int (*try_now)(struct block_dev *b, struct block_req *req);
};
struct block_dev {
	const struct block_ops *ops;
};

struct block_open {
	const char *path;
	const char *format; /* "raw"; never guessed from content a guest could have written */
	bool is_readonly;
	bool is_snapshot; /* throw-away: writes go to an unlinked temporary overlay */
	bool use_direct;  /* O_DIRECT */
};

/**
 * block_open() - open an image.
 * Returns 0; -ENOENT, -EACCES, -EBUSY (in use by another machine), -EINVAL ... with @err naming file,
 * reason and remedy.
 */
int block_open(struct block_dev **out, struct loop *loop, const struct block_open *o, struct error *err);

#endif
