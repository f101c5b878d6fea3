/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links of one migration that arrive at processes of their own, as each ssh runs another `viv receive --stdio`: those that got a JOIN
 * hand their links to the one that got the HELLO.  They meet at a socket in the data root, which only the user can reach, by the id of the migration.
 */
#ifndef VIV_CLI_JOINLINKS_H
#define VIV_CLI_JOINLINKS_H

#include "ctl/migrate_claim.h"

/* How long each waits for the others: people log in. */
#define JOINLINKS_MS 60000

/** joinlinks_pass() - hand @fd, link @index of migration @id from which JOIN was read, to whoever has its offer; it stays the caller's. 0 or -errno. */
int joinlinks_pass(const uint8_t id[MIGRATE_ID_BYTES], uint16_t index, int fd, struct error *err);

/**
 * joinlinks_gather() - @fds gets the links 1 to @n - 1 of migration @id, at those indices.
 * @first: link 0, whose end ends the waiting
 * Returns 0; -ETIMEDOUT, -EPIPE, -EPROTO, -errno: none.
 */
int joinlinks_gather(const uint8_t id[MIGRATE_ID_BYTES], int first, int *fds, unsigned n,
		     struct error *err);

#endif
