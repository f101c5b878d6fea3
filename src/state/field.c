/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/host.h"
#include "state/field.h"

/* Bytes of one element on the wire; 0 where it is not fixed by the kind. */
static uint32_t kind_size(enum field_kind kind)
{
	switch (kind) {
	case FIELD_U8:
	case FIELD_BOOL:
		return 1;
	case FIELD_U16:
		return 2;
	case FIELD_U32:
		return 4;
	case FIELD_U64:
	case FIELD_I64:
		return 8;
	case FIELD_BYTES:
	case FIELD_STRUCT:
	case FIELD_HOST:
		return 0;
	}
	return 0;
}

static const char *element(const struct field *f, const void *obj, uint32_t i)
{
	return (const char *)obj + f->offset + (size_t)i * f->size;
}

static char *element_mut(const struct field *f, void *obj, uint32_t i)
{
	return (char *)obj + f->offset + (size_t)i * f->size;
}

/* ---- saving ---- */

/* Leaves room for a length and returns where it is. */
static size_t begin_length(struct bytes *out)
{
	bytes_put_u32(out, 0);
	return out->len;
}

static void end_length(struct bytes *out, size_t start)
{
	if (out->is_failed)
		return;
	size_t len = out->len - start;
	assert(len <= UINT32_MAX);
	uint32_t v = (uint32_t)len;
	memcpy(out->data + start - sizeof(v), &v, sizeof(v));
}

static void put_name(struct bytes *out, const char *name)
{
	size_t len = strlen(name);

	assert(len <= STATE_NAME_MAX);
	bytes_put_u8(out, (uint8_t)len);
	bytes_put(out, name, len);
}

int state_save(const struct state_desc *desc, const void *obj, struct bytes *out)
{
	put_name(out, desc->name);
	bytes_put_u16(out, desc->version);
	size_t body = begin_length(out);
	for (const struct field *f = desc->fields; f->name; f++) {
		if (f->kind == FIELD_HOST)
			continue;
		put_name(out, f->name);
		size_t payload = begin_length(out);
		if (f->kind == FIELD_STRUCT)
			for (uint32_t i = 0; i < f->count; i++)
				state_save(f->sub, element(f, obj, i), out);
		else
			bytes_put(out, element(f, obj, 0), (size_t)f->size * f->count);
		end_length(out, payload);
	}
	end_length(out, body);
	return out->is_failed ? -ENOMEM : 0;
}

/* ---- loading ---- */

/* A name into @name (STATE_NAME_MAX + 1 bytes), printable or refused. */
static int get_name(struct byte_reader *in, char *name, struct error *err)
{
	uint8_t len = bytes_get_u8(in);

	if (in->is_failed || len == 0 || len > STATE_NAME_MAX || !bytes_get(in, name, len))
		return error_set(err, -EINVAL, "the saved state is cut off or damaged");
	name[len] = 0;
	for (unsigned i = 0; i < len; i++)
		if (name[i] <= ' ' || name[i] > '~')
			return error_set(err, -EINVAL, "the saved state is damaged: a name is not text");
	return 0;
}

/* The next @len bytes as a reader of their own. */
static int get_part(struct byte_reader *in, uint32_t len, struct byte_reader *part, struct error *err)
{
	if (in->is_failed || len > in->len - in->pos)
		return error_set(err, -EINVAL, "the saved state is cut off or damaged");
	*part = (struct byte_reader){ .data = in->data + in->pos, .len = len };
	in->pos += len;
	return 0;
}

static void set_default(const struct field *f, void *obj)
{
	for (uint32_t i = 0; i < f->count; i++) {
		char *p = element_mut(f, obj, i);
		if (f->kind == FIELD_STRUCT) {
			for (const struct field *g = f->sub->fields; g->name; g++)
				if (g->kind != FIELD_HOST)
					set_default(g, p);
		} else if (f->kind == FIELD_BYTES) {
			memset(p, (int)f->dflt, f->size);
		} else {
			memcpy(p, &f->dflt, f->size);
		}
	}
}

static int load_object(const struct state_desc *desc, void *copy, struct byte_reader *in,
		       bool has_check, struct error *err);

static int load_field(const struct field *f, void *copy, struct byte_reader *part, bool has_check,
		      struct error *err)
{
	if (f->kind == FIELD_STRUCT) {
		for (uint32_t i = 0; i < f->count; i++) {
			int r = load_object(f->sub, element_mut(f, copy, i), part, has_check, err);
			if (r) {
				error_prefix(err, "%s[%u]", f->name, i);
				return r;
			}
		}
		if (part->pos != part->len)
			return error_set(err, -EINVAL, "%s has %zu bytes too many", f->name,
					 part->len - part->pos);
		return 0;
	}
	if (part->len != (uint64_t)f->size * f->count)
		return error_set(err, -EINVAL, "%s has %zu bytes instead of %llu", f->name,
				 part->len, (unsigned long long)f->size * f->count);
	if (f->kind == FIELD_BOOL)
		for (size_t i = 0; i < part->len; i++)
			if (part->data[i] > 1)
				return error_set(err, -EINVAL, "%s is neither 0 nor 1", f->name);
	bytes_get(part, element_mut(f, copy, 0), part->len);
	return 0;
}

/* Fields are mostly saved in the table's order: from @next on first, then from the beginning.  The table's end where there is none. */
static const struct field *find_field(const struct state_desc *desc, const struct field *next,
				      const char *name)
{
	const struct field *f = next;

	for (; f->name; f++)
		if (f->kind != FIELD_HOST && strcmp(f->name, name) == 0)
			return f;
	for (const struct field *g = desc->fields; g < next; g++)
		if (g->kind != FIELD_HOST && strcmp(g->name, name) == 0)
			return g;
	return f;
}

static int load_fields(const struct state_desc *desc, uint16_t version, void *copy,
		       struct byte_reader *body, bool has_check, struct error *err)
{
	uint64_t seen[STATE_FIELDS_MAX / 64] = { 0 };
	const struct field *next = desc->fields;

	while (body->pos < body->len) {
		char name[STATE_NAME_MAX + 1];
		struct byte_reader part;
		int r = get_name(body, name, err);
		if (r)
			return r;
		r = get_part(body, bytes_get_u32(body), &part, err);
		if (r)
			return r;
		const struct field *f = find_field(desc, next, name);
		size_t i = (size_t)(f - desc->fields);
		if (!f->name || f->since > version)
			return error_set(err, -EINVAL, "version %u has no field '%s'", version, name);
		if (seen[i / 64] >> (i % 64) & 1)
			return error_set(err, -EINVAL, "%s comes twice", name);
		seen[i / 64] |= 1ULL << (i % 64);
		r = load_field(f, copy, &part, has_check, err);
		if (r)
			return r;
		next = f + 1;
	}
	for (const struct field *f = desc->fields; f->name; f++) {
		size_t i = (size_t)(f - desc->fields);
		if (f->kind == FIELD_HOST || seen[i / 64] >> (i % 64) & 1)
			continue;
		if (f->since <= version)
			return error_set(err, -EINVAL, "%s is missing", f->name);
		set_default(f, copy);
	}
	return 0;
}

/* Into a copy that the caller throws away on failure. */
static int load_object(const struct state_desc *desc, void *copy, struct byte_reader *in,
		       bool has_check, struct error *err)
{
	char name[STATE_NAME_MAX + 1];
	struct byte_reader body;
	int r = get_name(in, name, err);

	if (r)
		return r;
	if (strcmp(name, desc->name) != 0)
		return error_set(err, -EINVAL, "this is the state of '%s', not of '%s'", name,
				 desc->name);
	uint16_t version = bytes_get_u16(in);
	r = get_part(in, bytes_get_u32(in), &body, err);
	if (r)
		return r;
	if (version == 0 || version > desc->version)
		r = error_set(err, -EINVAL,
			      "it was saved in version %u, this program knows versions 1 to %u",
			      version, desc->version);
	else
		r = load_fields(desc, version, copy, &body, has_check, err);
	if (!r && has_check && desc->check) {
		r = desc->check(copy, err);
		if (r > 0)
			r = -EINVAL;
	}
	if (r)
		error_prefix(err, "state of '%s'", desc->name);
	return r;
}

/* Everything but FIELD_HOST members. */
static void commit(const struct state_desc *desc, void *obj, const void *copy)
{
	for (const struct field *f = desc->fields; f->name; f++) {
		if (f->kind == FIELD_HOST)
			continue;
		if (f->kind == FIELD_STRUCT)
			for (uint32_t i = 0; i < f->count; i++)
				commit(f->sub, element_mut(f, obj, i), element(f, copy, i));
		else
			memcpy(element_mut(f, obj, 0), element(f, copy, 0), (size_t)f->size * f->count);
	}
}

int state_load(const struct state_desc *desc, void *obj, struct byte_reader *in, struct error *err)
{
	void *copy = NULL;

	/* Objects may hold over-aligned members (vector state). */
	if (posix_memalign(&copy, 64, MAX(desc->size, 1u)))
		return error_set(err, -ENOMEM, "no memory to load the state of '%s'", desc->name);
	memcpy(copy, obj, desc->size);
	struct byte_reader r = *in;
	int e = load_object(desc, copy, &r, true, err);
	if (!e) {
		commit(desc, obj, copy);
		*in = r;
	}
	free(copy);
	return e;
}

/* ---- showing ---- */

static uint64_t scalar(const struct field *f, const void *obj, uint32_t i)
{
	uint64_t v = 0;

	memcpy(&v, element(f, obj, i), kind_size(f->kind));
	return v;
}

/* Length of the text that @p looks like: printable, then zeros to its end; 0: it is none. */
static size_t text_len(const uint8_t *p, size_t len)
{
	size_t n = 0;

	while (n < len && p[n] >= 0x20 && p[n] < 0x7f)
		n++;
	for (size_t i = n; i < len; i++)
		if (p[i])
			return 0;
	return n > 1 && n < len ? n : 0;
}

static void show_value(const struct field *f, const void *obj, struct bytes *out)
{
	if (f->kind == FIELD_BYTES) {
		const uint8_t *p = (const void *)element(f, obj, 0);
		size_t len = (size_t)f->size * f->count, text = text_len(p, len);

		if (text) {
			bytes_printf(out, " \"%.*s\"", (int)text, (const char *)p);
			return;
		}
		for (size_t i = 0; i < len; i++)
			bytes_printf(out, i % 32 ? "%02x" : " %02x", p[i]);
		return;
	}
	for (uint32_t i = 0; i < f->count; i++) {
		uint64_t v = scalar(f, obj, i);
		if (f->kind == FIELD_I64)
			bytes_printf(out, " %lld", (long long)v);
		else if (f->kind == FIELD_BOOL)
			bytes_printf(out, " %s", v ? "yes" : "no");
		else
			bytes_printf(out, " %#llx", (unsigned long long)v);
	}
}

struct show_prefix {
	const struct show_prefix *up;
	const char *name;
	uint32_t index, count;
};

static void show_prefix(const struct show_prefix *p, struct bytes *out)
{
	if (!p)
		return;
	show_prefix(p->up, out);
	if (p->count > 1)
		bytes_printf(out, "%s[%u].", p->name, p->index);
	else
		bytes_printf(out, "%s.", p->name);
}

static void show_object(const struct state_desc *desc, const void *obj,
			const struct show_prefix *prefix, struct bytes *out)
{
	for (const struct field *f = desc->fields; f->name; f++) {
		if (f->kind == FIELD_HOST)
			continue;
		if (f->kind == FIELD_STRUCT) {
			for (uint32_t i = 0; i < f->count; i++) {
				struct show_prefix p = { prefix, f->name, i, f->count };
				show_object(f->sub, element(f, obj, i), &p, out);
			}
			continue;
		}
		show_prefix(prefix, out);
		bytes_printf(out, "%s =", f->name);
		show_value(f, obj, out);
		bytes_printf(out, "\n");
	}
}

int state_show(const struct state_desc *desc, const void *obj, struct bytes *out)
{
	show_object(desc, obj, NULL, out);
	return out->is_failed ? -ENOMEM : 0;
}

int state_show_stream(const struct state_desc *desc, struct byte_reader *in, struct bytes *out,
		      struct error *err)
{
	struct byte_reader r = *in;
	void *obj = NULL;

	if (posix_memalign(&obj, 64, MAX(desc->size, 1u)))
		return error_set(err, -ENOMEM, "no memory to show the state of '%s'", desc->name);
	memset(obj, 0, desc->size);
	int e = load_object(desc, obj, &r, false, err);
	if (!e && state_show(desc, obj, out))
		e = error_set(err, -ENOMEM, "no memory to show the state of '%s'", desc->name);
	if (!e)
		*in = r;
	free(obj);
	return e;
}

/* ---- the description itself ---- */

static int verify_name(const char *name, struct error *err)
{
	size_t len = strlen(name);

	if (len == 0 || len > STATE_NAME_MAX)
		return error_set(err, -EINVAL, "the name '%s' is empty or too long", name);
	for (const char *p = name; *p; p++)
		if (*p <= ' ' || *p > '~')
			return error_set(err, -EINVAL, "the name '%s' is not printable", name);
	return 0;
}

static int verify_field(const struct state_desc *desc, const struct field *f, struct error *err)
{
	uint32_t want = kind_size(f->kind);
	int r = verify_name(f->name, err);

	if (r)
		return r;
	for (const struct field *g = desc->fields; g < f; g++)
		if (strcmp(g->name, f->name) == 0)
			return error_set(err, -EINVAL, "%s is there twice", f->name);
	if (f->kind > FIELD_HOST)
		return error_set(err, -EINVAL, "%s has no valid kind", f->name);
	if (f->size == 0 || f->count == 0)
		return error_set(err, -EINVAL, "%s is empty", f->name);
	if (want && f->size != want)
		return error_set(err, -EINVAL, "%s has %u bytes, its kind has %u", f->name, f->size, want);
	if (f->kind != FIELD_HOST && (f->since == 0 || f->since > desc->version))
		return error_set(err, -EINVAL, "%s is since version %u of %u", f->name, f->since,
				 desc->version);
	if (f->offset + (uint64_t)f->size * f->count > desc->size)
		return error_set(err, -EINVAL, "%s leaves the object", f->name);
	if ((f->kind == FIELD_STRUCT) != (f->sub != NULL))
		return error_set(err, -EINVAL, "%s: a nested table and its kind go together", f->name);
	if (f->kind != FIELD_STRUCT)
		return 0;
	if (f->sub->size != f->size)
		return error_set(err, -EINVAL, "%s has %u bytes, its table describes %u", f->name,
				 f->size, f->sub->size);
	r = state_desc_verify(f->sub, err);
	if (r)
		error_prefix(err, "%s", f->name);
	return r;
}

int state_desc_verify(const struct state_desc *desc, struct error *err)
{
	_cleanup_free_ const char **owner = calloc(MAX(desc->size, 1u), sizeof(*owner));
	unsigned n = 0;
	int r = verify_name(desc->name, err);

	if (!owner)
		return error_set(err, -ENOMEM, "no memory to verify '%s'", desc->name);
	if (!r && desc->version == 0)
		r = error_set(err, -EINVAL, "versions start at 1");
	for (const struct field *f = desc->fields; !r && f->name; f++) {
		if (++n > STATE_FIELDS_MAX)
			r = error_set(err, -EINVAL, "more than %u fields", STATE_FIELDS_MAX);
		else
			r = verify_field(desc, f, err);
		for (uint64_t i = 0; !r && i < (uint64_t)f->size * f->count; i++) {
			if (owner[f->offset + i])
				r = error_set(err, -EINVAL, "byte %llu is in %s and in %s",
					      (unsigned long long)(f->offset + i),
					      owner[f->offset + i], f->name);
			owner[f->offset + i] = f->name;
		}
	}
	for (uint32_t i = 0; !r && i < desc->size; i++)
		if (!owner[i])
			r = error_set(err, -EINVAL, "byte %u (after %s) is in no field", i,
				      i ? owner[i - 1] : "the start");
	if (r)
		error_prefix(err, "table of '%s'", desc->name);
	return r;
}
