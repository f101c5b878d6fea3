/* SPDX-License-Identifier: Apache-2.0 */
/* Networks of lab files, with their uplinks, tags and faults. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/opts.h"
#include "net/labfile_int.h"

static int read_fault(struct labyaml *r, const yaml_node_t *key, const char *name,
		      const yaml_node_t *value, void *arg)
{
	const char *text;
	int ret = labyaml_text(r, value, name, &text);

	return ret < 0						 ? ret
	       : (ret = faults_set(arg, name, text, r->err)) < 0 ? labyaml_fail_node(r, key, ret)
								 : 0;
}

int labfile_faults(struct labyaml *r, const yaml_node_t *n, struct faults *f)
{
	return labyaml_each_pair(r, n, "faults", read_fault, f);
}

/* ---- networks ---- */

struct network {
	struct net_prefix v4, v6;
	bool has_v4, has_v6, has_uplink, is_tap;
	struct tap_name tap;
	int vlan;
	struct faults faults;
};

static int read_prefix(struct labyaml *r, const yaml_node_t *n, bool is_v4, struct net_prefix *out,
		       bool *has)
{
	const char *text;
	int ret = labyaml_text(r, n, "a subnet", &text);

	if (ret < 0)
		return ret;
	ret = net_prefix_parse(text, out);
	if (ret == -ERANGE)
		return labyaml_fail(r, &n->start_mark,
				    "%s is an address in a subnet: bits are set behind its prefix",
				    text);
	if (ret < 0 || net_addr_is_v4(&out->addr) != is_v4)
		return labyaml_fail(r, &n->start_mark, "\"%s\" is no IPv%d subnet; write %s", text,
				    is_v4 ? 4 : 6, is_v4 ? "10.1.0.0/24" : "fd00:1::/64");
	*has = true;
	return 0;
}

static int read_subnet(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct network *w = arg;

	return read_prefix(r, n, true, &w->v4, &w->has_v4);
}

static int read_subnet6(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct network *w = arg;

	return read_prefix(r, n, false, &w->v6, &w->has_v6);
}

static int read_interface(struct labyaml *r, const yaml_node_t *n, const char *kind, struct network *w)
{
	char name[POLICY_NAME_MAX + 16];
	const char *text;
	int ret = labyaml_text(r, n, kind, &text);

	if (ret < 0)
		return ret;
	if (w->has_uplink)
		return labyaml_fail(r, &n->start_mark, "a network has one uplink");
	snprintf(name, sizeof(name), "%s:%s", kind, text);
	if (tap_parse(name, &w->tap, r->err) < 0)
		return labyaml_fail(
			r, &n->start_mark,
			"\"%.40s\" names no interface: at most 15 letters, as in ip link", text);
	w->has_uplink = w->is_tap = true;
	return 0;
}

static int read_tap(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return read_interface(r, n, "tap", arg);
}

static int read_bridge(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return read_interface(r, n, "bridge", arg);
}

static const struct labyaml_key uplink_keys[] = { { "tap", read_tap },
						  { "bridge", read_bridge },
						  { NULL, NULL } };

/* nat, none, {tap: tap0} or {bridge: br0}. */
static int read_uplink(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	struct network *w = arg;
	const char *text;

	if (n->type == YAML_MAPPING_NODE) {
		int ret = labyaml_map(r, n, "an uplink", uplink_keys, w);
		return ret == 0 && !w->has_uplink
			       ? labyaml_fail(r, &n->start_mark, "an uplink is nat, none, {tap: NAME} or {bridge: NAME}")
			       : ret;
	}
	int ret = labyaml_text(r, n, "uplink", &text);

	if (ret < 0)
		return ret;
	if (strcmp(text, "nat") != 0 && strcmp(text, "none") != 0)
		return labyaml_fail(r, &n->start_mark, "there is no uplink \"%s\"; there are nat, none, {tap: NAME} and {bridge: NAME}",
				    text);
	w->has_uplink = text[1] == 'a';
	return 0;
}

int labfile_tag(struct labyaml *r, const yaml_node_t *n, int *out)
{
	const char *text;
	uint64_t v;
	int ret = labyaml_text(r, n, "vlan", &text);

	if (ret < 0)
		return ret;
	if (opts_parse_uint(text, &v) < 0 || v < 1 || v > 4094)
		return labyaml_fail(r, &n->start_mark,
				    "a VLAN has a number from 1 to 4094, not \"%s\"", text);
	*out = (int)v;
	return 0;
}

static int read_vlan(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return labfile_tag(r, n, &((struct network *)arg)->vlan);
}

static int read_network_faults(struct labyaml *r, const yaml_node_t *n, void *arg)
{
	return labfile_faults(r, n, &((struct network *)arg)->faults);
}

static const struct labyaml_key network_keys[] = {
	{ "subnet", read_subnet }, { "subnet6", read_subnet6 },	      { "uplink", read_uplink },
	{ "vlan", read_vlan },	   { "faults", read_network_faults }, { NULL, NULL },
};

int labfile_network(struct labyaml *r, const yaml_node_t *key, const char *name,
		    const yaml_node_t *value, void *arg)
{
	struct network w = { .vlan = -1 };
	int ret = labyaml_map(r, value, "a network", network_keys, &w);

	if (ret < 0)
		return ret;
	if (!w.has_v4)
		return labyaml_fail(r, &key->start_mark, "network \"%s\" has no subnet", name);
	if (strcasecmp(name, LABFILE_TRUNK) == 0)
		return labyaml_fail(
			r, &key->start_mark,
			"a network can't be called \"%s\": that is a card of several networks", name);
	ret = policy_add_network(r->lab->policy, name, &w.v4, w.has_v6 ? &w.v6 : NULL, w.has_uplink,
				 w.vlan, r->err);
	if (ret < 0)
		return labyaml_fail_node(r, key, ret);
	r->lab->policy->networks[ret].is_tap = w.is_tap;
	r->lab->taps[ret] = w.tap;
	((struct labfile_networks *)arg)->faults[ret] = w.faults;
	return 0;
}
