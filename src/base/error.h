/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host or user trouble: a negative errno for the program, one sentence for the person.
 *
 * The layer that sees the trouble sets the sentence (what, why, what to do); each layer above may
 * prefix it with what it was doing.  Functions leave their outputs untouched on failure.
 */
#ifndef VIV_BASE_ERROR_H
#define VIV_BASE_ERROR_H

#include "base/util.h"

struct error {
	char text[512]; /* no newline, no final full stop needed; truncated if longer */
};

/** error_set() - replace the sentence.  @err may be NULL.  Returns @neg_errno, for `return`. */
int error_set(struct error *err, int neg_errno, const char *fmt, ...) _printf_(3, 4);

/** error_prefix() - put "prefix: " before the sentence.  @err may be NULL. */
void error_prefix(struct error *err, const char *fmt, ...) _printf_(2, 3);

#endif
