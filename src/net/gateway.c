/* SPDX-License-Identifier: Apache-2.0 */
/* What the gateway of a network answers itself: ARP, neighbor and router discovery, echoes, DHCP; and its error messages. */
#include <string.h>

#include "net/dhcp.h"
#include "net/dhcp6.h"
#include "net/fabric_int.h"
#include "net/offload.h"

enum { DHCP_SERVER = 67, DHCP_CLIENT = 68, DHCP6_SERVER = 547, DHCP6_CLIENT = 546, DNS = 53 };
enum { RA_LIFETIME_S = 1800, RA_PREFIX_S = 86400, ERROR_QUOTE = 548 - 28, ICMP_HEADER = 8 };
enum { ND_ROUTER = 0x80, ND_SOLICITED = 0x40, ND_OVERRIDE = 0x20, RA_OTHER = 0x40 };

static const struct net_offload no_hints;

/* A frame of the gateway's, with room before it. */
struct made {
	uint8_t room[FABRIC_HEADROOM];
	uint8_t b[2048];
};

static bool is_gateway_addr(const struct policy_network *n, const struct net_addr *a)
{
	return net_addr_is_equal(a, &n->gateway_v4) || net_addr_is_equal(a, &n->gateway_v6) ||
	       net_addr_is_equal(a, &n->gateway_ll);
}

/* An IP packet from the gateway; its payload of @len bytes is at @m->b + the returned offset of packet_udp_at() - 8. */
static size_t ip_at(const struct net_addr *src)
{
	return packet_udp_at(src) - 8;
}

static void send_ip(struct fabric *f, unsigned port, struct made *m, const struct net_addr *src,
		    const struct net_addr *dst, uint8_t proto, uint8_t ttl, size_t len)
{
	const struct policy_port *q = &f->policy->ports[port];
	size_t at = packet_put_eth(m->b, q->mac, f->policy->networks[q->network].gateway_mac,
				   net_addr_is_v4(src) ? ETH_IPV4 : ETH_IPV6);

	at += packet_put_ip(m->b + at, src, dst, proto, ttl, len);
	fabric_output(f, port, &no_hints, m->b, at + len);
}

void fabric_send_udp(struct fabric *f, unsigned port, const struct net_addr *src,
		     const struct net_addr *dst, uint16_t sport, uint16_t dport,
		     const void *payload, size_t len)
{
	const struct policy_port *q = &f->policy->ports[port];
	struct made m;

	if (policy_is_cut_off(f->policy, port))
		return;
	memcpy(m.b + packet_udp_at(src), payload, len);
	len = packet_put_udp(m.b, q->mac, f->policy->networks[q->network].gateway_mac, src, dst,
			     sport, dport, len);
	fabric_output(f, port, &no_hints, m.b, len);
}

void fabric_send_tcp(struct fabric *f, unsigned port, const struct net_addr *src,
		     const struct net_addr *dst, const uint8_t *segment, size_t len)
{
	struct made m;
	uint8_t *at = m.b + ip_at(src);

	if (policy_is_cut_off(f->policy, port))
		return;
	memcpy(at, segment, len);
	packet_put_sum(at, len, 16, src, dst, IP_TCP);
	send_ip(f, port, &m, src, dst, IP_TCP, 64, len);
}

/* ---- ARP, neighbor discovery ---- */

static void answer_arp(struct input *in)
{
	const struct policy_network *n = input_network(in);
	struct made m;
	size_t len = packet_put_arp_reply(m.b, &in->p, n->gateway_mac);

	fabric_output(in->f, (unsigned)in->port, &no_hints, m.b, len);
}

static void answer_ns(struct input *in)
{
	static const struct net_addr all_nodes = { { 0xff, 2, [15] = 1 } };
	const struct packet *p = &in->p;
	bool is_unspecified = net_addr_is_any(&p->src);
	struct made m;
	const struct net_addr *src = &p->nd_target, *dst = is_unspecified ? &all_nodes : &p->src;
	uint8_t *n = m.b + ip_at(src);

	memset(n, 0, 32);
	n[0] = ICMP6_NA;
	n[4] = ND_ROUTER | ND_OVERRIDE | (is_unspecified ? 0 : ND_SOLICITED);
	memcpy(n + 8, p->nd_target.b, 16);
	n[24] = 2;
	n[25] = 1;
	memcpy(n + 26, input_network(in)->gateway_mac, 6);
	packet_put_sum(n, 32, 2, src, dst, IP_ICMP6);
	send_ip(in->f, (unsigned)in->port, &m, src, dst, IP_ICMP6, 255, 32);
}

/* RFC 4861, 4.2; RFC 8106: the resolver, and by what single names are completed.  To one machine: not every card is the machine's way out. */
void gateway_advertise(struct fabric *f, unsigned port)
{
	static const struct net_addr all_nodes = { { 0xff, 2, [15] = 1 } };
	const struct policy_port *q = &f->policy->ports[port];
	const struct policy_network *n = &f->policy->networks[q->network];
	enum {
		PREFIX = 16,
		LLADDR = PREFIX + 32,
		RDNSS = LLADDR + 8,
		DNSSL = RDNSS + 24,
		LEN = DNSSL + 16
	};
	struct made m;
	uint8_t *r = m.b + ip_at(&n->gateway_ll);

	memset(r, 0, LEN);
	r[0] = ICMP6_RA;
	r[4] = 64;
	r[5] = RA_OTHER; /* dhcp6.h */
	net_put16(r + 6, q->is_default ? RA_LIFETIME_S : 0);
	r[PREFIX] = 3;
	r[PREFIX + 1] = 4;
	r[PREFIX + 2] = 64;
	r[PREFIX + 3] = 0xc0; /* on-link, autonomous */
	net_put32(r + PREFIX + 4, RA_PREFIX_S);
	net_put32(r + PREFIX + 8, RA_PREFIX_S);
	memcpy(r + PREFIX + 16, n->v6.addr.b, 16);
	r[LLADDR] = 1;
	r[LLADDR + 1] = 1;
	memcpy(r + LLADDR + 2, n->gateway_mac, 6);
	r[RDNSS] = 25;
	r[RDNSS + 1] = 3;
	net_put32(r + RDNSS + 4, RA_LIFETIME_S);
	memcpy(r + RDNSS + 8, n->gateway_v6.b, 16);
	r[DNSSL] = 31;
	r[DNSSL + 1] = 2;
	net_put32(r + DNSSL + 4, RA_LIFETIME_S);
	memcpy(r + DNSSL + 8, "\3lab", 5);
	packet_put_sum(r, LEN, 2, &n->gateway_ll, &all_nodes, IP_ICMP6);
	send_ip(f, port, &m, &n->gateway_ll, &all_nodes, IP_ICMP6, 255, LEN);
}

static bool take_nd(struct input *in)
{
	const struct packet *p = &in->p;

	if (p->proto != IP_ICMP6 || !p->has_l4)
		return false;
	switch (p->icmp_type) {
	case ICMP6_RS:
		fabric_told(in, FABRIC_GATEWAY, -1);
		gateway_advertise(in->f, (unsigned)in->port);
		return true;
	case ICMP6_NS:
		if (!is_gateway_addr(input_network(in), &p->nd_target))
			return false;
		fabric_told(in, FABRIC_GATEWAY, -1);
		answer_ns(in);
		return true;
	case ICMP6_NA:
		return memcmp(p->dst_mac, input_network(in)->gateway_mac, 6) == 0 &&
		       (fabric_told(in, FABRIC_GATEWAY, -1), true);
	case ICMP6_MLD_REPORT:
	case ICMP6_MLD_DONE:
	case ICMP6_MLD2_REPORT:
		/* Groups are not pruned: nobody else needs to know. */
		fabric_told(in, FABRIC_GATEWAY, -1);
		return true;
	}
	return false;
}

/* ---- DHCP, echoes, DNS ---- */

static void take_dhcp(struct input *in)
{
	static const uint8_t all[4] = { 255, 255, 255, 255 };
	struct net_addr everyone = net_addr_v4(all);
	uint8_t reply[DHCP_REPLY_MAX];

	fabric_told(in, FABRIC_GATEWAY, -1);
	size_t len = dhcp_reply(in->f->policy, (unsigned)in->port, &in->p, reply);
	if (len)
		fabric_send_udp(in->f, (unsigned)in->port, &input_network(in)->gateway_v4,
				&everyone, DHCP_SERVER, DHCP_CLIENT, reply, len);
}

/* To all servers of the link, in one packet, by who has a link-local address (RFC 8415, 7.1 and 13.1). */
static bool is_dhcp6(const struct packet *p)
{
	static const struct net_addr all_servers = { { 0xff, 2, [13] = 1, [15] = 2 } };

	return p->kind == PACKET_IPV6 && p->proto == IP_UDP && p->has_l4 && !p->is_fragment &&
	       p->dport == DHCP6_SERVER && net_addr_is_equal(&p->dst, &all_servers);
}

static void take_dhcp6(struct input *in)
{
	const struct packet *p = &in->p;
	size_t end = p->l4 + (size_t)net_get16(p->data + p->l4 + 4);
	uint8_t reply[DHCP6_REPLY_MAX];

	fabric_told(in, FABRIC_GATEWAY, -1);
	if (!net_addr_is_link_local(&p->src) || p->sport != DHCP6_CLIENT)
		return;
	size_t len = dhcp6_reply(in->f->policy, (unsigned)in->port, p->data + p->payload,
				 end - p->payload, reply);
	if (len)
		fabric_send_udp(in->f, (unsigned)in->port, &input_network(in)->gateway_ll, &p->src,
				DHCP6_SERVER, DHCP6_CLIENT, reply, len);
}

static void answer_echo(struct input *in)
{
	const struct packet *p = &in->p;
	bool is_v4 = p->kind == PACKET_IPV4;
	size_t len = p->end - p->l4, at = ip_at(&p->dst);
	struct made m;

	if (at + len > sizeof(m.b))
		return;
	memcpy(m.b + at, p->data + p->l4, len);
	m.b[at] = is_v4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY;
	packet_put_sum(m.b + at, len, 2, &p->dst, &p->src, p->proto);
	send_ip(in->f, (unsigned)in->port, &m, &p->dst, &p->src, p->proto, 64, len);
}

/* To one of the gateway's addresses: it has two services, everything else is closed. */
static void take_own(struct input *in)
{
	const struct packet *p = &in->p;
	bool is_v4 = p->kind == PACKET_IPV4;

	if (p->is_fragment || !p->has_l4) {
		fabric_told(in, FABRIC_DEFAULT, -1);
	} else if (is_v4 ? p->proto == IP_ICMP && p->icmp_type == ICMP_ECHO
			 : p->proto == IP_ICMP6 && p->icmp_type == ICMP6_ECHO) {
		fabric_told(in, FABRIC_GATEWAY, -1);
		answer_echo(in);
	} else if (p->proto == IP_UDP && p->dport == DNS) {
		size_t end = p->l4 + (size_t)net_get16(p->data + p->l4 + 4);
		fabric_told(in, FABRIC_GATEWAY, -1);
		in->f->ops.dns(in->f->ops.ctx, (unsigned)in->port, p, p->data + p->payload,
			       end - p->payload);
	} else if (p->proto == IP_TCP && p->dport == DNS) {
		fabric_told(in, FABRIC_GATEWAY, -1);
		in->f->ops.dns_tcp(in->f->ops.ctx, (unsigned)in->port, p);
	} else {
		fabric_told(in, FABRIC_DEFAULT, -1);
		gateway_error(in, ICMP_UNREACHABLE, 3, ICMP6_UNREACHABLE, 4); /* the port */
	}
}

bool gateway_take(struct input *in)
{
	const struct policy_network *n = input_network(in);
	const struct packet *p = &in->p;

	if (p->kind == PACKET_ARP) {
		bool is_ours = net_addr_is_equal(&p->dst, &n->gateway_v4) ||
			       (n->has_uplink && net_addr_is_equal(&p->dst, &n->uplink_v4));
		if (!is_ours && memcmp(p->dst_mac, n->gateway_mac, 6) != 0)
			return false;
		fabric_told(in, FABRIC_GATEWAY, -1);
		if (is_ours && p->arp_op == 1)
			answer_arp(in);
		return true;
	}
	if (p->kind == PACKET_IPV6 && take_nd(in))
		return true;
	if (p->is_dhcp && p->dport == DHCP_SERVER) {
		take_dhcp(in);
		return true;
	}
	if (is_dhcp6(p)) {
		take_dhcp6(in);
		return true;
	}
	if (!is_gateway_addr(n, &p->dst))
		return false;
	take_own(in);
	return true;
}

/* ---- errors ---- */

static bool may_cause_error(const struct input *in)
{
	const struct packet *p = &in->p;

	if (in->port == POLICY_OUTSIDE || p->frag_offset || net_addr_is_any(&p->src) ||
	    net_addr_is_multicast(&p->dst) || p->dst_mac[0] & 1)
		return false;
	if (p->kind == PACKET_IPV4 && p->proto == IP_ICMP)
		return p->has_l4 && p->icmp_type == ICMP_ECHO;
	if (p->kind == PACKET_IPV6 && p->proto == IP_ICMP6)
		return p->has_l4 && p->icmp_type == ICMP6_ECHO;
	return true;
}

void gateway_error(struct input *in, uint8_t type4, uint8_t code4, uint8_t type6, uint8_t code6)
{
	const struct policy_network *n = input_network(in);
	const struct packet *p = &in->p;
	bool is_v4 = p->kind == PACKET_IPV4;
	struct made m;

	if (!may_cause_error(in) ||
	    !bucket_take(&in->f->ports[in->port].errors, in->f->ops.now_ms(in->f->ops.ctx),
			 FABRIC_ERRORS_PER_S, 1))
		return;
	const struct net_addr *src = is_v4			       ? &n->gateway_v4
				     : net_addr_is_link_local(&p->src) ? &n->gateway_ll
								       : &n->gateway_v6;
	size_t quoted = MIN((size_t)(p->end - p->l3), (size_t)ERROR_QUOTE);
	uint8_t *i = m.b + ip_at(src);
	memset(i, 0, ICMP_HEADER);
	i[0] = is_v4 ? type4 : type6;
	i[1] = is_v4 ? code4 : code6;
	memcpy(i + ICMP_HEADER, p->data + p->l3, quoted);
	packet_put_sum(i, ICMP_HEADER + quoted, 2, src, &p->src, is_v4 ? IP_ICMP : IP_ICMP6);
	send_ip(in->f, (unsigned)in->port, &m, src, &p->src, is_v4 ? IP_ICMP : IP_ICMP6,
		is_v4 ? 64 : 255, ICMP_HEADER + quoted);
}
