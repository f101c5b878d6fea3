/* SPDX-License-Identifier: Apache-2.0 */
/* A port over a TAP device: one read(2) or write(2) a frame.  Nothing is queued here, as in port_socket.c. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/host.h"
#include "base/log.h"
#include "net/tap.h"

#define BATCH	   64
#define IOV_DIRECT (IOV_MAX - 1)

struct tap_port {
	struct net_port port;
	struct loop_fd *watch; /* NULL: the interface is gone */
	int fd;
	bool is_away;	 /* nothing is to be read */
	bool is_held;	 /* @rx holds a frame the card had no buffer for */
	bool is_waiting; /* the card waits for room */
	size_t rx_len;
	struct {
		struct net_offload off;
		uint8_t frame[NET_FRAME_MAX];
	} rx;
	uint8_t tx[NET_FRAME_MAX]; /* for frames in very many pieces */
};

static void watch(struct tap_port *p)
{
	unsigned events = (p->is_held ? 0 : LOOP_IN) | (p->is_waiting ? LOOP_OUT : 0);

	if (p->watch)
		loop_fd_modify(p->watch, p->is_away ? 0 : events);
}

static void hang_up(struct tap_port *p)
{
	if (!p->watch)
		return;
	loop_fd_remove(p->watch);
	p->watch = NULL;
	p->is_waiting = false;
	log_warn("net", "the host's interface is gone; the guest's link is down");
	if (p->port.card.link_changed)
		p->port.card.link_changed(p->port.card.ctx, false);
}

static int flatten(struct tap_port *p, const struct iovec *iov, unsigned niov, struct iovec *out)
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

static int tap_send(struct net_port *port, const struct net_offload *off, const struct iovec *iov,
		    unsigned niov)
{
	struct tap_port *p = container_of(port, struct tap_port, port);
	struct iovec v[IOV_DIRECT + 1];
	ssize_t n;

	if (!p->watch)
		return -ENETDOWN;
	v[0] = (struct iovec){ (void *)(uintptr_t)off, sizeof(*off) };
	if (niov > IOV_DIRECT) {
		int r = flatten(p, iov, niov, &v[1]);
		if (r < 0)
			return r;
		niov = 1;
	} else {
		memcpy(v + 1, iov, niov * sizeof(*iov));
	}
	do
		n = writev(p->fd, v, (int)niov + 1);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return 0;
	if (errno == EAGAIN || errno == ENOBUFS) {
		p->is_waiting = true;
		watch(p);
		return -EAGAIN;
	}
	int e = -errno; /* EINVAL: hints that the kernel does not like; EIO: the interface is down, the frame is lost */
	if (e == -EBADFD)
		hang_up(p);
	return e;
}

static bool deliver(struct tap_port *p)
{
	struct iovec iov = { p->rx.frame, p->rx_len - sizeof(p->rx.off) };

	p->is_held = p->port.card.receive &&
		     p->port.card.receive(p->port.card.ctx, &p->rx.off, &iov, 1) == -ENOBUFS;
	return !p->is_held;
}

static void read_frames(struct tap_port *p)
{
	for (unsigned i = 0; i < BATCH && !p->is_held && p->watch; i++) {
		ssize_t n = read(p->fd, &p->rx, sizeof(p->rx));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n <= 0) {
			hang_up(p);
			break;
		}
		if ((size_t)n <= sizeof(p->rx.off))
			continue;
		p->rx_len = (size_t)n;
		deliver(p);
	}
	watch(p);
}

static void on_device(void *arg, int fd, unsigned events)
{
	struct tap_port *p = arg;

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

static void tap_rx_ready(struct net_port *port)
{
	struct tap_port *p = container_of(port, struct tap_port, port);

	/* The rest comes on the loop's thread. */
	if (p->is_held && deliver(p))
		watch(p);
}

static void tap_hold(struct net_port *port, bool is_held)
{
	struct tap_port *p = container_of(port, struct tap_port, port);

	p->is_away = is_held;
	watch(p);
}

static void tap_close(struct net_port *port)
{
	if (!port)
		return;
	struct tap_port *p = container_of(port, struct tap_port, port);
	loop_fd_remove(p->watch);
	close(p->fd);
	free(p);
}

static const struct net_ops tap_ops = {
	.send = tap_send,
	.rx_ready = tap_rx_ready,
	.close = tap_close,
	.hold = tap_hold,
};

int net_port_tap(struct net_port **out, struct loop *loop, int fd, const uint8_t mac[6], struct error *err)
{
	struct tap_port *p = host.malloc(sizeof(*p));

	if (!p) {
		close(fd);
		return error_set(err, -ENOMEM, "out of memory");
	}
	memset(p, 0, sizeof(*p));
	p->port.ops = &tap_ops;
	p->port.can_offload = true;
	memcpy(p->port.mac, mac, 6);
	p->fd = fd;
	p->watch = loop_fd_add(loop, fd, LOOP_IN, on_device, p);
	if (!p->watch) {
		tap_close(&p->port);
		return error_set(err, -ENOMEM, "out of memory");
	}
	*out = &p->port;
	return 0;
}
