/* SPDX-License-Identifier: Apache-2.0 */
#include "share/p9.h"

#include <errno.h>
#include <string.h>

int p9_get_text(struct byte_reader *in, char *text, size_t cap)
{
	uint16_t len = bytes_get_u16(in);

	if (in->is_failed || len >= cap || !bytes_get(in, text, len) || memchr(text, 0, len))
		return -EINVAL;
	text[len] = 0;
	return 0;
}

int p9_check_name(const char *name, size_t len)
{
	if (!len || memchr(name, '/', len) || memchr(name, 0, len) ||
	    (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.'))))
		return -EINVAL;
	return len > P9_NAME_MAX ? -ENAMETOOLONG : 0;
}

int p9_get_name(struct byte_reader *in, char name[P9_NAME_MAX + 1])
{
	uint16_t len = bytes_get_u16(in);

	if (in->is_failed || len > in->len - in->pos)
		return -EINVAL;
	int r = p9_check_name((const char *)in->data + in->pos, len);

	if (r < 0)
		return r;
	bytes_get(in, name, len);
	name[len] = 0;
	return 0;
}

void p9_put(struct p9_out *out, const void *src, size_t len)
{
	if (len > out->cap - out->len) {
		out->is_full = true;
		return;
	}
	memcpy(out->data + out->len, src, len);
	out->len += len;
}

void p9_put_u8(struct p9_out *out, uint8_t v)
{
	p9_put(out, &v, sizeof(v));
}

void p9_put_u16(struct p9_out *out, uint16_t v)
{
	p9_put(out, &v, sizeof(v));
}

void p9_put_u32(struct p9_out *out, uint32_t v)
{
	p9_put(out, &v, sizeof(v));
}

void p9_put_u64(struct p9_out *out, uint64_t v)
{
	p9_put(out, &v, sizeof(v));
}

void p9_put_qid(struct p9_out *out, const struct p9_qid *q)
{
	p9_put_u8(out, q->type);
	p9_put_u32(out, q->version);
	p9_put_u64(out, q->path);
}

void p9_put_text(struct p9_out *out, const char *text, size_t len)
{
	p9_put_u16(out, (uint16_t)len);
	p9_put(out, text, len);
}

void p9_poke_u32(struct p9_out *out, size_t at, uint32_t v)
{
	memcpy(out->data + at, &v, sizeof(v));
}

void p9_error(uint8_t *data, uint16_t tag, int error)
{
	struct p9_out out = { .data = data, .cap = P9_ERROR_LEN };

	p9_put_u32(&out, P9_ERROR_LEN);
	p9_put_u8(&out, P9_RLERROR);
	p9_put_u16(&out, tag);
	p9_put_u32(&out, (uint32_t)error);
}
