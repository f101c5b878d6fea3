/* SPDX-License-Identifier: Apache-2.0 */
/* Lockstep checking of translated blocks against the interpreter (engine_config.check_every). */
#ifndef VIV_DBT_CHECK_H
#define VIV_DBT_CHECK_H

#include "engine/dbt/xlate.h"

int check_create(struct dbt_cpu *cpu, struct error *err);
void check_destroy(struct dbt_cpu *cpu);

/** check_run() - run @b, and check it when it is its turn.  Returns false on a difference, which has been
 * reported on stderr; *@exit is the enum xlate_exit of the run. */
bool check_run(struct dbt_cpu *cpu, struct xlate_block *b, unsigned *exit);

/** check_difference() - what differed, after check_run() has returned false; the vCPU's. */
const char *check_difference(const struct dbt_cpu *cpu);

/** check_note_fill() - the soft TLB has a new entry for the page of @va, which may permit writes. */
void check_note_fill(struct dbt_cpu *cpu, uint64_t va);

#endif
