/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data plane of a lab: a switch for each network, and one router between them that passes what the policy allows.
 * It makes no host calls: frames come in by functions and leave by callbacks, time is told.
 *
 *   machine --> fabric_input() --> tag --> door --> guard --> switch ----------------------> send()
 *                                 (packet.h)  (sender is  \-> gateway's own: ARP, ND, RA,
 *                                              the port's)     DHCP, echo; dns() for DNS
 *                                                         \-> router --> flow allowed? ----> send(), uplink()
 *   uplink  --> fabric_uplink_input() -----------------------^
 *
 * Invariants
 *  1. Every frame passes packet_parse() and, of a machine's, the guard, before anything is decided by it.
 *  2. A packet reaches a port only as part of a flow that policy_decide() allowed, in either direction, as an error message
 *     about such a flow, as a multicast that it allows to that port, or as ARP or neighbor discovery of the same network, if one of the
 *     two may open anything to the other.
 *  3. When the policy changes, each flow is asked for again with its next packet.
 *  4. A frame is handed to the callback seen() exactly once, with what becomes of it, before it is changed.
 *  5. Unicast IP goes to the port that has the address, whatever MAC it was sent to.
 *  6. Memory does not grow with traffic: conntrack.h, FABRIC_FRAGMENTS and FABRIC_BOUND a port, nothing else is kept.
 *  7. An address is one machine's: the policy's, or one that its machine has announced first (binding.c), in its own network.
 *
 * Room that is left
 *  - A service at a segment, such as an internet that only seems to be one, is another uplink: all that leaves a network passes
 *    uplink() once policy_decide() allowed it as a flow to POLICY_OUTSIDE, and what comes back enters by fabric_uplink_input().  It takes
 *    what uplink_tap.h has (output, read, a descriptor), in whatever process; for what has no address outside, a taker beside
 *    gateway_take() is the place, behind door and guard.
 *  - A tunnel to a segment's other part on another host is a port whose link (link.h) ends at a process that carries frames.  The
 *    guard then asks for a list of addresses that are behind the port instead of the one, which the policy has to know, since
 *    unicast follows addresses (5); flows keep being decided where they begin, and the other host decides again.
 */
#ifndef VIV_NET_FABRIC_H
#define VIV_NET_FABRIC_H

#include "net/packet.h"
#include "net/policy.h"

#define FABRIC_HEADROOM	 16 /* bytes before a frame that may be written */
#define FABRIC_FRAGMENTS 32 /* packets in fragments that a port has under way */
#define FABRIC_BOUND                                                                               \
	16 /* IPv6 addresses that a machine has of its own making; the one longest not used makes room */
#define FABRIC_FLOOD_PER_S 1000 /* frames to many that a port may send */
/* ... and what they may cost, in rules that are looked at, a copy counted as so many: a tenth of a processor or so. */
#define FABRIC_FLOOD_WORK_PER_S 50000000
#define FABRIC_COPY_WORK	1000
#define FABRIC_OUTSIDE_PER_S                                                                       \
	100 /* flows to the outside that a port may open: each is a socket of the host's */
#define FABRIC_ERRORS_PER_S 50 /* ICMP errors that a port may cause */

/* What became of a frame.  One row each; the names are in fabric.c. */
enum fabric_reason {
	FABRIC_PASSED,	/* by a rule, or the default of a network */
	FABRIC_GATEWAY, /* the gateway's own: answered or taken */
	FABRIC_MALFORMED,
	FABRIC_HINTS,
	FABRIC_VLAN,
	FABRIC_ETHERTYPE,
	FABRIC_SPOOFED_MAC,
	FABRIC_SPOOFED_IP,
	FABRIC_SPOOFED_ARP,
	FABRIC_SPOOFED_ND,
	FABRIC_SPOOFED_DHCP,
	FABRIC_FRAGMENT, /* of a packet whose beginning did not pass, or over it */
	FABRIC_NO_FLOW,	 /* the middle of a connection, or an answer, that nothing allowed before */
	FABRIC_NOBODY,	 /* no machine has that address */
	FABRIC_TTL,
	FABRIC_FLOOD,
	FABRIC_QUARANTINE,
	FABRIC_RULE,	/* a rule denies it */
	FABRIC_BLOCKED, /* no internet */
	FABRIC_NO_UPLINK,
	FABRIC_DEFAULT, /* no rule allows it */
	FABRIC_REASONS,
};
extern const char *const fabric_reason_names[FABRIC_REASONS];

struct fabric_verdict {
	enum fabric_reason reason;
	int rule; /* index in the policy; -1: none */
};

struct fabric_counts {
	uint64_t frames, bytes, flows;
};
struct fabric_port_counts {
	struct fabric_counts in, out; /* of frames from and to the machine; flows: opened by it */
	uint64_t reasons[FABRIC_REASONS];
};

struct fabric_ops {
	/* To a machine, by the card of @port (policy_port.card).  The frame is borrowed for the call. */
	void (*send)(void *ctx, unsigned port, const struct net_offload *off, const uint8_t *frame,
		     size_t len);
	/* To the world, by an uplink of @network; the frame may be written to. */
	void (*uplink)(void *ctx, unsigned network, const struct net_offload *off, uint8_t *frame,
		       size_t len);
	/* A UDP packet for the gateway's port 53; answered by fabric_send_udp(). */
	void (*dns)(void *ctx, unsigned port, const struct packet *p, const uint8_t *payload, size_t len);
	/* A TCP segment for it; answered by fabric_send_tcp(). */
	void (*dns_tcp)(void *ctx, unsigned port, const struct packet *p);
	/* For captures: @port POLICY_OUTSIDE: from the uplink of @network.  NULL: nobody looks. */
	void (*seen)(void *ctx, int port, unsigned network, const struct fabric_verdict *v,
		     const uint8_t *frame, size_t len);
	struct policy_names names;
	int64_t (*now_ms)(void *ctx); /* a clock that never goes back */
	void *ctx;
};

struct fabric;

/** fabric_create() - takes @policy, also on failure.  NULL: no memory. */
struct fabric *fabric_create(struct policy *policy, const struct fabric_ops *ops);
void fabric_destroy(struct fabric *f); /* NULL is fine */
const struct policy *fabric_policy(const struct fabric *f);
/**
 * fabric_set_policy() - from the next frame on.  Takes @policy: a changed policy_copy() of the current one, with the same
 * networks; machines and ports may have come or gone (policy_copy_machine()).  Returns 0 or -ENOMEM, nothing changed.
 */
int fabric_set_policy(struct fabric *f, struct policy *policy);

/**
 * fabric_input() - a frame from a machine.
 * @card: policy_port.card; its tag says which of the card's ports it came by
 * @frame: overwritten; FABRIC_HEADROOM bytes before it, too
 */
void fabric_input(struct fabric *f, unsigned card, const struct net_offload *off, uint8_t *frame,
		  size_t len);
/** fabric_uplink_input() - a frame from the uplink of @network, its hints right. */
void fabric_uplink_input(struct fabric *f, unsigned network, const struct net_offload *off,
			 uint8_t *frame, size_t len);
/** fabric_port_up() - a machine was connected: it is told the network's prefix and gateway. */
void fabric_port_up(struct fabric *f, unsigned port);

/**
 * fabric_send_udp() - from the gateway to the machine at @port, as answer to @dst.
 * @src: one of the gateway's addresses
 * @len: up to 1400 bytes
 */
void fabric_send_udp(struct fabric *f, unsigned port, const struct net_addr *src,
		     const struct net_addr *dst, uint16_t sport, uint16_t dport,
		     const void *payload, size_t len);
/** fabric_send_tcp() - the same with a segment, header and all but its checksum, of up to NET_MTU bytes with what is below. */
void fabric_send_tcp(struct fabric *f, unsigned port, const struct net_addr *src,
		     const struct net_addr *dst, const uint8_t *segment, size_t len);

/** fabric_port_by_addr() - whose address (not a link-local one) it is: the policy's or one that was announced; -1: nobody's. */
int fabric_port_by_addr(const struct fabric *f, const struct net_addr *a);
/** fabric_bound() - IPv6 addresses of the machine's own making.  Returns how many. */
unsigned fabric_bound(const struct fabric *f, unsigned port, struct net_addr out[FABRIC_BOUND]);
/** fabric_bind() - the machine at @port has announced @a elsewhere, and has it if nobody else does.  False: that can't be. */
bool fabric_bind(struct fabric *f, unsigned port, const struct net_addr *a);
/** fabric_addr6() - the IPv6 address by which others are told to find it: the policy's, unless only others were announced. */
struct net_addr fabric_addr6(const struct fabric *f, unsigned port);

const struct fabric_port_counts *fabric_port_counts(const struct fabric *f, unsigned port);
/** fabric_rule_counts() - of the rule with index @rule of the current policy: packets it decided, either way. */
struct fabric_counts fabric_rule_counts(const struct fabric *f, unsigned rule);
unsigned fabric_flows(const struct fabric *f, unsigned port);

#endif
