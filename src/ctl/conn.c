/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections of the control socket.
 *
 * A connection serves one request at a time: the next line is looked at when the answer to the one before
 * has been sent.  A connection is freed only by conn_close; conn_serve and conn_reply may do so.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "char/chardev.h"
#include "ctl/conn.h"
#include "ctl/migrate.h"

static void drop_fds(struct ctl_conn *conn)
{
	while (conn->nfds)
		close(conn->fds[--conn->nfds]);
}

unsigned conn_take_fds(struct ctl_conn *conn, int fds[CTL_FDS_MAX])
{
	unsigned n = conn->nfds;

	memcpy(fds, conn->fds, n * sizeof(*fds));
	conn->nfds = 0;
	return n;
}

void conn_close(struct ctl_conn *conn)
{
	for (struct ctl_conn **p = &conn->ctl->conns; *p; p = &(*p)->next) {
		if (*p == conn) {
			*p = conn->next;
			conn->ctl->nconns--;
			break;
		}
	}
	agent_cancel(conn->job);
	if (conn->awaits_snapper)
		snapper_forget(conn->ctl->cfg.snapper, conn);
	if (conn->awaits_migrator)
		migrator_forget(conn->ctl->cfg.migrator, conn);
	drop_fds(conn);
	loop_fd_remove(conn->watch);
	vtimer_destroy(conn->timer);
	if (conn->fd >= 0)
		close(conn->fd);
	bytes_free(&conn->in);
	bytes_free(&conn->out);
	json_decref(conn->does_what);
	free(conn);
}

/* Its answer comes later. */
static bool is_pending(const struct ctl_conn *conn)
{
	return conn->job || conn->awaits_snapper || conn->awaits_migrator;
}

static bool has_output(const struct ctl_conn *conn)
{
	return conn->out_off < conn->out.len;
}

/* What the client owes us, and until when; what we wait for on its descriptor. */
void conn_update(struct ctl_conn *conn)
{
	/* Who gets events may read them when it likes: what waits for it is bounded. */
	int64_t wait_ns = is_pending(conn)	? 0
			  : has_output(conn)	? (conn->is_subscribed ? 0 : CTL_WRITE_TIMEOUT_NS)
			  : conn->in.len	? CTL_LINE_TIMEOUT_NS
			  : conn->is_subscribed ? 0
						: CTL_IDLE_TIMEOUT_NS;

	if (wait_ns)
		vtimer_arm(conn->timer, vclock_now_ns(conn->ctl->cfg.clock) + wait_ns);
	else
		vtimer_cancel(conn->timer);
	loop_fd_modify(conn->watch,
		       LOOP_HUP | (conn->is_eof ? 0 : LOOP_IN) | (has_output(conn) ? LOOP_OUT : 0));
}

/* 0, or -errno: the client is gone. */
int conn_flush(struct ctl_conn *conn)
{
	for (;;) {
		if (!has_output(conn)) {
			bytes_free(&conn->out);
			conn->out_off = 0;
			if (!conn->nlost)
				return 0;
			events_put_lost(conn);
		}
		ssize_t n = send(conn->fd, conn->out.data + conn->out_off,
				 conn->out.len - conn->out_off, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		conn->out_off += (size_t)n;
	}
}

/* Queue the answer. */
static void conn_put_reply(struct ctl_conn *conn, json_t *reply, const struct error *err)
{
	json_t *obj = reply && !err ? json_copy(reply) : json_object();
	char *text;

	(void)json_object_set_new(obj, "ok", json_boolean(!err));
	if (err && json_object_set_new(obj, "error", json_string(err->text)) < 0)
		(void)json_object_set_new(
			obj, "error",
			json_string("it failed; the reason names a file that is not UTF-8"));
	text = json_dumps(obj, JSON_COMPACT);
	if (text)
		bytes_put(&conn->out, text, strlen(text));
	else
		conn->out.is_failed = true;
	bytes_put_u8(&conn->out, '\n');
	free(text);
	json_decref(obj);
}

/* The connection leaves us: socket, and what was typed already, go to the console. */
static void become_console(struct ctl_conn *conn)
{
	struct char_dev *hub = conn->ctl->cfg.console;
	struct error err;
	int fd = conn->fd;

	loop_fd_remove(conn->watch);
	conn->watch = NULL;
	conn->fd = -1;
	if (chardev_hub_attach(hub, fd, conn->gives_backlog, &err) < 0) {
		log_warn("ctl", "console: %s", err.text);
		close(fd);
	} else if (conn->in.len) {
		chardev_hub_input(hub, conn->in.data, conn->in.len);
	}
}

/* Serve one line.  Returns false when the connection becomes the console. */
static bool serve_line(struct ctl_conn *conn, const char *line, size_t len)
{
	struct error err = { "it failed without a reason" };
	json_t *request = NULL, *reply = json_object();
	const struct ctl_command *cmd = ctl_parse(line, len, &request, &err);
	int r = cmd ? cmd->run(conn, request, reply, &err) : -EINVAL;

	json_decref(request);
	if (r != CTL_PENDING)
		conn_put_reply(conn, reply, r < 0 ? &err : NULL);
	json_decref(reply);
	return r != CTL_BECOMES_CONSOLE;
}

/* Serve what there is.  Returns false when the connection was closed. */
static bool conn_serve(struct ctl_conn *conn)
{
	while (!is_pending(conn) && !has_output(conn)) {
		uint8_t *nl = conn->in.len ? memchr(conn->in.data, '\n', conn->in.len) : NULL;

		if (!nl)
			break;
		size_t len = (size_t)(nl - conn->in.data);
		bool is_ours = serve_line(conn, (char *)conn->in.data, len);

		drop_fds(conn); /* that it has not taken */
		conn->in.len -= len + 1;
		memmove(conn->in.data, nl + 1, conn->in.len);
		if (conn->out.is_failed || conn_flush(conn) < 0 || (!is_ours && has_output(conn))) {
			conn_close(conn);
			return false;
		}
		if (!is_ours) {
			become_console(conn);
			conn_close(conn);
			return false;
		}
	}
	if (conn->is_eof && !conn->is_subscribed && !is_pending(conn) && !has_output(conn)) {
		conn_close(conn);
		return false;
	}
	conn_update(conn);
	return true;
}

void conn_reply(struct ctl_conn *conn, json_t *result, const struct error *err)
{
	conn_put_reply(conn, result, err);
	if (conn->out.is_failed || conn_flush(conn) < 0)
		conn_close(conn);
	else
		conn_serve(conn);
}

/* What came along; more than there is room for is refused. */
static int keep_fds(struct ctl_conn *conn, struct msghdr *msg)
{
	int r = msg->msg_flags & MSG_CTRUNC ? -EMSGSIZE : 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (conn->nfds < CTL_FDS_MAX)
				conn->fds[conn->nfds++] = fd;
			else {
				close(fd);
				r = -EMSGSIZE;
			}
		}
	}
	return r;
}

static ssize_t receive_some(struct ctl_conn *conn, uint8_t *buf, size_t cap)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(CTL_FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { buf, cap };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n >= 0 && keep_fds(conn, &msg) < 0) {
		errno = EMSGSIZE;
		return -1;
	}
	return n;
}

/* 0; -errno: gone, or sends what nobody should. */
static int conn_receive(struct ctl_conn *conn)
{
	uint8_t buf[16384];

	for (unsigned i = 0; i < 16; i++) { /* then the others' turn */
		ssize_t n = receive_some(conn, buf, sizeof(buf));

		if (n == 0) {
			conn->is_eof = true;
			return 0;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		if (conn->in.len + (size_t)n > CTL_LINE_MAX)
			return -EMSGSIZE;
		bytes_put(&conn->in, buf, (size_t)n);
		if (conn->in.is_failed)
			return -ENOMEM;
	}
	return 0;
}

static void on_conn(void *arg, int fd, unsigned events)
{
	struct ctl_conn *conn = arg;
	int r = 0;

	if (events & LOOP_OUT)
		r = conn_flush(conn);
	if (r == 0 && (events & (LOOP_IN | LOOP_HUP)))
		r = conn_receive(conn);
	/* A client that asked and left at once is served still; who waits for nobody's answer is not. */
	if (r < 0 || (conn_serve(conn) && (events & (LOOP_HUP | LOOP_ERR))))
		conn_close(conn);
}

static void on_timer(void *arg)
{
	struct ctl_conn *conn = arg;

	log_debug("ctl", "a client was too slow and is dropped");
	conn_close(conn);
}

static struct ctl_conn *conn_create(struct ctl *c, int fd)
{
	struct ctl_conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		return NULL;
	conn->ctl = c;
	conn->fd = fd;
	conn->timer = vtimer_create(c->loop, c->cfg.clock, on_timer, conn);
	conn->watch = loop_fd_add(c->loop, fd, LOOP_IN, on_conn, conn);
	if (!conn->timer || !conn->watch) {
		loop_fd_remove(conn->watch);
		vtimer_destroy(conn->timer);
		free(conn);
		return NULL;
	}
	conn->next = c->conns;
	c->conns = conn;
	c->nconns++;
	return conn;
}

/* The newest idle ones stay: a client that hoards connections loses its own oldest. */
static void make_room(struct ctl *c)
{
	struct ctl_conn *oldest = NULL, *listener = NULL;

	if (c->nconns < CTL_MAX_CLIENTS)
		return;
	for (struct ctl_conn *conn = c->conns; conn; conn = conn->next) {
		if (conn->is_subscribed && !is_pending(conn))
			listener = conn;
		else if (!is_pending(conn) && !has_output(conn))
			oldest = conn;
	}
	oldest = oldest ? oldest : listener;
	if (oldest)
		conn_close(oldest);
}

static void on_listen(void *arg, int fd, unsigned events)
{
	struct ctl *c = arg;
	int conn_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (conn_fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			log_warn("ctl", "accept: %s", strerror(errno));
		return;
	}
	make_room(c);
	struct ctl_conn *conn = c->nconns < CTL_MAX_CLIENTS ? conn_create(c, conn_fd) : NULL;

	if (conn)
		conn_update(conn);
	else
		close(conn_fd);
}

int ctl_listen(struct ctl *c, int listen_fd, struct error *err)
{
	c->listen_fd = listen_fd;
	c->watch = loop_fd_add(c->loop, listen_fd, LOOP_IN, on_listen, c);
	return c->watch ? 0 : error_set(err, -ENOMEM, "no memory for the control socket");
}

int ctl_hold(struct ctl *c, bool is_held)
{
	if (c->watch)
		loop_fd_modify(c->watch, is_held ? 0 : LOOP_IN);
	return c->listen_fd;
}

int ctl_create(struct ctl **out, int listen_fd, const struct ctl_config *cfg, struct error *err)
{
	struct ctl *c = calloc(1, sizeof(*c));

	if (!c) {
		if (listen_fd >= 0)
			close(listen_fd);
		return error_set(err, -ENOMEM, "no memory for the control socket");
	}
	c->cfg = *cfg;
	c->listen_fd = -1;
	c->loop = machine_loop(cfg->machine);
	c->engine_reason = strdup(cfg->engine_reason ? cfg->engine_reason : "");
	c->confinement = strdup(cfg->confinement ? cfg->confinement : "");
	int r = listen_fd >= 0 ? ctl_listen(c, listen_fd, err) : 0;

	if (r < 0 || !c->engine_reason || !c->confinement) {
		ctl_destroy(c);
		return error_set(err, -ENOMEM, "no memory for the control socket");
	}
	events_start(c);
	*out = c;
	return 0;
}

void ctl_destroy(struct ctl *c)
{
	if (!c)
		return;
	events_stop(c);
	while (c->conns)
		conn_close(c->conns);
	loop_fd_remove(c->watch);
	if (c->listen_fd >= 0)
		close(c->listen_fd);
	free(c->engine_reason);
	free(c->confinement);
	free(c);
}
