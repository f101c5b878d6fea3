/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "net/confine.h"
#include "net/ring.h"

/* In a child, ended without what sanitizers do at an end.  Its status is the number of the first check that failed. */
static int run_confined(void)
{
	struct error err;
	struct net_ring *ring;
	int fds[2], memory, type = SOCK_DGRAM | SOCK_CLOEXEC, n = 1;
	char *const argv[] = { "true", NULL };

	if (confine_network(&err) < 0)
		return n;
#define CHECK(x)                                                                                   \
	do {                                                                                       \
		n++;                                                                               \
		if (!(x))                                                                          \
			return n;                                                                  \
	} while (0)
#define IS_REFUSED(call) ((call) < 0 && errno == EPERM)
	CHECK(socket(AF_INET, type, 0) >= 0 && socket(AF_INET6, SOCK_STREAM, 0) >= 0);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) == 0);
	CHECK(write(fds[0], "x", 1) == 1);
	CHECK(net_ring_make(&ring, &memory) == 0);
	CHECK(IS_REFUSED(execv("/bin/true", argv)));
	CHECK(IS_REFUSED(syscall(SYS_fork)) && IS_REFUSED(syscall(SYS_clone, 0, 0, 0, 0, 0)));
	CHECK(IS_REFUSED(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)) &&
	      IS_REFUSED(socket(AF_PACKET, SOCK_RAW, 0)));
	CHECK(IS_REFUSED(socket(AF_NETLINK, SOCK_DGRAM, 0)));
	CHECK(IS_REFUSED(syscall(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0)));
	CHECK(IS_REFUSED(syscall(SYS_kill, getppid(), 0)));
	CHECK(IS_REFUSED(syscall(SYS_mount, "", "/", "", 0, 0)) && IS_REFUSED(syscall(SYS_unshare, 0)));
	CHECK(IS_REFUSED(syscall(SYS_rename, "/a", "/b")) && IS_REFUSED(syscall(SYS_chmod, "/", 0)));
	return 0;
}

static void test_confined(void **state)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(run_confined());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_confined) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
