/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "cli/cli.h"
#include "cli/spawn.h"
#include "ctl/handover.h"
#include "ctl/paths.h"
#include "ctl/snapcode.h"

#define LINE_MAX_BYTES 65536

/* Descriptors that go to the child, by its command line's option. */
struct pass {
	const char *option;
	int fd; /* -1: not passed */
};
#define MAX_PASS  5
#define MAX_ARGS  24
#define MAX_LINKS 17

struct child {
	const char *args[MAX_ARGS];
	unsigned nargs;
	char numbers[MAX_PASS][16];
	struct pass pass[MAX_PASS];
	unsigned npass;
	const int *links;
	unsigned nlinks;
	bool goes_on; /* without being started as a program: nobody else is in this process */
	char link_list[MAX_LINKS * 8];
};

static void add_arg(struct child *c, const char *arg)
{
	if (c->nargs < MAX_ARGS - 1)
		c->args[c->nargs++] = arg;
}

static void add_fd(struct child *c, const char *option, int fd)
{
	if (fd < 0)
		return;
	snprintf(c->numbers[c->npass], sizeof(c->numbers[0]), "%d", fd);
	add_arg(c, option);
	add_arg(c, c->numbers[c->npass]);
	c->pass[c->npass++] = (struct pass){ option, fd };
}

static void add_links(struct child *c, const char *option, const int *links, unsigned nlinks)
{
	size_t n = 0;

	for (unsigned i = 0; i < nlinks && i < MAX_LINKS; i++)
		n += (size_t)snprintf(c->link_list + n, sizeof(c->link_list) - n, "%s%d",
				      i ? "," : "", links[i]);
	c->links = links;
	c->nlinks = MIN(nlinks, (unsigned)MAX_LINKS);
	add_arg(c, option);
	add_arg(c, c->link_list);
}

/* In the child: a session of its own, no terminal, output to @log_fd. */
static void child_begin(int log_fd)
{
	sigset_t none;
	int null_fd = open("/dev/null", O_RDWR);

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_IGN);
	setsid();
	dup2(null_fd, STDIN_FILENO);
	dup2(log_fd >= 0 ? log_fd : null_fd, STDOUT_FILENO);
	dup2(log_fd >= 0 ? log_fd : null_fd, STDERR_FILENO);
}

/* A program of its own, with the passed descriptors. */
static void child_exec(const struct child *c)
{
	for (unsigned i = 0; i < c->npass; i++)
		fcntl(c->pass[i].fd, F_SETFD, 0);
	for (unsigned i = 0; i < c->nlinks; i++)
		fcntl(c->links[i], F_SETFD, 0);
	/* All others were opened with O_CLOEXEC, or are our caller's own to pass on. */
	execv("/proc/self/exe", (char **)(uintptr_t)c->args);
	dprintf(STDERR_FILENO, "viv: cannot start itself: %s\n", strerror(errno));
	_exit(127);
}

static bool is_passed(const struct child *c, int fd)
{
	for (unsigned i = 0; i < c->npass; i++)
		if (c->pass[i].fd == fd)
			return true;
	for (unsigned i = 0; i < c->nlinks; i++)
		if (c->links[i] == fd)
			return true;
	return false;
}

static void close_others(const struct child *c)
{
	int last = STDERR_FILENO;

	for (unsigned i = 0; i < c->npass; i++)
		last = MAX(last, c->pass[i].fd);
	for (unsigned i = 0; i < c->nlinks; i++)
		last = MAX(last, c->links[i]);
	for (int fd = STDERR_FILENO + 1; fd < last; fd++)
		if (!is_passed(c, fd))
			close(fd);
	close_range((unsigned)last + 1, ~0u, 0);
}

/* What ps(1) shows: the child's own arguments, as far as there is room where the command's were. */
static void show_args(const struct child *c)
{
	char text[1024], *at;
	unsigned long start, end;
	_cleanup_close_ int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;

	text[MAX(n, (ssize_t)0)] = 0;
	at = strrchr(text, ')'); /* the name, which is field 2; proc(5) */
	for (unsigned field = 2; at && field < 48; field++)
		at = strchr(at + 1, ' ');
	if (!at || sscanf(at, "%lu %lu", &start, &end) != 2 || end <= start)
		return;
	char *to = (char *)start; // NOLINT: an address that the kernel told
	size_t room = end - start;

	memset(to, 0, room);
	for (unsigned i = 0; i < c->nargs && room > 1; i++) {
		size_t len = MIN(strlen(c->args[i]) + 1, room);

		memcpy(to, c->args[i], len);
		to[len - 1] = 0;
		to += len;
		room -= len;
	}
}

/*
 * The same program goes on: reading it, and the libraries that it needs, once more takes longer than what a machine that goes on from a
 * snapshot has to do until it runs.
 */
static void child_go_on(struct child *c)
{
	/* Some of them lie where they are shown, in another order. */
	for (unsigned i = 0; i < c->nargs; i++) {
		c->args[i] = strdup(c->args[i]);
		if (!c->args[i])
			_exit(1);
	}
	for (int i = 1; i < NSIG; i++)
		if (i != SIGPIPE)
			signal(i, SIG_DFL);
	close_others(c);
	show_args(c);
	exit(cli_vm((int)c->nargs - 1, (char **)(uintptr_t)c->args + 1));
}

static int child_start(struct child *c, int log_fd, pid_t *pid, struct error *err)
{
	c->args[c->nargs] = NULL;
	fflush(NULL);
	*pid = fork();
	if (*pid < 0)
		return error_set(err, -errno, "cannot start a process: %s", strerror(errno));
	if (*pid == 0) {
		child_begin(log_fd);
		if (c->goes_on)
			child_go_on(c);
		else
			child_exec(c);
	}
	return 0;
}

static int make_pair(int type, int fds[2], struct error *err)
{
	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) < 0)
		return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* ---- the machine ---- */

static int open_log(const struct vmconfig *c, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(c->name, "vm.log", err);

	if (!path)
		return -ENOMEM;
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

	return fd >= 0 ? fd : error_set(err, -errno, "cannot write %s: %s", path, strerror(errno));
}

/* The key of the snapshot's code to who was started meanwhile; without one, why is said. */
static void give_key(int fd, const char *vm, const char *snapshot)
{
	uint8_t key[CODE_SET_KEY_BYTES];
	struct error err;

	if (snapcode_key(vm, snapshot, key, &err) < 0) {
		cli_note("translated code is neither loaded nor kept: %s", err.text);
		return;
	}
	/* It may have ended. */
	if (write(fd, key, sizeof(key)) != sizeof(key) && errno != EPIPE)
		cli_note("translated code is neither loaded nor kept: %s", strerror(errno));
	explicit_bzero(key, sizeof(key));
}

int spawn_machine(struct spawned *s, const struct vmconfig *c, int lock_fd,
		  const struct spawn_from *from, bool is_attached, struct error *err)
{
	struct child child = { 0 };
	int status[2] = { -1, -1 }, console[2] = { -1, -1 }, lifeline[2] = { -1, -1 };
	int log_fd = -1, key[2] = { -1, -1 }, r = 0;

	*s = (struct spawned){ .pid = -1, .status_fd = -1, .console_fd = -1, .lifeline_fd = -1 };
	log_fd = open_log(c, err);
	if (log_fd < 0)
		return log_fd;
	if (pipe2(status, O_CLOEXEC) < 0 || (is_attached && pipe2(lifeline, O_CLOEXEC) < 0))
		r = error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	if (r == 0 && is_attached)
		r = make_pair(SOCK_STREAM, console, err);
	if (r == 0 && from && from->snapshot && pipe2(key, O_CLOEXEC) < 0)
		r = error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	if (r == 0) {
		add_arg(&child, "viv");
		add_arg(&child, "vm");
		add_arg(&child, "--name");
		add_arg(&child, c->name);
		if (from && from->snapshot) {
			child.goes_on = true;
			add_arg(&child, "--from");
			add_arg(&child, from->snapshot);
		}
		if (from && from->is_prefault)
			add_arg(&child, "--prefault");
		if (from && from->skips_time)
			add_arg(&child, "--skip-time");
		add_fd(&child, "--lock-fd", lock_fd);
		if (from && from->nlinks)
			add_links(&child, "--incoming", from->links, from->nlinks);
		if (from && from->handover)
			add_links(&child, "--handover", from->handover, HANDOVER_FDS);
		add_fd(&child, "--status-fd", status[1]);
		add_fd(&child, "--console-fd", console[1]);
		add_fd(&child, "--lifeline-fd", lifeline[0]);
		add_fd(&child, "--code-key-fd", key[0]);
		r = child_start(&child, log_fd, &s->pid, err);
	}
	close_fd(&log_fd);
	close_fd(&key[0]);
	close_fd(&status[1]);
	close_fd(&console[1]);
	close_fd(&lifeline[0]);
	if (r == 0 && key[1] >= 0)
		give_key(key[1], c->name, from->snapshot);
	close_fd(&key[1]);
	if (r < 0) {
		close_fd(&status[0]);
		close_fd(&console[0]);
		close_fd(&lifeline[1]);
		return r;
	}
	s->status_fd = status[0];
	s->console_fd = console[0];
	s->lifeline_fd = lifeline[1];
	return 0;
}

/* ---- what it tells ---- */

/* The next whole line, or NULL; to be json_decref'ed. */
static json_t *take_line(struct spawned *s)
{
	uint8_t *nl = s->line.len ? memchr(s->line.data, '\n', s->line.len) : NULL;

	if (!nl)
		return NULL;
	size_t len = (size_t)(nl - s->line.data);
	json_t *json = json_loadb((char *)s->line.data, len, 0, NULL);

	s->line.len -= len + 1;
	memmove(s->line.data, nl + 1, s->line.len);
	return json ? json : json_object();
}

static bool read_more(struct spawned *s)
{
	uint8_t buf[4096];
	ssize_t n;

	do
		n = read(s->status_fd, buf, sizeof(buf));
	while (n < 0 && errno == EINTR);
	if (n <= 0 || s->line.len + (size_t)n > LINE_MAX_BYTES)
		return false;
	bytes_put(&s->line, buf, (size_t)n);
	return !s->line.is_failed;
}

static void copy_text(char *dst, size_t cap, json_t *obj, const char *key)
{
	const char *text = json_string_value(json_object_get(obj, key));

	snprintf(dst, cap, "%s", text ? text : "");
}

static void take_end(struct spawned *s, json_t *msg)
{
	if (strcmp(json_string_value(json_object_get(msg, "event")) ?: "", "end") != 0)
		return;
	s->is_ended = true;
	s->end_status = (int)(json_integer_value(json_object_get(msg, "status")) & 255);
	copy_text(s->end_text, sizeof(s->end_text), msg, "text");
}

bool spawned_read(struct spawned *s)
{
	bool is_open = read_more(s);
	json_t *msg;

	/* Also at the end: a short-lived machine's last line can have come together with its first. */
	while ((msg = take_line(s))) {
		take_end(s, msg);
		json_decref(msg);
	}
	return is_open;
}

static int reap(struct spawned *s, int *status)
{
	while (s->pid > 0 && waitpid(s->pid, status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	s->pid = -1;
	return 0;
}

static int explain_death(struct spawned *s, struct error *err)
{
	int status = 0;

	reap(s, &status);
	if (WIFSIGNALED(status))
		return error_set(err, -ECHILD, "the machine's process was killed by signal %d (%s)",
				 WTERMSIG(status), strsignal(WTERMSIG(status)));
	return error_set(err, -ECHILD, "the machine's process ended with status %d and gave no reason",
			 WEXITSTATUS(status));
}

int spawned_wait_ready(struct spawned *s, char engine[256], char reason[256], struct error *err)
{
	for (;;) {
		json_t *msg = take_line(s);
		const char *event = json_string_value(json_object_get(msg, "event"));
		char text[512];

		if (!msg) {
			if (!read_more(s))
				return explain_death(s, err);
			continue;
		}
		if (event && strcmp(event, "ready") == 0) {
			copy_text(engine, 256, msg, "engine");
			copy_text(reason, 256, msg, "reason");
			json_decref(msg);
			return 0;
		}
		copy_text(text, sizeof(text), msg, "text");
		json_decref(msg);
		reap(s, &(int){ 0 });
		return error_set(err, -ECANCELED, "%s", text[0] ? text : "the machine could not be built");
	}
}

int spawned_finish(struct spawned *s, struct error *err)
{
	while (spawned_read(s))
		continue;
	if (!s->is_ended) {
		explain_death(s, err);
		return EXIT_FAILED;
	}
	reap(s, &(int){ 0 });
	error_set(err, 0, "%s", s->end_text);
	return s->end_status;
}

void spawned_free(struct spawned *s)
{
	close_fd(&s->status_fd);
	close_fd(&s->console_fd);
	close_fd(&s->lifeline_fd);
	bytes_free(&s->line);
}
