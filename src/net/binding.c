/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IPv6 addresses that a machine has made itself: temporary ones (RFC 8981), such as are made of a secret (RFC 7217), ones that a person
 * gave.  It announces each by asking whether another has it (duplicate address detection, RFC 4862, 5.4), and who asks first is bound to
 * it (FCFS SAVI, RFC 6620).
 *
 * Only what lies in the network's /64 or is link-local can be bound, and nothing that another machine or the gateway has, or will have.
 */
#include <string.h>

#include "net/fabric_int.h"

static const struct net_prefix link_local = { { { 0xfe, 0x80 } }, 64 };

static struct bound *find(struct fabric_port *fp, const struct net_addr *a)
{
	for (unsigned i = 0; i < fp->nbound; i++)
		if (net_addr_is_equal(&fp->bound[i].addr, a))
			return &fp->bound[i];
	return NULL;
}

bool binding_has(struct fabric *f, unsigned port, const struct net_addr *a)
{
	struct fabric_port *fp = &f->ports[port];
	struct bound *b = find(fp, a);

	if (b)
		b->used = ++fp->uses;
	return b != NULL;
}

/* Of a card that is there, in @network; -1: nobody's. */
static int owner_of(const struct fabric *f, unsigned network, const struct net_addr *a)
{
	const struct policy *p = f->policy;

	for (unsigned i = 0; i < p->nports; i++) {
		const struct policy_port *q = &p->ports[i];
		if (!q->is_gone && q->network == network &&
		    (net_addr_is_equal(&q->v6, a) || net_addr_is_equal(&q->ll, a) ||
		     find(&f->ports[i], a)))
			return (int)i;
	}
	return -1;
}

/* The addresses of the gateway and of the way out, and the one that means any router (RFC 4291, 2.6.1). */
static bool is_of_router(const struct policy_network *n, const struct net_addr *a)
{
	struct net_addr any_router = n->v6.addr, outside = net_prefix_host(&n->v6, 2);

	return net_addr_is_equal(a, &n->gateway_v6) || net_addr_is_equal(a, &n->gateway_ll) ||
	       net_addr_is_equal(a, &outside) || net_addr_is_equal(a, &any_router);
}

bool binding_claim(struct fabric *f, unsigned port, const struct net_addr *a)
{
	const struct policy_port *q = &f->policy->ports[port];
	const struct policy_network *n = &f->policy->networks[q->network];
	struct fabric_port *fp = &f->ports[port];

	if (net_addr_is_equal(a, &q->v6))
		fp->has_v6 = true;
	if (net_addr_is_equal(a, &q->v6) || net_addr_is_equal(a, &q->ll) || binding_has(f, port, a))
		return true;
	if ((!net_prefix_has(&n->v6, a) && !net_prefix_has(&link_local, a)) || is_of_router(n, a) ||
	    owner_of(f, q->network, a) >= 0)
		return false;
	struct bound *b = &fp->bound[fp->nbound];
	if (fp->nbound < FABRIC_BOUND) {
		fp->nbound++;
	} else {
		b = fp->bound;
		for (unsigned i = 1; i < FABRIC_BOUND; i++)
			b = fp->bound[i].used < b->used ? &fp->bound[i] : b;
	}
	*b = (struct bound){ *a, ++fp->uses };
	return true;
}

int fabric_port_by_addr(const struct fabric *f, const struct net_addr *a)
{
	const struct policy *p = f->policy;
	int port = policy_port_by_addr(p, a);

	if (port >= 0 || net_addr_is_v4(a))
		return port;
	for (unsigned i = 0; i < p->nnetworks && port < 0; i++)
		if (net_prefix_has(&p->networks[i].v6, a))
			port = owner_of(f, i, a);
	return port;
}

bool fabric_bind(struct fabric *f, unsigned port, const struct net_addr *a)
{
	return binding_claim(f, port, a);
}

unsigned fabric_bound(const struct fabric *f, unsigned port, struct net_addr out[FABRIC_BOUND])
{
	const struct fabric_port *fp = &f->ports[port];

	for (unsigned i = 0; i < fp->nbound; i++)
		out[i] = fp->bound[i].addr;
	return fp->nbound;
}

struct net_addr fabric_addr6(const struct fabric *f, unsigned port)
{
	const struct fabric_port *fp = &f->ports[port];

	/* A stable address is made before temporary ones, and so is the first. */
	for (unsigned i = 0; i < fp->nbound && !fp->has_v6; i++)
		if (!net_addr_is_link_local(&fp->bound[i].addr))
			return fp->bound[i].addr;
	return f->policy->ports[port].v6;
}
