/* SPDX-License-Identifier: Apache-2.0 */
/* `viv fork`: running copies of a running machine. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "ctl/client.h"
#include "ctl/ctl.h"
#include "ctl/paths.h"

struct args {
	uint64_t n;
	const char *name;
	bool json, freeze;
};

static const struct opt fork_opts[] = {
	OPT_UINT_L(struct args, n, "copies", 'n', "N", "how many (default 1)", 1, CTL_FORK_MAX),
	OPT_STRING(struct args, name, "name", "PATTERN",
		   "of the copies; {} is 1, 2, ... (default MACHINE-{})"),
	OPT_FLAG(struct args, freeze, "freeze", "the guest's agent freezes its file systems meanwhile"),
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
const struct opts_cmd cli_fork_cmd = {
	.name = "viv fork",
	.usage = "MACHINE",
	.summary = "make running copies of a running machine",
	.details = "Each copy is a machine of its own, with a disk, network and control socket of "
		   "its own.  Memory is shared\n"
		   "with the others until one of them writes to it.  Network connections stay the "
		   "first one's.",
	.opts = fork_opts,
	.min_args = 1,
	.max_args = 1,
};

/* @pattern with its {} as number @i. */
static char *copy_name(const char *pattern, uint64_t i, struct error *err)
{
	const char *at = strstr(pattern, "{}");

	return paths_format(err, "%.*s%llu%s", (int)(at - pattern), pattern, (unsigned long long)i,
			    at + 2);
}

static json_t *make_names(const char *pattern, uint64_t n, struct error *err)
{
	json_t *names = json_array();

	for (uint64_t i = 1; i <= n; i++) {
		_cleanup_free_ char *name = n == 1 && !strstr(pattern, "{}")
						    ? strdup(pattern)
						    : copy_name(pattern, i, err);

		if (!name || json_array_append_new(names, json_string(name)) < 0) {
			json_decref(names);
			error_set(err, -ENOMEM, "no memory for names");
			return NULL;
		}
	}
	return names;
}

static int fork_machine(const char *vm, const char *pattern, const struct args *a, struct error *err)
{
	json_t *names = make_names(pattern, a->n, err), *reply;

	if (!names)
		return -ENOMEM;
	int r = client_request(
		vm, json_pack("{s:s, s:O, s:b}", "cmd", "fork", "names", names, "freeze", a->freeze),
		-1, &reply, err);

	if (r == 0 && a->json) {
		json_object_del(reply, "ok");
		(void)json_object_set(reply, "names", names);
		cli_print_json(json_incref(reply));
	} else if (r == 0) {
		cli_note("%s stood still for %.1f ms", vm,
			 (double)json_integer_value(json_object_get(reply, "pause_us")) / 1000);
		for (size_t i = 0; i < json_array_size(names); i++)
			printf("%s\n", json_string_value(json_array_get(names, i)));
	}
	if (r == 0)
		json_decref(reply);
	json_decref(names);
	return r;
}

int cli_fork(int argc, char **argv)
{
	struct args a = { .n = 1 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_fork_cmd, argc, argv, &a, &rest, &status))
		return status;
	_cleanup_free_ char *dflt = paths_format(&err, "%s-{}", rest.args[0]);
	const char *pattern = a.name ? a.name : dflt;

	if (!pattern) {
		status = cli_fail(&err);
	} else if (a.n > 1 && !strstr(pattern, "{}")) {
		error_set(&err, -EINVAL, "the name of several copies needs a {} for their number");
		status = cli_usage(&cli_fork_cmd, &err);
	} else {
		status = fork_machine(rest.args[0], pattern, &a, &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	}
	opts_free(&cli_fork_cmd, &a, &rest);
	return status;
}
