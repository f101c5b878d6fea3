/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A port over a SOCK_SEQPACKET socket: one packet a frame.  Nothing is queued here: towards the network
 * the socket's buffer is the queue, and when it is full the card waits; towards the guest at most
 * one frame is held, and while it is, the socket is not read.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/host.h"
#include "base/log.h"
#include "net/port.h"

#define BATCH	     64		   /* frames a round, so that one port never holds the loop */
#define SOCKET_SPACE (1 << 20)	   /* asked for; the host may give less */
#define IOV_DIRECT   (IOV_MAX - 1) /* vectors that go to the socket as they are, behind the header */

struct socket_port {
	struct net_port port;
	struct loop *loop;
	struct loop_fd *watch; /* NULL: the other side is gone */
	int fd;
	bool is_held;	 /* @rx holds a frame the card had no buffer for */
	bool is_waiting; /* the card waits for room in the socket */
	size_t rx_len;
	struct {
		struct net_offload off;
		uint8_t frame[NET_FRAME_MAX];
	} rx;
	uint8_t tx[NET_FRAME_MAX]; /* for frames in very many pieces */
};

static void watch(struct socket_port *p)
{
	if (p->watch)
		loop_fd_modify(p->watch, (p->is_held ? 0 : LOOP_IN) | (p->is_waiting ? LOOP_OUT : 0));
}

static void hang_up(struct socket_port *p)
{
	if (!p->watch)
		return;
	loop_fd_remove(p->watch);
	p->watch = NULL;
	p->is_waiting = false;
	log_warn("net", "the network process went away; the guest's link is down");
	if (p->port.card.link_changed)
		p->port.card.link_changed(p->port.card.ctx, false);
}

static int socket_send(struct net_port *port, const struct net_offload *off,
		       const struct iovec *iov, unsigned niov)
{
	struct socket_port *p = container_of(port, struct socket_port, port);
	struct iovec v[IOV_DIRECT + 1];
	struct msghdr msg = { .msg_iov = v };

	if (!p->watch)
		return -ENETDOWN;
	v[0] = (struct iovec){ (void *)(uintptr_t)off, sizeof(*off) };
	if (niov <= IOV_DIRECT) {
		memcpy(v + 1, iov, niov * sizeof(*iov));
		msg.msg_iovlen = niov + 1;
	} else {
		size_t len = 0;
		for (unsigned i = 0; i < niov; i++) {
			if (iov[i].iov_len > sizeof(p->tx) - len)
				return -EMSGSIZE;
			memcpy(p->tx + len, iov[i].iov_base, iov[i].iov_len);
			len += iov[i].iov_len;
		}
		v[1] = (struct iovec){ p->tx, len };
		msg.msg_iovlen = 2;
	}
	ssize_t r;
	do
		r = sendmsg(p->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (r < 0 && errno == EINTR);
	if (r >= 0)
		return 0;
	if (errno == EAGAIN || errno == ENOBUFS) {
		p->is_waiting = true;
		watch(p);
		return -EAGAIN;
	}
	int e = -errno;
	if (e == -EPIPE || e == -ECONNRESET || e == -ENOTCONN)
		hang_up(p);
	return e;
}

/* Hands the frame in @rx to the card.  False: it is held. */
static bool deliver(struct socket_port *p)
{
	struct iovec iov = { p->rx.frame, p->rx_len - sizeof(p->rx.off) };

	p->is_held = p->port.card.receive &&
		     p->port.card.receive(p->port.card.ctx, &p->rx.off, &iov, 1) == -ENOBUFS;
	return !p->is_held;
}

static void read_frames(struct socket_port *p)
{
	for (unsigned i = 0; i < BATCH && !p->is_held && p->watch; i++) {
		ssize_t n = recv(p->fd, &p->rx, sizeof(p->rx), MSG_DONTWAIT | MSG_TRUNC);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n <= 0) {
			hang_up(p);
			break;
		}
		/* Cut or headless packets are none. */
		if ((size_t)n <= sizeof(p->rx.off) || (size_t)n > sizeof(p->rx))
			continue;
		p->rx_len = n;
		deliver(p);
	}
	watch(p);
}

static void on_socket(void *arg, int fd, unsigned events)
{
	struct socket_port *p = arg;

	(void)fd;
	if (events & LOOP_OUT && p->is_waiting) {
		p->is_waiting = false;
		watch(p);
		if (p->port.card.tx_ready)
			p->port.card.tx_ready(p->port.card.ctx);
	}
	if (events & LOOP_IN)
		read_frames(p);
	else if (events & (LOOP_HUP | LOOP_ERR))
		hang_up(p);
}

static void socket_rx_ready(struct net_port *port)
{
	struct socket_port *p = container_of(port, struct socket_port, port);

	/* The rest comes on the loop's thread. */
	if (p->is_held && deliver(p))
		watch(p);
}

static void socket_close(struct net_port *port)
{
	if (!port)
		return;
	struct socket_port *p = container_of(port, struct socket_port, port);
	loop_fd_remove(p->watch);
	close(p->fd);
	free(p);
}

static const struct net_ops socket_ops = {
	.send = socket_send,
	.rx_ready = socket_rx_ready,
	.close = socket_close,
};

int net_port_socket(struct net_port **out, struct loop *loop, int fd, const uint8_t mac[6],
		    struct error *err)
{
	struct socket_port *p = host.malloc(sizeof(*p));
	int type = 0, space = SOCKET_SPACE;
	socklen_t len = sizeof(type);

	if (!p) {
		close(fd);
		return error_set(err, -ENOMEM, "out of memory");
	}
	memset(p, 0, sizeof(*p));
	p->port.ops = &socket_ops;
	p->port.can_offload = true;
	memcpy(p->port.mac, mac, 6);
	p->loop = loop;
	p->fd = fd;
	int r = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ? -errno : 0;
	if (r == 0 && type != SOCK_SEQPACKET)
		r = -EPROTOTYPE;
	if (r < 0) {
		error_set(err, r, "descriptor %d is no packet socket to a network: %s", fd,
			  strerror(-r));
		goto fail;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &space, sizeof(space)); /* a wish */
	p->watch = loop_fd_add(loop, fd, LOOP_IN, on_socket, p);
	if (!p->watch) {
		r = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	*out = &p->port;
	return 0;
fail:
	socket_close(&p->port);
	return r;
}
