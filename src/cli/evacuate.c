/* SPDX-License-Identifier: Apache-2.0 */
/* `viv evacuate`: move all running machines to another host, one after the other. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/migrate.h"
#include "ctl/paths.h"
#include "ctl/vmlock.h"

struct args {
	struct migrate_options o;
	bool json;
};

static const struct opt evacuate_opts[] = {
	OPT_DURATION(struct args, o.max_downtime, "max-downtime", "TIME",
		     "that each may stand still (default 100ms)", 1000000, 3600LL * 1000000000),
	OPT_DURATION(struct args, o.deadline, "deadline", "TIME", "that each may take", 1000000,
		     7LL * 24 * 3600 * 1000000000),
	OPT_CHOICE(struct args, o.priority, "priority",
		   "keep-running|finish", "what counts more: that guests are not slowed down, or that they get there (default finish)",
		   migrate_priorities),
	OPT_SIZE(struct args, o.bandwidth, "bandwidth", "SIZE",
		 "a second at most while a machine runs", 1024, 1ULL << 40),
	OPT_FLAG(struct args, o.verify,
		 "verify", "compare all of memory by checksums before a machine runs there; it stands still for that"),
	MIGRATE_TRANSPORT_OPTS(struct args),
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
const struct opts_cmd cli_evacuate_cmd = {
	.name = "viv evacuate",
	.usage = "TARGET",
	.summary = "move all running machines to another host",
	.details = "One after the other, as viv migrate does.  One that cannot go stays, and the "
		   "others go all the same; the\n"
		   "exit status is 1 then.  Ctrl-C cancels the one that is under way and ends.",
	.opts = evacuate_opts,
	.min_args = 1,
	.max_args = 1,
};

/* Moves those that run; @reports gets one a machine.  Returns how many stay, or -errno. */
static int evacuate(const char *to, const struct args *a, json_t *reports, struct error *err)
{
	_cleanup_free_ char *vms = paths_data("vms", err);
	struct dirent **names = NULL;
	int n = vms ? scandir(vms, &names, NULL, alphasort) : -1, stay = 0;
	bool is_over = false;

	if (n < 0)
		return !vms ? -ENOMEM
		       : errno == ENOENT
			       ? 0
			       : error_set(err, -errno, "cannot read %s: %s", vms, strerror(errno));
	for (int i = 0; i < n; i++) {
		const char *name = names[i]->d_name;
		json_t *report = NULL;

		if (paths_check_name("a machine", name, NULL) == 0 && vmlock_is_running(name)) {
			int r = is_over ? -EINTR : migrate_machine(name, to, &a->o, &report, err);

			if (r == -EINTR)
				is_over = true;
			if (r < 0) {
				stay++;
				cli_note("%s stays here: %s", name, err->text);
				report = json_pack("{s:s, s:s}", "state", "kept", "error", err->text);
			} else if (!a->json) {
				migrate_print(name, report);
			}
			if (!report || json_object_set_new(report, "name", json_string(name)) < 0 ||
			    json_array_append(reports, report) < 0)
				cli_note("no memory to report on %s", name);
			json_decref(report);
		}
		free(names[i]);
	}
	free(names);
	return stay;
}

int cli_evacuate(int argc, char **argv)
{
	struct args a = { .o.priority = MIGRATE_FINISH_FIRST };
	struct opts_rest rest;
	struct error err = { "canceled" };
	int status;

	if (!cli_parse(&cli_evacuate_cmd, argc, argv, &a, &rest, &status))
		return status;
	json_t *reports = json_array();
	int r = evacuate(rest.args[0], &a, reports, &err);

	status = r < 0 ? cli_fail(&err) : r ? EXIT_FAILED : EXIT_FINE;
	if (r >= 0 && a.json)
		cli_print_json(json_incref(reports));
	else if (r == 0 && !json_array_size(reports))
		cli_note("no machine is running here");
	json_decref(reports);
	opts_free(&cli_evacuate_cmd, &a, &rest);
	return status;
}
