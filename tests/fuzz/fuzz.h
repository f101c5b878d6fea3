/* SPDX-License-Identifier: Apache-2.0 */
/* A fuzz target: one checked door, fed with anything.  It aborts on a broken property. */
#ifndef VIV_FUZZ_H
#define VIV_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/** fuzz_seed() - a valid input of at most @cap bytes into @data; returns its length. */
size_t fuzz_seed(uint8_t *data, size_t cap);

#endif
