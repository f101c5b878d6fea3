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

#endif
