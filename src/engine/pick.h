/* SPDX-License-Identifier: Apache-2.0 */
/* The engines there are, and the rule by which one is chosen (engine_pick in engine.h). */
#ifndef VIV_ENGINE_PICK_H
#define VIV_ENGINE_PICK_H

#include "engine/engine.h"

/* Below this, hardware virtualization is no such thing: ring 0 is emulated (architecture: engines). */
#define ENGINE_MIN_MIPS 50.0

/* All engines, the one that `auto` prefers first; ends with NULL. */
extern const struct engine_ops *const engines[];

/**
 * engine_pick_from() - the rule itself, over any list.
 * "auto": the first whose probe says usable and, if it measured, at least ENGINE_MIN_MIPS; the last of
 * the list is taken whenever it is usable at all.  A name: that one, if it is usable.
 */
const struct engine_ops *engine_pick_from(const struct engine_ops *const *list, const char *want,
					  char reason[256], struct error *err);

#endif
