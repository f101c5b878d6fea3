/* SPDX-License-Identifier: Apache-2.0 */
#include "share/sharer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/host.h"
#include "base/log.h"
#include "base/opts.h"
#include "share/confine.h"
#include "share/port.h"
#include "share/server.h"

#define FILES_MAX	 (SHARE_OPEN_MAX + 64)
#define READY_TIMEOUT_MS 30000
#define SOCKET_MAX	 (1 << 20)

struct sharer {
	int fd;
	struct share_server *server;
	uint8_t *request, *reply; /* P9_MSIZE_MAX each */
};

/* ---- the socket ---- */

/* False: it is closed. */
static bool receive_all(int fd, uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n = recv(fd, data, len, MSG_WAITALL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data += n;
		len -= (size_t)n;
	}
	return true;
}

static bool send_all(int fd, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data += n;
		len -= (size_t)n;
	}
	return true;
}

/* ---- what is not the guest's ---- */

static bool answer_control(struct sharer *s, uint8_t type, const void *data, size_t len)
{
	uint8_t header[P9_HEADER];
	struct p9_out out = { .data = header, .cap = sizeof(header) };

	p9_put_u32(&out, (uint32_t)(P9_HEADER + len));
	p9_put_u8(&out, type);
	p9_put_u16(&out, SHARE_CONTROL);
	return send_all(s->fd, header, sizeof(header)) && send_all(s->fd, data, len);
}

static bool save(struct sharer *s)
{
	struct bytes state = { 0 };
	bool is_fine = share_server_save(s->server, &state) == 0 &&
		       answer_control(s, SHARE_C_SAVE, state.data, state.len);

	bytes_free(&state);
	return is_fine;
}

static bool load(struct sharer *s, size_t len)
{
	_cleanup_free_ uint8_t *state = malloc(len + 1);
	struct error err;
	unsigned nstale = 0;

	if (!state || !receive_all(s->fd, state, len))
		return false;
	int32_t r = share_server_load(s->server, state, len, &nstale, &err);

	if (r < 0)
		log_warn("share", "%s", err.text);
	else
		r = (int32_t)nstale;
	return answer_control(s, SHARE_C_LOAD, &r, sizeof(r));
}

/* False: the end. */
static bool serve_control(struct sharer *s, uint8_t type, size_t len)
{
	switch (type) {
	case SHARE_C_RESET:
		share_server_reset(s->server);
		return len == 0 && answer_control(s, type, NULL, 0);
	case SHARE_C_SAVE:
		return len == 0 && save(s);
	case SHARE_C_LOAD:
		return len <= SHARE_STATE_MAX && load(s, len);
	default:
		return false;
	}
}

static bool serve_one(struct sharer *s)
{
	uint32_t size;
	uint16_t tag;

	if (!receive_all(s->fd, s->request, P9_HEADER))
		return false;
	memcpy(&size, s->request, sizeof(size));
	memcpy(&tag, s->request + 5, sizeof(tag));
	if (size < P9_HEADER)
		return false;
	if (tag == SHARE_CONTROL)
		return serve_control(s, s->request[4], size - P9_HEADER);
	if (size > P9_MSIZE_MAX || !receive_all(s->fd, s->request + P9_HEADER, size - P9_HEADER))
		return false;
	return send_all(s->fd, s->reply, share_server_handle(s->server, s->request, size, s->reply));
}

/* ---- life ---- */

#define NO_FD UINT64_MAX
struct share_args {
	uint64_t fd, ready_fd, log_fd, log_fd_1, log_level;
	const char *dir, *tag;
	bool is_readonly;
};
// clang-format off
static const struct opt share_opts[] = {
	OPT_UINT(struct share_args, fd, "fd", "FD", "socket to the machine", 0, 65535),
	OPT_UINT(struct share_args, ready_fd, "ready-fd", "FD", "pipe that is told when it serves", 0, 65535),
	OPT_UINT(struct share_args, log_fd, "log-fd", "FD", "the machine's log", 0, 65535),
	OPT_UINT(struct share_args, log_fd_1, "log-fd-1", "FD", "its second file", 0, 65535),
	OPT_UINT(struct share_args, log_level, "log-level", "N", "what is logged", 0, LOG_NLEVELS - 1),
	OPT_STRING(struct share_args, dir, "dir", "PATH", "the folder"),
	OPT_STRING(struct share_args, tag, "tag", "TAG", "its name in the guest"),
	OPT_FLAG(struct share_args, is_readonly, "read-only", "nothing in it changes"),
	OPT_END,
};
static const struct opts_cmd share_cmd = {
	.name = "viv share",
	.usage = "",
	.summary = "server of a shared folder of one machine (started by viv itself)",
	.opts = share_opts,
};
// clang-format on

static void report(int fd, const char *text)
{
	if (fd >= 0) {
		dprintf(fd, "%s\n", text);
		close(fd);
	} else if (strcmp(text, "ok") != 0) {
		fprintf(stderr, "viv: %s\n", text);
	}
}

static void limit_files(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = MIN(lim.rlim_max, (rlim_t)FILES_MAX);
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

static int set_up(struct sharer *s, const struct share_args *a, struct share_confinement *c,
		  struct error *err)
{
	int size = SOCKET_MAX, root = share_enter(a->dir, a->is_readonly, c, err);

	if (root < 0)
		return root;
	umask(0); /* the guest's has been applied */
	limit_files();
	(void)setsockopt(s->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	s->request = malloc(P9_MSIZE_MAX);
	s->reply = malloc(P9_MSIZE_MAX);
	if (!s->request || !s->reply) {
		close(root);
		return error_set(err, -ENOMEM, "the server of a shared folder has no memory");
	}
	int r = share_server_create(&s->server, root, a->is_readonly, err);

	return r == 0 ? share_confine(root, a->is_readonly, c, err) : r;
}

static void tell_confinement(const struct share_args *a, const struct share_confinement *c)
{
	char landlock[32] = "no Landlock";

	if (c->landlock_abi)
		snprintf(landlock, sizeof(landlock), "Landlock (ABI %d)", c->landlock_abi);
	if (c->has_namespaces)
		log_info("share",
			 "%s: a server in namespaces of its own, the folder its root, %s, seccomp",
			 a->tag, landlock);
	else
		log_warn("share", "%s: a server with %s, seccomp; no own namespaces: %s", a->tag,
			 landlock, c->why_not.text);
}

static int serve(const struct share_args *a)
{
	struct sharer s = { .fd = (int)a->fd };
	struct share_confinement c;
	struct error err;
	int ready_fd = a->ready_fd == NO_FD ? -1 : (int)a->ready_fd;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* the guest gets EFBIG */
	prctl(PR_SET_NAME, "viv-share");
	int r = set_up(&s, a, &c, &err);

	if (r == 0)
		tell_confinement(a, &c);
	report(ready_fd, r < 0 ? err.text : "ok");
	while (r == 0 && serve_one(&s))
		continue;
	share_server_destroy(s.server);
	free(s.request);
	free(s.reply);
	return r < 0;
}

int sharer_cli(int argc, char **argv)
{
	struct share_args a = {
		.fd = NO_FD, .ready_fd = NO_FD, .log_fd = NO_FD, .log_fd_1 = NO_FD, .log_level = LOG_WARN
	};
	struct opts_rest rest = { 0 };
	struct error err = { 0 };
	int r = opts_parse(&share_cmd, argc, argv, &a, &rest, &err);

	if (r == OPTS_HELP)
		opts_help(&share_cmd, stdout);
	if (r >= 0)
		opts_free(&share_cmd, &a, &rest);
	if (r == OPTS_HELP)
		return 0;
	if (r == OPTS_OK && (a.fd == NO_FD || !a.dir || !a.tag))
		r = error_set(&err, -EINVAL,
			      "viv share is started by viv itself: it needs --fd, --dir and --tag");
	if (r < 0) {
		fprintf(stderr, "viv: %s\n", err.text);
		if (a.ready_fd != NO_FD)
			dprintf((int)a.ready_fd, "%s\n", err.text);
		return 2;
	}
	log_set_level((enum log_level)a.log_level);
	if (a.log_fd != NO_FD && a.log_fd_1 != NO_FD)
		log_set_files((const int[2]){ (int)a.log_fd, (int)a.log_fd_1 }, LOG_FILE_MAX);
	return serve(&a);
}

/* ---- starting it ---- */

/* After the fork, before the exec: only calls that are safe there. */
static void __attribute__((noreturn))
run_child(const char *exe, char **argv, const int fds[4], pid_t parent)
{
	sigset_t none;

	setsid();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1); /* it died before we could ask to be told */
	for (unsigned i = 0; i < 4; i++)
		if (fds[i] >= 0)
			fcntl(fds[i], F_SETFD, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(exe, argv);
	static const char text[] = "cannot start the server of a shared folder\n";

	if (write(fds[1], text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

/* Waits for "ok\n".  Otherwise the child's sentence goes to @err. */
static int await_ready(int fd, struct error *err)
{
	char text[sizeof(err->text)] = "";
	size_t len = 0;

	while (!strchr(text, '\n') && len < sizeof(text) - 1) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		int r = poll(&pfd, 1, READY_TIMEOUT_MS);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return error_set(err, -ETIMEDOUT,
					 "the server of a shared folder does not come up");
		ssize_t n = read(fd, text + len, sizeof(text) - 1 - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
		text[len] = 0;
	}
	if (strcmp(text, "ok\n") == 0)
		return 0;
	text[strcspn(text, "\n")] = 0;
	return error_set(err, -ECONNABORTED, "%s",
			 *text ? text : "the server of a shared folder ended at once");
}

static void close_pair(int fds[2])
{
	for (unsigned i = 0; i < 2; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

int sharer_spawn(const struct sharer_options *o, int *fd, pid_t *pid, struct error *err)
{
	int sock[2] = { -1, -1 }, ready[2] = { -1, -1 }, logs[2];
	char numbers[5][16];
	char *argv[20] = { "viv",	 "share",
			   "--fd",	 numbers[0],
			   "--ready-fd", numbers[1],
			   "--dir",	 (char *)(uintptr_t)o->path,
			   "--tag",	 (char *)(uintptr_t)o->tag };
	unsigned n = 10;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock) < 0 || pipe2(ready, O_CLOEXEC) < 0) {
		int r = error_set(err, -errno, "cannot connect the server of a shared folder: %s",
				  strerror(errno));

		close_pair(sock);
		close_pair(ready);
		return r;
	}
	snprintf(numbers[0], sizeof(numbers[0]), "%d", sock[1]);
	snprintf(numbers[1], sizeof(numbers[1]), "%d", ready[1]);
	if (log_files(logs)) {
		static char *const names[] = { "--log-fd", "--log-fd-1", "--log-level" };
		const int values[] = { logs[0], logs[1], (int)log_level() };

		for (unsigned i = 0; i < 3; i++) {
			snprintf(numbers[2 + i], sizeof(numbers[0]), "%d", values[i]);
			argv[n++] = names[i];
			argv[n++] = numbers[2 + i];
		}
	}
	if (o->is_readonly)
		argv[n++] = "--read-only";
	pid_t parent = getpid(), child = fork();

	if (!child)
		run_child(o->exe ? o->exe : "/proc/self/exe", argv,
			  (const int[4]){ sock[1], ready[1], logs[0], logs[1] }, parent);
	int r = child < 0 ? error_set(err, -errno, "cannot start the server of a shared folder: %s",
				      strerror(errno))
			  : 0;

	close(sock[1]);
	close(ready[1]);
	if (r == 0)
		r = await_ready(ready[0], err);
	close(ready[0]);
	if (r < 0) {
		close(sock[0]);
		if (child > 0)
			kill(child, SIGKILL);
		while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
			continue;
		return r;
	}
	*fd = sock[0];
	*pid = child;
	return 0;
}
