/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of 9P2000.L, the file protocol of Linux's v9fs (diod's protocol.md; net/9p/client.c): reading those that come, writing answers.
 *
 *   message = size[4] type[1] tag[2] fields...      integers little-endian, size counts itself
 *   string  = length[2] bytes                       without a NUL
 *   qid     = type[1] version[4] path[8]            which file it is: two that differ in path are two files
 *
 * Everything that is read is hostile: a read past the end gives zeros and makes the message wrong (p9_is_whole).
 */
#ifndef VIV_SHARE_P9_H
#define VIV_SHARE_P9_H

#include "base/bytes.h"

#define P9_HEADER    7
#define P9_NAME_MAX  255
#define P9_WALK_MAX  16
#define P9_MSIZE_MIN 4096u
#define P9_MSIZE_MAX (512u * 1024)
#define P9_NOFID     0xffffffffu
#define P9_VERSION   "9P2000.L"
#define P9_IO_HEADER (P9_HEADER + 4) /* of Rread and Rreaddir, before the data */
#define P9_ERROR_LEN (P9_HEADER + 4)

/* Requests; the answer to each has the next number. */
enum p9_type {
	P9_RLERROR = 7,
	P9_TSTATFS = 8,
	P9_TLOPEN = 12,
	P9_TLCREATE = 14,
	P9_TSYMLINK = 16,
	P9_TMKNOD = 18,
	P9_TRENAME = 20,
	P9_TREADLINK = 22,
	P9_TGETATTR = 24,
	P9_TSETATTR = 26,
	P9_TXATTRWALK = 30,
	P9_TXATTRCREATE = 32,
	P9_TREADDIR = 40,
	P9_TFSYNC = 50,
	P9_TLOCK = 52,
	P9_TGETLOCK = 54,
	P9_TLINK = 70,
	P9_TMKDIR = 72,
	P9_TRENAMEAT = 74,
	P9_TUNLINKAT = 76,
	P9_TVERSION = 100,
	P9_TAUTH = 102,
	P9_TATTACH = 104,
	P9_TFLUSH = 108,
	P9_TWALK = 110,
	P9_TREAD = 116,
	P9_TWRITE = 118,
	P9_TCLUNK = 120,
	P9_TREMOVE = 122,
};

enum { P9_QT_DIR = 0x80, P9_QT_SYMLINK = 0x02, P9_QT_FILE = 0 };

struct p9_qid {
	uint8_t type;
	uint32_t version;
	uint64_t path;
};

/* ---- a message that came ---- */

/* base/bytes.h reads the integers. */

/** p9_is_whole() - all of it was read, and nothing that it lacks. */
static inline bool p9_is_whole(const struct byte_reader *in)
{
	return !in->is_failed && in->pos == in->len;
}
/** p9_get_text() - a string into @text, of @cap bytes with the NUL.  0, or -EINVAL: too long, with a NUL in it, cut off. */
int p9_get_text(struct byte_reader *in, char *text, size_t cap);
/** p9_get_name() - a file's name.  0, or -EINVAL, -ENAMETOOLONG: empty, "." or "..", with a slash or a NUL. */
int p9_get_name(struct byte_reader *in, char name[P9_NAME_MAX + 1]);
/** p9_check_name() - the same of @len bytes at @name. */
int p9_check_name(const char *name, size_t len);

/* ---- an answer ---- */

struct p9_out {
	uint8_t *data;
	size_t len, cap;
	bool is_full; /* something did not fit */
};

void p9_put(struct p9_out *out, const void *src, size_t len);
void p9_put_u8(struct p9_out *out, uint8_t v);
void p9_put_u16(struct p9_out *out, uint16_t v);
void p9_put_u32(struct p9_out *out, uint32_t v);
void p9_put_u64(struct p9_out *out, uint64_t v);
void p9_put_qid(struct p9_out *out, const struct p9_qid *q);
void p9_put_text(struct p9_out *out, const char *text, size_t len); /* up to 65535 bytes */
/** p9_poke_u32() - over what was put at @at. */
void p9_poke_u32(struct p9_out *out, size_t at, uint32_t v);

/** p9_error() - Rlerror of @error, a positive errno, into @data of P9_ERROR_LEN bytes. */
void p9_error(uint8_t *data, uint16_t tag, int error);

#endif
