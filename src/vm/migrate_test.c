/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every interleaving of both sides of a migration: messages in two queues, a link that is cut once and loses any number of the last
 * messages each way, a crash of each side between any two actions, a cancel on each side, one action that fails on each side; with all of
 * memory there before the machine runs at the target, or a part of it after that.
 * The invariants are checked in every state that can be reached, and where nothing more happens by itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "vm/migrate.h"

enum message {
	M_NONE,
	M_OFFER,
	M_REST,
	M_COMMIT,
	M_PAGES, /* the last of those that were missing */
	M_ACCEPT,
	M_LOADED,
	M_RUNNING,
	M_REFUSED,
	M_FETCHED
};
enum claim { CLAIM_NONE, CLAIM_OPEN, CLAIM_RAN, CLAIM_ABORTED };

struct model {
	uint32_t src_todo, dst_todo;
	uint8_t src, dst; /* states */
	uint8_t to_dst[4], to_src[4];
	uint8_t claim;
	bool src_runs, dst_runs, src_disks, dst_disks;
	bool src_dead, dst_dead;
	bool has_mark, src_gone; /* the source's folder */
	bool is_lazy, dst_lacks; /* post-copy; the target lacks memory */
	bool is_cut;		 /* what is in the queues still comes, then LOST */
	bool src_hung_up, dst_hung_up;
	/* What can happen once. */
	bool may_cut, may_crash_src, may_crash_dst, may_cancel_src, may_cancel_dst, may_fail_src,
		may_fail_dst;
};

/* ---- the set of states seen ---- */

struct set {
	struct model *all;
	uint32_t *slots; /* index + 1 */
	size_t n, cap, nslots;
};

static uint64_t hash(const struct model *m)
{
	const uint8_t *p = (const void *)m;
	uint64_t h = 1469598103934665603ULL;

	for (size_t i = 0; i < sizeof(*m); i++)
		h = (h ^ p[i]) * 1099511628211ULL;
	return h;
}

static void set_grow(struct set *s)
{
	s->cap = s->cap ? 2 * s->cap : 4096;
	s->all = realloc(s->all, s->cap * sizeof(*s->all));
	s->nslots = 4 * s->cap;
	free(s->slots);
	s->slots = calloc(s->nslots, sizeof(*s->slots));
	assert_true(s->all && s->slots);
	for (size_t i = 0; i < s->n; i++) {
		size_t at = hash(&s->all[i]) % s->nslots;

		while (s->slots[at])
			at = (at + 1) % s->nslots;
		s->slots[at] = (uint32_t)i + 1;
	}
}

static void set_add(struct set *s, const struct model *m)
{
	if (s->n == s->cap)
		set_grow(s);
	size_t at = hash(m) % s->nslots;

	for (; s->slots[at]; at = (at + 1) % s->nslots)
		if (!memcmp(&s->all[s->slots[at] - 1], m, sizeof(*m)))
			return;
	s->all[s->n++] = *m;
	s->slots[at] = (uint32_t)s->n;
}

/* ---- what happens ---- */

static void push(uint8_t queue[4], enum message msg)
{
	unsigned i = 0;

	while (queue[i])
		assert_true(++i < 4);
	queue[i] = msg;
}

static void pop(uint8_t queue[4])
{
	memmove(queue, queue + 1, 3);
	queue[3] = 0;
}

static bool link_is_there(const struct model *m)
{
	return !m->is_cut && !m->src_hung_up && !m->dst_hung_up && !m->src_dead && !m->dst_dead;
}

static void send_to_dst(struct model *m, enum message msg)
{
	if (link_is_there(m))
		push(m->to_dst, msg);
}

static void send_to_src(struct model *m, enum message msg)
{
	if (link_is_there(m))
		push(m->to_src, msg);
}

static bool src_event(struct model *m, enum migrate_event ev)
{
	enum migrate_source_state s = m->src;
	uint32_t todo = 0;

	if (!migrate_source_next(&s, ev, &todo))
		return false;
	m->src = (uint8_t)s;
	m->src_todo = todo;
	return true;
}

static bool dst_event(struct model *m, enum migrate_event ev)
{
	enum migrate_target_state s = m->dst;
	uint32_t todo = 0;

	if (!migrate_target_next(&s, ev, &todo))
		return false;
	m->dst = (uint8_t)s;
	m->dst_todo = todo;
	if (migrate_target_is_end(s) && s == TARGET_GONE)
		memset(m->to_dst, 0, sizeof(m->to_dst));
	return true;
}

/* Asked from anywhere: final from now on. */
static enum migrate_event answer(struct model *m)
{
	assert_int_not_equal(m->claim, CLAIM_NONE);
	if (m->claim == CLAIM_OPEN)
		m->claim = CLAIM_ABORTED;
	return m->claim == CLAIM_RAN ? MIGRATE_EV_RAN : MIGRATE_EV_ABORTED;
}

/*
 * The source asks, and the link on which it does becomes the one for pages if the target lacks some.  Returns false while the target is between two
 * states: it answers then.
 */
static bool src_asks(struct model *m)
{
	enum migrate_event ev = answer(m);

	if (ev != MIGRATE_EV_RAN || !m->dst_lacks || m->dst_dead)
		return src_event(m, ev);
	if (m->dst != TARGET_CUT_OFF || m->dst_todo)
		return false;
	m->is_cut = m->src_hung_up = m->dst_hung_up = false;
	memset(m->to_src, 0, sizeof(m->to_src));
	memset(m->to_dst, 0, sizeof(m->to_dst));
	return dst_event(m, MIGRATE_EV_BACK) && src_event(m, MIGRATE_EV_LACKING);
}

/* Returns false while the action has to wait. */
static bool src_act(struct model *m, uint32_t action)
{
	switch (action) {
	case MIGRATE_OFFER:
		send_to_dst(m, M_OFFER);
		break;
	case MIGRATE_COPY:
		break;
	case MIGRATE_MARK:
		m->has_mark = true;
		break;
	case MIGRATE_PAUSE:
		m->src_runs = false;
		break;
	case MIGRATE_REST:
		send_to_dst(m, M_REST);
		break;
	case MIGRATE_RELEASE:
		m->src_disks = false;
		break;
	case MIGRATE_COMMIT:
		send_to_dst(m, M_COMMIT);
		break;
	case MIGRATE_HANG_UP:
		m->src_hung_up = true;
		memset(m->to_src, 0, sizeof(m->to_src));
		break;
	case MIGRATE_ASK:
		return src_asks(m);
	case MIGRATE_RETAKE:
		if (m->dst_disks)
			return false;
		m->src_disks = true;
		break;
	case MIGRATE_RESUME:
		assert_true(m->src_disks);
		m->src_runs = true;
		break;
	case MIGRATE_UNMARK:
		m->has_mark = false;
		break;
	case MIGRATE_SERVE:
		send_to_dst(m, M_PAGES);
		break;
	case MIGRATE_END:
		m->src_runs = m->src_disks = m->has_mark = false;
		m->src_gone = true;
		break;
	default:
		fail_msg("the source knows no action %#x", action);
	}
	m->src_todo &= ~action;
	return true;
}

static void dst_act(struct model *m, uint32_t action)
{
	m->dst_todo &= ~action;
	switch (action) {
	case MIGRATE_BUILD:
		m->claim = CLAIM_OPEN;
		assert_true(dst_event(m, MIGRATE_EV_BUILT));
		break;
	case MIGRATE_ACCEPT:
		send_to_src(m, M_ACCEPT);
		break;
	case MIGRATE_TELL_LOADED:
		send_to_src(m, M_LOADED);
		break;
	case MIGRATE_TAKE:
		/* They are locked: a source that has asked is faster. */
		if (m->src_disks)
			assert_true(dst_event(m, MIGRATE_EV_TROUBLE));
		else
			m->dst_disks = true;
		break;
	case MIGRATE_CLAIM:
		if (m->claim == CLAIM_OPEN)
			m->claim = CLAIM_RAN;
		assert_true(dst_event(m, m->claim != CLAIM_RAN ? MIGRATE_EV_DENIED
					 : m->dst_lacks	       ? MIGRATE_EV_CLAIMED_LACKING
							       : MIGRATE_EV_CLAIMED));
		break;
	case MIGRATE_RESUME:
		assert_true(m->dst_disks && m->claim == CLAIM_RAN);
		m->dst_runs = true;
		break;
	case MIGRATE_TELL_RUNNING:
		send_to_src(m, M_RUNNING);
		break;
	case MIGRATE_ABORT_CLAIM:
		if (m->claim == CLAIM_OPEN)
			m->claim = CLAIM_ABORTED;
		assert_int_not_equal(m->claim, CLAIM_RAN);
		break;
	case MIGRATE_TELL_REFUSED:
		send_to_src(m, M_REFUSED);
		break;
	case MIGRATE_STAND:
		m->dst_runs = false;
		break;
	case MIGRATE_GO_ON:
		assert_true(m->dst_disks && m->claim == CLAIM_RAN);
		m->dst_runs = true;
		break;
	case MIGRATE_TELL_FETCHED:
		send_to_src(m, M_FETCHED);
		break;
	case MIGRATE_CLEAN:
		m->dst_disks = false;
		m->dst_hung_up = true;
		memset(m->to_dst, 0, sizeof(m->to_dst));
		break;
	default:
		fail_msg("the target knows no action %#x", action);
	}
}

static const uint8_t src_means[] = {
	[M_ACCEPT] = MIGRATE_EV_ACCEPTED, [M_LOADED] = MIGRATE_EV_LOADED,
	[M_RUNNING] = MIGRATE_EV_RUNNING, [M_REFUSED] = MIGRATE_EV_REFUSED,
	[M_FETCHED] = MIGRATE_EV_FETCHED,
};
static const uint8_t dst_means[] = {
	[M_OFFER] = MIGRATE_EV_BEGIN,
	[M_REST] = MIGRATE_EV_LOADED,
	[M_COMMIT] = MIGRATE_EV_COMMIT,
	[M_PAGES] = MIGRATE_EV_FETCHED,
};

static bool src_hears(struct model *m)
{
	enum message msg = m->to_src[0];

	pop(m->to_src);
	assert_true(src_event(m, msg == M_RUNNING && m->is_lazy ? MIGRATE_EV_LACKING : src_means[msg]));
	return true;
}

static bool dst_hears(struct model *m)
{
	enum message msg = m->to_dst[0];

	pop(m->to_dst);
	assert_true(dst_event(m, dst_means[msg]));
	m->dst_lacks &= msg != M_PAGES;
	return true;
}

static bool src_switches(struct model *m, bool is_lazy)
{
	m->is_lazy = m->dst_lacks = is_lazy;
	return src_event(m, MIGRATE_EV_SWITCH);
}

/* Everything that happens by itself. */
static unsigned natural_steps(struct set *s, const struct model *m)
{
	struct model n = *m;
	unsigned count = 0;

#define STEP(enabled, what)                                                                        \
	do {                                                                                       \
		if (enabled) {                                                                     \
			n = *m;                                                                    \
			if (what) {                                                                \
				set_add(s, &n);                                                    \
				count++;                                                           \
			}                                                                          \
		}                                                                                  \
	} while (0)
	STEP(!m->src_dead && m->src_todo, src_act(&n, n.src_todo & -n.src_todo));
	STEP(!m->dst_dead && m->dst_todo, (dst_act(&n, n.dst_todo & -n.dst_todo), true));
	if (!m->src_dead && !m->src_todo) {
		STEP(m->src == SOURCE_IDLE, src_event(&n, MIGRATE_EV_BEGIN));
		STEP(m->src == SOURCE_PRECOPY, src_switches(&n, false));
		STEP(m->src == SOURCE_PRECOPY, src_switches(&n, true));
		STEP(m->src == SOURCE_STRANDED, src_asks(&n));
		STEP(m->src == SOURCE_RELEASING, src_event(&n, MIGRATE_EV_RELEASED));
		STEP(m->to_src[0] && !m->src_hung_up, src_hears(&n));
		STEP(!m->to_src[0] && !link_is_there(m) && m->src != SOURCE_IDLE,
		     src_event(&n, MIGRATE_EV_LOST));
	}
	if (!m->dst_dead && !m->dst_todo) {
		STEP(m->to_dst[0] && !m->dst_hung_up, dst_hears(&n));
		STEP(!m->to_dst[0] && !link_is_there(m) && m->dst != TARGET_IDLE && m->dst != TARGET_RUNS,
		     dst_event(&n, MIGRATE_EV_LOST));
	}
	/* Somebody finds the mark after a crash, and asks. */
	STEP(m->src_dead && m->has_mark && !m->src_gone && m->claim != CLAIM_NONE,
	     (n.src_gone = answer(&n) == MIGRATE_EV_RAN, n.has_mark = false, true));
	return count;
}

/* A cut loses any number of the last messages each way. */
static void cut(struct set *s, const struct model *m)
{
	for (unsigned a = 0; a <= 4; a++) {
		for (unsigned b = 0; b <= 4; b++) {
			struct model n = *m;

			n.may_cut = false;
			n.is_cut = true;
			memset(n.to_dst + a, 0, 4 - a);
			memset(n.to_src + b, 0, 4 - b);
			set_add(s, &n);
		}
	}
}

/* Everything that somebody does to them. */
static void accidents(struct set *s, const struct model *m)
{
	struct model n = *m;

	if (m->may_cut && link_is_there(m))
		cut(s, m);
	n.may_crash_src = n.src_runs = n.src_disks = false;
	n.src_dead = true;
	n.src_todo = 0;
	if (m->may_crash_src && !m->src_dead)
		set_add(s, &n);
	n = *m;
	n.may_crash_dst = n.dst_runs = n.dst_disks = false;
	n.dst_dead = true;
	n.dst_todo = 0;
	memset(n.to_dst, 0, sizeof(n.to_dst));
	if (m->may_crash_dst && !m->dst_dead)
		set_add(s, &n);
	n = *m;
	n.may_cancel_src = false;
	if (m->may_cancel_src && !m->src_dead && !m->src_todo && src_event(&n, MIGRATE_EV_CANCEL))
		set_add(s, &n);
	n = *m;
	n.may_cancel_dst = false;
	if (m->may_cancel_dst && !m->dst_dead && !m->dst_todo && dst_event(&n, MIGRATE_EV_CANCEL))
		set_add(s, &n);
	/* The action at hand fails, half done or not done: nothing of it is there. */
	n = *m;
	n.may_fail_src = false;
	if (m->may_fail_src && !m->src_dead && m->src_todo && src_event(&n, MIGRATE_EV_TROUBLE))
		set_add(s, &n);
	n = *m;
	n.may_fail_dst = false;
	if (m->may_fail_dst && !m->dst_dead && m->dst_todo && dst_event(&n, MIGRATE_EV_TROUBLE))
		set_add(s, &n);
}

/* ---- the invariants ---- */

static void check(const struct model *m)
{
	bool src_can_start = m->src_dead && !m->has_mark && !m->src_gone;
	bool dst_can_start = m->dst_dead && m->claim == CLAIM_RAN;

	/* 1, also for somebody who starts what lies there. */
	assert_false(m->src_runs && m->dst_runs);
	assert_false(m->src_runs && dst_can_start);
	assert_false(src_can_start && m->dst_runs);
	assert_false(src_can_start && dst_can_start);
	/* 2 */
	if (!m->src_dead && !m->src_todo)
		assert_int_equal(m->src_runs, migrate_source_runs(m->src));
	if (!m->dst_dead && !m->dst_todo)
		assert_int_equal(m->dst_runs, migrate_target_runs(m->dst));
	/* 4 */
	if (m->dst_runs)
		assert_int_equal(m->claim, CLAIM_RAN);
	/* 8 */
	assert_false(m->src == SOURCE_MOVED && !m->src_dead && m->dst_lacks && !m->dst_dead);
	/* Whoever runs has the disks, alone. */
	assert_true(!m->src_runs || m->src_disks);
	assert_true(!m->dst_runs || m->dst_disks);
	assert_false(m->src_runs && m->dst_disks);
	assert_false(m->dst_runs && m->src_disks);
}

/* Nothing happens by itself any more: 7, and who crashed can be started, at exactly one place. */
static void check_quiet(const struct model *m)
{
	unsigned n = m->src_runs + m->dst_runs + (m->src_dead && !m->has_mark && !m->src_gone) +
		     (m->dst_dead && m->claim == CLAIM_RAN);

	/* Its memory is gone with the source. */
	if (m->src_dead && m->dst_lacks && m->dst == TARGET_CUT_OFF && !m->dst_dead)
		n++;
	/* Left behind, it would keep people from starting the machine later. */
	assert_false(m->src_runs && m->has_mark);
	if (n != 1)
		fail_msg("%u places: source %s%s, target %s%s, claim %u, mark %d", n,
			 migrate_source_text(m->src), m->src_dead ? " (crashed)" : "",
			 migrate_target_text(m->dst), m->dst_dead ? " (crashed)" : "", m->claim,
			 m->has_mark);
}

static void test_every_interleaving(void **state)
{
	struct set s = { 0 };
	struct model first;
	unsigned quiet = 0, nmoved = 0, nkept = 0, nlazy = 0;

	memset(&first, 0, sizeof(first));
	first.src_runs = first.src_disks = true;
	first.may_cut = first.may_crash_src = first.may_crash_dst = true;
	first.may_cancel_src = first.may_cancel_dst = true;
	first.may_fail_src = first.may_fail_dst = true;
	set_add(&s, &first);
	for (size_t i = 0; i < s.n; i++) {
		struct model m = s.all[i];

		check(&m);
		if (!natural_steps(&s, &m)) {
			check_quiet(&m);
			quiet++;
			nmoved += m.dst_runs;
			nlazy += m.dst_runs && m.is_lazy;
			nkept += m.src_runs;
		}
		accidents(&s, &m);
	}
	print_message("%zu states, %u of them quiet: %u at the target, %u at the source\n", s.n,
		      quiet, nmoved, nkept);
	assert_true(nmoved > nlazy && nlazy && nkept);
	free(s.all);
	free(s.slots);
}

/* A row for a state that is an end would make it none; texts are there for all. */
static void test_ends(void **state)
{
	for (int s = 0; s < SOURCE_NSTATES; s++) {
		assert_non_null(migrate_source_text(s));
		assert_non_null(migrate_source_name(s));
		for (int e = 0; migrate_source_is_end(s) && e < MIGRATE_NEVENTS; e++) {
			enum migrate_source_state at = s;
			uint32_t todo;

			assert_false(migrate_source_next(&at, e, &todo));
		}
	}
	for (int s = 0; s < TARGET_NSTATES; s++) {
		assert_non_null(migrate_target_text(s));
		for (int e = 0; migrate_target_is_end(s) && e < MIGRATE_NEVENTS; e++) {
			enum migrate_target_state at = s;
			uint32_t todo = 0;

			assert_true(!migrate_target_next(&at, e, &todo) || (int)at == s);
		}
	}
}

/* After a commit nothing of this side gives the machine back: only an answer from the other side does. */
static void test_no_way_back_after_the_commit(void **state)
{
	static const enum migrate_source_state states[] = { SOURCE_COMMITTED, SOURCE_DOUBT };
	static const enum migrate_event own[] = { MIGRATE_EV_CANCEL, MIGRATE_EV_TROUBLE, MIGRATE_EV_LOST };

	for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
		for (size_t k = 0; k < ARRAY_SIZE(own); k++) {
			enum migrate_source_state at = states[i];
			uint32_t todo = 0;

			if (migrate_source_next(&at, own[k], &todo))
				assert_false(todo & MIGRATE_RESUME);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_interleaving),
		cmocka_unit_test(test_ends),
		cmocka_unit_test(test_no_way_back_after_the_commit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
