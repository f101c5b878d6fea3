/* SPDX-License-Identifier: Apache-2.0 */
/* `viv snapshot`: its actions, and taking one. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "cli/snapshot.h"
#include "ctl/client.h"
#include "ctl/snapmerge.h"

#define POLL_MS 200

static const struct opt snapshot_opts[] = {
	OPT_FLAG(struct snapshot_args, json, "json", "print JSON"),
	OPT_FLAG(struct snapshot_args, freeze, "freeze",
		 "create: the guest's agent freezes its file systems meanwhile"),
	OPT_FLAG(struct snapshot_args, prefault,
		 "prefault", "restore: come back when it is warm: what it needs first is in memory, its clock is set"),
	OPT_FLAG(struct snapshot_args, skip_time, "skip-time",
		 "restore: the guest's clocks jump to now; for one without an agent"),
	OPT_STRING(struct snapshot_args, net, "net", "NETWORK",
		   "import: the network of a machine that is made, as for viv run"),
	OPT_END,
};
// clang-format off
static const struct opts_action actions[] = {
	{ "create",  "MACHINE SNAPSHOT",      "take one; the machine stands still for a moment only" },
	{ "list",    "MACHINE",               "name, age, size, parent" },
	{ "tree",    "MACHINE",               "the same, children below their parents" },
	{ "show",    "MACHINE SNAPSHOT",      "every field of every device" },
	{ "verify",  "MACHINE SNAPSHOT",      "compare all of it with its checksums" },
	{ "restore", "MACHINE SNAPSHOT",      "go back: in place if the machine runs, else start it from there" },
	{ "delete",  "MACHINE SNAPSHOT",      "remove it; what others need of it is merged into theirs" },
	{ "export",  "MACHINE SNAPSHOT FILE", "all of it as one file" },
	{ "import",  "MACHINE SNAPSHOT FILE", "and back; the machine is made if there is none of that name" },
};
// clang-format on

static bool action_at(unsigned i, struct opts_action *out)
{
	if (i >= ARRAY_SIZE(actions))
		return false;
	*out = actions[i];
	return true;
}

const struct opts_cmd cli_snapshot_cmd = {
	.name = "viv snapshot",
	.usage = "ACTION MACHINE [SNAPSHOT [FILE]]",
	.summary = "snapshots of a machine: memory, CPUs, devices and disks of one moment",
	.opts = snapshot_opts,
	.min_args = 2,
	.max_args = 4,
	.action = action_at,
};

/* ---- create ---- */

static int ask_progress(const char *vm, struct error *err)
{
	json_t *reply;
	int r = client_request(vm, json_pack("{s:s}", "cmd", "snapshot-progress"),
			       CLIENT_TIMEOUT_MS, &reply, err);

	if (r < 0)
		return r;
	json_int_t done = json_integer_value(json_object_get(reply, "done")),
		   total = json_integer_value(json_object_get(reply, "total"));

	json_decref(reply);
	return total > 0 ? (int)(done * 1000 / total) : 0;
}

/* Until the answer is there. */
static void wait_for_answer(int fd, const char *vm)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct progress progress;
	struct error err;

	if (poll(&p, 1, POLL_MS) > 0)
		return; /* a quick one, or refused */
	progress_start(&progress, "writing the snapshot");
	while (poll(&p, 1, POLL_MS) == 0) {
		int permille = ask_progress(vm, &err);

		progress_tick(&progress, permille < 0 ? -1 : permille);
	}
	progress_end(&progress);
}

static int create(const char *vm, const char *name, bool freeze, bool json, struct error *err)
{
	json_t *reply;
	int fd = client_connect(vm, err);

	if (fd < 0)
		return fd;
	int r = client_send(
		fd, json_pack("{s:s, s:s, s:b}", "cmd", "snapshot", "name", name, "freeze", freeze),
		CLIENT_TIMEOUT_MS, err);

	if (r == 0) {
		wait_for_answer(fd, vm);
		r = client_receive(fd, CLIENT_TIMEOUT_MS, &reply, err);
	}
	close(fd);
	if (r < 0)
		return r;
	if (json) {
		json_object_del(reply, "ok");
		return cli_print_json(reply) == EXIT_FINE ? 0 : error_set(err, -EIO, "cannot print");
	}
	printf("%s: the machine stood still for %.1f ms; %.1f MiB of memory written\n", name,
	       (double)json_integer_value(json_object_get(reply, "pause_us")) / 1000,
	       (double)json_integer_value(json_object_get(reply, "bytes")) / MIB);
	json_decref(reply);
	return 0;
}

/* ---- delete ---- */

static bool tick(void *arg, uint64_t done, uint64_t total)
{
	progress_tick(arg, (int)(done * 1000 / total));
	return true;
}

/* The machine, if it runs, told to do @request (stolen), with progress. */
static int tell_machine(const char *vm, json_t *request, const struct ram_progress *progress,
			struct error *err)
{
	_cleanup_close_ int fd = client_connect(vm, err);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	json_t *reply;

	if (fd < 0) {
		json_decref(request);
		return fd == -ENOENT || fd == -ECONNREFUSED ? -ESRCH : fd;
	}
	int r = client_send(fd, request, CLIENT_TIMEOUT_MS, err);

	while (r == 0 && poll(&p, 1, POLL_MS) == 0) {
		struct error why;
		int permille = ask_progress(vm, &why);

		if (progress && permille >= 0)
			progress->fn(progress->arg, (uint64_t)permille, 1000);
	}
	if (r == 0)
		r = client_receive(fd, CLIENT_TIMEOUT_MS, &reply, err);
	if (r == 0)
		json_decref(reply);
	return r == -EPIPE ? -ESRCH : r;
}

static int take_in(void *arg, unsigned disk, const char *layer, const struct ram_progress *progress,
		   struct error *err)
{
	return tell_machine(
		arg, json_pack("{s:s, s:i, s:s}", "cmd", "merged", "disk", (int)disk, "layer", layer),
		progress, err);
}

static int close_merged(void *arg, struct error *err)
{
	return tell_machine(arg, json_pack("{s:s}", "cmd", "merged"), NULL, err);
}

/* What it leaves to others is merged; killed meanwhile, the next one does that. */
static int delete (const char *vm, const char *name, struct error *err)
{
	struct progress shown;
	const struct ram_progress progress = { tick, &shown };
	const struct snapmerge_running running = { take_in, close_merged, (void *)(uintptr_t)vm };
	int r = snapstore_delete(vm, name, err);

	if (r < 0)
		return r;
	progress_start(&shown, "merging what others need of it");
	r = snapmerge(vm, &running, &progress, err);
	progress_end(&shown);
	if (r < 0)
		error_prefix(err, "%s is deleted, but what others need of it is not merged yet, which the next delete tries again",
			     name);
	return r;
}

/* ---- the verb ---- */

static int run(const char *action, const struct opts_rest *rest, const struct snapshot_args *a,
	       struct error *err)
{
	const char *vm = rest->args[1], *name = rest->nargs > 2 ? rest->args[2] : NULL;

	if (!strcmp(action, "list") || !strcmp(action, "tree"))
		return snapshot_list(vm, !strcmp(action, "tree"), a->json, err);
	if (!strcmp(action, "create"))
		return create(vm, name, a->freeze, a->json, err);
	if (!strcmp(action, "show"))
		return snapshot_show(vm, name, a->json, err);
	if (!strcmp(action, "verify"))
		return snapshot_verify(vm, name, a->json, err);
	if (!strcmp(action, "restore"))
		return snapshot_restore(vm, name, a->prefault, a->skip_time, err);
	if (!strcmp(action, "export"))
		return snapshot_export(vm, name, rest->args[3], err);
	if (!strcmp(action, "import"))
		return snapshot_import(vm, name, rest->args[3], a->net, err);
	return delete (vm, name, err);
}

static int check_usage(const struct opts_rest *rest, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
		unsigned nargs = 2; /* the action and the first word of its usage */

		if (strcmp(rest->args[0], actions[i].name) != 0)
			continue;
		for (const char *p = actions[i].usage; *p; p++)
			nargs += *p == ' ';
		if (rest->nargs == nargs)
			return 0;
		return error_set(err, -EINVAL, "viv snapshot %s takes %s", actions[i].name,
				 nargs == 2   ? "a machine"
				 : nargs == 3 ? "a machine and a snapshot"
					      : "a machine, a snapshot and a file");
	}
	return error_set(err, -EINVAL, "there is no action \"%s\"", rest->args[0]);
}

int cli_snapshot(int argc, char **argv)
{
	struct snapshot_args a = { 0 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_snapshot_cmd, argc, argv, &a, &rest, &status))
		return status;
	if (check_usage(&rest, &err) < 0)
		status = cli_usage(&cli_snapshot_cmd, &err);
	else
		status = run(rest.args[0], &rest, &a, &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_snapshot_cmd, &a, &rest);
	return status;
}
