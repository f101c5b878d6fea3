/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who a machine is in a lab, as a record of JSON: its cards with their addresses, and the rules that are about it.  The lab
 * gives it with each card's socket and when asked (labd.h); snapshots keep it, copies and machines that come from elsewhere bring it along
 * (docs/formats/snapshot.md has the members).
 *
 * A lab that does not know a machine takes it in by a record: as a copy of the machine that the record names, if it knows
 * that one, with the rules that hold for it now; else by what the record says, with its networks by their names, and its rules
 * narrowed to this machine and behind all that the lab has: what the lab denies stays denied.
 */
#ifndef VIV_NET_IDENTITY_H
#define VIV_NET_IDENTITY_H

#include <jansson.h>

#include "net/faults.h"
#include "net/policy.h"

#define IDENTITY_CARDS_MAX     POLICY_NETWORKS_MAX /* each network at most once */
#define IDENTITY_COPY_MAX      8		   /* ancestors that are told */
#define IDENTITY_ANNOUNCED_MAX 16		   /* addresses of a card's guest's own making */

/**
 * identity_of() - the record of @machine.
 * @faults: by port; NULL: none
 * @origin: the record that it came with, whose ancestors it has, too; NULL: none
 * NULL: no memory.
 */
json_t *identity_of(const struct policy *p, unsigned machine, const struct faults *faults, json_t *origin);

/** identity_check() - hostile input.  0 or -EINVAL with @err set. */
int identity_check(json_t *record, struct error *err);
const char *identity_lab(json_t *record); /* of a checked one */
const char *identity_machine(json_t *record);

/**
 * identity_add() - take in machine @name by @record, hostile input.
 * @faults: by port, of those that are there; receives those of the new ones
 * Returns its index or -errno with @err set, and @p is only to be freed: -ENOENT (a network of it is none here), -EINVAL, as
 * policy_copy_machine() otherwise.
 */
int identity_add(struct policy *p, struct faults *faults, const char *name, json_t *record,
		 struct error *err);

/**
 * identity_admit() - take in machine @name because a person says so: with a card in each of @networks, an array of names, and no rule of
 * its own.  Returns its index or -errno with @err set, and @p is only to be freed: -EEXIST, -ENOENT, -EINVAL, -ENOSPC.
 */
int identity_admit(struct policy *p, const char *name, json_t *networks, struct error *err);

/**
 * identity_move() - take in machine @name, which comes from another host with @record, hostile input: its guest goes on with the MACs and addresses that it
 * has, so these it gets, in networks of the same names and subnets, or it is refused.  What denies it something comes along, and quarantine;
 * what allows it something only with @has_rules, and it may not spoof.
 * Returns its index or -errno with @err set, and @p is only to be freed: -ENOENT (a network is none here), -EEXIST (an address or MAC is
 * another's), -ENOSPC, -EINVAL.
 */
int identity_move(struct policy *p, struct faults *faults, const char *name, json_t *record,
		  bool has_rules, struct error *err);
/**
 * identity_restrict() - @machine, whose place is kept in @p, comes from another host with the checked @record: what denies it something there, and
 * quarantine, hold here, too.  0 or -errno with @err set, and @p is only to be freed: -EINVAL, -ENOSPC, -ENOMEM.
 */
int identity_restrict(struct policy *p, unsigned machine, json_t *record, struct error *err);
/** identity_is_same() - @machine of @p has the cards of the checked @record.  0 or -EEXIST with @err set. */
int identity_is_same(const struct policy *p, unsigned machine, json_t *record, struct error *err);

/* What a guest is told of a card. */
struct identity_card {
	char mac[NET_MAC_TEXT], address[NET_ADDR_TEXT]; /* "10.1.0.10/24"; "": a trunk */
	char gateway[NET_ADDR_TEXT];			/* "": it is not the way out */
	char dns[NET_ADDR_TEXT];
};
/** identity_card() - the @i-th card of a checked record, as the machine counts them; false: there is none.  Of a trunk only the MAC is told. */
bool identity_card(json_t *record, unsigned i, struct identity_card *out);

#endif
