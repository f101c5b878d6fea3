/* SPDX-License-Identifier: Apache-2.0 */
/* Reference counts and allocation (the specification, "Host cluster management"). */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "block/qcow2_int.h"

/* L2 entries hold offsets below this. */
#define CLUSTER_END(q) ((1ULL << 56) >> (q)->cluster_bits)

uint64_t qcow2_count_get(const uint8_t *b, unsigned order, uint64_t i)
{
	switch (order) {
	case 4:
		return be16(b + 2 * i);
	case 5:
		return be32(b + 4 * i);
	case 6:
		return be64(b + 8 * i);
	default: { /* 1 to 8 bits; bit 0 of a byte comes first */
		unsigned bits = 1u << order, per = 8 / bits;
		return b[i / per] >> (i % per * bits) & ((1u << bits) - 1);
	}
	}
}

void qcow2_count_set(uint8_t *b, unsigned order, uint64_t i, uint64_t n)
{
	switch (order) {
	case 4:
		put_be16(b + 2 * i, (uint16_t)n);
		return;
	case 5:
		put_be32(b + 4 * i, (uint32_t)n);
		return;
	case 6:
		put_be64(b + 8 * i, n);
		return;
	default: {
		unsigned bits = 1u << order, per = 8 / bits, shift = (unsigned)(i % per) * bits;
		unsigned mask = ((1u << bits) - 1) << shift;
		b[i / per] = (uint8_t)((b[i / per] & ~mask) | ((unsigned)n << shift & mask));
	}
	}
}

static uint64_t count_max(const struct qcow2 *q)
{
	return q->ref_order == 6 ? UINT64_MAX : (1ULL << (1u << q->ref_order)) - 1;
}

int qcow2_damaged(struct qcow2 *q, const char *what)
{
	if (q->is_broken)
		return -EIO;
	q->is_broken = true;
	log_error("block", "disk image '%s' is damaged: %s%s", q->path, what,
		  q->layer.is_readonly ? "" : "; it is not written to any more, see viv image check");
	if (!q->layer.is_readonly && q->h.version == 3) {
		q->h.incompatible |= QCOW2_I_CORRUPT;
		int r = qcow2_write_fields(q);
		if (r < 0)
			log_error("block", "disk image '%s' can't be marked as damaged: %s",
				  q->path, strerror(-r));
	}
	return -EIO;
}

int qcow2_mark_dirty(struct qcow2 *q)
{
	if (!q->is_lazy || q->h.incompatible & QCOW2_I_DIRTY)
		return 0;
	q->h.incompatible |= QCOW2_I_DIRTY;
	int r = qcow2_write_fields(q);
	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	if (r < 0)
		q->h.incompatible &= ~QCOW2_I_DIRTY;
	return r;
}

/* The block that counts @cluster; NULL in *@out where there is none. */
static int block_get(struct qcow2 *q, uint64_t cluster, struct qcow2_table **out)
{
	uint64_t i = cluster >> q->block_bits;

	*out = NULL;
	if (i >= q->nreftable || !q->reftable[i])
		return 0;
	return qcow2_table_get(q, q->reftable[i], true, out);
}

static void count_put(struct qcow2 *q, struct qcow2_table *t, uint64_t cluster, uint64_t n)
{
	uint64_t i = cluster & ((1ULL << q->block_bits) - 1);

	qcow2_count_set(t->data, q->ref_order, i, n);
	qcow2_table_dirty(q, t, (uint32_t)(i << q->ref_order >> 3), 1u << q->ref_order >> 3 ?: 1);
}

static uint64_t count_of(const struct qcow2 *q, const struct qcow2_table *t, uint64_t cluster)
{
	return qcow2_count_get(t->data, q->ref_order, cluster & ((1ULL << q->block_bits) - 1));
}

int qcow2_refs_get(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
	struct qcow2_table *t;
	int r = block_get(q, cluster, &t);

	if (r == 0)
		*out = t ? count_of(q, t, cluster) : 0;
	return r;
}

int qcow2_refs_add(struct qcow2 *q, uint64_t cluster, int delta)
{
	struct qcow2_table *t;
	int r = block_get(q, cluster, &t);

	if (r < 0)
		return r;
	uint64_t n = t ? count_of(q, t, cluster) : 0;
	if (delta < 0 && n < (uint64_t)-delta)
		return qcow2_damaged(q, "a cluster in use was counted as free");
	if (!t || (delta > 0 && n > count_max(q) - (uint64_t)delta))
		return -EINVAL;
	r = qcow2_mark_dirty(q);
	if (r < 0)
		return r;
	count_put(q, t, cluster, n + (uint64_t)(int64_t)delta);
	if (n + (uint64_t)(int64_t)delta == 0)
		q->free_hint = MIN(q->free_hint, cluster);
	return 0;
}

static void note_used(struct qcow2 *q, uint64_t end)
{
	q->end_cluster = MAX(q->end_cluster, end);
}

/* The block that shall count @cluster is missing, so the cluster is free: the block goes there. */
static int add_block(struct qcow2 *q, uint64_t cluster)
{
	uint64_t i = cluster >> q->block_bits;
	struct qcow2_table *t;
	uint8_t entry[8];

	if (qcow2_set_has(&q->meta, cluster))
		return qcow2_damaged(q, "a table is counted as free");
	uint8_t *data = calloc(1, q->cluster_size);
	if (!data)
		return -ENOMEM;
	qcow2_count_set(data, q->ref_order, cluster & ((1ULL << q->block_bits) - 1), 1);
	put_be64(entry, cluster << q->cluster_bits);
	int r = io_pwrite(q->meta_fd, data, q->cluster_size, cluster << q->cluster_bits);
	io_sync_note(&q->sync);
	note_used(q, cluster + 1);
	/* Its content is stable before the table leads to it. */
	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	if (r == 0)
		r = io_pwrite(q->meta_fd, entry, 8, q->h.reftable_offset + 8 * i);
	if (r == 0)
		r = qcow2_set_add(&q->meta, cluster);
	if (r < 0) {
		free(data);
		return r;
	}
	io_sync_note(&q->sync);
	q->reftable[i] = cluster << q->cluster_bits;
	return qcow2_table_new(q, q->reftable[i], true, data, &t);
}

/* What a larger refcount table needs: @nblocks blocks from @first on, which count themselves and the table after them. */
struct growth {
	uint64_t first, nblocks, clusters, entries;
};

static struct growth plan_growth(const struct qcow2 *q, uint64_t index)
{
	uint64_t per_block = 1ULL << q->block_bits;
	struct growth g = { .first = MAX(q->end_cluster, q->nreftable << q->block_bits) };

	g.first = ALIGN_UP(g.first, per_block); /* at the start of what a new block counts */
	for (;;) {
		uint64_t end = g.first + g.nblocks + g.clusters;
		uint64_t nblocks = (end - g.first + per_block - 1) >> q->block_bits;
		uint64_t entries = MAX(MAX((end + per_block - 1) >> q->block_bits, index + 1),
				       q->nreftable + q->nreftable / 2);
		uint64_t clusters = (8 * entries + q->cluster_size - 1) >> q->cluster_bits;
		if (nblocks <= g.nblocks && clusters <= g.clusters)
			break;
		g.nblocks = MAX(nblocks, g.nblocks);
		g.clusters = MAX(clusters, g.clusters);
	}
	g.entries = g.clusters << q->cluster_bits >> 3;
	return g;
}

static int write_growth(struct qcow2 *q, const struct growth *g, const uint64_t *table)
{
	uint64_t per_block = 1ULL << q->block_bits, used = g->nblocks + g->clusters;
	uint64_t bytes = (g->nblocks + g->clusters) << q->cluster_bits;
	_cleanup_free_ uint8_t *d = calloc(1, bytes);

	if (!d)
		return -ENOMEM;
	for (uint64_t i = 0; i < used; i++)
		qcow2_count_set(d + ((i >> q->block_bits) << q->cluster_bits), q->ref_order,
				i & (per_block - 1), 1);
	for (uint64_t i = 0; i < g->entries; i++)
		put_be64(d + (g->nblocks << q->cluster_bits) + 8 * i, table[i]);
	int r = io_pwrite(q->meta_fd, d, bytes, g->first << q->cluster_bits);
	io_sync_note(&q->sync);
	return r < 0 ? r : io_sync(&q->sync, q->meta_fd);
}

/* The header leads to the new table in one sector's write, so at any moment one of both is whole. */
static int grow_reftable(struct qcow2 *q, uint64_t index)
{
	struct growth g = plan_growth(q, index);
	struct qcow2_header old = q->h;
	uint64_t new_offset = (g.first + g.nblocks) << q->cluster_bits;

	if (g.clusters > MAX(QCOW2_REFTABLE_MAX >> q->cluster_bits, 1ULL))
		return -EFBIG;
	uint64_t *table = calloc(g.entries, 8);
	if (!table)
		return -ENOMEM;
	memcpy(table, q->reftable, 8 * q->nreftable);
	for (uint64_t i = 0; i < g.nblocks; i++)
		table[(g.first >> q->block_bits) + i] = (g.first + i) << q->cluster_bits;
	int r = write_growth(q, &g, table);
	note_used(q, g.first + g.nblocks + g.clusters);
	for (uint64_t i = 0; r == 0 && i < g.nblocks + g.clusters; i++)
		r = qcow2_set_add(&q->meta, g.first + i) < 0 ? -ENOMEM : 0;
	if (r == 0) {
		q->h.reftable_offset = new_offset;
		q->h.reftable_clusters = (uint32_t)g.clusters;
		r = qcow2_write_fields(q);
		if (r == 0)
			r = io_sync(&q->sync, q->meta_fd);
	}
	if (r < 0) {
		q->h = old;
		free(table);
		return r;
	}
	free(q->reftable);
	q->reftable = table;
	q->nreftable = g.entries;
	for (uint64_t i = 0; i < old.reftable_clusters; i++) {
		uint64_t c = (old.reftable_offset >> q->cluster_bits) + i;
		qcow2_set_remove(&q->meta, c);
		qcow2_unalloc(q, c, 1);
	}
	return 0;
}

/* There is a block for @cluster; 1: it was made just now, and may stand in that very cluster. */
static int need_block(struct qcow2 *q, uint64_t cluster)
{
	uint64_t i = cluster >> q->block_bits;

	if (cluster >= CLUSTER_END(q))
		return -EFBIG;
	if (i >= q->nreftable) {
		int r = grow_reftable(q, i);
		return r < 0 ? r : 1;
	}
	if (q->reftable[i])
		return 0;
	int r = add_block(q, cluster);
	return r < 0 ? r : 1;
}

int qcow2_alloc(struct qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got, bool *is_fresh)
{
	uint64_t n = 0, start = 0, c = q->free_hint;
	int r = q->is_broken ? -EIO : qcow2_mark_dirty(q);

	for (; r == 0 && n < want; c++) {
		uint64_t i = c >> q->block_bits;
		struct qcow2_table *t;
		if (n && (i >= q->nreftable || !q->reftable[i]))
			break;
		r = need_block(q, c);
		if (r == 1) {
			r = 0;
			c--; /* look again */
			continue;
		}
		if (r == 0)
			r = block_get(q, c, &t);
		if (r < 0)
			break;
		if (count_of(q, t, c)) {
			if (n)
				break;
			continue;
		}
		if (qcow2_set_has(&q->meta, c)) {
			r = qcow2_damaged(q, "a table is counted as free");
			break;
		}
		count_put(q, t, c, 1);
		if (!n++)
			start = c;
	}
	if (!n)
		return r < 0 ? r : -EIO;
	*is_fresh = start >= q->end_cluster;
	note_used(q, start + n);
	q->free_hint = start + n;
	*first = start;
	*got = n;
	return 0;
}

int qcow2_alloc_run(struct qcow2 *q, uint64_t n, uint64_t *first)
{
	uint64_t start = q->end_cluster, c = start;
	int r = q->is_broken ? -EIO : qcow2_mark_dirty(q);

	while (r == 0 && c < start + n) {
		uint64_t count = 0;
		r = need_block(q, c);
		if (r == 1) { /* it may stand in the way */
			r = 0;
			start = c = MAX(q->end_cluster, start);
			continue;
		}
		if (r == 0)
			r = qcow2_refs_get(q, c, &count);
		c++;
		if (r == 0 && count)
			start = c;
	}
	for (uint64_t i = 0; r == 0 && i < n; i++) {
		r = qcow2_refs_add(q, start + i, 1);
		if (r < 0)
			qcow2_unalloc(q, start, i);
	}
	if (r < 0)
		return r;
	note_used(q, start + n);
	*first = start;
	return 0;
}

void qcow2_unalloc(struct qcow2 *q, uint64_t first, uint64_t n)
{
	/* A failure leaves clusters that are counted and used by nothing: lost room, no harm. */
	for (uint64_t i = 0; i < n; i++)
		(void)qcow2_refs_add(q, first + i, -1);
}

int qcow2_unref(struct qcow2 *q, uint64_t cluster)
{
	if (q->npending == q->pending_cap) {
		size_t cap = q->pending_cap ? 2 * q->pending_cap : 64;
		struct qcow2_pending *p = realloc(q->pending, cap * sizeof(*p));
		if (!p)
			return -ENOMEM;
		q->pending = p;
		q->pending_cap = cap;
	}
	q->pending[q->npending++] = (struct qcow2_pending){ cluster, q->ticket };
	return 0;
}

int qcow2_unref_entry(struct qcow2 *q, uint64_t entry)
{
	int r = 0;

	if (entry & QCOW2_COMPRESSED) {
		uint64_t at, len;
		qcow2_packed_extent(q, entry, &at, &len);
		for (uint64_t c = at >> q->cluster_bits;
		     r == 0 && c <= (at + len - 1) >> q->cluster_bits; c++)
			r = qcow2_unref(q, c);
	} else if (entry & QCOW2_OFFSET_MASK) {
		r = qcow2_unref(q, (entry & QCOW2_OFFSET_MASK) >> q->cluster_bits);
	}
	return r;
}
