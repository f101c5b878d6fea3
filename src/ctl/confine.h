/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The confinement of a machine's process: what is left to somebody who has taken over the engine and the devices.
 *
 *   viv vm  = broker (the user's rights; no byte of the guest's passes through it)
 *     `- init      PID 1 of the machine's namespaces; reaps, and tells the broker how the machine ended
 *         `- machine    user, mount, PID, network, IPC and UTS namespaces of its own; an empty, read-only root; no capabilities,
 *                       no new privileges; Landlock without any rule; seccomp; not dumpable, no core file
 *
 * Where the kernel gives no user namespaces, the machine is the broker's own child, and Landlock and seccomp have to do: it sees the processes and
 * networks of the host, and may touch none of them.  confine_report() tells what is in force.
 *
 * Filters of system calls are two: one for the process, and a smaller one on top of it for threads that execute guest code.  What is in neither
 * kills the process.
 */
#ifndef VIV_CTL_CONFINE_H
#define VIV_CTL_CONFINE_H

#include <sys/types.h>

#include "base/error.h"

enum confine_side { CONFINE_BROKER, CONFINE_MACHINE };

struct confine {
	int door;	   /* the broker: where requests come; the machine: to the broker */
	pid_t machine_pid; /* as the host counts */
	int pagemap_fd;	   /* the machine: its own /proc/self/pagemap; -1: none */
	int root_fd;	   /* the machine: for confine_await(); -1: nothing is to be waited for */
	int faults_fd; /* the machine: of migrate_faults_open() (migrate_lazy.h), which the filter forbids; -1: none */
	/* in force for the machine */
	bool has_namespaces;
	int landlock_abi;     /* 0: no Landlock */
	struct error why_not; /* why there are no namespaces; empty: there are */
	/* the broker's */
	pid_t child; /* init, or the machine */
	bool is_incoming;
	bool is_machine; /* this process is; also where confine_split() failed in it */
	int status_fd;
};

/**
 * confine_split() - become two processes.  Called without other threads.
 * @machines: descriptors that are the machine's alone, which the broker closes; ends with -1
 * @is_incoming: it comes from another host, and may have to wait for its memory: faults_fd
 * Returns twice: CONFINE_BROKER, CONFINE_MACHINE (from then on confined, but for confine_await()); or -errno with @err set.
 */
int confine_split(struct confine *c, const int *machines, bool is_incoming, struct error *err);

/** confine_await() - in the machine, before its guest runs: the last of it is done, which another process does meanwhile.  @root_fd: taken.  0 or -errno. */
int confine_await(int root_fd, struct error *err);

/** confine_wait() - in the broker, when its door was closed: how the machine ended, as waitpid(2) tells. */
int confine_wait(struct confine *c);

/** confine_filter_process() - what the process may ask of the kernel, from now on.  0 or -errno with @err set. */
int confine_filter_process(bool has_namespaces, struct error *err);
/** confine_filter_vcpu() - what this thread may, on top of that. */
int confine_filter_vcpu(struct error *err);

#define CONFINE_VARIABLE "VIVARIUM_CONFINE"
/** confine_is_wanted() - not where the user has switched it off, to look into a machine's process: VIVARIUM_CONFINE=off. */
bool confine_is_wanted(void);

#define CONFINE_TEXT 256
/** confine_describe() - what is in force for the machine, as people are told. */
void confine_describe(const struct confine *c, char text[CONFINE_TEXT]);

#endif
