/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
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

static struct sockaddr_in listener;

static bool can_connect(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool does = connect(fd, (struct sockaddr *)&listener, sizeof(listener)) == 0;

	close(fd);
	return does;
}

/* Asked in a child, which then has some. */
static bool gives_namespaces(void)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0);
	return waitpid(pid, &status, 0) == pid && status == 0;
}

/* In a child, ended without what sanitizers do at an end.  Its status is the number of the first check that failed. */
static int run_confined(bool has_uplink)
{
	struct error err;
	struct net_ring *ring;
	int fds[2], memory, type = SOCK_DGRAM | SOCK_CLOEXEC, n = 1;
	char *const argv[] = { "true", NULL };

	bool has_namespaces = gives_namespaces();

	if (confine_network(has_uplink, &err) < 0)
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
	/* Without a way out there is neither a file of the host by its name, nor its network. */
	CHECK((open("/etc/passwd", O_RDONLY) < 0) == (!has_uplink && has_namespaces));
	CHECK(can_connect() == (has_uplink || !has_namespaces));
	return 0;
}

static void expect_confined(bool has_uplink)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(run_confined(has_uplink));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_confined(void **state)
{
	expect_confined(true);
}

static void test_confined_without_uplink(void **state)
{
	if (!gives_namespaces())
		print_message("the kernel gives no namespaces: only the filter is tested\n");
	expect_confined(false);
}

/* The host's 127.0.0.1, where somebody listens. */
static int listen_on_host(void **state)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(listener);

	listener = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	return fd < 0 || bind(fd, (struct sockaddr *)&listener, len) < 0 || listen(fd, 8) < 0 ||
	       getsockname(fd, (struct sockaddr *)&listener, &len) < 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_confined),
		cmocka_unit_test(test_confined_without_uplink),
	};

	return cmocka_run_group_tests(tests, listen_on_host, NULL);
}
