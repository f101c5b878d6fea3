/* SPDX-License-Identifier: Apache-2.0 */
/* Options for limits by a control group (ctl/cgroup.h), of viv run and viv set. */
#ifndef VIV_CLI_LIMITS_H
#define VIV_CLI_LIMITS_H

#include "ctl/vmconfig.h"

struct limit_args {
	const char *cpu, *io; /* NULL: as it is; "none": no limit */
	uint64_t mem;	      /* 0: as it is */
	bool no_mem;
};

bool limits_are_asked(const struct limit_args *a);
/** limits_set() - 0 or -EINVAL. */
int limits_set(struct vmconfig *c, const struct limit_args *a, struct error *err);

#endif
