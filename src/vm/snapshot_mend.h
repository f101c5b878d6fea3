/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Huge pages of guest memory, put together again.
 *
 * The pause of a snapshot is that of a fork, and a fork costs by entries of page tables: about 80 ns each, so 1 ms for 4 GiB in huge pages and 80 ms in
 * small ones.  What the guest writes while the process lives that was forked off breaks huge pages up, and the host puts them together at its leisure
 * only (16 MiB in 10 s are usual).  So a thread does it when a snapshot is written, before the next one.
 *
 * Only what is there as a whole, in pages that nobody shares: no memory is added, nor unshared from copies that live.  Where the
 * host can't, everything stays as it is.
 */
#ifndef VIV_VM_SNAPSHOT_MEND_H
#define VIV_VM_SNAPSHOT_MEND_H

#include "mem/ram.h"

struct ram_mend;

/** ram_mend_start() - begin, on a thread of its own; NULL: the host can't. */
struct ram_mend *ram_mend_start(const struct guest_ram *ram);
/** ram_mend_stop() - before memory is mapped anew, and before a fork, which would wait for it; NULL is fine.  Waits for one huge page. */
void ram_mend_stop(struct ram_mend *m);
/** ram_mend_wait() - until it is done. */
void ram_mend_wait(struct ram_mend *m);

#endif
