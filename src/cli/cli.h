/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verbs of `viv`, one row each in verbs.c, one file each.
 *
 * Conventions: exit status 0 fine, 1 the operation failed, 2 bad usage; `viv run -- CMD` and `viv
 * exec` give the command's own.  Errors are one sentence on stderr.  --json prints one JSON value.
 */
#ifndef VIV_CLI_CLI_H
#define VIV_CLI_CLI_H

#include <jansson.h>

#include "base/error.h"
#include "base/opts.h"

enum { EXIT_FINE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct verb {
	const char *name;
	const char *summary;		   /* NULL: internal, not listed */
	int (*run)(int argc, char **argv); /* argv[0] is the verb; returns the exit status */
	const struct opts_cmd *cmd;	   /* its options and help; NULL: internal */
};
extern const struct verb cli_verbs[]; /* ends with name NULL */

int cli_main(int argc, char **argv);

// clang-format off
int cli_run(int argc, char **argv);
/** cli_run_in_lab() - the same as a part of lab @lab, which ends it (viv down). */
int cli_run_in_lab(const char *lab, int argc, char **argv);
int cli_start(int argc, char **argv);
int cli_stop(int argc, char **argv);
int cli_pause(int argc, char **argv);
int cli_resume(int argc, char **argv);
int cli_reset(int argc, char **argv);
int cli_rm(int argc, char **argv);
int cli_list(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_logs(int argc, char **argv);
int cli_service(int argc, char **argv);
int cli_cp(int argc, char **argv);
int cli_ssh(int argc, char **argv);
int cli_tunnel(int argc, char **argv);
int cli_events(int argc, char **argv);
int cli_api(int argc, char **argv);
int cli_set(int argc, char **argv);
int cli_rename(int argc, char **argv);
int cli_console(int argc, char **argv);
int cli_exec(int argc, char **argv);
int cli_fork(int argc, char **argv);
int cli_snapshot(int argc, char **argv);
int cli_bench(int argc, char **argv);
int cli_image(int argc, char **argv);
int cli_doctor(int argc, char **argv);
int cli_up(int argc, char **argv);
int cli_down(int argc, char **argv);
int cli_quarantine(int argc, char **argv);
int cli_plan(int argc, char **argv);
int cli_version(int argc, char **argv);
int cli_vm(int argc, char **argv);
int cli_net(int argc, char **argv);
int cli_completion(int argc, char **argv);
int cli_metrics(int argc, char **argv);
int cli_migrate(int argc, char **argv);
int cli_receive(int argc, char **argv);
int cli_upgrade(int argc, char **argv);
int cli_evacuate(int argc, char **argv);
int cli_man(int argc, char **argv);

/* What they take: for help, completion and manual pages. */
extern const struct opts_cmd cli_run_cmd, cli_migrate_cmd, cli_receive_cmd, cli_upgrade_cmd, cli_evacuate_cmd, cli_start_cmd, cli_stop_cmd, cli_pause_cmd,
	cli_resume_cmd, cli_reset_cmd, cli_rm_cmd, cli_list_cmd, cli_info_cmd, cli_console_cmd,
	cli_exec_cmd, cli_fork_cmd, cli_snapshot_cmd, cli_bench_cmd, cli_image_cmd, cli_doctor_cmd,
	cli_up_cmd, cli_down_cmd, cli_quarantine_cmd, cli_plan_cmd, cli_version_cmd, cli_net_cmd,
	cli_completion_cmd, cli_metrics_cmd, cli_logs_cmd, cli_service_cmd, cli_cp_cmd, cli_ssh_cmd, cli_tunnel_cmd, cli_events_cmd, cli_api_cmd, cli_set_cmd, cli_rename_cmd, cli_capture_cmd /* of cli_net_cmd */;
// clang-format on

/**
 * cli_parse() - options and --help of a verb.
 * Returns true to go on (then opts_free), or false with *@status to be returned.
 */
bool cli_parse(const struct opts_cmd *cmd, int argc, char **argv, void *obj, struct opts_rest *rest,
	       int *status);

/** cli_fail() - print the sentence; returns EXIT_FAILED. */
int cli_fail(const struct error *err);
/** cli_usage() - print the sentence and where help is; returns EXIT_USAGE. */
int cli_usage(const struct opts_cmd *cmd, const struct error *err);
/** cli_note() - a line for the person, on stderr. */
void cli_note(const char *fmt, ...) _printf_(1, 2);
/** cli_print_json() - on stdout, with a newline; takes @json.  Returns an exit status. */
int cli_print_json(json_t *json);

/** cli_decode() - base64 string @key of @obj to @fd; absent is fine. */
int cli_decode(json_t *obj, const char *key, int fd, struct error *err);
/** cli_command_status() - the exit status a finished guest-exec stands for. */
int cli_command_status(json_t *result);
/** cli_exec_request() - the control request for @argv; @with_input: stdin to its end. */
json_t *cli_exec_request(char **argv, bool with_input, struct error *err);

/** run_check_engine() - 0, or -EINVAL: no engine has this name (run.c). */
int run_check_engine(const char *name, struct error *err);
/** run_check_net() - 0, or -EINVAL: --net takes no such thing (run.c). */
int run_check_net(const char *net, struct error *err);

/** cli_guest_run() - run @argv in the guest over @fd; *@status as of cli_command_status(), *@out, allocated, what it printed (NULL: not wanted). */
int cli_guest_run(int fd, char **argv, int *status, char **out, struct error *err);

/** cli_is_running() - does the machine have a process?  It holds the machine's lock file as long as it lives. */
bool cli_is_running(const char *name);

/* ---- the catalogue (collect.c) ---- */

/** cli_remove_machine() - its directories; the caller holds its lock (ctl/vmlock.h). */
int cli_remove_machine(const char *name, struct error *err);
/**
 * cli_collect() - what commands and machines that were killed left behind: directories that were never completed or half removed,
 * machines that are thrown away at their end, sockets of machines that do not run.
 */
void cli_collect(void);

/* ---- progress on a terminal ---- */
struct progress {
	const char *what;
	int64_t start_ms, shown_ms;
	bool is_shown;
};
void progress_start(struct progress *p, const char *what);
/** progress_tick() - show it once it takes longer than a second; @permille -1: unknown. */
void progress_tick(struct progress *p, int permille);
void progress_end(struct progress *p);

#endif
