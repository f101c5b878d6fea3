/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The character interface: what a serial port or console sees of a terminal, a socket or a file.
 * All calls run under the machine's lock; callbacks on the loop's thread.
 */
#ifndef VIV_CHAR_CHARDEV_H
#define VIV_CHAR_CHARDEV_H

#include "base/error.h"
#include "base/loop.h"

struct char_dev;
struct char_user { /* what the device gives */
	/* How many bytes can be taken now. */
	size_t (*can_receive)(void *ctx);
	void (*receive)(void *ctx, const uint8_t *data, size_t len);
	void (*resized)(void *ctx, unsigned cols, unsigned rows); /* may be NULL */
	void (*connected)(void *ctx, bool is_connected);	  /* may be NULL */
	void (*writable)(void *ctx); /* after a short write: more can be taken; may be NULL */
	void *ctx;
};
struct char_ops {
	/* Returns how many bytes were taken (0..len); the rest when `writable` comes.  Never blocks. */
	size_t (*write)(struct char_dev *c, const uint8_t *data, size_t len);
	void (*rx_ready)(struct char_dev *c); /* can_receive became non-zero */
	void (*close)(struct char_dev *c);
};
struct char_dev {
	const struct char_ops *ops;
	struct char_user user; /* set by the device; all NULL: nobody listens */
};

/* For backends: how much the user takes now, and handing it over.  Nobody listening is fine. */
static inline size_t chardev_room(const struct char_dev *c)
{
	return c->user.can_receive ? c->user.can_receive(c->user.ctx) : 0;
}
static inline void chardev_give(const struct char_dev *c, const uint8_t *data, size_t len)
{
	c->user.receive(c->user.ctx, data, len);
}

/** chardev_null() - swallows and gives nothing. */
int chardev_null(struct char_dev **out, struct error *err);
/**
 * chardev_fd() - a pair of descriptors (terminal, pipe, socket, file), each -1 for none; they may be the same.
 * Borrows them: they stay open and, where the system allows it, in blocking mode; reads and writes here
 * never block.  When the output breaks, its bytes are dropped with one warning; the end of the input is
 * told by user.connected(false).  SIGPIPE must be ignored by the process.
 */
int chardev_fd(struct char_dev **out, struct loop *loop, int in_fd, int out_fd, struct error *err);
/**
 * chardev_hub() - one guest side, any number of clients that come and go (console attach), with a ring
 * of the last @backlog bytes given to each newcomer, and an optional log file (@log_fd, borrowed, or -1).
 * The guest never waits for a client: one that falls more than the ring (at least 256 KiB) behind is told how
 * many bytes it lost.  user.connected tells whether there is any client.
 */
int chardev_hub(struct char_dev **out, struct loop *loop, size_t backlog, int log_fd, struct error *err);
/** chardev_hub_attach() - takes @fd (a connected stream socket or terminal); on failure it stays the caller's. */
int chardev_hub_attach(struct char_dev *hub, int fd, bool give_backlog, struct error *err);
/** chardev_hub_write_input() - bytes as if typed by a client (tests, `--` command feeding). */
void chardev_hub_input(struct char_dev *hub, const uint8_t *data, size_t len);
/** chardev_hub_pending() - how many bytes the client furthest behind has not been sent yet. */
size_t chardev_hub_pending(const struct char_dev *hub);
/*
 * Another process goes on with the clients: this hub is held, saved and closed, that one loads.
 */
#define CHARDEV_CLIENTS_MAX 64 /* that go along */
struct bytes;
/** chardev_hub_hold() - while @is_held, clients are neither read nor written; what the guest writes meanwhile goes to them afterwards. */
void chardev_hub_hold(struct char_dev *hub, bool is_held);
/**
 * chardev_hub_save() - append what was last written, what was typed and not read yet, and how far each client is.
 * @fds: receives the clients' descriptors, borrowed; CHARDEV_CLIENTS_MAX
 * Returns how many.
 */
unsigned chardev_hub_save(const struct char_dev *hub, struct bytes *out, int *fds);
/** chardev_hub_load() - the same into a hub that nothing was written to yet; hostile bytes.  Takes @fds, also on failure.  0, -EPROTO, or -errno: some clients are lost. */
int chardev_hub_load(struct char_dev *hub, const uint8_t *data, size_t len, const int *fds,
		     unsigned nfds, struct error *err);
void chardev_hub_resize(struct char_dev *hub, unsigned cols, unsigned rows);

#endif
