/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network process: one poll loop around libslirp and tcp_nat.
 *
 * Bounds, as the guest is hostile:
 *  - frames to the guest that the socket does not take wait in a ring of QUEUE_MAX, QUEUE_BYTES together;
 *    when it is full they are dropped, and while it is half full slirp's host sockets are not read, so
 *    that TCP slows down instead;
 *  - at most FILES_MAX descriptors, hence connections, each with buffers of bounded size; those of tcp_nat have a
 *    bound together, and their frames never wait here: what the socket does not take stays a byte in a ring;
 *  - IPv4 fragments are kept by slirp for half a minute, in a buffer of SLIRP_MTU each: they pass at
 *    FRAGMENTS_PER_S at most.
 *
 * Each frame costs two processes a wakeup and the guest an interrupt and a walk through its network code, whatever
 * its length.  So slirp, where TCP is still its, believes in a wire of SLIRP_MTU: the guest's TCP sends it frames of 64 KiB
 * (virtio's segmentation offload), and its own long TCP segments go to the guest as they are, with
 * hints (offload.h) to be cut for NET_MTU; everything else is cut to that, the MTU that the guest knows.
 * slirp looks at the segment size that a guest offers only where the host's connect is done at once: a smaller
 * offer than NET_MTU allows is not always kept.
 */
#include "net/netd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <slirp/libslirp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "base/log.h"
#include "net/offload.h"
#include "net/tcp_nat.h"

#define QUEUE_MAX	256
#define QUEUE_BYTES	(2 * MIB)
#define SOCKET_SPACE	(1 << 20) /* asked for; the host may give less */
#define BATCH		64	  /* frames from the guest a round */
#define FILES_MAX	1024
#define TIMERS_MAX	8
#define FRAGMENTS_PER_S 500
/* Three segments fill the 64 KiB of an unscaled window as Linux rounds it; and twice the segment must stay well below
 * 64 KiB, as slirp tells of newly free window in steps of that. */
#define SLIRP_MSS 21400
#define SLIRP_MTU (SLIRP_MSS + 40)
#define NETWORK	  "10.0.2.0"
#define NETMASK	  "255.255.255.0"
#define GATEWAY	  "10.0.2.2"

struct out_frame {
	uint32_t len;
	struct net_offload off; /* from here on as it is sent, with @len bytes of frame */
	uint8_t data[];
};

struct timer {
	SlirpTimerId id;
	void *cb_opaque;
	int64_t expire_ms; /* -1: not armed */
	bool is_used;
};

struct netd {
	int fd;
	Slirp *slirp;
	struct tcp_nat *tcp;
	struct pollfd *pfds; /* [0] is the machine, then tcp's, then slirp's */
	unsigned npfds, pfds_cap;
	bool is_gone; /* the machine closed the socket */
	struct timer timers[TIMERS_MAX];
	/* frames to the guest */
	struct out_frame *queue[QUEUE_MAX]; /* malloc'd */
	unsigned head, queued;
	size_t queued_bytes;
	uint64_t dropped;
	/* fragments from the guest */
	int64_t fragment_window_s;
	unsigned fragments;
	struct {
		struct net_offload off;
		uint8_t frame[NET_FRAME_MAX];
	} rx;
};

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

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
static void send_frame(struct netd *n, const struct net_offload *off, const void *head,
		       size_t head_len, const void *rest, size_t rest_len)
{
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

static int64_t tcp_now_ms(void *ctx)
{
	(void)ctx;
	return now_ns() / 1000000;
}

static int emit_plain(void *arg, const uint8_t *frame, size_t len)
{
	static const struct net_offload none;

	send_frame(arg, &none, frame, len, NULL, 0);
	return 0;
}

static ssize_t on_send_packet(const void *buf, size_t len, void *opaque)
{
	struct netd *n = opaque;
	uint8_t headers[NET_HEADERS_MAX];
	struct net_offload off;

	if (len <= NET_MTU + 14) {
		emit_plain(n, buf, len);
		return (ssize_t)len;
	}
	int head = len <= NET_FRAME_MAX ? offload_long_tcp(buf, len, headers, &off) : -EINVAL;
	if (head >= 0)
		send_frame(n, &off, headers, head, (const uint8_t *)buf + head, len - head);
	else if (offload_fragment(buf, len, emit_plain, n) < 0)
		n->dropped++;
	return (ssize_t)len; /* a drop is no error: TCP sends again */
}

/* ---- from the guest ---- */

/* An IPv4 fragment: more to come, or an offset. */
static bool is_fragment(const uint8_t *f, size_t len)
{
	return len >= 34 && f[12] == 0x08 && f[13] == 0x00 && (f[20] & 0x3f || f[21]);
}

static bool may_pass_fragment(struct netd *n)
{
	int64_t s = now_ns() / 1000000000LL;

	if (s != n->fragment_window_s) {
		n->fragment_window_s = s;
		n->fragments = 0;
	}
	return n->fragments++ < FRAGMENTS_PER_S;
}

static int input_plain(void *arg, const uint8_t *frame, size_t len)
{
	/* The frame lies in netd.rx, which is ours to write. */
	offload_raise_mss((uint8_t *)(uintptr_t)frame, len, SLIRP_MSS);
	slirp_input(((struct netd *)arg)->slirp, frame, (int)len);
	return 0;
}

static void take_frame(struct netd *n, size_t len)
{
	uint8_t *f = n->rx.frame;
	int r;

	if (len < 14)
		return;
	tcp_nat_guest_mac(n->tcp, f + 6);
	if (is_fragment(f, len) && (len > NET_MTU + 18 || !may_pass_fragment(n)))
		return;
	if (tcp_nat_input(n->tcp, f, len))
		return;
	/* slirp takes long TCP segments over IPv4 as they are; IPv6 only up to its MTU. */
	if ((n->rx.off.gso_type & ~NET_GSO_ECN) == NET_GSO_TCP6 && n->rx.off.gso_size >= NET_GSO_SIZE_MIN)
		n->rx.off.gso_size = SLIRP_MTU - NET_HEADERS_MAX;
	if ((n->rx.off.gso_type & ~NET_GSO_ECN) == NET_GSO_TCP4) {
		r = offload_checksum(&n->rx.off, f, len);
		if (r == 0)
			input_plain(n, f, len);
	} else {
		r = offload_segment(&n->rx.off, f, len, input_plain, n);
	}
	if (r < 0)
		log_guest("net", "a frame of %zu bytes with hints that don't fit it", len);
}

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
			take_frame(n, (size_t)len - sizeof(n->rx.off));
	}
}

/* ---- what slirp asks for ---- */

static void on_guest_error(const char *msg, void *opaque)
{
	(void)opaque;
	log_guest("net", "%s", msg);
}

static int64_t on_clock(void *opaque)
{
	(void)opaque;
	return now_ns();
}

static void *on_timer_new(SlirpTimerId id, void *cb_opaque, void *opaque)
{
	struct netd *n = opaque;

	for (unsigned i = 0; i < TIMERS_MAX; i++)
		if (!n->timers[i].is_used) {
			n->timers[i] = (struct timer){ id, cb_opaque, -1, true };
			return &n->timers[i];
		}
	return NULL;
}

static void on_timer_free(void *timer, void *opaque)
{
	(void)opaque;
	if (timer)
		((struct timer *)timer)->is_used = false;
}

static void on_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
	(void)opaque;
	if (timer)
		((struct timer *)timer)->expire_ms = expire_ms;
}

static void on_poll_fd(int fd, void *opaque)
{
	/* The set is built anew each round. */
	(void)fd;
	(void)opaque;
}

static void on_notify(void *opaque)
{
	/* There is one thread, and it looks each round. */
	(void)opaque;
}

static const SlirpCb callbacks = {
	.send_packet = on_send_packet,
	.guest_error = on_guest_error,
	.clock_get_ns = on_clock,
	.timer_new_opaque = on_timer_new,
	.timer_free = on_timer_free,
	.timer_mod = on_timer_mod,
	.register_poll_fd = on_poll_fd,
	.unregister_poll_fd = on_poll_fd,
	.notify = on_notify,
};

/* ---- the loop ---- */

// clang-format off
static const struct { int slirp; short poll; } event_bits[] = {
	{SLIRP_POLL_IN, POLLIN}, {SLIRP_POLL_OUT, POLLOUT}, {SLIRP_POLL_PRI, POLLPRI},
	{SLIRP_POLL_ERR, POLLERR}, {SLIRP_POLL_HUP, POLLHUP},
};
// clang-format on

static int add_poll(int fd, int events, void *opaque)
{
	struct netd *n = opaque;
	short want = 0;

	if (n->npfds == n->pfds_cap)
		return -1; /* cannot be: there are no more descriptors */
	for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
		if (events & event_bits[i].slirp && i < 3)
			want |= event_bits[i].poll;
	n->pfds[n->npfds] = (struct pollfd){ .fd = fd, .events = want };
	return (int)n->npfds++;
}

static int get_revents(int idx, void *opaque)
{
	struct netd *n = opaque;
	int events = 0;

	if (idx < 0 || (unsigned)idx >= n->npfds)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
		if (n->pfds[idx].revents & event_bits[i].poll)
			events |= event_bits[i].slirp;
	return events;
}

static uint32_t next_timer_ms(const struct netd *n, uint32_t timeout_ms)
{
	int64_t now = now_ns() / 1000000;

	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		const struct timer *t = &n->timers[i];
		if (t->is_used && t->expire_ms >= 0)
			timeout_ms = (uint32_t)MIN((int64_t)timeout_ms,
						   MAX(t->expire_ms - now, (int64_t)0));
	}
	return timeout_ms;
}

static void run_timers(struct netd *n)
{
	int64_t now = now_ns() / 1000000;

	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		struct timer *t = &n->timers[i];
		if (!t->is_used || t->expire_ms < 0 || t->expire_ms > now)
			continue;
		t->expire_ms = -1;
		slirp_handle_timer(n->slirp, t->id, t->cb_opaque);
	}
}

static void serve(struct netd *n)
{
	while (!n->is_gone) {
		uint32_t timeout_ms = 60000;
		bool congested = is_congested(n);
		bool wants_room = n->queued || tcp_nat_wants_room(n->tcp);

		n->pfds[0] =
			(struct pollfd){ .fd = n->fd, .events = POLLIN | (wants_room ? POLLOUT : 0) };
		unsigned ntcp = tcp_nat_fill(n->tcp, n->pfds + 1, TCP_NAT_POLLS, &timeout_ms);
		n->npfds = 1 + ntcp;
		if (!congested)
			slirp_pollfds_fill(n->slirp, &timeout_ms, add_poll, n);
		timeout_ms = next_timer_ms(n, timeout_ms);
		int r = poll(n->pfds, n->npfds, (int)timeout_ms);
		if (r < 0 && errno != EINTR) {
			log_error("net", "poll: %s", strerror(errno));
			return;
		}
		for (unsigned i = 0; r <= 0 && i < n->npfds; i++)
			n->pfds[i].revents = 0;
		if (n->pfds[0].revents & POLLOUT)
			flush_queue(n);
		if (!congested)
			slirp_pollfds_poll(n->slirp, r < 0, get_revents, n);
		run_timers(n);
		tcp_nat_polled(n->tcp, n->pfds + 1, ntcp);
		if (n->pfds[0].revents & (POLLIN | POLLHUP | POLLERR))
			read_guest(n);
		tcp_nat_flush(n->tcp);
	}
}

/* ---- start ---- */

static void set_up_slirp(struct netd *n, const struct netd_config *cfg)
{
	SlirpConfig c = {
		.version = 4,
		.restricted = cfg->is_restricted,
		.in_enabled = true,
		.in6_enabled = !cfg->no_ipv6,
		.vprefix_len = 64,
		.if_mtu = SLIRP_MTU,
		.if_mru = SLIRP_MTU,
		.disable_host_loopback = cfg->no_host_loopback,
	};

	inet_pton(AF_INET, NETWORK, &c.vnetwork);
	inet_pton(AF_INET, NETMASK, &c.vnetmask);
	inet_pton(AF_INET, GATEWAY, &c.vhost);
	inet_pton(AF_INET, "10.0.2.15", &c.vdhcp_start);
	inet_pton(AF_INET, "10.0.2.3", &c.vnameserver);
	inet_pton(AF_INET6, "fec0::", &c.vprefix_addr6);
	inet_pton(AF_INET6, "fec0::2", &c.vhost6);
	inet_pton(AF_INET6, "fec0::3", &c.vnameserver6);
	n->slirp = slirp_new(&c, &callbacks, n);
}

static int set_up_tcp(struct netd *n, const struct netd_config *cfg, struct error *err)
{
	struct tcp_nat_config c = {
		.no_host_loopback = cfg->no_host_loopback,
		.is_restricted = cfg->is_restricted,
		.gateway_mac = { 0x52, 0x55, 10, 0, 2, 2 }, /* as slirp answers ARP for GATEWAY */
		.send = send_tcp,
		.now_ms = tcp_now_ms,
		.ctx = n,
	};

	inet_pton(AF_INET, NETWORK, &c.net);
	inet_pton(AF_INET, NETMASK, &c.mask);
	inet_pton(AF_INET, GATEWAY, &c.host);
	return tcp_nat_create(&n->tcp, &c, err);
}

static void describe(const struct netd_forward *f, char *buf, size_t cap)
{
	char addr[INET6_ADDRSTRLEN] = "?";
	const struct sockaddr_in *v4 = (const void *)&f->host;
	const struct sockaddr_in6 *v6 = (const void *)&f->host;

	if (f->host.ss_family == AF_INET) {
		inet_ntop(AF_INET, &v4->sin_addr, addr, sizeof(addr));
		snprintf(buf, cap, "%s:%u", addr, ntohs(v4->sin_port));
	} else {
		inet_ntop(AF_INET6, &v6->sin6_addr, addr, sizeof(addr));
		snprintf(buf, cap, "[%s]:%u", addr, ntohs(v6->sin6_port));
	}
}

static socklen_t host_len(const struct netd_forward *f)
{
	return f->host.ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}

/* A listening socket, or -1 with errno. */
static int listen_at(const struct netd_forward *f)
{
	int one = 1, fd = socket(f->host.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	/* A port whose last connections are still ending can be had again. */
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if ((f->host.ss_family == AF_INET6 &&
	     setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) < 0) ||
	    bind(fd, (const struct sockaddr *)&f->host, host_len(f)) < 0 || listen(fd, SOMAXCONN) < 0) {
		int e = errno;
		close(fd);
		errno = e;
		return -1;
	}
	return fd;
}

static int add_forward(struct netd *n, const struct netd_forward *f, struct error *err)
{
	struct sockaddr_in guest = { .sin_family = AF_INET,
				     .sin_addr = f->guest,
				     .sin_port = htons(f->guest_port) };
	bool is_v6 = f->host.ss_family == AF_INET6;
	char where[80];

	/* 0 stands for the first address that DHCP gives. */
	if (!guest.sin_addr.s_addr)
		inet_pton(AF_INET, "10.0.2.15", &guest.sin_addr);
	errno = 0;
	if (!f->is_udp) {
		int fd = listen_at(f);
		if (fd >= 0 && tcp_nat_forward(n->tcp, fd, guest.sin_addr.s_addr, f->guest_port) == 0)
			return 0;
	} else if (slirp_add_hostxfwd(n->slirp, (const struct sockaddr *)&f->host, host_len(f),
				      (const struct sockaddr *)&guest, sizeof(guest),
				      SLIRP_HOSTFWD_UDP | (is_v6 ? SLIRP_HOSTFWD_V6ONLY : 0)) == 0) {
		return 0;
	}
	int e = errno ? errno : EADDRINUSE;
	describe(f, where, sizeof(where));
	return error_set(err, -e, "cannot forward %s port %s to the guest's port %u: %s; %s",
			 f->is_udp ? "UDP" : "TCP", where, f->guest_port, strerror(e),
			 e == EACCES	      ? "choose a host port from 1024 on"
			 : e == EADDRNOTAVAIL ? "choose an address that this host has"
					      : "choose another host port");
}

static void limit_files(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = MIN(lim.rlim_cur, (rlim_t)FILES_MAX);
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

static int set_up(struct netd *n, const struct netd_config *cfg, struct error *err)
{
	n->fd = cfg->fd;
	n->pfds_cap = FILES_MAX + 1;
	n->pfds = calloc(n->pfds_cap, sizeof(*n->pfds));
	if (!n->pfds)
		return error_set(err, -ENOMEM, "the network process has no memory");
	if (fcntl(n->fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_set(err, -errno, "descriptor %d of the network process: %s", n->fd,
				 strerror(errno));
	int space = SOCKET_SPACE;
	setsockopt(n->fd, SOL_SOCKET, SO_SNDBUF, &space, sizeof(space)); /* a wish */
	limit_files();
	set_up_slirp(n, cfg);
	if (!n->slirp)
		return error_set(err, -EIO, "libslirp does not start");
	int r = set_up_tcp(n, cfg, err);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < cfg->nforwards; i++) {
		r = add_forward(n, &cfg->forwards[i], err);
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
	tcp_nat_destroy(n->tcp);
	if (n->slirp)
		slirp_cleanup(n->slirp);
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
