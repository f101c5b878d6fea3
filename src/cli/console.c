/* SPDX-License-Identifier: Apache-2.0 */
/* `viv console`: this terminal becomes one more client of a machine's console. */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/terminal.h"
#include "ctl/client.h"

struct args {
	bool no_backlog;
};
static const struct opt console_opts[] = {
	OPT_FLAG(struct args, no_backlog, "quiet", "do not begin with what was last written"),
	OPT_END,
};
const struct opts_cmd cli_console_cmd = {
	.name = "viv console",
	.usage = "NAME",
	.summary = "connect this terminal to a machine's console; Ctrl-] leaves it",
	.opts = console_opts,
	.min_args = 1,
	.max_args = 1,
};

/* Best effort: machines without a window size ignore it. */
static void send_size(void *arg, unsigned cols, unsigned rows)
{
	json_t *reply = NULL;

	if (client_request(arg,
			   json_pack("{s:s, s:i, s:i}", "cmd", "resize", "cols", (int)cols, "rows",
				     (int)rows),
			   1000, &reply, NULL) == 0)
		json_decref(reply);
}

static int attach(const char *name, bool backlog, struct error *err)
{
	json_t *reply = NULL;
	int fd = client_connect(name, err);

	if (fd < 0)
		return fd;
	int r = client_call(fd, json_pack("{s:s, s:b}", "cmd", "console", "backlog", backlog),
			    CLIENT_TIMEOUT_MS, &reply, err);

	json_decref(reply);
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

static int console(const char *name, const struct args *a, struct error *err)
{
	_cleanup_close_ int fd = attach(name, !a->no_backlog, err);
	struct bridge b = {
		.console_fd = fd, .also_fd = -1, .on_resize = send_size, .arg = (void *)(uintptr_t)name
	};
	int sig = 0, r;

	if (fd < 0)
		return cli_fail(err);
	if (isatty(STDIN_FILENO))
		cli_note("connected to %s; Ctrl-] leaves", name);
	r = terminal_raw(err);
	if (r == 0)
		r = terminal_bridge(&b, &sig, err);
	terminal_restore();
	if (r < 0)
		return cli_fail(err);
	if (r == BRIDGE_CLOSED)
		cli_note("the machine ended");
	else if (r == BRIDGE_ESCAPE)
		fprintf(stderr, "\n");
	return r == BRIDGE_SIGNAL ? 128 + sig : EXIT_FINE;
}

int cli_console(int argc, char **argv)
{
	struct args a = { false };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_console_cmd, argc, argv, &a, &rest, &status))
		return status;
	status = console(rest.args[0], &a, &err);
	opts_free(&cli_console_cmd, &a, &rest);
	return status;
}
