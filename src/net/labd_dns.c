/* SPDX-License-Identifier: Apache-2.0 */
/* The gateways' DNS: questions over UDP and TCP to the resolver, and its answers back the same way. */
#include <errno.h>

#include "net/labd_int.h"

enum { DNS_PORT = 53 };

void labd_dns(void *ctx, unsigned port, const struct packet *p, const uint8_t *payload, size_t len)
{
	struct labd *d = ctx;
	struct dns_client from = { .port = port, .gateway = p->dst, .addr = p->src, .udp_port = p->sport };

	/* What is no question has no answer. */
	(void)resolver_ask(d->resolver, fabric_policy(d->f), &from, payload, len);
}

void labd_dns_tcp(void *ctx, unsigned port, const struct packet *p)
{
	struct labd *d = ctx;

	dns_tcp_input(d->dns_tcp, port, p);
}

static void on_segment(void *ctx, unsigned port, const struct net_addr *src,
		       const struct net_addr *dst, const uint8_t *segment, size_t len)
{
	const struct labd *d = ctx;

	fabric_send_tcp(d->f, port, src, dst, segment, len);
}

static bool on_message(void *ctx, unsigned port, const struct net_addr *gateway,
		       const struct net_addr *client, uint32_t conn, const uint8_t *m, size_t len)
{
	struct labd *d = ctx;
	struct dns_client from = { .port = port, .gateway = *gateway, .addr = *client, .conn = conn };

	return resolver_ask(d->resolver, fabric_policy(d->f), &from, m, len);
}

static void on_reply(void *ctx, const struct dns_client *to, const uint8_t *m, size_t len)
{
	struct labd *d = ctx;

	if (to->conn)
		dns_tcp_answer(d->dns_tcp, to->port, to->conn, m, len);
	else
		fabric_send_udp(d->f, to->port, &to->gateway, &to->addr, DNS_PORT, to->udp_port, m, len);
}

static struct net_addr on_addr6(void *ctx, unsigned port)
{
	const struct labd *d = ctx;

	return fabric_addr6(d->f, port);
}

int labd_create_dns(struct labd *d, const char *resolv_conf)
{
	struct resolver_ops rops = { on_reply, labd_now_ms, on_addr6, d };
	struct dns_tcp_ops tops = { on_segment, on_message, labd_now_ms, d };
	struct sockaddr_storage upstream;
	bool has_upstream = resolver_host_upstream(resolv_conf, &upstream) == 0;

	d->resolver = resolver_create(has_upstream ? &upstream : NULL, &rops);
	d->dns_tcp = dns_tcp_create(&tops);
	return d->resolver && d->dns_tcp ? 0 : -ENOMEM;
}
