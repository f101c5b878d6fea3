/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP between a guest made of hand-written segments and a socket pair in the place of the host's network: each connect() of
 * the module's is one end of a pair, the test holds the other.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "base/host.h"
#include "net/offload.h"
#include "net/tcp_nat.h"
#include "net/tcp_wire.h"

#define FRAMES_MAX 64
#define DATA_MAX   (2 * MIB)

static struct {
	struct tcp_nat *nat;
	int64_t now;
	int far, near;	     /* the host's side: the test's end, and the module's */
	int connect_errno;   /* what connect() says; 0: it is done */
	uint32_t connect_ip; /* where to */
	unsigned room;	     /* so many frames are taken */
	/* what the guest got */
	struct {
		struct net_offload off;
		size_t len;
		uint8_t data[NET_FRAME_MAX];
	} frames[FRAMES_MAX];
	unsigned nframes;
	/* the guest's TCP */
	struct tcp_ends ends;
	uint32_t seq, ack;
	uint16_t window;
	int wscale;
} g;

static uint8_t data[DATA_MAX], got[DATA_MAX];

static int fake_socket(int domain, int type, int protocol)
{
	int fds[2];

	(void)domain;
	(void)protocol;
	if (socketpair(AF_UNIX, type, 0, fds) < 0)
		return -1;
	g.near = fds[0];
	g.far = fds[1];
	return fds[0];
}

static int fake_connect(int fd, const struct sockaddr *to, socklen_t len)
{
	assert_int_equal(fd, g.near);
	assert_int_equal(len, sizeof(struct sockaddr_in));
	g.connect_ip = ((const struct sockaddr_in *)(const void *)to)->sin_addr.s_addr;
	if (!g.connect_errno)
		return 0;
	errno = g.connect_errno;
	return -1;
}

static bool take_frame(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	(void)ctx;
	if (!g.room)
		return false;
	g.room--;
	assert_true(g.nframes < FRAMES_MAX && niov >= 1 && niov <= 3);
	size_t len = 0;
	for (unsigned i = 0; i < niov; i++) {
		assert_true(len + iov[i].iov_len <= NET_FRAME_MAX);
		memcpy(g.frames[g.nframes].data + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	g.frames[g.nframes].len = len;
	g.frames[g.nframes++].off = *off;
	return true;
}

static int64_t clock_ms(void *ctx)
{
	(void)ctx;
	return g.now;
}

static void set_up_with(bool no_host_loopback, bool is_restricted)
{
	struct tcp_nat_config cfg = { .no_host_loopback = no_host_loopback,
				      .is_restricted = is_restricted,
				      .gateway_mac = { 0x52, 0x55, 0x0a, 0, 2, 2 },
				      .send = take_frame,
				      .now_ms = clock_ms };
	struct error err;

	inet_pton(AF_INET, "10.0.2.0", &cfg.net);
	inet_pton(AF_INET, "255.255.255.0", &cfg.mask);
	inet_pton(AF_INET, "10.0.2.2", &cfg.host);
	memset(&g, 0, offsetof(__typeof__(g), frames));
	g.nframes = 0;
	g.far = g.near = -1;
	g.room = FRAMES_MAX;
	g.now = 1000000;
	memcpy(g.ends.src_mac, "\x52\x54\0\1\2\3", 6);
	memcpy(g.ends.dst_mac, "\x52\x55\x0a\0\2\2", 6);
	inet_pton(AF_INET, "10.0.2.15", &g.ends.src_ip);
	inet_pton(AF_INET, "10.0.2.2", &g.ends.dst_ip);
	g.ends.src_port = 40000;
	g.ends.dst_port = 80;
	g.window = 60000;
	g.wscale = 7;
	host.socket = fake_socket;
	host.connect = fake_connect;
	for (unsigned i = 0; i < DATA_MAX; i++)
		data[i] = (uint8_t)(i * 7 + (i >> 8) + (i >> 16));
	assert_int_equal(tcp_nat_create(&g.nat, &cfg, &err), 0);
}

static int set_up(void **state)
{
	(void)state;
	set_up_with(false, false);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	tcp_nat_destroy(g.nat);
	if (g.far >= 0)
		close(g.far);
	host = host_calls_real;
	return 0;
}

/* A segment from the guest; returns whether the module took it. */
static bool guest(uint8_t flags, const void *payload, size_t len)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct tcp_segment s = { .ends = g.ends,
				 .seq = g.seq,
				 .ack = g.ack,
				 .flags = flags,
				 .window = g.window,
				 .mss = 1460,
				 .wscale = g.wscale,
				 .len = len };
	struct net_offload off;
	size_t head = tcp_build(&s, 1460, frame, &off);

	if (len)
		memcpy(frame + head, payload, len);
	bool taken = tcp_nat_input(g.nat, frame, head + len);
	g.seq += (uint32_t)len + !!(flags & TCP_SYN) + !!(flags & TCP_FIN);
	return taken;
}

static void poll_round(void)
{
	struct pollfd pfds[TCP_NAT_POLLS];
	uint32_t timeout = 60000;
	unsigned n = tcp_nat_fill(g.nat, pfds, TCP_NAT_POLLS, &timeout);

	assert_true(poll(pfds, n, 0) >= 0);
	tcp_nat_polled(g.nat, pfds, n);
	tcp_nat_flush(g.nat);
}

static struct tcp_segment frame(unsigned i)
{
	struct tcp_segment s;

	assert_true(i < g.nframes);
	assert_true(tcp_parse(g.frames[i].data, g.frames[i].len, &s));
	assert_int_equal(s.ends.src_ip, g.ends.dst_ip);
	assert_int_equal(s.ends.dst_ip, g.ends.src_ip);
	assert_int_equal(s.ends.src_port, g.ends.dst_port);
	assert_int_equal(s.ends.dst_port, g.ends.src_port);
	assert_memory_equal(s.ends.dst_mac, g.ends.src_mac, 6);
	assert_memory_equal(s.ends.src_mac, g.ends.dst_mac, 6);
	/* It is a right frame: with its checksum filled in, segments come out of it that are right. */
	uint16_t sum = net_checksum_fold(net_checksum(g.frames[i].data + 14, 20, 0));
	assert_int_equal(sum, 0);
	return s;
}

/* The one frame that came; forgets it. */
static struct tcp_segment only_frame(void)
{
	assert_int_equal(g.nframes, 1);
	struct tcp_segment s = frame(0);

	g.nframes = 0;
	return s;
}

static void establish(void)
{
	g.seq = 0xfffffff0; /* wraps soon */
	assert_true(guest(TCP_SYN, NULL, 0));
	struct tcp_segment s = only_frame();
	assert_int_equal(s.flags, TCP_SYN | TCP_ACK);
	assert_int_equal(s.ack, g.seq);
	assert_int_equal(s.mss, 1460);
	assert_int_equal(s.wscale, g.wscale < 0 ? -1 : 4);
	g.ack = s.seq + 1;
	assert_true(guest(TCP_ACK, NULL, 0));
	tcp_nat_flush(g.nat);
	assert_int_equal(g.nframes, 0);
}

/* A guest that is gone elsewhere is told by frames that are made before; here nothing changes. */
static void test_farewell(void **state)
{
	uint8_t out[2 * TCP_NAT_RESET_BYTES + 1];
	struct tcp_segment s;

	(void)state;
	assert_int_equal(tcp_nat_resets(g.nat, out, sizeof(out)), 0);
	establish();
	assert_int_equal(write(g.far, "hello", 5), 5);
	poll_round();
	g.ack += (uint32_t)only_frame().len;
	assert_int_equal(tcp_nat_resets(g.nat, out, TCP_NAT_RESET_BYTES - 1), 0);
	assert_int_equal(tcp_nat_resets(g.nat, out, sizeof(out)), TCP_NAT_RESET_BYTES);
	assert_true(tcp_parse(out, TCP_NAT_RESET_BYTES, &s));
	assert_int_equal(s.flags, TCP_RST | TCP_ACK);
	assert_int_equal(s.seq, g.ack); /* RFC 5961: no other is believed */
	assert_int_equal(s.ends.dst_port, g.ends.src_port);
	assert_int_equal(s.ends.src_port, g.ends.dst_port);
	assert_true(guest(TCP_ACK, "x", 1));
	assert_int_equal(tcp_nat_resets(g.nat, out, sizeof(out)), TCP_NAT_RESET_BYTES);
}

/* ---- the door ---- */

static void test_parse(void **state)
{
	struct tcp_segment s = { .ends = g.ends,
				 .seq = 1,
				 .ack = 2,
				 .flags = TCP_SYN,
				 .window = 3,
				 .mss = 1400,
				 .wscale = 9,
				 .len = 0 },
			   r;
	uint8_t f[TCP_HEADERS_MAX + 10] = { 0 };
	struct net_offload off;

	(void)state;
	size_t n = tcp_build(&s, 1460, f, &off);
	assert_int_equal(n, TCP_HEADERS_MAX);
	assert_true(tcp_parse(f, n, &r));
	assert_int_equal(r.seq, 1);
	assert_int_equal(r.ack, 2);
	assert_int_equal(r.window, 3);
	assert_int_equal(r.mss, 1400);
	assert_int_equal(r.wscale, 9);
	assert_int_equal(r.len, 0);
	assert_true(tcp_parse(f, n + 6, &r)); /* padded */
	assert_int_equal(r.len, 0);
	for (size_t k = 0; k < n; k++)
		assert_false(tcp_parse(f, k, &r));
	static const struct {
		unsigned at;
		uint8_t value;
	} bad[] = { { 12, 0x86 }, { 14, 0x65 }, { 14, 0x44 }, { 14, 0x4f }, { 20, 0x20 }, { 21, 1 },
		    { 23, 17 },	  { 16, 1 },	{ 17, 39 },   { 46, 0x40 }, { 46, 0xf0 } };
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		uint8_t old = f[bad[i].at];
		f[bad[i].at] = bad[i].value;
		if (tcp_parse(f, n, &r))
			fail_msg("byte %u as %#x was taken", bad[i].at, bad[i].value);
		f[bad[i].at] = old;
	}
	/* Options that don't fit end the options. */
	f[55] = 0;
	assert_true(tcp_parse(f, n, &r));
	assert_int_equal(r.mss, 0);
	f[55] = 200;
	assert_true(tcp_parse(f, n, &r));
	assert_int_equal(r.mss, 0);
}

/* ---- opening ---- */

static void test_who_is_ours(void **state)
{
	static const struct {
		const char *from, *to;
		bool is_ours;
	} cases[] = {
		{ "10.0.2.15", "10.0.2.2", true },   { "10.0.2.15", "192.0.2.1", true },
		{ "10.0.2.15", "10.0.2.3", false },  { "10.0.2.15", "10.0.2.99", false },
		{ "10.0.2.15", "127.0.0.1", false }, { "10.0.2.15", "0.0.0.0", false },
		{ "10.0.2.15", "224.0.0.1", false }, { "10.0.2.15", "255.255.255.255", false },
		{ "10.0.3.15", "192.0.2.1", false }, { "10.0.2.2", "192.0.2.1", false },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		inet_pton(AF_INET, cases[i].from, &g.ends.src_ip);
		inet_pton(AF_INET, cases[i].to, &g.ends.dst_ip);
		assert_int_equal(guest(TCP_SYN, NULL, 0), cases[i].is_ours);
		if (cases[i].is_ours) {
			char where[16];
			inet_ntop(AF_INET, &g.connect_ip, where, sizeof(where));
			assert_string_equal(where, i ? cases[i].to : "127.0.0.1");
			close(g.far);
			g.far = -1;
		}
	}
	/* Nothing but a SYN opens. */
	inet_pton(AF_INET, "10.0.2.15", &g.ends.src_ip);
	inet_pton(AF_INET, "192.0.2.7", &g.ends.dst_ip);
	assert_false(guest(TCP_ACK, NULL, 0));
	assert_false(guest(TCP_SYN | TCP_ACK, NULL, 0));
	assert_false(guest(TCP_RST, NULL, 0));
	assert_int_equal(tcp_nat_flows(g.nat), 2);
}

static void test_no_host_loopback(void **state)
{
	tear_down(state);
	set_up_with(true, false);
	assert_false(guest(TCP_SYN, NULL, 0));
	inet_pton(AF_INET, "192.0.2.1", &g.ends.dst_ip);
	assert_true(guest(TCP_SYN, NULL, 0));
}

static void test_refused(void **state)
{
	(void)state;
	g.connect_errno = ECONNREFUSED;
	g.seq = 77;
	assert_true(guest(TCP_SYN, NULL, 0));
	struct tcp_segment s = only_frame();
	assert_int_equal(s.flags, TCP_RST | TCP_ACK);
	assert_int_equal(s.ack, 78);
	close(g.far);

	static const struct {
		int error;
		uint8_t code;
	} cases[] = { { ENETUNREACH, 0 }, { EHOSTUNREACH, 1 }, { ETIMEDOUT, 1 } };
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		g.connect_errno = cases[i].error;
		assert_true(guest(TCP_SYN, NULL, 0));
		close(g.far);
		assert_int_equal(g.nframes, 1);
		const uint8_t *f = g.frames[0].data;
		assert_int_equal(g.frames[0].len, ICMP_FRAME_LEN);
		assert_int_equal(f[23], 1);
		assert_int_equal(f[34], 3);
		assert_int_equal(f[35], cases[i].code);
		assert_int_equal(net_checksum_fold(net_checksum(f + 34, ICMP_FRAME_LEN - 34, 0)), 0);
		assert_memory_equal(f + 42 + 12, &g.ends.src_ip, 4); /* the quoted header */
		assert_memory_equal(f + 42 + 16, &g.ends.dst_ip, 4);
		assert_int_equal(f[42 + 20] << 8 | f[42 + 21], g.ends.src_port);
		g.nframes = 0;
	}
	g.far = -1;
	assert_int_equal(tcp_nat_flows(g.nat), 0);
}

static void test_connects_later(void **state)
{
	(void)state;
	g.connect_errno = EINPROGRESS;
	g.seq = 5;
	assert_true(guest(TCP_SYN, NULL, 0));
	g.seq = 5;
	assert_true(guest(TCP_SYN, NULL, 0)); /* the guest is impatient */
	assert_int_equal(g.nframes, 0);
	poll_round(); /* a socket pair is writable at once */
	assert_int_equal(only_frame().flags, TCP_SYN | TCP_ACK);
	/* The answer is lost: asked again, and told again. */
	g.seq = 5;
	assert_true(guest(TCP_SYN, NULL, 0));
	assert_int_equal(only_frame().flags, TCP_SYN | TCP_ACK);
	g.now += 1001;
	poll_round();
	assert_int_equal(only_frame().flags, TCP_SYN | TCP_ACK);
	/* A wrong acknowledgement does not open it. */
	g.ack = 4711;
	assert_true(guest(TCP_ACK, NULL, 0));
	struct tcp_segment s = only_frame();
	assert_int_equal(s.flags, TCP_RST);
	assert_int_equal(s.seq, 4711);
}

/* ---- data ---- */

static size_t drain_far(size_t at, size_t want)
{
	size_t n = 0;

	while (n < want) {
		ssize_t r = recv(g.far, got + at + n, want - n, MSG_DONTWAIT);
		if (r <= 0)
			break;
		n += (size_t)r;
	}
	return n;
}

static void test_to_host(void **state)
{
	(void)state;
	establish();
	for (unsigned i = 0; i < 3; i++)
		guest(TCP_ACK, data + i * 10000, 10000);
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, g.seq); /* one for all */
	assert_int_equal(drain_far(0, 30001), 30000);
	assert_memory_equal(got, data, 30000);
	/* Again, overlapping, and from the future. */
	g.seq -= 5000;
	guest(TCP_ACK, data + 25000, 8000);
	assert_int_equal(drain_far(0, 5000), 3000);
	assert_memory_equal(got, data + 30000, 3000);
	g.seq += 10;
	uint32_t future = g.seq;
	guest(TCP_ACK, data, 100);
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, future - 10);
	assert_int_equal(drain_far(0, 1), 0);
}

/* The host's side does not read: what was accepted waits, the window closes, nothing is lost. */
static void test_slow_host(void **state)
{
	size_t sent = 0, read_ = 0;
	uint32_t edge;

	(void)state;
	establish();
	guest(TCP_ACK, data, 1);
	sent = 1;
	tcp_nat_flush(g.nat);
	struct tcp_segment s = only_frame();
	for (;;) {
		edge = s.ack + ((uint32_t)s.window << 4);
		uint32_t n = MIN(edge - g.seq, 60000u);
		if (!n)
			break;
		guest(TCP_ACK, data + sent, n);
		sent += n;
		assert_true(sent < DATA_MAX);
		tcp_nat_flush(g.nat);
		s = only_frame();
		assert_int_equal(s.ack, g.seq); /* all accepted */
		assert_true(s.ack + ((uint32_t)s.window << 4) - edge < 0x80000000u); /* the edge never goes back */
	}
	assert_true(sent > 512 * KIB && tcp_nat_bytes(g.nat) <= 512 * KIB);
	/* A probe of the closed window is answered. */
	guest(TCP_ACK, data + sent, 1);
	g.seq--;
	tcp_nat_flush(g.nat);
	s = only_frame();
	assert_int_equal(s.ack, g.seq);
	assert_int_equal(s.window, 0);
	/* Now it reads: the window opens by itself. */
	unsigned updates = 0;
	while (read_ < sent) {
		size_t n = drain_far(read_, sent - read_);
		assert_true(n > 0);
		read_ += n;
		poll_round();
		updates += g.nframes;
		g.nframes = 0;
	}
	assert_true(updates >= 1);
	assert_memory_equal(got, data, sent);
	assert_int_equal(tcp_nat_bytes(g.nat), 0);
}

/* Takes all frames there are as data from @at on; returns the end.  Acknowledges if told to. */
static size_t take_data(size_t at, uint32_t base, bool is_acked)
{
	for (unsigned i = 0; i < g.nframes; i++) {
		struct tcp_segment s = frame(i);
		if (s.seq != base + at)
			continue;
		assert_memory_equal(s.payload, data + at, s.len);
		if (s.len > 1460) {
			assert_int_equal(g.frames[i].off.gso_type, NET_GSO_TCP4);
			assert_int_equal(g.frames[i].off.gso_size, 1460);
		} else {
			assert_int_equal(g.frames[i].off.gso_type, NET_GSO_NONE);
		}
		at += s.len;
	}
	g.nframes = 0;
	if (is_acked) {
		g.ack = base + (uint32_t)at;
		guest(TCP_ACK, NULL, 0);
		tcp_nat_flush(g.nat);
	}
	return at;
}

static void write_far(size_t at, size_t n)
{
	while (n) {
		ssize_t r = send(g.far, data + at, n, MSG_DONTWAIT);
		assert_true(r > 0);
		at += (size_t)r;
		n -= (size_t)r;
	}
}

static void test_to_guest(void **state)
{
	size_t at = 0, written = 0;

	(void)state;
	g.window = 0xffff;
	establish();
	uint32_t base = g.ack;
	size_t longest = 0;
	while (at < DATA_MAX) {
		size_t n = MIN((size_t)100000, DATA_MAX - written);
		write_far(written, n);
		written += n;
		poll_round();
		for (unsigned i = 0; i < g.nframes; i++)
			longest = MAX(longest, frame(i).len);
		at = take_data(at, base, true);
	}
	assert_int_equal(longest, TCP_PAYLOAD_MAX);
	assert_int_equal(tcp_nat_bytes(g.nat), 0); /* idle: holds nothing */
}

/* Frames are lost: by equal acknowledgements, then by time, all comes in the end. */
static void test_lost_frames(void **state)
{
	(void)state;
	g.window = 0xffff;
	establish();
	uint32_t base = g.ack;
	write_far(0, 200000);
	poll_round();
	assert_true(g.nframes >= 3);
	g.nframes = 0; /* gone */
	for (unsigned i = 0; i < 2; i++)
		guest(TCP_ACK, NULL, 0);
	tcp_nat_flush(g.nat);
	assert_int_equal(g.nframes, 0);
	guest(TCP_ACK, NULL, 0);
	tcp_nat_flush(g.nat);
	assert_true(g.nframes >= 3);
	g.nframes = 0; /* gone again: more equal ones don't help */
	for (unsigned i = 0; i < 5; i++)
		guest(TCP_ACK, NULL, 0);
	tcp_nat_flush(g.nat);
	assert_int_equal(g.nframes, 0);
	g.now += 1001;
	poll_round();
	assert_int_equal(g.nframes, 1); /* one at a time until something comes back */
	size_t at = take_data(0, base, true);
	assert_int_equal(at, TCP_PAYLOAD_MAX);
	while (at < 200000) {
		size_t before = at;
		at = take_data(at, base, true);
		assert_true(at > before);
	}
}

static void test_small_and_closed_window(void **state)
{
	(void)state;
	g.wscale = -1; /* does not scale */
	g.window = 1000;
	establish();
	uint32_t base = g.ack;
	write_far(0, 5000);
	poll_round();
	assert_int_equal(frame(0).len, 1000);
	g.window = 0;
	size_t at = take_data(0, base, true);
	assert_int_equal(at, 1000);
	assert_int_equal(g.nframes, 0);
	/* Asked again and again, for as long as the guest lives. */
	for (unsigned i = 0; i < 40; i++) {
		g.now += 60001;
		poll_round();
		struct tcp_segment s = only_frame();
		assert_int_equal(s.len, 1);
		assert_int_equal(s.seq, base + 1000);
		guest(TCP_ACK, NULL, 0);
		tcp_nat_flush(g.nat);
	}
	g.window = 60000;
	guest(TCP_ACK, NULL, 0);
	tcp_nat_flush(g.nat);
	at = take_data(at, base, true);
	assert_int_equal(at, 5000);
}

/* No room towards the guest: nothing is lost, and it goes on. */
static void test_no_room(void **state)
{
	(void)state;
	g.window = 0xffff;
	establish();
	uint32_t base = g.ack;
	g.room = 1;
	write_far(0, 200000);
	poll_round();
	assert_int_equal(g.nframes, 1);
	assert_true(tcp_nat_wants_room(g.nat));
	size_t at = take_data(0, base, false);
	g.room = FRAMES_MAX;
	tcp_nat_flush(g.nat);
	assert_false(tcp_nat_wants_room(g.nat));
	at = take_data(at, base, true);
	while (at < 200000) {
		poll_round();
		at = take_data(at, base, true);
	}
}

/* ---- ends ---- */

static void test_guest_closes_first(void **state)
{
	char c;

	(void)state;
	establish();
	uint32_t base = g.ack;
	guest(TCP_ACK | TCP_FIN, data, 10);
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, g.seq);
	assert_int_equal(drain_far(0, 10), 10);
	assert_int_equal(recv(g.far, &c, 1, 0), 0);
	/* Half open: the host's side still speaks. */
	write_far(0, 100);
	poll_round();
	assert_int_equal(take_data(0, base, true), 100);
	shutdown(g.far, SHUT_WR);
	poll_round();
	struct tcp_segment s = only_frame();
	assert_int_equal(s.flags & TCP_FIN, TCP_FIN);
	assert_int_equal(s.seq, base + 100);
	assert_int_equal(tcp_nat_flows(g.nat), 1);
	g.ack = s.seq + 1;
	guest(TCP_ACK, NULL, 0);
	tcp_nat_flush(g.nat);
	assert_int_equal(tcp_nat_flows(g.nat), 0);
}

static void test_host_closes_first(void **state)
{
	(void)state;
	establish();
	uint32_t base = g.ack;
	write_far(0, 100);
	shutdown(g.far, SHUT_WR);
	poll_round();
	poll_round();
	assert_int_equal(take_data(0, base, false), 100);
	/* The FIN is lost with the rest, and comes again. */
	g.now += 1001;
	poll_round();
	struct tcp_segment s = only_frame();
	assert_int_equal(s.len, 100);
	assert_int_equal(s.flags & TCP_FIN, TCP_FIN);
	g.ack = base + 101;
	guest(TCP_ACK, data, 50);
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, g.seq);
	guest(TCP_ACK | TCP_FIN, NULL, 0);
	assert_int_equal(tcp_nat_flows(g.nat), 1); /* the guest must hear of it first */
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, g.seq);
	assert_int_equal(tcp_nat_flows(g.nat), 0);
	assert_int_equal(drain_far(0, 51), 50);
}

static void test_resets(void **state)
{
	(void)state;
	/* By the guest; a wrong number only makes us tell the right one. */
	establish();
	g.seq += 100;
	guest(TCP_RST, NULL, 0);
	g.seq -= 100;
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, g.seq);
	guest(TCP_RST, NULL, 0);
	assert_int_equal(tcp_nat_flows(g.nat), 0);
	close(g.far);

	/* By the host, while the guest sends. */
	establish();
	close(g.far);
	g.far = -1;
	guest(TCP_ACK, data, 100);
	struct tcp_segment s = only_frame();
	assert_int_equal(s.flags & TCP_RST, TCP_RST);
	assert_int_equal(s.seq, g.ack);
	assert_int_equal(tcp_nat_flows(g.nat), 0);

	/* The guest was reset, and opens the same connection again. */
	establish();
	int old = g.far;
	char c;
	g.ack = 0;
	establish();
	assert_int_equal(recv(old, &c, 1, 0), 0);
	close(old);
	assert_int_equal(tcp_nat_flows(g.nat), 1);
}

/* ---- forwarded ports ---- */

/* A listener on loopback, given to the module; returns its port. */
static unsigned forward(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof(a);
	int fd = host_calls_real.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 5), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	assert_int_equal(tcp_nat_forward(g.nat, fd, g.ends.src_ip, 22), 0);
	return ntohs(a.sin_port);
}

/* Somebody calls; the guest's frames come from port 22 to whoever it is. */
static void call(unsigned port)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof(a);

	g.far = host_calls_real.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(host_calls_real.connect(g.far, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(getsockname(g.far, (struct sockaddr *)&a, &len), 0);
	g.ends.src_port = 22;
	g.ends.dst_port = ntohs(a.sin_port);
}

static void test_forward(void **state)
{
	(void)state;
	tear_down(state);
	set_up_with(true, true);
	unsigned port = forward();
	call(port);
	poll_round();
	assert_int_equal(g.nframes, 0); /* where is the guest? */
	assert_int_equal(tcp_nat_flows(g.nat), 1);
	tcp_nat_guest_mac(g.nat, (const uint8_t *)"\xff\xff\xff\xff\xff\xff");
	g.now += 1001;
	poll_round();
	assert_int_equal(g.nframes, 0);
	tcp_nat_guest_mac(g.nat, g.ends.src_mac);
	g.now += 2001;
	poll_round();
	struct tcp_segment s = only_frame();
	assert_int_equal(s.flags, TCP_SYN);
	assert_int_equal(s.mss, 1460);
	assert_int_equal(s.wscale, 4);
	/* Something old from the guest is refused, and does not disturb. */
	g.seq = 5;
	g.ack = s.seq + 100;
	guest(TCP_ACK, NULL, 0);
	assert_int_equal(only_frame().flags, TCP_RST);
	g.ack = s.seq + 1;
	g.seq = 1000;
	guest(TCP_SYN | TCP_ACK, NULL, 0);
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, 1001);
	/* Its answer comes again, as our acknowledgement was lost. */
	g.seq = 1000;
	guest(TCP_SYN | TCP_ACK, NULL, 0);
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, 1001);
	uint32_t base = g.ack;
	guest(TCP_ACK, data, 3000);
	tcp_nat_flush(g.nat);
	assert_int_equal(only_frame().ack, g.seq);
	assert_int_equal(recv(g.far, got, 3000, MSG_WAITALL), 3000);
	assert_memory_equal(got, data, 3000);
	write_far(0, 5000);
	poll_round();
	assert_int_equal(take_data(0, base, true), 5000);
	/* A restricted guest opens none by itself. */
	g.ends.src_port = 4000;
	assert_false(guest(TCP_SYN, NULL, 0));
}

/* Somebody who has no port is a caller all the same, each from another port of the gateway's. */
static void test_call(void **state)
{
	unsigned ports[2];
	int first = -1;

	(void)state;
	tear_down(state);
	set_up_with(true, true);
	tcp_nat_guest_mac(g.nat, g.ends.src_mac);
	for (unsigned i = 0; i < 2; i++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
		first = g.far;
		g.far = fds[1];
		assert_int_equal(tcp_nat_call(g.nat, fds[0], g.ends.src_ip, 22), 0);
		struct tcp_segment s;
		assert_true(tcp_parse(g.frames[0].data, g.frames[0].len, &s));
		ports[i] = g.ends.dst_port = s.ends.src_port;
		g.ends.src_port = 22;
		s = only_frame();
		assert_int_equal(s.flags, TCP_SYN);
		g.seq = 1000;
		g.ack = s.seq + 1;
		guest(TCP_SYN | TCP_ACK, NULL, 0);
		tcp_nat_flush(g.nat);
		assert_int_equal(only_frame().ack, 1001);
	}
	assert_true(ports[0] >= 49152 && ports[1] >= 49152 && ports[0] != ports[1]);
	assert_int_equal(tcp_nat_flows(g.nat), 2);
	guest(TCP_ACK, data, 3000);
	assert_int_equal(recv(g.far, got, 3000, MSG_WAITALL), 3000);
	assert_memory_equal(got, data, 3000);
	tcp_nat_flush(g.nat);
	g.nframes = 0;
	write_far(0, 5000);
	uint32_t base = g.ack;
	poll_round();
	assert_int_equal(take_data(0, base, true), 5000);
	/* The guest hangs up. */
	guest(TCP_RST, NULL, 0);
	assert_int_equal(tcp_nat_flows(g.nat), 1);
	assert_true(recv(g.far, got, 1, 0) <= 0);
	close(first);
}

/* There is an end to them. */
static void test_calls_are_bounded(void **state)
{
	(void)state;
	for (unsigned i = 0; i < TCP_NAT_FLOWS; i++)
		assert_int_equal(tcp_nat_call(g.nat, open("/dev/null", O_RDONLY | O_CLOEXEC), 1, 1), 0);
	assert_int_equal(tcp_nat_call(g.nat, open("/dev/null", O_RDONLY | O_CLOEXEC), 1, 1), -ENOSPC);
	assert_int_equal(tcp_nat_flows(g.nat), TCP_NAT_FLOWS);
}

static void test_forward_to_nobody(void **state)
{
	char c;

	(void)state;
	unsigned port = forward();
	tcp_nat_guest_mac(g.nat, g.ends.src_mac);
	call(port);
	poll_round();
	struct tcp_segment s = only_frame();
	/* A wrong refusal is none. */
	g.seq = 0;
	g.ack = s.seq + 7;
	guest(TCP_RST | TCP_ACK, NULL, 0);
	assert_int_equal(tcp_nat_flows(g.nat), 1);
	g.ack = s.seq + 1;
	guest(TCP_RST | TCP_ACK, NULL, 0);
	assert_int_equal(tcp_nat_flows(g.nat), 0);
	assert_int_equal(recv(g.far, &c, 1, 0), -1);
	assert_int_equal(errno, ECONNRESET);
	close(g.far);
	/* No answer at all. */
	g.nframes = 0;
	call(port);
	for (unsigned i = 0; i < 10; i++) {
		poll_round();
		g.now += 60001;
	}
	assert_int_equal(tcp_nat_flows(g.nat), 0);
	assert_int_equal(g.nframes, 7 + 1); /* asked, again six times, reset */
	assert_true(recv(g.far, &c, 1, 0) <= 0);
	/* As many listeners as there may be. */
	for (unsigned i = 1; i < TCP_NAT_LISTENERS; i++)
		assert_int_equal(tcp_nat_forward(g.nat, open("/dev/null", O_RDONLY | O_CLOEXEC), 1, 1), 0);
	assert_int_equal(tcp_nat_forward(g.nat, open("/dev/null", O_RDONLY | O_CLOEXEC), 1, 1), -ENOSPC);
}

/* No descriptor for a caller: it waits, and nobody spins. */
static void test_forward_without_files(void **state)
{
	struct rlimit old, none;
	struct pollfd pfds[TCP_NAT_POLLS];
	uint32_t timeout = 60000;

	(void)state;
	unsigned port = forward();
	tcp_nat_guest_mac(g.nat, g.ends.src_mac);
	call(port);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = old.rlim_max };
	unsigned n = tcp_nat_fill(g.nat, pfds, TCP_NAT_POLLS, &timeout);
	assert_int_equal(n, 1);
	assert_int_equal(poll(pfds, n, 1000), 1);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	tcp_nat_polled(g.nat, pfds, n);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(tcp_nat_flows(g.nat), 0);
	assert_int_equal(tcp_nat_fill(g.nat, pfds, TCP_NAT_POLLS, &timeout), 0);
	assert_int_equal(timeout, 100);
	g.now += 100;
	poll_round();
	assert_int_equal(only_frame().flags, TCP_SYN);
}

/* A guest that vanished: it ends some time. */
static void test_silence(void **state)
{
	unsigned sent = 0;

	(void)state;
	establish();
	write_far(0, 10);
	for (unsigned i = 0; i < 100 && tcp_nat_flows(g.nat); i++) {
		poll_round();
		sent += g.nframes;
		g.nframes = 0;
		g.now += 60001;
	}
	assert_int_equal(tcp_nat_flows(g.nat), 0);
	assert_true(sent >= 10 && sent <= 20);
}

/* As many connections as there may be, all of them stuck both ways: memory is bounded, the next one is slirp's. */
static void test_many(void **state)
{
	static int far[TCP_NAT_FLOWS];

	(void)state;
	g.window = 0;
	for (unsigned i = 0; i < TCP_NAT_FLOWS; i++) {
		g.ends.src_port = 1000 + i;
		establish();
		far[i] = g.far;
		fcntl(g.far, F_SETFL, O_NONBLOCK);
		while (send(g.far, data, 65536, MSG_DONTWAIT) > 0)
			;
		for (unsigned k = 0; k < 16; k++)
			guest(TCP_ACK, data + k * 60000, 60000);
		tcp_nat_flush(g.nat);
		g.nframes = 0;
		g.room = FRAMES_MAX;
	}
	for (unsigned i = 0; i < 20; i++) {
		poll_round();
		g.nframes = 0;
		g.room = FRAMES_MAX;
	}
	assert_true(tcp_nat_bytes(g.nat) <= TCP_NAT_POOL_BYTES + TCP_NAT_FLOWS * 64 * KIB);
	g.ends.src_port = 999;
	assert_false(guest(TCP_SYN, NULL, 0));
	for (unsigned i = 0; i < TCP_NAT_FLOWS; i++)
		close(far[i]);
	g.far = -1;
}

static void *no_memory(size_t len)
{
	(void)len;
	return NULL;
}

static void test_no_memory(void **state)
{
	(void)state;
	establish();
	uint32_t base = g.ack;
	host.malloc = no_memory;
	write_far(0, 100);
	poll_round(); /* nothing comes */
	assert_int_equal(g.nframes, 0);
	/* More than the socket takes: the rest is not acknowledged. */
	for (unsigned k = 0; k < 20; k++)
		guest(TCP_ACK, data + k * 60000, 60000);
	tcp_nat_flush(g.nat);
	assert_true(only_frame().ack != g.seq);
	host.malloc = malloc;
	poll_round();
	assert_int_equal(take_data(0, base, false), 100);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_farewell),
		T(test_parse),
		T(test_who_is_ours),
		T(test_no_host_loopback),
		T(test_refused),
		T(test_connects_later),
		T(test_to_host),
		T(test_slow_host),
		T(test_to_guest),
		T(test_lost_frames),
		T(test_no_room),
		T(test_small_and_closed_window),
		T(test_guest_closes_first),
		T(test_host_closes_first),
		T(test_resets),
		T(test_silence),
		T(test_many),
		T(test_no_memory),
		T(test_forward),
		T(test_call),
		T(test_calls_are_bounded),
		T(test_forward_to_nobody),
		T(test_forward_without_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
