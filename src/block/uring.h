/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that are transfers of one file (struct layer_plan), by io_uring: one call into the kernel a request, no
 * thread of ours wakes for it.
 *
 *   read         readv, again for the rest while it comes short
 *   write        writev, likewise; then the file counts as dirty
 *   FUA          ... then, when all bytes are in the file, fdatasync
 *   flush        fdatasync: what had completed before is in the file by then
 *
 * Only what goes well ends here.  Anything else (an error, the end of the file, a call that was interrupted or that the ring cannot
 * do) is handed back as URING_NOT_DONE and done from its beginning by the caller, which says what is wrong.  The
 * exception is an fdatasync that failed: that is never tried again (io.h, struct io_sync).
 *
 * Invariants, all under the machine's lock
 *  1. A slot has at most one operation in the kernel; it is free when its request was handed back.
 *  2. What the kernel reads or writes during an operation (the slot's vectors, the request's memory) stays until then.
 *  3. A child of fork() has none of the ring's mappings and never touches it.
 */
#ifndef VIV_BLOCK_URING_H
#define VIV_BLOCK_URING_H

#include "block/layer.h"

enum uring_op { URING_READ, URING_WRITE, URING_SYNC };
enum uring_event { URING_NOTHING, URING_DONE, URING_NOT_DONE };

struct uring;

/** uring_create() - 0; -ENOSYS, -EPERM ... : this build or this host has none; -ENOMEM. */
int uring_create(struct uring **out);
void uring_destroy(struct uring *u); /* nothing in flight; NULL is fine */
/** uring_fd() - readable while uring_next() has something. */
int uring_fd(const struct uring *u);
unsigned uring_in_flight(const struct uring *u);

/** uring_plan() - where the plan of the next request is to be made; NULL: there is no room. */
struct layer_plan *uring_plan(struct uring *u);
/** uring_submit() - start @req, whose @plan was made in uring_plan(); false: not for the ring, the plan has ended, and nothing else happened. */
bool uring_submit(struct uring *u, struct block_req *req, struct layer_plan *plan);
/** uring_next() - the next request that is over: its result (URING_DONE), or it is the caller's again. */
enum uring_event uring_next(struct uring *u, struct block_req **req, int *result);
/** uring_wait() - until an operation is over. */
void uring_wait(struct uring *u);

#endif
