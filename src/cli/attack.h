/* SPDX-License-Identifier: Apache-2.0 */
/* `viv doctor --attack`: a machine's process that was taken over, and what it can do. */
#ifndef VIV_CLI_ATTACK_H
#define VIV_CLI_ATTACK_H

#include <stdbool.h>

/** attack_run() - try all, print a line each (or JSON); the exit status: 0 if every try failed. */
int attack_run(bool as_json);

#endif
