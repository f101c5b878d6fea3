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
	struct char_user user; /* set by the device */
};

/** chardev_null() - swallows and gives nothing. */
int chardev_null(struct char_dev **out, struct error *err);
/** chardev_fd() - a pair of descriptors (terminal, pipe, file).  Borrows them. */
int chardev_fd(struct char_dev **out, struct loop *loop, int in_fd, int out_fd, struct error *err);
/**
 * chardev_hub() - one guest side, any number of clients that come and go (console attach), with a ring
 * of the last @backlog bytes given to each newcomer, and an optional log file.
 */
int chardev_hub(struct char_dev **out, struct loop *loop, size_t backlog, int log_fd, struct error *err);
/** chardev_hub_attach() - takes @fd (a connected stream socket or terminal). */
int chardev_hub_attach(struct char_dev *hub, int fd, bool give_backlog, struct error *err);
/** chardev_hub_write_input() - bytes as if typed by a client (tests, `--` command feeding). */
void chardev_hub_input(struct char_dev *hub, const uint8_t *data, size_t len);
void chardev_hub_resize(struct char_dev *hub, unsigned cols, unsigned rows);

#endif
