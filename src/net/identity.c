/* SPDX-License-Identifier: Apache-2.0 */
#include "net/identity.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char *text_of(json_t *o, const char *key)
{
	const char *t = json_string_value(json_object_get(o, key));

	return t ? t : "";
}

const char *identity_lab(json_t *record)
{
	return text_of(record, "lab");
}

const char *identity_machine(json_t *record)
{
	return text_of(record, "machine");
}

/* ---- out ---- */

static json_t *card_json(const struct policy *p, unsigned i, const struct faults *faults)
{
	const struct policy_port *q = &p->ports[i];
	const struct policy_network *n = &p->networks[q->network];
	char mac[NET_MAC_TEXT], v4[NET_ADDR_TEXT], v6[NET_ADDR_TEXT], net4[NET_ADDR_TEXT],
		net6[NET_ADDR_TEXT], gateway[NET_ADDR_TEXT], text[128];

	bool is_part = p->ports[q->card].is_trunk;
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:s, s:o*, s:s*}",
			 "network", n->name, "subnet", net_prefix_format(&n->v4, net4), "subnet6",
			 net_prefix_format(&n->v6, net6), "mac", net_mac_format(q->mac, mac), "address",
			 net_addr_format(&q->v4, v4), "address6", net_addr_format(&q->v6, v6),
			 "gateway", net_addr_format(&n->gateway_v4, gateway), "default",
			 q->is_default, "may_spoof", q->may_spoof, "faults",
			 faults ? faults_format(&faults[i], text, sizeof(text)) : "none", "vlan",
			 is_part ? json_integer(q->vlan) : NULL, "trunk",
			 is_part ? p->networks[p->ports[q->card].network].name : NULL);
}

static bool concerns(const struct policy *p, const struct policy_end *e, unsigned machine)
{
	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone && p->ports[i].machine == machine &&
		    policy_rule_end_has(p, e, i))
			return true;
	return false;
}

/* policy_format_rule() in parts: "dmz.web -> app.db", "tcp/5432" and the names. */
static json_t *rule_json(const struct policy *p, const struct policy_rule *r)
{
	struct policy_rule plain = *r;
	json_t *names = r->nnames ? json_array() : NULL;
	char text[1024], *what;

	plain.nnames = 0;
	policy_format_rule(p, &plain, text, sizeof(text));
	what = strstr(text, " : ");
	if (what)
		*what = 0;
	for (unsigned i = 0; i < r->nnames; i++)
		json_array_append_new(names, json_string(r->names[i]));
	return json_pack("{s:s, s:s, s:s, s:o*}", "action", r->is_allow ? "allow" : "deny", "rule",
			 text, "what", what ? what + 3 : "any", "names", names);
}

/* The nearest first. */
static json_t *ancestors(json_t *origin)
{
	json_t *list = json_array(), *name;
	size_t i;

	if (!origin)
		return list;
	json_array_append(list, json_object_get(origin, "machine"));
	json_array_foreach(json_object_get(origin, "copy_of"), i,
			   name) if (json_array_size(list) < IDENTITY_COPY_MAX)
		json_array_append(list, name);
	return list;
}

json_t *identity_of(const struct policy *p, unsigned machine, const struct faults *faults, json_t *origin)
{
	json_t *cards = json_array(), *rules = json_array();

	for (unsigned i = 0; i < p->nports; i++)
		if (!p->ports[i].is_gone && p->ports[i].machine == machine)
			json_array_append_new(cards, card_json(p, i, faults));
	for (unsigned i = 0; i < p->nrules; i++)
		if (concerns(p, &p->rules[i].from, machine) || concerns(p, &p->rules[i].to, machine))
			json_array_append_new(rules, rule_json(p, &p->rules[i]));
	return json_pack("{s:s, s:s, s:o, s:b, s:o, s:o}", "lab", p->name, "machine",
			 p->machines[machine].name, "copy_of", ancestors(origin), "quarantine",
			 p->machines[machine].is_quarantined, "cards", cards, "rules", rules);
}

/* ---- in ---- */

static int bad(const char *what, struct error *err)
{
	return error_set(err, -EINVAL, "the record of a machine in a lab has no valid \"%s\"", what);
}

static bool is_name(json_t *v)
{
	const char *t = json_string_value(v);
	size_t len = t ? strlen(t) : 0;

	return len && len <= POLICY_NAME_MAX && len == json_string_length(v);
}

/* May be missing. */
static int check_announced(json_t *list)
{
	struct net_addr a;
	json_t *o;
	size_t i;

	if (list && (!json_is_array(list) || json_array_size(list) > IDENTITY_ANNOUNCED_MAX))
		return -EINVAL;
	json_array_foreach(list, i, o) if (!json_is_string(o) ||
					   net_addr_parse(json_string_value(o), &a) < 0 ||
					   net_addr_is_v4(&a)) return -EINVAL;
	return 0;
}

static int check_card(json_t *card, struct error *err)
{
	static const char *const addresses[] = { "address", "address6", "gateway" };
	struct net_prefix prefix;
	struct net_addr a;
	uint8_t mac[6];

	if (!is_name(json_object_get(card, "network")))
		return bad("network", err);
	if (net_prefix_parse(text_of(card, "subnet"), &prefix) < 0 || !net_addr_is_v4(&prefix.addr))
		return bad("subnet", err);
	for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++)
		if (net_addr_parse(text_of(card, addresses[i]), &a) < 0 || net_addr_is_v4(&a) != (i != 1))
			return bad(addresses[i], err);
	if (net_mac_parse(text_of(card, "mac"), mac) < 0)
		return bad("mac", err);
	json_t *trunk = json_object_get(card, "trunk"), *vlan = json_object_get(card, "vlan");
	if (!trunk != !vlan || (trunk && (!is_name(trunk) || !json_is_integer(vlan))))
		return bad("trunk", err);
	if (!json_is_boolean(json_object_get(card, "default")))
		return bad("default", err);
	if (!json_is_boolean(json_object_get(card, "may_spoof")))
		return bad("may_spoof", err);
	if (check_announced(json_object_get(card, "announced")) < 0)
		return bad("announced", err);
	return json_is_string(json_object_get(card, "faults")) ? 0 : bad("faults", err);
}

/* Each network is there once: IDENTITY_CARDS_MAX. */
static int check_cards(json_t *cards, struct error *err)
{
	json_t *card;
	size_t i;

	json_array_foreach(cards, i, card)
	{
		int r = check_card(card, err);
		if (r < 0)
			return r;
		for (size_t k = 0; k < i; k++)
			if (strcasecmp(text_of(json_array_get(cards, k), "network"),
				       text_of(card, "network")) == 0)
				return bad("network", err);
	}
	return 0;
}

static int check_rule(json_t *rule, struct error *err)
{
	json_t *names = json_object_get(rule, "names"), *name;
	const char *action = text_of(rule, "action");
	size_t i;

	if (strcmp(action, "allow") != 0 && strcmp(action, "deny") != 0)
		return bad("action", err);
	if (!*text_of(rule, "rule") || !*text_of(rule, "what"))
		return bad("rule", err);
	if (names && (!json_array_size(names) || json_array_size(names) > POLICY_NAMES_MAX))
		return bad("names", err);
	json_array_foreach(names, i, name) if (!json_is_string(name) ||
					       policy_check_domain(json_string_value(name), err) <
						       0) return bad("names", err);
	return 0;
}

int identity_check(json_t *record, struct error *err)
{
	json_t *cards = json_object_get(record, "cards"), *rules = json_object_get(record, "rules"),
	       *copy_of = json_object_get(record, "copy_of"), *o;
	size_t i;
	int r = 0;

	if (!json_is_object(record))
		return error_set(err, -EINVAL, "the record of a machine in a lab is no JSON object");
	if (!is_name(json_object_get(record, "lab")))
		return bad("lab", err);
	if (!is_name(json_object_get(record, "machine")))
		return bad("machine", err);
	if (!json_is_boolean(json_object_get(record, "quarantine")))
		return bad("quarantine", err);
	if (!json_is_array(copy_of) || json_array_size(copy_of) > IDENTITY_COPY_MAX)
		return bad("copy_of", err);
	json_array_foreach(copy_of, i, o) if (!is_name(o)) return bad("copy_of", err);
	if (!json_array_size(cards) || json_array_size(cards) > IDENTITY_CARDS_MAX)
		return bad("cards", err);
	if ((r = check_cards(cards, err)) < 0)
		return r;
	if (!json_is_array(rules) || json_array_size(rules) > POLICY_RULES_MAX)
		return bad("rules", err);
	json_array_foreach(rules, i, o) if ((r = check_rule(o, err)) < 0) return r;
	return 0;
}

static int read_faults(struct faults *out, const char *text, struct error *err)
{
	char copy[256], *save = NULL;
	struct faults f = { 0 };

	if (strlen(text) >= sizeof(copy))
		return bad("faults", err);
	strcpy(copy, text);
	for (char *part = strtok_r(copy, " ", &save); part && strcmp(part, "none") != 0;
	     part = strtok_r(NULL, " ", &save)) {
		char *eq = strchr(part, '=');
		if (!eq)
			return bad("faults", err);
		*eq++ = 0;
		int r = faults_set(&f, part, eq, err);
		if (r < 0)
			return r;
	}
	*out = f;
	return 0;
}

/* Its tag, if it is a part of a trunk, and its faults. */
static int finish_card(struct policy *p, struct faults *faults, unsigned machine, unsigned port,
		       json_t *card, struct error *err)
{
	/* The first of a trunk comes before its other parts. */
	json_t *trunk = json_object_get(card, "trunk");
	int first = trunk ? policy_find_port(p, (int)machine,
					     policy_find_network(p, json_string_value(trunk)))
			  : -1;
	if (trunk && first < 0)
		return bad("trunk", err);
	json_int_t vlan = json_integer_value(json_object_get(card, "vlan"));
	int r = trunk ? policy_join_trunk(p, port, (unsigned)first,
					  vlan > 0 && vlan < 4095 ? (int)vlan : 0, err)
		      : 0;
	if (r < 0)
		return r;
	return read_faults(&faults[port], text_of(card, "faults"), err);
}

/* The address that it had, if it is the same machine and nobody has it. */
static int add_card(struct policy *p, struct faults *faults, unsigned machine, json_t *card,
		    bool is_same, struct error *err)
{
	int network = policy_find_network(p, text_of(card, "network"));
	struct net_addr a;
	struct error why;

	if (network < 0)
		return error_set(err, -ENOENT, "lab \"%s\" has no network \"%s\"", p->name,
				 text_of(card, "network"));
	int port = is_same && net_addr_parse(text_of(card, "address"), &a) == 0
			   ? policy_add_port(p, machine, (unsigned)network, &a, &why)
			   : -1;
	if (port < 0)
		port = policy_add_port(p, machine, (unsigned)network, NULL, err);
	if (port < 0)
		return port;
	p->ports[port].may_spoof = json_is_true(json_object_get(card, "may_spoof"));
	return finish_card(p, faults, machine, (unsigned)port, card, err);
}
/* "dmz.web" with machine @from called @to; other ends as they are. */
static void rename_end(const char *text, size_t len, const char *from, const char *to, char *out,
		       size_t cap)
{
	const char *dot = memchr(text, '.', len);
	size_t left = dot ? (size_t)(dot - text) + 1 : 0;

	if (dot && len - left == strlen(from) && strncasecmp(text + left, from, len - left) == 0)
		snprintf(out, cap, "%.*s%s", (int)left, text, to);
	else
		snprintf(out, cap, "%.*s", (int)len, text);
}

static int rename_rule(const char *text, const char *from, const char *to, char *out, size_t cap)
{
	char left[2 * POLICY_NAME_MAX + 4], right[2 * POLICY_NAME_MAX + 4];
	const char *arrow = strstr(text, " -> ");

	if (!arrow || strlen(text) > 4 * POLICY_NAME_MAX)
		return -EINVAL;
	rename_end(text, (size_t)(arrow - text), from, to, left, sizeof(left));
	rename_end(arrow + 4, strlen(arrow + 4), from, to, right, sizeof(right));
	snprintf(out, cap, "%s -> %s", left, right);
	return 0;
}

static bool is_machine(const struct policy_end *e, int machine)
{
	return e->kind == POLICY_END_PORTS && e->machine == machine;
}

/* One of many that an end means is this machine: it alone is meant by a rule that came with it. */
static int narrow_and_add(struct policy *p, const struct policy_rule *r, bool is_from, int machine,
			  struct error *err)
{
	struct policy_rule narrow = *r;
	struct policy_end *e = is_from ? &narrow.from : &narrow.to;

	if (!concerns(p, e, (unsigned)machine))
		return 0;
	e->machine = machine;
	int ret = policy_add_rule(p, p->nrules, &narrow, err);
	/* What the lab has already, or the opposite of it, holds; what makes no sense is no rule. */
	return ret == -EEXIST || ret == -EINVAL ? 0 : ret;
}

static int add_rule(struct policy *p, int machine, const char *old_name, json_t *rule, struct error *err)
{
	json_t *names = json_object_get(rule, "names"), *name;
	char text[4 * POLICY_NAME_MAX + 16];
	struct policy_rule r;
	size_t i;

	if (rename_rule(text_of(rule, "rule"), old_name, p->machines[machine].name, text,
			sizeof(text)) < 0)
		return bad("rule", err);
	/* About machines or networks that this lab does not have: there is nothing to be decided. */
	if (policy_parse_rule(p, text, text_of(rule, "what"), &r, err) < 0)
		return 0;
	r.is_allow = strcmp(text_of(rule, "action"), "allow") == 0;
	r.names = calloc(json_array_size(names) + 1, sizeof(*r.names));
	if (!r.names)
		return error_set(err, -ENOMEM, "no memory for a rule");
	json_array_foreach(names, i, name)
		snprintf(r.names[r.nnames++], sizeof(r.names[0]), "%s", json_string_value(name));
	/* A rule of the lab's own that says it for many says it for this one; one that names this machine is as narrow as it gets. */
	bool is_from = is_machine(&r.from, machine), is_to = is_machine(&r.to, machine);
	int ret = policy_has_rule(p, &r) ? 1
		  : is_to		 ? 0
					 : narrow_and_add(p, &r, true, machine, err);

	if (ret == 0 && !is_from)
		ret = narrow_and_add(p, &r, false, machine, err);
	free(r.names);
	return MIN(ret, 0);
}

static int add_as_told(struct policy *p, struct faults *faults, const char *name, json_t *record,
		       struct error *err)
{
	bool is_same = strcasecmp(name, identity_machine(record)) == 0;
	int machine = policy_add_machine(p, name, err), r = machine;
	json_t *o;
	size_t i;

	if (machine < 0)
		return machine;
	p->machines[machine].is_copy = true;
	p->machines[machine].is_quarantined = json_is_true(json_object_get(record, "quarantine"));
	json_array_foreach(json_object_get(record, "cards"), i, o) if (r >= 0) r =
		add_card(p, faults, (unsigned)machine, o, is_same, err);
	json_array_foreach(json_object_get(record, "rules"), i, o) if (r >= 0) r =
		add_rule(p, machine, identity_machine(record), o, err);
	return r < 0 ? r : machine;
}

static int find_original(const struct policy *p, json_t *record)
{
	int machine = policy_find_machine(p, identity_machine(record));
	json_t *name;
	size_t i;

	json_array_foreach(json_object_get(record, "copy_of"), i, name) if (machine < 0) machine =
		policy_find_machine(p, json_string_value(name));
	return machine;
}

int identity_add(struct policy *p, struct faults *faults, const char *name, json_t *record,
		 struct error *err)
{
	int r = identity_check(record, err), original, copy;

	if (r < 0)
		return r;
	/* A lab of another name has other machines, whatever they are called. */
	original = strcasecmp(identity_lab(record), p->name) == 0 ? find_original(p, record) : -1;
	if (original < 0)
		return add_as_told(p, faults, name, record, err);
	copy = policy_copy_machine(p, (unsigned)original, name, err);
	if (copy < 0)
		return copy;
	for (unsigned i = 0; i < p->nports; i++) {
		int from = policy_find_port(p, original, (int)p->ports[i].network);
		if (!p->ports[i].is_gone && p->ports[i].machine == (unsigned)copy && from >= 0)
			faults[i] = faults[from];
	}
	return copy;
}

/* ---- from another host ---- */

static int find_same_network(const struct policy *p, json_t *card, struct error *err)
{
	const char *name = text_of(card, "network"), *subnet = text_of(card, "subnet"),
		   *subnet6 = text_of(card, "subnet6");
	int network = policy_find_network(p, name);
	char v4[NET_ADDR_TEXT], v6[NET_ADDR_TEXT];

	if (network < 0)
		return error_set(err, -ENOENT, "lab \"%s\" has no network \"%s\"", p->name, name);
	net_prefix_format(&p->networks[network].v4, v4);
	net_prefix_format(&p->networks[network].v6, v6);
	if (strcmp(v4, subnet) != 0 || strcmp(v6, subnet6) != 0)
		return error_set(err, -EEXIST, "network \"%s\" of lab \"%s\" is %s and %s here, and %.60s and %.60s where the machine comes from",
				 name, p->name, v4, v6, subnet, subnet6);
	return network;
}

static int move_card(struct policy *p, struct faults *faults, unsigned machine, json_t *card,
		     struct error *err)
{
	int network = find_same_network(p, card, err);
	struct net_addr a;
	uint8_t mac[6];

	if (network < 0)
		return network;
	if (net_addr_parse(text_of(card, "address"), &a) < 0)
		return bad("address", err);
	if (net_mac_parse(text_of(card, "mac"), mac) < 0)
		return bad("mac", err);
	int port = policy_add_port(p, machine, (unsigned)network, &a, err);
	if (port < 0)
		return port;
	int r = finish_card(p, faults, machine, (unsigned)port, card, err);
	if (r < 0)
		return r;
	if (p->ports[port].card == (unsigned)port)
		return policy_set_mac(p, (unsigned)port, mac, err);
	return memcmp(p->ports[port].mac, mac, 6) == 0 ? 0 : bad("mac", err); /* a trunk has one */
}

/* The way out that its guest knows. */
static void set_defaults(struct policy *p, unsigned machine, json_t *record)
{
	json_t *card;
	size_t i;

	json_array_foreach(json_object_get(record, "cards"), i, card)
	{
		int port = policy_find_port(p, (int)machine,
					    policy_find_network(p, text_of(card, "network")));
		if (port >= 0)
			p->ports[port].is_default = json_is_true(json_object_get(card, "default"));
	}
}

/* Those that allow something only if @has_all. */
static int take_rules(struct policy *p, unsigned machine, json_t *record, bool has_all, struct error *err)
{
	json_t *o;
	size_t i;
	int r = 0;

	json_array_foreach(json_object_get(record, "rules"), i,
			   o) if (r >= 0 && (has_all || strcmp(text_of(o, "action"), "deny") == 0))
		r = add_rule(p, (int)machine, identity_machine(record), o, err);
	return r;
}

int identity_move(struct policy *p, struct faults *faults, const char *name, json_t *record,
		  bool has_rules, struct error *err)
{
	int r = identity_check(record, err), machine = r < 0 ? r : policy_add_machine(p, name, err);
	json_t *o;
	size_t i;

	if (machine < 0)
		return machine;
	p->machines[machine].is_copy = true;
	p->machines[machine].is_quarantined = json_is_true(json_object_get(record, "quarantine"));
	json_array_foreach(json_object_get(record, "cards"), i, o) if (r >= 0) r =
		move_card(p, faults, (unsigned)machine, o, err);
	if (r >= 0)
		r = take_rules(p, (unsigned)machine, record, has_rules, err);
	if (r < 0)
		return r;
	set_defaults(p, (unsigned)machine, record);
	return machine;
}

int identity_restrict(struct policy *p, unsigned machine, json_t *record, struct error *err)
{
	p->machines[machine].is_quarantined |= json_is_true(json_object_get(record, "quarantine"));
	return take_rules(p, machine, record, false, err);
}

int identity_is_same(const struct policy *p, unsigned machine, json_t *record, struct error *err)
{
	json_t *cards = json_object_get(record, "cards"), *card;
	size_t i, own = 0;

	for (unsigned k = 0; k < p->nports; k++)
		own += !p->ports[k].is_gone && p->ports[k].machine == machine;
	json_array_foreach(cards, i, card)
	{
		int network = find_same_network(p, card, err),
		    port = network < 0 ? -1 : policy_find_port(p, (int)machine, network);
		struct net_addr a;
		uint8_t mac[6];
		if (network < 0)
			return network;
		if (port < 0 || net_addr_parse(text_of(card, "address"), &a) < 0 ||
		    net_mac_parse(text_of(card, "mac"), mac) < 0 ||
		    !net_addr_is_equal(&a, &p->ports[port].v4) || memcmp(mac, p->ports[port].mac, 6) != 0)
			own = 0;
	}
	return own == json_array_size(cards)
		       ? 0
		       : error_set(err, -EEXIST, "machine \"%s\" has other cards in lab \"%s\" here than where it comes from",
				   p->machines[machine].name, p->name);
}

int identity_admit(struct policy *p, const char *name, json_t *networks, struct error *err)
{
	int machine = policy_add_machine(p, name, err);
	json_t *o;
	size_t i;

	if (machine < 0)
		return machine;
	if (!json_array_size(networks))
		return error_set(err, -EINVAL, "a machine of a lab has at least one network");
	p->machines[machine].is_copy = true;
	json_array_foreach(networks, i, o)
	{
		const char *text = json_string_value(o);
		int network = text ? policy_find_network(p, text) : -1;
		if (network < 0)
			return error_set(err, -ENOENT, "lab \"%s\" has no network \"%s\"", p->name,
					 text ? text : "");
		int port = policy_add_port(p, (unsigned)machine, (unsigned)network, NULL, err);
		if (port < 0)
			return port;
	}
	return machine;
}

bool identity_card(json_t *record, unsigned i, struct identity_card *out)
{
	json_t *cards = json_object_get(record, "cards"), *card = NULL;
	struct net_prefix subnet;
	size_t at = 0;

	/* Parts of a trunk but its first are no cards. */
	for (; (card = json_array_get(cards, at)); at++) {
		const char *trunk = text_of(card, "trunk");
		if ((!*trunk || strcasecmp(trunk, text_of(card, "network")) == 0) && !i--)
			break;
	}
	if (!card || net_prefix_parse(text_of(card, "subnet"), &subnet) < 0)
		return false;
	snprintf(out->mac, sizeof(out->mac), "%s", text_of(card, "mac"));
	snprintf(out->dns, sizeof(out->dns), "%s", text_of(card, "gateway"));
	snprintf(out->gateway, sizeof(out->gateway), "%s",
		 json_is_true(json_object_get(card, "default")) ? out->dns : "");
	snprintf(out->address, sizeof(out->address), "%.*s/%d", 45, text_of(card, "address"),
		 subnet.bits - 96);
	if (*text_of(card, "trunk"))
		out->address[0] = out->gateway[0] = 0;
	return true;
}
