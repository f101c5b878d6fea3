/* SPDX-License-Identifier: Apache-2.0 */
/* Opening an image file or block device: found, locked, measured, each failure one sentence. */
#ifndef VIV_BLOCK_IMAGE_FILE_H
#define VIV_BLOCK_IMAGE_FILE_H

#include <sys/types.h>

#include "block/block.h"

struct image_file {
	int fd;
	uint64_t size_bytes;
	dev_t dev;
	ino_t ino;
	bool is_block_device;
	bool is_direct; /* opened with O_DIRECT */
};

/**
 * image_file_open() - open @path, for writing if @is_writer, with O_DIRECT if @use_direct.
 * The file is locked, whole, by an open file description lock: exclusive for writing, shared for
 * reading; the lock lives as long as the descriptor.
 * Returns 0 or -errno (-ENOENT, -EACCES, -EROFS, -EBUSY, -EISDIR, -EINVAL: no regular file or block device)
 * with @err set.
 */
int image_file_open(struct image_file *f, const char *path, bool is_writer, bool use_direct,
		    struct error *err);
/** image_file_peek() - for reading, without a lock: somebody may be writing to it. */
int image_file_peek(struct image_file *f, const char *path, struct error *err);
/** image_file_take() - @fd, borrowed, of the file @path, is used for writing, without a lock of its own. */
int image_file_take(struct image_file *f, int fd, const char *path, struct error *err);
/** image_file_check_raw() - 0, or -EINVAL: the size of 0 or no multiple of 512. */
int image_file_check_raw(const struct image_file *f, const char *path, struct error *err);
/** image_file_share() - nothing is written any more: a writer's lock becomes a reader's. */
void image_file_share(const struct image_file *f);
void image_file_close(struct image_file *f);

#endif
