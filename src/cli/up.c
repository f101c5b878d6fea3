/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv up` and `viv down`: a lab as a whole.
 *
 * Up: the file is checked, then the process of the network starts, then every machine by `viv run --detach`, all at once.  If
 * one of them fails, what was started is ended again.  Machines are thrown away when they end, unless the file says keep:.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
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

static int copy_file(const char *path, const char *name, struct error *err)
{
	_cleanup_free_ char *text = NULL, *copy = lab_file(name, err), *dir = paths_lab(name, NULL, err);
	size_t len;

	if (!copy || !dir)
		return -ENOMEM;
	int r = paths_read_file(path, LABFILE_BYTES_MAX, &text, &len, err);
	if (r == 0)
		r = paths_make(dir, err);
	return r == 0 ? claim(copy, text, len, name, err) : r;
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

/* ---- machines ---- */

static bool is_there(const char *name)
{
	_cleanup_free_ char *path = paths_vm(name, "machine.json", NULL);

	return path && access(path, F_OK) == 0;
}

static int network_list(const struct policy *p, unsigned machine, char *buf, size_t cap)
{
	size_t len = (size_t)snprintf(buf, cap, "lab:%s:", p->name);
	bool is_first = true;

	for (unsigned i = 0; i < p->nports && len < cap; i++) {
		if (p->ports[i].machine != machine || p->ports[i].card != i)
			continue;
		len += (size_t)snprintf(buf + len, cap - len, "%s%s", is_first ? "" : ",",
					p->networks[p->ports[i].network].name);
		is_first = false;
	}
	return len < cap ? 0 : -E2BIG;
}

/* As `viv run` or `viv start` would; what they print but errors is of no interest here. */
static int start_machine(const struct lab *l, unsigned i)
{
	const struct lab_machine *m = &l->machines[i];
	const char *name = l->policy->machines[i].name;
	char net[512];
	const char *argv[32] = { "run" };
	unsigned n = 1;

	if (m->keep && is_there(name))
		return cli_start(2, (char *[]){ "start", (char *)(uintptr_t)name, NULL });
	if (network_list(l->policy, i, net, sizeof(net)) < 0)
		return EXIT_FAILED;
	const char *const options[][2] = { { "--name", name },	      { "--net", net },
					   { "--kernel", m->kernel }, { "--initrd", m->initrd },
					   { "--append", m->append }, { "--engine", m->engine },
					   { "--mem", m->memory },    { "--cpus", m->cpus } };
	for (unsigned o = 0; o < ARRAY_SIZE(options); o++)
		if (options[o][1]) {
			argv[n++] = options[o][0];
			argv[n++] = options[o][1];
		}
	argv[n++] = "--detach";
	if (!m->keep)
		argv[n++] = "--rm";
	if (m->image)
		argv[n++] = m->image;
	return cli_run((int)n, (char **)(uintptr_t)argv);
}

/* In a process of its own; its errors come through @err_fd. */
static pid_t fork_machine(const struct lab *l, unsigned i, const char *dir, int err_fd)
{
	fflush(NULL);
	pid_t pid = fork();

	if (pid)
		return pid;
	int null_fd = open("/dev/null", O_RDWR);
	signal(SIGINT, SIG_DFL);
	dup2(null_fd, STDIN_FILENO);
	dup2(null_fd, STDOUT_FILENO);
	dup2(err_fd, STDERR_FILENO);
	/* Files are named as seen from the lab's. */
	if (chdir(dir) < 0) {
		cli_note("cannot enter %s: %s", dir, strerror(errno));
		_exit(EXIT_FAILED);
	}
	int status = start_machine(l, i);
	fflush(NULL);
	_exit(status);
}

/* The last line that a machine's start printed: its reason. */
static void read_reason(int fd, char *buf, size_t cap)
{
	ssize_t n = pread(fd, buf, cap - 1, 0);

	buf[MAX(n, (ssize_t)0)] = 0;
	size_t len = strlen(buf);
	while (len && buf[len - 1] == '\n')
		buf[--len] = 0;
	char *nl = strrchr(buf, '\n');
	const char *line = nl ? nl + 1 : buf;
	line += strncmp(line, "viv: ", 5) == 0 ? 5 : 0;
	memmove(buf, line, strlen(line) + 1);
}

static int start_machines(const struct lab *l, const char *path, struct error *err)
{
	const char *slash = strrchr(path, '/');
	_cleanup_free_ char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
	const struct policy *p = l->policy;
	pid_t pids[POLICY_MACHINES_MAX];
	int fds[POLICY_MACHINES_MAX], r = 0;

	for (unsigned i = 0; i < p->nmachines; i++) {
		fds[i] = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		pids[i] = fork_machine(l, i, dir ? dir : ".", fds[i]);
	}
	for (unsigned i = 0; i < p->nmachines; i++) {
		char reason[400];
		int status = 0;
		pid_t got = pids[i];
		while (pids[i] > 0 && (got = waitpid(pids[i], &status, 0)) < 0 && errno == EINTR)
			continue;
		bool is_fine = got > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
		read_reason(fds[i], reason, sizeof(reason));
		if (!is_fine && r == 0)
			r = error_set(err, -ECANCELED, "machine \"%s\": %s", p->machines[i].name,
				      *reason ? reason : "it could not be started");
		if (fds[i] >= 0)
			close(fds[i]);
	}
	return r;
}

static int stop_machine(const struct lab *l, unsigned i)
{
	char *name = (char *)(uintptr_t)l->policy->machines[i].name;

	if (!cli_is_running(name))
		return 0;
	if (l->machines[i].keep && cli_stop(2, (char *[]){ "stop", name, NULL }) != EXIT_FINE)
		return -ETIMEDOUT;
	/* It may end at this very moment. */
	json_t *reply = NULL;
	if (!l->machines[i].keep && client_request(name, json_pack("{s:s}", "cmd", "quit"),
						   CLIENT_TIMEOUT_MS, &reply, NULL) == 0)
		json_decref(reply);
	return wait_while(cli_is_running, name) ? 0 : -ETIMEDOUT;
}

/* All of it, as far as it goes; the first trouble is told. */
static int take_down(const struct lab *l, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < l->policy->nmachines; i++)
		if (stop_machine(l, i) < 0 && r == 0)
			r = error_set(err, -ETIMEDOUT, "machine \"%s\" does not end",
				      l->policy->machines[i].name);
	struct error other;
	int n = stop_network(l->policy->name, &other);
	return r < 0 ? r : n < 0 ? error_set(err, n, "%s", other.text) : 0;
}

/* ---- up ---- */

/* Nothing starts if a machine of the name is there and is not the lab's own. */
static int check_machines(const struct lab *l, struct error *err)
{
	for (unsigned i = 0; i < l->policy->nmachines; i++) {
		const char *name = l->policy->machines[i].name;
		if (cli_is_running(name) || (is_there(name) && !l->machines[i].keep))
			return error_set(err, -EEXIST, "there is a machine \"%s\" already; rename it in the lab, or viv rm %s removes it",
					 name, name);
	}
	return 0;
}

static int check_lab(const struct lab *l, struct error *err)
{
	const char *name = l->policy->name;

	if (is_being_brought_up(name))
		return error_set(err, -EEXIST, BEING_BROUGHT_UP, name);
	if (is_up(name))
		return error_set(err, -EEXIST, "lab \"%s\" is up already; viv down %s ends it",
				 name, name);
	if (was_brought_up(name))
		return error_set(err, -EEXIST, "the network of lab \"%s\" has died; viv down %s ends the rest of it",
				 name, name);
	return check_machines(l, err);
}

static int bring_up(const struct lab *l, const char *path, struct error *err)
{
	const char *name = l->policy->name;
	int r = check_lab(l, err);

	_cleanup_close_ int lock_fd = r == 0 ? copy_file(path, name, err) : r;
	if (lock_fd < 0)
		return lock_fd;
	/* An interrupt reaches those who start machines; what they did is undone here. */
	signal(SIGINT, SIG_IGN);
	r = start_network(name, err);
	if (r == 0)
		r = start_machines(l, path, err);
	if (r < 0) {
		struct error other;
		if (take_down(l, &other) < 0)
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
	int r = lab_load(&l, rest.args[0], &err);
	if (r == 0) {
		r = bring_up(l, rest.args[0], &err);
		if (r == 0)
			printf("%s\n", l->policy->name);
		lab_free(l);
	}
	status = r < 0 ? cli_fail(&err) : EXIT_FINE;
	opts_free(&cli_up_cmd, &dummy, &rest);
	return status;
}

/* ---- down ---- */

static int bring_down(const char *what, struct error *err)
{
	_cleanup_free_ char *name = lab_name_of(what, err), *file = name ? lab_file(name, err) : NULL;
	struct lab *l;

	if (!file)
		return -ENOENT;
	if (access(file, F_OK) < 0)
		return error_set(err, -ENOENT, "lab \"%s\" is not up", name);
	int r = lab_load(&l, file, err);
	if (r < 0)
		return r;
	r = take_down(l, err);
	lab_free(l);
	return r;
}

const struct opts_cmd cli_down_cmd = {
	.name = "viv down",
	.usage = "LAB.yaml|LAB",
	.summary = "end a lab: its machines, then its network",
	.details = "Machines are switched off and gone, unless the lab says keep: true; "
		   "those get a chance to shut down, and "
		   "the next viv up starts them again.",
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
