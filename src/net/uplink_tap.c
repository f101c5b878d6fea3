/* SPDX-License-Identifier: Apache-2.0 */
#include "net/uplink_tap.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "net/offload.h"

#define BATCH	  64
#define ASK_MS	  1000	/* at most one question in this time */
#define RENEW_MS  30000 /* then it is asked for again, while the old one is used */
#define NA_ROUTER 0x80
#define NA_ANSWER 0x60 /* solicited, override */

struct hop { /* the router's MAC, for one IP version */
	bool is_known;
	uint8_t mac[6];
	int64_t asked_ms, known_ms;
};

struct waiting {
	struct net_offload off;
	bool is_v6;
	size_t len;
	uint8_t b[ETH_HEADER + NET_MTU];
};

struct tap_uplink {
	struct tap_uplink_config c;
	struct hop v4, v6;
	struct waiting waiting[TAP_WAITING];
	unsigned nwaiting;
	struct {
		uint8_t room[TAP_HEADROOM];
		uint8_t b[NET_FRAME_MAX];
	} rx;
};

struct tap_uplink *tap_uplink_create(const struct tap_uplink_config *cfg)
{
	struct tap_uplink *u = calloc(1, sizeof(*u));

	if (!u) {
		close(cfg->fd);
		return NULL;
	}
	u->c = *cfg;
	u->v4.asked_ms = u->v6.asked_ms = INT64_MIN / 2;
	return u;
}

void tap_uplink_destroy(struct tap_uplink *u)
{
	if (!u)
		return;
	if (u->c.fd >= 0)
		close(u->c.fd);
	free(u);
}

int tap_uplink_fd(const struct tap_uplink *u)
{
	return u->c.fd;
}

/* ---- out ---- */

static void hang_up(struct tap_uplink *u)
{
	log_warn("net", "the host's interface is gone: there is no way out by it any more");
	close(u->c.fd);
	u->c.fd = -1;
}

static void write_frame(struct tap_uplink *u, const struct net_offload *off, const uint8_t *frame,
			size_t len)
{
	struct iovec iov[2] = { { (void *)(uintptr_t)off, sizeof(*off) },
				{ (void *)(uintptr_t)frame, len } };
	ssize_t n;

	do
		n = writev(u->c.fd, iov, 2);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EBADFD || errno == EPIPE))
		hang_up(u);
}

static void write_plain(struct tap_uplink *u, const uint8_t *frame, size_t len)
{
	static const struct net_offload none;

	write_frame(u, &none, frame, len);
}

static void ask_arp(struct tap_uplink *u)
{
	static const uint8_t all[6] = { 255, 255, 255, 255, 255, 255 };
	uint8_t frame[ETH_HEADER + 28] = { 0 };
	uint8_t *a = frame + packet_put_eth(frame, all, u->c.mac, ETH_ARP);

	net_put16(a, 1);
	net_put16(a + 2, ETH_IPV4);
	a[4] = 6;
	a[5] = 4;
	net_put16(a + 6, 1);
	memcpy(a + 8, u->c.mac, 6);
	memcpy(a + 14, u->c.own_v4.b + 12, 4);
	memcpy(a + 24, u->c.router_v4.b + 12, 4);
	write_plain(u, frame, sizeof(frame));
}

/* A message about @target with this side's MAC as its option. */
static void send_nd(struct tap_uplink *u, uint8_t type, uint8_t flags, const struct net_addr *target,
		    const struct net_addr *src, const struct net_addr *dst, const uint8_t dst_mac[6])
{
	uint8_t frame[ETH_HEADER + 40 + 32], n[32] = { type, [4] = flags };
	size_t at = packet_put_eth(frame, dst_mac, u->c.mac, ETH_IPV6);

	at += packet_put_ip(frame + at, src, dst, IP_ICMP6, 255, sizeof(n));
	memcpy(n + 8, target->b, 16);
	n[24] = type == ICMP6_NS ? 1 : 2;
	n[25] = 1;
	memcpy(n + 26, u->c.mac, 6);
	packet_put_sum(n, sizeof(n), 2, src, dst, IP_ICMP6);
	memcpy(frame + at, n, sizeof(n));
	write_plain(u, frame, at + sizeof(n));
}

/* RFC 4291, 2.7.1: the solicited-node multicast address. */
static void ask_nd(struct tap_uplink *u)
{
	struct net_addr dst = { { 0xff, 2, [11] = 1, [12] = 0xff } };
	uint8_t mac[6] = { 0x33, 0x33, 0xff };

	memcpy(dst.b + 13, u->c.router_v6.b + 13, 3);
	memcpy(mac + 3, u->c.router_v6.b + 13, 3);
	send_nd(u, ICMP6_NS, 0, &u->c.router_v6, &u->c.own_v6, &dst, mac);
}

static void ask(struct tap_uplink *u, bool is_v6, int64_t now_ms)
{
	struct hop *h = is_v6 ? &u->v6 : &u->v4;

	if (now_ms - h->asked_ms < ASK_MS)
		return;
	h->asked_ms = now_ms;
	if (is_v6)
		ask_nd(u);
	else
		ask_arp(u);
}

static void keep(struct tap_uplink *u, const struct net_offload *off, const uint8_t *frame,
		 size_t len, bool is_v6)
{
	struct waiting *w = &u->waiting[u->nwaiting];

	if (u->nwaiting == TAP_WAITING || len > sizeof(w->b))
		return;
	u->nwaiting++;
	w->off = *off;
	w->is_v6 = is_v6;
	w->len = len;
	memcpy(w->b, frame, len);
}

void tap_uplink_output(struct tap_uplink *u, const struct net_offload *off, uint8_t *frame,
		       size_t len, int64_t now_ms)
{
	bool is_v6 = net_get16(frame + 12) == ETH_IPV6;
	struct hop *h = is_v6 ? &u->v6 : &u->v4;

	if (u->c.fd < 0)
		return;
	if (!h->is_known || now_ms - h->known_ms > RENEW_MS)
		ask(u, is_v6, now_ms);
	memcpy(frame + 6, u->c.mac, 6);
	if (!h->is_known) {
		keep(u, off, frame, len, is_v6);
		return;
	}
	memcpy(frame, h->mac, 6);
	write_frame(u, off, frame, len);
}

/* ---- in ---- */

static void learn(struct tap_uplink *u, bool is_v6, const uint8_t mac[6], int64_t now_ms)
{
	struct hop *h = is_v6 ? &u->v6 : &u->v4;
	unsigned left = 0;

	if (mac[0] & 1)
		return;
	h->is_known = true;
	h->known_ms = now_ms;
	memcpy(h->mac, mac, 6);
	for (unsigned i = 0; i < u->nwaiting; i++) {
		struct waiting *w = &u->waiting[i];
		if (w->is_v6 != is_v6) {
			u->waiting[left++] = *w;
			continue;
		}
		memcpy(w->b, mac, 6);
		if (u->c.fd >= 0)
			write_frame(u, &w->off, w->b, w->len);
	}
	u->nwaiting = left;
}

static void take_arp(struct tap_uplink *u, const struct packet *p, int64_t now_ms)
{
	uint8_t reply[ETH_HEADER + 64];

	if (net_addr_is_equal(&p->src, &u->c.router_v4))
		learn(u, false, p->arp_sha, now_ms);
	if (p->arp_op == 1 && u->c.has(u->c.ctx, &p->dst))
		write_plain(u, reply, packet_put_arp_reply(reply, p, u->c.mac));
}

/* Neighbor discovery of the router; false: it is none. */
static bool take_nd(struct tap_uplink *u, const struct packet *p, int64_t now_ms)
{
	if (p->kind != PACKET_IPV6 || p->proto != IP_ICMP6 || !p->has_l4 ||
	    p->icmp_type < ICMP6_RS || p->icmp_type > ICMP6_REDIRECT)
		return false;
	if (p->icmp_type == ICMP6_NA && p->has_nd_lladdr &&
	    net_addr_is_equal(&p->nd_target, &u->c.router_v6))
		learn(u, true, p->nd_lladdr, now_ms);
	if (p->icmp_type == ICMP6_NS && p->has_nd_lladdr && net_addr_is_equal(&p->src, &u->c.router_v6))
		learn(u, true, p->nd_lladdr, now_ms);
	if (p->icmp_type == ICMP6_NS && !net_addr_is_any(&p->src) && u->c.has(u->c.ctx, &p->nd_target))
		send_nd(u, ICMP6_NA, NA_ROUTER | NA_ANSWER, &p->nd_target, &p->nd_target, &p->src,
			p->src_mac);
	return true;
}

static void take(struct tap_uplink *u, struct net_offload *off, uint8_t *frame, size_t len, int64_t now_ms)
{
	struct packet p;

	if (packet_parse(&p, frame, len) != PACKET_FINE || p.vlan >= 0)
		return;
	if (p.kind == PACKET_ARP) {
		take_arp(u, &p, now_ms);
		return;
	}
	if (take_nd(u, &p, now_ms) || memcmp(p.dst_mac, u->c.mac, 6) != 0)
		return;
	if ((p.kind == PACKET_IPV4 || p.kind == PACKET_IPV6) && packet_check_offload(&p, off))
		u->c.receive(u->c.ctx, off, frame, len);
}

void tap_uplink_read(struct tap_uplink *u, int64_t now_ms)
{
	for (unsigned i = 0; i < BATCH && u->c.fd >= 0; i++) {
		struct net_offload off;
		struct iovec iov[2] = { { &off, sizeof(off) }, { u->rx.b, sizeof(u->rx.b) } };
		ssize_t n = readv(u->c.fd, iov, 2);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			hang_up(u);
			return;
		}
		if ((size_t)n > sizeof(off))
			take(u, &off, u->rx.b, (size_t)n - sizeof(off), now_ms);
	}
}
