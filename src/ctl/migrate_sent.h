/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was sent of pages that are written again and again: then only what they differ in has to be sent (MIGRATE_DELTA).
 *
 * One for each link; a page always goes over the same one.  Direct-mapped: a page has one place, and keeps it as long as it is sent
 * again, at least every MIGRATE_SENT_ROUNDS rounds; so of more pages than there is room for some have theirs always, instead of all never.
 *
 * Invariant: what is found for a page is what the target has of it.  So whoever sends a page whole calls migrate_sent_put() or
 * migrate_sent_drop(), and who sends a delta migrate_sent_apply().
 */
#ifndef VIV_CTL_MIGRATE_SENT_H
#define VIV_CTL_MIGRATE_SENT_H

#include "base/error.h"

#define MIGRATE_SENT_BYTES  (128 * MIB) /* of all links of a migration */
#define MIGRATE_SENT_ROUNDS 3

struct migrate_sent;
/** migrate_sent_create() - room for @bytes of pages (at least one), which the host gives as they are used.  0 or -ENOMEM. */
int migrate_sent_create(struct migrate_sent **out, uint64_t bytes, struct error *err);
void migrate_sent_destroy(struct migrate_sent *s); /* NULL is fine */

/** migrate_sent_find() - what was last sent of @page, or NULL: that is not known.  @round: of the migration; what is found is young again. */
const uint8_t *migrate_sent_find(struct migrate_sent *s, uint64_t page, uint32_t round);
/** migrate_sent_put() - @page was sent whole, as @data; it may find no room. */
void migrate_sent_put(struct migrate_sent *s, uint64_t page, const uint8_t *data, uint32_t round);
/** migrate_sent_apply() - of @page, which was found, @delta was sent. */
void migrate_sent_apply(struct migrate_sent *s, uint64_t page, const uint8_t *delta);
/** migrate_sent_drop() - @page was sent in a way that is not kept. */
void migrate_sent_drop(struct migrate_sent *s, uint64_t page);

/** migrate_page_xor() - @out = @a ^ @b, pages that are aligned to 8; @out may be one of them. */
void migrate_page_xor(uint8_t *out, const uint8_t *a, const uint8_t *b);

#endif
