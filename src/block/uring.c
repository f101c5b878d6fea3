/* SPDX-License-Identifier: Apache-2.0 */
#include "block/uring.h"

#include <errno.h>

#ifdef HAVE_LIBURING
#include <liburing.h>

#include "base/host.h"

#define SLOTS 64
/* Larger transfers from and to the page cache are copies that take long, and the kernel may do them inside the submit,
 * under the machine's lock: for threads, which are as fast with these. */
#define BUFFERED_MAX (128 * KIB)

struct slot {
	struct block_req *req; /* NULL: free */
	struct layer_plan plan;
	uint64_t done; /* bytes */
	enum uring_op op;
	struct iovec iov[IO_IOV_BATCH];
};

struct uring {
	struct io_uring ring;
	unsigned in_flight;
	struct slot slots[SLOTS];
};

int uring_create(struct uring **out)
{
	struct uring *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return -ENOMEM;
	r = host.uring_init(SLOTS, &u->ring);
	if (r < 0) {
		free(u);
		return r;
	}
	r = io_uring_ring_dontfork(&u->ring);
	if (r < 0) {
		io_uring_queue_exit(&u->ring);
		free(u);
		return r;
	}
	*out = u;
	return 0;
}

void uring_destroy(struct uring *u)
{
	if (!u)
		return;
	io_uring_queue_exit(&u->ring);
	free(u);
}

int uring_fd(const struct uring *u)
{
	return u->ring.ring_fd;
}

unsigned uring_in_flight(const struct uring *u)
{
	return u->in_flight;
}

/* ---- one operation ---- */

static struct io_vec vec_at(const struct slot *s)
{
	return (struct io_vec){ s->req->iov, s->req->niov, s->done };
}

/* An entry, if need be after those that were left behind; NULL: the kernel takes none. */
static struct io_uring_sqe *get_entry(struct uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (sqe)
		return sqe;
	(void)host.uring_submit(&u->ring); /* whether it helped shows in the next line */
	return io_uring_get_sqe(&u->ring);
}

/*
 * Into the kernel.  False: it did not take it.  The entry cannot be taken back, so it becomes one that does nothing, and
 * goes along with the next.
 */
static bool enter(struct uring *u, struct slot *s, struct io_uring_sqe *sqe)
{
	int r;

	io_uring_sqe_set_data(sqe, s);
	do
		r = host.uring_submit(&u->ring);
	while (r == -EINTR || (r > 0 && io_uring_sq_ready(&u->ring)));
	if (!io_uring_sq_ready(&u->ring))
		return true;
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, NULL);
	return false;
}

/* The next piece of a transfer.  False: not by the ring. */
static bool start_transfer(struct uring *u, struct slot *s)
{
	const struct image_file *f = s->plan.file;
	uint64_t got;
	unsigned n = io_cut(vec_at(s), s->req->len_bytes - s->done, s->iov, &got);
	struct io_uring_sqe *sqe;

	if (!n || (f->is_direct && !io_is_aligned(s->iov, n)))
		return false;
	sqe = get_entry(u);
	if (!sqe)
		return false;
	if (s->op == URING_WRITE)
		io_uring_prep_writev(sqe, f->fd, s->iov, n, s->plan.at + s->done);
	else
		io_uring_prep_readv(sqe, f->fd, s->iov, n, s->plan.at + s->done);
	return enter(u, s, sqe);
}

/* 0: there was nothing to do; the sticky error; -EAGAIN: under way; -EBUSY: not by the ring. */
static int start_sync(struct uring *u, struct slot *s)
{
	int r = io_sync_begin(s->plan.sync);
	struct io_uring_sqe *sqe;

	if (r != -EAGAIN)
		return r;
	s->op = URING_SYNC;
	sqe = get_entry(u);
	if (sqe)
		io_uring_prep_fsync(sqe, s->plan.file->fd, IORING_FSYNC_DATASYNC);
	if (sqe && enter(u, s, sqe))
		return -EAGAIN;
	io_sync_cancel(s->plan.sync);
	return -EBUSY;
}

/* No bytes are moved by it any more. */
static void end_plan(struct slot *s)
{
	void (*end)(struct layer_plan *) = s->plan.end;

	s->plan.end = NULL;
	if (end)
		end(&s->plan);
}

struct layer_plan *uring_plan(struct uring *u)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (!u->slots[i].req)
			return &u->slots[i].plan;
	return NULL;
}

bool uring_submit(struct uring *u, struct block_req *req, struct layer_plan *plan)
{
	struct slot *s = container_of(plan, struct slot, plan);

	s->req = req;
	s->done = 0;
	s->op = req->op == BLOCK_WRITE ? URING_WRITE : URING_READ;
	bool is_small = plan->file->is_direct || req->len_bytes <= BUFFERED_MAX;

	if (is_small && (req->op == BLOCK_FLUSH ? start_sync(u, s) == -EAGAIN : start_transfer(u, s))) {
		u->in_flight++;
		return true;
	}
	end_plan(s);
	s->req = NULL;
	return false;
}

/* ---- completion ---- */

static bool was_not_tried(int res)
{
	return res == -EINTR || res == -EAGAIN || res == -ECANCELED;
}

static enum uring_event finish(struct uring *u, struct slot *s, enum uring_event event)
{
	end_plan(s);
	s->req = NULL;
	u->in_flight--;
	return event;
}

/* All bytes are where they belong. */
static enum uring_event transferred(struct uring *u, struct slot *s, int *result)
{
	if (s->op == URING_WRITE)
		io_sync_note(s->plan.sync);
	end_plan(s);
	*result = 0;
	if (s->op == URING_READ || !s->req->is_fua)
		return finish(u, s, URING_DONE);
	*result = start_sync(u, s);
	if (*result == -EAGAIN)
		return URING_NOTHING;
	return finish(u, s, *result == -EBUSY ? URING_NOT_DONE : URING_DONE);
}

static enum uring_event synced(struct uring *u, struct slot *s, int res, int *result)
{
	if (was_not_tried(res)) {
		io_sync_cancel(s->plan.sync);
		return finish(u, s, URING_NOT_DONE);
	}
	*result = io_sync_end(s->plan.sync, MIN(res, 0));
	return finish(u, s, URING_DONE);
}

/* URING_NOTHING: it goes on. */
static enum uring_event completed(struct uring *u, struct slot *s, int res, int *result)
{
	res = host.uring_result(s->op, s->plan.file->fd, res);
	if (s->op == URING_SYNC)
		return synced(u, s, res, result);
	if (res <= 0)
		return finish(u, s, URING_NOT_DONE);
	s->done += (uint64_t)res;
	if (s->done == s->req->len_bytes)
		return transferred(u, s, result);
	return start_transfer(u, s) ? URING_NOTHING : finish(u, s, URING_NOT_DONE);
}

enum uring_event uring_next(struct uring *u, struct block_req **req, int *result)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&u->ring, &cqe) == 0 && cqe) {
		struct slot *s = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&u->ring, cqe);
		if (!s)
			continue; /* nothing, left behind by enter() */
		*req = s->req;
		enum uring_event e = completed(u, s, res, result);
		if (e != URING_NOTHING)
			return e;
	}
	return URING_NOTHING;
}

void uring_wait(struct uring *u)
{
	struct io_uring_cqe *cqe;

	while (io_uring_wait_cqe(&u->ring, &cqe) == -EINTR)
		continue;
}

#else /* built without liburing */

int uring_create(struct uring **out)
{
	return -ENOSYS;
}

void uring_destroy(struct uring *u)
{
}

int uring_fd(const struct uring *u)
{
	return -1;
}

unsigned uring_in_flight(const struct uring *u)
{
	return 0;
}

struct layer_plan *uring_plan(struct uring *u)
{
	return NULL;
}

bool uring_submit(struct uring *u, struct block_req *req, struct layer_plan *plan)
{
	return false;
}

enum uring_event uring_next(struct uring *u, struct block_req **req, int *result)
{
	return URING_NOTHING;
}

void uring_wait(struct uring *u)
{
}

#endif
