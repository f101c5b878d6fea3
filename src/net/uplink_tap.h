/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way from a virtual network to the host's by an interface of the host's (net/tap.h), for those who have the rights: the host
 * routes, and translates addresses if it likes.
 *
 * Behind the interface is one router, which has the second address of the network, IPv4 and IPv6 (ip addr add 10.1.0.2/24 dev tap0).
 * Towards it this side has every address of the network's machines, and the gateway's, at the gateway's MAC: it answers ARP (RFC 826)
 * and neighbor discovery (RFC 4861) for them.
 *
 *   machine --- fabric ---> tap_uplink_output() ---> next hop known? ---> interface
 *                                                 \-> a few frames wait while it is asked for
 *   interface ---> tap_uplink_read() ---> parsed, hints checked ---> receive(): only IP, and only what is sent to this side's MAC
 *
 * Bounds: TAP_WAITING frames of at most NET_MTU wait; a question a second.
 */
#ifndef VIV_NET_UPLINK_TAP_H
#define VIV_NET_UPLINK_TAP_H

#include "net/packet.h"

#define TAP_WAITING 8

struct tap_uplink;
struct tap_uplink_config {
	int fd; /* of tap_open(); taken */
	uint8_t mac[6];
	struct net_addr own_v4, own_v6;	      /* who asks for the next hop: the gateway */
	struct net_addr router_v4, router_v6; /* the next hop */
	/* Is it an address of this side? */
	bool (*has)(void *ctx, const struct net_addr *a);
	/* An IP frame from outside; may be written to, and TAP_HEADROOM bytes before it. */
	void (*receive)(void *ctx, const struct net_offload *off, uint8_t *frame, size_t len);
	void *ctx;
};
#define TAP_HEADROOM 16

/** tap_uplink_create() - takes @cfg->fd, also on failure.  NULL: no memory. */
struct tap_uplink *tap_uplink_create(const struct tap_uplink_config *cfg);
void tap_uplink_destroy(struct tap_uplink *u); /* NULL is fine */
int tap_uplink_fd(const struct tap_uplink *u); /* to wait for POLLIN; -1: the interface is gone */

/** tap_uplink_output() - an IP frame to the outside, of which only the MACs are still to be set; what the interface does not take is lost. */
void tap_uplink_output(struct tap_uplink *u, const struct net_offload *off, uint8_t *frame,
		       size_t len, int64_t now_ms);
/** tap_uplink_read() - what came, at most a batch. */
void tap_uplink_read(struct tap_uplink *u, int64_t now_ms);

#endif
