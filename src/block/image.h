/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image files that no machine has open: make, look at, check, repair, resize, copy, merge.
 *
 * Everything read from an image is hostile.  Every function but image_info() locks the files it works on, as a machine would (-EBUSY), and
 * leaves each image valid when it fails or is killed at any point; @err names file, reason and remedy.
 */
#ifndef VIV_BLOCK_IMAGE_H
#define VIV_BLOCK_IMAGE_H

#include "block/block.h"

/** image_progress_fn - told now and then how far a long operation is; true cancels it (-ECANCELED). */
typedef bool (*image_progress_fn)(void *arg, uint64_t done_bytes, uint64_t total_bytes);
struct image_progress {
	image_progress_fn fn; /* NULL: nobody is told */
	void *arg;
};

enum image_compression { IMAGE_ZLIB, IMAGE_ZSTD };

struct image_create {
	const char *format;  /* "raw", "qcow2" */
	uint64_t size_bytes; /* rounded up to 512; 0 with a backing file: its size */
	const char *backing_path; /* as it shall stand in the image, relative to the image's folder; NULL: none */
	const char *backing_format; /* needed with backing_path */
	/* qcow2; zeros are the defaults */
	uint64_t cluster_bytes; /* 512 .. 2 MiB, a power of two; default 64 KiB */
	unsigned refcount_bits; /* 1 2 4 .. 64; default 16 */
	bool is_v2;		/* compat 0.10 */
	bool has_extended_l2;	/* clusters from 16 KiB */
	bool has_lazy_refcounts;
	enum image_compression compression;
	bool may_replace;  /* an existing file is overwritten, else -EEXIST */
	bool is_unsettled; /* the caller makes it stable before it is named anywhere */
};

/** image_create() - a new image, file and name stable unless @c says otherwise; on failure no file is left. */
int image_create(const char *path, const struct image_create *c, struct error *err);

struct image_info {
	const char *format;
	uint64_t size_bytes, file_bytes, allocated_bytes; /* of the disk; of the file; its blocks on the host */
	char *backing_path, *backing_format; /* as they stand in the image; NULL: none */
	/* qcow2 */
	unsigned version, refcount_bits, nsnapshots;
	uint64_t cluster_bytes;
	bool has_extended_l2, has_lazy_refcounts, is_dirty, is_corrupt;
	enum image_compression compression;
};
/** image_info() - from the file alone: no backing file is opened, no lock is taken, a machine may be running on it.  image_info_free() after success. */
int image_info(const char *path, const char *format, struct image_info *out, struct error *err);
void image_info_free(struct image_info *i);

struct image_check {
	uint64_t nleaks;	   /* clusters in use by nothing: lost space, no harm */
	uint64_t nerrors;	   /* wrong references, counts or flags */
	uint64_t nfixed;	   /* of both, with repair */
	uint64_t nclusters, nused; /* of the disk: all, and those this file holds */
	uint64_t end_bytes;	   /* the last cluster in use ends here */
	char first_error[200];	   /* the first of the errors in words */
};
/**
 * image_check() - compare all references of a qcow2 image with its counts; raw images have nothing to check.
 * @repair: correct counts and flags, drop entries that lead out of the file
 * Returns 0 when the check could be made, whatever it found; -errno else.
 */
int image_check(const char *path, const char *format, bool repair, struct image_check *out,
		const struct image_progress *p, struct error *err);

/**
 * image_resize() - set the size of the disk of @o; -EINVAL: smaller without @may_shrink, or smaller with internal snapshots.
 * Backing files are opened: what a longer one would show in the new part reads as zeroes.
 */
int image_resize(const struct block_open *o, uint64_t size_bytes, bool may_shrink, struct error *err);

/**
 * image_convert() - copy the content of @from (with its backing files, as far as its rule allows) into a new image.
 * @c->size_bytes is ignored; zeros become holes.  The target appears under its name when it is complete and synced.
 * @compress: qcow2 only
 */
int image_convert(const struct block_open *from, const char *to, const struct image_create *c,
		  bool compress, const struct image_progress *p, struct error *err);

/** image_compact() - write a qcow2 image anew without the room it no longer uses; then it takes the old one's place. */
int image_compact(const struct block_open *o, const struct image_progress *p, struct error *err);

/**
 * image_commit() - write everything the top @o holds into its backing file.
 * The top stays and keeps its content; delete it, or put its children on the backing file (image_set_backing()), as
 * whatever else uses the backing file would see a changed disk.
 */
int image_commit(const struct block_open *o, const struct image_progress *p, struct error *err);

/**
 * image_rebase() - put @o on @backing_path (NULL: on nothing, "flatten"), copying up what the two differ in, so that its content stays.
 * With the new backing file further down in the same chain only layers between them are read: this
 * is how a layer in the middle is deleted, once for each of its children.
 * Killed half-way, the image still has its old backing file and its content.
 */
int image_rebase(const struct block_open *o, const char *backing_path, const char *backing_format,
		 const struct image_progress *p, struct error *err);

/** image_set_backing() - change the name of the backing file only.  The content must be the same: nothing is compared. */
int image_set_backing(const char *path, const char *backing_path, const char *backing_format,
		      struct error *err);

#endif
