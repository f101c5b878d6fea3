/* SPDX-License-Identifier: Apache-2.0 */
/* The machine's side of its broker: rows of the host's table. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/broker.h"

#define PAGEMAP "/proc/self/pagemap"

static int the_door = -1, the_pagemap = -1; /* set before there are threads */

struct ask {
	enum broker_op op;
	int flags;
	mode_t mode;
	int dirs[2]; /* AT_FDCWD: none */
	const char *names[2];
};

static int send_request(const struct ask *a, int reply_to)
{
	struct broker_request rq = { .op = a->op, .flags = a->flags, .mode = a->mode };
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int) * 3)];
	} control = { 0 };
	struct iovec iov[3] = { { &rq, sizeof(rq) } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 1, .msg_control = &control };
	int fds[3] = { reply_to };
	unsigned nfds = 1;

	for (unsigned i = 0; i < 2; i++) {
		size_t n = a->names[i] ? strlen(a->names[i]) + 1 : 0;

		if (n > PATH_MAX)
			return -ENAMETOOLONG;
		rq.len[i] = (uint16_t)n;
		if (n)
			iov[msg.msg_iovlen++] = (struct iovec){ (void *)(uintptr_t)a->names[i], n };
		/* An absolute name is relative to nothing. */
		if (a->dirs[i] != AT_FDCWD && (n ? a->names[i][0] != '/' : a->op == BROKER_ARRIVE)) {
			rq.has_dir[i] = 1;
			fds[nfds++] = a->dirs[i];
		}
	}
	msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
	control.hdr = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * nfds),
					.cmsg_level = SOL_SOCKET,
					.cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(&control.hdr), fds, sizeof(int) * nfds);
	ssize_t n;

	do
		n = sendmsg(the_door, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* @text: @cap bytes for what follows the reply; @fds: for descriptors, *@nfds at most. */
static int receive(int from, struct broker_reply *reply, void *text, size_t cap, int *fds, unsigned *nfds)
{
	union {
		struct cmsghdr hdr;
		char room[CMSG_SPACE(sizeof(int) * BROKER_FDS_MAX)];
	} control;
	struct iovec iov[2] = { { reply, sizeof(*reply) }, { text, cap } };
	struct msghdr msg = { .msg_iov = iov,
			      .msg_iovlen = text ? 2 : 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	unsigned max = *nfds;
	ssize_t n;

	*nfds = 0;
	do
		n = recvmsg(from, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < (ssize_t)sizeof(*reply))
		return n < 0 ? -errno : -ECONNRESET; /* the broker is gone */
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		unsigned have = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		int got[BROKER_FDS_MAX];

		memcpy(got, CMSG_DATA(c), MIN(have, (unsigned)BROKER_FDS_MAX) * sizeof(int));
		for (unsigned i = 0; i < have; i++) {
			if (*nfds < max)
				fds[(*nfds)++] = got[i];
			else
				close(got[i]);
		}
	}
	return reply->result;
}

static int ask_for(const struct ask *a, struct broker_reply *reply, void *text, size_t cap,
		   int *fds, unsigned *nfds)
{
	int pair[2];
	unsigned none = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	int r = send_request(a, pair[1]);

	/* Ours is closed: if the broker goes, the answer is an end. */
	close(pair[1]);
	if (r == 0)
		r = receive(pair[0], reply, text, cap, fds, nfds ? nfds : &none);
	close(pair[0]);
	return r;
}

static int simple(const struct ask *a)
{
	struct broker_reply reply;
	int r = ask_for(a, &reply, NULL, 0, NULL, NULL);

	if (r == 0)
		return 0;
	errno = -r;
	return -1;
}

/* ---- the host's calls ---- */

static int by_openat(int dir, const char *name, int flags, mode_t mode)
{
	const struct ask a = {
		.op = BROKER_OPEN, .flags = flags, .mode = mode, .dirs = { dir, AT_FDCWD }, .names = { name }
	};
	struct broker_reply reply;
	int fd = -1;
	unsigned n = 1;
	if (strcmp(name, PAGEMAP) == 0) {
		errno = ENOENT;
		return the_pagemap >= 0 ? fcntl(the_pagemap, F_DUPFD_CLOEXEC, 0) : -1;
	}
	int r = ask_for(&a, &reply, NULL, 0, &fd, &n);

	if (r == 0 && n == 1)
		return fd;
	errno = r < 0 ? -r : EIO;
	return -1;
}

static int by_open(const char *path, int flags, mode_t mode)
{
	return by_openat(AT_FDCWD, path, flags, mode);
}

static int by_fstatat(int dir, const char *name, struct stat *st, int flags)
{
	const struct ask a = {
		.op = BROKER_STAT, .flags = flags, .dirs = { dir, AT_FDCWD }, .names = { name }
	};
	struct broker_reply reply;
	int r = ask_for(&a, &reply, NULL, 0, NULL, NULL);

	if (r == 0) {
		*st = reply.st;
		return 0;
	}
	errno = -r;
	return -1;
}

static int by_access(const char *path, int mode)
{
	const struct ask a = { .op = BROKER_ACCESS,
			       .mode = (mode_t)mode,
			       .dirs = { AT_FDCWD, AT_FDCWD },
			       .names = { path } };

	return simple(&a);
}

static char *by_realpath(const char *path, char *resolved)
{
	const struct ask a = { .op = BROKER_REALPATH, .dirs = { AT_FDCWD, AT_FDCWD }, .names = { path } };
	struct broker_reply reply;
	char text[PATH_MAX] = "";
	int r = ask_for(&a, &reply, text, sizeof(text) - 1, NULL, NULL);

	if (r < 0) {
		errno = -r;
		return NULL;
	}
	return resolved ? strcpy(resolved, text)
			: strdup(text); // NOLINT: PATH_MAX bytes, as realpath(3) asks for
}

static int by_mkdir(const char *path, mode_t mode)
{
	const struct ask a = {
		.op = BROKER_MKDIR, .mode = mode, .dirs = { AT_FDCWD, AT_FDCWD }, .names = { path }
	};

	return simple(&a);
}

static int by_unlinkat(int dir, const char *name, int flags)
{
	const struct ask a = {
		.op = BROKER_UNLINK, .flags = flags, .dirs = { dir, AT_FDCWD }, .names = { name }
	};

	return simple(&a);
}

static int by_renameat(int from_dir, const char *from, int to_dir, const char *to)
{
	const struct ask a = { .op = BROKER_RENAME, .dirs = { from_dir, to_dir }, .names = { from, to } };

	return simple(&a);
}

static int by_linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
	const struct ask a = {
		.op = BROKER_LINK, .flags = flags, .dirs = { from_dir, to_dir }, .names = { from, to }
	};

	return simple(&a);
}

int broker_door(void)
{
	return the_door;
}

int broker_keep(void)
{
	if (the_pagemap >= 0)
		close(the_pagemap);
	the_pagemap = -1;
	return the_door;
}

void broker_use(int door, int pagemap_fd)
{
	if (the_door >= 0)
		close(the_door);
	(void)broker_keep();
	the_door = door;
	the_pagemap = pagemap_fd;
	host.open = by_open;
	host.openat = by_openat;
	host.fstatat = by_fstatat;
	host.access = by_access;
	host.realpath = by_realpath;
	host.mkdir = by_mkdir;
	host.unlinkat = by_unlinkat;
	host.renameat = by_renameat;
	host.linkat = by_linkat;
}

json_t *broker_lab(void)
{
	const struct ask a = { .op = BROKER_LAB, .dirs = { AT_FDCWD, AT_FDCWD } };
	struct broker_reply reply;
	_cleanup_close_ int fd = -1;
	struct stat st;
	unsigned n = 1;

	if (ask_for(&a, &reply, NULL, 0, &fd, &n) < 0 || fd < 0 || fstat(fd, &st) < 0)
		return NULL;
	_cleanup_free_ char *text = malloc((size_t)st.st_size);
	ssize_t len = text ? host.pread(fd, text, (size_t)st.st_size, 0) : -1;

	return len == st.st_size ? json_loadb(text, (size_t)len, 0, NULL) : NULL;
}

int broker_claim(enum broker_claim what, struct error *err)
{
	const struct ask a = { .op = BROKER_CLAIM, .flags = (int)what, .dirs = { AT_FDCWD, AT_FDCWD } };
	struct broker_reply reply;
	int r = ask_for(&a, &reply, NULL, 0, NULL, NULL);

	if (r == -ECANCELED)
		return error_set(err, r, "the source has taken the machine back");
	if (r == -EEXIST)
		return error_set(err, r, "this migration was here before");
	return r < 0 ? error_set(err, r, "whose machine it is can't be noted: %s", strerror(-r)) : r;
}

int broker_lock(struct error *err)
{
	const struct ask a = { .op = BROKER_LOCK, .dirs = { AT_FDCWD, AT_FDCWD } };
	struct broker_reply reply;
	int fd = -1;
	unsigned n = 1;
	int r = ask_for(&a, &reply, NULL, 0, &fd, &n);

	return r == 0 && fd >= 0 ? fd
				 : error_set(err, r < 0 ? r : -EIO,
					     "the broker does not give the machine's lock: %s",
					     strerror(r < 0 ? -r : EIO));
}

void broker_leave(void)
{
	const struct ask a = { .op = BROKER_LEAVE, .dirs = { AT_FDCWD, AT_FDCWD } };

	if (simple(&a) < 0)
		log_warn("broker", "it is not told that the machine goes on elsewhere: %s",
			 strerror(errno));
}

int broker_arrive(int lock_fd, struct error *err)
{
	const struct ask a = { .op = BROKER_ARRIVE, .dirs = { lock_fd, AT_FDCWD } };

	return simple(&a) < 0
		       ? error_set(err, -errno, "the broker does not take the machine's lock: %s",
				   strerror(errno))
		       : 0;
}

int broker_copy(const char *name, struct broker_start *start, struct error *err)
{
	const struct ask a = { .op = BROKER_COPY, .dirs = { AT_FDCWD, AT_FDCWD }, .names = { name } };
	union {
		struct broker_start start;
		char text[sizeof(err->text)];
	} got = { .text = "" };
	struct broker_reply reply = { 0 };
	int fds[BROKER_FDS_MAX];
	unsigned n = ARRAY_SIZE(fds);
	int r = ask_for(&a, &reply, &got, sizeof(got), fds, &n);

	if (r == 0 && (n < 4 || n - 4 != (size_t)got.start.ncards + got.start.nshares +
						 (got.start.net_ready_fd != 0)))
		r = -EPROTO;
	got.text[sizeof(got.text) - 1] = 0;
	if (r < 0)
		return error_set(err, r, "%s", reply.len && got.text[0] ? got.text : strerror(-r));
	*start = got.start;
	start->door = fds[0];
	start->listen_fd = fds[1];
	start->log_fds[0] = fds[2];
	start->log_fds[1] = fds[3];
	for (unsigned i = 0; i < start->ncards; i++)
		start->cards[i] = fds[4 + i];
	for (unsigned i = 0; i < start->nshares; i++)
		start->shares[i] = fds[4 + start->ncards + i];
	if (start->net_ready_fd)
		start->net_ready_fd = fds[n - 1];
	return 0;
}
