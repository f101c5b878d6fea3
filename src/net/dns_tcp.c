/* SPDX-License-Identifier: Apache-2.0 */
#include "net/dns_tcp.h"

#include <string.h>
#include <sys/random.h>

#include "base/bytes.h"
#include "net/offload.h"
#include "net/policy.h"

enum { HEADER = 20, DNS_PORT = 53, OPT_END = 0, OPT_NOP = 1, OPT_MSS = 2, OPT_MSS_LEN = 4 };
enum { FIN = PACKET_FIN, SYN = PACKET_SYN, RST = PACKET_RST, PSH = 8, ACK = PACKET_ACK };
enum { MSS_LEAST = 64, RESEND_MOST_MS = 8000, DUPLICATES = 3 };

/*
 * Sequence numbers: @una is the first that is not acknowledged, @next the next one to be sent, @max the first that was never sent.
 * @out are the bytes from @una on; behind them, if @is_ending, is the FIN.
 */
struct conn {
	uint32_t id;
	struct net_addr gateway, client;
	uint16_t client_port, mss;
	bool is_open;	/* our SYN was acknowledged */
	bool is_ending; /* nothing follows what is in @out */
	bool is_ended;	/* the client says no more */
	bool is_serving; /* messages are being handed out: nothing is sent and nothing ends meanwhile */
	bool is_broken; /* to be reset */
	uint32_t una, next, max, window;
	uint32_t expected; /* of the client */
	unsigned duplicates, tries, asked;
	int64_t resend_at_ms; /* 0: nothing is under way */
	int64_t heard_ms;
	struct bytes out;
	size_t in_len;
	uint8_t in[DNS_TCP_IN];
};

struct dns_tcp {
	struct dns_tcp_ops ops;
	struct conn *conns[POLICY_PORTS_MAX][DNS_TCP_PER_PORT];
	unsigned nconns;
	uint32_t last_id;
};

struct segment {
	uint32_t seq, ack;
	uint8_t flags;
	uint16_t window;
	const uint8_t *data;
	size_t len;
};

static bool is_before(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) < 0;
}

static int64_t now_of(const struct dns_tcp *t)
{
	return t->ops.now_ms(t->ops.ctx);
}

/* ---- out ---- */

static void put_header(uint8_t *h, uint16_t dport, uint32_t seq, uint32_t ack, uint8_t flags,
		       unsigned window, size_t header_len)
{
	memset(h, 0, HEADER);
	net_put16(h, DNS_PORT);
	net_put16(h + 2, dport);
	net_put32(h + 4, seq);
	net_put32(h + 8, ack);
	h[12] = (uint8_t)(header_len / 4 << 4);
	h[13] = flags;
	net_put16(h + 14, window);
}

static unsigned mss_of(const struct net_addr *a)
{
	return NET_MTU - HEADER - (net_addr_is_v4(a) ? 20 : 40);
}

static void send_segment(struct dns_tcp *t, unsigned port, const struct conn *c, uint32_t seq,
			 uint8_t flags, const uint8_t *data, size_t len)
{
	uint8_t b[NET_MTU];
	size_t at = HEADER;

	if (flags & SYN) {
		b[at] = OPT_MSS;
		b[at + 1] = OPT_MSS_LEN;
		net_put16(b + at + 2, mss_of(&c->client));
		at += OPT_MSS_LEN;
	}
	put_header(b, c->client_port, seq, c->expected, flags, (unsigned)(DNS_TCP_IN - c->in_len), at);
	if (len)
		memcpy(b + at, data, len);
	t->ops.send(t->ops.ctx, port, &c->gateway, &c->client, b, at + len);
}

/* To who has no connection (RFC 9293, 3.5.2). */
static void refuse(struct dns_tcp *t, unsigned port, const struct packet *p, const struct segment *s)
{
	uint8_t h[HEADER];
	bool has_ack = s->flags & ACK;
	uint32_t end = s->seq + (uint32_t)s->len + !!(s->flags & SYN) + !!(s->flags & FIN);

	put_header(h, p->sport, has_ack ? s->ack : 0, has_ack ? 0 : end,
		   (uint8_t)(has_ack ? RST : RST | ACK), 0, HEADER);
	t->ops.send(t->ops.ctx, port, &p->dst, &p->src, h, HEADER);
}

static void send_ack(struct dns_tcp *t, unsigned port, const struct conn *c)
{
	send_segment(t, port, c, c->next, ACK, NULL, 0);
}

static void arm(struct dns_tcp *t, struct conn *c)
{
	c->resend_at_ms =
		now_of(t) + MIN((int64_t)DNS_TCP_RESEND_MS << c->tries, (int64_t)RESEND_MOST_MS);
}

/* What the client takes, and an acknowledgement if @needs_ack and nothing else carries it. */
static void output(struct dns_tcp *t, unsigned port, struct conn *c, bool needs_ack)
{
	uint32_t all = (uint32_t)c->out.len + c->is_ending,
		 may = MIN(c->window, (uint32_t)DNS_TCP_FLIGHT);

	while (c->is_open && c->next - c->una < all) {
		uint32_t at = c->next - c->una,
			 left = (uint32_t)c->out.len - MIN(at, (uint32_t)c->out.len);
		uint32_t n = MIN(MIN(left, (uint32_t)c->mss), may - MIN(at, may));
		bool ends = c->is_ending && n == left; /* a FIN needs no window of its own here */
		if (!n && !ends)
			break;
		send_segment(t, port, c, c->next,
			     (uint8_t)(ACK | (n == left ? PSH : 0) | (ends ? FIN : 0)),
			     n ? c->out.data + at : NULL, n);
		c->next += n + ends;
		needs_ack = false;
		if (is_before(c->max, c->next))
			c->max = c->next;
	}
	if (!c->resend_at_ms && c->is_open && all)
		arm(t, c); /* also with a window of 0: it is probed */
	if (needs_ack)
		send_ack(t, port, c);
}

/* ---- life ---- */

static void end(struct dns_tcp *t, unsigned port, unsigned slot)
{
	struct conn *c = t->conns[port][slot];

	if (!c)
		return;
	bytes_free(&c->out);
	free(c);
	t->conns[port][slot] = NULL;
	t->nconns--;
}

static void reset(struct dns_tcp *t, unsigned port, unsigned slot)
{
	const struct conn *c = t->conns[port][slot];

	send_segment(t, port, c, c->next, RST | ACK, NULL, 0);
	end(t, port, slot);
}

/* A free place, or that of the one that was silent for longest. */
static unsigned take_slot(struct dns_tcp *t, unsigned port)
{
	unsigned slot = 0;

	for (unsigned i = 0; i < DNS_TCP_PER_PORT; i++) {
		if (!t->conns[port][i])
			return i;
		if (t->conns[port][i]->heard_ms < t->conns[port][slot]->heard_ms)
			slot = i;
	}
	reset(t, port, slot);
	return slot;
}

/* Of a SYN's options; the default of RFC 9293, 3.7.1 without. */
static uint16_t read_mss(const struct packet *p)
{
	const uint8_t *o = p->data + p->l4 + HEADER, *stop = p->data + p->payload;
	unsigned mss = net_addr_is_v4(&p->src) ? 536 : 1220;

	while (o < stop && *o != OPT_END) {
		if (*o == OPT_NOP) {
			o++;
			continue;
		}
		if (stop - o < 2 || o[1] < 2 || o[1] > stop - o)
			break;
		if (*o == OPT_MSS && o[1] == OPT_MSS_LEN)
			mss = net_get16(o + 2);
		o += o[1];
	}
	return (uint16_t)MIN(MAX(mss, (unsigned)MSS_LEAST), mss_of(&p->src));
}

static void open_conn(struct dns_tcp *t, unsigned port, const struct packet *p, const struct segment *s)
{
	unsigned slot = take_slot(t, port);
	struct conn *c = calloc(1, sizeof(*c));

	/* Without memory: it tries again. */
	if (!c || getrandom(&c->una, sizeof(c->una), 0) != sizeof(c->una)) {
		free(c);
		return;
	}
	c->id = t->last_id = t->last_id + 1 ?: 1;
	c->gateway = p->dst;
	c->client = p->src;
	c->client_port = p->sport;
	c->mss = read_mss(p);
	c->next = c->max = c->una + 1;
	c->expected = s->seq + 1;
	c->window = s->window;
	c->heard_ms = now_of(t);
	t->conns[port][slot] = c;
	t->nconns++;
	send_segment(t, port, c, c->una, SYN | ACK, NULL, 0);
	arm(t, c);
}

/* ---- messages ---- */

/* Hands out what is whole, as far as there may be answers. */
static void serve(struct dns_tcp *t, unsigned port, struct conn *c)
{
	c->is_serving = true;
	while (!c->is_broken && !c->is_ending && c->in_len >= 2 && c->asked < DNS_TCP_ASKED &&
	       c->out.len <= (DNS_TCP_ASKED - 1 - c->asked) * (2 + (size_t)DNS_MESSAGE_MAX)) {
		size_t len = net_get16(c->in);
		if (len > DNS_TCP_QUESTION) {
			c->is_broken = true;
			break;
		}
		if (c->in_len - 2 < len)
			break;
		c->asked++;
		c->is_broken |=
			!t->ops.ask(t->ops.ctx, port, &c->gateway, &c->client, c->id, c->in + 2, len);
		c->in_len -= 2 + len;
		memmove(c->in, c->in + 2 + len, c->in_len);
	}
	c->is_serving = false;
	/* Half a question will never be whole. */
	if (c->is_ended && !c->asked && (c->in_len < 2 || c->in_len < 2u + net_get16(c->in)))
		c->is_ending = true;
}

/* After anything that could let it go on. */
static void go_on(struct dns_tcp *t, unsigned port, unsigned slot, bool needs_ack)
{
	struct conn *c = t->conns[port][slot];

	serve(t, port, c);
	c->is_broken |= c->out.is_failed;
	if (c->is_broken)
		reset(t, port, slot);
	else
		output(t, port, c, needs_ack);
}

void dns_tcp_answer(struct dns_tcp *t, unsigned port, uint32_t conn, const uint8_t *m, size_t len)
{
	uint8_t length[2];

	for (unsigned i = 0; i < DNS_TCP_PER_PORT; i++) {
		struct conn *c = t->conns[port][i];
		if (!c || c->id != conn || !c->asked || c->is_ending)
			continue;
		c->asked--;
		net_put16(length, (unsigned)len);
		bytes_put(&c->out, length, 2);
		bytes_put(&c->out, m, len);
		if (!c->is_serving)
			go_on(t, port, i, false);
	}
}

/* ---- in ---- */

/* False: the connection is over. */
static bool take_ack(struct dns_tcp *t, unsigned port, unsigned slot, const struct segment *s)
{
	struct conn *c = t->conns[port][slot];

	if (is_before(s->ack, c->una))
		return true; /* old */
	uint32_t n = s->ack - c->una;
	bool is_duplicate =
		!n && !s->len && !(s->flags & FIN) && s->window == c->window && c->max != c->una;
	c->window = s->window;
	if (is_duplicate && ++c->duplicates == DUPLICATES)
		c->next = c->una; /* RFC 5681, 3.2; from there on all anew */
	if (!n)
		return true;
	c->duplicates = c->tries = 0;
	c->resend_at_ms = 0;
	c->una = s->ack;
	if (is_before(c->next, c->una))
		c->next = c->una;
	if (!c->is_open) {
		c->is_open = true;
		n--;
	}
	uint32_t bytes = MIN(n, (uint32_t)c->out.len);
	c->out.len -= bytes;
	if (c->out.len)
		memmove(c->out.data, c->out.data + bytes, c->out.len);
	if (n == bytes)
		return true;
	end(t, port, slot); /* our FIN; theirs, if it is still to come, is refused */
	return false;
}

/* What follows on what is there, as far as there is room. */
static void take_data(struct conn *c, const struct segment *s)
{
	uint32_t known = c->expected - s->seq;

	if (is_before(c->expected, s->seq) || known > s->len || c->is_ended)
		return;
	size_t n = MIN(s->len - known, DNS_TCP_IN - c->in_len);
	if (n)
		memcpy(c->in + c->in_len, s->data + known, n);
	c->in_len += n;
	c->expected += (uint32_t)n;
	if (s->flags & FIN && n == s->len - known) {
		c->expected++;
		c->is_ended = true;
	}
}

static void take_segment(struct dns_tcp *t, unsigned port, unsigned slot, const struct segment *s)
{
	struct conn *c = t->conns[port][slot];

	if (s->flags & RST) {
		/* RFC 5961, 3.2 */
		if (s->seq == c->expected)
			end(t, port, slot);
		else
			send_ack(t, port, c);
		return;
	}
	if (s->flags & SYN) {
		/* The same again, or RFC 5961, 4.2. */
		if (!c->is_open && s->seq + 1 == c->expected)
			send_segment(t, port, c, c->una, SYN | ACK, NULL, 0);
		else
			send_ack(t, port, c);
		return;
	}
	if (!(s->flags & ACK))
		return;
	/* Of what was never sent, so of another connection (RFC 9293, 3.10.7.4).  What is empty is not answered: it could be an answer to that. */
	if (!c->is_open && s->ack != c->max) {
		send_segment(t, port, c, s->ack, RST, NULL, 0);
		return;
	}
	if (is_before(c->max, s->ack)) {
		if (s->len || s->flags & FIN)
			send_ack(t, port, c);
		return;
	}
	c->heard_ms = now_of(t);
	if (!take_ack(t, port, slot, s))
		return;
	/* What is known already is acknowledged again; so are probes that ask whether somebody is there. */
	bool needs_ack = s->len || s->flags & FIN || is_before(s->seq, c->expected);
	take_data(c, s);
	go_on(t, port, slot, needs_ack);
}

void dns_tcp_input(struct dns_tcp *t, unsigned port, const struct packet *p)
{
	const uint8_t *h = p->data + p->l4;
	struct segment s = { .seq = net_get32(h + 4),
			     .ack = net_get32(h + 8),
			     .flags = h[13],
			     .window = net_get16(h + 14),
			     .data = p->data + p->payload,
			     .len = p->end - p->payload };

	for (unsigned i = 0; i < DNS_TCP_PER_PORT; i++) {
		const struct conn *c = t->conns[port][i];
		if (c && c->client_port == p->sport && net_addr_is_equal(&c->client, &p->src) &&
		    net_addr_is_equal(&c->gateway, &p->dst)) {
			take_segment(t, port, i, &s);
			return;
		}
	}
	if ((s.flags & (SYN | ACK | RST | FIN)) == SYN)
		open_conn(t, port, p, &s);
	else if (!(s.flags & RST))
		refuse(t, port, p, &s);
}

/* ---- time ---- */

static void resend(struct dns_tcp *t, unsigned port, unsigned slot)
{
	struct conn *c = t->conns[port][slot];

	if (++c->tries > DNS_TCP_TRIES) {
		reset(t, port, slot);
		return;
	}
	c->resend_at_ms = 0;
	c->duplicates = 0;
	if (!c->is_open) {
		send_segment(t, port, c, c->una, SYN | ACK, NULL, 0);
		arm(t, c);
		return;
	}
	c->next = c->una;
	if (!c->window && c->out.len) { /* RFC 9293, 3.8.6.1 */
		send_segment(t, port, c, c->una, ACK, c->out.data, 1);
		/* It need not be taken: @next stays. */
		if (c->max == c->una)
			c->max++;
		arm(t, c);
		return;
	}
	output(t, port, c, false);
}

static int64_t due_ms(const struct conn *c)
{
	if (c->resend_at_ms)
		return c->resend_at_ms;
	return c->asked ? INT64_MAX : c->heard_ms + DNS_TCP_IDLE_MS;
}

/* It is silent: nothing of it is under way. */
static void hang_up(struct dns_tcp *t, unsigned port, struct conn *c)
{
	c->is_ending = true;
	output(t, port, c, false);
}

void dns_tcp_tick(struct dns_tcp *t, uint32_t *timeout_ms)
{
	int64_t now_ms = now_of(t);

	for (unsigned port = 0; t->nconns && port < POLICY_PORTS_MAX; port++)
		for (unsigned i = 0; i < DNS_TCP_PER_PORT; i++) {
			struct conn *c = t->conns[port][i];
			if (c && due_ms(c) <= now_ms && c->resend_at_ms)
				resend(t, port, i);
			else if (c && due_ms(c) <= now_ms)
				hang_up(t, port, c);
			c = t->conns[port][i];
			if (c)
				*timeout_ms = (uint32_t)MIN((int64_t)*timeout_ms,
							    MAX(due_ms(c) - now_ms, (int64_t)0));
		}
}

/* ---- all of it ---- */

struct dns_tcp *dns_tcp_create(const struct dns_tcp_ops *ops)
{
	struct dns_tcp *t = calloc(1, sizeof(*t));

	if (t)
		t->ops = *ops;
	return t;
}

void dns_tcp_forget(struct dns_tcp *t, unsigned port)
{
	for (unsigned i = 0; i < DNS_TCP_PER_PORT; i++)
		end(t, port, i);
}

void dns_tcp_destroy(struct dns_tcp *t)
{
	if (!t)
		return;
	for (unsigned port = 0; port < POLICY_PORTS_MAX; port++)
		dns_tcp_forget(t, port);
	free(t);
}

unsigned dns_tcp_count(const struct dns_tcp *t, unsigned port)
{
	unsigned n = 0;

	for (unsigned i = 0; i < DNS_TCP_PER_PORT; i++)
		n += t->conns[port][i] != NULL;
	return n;
}
