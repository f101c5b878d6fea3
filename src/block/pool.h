/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What waits for the host on behalf of one block device: an io_uring (uring.h) for requests that are transfers of one
 * file, where host and build have it, and a few threads for everything else.
 *
 * Requests go in under the machine's lock, are worked on in any order, and complete on the loop's thread (or inside
 * io_pool_drain).  Nothing is allocated per request: priv[0] links, priv[1] holds the result.
 */
#ifndef VIV_BLOCK_POOL_H
#define VIV_BLOCK_POOL_H

#include "block/block.h"
#include "block/layer.h"

struct io_pool;

/**
 * io_pool_create() - start @nthreads (1..16) workers.
 * @work: does one request on a worker's thread, without any lock; returns its result
 * @plan: what a request comes down to, under the machine's lock; false: it is @work's.  NULL: all are
 * Returns 0 or -errno with @err set.
 */
int io_pool_create(struct io_pool **out, struct loop *loop, unsigned nthreads,
		   int (*work)(void *ctx, struct block_req *req),
		   bool (*plan)(void *ctx, const struct block_req *req, struct layer_plan *out),
		   void *ctx, struct error *err);

/** io_pool_submit() - queue @req; req->done comes later, never from inside. */
void io_pool_submit(struct io_pool *p, struct block_req *req);

/** io_pool_has_uring() - it does transfers by io_uring. */
bool io_pool_has_uring(const struct io_pool *p);

/** io_pool_drain() - wait until nothing is in flight, running the callbacks here. */
void io_pool_drain(struct io_pool *p);

/** io_pool_destroy() - drains, then ends the threads.  NULL is fine. */
void io_pool_destroy(struct io_pool *p);

#endif
