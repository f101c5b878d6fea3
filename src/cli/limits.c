/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/limits.h"

#include <errno.h>
#include <string.h>

bool limits_are_asked(const struct limit_args *a)
{
	return a->cpu || a->io || a->mem || a->no_mem;
}

static bool is_none(const char *text)
{
	return strcmp(text, "none") == 0;
}

int limits_set(struct vmconfig *c, const struct limit_args *a, struct error *err)
{
	struct cgroup_limits l = c->limits;
	int r = 0;

	if (a->cpu && is_none(a->cpu))
		l.cpu_percent = 0;
	else if (a->cpu && cgroup_parse_cpu(a->cpu, &l.cpu_percent) < 0)
		r = error_set(err, -EINVAL,
			      "--cpu-limit takes 150%% or 1.5, processors' time, not \"%s\"", a->cpu);
	if (a->io)
		l.read_bps = l.write_bps = l.read_iops = l.write_iops = 0;
	if (r == 0 && a->io && !is_none(a->io))
		r = cgroup_parse_io(a->io, &l, err);
	if (a->mem || a->no_mem)
		l.mem_bytes = a->mem;
	if (r == 0)
		c->limits = l;
	return r;
}
