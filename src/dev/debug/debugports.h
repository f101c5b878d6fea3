/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ports for people who debug guests: debug exit (F4H), POST codes (80H), debug consoles (E9H as in
 * Bochs, 402H as SeaBIOS and OVMF use it): lines go to the log at LOG_DEBUG.
 */
#ifndef VIV_DEV_DEBUG_DEBUGPORTS_H
#define VIV_DEV_DEBUG_DEBUGPORTS_H

#include "dev/device.h"

#define DEBUG_LINE_MAX 200

struct debug_line {
	char text[DEBUG_LINE_MAX];
	uint64_t len;
};

struct debugports {
	struct device dev;
	struct dev_env env;
	struct bus_range *ranges[4];
	struct debug_line lines[2]; /* E9H, 402H; log text only */
	uint8_t post;		    /* last POST code */
	uint8_t pad_[7];
};

extern const struct device_class debugports_class;

/** debugports_create() - @has_exit: port F4H ends the machine (env->debug_exit). */
int debugports_create(struct debugports **out, const struct dev_env *env, bool has_exit,
		      struct error *err);

#endif
