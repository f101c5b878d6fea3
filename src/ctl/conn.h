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
	const char *does;    /* what, as an event; NULL: none */
	json_t *does_what;   /* the members of the event */
	bool is_subscribed;  /* gets events */
	uint64_t nlost;	     /* events that there was no room for, not told yet */
	bool awaits_migrator;
	int fds[CTL_FDS_MAX]; /* that came along, for the next command */
	unsigned nfds;
};

struct ctl {
	struct ctl_config cfg;
	char *engine_reason, *confinement;
	struct loop *loop;
	int listen_fd;
	struct loop_fd *watch;
	struct ctl_conn *conns;
	unsigned nconns;
	/* Events: lines that are to be handed out on the loop's thread. */
	struct bytes events;
	uint64_t nlost; /* that there was no room for in @events */
	bool is_event_posted;
	struct vtimer *migration; /* for events of one that is under way; NULL: there was none */
};
extern const struct ctl_field ctl_migration_fields[];

/** conn_take_fds() - those that came along are the caller's now; how many. */
unsigned conn_take_fds(struct ctl_conn *conn, int fds[CTL_FDS_MAX]);

/** conn_reply() - answer a pending command: @result's members and "ok", or @err. */
void conn_reply(struct ctl_conn *conn, json_t *result, const struct error *err);

/** conn_close() - end it, and free it. */
void conn_close(struct ctl_conn *conn);
/** conn_flush() - send what can be sent.  0, or -errno: the client is gone. */
int conn_flush(struct ctl_conn *conn);
/** conn_update() - after that: what is waited for, and until when. */
void conn_update(struct ctl_conn *conn);

/* events.c */
void events_start(struct ctl *c);
void events_stop(struct ctl *c);
/** events_watch_migration() - one has begun: it is told now, and twice a second until it is over.  With the lock. */
void events_watch_migration(struct ctl *c);
/** events_put_lost() - the line that stands in for what was left out. */
void events_put_lost(struct ctl_conn *conn);

#endif
