/* SPDX-License-Identifier: Apache-2.0 */
/* YAML's nodes, each with its place in errors. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/opts.h"
#include "net/labfile_int.h"

enum { DEPTH_MAX = 16, EVENTS_MAX = 50000 };

/* The reason with its place; err->text may be part of the arguments. */
int labyaml_fail(struct labyaml *r, const yaml_mark_t *mark, const char *fmt, ...)
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
int labyaml_fail_node(struct labyaml *r, const yaml_node_t *n, int code)
{
	struct error copy = *r->err;

	if (code == -ENOMEM)
		return code;
	return labyaml_fail(r, &n->start_mark, "%s", copy.text);
}

/* ---- nodes ---- */

yaml_node_t *labyaml_node(struct labyaml *r, int index)
{
	return yaml_document_get_node(&r->doc, index);
}

int labyaml_text(struct labyaml *r, const yaml_node_t *n, const char *what, const char **out)
{
	*out = "";
	if (n->type != YAML_SCALAR_NODE)
		return labyaml_fail(r, &n->start_mark, "%s is a text here, not a list or a map", what);
	if (strlen((const char *)n->data.scalar.value) != n->data.scalar.length)
		return labyaml_fail(r, &n->start_mark, "%s has a NUL in it", what);
	*out = (const char *)n->data.scalar.value;
	return 0;
}

int labyaml_bool(struct labyaml *r, const yaml_node_t *n, const char *what, bool *out)
{
	const char *text;
	int ret = labyaml_text(r, n, what, &text);

	if (ret < 0)
		return ret;
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0 && strcmp(text, "on") != 0 &&
	    strcmp(text, "off") != 0)
		return labyaml_fail(r, &n->start_mark, "%s is true or false", what);
	*out = text[0] == 't' || text[1] == 'n';
	return 0;
}

static const struct labyaml_key *find_key(const struct labyaml_key *keys, const char *name)
{
	for (; keys->name; keys++)
		if (strcmp(keys->name, name) == 0)
			return keys;
	return NULL;
}

static int unknown_key(struct labyaml *r, const yaml_node_t *n, const struct labyaml_key *keys,
		       const char *name)
{
	const char *names[32], *meant;
	unsigned count = 0;

	for (; keys[count].name && count < ARRAY_SIZE(names) - 1; count++)
		names[count] = keys[count].name;
	names[count] = NULL;
	meant = opts_suggest(name, names);
	return meant ? labyaml_fail(r, &n->start_mark, "unknown key \"%s\"; did you mean \"%s\"?",
				    name, meant)
		     : labyaml_fail(r, &n->start_mark, "unknown key \"%s\"", name);
}

static int check_twice(struct labyaml *r, const yaml_node_t *map, const yaml_node_pair_t *at,
		       const char *name)
{
	for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < at; p++) {
		const yaml_node_t *k = labyaml_node(r, p->key);
		if (k->type == YAML_SCALAR_NODE && strcmp((const char *)k->data.scalar.value, name) == 0)
			return labyaml_fail(r, &labyaml_node(r, at->key)->start_mark,
					    "the key \"%s\" is there twice", name);
	}
	return 0;
}

/* All pairs of a map, in order. */
int labyaml_each_pair(struct labyaml *r, const yaml_node_t *map, const char *what,
		      int (*fn)(struct labyaml *r, const yaml_node_t *key, const char *name,
				const yaml_node_t *value, void *arg),
		      void *arg)
{
	if (map->type != YAML_MAPPING_NODE)
		return labyaml_fail(r, &map->start_mark, "%s is a map", what);
	for (const yaml_node_pair_t *p = map->data.mapping.pairs.start;
	     p < map->data.mapping.pairs.top; p++) {
		const char *name;
		int ret = labyaml_text(r, labyaml_node(r, p->key), "a key", &name);
		if (ret == 0)
			ret = check_twice(r, map, p, name);
		if (ret == 0)
			ret = fn(r, labyaml_node(r, p->key), name, labyaml_node(r, p->value), arg);
		if (ret < 0)
			return ret;
	}
	return 0;
}

struct by_key {
	const struct labyaml_key *keys;
	void *arg;
};

static int read_key(struct labyaml *r, const yaml_node_t *key, const char *name,
		    const yaml_node_t *value, void *arg)
{
	const struct by_key *b = arg;
	const struct labyaml_key *k = find_key(b->keys, name);

	return k ? k->read(r, value, b->arg) : unknown_key(r, key, b->keys, name);
}

int labyaml_map(struct labyaml *r, const yaml_node_t *map, const char *what,
		const struct labyaml_key *keys, void *arg)
{
	struct by_key b = { keys, arg };

	return labyaml_each_pair(r, map, what, read_key, &b);
}

int labyaml_each_item(struct labyaml *r, const yaml_node_t *list, const char *what,
		      int (*fn)(struct labyaml *r, const yaml_node_t *item, void *arg), void *arg)
{
	if (list->type != YAML_SEQUENCE_NODE)
		return labyaml_fail(r, &list->start_mark, "%s is a list", what);
	for (const yaml_node_item_t *i = list->data.sequence.items.start;
	     i < list->data.sequence.items.top; i++) {
		int ret = fn(r, labyaml_node(r, *i), arg);
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* ---- the whole ---- */

int labyaml_failure(struct labyaml *r, const yaml_parser_t *y)
{
	if (y->error == YAML_MEMORY_ERROR)
		return error_set(r->err, -ENOMEM, "no memory for the lab");
	return labyaml_fail(r, &y->problem_mark, "%s%s%s", y->problem ? y->problem : "no YAML",
			    y->context ? " " : "", y->context ? y->context : "");
}

/* A round over the file's events: how deep, how many, and whether it points at itself. */
int labyaml_check(struct labyaml *r, const char *text, size_t len)
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
			ret = labyaml_failure(r, &y);
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
			ret = labyaml_fail(
				r, &e.start_mark,
				"anchors and aliases are refused: a file could contain itself");
		else if (depth > DEPTH_MAX)
			ret = labyaml_fail(r, &e.start_mark, "more than %d levels", DEPTH_MAX);
		else if (++count > EVENTS_MAX)
			ret = labyaml_fail(r, &e.start_mark, "the file is too long");
		else if (documents > 1)
			ret = labyaml_fail(r, &e.start_mark, "a file is one lab, not several documents");
		depth -= e.type == YAML_SEQUENCE_END_EVENT || e.type == YAML_MAPPING_END_EVENT;
		is_end = e.type == YAML_STREAM_END_EVENT;
		yaml_event_delete(&e);
	}
	yaml_parser_delete(&y);
	return ret;
}
