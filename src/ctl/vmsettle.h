/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disks of a machine that has just begun on new layers, made stable beside the running guest.
 *
 *   machine: opens new layers ---> guest runs ---- its flushes wait ----> they go on ---> "ready"
 *   thread:                        vmdisks_settle(): layers, configuration ^
 *
 * Until then a machine that is killed is what it was before, whatever its guest has done: the configuration names the layers of before, and
 * nothing was reported to the guest as stable, or to people as ready.
 */
#ifndef VIV_CTL_VMSETTLE_H
#define VIV_CTL_VMSETTLE_H

#include "ctl/vmdisks.h"

struct vmsettle;
/* On the loop's thread, under the machine's lock: it is done, vmsettle_end() tells how.  It comes late where vmsettle_end() came first. */
typedef void (*vmsettle_fn)(void *arg);

/**
 * vmsettle_begin() - of @m, whose disks were opened as unsettled.
 * @d: borrowed; neither it nor its configuration is changed before vmsettle_end()
 * @lock: of the snapshots; taken, held meanwhile: no merge may look for what the configuration does not name yet; -1: none
 * 0, or -errno with @err set: @lock is closed, and the disks stay unsettled.
 */
int vmsettle_begin(struct vmsettle **out, struct machine *m, struct vmdisks *d, int lock,
		   vmsettle_fn done, void *arg, struct error *err);
/** vmsettle_end() - waits for it: without the machine's lock, or from @done.  0, or -errno with @err set: the disks are not stable. */
int vmsettle_end(struct vmsettle *s, struct error *err);

#endif
