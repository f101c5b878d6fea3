/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest takes part in, through its agent (agent.h): file systems that are frozen while a snapshot or copies are made, and
 * a clock and a MAC address that are set after it went on from an older moment, or in another machine.
 *
 *   freeze --> answer: take or fork --> thaw          a refusal, a time-out, a client that goes away --> thaw
 *
 * And what waits for others that exchange files of snapshots, so that the loop does not.
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
#include "net/identity.h"

#define NS_PER_S	  1000000000LL
#define FREEZE_TIMEOUT_NS (30 * NS_PER_S)
#define LOCK_POLL_NS	  1000000LL
#define THAW_TIMEOUT_NS	  (60 * NS_PER_S)
#define THAW_TRIES	  20
#define HWCLOCK_AFTER_NS  (3 * NS_PER_S)
#define WAKE_TIMEOUT_NS	  (60 * NS_PER_S)

/* What is to be done once the guest is frozen, and nobody exchanges files of snapshots. */
struct pending {
	enum snap_verb verb;
	char **names;
	unsigned n;
	bool freezes;
	struct snapper_waking waking; /* SNAP_RESTORE */
	struct agent_job *job; /* it is being asked to freeze; NULL: it answered, or nobody asks */
	bool is_refused;
	struct vtimer *timer; /* for the lock of the snapshots; NULL: it was not tried yet */
	int64_t until_ns;
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

static void pending_free(struct pending *p)
{
	vtimer_destroy(p->timer);
	for (unsigned i = 0; i < p->n; i++)
		free(p->names[i]);
	free(p->names);
	free(p);
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

/* ---- freeze, wait ---- */

static void go_on(void *arg);

static int begin(struct snapper *s, struct pending *p, int lock, struct error *err)
{
	if (p->verb == SNAP_TAKE)
		return snap_begin_take(s, p->names[0], lock, p->done, p->ctx, err);
	if (p->verb == SNAP_FORK)
		return snap_begin_fork(s, (const char *const *)p->names, p->n, lock, p->done,
				       p->ctx, err);
	json_t *result = json_object();
	int r = snap_go_back(s, p->names[0], &p->waking, lock, result, err);

	if (r == 0)
		p->done(p->ctx, result, NULL);
	json_decref(result);
	return r;
}

/* False: nobody gives it up yet, and go_on() comes again. */
static bool take_turn(struct snapper *s, struct pending *p, int *lock)
{
	*lock = snapstore_try_lock(s->config->name, false, &p->why);
	if (*lock != -EAGAIN)
		return true;
	if (!p->timer) {
		p->timer = vtimer_create(machine_loop(s->m), s->clock, go_on, s);
		p->until_ns = vclock_now_ns(s->clock) + SNAPSTORE_LOCK_MS * 1000000LL;
	}
	if (!p->timer || vclock_now_ns(s->clock) >= p->until_ns)
		return true;
	vtimer_arm(p->timer, vclock_now_ns(s->clock) + LOCK_POLL_NS);
	return false;
}

/* By the loop: the agent's answer may come on the thread of a vCPU, and the machine cannot be paused there. */
static void go_on(void *arg)
{
	struct snapper *s = arg;
	struct pending *p = s->pending;
	int r = -EIO, lock = -1;

	if (!p || p->job)
		return; /* canceled meanwhile */
	if (!p->is_refused && !take_turn(s, p, &lock))
		return;
	s->pending = NULL;
	if (!p->is_refused && lock < 0) {
		r = lock;
	} else if (!p->is_refused) {
		s->is_frozen = p->freezes;
		r = begin(s, p, lock, &p->why);
		s->is_frozen = false;
	}
	/* Also after a failure: it may have come too late only. */
	if (p->freezes)
		thaw(s);
	if (r < 0)
		p->done(p->ctx, NULL, &p->why);
	pending_free(p);
}

static void on_frozen(void *ctx, json_t *result, const struct error *err)
{
	struct snapper *s = ctx;
	struct pending *p = s->pending;

	p->job = NULL;
	if (err) {
		p->is_refused = true;
		p->why = *err;
		error_prefix(&p->why, "the guest's file systems could not be frozen (it goes "
				      "without --freeze, too)");
	}
	if (loop_post(machine_loop(s->m), go_on, s) < 0) {
		s->pending = NULL;
		error_set(&p->why, -ENOMEM, "no memory for a snapshot");
		thaw(s);
		p->done(p->ctx, NULL, &p->why);
		pending_free(p);
	}
}

static int make_pending(struct pending **out, const struct snap_order *o, bool freezes, struct error *err)
{
	struct pending *p = calloc(1, sizeof(*p));

	if (p)
		p->names = calloc(o->n, sizeof(*p->names));
	if (!p || !p->names) {
		free(p);
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	p->verb = o->verb;
	p->waking = o->waking;
	p->freezes = freezes;
	p->done = o->done;
	p->ctx = o->ctx;
	int r = 0;

	for (; r == 0 && p->n < o->n; p->n++) {
		p->names[p->n] = strdup(o->names[p->n]);
		if (!p->names[p->n])
			r = error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	/* Nothing is frozen, and nobody waits, for a name that will be refused. */
	for (unsigned i = 0; r == 0 && i < p->n; i++)
		r = paths_check_name(o->verb == SNAP_FORK ? "a machine" : "a snapshot", p->names[i], err);
	if (r < 0)
		pending_free(p);
	else
		*out = p;
	return r;
}

int snap_freeze(struct snapper *s, const struct snap_order *o, struct error *err)
{
	struct pending *p;

	if (!s->agent)
		return error_set(err, -ENODEV,
				 "this machine was started without a guest agent's port, so its "
				 "file systems cannot be frozen; "
				 "leave --freeze out");
	if (machine_state(s->m) != MACHINE_RUNNING)
		return error_set(
			err, -EINVAL, "the machine is paused, so its agent can freeze nothing; resume it, or leave --freeze out");
	int r = make_pending(&p, o, true, err);

	if (r < 0)
		return r;
	r = agent_call(s->agent, "guest-fsfreeze-freeze", NULL, FREEZE_TIMEOUT_NS, on_frozen, s,
		       &p->job, err);
	if (r < 0) {
		pending_free(p);
		return r;
	}
	s->pending = p;
	return 0;
}

int snap_wait(struct snapper *s, const struct snap_order *o, struct error *err)
{
	int r = make_pending(&s->pending, o, false, err);

	if (r == 0)
		r = loop_post(machine_loop(s->m), go_on, s);
	if (r < 0 && s->pending) {
		pending_free(s->pending);
		s->pending = NULL;
		error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	return r;
}

void snap_pending_cancel(struct snapper *s, const void *ctx)
{
	struct pending *p = s->pending;

	if (!p || p->ctx != ctx)
		return;
	s->pending = NULL;
	agent_cancel(p->job);
	if (p->freezes)
		thaw(s);
	pending_free(p);
}

/* ---- after it woke up ---- */

static void format_mac(const uint8_t m[6], char out[18])
{
	snprintf(out, 18, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
}

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

bool snapper_on_clock(struct snapper *s, void (*fn)(void *arg), void *arg)
{
	s->on_clock = s->time_job ? fn : NULL;
	s->on_clock_arg = arg;
	return s->on_clock;
}

/* It is right but for what it took to start a program. The real-time clock is quite right, and hwclock waits for its next second. */
static void on_date(void *ctx, json_t *result, const struct error *err)
{
	struct snapper *s = ctx;
	struct error why;

	on_time(ctx, result, err);
	if (s->on_clock)
		s->on_clock(s->on_clock_arg);
	s->on_clock = NULL;
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
static const char mac_script[] =
	"for n in /sys/class/net/*; do [ \"$(cat $n/address)\" != \"$0\" ] || "
	"exec ip link set dev \"${n##*/}\" address \"$1\"; done; exit 1";

static json_t *mac_command(struct snapper *s)
{
	uint8_t m[6], own[6];
	struct error err;
	char old[18];

	if (!s->config->mac || vmconfig_parse_mac(s->config->mac, own, &err) < 0 ||
	    !machine_card_mac(s->m, 0, m) || !memcmp(m, own, sizeof(m)))
		return NULL;
	format_mac(m, old);
	return json_pack("[s, s, s, s, s]", "/bin/sh", "-c", mac_script, old, s->config->mac);
}

/*
 * In a lab the addresses are others, too, and all the cards' (old MAC, new MAC, address or -, gateway or -).  What was learnt with
 * the old ones goes with the link; a DHCP client is given the same address.
 */
static const char card_script[] =
	"s=0; while [ $# -ge 4 ]; do d=; "
	"for n in /sys/class/net/*; do [ \"$(cat $n/address)\" != \"$1\" ] || d=${n##*/}; done; "
	"if [ \"$d\" ]; then "
	"ip link set dev \"$d\" down; ip link set dev \"$d\" address \"$2\" || s=1; [ \"$3\" = - ] "
	"|| ip addr flush dev \"$d\"; "
	"ip link set dev \"$d\" up; [ \"$3\" = - ] || ip addr add \"$3\" brd + dev \"$d\"; "
	"[ \"$4\" = - ] || ip route replace default via \"$4\" dev \"$d\"; "
	"else s=1; fi; shift 4; done; exit $s";

static json_t *card_command(struct snapper *s, json_t *record)
{
	json_t *argv = json_pack("[s, s, s, s]", "/bin/sh", "-c", card_script, "cards");
	struct identity_card c;
	bool is_new = false;
	uint8_t m[6];
	char old[18];

	for (unsigned i = 0; identity_card(record, i, &c) && machine_card_mac(s->m, i, m); i++) {
		format_mac(m, old);
		if (strcmp(old, c.mac) == 0)
			continue;
		is_new = true;
		json_array_append_new(argv, json_string(old));
		json_array_append_new(argv, json_string(c.mac));
		json_array_append_new(argv, json_string(*c.address ? c.address : "-"));
		json_array_append_new(argv, json_string(*c.gateway ? c.gateway : "-"));
	}
	if (is_new)
		return argv;
	json_decref(argv);
	return NULL;
}

static void set_cards(struct snapper *s, json_t *record)
{
	json_t *argv = record ? card_command(s, record) : mac_command(s);
	struct error err;

	if (s->mac_job)
		agent_cancel(s->mac_job);
	s->mac_job = NULL;
	if (argv && agent_exec(s->agent, argv, NULL, WAKE_TIMEOUT_NS, on_mac, s, &s->mac_job, &err) < 0)
		log_info("snapshot", "the guest keeps the MAC address that it had before: %s", err.text);
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
	/* A copy's clock is right, and behind NAT it may keep its MAC address; in a lab it is another machine. */
	json_t *record = s->identity ? s->identity(s->identity_arg) : NULL;
	if (tells_guest || record)
		set_cards(s, record);
	json_decref(record);
}

void snap_guest_destroy(struct snapper *s)
{
	if (s->pending) {
		agent_cancel(s->pending->job);
		pending_free(s->pending);
	}
	agent_cancel(s->thaw_job);
	agent_cancel(s->time_job);
	agent_cancel(s->mac_job);
}
