/* SPDX-License-Identifier: Apache-2.0 */
#include "block/block.h"

#include <errno.h>
#include <string.h>

#include "block/formats.h"

// clang-format off
static const struct block_format formats[] = {
	{"raw", raw_open},
};
// clang-format on

int block_open(struct block_dev **out, struct loop *loop, const struct block_open *o, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (!strcmp(o->format ? o->format : "raw", formats[i].name))
			return formats[i].open(out, loop, o, err);
	return error_set(err, -EINVAL, "disk image '%s': no format '%s'; this version knows: raw",
			 o->path, o->format);
}
