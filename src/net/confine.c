/* SPDX-License-Identifier: Apache-2.0 */
#include "net/confine.h"

#include <errno.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/jail.h"
#include "base/log.h"

// clang-format off
static const int allowed[] = {
	/* descriptors */
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(close), SCMP_SYS(fcntl), SCMP_SYS(lseek),
	SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(ioctl),
	/* captures, in folders that come with their descriptors; the zone of local time, the host's resolver */
	SCMP_SYS(openat), SCMP_SYS(unlinkat),
	/* sockets */
	SCMP_SYS(socketpair), SCMP_SYS(connect), SCMP_SYS(bind), SCMP_SYS(listen), SCMP_SYS(accept4),
	SCMP_SYS(accept), SCMP_SYS(sendto), SCMP_SYS(recvfrom), SCMP_SYS(sendmsg), SCMP_SYS(recvmsg), SCMP_SYS(shutdown),
	SCMP_SYS(getsockname), SCMP_SYS(getpeername), SCMP_SYS(getsockopt), SCMP_SYS(setsockopt),
	/* memory, some of it shared with machines; time, chance, its own end */
	SCMP_SYS(memfd_create), SCMP_SYS(ftruncate), SCMP_SYS(mmap), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(brk), SCMP_SYS(futex),
	SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(getrandom), SCMP_SYS(getpid), SCMP_SYS(gettid),
	SCMP_SYS(tgkill), SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(restart_syscall),
	SCMP_SYS(sigaltstack), /* AddressSanitizer, before an end */
	SCMP_SYS(exit), SCMP_SYS(exit_group),
};
static const scmp_datum_t families[] = { AF_UNIX, AF_INET, AF_INET6 };
static const scmp_datum_t types[] = { SOCK_STREAM, SOCK_DGRAM };
enum { TYPE_MASK = 0xf }; /* the rest of the type are flags */
// clang-format on

static int add_rules(scmp_filter_ctx ctx)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < ARRAY_SIZE(allowed); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
	/* Neither raw packets nor the kernel's own interfaces. */
	for (unsigned i = 0; r == 0 && i < ARRAY_SIZE(families); i++)
		for (unsigned t = 0; r == 0 && t < ARRAY_SIZE(types); t++)
			r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2,
					     SCMP_A0(SCMP_CMP_EQ, families[i]),
					     SCMP_A1(SCMP_CMP_MASKED_EQ, TYPE_MASK, types[t]));
	return r;
}

/* Descriptors are all that it needs: control socket, cards, folders of captures. */
static int leave_host(void)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();

	tzset(); /* reads a file */
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS |
		    CLONE_NEWCGROUP) < 0)
		return -errno;
	int r = jail_map_user(uid, gid);

	return r == 0 ? jail_empty_root() : r;
}

int confine_network(bool has_uplink, struct error *err)
{
	int left = has_uplink ? 0 : leave_host();
	bool is_apart = !has_uplink && left == 0;

	if (left < 0) /* what it has of them does no harm; filters remain */
		log_info("net", "without namespaces of its own: %s", strerror(-left));
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	const struct rlimit no_core = { 0, 0 };
	int r = ctx ? add_rules(ctx) : -ENOMEM;

	/* Without capabilities a filter may be loaded only by who gains none any more (seccomp(2)). */
	if (r == 0 && (prctl(PR_SET_DUMPABLE, 0) < 0 || setrlimit(RLIMIT_CORE, &no_core) < 0 ||
		       prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0))
		r = -errno;
	/* Of root's, too: the socket of host_watch.h could change the host's addresses with them. */
	if (r == 0)
		r = jail_drop_capabilities();
	if (r == 0)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r == 0 ? is_apart
		      : error_set(err, r, "the network's process can't be confined: %s", strerror(-r));
}
