/* SPDX-License-Identifier: Apache-2.0 */
/* For tests: frames as a guest would send them.  Each function returns the frame's length. */
#ifndef VIV_NET_TESTING_H
#define VIV_NET_TESTING_H

#include <string.h>

#include "net/packet.h"

struct frame {
	uint8_t b[2048];
	size_t len;
};

struct frame_ends {
	uint8_t src_mac[6], dst_mac[6];
	struct net_addr src, dst;
};

/** frame_ip() - @payload as packet of @proto. */
void frame_ip(struct frame *f, const struct frame_ends *e, uint8_t proto, const void *payload,
	      size_t len);
void frame_tcp(struct frame *f, const struct frame_ends *e, uint16_t sport, uint16_t dport, uint8_t flags);
void frame_udp(struct frame *f, const struct frame_ends *e, uint16_t sport, uint16_t dport,
	       const void *payload, size_t len);
/** frame_echo() - an echo request, or reply, of the version of @e->src. */
void frame_echo(struct frame *f, const struct frame_ends *e, bool is_reply, uint16_t id);
void frame_arp(struct frame *f, const struct frame_ends *e, uint16_t op);
/** frame_nd() - a message of neighbor discovery about @target, with the option @lladdr unless it is NULL. */
void frame_nd(struct frame *f, const struct frame_ends *e, uint8_t type,
	      const struct net_addr *target, const uint8_t *lladdr);
/** frame_dhcp() - a message of a client, @type as in option 53. */
void frame_dhcp(struct frame *f, const uint8_t mac[6], const uint8_t chaddr[6], uint8_t type);
/** frame_tag() - put an 802.1Q tag into it. */
void frame_tag(struct frame *f, uint16_t vid);
/** frame_fragment() - make of an untagged IP frame the part from byte @from of @n bytes; @f holds the whole before. */
void frame_fragment(struct frame *f, size_t from, size_t n, bool has_more, uint32_t id);

struct net_addr frame_addr(const char *text);

#endif
