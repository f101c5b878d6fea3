/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network process of one guest: one poll loop around an uplink.
 *
 * Bounds, as the guest is hostile:
 *  - frames to the guest that the link does not take wait in a ring of QUEUE_MAX, QUEUE_BYTES together;
 *    when it is full they are dropped, and while it is half full slirp's host sockets are not read, so
 *    that TCP slows down instead;
 *  - at most FILES_MAX descriptors, hence connections, each with buffers of bounded size; those of tcp_nat have a
 *    bound together, and their frames never wait here: what the link does not take stays a byte in a ring.
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
#include <time.h>

#include "base/log.h"
#include "net/link.h"
#include "net/offload.h"
#include "net/tunnel.h"
#include "net/uplink.h"

#define QUEUE_MAX   256
#define QUEUE_BYTES (2 * MIB)
#define BATCH	    64 /* frames from the guest a round */
#define FILES_MAX   1024
#define NETWORK	    "10.0.2.0"
#define NETMASK	    "255.255.255.0"
#define GATEWAY	    "10.0.2.2"

struct out_frame {
	uint32_t len;
	struct net_offload off;
	uint8_t data[];
};

struct netd {
	struct net_link link;
	struct uplink *uplink;
	struct tunnel tunnel;
	struct pollfd *pfds; /* [0] is the machine, then the tunnel's and the uplink's */
	bool is_gone;	     /* the machine closed the socket, or broke the rings */
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

/* False: no room. */
static bool send_now(struct netd *n, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	int r = net_link_send(&n->link, off, iov, niov);

	n->is_gone |= r < 0 && r != -EAGAIN;
	return r != -EAGAIN;
}

static void flush_queue(struct netd *n)
{
	while (n->queued) {
		struct out_frame *f = n->queue[n->head];
		struct iovec iov = { f->data, f->len };
		if (!send_now(n, &f->off, &iov, 1))
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
	struct iovec iov[2] = { { (void *)(uintptr_t)head, head_len },
				{ (void *)(uintptr_t)rest, rest_len } };

	if (!n->queued && send_now(n, off, iov, rest_len ? 2 : 1))
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

	return !n->queued && send_now(n, off, iov, niov);
}

/* ---- from the guest ---- */

/* It is copied before anybody looks: the machine may still write to it. */
static void take_frame(struct netd *n, const struct net_ring_frame *f)
{
	if (!n->link.is_from_socket)
		memcpy(n->rx.frame, f->data, f->len);
	uplink_input(n->uplink, &f->off, n->rx.frame, f->len);
}

static void read_guest(struct netd *n)
{
	const struct net_link_rx rx = { &n->rx.off, n->rx.frame };
	struct net_ring_frame f;

	for (unsigned i = 0; i < BATCH && !n->is_gone; i++) {
		int r = net_link_next(&n->link, &rx, &f);
		if (r == 0)
			return;
		if (r == 1) {
			take_frame(n, &f);
			net_link_done(&n->link);
		}
		n->is_gone |= r < 0;
	}
}

static void tell_resets(struct netd *n)
{
	net_link_give_resets(&n->link, n->rx.frame, uplink_resets(n->uplink, n->rx.frame, NET_FRAME_MAX));
}

/* The process that started this one ends now, and the machine goes on without it: this one ends with its socket only. */
static void move(struct netd *n)
{
	prctl(PR_SET_PDEATHSIG, 0);
	net_link_move(&n->link);
}

/* ---- the loop ---- */

static void serve(struct netd *n)
{
	while (!n->is_gone) {
		uint32_t timeout_ms = 60000;
		bool congested = is_congested(n);
		bool wants_room = n->queued || uplink_wants_room(n->uplink);

		n->pfds[0].fd = n->link.fd;
		n->pfds[0].events = net_link_poll(&n->link, wants_room, &timeout_ms);
		unsigned ntunnel = tunnel_fill(&n->tunnel, n->pfds + 1, &timeout_ms);
		struct pollfd *up = n->pfds + 1 + ntunnel;
		unsigned npfds = uplink_fill(n->uplink, up, FILES_MAX, congested, &timeout_ms);
		int r = poll(n->pfds, 1 + ntunnel + npfds, (int)timeout_ms);
		if (r < 0 && errno != EINTR) {
			log_error("net", "poll: %s", strerror(errno));
			return;
		}
		for (unsigned i = 0; r <= 0 && i <= ntunnel + npfds; i++)
			n->pfds[i].revents = 0;
		net_link_polled(&n->link, n->pfds[0].revents);
		if (n->link.is_writable)
			flush_queue(n);
		uplink_polled(n->uplink, up, npfds, r < 0);
		tunnel_polled(&n->tunnel, n->pfds + 1, ntunnel);
		read_guest(n);
		uplink_flush(n->uplink);
		if (n->link.wants_resets)
			tell_resets(n);
		if (n->link.wants_move)
			move(n);
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

static void call_guest(void *ctx, int fd, uint16_t port)
{
	uplink_call(((struct netd *)ctx)->uplink, fd, port);
}

static int64_t now_ms(void *ctx)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

static int set_up(struct netd *n, const struct netd_config *cfg, struct error *err)
{
	net_link_open(&n->link, cfg->fd, false);
	n->tunnel =
		(struct tunnel){ .fd = cfg->tunnel_fd, .call = call_guest, .now_ms = now_ms, .ctx = n };
	n->pfds = calloc(1 + TUNNEL_POLLS + FILES_MAX, sizeof(*n->pfds));
	if (!n->pfds)
		return error_set(err, -ENOMEM, "the network process has no memory");
	if (fcntl(n->link.fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_set(err, -errno, "descriptor %d of the network process: %s",
				 n->link.fd, strerror(errno));
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
	tunnel_close(&n->tunnel);
	uplink_destroy(n->uplink);
	net_link_close(&n->link);
	while (n->queued) {
		free(n->queue[n->head]);
		n->head = (n->head + 1) % QUEUE_MAX;
		n->queued--;
	}
	free(n->pfds);
	free(n);
	return r < 0;
}
