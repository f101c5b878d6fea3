/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments to the gateway's DNS, one behind the other: of an input each is four bytes (flags, what its sequence number and its
 * acknowledgement differ by from what is right, length) and its data.  Answers are what was asked.  Bounds hold, and what is sent is a segment.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/dns_tcp.h"
#include "net/offload.h"

static struct {
	struct dns_tcp *t;
	int64_t now_ms;
	uint32_t next, expected; /* of the client, as the last segment from the gateway says */
	unsigned sent;
} g;

static const struct net_addr client = { { [10] = 0xff, 0xff, 10, 0, 0, 2 } },
			     gateway = { { [10] = 0xff, 0xff, 10, 0, 0, 1 } };

static void on_send(void *ctx, unsigned port, const struct net_addr *src,
		    const struct net_addr *dst, const uint8_t *b, size_t len)
{
	(void)ctx;
	if (port != 3 || len < 20 || len > NET_MTU - 20 || net_get16(b) != 53 || b[12] >> 4 > len / 4 ||
	    !net_addr_is_equal(src, &gateway) || !net_addr_is_equal(dst, &client))
		abort();
	g.next = net_get32(b + 8);
	g.expected = net_get32(b + 4) + (uint32_t)len - (b[12] >> 4) * 4u + !!(b[13] & 3);
	g.sent++;
}

static bool on_ask(void *ctx, unsigned port, const struct net_addr *to, const struct net_addr *from,
		   uint32_t conn, const uint8_t *m, size_t len)
{
	(void)ctx;
	(void)to;
	(void)from;
	if (len > DNS_TCP_QUESTION)
		abort();
	if (len && m[0] & 1)
		dns_tcp_answer(g.t, port, conn, m, len);
	return len != 0;
}

static int64_t on_now(void *ctx)
{
	(void)ctx;
	return g.now_ms;
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	/* SYN, ACK, two questions in one, FIN */
	static const uint8_t seed[] =
		"\2\0\0\0\x10\0\0\0\x18\0\0\x0a\0\3abc\0\3bcd\x11\0\0\0\x10\0\0\0";

	if (cap < sizeof(seed) - 1)
		abort();
	memcpy(data, seed, sizeof(seed) - 1);
	return sizeof(seed) - 1;
}

static void send_segment(const uint8_t *data, size_t len)
{
	uint8_t frame[ETH_HEADER + 40 + 256] = { 0 }, *tcp = frame + ETH_HEADER + 20;
	struct packet p;

	packet_put_eth(frame, frame, frame, ETH_IPV4);
	packet_put_ip(frame + ETH_HEADER, &client, &gateway, IP_TCP, 64, 20 + len);
	net_put16(tcp, (unsigned)(4000 + (data[0] >> 6)));
	net_put16(tcp + 2, 53);
	net_put32(tcp + 4, g.next + (uint32_t)(int8_t)data[1]);
	net_put32(tcp + 8, g.expected + (uint32_t)(int8_t)data[2]);
	tcp[12] = 0x50;
	tcp[13] = data[0] & 0x3f;
	net_put16(tcp + 14, data[2] * 40u);
	memcpy(tcp + 20, data + 4, len);
	if (packet_parse(&p, frame, ETH_HEADER + 40 + len) != PACKET_FINE)
		abort();
	dns_tcp_input(g.t, 3, &p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct dns_tcp_ops ops = { on_send, on_ask, on_now, NULL };
	uint32_t timeout = 60000;

	memset(&g, 0, sizeof(g));
	g.t = dns_tcp_create(&ops);
	if (!g.t)
		return 0;
	while (len >= 4) {
		size_t n = MIN((size_t)data[3], len - 4);
		send_segment(data, n);
		g.now_ms += data[1] & 0x80 ? 1500 : 1;
		dns_tcp_tick(g.t, &timeout);
		if (dns_tcp_count(g.t, 3) > DNS_TCP_PER_PORT)
			abort();
		data += 4 + n;
		len -= 4 + n;
	}
	/* Nobody acknowledges: all of it ends. */
	for (unsigned i = 0; i < 100; i++) {
		g.now_ms += 10000;
		dns_tcp_tick(g.t, &timeout);
	}
	dns_tcp_destroy(g.t);
	return 0;
}
