/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection's life (RFC 9293, 3.3.2, from the guest's side):
 *
 *   SYN --> CONNECTING --(host connected)--> SYN sent back: OPENING --(ACK)--> OPEN --> freed
 *            refused: RST or ICMP                                               when both sides said FIN and it is
 *                                                                               acknowledged, on RST, or on no answer
 *   forwarded: SYN sent: CALLING --(SYN, ACK)--> OPEN
 *
 * Sequence space towards the guest, while OPEN:
 *
 *      una                  nxt                una + ring.len
 *       |-- sent, not acked --|---- to be sent ----| FIN
 *
 * Invariants
 *  1. ring holds exactly the bytes from una on; so una <= nxt <= una + ring.len, plus one when our FIN is sent.
 *  2. top is the highest nxt ever: an acknowledgement beyond is nonsense.
 *  3. rcv_nxt is behind every byte that went to the host's socket or to `late`: what it tells has arrived.
 *     Bytes come in order or are dropped: the link loses nothing by itself, so there is nothing to sort.
 *  4. Bytes go to the socket directly only while `late` is empty.
 *  5. A flow is freed only by free_flow(); input, polled and flush hold no flow over one that may do it.
 *
 * The link to the guest is no network: frames are dropped only by a guest without memory for them.  Hence no congestion
 * window; three equal acknowledgements, or a second without any, and sending starts again from una.
 *
 * Not handled: urgent data (passed on as plain), SACK, timestamps, keepalives of our own.
 */
#include "net/tcp_nat.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>

#include "base/host.h"
#include "net/offload.h"
#include "net/tcp_wire.h"

#define BUCKETS	   256u
#define RING_SMALL (32 * KIB)
#define RING_BIG   (512 * KIB)
#define LATE_SMALL (32 * KIB)
#define WINDOW	   (512 * KIB) /* that the guest may send ahead */
#define OUR_WSCALE 4	       /* WINDOW fits into 16 bits with it */
#define MSS	   (NET_MTU - 40)
#define MSS_LEAST  64u
#define MSS_UNTOLD 536u /* RFC 9293, 3.7.1 */
#define CHUNK_MIN                                                                                  \
	(32 * KIB) /* the window's end is not worth a shorter frame, if more is under way */
#define READ_A_ROUND   (256 * KIB)
#define RETRY_MS       1000 /* doubled each time ... */
#define RETRY_MAX_MS   60000
#define RETRIES	       14 /* about ten minutes in all */
#define EQUAL_ACKS     3
#define CALLS	       6  /* of a guest that does not answer: about a minute */
#define ACCEPTS	       16 /* a listener a round */
#define ACCEPT_REST_MS 100
#define CALLER_PORTS   49152u /* from here on (RFC 6335, 6): of callers that have none */

_Static_assert(WINDOW >> OUR_WSCALE <= 0xffff, "told in 16 bits");

enum flow_state { CONNECTING, OPENING, CALLING, OPEN };

struct ring {
	uint8_t *data;
	uint32_t size; /* a power of two, or 0 */
	uint32_t head, len;
};

struct flow {
	struct flow *next; /* in its bucket */
	struct tcp_nat *nat;
	struct tcp_ends ends; /* as the guest sends */
	enum flow_state state;
	int fd;
	int poll_at; /* index in the last poll set, or -1 */
	uint32_t peer_iss;
	unsigned mss, wscale; /* the guest's; 0 if either side does not scale */
	bool is_scaled;
	/* from the guest */
	uint32_t rcv_nxt, rcv_edge; /* rcv_edge: end of the window told last */
	struct ring late;	    /* accepted, and not yet taken by the socket */
	bool has_peer_fin, is_shut; /* the guest's FIN came; and the socket was told */
	bool owes_ack;
	/* to the guest */
	uint32_t iss, una, nxt, top, window;
	struct ring ring;
	bool has_eof;	  /* the host's side ended */
	bool is_fin_sent; /* nxt is behind our FIN */
	unsigned equal_acks;
	uint32_t recover; /* no second restart by equal acks before this is acknowledged */
	int64_t retry_ms; /* when to try again; 0: nothing is waited for */
	unsigned retries;
};

struct listener {
	int fd;
	uint32_t guest_ip;
	uint16_t guest_port;
};

struct tcp_nat {
	struct tcp_nat_config cfg;
	struct listener listeners[TCP_NAT_LISTENERS];
	unsigned nlisteners, npolled; /* npolled: listeners at the start of the last poll set */
	int64_t accept_after_ms;      /* there was no descriptor left: callers wait */
	unsigned ncalls;	      /* ports of callers that have none */
	uint8_t guest_mac[6];
	bool has_guest_mac;
	struct flow *buckets[BUCKETS];
	struct flow *flows[TCP_NAT_FLOWS]; /* all, dense */
	unsigned nflows;
	size_t bytes;	 /* of all rings */
	bool is_blocked; /* send said no; until the next flush */
	uint32_t secret; /* initial sequence numbers */
};

/* a - b in sequence space (RFC 9293, 3.4) */
static int32_t seq_diff(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b);
}

static int64_t now_ms(const struct tcp_nat *t)
{
	return t->cfg.now_ms(t->cfg.ctx);
}

/* ---- rings ---- */

/* Gives an empty ring memory: @want, or @least when the pool is used up.  False: no memory at all. */
static bool ring_open(struct tcp_nat *t, struct ring *r, uint32_t want, uint32_t least)
{
	uint32_t size = t->bytes + want <= TCP_NAT_POOL_BYTES ? want : least;

	assert(!r->size);
	r->data = size ? host.malloc(size) : NULL;
	if (!r->data)
		return false;
	r->size = size;
	r->head = r->len = 0;
	t->bytes += size;
	return true;
}

static void ring_close(struct tcp_nat *t, struct ring *r)
{
	t->bytes -= r->size;
	free(r->data);
	*r = (struct ring){ 0 };
}

/* [@off, +@len) of the positions from head on, in one or two pieces. */
static unsigned ring_iov(const struct ring *r, uint32_t off, uint32_t len, struct iovec iov[2])
{
	if (!len)
		return 0;
	uint32_t at = (r->head + off) & (r->size - 1), first = MIN(len, r->size - at);

	iov[0] = (struct iovec){ r->data + at, first };
	iov[1] = (struct iovec){ r->data, len - first };
	return len > first ? 2 : 1;
}

static void ring_drop(struct ring *r, uint32_t n)
{
	assert(n <= r->len);
	r->len -= n;
	r->head = r->len ? (r->head + n) & (r->size - 1) : 0;
}

static void ring_put(struct ring *r, const uint8_t *p, uint32_t n)
{
	struct iovec iov[2];
	unsigned k = ring_iov(r, r->len, n, iov);

	for (unsigned i = 0; i < k; i++) {
		memcpy(iov[i].iov_base, p, iov[i].iov_len);
		p += iov[i].iov_len;
	}
	r->len += n;
}

/* ---- flows ---- */

static unsigned bucket_of(const struct tcp_ends *e)
{
	uint64_t h = (uint64_t)e->dst_ip << 32 | (uint32_t)e->src_port << 16 | e->dst_port;

	h = (h ^ e->src_ip) * 0x9e3779b97f4a7c15ULL;
	return (unsigned)(h >> 56) % BUCKETS;
}

static bool is_same(const struct tcp_ends *a, const struct tcp_ends *b)
{
	return a->src_ip == b->src_ip && a->dst_ip == b->dst_ip && a->src_port == b->src_port &&
	       a->dst_port == b->dst_port;
}

static struct flow *find_flow(const struct tcp_nat *t, const struct tcp_ends *e)
{
	struct flow *f = t->buckets[bucket_of(e)];

	while (f && !is_same(&f->ends, e))
		f = f->next;
	return f;
}

static void free_flow(struct flow *f)
{
	struct tcp_nat *t = f->nat;
	struct flow **at = &t->buckets[bucket_of(&f->ends)];

	while (*at != f)
		at = &(*at)->next;
	*at = f->next;
	for (unsigned i = 0; i < t->nflows; i++)
		if (t->flows[i] == f) {
			t->flows[i] = t->flows[--t->nflows];
			break;
		}
	ring_close(t, &f->ring);
	ring_close(t, &f->late);
	if (f->fd >= 0)
		close(f->fd);
	free(f);
}

/* ---- to the guest ---- */

static uint32_t window_now(const struct flow *f)
{
	uint32_t w = f->late.len >= WINDOW ? 0 : (uint32_t)WINDOW - f->late.len;

	/* Without memory to hold back what the socket does not take, it waits at the guest. */
	if (f->late.size && f->late.len)
		w = MIN(w, f->late.size - f->late.len);
	return f->is_scaled ? w & ~((1u << OUR_WSCALE) - 1) : MIN(w, 0xffffu);
}

/* A segment; @off, @len: of the ring.  False: no room. */
static bool send_segment(struct flow *f, uint8_t flags, uint32_t seq, uint32_t off, uint32_t len)
{
	struct tcp_nat *t = f->nat;
	uint32_t window = window_now(f);
	struct tcp_segment s = {
		.ends = tcp_reverse(&f->ends),
		.seq = seq,
		.ack = f->rcv_nxt,
		.flags = flags,
		/* RFC 7323, 2.2: never scaled in a SYN */
		.window = (uint16_t)(flags & TCP_SYN ? MIN(window, 0xffffu)
				     : f->is_scaled  ? window >> OUR_WSCALE
						     : window),
		.mss = MSS,
		.wscale = f->is_scaled ? OUR_WSCALE : -1,
		.len = len,
	};
	uint8_t headers[TCP_HEADERS_MAX];
	struct net_offload hints;
	struct iovec iov[3];

	if (t->is_blocked)
		return false;
	iov[0] = (struct iovec){ headers, tcp_build(&s, f->mss, headers, &hints) };
	unsigned n = 1 + ring_iov(&f->ring, off, len, iov + 1);
	if (!t->cfg.send(t->cfg.ctx, &hints, iov, n)) {
		t->is_blocked = true;
		return false;
	}
	f->rcv_edge = f->rcv_nxt + window;
	f->owes_ack = false;
	return true;
}

/* Nobody waits for it: lost when there is no room. */
static void send_reset(struct tcp_nat *t, const struct tcp_segment *in)
{
	/* RFC 9293, 3.5.2 */
	bool has_ack = in->flags & TCP_ACK;
	struct tcp_segment s = {
		.ends = tcp_reverse(&in->ends),
		.seq = has_ack ? in->ack : 0,
		.ack = has_ack ? 0
			       : in->seq + (uint32_t)in->len + !!(in->flags & TCP_SYN) +
					 !!(in->flags & TCP_FIN),
		.flags = TCP_RST | (has_ack ? 0 : TCP_ACK),
	};
	uint8_t headers[TCP_HEADERS_MAX];
	struct net_offload hints;
	struct iovec iov = { headers, tcp_build(&s, MSS, headers, &hints) };

	t->cfg.send(t->cfg.ctx, &hints, &iov, 1);
}

/* The connection is over, and the guest shall know. */
static void reset_flow(struct flow *f)
{
	send_segment(f, TCP_RST | TCP_ACK, f->nxt, 0, 0);
	free_flow(f);
}

/* The guest does not want it any more: neither shall the host's other side think that it ended well. */
static void abort_flow(struct flow *f)
{
	struct linger l = { .l_onoff = 1 };

	setsockopt(f->fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	free_flow(f);
}

static void arm_retry(struct flow *f)
{
	f->retry_ms = now_ms(f->nat) + MIN(RETRY_MS << MIN(f->retries, 10u), RETRY_MAX_MS);
}

/* Everything up to here is sent; how far is that? */
static uint32_t end_of_data(const struct flow *f)
{
	return f->una + f->ring.len;
}

static bool wants_fin(const struct flow *f)
{
	return f->has_eof && !f->is_fin_sent;
}

/* The next frame's length, 0: none that is worth it. */
static uint32_t next_chunk(const struct flow *f)
{
	uint32_t sent = f->nxt - f->una, left = f->is_fin_sent ? 0 : f->ring.len - sent;
	uint32_t room = f->window > sent ? f->window - sent : 0,
		 n = MIN(MIN(left, room), TCP_PAYLOAD_MAX);

	if (f->retries)
		return sent ? 0 : n; /* nothing came back: one at a time */
	if (n < left && n < CHUNK_MIN && sent)
		return 0; /* the window moves on as what is under way arrives */
	return n;
}

static void output(struct flow *f)
{
	uint32_t n;

	if (f->state != OPEN)
		return;
	while ((n = next_chunk(f)) > 0) {
		bool is_last = f->nxt + n == end_of_data(f), with_fin = is_last && wants_fin(f);
		if (!send_segment(f, TCP_ACK | (is_last ? TCP_PSH : 0) | (with_fin ? TCP_FIN : 0),
				  f->nxt, f->nxt - f->una, n))
			break;
		f->nxt += n + with_fin;
		f->is_fin_sent |= with_fin;
	}
	if (wants_fin(f) && f->nxt == end_of_data(f) && send_segment(f, TCP_ACK | TCP_FIN, f->nxt, 0, 0)) {
		f->nxt++;
		f->is_fin_sent = true;
	}
	if (seq_diff(f->nxt, f->top) > 0)
		f->top = f->nxt;
	if (f->owes_ack)
		send_segment(f, TCP_ACK, f->nxt, 0, 0);
	/* What is under way, or would be if there were a window, is waited for. */
	if (f->nxt != f->una || f->ring.len || wants_fin(f)) {
		if (!f->retry_ms)
			arm_retry(f);
	} else {
		f->retry_ms = 0;
	}
}

/* The first segment of ours. */
static void send_syn(struct flow *f)
{
	memcpy(f->ends.src_mac, f->nat->guest_mac, 6);
	if (f->nat->has_guest_mac)
		send_segment(f, TCP_SYN | (f->state == OPENING ? TCP_ACK : 0), f->iss, 0, 0);
}

static void restart_from_una(struct flow *f)
{
	f->nxt = f->una;
	f->is_fin_sent = false;
	f->equal_acks = 0;
	f->recover = f->top;
}

/* Nothing was heard in time.  False: the flow is gone. */
static bool retry(struct flow *f)
{
	if (++f->retries > (f->state == CALLING ? CALLS : RETRIES)) {
		reset_flow(f);
		return false;
	}
	arm_retry(f);
	if (f->state != OPEN) {
		send_syn(f);
		return true;
	}
	restart_from_una(f);
	if (!f->window && f->ring.len) {
		/* RFC 9293, 3.8.6.1: is the window still closed?  One byte asks. */
		if (send_segment(f, TCP_ACK, f->nxt, 0, 1))
			f->nxt++;
		f->top = seq_diff(f->nxt, f->top) > 0 ? f->nxt : f->top;
	} else {
		output(f);
	}
	return true;
}

/* Both sides are done and know it. */
static bool is_over(const struct flow *f)
{
	return f->state == OPEN && f->is_fin_sent && f->nxt == f->una && f->has_peer_fin &&
	       f->is_shut && !f->owes_ack;
}

/* ---- from the host ---- */

/* What became readable goes into the ring.  False: the flow is gone. */
static bool read_host(struct flow *f)
{
	struct iovec iov[2];

	if (!f->ring.size && !ring_open(f->nat, &f->ring, RING_BIG, RING_SMALL))
		return true; /* no memory: later */
	uint32_t room = MIN(f->ring.size - f->ring.len, (uint32_t)READ_A_ROUND);
	unsigned k = ring_iov(&f->ring, f->ring.len, room, iov);
	if (!k)
		return true;
	ssize_t r = readv(f->fd, iov, (int)k);
	if (r < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	if (r < 0) {
		reset_flow(f);
		return false;
	}
	if (r == 0)
		f->has_eof = true;
	f->ring.len += (uint32_t)r;
	output(f);
	return true;
}

/* ---- from the guest to the host ---- */

/* The guest's end, once everything before it is at the socket. */
static void pass_fin(struct flow *f)
{
	if (f->has_peer_fin && !f->is_shut && !f->late.len) {
		shutdown(f->fd, SHUT_WR);
		f->is_shut = true;
	}
}

/* The socket takes bytes again.  False: the flow is gone. */
static bool write_late(struct flow *f)
{
	struct iovec iov[2];
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = ring_iov(&f->late, 0, f->late.len, iov) };
	ssize_t r = sendmsg(f->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (r < 0 && errno != EAGAIN && errno != EINTR) {
		reset_flow(f);
		return false;
	}
	if (r > 0)
		ring_drop(&f->late, (uint32_t)r);
	if (!f->late.len)
		ring_close(f->nat, &f->late);
	/* The guest hears of a window that opened by half or from nothing (RFC 9293, 3.8.6.2.2). */
	if (seq_diff(f->rcv_nxt + window_now(f), f->rcv_edge) >= (int32_t)WINDOW / 2 ||
	    f->rcv_edge == f->rcv_nxt)
		f->owes_ack = true;
	pass_fin(f);
	return true;
}

/* In order: to the socket, else to `late`.  Returns how much was accepted, or -errno: the socket is broken. */
static ssize_t accept_bytes(struct flow *f, const uint8_t *p, size_t len)
{
	size_t done = 0;

	if (f->is_shut || f->has_peer_fin)
		return (ssize_t)len; /* after its own end: nobody reads it */
	if (!f->late.len) {
		ssize_t r = send(f->fd, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (r < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		done = r > 0 ? (size_t)r : 0;
	}
	if (done < len && (f->late.size || ring_open(f->nat, &f->late, WINDOW, LATE_SMALL))) {
		uint32_t n = (uint32_t)MIN(len - done, (size_t)(f->late.size - f->late.len));
		ring_put(&f->late, p + done, n);
		done += n;
	}
	return (ssize_t)done;
}

/* ---- segments ---- */

static unsigned bounded_mss(unsigned told)
{
	return MIN(MAX(told ? told : MSS_UNTOLD, MSS_LEAST), (unsigned)MSS);
}

/* What the segment acknowledges. */
static void take_ack(struct flow *f, const struct tcp_segment *s)
{
	uint32_t window = (uint32_t)s->window << (f->is_scaled ? f->wscale : 0);
	int32_t n = seq_diff(s->ack, f->una);

	if (n < 0 || seq_diff(s->ack, f->top) > 0) {
		f->owes_ack |= n > 0;
		return;
	}
	if (n == 0) {
		bool is_equal =
			!s->len && !(s->flags & TCP_FIN) && window == f->window && f->nxt != f->una;
		bool opens = !f->window && window; /* the byte that asked is not there */
		f->equal_acks = is_equal ? f->equal_acks + 1 : 0;
		f->window = window;
		if (!window)
			f->retries = 0; /* it lives, and may stay closed for as long as it likes */
		if (opens || (f->equal_acks >= EQUAL_ACKS && seq_diff(f->una, f->recover) >= 0))
			restart_from_una(f);
		return;
	}
	f->window = window;
	f->equal_acks = 0;
	f->retries = 0;
	f->retry_ms = 0; /* output() arms it again if more is under way */
	uint32_t bytes = MIN((uint32_t)n, f->ring.len);
	if (bytes)
		ring_drop(&f->ring, bytes);
	f->una = s->ack;
	if ((uint32_t)n > bytes) {
		f->is_fin_sent = true; /* sent before a restart, and arrived */
		f->nxt = f->una;
	} else if (seq_diff(f->nxt, f->una) < 0) {
		f->nxt = f->una;
	}
	if (!f->ring.len && f->ring.size)
		ring_close(f->nat, &f->ring); /* idle connections hold nothing */
}

/* The answer to a SYN of ours. */
static void take_answer(struct flow *f, const struct tcp_segment *s)
{
	f->is_scaled = s->wscale >= 0;
	f->wscale = f->is_scaled ? (unsigned)s->wscale : 0;
	f->mss = bounded_mss(s->mss);
	f->peer_iss = s->seq;
	f->rcv_nxt = f->rcv_edge = s->seq + 1;
	f->window = s->window; /* RFC 7323, 2.2: never scaled in a SYN */
	f->owes_ack = true;
}

/* Payload and FIN.  False: the flow is gone. */
static bool take_data(struct flow *f, const struct tcp_segment *s)
{
	int32_t skip = seq_diff(f->rcv_nxt, s->seq);
	bool has_fin = s->flags & TCP_FIN;

	if (!s->len && !has_fin) {
		f->owes_ack |= skip > 0; /* a probe of an idle or closed window */
		return true;
	}
	f->owes_ack = true;
	if (skip < 0 || (size_t)skip > s->len)
		return true; /* from the future, or altogether old */
	size_t len = s->len - (size_t)skip;
	ssize_t got = len ? accept_bytes(f, s->payload + skip, len) : 0;
	if (got < 0) {
		reset_flow(f);
		return false;
	}
	f->rcv_nxt += (uint32_t)got;
	if (has_fin && (size_t)got == len && !f->has_peer_fin) {
		f->rcv_nxt++;
		f->has_peer_fin = true;
		pass_fin(f);
	}
	return true;
}

static void segment(struct flow *f, const struct tcp_segment *s)
{
	if (s->flags & TCP_RST) {
		/* RFC 5961, 3.2: only the next number counts; before that is told, only what answers our SYN */
		if (f->state == CALLING ? s->flags & TCP_ACK && s->ack == f->iss + 1 : s->seq == f->rcv_nxt)
			abort_flow(f);
		else
			f->owes_ack = f->state == OPEN;
		return;
	}
	if (!(s->flags & TCP_ACK) || f->state == CONNECTING)
		return;
	if (f->state != OPEN) {
		if (s->ack != f->iss + 1) {
			send_reset(f->nat, s);
			return;
		}
		if (f->state == CALLING && !(s->flags & TCP_SYN))
			return;
		f->window = (uint32_t)s->window << (f->is_scaled ? f->wscale : 0);
		if (f->state == CALLING)
			take_answer(f, s);
		f->state = OPEN;
		f->una = f->nxt = f->top = f->recover = s->ack;
		f->retries = 0;
		f->retry_ms = 0;
	} else {
		take_ack(f, s);
	}
	if (s->flags & TCP_SYN) {
		f->owes_ack = true; /* ... which was lost, if this is the same again */
		return;
	}
	if (!take_data(f, s))
		return;
	if (is_over(f))
		free_flow(f);
}

/* ---- opening ---- */

static void refuse(struct tcp_nat *t, const struct tcp_segment *syn, int error)
{
	uint8_t frame[ICMP_FRAME_LEN];
	struct iovec iov = { frame, sizeof(frame) };
	static const struct net_offload none;

	if (error == ECONNREFUSED) {
		send_reset(t, syn);
		return;
	}
	tcp_build_unreachable(syn, error == ENETUNREACH ? 0 : 1, frame);
	t->cfg.send(t->cfg.ctx, &none, &iov, 1);
}

/* The host's side stands. */
static void opened(struct flow *f)
{
	int one = 1;

	/* The guest's own TCP has collected what it wanted to.  A wish. */
	setsockopt(f->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	f->state = OPENING;
	f->nxt = f->iss + 1;
	send_segment(f, TCP_SYN | TCP_ACK, f->iss, 0, 0);
	arm_retry(f);
}

/* The SYN that made @f, as far as answers quote it. */
static struct tcp_segment syn_of(const struct flow *f)
{
	return (struct tcp_segment){ .ends = f->ends, .seq = f->peer_iss, .flags = TCP_SYN, .wscale = -1 };
}

static void connected(struct flow *f)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (getsockopt(f->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		error = errno;
	if (!error) {
		opened(f);
		return;
	}
	struct tcp_segment syn = syn_of(f);
	struct tcp_nat *t = f->nat;
	free_flow(f);
	refuse(t, &syn, error);
}

/* Initial sequence numbers: not to be guessed by the host's other side, which never sees them; just new each time. */
static uint32_t next_iss(struct tcp_nat *t)
{
	t->secret = t->secret * 1664525u + 1013904223u;
	return t->secret ^ (uint32_t)(now_ms(t) << 8);
}

/* May the module take a connection between these?  Else it is slirp's. */
static bool is_ours(const struct tcp_nat *t, const struct tcp_ends *e)
{
	const struct tcp_nat_config *c = &t->cfg;
	uint8_t first = (uint8_t)(ntohl(e->dst_ip) >> 24);

	if ((e->src_ip & c->mask) != c->net || e->src_ip == c->host || !e->dst_port || !e->src_port)
		return false;
	if ((e->dst_ip & c->mask) == c->net)
		return e->dst_ip == c->host && !c->no_host_loopback;
	return first != 0 && first != 127 && first < 224;
}

static struct flow *make_flow(struct tcp_nat *t, const struct tcp_ends *ends, int fd, enum flow_state state)
{
	struct flow *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->nat = t;
	f->ends = *ends;
	f->fd = fd;
	f->poll_at = -1;
	f->state = state;
	f->mss = MSS;
	f->is_scaled = true;
	f->iss = f->una = f->nxt = f->top = next_iss(t);
	struct flow **at = &t->buckets[bucket_of(&f->ends)];
	f->next = *at;
	*at = f;
	t->flows[t->nflows++] = f;
	return f;
}

/* False: slirp may try. */
static bool open_flow(struct tcp_nat *t, const struct tcp_segment *s)
{
	struct sockaddr_in to = { .sin_family = AF_INET,
				  .sin_port = htons(s->ends.dst_port),
				  .sin_addr = { s->ends.dst_ip } };

	if (t->cfg.is_restricted || !is_ours(t, &s->ends) || t->nflows == TCP_NAT_FLOWS)
		return false;
	if (s->ends.dst_ip == t->cfg.host)
		to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int fd = host.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	int r = host.connect(fd, (const struct sockaddr *)&to, sizeof(to)) < 0 ? errno : 0;
	if (r && r != EINPROGRESS) {
		close(fd);
		refuse(t, s, r);
		return true;
	}
	struct flow *f = make_flow(t, &s->ends, fd, CONNECTING);
	if (!f) {
		close(fd);
		return false;
	}
	f->peer_iss = s->seq;
	f->rcv_nxt = f->rcv_edge = s->seq + 1;
	f->mss = bounded_mss(s->mss);
	f->is_scaled = s->wscale >= 0;
	f->wscale = f->is_scaled ? (unsigned)s->wscale : 0;
	tcp_nat_guest_mac(t, s->ends.src_mac);
	if (!r)
		opened(f);
	return true;
}

/* ---- forwarded ports ---- */

void tcp_nat_guest_mac(struct tcp_nat *t, const uint8_t mac[6])
{
	if (mac[0] & 1)
		return; /* nobody's own */
	memcpy(t->guest_mac, mac, 6);
	t->has_guest_mac = true;
}

int tcp_nat_forward(struct tcp_nat *t, int fd, uint32_t guest_ip, uint16_t guest_port)
{
	if (t->nlisteners == TCP_NAT_LISTENERS) {
		close(fd);
		return -ENOSPC;
	}
	t->listeners[t->nlisteners++] = (struct listener){ fd, guest_ip, guest_port };
	return 0;
}

/* Who calls, as the guest sees it: this host is the gateway, and so is whoever has no IPv4 address. */
static void caller(const struct tcp_nat *t, const struct sockaddr_storage *from, struct tcp_ends *ends)
{
	const struct sockaddr_in *v4 = (const void *)from;
	const struct sockaddr_in6 *v6 = (const void *)from;
	uint32_t ip = from->ss_family == AF_INET ? v4->sin_addr.s_addr : 0;

	ends->dst_port = ntohs(from->ss_family == AF_INET ? v4->sin_port : v6->sin6_port);
	ends->dst_ip =
		!ip || ntohl(ip) >> 24 == 127 || (ip & t->cfg.mask) == t->cfg.net ? t->cfg.host : ip;
}

/* Takes @fd. */
static int call_guest(struct tcp_nat *t, struct tcp_ends *ends, int fd)
{
	memcpy(ends->dst_mac, t->cfg.gateway_mac, 6);
	struct flow *f = make_flow(t, ends, fd, CALLING);

	if (!f) {
		close(fd);
		return -ENOMEM;
	}
	f->nxt = f->iss + 1;
	send_syn(f);
	arm_retry(f);
	return 0;
}

/* False: nobody waits. */
static bool accept_from(struct tcp_nat *t, const struct listener *l)
{
	struct sockaddr_storage from = { 0 };
	socklen_t len = sizeof(from);
	struct tcp_ends ends = { .src_ip = l->guest_ip, .src_port = l->guest_port };
	int one = 1;

	int fd = accept4(l->fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0) {
		/* It went away again, or there are too many files: it stays there, and readable. */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			t->accept_after_ms = now_ms(t) + ACCEPT_REST_MS;
		return false;
	}
	caller(t, &from, &ends);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* a wish, as in opened() */
	if (find_flow(t, &ends))
		close(fd);
	else
		call_guest(t, &ends, fd);
	return true;
}

int tcp_nat_call(struct tcp_nat *t, int fd, uint32_t guest_ip, uint16_t guest_port)
{
	struct tcp_ends ends = { .src_ip = guest_ip, .src_port = guest_port, .dst_ip = t->cfg.host };

	if (t->nflows == TCP_NAT_FLOWS) {
		close(fd);
		return -ENOSPC;
	}
	/* There are more ports than flows. */
	do
		ends.dst_port = (uint16_t)(CALLER_PORTS + t->ncalls++ % (65536 - CALLER_PORTS));
	while (find_flow(t, &ends));
	return call_guest(t, &ends, fd);
}

static void serve_listeners(struct tcp_nat *t, const struct pollfd *pfds)
{
	for (unsigned i = 0; i < t->npolled; i++)
		for (unsigned k = 0; pfds[i].revents && k < ACCEPTS && t->nflows < TCP_NAT_FLOWS; k++)
			if (!accept_from(t, &t->listeners[i]))
				break;
}

/* A SYN for a connection that there is: sent again, or the guest forgot the old one (it was reset). */
static bool syn_again(struct flow *f, const struct tcp_segment *s)
{
	struct tcp_nat *t = f->nat;

	if (f->state == CALLING)
		return true; /* both open at once: ours wins, it is sent again */
	if (s->seq == f->peer_iss && f->state != OPEN) {
		if (f->state == OPENING)
			send_segment(f, TCP_SYN | TCP_ACK, f->iss, 0, 0);
		return true;
	}
	abort_flow(f);
	return open_flow(t, s);
}

bool tcp_nat_input(struct tcp_nat *t, const uint8_t *frame, size_t len)
{
	struct tcp_segment s;

	if (!tcp_parse(frame, len, &s))
		return false;
	struct flow *f = find_flow(t, &s.ends);
	bool is_syn = (s.flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	if (!f)
		return is_syn && open_flow(t, &s);
	if (is_syn)
		return syn_again(f, &s);
	segment(f, &s);
	return true;
}

size_t tcp_nat_resets(const struct tcp_nat *t, uint8_t *out, size_t cap)
{
	size_t n = 0;

	for (unsigned i = 0; i < t->nflows && cap - n >= TCP_NAT_RESET_BYTES; i++) {
		const struct flow *f = t->flows[i];
		const struct tcp_segment s = { .ends = tcp_reverse(&f->ends),
					       .seq = f->nxt,
					       .ack = f->rcv_nxt,
					       .flags = TCP_RST | TCP_ACK };
		uint8_t headers[TCP_HEADERS_MAX];
		struct net_offload hints;

		if (f->state != OPEN || tcp_build(&s, f->mss, headers, &hints) != TCP_NAT_RESET_BYTES)
			continue;
		memcpy(out + n, headers, TCP_NAT_RESET_BYTES);
		n += TCP_NAT_RESET_BYTES;
	}
	return n;
}

/* ---- rounds ---- */

void tcp_nat_flush(struct tcp_nat *t)
{
	t->is_blocked = false;
	/* From the end: a flow that goes is replaced by one that was done already. */
	for (unsigned i = t->nflows; i-- > 0 && !t->is_blocked;) {
		struct flow *f = t->flows[i];
		output(f);
		if (t->is_blocked) { /* the others first, next time */
			memmove(t->flows + 1, t->flows, i * sizeof(f));
			t->flows[0] = f;
		} else if (is_over(f)) {
			free_flow(f);
		}
	}
}

bool tcp_nat_wants_room(const struct tcp_nat *t)
{
	return t->is_blocked;
}

static short wanted(const struct flow *f)
{
	if (f->state == CONNECTING)
		return POLLOUT;
	short events = f->late.len ? POLLOUT : 0;
	if (f->state == OPEN && !f->has_eof && f->ring.size - f->ring.len >= f->ring.size / 4)
		events |= POLLIN;
	return events;
}

unsigned tcp_nat_fill(struct tcp_nat *t, struct pollfd *pfds, unsigned max, uint32_t *timeout_ms)
{
	int64_t now = t->nflows || t->nlisteners ? now_ms(t) : 0;
	unsigned n = 0;

	t->npolled = t->nflows < TCP_NAT_FLOWS ? MIN(t->nlisteners, max) : 0;
	if (now < t->accept_after_ms) {
		t->npolled = 0;
		*timeout_ms = (uint32_t)MIN((int64_t)*timeout_ms, t->accept_after_ms - now);
	}
	while (n < t->npolled) {
		pfds[n] = (struct pollfd){ .fd = t->listeners[n].fd, .events = POLLIN };
		n++;
	}
	for (unsigned i = 0; i < t->nflows; i++) {
		struct flow *f = t->flows[i];
		short events = wanted(f);
		f->poll_at = -1;
		if (f->retry_ms)
			*timeout_ms = (uint32_t)MIN((int64_t)*timeout_ms,
						    MAX(f->retry_ms - now, (int64_t)0));
		/* A socket of which nothing is wanted still tells of errors, for ever: it is left out. */
		if (!events || n == max)
			continue;
		f->poll_at = (int)n;
		pfds[n++] = (struct pollfd){ .fd = f->fd, .events = events };
	}
	return n;
}

static void serve_flow(struct flow *f, short events)
{
	if (f->state == CONNECTING) {
		if (events)
			connected(f);
		return;
	}
	if (events & (POLLOUT | POLLERR | POLLHUP) && f->late.len && !write_late(f))
		return;
	if (events & (POLLIN | POLLERR | POLLHUP) && f->state == OPEN && !f->has_eof && !read_host(f))
		return;
	if (f->retry_ms && f->retry_ms <= now_ms(f->nat) && !retry(f))
		return;
	output(f);
	if (is_over(f))
		free_flow(f);
}

void tcp_nat_polled(struct tcp_nat *t, const struct pollfd *pfds, unsigned n)
{
	t->is_blocked = false;
	for (unsigned i = t->nflows; i-- > 0;) {
		struct flow *f = t->flows[i];
		serve_flow(f, f->poll_at >= 0 && (unsigned)f->poll_at < n ? pfds[f->poll_at].revents : 0);
	}
	serve_listeners(t, pfds);
}

unsigned tcp_nat_flows(const struct tcp_nat *t)
{
	return t->nflows;
}

size_t tcp_nat_bytes(const struct tcp_nat *t)
{
	return t->bytes;
}

int tcp_nat_create(struct tcp_nat **out, const struct tcp_nat_config *cfg, struct error *err)
{
	struct tcp_nat *t = calloc(1, sizeof(*t));

	if (!t)
		return error_set(err, -ENOMEM, "no memory for TCP connections");
	t->cfg = *cfg;
	t->secret = (uint32_t)now_ms(t);
	*out = t;
	return 0;
}

void tcp_nat_destroy(struct tcp_nat *t)
{
	if (!t)
		return;
	while (t->nflows)
		free_flow(t->flows[t->nflows - 1]);
	while (t->nlisteners)
		close(t->listeners[--t->nlisteners].fd);
	free(t);
}
