/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How it works.  A request gets a slot, whose number is its tag on the socket, so the server never sees the guest's tags and no two are the same.  Requests wait
 * in a list for their turn to be written, one after the other; answers come in any order, straight into the guest's memory.
 *
 * Waiting (drain, and what snapshots ask) is a matter of blocking calls, as threads that execute guest code may make no others.  They can't wait for
 * each other: when whole requests are out, an answer comes without more from here; when none is, the server reads.
 *
 * Invariants
 *  1. A request is in exactly one place: the list (its message is not out completely), or its slot only (an answer comes).
 *  2. The header of a message is read once; its size says how much of the guest's memory follows.
 *  3. Whatever the server says, nothing but the vectors of the request that it answers is written.
 *  4. After hang_up() nothing is under way and nothing comes.
 */
#include "share/port.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/host.h"
#include "base/iov.h"
#include "base/log.h"
#include "share/server.h"

#define BATCH	   64 /* answers a round of the loop */
#define WAIT_S	   60 /* for a server that works; a disk may be slow */
#define SOCKET_MAX (1 << 20)

struct socket_port {
	struct share_port port;
	struct loop *loop;
	int fd;
	struct loop_fd *watch; /* NULL: the server is gone */
	char tag[SHARE_TAG_MAX + 1];
	struct share_req *slots[SHARE_REQS_MAX];
	unsigned nunder_way;
	/* to the server */
	struct share_req *first, **last;
	uint32_t sent; /* of the first */
	unsigned nwaiting;
	/* from it */
	uint8_t header[P9_HEADER];
	unsigned header_len;
	struct share_req *answered; /* whose answer is coming */
	uint32_t size, received;
	bool is_too_long; /* for the guest's room */
	bool is_fresh;	  /* nothing was sent since the last reset */
	struct iovec iov[IOV_MAX];
	uint8_t scratch[4096];
};

static struct socket_port *port_of(struct share_port *p)
{
	return container_of(p, struct socket_port, port);
}

static uint32_t size_of(const uint8_t header[P9_HEADER])
{
	uint32_t size;

	memcpy(&size, header, sizeof(size));
	return size;
}

static uint16_t tag_of(const uint8_t header[P9_HEADER])
{
	uint16_t tag;

	memcpy(&tag, header + 5, sizeof(tag));
	return tag;
}

static void answer_error(struct share_req *req, int error)
{
	uint8_t text[P9_ERROR_LEN];

	p9_error(text, req->tag, error);
	req->done(req, iov_from_buf(req->iov + req->nout, req->nin, 0, text, sizeof(text)));
}

static void watch(struct socket_port *p)
{
	if (p->watch)
		loop_fd_modify(p->watch, LOOP_IN | (p->first ? LOOP_OUT : 0));
}

static void hang_up(struct socket_port *p, const char *why)
{
	if (!p->watch)
		return;
	loop_fd_remove(p->watch);
	p->watch = NULL;
	log_warn("share", "the folder \"%s\" is shared no more: its server %s", p->tag, why);
	p->first = NULL;
	p->last = &p->first;
	p->nwaiting = 0;
	p->answered = NULL;
	for (unsigned i = 0; i < SHARE_REQS_MAX; i++) {
		struct share_req *req = p->slots[i];

		if (!req)
			continue;
		p->slots[i] = NULL;
		p->nunder_way--;
		answer_error(req, EIO);
	}
}

static const char *reason(ssize_t n)
{
	return n == 0		 ? "has ended"
	       : errno == EAGAIN ? "does not answer"
				 : "is not reached any more";
}

/* ---- to the server ---- */

/* With @flags 0 it waits.  False: there is no room, or no server any more. */
static bool send_some(struct socket_port *p, int flags)
{
	struct share_req *req = p->first;
	struct iovec *iov = p->iov;
	unsigned n = 0;

	if (p->sent < P9_HEADER)
		iov[n++] = (struct iovec){ req->header + p->sent, P9_HEADER - p->sent };
	size_t from = MAX(p->sent, (uint32_t)P9_HEADER);

	n += iov_slice(req->iov, req->nout, from, req->size - from, iov + n);
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = n };
	ssize_t done = sendmsg(p->fd, &msg, flags | MSG_NOSIGNAL);

	if (done < 0 && errno == EINTR)
		return true;
	if (done < 0 && errno == EAGAIN && flags)
		return false;
	if (done < 0) {
		hang_up(p, reason(done));
		return false;
	}
	p->sent += (uint32_t)done;
	if (p->sent == req->size) {
		p->first = req->next;
		if (!p->first)
			p->last = &p->first;
		p->nwaiting--;
		p->sent = 0;
	}
	return true;
}

static void send_waiting(struct socket_port *p)
{
	while (p->first && send_some(p, MSG_DONTWAIT))
		continue;
	watch(p);
}

static bool take_slot(struct socket_port *p, struct share_req *req)
{
	for (uint16_t i = 0; i < SHARE_REQS_MAX; i++) {
		if (p->slots[i])
			continue;
		p->slots[i] = req;
		p->nunder_way++;
		memcpy(req->header + 5, &i, sizeof(i));
		return true;
	}
	return false;
}

static void socket_submit(struct share_port *port, struct share_req *req)
{
	struct socket_port *p = port_of(port);
	size_t have = iov_to_buf(req->iov, req->nout, 0, req->header, P9_HEADER);

	req->size = have == P9_HEADER ? size_of(req->header) : 0;
	req->tag = have == P9_HEADER ? tag_of(req->header) : SHARE_CONTROL;
	req->next = NULL;
	int r = !p->watch					      ? EIO
		: req->size < P9_HEADER || req->size > req->out_bytes ? EINVAL
		: req->size > P9_MSIZE_MAX || MAX(req->nout, req->nin) >= ARRAY_SIZE(p->iov) ? EMSGSIZE
		: !take_slot(p, req) ? EAGAIN
				     : 0;

	if (r) {
		answer_error(req, r);
		return;
	}
	p->is_fresh = false;
	*p->last = req;
	p->last = &req->next;
	p->nwaiting++;
	if (p->first == req)
		send_waiting(p);
}

/* ---- from it ---- */

/* True: more was read. */
static bool receive(struct socket_port *p, void *buf, size_t len, int flags, size_t *got)
{
	ssize_t n = recv(p->fd, buf, len, flags);

	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN && flags)
		return false;
	if (n <= 0) {
		hang_up(p, reason(n));
		return false;
	}
	*got = (size_t)n;
	return true;
}

static void begin_answer(struct socket_port *p)
{
	uint16_t slot = tag_of(p->header);
	struct share_req *req = slot < SHARE_REQS_MAX ? p->slots[slot] : NULL;
	bool is_out = req != NULL;

	/* To what it has not been asked yet there is no answer. */
	for (struct share_req *w = p->first; w; w = w->next)
		is_out &= w != req;
	p->size = size_of(p->header);
	if (!is_out || p->size < P9_HEADER || p->size > P9_MSIZE_MAX) {
		hang_up(p, "broke the protocol");
		return;
	}
	p->answered = req;
	p->received = P9_HEADER;
	p->is_too_long = p->size > req->in_bytes;
	memcpy(p->header + 5, &req->tag, sizeof(req->tag));
	if (!p->is_too_long)
		iov_from_buf(req->iov + req->nout, req->nin, 0, p->header, P9_HEADER);
}

static void end_answer(struct socket_port *p)
{
	struct share_req *req = p->answered;

	for (unsigned i = 0; i < SHARE_REQS_MAX; i++)
		if (p->slots[i] == req)
			p->slots[i] = NULL;
	p->nunder_way--;
	p->answered = NULL;
	p->header_len = 0;
	if (p->is_too_long)
		answer_error(req, EMSGSIZE);
	else
		req->done(req, p->size);
}

static bool receive_body(struct socket_port *p, int flags)
{
	struct share_req *req = p->answered;
	size_t left = p->size - p->received, got = 0;

	if (p->is_too_long) {
		if (!receive(p, p->scratch, MIN(left, sizeof(p->scratch)), flags, &got))
			return false;
	} else {
		struct msghdr msg = { .msg_iov = p->iov };

		msg.msg_iovlen = iov_slice(req->iov + req->nout, req->nin, p->received, left, p->iov);
		ssize_t r = recvmsg(p->fd, &msg, flags);

		if (r < 0 && errno == EINTR)
			return true;
		if (r < 0 && errno == EAGAIN && flags)
			return false;
		if (r <= 0) {
			hang_up(p, reason(r));
			return false;
		}
		got = (size_t)r;
	}
	p->received += (uint32_t)got;
	return true;
}

/* One read.  False: there is nothing more now. */
static bool receive_some(struct socket_port *p, int flags)
{
	size_t got = 0;

	if (!p->answered) {
		if (!receive(p, p->header + p->header_len, P9_HEADER - p->header_len, flags, &got))
			return false;
		p->header_len += (unsigned)got;
		if (p->header_len < P9_HEADER)
			return true;
		begin_answer(p);
	} else if (!receive_body(p, flags)) {
		return false;
	}
	if (p->answered && p->received == p->size)
		end_answer(p);
	return p->watch != NULL;
}

static void on_socket(void *arg, int fd, unsigned events)
{
	struct socket_port *p = arg;

	if (events & LOOP_OUT)
		send_waiting(p);
	if (events & (LOOP_IN | LOOP_HUP | LOOP_ERR))
		for (unsigned i = 0; i < BATCH * 2 && p->watch && receive_some(p, MSG_DONTWAIT); i++)
			continue;
}

/* ---- waiting ---- */

static void socket_drain(struct share_port *port)
{
	struct socket_port *p = port_of(port);

	while (p->watch && p->nunder_way) {
		while (p->first && send_some(p, MSG_DONTWAIT))
			continue;
		if (!p->watch || !p->nunder_way)
			break;
		if (p->nunder_way > p->nwaiting)
			receive_some(p, 0);
		else
			send_some(p, 0);
	}
	watch(p);
}

static bool send_all(struct socket_port *p, const void *data, size_t len)
{
	const uint8_t *at = data;

	while (len) {
		ssize_t n = send(p->fd, at, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			hang_up(p, reason(n));
			return false;
		}
		at += n;
		len -= (size_t)n;
	}
	return true;
}

static bool receive_all(struct socket_port *p, void *data, size_t len)
{
	uint8_t *at = data;

	while (len) {
		size_t got = 0;

		if (!receive(p, at, len, 0, &got))
			return false;
		at += got;
		len -= got;
	}
	return true;
}

/* What is not the guest's.  The answer, allocated; NULL: there is none. */
static uint8_t *ask(struct socket_port *p, uint8_t type, const uint8_t *data, size_t len, size_t *answer_len)
{
	uint8_t header[P9_HEADER];
	struct p9_out out = { .data = header, .cap = sizeof(header) };

	if (!p->watch || p->nunder_way)
		return NULL;
	p9_put_u32(&out, (uint32_t)(P9_HEADER + len));
	p9_put_u8(&out, type);
	p9_put_u16(&out, SHARE_CONTROL);
	if (!send_all(p, header, sizeof(header)) || !send_all(p, data, len) ||
	    !receive_all(p, header, sizeof(header)))
		return NULL;
	size_t size = size_of(header);

	if (tag_of(header) != SHARE_CONTROL || header[4] != type || size < P9_HEADER ||
	    size - P9_HEADER > SHARE_STATE_MAX) {
		hang_up(p, "broke the protocol");
		return NULL;
	}
	*answer_len = size - P9_HEADER;
	uint8_t *answer = malloc(*answer_len + 1);

	if (!answer) { /* what is not read would be taken for the next answer */
		hang_up(p, "says more than there is memory for");
		return NULL;
	}
	if (receive_all(p, answer, *answer_len))
		return answer;
	free(answer);
	return NULL;
}

static void socket_reset(struct share_port *port)
{
	struct socket_port *p = port_of(port);
	size_t len;

	if (p->is_fresh)
		return;
	free(ask(p, SHARE_C_RESET, NULL, 0, &len));
	p->is_fresh = true;
}

static int socket_save(struct share_port *port, struct bytes *out, struct error *err)
{
	struct socket_port *p = port_of(port);
	size_t len = 0;
	_cleanup_free_ uint8_t *state = ask(p, SHARE_C_SAVE, NULL, 0, &len);
	struct error why;

	if (!state)
		return error_set(err, -EIO, "the server of the shared folder \"%s\" is gone", p->tag);
	if (share_state_check(state, len, &why) < 0)
		return error_set(err, -EIO, "the server of the shared folder \"%s\" says: %.200s",
				 p->tag, why.text);
	bytes_put(out, state, len);
	return out->is_failed ? error_set(err, -ENOMEM, "no memory for a shared folder's state") : 0;
}

static int socket_load(struct share_port *port, const uint8_t *data, size_t len, struct error *err)
{
	struct socket_port *p = port_of(port);
	size_t got = 0;
	int32_t result;

	p->is_fresh = false;
	_cleanup_free_ uint8_t *answer = ask(p, SHARE_C_LOAD, data, len, &got);

	if (!answer || got != sizeof(result))
		return error_set(err, -EIO, "the server of the shared folder \"%s\" is gone", p->tag);
	memcpy(&result, answer, sizeof(result));
	if (result < 0)
		return error_set(err, -EIO, "the shared folder \"%s\" has no session: %s", p->tag,
				 strerror(-result));
	if (result)
		log_warn("share", "%d of the files of \"%s\" that the guest had in hand are not there, or are others: it gets ESTALE",
			 result, p->tag);
	return 0;
}

static void socket_close(struct share_port *port)
{
	if (!port)
		return;
	struct socket_port *p = port_of(port);

	loop_fd_remove(p->watch);
	close(p->fd);
	free(p);
}

static const struct share_ops socket_ops = {
	.submit = socket_submit,
	.drain = socket_drain,
	.reset = socket_reset,
	.save = socket_save,
	.load = socket_load,
	.close = socket_close,
};

static int tune(int fd)
{
	const struct timeval limit = { .tv_sec = WAIT_S };
	int size = SOCKET_MAX, type = 0;
	socklen_t len = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return -errno;
	if (type != SOCK_STREAM)
		return -EPROTOTYPE;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0)
		return -errno;
	/* As much as the host allows. */
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	return 0;
}

int share_port_socket(struct share_port **out, struct loop *loop, int fd, const char *tag,
		      struct error *err)
{
	struct socket_port *p = host.malloc(sizeof(*p));
	int r = p ? tune(fd) : -ENOMEM;

	if (r == 0) {
		memset(p, 0, sizeof(*p));
		p->port.ops = &socket_ops;
		p->loop = loop;
		p->fd = fd;
		p->last = &p->first;
		p->is_fresh = true;
		memcpy(p->tag, tag, strnlen(tag, SHARE_TAG_MAX));
		p->watch = loop_fd_add(loop, fd, LOOP_IN, on_socket, p);
		r = p->watch ? 0 : -ENOMEM;
	}
	if (r < 0) {
		close(fd);
		free(p);
		return error_set(err, r, "the shared folder can't be connected: %s", strerror(-r));
	}
	*out = &p->port;
	return 0;
}
