/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include "base/host.h"

static int real_open(const char *path, int flags, mode_t mode)
{
	return open(path, flags, mode);
}

static int real_ioctl(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg);
}

#define REAL_CALLS                                                                                        \
	{                                                                                                 \
		.open = real_open, .ioctl = real_ioctl, .mmap = mmap, .pread = pread,                     \
		.pwrite = pwrite, .preadv = preadv, .pwritev = pwritev, .preadv2 = preadv2,               \
		.fsync = fsync, .fdatasync = fdatasync, .ftruncate = ftruncate,                           \
		.fallocate = fallocate, .socket = socket, .connect = connect,                             \
		.epoll_create1 = epoll_create1, .eventfd = eventfd,                                       \
		.timerfd_create = (int (*)(int, int))timerfd_create, .malloc = malloc, .realloc = realloc \
	}

struct host_calls host = REAL_CALLS;
const struct host_calls host_calls_real = REAL_CALLS;
