/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bringing entries to the storage in order.
 *
 *	copy what is dirty, under the lock: one consistent moment
 *	write counts			-- only ever raised before an entry refers to them
 *	sync				-- data, counts and new tables are stable
 *	write L2 and L1 entries
 *	sync
 *	lower the counts of what the entries of before referred to; give the room back to the host
 *
 * A power cut between any two leaves an image in which every entry leads to data and counts that are there; what
 * is lost is room: clusters counted but not referred to.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "block/qcow2_int.h"

struct piece {
	struct qcow2_table *t; /* NULL: of the L1 table */
	uint64_t offset;
	uint32_t lo, hi;
	uint8_t *data;
	bool is_refs;
};

struct batch {
	struct piece *pieces;
	size_t n, cap;
	size_t npending; /* references that the entries before this moment lost */
	bool has_entries, has_refs;
};

static int add_piece(struct batch *b, struct piece p, const uint8_t *from)
{
	if (b->n == b->cap) {
		size_t cap = b->cap ? 2 * b->cap : 16;
		struct piece *bigger = realloc(b->pieces, cap * sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		b->pieces = bigger;
		b->cap = cap;
	}
	p.data = malloc(p.hi - p.lo);
	if (!p.data)
		return -ENOMEM;
	memcpy(p.data, from + p.lo, p.hi - p.lo);
	b->pieces[b->n++] = p;
	return 0;
}

static void mark_clean(struct qcow2 *q, struct qcow2_table *t)
{
	t->dirty_lo = UINT32_MAX;
	t->dirty_hi = 0;
	q->cache.ndirty--;
}

static int collect_tables(struct qcow2 *q, struct batch *b, bool refs_too)
{
	for (unsigned i = 0; i < q->cache.nbuckets; i++)
		for (struct qcow2_table *t = q->cache.buckets[i]; t; t = t->next) {
			if (t->dirty_lo >= t->dirty_hi || (t->is_refs && !refs_too))
				continue;
			uint32_t hi = MIN(t->dirty_hi, (uint32_t)q->cluster_size);
			int r = add_piece(
				b, (struct piece){ t, t->offset, t->dirty_lo, hi, NULL, t->is_refs },
				t->data);
			if (r < 0)
				return r;
			mark_clean(q, t);
			t->nwriting++;
			*(t->is_refs ? &b->has_refs : &b->has_entries) = true;
		}
	return 0;
}

static int collect_l1(struct qcow2 *q, struct batch *b)
{
	if (q->l1_lo >= q->l1_hi)
		return 0;
	uint32_t n = q->l1_hi - q->l1_lo;
	_cleanup_free_ uint8_t *d = malloc(8ULL * n);
	if (!d)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		put_be64(d + 8ULL * i, q->l1[q->l1_lo + i]);
	int r = add_piece(
		b, (struct piece){ NULL, q->h.l1_offset + 8ULL * q->l1_lo, 0, 8 * n, NULL, false }, d);
	if (r < 0)
		return r;
	q->l1_lo = UINT32_MAX;
	q->l1_hi = 0;
	b->has_entries = true;
	return 0;
}

static int write_pieces(struct qcow2 *q, const struct batch *b, bool refs)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < b->n; i++) {
		const struct piece *p = &b->pieces[i];
		if (p->is_refs == refs)
			r = io_pwrite(q->meta_fd, p->data, p->hi - p->lo, p->offset + p->lo);
	}
	io_sync_note(&q->sync);
	return r;
}

/* Without @lock, under @flush_lock. */
static int write_batch(struct qcow2 *q, const struct batch *b)
{
	int r = b->has_refs ? write_pieces(q, b, true) : 0;

	if (r == 0)
		r = io_sync(&q->sync, q->meta_fd);
	if (r == 0 && b->has_entries) {
		r = write_pieces(q, b, false);
		if (r == 0)
			r = io_sync(&q->sync, q->meta_fd);
	}
	return r;
}

/* Under @lock.  After a failure everything is to be written again. */
static void end_batch(struct qcow2 *q, struct batch *b, bool has_failed)
{
	for (size_t i = 0; i < b->n; i++) {
		struct piece *p = &b->pieces[i];
		if (p->t) {
			p->t->nwriting--;
			if (has_failed)
				qcow2_table_dirty(q, p->t, p->lo, p->hi - p->lo);
		} else if (has_failed) {
			uint32_t first = (uint32_t)((p->offset - q->h.l1_offset) / 8);
			q->l1_lo = MIN(q->l1_lo, first);
			q->l1_hi = MAX(q->l1_hi, first + (p->hi - p->lo) / 8);
		}
		free(p->data);
	}
	if (has_failed)
		q->is_meta_dirty = true;
	free(b->pieces);
}

/* ---- references that went ---- */

static int by_cluster(const void *a, const void *b)
{
	uint64_t x = ((const struct qcow2_pending *)a)->cluster,
		 y = ((const struct qcow2_pending *)b)->cluster;

	return x < y ? -1 : x > y;
}

/* Under @lock.  Takes from the first @n pending references those that no reader may still follow. */
static struct qcow2_pending *take_pending(struct qcow2 *q, size_t n, size_t *taken)
{
	struct qcow2_pending *p = malloc((n + 1) * sizeof(*p));
	uint64_t oldest = UINT64_MAX;
	size_t kept = 0;

	*taken = 0;
	if (!p)
		return NULL; /* the next time */
	for (const struct qcow2_span *s = q->spans; s; s = s->next)
		oldest = MIN(oldest, s->ticket);
	for (size_t i = 0; i < q->npending; i++) {
		if (i < n && q->pending[i].ticket < oldest)
			p[(*taken)++] = q->pending[i];
		else
			q->pending[kept++] = q->pending[i];
	}
	q->npending = q->npending_kept = kept;
	qsort(p, *taken, sizeof(*p), by_cluster);
	return p;
}

/* Length of the group of equal clusters at @i. */
static size_t group(const struct qcow2_pending *p, size_t n, size_t i)
{
	size_t k = 1;

	while (i + k < n && p[i + k].cluster == p[i].cluster)
		k++;
	return k;
}

/* Room of clusters whose last reference is among @p goes back to the host, while they still count as used. */
static void punch(struct qcow2 *q, const struct qcow2_pending *p, size_t n)
{
	uint64_t start = 0, len = 0;

	for (size_t i = 0, k; i <= n; i += k) {
		bool is_last = false;
		k = i < n ? group(p, n, i) : 1;
		if (i < n) {
			uint64_t count;
			pthread_mutex_lock(&q->lock);
			is_last = qcow2_refs_get(q, p[i].cluster, &count) == 0 && count == k;
			pthread_mutex_unlock(&q->lock);
		}
		if (is_last && len && p[i].cluster == start + len) {
			len++;
			continue;
		}
		if (len) /* a hint: a host that can't keeps the room */
			(void)io_fallocate(q->meta_fd, FALLOC_FL_PUNCH_HOLE, start << q->cluster_bits,
					   len << q->cluster_bits, &q->no_punch);
		start = is_last ? p[i].cluster : 0;
		len = is_last;
	}
}

static void release(struct qcow2 *q, size_t npending)
{
	size_t n;

	pthread_mutex_lock(&q->lock);
	struct qcow2_pending *p = take_pending(q, npending, &n);
	pthread_mutex_unlock(&q->lock);
	if (n && !q->no_punch)
		punch(q, p, n);
	pthread_mutex_lock(&q->lock);
	for (size_t i = 0; i < n; i++) {
		uint64_t count;
		/* A failure leaves room that is lost, no harm. */
		if (qcow2_refs_add(q, p[i].cluster, -1) < 0 ||
		    qcow2_refs_get(q, p[i].cluster, &count) < 0 || count)
			continue;
		if (qcow2_set_has(&q->meta, p[i].cluster)) {
			qcow2_set_remove(&q->meta, p[i].cluster);
			qcow2_table_forget(q, p[i].cluster << q->cluster_bits);
		}
	}
	pthread_mutex_unlock(&q->lock);
	free(p);
}

int qcow2_writeback(struct qcow2 *q, bool refs_too)
{
	struct batch b = { 0 };

	pthread_mutex_lock(&q->flush_lock);
	pthread_mutex_lock(&q->lock);
	q->nflushing++;
	b.npending = q->npending;
	int r = collect_tables(q, &b, refs_too);
	if (r == 0)
		r = collect_l1(q, &b);
	if (r == 0)
		q->is_meta_dirty = false;
	pthread_mutex_unlock(&q->lock);
	if (r == 0)
		r = write_batch(q, &b);
	pthread_mutex_lock(&q->lock);
	end_batch(q, &b, r < 0);
	pthread_mutex_unlock(&q->lock);
	if (r == 0 && b.npending)
		release(q, b.npending);
	pthread_mutex_lock(&q->lock);
	q->nflushing--;
	pthread_mutex_unlock(&q->lock);
	pthread_mutex_unlock(&q->flush_lock);
	return r;
}

int qcow2_flush(struct layer *l)
{
	struct qcow2 *q = qcow2_of(l);

	if (l->is_readonly)
		return 0;
	pthread_mutex_lock(&q->lock);
	bool is_dirty = q->is_meta_dirty || q->nflushing;
	pthread_mutex_unlock(&q->lock);
	return is_dirty ? qcow2_writeback(q, !q->is_lazy) : io_sync(&q->sync, q->meta_fd);
}

int qcow2_flush_now(struct layer *l)
{
	struct qcow2 *q = qcow2_of(l);

	if (l->is_readonly)
		return 0;
	if (pthread_mutex_trylock(&q->lock))
		return -EAGAIN;
	bool is_dirty = q->is_meta_dirty || q->nflushing;
	pthread_mutex_unlock(&q->lock);
	return is_dirty ? -EAGAIN : io_sync_now(&q->sync);
}

int qcow2_ease(struct qcow2 *q)
{
	if (!qcow2_is_tight(q))
		return 0;
	pthread_mutex_unlock(&q->lock);
	int r = qcow2_writeback(q, true);
	pthread_mutex_lock(&q->lock);
	return r;
}

int qcow2_finish(struct qcow2 *q)
{
	if (q->is_broken)
		return io_sync(&q->sync, q->meta_fd);
	/* Once for the entries; once more for the counts that this lowers. */
	int r = qcow2_writeback(q, true);
	if (r == 0)
		r = qcow2_writeback(q, true);
	if (r == 0 && q->h.incompatible & QCOW2_I_DIRTY) {
		q->h.incompatible &= ~QCOW2_I_DIRTY;
		r = qcow2_write_fields(q);
		if (r == 0)
			r = io_sync(&q->sync, q->meta_fd);
	}
	return r;
}
