/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Under a running machine: what others merged is closed, and the layer below a top goes into the top (block.h, "Doing without the layer
 * below").
 *
 *   LOOK --> COPY --> FLUSH --> TURN --> NAME --> done
 *
 * LOOK has the lock of the snapshots shared, NAME has it exclusively: nobody reads the chain while its header changes, and no
 * snapshot begins.  Anything that begins before that cancels the work, which leaves whole layers; a later merge does it again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/host.h"
#include "ctl/paths.h"
#include "ctl/snap_int.h"

#define PIECE_BYTES  MIB
#define LOCK_POLL_NS 1000000LL

enum phase { LOOK, COPY, FLUSH, TURN, NAME };

struct below {
	struct snapper *s;
	enum phase phase;
	unsigned disk;
	char *layer; /* NULL: files are closed, no more */
	struct block_req req;
	bool is_in_flight, is_gone;
	uint64_t at, size_bytes;
	int lock; /* NAME: exclusive */
	struct vtimer *timer;
	int64_t until_ns;
	snapper_done_fn done;
	void *ctx;
};

static void below_free(struct below *b)
{
	b->is_gone = true;
	vtimer_destroy(b->timer);
	b->timer = NULL;
	if (b->is_in_flight)
		return; /* its end calls again */
	if (b->lock >= 0)
		close(b->lock);
	free(b->layer);
	free(b);
}

static void finish(struct below *b, int r, const struct error *err)
{
	json_t *result = r == 0 ? json_object() : NULL;

	b->s->below = NULL;
	b->done(b->ctx, result, r == 0 ? NULL : err);
	json_decref(result);
	below_free(b);
}

/* ---- the chain ---- */

static bool is_file(const char *folder, const char *name, const struct block_dev *dev, unsigned depth)
{
	_cleanup_free_ char *path = paths_format(NULL, "%s/%s", folder, name);
	struct stat st;
	dev_t d;
	ino_t i;

	return path && host.fstatat(AT_FDCWD, path, &st, 0) == 0 &&
	       block_layer_file(dev, depth, &d, &i) && d == st.st_dev && i == st.st_ino;
}

/* Has the machine the files open that have the names now? */
static bool is_current(const struct snapper *s, unsigned disk)
{
	const struct vmdisk_chain *ch = &s->disks->chains[disk];
	const struct block_dev *dev = machine_block(s->m, disk);
	dev_t d;
	ino_t i;

	for (unsigned k = 1; k < ch->n; k++)
		if (strchr(ch->files[k], '/') || !is_file(s->disks->folder, ch->files[k], dev, k))
			return false;
	return ch->n < 2 || !block_layer_file(dev, ch->n, &d, &i);
}

static int look(struct below *b, struct error *err)
{
	struct snapper *s = b->s;
	int r = vmdisks_reread(s->disks, err);

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++)
		if (vmdisks_is_layered(s->config, i) && !is_current(s, i))
			r = block_reopen_below(machine_block(s->m, i), s->backing, err);
	if (r < 0 || !b->layer)
		return r;
	const struct vmdisk_chain *ch = &s->disks->chains[b->disk];

	if (ch->n < 3 || strcmp(ch->files[1], b->layer) != 0 || !is_current(s, b->disk))
		return error_set(err, -EINVAL, "%s is no layer that disk %u can do without",
				 b->layer, b->disk);
	return 0;
}

/* Under the exclusive lock: nothing was exchanged meanwhile. */
static int look_again(const struct below *b, struct error *err)
{
	const struct vmdisk_chain *ch = &b->s->disks->chains[b->disk];

	if (ch->n < 3 || strcmp(ch->files[1], b->layer) != 0 || !is_current(b->s, b->disk))
		return error_set(err, -EAGAIN, "the layers of disk %u changed meanwhile", b->disk);
	return 0;
}

/* ---- one step after the other ---- */

static void go_on(void *arg);

static void on_done(struct block_req *req, int result);

static void submit(struct below *b, enum block_op op, uint64_t len)
{
	struct block_dev *dev = machine_block(b->s->m, b->disk);

	b->req = (struct block_req){
		.op = op, .offset_bytes = b->at, .len_bytes = len, .done = on_done, .owner = b
	};
	b->is_in_flight = true;
	dev->ops->submit(dev, &b->req);
}

static void copy_on(struct below *b)
{
	uint64_t left = b->size_bytes - b->at;

	b->phase = left ? COPY : FLUSH;
	submit(b, left ? BLOCK_TAKE_IN : BLOCK_FLUSH, MIN(left, (uint64_t)PIECE_BYTES));
}

static void drop(struct below *b)
{
	struct error err;
	int r = block_drop_below(machine_block(b->s->m, b->disk), &err);

	if (r == 0)
		r = vmdisks_reread(b->s->disks, &err);
	finish(b, r, &err);
}

static void on_done(struct block_req *req, int result)
{
	struct below *b = req->owner;
	struct error err;

	b->is_in_flight = false;
	if (b->is_gone) {
		below_free(b);
		return;
	}
	if (result < 0) {
		error_set(&err, result, "disk %u cannot take in what is below it: %s", b->disk,
			  strerror(-result));
		finish(b, result, &err);
		return;
	}
	switch (b->phase) {
	case COPY:
		b->at += req->len_bytes;
		copy_on(b);
		break;
	case FLUSH:
		b->phase = TURN;
		b->until_ns = vclock_now_ns(b->s->clock) + SNAPSTORE_LOCK_MS * 1000000LL;
		vtimer_arm(b->timer, vclock_now_ns(b->s->clock));
		break;
	case NAME:
		drop(b);
		break;
	case LOOK:
	case TURN:
		break; /* nothing is in flight */
	}
}

/* By the timer: LOOK, or TURN. */
static void go_on(void *arg)
{
	struct below *b = arg;
	struct snapper *s = b->s;
	struct block_info info;
	struct error err;
	int lock = snapstore_try_lock(s->config->name, b->phase == TURN, &err);

	if (lock == -EAGAIN && vclock_now_ns(s->clock) < b->until_ns) {
		vtimer_arm(b->timer, vclock_now_ns(s->clock) + LOCK_POLL_NS);
		return;
	}
	int r = lock < 0 ? lock : b->phase == LOOK ? look(b, &err) : look_again(b, &err);

	if (r == 0 && b->phase == TURN) {
		b->lock = lock;
		b->phase = NAME;
		b->at = 0;
		submit(b, BLOCK_NAME_BELOW, 0);
		return;
	}
	if (lock >= 0)
		close(lock);
	if (r < 0 || !b->layer) {
		finish(b, r, &err);
		return;
	}
	struct block_dev *dev = machine_block(s->m, b->disk);

	dev->ops->info(dev, &info);
	b->size_bytes = info.size_bytes;
	copy_on(b);
}

int snapper_merged(struct snapper *s, unsigned disk, const char *layer, snapper_done_fn done,
		   void *ctx, struct error *err)
{
	if (s->take || s->forking || s->pending || s->below)
		return error_set(err, -EBUSY, "the machine is at work on its snapshots already");
	if (layer && (disk >= s->config->ndisks || !vmdisks_is_layered(s->config, disk)))
		return error_set(err, -EINVAL, "the machine has no disk %u with layers", disk);
	struct below *b = calloc(1, sizeof(*b));

	if (!b)
		return error_set(err, -ENOMEM, "no memory to merge layers of disks");
	*b = (struct below){ .s = s, .disk = disk, .lock = -1, .done = done, .ctx = ctx };
	b->layer = layer ? strdup(layer) : NULL;
	b->timer = vtimer_create(machine_loop(s->m), s->clock, go_on, b);
	if (!b->timer || (layer && !b->layer)) {
		below_free(b);
		return error_set(err, -ENOMEM, "no memory to merge layers of disks");
	}
	b->until_ns = vclock_now_ns(s->clock) + SNAPSTORE_LOCK_MS * 1000000LL;
	vtimer_arm(b->timer, vclock_now_ns(s->clock));
	s->below = b;
	return 0;
}

bool snap_below_progress(const struct below *b, uint64_t *done_bytes, uint64_t *total_bytes)
{
	if (!b)
		return false;
	*done_bytes = b->at;
	*total_bytes = b->size_bytes;
	return true;
}

void snap_below_cancel(struct snapper *s, const void *ctx)
{
	struct below *b = s->below;
	struct error err;

	if (!b || (ctx && b->ctx != ctx))
		return;
	s->below = NULL;
	if (!ctx) {
		error_set(&err, -ECANCELED, "something else began with the machine's disks");
		b->done(b->ctx, NULL, &err);
	}
	below_free(b);
}

void snap_below_destroy(struct snapper *s)
{
	if (s->below)
		below_free(s->below);
	s->below = NULL;
}
