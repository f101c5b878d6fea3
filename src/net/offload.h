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

#define NET_MTU		1500 /* of a network's wire: what a frame carries behind its Ethernet header */
#define NET_HEADERS_MAX 512 /* Ethernet, IP and TCP together */

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

/*
 * Long segments from a TCP that believes in a larger wire than there is.  Offered MSS raised on the way in
 * (offload_raise_mss), its long frames get hints on the way out (offload_long_tcp): who receives them may cut
 * them to NET_MTU, or, as a guest does, take them whole.  Both ends of a connection see one of NET_MTU.
 */

/**
 * offload_raise_mss() - if @frame is a TCP SYN that offers what NET_MTU allows or more, let it offer @mss.
 * Offers of less stay, so that long segments go only to who can be sent segments of NET_MTU.  The checksum stays
 * right if it was.  Returns whether it did; of a frame that is anything else nothing is touched.
 */
bool offload_raise_mss(uint8_t *frame, size_t len, uint16_t mss);

/**
 * offload_long_tcp() - hints for a complete TCP frame longer than NET_MTU allows.
 * @headers: receives the headers that go before the payload in place of the frame's own
 * @off: receives the hints
 * Returns the headers' length, or -EINVAL: no TCP frame.
 */
int offload_long_tcp(const uint8_t *frame, size_t len, uint8_t headers[NET_HEADERS_MAX],
		     struct net_offload *off);

/**
 * offload_fragment() - cut an IPv4 packet longer than NET_MTU into fragments (RFC 791).
 * Returns 0, -EINVAL (no IPv4: nothing was emitted), or what @emit returned.
 */
int offload_fragment(const uint8_t *frame, size_t len,
		     int (*emit)(void *arg, const uint8_t *frame, size_t len), void *arg);

/** net_checksum() - the Internet checksum's sum (RFC 1071) of @len bytes, not folded, onto @sum. */
uint64_t net_checksum(const void *data, size_t len, uint64_t sum);
/** net_checksum_fold() - 16 bits, complemented, in the byte order of memory. */
uint16_t net_checksum_fold(uint64_t sum);

#endif
