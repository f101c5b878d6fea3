/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker: what a confined machine may do with files.
 *
 * A machine's process has an empty file system and may make no system call that takes a file's name.  What it needs, now and then,
 * it asks of its broker, a small process with the user's rights that knows what belongs to the machine:
 *
 *   machine                                          broker
 *     host.openat() --- op, names, reply socket -->  is that one of its files?
 *                  <-- 0 and a descriptor, -EACCES   openat2() beneath the folder's descriptor
 *
 * Rules (struct broker_policy)
 *  1. Below the machine's own folder everything but its configuration may be read, made, renamed, linked, removed.
 *  2. The files of its configuration (kernel, disks, what they may stand on) may be read; disks that are writable, written.
 *  3. The configuration itself is replaced only by one that says the same but for the names of its disks' layers in its own folder
 *     (broker_config_follows()), and as disks only files that nobody else has (broker_replace.c): a machine that was taken over can't have the
 *     next start open another file for it.
 *  4. A new machine's folder may be made: it is the machine's own until the copy that lives there has a broker of its own.
 *  5. A file there that has other names too is not written: it is a layer that others stand on.
 *  6. A machine that goes on in another process (`viv upgrade`) says so to both brokers: the one leaves folders and sockets to the other, which keeps the machine's lock
 *     from then on.
 *  7. A machine that is on its way here decides about its own migration, and says that it has arrived when it is its own.
 * Symbolic links are never followed below the machine's folder.  A descriptor that a request is relative to must be of a folder there.
 *
 * Requests are hostile: fixed size, checked, one at a time; a broker never waits for its machine.
 */
#ifndef VIV_CTL_BROKER_H
#define VIV_CTL_BROKER_H

#include <limits.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/error.h"
#include "ctl/vmconfig.h"

#define BROKER_COPIES_MAX 1000 /* folders of new machines at a time */

#define BROKER_OPS(X)                                                                              \
	X(OPEN)	    /* flags, mode; gives a descriptor */                                          \
	X(STAT)	    /* flags: AT_SYMLINK_NOFOLLOW; gives struct stat */                            \
	X(ACCESS)   /* mode: F_OK, R_OK, W_OK */                                                   \
	X(REALPATH) /* gives a path */                                                             \
	X(MKDIR)    /* mode */                                                                     \
	X(UNLINK)   /* flags: AT_REMOVEDIR */                                                      \
	X(RENAME)   /* two names */                                                                \
	X(LINK)	    /* two names */                                                                \
	X(LAB)	  /* gives a descriptor: the machine's record in its lab (net/identity.h), JSON */ \
	X(CLAIM)  /* flags: enum broker_claim, on the migration that the machine comes by */       \
	X(LOCK)	  /* gives a descriptor: the machine's lock (ctl/vmlock.h) */                      \
	X(LEAVE)  /* the machine goes on in another process, which has a broker of its own */      \
	X(ARRIVE) /* here; a folder in place of which is the machine's lock */                     \
	X(COPY)	  /* a name: the machine @name[0] gets a broker of its own; gives descriptors */
#define BROKER_ENUM(name) BROKER_##name,
enum broker_op { BROKER_OPS(BROKER_ENUM) BROKER_NOPS };

/* ctl/migrate_claim.h */
enum broker_claim { CLAIM_OPEN, CLAIM_TAKE, CLAIM_SYNC, CLAIM_ASK, CLAIM_FORGET };

/* On the wire, host byte order: both sides are one program.  Followed by the names, each with its NUL. */
struct broker_request {
	uint32_t op;
	int32_t flags;
	uint32_t mode;
	uint16_t len[2]; /* of the names, with NUL; 0: none */
	uint8_t has_dir[2]; /* the descriptors after the reply socket: folders that the names are relative to */
	uint8_t zero[6];
};
#define BROKER_REQUEST_MAX (sizeof(struct broker_request) + 2 * (size_t)PATH_MAX)
#define BROKER_FDS_MAX	   (5 + MACHINE_MAX_NICS + MACHINE_MAX_SHARES) /* of one message */

struct broker_reply {
	int32_t result; /* 0 or -errno; of CLAIM_ASK the answer; of COPY, then a sentence may follow */
	uint32_t len; /* of what is behind it */
	struct stat st;
};

/** broker_parse() - a request's bytes.  @names: into @data.  0, or -EINVAL. */
int broker_parse(const uint8_t *data, size_t len, struct broker_request *rq, const char *names[2]);

/* ---- the broker's side ---- */

struct broker_policy;

/**
 * broker_policy_create() - for the machine of @c, whose folder exists.  0 or -errno with @err set.
 * It may ask for its folder to be removed at its end, by removing it: a copy that did not come to live, a machine that moved to another host.
 */
int broker_policy_create(struct broker_policy **out, const struct vmconfig *c, struct error *err);
void broker_policy_destroy(struct broker_policy *p); /* NULL is fine */
/* The machine's record in its lab as it is now, a new reference; NULL: it is in none.  May wait for the lab. */
typedef json_t *(*broker_lab_fn)(void *arg);
/** broker_policy_set_lab() - a copy of the machine may say that it comes from this one, by the record that @lab gave last. */
void broker_policy_set_lab(struct broker_policy *p, broker_lab_fn lab, void *arg);
/** broker_policy_set_claim() - it comes by migration @id, of MIGRATE_ID_BYTES. */
void broker_policy_set_claim(struct broker_policy *p, const uint8_t *id);
/** broker_policy_set_lock() - @fd, borrowed, is the machine's lock. */
void broker_policy_set_lock(struct broker_policy *p, int fd);
/** broker_policy_await() - its machine comes from another process, and is that one's until it says that it has arrived. */
void broker_policy_await(struct broker_policy *p);
/** broker_policy_has_left() - it goes on elsewhere. */
bool broker_policy_has_left(const struct broker_policy *p);
/** broker_policy_take_lock() - of broker_policy_await(): the lock that came with the machine, the caller's now; -1: it did not come. */
int broker_policy_take_lock(struct broker_policy *p);
/** broker_policy_hand_over() - the folder of the new machine @name is its own broker's from now on.  0 or -EACCES: there is none. */
int broker_policy_hand_over(struct broker_policy *p, const char *name);
/** broker_policy_is_unwanted() - did it ask for that? */
bool broker_policy_is_unwanted(const struct broker_policy *p);

/**
 * broker_answer() - do what @rq asks, if the policy allows it.
 * @dirs: descriptors that came with it, -1: none; borrowed
 * @fd: receives a descriptor, or -1
 * @text: receives REALPATH's answer, PATH_MAX bytes
 * Returns 0 or -errno; -EACCES: not allowed.
 */
int broker_answer(struct broker_policy *p, const struct broker_request *rq,
		  const char *const names[2], const int dirs[2], struct stat *st, int *fd, char *text);

/* What a machine starts with that its broker made. */
struct broker_start {
	int door;	/* to its broker */
	int listen_fd;	/* its control socket */
	int log_fds[2]; /* its log; -1: it has it already */
	pid_t pid;	/* its own, as the host counts */
	unsigned ncards;
	bool is_tap;		     /* they are devices of the host's, no frame sockets */
	int cards[MACHINE_MAX_NICS]; /* frame sockets */
	int net_ready_fd; /* netd_await(): the network's process has come up; 0: nothing is to be waited for */
	uint8_t macs[MACHINE_MAX_NICS][6];
	unsigned nshares;
	int shares[MACHINE_MAX_SHARES]; /* sockets to the servers of its shared folders, in the configuration's order */
};

/** broker_start_init() - nothing yet. */
void broker_start_init(struct broker_start *s);

/**
 * A broker for the copy @name of the machine: another process, which answers on @reply_to by broker_send_start().
 * @pid: who asks
 * Returns 0, or -errno: this broker answers.
 */
typedef int (*broker_make_fn)(void *arg, const char *name, pid_t pid, int reply_to);
/** broker_send_failure() - why there is none. */
void broker_send_failure(int reply_to, int result, const struct error *err);
/** broker_send_start() - @start's descriptors stay the caller's. */
void broker_send_start(int reply_to, const struct broker_start *start);
/** broker_serve() - answer requests on @door until all its other ends are closed. */
void broker_serve(struct broker_policy *p, int door, broker_make_fn make, void *arg);

/* ---- the machine's side ---- */

/**
 * broker_use() - from now on file names go to @door: rows of the host's table are replaced.  Before there are threads.
 * @door: taken; the one before is closed
 * @pagemap_fd: what /proc/self/pagemap is; taken; -1: nothing
 */
void broker_use(int door, int pagemap_fd);
int broker_door(void); /* -1: there is no broker */
/** broker_keep() - in a forked child that closes what it doesn't need: the door, which it does; the page map was its parent's and is closed. */
int broker_keep(void);
/** broker_lab() - the machine's record in its lab, to be json_decref'ed; NULL: it is in none. */
json_t *broker_lab(void);
/** broker_claim() - what claim_*() of migrate_claim.h would do, with the machine's own id. */
int broker_claim(enum broker_claim what, struct error *err);
/** broker_lock() - the machine's lock, for the process that goes on with it; the caller's.  A descriptor or -errno. */
int broker_lock(struct error *err);
/** broker_leave() - the machine has gone on in another process. */
void broker_leave(void);
/** broker_arrive() - it goes on here, with the lock @lock_fd, which stays the caller's.  0 or -errno. */
int broker_arrive(int lock_fd, struct error *err);
/** broker_copy() - in the process of a copy: the broker of machine @name for this one.  0 or -errno; then broker_use() its door. */
int broker_copy(const char *name, struct broker_start *start, struct error *err);

#endif
