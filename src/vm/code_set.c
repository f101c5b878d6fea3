/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/code_set.h"

#include <errno.h>
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <nettle/umac.h>
#include <string.h>

static const char magic[8] = "VIVCODES";
#define SET_VERSION 1

_Static_assert(CODE_SET_HEAD_BYTES % 8 == 0, "the code is aligned");

static void put_u64(struct hmac_sha256_ctx *h, uint64_t v)
{
	uint8_t b[8];

	for (unsigned i = 0; i < 8; i++)
		b[i] = (uint8_t)(v >> 8 * i);
	hmac_sha256_update(h, sizeof(b), b);
}

void code_set_key(const uint8_t secret[CODE_SET_KEY_BYTES], const struct ram_index *x,
		  uint8_t key[CODE_SET_KEY_BYTES])
{
	static const uint8_t what[] = "viv code set: key of a snapshot";
	struct hmac_sha256_ctx h;

	hmac_sha256_set_key(&h, CODE_SET_KEY_BYTES, secret);
	hmac_sha256_update(&h, sizeof(what), what);
	put_u64(&h, x->ram_bytes);
	put_u64(&h, x->granule_bytes);
	put_u64(&h, x->ngranules);
	for (uint32_t i = 0; i < x->ngranules; i++)
		put_u64(&h, x->layer[i] ? x->hash[i] : 0);
	hmac_sha256_digest(&h, CODE_SET_KEY_BYTES, key);
}

static void authenticate(const uint8_t key[CODE_SET_KEY_BYTES], const uint8_t *head,
			 const uint8_t *code, size_t len, uint8_t mac[CODE_SET_MAC_BYTES])
{
	static const uint8_t what[] = "viv code set", nonce[1] = { 0 };
	uint8_t own[SHA256_DIGEST_SIZE];
	struct hmac_sha256_ctx h;
	struct umac128_ctx u;

	hmac_sha256_set_key(&h, CODE_SET_KEY_BYTES, key);
	hmac_sha256_update(&h, sizeof(what), what);
	hmac_sha256_update(&h, CODE_SET_SALT_BYTES, head + 16);
	hmac_sha256_digest(&h, sizeof(own), own);
	umac128_set_key(&u, own);
	umac128_set_nonce(&u, sizeof(nonce), nonce);
	umac128_update(&u, CODE_SET_HEAD_BYTES, head);
	umac128_update(&u, len, code);
	umac128_digest(&u, CODE_SET_MAC_BYTES, mac);
}

void code_set_seal(const uint8_t key[CODE_SET_KEY_BYTES], const uint8_t salt[CODE_SET_SALT_BYTES],
		   const uint8_t *code, size_t len, uint8_t head[CODE_SET_HEAD_BYTES],
		   uint8_t mac[CODE_SET_MAC_BYTES])
{
	struct bytes b = { .data = head, .cap = CODE_SET_HEAD_BYTES };

	bytes_put(&b, magic, sizeof(magic));
	bytes_put_u32(&b, SET_VERSION);
	bytes_put_u32(&b, 0);
	bytes_put(&b, salt, CODE_SET_SALT_BYTES);
	bytes_put_u64(&b, len);
	authenticate(key, head, code, len, mac);
}

int code_set_open(const uint8_t key[CODE_SET_KEY_BYTES], const uint8_t *data, size_t len,
		  const uint8_t **code, size_t *code_len, struct error *err)
{
	struct byte_reader in = { .data = data, .len = len, .pos = sizeof(magic) };
	uint8_t mac[CODE_SET_MAC_BYTES];

	if (len < CODE_SET_HEAD_BYTES + CODE_SET_MAC_BYTES || len > CODE_SET_MAX ||
	    memcmp(data, magic, sizeof(magic)) != 0)
		return error_set(err, -EINVAL, "this is no file of translated code");
	uint32_t version = bytes_get_u32(&in), zero = bytes_get_u32(&in);

	in.pos += CODE_SET_SALT_BYTES;
	uint64_t n = bytes_get_u64(&in);

	if (version != SET_VERSION || zero || n != len - CODE_SET_HEAD_BYTES - CODE_SET_MAC_BYTES)
		return error_set(
			err, -EINVAL,
			"the file of translated code is damaged, or of another version of viv");
	authenticate(key, data, data + CODE_SET_HEAD_BYTES, n, mac);
	if (!memeql_sec(mac, data + len - CODE_SET_MAC_BYTES, sizeof(mac)))
		return error_set(err, -EACCES,
				 "the file of translated code is damaged, or of somebody else");
	*code = data + CODE_SET_HEAD_BYTES;
	*code_len = n;
	return 0;
}
