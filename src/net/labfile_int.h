/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of lab files: YAML's nodes with their places (labfile_yaml.c), networks (labfile_network.c), rules (labfile_rules.c), the
 * rest (labfile.c). */
#ifndef VIV_NET_LABFILE_INT_H
#define VIV_NET_LABFILE_INT_H

#include <yaml.h>

#include "net/labfile.h"

struct labyaml {
	yaml_document_t doc;
	const char *where;
	struct lab *lab;
	struct error *err;
};

/** labyaml_fail() - the reason with its place in @r->err, whose text may be among the arguments.  Returns -EINVAL. */
int labyaml_fail(struct labyaml *r, const yaml_mark_t *mark, const char *fmt, ...) _printf_(3, 4);
/** labyaml_fail_node() - the same for the reason that a callee left; -ENOMEM as @code passes. */
int labyaml_fail_node(struct labyaml *r, const yaml_node_t *n, int code);
/** labyaml_failure() - what the parser complains about. */
int labyaml_failure(struct labyaml *r, const yaml_parser_t *y);

/** labyaml_check() - the whole text: how deep, how much, and that it does not point at itself. */
int labyaml_check(struct labyaml *r, const char *text, size_t len);

yaml_node_t *labyaml_node(struct labyaml *r, int index);
/** labyaml_text(), labyaml_bool() - a scalar, called @what in errors. */
int labyaml_text(struct labyaml *r, const yaml_node_t *n, const char *what, const char **out);
int labyaml_bool(struct labyaml *r, const yaml_node_t *n, const char *what, bool *out);

/* One row a key of a map; a table ends with name NULL. */
struct labyaml_key {
	const char *name;
	int (*read)(struct labyaml *r, const yaml_node_t *n, void *arg);
};
/** labyaml_map() - each key by its row; unknown ones and those that stand twice are errors. */
int labyaml_map(struct labyaml *r, const yaml_node_t *map, const char *what,
		const struct labyaml_key *keys, void *arg);
/** labyaml_each_pair(), labyaml_each_item() - all of a map or a list, in order, until one fails. */
int labyaml_each_pair(struct labyaml *r, const yaml_node_t *map, const char *what,
		      int (*fn)(struct labyaml *r, const yaml_node_t *key, const char *name,
				const yaml_node_t *value, void *arg),
		      void *arg);
int labyaml_each_item(struct labyaml *r, const yaml_node_t *list, const char *what,
		      int (*fn)(struct labyaml *r, const yaml_node_t *item, void *arg), void *arg);

#define LABFILE_TRUNK "trunk" /* in place of a network's name */

struct labfile_networks {
	struct faults faults[POLICY_NETWORKS_MAX];
};
/** labfile_network() - a pair of the map of networks; @arg: struct labfile_networks. */
int labfile_network(struct labyaml *r, const yaml_node_t *key, const char *name,
		    const yaml_node_t *value, void *arg);
int labfile_faults(struct labyaml *r, const yaml_node_t *n, struct faults *f);
/** labfile_tag() - the number of a VLAN. */
int labfile_tag(struct labyaml *r, const yaml_node_t *n, int *out);

struct labfile_rules {
	bool is_allow;
};
/** labfile_rule() - an item of a list of rules; @arg: struct labfile_rules. */
int labfile_rule(struct labyaml *r, const yaml_node_t *item, void *arg);

#endif
