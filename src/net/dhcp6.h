/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A DHCPv6 server whose leases are the policy's addresses (RFC 8415): who asks for one gets the one that its port has, who asks
 * for none gets resolver and search domain (RFC 3646).  It keeps nothing: the same question always has the same answer.
 *
 * Router advertisements say that it tells of other things than addresses (O), not that it gives these (M): SLAAC makes the same address of
 * the card's MAC, and systemd-networkd takes the second of two equal ones for a conflict and does not come to an end.  Who asks anyhow
 * is served: a guest whose own addresses are temporary ones, or made of a secret, has the policy's, too.
 *
 * Not done: relays, prefixes, temporary addresses (which are refused by status), reconfiguration, authentication.
 */
#ifndef VIV_NET_DHCP6_H
#define VIV_NET_DHCP6_H

#include "net/policy.h"

#define DHCP6_LEASE_S	86400
#define DHCP6_REPLY_MAX 1024

/**
 * dhcp6_reply() - the answer to a message from the machine at @port.
 * @m: the UDP payload, hostile
 * @reply: receives the answer's
 * Returns its length, or 0: nothing is answered.
 */
size_t dhcp6_reply(const struct policy *policy, unsigned port, const uint8_t *m, size_t len,
		   uint8_t reply[DHCP6_REPLY_MAX]);

#endif
