/* SPDX-License-Identifier: Apache-2.0 */
/*
 * State is data: the one description of what a guest can observe of a device or CPU.
 *
 * Each device has one const struct state_desc with a row per field.  Snapshot, migration, fork,
 * `snapshot show` and the tests walk it; nothing else serializes.  Fields are named and sized on
 * the wire, with the version they came in: a missing newer field takes its default, an unknown
 * field is an error.  Loading treats the stream as hostile and leaves the object untouched on
 * failure.  Saving takes a const object.
 */
#ifndef VIV_STATE_FIELD_H
#define VIV_STATE_FIELD_H

#include "base/error.h"

enum field_kind {
	FIELD_U8,
	FIELD_U16,
	FIELD_U32,
	FIELD_U64,
	FIELD_I64,
	FIELD_BOOL,   /* C bool; on the wire 0 or 1, anything else is an error */
	FIELD_BYTES,  /* fixed array of bytes */
	FIELD_STRUCT, /* nested description, @sub */
	FIELD_HOST,   /* host-side part (pointers, timers): in the object, never on the wire */
};

struct field {
	const char *name;
	uint8_t kind;	 /* enum field_kind */
	uint16_t since;	 /* version of the description that added it, from 1 */
	uint32_t offset; /* in the object */
	uint32_t size;	 /* of one element in the object */
	uint32_t count;	 /* elements; 1 for a scalar */
	uint64_t dflt;	 /* value when an older stream lacks it */
	const struct state_desc *sub;
};

struct state_desc {
	const char *name;
	uint16_t version;	    /* current, from 1 */
	uint32_t size;		    /* sizeof the object */
	const struct field *fields; /* terminated by name == NULL */
	/*
	 * Called on a copy before it is accepted: is this state one that the device could be in?
	 * (indices in range, reserved bits clear).  May be NULL.  Returns 0 or sets @err.
	 */
	int (*check)(const void *obj, struct error *err);
};

#define FIELD_(k, type, member, since_)                                                            \
	{                                                                                          \
		.name = #member, .kind = k, .since = since_, .offset = offsetof(type, member),     \
		.size = sizeof(((type *)0)->member), .count = 1                                    \
	}
#define F_U8(type, member)    FIELD_(FIELD_U8, type, member, 1)
#define F_U16(type, member)   FIELD_(FIELD_U16, type, member, 1)
#define F_U32(type, member)   FIELD_(FIELD_U32, type, member, 1)
#define F_U64(type, member)   FIELD_(FIELD_U64, type, member, 1)
#define F_I64(type, member)   FIELD_(FIELD_I64, type, member, 1)
#define F_BOOL(type, member)  FIELD_(FIELD_BOOL, type, member, 1)
#define F_BYTES(type, member) FIELD_(FIELD_BYTES, type, member, 1)
#define F_HOST(type, member)  FIELD_(FIELD_HOST, type, member, 1)
#define F_ARRAY(kind_, type, member)                                                               \
	{                                                                                          \
		.name = #member, .kind = kind_, .since = 1, .offset = offsetof(type, member),      \
		.size = sizeof(((type *)0)->member[0]),                                            \
		.count = sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0])              \
	}
#define F_STRUCT(type, member, desc_)                                                                \
	{                                                                                            \
		.name = #member, .kind = FIELD_STRUCT, .since = 1, .offset = offsetof(type, member), \
		.size = sizeof(((type *)0)->member), .count = 1, .sub = desc_                        \
	}
#define F_STRUCT_ARRAY(type, member, desc_)                                                         \
	{                                                                                           \
		.name = #member, .kind = FIELD_STRUCT, .since = 1,                                  \
		.offset = offsetof(type, member), .size = sizeof(((type *)0)->member[0]),           \
		.count = sizeof(((type *)0)->member) / sizeof(((type *)0)->member[0]), .sub = desc_ \
	}
#define F_END                                                                                      \
	{                                                                                          \
		.name = NULL                                                                       \
	}

/*
 * Wire format; integers little-endian, nothing aligned.
 *
 *   object  =  u8 name length, name, u16 version, u32 bytes of all fields, field...
 *   field   =  u8 name length, name, u32 bytes of the payload, payload
 *   payload =  the elements in order: integers in their own size, bool one byte, bytes as they are,
 *              FIELD_STRUCT each an object
 *
 * Fields come in the table's order; a reader accepts any order, each name once.
 */
#define STATE_NAME_MAX	 63
#define STATE_FIELDS_MAX 256 /* in one table */

/* A growing byte buffer (struct bytes in base/bytes.h) receives, a bounded reader gives. */
struct bytes;
struct byte_reader;

/** state_save() - append @obj to @out.  Returns 0 or -ENOMEM. */
int state_save(const struct state_desc *desc, const void *obj, struct bytes *out);

/**
 * state_load() - read one object.  Hostile input.
 * Returns 0, -EINVAL (wrong, truncated, unknown field, refused by check), -ENOMEM; @obj untouched on
 * failure (FIELD_HOST members are never touched).  @in stands behind the object on success.
 */
int state_load(const struct state_desc *desc, void *obj, struct byte_reader *in, struct error *err);

/** state_show() - readable text, a field a line, into @out.  Returns 0 or -ENOMEM. */
int state_show(const struct state_desc *desc, const void *obj, struct bytes *out);

/**
 * state_show_stream() - the same for an object on the wire; no device is needed.
 * Fields are checked, whether the state makes sense to a device is not.  Hostile input.
 * Returns 0, -EINVAL or -ENOMEM with @err set; @in stands behind the object on success.
 */
int state_show_stream(const struct state_desc *desc, struct byte_reader *in, struct bytes *out,
		      struct error *err);

/**
 * state_desc_verify() - is the description itself right?  For tests over every description.
 * Each byte of the object belongs to exactly one field (padding must be a member, F_HOST or F_BYTES);
 * names are unique and short enough; sizes fit the kinds; versions lie in 1..version; nested tables
 * likewise.  Returns 0, or -EINVAL with the first fault in @err.
 */
int state_desc_verify(const struct state_desc *desc, struct error *err);

#endif
