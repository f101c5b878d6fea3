/* SPDX-License-Identifier: Apache-2.0 */
/* `viv net`: its options, both ways: read by the network process, written by the one that starts it. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/opts.h"
#include "net/netd.h"

#define READY_TIMEOUT_MS 20000

/* ---- forwards ---- */

static int parse_port(const char *text, uint16_t *port)
{
	uint64_t v;

	if (opts_parse_uint(text, &v) < 0 || v < 1 || v > 65535)
		return -EINVAL;
	*port = v;
	return 0;
}

static void set_host(struct netd_forward *f, const struct in_addr *v4, const struct in6_addr *v6,
		     uint16_t port)
{
	memset(&f->host, 0, sizeof(f->host));
	if (v6) {
		struct sockaddr_in6 *s = (struct sockaddr_in6 *)&f->host;
		s->sin6_family = AF_INET6;
		s->sin6_addr = *v6;
		s->sin6_port = htons(port);
	} else {
		struct sockaddr_in *s = (struct sockaddr_in *)&f->host;
		s->sin_family = AF_INET;
		s->sin_addr = *v4;
		s->sin_port = htons(port);
	}
}

/* Cuts the part up to the next ':' off *@p; brackets hide colons and vanish.  NULL: malformed. */
static char *cut_part(char **p)
{
	char *part = *p, *end;

	if (!part)
		return NULL;
	if (*part == '[') {
		end = strchr(++part, ']');
		if (!end || (end[1] && end[1] != ':'))
			return NULL;
		*p = end[1] ? end + 2 : NULL;
		*end = 0;
		return part;
	}
	end = strchr(part, ':');
	*p = end ? end + 1 : NULL;
	if (end)
		*end = 0;
	return part;
}

/* Parts without the protocol: HOSTPORT GUESTPORT, with an address before either. */
static int parse_parts(char **parts, unsigned n, struct netd_forward *f)
{
	struct in_addr v4 = { htonl(INADDR_LOOPBACK) };
	struct in6_addr v6;
	bool is_v6 = false;
	uint16_t host_port;
	unsigned i = 0;

	if (n < 2 || n > 4)
		return -EINVAL;
	if (n > 2 && parse_port(parts[0], &host_port) < 0) {
		is_v6 = inet_pton(AF_INET6, parts[0], &v6) == 1;
		if (!is_v6 && inet_pton(AF_INET, parts[0], &v4) != 1)
			return -EINVAL;
		i++;
	}
	if (parse_port(parts[i++], &host_port) < 0)
		return -EINVAL;
	f->guest.s_addr = 0;
	if (n - i == 2 && inet_pton(AF_INET, parts[i++], &f->guest) != 1)
		return -EINVAL;
	if (n - i != 1 || parse_port(parts[i], &f->guest_port) < 0)
		return -EINVAL;
	set_host(f, &v4, is_v6 ? &v6 : NULL, host_port);
	return 0;
}

int netd_parse_forward(const char *text, struct netd_forward *out, struct error *err)
{
	char copy[256], *p = copy, *parts[6];
	unsigned n = 0;
	struct netd_forward f = { 0 };

	if (strlen(text) >= sizeof(copy))
		goto bad;
	strcpy(copy, text);
	if (!strncmp(copy, "tcp:", 4) || !strncmp(copy, "udp:", 4)) {
		f.is_udp = *copy == 'u';
		p += 4;
	}
	while (p) {
		if (n == ARRAY_SIZE(parts) || !(parts[n++] = cut_part(&p)))
			goto bad;
	}
	if (parse_parts(parts, n, &f) == 0) {
		*out = f;
		return 0;
	}
bad:
	return error_set(err, -EINVAL,
			 "'%s' is no port forward; write "
			 "[tcp:|udp:][HOSTADDR:]HOSTPORT:[GUESTADDR:]GUESTPORT, "
			 "for example 2222:22",
			 text);
}

/* ---- the network process ---- */

struct net_args {
	uint64_t fd, ready_fd, tunnel_fd, log_fd, log_fd_1, log_level;
	bool is_restricted, no_ipv6, no_host_loopback;
	struct opt_list forwards;
};
#define NO_FD UINT32_MAX

// clang-format off
static const struct opt net_opts[] = {
	OPT_UINT(struct net_args, fd, "fd", "N", "packet socket to the machine (needed)", 0, INT32_MAX),
	OPT_UINT(struct net_args, ready_fd, "ready-fd", "N", "tell here, once, whether it serves", 0, INT32_MAX),
	OPT_UINT(struct net_args, tunnel_fd, "tunnel-fd", "N", "listening UNIX socket: who connects reaches the guest's ports", 0, INT32_MAX),
	OPT_UINT(struct net_args, log_fd, "log-fd", "N", "one file of the log", 0, INT32_MAX),
	OPT_UINT(struct net_args, log_fd_1, "log-fd-1", "N", "the other", 0, INT32_MAX),
	OPT_UINT(struct net_args, log_level, "log-level", "N", "from which level on", 0, LOG_NLEVELS - 1),
	OPT_FLAG(struct net_args, is_restricted, "restricted", "the guest reaches nothing outside; forwards still come in"),
	OPT_FLAG(struct net_args, no_ipv6, "without-ipv6", "IPv4 only"),
	OPT_FLAG(struct net_args, no_host_loopback, "without-host-loopback", "10.0.2.2 does not lead to the host's own 127.0.0.1"),
	OPT_LIST(struct net_args, forwards, "forward", "[tcp:|udp:][ADDR:]PORT:[ADDR:]PORT", "lead a host port to the guest"),
	OPT_END,
};
static const struct opts_cmd net_cmd = {
	.name = "viv net",
	.usage = "",
	.summary = "user-mode network of one machine (started by viv itself)",
	.opts = net_opts,
};
// clang-format on

static int fill_config(const struct net_args *a, struct netd_config *cfg, struct error *err)
{
	*cfg = (struct netd_config){
		.fd = (int)a->fd,
		.ready_fd = a->ready_fd == NO_FD ? -1 : (int)a->ready_fd,
		.tunnel_fd = a->tunnel_fd == NO_FD ? -1 : (int)a->tunnel_fd,
		.is_restricted = a->is_restricted,
		.no_ipv6 = a->no_ipv6,
		.no_host_loopback = a->no_host_loopback,
		.nforwards = a->forwards.n,
	};
	if (a->fd == NO_FD)
		return error_set(err, -EINVAL, "viv net is started by viv itself: it needs --fd");
	if (a->forwards.n > NETD_FORWARDS_MAX)
		return error_set(err, -EINVAL, "%u port forwards; at most %u are possible",
				 a->forwards.n, NETD_FORWARDS_MAX);
	for (unsigned i = 0; i < a->forwards.n; i++) {
		int r = netd_parse_forward(a->forwards.v[i], &cfg->forwards[i], err);
		if (r < 0)
			return r;
	}
	return 0;
}

int netd_cli(int argc, char **argv)
{
	static struct netd_config cfg;
	struct net_args a = { .fd = NO_FD,
			      .ready_fd = NO_FD,
			      .tunnel_fd = NO_FD,
			      .log_fd = NO_FD,
			      .log_fd_1 = NO_FD,
			      .log_level = LOG_WARN };
	struct opts_rest rest = { 0 };
	struct error err = { 0 };

	int r = opts_parse(&net_cmd, argc, argv, &a, &rest, &err);
	if (r == OPTS_HELP) {
		opts_help(&net_cmd, stdout);
		opts_free(&net_cmd, &a, &rest);
		return 0;
	}
	if (r == OPTS_OK) {
		r = fill_config(&a, &cfg, &err);
		opts_free(&net_cmd, &a, &rest);
	}
	if (r < 0) {
		fprintf(stderr, "viv: %s\n", err.text);
		if (a.ready_fd != NO_FD)
			dprintf((int)a.ready_fd, "%s\n", err.text);
		return 2;
	}
	log_set_level((enum log_level)a.log_level);
	if (a.log_fd != NO_FD && a.log_fd_1 != NO_FD)
		log_set_files((const int[2]){ (int)a.log_fd, (int)a.log_fd_1 }, LOG_FILE_MAX);
	return netd_main(&cfg);
}

/* ---- starting it ---- */

enum { ARGS_MAX = 24 + 2 * NETD_FORWARDS_MAX, NFDS = 5 };

/* After the fork, before the exec: only calls that are safe there. */
static void __attribute__((noreturn))
run_child(const char *exe, char **argv, const int fds[NFDS], pid_t parent)
{
	setsid();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1); /* it died before we could ask to be told */
	for (unsigned i = 0; i < NFDS; i++)
		if (fds[i] >= 0)
			fcntl(fds[i], F_SETFD, 0);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(exe, argv);
	int e = errno;
	static const char text[] = "cannot start the network process\n";
	if (write(fds[1], text, sizeof(text) - 1) < 0)
		_exit(e);
	_exit(1);
}

/* Waits for "ok\n".  Otherwise the child's sentence goes to @err. */
static int await_ready(int fd, struct error *err)
{
	char text[sizeof(err->text)] = "";
	size_t len = 0;

	for (;;) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		int r = poll(&pfd, 1, READY_TIMEOUT_MS);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return error_set(err, -ETIMEDOUT, "the network process does not come up");
		ssize_t n = read(fd, text + len, sizeof(text) - 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n > 0)
			len += n;
		text[len] = 0;
		if (n <= 0 || strchr(text, '\n') || len == sizeof(text) - 1)
			break;
	}
	if (!strcmp(text, "ok\n"))
		return 0;
	text[strcspn(text, "\n")] = 0;
	return error_set(err, -ECONNABORTED, "%s", *text ? text : "the network process ended at once");
}

static void close_pair(int fds[2])
{
	for (unsigned i = 0; i < 2; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

int netd_begin(const struct netd_options *o, int *fd, pid_t *pid, int *ready_fd, struct error *err)
{
	int sock[2] = { -1, -1 }, ready[2] = { -1, -1 }, r;
	char fd_text[16], ready_text[16], tunnel_text[16], log_text[2][16], level_text[16];
	int logs[2];
	char *argv[ARGS_MAX] = { "viv", "net", "--fd", fd_text, "--ready-fd", ready_text };
	unsigned n = 6;

	if (o->nforwards > NETD_FORWARDS_MAX)
		return error_set(err, -EINVAL, "%u port forwards; at most %u are possible",
				 o->nforwards, NETD_FORWARDS_MAX);
	for (unsigned i = 0; i < o->nforwards; i++) {
		struct netd_forward f;
		r = netd_parse_forward(o->forwards[i], &f, err);
		if (r < 0)
			return r;
		argv[n++] = "--forward";
		argv[n++] = (char *)(uintptr_t)o->forwards[i];
	}
	if (log_files(logs)) {
		argv[n++] = "--log-fd";
		argv[n++] = log_text[0];
		argv[n++] = "--log-fd-1";
		argv[n++] = log_text[1];
		argv[n++] = "--log-level";
		argv[n++] = level_text;
		snprintf(log_text[0], sizeof(log_text[0]), "%d", logs[0]);
		snprintf(log_text[1], sizeof(log_text[1]), "%d", logs[1]);
		snprintf(level_text, sizeof(level_text), "%d", (int)log_level());
	}
	if (o->tunnel_fd > 0) {
		argv[n++] = "--tunnel-fd";
		argv[n++] = tunnel_text;
		snprintf(tunnel_text, sizeof(tunnel_text), "%d", o->tunnel_fd);
	}
	if (o->is_restricted)
		argv[n++] = "--restricted";
	if (o->no_ipv6)
		argv[n++] = "--without-ipv6";
	if (o->no_host_loopback)
		argv[n++] = "--without-host-loopback";
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock) < 0 ||
	    pipe2(ready, O_CLOEXEC) < 0) {
		r = error_set(err, -errno, "cannot connect a network process: %s", strerror(errno));
		goto fail;
	}
	snprintf(fd_text, sizeof(fd_text), "%d", sock[1]);
	snprintf(ready_text, sizeof(ready_text), "%d", ready[1]);
	pid_t parent = getpid(), child = fork();
	if (child < 0) {
		r = error_set(err, -errno, "cannot start a network process: %s", strerror(errno));
		goto fail;
	}
	if (!child)
		run_child(o->exe ? o->exe : "/proc/self/exe", argv,
			  (const int[NFDS]){ sock[1], ready[1], logs[0], logs[1],
					     o->tunnel_fd > 0 ? o->tunnel_fd : -1 },
			  parent);
	close(sock[1]);
	close(ready[1]);
	*fd = sock[0];
	*pid = child;
	*ready_fd = ready[0];
	return 0;
fail:
	close_pair(sock);
	close_pair(ready);
	return r;
}

int netd_await(int ready_fd, pid_t pid, struct error *err)
{
	int r = await_ready(ready_fd, err);

	close(ready_fd);
	if (r == 0 || !pid)
		return r;
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return r;
}

int netd_spawn(const struct netd_options *o, int *fd, pid_t *pid, struct error *err)
{
	int sock, ready_fd;
	pid_t child;
	int r = netd_begin(o, &sock, &child, &ready_fd, err);

	if (r < 0)
		return r;
	r = netd_await(ready_fd, child, err);
	if (r < 0) {
		close(sock);
		return r;
	}
	*fd = sock;
	*pid = child;
	return 0;
}
