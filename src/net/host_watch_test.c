/* SPDX-License-Identifier: Apache-2.0 */
#include "net/host_watch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "net/netns_testing.h"

static struct {
	unsigned n;
	char text[16][NET_ADDR_TEXT];
} got;

static void keep(void *arg, const struct net_prefix *p)
{
	(void)arg;
	if (got.n < ARRAY_SIZE(got.text))
		net_prefix_format(p, got.text[got.n]);
	got.n++;
}

static bool has(const char *text)
{
	for (unsigned i = 0; i < MIN(got.n, (unsigned)ARRAY_SIZE(got.text)); i++)
		if (strcmp(got.text[i], text) == 0)
			return true;
	return false;
}

struct message {
	struct nlmsghdr head;
	struct ifaddrmsg body;
	struct rtattr attr;
	uint8_t addr[16];
};

static struct message make(uint16_t type, uint8_t family, uint8_t bits, uint16_t attr, const char *addr)
{
	struct message m = { .head = { .nlmsg_len = sizeof(m), .nlmsg_type = type },
			     .body = { .ifa_family = family, .ifa_prefixlen = bits },
			     .attr = { .rta_len = (uint16_t)RTA_LENGTH(family == AF_INET ? 4 : 16),
				       .rta_type = attr } };

	inet_pton(family, addr, m.addr);
	if (family == AF_INET)
		m.head.nlmsg_len -= 12;
	return m;
}

static void test_messages(void **state)
{
	struct message m[6] = {
		make(RTM_NEWADDR, AF_INET6, 64, IFA_ADDRESS, "2001:4:5:6::1"),
		make(RTM_DELADDR, AF_INET6, 64, IFA_ADDRESS, "2001:4:5:7::1"),
		make(RTM_NEWADDR, AF_INET6, 64, IFA_LABEL, "2001:4:5:8::1"),
		make(RTM_NEWADDR, AF_INET6, 129, IFA_ADDRESS, "2001:4:5:9::1"),
		make(RTM_NEWADDR, AF_INET6, 0, IFA_LOCAL, "2001:4:5:a::1"),
		make(RTM_NEWADDR, AF_INET, 25, IFA_LOCAL, "203.0.113.200"),
	};

	memset(&got, 0, sizeof(got));
	host_watch_parse(m, sizeof(m) - 12, keep, NULL);
	assert_int_equal(got.n, 3);
	assert_string_equal(got.text[0], "2001:4:5:6::/64");
	assert_string_equal(got.text[1], "::/0");
	assert_string_equal(got.text[2], "203.0.113.128/25");
	/* Cut anywhere, and lengths that lie. */
	for (size_t len = 0; len < sizeof(m[0]); len++) {
		memset(&got, 0, sizeof(got));
		host_watch_parse(m, len, keep, NULL);
		assert_int_equal(got.n, 0);
	}
	for (unsigned i = 0; i < 2 * sizeof(struct message); i++) {
		struct message bad[2] = { m[0], m[0] };
		if (i & 1)
			bad[0].attr.rta_len = (uint16_t)(i / 2);
		else
			bad[0].head.nlmsg_len = i / 2;
		host_watch_parse(bad, sizeof(bad), keep, NULL);
	}
}

/* ---- on a host of its own ---- */

/* Read until @text is among what was told; false: it does not come. */
static bool await(int fd, const char *text)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	while (!has(text))
		if (poll(&p, 1, 10000) != 1 || host_watch_read(fd, keep, NULL) != 0)
			return false;
	return true;
}

/* The number of the first thing that went wrong. */
static int watch(void)
{
	if (!netns_enter())
		return 77;
	if (!netns_add_address("lo:1", "198.18.5.9", "255.255.255.0"))
		return 1;
	memset(&got, 0, sizeof(got));
	int fd = host_watch_open();
	if (fd < 0)
		return 2;
	if (!await(fd, "198.18.5.0/24"))
		return 3;
	if (has("203.0.113.64/26") || !netns_add_address("lo:2", "203.0.113.77", "255.255.255.192"))
		return 4;
	if (!await(fd, "203.0.113.64/26"))
		return 5;
	/* More news than room: what was missed is asked for. */
	int room = 1;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	for (unsigned i = 0; i < 100; i++) {
		char ip[32], label[32];
		snprintf(ip, sizeof(ip), "203.0.%u.1", i);
		snprintf(label, sizeof(label), "lo:%u", 3 + i);
		if (!netns_add_address(label, ip, "255.255.255.0"))
			return 6;
	}
	room = 1 << 20;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	memset(&got, 0, sizeof(got));
	while (got.n < 100)
		if (poll(&(struct pollfd){ .fd = fd, .events = POLLIN }, 1, 10000) != 1 ||
		    host_watch_read(fd, keep, NULL) != 0)
			return 7;
	return 0;
}

static void test_host(void **state)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(watch());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		print_message("no namespaces on this host\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_messages),
		cmocka_unit_test(test_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
