/* SPDX-License-Identifier: Apache-2.0 */
/* Machines that come and go while a lab is up: copies of others. */
#include <errno.h>
#include <string.h>

#include "net/policy.h"

/* The first of a trunk comes before its other parts. */
static int copy_cards(struct policy *p, unsigned from, unsigned to, struct error *err)
{
	unsigned cards[POLICY_PORTS_MAX];

	for (unsigned i = 0, n = p->nports; i < n; i++) {
		const struct policy_port *q = &p->ports[i];
		if (q->is_gone || q->machine != from)
			continue;
		int r = policy_add_port(p, to, q->network, NULL, err);
		if (r < 0)
			return r;
		p->ports[r].may_spoof = p->ports[i].may_spoof;
		cards[i] = (unsigned)r;
		bool is_part = p->ports[p->ports[i].card].is_trunk;
		if (is_part)
			r = policy_join_trunk(p, (unsigned)r, cards[p->ports[i].card],
					      p->ports[i].vlan, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool names_machine(const struct policy_end *e, unsigned machine)
{
	return e->kind == POLICY_END_PORTS && e->machine == (int)machine;
}

/* Behind the one that it is a twin of: what decides for the one decides for the other. */
static int copy_rules(struct policy *p, unsigned from, unsigned to, struct error *err)
{
	for (unsigned i = 0; i < p->nrules; i++) {
		struct policy_rule twin = p->rules[i];
		bool is_from = names_machine(&twin.from, from), is_to = names_machine(&twin.to, from);
		if (!is_from && !is_to)
			continue;
		twin.from.machine = is_from ? (int)to : twin.from.machine;
		twin.to.machine = is_to ? (int)to : twin.to.machine;
		int r = policy_add_rule(p, ++i, &twin, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int policy_copy_machine(struct policy *p, unsigned from, const char *name, struct error *err)
{
	int to = policy_add_machine(p, name, err), r;

	if (to < 0)
		return to;
	p->machines[to].is_copy = true;
	p->machines[to].is_quarantined = p->machines[from].is_quarantined;
	r = copy_cards(p, from, (unsigned)to, err);
	if (r == 0)
		r = copy_rules(p, from, (unsigned)to, err);
	return r < 0 ? r : to;
}

static bool is_taken(const struct policy *p, unsigned card, const uint8_t mac[6])
{
	for (unsigned i = 0; i < p->nnetworks; i++)
		if (memcmp(p->networks[i].gateway_mac, mac, 6) == 0)
			return true;
	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone && p->ports[i].card != card &&
		    memcmp(p->ports[i].mac, mac, 6) == 0)
			return true;
	return false;
}

int policy_set_mac(struct policy *p, unsigned port, const uint8_t mac[6], struct error *err)
{
	static const struct net_prefix link_local = { { { 0xfe, 0x80 } }, 64 };
	static const uint8_t none[6];
	unsigned card = p->ports[port].card;

	if (mac[0] & 1 || memcmp(mac, none, 6) == 0)
		return error_set(err, -EINVAL, "a card of machine \"%s\" has no valid MAC",
				 p->machines[p->ports[port].machine].name);
	if (is_taken(p, card, mac))
		return error_set(err, -EEXIST, "the MAC of a card of machine \"%s\" is another's here",
				 p->machines[p->ports[port].machine].name);
	for (unsigned i = 0; i < p->nports; i++) {
		struct policy_port *q = &p->ports[i];
		if (q->is_gone || q->card != card)
			continue;
		memcpy(q->mac, mac, 6);
		q->v6 = net_prefix_eui64(&p->networks[q->network].v6, mac);
		q->ll = net_prefix_eui64(&link_local, mac);
	}
	return 0;
}

void policy_forget_machine(struct policy *p, unsigned machine)
{
	for (unsigned i = p->nrules; i-- > 0;)
		if (names_machine(&p->rules[i].from, machine) || names_machine(&p->rules[i].to, machine))
			policy_remove_rule(p, p->rules[i].id);
	for (unsigned i = 0; i < p->nports; i++)
		p->ports[i].is_gone |= p->ports[i].machine == machine;
	p->machines[machine] = (struct policy_machine){ .is_quarantined = true, .is_gone = true };
}
