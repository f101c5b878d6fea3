/* SPDX-License-Identifier: Apache-2.0 */
#include "net/labfile.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "base/opts.h"
#include "net/netd.h"
#include "net/packet.h"

enum { DEPTH_MAX = 16, EVENTS_MAX = 50000 };

struct reader {
	yaml_document_t doc;
	const char *where;
	struct lab *lab;
	struct error *err;
};

/* The reason with its place; err->text may be part of the arguments. */
static int fail_at(struct reader *r, const yaml_mark_t *mark, const char *fmt, ...) _printf_(3, 4);
static int fail_at(struct reader *r, const yaml_mark_t *mark, const char *fmt, ...)
{
	char text[sizeof(r->err->text)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return error_set(r->err, -EINVAL, "%s:%zu:%zu: %s", r->where, mark->line + 1,
			 mark->column + 1, text);
}

/* Prefixes the reason that a callee left. */
static int fail_node(struct reader *r, const yaml_node_t *n, int code)
{
	struct error copy = *r->err;

	if (code == -ENOMEM)
		return code;
	return fail_at(r, &n->start_mark, "%s", copy.text);
}

/* ---- nodes ---- */

static yaml_node_t *node(struct reader *r, int index)
{
	return yaml_document_get_node(&r->doc, index);
}

static int text_of(struct reader *r, const yaml_node_t *n, const char *what, const char **out)
{
	*out = "";
	if (n->type != YAML_SCALAR_NODE)
		return fail_at(r, &n->start_mark, "%s is a text here, not a list or a map", what);
	if (strlen((const char *)n->data.scalar.value) != n->data.scalar.length)
		return fail_at(r, &n->start_mark, "%s has a NUL in it", what);
	*out = (const char *)n->data.scalar.value;
	return 0;
}

static int bool_of(struct reader *r, const yaml_node_t *n, const char *what, bool *out)
{
	const char *text;
	int ret = text_of(r, n, what, &text);

	if (ret < 0)
		return ret;
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0 && strcmp(text, "on") != 0 &&
	    strcmp(text, "off") != 0)
		return fail_at(r, &n->start_mark, "%s is true or false", what);
	*out = text[0] == 't' || text[1] == 'n';
	return 0;
}

/* One row a key of a map. */
struct key {
	const char *name;
	int (*read)(struct reader *r, const yaml_node_t *n, void *arg);
};

static const struct key *find_key(const struct key *keys, const char *name)
{
	for (; keys->name; keys++)
		if (strcmp(keys->name, name) == 0)
			return keys;
	return NULL;
}

static int unknown_key(struct reader *r, const yaml_node_t *n, const struct key *keys, const char *name)
{
	const char *names[32], *meant;
	unsigned count = 0;

	for (; keys[count].name && count < ARRAY_SIZE(names) - 1; count++)
		names[count] = keys[count].name;
	names[count] = NULL;
	meant = opts_suggest(name, names);
	return meant ? fail_at(r, &n->start_mark, "unknown key \"%s\"; did you mean \"%s\"?", name, meant)
		     : fail_at(r, &n->start_mark, "unknown key \"%s\"", name);
}

static int check_twice(struct reader *r, const yaml_node_t *map, const yaml_node_pair_t *at,
		       const char *name)
{
	for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < at; p++) {
		const yaml_node_t *k = node(r, p->key);
		if (k->type == YAML_SCALAR_NODE && strcmp((const char *)k->data.scalar.value, name) == 0)
			return fail_at(r, &node(r, at->key)->start_mark,
				       "the key \"%s\" is there twice", name);
	}
	return 0;
}

/* All pairs of a map, in order. */
static int each_pair(struct reader *r, const yaml_node_t *map, const char *what,
		     int (*fn)(struct reader *r, const yaml_node_t *key, const char *name,
			       const yaml_node_t *value, void *arg),
		     void *arg)
{
	if (map->type != YAML_MAPPING_NODE)
		return fail_at(r, &map->start_mark, "%s is a map", what);
	for (const yaml_node_pair_t *p = map->data.mapping.pairs.start;
	     p < map->data.mapping.pairs.top; p++) {
		const char *name;
		int ret = text_of(r, node(r, p->key), "a key", &name);
		if (ret == 0)
			ret = check_twice(r, map, p, name);
		if (ret == 0)
			ret = fn(r, node(r, p->key), name, node(r, p->value), arg);
		if (ret < 0)
			return ret;
	}
	return 0;
}

struct by_key {
	const struct key *keys;
	void *arg;
};

static int read_key(struct reader *r, const yaml_node_t *key, const char *name,
		    const yaml_node_t *value, void *arg)
{
	const struct by_key *b = arg;
	const struct key *k = find_key(b->keys, name);

	return k ? k->read(r, value, b->arg) : unknown_key(r, key, b->keys, name);
}

static int read_map(struct reader *r, const yaml_node_t *map, const char *what,
		    const struct key *keys, void *arg)
{
	struct by_key b = { keys, arg };

	return each_pair(r, map, what, read_key, &b);
}

static int each_item(struct reader *r, const yaml_node_t *list, const char *what,
		     int (*fn)(struct reader *r, const yaml_node_t *item, void *arg), void *arg)
{
	if (list->type != YAML_SEQUENCE_NODE)
		return fail_at(r, &list->start_mark, "%s is a list", what);
	for (const yaml_node_item_t *i = list->data.sequence.items.start;
	     i < list->data.sequence.items.top; i++) {
		int ret = fn(r, node(r, *i), arg);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int read_fault(struct reader *r, const yaml_node_t *key, const char *name,
		      const yaml_node_t *value, void *arg)
{
	const char *text;
	int ret = text_of(r, value, name, &text);

	return ret < 0						 ? ret
	       : (ret = faults_set(arg, name, text, r->err)) < 0 ? fail_node(r, key, ret)
								 : 0;
}

static int read_faults(struct reader *r, const yaml_node_t *n, struct faults *f)
{
	return each_pair(r, n, "faults", read_fault, f);
}

/* ---- networks ---- */

struct network {
	struct net_prefix v4, v6;
	bool has_v4, has_v6, has_uplink;
	int vlan;
	struct faults faults;
};

static int read_prefix(struct reader *r, const yaml_node_t *n, bool is_v4, struct net_prefix *out,
		       bool *has)
{
	const char *text;
	int ret = text_of(r, n, "a subnet", &text);

	if (ret < 0)
		return ret;
	ret = net_prefix_parse(text, out);
	if (ret == -ERANGE)
		return fail_at(r, &n->start_mark,
			       "%s is an address in a subnet: bits are set behind its prefix", text);
	if (ret < 0 || net_addr_is_v4(&out->addr) != is_v4)
		return fail_at(r, &n->start_mark, "\"%s\" is no IPv%d subnet; write %s", text,
			       is_v4 ? 4 : 6, is_v4 ? "10.1.0.0/24" : "fd00:1::/64");
	*has = true;
	return 0;
}

static int read_subnet(struct reader *r, const yaml_node_t *n, void *arg)
{
	struct network *w = arg;

	return read_prefix(r, n, true, &w->v4, &w->has_v4);
}

static int read_subnet6(struct reader *r, const yaml_node_t *n, void *arg)
{
	struct network *w = arg;

	return read_prefix(r, n, false, &w->v6, &w->has_v6);
}

static int read_uplink(struct reader *r, const yaml_node_t *n, void *arg)
{
	const char *text;
	int ret = text_of(r, n, "uplink", &text);

	if (ret < 0)
		return ret;
	if (strcmp(text, "nat") != 0 && strcmp(text, "none") != 0)
		return fail_at(r, &n->start_mark,
			       "there is no uplink \"%s\"; there are nat and none", text);
	((struct network *)arg)->has_uplink = text[1] == 'a';
	return 0;
}

static int read_vlan(struct reader *r, const yaml_node_t *n, void *arg)
{
	const char *text;
	uint64_t v;
	int ret = text_of(r, n, "vlan", &text);

	if (ret < 0)
		return ret;
	if (opts_parse_uint(text, &v) < 0 || v < 1 || v > 4094)
		return fail_at(r, &n->start_mark, "a VLAN has a number from 1 to 4094, not \"%s\"", text);
	((struct network *)arg)->vlan = (int)v;
	return 0;
}

static int read_network_faults(struct reader *r, const yaml_node_t *n, void *arg)
{
	return read_faults(r, n, &((struct network *)arg)->faults);
}

static const struct key network_keys[] = {
	{ "subnet", read_subnet }, { "subnet6", read_subnet6 },	      { "uplink", read_uplink },
	{ "vlan", read_vlan },	   { "faults", read_network_faults }, { NULL, NULL },
};

struct networks {
	struct faults faults[POLICY_NETWORKS_MAX];
};

static int read_network(struct reader *r, const yaml_node_t *key, const char *name,
			const yaml_node_t *value, void *arg)
{
	struct network w = { .vlan = -1 };
	int ret = read_map(r, value, "a network", network_keys, &w);

	if (ret < 0)
		return ret;
	if (!w.has_v4)
		return fail_at(r, &key->start_mark, "network \"%s\" has no subnet", name);
	ret = policy_add_network(r->lab->policy, name, &w.v4, w.has_v6 ? &w.v6 : NULL, w.has_uplink,
				 w.vlan, r->err);
	if (ret < 0)
		return fail_node(r, key, ret);
	((struct networks *)arg)->faults[ret] = w.faults;
	return 0;
}

/* ---- machines ---- */

struct machine {
	struct networks *networks;
	unsigned index, ncards;
	struct lab_machine *out;
};

static int read_text(struct reader *r, const yaml_node_t *n, const char *what, char **out)
{
	const char *text;
	int ret = text_of(r, n, what, &text);

	if (ret < 0)
		return ret;
	if (!*text)
		return fail_at(r, &n->start_mark, "%s is empty", what);
	*out = strdup(text);
	return *out ? 0 : error_set(r->err, -ENOMEM, "no memory for the lab");
}

#define TEXT_KEY(key)                                                                              \
	static int read_##key(struct reader *r, const yaml_node_t *n, void *arg)                   \
	{                                                                                          \
		return read_text(r, n, #key, &((struct machine *)arg)->out->key);                  \
	}
TEXT_KEY(image)
TEXT_KEY(kernel)
TEXT_KEY(initrd)
TEXT_KEY(append)
TEXT_KEY(engine)

static int read_memory(struct reader *r, const yaml_node_t *n, void *arg)
{
	struct machine *m = arg;
	uint64_t v;
	int ret = read_text(r, n, "memory", &m->out->memory);

	return ret < 0 ? ret
	       : opts_parse_size(m->out->memory, &v) < 0
		       ? fail_at(r, &n->start_mark, "\"%s\" is no size; write 512M or 2G", m->out->memory)
		       : 0;
}

static int read_cpus(struct reader *r, const yaml_node_t *n, void *arg)
{
	struct machine *m = arg;
	uint64_t v;
	int ret = read_text(r, n, "cpus", &m->out->cpus);

	return ret < 0 ? ret
	       : opts_parse_uint(m->out->cpus, &v) < 0 || v < 1
		       ? fail_at(r, &n->start_mark, "\"%s\" is no number of CPUs", m->out->cpus)
		       : 0;
}

struct card {
	struct net_addr v4;
	bool has_v4, may_spoof;
	struct faults faults;
};

static int read_address(struct reader *r, const yaml_node_t *n, void *arg)
{
	struct card *c = arg;
	const char *text;
	int ret = text_of(r, n, "address", &text);

	if (ret < 0)
		return ret;
	if (net_addr_parse(text, &c->v4) < 0 || !net_addr_is_v4(&c->v4))
		return fail_at(r, &n->start_mark, "\"%s\" is no IPv4 address", text);
	c->has_v4 = true;
	return 0;
}

static int read_spoofing(struct reader *r, const yaml_node_t *n, void *arg)
{
	return bool_of(r, n, "may_spoof", &((struct card *)arg)->may_spoof);
}

static int read_card_faults(struct reader *r, const yaml_node_t *n, void *arg)
{
	return read_faults(r, n, &((struct card *)arg)->faults);
}

static const struct key card_keys[] = {
	{ "address", read_address },
	{ "may_spoof", read_spoofing },
	{ "faults", read_card_faults },
	{ NULL, NULL },
};

static int unknown_network(struct reader *r, const yaml_node_t *n, const char *name)
{
	const char *names[POLICY_NETWORKS_MAX + 1] = { NULL }, *meant;
	const struct policy *p = r->lab->policy;

	for (unsigned i = 0; i < p->nnetworks; i++)
		names[i] = p->networks[i].name;
	meant = opts_suggest(name, names);
	return meant ? fail_at(r, &n->start_mark,
			       "there is no network \"%s\"; did you mean \"%s\"?", name, meant)
		     : fail_at(r, &n->start_mark, "there is no network \"%s\"", name);
}

/* "dmz", or dmz: {address: 10.1.0.5}. */
static int read_card(struct reader *r, const yaml_node_t *key, const char *name,
		     const yaml_node_t *value, void *arg)
{
	struct machine *m = arg;
	struct policy *p = r->lab->policy;
	int network = policy_find_network(p, name);
	struct card c = { 0 };

	if (network < 0)
		return unknown_network(r, key, name);
	if (m->ncards++ == 4)
		return fail_at(r, &key->start_mark, "a machine has at most 4 cards");
	c.faults = m->networks->faults[network];
	int ret = value ? read_map(r, value, "a card", card_keys, &c) : 0;
	if (ret < 0)
		return ret;
	ret = policy_add_port(p, m->index, (unsigned)network, c.has_v4 ? &c.v4 : NULL, r->err);
	if (ret < 0)
		return fail_node(r, key, ret);
	p->ports[ret].may_spoof = c.may_spoof;
	r->lab->faults[ret] = c.faults;
	return 0;
}

static int read_card_item(struct reader *r, const yaml_node_t *item, void *arg)
{
	const char *name;

	if (item->type == YAML_MAPPING_NODE)
		return each_pair(r, item, "a card", read_card, arg);
	int ret = text_of(r, item, "a network", &name);
	return ret < 0 ? ret : read_card(r, item, name, NULL, arg);
}

static int read_networks_of(struct reader *r, const yaml_node_t *n, void *arg)
{
	return each_item(r, n, "networks of a machine", read_card_item, arg);
}

static int read_keep(struct reader *r, const yaml_node_t *n, void *arg)
{
	return bool_of(r, n, "keep", &((struct machine *)arg)->out->keep);
}

/* Cards may stand behind it: the second round. */
static int skip(struct reader *r, const yaml_node_t *n, void *arg)
{
	return 0;
}

static const struct key machine_keys[] = {
	{ "image", read_image },
	{ "kernel", read_kernel },
	{ "initrd", read_initrd },
	{ "append", read_append },
	{ "engine", read_engine },
	{ "memory", read_memory },
	{ "cpus", read_cpus },
	{ "keep", read_keep },
	{ "networks", read_networks_of },
	{ "forward", skip },
	{ NULL, NULL },
};

static int read_machine(struct reader *r, const yaml_node_t *key, const char *name,
			const yaml_node_t *value, void *arg)
{
	struct machine m = { .networks = arg };
	int ret = policy_add_machine(r->lab->policy, name, r->err);

	if (ret < 0)
		return fail_node(r, key, ret);
	m.index = (unsigned)ret;
	m.out = &r->lab->machines[ret];
	ret = read_map(r, value, "a machine", machine_keys, &m);
	if (ret < 0)
		return ret;
	if (!m.out->image == !m.out->kernel)
		return fail_at(r, &key->start_mark,
			       "machine \"%s\" needs an image or a kernel, one of them", name);
	if (m.out->initrd && !m.out->kernel)
		return fail_at(r, &key->start_mark, "machine \"%s\": an initrd goes with a kernel", name);
	if (!m.ncards)
		return fail_at(r, &key->start_mark, "machine \"%s\" is in no network", name);
	return 0;
}

/* ---- forwards ---- */

static int uplinked_port(const struct policy *p, unsigned machine)
{
	for (unsigned i = 0; i < p->nports; i++)
		if (p->ports[i].machine == machine && p->networks[p->ports[i].network].has_uplink)
			return (int)i;
	return -1;
}

static int read_forward(struct reader *r, const yaml_node_t *item, void *arg)
{
	struct policy *p = r->lab->policy;
	unsigned machine = *(unsigned *)arg;
	struct netd_forward f;
	struct policy_forward out = { 0 };
	const char *text;
	int port = uplinked_port(p, machine), ret = text_of(r, item, "a forwarded port", &text);

	if (ret == 0 && (ret = netd_parse_forward(text, &f, r->err)) < 0)
		return fail_node(r, item, ret);
	if (ret < 0)
		return ret;
	if (f.guest.s_addr)
		return fail_at(r, &item->start_mark,
			       "a machine's forwarded port names no address of the guest's");
	if (port < 0)
		return fail_at(r, &item->start_mark, "nothing can be forwarded to machine \"%s\": none of its networks has an uplink",
			       p->machines[machine].name);
	if (f.host.ss_family == AF_INET6) {
		const struct sockaddr_in6 *a = (const void *)&f.host;
		out.host_addr = net_addr_v6(a->sin6_addr.s6_addr);
		out.host_port = ntohs(a->sin6_port);
	} else {
		const struct sockaddr_in *a = (const void *)&f.host;
		out.host_addr = net_addr_v4((const uint8_t *)&a->sin_addr);
		out.host_port = ntohs(a->sin_port);
	}
	out.is_udp = f.is_udp;
	out.port = (unsigned)port;
	out.guest_port = f.guest_port;
	ret = policy_add_forward(p, &out, r->err);
	return ret < 0 ? fail_node(r, item, ret) : 0;
}

static int read_forwards_of(struct reader *r, const yaml_node_t *key, const char *name,
			    const yaml_node_t *value, void *arg)
{
	unsigned machine = (unsigned)policy_find_machine(r->lab->policy, name);

	for (const yaml_node_pair_t *p = value->data.mapping.pairs.start;
	     p < value->data.mapping.pairs.top; p++) {
		if (strcmp((const char *)node(r, p->key)->data.scalar.value, "forward") != 0)
			continue;
		int ret = each_item(r, node(r, p->value), "forward", read_forward, &machine);
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* ---- rules ---- */

struct rule {
	struct policy_rule r;
	char names[POLICY_NAMES_MAX][POLICY_DOMAIN_MAX + 1];
	char what[512]; /* "tcp/80,443" */
	bool has_proto, has_ports;
};

static int read_proto(struct reader *r, const yaml_node_t *n, void *arg)
{
	struct rule *u = arg;
	const char *text;
	int ret = text_of(r, n, "proto", &text);

	if (ret < 0)
		return ret;
	char ports[sizeof(u->what)];
	snprintf(ports, sizeof(ports), "%s", strchr(u->what, '/') ? strchr(u->what, '/') : "");
	snprintf(u->what, sizeof(u->what), "%.16s%.400s", text, ports);
	u->has_proto = true;
	return 0;
}

static int read_port(struct reader *r, const yaml_node_t *item, void *arg)
{
	struct rule *u = arg;
	const char *text;
	int ret = text_of(r, item, "a port", &text);
	size_t len = strlen(u->what);

	if (ret < 0)
		return ret;
	if (strlen(text) > 11 || len + 13 > sizeof(u->what))
		return fail_at(r, &item->start_mark, "\"%.20s\" is no port, or one too many", text);
	snprintf(u->what + len, sizeof(u->what) - len, "%c%s", u->has_ports ? ',' : '/', text);
	u->has_ports = true;
	return 0;
}

static int read_ports(struct reader *r, const yaml_node_t *n, void *arg)
{
	return each_item(r, n, "ports", read_port, arg);
}

static int read_name(struct reader *r, const yaml_node_t *item, void *arg)
{
	struct rule *u = arg;
	const char *text;
	int ret = text_of(r, item, "a name", &text);

	if (ret == 0 && (ret = policy_check_domain(text, r->err)) < 0)
		return fail_node(r, item, ret);
	if (ret < 0)
		return ret;
	if (u->r.nnames == POLICY_NAMES_MAX)
		return fail_at(r, &item->start_mark, "a rule has at most %d names", POLICY_NAMES_MAX);
	memset(u->names[u->r.nnames], 0, sizeof(u->names[0]));
	snprintf(u->names[u->r.nnames++], sizeof(u->names[0]), "%s", text);
	return 0;
}

static int read_names(struct reader *r, const yaml_node_t *n, void *arg)
{
	return each_item(r, n, "names", read_name, arg);
}

static const struct key rule_keys[] = {
	{ "proto", read_proto },
	{ "ports", read_ports },
	{ "names", read_names },
	{ NULL, NULL },
};

struct rules {
	bool is_allow;
};

static int read_rule(struct reader *r, const yaml_node_t *key, const char *ends,
		     const yaml_node_t *value, void *arg)
{
	struct policy *p = r->lab->policy;
	struct rule *u = calloc(1, sizeof(*u));
	const char *text = "any";
	int ret = 0;

	if (!u)
		return error_set(r->err, -ENOMEM, "no memory for the lab");
	strcpy(u->what, "tcp"); /* what ports are of unless proto says it */
	if (value && value->type == YAML_MAPPING_NODE) {
		ret = read_map(r, value, "a rule", rule_keys, u);
		text = u->has_ports || u->has_proto ? u->what : "any";
	} else if (value) {
		ret = text_of(r, value, "what a rule is about", &text);
	}
	unsigned nnames = u->r.nnames;
	if (ret == 0 && (ret = policy_parse_rule(p, ends, text, &u->r, r->err)) < 0)
		ret = fail_node(r, key, ret);
	if (ret == 0) {
		u->r.is_allow = ((struct rules *)arg)->is_allow;
		u->r.names = u->names;
		u->r.nnames = nnames;
		ret = policy_add_rule(p, p->nrules, &u->r, r->err);
		if (ret < 0)
			ret = fail_node(r, key, ret);
	}
	free(u);
	return ret;
}

static int read_rule_item(struct reader *r, const yaml_node_t *item, void *arg)
{
	const char *ends;

	if (item->type == YAML_MAPPING_NODE) {
		if (item->data.mapping.pairs.top - item->data.mapping.pairs.start != 1)
			return fail_at(r, &item->start_mark,
				       "one rule is one entry of the list: FROM -> TO : WHAT");
		return each_pair(r, item, "a rule", read_rule, arg);
	}
	int ret = text_of(r, item, "a rule", &ends);
	return ret < 0 ? ret : read_rule(r, item, ends, NULL, arg);
}

/* ---- the file ---- */

static int read_seed(struct reader *r, const yaml_node_t *n, void *arg)
{
	const char *text;
	int ret = text_of(r, n, "seed", &text);

	if (ret == 0 && opts_parse_uint(text, &r->lab->seed) < 0)
		return fail_at(r, &n->start_mark, "\"%s\" is no number", text);
	return ret;
}

static const struct key top_keys[] = {
	{ "name", skip }, { "networks", skip },	 { "machines", skip }, { "allow", skip },
	{ "deny", skip }, { "seed", read_seed }, { NULL, NULL },
};

static const yaml_node_t *member(struct reader *r, const yaml_node_t *map, const char *name)
{
	for (const yaml_node_pair_t *p = map->data.mapping.pairs.start;
	     p < map->data.mapping.pairs.top; p++)
		if (strcmp((const char *)node(r, p->key)->data.scalar.value, name) == 0)
			return node(r, p->value);
	return NULL;
}

static int make_policy(struct reader *r, const yaml_node_t *top, const char *name)
{
	const yaml_node_t *n = member(r, top, "name");
	int ret = n ? text_of(r, n, "name", &name) : 0;

	if (ret < 0)
		return ret;
	size_t len = strlen(name);
	if (!len || len > POLICY_NAME_MAX || name[0] == '-' ||
	    strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != len)
		return fail_at(r, &(n ? n : top)->start_mark,
			       "\"%.80s\" is no name for a lab: letters, digits and -%s", name,
			       n ? "" : "; give it one by name:");
	r->lab->policy = policy_create(name);
	return r->lab->policy ? 0 : error_set(r->err, -ENOMEM, "no memory for the lab");
}

static int read_lab(struct reader *r, const yaml_node_t *top, const char *name)
{
	static const char *const parts[] = { "networks", "machines" };
	const yaml_node_t *part[ARRAY_SIZE(parts)], *n;
	struct rules deny = { false }, allow = { true };
	struct networks *networks;
	int ret = read_map(r, top, "a lab", top_keys, NULL);

	if (ret == 0)
		ret = make_policy(r, top, name);
	for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(parts); i++) {
		part[i] = member(r, top, parts[i]);
		if (!part[i])
			ret = fail_at(r, &top->start_mark, "a lab has %s", parts[i]);
	}
	if (ret < 0)
		return ret;
	networks = calloc(1, sizeof(*networks));
	if (!networks)
		return error_set(r->err, -ENOMEM, "no memory for the lab");
	ret = each_pair(r, part[0], "networks", read_network, networks);
	if (ret == 0)
		ret = each_pair(r, part[1], "machines", read_machine, networks);
	free(networks);
	if (ret == 0)
		ret = each_pair(r, part[1], "machines", read_forwards_of, NULL);
	/* Denials come first: they hold. */
	if (ret == 0 && (n = member(r, top, "deny")))
		ret = each_item(r, n, "deny", read_rule_item, &deny);
	if (ret == 0 && (n = member(r, top, "allow")))
		ret = each_item(r, n, "allow", read_rule_item, &allow);
	return ret;
}

static int yaml_failure(struct reader *r, const yaml_parser_t *y)
{
	if (y->error == YAML_MEMORY_ERROR)
		return error_set(r->err, -ENOMEM, "no memory for the lab");
	return fail_at(r, &y->problem_mark, "%s%s%s", y->problem ? y->problem : "no YAML",
		       y->context ? " " : "", y->context ? y->context : "");
}

/* A round over the file's events: how deep, how many, and whether it points at itself. */
static int check_events(struct reader *r, const char *text, size_t len)
{
	yaml_parser_t y;
	unsigned depth = 0, count = 0, documents = 0;
	bool is_end = false;
	int ret = 0;

	if (!yaml_parser_initialize(&y))
		return error_set(r->err, -ENOMEM, "no memory for the lab");
	yaml_parser_set_input_string(&y, (const unsigned char *)text, len);
	while (ret == 0 && !is_end) {
		yaml_event_t e;
		if (!yaml_parser_parse(&y, &e)) {
			ret = yaml_failure(r, &y);
			break;
		}
		bool has_anchor =
			e.type == YAML_ALIAS_EVENT ||
			(e.type == YAML_SCALAR_EVENT && e.data.scalar.anchor) ||
			(e.type == YAML_SEQUENCE_START_EVENT && e.data.sequence_start.anchor) ||
			(e.type == YAML_MAPPING_START_EVENT && e.data.mapping_start.anchor);
		depth += e.type == YAML_SEQUENCE_START_EVENT || e.type == YAML_MAPPING_START_EVENT;
		documents += e.type == YAML_DOCUMENT_START_EVENT;
		if (has_anchor)
			ret = fail_at(
				r, &e.start_mark,
				"anchors and aliases are refused: a file could contain itself");
		else if (depth > DEPTH_MAX)
			ret = fail_at(r, &e.start_mark, "more than %d levels", DEPTH_MAX);
		else if (++count > EVENTS_MAX)
			ret = fail_at(r, &e.start_mark, "the file is too long");
		else if (documents > 1)
			ret = fail_at(r, &e.start_mark, "a file is one lab, not several documents");
		depth -= e.type == YAML_SEQUENCE_END_EVENT || e.type == YAML_MAPPING_END_EVENT;
		is_end = e.type == YAML_STREAM_END_EVENT;
		yaml_event_delete(&e);
	}
	yaml_parser_delete(&y);
	return ret;
}

int lab_parse(struct lab **out, const char *text, size_t len, const char *where, const char *name,
	      struct error *err)
{
	struct reader r = { .where = where, .err = err };
	yaml_mark_t start = { 0 };
	yaml_parser_t y;
	int ret;

	if (len > LABFILE_BYTES_MAX)
		return fail_at(&r, &start, "the file is longer than 1 MiB");
	ret = check_events(&r, text, len);
	if (ret < 0)
		return ret;
	r.lab = calloc(1, sizeof(*r.lab));
	if (!r.lab || !yaml_parser_initialize(&y)) {
		free(r.lab);
		return error_set(err, -ENOMEM, "no memory for the lab");
	}
	yaml_parser_set_input_string(&y, (const unsigned char *)text, len);
	if (!yaml_parser_load(&y, &r.doc)) {
		ret = yaml_failure(&r, &y);
	} else {
		const yaml_node_t *top = yaml_document_get_root_node(&r.doc);
		ret = top ? read_lab(&r, top, name) : fail_at(&r, &start, "the file is empty");
		yaml_document_delete(&r.doc);
	}
	yaml_parser_delete(&y);
	if (ret < 0) {
		lab_free(r.lab);
		return ret;
	}
	*out = r.lab;
	return 0;
}

void lab_free(struct lab *l)
{
	if (!l)
		return;
	for (unsigned i = 0; i < POLICY_MACHINES_MAX; i++) {
		struct lab_machine *m = &l->machines[i];
		free(m->image);
		free(m->kernel);
		free(m->initrd);
		free(m->append);
		free(m->engine);
		free(m->memory);
		free(m->cpus);
	}
	policy_free(l->policy);
	free(l);
}
