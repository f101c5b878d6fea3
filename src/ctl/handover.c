/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "base/host.h"
#include "mem/ram.h"

#define FORMAT	    1
#define FDS_MAX	    (4 + MACHINE_MAX_NICS + CHARDEV_CLIENTS_MAX)
#define MESSAGE_MAX 8192
#define SLICE_NS    2000000LL /* that the machine is frozen, about */
#define GAP_NS	    6000000LL /* that it runs in between */

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_all(int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		close_fd(&fds[i]);
}

void handover_ends_close(struct handover_ends *e)
{
	close_fd(&e->hatch);
	close_fd(&e->ram);
	close_fd(&e->token);
}

int handover_claim(int token)
{
	eventfd_t value;

	return eventfd_read(token, &value) == 0 && value == 1 ? 0 : -ECANCELED;
}

/* ---- messages ---- */

/* @json is stolen. */
static int send_message(int hatch, json_t *json, const int *fds, unsigned nfds, struct error *err)
{
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int) * FDS_MAX)];
	} control = { 0 };
	struct iovec iov = { text, text ? strlen(text) : 0 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	json_decref(json);
	if (!text)
		return error_set(err, -ENOMEM, "no memory to hand the machine over");
	if (nfds) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		control.hdr = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * nfds),
						.cmsg_level = SOL_SOCKET,
						.cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.hdr), fds, sizeof(int) * nfds);
	}
	do
		n = sendmsg(hatch, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n >= 0 ? 0
		      : error_set(err, -errno, "the machine's descriptors can't be handed over: %s",
				  strerror(errno));
}

static unsigned take_fds(struct msghdr *msg, int *fds)
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		unsigned have = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		have = MIN(have, FDS_MAX - n);
		memcpy(fds + n, CMSG_DATA(c), have * sizeof(int));
		n += have;
	}
	return n;
}

struct message {
	char text[MESSAGE_MAX];
	size_t len;
	int fds[FDS_MAX];
	unsigned nfds;
};

/* 0 or -errno, with no descriptor. */
static int receive_message(int hatch, struct message *m, struct error *err)
{
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int) * FDS_MAX)];
	} control;
	struct iovec iov = { m->text, MESSAGE_MAX };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct pollfd p = { .fd = hatch, .events = POLLIN };
	static const char silent[] = "the machine's old process does not hand over what it has";
	int r;

	do
		r = poll(&p, 1, HANDOVER_MS);
	while (r < 0 && errno == EINTR);
	ssize_t n = r > 0 ? recvmsg(hatch, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) : -1;

	if (n < 0)
		return error_set(err, r == 0 ? -ETIMEDOUT : -EPIPE, "%s", silent);
	m->len = (size_t)n;
	m->nfds = take_fds(&msg, m->fds);
	if (n > 0 && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return 0;
	/* An empty one, which looks like the end, may have come with some. */
	close_all(m->fds, m->nfds);
	return n == 0 ? error_set(err, -EPIPE, "%s", silent)
		      : error_set(err, -EMSGSIZE,
				  "the machine's old process hands over too much at a time");
}

/* @r: what became of parsing @m; whose descriptors are taken, or closed. */
static int understood(struct message *m, int r, struct error *err)
{
	if (r == 0)
		return 0;
	close_all(m->fds, m->nfds);
	return error_set(
		err, -EPROTO,
		"the machine's old process hands over something that is not understood here");
}

/* A message of a format that is known; NULL: it is none. */
static json_t *load(const char *text, size_t len)
{
	json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);

	if (json && json_integer_value(json_object_get(json, "format")) == FORMAT)
		return json;
	json_decref(json);
	return NULL;
}

/* ---- cards ---- */

int handover_send_cards(int hatch, const struct handover_cards *c, struct error *err)
{
	json_t *macs = json_array();

	for (unsigned i = 0; i < c->n; i++) {
		const uint8_t *m = c->macs[i];
		char text[18];

		snprintf(text, sizeof(text), "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2],
			 m[3], m[4], m[5]);
		if (json_array_append_new(macs, json_string(text)) < 0)
			return error_set(err, -ENOMEM, "no memory to hand the machine over");
	}
	return send_message(
		hatch, json_pack("{s:i, s:b, s:o}", "format", FORMAT, "tap", c->is_tap, "cards", macs),
		c->fds, c->is_tap ? c->n : 0, err);
}

static int get_mac(uint8_t out[6], const char *text)
{
	unsigned m[6];
	int end = 0;

	if (!text ||
	    sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5], &end) != 6 ||
	    text[end])
		return -EPROTO;
	for (unsigned i = 0; i < 6; i++)
		out[i] = (uint8_t)m[i];
	return 0;
}

int handover_parse_cards(const char *text, size_t len, const int *fds, unsigned nfds,
			 struct handover_cards *c)
{
	json_t *json = load(text, len), *macs = json_object_get(json, "cards");
	size_t n = json_array_size(macs);
	int r = 0;

	*c = (struct handover_cards){ .is_tap = json_is_true(json_object_get(json, "tap")) };
	if (!json_is_array(macs) || n > MACHINE_MAX_NICS || nfds != (c->is_tap ? n : 0))
		r = -EPROTO;
	for (size_t i = 0; r == 0 && i < n; i++)
		r = get_mac(c->macs[i], json_string_value(json_array_get(macs, i)));
	for (unsigned i = 0; i < MACHINE_MAX_NICS; i++)
		c->fds[i] = r == 0 && i < nfds ? fds[i] : -1;
	c->n = r == 0 ? (unsigned)n : 0;
	json_decref(json);
	return r;
}

int handover_receive_cards(int hatch, struct handover_cards *c, struct error *err)
{
	struct message m;
	int r = receive_message(hatch, &m, err);

	return r < 0 ? r : understood(&m, handover_parse_cards(m.text, m.len, m.fds, m.nfds, c), err);
}

/* ---- descriptors ---- */

void handover_init(struct handover *h)
{
	*h = (struct handover){ .lock = -1, .listen = -1, .status = -1, .lifeline = -1 };
}

void handover_close(struct handover *h)
{
	close_fd(&h->lock);
	close_fd(&h->listen);
	close_fd(&h->status);
	close_fd(&h->lifeline);
	close_all(h->cards, h->ncards);
	close_all(h->clients, h->nclients);
	handover_init(h);
}

static const char *const names[] = { "lock", "listen", "status", "lifeline" };

/* Of what is there once. */
static int *named(struct handover *h, const char *name)
{
	int *const fds[ARRAY_SIZE(names)] = { &h->lock, &h->listen, &h->status, &h->lifeline };

	for (unsigned i = 0; name && i < ARRAY_SIZE(names); i++)
		if (!strcmp(name, names[i]))
			return fds[i];
	return NULL;
}

struct list {
	json_t *names;
	int fds[FDS_MAX];
	unsigned n;
};

static void add(struct list *l, const char *name, int fd)
{
	if (fd >= 0 && json_array_append_new(l->names, json_string(name)) == 0)
		l->fds[l->n++] = fd;
}

int handover_send(int hatch, const struct handover *h, struct error *err)
{
	struct handover copy = *h;
	struct list l = { .names = json_array() };

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
		add(&l, names[i], *named(&copy, names[i]));
	for (unsigned i = 0; i < h->ncards; i++)
		add(&l, "card", h->cards[i]);
	for (unsigned i = 0; i < h->nclients; i++)
		add(&l, "client", h->clients[i]);
	return send_message(hatch, json_pack("{s:i, s:o}", "format", FORMAT, "fds", l.names), l.fds,
			    l.n, err);
}

static int put(struct handover *h, const char *name, int fd)
{
	int *one = named(h, name);

	if (one && *one < 0)
		*one = fd;
	else if (name && !strcmp(name, "card") && h->ncards < MACHINE_MAX_NICS)
		h->cards[h->ncards++] = fd;
	else if (name && !strcmp(name, "client") && h->nclients < CHARDEV_CLIENTS_MAX)
		h->clients[h->nclients++] = fd;
	else
		return -EPROTO;
	return 0;
}

int handover_parse(const char *text, size_t len, const int *fds, unsigned nfds, struct handover *h)
{
	json_t *json = load(text, len), *list = json_object_get(json, "fds");
	int r = json_is_array(list) && json_array_size(list) == nfds ? 0 : -EPROTO;

	handover_init(h);
	for (unsigned i = 0; r == 0 && i < nfds; i++)
		r = put(h, json_string_value(json_array_get(list, i)), fds[i]);
	if (r < 0)
		handover_init(h);
	json_decref(json);
	return r;
}

int handover_receive(int hatch, struct handover *h, struct error *err)
{
	struct message m;
	int r = receive_message(hatch, &m, err);

	return r < 0 ? r : understood(&m, handover_parse(m.text, m.len, m.fds, m.nfds, h), err);
}

/* ---- memory ---- */

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

typedef int (*piece_fn)(struct guest_ram *ram, uint64_t offset, uint64_t len, int fd, struct error *err);

/* With the lock, frozen: from *@at on, for a slice. */
static int do_slice(struct guest_ram *ram, uint64_t *at, uint64_t end, int fd, piece_fn fn,
		    struct error *err)
{
	int64_t until = now_ns() + SLICE_NS;
	int r = 0;

	do {
		uint64_t n = MIN(RAM_PIECE_BYTES, end - *at);

		r = fn(ram, *at, n, fd, err);
		if (r == 0)
			*at += n;
	} while (r == 0 && *at < end && now_ns() < until);
	return r;
}

static void count(struct handover_ram *h, uint64_t bytes, uint64_t took_ns)
{
	h->done_bytes += bytes;
	h->stood_ns += took_ns;
	if (took_ns > h->longest_ns)
		h->longest_ns = took_ns;
}

/* Moves *@at, h->from or h->to, to @end. */
static int do_all(struct machine *m, int fd, piece_fn fn, const _Atomic bool *stop,
		  struct handover_ram *h, uint64_t *at, uint64_t end, struct error *err)
{
	const struct timespec gap = { .tv_nsec = GAP_NS };
	int r = 0;

	while (r == 0 && *at < end) {
		if (stop && *stop)
			return error_set(err, -ECANCELED, "canceled");
		uint64_t before = *at;

		pthread_mutex_lock(machine_lock(m));
		int64_t from = now_ns();

		machine_freeze(m);
		r = do_slice(machine_ram(m), at, end, fd, fn, err);
		/* One whose memory is gone is not to run on. */
		if (r < 0 && r != -ENOMEM && fn == ram_unshare)
			machine_end(m, END_FAILED, 1, err->text);
		machine_thaw(m);
		count(h, *at - before, (uint64_t)(now_ns() - from));
		pthread_mutex_unlock(machine_lock(m));
		if (*at < end)
			nanosleep(&gap, NULL);
	}
	return r;
}

int handover_share_ram(struct machine *m, int fd, const _Atomic bool *stop, struct handover_ram *h,
		       struct error *err)
{
	struct guest_ram *ram = machine_ram(m);

	if (host.ftruncate(fd, (off_t)ram->size_bytes) < 0)
		return error_set(err, -errno, "guest memory can't be handed over: %s", strerror(errno));
	ram->is_shared = true;
	return do_all(m, fd, ram_share, stop, h, &h->to, ram->size_bytes, err);
}

int handover_adopt_ram(struct machine *m, int fd, struct handover_ram *h, struct error *err)
{
	struct guest_ram *ram = machine_ram(m);
	struct stat st;

	/* What shrinks would end this process. */
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0 || fstat(fd, &st) < 0 ||
	    (uint64_t)st.st_size != ram->size_bytes)
		return error_set(err, -EPROTO, "what is handed over is not the machine's memory");
	int r = ram_adopt(ram, fd, err);

	if (r < 0)
		return r;
	h->from = 0;
	h->to = ram->size_bytes;
	ram->is_shared = true;
	machine_ram_replaced(m);
	return 0;
}

int handover_unshare_ram(struct machine *m, int fd, const _Atomic bool *stop,
			 struct handover_ram *h, struct error *err)
{
	const struct timespec pause = { .tv_nsec = 100000000 };
	int r;

	h->done_bytes = h->longest_ns = h->stood_ns = 0;
	/* Memory that the host does not have now it may have in a moment. */
	while ((r = do_all(m, fd, ram_unshare, stop, h, &h->from, h->to, err)) == -ENOMEM)
		nanosleep(&pause, NULL);
	if (r == 0)
		machine_ram(m)->is_shared = false;
	return r;
}
