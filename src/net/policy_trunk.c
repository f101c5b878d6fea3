/* SPDX-License-Identifier: Apache-2.0 */
/* Cards that are in several networks at once, by VLAN tags (IEEE 802.1Q). */
#include <errno.h>
#include <string.h>

#include "net/policy.h"

enum { VLAN_MAX = 4094 };

static const struct net_prefix link_local = { { { 0xfe, 0x80 } }, 64 };

int policy_join_trunk(struct policy *p, unsigned port, unsigned card, int vlan, struct error *err)
{
	struct policy_port *q = &p->ports[port];
	const struct policy_port *first = &p->ports[card];

	if (vlan < 1 || vlan > VLAN_MAX)
		return error_set(err, -EINVAL, "a VLAN has a number from 1 to %d", VLAN_MAX);
	if (q->machine != first->machine)
		return error_set(err, -EINVAL, "a trunk is one card of one machine");
	for (unsigned i = 0; i < p->nports; i++)
		if (i != port && !p->ports[i].is_gone && p->ports[i].machine == q->machine &&
		    p->ports[i].card == card && p->ports[i].vlan == vlan)
			return error_set(err, -EEXIST, "a trunk has VLAN %d for network \"%s\" already",
					 vlan, p->networks[p->ports[i].network].name);
	p->ports[card].is_trunk = true;
	q->card = card;
	q->vlan = vlan;
	memcpy(q->mac, first->mac, sizeof(q->mac));
	q->v6 = net_prefix_eui64(&p->networks[q->network].v6, q->mac);
	q->ll = net_prefix_eui64(&link_local, q->mac);
	return 0;
}

int policy_port_by_tag(const struct policy *p, unsigned card, int vlan)
{
	if (p->ports[card].vlan == vlan)
		return (int)card;
	for (unsigned i = 0; p->ports[card].is_trunk && i < p->nports; i++)
		if (!p->ports[i].is_gone && p->ports[i].card == card && p->ports[i].vlan == vlan)
			return (int)i;
	return -1;
}
