/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits of a machine by a control group (cgroup v2, Documentation/admin-guide/cgroup-v2.rst of Linux): processor time, memory, I/O of all its processes
 * together, its network's and its broker's among them.
 *
 *   A/                      the nearest group above ours, or ours, that belongs to this user ("delegated") and hands on the controllers that are wanted
 *     A/viv-NAME-PID/       the machine's: cpu.max, memory.max, io.max; removed at its end
 *
 * A group that has processes of its own hands on no controllers, but for the root (ibid., "No Internal Process Constraint"): so it is mostly one above ours,
 * which systemd delegates: systemd-run --user --scope -p Delegate=yes. $VIVARIUM_CGROUP, a path, names one otherwise.
 */
#ifndef VIV_CTL_CGROUP_H
#define VIV_CTL_CGROUP_H

#include <sys/types.h>

#include "base/error.h"

enum { CGROUP_CPU = 1, CGROUP_MEMORY = 2, CGROUP_IO = 4 };
#define CGROUP_DEVICES_MAX 16

/* 0: no limit. */
struct cgroup_limits {
	uint64_t cpu_percent; /* 100: one processor all the time */
	uint64_t mem_bytes;
	uint64_t read_bps, write_bps, read_iops,
		write_iops;		   /* of each disk of the host's that @devices are on */
	dev_t devices[CGROUP_DEVICES_MAX]; /* st_dev of files */
	unsigned ndevices;
};

/** cgroup_parse_cpu() - "150%" or "1.5" processors.  0 or -EINVAL. */
int cgroup_parse_cpu(const char *text, uint64_t *percent);
/** cgroup_parse_io() - "50M" (reads and writes each), or "read=50M,write=20M,read-iops=500,write-iops=N".  0 or -EINVAL with @err set. */
int cgroup_parse_io(const char *text, struct cgroup_limits *l, struct error *err);

/** cgroup_wanted() - CGROUP_* that @l needs. */
unsigned cgroup_wanted(const struct cgroup_limits *l);

struct cgroup {
	char *path; /* the machine's; NULL: it has none */
	char *home; /* where this process was before */
};

/**
 * cgroup_enter() - a group for machine @name under @l; this process is in it from now on, with all that it starts.  @l without limits: nothing is done.
 * 0; -EOPNOTSUPP with a sentence that names each limit that cannot be had, and why; -errno.
 */
int cgroup_enter(struct cgroup *g, const struct cgroup_limits *l, const char *name, struct error *err);
/** cgroup_add() - process @pid, too.  Nothing without a group. */
int cgroup_add(const struct cgroup *g, pid_t pid, struct error *err);
/** cgroup_leave() - this process is where it was; the group goes, if nobody else is in it. */
void cgroup_leave(struct cgroup *g); /* zeroed is fine */

/** cgroup_offered() - CGROUP_* that machines of this user can have here; @why: 256 bytes, of what is missing, or "". */
unsigned cgroup_offered(char why[256]);

/* ---- its parts, for tests ---- */

/** cgroup_own_path() - in the file system, from the texts of /proc/self/cgroup and /proc/self/mountinfo; allocated, NULL: there is no cgroup v2. */
char *cgroup_own_path(const char *self, const char *mountinfo, char **mount);
/**
 * cgroup_find_parent() - from @own upwards, not above @mount: a group that hands on @wanted; allocated.  NULL: none; *@missing: what the best lacks.
 * @is_dry: only look; else it is asked to hand on what it does not yet
 */
char *cgroup_find_parent(const char *own, const char *mount, unsigned wanted, bool is_dry,
			 unsigned *missing);
/** cgroup_make() - the group @path under @l.  0 or -errno. */
int cgroup_make(const char *path, const struct cgroup_limits *l, struct error *err);

#endif
