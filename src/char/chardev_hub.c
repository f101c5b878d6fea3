/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One guest side, many clients.
 *
 * What the guest writes goes into one ring; `total` counts all bytes ever written.  A client is a position
 * in that count: it has seen everything before `pos`.  So a client costs no buffer, a newcomer starts
 * some bytes back, and one that does not read falls behind until the ring has run over it: then it is told
 * how many bytes it lost and goes on with the oldest there are.
 *
 * Invariants
 *  1. The ring holds bytes [total - min(total, size), total).
 *  2. A client's out-watch is armed iff it has not seen everything, or is gone.
 *  3. While the hub is held, no client is watched; `events` is what it will be watched for.
 *  4. A client that fails is marked is_gone and freed by reap(), which runs only where nobody walks the list.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/log.h"
#include "char/chardev.h"
#include "char/stream.h"

#define RING_MIN  (256 * KIB)
#define INPUT_MAX (64 * KIB)

struct hub;
struct client {
	struct client *next;
	struct hub *hub;
	struct stream io;
	struct loop_fd *watch;
	unsigned events;
	uint64_t pos;
	bool is_gone;
	uint64_t lost;	 /* bytes to tell about */
	char notice[64]; /* text to send before going on at pos */
	size_t notice_len, notice_sent;
};

struct hub {
	struct char_dev chr;
	struct loop *loop;
	struct client *clients;
	unsigned nclients;
	uint8_t *ring;
	size_t size;
	uint64_t total;
	size_t backlog;
	int log_fd;
	bool is_held;	/* clients are left alone */
	uint8_t *input; /* from chardev_hub_input, waiting for the guest */
	size_t input_head, input_len;
};

/* ---- clients ---- */

static void set_events(struct client *c, unsigned events)
{
	if (c->events == events || c->is_gone)
		return;
	c->events = events;
	if (!c->hub->is_held)
		loop_fd_modify(c->watch, events);
}

static void reap(struct hub *h)
{
	struct client **p = &h->clients;
	bool was_connected = h->nclients;

	while (*p) {
		struct client *c = *p;

		if (!c->is_gone) {
			p = &c->next;
			continue;
		}
		*p = c->next;
		h->nclients--;
		loop_fd_remove(c->watch);
		close(c->io.fd);
		free(c);
	}
	if (was_connected && !h->nclients && h->chr.user.connected)
		h->chr.user.connected(h->chr.user.ctx, false);
}

/* Bytes at @pos that lie in one piece in the ring. */
static size_t piece(const struct hub *h, uint64_t pos, const uint8_t **data)
{
	size_t at = (size_t)(pos % h->size);

	*data = h->ring + at;
	return (size_t)MIN(h->total - pos, (uint64_t)(h->size - at));
}

static ssize_t send_some(struct client *c)
{
	struct hub *h = c->hub;
	const uint8_t *data;
	size_t len;
	ssize_t n;

	if (c->lost && c->notice_sent == c->notice_len) {
		c->notice_len = (size_t)snprintf(c->notice, sizeof(c->notice),
						 "\r\n[%llu bytes of output lost]\r\n",
						 (unsigned long long)c->lost);
		c->notice_sent = 0;
		c->lost = 0;
	}
	if (c->notice_sent < c->notice_len) {
		n = stream_write(&c->io, c->notice + c->notice_sent, c->notice_len - c->notice_sent);
		if (n > 0)
			c->notice_sent += (size_t)n;
		return n;
	}
	len = piece(h, c->pos, &data);
	if (!len)
		return 0;
	n = stream_write(&c->io, data, len);
	if (n > 0)
		c->pos += (uint64_t)n;
	return n;
}

static void flush(struct client *c)
{
	struct hub *h = c->hub;
	ssize_t n;

	if (c->is_gone || h->is_held)
		return;
	if (h->total - c->pos > h->size) {
		c->lost += h->total - h->size - c->pos;
		c->pos = h->total - h->size;
	}
	do
		n = send_some(c);
	while (n > 0);
	if (n == -EAGAIN) {
		set_events(c, c->events | LOOP_OUT);
	} else if (n == 0) {
		set_events(c, c->events & ~(unsigned)LOOP_OUT);
	} else {
		set_events(c, LOOP_IN | LOOP_OUT); /* the loop comes and reaps it */
		c->is_gone = true;
	}
}

static void read_client(struct client *c)
{
	struct hub *h = c->hub;
	uint8_t buf[4096];
	size_t room = h->input_len ? 0 : MIN(chardev_room(&h->chr), sizeof(buf));
	ssize_t n;

	if (!room) {
		set_events(c, c->events & ~(unsigned)LOOP_IN);
		return;
	}
	n = stream_read(&c->io, buf, room);
	if (n > 0)
		chardev_give(&h->chr, buf, (size_t)n);
	else if (n != -EAGAIN)
		c->is_gone = true;
}

static void on_client(void *arg, int fd, unsigned events)
{
	struct client *c = arg;
	struct hub *h = c->hub;

	if (events & LOOP_OUT)
		flush(c);
	if ((events & LOOP_IN) && !c->is_gone)
		read_client(c);
	else if (events & (LOOP_HUP | LOOP_ERR))
		c->is_gone = true; /* nothing left to read */
	reap(h);
}

int chardev_hub_attach(struct char_dev *hub, int fd, bool give_backlog, struct error *err)
{
	struct hub *h = container_of(hub, struct hub, chr);
	struct client *c = calloc(1, sizeof(*c));
	int flags = fcntl(fd, F_GETFL);
	struct stat st;
	int rc;

	if (!c)
		return error_set(err, -ENOMEM, "no memory for a console client");
	if (flags < 0 || fstat(fd, &st) || fcntl(fd, F_SETFL, flags | O_NONBLOCK)) {
		rc = error_set(err, -errno, "cannot use the console client: %s", strerror(errno));
		goto fail;
	}
	*c = (struct client){
		.hub = h,
		.io = { .fd = fd, .restore_fd = -1, .is_socket = S_ISSOCK(st.st_mode) },
		.events = LOOP_IN,
	};
	c->watch = loop_fd_add(h->loop, fd, c->events, on_client, c);
	if (!c->watch) {
		rc = error_set(err, -EIO, "cannot watch the console client: %s", strerror(errno));
		goto fail;
	}
	c->pos = h->total - (give_backlog ? MIN(h->total, (uint64_t)h->backlog) : 0);
	c->next = h->clients;
	h->clients = c;
	if (h->nclients++ == 0 && h->chr.user.connected)
		h->chr.user.connected(h->chr.user.ctx, true);
	flush(c);
	return 0;
fail:
	free(c);
	return rc;
}

/* ---- the guest's side ---- */

static void put_ring(struct hub *h, const uint8_t *data, size_t len)
{
	if (len > h->size) { /* only the end stays */
		h->total += len - h->size;
		data += len - h->size;
		len = h->size;
	}
	while (len) {
		size_t at = (size_t)(h->total % h->size), n = MIN(len, h->size - at);

		memcpy(h->ring + at, data, n);
		h->total += n;
		data += n;
		len -= n;
	}
}

static void write_log(struct hub *h, const uint8_t *data, size_t len)
{
	while (len && h->log_fd >= 0) {
		ssize_t n = write(h->log_fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			log_warn("char", "the console's log file ends here: %s", strerror(errno));
			h->log_fd = -1;
			return;
		}
		data += n;
		len -= (size_t)n;
	}
}

static size_t hub_write(struct char_dev *chr, const uint8_t *data, size_t len)
{
	struct hub *h = container_of(chr, struct hub, chr);

	write_log(h, data, len);
	put_ring(h, data, len);
	for (struct client *c = h->clients; c; c = c->next)
		if (!(c->events & LOOP_OUT))
			flush(c);
	/* Not reaped here: this may be a vCPU's thread inside a device; the loop sees the hang-up. */
	return len;
}

static void give_input(struct hub *h)
{
	while (h->input_len) {
		size_t n = MIN(h->input_len, INPUT_MAX - h->input_head);

		n = MIN(n, chardev_room(&h->chr));
		if (!n)
			return;
		chardev_give(&h->chr, h->input + h->input_head, n);
		h->input_head = (h->input_head + n) % INPUT_MAX;
		h->input_len -= n;
	}
}

static void hub_rx_ready(struct char_dev *chr)
{
	struct hub *h = container_of(chr, struct hub, chr);

	give_input(h);
	if (h->input_len)
		return;
	for (struct client *c = h->clients; c; c = c->next)
		set_events(c, c->events | LOOP_IN);
}

void chardev_hub_input(struct char_dev *hub, const uint8_t *data, size_t len)
{
	struct hub *h = container_of(hub, struct hub, chr);
	size_t room = INPUT_MAX - h->input_len;

	if (len > room) {
		log_warn("char", "%zu bytes of console input dropped: the guest does not read",
			 len - room);
		len = room;
	}
	for (size_t i = 0; i < len; i++)
		h->input[(h->input_head + h->input_len++) % INPUT_MAX] = data[i];
	give_input(h);
}

size_t chardev_hub_pending(const struct char_dev *hub)
{
	const struct hub *h = container_of(hub, struct hub, chr);
	size_t pending = 0;

	for (const struct client *c = h->clients; c; c = c->next) {
		size_t left = (size_t)MIN(h->total - c->pos, (uint64_t)h->size) + c->notice_len -
			      c->notice_sent;

		if (!c->is_gone)
			pending = MAX(pending, left);
	}
	return pending;
}

/* ---- another process goes on ---- */

#define SAVED_FORMAT 1

void chardev_hub_hold(struct char_dev *hub, bool is_held)
{
	struct hub *h = container_of(hub, struct hub, chr);

	h->is_held = is_held;
	for (struct client *c = h->clients; c; c = c->next) {
		if (!is_held && !c->is_gone)
			c->events |= LOOP_OUT; /* there may be something for it */
		loop_fd_modify(c->watch, is_held ? 0 : c->events);
	}
}

unsigned chardev_hub_save(const struct char_dev *hub, struct bytes *out, int *fds)
{
	const struct hub *h = container_of(hub, struct hub, chr);
	uint32_t kept = (uint32_t)MIN(h->total, (uint64_t)h->size);
	unsigned n = 0;

	bytes_put_u8(out, SAVED_FORMAT);
	bytes_put_u32(out, (uint32_t)h->input_len);
	for (size_t i = 0; i < h->input_len; i++)
		bytes_put_u8(out, h->input[(h->input_head + i) % INPUT_MAX]);
	bytes_put_u32(out, kept);
	for (uint64_t pos = h->total - kept; pos < h->total;) {
		const uint8_t *data;
		size_t len = piece(h, pos, &data);

		bytes_put(out, data, len);
		pos += len;
	}
	for (const struct client *c = h->clients; c && n < CHARDEV_CLIENTS_MAX; c = c->next) {
		if (c->is_gone)
			continue;
		bytes_put_u64(out, h->total - c->pos);
		fds[n++] = c->io.fd;
	}
	return n;
}

static int load_text(struct hub *h, struct byte_reader *r)
{
	uint32_t ninput = bytes_get_u32(r);

	if (ninput > INPUT_MAX || !bytes_get(r, h->input, ninput))
		return -EPROTO;
	uint32_t kept = bytes_get_u32(r);

	if (r->is_failed || kept > r->len - r->pos)
		return -EPROTO;
	put_ring(h, r->data + r->pos, kept);
	r->pos += kept;
	h->input_head = 0;
	h->input_len = ninput;
	return 0;
}

int chardev_hub_load(struct char_dev *hub, const uint8_t *data, size_t len, const int *fds,
		     unsigned nfds, struct error *err)
{
	struct hub *h = container_of(hub, struct hub, chr);
	struct byte_reader r = { .data = data, .len = len };
	int result = bytes_get_u8(&r) == SAVED_FORMAT ? load_text(h, &r) : -EPROTO;

	if (result < 0)
		error_set(err, result, "what the console is to go on with is damaged");
	for (unsigned i = 0; i < nfds; i++) {
		uint64_t behind = bytes_get_u64(&r);
		int e = chardev_hub_attach(hub, fds[i], false, err);

		if (e < 0) {
			close(fds[i]);
			result = e;
			continue;
		}
		h->clients->pos = h->total - MIN(behind, MIN(h->total, (uint64_t)h->size));
		flush(h->clients);
	}
	give_input(h);
	return result;
}

void chardev_hub_resize(struct char_dev *hub, unsigned cols, unsigned rows)
{
	if (hub->user.resized)
		hub->user.resized(hub->user.ctx, cols, rows);
}

static void hub_close(struct char_dev *chr)
{
	struct hub *h = container_of(chr, struct hub, chr);

	h->chr.user = (struct char_user){ 0 };
	for (struct client *c = h->clients; c; c = c->next)
		c->is_gone = true;
	reap(h);
	free(h->ring);
	free(h->input);
	free(h);
}

static const struct char_ops hub_ops = { hub_write, hub_rx_ready, hub_close };

int chardev_hub(struct char_dev **out, struct loop *loop, size_t backlog, int log_fd, struct error *err)
{
	struct hub *h = calloc(1, sizeof(*h));

	if (!h)
		return error_set(err, -ENOMEM, "no memory for a console");
	h->chr.ops = &hub_ops;
	h->loop = loop;
	h->backlog = backlog;
	h->size = MAX(backlog, (size_t)RING_MIN);
	h->log_fd = log_fd;
	h->ring = malloc(h->size);
	h->input = malloc(INPUT_MAX);
	if (!h->ring || !h->input) {
		hub_close(&h->chr);
		return error_set(err, -ENOMEM, "no memory for a console of %zu bytes", h->size);
	}
	*out = &h->chr;
	return 0;
}
