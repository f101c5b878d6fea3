/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "block/qcow2_int.h"

/* A write that needs clusters takes at most this much at once. */
#define ALLOC_BYTES_MAX (2 * MIB)

/* ---- read ---- */

/* One run; its span is registered. */
static int read_run(struct qcow2 *q, const struct qcow2_run *run, struct io_vec v, uint64_t at)
{
	switch (run->kind) {
	case MAP_ABSENT:
		return layer_read_through(q->layer.backing, v, run->len, at);
	case MAP_ZERO:
		return io_zero(v, run->len);
	case MAP_DATA:
		return io_read(&q->file, v, run->len, run->host, IO_END_IS_ZEROES);
	case MAP_COMPRESSED:
		return qcow2_unpack(q, run->host, v, at & (q->cluster_size - 1), run->len);
	}
	return -EIO;
}

int qcow2_read(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct qcow2 *q = qcow2_of(l);

	while (len) {
		struct qcow2_run run;
		struct qcow2_span span;
		pthread_mutex_lock(&q->lock);
		int r = qcow2_lookup(q, at, len, false, &run);
		if (r == 0)
			qcow2_span_begin(q, &span, SPAN_READ, at, run.len);
		pthread_mutex_unlock(&q->lock);
		if (r < 0)
			return r;
		r = read_run(q, &run, v, at);
		pthread_mutex_lock(&q->lock);
		qcow2_span_end(q, &span);
		pthread_mutex_unlock(&q->lock);
		if (r < 0)
			return r;
		at += run.len;
		len -= run.len;
		v.skip += run.len;
	}
	return 0;
}

static int read_data_now(struct qcow2 *q, struct io_vec v, uint64_t len, uint64_t at)
{
	int r = q->no_nowait ? -EAGAIN : io_read_now(&q->file, v, len, at);

	if (r != -EOPNOTSUPP)
		return r;
	q->no_nowait = true;
	return -EAGAIN;
}

/* The span is left out: with the lock held, no cluster is freed and used again. */
int qcow2_read_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct qcow2 *q = qcow2_of(l);
	int r = 0;

	if (pthread_mutex_trylock(&q->lock))
		return -EAGAIN;
	while (len && r == 0) {
		struct qcow2_run run;
		r = qcow2_lookup(q, at, len, true, &run);
		if (r < 0)
			break;
		if (run.kind == MAP_ABSENT)
			r = layer_read_through_now(l->backing, v, run.len, at);
		else if (run.kind == MAP_ZERO)
			r = io_zero(v, run.len);
		else if (run.kind == MAP_DATA)
			r = read_data_now(q, v, run.len, run.host);
		else
			r = -EAGAIN;
		at += run.len;
		len -= run.len;
		v.skip += run.len;
	}
	pthread_mutex_unlock(&q->lock);
	return r < 0 ? -EAGAIN : 0; /* an error as well: the pool meets it again */
}

/* ---- write in place ---- */

/* Under @lock.  No table is under the run (invariant 4), and it lies in the file. */
static int check_target(struct qcow2 *q, uint64_t host, uint64_t len)
{
	uint64_t last = (host + len - 1) >> q->cluster_bits;

	if (q->is_broken)
		return -EIO;
	for (uint64_t c = host >> q->cluster_bits; c <= last; c++) {
		if (c >= q->end_cluster)
			return qcow2_damaged(q, "a cluster lies outside of the file");
		if (qcow2_set_has(&q->meta, c))
			return qcow2_damaged(q, "a cluster of the disk lies on a table");
	}
	return 0;
}

static int write_in_place(struct qcow2 *q, const struct qcow2_run *run, struct io_vec v)
{
	int r = io_write(&q->file, v, run->len, run->host);

	io_sync_note(&q->sync);
	return r;
}

int qcow2_write_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct qcow2 *q = qcow2_of(l);
	struct qcow2_run run;
	struct qcow2_span span;

	if (q->file.is_direct || pthread_mutex_trylock(&q->lock))
		return -EAGAIN;
	int r = qcow2_lookup(q, at, len, true, &run);
	if (r == 0 && (run.len < len || !run.is_writable || check_target(q, run.host, run.len) < 0 ||
		       !qcow2_span_begin(q, &span, SPAN_WRITE, at, len)))
		r = -EAGAIN;
	pthread_mutex_unlock(&q->lock);
	if (r < 0)
		return -EAGAIN;
	r = write_in_place(q, &run, v);
	pthread_mutex_lock(&q->lock);
	qcow2_span_end(q, &span);
	pthread_mutex_unlock(&q->lock);
	return r;
}

/* ---- transfers that others do (io_uring) ---- */

_Static_assert(sizeof(struct qcow2_span) <= sizeof(((struct layer_plan *)0)->hold),
	       "a plan holds a span");

static struct qcow2_span *plan_span(struct layer_plan *p)
{
	return (struct qcow2_span *)(void *)p->hold;
}

static void plan_end(struct layer_plan *p)
{
	struct qcow2 *q = qcow2_of(p->layer);

	pthread_mutex_lock(&q->lock);
	qcow2_span_end(q, plan_span(p));
	pthread_mutex_unlock(&q->lock);
}

/* Under @lock. */
static bool plan_locked(struct qcow2 *q, enum block_op op, bool is_fua, uint64_t len, uint64_t at,
			struct layer_plan *out, bool *is_below)
{
	bool is_write = op == BLOCK_WRITE;
	struct qcow2_run run;

	*out = (struct layer_plan){ .file = &q->file, .sync = &q->sync, .layer = &q->layer };
	/* Entries that are still to be written are part of what becomes stable. */
	if ((op == BLOCK_FLUSH || is_fua) && (q->layer.is_readonly || q->is_meta_dirty || q->nflushing))
		return false;
	if (op == BLOCK_FLUSH)
		return true;
	if (qcow2_lookup(q, at, len, true, &run) < 0 || run.len < len)
		return false;
	*is_below = !is_write && run.kind == MAP_ABSENT;
	if (run.kind != MAP_DATA ||
	    (is_write && (!run.is_writable || check_target(q, run.host, len) < 0)) ||
	    !qcow2_span_begin(q, plan_span(out), is_write ? SPAN_WRITE : SPAN_READ, at, len))
		return false;
	out->at = run.host;
	out->end = plan_end;
	return true;
}

bool qcow2_plan(struct layer *l, enum block_op op, bool is_fua, uint64_t len, uint64_t at,
		struct layer_plan *out)
{
	struct qcow2 *q = qcow2_of(l);
	bool is_below = false;

	if (pthread_mutex_trylock(&q->lock))
		return false;
	bool is_plain = plan_locked(q, op, is_fua, len, at, out, &is_below);

	pthread_mutex_unlock(&q->lock);
	struct layer *b = l->backing;

	if (!is_below || !b || !b->ops->plan || at > b->size_bytes || len > b->size_bytes - at)
		return is_plain;
	return b->ops->plan(b, op, false, len, at, out);
}

/* ---- write with new clusters ---- */

/* What is to be done for [at, at + len), which lies in one L2 table. */
struct change {
	uint64_t at, len, host; /* host: of the cluster that @at lies in */
	uint64_t nclusters;
	struct qcow2_entry old; /* the only one, or: all are alike in that none has a cluster to write to */
	bool is_new;		/* clusters just allocated; else the cluster of the entry itself */
	bool is_fresh;		/* and they read as zeroes */
	uint64_t head, tail; /* bytes around the data that are written as well */
};

static bool has_own_cluster(struct qcow2_entry e)
{
	return !(e.desc & QCOW2_COMPRESSED) && e.desc & QCOW2_OFFSET_MASK && e.desc & QCOW2_COPIED;
}

/* With subclusters, moving to another cluster takes along what the old one holds: then all of it is copied. */
static bool moves_data(struct qcow2_entry e)
{
	return e.desc & QCOW2_COMPRESSED || (uint32_t)e.bitmap;
}

/* Under @lock.  Tables and clusters for the change at @c->at; shortens it where it must. */
static int plan(struct qcow2 *q, struct change *c)
{
	struct qcow2_table *t;
	uint64_t mask = q->cluster_size - 1, start = c->at & ~mask, got, first;
	int r = qcow2_l2_own(q, c->at, &t);

	if (r < 0)
		return r;
	c->old = qcow2_entry_get(q, t, c->at);
	if (c->old.desc & QCOW2_OFFSET_MASK & mask && !(c->old.desc & QCOW2_COMPRESSED))
		return qcow2_damaged(q, "a cluster doesn't lie on a cluster's border");
	c->nclusters = 1;
	if (has_own_cluster(c->old)) {
		c->host = c->old.desc & QCOW2_OFFSET_MASK;
		r = check_target(q, c->host, q->cluster_size);
	} else {
		uint64_t end = MIN(c->at + c->len, (c->at | ((q->cluster_size << q->l2_bits) - 1)) + 1);
		/* Whole-cluster copies of several old clusters would be needed: one at a time then. */
		while (!moves_data(c->old) && start + (c->nclusters << q->cluster_bits) < end &&
		       c->nclusters << q->cluster_bits < ALLOC_BYTES_MAX) {
			struct qcow2_entry e =
				qcow2_entry_get(q, t, start + (c->nclusters << q->cluster_bits));
			if (has_own_cluster(e) || (q->has_ext && moves_data(e)))
				break;
			c->nclusters++;
		}
		r = qcow2_alloc(q, c->nclusters, &first, &got, &c->is_fresh);
		if (r == 0) {
			c->is_new = true;
			c->nclusters = got;
			c->host = first << q->cluster_bits;
		}
	}
	c->len = MIN(c->len, start + (c->nclusters << q->cluster_bits) - c->at);
	uint64_t unit = c->is_new && (!q->has_ext || moves_data(c->old)) ? q->cluster_size
									 : 1ULL << q->sub_bits;
	c->head = c->at & (unit - 1);
	c->tail = -(c->at + c->len) & (unit - 1);
	return r;
}

/* Bytes around the data come from what was there; the disk may end inside. */
static int read_around(struct qcow2 *q, uint8_t *buf, uint64_t len, uint64_t at)
{
	uint64_t there = at < q->layer.size_bytes ? MIN(len, q->layer.size_bytes - at) : 0;
	struct iovec iov = { buf, there };

	memset(buf + there, 0, len - there);
	return there ? qcow2_read(&q->layer, (struct io_vec){ &iov, 1, 0 }, there, at) : 0;
}

/* [@at, +@len) reads as zeroes for certain. */
static bool is_zero_around(struct qcow2 *q, uint64_t len, uint64_t at)
{
	struct qcow2_run run;

	if (!len || at >= q->layer.size_bytes)
		return true;
	len = MIN(len, q->layer.size_bytes - at);
	pthread_mutex_lock(&q->lock);
	int r = qcow2_lookup(q, at, len, false, &run);
	pthread_mutex_unlock(&q->lock);
	if (r < 0 || run.len < len)
		return false;
	const struct layer *b = q->layer.backing;
	return run.kind == MAP_ZERO || (run.kind == MAP_ABSENT && (!b || at >= b->size_bytes));
}

static int write_parts(struct qcow2 *q, const struct change *c, struct io_vec v, uint8_t *head,
		       uint8_t *tail)
{
	struct iovec iov[IO_IOV_BATCH + 2];
	uint64_t got, at = c->host + (c->at & (q->cluster_size - 1));
	unsigned n = io_cut(v, c->len, iov + 1, &got);

	if (got == c->len && n + 2 <= IO_IOV_BATCH) {
		iov[0] = (struct iovec){ head, head ? c->head : 0 };
		iov[n + 1] = (struct iovec){ tail, tail ? c->tail : 0 };
		uint64_t total = iov[0].iov_len + got + iov[n + 1].iov_len;
		return io_write(&q->file, (struct io_vec){ iov, n + 2, 0 }, total, at - iov[0].iov_len);
	}
	struct iovec one = { head, c->head }, other = { tail, c->tail };
	int r = head ? io_write(&q->file, (struct io_vec){ &one, 1, 0 }, c->head, at - c->head) : 0;
	if (r == 0)
		r = io_write(&q->file, v, c->len, at);
	if (r == 0 && tail)
		r = io_write(&q->file, (struct io_vec){ &other, 1, 0 }, c->tail, at + c->len);
	return r;
}

/* Without any lock: what is read is still what was there. */
static int move_data(struct qcow2 *q, const struct change *c, struct io_vec v)
{
	_cleanup_free_ uint8_t *buf = NULL;
	uint8_t *head = NULL, *tail = NULL;
	uint64_t end = c->at + c->len;
	int r = 0;

	if (c->head || c->tail) {
		if (posix_memalign((void **)&buf, 4096, c->head + c->tail))
			return -ENOMEM;
		if (c->head && !(c->is_fresh && is_zero_around(q, c->head, c->at - c->head)))
			head = buf;
		if (c->tail && !(c->is_fresh && is_zero_around(q, c->tail, end)))
			tail = buf + c->head;
		if (head)
			r = read_around(q, head, c->head, c->at - c->head);
		if (r == 0 && tail)
			r = read_around(q, tail, c->tail, end);
	}
	if (r == 0)
		r = write_parts(q, c, v, head, tail);
	io_sync_note(&q->sync);
	return r;
}

/* Subclusters [@at, +@len) of the cluster at guest offset @start, as a mask. */
static uint64_t sub_mask(const struct qcow2 *q, uint64_t start, uint64_t at, uint64_t end)
{
	unsigned a = at <= start ? 0 : (unsigned)((at - start) >> q->sub_bits);
	uint64_t to = MIN(end - start, q->cluster_size);
	unsigned b = (unsigned)((to + (1ULL << q->sub_bits) - 1) >> q->sub_bits);

	return ((1ULL << b) - 1) & ~((1ULL << a) - 1);
}

/* Under @lock: the data is in place, the entries lead to it. */
static int link_change(struct qcow2 *q, const struct change *c)
{
	uint64_t start = c->at & ~(q->cluster_size - 1);
	uint64_t from = c->at - c->head, end = c->at + c->len + c->tail;
	struct qcow2_table *t;
	int r = qcow2_l2_own(q, c->at, &t);

	for (uint64_t i = 0; r == 0 && i < c->nclusters; i++) {
		uint64_t pos = start + (i << q->cluster_bits);
		struct qcow2_entry old = qcow2_entry_get(q, t, pos), e = { 0 };
		e.desc = (c->host + (i << q->cluster_bits)) | QCOW2_COPIED;
		if (q->has_ext) {
			uint64_t subs = sub_mask(q, pos, from, end);
			uint64_t was = old.desc & QCOW2_COMPRESSED ? 0 : old.bitmap;
			e.bitmap = (was | subs) & ~(subs << 32);
		}
		if (c->is_new)
			r = qcow2_unref_entry(q, old.desc);
		if (r == 0)
			qcow2_entry_set(q, t, pos, e);
	}
	return r;
}

/* Under @lock, which is let go meanwhile.  Writes the first part of [@at, +@len), whose length goes to *@done. */
static int write_change(struct qcow2 *q, struct io_vec v, uint64_t len, uint64_t at, uint64_t *done)
{
	struct change c = { .at = at, .len = MIN(len, ALLOC_BYTES_MAX) };
	struct qcow2_span span;

	if (!qcow2_span_begin(q, &span, SPAN_CHANGE, at, c.len)) {
		qcow2_span_wait(q);
		*done = 0;
		return 0;
	}
	int r = q->is_broken ? -EIO : plan(q, &c);
	if (r == 0) {
		pthread_mutex_unlock(&q->lock);
		r = move_data(q, &c, v);
		pthread_mutex_lock(&q->lock);
		if (r == 0)
			r = link_change(q, &c);
		else if (c.is_new)
			qcow2_unalloc(q, c.host >> q->cluster_bits, c.nclusters);
	}
	qcow2_span_end(q, &span);
	*done = c.len;
	return r;
}

int qcow2_write(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct qcow2 *q = qcow2_of(l);
	int r = 0;

	pthread_mutex_lock(&q->lock);
	while (len && r == 0) {
		struct qcow2_run run;
		struct qcow2_span span;
		uint64_t done = 0;
		r = qcow2_ease(q);
		if (r < 0)
			break;
		r = qcow2_lookup(q, at, len, false, &run);
		if (r < 0)
			break;
		if (!run.is_writable) {
			r = write_change(q, v, len, at, &done);
		} else if (!qcow2_span_begin(q, &span, SPAN_WRITE, at, run.len)) {
			qcow2_span_wait(q);
		} else {
			done = run.len;
			r = check_target(q, run.host, run.len);
			pthread_mutex_unlock(&q->lock);
			if (r == 0)
				r = write_in_place(q, &run, v);
			pthread_mutex_lock(&q->lock);
			qcow2_span_end(q, &span);
		}
		at += done;
		len -= done;
		v.skip += done;
	}
	pthread_mutex_unlock(&q->lock);
	return r;
}

/* ---- taking in what the backing layer holds ---- */

/* With a span over it, whose entries have nothing there: what the layer below the backing one does not give. */
static int copy_in(struct qcow2 *q, struct change *c)
{
	_cleanup_free_ uint8_t *buf = NULL;
	int r = plan(q, c);

	if (r < 0)
		return r;
	pthread_mutex_unlock(&q->lock);
	struct iovec iov = { NULL, c->len };

	r = posix_memalign((void **)&buf, 4096, c->len) ? -ENOMEM : 0;
	iov.iov_base = buf;
	if (r == 0)
		r = layer_read_through(q->layer.backing, (struct io_vec){ &iov, 1, 0 }, c->len, c->at);
	if (r == 0)
		r = move_data(q, c, (struct io_vec){ &iov, 1, 0 });
	pthread_mutex_lock(&q->lock);
	if (r == 0)
		r = link_change(q, c);
	else if (c->is_new)
		qcow2_unalloc(q, c->host >> q->cluster_bits, c->nclusters);
	return r;
}

/* Under @lock.  The backing layer holds [@at, +@len) as @st, this one nothing of it a moment ago. */
static int take_in_run(struct qcow2 *q, enum layer_status st, uint64_t len, uint64_t at, uint64_t *done)
{
	uint64_t mask = q->cluster_size - 1, table = q->cluster_size << q->l2_bits;
	struct qcow2_span span;
	struct qcow2_run run;

	len = MIN(len, table - (at & (table - 1)));
	*done = 0;
	if (!qcow2_span_begin(q, &span, SPAN_CHANGE, at, len)) {
		qcow2_span_wait(q);
		return 0;
	}
	int r = q->is_broken ? -EIO : qcow2_lookup(q, at, len, false, &run);

	if (r == 0 && run.kind != MAP_ABSENT) {
		*done = run.len; /* somebody was faster */
	} else if (r == 0) {
		uint64_t end = at + run.len;
		bool is_whole = !(at & mask) && (!(end & mask) || end == q->layer.size_bytes);

		r = -EOPNOTSUPP;
		if (st == LAYER_ZERO && is_whole)
			r = qcow2_drop_clusters(q, run.len, at, DROP_TO_ZERO, done);
		if (r == -EOPNOTSUPP) {
			struct change c = { .at = at, .len = MIN(run.len, ALLOC_BYTES_MAX) };

			r = copy_in(q, &c);
			*done = c.len;
		}
	}
	qcow2_span_end(q, &span);
	return r;
}

int qcow2_take_in(struct layer *l, uint64_t len, uint64_t at)
{
	struct qcow2 *q = qcow2_of(l);
	struct layer *below = l->backing;
	int r = 0;

	while (len && r == 0) {
		enum layer_status st = LAYER_ABSENT;
		struct qcow2_run run;
		uint64_t done;

		pthread_mutex_lock(&q->lock);
		r = qcow2_ease(q);
		if (r == 0)
			r = qcow2_lookup(q, at, len, false, &run);
		pthread_mutex_unlock(&q->lock);
		if (r < 0)
			break;
		done = run.len;
		if (run.kind == MAP_ABSENT && at < below->size_bytes) {
			done = MIN(done, below->size_bytes - at);
			r = below->ops->status(below, done, at, &st, &done);
		}
		if (r == 0 && st != LAYER_ABSENT) {
			pthread_mutex_lock(&q->lock);
			r = take_in_run(q, st, done, at, &done);
			pthread_mutex_unlock(&q->lock);
		}
		at += done;
		len -= done;
	}
	return r;
}
