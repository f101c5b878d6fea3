/* SPDX-License-Identifier: Apache-2.0 */
#include "net/tunnel.h"

#include <ctype.h>
#include <errno.h>
#include <sys/socket.h>

#include "base/log.h"

#define ACCEPT_REST_MS 100

int tunnel_parse(const char *text, size_t len)
{
	unsigned port = 0;
	size_t i;

	for (i = 0; i < len && isdigit((unsigned char)text[i]); i++)
		port = port * 10 + (unsigned)(text[i] - '0');
	if (i == len && len < TUNNEL_LINE_MAX)
		return 0;
	return i && i + 1 == len && text[i] == '\n' && port >= 1 && port <= 65535 ? (int)port : -EINVAL;
}

static int64_t now_ms(const struct tunnel *t)
{
	return t->now_ms(t->ctx);
}

/* The socket's folder and mode keep others out; this is the second wall. */
static bool is_user(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
	       (peer.uid == geteuid() || peer.uid == 0);
}

static void accept_one(struct tunnel *t)
{
	int fd = accept4(t->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			t->accept_after_ms = now_ms(t) + ACCEPT_REST_MS;
		return;
	}
	if (!is_user(fd)) {
		log_warn("net", "another user is not let in");
		close(fd);
		return;
	}
	t->asking[t->n++] = (struct tunnel_client){ .fd = fd, .until_ms = now_ms(t) + TUNNEL_LIMIT_MS };
}

static void forget(struct tunnel *t, unsigned i)
{
	t->asking[i] = t->asking[--t->n];
}

/* Byte by byte: what is behind the line is the guest's. */
static void read_line(struct tunnel *t, unsigned i)
{
	struct tunnel_client *c = &t->asking[i];
	int fd = c->fd, port = 0;

	while (port == 0) {
		ssize_t n = recv(fd, c->text + c->len, 1, 0);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		c->len += n > 0;
		port = n > 0 ? tunnel_parse(c->text, c->len) : -EINVAL;
	}
	forget(t, i);
	if (port > 0)
		t->call(t->ctx, fd, (uint16_t)port);
	else
		close(fd);
}

unsigned tunnel_fill(struct tunnel *t, struct pollfd pfds[TUNNEL_POLLS], uint32_t *timeout_ms)
{
	t->npolled = 0;
	if (t->fd < 0)
		return 0;
	int64_t now = now_ms(t);
	bool accepts = t->n < TUNNEL_ASKING && now >= t->accept_after_ms;

	if (now < t->accept_after_ms)
		*timeout_ms = (uint32_t)MIN((int64_t)*timeout_ms, t->accept_after_ms - now);
	pfds[0] = (struct pollfd){ .fd = accepts ? t->fd : -1, .events = POLLIN };
	for (; t->npolled < t->n; t->npolled++) {
		const struct tunnel_client *c = &t->asking[t->npolled];

		pfds[1 + t->npolled] = (struct pollfd){ .fd = c->fd, .events = POLLIN };
		*timeout_ms = (uint32_t)MIN((int64_t)*timeout_ms, MAX(c->until_ms - now, (int64_t)0));
	}
	return 1 + t->npolled;
}

void tunnel_polled(struct tunnel *t, const struct pollfd *pfds, unsigned n)
{
	if (!n)
		return;
	for (unsigned i = t->npolled; i-- > 0;) {
		if (pfds[1 + i].revents) {
			read_line(t, i);
		} else if (t->asking[i].until_ms <= now_ms(t)) {
			close(t->asking[i].fd);
			forget(t, i);
		}
	}
	if (pfds[0].revents)
		accept_one(t);
}

void tunnel_close(struct tunnel *t)
{
	while (t->n)
		close(t->asking[--t->n].fd);
	if (t->fd >= 0)
		close(t->fd);
	t->fd = -1;
}
