/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/host.h"

/* Room for @more bytes; false (and is_failed) when there is none. */
static bool bytes_reserve(struct bytes *b, size_t more)
{
	size_t need;

	if (b->is_failed)
		return false;
	if (__builtin_add_overflow(b->len, more, &need)) {
		b->is_failed = true;
		return false;
	}
	if (need <= b->cap)
		return true;
	size_t cap = MAX(need, MAX(b->cap + b->cap / 2, (size_t)64));
	uint8_t *data = host.realloc(b->data, cap);
	if (!data) {
		b->is_failed = true;
		return false;
	}
	b->data = data;
	b->cap = cap;
	return true;
}

void bytes_put(struct bytes *b, const void *src, size_t len)
{
	if (!len || !bytes_reserve(b, len))
		return;
	memcpy(b->data + b->len, src, len);
	b->len += len;
}

void bytes_put_u8(struct bytes *b, uint8_t v)
{
	bytes_put(b, &v, 1);
}

/* The host is x86-64: its own order is the wire's. */
void bytes_put_u16(struct bytes *b, uint16_t v)
{
	bytes_put(b, &v, 2);
}

void bytes_put_u32(struct bytes *b, uint32_t v)
{
	bytes_put(b, &v, 4);
}

void bytes_put_u64(struct bytes *b, uint64_t v)
{
	bytes_put(b, &v, 8);
}

void bytes_printf(struct bytes *b, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0) {
		b->is_failed = true;
		return;
	}
	if (!bytes_reserve(b, (size_t)n + 1))
		return;
	va_start(ap, fmt);
	vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, ap);
	va_end(ap);
	b->len += (size_t)n;
}

void bytes_free(struct bytes *b)
{
	free(b->data);
	*b = (struct bytes){ 0 };
}

bool bytes_get(struct byte_reader *r, void *dst, size_t len)
{
	if (r->is_failed || len > r->len - r->pos) {
		r->is_failed = true;
		if (len)
			memset(dst, 0, len);
		return false;
	}
	if (len)
		memcpy(dst, r->data + r->pos, len);
	r->pos += len;
	return true;
}

uint8_t bytes_get_u8(struct byte_reader *r)
{
	uint8_t v;

	bytes_get(r, &v, sizeof(v));
	return v;
}

uint16_t bytes_get_u16(struct byte_reader *r)
{
	uint16_t v;

	bytes_get(r, &v, sizeof(v));
	return v;
}

uint32_t bytes_get_u32(struct byte_reader *r)
{
	uint32_t v;

	bytes_get(r, &v, sizeof(v));
	return v;
}

uint64_t bytes_get_u64(struct byte_reader *r)
{
	uint64_t v;

	bytes_get(r, &v, sizeof(v));
	return v;
}

bool bytes_are_zero(const void *p, size_t len)
{
	const uint8_t *b = p, zero[128] = { 0 };

	/* The compiler makes vectors of the first 128; libc compares the rest with them at its best. */
	if (memcmp(b, zero, MIN(len, sizeof(zero))))
		return false;
	return len <= sizeof(zero) || !memcmp(b, b + sizeof(zero), len - sizeof(zero));
}
