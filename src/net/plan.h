/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who can reach whom, drawn from a policy by asking policy_decide() for everything that can make a difference: the same
 * function that the data plane asks.
 */
#ifndef VIV_NET_PLAN_H
#define VIV_NET_PLAN_H

#include <jansson.h>

#include "base/bytes.h"
#include "net/labfile.h"

/* What may be opened from one port to another, or to the internet. */
enum plan_proto { PLAN_TCP, PLAN_UDP, PLAN_ICMP, PLAN_OTHER, PLAN_PROTOS };
struct plan_access {
	/* Ranges of ports that are open, ascending, not touching; {0, 65535}: all.  PLAN_ICMP, PLAN_OTHER: one or none. */
	struct policy_range *ranges[PLAN_PROTOS]; /* malloc'd */
	unsigned nranges[PLAN_PROTOS];
	bool is_named; /* to the internet: some of it only to names */
};

/** plan_access() - from port @from to port @to, or POLICY_OUTSIDE.  Returns 0 or -ENOMEM; plan_access_free() after it. */
int plan_access(const struct policy *p, unsigned from, int to, struct plan_access *out);
void plan_access_free(struct plan_access *a);
/** plan_access_has() - is @port of @proto open? @port counts for TCP and UDP. */
bool plan_access_has(const struct plan_access *a, enum plan_proto proto, uint16_t port);
/** plan_access_format() - "all", "nothing", "tcp/80,443 icmp". */
void plan_access_format(const struct plan_access *a, struct bytes *out);

/** plan_text(), plan_svg() - the whole lab; check @out->is_failed. */
void plan_text(const struct policy *p, struct bytes *out);
void plan_svg(const struct policy *p, struct bytes *out);
/** plan_json() - the same as data.  NULL: no memory. */
json_t *plan_json(const struct policy *p);

#endif
