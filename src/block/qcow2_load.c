/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of an opened image into memory, and the set of clusters that no data may be written to. */
#include <errno.h>
#include <string.h>

#include "block/qcow2_int.h"
#include "block/qcow2_snap.h"

int qcow2_read_words(struct qcow2 *q, uint64_t offset, uint64_t n, uint64_t **out)
{
	uint64_t *w = malloc(8 * n + 8);

	if (!w)
		return -ENOMEM;
	int r = io_pread(q->meta_fd, w, 8 * n, offset);
	if (r < 0) {
		free(w);
		return r;
	}
	for (uint64_t i = 0; i < n; i++)
		w[i] = __builtin_bswap64(w[i]);
	*out = w;
	return 0;
}

int qcow2_snapshots(struct qcow2 *q, int (*fn)(void *ctx, uint64_t l1_offset, uint64_t l1_size),
		    void *ctx, uint64_t *table_bytes)
{
	uint64_t at = q->h.snapshots_offset, total = 0;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < q->h.nsnapshots; i++) {
		uint8_t d[40];
		r = io_pread(q->meta_fd, d, sizeof(d), at);
		if (r < 0)
			break;
		uint64_t l1 = be64(d), n = be32(d + 8), extra = be32(d + 36);
		if (extra > 1024 || n > QCOW2_L1_MAX || at > q->file.size_bytes || l1 % q->cluster_size ||
		    (n && (l1 > q->file.size_bytes || 8 * n > q->file.size_bytes - l1)))
			return -EINVAL;
		total += n;
		if (total > QCOW2_SNAPSHOT_L1_MAX)
			return -EINVAL;
		at = ALIGN_UP(at + 40 + extra + be16(d + 12) + be16(d + 14), 8);
		if (fn)
			r = fn(ctx, l1, n);
	}
	*table_bytes = at - q->h.snapshots_offset;
	return r;
}

/* ---- what is metadata ---- */

static int protect(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool may_be_there)
{
	uint64_t end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;

	for (uint64_t c = offset >> q->cluster_bits; c < end; c++) {
		int r = qcow2_set_add(&q->meta, c);
		if (r < 0)
			return r;
		if (r == 1 && !may_be_there)
			return -EINVAL;
	}
	return 0;
}

/* An L2 table that is shared by right (no COPIED flag) may be met twice, others may not. */
static int protect_l2s(struct qcow2 *q, const uint64_t *l1, uint64_t n, bool is_active)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t at = l1[i] & QCOW2_OFFSET_MASK;
		if (!at)
			continue;
		if (at % q->cluster_size || at >> q->cluster_bits >= q->end_cluster)
			return -EINVAL;
		int r = protect(q, at, 1, !is_active || !(l1[i] & QCOW2_COPIED));
		if (r < 0)
			return r;
	}
	return 0;
}

static int protect_snapshot(void *ctx, uint64_t l1_offset, uint64_t n)
{
	struct qcow2 *q = ctx;
	uint64_t *l1;
	int r = protect(q, l1_offset, 8 * n, true);

	if (r == 0)
		r = qcow2_read_words(q, l1_offset, n, &l1);
	if (r < 0)
		return r;
	r = protect_l2s(q, l1, n, false);
	free(l1);
	return r;
}

static int protect_all(struct qcow2 *q)
{
	uint64_t table_bytes;
	int r = protect(q, 0, 1, false);

	if (r == 0)
		r = protect(q, q->h.reftable_offset, q->cluster_size * q->h.reftable_clusters, false);
	if (r == 0)
		r = protect(q, q->h.l1_offset, 8ULL * q->h.l1_size, false);
	for (uint64_t i = 0; r == 0 && i < q->nreftable; i++) {
		if (!q->reftable[i])
			continue;
		if (q->reftable[i] % q->cluster_size || q->reftable[i] >> q->cluster_bits >= q->end_cluster)
			return -EINVAL;
		r = protect(q, q->reftable[i], 1, false);
	}
	if (r == 0)
		r = protect_l2s(q, q->l1, q->h.l1_size, true);
	/* Last: what only snapshots hold is shared with the active tables by nature. */
	if (r == 0)
		r = qcow2_snapshots(q, protect_snapshot, q, &table_bytes);
	if (r == 0 && q->h.nsnapshots)
		r = protect(q, q->h.snapshots_offset, table_bytes, true);
	return r;
}

int qcow2_load_tables(struct qcow2 *q, bool is_writer, struct error *err)
{
	q->end_cluster = (q->file.size_bytes + q->cluster_size - 1) >> q->cluster_bits;
	q->nreftable = (uint64_t)q->h.reftable_clusters << q->cluster_bits >> 3;
	q->l1_lo = UINT32_MAX;
	int r = qcow2_read_words(q, q->h.l1_offset, q->h.l1_size, &q->l1);
	if (r == 0)
		r = qcow2_read_words(q, q->h.reftable_offset, q->nreftable, &q->reftable);
	if (r < 0)
		return error_set(err, r, "cannot read disk image '%s': %s", q->path, strerror(-r));
	if (!is_writer)
		return 0;
	r = protect_all(q);
	if (r == -EINVAL)
		return error_set(err, r,
				 "disk image '%s' is damaged: its tables overlap or lead out of "
				 "the file; run 'viv image check "
				 "--repair', or open it read-only",
				 q->path);
	return r < 0 ? error_set(err, r, "cannot read the tables of disk image '%s': %s", q->path,
				 strerror(-r))
		     : 0;
}
