/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The code of a snapshot: what the engine had translated some seconds after a machine went on from there (engine.h, code_save), for the next
 * one that does.  A hint: one that is missing, damaged, of another build or of somebody else changes nothing but the time.
 *
 * It is code of the host, which the machine's process will execute.  So it is believed only with a code of authentication under a key that
 * follows from a secret of the user's (ctl/codekey.h) and from the memory's contents (code_set_key()): whoever can write files of snapshots cannot
 * make one, nor one of a snapshot pass for another's.  The bytes that are authenticated are the ones that are used: a file is read once.
 *
 * On the wire; integers little-endian
 *   "VIVCODES", u32 version, u32 0, salt of 32 bytes, u64 bytes of code, the code, 16 bytes of UMAC-128 of all before
 * The key of the UMAC is the first half of HMAC-SHA256(key, "viv code set" and the salt), which no other file has, its nonce one zero byte.
 */
#ifndef VIV_VM_CODE_SET_H
#define VIV_VM_CODE_SET_H

#include "base/bytes.h"
#include "base/error.h"
#include "vm/snapshot_ram.h"

#define CODE_SET_FILE	    "code-set"
#define CODE_SET_MAX	    (96 * MIB) /* bytes of the file */
#define CODE_SET_KEY_BYTES  32
#define CODE_SET_SALT_BYTES 32
#define CODE_SET_HEAD_BYTES                                                                        \
	(8 + 4 + 4 + CODE_SET_SALT_BYTES + 8) /* a multiple of 8: so the code is aligned */
#define CODE_SET_MAC_BYTES 16

/** code_set_key() - of a snapshot whose memory is that of @x. */
void code_set_key(const uint8_t secret[CODE_SET_KEY_BYTES], const struct ram_index *x,
		  uint8_t key[CODE_SET_KEY_BYTES]);

/**
 * code_set_seal() - what stands in the file before and after the @len bytes at @code.
 * @salt: random
 */
void code_set_seal(const uint8_t key[CODE_SET_KEY_BYTES], const uint8_t salt[CODE_SET_SALT_BYTES],
		   const uint8_t *code, size_t len, uint8_t head[CODE_SET_HEAD_BYTES],
		   uint8_t mac[CODE_SET_MAC_BYTES]);
/**
 * code_set_open() - hostile bytes; where in them the code lies.
 * Returns 0, -EINVAL: cut off, damaged, or none; -EACCES: whoever wrote it did not have the key.
 */
int code_set_open(const uint8_t key[CODE_SET_KEY_BYTES], const uint8_t *data, size_t len,
		  const uint8_t **code, size_t *code_len, struct error *err);

#endif
