/* SPDX-License-Identifier: Apache-2.0 */
/* Opening an image file or block device: found, locked, measured, each failure one sentence. */
#ifndef VIV_BLOCK_IMAGE_FILE_H
#define VIV_BLOCK_IMAGE_FILE_H

#include "block/block.h"

struct image_file {
	int fd;
	uint64_t size_bytes;
	bool is_block_device;
	bool is_direct; /* opened with O_DIRECT */
};

/**
 * image_file_open() - open @o->path, for writing unless o->is_readonly or o->is_snapshot.
 * The file is locked, whole, by an open file description lock: exclusive for writing, shared for
 * reading; the lock lives as long as the descriptor.
 * Returns 0 or -errno (-ENOENT, -EACCES, -EROFS, -EBUSY, -EISDIR, -EINVAL: size 0 or no multiple
 * of 512, or no regular file or block device) with @err set.
 */
int image_file_open(struct image_file *f, const struct block_open *o, struct error *err);
void image_file_close(struct image_file *f);

#endif
