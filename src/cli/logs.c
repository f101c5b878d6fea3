/* SPDX-License-Identifier: Apache-2.0 */
/* `viv logs`: what a machine's processes had to say. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "ctl/paths.h"
#include "ctl/vmlog.h"

#define POLL_NS 200000000L

struct args {
	bool follow, json;
	int64_t since;
	int level;
	const char *area;
};

static const char *const levels[] = { "error", "warning", "info", "debug", "trace", NULL };

static const struct opt logs_opts[] = {
	OPT_FLAG_L(struct args, follow, "follow", 'f',
		   "go on with what comes, through restarts, until the machine is removed"),
	OPT_DURATION(struct args, since, "since", "TIME",
		     "only lines that are not older, 5m for instance", 1, 0),
	OPT_CHOICE(struct args, level, "level", "error|warning|info|debug|trace",
		   "only lines of this level and above", levels),
	OPT_STRING(struct args, area, "area", "WORD", "only lines about this: net, block, vm, for instance"),
	OPT_FLAG(struct args, json, "json", "print a JSON object a line"),
	OPT_END,
};
const struct opts_cmd cli_logs_cmd = {
	.name = "viv logs",
	.usage = "NAME",
	.summary = "show what a machine's processes logged",
	.details = "The log is in the machine's directory, goes on through its starts, and is "
		   "bounded: of more than 2 MiB\n"
		   "the oldest lines are gone. Lines that a guest can cause come at most ten a "
		   "second each, then it is said\n"
		   "how many were left out. viv set NAME --log-level says from which level on "
		   "lines are written, also while\n"
		   "the machine runs.",
	.opts = logs_opts,
	.min_args = 1,
	.max_args = 1,
};

struct view {
	const struct args *a;
	int64_t from_us;
};

static int64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static void print_text(const struct vmlog_line *l)
{
	time_t seconds = l->time_us / 1000000;
	struct tm tm;
	char when[32] = "-";

	if (l->time_us && localtime_r(&seconds, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	printf("%s.%03d %-7s %s: %s\n", when, (int)(l->time_us / 1000 % 1000),
	       log_level_name(l->level), l->area, l->text);
}

static void print_json(const struct vmlog_line *l)
{
	time_t seconds = l->time_us / 1000000;
	struct tm tm;
	char day[32] = "", when[64];
	json_t *text = json_string(l->text);

	if (gmtime_r(&seconds, &tm))
		strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(when, sizeof(when), "%s.%06dZ", day, (int)(l->time_us % 1000000));
	json_t *obj = json_pack("{s:s, s:s, s:s, s:o}", "time", when, "level", log_level_name(l->level),
				"area", l->area, "text", text ? text : json_string("(not UTF-8)"));

	(void)json_dumpf(obj, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(obj);
}

static int show(void *arg, const struct vmlog_line *l)
{
	const struct view *v = arg;

	if ((int)l->level > v->a->level || l->time_us < v->from_us ||
	    (v->a->area && strcmp(v->a->area, l->area) != 0))
		return 0;
	if (v->a->json)
		print_json(l);
	else
		print_text(l);
	return 0;
}

/* 0, or -errno; a reader that went away is no failure. */
static int logs(const char *name, const struct args *a, struct error *err)
{
	const struct timespec pause = { .tv_nsec = POLL_NS };
	struct view v = { .a = a, .from_us = a->since ? now_us() - a->since / 1000 : 0 };
	struct vmlog_reader reader;
	int r = vmlog_reader_init(&reader, name, err);
	_cleanup_free_ char *dir = r == 0 ? paths_vm(name, NULL, err) : NULL;

	if (r < 0)
		return r;
	for (;;) {
		bool is_there = dir && access(dir, F_OK) == 0;

		r = vmlog_read(&reader, show, &v, err);
		if (r < 0 || fflush(stdout) == EOF || !a->follow || !is_there)
			break;
		nanosleep(&pause, NULL);
	}
	vmlog_reader_free(&reader);
	return r;
}

int cli_logs(int argc, char **argv)
{
	struct args a = { .level = LOG_TRACE };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_logs_cmd, argc, argv, &a, &rest, &status))
		return status;
	status = logs(rest.args[0], &a, &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_logs_cmd, &a, &rest);
	return status;
}
