/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop.
 *
 * How it works: one epoll set holds the watched descriptors, an eventfd (posts and stop) and a
 * timerfd.  Timers stand in one binary heap per vclock; the timerfd is programmed for the earliest
 * host time among the heads of the running clocks.  It may fire early (a timer was cancelled or
 * moved later): then a round finds nothing due and programs it again.
 *
 * Invariants
 *  1. `mutex` protects everything in struct loop; it is never held during a callback and is taken
 *     after the user's lock, never before it.
 *  2. A removed watch leaves the epoll set at once and its memory goes at the end of a round, on the
 *     loop's thread: an event already fetched never meets freed memory.
 *  3. A clock's heap has room for every timer created on it, so arming cannot fail.
 *  4. A round runs each post that was queued when it began and a bounded number of timers:
 *     callbacks that queue more cannot starve the descriptors.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>

#include "base/error.h"
#include "base/host.h"
#include "base/loop.h"

#define NS_PER_S	 1000000000LL
#define EVENTS_PER_ROUND 64
#define TIMERS_PER_ROUND 256

_Static_assert((int)LOOP_IN == (int)EPOLLIN && (int)LOOP_OUT == (int)EPOLLOUT &&
		       (int)LOOP_HUP == (int)EPOLLHUP && (int)LOOP_ERR == (int)EPOLLERR,
	       "events are epoll's");

/* ---- virtual clock ---- */

static int64_t host_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

void vclock_init(struct vclock *clk)
{
	atomic_init(&clk->seq, 0);
	atomic_init(&clk->is_running, false);
	atomic_init(&clk->offset_ns, 0);
}

/* A consistent pair of the clock's two words, and the host's time between their reads. */
static int64_t vclock_read(const struct vclock *clk, bool *is_running, int64_t *host_ns)
{
	for (;;) {
		uint32_t seq = atomic_load_explicit(&clk->seq, memory_order_acquire);
		if (seq & 1)
			continue;
		*is_running = atomic_load_explicit(&clk->is_running, memory_order_acquire);
		int64_t offset = atomic_load_explicit(&clk->offset_ns, memory_order_acquire);
		*host_ns = host_now_ns();
		if (atomic_load_explicit(&clk->seq, memory_order_acquire) == seq)
			return offset;
	}
}

int64_t vclock_now_ns(const struct vclock *clk)
{
	bool is_running;
	int64_t host_ns;
	int64_t offset = vclock_read(clk, &is_running, &host_ns);

	return is_running ? host_ns + offset : offset;
}

/* Writers are the machine's: one at a time, under its lock. */
static void vclock_change(struct vclock *clk, bool is_running)
{
	if (atomic_load(&clk->is_running) == is_running)
		return;
	atomic_fetch_add(&clk->seq, 1);
	int64_t host_ns = host_now_ns();
	int64_t offset = atomic_load(&clk->offset_ns);
	atomic_store(&clk->offset_ns, is_running ? offset - host_ns : offset + host_ns);
	atomic_store(&clk->is_running, is_running);
	atomic_fetch_add(&clk->seq, 1);
}

void vclock_start(struct vclock *clk)
{
	vclock_change(clk, true);
}

void vclock_stop(struct vclock *clk)
{
	vclock_change(clk, false);
}

void vclock_set(struct vclock *clk, int64_t now_ns)
{
	assert(!atomic_load(&clk->is_running));
	atomic_fetch_add(&clk->seq, 1);
	atomic_store(&clk->offset_ns, now_ns);
	atomic_fetch_add(&clk->seq, 1);
}

/* ---- loop ---- */

struct loop_fd {
	struct loop *loop;
	int fd;
	unsigned events; /* 0: not in the epoll set, which would still report hang-ups for ever */
	loop_fd_fn fn;
	void *arg;
	bool is_removed;
	struct loop_fd *next, **pprev; /* in loop.watches, or in loop.dead by next */
};

struct post {
	void (*fn)(void *arg);
	void *arg;
	struct post *next;
};

#define NOT_IN_HEAP SIZE_MAX

struct vtimer {
	struct loop *loop;
	struct clock_heap *heap;
	int64_t deadline_ns;
	size_t pos; /* in the heap, or NOT_IN_HEAP */
	void (*fn)(void *arg);
	void *arg;
};

struct clock_heap {
	struct vclock *clk;
	struct vtimer **timers;
	size_t n, cap;
	size_t ncreated;
	struct clock_heap *next;
};

struct loop {
	pthread_mutex_t *user_lock;
	pthread_mutex_t mutex;
	int epoll_fd, event_fd, timer_fd;
	struct loop_fd *watches, *dead;
	struct post *posts, **posts_tail;
	struct clock_heap *heaps;
	int64_t programmed_ns; /* host time the timerfd is set to; INT64_MAX: off */
	bool is_stopping;
	int stop_code;
};

static void user_lock(struct loop *l)
{
	if (l->user_lock)
		pthread_mutex_lock(l->user_lock);
}

static void user_unlock(struct loop *l)
{
	if (l->user_lock)
		pthread_mutex_unlock(l->user_lock);
}

static void wake(struct loop *l)
{
	uint64_t one = 1;
	ssize_t r = write(l->event_fd, &one, sizeof(one));
	(void)r; /* EAGAIN: the counter is full, so the loop wakes anyway */
}

int loop_create(struct loop **out, pthread_mutex_t *lock, struct error *err)
{
	struct loop *l = calloc(1, sizeof(*l));

	if (!l)
		return error_set(err, -ENOMEM, "no memory for an event loop");
	l->user_lock = lock;
	pthread_mutex_init(&l->mutex, NULL);
	l->posts_tail = &l->posts;
	l->programmed_ns = INT64_MAX;
	l->event_fd = l->timer_fd = -1;
	l->epoll_fd = host.epoll_create1(EPOLL_CLOEXEC);
	if (l->epoll_fd < 0)
		goto fail;
	l->event_fd = host.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->event_fd < 0)
		goto fail;
	l->timer_fd = host.timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (l->timer_fd < 0)
		goto fail;
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = &l->event_fd };
	if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->event_fd, &ev))
		goto fail;
	ev.data.ptr = &l->timer_fd;
	if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->timer_fd, &ev))
		goto fail;
	*out = l;
	return 0;
fail:;
	int e = -errno;
	error_set(err, e, "cannot create an event loop: %s", strerror(-e));
	loop_destroy(l);
	return e;
}

static void free_watches(struct loop_fd *w)
{
	while (w) {
		struct loop_fd *next = w->next;
		free(w);
		w = next;
	}
}

void loop_destroy(struct loop *l)
{
	if (!l)
		return;
	free_watches(l->watches);
	free_watches(l->dead);
	for (struct post *p = l->posts, *next; p; p = next) {
		next = p->next;
		free(p);
	}
	for (struct clock_heap *h = l->heaps, *next; h; h = next) {
		next = h->next;
		assert(h->ncreated == 0); /* timers go before their loop */
		free(h->timers);
		free(h);
	}
	if (l->epoll_fd >= 0)
		close(l->epoll_fd);
	if (l->event_fd >= 0)
		close(l->event_fd);
	if (l->timer_fd >= 0)
		close(l->timer_fd);
	pthread_mutex_destroy(&l->mutex);
	free(l);
}

void loop_stop(struct loop *l, int code)
{
	pthread_mutex_lock(&l->mutex);
	l->is_stopping = true;
	l->stop_code = code;
	pthread_mutex_unlock(&l->mutex);
	wake(l);
}

int loop_post(struct loop *l, void (*fn)(void *arg), void *arg)
{
	struct post *p = host.malloc(sizeof(*p));

	if (!p)
		return -ENOMEM;
	*p = (struct post){ fn, arg, NULL };
	pthread_mutex_lock(&l->mutex);
	*l->posts_tail = p;
	l->posts_tail = &p->next;
	pthread_mutex_unlock(&l->mutex);
	wake(l);
	return 0;
}

/* ---- descriptors ---- */

struct loop_fd *loop_fd_add(struct loop *l, int fd, unsigned events, loop_fd_fn fn, void *arg)
{
	struct loop_fd *w = host.malloc(sizeof(*w));

	if (!w)
		return NULL;
	*w = (struct loop_fd){ .loop = l, .fd = fd, .events = events, .fn = fn, .arg = arg };
	if (events) {
		struct epoll_event ev = { .events = events, .data.ptr = w };
		if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
			int e = errno;
			free(w);
			errno = e;
			return NULL;
		}
	}
	pthread_mutex_lock(&l->mutex);
	w->next = l->watches;
	w->pprev = &l->watches;
	if (w->next)
		w->next->pprev = &w->next;
	l->watches = w;
	pthread_mutex_unlock(&l->mutex);
	return w;
}

void loop_fd_modify(struct loop_fd *w, unsigned events)
{
	if (w->events == events)
		return;
	int op = !events ? EPOLL_CTL_DEL : !w->events ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
	struct epoll_event ev = { .events = events, .data.ptr = w };
	int r = epoll_ctl(w->loop->epoll_fd, op, w->fd, &ev);
	/* Adding again may lack memory for the watch: the descriptor then stays silent, and the
	 * next modify tries again. */
	if (r == 0 || op == EPOLL_CTL_DEL)
		w->events = events;
}

void loop_fd_remove(struct loop_fd *w)
{
	if (!w)
		return;
	struct loop *l = w->loop;

	assert(!w->is_removed);
	if (w->events)
		epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
	pthread_mutex_lock(&l->mutex);
	w->is_removed = true;
	*w->pprev = w->next;
	if (w->next)
		w->next->pprev = w->pprev;
	w->next = l->dead;
	l->dead = w;
	pthread_mutex_unlock(&l->mutex);
}

/* ---- timers ---- */

static void heap_put(struct clock_heap *h, size_t pos, struct vtimer *t)
{
	h->timers[pos] = t;
	t->pos = pos;
}

/* Move @t, which has its place at @pos to fill, to where it belongs. */
static void heap_sift(struct clock_heap *h, size_t pos, struct vtimer *t)
{
	while (pos && h->timers[(pos - 1) / 2]->deadline_ns > t->deadline_ns) {
		heap_put(h, pos, h->timers[(pos - 1) / 2]);
		pos = (pos - 1) / 2;
	}
	for (;;) {
		size_t child = 2 * pos + 1;
		if (child >= h->n)
			break;
		if (child + 1 < h->n && h->timers[child + 1]->deadline_ns < h->timers[child]->deadline_ns)
			child++;
		if (h->timers[child]->deadline_ns >= t->deadline_ns)
			break;
		heap_put(h, pos, h->timers[child]);
		pos = child;
	}
	heap_put(h, pos, t);
}

static void heap_remove(struct vtimer *t)
{
	struct clock_heap *h = t->heap;
	size_t pos = t->pos;

	if (pos == NOT_IN_HEAP)
		return;
	t->pos = NOT_IN_HEAP;
	struct vtimer *last = h->timers[--h->n];
	if (last != t)
		heap_sift(h, pos, last);
}

/* Host time of the earliest timer of a running clock. */
static int64_t earliest_host_ns(struct loop *l)
{
	int64_t first = INT64_MAX;

	for (struct clock_heap *h = l->heaps; h; h = h->next) {
		bool is_running;
		int64_t host_ns, at;
		int64_t offset = vclock_read(h->clk, &is_running, &host_ns);

		if (!h->n || !is_running)
			continue;
		if (__builtin_sub_overflow(h->timers[0]->deadline_ns, offset, &at))
			at = h->timers[0]->deadline_ns < 0 ? 0 : INT64_MAX;
		first = MIN(first, at);
	}
	return first;
}

/* With @only_earlier the timerfd is left alone if it fires soon enough already. */
static void program_timer(struct loop *l, bool only_earlier)
{
	int64_t at = earliest_host_ns(l);

	if (at != INT64_MAX)
		at = MAX(at, (int64_t)1); /* 0 would disarm */
	if (at == l->programmed_ns || (only_earlier && at > l->programmed_ns))
		return;
	struct itimerspec its = { 0 };
	if (at != INT64_MAX) {
		its.it_value.tv_sec = at / NS_PER_S;
		its.it_value.tv_nsec = at % NS_PER_S;
	}
	int r = timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
	assert(r == 0);
	(void)r;
	l->programmed_ns = at;
}

struct vtimer *vtimer_create(struct loop *l, struct vclock *clk, void (*fn)(void *arg), void *arg)
{
	struct clock_heap *h;
	struct vtimer *t = host.malloc(sizeof(*t));

	if (!t)
		return NULL;
	pthread_mutex_lock(&l->mutex);
	for (h = l->heaps; h && h->clk != clk; h = h->next)
		;
	if (!h) {
		h = calloc(1, sizeof(*h));
		if (!h)
			goto fail;
		h->clk = clk;
		h->next = l->heaps;
		l->heaps = h;
	}
	if (h->ncreated == h->cap) {
		size_t cap = h->cap ? 2 * h->cap : 16;
		struct vtimer **p = host.realloc(h->timers, cap * sizeof(*p));
		if (!p)
			goto fail;
		h->timers = p;
		h->cap = cap;
	}
	h->ncreated++;
	pthread_mutex_unlock(&l->mutex);
	*t = (struct vtimer){
		.loop = l, .heap = h, .deadline_ns = INT64_MAX, .pos = NOT_IN_HEAP, .fn = fn, .arg = arg
	};
	return t;
fail:
	pthread_mutex_unlock(&l->mutex);
	free(t);
	return NULL;
}

void vtimer_arm(struct vtimer *t, int64_t deadline_ns)
{
	struct loop *l = t->loop;
	struct clock_heap *h = t->heap;

	pthread_mutex_lock(&l->mutex);
	t->deadline_ns = deadline_ns;
	heap_sift(h, t->pos == NOT_IN_HEAP ? h->n++ : t->pos, t);
	program_timer(l, true);
	pthread_mutex_unlock(&l->mutex);
}

void vtimer_cancel(struct vtimer *t)
{
	pthread_mutex_lock(&t->loop->mutex);
	heap_remove(t);
	pthread_mutex_unlock(&t->loop->mutex);
}

bool vtimer_is_armed(const struct vtimer *t)
{
	return t->pos != NOT_IN_HEAP;
}

int64_t vtimer_deadline_ns(const struct vtimer *t)
{
	return t->pos != NOT_IN_HEAP ? t->deadline_ns : INT64_MAX;
}

void vtimer_destroy(struct vtimer *t)
{
	if (!t)
		return;
	struct loop *l = t->loop;
	pthread_mutex_lock(&l->mutex);
	heap_remove(t);
	struct clock_heap *h = t->heap;
	if (--h->ncreated == 0) { /* the clock may go before the loop */
		struct clock_heap **pp = &l->heaps;
		while (*pp != h)
			pp = &(*pp)->next;
		*pp = h->next;
		free(h->timers);
		free(h);
	}
	pthread_mutex_unlock(&l->mutex);
	free(t);
}

void loop_clock_changed(struct loop *l)
{
	pthread_mutex_lock(&l->mutex);
	program_timer(l, false);
	pthread_mutex_unlock(&l->mutex);
	wake(l);
}

/* ---- a round ---- */

/* The first timer that is due, taken out of its heap. */
static struct vtimer *take_due(struct loop *l)
{
	for (struct clock_heap *h = l->heaps; h; h = h->next) {
		bool is_running;
		int64_t host_ns;
		int64_t offset = vclock_read(h->clk, &is_running, &host_ns);

		if (h->n && is_running && h->timers[0]->deadline_ns <= host_ns + offset) {
			struct vtimer *t = h->timers[0];
			heap_remove(t);
			return t;
		}
	}
	return NULL;
}

static int run_timers(struct loop *l)
{
	int n = 0;

	while (n < TIMERS_PER_ROUND) {
		user_lock(l);
		pthread_mutex_lock(&l->mutex);
		struct vtimer *t = take_due(l);
		void (*fn)(void *) = t ? t->fn : NULL;
		void *arg = t ? t->arg : NULL;
		pthread_mutex_unlock(&l->mutex);
		if (fn)
			fn(arg); /* may destroy the timer */
		user_unlock(l);
		if (!fn)
			break;
		n++;
	}
	pthread_mutex_lock(&l->mutex);
	program_timer(l, false);
	pthread_mutex_unlock(&l->mutex);
	return n;
}

static int run_posts(struct loop *l)
{
	int n = 0;

	pthread_mutex_lock(&l->mutex);
	struct post *p = l->posts;
	l->posts = NULL;
	l->posts_tail = &l->posts;
	pthread_mutex_unlock(&l->mutex);
	while (p) {
		struct post *next = p->next;
		user_lock(l);
		p->fn(p->arg);
		user_unlock(l);
		free(p);
		p = next;
		n++;
	}
	return n;
}

int loop_run_once(struct loop *l, int timeout_ms)
{
	struct epoll_event evs[EVENTS_PER_ROUND];
	int n = epoll_wait(l->epoll_fd, evs, EVENTS_PER_ROUND, timeout_ms);
	int ncalled = 0;

	if (n < 0) {
		assert(errno == EINTR);
		return 0;
	}
	for (int i = 0; i < n; i++) {
		uint64_t count;
		ssize_t r;

		if (evs[i].data.ptr == &l->event_fd) {
			r = read(l->event_fd, &count, sizeof(count));
			(void)r; /* EAGAIN: somebody else's round took it */
			ncalled += run_posts(l);
		} else if (evs[i].data.ptr == &l->timer_fd) {
			r = read(l->timer_fd, &count, sizeof(count));
			(void)r; /* EAGAIN: programmed anew since */
			pthread_mutex_lock(&l->mutex);
			l->programmed_ns = INT64_MAX;
			pthread_mutex_unlock(&l->mutex);
		} else {
			struct loop_fd *w = evs[i].data.ptr;
			user_lock(l);
			unsigned events = evs[i].events & (w->events | LOOP_HUP | LOOP_ERR);
			if (!w->is_removed && w->events && events) {
				w->fn(w->arg, w->fd, events);
				ncalled++;
			}
			user_unlock(l);
		}
	}
	ncalled += run_timers(l);

	pthread_mutex_lock(&l->mutex);
	struct loop_fd *dead = l->dead;
	l->dead = NULL;
	pthread_mutex_unlock(&l->mutex);
	free_watches(dead);
	return ncalled;
}

int loop_run(struct loop *l)
{
	for (;;) {
		pthread_mutex_lock(&l->mutex);
		bool is_stopping = l->is_stopping;
		int code = l->stop_code;
		l->is_stopping = false;
		pthread_mutex_unlock(&l->mutex);
		if (is_stopping)
			return code;
		loop_run_once(l, -1);
	}
}
