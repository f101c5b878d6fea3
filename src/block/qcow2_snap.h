/* SPDX-License-Identifier: Apache-2.0 */
/* Reading tables that stand in one piece, and the list of internal snapshots. */
#ifndef VIV_BLOCK_QCOW2_SNAP_H
#define VIV_BLOCK_QCOW2_SNAP_H

#include "block/qcow2_int.h"

/** qcow2_read_words() - @n big-endian words into a new array.  0, -ENOMEM, -errno. */
int qcow2_read_words(struct qcow2 *q, uint64_t offset, uint64_t n, uint64_t **out);

/* Entries of the L1 tables of all snapshots together: a list that says more is no use, and would keep us busy for ever. */
#define QCOW2_SNAPSHOT_L1_MAX (1ULL << 25)

/** qcow2_snapshots() - @fn (may be NULL) for each snapshot's L1 table; -EINVAL: the list is damaged. */
int qcow2_snapshots(struct qcow2 *q, int (*fn)(void *ctx, uint64_t l1_offset, uint64_t l1_size),
		    void *ctx, uint64_t *table_bytes);

#endif
