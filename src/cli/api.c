/* SPDX-License-Identifier: Apache-2.0 */
/* `viv api`: the control protocol, for programs and who writes them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "ctl/schema.h"

static const struct opt no_opts[] = { OPT_END };

static bool api_action(unsigned i, struct opts_action *out)
{
	static const struct opts_action actions[] = {
		{ "schema", "", "print the JSON Schema of every request, answer and event", NULL },
	};

	if (i >= ARRAY_SIZE(actions))
		return false;
	*out = actions[i];
	return true;
}

const struct opts_cmd cli_api_cmd = {
	.name = "viv api",
	.usage = "schema",
	.summary = "describe the control protocol",
	.details = "Each running machine has a socket, run/NAME/control.sock below VIVARIUM_HOME, "
		   "or vivarium/NAME/control.sock\n"
		   "below XDG_RUNTIME_DIR, that takes one JSON object a line and answers each with "
		   "one. All that viv does\n"
		   "with running machines goes over it. With VIVARIUM_TRACE=FILE in the "
		   "environment viv appends every\n"
		   "message to the file.",
	.opts = no_opts,
	.min_args = 1,
	.max_args = 1,
	.action = api_action,
};

int cli_api(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	int status;
	char dummy;

	if (!cli_parse(&cli_api_cmd, argc, argv, &dummy, &rest, &status))
		return status;
	if (strcmp(rest.args[0], "schema") != 0) {
		error_set(&err, -EINVAL, "viv api cannot \"%s\"; it has schema", rest.args[0]);
		status = cli_usage(&cli_api_cmd, &err);
	} else {
		json_t *schema = ctl_schema();

		error_set(&err, -ENOMEM, "no memory for the schema");
		status = schema ? cli_print_json(schema) : cli_fail(&err);
	}
	opts_free(&cli_api_cmd, &dummy, &rest);
	return status;
}
