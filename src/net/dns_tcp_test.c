/* SPDX-License-Identifier: Apache-2.0 */
/* DNS over TCP, with the test as the guest's TCP. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "net/dns_tcp.h"
#include "net/offload.h"
#include "net/policy.h"
#include "net/testing.h"

enum { FIN = PACKET_FIN, SYN = PACKET_SYN, RST = PACKET_RST, PSH = 8, ACK = PACKET_ACK };
enum { PORT = 7, ISS = 0xfffffff0u, MAX_SENT = 400 };

static struct dns_tcp *t;
static int64_t now_ms;
static struct frame_ends ends;

/* What came back. */
static struct seen {
	uint16_t dport, window;
	uint32_t seq, ack;
	uint8_t flags;
	size_t len, header;
	uint8_t b[NET_MTU];
} sent[MAX_SENT];
static unsigned nsent;

/* What was asked. */
static struct {
	uint32_t conn;
	size_t len;
	uint8_t m[DNS_TCP_QUESTION];
} asked[64];
static unsigned nasked;
static bool answers_at_once, is_none;

static void on_send(void *ctx, unsigned port, const struct net_addr *src,
		    const struct net_addr *dst, const uint8_t *b, size_t len)
{
	assert_int_equal(port, PORT);
	assert_true(nsent < MAX_SENT && len >= 20 && len <= NET_MTU - 20);
	assert_true(net_addr_is_equal(src, &ends.dst) && net_addr_is_equal(dst, &ends.src));
	struct seen *s = &sent[nsent++];
	s->header = (b[12] >> 4) * 4u;
	assert_int_equal(net_get16(b), 53);
	assert_int_equal(s->header, b[13] & SYN ? 24 : 20);
	s->dport = net_get16(b + 2);
	s->seq = net_get32(b + 4);
	s->ack = net_get32(b + 8);
	s->flags = b[13];
	s->window = net_get16(b + 14);
	s->len = len - s->header;
	memcpy(s->b, b + s->header, s->len);
}

static bool on_ask(void *ctx, unsigned port, const struct net_addr *gateway,
		   const struct net_addr *client, uint32_t conn, const uint8_t *m, size_t len)
{
	assert_int_equal(port, PORT);
	assert_true(nasked < ARRAY_SIZE(asked) && len <= DNS_TCP_QUESTION);
	asked[nasked].conn = conn;
	asked[nasked].len = len;
	memcpy(asked[nasked++].m, m, len);
	if (answers_at_once)
		dns_tcp_answer(t, port, conn, m, len);
	return !is_none && len;
}

static int64_t on_now(void *ctx)
{
	return now_ms;
}

static int set_up(void **state)
{
	struct dns_tcp_ops ops = { on_send, on_ask, on_now, NULL };

	nsent = nasked = 0;
	answers_at_once = is_none = false;
	now_ms = 1000;
	ends.src = frame_addr("10.1.0.10");
	ends.dst = frame_addr("10.1.0.1");
	t = dns_tcp_create(&ops);
	assert_non_null(t);
	return 0;
}

static int tear_down(void **state)
{
	dns_tcp_destroy(t);
	return 0;
}

/* ---- the guest ---- */

struct guest {
	uint16_t port, window;
	uint32_t next, expected; /* of what it sends, of what it gets */
};

static void send_from(const struct guest *g, uint32_t seq, uint8_t flags, const void *data,
		      size_t len, const void *options, size_t noptions)
{
	uint8_t b[4096] = { 0 };
	struct frame f;
	struct packet p;

	net_put16(b, g->port);
	net_put16(b + 2, 53);
	net_put32(b + 4, seq);
	net_put32(b + 8, flags & ACK ? g->expected : 0);
	b[12] = (uint8_t)((20 + noptions) / 4 << 4);
	b[13] = flags;
	net_put16(b + 14, g->window);
	if (noptions)
		memcpy(b + 20, options, noptions);
	if (len)
		memcpy(b + 20 + noptions, data, len);
	assert_true(len < 1900);
	frame_ip(&f, &ends, IP_TCP, b, 20 + noptions + len);
	assert_int_equal(packet_parse(&p, f.b, f.len), PACKET_FINE);
	nsent = 0;
	dns_tcp_input(t, PORT, &p);
}

static void say(struct guest *g, uint8_t flags, const void *data, size_t len)
{
	send_from(g, g->next, flags, data, len, NULL, 0);
	g->next += (uint32_t)len + !!(flags & FIN);
}

static const struct seen *only(uint8_t flags)
{
	assert_int_equal(nsent, 1);
	assert_int_equal(sent[0].flags, flags);
	return &sent[0];
}

static struct guest open_with(uint16_t port, const void *options, size_t noptions)
{
	struct guest g = { .port = port, .window = 65535, .next = ISS };

	send_from(&g, g.next++, SYN, NULL, 0, options, noptions);
	const struct seen *s = only(SYN | ACK);
	assert_int_equal(s->ack, ISS + 1);
	assert_int_equal(s->dport, port);
	assert_int_equal(s->window, DNS_TCP_IN);
	g.expected = s->seq + 1;
	say(&g, ACK, NULL, 0);
	assert_int_equal(nsent, 0);
	return g;
}

static struct guest open_one(uint16_t port)
{
	return open_with(port, "\2\4\5\xb4", 4);
}

static size_t message(uint8_t *out, const char *text)
{
	net_put16(out, (unsigned)strlen(text));
	memcpy(out + 2, text, strlen(text));
	return 2 + strlen(text);
}

static void ask(struct guest *g, const char *text)
{
	uint8_t b[2048];

	say(g, ACK | PSH, b, message(b, text));
}

/* Whether the first of what came carries this message and nothing else. */
static void assert_answer(struct guest *g, const char *text)
{
	uint8_t b[2048];
	size_t len = message(b, text);

	assert_true(nsent > 0);
	assert_int_equal(sent[0].seq, g->expected);
	assert_int_equal(sent[0].len, len);
	assert_memory_equal(sent[0].b, b, len);
	g->expected += (uint32_t)len;
}

static void answer(uint32_t conn, const char *text)
{
	nsent = 0;
	dns_tcp_answer(t, PORT, conn, (const uint8_t *)text, strlen(text));
}

static uint32_t tick(void)
{
	uint32_t timeout = 60000;

	nsent = 0;
	dns_tcp_tick(t, &timeout);
	return timeout;
}

/* ---- tests ---- */

static void test_a_question(void **state)
{
	for (unsigned v6 = 0; v6 < 2; v6++) {
		if (v6) {
			ends.src = frame_addr("fd00::10");
			ends.dst = frame_addr("fd00::1");
		}
		nasked = 0;
		struct guest g = open_one(4000);
		ask(&g, "one");
		assert_int_equal(only(ACK)->ack, g.next);
		assert_int_equal(nasked, 1);
		assert_memory_equal(asked[0].m, "one", 3);
		answer(asked[0].conn, "first");
		assert_answer(&g, "first");
		say(&g, ACK, NULL, 0);
		assert_int_equal(nsent, 0);
		/* A second one on the same connection, answered at once: the answer acknowledges it. */
		answers_at_once = true;
		ask(&g, "two");
		assert_answer(&g, "two");
		assert_int_equal(only(ACK | PSH)->ack, g.next);
		answers_at_once = false;
		say(&g, ACK | FIN, NULL, 0);
		assert_int_equal(only(ACK | FIN | PSH)->ack, g.next);
		g.expected++;
		say(&g, ACK, NULL, 0);
		assert_int_equal(nsent, 0);
		assert_int_equal(dns_tcp_count(t, PORT), 0);
		answer(asked[0].conn, "late");
		assert_int_equal(nsent, 0);
	}
}

/* Bytes come in any pieces, several messages in one, again, and with holes. */
static void test_pieces(void **state)
{
	uint8_t b[64];
	size_t len = message(b, "one");

	answers_at_once = true;
	len += message(b + len, "two");
	for (size_t cut = 1; cut < len; cut++) {
		struct guest g = open_one((uint16_t)(4000 + cut));
		nasked = 0;
		say(&g, ACK, b, cut);
		say(&g, ACK, b + cut, len - cut);
		assert_int_equal(nasked, 2);
		assert_memory_equal(asked[0].m, "one", 3);
		assert_memory_equal(asked[1].m, "two", 3);
		/* All of it again, and then a byte after a hole. */
		g.expected += (uint32_t)len;
		send_from(&g, g.next - (uint32_t)len, ACK, b, len, NULL, 0);
		assert_int_equal(only(ACK)->ack, g.next);
		send_from(&g, g.next + 1, ACK, b, 1, NULL, 0);
		assert_int_equal(only(ACK)->ack, g.next);
		/* Known bytes and new ones in one. */
		uint8_t both[64];
		memcpy(both, b + 5, 5);
		size_t n = 5 + message(both + 5, "six");
		send_from(&g, g.next - 5, ACK, both, n, NULL, 0);
		assert_int_equal(nasked, 3);
		assert_memory_equal(asked[2].m, "six", 3);
		assert_int_equal(only(ACK | PSH)->ack, g.next + 5);
		g.next += 5;
		g.expected += 5;
		/* A probe of whether anybody is there (RFC 9293, 3.8.4). */
		send_from(&g, g.next - 1, ACK, NULL, 0, NULL, 0);
		assert_int_equal(only(ACK)->ack, g.next);
		say(&g, RST | ACK, NULL, 0);
		assert_int_equal(dns_tcp_count(t, PORT), 0);
	}
}

static void test_bounds_of_questions(void **state)
{
	uint8_t b[1500] = { 0 };
	struct guest g = open_one(4000);

	/* Of questions under way; further ones wait, and what has no room is not taken. */
	for (unsigned i = 0; i < 5; i++)
		ask(&g, "question");
	assert_int_equal(nasked, DNS_TCP_ASKED);
	net_put16(b, 1200);
	say(&g, ACK, b, 1202);
	unsigned window = only(ACK)->window;
	assert_int_equal(window, DNS_TCP_IN - 3 * 10 - 1202);
	say(&g, ACK, b, 1202);
	assert_int_equal(only(ACK)->window, 0);
	assert_int_equal(only(ACK)->ack, g.next - 1202 + window);
	g.next -= 1202 - window;
	for (unsigned i = 0; i < 5; i++) {
		answer(asked[i].conn, "answer");
		assert_answer(&g, "answer");
		say(&g, ACK, NULL, 0);
	}
	assert_int_equal(nasked, 6);
	say(&g, ACK, b + window, 1202 - window);
	answer(asked[5].conn, "answer");
	assert_int_equal(nasked, 7);
	/* A long one. */
	net_put16(b, DNS_TCP_QUESTION + 1);
	g = open_one(4001);
	say(&g, ACK, b, 2);
	assert_int_equal(only(RST | ACK)->len, 0);
	/* What is none. */
	is_none = true;
	g = open_one(4002);
	ask(&g, "nonsense");
	only(RST | ACK);
	is_none = false;
	/* Half a one is never whole. */
	g = open_one(4003);
	say(&g, ACK | FIN, b, 2);
	only(RST | ACK);
	g = open_one(4004);
	net_put16(b, 100);
	say(&g, ACK | FIN, b, 50);
	only(ACK | FIN | PSH);
}

static void test_bounds_of_connections(void **state)
{
	struct guest g[DNS_TCP_PER_PORT + 1];

	for (unsigned i = 0; i < DNS_TCP_PER_PORT; i++) {
		g[i] = open_one((uint16_t)(4000 + i));
		now_ms++;
	}
	ask(&g[0], "one"); /* the second is the one that was silent for longest now */
	struct guest more = { .port = 5000, .window = 1000, .next = ISS };
	send_from(&more, ISS, SYN, NULL, 0, NULL, 0);
	assert_int_equal(nsent, 2);
	assert_int_equal(sent[0].dport, 4001);
	assert_int_equal(sent[0].flags, RST | ACK);
	assert_int_equal(sent[1].dport, 5000);
	for (unsigned i = 0; i < 10000; i++) {
		struct guest flood = { .port = (uint16_t)(10000 + i), .window = 1000, .next = ISS };
		send_from(&flood, ISS, SYN, NULL, 0, NULL, 0);
		assert_int_equal(dns_tcp_count(t, PORT), DNS_TCP_PER_PORT);
	}
	dns_tcp_forget(t, PORT);
	assert_int_equal(dns_tcp_count(t, PORT), 0);
	/* The oldest that were half-open are gone without a word. */
	assert_int_equal(tick(), 60000);
}

/* An answer of 64 KiB, by the guest's segment size and window. */
static void test_long_answer(void **state)
{
	static uint8_t m[DNS_MESSAGE_MAX], all[DNS_MESSAGE_MAX + 2];
	static const struct {
		const char *options;
		size_t noptions, mss;
	} rows[] = { { "\2\4\5\xb4", 4, 1460 },
		     { "\2\4\xff\xff", 4, 1460 },
		     { "\1\2\4\2\0\0\0\0", 8, 512 },
		     { "\2\4\0\1", 4, 64 },
		     { "", 0, 536 },
		     { "\2\3\1\0", 4, 536 },
		     { "\3\0\2\4", 4, 536 } };

	for (size_t i = 0; i < sizeof(m); i++)
		m[i] = (uint8_t)(i * 7 + i / 256);
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		struct guest g = open_with((uint16_t)(4000 + i), rows[i].options, rows[i].noptions);
		size_t got = 0;
		nasked = 0;
		ask(&g, "long");
		nsent = 0;
		dns_tcp_answer(t, PORT, asked[0].conn, m, sizeof(m));
		while (got < sizeof(all)) {
			size_t flight = 0;
			assert_true(nsent > 0);
			for (unsigned k = 0; k < nsent; k++) {
				assert_true(sent[k].len <= rows[i].mss);
				assert_int_equal(sent[k].seq, g.expected + (uint32_t)flight);
				memcpy(all + got + flight, sent[k].b, sent[k].len);
				flight += sent[k].len;
			}
			assert_true(flight <= MIN((unsigned)g.window, (unsigned)DNS_TCP_FLIGHT));
			got += flight;
			g.expected += (uint32_t)flight;
			g.window = (uint16_t)(1000 + got % 3000);
			say(&g, ACK, NULL, 0);
		}
		assert_int_equal(got, sizeof(all));
		assert_int_equal(net_get16(all), DNS_MESSAGE_MAX);
		assert_memory_equal(all + 2, m, sizeof(m));
		assert_int_equal(nsent, 0);
		say(&g, RST | ACK, NULL, 0);
	}
}

static void test_losses(void **state)
{
	struct guest g = { .port = 4000, .window = 1000, .next = ISS };

	/* The handshake. */
	send_from(&g, g.next, SYN, NULL, 0, NULL, 0);
	g.expected = only(SYN | ACK)->seq + 1;
	send_from(&g, g.next++, SYN, NULL, 0, NULL, 0);
	assert_int_equal(only(SYN | ACK)->seq, g.expected - 1);
	assert_int_equal(tick(), DNS_TCP_RESEND_MS);
	now_ms += DNS_TCP_RESEND_MS;
	tick();
	assert_int_equal(only(SYN | ACK)->seq, g.expected - 1);
	say(&g, ACK, NULL, 0);
	/* An answer that is lost comes again, later each time. */
	ask(&g, "one");
	answer(asked[0].conn, "first");
	assert_int_equal(nsent, 1);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(tick(), MIN(DNS_TCP_RESEND_MS << i, 8000));
		assert_int_equal(nsent, 0);
		now_ms += MIN(DNS_TCP_RESEND_MS << i, 8000);
		tick();
		assert_int_equal(only(ACK | PSH)->seq, g.expected);
	}
	assert_answer(&g, "first");
	say(&g, ACK, NULL, 0);
	assert_int_equal(tick(), DNS_TCP_IDLE_MS);
	/* Three that say the same: what follows was lost. */
	ask(&g, "two");
	answer(asked[1].conn, "second");
	for (unsigned i = 0; i < 3; i++)
		say(&g, ACK, NULL, 0);
	assert_int_equal(nsent, 1);
	assert_answer(&g, "second");
	/* No window: a byte asks for it. */
	g.window = 0;
	say(&g, ACK, NULL, 0);
	ask(&g, "three");
	answer(asked[2].conn, "third");
	assert_int_equal(nsent, 0);
	now_ms += DNS_TCP_RESEND_MS;
	tick();
	assert_int_equal(only(ACK)->len, 1);
	g.window = 100;
	say(&g, ACK, NULL, 0);
	now_ms += 2 * DNS_TCP_RESEND_MS;
	tick();
	assert_answer(&g, "third");
	/* Nobody is there any more. */
	unsigned all = 0;
	for (unsigned i = 0; i < 100; i++) {
		now_ms += 1000;
		tick();
		all += nsent;
	}
	assert_int_equal(dns_tcp_count(t, PORT), 0);
	assert_in_range(all, 2, DNS_TCP_TRIES + 1);
}

/* What a window of 0 made the guest drop comes as soon as there is one, not when the time for it is over. */
static void test_window_opens(void **state)
{
	for (unsigned taken = 0; taken < 2; taken++) {
		struct guest g = open_one((uint16_t)(4000 + taken));

		g.window = 0;
		ask(&g, "one");
		answer(asked[taken].conn, "first");
		assert_int_equal(nsent, 0);
		now_ms += DNS_TCP_RESEND_MS;
		tick();
		assert_int_equal(only(ACK)->len, 1);
		assert_int_equal(sent[0].seq, g.expected);
		g.expected += taken;
		say(&g, ACK, NULL, 0);
		assert_int_equal(nsent, 0);
		g.window = 100;
		say(&g, ACK, NULL, 0);
		assert_int_equal(only(ACK | PSH)->seq, g.expected);
		assert_int_equal(sent[0].len, 7 - taken);
		g.expected += 7 - taken;
		say(&g, ACK, NULL, 0);
		assert_int_equal(tick(), DNS_TCP_IDLE_MS);
		dns_tcp_forget(t, PORT);
	}
}

static void test_silence(void **state)
{
	struct guest g = open_one(4000);

	now_ms += DNS_TCP_IDLE_MS - 1;
	assert_int_equal(tick(), 1);
	now_ms++;
	tick();
	only(ACK | FIN | PSH);
	g.expected++;
	say(&g, ACK, NULL, 0);
	assert_int_equal(dns_tcp_count(t, PORT), 0);
	/* Its own end is too late. */
	say(&g, ACK | FIN, NULL, 0);
	only(RST);
	/* Who waits for an answer is not silent. */
	g = open_one(4001);
	ask(&g, "one");
	now_ms += 100 * DNS_TCP_IDLE_MS;
	assert_int_equal(tick(), 60000);
	assert_int_equal(dns_tcp_count(t, PORT), 1);
	/* It says that it says no more, and gets its answer before the end. */
	say(&g, ACK | FIN, NULL, 0);
	only(ACK);
	answer(asked[0].conn, "first");
	only(ACK | FIN | PSH);
	assert_answer(&g, "first");
	g.expected++;
	say(&g, ACK, NULL, 0);
	assert_int_equal(dns_tcp_count(t, PORT), 0);
}

/* Behind the end there are no answers, so nothing is asked. */
static void test_too_late(void **state)
{
	struct guest g = open_one(4000);

	now_ms += DNS_TCP_IDLE_MS;
	tick();
	only(ACK | FIN | PSH);
	ask(&g, "one");
	assert_int_equal(nasked, 0);
	g.expected++;
	say(&g, ACK, NULL, 0);
	assert_int_equal(dns_tcp_count(t, PORT), 0);
}

/* What acknowledges bytes that never were is of another connection, and so are its own (RFC 9293, 3.10.7.4). */
static void test_foreign_acknowledgements(void **state)
{
	struct guest g = { .port = 4000, .window = 1000, .next = ISS };

	send_from(&g, g.next++, SYN, NULL, 0, NULL, 0);
	uint32_t iss = only(SYN | ACK)->seq;
	for (int i = -1; i <= 2; i += 3) {
		g.expected = iss + 1 + (uint32_t)i;
		send_from(&g, g.next, ACK | PSH, "\0\3one", 5, NULL, 0);
		assert_int_equal(only(RST)->seq, g.expected);
	}
	g.expected = iss + 1;
	say(&g, ACK, NULL, 0);
	assert_int_equal(nsent, 0);
	g.expected = iss + 2;
	send_from(&g, g.next, ACK | PSH, "\0\3one", 5, NULL, 0);
	assert_int_equal(only(ACK)->ack, g.next);
	assert_int_equal(sent[0].seq, iss + 1);
	assert_int_equal(nasked, 0);
	/* What is behind is only late. */
	g.expected = iss;
	ask(&g, "two");
	assert_int_equal(only(ACK)->ack, g.next);
	assert_int_equal(nasked, 1);
}

static void test_strange_segments(void **state)
{
	struct guest g = { .port = 4000, .window = 1000, .next = ISS, .expected = 77 };

	/* To no connection (RFC 9293, 3.5.2). */
	say(&g, ACK, "abc", 3);
	assert_int_equal(only(RST)->seq, 77);
	send_from(&g, 5, FIN, "abc", 3, NULL, 0);
	assert_int_equal(only(RST | ACK)->ack, 9);
	say(&g, RST, NULL, 0);
	assert_int_equal(nsent, 0);
	say(&g, SYN | FIN, NULL, 0);
	only(RST | ACK);
	assert_int_equal(dns_tcp_count(t, PORT), 0);

	g = open_one(4001);
	uint32_t expected = g.expected;
	/* It may be a late one: asked whether it is meant (RFC 5961). */
	send_from(&g, g.next + 5, RST, NULL, 0, NULL, 0);
	assert_int_equal(only(ACK)->ack, g.next);
	send_from(&g, 5, SYN, NULL, 0, NULL, 0);
	assert_int_equal(only(ACK)->ack, g.next);
	/* Acknowledges what was never sent. */
	g.expected += 1000;
	say(&g, ACK, NULL, 0);
	assert_int_equal(nsent, 0);
	g.expected = expected - 1000;
	say(&g, ACK, NULL, 0);
	assert_int_equal(nsent, 0);
	g.expected = expected;
	send_from(&g, g.next, 0, "\0\1a", 3, NULL, 0); /* no ACK: is nothing */
	assert_int_equal(nsent, 0);
	ask(&g, "one");
	assert_int_equal(nasked, 1);
	/* Another address and the same port is another connection. */
	ends.src = frame_addr("fe80::1");
	ends.dst = frame_addr("fe80::2");
	open_one(4001);
	assert_int_equal(dns_tcp_count(t, PORT), 2);
}

/* Anything, at any time: it stays within its bounds, and what it sends is well-formed (on_send). */
static void test_random(void **state)
{
	uint32_t seed = 1;
	uint8_t data[1400];

	answers_at_once = true;
	for (unsigned i = 0; i < 200000; i++) {
		seed = seed * 1664525 + 1013904223;
		uint32_t dice = seed >> 8;
		struct guest g = { .port = (uint16_t)(4000 + dice % 6),
				   .window = (uint16_t)(dice * 77),
				   .expected = nsent ? sent[0].seq + (dice >> 3) % 40 : dice };
		memset(data, (int)(dice % 3), sizeof(data));
		nasked = 0;
		send_from(&g, nsent ? sent[0].ack + (dice >> 5) % 5 - 1 : ISS,
			  dice % 3 ? ACK : (uint8_t)(dice >> 9 & 0x3f), data, (dice >> 7) % 1400,
			  NULL, 0);
		if (dice % 11 == 0) {
			now_ms += dice % 3000;
			struct seen last = sent[0];
			unsigned n = nsent;
			tick();
			if (!nsent) {
				sent[0] = last;
				nsent = n;
			}
		}
		assert_true(dns_tcp_count(t, PORT) <= DNS_TCP_PER_PORT);
	}
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_a_question),
		T(test_pieces),
		T(test_bounds_of_questions),
		T(test_bounds_of_connections),
		T(test_long_answer),
		T(test_losses),
		T(test_window_opens),
		T(test_silence),
		T(test_too_late),
		T(test_foreign_acknowledgements),
		T(test_strange_segments),
		T(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
