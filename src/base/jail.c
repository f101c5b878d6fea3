/* SPDX-License-Identifier: Apache-2.0 */
#include "base/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

static int write_file(const char *path, const char *text)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

int jail_map_user(uid_t uid, gid_t gid)
{
	char text[64];

	snprintf(text, sizeof(text), "%u %u 1", uid, uid);
	int r = write_file("/proc/self/uid_map", text);

	if (r == 0)
		r = write_file("/proc/self/setgroups", "deny");
	snprintf(text, sizeof(text), "%u %u 1", gid, gid);
	return r == 0 ? write_file("/proc/self/gid_map", text) : r;
}

#define ROOT_FLAGS (MS_NOSUID | MS_NODEV | MS_NOEXEC)

int jail_stack_root(void)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("empty", "/proc", "tmpfs", ROOT_FLAGS, "size=4k,mode=0500") < 0 ||
	    chdir("/proc") < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
		return -errno;
	return 0;
}

int jail_leave_root(void)
{
	/* The old root lies on top of the new one, at the same place. */
	if (chdir("/") < 0 || umount2(".", MNT_DETACH) < 0 ||
	    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY | MS_BIND | ROOT_FLAGS, NULL) < 0)
		return -errno;
	return chdir("/") < 0 ? -errno : 0;
}

int jail_root(const char *path, bool is_readonly)
{
	const struct mount_attr attr = { .attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
						     MOUNT_ATTR_NOEXEC |
						     (is_readonly ? MOUNT_ATTR_RDONLY : 0) };

	/* Of what is mounted below as well: the kernel does not let go of a part of it. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount(path, "/proc", NULL, MS_BIND | MS_REC, NULL) < 0 || chdir("/proc") < 0 ||
	    mount_setattr(AT_FDCWD, ".", AT_RECURSIVE, (void *)(uintptr_t)&attr, sizeof(attr)) < 0 ||
	    syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0)
		return -errno;
	return chdir("/") < 0 ? -errno : 0;
}

int jail_empty_root(void)
{
	int r = jail_stack_root();

	return r == 0 ? jail_leave_root() : r;
}

int jail_drop_capabilities(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { 0 };

	for (int i = 0; i <= 63; i++)
		if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0 && errno != EINVAL && errno != EPERM)
			return -errno;
	(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return syscall(SYS_capset, &head, none) < 0 ? -errno : 0;
}

int jail_landlock_abi(void)
{
	long have = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	return have > 0 ? (int)have : 0;
}

int jail_landlock(int dir, uint64_t rights, int *abi)
{
	int have = jail_landlock_abi();
	uint64_t files = JAIL_LANDLOCK_FILES;
	struct {
		uint64_t fs, net, scoped;
	} attr = { 0 };
	size_t size = 8;

	*abi = 0;
	if (!have)
		return 0;
	if (have >= 2)
		files |= JAIL_LANDLOCK_REFER;
	if (have >= 3)
		files |= JAIL_LANDLOCK_TRUNCATE;
	if (have >= 5)
		files |= 1ULL << 15; /* IOCTL_DEV */
	attr.fs = files;
	if (have >= 4) {
		attr.net = 3; /* TCP: bind, connect */
		size = 16;
	}
	if (have >= 6) {
		attr.scoped = 3; /* abstract sockets, signals: of this domain only */
		size = 24;
	}
	_cleanup_close_ int fd = (int)syscall(SYS_landlock_create_ruleset, &attr, size, 0);
	const struct landlock_path_beneath_attr below = { .allowed_access = rights & files,
							  .parent_fd = dir };

	if (fd < 0 ||
	    (dir >= 0 && syscall(SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &below, 0) < 0) ||
	    syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		return -errno;
	*abi = have;
	return 0;
}
