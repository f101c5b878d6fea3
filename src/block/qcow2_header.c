/* SPDX-License-Identifier: Apache-2.0 */
/* The header (the specification, "Header", "Header extensions"). */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/qcow2_int.h"

#define HEADER_READ_BYTES                                                                          \
	(64 * KIB) /* read at first: a machine opens many layers, one after the other */

struct extensions {
	const uint8_t *features; /* feature name table */
	uint32_t features_len;
	char data_file[256];
};

static int bad(const struct qcow2 *q, struct error *err, const char *what)
{
	return error_set(err, -EINVAL,
			 "disk image '%s' is damaged: %s; restore it from a backup, or see what "
			 "'viv image check --repair' can do",
			 q->path, what);
}

static int put_string(char **out, const uint8_t *s, size_t len, struct error *err)
{
	free(*out);
	*out = malloc(len + 1);
	if (!*out)
		return error_set(err, -ENOMEM, "out of memory");
	memcpy(*out, s, len);
	(*out)[len] = 0;
	return 0;
}

static int parse_extension(struct qcow2 *q, uint32_t type, const uint8_t *d, uint32_t len,
			   struct extensions *x, struct error *err)
{
	switch (type) {
	case QCOW2_EXT_BACKING:
		if (len > 31 || memchr(d, 0, len))
			return bad(q, err, "the name of the backing file's format is none");
		return put_string(&q->backing_format, d, len, err);
	case QCOW2_EXT_FEATURES:
		x->features = d;
		x->features_len = len;
		return 0;
	case QCOW2_EXT_DATAFILE: {
		size_t n = MIN((size_t)len, sizeof(x->data_file) - 1);
		memcpy(x->data_file, d, n);
		x->data_file[n] = 0;
		return 0;
	}
	case QCOW2_EXT_BITMAPS:
		if (len < 24)
			return bad(q, err, "its list of bitmaps is cut short");
		q->h.nbitmaps = be32(d);
		q->h.bitmaps_len = be64(d + 8);
		q->h.bitmaps_offset = be64(d + 16);
		return 0;
	default:
		return 0; /* may be ignored */
	}
}

static int parse_extensions(struct qcow2 *q, const uint8_t *d, uint64_t len, struct extensions *x,
			    struct error *err)
{
	uint64_t at = q->h.header_len;
	uint64_t end = q->h.backing_offset ? MIN(len, q->h.backing_offset) : len;

	while (at + 8 <= end) {
		uint32_t type = be32(d + at), n = be32(d + at + 4);
		if (type == QCOW2_EXT_END)
			return 0;
		at += 8;
		if (n > end - at)
			return bad(q, err, "a header extension is longer than the header");
		int r = parse_extension(q, type, d + at, n, x, err);
		if (r < 0)
			return r;
		at += ALIGN_UP((uint64_t)n, 8);
	}
	return 0;
}

/* An unknown feature's name from the image's own table, printable characters only. */
static void name_feature(const struct extensions *x, unsigned bit, char out[64])
{
	snprintf(out, 64, "bit %u", bit);
	for (uint32_t at = 0; at + 48 <= x->features_len; at += 48) {
		const uint8_t *f = x->features + at;
		if (f[0] != 0 || f[1] != bit)
			continue;
		unsigned n = 0;
		for (; n < 46 && f[2 + n] >= ' ' && f[2 + n] < 127; n++)
			out[n] = (char)f[2 + n];
		if (n)
			out[n] = 0;
		return;
	}
}

static int check_features(struct qcow2 *q, const struct extensions *x, struct error *err)
{
	uint64_t unknown = q->h.incompatible & ~QCOW2_I_KNOWN;

	if (q->h.crypt_method)
		return error_set(err, -ENOTSUP,
				 "disk image '%s' is encrypted (%s), which this version can't "
				 "read; decrypt it into a new "
				 "image with qemu-img convert",
				 q->path, q->h.crypt_method == 1 ? "AES" : "LUKS");
	if (unknown & QCOW2_I_EXTERNAL)
		return error_set(err, -ENOTSUP,
				 "disk image '%s' keeps its data in another file ('%.200s'), which "
				 "this version doesn't open; "
				 "make one image of both with qemu-img convert",
				 q->path, x->data_file);
	if (unknown) {
		char name[64];
		name_feature(x, (unsigned)__builtin_ctzll(unknown), name);
		return error_set(err, -ENOTSUP,
				 "disk image '%s' uses a feature that this version doesn't know "
				 "(%s); convert it with the "
				 "program that made it",
				 q->path, name);
	}
	if (!!(q->h.incompatible & QCOW2_I_COMPRESSION) != (q->h.compression != 0))
		return bad(q, err, "the kind of compression doesn't fit its feature bit");
	if (q->h.compression > 1)
		return error_set(err, -ENOTSUP, "disk image '%s' uses compression %u, which this version doesn't know",
				 q->path, q->h.compression);
	return 0;
}

static void set_constants(struct qcow2 *q)
{
	q->cluster_bits = q->h.cluster_bits;
	q->cluster_size = 1ULL << q->cluster_bits;
	q->has_ext = q->h.incompatible & QCOW2_I_EXTENDED_L2;
	q->is_lazy = q->h.compatible & QCOW2_C_LAZY;
	q->entry_bytes = q->has_ext ? 16 : 8;
	q->l2_bits = q->cluster_bits - (q->has_ext ? 4 : 3);
	q->nsubs = q->has_ext ? 32 : 1;
	q->sub_bits = q->cluster_bits - (q->has_ext ? 5 : 0);
	q->ref_order = q->h.refcount_order;
	q->block_bits = q->cluster_bits + 3 - q->ref_order;
}

/* [@offset, +@len) is aligned and inside the file. */
static bool is_area(const struct qcow2 *q, uint64_t offset, uint64_t len)
{
	return offset && offset % q->cluster_size == 0 && offset <= q->file.size_bytes &&
	       len <= q->file.size_bytes - offset;
}

static int check_numbers(struct qcow2 *q, struct error *err)
{
	struct qcow2_header *h = &q->h;
	uint64_t l2_span = 1ULL << (q->cluster_bits + q->l2_bits);
	uint64_t need = h->size / l2_span + (h->size % l2_span != 0);

	if (h->size > INT64_MAX - QCOW2_L1_MAX || need > QCOW2_L1_MAX || h->l1_size > QCOW2_L1_MAX)
		return bad(q, err, "the disk is larger than this format can hold");
	if (h->l1_size < need)
		return bad(q, err, "its first-level table is too small for the disk");
	if (h->l1_size && !is_area(q, h->l1_offset, h->l1_size * 8ULL))
		return bad(q, err, "its first-level table lies outside of the file");
	if (!h->reftable_clusters ||
	    h->reftable_clusters > MAX(QCOW2_REFTABLE_MAX >> q->cluster_bits, 1ULL))
		return bad(q, err, "the size of its reference count table is impossible");
	if (!is_area(q, h->reftable_offset, (uint64_t)h->reftable_clusters << q->cluster_bits))
		return bad(q, err, "its reference count table lies outside of the file");
	if (h->nsnapshots > QCOW2_SNAPSHOTS_MAX)
		return bad(q, err, "it has too many internal snapshots");
	if (h->nsnapshots && !is_area(q, h->snapshots_offset, 40ULL * h->nsnapshots))
		return bad(q, err, "its list of snapshots lies outside of the file");
	return 0;
}

static void parse_v3(struct qcow2_header *h, const uint8_t *d)
{
	h->incompatible = be64(d + 72);
	h->compatible = be64(d + 80);
	h->autoclear = be64(d + 88);
	h->refcount_order = be32(d + 96);
	h->header_len = be32(d + 100);
	h->compression = h->header_len > 104 ? d[104] : 0;
}

static int parse_fixed(struct qcow2 *q, const uint8_t *d, uint64_t len, struct error *err)
{
	struct qcow2_header *h = &q->h;

	if (len < QCOW2_HEADER_V2 || be32(d) != QCOW2_MAGIC)
		return error_set(err, -EINVAL, "disk image '%s' is no qcow2 image; name its format, for instance format=raw",
				 q->path);
	*h = (struct qcow2_header){
		.version = be32(d + 4),
		.backing_offset = be64(d + 8),
		.backing_len = be32(d + 16),
		.cluster_bits = be32(d + 20),
		.size = be64(d + 24),
		.crypt_method = be32(d + 32),
		.l1_size = be32(d + 36),
		.l1_offset = be64(d + 40),
		.reftable_offset = be64(d + 48),
		.reftable_clusters = be32(d + 56),
		.nsnapshots = be32(d + 60),
		.snapshots_offset = be64(d + 64),
		.refcount_order = 4,
		.header_len = QCOW2_HEADER_V2,
	};
	if (h->version != 2 && h->version != 3)
		return error_set(
			err, -ENOTSUP,
			"disk image '%s' is of qcow2 version %u; this version of viv knows 2 and 3",
			q->path, h->version);
	if (h->version == 3) {
		if (len < QCOW2_HEADER_V3)
			return bad(q, err, "the header is cut short");
		parse_v3(h, d);
	}
	if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX ||
	    (h->incompatible & QCOW2_I_EXTENDED_L2 && h->cluster_bits < 14))
		return bad(q, err, "the size of its clusters is impossible");
	if (h->refcount_order > 6)
		return bad(q, err, "the width of its reference counts is impossible");
	if (h->version == 3 && (h->header_len < QCOW2_HEADER_V3 || h->header_len % 8 ||
				h->header_len > 1ULL << h->cluster_bits || h->header_len > len))
		return bad(q, err, "the length of its header is impossible");
	return 0;
}

static int parse_backing(struct qcow2 *q, const uint8_t *d, uint64_t len, struct error *err)
{
	const struct qcow2_header *h = &q->h;

	if (!h->backing_offset)
		return 0;
	if (!h->backing_len || h->backing_len > QCOW2_BACKING_NAME_MAX ||
	    h->backing_offset < h->header_len || h->backing_offset > len ||
	    h->backing_len > len - h->backing_offset || memchr(d + h->backing_offset, 0, h->backing_len))
		return bad(q, err, "the name of its backing file is none");
	return put_string(&q->backing_name, d + h->backing_offset, h->backing_len, err);
}

static int read_start(struct qcow2 *q, uint8_t **d, uint64_t len, struct error *err)
{
	uint8_t *more = realloc(*d, len + 1);

	if (!more)
		return error_set(err, -ENOMEM, "out of memory");
	*d = more;
	int r = io_pread(q->meta_fd, more, len, 0);
	return r < 0 ? error_set(err, r, "cannot read disk image '%s': %s", q->path, strerror(-r)) : 0;
}

int qcow2_read_header(struct qcow2 *q, struct error *err)
{
	/* The first cluster, if that is none larger than most. */
	uint64_t len = MIN(q->file.size_bytes, HEADER_READ_BYTES);
	_cleanup_free_ uint8_t *d = NULL;
	struct extensions x = { 0 };
	int r = read_start(q, &d, len, err);

	if (r == 0)
		r = parse_fixed(q, d, len, err);
	if (r == 0) {
		uint64_t cluster = MIN(q->file.size_bytes, 1ULL << q->h.cluster_bits);

		if (cluster > len)
			r = read_start(q, &d, cluster, err);
		len = cluster;
	}
	if (r == 0)
		r = parse_extensions(q, d, len, &x, err);
	if (r == 0)
		r = check_features(q, &x, err);
	if (r < 0)
		return r;
	set_constants(q);
	r = check_numbers(q, err);
	if (r == 0)
		r = parse_backing(q, d, len, err);
	q->layer.size_bytes = ALIGN_DOWN(q->h.size, BLOCK_SECTOR);
	return r;
}

int qcow2_write_fields(struct qcow2 *q)
{
	const struct qcow2_header *h = &q->h;
	uint8_t d[QCOW2_HEADER_V3];
	size_t len = h->version == 3 ? QCOW2_HEADER_V3 : QCOW2_HEADER_V2;

	put_be32(d, QCOW2_MAGIC);
	put_be32(d + 4, h->version);
	put_be64(d + 8, h->backing_offset);
	put_be32(d + 16, h->backing_len);
	put_be32(d + 20, h->cluster_bits);
	put_be64(d + 24, h->size);
	put_be32(d + 32, h->crypt_method);
	put_be32(d + 36, h->l1_size);
	put_be64(d + 40, h->l1_offset);
	put_be64(d + 48, h->reftable_offset);
	put_be32(d + 56, h->reftable_clusters);
	put_be32(d + 60, h->nsnapshots);
	put_be64(d + 64, h->snapshots_offset);
	put_be64(d + 72, h->incompatible);
	put_be64(d + 80, h->compatible);
	put_be64(d + 88, h->autoclear);
	put_be32(d + 96, h->refcount_order);
	put_be32(d + 100, h->header_len);
	int r = io_pwrite(q->meta_fd, d, len, 0);
	io_sync_note(&q->sync);
	return r;
}
