/* SPDX-License-Identifier: Apache-2.0 */
/* `viv events`: what happens to a machine, as it happens. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "ctl/client.h"

struct args {
	bool json;
};
static const struct opt events_opts[] = {
	OPT_FLAG(struct args, json, "json", "print a JSON object a line"),
	OPT_END,
};
const struct opts_cmd cli_events_cmd = {
	.name = "viv events",
	.usage = "NAME",
	.summary = "show what happens to a running machine, until it ends",
	.details = "State changes, resets, crashes, snapshots and the end. viv api schema "
		   "describes them.",
	.opts = events_opts,
	.min_args = 1,
	.max_args = 1,
};

static void print_text(json_t *event)
{
	const char *key;
	json_t *v;

	printf("%s  %s", json_string_value(json_object_get(event, "time")),
	       json_string_value(json_object_get(event, "event")));
	json_object_foreach(event, key, v)
	{
		if (strcmp(key, "time") == 0 || strcmp(key, "event") == 0)
			continue;
		_cleanup_free_ char *text = json_is_string(v)
						    ? strdup(json_string_value(v))
						    : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

		printf("  %s: %s", key, text ? text : "?");
	}
	putchar('\n');
}

static void print_json(json_t *event)
{
	(void)json_dumpf(event, stdout, JSON_COMPACT);
	putchar('\n');
}

/* Until it ends, or nobody reads any more. */
static int watch(int fd, bool is_json, struct error *err)
{
	for (;;) {
		json_t *event = NULL;
		int r = client_receive_any(fd, -1, &event, err);

		if (r < 0)
			return r;
		const char *name = json_string_value(json_object_get(event, "event"));
		bool is_end = name && strcmp(name, "end") == 0;

		if (!name || !json_string_value(json_object_get(event, "time"))) {
			json_decref(event);
			return error_set(err, -EPROTO, "the machine tells something that is no event");
		}
		if (is_json)
			print_json(event);
		else
			print_text(event);
		json_decref(event);
		if (is_end || fflush(stdout) == EOF)
			return 0;
	}
}

int cli_events(int argc, char **argv)
{
	struct args a = { false };
	struct opts_rest rest;
	struct error err;
	json_t *reply = NULL;
	int status;

	if (!cli_parse(&cli_events_cmd, argc, argv, &a, &rest, &status))
		return status;
	_cleanup_close_ int fd = client_connect(rest.args[0], &err);
	int r = fd;

	if (r >= 0)
		r = client_call(fd, json_pack("{s:s}", "cmd", "subscribe"), CLIENT_TIMEOUT_MS,
				&reply, &err);
	json_decref(reply);
	if (r >= 0)
		r = watch(fd, a.json, &err);
	status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_events_cmd, &a, &rest);
	return status;
}
