/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <string.h>

#include "vm/aml.h"

/* ACPI 6.4 20.2.2: a path is [\] then nothing, one segment, or DualName / MultiName prefix. */
void aml_name_string(struct bytes *b, const char *name)
{
	unsigned n = 1;

	if (*name == '\\') {
		bytes_put_u8(b, '\\');
		name++;
	}
	for (const char *p = name; *p; p++)
		n += *p == '.';
	if (!*name) {
		bytes_put_u8(b, 0); /* NullName: the root itself */
		return;
	}
	if (n == 2) {
		bytes_put_u8(b, 0x2e);
	} else if (n > 2) {
		bytes_put_u8(b, 0x2f);
		bytes_put_u8(b, (uint8_t)n);
	}
	while (n--) {
		size_t len = strcspn(name, ".");
		char seg[4] = { '_', '_', '_', '_' };

		assert(len >= 1 && len <= 4);
		memcpy(seg, name, len);
		bytes_put(b, seg, 4);
		name += len + (name[len] == '.');
	}
}

/* 20.2.3: the shortest form. */
void aml_int(struct bytes *b, uint64_t v)
{
	if (v <= 1) {
		bytes_put_u8(b, (uint8_t)v); /* ZeroOp, OneOp */
	} else if (v <= 0xff) {
		bytes_put_u8(b, 0x0a);
		bytes_put_u8(b, (uint8_t)v);
	} else if (v <= 0xffff) {
		bytes_put_u8(b, 0x0b);
		bytes_put_u16(b, (uint16_t)v);
	} else if (v <= 0xffffffff) {
		bytes_put_u8(b, 0x0c);
		bytes_put_u32(b, (uint32_t)v);
	} else {
		bytes_put_u8(b, 0x0e);
		bytes_put_u64(b, v);
	}
}

void aml_string(struct bytes *b, const char *s)
{
	bytes_put_u8(b, 0x0d);
	bytes_put(b, s, strlen(s) + 1);
}

static unsigned hex_digit(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10);
}

/* 19.6.38 EISAID: three letters of 5 bits, four hex digits, big-endian. */
void aml_eisa_id(struct bytes *b, const char *id)
{
	uint32_t v;

	assert(strlen(id) == 7);
	v = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 |
	    (uint32_t)(id[2] - 0x40) << 16 | hex_digit(id[3]) << 12 | hex_digit(id[4]) << 8 |
	    hex_digit(id[5]) << 4 | hex_digit(id[6]);
	bytes_put_u8(b, 0x0c);
	bytes_put_u32(b, __builtin_bswap32(v));
}

void aml_name(struct bytes *b, const char *name)
{
	bytes_put_u8(b, 0x08);
	aml_name_string(b, name);
}

void aml_name_int(struct bytes *b, const char *name, uint64_t v)
{
	aml_name(b, name);
	aml_int(b, v);
}

size_t aml_begin_scope(struct bytes *b, const char *name)
{
	bytes_put_u8(b, 0x10);
	size_t mark = b->len;

	aml_name_string(b, name);
	return mark;
}

size_t aml_begin_device(struct bytes *b, const char *name)
{
	bytes_put_u8(b, 0x5b);
	bytes_put_u8(b, 0x82);
	size_t mark = b->len;

	aml_name_string(b, name);
	return mark;
}

size_t aml_begin_method(struct bytes *b, const char *name, unsigned nargs)
{
	bytes_put_u8(b, 0x14);
	size_t mark = b->len;

	aml_name_string(b, name);
	bytes_put_u8(b, (uint8_t)nargs);
	return mark;
}

size_t aml_begin_package(struct bytes *b, unsigned nelements)
{
	bytes_put_u8(b, 0x12);
	size_t mark = b->len;

	bytes_put_u8(b, (uint8_t)nelements);
	return mark;
}

size_t aml_begin_if(struct bytes *b)
{
	bytes_put_u8(b, 0xa0);
	return b->len;
}

/* 20.2.4: PkgLength counts itself; 1 byte up to 63, else 1 + n bytes with 4 low bits in the first. */
void aml_end(struct bytes *b, size_t mark)
{
	uint8_t enc[4];
	size_t content = b->len - mark, n = 1;

	if (b->is_failed)
		return;
	if (content + 1 > 0x3f)
		n = content + 2 <= 0xfff ? 2 : content + 3 <= 0xfffff ? 3 : 4;
	size_t total = content + n;

	if (n == 1) {
		enc[0] = (uint8_t)total;
	} else {
		enc[0] = (uint8_t)((n - 1) << 6 | (total & 0xf));
		for (size_t i = 1; i < n; i++)
			enc[i] = (uint8_t)(total >> (4 + 8 * (i - 1)));
	}
	bytes_put(b, enc, n); /* makes room; the bytes themselves go to the mark */
	if (b->is_failed)
		return;
	memmove(b->data + mark + n, b->data + mark, content);
	memcpy(b->data + mark, enc, n);
}

void aml_return(struct bytes *b)
{
	bytes_put_u8(b, 0xa4);
}

/* 20.2.5.3: NotifyOp SuperName Value */
void aml_notify(struct bytes *b, const char *name, uint8_t value)
{
	bytes_put_u8(b, 0x86);
	aml_name_string(b, name);
	aml_int(b, value);
}

void aml_store_arg0(struct bytes *b, const char *name)
{
	bytes_put_u8(b, 0x70);
	bytes_put_u8(b, 0x68);
	aml_name_string(b, name);
}

/* 6.4.2.5 I/O port descriptor, 16-bit decode. */
void aml_res_io(struct bytes *r, uint16_t base, uint8_t len)
{
	bytes_put_u8(r, 0x47);
	bytes_put_u8(r, 1);
	bytes_put_u16(r, base);
	bytes_put_u16(r, base);
	bytes_put_u8(r, 1);
	bytes_put_u8(r, len);
}

/* 6.4.2.1 IRQ descriptor without flags: edge, active high. */
void aml_res_irq(struct bytes *r, unsigned irq)
{
	bytes_put_u8(r, 0x22);
	bytes_put_u16(r, (uint16_t)(1u << irq));
}

/* 6.4.3.5.5 general flags: producer, fixed at both ends; type-specific flags by space. */
static void put_address_head(struct bytes *r, uint8_t tag, uint16_t len, enum aml_space space)
{
	bytes_put_u8(r, tag);
	bytes_put_u16(r, len);
	bytes_put_u8(r, (uint8_t)space);
	bytes_put_u8(r, 0x0c);
	bytes_put_u8(r, space == AML_IO ? 3 : space == AML_MEMORY ? 1 : 0);
}

void aml_res_word(struct bytes *r, enum aml_space space, uint16_t min, uint16_t max)
{
	put_address_head(r, 0x88, 13, space);
	bytes_put_u16(r, 0);
	bytes_put_u16(r, min);
	bytes_put_u16(r, max);
	bytes_put_u16(r, 0);
	bytes_put_u16(r, (uint16_t)(max - min + 1));
}

void aml_res_dword(struct bytes *r, enum aml_space space, uint32_t min, uint32_t max)
{
	put_address_head(r, 0x87, 23, space);
	bytes_put_u32(r, 0);
	bytes_put_u32(r, min);
	bytes_put_u32(r, max);
	bytes_put_u32(r, 0);
	bytes_put_u32(r, max - min + 1);
}

void aml_name_resources(struct bytes *b, const char *name, struct bytes *r)
{
	bytes_put_u8(r, 0x79); /* end tag, checksum not used */
	bytes_put_u8(r, 0);
	b->is_failed |= r->is_failed;

	aml_name(b, name);
	bytes_put_u8(b, 0x11); /* DefBuffer */
	size_t mark = b->len;

	aml_int(b, r->len);
	bytes_put(b, r->data, r->len);
	aml_end(b, mark);
	bytes_free(r);
}
