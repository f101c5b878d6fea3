/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/opts.h"
#include "net/labfile_int.h"
#include "net/netd.h"
#include "net/packet.h"

/* ---- machines ---- */

struct machine {
	struct labfile_networks *networks;
	unsigned index, ncards;
	int trunk; /* the first port of the trunk that is read; -1: none yet */
	struct lab_machine *out;
};

static int read_text(struct labyaml *r, const yaml_node_t *n, const char *what, char **out)
{
	const char *text;
	int ret = labyaml_text(r, n, what, &text);

	if (ret < 0)
		return ret;
	if (!*text)
		return labyaml_fail(r, &n->start_mark, "%s is empty", what);
	*out = strdup(text);
	return *out ? 0 : error_set(r->err, -ENOMEM, "no memory for the lab");
}

#define TEXT_KEY(key)                                                                              \
	static int read_##key(struct labyaml *r, const yaml_node_t *n, void *arg)                  \
	{                                                                                          \
		return read_text(r, n, #key, &((struct machine *)arg)->out->key);                  \
	}

/* It becomes an argument of viv run, and must be no option there: --net leads past the lab. */
static int read_image(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct machine *m = arg;
	int ret = read_text(r, n, "image", &m->out->image);

	return ret == 0 && m->out->image[0] == '-'
		       ? labyaml_fail(r, &n->start_mark, "image can't begin with -")
		       : ret;
}

TEXT_KEY(kernel)
TEXT_KEY(initrd)
TEXT_KEY(append)
TEXT_KEY(engine)

static int read_memory(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct machine *m = arg;
	uint64_t v;
	int ret = read_text(r, n, "memory", &m->out->memory);

	return ret < 0 ? ret
	       : opts_parse_size(m->out->memory, &v) < 0
		       ? labyaml_fail(r, &n->start_mark, "\"%s\" is no size; write 512M or 2G",
				      m->out->memory)
		       : 0;
}

static int read_cpus(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct machine *m = arg;
	uint64_t v;
	int ret = read_text(r, n, "cpus", &m->out->cpus);

	return ret < 0 ? ret
	       : opts_parse_uint(m->out->cpus, &v) < 0 || v < 1
		       ? labyaml_fail(r, &n->start_mark, "\"%s\" is no number of CPUs", m->out->cpus)
		       : 0;
}

/* One text, or a list of them. */
struct texts_of {
	const char *what;
	struct lab_texts *out;
	unsigned max;
};

static int read_one_text(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	const struct texts_of *t = arg;

	if (t->out->n == t->max)
		return labyaml_fail(r, &n->start_mark, "%s has at most %u entries", t->what, t->max);
	int ret = read_text(r, n, t->what, &t->out->text[t->out->n]);

	t->out->n += ret == 0;
	return ret;
}

static int read_texts(struct labyaml *r, const yaml_node_t *n, const char *what,
		      struct lab_texts *out, unsigned max)
{
	struct texts_of t = { what, out, max };

	return n->type == YAML_SCALAR_NODE ? read_one_text(r, n, &t)
					   : labyaml_each_item(r, n, what, read_one_text, &t);
}

static int read_share(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return read_texts(r, n, "share", &((struct machine *)arg)->out->share, LAB_SHARES_MAX);
}

static int read_cloud_init(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return read_texts(r, n, "cloud-init", &((struct machine *)arg)->out->cloud_init, LAB_TEXTS_MAX);
}

static int read_user_data(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return read_text(r, n, "user-data", &((struct machine *)arg)->out->user_data);
}

struct card {
	struct net_addr v4;
	bool has_v4, may_spoof;
	int vlan; /* of a part of a trunk; -1: its network's */
	struct faults faults;
};

static int read_address(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct card *c = arg;
	const char *text;
	int ret = labyaml_text(r, n, "address", &text);

	if (ret < 0)
		return ret;
	if (net_addr_parse(text, &c->v4) < 0 || !net_addr_is_v4(&c->v4))
		return labyaml_fail(r, &n->start_mark, "\"%s\" is no IPv4 address", text);
	c->has_v4 = true;
	return 0;
}

static int read_spoofing(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return labyaml_bool(r, n, "may_spoof", &((struct card *)arg)->may_spoof);
}

static int read_card_faults(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return labfile_faults(r, n, &((struct card *)arg)->faults);
}

static int read_card_tag(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return labfile_tag(r, n, &((struct card *)arg)->vlan);
}

static const struct labyaml_key part_keys[] = {
	{ "address", read_address },
	{ "may_spoof", read_spoofing },
	{ "vlan", read_card_tag },
	{ NULL, NULL },
};
static const struct labyaml_key card_keys[] = {
	{ "address", read_address },
	{ "may_spoof", read_spoofing },
	{ "faults", read_card_faults },
	{ NULL, NULL },
};

static int unknown_network(struct labyaml *r, const yaml_node_t *n, const char *name)
{
	const char *names[POLICY_NETWORKS_MAX + 1] = { NULL }, *meant;
	const struct policy *p = r->lab->policy;

	for (unsigned i = 0; i < p->nnetworks; i++)
		names[i] = p->networks[i].name;
	meant = opts_suggest(name, names);
	return meant ? labyaml_fail(r, &n->start_mark,
				    "there is no network \"%s\"; did you mean \"%s\"?", name, meant)
		     : labyaml_fail(r, &n->start_mark, "there is no network \"%s\"", name);
}

/* A card, or a part of one that is a trunk: its port. */
static int add_card(struct labyaml *r, const yaml_node_t *key, int network, const struct card *c,
		    const struct machine *m)
{
	struct policy *p = r->lab->policy;
	int ret = policy_add_port(p, m->index, (unsigned)network, c->has_v4 ? &c->v4 : NULL, r->err);

	if (ret < 0)
		return labyaml_fail_node(r, key, ret);
	p->ports[ret].may_spoof = c->may_spoof;
	r->lab->faults[ret] = c->faults;
	return ret;
}

/* In a trunk: "dmz", dmz: 10, or dmz: {vlan: 10, address: 10.1.0.5}. */
static int read_part(struct labyaml *r, const yaml_node_t *key, const char *name,
		     const yaml_node_t *value, void *arg)
{
	struct machine *m = arg;
	struct policy *p = r->lab->policy;
	int network = policy_find_network(p, name), ret = 0;
	struct card c = { .vlan = -1 };

	if (network < 0)
		return unknown_network(r, key, name);
	if (value && value->type == YAML_SCALAR_NODE)
		ret = read_card_tag(r, value, &c);
	else if (value)
		ret = labyaml_map(r, value, "a network in a trunk", part_keys, &c);
	if (ret < 0)
		return ret;
	c.vlan = c.vlan < 0 ? p->networks[network].vlan : c.vlan;
	if (c.vlan < 0)
		return labyaml_fail(r, &key->start_mark, "network \"%s\" has no VLAN; in a trunk write {%s: 10}, or give the network one",
				    name, name);
	c.faults = m->networks->faults[network];
	int port = add_card(r, key, network, &c, m);
	if (port < 0)
		return port;
	m->trunk = m->trunk < 0 ? port : m->trunk;
	ret = policy_join_trunk(p, (unsigned)port, (unsigned)m->trunk, c.vlan, r->err);
	return ret < 0 ? labyaml_fail_node(r, key, ret) : 0;
}

static int read_part_item(struct labyaml *r, const yaml_node_t *item, void *arg)
{
	const char *name;
	int ret = labyaml_text(r, item, "a network", &name);

	return ret < 0 ? ret : read_part(r, item, name, NULL, arg);
}

static int read_trunk(struct labyaml *r, const yaml_node_t *key, const yaml_node_t *value,
		      struct machine *m)
{
	m->trunk = -1;
	int ret = value && value->type == YAML_MAPPING_NODE
			  ? labyaml_each_pair(r, value, "a trunk", read_part, m)
		  : value ? labyaml_each_item(r, value, "a trunk", read_part_item, m)
			  : 0;

	return ret == 0 && m->trunk < 0
		       ? labyaml_fail(r, &key->start_mark,
				      "a trunk carries networks: trunk: {dmz: 10, app: 20}")
		       : ret;
}

/* "dmz", dmz: {address: 10.1.0.5}, or trunk: {...}. */
static int read_card(struct labyaml *r, const yaml_node_t *key, const char *name,
		     const yaml_node_t *value, void *arg)
{
	struct machine *m = arg;
	int network = policy_find_network(r->lab->policy, name);
	bool is_trunk = value && strcmp(name, LABFILE_TRUNK) == 0;
	struct card c = { .vlan = -1 };

	if (network < 0 && !is_trunk)
		return unknown_network(r, key, name);
	if (m->ncards++ == 4)
		return labyaml_fail(r, &key->start_mark, "a machine has at most 4 cards");
	if (is_trunk)
		return read_trunk(r, key, value, m);
	c.faults = m->networks->faults[network];
	int ret = value ? labyaml_map(r, value, "a card", card_keys, &c) : 0;
	if (ret < 0)
		return ret;
	ret = add_card(r, key, network, &c, m);
	return MIN(ret, 0);
}

static int read_card_item(struct labyaml *r, const yaml_node_t *item, void *arg)
{
	const char *name;

	if (item->type == YAML_MAPPING_NODE)
		return labyaml_each_pair(r, item, "a card", read_card, arg);
	int ret = labyaml_text(r, item, "a network", &name);
	return ret < 0 ? ret : read_card(r, item, name, NULL, arg);
}

static int read_networks_of(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return labyaml_each_item(r, n, "networks of a machine", read_card_item, arg);
}

static int read_keep(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return labyaml_bool(r, n, "keep", &((struct machine *)arg)->out->keep);
}

/* Cards may stand behind it: the second round. */
static int skip(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return 0;
}

static const struct labyaml_key machine_keys[] = {
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
	{ "after", skip },
	{ "share", read_share },
	{ "cloud-init", read_cloud_init },
	{ "user-data", read_user_data },
	{ NULL, NULL },
};

static int read_machine(struct labyaml *r, const yaml_node_t *key, const char *name,
			const yaml_node_t *value, void *arg)
{
	struct machine m = { .networks = arg };
	int ret = policy_add_machine(r->lab->policy, name, r->err);

	if (ret < 0)
		return labyaml_fail_node(r, key, ret);
	m.index = (unsigned)ret;
	m.out = &r->lab->machines[ret];
	ret = labyaml_map(r, value, "a machine", machine_keys, &m);
	if (ret < 0)
		return ret;
	if (!m.out->image == !m.out->kernel)
		return labyaml_fail(r, &key->start_mark,
				    "machine \"%s\" needs an image or a kernel, one of them", name);
	if (m.out->initrd && !m.out->kernel)
		return labyaml_fail(r, &key->start_mark,
				    "machine \"%s\": an initrd goes with a kernel", name);
	if (!m.ncards)
		return labyaml_fail(r, &key->start_mark, "machine \"%s\" is in no network", name);
	return 0;
}

/* ---- forwards ---- */

static int uplinked_port(const struct policy *p, unsigned machine)
{
	for (unsigned i = 0; i < p->nports; i++)
		if (p->ports[i].machine == machine && p->networks[p->ports[i].network].has_uplink &&
		    !p->networks[p->ports[i].network].is_tap)
			return (int)i;
	return -1;
}

static int read_forward(struct labyaml *r, const yaml_node_t *item, void *arg)
{
	struct policy *p = r->lab->policy;
	unsigned machine = *(unsigned *)arg;
	struct netd_forward f;
	struct policy_forward out = { 0 };
	const char *text;
	int port = uplinked_port(p, machine), ret = labyaml_text(r, item, "a forwarded port", &text);

	if (ret == 0 && (ret = netd_parse_forward(text, &f, r->err)) < 0)
		return labyaml_fail_node(r, item, ret);
	if (ret < 0)
		return ret;
	if (f.guest.s_addr)
		return labyaml_fail(r, &item->start_mark,
				    "a machine's forwarded port names no address of the guest's");
	if (port < 0)
		return labyaml_fail(r, &item->start_mark, "nothing can be forwarded to machine \"%s\": none of its networks has an uplink by NAT",
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
	return ret < 0 ? labyaml_fail_node(r, item, ret) : 0;
}

static int read_forwards_of(struct labyaml *r, const yaml_node_t *key, const char *name,
			    const yaml_node_t *value, void *arg)
{
	unsigned machine = (unsigned)policy_find_machine(r->lab->policy, name);

	for (const yaml_node_pair_t *p = value->data.mapping.pairs.start;
	     p < value->data.mapping.pairs.top; p++) {
		if (strcmp((const char *)labyaml_node(r, p->key)->data.scalar.value, "forward") != 0)
			continue;
		int ret = labyaml_each_item(r, labyaml_node(r, p->value), "forward", read_forward,
					    &machine);
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* ---- the order of starting ---- */

static bool leads_to(const struct lab *l, unsigned from, unsigned to, bool seen[POLICY_MACHINES_MAX])
{
	if (from == to)
		return true;
	seen[from] = true;
	for (unsigned i = 0; i < l->policy->nmachines; i++)
		if (l->machines[from].after[i] && !seen[i] && leads_to(l, i, to, seen))
			return true;
	return false;
}

static int read_after(struct labyaml *r, const yaml_node_t *item, void *arg)
{
	const char *names[POLICY_MACHINES_MAX + 1] = { NULL }, *text, *meant;
	bool seen[POLICY_MACHINES_MAX] = { false };
	const struct policy *p = r->lab->policy;
	unsigned machine = *(unsigned *)arg;
	int ret = labyaml_text(r, item, "a machine", &text);

	if (ret < 0)
		return ret;
	for (unsigned i = 0; i < p->nmachines; i++)
		names[i] = p->machines[i].name;
	int other = policy_find_machine(p, text);
	meant = other < 0 ? opts_suggest(text, names) : NULL;
	if (meant)
		return labyaml_fail(r, &item->start_mark,
				    "there is no machine \"%s\"; did you mean \"%s\"?", text, meant);
	if (other < 0)
		return labyaml_fail(r, &item->start_mark, "there is no machine \"%s\"", text);
	if (leads_to(r->lab, (unsigned)other, machine, seen))
		return labyaml_fail(r, &item->start_mark, "machine \"%s\" would wait for itself",
				    p->machines[machine].name);
	r->lab->machines[machine].after[other] = true;
	return 0;
}

static int read_after_of(struct labyaml *r, const yaml_node_t *key, const char *name,
			 const yaml_node_t *value, void *arg)
{
	unsigned machine = (unsigned)policy_find_machine(r->lab->policy, name);

	for (const yaml_node_pair_t *p = value->data.mapping.pairs.start;
	     p < value->data.mapping.pairs.top; p++) {
		if (strcmp((const char *)labyaml_node(r, p->key)->data.scalar.value, "after") != 0)
			continue;
		int ret = labyaml_each_item(r, labyaml_node(r, p->value), "after", read_after, &machine);
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* ---- the file ---- */

static int read_seed(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	const char *text;
	int ret = labyaml_text(r, n, "seed", &text);

	if (ret == 0 && opts_parse_uint(text, &r->lab->seed) < 0)
		return labyaml_fail(r, &n->start_mark, "\"%s\" is no number", text);
	return ret;
}

static const struct labyaml_key top_keys[] = {
	{ "name", skip }, { "networks", skip },	 { "machines", skip }, { "allow", skip },
	{ "deny", skip }, { "seed", read_seed }, { NULL, NULL },
};

static const yaml_node_t *member(struct labyaml *r, const yaml_node_t *map, const char *name)
{
	for (const yaml_node_pair_t *p = map->data.mapping.pairs.start;
	     p < map->data.mapping.pairs.top; p++)
		if (strcmp((const char *)labyaml_node(r, p->key)->data.scalar.value, name) == 0)
			return labyaml_node(r, p->value);
	return NULL;
}

static int make_policy(struct labyaml *r, const yaml_node_t *top, const char *name)
{
	const yaml_node_t *n = member(r, top, "name");
	int ret = n ? labyaml_text(r, n, "name", &name) : 0;

	if (ret < 0)
		return ret;
	size_t len = strlen(name);
	if (!len || len > POLICY_NAME_MAX || name[0] == '-' ||
	    strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != len)
		return labyaml_fail(r, &(n ? n : top)->start_mark,
				    "\"%.80s\" is no name for a lab: letters, digits and -%s", name,
				    n ? "" : "; give it one by name:");
	r->lab->policy = policy_create(name);
	return r->lab->policy ? 0 : error_set(r->err, -ENOMEM, "no memory for the lab");
}

static int read_lab(struct labyaml *r, const yaml_node_t *top, const char *name)
{
	static const char *const parts[] = { "networks", "machines" };
	const yaml_node_t *part[ARRAY_SIZE(parts)], *n;
	struct labfile_rules deny = { false }, allow = { true };
	struct labfile_networks *networks;
	int ret = labyaml_map(r, top, "a lab", top_keys, NULL);

	if (ret == 0)
		ret = make_policy(r, top, name);
	for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(parts); i++) {
		part[i] = member(r, top, parts[i]);
		if (!part[i])
			ret = labyaml_fail(r, &top->start_mark, "a lab has %s", parts[i]);
	}
	if (ret < 0)
		return ret;
	networks = calloc(1, sizeof(*networks));
	if (!networks)
		return error_set(r->err, -ENOMEM, "no memory for the lab");
	ret = labyaml_each_pair(r, part[0], "networks", labfile_network, networks);
	if (ret == 0)
		ret = labyaml_each_pair(r, part[1], "machines", read_machine, networks);
	free(networks);
	if (ret == 0)
		ret = labyaml_each_pair(r, part[1], "machines", read_forwards_of, NULL);
	if (ret == 0)
		ret = labyaml_each_pair(r, part[1], "machines", read_after_of, NULL);
	/* Denials come first: they hold. */
	if (ret == 0 && (n = member(r, top, "deny")))
		ret = labyaml_each_item(r, n, "deny", labfile_rule, &deny);
	if (ret == 0 && (n = member(r, top, "allow")))
		ret = labyaml_each_item(r, n, "allow", labfile_rule, &allow);
	return ret;
}

int lab_parse(struct lab **out, const char *text, size_t len, const char *where, const char *name,
	      struct error *err)
{
	struct labyaml r = { .where = where, .err = err };
	yaml_mark_t start = { 0 };
	yaml_parser_t y;
	int ret;

	if (len > LABFILE_BYTES_MAX)
		return labyaml_fail(&r, &start, "the file is longer than 1 MiB");
	ret = labyaml_check(&r, text, len);
	if (ret < 0)
		return ret;
	r.lab = calloc(1, sizeof(*r.lab));
	if (!r.lab || !yaml_parser_initialize(&y)) {
		free(r.lab);
		return error_set(err, -ENOMEM, "no memory for the lab");
	}
	yaml_parser_set_input_string(&y, (const unsigned char *)text, len);
	if (!yaml_parser_load(&y, &r.doc)) {
		ret = labyaml_failure(&r, &y);
	} else {
		const yaml_node_t *top = yaml_document_get_root_node(&r.doc);
		ret = top ? read_lab(&r, top, name) : labyaml_fail(&r, &start, "the file is empty");
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

static void texts_free(struct lab_texts *t)
{
	for (unsigned i = 0; i < t->n; i++)
		free(t->text[i]);
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
		free(m->user_data);
		texts_free(&m->share);
		texts_free(&m->cloud_init);
	}
	policy_free(l->policy);
	free(l);
}
