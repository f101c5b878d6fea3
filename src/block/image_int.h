/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files that work on closed images. */
#ifndef VIV_BLOCK_IMAGE_INT_H
#define VIV_BLOCK_IMAGE_INT_H

#include "block/image.h"
#include "block/layer.h"
#include "block/qcow2.h"

int image_open_layer(struct layer **out, const struct block_open *o, bool is_writer,
		     bool no_backing, struct error *err);
/** image_close_layer() - with @r 0, make it stable first.  Returns @r or what that gave, with @err set. */
int image_close_layer(struct layer *l, int r, const char *path, struct error *err);
bool image_tell(const struct image_progress *p, uint64_t done, uint64_t total); /* true: stop */
/** image_sync_folder() - the names in the folder of @path are stable. */
int image_sync_folder(const char *path);
int image_only_qcow2(const struct block_open *o, struct error *err);

#endif
