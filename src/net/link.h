/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames between a machine and its network: one end of a connected SOCK_SEQPACKET socket, and rings of shared memory beside it
 * once both sides have them (ring.h).
 *
 * A packet longer than struct net_offload is these hints and a frame.  The shorter ones, which say nothing to who does not know
 * them, are a byte:
 *
 *   machine --- 'R' ---> network    are there rings?
 *   machine <-- 'M' ---- network    here is their memory (a descriptor)
 *   machine --- 'O' ---> network    it is mapped: from here on frames go through it
 *           <-- 'B' --->            a bell: look at the rings
 *   machine --- 'X' ---> network    which connections end if the machine goes elsewhere?  Answered by a packet of hints that are all ones, and a frame
 *                                   for each, which would tell its guest; over the socket.  Who has no NAT does not answer
 *   machine --- 'H' ---> network    from here on the machine is at the other end of this socket (a descriptor): another process goes on with it.  What
 *                                   either side had not read yet is read over the new one; the old one is closed when that is so
 *
 * So frames go over the socket until both know the rings, and for ever where one of them does not.  The socket tells when the other
 * side is gone.
 *
 * A loop around poll(2):
 *
 *   events = net_link_poll(&l, wants_room, &timeout_ms);    before it waits
 *   net_link_polled(&l, revents);                           after it
 *   if (l.is_writable) ...                                  send what waits
 *   while (net_link_next(&l, &rx, &frame) == 1) ...         at most so many
 */
#ifndef VIV_NET_LINK_H
#define VIV_NET_LINK_H

#include "net/ring.h"

struct net_link {
	int fd; /* -1: none */
	struct net_ring *ring;
	bool asks;	     /* the machine's side */
	bool has_rings;	     /* frames go through @ring; else it is offered yet, or NULL */
	bool is_readable;    /* the socket may have something */
	bool is_writable;    /* what waits may be sent */
	bool is_asleep;	     /* nothing is in the ring until a bell comes */
	bool is_from_socket; /* the last net_link_next()'s */
	bool owes_bell;	     /* the other side is to be rung */
	bool wants_resets;   /* the machine has asked: net_link_give_resets() */
	bool wants_move;     /* the machine goes on elsewhere: net_link_move() */
	int next_fd;	     /* with wants_move: where */
	struct net_ring *old; /* of the process that the machine was in before, while there is something in it; or NULL */
	bool is_old_ours; /* what is in it is for the machine; before, what the machine has sent */
	bool is_from_old; /* the last net_link_next()'s */
};

/** net_link_open() - takes @fd.  @asks: this is the machine's side, which asks for rings. */
void net_link_open(struct net_link *l, int fd, bool asks);
void net_link_close(struct net_link *l); /* closed already is fine */

/**
 * net_link_send() - one frame, copied.  Whoever sleeps at the other end is woken by net_link_ring().
 * Returns 0, -EAGAIN (no room; net_link_poll() waits for it), -EMSGSIZE, -errno: the other side is gone or broken.
 */
int net_link_send(struct net_link *l, const struct net_offload *off, const struct iovec *iov,
		  unsigned niov);
/**
 * net_link_ask_resets() - 'X', and the frames of the answer into @out.  What else comes meanwhile is lost; the guest stands still.
 * Returns their bytes; 0: none, or no answer within @timeout_ms.
 */
size_t net_link_ask_resets(struct net_link *l, uint8_t *out, size_t cap, int timeout_ms);
void net_link_give_resets(struct net_link *l, const uint8_t *frames, size_t len);
/**
 * net_link_hand_over() - 'H': the network at the other end of @fd talks to the other end of @peer from now on.  Both stay the caller's.  0 or -errno.
 * POLLHUP on @fd tells when it does.
 */
int net_link_hand_over(int fd, int peer);
/** net_link_move() - the network's side of it. */
void net_link_move(struct net_link *l);
/** net_link_has_room() - for any frame.  False: not now, or frames go over the socket, where only LOOP_OUT tells. */
bool net_link_has_room(struct net_link *l);

struct net_link_rx { /* where frames from the socket are put */
	struct net_offload *off;
	uint8_t *frame; /* NET_FRAME_MAX */
};
/**
 * net_link_next() - the next frame, if one is there.
 * @f: its data is in @rx, or in memory that the other side may change: ring.h, invariant 4
 * Returns 1, 0 or -errno: the other side is gone, or -EPROTO: it broke the ring.
 */
int net_link_next(struct net_link *l, const struct net_link_rx *rx, struct net_ring_frame *f);
/** net_link_bells() - only the messages on the socket, while a frame of the ring is not done with.  0 or -errno. */
int net_link_bells(struct net_link *l, const struct net_link_rx *rx);
/** net_link_done() - with the last net_link_next()'s frame. */
void net_link_done(struct net_link *l);
/** net_link_ring() - the bell that is owed after frames were sent or done with; net_link_poll() does it.  0 or -errno: it is gone. */
int net_link_ring(struct net_link *l);
/** net_link_is_idle() - nothing is in the ring, and a bell comes first; with frames over the socket always. */
bool net_link_is_idle(struct net_link *l);

/**
 * net_link_poll() - what to wait for.
 * @wants_room: something waits to be sent
 * @timeout_ms: set to 0 if there is something to do at once
 * Returns the events of poll(2) on @l->fd.
 */
short net_link_poll(struct net_link *l, bool wants_room, uint32_t *timeout_ms);
void net_link_polled(struct net_link *l, short revents);

#endif
