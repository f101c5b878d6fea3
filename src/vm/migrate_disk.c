/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/migrate_disk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#define CHUNK_HEADER_BYTES 24

static int bad(struct error *err, const char *how)
{
	return error_set(err, -EPROTO, "the peer sends no valid stream: %s", how);
}

/* Appends a frame shorter than @len; returns whether there is one. */
static bool put_frame(struct migrate_packer *p, struct bytes *out, const uint8_t *data, size_t len)
{
	size_t before = out->len;

	if (!p->zstd)
		p->zstd = ZSTD_createCCtx();
	if (!p->zstd)
		return false;
	bytes_put(out, data, len); /* room first: then zstd writes where it belongs */
	if (out->is_failed)
		return false;
	size_t n = ZSTD_compressCCtx(p->zstd, out->data + before, len - 1, data, len, p->level);

	out->len = before + (ZSTD_isError(n) ? 0 : n);
	return !ZSTD_isError(n);
}

int migrate_chunk_put(struct migrate_packer *p, struct bytes *out, uint32_t *seq, bool packs,
		      const struct migrate_chunk *c)
{
	size_t begin = migrate_record_begin(out, MIGRATE_R_DISK);
	size_t codec_at = begin + MIGRATE_HEADER_BYTES + 4;

	assert(!c->data || c->len <= MIGRATE_CHUNK_BYTES);
	bytes_put_u32(out, c->file);
	bytes_put_u8(out, MIGRATE_CHUNK_ZERO);
	bytes_put_u8(out, 0);
	bytes_put_u16(out, 0);
	bytes_put_u64(out, c->offset);
	bytes_put_u64(out, c->len);
	if (c->data && !out->is_failed) {
		bool is_packed = packs && put_frame(p, out, c->data, c->len);

		if (!is_packed)
			bytes_put(out, c->data, c->len);
		if (!out->is_failed)
			out->data[codec_at] = is_packed ? MIGRATE_CHUNK_ZSTD : MIGRATE_CHUNK_RAW;
	}
	if (out->is_failed)
		return -ENOMEM;
	migrate_record_end(out, begin, seq);
	return 0;
}

void migrate_chunk_reader_free(struct migrate_chunk_reader *r)
{
	ZSTD_freeDCtx(r->zstd);
	free(r->buf);
	r->zstd = r->buf = NULL;
}

static int unpack(struct migrate_chunk_reader *r, const uint8_t *frame, size_t len, uint64_t want,
		  struct error *err)
{
	if (!r->zstd)
		r->zstd = ZSTD_createDCtx();
	if (!r->buf)
		r->buf = malloc(MIGRATE_CHUNK_BYTES);
	if (!r->zstd || !r->buf)
		return error_set(err, -ENOMEM, "no memory to unpack a disk");
	size_t n = ZSTD_decompressDCtx(r->zstd, r->buf, MIGRATE_CHUNK_BYTES, frame, len);

	return ZSTD_isError(n) || n != want
		       ? bad(err, "a packed piece of a disk that cannot be unpacked")
		       : 0;
}

int migrate_chunk_get(struct migrate_chunk_reader *r, struct migrate_chunk *c,
		      const uint8_t *payload, size_t len, struct error *err)
{
	struct byte_reader in = { .data = payload, .len = len };
	struct migrate_chunk got = { .file = bytes_get_u32(&in) };
	unsigned codec = bytes_get_u8(&in), zero = bytes_get_u8(&in);

	zero |= bytes_get_u16(&in);
	got.offset = bytes_get_u64(&in);
	got.len = bytes_get_u64(&in);
	if (in.is_failed || zero || codec >= MIGRATE_NCHUNK_CODECS || !got.len ||
	    got.len > INT64_MAX || got.offset > INT64_MAX - got.len)
		return bad(err, "a piece of a disk that makes no sense");
	size_t left = len - CHUNK_HEADER_BYTES;
	int e = 0;

	if (codec != MIGRATE_CHUNK_ZERO && got.len > MIGRATE_CHUNK_BYTES)
		e = bad(err, "a piece of a disk is too long");
	else if ((codec == MIGRATE_CHUNK_ZERO && left) || (codec == MIGRATE_CHUNK_RAW && left != got.len))
		e = bad(err, "a piece of a disk is cut short");
	else if (codec == MIGRATE_CHUNK_ZSTD)
		e = unpack(r, payload + CHUNK_HEADER_BYTES, left, got.len, err);
	if (e < 0)
		return e;
	got.data = codec == MIGRATE_CHUNK_ZERO	? NULL
		   : codec == MIGRATE_CHUNK_RAW ? payload + CHUNK_HEADER_BYTES
						: r->buf;
	*c = got;
	return 0;
}

void migrate_units_put(struct bytes *out, uint32_t *seq, uint32_t file, uint64_t first,
		       const uint64_t *sums, uint32_t n)
{
	size_t begin = migrate_record_begin(out, MIGRATE_R_DISK_SUMS);

	assert(n <= MIGRATE_UNITS_MAX);
	bytes_put_u32(out, file);
	bytes_put_u64(out, first);
	bytes_put_u32(out, n);
	for (uint32_t i = 0; i < n; i++)
		bytes_put_u64(out, sums[i]);
	migrate_record_end(out, begin, seq);
}

int migrate_units_get(struct migrate_units *u, const uint8_t *payload, size_t len, struct error *err)
{
	struct byte_reader in = { .data = payload, .len = len };
	struct migrate_units got = { .file = bytes_get_u32(&in) };

	got.first = bytes_get_u64(&in);
	got.n = bytes_get_u32(&in);
	if (in.is_failed || !got.n || got.n > MIGRATE_UNITS_MAX ||
	    in.len - in.pos != 8ULL * got.n || got.first > INT64_MAX / MIGRATE_UNIT_BYTES - got.n)
		return bad(err, "checksums of a disk that make no sense");
	got.sums = payload + in.pos;
	*u = got;
	return 0;
}

uint64_t migrate_unit_sum(uint64_t unit, const uint8_t *data, size_t len)
{
	return XXH64(data, len, unit);
}
