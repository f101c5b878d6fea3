/* SPDX-License-Identifier: Apache-2.0 */
/* `viv metrics`: the counters of running machines for Prometheus. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/lab.h"
#include "cli/prom.h"
#include "ctl/client.h"
#include "ctl/paths.h"

/* Prometheus gives up after 10 s if it is not told otherwise (scrape_timeout), and that is for all machines. */
#define ANSWER_TIMEOUT_MS 2000

static const struct opt metrics_opts[] = { OPT_END };
const struct opts_cmd cli_metrics_cmd = {
	.name = "viv metrics",
	.usage = "[NAME...]",
	.summary = "print the counters of running machines for Prometheus",
	.details = "Without a name: of all that run, and of labs' networks; one that does not "
		   "answer has viv_vm_up 0.  "
		   "The format is Prometheus' text format 0.0.4, which "
		   "node_exporter's textfile collector takes, too.  docs/design/counters.md tells "
		   "what "
		   "each metric means.",
	.opts = metrics_opts,
	.max_args = 1024,
};

/* statm's second number, proc(5): pages. */
static int64_t resident_bytes(json_t *info)
{
	json_int_t pid = json_integer_value(json_object_get(info, "pid"));
	char path[64];
	long long pages = -1;

	if (pid <= 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/%lld/statm", (long long)pid);
	FILE *f = fopen(path, "re");

	if (!f)
		return -1;
	if (fscanf(f, "%*s %lld", &pages) != 1 || pages < 0 || pages > INT64_MAX / 65536)
		pages = -1;
	fclose(f);
	return pages < 0 ? -1 : pages * sysconf(_SC_PAGESIZE);
}

/* A machine that runs: 0 also if it did not answer, then without info. */
static int ask(struct prom_machine *m, const char *name, struct error *err)
{
	int r = paths_check_name("a machine", name, err);

	*m = (struct prom_machine){ .name = name, .resident_bytes = -1 };
	if (r < 0)
		return r;
	r = client_request(name, json_pack("{s:s}", "cmd", "info"), ANSWER_TIMEOUT_MS, &m->info, err);
	if (r < 0) {
		m->info = NULL;
		return cli_is_running(name) ? 0 : r;
	}
	m->resident_bytes = resident_bytes(m->info);
	return 0;
}

/* One that does not answer in time, or has just ended, is left out. */
static void print_labs(void)
{
	_cleanup_free_ char *root = paths_lab("", NULL, NULL);
	DIR *dir = root ? opendir(root) : NULL;
	json_t **labs = NULL;
	struct dirent *e;
	size_t n = 0;

	while (dir && (e = readdir(dir))) {
		json_t **more = e->d_name[0] == '.' ? NULL : reallocarray(labs, n + 1, sizeof(*labs));

		if (!more)
			continue;
		labs = more;
		n += lab_request(e->d_name, json_pack("{s:s}", "cmd", "show"), &labs[n], NULL) == 0;
	}
	if (dir)
		closedir(dir);
	prom_print_labs(labs, n, stdout);
	while (n)
		json_decref(labs[--n]);
	free(labs);
}

static int print_machines(const char *const *names, size_t n, bool is_all, struct error *err)
{
	struct prom_machine *machines = calloc(n + 1, sizeof(*machines));
	size_t have = 0;
	int r = machines ? 0 : error_set(err, -ENOMEM, "no memory for the counters");

	for (size_t i = 0; i < n && r == 0; i++) {
		r = ask(&machines[have], names[i], err);
		if (r == 0)
			have++;
		else if (is_all)
			r = 0; /* it does not run, or has just ended */
	}
	if (r == 0) {
		prom_print(machines, have, stdout);
		if (is_all)
			print_labs();
		if (fflush(stdout) == EOF)
			r = error_set(err, -EIO, "cannot write the metrics");
	}
	for (size_t i = 0; i < have; i++)
		json_decref(machines[i].info);
	free(machines);
	return r;
}

static int is_machine(const struct dirent *e)
{
	return paths_check_name("a machine", e->d_name, NULL) == 0;
}

static int print_all(struct error *err)
{
	_cleanup_free_ char *vms = paths_data("vms", err);
	struct dirent **entries = NULL;
	int n = vms ? scandir(vms, &entries, is_machine, alphasort) : -1;

	if (!vms)
		return -ENOMEM;
	if (n < 0 && errno != ENOENT)
		return error_set(err, -errno, "cannot read %s: %s", vms, strerror(errno));
	n = MAX(n, 0);
	const char **names = calloc((size_t)n + 1, sizeof(*names));
	int r = names ? 0 : error_set(err, -ENOMEM, "no memory for the counters");

	for (int i = 0; i < n && r == 0; i++)
		names[i] = entries[i]->d_name;
	if (r == 0)
		r = print_machines(names, (size_t)n, true, err);
	for (int i = 0; i < n; i++)
		free(entries[i]);
	free(entries);
	free(names);
	return r;
}

int cli_metrics(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	int status;
	char dummy;

	if (!cli_parse(&cli_metrics_cmd, argc, argv, &dummy, &rest, &status))
		return status;
	int r = rest.nargs ? print_machines(rest.args, rest.nargs, false, &err) : print_all(&err);

	status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_metrics_cmd, &dummy, &rest);
	return status;
}
