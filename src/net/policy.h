/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The policy of a lab: who may reach whom.  Plain data, and one function over it, policy_decide(), that the data plane and
 * `viv plan` both ask: what is drawn is what happens.
 *
 * Networks are segments with subnets of their own; a port is a machine's card in a network, with one MAC and one
 * address of each IP version.  What no rule allows is denied:
 *
 *   1. a machine in quarantine reaches nothing and is reached by nothing
 *   2. the rules, in order: the first that matches decides
 *   3. a forwarded port is reached from outside
 *   4. two ports of one network reach each other
 *   5. all else is denied
 *
 * Before any rule: the lab's own gateway gives its services only (POLICY_GATEWAY), and what is no internet is reached by
 * nobody, whatever the rules say: the host, its loopback and its LAN, metadata services, private and special ranges.
 *
 * A policy is changed by making another one and giving it to the data plane in one step (fabric_set_policy()).  Rules
 * keep their id in it, and with it their counters and learnt addresses.
 */
#ifndef VIV_NET_POLICY_H
#define VIV_NET_POLICY_H

#include "net/addr.h"

#define POLICY_NETWORKS_MAX 32
#define POLICY_MACHINES_MAX 128
#define POLICY_PORTS_MAX    256
#define POLICY_RULES_MAX    4096
#define POLICY_FORWARDS_MAX 64
#define POLICY_BLOCKED_MAX  96
#define POLICY_NAMES_MAX    32	/* of a rule */
#define POLICY_RANGES_MAX   32	/* of a rule */
#define POLICY_NAME_MAX	    63	/* bytes of a network's or machine's name */
#define POLICY_DOMAIN_MAX   253 /* bytes of a domain name (RFC 1035, 2.3.4) */

struct policy_network {
	char name[POLICY_NAME_MAX + 1];
	struct net_prefix v4; /* /8 to /29, as net_prefix: bits 104 to 125 */
	struct net_prefix v6; /* /64 */
	bool has_uplink;      /* to the host's network, by NAT ... */
	bool is_tap;	      /* ... or an interface of the host's */
	int vlan; /* frames at the machines' cards carry this tag, unless they are trunks; -1: none */
	uint8_t gateway_mac[6];
	struct net_addr gateway_v4, gateway_v6, gateway_ll;
	struct net_addr uplink_v4; /* callers of forwarded ports on this host appear as it; nothing can be opened to it */
};

struct policy_machine {
	char name[POLICY_NAME_MAX + 1];
	bool is_quarantined;
	bool is_copy; /* of another one, made while the lab is up */
	bool is_gone; /* forgotten; its place is taken again when there is no other */
};

/* A card's place in a network.  A card that is a trunk has several, told apart by the tags of its frames. */
struct policy_port {
	unsigned machine, network; /* indices */
	unsigned card; /* the port that stands for the card: itself, or the first of its trunk */
	int vlan;      /* frames carry this tag; -1: none */
	bool is_trunk; /* others have it as their card */
	uint8_t mac[6];
	struct net_addr v4, v6, ll; /* ll: fe80::/64 with the same lower half as v6 */
	bool may_spoof;		    /* sender addresses are not checked */
	bool is_default; /* the machine's way out: DHCP and router advertisements say so */
	bool is_gone;	 /* with its machine */
};

/* Ends of a rule: a port, or all of a machine or network. */
enum policy_end_kind { POLICY_END_PORTS, POLICY_END_INTERNET };
struct policy_end {
	enum policy_end_kind kind;
	int network, machine; /* -1: any */
};

struct policy_range {
	uint16_t first, last;
};

struct policy_rule {
	uint32_t id; /* unique in a lab's life, from 1 */
	bool is_allow;
	struct policy_end from, to;
	uint8_t proto; /* 0: any; IP_ICMP stands for ICMP of both versions */
	struct policy_range ports[POLICY_RANGES_MAX];
	unsigned nports; /* 0: any */
	/* Of the internet, only what these names were answered with; "*.example.org" is all below it. */
	char (*names)[POLICY_DOMAIN_MAX + 1]; /* malloc'd */
	unsigned nnames;
};

struct policy_forward {
	bool is_udp;
	struct net_addr host_addr;
	uint16_t host_port;
	unsigned port; /* index: the card it leads to */
	uint16_t guest_port;
};

struct policy {
	char name[POLICY_NAME_MAX + 1]; /* of the lab */
	struct policy_network networks[POLICY_NETWORKS_MAX];
	unsigned nnetworks;
	struct policy_machine machines[POLICY_MACHINES_MAX];
	unsigned nmachines;
	struct policy_port ports[POLICY_PORTS_MAX];
	unsigned nports;
	struct policy_rule *rules; /* malloc'd */
	unsigned nrules;
	uint32_t next_rule_id;
	struct policy_forward forwards[POLICY_FORWARDS_MAX];
	unsigned nforwards;
	struct net_prefix blocked[POLICY_BLOCKED_MAX]; /* no internet */
	unsigned nblocked;
};

/* ---- making one ---- */

/** policy_create() - an empty one, named @name, with the special ranges blocked.  NULL: no memory. */
struct policy *policy_create(const char *name);
/** policy_copy() - a copy of its own, to be changed.  NULL: no memory. */
struct policy *policy_copy(const struct policy *p);
void policy_free(struct policy *p); /* NULL is fine */

/**
 * policy_add_network() - the gateway gets the first address.
 * @v6: NULL: a /64 of fd00::/8 is derived from the names of lab and network (RFC 4193)
 * Returns its index, -EEXIST, -ENOSPC, -EINVAL (the subnet's size or kind, or it overlaps another), with @err set.
 */
int policy_add_network(struct policy *p, const char *name, const struct net_prefix *v4,
		       const struct net_prefix *v6, bool has_uplink, int vlan, struct error *err);
int policy_add_machine(struct policy *p, const char *name, struct error *err);
/**
 * policy_add_port() - a card of @machine in @network; its MAC is derived from the names.
 * @v4: NULL: the next that is free, from the tenth on where the subnet has room
 * Returns its index or -errno with @err set.
 */
int policy_add_port(struct policy *p, unsigned machine, unsigned network, const struct net_addr *v4,
		    struct error *err);
/**
 * policy_join_trunk() - @port is a part of the trunk whose first is @card, or is that first one itself.
 * It has the card's MAC from now on, and the IPv6 addresses of it.
 * @vlan: its tag, 1 to 4094
 * Returns 0, -EINVAL (no such tag, or of another machine), -EEXIST (another part has the tag), with @err set.
 */
int policy_join_trunk(struct policy *p, unsigned port, unsigned card, int vlan, struct error *err);
/**
 * policy_add_rule() - at place @at, at most nrules; @r's names are copied, its id is given here.
 * Returns 0, -ENOSPC, -ENOMEM, -EEXIST (one with the same ends, protocol, ports and names allows, or denies, the same;
 * or the opposite), -EINVAL (to the internet, from where there is no uplink), with @err set.
 */
int policy_add_rule(struct policy *p, unsigned at, const struct policy_rule *r, struct error *err);
/** policy_has_rule() - is there one that says just the same as @r? */
bool policy_has_rule(const struct policy *p, const struct policy_rule *r);
/** policy_remove_rule() - 0 or -ENOENT. */
int policy_remove_rule(struct policy *p, uint32_t id);
/** policy_remove_same() - a rule with the ends, protocol, ports and names of @r, whatever it decides. */
void policy_remove_same(struct policy *p, const struct policy_rule *r);
int policy_add_forward(struct policy *p, const struct policy_forward *f, struct error *err);
/**
 * policy_copy_machine() - machine @name with cards in the networks of @from, MACs and addresses of its own; each rule that names
 * @from has a twin behind it that names the copy, and it is in quarantine if @from is.  No ports of the host lead to it.
 * Returns its index or -errno with @err set, and @p is only to be freed.
 */
int policy_copy_machine(struct policy *p, unsigned from, const char *name, struct error *err);
/**
 * policy_set_mac() - the card of @port has another MAC than the one that its names give, and with it other IPv6 addresses; all parts of a trunk, too.
 * Returns 0, -EINVAL (of many, or none), -EEXIST (another card's or a gateway's), with @err set.
 */
int policy_set_mac(struct policy *p, unsigned port, const uint8_t mac[6], struct error *err);
/** policy_forget_machine() - a copy, its cards and the rules that name it are gone; other indices stay as they are. */
void policy_forget_machine(struct policy *p, unsigned machine);
/** policy_block() - one more range that is no internet; one too many is -ENOSPC. */
int policy_block(struct policy *p, const struct net_prefix *range);
/** policy_has_blocked() - all of @range is no internet. */
bool policy_has_blocked(const struct policy *p, const struct net_prefix *range);
/** policy_block_all() - nothing is internet any more. */
void policy_block_all(struct policy *p);
/** policy_block_host() - this host's addresses and the networks at its interfaces. 0 or -errno with @err set. */
int policy_block_host(struct policy *p, struct error *err);

/**
 * policy_parse_rule() - "dmz.web -> app.db", and "tcp/5432", "tcp/80,443", "udp/1000-2000", "icmp", "any" or nothing.
 * An end is NETWORK.MACHINE, NETWORK.*, *.MACHINE, *.* or, on the right, internet.
 * @out: zeroed and filled; is_allow, id and names are the caller's matter
 * Returns 0 or -EINVAL with @err set.
 */
int policy_parse_rule(const struct policy *p, const char *ends, const char *what,
		      struct policy_rule *out, struct error *err);
int policy_parse_what(const char *what, struct policy_rule *out, struct error *err);
/** policy_format_rule() - as policy_parse_rule() reads it.  Returns @buf. */
const char *policy_format_rule(const struct policy *p, const struct policy_rule *r, char *buf,
			       size_t cap);
/** policy_check_domain() - a host name or "*." and one (RFC 1123, 2.1).  0 or -EINVAL with @err set. */
int policy_check_domain(const char *name, struct error *err);

/* ---- asking it ---- */

int policy_find_network(const struct policy *p, const char *name); /* index or -1 */
int policy_find_machine(const struct policy *p, const char *name);
int policy_find_port(const struct policy *p, int machine, int network);
/** policy_port_by_tag() - where a frame with this tag (-1: none) at @card belongs; -1: nowhere. */
int policy_port_by_tag(const struct policy *p, unsigned card, int vlan);
/** policy_port_by_addr() - whose address (v4 or v6, not link-local) it is; -1: nobody's. */
int policy_port_by_addr(const struct policy *p, const struct net_addr *a);
/** policy_is_cut_off() - the card's machine is in quarantine, or gone. */
bool policy_is_cut_off(const struct policy *p, unsigned port);
/** policy_rule_end_has() - the card is one of those that an end of a rule means. */
bool policy_rule_end_has(const struct policy *p, const struct policy_end *e, unsigned port);
/** policy_port_label() - "dmz.web".  Returns @buf. */
const char *policy_port_label(const struct policy *p, unsigned port, char *buf, size_t cap);
/** policy_is_blocked() - @a is no internet. */
bool policy_is_blocked(const struct policy *p, const struct net_addr *a);

enum { POLICY_OUTSIDE = -1 }; /* in place of a port: the other side of an uplink */

struct policy_flow {
	int from, to;	     /* ports, or POLICY_OUTSIDE; @to as the frame's way is, not by @dst */
	struct net_addr dst; /* asked for @to == POLICY_OUTSIDE only */
	uint8_t proto;	     /* IP_ICMP6 is IP_ICMP */
	uint16_t dport;
	bool has_ports; /* TCP, UDP and a whole header */
};

enum policy_why {
	POLICY_BY_RULE,
	POLICY_QUARANTINE,
	POLICY_FORWARDED,
	POLICY_SAME_NETWORK,
	POLICY_NO_UPLINK,
	POLICY_BLOCKED,
	POLICY_DEFAULT,
};

struct policy_verdict {
	bool is_allowed;
	enum policy_why why;
	int rule; /* index; -1: none */
};

/* Addresses that a rule's names were answered with, to the machine at @port; who asks knows where they are kept. */
struct policy_names {
	bool (*has)(void *ctx, unsigned port, uint32_t rule_id, const struct net_addr *a);
	void *ctx;
};

/**
 * policy_decide() - may the first packet of this flow pass?  Answers follow their flow.
 * @names: NULL: every address is taken for one of the rule's names: what could be allowed
 */
struct policy_verdict policy_decide(const struct policy *p, const struct policy_flow *f,
				    const struct policy_names *names);
/** policy_may_ask() - may a machine at @port have @domain looked up outside? */
bool policy_may_ask(const struct policy *p, unsigned port, const char *domain);
/** policy_rule_names() - @domain is one of the rule's names. */
bool policy_rule_names(const struct policy_rule *r, const char *domain);
/** policy_may_see() - some flow from port @from to port @to may pass: @from may learn its address by name. */
bool policy_may_see(const struct policy *p, unsigned from, unsigned to);

#endif
