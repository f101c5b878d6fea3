/* SPDX-License-Identifier: Apache-2.0 */
#include "net/dhcp.h"

#include <string.h>

#include "net/fabric.h"

enum { DISCOVER = 1, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM };
enum {
	OPT_MASK = 1,
	OPT_ROUTER = 3,
	OPT_DNS = 6,
	OPT_HOSTNAME = 12,
	OPT_DOMAIN = 15,
	OPT_LEASE = 51,
	OPT_TYPE = 53,
	OPT_SERVER = 54,
	OPT_SEARCH = 119, /* RFC 3397 */
	OPT_END = 255,
};
enum { FIXED = 236, OPTIONS = 240, CIADDR = 12, YIADDR = 16, CHADDR = 28 };

static uint8_t *put(uint8_t *at, uint8_t code, const void *data, size_t len)
{
	at[0] = code;
	at[1] = (uint8_t)len;
	memcpy(at + 2, data, len);
	return at + 2 + len;
}

static uint8_t *put_settings(uint8_t *at, const struct policy *policy, const struct policy_port *q,
			     bool has_lease)
{
	const struct policy_network *n = &policy->networks[q->network];
	const char *name = policy->machines[q->machine].name;
	uint8_t mask[4], lease[4];
	uint32_t bits = n->v4.bits - 96;

	net_put32(mask, bits ? 0xffffffffu << (32 - bits) : 0);
	at = put(at, OPT_MASK, mask, 4);
	if (q->is_default)
		at = put(at, OPT_ROUTER, n->gateway_v4.b + 12, 4);
	at = put(at, OPT_DNS, n->gateway_v4.b + 12, 4);
	at = put(at, OPT_HOSTNAME, name, strlen(name));
	/* By either a client completes single names. */
	at = put(at, OPT_DOMAIN, "lab", 3);
	at = put(at, OPT_SEARCH, "\3lab", 5);
	net_put32(lease, DHCP_LEASE_S);
	return has_lease ? put(at, OPT_LEASE, lease, 4) : at;
}

/* What a client wants that isn't its own is refused, so that it asks anew (RFC 2131, 4.3.2). */
static uint8_t answer_to_request(const struct policy_port *q, const struct packet *p, const uint8_t *d)
{
	struct net_addr ciaddr = net_addr_v4(d + CIADDR);
	const struct net_addr *wanted = net_addr_is_any(&ciaddr) ? &p->dhcp_requested : &ciaddr;

	return net_addr_is_equal(wanted, &q->v4) ? ACK : NAK;
}

size_t dhcp_reply(const struct policy *policy, unsigned port, const struct packet *p,
		  uint8_t reply[DHCP_REPLY_MAX])
{
	const struct policy_port *q = &policy->ports[port];
	const struct policy_network *n = &policy->networks[q->network];
	const uint8_t *d = packet_at(p, p->payload, OPTIONS);
	uint8_t type;

	if (!d || p->dhcp_op != 1)
		return 0;
	switch (p->dhcp_type) {
	case DISCOVER:
		type = OFFER;
		break;
	case REQUEST:
		type = answer_to_request(q, p, d);
		break;
	case INFORM:
		type = ACK;
		break;
	default:
		return 0;
	}
	memset(reply, 0, DHCP_REPLY_MAX);
	reply[0] = 2;
	reply[1] = 1;
	reply[2] = 6;
	memcpy(reply + 4, d + 4, 4);   /* xid */
	memcpy(reply + 10, d + 10, 2); /* flags */
	memcpy(reply + CHADDR, d + CHADDR, 6);
	memcpy(reply + FIXED, d + FIXED, 4);
	uint8_t *at = put(reply + OPTIONS, OPT_TYPE, &type, 1);
	at = put(at, OPT_SERVER, n->gateway_v4.b + 12, 4);
	if (type != NAK) {
		if (p->dhcp_type == INFORM)
			memcpy(reply + CIADDR, d + CIADDR, 4);
		else
			memcpy(reply + YIADDR, q->v4.b + 12, 4);
		at = put_settings(at, policy, q, p->dhcp_type != INFORM);
	}
	*at++ = OPT_END;
	/* RFC 1542, 2.1: some drop what is shorter. */
	return MAX((size_t)(at - reply), (size_t)300);
}
