/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine goes on in another process on the same host, of a newer program for instance (`viv upgrade`): what passes between the two besides the records of a
 * migration (migrate.h, migrate_target.h).
 *
 *   old process                                               new process
 *     link    == records of a migration, but for memory ==>
 *     hatch   -- what cards there are; at the end descriptors: lock, sockets, cards, console's clients -->
 *     ram     a file: memory moves into it while the machine runs, is mapped there, and moves out again (mem/ram.h)
 *     token   an eventfd that holds 1 once: who reads it has decided
 *
 * `viv upgrade` makes the four and gives each process its ends.  The token is what the claim is between hosts (vm/migrate.h, invariant 4): the new process reads it before
 * it runs, the old one when the link is lost after the commit.  It needs no file, as both end with the host.
 */
#ifndef VIV_CTL_HANDOVER_H
#define VIV_CTL_HANDOVER_H

#include "base/bytes.h"
#include "char/chardev.h"
#include "vm/machine.h"

/* One side's ends; -1: closed. */
struct handover_ends {
	int hatch, ram, token;
};
#define HANDOVER_FDS 4 /* the link, and these three in their order */

/** handover_ends_close() - closed already is fine. */
void handover_ends_close(struct handover_ends *e);

/** handover_claim() - 0: this side has decided; -ECANCELED: the other one had. */
int handover_claim(int token);

/* ---- what goes through the hatch ---- */

struct handover_cards {
	unsigned n;
	bool is_tap;
	uint8_t macs[MACHINE_MAX_NICS][6];
	int fds[MACHINE_MAX_NICS]; /* of TAP devices; else -1 */
};

/* Descriptors, -1: none; whose they are is said where they are passed. */
struct handover {
	int lock;     /* ctl/vmlock.h */
	int listen;   /* the control socket */
	int status;   /* pipe to whoever started the machine, cli/spawn.h */
	int lifeline; /* pipe whose end ends the machine */
	unsigned ncards;
	int cards[MACHINE_MAX_NICS]; /* sockets to its networks, net/link.h */
	unsigned nclients;
	int clients[CHARDEV_CLIENTS_MAX]; /* of the console, in the order of chardev_hub_save() */
};

/** handover_init() - nothing. */
void handover_init(struct handover *h);
/** handover_close() - all that is there. */
void handover_close(struct handover *h);

#define HANDOVER_MS 10000 /* that the other side may take for a message */
/** handover_send_cards() - @c's descriptors are borrowed.  0 or -errno. */
int handover_send_cards(int hatch, const struct handover_cards *c, struct error *err);
/** handover_receive_cards() - hostile; descriptors are the caller's.  0, -EPROTO, -ETIMEDOUT, -errno. */
int handover_receive_cards(int hatch, struct handover_cards *c, struct error *err);
/** handover_send() - @h's descriptors are borrowed. */
int handover_send(int hatch, const struct handover *h, struct error *err);
/** handover_receive() - hostile; descriptors are the caller's. */
int handover_receive(int hatch, struct handover *h, struct error *err);

/*
 * handover_parse_cards(), handover_parse() - a message, with which @nfds descriptors came; hostile.  What is not refused has all of them.  0 or -EPROTO: @fds are the
 * caller's still.
 */
int handover_parse_cards(const char *text, size_t len, const int *fds, unsigned nfds,
			 struct handover_cards *c);
int handover_parse(const char *text, size_t len, const int *fds, unsigned nfds, struct handover *h);

/* ---- memory ---- */

/* Which part of RAM is the file's: [from, to); and how it goes, for people. */
struct handover_ram {
	uint64_t from, to;
	_Atomic uint64_t done_bytes;
	_Atomic uint64_t longest_ns, stood_ns; /* that the machine was frozen: at a time at most, and in all */
};

/**
 * handover_share_ram() - all of RAM moves into the empty file @fd, in slices of some milliseconds in which the machine is frozen; in between it runs.  No lock.
 * @r: zeroed
 * @stop: set by somebody: -ECANCELED
 * 0 or -errno; then a part of it may be the file's: handover_unshare_ram().
 */
int handover_share_ram(struct machine *m, int fd, const _Atomic bool *stop, struct handover_ram *r,
		       struct error *err);
/** handover_adopt_ram() - the new process's side, before the state is loaded: RAM is the file's.  With the lock.  0, -EPROTO (it is no such file), -errno. */
int handover_adopt_ram(struct machine *m, int fd, struct handover_ram *r, struct error *err);
/** handover_unshare_ram() - what is the file's becomes private memory again, likewise.  0; -ECANCELED: stopped; -errno: the machine ends. */
int handover_unshare_ram(struct machine *m, int fd, const _Atomic bool *stop,
			 struct handover_ram *r, struct error *err);

#endif
