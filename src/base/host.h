/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host calls that can fail, in one replaceable table, so that tests can fail the n-th of them.
 *
 * Code that must survive a failing host call makes it as host.open(...), host.mmap(...).  The table
 * is replaced only by tests and by a machine that has a broker for its files, before other threads exist.  Add a row only for a call whose failure
 * some code handles and some test provokes.
 */
#ifndef VIV_BASE_HOST_H
#define VIV_BASE_HOST_H

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/util.h"

struct host_calls {
	/* File names: a confined machine has none of its own (ctl/broker.h). */
	int (*open)(const char *path, int flags, mode_t mode);
	int (*openat)(int dir, const char *name, int flags, mode_t mode);
	int (*fstatat)(int dir, const char *name, struct stat *st, int flags);
	int (*access)(const char *path, int mode);
	char *(*realpath)(const char *path, char *resolved);
	int (*mkdir)(const char *path, mode_t mode);
	int (*unlinkat)(int dir, const char *name, int flags);
	int (*renameat)(int from_dir, const char *from, int to_dir, const char *to);
	int (*linkat)(int from_dir, const char *from, int to_dir, const char *to, int flags);
	int (*ioctl)(int fd, unsigned long request, void *arg);
	void *(*mmap)(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
	ssize_t (*pread)(int fd, void *buf, size_t len, off_t offset);
	ssize_t (*pwrite)(int fd, const void *buf, size_t len, off_t offset);
	ssize_t (*preadv)(int fd, const struct iovec *iov, int niov, off_t offset);
	ssize_t (*pwritev)(int fd, const struct iovec *iov, int niov, off_t offset);
	ssize_t (*preadv2)(int fd, const struct iovec *iov, int niov, off_t offset, int flags);
	int (*fsync)(int fd);
	int (*fdatasync)(int fd);
	int (*ftruncate)(int fd, off_t len);
	int (*fallocate)(int fd, int mode, off_t offset, off_t len);
	int (*socket)(int domain, int type, int protocol);
	int (*connect)(int fd, const struct sockaddr *to, socklen_t len);
	int (*epoll_create1)(int flags);
	int (*eventfd)(unsigned int value, int flags);
	int (*timerfd_create)(int clock, int flags);
	/* io_uring, block/uring.h: @ring is liburing's; 0 or -errno, -ENOSYS where it was built without. */
	int (*uring_init)(unsigned entries, void *ring);
	int (*uring_submit)(void *ring);
	int (*uring_result)(int op, int fd, int res); /* what the completion of an operation on @fd says */
	void *(*malloc)(size_t len);
	void *(*realloc)(void *p, size_t len);
};

extern struct host_calls host; /* what is called; the real ones unless a test says otherwise */
extern const struct host_calls host_calls_real;

/** host_pwrite_all() - all of @buf's @len bytes into @fd from @at (bytes) on, however many calls that takes.
 * Returns 0, -EIO if nothing more is taken, or what host.pwrite() failed with, negative. */
int host_pwrite_all(int fd, const void *buf, size_t len, uint64_t at);

#endif
