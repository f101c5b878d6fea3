/* SPDX-License-Identifier: Apache-2.0 */
/* The image formats: one row each in layer.c. */
#ifndef VIV_BLOCK_FORMATS_H
#define VIV_BLOCK_FORMATS_H

#include "block/layer.h"

struct block_format {
	const char *name;
	int (*open)(struct layer **out, const struct layer_open *lo, struct error *err);
};

#endif
