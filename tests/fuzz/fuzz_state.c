/* SPDX-License-Identifier: Apache-2.0 */
/* state_load: any stream is refused with the object untouched, or loads and saves to something that
 * loads to the same. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "fuzz.h"
#include "state/field.h"

struct inner {
	uint32_t w[2];
	uint8_t index;
	bool is_set;
	uint8_t pad_[2];
};
struct outer {
	uint8_t bytes[16];
	uint64_t q;
	struct inner in[3];
	uint32_t late;
	void *host;
};

static int inner_check(const void *obj, struct error *err)
{
	const struct inner *in = obj;

	return in->index > 7 ? error_set(err, -22, "index") : 0;
}
static const struct field inner_fields[] = {
	F_ARRAY(FIELD_U32, struct inner, w),
	F_U8(struct inner, index),
	F_BOOL(struct inner, is_set),
	F_HOST(struct inner, pad_),
	F_END,
};
static const struct state_desc inner_desc = { "inner", 1, sizeof(struct inner), inner_fields,
					      inner_check };
static const struct field outer_fields[] = {
	F_BYTES(struct outer, bytes),
	F_U64(struct outer, q),
	F_STRUCT_ARRAY(struct outer, in, &inner_desc),
	{ .name = "late",
	  .kind = FIELD_U32,
	  .since = 2,
	  .offset = offsetof(struct outer, late),
	  .size = 4,
	  .count = 1,
	  .dflt = 9 },
	F_HOST(struct outer, host),
	F_END,
};
static const struct state_desc outer_desc = { "outer", 2, sizeof(struct outer), outer_fields, NULL };

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	struct outer o = { .q = 5, .late = 3 };
	struct bytes b = { 0 };

	if (state_save(&outer_desc, &o, &b) || b.len > cap)
		abort();
	memcpy(data, b.data, b.len);
	size_t len = b.len;
	bytes_free(&b);
	return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct outer o, before;
	struct byte_reader r = { .data = data, .len = len };
	struct error err;

	memset(&o, 0x5a, sizeof(o));
	for (int i = 0; i < 3; i++)
		o.in[i].is_set = true;
	before = o;
	if (state_load(&outer_desc, &o, &r, &err)) {
		if (memcmp(&o, &before, sizeof(o)) != 0 || r.pos != 0)
			abort();
		return 0;
	}
	struct bytes one = { 0 }, two = { 0 };
	struct outer again = before;
	if (o.host != before.host || r.pos > len || state_save(&outer_desc, &o, &one))
		abort();
	r = (struct byte_reader){ .data = one.data, .len = one.len };
	if (state_load(&outer_desc, &again, &r, &err) || state_save(&outer_desc, &again, &two) ||
	    one.len != two.len || memcmp(one.data, two.data, one.len) != 0)
		abort();
	bytes_free(&one);
	bytes_free(&two);
	return 0;
}
