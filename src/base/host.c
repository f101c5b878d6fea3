/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include "base/host.h"

static int real_open(const char *path, int flags, mode_t mode)
{
	return open(path, flags, mode);
}

static int real_openat(int dir, const char *name, int flags, mode_t mode)
{
	return openat(dir, name, flags, mode);
}

static int real_ioctl(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

#ifdef HAVE_LIBURING
static int real_uring_init(unsigned entries, void *ring)
{
	return io_uring_queue_init(entries, ring, 0);
}

static int real_uring_submit(void *ring)
{
	return io_uring_submit(ring);
}
#else
static int real_uring_init(unsigned entries, void *ring)
{
	return -ENOSYS;
}

static int real_uring_submit(void *ring)
{
	return -ENOSYS;
}
#endif

static int real_uring_result(int op, int fd, int res)
{
	return res;
}

#define REAL_CALLS                                                                                        \
	{                                                                                                 \
		.open = real_open, .openat = real_openat, .fstatat = fstatat, .access = access,           \
		.realpath = realpath, .mkdir = mkdir, .unlinkat = unlinkat, .renameat = renameat,         \
		.linkat = linkat, .ioctl = real_ioctl, .mmap = mmap, .pread = pread,                      \
		.pwrite = pwrite, .preadv = preadv, .pwritev = pwritev, .preadv2 = preadv2,               \
		.fsync = fsync, .fdatasync = fdatasync, .ftruncate = ftruncate,                           \
		.fallocate = fallocate, .socket = socket, .connect = connect,                             \
		.epoll_create1 = epoll_create1, .eventfd = eventfd, .uring_init = real_uring_init,        \
		.uring_submit = real_uring_submit, .uring_result = real_uring_result,                     \
		.timerfd_create = (int (*)(int, int))timerfd_create, .malloc = malloc, .realloc = realloc \
	}

struct host_calls host = REAL_CALLS;
const struct host_calls host_calls_real = REAL_CALLS;

int host_pwrite_all(int fd, const void *buf, size_t len, uint64_t at)
{
	const uint8_t *p = buf;

	while (len) {
		ssize_t n = host.pwrite(fd, p, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		at += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}
