/* SPDX-License-Identifier: Apache-2.0 */
#include "share/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "base/jail.h"
#include "base/log.h"

#define NAMESPACES                                                                                 \
	(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)

static int open_folder(const char *path)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static int leave_host(const char *path, bool is_readonly)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();

	tzset(); /* reads a file */
	if (unshare(NAMESPACES) < 0)
		return -errno;
	int r = jail_map_user(uid, gid);

	return r == 0 ? jail_root(path, is_readonly) : r;
}

static bool is_same(int a, int b)
{
	struct stat x, y;

	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int share_enter(const char *path, bool is_readonly, struct share_confinement *c, struct error *err)
{
	int fd = open_folder(path);

	*c = (struct share_confinement){ 0 };
	if (fd < 0)
		return error_set(err, fd, "the folder %s can't be shared: %s", path, strerror(-fd));
	int r = leave_host(path, is_readonly);

	if (r < 0) {
		error_set(&c->why_not, r, "the kernel gives none (%s)", strerror(-r));
		return fd;
	}
	/* From within: descriptors of before belong to the host's mounts. */
	int root = open_folder("/");
	bool is_fine = root >= 0 && is_same(fd, root);

	close(fd);
	if (!is_fine) {
		if (root >= 0)
			close(root);
		return error_set(err, root < 0 ? root : -ESTALE,
				 "the folder %s was exchanged while it was opened", path);
	}
	c->has_namespaces = true;
	return root;
}

// clang-format off
static const int allowed[] = {
	/* the socket, the log */
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(recvfrom), SCMP_SYS(sendto), SCMP_SYS(recvmsg), SCMP_SYS(sendmsg), SCMP_SYS(close),
	/* files: names only from descriptors of folders */
	SCMP_SYS(openat2), SCMP_SYS(statx), SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(fstatfs), SCMP_SYS(getdents64), SCMP_SYS(lseek), SCMP_SYS(readlinkat),
	SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(fsync), SCMP_SYS(fdatasync), SCMP_SYS(ftruncate), SCMP_SYS(fchmod), SCMP_SYS(utimensat),
	SCMP_SYS(mkdirat), SCMP_SYS(unlinkat), SCMP_SYS(renameat), SCMP_SYS(linkat), SCMP_SYS(symlinkat),
	/* memory, time, its own end */
	SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(brk), SCMP_SYS(futex), SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time),
	SCMP_SYS(getrandom), SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(tgkill), SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
	SCMP_SYS(restart_syscall), SCMP_SYS(sigaltstack), SCMP_SYS(exit), SCMP_SYS(exit_group),
	SCMP_SYS(sysinfo), /* how much qsort() may take */
};
// clang-format on
#define SYS_FCHMODAT2 452 /* Linux 6.6 */

static int filter_calls(void)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = ctx ? 0 : -ENOMEM;

	for (unsigned i = 0; r == 0 && i < ARRAY_SIZE(allowed); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SYS_FCHMODAT2, 0);
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				     SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
				     SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (r == 0)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 0);
	if (r == 0)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (r == 0)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (r == 0)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r;
}

static uint64_t folder_rights(bool is_readonly)
{
	uint64_t rights = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;

	return is_readonly ? rights
			   : rights | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
				     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR |
				     LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SYM |
				     JAIL_LANDLOCK_REFER | JAIL_LANDLOCK_TRUNCATE;
}

/* Its first version lets nobody move a file to another folder: where the folder is all there is anyway, that is too high a price. */
static bool wants_landlock(bool is_readonly, const struct share_confinement *c)
{
	return jail_landlock_abi() != 1 || is_readonly || !c->has_namespaces;
}

int share_confine(int root_fd, bool is_readonly, struct share_confinement *c, struct error *err)
{
	const struct rlimit no_core = { 0, 0 };
	int r = jail_drop_capabilities();

	if (r == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		r = -errno;
	if (r == 0 && wants_landlock(is_readonly, c))
		r = jail_landlock(root_fd, folder_rights(is_readonly), &c->landlock_abi);
	if (r == 0 && (setrlimit(RLIMIT_CORE, &no_core) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0))
		r = -errno;
	if (r == 0)
		r = filter_calls();
	return r == 0 ? 0
		      : error_set(err, r, "the server of a shared folder can't be confined: %s",
				  strerror(-r));
}
