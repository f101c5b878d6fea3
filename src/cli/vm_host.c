/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/vm_host.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/log.h"
#include "cli/cli.h"
#include "ctl/migrate_offer.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "ctl/vmlock.h"
#include "ctl/vmlog.h"
#include "net/identity.h"
#include "net/labd.h"
#include "net/netd.h"
#include "net/tap.h"
#include "share/sharer.h"

#define LAB_LIMIT_MS 500

/* ---- files ---- */

static int take_lock(struct vm_host *h, const char *name, int lock_fd, struct error *err)
{
	/* A copy of a machine takes its own; else who starts us has read the configuration under it. */
	h->lock_fd = lock_fd ? lock_fd : vmlock_take(name, err);
	if (h->lock_fd < 0)
		return h->lock_fd;
	fcntl(h->lock_fd, F_SETFD, FD_CLOEXEC);
	int r = vmlock_run(h->lock_fd, name, err);

	h->is_dir_ours = r == 0;
	return r;
}

static int make_socket(struct vm_host *h, const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_run(name, "control.sock", err);
	int r = path && h->run_dir ? paths_make(h->run_dir, err) : -ENOMEM;

	if (r < 0)
		return r;
	h->start.listen_fd = socket_listen(path, err);
	return h->start.listen_fd < 0 ? h->start.listen_fd : 0;
}

static void remove_files(struct vm_host *h)
{
	struct error err;

	if (!h->is_dir_ours)
		return;
	if (h->run_dir && paths_remove_tree(h->run_dir, &err) < 0)
		log_warn("vm", "%s", err.text);
	if (h->is_throwaway && h->vm_dir && paths_remove_at_once(h->vm_dir, &err) < 0)
		log_warn("vm", "%s", err.text);
}

/* ---- cards ---- */

/* For tunnels (net/tunnel.h).  With the machine's lock: who still listens there belongs to one that was killed. */
static int listen_for_tunnels(const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_run(name, "net.sock", err);

	if (path)
		(void)unlink(path);
	return path ? socket_listen(path, err) : -ENOMEM;
}

/* It ends when its socket closes, at the latest with this process. */
static int start_net(struct vm_host *h, const struct vmconfig *c, struct error *err)
{
	struct broker_start *s = &h->start;
	_cleanup_close_ int tunnel = listen_for_tunnels(c->name, err);
	const struct netd_options o = { .forwards = (const char *const *)c->forwards,
					.nforwards = c->nforwards,
					.tunnel_fd = tunnel };
	static const uint8_t default_mac[6] = { 0x52, 0x54, 0, 0x12, 0x34, 0x56 };

	memcpy(s->macs[0], default_mac, sizeof(default_mac));
	if (tunnel < 0)
		return tunnel;
	int r = c->mac ? vmconfig_parse_mac(c->mac, s->macs[0], err) : 0;

	if (r == 0)
		r = netd_begin(&o, &s->cards[0], &h->net_pid, &h->start.net_ready_fd, err);
	if (r == 0)
		s->ncards = 1;
	return r;
}

/* "tap:NAME", "bridge:NAME" */
static int start_tap(struct vm_host *h, const struct vmconfig *c, struct error *err)
{
	struct broker_start *s = &h->start;
	struct tap_name name;
	int r = tap_parse(c->net, &name, err);

	if (r == 0)
		r = vmconfig_parse_mac(c->mac ?: "", s->macs[0], err);
	if (r == 0)
		r = tap_open(&name, &s->cards[0], err);
	if (r < 0)
		return r;
	s->is_tap = true;
	s->ncards = 1;
	return 0;
}

/* One card of a lab's machine: the lab tells its MAC. */
static int attach_card(struct vm_host *h, const struct vmconfig *c, const char *socket,
		       const char *lab, const char *network, struct error *err)
{
	const struct labd_attach a = { c->name, network, c->origin };
	struct broker_start *s = &h->start;
	json_t *identity = NULL;
	_cleanup_close_ int fd = socket_connect(socket, err);

	if (fd == -ENOENT || fd == -ECONNREFUSED)
		return error_set(err, fd, "lab \"%s\" is not up; viv up brings it up", lab);
	int r = fd < 0 ? fd
		       : labd_attach(fd, &a, s->macs[s->ncards], &s->cards[s->ncards], &identity, err);
	if (r < 0)
		return r;
	json_decref(h->identity);
	h->identity = identity;
	h->is_copy_in_lab = c->origin != NULL;
	return 0;
}

json_t *vm_host_identity(struct vm_host *h)
{
	json_t *identity;
	struct error err = { "no memory" };

	if (!h->identity)
		return NULL;
	_cleanup_free_ char *socket = paths_lab(identity_lab(h->identity), "control.sock", &err);
	_cleanup_close_ int fd = socket ? socket_connect_within(socket, LAB_LIMIT_MS, &err) : -1;
	if (fd >= 0 && labd_identity(fd, identity_machine(h->identity), &identity, &err) == 0) {
		json_decref(h->identity);
		h->identity = identity;
	} else if (fd != -ENOENT && fd != -ECONNREFUSED) {
		log_info("vm", "the lab does not tell its rules: %s", err.text);
	}
	return json_incref(h->identity);
}

/* A copy that leaves nothing behind leaves its lab, too. */
static void leave_lab(struct vm_host *h)
{
	struct error err;

	if (!h->identity || !h->is_copy_in_lab || !h->is_throwaway || !h->is_dir_ours)
		return;
	_cleanup_free_ char *socket = paths_lab(identity_lab(h->identity), "control.sock", &err);
	_cleanup_close_ int fd = socket ? socket_connect_within(socket, LAB_LIMIT_MS, &err) : -1;
	if (fd >= 0 && labd_forget(fd, identity_machine(h->identity), &err) < 0)
		log_info("vm", "the lab keeps a place for the machine: %s", err.text);
}

/* "lab:LAB:NETWORK,NETWORK" */
static int join_lab(struct vm_host *h, const struct vmconfig *c, struct error *err)
{
	_cleanup_free_ char *copy = strdup(c->net + strlen("lab:"));
	char *networks = copy ? strchr(copy, ':') : NULL, *save = NULL;

	if (!networks)
		return error_set(err, -EINVAL, "a network of a lab is written lab:LAB:NETWORK,NETWORK");
	*networks++ = 0;
	int r = paths_check_name("a lab", copy, err);
	_cleanup_free_ char *socket = r == 0 ? paths_lab(copy, "control.sock", err) : NULL;
	if (!socket)
		return r < 0 ? r : -ENOMEM;
	for (char *n = strtok_r(networks, ",", &save); r == 0 && n; n = strtok_r(NULL, ",", &save)) {
		if (h->start.ncards == MACHINE_MAX_NICS)
			return error_set(err, -EINVAL, "a machine has at most %d cards", MACHINE_MAX_NICS);
		r = attach_card(h, c, socket, copy, n, err);
		if (r == 0)
			h->start.ncards++;
	}
	return r;
}

/* ---- life ---- */

static int start_cards(struct vm_host *h, const struct vmconfig *c, struct error *err)
{
	return strcmp(c->net, "nat") == 0	 ? start_net(h, c, err)
	       : strcmp(c->net, "none") == 0	 ? 0
	       : strncmp(c->net, "lab:", 4) == 0 ? join_lab(h, c, err)
						 : start_tap(h, c, err);
}

static int start_shares(struct vm_host *h, const struct vmconfig *c, struct error *err)
{
	struct broker_start *s = &h->start;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < c->nshares; i++) {
		const struct vmconfig_share *share = &c->shares[i];
		const struct sharer_options o = { .path = share->path,
						  .tag = share->tag,
						  .is_readonly = share->is_readonly };

		r = share->path ? sharer_spawn(&o, &s->shares[i], &h->share_pids[i], err)
				: error_set(err, -EINVAL, "nobody has said which folder \"%s\" is",
					    share->tag);
		if (r == 0)
			s->nshares = h->nshares = i + 1;
	}
	return r;
}

/* Where its disks are is asked for now: files move. */
static int take_limits(struct vm_host *h, const struct vmconfig *c, struct error *err)
{
	struct cgroup_limits l = c->limits;
	struct stat st;

	l.ndevices = 0;
	for (unsigned i = 0; i < c->ndisks; i++) {
		bool is_known = stat(c->disks[i].path, &st) < 0;

		for (unsigned k = 0; k < l.ndevices; k++)
			is_known |= l.devices[k] == st.st_dev;
		if (!is_known && l.ndevices < CGROUP_DEVICES_MAX)
			l.devices[l.ndevices++] = st.st_dev;
	}
	int r = cgroup_enter(&h->cgroup, &l, c->name, err);

	if (r == 0 && h->cgroup.path)
		log_info("vm", "limited by %s", h->cgroup.path);
	return r;
}

int vm_host_prepare(struct vm_host *h, struct vmconfig *c, const char *name, int lock_fd,
		    struct error *err)
{
	*h = (struct vm_host){ .lock_fd = -1,
			       .run_dir = paths_run(name, NULL, err),
			       .vm_dir = paths_vm(name, NULL, err) };
	broker_start_init(&h->start);
	h->start.pid = getpid();
	int r = h->run_dir && h->vm_dir ? take_lock(h, name, lock_fd, err) : -ENOMEM;

	if (r == 0)
		r = vmconfig_load(c, name, err);
	h->is_throwaway = c->is_throwaway;
	if (r == 0)
		r = vmlog_set_level(c->log_level, err);
	if (r == 0)
		r = vmlog_open(name, err);
	if (r == 0)
		r = take_limits(h, c, err);
	if (r == 0)
		r = make_socket(h, name, err);
	if (r == 0)
		r = start_shares(h, c, err);
	return r == 0 ? start_cards(h, c, err) : r;
}

/* What it was told when it joined, its first process knows; its lab tells it again. */
static void learn_identity(struct vm_host *h, const struct vmconfig *c)
{
	_cleanup_free_ char *lab = strncmp(c->net, "lab:", 4) ? NULL : strdup(c->net + 4);
	struct error err = { "no memory" };

	if (!lab)
		return;
	lab[strcspn(lab, ":")] = 0;
	_cleanup_free_ char *socket = paths_lab(lab, "control.sock", &err);
	_cleanup_close_ int fd = socket ? socket_connect_within(socket, LAB_LIMIT_MS, &err) : -1;

	if (fd < 0 || labd_identity(fd, c->name, &h->identity, &err) < 0)
		log_info("vm", "the lab does not tell what the machine is there: %s", err.text);
	h->is_copy_in_lab = c->origin != NULL;
}

int vm_host_prepare_successor(struct vm_host *h, struct vmconfig *c, const char *name, struct error *err)
{
	*h = (struct vm_host){ .lock_fd = -1,
			       .is_successor = true,
			       .run_dir = paths_run(name, NULL, err),
			       .vm_dir = paths_vm(name, NULL, err) };
	broker_start_init(&h->start);
	h->start.pid = getpid();
	int r = h->run_dir && h->vm_dir ? vmconfig_load(c, name, err) : -ENOMEM;

	h->is_throwaway = c->is_throwaway;
	if (r == 0)
		r = vmlog_set_level(c->log_level, err);
	if (r == 0)
		r = vmlog_open(name, err);
	/* A group of its own, before anything moves; what runs on, like the network's process, stays in the old one. */
	if (r == 0)
		r = take_limits(h, c, err);
	if (r == 0)
		learn_identity(h, c);
	return r;
}

int vm_host_arrived(struct vm_host *h, const char *name, int lock_fd, struct error *err)
{
	int r = vmlock_join(lock_fd, name, err);

	if (r < 0) {
		close(lock_fd);
		return r;
	}
	h->lock_fd = lock_fd;
	h->is_dir_ours = true;
	return 0;
}

void vm_host_has_left(struct vm_host *h)
{
	h->is_dir_ours = h->is_throwaway = false;
	h->net_pid = 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* The machine has them. */
static void close_start(struct broker_start *s)
{
	close_fd(&s->door);
	close_fd(&s->listen_fd);
	while (s->ncards)
		close_fd(&s->cards[--s->ncards]);
	while (s->nshares)
		close_fd(&s->shares[--s->nshares]);
	if (s->net_ready_fd)
		close(s->net_ready_fd);
	s->net_ready_fd = 0;
}

int vm_host_await_net(struct vm_host *h, struct broker_start *s, bool is_confined, struct error *err)
{
	int fd = s->net_ready_fd;

	s->net_ready_fd = 0;
	int r = fd ? netd_await(fd, is_confined ? 0 : h->net_pid, err) : 0;

	if (r < 0)
		h->net_pid = 0;
	return r;
}

void vm_host_finish(struct vm_host *h)
{
	close_start(&h->start);
	/* Its socket is closed by now, so it ends. */
	while (h->net_pid && waitpid(h->net_pid, NULL, 0) < 0 && errno == EINTR)
		continue;
	h->net_pid = 0;
	for (; h->nshares; h->nshares--)
		while (waitpid(h->share_pids[h->nshares - 1], NULL, 0) < 0 && errno == EINTR)
			continue;
	leave_lab(h);
	json_decref(h->identity);
	h->identity = NULL;
	cgroup_leave(&h->cgroup);
	remove_files(h);
	close_fd(&h->lock_fd);
	free(h->run_dir);
	free(h->vm_dir);
	h->run_dir = h->vm_dir = NULL;
}

/* ---- the broker's process ---- */

static pid_t the_machine; /* for the signal handler */

static void forward_signal(int number)
{
	int kept = errno;

	if (the_machine > 0)
		kill(the_machine, number);
	errno = kept;
}

/* Whoever wants to end a machine signals the process that was started for it. */
static void forward_signals(pid_t machine)
{
	const struct sigaction sa = { .sa_handler = forward_signal, .sa_flags = SA_RESTART };
	sigset_t set;

	the_machine = machine;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

static int make_broker(void *arg, const char *name, pid_t pid, int reply_to);

/* One that comes from another host says so in its folder until it has arrived. */
static int set_claim(struct broker_policy *p, const char *name, struct error *err)
{
	struct migrate_offer o;

	if (!migrate_is_incoming(name))
		return 0;
	int r = migrate_offer_init(&o, err);

	if (r == 0)
		r = migrate_load_incoming(&o, name, err);
	if (r == 0)
		broker_policy_set_claim(p, o.id);
	migrate_offer_free(&o);
	return r;
}

/* One that was killed on its way is no machine, unless it was ours already. */
static void settle(struct vm_host *h, const char *name)
{
	struct error err;

	if (!h->is_throwaway && migrate_is_incoming(name) && migrate_settle(name, &err) < 0)
		log_warn("broker", "%s", err.text);
}

static json_t *ask_lab(void *arg)
{
	return vm_host_identity(arg);
}

static int serve(struct vm_host *h, const struct vmconfig *c, int door, struct error *err)
{
	struct broker_policy *p = NULL;
	int r = broker_policy_create(&p, c, err);

	if (r < 0)
		return r;
	prctl(PR_SET_NAME, "viv-broker");
	prctl(PR_SET_DUMPABLE, 0);
	broker_policy_set_lab(p, ask_lab, h);
	broker_policy_set_lock(p, h->lock_fd);
	if (h->is_successor)
		broker_policy_await(p);
	r = set_claim(p, c->name, err);
	if (r < 0) {
		broker_policy_destroy(p);
		return r;
	}
	broker_serve(p, door, make_broker, NULL);
	h->is_throwaway |= broker_policy_is_unwanted(p);
	if (h->is_successor)
		h->lock_fd = broker_policy_take_lock(p);
	h->is_dir_ours |= h->is_successor && h->lock_fd >= 0;
	if (broker_policy_has_left(p))
		vm_host_has_left(h);
	broker_policy_destroy(p);
	return 0;
}

/* What the copy @pid is to start with. */
static int prepare_copy(struct vm_host *h, struct vmconfig *c, const char *name, pid_t pid,
			int *door, struct error *err)
{
	int pair[2], on = 1, r = vmconfig_init(c, err);

	if (r == 0)
		r = vm_host_prepare(h, c, name, 0, err);
	if (r == 0)
		r = cgroup_add(&h->cgroup, pid, err);
	if (r < 0)
		return r;
	h->start.pid = pid;
	log_files(h->start.log_fds);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ||
	    setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
		return error_set(err, -errno, "its broker can't be connected: %s", strerror(errno));
	h->start.door = pair[1];
	*door = pair[0];
	return 0;
}

static void be_broker_of_copy(const char *name, pid_t pid, int reply_to)
{
	struct vm_host h = { .lock_fd = -1 };
	struct vmconfig c;
	struct error err;

	broker_start_init(&h.start);
	int door = -1, r = prepare_copy(&h, &c, name, pid, &door, &err);

	if (r < 0)
		broker_send_failure(reply_to, r, &err);
	else
		broker_send_start(reply_to, &h.start);
	close(reply_to);
	close_start(&h.start);
	if (r == 0) {
		forward_signals(pid);
		r = serve(&h, &c, door, &err);
		close(door);
	}
	if (r < 0)
		log_warn("broker", "%s", err.text);
	vm_host_finish(&h);
	vmconfig_free(&c);
	_exit(r < 0);
}

/* A process of its own for each copy, nobody's child: copies outlive the machine that they were made of. */
static int make_broker(void *arg, const char *name, pid_t pid, int reply_to)
{
	char own[PATHS_NAME_MAX + 1];
	pid_t child = fork();

	if (child < 0)
		return -errno;
	if (child > 0) {
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			continue;
		return 0;
	}
	snprintf(own, sizeof(own), "%s", name);
	child = fork();
	if (child != 0)
		_exit(child < 0);
	/* Nothing of the first machine's: its lock, its door, its cards' processes. */
	setsid();
	the_machine = 0;
	log_set_fd(STDERR_FILENO);
	if (reply_to > 3)
		close_range(3, (unsigned)reply_to - 1, 0);
	close_range((unsigned)reply_to + 1, ~0u, 0);
	be_broker_of_copy(own, pid, reply_to);
	return 0;
}

int vm_host_broker(struct vm_host *h, struct confine *confine, const struct vmconfig *c)
{
	struct error err;

	close_start(&h->start);
	forward_signals(confine->machine_pid);
	int r = serve(h, c, confine->door, &err);

	close(confine->door);
	if (r < 0)
		log_warn("broker", "%s", err.text);
	int status = confine_wait(confine);

	settle(h, c->name);
	vm_host_finish(h);
	if (!WIFSIGNALED(status))
		return WEXITSTATUS(status);
	/* As if it had been this process. */
	log_warn("vm", "the machine's process was killed by signal %d (%s)", WTERMSIG(status),
		 strsignal(WTERMSIG(status)));
	signal(WTERMSIG(status), SIG_DFL);
	raise(WTERMSIG(status));
	return EXIT_FAILED;
}
