/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a frame's sender is who the port is: MAC, IP, ARP, neighbor discovery, DHCP. */
#include <string.h>

#include "net/fabric_int.h"

enum { DHCP_SERVER = 67, DHCP_CLIENT = 68, DHCP6_SERVER = 547, DHCP6_CLIENT = 546 };

static bool is_own(const struct input *in, const struct net_addr *a)
{
	const struct policy_port *q = &in->f->policy->ports[in->port];

	return net_addr_is_equal(a, &q->v4) || net_addr_is_equal(a, &q->v6) ||
	       net_addr_is_equal(a, &q->ll) || binding_has(in->f, (unsigned)in->port, a);
}

static enum fabric_reason check_arp(const struct packet *p, const struct policy_port *q)
{
	/* 0.0.0.0 asks whether an address is free (RFC 5227, 2.1.1). */
	bool is_probe = p->arp_op == 1 && net_addr_is_any(&p->src);

	if (memcmp(p->arp_sha, q->mac, 6) != 0 || (!is_probe && !net_addr_is_equal(&p->src, &q->v4)))
		return FABRIC_SPOOFED_ARP;
	/* A probe for another's address is no claim, but an answer to it would be. */
	return FABRIC_PASSED;
}

/* Whether others have the address that is asked about (RFC 4861, 4.3 and 7.1.1: from nobody, to who listens for it). */
static bool is_claim(const struct packet *p)
{
	struct net_addr group = { { 0xff, 2, [11] = 1, [12] = 0xff } };

	memcpy(group.b + 13, p->nd_target.b + 13, 3);
	return !p->has_nd_lladdr && p->dst_mac[0] & 1 && net_addr_is_equal(&p->dst, &group);
}

static enum fabric_reason check_nd(const struct input *in)
{
	const struct packet *p = &in->p;
	bool is_unspecified = net_addr_is_any(&p->src);

	if (p->has_nd_lladdr && memcmp(p->nd_lladdr, in->f->policy->ports[in->port].mac, 6) != 0)
		return FABRIC_SPOOFED_ND;
	switch (p->icmp_type) {
	case ICMP6_RS:
		return is_unspecified && p->has_nd_lladdr ? FABRIC_SPOOFED_ND : FABRIC_PASSED;
	case ICMP6_NS:
		/* Duplicate address detection (RFC 4862, 5.4.2) announces an address: its own, or one that is free. */
		return is_unspecified && (!is_claim(p) ||
					  !binding_claim(in->f, (unsigned)in->port, &p->nd_target))
			       ? FABRIC_SPOOFED_ND
			       : FABRIC_PASSED;
	case ICMP6_NA:
		return is_own(in, &p->nd_target) ? FABRIC_PASSED : FABRIC_SPOOFED_ND;
	}
	return FABRIC_SPOOFED_ND; /* router advertisements and redirects are the gateway's */
}

static bool is_nd(const struct packet *p)
{
	return p->has_l4 && p->proto == IP_ICMP6 && p->icmp_type >= ICMP6_RS &&
	       p->icmp_type <= ICMP6_REDIRECT;
}

static enum fabric_reason check_dhcp(const struct packet *p, const struct policy_port *q)
{
	if (p->proto != IP_UDP || !p->has_l4)
		return FABRIC_PASSED;
	if (p->dport == DHCP_CLIENT || p->sport == DHCP_SERVER || p->dport == DHCP6_CLIENT ||
	    p->sport == DHCP6_SERVER)
		return FABRIC_SPOOFED_DHCP; /* a server's */
	if (p->is_dhcp && (p->dhcp_op != 1 || memcmp(p->dhcp_chaddr, q->mac, 6) != 0))
		return FABRIC_SPOOFED_DHCP;
	return FABRIC_PASSED;
}

/* Who may send from 0.0.0.0 and :: -- who has no address yet. */
static bool may_be_unspecified(const struct packet *p)
{
	if (p->kind == PACKET_IPV4)
		return p->is_dhcp && p->dport == DHCP_SERVER;
	return is_nd(p) || (p->has_l4 && p->proto == IP_ICMP6 && p->icmp_type == ICMP6_MLD2_REPORT);
}

enum fabric_reason guard_check(const struct input *in)
{
	const struct policy_port *q = &in->f->policy->ports[in->port];
	const struct packet *p = &in->p;

	if (q->may_spoof)
		return FABRIC_PASSED;
	if (memcmp(p->src_mac, q->mac, 6) != 0)
		return FABRIC_SPOOFED_MAC;
	if (p->kind == PACKET_ARP)
		return check_arp(p, q);
	if (!is_own(in, &p->src) && !(net_addr_is_any(&p->src) && may_be_unspecified(p)))
		return FABRIC_SPOOFED_IP;
	/* Redirects and router advertisements of ICMP (RFC 792, RFC 1256). */
	if (p->kind == PACKET_IPV4 && p->has_l4 && p->proto == IP_ICMP &&
	    (p->icmp_type == 5 || p->icmp_type == 9))
		return FABRIC_SPOOFED_ND;
	return is_nd(p) ? check_nd(in) : check_dhcp(p, q);
}
