/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The front of a disk: it takes the controller's requests to the top layer.
 *
 * Small requests are served at once on the submitter's thread (front_try_now): reads that the page cache answers
 * without waiting (RWF_NOWAIT), writes into the page cache as long as these are quick, flushes when
 * nothing was written since the last.  The rest goes to the pool.
 *
 * Invariants
 *  1. What do_request() calls runs on any thread, in parallel.  The stack of layers changes only while the pool is
 *     drained, on the thread that holds the machine's lock.
 *     Those who copy (block_copy.c) are on other threads: they hold stack_lock for reading, who changes it for writing.
 *  2. needs_seal: a layer below the top was written to and not made stable since.  A flush succeeds only after
 *     it is sealed.
 *  3. is_unsettled: the top's file, or what names it, is not stable.  A flush waits for block_settled(), on a thread of the pool.
 */
#include "block/block.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "block/block_int.h"
#include "block/qcow2.h"

#define FRONT_THREADS 4

/* On the submitter's thread: requests up to this size.  After a slow write the next few go to the pool, twice as many
 * after each further slow one in a row: one alone is mostly a thread that lost its CPU. */
#define NOW_BYTES_MAX (128 * KIB)
#define NOW_SLOW_NS   1000000LL
#define NOW_REST_MIN  8u
#define NOW_REST_MAX  1024u

/* A limit lets through what it allows in this time at once, then waits. */
#define LIMIT_BURST_NS 100000000LL

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* ---- limits ---- */

/* Books @n units; returns how long to wait before they may go. */
static int64_t limit_book(struct limit *l, uint64_t n, int64_t now)
{
	if (!l->per_s)
		return 0;
	l->paid_until_ns = MAX(l->paid_until_ns, now - LIMIT_BURST_NS);
	int64_t wait = l->paid_until_ns - now;
	l->paid_until_ns += (int64_t)((double)n * 1e9 / (double)l->per_s);
	return wait;
}

static bool has_limits(const struct front *d)
{
	return d->bytes.per_s || d->ops.per_s;
}

/* On a worker's thread, which has nothing else to do: all of the disk's requests wait for the same limit. */
static void wait_for_limits(struct front *d, const struct block_req *req)
{
	if (!has_limits(d) || req->op == BLOCK_FLUSH || req->op == BLOCK_TAKE_IN ||
	    req->op == BLOCK_NAME_BELOW)
		return;
	bool moves = req->op == BLOCK_READ || req->op == BLOCK_WRITE;
	pthread_mutex_lock(&d->limit_lock);
	int64_t now = now_ns();
	int64_t a = limit_book(&d->bytes, moves ? req->len_bytes : 0, now);
	int64_t b = limit_book(&d->ops, 1, now);
	pthread_mutex_unlock(&d->limit_lock);
	int64_t wait = MAX(a, b);
	if (wait <= 0)
		return;
	struct timespec ts = { wait / 1000000000LL, wait % 1000000000LL };
	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		continue;
}

/* ---- requests ---- */

static int check_req(const struct front *d, const struct block_req *req)
{
	uint64_t size = d->top->size_bytes;

	if (req->op != BLOCK_READ && req->op != BLOCK_FLUSH && d->top->is_readonly)
		return -EROFS;
	if (req->op == BLOCK_FLUSH)
		return 0;
	if ((req->offset_bytes | req->len_bytes) % BLOCK_SECTOR || req->offset_bytes > size ||
	    req->len_bytes > size - req->offset_bytes)
		return -EIO;
	return 0;
}

static int await_settled(struct front *d)
{
	pthread_mutex_lock(&d->settle_lock);
	while (d->settled > 0)
		pthread_cond_wait(&d->settle_end, &d->settle_lock);
	int r = d->settled;

	pthread_mutex_unlock(&d->settle_lock);
	return r;
}

void block_settled(struct block_dev *b, int result)
{
	struct front *d = front_of(b);

	assert(result <= 0);
	pthread_mutex_lock(&d->settle_lock);
	d->settled = result;
	d->is_unsettled = result != 0;
	pthread_cond_broadcast(&d->settle_end);
	pthread_mutex_unlock(&d->settle_lock);
}

static int do_flush(struct front *d)
{
	int r = d->is_unsettled ? await_settled(d) : 0;

	if (r == 0 && d->needs_seal) {
		pthread_mutex_lock(&d->seal_lock);
		/* From the bottom up would need a way back; each is whole without the ones above it in any order. */
		for (struct layer *l = d->top->backing; l && r == 0; l = l->backing)
			if (!l->is_readonly)
				r = l->ops->seal(l);
		if (r == 0)
			d->needs_seal = false;
		pthread_mutex_unlock(&d->seal_lock);
	}
	return r == 0 ? d->top->ops->flush(d->top) : r;
}

static struct io_vec vec_of(const struct block_req *req)
{
	return (struct io_vec){ req->iov, req->niov, 0 };
}

/* The layer below the top, if the top can do without it; else NULL. */
static struct layer *spare_layer(const struct front *d)
{
	struct layer *below = d->top->backing;

	return layer_is_qcow2(d->top) && !d->top->is_readonly && below && layer_is_qcow2(below) &&
			       below->size_bytes == d->top->size_bytes && below->backing && !d->needs_seal
		       ? below
		       : NULL;
}

static int name_below(const struct front *d)
{
	struct layer *below = spare_layer(d);
	struct image_info info = { 0 };
	struct error err;

	if (!below)
		return -EINVAL;
	qcow2_info(below, &info);
	return qcow2_set_backing(d->top, info.backing_path, info.backing_format, &err);
}

static int do_request(void *ctx, struct block_req *req)
{
	struct front *d = ctx;
	struct layer *l = d->top;
	int r = check_req(d, req);

	if (r < 0)
		return r;
	wait_for_limits(d, req);
	switch (req->op) {
	case BLOCK_READ:
		return l->ops->read(l, vec_of(req), req->len_bytes, req->offset_bytes);
	case BLOCK_WRITE:
		r = l->ops->write(l, vec_of(req), req->len_bytes, req->offset_bytes);
		break;
	case BLOCK_FLUSH:
		return do_flush(d);
	case BLOCK_DISCARD:
		r = l->ops->discard(l, req->len_bytes, req->offset_bytes);
		break;
	case BLOCK_WRITE_ZEROES:
		r = l->ops->zero(l, req->len_bytes, req->offset_bytes, req->may_unmap);
		break;
	case BLOCK_TAKE_IN:
		return spare_layer(d) ? l->ops->take_in(l, req->len_bytes, req->offset_bytes) : -EINVAL;
	case BLOCK_NAME_BELOW:
		return name_below(d);
	}
	front_note(d, req);
	if (r == 0 && req->is_fua)
		r = do_flush(d);
	return r;
}

static bool plan_request(void *ctx, const struct block_req *req, struct layer_plan *out)
{
	struct front *d = ctx;
	bool makes_stable = req->op == BLOCK_FLUSH || (req->op == BLOCK_WRITE && req->is_fua);

	if ((req->op != BLOCK_READ && req->op != BLOCK_WRITE && req->op != BLOCK_FLUSH) ||
	    has_limits(d) || (d->track && req->op == BLOCK_WRITE) ||
	    (makes_stable && (d->needs_seal || d->is_unsettled)) || !d->top->ops->plan ||
	    check_req(d, req) < 0)
		return false;
	return d->top->ops->plan(d->top, req->op, req->is_fua, req->len_bytes, req->offset_bytes, out);
}

/*
 * No host tells reliably whether a buffered write would wait; most are a copy.  So writes are tried, and after one
 * that did wait, for room or for a journal, the pool has them for a while.
 */
static int write_now(struct front *d, struct block_req *req)
{
	if (req->is_fua)
		return -EAGAIN;
	if (d->resting) {
		d->resting--;
		return -EAGAIN;
	}
	int64_t before = now_ns();
	int r = d->top->ops->write_now(d->top, vec_of(req), req->len_bytes, req->offset_bytes);
	if (r != -EAGAIN)
		front_note(d, req);
	if (now_ns() - before > NOW_SLOW_NS) {
		d->resting = d->next_rest;
		d->next_rest = MIN(2 * d->next_rest, NOW_REST_MAX);
	} else {
		d->next_rest = NOW_REST_MIN;
	}
	return r;
}

static int front_try_now(struct block_dev *b, struct block_req *req)
{
	struct front *d = front_of(b);

	if (check_req(d, req) < 0)
		return -EAGAIN;
	if (req->op == BLOCK_FLUSH)
		return d->needs_seal || d->is_unsettled ? -EAGAIN : d->top->ops->flush_now(d->top);
	if (req->len_bytes > NOW_BYTES_MAX || has_limits(d))
		return -EAGAIN;
	switch (req->op) {
	case BLOCK_READ:
		return d->top->ops->read_now(d->top, vec_of(req), req->len_bytes, req->offset_bytes);
	case BLOCK_WRITE:
		return write_now(d, req);
	default:
		return -EAGAIN;
	}
}

static void front_submit(struct block_dev *b, struct block_req *req)
{
	io_pool_submit(front_of(b)->pool, req);
}

static void front_info(const struct block_dev *b, struct block_info *out)
{
	const struct front *d = front_of(b);
	bool is_writable = !d->top->is_readonly;

	*out = (struct block_info){
		.size_bytes = d->top->size_bytes,
		.is_readonly = !is_writable,
		.can_discard = is_writable,
		.can_write_zeroes = is_writable,
		.has_write_cache = true,
		.io = io_pool_has_uring(d->pool) && d->top->ops->plan ? "io_uring" : "threads",
	};
}

static void front_drain(struct block_dev *b)
{
	io_pool_drain(front_of(b)->pool);
}

static void front_close(struct block_dev *b)
{
	if (!b)
		return;
	struct front *d = front_of(b);
	io_pool_destroy(d->pool);
	layer_close(d->top);
	free(d->track);
	pthread_rwlock_destroy(&d->stack_lock);
	pthread_mutex_destroy(&d->seal_lock);
	pthread_mutex_destroy(&d->limit_lock);
	pthread_mutex_destroy(&d->settle_lock);
	pthread_cond_destroy(&d->settle_end);
	free(d);
}

static const struct block_ops front_ops = {
	.name = "layers",
	.submit = front_submit,
	.info = front_info,
	.drain = front_drain,
	.close = front_close,
	.try_now = front_try_now,
};

int block_open(struct block_dev **out, struct loop *loop, const struct block_open *o, struct error *err)
{
	struct front *d = calloc(1, sizeof(*d));

	if (!d)
		return error_set(err, -ENOMEM, "out of memory");
	d->dev.ops = &front_ops;
	d->next_rest = NOW_REST_MIN;
	d->bytes.per_s = o->max_bytes_per_s;
	d->ops.per_s = o->max_ops_per_s;
	pthread_rwlock_init(&d->stack_lock, NULL);
	pthread_mutex_init(&d->seal_lock, NULL);
	pthread_mutex_init(&d->limit_lock, NULL);
	pthread_mutex_init(&d->settle_lock, NULL);
	pthread_cond_init(&d->settle_end, NULL);
	d->is_unsettled = o->is_unsettled;
	d->settled = o->is_unsettled;
	int r = layer_open_stack(&d->top, o, err);
	if (r == 0)
		r = io_pool_create(&d->pool, loop, FRONT_THREADS, do_request, plan_request, d, err);
	if (r < 0) {
		front_close(&d->dev);
		return r;
	}
	*out = &d->dev;
	return 0;
}

/* ---- layers of a running device ---- */

int block_push_layer(struct block_dev *b, const struct block_open *top, struct error *err)
{
	struct front *d = front_of(b);
	struct layer *old = d->top, *l;
	int r;

	assert(b->ops == &front_ops);
	if (old->is_readonly && !top->is_snapshot)
		return error_set(err, -EROFS,
				 "the disk is read-only: a layer on top of it would hold nothing");
	if (top->is_snapshot) {
		front_drain(b);
		r = temp_layer_push(&l, old, err);
	} else {
		const struct layer_open lo = { .o = top, .is_writer = true, .no_backing = true };
		r = layer_open(&l, &lo, err);
		if (r < 0)
			return r;
		front_drain(b);
		r = qcow2_layer_stack(l, old, top->path, err);
		if (r < 0)
			layer_close(l);
	}
	if (r < 0)
		return r;
	pthread_rwlock_wrlock(&d->stack_lock);
	d->top = l;
	pthread_rwlock_unlock(&d->stack_lock);
	if (!old->is_readonly)
		d->needs_seal = true;
	return 0;
}

int block_keep_layer(struct block_dev *b, const char *path, struct error *err)
{
	assert(b->ops == &front_ops);
	return temp_layer_keep(front_of(b)->top, path, err);
}

/* That is not filled yet; there is at most one. */
static struct layer *kept_layer(struct block_dev *b)
{
	assert(b->ops == &front_ops);
	struct layer *l = front_of(b)->top;

	while (l && temp_layer_kept_fd(l) < 0)
		l = l->backing;
	return l;
}

void block_release_kept(struct block_dev *b)
{
	struct layer *l = kept_layer(b);

	if (l)
		temp_layer_release(l);
}

int block_save_kept(struct block_dev *b, const char *path, struct error *err)
{
	const struct block_open o = { .path = path, .format = "qcow2" };
	struct layer_open lo = { .o = &o, .is_writer = true, .no_backing = true };
	struct layer *to, *l = kept_layer(b);

	if (!l)
		return error_set(err, -EINVAL, "no throw-away layer is kept in '%s'", path);
	lo.fd = temp_layer_kept_fd(l);
	int r = layer_open(&to, &lo, err);

	if (r < 0)
		return r;
	/* What it stands on, so that clusters written in part are filled up from there. */
	to->backing = l->backing;
	r = temp_layer_save(l, to);
	if (r == 0)
		r = to->ops->flush(to);
	to->backing = NULL;
	to->ops->close(to);
	return r < 0 ? error_set(err, r, "cannot write '%s': %s", path, strerror(-r)) : 0;
}

int block_reset_layer(struct block_dev *b, struct error *err)
{
	assert(b->ops == &front_ops);
	front_drain(b);
	return temp_layer_reset(front_of(b)->top, err);
}

int block_drop_below(struct block_dev *b, struct error *err)
{
	struct front *d = front_of(b);

	assert(b->ops == &front_ops);
	front_drain(b);
	struct layer *below = spare_layer(d);

	if (!below || !qcow2_has_same_backing(d->top, below))
		return error_set(err, -EINVAL, "the disk still needs the layer below its top");
	pthread_rwlock_wrlock(&d->stack_lock);
	d->top->backing = below->backing;
	pthread_rwlock_unlock(&d->stack_lock);
	below->backing = NULL;
	layer_close(below);
	return 0;
}

bool block_layer_file(const struct block_dev *b, unsigned depth, dev_t *dev, ino_t *ino)
{
	const struct layer *l = front_of(b)->top;

	assert(b->ops == &front_ops);
	while (l && depth--)
		l = l->backing;
	if (!l)
		return false;
	*dev = l->dev;
	*ino = l->ino;
	return true;
}

int block_reopen_below(struct block_dev *b, const struct block_backing_rule *rule, struct error *err)
{
	struct front *d = front_of(b);
	struct layer *l;

	assert(b->ops == &front_ops);
	if (!layer_is_qcow2(d->top) || !d->top->backing || d->needs_seal)
		return error_set(err, -EINVAL, "the disk stands on nothing that could be opened again");
	int r = qcow2_open_backing(d->top, rule, &l, err);

	if (r < 0)
		return r;
	if (l->size_bytes != d->top->backing->size_bytes) {
		layer_close(l);
		return error_set(err, -EINVAL, "what the disk stands on has another size than before");
	}
	front_drain(b);
	pthread_rwlock_wrlock(&d->stack_lock);
	layer_close(d->top->backing);
	d->top->backing = l;
	pthread_rwlock_unlock(&d->stack_lock);
	return 0;
}

int block_reopen(struct block_dev *b, const struct block_open *o, struct error *err)
{
	struct front *d = front_of(b);
	struct layer *l;

	assert(b->ops == &front_ops);
	front_drain(b);
	int r = layer_open_stack(&l, o, err);
	if (r < 0)
		return r;
	if (l->size_bytes != d->top->size_bytes) {
		layer_close(l);
		return error_set(err, -EINVAL, "disk image '%s' has another size than the disk of the machine; take one of the same machine",
				 o->path);
	}
	pthread_rwlock_wrlock(&d->stack_lock);
	layer_close(d->top);
	d->top = l;
	pthread_rwlock_unlock(&d->stack_lock);
	d->needs_seal = false;
	return 0;
}
