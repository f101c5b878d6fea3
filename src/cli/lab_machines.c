/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machines of a lab: starting them in order, and ending what belongs to a lab.
 *
 * Order: all at once, but for those with after:, which start when what they name is up: the guest's agent answers,
 * or, without one, its process runs.  Nothing more starts once something failed.
 *
 * What belongs to a lab says so in its configuration: viv up made it ("lab"), or it is a copy of such a machine ("origin").  A machine of the
 * same name that a person made is none of them.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/lab.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/vmconfig.h"
#include "ctl/vmlock.h"
#include "net/identity.h"

#define END_TIMEOUT_MS	 10000
#define AGENT_TIMEOUT_MS 300000
#define AGENT_STEP_MS	 500

static bool has_folder(const char *name)
{
	_cleanup_free_ char *path = paths_vm(name, NULL, NULL);

	return path && access(path, F_OK) == 0;
}

static bool has_config(const char *name)
{
	_cleanup_free_ char *path = paths_vm(name, "machine.json", NULL);

	return path && access(path, F_OK) == 0;
}

/* ---- whose is it? ---- */

enum owner { NOBODYS, MADE_BY_LAB, COPY_IN_LAB };

static enum owner owner_of(const struct vmconfig *c, const char *lab)
{
	if (c->lab && strcasecmp(c->lab, lab) == 0)
		return MADE_BY_LAB;
	return c->origin && strcasecmp(identity_lab(c->origin), lab) == 0 ? COPY_IN_LAB : NOBODYS;
}

static enum owner load_owner(const char *name, const char *lab, bool *is_throwaway)
{
	enum owner owner = NOBODYS;
	struct vmconfig c;
	struct error err;

	if (vmconfig_init(&c, &err) == 0 && vmconfig_load(&c, name, &err) == 0) {
		owner = owner_of(&c, lab);
		*is_throwaway = c.is_throwaway;
	}
	vmconfig_free(&c);
	return owner;
}

int lab_check_machines(const struct lab *l, struct error *err)
{
	for (unsigned i = 0; i < l->policy->nmachines; i++) {
		const char *name = l->policy->machines[i].name;
		bool is_throwaway = false,
		     is_own = l->machines[i].keep && has_config(name) &&
			      load_owner(name, l->policy->name, &is_throwaway) == MADE_BY_LAB;
		if (cli_is_running(name) || (has_folder(name) && !is_own))
			return error_set(err, -EEXIST, "there is a machine \"%s\" already; rename it in the lab, or viv rm %s removes it",
					 name, name);
	}
	return 0;
}

/* ---- starting ---- */

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

#define ARGS_MAX (32 + 4 * LAB_TEXTS_MAX)

static void add_each(const char *argv[ARGS_MAX], unsigned *n, const char *option,
		     const struct lab_texts *t)
{
	for (unsigned i = 0; i < t->n; i++) {
		argv[(*n)++] = option;
		argv[(*n)++] = t->text[i];
	}
}

/* As `viv run` or `viv start` would; what they print but errors is of no interest here. */
static int start_machine(const struct lab *l, unsigned i)
{
	const struct lab_machine *m = &l->machines[i];
	const char *name = l->policy->machines[i].name;
	char net[512];
	const char *argv[ARGS_MAX] = { "run" };
	unsigned n = 1;

	if (m->keep && has_config(name))
		return cli_start(2, (char *[]){ "start", (char *)(uintptr_t)name, NULL });
	if (network_list(l->policy, i, net, sizeof(net)) < 0)
		return EXIT_FAILED;
	const char *const options[][2] = { { "--name", name },
					   { "--net", net },
					   { "--kernel", m->kernel },
					   { "--initrd", m->initrd },
					   { "--append", m->append },
					   { "--engine", m->engine },
					   { "--mem", m->memory },
					   { "--cpus", m->cpus },
					   { "--user-data", m->user_data } };
	for (unsigned o = 0; o < ARRAY_SIZE(options); o++)
		if (options[o][1]) {
			argv[n++] = options[o][0];
			argv[n++] = options[o][1];
		}
	add_each(argv, &n, "--share", &m->share);
	add_each(argv, &n, "--cloud-init", &m->cloud_init);
	argv[n++] = "--detach";
	if (!m->keep)
		argv[n++] = "--rm";
	if (m->image)
		argv[n++] = m->image;
	return cli_run_in_lab(l->policy->name, (int)n, (char **)(uintptr_t)argv);
}

static bool has_agent(const char *name)
{
	struct vmconfig c;
	struct error err;
	bool has = vmconfig_init(&c, &err) == 0 && vmconfig_load(&c, name, &err) == 0 && c.has_agent;

	vmconfig_free(&c);
	return has;
}

/* -EREMOTEIO: it does not answer yet. */
static int await_agent(const char *name)
{
	struct error err;
	int r = -EREMOTEIO;

	for (int waited = 0; r == -EREMOTEIO && waited < AGENT_TIMEOUT_MS; waited += AGENT_STEP_MS) {
		json_t *reply = NULL;
		r = client_request(name,
				   json_pack("{s:s, s:i}", "cmd", "agent", "timeout_ms", AGENT_STEP_MS),
				   CLIENT_TIMEOUT_MS, &reply, &err);
		json_decref(reply);
	}
	if (r < 0)
		cli_note("others wait for it, but its guest's agent does not answer: %s", err.text);
	return r < 0 ? EXIT_FAILED : EXIT_FINE;
}

static bool is_awaited(const struct lab *l, unsigned machine)
{
	for (unsigned i = 0; i < l->policy->nmachines; i++)
		if (l->machines[i].after[machine])
			return true;
	return false;
}

/* In a process of its own; its errors come through @err_fd. */
static pid_t fork_machine(const struct lab *l, unsigned i, const char *dir, int err_fd)
{
	fflush(NULL);
	pid_t pid = fork();

	if (pid)
		return pid;
	const char *name = l->policy->machines[i].name;
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
	if (status == EXIT_FINE && is_awaited(l, i) && has_agent(name))
		status = await_agent(name);
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

struct starting {
	const struct lab *l;
	const char *dir;
	enum { WAITING, STARTING, UP, FAILED } states[POLICY_MACHINES_MAX];
	pid_t pids[POLICY_MACHINES_MAX];
	int fds[POLICY_MACHINES_MAX];
	unsigned nstarting;
};

static bool may_start(const struct starting *s, unsigned i)
{
	for (unsigned k = 0; k < s->l->policy->nmachines; k++)
		if (s->l->machines[i].after[k] && s->states[k] != UP)
			return false;
	return s->states[i] == WAITING;
}

static void start_some(struct starting *s)
{
	for (unsigned i = 0; i < s->l->policy->nmachines; i++) {
		if (!may_start(s, i))
			continue;
		s->fds[i] = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		s->pids[i] = fork_machine(s->l, i, s->dir, s->fds[i]);
		s->states[i] = s->pids[i] > 0 ? STARTING : FAILED;
		s->nstarting += s->pids[i] > 0;
	}
}

/* Of those that start the next that ended.  Other children are not ours to wait for. */
static int finish_one(struct starting *s, struct error *err)
{
	const struct timespec step = { .tv_nsec = 5000000 };

	for (;; nanosleep(&step, NULL))
		for (unsigned i = 0; i < s->l->policy->nmachines; i++) {
			char reason[400];
			int status = 0;
			pid_t got = s->states[i] == STARTING ? waitpid(s->pids[i], &status, WNOHANG) : 0;
			if (!got || (got < 0 && errno == EINTR))
				continue;
			bool is_fine = got > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
			read_reason(s->fds[i], reason, sizeof(reason));
			s->states[i] = is_fine ? UP : FAILED;
			s->nstarting--;
			return is_fine ? 0
				       : error_set(err, -ECANCELED, "machine \"%s\": %s",
						   s->l->policy->machines[i].name,
						   *reason ? reason : "it could not be started");
		}
}

int lab_start_machines(const struct lab *l, const char *path, struct error *err)
{
	const char *slash = strrchr(path, '/');
	_cleanup_free_ char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
	struct starting *s = calloc(1, sizeof(*s));
	struct error other;
	int r = 0;

	if (!s || !dir) {
		free(s);
		return error_set(err, -ENOMEM, "no memory to start machines");
	}
	s->l = l;
	s->dir = dir;
	memset(s->fds, -1, sizeof(s->fds));
	start_some(s);
	while (s->nstarting) {
		int n = finish_one(s, r == 0 ? err : &other);
		r = r < 0 ? r : n;
		if (r == 0)
			start_some(s);
	}
	for (unsigned i = 0; i < l->policy->nmachines; i++) {
		if (s->fds[i] >= 0)
			close(s->fds[i]);
		if (s->states[i] != UP && r == 0)
			r = error_set(err, -EAGAIN, "machine \"%s\": no process can be started for it",
				      l->policy->machines[i].name);
	}
	free(s);
	return r;
}

/* ---- ending ---- */

static void ask_to_quit(const char *name)
{
	json_t *reply = NULL;

	if (client_request(name, json_pack("{s:s}", "cmd", "quit"), CLIENT_TIMEOUT_MS, &reply, NULL) == 0)
		json_decref(reply);
}

/* One that is just starting hears nothing yet, and is asked again; it may end at any moment. */
static int stop_machine(const char *name, bool is_throwaway)
{
	const struct timespec step = { .tv_nsec = 10000000 };

	if (!is_throwaway && cli_is_running(name) &&
	    cli_stop(2, (char *[]){ "stop", (char *)(uintptr_t)name, NULL }) != EXIT_FINE)
		return -ETIMEDOUT;
	for (int waited = 0; cli_is_running(name); waited += 10) {
		if (waited > END_TIMEOUT_MS)
			return -ETIMEDOUT;
		if (is_throwaway && waited % 100 == 0)
			ask_to_quit(name);
		nanosleep(&step, NULL);
	}
	return 0;
}

/* What a process that was killed left behind. */
static int remove_left_over(const char *name, struct error *err)
{
	_cleanup_close_ int lock = vmlock_take(name, err);

	/* It was removed by itself. */
	return lock == -ENOENT ? 0 : lock < 0 ? lock : cli_remove_machine(name, err);
}

int lab_end_machine(const char *name, const char *lab, struct error *err)
{
	bool is_throwaway = false;

	if (load_owner(name, lab, &is_throwaway) == NOBODYS)
		return 0;
	if (stop_machine(name, is_throwaway) < 0)
		return error_set(err, -ETIMEDOUT, "machine \"%s\" does not end", name);
	return is_throwaway && has_folder(name) ? remove_left_over(name, err) : 0;
}

int lab_end_machines(const char *lab, struct error *err)
{
	_cleanup_free_ char *root = paths_data("vms", err);
	DIR *dir = root ? opendir(root) : NULL;
	struct error other;
	int r = root ? 0 : -ENOMEM;

	for (struct dirent *e; dir && (e = readdir(dir));) {
		int n = paths_check_name("a machine", e->d_name, NULL) == 0
				? lab_end_machine(e->d_name, lab, r == 0 ? err : &other)
				: 0;
		r = r < 0 ? r : n;
	}
	if (dir)
		closedir(dir);
	return r;
}

int lab_remove_half_made(const struct lab *l, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < l->policy->nmachines; i++) {
		const char *name = l->policy->machines[i].name;
		if (has_folder(name) && !has_config(name) && !cli_is_running(name))
			r = remove_left_over(name, err);
	}
	return r;
}
