/* SPDX-License-Identifier: Apache-2.0 */
/* The socket port against the other end of a socket pair. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/host.h"
#include "net/port.h"

static const uint8_t mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };

static struct {
	struct loop *loop;
	struct net_port *port;
	int peer;
	/* the card */
	unsigned received, tx_readies, downs, room;
	struct net_offload off;
	uint8_t frame[NET_FRAME_MAX];
	size_t len;
} f;

static int card_receive(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	assert_ptr_equal(ctx, &f);
	assert_int_equal(niov, 1);
	if (!f.room)
		return -ENOBUFS;
	f.room--;
	f.received++;
	f.off = *off;
	f.len = iov->iov_len;
	memcpy(f.frame, iov->iov_base, f.len);
	return 0;
}

static void card_link(void *ctx, bool is_up)
{
	assert_false(is_up);
	f.downs++;
}

static void card_tx_ready(void *ctx)
{
	f.tx_readies++;
}

static int setup(void **state)
{
	struct error err;
	int fds[2];

	(void)state;
	memset(&f, 0, sizeof(f));
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(loop_create(&f.loop, NULL, &err), 0);
	assert_int_equal(net_port_socket(&f.port, f.loop, fds[0], mac, &err), 0);
	f.peer = fds[1];
	f.room = 1000;
	f.port->card = (struct net_card){ card_receive, card_link, card_tx_ready, &f };
	assert_memory_equal(f.port->mac, mac, 6);
	assert_true(f.port->can_offload);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	f.port->ops->close(f.port);
	loop_destroy(f.loop);
	if (f.peer >= 0)
		close(f.peer);
	return 0;
}

static void run(void)
{
	for (unsigned i = 0; i < 20; i++)
		loop_run_once(f.loop, 0);
}

static void test_send(void **state)
{
	struct net_offload off = { .flags = 1, .gso_type = 4, .gso_size = 1440, .csum_start = 54 };
	static uint8_t frame[NET_FRAME_MAX], got[sizeof(off) + NET_FRAME_MAX];
	static struct iovec iov[1032];

	(void)state;
	for (unsigned i = 0; i < sizeof(frame); i++)
		frame[i] = i * 11 + (i >> 8);
	iov[0] = (struct iovec){ frame, 100 };
	iov[1] = (struct iovec){ frame + 100, sizeof(frame) - 100 };
	assert_int_equal(f.port->ops->send(f.port, &off, iov, 2), 0);
	assert_int_equal(recv(f.peer, got, sizeof(got), 0), sizeof(got));
	assert_memory_equal(got, &off, sizeof(off));
	assert_memory_equal(got + sizeof(off), frame, sizeof(frame));
	/* In more pieces than a system call takes. */
	for (unsigned i = 0; i < 1032; i++)
		iov[i] = (struct iovec){ frame + i * 60, 60 };
	assert_int_equal(f.port->ops->send(f.port, &off, iov, 1032), 0);
	assert_int_equal(recv(f.peer, got, sizeof(got), 0), sizeof(off) + 1032 * 60);
	assert_memory_equal(got + sizeof(off), frame, 1032 * 60);
	iov[1031].iov_len = NET_FRAME_MAX;
	assert_int_equal(f.port->ops->send(f.port, &off, iov, 1032), -EMSGSIZE);
}

static void test_congestion(void **state)
{
	static uint8_t frame[1500];
	struct net_offload off = { 0 };
	struct iovec iov = { frame, sizeof(frame) };
	unsigned n = 0;
	int r;

	(void)state;
	while ((r = f.port->ops->send(f.port, &off, &iov, 1)) == 0)
		n++;
	assert_int_equal(r, -EAGAIN);
	assert_true(n > 10);
	run();
	assert_int_equal(f.tx_readies, 0);
	uint8_t buf[2000];
	while (recv(f.peer, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		n--;
	assert_int_equal(n, 0);
	run();
	assert_int_equal(f.tx_readies, 1);
	assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), 0);
}

static void give(const void *p, size_t len)
{
	assert_int_equal(send(f.peer, p, len, MSG_DONTWAIT), len);
}

static void test_receive(void **state)
{
	static struct {
		struct net_offload off;
		uint8_t frame[NET_FRAME_MAX + 100];
	} p = { { .flags = 2 }, { 1, 2, 3 } };

	(void)state;
	give(&p, sizeof(p.off) + 60);
	run();
	assert_int_equal(f.received, 1);
	assert_int_equal(f.len, 60);
	assert_int_equal(f.off.flags, 2);
	assert_int_equal(f.frame[2], 3);
	/* No frames. */
	give(&p, sizeof(p.off));
	give(&p, 3);
	give(&p, sizeof(p.off) + NET_FRAME_MAX + 1);
	run();
	assert_int_equal(f.received, 1);
	give(&p, sizeof(p.off) + NET_FRAME_MAX);
	run();
	assert_int_equal(f.received, 2);
	assert_int_equal(f.len, NET_FRAME_MAX);
	/* No room: one is held, the rest stays in the socket, in order. */
	f.room = 0;
	for (unsigned i = 0; i < 5; i++) {
		p.frame[0] = i;
		give(&p, sizeof(p.off) + 60);
	}
	run();
	assert_int_equal(f.received, 2);
	f.port->ops->rx_ready(f.port);
	assert_int_equal(f.received, 2);
	f.room = 2;
	f.port->ops->rx_ready(f.port);
	assert_int_equal(f.received, 3);
	assert_int_equal(f.frame[0], 0);
	run();
	assert_int_equal(f.received, 4);
	assert_int_equal(f.frame[0], 1);
	f.room = 10;
	f.port->ops->rx_ready(f.port);
	run();
	assert_int_equal(f.received, 7);
	assert_int_equal(f.frame[0], 4);
}

static void test_hang_up(void **state)
{
	struct net_offload off = { 0 };
	uint8_t frame[60] = { 0 };
	struct iovec iov = { frame, sizeof(frame) };

	(void)state;
	close(f.peer);
	f.peer = -1;
	run();
	assert_int_equal(f.downs, 1);
	assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), -ENETDOWN);
	run();
	assert_int_equal(f.downs, 1);
}

/* The socket breaks while sending, or while a frame is held. */
static void test_hang_up_on_send(void **state)
{
	struct net_offload off = { 0 };
	uint8_t frame[60] = { 0 };
	struct iovec iov = { frame, sizeof(frame) };

	(void)state;
	f.room = 0;
	give(frame, sizeof(frame));
	run();
	close(f.peer);
	f.peer = -1;
	assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), -EPIPE);
	assert_int_equal(f.downs, 1);
	f.room = 1;
	f.port->ops->rx_ready(f.port);
	assert_int_equal(f.received, 1);
	run();
}

static void *no_memory(size_t len)
{
	return NULL;
}

static void test_refusals(void **state)
{
	struct net_port *port = NULL;
	struct error err;
	int fds[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(net_port_socket(&port, f.loop, fds[0], mac, &err), -EPROTOTYPE);
	assert_non_null(strstr(err.text, "no packet socket"));
	host.malloc = no_memory;
	assert_int_equal(net_port_socket(&port, f.loop, fds[1], mac, &err), -ENOMEM);
	host = host_calls_real;
	/* Both were taken, and closed. */
	assert_int_equal(close(fds[0]), -1);
	assert_int_equal(close(fds[1]), -1);
	assert_null(port);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_send, setup, teardown),
		cmocka_unit_test_setup_teardown(test_congestion, setup, teardown),
		cmocka_unit_test_setup_teardown(test_receive, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hang_up, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hang_up_on_send, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
