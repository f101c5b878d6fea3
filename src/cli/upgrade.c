/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv upgrade`: a running machine goes on in a process of this program, or of another build of it.
 *
 * This process makes what passes between the two (ctl/handover.h), starts the new one and asks the old one to hand over; they do the rest.
 * With --binary that program's own `viv upgrade` does it, so that the process is started by who knows its command line.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/build_id.h"
#include "cli/cli.h"
#include "cli/migrate.h"
#include "cli/spawn.h"
#include "ctl/client.h"
#include "ctl/handover.h"
#include "ctl/paths.h"
#include "ctl/vmlock.h"

struct args {
	const char *binary;
	bool all, force, json;
};

static const struct opt upgrade_opts[] = {
	OPT_STRING(struct args, binary, "binary", "PATH",
		   "the program that it shall run (default: this one)"),
	OPT_FLAG(struct args, all, "all", "all machines that run"),
	OPT_FLAG(struct args, force, "force", "also a machine that runs this build already"),
	OPT_FLAG(struct args, json, "json", "print JSON"),
	OPT_END,
};
const struct opts_cmd cli_upgrade_cmd = {
	.name = "viv upgrade",
	.usage = "[NAME...]",
	.summary = "have running machines go on in another build of viv",
	.details = "The machine's memory, disks, console and network are handed over to a process "
		   "of the "
		   "other build; it stands still\n"
		   "for some milliseconds, and its connections live on.  Until the new process has "
		   "all of it, "
		   "the machine stays in the\n"
		   "old one, whatever happens; Ctrl-C cancels.  Its network's process stays what "
		   "it is until "
		   "the machine is next started.",
	.opts = upgrade_opts,
	.max_args = 1024,
};

struct ways {
	int ours[HANDOVER_FDS], theirs[HANDOVER_FDS]; /* old process's, new one's: link, hatch, ram, token */
};

static void close_fds(int *fds)
{
	for (unsigned i = 0; i < HANDOVER_FDS; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

static int make_ways(struct ways *w, struct error *err)
{
	int link[2], hatch[2];

	memset(w, 0xff, sizeof(*w)); /* -1 */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, link) == 0) {
		w->ours[0] = link[0];
		w->theirs[0] = link[1];
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, hatch) == 0) {
		w->ours[1] = hatch[0];
		w->theirs[1] = hatch[1];
	}
	w->ours[2] = memfd_create("viv-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	w->ours[3] = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	for (unsigned i = 2; i < HANDOVER_FDS; i++)
		w->theirs[i] = w->ours[i] < 0 ? -1 : fcntl(w->ours[i], F_DUPFD_CLOEXEC, 0);
	for (unsigned i = 0; i < HANDOVER_FDS; i++) {
		if (w->ours[i] >= 0 && w->theirs[i] >= 0)
			continue;
		int r = error_set(err, -errno, "cannot make what a machine is handed over by: %s",
				  strerror(errno));

		close_fds(w->ours);
		close_fds(w->theirs);
		return r;
	}
	return 0;
}

static const char *text_of(json_t *j, const char *key)
{
	return json_string_value(json_object_get(j, key)) ?: "unknown";
}

/* What the machine runs now: "viv 0.1.0, build 0123456789abcdef". */
static int look(const char *name, char from[128], bool *is_this, struct error *err)
{
	char build[BUILD_ID_TEXT];
	json_t *reply;
	int r = client_request(name, json_pack("{s:s}", "cmd", "status"), CLIENT_TIMEOUT_MS, &reply, err);

	if (r < 0)
		return r;
	build_id_text(build);
	snprintf(from, 128, "viv %.40s, build %.40s", text_of(reply, "viv"), text_of(reply, "build"));
	*is_this = strcmp(build, "unknown") && !strcmp(text_of(reply, "build"), build);
	json_decref(reply);
	return 0;
}

/* The new process is there; the old one is asked.  Its own reason is better than that its link ended.  *@has_moved: the old one has none any more. */
static int hand_over(const char *name, const char *to, struct spawned *s, struct ways *w,
		     json_t **report, bool *has_moved, struct error *err)
{
	struct transport t = { .n = HANDOVER_FDS };
	char engine[256], reason[256];
	struct error why;

	memcpy(t.fds, w->ours, sizeof(w->ours));
	memset(w->ours, 0xff, sizeof(w->ours));
	int r = migrate_request_over(name, json_pack("{s:s, s:s}", "cmd", "upgrade", "to", to), &t,
				     report, err);

	transport_close(&t);
	*has_moved = r == 0;
	int e = spawned_wait_ready(s, engine, reason, r < 0 ? &why : err);

	if (r < 0 && e == 0) { /* the old one ended before it could say so */
		*has_moved = true;
		*report = json_pack("{s:s, s:s}", "state", "moved", "to", to);
		return *report ? 0 : error_set(err, -ENOMEM, "no memory to report on it");
	}
	if (r == -EREMOTEIO && e < 0 && strstr(err->text, "the link was lost"))
		*err = why;
	return r < 0 ? r : e;
}

/* *@has_moved: the machine is not what it was, whatever is returned. */
static int upgrade(const char *name, bool is_forced, json_t **report, bool *has_moved, struct error *err)
{
	char from[128], to[128], build[BUILD_ID_TEXT];
	struct spawned s;
	struct vmconfig c;
	struct ways w;
	bool is_this;
	int r = look(name, from, &is_this, err);

	if (r < 0)
		return r;
	build_id_text(build);
	snprintf(to, sizeof(to), "viv %s, build %s", VIV_VERSION, build);
	if (is_this && !is_forced) {
		*report = json_pack("{s:s, s:s, s:s}", "state", "current", "from", from, "to", to);
		return 0;
	}
	r = vmconfig_init(&c, err);
	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0)
		r = make_ways(&w, err);
	if (r < 0) {
		vmconfig_free(&c);
		return r;
	}
	const struct spawn_from spawn = { .handover = w.theirs };

	r = spawn_machine(&s, &c, -1, &spawn, false, err);
	close_fds(w.theirs); /* the new process's only: who else held them would keep the old one from noticing its end */
	if (r == 0) {
		r = hand_over(name, to, &s, &w, report, has_moved, err);
		spawned_free(&s);
	}
	close_fds(w.ours);
	vmconfig_free(&c);
	if (r < 0 && *has_moved)
		return error_prefix(err, "%s had moved to %s and ended there", name, to), r;
	if (r < 0)
		return error_prefix(err, "%s goes on as it was, in %s", name, from), r;
	(void)json_object_set_new(*report, "from", json_string(from));
	return 0;
}

static double ms_of(json_t *j, const char *key)
{
	return (double)json_integer_value(json_object_get(j, key)) / 1e3;
}

static void print(const char *name, json_t *j)
{
	if (!strcmp(text_of(j, "state"), "current"))
		printf("%s runs this build already: %s\n", name, text_of(j, "to"));
	else if (!json_object_get(j, "downtime_us"))
		printf("%s goes on: from %s to %s; the old process ended before it told how long "
		       "it "
		       "stood still\n",
		       name, text_of(j, "from"), text_of(j, "to"));
	else
		printf("%s goes on: from %s to %s, in %.2f s; it stood still for %.1f ms\n", name,
		       text_of(j, "from"), text_of(j, "to"), ms_of(j, "elapsed_us") / 1e3,
		       ms_of(j, "downtime_us"));
}

/* ---- which ---- */

static int upgrade_one(const char *name, const struct args *a, json_t *reports)
{
	json_t *report = NULL;
	bool has_moved = false;
	struct error err;
	int r = paths_check_name("a machine", name, &err);

	if (r == 0)
		r = upgrade(name, a->force, &report, &has_moved, &err);
	if (r < 0) {
		(void)cli_fail(&err);
		json_decref(report);
		report = json_pack("{s:s, s:s}", "state", has_moved ? "ended" : "kept", "error",
				   err.text);
	}
	if (r == 0 && !a->json)
		print(name, report);
	if (!report || json_object_set_new(report, "name", json_string(name)) < 0 ||
	    json_array_append(reports, report) < 0)
		cli_note("no memory to report on %s", name);
	json_decref(report);
	return r;
}

static int upgrade_all(const struct args *a, json_t *reports)
{
	struct error err;
	_cleanup_free_ char *vms = paths_data("vms", &err);
	struct dirent **names = NULL;
	int n = vms ? scandir(vms, &names, NULL, alphasort) : -1, status = EXIT_FINE;

	if (n < 0 && vms && errno == ENOENT)
		return EXIT_FINE;
	if (n < 0) {
		if (vms)
			error_set(&err, -errno, "cannot read %s: %s", vms, strerror(errno));
		return cli_fail(&err);
	}
	for (int i = 0; i < n; i++) {
		const char *name = names[i]->d_name;

		if (paths_check_name("a machine", name, NULL) == 0 && vmlock_is_running(name) &&
		    upgrade_one(name, a, reports) < 0)
			status = EXIT_FAILED;
		free(names[i]);
	}
	free(names);
	return status;
}

/* The same command, of the other program. */
static int run_binary(const struct args *a, const struct opts_rest *rest)
{
	const char *argv[1024 + 8] = { "viv", "upgrade" };
	unsigned n = 2;
	struct error err;

	if (a->all)
		argv[n++] = "--all";
	if (a->force)
		argv[n++] = "--force";
	if (a->json)
		argv[n++] = "--json";
	for (unsigned i = 0; i < rest->nargs; i++)
		argv[n++] = rest->args[i];
	execv(a->binary, (char **)(uintptr_t)argv);
	error_set(&err, -errno, "cannot run %s: %s", a->binary, strerror(errno));
	return cli_fail(&err);
}

int cli_upgrade(int argc, char **argv)
{
	struct args a = { NULL };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_upgrade_cmd, argc, argv, &a, &rest, &status))
		return status;
	json_t *reports = json_array();

	if (a.all == (rest.nargs > 0)) {
		error_set(&err, -EINVAL, "which machines? Names, or --all");
		status = cli_usage(&cli_upgrade_cmd, &err);
	} else if (a.binary) {
		status = run_binary(&a, &rest);
	} else if (a.all) {
		status = upgrade_all(&a, reports);
	} else {
		for (unsigned i = 0; i < rest.nargs; i++)
			if (upgrade_one(rest.args[i], &a, reports) < 0)
				status = EXIT_FAILED;
	}
	if (a.json && !a.binary && status != EXIT_USAGE)
		cli_print_json(json_incref(reports));
	json_decref(reports);
	opts_free(&cli_upgrade_cmd, &a, &rest);
	return status;
}
