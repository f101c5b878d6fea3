/* SPDX-License-Identifier: Apache-2.0 */
/* The ways out of a lab: for each card that has one by NAT, and for each network that has one by an interface of the host's. */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "net/labd_int.h"

/* One for each card: a machine that does not read, or opens a thousand connections, stops nobody else's. */
struct uplink_port {
	struct labd *d;
	unsigned port;
};

static void from_uplink(struct uplink_port *u, const struct net_offload *off,
			const struct iovec *iov, unsigned niov)
{
	struct labd *d = u->d;
	size_t len = 0;

	for (unsigned i = 0; i < niov; i++) {
		if (iov[i].iov_len > sizeof(d->tx.b) - len)
			return;
		memcpy(d->tx.b + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	fabric_uplink_input(d->f, fabric_policy(d->f)->ports[u->port].network, off, d->tx.b, len);
	d->has_verdict = false;
}

static void on_uplink_send(void *ctx, const struct net_offload *off, const void *head,
			   size_t head_len, const void *rest, size_t rest_len)
{
	struct iovec iov[2] = { { (void *)(uintptr_t)head, head_len },
				{ (void *)(uintptr_t)rest, rest_len } };

	from_uplink(ctx, off, iov, rest_len ? 2 : 1);
}

static bool on_uplink_tcp(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	struct uplink_port *u = ctx;
	const struct lab_port *p = labd_card(u->d, u->port);

	if (p->queued || labd_is_congested(p))
		return false;
	from_uplink(u, off, iov, niov);
	return true;
}

static struct in_addr v4_of(const struct net_addr *a)
{
	struct in_addr out;

	memcpy(&out, a->b + 12, 4);
	return out;
}

static struct in6_addr v6_of(const struct net_addr *a)
{
	struct in6_addr out;

	memcpy(&out, a->b, 16);
	return out;
}

int labd_create_uplink(struct labd *d, unsigned port, struct error *err)
{
	const struct policy *p = fabric_policy(d->f);
	const struct policy_network *n = &p->networks[p->ports[port].network];

	if (n->is_tap)
		return 0;
	struct net_addr host6 = net_prefix_host(&n->v6, 2), mask = { .b = { 0 } };
	struct uplink_port *u = calloc(1, sizeof(*u));
	struct uplink_config c = {
		.net = v4_of(&n->v4.addr),
		.host = v4_of(&n->uplink_v4),
		.dns = v4_of(&n->gateway_v4),
		.dhcp_start = v4_of(&p->ports[port].v4),
		.prefix6 = v6_of(&n->v6.addr),
		.host6 = v6_of(&host6),
		.dns6 = v6_of(&n->gateway_v6),
		.no_host_loopback = true,
		.answers_host = true, /* fabric.c: nothing is opened to uplink_v4 */
		.no_services = true,
		.max_sockets = d->uplink_sockets,
		.router_mac = n->gateway_mac,
		.send = on_uplink_send,
		.send_tcp = on_uplink_tcp,
		.ctx = u,
	};

	if (!u)
		return error_set(err, -ENOMEM, "the lab has no memory");
	for (unsigned i = n->v4.bits; i > 96; i--)
		mask.b[(i - 1) / 8] |= (uint8_t)(0x80 >> (i - 1) % 8);
	c.mask = v4_of(&mask);
	memcpy(c.host_mac, n->gateway_mac, 6);
	u->d = d;
	u->port = port;
	d->ports[port].uplink_port = u;
	return uplink_create(&d->ports[port].uplink, &c, err);
}

/* ---- uplinks by interfaces of the host's: one for all of a network ---- */

static bool is_of_network(void *ctx, const struct net_addr *a)
{
	const struct lab_tap *t = ctx;
	const struct policy *p = fabric_policy(t->d->f);
	const struct policy_network *n = &p->networks[t->network];
	int port = fabric_port_by_addr(t->d->f, a);

	return net_addr_is_equal(a, &n->gateway_v4) || net_addr_is_equal(a, &n->gateway_v6) ||
	       (port >= 0 && p->ports[port].network == t->network);
}

static void on_tap(void *ctx, const struct net_offload *off, uint8_t *frame, size_t len)
{
	const struct lab_tap *t = ctx;

	fabric_uplink_input(t->d->f, t->network, off, frame, len);
	t->d->has_verdict = false;
}

int labd_create_tap(struct labd *d, unsigned network, struct error *err)
{
	const struct policy_network *n = &fabric_policy(d->f)->networks[network];
	struct lab_tap *t = &d->taps[network];
	struct tap_uplink_config c = { .own_v4 = n->gateway_v4,
				       .own_v6 = n->gateway_v6,
				       .router_v4 = n->uplink_v4,
				       .router_v6 = net_prefix_host(&n->v6, 2),
				       .has = is_of_network,
				       .receive = on_tap,
				       .ctx = t };
	int r = tap_open(&d->lab->taps[network], &c.fd, err);

	if (r < 0)
		return r;
	memcpy(c.mac, n->gateway_mac, 6);
	t->d = d;
	t->network = network;
	t->uplink = tap_uplink_create(&c);
	return t->uplink ? 0 : error_set(err, -ENOMEM, "the lab has no memory");
}

int labd_add_forward(struct labd *d, const struct policy_forward *w, struct error *err)
{
	struct netd_forward f = { .is_udp = w->is_udp, .guest_port = w->guest_port };

	if (net_addr_is_v4(&w->host_addr)) {
		struct sockaddr_in *s = (void *)&f.host;
		s->sin_family = AF_INET;
		s->sin_addr = v4_of(&w->host_addr);
		s->sin_port = htons(w->host_port);
	} else {
		struct sockaddr_in6 *s = (void *)&f.host;
		s->sin6_family = AF_INET6;
		s->sin6_addr = v6_of(&w->host_addr);
		s->sin6_port = htons(w->host_port);
	}
	return uplink_forward(d->ports[w->port].uplink, &f, err);
}

/* ---- out ---- */

static int port_of_source(const struct fabric *f, const uint8_t *frame, size_t len)
{
	struct packet pkt;

	if (packet_parse(&pkt, (uint8_t *)(uintptr_t)frame, len) != PACKET_FINE)
		return -1;
	return fabric_port_by_addr(f, &pkt.src);
}

/* The sender is the port's own address, by the guard; of one that may spoof, the address of somebody's. */
void labd_to_uplink(void *ctx, unsigned network, const struct net_offload *off, uint8_t *frame, size_t len)
{
	struct labd *d = ctx;
	const struct policy *p = fabric_policy(d->f);
	int port = port_of_source(d->f, frame, len);

	labd_captured(d, true, POLICY_OUTSIDE, network, frame, len);
	if (d->taps[network].uplink) {
		tap_uplink_output(d->taps[network].uplink, off, frame, len, labd_now_ns() / 1000000);
		return;
	}
	if (port < 0 || p->ports[port].network != network || !d->ports[port].uplink)
		return;
	memcpy(frame + 6, p->networks[network].gateway_mac, 6);
	uplink_input(d->ports[port].uplink, off, frame, len);
}
