/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events of a machine, on its control socket: lines that come without being asked for, to who has sent {"cmd": "subscribe"}.
 *
 *   <- {"event": "state", "time": "2026-11-27T14:30:20.123456Z", "state": "paused"}
 *
 * A subscriber may go on asking; events stand between the answers, and have no "ok".  One that does not read keeps nobody
 * waiting: of more than CTL_EVENTS_MAX bytes that wait for it, events are left out, and {"event": "lost", "count": N}
 * stands where they were.
 */
#ifndef VIV_CTL_EVENTS_H
#define VIV_CTL_EVENTS_H

#include "ctl/ctl.h"

#define CTL_EVENTS_MAX (256 * KIB)

/* One row a kind, for the schema. */
struct ctl_event_row {
	const char *name;
	const char *help;
	const struct ctl_field *fields; /* besides "event" and "time" */
};
extern const struct ctl_event_row ctl_event_rows[]; /* ends with name NULL */

/**
 * ctl_event() - tell all subscribers; with the machine's lock, from any thread.
 * @name: of a row of ctl_event_rows; @members: its fields, taken; NULL: none, or no memory
 */
void ctl_event(struct ctl *c, const char *name, json_t *members);
/** ctl_ended() - the last event: the machine has ended.  On the loop's thread, with the lock. */
void ctl_ended(struct ctl *c, const struct machine_end *end);

#endif
