/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/code_set.h"

#include <errno.h>
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <nettle/umac.h>
#include <string.h>

static const char magic[8] = "VIVCODES";
#define SET_VERSION 2
#define SALT_AT	    16

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

static void derive(struct code_set *c, const uint8_t key[CODE_SET_KEY_BYTES])
{
	static const uint8_t what[] = "viv code set";
	struct hmac_sha256_ctx h;

	hmac_sha256_set_key(&h, CODE_SET_KEY_BYTES, key);
	hmac_sha256_update(&h, sizeof(what), what);
	hmac_sha256_update(&h, CODE_SET_SALT_BYTES, c->head + SALT_AT);
	hmac_sha256_digest(&h, sizeof(c->own), c->own);
}

void code_set_begin(struct code_set *c, const uint8_t key[CODE_SET_KEY_BYTES],
		    const uint8_t salt[CODE_SET_SALT_BYTES], const uint32_t *len, unsigned nparts)
{
	struct bytes b = { .data = c->head, .cap = CODE_SET_HEAD_BYTES };

	*c = (struct code_set){ .nparts = nparts };
	memcpy(c->len, len, nparts * sizeof(*len));
	bytes_put(&b, magic, sizeof(magic));
	bytes_put_u32(&b, SET_VERSION);
	bytes_put_u32(&b, nparts);
	bytes_put(&b, salt, CODE_SET_SALT_BYTES);
	for (unsigned i = 0; i < CODE_SET_PARTS; i++)
		bytes_put_u32(&b, c->len[i]);
	derive(c, key);
}

int code_set_parse(struct code_set *c, const uint8_t key[CODE_SET_KEY_BYTES],
		   const uint8_t head[CODE_SET_HEAD_BYTES], uint64_t file_len, struct error *err)
{
	struct byte_reader in = { .data = head, .len = CODE_SET_HEAD_BYTES, .pos = sizeof(magic) };
	uint64_t total = CODE_SET_HEAD_BYTES;
	bool is_good = true;

	*c = (struct code_set){ 0 };
	memcpy(c->head, head, CODE_SET_HEAD_BYTES);
	if (memcmp(head, magic, sizeof(magic)) != 0)
		return error_set(err, -EINVAL, "this is no file of translated code");
	uint32_t version = bytes_get_u32(&in);

	c->nparts = bytes_get_u32(&in);
	in.pos += CODE_SET_SALT_BYTES;
	for (unsigned i = 0; i < CODE_SET_PARTS; i++) {
		c->len[i] = bytes_get_u32(&in);
		is_good &= c->len[i] <= ENGINE_CODE_PART_MAX && (i < c->nparts || !c->len[i]);
		total += i < c->nparts ? c->len[i] + CODE_SET_MAC_BYTES : 0;
	}
	if (version != SET_VERSION || !c->nparts || c->nparts > CODE_SET_PARTS || !is_good ||
	    total != file_len)
		return error_set(
			err, -EINVAL,
			"the file of translated code is damaged, or of another version of viv");
	derive(c, key);
	return 0;
}

uint64_t code_set_at(const struct code_set *c, unsigned i)
{
	uint64_t at = CODE_SET_HEAD_BYTES;

	for (unsigned k = 0; k < i; k++)
		at += c->len[k] + CODE_SET_MAC_BYTES;
	return at;
}

void code_set_mac(const struct code_set *c, unsigned i, const uint8_t *data,
		  uint8_t mac[CODE_SET_MAC_BYTES])
{
	const uint8_t nonce[1] = { (uint8_t)i };
	struct umac128_ctx u;

	umac128_set_key(&u, c->own);
	umac128_set_nonce(&u, sizeof(nonce), nonce);
	if (i == 0)
		umac128_update(&u, CODE_SET_HEAD_BYTES, c->head);
	umac128_update(&u, c->len[i], data);
	umac128_digest(&u, CODE_SET_MAC_BYTES, mac);
}

int code_set_check(const struct code_set *c, unsigned i, const uint8_t *data,
		   const uint8_t mac[CODE_SET_MAC_BYTES], struct error *err)
{
	uint8_t ours[CODE_SET_MAC_BYTES];

	code_set_mac(c, i, data, ours);
	return memeql_sec(ours, mac, sizeof(ours))
		       ? 0
		       : error_set(err, -EACCES,
				   "the file of translated code is damaged, or of somebody else");
}
