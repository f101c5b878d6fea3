/* SPDX-License-Identifier: Apache-2.0 */
/* Rules of a lab file. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "net/labfile_int.h"

struct rule {
	struct policy_rule r;
	char names[POLICY_NAMES_MAX][POLICY_DOMAIN_MAX + 1];
	char what[512]; /* "tcp/80,443" */
	bool has_proto, has_ports;
};

static int read_proto(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct rule *u = arg;
	const char *text;
	int ret = labyaml_text(r, n, "proto", &text);

	if (ret < 0)
		return ret;
	char ports[sizeof(u->what)];
	snprintf(ports, sizeof(ports), "%s", strchr(u->what, '/') ? strchr(u->what, '/') : "");
	snprintf(u->what, sizeof(u->what), "%.16s%.400s", text, ports);
	u->has_proto = true;
	return 0;
}

static int read_port(struct labyaml *r, const yaml_node_t *item, void *arg)
{
	struct rule *u = arg;
	const char *text;
	int ret = labyaml_text(r, item, "a port", &text);
	size_t len = strlen(u->what);

	if (ret < 0)
		return ret;
	if (strlen(text) > 11 || len + 13 > sizeof(u->what))
		return labyaml_fail(r, &item->start_mark, "\"%.20s\" is no port, or one too many", text);
	snprintf(u->what + len, sizeof(u->what) - len, "%c%s", u->has_ports ? ',' : '/', text);
	u->has_ports = true;
	return 0;
}

/* An empty list would not be nothing, but everything. */
static int each_of_some(struct labyaml *r, const yaml_node_t *n, const char *what,
			int (*fn)(struct labyaml *r, const yaml_node_t *item, void *arg), void *arg)
{
	if (n->type == YAML_SEQUENCE_NODE && n->data.sequence.items.start == n->data.sequence.items.top)
		return labyaml_fail(r, &n->start_mark, "%s is an empty list; leave it out for all", what);
	return labyaml_each_item(r, n, what, fn, arg);
}

static int read_ports(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return each_of_some(r, n, "ports", read_port, arg);
}

static int read_name(struct labyaml *r, const yaml_node_t *item, void *arg)
{
	struct rule *u = arg;
	const char *text;
	int ret = labyaml_text(r, item, "a name", &text);

	if (ret == 0 && (ret = policy_check_domain(text, r->err)) < 0)
		return labyaml_fail_node(r, item, ret);
	if (ret < 0)
		return ret;
	if (u->r.nnames == POLICY_NAMES_MAX)
		return labyaml_fail(r, &item->start_mark, "a rule has at most %d names", POLICY_NAMES_MAX);
	memset(u->names[u->r.nnames], 0, sizeof(u->names[0]));
	snprintf(u->names[u->r.nnames++], sizeof(u->names[0]), "%s", text);
	return 0;
}

static int read_names(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return each_of_some(r, n, "names", read_name, arg);
}

static const struct labyaml_key rule_keys[] = {
	{ "proto", read_proto },
	{ "ports", read_ports },
	{ "names", read_names },
	{ NULL, NULL },
};

static int read_rule(struct labyaml *r, const yaml_node_t *key, const char *ends,
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
		ret = labyaml_map(r, value, "a rule", rule_keys, u);
		text = u->has_ports || u->has_proto ? u->what : "any";
	} else if (value) {
		ret = labyaml_text(r, value, "what a rule is about", &text);
	}
	unsigned nnames = u->r.nnames;
	if (ret == 0 && (ret = policy_parse_rule(p, ends, text, &u->r, r->err)) < 0)
		ret = labyaml_fail_node(r, key, ret);
	if (ret == 0) {
		u->r.is_allow = ((struct labfile_rules *)arg)->is_allow;
		u->r.names = u->names;
		u->r.nnames = nnames;
		ret = policy_add_rule(p, p->nrules, &u->r, r->err);
		if (ret < 0)
			ret = labyaml_fail_node(r, key, ret);
	}
	free(u);
	return ret;
}

int labfile_rule(struct labyaml *r, const yaml_node_t *item, void *arg)
{
	const char *ends;

	if (item->type == YAML_MAPPING_NODE) {
		if (item->data.mapping.pairs.top - item->data.mapping.pairs.start != 1)
			return labyaml_fail(r, &item->start_mark,
					    "one rule is one entry of the list: FROM -> TO : WHAT");
		return labyaml_each_pair(r, item, "a rule", read_rule, arg);
	}
	int ret = labyaml_text(r, item, "a rule", &ends);
	return ret < 0 ? ret : read_rule(r, item, ends, NULL, arg);
}
