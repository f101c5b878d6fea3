/* SPDX-License-Identifier: Apache-2.0 */
#include "net/link.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

#define SOCKET_SPACE (1 << 20) /* asked for; the host may give less */
#define MESSAGES_MAX 64	       /* that are no frames, read in a row */

enum { ASK = 'R', MEMORY = 'M', MAPPED = 'O', BELL = 'B', RESETS = 'X', MOVE = 'H' };

/* ---- messages ---- */

/* 0, -EAGAIN: the socket is full, -errno: the other side is gone. */
static int send_message(int fd, uint8_t kind, int pass_fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { &kind, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (pass_fd >= 0) {
		msg.msg_control = control.space;
		msg.msg_controllen = sizeof(control.space);
		struct cmsghdr *m = CMSG_FIRSTHDR(&msg);
		m->cmsg_level = SOL_SOCKET;
		m->cmsg_type = SCM_RIGHTS;
		m->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(m), &pass_fd, sizeof(int));
	}
	do
		n = sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n >= 0 ? 0 : errno == ENOBUFS ? -EAGAIN : -errno;
}

static void offer(struct net_link *l)
{
	int fd, r = net_ring_make(&l->ring, &fd);

	if (r == 0) {
		r = send_message(l->fd, MEMORY, fd);
		close(fd);
	}
	if (r == 0)
		return;
	log_debug("net", "no rings for a machine's frames: %s", strerror(-r));
	net_ring_destroy(l->ring);
	l->ring = NULL;
}

static void join(struct net_link *l, int fd)
{
	int r = net_ring_join(&l->ring, fd);

	if (r == 0)
		r = send_message(l->fd, MAPPED, -1);
	if (r == 0) {
		l->has_rings = true;
		return;
	}
	log_debug("net", "no rings for this machine's frames: %s", strerror(-r));
	net_ring_destroy(l->ring);
	l->ring = NULL;
}

static bool is_packet_socket(int fd)
{
	int type = 0, domain = 0;
	socklen_t len = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_SEQPACKET &&
	       getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

static void note_move(struct net_link *l, int fd)
{
	int own = is_packet_socket(fd) ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;

	if (own < 0)
		return;
	l->next_fd = own;
	l->wants_move = true;
}

static void take_message(struct net_link *l, uint8_t kind, int fd)
{
	if (kind == ASK && !l->asks && !l->ring)
		offer(l);
	else if (kind == MEMORY && l->asks && !l->ring && fd >= 0)
		join(l, fd);
	else if (kind == MAPPED && !l->asks && l->ring)
		l->has_rings = true;
	else if (kind == BELL)
		l->is_asleep = false;
	else if (kind == RESETS && !l->asks)
		l->wants_resets = true;
	else if (kind == MOVE && !l->asks && fd >= 0 && !l->wants_move)
		note_move(l, fd);
}

/* ---- life ---- */

void net_link_open(struct net_link *l, int fd, bool asks)
{
	int space = SOCKET_SPACE;

	*l = (struct net_link){ .fd = fd, .asks = asks, .is_asleep = true };
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &space, sizeof(space)); /* a wish */
	if (asks)
		send_message(fd, ASK, -1); /* a new socket has room; who is gone is noticed later */
}

void net_link_close(struct net_link *l)
{
	if (l->fd >= 0)
		close(l->fd);
	if (l->wants_move)
		close(l->next_fd);
	net_ring_destroy(l->ring);
	net_ring_destroy(l->old);
	*l = (struct net_link){ .fd = -1 };
}

/* ---- another process of the machine ---- */

int net_link_hand_over(int fd, int peer)
{
	return send_message(fd, MOVE, peer);
}

static void drop_old(struct net_link *l)
{
	net_ring_destroy(l->old);
	l->old = NULL;
}

void net_link_move(struct net_link *l)
{
	struct net_ring *old = l->has_rings ? l->ring : NULL;
	int fd = l->next_fd;

	if (!l->wants_move || l->old) /* one after the other */
		return;
	if (!old)
		net_ring_destroy(l->ring);
	close(l->fd);
	net_link_open(l, fd, false);
	l->old = old;
}

/* What the machine sent by its old process: 1; 0: no more. */
static int next_of_old(struct net_link *l, struct net_ring_frame *f)
{
	int r = l->is_old_ours ? 0 : net_ring_peek(l->old, f);

	if (r == 1 || l->is_old_ours)
		return r;
	l->is_old_ours = true;
	if (r < 0 || net_ring_reclaim(l->old) < 0)
		drop_old(l);
	return 0;
}

static int put(struct net_link *l, const struct net_offload *off, const struct iovec *iov, unsigned niov);

/* What it had not taken goes first.  0, -EAGAIN: not all of it yet; -errno: the other side is gone. */
static int flush_old(struct net_link *l)
{
	struct net_ring_frame f;
	int r = l->is_old_ours ? 0 : -EAGAIN;

	while (r == 0 && net_ring_peek(l->old, &f) == 1) {
		const struct iovec iov = { (void *)(uintptr_t)f.data, f.len };

		r = put(l, &f.off, &iov, 1);
		if (r == 0)
			(void)net_ring_pop(l->old);
	}
	if (r != -EAGAIN)
		drop_old(l);
	return r;
}

/* ---- out ---- */

static int send_packet(int fd, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	struct iovec v[IOV_MAX];
	struct msghdr msg = { .msg_iov = v, .msg_iovlen = niov + 1 };
	ssize_t n;

	if (niov >= IOV_MAX)
		return -EMSGSIZE;
	v[0] = (struct iovec){ (void *)(uintptr_t)off, sizeof(*off) };
	memcpy(v + 1, iov, niov * sizeof(*iov));
	do
		n = sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n >= 0 ? 0 : errno == ENOBUFS ? -EAGAIN : -errno;
}

static int put(struct net_link *l, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	return l->has_rings ? net_ring_put(l->ring, off, iov, niov, &l->owes_bell)
			    : send_packet(l->fd, off, iov, niov);
}

int net_link_send(struct net_link *l, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	int r = l->old ? flush_old(l) : 0;

	return r < 0 ? r : put(l, off, iov, niov);
}

int net_link_ring(struct net_link *l)
{
	if (!l->owes_bell)
		return 0;
	l->owes_bell = false;
	int r = send_message(l->fd, BELL, -1);
	return r == -EAGAIN ? 0 : r; /* a full socket is a bell, too */
}

static const uint8_t all_ones[sizeof(struct net_offload)] = { [0 ... sizeof(struct net_offload) - 1] =
								      0xff };

void net_link_give_resets(struct net_link *l, const uint8_t *frames, size_t len)
{
	const struct iovec iov = { (void *)(uintptr_t)frames, len };
	struct net_offload off;

	l->wants_resets = false;
	memcpy(&off, all_ones, sizeof(off));
	if (send_packet(l->fd, &off, &iov, 1) < 0)
		log_debug("net", "a machine that leaves is not told of its connections");
}

size_t net_link_ask_resets(struct net_link *l, uint8_t *out, size_t cap, int timeout_ms)
{
	struct net_offload off;
	struct iovec iov[2] = { { &off, sizeof(off) }, { out, cap } };

	if (l->fd < 0 || send_message(l->fd, RESETS, -1) < 0)
		return 0;
	for (;;) {
		struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
		struct pollfd p = { .fd = l->fd, .events = POLLIN };

		if (poll(&p, 1, timeout_ms) != 1)
			return 0;
		ssize_t n = recvmsg(l->fd, &msg, MSG_DONTWAIT);

		if (n <= 0)
			return 0;
		if (n == 1)
			take_message(l, *(const uint8_t *)&off, -1);
		else if (n >= (ssize_t)sizeof(off) && !memcmp(&off, all_ones, sizeof(off)))
			return (size_t)n - sizeof(off);
	}
}

bool net_link_has_room(struct net_link *l)
{
	return l->has_rings && net_ring_has_room(l->ring);
}

/* ---- in ---- */

/* The first descriptor that came with a message, all others closed; -1: none. */
static int passed_fd(struct msghdr *msg)
{
	struct cmsghdr *m = CMSG_FIRSTHDR(msg);
	int first = -1, fd;

	if (!m || m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
		return -1;
	for (size_t i = 0; i < (m->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
		memcpy(&fd, CMSG_DATA(m) + i * sizeof(int), sizeof(int));
		if (first < 0)
			first = fd;
		else
			close(fd);
	}
	return first;
}

/* One packet.  Its length, 0 if it was cut, and, of a message, @fd; -EAGAIN: none, -errno: the other side is gone. */
static ssize_t receive(struct net_link *l, const struct net_link_rx *rx, int *fd)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov[2] = { { rx->off, sizeof(*rx->off) }, { rx->frame, NET_FRAME_MAX } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	bool awaits_fd = !l->asks || !l->ring;
	ssize_t n;

	if (awaits_fd) { /* else the kernel drops what comes along */
		msg.msg_control = control;
		msg.msg_controllen = sizeof(control);
	}
	do
		n = recvmsg(l->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n < 0 ? -errno : -EPIPE;
	*fd = awaits_fd ? passed_fd(&msg) : -1;
	return msg.msg_flags & MSG_TRUNC ? 0 : n;
}

/* Messages, up to a frame: 1.  0: none now, -errno: the other side is gone. */
static int read_socket(struct net_link *l, const struct net_link_rx *rx, struct net_ring_frame *f)
{
	for (unsigned i = 0; i < MESSAGES_MAX && l->is_readable; i++) {
		int fd = -1;
		ssize_t n = receive(l, rx, &fd);
		if (n < 0 && n != -EAGAIN)
			return (int)n;
		/* With rings there are bells only, one at a time: poll(2) tells of more. */
		l->is_readable = n >= 0 && !l->has_rings;
		if (n == 1)
			take_message(l, *(const uint8_t *)rx->off, fd);
		if (fd >= 0)
			close(fd);
		if (n > (ssize_t)sizeof(*rx->off)) {
			*f = (struct net_ring_frame){ *rx->off, rx->frame, (size_t)n - sizeof(*rx->off) };
			return 1;
		}
	}
	return 0;
}

int net_link_next(struct net_link *l, const struct net_link_rx *rx, struct net_ring_frame *f)
{
	if (l->old && next_of_old(l, f) == 1) {
		l->is_from_old = true;
		l->is_from_socket = false;
		return 1;
	}
	int r = read_socket(l, rx, f);

	l->is_from_socket = r == 1;
	return r == 0 && l->has_rings && !l->is_asleep ? net_ring_peek(l->ring, f) : r;
}

int net_link_bells(struct net_link *l, const struct net_link_rx *rx)
{
	struct net_ring_frame f;
	int r = read_socket(l, rx, &f);

	return MIN(r, 0);
}

void net_link_done(struct net_link *l)
{
	if (l->is_from_old)
		(void)net_ring_pop(l->old);
	else if (!l->is_from_socket)
		l->owes_bell |= net_ring_pop(l->ring);
	l->is_from_old = false;
}

bool net_link_is_idle(struct net_link *l)
{
	if (l->has_rings && !l->is_asleep)
		l->is_asleep = net_ring_sleep(l->ring);
	return !l->has_rings || l->is_asleep;
}

/* ---- poll(2) ---- */

short net_link_poll(struct net_link *l, bool wants_room, uint32_t *timeout_ms)
{
	if (l->old && flush_old(l) == -EAGAIN) {
		wants_room |= l->is_old_ours;
		if (!l->is_old_ours)
			*timeout_ms = 0; /* it has more to say */
	}
	if (!l->has_rings)
		return (short)(POLLIN | (wants_room ? POLLOUT : 0));
	net_link_ring(l); /* who is gone is noticed by the socket */
	l->is_writable = wants_room && net_ring_has_room(l->ring);
	if (l->is_writable || !net_link_is_idle(l))
		*timeout_ms = 0;
	return POLLIN;
}

void net_link_polled(struct net_link *l, short revents)
{
	l->is_readable |= (revents & (POLLIN | POLLHUP | POLLERR)) != 0;
	if (!l->has_rings)
		l->is_writable = (revents & POLLOUT) != 0;
}
