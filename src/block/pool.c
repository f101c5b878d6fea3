/* SPDX-License-Identifier: Apache-2.0 */
#include "block/pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/host.h"
#include "base/log.h"
#include "block/uring.h"

#define IO_THREADS_MAX 16

struct req_list {
	struct block_req *first, *last;
};

struct io_pool {
	/* Constant after creation. */
	int (*work)(void *ctx, struct block_req *req);
	bool (*plan)(void *ctx, const struct block_req *req, struct layer_plan *out);
	void *ctx;
	struct uring *uring; /* NULL: threads do everything */
	struct loop_fd *uring_watch;
	int done_fd; /* eventfd: completions wait */
	struct loop_fd *watch;
	unsigned nthreads;
	pthread_t threads[IO_THREADS_MAX];

	/* Under the machine's lock. */
	unsigned in_flight; /* submitted, callback not yet run */

	/* Under @lock. */
	pthread_mutex_t lock;
	pthread_cond_t has_todo, has_done;
	struct req_list todo, done;
	bool is_ending;
};

static void list_add(struct req_list *l, struct block_req *req)
{
	req->priv[0] = NULL;
	if (l->last)
		l->last->priv[0] = req;
	else
		l->first = req;
	l->last = req;
}

static struct block_req *list_take(struct req_list *l)
{
	struct block_req *req = l->first;

	if (req) {
		l->first = req->priv[0];
		if (!l->first)
			l->last = NULL;
	}
	return req;
}

static void *worker_main(void *arg)
{
	struct io_pool *p = arg;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct block_req *req = list_take(&p->todo);
		if (!req) {
			if (p->is_ending)
				break;
			pthread_cond_wait(&p->has_todo, &p->lock);
			continue;
		}
		pthread_mutex_unlock(&p->lock);
		int r = p->work(p->ctx, req);
		pthread_mutex_lock(&p->lock);
		req->priv[1] = (void *)(intptr_t)r;
		bool was_empty = !p->done.first;
		list_add(&p->done, req);
		pthread_cond_signal(&p->has_done);
		if (was_empty) {
			/* Can't fail: the counter is far from its end, and a full one wakes as well. */
			uint64_t one = 1;
			ssize_t n = write(p->done_fd, &one, sizeof(one));
			assert(n == sizeof(one) || errno == EAGAIN);
		}
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* Runs the callbacks of everything done so far, under the machine's lock.  One by one: a callback may
 * drain or submit. */
static void run_done(struct io_pool *p)
{
	for (;;) {
		pthread_mutex_lock(&p->lock);
		struct block_req *req = list_take(&p->done);
		pthread_mutex_unlock(&p->lock);
		if (!req)
			return;
		p->in_flight--;
		req->done(req, (int)(intptr_t)req->priv[1]);
	}
}

static void on_done_fd(void *arg, int fd, unsigned events)
{
	uint64_t n;

	(void)events;
	if (read(fd, &n, sizeof(n)) < 0)
		assert(errno == EAGAIN); /* a drain was faster */
	run_done(arg);
}

/* ---- io_uring: all under the machine's lock ---- */

static void give_to_threads(struct io_pool *p, struct block_req *req)
{
	pthread_mutex_lock(&p->lock);
	list_add(&p->todo, req);
	pthread_cond_signal(&p->has_todo);
	pthread_mutex_unlock(&p->lock);
}

/* One by one, as run_done(). */
static void run_uring(struct io_pool *p)
{
	struct block_req *req;
	enum uring_event e;
	int result;

	while (p->uring && (e = uring_next(p->uring, &req, &result)) != URING_NOTHING) {
		if (e == URING_NOT_DONE) {
			give_to_threads(p, req);
			continue;
		}
		p->in_flight--;
		req->done(req, result);
	}
}

static void on_uring(void *arg, int fd, unsigned events)
{
	(void)fd;
	(void)events;
	run_uring(arg);
}

bool io_pool_has_uring(const struct io_pool *p)
{
	return p->uring;
}

/* Where it cannot be had, threads do. */
static void start_uring(struct io_pool *p, struct loop *loop)
{
	int r = p->plan ? uring_create(&p->uring) : -ENOSYS;

	if (r < 0) {
		log_debug("block", "no io_uring: %s", strerror(-r));
		return;
	}
	p->uring_watch = loop_fd_add(loop, uring_fd(p->uring), LOOP_IN, on_uring, p);
	if (!p->uring_watch) {
		uring_destroy(p->uring);
		p->uring = NULL;
	}
}

void io_pool_submit(struct io_pool *p, struct block_req *req)
{
	struct layer_plan *plan = p->uring ? uring_plan(p->uring) : NULL;

	p->in_flight++;
	if (!plan || !p->plan(p->ctx, req, plan) || !uring_submit(p->uring, req, plan))
		give_to_threads(p, req);
}

void io_pool_drain(struct io_pool *p)
{
	while (p->in_flight) {
		if (p->uring && uring_in_flight(p->uring)) {
			uring_wait(p->uring);
			run_uring(p);
			continue;
		}
		pthread_mutex_lock(&p->lock);
		while (!p->done.first)
			pthread_cond_wait(&p->has_done, &p->lock);
		pthread_mutex_unlock(&p->lock);
		run_done(p);
	}
}

void io_pool_destroy(struct io_pool *p)
{
	if (!p)
		return;
	if (p->nthreads)
		io_pool_drain(p);
	pthread_mutex_lock(&p->lock);
	p->is_ending = true;
	pthread_cond_broadcast(&p->has_todo);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->nthreads; i++)
		pthread_join(p->threads[i], NULL);
	loop_fd_remove(p->uring_watch);
	uring_destroy(p->uring);
	loop_fd_remove(p->watch);
	if (p->done_fd >= 0)
		close(p->done_fd);
	pthread_cond_destroy(&p->has_todo);
	pthread_cond_destroy(&p->has_done);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

int io_pool_create(struct io_pool **out, struct loop *loop, unsigned nthreads,
		   int (*work)(void *ctx, struct block_req *req),
		   bool (*plan)(void *ctx, const struct block_req *req, struct layer_plan *out),
		   void *ctx, struct error *err)
{
	assert(nthreads >= 1 && nthreads <= IO_THREADS_MAX);
	struct io_pool *p = calloc(1, sizeof(*p));
	if (!p)
		return error_set(err, -ENOMEM, "out of memory");
	p->work = work;
	p->plan = plan;
	p->ctx = ctx;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->has_todo, NULL);
	pthread_cond_init(&p->has_done, NULL);
	int r;
	p->done_fd = host.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->done_fd < 0) {
		r = error_set(err, -errno, "cannot make an eventfd: %s", strerror(errno));
		goto fail;
	}
	p->watch = loop_fd_add(loop, p->done_fd, LOOP_IN, on_done_fd, p);
	if (!p->watch) {
		r = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	/* The process's signals are for its own threads. */
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (r = 0; p->nthreads < nthreads && !r;) {
		r = -pthread_create(&p->threads[p->nthreads], NULL, worker_main, p);
		if (!r)
			p->nthreads++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0) {
		error_set(err, r, "cannot start an I/O thread: %s", strerror(-r));
		goto fail;
	}
	start_uring(p, loop);
	*out = p;
	return 0;
fail:
	io_pool_destroy(p);
	return r;
}
