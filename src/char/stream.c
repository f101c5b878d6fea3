/* SPDX-License-Identifier: Apache-2.0 */
#include "char/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* A new open file description of the same terminal or pipe. */
static int reopen(int fd, bool for_write)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, (for_write ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

int stream_open(struct stream *s, int fd, bool for_write, struct error *err)
{
	struct stream n = { .fd = fd, .restore_fd = -1 };
	struct stat st;
	int flags;

	if (fd < 0) {
		n.fd = -1;
		*s = n;
		return 0;
	}
	if (fstat(fd, &st))
		return error_set(err, -errno, "descriptor %d is of no use: %s", fd, strerror(errno));
	n.is_socket = S_ISSOCK(st.st_mode);
	n.is_file = S_ISREG(st.st_mode) || S_ISBLK(st.st_mode);
	if (n.is_socket || n.is_file) {
		/* of its own, so that both directions can be watched */
		n.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (n.fd < 0)
			return error_set(err, -errno, "cannot copy descriptor %d: %s", fd,
					 strerror(errno));
		n.is_owned = true;
		*s = n;
		return 0;
	}
	n.fd = reopen(fd, for_write);
	if (n.fd < 0) {
		n.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		flags = fcntl(fd, F_GETFL);
		if (n.fd < 0 || flags < 0)
			return error_set(err, -errno, "cannot use descriptor %d: %s", fd,
					 strerror(errno));
		if (!(flags & O_NONBLOCK)) {
			if (fcntl(fd, F_SETFL, flags | O_NONBLOCK)) {
				int e = -errno;

				close(n.fd);
				return error_set(err, e, "cannot use descriptor %d: %s", fd,
						 strerror(-e));
			}
			n.restore_fd = fd;
		}
	}
	n.is_owned = true;
	*s = n;
	return 0;
}

void stream_close(struct stream *s)
{
	if (s->restore_fd >= 0) {
		int flags = fcntl(s->restore_fd, F_GETFL);

		if (flags >= 0)
			fcntl(s->restore_fd, F_SETFL, flags & ~O_NONBLOCK);
	}
	if (s->is_owned)
		close(s->fd);
	*s = (struct stream){ .fd = -1, .restore_fd = -1 };
}

ssize_t stream_read(const struct stream *s, void *buf, size_t len)
{
	ssize_t n;

	do
		n = s->is_socket ? recv(s->fd, buf, len, MSG_DONTWAIT) : read(s->fd, buf, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? (errno == EWOULDBLOCK ? -EAGAIN : -errno) : n;
}

ssize_t stream_write(const struct stream *s, const void *buf, size_t len)
{
	ssize_t n;

	do
		n = s->is_socket ? send(s->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL)
				 : write(s->fd, buf, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? (errno == EWOULDBLOCK ? -EAGAIN : -errno) : n;
}
