/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

// clang-format off
const struct verb cli_verbs[] = {
	{ "run",     "make a machine and run it",                         cli_run },
	{ "start",   "start a machine that was stopped",                  cli_start },
	{ "stop",    "switch a machine off",                              cli_stop },
	{ "pause",   "freeze a running machine",                          cli_pause },
	{ "resume",  "go on with a paused machine",                       cli_resume },
	{ "reset",   "press a machine's reset button",                    cli_reset },
	{ "rm",      "remove a machine with its files",                   cli_rm },
	{ "list",    "show all machines",                                 cli_list },
	{ "info",    "show everything about a machine",                   cli_info },
	{ "console", "connect this terminal to a machine's console",      cli_console },
	{ "exec",    "run a command inside a machine",                    cli_exec },
	{ "snapshot", "take, list and go back to snapshots of a machine", cli_snapshot },
	{ "fork",    "make running copies of a running machine",          cli_fork },
	{ "bench",   "show what the engine does while a command runs",    cli_bench },
	{ "image",   "list, build and remove images",                     cli_image },
	{ "up",      "start a lab: its network and all its machines",      cli_up },
	{ "down",    "end a lab",                                          cli_down },
	{ "plan",    "show who can reach whom in a lab",                   cli_plan },
	{ "net",     "show and change what a lab's network lets pass",     cli_net },
	{ "quarantine", "cut a machine of a lab off, at once",             cli_quarantine },
	{ "doctor",  "show what this host offers and what is missing",    cli_doctor },
	{ "version", "show the version",                                  cli_version },
	{ "vm",      NULL,                                                cli_vm },
	{ NULL, NULL, NULL },
};
// clang-format on

static void print_help(FILE *out)
{
	fprintf(out, "usage: viv VERB [OPTIONS] ...\n\n"
		     "Virtual machines on any x86-64 Linux host, with or without hardware "
		     "virtualization.\n\n");
	for (const struct verb *v = cli_verbs; v->name; v++) {
		if (v->summary)
			fprintf(out, "  %-10s %s\n", v->name, v->summary);
	}
	fprintf(out, "\nviv help VERB tells more about one.\n");
}

static const struct verb *find_verb(const char *name)
{
	for (const struct verb *v = cli_verbs; v->name; v++) {
		if (strcmp(v->name, name) == 0)
			return v;
	}
	return NULL;
}

static int unknown_verb(const char *name)
{
	const char *names[64];
	size_t n = 0;

	for (const struct verb *v = cli_verbs; v->name && n < ARRAY_SIZE(names) - 1; v++) {
		if (v->summary)
			names[n++] = v->name;
	}
	names[n] = NULL;
	const char *meant = opts_suggest(name, names);

	if (meant)
		cli_note("there is no verb \"%s\"; did you mean \"%s\"?", name, meant);
	else
		cli_note("there is no verb \"%s\"; viv help lists them", name);
	return EXIT_USAGE;
}

static int help(int argc, char **argv)
{
	static char help_option[] = "--help";

	if (argc < 2) {
		print_help(stdout);
		return EXIT_FINE;
	}
	const struct verb *v = find_verb(argv[1]);

	if (!v)
		return unknown_verb(argv[1]);
	return v->run(2, (char *[]){ argv[1], help_option, NULL });
}

int cli_main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2) {
		print_help(stderr);
		return EXIT_USAGE;
	}
	const char *name = argv[1];

	if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
		return help(argc - 1, argv + 1);
	if (strcmp(name, "--version") == 0)
		name = "version";
	const struct verb *v = find_verb(name);

	return v ? v->run(argc - 1, argv + 1) : unknown_verb(name);
}
