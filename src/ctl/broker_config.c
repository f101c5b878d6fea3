/* SPDX-License-Identifier: Apache-2.0 */
/* Which configurations a machine may replace its own by. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "ctl/broker_int.h"

static bool is_string_in(json_t *v, const char *folder)
{
	const char *path = json_string_value(v);
	size_t n = strlen(folder);

	/* a plain name in the folder; JSON's strings may hold a NUL, paths do not */
	return path && strlen(path) == json_string_length(v) && strncmp(path, folder, n) == 0 &&
	       path[n] == '/' && path[n + 1] && path[n + 1] != '.' && !strchr(path + n + 1, '/');
}

static bool is_one_of(json_t *v, const char *a, const char *b)
{
	const char *text = json_string_value(v);

	return text && (strcmp(text, a) == 0 || strcmp(text, b) == 0);
}

/* At a start: a throw-away disk that got layers begins anew with what the configuration remembers, and writes to no file. */
static bool is_thrown_away(json_t *old, json_t *new)
{
	json_t *path = json_object_get(old, "pristine"),
	       *format = json_object_get(old, "pristine_format");

	return path && format && json_equal(json_object_get(new, "path"), path) &&
	       json_equal(json_object_get(new, "format"), format) &&
	       json_is_true(json_object_get(new, "snapshot")) &&
	       !json_object_get(new, "pristine") && !json_object_get(new, "pristine_format");
}

static bool is_key_of_layers(const char *key)
{
	static const char *const keys[] = { "path", "format", "snapshot", "pristine", "pristine_format" };

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (strcmp(key, keys[i]) == 0)
			return true;
	return false;
}

/* @key of a disk: from @old to @new, another value or none. */
static bool may_change_of_disk(const char *key, json_t *old, json_t *new, const struct broker_follow *f)
{
	json_t *v = json_object_get(new, key);
	bool is_layer = is_string_in(json_object_get(new, "path"), f->folder);

	if (is_thrown_away(old, new))
		return is_key_of_layers(key);
	/* What it is called is what may change: to a layer in the folder, and with it what kind of file that is. */
	if (!is_layer)
		return false;
	if (strcmp(key, "path") == 0)
		return true;
	if (strcmp(key, "format") == 0)
		return is_one_of(v, "qcow2", "raw");
	/* A throw-away disk gets layers: it remembers what it began with; or it becomes one that stays. */
	if (strcmp(key, "pristine") == 0)
		return !v || json_equal(v, json_object_get(old, "path"));
	if (strcmp(key, "pristine_format") == 0)
		return !v || json_equal(v, json_object_get(old, "format"));
	return strcmp(key, "snapshot") == 0 && json_is_false(v);
}

typedef bool (*may_fn)(const char *key, json_t *old, json_t *new, const struct broker_follow *f);

static bool keys_follow(json_t *old, json_t *new, const struct broker_follow *f, may_fn may)
{
	const char *key;
	json_t *v;

	json_object_foreach(new, key, v)
	{
		if (!json_equal(v, json_object_get(old, key)) && !may(key, old, new, f))
			return false;
	}
	json_object_foreach(old, key, v)
	{
		if (!json_object_get(new, key) && !may(key, old, new, f))
			return false;
	}
	return true;
}

static bool disks_follow(json_t *old, json_t *new, const struct broker_follow *f)
{
	size_t i;
	json_t *d;

	if (!json_is_array(new) || json_array_size(new) != json_array_size(old))
		return false;
	json_array_foreach(new, i, d)
	{
		if (!json_is_object(d) || !keys_follow(json_array_get(old, i), d, f, may_change_of_disk))
			return false;
	}
	return true;
}

static bool is_log_level(const char *name)
{
	enum log_level level;

	return name && log_level_parse(name, &level) == 0;
}

static bool may_change(const char *key, json_t *old, json_t *new, const struct broker_follow *f)
{
	json_t *v = json_object_get(new, key);

	if (strcmp(key, "disks") == 0)
		return disks_follow(json_object_get(old, key), v, f);
	/* What can be set while it runs. */
	return strcmp(key, "log_level") == 0 && (json_is_null(v) || is_log_level(json_string_value(v)));
}

static bool may_change_in_copy(const char *key, json_t *old, json_t *new, const struct broker_follow *f)
{
	json_t *v = json_object_get(new, key);
	const char *text = json_string_value(v), *name = strrchr(f->folder, '/') + 1;
	struct error err;
	uint8_t mac[6];

	if (strcmp(key, "name") == 0)
		return text && strcmp(text, name) == 0;
	if (strcmp(key, "mac") == 0)
		return text && vmconfig_parse_mac(text, mac, &err) == 0;
	if (strcmp(key, "forwards") == 0)
		return json_is_array(v) && json_array_size(v) == 0;
	if (strcmp(key, "kernel") == 0 || strcmp(key, "initrd") == 0 || strcmp(key, "firmware") == 0)
		return is_string_in(v, f->folder);
	/* It is in its lab as a copy of this machine, and no lab's file made it. */
	if (strcmp(key, "origin") == 0)
		return f->record && json_equal(v, f->record);
	if (strcmp(key, "lab") == 0)
		return json_is_null(v) && json_object_get(new, "origin");
	return may_change(key, old, new, f);
}

bool broker_config_follows(json_t *old, json_t *new, const struct broker_follow *f)
{
	return json_is_object(new) &&
	       keys_follow(old, new, f, f->is_copy ? may_change_in_copy : may_change);
}
