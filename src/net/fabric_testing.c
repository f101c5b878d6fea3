/* SPDX-License-Identifier: Apache-2.0 */
#include "net/fabric_testing.h"

#include <stdio.h>

static void check(int r, const struct error *err)
{
	if (r < 0) {
		fprintf(stderr, "%s\n", err->text);
		abort();
	}
}

static void add_rule(struct policy *p, bool is_allow, const char *ends, const char *what)
{
	struct policy_rule r;
	struct error err;

	check(policy_parse_rule(p, ends, what, &r, &err), &err);
	r.is_allow = is_allow;
	check(policy_add_rule(p, p->nrules, &r, &err), &err);
}

const int lab_tags[LAB_PORTS] = { -1, -1, -1, -1, -1, -1, 20, 20, 30, 20, 31 };

struct policy *lab_policy(void)
{
	static const struct {
		const char *name, *v4;
		bool has_uplink;
		int vlan;
	} networks[] = { { "dmz", "10.1.0.0/24", true, -1 },
			 { "app", "10.2.0.0/24", false, -1 },
			 { "mal", "10.66.0.0/24", false, -1 },
			 { "tag", "10.7.0.0/24", false, 20 } };
	static const char *const machines[] = { "web",	"ops", "db",  "sus",
						"evil", "old", "new", "fw" };
	static const unsigned ports[LAB_PORTS][2] = {
		{ M_WEB, DMZ }, { M_OPS, DMZ },	 { M_WEB, APP }, { M_DB, APP },
		{ M_SUS, MAL }, { M_EVIL, MAL }, { M_OLD, TAG }, { M_NEW, TAG },
		{ M_FW, MAL },	{ M_FW, TAG },	 { M_FW, APP }
	};
	struct policy *p = policy_create("test");
	struct error err = { "no memory" };

	check(p ? 0 : -1, &err);
	for (unsigned i = 0; i < ARRAY_SIZE(networks); i++) {
		struct net_prefix v4;
		check(net_prefix_parse(networks[i].v4, &v4), &err);
		check(policy_add_network(p, networks[i].name, &v4, NULL, networks[i].has_uplink,
					 networks[i].vlan, &err),
		      &err);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(machines); i++)
		check(policy_add_machine(p, machines[i], &err), &err);
	for (unsigned i = 0; i < LAB_PORTS; i++)
		check(policy_add_port(p, ports[i][0], ports[i][1], NULL, &err), &err);
	for (unsigned i = FW_MAL; i <= FW_APP; i++)
		check(policy_join_trunk(p, i, FW_MAL, lab_tags[i], &err), &err);
	add_rule(p, true, "dmz.web -> app.db", "tcp/5432,6000-6010");
	add_rule(p, true, "app.db -> dmz.ops", "icmp");
	add_rule(p, true, "dmz.ops -> app.*", "udp");
	add_rule(p, true, "tag.old -> app.db", NULL);
	add_rule(p, false, "dmz.ops -> dmz.web", "tcp/22");
	struct policy_rule names;
	static char name[1][POLICY_DOMAIN_MAX + 1] = { "updates.example.org" };
	check(policy_parse_rule(p, "dmz.* -> internet", "tcp/80,443", &names, &err), &err);
	names.is_allow = true;
	names.names = name;
	names.nnames = 1;
	check(policy_add_rule(p, p->nrules, &names, &err), &err);
	struct policy_forward f = { .host_addr = frame_addr("127.0.0.1"),
				    .host_port = 8080,
				    .guest_port = 80 };
	check(policy_add_forward(p, &f, &err), &err);
	return p;
}

static void keep(struct lab_fixture *l, int port, unsigned network, const struct net_offload *off,
		 const uint8_t *frame, size_t len)
{
	struct sent *s = &l->sent[l->nsent];

	if (l->nsent == ARRAY_SIZE(l->sent) || len > sizeof(s->frame.b))
		abort();
	l->nsent++;
	s->port = port;
	s->network = network;
	s->off = *off;
	memcpy(s->frame.b, frame, len);
	s->frame.len = len;
}

static void on_send(void *ctx, unsigned port, const struct net_offload *off, const uint8_t *frame,
		    size_t len)
{
	keep(ctx, (int)port, 0, off, frame, len);
}

static void on_uplink(void *ctx, unsigned network, const struct net_offload *off, uint8_t *frame,
		      size_t len)
{
	keep(ctx, POLICY_OUTSIDE, network, off, frame, len);
}

static void on_dns(void *ctx, unsigned port, const struct packet *p, const uint8_t *payload, size_t len)
{
	(void)port;
	(void)p;
	(void)payload;
	(void)len;
	((struct lab_fixture *)ctx)->dns_questions++;
}

static void on_dns_tcp(void *ctx, unsigned port, const struct packet *p)
{
	(void)port;
	if (p->proto != IP_TCP || !p->has_l4 || p->dport != 53)
		abort();
	((struct lab_fixture *)ctx)->dns_segments++;
}

static void on_seen(void *ctx, int port, unsigned network, const struct fabric_verdict *v,
		    const uint8_t *frame, size_t len)
{
	struct lab_fixture *l = ctx;

	(void)port;
	(void)network;
	(void)frame;
	(void)len;
	l->verdict = *v;
	l->nseen++;
}

static bool has_learnt(void *ctx, unsigned port, uint32_t rule_id, const struct net_addr *a)
{
	struct net_addr known = frame_addr(LAB_LEARNT);

	(void)ctx;
	(void)port;
	(void)rule_id;
	return net_addr_is_equal(a, &known);
}

static int64_t now_ms(void *ctx)
{
	return ((struct lab_fixture *)ctx)->now_ms;
}

void lab_set_up(struct lab_fixture *l)
{
	lab_set_up_with(l, lab_policy());
}

void lab_set_up_with(struct lab_fixture *l, struct policy *p)
{
	struct fabric_ops ops = { .send = on_send,
				  .uplink = on_uplink,
				  .dns = on_dns,
				  .dns_tcp = on_dns_tcp,
				  .seen = on_seen,
				  .names = { has_learnt, NULL },
				  .now_ms = now_ms,
				  .ctx = l };

	memset(l, 0, sizeof(*l));
	l->now_ms = 1000000;
	l->f = fabric_create(p, &ops);
	if (!l->f)
		abort();
	l->policy = fabric_policy(l->f);
}

void lab_tear_down(struct lab_fixture *l)
{
	fabric_destroy(l->f);
}

enum fabric_reason lab_send(struct lab_fixture *l, unsigned port, const struct frame *f)
{
	static struct {
		uint8_t room[FABRIC_HEADROOM];
		uint8_t b[2048];
	} copy;

	memcpy(copy.b, f->b, f->len);
	l->nsent = l->nseen = 0;
	fabric_input(l->f, l->policy->ports[port].card, &l->hints, copy.b, f->len);
	if (l->nseen != 1) {
		fprintf(stderr, "a frame was told %u times\n", l->nseen);
		abort();
	}
	return l->verdict.reason;
}

struct frame_ends lab_ends(const struct policy *p, unsigned from, unsigned to, bool is_v6)
{
	const struct policy_port *a = &p->ports[from], *b = &p->ports[to];
	struct frame_ends e = { .src = is_v6 ? a->v6 : a->v4, .dst = is_v6 ? b->v6 : b->v4 };

	memcpy(e.src_mac, a->mac, 6);
	memcpy(e.dst_mac, a->network == b->network ? b->mac : p->networks[a->network].gateway_mac, 6);
	return e;
}

const struct sent *lab_got(const struct lab_fixture *l, int port)
{
	for (unsigned i = 0; i < l->nsent; i++)
		if (l->sent[i].port == port)
			return &l->sent[i];
	return NULL;
}
