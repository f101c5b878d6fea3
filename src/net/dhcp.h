/* SPDX-License-Identifier: Apache-2.0 */
/* A DHCP server whose leases are the policy's addresses (RFC 2131, 2132): who asks gets what its port has. */
#ifndef VIV_NET_DHCP_H
#define VIV_NET_DHCP_H

#include "net/packet.h"
#include "net/policy.h"

#define DHCP_LEASE_S   86400
#define DHCP_REPLY_MAX 548

/**
 * dhcp_reply() - the answer to a message from the machine at @port.
 * @p: is_dhcp, from a client, its sender checked
 * @reply: receives the UDP payload
 * Returns its length, or 0: nothing is answered.
 */
size_t dhcp_reply(const struct policy *policy, unsigned port, const struct packet *p,
		  uint8_t reply[DHCP_REPLY_MAX]);

#endif
