/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of snapshots: the objects of sections that are no device's, and the container's writer. */
#ifndef VIV_VM_SNAPSHOT_INT_H
#define VIV_VM_SNAPSHOT_INT_H

#include <assert.h>
#include <stdio.h>

#include "state/field.h"
#include "vm/machine_int.h"
#include "vm/snapshot_state.h"

/* Machine time, and what hangs on it. */
struct snapshot_clock {
	int64_t clock_ns;
	uint64_t kvmclock_tsc, kvmclock_ns;
	uint64_t resets;
	uint32_t last_lowest; /* who got the last lowest-priority interrupt */
	bool has_kvmclock;
	bool is_reset_queued; /* the guest asked for a reset that has not happened yet */
	uint8_t pad_[2];
};
extern const struct state_desc snapshot_clock_desc;

/* Of a vCPU, what its engine does not know. */
struct snapshot_vcpu {
	uint8_t sipi_vector;
	bool is_waiting_sipi, init_pending, sipi_pending;
};
extern const struct state_desc snapshot_vcpu_desc;

struct snapshot_writer {
	struct bytes *out;
	size_t start, section;
	unsigned nsections;
};
void snapshot_begin(struct snapshot_writer *w, struct bytes *out);
void snapshot_begin_section(struct snapshot_writer *w, const char *name);
void snapshot_end_section(struct snapshot_writer *w);
void snapshot_put(struct snapshot_writer *w, const char *name, const struct state_desc *desc,
		  const void *obj);
void snapshot_put_features(struct snapshot_writer *w, const struct cpu_model *model);
int snapshot_end(struct snapshot_writer *w, struct error *err);

/** snapshot_get() - section @name into @obj, all of it.  0 or -errno with @err set, @obj then untouched. */
int snapshot_get(const struct snapshot_state *s, const char *name, const struct state_desc *desc,
		 void *obj, struct error *err);

#endif
