/* SPDX-License-Identifier: Apache-2.0 */
/* Policies: making them from checked parts, and deciding. */
#include "net/policy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <xxhash.h>

#include "net/packet.h"

/* What is no internet: the ranges that IANA's registries of special addresses (RFC 6890) call not globally reachable,
 * multicast, and what leads to IPv4 by translation.  Metadata services are in 169.254.0.0/16 and fd00::/8. */
static const char *const special[] = {
	"0.0.0.0/8",	 "10.0.0.0/8",	    "100.64.0.0/10",  "127.0.0.0/8",	"169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24",    "192.0.2.0/24",   "192.88.99.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",	"168.63.129.16/32",
	"::/3",		 "4000::/2",	    "8000::/1",	      "2001::/23",	"2001:db8::/32",
	"2002::/16",	 "3fff::/20",
};

static const struct net_prefix link_local = { { { 0xfe, 0x80 } }, 64 };

struct policy *policy_create(const char *name)
{
	struct policy *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	snprintf(p->name, sizeof(p->name), "%s", name);
	p->next_rule_id = 1;
	for (unsigned i = 0; i < ARRAY_SIZE(special); i++) {
		struct net_prefix range;
		/* ::/3 holds ::ffff:0:0/96, where IPv4 lives here. */
		if (net_prefix_parse(special[i], &range) == 0)
			p->blocked[p->nblocked++] = range;
	}
	return p;
}

static void free_rules(struct policy *p)
{
	for (unsigned i = 0; i < p->nrules; i++)
		free(p->rules[i].names);
	free(p->rules);
}

void policy_free(struct policy *p)
{
	if (!p)
		return;
	free_rules(p);
	free(p);
}

static int copy_rule(struct policy_rule *dst, const struct policy_rule *src)
{
	*dst = *src;
	if (!src->nnames) {
		dst->names = NULL;
		return 0;
	}
	dst->names = malloc(src->nnames * sizeof(*src->names));
	if (!dst->names)
		return -ENOMEM;
	memcpy(dst->names, src->names, src->nnames * sizeof(*src->names));
	return 0;
}

struct policy *policy_copy(const struct policy *p)
{
	struct policy *c = malloc(sizeof(*c));

	if (!c)
		return NULL;
	memcpy(c, p, sizeof(*c));
	c->nrules = 0;
	c->rules = malloc((p->nrules + 1) * sizeof(*c->rules));
	if (!c->rules)
		goto fail;
	for (; c->nrules < p->nrules; c->nrules++)
		if (copy_rule(&c->rules[c->nrules], &p->rules[c->nrules]) < 0)
			goto fail;
	return c;
fail:
	policy_free(c);
	return NULL;
}

/* ---- networks, machines, ports ---- */

static uint64_t hash_names(const char *what, const char *a, const char *b, const char *c)
{
	char text[4 * (POLICY_NAME_MAX + 2)];
	int len = snprintf(text, sizeof(text), "%s/%s/%s/%s", what, a, b, c);

	return XXH64(text, (size_t)len, 0);
}

/* Locally administered, unicast. */
static void derive_mac(uint8_t mac[6], const char *lab, const char *machine, const char *network)
{
	uint64_t h = hash_names("mac", lab, machine, network);

	mac[0] = 0x52;
	mac[1] = 0x54;
	for (unsigned i = 2; i < 6; i++)
		mac[i] = (uint8_t)(h >> 8 * i);
}

static struct net_prefix derive_v6(const char *lab, const char *network)
{
	uint64_t h = hash_names("prefix", lab, network, "");
	struct net_prefix p = { .bits = 64 };

	p.addr.b[0] = 0xfd;
	for (unsigned i = 1; i < 8; i++)
		p.addr.b[i] = (uint8_t)(h >> 8 * i);
	return p;
}

static int check_subnets(const struct policy *p, const struct net_prefix *v4,
			 const struct net_prefix *v6, struct error *err)
{
	char a[NET_ADDR_TEXT];

	if (!net_addr_is_v4(&v4->addr) || v4->bits < 96 + 8 || v4->bits > 96 + 29)
		return error_set(err, -EINVAL, "%s is no IPv4 subnet of /8 to /29",
				 net_prefix_format(v4, a));
	/* Without a unicast address a subnet is of no use. */
	uint8_t first = v4->addr.b[12];
	if (first == 0 || first == 127 || first >= 224)
		return error_set(err, -EINVAL, "%s holds no addresses for machines",
				 net_prefix_format(v4, a));
	if (net_addr_is_v4(&v6->addr) || v6->bits != 64 || net_addr_is_multicast(&v6->addr) ||
	    net_addr_is_link_local(&v6->addr) || v6->addr.b[0] == 0)
		return error_set(err, -EINVAL, "%s is no IPv6 subnet of /64", net_prefix_format(v6, a));
	for (unsigned i = 0; i < p->nnetworks; i++) {
		const struct policy_network *n = &p->networks[i];
		if (net_prefix_overlaps(v4, &n->v4))
			return error_set(err, -EINVAL, "the subnet %s overlaps that of network \"%s\"",
					 net_prefix_format(v4, a), n->name);
		if (net_prefix_overlaps(v6, &n->v6))
			return error_set(err, -EINVAL, "the subnet %s overlaps that of network \"%s\"",
					 net_prefix_format(v6, a), n->name);
	}
	return 0;
}

/* [A-Za-z0-9][A-Za-z0-9-]*: a label of a domain name, as machines and networks are found by it. */
static int check_name(const char *what, const char *name, struct error *err)
{
	size_t len = strlen(name);

	if (len >= 1 && len <= POLICY_NAME_MAX && name[0] != '-' && name[len - 1] != '-' &&
	    strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == len &&
	    strcasecmp(name, "internet") != 0)
		return 0;
	return error_set(err, -EINVAL, "\"%s\" is no name for a %s: letters, digits and - inside, at most %d, and not \"internet\"",
			 name, what, POLICY_NAME_MAX);
}

int policy_add_network(struct policy *p, const char *name, const struct net_prefix *v4,
		       const struct net_prefix *v6, bool has_uplink, int vlan, struct error *err)
{
	struct net_prefix derived = derive_v6(p->name, name);
	int r = check_name("network", name, err);

	if (r < 0)
		return r;
	if (policy_find_network(p, name) >= 0)
		return error_set(err, -EEXIST, "there are two networks \"%s\"", name);
	if (p->nnetworks == POLICY_NETWORKS_MAX)
		return error_set(err, -ENOSPC, "a lab has at most %d networks", POLICY_NETWORKS_MAX);
	if (vlan != -1 && (vlan < 1 || vlan > 4094))
		return error_set(err, -EINVAL, "a VLAN has a number from 1 to 4094");
	v6 = v6 ? v6 : &derived;
	r = check_subnets(p, v4, v6, err);
	if (r < 0)
		return r;
	struct policy_network *n = &p->networks[p->nnetworks];
	*n = (struct policy_network){ .v4 = *v4, .v6 = *v6, .has_uplink = has_uplink, .vlan = vlan };
	snprintf(n->name, sizeof(n->name), "%s", name);
	derive_mac(n->gateway_mac, p->name, "", name);
	n->gateway_v4 = net_prefix_host(v4, 1);
	n->uplink_v4 = net_prefix_host(v4, 2);
	n->gateway_v6 = net_prefix_host(v6, 1);
	n->gateway_ll = net_prefix_host(&link_local, 1);
	return (int)p->nnetworks++;
}

int policy_add_machine(struct policy *p, const char *name, struct error *err)
{
	int r = check_name("machine", name, err);

	if (r < 0)
		return r;
	if (policy_find_machine(p, name) >= 0)
		return error_set(err, -EEXIST, "there are two machines \"%s\"", name);
	unsigned at = p->nmachines;
	for (unsigned i = 0; at == POLICY_MACHINES_MAX && i < p->nmachines; i++)
		at = p->machines[i].is_gone ? i : at;
	if (at == POLICY_MACHINES_MAX)
		return error_set(err, -ENOSPC, "a lab has at most %d machines", POLICY_MACHINES_MAX);
	p->machines[at] = (struct policy_machine){ .is_gone = false };
	snprintf(p->machines[at].name, sizeof(p->machines[at].name), "%s", name);
	p->nmachines = MAX(p->nmachines, at + 1);
	return (int)at;
}

static bool is_v4_free(const struct policy *p, const struct policy_network *n, const struct net_addr *a)
{
	return policy_port_by_addr(p, a) < 0 && !net_addr_is_equal(a, &n->gateway_v4) &&
	       !net_addr_is_equal(a, &n->uplink_v4);
}

/* Neighbors remember for a while who had it. */
static bool was_used(const struct policy *p, const struct net_addr *a)
{
	for (unsigned i = 0; i < p->nports; i++)
		if (p->ports[i].is_gone && net_addr_is_equal(&p->ports[i].v4, a))
			return true;
	return false;
}

static int choose_v4(const struct policy *p, const struct policy_network *n,
		     const struct net_addr *wanted, struct net_addr *out, struct error *err)
{
	uint64_t size = 1ULL << (128 - n->v4.bits);
	char text[NET_ADDR_TEXT];

	if (wanted) {
		struct net_addr first = n->v4.addr,
				last = net_prefix_host(&n->v4, (uint32_t)(size - 1));
		if (!net_prefix_has(&n->v4, wanted) || net_addr_is_equal(wanted, &first) ||
		    net_addr_is_equal(wanted, &last))
			return error_set(err, -EINVAL, "%s is no address for a machine in network \"%s\"",
					 net_addr_format(wanted, text), n->name);
		if (!is_v4_free(p, n, wanted))
			return error_set(err, -EEXIST, "the address %s is taken already",
					 net_addr_format(wanted, text));
		*out = *wanted;
		return 0;
	}
	for (unsigned round = 0; round < 2; round++)
		for (uint64_t i = size > 32 ? 10 : 3; i < size - 1; i++) {
			*out = net_prefix_host(&n->v4, (uint32_t)i);
			if (is_v4_free(p, n, out) && (round || !was_used(p, out)))
				return 0;
		}
	return error_set(err, -ENOSPC, "network \"%s\" has no address left", n->name);
}

int policy_add_port(struct policy *p, unsigned machine, unsigned network, const struct net_addr *v4,
		    struct error *err)
{
	const struct policy_network *n = &p->networks[network];

	if (policy_find_port(p, (int)machine, (int)network) >= 0)
		return error_set(err, -EEXIST, "machine \"%s\" is in network \"%s\" twice",
				 p->machines[machine].name, n->name);
	unsigned at = p->nports;
	for (unsigned i = 0; at == POLICY_PORTS_MAX && i < p->nports; i++)
		at = p->ports[i].is_gone ? i : at;
	if (at == POLICY_PORTS_MAX)
		return error_set(err, -ENOSPC, "a lab has at most %d cards", POLICY_PORTS_MAX);
	struct policy_port port = {
		.machine = machine, .network = network, .card = at, .vlan = n->vlan, .is_default = true
	};
	int r = choose_v4(p, n, v4, &port.v4, err);
	if (r < 0)
		return r;
	derive_mac(port.mac, p->name, p->machines[machine].name, n->name);
	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone && memcmp(p->ports[i].mac, port.mac, 6) == 0)
			return error_set(
				err, -EEXIST,
				"the names of two cards give the same MAC; rename machine \"%s\"",
				p->machines[machine].name);
	port.v6 = net_prefix_eui64(&n->v6, port.mac);
	port.ll = net_prefix_eui64(&link_local, port.mac);
	/* The way out is the first card with an uplink, else the first card. */
	for (unsigned i = 0; i < p->nports; i++) {
		struct policy_port *other = &p->ports[i];
		if (other->is_gone || other->machine != machine || !other->is_default)
			continue;
		port.is_default = n->has_uplink && !p->networks[other->network].has_uplink;
		other->is_default = !port.is_default;
	}
	p->ports[at] = port;
	p->nports = MAX(p->nports, at + 1);
	return (int)at;
}

int policy_find_network(const struct policy *p, const char *name)
{
	for (unsigned i = 0; i < p->nnetworks; i++)
		if (strcasecmp(p->networks[i].name, name) == 0)
			return (int)i;
	return -1;
}

int policy_find_machine(const struct policy *p, const char *name)
{
	for (unsigned i = 0; i < p->nmachines; i++)
		if (!p->machines[i].is_gone && strcasecmp(p->machines[i].name, name) == 0)
			return (int)i;
	return -1;
}

int policy_find_port(const struct policy *p, int machine, int network)
{
	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone && (int)p->ports[i].machine == machine &&
		    (int)p->ports[i].network == network)
			return (int)i;
	return -1;
}

int policy_port_by_addr(const struct policy *p, const struct net_addr *a)
{
	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone &&
		    (net_addr_is_equal(&p->ports[i].v4, a) || net_addr_is_equal(&p->ports[i].v6, a)))
			return (int)i;
	return -1;
}

const char *policy_port_label(const struct policy *p, unsigned port, char *buf, size_t cap)
{
	snprintf(buf, cap, "%s.%s", p->networks[p->ports[port].network].name,
		 p->machines[p->ports[port].machine].name);
	return buf;
}

/* ---- rules ---- */

static bool is_same_end(const struct policy_end *a, const struct policy_end *b)
{
	return a->kind == b->kind && a->network == b->network && a->machine == b->machine;
}

static bool is_same_match(const struct policy_rule *a, const struct policy_rule *b)
{
	return is_same_end(&a->from, &b->from) && is_same_end(&a->to, &b->to) &&
	       a->proto == b->proto && a->nports == b->nports &&
	       memcmp(a->ports, b->ports, a->nports * sizeof(a->ports[0])) == 0 &&
	       a->nnames == b->nnames &&
	       (!a->nnames || memcmp(a->names, b->names, a->nnames * sizeof(*a->names)) == 0);
}

bool policy_rule_end_has(const struct policy *p, const struct policy_end *e, unsigned port)
{
	const struct policy_port *q = &p->ports[port];

	return e->kind == POLICY_END_PORTS && (e->network < 0 || (unsigned)e->network == q->network) &&
	       (e->machine < 0 || (unsigned)e->machine == q->machine);
}

static int check_rule(const struct policy *p, const struct policy_rule *r, struct error *err)
{
	char text[256];

	if (r->nnames && (r->to.kind != POLICY_END_INTERNET || !r->is_allow))
		return error_set(err, -EINVAL,
				 "only a rule that allows something of the internet has names");
	if (r->to.kind == POLICY_END_INTERNET && r->is_allow) {
		for (unsigned i = 0; i < p->nports; i++)
			if (policy_rule_end_has(p, &r->from, i) &&
			    p->networks[p->ports[i].network].has_uplink)
				return 0;
		return error_set(err, -EINVAL, "%s: no network on its left side has an uplink, so nothing would pass",
				 policy_format_rule(p, r, text, sizeof(text)));
	}
	return 0;
}

int policy_add_rule(struct policy *p, unsigned at, const struct policy_rule *r, struct error *err)
{
	char text[256];
	int ret = check_rule(p, r, err);

	if (ret < 0)
		return ret;
	if (p->nrules == POLICY_RULES_MAX)
		return error_set(err, -ENOSPC, "a lab has at most %d rules", POLICY_RULES_MAX);
	for (unsigned i = 0; i < p->nrules; i++) {
		if (!is_same_match(&p->rules[i], r))
			continue;
		policy_format_rule(p, r, text, sizeof(text));
		return p->rules[i].is_allow == r->is_allow
			       ? error_set(err, -EEXIST, "%s is there already", text)
			       : error_set(err, -EEXIST, "%s is both allowed and denied", text);
	}
	struct policy_rule copy;
	struct policy_rule *rules = realloc(p->rules, (p->nrules + 1) * sizeof(*rules));
	if (rules)
		p->rules = rules;
	if (!rules || copy_rule(&copy, r) < 0)
		return error_set(err, -ENOMEM, "no memory for a rule");
	copy.id = p->next_rule_id++;
	memmove(rules + at + 1, rules + at, (p->nrules - at) * sizeof(*rules));
	rules[at] = copy;
	p->nrules++;
	return 0;
}

bool policy_has_rule(const struct policy *p, const struct policy_rule *r)
{
	for (unsigned i = 0; i < p->nrules; i++)
		if (p->rules[i].is_allow == r->is_allow && is_same_match(&p->rules[i], r))
			return true;
	return false;
}

static void remove_at(struct policy *p, unsigned at)
{
	free(p->rules[at].names);
	p->nrules--;
	memmove(p->rules + at, p->rules + at + 1, (p->nrules - at) * sizeof(*p->rules));
}

int policy_remove_rule(struct policy *p, uint32_t id)
{
	for (unsigned i = 0; i < p->nrules; i++)
		if (p->rules[i].id == id) {
			remove_at(p, i);
			return 0;
		}
	return -ENOENT;
}

void policy_remove_same(struct policy *p, const struct policy_rule *r)
{
	for (unsigned i = p->nrules; i-- > 0;)
		if (is_same_match(&p->rules[i], r))
			remove_at(p, i);
}

int policy_add_forward(struct policy *p, const struct policy_forward *f, struct error *err)
{
	if (p->nforwards == POLICY_FORWARDS_MAX)
		return error_set(err, -ENOSPC, "a lab has at most %d forwarded ports",
				 POLICY_FORWARDS_MAX);
	for (unsigned i = 0; i < p->nforwards; i++) {
		const struct policy_forward *o = &p->forwards[i];
		if (o->is_udp == f->is_udp && o->host_port == f->host_port &&
		    (net_addr_is_equal(&o->host_addr, &f->host_addr) ||
		     net_addr_is_any(&o->host_addr) || net_addr_is_any(&f->host_addr)))
			return error_set(err, -EEXIST, "the host's port %u is forwarded twice",
					 f->host_port);
	}
	if (!p->networks[p->ports[f->port].network].has_uplink)
		return error_set(err, -EINVAL,
				 "nothing is forwarded into network \"%s\": it has no uplink",
				 p->networks[p->ports[f->port].network].name);
	p->forwards[p->nforwards++] = *f;
	return 0;
}

bool policy_has_blocked(const struct policy *p, const struct net_prefix *range)
{
	for (unsigned i = 0; i < p->nblocked; i++)
		if (p->blocked[i].bits <= range->bits && net_prefix_has(&p->blocked[i], &range->addr) &&
		    net_addr_is_v4(&p->blocked[i].addr) == net_addr_is_v4(&range->addr))
			return true;
	return false;
}

void policy_block_all(struct policy *p)
{
	static const uint8_t any4[4];

	p->blocked[0] = (struct net_prefix){ net_addr_v4(any4), 96 };
	p->blocked[1] = (struct net_prefix){ { { 0 } }, 0 };
	p->nblocked = 2;
}

int policy_block(struct policy *p, const struct net_prefix *range)
{
	if (policy_has_blocked(p, range))
		return 0;
	if (p->nblocked == POLICY_BLOCKED_MAX)
		return -ENOSPC;
	p->blocked[p->nblocked++] = *range;
	return 0;
}

bool policy_is_blocked(const struct policy *p, const struct net_addr *a)
{
	bool is_v4 = net_addr_is_v4(a);

	for (unsigned i = 0; i < p->nblocked; i++) {
		const struct net_prefix *b = &p->blocked[i];
		if ((b->bits >= 96 && net_addr_is_v4(&b->addr)) == is_v4 && net_prefix_has(b, a))
			return true;
	}
	/* The lab's own subnets, wherever they lie. */
	for (unsigned i = 0; i < p->nnetworks; i++)
		if (net_prefix_has(&p->networks[i].v4, a) || net_prefix_has(&p->networks[i].v6, a))
			return true;
	return false;
}

/* ---- deciding ---- */

static bool rule_covers(const struct policy_rule *r, const struct policy_flow *f)
{
	uint8_t proto = f->proto == IP_ICMP6 ? IP_ICMP : f->proto;

	if (r->proto && r->proto != proto)
		return false;
	if (!r->nports)
		return true;
	for (unsigned i = 0; f->has_ports && i < r->nports; i++)
		if (f->dport >= r->ports[i].first && f->dport <= r->ports[i].last)
			return true;
	return false;
}

static bool rule_matches(const struct policy *p, const struct policy_rule *r,
			 const struct policy_flow *f, const struct policy_names *names)
{
	if (f->from == POLICY_OUTSIDE || !policy_rule_end_has(p, &r->from, (unsigned)f->from) ||
	    !rule_covers(r, f))
		return false;
	if (f->to != POLICY_OUTSIDE)
		return policy_rule_end_has(p, &r->to, (unsigned)f->to);
	return r->to.kind == POLICY_END_INTERNET &&
	       (!r->nnames || !names || names->has(names->ctx, (unsigned)f->from, r->id, &f->dst));
}

static bool is_forwarded(const struct policy *p, const struct policy_flow *f)
{
	if (f->from != POLICY_OUTSIDE || f->to == POLICY_OUTSIDE || !f->has_ports)
		return false;
	for (unsigned i = 0; i < p->nforwards; i++) {
		const struct policy_forward *w = &p->forwards[i];
		if ((int)w->port == f->to && w->guest_port == f->dport &&
		    f->proto == (w->is_udp ? IP_UDP : IP_TCP))
			return true;
	}
	return false;
}

bool policy_is_cut_off(const struct policy *p, unsigned port)
{
	return p->ports[port].is_gone || p->machines[p->ports[port].machine].is_quarantined;
}

static bool is_quarantined(const struct policy *p, int port)
{
	return port != POLICY_OUTSIDE && policy_is_cut_off(p, (unsigned)port);
}

struct policy_verdict policy_decide(const struct policy *p, const struct policy_flow *f,
				    const struct policy_names *names)
{
	struct policy_verdict v = { .why = POLICY_DEFAULT, .rule = -1 };

	if (is_quarantined(p, f->from) || is_quarantined(p, f->to)) {
		v.why = POLICY_QUARANTINE;
		return v;
	}
	if (f->to == POLICY_OUTSIDE) {
		if (f->from == POLICY_OUTSIDE)
			return v;
		if (policy_is_blocked(p, &f->dst)) {
			v.why = POLICY_BLOCKED;
			return v;
		}
		if (!p->networks[p->ports[f->from].network].has_uplink) {
			v.why = POLICY_NO_UPLINK;
			return v;
		}
	}
	for (unsigned i = 0; i < p->nrules; i++)
		if (rule_matches(p, &p->rules[i], f, names)) {
			v = (struct policy_verdict){ p->rules[i].is_allow, POLICY_BY_RULE, (int)i };
			return v;
		}
	if (is_forwarded(p, f)) {
		v.is_allowed = true;
		v.why = POLICY_FORWARDED;
	} else if (f->from != POLICY_OUTSIDE && f->to != POLICY_OUTSIDE &&
		   p->ports[f->from].network == p->ports[f->to].network) {
		v.is_allowed = true;
		v.why = POLICY_SAME_NETWORK;
	}
	return v;
}

bool policy_rule_names(const struct policy_rule *r, const char *domain)
{
	size_t len = strlen(domain);

	for (unsigned i = 0; i < r->nnames; i++) {
		const char *n = r->names[i];
		size_t nlen = strlen(n);
		if (strcasecmp(n, domain) == 0)
			return true;
		/* "*.example.org": below it, not itself. */
		if (n[0] == '*' && len > nlen - 1 && strcasecmp(domain + len - (nlen - 1), n + 1) == 0)
			return true;
	}
	return false;
}

bool policy_may_ask(const struct policy *p, unsigned port, const char *domain)
{
	if (is_quarantined(p, (int)port) || !p->networks[p->ports[port].network].has_uplink)
		return false;
	for (unsigned i = 0; i < p->nrules; i++) {
		const struct policy_rule *r = &p->rules[i];
		if (r->to.kind != POLICY_END_INTERNET || !policy_rule_end_has(p, &r->from, port))
			continue;
		/* Denied as a whole before something allows it. */
		if (!r->is_allow && !r->proto && !r->nports)
			return false;
		if (r->is_allow && (!r->nnames || policy_rule_names(r, domain)))
			return true;
	}
	return false;
}

bool policy_may_see(const struct policy *p, unsigned from, unsigned to)
{
	if (is_quarantined(p, (int)from) || is_quarantined(p, (int)to))
		return false;
	for (unsigned i = 0; i < p->nrules; i++) {
		const struct policy_rule *r = &p->rules[i];
		if (!policy_rule_end_has(p, &r->from, from) || !policy_rule_end_has(p, &r->to, to))
			continue;
		if (r->is_allow)
			return true;
		if (!r->proto && !r->nports)
			return false;
	}
	return p->ports[from].network == p->ports[to].network;
}
