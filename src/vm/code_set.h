/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The code of a snapshot: what the engine had translated some seconds after a machine went on from there (engine.h, code_save), for the next
 * one that does.  A hint: one that is missing, damaged, of another build or of somebody else changes nothing but the time.
 *
 * It is code of the host, which the machine's process will execute.  So it is believed only with codes of authentication under a key that
 * follows from a secret of the user's (ctl/codekey.h) and from the memory's contents (code_set_key()): whoever can write files of snapshots cannot
 * make one, nor one of a snapshot pass for another's.  The bytes that are authenticated are the ones that are used: a part is read once.
 *
 * On the wire; integers little-endian
 *   "VIVCODES", u32 version (2), u32 parts, salt of 32 bytes, u32 bytes of each of CODE_SET_PARTS parts (those that there are not: 0)
 *   of each part: its bytes, 16 bytes of UMAC-128; of part 0 that is over all before it, too
 * The key of the UMAC is the first half of HMAC-SHA256(key, "viv code set" and the salt), which no other file has; its nonce is the
 * part's number, a byte.
 */
#ifndef VIV_VM_CODE_SET_H
#define VIV_VM_CODE_SET_H

#include "base/bytes.h"
#include "base/error.h"
#include "engine/engine.h"
#include "vm/snapshot_ram.h"

#define CODE_SET_FILE	    "code-set"
#define CODE_SET_MAX	    (96 * MIB) /* bytes of the file */
#define CODE_SET_KEY_BYTES  32
#define CODE_SET_SALT_BYTES 32
#define CODE_SET_PARTS	    ENGINE_CODE_PARTS
#define CODE_SET_HEAD_BYTES (8 + 4 + 4 + CODE_SET_SALT_BYTES + 4 * CODE_SET_PARTS)
#define CODE_SET_MAC_BYTES  16

/** code_set_key() - of a snapshot whose memory is that of @x. */
void code_set_key(const uint8_t secret[CODE_SET_KEY_BYTES], const struct ram_index *x,
		  uint8_t key[CODE_SET_KEY_BYTES]);

struct code_set {
	uint8_t head[CODE_SET_HEAD_BYTES]; /* as in the file */
	uint8_t own[CODE_SET_KEY_BYTES];   /* the file's key */
	unsigned nparts;
	uint32_t len[CODE_SET_PARTS];
};

/** code_set_begin() - a file of @nparts parts of so many bytes. @salt: random */
void code_set_begin(struct code_set *c, const uint8_t key[CODE_SET_KEY_BYTES],
		    const uint8_t salt[CODE_SET_SALT_BYTES], const uint32_t *len, unsigned nparts);
/**
 * code_set_parse() - a file of @file_len bytes, which begins with the hostile @head.  Nothing in it is believed before part 0 was (code_set_check()).
 * Returns 0, or -EINVAL: cut off, damaged, or none.
 */
int code_set_parse(struct code_set *c, const uint8_t key[CODE_SET_KEY_BYTES],
		   const uint8_t head[CODE_SET_HEAD_BYTES], uint64_t file_len, struct error *err);
/** code_set_at() - where in the file part @i begins; its code of authentication follows it. */
uint64_t code_set_at(const struct code_set *c, unsigned i);
/** code_set_mac() - of part @i, whose bytes are @data. */
void code_set_mac(const struct code_set *c, unsigned i, const uint8_t *data,
		  uint8_t mac[CODE_SET_MAC_BYTES]);
/** code_set_check() - 0, or -EACCES: whoever wrote the part did not have the key. */
int code_set_check(const struct code_set *c, unsigned i, const uint8_t *data,
		   const uint8_t mac[CODE_SET_MAC_BYTES], struct error *err);

#endif
