/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2 for the rest of the room; the inside is in qcow2_int.h. */
#ifndef VIV_BLOCK_QCOW2_H
#define VIV_BLOCK_QCOW2_H

#include "block/image.h"
#include "block/layer.h"

/**
 * qcow2_layer_stack() - put the freshly opened @l (no_backing) on @backing, which it takes on success.
 * 0, -EINVAL: another size, not empty, or the header names no backing file, or another file than @backing.
 */
int qcow2_layer_stack(struct layer *l, struct layer *backing, const char *path, struct error *err);
bool layer_is_qcow2(const struct layer *l);

int qcow2_create(int fd, const char *path, const struct image_create *c, struct error *err);
/* Of an open layer. */
void qcow2_info(struct layer *l, struct image_info *out); /* the strings are the layer's */
int qcow2_check(struct layer *l, bool repair, struct image_check *out,
		const struct image_progress *p, struct error *err);
int qcow2_resize(struct layer *l, uint64_t size_bytes, uint64_t backing_bytes, struct error *err);
/** qcow2_set_backing() - change or drop (NULL) the name in the header. */
int qcow2_set_backing(struct layer *l, const char *path, const char *format, struct error *err);
/** qcow2_write_compressed() - one whole cluster at @at, its end past the end of the disk zeroed; 0, -errno.  Incompressible ones are
 * written plainly.  One caller at a time. */
int qcow2_write_compressed(struct layer *l, const void *buf, uint64_t at);
/** qcow2_backing_path() - the file the header names, made absolute by the folder of the image; NULL: none or no memory. */
char *qcow2_backing_path(struct layer *l);
/** qcow2_open_backing() - open the file the header names, once more; for the caller to close. */
int qcow2_open_backing(struct layer *l, const struct block_backing_rule *rule, struct layer **out,
		       struct error *err);
/** qcow2_has_same_backing() - do both headers name the same file? */
bool qcow2_has_same_backing(struct layer *a, struct layer *b);
/** qcow2_unlink() - make what the image holds in [@at, +@len) absent again: the backing layer shows. */
int qcow2_unlink(struct layer *l, uint64_t len, uint64_t at);

#endif
