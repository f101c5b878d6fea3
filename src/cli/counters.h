/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's counters as people read them.
 *
 * Input is what the control command "info" answers: "counters", an object a CPU, and "devices", accesses by device.  Names
 * that end in _size or _bytes are levels, all others only grow (engine.h).  Everything in it is checked: it comes from
 * another process.
 */
#ifndef VIV_CLI_COUNTERS_H
#define VIV_CLI_COUNTERS_H

#include <jansson.h>
#include <stdio.h>

/**
 * counters_since() - {"counters", "devices"}: by how much each counter of @after has grown since @before; levels as they are in
 * @after.  One that went down (its machine was reset) counts as new.  NULL: no memory.
 */
json_t *counters_since(json_t *before, json_t *after);

/** counters_print() - as tables: the engine's, interpreted instructions and devices, the most frequent first. */
void counters_print(json_t *info, FILE *out);

#endif
