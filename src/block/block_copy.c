/* SPDX-License-Identifier: Apache-2.0 */
/* Copying a disk while a guest uses it: which clusters were written, and the content by other threads than the machine's. */
#include <errno.h>
#include <stdlib.h>

#include "block/block_int.h"

/* ---- what was written ---- */

void front_note(struct front *d, const struct block_req *req)
{
	struct block_track *t = d->track;

	if (!t || !req->len_bytes ||
	    (req->op != BLOCK_WRITE && req->op != BLOCK_WRITE_ZEROES && req->op != BLOCK_DISCARD))
		return;
	uint64_t first = req->offset_bytes / BLOCK_TRACK_BYTES;
	uint64_t last = (req->offset_bytes + req->len_bytes - 1) / BLOCK_TRACK_BYTES;

	for (uint64_t c = first; c <= last; c++)
		atomic_fetch_or_explicit(&t->bits[c / 64], 1ULL << c % 64, memory_order_release);
}

uint64_t block_track_words(const struct block_dev *b)
{
	return front_of(b)->top->size_bytes / BLOCK_TRACK_BYTES / 64 + 1;
}

int block_track_begin(struct block_dev *b, struct error *err)
{
	struct front *d = front_of(b);
	uint64_t nwords = block_track_words(b);
	struct block_track *t = calloc(1, sizeof(*t) + nwords * sizeof(t->bits[0]));

	if (!t)
		return error_set(err, -ENOMEM, "no memory to note what is written to a disk");
	t->nwords = nwords;
	io_pool_drain(d->pool);
	free(d->track);
	d->track = t;
	return 0;
}

void block_track_end(struct block_dev *b)
{
	struct front *d = front_of(b);

	io_pool_drain(d->pool);
	free(d->track);
	d->track = NULL;
}

void block_track_collect(struct block_dev *b, uint64_t *bits)
{
	struct block_track *t = front_of(b)->track;

	for (uint64_t i = 0; t && i < t->nwords; i++)
		if (atomic_load_explicit(&t->bits[i], memory_order_relaxed))
			bits[i] |= atomic_exchange_explicit(&t->bits[i], 0, memory_order_acquire);
}

/* ---- the content ---- */

/* Takes stack_lock for reading; 0 or -EIO, and then not. */
static int enter(struct front *d, uint64_t at, uint64_t len)
{
	pthread_rwlock_rdlock(&d->stack_lock);
	uint64_t size = d->top->size_bytes;

	if (!((at | len) % BLOCK_SECTOR) && at <= size && len <= size - at)
		return 0;
	pthread_rwlock_unlock(&d->stack_lock);
	return -EIO;
}

static int leave(struct front *d, int r)
{
	pthread_rwlock_unlock(&d->stack_lock);
	return r;
}

int block_copy_status(struct block_dev *b, uint64_t at, uint64_t len, bool *is_zero, uint64_t *run)
{
	struct front *d = front_of(b);
	enum layer_status st;
	int r = len ? enter(d, at, len) : -EIO;

	if (r < 0)
		return r;
	r = leave(d, layer_status_through(d->top, NULL, len, at, &st, run));
	*is_zero = r == 0 && st != LAYER_DATA;
	return r;
}

int block_copy_read(struct block_dev *b, void *buf, uint64_t at, uint64_t len)
{
	struct front *d = front_of(b);
	struct iovec iov = { buf, len };
	int r = enter(d, at, len);

	return r < 0 ? r : leave(d, d->top->ops->read(d->top, (struct io_vec){ &iov, 1, 0 }, len, at));
}

/* As enter(), for what changes the disk. */
static int enter_writing(struct front *d, uint64_t at, uint64_t len)
{
	int r = enter(d, at, len);

	return r == 0 && d->top->is_readonly ? leave(d, -EROFS) : r;
}

int block_copy_write(struct block_dev *b, const void *buf, uint64_t at, uint64_t len)
{
	struct front *d = front_of(b);
	struct iovec iov = { (void *)(uintptr_t)buf, len };
	int r = enter_writing(d, at, len);

	return r < 0 ? r : leave(d, d->top->ops->write(d->top, (struct io_vec){ &iov, 1, 0 }, len, at));
}

int block_copy_zero(struct block_dev *b, uint64_t at, uint64_t len)
{
	struct front *d = front_of(b);
	int r = enter_writing(d, at, len);

	return r < 0 ? r : leave(d, d->top->ops->zero(d->top, len, at, true));
}

int block_copy_flush(struct block_dev *b)
{
	struct front *d = front_of(b);
	int r = enter_writing(d, 0, 0);

	return r < 0 ? r : leave(d, d->top->ops->flush(d->top));
}
