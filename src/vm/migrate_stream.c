/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/migrate_stream.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "vm/snapshot_state.h"

#define MAGIC	  0x47494d56u /* "VMIG" */
#define RUN_BYTES 12
#define RAM_BYTES 4 /* before the runs */

static const struct {
	const char *name;
	bool from_source, from_target;
} records[] = {
#define X(name, number, from_source, from_target) [number] = { #name, from_source, from_target },
	MIGRATE_RECORDS(X)
#undef X
};

const char *migrate_record_name(unsigned type)
{
	return type < ARRAY_SIZE(records) ? records[type].name : NULL;
}

/* ---- records ---- */

size_t migrate_record_begin(struct bytes *out, enum migrate_record type)
{
	size_t begin = out->len;

	bytes_put_u32(out, MAGIC);
	bytes_put_u16(out, (uint16_t)type);
	bytes_put_u16(out, 0);
	bytes_put_u32(out, 0);
	bytes_put_u32(out, 0);
	bytes_put_u64(out, 0);
	return begin;
}

static uint64_t record_sum(const uint8_t *raw, const uint8_t *payload, size_t len)
{
	/* Of the payload, begun with that of the header: one pass, wherever the two lie. */
	return XXH64(payload, len, XXH64(raw, MIGRATE_HEADER_BYTES - 8, 0));
}

void migrate_record_end(struct bytes *out, size_t begin, uint32_t *seq)
{
	if (out->is_failed)
		return;
	uint8_t *raw = out->data + begin;
	uint32_t len = (uint32_t)(out->len - begin - MIGRATE_HEADER_BYTES);

	assert(len <= MIGRATE_PAYLOAD_MAX);
	memcpy(raw + 8, &len, sizeof(len));
	memcpy(raw + 12, seq, sizeof(*seq));
	(*seq)++;
	uint64_t sum = record_sum(raw, raw + MIGRATE_HEADER_BYTES, len);

	memcpy(raw + 16, &sum, sizeof(sum));
}

void migrate_record_put(struct bytes *out, enum migrate_record type, uint32_t *seq,
			const void *payload, size_t len)
{
	size_t begin = migrate_record_begin(out, type);

	bytes_put(out, payload, len);
	migrate_record_end(out, begin, seq);
}

static int bad(struct error *err, const char *how)
{
	return error_set(err, -EPROTO, "the peer sends no valid stream: %s", how);
}

int migrate_header_parse(struct migrate_header *h, const uint8_t raw[MIGRATE_HEADER_BYTES],
			 uint32_t seq, bool is_from_source, struct error *err)
{
	struct byte_reader in = { .data = raw, .len = MIGRATE_HEADER_BYTES };

	if (bytes_get_u32(&in) != MAGIC)
		return bad(err, "this is none of Vivarium's");
	uint16_t type = bytes_get_u16(&in), flags = bytes_get_u16(&in);
	struct migrate_header out = { .type = type, .len = bytes_get_u32(&in), .seq = bytes_get_u32(&in) };

	out.sum = bytes_get_u64(&in);
	if (flags || !migrate_record_name(type))
		return bad(err, "a record of a kind that this version does not know");
	if (!(is_from_source ? records[type].from_source : records[type].from_target))
		return bad(err, "a record that is the other side's to send");
	if (out.len > MIGRATE_PAYLOAD_MAX)
		return bad(err, "a record is too long");
	if (out.seq != seq)
		return bad(err, "a record is missing");
	*h = out;
	return 0;
}

int migrate_payload_check(const struct migrate_header *h, const uint8_t raw[MIGRATE_HEADER_BYTES],
			  const uint8_t *payload, struct error *err)
{
	return record_sum(raw, payload, h->len) == h->sum
		       ? 0
		       : bad(err, "a record is damaged, its checksum does not match");
}

/* ---- memory: writing ---- */

void migrate_packer_free(struct migrate_packer *p)
{
	ZSTD_freeCCtx(p->zstd);
	p->zstd = NULL;
}

static void put_ram_header(struct bytes *out, enum migrate_codec codec, unsigned nruns)
{
	bytes_put_u8(out, (uint8_t)codec);
	bytes_put_u8(out, 0);
	bytes_put_u16(out, (uint16_t)nruns);
}

static void put_runs(struct bytes *out, enum migrate_codec codec, const uint64_t *pages, unsigned n)
{
	unsigned nruns = 0;

	for (unsigned i = 0; i < n; i++)
		nruns += !i || pages[i] != pages[i - 1] + 1;
	put_ram_header(out, codec, nruns);
	for (unsigned i = 0, end; i < n; i = end) {
		for (end = i + 1; end < n && pages[end] == pages[end - 1] + 1; end++)
			;
		bytes_put_u64(out, pages[i]);
		bytes_put_u32(out, end - i);
	}
}

/* Append a frame of @len bytes at @data if it is shorter than these.  0, -EMSGSIZE, -ENOMEM. */
static int put_frame(struct migrate_packer *p, struct bytes *out, const uint8_t *data, size_t len)
{
	static const uint8_t zeroes[4096];
	size_t before = out->len;

	if (!p->zstd)
		p->zstd = ZSTD_createCCtx();
	if (!p->zstd)
		return -ENOMEM;
	/* Room first: then zstd writes where it belongs. */
	for (size_t left = len; left; left -= MIN(left, sizeof(zeroes)))
		bytes_put(out, zeroes, MIN(left, sizeof(zeroes)));
	if (out->is_failed)
		return -ENOMEM;
	size_t n = ZSTD_compressCCtx(p->zstd, out->data + before, len - 1, data, len, p->level);

	out->len = before + (ZSTD_isError(n) ? 0 : n);
	return ZSTD_isError(n) ? -EMSGSIZE : 0;
}

int migrate_pack(struct migrate_packer *p, struct bytes *out, uint32_t *seq,
		 enum migrate_codec codec, const uint64_t *pages, unsigned n, const uint8_t *data)
{
	size_t begin = migrate_record_begin(out, MIGRATE_R_RAM);
	size_t len = n * GUEST_PAGE_SIZE;
	int r = 0;

	assert(n <= (codec == MIGRATE_ZERO ? MIGRATE_ZERO_MAX : MIGRATE_PAGES_MAX));
	put_runs(out, codec, pages, n);
	if (codec == MIGRATE_ZSTD || codec == MIGRATE_DELTA)
		r = put_frame(p, out, data, len);
	if (r == -EMSGSIZE && codec == MIGRATE_ZSTD) {
		r = 0;
		codec = MIGRATE_RAW;
		out->data[begin + MIGRATE_HEADER_BYTES] = MIGRATE_RAW;
	}
	if (codec == MIGRATE_RAW)
		bytes_put(out, data, len);
	if (r == 0 && out->is_failed)
		r = -ENOMEM;
	if (r < 0) {
		out->len = begin;
		return r;
	}
	migrate_record_end(out, begin, seq);
	return codec;
}

void migrate_pack_zero(struct bytes *out, uint32_t *seq, uint64_t first, uint32_t n)
{
	size_t begin = migrate_record_begin(out, MIGRATE_R_RAM);

	assert(n <= MIGRATE_ZERO_MAX);
	put_ram_header(out, MIGRATE_ZERO, 1);
	bytes_put_u64(out, first);
	bytes_put_u32(out, n);
	migrate_record_end(out, begin, seq);
}

/* ---- memory: reading ---- */

void migrate_unpacker_free(struct migrate_unpacker *u)
{
	ZSTD_freeDCtx(u->zstd);
	free(u->buf);
	u->zstd = u->buf = NULL;
}

struct runs {
	struct byte_reader in; /* at the first run */
	unsigned n;
	uint64_t npages;
};

/* All runs in memory, ascending and of this link; so no page comes twice in one record. */
static int check_runs(struct runs *r, const struct guest_ram *ram, enum migrate_codec codec,
		      unsigned link, unsigned nlinks, struct error *err)
{
	struct byte_reader in = r->in;
	uint64_t all = ram->size_bytes >> GUEST_PAGE_SHIFT, next = 0;

	r->npages = 0;
	for (unsigned i = 0; i < r->n; i++) {
		uint64_t first = bytes_get_u64(&in);
		uint32_t n = bytes_get_u32(&in);

		if (in.is_failed || !n || first < next || first > all || n > all - first)
			return bad(err, "pages outside of memory, or not in order");
		next = first + n;
		r->npages += n;
		/* A run may go over many of the pieces that links share in turn, but for one of zero pages. */
		if (nlinks > 1 && (migrate_page_link(first, nlinks) != link ||
				   first / MIGRATE_PAGES_MAX != (next - 1) / MIGRATE_PAGES_MAX))
			return bad(err, "pages of another link");
	}
	if (r->npages > (codec == MIGRATE_ZERO ? MIGRATE_ZERO_MAX : MIGRATE_PAGES_MAX))
		return bad(err, "too many pages at once");
	return 0;
}

static bool is_touched(const struct migrate_unpacker *u, uint64_t page)
{
	return atomic_load_explicit(&u->touched[page / 64], memory_order_relaxed) >> page % 64 & 1;
}

static void touch(struct migrate_unpacker *u, uint64_t page)
{
	if (!is_touched(u, page))
		atomic_fetch_or_explicit(&u->touched[page / 64], 1ULL << page % 64, memory_order_relaxed);
}

static int put_page(struct migrate_unpacker *u, struct guest_ram *ram, enum migrate_codec codec,
		    uint64_t page, const uint8_t *data, struct error *err)
{
	uint8_t *to = ram->base + (page << GUEST_PAGE_SHIFT);

	if (u->put)
		return u->put(u->put_arg, page, codec == MIGRATE_ZERO ? NULL : data, err);
	if (codec == MIGRATE_ZERO) {
		if (!is_touched(u, page)) /* it is zero, and costs the host nothing as long as nobody touches it */
			return 0;
		memset(to, 0, GUEST_PAGE_SIZE);
	} else if (codec == MIGRATE_DELTA) {
		uint64_t *a = (void *)to;
		const uint64_t *b = (const void *)data;

		touch(u, page);
		for (unsigned i = 0; i < GUEST_PAGE_SIZE / 8; i++)
			a[i] ^= b[i];
	} else {
		touch(u, page);
		memcpy(to, data, GUEST_PAGE_SIZE);
	}
	ram_note_write_ptr(ram, to, GUEST_PAGE_SIZE);
	return 0;
}

/* The contents, in u->buf. */
static int open_frame(struct migrate_unpacker *u, struct byte_reader *in, size_t want, struct error *err)
{
	if (!u->zstd)
		u->zstd = ZSTD_createDCtx();
	if (!u->zstd)
		return error_set(err, -ENOMEM, "no memory to unpack guest memory");
	size_t n = ZSTD_decompressDCtx(u->zstd, u->buf, MIGRATE_PAGES_MAX * GUEST_PAGE_SIZE,
				       in->data + in->pos, in->len - in->pos);

	if (ZSTD_isError(n) || n != want)
		return bad(err, "packed pages that cannot be unpacked");
	return 0;
}

int migrate_unpack(struct migrate_unpacker *u, struct guest_ram *ram, unsigned link, unsigned nlinks,
		   const uint8_t *payload, size_t len, uint64_t *npages, struct error *err)
{
	struct runs runs = { .in = { .data = payload, .len = len } };
	struct byte_reader *in = &runs.in;
	unsigned codec = bytes_get_u8(in), zero = bytes_get_u8(in);

	runs.n = bytes_get_u16(in);
	if (in->is_failed || codec >= MIGRATE_NCODECS || zero || !runs.n ||
	    in->len - in->pos < runs.n * RUN_BYTES || (u->put && codec == MIGRATE_DELTA))
		return bad(err, "pages of a kind that this version does not know");
	int r = check_runs(&runs, ram, codec, link, nlinks, err);
	struct byte_reader data = { .data = payload, .len = len, .pos = RAM_BYTES + runs.n * RUN_BYTES };
	size_t want = codec == MIGRATE_ZERO ? 0 : runs.npages << GUEST_PAGE_SHIFT;

	if (r == 0 && !u->buf)
		u->buf = aligned_alloc(64, MIGRATE_PAGES_MAX * GUEST_PAGE_SIZE);
	if (r == 0 && !u->buf)
		return error_set(err, -ENOMEM, "no memory to unpack guest memory");
	if (r == 0 && codec <= MIGRATE_RAW && data.len - data.pos != want)
		r = bad(err, "pages that are cut short");
	if (r == 0 && codec == MIGRATE_RAW)
		memcpy(u->buf, payload + data.pos, want);
	else if (r == 0 && codec != MIGRATE_ZERO)
		r = open_frame(u, &data, want, err);
	if (r < 0)
		return r;
	const uint8_t *from = u->buf;

	for (unsigned i = 0; i < runs.n; i++) {
		uint64_t first = bytes_get_u64(in);
		uint32_t n = bytes_get_u32(in);

		for (uint32_t k = 0; r == 0 && k < n;
		     k++, from += codec == MIGRATE_ZERO ? 0 : GUEST_PAGE_SIZE)
			r = put_page(u, ram, codec, first + k, from, err);
	}
	*npages = runs.npages;
	return r;
}

/* ---- checksums of pages ---- */

uint64_t migrate_page_sum(uint64_t page, const uint8_t *data)
{
	return XXH64(data, GUEST_PAGE_SIZE, page);
}

void migrate_put_sums(struct bytes *out, uint32_t *seq, const struct guest_ram *ram, uint64_t first,
		      uint32_t n)
{
	size_t begin = migrate_record_begin(out, MIGRATE_R_SUMS);

	assert(n <= MIGRATE_SUMS_MAX);
	bytes_put_u64(out, first);
	bytes_put_u32(out, n);
	for (uint64_t p = first; p < first + n; p++)
		bytes_put_u64(out, migrate_page_sum(p, ram->base + (p << GUEST_PAGE_SHIFT)));
	migrate_record_end(out, begin, seq);
}

int64_t migrate_check_sums(const struct guest_ram *ram, const uint8_t *payload, size_t len,
			   uint64_t *bad_page, uint64_t *nbad, struct error *err)
{
	struct byte_reader in = { .data = payload, .len = len };
	uint64_t first = bytes_get_u64(&in), all = ram->size_bytes >> GUEST_PAGE_SHIFT;
	uint32_t n = bytes_get_u32(&in);

	if (in.is_failed || first > all || n > all - first || in.len - in.pos != 8ULL * n)
		return bad(err, "checksums of pages that are not there");
	*bad_page = UINT64_MAX;
	*nbad = 0;
	for (uint64_t p = first; p < first + n; p++) {
		if (bytes_get_u64(&in) == migrate_page_sum(p, ram->base + (p << GUEST_PAGE_SHIFT)))
			continue;
		*bad_page = MIN(*bad_page, p);
		(*nbad)++;
	}
	return n;
}

/* ---- pages that the target lacks ---- */

void migrate_put_missing(struct bytes *out, uint32_t *seq, const uint64_t *bitmap, uint64_t npages)
{
	for (uint64_t first = 0, n; first < npages; first += n) {
		size_t begin = migrate_record_begin(out, MIGRATE_R_MISSING);

		n = MIN(npages - first, MIGRATE_MISSING_MAX);
		bytes_put_u64(out, first);
		bytes_put_u32(out, (uint32_t)n);
		for (uint64_t w = 0; w < (n + 63) / 64; w++)
			bytes_put_u64(out, bitmap[first / 64 + w]);
		migrate_record_end(out, begin, seq);
	}
}

int migrate_get_missing(uint64_t *bitmap, uint64_t npages, uint64_t *next, const uint8_t *payload,
			size_t len, struct error *err)
{
	struct byte_reader in = { .data = payload, .len = len };
	uint64_t first = bytes_get_u64(&in);
	uint32_t n = bytes_get_u32(&in);

	/* Whole words but at the end of memory, so that the next one begins with one. */
	if (in.is_failed || first != *next || first >= npages || !n || n > MIGRATE_MISSING_MAX ||
	    n > npages - first || (n % 64 && n != npages - first) ||
	    in.len - in.pos != (n + 63ULL) / 64 * 8)
		return bad(err, "a map of missing pages that does not fit");
	for (uint64_t w = 0; w < (n + 63ULL) / 64; w++)
		bitmap[first / 64 + w] = bytes_get_u64(&in);
	*next = first + n;
	if (*next < npages)
		return 0;
	if (npages % 64)
		bitmap[npages / 64] &= (1ULL << npages % 64) - 1;
	return 1;
}

/* ---- state ---- */

#define STATE_PIECE (512 * KIB)

void migrate_put_state(struct bytes *out, uint32_t *seq, const uint8_t *state, size_t len)
{
	for (size_t at = 0, n; at < len; at += n) {
		size_t begin = migrate_record_begin(out, MIGRATE_R_STATE);

		n = MIN(len - at, STATE_PIECE);
		bytes_put_u32(out, (uint32_t)len);
		bytes_put_u32(out, (uint32_t)at);
		bytes_put(out, state + at, n);
		migrate_record_end(out, begin, seq);
	}
}

int migrate_state_add(struct migrate_state_in *s, const uint8_t *payload, size_t len, struct error *err)
{
	struct byte_reader in = { .data = payload, .len = len };
	uint32_t total = bytes_get_u32(&in), at = bytes_get_u32(&in);

	if (in.is_failed || in.pos == in.len || !total || total > SNAPSHOT_STATE_MAX ||
	    (s->total && total != s->total) || at != s->data.len || in.len - in.pos > total - at)
		return bad(err, "pieces of a state that do not fit together");
	s->total = total;
	bytes_put(&s->data, payload + in.pos, in.len - in.pos);
	if (s->data.is_failed)
		return error_set(err, -ENOMEM, "no memory for the machine's state");
	return s->data.len == total;
}

void migrate_put_rest(struct bytes *out, uint32_t *seq, const struct migrate_rest *r)
{
	size_t begin = migrate_record_begin(out, MIGRATE_R_REST);

	bytes_put_u64(out, r->paused_ns);
	bytes_put_u8(out, r->is_paused);
	migrate_record_end(out, begin, seq);
}

int migrate_get_rest(struct migrate_rest *r, const uint8_t *payload, size_t len, struct error *err)
{
	struct byte_reader in = { .data = payload, .len = len };
	uint64_t ns = bytes_get_u64(&in);
	uint8_t is_paused = bytes_get_u8(&in);

	if (in.is_failed || in.pos != in.len || is_paused > 1 || ns > INT64_MAX / 4)
		return bad(err, "a last record that makes no sense");
	*r = (struct migrate_rest){ .paused_ns = ns, .is_paused = is_paused };
	return 0;
}

uint64_t migrate_get_commit(const uint8_t *payload, size_t len)
{
	struct byte_reader in = { .data = payload, .len = len };
	uint64_t ns = bytes_get_u64(&in);

	return in.is_failed || in.pos != in.len || ns > INT64_MAX / 4 ? 0 : ns;
}
