/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/build_id.h"
#include "cli/cli.h"

struct args {
	bool json;
};
static const struct opt version_opts[] = {
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
const struct opts_cmd cli_version_cmd = {
	.name = "viv version",
	.usage = "",
	.summary = "show the version",
	.opts = version_opts,
};

int cli_version(int argc, char **argv)
{
	struct args a = { false };
	struct opts_rest rest;
	char build[BUILD_ID_TEXT];
	int status;

	build_id_text(build);
	if (!cli_parse(&cli_version_cmd, argc, argv, &a, &rest, &status))
		return status;
	opts_free(&cli_version_cmd, &a, &rest);
	if (a.json)
		return cli_print_json(json_pack("{s:s, s:s, s:s}", "version", VIV_VERSION, "build",
						build, "compiler", __VERSION__));
	printf("viv %s, build %s\n", VIV_VERSION, build);
	return EXIT_FINE;
}
