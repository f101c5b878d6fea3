/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include "base/host.h"
#include "ctl/socket.h"

/* The address of @path through an open directory; *@dir is to be closed after use. */
static int make_address(const char *path, struct sockaddr_un *sa, int *dir, struct error *err)
{
	const char *slash = strrchr(path, '/');
	char parent[4096];

	if (!slash || slash == path || (size_t)(slash - path) >= sizeof(parent) || strlen(slash + 1) > 64)
		return error_set(err, -ENAMETOOLONG, "%s cannot be a socket's path", path);
	memcpy(parent, path, (size_t)(slash - path));
	parent[slash - path] = 0;
	*dir = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*dir < 0)
		return -errno;
	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(sa->sun_path, sizeof(sa->sun_path), "/proc/self/fd/%d/%s", *dir, slash + 1);
	return 0;
}

int socket_connect_within(const char *path, unsigned limit_ms, struct error *err)
{
	const struct timeval limit = { .tv_sec = limit_ms / 1000, .tv_usec = limit_ms % 1000 * 1000 };
	struct sockaddr_un sa;
	_cleanup_close_ int dir = -1;
	int r = make_address(path, &sa, &dir, err);

	if (r < 0)
		return r;
	int fd = host.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	if (limit_ms) {
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	}
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		r = -errno;
		close(fd);
		if (r != -ENOENT && r != -ECONNREFUSED)
			error_set(err, r, "cannot connect to %s: %s", path, strerror(-r));
		return r;
	}
	return fd;
}

int socket_connect(const char *path, struct error *err)
{
	return socket_connect_within(path, 0, err);
}

static int bind_and_listen(int fd, const struct sockaddr_un *sa)
{
	/* The directory is private, and so is the socket from its first moment. */
	mode_t old = umask(0177);
	int r = bind(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 ? -errno : 0;

	umask(old);
	if (r == 0 && listen(fd, 16) < 0)
		r = -errno;
	return r;
}

int socket_listen(const char *path, struct error *err)
{
	struct sockaddr_un sa;
	_cleanup_close_ int dir = -1;
	int r = make_address(path, &sa, &dir, err);

	if (r < 0)
		return r == -ENAMETOOLONG ? r
					  : error_set(err, r, "cannot open the directory of %s: %s",
						      path, strerror(-r));
	int fd = host.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
	r = bind_and_listen(fd, &sa);
	if (r == -EADDRINUSE) {
		int other = socket_connect(path, NULL);

		if (other >= 0) {
			close(other);
		} else if (other == -ECONNREFUSED) {
			unlink(sa.sun_path);
			r = bind_and_listen(fd, &sa);
		}
	}
	if (r < 0) {
		close(fd);
		return error_set(err, r, "cannot listen on %s: %s", path,
				 r == -EADDRINUSE ? "another process does" : strerror(-r));
	}
	return fd;
}

/* ---- descriptors ---- */

union one_fd {
	struct cmsghdr h;
	char room[CMSG_SPACE(sizeof(int))];
};

int socket_send_fd(int sock, int fd, const void *data, size_t len, struct error *err)
{
	union one_fd control = { .h = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec iov = { (void *)(uintptr_t)data, len };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };

	memcpy(CMSG_DATA(&control.h), &fd, sizeof(fd));
	ssize_t n = sendmsg(sock, &msg, MSG_NOSIGNAL);

	if (n != (ssize_t)len)
		return error_set(err, n < 0 ? -errno : -EIO, "cannot hand over a descriptor: %s",
				 n < 0 ? strerror(errno) : "it was cut short");
	return 0;
}

ssize_t socket_receive_fd(int sock, unsigned limit_ms, void *data, size_t cap, int *fd)
{
	const struct timeval limit = { .tv_sec = limit_ms / 1000, .tv_usec = limit_ms % 1000 * 1000 };
	union one_fd control = { 0 };
	struct iovec iov = { data, cap };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };

	*fd = -1;
	if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
		return -errno;
	ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);

	if (n < 0)
		return -errno;
	const struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
		return n;
	/* CMSG_SPACE() of one has room for two. */
	for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
		if (*fd >= 0)
			close(*fd);
		memcpy(fd, CMSG_DATA(c) + i * sizeof(int), sizeof(*fd));
	}
	return n;
}
