/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <errno.h>
#include <string.h>

#include "vm/code_set.h"

#define RAM_BYTES (4 * MIB)

static struct error err;
static const uint8_t secret[CODE_SET_KEY_BYTES] = "not known to anybody else",
		     salt[CODE_SET_SALT_BYTES] = "salt";

static void key_of(uint64_t hash, uint8_t key[CODE_SET_KEY_BYTES])
{
	struct ram_index x;

	assert_int_equal(ram_index_init(&x, RAM_BYTES, &err), 0);
	assert_int_equal(ram_index_add_layer(&x, "ram-1", &err), 1);
	x.layer[3] = 1;
	x.hash[3] = hash;
	code_set_key(secret, &x, key);
	ram_index_free(&x);
}

static const uint32_t lens[] = { 104, 3000, 0, 1, 777 };
#define NPARTS ARRAY_SIZE(lens)

static void seal(const uint8_t key[CODE_SET_KEY_BYTES], struct bytes *out)
{
	uint8_t code[3000], mac[CODE_SET_MAC_BYTES];
	struct code_set c;

	for (size_t i = 0; i < sizeof(code); i++)
		code[i] = (uint8_t)(i * i >> 3);
	code_set_begin(&c, key, salt, lens, NPARTS);
	bytes_put(out, c.head, sizeof(c.head));
	for (unsigned i = 0; i < NPARTS; i++) {
		assert_int_equal(code_set_at(&c, i), out->len);
		code_set_mac(&c, i, code, mac);
		bytes_put(out, code, lens[i]);
		bytes_put(out, mac, sizeof(mac));
	}
	assert_false(out->is_failed);
}

/* How many parts are believed, from the first on; or -errno. */
static int open_all(const uint8_t key[CODE_SET_KEY_BYTES], const uint8_t *data, size_t len)
{
	uint8_t head[CODE_SET_HEAD_BYTES] = { 0 };
	struct code_set c;

	memcpy(head, data, MIN(len, sizeof(head)));
	int r = code_set_parse(&c, key, head, len, &err);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < c.nparts; i++) {
		const uint8_t *part = data + code_set_at(&c, i);

		r = code_set_check(&c, i, part, part + c.len[i], &err);
		if (r < 0)
			return i ? (int)i : r;
	}
	return (int)c.nparts;
}

static void test_opens(void **state)
{
	uint8_t key[CODE_SET_KEY_BYTES];
	struct bytes b = { 0 };

	key_of(7, key);
	seal(key, &b);
	assert_int_equal(open_all(key, b.data, b.len), NPARTS);
	bytes_free(&b);
}

static void test_damaged_ones(void **state)
{
	uint8_t key[CODE_SET_KEY_BYTES];
	struct bytes b = { 0 };

	key_of(7, key);
	seal(key, &b);
	for (size_t len = 0; len < b.len; len++)
		assert_int_equal(open_all(key, b.data, len), -EINVAL);
	for (size_t i = 0; i < 8 * b.len; i++) {
		unsigned whole = 0;
		size_t at = CODE_SET_HEAD_BYTES;

		while (at + lens[whole] + CODE_SET_MAC_BYTES <= i / 8)
			at += lens[whole++] + CODE_SET_MAC_BYTES;
		b.data[i / 8] ^= 1u << i % 8;
		int n = open_all(key, b.data, b.len);

		assert_true(whole ? n == (int)whole : n < 0);
		b.data[i / 8] ^= 1u << i % 8;
	}
	assert_int_equal(open_all(key, b.data, b.len), NPARTS);
	bytes_free(&b);
}

/* A part is no other one, and none of another file of the same key. */
static void test_exchanged_parts(void **state)
{
	static const uint32_t same[] = { 64, 64, 64 };
	static const uint8_t code[64] = { 9 }, other_salt[CODE_SET_SALT_BYTES] = "another";
	uint8_t key[CODE_SET_KEY_BYTES], macs[3][CODE_SET_MAC_BYTES], others[3][CODE_SET_MAC_BYTES];
	struct code_set c, d;

	key_of(7, key);
	code_set_begin(&c, key, salt, same, 3);
	code_set_begin(&d, key, other_salt, same, 3);
	for (unsigned i = 0; i < 3; i++) {
		code_set_mac(&c, i, code, macs[i]);
		code_set_mac(&d, i, code, others[i]);
	}
	for (unsigned i = 0; i < 3; i++)
		for (unsigned k = 0; k < 3; k++) {
			assert_int_equal(code_set_check(&c, i, code, macs[k], &err), i == k ? 0 : -EACCES);
			assert_int_equal(code_set_check(&c, i, code, others[k], &err), -EACCES);
		}
}

/* Of another user, and of other memory. */
static void test_other_keys(void **state)
{
	uint8_t key[CODE_SET_KEY_BYTES], other[CODE_SET_KEY_BYTES];
	struct bytes b = { 0 };

	key_of(7, key);
	key_of(7, other);
	assert_memory_equal(key, other, sizeof(key));
	seal(key, &b);
	key_of(8, other);
	assert_int_equal(open_all(other, b.data, b.len), -EACCES);
	for (unsigned i = 0; i < 8 * sizeof(key); i++) {
		memcpy(other, key, sizeof(key));
		other[i / 8] ^= 1u << i % 8;
		assert_int_equal(open_all(other, b.data, b.len), -EACCES);
	}
	bytes_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_opens),
		cmocka_unit_test(test_damaged_ones),
		cmocka_unit_test(test_exchanged_parts),
		cmocka_unit_test(test_other_keys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
