/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared libraries that only some of viv's processes need: loaded where they are used, as linking one with all that it stands on costs every command
 * and every process of a machine its share of a millisecond and of memory.  Before a process gives up the right to open files.
 */
#ifndef VIV_BASE_LIB_H
#define VIV_BASE_LIB_H

#include <stddef.h>

#include "base/error.h"

struct lib_call {
	const char *name;
	void *at; /* of a pointer to a function of its type, which is set */
};

/**
 * lib_load() - the first of @files (names, NULL-terminated) that is there, for good, and its functions @calls.
 * Returns 0, -ENOENT: it is not installed, or another version of it, with @err set.
 */
int lib_load(const char *const *files, const struct lib_call *calls, size_t n, struct error *err);

#endif
