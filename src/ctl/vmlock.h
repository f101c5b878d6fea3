/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may change a machine: the file vms/NAME/lock, and two locks on it (fcntl(2), F_OFD_SETLK; the kernel gives them back
 * when the last process that holds the descriptor ends, however it ends).
 *
 *   byte 0   held by whoever makes, changes, starts, renames or removes the machine, and by its process while it runs
 *   byte 1   held by its process besides: it runs
 *
 * 1. vms/NAME, its files, and run/NAME are made, changed and removed by the holder of byte 0 only.
 * 2. A command that starts a machine holds byte 0 and passes the descriptor on to the machine's process: between what the
 *    command read and the start nobody changes anything.
 *    A machine that goes on in another process hands the descriptor on to that: between them nobody else gets it.
 * 3. A lock counts only if vms/NAME/lock is still the file that was locked: it may have been renamed or removed meanwhile.
 * 4. A directory whose lock was held, which is why the file is not empty, and is not, is as its last holder left it, even one that was killed: without
 *    machine.json it was never completed, one that is thrown away at its end is at it, and run/NAME is stale.
 */
#ifndef VIV_CTL_VMLOCK_H
#define VIV_CTL_VMLOCK_H

#include "base/error.h"

#define VMLOCK_WAIT_MS 30000

/**
 * vmlock_take() - byte 0, for a change.  Waits for other commands, and for a machine's process that takes no connections because it
 * is beginning or ending (one that was killed leaves its broker behind for a moment); VMLOCK_WAIT_MS at most.
 * Returns a descriptor that holds the lock, -EBUSY with @err: the machine runs, -ETIMEDOUT: another command holds it,
 * -ENOENT: there is no such machine.
 */
int vmlock_take(const char *name, struct error *err);
/** vmlock_try() - the same without waiting: -EAGAIN, without @err, when somebody else holds it. */
int vmlock_try(const char *name, struct error *err);
/** vmlock_run() - @fd, of vmlock_take(), becomes that of a running machine.  0 or -errno. */
int vmlock_run(int fd, const char *name, struct error *err);
/** vmlock_join() - is @fd, which another process of the running machine has handed over, its lock?  It is held until all have closed it.  0 or -errno. */
int vmlock_join(int fd, const char *name, struct error *err);
/** vmlock_is_running() - does the machine have a process?  Takes nothing, so that it is in nobody's way. */
bool vmlock_is_running(const char *name);

#endif
