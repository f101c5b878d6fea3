/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames and hints from a guest, through everything that net/offload.c does with them: nothing outside of the frame
 * is touched, what comes out is bounded.  And segments through net/tcp_nat.c, with a socket pair in the place of
 * the host's network: what it sends parses, memory stays bounded.
 *
 * Input: which function, hints, then the frame; or which function, then short descriptions of segments.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/host.h"
#include "fuzz.h"
#include "net/offload.h"
#include "net/tcp_nat.h"
#include "net/tcp_wire.h"

struct count {
	unsigned n;
	size_t longest;
};

static int emit(void *arg, const uint8_t *frame, size_t len)
{
	struct count *c = arg;
	uint64_t sum = 0;

	for (size_t i = 0; i < len; i++) /* every byte is there */
		sum += frame[i];
	c->n++;
	c->longest = MAX(c->longest, len + (sum & 0));
	return 0;
}

/* ---- connections ---- */

static struct {
	int far;	   /* the test's end of the pair made last, or -1 */
	uint32_t seq, ack; /* what the module expects of the guest, and of itself */
	int64_t now;
	unsigned room;
} peer;

static int fake_socket(int domain, int type, int protocol)
{
	int fds[2];

	(void)domain;
	(void)protocol;
	if (socketpair(AF_UNIX, type, 0, fds) < 0)
		return -1;
	if (peer.far >= 0)
		close(peer.far);
	peer.far = fds[1];
	return fds[0];
}

static int fake_connect(int fd, const struct sockaddr *to, socklen_t len)
{
	(void)fd;
	(void)to;
	(void)len;
	return 0;
}

static bool take(void *ctx, const struct net_offload *off, const struct iovec *iov, unsigned niov)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct tcp_segment s;
	size_t len = 0;

	(void)ctx;
	if (!peer.room)
		return false;
	peer.room--;
	for (unsigned i = 0; i < niov; i++) {
		if (len + iov[i].iov_len > sizeof(frame))
			abort();
		memcpy(frame + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	if (!tcp_parse(frame, len, &s) || (s.len > NET_MTU && off->gso_size < NET_GSO_SIZE_MIN))
		abort();
	peer.seq = s.ack;
	peer.ack = s.seq + (uint32_t)s.len + !!(s.flags & TCP_SYN) + !!(s.flags & TCP_FIN);
	return true;
}

static int64_t clock_ms(void *ctx)
{
	(void)ctx;
	return peer.now;
}

/* What the guest does next: eight bytes. */
static void step(struct tcp_nat *t, const uint8_t b[8])
{
	static uint8_t frame[NET_FRAME_MAX];
	static char bytes[65536];
	struct pollfd pfds[TCP_NAT_POLLS];
	uint32_t timeout = 0;
	struct net_offload off;
	struct tcp_segment s = {
		.ends = { .src_port = 1 + (b[0] & 1),
			  .dst_port = 80,
			  .src_ip = inet_addr("10.0.2.15"),
			  .dst_ip = inet_addr("10.0.2.2") },
		.seq = peer.seq + (uint32_t)(int8_t)b[1] * 16,
		.ack = peer.ack + (uint32_t)(int8_t)b[2] * 64,
		.flags = b[3],
		.window = (uint16_t)(b[4] << 8),
		.mss = (uint16_t)(b[5] * 8),
		.wscale = b[5] % 17 - 1,
		.len = (b[6] << 8 | b[7]) % TCP_PAYLOAD_MAX,
	};

	peer.room = b[0] >> 4;
	if (b[0] & 2 && peer.far >= 0)
		while (recv(peer.far, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
			;
	if (b[0] & 4 && peer.far >= 0)
		(void)!send(peer.far, bytes, s.len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (b[0] & 8)
		peer.now += b[7] * 100;
	size_t head = tcp_build(&s, 1460, frame, &off);
	tcp_nat_input(t, frame, head + s.len);
	unsigned n = tcp_nat_fill(t, pfds, TCP_NAT_POLLS, &timeout);
	poll(pfds, n, 0);
	tcp_nat_polled(t, pfds, n);
	tcp_nat_flush(t);
	if (tcp_nat_flows(t) > 2 || tcp_nat_bytes(t) > 4 * MIB)
		abort();
}

static void connections(const uint8_t *data, size_t len)
{
	struct tcp_nat_config cfg = { .net = inet_addr("10.0.2.0"),
				      .mask = inet_addr("255.255.255.0"),
				      .host = inet_addr("10.0.2.2"),
				      .send = take,
				      .now_ms = clock_ms };
	struct tcp_nat *t;
	struct error err;

	memset(&peer, 0, sizeof(peer));
	peer.far = -1;
	peer.now = 1000;
	host.socket = fake_socket;
	host.connect = fake_connect;
	if (tcp_nat_create(&t, &cfg, &err) < 0)
		return;
	static const uint8_t syn[8] = { 0xf0, 0, 0, TCP_SYN, 255, 180, 0, 0 };
	static const uint8_t ack[8] = { 0xf0, 0, 0, TCP_ACK, 255, 0, 0, 0 };
	step(t, syn);
	step(t, ack);
	for (; len >= 8; data += 8, len -= 8)
		step(t, data);
	tcp_nat_destroy(t);
	if (peer.far >= 0)
		close(peer.far);
	host = host_calls_real;
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	/* A SYN of IPv4 with MSS 1460, as one that is to be raised. */
	static const uint8_t seed[] = { 2, 1, 1, 0, 0, 0xb4, 5, 34, 0, 16, 0,
					/* Ethernet */
					0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 1, 2, 3, 8, 0,
					/* IPv4 */
					0x45, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10,
					0, 2, 2,
					/* TCP */
					0x13, 0x88, 0, 80, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0x60, 2, 0xea,
					0x60, 0, 0, 0, 0, 2, 4, 5, 0xb4 };

	if (cap < sizeof(seed))
		abort();
	memcpy(data, seed, sizeof(seed));
	return sizeof(seed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct byte_reader r = { .data = data, .len = len };
	uint8_t what = 0, headers[NET_HEADERS_MAX];
	struct net_offload off = { 0 };
	struct count c = { 0 };

	bytes_get(&r, &what, 1);
	bytes_get(&r, &off, sizeof(off));
	if (r.is_failed || len - r.pos > NET_FRAME_MAX)
		return 0;
	size_t n = len - r.pos;
	if (what % 7 == 6) {
		connections(data + r.pos, n);
		return 0;
	}
	uint8_t *frame = malloc(n + 1); /* its own block, so that a step outside is seen */
	if (!frame)
		return 0;
	memcpy(frame, data + r.pos, n);
	switch (what % 7) {
	case 0:
		offload_checksum(&off, frame, n);
		break;
	case 1:
		offload_segment(&off, frame, n, emit, &c);
		if (c.n > n / NET_GSO_SIZE_MIN + 1 || c.longest > MAX(n, (size_t)1))
			abort();
		break;
	case 2:
		if (offload_raise_mss(frame, n, 21400) && offload_raise_mss(frame, n, 21400))
			abort();
		break;
	case 3: {
		int head = offload_long_tcp(frame, n, headers, &off);
		if (head > (int)n || (head >= 0 && (off.gso_size < NET_GSO_SIZE_MIN || head < 54)))
			abort();
		break;
	}
	case 4:
		offload_fragment(frame, n, emit, &c);
		if (c.longest > NET_MTU + 22 || c.n > n / 1400 + 1)
			abort();
		break;
	case 5: {
		struct tcp_segment s;
		if (tcp_parse(frame, n, &s) && (s.payload < frame || s.payload + s.len > frame + n))
			abort();
		break;
	}
	}
	free(frame);
	return 0;
}
