/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A port over a link (link.h).  Nothing is queued here: towards the network the link is the queue, and when it is full the card
 * waits; towards the guest at most one frame is held, which stays where it is, and while it is no other is read.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/host.h"
#include "base/log.h"
#include "net/link.h"
#include "net/port.h"

#define BATCH	   64		 /* frames a round, so that one port never holds the loop */
#define RESETS_MS  100		 /* that the network may take for its answer */
#define IOV_DIRECT (IOV_MAX - 1) /* vectors that go to the link as they are */

struct socket_port {
	struct net_port port;
	struct loop *loop;
	struct net_link link;
	struct loop_fd *watch; /* NULL: the other side is gone */
	int more_fd;	       /* an eventfd: there is more to read, and no bell will come */
	struct loop_fd *more;
	bool is_away;	 /* held: no @watch, but the other side is there */
	bool is_held;	 /* @held waits for a buffer of the card */
	bool is_waiting; /* the card waits for room in the link */
	struct net_ring_frame held;
	struct {
		struct net_offload off;
		uint8_t frame[NET_FRAME_MAX];
	} rx;
	uint8_t tx[NET_FRAME_MAX]; /* for frames in very many pieces */
};

static void watch(struct socket_port *p)
{
	bool is_full = p->is_held && p->link.is_from_socket; /* rings have bells on the socket, still */

	if (p->watch)
		loop_fd_modify(p->watch, (is_full ? 0 : LOOP_IN) |
						 (p->is_waiting && !p->link.has_rings ? LOOP_OUT : 0));
}

static void hang_up(struct socket_port *p, int why)
{
	if (!p->watch)
		return;
	loop_fd_remove(p->watch);
	p->watch = NULL;
	p->is_waiting = false;
	log_warn("net", "the network process %s; the guest's link is down",
		 why == -EPROTO ? "broke the memory of frames" : "went away");
	if (p->port.card.link_changed)
		p->port.card.link_changed(p->port.card.ctx, false);
}

static int flatten(struct socket_port *p, const struct iovec *iov, unsigned niov, struct iovec *out)
{
	size_t len = 0;

	for (unsigned i = 0; i < niov; i++) {
		if (iov[i].iov_len > sizeof(p->tx) - len)
			return -EMSGSIZE;
		memcpy(p->tx + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	*out = (struct iovec){ p->tx, len };
	return 0;
}

static int socket_send(struct net_port *port, const struct net_offload *off,
		       const struct iovec *iov, unsigned niov)
{
	struct socket_port *p = container_of(port, struct socket_port, port);
	struct iovec flat;
	int r = 0;

	if (!p->watch)
		return -ENETDOWN;
	if (niov > IOV_DIRECT) {
		r = flatten(p, iov, niov, &flat);
		iov = &flat;
		niov = 1;
	}
	if (r == 0)
		r = net_link_send(&p->link, off, iov, niov);
	if (r == 0)
		r = net_link_ring(&p->link);
	if (r == -EAGAIN) {
		p->is_waiting = true;
		watch(p);
	}
	if (r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN || r == -EPROTO)
		hang_up(p, r);
	return r;
}

/* Hands @held to the card.  False: it is held. */
static bool deliver(struct socket_port *p)
{
	struct iovec iov = { (void *)(uintptr_t)p->held.data, p->held.len };

	p->is_held = p->port.card.receive &&
		     p->port.card.receive(p->port.card.ctx, &p->held.off, &iov, 1) == -ENOBUFS;
	if (p->is_held)
		return false;
	net_link_done(&p->link);
	int r = net_link_ring(&p->link);
	if (r < 0)
		hang_up(p, r);
	return true;
}

static void read_bells(struct socket_port *p)
{
	const struct net_link_rx rx = { &p->rx.off, p->rx.frame };
	int r = net_link_bells(&p->link, &rx);

	if (r < 0)
		hang_up(p, r);
}

static void read_frames(struct socket_port *p)
{
	const struct net_link_rx rx = { &p->rx.off, p->rx.frame };
	int r = 1;

	for (unsigned i = 0; i < BATCH && !p->is_held && p->watch; i++) {
		r = net_link_next(&p->link, &rx, &p->held);
		if (r <= 0)
			break;
		deliver(p);
	}
	if (r < 0)
		hang_up(p, r);
	else if (!p->is_held && p->watch && !net_link_is_idle(&p->link))
		eventfd_write(p->more_fd, 1);
	watch(p);
}

static void tell_room(struct socket_port *p)
{
	p->is_waiting = false;
	watch(p);
	if (p->port.card.tx_ready)
		p->port.card.tx_ready(p->port.card.ctx);
}

static void on_socket(void *arg, int fd, unsigned events)
{
	struct socket_port *p = arg;

	if (events & LOOP_OUT && p->is_waiting)
		tell_room(p);
	if (events & LOOP_IN) {
		p->link.is_readable = true;
		if (!p->is_held)
			read_frames(p);
		else
			read_bells(p);
		if (p->watch && p->is_waiting && net_link_has_room(&p->link))
			tell_room(p);
	} else if (events & (LOOP_HUP | LOOP_ERR)) {
		hang_up(p, -EPIPE);
	}
}

static void on_more(void *arg, int fd, unsigned events)
{
	struct socket_port *p = arg;
	eventfd_t n;

	eventfd_read(fd, &n);
	if (p->watch && !p->is_held)
		read_frames(p);
}

static void socket_rx_ready(struct net_port *port)
{
	struct socket_port *p = container_of(port, struct socket_port, port);

	if (!p->is_held || !deliver(p))
		return;
	/* The rest comes on the loop's thread. */
	if (p->watch && !net_link_is_idle(&p->link))
		eventfd_write(p->more_fd, 1);
	watch(p);
}

static size_t socket_resets(struct net_port *port, uint8_t *out, size_t cap)
{
	struct socket_port *p = container_of(port, struct socket_port, port);

	return p->watch ? net_link_ask_resets(&p->link, out, cap, RESETS_MS) : 0;
}

/* Without a watch nothing is read, and nobody hears that the network has closed this socket for another. */
static void socket_hold(struct net_port *port, bool is_held)
{
	struct socket_port *p = container_of(port, struct socket_port, port);

	if (is_held == p->is_away || (is_held && !p->watch))
		return;
	p->is_away = is_held;
	if (is_held) {
		loop_fd_remove(p->watch);
		p->watch = NULL;
		return;
	}
	p->watch = loop_fd_add(p->loop, p->link.fd, LOOP_IN, on_socket, p);
	if (!p->watch) {
		log_error("net", "no memory to go on with the network; the guest's link is down");
		return;
	}
	watch(p);
	eventfd_write(p->more_fd, 1);
}

static void socket_close(struct net_port *port)
{
	if (!port)
		return;
	struct socket_port *p = container_of(port, struct socket_port, port);
	loop_fd_remove(p->watch);
	loop_fd_remove(p->more);
	if (p->more_fd >= 0)
		close(p->more_fd);
	net_link_close(&p->link);
	free(p);
}

static const struct net_ops socket_ops = {
	.send = socket_send,
	.rx_ready = socket_rx_ready,
	.close = socket_close,
	.resets = socket_resets,
	.hold = socket_hold,
};

static int check_socket(int fd, struct error *err)
{
	int type = 0;
	socklen_t len = sizeof(type);
	int r = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ? -errno : 0;

	if (r == 0 && type != SOCK_SEQPACKET)
		r = -EPROTOTYPE;
	return r == 0 ? 0
		      : error_set(err, r, "descriptor %d is no packet socket to a network: %s", fd,
				  strerror(-r));
}

int net_port_socket(struct net_port **out, struct loop *loop, int fd, const uint8_t mac[6],
		    struct error *err)
{
	struct socket_port *p = host.malloc(sizeof(*p));

	if (!p) {
		close(fd);
		return error_set(err, -ENOMEM, "out of memory");
	}
	memset(p, 0, sizeof(*p));
	p->port.ops = &socket_ops;
	p->port.can_offload = true;
	memcpy(p->port.mac, mac, 6);
	p->loop = loop;
	p->link.fd = fd;
	p->more_fd = -1;
	int r = check_socket(fd, err);
	if (r < 0)
		goto fail;
	p->more_fd = host.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->more_fd < 0) {
		r = error_set(err, -errno, "cannot make an eventfd: %s", strerror(errno));
		goto fail;
	}
	p->watch = loop_fd_add(loop, fd, LOOP_IN, on_socket, p);
	p->more = loop_fd_add(loop, p->more_fd, LOOP_IN, on_more, p);
	if (!p->watch || !p->more) {
		r = error_set(err, -ENOMEM, "out of memory");
		goto fail;
	}
	net_link_open(&p->link, fd, true);
	*out = &p->port;
	return 0;
fail:
	socket_close(&p->port);
	return r;
}
