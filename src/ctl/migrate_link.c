/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migrate_link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

int64_t migrate_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

int migrate_link_init(struct migrate_link *l, int fd, int stop_fd, bool is_source, struct error *err)
{
	int type = 0, flags = fcntl(fd, F_GETFL);
	socklen_t len = sizeof(type);

	*l = (struct migrate_link){ .fd = fd, .stop_fd = stop_fd, .is_source = is_source };
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM)
		return error_set(err, -EINVAL, "descriptor %d is no stream socket", fd);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return error_set(err, -errno, "descriptor %d cannot be used: %s", fd, strerror(errno));
	l->payload = malloc(MIGRATE_PAYLOAD_MAX);
	return l->payload ? 0 : error_set(err, -ENOMEM, "no memory for a link");
}

void migrate_link_close(struct migrate_link *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
	free(l->payload);
	l->payload = NULL;
	bytes_free(&l->out);
}

static int lost(int r, struct error *err)
{
	switch (r) {
	case -EPIPE:
	case -ECONNRESET:
		return error_set(err, -EPIPE, "the link was lost: the peer is gone");
	case -ETIMEDOUT:
		return error_set(err, r, "the link was lost: nothing has come through for a while");
	case -ECANCELED:
		return error_set(err, r, "canceled");
	default:
		return error_set(err, r, "the link was lost: %s", strerror(-r));
	}
}

/* Until @events, or stopped. */
static int await(const struct migrate_link *l, short events, int timeout_ms)
{
	struct pollfd p[2] = { { .fd = l->fd, .events = events },
			       { .fd = l->stop_fd, .events = POLLIN } };
	int n;

	do
		n = poll(p, 2, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (p[1].revents)
		return -ECANCELED;
	return n ? 0 : -ETIMEDOUT;
}

int migrate_link_send(struct migrate_link *l, struct bytes *b, struct error *err)
{
	size_t done = 0;

	if (b->is_failed)
		return error_set(err, -ENOMEM, "no memory for what is to be sent");
	while (done < b->len) {
		ssize_t n = send(l->fd, b->data + done, b->len - done, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0) {
			done += (size_t)n;
			l->sent_bytes += (uint64_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return lost(-errno, err);
		int64_t before = migrate_now_ns();
		int r = await(l, POLLOUT, MIGRATE_SILENCE_MS);

		l->blocked_ns += migrate_now_ns() - before;
		if (r < 0)
			return lost(r, err);
	}
	b->len = 0;
	return 0;
}

int migrate_link_tell(struct migrate_link *l, enum migrate_record type, const void *payload,
		      size_t len, struct error *err)
{
	_cleanup_bytes_ struct bytes b = { 0 };

	migrate_record_put(&b, type, &l->seq_out, payload, len);
	return migrate_link_send(l, &b, err);
}

static int receive_all(struct migrate_link *l, uint8_t *to, size_t len, int timeout_ms, struct error *err)
{
	while (len) {
		ssize_t n = recv(l->fd, to, len, MSG_DONTWAIT);

		if (n > 0) {
			to += n;
			len -= (size_t)n;
			timeout_ms = MIGRATE_SILENCE_MS;
			continue;
		}
		if (n == 0)
			return lost(-EPIPE, err);
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return lost(-errno, err);
		int r = await(l, POLLIN, timeout_ms);

		if (r < 0)
			return lost(r, err);
	}
	return 0;
}

int migrate_link_receive(struct migrate_link *l, struct migrate_header *h, int timeout_ms,
			 struct error *err)
{
	uint8_t raw[MIGRATE_HEADER_BYTES];

	do {
		int r = receive_all(l, raw, sizeof(raw), timeout_ms, err);

		if (r == 0)
			r = migrate_header_parse(h, raw, l->seq_in, !l->is_source, err);
		if (r == 0)
			r = receive_all(l, l->payload, h->len, MIGRATE_SILENCE_MS, err);
		if (r == 0)
			r = migrate_payload_check(h, raw, l->payload, err);
		if (r < 0)
			return r;
		l->seq_in++;
	} while (h->type == MIGRATE_R_PING);
	return 0;
}

void migrate_link_text(const struct migrate_link *l, const struct migrate_header *h, struct error *out)
{
	size_t n = MIN((size_t)h->len, sizeof(out->text) - 1);

	for (size_t i = 0; i < n; i++) {
		uint8_t c = l->payload[i];

		out->text[i] = c < ' ' || c == 0x7f ? '?' : (char)c;
	}
	out->text[n] = 0;
	if (!n)
		error_set(out, 0, "it gave no reason");
}
