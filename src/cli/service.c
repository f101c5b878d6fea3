/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv service`: a machine as a service of the user's systemd.
 *
 * The unit's main process is `viv service NAME --run`: it starts the machine, says READY=1 once it runs, WATCHDOG=1 as long as
 * the machine answers on its control socket, and STOPPING=1 when it is told to end (SIGTERM); then it presses the power button
 * and waits. sd_notify(3) is a datagram to the socket that NOTIFY_SOCKET names; nothing of systemd is linked.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "cli/cli.h"
#include "cli/spawn.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/vmlock.h"

#define PING_MS		10000 /* without a watchdog: how often the machine is looked at */
#define STATUS_MS	5000
#define WATCHDOG_S	60
#define STOP_DEFAULT_NS (60LL * 1000000000)
#define STOP_EXTRA_S	15 /* for the process to end, after the guest had its time */

struct args {
	bool install, run;
	int64_t timeout;
};
static const struct opt service_opts[] = {
	OPT_FLAG(struct args, install, "install",
		 "write the unit to the user's systemd directory instead of printing it"),
	OPT_DURATION(struct args, timeout, "timeout", "TIME",
		     "how long the guest may take to switch itself off (default 60s)", 1000000000,
		     3600LL * 1000000000),
	OPT_FLAG(struct args, run, "run",
		 "what the unit does: start the machine and stay until it has ended"),
	OPT_END,
};
const struct opts_cmd cli_service_cmd = {
	.name = "viv service",
	.usage = "NAME",
	.summary = "print a systemd unit that keeps a machine running",
	.details = "The unit is for systemctl --user. It counts as started when the machine runs, "
		   "is ended when the machine does not\n"
		   "answer any more, and stops the machine in order: by its power button. After "
		   "--install:\n\n"
		   "  systemctl --user daemon-reload\n"
		   "  systemctl --user enable --now viv-NAME.service\n\n"
		   "loginctl enable-linger keeps it running while the user is logged out.",
	.opts = service_opts,
	.min_args = 1,
	.max_args = 1,
};

/* ---- the unit ---- */

/* As one word of ExecStart=: systemd.service(5), "Command lines". */
static void put_word(FILE *out, const char *text)
{
	fputc('"', out);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			fputc('\\', out);
		if (*text == '%' || *text == '$')
			fputc(*text, out);
		fputc(*text, out);
	}
	fputc('"', out);
}

static char *unit_text(const char *name, const struct args *a, struct error *err)
{
	static const char *const passed[] = { "VIVARIUM_HOME", "XDG_DATA_HOME" };
	char exe[4096], *text = NULL;
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	long long stop_s = (a->timeout + 999999999) / 1000000000;
	size_t len;
	FILE *out = open_memstream(&text, &len);

	if (n < 0 || !out) {
		error_set(err, -errno, "cannot make a unit: %s", strerror(errno));
		if (out)
			fclose(out);
		free(text);
		return NULL;
	}
	exe[n] = 0;
	fprintf(out, "# Made by viv service.\n[Unit]\nDescription=Virtual machine %s\n\n[Service]\nType=notify\nNotifyAccess=main\n",
		name);
	for (size_t i = 0; i < ARRAY_SIZE(passed); i++) {
		const char *value = getenv(passed[i]);
		_cleanup_free_ char *real = value && value[0] ? realpath(value, NULL) : NULL;
		_cleanup_free_ char *full = real ? paths_format(err, "%s=%s", passed[i], real) : NULL;

		if (full) {
			fputs("Environment=", out);
			put_word(out, full);
			fputc('\n', out);
		}
	}
	fputs("ExecStart=", out);
	put_word(out, exe);
	fprintf(out, " service --run --timeout %llds %s\n", stop_s, name);
	/* The machine's process is left to the main one, which has it end in order. */
	fprintf(out, "KillMode=mixed\nTimeoutStopSec=%lld\nWatchdogSec=%d\nRestart=on-failure\n\n[Install]\nWantedBy=default.target\n",
		stop_s + STOP_EXTRA_S, WATCHDOG_S);
	if (fclose(out) == EOF) {
		error_set(err, -ENOMEM, "no memory for a unit");
		free(text);
		return NULL;
	}
	return text;
}

static int install(const char *name, const char *text, struct error *err)
{
	const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
	_cleanup_free_ char *dir =
		config && config[0] == '/' ? paths_format(err, "%s/systemd/user", config)
		: home && home[0] == '/'   ? paths_format(err, "%s/.config/systemd/user", home)
					   : NULL;
	_cleanup_free_ char *path = dir ? paths_format(err, "%s/viv-%s.service", dir, name) : NULL;

	if (!path)
		return error_set(err, -ENOENT,
				 "neither HOME nor XDG_CONFIG_HOME says where units are kept");
	int r = paths_make(dir, err);

	if (r == 0)
		r = paths_write_file(path, text, strlen(text), err);
	if (r == 0)
		cli_note("%s is written; systemctl --user daemon-reload, then enable --now "
			 "viv-%s.service",
			 path, name);
	return r;
}

/* ---- its main process ---- */

/* sd_notify(3).  Nobody asked for it: nothing. */
static void notify(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	size_t len = path ? strlen(path) : 0;

	if (len < 2 || len >= sizeof(sa.sun_path) || !strchr("/@", path[0]))
		return;
	memcpy(sa.sun_path, path, len);
	if (path[0] == '@')
		sa.sun_path[0] = 0; /* the abstract namespace */
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&sa,
			     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
		cli_note("the service manager cannot be told \"%s\": %s", state, strerror(errno));
}

/* Half of what the manager allows. */
static int ping_ms(void)
{
	const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
	uint64_t us, whom;

	if (!usec || opts_parse_uint(usec, &us) < 0 || us == 0 ||
	    (pid && (opts_parse_uint(pid, &whom) < 0 || whom != (uint64_t)getpid())))
		return PING_MS;
	return (int)MAX(MIN(us / 2000, (uint64_t)INT32_MAX), (uint64_t)1);
}

static bool answers(const char *name)
{
	json_t *reply = NULL;
	bool does = client_request(name, json_pack("{s:s}", "cmd", "status"), STATUS_MS, &reply,
				   NULL) == 0;

	json_decref(reply);
	return does;
}

static void stop(const char *name, const struct args *a)
{
	struct error err;
	json_t *reply = NULL;

	notify("STOPPING=1");
	if (client_request(name,
			   json_pack("{s:s, s:I}", "cmd", "stop", "timeout_ms",
				     (json_int_t)(a->timeout / 1000000)),
			   CLIENT_TIMEOUT_MS, &reply, &err) < 0)
		cli_note("%s", err.text);
	json_decref(reply);
}

/* Until the machine has told its end. */
static void serve(const char *name, struct spawned *s, int signal_fd, const struct args *a)
{
	struct signalfd_siginfo si;
	bool is_stopping = false;
	int every = ping_ms();

	for (;;) {
		struct pollfd p[2] = { { .fd = s->status_fd, .events = POLLIN },
				       { .fd = signal_fd, .events = POLLIN } };
		int n = poll(p, 2, every);

		if (n < 0 && errno != EINTR)
			return;
		if (n > 0 && p[0].revents && !spawned_read(s))
			return;
		if (n > 0 && p[1].revents && read(signal_fd, &si, sizeof(si)) == sizeof(si) &&
		    !is_stopping) {
			is_stopping = true;
			stop(name, a);
		}
		if (answers(name))
			notify("WATCHDOG=1");
	}
}

static int start(const char *name, struct spawned *s, struct error *err)
{
	char engine[256], reason[256];
	struct vmconfig c;
	_cleanup_close_ int lock = vmlock_take(name, err);
	int r = vmconfig_init(&c, lock < 0 ? NULL : err);

	*s = (struct spawned){ .pid = -1, .status_fd = -1, .console_fd = -1, .lifeline_fd = -1 };
	if (lock < 0)
		r = lock;
	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0)
		r = spawn_machine(s, &c, lock, NULL, false, err);
	if (r == 0)
		r = spawned_wait_ready(s, engine, reason, err);
	vmconfig_free(&c);
	return r;
}

static int run(const char *name, const struct args *a, struct error *err)
{
	struct spawned s;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	_cleanup_close_ int signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	int r = signal_fd < 0 ? error_set(err, -errno, "cannot watch signals: %s", strerror(errno))
			      : start(name, &s, err);

	if (r < 0) {
		if (signal_fd >= 0)
			spawned_free(&s);
		return cli_fail(err);
	}
	notify("READY=1\nSTATUS=the machine runs");
	serve(name, &s, signal_fd, a);
	int status = spawned_finish(&s, err);

	spawned_free(&s);
	cli_note("%s", err->text);
	return status;
}

int cli_service(int argc, char **argv)
{
	struct args a = { .timeout = STOP_DEFAULT_NS };
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_service_cmd, argc, argv, &a, &rest, &status))
		return status;
	const char *name = rest.args[0];
	struct vmconfig c;
	int r = paths_check_name("a machine", name, &err);

	if (r == 0)
		r = vmconfig_init(&c, &err);
	if (r == 0) {
		r = vmconfig_load(&c, name, &err);
		vmconfig_free(&c);
	}
	if (r < 0) {
		status = cli_fail(&err);
	} else if (a.run) {
		status = run(name, &a, &err);
	} else {
		_cleanup_free_ char *text = unit_text(name, &a, &err);

		r = text ? 0 : -ENOMEM;
		if (r == 0 && a.install)
			r = install(name, text, &err);
		else if (r == 0 && fputs(text, stdout) == EOF)
			r = error_set(&err, -EIO, "cannot write the output");
		status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	}
	opts_free(&cli_service_cmd, &a, &rest);
	return status;
}
