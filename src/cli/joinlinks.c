/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/joinlinks.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/host.h"
#include "ctl/migrate_link.h"
#include "ctl/socket.h"

#define RETRY_MS   20
#define MESSAGE_MS 5000
#define NS_PER_MS  1000000

/* Waits for a connection to @listen_fd, -1: for nothing, and no longer than @fd's peer is there.  1, 0: after @limit_ms, or -EPIPE. */
static int await(int listen_fd, int fd, int limit_ms, struct error *err)
{
	struct pollfd p[2] = { { .fd = listen_fd, .events = POLLIN }, { .fd = fd, .events = POLLRDHUP } };

	if (poll(p, 2, limit_ms) <= 0)
		return 0;
	if (p[1].revents & (POLLRDHUP | POLLHUP | POLLERR))
		return error_set(err, -EPIPE, "the source is gone");
	return p[0].revents != 0;
}

int joinlinks_pass(const uint8_t id[MIGRATE_ID_BYTES], uint16_t index, int fd, struct error *err)
{
	_cleanup_free_ char *path = migrate_socket_path(id, "links", err);
	int64_t end_ms = migrate_now_ns() / NS_PER_MS + JOINLINKS_MS;
	_cleanup_close_ int conn = -ENOENT;

	if (!path)
		return -ENOMEM;
	while ((conn = socket_connect_within(path, MESSAGE_MS, err)) < 0) {
		if (conn != -ENOENT && conn != -ECONNREFUSED)
			return conn;
		if (migrate_now_ns() / NS_PER_MS > end_ms)
			return error_set(err, -ETIMEDOUT, "a link joins a migration that did not come");
		int r = await(-1, fd, RETRY_MS, err);

		if (r < 0)
			return r;
	}
	return socket_send_fd(conn, fd, &index, sizeof(index), err);
}

/* One link, or -1: somebody who has none. */
static int take(int listen_fd, uint16_t *index)
{
	_cleanup_close_ int conn = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
	int fd = -1;

	if (conn >= 0 &&
	    socket_receive_fd(conn, MESSAGE_MS, index, sizeof(*index), &fd) != sizeof(*index) &&
	    fd >= 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static int gather(int listen_fd, int first, int *fds, unsigned n, struct error *err)
{
	int64_t end_ms = migrate_now_ns() / NS_PER_MS + JOINLINKS_MS;

	for (unsigned got = 1; got < n;) {
		int64_t left_ms = end_ms - migrate_now_ns() / NS_PER_MS;
		uint16_t index;

		if (left_ms <= 0)
			return error_set(err, -ETIMEDOUT, "of %u links only %u came", n, got);
		int r = await(listen_fd, first, (int)left_ms, err);

		if (r < 0)
			return r;
		int fd = r ? take(listen_fd, &index) : -1;

		if (fd < 0)
			continue;
		if (!index || index >= n || fds[index] >= 0) {
			close(fd);
			return error_set(err, -EPROTO, "a link of another migration");
		}
		fds[index] = fd;
		got++;
	}
	return 0;
}

int joinlinks_gather(const uint8_t id[MIGRATE_ID_BYTES], int first, int *fds, unsigned n,
		     struct error *err)
{
	_cleanup_free_ char *path = migrate_socket_path(id, "links", err);
	_cleanup_close_ int listen_fd = path ? socket_listen(path, err) : -ENOMEM;

	if (listen_fd < 0)
		return listen_fd;
	for (unsigned i = 0; i < n; i++)
		fds[i] = -1;
	int r = gather(listen_fd, first, fds, n, err);

	if (host.unlinkat(AT_FDCWD, path, 0) < 0 && r == 0)
		r = error_set(err, -errno, "cannot remove %s: %s", path, strerror(errno));
	for (unsigned i = 1; r < 0 && i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return r;
}
