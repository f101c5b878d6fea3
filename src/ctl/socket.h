/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UNIX sockets by paths of any length: the directory is opened and the socket reached through
 * /proc/self/fd/N/, because struct sockaddr_un holds 108 bytes only.
 */
#ifndef VIV_CTL_SOCKET_H
#define VIV_CTL_SOCKET_H

#include "base/error.h"

/**
 * socket_listen() - a listening, non-blocking socket at @path with mode 0600; a stale one (nobody
 * listens) is replaced.  Returns a descriptor, -EADDRINUSE (somebody listens), other -errno.
 */
int socket_listen(const char *path, struct error *err);
/** socket_connect() - a blocking connection; -ENOENT, -ECONNREFUSED without @err set. */
int socket_connect(const char *path, struct error *err);
/** socket_connect_within() - connecting, sending and receiving end with -EAGAIN after @limit_ms; 0: never. */
int socket_connect_within(const char *path, unsigned limit_ms, struct error *err);

/** socket_send_fd() - @len bytes, at least 1, and with them the descriptor @fd, which stays the caller's.  0 or -errno. */
int socket_send_fd(int sock, int fd, const void *data, size_t len, struct error *err);
/**
 * socket_receive_fd() - up to @cap bytes and a descriptor from a peer that may send anything; waits @limit_ms at most.
 * @fd: gets the descriptor, close-on-exec, or -1; of several all but the last are closed
 * Returns how many bytes, 0: the peer is gone, -errno.
 */
ssize_t socket_receive_fd(int sock, unsigned limit_ms, void *data, size_t cap, int *fd);

#endif
