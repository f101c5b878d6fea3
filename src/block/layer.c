/* SPDX-License-Identifier: Apache-2.0 */
#include "block/layer.h"

#include <errno.h>
#include <string.h>

#include "block/formats.h"

// clang-format off
static const struct block_format formats[] = {
	{"raw",   raw_layer_open},
	{"qcow2", qcow2_layer_open},
};
// clang-format on

int layer_open(struct layer **out, const struct layer_open *lo, struct error *err)
{
	const char *name = lo->o->format ? lo->o->format : "raw";

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (!strcmp(name, formats[i].name))
			return formats[i].open(out, lo, err);
	return error_set(err, -EINVAL, "disk image '%s': no format '%s'; this version knows: raw, qcow2",
			 lo->o->path, name);
}

int layer_open_stack(struct layer **out, const struct block_open *o, struct error *err)
{
	const struct layer_open lo = { .o = o, .is_writer = !o->is_readonly && !o->is_snapshot };
	struct layer *l;
	int r = layer_open(&l, &lo, err);

	if (r < 0)
		return r;
	if (o->is_snapshot)
		r = temp_layer_open(&l, l, err);
	if (r == 0)
		*out = l;
	return r;
}

void layer_close(struct layer *l)
{
	while (l) {
		struct layer *backing = l->backing;
		l->ops->close(l);
		l = backing;
	}
}

int layer_read_through(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	uint64_t there = l && at < l->size_bytes ? MIN(len, l->size_bytes - at) : 0;
	int r = there ? l->ops->read(l, v, there, at) : 0;

	return r == 0 && there < len ? io_zero(io_vec_at(v, there), len - there) : r;
}

int layer_read_through_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	uint64_t there = l && at < l->size_bytes ? MIN(len, l->size_bytes - at) : 0;
	int r = there ? l->ops->read_now(l, v, there, at) : 0;

	return r == 0 && there < len ? io_zero(io_vec_at(v, there), len - there) : r;
}

int layer_status_through(struct layer *l, const struct layer *end, uint64_t len, uint64_t at,
			 enum layer_status *out, uint64_t *run)
{
	for (; l != end; l = l->backing) {
		if (!l || at >= l->size_bytes) {
			*out = LAYER_ZERO; /* a short layer ends in zeroes, whatever is below it */
			*run = len;
			return 0;
		}
		len = MIN(len, l->size_bytes - at);
		int r = l->ops->status(l, len, at, out, &len);
		if (r < 0)
			return r;
		*run = len;
		if (*out != LAYER_ABSENT)
			return 0;
	}
	*out = l || end ? LAYER_ABSENT : LAYER_ZERO;
	*run = len;
	return 0;
}
