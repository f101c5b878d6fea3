/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events may come from any thread that holds the machine's lock; connections are served on the loop's.  So an event is a line
 * in a buffer of the control socket, and what is there goes to the subscribers in one piece as soon as the loop comes to it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "ctl/conn.h"
#include "ctl/events.h"
#include "ctl/migrate.h"

#define MIGRATION_EVERY_NS 500000000LL

static const char *const end_reasons[] = {
	[END_POWEROFF] = "poweroff",	 [END_STOPPED] = "stopped",
	[END_RESET] = "reset",		 [END_SHUTDOWN] = "triple-fault",
	[END_DEBUG_EXIT] = "debug-exit", [END_MOVED] = "moved",
	[END_FAILED] = "failed",	 NULL
};

// clang-format off
#define END { .name = NULL }
static const struct ctl_field state_fields[] = {
	{ "state", CTL_STRING, false, "that it is in now", .words = ctl_states },
	END,
};
static const struct ctl_field none[] = { END };
static const struct ctl_field crash_cause[] = {
	{ "cause", CTL_STRING, false, "what a CPU could not go on after" },
	END,
};
static const struct ctl_field end_fields[] = {
	{ "reason", CTL_STRING, false, "of what kind", .words = end_reasons },
	{ "status", CTL_UINT,   false, "exit status of its process" },
	{ "text",   CTL_STRING, false, "one sentence" },
	END,
};
static const struct ctl_field snapshot_fields[] = {
	{ "name",  CTL_STRING, false, "of the snapshot" },
	{ "error", CTL_STRING, true,  "why it came to nothing; without it all is well" },
	END,
};
static const struct ctl_field forked_fields[] = {
	{ "names", CTL_STRINGS, false, "of the copies" },
	{ "error", CTL_STRING,  true,  "why it came to nothing; without it all is well" },
	END,
};
static const struct ctl_field lost_fields[] = {
	{ "count", CTL_UINT, false, "how many events were left out here, as they were not read" },
	END,
};

const struct ctl_event_row ctl_event_rows[] = {
	{ "state",    "it runs, was paused or goes on",                      state_fields },
	{ "reset",    "it was reset",                                        none },
	{ "crash",    "the guest's kernel crashed so that the CPU gave up",  crash_cause },
	{ "end",      "it has ended: the last event",                        end_fields },
	{ "snapshot", "a snapshot was taken, or came to nothing",            snapshot_fields },
	{ "restored", "it went back to a snapshot, or did not",              snapshot_fields },
	{ "forked",   "copies of it were made, or were not",                 forked_fields },
	{ "migration", "how a move of it to another host goes on; twice a second", ctl_migration_fields },
	{ "lost",     "events are missing here",                             lost_fields },
	{ .name = NULL },
};
// clang-format on

/* ---- handing out ---- */

/* "{...}\n", allocated; NULL: no memory. */
static char *event_line(const char *name, json_t *members)
{
	struct timespec ts;
	struct tm tm;
	char day[32], when[64];
	json_t *obj = json_pack("{s:s}", "event", name);

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(when, sizeof(when), "%s.%06ldZ", day, ts.tv_nsec / 1000);
	if (json_object_set_new(obj, "time", json_string(when)) < 0 ||
	    (members && json_object_update(obj, members) < 0)) {
		json_decref(obj);
		return NULL;
	}
	char *text = json_dumps(obj, JSON_COMPACT);
	char *line = NULL;

	json_decref(obj);
	if (text && asprintf(&line, "%s\n", text) < 0)
		line = NULL;
	free(text);
	return line;
}

void events_put_lost(struct ctl_conn *conn)
{
	json_t *members = json_pack("{s:I}", "count", (json_int_t)conn->nlost);
	_cleanup_free_ char *line = event_line("lost", members);

	json_decref(members);
	if (line)
		bytes_put(&conn->out, line, strlen(line));
	conn->nlost = 0;
}

static void put_event(struct ctl_conn *conn, const uint8_t *line, size_t len)
{
	size_t waiting = conn->out.len - conn->out_off;

	if (conn->nlost || waiting + len > CTL_EVENTS_MAX) {
		conn->nlost++;
		return;
	}
	if (conn->out_off) {
		memmove(conn->out.data, conn->out.data + conn->out_off, waiting);
		conn->out.len = waiting;
		conn->out_off = 0;
	}
	bytes_put(&conn->out, line, len);
}

static void deliver(struct ctl *c, struct ctl_conn *conn)
{
	const uint8_t *at = c->events.data, *end = at + c->events.len, *nl;

	for (; at < end && (nl = memchr(at, '\n', (size_t)(end - at))); at = nl + 1)
		put_event(conn, at, (size_t)(nl + 1 - at));
	conn->nlost += c->nlost;
	if (conn->out.is_failed || conn_flush(conn) < 0)
		conn_close(conn);
	else
		conn_update(conn);
}

static void deliver_all(void *arg)
{
	struct ctl *c = arg;
	struct ctl_conn *next;

	c->is_event_posted = false;
	for (struct ctl_conn *conn = c->conns; conn; conn = next) {
		next = conn->next;
		if (conn->is_subscribed)
			deliver(c, conn);
	}
	bytes_free(&c->events);
	c->nlost = 0;
}

static bool has_subscriber(const struct ctl *c)
{
	for (const struct ctl_conn *conn = c->conns; conn; conn = conn->next)
		if (conn->is_subscribed)
			return true;
	return false;
}

void ctl_event(struct ctl *c, const char *name, json_t *members)
{
	_cleanup_free_ char *line = has_subscriber(c) ? event_line(name, members) : NULL;

	json_decref(members);
	if (!line)
		return;
	if (c->events.len + strlen(line) > CTL_EVENTS_MAX)
		c->nlost++;
	else
		bytes_put(&c->events, line, strlen(line));
	if (c->events.is_failed) {
		bytes_free(&c->events);
		c->nlost++;
	}
	if (!c->is_event_posted)
		c->is_event_posted = loop_post(c->loop, deliver_all, c) == 0;
}

/* ---- the machine ---- */

static void on_machine(void *arg, enum machine_event event)
{
	struct ctl *c = arg;

	switch (event) {
	case MACHINE_STATE_CHANGED: {
		struct machine_info info;

		machine_info(c->cfg.machine, &info);
		ctl_event(c, "state", json_pack("{s:s}", "state", machine_state_name(info.state)));
		break;
	}
	case MACHINE_WAS_RESET:
		ctl_event(c, "reset", NULL);
		break;
	case MACHINE_TRIPLE_FAULT:
		ctl_event(c, "crash", json_pack("{s:s}", "cause", "triple fault"));
		break;
	}
}

/* ---- a migration ---- */

static void on_migration(void *arg)
{
	struct ctl *c = arg;
	json_t *members = json_object();
	bool is_active = migrator_is_active(c->cfg.migrator);

	if (members) {
		(void)json_object_set_new(members, "active", json_boolean(is_active));
		migrator_status(c->cfg.migrator, members);
	}
	ctl_event(c, "migration", members);
	if (is_active)
		vtimer_arm(c->migration, vclock_now_ns(c->cfg.clock) + MIGRATION_EVERY_NS);
	else
		vtimer_cancel(c->migration);
}

void events_watch_migration(struct ctl *c)
{
	if (!c->migration)
		c->migration = vtimer_create(c->loop, c->cfg.clock, on_migration, c);
	if (c->migration)
		on_migration(c);
	else
		log_warn("ctl", "no memory to tell how the migration goes on");
}

void events_start(struct ctl *c)
{
	machine_watch(c->cfg.machine, on_machine, c);
}

void events_stop(struct ctl *c)
{
	machine_watch(c->cfg.machine, NULL, NULL);
	vtimer_destroy(c->migration);
	c->migration = NULL;
	bytes_free(&c->events);
}

void ctl_ended(struct ctl *c, const struct machine_end *end)
{
	ctl_event(c, "end",
		  json_pack("{s:s, s:i, s:s}", "reason", end_reasons[end->reason], "status",
			    end->status, "text", end->text));
	deliver_all(c);
}
