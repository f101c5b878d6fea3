/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest takes part in, through its agent (agent.h): file systems that are frozen while a snapshot or copies are made, and
 * a clock and a MAC address that are set after it went on from an older moment, or in another machine.
 *
 *   freeze --> answer: take or fork --> thaw          a refusal, a time-out, a client that goes away --> thaw
 *
 * Whoever froze thaws, whatever became of it, again and again until the agent says that it did (THAW_TRIES).  A guest whose state was saved while it
 * was frozen wakes up so: it is thawed there, too.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "ctl/paths.h"
#include "ctl/snap_int.h"

#define NS_PER_S	  1000000000LL
#define FREEZE_TIMEOUT_NS (30 * NS_PER_S)
#define THAW_TIMEOUT_NS	  (60 * NS_PER_S)
#define THAW_TRIES	  20
#define HWCLOCK_AFTER_NS  (3 * NS_PER_S)
#define WAKE_TIMEOUT_NS	  (60 * NS_PER_S)

/* What is to be done once the guest is frozen. */
struct frozen {
	char **names; /* of the copies, or of the snapshot */
	unsigned n;
	bool is_fork;
	struct agent_job *job; /* NULL: it answered */
	bool is_refused;
	struct error why;
	snapper_done_fn done;
	void *ctx;
};

int64_t snap_real_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static void frozen_free(struct frozen *f)
{
	for (unsigned i = 0; i < f->n; i++)
		free(f->names[i]);
	free(f->names);
	free(f);
}

/* ---- thaw ---- */

static void thaw_again(struct snapper *s);

static void on_thawed(void *ctx, json_t *result, const struct error *err)
{
	struct snapper *s = ctx;

	s->thaw_job = NULL;
	if (!err)
		return;
	if (++s->nthaws < THAW_TRIES) {
		log_info("snapshot", "the guest's file systems are not thawed yet: %s", err->text);
		thaw_again(s);
		return;
	}
	log_error("snapshot", "the guest's file systems may still be frozen, as its agent does not thaw them: %s",
		  err->text);
}

static void thaw_again(struct snapper *s)
{
	struct error err;

	if (agent_call(s->agent, "guest-fsfreeze-thaw", NULL, THAW_TIMEOUT_NS, on_thawed, s,
		       &s->thaw_job, &err) < 0)
		log_error("snapshot", "the guest's file systems are still frozen: %s", err.text);
}

static void thaw(struct snapper *s)
{
	if (s->thaw_job)
		agent_cancel(s->thaw_job);
	s->thaw_job = NULL;
	s->nthaws = 0;
	thaw_again(s);
}

/* ---- freeze ---- */

/* By the loop: the agent's answer may come on the thread of a vCPU, and the machine cannot be paused there. */
static void go_on(void *arg)
{
	struct snapper *s = arg;
	struct frozen *f = s->frozen;
	int r = -EIO;

	if (!f || f->job)
		return; /* canceled meanwhile */
	s->frozen = NULL;
	if (!f->is_refused) {
		s->is_frozen = true;
		r = f->is_fork ? snapper_fork(s, (const char *const *)f->names, f->n, false,
					      f->done, f->ctx, &f->why)
			       : snapper_take(s, f->names[0], false, f->done, f->ctx, &f->why);
		s->is_frozen = false;
	}
	/* Also after a failure: it may have come too late only. */
	thaw(s);
	if (r < 0)
		f->done(f->ctx, NULL, &f->why);
	frozen_free(f);
}

static void on_frozen(void *ctx, json_t *result, const struct error *err)
{
	struct snapper *s = ctx;
	struct frozen *f = s->frozen;

	f->job = NULL;
	if (err) {
		f->is_refused = true;
		f->why = *err;
		error_prefix(&f->why, "the guest's file systems could not be frozen (it goes "
				      "without --freeze, too)");
	}
	if (loop_post(machine_loop(s->m), go_on, s) < 0) {
		s->frozen = NULL;
		error_set(&f->why, -ENOMEM, "no memory for a snapshot");
		thaw(s);
		f->done(f->ctx, NULL, &f->why);
		frozen_free(f);
	}
}

int snap_freeze(struct snapper *s, const char *const *names, unsigned n, bool is_fork,
		snapper_done_fn done, void *ctx, struct error *err)
{
	if (!s->agent)
		return error_set(err, -ENODEV,
				 "this machine was started without a guest agent's port, so its "
				 "file systems cannot be frozen; "
				 "leave --freeze out");
	if (machine_state(s->m) != MACHINE_RUNNING)
		return error_set(
			err, -EINVAL, "the machine is paused, so its agent can freeze nothing; resume it, or leave --freeze out");
	struct frozen *f = calloc(1, sizeof(*f));

	if (f)
		f->names = calloc(n, sizeof(*f->names));
	if (!f || !f->names) {
		free(f);
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	*f = (struct frozen){ .names = f->names, .is_fork = is_fork, .done = done, .ctx = ctx };
	int r = 0;

	for (; r == 0 && f->n < n; f->n++) {
		f->names[f->n] = strdup(names[f->n]);
		if (!f->names[f->n])
			r = error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	/* Nothing is frozen for a name that will be refused. */
	for (unsigned i = 0; r == 0 && i < n; i++)
		r = paths_check_name(is_fork ? "a machine" : "a snapshot", names[i], err);
	if (r == 0)
		r = agent_call(s->agent, "guest-fsfreeze-freeze", NULL, FREEZE_TIMEOUT_NS,
			       on_frozen, s, &f->job, err);
	if (r < 0) {
		frozen_free(f);
		return r;
	}
	s->frozen = f;
	return 0;
}

void snap_freeze_cancel(struct snapper *s, const void *ctx)
{
	struct frozen *f = s->frozen;

	if (!f || f->ctx != ctx)
		return;
	s->frozen = NULL;
	agent_cancel(f->job);
	frozen_free(f);
	thaw(s);
}

/* ---- after it woke up ---- */

static bool has_succeeded(json_t *result)
{
	return json_integer_value(json_object_get(result, "exitcode")) == 0;
}

static void on_time(void *ctx, json_t *result, const struct error *err)
{
	struct snapper *s = ctx;

	s->time_job = NULL;
	if (err || !has_succeeded(result))
		log_info("snapshot", "the guest's clock: %s", err ? err->text : "it can't be set");
}

/* It is right but for what it took to start a program. The real-time clock is quite right, and hwclock waits for its next second. */
static void on_date(void *ctx, json_t *result, const struct error *err)
{
	struct snapper *s = ctx;
	struct error why;

	on_time(ctx, result, err);
	json_t *argv = err ? NULL : json_pack("[s, s]", "hwclock", "--hctosys");

	if (argv && agent_exec(s->agent, argv, NULL, WAKE_TIMEOUT_NS, on_time, s, &s->time_job, &why) < 0)
		log_info("snapshot", "the guest's clock: %s", why.text);
	else if (argv)
		agent_delay(s->time_job, HWCLOCK_AFTER_NS);
	json_decref(argv);
}

static void on_mac(void *ctx, json_t *result, const struct error *err)
{
	struct snapper *s = ctx;

	s->mac_job = NULL;
	if (err || !has_succeeded(result))
		log_info("snapshot", "the guest keeps the MAC address that it had before: %s",
			 err ? err->text : "it has no such card, or no program ip");
}

/* Drivers read a card's address once only; this has a Linux guest take the new one without starting anew. */
static void set_mac(struct snapper *s)
{
	static const char script[] =
		"for n in /sys/class/net/*; do [ \"$(cat $n/address)\" != \"$0\" ] || "
		"exec ip link set dev \"${n##*/}\" address \"$1\"; done; exit 1";
	uint8_t m[6], own[6];
	struct error err;
	char old[18];

	if (s->mac_job)
		agent_cancel(s->mac_job);
	s->mac_job = NULL;
	if (!s->config->mac || vmconfig_parse_mac(s->config->mac, own, &err) < 0 ||
	    !machine_card_mac(s->m, 0, m) || !memcmp(m, own, sizeof(m)))
		return;
	snprintf(old, sizeof(old), "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
	json_t *argv = json_pack("[s, s, s, s, s]", "/bin/sh", "-c", script, old, s->config->mac);

	if (!argv || agent_exec(s->agent, argv, NULL, WAKE_TIMEOUT_NS, on_mac, s, &s->mac_job, &err) < 0)
		log_info("snapshot", "the guest keeps the MAC address that it had before: %s",
			 argv ? err.text : "no memory");
	json_decref(argv);
}

void snapper_woke(struct snapper *s, const struct snapper_moment *moment, bool tells_guest)
{
	struct error err;

	if (!s->agent)
		return;
	if (moment->is_frozen)
		thaw(s);
	if (s->time_job)
		agent_cancel(s->time_job);
	s->time_job = NULL;
	if (tells_guest && agent_set_time(s->agent, WAKE_TIMEOUT_NS, on_date, s, &s->time_job, &err) < 0)
		log_info("snapshot", "the guest's clock is not set: %s", err.text);
	if (tells_guest)
		set_mac(s);
}

void snap_guest_destroy(struct snapper *s)
{
	if (s->frozen) {
		agent_cancel(s->frozen->job);
		frozen_free(s->frozen);
	}
	agent_cancel(s->thaw_job);
	agent_cancel(s->time_job);
	agent_cancel(s->mac_job);
}
