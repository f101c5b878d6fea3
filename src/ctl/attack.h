/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What somebody who has taken over a machine's process would try next: each try is made in a child of a confined process, as it is and once
 * more with the filter of threads that execute guest code.  A try succeeds when the kernel, or the broker, does what it was asked.
 */
#ifndef VIV_CTL_ATTACK_H
#define VIV_CTL_ATTACK_H

#include "ctl/vmconfig.h"

/* Of the shared folder: a link to ATTACK_SECRET, which lies beside the folder, and a file. */
#define ATTACK_SECRET "secret"
#define ATTACK_LINK   "out"
#define ATTACK_KEPT   "kept"

/* What there is to be had; absolute paths. */
struct attack_target {
	const struct vmconfig *config; /* of the machine that attacks, with a kernel and a disk; its broker answers */
	const char *folder; /* its folder */
	const char *victim; /* the folder of another machine */
	const char *socket; /* that one's control socket, listening */
	pid_t process;	    /* of the host: the one that called confine_split() */
	int tcp_port;	    /* of the host's 127.0.0.1, listening */
	/* Connected to servers of one folder (share/sharer.h). */
	int share_fd, readonly_share_fd;
};

enum attack_outcome { ATTACK_REFUSED, ATTACK_KILLED, ATTACK_SUCCEEDED, ATTACK_UNTRIED };
struct attack_result {
	enum attack_outcome outcome;
	int host_errno;	  /* of REFUSED */
	const char *name; /* static */
};

/** attack_count() - how many tries there are. */
unsigned attack_count(void);
const char *attack_name(unsigned i);
/**
 * attack_try() - try @i in a child of this process.
 * @is_vcpu: as a thread that executes guest code
 */
struct attack_result attack_try(unsigned i, const struct attack_target *t, bool is_vcpu);

#endif
