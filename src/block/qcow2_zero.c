/* SPDX-License-Identifier: Apache-2.0 */
/* Zeroes and discard: whole clusters, or subclusters, by their entries; what is left by writing. */
#include <errno.h>
#include <string.h>

#include "block/qcow2_int.h"

/* Nothing of the layers below would show at [@at, +@len). */
static bool is_bare(const struct qcow2 *q, uint64_t at)
{
	const struct layer *b = q->layer.backing;

	return b ? at >= b->size_bytes : !q->backing_name;
}

static int write_zeroes(struct qcow2 *q, uint64_t len, uint64_t at)
{
	static const _Alignas(4096) uint8_t zeroes[64 * KIB];
	struct iovec iov[32];

	for (size_t i = 0; i < ARRAY_SIZE(iov); i++)
		iov[i] = (struct iovec){ (void *)(uintptr_t)zeroes, sizeof(zeroes) };
	while (len) {
		uint64_t part = MIN(len, (uint64_t)sizeof(zeroes) * ARRAY_SIZE(iov));
		int r = qcow2_write(&q->layer, (struct io_vec){ iov, ARRAY_SIZE(iov), 0 }, part, at);
		if (r < 0)
			return r;
		at += part;
		len -= part;
	}
	return 0;
}

/* The entry after all of the cluster was dropped; false: it can't be said with an entry. */
static bool dropped(const struct qcow2 *q, uint64_t at, struct qcow2_entry old, enum qcow2_drop how,
		    struct qcow2_entry *e)
{
	bool has_cluster = !(old.desc & QCOW2_COMPRESSED) && old.desc & QCOW2_OFFSET_MASK &&
			   old.desc & QCOW2_COPIED;

	*e = (struct qcow2_entry){ 0 };
	if (how == DROP_TO_ABSENT)
		return true;
	if (how == DROP_KEEP && has_cluster && q->h.version >= 3) {
		e->desc = (old.desc & QCOW2_OFFSET_MASK) | QCOW2_COPIED | (q->has_ext ? 0 : QCOW2_ZERO);
		e->bitmap = q->has_ext ? 0xffffffffULL << 32 : 0;
		return true;
	}
	if (is_bare(q, at))
		return true;
	if (q->h.version < 3)
		return false;
	e->desc = q->has_ext ? 0 : QCOW2_ZERO;
	e->bitmap = q->has_ext ? 0xffffffffULL << 32 : 0;
	return true;
}

int qcow2_drop_clusters(struct qcow2 *q, uint64_t len, uint64_t at, enum qcow2_drop how, uint64_t *done)
{
	struct qcow2_table *t;
	int r = qcow2_l2_own(q, at, &t);

	for (*done = 0; r == 0 && *done < len; *done += q->cluster_size) {
		struct qcow2_entry old = qcow2_entry_get(q, t, at + *done), e;
		if (!dropped(q, at + *done, old, how, &e)) {
			if (how != DROP_DISCARD)
				return -EOPNOTSUPP;
			continue;
		}
		if (e.desc == old.desc && e.bitmap == old.bitmap)
			continue;
		bool keeps = e.desc & QCOW2_OFFSET_MASK;
		if (!keeps)
			r = qcow2_unref_entry(q, old.desc);
		if (r == 0)
			qcow2_entry_set(q, t, at + *done, e);
	}
	return r;
}

/* The same for subclusters inside one cluster. */
static int drop_subs(struct qcow2 *q, uint64_t len, uint64_t at, enum qcow2_drop how)
{
	struct qcow2_table *t;
	int r = qcow2_l2_own(q, at, &t);

	if (r < 0)
		return r;
	struct qcow2_entry e = qcow2_entry_get(q, t, at);
	if (e.desc & QCOW2_COMPRESSED)
		return -EOPNOTSUPP;
	uint64_t in = at & (q->cluster_size - 1);
	unsigned a = (unsigned)(in >> q->sub_bits), n = (unsigned)(len >> q->sub_bits);
	uint64_t mask = ((1ULL << n) - 1) << a;
	e.bitmap = (e.bitmap & ~mask) | mask << 32;
	if (!(uint32_t)e.bitmap && how != DROP_KEEP) {
		r = qcow2_unref_entry(q, e.desc);
		e.desc = 0;
	}
	if (r == 0)
		qcow2_entry_set(q, t, at, e);
	return r;
}

/* Nothing to do: it reads as it shall already, and holds no cluster of its own. */
static bool is_dropped(const struct qcow2 *q, const struct qcow2_run *run, uint64_t at, enum qcow2_drop how)
{
	if (how == DROP_TO_ABSENT)
		return run->kind == MAP_ABSENT;
	return run->kind == MAP_ZERO || (run->kind == MAP_ABSENT && is_bare(q, at));
}

int qcow2_drop(struct qcow2 *q, uint64_t len, uint64_t at, enum qcow2_drop how)
{
	uint64_t table = q->cluster_size << q->l2_bits;
	int r = 0;

	pthread_mutex_lock(&q->lock);
	while (len && r == 0) {
		uint64_t part = MIN(len, table - (at & (table - 1))), done = 0;
		uint64_t in = at & (q->cluster_size - 1);
		struct qcow2_span span;
		struct qcow2_run run;
		r = qcow2_ease(q);
		if (r < 0)
			break;
		r = qcow2_lookup(q, at, part, false, &run);
		if (r < 0)
			break;
		if (is_dropped(q, &run, at, how)) {
			at += run.len;
			len -= run.len;
			continue;
		}
		/* Up to the next border of a cluster by subclusters, then clusters, then subclusters. */
		if (in || part < q->cluster_size)
			part = MIN(part, q->cluster_size - in);
		else
			part = ALIGN_DOWN(part, q->cluster_size);
		if (!qcow2_span_begin(q, &span, SPAN_CHANGE, at, part)) {
			qcow2_span_wait(q);
			continue;
		}
		if (q->is_broken) {
			r = -EIO;
		} else if (part < q->cluster_size) {
			r = drop_subs(q, part, at, how);
			done = part;
		} else {
			r = qcow2_drop_clusters(q, part, at, how, &done);
		}
		qcow2_span_end(q, &span);
		if (r == -EOPNOTSUPP) {
			/* By hand: the cluster at hand, or the piece of it. */
			pthread_mutex_unlock(&q->lock);
			done = part < q->cluster_size ? 0 : done;
			uint64_t piece = MIN(part - done, q->cluster_size);
			r = how == DROP_DISCARD ? 0 : write_zeroes(q, piece, at + done);
			done += piece;
			pthread_mutex_lock(&q->lock);
		}
		at += done;
		len -= done;
	}
	pthread_mutex_unlock(&q->lock);
	return r;
}

static bool reads_as_zero(struct qcow2 *q, uint64_t len, uint64_t at)
{
	struct qcow2_run run;

	pthread_mutex_lock(&q->lock);
	int r = qcow2_lookup(q, at, len, false, &run);
	pthread_mutex_unlock(&q->lock);
	return r == 0 && run.len == len &&
	       (run.kind == MAP_ZERO || (run.kind == MAP_ABSENT && is_bare(q, at)));
}

static int zero_piece(struct qcow2 *q, uint64_t len, uint64_t at)
{
	return !len || reads_as_zero(q, len, at) ? 0 : write_zeroes(q, len, at);
}

/* Splits off what is no whole unit; the last cluster of the disk is whole for itself. */
static void split(const struct qcow2 *q, uint64_t len, uint64_t at, uint64_t *head,
		  uint64_t *middle, uint64_t *padded)
{
	uint64_t unit = 1ULL << q->sub_bits, end = at + len;

	*head = MIN(len, -at & (unit - 1));
	uint64_t to = end == q->layer.size_bytes ? end : ALIGN_DOWN(end, unit);
	*middle = to > at + *head ? to - at - *head : 0;
	*padded = ALIGN_UP(*middle, unit);
}

int qcow2_zero(struct layer *l, uint64_t len, uint64_t at, bool may_unmap)
{
	struct qcow2 *q = qcow2_of(l);
	uint64_t head, middle, padded;

	split(q, len, at, &head, &middle, &padded);
	int r = zero_piece(q, head, at);
	if (r == 0 && middle)
		r = qcow2_drop(q, padded, at + head, may_unmap ? DROP_TO_ZERO : DROP_KEEP);
	if (r == 0)
		r = zero_piece(q, len - head - middle, at + head + middle);
	return r;
}

int qcow2_discard(struct layer *l, uint64_t len, uint64_t at)
{
	struct qcow2 *q = qcow2_of(l);
	uint64_t head, middle, padded;

	split(q, len, at, &head, &middle, &padded);
	return middle ? qcow2_drop(q, padded, at + head, DROP_DISCARD) : 0;
}

int qcow2_unlink(struct layer *l, uint64_t len, uint64_t at)
{
	return qcow2_drop(qcow2_of(l), len, at, DROP_TO_ABSENT);
}
