/* SPDX-License-Identifier: Apache-2.0 */
/* New images, the name of the backing file, another size. */
#include <errno.h>
#include <string.h>

#include "base/host.h"
#include "block/qcow2_int.h"

/* ---- the first cluster ---- */

/* A cursor in the first cluster; past its end nothing is written, and it shows. */
struct bytes_at {
	uint8_t *data;
	size_t at, cap;
};

static void put(struct bytes_at *b, const void *d, size_t len)
{
	if (b->at + len <= b->cap && len)
		memcpy(b->data + b->at, d, len);
	b->at += len;
}

static void put_extension(struct bytes_at *b, uint32_t type, const void *d, size_t len)
{
	uint8_t head[8];

	put_be32(head, type);
	put_be32(head + 4, (uint32_t)len);
	put(b, head, 8);
	put(b, d, len);
	b->at = ALIGN_UP(b->at, 8);
}

static int put_backing(struct bytes_at *b, const char *path, const char *format,
		       struct qcow2_header *h, const char *image, struct error *err)
{
	size_t len = path ? strlen(path) : 0;

	if (path && format)
		put_extension(b, QCOW2_EXT_BACKING, format, strlen(format));
	put_extension(b, QCOW2_EXT_END, NULL, 0);
	h->backing_offset = path ? b->at : 0;
	h->backing_len = (uint32_t)len;
	put(b, path, len);
	if (b->at > b->cap || len > QCOW2_BACKING_NAME_MAX)
		return error_set(
			err, -ENAMETOOLONG,
			"the name of the backing file is too long for disk image '%s'; use a "
			"shorter path",
			image);
	return 0;
}

/* ---- create ---- */

struct plan {
	uint64_t l1_entries, l1_clusters, nblocks, table_clusters, total;
};

static struct plan plan_image(const struct qcow2_header *h, unsigned l2_bits, unsigned block_bits)
{
	uint64_t cs = 1ULL << h->cluster_bits, span = cs << l2_bits;
	struct plan p = { .l1_entries = (h->size + span - 1) / span, .nblocks = 1, .table_clusters = 1 };

	p.l1_clusters = (8 * p.l1_entries + cs - 1) >> h->cluster_bits;
	for (;;) {
		p.total = 1 + p.l1_clusters + p.table_clusters + p.nblocks;
		uint64_t nblocks = (p.total + (1ULL << block_bits) - 1) >> block_bits;
		uint64_t table = (8 * nblocks + cs - 1) >> h->cluster_bits;
		if (nblocks <= p.nblocks && table <= p.table_clusters)
			return p;
		p.nblocks = MAX(nblocks, p.nblocks);
		p.table_clusters = MAX(table, p.table_clusters);
	}
}

static bool is_power_of_2(uint64_t v)
{
	return v && !(v & (v - 1));
}

static int check_options(const struct image_create *c, const char *path, struct error *err)
{
	uint64_t cs = c->cluster_bytes ?: 64 * KIB;
	unsigned bits = c->refcount_bits ?: 16;

	if (!is_power_of_2(cs) || cs < 512 || cs > 2 * MIB || (c->has_extended_l2 && cs < 16 * KIB))
		return error_set(err, -EINVAL,
				 "'%s': clusters have 512 bytes to 2 MiB, a power of two%s", path,
				 c->has_extended_l2 ? ", with extended L2 entries at least 16 KiB" : "");
	if (!is_power_of_2(bits) || bits > 64)
		return error_set(err, -EINVAL,
				 "'%s': reference counts have 1, 2, 4, 8, 16, 32 or 64 bits", path);
	if (c->is_v2 && (bits != 16 || c->has_extended_l2 || c->has_lazy_refcounts || c->compression))
		return error_set(
			err, -EINVAL,
			"'%s': version 2 has none of these features; leave out compat=0.10", path);
	if (c->backing_path && !c->backing_format)
		return error_set(err, -EINVAL,
				 "'%s': say the format of the backing file, it is never guessed", path);
	return 0;
}

static int write_tables(int fd, const struct qcow2_header *h, const struct plan *p, unsigned block_bits)
{
	uint64_t cs = 1ULL << h->cluster_bits, table = 1 + p->l1_clusters,
		 blocks = table + p->table_clusters;
	_cleanup_free_ uint8_t *d = calloc(1, cs);
	int r = d ? io_pwrite_zeroes(fd, (blocks - 1) << h->cluster_bits, cs) : -ENOMEM;

	for (uint64_t i = 0; r == 0 && i < p->nblocks; i++) {
		uint8_t entry[8];
		put_be64(entry, (blocks + i) << h->cluster_bits);
		r = io_pwrite(fd, entry, 8, (table << h->cluster_bits) + 8 * i);
		memset(d, 0, cs);
		for (uint64_t k = 0; k < 1ULL << block_bits && (i << block_bits) + k < p->total; k++)
			qcow2_count_set(d, h->refcount_order, k, 1);
		if (r == 0)
			r = io_pwrite(fd, d, cs, (blocks + i) << h->cluster_bits);
	}
	return r;
}

static void put_header(uint8_t *d, const struct qcow2_header *h)
{
	put_be32(d, QCOW2_MAGIC);
	put_be32(d + 4, h->version);
	put_be64(d + 8, h->backing_offset);
	put_be32(d + 16, h->backing_len);
	put_be32(d + 20, h->cluster_bits);
	put_be64(d + 24, h->size);
	put_be32(d + 36, h->l1_size);
	put_be64(d + 40, h->l1_offset);
	put_be64(d + 48, h->reftable_offset);
	put_be32(d + 56, h->reftable_clusters);
	if (h->version == 2)
		return;
	put_be64(d + 72, h->incompatible);
	put_be64(d + 80, h->compatible);
	put_be32(d + 96, h->refcount_order);
	put_be32(d + 100, h->header_len);
	d[104] = h->compression;
}

int qcow2_create(int fd, const char *path, const struct image_create *c, struct error *err)
{
	int r = check_options(c, path, err);

	if (r < 0)
		return r;
	struct qcow2_header h = {
		.version = c->is_v2 ? 2 : 3,
		.cluster_bits = (uint32_t)__builtin_ctzll(c->cluster_bytes ?: 64 * KIB),
		.size = c->size_bytes,
		.refcount_order = (uint32_t)__builtin_ctz(c->refcount_bits ?: 16),
		.header_len = c->is_v2 ? QCOW2_HEADER_V2 : QCOW2_HEADER_OURS,
		.incompatible = (c->has_extended_l2 ? QCOW2_I_EXTENDED_L2 : 0) |
				(c->compression ? QCOW2_I_COMPRESSION : 0),
		.compatible = c->has_lazy_refcounts ? QCOW2_C_LAZY : 0,
		.compression = c->compression == IMAGE_ZSTD,
	};
	uint64_t cs = 1ULL << h.cluster_bits;
	unsigned l2_bits = h.cluster_bits - (c->has_extended_l2 ? 4 : 3);
	unsigned block_bits = h.cluster_bits + 3 - h.refcount_order;
	if (h.size > INT64_MAX - MIB || h.size >> (h.cluster_bits + l2_bits) >= QCOW2_L1_MAX)
		return error_set(
			err, -EFBIG,
			"'%s': the disk is too large for clusters of this size; take larger ones", path);
	struct plan p = plan_image(&h, l2_bits, block_bits);
	h.l1_size = (uint32_t)p.l1_entries;
	h.l1_offset = cs;
	h.reftable_offset = (1 + p.l1_clusters) << h.cluster_bits;
	h.reftable_clusters = (uint32_t)p.table_clusters;
	_cleanup_free_ uint8_t *first = calloc(1, cs);
	struct bytes_at b = { first, h.header_len, cs };
	if (!first)
		return error_set(err, -ENOMEM, "out of memory");
	r = put_backing(&b, c->backing_path, c->backing_format, &h, path, err);
	if (r < 0)
		return r;
	put_header(first, &h);
	r = write_tables(fd, &h, &p, block_bits);
	if (r == 0)
		r = io_pwrite(fd, first, cs, 0);
	return r < 0 ? error_set(err, r, "cannot write disk image '%s': %s", path, strerror(-r)) : 0;
}

/* ---- the name of the backing file ---- */

int qcow2_set_backing(struct layer *l, const char *path, const char *format, struct error *err)
{
	struct qcow2 *q = qcow2_of(l);
	uint64_t cs = q->cluster_size;
	_cleanup_free_ uint8_t *old = calloc(1, cs), *new = calloc(1, cs);
	char *name = path ? strdup(path) : NULL, *fmt = path && format ? strdup(format) : NULL;
	bool has_memory = old && new && !path == !name && !(path && format) == !fmt;

	/* A machine may be at work on it, which writes fields of the header, too. */
	pthread_mutex_lock(&q->lock);
	struct qcow2_header h = q->h;
	int r = has_memory ? io_pread(q->meta_fd, old, cs, 0) : -ENOMEM;

	if (r == 0) {
		struct bytes_at b = { new, 0, cs };
		put(&b, old, h.header_len);
		/* Extensions of others stay; qcow2_read_header() has seen that they lie inside. */
		uint64_t end = h.backing_offset ? MIN(cs, h.backing_offset) : cs;
		for (uint64_t at = h.header_len; at + 8 <= end && be32(old + at) != QCOW2_EXT_END;) {
			uint32_t type = be32(old + at), n = be32(old + at + 4);
			if (type != QCOW2_EXT_BACKING)
				put_extension(&b, type, old + at + 8, n);
			at += 8 + ALIGN_UP((uint64_t)n, 8);
		}
		r = put_backing(&b, path, format, &h, q->path, err);
		if (r < 0) {
			pthread_mutex_unlock(&q->lock);
			goto out;
		}
		put_be64(new + 8, h.backing_offset);
		put_be32(new + 16, h.backing_len);
		r = io_pwrite(q->meta_fd, new, cs, 0);
		io_sync_note(&q->sync);
	}
	if (r == 0) {
		char *old_name = q->backing_name, *old_fmt = q->backing_format;

		q->h = h;
		q->backing_name = name;
		q->backing_format = fmt;
		name = old_name;
		fmt = old_fmt;
	}
	pthread_mutex_unlock(&q->lock);
	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	if (r < 0)
		error_set(err, r, "cannot write the header of disk image '%s': %s", q->path,
			  strerror(-r));
out:
	free(name);
	free(fmt);
	return r;
}

/* ---- size ---- */

/* A larger L1 table elsewhere; the header leads to it in one sector's write. */
static int grow_l1(struct qcow2 *q, uint64_t entries)
{
	uint64_t clusters = (8 * entries + q->cluster_size - 1) >> q->cluster_bits, first;
	uint64_t *l1 = calloc(entries, 8), *words = calloc(clusters, q->cluster_size);
	struct qcow2_header old = q->h;
	int r = l1 && words ? qcow2_writeback(q, true) : -ENOMEM;

	pthread_mutex_lock(&q->lock);
	if (r == 0)
		r = qcow2_alloc_run(q, clusters, &first);
	pthread_mutex_unlock(&q->lock);
	if (r == 0)
		r = qcow2_writeback(q, true); /* the counts of the new table */
	if (r == 0) {
		memcpy(l1, q->l1, 8ULL * q->h.l1_size);
		for (uint64_t i = 0; i < entries; i++)
			words[i] = __builtin_bswap64(l1[i]);
		r = io_pwrite(q->meta_fd, words, clusters << q->cluster_bits, first << q->cluster_bits);
		io_sync_note(&q->sync);
	}
	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	free(words);
	if (r < 0) {
		free(l1);
		return r;
	}
	pthread_mutex_lock(&q->lock);
	q->h.l1_offset = first << q->cluster_bits;
	q->h.l1_size = (uint32_t)entries;
	r = qcow2_write_fields(q);
	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	for (uint64_t i = 0; r == 0 && i < clusters; i++)
		r = qcow2_set_add(&q->meta, first + i) < 0 ? -ENOMEM : 0;
	uint64_t old_clusters = (8ULL * old.l1_size + q->cluster_size - 1) >> q->cluster_bits;
	for (uint64_t i = 0; r == 0 && i < old_clusters; i++) {
		qcow2_set_remove(&q->meta, (old.l1_offset >> q->cluster_bits) + i);
		qcow2_unalloc(q, (old.l1_offset >> q->cluster_bits) + i, 1);
	}
	free(q->l1);
	q->l1 = l1;
	pthread_mutex_unlock(&q->lock);
	return r;
}

static int write_size(struct qcow2 *q, uint64_t size)
{
	pthread_mutex_lock(&q->lock);
	q->h.size = size;
	int r = qcow2_write_fields(q);
	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	q->layer.size_bytes = size;
	pthread_mutex_unlock(&q->lock);
	return r;
}

static int grow(struct qcow2 *q, uint64_t size, uint64_t backing_bytes)
{
	uint64_t span = q->cluster_size << q->l2_bits, entries = (size + span - 1) / span;
	uint64_t old = q->layer.size_bytes;
	/* What would show of the old last cluster, and of a longer backing file, was never part of the disk. */
	uint64_t end = MIN(size, MAX(ALIGN_UP(old, q->cluster_size), backing_bytes));
	int r = entries > QCOW2_L1_MAX ? -EFBIG : 0;

	if (r == 0 && entries > q->h.l1_size)
		r = grow_l1(q, entries);
	if (r == 0 && end > old) {
		q->layer.size_bytes = size;
		r = qcow2_zero(&q->layer, end - old, old, true);
		if (r == 0)
			r = qcow2_writeback(q, true);
		q->layer.size_bytes = old;
	}
	return r == 0 ? write_size(q, size) : r;
}

static int shrink(struct qcow2 *q, uint64_t size)
{
	uint64_t from = ALIGN_UP(size, q->cluster_size),
		 to = ALIGN_UP(q->layer.size_bytes, q->cluster_size);
	int r = write_size(q, size);

	return r == 0 && to > from ? qcow2_drop(q, to - from, from, DROP_TO_ABSENT) : r;
}

int qcow2_resize(struct layer *l, uint64_t size_bytes, uint64_t backing_bytes, struct error *err)
{
	struct qcow2 *q = qcow2_of(l);
	int r = 0;

	if (size_bytes < l->size_bytes && q->h.nsnapshots)
		return error_set(err, -EINVAL, "disk image '%s' has internal snapshots of the larger disk; delete them first",
				 q->path);
	if (size_bytes > l->size_bytes)
		r = grow(q, size_bytes, backing_bytes);
	else if (size_bytes < l->size_bytes)
		r = shrink(q, size_bytes);
	return r < 0 ? error_set(err, r, "cannot resize disk image '%s': %s", q->path, strerror(-r)) : 0;
}
