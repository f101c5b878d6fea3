/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layer: one image file, or a throw-away overlay, as a flat row of bytes.
 *
 * Layers stand on each other: what a layer doesn't hold is read from its backing layer.  The front (disk.c) gives the
 * top layer to a disk controller; work on closed images (image.h) uses layers directly.
 *
 * All operations wait for the host.  read, write, zero, discard, flush and the ..._now run on any thread, many at a time; of
 * writes that overlap, either may win.  The caller has checked bounds: [at, at + len) lies within size_bytes, both are
 * multiples of 512.
 */
#ifndef VIV_BLOCK_LAYER_H
#define VIV_BLOCK_LAYER_H

#include <sys/types.h>

#include "block/block.h"
#include "block/io.h"

enum layer_status {
	LAYER_ABSENT, /* read from the backing layer; without one, or past its end: zeroes */
	LAYER_DATA,
	LAYER_ZERO,
};

struct layer;

/* What a request may come down to: bytes of one file, or making that file stable. */
struct layer_plan {
	const struct image_file *file;
	struct io_sync *sync; /* noted after a write; what a flush or FUA makes stable */
	uint64_t at;	      /* in the file */
	/*
	 * Called once the bytes are moved, and before the file is made stable, or when it does not come to that; under the machine's
	 * lock.  Until then the plan stays where it is, and @hold is the layer's.  NULL: nobody wants to know.
	 */
	void (*end)(struct layer_plan *p);
	struct layer *layer;
	uint64_t hold[6];
};

struct layer_ops {
	const char *name;
	int (*read)(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
	int (*write)(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
	int (*zero)(struct layer *l, uint64_t len, uint64_t at, bool may_unmap);
	int (*discard)(struct layer *l, uint64_t len, uint64_t at);
	/* Everything completed before is stable afterwards. */
	int (*flush)(struct layer *l);
	/* Without waiting for the host, or -EAGAIN with nothing done; write_now is a copy into the page cache. */
	int (*read_now)(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
	int (*write_now)(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
	int (*flush_now)(struct layer *l); /* 0 or the sticky error: nothing to wait for */
	/* Is a BLOCK_READ, _WRITE (with @is_fua: and a flush) or _FLUSH that and nothing else?  Doesn't wait.  NULL: never. */
	bool (*plan)(struct layer *l, enum block_op op, bool is_fua, uint64_t len, uint64_t at,
		     struct layer_plan *out);
	/* What the backing layer alone holds of it and this one does not comes into this one.  NULL: it can't. */
	int (*take_in)(struct layer *l, uint64_t len, uint64_t at);
	/* What this layer holds at @at, and for how long (*@run, 512 .. @len). */
	int (*status)(struct layer *l, uint64_t len, uint64_t at, enum layer_status *out, uint64_t *run);
	/* Flush, then stop writing for good: others may open the file for reading.  May be repeated. */
	int (*seal)(struct layer *l);
	/* Make stable what can be, close.  The backing layer is not touched. */
	void (*close)(struct layer *l);
};

struct layer {
	const struct layer_ops *ops;
	struct layer *backing; /* owned */
	uint64_t size_bytes;
	bool is_readonly;
	dev_t dev; /* the file, to recognise it */
	ino_t ino;
};

/* The files opened on the way to this one: an image must not stand on itself. */
struct layer_chain {
	const struct layer_chain *up;
	dev_t dev;
	ino_t ino;
	unsigned depth;
};
#define LAYER_DEPTH_MAX 200u

struct layer_open {
	const struct block_open *o; /* is_snapshot is not looked at: the caller puts the overlay on top */
	bool is_writer;
	bool no_backing; /* leave the backing file alone; the caller gives one or needs none */
	bool for_repair; /* open even what only a repair may touch */
	bool is_peek;	 /* without a lock, to look at the header */
	int fd; /* of the file, open for writing, borrowed; no lock is taken; 0: @o->path is opened */
	const struct layer_chain *chain;
};

/** layer_open() - by @lo->o->format.  0 or -errno with @err set. */
int layer_open(struct layer **out, const struct layer_open *lo, struct error *err);
/** layer_open_stack() - what a machine opens: the image, and the throw-away overlay over it. */
int layer_open_stack(struct layer **out, const struct block_open *o, struct error *err);
/** layer_close() - with everything under it.  NULL is fine. */
void layer_close(struct layer *l);

int raw_layer_open(struct layer **out, const struct layer_open *lo, struct error *err);
int qcow2_layer_open(struct layer **out, const struct layer_open *lo, struct error *err);
/** temp_layer_open() - a throw-away layer; takes @backing, also on failure. */
int temp_layer_open(struct layer **out, struct layer *backing, struct error *err);
/** temp_layer_push() - takes @backing only on success. */
int temp_layer_push(struct layer **out, struct layer *backing, struct error *err);
/** temp_layer_keep() - it stands for the file @path from now on, which it holds open for writing; -EINVAL: no such layer. */
int temp_layer_keep(struct layer *l, const char *path, struct error *err);
/** temp_layer_kept_fd() - of that file, borrowed; -1: none, or it was released. */
int temp_layer_kept_fd(const struct layer *l);
/** temp_layer_release() - nothing is written to that file any more.  Any layer is fine. */
void temp_layer_release(struct layer *l);
/** temp_layer_save() - what it holds to @to; -ENOENT: it stands for another file, or is no such layer. */
int temp_layer_save(struct layer *l, struct layer *to);
/** temp_layer_reset() - forget what was written; -EINVAL: no such layer. */
int temp_layer_reset(struct layer *l, struct error *err);

/** layer_read_through() - [@at, +@len) of @l, which may be NULL or too short: then zeroes. */
int layer_read_through(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
int layer_read_through_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
/** layer_status_through() - as status, looking through to the layers below @l as far as @end (exclusive; NULL: to the
 * bottom).  LAYER_ABSENT then means: none of them holds it. */
int layer_status_through(struct layer *l, const struct layer *end, uint64_t len, uint64_t at,
			 enum layer_status *out, uint64_t *run);

#endif
