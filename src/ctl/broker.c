/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's process: one message, one answer. */
#include "ctl/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"

static void close_all(int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

int broker_parse(const uint8_t *data, size_t len, struct broker_request *rq, const char *names[2])
{
	static const uint8_t zero[sizeof(rq->zero)];

	names[0] = names[1] = NULL;
	if (len < sizeof(*rq) || len > BROKER_REQUEST_MAX)
		return -EINVAL;
	memcpy(rq, data, sizeof(*rq));
	size_t at = sizeof(*rq);

	if (rq->op >= BROKER_NOPS || rq->has_dir[0] > 1 || rq->has_dir[1] > 1 ||
	    memcmp(rq->zero, zero, sizeof(zero)) != 0)
		return -EINVAL;
	for (unsigned i = 0; i < 2; i++) {
		size_t n = rq->len[i];

		if (!n)
			continue;
		/* exactly one NUL, at its end */
		if (n > PATH_MAX || n > len - at || memchr(data + at, 0, n) != data + at + n - 1)
			return -EINVAL;
		names[i] = (const char *)data + at;
		at += n;
	}
	return at == len ? 0 : -EINVAL;
}

/* Never waits: a machine that doesn't read gets no answer. */
static void send_reply(int to, const struct broker_reply *reply, const void *text, const int *fds,
		       unsigned nfds)
{
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int) * BROKER_FDS_MAX)];
	} control = { 0 };
	struct iovec iov[2] = { { (void *)(uintptr_t)reply, sizeof(*reply) },
				{ (void *)(uintptr_t)text, reply->len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = reply->len ? 2 : 1 };

	if (nfds) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		control.hdr = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * nfds),
						.cmsg_level = SOL_SOCKET,
						.cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.hdr), fds, sizeof(int) * nfds);
	}
	if (sendmsg(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_debug("broker", "an answer went nowhere: %s", strerror(errno));
}

void broker_start_init(struct broker_start *s)
{
	*s = (struct broker_start){ .door = -1, .listen_fd = -1, .log_fds = { -1, -1 } };
}

void broker_send_start(int reply_to, const struct broker_start *start)
{
	struct broker_reply reply = { .len = sizeof(*start) };
	int fds[BROKER_FDS_MAX] = { start->door, start->listen_fd, start->log_fds[0], start->log_fds[1] };
	unsigned n = 4;

	for (unsigned i = 0; i < start->ncards; i++)
		fds[n++] = start->cards[i];
	for (unsigned i = 0; i < start->nshares; i++)
		fds[n++] = start->shares[i];
	if (start->net_ready_fd)
		fds[n++] = start->net_ready_fd;
	send_reply(reply_to, &reply, start, fds, n);
}

void broker_send_failure(int reply_to, int result, const struct error *err)
{
	struct broker_reply reply = { .result = result, .len = (uint32_t)strlen(err->text) + 1 };

	send_reply(reply_to, &reply, err->text, NULL, 0);
}

static void answer_copy(struct broker_policy *p, const char *name, pid_t pid, int to,
			broker_make_fn make, void *arg)
{
	struct broker_reply reply = { .result = name && make ? broker_policy_hand_over(p, name)
							     : -EACCES };

	if (reply.result == 0)
		reply.result = make(arg, name, pid, to);
	if (reply.result < 0)
		send_reply(to, &reply, NULL, NULL, 0);
}

/* @fds: the reply socket, then folders; -1 where there is none. */
static void answer(struct broker_policy *p, const uint8_t *data, size_t len, const int fds[3],
		   pid_t pid, broker_make_fn make, void *arg)
{
	char text[PATH_MAX] = "";
	struct broker_reply reply = { 0 };
	struct broker_request rq;
	const char *names[2];
	int fd = -1;

	reply.result = broker_parse(data, len, &rq, names);
	if (reply.result == 0 && rq.op == BROKER_COPY) {
		answer_copy(p, names[0], pid, fds[0], make, arg);
		return;
	}
	if (reply.result == 0) {
		const int dirs[2] = { rq.has_dir[0] ? fds[1] : -1,
				      rq.has_dir[1] ? fds[1 + rq.has_dir[0]] : -1 };
		bool is_whole = (!rq.has_dir[0] || dirs[0] >= 0) && (!rq.has_dir[1] || dirs[1] >= 0);

		reply.result = is_whole ? broker_answer(p, &rq, names, dirs, &reply.st, &fd, text)
					: -EINVAL;
		if (reply.result == -EACCES)
			log_warn("broker", "refused: %u of %.200s", rq.op,
				 names[0] ? names[0] : "nothing");
	}
	if (reply.result == 0 && rq.op == BROKER_REALPATH)
		reply.len = (uint32_t)strlen(text) + 1;
	send_reply(fds[0], &reply, text, &fd, fd >= 0 ? 1 : 0);
	if (fd >= 0)
		close(fd);
}

/* The descriptors of a message: at most three are kept; and who sent it. */
static unsigned take_fds(struct msghdr *msg, int fds[3], pid_t *pid)
{
	unsigned n = 0;

	*pid = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		struct ucred who;

		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&who, CMSG_DATA(c), sizeof(who));
			*pid = who.pid;
		}
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		unsigned have = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		int got[BROKER_FDS_MAX];

		memcpy(got, CMSG_DATA(c), MIN(have, (unsigned)BROKER_FDS_MAX) * sizeof(int));
		for (unsigned i = 0; i < have && i < BROKER_FDS_MAX; i++) {
			if (n < 3)
				fds[n++] = got[i];
			else
				close(got[i]);
		}
	}
	return n;
}

void broker_serve(struct broker_policy *p, int door, broker_make_fn make, void *arg)
{
	static uint8_t data[BROKER_REQUEST_MAX];

	for (;;) {
		union {
			struct cmsghdr hdr;
			char room[CMSG_SPACE(sizeof(int) * BROKER_FDS_MAX) + CMSG_SPACE(sizeof(struct ucred))];
		} control;
		struct iovec iov = { data, sizeof(data) };
		struct msghdr msg = { .msg_iov = &iov,
				      .msg_iovlen = 1,
				      .msg_control = &control,
				      .msg_controllen = sizeof(control) };
		int fds[3] = { -1, -1, -1 };
		ssize_t n = recvmsg(door, &msg, MSG_CMSG_CLOEXEC);
		pid_t pid;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		/* Without a way to answer there is nothing to do. */
		if (take_fds(&msg, fds, &pid) > 0 && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
			answer(p, data, (size_t)n, fds, pid, make, arg);
		close_all(fds, 3);
	}
}
