/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end of the control socket: what `viv` verbs use to talk to a running machine.
 *
 * With VIVARIUM_TRACE=FILE in the environment each message is appended to the file, as "PID FD > MESSAGE", < for those that came.
 */
#ifndef VIV_CTL_CLIENT_H
#define VIV_CTL_CLIENT_H

#include <jansson.h>

#include "base/error.h"

#define CLIENT_REPLY_MAX  (64 * MIB)
#define CLIENT_TIMEOUT_MS 10000
#define CLIENT_MAX_FDS	  16

/**
 * client_connect() - to the machine @name.
 * Returns a descriptor, -ENOENT or -ECONNREFUSED (it does not run; @err says so), other -errno.
 */
int client_connect(const char *name, struct error *err);

/**
 * client_call() - send @request (stolen) and wait for the answer.
 * @timeout_ms: for the whole answer; -1: none
 * Returns 0 with *@reply (to be json_decref'ed), or -errno: -EREMOTEIO with the machine's own
 * sentence, -ETIMEDOUT, -EPIPE (the machine ended), -EPROTO.
 */
int client_call(int fd, json_t *request, int timeout_ms, json_t **reply, struct error *err);

/** client_send() - the first half of client_call(); client_receive() - the second. */
int client_send(int fd, json_t *request, int timeout_ms, struct error *err);
/** client_send_fds() - client_send() with descriptors that come along; they stay the caller's. */
int client_send_fds(int fd, json_t *request, const int *fds, unsigned nfds, int timeout_ms,
		    struct error *err);
int client_receive(int fd, int timeout_ms, json_t **reply, struct error *err);

/** client_receive_any() - the next line, whatever object it is: an event, for instance. */
int client_receive_any(int fd, int timeout_ms, json_t **message, struct error *err);

/** client_request() - connect, call, close. */
int client_request(const char *name, json_t *request, int timeout_ms, json_t **reply, struct error *err);

#endif
