/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte streams: a growing buffer to write into, a bounded reader for untrusted input.
 * Integers are little-endian on the wire.
 */
#ifndef VIV_BASE_BYTES_H
#define VIV_BASE_BYTES_H

#include "base/util.h"

/* Growing buffer; zero-initialised is empty.  After a failed growth is_failed stays set and further
 * writes do nothing: check once at the end. */
struct bytes {
	uint8_t *data;
	size_t len, cap;
	bool is_failed;
};
void bytes_put(struct bytes *b, const void *src, size_t len);
void bytes_put_u8(struct bytes *b, uint8_t v);
void bytes_put_u16(struct bytes *b, uint16_t v);
void bytes_put_u32(struct bytes *b, uint32_t v);
void bytes_put_u64(struct bytes *b, uint64_t v);
void bytes_printf(struct bytes *b, const char *fmt, ...) _printf_(2, 3);
void bytes_free(struct bytes *b); /* leaves it empty and usable */
#define _cleanup_bytes_ __attribute__((cleanup(bytes_free)))

/* Bounded reader.  A read past the end sets is_failed and gives zeros. */
struct byte_reader {
	const uint8_t *data;
	size_t len, pos;
	bool is_failed;
};
bool bytes_get(struct byte_reader *r, void *dst, size_t len);
uint8_t bytes_get_u8(struct byte_reader *r);
uint16_t bytes_get_u16(struct byte_reader *r);
uint32_t bytes_get_u32(struct byte_reader *r);
uint64_t bytes_get_u64(struct byte_reader *r);

/** bytes_are_zero() - are all @len bytes zero?  None are. */
bool bytes_are_zero(const void *p, size_t len);

#endif
