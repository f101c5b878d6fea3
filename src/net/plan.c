/* SPDX-License-Identifier: Apache-2.0 */
#include "net/plan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "net/packet.h"

static const uint8_t proto_numbers[PLAN_PROTOS] = { IP_TCP, IP_UDP, IP_ICMP,
						    253 /* RFC 3692: for experiments */ };
static const char *const proto_names[PLAN_PROTOS] = { "tcp", "udp", "icmp", "other" };

/* ---- what is open ---- */

static bool has_none(void *ctx, unsigned port, uint32_t rule_id, const struct net_addr *a)
{
	(void)ctx;
	(void)port;
	(void)rule_id;
	(void)a;
	return false;
}

/* An address of the internet, as far as this policy knows. */
static struct net_addr some_internet(const struct policy *p)
{
	static const uint8_t some[][4] = {
		{ 1, 1, 1, 1 }, { 8, 8, 8, 8 }, { 9, 9, 9, 9 }, { 193, 0, 14, 129 }
	};
	struct net_addr a = net_addr_v4(some[0]);

	for (unsigned i = 0; i < ARRAY_SIZE(some); i++) {
		a = net_addr_v4(some[i]);
		if (!policy_is_blocked(p, &a))
			break;
	}
	return a;
}

static bool is_open(const struct policy *p, struct policy_flow *f, uint32_t port, bool *is_named)
{
	static const struct policy_names none = { .has = has_none };

	f->dport = (uint16_t)port;
	bool is_allowed = policy_decide(p, f, NULL).is_allowed;
	if (is_allowed && !policy_decide(p, f, &none).is_allowed)
		*is_named = true;
	return is_allowed;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

/* Where an answer can change: each range's first port, and the one behind its last. */
static uint32_t *boundaries(const struct policy *p, unsigned *n)
{
	size_t cap = 2 + p->nforwards * 2;

	for (unsigned i = 0; i < p->nrules; i++)
		cap += p->rules[i].nports * 2;
	uint32_t *b = malloc(cap * sizeof(*b));
	if (!b)
		return NULL;
	*n = 0;
	b[(*n)++] = 0;
	for (unsigned i = 0; i < p->nrules; i++)
		for (unsigned j = 0; j < p->rules[i].nports; j++) {
			b[(*n)++] = p->rules[i].ports[j].first;
			b[(*n)++] = p->rules[i].ports[j].last + 1u;
		}
	qsort(b, *n, sizeof(*b), compare);
	b[(*n)++] = 65536;
	return b;
}

static int add_range(struct plan_access *a, unsigned proto, uint32_t first, uint32_t last)
{
	struct policy_range *r = a->ranges[proto];
	unsigned n = a->nranges[proto];

	if (n && r[n - 1].last + 1u == first) {
		r[n - 1].last = (uint16_t)last;
		return 0;
	}
	r = realloc(r, (n + 1) * sizeof(*r));
	if (!r)
		return -ENOMEM;
	r[n] = (struct policy_range){ (uint16_t)first, (uint16_t)last };
	a->ranges[proto] = r;
	a->nranges[proto]++;
	return 0;
}

int plan_access(const struct policy *p, unsigned from, int to, struct plan_access *out)
{
	struct policy_flow f = { .from = (int)from, .to = to, .dst = some_internet(p) };
	unsigned nedges;
	uint32_t *edges = boundaries(p, &nedges);
	int r = edges ? 0 : -ENOMEM;

	*out = (struct plan_access){ .is_named = false };
	for (unsigned proto = 0; r == 0 && proto < PLAN_PROTOS; proto++) {
		f.proto = proto_numbers[proto];
		f.has_ports = proto == PLAN_TCP || proto == PLAN_UDP;
		if (!f.has_ports && is_open(p, &f, 0, &out->is_named))
			r = add_range(out, proto, 0, 65535);
		for (unsigned i = 0; f.has_ports && r == 0 && i + 1 < nedges; i++)
			if (edges[i] < edges[i + 1] && is_open(p, &f, edges[i], &out->is_named))
				r = add_range(out, proto, edges[i], edges[i + 1] - 1);
	}
	free(edges);
	if (r < 0)
		plan_access_free(out);
	return r;
}

void plan_access_free(struct plan_access *a)
{
	for (unsigned i = 0; i < PLAN_PROTOS; i++)
		free(a->ranges[i]);
	*a = (struct plan_access){ .is_named = false };
}

bool plan_access_has(const struct plan_access *a, enum plan_proto proto, uint16_t port)
{
	for (unsigned i = 0; i < a->nranges[proto]; i++)
		if (port >= a->ranges[proto][i].first && port <= a->ranges[proto][i].last)
			return true;
	return false;
}

static bool is_all(const struct plan_access *a, unsigned proto)
{
	return a->nranges[proto] == 1 && a->ranges[proto][0].first == 0 &&
	       a->ranges[proto][0].last == 65535;
}

static bool is_nothing(const struct plan_access *a)
{
	return !a->nranges[0] && !a->nranges[1] && !a->nranges[2] && !a->nranges[3];
}

static bool is_everything(const struct plan_access *a)
{
	return is_all(a, 0) && is_all(a, 1) && is_all(a, 2) && is_all(a, 3);
}

void plan_access_format(const struct plan_access *a, struct bytes *out)
{
	bool is_first = true;

	if (is_nothing(a) || is_everything(a)) {
		bytes_printf(out, "%s", is_nothing(a) ? "nothing" : "all");
		return;
	}
	for (unsigned proto = 0; proto < PLAN_PROTOS; proto++) {
		if (!a->nranges[proto])
			continue;
		bytes_printf(out, "%s%s", is_first ? "" : " ", proto_names[proto]);
		is_first = false;
		for (unsigned i = 0; !is_all(a, proto) && i < a->nranges[proto]; i++) {
			const struct policy_range *r = &a->ranges[proto][i];
			bytes_printf(out, r->first == r->last ? "%c%u" : "%c%u-%u", i ? ',' : '/',
				     r->first, r->last);
		}
	}
}

/* ---- text ---- */

static void print_names(const struct policy *p, unsigned from, struct bytes *out)
{
	bool is_first = true;

	for (unsigned i = 0; i < p->nrules; i++) {
		const struct policy_rule *r = &p->rules[i];
		const struct policy_port *q = &p->ports[from];
		if (r->to.kind != POLICY_END_INTERNET ||
		    (r->from.network >= 0 && (unsigned)r->from.network != q->network) ||
		    (r->from.machine >= 0 && (unsigned)r->from.machine != q->machine))
			continue;
		for (unsigned j = 0; j < r->nnames; j++, is_first = false)
			bytes_printf(out, "%s%s", is_first ? " only " : ", ", r->names[j]);
	}
}

static void print_networks(const struct policy *p, struct bytes *out)
{
	char v4[NET_ADDR_TEXT], v6[NET_ADDR_TEXT];

	for (unsigned i = 0; i < p->nnetworks; i++) {
		const struct policy_network *n = &p->networks[i];
		bytes_printf(out, "network %-12s %-18s %s%s", n->name,
			     net_prefix_format(&n->v4, v4), net_prefix_format(&n->v6, v6),
			     n->is_tap	     ? "  uplink tap"
			     : n->has_uplink ? "  uplink nat"
					     : "");
		if (n->vlan >= 0)
			bytes_printf(out, "  vlan %d", n->vlan);
		bytes_printf(out, "\n");
		for (unsigned j = 0; j < p->nports; j++) {
			const struct policy_port *q = &p->ports[j];
			if (q->network == i)
				bytes_printf(
					out, "  %-18s %-18s %s%s%s\n", p->machines[q->machine].name,
					net_addr_format(&q->v4, v4), net_addr_format(&q->v6, v6),
					q->may_spoof ? "  may spoof" : "",
					p->machines[q->machine].is_quarantined ? "  in quarantine" : "");
		}
	}
}

/* The line of one pair, if anything is open. */
static void print_pair(const struct policy *p, unsigned from, int to, struct bytes *out)
{
	char a[2 * POLICY_NAME_MAX + 2], b[2 * POLICY_NAME_MAX + 2] = "internet";
	struct plan_access access;

	if (plan_access(p, from, to, &access) < 0) {
		out->is_failed = true;
		return;
	}
	if (!is_nothing(&access)) {
		if (to != POLICY_OUTSIDE)
			policy_port_label(p, (unsigned)to, b, sizeof(b));
		bytes_printf(out, "  %-16s -> %-16s ", policy_port_label(p, from, a, sizeof(a)), b);
		plan_access_format(&access, out);
		if (access.is_named)
			print_names(p, from, out);
		bytes_printf(out, "\n");
	}
	plan_access_free(&access);
}

void plan_text(const struct policy *p, struct bytes *out)
{
	char host[NET_ADDR_TEXT], label[2 * POLICY_NAME_MAX + 2];

	bytes_printf(out, "lab %s\n\n", p->name);
	print_networks(p, out);
	bytes_printf(out, "\nwho can reach whom, IPv4 and IPv6 alike:\n");
	for (unsigned from = 0; from < p->nports; from++) {
		for (unsigned to = 0; to < p->nports; to++)
			if (p->ports[from].machine != p->ports[to].machine)
				print_pair(p, from, (int)to, out);
		print_pair(p, from, POLICY_OUTSIDE, out);
	}
	for (unsigned i = 0; i < p->nforwards; i++) {
		const struct policy_forward *f = &p->forwards[i];
		bool is_v6 = !net_addr_is_v4(&f->host_addr);
		bytes_printf(out, "  host %s%s%s:%u -> %s %s/%u\n", is_v6 ? "[" : "",
			     net_addr_format(&f->host_addr, host), is_v6 ? "]" : "", f->host_port,
			     policy_port_label(p, f->port, label, sizeof(label)),
			     f->is_udp ? "udp" : "tcp", f->guest_port);
	}
	bytes_printf(out, "everything else is denied\n");
}

/* ---- data ---- */

static json_t *access_json(const struct policy *p, unsigned from, int to)
{
	char a[2 * POLICY_NAME_MAX + 2], b[2 * POLICY_NAME_MAX + 2] = "internet";
	struct plan_access access;
	json_t *open = json_object();

	if (!open || plan_access(p, from, to, &access) < 0)
		return open;
	for (unsigned proto = 0; proto < PLAN_PROTOS; proto++) {
		if (!access.nranges[proto])
			continue;
		json_t *ranges = json_array();
		for (unsigned i = 0; i < access.nranges[proto]; i++)
			json_array_append_new(ranges, json_pack("[i, i]", access.ranges[proto][i].first,
								access.ranges[proto][i].last));
		json_object_set_new(open, proto_names[proto],
				    proto == PLAN_TCP || proto == PLAN_UDP ? ranges : json_true());
		if (proto != PLAN_TCP && proto != PLAN_UDP)
			json_decref(ranges);
	}
	if (to != POLICY_OUTSIDE)
		policy_port_label(p, (unsigned)to, b, sizeof(b));
	json_t *pair = json_pack("{s:s, s:s, s:o}", "from",
				 policy_port_label(p, from, a, sizeof(a)), "to", b, "open", open);
	if (pair && access.is_named)
		json_object_set_new(pair, "only_names", json_true());
	plan_access_free(&access);
	return pair;
}

static json_t *networks_json(const struct policy *p)
{
	char v4[NET_ADDR_TEXT], v6[NET_ADDR_TEXT];
	json_t *all = json_array();

	for (unsigned i = 0; i < p->nnetworks; i++) {
		const struct policy_network *n = &p->networks[i];
		json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "name", n->name, "subnet",
				      net_prefix_format(&n->v4, v4), "subnet6",
				      net_prefix_format(&n->v6, v6), "uplink",
				      n->is_tap	      ? "tap"
				      : n->has_uplink ? "nat"
						      : "none");
		if (n->vlan >= 0)
			json_object_set_new(o, "vlan", json_integer(n->vlan));
		json_array_append_new(all, o);
	}
	return all;
}

static json_t *cards_json(const struct policy *p)
{
	char v4[NET_ADDR_TEXT], v6[NET_ADDR_TEXT], mac[NET_MAC_TEXT];
	json_t *all = json_array();

	for (unsigned i = 0; i < p->nports; i++) {
		const struct policy_port *q = &p->ports[i];
		json_array_append_new(all, json_pack("{s:s, s:s, s:s, s:s, s:s, s:b}", "machine",
						     p->machines[q->machine].name, "network",
						     p->networks[q->network].name, "mac",
						     net_mac_format(q->mac, mac), "address",
						     net_addr_format(&q->v4, v4), "address6",
						     net_addr_format(&q->v6, v6), "quarantine",
						     p->machines[q->machine].is_quarantined));
	}
	return all;
}

json_t *plan_json(const struct policy *p)
{
	json_t *reach = json_array(), *forwards = json_array();
	char label[2 * POLICY_NAME_MAX + 2], host[NET_ADDR_TEXT];

	for (unsigned from = 0; from < p->nports; from++) {
		for (unsigned to = 0; to < p->nports; to++)
			if (p->ports[from].machine != p->ports[to].machine)
				json_array_append_new(reach, access_json(p, from, (int)to));
		json_array_append_new(reach, access_json(p, from, POLICY_OUTSIDE));
	}
	for (unsigned i = 0; i < p->nforwards; i++) {
		const struct policy_forward *f = &p->forwards[i];
		json_array_append_new(
			forwards,
			json_pack("{s:s, s:s, s:i, s:s, s:i}", "proto", f->is_udp ? "udp" : "tcp",
				  "host", net_addr_format(&f->host_addr, host), "host_port", f->host_port,
				  "to", policy_port_label(p, f->port, label, sizeof(label)), "port",
				  f->guest_port));
	}
	return json_pack("{s:s, s:o, s:o, s:o, s:o}", "lab", p->name, "networks", networks_json(p),
			 "cards", cards_json(p), "reach", reach, "forwards", forwards);
}
