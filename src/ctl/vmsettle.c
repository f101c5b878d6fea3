/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/vmsettle.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct vmsettle {
	pthread_t thread;
	struct machine *m;
	struct vmdisks *disks;
	int lock;
	int result; /* the thread's */
	struct error err;
	vmsettle_fn done;
	void *arg;
};

static void *settle_main(void *arg)
{
	struct vmsettle *s = arg;

	s->result = vmdisks_settle(s->disks, &s->err);
	machine_settled(s->m, MIN(s->result, 0));
	/* @done ends this thread, and must not wait for the lock by that. */
	pthread_mutex_lock(machine_lock(s->m));
	if (loop_post(machine_loop(s->m), s->done, s->arg) < 0)
		machine_end(s->m, END_FAILED, 1, "no memory to tell that its disks are stable");
	pthread_mutex_unlock(machine_lock(s->m));
	return NULL;
}

int vmsettle_begin(struct vmsettle **out, struct machine *m, struct vmdisks *d, int lock,
		   vmsettle_fn done, void *arg, struct error *err)
{
	struct vmsettle *s = calloc(1, sizeof(*s));
	int r = ENOMEM;

	if (s) {
		*s = (struct vmsettle){ .m = m, .disks = d, .lock = lock, .done = done, .arg = arg };
		r = pthread_create(&s->thread, NULL, settle_main, s);
	}
	if (r == 0) {
		*out = s;
		return 0;
	}
	free(s);
	if (lock >= 0)
		close(lock);
	return error_set(err, -r, "no thread makes its disks stable: %s", strerror(r));
}

int vmsettle_end(struct vmsettle *s, struct error *err)
{
	pthread_join(s->thread, NULL);
	int r = s->result;

	if (r < 0)
		*err = s->err;
	if (s->lock >= 0)
		close(s->lock);
	free(s);
	return r;
}
