/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the process of a machine gives to the next one, and takes from the one before (ctl/handover.h), besides state and memory.
 *
 * All with the machine's lock held, but for init and end.
 */
#ifndef VIV_CLI_VM_HANDOVER_H
#define VIV_CLI_VM_HANDOVER_H

#include "cli/vm_host.h"
#include "ctl/ctl.h"
#include "ctl/handover.h"

struct vm_handover {
	/* Borrowed; once there is a machine. */
	const char *name;
	struct machine *machine;
	struct ctl *ctl;
	struct char_dev *hub;
	struct agent *agent;
	struct vm_host *host;
	int status_fd, lifeline_fd; /* borrowed, -1: none; after vm_handover_take() those that came, the process's */
	/* Its own. */
	struct handover_cards have;  /* descriptors: of TAP devices */
	int cards[MACHINE_MAX_NICS]; /* what its cards hold, once more; -1: none */
	int peers[MACHINE_MAX_NICS]; /* new cards' other ends, for their networks; -1: none */
	int lock;		     /* for the next process; -1: not asked for yet */
};

void vm_handover_init(struct vm_handover *v, struct vm_host *host);
/** vm_handover_end() - @has_left: the machine has gone on in another process; its broker, or host, is told. */
void vm_handover_end(struct vm_handover *v, bool has_left);

/** vm_handover_note_cards() - these will be the machine's. */
void vm_handover_note_cards(struct vm_handover *v, const struct broker_start *s);
/** vm_handover_make_cards() - for a machine that comes: new sockets into @s, or the TAP devices that came (taken).  0 or -errno. */
int vm_handover_make_cards(struct vm_handover *v, struct handover_cards *c, struct broker_start *s,
			   struct error *err);

/* Of struct migrator_config; @arg: a struct vm_handover. */
void vm_handover_cards(void *arg, struct handover_cards *c);
int vm_handover_give(void *arg, struct handover *h, struct bytes *console, struct error *err);
void vm_handover_keep(void *arg);

/** vm_handover_take() - of struct migrate_target_config; but the lifeline is left. */
void vm_handover_take(struct vm_handover *v, struct handover *h, const struct bytes *console);

#endif
