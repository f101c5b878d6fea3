/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/migrate.h"

#include "base/util.h"

struct row {
	uint8_t state, event, next;
	uint32_t actions;
};

// clang-format off
/*
 * One row a transition.  Going back to running is always in the order: nothing of it is at the target (HANG_UP, or the answer), disks, run,
 * and only then the mark goes.
 */
#define S(state, event, next, actions) { SOURCE_##state, MIGRATE_EV_##event, SOURCE_##next, actions }
static const struct row source_rows[] = {
	S(IDLE,      BEGIN,    OFFERED,   MIGRATE_OFFER),

	S(OFFERED,   ACCEPTED, PRECOPY,   MIGRATE_COPY),
	S(OFFERED,   REFUSED,  KEPT,      MIGRATE_HANG_UP),
	S(OFFERED,   LOST,     KEPT,      MIGRATE_HANG_UP),
	S(OFFERED,   CANCEL,   KEPT,      MIGRATE_HANG_UP),
	S(OFFERED,   TROUBLE,  KEPT,      MIGRATE_HANG_UP),

	S(PRECOPY,   SWITCH,   SWITCHING, MIGRATE_MARK | MIGRATE_PAUSE | MIGRATE_REST),
	S(PRECOPY,   REFUSED,  KEPT,      MIGRATE_HANG_UP),
	S(PRECOPY,   LOST,     KEPT,      MIGRATE_HANG_UP),
	S(PRECOPY,   CANCEL,   KEPT,      MIGRATE_HANG_UP),
	S(PRECOPY,   TROUBLE,  KEPT,      MIGRATE_HANG_UP),

	S(SWITCHING, LOADED,   RELEASING, MIGRATE_RELEASE),
	S(SWITCHING, REFUSED,  KEPT,      MIGRATE_HANG_UP | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(SWITCHING, LOST,     KEPT,      MIGRATE_HANG_UP | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(SWITCHING, CANCEL,   KEPT,      MIGRATE_HANG_UP | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(SWITCHING, TROUBLE,  KEPT,      MIGRATE_HANG_UP | MIGRATE_RESUME | MIGRATE_UNMARK),

	S(RELEASING, RELEASED, COMMITTED, MIGRATE_COMMIT),
	S(RELEASING, REFUSED,  KEPT,      MIGRATE_HANG_UP | MIGRATE_RETAKE | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(RELEASING, LOST,     KEPT,      MIGRATE_HANG_UP | MIGRATE_RETAKE | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(RELEASING, CANCEL,   KEPT,      MIGRATE_HANG_UP | MIGRATE_RETAKE | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(RELEASING, TROUBLE,  KEPT,      MIGRATE_HANG_UP | MIGRATE_RETAKE | MIGRATE_RESUME | MIGRATE_UNMARK),

	/* A commit that could not be sent whole is as good as sent. */
	S(COMMITTED, RUNNING,  MOVED,     MIGRATE_END),
	S(COMMITTED, REFUSED,  KEPT,      MIGRATE_HANG_UP | MIGRATE_RETAKE | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(COMMITTED, LOST,     DOUBT,     MIGRATE_HANG_UP | MIGRATE_ASK),
	S(COMMITTED, LACKING,  SERVING,   MIGRATE_SERVE),

	S(DOUBT,     RAN,      MOVED,     MIGRATE_END),
	S(DOUBT,     ABORTED,  KEPT,      MIGRATE_RETAKE | MIGRATE_RESUME | MIGRATE_UNMARK),
	S(DOUBT,     LACKING,  SERVING,   MIGRATE_SERVE),

	S(SERVING,   FETCHED,  MOVED,     MIGRATE_END),
	S(SERVING,   LOST,     STRANDED,  MIGRATE_HANG_UP),
	S(SERVING,   TROUBLE,  STRANDED,  MIGRATE_HANG_UP),

	S(STRANDED,  LACKING,  SERVING,   MIGRATE_SERVE),
	S(STRANDED,  RAN,      MOVED,     MIGRATE_END),
};
#undef S

#define T(state, event, next, actions) { TARGET_##state, MIGRATE_EV_##event, TARGET_##next, actions }
static const struct row target_rows[] = {
	T(IDLE,      BEGIN,    BUILDING,  MIGRATE_BUILD),

	T(BUILDING,  BUILT,    RECEIVING, MIGRATE_ACCEPT),
	T(BUILDING,  LOST,     GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_CLEAN),
	T(BUILDING,  CANCEL,   GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_TELL_REFUSED | MIGRATE_CLEAN),
	T(BUILDING,  TROUBLE,  GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_TELL_REFUSED | MIGRATE_CLEAN),

	T(RECEIVING, LOADED,   LOADED,    MIGRATE_TELL_LOADED),
	T(RECEIVING, LOST,     GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_CLEAN),
	T(RECEIVING, CANCEL,   GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_TELL_REFUSED | MIGRATE_CLEAN),
	T(RECEIVING, TROUBLE,  GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_TELL_REFUSED | MIGRATE_CLEAN),

	T(LOADED,    COMMIT,   CLAIMING,  MIGRATE_TAKE | MIGRATE_CLAIM),
	T(LOADED,    LOST,     GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_CLEAN),
	T(LOADED,    CANCEL,   GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_TELL_REFUSED | MIGRATE_CLEAN),

	T(CLAIMING,  CLAIMED,  RUNS,      MIGRATE_RESUME | MIGRATE_TELL_RUNNING),
	T(CLAIMING,  DENIED,   GONE,      MIGRATE_TELL_REFUSED | MIGRATE_CLEAN),
	T(CLAIMING,  TROUBLE,  GONE,      MIGRATE_ABORT_CLAIM | MIGRATE_TELL_REFUSED | MIGRATE_CLEAN),

	T(CLAIMING,  CLAIMED_LACKING, FETCHING, MIGRATE_RESUME | MIGRATE_TELL_RUNNING),

	T(FETCHING,  FETCHED,  RUNS,      MIGRATE_TELL_FETCHED),
	T(FETCHING,  LOST,     CUT_OFF,   MIGRATE_STAND),
	T(CUT_OFF,   BACK,     FETCHING,  MIGRATE_GO_ON),

	/* Nobody is needed any more. */
	T(RUNS,      LOST,     RUNS,      0),
};
#undef T
// clang-format on

static const struct row *find(const struct row *rows, size_t n, unsigned state, enum migrate_event event)
{
	for (size_t i = 0; i < n; i++)
		if (rows[i].state == state && rows[i].event == event)
			return &rows[i];
	return NULL;
}

bool migrate_source_next(enum migrate_source_state *state, enum migrate_event event, uint32_t *actions)
{
	const struct row *row = find(source_rows, ARRAY_SIZE(source_rows), *state, event);

	if (!row)
		return false;
	*state = row->next;
	*actions = row->actions;
	return true;
}

bool migrate_target_next(enum migrate_target_state *state, enum migrate_event event, uint32_t *actions)
{
	const struct row *row = find(target_rows, ARRAY_SIZE(target_rows), *state, event);

	if (!row)
		return false;
	*state = row->next;
	*actions = row->actions;
	return true;
}

bool migrate_source_runs(enum migrate_source_state state)
{
	return state == SOURCE_IDLE || state == SOURCE_OFFERED || state == SOURCE_PRECOPY ||
	       state == SOURCE_KEPT;
}

bool migrate_target_runs(enum migrate_target_state state)
{
	return state == TARGET_RUNS || state == TARGET_FETCHING;
}

bool migrate_source_waits(enum migrate_source_state state)
{
	return state == SOURCE_DOUBT || state == SOURCE_STRANDED;
}

bool migrate_source_is_end(enum migrate_source_state state)
{
	return state == SOURCE_MOVED || state == SOURCE_KEPT;
}

bool migrate_target_is_end(enum migrate_target_state state)
{
	return state == TARGET_RUNS || state == TARGET_GONE;
}

const char *migrate_source_text(enum migrate_source_state state)
{
	static const char *const texts[] = {
#define X(name, text) text,
		MIGRATE_SOURCE_STATES(X)
#undef X
	};
	return texts[state];
}

const char *migrate_target_text(enum migrate_target_state state)
{
	static const char *const texts[] = {
#define X(name, text) text,
		MIGRATE_TARGET_STATES(X)
#undef X
	};
	return texts[state];
}

const char *migrate_source_name(enum migrate_source_state state)
{
	static const char *const names[SOURCE_NSTATES] = { "idle",	"offered",   "precopy",
							   "switching", "releasing", "committed",
							   "doubt",	"serving",   "stranded",
							   "moved",	"kept" };

	return names[state];
}
