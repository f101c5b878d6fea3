/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who runs: the two sides of a migration as state machines.  Nothing here sends, pauses or opens anything: a side tells what
 * happened (an event), and is told its new state and what to do now (actions), from one table of transitions
 * (migrate.c).  migrate_test.c goes through every interleaving of both sides, the link, crashes and cancels.
 *
 *   source   IDLE -> OFFERED -> PRECOPY -> SWITCHING -> RELEASING -> COMMITTED -> MOVED
 *                        \________\____________\____________\____________\---> KEPT
 *                                                                         \-> DOUBT -> MOVED, KEPT
 *   target   IDLE -> BUILDING -> RECEIVING -> LOADED -> CLAIMING -> RUNS
 *                        \___________\____________\_________\---> GONE
 *
 * and, where the machine runs at the target before all of its memory is there (post-copy):
 *
 *   source   COMMITTED, DOUBT -> SERVING -> MOVED            target   CLAIMING -> FETCHING -> RUNS
 *                                 |   ^                                           |   ^
 *                                 v   |                                           v   |
 *                               STRANDED -> MOVED                                CUT_OFF
 *
 * Invariants
 *  1. Never do both sides run.
 *  2. The source runs in IDLE, OFFERED, PRECOPY and KEPT, the target in RUNS and FETCHING; nowhere else does anything run.
 *  3. The source gives its disks away only after the target has loaded everything (LOADED), and commits after that.  Until
 *     it has committed, it may take everything back without asking: a target without a commit never runs.
 *  4. The CLAIM is what decides: a file on the target's side that is "open" when the offer is taken, and changes once, in one
 *     step, to "ran" or to "aborted", whoever comes first.  The target runs only after it has changed it to "ran".
 *  5. A source that has committed and hears nothing does not know (DOUBT).  It asks, over any link: the answer is what the
 *     claim is, after it was changed to "aborted" if it was open still.  So an answer is final.
 *  6. Before it commits, the source leaves a mark in its folder, so that nobody starts the machine there while its fate is
 *     unknown; who finds the mark after a crash asks as in 5.
 *  7. Whatever the link loses, once links work again and nobody crashed, exactly one side runs.
 *  8. The source keeps the machine's memory until the target has all of it, or has said that it wants no more: from SERVING and STRANDED it
 *     goes to MOVED by the target's word (FETCHED, or the answer RAN) only.
 *  9. A target whose link is lost while it lacks memory stands still until there is another one.
 */
#ifndef VIV_VM_MIGRATE_H
#define VIV_VM_MIGRATE_H

#include <stdbool.h>
#include <stdint.h>

// clang-format off
/* X(name, text for people) */
#define MIGRATE_SOURCE_STATES(X)                                                                                   \
	X(IDLE,      "not begun")                                                                                  \
	X(OFFERED,   "asking the target")	/* the machine was described; its answer is awaited */             \
	X(PRECOPY,   "copying memory")		/* the machine runs, its memory is copied */                       \
	X(SWITCHING, "switching over")		/* the machine stands still; the rest is on its way */             \
	X(RELEASING, "giving the disks away")	/* the target has loaded everything */                             \
	X(COMMITTED, "handed over")		/* the target may run; it has not said so */                       \
	X(DOUBT,     "in doubt")		/* the link was lost then: does the target run? */                 \
	X(SERVING,   "sending the rest of memory") /* the target runs, and fetches what it lacks */                \
	X(STRANDED,  "cut off with memory that the target lacks") /* the link was lost then; nothing runs */       \
	X(MOVED,     "moved")			/* the target runs; the end */                                     \
	X(KEPT,      "kept")			/* it did not come to that, the machine runs here; the end */

#define MIGRATE_TARGET_STATES(X)                                                                                   \
	X(IDLE,      "not begun")                                                                                  \
	X(BUILDING,  "building")		/* an offer was read; the machine is checked and built */          \
	X(RECEIVING, "receiving memory")	/* and everything else up to the state of devices */               \
	X(LOADED,    "loaded")			/* complete; waits for the commit */                               \
	X(CLAIMING,  "taking over")		/* the commit has come; opens disks, then claims */                \
	X(FETCHING,  "running, with memory still to come") /* what is touched before it comes waits for it */      \
	X(CUT_OFF,   "cut off from its memory")	/* the link was lost then: it stands still */                      \
	X(RUNS,      "running")			/* the end */                                                      \
	X(GONE,      "gone")			/* nothing is left here; the end */

/* X(name) */
#define MIGRATE_EVENTS(X)                                                                                          \
	X(BEGIN)	/* source: somebody wants it; target: an offer came */                                     \
	X(ACCEPTED)	/* source: the target can take this machine */                                             \
	X(REFUSED)	/* source: it cannot, or cannot any more; nothing runs there, nor will */                  \
	X(SWITCH)	/* source: little enough is left to be copied */                                           \
	X(LOADED)	/* source: the target has everything; target: it has loaded the state */                   \
	X(RELEASED)	/* source: the disks are given away */                                                     \
	X(RUNNING)	/* source: the target runs */                                                              \
	X(BUILT)	/* target: the machine is built, and fits */                                               \
	X(COMMIT)	/* target: it is its machine now */                                                        \
	X(CLAIMED)	/* target: the claim is changed to "ran" */                                                \
	X(DENIED)	/* target: somebody has changed it to "aborted" */                                         \
	X(LOST)		/* the link is lost, or the peer says what nobody should */                                \
	X(CANCEL)	/* somebody does not want it any more */                                                   \
	X(TROUBLE)	/* something failed on this side */                                                        \
	X(RAN)		/* source: the answer to the question: the claim is "ran" */                               \
	X(ABORTED)	/* source: it is "aborted" */                                                              \
	X(LACKING)	/* source: the target runs, or stands still, and lacks memory: there is a link to it */    \
	X(CLAIMED_LACKING) /* target: as CLAIMED, but memory is missing */                                         \
	X(FETCHED)	/* source: the target lacks nothing; target: the last page is there */                     \
	X(BACK)		/* target: there is a link again */
// clang-format on

enum migrate_source_state {
#define X(name, text) SOURCE_##name,
	MIGRATE_SOURCE_STATES(X)
#undef X
		SOURCE_NSTATES
};
enum migrate_target_state {
#define X(name, text) TARGET_##name,
	MIGRATE_TARGET_STATES(X)
#undef X
		TARGET_NSTATES
};
enum migrate_event {
#define X(name) MIGRATE_EV_##name,
	MIGRATE_EVENTS(X)
#undef X
		MIGRATE_NEVENTS
};

/*
 * To be done in the order of their bits.  One that fails is the event TROUBLE, and the rest is not done; where the state knows no such event
 * (going back, running), the machine cannot go on and ends.
 */
enum migrate_action {
	/* source */
	MIGRATE_OFFER = 1 << 0,	  /* send what the machine is */
	MIGRATE_COPY = 1 << 1,	  /* send memory in rounds */
	MIGRATE_MARK = 1 << 2,	  /* leave the mark, stable (invariant 6) */
	MIGRATE_PAUSE = 1 << 3,	  /* the machine stands still from here on */
	MIGRATE_REST = 1 << 4,	  /* send the rest of memory, and the state */
	MIGRATE_RELEASE = 1 << 5, /* give the disks away: written, closed, unlocked */
	MIGRATE_COMMIT = 1 << 6,  /* send the commit */
	MIGRATE_HANG_UP = 1 << 7, /* close the link: nothing that was sent is wanted any more */
	MIGRATE_ASK = 1 << 8,	  /* what is the claim (invariant 5)? */
	MIGRATE_RETAKE = 1 << 9, /* have the disks again; the target may need a moment to close them */
	MIGRATE_RESUME = 1 << 10, /* run */
	MIGRATE_UNMARK = 1 << 11,
	MIGRATE_END = 1 << 12, /* end the machine here; its folder goes */
	/* target */
	MIGRATE_BUILD = 1 << 13,  /* check, build; the claim is open from before the answer */
	MIGRATE_ACCEPT = 1 << 14, /* send it; receive memory and state */
	MIGRATE_TELL_LOADED = 1 << 15,
	MIGRATE_TAKE = 1 << 16,	 /* open and lock the disks */
	MIGRATE_CLAIM = 1 << 17, /* change the claim to "ran": CLAIMED or DENIED */
	MIGRATE_TELL_RUNNING = 1 << 18,
	MIGRATE_ABORT_CLAIM = 1 << 19,	/* change the claim to "aborted", unless that is done */
	MIGRATE_TELL_REFUSED = 1 << 20, /* send it, if the link is there */
	MIGRATE_CLEAN = 1 << 21,	/* remove all that was made */
	/* post-copy */
	MIGRATE_SERVE = 1 << 22,	/* source: send pages, those first that are asked for */
	MIGRATE_STAND = 1 << 23,	/* target: stand still */
	MIGRATE_GO_ON = 1 << 24,	/* target: run again */
	MIGRATE_TELL_FETCHED = 1 << 25, /* target: the source may forget the machine */
};

/**
 * migrate_source_next() - what @event means in *@state.
 * Returns true, *@state the new one and *@actions what to do (0: nothing); false: it means nothing there, and nothing
 * changed: of a message, that the peer is not to be trusted (LOST); of CANCEL, that it is too late.
 */
bool migrate_source_next(enum migrate_source_state *state, enum migrate_event event, uint32_t *actions);
bool migrate_target_next(enum migrate_target_state *state, enum migrate_event event, uint32_t *actions);

/** migrate_source_runs() - does the machine run at the source in this state (invariant 2)? */
bool migrate_source_runs(enum migrate_source_state state);
/** migrate_target_runs() - does it at the target? */
bool migrate_target_runs(enum migrate_target_state state);
/** migrate_source_waits() - nothing more happens by itself: somebody has to give it another link. */
bool migrate_source_waits(enum migrate_source_state state);
bool migrate_source_is_end(enum migrate_source_state state);
bool migrate_target_is_end(enum migrate_target_state state);

/* For people and for JSON: "copying memory"; "precopy". */
const char *migrate_source_text(enum migrate_source_state state);
const char *migrate_target_text(enum migrate_target_state state);
const char *migrate_source_name(enum migrate_source_state state);

#endif
