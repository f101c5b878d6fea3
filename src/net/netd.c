/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network process of one guest: one poll loop around an uplink.
 *
 * Bounds, as the guest is hostile:
 *  - frames to the guest that the socket does not take wait in a ring of QUEUE_MAX, QUEUE_BYTES together;
 *    when it is full they are dropped, and while it is half full slirp's host sockets are not read, so
 *    that TCP slows down instead;
 *  - at most FILES_MAX descriptors, hence connections, each with buffers of bounded size; those of tcp_nat have a
 *    bound together, and their frames never wait here: what the socket does not take stays a byte in a ring.
 */
#include "net/netd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/log.h"
#include "net/offload.h"
#include "net/uplink.h"

#define QUEUE_MAX    256
#define QUEUE_BYTES  (2 * MIB)
#define SOCKET_SPACE (1 << 20) /* asked for; the host may give less */
#define BATCH	     64	       /* frames from the guest a round */
#define FILES_MAX    1024
#define NETWORK	     "10.0.2.0"
#define NETMASK	     "255.255.255.0"
#define GATEWAY	     "10.0.2.2"

struct out_frame {
	uint32_t len;
	struct net_offload off; /* from here on as it is sent, with @len bytes of frame */
	uint8_t data[];
};

struct netd {
	int fd;
	struct uplink *uplink;
	struct pollfd *pfds; /* [0] is the machine, then the uplink's */
	bool is_gone;	     /* the machine closed the socket */
	/* frames to the guest */
	struct out_frame *queue[QUEUE_MAX]; /* malloc'd */
	unsigned head, queued;
	size_t queued_bytes;
	uint64_t dropped;
	struct {
		struct net_offload off;
		uint8_t frame[NET_FRAME_MAX];
	} rx;
};

/* ---- to the guest ---- */

/* 1: sent, 0: no room. */
static int send_now(struct netd *n, struct iovec *iov, unsigned niov)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = niov };

	for (;;) {
		if (sendmsg(n->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
			return 1;
		if (errno == EINTR)
			continue;
		if (errno == EAGAIN || errno == ENOBUFS)
			return 0;
		n->is_gone = true;
		return 1;
	}
}

static void flush_queue(struct netd *n)
{
	while (n->queued) {
		struct out_frame *f = n->queue[n->head];
		struct iovec iov = { &f->off, sizeof(f->off) + f->len };
		if (!send_now(n, &iov, 1))
			return;
		n->head = (n->head + 1) % QUEUE_MAX;
		n->queued--;
		n->queued_bytes -= f->len;
		free(f);
	}
}

static bool is_congested(const struct netd *n)
{
	return n->queued >= QUEUE_MAX / 2 || n->queued_bytes >= QUEUE_BYTES / 2;
}

/* A frame in two parts: sent, or queued, or dropped. */
static void send_frame(void *ctx, const struct net_offload *off, const void *head, size_t head_len,
		       const void *rest, size_t rest_len)
{
	struct netd *n = ctx;
	size_t len = head_len + rest_len;
	struct iovec iov[3] = { { (void *)(uintptr_t)off, sizeof(*off) },
				{ (void *)(uintptr_t)head, head_len },
				{ (void *)(uintptr_t)rest, rest_len } };

	if (!n->queued && send_now(n, iov, rest_len ? 3 : 2))
		return;
	struct out_frame *f = NULL;
	if (n->queued < QUEUE_MAX && len <= QUEUE_BYTES - n->queued_bytes)
		f = malloc(sizeof(*f) + len);
	if (!f) {
		n->dropped++;
		return;
	}
	f->len = len;
	f->off = *off;
	memcpy(f->data, head, head_len);
	if (rest_len)
		memcpy(f->data + head_len, rest, rest_len);
	n->queue[(n->head + n->queued++) % QUEUE_MAX] = f;
	n->queued_bytes += len;
}

/* For tcp_nat: at once or not at all. */
static bool send_tcp(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	struct netd *n = ctx;
	struct iovec v[4] = { { (void *)(uintptr_t)off, sizeof(*off) } };

	for (unsigned i = 0; i < niov; i++)
		v[1 + i] = iov[i];
	return !n->queued && send_now(n, v, 1 + niov);
}

/* ---- from the guest ---- */

static void read_guest(struct netd *n)
{
	for (unsigned i = 0; i < BATCH && !n->is_gone; i++) {
		ssize_t len = recv(n->fd, &n->rx, sizeof(n->rx), MSG_DONTWAIT | MSG_TRUNC);
		if (len < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (len <= 0) {
			n->is_gone = true;
			return;
		}
		if ((size_t)len > sizeof(n->rx.off) && (size_t)len <= sizeof(n->rx))
			uplink_input(n->uplink, &n->rx.off, n->rx.frame, (size_t)len - sizeof(n->rx.off));
	}
}

/* ---- the loop ---- */

static void serve(struct netd *n)
{
	while (!n->is_gone) {
		uint32_t timeout_ms = 60000;
		bool congested = is_congested(n);
		bool wants_room = n->queued || uplink_wants_room(n->uplink);

		n->pfds[0] =
			(struct pollfd){ .fd = n->fd, .events = POLLIN | (wants_room ? POLLOUT : 0) };
		unsigned npfds = uplink_fill(n->uplink, n->pfds + 1, FILES_MAX, congested, &timeout_ms);
		int r = poll(n->pfds, 1 + npfds, (int)timeout_ms);
		if (r < 0 && errno != EINTR) {
			log_error("net", "poll: %s", strerror(errno));
			return;
		}
		for (unsigned i = 0; r <= 0 && i <= npfds; i++)
			n->pfds[i].revents = 0;
		if (n->pfds[0].revents & POLLOUT)
			flush_queue(n);
		uplink_polled(n->uplink, n->pfds + 1, npfds, r < 0);
		if (n->pfds[0].revents & (POLLIN | POLLHUP | POLLERR))
			read_guest(n);
		uplink_flush(n->uplink);
	}
}

/* ---- start ---- */

static void limit_files(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = MIN(lim.rlim_cur, (rlim_t)FILES_MAX);
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

static int set_up_uplink(struct netd *n, const struct netd_config *cfg, struct error *err)
{
	struct uplink_config c = {
		.is_restricted = cfg->is_restricted,
		.no_ipv6 = cfg->no_ipv6,
		.no_host_loopback = cfg->no_host_loopback,
		.host_mac = { 0x52, 0x55, 10, 0, 2, 2 }, /* as slirp answers ARP for GATEWAY */
		.send = send_frame,
		.send_tcp = send_tcp,
		.ctx = n,
	};

	inet_pton(AF_INET, NETWORK, &c.net);
	inet_pton(AF_INET, NETMASK, &c.mask);
	inet_pton(AF_INET, GATEWAY, &c.host);
	inet_pton(AF_INET, "10.0.2.15", &c.dhcp_start);
	inet_pton(AF_INET, "10.0.2.3", &c.dns);
	inet_pton(AF_INET6, "fec0::", &c.prefix6);
	inet_pton(AF_INET6, "fec0::2", &c.host6);
	inet_pton(AF_INET6, "fec0::3", &c.dns6);
	return uplink_create(&n->uplink, &c, err);
}

static int set_up(struct netd *n, const struct netd_config *cfg, struct error *err)
{
	n->fd = cfg->fd;
	n->pfds = calloc(FILES_MAX + 1, sizeof(*n->pfds));
	if (!n->pfds)
		return error_set(err, -ENOMEM, "the network process has no memory");
	if (fcntl(n->fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_set(err, -errno, "descriptor %d of the network process: %s", n->fd,
				 strerror(errno));
	int space = SOCKET_SPACE;
	setsockopt(n->fd, SOL_SOCKET, SO_SNDBUF, &space, sizeof(space)); /* a wish */
	limit_files();
	int r = set_up_uplink(n, cfg, err);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < cfg->nforwards; i++) {
		r = uplink_forward(n->uplink, &cfg->forwards[i], err);
		if (r < 0)
			return r;
	}
	return 0;
}

static void report(const struct netd_config *cfg, const char *text)
{
	if (cfg->ready_fd >= 0) {
		dprintf(cfg->ready_fd, "%s\n", text);
		close(cfg->ready_fd);
	} else if (strcmp(text, "ok") != 0) {
		fprintf(stderr, "viv: %s\n", text);
	}
}

int netd_main(const struct netd_config *cfg)
{
	struct netd *n = calloc(1, sizeof(*n));
	struct error err;
	int r;

	if (!n) {
		report(cfg, "the network process has no memory");
		return 1;
	}
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	r = set_up(n, cfg, &err);
	report(cfg, r < 0 ? err.text : "ok");
	if (r == 0)
		serve(n);
	uplink_destroy(n->uplink);
	close(n->fd);
	while (n->queued) {
		free(n->queue[n->head]);
		n->head = (n->head + 1) % QUEUE_MAX;
		n->queued--;
	}
	free(n->pfds);
	free(n);
	return r < 0;
}
