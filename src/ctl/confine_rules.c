/* SPDX-License-Identifier: Apache-2.0 */
/* The system calls of a machine's process, and of its threads that execute guest code. */
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "ctl/confine.h"

// clang-format off
/* Threads that execute guest code, devices included: contents of descriptors, memory, waiting. */
#define VCPU_CALLS(X)                                                                                         \
	X(read) X(write) X(readv) X(writev) X(pread64) X(pwrite64) X(preadv) X(pwritev) X(preadv2) X(pwritev2)  \
	X(recvmsg) X(sendmsg) X(recvfrom) X(sendto) X(ioctl) X(close) X(fallocate) X(ftruncate) X(epoll_ctl)    \
	X(timerfd_settime) X(io_uring_enter)                                                                    \
	X(futex) X(munmap) X(madvise) X(brk) X(mremap)                                                          \
	X(clock_gettime) X(clock_nanosleep) X(getrandom) X(sched_yield)                                         \
	X(rt_sigreturn) X(rt_sigprocmask) X(sigaltstack) X(tgkill) X(gettid) X(getpid) X(set_robust_list)       \
	X(fstat) X(lseek) X(rseq) X(restart_syscall) X(exit) X(exit_group)                                      \
	/* a C library's: how many arenas malloc() may make, how much qsort() may take */                        \
	X(sched_getaffinity) X(sysinfo)
/* The process: besides them what starts and ends threads, waits for events, looks after files that it has, forks copies. */
#define PROCESS_CALLS(X)                                                                                      \
	X(poll) X(ppoll) X(epoll_create1) X(epoll_wait) X(epoll_pwait) X(eventfd2) X(timerfd_create)   \
	X(timerfd_gettime) X(timer_create) X(timer_settime) X(timer_delete) X(signalfd4) X(fstat) X(fsync) X(fdatasync) X(sync_file_range) X(syncfs) X(copy_file_range)    \
	X(getdents64) X(flock) X(dup) X(dup2) X(dup3) X(fcntl) X(pipe2) X(close_range) X(memfd_create)          \
	X(accept4) X(accept) X(shutdown) X(getsockopt) X(setsockopt) X(getsockname) X(getpeername)              \
	X(getrusage) X(fadvise64) X(fstatfs) X(mincore) X(mlock) X(nanosleep) X(gettimeofday) X(time) X(getuid) X(geteuid) X(getgid) X(getegid) X(uname) \
	X(rt_sigaction) X(rt_sigpending) X(rt_sigtimedwait) X(arch_prctl)                                       \
	X(sched_setaffinity) X(getpriority) X(setpriority) X(sched_getparam) X(sched_getscheduler) X(wait4) X(waitid) X(setsid) X(umask) \
	X(set_tid_address) X(seccomp) X(io_uring_setup) X(io_uring_register)
/* Names of files lead nowhere; C libraries ask all the same, and do without. */
#define NAME_CALLS(X)                                                                                         \
	X(open) X(openat) X(stat) X(lstat) X(access) X(faccessat) X(faccessat2) X(readlink) X(readlinkat) X(getcwd)
// clang-format on

#define NUMBER(name) SCMP_SYS(name),
static const int vcpu_calls[] = { VCPU_CALLS(NUMBER) };
static const int process_calls[] = { VCPU_CALLS(NUMBER) PROCESS_CALLS(NUMBER) };
static const int name_calls[] = { NAME_CALLS(NUMBER) };

/* Threads and processes, no namespaces. */
#define NEW_NAMESPACES                                                                             \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |             \
	 CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWTIME)

static int allow(scmp_filter_ctx ctx, const int *calls, size_t n)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, calls[i], 0);
	return r;
}

/* Memory that can be executed is a mapping of a file that is not writable through it: W^X. */
static int allow_memory(scmp_filter_ctx ctx)
{
	int r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				 SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));

	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2,
				     SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC | PROT_WRITE, PROT_EXEC),
				     SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS | MAP_SHARED, MAP_SHARED));
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
				     SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	return r;
}

static int allow_threads(scmp_filter_ctx ctx)
{
	/* The C library falls back to clone(), whose flags can be seen. */
	int r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);

	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
				     SCMP_A0(SCMP_CMP_MASKED_EQ, NEW_NAMESPACES, 0));
	/* Of the process itself. */
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 1,
				     SCMP_A0(SCMP_CMP_EQ, 0));
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
				     SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
	/* A child that ends with it. */
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
				     SCMP_A0(SCMP_CMP_EQ, PR_SET_PDEATHSIG));
	/* A name for a mapping, which the kernel may not know. */
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EINVAL), SCMP_SYS(prctl), 1,
				     SCMP_A0(SCMP_CMP_EQ, 0x53564d41 /* PR_SET_VMA */));
	return r;
}

/* Of a descriptor, which is how fstat(3) is made; argument @arg are the flags. */
static int allow_stat(scmp_filter_ctx ctx, int call, unsigned arg)
{
	const struct scmp_arg_cmp by_fd =
		SCMP_CMP64(arg, SCMP_CMP_MASKED_EQ, AT_EMPTY_PATH, AT_EMPTY_PATH);
	const struct scmp_arg_cmp by_name = SCMP_CMP64(arg, SCMP_CMP_MASKED_EQ, AT_EMPTY_PATH, 0);
	int r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, call, 1, &by_fd);

	return r == 0 ? seccomp_rule_add_array(ctx, SCMP_ACT_ERRNO(ENOENT), call, 1, &by_name) : r;
}

static int refuse_names(scmp_filter_ctx ctx)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(name_calls); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOENT), name_calls[i], 0);
	return r;
}

static int load(scmp_filter_ctx ctx, int r, struct error *err)
{
	/* It has no new privileges already; and a tree is searched faster than a list. */
	if (r == 0)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 0);
	if (r == 0)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (r == 0)
		r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (r == 0)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r == 0 ? 0 : error_set(err, r, "system calls can't be filtered: %s", strerror(-r));
}

int confine_filter_process(bool has_namespaces, struct error *err)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = ctx ? allow(ctx, process_calls, ARRAY_SIZE(process_calls)) : -ENOMEM;

	if (r == 0)
		r = allow_memory(ctx);
	if (r == 0)
		r = allow_threads(ctx);
	if (r == 0)
		r = refuse_names(ctx);
	if (r == 0)
		r = allow_stat(ctx, SCMP_SYS(newfstatat), 3);
	if (r == 0)
		r = allow_stat(ctx, SCMP_SYS(statx), 2);
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socketpair), 1,
				     SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
	/* Its children by their numbers; where it could see others, none. */
	if (r == 0)
		r = seccomp_rule_add(ctx, has_namespaces ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO(EPERM),
				     SCMP_SYS(kill), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, 0x80000000, 0));
	return load(ctx, r, err);
}

int confine_filter_vcpu(struct error *err)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = ctx ? allow(ctx, vcpu_calls, ARRAY_SIZE(vcpu_calls)) : -ENOMEM;

	if (r == 0)
		r = allow_memory(ctx);
	/* The base of GS, where the host has no FSGSBASE. */
	if (r == 0)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(arch_prctl), 1,
				     SCMP_A0(SCMP_CMP_EQ, ARCH_SET_GS));
	if (r == 0)
		r = refuse_names(ctx);
	/* The log looks how long its file is. */
	if (r == 0)
		r = allow_stat(ctx, SCMP_SYS(newfstatat), 3);
	return load(ctx, r, err);
}
