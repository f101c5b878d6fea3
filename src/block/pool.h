/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few threads that do blocking I/O for one block device.
 *
 * Requests go in under the machine's lock, are worked on by any thread in any order, and complete on
 * the loop's thread (or inside io_pool_drain).  Nothing is allocated per request: priv[0] links,
 * priv[1] holds the result.
 */
#ifndef VIV_BLOCK_POOL_H
#define VIV_BLOCK_POOL_H

#include "block/block.h"

struct io_pool;

/**
 * io_pool_create() - start @nthreads (1..16) workers.
 * @work: does one request on a worker's thread, without any lock; returns its result
 * Returns 0 or -errno with @err set.
 */
int io_pool_create(struct io_pool **out, struct loop *loop, unsigned nthreads,
		   int (*work)(void *ctx, struct block_req *req), void *ctx, struct error *err);

/** io_pool_submit() - queue @req; req->done comes later, never from inside. */
void io_pool_submit(struct io_pool *p, struct block_req *req);

/** io_pool_drain() - wait until nothing is in flight, running the callbacks here. */
void io_pool_drain(struct io_pool *p);

/** io_pool_destroy() - drains, then ends the threads.  NULL is fine. */
void io_pool_destroy(struct io_pool *p);

#endif
