/* SPDX-License-Identifier: Apache-2.0 */
/* `viv exec`: a command inside a machine, through the agent of its guest. */
#include <stdio.h>

#include "cli/cli.h"
#include "ctl/client.h"

struct args {
	bool with_input;
	int64_t timeout;
};
static const struct opt exec_opts[] = {
	OPT_FLAG_L(struct args, with_input, "input", 'i', "pass standard input to the command"),
	OPT_DURATION(struct args, timeout, "timeout", "TIME",
		     "give up after this time (default: never)", 1000000, 7 * 86400LL * 1000000000),
	OPT_END,
};
const struct opts_cmd cli_exec_cmd = {
	.name = "viv exec",
	.usage = "NAME -- CMD...",
	.summary = "run a command inside a machine and give its output and exit status",
	.details = "The guest must run qemu-guest-agent.  Output comes when the command has ended, "
		   "at most 16 MiB.",
	.opts = exec_opts,
	.min_args = 1,
	.max_args = 1,
	.takes_command = true,
};

static int exec_in(const char *name, char **command, const struct args *a, struct error *err)
{
	json_t *reply = NULL, *request = cli_exec_request(command, a->with_input, err);
	int status = EXIT_FAILED;

	if (!request)
		return cli_fail(err);
	if (a->timeout)
		(void)json_object_set_new(request, "timeout_ms", json_integer(a->timeout / 1000000));
	if (client_request(name, request, -1, &reply, err) < 0 ||
	    cli_decode(reply, "out-data", STDOUT_FILENO, err) < 0 ||
	    cli_decode(reply, "err-data", STDERR_FILENO, err) < 0) {
		cli_fail(err);
	} else {
		status = cli_command_status(reply);
		if (json_is_true(json_object_get(reply, "out-truncated")) ||
		    json_is_true(json_object_get(reply, "err-truncated")))
			cli_note("the output was longer than 16 MiB and is cut off");
	}
	json_decref(reply);
	return status;
}

int cli_exec(int argc, char **argv)
{
	struct args a = { false };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_exec_cmd, argc, argv, &a, &rest, &status))
		return status;
	if (!rest.ncommand) {
		error_set(&err, -1, "the command after -- is missing");
		status = cli_usage(&cli_exec_cmd, &err);
	} else {
		status = exec_in(rest.args[0], rest.command, &a, &err);
	}
	opts_free(&cli_exec_cmd, &a, &rest);
	return status;
}
