/* SPDX-License-Identifier: Apache-2.0 */
/* The image formats: one row each in block.c. */
#ifndef VIV_BLOCK_FORMATS_H
#define VIV_BLOCK_FORMATS_H

#include "block/block.h"

struct block_format {
	const char *name;
	int (*open)(struct block_dev **out, struct loop *loop, const struct block_open *o,
		    struct error *err);
};

int raw_open(struct block_dev **out, struct loop *loop, const struct block_open *o, struct error *err);

#endif
