/* SPDX-License-Identifier: Apache-2.0 */
/* The control protocol as a JSON Schema (draft 2020-12), made from the tables of commands (ctl.h) and events (events.h). */
#ifndef VIV_CTL_SCHEMA_H
#define VIV_CTL_SCHEMA_H

#include <jansson.h>

/**
 * ctl_schema() - to be json_decref'ed; NULL: no memory.
 * What it accepts as a whole is any message, in either direction.  In "$defs" are "request", "event", "error" and, for each command,
 * "COMMAND.request" and "COMMAND.answer", for each event "EVENT.event".
 */
json_t *ctl_schema(void);

#endif
