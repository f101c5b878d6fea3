/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/registry.h"

#include <string.h>

#define DEVICE(name) extern const struct device_class name##_class;
#include "dev/registry.def"
#undef DEVICE

// clang-format off
const struct device_class *const device_classes[] = {
#define DEVICE(name) &name##_class,
#include "dev/registry.def"
#undef DEVICE
	NULL,
};
// clang-format on

const struct device_class *device_class_find(const char *name)
{
	for (const struct device_class *const *c = device_classes; *c; c++)
		if (!strcmp((*c)->name, name))
			return *c;
	return NULL;
}
