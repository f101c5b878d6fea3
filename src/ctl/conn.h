/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the control socket: connections. */
#ifndef VIV_CTL_CONN_H
#define VIV_CTL_CONN_H

#include "base/bytes.h"
#include "ctl/ctl.h"

struct ctl_conn {
	struct ctl *ctl;
	struct ctl_conn *next;
	int fd;
	struct loop_fd *watch;
	struct vtimer *timer; /* whatever the client owes us next */
	struct bytes in;      /* received, not yet a whole line */
	struct bytes out;     /* to be sent from out_off */
	size_t out_off;
	bool is_eof; /* the client sends no more */
	bool gives_backlog;
	struct agent_job *job;
	bool awaits_snapper; /* a snapshot is being taken for it */
};

struct ctl {
	struct ctl_config cfg;
	char *engine_reason;
	struct loop *loop;
	int listen_fd;
	struct loop_fd *watch;
	struct ctl_conn *conns;
	unsigned nconns;
};

/** conn_reply() - answer a pending command: @result's members and "ok", or @err. */
void conn_reply(struct ctl_conn *conn, json_t *result, const struct error *err);

#endif
