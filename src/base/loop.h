/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop (epoll) and the machine's virtual clock.
 *
 * One thread runs a loop; file descriptors, timers and posted calls run on that thread.  A machine
 * passes a lock: the loop takes it around every callback (struct loop_config), so that callbacks
 * and vCPU threads never meet inside a device.
 *
 * Time: a vclock counts nanoseconds of MACHINE time: it runs while the machine runs and stands
 * still while it is paused.  Devices read only this clock.
 */
#ifndef VIV_BASE_LOOP_H
#define VIV_BASE_LOOP_H

#include <pthread.h>

#include "base/util.h"

struct loop;
struct error;

/* ---- virtual clock ---- */
struct vclock {
	/* Protected by a seqlock inside; read by any thread. */
	_Atomic uint32_t seq;
	_Atomic bool is_running;
	_Atomic int64_t offset_ns; /* running: now = CLOCK_MONOTONIC + offset; else now = offset */
};
void vclock_init(struct vclock *clk); /* stopped at 0 */
int64_t vclock_now_ns(const struct vclock *clk);
void vclock_start(struct vclock *clk);
void vclock_stop(struct vclock *clk);
/** vclock_set() - jump to @now_ns (restore).  Only while stopped. */
void vclock_set(struct vclock *clk, int64_t now_ns);

/* ---- loop ---- */

/**
 * loop_create() - a loop.
 * @lock: taken around every callback; may be NULL; borrowed
 * Returns 0 or -errno with @err set.
 */
int loop_create(struct loop **out, pthread_mutex_t *lock, struct error *err);
/** loop_destroy() - NULL is fine.  Watches and posts still there vanish; timers must be gone. */
void loop_destroy(struct loop *l);

/** loop_run() - until loop_stop(); returns the code given to it.  Call from one thread. */
int loop_run(struct loop *l);
/** loop_stop() - from any thread or callback. */
void loop_stop(struct loop *l, int code);
/** loop_run_once() - one round, waiting at most @timeout_ms (-1: for ever).  For tests.
 * Returns how many callbacks ran. */
int loop_run_once(struct loop *l, int timeout_ms);

/** loop_post() - run @fn(@arg) on the loop's thread soon.  Any thread.  Aborts never: -ENOMEM. */
int loop_post(struct loop *l, void (*fn)(void *arg), void *arg);

/* File descriptors, each in at most one watch.  The watch borrows the fd.  LOOP_HUP and LOOP_ERR are
 * always told, but for a watch whose events are 0: it is asleep.  loop_fd_add gives NULL with errno
 * set: ENOMEM, EPERM (a regular file: always ready, epoll refuses it), EEXIST.  Called, as modify and
 * remove are, under the loop's lock. */
enum { LOOP_IN = 1, LOOP_OUT = 4, LOOP_HUP = 0x10, LOOP_ERR = 0x8 }; /* = EPOLLIN ... */
struct loop_fd;
typedef void (*loop_fd_fn)(void *arg, int fd, unsigned events);
struct loop_fd *loop_fd_add(struct loop *l, int fd, unsigned events, loop_fd_fn fn, void *arg);
void loop_fd_modify(struct loop_fd *w, unsigned events);
void loop_fd_remove(struct loop_fd *w); /* NULL is fine; safe inside any callback */

/*
 * Timers on a vclock.  Armed and cancelled from any thread that holds the loop's lock; they run on
 * the loop's thread, under the lock, at or after the deadline while the clock runs.
 */
struct vtimer;
/* NULL: no memory; arming never fails. */
struct vtimer *vtimer_create(struct loop *l, struct vclock *clk, void (*fn)(void *arg), void *arg);
void vtimer_arm(struct vtimer *t, int64_t deadline_ns);
void vtimer_cancel(struct vtimer *t);
bool vtimer_is_armed(const struct vtimer *t);
int64_t vtimer_deadline_ns(const struct vtimer *t); /* INT64_MAX when not armed */
void vtimer_destroy(struct vtimer *t);		    /* NULL is fine */
/** loop_clock_changed() - a vclock started, stopped or jumped: re-evaluate the timers. */
void loop_clock_changed(struct loop *l);

#endif
