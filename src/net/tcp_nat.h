/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP between the guest and the world: each connection that the guest opens, or that comes for a forwarded port, ends here and
 * goes on over a socket of the host's.  What it does not take, libslirp does: IPv6, the virtual network's own
 * services, and everything that the guest opens once there are TCP_NAT_FLOWS.
 *
 *   guest --- frames --> tcp_nat_input() --> host's socket       bytes go straight on; what the socket does not take
 *                                                                waits, and the window that the guest sees shrinks
 *   guest <-- frames --- tcp_nat_flush() <-- ring <-- socket     bytes stay in the ring until the guest has
 *                                                                acknowledged them
 *
 * Why not slirp: its windows are unscaled, so that 64 KiB at a time make the way through two processes, the
 * guest and back.  Here windows are scaled, frames carry up to 64 KiB, and nobody sums their bytes.
 *
 * One thread.  Nothing is trusted: every frame passes tcp_parse(), and whatever the guest sends, memory stays
 * below TCP_NAT_FLOWS small rings and TCP_NAT_POOL_BYTES together.
 */
#ifndef VIV_NET_TCP_NAT_H
#define VIV_NET_TCP_NAT_H

#include <poll.h>

#include "net/port.h"

#define TCP_NAT_FLOWS	   512
#define TCP_NAT_LISTENERS  64
#define TCP_NAT_POLLS	   (TCP_NAT_FLOWS + TCP_NAT_LISTENERS) /* that tcp_nat_fill() fills at most */
#define TCP_NAT_POOL_BYTES (32 * MIB)

struct tcp_nat;

struct tcp_nat_config {
	uint32_t net, mask;	/* of the virtual network, as on the wire */
	uint32_t host;		/* the address in it that leads to the host's 127.0.0.1 */
	bool no_host_loopback;	/* ... but does not */
	bool is_restricted;	/* the guest opens no connections through this module */
	uint8_t gateway_mac[6]; /* from where forwarded connections come */
	/*
	 * A frame for the guest, headers and payload in up to three vectors.  False: no room, nothing was sent, and nothing more
	 * will be asked before the next tcp_nat_flush().
	 */
	bool (*send)(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov);
	int64_t (*now_ms)(void *ctx); /* a clock that never goes back */
	void *ctx;
};

/** tcp_nat_create() - @cfg is copied.  Returns 0 or -ENOMEM with @err set. */
int tcp_nat_create(struct tcp_nat **out, const struct tcp_nat_config *cfg, struct error *err);
/** tcp_nat_destroy() - closes every socket without a word to the guest.  NULL is fine. */
void tcp_nat_destroy(struct tcp_nat *t);

/**
 * tcp_nat_forward() - connections to @fd go to @guest_port of the guest.
 * @fd: a listening socket; taken, on failure too
 * @guest_ip: as on the wire
 * Returns 0, or -ENOSPC: there are TCP_NAT_LISTENERS.
 */
int tcp_nat_forward(struct tcp_nat *t, int fd, uint32_t guest_ip, uint16_t guest_port);

/**
 * tcp_nat_call() - who is at @fd, a connected stream socket, taken on failure too, goes to @guest_port of the guest.
 * Returns 0, -ENOSPC: there are TCP_NAT_FLOWS, -ENOMEM.
 */
int tcp_nat_call(struct tcp_nat *t, int fd, uint32_t guest_ip, uint16_t guest_port);

/**
 * tcp_nat_resets() - for each connection that stands a frame that tells the guest that it is over (RST), one after the other, TCP_NAT_RESET_BYTES each; nothing
 * changes here.  Their checksums are to be filled in (net_offload).  Returns the bytes of them, at most @cap.
 */
#define TCP_NAT_RESET_BYTES 54
size_t tcp_nat_resets(const struct tcp_nat *t, uint8_t *out, size_t cap);

/** tcp_nat_guest_mac() - where frames for the guest go: it was heard from there.  Before that nothing is forwarded. */
void tcp_nat_guest_mac(struct tcp_nat *t, const uint8_t mac[6]);

/**
 * tcp_nat_input() - a frame from the guest.
 * @frame: borrowed for the call; its TCP checksum need not be filled in
 * True: it is dealt with.  False: it is not for this module, nothing was done.
 */
bool tcp_nat_input(struct tcp_nat *t, const uint8_t *frame, size_t len);

/** tcp_nat_flush() - send what waits: acknowledgements after a batch of frames, data after there was no room. */
void tcp_nat_flush(struct tcp_nat *t);
/** tcp_nat_wants_room() - something waits for @send to take frames again. */
bool tcp_nat_wants_room(const struct tcp_nat *t);

/**
 * tcp_nat_fill() - what to poll for.
 * @pfds: room for @max
 * @timeout_ms: lowered to when tcp_nat_polled() must be called at the latest
 * Returns how many were filled.
 */
unsigned tcp_nat_fill(struct tcp_nat *t, struct pollfd *pfds, unsigned max, uint32_t *timeout_ms);
/** tcp_nat_polled() - after poll(): @pfds as tcp_nat_fill() filled them, none of its other calls in between. */
void tcp_nat_polled(struct tcp_nat *t, const struct pollfd *pfds, unsigned n);

/** tcp_nat_flows(), tcp_nat_bytes() - connections there are; memory of their buffers. */
unsigned tcp_nat_flows(const struct tcp_nat *t);
size_t tcp_nat_bytes(const struct tcp_nat *t);

#endif
