/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv up` and `viv down`: a lab as a whole.
 *
 * Up: the file is read once and checked, then the process of the network starts, then the machines (lab_machines.c).  If
 * one of them fails, what was started is ended again.  Machines are thrown away when they end, unless the file says keep:.
 *
 * In the lab's folder: LAB.yaml, the file as it was read.  Who brings the lab up or ends it has its lock (flock); the processes
 * that start machines inherit it, so that it is free only when nobody works on the lab.  "complete" is there from the moment that all is
 * up: a copy without it that nobody has locked is of one who was killed, and the next viv up or viv down clears it away.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/lab.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/socket.h"

#define BEING_BROUGHT_UP "lab \"%s\" is being brought up already"
#define READY_TIMEOUT_MS 20000
#define END_TIMEOUT_MS	 10000
#define TURN_TIMEOUT_MS	 60000

static const struct opt no_opts[] = { OPT_END };

/* ---- files ---- */

/* The lab as it was brought up: for viv down, and for what starts later. */
static char *lab_file(const char *name, struct error *err)
{
	/* It is called as the lab: the file need not have a name in it. */
	_cleanup_free_ char *file = paths_format(err, "%s.yaml", name);

	return file ? paths_lab(name, file, err) : NULL;
}

/*
 * Of several that bring it up at once one has it: whose copy is the first.  It is locked until the lab is up.
 * Returns the lock's descriptor or -errno.
 */
static int claim(const char *copy, const char *text, size_t len, const char *name, struct error *err)
{
	_cleanup_free_ char *own = paths_format(err, "%s.%d", copy, (int)getpid());
	int r = own ? paths_write_file(own, text, len, err) : -ENOMEM;

	if (r < 0)
		return r;
	int fd = open(own, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || flock(fd, LOCK_EX) < 0 || link(own, copy) < 0)
		r = errno == EEXIST
			    ? error_set(err, -EEXIST, BEING_BROUGHT_UP, name)
			    : error_set(err, -errno, "cannot make %s: %s", copy, strerror(errno));
	unlink(own);
	if (r < 0 && fd >= 0)
		close(fd);
	return r < 0 ? r : fd;
}

static int keep_copy(const char *text, size_t len, const char *name, struct error *err)
{
	_cleanup_free_ char *copy = lab_file(name, err), *dir = paths_lab(name, NULL, err);

	if (!copy || !dir)
		return -ENOMEM;
	int r = paths_make(dir, err);
	return r == 0 ? claim(copy, text, len, name, err) : r;
}

/*
 * The copy of a lab that is there, locked; @how: LOCK_NB, or 0 to wait.  Returns a descriptor; -ENOENT: there is none (any more);
 * -EWOULDBLOCK, -errno with @err set.
 */
static int lock_copy(const char *copy, int how, struct error *err)
{
	struct stat here, there;

	for (;;) {
		int fd = open(copy, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		if (fd < 0)
			return errno == ENOENT ? -ENOENT
					       : error_set(err, -errno, "cannot open %s: %s", copy,
							   strerror(errno));
		if (flock(fd, LOCK_EX | how) < 0) {
			int r = error_set(err, -errno, "cannot lock %s: %s", copy, strerror(errno));
			close(fd);
			return r;
		}
		/* It may have been replaced meanwhile. */
		if (fstat(fd, &here) == 0 && stat(copy, &there) == 0 && here.st_ino == there.st_ino)
			return fd;
		close(fd);
	}
}

static bool is_complete(const char *name)
{
	_cleanup_free_ char *mark = paths_lab(name, "complete", NULL);

	return mark && access(mark, F_OK) == 0;
}

static int complete(const char *name, struct error *err)
{
	_cleanup_free_ char *mark = paths_lab(name, "complete", err);

	return mark ? paths_write_file(mark, "", 0, err) : -ENOMEM;
}

static bool is_being_brought_up(const char *name)
{
	_cleanup_free_ char *copy = lab_file(name, NULL);
	_cleanup_close_ int fd = copy ? open(copy, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;

	return fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
}

static bool is_up(const char *name)
{
	_cleanup_free_ char *path = paths_lab(name, "control.sock", NULL);
	_cleanup_close_ int fd = path ? socket_connect(path, NULL) : -1;

	return fd >= 0;
}

/* Its network may have died since. */
static bool was_brought_up(const char *name)
{
	_cleanup_free_ char *file = lab_file(name, NULL);

	return file && access(file, F_OK) == 0;
}

char *lab_name_of(const char *what, struct error *err)
{
	struct lab *l;

	if (paths_check_name("a lab", what, NULL) == 0 && was_brought_up(what))
		return strdup(what);
	if (access(what, F_OK) < 0) {
		error_set(err, -ENOENT, "\"%s\" is neither a lab that is up nor a file", what);
		return NULL;
	}
	if (lab_load(&l, what, err) < 0)
		return NULL;
	char *name = strdup(l->policy->name);
	lab_free(l);
	return name;
}

/* ---- the network's process ---- */

static void run_network(const char *file, int control_fd, int ready_fd, int log_fd)
{
	char control[16], ready[16];
	int null_fd = open("/dev/null", O_RDWR);

	setsid();
	dup2(null_fd, STDIN_FILENO);
	dup2(null_fd, STDOUT_FILENO);
	dup2(log_fd, STDERR_FILENO);
	snprintf(control, sizeof(control), "%d", control_fd);
	snprintf(ready, sizeof(ready), "%d", ready_fd);
	fcntl(control_fd, F_SETFD, 0);
	fcntl(ready_fd, F_SETFD, 0);
	execl("/proc/self/exe", "viv", "net", "lab", "--file", file, "--control-fd", control,
	      "--ready-fd", ready, NULL);
	_exit(127);
}

static int await_ready(int fd, struct error *err)
{
	char text[sizeof(err->text)] = "";
	size_t len = 0;

	while (len < sizeof(text) - 1 && !strchr(text, '\n')) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int r = poll(&p, 1, READY_TIMEOUT_MS);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return error_set(err, -ETIMEDOUT, "the lab's network does not come up");
		ssize_t n = read(fd, text + len, sizeof(text) - 1 - len);
		if (n <= 0)
			break;
		len += (size_t)n;
		text[len] = 0;
	}
	text[strcspn(text, "\n")] = 0;
	return strcmp(text, "ok") == 0 ? 0
				       : error_set(err, -ECANCELED, "%s",
						   *text ? text : "the lab's network ended at once");
}

static int start_network(const char *name, struct error *err)
{
	_cleanup_free_ char *file = lab_file(name, err),
			    *socket = paths_lab(name, "control.sock", err),
			    *log = paths_lab(name, "net.log", err);
	int ready[2] = { -1, -1 }, r;

	if (!file || !socket || !log)
		return -ENOMEM;
	_cleanup_close_ int log_fd =
		open(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	_cleanup_close_ int control_fd = log_fd < 0 ? -1 : socket_listen(socket, err);
	if (log_fd < 0)
		return error_set(err, -errno, "cannot write %s: %s", log, strerror(errno));
	if (control_fd < 0)
		return control_fd;
	if (pipe2(ready, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0)
		run_network(file, control_fd, ready[1], log_fd);
	r = pid < 0 ? error_set(err, -errno, "cannot start a process: %s", strerror(errno)) : 0;
	close(ready[1]);
	if (r == 0)
		r = await_ready(ready[0], err);
	close(ready[0]);
	if (r < 0 && pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return r;
}

static bool wait_while(bool (*is)(const char *name), const char *name)
{
	const struct timespec step = { .tv_nsec = 10000000 };

	for (int waited = 0; is(name); waited += 10) {
		if (waited > END_TIMEOUT_MS)
			return false;
		nanosleep(&step, NULL);
	}
	return true;
}

static int stop_network(const char *name, struct error *err)
{
	_cleanup_free_ char *dir = paths_lab(name, NULL, err);
	json_t *reply = NULL;
	int r = dir ? 0 : -ENOMEM;

	if (r == 0 && is_up(name)) {
		/* It may end before its answer is read. */
		if (lab_request(name, json_pack("{s:s}", "cmd", "stop"), &reply, NULL) == 0)
			json_decref(reply);
		if (!wait_while(is_up, name))
			return error_set(err, -ETIMEDOUT, "the network of lab \"%s\" does not end", name);
	}
	return r == 0 ? paths_remove_tree(dir, err) : r;
}

/* All of it, as far as it goes; the first trouble is told. */
static int take_down(const char *name, struct error *err)
{
	int r = lab_end_machines(name, err);
	struct error other;
	int n = stop_network(name, &other);

	return r < 0 ? r : n < 0 ? error_set(err, n, "%s", other.text) : 0;
}

/* ---- up ---- */

/* Machines of the lab that its last end did not reach: this host's, say. */
static int clear_machines(const struct lab *l, struct error *err)
{
	for (unsigned i = 0; i < l->policy->nmachines; i++) {
		int r = l->machines[i].keep
				? 0
				: lab_end_machine(l->policy->machines[i].name, l->policy->name, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Somebody began to bring it up and was killed.  With the lock of the copy, which nobody has then. */
static int clear_half_way(const char *name, struct error *err)
{
	_cleanup_free_ char *copy = lab_file(name, err);
	struct lab *l = NULL;

	if (!copy)
		return -ENOMEM;
	_cleanup_close_ int fd = lock_copy(copy, LOCK_NB, err);
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd == -EWOULDBLOCK ? error_set(err, -EEXIST, BEING_BROUGHT_UP, name) : fd;
	cli_note("lab \"%s\" was not brought up to its end; what there is of it goes first", name);
	int r = lab_load(&l, copy, err);
	if (r == 0)
		r = lab_end_machines(name, err);
	if (r == 0)
		r = lab_remove_half_made(l, err);
	if (r == 0)
		r = take_down(name, err);
	lab_free(l);
	return r;
}

static int check_lab(const struct lab *l, struct error *err)
{
	const char *name = l->policy->name;

	if (is_being_brought_up(name))
		return error_set(err, -EEXIST, BEING_BROUGHT_UP, name);
	if (was_brought_up(name) && !is_complete(name)) {
		int r = clear_half_way(name, err);
		if (r < 0)
			return r;
	}
	if (is_up(name))
		return error_set(err, -EEXIST, "lab \"%s\" is up already; viv down %s ends it",
				 name, name);
	if (was_brought_up(name))
		return error_set(err, -EEXIST, "the network of lab \"%s\" has died; viv down %s ends the rest of it",
				 name, name);
	int r = clear_machines(l, err);
	return r < 0 ? r : lab_check_machines(l, err);
}

static int bring_up(const struct lab *l, const char *text, size_t len, const char *path, struct error *err)
{
	const char *name = l->policy->name;
	int r = check_lab(l, err);

	_cleanup_close_ int lock_fd = r == 0 ? keep_copy(text, len, name, err) : r;
	if (lock_fd < 0)
		return lock_fd;
	/* An interrupt reaches those who start machines; what they did is undone here. */
	signal(SIGINT, SIG_IGN);
	r = start_network(name, err);
	if (r == 0)
		r = lab_start_machines(l, path, err);
	if (r == 0)
		r = complete(name, err);
	if (r < 0) {
		struct error other;
		if (take_down(name, &other) < 0)
			cli_note("%s", other.text);
	}
	return r;
}

const struct opts_cmd cli_up_cmd = {
	.name = "viv up",
	.usage = "LAB.yaml",
	.summary = "start a lab: its network, then all its machines",
	.details = "The file is checked first; viv plan shows what it says.  If a machine "
		   "does not start, all that was "
		   "started ends again.",
	.opts = no_opts,
	.min_args = 1,
	.max_args = 1,
};

int cli_up(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	struct lab *l;
	char dummy;
	int status;

	if (!cli_parse(&cli_up_cmd, argc, argv, &dummy, &rest, &status))
		return status;
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = lab_load_text(&l, rest.args[0], &text, &len, &err);
	if (r == 0) {
		r = bring_up(l, text, len, rest.args[0], &err);
		if (r == 0)
			printf("%s\n", l->policy->name);
		lab_free(l);
	}
	status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_up_cmd, &dummy, &rest);
	return status;
}

/* ---- down ---- */

/* Who brings it up, or ends it, comes to an end soon. */
static int await_turn(const char *copy, const char *name, struct error *err)
{
	const struct timespec step = { .tv_nsec = 20000000 };
	bool is_told = false;

	for (int waited = 0;; waited += 20) {
		int fd = lock_copy(copy, LOCK_NB, err);
		if (fd != -EWOULDBLOCK)
			return fd == -ENOENT ? error_set(err, fd, "lab \"%s\" is not up", name) : fd;
		if (waited >= TURN_TIMEOUT_MS)
			return error_set(err, -EBUSY,
					 "lab \"%s\" is still being brought up or ended; try again",
					 name);
		if (waited >= 1000 && !is_told)
			cli_note("waiting for another viv up or viv down of lab \"%s\"", name);
		is_told |= waited >= 1000;
		nanosleep(&step, NULL);
	}
}

static int bring_down(const char *what, struct error *err)
{
	_cleanup_free_ char *name = lab_name_of(what, err), *file = name ? lab_file(name, err) : NULL;
	struct lab *l = NULL;

	if (!file)
		return -ENOENT;
	_cleanup_close_ int lock_fd = await_turn(file, name, err);
	if (lock_fd < 0)
		return lock_fd;
	int r = is_complete(name) ? 0 : lab_load(&l, file, err);
	/* The machines first: what is half made is what none of them is. */
	if (r == 0 && l)
		r = lab_end_machines(name, err);
	if (r == 0 && l)
		r = lab_remove_half_made(l, err);
	if (r == 0)
		r = take_down(name, err);
	lab_free(l);
	return r;
}

const struct opts_cmd cli_down_cmd = {
	.name = "viv down",
	.usage = "LAB.yaml|LAB",
	.summary = "end a lab: its machines, then its network",
	.details = "Machines are switched off and gone, unless the lab says keep: true; "
		   "those get a chance to shut down, and "
		   "the next viv up starts them again.  Copies of the lab's machines end, too; "
		   "those with a name of their own are kept.",
	.opts = no_opts,
	.min_args = 1,
	.max_args = 1,
};

int cli_down(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	char dummy;
	int status;

	if (!cli_parse(&cli_down_cmd, argc, argv, &dummy, &rest, &status))
		return status;
	status = bring_down(rest.args[0], &err) < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_down_cmd, &dummy, &rest);
	return status;
}
