/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP segments over IPv4 over Ethernet (RFC 9293, 791): the checked door from a frame to its fields, and the way back.
 * Addresses are as on the wire, everything else in the host's byte order.
 */
#ifndef VIV_NET_TCP_WIRE_H
#define VIV_NET_TCP_WIRE_H

#include "net/port.h"

enum { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_PSH = 0x08, TCP_ACK = 0x10 };

#define TCP_HEADERS_MAX (14 + 20 + 28)	       /* what tcp_build() writes at most */
#define TCP_PAYLOAD_MAX (65535u - 20 - 20)     /* of a frame with hints, by IPv4's total length */
#define TCP_WSCALE_MAX	14		       /* RFC 7323, 2.3 */
#define ICMP_FRAME_LEN	(14 + 20 + 8 + 20 + 8) /* of tcp_build_unreachable() */

struct tcp_ends { /* both ends, as the sender of a segment sees them */
	uint8_t src_mac[6], dst_mac[6];
	uint32_t src_ip, dst_ip;
	uint16_t src_port, dst_port;
};

struct tcp_segment {
	struct tcp_ends ends;
	uint32_t seq, ack;
	uint8_t flags;
	uint16_t window; /* as it stands there, not scaled */
	uint16_t mss;	 /* of a SYN; 0: not told */
	int wscale;	 /* of a SYN, up to TCP_WSCALE_MAX; -1: not told */
	const uint8_t *payload;
	size_t len; /* of the payload */
};

/**
 * tcp_parse() - the fields of an untagged frame.
 * @out: points into @frame
 * False: it is not TCP over IPv4, is a fragment, or its lengths don't fit.  Checksums are not looked at: the frame has
 * crossed no wire, and those of a virtual card are mostly still to be filled in.
 */
bool tcp_parse(const uint8_t *frame, size_t len, struct tcp_segment *out);

/**
 * tcp_build() - the headers of @s, to go before @s->len bytes of payload.
 * @mss: a longer payload gets hints to be cut to this, at least NET_GSO_SIZE_MIN
 * @off: receives the hints; the TCP checksum is left to who needs it
 * The options mss and wscale are written for a SYN.  Returns the headers' length.
 */
size_t tcp_build(const struct tcp_segment *s, unsigned mss, uint8_t headers[TCP_HEADERS_MAX],
		 struct net_offload *off);

/**
 * tcp_build_unreachable() - the ICMP message that @s, a segment without options, can't be delivered (RFC 792).
 * @code: 0 network, 1 host
 */
void tcp_build_unreachable(const struct tcp_segment *s, uint8_t code, uint8_t frame[ICMP_FRAME_LEN]);

/** tcp_reverse() - the ends as the other side sees them. */
struct tcp_ends tcp_reverse(const struct tcp_ends *e);

#endif
