/* SPDX-License-Identifier: Apache-2.0 */
/* `viv plan`: a lab before anything of it starts. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/lab.h"
#include "ctl/paths.h"
#include "net/plan.h"

struct args {
	bool svg, json;
};

// clang-format off
static const struct opt plan_opts[] = {
	OPT_FLAG(struct args, svg, "svg", "a drawing, as SVG"),
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
const struct opts_cmd cli_plan_cmd = {
	.name = "viv plan",
	.usage = "LAB.yaml",
	.summary = "show who can reach whom in a lab, before anything starts",
	.opts = plan_opts,
	.min_args = 1,
	.max_args = 1,
};
// clang-format on

int lab_load_text(struct lab **out, const char *path, char **kept, size_t *kept_len, struct error *err)
{
	const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path, *dot = strrchr(base, '.');
	_cleanup_free_ char *name =
		strndup(base, dot && dot != base ? (size_t)(dot - base) : strlen(base));
	_cleanup_free_ char *text = NULL;
	size_t len;
	struct lab *l;
	int r = name ? paths_read_file(path, LABFILE_BYTES_MAX, &text, &len, err)
		     : error_set(err, -ENOMEM, "no memory");

	if (r == 0)
		r = lab_parse(&l, text, len, path, name, err);
	if (r < 0)
		return r;
	r = policy_block_host(l->policy, err);
	if (r < 0) {
		lab_free(l);
		return r;
	}
	*out = l;
	if (kept) {
		*kept = text;
		*kept_len = len;
		text = NULL;
	}
	return 0;
}

int lab_load(struct lab **out, const char *path, struct error *err)
{
	return lab_load_text(out, path, NULL, NULL, err);
}

int cli_plan(int argc, char **argv)
{
	struct args a = { false, false };
	struct opts_rest rest;
	struct error err;
	struct lab *l;
	int status;

	if (!cli_parse(&cli_plan_cmd, argc, argv, &a, &rest, &status))
		return status;
	int r = a.svg && a.json ? error_set(&err, -EINVAL, "--svg and --json exclude each other") : 0;
	if (r < 0)
		status = cli_usage(&cli_plan_cmd, &err);
	else if (lab_load(&l, rest.args[0], &err) < 0)
		status = cli_fail(&err);
	else if (a.json)
		status = cli_print_json(plan_json(l->policy)), lab_free(l);
	else {
		_cleanup_bytes_ struct bytes text = { 0 };
		(a.svg ? plan_svg : plan_text)(l->policy, &text);
		bool is_out = !text.is_failed && fwrite(text.data, 1, text.len, stdout) == text.len &&
			      fflush(stdout) == 0;
		status = is_out ? EXIT_FINE
				: (error_set(&err, -EIO, "cannot write the output"), cli_fail(&err));
		lab_free(l);
	}
	opts_free(&cli_plan_cmd, &a, &rest);
	return status;
}
