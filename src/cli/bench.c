/* SPDX-License-Identifier: Apache-2.0 */
/* `viv bench`: what the engine of a machine counts while a command runs in it, or for a time. */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/counters.h"
#include "ctl/client.h"
#include "ctl/paths.h"

struct args {
	bool json;
	int64_t time;
};
static const struct opt bench_opts[] = {
	OPT_DURATION(struct args, time, "time", "TIME",
		     "without a command: for how long (default 5s)", 1000000, 86400LL * 1000000000),
	OPT_FLAG(struct args, json, "json", "print JSON; the command's output goes to standard error"),
	OPT_END,
};
const struct opts_cmd cli_bench_cmd = {
	.name = "viv bench",
	.usage = "NAME [-- CMD...]",
	.summary = "show what a machine's engine counts while a command runs in it, or for a time",
	.details = "The exit status is the command's.  docs/design/counters.md tells what each "
		   "counter means.\n"
		   "To compare with native speed and with QEMU: make bench.",
	.opts = bench_opts,
	.min_args = 1,
	.max_args = 1,
	.takes_command = true,
};

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static json_t *counters_now(const char *name, struct error *err)
{
	json_t *reply = NULL;

	return client_request(name, json_pack("{s:s}", "cmd", "info"), CLIENT_TIMEOUT_MS, &reply, err) < 0
		       ? NULL
		       : reply;
}

/* The command, or the time.  Its exit status, or -errno with @err set. */
static int pass_time(const char *name, char **command, const struct args *a, struct error *err)
{
	const struct timespec ts = { a->time / 1000000000, a->time % 1000000000 };
	int out_fd = a->json ? STDERR_FILENO : STDOUT_FILENO;
	json_t *reply = NULL, *request;

	if (!command) {
		nanosleep(&ts, NULL);
		return EXIT_FINE;
	}
	request = cli_exec_request(command, false, err);
	int r = request ? client_request(name, request, -1, &reply, err) : -ENOMEM;

	if (r == 0)
		r = cli_decode(reply, "out-data", out_fd, err);
	if (r == 0)
		r = cli_decode(reply, "err-data", STDERR_FILENO, err);
	if (r == 0)
		r = cli_command_status(reply);
	json_decref(reply);
	return r;
}

static int report(json_t *before, json_t *after, double seconds, int status, bool is_json)
{
	struct error err;
	json_t *since = counters_since(before, after);

	if (!since) {
		error_set(&err, -ENOMEM, "no memory for the counters");
		return cli_fail(&err);
	}
	if (is_json) {
		(void)json_object_set_new(since, "seconds", json_real(seconds));
		(void)json_object_set_new(since, "status", json_integer(status));
		return cli_print_json(since) ? EXIT_FAILED : status;
	}
	printf("%.3f s\n", seconds);
	counters_print(since, stdout);
	json_decref(since);
	return status;
}

static int bench(const char *name, char **command, const struct args *a, struct error *err)
{
	json_t *before = paths_check_name("a machine", name, err) == 0 ? counters_now(name, err) : NULL;
	int64_t start = now_ns();
	int status = before ? pass_time(name, command, a, err) : -1;
	double seconds = (double)(now_ns() - start) / 1e9;
	json_t *after = status >= 0 ? counters_now(name, err) : NULL;

	status = after ? report(before, after, seconds, status, a->json) : cli_fail(err);
	json_decref(before);
	json_decref(after);
	return status;
}

int cli_bench(int argc, char **argv)
{
	struct args a = { .time = 5LL * 1000000000 };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_bench_cmd, argc, argv, &a, &rest, &status))
		return status;
	status = bench(rest.args[0], rest.ncommand ? rest.command : NULL, &a, &err);
	opts_free(&cli_bench_cmd, &a, &rest);
	return status;
}
