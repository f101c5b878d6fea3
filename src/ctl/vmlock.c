/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/host.h"
#include "ctl/paths.h"
#include "ctl/socket.h"
#include "ctl/vmlock.h"

#define POLL_MS 5

enum { BYTE_CHANGES, BYTE_RUNS };

static int set_lock(int fd, int byte)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

	return fcntl(fd, F_OFD_SETLK, &l) < 0 ? -errno : 0;
}

static bool is_locked(int fd, int byte)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

	return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

static bool is_still(int fd, const char *path)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && host.fstatat(AT_FDCWD, path, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Of its length it tells that it was held once (invariant 4). */
static int mark(int fd, const char *path, struct error *err)
{
	if (host.pwrite(fd, "\n", 1, 0) == 1)
		return fd;
	int r = error_set(err, -errno, "cannot write %s: %s", path, strerror(errno));

	close(fd);
	return r;
}

/* Its process is there and takes no connection: it has just begun, or it is ending. */
static bool is_in_between(const char *name)
{
	_cleanup_free_ char *path = paths_run(name, "control.sock", NULL);
	struct error err;
	int fd = path ? socket_connect(path, &err) : -1;

	if (fd >= 0)
		close(fd);
	return fd == -ENOENT || fd == -ECONNREFUSED;
}

/* -EAGAIN: held by a command; -EBUSY: by the machine's process. */
static int try_path(const char *path, struct error *err)
{
	for (;;) {
		int fd = host.open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0)
			return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
		int r = set_lock(fd, BYTE_CHANGES);

		if (r == 0 && is_still(fd, path))
			return mark(fd, path, err);
		if (r == -EAGAIN || r == -EACCES)
			r = is_locked(fd, BYTE_RUNS) && is_still(fd, path) ? -EBUSY : -EAGAIN;
		else if (r < 0)
			error_set(err, r, "cannot lock %s: %s", path, strerror(-r));
		close(fd);
		if (r < 0)
			return r;
	}
}

static int no_machine(const char *name, struct error *err)
{
	return error_set(err, -ENOENT, "there is no machine \"%s\"; viv list shows those there are", name);
}

int vmlock_try(const char *name, struct error *err)
{
	int r = paths_check_name("a machine", name, err);
	_cleanup_free_ char *path = r == 0 ? paths_vm(name, "lock", err) : NULL;

	if (!path)
		return r < 0 ? r : -ENOMEM;
	r = try_path(path, err);
	if (r == -ENOENT)
		return no_machine(name, err);
	return r == -EBUSY ? error_set(err, r, "machine \"%s\" is running", name) : r;
}

int vmlock_take(const char *name, struct error *err)
{
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };

	for (unsigned ms = 0; ms < VMLOCK_WAIT_MS; ms += POLL_MS) {
		int r = vmlock_try(name, err);

		if (r != -EAGAIN && !(r == -EBUSY && is_in_between(name)))
			return r;
		nanosleep(&pause, NULL);
	}
	return error_set(err, -ETIMEDOUT, "another command, or a process that neither answers nor ends, has been at work on machine \"%s\" for %d s; try again when it is done",
			 name, VMLOCK_WAIT_MS / 1000);
}

int vmlock_run(int fd, const char *name, struct error *err)
{
	int r = is_locked(fd, BYTE_CHANGES) ? -EBADF : 0; /* by another one, that is */

	if (r == 0)
		r = set_lock(fd, BYTE_CHANGES);
	if (r == 0)
		r = set_lock(fd, BYTE_RUNS);
	return r < 0 ? error_set(err, r, "cannot lock machine \"%s\": %s", name, strerror(-r)) : 0;
}

int vmlock_join(int fd, const char *name, struct error *err)
{
	_cleanup_free_ char *path = paths_vm(name, "lock", err);

	if (!path)
		return -ENOMEM;
	if (!is_still(fd, path))
		return error_set(err, -EBADF, "that is not the lock of machine \"%s\"", name);
	return vmlock_run(fd, name, err);
}

bool vmlock_is_running(const char *name)
{
	_cleanup_free_ char *path = paths_vm(name, "lock", NULL);
	_cleanup_close_ int fd = path ? host.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0) : -1;

	return fd >= 0 && is_locked(fd, BYTE_RUNS);
}
