/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/opts.h"
#include "cli/tcplink.h"
#include "cli/tls.h"
#include "ctl/paths.h"
#include "ctl/socket.h"

/* A path from here; socket_connect() wants one from the root. */
static char *from_root(const char *path, struct error *err)
{
	_cleanup_free_ char *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0);

	if (path[0] == '/')
		return paths_format(err, "%s", path);
	if (!cwd) {
		error_set(err, -errno, "the current directory is not there: %s", strerror(errno));
		return NULL;
	}
	return paths_format(err, "%s/%s", cwd, path);
}

static int connect_unix(struct transport *t, const char *path, unsigned n, struct error *err)
{
	_cleanup_free_ char *full = from_root(path, err);
	int r = full ? 0 : -ENOENT;

	while (r == 0 && t->n < n) {
		int fd = socket_connect(full, err);

		if (fd == -ENOENT || fd == -ECONNREFUSED)
			r = error_set(err, fd, "nobody listens on %s; viv receive --listen unix:%s does",
				      path, path);
		else if (fd < 0)
			r = fd;
		else
			t->fds[t->n++] = fd;
	}
	return r;
}

static int take_fds(struct transport *t, const char *list, struct error *err)
{
	const char *at = list;
	char *end;

	for (;; at = end + 1) {
		long fd = strtol(at, &end, 10);

		if (end == at || (*end && *end != ',') || fd < 0 || fd > 65535 || t->n == TRANSPORT_MAX_LINKS)
			return error_set(err, -EINVAL, "\"fd:%s\" is no list of descriptors", list);
		if (fcntl((int)fd, F_GETFD) < 0)
			return error_set(err, -EBADF, "descriptor %ld is not open", fd);
		t->fds[t->n++] = (int)fd;
		if (!*end)
			return 0;
	}
}

/* "[USER@]HOST[:PORT]"; an address of IPv6 stands in brackets. */
struct ssh_target {
	char host[256], port[8];
};

static int parse_ssh(struct ssh_target *out, const char *text, struct error *err)
{
	const char *at = strrchr(text, '@'), *host = at ? at + 1 : text;
	const char *end = host[0] == '[' ? strchr(host, ']') : NULL;
	const char *colon = strchr(end ? end : host, ':');
	size_t len = colon ? (size_t)(colon - text) : strlen(text);
	uint64_t port = 0;

	/* One that begins with a dash would be an option of ssh's. */
	if (!len || !host[0] || host == colon || text[0] == '-' || host[0] == '-' ||
	    len >= sizeof(out->host) || strpbrk(text, " \t\n/") ||
	    (colon && (opts_parse_uint(colon + 1, &port) < 0 || !port || port > 65535)))
		return error_set(err, -EINVAL,
				 "\"ssh://%s\" names no host; it is ssh://[USER@]HOST[:PORT]", text);
	if (end) /* ssh takes it without */
		snprintf(out->host, sizeof(out->host), "%.*s%.*s", (int)(host - text), text,
			 (int)(end - host - 1), host + 1);
	else
		snprintf(out->host, sizeof(out->host), "%.*s", (int)len, text);
	snprintf(out->port, sizeof(out->port), "%llu", (unsigned long long)(colon ? port : 22));
	return 0;
}

static void run_ssh(const struct ssh_target *to, bool has_port, int fd)
{
	const char *args[10] = { "ssh", "-T" };
	unsigned n = 2;
	sigset_t none;

	if (has_port) {
		args[n++] = "-p";
		args[n++] = to->port;
	}
	args[n++] = to->host;
	args[n++] = "--";
	args[n++] = "viv receive --stdio";
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* Ctrl-C is for viv, which cancels in order. */
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_DFL);
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	execvp("ssh", (char **)(uintptr_t)args);
	fprintf(stderr, "viv: cannot run ssh: %s\n", strerror(errno));
	_exit(127);
}

/* ssh is the other end itself. */
static int open_ssh(struct transport *t, const struct ssh_target *to, struct error *err)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	fflush(NULL);
	pid_t pid = fork();

	if (pid == 0)
		run_ssh(to, strcmp(to->port, "22") != 0, fds[1]);
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		return error_set(err, -errno, "cannot start a process: %s", strerror(errno));
	}
	t->fds[t->n++] = fds[0];
	return 0;
}

static int connect_ssh(struct transport *t, const char *text, unsigned n, struct error *err)
{
	struct ssh_target to;
	int r = parse_ssh(&to, text, err);

	while (r == 0 && t->n < n)
		r = open_ssh(t, &to, err);
	return r;
}

int transport_may_be_plain(const char *where, const struct transport_options *o, struct error *err)
{
	return o->is_insecure
		       ? 0
		       : error_set(err, -EPERM,
				   "over %s everybody on the way reads and changes the machine's "
				   "memory, and anybody can be the peer; tls:// and ssh:// "
				   "are safe, and --insecure says that you know",
				   where);
}

static int connect_tcp(struct transport *t, const char *where, unsigned n,
		       const struct transport_options *o, struct error *err)
{
	bool is_tls = !strncmp(where, "tls", 3);
	struct tcplink_address a;
	int r = is_tls ? 0 : transport_may_be_plain(where, o, err);

	if (r == 0)
		r = tcplink_parse(&a, is_tls ? "tls" : "tcp", where + 6, err);
	while (r == 0 && t->n < n) {
		int fd = tcplink_connect(&a, err);

		if (fd >= 0 && is_tls)
			fd = tls_open_link(fd, a.host, o->certificates, err);
		if (fd < 0)
			r = fd;
		else
			t->fds[t->n++] = fd;
	}
	return r;
}

int transport_connect(struct transport *t, const char *where, unsigned n,
		      const struct transport_options *o, struct error *err)
{
	int r;

	*t = (struct transport){ .n = 0 };
	if (!strncmp(where, "unix:", 5))
		r = connect_unix(t, where + 5, n, err);
	else if (!strncmp(where, "tls://", 6) || !strncmp(where, "tcp://", 6))
		r = connect_tcp(t, where, n, o, err);
	else if (!strncmp(where, "ssh://", 6))
		r = connect_ssh(t, where + 6, n, err);
	else if (!strncmp(where, "fd:", 3))
		r = take_fds(t, where + 3, err);
	else
		r = error_set(err, -EINVAL, "\"%s\" is no way to another host; there are ssh://HOST, tls://HOST:PORT, unix:PATH and fd:N",
			      where);
	if (r < 0)
		transport_close(t);
	return r;
}

void transport_close(struct transport *t)
{
	while (t->n)
		close(t->fds[--t->n]);
}
