/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `viv tunnel`: standard input and output become a connection to a port of a machine, by its network's process (net/tunnel.h). No port of this host is opened.
 *
 * What stands on the other side of input and output may be a terminal, or pipes that others have as well: they are left blocking, and written to only in pieces
 * that poll(2) has promised room for.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "cli/cli.h"
#include "cli/tunnel.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "ctl/vmconfig.h"

#define BUFFER_BYTES 65536
#define PIECE_BYTES  4096 /* PIPE_BUF: POLLOUT of a pipe says that so many fit */

static const struct opt tunnel_opts[] = { OPT_END };
const struct opts_cmd cli_tunnel_cmd = {
	.name = "viv tunnel",
	.usage = "NAME PORT",
	.summary = "connect input and output to a TCP port of a machine",
	.details = "The machine must be in a network of its own behind NAT (--net nat). No port of "
		   "this host is opened: the connection goes "
		   "by a socket\nthat only you can reach. For ssh: ssh -o ProxyCommand='viv tunnel "
		   "NAME 22' user@NAME; viv ssh does that by itself.",
	.opts = tunnel_opts,
	.min_args = 2,
	.max_args = 2,
};

/* ---- the bytes ---- */

struct way {
	int from, to;
	bool is_ended; /* nothing comes any more */
	bool is_over;  /* ... and all that came has gone */
	size_t at, len;
	uint8_t buf[BUFFER_BYTES];
};

/* False: that way is broken. */
static bool take(struct way *w)
{
	ssize_t n = read(w->from, w->buf, sizeof(w->buf));

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return true;
	w->at = 0;
	w->len = n > 0 ? (size_t)n : 0;
	w->is_ended = n <= 0;
	return n >= 0;
}

static bool give(struct way *w)
{
	ssize_t n = write(w->to, w->buf + w->at, MIN(w->len, (size_t)PIECE_BYTES));

	if (n < 0)
		return errno == EINTR || errno == EAGAIN;
	w->at += (size_t)n;
	w->len -= (size_t)n;
	return true;
}

static void want(const struct way *w, struct pollfd *from, struct pollfd *to)
{
	*from = (struct pollfd){ .fd = !w->len && !w->is_ended ? w->from : -1, .events = POLLIN };
	*to = (struct pollfd){ .fd = w->len ? w->to : -1, .events = POLLOUT };
}

/* In both directions, until the guest's side has ended and all of it is out.  *@any: did anything come from there? */
static void carry(int fd, bool *any)
{
	static struct way out, in; /* too big for a stack */
	bool is_fine = true;

	out = (struct way){ .from = STDIN_FILENO, .to = fd };
	in = (struct way){ .from = fd, .to = STDOUT_FILENO };
	while (is_fine && !in.is_over) {
		struct pollfd p[4];

		want(&out, &p[0], &p[1]);
		want(&in, &p[2], &p[3]);
		if (poll(p, 4, -1) < 0 && errno != EINTR)
			return;
		if (p[0].fd >= 0 && p[0].revents)
			(void)take(&out); /* an input that is broken has ended */
		if (p[1].fd >= 0 && p[1].revents && !give(&out))
			out.len = 0,
			out.is_ended = true; /* the guest takes no more; it may still say something */
		if (p[2].fd >= 0 && p[2].revents)
			is_fine = take(&in);
		if (p[3].fd >= 0 && p[3].revents)
			is_fine = give(&in);
		*any |= in.len > 0;
		if (out.is_ended && !out.len && !out.is_over) {
			out.is_over = true;
			(void)shutdown(fd, SHUT_WR);
		}
		in.is_over = in.is_ended && !in.len;
	}
}

/* ---- */

/* Why there is no socket. */
static int explain(const char *name, struct error *err)
{
	struct vmconfig c;
	int r = vmconfig_init(&c, err);

	if (r == 0)
		r = vmconfig_load(&c, name, err);
	if (r == 0 && !cli_is_running(name))
		r = error_set(err, -ESRCH, "machine \"%s\" is not running; viv start %s starts it",
			      name, name);
	else if (r == 0 && strcmp(c.net, "nat") != 0)
		r = error_set(err, -ENOTSUP, "machine \"%s\" is in the network %s; there are tunnels only with --net nat",
			      name, c.net);
	else if (r == 0)
		r = error_set(err, -ENOENT, "the network of machine \"%s\" takes no tunnels: an older viv started it; restart it",
			      name);
	vmconfig_free(&c);
	return r;
}

int tunnel_open(const char *name, uint16_t port, struct error *err)
{
	char line[16];
	int r = paths_check_name("a machine", name, err);
	_cleanup_free_ char *path = r == 0 ? paths_run(name, "net.sock", err) : NULL;

	if (!path)
		return r < 0 ? r : -ENOMEM;
	int fd = socket_connect(path, err);

	if (fd == -ENOENT || fd == -ECONNREFUSED)
		return explain(name, err);
	int len = snprintf(line, sizeof(line), "%u\n", port);
	if (fd >= 0 && send(fd, line, (size_t)len, MSG_NOSIGNAL) != len) {
		close(fd);
		return error_set(err, -EPIPE, "the network of machine \"%s\" is gone", name);
	}
	return fd;
}

static int tunnel(const char *name, const char *port_text, struct error *err)
{
	bool any = false;
	uint64_t port;

	if (opts_parse_uint(port_text, &port) < 0 || port < 1 || port > 65535) {
		error_set(err, -EINVAL, "\"%s\" is no port; ports are 1 to 65535", port_text);
		return cli_usage(&cli_tunnel_cmd, err);
	}
	_cleanup_close_ int fd = tunnel_open(name, (uint16_t)port, err);

	if (fd < 0)
		return cli_fail(err);
	carry(fd, &any);
	if (any)
		return EXIT_FINE;
	error_set(err, -ECONNREFUSED, "port %llu of machine \"%s\" did not answer, or hung up at once",
		  (unsigned long long)port, name);
	return cli_fail(err);
}

int cli_tunnel(int argc, char **argv)
{
	struct opts_rest rest;
	struct error err;
	int status;

	if (!cli_parse(&cli_tunnel_cmd, argc, argv, NULL, &rest, &status))
		return status;
	status = tunnel(rest.args[0], rest.args[1], &err);
	opts_free(&cli_tunnel_cmd, NULL, &rest);
	return status;
}
