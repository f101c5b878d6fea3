/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs that are one request to a running machine, and those about its files. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/lab.h"
#include "cli/spawn.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/vmlock.h"
#include "net/identity.h"

static const struct opt no_opts[] = { OPT_END };

/* ---- pause, resume, reset ---- */

static int simple_request(const struct opts_cmd *cmd, const char *name, int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	json_t *reply;
	int status;
	char dummy;

	if (!cli_parse(cmd, argc, argv, &dummy, &rest, &status))
		return status;
	status = EXIT_FINE;
	for (unsigned i = 0; i < rest.nargs; i++) {
		if (client_request(rest.args[i], json_pack("{s:s}", "cmd", name), CLIENT_TIMEOUT_MS,
				   &reply, &err) < 0)
			status = cli_fail(&err);
		else
			json_decref(reply);
	}
	opts_free(cmd, &dummy, &rest);
	return status;
}

#define SIMPLE_VERB(verb, text)                                                                    \
	const struct opts_cmd cli_##verb##_cmd = {                                                 \
		.name = "viv " #verb,                                                              \
		.usage = "NAME...",                                                                \
		.summary = text,                                                                   \
		.opts = no_opts,                                                                   \
		.min_args = 1,                                                                     \
		.max_args = 1024,                                                                  \
	};                                                                                         \
	int cli_##verb(int argc, char **argv)                                                      \
	{                                                                                          \
		return simple_request(&cli_##verb##_cmd, #verb, argc, argv);                       \
	}
SIMPLE_VERB(pause, "freeze a running machine: its CPUs and its clock stand still")
SIMPLE_VERB(resume, "go on with a paused machine")

/* ---- reset ---- */

struct reset_args {
	const char *to;
};
static const struct opt reset_opts[] = {
	OPT_STRING(struct reset_args, to, "to", "SNAPSHOT", "not to power-on, but to this snapshot of it"),
	OPT_END,
};
const struct opts_cmd cli_reset_cmd = {
	.name = "viv reset",
	.usage = "NAME...",
	.summary = "press a machine's reset button",
	.details = "With --to the machine goes back to a snapshot and on from there; only what "
		   "changed since then is touched.",
	.opts = reset_opts,
	.min_args = 1,
	.max_args = 1024,
};

int cli_reset(int argc, char **argv)
{
	struct reset_args a = { 0 };
	struct opts_rest rest;
	struct error err;
	json_t *reply;
	int status;

	if (!cli_parse(&cli_reset_cmd, argc, argv, &a, &rest, &status))
		return status;
	status = EXIT_FINE;
	for (unsigned i = 0; i < rest.nargs; i++) {
		json_t *request = a.to ? json_pack("{s:s, s:s}", "cmd", "restore", "name", a.to)
				       : json_pack("{s:s}", "cmd", "reset");

		if (client_request(rest.args[i], request, CLIENT_TIMEOUT_MS, &reply, &err) < 0)
			status = cli_fail(&err);
		else
			json_decref(reply);
	}
	opts_free(&cli_reset_cmd, &a, &rest);
	return status;
}

/* ---- is it running? ---- */

bool cli_is_running(const char *name)
{
	return vmlock_is_running(name);
}

static bool wait_unlocked(const char *name, int64_t timeout_ns)
{
	const struct timespec step = { .tv_nsec = 20000000 };

	for (int64_t waited = 0; cli_is_running(name); waited += step.tv_nsec) {
		if (waited >= timeout_ns)
			return false;
		nanosleep(&step, NULL);
	}
	return true;
}

/* ---- stop ---- */

struct stop_args {
	int64_t timeout;
	bool force;
};
static const struct opt stop_opts[] = {
	OPT_DURATION(struct stop_args, timeout, "timeout", "TIME",
		     "after which it is stopped the hard way (default 30s)", 1000000, 3600LL * 1000000000),
	OPT_FLAG_L(struct stop_args, force, "force", 'f', "at once, like pulling the plug"),
	OPT_END,
};
const struct opts_cmd cli_stop_cmd = {
	.name = "viv stop",
	.usage = "NAME...",
	.summary = "switch a machine off: press its power button and wait",
	.opts = stop_opts,
	.min_args = 1,
	.max_args = 1024,
};

static int stop_one(const char *name, const struct stop_args *a, struct error *err)
{
	json_t *request = a->force ? json_pack("{s:s}", "cmd", "quit")
				   : json_pack("{s:s, s:I}", "cmd", "stop", "timeout_ms",
					       (json_int_t)(a->timeout / 1000000));
	struct progress p;
	json_t *reply = NULL;
	int r = client_request(name, request, CLIENT_TIMEOUT_MS, &reply, err);

	if (r < 0)
		return r;
	json_decref(reply);
	progress_start(&p, "waiting for the guest to switch itself off");
	for (int64_t waited = 0; !wait_unlocked(name, 200000000); waited += 200000000) {
		progress_tick(&p, -1);
		/* The machine keeps the time-out itself; this is for one that hangs. */
		if (waited > a->timeout + 20000000000LL) {
			progress_end(&p);
			return error_set(err, -ETIMEDOUT,
					 "the process of \"%s\" does not end; kill it", name);
		}
	}
	progress_end(&p);
	return 0;
}

int cli_stop(int argc, char **argv)
{
	struct stop_args a = { .timeout = 30LL * 1000000000 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_stop_cmd, argc, argv, &a, &rest, &status))
		return status;
	status = EXIT_FINE;
	for (unsigned i = 0; i < rest.nargs; i++) {
		if (stop_one(rest.args[i], &a, &err) < 0)
			status = cli_fail(&err);
	}
	opts_free(&cli_stop_cmd, &a, &rest);
	return status;
}

/* ---- start ---- */

const struct opts_cmd cli_start_cmd = {
	.name = "viv start",
	.usage = "NAME",
	.summary = "start a machine that was stopped, in the background",
	.opts = no_opts,
	.min_args = 1,
	.max_args = 1,
};

static int start_one(const char *name, struct error *err)
{
	char engine[256], reason[256];
	struct vmconfig c;
	struct spawned s;
	_cleanup_close_ int lock = vmlock_take(name, err);
	int r = vmconfig_init(&c, lock < 0 ? NULL : err);

	if (lock < 0)
		r = lock == -EBUSY ? error_set(err, lock, "machine \"%s\" is running already", name)
				   : lock;
	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0) {
		r = spawn_machine(&s, &c, lock, NULL, false, err);
		if (r == 0)
			r = spawned_wait_ready(&s, engine, reason, err);
		spawned_free(&s);
	}
	if (r == 0)
		cli_note("engine %s: %s", engine, reason);
	vmconfig_free(&c);
	return r;
}

int cli_start(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	int status;
	char dummy;

	if (!cli_parse(&cli_start_cmd, argc, argv, &dummy, &rest, &status))
		return status;
	status = start_one(rest.args[0], &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_start_cmd, &dummy, &rest);
	return status;
}

/* ---- rm ---- */

#define RM_WAIT_NS 10000000000LL

struct rm_args {
	bool force;
};
static const struct opt rm_opts[] = {
	OPT_FLAG_L(struct rm_args, force, "force", 'f', "stop it first if it is running"),
	OPT_END,
};
const struct opts_cmd cli_rm_cmd = {
	.name = "viv rm",
	.usage = "NAME...",
	.summary = "remove a machine with its files",
	.opts = rm_opts,
	.min_args = 1,
	.max_args = 1024,
};

/* The place that a copy has in a lab that is up is another's from now on. */
static void leave_lab(const char *name)
{
	json_t *reply = NULL;
	struct vmconfig c;
	struct error err;

	if (vmconfig_init(&c, &err) == 0 && vmconfig_load(&c, name, &err) == 0 && c.origin &&
	    lab_request(identity_lab(c.origin),
			json_pack("{s:s, s:s}", "cmd", "forget", "machine", name), &reply, &err) == 0)
		json_decref(reply);
	vmconfig_free(&c);
}

static int rm_one(const char *name, bool force, struct error *err)
{
	for (bool was_stopped = false;; was_stopped = true) {
		_cleanup_close_ int lock = vmlock_take(name, err);

		if (lock >= 0) {
			leave_lab(name);
			return cli_remove_machine(name, err);
		}
		if (lock == -ENOENT && was_stopped)
			return 0; /* one that is thrown away at its end */
		if (lock != -EBUSY)
			return lock;
		if (!force)
			return error_set(err, -EBUSY, "machine \"%s\" is running; viv stop %s first, or use --force",
					 name, name);
		/* When it has ended, somebody else may start it once more. */
		int r = stop_one(name, &(struct stop_args){ .force = true }, err);

		/* One that ends by itself has its lock for a moment longer than it answers. */
		if (r < 0 && !wait_unlocked(name, RM_WAIT_NS))
			return r;
	}
}

int cli_rm(int argc, char **argv)
{
	struct rm_args a = { false };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_rm_cmd, argc, argv, &a, &rest, &status))
		return status;
	status = EXIT_FINE;
	for (unsigned i = 0; i < rest.nargs; i++) {
		if (rm_one(rest.args[i], a.force, &err) < 0)
			status = cli_fail(&err);
	}
	opts_free(&cli_rm_cmd, &a, &rest);
	return status;
}
