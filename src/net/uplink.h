/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way from a virtual network to the host's, in user mode: libslirp, and tcp_nat for TCP over IPv4.
 *
 * One thread, whose poll loop is the caller's: uplink_fill(), poll(), uplink_polled(); frames in between; uplink_flush() at
 * the end of a round.
 */
#ifndef VIV_NET_UPLINK_H
#define VIV_NET_UPLINK_H

#include "net/netd.h"
#include "net/tcp_nat.h"

struct uplink;

struct uplink_config {
	struct in_addr net, mask;
	struct in_addr host, dns, dhcp_start;
	struct in6_addr prefix6, host6, dns6; /* prefix6: a /64 */
	bool is_restricted, no_ipv6, no_host_loopback;
	/* With no_host_loopback, answers of UDP still reach callers of forwarded ports on this host: who uses this sees to
	 * it that nothing else is sent to @host. */
	bool answers_host;
	bool no_services; /* neither DHCP nor DNS */
	unsigned max_sockets; /* of slirp's, about: while there are as many, what goes through slirp is dropped; 0: any */
	uint8_t host_mac[6]; /* the sender of what tcp_nat sends */
	/* Machines are behind a router with this MAC: it has every address of the network.  NULL: one guest, which answers
	 * ARP itself. */
	const uint8_t *router_mac;
	/* A frame in two parts for the guest; what can't be sent now is the callee's to queue or to drop. */
	void (*send)(void *ctx, const struct net_offload *off, const void *head, size_t head_len,
		     const void *rest, size_t rest_len);
	/* As tcp_nat_config.send: at once or not at all. */
	bool (*send_tcp)(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov);
	void *ctx;
};

/** uplink_create() - @cfg is copied.  Returns 0 or -errno with @err set. */
int uplink_create(struct uplink **out, const struct uplink_config *cfg, struct error *err);
void uplink_destroy(struct uplink *u); /* NULL is fine */

/** uplink_forward() - lead a port of the host's to the guest's.  Returns 0 or -errno with @err set. */
int uplink_forward(struct uplink *u, const struct netd_forward *f, struct error *err);

/** uplink_call() - who is at @fd, a connected stream socket, taken, goes to @port of the first guest. */
void uplink_call(struct uplink *u, int fd, uint16_t port);

/** uplink_input() - a frame from the guest; @frame is overwritten. */
void uplink_input(struct uplink *u, const struct net_offload *off, uint8_t *frame, size_t len);

/**
 * uplink_fill() - what to poll for.
 * @is_congested: the guest takes no more: slirp's sockets are not read
 * @timeout_ms: lowered to when uplink_polled() must be called at the latest
 * Returns how many of at most @max were filled.
 */
unsigned uplink_fill(struct uplink *u, struct pollfd *pfds, unsigned max, bool is_congested,
		     uint32_t *timeout_ms);
/** uplink_polled() - after poll(), with what uplink_fill() filled; @has_failed: poll() did. */
void uplink_polled(struct uplink *u, struct pollfd *pfds, unsigned n, bool has_failed);
void uplink_flush(struct uplink *u);
/** uplink_resets() - tcp_nat_resets(). */
size_t uplink_resets(const struct uplink *u, uint8_t *out, size_t cap);
bool uplink_wants_room(const struct uplink *u);

#endif
