/* SPDX-License-Identifier: Apache-2.0 */
/*
 * States of the channel, and what leads from one to the next
 *
 *   CH_IDLE     nothing under way            -- a job is due -->            CH_SYNC or CH_BUSY
 *   CH_SYNC     guest-sync-delimited sent    -- the right answer -->        CH_BUSY or CH_IDLE
 *                                            -- SYNC_RETRY_NS without -->   CH_SYNC again
 *   CH_BUSY     a command of `current` sent  -- its answer -->              CH_IDLE
 *                                            -- REPLY_TIMEOUT_NS, nonsense --> CH_IDLE, unsynchronised
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "ctl/agent.h"

#define MS		 1000000LL
#define SYNC_RETRY_NS	 (500 * MS)
#define REPLY_TIMEOUT_NS (15000 * MS)
#define POLL_MIN_NS	 (2 * MS)
#define POLL_MAX_NS	 (200 * MS)
#define POLL_PART                                                                                  \
	4 /* the next look comes after that part of the time since the start: an end is seen that much late, at most */

enum channel { CH_IDLE, CH_SYNC, CH_BUSY };
enum step { STEP_NEW, STEP_START, STEP_POLL }; /* what the job does next */

struct agent_job {
	struct agent *a;
	struct agent_job *next;
	bool is_ping, is_call, is_set_time;
	enum step step;
	char *request; /* the guest-exec line */
	json_int_t pid;
	int64_t deadline_ns, due_ns, started_ns;
	agent_done_fn done;
	void *ctx;
};

struct agent {
	struct char_dev chr;
	struct vclock *clock;
	struct vtimer *timer;
	struct bytes tx; /* to the guest, from tx_off */
	size_t tx_off;
	struct bytes rx;     /* a line that is not complete */
	bool is_rx_skipping; /* the line is too long: drop up to its end */
	enum channel channel;
	struct agent_job *current; /* CH_SYNC, CH_BUSY; NULL: was cancelled */
	uint32_t sync_id;
	int64_t sent_ns;
	struct agent_job *jobs;
	unsigned njobs;
};

bool agent_is_busy(const struct agent *a)
{
	return a && a->jobs;
}

static struct agent *agent_of(struct char_dev *c)
{
	return container_of(c, struct agent, chr);
}

/* ---- sending ---- */

static void push_tx(struct agent *a)
{
	const struct char_user *u = &a->chr.user;

	while (u->receive && a->tx_off < a->tx.len) {
		size_t room = u->can_receive(u->ctx);
		size_t n = MIN(room, a->tx.len - a->tx_off);

		if (n == 0)
			return;
		u->receive(u->ctx, a->tx.data + a->tx_off, n);
		a->tx_off += n;
	}
	a->tx.len = a->tx_off = 0;
}

/* One command at a time: what was not taken of an earlier one is void. */
static void send_line(struct agent *a, const char *line, enum channel next)
{
	if (a->tx_off == 0)
		a->tx.len = 0;
	bytes_put(&a->tx, line, strlen(line));
	bytes_put_u8(&a->tx, '\n');
	if (a->tx.is_failed)
		bytes_free(&a->tx); /* no memory: the reply time-out tries again */
	a->channel = next;
	a->sent_ns = vclock_now_ns(a->clock);
	push_tx(a);
}

static void send_sync(struct agent *a)
{
	char line[128];

	/* 0xff: the agent's parser starts anew; its answer is preceded by 0xff too. */
	snprintf(line, sizeof(line),
		 "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" PRIu32 "}}",
		 ++a->sync_id);
	send_line(a, line, CH_SYNC);
}

/* ---- jobs ---- */

static void job_unlink(struct agent_job *job)
{
	struct agent *a = job->a;

	for (struct agent_job **p = &a->jobs; *p; p = &(*p)->next) {
		if (*p == job) {
			*p = job->next;
			a->njobs--;
			break;
		}
	}
	if (a->current == job)
		a->current = NULL;
}

static void job_free(struct agent_job *job)
{
	free(job->request);
	free(job);
}

static void job_end(struct agent_job *job, json_t *result, const struct error *err)
{
	job_unlink(job);
	job->done(job->ctx, result, err);
	job_free(job);
}

static void job_fail(struct agent_job *job, int code, const char *text)
{
	struct error err;

	error_set(&err, code, "%s", text);
	job_end(job, NULL, &err);
}

void agent_cancel(struct agent_job *job)
{
	if (!job)
		return;
	job_unlink(job);
	job_free(job);
}

static void send_job(struct agent *a, struct agent_job *job)
{
	char line[160];

	a->current = job;
	if (job->step == STEP_START && job->is_set_time) {
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		snprintf(line, sizeof(line),
			 "{\"execute\":\"guest-exec\",\"arguments\":{\"path\":\"date\",\"arg\":"
			 "[\"-u\",\"-s\",\"@%lld.%09ld\"]}}",
			 (long long)now.tv_sec, now.tv_nsec);
		send_line(a, line, CH_BUSY);
		return;
	}
	if (job->step == STEP_START) {
		send_line(a, job->request, CH_BUSY);
		return;
	}
	snprintf(line, sizeof(line),
		 "{\"execute\":\"guest-exec-status\",\"arguments\":{\"pid\":%" JSON_INTEGER_FORMAT "}}",
		 job->pid);
	send_line(a, line, CH_BUSY);
}

/* Expired jobs end; the due one that waited longest is the first in the list (it goes to the end after
 * each turn). */
static struct agent_job *next_due(struct agent *a, int64_t now)
{
	for (struct agent_job *j = a->jobs; j; j = j->next) {
		if (j->due_ns <= now)
			return j;
	}
	return NULL;
}

static void expire_jobs(struct agent *a, int64_t now)
{
	struct agent_job *j = a->jobs;

	while (j) {
		if (j->deadline_ns > now) {
			j = j->next;
			continue;
		}
		job_fail(j, -ETIMEDOUT, j->step == STEP_NEW ? "the guest agent does not answer: is qemu-guest-agent running in the guest?" : "the command did not end in time; it goes on in the guest");
		j = a->jobs; /* the callback may have changed the list */
	}
}

static void arm(struct agent *a)
{
	int64_t next = INT64_MAX;

	for (struct agent_job *j = a->jobs; j; j = j->next) {
		next = MIN(next, j->deadline_ns);
		if (a->channel == CH_IDLE)
			next = MIN(next, j->due_ns);
	}
	if (a->channel == CH_SYNC && a->jobs)
		next = MIN(next, a->sent_ns + SYNC_RETRY_NS);
	if (a->channel == CH_BUSY)
		next = MIN(next, a->sent_ns + REPLY_TIMEOUT_NS);
	if (next == INT64_MAX)
		vtimer_cancel(a->timer);
	else
		vtimer_arm(a->timer, next);
}

static void pump(struct agent *a)
{
	int64_t now = vclock_now_ns(a->clock);
	struct agent_job *job;

	expire_jobs(a, now);
	if (a->channel == CH_BUSY && now - a->sent_ns >= REPLY_TIMEOUT_NS) {
		if (a->current)
			job_fail(a->current, -ETIMEDOUT, "the guest agent stopped answering");
		a->channel = CH_IDLE;
	}
	if (a->channel == CH_SYNC && (!a->jobs || now - a->sent_ns >= SYNC_RETRY_NS))
		a->channel = CH_IDLE;
	if (a->channel == CH_IDLE && (job = next_due(a, now))) {
		if (job->step == STEP_NEW) {
			a->current = job;
			send_sync(a);
		} else {
			send_job(a, job);
		}
	}
	arm(a);
}

static void on_timer(void *arg)
{
	pump(arg);
}

/* ---- replies ---- */

static void job_poll_later(struct agent_job *job)
{
	struct agent *a = job->a;
	int64_t now = vclock_now_ns(a->clock), wait_ns = (now - job->started_ns) / POLL_PART;

	job->due_ns = now + MIN(MAX(wait_ns, POLL_MIN_NS), POLL_MAX_NS);
	/* to the end of the list: the others come first */
	job_unlink(job);
	job->next = NULL;
	struct agent_job **p = &a->jobs;

	while (*p)
		p = &(*p)->next;
	*p = job;
	a->njobs++;
}

static void job_agent_error(struct agent_job *job, json_t *error)
{
	const char *desc = json_string_value(json_object_get(error, "desc"));
	char text[300];

	snprintf(text, sizeof(text), "the guest agent refused: %.250s", desc ? desc : "no reason given");
	job_fail(job, -EREMOTEIO, text);
}

static void on_reply(struct agent *a, json_t *msg)
{
	struct agent_job *job = a->current;
	json_t *error = json_object_get(msg, "error");
	json_t *ret = json_object_get(msg, "return");

	a->channel = CH_IDLE;
	if (!job)
		return; /* cancelled meanwhile */
	a->current = NULL;
	if (error) {
		job_agent_error(job, error);
		return;
	}
	if (job->is_call) {
		json_t *result = json_pack("{s:O}", "return", ret ? ret : json_null());

		job_end(job, result, NULL);
		json_decref(result);
		return;
	}
	if (job->step == STEP_START) {
		json_t *pid = json_object_get(ret, "pid");

		if (!json_is_integer(pid)) {
			job_fail(job, -EPROTO, "the guest agent's answer makes no sense");
			return;
		}
		job->pid = json_integer_value(pid);
		job->started_ns = vclock_now_ns(a->clock);
		job->step = STEP_POLL;
		job_poll_later(job);
	} else if (json_is_true(json_object_get(ret, "exited"))) {
		job_end(job, ret, NULL);
	} else {
		job_poll_later(job);
	}
}

static void on_sync(struct agent *a, json_t *msg)
{
	struct agent_job *job = a->current;
	json_t *ret = json_object_get(msg, "return");

	if (!json_is_integer(ret) || json_integer_value(ret) != (json_int_t)a->sync_id)
		return; /* of an earlier one, or of a command given up */
	a->channel = CH_IDLE;
	a->current = NULL;
	if (!job)
		return;
	if (job->is_ping) {
		json_t *empty = json_object();

		job_end(job, empty, NULL);
		json_decref(empty);
		return;
	}
	job->step = STEP_START;
	send_job(a, job);
}

static void on_line(struct agent *a, const char *line, size_t len)
{
	json_t *msg;

	while (len && (uint8_t)*line == 0xff) {
		line++;
		len--;
	}
	if (len == 0)
		return;
	msg = json_loadb(line, len, 0, NULL);
	if (!msg) {
		log_guest("agent", "a line that is no JSON, %zu bytes", len);
		return;
	}
	if (a->channel == CH_SYNC)
		on_sync(a, msg);
	else if (a->channel == CH_BUSY)
		on_reply(a, msg);
	json_decref(msg);
}

/* ---- the character device ---- */

static size_t chr_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	struct agent *a = agent_of(c);

	for (size_t at = 0; at < len;) {
		const uint8_t *nl = memchr(data + at, '\n', len - at);
		size_t n = nl ? (size_t)(nl - (data + at)) : len - at;

		if (!a->is_rx_skipping && a->rx.len + n <= AGENT_LINE_MAX)
			bytes_put(&a->rx, data + at, n);
		else
			a->is_rx_skipping = true;
		if (a->rx.is_failed)
			a->is_rx_skipping = true;
		at += n;
		if (!nl)
			break;
		at++;
		if (!a->is_rx_skipping)
			on_line(a, (const char *)a->rx.data, a->rx.len);
		else
			log_guest("agent", "a line that is too long");
		a->is_rx_skipping = false;
		if (a->rx.cap > MIB || a->rx.is_failed)
			bytes_free(&a->rx);
		a->rx.len = 0;
	}
	pump(a);
	return len;
}

static void chr_rx_ready(struct char_dev *c)
{
	push_tx(agent_of(c));
}

static void chr_close(struct char_dev *c)
{
	c->user = (struct char_user){ 0 };
}

static const struct char_ops agent_char_ops = { chr_write, chr_rx_ready, chr_close };

/* ---- life cycle ---- */

int agent_create(struct agent **out, struct loop *loop, struct vclock *clock, struct error *err)
{
	struct agent *a = calloc(1, sizeof(*a));

	if (!a)
		return error_set(err, -ENOMEM, "no memory for the guest agent's channel");
	a->chr.ops = &agent_char_ops;
	a->clock = clock;
	a->timer = vtimer_create(loop, clock, on_timer, a);
	if (!a->timer) {
		free(a);
		return error_set(err, -ENOMEM, "no memory for a timer");
	}
	*out = a;
	return 0;
}

void agent_destroy(struct agent *a)
{
	if (!a)
		return;
	while (a->jobs)
		agent_cancel(a->jobs);
	vtimer_destroy(a->timer);
	bytes_free(&a->tx);
	bytes_free(&a->rx);
	free(a);
}

struct char_dev *agent_chardev(struct agent *a)
{
	return &a->chr;
}

static int job_add(struct agent *a, struct agent_job **out, int64_t timeout_ns, agent_done_fn done,
		   void *ctx, struct error *err)
{
	struct agent_job *job, **p = &a->jobs;

	job = calloc(1, sizeof(*job));
	if (!job)
		return error_set(err, -ENOMEM, "no memory for a command");
	job->a = a;
	job->due_ns = vclock_now_ns(a->clock);
	job->deadline_ns = job->due_ns + timeout_ns;
	job->done = done;
	job->ctx = ctx;
	while (*p)
		p = &(*p)->next;
	*p = job;
	a->njobs++;
	*out = job;
	return 0;
}

/* The callback never comes from inside of the call: the timer starts the job. */
static void job_kick(struct agent *a)
{
	arm(a);
}

static int check_room(const struct agent *a, struct error *err)
{
	return a->njobs < AGENT_MAX_JOBS
		       ? 0
		       : error_set(err, -EBUSY, "%d commands run in this guest already", AGENT_MAX_JOBS);
}

int agent_ping(struct agent *a, int64_t timeout_ns, agent_done_fn done, void *ctx,
	       struct agent_job **out, struct error *err)
{
	int r = check_room(a, err);

	if (r == 0)
		r = job_add(a, out, timeout_ns, done, ctx, err);
	if (r < 0)
		return r;
	(*out)->is_ping = true;
	job_kick(a);
	return 0;
}

static char *exec_request(json_t *argv, const char *input)
{
	json_t *args = json_array(), *req = NULL;
	char *text = NULL;

	for (size_t i = 1; args && i < json_array_size(argv); i++) {
		if (json_array_append(args, json_array_get(argv, i)) < 0) {
			json_decref(args);
			args = NULL;
		}
	}
	if (args)
		req = json_pack("{s:s, s:{s:O, s:o, s:b, s:s*}}", "execute", "guest-exec",
				"arguments", "path", json_array_get(argv, 0), "arg", args,
				"capture-output", 1, "input-data", input);
	if (req)
		text = json_dumps(req, JSON_COMPACT | JSON_ENSURE_ASCII);
	json_decref(req);
	return text;
}

int agent_exec(struct agent *a, json_t *argv, const char *input, int64_t timeout_ns,
	       agent_done_fn done, void *ctx, struct agent_job **out, struct error *err)
{
	struct agent_job *job;
	int r = check_room(a, err);

	if (r == 0)
		r = job_add(a, &job, timeout_ns, done, ctx, err);
	if (r < 0)
		return r;
	job->request = exec_request(argv, input);
	if (!job->request) {
		agent_cancel(job);
		return error_set(err, -ENOMEM, "no memory for a command");
	}
	*out = job;
	job_kick(a);
	return 0;
}

/* The machine's own: few, and not to be kept out by commands of others. */
int agent_call(struct agent *a, const char *command, json_t *arguments, int64_t timeout_ns,
	       agent_done_fn done, void *ctx, struct agent_job **out, struct error *err)
{
	json_t *req = json_pack("{s:s, s:O*}", "execute", command, "arguments", arguments);
	char *text = req ? json_dumps(req, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
	struct agent_job *job;

	json_decref(req);
	int r = text ? job_add(a, &job, timeout_ns, done, ctx, err)
		     : error_set(err, -ENOMEM, "no memory for a command");

	if (r < 0) {
		free(text);
		return r;
	}
	job->is_call = true;
	job->request = text;
	*out = job;
	job_kick(a);
	return 0;
}

int agent_set_time(struct agent *a, int64_t timeout_ns, agent_done_fn done, void *ctx,
		   struct agent_job **out, struct error *err)
{
	int r = job_add(a, out, timeout_ns, done, ctx, err);

	if (r < 0)
		return r;
	(*out)->is_set_time = true;
	job_kick(a);
	return 0;
}

void agent_restart(struct agent *a)
{
	struct agent_job *job = a->jobs;

	a->channel = CH_IDLE;
	a->current = NULL;
	a->tx.len = a->tx_off = a->rx.len = 0;
	a->is_rx_skipping = false;
	while (job) {
		if (job->step == STEP_NEW) {
			job = job->next;
			continue;
		}
		job_fail(job, -ECANCELED, "the machine went back to another moment meanwhile");
		job = a->jobs; /* the callback may have changed the list */
	}
	job_kick(a);
}

void agent_delay(struct agent_job *job, int64_t ns)
{
	job->due_ns += ns;
	arm(job->a);
}
