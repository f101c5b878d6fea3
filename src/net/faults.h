/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a bad link does to frames: latency, jitter, loss, bandwidth, reordering, a cut.  One of these is in each direction of
 * a machine's card.  All chance comes from a seed: the same frames at the same times fare the same.
 */
#ifndef VIV_NET_FAULTS_H
#define VIV_NET_FAULTS_H

#include "base/error.h"

#define FAULTS_LATENCY_MAX_NS 10000000000LL
#define FAULTS_QUEUE_NS                                                                            \
	500000000LL /* a narrow link holds what it sends in this time; more is lost */

struct faults {
	int64_t latency_ns, jitter_ns;	/* jitter: added, evenly from 0 */
	uint32_t loss_ppm, reorder_ppm; /* reorder: frames that overtake: they have no latency */
	uint64_t bytes_per_s;		/* 0: no limit */
	bool is_cut;			/* nothing passes */
};

struct fault_link {
	struct faults faults;
	uint64_t random;
	int64_t busy_until_ns, last_ns;
};

/** faults_set() - one setting, as written: latency 20ms, jitter 5ms, loss 1%, reorder 0.5%, bandwidth 1M (bytes a
 * second), partition on or off, none on (all of them go).  0 or -EINVAL with @err set. */
int faults_set(struct faults *f, const char *key, const char *value, struct error *err);
bool faults_is_none(const struct faults *f);
/** faults_format() - as faults_set() reads them, "latency=20ms loss=1%"; "none". Returns @buf. */
const char *faults_format(const struct faults *f, char *buf, size_t cap);

/** fault_link_init() - chance begins with @seed. */
void fault_link_init(struct fault_link *l, const struct faults *f, uint64_t seed);
/**
 * fault_link_pass() - a frame of @len bytes enters at @now_ns.
 * Returns when it leaves, at least @now_ns, or -1: it is lost.
 */
int64_t fault_link_pass(struct fault_link *l, int64_t now_ns, size_t len);

#endif
