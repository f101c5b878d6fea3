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

static void seal(const uint8_t key[CODE_SET_KEY_BYTES], const uint8_t *code, size_t len, struct bytes *out)
{
	uint8_t head[CODE_SET_HEAD_BYTES], mac[CODE_SET_MAC_BYTES];

	code_set_seal(key, salt, code, len, head, mac);
	bytes_put(out, head, sizeof(head));
	bytes_put(out, code, len);
	bytes_put(out, mac, sizeof(mac));
	assert_false(out->is_failed);
}

static void test_opens(void **state)
{
	uint8_t key[CODE_SET_KEY_BYTES], code[3000];
	const uint8_t *found;
	size_t len;

	key_of(7, key);
	for (size_t i = 0; i < sizeof(code); i++)
		code[i] = (uint8_t)(i * i >> 3);
	for (size_t n = 0; n <= sizeof(code); n += 1 + n / 3) {
		struct bytes b = { 0 };

		seal(key, code, n, &b);
		assert_int_equal(code_set_open(key, b.data, b.len, &found, &len, &err), 0);
		assert_int_equal(len, n);
		assert_memory_equal(found, code, n);
		bytes_free(&b);
	}
}

static void test_damaged_ones(void **state)
{
	static const uint8_t code[200] = { 1, 2, 3 };
	uint8_t key[CODE_SET_KEY_BYTES];
	const uint8_t *found;
	struct bytes b = { 0 };
	size_t n;

	key_of(7, key);
	seal(key, code, sizeof(code), &b);
	for (size_t len = 0; len < b.len; len++)
		assert_int_equal(code_set_open(key, b.data, len, &found, &n, &err), -EINVAL);
	for (size_t i = 0; i < 8 * b.len; i++) {
		b.data[i / 8] ^= 1u << i % 8;
		assert_true(code_set_open(key, b.data, b.len, &found, &n, &err) < 0);
		b.data[i / 8] ^= 1u << i % 8;
	}
	assert_int_equal(code_set_open(key, b.data, b.len, &found, &n, &err), 0);
	bytes_free(&b);
}

/* Of another user, and of other memory. */
static void test_other_keys(void **state)
{
	static const uint8_t code[64] = { 9 };
	uint8_t key[CODE_SET_KEY_BYTES], other[CODE_SET_KEY_BYTES];
	const uint8_t *found;
	struct bytes b = { 0 };
	size_t n;

	key_of(7, key);
	key_of(7, other);
	assert_memory_equal(key, other, sizeof(key));
	seal(key, code, sizeof(code), &b);
	key_of(8, other);
	assert_int_equal(code_set_open(other, b.data, b.len, &found, &n, &err), -EACCES);
	for (unsigned i = 0; i < 8 * sizeof(key); i++) {
		memcpy(other, key, sizeof(key));
		other[i / 8] ^= 1u << i % 8;
		assert_int_equal(code_set_open(other, b.data, b.len, &found, &n, &err), -EACCES);
	}
	bytes_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_opens),
		cmocka_unit_test(test_damaged_ones),
		cmocka_unit_test(test_other_keys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
