/* SPDX-License-Identifier: Apache-2.0 */
/* The socket port against the other end of a socket pair: one that knows no rings, and links as networks have them. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/host.h"
#include "net/link.h"
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
	/* It asks for rings, which a network may not know. */
	char asked[2];
	assert_int_equal(recv(f.peer, asked, sizeof(asked), MSG_DONTWAIT), 1);
	assert_int_equal(asked[0], 'R');
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

/* ---- rings ---- */

static struct {
	struct net_link link;
	struct net_offload off;
	uint8_t frame[NET_FRAME_MAX];
	struct net_ring_frame got;
	unsigned polls;
} net;

/* One round of the network's loop, without waiting.  What net_link_next() says last; the last frame is in @net. */
static int round_of_network(bool wants_room, unsigned *frames)
{
	const struct net_link_rx rx = { &net.off, net.frame };
	uint32_t timeout_ms = 1000;
	struct pollfd p = { .fd = net.link.fd,
			    .events = net_link_poll(&net.link, wants_room, &timeout_ms) };
	int r;

	net.polls += poll(&p, 1, 0) == 1;
	net_link_polled(&net.link, p.revents);
	while ((r = net_link_next(&net.link, &rx, &net.got)) == 1) {
		if (!net.link.is_from_socket)
			memcpy(net.frame, net.got.data, net.got.len);
		net_link_done(&net.link);
		if (frames)
			++*frames;
	}
	return r;
}

static int setup_rings(void **state)
{
	struct error err;
	int fds[2];

	memset(&f, 0, sizeof(f));
	memset(&net, 0, sizeof(net));
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(loop_create(&f.loop, NULL, &err), 0);
	assert_int_equal(net_port_socket(&f.port, f.loop, fds[0], mac, &err), 0);
	net_link_open(&net.link, fds[1], false);
	f.peer = -1;
	f.room = 1000;
	f.port->card = (struct net_card){ card_receive, card_link, card_tx_ready, &f };
	assert_int_equal(round_of_network(false, NULL), 0);
	assert_false(net.link.has_rings); /* offered */
	run();
	assert_int_equal(round_of_network(false, NULL), 0);
	assert_true(net.link.has_rings);
	return 0;
}

static int teardown_rings(void **state)
{
	net_link_close(&net.link);
	return teardown(state);
}

static int send_to_card(unsigned number, size_t len)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct net_offload off = { .flags = 2 };
	struct iovec iov = { frame, len };

	frame[0] = (uint8_t)number;
	frame[len - 1] = (uint8_t)number;
	return net_link_send(&net.link, &off, &iov, 1);
}

static void test_rings(void **state)
{
	struct net_offload off = { .flags = 1, .gso_type = 4, .gso_size = 1440, .csum_start = 54 };
	static uint8_t frame[NET_FRAME_MAX];
	static struct iovec iov[1032];
	unsigned frames = 0;

	for (unsigned i = 0; i < sizeof(frame); i++)
		frame[i] = (uint8_t)(i * 11 + (i >> 8));
	iov[0] = (struct iovec){ frame, 100 };
	iov[1] = (struct iovec){ frame + 100, sizeof(frame) - 100 };
	assert_int_equal(f.port->ops->send(f.port, &off, iov, 2), 0);
	assert_int_equal(round_of_network(false, &frames), 0);
	assert_int_equal(frames, 1);
	assert_false(net.link.is_from_socket);
	assert_int_equal(net.got.len, sizeof(frame));
	assert_memory_equal(&net.got.off, &off, sizeof(off));
	assert_memory_equal(net.frame, frame, sizeof(frame));
	for (unsigned i = 0; i < 1032; i++)
		iov[i] = (struct iovec){ frame + i * 60, 60 };
	assert_int_equal(f.port->ops->send(f.port, &off, iov, 1032), 0);
	assert_int_equal(round_of_network(false, &frames), 0);
	assert_int_equal(net.got.len, 1032 * 60);
	assert_memory_equal(net.frame, frame, 1032 * 60);
	/* The other way; the bell rings once, before the loop waits. */
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(send_to_card(i, 60 + i), 0);
	run();
	assert_int_equal(f.received, 0);
	assert_int_equal(round_of_network(false, NULL), 0);
	run();
	assert_int_equal(f.received, 5);
	assert_int_equal(f.len, 64);
	assert_int_equal(f.off.flags, 2);
	assert_int_equal(f.frame[0], 4);
}

/* While one side is at work the other does not ring. */
static void test_rings_without_bells(void **state)
{
	struct net_offload off = { 0 };
	uint8_t frame[60] = { 0 };
	struct iovec iov = { frame, sizeof(frame) };
	unsigned frames = 0;

	net.polls = 0;
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), 0);
	assert_int_equal(round_of_network(false, &frames), 0);
	assert_int_equal(frames, 1000);
	assert_int_equal(net.polls, 1);
	for (unsigned i = 0; i < 1000; i++) {
		assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), 0);
		assert_int_equal(round_of_network(false, &frames), 0);
	}
	assert_int_equal(frames, 2000);
	assert_int_equal(net.polls, 1); /* it never slept meanwhile */
}

/* More frames than the port takes in a round: the loop has its turns, and nothing stays behind. */
static void test_rings_in_rounds(void **state)
{
	for (unsigned i = 0; i < 500; i++)
		assert_int_equal(send_to_card(i, 60), 0);
	assert_int_equal(round_of_network(false, NULL), 0);
	loop_run_once(f.loop, 0);
	assert_in_range(f.received, 1, 100);
	for (unsigned i = 0; i < 10 && f.received < 500; i++)
		loop_run_once(f.loop, 0);
	assert_int_equal(f.received, 500);
}

static void test_rings_full(void **state)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct net_offload off = { 0 };
	struct iovec iov = { frame, sizeof(frame) };
	unsigned n = 0, frames = 0;
	int r;

	while ((r = f.port->ops->send(f.port, &off, &iov, 1)) == 0)
		n++;
	assert_int_equal(r, -EAGAIN);
	assert_true(n >= 3 && n <= NET_RING_BYTES / NET_FRAME_MAX);
	run();
	assert_int_equal(f.tx_readies, 0);
	assert_int_equal(round_of_network(false, &frames), 0);
	assert_int_equal(frames, n);
	assert_int_equal(round_of_network(false, &frames), 0);
	run();
	assert_int_equal(f.tx_readies, 1);
	assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), 0);

	/* The other way: the card has no buffers, so what is in the ring stays there, and in order. */
	f.room = 0;
	for (n = 0; (r = send_to_card(n, sizeof(frame))) == 0; n++)
		;
	assert_int_equal(r, -EAGAIN);
	round_of_network(true, NULL);
	run();
	assert_int_equal(f.received, 0);
	assert_false(net.link.is_writable);
	f.room = 1;
	f.port->ops->rx_ready(f.port);
	assert_int_equal(f.received, 1);
	assert_int_equal(f.frame[0], 0);
	run();
	assert_int_equal(f.received, 1);
	f.room = 100;
	f.port->ops->rx_ready(f.port);
	run();
	assert_int_equal(f.received, n);
	assert_int_equal(f.frame[0], n - 1);
	round_of_network(true, NULL);
	assert_true(net.link.is_writable);
}

/* A bell for the card's room comes through while a frame is held. */
static void test_rings_full_both_ways(void **state)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct net_offload off = { 0 };
	struct iovec iov = { frame, sizeof(frame) };

	f.room = 0;
	assert_int_equal(send_to_card(1, 60), 0);
	round_of_network(false, NULL);
	run();
	while (f.port->ops->send(f.port, &off, &iov, 1) == 0)
		;
	round_of_network(false, NULL);
	round_of_network(false, NULL);
	run();
	assert_int_equal(f.tx_readies, 1);
	f.room = 1;
	f.port->ops->rx_ready(f.port);
	assert_int_equal(f.received, 1);
	assert_int_equal(f.len, 60);
}

static void test_rings_hang_up(void **state)
{
	struct net_offload off = { 0 };
	uint8_t frame[60] = { 0 };
	struct iovec iov = { frame, sizeof(frame) };

	f.room = 0;
	assert_int_equal(send_to_card(1, 60), 0);
	round_of_network(false, NULL);
	run();
	net_link_close(&net.link);
	run();
	assert_int_equal(f.downs, 1);
	assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), -ENETDOWN);
	f.room = 1;
	f.port->ops->rx_ready(f.port);
	assert_int_equal(f.received, 1);
	run();
}

/* The memory that a network offers, written to by hand: the port hangs up, or keeps to the socket. */
static void offer_memory(int memory)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct iovec iov = { (char[]){ 'M' }, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control };
	int fds[2] = { memory, memory };

	msg.msg_controllen = sizeof(control);
	struct cmsghdr *m = CMSG_FIRSTHDR(&msg);
	m->cmsg_level = SOL_SOCKET;
	m->cmsg_type = SCM_RIGHTS;
	m->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(m), fds, sizeof(fds));
	assert_int_equal(sendmsg(f.peer, &msg, 0), 1);
	run();
}

static unsigned open_files(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void test_hostile_network(void **state)
{
	struct net_offload off = { 0 };
	uint8_t frame[60] = { 0 }, got[100];
	struct iovec iov = { frame, sizeof(frame) };
	struct net_ring *ring;
	unsigned before = open_files();
	int fds[2], memory;

	/* No memory of frames at all; and words that mean nothing. */
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	offer_memory(fds[0]);
	close(fds[0]);
	close(fds[1]);
	give("O", 1);
	give("M", 1);
	give("?", 1);
	run();
	assert_int_equal(open_files(), before);
	assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), 0);
	assert_int_equal(recv(f.peer, got, sizeof(got), MSG_DONTWAIT), sizeof(off) + 60);
	/* Right memory, with a position out of it: told with the first bell. */
	assert_int_equal(net_ring_make(&ring, &memory), 0);
	uint32_t head = 0xfffffff0;
	assert_int_equal(pwrite(memory, &head, 4, 0), 4);
	offer_memory(memory);
	assert_int_equal(recv(f.peer, got, sizeof(got), MSG_DONTWAIT), 1);
	assert_int_equal(got[0], 'O');
	/* A second one is not taken. */
	offer_memory(memory);
	assert_int_equal(recv(f.peer, got, sizeof(got), MSG_DONTWAIT), -1);
	assert_int_equal(f.downs, 0);
	give("B", 1);
	run();
	assert_int_equal(f.downs, 1);
	assert_int_equal(f.port->ops->send(f.port, &off, &iov, 1), -ENETDOWN);
	net_ring_destroy(ring);
	close(memory);
	assert_int_equal(open_files(), before);
}

/* Towards a network: memory that was never asked for, words out of order, and floods of them. */
static void test_hostile_machine(void **state)
{
	const struct net_link_rx rx = { &net.off, net.frame };
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	net_link_open(&net.link, fds[1], false);
	unsigned before = open_files();
	f.peer = fds[0];
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(send(fds[0], &"OMB?"[i % 4], 1, 0), 1);
		assert_int_equal(round_of_network(true, NULL), 0);
	}
	assert_false(net.link.has_rings);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(send(fds[0], "R", 1, 0), 1);
		assert_int_equal(round_of_network(false, NULL), 0);
	}
	assert_false(net.link.has_rings);
	assert_int_equal(open_files(), before); /* memory once; its descriptor is on the way */
	char kind;
	unsigned offers = 0;
	while (recv(fds[0], &kind, 1, MSG_DONTWAIT) == 1)
		offers += kind == 'M';
	assert_int_equal(offers, 1);
	/* Words only, faster than they are read: a call ends. */
	while (send(fds[0], "?", 1, MSG_DONTWAIT) == 1)
		;
	net.link.is_readable = true;
	assert_int_equal(net_link_next(&net.link, &rx, &net.got), 0);
	assert_true(net.link.is_readable);
	close(fds[0]);
	net.link.is_readable = true;
	int r;
	while ((r = net_link_next(&net.link, &rx, &net.got)) == 0)
		;
	assert_int_equal(r, -EPIPE);
	net_link_close(&net.link);
	net_link_close(&net.link);
}

static void *no_memory(size_t len)
{
	return NULL;
}

static int no_eventfd(unsigned int value, int flags)
{
	errno = EMFILE;
	return -1;
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
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
	host.eventfd = no_eventfd;
	assert_int_equal(net_port_socket(&port, f.loop, fds[0], mac, &err), -EMFILE);
	host = host_calls_real;
	assert_int_equal(close(fds[0]), -1);
	close(fds[1]);
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
		cmocka_unit_test_setup_teardown(test_rings, setup_rings, teardown_rings),
		cmocka_unit_test_setup_teardown(test_rings_without_bells, setup_rings, teardown_rings),
		cmocka_unit_test_setup_teardown(test_rings_in_rounds, setup_rings, teardown_rings),
		cmocka_unit_test_setup_teardown(test_rings_full, setup_rings, teardown_rings),
		cmocka_unit_test_setup_teardown(test_rings_full_both_ways, setup_rings, teardown_rings),
		cmocka_unit_test_setup_teardown(test_rings_hang_up, setup_rings, teardown_rings),
		cmocka_unit_test_setup_teardown(test_hostile_network, setup, teardown),
		cmocka_unit_test(test_hostile_machine),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
