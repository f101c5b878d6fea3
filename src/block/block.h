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
 * A device stands on layers of image files (raw, qcow2; layer.h); these are locked against use by another machine
 * (open file description locks): exclusive for writers, shared for readers.
 */
#ifndef VIV_BLOCK_BLOCK_H
#define VIV_BLOCK_BLOCK_H

#include <sys/types.h>
#include <sys/uio.h>

#include "base/error.h"
#include "base/loop.h"

#define BLOCK_SECTOR 512ULL

enum block_op {
	BLOCK_READ,
	BLOCK_WRITE,
	BLOCK_FLUSH,
	BLOCK_DISCARD,
	BLOCK_WRITE_ZEROES,
	/* No controller submits these: block_drop_below(). */
	BLOCK_TAKE_IN,
	BLOCK_NAME_BELOW,
};

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
	const char *io; /* what does most of the transfers that wait: "io_uring", "threads" */
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

/*
 * Which backing files an image may name.  The name stands inside the image, and whoever wrote the image chose it:
 * without a rule none is opened.  Symbolic links are resolved before the comparison.
 */
struct block_backing_rule {
	bool any;		  /* whatever it names: for images the user alone has written */
	const char *const *paths; /* NULL-terminated, or NULL: these files, and files in these folders or below */
};

struct block_open {
	const char *path;
	const char *format; /* "raw", "qcow2"; never guessed from content a guest could have written */
	bool is_readonly;
	bool is_snapshot; /* throw-away: writes go to an unlinked temporary overlay */
	bool use_direct;  /* O_DIRECT */
	const struct block_backing_rule *backing; /* NULL: an image with a backing file is refused; borrowed for the call */
	uint64_t max_bytes_per_s, max_ops_per_s; /* 0: no limit */
	bool is_unsettled; /* nobody could find the file after a power cut yet: what makes writes stable waits for block_settled() */
};

/**
 * block_open() - open an image.
 * Returns 0; -ENOENT, -EACCES, -EBUSY (in use by another machine), -EINVAL ... with @err naming file,
 * reason and remedy.
 */
int block_open(struct block_dev **out, struct loop *loop, const struct block_open *o, struct error *err);
/** block_settled() - of one that was opened as unsettled: @result 0: its file and what names it are stable; -errno: they will not be, and flushes
 * fail so.  Any thread. */
void block_settled(struct block_dev *b, int result);

/*
 * Layers of a running device.  All under the machine's lock, on devices from block_open(); each drains the device first
 * (callbacks run inside), so it falls between two requests: every request completed before lies in the old layer,
 * every later one goes to the new.  On failure the device is as it was.
 */

/**
 * block_push_layer() - put an empty layer on top; what was the top becomes its read-only backing.
 * @top: path and format "qcow2" of a file just made by image_create() with the size of the device and the old top as its
 * backing file (the name is not opened: the device's own open layers are used, @top->backing is ignored); or
 * is_snapshot, without a path, for a throw-away layer
 *
 * Guests count on what they flush from then on, and it may lie in the new layer only: note down that the disk's top is
 * the new file BEFORE this call, stable; until then that layer is empty and both say the same.
 *
 * Does no I/O on the old top, so it takes well below a millisecond on an idle device.  The next BLOCK_FLUSH that
 * succeeds makes the old top stable as well, and whole on its own: from then on other machines can open it as a
 * backing file or read-only (before: -EBUSY).  A snapshot is done when that flush is.
 *
 * Returns 0; -EROFS (a read-only device), -EINVAL (no qcow2 image, another size, not empty, or another backing file), what opening
 * a file gives.
 */
int block_push_layer(struct block_dev *b, const struct block_open *top, struct error *err);

/**
 * block_keep_layer() - what was written to the throw-away layer on top shall be kept after all, in the file @path: an empty
 * qcow2 image just made by image_create() over the same file.  A new layer on top names that as its backing file; block_save_kept() fills it.
 * It is opened here, and written through that descriptor: by then it may be a file with several names, which nobody opens for writing.
 * Returns 0, -EINVAL (the top is no throw-away layer), -errno.
 */
int block_keep_layer(struct block_dev *b, const char *path, struct error *err);

/**
 * block_save_kept() - write what the throw-away layer holds to its file, stable when this returns.  Again gives the same.
 * On any thread, or in a forked child; that layer must not be the top any more, or the machine stand still.
 * @path: as block_keep_layer() was told
 * Returns 0, -EINVAL (no layer is kept, or it was released), -errno.
 */
int block_save_kept(struct block_dev *b, const char *path, struct error *err);
/** block_release_kept() - it is filled: no more is written to it. */
void block_release_kept(struct block_dev *b);

/**
 * block_reset_layer() - forget everything written to the throw-away layer on top.
 * Takes time by what was written, not by the size of the disk.  Returns 0, -EINVAL (the top is no throw-away layer), -errno.
 */
int block_reset_layer(struct block_dev *b, struct error *err);

/**
 * block_reopen() - put the device on other files, as block_open() would open @o: to go back to a snapshot.
 * Returns 0, -EINVAL (another size than the device has now), or what block_open() gives.
 */
int block_reopen(struct block_dev *b, const struct block_open *o, struct error *err);

/*
 * Doing without the layer below the top, while the disk is in use:
 *
 *   BLOCK_TAKE_IN        of the whole disk, in pieces: what that layer holds and the top does not goes into the top
 *   BLOCK_FLUSH          that is stable
 *   BLOCK_NAME_BELOW     the top names what the layer stands on as its backing file; stable
 *   block_drop_below()   the layer is closed
 *
 * Left at any moment, the disk and its files are whole: the content is the same through either.  The two operations end with -EINVAL where there is
 * no such layer: the top and the one below are qcow2, that one stands on something, and is stable (after a flush that
 * succeeded).
 */
/** block_drop_below() - 0; -EINVAL: BLOCK_NAME_BELOW did not come before. */
int block_drop_below(struct block_dev *b, struct error *err);
/** block_layer_file() - the file of the layer @depth below the top; false: there is none. */
bool block_layer_file(const struct block_dev *b, unsigned depth, dev_t *dev, ino_t *ino);
/**
 * block_reopen_below() - open what the top stands on anew, by its names: others have put files of the same content in place.
 * Returns 0, -EINVAL (another size, or no qcow2 on top), or what block_open() gives; then the device is as it was.
 */
int block_reopen_below(struct block_dev *b, const struct block_backing_rule *rule, struct error *err);

/*
 * Copying what a device holds while a guest uses it (block_copy.c):
 *
 *   block_track_begin()      from here on is noted what is written, a bit for each BLOCK_TRACK_BYTES
 *   block_copy_read() ...    of everything
 *   block_track_collect()    of what was written meanwhile, again and again; the last time with nothing in flight
 *   block_track_end()
 *
 * A bit is set after its write has ended: what is read after the bit was collected has what the write left.
 */
#define BLOCK_TRACK_BYTES (64 * KIB)

/** block_track_begin(), block_track_end() - with the machine's lock; the device is drained.  0 or -ENOMEM.  Ending twice is fine. */
int block_track_begin(struct block_dev *b, struct error *err);
void block_track_end(struct block_dev *b);
/** block_track_words() - that a bitmap for block_track_collect() has. */
uint64_t block_track_words(const struct block_dev *b);
/** block_track_collect() - what was written since the last time is added to @bits, and forgotten.  Any thread, between begin and end. */
void block_track_collect(struct block_dev *b, uint64_t *bits);

/*
 * These wait for the host.  Any thread, without the lock; the caller sees to it that nobody closes the device.  @at and @len are multiples of
 * 512 within the device, else -EIO.
 */
/** block_copy_status() - does it read as zeroes at @at without anybody looking, and for how long is that so or not (*@run, 512 .. @len)? */
int block_copy_status(struct block_dev *b, uint64_t at, uint64_t len, bool *is_zero, uint64_t *run);
int block_copy_read(struct block_dev *b, void *buf, uint64_t at, uint64_t len);
int block_copy_write(struct block_dev *b, const void *buf, uint64_t at, uint64_t len);
int block_copy_zero(struct block_dev *b, uint64_t at, uint64_t len);
int block_copy_flush(struct block_dev *b);

#endif
