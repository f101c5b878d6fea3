/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting the process of a machine, `viv vm` (which starts its network's, `viv net`).
 *
 * The process of the machine tells on the status pipe, one JSON object a line:
 *   {"event": "ready", "engine": "dbt", "reason": "..."}
 *   {"event": "failed", "text": "..."}                      it could not be built
 *   {"event": "end", "status": 0, "reason": "...", "text": "..."}
 */
#ifndef VIV_CLI_SPAWN_H
#define VIV_CLI_SPAWN_H

#include <sys/types.h>

#include "base/bytes.h"
#include "ctl/vmconfig.h"

struct spawned {
	pid_t pid;
	int status_fd;	   /* read end of the status pipe */
	int console_fd;	   /* our end of the console; -1 when detached */
	int lifeline_fd;   /* closing it ends the machine; -1 when detached */
	struct bytes line; /* of the status pipe, not complete yet */
	bool is_ended;	   /* the end was told */
	int end_status;
	char end_text[512];
};

/* Not switched on: it goes on from a snapshot of its own, or comes over the links of a migration. */
struct spawn_from {
	const char *snapshot;
	bool is_prefault; /* its working set, or all memory, is read ahead */
	bool skips_time;  /* struct snapper_waking */
	const int *links; /* borrowed; the last is the door (ctl/migrate_lazy.h) */
	unsigned nlinks;
	const int *handover; /* borrowed; HANDOVER_FDS of them (ctl/handover.h): another process hands it over; or NULL */
};

/** spawn_machine() - start vms/@c->name; @lock_fd: of vmlock_take(), borrowed, -1 where another process hands it over; to be closed once it is ready or has failed; @from: NULL: by
 * switching it on; @is_attached: with console and lifeline.
 * 0 or -errno with @err set; spawned_free() when done. */
int spawn_machine(struct spawned *s, const struct vmconfig *c, int lock_fd,
		  const struct spawn_from *from, bool is_attached, struct error *err);

/**
 * spawned_wait_ready() - until it runs or could not be built.
 * @engine, @reason: receive the engine's name and why it was chosen (256 bytes each)
 */
int spawned_wait_ready(struct spawned *s, char engine[256], char reason[256], struct error *err);

/** spawned_read() - read what the pipe has, blocking if nothing; false at its end. */
bool spawned_read(struct spawned *s);

/**
 * spawned_finish() - wait for the process and give the exit status for the person: what the machine told,
 * or a sentence about its crash in @err and 1.
 */
int spawned_finish(struct spawned *s, struct error *err);
void spawned_free(struct spawned *s);

#endif
