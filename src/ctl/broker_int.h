/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the broker: broker.c (its process), broker_policy.c (what is allowed), broker_config.c, broker_client.c. */
#ifndef VIV_CTL_BROKER_INT_H
#define VIV_CTL_BROKER_INT_H

#include "ctl/broker.h"

/**
 * broker_config_follows() - may the machine in @folder whose configuration is @old have @new?
 * @folder: absolute, its last component is the machine's name
 * @is_copy: it is a copy of the machine of @old: its name, its MAC address, no forwards, its own kernel
 */
bool broker_config_follows(json_t *old, json_t *new, const char *folder, bool is_copy);

#endif
