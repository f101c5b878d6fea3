/* SPDX-License-Identifier: Apache-2.0 */
/* TAP devices: what is told when they can't be used, and frames through one in a network namespace of this test's own. */
#include "net/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/host.h"
#include "net/netns_testing.h"

static struct error err;

static void test_names(void **state)
{
	static const char *const bad[] = {
		"", "tap", "tap:", "tap0", "tap:a/b", "tap:a b", "tap:%d", "tap:..", "bridge:", "tap:a:b", "tap:1234567890123456"
	};
	struct tap_name t;

	assert_int_equal(tap_parse("tap:tap0", &t, &err), 0);
	assert_string_equal(t.name, "tap0");
	assert_false(t.is_bridge);
	assert_int_equal(tap_parse("bridge:123456789012345", &t, &err), 0);
	assert_string_equal(t.name, "123456789012345");
	assert_true(t.is_bridge);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(tap_parse(bad[i], &t, &err), -EINVAL);
		assert_non_null(strstr(err.text, "tap:NAME"));
	}
}

/* ---- a host that says no ---- */

static struct {
	int open_errno;
	unsigned long fails; /* the ioctl ... */
	int with;	     /* ... and its errno */
	short flags;	     /* of the interface */
} no;

static int fake_open(const char *path, int flags, mode_t mode)
{
	assert_string_equal(path, "/dev/net/tun");
	errno = no.open_errno;
	return no.open_errno ? -1 : open("/dev/null", flags, mode);
}

static int fake_ioctl(int fd, unsigned long request, void *arg)
{
	struct ifreq *r = arg;

	errno = no.with;
	if (request == no.fails)
		return -1;
	if (request == TUNSETIFF && strchr(r->ifr_name, '%'))
		strcpy(r->ifr_name, "viv7");
	if (request == SIOCGIFFLAGS)
		r->ifr_flags = no.flags;
	return 0;
}

static void test_reasons(void **state)
{
	static const struct {
		const char *net;
		int open_errno;
		unsigned long fails;
		int with;
		const char *says[2];
	} rows[] = {
		{ "tap:t0", ENOENT, 0, 0, { "no /dev/net/tun", "modprobe tun" } },
		{ "tap:t0", EACCES, 0, 0, { "may not open /dev/net/tun", "--net nat" } },
		{ "tap:t0", EMFILE, 0, 0, { "/dev/net/tun", "many" } },
		{ "tap:t0", 0, TUNSETIFF, EPERM, { "t0: it is not yours", "sudo ip tuntap add t0 mode tap" } },
		{ "bridge:b0", 0, TUNSETIFF, EPERM, { "bridge b0", "CAP_NET_ADMIN" } },
		{ "tap:t0", 0, TUNSETIFF, EBUSY, { "t0", "in use" } },
		{ "tap:t0", 0, TUNSETIFF, EINVAL, { "t0", "no tap device" } },
		{ "tap:t0", 0, TUNSETIFF, ENFILE, { "t0", "many" } },
		{ "tap:t0", 0, TUNSETVNETHDRSZ, EINVAL, { "t0", "long frames" } },
		{ "tap:t0", 0, TUNSETOFFLOAD, EINVAL, { "t0", "long frames" } },
		{ "tap:t0", 0, SIOCGIFFLAGS, ENODEV, { "t0", "state" } },
		{ "tap:t0", 0, SIOCSIFFLAGS, EPERM, { "t0 is down", "sudo ip link set t0 up" } },
		{ "bridge:b0", 0, SIOCGIFINDEX, ENODEV, { "viv7", "gone" } },
		{ "bridge:b0", 0, SIOCBRADDIF, ENODEV, { "no bridge b0", "sudo ip link add b0 type bridge" } },
		{ "bridge:b0", 0, SIOCBRADDIF, EOPNOTSUPP, { "b0", "no bridge" } },
		{ "bridge:b0", 0, SIOCBRADDIF, EPERM, { "bridge b0", "permitted" } },
	};
	int fd = -1, next = dup(0);

	close(next);
	host.open = fake_open;
	host.ioctl = fake_ioctl;
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct tap_name t;
		no.open_errno = rows[i].open_errno;
		no.fails = rows[i].fails;
		no.with = rows[i].with;
		assert_int_equal(tap_parse(rows[i].net, &t, &err), 0);
		assert_true(tap_open(&t, &fd, &err) < 0);
		assert_int_equal(fd, -1);
		for (unsigned s = 0; s < 2; s++)
			if (!strstr(err.text, rows[i].says[s]))
				fail_msg("row %u: \"%s\" is not in \"%s\"", i, rows[i].says[s], err.text);
	}
	no.fails = 0;
	no.open_errno = 0;
	no.flags = IFF_UP;
	struct tap_name t = { false, "t0" };
	assert_int_equal(tap_open(&t, &fd, &err), 0);
	assert_int_equal(fd, next); /* and nothing else was left open */
	close(fd);
	host = host_calls_real;
}

/* ---- a port, in a namespace of its own ---- */

static struct {
	unsigned received, downs, room;
	size_t len;
	uint8_t frame[NET_FRAME_MAX];
	struct net_offload off;
} card;

static int card_receive(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	if (!card.room)
		return -ENOBUFS;
	card.room--;
	card.received++;
	card.off = *off;
	card.len = iov->iov_len;
	memcpy(card.frame, iov->iov_base, iov->iov_len);
	return 0;
}

static void card_link(void *ctx, bool is_up)
{
	card.downs += !is_up;
}

/* The statistics of the interface, as another reader of it has them. */
static unsigned long long counter(const char *name)
{
	char line[512];
	unsigned long long bytes, packets = 0;
	FILE *f = fopen("/proc/self/net/dev", "r"); /* "  t0: rx bytes, packets ..." */

	while (f && fgets(line, sizeof(line), f)) {
		char *at = strstr(line, name);
		if (at && at[strlen(name)] == ':')
			sscanf(at + strlen(name) + 1, "%llu %llu", &bytes, &packets);
	}
	if (f)
		fclose(f);
	return packets;
}

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		n++;                                                                               \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s\n", #x);                                               \
			return n;                                                                  \
		}                                                                                  \
	} while (0)
enum { SKIP = 100 };

/* In a child.  The number of the first check that failed. */
static int run_port(void)
{
	static uint8_t frame[NET_FRAME_MAX] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52,
						0x54, 0,    0,	  0,	1,    0x88, 0xb5 };
	static struct iovec iov[1100];
	static const uint8_t mac[6] = { 0x52, 0x54, 0, 0, 0, 1 };
	struct tap_name t = { false, "t0" }, b = { true, "nobridge" };
	struct net_offload off = { 0 };
	struct net_port *port;
	struct loop *loop;
	int fd, other, n = 0;

	if (!netns_enter())
		return SKIP;
	int r = tap_open(&t, &fd, &err);
	if (r == -EACCES || r == -ENOENT || r == -EPERM)
		return SKIP + 1;
	CHECK(r == 0);
	CHECK(tap_open(&t, &other, &err) == -EBUSY);
	CHECK(tap_open(&b, &other, &err) == -ENODEV);
	CHECK(strstr(err.text, "no bridge nobridge"));
	CHECK(loop_create(&loop, NULL, &err) == 0);
	CHECK(net_port_tap(&port, loop, fd, mac, &err) == 0);
	port->card = (struct net_card){ card_receive, card_link, NULL, &card };
	card.room = 1000;
	/* The host's own multicasts come through: it is up. */
	for (unsigned i = 0; i < 500 && !card.received; i++)
		loop_run_once(loop, 20);
	CHECK(card.received && card.len >= 14);
	unsigned long long before = counter("t0");
	iov[0] = (struct iovec){ frame, 100 };
	CHECK(port->ops->send(port, &off, iov, 1) == 0);
	for (unsigned i = 0; i < 1100; i++)
		iov[i] = (struct iovec){ frame + i, 1 };
	CHECK(port->ops->send(port, &off, iov, 1100) == 0);
	CHECK(counter("t0") == before + 2);
	iov[0].iov_len = NET_FRAME_MAX;
	CHECK(port->ops->send(port, &off, iov, 1100) == -EMSGSIZE);
	off.gso_type = 0x77; /* no kind there is: the frame is lost, the link is not */
	iov[0].iov_len = 100;
	CHECK(port->ops->send(port, &off, iov, 1) == -EINVAL);
	CHECK(card.downs == 0);
	/* No buffer: one frame is held, and comes when there is. */
	card.room = 0;
	unsigned had = card.received;
	struct ifreq q = { .ifr_name = "t0" };
	int control = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(ioctl(control, SIOCSIFFLAGS, &q) == 0); /* down and up: it says hello again */
	q.ifr_flags = IFF_UP;
	CHECK(ioctl(control, SIOCSIFFLAGS, &q) == 0);
	for (unsigned i = 0; i < 100; i++)
		loop_run_once(loop, 20);
	CHECK(card.received == had);
	card.room = 1;
	port->ops->rx_ready(port);
	CHECK(card.received == had + 1);
	port->ops->close(port);
	loop_destroy(loop);
	CHECK(if_nametoindex("t0") == 0);
	return 0;
}

static void test_port(void **state)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(run_port());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) >= SKIP) {
		print_message("skipped: %s\n", WEXITSTATUS(status) == SKIP
						       ? "no namespaces of one's own"
						       : "/dev/net/tun may not be opened");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_reasons),
		cmocka_unit_test(test_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
