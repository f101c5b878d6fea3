/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checked door to every byte of an untrusted frame: Ethernet (IEEE 802.3), one VLAN tag (802.1Q), ARP (RFC 826),
 * IPv4 with fragments (791), IPv6 with extension headers (8200), ICMP (792, 4443), neighbor discovery (4861), TCP
 * (9293), UDP (768), DHCP (2131).
 *
 * packet_parse() looks at a frame once; everything after it uses the fields found here, and reaches further bytes by
 * packet_at() only.  What is not understood as a whole is an error: a frame of which two readers could think differently
 * crosses nothing.
 *
 * Not looked at: checksums (frames between virtual cards mostly have none yet), TCP options, contents of ESP.
 */
#ifndef VIV_NET_PACKET_H
#define VIV_NET_PACKET_H

#include "net/addr.h"
#include "net/port.h"

enum { ETH_HEADER = 14, ETH_TAG = 4 };
enum ethertype { ETH_IPV4 = 0x0800, ETH_ARP = 0x0806, ETH_VLAN = 0x8100, ETH_IPV6 = 0x86dd };
enum ip_proto {
	IP_ICMP = 1,
	IP_TCP = 6,
	IP_UDP = 17,
	IP_ICMP6 = 58,
};
enum {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER = 12
};
enum {
	ICMP6_UNREACHABLE = 1,
	ICMP6_TOO_BIG = 2,
	ICMP6_TIME_EXCEEDED = 3,
	ICMP6_PARAMETER = 4,
	ICMP6_ECHO = 128,
	ICMP6_ECHO_REPLY = 129,
	ICMP6_MLD_QUERY = 130,
	ICMP6_MLD_REPORT = 131,
	ICMP6_MLD_DONE = 132,
	ICMP6_RS = 133,
	ICMP6_RA = 134,
	ICMP6_NS = 135,
	ICMP6_NA = 136,
	ICMP6_REDIRECT = 137,
	ICMP6_MLD2_REPORT = 143,
};
enum { PACKET_FIN = 1, PACKET_SYN = 2, PACKET_RST = 4, PACKET_ACK = 16 };

enum packet_kind { PACKET_OTHER, PACKET_ARP, PACKET_IPV4, PACKET_IPV6 };

struct packet {
	uint8_t *data; /* the frame, borrowed */
	size_t len;
	uint8_t dst_mac[6], src_mac[6];
	int vlan;	    /* VID, 0 to 4095; -1: no tag */
	uint16_t ethertype; /* behind the tag */
	enum packet_kind kind;
	uint16_t l3; /* offset behind Ethernet and tag */

	/* IP */
	struct net_addr src, dst;
	uint8_t proto;	  /* of the upper layer */
	uint8_t ttl;	  /* or hop limit */
	uint16_t l4;	  /* offset of the upper layer, or of a later fragment's bytes */
	uint32_t end;	  /* offset of the packet's end: what Ethernet pads lies behind */
	bool has_options; /* or extension headers */
	bool has_fragment_header;
	/* A part of a packet: bytes from frag_offset on.  Of the first one, the upper layer's header is there. */
	bool is_fragment, has_more;
	uint16_t frag_offset; /* bytes */
	uint16_t frag_at;     /* offset of the part's bytes: l4, or extension headers before it */
	uint32_t frag_id;

	/* Upper layer; not of later fragments */
	bool has_l4;	       /* the header is there and complete */
	uint16_t sport, dport; /* TCP, UDP */
	uint8_t tcp_flags;     /* PACKET_SYN ... */
	uint16_t payload;      /* offset: behind the header of TCP, UDP */
	uint8_t icmp_type, icmp_code;
	uint16_t icmp_id; /* of echoes */

	/* ARP */
	uint16_t arp_op; /* 1 request, 2 reply */
	uint8_t arp_sha[6];
	/* src: sender, dst: target */

	/* Neighbor discovery */
	struct net_addr nd_target; /* NS, NA */
	bool has_nd_lladdr;	   /* an option of source or target link-layer address ... */
	uint8_t nd_lladdr[6];

	/* DHCP, either way by ports 67 and 68 */
	bool is_dhcp;
	uint8_t dhcp_op, dhcp_type; /* op: 1 request, 2 reply; type: option 53 */
	uint8_t dhcp_chaddr[6];
	struct net_addr dhcp_requested; /* option 50, or any */
};

enum packet_error {
	PACKET_FINE,
	PACKET_SHORT,	   /* cut, or its lengths contradict each other */
	PACKET_BAD_HEADER, /* version, header length, or options that are refused: source routes */
	PACKET_BAD_FRAGMENT, /* too small to hold the header, over the end, or of a kind that is never fragmented */
	PACKET_TOO_DEEP, /* more extension headers than PACKET_EXTENSIONS_MAX, or one that is refused */
};
#define PACKET_EXTENSIONS_MAX 8

/**
 * packet_parse() - understand a frame.
 * @out: points into @frame; filled as far as it got, also on failure (MACs and kind, if any)
 * An ethertype that is none of the above is PACKET_OTHER, and fine.
 */
enum packet_error packet_parse(struct packet *out, uint8_t *frame, size_t len);

/** packet_at() - @n bytes of the packet from offset @at of the frame, or NULL: they don't lie in it. */
uint8_t *packet_at(const struct packet *p, size_t at, size_t n);

/**
 * packet_check_offload() - hints that fit the frame, made from it; hostile hints go no further.
 * @off: in: the sender's; out: what the frame says of the same wish
 * False: they don't fit, the frame is to be dropped.  Frames longer than NET_MTU without segmentation are among these.
 */
bool packet_check_offload(const struct packet *p, struct net_offload *off);

/**
 * packet_quoted() - the flow that an ICMP error is about.
 * @out: addresses, proto and ports as the quoted packet's
 * False: @p is no ICMP error, or quotes too little.
 */
bool packet_quoted(const struct packet *p, struct packet *out);

/* ---- making frames ---- */

/** packet_put_eth() - Ethernet's header.  Returns its length. */
size_t packet_put_eth(uint8_t *frame, const uint8_t dst[6], const uint8_t src[6], uint16_t ethertype);
/** packet_put_arp_reply() - the answer to @request, an ARP request: @mac has the address (RFC 826).  Returns the frame's length. */
size_t packet_put_arp_reply(uint8_t *frame, const struct packet *request, const uint8_t mac[6]);
/** packet_put_ip() - the header of an IPv4 or IPv6 packet, by @src, at @p, for @len bytes of @proto.  Returns its length. */
size_t packet_put_ip(uint8_t *p, const struct net_addr *src, const struct net_addr *dst,
		     uint8_t proto, uint8_t ttl, size_t len);
/** packet_put_sum() - checksum at offset @field of the upper layer's @len bytes at @l4, with the pseudo header of both
 * versions (IPv4's ICMP has none). */
void packet_put_sum(uint8_t *l4, size_t len, size_t field, const struct net_addr *src,
		    const struct net_addr *dst, uint8_t proto);
/** packet_put_udp() - UDP and what is below it, before @len bytes that stand at @frame + packet_udp_at(). Returns the
 * frame's length. */
size_t packet_put_udp(uint8_t *frame, const uint8_t dst_mac[6], const uint8_t src_mac[6],
		      const struct net_addr *src, const struct net_addr *dst, uint16_t sport,
		      uint16_t dport, size_t len);
size_t packet_udp_at(const struct net_addr *src);

#endif
