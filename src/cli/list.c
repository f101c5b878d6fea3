/* SPDX-License-Identifier: Apache-2.0 */
/* `viv list` and `viv info`. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/counters.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"
#include "ctl/vmlock.h"

#define STATUS_TIMEOUT_MS 2000

struct json_args {
	bool json;
};
static const struct opt json_opts[] = {
	OPT_FLAG(struct json_args, json, "json", "print JSON"),
	OPT_END,
};

/* What is known of one machine: its configuration and, while it runs, what it says itself. */
static json_t *machine_json(const char *name, const char *command, struct error *err)
{
	struct vmconfig c;
	json_t *obj = NULL, *reply = NULL;
	int r = vmconfig_init(&c, err);

	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0)
		obj = vmconfig_to_json(&c);
	vmconfig_free(&c);
	if (!obj)
		return NULL;
	r = client_request(name, json_pack("{s:s}", "cmd", command), STATUS_TIMEOUT_MS, &reply, err);
	if (r == 0) {
		json_object_del(reply, "ok");
		(void)json_object_update(obj, reply);
		json_decref(reply);
	} else {
		/* A stale socket or none: it is stopped.  One that does not answer is there nevertheless. */
		(void)json_object_set_new(obj, "state",
					  json_string(r == -ETIMEDOUT ? "busy" : "stopped"));
	}
	return obj;
}

/* ---- list ---- */

const struct opts_cmd cli_list_cmd = {
	.name = "viv list",
	.usage = "",
	.summary = "show all machines",
	.opts = json_opts,
};

static int compare_names(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_machine(const struct dirent *e)
{
	return paths_check_name("a machine", e->d_name, NULL) == 0;
}

/* Of a directory without a valid configuration: NULL if there is nothing in it yet, or nothing left of it. */
static json_t *no_machine_json(const char *name, const struct error *why)
{
	_cleanup_free_ char *config = paths_vm(name, "machine.json", NULL);
	_cleanup_free_ char *lock = paths_vm(name, "lock", NULL);

	if (config && access(config, F_OK) < 0 && lock && access(lock, F_OK) < 0)
		return NULL;
	/* Shown, so that it can be removed. */
	return json_pack("{s:s, s:s, s:s}", "name", name, "state",
			 config && access(config, F_OK) < 0 ? "unfinished" : "broken", "error",
			 why->text);
}

static json_t *all_machines(struct error *err)
{
	_cleanup_free_ char *vms = paths_data("vms", err);
	struct dirent **names = NULL;
	json_t *list = json_array();
	int n = vms ? scandir(vms, &names, is_machine, compare_names) : -1;

	if (!vms || (n < 0 && errno != ENOENT)) {
		if (vms)
			error_set(err, -errno, "cannot read %s: %s", vms, strerror(errno));
		json_decref(list);
		return NULL;
	}
	for (int i = 0; i < n; i++) {
		struct error why;
		json_t *one = machine_json(names[i]->d_name, "status", &why);

		if (!one)
			one = no_machine_json(names[i]->d_name, &why);
		if (one)
			(void)json_array_append_new(list, one);
		free(names[i]);
	}
	free(names);
	return list;
}

static const char *text_of(json_t *obj, const char *key)
{
	const char *s = json_string_value(json_object_get(obj, key));

	return s ? s : "-";
}

static void print_machine(json_t *m)
{
	json_t *mem = json_object_get(m, "mem"), *pid = json_object_get(m, "pid");
	char size[32] = "-", pid_text[24] = "-";

	if (mem)
		opts_format_size((uint64_t)json_integer_value(mem), size);
	if (pid)
		snprintf(pid_text, sizeof(pid_text), "%" JSON_INTEGER_FORMAT, json_integer_value(pid));
	printf("%-20s %-9s %-6s %4" JSON_INTEGER_FORMAT " %8s %8s  %-8.8s  %s\n",
	       text_of(m, "name"), text_of(m, "state"), text_of(m, "engine"),
	       json_integer_value(json_object_get(m, "cpus")), size, pid_text, text_of(m, "build"),
	       text_of(m, "image"));
}

int cli_list(int argc, char **argv)
{
	struct json_args a = { false };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_list_cmd, argc, argv, &a, &rest, &status))
		return status;
	opts_free(&cli_list_cmd, &a, &rest);
	cli_collect();
	json_t *list = all_machines(&err);

	if (!list)
		return cli_fail(&err);
	if (a.json)
		return cli_print_json(list);
	size_t i;
	json_t *m;

	if (json_array_size(list))
		printf("%-20s %-9s %-6s %4s %8s %8s  %-8s  %s\n", "NAME", "STATE", "ENGINE", "CPUS",
		       "MEMORY", "PID", "BUILD", "IMAGE");
	json_array_foreach(list, i, m) print_machine(m);
	json_decref(list);
	return EXIT_FINE;
}

/* ---- info ---- */

struct info_args {
	bool json, engine;
};
static const struct opt info_opts[] = {
	OPT_FLAG(struct info_args, engine, "engine", "show what its engine has counted since it started"),
	OPT_FLAG(struct info_args, json, "json", "print JSON"),
	OPT_END,
};
const struct opts_cmd cli_info_cmd = {
	.name = "viv info",
	.usage = "NAME",
	.summary = "show everything about a machine",
	.details = "docs/design/counters.md tells what each counter means.",
	.opts = info_opts,
	.min_args = 1,
	.max_args = 1,
};

static void print_value(const char *key, json_t *v)
{
	if (json_is_null(v) || (json_is_array(v) && json_array_size(v) == 0))
		return;
	_cleanup_free_ char *text =
		json_is_string(v) ? strdup(json_string_value(v)) : json_dumps(v, JSON_ENCODE_ANY);

	printf("%-16s %s\n", key, text ? text : "?");
}

/* 0 or -ESHUTDOWN: what does not run counts nothing. */
static int engine_json(json_t *info, const char *name, json_t **out, struct error *err)
{
	json_t *counters = json_object_get(info, "counters"),
	       *devices = json_object_get(info, "devices");

	if (!json_is_array(counters) || !json_is_object(devices))
		return error_set(err, -ESHUTDOWN,
				 "machine \"%s\" is not running, so there are no counters", name);
	*out = json_pack("{s:O, s:O, s:O}", "engine", json_object_get(info, "engine"), "counters",
			 counters, "devices", devices);
	return *out ? 0 : error_set(err, -ENOMEM, "no memory for the counters");
}

static int print_engine(json_t *info, const char *name, bool is_json)
{
	struct error err;
	json_t *engine;

	if (engine_json(info, name, &engine, &err) < 0)
		return cli_fail(&err);
	if (is_json)
		return cli_print_json(engine);
	counters_print(engine, stdout);
	json_decref(engine);
	return EXIT_FINE;
}

static void print_info(json_t *info)
{
	const char *key;
	json_t *v;

	json_object_foreach(info, key, v)
	{
		if (strcmp(key, "counters") != 0 && strcmp(key, "devices") != 0 &&
		    !strstr(key, "_counters"))
			print_value(key, v);
	}
}

int cli_info(int argc, char **argv)
{
	struct info_args a = { false, false };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_info_cmd, argc, argv, &a, &rest, &status))
		return status;
	json_t *info = paths_check_name("a machine", rest.args[0], &err) == 0
			       ? machine_json(rest.args[0], "info", &err)
			       : NULL;

	if (!info) {
		status = cli_fail(&err);
	} else if (a.engine) {
		status = print_engine(info, rest.args[0], a.json);
	} else if (a.json) {
		status = cli_print_json(json_incref(info));
	} else {
		print_info(info);
		status = EXIT_FINE;
	}
	json_decref(info);
	opts_free(&cli_info_cmd, &a, &rest);
	return status;
}
