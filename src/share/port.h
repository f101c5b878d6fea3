/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a 9P device sees of a shared folder: requests go out, answers come back.
 *
 * All calls and callbacks run under the machine's lock (callbacks on the loop's thread, or inside the call).
 */
#ifndef VIV_SHARE_PORT_H
#define VIV_SHARE_PORT_H

#include <sys/uio.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/loop.h"
#include "share/p9.h"

#define SHARE_REQS_MAX 128 /* under way at a time */
#define SHARE_TAG_MAX  31  /* bytes of the name that a guest mounts a folder by */

/* One request.  Its vectors and itself stay until done() was called. */
struct share_req {
	struct iovec *iov; /* nout with the message, then nin for the answer: the guest's memory, hostile and changing */
	unsigned nout, nin;	    /* nin is for P9_ERROR_LEN bytes at least */
	size_t out_bytes, in_bytes; /* of all vectors */
	/* The answer is there, @written bytes; its first P9_HEADER bytes carry the request's tag. */
	void (*done)(struct share_req *req, size_t written);
	void *owner;
	/* the port's */
	struct share_req *next;
	uint8_t header[P9_HEADER]; /* read once */
	uint32_t size;		   /* of the message */
	uint16_t tag;
};

struct share_port;
struct share_ops {
	/* Takes @req until done(), which may be called from inside.  At most SHARE_REQS_MAX are under way. */
	void (*submit)(struct share_port *p, struct share_req *req);
	/* Until nothing is under way: every request was answered. */
	void (*drain)(struct share_port *p);
	/* Forget the session: no file of it is open any more.  Nothing is under way. */
	void (*reset)(struct share_port *p);
	/* The session as bytes, and back (server.h).  Nothing is under way.  0 or -errno with @err set. */
	int (*save)(struct share_port *p, struct bytes *out, struct error *err);
	int (*load)(struct share_port *p, const uint8_t *data, size_t len, struct error *err);
	void (*close)(struct share_port *p); /* NULL is fine */
};
struct share_port {
	const struct share_ops *ops;
};

/*
 * On the socket between a machine and `viv share` are messages of 9P, whose tags are the port's own: 0 to SHARE_REQS_MAX - 1.  Those with this tag are
 * not the guest's: their type is one of
 */
#define SHARE_CONTROL 0xffff
enum { SHARE_C_RESET = 1, SHARE_C_SAVE, SHARE_C_LOAD };
/* The answer has the same type: to SAVE the state, to LOAD i32 how many files are stale or -errno. */

/**
 * share_port_socket() - over the connected stream socket @fd to a `viv share`; taken in any case.
 * @tag: for log lines
 * What comes from there is checked: a server may have been taken over.  One that goes away leaves a port that answers EIO.
 */
int share_port_socket(struct share_port **out, struct loop *loop, int fd, const char *tag,
		      struct error *err);

#endif
