/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands inside the guest, through the qemu-guest-agent (its QAPI schema, qga/qapi-schema.json:
 * guest-sync-delimited, guest-exec, guest-exec-status, guest-fsfreeze-*, guest-set-time) on a virtio port.
 *
 * How it works: one command is under way on the port at a time; any number of jobs (AGENT_MAX_JOBS)
 * take turns.  A job starts with a synchronisation, so that an agent that was restarted, or is not
 * there yet, is simply asked again until the job's deadline; then guest-exec, then guest-exec-status
 * at growing intervals until the command ended.
 *
 * Everything that comes from the port is hostile: lines are bounded, what is not understood is dropped
 * and the channel synchronised anew.  All functions and callbacks run under the machine's lock on the
 * loop's thread.
 */
#ifndef VIV_CTL_AGENT_H
#define VIV_CTL_AGENT_H

#include <jansson.h>

#include "base/bytes.h"
#include "char/chardev.h"

#define AGENT_MAX_JOBS 16
#define AGENT_LINE_MAX (48 * MIB) /* two outputs of 16 MiB, the agent's own limit, in base64 */

struct agent;
struct agent_job;

/** agent_create() - @loop outlives it; @clock never stops (host time). */
int agent_create(struct agent **out, struct loop *loop, struct vclock *clock, struct error *err);
void agent_destroy(struct agent *a); /* jobs end without their callback; NULL is fine */

/** agent_chardev() - what the virtio port is connected to; owned by the agent. */
struct char_dev *agent_chardev(struct agent *a);

/*
 * The end of a job.  @result: for agent_call "return"; for agent_exec the members of guest-exec-status ("exitcode" or
 * "signal", "out-data", "err-data"), for agent_ping empty; borrowed; NULL with @err on failure.
 */
typedef void (*agent_done_fn)(void *ctx, json_t *result, const struct error *err);

/** agent_ping() - wait until the agent answers, at most @timeout_ns. */
int agent_ping(struct agent *a, int64_t timeout_ns, agent_done_fn done, void *ctx,
	       struct agent_job **out, struct error *err);

/**
 * agent_exec() - run a command.
 * @argv: JSON array of strings, the first is the program (searched in PATH); @input: base64 or NULL
 * @timeout_ns: for all of it; the command itself is not killed when it expires
 * Returns 0 and the job (until @done is called or agent_cancel), or -EBUSY with @err.
 */
int agent_exec(struct agent *a, json_t *argv, const char *input, int64_t timeout_ns,
	       agent_done_fn done, void *ctx, struct agent_job **out, struct error *err);

/**
 * agent_call() - one command of the agent's schema.
 * @arguments: borrowed; NULL: none.  The result: "return", what the agent returned.
 * Returns 0 and the job, or -ENOMEM.
 */
int agent_call(struct agent *a, const char *command, json_t *arguments, int64_t timeout_ns,
	       agent_done_fn done, void *ctx, struct agent_job **out, struct error *err);
/**
 * agent_set_time() - the program date in the guest, with the host's time at the moment when the command is sent; the end is as of agent_exec().
 * guest-set-time would keep the agent from everything else until hwclock has seen the end of a second.
 */
int agent_set_time(struct agent *a, int64_t timeout_ns, agent_done_fn done, void *ctx,
		   struct agent_job **out, struct error *err);
/** agent_is_busy() - a job is under way. */
bool agent_is_busy(const struct agent *a); /* NULL is fine: no */
/** agent_restart() - the guest went back to another moment: what was under way in it fails, and the channel is synchronised anew. */
void agent_restart(struct agent *a);

/** agent_delay() - @job, just made, begins @ns later: what others want goes first. */
void agent_delay(struct agent_job *job, int64_t ns);
/** agent_cancel() - forget it; @done is not called.  The command in the guest goes on. */
void agent_cancel(struct agent_job *job);

#endif
