/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device that the public kvm-unit-tests drive: ports E0H (echo), E4H (flush, accepted), E8H (echo of a byte),
 * 2000H-2017H (raise or lower GSI n), and 4 KiB of device memory at FF000000H.  Only in machines that
 * ask for it.
 */
#ifndef VIV_DEV_DEBUG_TESTDEV_H
#define VIV_DEV_DEBUG_TESTDEV_H

#include "dev/device.h"

#define TESTDEV_IOMEM 0xff000000u

struct testdev {
	struct device dev;
	struct dev_env env;
	struct irq_line irq; /* .n is replaced by the line written to */
	struct bus_range *ranges[5];
	uint8_t echo[4];
	uint8_t bytes[1];
	uint8_t pad_[3];
	uint8_t iomem[4096];
};

extern const struct device_class testdev_class;

/** testdev_create() - @gsi: its set(ctx, n, level) is called with n = 0..23. */
int testdev_create(struct testdev **out, const struct dev_env *env, struct irq_line gsi,
		   struct error *err);

#endif
