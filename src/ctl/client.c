/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/bytes.h"
#include "ctl/client.h"
#include "ctl/paths.h"
#include "ctl/socket.h"

int client_connect(const char *name, struct error *err)
{
	int r = paths_check_name("a machine", name, err);

	if (r < 0)
		return r;
	_cleanup_free_ char *path = paths_run(name, "control.sock", err);
	_cleanup_free_ char *config = path ? paths_vm(name, "machine.json", err) : NULL;

	if (!path || !config)
		return -EACCES;
	int fd = socket_connect(path, err);

	if (fd != -ENOENT && fd != -ECONNREFUSED)
		return fd;
	if (access(config, F_OK) < 0)
		return error_set(err, fd,
				 "there is no machine \"%s\"; viv list shows those there are", name);
	return error_set(err, fd, "machine \"%s\" is not running; viv start %s starts it", name, name);
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* Wait for @events; 0, -ETIMEDOUT, -errno. */
static int wait_for(int fd, short events, int64_t deadline_ms)
{
	for (;;) {
		int64_t left = deadline_ms < 0 ? -1 : deadline_ms - now_ms();
		struct pollfd p = { .fd = fd, .events = events };

		if (deadline_ms >= 0 && left <= 0)
			return -ETIMEDOUT;
		int n = poll(&p, 1, left > 3600000 ? 3600000 : (int)left);

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

static int send_all(int fd, const char *p, size_t len, int64_t deadline_ms)
{
	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0) {
			p += n;
			len -= (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		int r = wait_for(fd, POLLOUT, deadline_ms);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Byte-exact up to the newline: what follows a console's reply is the console's. */
static int receive_line(int fd, struct bytes *line, int64_t deadline_ms)
{
	char buf[65536];

	for (;;) {
		int r = wait_for(fd, POLLIN, deadline_ms);

		if (r < 0)
			return r;
		ssize_t n = recv(fd, buf, sizeof(buf), MSG_PEEK | MSG_DONTWAIT);

		if (n == 0)
			return -EPIPE;
		if (n < 0) {
			if (errno == EAGAIN || errno == EINTR)
				continue;
			return errno == ECONNRESET ? -EPIPE : -errno;
		}
		char *nl = memchr(buf, '\n', (size_t)n);
		size_t take = nl ? (size_t)(nl - buf) + 1 : (size_t)n;

		n = recv(fd, buf, take, 0);
		if (n != (ssize_t)take)
			return -EIO;
		bytes_put(line, buf, take);
		if (line->is_failed || line->len > CLIENT_REPLY_MAX)
			return -EMSGSIZE;
		if (nl)
			return 0;
	}
}

static int explain(int r, struct error *err)
{
	switch (r) {
	case -ETIMEDOUT:
		return error_set(err, r, "the machine did not answer in time");
	case -EPIPE:
		return error_set(err, r, "the machine ended");
	default:
		return error_set(err, r, "talking to the machine failed: %s", strerror(-r));
	}
}

/* For who writes programs that speak the protocol, and for tests of it. */
static void trace(int fd, char direction, const char *text, size_t len)
{
	const char *path = getenv("VIVARIUM_TRACE");
	_cleanup_bytes_ struct bytes line = { 0 };

	if (!path || !path[0])
		return;
	_cleanup_close_ int out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	bytes_printf(&line, "%d %d %c ", getpid(), fd, direction);
	bytes_put(&line, text, len);
	bytes_put_u8(&line, '\n');
	ssize_t r = out >= 0 && !line.is_failed ? write(out, line.data, line.len) : 0;
	(void)r; /* the command goes on without */
}

/* The first byte of @p with the descriptors. */
static int send_first(int fd, const char *p, const int *fds, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(CLIENT_MAX_FDS * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)p, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = CMSG_SPACE(nfds * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	if (nfds > CLIENT_MAX_FDS)
		return -E2BIG;
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
	memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	return sendmsg(fd, &msg, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

int client_send(int fd, json_t *request, int timeout_ms, struct error *err)
{
	return client_send_fds(fd, request, NULL, 0, timeout_ms, err);
}

int client_send_fds(int fd, json_t *request, const int *fds, unsigned nfds, int timeout_ms,
		    struct error *err)
{
	int64_t deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
	_cleanup_free_ char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;

	json_decref(request);
	if (!text)
		return error_set(err, -EINVAL, "an argument is not valid UTF-8, or there is no memory");
	trace(fd, '>', text, strlen(text));
	int r = nfds ? send_first(fd, text, fds, nfds) : 0;

	if (r == 0)
		r = send_all(fd, text + !!nfds, strlen(text) - !!nfds, deadline_ms);
	if (r == 0)
		r = send_all(fd, "\n", 1, deadline_ms);
	return r < 0 ? explain(r, err) : 0;
}

int client_receive_any(int fd, int timeout_ms, json_t **message, struct error *err)
{
	int64_t deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
	_cleanup_bytes_ struct bytes line = { 0 };
	int r = receive_line(fd, &line, deadline_ms);

	if (r < 0)
		return explain(r, err);
	trace(fd, '<', (char *)line.data, line.len - 1);
	json_t *json = json_loadb((char *)line.data, line.len, 0, NULL);

	if (!json_is_object(json)) {
		json_decref(json);
		return error_set(err, -EPROTO, "the machine's answer makes no sense");
	}
	*message = json;
	return 0;
}

int client_receive(int fd, int timeout_ms, json_t **reply, struct error *err)
{
	json_t *json;
	int r = client_receive_any(fd, timeout_ms, &json, err);

	if (r < 0)
		return r;
	if (!json_is_true(json_object_get(json, "ok"))) {
		const char *text_in = json_string_value(json_object_get(json, "error"));

		error_set(err, -EREMOTEIO, "%s",
			  text_in ? text_in : "the machine refused without a reason");
		json_decref(json);
		return -EREMOTEIO;
	}
	*reply = json;
	return 0;
}

int client_call(int fd, json_t *request, int timeout_ms, json_t **reply, struct error *err)
{
	int64_t deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
	int r = client_send(fd, request, timeout_ms, err);

	if (r < 0)
		return r;
	return client_receive(fd, deadline_ms < 0 ? -1 : (int)MAX(deadline_ms - now_ms(), (int64_t)0),
			      reply, err);
}

int client_request(const char *name, json_t *request, int timeout_ms, json_t **reply, struct error *err)
{
	int fd = client_connect(name, err);

	if (fd < 0) {
		json_decref(request);
		return fd;
	}
	int r = client_call(fd, request, timeout_ms, reply, err);

	close(fd);
	return r;
}
