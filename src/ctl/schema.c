/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "ctl/ctl.h"
#include "ctl/events.h"
#include "ctl/schema.h"

/* Where memory runs out, NULL is passed on: jansson's functions take it for a failure, and free what they were to take. */

static json_t *object_of(const struct ctl_field *fields);

static json_t *words_schema(const char *const *words)
{
	json_t *list = json_array();

	for (; *words; words++)
		(void)json_array_append_new(list, json_string(*words));
	return json_pack("{s:s, s:o}", "type", "string", "enum", list);
}

static json_t *uint_schema(uint64_t min, uint64_t max)
{
	json_t *s = json_pack("{s:s, s:I}", "type", "integer", "minimum", (json_int_t)min);

	if (max)
		(void)json_object_set_new(s, "maximum", json_integer((json_int_t)max));
	return s;
}

static json_t *counters_schema(void)
{
	return json_pack("{s:s, s:o}", "type", "object", "additionalProperties", uint_schema(0, 0));
}

static json_t *array_of(json_t *items)
{
	return json_pack("{s:s, s:o}", "type", "array", "items", items);
}

static json_t *field_schema(const struct ctl_field *f)
{
	switch (f->kind) {
	case CTL_UINT:
		return uint_schema(0, 0);
	case CTL_INT:
		return json_pack("{s:s}", "type", "integer");
	case CTL_STRING:
		return f->words ? words_schema(f->words) : json_pack("{s:s}", "type", "string");
	case CTL_TEXT_OR_NULL:
		return json_pack("{s:[s, s]}", "type", "string", "null");
	case CTL_BOOL:
		return json_pack("{s:s}", "type", "boolean");
	case CTL_STRINGS:
		return array_of(json_pack("{s:s}", "type", "string"));
	case CTL_COUNTERS:
		return counters_schema();
	case CTL_COUNTER_LIST:
		return array_of(counters_schema());
	case CTL_OBJECT:
		return object_of(f->fields);
	case CTL_OBJECTS:
		return array_of(object_of(f->fields));
	}
	return NULL;
}

/* Lengths: the protocol counts bytes, the schema characters, of which there are never more. */
static json_t *arg_schema(const struct ctl_arg *a)
{
	switch (a->kind) {
	case CTL_UINT:
		return uint_schema(a->min, a->max);
	case CTL_STRING:
		return json_pack("{s:s, s:i, s:I}", "type", "string", "minLength", a->min ? 1 : 0,
				 "maxLength", (json_int_t)a->max);
	case CTL_BOOL:
		return json_pack("{s:s}", "type", "boolean");
	case CTL_STRINGS:
		return json_pack("{s:s, s:{s:s}, s:I, s:I}", "type", "array", "items", "type", "string",
				 "minItems", (json_int_t)a->min, "maxItems", (json_int_t)a->max);
	default: /* of answers only */
		return NULL;
	}
}

static void add(json_t *object, const char *name, const char *help, bool is_required, json_t *schema)
{
	if (help)
		(void)json_object_set_new(schema, "description", json_string(help));
	(void)json_object_set_new(json_object_get(object, "properties"), name, schema);
	if (is_required)
		(void)json_array_append_new(json_object_get(object, "required"), json_string(name));
}

static json_t *empty_object(const char *help)
{
	return json_pack("{s:s*, s:s, s:{}, s:[], s:b}", "description", help, "type", "object",
			 "properties", "required", "additionalProperties", 0);
}

static void add_fields(json_t *object, const struct ctl_field *fields)
{
	for (const struct ctl_field *f = fields; f && f->name; f++)
		add(object, f->name, f->help, !f->is_optional, field_schema(f));
}

static json_t *object_of(const struct ctl_field *fields)
{
	json_t *object = empty_object(NULL);

	add_fields(object, fields);
	return object;
}

static json_t *constant(json_t *value)
{
	return json_pack("{s:o}", "const", value);
}

static json_t *request_schema(const struct ctl_command *c)
{
	json_t *object = empty_object(c->help);

	add(object, "cmd", NULL, true, constant(json_string(c->name)));
	for (const struct ctl_arg *a = c->args; a && a->name; a++)
		add(object, a->name, a->help, a->is_required, arg_schema(a));
	return object;
}

static json_t *answer_schema(const struct ctl_command *c)
{
	json_t *object = empty_object(c->help);

	add(object, "ok", NULL, true, constant(json_true()));
	add_fields(object, c->answer);
	return object;
}

static json_t *error_schema(void)
{
	json_t *object = empty_object("what the answer to any command can be");

	add(object, "ok", NULL, true, constant(json_false()));
	add(object, "error", "one sentence: what, why and what to do", true,
	    json_pack("{s:s}", "type", "string"));
	return object;
}

static json_t *event_schema(const struct ctl_event_row *e)
{
	json_t *object = empty_object(e->help);

	add(object, "event", NULL, true, constant(json_string(e->name)));
	add(object, "time", "of the host, UTC", true, json_pack("{s:s}", "type", "string"));
	add_fields(object, e->fields);
	return object;
}

/* @schema under the name "NAME.KIND", and its name in @list. */
static void define(json_t *defs, json_t *list, const char *name, const char *kind, json_t *schema)
{
	char key[80], ref[96];

	snprintf(key, sizeof(key), "%s.%s", name, kind);
	snprintf(ref, sizeof(ref), "#/$defs/%s", key);
	(void)json_object_set_new(defs, key, schema);
	(void)json_array_append_new(list, json_pack("{s:s}", "$ref", ref));
}

json_t *ctl_schema(void)
{
	json_t *defs = json_object();
	json_t *requests = json_array(), *answers = json_array(), *events = json_array();

	(void)json_object_set_new(defs, "error", error_schema());
	(void)json_array_append_new(answers, json_pack("{s:s}", "$ref", "#/$defs/error"));
	for (const struct ctl_command *c = ctl_commands; c->name; c++) {
		define(defs, requests, c->name, "request", request_schema(c));
		define(defs, answers, c->name, "answer", answer_schema(c));
	}
	for (const struct ctl_event_row *e = ctl_event_rows; e->name; e++)
		define(defs, events, e->name, "event", event_schema(e));
	(void)json_object_set_new(defs, "request", json_pack("{s:o}", "oneOf", requests));
	(void)json_object_set_new(defs, "answer", json_pack("{s:o}", "anyOf", answers));
	(void)json_object_set_new(defs, "event", json_pack("{s:o}", "oneOf", events));
	return json_pack(
		"{s:s, s:s, s:s, s:[{s:s}, {s:s}, {s:s}], s:o}", "$schema",
		"https://json-schema.org/draft/2020-12/schema", "title",
		"Vivarium's control protocol", "description",
		"One JSON object a line over a machine's control socket, in either direction; "
		"answers come in the order of the requests.",
		"anyOf", "$ref", "#/$defs/request", "$ref", "#/$defs/answer", "$ref",
		"#/$defs/event", "$defs", defs);
}
