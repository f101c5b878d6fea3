/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The net interface: what a network card sees of a network.
 *
 * Frames are Ethernet, preceded by a struct virtio_net_hdr-like header of offload hints so that
 * TSO-sized frames (up to 64 KiB) pass whole.  All calls and callbacks run under the machine's
 * lock (callbacks on the loop's thread).
 */
#ifndef VIV_NET_PORT_H
#define VIV_NET_PORT_H

#include <sys/uio.h>

#include "base/error.h"
#include "base/loop.h"

#define NET_FRAME_MAX (65536 + 64)

/* Same layout and meaning as virtio 1.2 5.1.6 struct virtio_net_hdr, without num_buffers. */
struct net_offload {
	uint8_t flags;	  /* 1: csum_start/csum_offset valid and checksum still to be filled */
	uint8_t gso_type; /* 0 none, 1 TCPv4, 3 UDP, 4 TCPv6, 0x80 ECN */
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
};

struct net_port;
/* What the card gives. */
struct net_card {
	/* A frame for the guest.  Returns 0, or -ENOBUFS: no buffer now, the port drops the frame or keeps
	 * it until net_ops.rx_ready is called.  The bytes may be in memory that their sender still writes to: what is decided by
	 * them is copied first. */
	int (*receive)(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov);
	void (*link_changed)(void *ctx, bool is_up);
	void (*tx_ready)(void *ctx); /* after send gave -EAGAIN: try again */
	void *ctx;
};
struct net_ops {
	/* A frame from the guest; copied or sent before it returns.  0, or -EAGAIN: congested, try again
	 * when tx_ready is called on the card.  */
	int (*send)(struct net_port *p, const struct net_offload *off, const struct iovec *iov,
		    unsigned niov);
	void (*rx_ready)(struct net_port *p); /* the guest posted buffers again */
	void (*close)(struct net_port *p);
	/* Frames for the guest that end the connections which do not go along with it elsewhere; it stands still.  Returns the bytes of them.  NULL: there are no such. */
	size_t (*resets)(struct net_port *p, uint8_t *out, size_t cap);
	/* While @is_held, nothing is taken from the network: another process may go on with it.  The guest stands still. */
	void (*hold)(struct net_port *p, bool is_held);
};
struct net_port {
	const struct net_ops *ops;
	struct net_card card; /* set by the card before the first frame */
	uint8_t mac[6];
	bool can_offload; /* checksum and segmentation hints are understood at the other side */
	bool is_alone; /* there is nobody but a NAT of its own, which learns where the card is when it is asked to send there */
};

/**
 * net_port_socket() - a port over a connected SOCK_SEQPACKET socket to a `viv net` process, and over rings of shared
 * memory if that has them (link.h).  Takes @fd.
 */
int net_port_socket(struct net_port **out, struct loop *loop, int fd, const uint8_t mac[6],
		    struct error *err);

#endif
