/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a machine's process is given by the host: its lock, its control socket, its cards' other ends; and the broker that goes on
 * looking after them and after its files while it is confined (ctl/broker.h, ctl/confine.h).
 */
#ifndef VIV_CLI_VM_HOST_H
#define VIV_CLI_VM_HOST_H

#include "ctl/broker.h"
#include "ctl/confine.h"

struct vm_host {
	char *run_dir, *vm_dir;
	int lock_fd;
	pid_t net_pid;			      /* 0: no network process of its own */
	pid_t share_pids[MACHINE_MAX_SHARES]; /* servers of shared folders, which end when their sockets close */
	unsigned nshares;
	bool is_dir_ours; /* we hold the lock: what lies in the directories is ours to remove */
	bool is_throwaway;
	bool is_successor; /* vm_host_prepare_successor() */
	json_t *identity;  /* its record in its lab, as told when it joined; NULL: it is in none */
	bool is_copy_in_lab;	   /* its place there is another's when it is thrown away */
	struct broker_start start; /* door: -1 */
	struct cgroup cgroup;	   /* with the broker and the network's process in it */
};

/**
 * vm_host_prepare() - lock, configuration, log, limits, control socket and cards of machine @name; in this order.
 * @c: is filled, vmconfig_init() was called
 * @lock_fd: of vmlock_take(), taken; 0: it is taken here
 * 0 or -errno with @err set; vm_host_finish() in any case.
 */
int vm_host_prepare(struct vm_host *h, struct vmconfig *c, const char *name, int lock_fd,
		    struct error *err);
/**
 * vm_host_prepare_successor() - of a machine that another process hands over: its configuration and log.  The rest is that process's until vm_host_arrived(), or its
 * broker hears that it has arrived.
 */
int vm_host_prepare_successor(struct vm_host *h, struct vmconfig *c, const char *name, struct error *err);
/** vm_host_arrived() - without a broker: it goes on here, with @lock_fd, taken.  0 or -errno. */
int vm_host_arrived(struct vm_host *h, const char *name, int lock_fd, struct error *err);
/** vm_host_has_left() - it goes on in another process, to which everything here belongs. */
void vm_host_has_left(struct vm_host *h);
/**
 * vm_host_await_net() - the network's process has come up meanwhile, or there will be no machine.
 * @s: what the machine was given; nothing is waited for afterwards
 * @is_confined: this is the machine, and the network's process its broker's child
 */
int vm_host_await_net(struct vm_host *h, struct broker_start *s, bool is_confined, struct error *err);
/**
 * vm_host_identity() - the machine's record in its lab, a new reference; NULL: it is in none.  Rules change while it runs; a lab that
 * does not answer leaves it with what it said last.
 */
json_t *vm_host_identity(struct vm_host *h);
/** vm_host_finish() - the machine has ended: its sockets go, and its folder if it is thrown away. */
void vm_host_finish(struct vm_host *h);

/**
 * vm_host_broker() - be the broker of the machine that confine_split() made, to its end.
 * Returns the status to exit with; a machine that was killed is followed by the same signal.
 */
int vm_host_broker(struct vm_host *h, struct confine *confine, const struct vmconfig *c);

#endif
