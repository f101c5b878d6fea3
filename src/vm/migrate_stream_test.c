/* SPDX-License-Identifier: Apache-2.0 */
/* Records: what is packed comes out the same; what is cut, flipped or forged is refused and touches nothing outside. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "vm/migrate_stream.h"

#define PAGES	   600
#define PAGE(r, n) ((r)->base + (uint64_t)(n)*GUEST_PAGE_SIZE)

static struct error err;

struct rig {
	struct guest_ram ram;
	struct migrate_unpacker u;
	_Atomic uint64_t touched[(PAGES + 63) / 64];
};

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));

	assert_int_equal(ram_create(&r->ram, PAGES * GUEST_PAGE_SIZE, 0, &err), 0);
	r->u.touched = r->touched;
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	migrate_unpacker_free(&r->u);
	ram_destroy(&r->ram);
	free(r);
	return 0;
}

/* The record at @at of @b, checked; its payload goes to the unpacker. */
static int take(struct rig *r, const struct bytes *b, size_t at, uint32_t seq, uint64_t *npages)
{
	struct migrate_header h;
	int e = migrate_header_parse(&h, b->data + at, seq, true, &err);

	if (e == 0 && b->len - at - MIGRATE_HEADER_BYTES < h.len)
		e = -EPROTO;
	if (e == 0)
		e = migrate_payload_check(&h, b->data + at, b->data + at + MIGRATE_HEADER_BYTES, &err);
	if (e == 0 && h.type != MIGRATE_R_RAM)
		e = -EPROTO;
	if (e == 0)
		e = migrate_unpack(&r->u, &r->ram, 0, 1, b->data + at + MIGRATE_HEADER_BYTES, h.len,
				   npages, &err);
	return e;
}

static void fill(uint8_t *p, size_t len, unsigned seed, bool is_random)
{
	for (size_t i = 0; i < len; i++) {
		seed = seed * 1103515245 + 12345;
		p[i] = is_random ? (uint8_t)(seed >> 16) : (uint8_t)(i / 100 + seed % 2);
	}
}

static void test_round_trip(void **state)
{
	static const uint64_t pages[] = { 3, 4, 5, 200, 599 };
	static uint8_t data[ARRAY_SIZE(pages) * GUEST_PAGE_SIZE], delta[sizeof(data)];
	struct rig *r = *state;
	struct migrate_packer p = { .level = 1 };
	uint64_t n;

	for (unsigned codec = MIGRATE_RAW; codec <= MIGRATE_ZSTD; codec++) {
		for (unsigned is_random = 0; is_random < 2; is_random++) {
			_cleanup_bytes_ struct bytes b = { 0 };
			uint32_t seq = 7;

			fill(data, sizeof(data), codec * 2 + is_random, is_random);
			int used = migrate_pack(&p, &b, &seq, codec, pages, ARRAY_SIZE(pages), data);

			assert_int_equal(used, codec == MIGRATE_ZSTD && is_random ? MIGRATE_RAW : codec);
			assert_int_equal(seq, 8);
			assert_int_equal(take(r, &b, 0, 7, &n), 0);
			assert_int_equal(n, ARRAY_SIZE(pages));
			for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
				assert_memory_equal(PAGE(&r->ram, pages[i]),
						    data + i * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
			assert_true(bytes_are_zero(PAGE(&r->ram, 6), GUEST_PAGE_SIZE));
		}
	}
	/* A change of what is there. */
	_cleanup_bytes_ struct bytes b = { 0 };
	uint32_t seq = 0;

	memset(delta, 0, sizeof(delta));
	delta[17] = 0x55;
	assert_int_equal(migrate_pack(&p, &b, &seq, MIGRATE_DELTA, pages, ARRAY_SIZE(pages), delta),
			 MIGRATE_DELTA);
	assert_true(b.len < 400);
	assert_int_equal(take(r, &b, 0, 0, &n), 0);
	assert_int_equal(*(PAGE(&r->ram, 3) + 17), data[17] ^ 0x55);
	assert_memory_equal(PAGE(&r->ram, 4), data + GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
	/* Random is no delta; nothing is left of the attempt. */
	size_t before = b.len;

	fill(delta, sizeof(delta), 1, true);
	assert_int_equal(migrate_pack(&p, &b, &seq, MIGRATE_DELTA, pages, ARRAY_SIZE(pages), delta),
			 -EMSGSIZE);
	assert_true(b.len == before && seq == 1);
	/* Zero again. */
	migrate_pack_zero(&b, &seq, 3, 3);
	assert_int_equal(take(r, &b, before, 1, &n), 0);
	assert_true(bytes_are_zero(PAGE(&r->ram, 3), GUEST_PAGE_SIZE) &&
		    bytes_are_zero(PAGE(&r->ram, 5), GUEST_PAGE_SIZE));
	assert_memory_equal(PAGE(&r->ram, 200), data + 3 * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
	migrate_packer_free(&p);
}

/* Every bit of a record matters, and so does every byte of its length. */
static void test_damage(void **state)
{
	static const uint64_t pages[] = { 1, 9 };
	static uint8_t data[ARRAY_SIZE(pages) * GUEST_PAGE_SIZE];
	struct rig *r = *state;
	struct migrate_packer p = { .level = 1 };
	_cleanup_bytes_ struct bytes b = { 0 };
	uint32_t seq = 0;
	uint64_t n;

	fill(data, sizeof(data), 3, false);
	assert_int_equal(migrate_pack(&p, &b, &seq, MIGRATE_ZSTD, pages, ARRAY_SIZE(pages), data),
			 MIGRATE_ZSTD);
	for (size_t bit = 0; bit < b.len * 8; bit++) {
		b.data[bit / 8] ^= 1u << bit % 8;
		assert_int_equal(take(r, &b, 0, 0, &n), -EPROTO);
		b.data[bit / 8] ^= 1u << bit % 8;
	}
	for (size_t len = MIGRATE_HEADER_BYTES; len < b.len; len++) {
		struct bytes cut = { .data = b.data, .len = len };

		assert_int_equal(take(r, &cut, 0, 0, &n), -EPROTO);
	}
	assert_int_equal(take(r, &b, 0, 1, &n), -EPROTO); /* another comes first */
	assert_int_equal(r->touched[0], 0);
	assert_int_equal(take(r, &b, 0, 0, &n), 0);
	migrate_packer_free(&p);
}

/* Payloads that somebody made up: the checksum of the record is right then. */
static int forged(struct rig *r, unsigned codec, unsigned nruns, const uint64_t *runs,
		  size_t data_len, unsigned link, unsigned nlinks)
{
	_cleanup_bytes_ struct bytes b = { 0 };
	uint64_t n;

	bytes_put_u8(&b, (uint8_t)codec);
	bytes_put_u8(&b, 0);
	bytes_put_u16(&b, (uint16_t)nruns);
	for (unsigned i = 0; i < nruns; i++) {
		bytes_put_u64(&b, runs[2 * i]);
		bytes_put_u32(&b, (uint32_t)runs[2 * i + 1]);
	}
	for (size_t i = 0; i < data_len; i++)
		bytes_put_u8(&b, 1);
	return migrate_unpack(&r->u, &r->ram, link, nlinks, b.data, b.len, &n, &err);
}

static void test_forged_pages(void **state)
{
	struct rig *r = *state;
	static const uint64_t past_end[] = { PAGES, 1 }, over_end[] = { PAGES - 1, 2 },
			      far[] = { UINT64_MAX, 1 }, none[] = { 1, 0 }, twice[] = { 4, 2, 5, 1 },
			      back[] = { 4, 1, 2, 1 }, many[] = { 0, MIGRATE_PAGES_MAX + 1 },
			      good[] = { PAGES - 1, 1 }, second[] = { 256, 1 }, both[] = { 255, 2 };

	assert_int_equal(forged(r, MIGRATE_ZERO, 1, past_end, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 1, over_end, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 1, far, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 1, none, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 0, none, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 2, twice, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 2, back, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 1, good, 1, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_RAW, 1, good, GUEST_PAGE_SIZE - 1, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_RAW, 1, good, GUEST_PAGE_SIZE + 1, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_RAW, 1, many, (MIGRATE_PAGES_MAX + 1) * GUEST_PAGE_SIZE, 0, 1),
			 -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZSTD, 1, good, 100, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZSTD, 1, good, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_NCODECS, 1, good, 0, 0, 1), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 1, second, 0, 0, 2), -EPROTO); /* the other link's */
	assert_int_equal(forged(r, MIGRATE_ZERO, 1, both, 0, 0, 2), -EPROTO);
	assert_int_equal(forged(r, MIGRATE_ZERO, 1, second, 0, 1, 2), 0);
	assert_int_equal(forged(r, MIGRATE_RAW, 1, good, GUEST_PAGE_SIZE, 0, 1), 0);
	/* A frame of more than it should be. */
	_cleanup_bytes_ struct bytes b = { 0 };
	static uint8_t data[3 * GUEST_PAGE_SIZE];
	static const uint64_t pages[] = { 10, 11, 12 };
	struct migrate_packer p = { .level = 1 };
	uint32_t seq = 0, two = 2;
	uint64_t n;

	assert_int_equal(migrate_pack(&p, &b, &seq, MIGRATE_ZSTD, pages, 3, data), MIGRATE_ZSTD);
	memcpy(b.data + MIGRATE_HEADER_BYTES + 4 + 8, &two, 4);
	assert_int_equal(migrate_unpack(&r->u, &r->ram, 0, 1, b.data + MIGRATE_HEADER_BYTES,
					b.len - MIGRATE_HEADER_BYTES, &n, &err),
			 -EPROTO);
	migrate_packer_free(&p);
}

static void test_headers(void **state)
{
	struct migrate_header h;
	_cleanup_bytes_ struct bytes b = { 0 };
	uint32_t seq = 0;

	migrate_record_put(&b, MIGRATE_R_LOADED, &seq, NULL, 0);
	assert_int_equal(migrate_header_parse(&h, b.data, 0, false, &err), 0);
	assert_int_equal(migrate_payload_check(&h, b.data, b.data + b.len, &err), 0);
	assert_int_equal(migrate_header_parse(&h, b.data, 0, true, &err), -EPROTO); /* the target's to send */
	b.data[4] = 99;
	assert_int_equal(migrate_header_parse(&h, b.data, 0, false, &err), -EPROTO);
	b.data[4] = MIGRATE_R_LOADED;
	b.data[11] = 0xff; /* bytes of payload */
	assert_int_equal(migrate_header_parse(&h, b.data, 0, false, &err), -EPROTO);
}

static void test_sums(void **state)
{
	struct rig *r = *state;
	_cleanup_bytes_ struct bytes b = { 0 };
	uint32_t seq = 0;
	uint64_t bad, nbad;

	fill(PAGE(&r->ram, 5), GUEST_PAGE_SIZE, 1, true);
	migrate_put_sums(&b, &seq, &r->ram, 0, PAGES);
	uint8_t *payload = b.data + MIGRATE_HEADER_BYTES;
	size_t len = b.len - MIGRATE_HEADER_BYTES;

	assert_int_equal(migrate_check_sums(&r->ram, payload, len, &bad, &nbad, &err), PAGES);
	assert_true(bad == UINT64_MAX && !nbad);
	*PAGE(&r->ram, 599) = 1;
	*PAGE(&r->ram, 77) = 1;
	assert_int_equal(migrate_check_sums(&r->ram, payload, len, &bad, &nbad, &err), PAGES);
	assert_true(bad == 77 && nbad == 2);
	assert_int_equal(migrate_check_sums(&r->ram, payload, len - 8, &bad, &nbad, &err), -EPROTO);
	payload[0] = 1; /* one further than there are */
	assert_int_equal(migrate_check_sums(&r->ram, payload, len, &bad, &nbad, &err), -EPROTO);
}

static void test_state_in_pieces(void **state)
{
	static uint8_t data[1300000];
	_cleanup_bytes_ struct bytes b = { 0 };
	struct migrate_state_in in = { 0 };
	uint32_t seq = 0;
	size_t at = 0;
	int r = 0;

	fill(data, sizeof(data), 5, true);
	migrate_put_state(&b, &seq, data, sizeof(data));
	assert_int_equal(seq, 3);
	for (unsigned i = 0; i < 3; i++) {
		struct migrate_header h;

		assert_int_equal(r, 0);
		assert_int_equal(migrate_header_parse(&h, b.data + at, i, true, &err), 0);
		r = migrate_state_add(&in, b.data + at + MIGRATE_HEADER_BYTES, h.len, &err);
		if (i == 0) /* the same again */
			assert_int_equal(migrate_state_add(&in, b.data + at + MIGRATE_HEADER_BYTES,
							   h.len, &err),
					 -EPROTO);
		at += MIGRATE_HEADER_BYTES + h.len;
	}
	assert_int_equal(r, 1);
	assert_int_equal(in.data.len, sizeof(data));
	assert_memory_equal(in.data.data, data, sizeof(data));
	bytes_free(&in.data);
	/* Far more than any machine has. */
	static const uint8_t huge[9] = { 0, 0, 0, 0xff };

	in = (struct migrate_state_in){ 0 };
	assert_int_equal(migrate_state_add(&in, huge, sizeof(huge), &err), -EPROTO);
}

/* A map in records, and ones that do not fit. */
static void test_missing(void **state)
{
	enum { N = MIGRATE_MISSING_MAX + 100 };
	_cleanup_free_ uint64_t *map = calloc(N / 64 + 1, 8), *got = calloc(N / 64 + 1, 8);
	_cleanup_bytes_ struct bytes b = { 0 };
	struct migrate_header h;
	uint64_t next = 0;
	uint32_t seq = 0;
	int r = 0;

	for (unsigned i = 0; i < N; i += 1 + i % 7)
		map[i / 64] |= 1ULL << i % 64;
	migrate_put_missing(&b, &seq, map, N);
	assert_int_equal(seq, 2);
	for (size_t at = 0; at < b.len; at += MIGRATE_HEADER_BYTES + h.len) {
		assert_int_equal(r, 0);
		assert_int_equal(migrate_header_parse(&h, b.data + at, at ? 1 : 0, true, &err), 0);
		r = migrate_get_missing(got, N, &next, b.data + at + MIGRATE_HEADER_BYTES, h.len, &err);
	}
	assert_int_equal(r, 1);
	assert_memory_equal(map, got, N / 64 * 8);

	const uint8_t *payload = b.data + MIGRATE_HEADER_BYTES;
	size_t len = 12 + MIGRATE_MISSING_MAX / 8;
	uint32_t *pages = (void *)(b.data + MIGRATE_HEADER_BYTES + 8);

	for (size_t cut = 0; cut < len; cut += cut < 40 ? 1 : 999)
		assert_int_equal(migrate_get_missing(got, N, (next = 0, &next), payload, cut, &err),
				 -EPROTO);
	assert_int_equal(migrate_get_missing(got, N, (next = 64, &next), payload, len, &err), -EPROTO);
	assert_int_equal(migrate_get_missing(got, 4096, (next = 0, &next), payload, len, &err), -EPROTO);
	for (unsigned i = 0; i < 4; i++) {
		static const uint32_t bad[] = { 0, 63, MIGRATE_MISSING_MAX - 1, UINT32_MAX };

		*pages = bad[i];
		assert_int_equal(migrate_get_missing(got, N, (next = 0, &next), payload, len, &err),
				 -EPROTO);
		assert_int_equal(migrate_get_missing(got, N, (next = 0, &next), payload,
						     12 + (bad[i] + 63ULL) / 64 * 8 % len, &err),
				 -EPROTO);
	}
}

static void test_rest(void **state)
{
	const struct migrate_rest in = { .paused_ns = 123456789, .is_paused = true };
	struct migrate_rest out = { 0 };
	_cleanup_bytes_ struct bytes b = { 0 };
	uint32_t seq = 0;

	migrate_put_rest(&b, &seq, &in);
	uint8_t *p = b.data + MIGRATE_HEADER_BYTES;
	size_t len = b.len - MIGRATE_HEADER_BYTES;

	assert_int_equal(migrate_get_rest(&out, p, len, &err), 0);
	assert_true(out.paused_ns == in.paused_ns && out.is_paused);
	assert_int_equal(migrate_get_rest(&out, p, len - 1, &err), -EPROTO);
	p[7] = 0xff;
	assert_int_equal(migrate_get_rest(&out, p, len, &err), -EPROTO);
}

static void test_commit(void **state)
{
	const uint64_t ns = 123456789, never = UINT64_MAX;

	assert_true(migrate_get_commit((const uint8_t *)&ns, 8) == ns);
	assert_true(migrate_get_commit((const uint8_t *)&ns, 7) == 0);
	assert_true(migrate_get_commit((const uint8_t *)&never, 8) == 0);
	assert_true(migrate_get_commit(NULL, 0) == 0); /* of one that does not say it */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_forged_pages, setup, teardown),
		cmocka_unit_test(test_headers),
		cmocka_unit_test_setup_teardown(test_sums, setup, teardown),
		cmocka_unit_test(test_state_in_pieces),
		cmocka_unit_test(test_commit),
		cmocka_unit_test(test_missing),
		cmocka_unit_test(test_rest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
