/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing a descriptor of any kind without ever blocking. */
#ifndef VIV_CHAR_STREAM_H
#define VIV_CHAR_STREAM_H

#include <sys/types.h>

#include "base/error.h"

struct stream {
	int fd;		/* used for input/output; -1: none */
	int restore_fd; /* descriptor whose O_NONBLOCK this set; -1: none */
	bool is_owned;	/* fd is closed by stream_close */
	bool is_socket;
	bool is_file; /* regular file or alike: never blocks, cannot be polled */
};

/**
 * stream_open() - prepare a borrowed @fd (-1: none).
 * @for_write: direction
 * A terminal or pipe is opened once more through /proc, so that the non-blocking flag does not reach the
 * other users of @fd; where that is not possible the flag is set on @fd itself until stream_close.
 * Returns 0 or -errno with @err set.
 */
int stream_open(struct stream *s, int fd, bool for_write, struct error *err);
void stream_close(struct stream *s);

/* Bytes moved, -EAGAIN (would block), other -errno; reading gives 0 at the end. */
ssize_t stream_read(const struct stream *s, void *buf, size_t len);
ssize_t stream_write(const struct stream *s, const void *buf, size_t len);

#endif
