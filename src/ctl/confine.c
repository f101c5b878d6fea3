/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/jail.h"
#include "ctl/migrate_lazy.h"

#define NAMESPACES                                                                                 \
	(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | \
	 CLONE_NEWCGROUP)

bool confine_is_wanted(void)
{
	const char *text = getenv(CONFINE_VARIABLE);

	return !text || strcmp(text, "off") != 0;
}

void confine_describe(const struct confine *c, char text[CONFINE_TEXT])
{
	char landlock[32] = "no Landlock";

	if (c->landlock_abi)
		snprintf(landlock, sizeof(landlock), "Landlock (ABI %d)", c->landlock_abi);
	if (c->has_namespaces)
		snprintf(text, CONFINE_TEXT, "own namespaces, an empty root, %s, seccomp", landlock);
	else
		snprintf(text, CONFINE_TEXT, "%s, seccomp; no own namespaces: %.160s", landlock,
			 c->why_not.text);
}

/* ---- what the machine's process gives up ---- */

/* What needs no namespaces. */
static int give_up(struct confine *c, struct error *err)
{
	const struct rlimit none = { 0, 0 };
	int r = jail_drop_capabilities();

	if (r == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		r = -errno;
	if (r == 0)
		r = jail_landlock(-1, 0, &c->landlock_abi);
	if (r == 0 && (setrlimit(RLIMIT_CORE, &none) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0))
		r = -errno;
	if (r < 0)
		return error_set(err, r, "the machine can't be confined: %s", strerror(-r));
	return confine_filter_process(c->has_namespaces, err);
}

/* ---- two processes ---- */

/* What passes between them at the beginning. */
struct word {
	pid_t machine_pid;
	bool is_fine, has_namespaces;
	struct error err;
};

/* The machine tells who it is: the host's number for it comes with the message. */
static int receive_word(int fd, struct word *w, pid_t *pid)
{
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec iov = { w, sizeof(*w) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n;

	do
		n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n != sizeof(*w))
		return -EPROTO;
	for (struct cmsghdr *m = CMSG_FIRSTHDR(&msg); m; m = CMSG_NXTHDR(&msg, m)) {
		struct ucred who;

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_CREDENTIALS)
			continue;
		memcpy(&who, CMSG_DATA(m), sizeof(who));
		*pid = who.pid;
	}
	return 0;
}

/* @root: to who leaves the old root (leave_root()); -1: there are no namespaces. */
static int become_machine(struct confine *c, int door, int sync, int root, struct error *err)
{
	struct word w = { .is_fine = true, .has_namespaces = c->has_namespaces }, back;
	int r = 0;

	c->door = door;
	c->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	c->faults_fd = c->is_incoming ? migrate_faults_open(NULL) : -1;
	if (c->has_namespaces) {
		r = jail_stack_root();
		if (r == 0 && write(root, "g", 1) != 1)
			r = -errno;
		c->root_fd = root;
		if (r < 0)
			error_set(err, r, "the machine can't have an empty root: %s", strerror(-r));
	}
	/* It tells its number before it has a filter; what comes after is told by its end. */
	if (r < 0) {
		w.is_fine = false;
		w.err = *err;
	}
	/* The broker may try without namespaces. */
	if (write(sync, &w, sizeof(w)) != sizeof(w) || r < 0 ||
	    read(sync, &back, sizeof(back)) != sizeof(back))
		_exit(1);
	c->machine_pid = back.machine_pid;
	close(sync);
	r = give_up(c, err);
	return r < 0 ? r : CONFINE_MACHINE;
}

/* In another process of the namespaces: it takes milliseconds, in which the machine is made. */
static void leave_root(int machine)
{
	char word;

	if (read(machine, &word, 1) == 1) {
		int r = jail_leave_root();

		/* Without an answer there will be no machine. */
		if (write(machine, &r, sizeof(r)) != sizeof(r))
			_exit(1);
	}
	close(machine);
}

int confine_await(int root_fd, struct error *err)
{
	int result = -EPIPE;
	ssize_t n;

	if (root_fd < 0)
		return 0;
	do
		n = read(root_fd, &result, sizeof(result));
	while (n < 0 && errno == EINTR);
	close(root_fd);
	if (n != sizeof(result))
		result = -EPIPE;
	return result < 0 ? error_set(err, result, "the machine can't have an empty root: %s",
				      strerror(-result))
			  : 0;
}

/* PID 1: it lasts as long as anything in the namespace does. */
static void be_init(pid_t machine, int status_fd)
{
	int status;

	prctl(PR_SET_NAME, "viv-init");
	(void)jail_drop_capabilities();
	(void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	close_range(0, (unsigned)status_fd - 1, 0);
	close_range((unsigned)status_fd + 1, ~0u, 0);
	for (;;) {
		pid_t pid = waitpid(-1, &status, 0);

		if (pid < 0 && errno == EINTR)
			continue;
		if (pid < 0)
			_exit(0);
		if (pid != machine)
			continue;
		if (write(status_fd, &status, sizeof(status)) != sizeof(status))
			_exit(1);
		close(status_fd);
	}
}

/* In the new namespaces, as their first process: never returns but in the machine. */
static int enter(struct confine *c, int door, int sync, const int status[2], uid_t uid, gid_t gid,
		 struct error *err)
{
	int root[2];

	if (jail_map_user(uid, gid) < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, root) < 0)
		_exit(1);
	pid_t pid = fork();

	if (pid < 0)
		_exit(1);
	if (pid > 0) {
		close(root[1]);
		leave_root(root[0]);
		be_init(pid, status[1]);
	}
	close(root[0]);
	close(status[1]);
	c->has_namespaces = true;
	return become_machine(c, door, sync, root[1], err);
}

static void close_two(int fds[2])
{
	for (unsigned i = 0; i < 2; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

/* The broker's part: who the machine is, and that it lives. */
static int meet(struct confine *c, int sync, struct error *err)
{
	struct word w;
	int r = receive_word(sync, &w, &c->machine_pid);

	if (r < 0)
		return error_set(err, r, "the machine's process ended at once");
	c->has_namespaces = w.has_namespaces;
	c->landlock_abi = jail_landlock_abi(); /* it takes it, or ends */
	if (!w.is_fine) {
		*err = w.err;
		return -EIO;
	}
	w.machine_pid = c->machine_pid;
	return write(sync, &w, sizeof(w)) == sizeof(w)
		       ? CONFINE_BROKER
		       : error_set(err, -EPROTO, "the machine is gone");
}

static int split(struct confine *c, bool with_namespaces, const int *machines, struct error *err)
{
	int door[2] = { -1, -1 }, sync[2] = { -1, -1 }, status[2] = { -1, -1 }, on = 1;
	uid_t uid = geteuid();
	gid_t gid = getegid();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, door) < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sync) < 0 ||
	    pipe2(status, O_CLOEXEC) < 0 ||
	    setsockopt(sync[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0 ||
	    setsockopt(door[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) {
		int r = error_set(err, -errno, "the machine's broker can't be connected: %s",
				  strerror(errno));

		close_two(door);
		close_two(sync);
		close_two(status);
		return r;
	}
	pid_t pid = with_namespaces ? (pid_t)syscall(SYS_clone, NAMESPACES | SIGCHLD, 0, 0, 0, 0)
				    : fork();

	if (pid == 0) {
		c->is_machine = true;
		close(door[0]);
		close(sync[0]);
		close(status[0]);
		if (with_namespaces)
			return enter(c, door[1], sync[1], status, uid, gid, err);
		close(status[1]);
		return become_machine(c, door[1], sync[1], -1, err);
	}
	int r = pid < 0 ? error_set(err, -errno, "the kernel gives none (%s)", strerror(errno)) : 0;

	close(door[1]);
	close(sync[1]);
	close(status[1]);
	c->door = door[0];
	c->child = pid;
	c->status_fd = status[0];
	if (r == 0)
		r = meet(c, sync[0], err);
	close(sync[0]);
	if (r < 0) {
		close(door[0]);
		close(status[0]);
		if (pid > 0)
			while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
				continue;
		return r;
	}
	for (; *machines >= 0; machines++)
		close(*machines);
	return r;
}

int confine_split(struct confine *c, const int *machines, bool is_incoming, struct error *err)
{
	const struct confine none = { .door = -1,
				      .pagemap_fd = -1,
				      .root_fd = -1,
				      .faults_fd = -1,
				      .status_fd = -1,
				      .is_incoming = is_incoming };
	struct error why;

	*c = none;
	int r = split(c, true, machines, &why);

	if (r >= 0 || c->is_machine) {
		if (r < 0)
			*err = why;
		return r;
	}
	*c = none;
	c->why_not = why;
	return split(c, false, machines, err);
}

int confine_wait(struct confine *c)
{
	int status = 0;
	ssize_t n;

	if (c->has_namespaces) {
		do
			n = read(c->status_fd, &status, sizeof(status));
		while (n < 0 && errno == EINTR);
		/* init itself is gone: it was killed, and all with it */
		return n == sizeof(status) ? status : SIGKILL;
	}
	while (waitpid(c->child, &status, 0) < 0 && errno == EINTR)
		continue;
	return status;
}
