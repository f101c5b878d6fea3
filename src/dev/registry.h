/* SPDX-License-Identifier: Apache-2.0 */
/* Every device class there is, by the name its state has on the wire. */
#ifndef VIV_DEV_REGISTRY_H
#define VIV_DEV_REGISTRY_H

#include "dev/device.h"

extern const struct device_class *const device_classes[]; /* ends with NULL */
/** device_class_find() - or NULL. */
const struct device_class *device_class_find(const char *name);

#endif
