/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "share/sharer.h"

// clang-format off
const struct verb cli_verbs[] = {
	{ "run",        "make a machine and run it",                               cli_run,       &cli_run_cmd },
	{ "start",      "start a machine that was stopped",                        cli_start,     &cli_start_cmd },
	{ "stop",       "switch a machine off",                                    cli_stop,      &cli_stop_cmd },
	{ "pause",      "freeze a running machine",                                cli_pause,     &cli_pause_cmd },
	{ "resume",     "go on with a paused machine",                             cli_resume,    &cli_resume_cmd },
	{ "reset",      "press a machine's reset button",                          cli_reset,     &cli_reset_cmd },
	{ "rm",         "remove a machine with its files",                         cli_rm,        &cli_rm_cmd },
	{ "list",       "show all machines",                                       cli_list,      &cli_list_cmd },
	{ "info",       "show everything about a machine",                         cli_info,      &cli_info_cmd },
	{ "logs",       "show what a machine's processes logged",                  cli_logs,      &cli_logs_cmd },
	{ "set",        "change what a machine is made of",                        cli_set,       &cli_set_cmd },
	{ "rename",     "give a machine another name",                             cli_rename,    &cli_rename_cmd },
	{ "console",    "connect this terminal to a machine's console",            cli_console,   &cli_console_cmd },
	{ "exec",       "run a command inside a machine",                          cli_exec,      &cli_exec_cmd },
	{ "cp",         "copy files to and from machines",                         cli_cp,        &cli_cp_cmd },
	{ "ssh",        "log in to a machine by SSH",                              cli_ssh,       &cli_ssh_cmd },
	{ "tunnel",     "connect input and output to a TCP port of a machine",     cli_tunnel,    &cli_tunnel_cmd },
	{ "snapshot",   "take, list and go back to snapshots of a machine",        cli_snapshot,  &cli_snapshot_cmd },
	{ "fork",       "make running copies of a running machine",                cli_fork,      &cli_fork_cmd },
	{ "migrate",    "move a running machine to another host",                  cli_migrate,   &cli_migrate_cmd },
	{ "receive",    "wait for machines that are moved to this host",           cli_receive,   &cli_receive_cmd },
	{ "upgrade",    "have running machines go on in another build of viv",     cli_upgrade,   &cli_upgrade_cmd },
	{ "evacuate",   "move all running machines to another host",               cli_evacuate,  &cli_evacuate_cmd },
	{ "bench",      "show what the engine does while a command runs",          cli_bench,     &cli_bench_cmd },
	{ "service",    "print a systemd unit that keeps a machine running",       cli_service,   &cli_service_cmd },
	{ "events",     "show what happens to a machine, as it happens",           cli_events,    &cli_events_cmd },
	{ "api",        "describe the control protocol",                           cli_api,       &cli_api_cmd },
	{ "metrics",    "print the counters of running machines for Prometheus",   cli_metrics,   &cli_metrics_cmd },
	{ "image",      "list, build and remove images",                           cli_image,     &cli_image_cmd },
	{ "up",         "start a lab: its network and all its machines",           cli_up,        &cli_up_cmd },
	{ "down",       "end a lab",                                               cli_down,      &cli_down_cmd },
	{ "plan",       "show who can reach whom in a lab",                        cli_plan,      &cli_plan_cmd },
	{ "net",        "show and change what a lab's network lets pass",          cli_net,       &cli_net_cmd },
	{ "quarantine", "cut a machine of a lab off, at once",                     cli_quarantine, &cli_quarantine_cmd },
	{ "doctor",     "show what this host offers and what is missing",          cli_doctor,    &cli_doctor_cmd },
	{ "version",    "show the version",                                        cli_version,   &cli_version_cmd },
	{ "completion", "print the script that completes words in a shell",        cli_completion, &cli_completion_cmd },
	{ "man",        NULL,                                                      cli_man,       NULL },
	{ "share",      NULL,                                                      sharer_cli,    NULL },
	{ "vm",         NULL,                                                      cli_vm,        NULL },
	{ NULL, NULL, NULL, NULL },
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
