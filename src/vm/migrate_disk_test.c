/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces of disks come out as they went in; what is cut, forged or too long is refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "vm/migrate_disk.h"

static struct error err;
static uint8_t data[MIGRATE_CHUNK_BYTES];

static void fill(bool is_random)
{
	uint32_t seed = 7;

	for (size_t i = 0; i < sizeof(data); i++) {
		seed = seed * 1103515245 + 12345;
		data[i] = is_random ? (uint8_t)(seed >> 16) : (uint8_t)(i / 999);
	}
}

/* As a piece of just its size: what is read past its end is noticed. */
static int get(struct migrate_chunk_reader *r, struct migrate_chunk *c, const uint8_t *payload, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);

	assert_non_null(copy);
	memcpy(copy, payload, len);
	int e = migrate_chunk_get(r, c, copy, len, &err);

	if (e == 0 && c->data >= copy && c->data < copy + len) {
		assert_int_equal(c->len, len - 24);
		assert_memory_equal(c->data, payload + 24, c->len);
		c->data = payload + 24;
	}
	free(copy);
	return e;
}

static void test_round_trip(void **state)
{
	struct migrate_packer p = { .level = 1 };
	struct migrate_chunk_reader r = { 0 };
	uint32_t seq = 0;

	for (unsigned i = 0; i < 6; i++) {
		_cleanup_bytes_ struct bytes b = { 0 };
		const struct migrate_chunk in = { .file = 3 + i,
						  .offset = 512ULL * i,
						  .len = i == 5 ? 1ULL << 40 : sizeof(data) - i,
						  .data = i == 5 ? NULL : data };
		struct migrate_chunk out;

		fill(i % 2);
		assert_int_equal(migrate_chunk_put(&p, &b, &seq, i < 4, &in), 0);
		/* Random bytes do not get longer by being packed. */
		assert_true(b.len <= MIGRATE_HEADER_BYTES + 24 + sizeof(data));
		if (i < 4 && !(i % 2))
			assert_true(b.len < sizeof(data) / 4);
		assert_int_equal(
			get(&r, &out, b.data + MIGRATE_HEADER_BYTES, b.len - MIGRATE_HEADER_BYTES), 0);
		assert_int_equal(out.file, in.file);
		assert_int_equal(out.offset, in.offset);
		assert_int_equal(out.len, in.len);
		if (in.data)
			assert_memory_equal(out.data, data, in.len);
		else
			assert_null(out.data);
	}
	assert_int_equal(seq, 6);
	migrate_packer_free(&p);
	migrate_chunk_reader_free(&r);
}

static void test_hostile(void **state)
{
	struct migrate_packer p = { .level = 1 };
	struct migrate_chunk_reader r = { 0 };
	struct migrate_chunk c;
	uint32_t seq = 0;

	fill(false);
	for (unsigned packs = 0; packs < 2; packs++) {
		_cleanup_bytes_ struct bytes b = { 0 };
		const struct migrate_chunk in = { .file = 1, .offset = 4096, .len = 8192, .data = data };

		assert_int_equal(migrate_chunk_put(&p, &b, &seq, packs, &in), 0);
		uint8_t *payload = b.data + MIGRATE_HEADER_BYTES;
		size_t len = b.len - MIGRATE_HEADER_BYTES;

		for (size_t cut = 0; cut < len; cut++)
			assert_int_equal(get(&r, &c, payload, cut), -EPROTO);
		for (unsigned at = 4; at < 8; at++) { /* codec and what is to be zero */
			payload[at] ^= 0x80;
			assert_int_equal(get(&r, &c, payload, len), -EPROTO);
			payload[at] ^= 0x80;
		}
		static const uint64_t lens[] = { 0,	     8191,
						 8193,	     MIGRATE_CHUNK_BYTES + 1,
						 UINT64_MAX, INT64_MAX };

		for (unsigned i = 0; i < ARRAY_SIZE(lens); i++) {
			memcpy(payload + 16, &lens[i], 8);
			assert_int_equal(get(&r, &c, payload, len), -EPROTO);
		}
		/* Zeroes, but with contents; and past the end of all files. */
		payload[4] = MIGRATE_CHUNK_ZERO;
		memcpy(payload + 16, &(uint64_t){ 8192 }, 8);
		assert_int_equal(get(&r, &c, payload, len), -EPROTO);
		assert_int_equal(get(&r, &c, payload, 24), 0);
		memcpy(payload + 8, &(uint64_t){ INT64_MAX - 8191 }, 8);
		assert_int_equal(get(&r, &c, payload, 24), -EPROTO);
	}
	migrate_packer_free(&p);
	migrate_chunk_reader_free(&r);
}

static void test_sums(void **state)
{
	_cleanup_bytes_ struct bytes b = { 0 };
	const uint64_t sums[3] = { migrate_unit_sum(5, data, 512), 2, 3 };
	struct migrate_units u;
	uint32_t seq = 0;

	migrate_units_put(&b, &seq, 9, 5, sums, 3);
	uint8_t *payload = b.data + MIGRATE_HEADER_BYTES;
	size_t len = b.len - MIGRATE_HEADER_BYTES;

	assert_int_equal(migrate_units_get(&u, payload, len, &err), 0);
	assert_int_equal(u.file, 9);
	assert_int_equal(u.first, 5);
	assert_int_equal(u.n, 3);
	assert_memory_equal(u.sums, sums, sizeof(sums));
	/* The same content elsewhere has another. */
	assert_int_not_equal(migrate_unit_sum(6, data, 512), sums[0]);
	for (size_t cut = 0; cut < len; cut++)
		assert_int_equal(migrate_units_get(&u, payload, cut, &err), -EPROTO);
	memcpy(payload + 4, &(uint64_t){ INT64_MAX / MIGRATE_UNIT_BYTES }, 8);
	assert_int_equal(migrate_units_get(&u, payload, len, &err), -EPROTO);
	memcpy(payload + 4, &(uint64_t){ UINT64_MAX }, 8);
	assert_int_equal(migrate_units_get(&u, payload, len, &err), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_sums),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
