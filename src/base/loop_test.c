/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/unit.h"
#include "base/error.h"
#include "base/host.h"
#include "base/loop.h"

#define MS 1000000LL

struct fix {
	pthread_mutex_t lock;
	struct loop *loop;
	struct vclock clk;
};

static int setup(void **state)
{
	static struct fix f;

	pthread_mutex_init(&f.lock, NULL);
	if (loop_create(&f.loop, &f.lock, NULL))
		return -1;
	vclock_init(&f.clk);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fix *f = *state;

	loop_destroy(f->loop);
	pthread_mutex_destroy(&f->lock);
	return 0;
}

/* A callback must run under the lock. */
static void assert_locked(struct fix *f)
{
	assert_int_equal(pthread_mutex_trylock(&f->lock), EBUSY);
}

static void vclock_runs_stops_and_jumps(void **state)
{
	struct vclock c;

	vclock_init(&c);
	assert_int_equal(vclock_now_ns(&c), 0);
	usleep(2000);
	assert_int_equal(vclock_now_ns(&c), 0);
	vclock_start(&c);
	usleep(5000);
	int64_t t = vclock_now_ns(&c);
	assert_true(t >= 5 * MS);
	vclock_start(&c); /* idempotent */
	vclock_stop(&c);
	int64_t stopped = vclock_now_ns(&c);
	assert_true(stopped >= t);
	usleep(2000);
	assert_int_equal(vclock_now_ns(&c), stopped);
	vclock_set(&c, 1000);
	assert_int_equal(vclock_now_ns(&c), 1000);
	vclock_start(&c);
	assert_true(vclock_now_ns(&c) >= 1000 && vclock_now_ns(&c) < 1000 + 1000 * MS);
}

static struct vclock shared_clk;
static atomic_bool reader_done;
static void *clock_reader(void *arg)
{
	int64_t last = 0;
	uintptr_t backwards = 0;

	while (!atomic_load(&reader_done)) {
		int64_t now = vclock_now_ns(&shared_clk);
		backwards += now < last;
		last = now;
	}
	return (void *)backwards;
}

static void vclock_never_goes_back_for_other_threads(void **state)
{
	pthread_t th;
	void *backwards;

	vclock_init(&shared_clk);
	atomic_store(&reader_done, false);
	assert_int_equal(pthread_create(&th, NULL, clock_reader, NULL), 0);
	for (int i = 0; i < 20000; i++) {
		vclock_start(&shared_clk);
		vclock_stop(&shared_clk);
	}
	atomic_store(&reader_done, true);
	pthread_join(th, &backwards);
	assert_null(backwards);
}

struct fired {
	struct fix *f;
	struct vtimer *t[4];
	int order[16];
	int n;
};
static struct fired fired;

static void on_timer(void *arg)
{
	assert_locked(fired.f);
	fired.order[fired.n++ % 16] = (int)(intptr_t)arg;
}

static void run_until(struct loop *l, const int *counter, int want, int64_t limit_ms)
{
	struct vclock c;

	vclock_init(&c);
	vclock_start(&c);
	while (*counter < want && vclock_now_ns(&c) < limit_ms * MS)
		loop_run_once(l, 100);
}

static void timers_fire_in_order(void **state)
{
	struct fix *f = *state;

	fired = (struct fired){ .f = f };
	for (intptr_t i = 0; i < 4; i++) {
		fired.t[i] = vtimer_create(f->loop, &f->clk, on_timer, (void *)i);
		assert_non_null(fired.t[i]);
		assert_false(vtimer_is_armed(fired.t[i]));
		assert_int_equal(vtimer_deadline_ns(fired.t[i]), INT64_MAX);
	}
	vtimer_arm(fired.t[0], 30 * MS);
	vtimer_arm(fired.t[1], 10 * MS);
	vtimer_arm(fired.t[2], 20 * MS);
	vtimer_arm(fired.t[3], 15 * MS);
	vtimer_cancel(fired.t[3]);
	vtimer_cancel(fired.t[3]);
	assert_true(vtimer_is_armed(fired.t[1]));
	assert_int_equal(vtimer_deadline_ns(fired.t[1]), 10 * MS);

	assert_int_equal(loop_run_once(f->loop, 20), 0); /* the clock stands: nothing fires */
	assert_int_equal(fired.n, 0);
	vclock_start(&f->clk);
	loop_clock_changed(f->loop);
	run_until(f->loop, &fired.n, 3, 5000);
	assert_int_equal(fired.n, 3);
	assert_true(vclock_now_ns(&f->clk) >= 30 * MS);
	assert_int_equal(fired.order[0], 1);
	assert_int_equal(fired.order[1], 2);
	assert_int_equal(fired.order[2], 0);
	assert_false(vtimer_is_armed(fired.t[0]));

	/* Late and ancient deadlines fire at once, far ones not. */
	vtimer_arm(fired.t[0], INT64_MIN);
	vtimer_arm(fired.t[1], INT64_MAX);
	run_until(f->loop, &fired.n, 4, 5000);
	assert_int_equal(fired.n, 4);
	assert_int_equal(loop_run_once(f->loop, 5), 0);
	vclock_stop(&f->clk);
	loop_clock_changed(f->loop);
	vtimer_arm(fired.t[2], 0);
	loop_run_once(f->loop, 0);
	loop_run_once(f->loop, 10);
	assert_int_equal(fired.n, 4); /* paused */
	for (int i = 0; i < 4; i++)
		vtimer_destroy(fired.t[i]);
	vtimer_destroy(NULL);
}

static void timers_random_against_sorted_list(void **state)
{
	enum { N = 64 };
	struct fix *f = *state;
	struct vtimer *t[N];
	int64_t want[N];
	unsigned seed = 4711;
	int expected = 0;

	fired = (struct fired){ .f = f };
	for (intptr_t i = 0; i < N; i++) {
		t[i] = vtimer_create(f->loop, &f->clk, on_timer, (void *)i);
		want[i] = INT64_MAX;
	}
	for (int step = 0; step < 5000; step++) {
		int i = rand_r(&seed) % N;
		if (rand_r(&seed) % 3) {
			want[i] = rand_r(&seed) % 1000;
			vtimer_arm(t[i], want[i]);
		} else {
			want[i] = INT64_MAX;
			vtimer_cancel(t[i]);
		}
	}
	for (int i = 0; i < N; i++) {
		assert_int_equal(vtimer_deadline_ns(t[i]), want[i]);
		expected += want[i] != INT64_MAX;
	}
	vclock_set(&f->clk, 1000000);
	vclock_start(&f->clk);
	loop_clock_changed(f->loop);
	int64_t last = -1;
	while (fired.n < expected) {
		int before = fired.n;
		fired.n = 0;
		int n = loop_run_once(f->loop, 1000);
		for (int k = 0; k < MIN(fired.n, 16); k++)
			if (fired.n <= 16) {
				assert_true(want[fired.order[k]] >= last);
				last = want[fired.order[k]];
			}
		fired.n += before;
		if (!n)
			break;
	}
	assert_int_equal(fired.n, expected);
	for (int i = 0; i < N; i++)
		vtimer_destroy(t[i]);
}

static void on_timer_rearm(void *arg)
{
	struct fired *x = arg;

	assert_locked(x->f);
	x->n++;
	vtimer_arm(x->t[0], 0); /* in the past for ever */
}

static void on_timer_destroy_self_and_other(void *arg)
{
	struct fired *x = arg;

	x->n++;
	vtimer_destroy(x->t[1]);
	vtimer_destroy(x->t[2]);
	x->t[1] = x->t[2] = NULL;
}

static void on_readable(void *arg, int fd, unsigned events)
{
	char c;

	assert_true(events & LOOP_IN);
	assert_int_equal(read(fd, &c, 1), 1);
	++*(int *)arg;
}

static void endless_timer_does_not_starve(void **state)
{
	struct fix *f = *state;
	struct fired x = { .f = f };
	int sv[2], nread = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	vclock_start(&f->clk);
	x.t[0] = vtimer_create(f->loop, &f->clk, on_timer_rearm, &x);
	vtimer_arm(x.t[0], 0);
	struct loop_fd *w = loop_fd_add(f->loop, sv[0], LOOP_IN, on_readable, &nread);
	loop_run_once(f->loop, 1000);
	assert_true(x.n > 0);
	assert_int_equal(write(sv[1], "ab", 2), 2);
	run_until(f->loop, &nread, 2, 5000);
	assert_int_equal(nread, 2);
	vtimer_destroy(x.t[0]);

	x.n = 0;
	x.t[1] = vtimer_create(f->loop, &f->clk, on_timer_destroy_self_and_other, &x);
	x.t[2] = vtimer_create(f->loop, &f->clk, on_timer_destroy_self_and_other, &x);
	vtimer_arm(x.t[1], 0);
	vtimer_arm(x.t[2], 0);
	run_until(f->loop, &x.n, 1, 5000);
	assert_int_equal(loop_run_once(f->loop, 0), 0);
	assert_int_equal(x.n, 1); /* the second died before it fired */
	loop_fd_remove(w);
	close(sv[0]);
	close(sv[1]);
}

struct killer {
	struct loop_fd *w[2];
	int n;
};

static void on_readable_remove_all(void *arg, int fd, unsigned events)
{
	struct killer *k = arg;

	k->n++;
	for (int i = 0; i < 2; i++)
		loop_fd_remove(k->w[i]);
}

static void removal_inside_callbacks(void **state)
{
	struct fix *f = *state;
	struct killer k = { .n = 0 };
	int sv[2][2];

	for (int i = 0; i < 2; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv[i]), 0);
		assert_int_equal(write(sv[i][1], "a", 1), 1);
		k.w[i] = loop_fd_add(f->loop, sv[i][0], LOOP_IN, on_readable_remove_all, &k);
		assert_non_null(k.w[i]);
	}
	loop_run_once(f->loop, 1000); /* both are ready; the first removes both */
	loop_run_once(f->loop, 0);
	assert_int_equal(k.n, 1);
	loop_fd_remove(NULL);
	for (int i = 0; i < 2; i++) {
		close(sv[i][0]);
		close(sv[i][1]);
	}
}

static unsigned seen_events;
static int nseen;
static void on_any(void *arg, int fd, unsigned events)
{
	seen_events |= events;
	nseen++;
}

static void modify_and_hang_up(void **state)
{
	struct fix *f = *state;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	struct loop_fd *w = loop_fd_add(f->loop, sv[0], LOOP_OUT, on_any, NULL);
	seen_events = 0;
	nseen = 0;
	loop_run_once(f->loop, 1000);
	assert_int_equal(seen_events, LOOP_OUT);
	loop_fd_modify(w, LOOP_IN);
	assert_int_equal(loop_run_once(f->loop, 5), 0);
	loop_fd_modify(w, 0);
	close(sv[1]);
	assert_int_equal(loop_run_once(f->loop, 5), 0); /* asleep: not even a hang-up */
	loop_fd_modify(w, LOOP_IN);
	seen_events = 0;
	loop_run_once(f->loop, 1000);
	assert_true(seen_events & LOOP_HUP);
	loop_fd_remove(w);

	_cleanup_close_ int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	assert_null(loop_fd_add(f->loop, file, LOOP_IN, on_any, NULL));
	assert_int_equal(errno, EPERM);
	close(sv[0]);
}

enum { POSTERS = 3, POSTS = 2000 };
static int nposted;
static struct fix *post_fix;
static void on_post(void *arg)
{
	assert_locked(post_fix);
	if (++nposted == POSTERS * POSTS)
		loop_stop(post_fix->loop, 7);
}

static void *poster(void *arg)
{
	for (int i = 0; i < POSTS; i++)
		if (loop_post(post_fix->loop, on_post, NULL))
			return arg;
	return NULL;
}

static void on_repost(void *arg)
{
	nposted++;
	loop_post(post_fix->loop, on_repost, NULL);
}

static void posts_from_many_threads(void **state)
{
	pthread_t th[POSTERS];

	post_fix = *state;
	nposted = 0;
	for (int i = 0; i < POSTERS; i++)
		assert_int_equal(pthread_create(&th[i], NULL, poster, &nposted), 0);
	assert_int_equal(loop_run(post_fix->loop), 7);
	for (int i = 0; i < POSTERS; i++) {
		void *r;
		pthread_join(th[i], &r);
		assert_null(r);
	}
	assert_int_equal(nposted, POSTERS * POSTS);

	nposted = 0;
	loop_post(post_fix->loop, on_repost, NULL);
	loop_run_once(post_fix->loop, 1000);
	assert_int_equal(nposted, 1); /* a post from a post waits for the next round */

	loop_stop(post_fix->loop, 3); /* stopped before it runs: returns at once */
	assert_int_equal(loop_run(post_fix->loop), 3);
}

/* Another thread, holding the lock, moves a sleeping loop's timer to now. */
static void *armer(void *arg)
{
	struct fired *x = arg;

	usleep(20000);
	pthread_mutex_lock(&x->f->lock);
	vtimer_arm(x->t[0], vclock_now_ns(&x->f->clk));
	pthread_mutex_unlock(&x->f->lock);
	return NULL;
}

static void on_timer_stop(void *arg)
{
	struct fired *x = arg;

	assert_locked(x->f);
	loop_stop(x->f->loop, 1);
}

static void arming_from_another_thread_wakes(void **state)
{
	struct fix *f = *state;
	struct fired x = { .f = f };
	pthread_t th;

	vclock_start(&f->clk);
	x.t[0] = vtimer_create(f->loop, &f->clk, on_timer_stop, &x);
	vtimer_arm(x.t[0], INT64_MAX / 2);
	assert_int_equal(pthread_create(&th, NULL, armer, &x), 0);
	assert_int_equal(loop_run(f->loop), 1); /* hangs (and the test times out) if it does not */
	pthread_join(th, NULL);
	vtimer_destroy(x.t[0]);
}

static void several_clocks(void **state)
{
	struct fix *f = *state;
	struct vclock other;

	vclock_init(&other);
	vclock_set(&other, -1000 * MS);
	fired = (struct fired){ .f = f };
	fired.t[0] = vtimer_create(f->loop, &f->clk, on_timer, (void *)0);
	fired.t[1] = vtimer_create(f->loop, &other, on_timer, (void *)1);
	vclock_start(&other);
	vtimer_arm(fired.t[0], 1 * MS);
	vtimer_arm(fired.t[1], -990 * MS);
	run_until(f->loop, &fired.n, 1, 5000);
	assert_int_equal(fired.n, 1);
	assert_int_equal(fired.order[0], 1);
	vtimer_destroy(fired.t[1]); /* `other` may go now */
	vclock_start(&f->clk);
	loop_clock_changed(f->loop);
	run_until(f->loop, &fired.n, 2, 5000);
	assert_int_equal(fired.n, 2);
	vtimer_destroy(fired.t[0]);
}

static int fail_two(int a, int b)
{
	errno = EMFILE;
	return -1;
}
static int fail_one(int a)
{
	errno = EMFILE;
	return -1;
}
static int fail_eventfd(unsigned a, int b)
{
	errno = EMFILE;
	return -1;
}
static void *fail_malloc(size_t n)
{
	return NULL;
}
static void *fail_realloc(void *p, size_t n)
{
	return NULL;
}

static void host_failures(void **state)
{
	struct fix *f = *state;
	struct loop *l = NULL;
	struct error err;

	for (int i = 0; i < 3; i++) {
		if (i == 0)
			host.epoll_create1 = fail_one;
		else if (i == 1)
			host.eventfd = fail_eventfd;
		else
			host.timerfd_create = fail_two;
		assert_int_equal(loop_create(&l, NULL, &err), -EMFILE);
		assert_null(l);
		assert_non_null(strstr(err.text, "event loop"));
		host = host_calls_real;
	}
	host.malloc = fail_malloc;
	assert_int_equal(loop_post(f->loop, on_post, NULL), -ENOMEM);
	assert_null(loop_fd_add(f->loop, 0, LOOP_IN, on_any, NULL));
	assert_null(vtimer_create(f->loop, &f->clk, on_timer, NULL));
	host = host_calls_real;
	host.realloc = fail_realloc;
	assert_null(vtimer_create(f->loop, &f->clk, on_timer, NULL));
	host = host_calls_real;
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(vclock_runs_stops_and_jumps),
		T(vclock_never_goes_back_for_other_threads),
		T(timers_fire_in_order),
		T(timers_random_against_sorted_list),
		T(endless_timer_does_not_starve),
		T(removal_inside_callbacks),
		T(modify_and_hang_up),
		T(posts_from_many_threads),
		T(arming_from_another_thread_wakes),
		T(several_clocks),
		T(host_failures),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
