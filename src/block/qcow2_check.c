/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check and repair: count every reference anew and compare.
 *
 *  pass 1  walk header, tables, snapshots, bitmaps; count each cluster's references; bad entries are told, and dropped by a repair
 *  pass 2  the counts in the file against those of pass 1
 *  pass 3  COPIED flags of the active tables against the counts of pass 1
 *
 * A repair that finds any wrong count writes all counts anew, into free clusters, and lets the header lead to them in one
 * sector's write: killed at any moment, the image has the old counts or the new.  Data never moves.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/host.h"
#include "block/qcow2_int.h"
#include "block/qcow2_snap.h"

#define CLUSTERS_MAX (1ULL << 32)

struct check {
	struct qcow2 *q;
	struct image_check *out;
	const struct image_progress *progress;
	uint32_t *refs;
	uint64_t nclusters; /* of the file; refs has more room */
	uint64_t room;
	bool is_repair, has_wrong_counts, is_active;
	uint8_t *seen; /* bits: L2 tables of the L1 table at hand */
	uint64_t l2_done, l2_total;
};

static void complain(struct check *c, const char *fmt, ...) _printf_(2, 3);
static void complain(struct check *c, const char *fmt, ...)
{
	va_list ap;

	if (c->out->nerrors++)
		return;
	va_start(ap, fmt);
	vsnprintf(c->out->first_error, sizeof(c->out->first_error), fmt, ap);
	va_end(ap);
}

/* Counts the clusters of [@offset, +@len); false: it leads out of the file. */
static bool count(struct check *c, uint64_t offset, uint64_t len)
{
	uint64_t first = offset >> c->q->cluster_bits, last;

	if (!len)
		return true;
	if (len > 1ULL << 62 || offset > 1ULL << 62)
		return false;
	last = (offset + len - 1) >> c->q->cluster_bits;
	if (last >= c->nclusters)
		return false;
	for (uint64_t i = first; i <= last; i++)
		if (c->refs[i] < UINT32_MAX)
			c->refs[i]++;
	return true;
}

/* ---- pass 1 ---- */

static bool is_good_entry(struct check *c, const uint8_t *p, uint64_t guest)
{
	struct qcow2 *q = c->q;
	uint64_t e = be64(p), offset = e & QCOW2_OFFSET_MASK, len;

	if (e & QCOW2_COMPRESSED) {
		qcow2_packed_extent(q, e, &offset, &len);
		if (len > q->cluster_size + 2 * 512 || !offset ||
		    !count(c, offset,
			   MIN(len, (c->nclusters << q->cluster_bits) -
					    MIN(offset, c->nclusters << q->cluster_bits))
				   ?: 1)) {
			complain(c, "the packed cluster of the disk at %llu leads out of the file",
				 (unsigned long long)guest);
			return false;
		}
		return true;
	}
	if (offset & (q->cluster_size - 1)) {
		complain(c, "the cluster of the disk at %llu doesn't lie on a cluster's border",
			 (unsigned long long)guest);
		return false;
	}
	if (q->has_ext) {
		uint64_t b = be64(p + 8);
		if ((b & b >> 32 & 0xffffffff) || ((uint32_t)b && !offset)) {
			complain(c, "a subcluster of the disk at %llu is two things at once",
				 (unsigned long long)guest);
			return false;
		}
	}
	if (offset && !count(c, offset, q->cluster_size)) {
		complain(c, "the cluster of the disk at %llu leads out of the file",
			 (unsigned long long)guest);
		return false;
	}
	if (offset && c->is_active)
		c->out->nused++;
	return true;
}

static int check_l2(struct check *c, uint64_t offset, uint64_t guest)
{
	struct qcow2 *q = c->q;
	_cleanup_free_ uint8_t *t = malloc(q->cluster_size);
	bool is_changed = false;

	if (!t)
		return -ENOMEM;
	int r = io_pread(q->meta_fd, t, q->cluster_size, offset);
	for (uint64_t at = 0; r == 0 && at < q->cluster_size; at += q->entry_bytes) {
		if (be64(t + at) & QCOW2_COMPRESSED && c->is_active)
			c->out->nused++;
		if (!is_good_entry(c, t + at, guest + (at / q->entry_bytes << q->cluster_bits)) &&
		    c->is_repair) {
			/* What it led to is lost already; reading as zeroes is better than what lies below. */
			bool is_v3 = q->h.version >= 3;
			put_be64(t + at, is_v3 && !q->has_ext ? QCOW2_ZERO : 0);
			if (q->has_ext)
				put_be64(t + at + 8, 0xffffffffULL << 32);
			c->out->nfixed++;
			is_changed = true;
		}
	}
	if (r == 0 && is_changed) {
		r = io_pwrite(q->meta_fd, t, q->cluster_size, offset);
		io_sync_note(&q->sync);
	}
	return r;
}

static int tell(struct check *c, uint64_t done, uint64_t total)
{
	const struct image_progress *p = c->progress;

	return p && p->fn && p->fn(p->arg, done, total) ? -ECANCELED : 0;
}

static int drop_l1(struct check *c, uint64_t l1_offset, uint64_t i)
{
	if (!c->is_repair)
		return 0;
	uint8_t zero[8] = { 0 };
	int r = io_pwrite(c->q->meta_fd, zero, 8, l1_offset + 8 * i);
	io_sync_note(&c->q->sync);
	if (c->is_active)
		c->q->l1[i] = 0;
	c->out->nfixed++;
	return r;
}

static int check_l1(struct check *c, uint64_t l1_offset, uint64_t n)
{
	struct qcow2 *q = c->q;
	uint64_t span = q->cluster_size << q->l2_bits, *l1;

	if (!count(c, l1_offset, 8 * n)) {
		complain(c, "a first-level table leads out of the file");
		return 0;
	}
	int r = qcow2_read_words(q, l1_offset, n, &l1);
	if (r < 0)
		return r;
	for (uint64_t i = 0; r == 0 && i < n; i++) {
		uint64_t at = l1[i] & QCOW2_OFFSET_MASK, cluster = at >> q->cluster_bits;
		r = tell(c, c->l2_done++, MAX(c->l2_total, c->l2_done));
		if (!at || r < 0)
			continue;
		if (at & (q->cluster_size - 1) || cluster >= c->nclusters) {
			complain(c, "the first-level entry %llu leads out of the file",
				 (unsigned long long)i);
			r = drop_l1(c, l1_offset, i);
			continue;
		}
		if (c->seen[cluster / 8] & 1 << cluster % 8) {
			complain(c, "two first-level entries share a table");
			r = drop_l1(c, l1_offset, i);
			continue;
		}
		c->seen[cluster / 8] |= (uint8_t)(1 << cluster % 8);
		count(c, at, q->cluster_size);
		r = check_l2(c, at, i * span);
	}
	for (uint64_t i = 0; i < n; i++)
		if ((l1[i] & QCOW2_OFFSET_MASK) >> q->cluster_bits < c->nclusters)
			c->seen[(l1[i] & QCOW2_OFFSET_MASK) >> q->cluster_bits >> 3] = 0;
	free(l1);
	return r;
}

static int check_snapshot(void *ctx, uint64_t l1_offset, uint64_t n)
{
	return n ? check_l1(ctx, l1_offset, n) : 0;
}

/* The specification, "Bitmaps": directory, tables, data. */
static int check_bitmap(struct check *c, const uint8_t *d)
{
	struct qcow2 *q = c->q;
	uint64_t table = be64(d), n = be32(d + 8), *words;

	if (n > 1u << 27 || table & (q->cluster_size - 1) || !count(c, table, 8 * n)) {
		complain(c, "the table of a bitmap leads out of the file");
		return 0;
	}
	int r = qcow2_read_words(q, table, n, &words);
	if (r < 0)
		return r;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t at = words[i] & QCOW2_OFFSET_MASK;
		if (at && (at & (q->cluster_size - 1) || !count(c, at, q->cluster_size)))
			complain(c, "a bitmap leads out of the file");
	}
	free(words);
	return 0;
}

static int check_bitmaps(struct check *c)
{
	struct qcow2 *q = c->q;
	uint64_t at = q->h.bitmaps_offset, len = q->h.bitmaps_len, pos = 0;
	int r = 0;

	if (!(q->h.autoclear & QCOW2_A_BITMAPS) || !at)
		return 0;
	if (len > 16 * MIB || at & (q->cluster_size - 1) || !count(c, at, len)) {
		complain(c, "the list of bitmaps leads out of the file");
		return 0;
	}
	for (uint32_t i = 0; r == 0 && i < q->h.nbitmaps && pos + 24 <= len; i++) {
		uint8_t d[24];
		r = io_pread(q->meta_fd, d, sizeof(d), at + pos);
		if (r == 0)
			r = check_bitmap(c, d);
		pos += ALIGN_UP(24ULL + be16(d + 18) + be32(d + 20), 8);
	}
	return r;
}

static int count_all(struct check *c)
{
	struct qcow2 *q = c->q;
	uint64_t table_bytes = 0;

	count(c, 0, q->cluster_size);
	c->is_active = true;
	int r = q->h.l1_size ? check_l1(c, q->h.l1_offset, q->h.l1_size) : 0;
	c->is_active = false;
	if (r == 0) {
		r = qcow2_snapshots(q, check_snapshot, c, &table_bytes);
		if (r == -EINVAL) {
			complain(c, "the list of snapshots is damaged");
			r = 0;
		} else if (r == 0 && q->h.nsnapshots && !count(c, q->h.snapshots_offset, table_bytes)) {
			complain(c, "the list of snapshots leads out of the file");
		}
	}
	return r == 0 ? check_bitmaps(c) : r;
}

/* The clusters of the counts themselves; a repair puts them elsewhere. */
static void count_counts(struct check *c)
{
	struct qcow2 *q = c->q;

	count(c, q->h.reftable_offset, (uint64_t)q->h.reftable_clusters << q->cluster_bits);
	for (uint64_t i = 0; i < q->nreftable; i++) {
		uint64_t at = q->reftable[i];
		if (at && (at & (q->cluster_size - 1) || !count(c, at, q->cluster_size))) {
			complain(c, "the block of counts %llu leads out of the file",
				 (unsigned long long)i);
			q->reftable[i] = 0;
			c->has_wrong_counts = true;
			c->out->nfixed += c->is_repair;
		}
	}
}

/* ---- pass 2 ---- */

static int compare_counts(struct check *c)
{
	struct qcow2 *q = c->q;
	uint64_t per = 1ULL << q->block_bits;
	_cleanup_free_ uint8_t *b = malloc(q->cluster_size);
	int r = b ? 0 : -ENOMEM;

	for (uint64_t i = 0;
	     r == 0 && i < MAX(q->nreftable, (c->nclusters + per - 1) >> q->block_bits); i++) {
		bool has_block = i < q->nreftable && q->reftable[i];
		if (!has_block && i << q->block_bits >= c->nclusters)
			continue;
		if (has_block)
			r = io_pread(q->meta_fd, b, q->cluster_size, q->reftable[i]);
		for (uint64_t k = 0; r == 0 && k < per; k++) {
			uint64_t cluster = (i << q->block_bits) + k;
			uint64_t n = has_block ? qcow2_count_get(b, q->ref_order, k) : 0;
			uint64_t want = cluster < c->nclusters ? c->refs[cluster] : 0;
			if (want)
				c->out->end_bytes = (cluster + 1) << q->cluster_bits;
			if (n == want)
				continue;
			c->has_wrong_counts = true;
			if (n > want)
				c->out->nleaks++;
			else
				complain(c, "the cluster at %llu is counted %llu times and used %llu times",
					 (unsigned long long)(cluster << q->cluster_bits),
					 (unsigned long long)n, (unsigned long long)want);
			c->out->nfixed += c->is_repair;
		}
	}
	return r;
}

/* ---- pass 3 ---- */

static uint32_t refs_of(const struct check *c, uint64_t offset)
{
	uint64_t i = offset >> c->q->cluster_bits;

	return i < c->nclusters ? c->refs[i] : 0;
}

/* Corrects the flag of @e, or tells that it is wrong.  True: it was changed. */
static bool check_flag(struct check *c, uint64_t *e, const char *what)
{
	uint64_t offset = *e & QCOW2_OFFSET_MASK;
	bool want = offset && !(*e & QCOW2_COMPRESSED) && refs_of(c, offset) == 1;

	if (!!(*e & QCOW2_COPIED) == want || (!offset && !(*e & QCOW2_COPIED)))
		return false;
	complain(c, "the flag 'copied' of %s at %llu is wrong", what, (unsigned long long)offset);
	if (!c->is_repair)
		return false;
	*e ^= QCOW2_COPIED;
	c->out->nfixed++;
	return true;
}

static int check_l2_flags(struct check *c, uint64_t offset)
{
	struct qcow2 *q = c->q;
	_cleanup_free_ uint8_t *t = malloc(q->cluster_size);
	bool is_changed = false;

	if (!t)
		return -ENOMEM;
	int r = io_pread(q->meta_fd, t, q->cluster_size, offset);
	for (uint64_t at = 0; r == 0 && at < q->cluster_size; at += q->entry_bytes) {
		uint64_t e = be64(t + at);
		if (check_flag(c, &e, "a cluster")) {
			put_be64(t + at, e);
			is_changed = true;
		}
	}
	if (r == 0 && is_changed) {
		r = io_pwrite(q->meta_fd, t, q->cluster_size, offset);
		io_sync_note(&q->sync);
	}
	return r;
}

static int check_flags(struct check *c)
{
	struct qcow2 *q = c->q;
	int r = 0;

	for (uint64_t i = 0; r == 0 && i < q->h.l1_size; i++) {
		uint64_t at = q->l1[i] & QCOW2_OFFSET_MASK;
		if (at & (q->cluster_size - 1) || at >> q->cluster_bits >= c->nclusters)
			continue;
		if (check_flag(c, &q->l1[i], "a table")) {
			uint8_t d[8];
			put_be64(d, q->l1[i]);
			r = io_pwrite(q->meta_fd, d, 8, q->h.l1_offset + 8 * i);
			io_sync_note(&q->sync);
		}
		if (at && r == 0)
			r = check_l2_flags(c, at);
	}
	return r;
}

/* ---- writing all counts anew ---- */

struct rebuild {
	uint64_t nblocks, table_clusters, table_first, end;
	uint64_t *blocks; /* where each block goes */
};

/* The next cluster at or after @from that nothing uses, not even the old counts. */
static uint64_t next_free(const struct check *c, const struct qcow2_set *old, uint64_t from)
{
	while (from < c->room && (c->refs[from] || qcow2_set_has(old, from)))
		from++;
	return from;
}

/* Places table and blocks behind everything; a block's own room may call for one more block. */
static int plan_rebuild(struct check *c, const struct qcow2_set *old, struct rebuild *b)
{
	struct qcow2 *q = c->q;
	uint64_t per = 1ULL << q->block_bits, per_table = q->cluster_size / 8, end = c->nclusters;

	for (;;) {
		uint64_t nblocks = (end + per - 1) >> q->block_bits;
		uint64_t table = MAX((nblocks + per_table - 1) / per_table, 1ULL);
		/* In the worst case everything goes to the end. */
		uint64_t need = c->nclusters + nblocks + table;
		if (need <= end || nblocks == b->nblocks) {
			b->nblocks = nblocks;
			b->table_clusters = table;
			break;
		}
		b->nblocks = nblocks;
		end = need;
	}
	if (b->table_clusters > MAX(QCOW2_REFTABLE_MAX >> q->cluster_bits, 1ULL) || end > c->room)
		return -EFBIG;
	b->blocks = calloc(b->nblocks + 1, 8);
	if (!b->blocks)
		return -ENOMEM;
	uint64_t at = 1;
	for (uint64_t i = 0; i < b->nblocks; i++) {
		at = next_free(c, old, at);
		if (at >= end)
			return -EFBIG;
		b->blocks[i] = at;
		c->refs[at++] = 1;
	}
	b->table_first = MAX(at, c->nclusters);
	/* The table is one piece. */
	for (uint64_t i = 0; i < b->table_clusters; i++) {
		if (b->table_first + i >= c->room)
			return -EFBIG;
		c->refs[b->table_first + i] = 1;
	}
	b->end = MAX(at, b->table_first + b->table_clusters);
	return b->end <= b->nblocks << q->block_bits ? 0 : -EFBIG;
}

static int write_block(struct check *c, const struct rebuild *b, uint64_t i, uint8_t *buf)
{
	struct qcow2 *q = c->q;
	uint64_t per = 1ULL << q->block_bits;
	uint64_t max = q->ref_order >= 5 ? UINT32_MAX : (1ULL << (1u << q->ref_order)) - 1;

	memset(buf, 0, q->cluster_size);
	for (uint64_t k = 0; k < per; k++) {
		uint64_t cluster = (i << q->block_bits) + k;
		uint32_t n = cluster < c->room ? c->refs[cluster] : 0;
		if (n > max)
			return -EOVERFLOW;
		if (n)
			qcow2_count_set(buf, q->ref_order, k, n);
	}
	return io_pwrite(q->meta_fd, buf, q->cluster_size, b->blocks[i] << q->cluster_bits);
}

static int switch_counts(struct check *c, const struct rebuild *b)
{
	struct qcow2 *q = c->q;
	uint64_t bytes = b->table_clusters << q->cluster_bits;
	uint64_t *table = calloc(1, bytes);
	int r = table ? 0 : -ENOMEM;

	for (uint64_t i = 0; r == 0 && i < b->nblocks; i++)
		table[i] = __builtin_bswap64(b->blocks[i] << q->cluster_bits);
	if (r == 0)
		r = io_pwrite(q->meta_fd, table, bytes, b->table_first << q->cluster_bits);
	io_sync_note(&q->sync);
	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	if (r == 0) {
		q->h.reftable_offset = b->table_first << q->cluster_bits;
		q->h.reftable_clusters = (uint32_t)b->table_clusters;
		r = qcow2_write_fields(q);
	}
	free(table);
	return r == 0 ? io_sync(&q->sync, q->meta_fd) : r;
}

static int old_counts(const struct qcow2 *q, struct qcow2_set *old)
{
	int r = 0;

	for (uint64_t i = 0; r >= 0 && i < q->h.reftable_clusters; i++)
		r = qcow2_set_add(old, (q->h.reftable_offset >> q->cluster_bits) + i);
	for (uint64_t i = 0; r >= 0 && i < q->nreftable; i++)
		if (q->reftable[i])
			r = qcow2_set_add(old, q->reftable[i] >> q->cluster_bits);
	return r < 0 ? r : 0;
}

static void uncount(struct check *c, uint64_t offset)
{
	uint64_t i = offset >> c->q->cluster_bits;

	if (i < c->nclusters && c->refs[i])
		c->refs[i]--;
}

static int rebuild(struct check *c)
{
	struct qcow2 *q = c->q;
	struct rebuild b = { 0 };
	struct qcow2_set old = { 0 };
	_cleanup_free_ uint8_t *buf = malloc(q->cluster_size);
	int r = buf ? old_counts(q, &old) : -ENOMEM;

	/* The old counts' clusters become free. */
	for (uint64_t i = 0; r == 0 && i < q->h.reftable_clusters; i++)
		uncount(c, q->h.reftable_offset + (i << q->cluster_bits));
	for (uint64_t i = 0; r == 0 && i < q->nreftable; i++)
		if (q->reftable[i])
			uncount(c, q->reftable[i]);
	if (r == 0)
		r = plan_rebuild(c, &old, &b);
	for (uint64_t i = 0; r == 0 && i < b.nblocks; i++)
		r = write_block(c, &b, i, buf);
	if (r == 0)
		r = switch_counts(c, &b);
	qcow2_set_free(&old);
	free(b.blocks);
	return r;
}

/* ---- all of it ---- */

static int finish_repair(struct check *c)
{
	struct qcow2 *q = c->q;
	int r = io_sync(&q->sync, q->meta_fd);

	if (r == 0 && c->out->nfixed >= c->out->nerrors + c->out->nleaks &&
	    q->h.incompatible & (QCOW2_I_DIRTY | QCOW2_I_CORRUPT)) {
		q->h.incompatible &= ~(QCOW2_I_DIRTY | QCOW2_I_CORRUPT);
		r = qcow2_write_fields(q);
		if (r == 0)
			r = io_sync(&q->sync, q->meta_fd);
	}
	return r;
}

static int run(struct check *c)
{
	int r = count_all(c);

	if (r == 0)
		count_counts(c);
	if (r == 0)
		r = compare_counts(c);
	if (r == 0 && c->is_repair && c->has_wrong_counts) {
		/* Entries that were corrected come first: the new counts are right only with them. */
		r = io_sync(&c->q->sync, c->q->meta_fd);
		if (r == 0)
			r = rebuild(c);
	}
	/* After the counts: new ones change how often a cluster is used that an entry and the old ones shared. */
	if (r == 0)
		r = check_flags(c);
	if (r == 0 && c->is_repair)
		r = finish_repair(c);
	return r;
}

int qcow2_check_open(struct qcow2 *q, bool repair, struct image_check *out,
		     const struct image_progress *p, struct error *err)
{
	struct check c = { .q = q, .out = out, .is_repair = repair, .progress = p };

	*out = (struct image_check){ 0 };
	out->nclusters = (q->layer.size_bytes + q->cluster_size - 1) >> q->cluster_bits;
	c.l2_total = q->h.l1_size;
	c.nclusters = q->end_cluster;
	c.room = c.nclusters + c.nclusters / 8 + 4096;
	if (c.nclusters > CLUSTERS_MAX)
		return error_set(err, -EFBIG, "disk image '%s' is too large to be checked", q->path);
	c.refs = host.mmap(NULL, 4 * c.room, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	c.seen = calloc(1, c.nclusters / 8 + 1);
	int r = c.refs == MAP_FAILED || !c.seen ? -ENOMEM : run(&c);
	if (c.refs != MAP_FAILED)
		munmap(c.refs, 4 * c.room);
	free(c.seen);
	if (r == -ECANCELED)
		return error_set(err, r, "canceled");
	return r < 0 ? error_set(err, r, "cannot check disk image '%s': %s", q->path, strerror(-r)) : 0;
}

int qcow2_check(struct layer *l, bool repair, struct image_check *out,
		const struct image_progress *p, struct error *err)
{
	return qcow2_check_open(qcow2_of(l), repair, out, p, err);
}
