/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests: a lab with a data plane whose every frame is kept.
 *
 *   dmz 10.1.0.0/24, uplink   web, ops
 *   app 10.2.0.0/24           web, db
 *   mal 10.66.0.0/24          sus, evil
 *   tag 10.7.0.0/24, VLAN 20  old, new
 *   fw: one card, a trunk of mal with VLAN 30, tag with 20, app with 31
 *
 *   allow  dmz.web -> app.db : tcp/5432,6000-6010     app.db -> dmz.ops : icmp     dmz.ops -> app.* : udp
 *          tag.old -> app.db : any                    dmz.* -> internet : tcp/80,443, only to what was learnt
 *   deny   dmz.ops -> dmz.web : tcp/22
 *   forward 8080 -> dmz.web : tcp/80
 */
#ifndef VIV_NET_FABRIC_TESTING_H
#define VIV_NET_FABRIC_TESTING_H

#include "net/fabric.h"
#include "net/testing.h"

enum { WEB_DMZ, OPS, WEB_APP, DB, SUS, EVIL, OLD, NEW, FW_MAL, FW_TAG, FW_APP, LAB_PORTS };
enum { DMZ, APP, MAL, TAG };
enum { M_WEB, M_OPS, M_DB, M_SUS, M_EVIL, M_OLD, M_NEW, M_FW };
#define LAB_LEARNT "93.184.216.34"

struct sent {
	int port; /* or POLICY_OUTSIDE: to the uplink of @network */
	unsigned network;
	struct net_offload off;
	struct frame frame;
};

struct lab_fixture {
	struct fabric *f;
	const struct policy *policy;
	int64_t now_ms;
	struct net_offload hints; /* of what lab_send() sends */
	struct sent sent[64];
	unsigned nsent;
	struct fabric_verdict verdict; /* the last */
	unsigned nseen;
	unsigned dns_questions, dns_segments;
};

extern const int lab_tags[LAB_PORTS]; /* of frames at their cards; -1: none */

struct policy *lab_policy(void);
void lab_set_up(struct lab_fixture *l);
/** lab_set_up_with() - another lab.  Takes @p. */
void lab_set_up_with(struct lab_fixture *l, struct policy *p);
void lab_tear_down(struct lab_fixture *l);
/** lab_send() - from the machine at @port, by its card, with the tag that the frame has; the outputs before are forgotten.  Returns why it passed or did not. */
enum fabric_reason lab_send(struct lab_fixture *l, unsigned port, const struct frame *f);
/** lab_ends() - of a packet from @from to @to, sent as a machine would: directly, or over the gateway. */
struct frame_ends lab_ends(const struct policy *p, unsigned from, unsigned to, bool is_v6);
/** lab_got() - the frame for @port, or NULL. */
const struct sent *lab_got(const struct lab_fixture *l, int port);

#endif
