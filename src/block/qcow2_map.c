/* SPDX-License-Identifier: Apache-2.0 */
/* From guest offsets to clusters (the specification, "Cluster mapping", "Extended L2 Entries"), and spans. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "block/qcow2_int.h"

static uint64_t l1_index(const struct qcow2 *q, uint64_t at)
{
	return at >> (q->cluster_bits + q->l2_bits);
}

static uint32_t l2_byte(const struct qcow2 *q, uint64_t at)
{
	return (uint32_t)((at >> q->cluster_bits) & ((1ULL << q->l2_bits) - 1)) * q->entry_bytes;
}

struct qcow2_entry qcow2_entry_get(const struct qcow2 *q, const struct qcow2_table *t, uint64_t at)
{
	const uint8_t *p = t->data + l2_byte(q, at);

	return (struct qcow2_entry){ be64(p), q->has_ext ? be64(p + 8) : 0 };
}

void qcow2_entry_set(struct qcow2 *q, struct qcow2_table *t, uint64_t at, struct qcow2_entry e)
{
	uint32_t byte = l2_byte(q, at);

	put_be64(t->data + byte, e.desc);
	if (q->has_ext)
		put_be64(t->data + byte + 8, e.bitmap);
	qcow2_table_dirty(q, t, byte, q->entry_bytes);
	q->is_meta_dirty = true;
}

void qcow2_packed_extent(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *len)
{
	unsigned x = 62 - (q->cluster_bits - 8);
	uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> x;

	*offset = entry & ((1ULL << x) - 1);
	*len = (sectors + 1) * 512 - (*offset & 511);
}

/* ---- tables ---- */

int qcow2_l2_get(struct qcow2 *q, uint64_t at, struct qcow2_table **t)
{
	uint64_t e = q->l1[l1_index(q, at)] & QCOW2_OFFSET_MASK;

	*t = NULL;
	return e ? qcow2_table_get(q, e, false, t) : 0;
}

static void l1_set(struct qcow2 *q, uint64_t i, uint64_t entry)
{
	q->l1[i] = entry;
	q->l1_lo = MIN(q->l1_lo, (uint32_t)i);
	q->l1_hi = MAX(q->l1_hi, (uint32_t)i + 1);
	q->is_meta_dirty = true;
}

int qcow2_l2_own(struct qcow2 *q, uint64_t at, struct qcow2_table **t)
{
	uint64_t i = l1_index(q, at), first, got;
	uint64_t old = q->l1[i] & QCOW2_OFFSET_MASK;
	struct qcow2_table *from = NULL;
	bool is_fresh;
	int r = qcow2_l2_get(q, at, &from);

	if (r < 0)
		return r;
	if (from && q->l1[i] & QCOW2_COPIED) {
		*t = from;
		return 0;
	}
	r = qcow2_alloc(q, 1, &first, &got, &is_fresh);
	if (r == 0 && old)
		r = qcow2_l2_get(q, at, &from); /* the allocation may have pushed it out */
	if (r < 0)
		return r;
	uint8_t *data = from ? malloc(q->cluster_size) : calloc(1, q->cluster_size);
	if (data && from)
		memcpy(data, from->data, q->cluster_size);
	/* Valid content in the file before the next writeback's first sync: invariant 2. */
	r = data ? io_pwrite(q->meta_fd, data, q->cluster_size, first << q->cluster_bits) : -ENOMEM;
	if (r == 0)
		r = qcow2_set_add(&q->meta, first) < 0 ? -ENOMEM : 0;
	if (r == 0 && old)
		r = qcow2_unref(q, old >> q->cluster_bits);
	if (r < 0) {
		free(data);
		qcow2_unalloc(q, first, 1);
		return r;
	}
	io_sync_note(&q->sync);
	r = qcow2_table_new(q, first << q->cluster_bits, false, data, t);
	if (r == 0)
		l1_set(q, i, first << q->cluster_bits | QCOW2_COPIED);
	return r;
}

/* ---- looking up ---- */

/* What one subcluster is. */
static int judge(struct qcow2 *q, struct qcow2_entry e, unsigned sub, enum qcow2_kind *kind)
{
	uint64_t offset = e.desc & QCOW2_OFFSET_MASK;

	if (e.desc & QCOW2_COMPRESSED) {
		*kind = MAP_COMPRESSED;
		return 0;
	}
	if (offset % q->cluster_size)
		return qcow2_damaged(q, "a cluster doesn't lie on a cluster's border");
	if (q->has_ext) {
		bool is_data = e.bitmap >> sub & 1, is_zero = e.bitmap >> (32 + sub) & 1;
		if (is_data && (is_zero || !offset))
			return qcow2_damaged(q, "a subcluster is two things at once");
		*kind = is_data ? MAP_DATA : is_zero ? MAP_ZERO : MAP_ABSENT;
	} else if (e.desc & QCOW2_ZERO && q->h.version >= 3) {
		*kind = MAP_ZERO;
	} else {
		*kind = offset ? MAP_DATA : MAP_ABSENT;
	}
	return 0;
}

int qcow2_lookup(struct qcow2 *q, uint64_t at, uint64_t len, bool only_cached, struct qcow2_run *out)
{
	uint64_t span = 1ULL << (q->cluster_bits + q->l2_bits);
	uint64_t l1e = q->l1[l1_index(q, at)] & QCOW2_OFFSET_MASK;
	struct qcow2_table *t;

	len = MIN(len, span - (at & (span - 1)));
	if (!l1e) {
		*out = (struct qcow2_run){ .kind = MAP_ABSENT, .len = len };
		return 0;
	}
	if (only_cached && !qcow2_table_find(q, l1e))
		return -EAGAIN;
	int r = qcow2_table_get(q, l1e, false, &t);
	if (r < 0)
		return r;
	struct qcow2_run run = { 0 };
	while (run.len < len) {
		uint64_t pos = at + run.len, in = pos & (q->cluster_size - 1);
		struct qcow2_entry e = qcow2_entry_get(q, t, pos);
		unsigned sub = q->has_ext ? (unsigned)(in >> q->sub_bits) : 0;
		uint64_t host = (e.desc & QCOW2_OFFSET_MASK) + in;
		enum qcow2_kind kind = MAP_ABSENT;
		r = judge(q, e, sub, &kind);
		if (r < 0)
			return r;
		if (!run.len) {
			run.kind = kind;
			run.host = kind == MAP_COMPRESSED ? e.desc : host;
			run.is_writable = kind == MAP_DATA && e.desc & QCOW2_COPIED;
		} else if (kind != run.kind || kind == MAP_COMPRESSED ||
			   (kind == MAP_DATA && (host != run.host + run.len ||
						 run.is_writable != !!(e.desc & QCOW2_COPIED)))) {
			break;
		}
		uint64_t unit = kind == MAP_COMPRESSED ? q->cluster_size : 1ULL << q->sub_bits;
		run.len += MIN(unit - (pos & (unit - 1)), len - run.len);
	}
	*out = run;
	return 0;
}

/* ---- spans ---- */

bool qcow2_span_begin(struct qcow2 *q, struct qcow2_span *s, enum qcow2_span_kind kind, uint64_t at,
		      uint64_t len)
{
	s->kind = kind;
	s->first = at >> q->cluster_bits;
	s->last = (at + len - 1) >> q->cluster_bits;
	for (struct qcow2_span *o = q->spans; kind != SPAN_READ && o; o = o->next)
		if (o->kind != SPAN_READ && (kind == SPAN_CHANGE || o->kind == SPAN_CHANGE) &&
		    s->first <= o->last && o->first <= s->last)
			return false;
	s->ticket = ++q->ticket;
	s->prev = NULL;
	s->next = q->spans;
	if (s->next)
		s->next->prev = s;
	q->spans = s;
	return true;
}

void qcow2_span_wait(struct qcow2 *q)
{
	pthread_cond_wait(&q->changed, &q->lock);
}

void qcow2_span_end(struct qcow2 *q, struct qcow2_span *s)
{
	if (s->prev)
		s->prev->next = s->next;
	else
		q->spans = s->next;
	if (s->next)
		s->next->prev = s->prev;
	if (s->kind != SPAN_READ)
		pthread_cond_broadcast(&q->changed);
}
