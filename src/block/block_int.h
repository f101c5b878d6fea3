/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the front of a disk: block.c (requests, layers), block_copy.c (copying it while it is in use). */
#ifndef VIV_BLOCK_BLOCK_INT_H
#define VIV_BLOCK_BLOCK_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/layer.h"
#include "block/pool.h"

/* A bit for each BLOCK_TRACK_BYTES: written since it was collected. */
struct block_track {
	uint64_t nwords;
	_Atomic uint64_t bits[];
};

struct limit {
	uint64_t per_s; /* 0: none */
	int64_t paid_until_ns;
};

struct front {
	struct block_dev dev;
	struct io_pool *pool;
	struct layer *top;
	pthread_rwlock_t stack_lock;	   /* invariant 1 of block.c */
	struct block_track *_Atomic track; /* NULL: nobody copies; changes while the pool is drained */
	_Atomic bool needs_seal;	   /* invariant 2 */
	pthread_mutex_t seal_lock;
	/* Invariant 3.  @settled is under @settle_lock: 1: not yet; else what flushes come to. */
	_Atomic bool is_unsettled; /* @settled is not 0 */
	int settled;
	pthread_mutex_t settle_lock;
	pthread_cond_t settle_end;
	/* Of try_now: under the machine's lock. */
	unsigned resting;   /* so many writes go to the pool */
	unsigned next_rest; /* so many after the next slow one */
	pthread_mutex_t limit_lock;
	struct limit bytes, ops; /* under @limit_lock */
};

static inline struct front *front_of(const struct block_dev *b)
{
	return container_of(b, struct front, dev);
}

/** front_note() - @req has changed what the disk holds, or may have; nothing is done for others. */
void front_note(struct front *d, const struct block_req *req);

#endif
