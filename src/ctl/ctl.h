/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket of a machine: one JSON object a line in each direction.
 *
 *   -> {"cmd": "pause"}                     <- {"ok": true, ...}   or   {"ok": false, "error": "..."}
 *
 * Commands are rows of one table (ctl.c), arguments are checked by their rows before a command sees
 * them.  Descriptors (SCM_RIGHTS) that come with a line are for the command on it; one that takes none closes them.
 * After {"cmd": "console"} is answered, the connection is the console: raw bytes.  After {"cmd": "subscribe"} events come besides
 * answers (events.h).  schema.h describes all messages.
 *
 * Clients are not trusted to be well-behaved: lines are bounded, at most CTL_MAX_CLIENTS are connected,
 * nobody may stop in the middle of a line, stop reading, or sit idle for long; all is
 * non-blocking, on the machine's loop, under its lock.
 */
#ifndef VIV_CTL_CTL_H
#define VIV_CTL_CTL_H

#include <jansson.h>

#include "ctl/agent.h"
#include "ctl/snaptake.h"
#include "ctl/vmconfig.h"
#include "vm/machine.h"

#define CTL_MAX_CLIENTS	     32
#define CTL_LINE_MAX	     (4 * MIB)
#define CTL_LINE_TIMEOUT_NS  10000000000LL
#define CTL_WRITE_TIMEOUT_NS 30000000000LL
#define CTL_IDLE_TIMEOUT_NS  60000000000LL
#define CTL_EXEC_MAX_ARGS    4096
#define CTL_FORK_MAX	     1000
#define CTL_FDS_MAX	     16 /* descriptors that come along with a request */
#define CTL_FILE_CHUNK                                                                             \
	(1536 * KIB) /* of a file of the guest, in one answer or request; a multiple of 3 */

struct ctl;

struct ctl_config {
	struct machine *machine;
	struct vclock *clock;		 /* host time: never stops */
	struct char_dev *console;	 /* a chardev_hub(); NULL: none */
	struct char_dev *console_window; /* the hub that learns of the window's size; NULL: none */
	struct agent *agent;		 /* NULL: the guest has none */
	struct snapper *snapper;	 /* NULL: no snapshots */
	struct vmconfig *config;	 /* what "set" changes and saves; NULL: nothing is saved */
	struct migrator *migrator;	 /* NULL: it is not moved */
	const char *engine_reason;
	bool is_confined;
	const char *confinement; /* by what, or why not */
	pid_t pid;		 /* of the process as others see it */
};

/** ctl_create() - serve @listen_fd (taken, also on failure).  Called with the machine's lock held. */
int ctl_create(struct ctl **out, int listen_fd, const struct ctl_config *cfg, struct error *err);
/** ctl_destroy() - drops all clients.  With the lock; NULL is fine. */
void ctl_destroy(struct ctl *c);
/** ctl_listen() - serve @listen_fd (taken), where ctl_create() got none (-1).  With the lock.  0 or -ENOMEM. */
int ctl_listen(struct ctl *c, int listen_fd, struct error *err);
/** ctl_hold() - while @is_held, no new clients are taken in: another process may do so.  Returns the socket, borrowed.  With the lock. */
int ctl_hold(struct ctl *c, bool is_held);

/* ---- the table, for help, the schema and the fuzzer ---- */
enum ctl_arg_kind {
	CTL_UINT,
	CTL_STRING,
	CTL_BOOL,
	CTL_STRINGS,
	/* of answers and events only */
	CTL_INT,
	CTL_TEXT_OR_NULL,
	CTL_COUNTERS,	  /* an object of numbers, whose names are those of what is counted */
	CTL_COUNTER_LIST, /* an array of such */
	CTL_OBJECT,	  /* with @fields */
	CTL_OBJECTS,	  /* an array of such */
};
struct ctl_arg {
	const char *name;
	enum ctl_arg_kind kind;
	bool is_required;
	uint64_t min, max; /* UINT: value; STRING: bytes; STRINGS: elements */
	const char *help;
};
/* A member of an answer or event. */
struct ctl_field {
	const char *name; /* NULL: the last */
	enum ctl_arg_kind kind;
	bool is_optional;
	const char *help;
	const struct ctl_field *fields;
	const char *const *words; /* STRING: one of these; NULL: any */
};
struct ctl_conn;
struct ctl_command {
	const char *name;
	const char *help;
	const struct ctl_arg *args;	/* ends with name NULL; NULL: none */
	const struct ctl_field *answer; /* besides "ok"; ends with name NULL; NULL: none */
	/* 0: @reply is sent; CTL_PENDING: sent later; CTL_BECOMES_CONSOLE; or -errno with @err set. */
	int (*run)(struct ctl_conn *conn, json_t *request, json_t *reply, struct error *err);
};
enum { CTL_PENDING = 1, CTL_BECOMES_CONSOLE = 2 };
extern const struct ctl_command ctl_commands[]; /* ends with name NULL */
extern const char *const ctl_states[];		/* of machines, ends with NULL */

/**
 * ctl_parse() - one line to a checked request.
 * @request: to be json_decref'ed on success
 * Returns the row, or NULL with @err set.
 */
const struct ctl_command *ctl_parse(const char *line, size_t len, json_t **request, struct error *err);

#endif
