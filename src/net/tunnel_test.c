/* SPDX-License-Identifier: Apache-2.0 */
/* Clients that say a port at once, byte by byte, with something behind it, nothing, nonsense, never. */
#include "base/unit.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "net/tunnel.h"

static struct {
	struct tunnel t;
	struct sockaddr_un sa;
	int64_t now;
	int fd; /* of the last call; -1: there was none */
	unsigned port, ncalls;
} g;

static void on_call(void *ctx, int fd, uint16_t port)
{
	if (g.fd >= 0)
		close(g.fd);
	g.fd = fd;
	g.port = port;
	g.ncalls++;
}

static int64_t clock_ms(void *ctx)
{
	return g.now;
}

static int set_up(void **state)
{
	memset(&g, 0, sizeof(g));
	g.fd = -1;
	g.now = 1000;
	g.sa.sun_family = AF_UNIX; /* abstract, with a name that the kernel gives */
	socklen_t len = sizeof(sa_family_t);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&g.sa, len), 0);
	assert_int_equal(listen(fd, 100), 0);
	g.t = (struct tunnel){ .fd = fd, .call = on_call, .now_ms = clock_ms };
	return 0;
}

static int tear_down(void **state)
{
	tunnel_close(&g.t);
	if (g.fd >= 0)
		close(g.fd);
	return 0;
}

static int client(void)
{
	socklen_t len = sizeof(g.sa);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(getsockname(g.t.fd, (struct sockaddr *)&g.sa, &len), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&g.sa, len), 0);
	return fd;
}

static uint32_t poll_round(void)
{
	struct pollfd p[TUNNEL_POLLS];
	uint32_t timeout = 60000;
	unsigned n = tunnel_fill(&g.t, p, &timeout);

	assert_true(n <= TUNNEL_POLLS && poll(p, n, 0) >= 0);
	tunnel_polled(&g.t, p, n);
	return timeout;
}

static void say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), 0), strlen(text));
}

static bool is_closed(int fd)
{
	char c;

	return recv(fd, &c, 1, MSG_DONTWAIT) == 0;
}

static void test_parse(void **state)
{
	static const struct {
		const char *text;
		int port;
	} cases[] = {
		{ "", 0 },
		{ "2", 0 },
		{ "65535", 0 },
		{ "22\n", 22 },
		{ "1\n", 1 },
		{ "65535\n", 65535 },
		{ "022\n", 22 },
		{ "\n", -EINVAL },
		{ "0\n", -EINVAL },
		{ "65536\n", -EINVAL },
		{ "99999\n", -EINVAL },
		{ "123456", -EINVAL },
		{ "-1\n", -EINVAL },
		{ " 22\n", -EINVAL },
		{ "22 \n", -EINVAL },
		{ "2x", -EINVAL },
		{ "22\nx", -EINVAL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		if (tunnel_parse(cases[i].text, strlen(cases[i].text)) != cases[i].port)
			fail_msg("\"%s\"", cases[i].text);
	assert_int_equal(tunnel_parse("22\0", 3), -EINVAL);
}

/* What is behind the line is not touched. */
static void test_call(void **state)
{
	char buf[20] = "";
	int fd = client();

	poll_round();
	say(fd, "2");
	poll_round();
	assert_int_equal(g.ncalls, 0);
	say(fd, "2\nSSH-2.0");
	poll_round();
	assert_int_equal(g.ncalls, 1);
	assert_int_equal(g.port, 22);
	assert_int_equal(g.t.n, 0);
	assert_int_equal(recv(g.fd, buf, sizeof(buf), MSG_DONTWAIT), 7);
	assert_string_equal(buf, "SSH-2.0");
	say(g.fd, "x");
	assert_int_equal(recv(fd, buf, sizeof(buf), 0), 1);
	close(fd);
}

static void test_nonsense(void **state)
{
	int a = client(), b = client();

	poll_round();
	poll_round();
	assert_int_equal(g.t.n, 2);
	say(a, "http://");
	close(b);
	poll_round();
	assert_int_equal(g.t.n, 0);
	assert_int_equal(g.ncalls, 0);
	assert_true(recv(a, &(char){ 0 }, 1, MSG_DONTWAIT) <= 0 && errno != EAGAIN);
	close(a);
}

/* Who says nothing does so for a while, and no more than so many at a time. */
static void test_silent(void **state)
{
	int fds[TUNNEL_ASKING + 1];

	for (unsigned i = 0; i <= TUNNEL_ASKING; i++)
		fds[i] = client();
	for (unsigned i = 0; i < 2 * TUNNEL_ASKING; i++)
		poll_round();
	assert_int_equal(g.t.n, TUNNEL_ASKING);
	g.now += TUNNEL_LIMIT_MS - 1;
	assert_int_equal(poll_round(), 1);
	assert_int_equal(g.t.n, TUNNEL_ASKING);
	g.now++;
	poll_round();
	assert_int_equal(g.t.n, 0);
	for (unsigned i = 0; i < TUNNEL_ASKING; i++)
		assert_true(is_closed(fds[i]));
	/* the one that waited has its turn */
	say(fds[TUNNEL_ASKING], "80\n");
	poll_round();
	poll_round();
	assert_int_equal(g.port, 80);
	for (unsigned i = 0; i <= TUNNEL_ASKING; i++)
		close(fds[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test_setup_teardown(test_call, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_nonsense, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_silent, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
