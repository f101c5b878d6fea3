/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libslirp and tcp_nat behind one interface.
 *
 * Each frame costs two processes a wakeup and the guest an interrupt and a walk through its network code, whatever
 * its length.  So slirp, where TCP is still its, believes in a wire of SLIRP_MTU: the guest's TCP sends it frames of 64 KiB
 * (virtio's segmentation offload), and its own long TCP segments go to the guest as they are, with
 * hints (offload.h) to be cut for NET_MTU; everything else is cut to that, the MTU that the guest knows.
 * slirp looks at the segment size that a guest offers only where the host's connect is done at once: a smaller
 * offer than NET_MTU allows is not always kept.
 *
 * IPv4 fragments are kept by slirp for half a minute, in a buffer of SLIRP_MTU each: they pass at FRAGMENTS_PER_S at
 * most.
 *
 * Behind a router all machines have one MAC.  slirp asks for it by ARP and neighbor discovery; the answers are made here.
 */
#include "net/uplink.h"

#include <arpa/inet.h>
#include <errno.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/lib.h"
#include "base/log.h"
#include "net/offload.h"
#include "net/packet.h"

#define TIMERS_MAX	8
#define FRAGMENTS_PER_S 500
/* Three segments fill the 64 KiB of an unscaled window as Linux rounds it; and twice the segment must stay well below
 * 64 KiB, as slirp tells of newly free window in steps of that. */
#define SLIRP_MSS 21400
#define SLIRP_MTU (SLIRP_MSS + 40)

/* Only processes of networks need it (base/lib.h). */
// clang-format off
#define SLIRP_CALLS(X)                                                                                   \
	X(slirp_new) X(slirp_cleanup) X(slirp_input) X(slirp_add_hostxfwd) X(slirp_handle_timer)         \
	X(slirp_pollfds_fill) X(slirp_pollfds_poll)
// clang-format on

#define MEMBER(f) __typeof__(f) *f;
static struct {
	SLIRP_CALLS(MEMBER)
} lib;

static int load_slirp(struct error *err)
{
#define CALL(f) { #f, &lib.f },
	static const char *const files[] = { "libslirp.so.0", NULL };
	static const struct lib_call calls[] = { SLIRP_CALLS(CALL) };

	return lib.slirp_new ? 0 : lib_load(files, calls, ARRAY_SIZE(calls), err);
}

struct timer {
	SlirpTimerId id;
	void *cb_opaque;
	int64_t expire_ms; /* -1: not armed */
	bool is_used;
};

struct uplink {
	struct uplink_config cfg;
	uint8_t router_mac[6];
	Slirp *slirp;
	struct tcp_nat *tcp;
	struct pollfd *pfds; /* of the round: the caller's; tcp's first, then slirp's */
	unsigned npfds, max_pfds, ntcp;
	bool is_congested; /* slirp was not asked what it polls for */
	struct timer timers[TIMERS_MAX];
	uint64_t dropped;
	unsigned nsockets; /* of slirp's: as it last told, and one for each frame since */
	/* fragments from the guest */
	int64_t fragment_window_s;
	unsigned fragments;
};

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* ---- to the guest ---- */

/* ---- the router's answers to slirp ---- */

/* slirp looks for the machine that has an address: the router has it. */
static bool answer_arp(struct uplink *u, const struct packet *p)
{
	uint8_t f[64] = { 0 }; /* as long as Ethernet pads it */

	if (p->kind != PACKET_ARP)
		return false;
	if (p->arp_op != 1)
		return true;
	packet_put_arp_reply(f, p, u->router_mac);
	lib.slirp_input(u->slirp, f, sizeof(f));
	return true;
}

static bool answer_ns(struct uplink *u, const struct packet *p)
{
	enum { NA_LEN = 32 };
	uint8_t f[ETH_HEADER + 40 + NA_LEN], *n = f + ETH_HEADER + 40;

	if (!p->has_l4 || p->proto != IP_ICMP6 || p->icmp_type < ICMP6_RS || p->icmp_type > ICMP6_REDIRECT)
		return false;
	if (p->icmp_type != ICMP6_NS || net_addr_is_any(&p->src))
		return true;
	memset(n, 0, NA_LEN);
	n[0] = ICMP6_NA;
	n[4] = 0x60; /* solicited, override */
	memcpy(n + 8, p->nd_target.b, 16);
	n[24] = 2;
	n[25] = 1;
	memcpy(n + 26, u->router_mac, 6);
	packet_put_sum(n, NA_LEN, 2, &p->nd_target, &p->src, IP_ICMP6);
	packet_put_eth(f, p->src_mac, u->router_mac, ETH_IPV6);
	packet_put_ip(f + ETH_HEADER, &p->nd_target, &p->src, IP_ICMP6, 255, NA_LEN);
	lib.slirp_input(u->slirp, f, sizeof(f));
	return true;
}

/* True: it was no frame for a machine. */
static bool answer_neighbor(struct uplink *u, const void *frame, size_t len)
{
	struct packet p;

	return packet_parse(&p, (uint8_t *)(uintptr_t)frame, len) != PACKET_FINE ||
	       answer_arp(u, &p) || answer_ns(u, &p);
}

static int emit_plain(void *arg, const uint8_t *frame, size_t len)
{
	static const struct net_offload none;

	struct uplink *u = arg;

	u->cfg.send(u->cfg.ctx, &none, frame, len, NULL, 0);
	return 0;
}

static ssize_t on_send_packet(const void *buf, size_t len, void *opaque)
{
	struct uplink *u = opaque;
	uint8_t headers[NET_HEADERS_MAX];
	struct net_offload off;

	if (u->cfg.router_mac && answer_neighbor(u, buf, len))
		return (ssize_t)len;
	if (len <= NET_MTU + 14) {
		emit_plain(u, buf, len);
		return (ssize_t)len;
	}
	int head = len <= NET_FRAME_MAX ? offload_long_tcp(buf, len, headers, &off) : -EINVAL;
	if (head >= 0)
		u->cfg.send(u->cfg.ctx, &off, headers, head, (const uint8_t *)buf + head, len - head);
	else if (offload_fragment(buf, len, emit_plain, u) < 0)
		u->dropped++;
	return (ssize_t)len; /* a drop is no error: TCP sends again */
}

/* An IPv4 fragment: more to come, or an offset. */
static bool is_fragment(const uint8_t *f, size_t len)
{
	return len >= 34 && f[12] == 0x08 && f[13] == 0x00 && (f[20] & 0x3f || f[21]);
}

static bool may_pass_fragment(struct uplink *u)
{
	int64_t s = now_ns() / 1000000000LL;

	if (s != u->fragment_window_s) {
		u->fragment_window_s = s;
		u->fragments = 0;
	}
	return u->fragments++ < FRAGMENTS_PER_S;
}

static int input_plain(void *arg, const uint8_t *frame, size_t len)
{
	/* The frame is ours to write to: uplink_input(). */
	offload_raise_mss((uint8_t *)(uintptr_t)frame, len, SLIRP_MSS);
	lib.slirp_input(((struct uplink *)arg)->slirp, frame, (int)len);
	return 0;
}

void uplink_input(struct uplink *u, const struct net_offload *hints, uint8_t *f, size_t len)
{
	struct net_offload off = *hints;
	int r;

	if (len < 14)
		return;
	tcp_nat_guest_mac(u->tcp, f + 6);
	if (is_fragment(f, len) && (len > NET_MTU + 18 || !may_pass_fragment(u)))
		return;
	if (tcp_nat_input(u->tcp, f, len))
		return;
	if (u->cfg.max_sockets && u->nsockets >= u->cfg.max_sockets) {
		u->dropped++;
		return;
	}
	u->nsockets++;
	/* slirp takes long TCP segments over IPv4 as they are; IPv6 only up to its MTU. */
	if ((off.gso_type & ~NET_GSO_ECN) == NET_GSO_TCP6 && off.gso_size >= NET_GSO_SIZE_MIN)
		off.gso_size = SLIRP_MTU - NET_HEADERS_MAX;
	if ((off.gso_type & ~NET_GSO_ECN) == NET_GSO_TCP4) {
		r = offload_checksum(&off, f, len);
		if (r == 0)
			input_plain(u, f, len);
	} else {
		r = offload_segment(&off, f, len, input_plain, u);
	}
	if (r < 0)
		log_guest("net", "a frame of %zu bytes with hints that don't fit it", len);
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
	struct uplink *u = opaque;

	for (unsigned i = 0; i < TIMERS_MAX; i++)
		if (!u->timers[i].is_used) {
			u->timers[i] = (struct timer){ id, cb_opaque, -1, true };
			return &u->timers[i];
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
	struct uplink *u = opaque;
	short want = 0;

	if (u->npfds == u->max_pfds)
		return -1; /* cannot be: there are no more descriptors */
	for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
		if (events & event_bits[i].slirp && i < 3)
			want |= event_bits[i].poll;
	u->pfds[u->npfds] = (struct pollfd){ .fd = fd, .events = want };
	return (int)u->npfds++;
}

static int get_revents(int idx, void *opaque)
{
	struct uplink *u = opaque;
	int events = 0;

	if (idx < 0 || (unsigned)idx >= u->npfds)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(event_bits); i++)
		if (u->pfds[idx].revents & event_bits[i].poll)
			events |= event_bits[i].slirp;
	return events;
}

static uint32_t next_timer_ms(const struct uplink *u, uint32_t timeout_ms)
{
	int64_t now = now_ns() / 1000000;

	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		const struct timer *t = &u->timers[i];
		if (t->is_used && t->expire_ms >= 0)
			timeout_ms = (uint32_t)MIN((int64_t)timeout_ms,
						   MAX(t->expire_ms - now, (int64_t)0));
	}
	return timeout_ms;
}

static void run_timers(struct uplink *u)
{
	int64_t now = now_ns() / 1000000;

	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		struct timer *t = &u->timers[i];
		if (!t->is_used || t->expire_ms < 0 || t->expire_ms > now)
			continue;
		t->expire_ms = -1;
		lib.slirp_handle_timer(u->slirp, t->id, t->cb_opaque);
	}
}

unsigned uplink_fill(struct uplink *u, struct pollfd *pfds, unsigned max, bool is_congested,
		     uint32_t *timeout_ms)
{
	u->pfds = pfds;
	u->max_pfds = max;
	u->ntcp = u->npfds = tcp_nat_fill(u->tcp, pfds, MIN(max, (unsigned)TCP_NAT_POLLS), timeout_ms);
	u->is_congested = is_congested;
	if (!is_congested) {
		lib.slirp_pollfds_fill(u->slirp, timeout_ms, add_poll, u);
		u->nsockets = u->npfds - u->ntcp;
	}
	*timeout_ms = next_timer_ms(u, *timeout_ms);
	return u->npfds;
}

void uplink_polled(struct uplink *u, struct pollfd *pfds, unsigned n, bool has_failed)
{
	u->pfds = pfds;
	u->npfds = n;
	if (!u->is_congested)
		lib.slirp_pollfds_poll(u->slirp, has_failed, get_revents, u);
	run_timers(u);
	tcp_nat_polled(u->tcp, pfds, u->ntcp);
}

size_t uplink_resets(const struct uplink *u, uint8_t *out, size_t cap)
{
	return tcp_nat_resets(u->tcp, out, cap);
}

void uplink_flush(struct uplink *u)
{
	tcp_nat_flush(u->tcp);
}

bool uplink_wants_room(const struct uplink *u)
{
	return tcp_nat_wants_room(u->tcp);
}

/* ---- start ---- */

static int64_t tcp_now_ms(void *ctx)
{
	(void)ctx;
	return now_ns() / 1000000;
}

static void set_up_slirp(struct uplink *u)
{
	const struct uplink_config *cfg = &u->cfg;
	SlirpConfig c = {
		.version = 4,
		.restricted = cfg->is_restricted,
		.in_enabled = true,
		.in6_enabled = !cfg->no_ipv6,
		.vnetwork = cfg->net,
		.vnetmask = cfg->mask,
		.vhost = cfg->host,
		.vdhcp_start = cfg->dhcp_start,
		.vnameserver = cfg->dns,
		.vprefix_addr6 = cfg->prefix6,
		.vprefix_len = 64,
		.vhost6 = cfg->host6,
		.vnameserver6 = cfg->dns6,
		.if_mtu = SLIRP_MTU,
		.if_mru = SLIRP_MTU,
		.disable_host_loopback = cfg->no_host_loopback && !cfg->answers_host,
		.disable_dns = cfg->no_services,
		.disable_dhcp = cfg->no_services,
	};

	u->slirp = lib.slirp_new(&c, &callbacks, u);
}

static int set_up_tcp(struct uplink *u, struct error *err)
{
	const struct uplink_config *cfg = &u->cfg;
	struct tcp_nat_config c = {
		.net = cfg->net.s_addr,
		.mask = cfg->mask.s_addr,
		.host = cfg->host.s_addr,
		.no_host_loopback = cfg->no_host_loopback,
		.is_restricted = cfg->is_restricted,
		.send = cfg->send_tcp,
		.now_ms = tcp_now_ms,
		.ctx = cfg->ctx,
	};

	memcpy(c.gateway_mac, cfg->host_mac, 6);
	return tcp_nat_create(&u->tcp, &c, err);
}

int uplink_create(struct uplink **out, const struct uplink_config *cfg, struct error *err)
{
	struct uplink *u = calloc(1, sizeof(*u));

	if (!u)
		return error_set(err, -ENOMEM, "the network process has no memory");
	u->cfg = *cfg;
	int r = load_slirp(err);
	if (r == 0)
		r = set_up_tcp(u, err);
	if (r < 0)
		goto fail;
	set_up_slirp(u);
	if (!u->slirp) {
		r = error_set(err, -EIO, "libslirp does not start");
		goto fail;
	}
	if (cfg->router_mac) {
		memcpy(u->router_mac, cfg->router_mac, 6);
		tcp_nat_guest_mac(u->tcp, u->router_mac);
	}
	*out = u;
	return 0;
fail:
	uplink_destroy(u);
	return r;
}

void uplink_destroy(struct uplink *u)
{
	if (!u)
		return;
	tcp_nat_destroy(u->tcp);
	if (u->slirp)
		lib.slirp_cleanup(u->slirp);
	free(u);
}

/* ---- forwards ---- */

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

int uplink_forward(struct uplink *u, const struct netd_forward *f, struct error *err)
{
	struct sockaddr_in guest = { .sin_family = AF_INET,
				     .sin_addr = f->guest,
				     .sin_port = htons(f->guest_port) };
	bool is_v6 = f->host.ss_family == AF_INET6;
	char where[80];

	/* 0 stands for the first address that DHCP gives. */
	if (!guest.sin_addr.s_addr)
		guest.sin_addr = u->cfg.dhcp_start;
	errno = 0;
	if (!f->is_udp) {
		int fd = listen_at(f);
		if (fd >= 0 && tcp_nat_forward(u->tcp, fd, guest.sin_addr.s_addr, f->guest_port) == 0)
			return 0;
	} else if (lib.slirp_add_hostxfwd(u->slirp, (const struct sockaddr *)&f->host, host_len(f),
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

void uplink_call(struct uplink *u, int fd, uint16_t port)
{
	if (tcp_nat_call(u->tcp, fd, u->cfg.dhcp_start.s_addr, port) < 0)
		log_guest("net", "no room for a connection to port %u of the guest", port);
}
