/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames between two processes through memory that both have: a ring of bytes for each direction, with one producer and
 * one consumer.
 *
 *   0      ring 0, from the maker to the joiner: head and wants_room, written by the producer; at 64 tail and wants_frames, written by
 *          the consumer (32 bits each; a wish is taken back by who fulfils it)
 *   128    ring 1, the other way
 *   4096   the bytes of ring 0, then those of ring 1
 *
 * head and tail count bytes, for ever upward; a frame is a header of 16 bytes (its length, hints), its bytes, and up to 15 more.  Each
 * side maps the bytes of a ring twice, one behind the other, so that no frame is in two pieces.
 *
 * Bells: who finds nothing to read says so (net_ring_sleep) and is rung at the next frame; who finds no room is rung when half of it
 * is free.  While both are at work nobody rings.  What a bell is, is link.h's matter.
 *
 * Invariants, as the other side is hostile and may write to all of it at any time:
 *  1. The memory can't shrink or grow: it is sealed (fcntl(2), F_SEAL_SHRINK), and who joins checks that.
 *  2. Own positions live in private memory; what is shared of them is only told.
 *  3. Each word of the other side is read once, checked, and then that copy is used: a position that leaves the ring, or a length
 *     that leaves what was written, is -EPROTO, and whoever gets that hangs up.
 *  4. A frame's bytes may change while they are looked at: they are copied before anything is decided by them.
 */
#ifndef VIV_NET_RING_H
#define VIV_NET_RING_H

#include <sys/uio.h>

#include "net/port.h"

#define NET_RING_BYTES (512 * KIB) /* of each direction; a power of two, a multiple of a page */

struct net_ring;

/** net_ring_make() - @fd: receives a descriptor of the memory, close-on-exec, for the other side.  0 or -errno. */
int net_ring_make(struct net_ring **out, int *fd);
/** net_ring_join() - with what the other side made.  Borrows @fd.  0, -EPROTO (it is no such memory) or -errno. */
int net_ring_join(struct net_ring **out, int fd);
void net_ring_destroy(struct net_ring *r); /* NULL is fine */

/**
 * net_ring_put() - one frame of @len bytes in @iov.
 * @rings: set if the other side wants a bell now; else untouched
 * Returns 0, -EAGAIN (no room: a bell comes when there is), -EMSGSIZE, -EPROTO.
 */
int net_ring_put(struct net_ring *r, const struct net_offload *off, const struct iovec *iov,
		 unsigned niov, bool *rings);
/** net_ring_has_room() - for the longest frame.  False: a bell comes when there is. */
bool net_ring_has_room(struct net_ring *r);

struct net_ring_frame {
	struct net_offload off;
	const uint8_t *data; /* in shared memory */
	size_t len;	     /* 1 to NET_FRAME_MAX */
};
/** net_ring_peek() - the next frame, which stays until net_ring_pop().  1, 0 (none), -EPROTO. */
int net_ring_peek(struct net_ring *r, struct net_ring_frame *f);
/** net_ring_pop() - the frame that was seen is done with.  True: the other side wants a bell now. */
bool net_ring_pop(struct net_ring *r);
/**
 * net_ring_reclaim() - the other side reads no more, and all that it sent was read: from here on net_ring_peek() and net_ring_pop() give what it has not taken.
 * Nothing can be put any more.  0 or -EPROTO.
 */
int net_ring_reclaim(struct net_ring *r);
/** net_ring_sleep() - nothing is there to read: ring at the next frame.  False: there is something, and no bell comes. */
bool net_ring_sleep(struct net_ring *r);

#endif
