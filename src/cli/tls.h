/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links over TLS.  What speaks it is the program viv-tls (tls_main.c), a process for each link, which passes on between a TCP connection and
 * a socket of this host: neither viv nor a machine has a parser of TLS in its address space.
 *
 * Each side shows a certificate and checks the other's.  A folder has what that needs: ca.pem (whom to believe), cert.pem and key.pem (who this is).
 */
#ifndef VIV_CLI_TLS_H
#define VIV_CLI_TLS_H

#include <sys/types.h>

#include "base/error.h"

/**
 * tls_open_link() - TLS over the connected socket @net_fd (taken), to @host, whose certificate has to be for that name.
 * @folder: of certificates; NULL: tls/ in the data root
 * Returns a stream socket, its far end checked; -EACCES (not believed, by one of the two), -ENOENT (no program, no certificates), -errno.
 */
int tls_open_link(int net_fd, const char *host, const char *folder, struct error *err);

/**
 * tls_start_listener() - whoever connects to the listening socket @net_fd (borrowed) and is believed gets a connection to the socket @path.
 * The process ends with the caller's; links that it has go on.  Returns its id or -errno.
 */
pid_t tls_start_listener(int net_fd, const char *path, const char *folder, struct error *err);

#endif
