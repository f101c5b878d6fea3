/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checksum and segmentation in software: what a network card does with the hints that come with a
 * frame (virtio 1.2, 5.1.6.2), for receivers that want plain frames.
 *
 * Frame and hints come from a guest: hostile.  The frame is parsed here; of the hints only the kind
 * of segmentation, its size, and the place of a plain checksum are used, each checked.
 */
#ifndef VIV_NET_OFFLOAD_H
#define VIV_NET_OFFLOAD_H

#include "net/port.h"

enum { NET_OFF_NEEDS_CSUM = 1, NET_OFF_CSUM_VALID = 2 }; /* net_offload.flags */
enum {
	NET_GSO_NONE = 0,
	NET_GSO_TCP4 = 1,
	NET_GSO_UDP = 3,
	NET_GSO_TCP6 = 4,
	NET_GSO_ECN = 0x80, /* with TCP4 or TCP6 */
};

/* The smallest segment accepted: more frames than len / 48 never come out of one. */
#define NET_GSO_SIZE_MIN 48

struct net_packet {		  /* what is where in a TCP frame */
	uint16_t l3, l4, payload; /* offsets */
	bool is_ipv6;
};

/**
 * offload_checksum() - fill in the checksum the hints ask for; nothing when they ask for none.
 * Of a TCP segmentation frame it fills the checksum of the whole, as of one long segment.
 * Returns 0, or -EINVAL: the hints don't fit the frame (drop it; it may be partly changed).
 */
int offload_checksum(const struct net_offload *off, uint8_t *frame, size_t len);

/**
 * offload_segment() - cut a frame into plain ones as its hints say, checksums filled in.
 * @frame: overwritten
 * @emit: called for each, in order; the frame is borrowed for the call; a negative result ends it
 * A frame without segmentation is emitted as the only one.  Returns 0, -EINVAL (hints don't fit the
 * frame: nothing was emitted), or what @emit returned.
 */
int offload_segment(const struct net_offload *off, uint8_t *frame, size_t len,
		    int (*emit)(void *arg, const uint8_t *frame, size_t len), void *arg);

/** net_checksum() - the Internet checksum's sum (RFC 1071) of @len bytes, not folded, onto @sum. */
uint64_t net_checksum(const void *data, size_t len, uint64_t sum);
/** net_checksum_fold() - 16 bits, complemented, in the byte order of memory. */
uint16_t net_checksum_fold(uint64_t sum);

#endif
