/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/host.h"
#include "state/field.h"

struct chan {
	uint16_t count;
	uint8_t mode;
	bool is_gated;
};

struct dev {
	void *host_ptr;
	uint8_t regs[5];
	uint8_t pad_[3];
	uint32_t words[3];
	uint16_t small;
	bool is_on;
	uint8_t tiny;
	int64_t deadline;
	uint64_t big;
	struct chan chan[2];
	uint32_t added; /* version 2 */
	uint32_t host_tail;
};

static int chan_check(const void *obj, struct error *err)
{
	const struct chan *c = obj;

	return c->mode > 5 ? error_set(err, -EINVAL, "mode %u", c->mode) : 0;
}

static const struct field chan_fields[] = {
	F_U16(struct chan, count),
	F_U8(struct chan, mode),
	F_BOOL(struct chan, is_gated),
	F_END,
};
static const struct state_desc chan_desc = { "chan", 1, sizeof(struct chan), chan_fields, chan_check };

static const struct field dev_fields[] = {
	F_HOST(struct dev, host_ptr),
	F_BYTES(struct dev, regs),
	F_HOST(struct dev, pad_),
	F_ARRAY(FIELD_U32, struct dev, words),
	F_U16(struct dev, small),
	F_BOOL(struct dev, is_on),
	F_U8(struct dev, tiny),
	F_I64(struct dev, deadline),
	F_U64(struct dev, big),
	F_STRUCT_ARRAY(struct dev, chan, &chan_desc),
	{ .name = "added",
	  .kind = FIELD_U32,
	  .since = 2,
	  .offset = offsetof(struct dev, added),
	  .size = 4,
	  .count = 1,
	  .dflt = 0xabcd },
	F_HOST(struct dev, host_tail),
	F_END,
};
static const struct state_desc dev_desc = { "dev", 2, sizeof(struct dev), dev_fields, NULL };

/* What a program of version 1 had. */
static const struct field old_fields[] = {
	F_HOST(struct dev, host_ptr),
	F_BYTES(struct dev, regs),
	F_HOST(struct dev, pad_),
	F_ARRAY(FIELD_U32, struct dev, words),
	F_U16(struct dev, small),
	F_BOOL(struct dev, is_on),
	F_U8(struct dev, tiny),
	F_I64(struct dev, deadline),
	F_U64(struct dev, big),
	F_STRUCT_ARRAY(struct dev, chan, &chan_desc),
	F_HOST(struct dev, added),
	F_HOST(struct dev, host_tail),
	F_END,
};
static const struct state_desc old_desc = { "dev", 1, sizeof(struct dev), old_fields, NULL };

static struct dev sample(void)
{
	struct dev d = {
		.host_ptr = (void *)&dev_desc,
		.regs = { 1, 2, 3, 4, 5 },
		.pad_ = { 9, 9, 9 },
		.words = { 0x11111111, 0x22222222, 0x33333333 },
		.small = 0x4455,
		.is_on = true,
		.tiny = 0x66,
		.deadline = -5,
		.big = 0x7788990011223344,
		.chan = { { 1, 2, true }, { 3, 4, false } },
		.added = 0xbbbbbbbb,
		.host_tail = 77,
	};
	return d;
}

static char d_blank_anchor;

static struct dev blank(void)
{
	struct dev d;

	memset(&d, 0, sizeof(d));
	memset(d.pad_, 0xee, sizeof(d.pad_));
	d.host_ptr = &d_blank_anchor;
	d.host_tail = 5;
	return d;
}

static int load(const struct state_desc *desc, struct dev *d, const struct bytes *b, struct error *err)
{
	struct byte_reader r = { .data = b->data, .len = b->len };

	return state_load(desc, d, &r, err);
}

static void descriptions_hold(void **state)
{
	struct error err;

	assert_int_equal(state_desc_verify(&dev_desc, &err), 0);
	assert_int_equal(state_desc_verify(&old_desc, &err), 0);
}

static void save_load_save_is_identical(void **state)
{
	struct dev a = sample(), b = blank();
	_cleanup_bytes_ struct bytes one = { 0 }, two = { 0 };

	assert_int_equal(state_save(&dev_desc, &a, &one), 0);
	bytes_put_u32(&one, 0xfeedface); /* what follows is left alone */
	struct byte_reader r = { .data = one.data, .len = one.len };
	assert_int_equal(state_load(&dev_desc, &b, &r, NULL), 0);
	assert_int_equal(bytes_get_u32(&r), 0xfeedface);
	assert_int_equal(state_save(&dev_desc, &b, &two), 0);
	assert_int_equal(two.len, one.len - 4);
	assert_memory_equal(one.data, two.data, two.len);
	assert_ptr_equal(b.host_ptr, &d_blank_anchor); /* the host's part stays */
	assert_int_equal(b.host_tail, 5);
	assert_int_equal(b.pad_[0], 0xee);
	assert_int_equal(b.words[2], 0x33333333);
	assert_int_equal(b.deadline, -5);
	assert_int_equal(b.chan[1].count, 3);
}

static void versions(void **state)
{
	struct dev a = sample(), b = blank();
	struct error err;
	_cleanup_bytes_ struct bytes v1 = { 0 }, v2 = { 0 };

	assert_int_equal(state_save(&old_desc, &a, &v1), 0);
	assert_int_equal(load(&dev_desc, &b, &v1, &err), 0);
	assert_int_equal(b.added, 0xabcd); /* the newer field's default */
	assert_int_equal(b.big, a.big);

	assert_int_equal(state_save(&dev_desc, &a, &v2), 0);
	b = blank();
	assert_int_equal(load(&old_desc, &b, &v2, &err), -EINVAL);
	assert_non_null(strstr(err.text, "version 2"));
	/* A stream of version 1 has no business with a field of version 2. */
	v2.data[4] = 1;
	assert_int_equal(load(&dev_desc, &b, &v2, &err), -EINVAL);
	assert_non_null(strstr(err.text, "'added'"));
	v2.data[4] = 0;
	assert_int_equal(load(&dev_desc, &b, &v2, &err), -EINVAL);
}

static void every_truncation_fails_cleanly(void **state)
{
	struct dev a = sample();
	_cleanup_bytes_ struct bytes s = { 0 };

	assert_int_equal(state_save(&dev_desc, &a, &s), 0);
	for (size_t len = 0; len < s.len; len++) {
		struct dev b = blank(), before = b;
		uint8_t *exact = malloc(len + 1); /* for the sanitizer to see overreads */
		memcpy(exact, s.data, len);
		struct byte_reader r = { .data = exact, .len = len };
		assert_int_equal(state_load(&dev_desc, &b, &r, NULL), -EINVAL);
		assert_memory_equal(&b, &before, sizeof(b));
		assert_int_equal(r.pos, 0);
		free(exact);
	}
}

static void every_bit_flip_is_refused_or_a_value(void **state)
{
	struct dev a = sample();
	_cleanup_bytes_ struct bytes s = { 0 };
	unsigned refused = 0, accepted = 0;

	assert_int_equal(state_save(&dev_desc, &a, &s), 0);
	for (size_t bit = 0; bit < s.len * 8; bit++) {
		struct dev b = blank(), before = b;
		_cleanup_bytes_ struct bytes again = { 0 };
		s.data[bit / 8] ^= 1u << (bit % 8);
		if (load(&dev_desc, &b, &s, NULL)) {
			assert_memory_equal(&b, &before, sizeof(b));
			refused++;
		} else { /* accepted: then it is exactly what the stream says */
			assert_int_equal(state_save(&dev_desc, &b, &again), 0);
			assert_int_equal(again.len, s.len);
			assert_memory_equal(again.data, s.data, s.len);
			accepted++;
		}
		s.data[bit / 8] ^= 1u << (bit % 8);
	}
	assert_true(refused > s.len * 4); /* all names, sizes, versions */
	assert_true(accepted > 200);	  /* all plain values */
}

static void put_field(struct bytes *b, const char *name, const void *p, uint32_t len)
{
	bytes_put_u8(b, (uint8_t)strlen(name));
	bytes_put(b, name, strlen(name));
	bytes_put_u32(b, len);
	bytes_put(b, p, len);
}

static void put_object(struct bytes *b, const char *name, uint16_t version, const struct bytes *body)
{
	bytes_put_u8(b, (uint8_t)strlen(name));
	bytes_put(b, name, strlen(name));
	bytes_put_u16(b, version);
	bytes_put_u32(b, (uint32_t)body->len);
	bytes_put(b, body->data, body->len);
}

static void assert_chan(const struct bytes *body, const char *want)
{
	_cleanup_bytes_ struct bytes s = { 0 };
	struct chan c = { 0 };
	struct error err = { 0 };

	put_object(&s, "chan", 1, body);
	struct byte_reader r = { .data = s.data, .len = s.len };
	int e = state_load(&chan_desc, &c, &r, &err);
	assert_int_equal(e, want ? -EINVAL : 0);
	if (want && !strstr(err.text, want))
		fail_msg("'%s' lacks '%s'", err.text, want);
}

static void wrong_streams_are_named(void **state)
{
	_cleanup_bytes_ struct bytes b = { 0 };

	put_field(&b, "is_gated", "\1", 1); /* any order */
	put_field(&b, "count", "\1\2", 2);
	assert_chan(&b, "mode is missing");
	put_field(&b, "mode", "\2", 1);
	assert_chan(&b, NULL);
	put_field(&b, "mode", "\2", 1);
	assert_chan(&b, "mode comes twice");
	b.len = 0;
	put_field(&b, "mode", "\2\3", 2);
	assert_chan(&b, "mode has 2 bytes instead of 1");
	b.len = 0;
	put_field(&b, "is_gated", "\2", 1);
	assert_chan(&b, "neither 0 nor 1");
	b.len = 0;
	put_field(&b, "colour", "\2", 1);
	assert_chan(&b, "no field 'colour'");
	b.len = 0;
	put_field(&b, "col\nour", "\2", 1);
	assert_chan(&b, "not text");
	b.len = 0;
	put_field(&b, "is_gated", "\1", 1);
	put_field(&b, "count", "\1\2", 2);
	put_field(&b, "mode", "\6", 1); /* refused by the check */
	assert_chan(&b, "mode 6");
	put_field(&b, "", "", 0);
	assert_chan(&b, "damaged");

	struct dev d = blank();
	_cleanup_bytes_ struct bytes s = { 0 };
	struct error err;
	struct dev a = sample();
	a.chan[1].mode = 6; /* a nested check refuses the whole */
	assert_int_equal(state_save(&dev_desc, &a, &s), 0);
	assert_int_equal(load(&dev_desc, &d, &s, &err), -EINVAL);
	assert_non_null(strstr(err.text, "chan[1]"));
	assert_int_equal(d.big, 0);
}

static void shown_a_field_a_line(void **state)
{
	struct dev a = sample();
	_cleanup_bytes_ struct bytes out = { 0 };

	assert_int_equal(state_show(&dev_desc, &a, &out), 0);
	bytes_put_u8(&out, 0);
	const char *t = (const char *)out.data;
	assert_non_null(strstr(t, "regs = 0102030405\n"));
	assert_non_null(strstr(t, "words = 0x11111111 0x22222222 0x33333333\n"));
	assert_non_null(strstr(t, "is_on = yes\n"));
	assert_non_null(strstr(t, "deadline = -5\n"));
	assert_non_null(strstr(t, "chan[1].mode = 0x4\n"));
	assert_null(strstr(t, "host"));

	_cleanup_bytes_ struct bytes text = { 0 };

	memcpy(a.regs, "dbt\0", sizeof(a.regs));
	assert_int_equal(state_show(&dev_desc, &a, &text), 0);
	bytes_put_u8(&text, 0);
	assert_non_null(strstr((const char *)text.data, "regs = \"dbt\"\n"));
}

struct hole {
	uint8_t a;
	uint32_t b;
};

static void assert_bad_desc(const struct field *fields, uint32_t size, const char *want)
{
	struct state_desc d = { "bad", 1, size, fields, NULL };
	struct error err;

	assert_int_equal(state_desc_verify(&d, &err), -EINVAL);
	if (!strstr(err.text, want))
		fail_msg("'%s' lacks '%s'", err.text, want);
}

static void faulty_descriptions_are_found(void **state)
{
	const struct field hole[] = { F_U8(struct hole, a), F_U32(struct hole, b), F_END };
	const struct field twice[] = { F_U8(struct hole, a), F_U8(struct hole, a), F_END };
	const struct field wide[] = { F_U16(struct hole, b), F_END };
	const struct field overlap[] = {
		F_U8(struct hole, a),
		F_U32(struct hole, b),
		{ .name = "c", .kind = FIELD_BYTES, .since = 1, .offset = 1, .size = 4, .count = 1 },
		F_END
	};
	const struct field beyond[] = {
		{ .name = "c", .kind = FIELD_BYTES, .since = 1, .offset = 4, .size = 8, .count = 1 }, F_END
	};
	const struct field late[] = {
		{ .name = "c", .kind = FIELD_U32, .since = 2, .offset = 4, .size = 4, .count = 1 }, F_END
	};
	const struct field nosub[] = { F_STRUCT(struct dev, chan[0], NULL), F_END };

	assert_bad_desc(hole, sizeof(struct hole), "byte 1 (after a) is in no field");
	assert_bad_desc(twice, sizeof(struct hole), "a is there twice");
	assert_bad_desc(wide, sizeof(struct hole), "b has 4 bytes, its kind has 2");
	assert_bad_desc(overlap, sizeof(struct hole), "is in b and in c");
	assert_bad_desc(beyond, sizeof(struct hole), "leaves the object");
	assert_bad_desc(late, sizeof(struct hole), "since version 2 of 1");
	assert_bad_desc(nosub, sizeof(struct dev), "go together");
}

static void *no_realloc(void *p, size_t len)
{
	return NULL;
}

static void no_memory(void **state)
{
	struct dev a = sample();
	_cleanup_bytes_ struct bytes s = { 0 };

	host.realloc = no_realloc;
	assert_int_equal(state_save(&dev_desc, &a, &s), -ENOMEM);
	host = host_calls_real;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(descriptions_hold),
		cmocka_unit_test(save_load_save_is_identical),
		cmocka_unit_test(versions),
		cmocka_unit_test(every_truncation_fails_cleanly),
		cmocka_unit_test(every_bit_flip_is_refused_or_a_value),
		cmocka_unit_test(wrong_streams_are_named),
		cmocka_unit_test(shown_a_field_a_line),
		cmocka_unit_test(faulty_descriptions_are_found),
		cmocka_unit_test(no_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
