/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

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

int transport_connect(struct transport *t, const char *where, unsigned n, struct error *err)
{
	int r;

	*t = (struct transport){ .n = 0 };
	if (!strncmp(where, "unix:", 5))
		r = connect_unix(t, where + 5, n, err);
	else if (!strncmp(where, "fd:", 3))
		r = take_fds(t, where + 3, err);
	else
		r = error_set(err, -EINVAL,
			      "\"%s\" is no way to another host; there are unix:PATH and fd:N", where);
	if (r < 0)
		transport_close(t);
	return r;
}

void transport_close(struct transport *t)
{
	while (t->n)
		close(t->fds[--t->n]);
}
