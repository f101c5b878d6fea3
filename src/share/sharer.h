/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that serves a shared folder, `viv share`: one for each folder of each machine.
 *
 *   machine                                viv share
 *     sharer_spawn() --- fork, exec -->    share_enter(): namespaces with the folder as their root
 *                    <-- "ok\n" or a sentence on the ready pipe; then share_confine()
 *     share_port_socket(fd) <== 9P ==>     share_server_handle()
 *
 * It holds nothing of the machine but the socket, nothing of the host but the folder, and ends when the socket closes.
 */
#ifndef VIV_SHARE_SHARER_H
#define VIV_SHARE_SHARER_H

#include <sys/types.h>

#include "base/error.h"

/** sharer_cli() - `viv share ...`: @argv[0] is the verb.  Returns the process's status (2: bad usage). */
int sharer_cli(int argc, char **argv);

struct sharer_options {
	const char *exe;  /* program; NULL: /proc/self/exe */
	const char *path; /* of the folder, absolute */
	const char *tag;  /* for log lines */
	bool is_readonly;
	/* If this process logs to files (base/log.h), so does that one, from the same level on. */
};

/**
 * sharer_spawn() - start one and wait until it serves.
 * @fd: receives the machine's end of its socket, close-on-exec
 * @pid: receives the child, to be waited for
 * The child ends when the socket closes, and with the calling THREAD; it is in a session of its own.
 * Returns 0, or -errno with the child's sentence in @err and no child left.
 */
int sharer_spawn(const struct sharer_options *o, int *fd, pid_t *pid, struct error *err);

#endif
