/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The claim: whose machine it is (vm/migrate.h, invariant 4).  One file a migration at the target, migrations/ID.WHAT below the data root, WHAT being
 * "open", "ran" or "aborted".  It changes once, from "open", by a rename: whoever comes first has decided.
 *
 * The mark: handover.json in the source's folder of the machine, while its fate may be unknown (invariant 6).
 */
#ifndef VIV_CTL_MIGRATE_CLAIM_H
#define VIV_CTL_MIGRATE_CLAIM_H

#include "base/error.h"
#include "vm/migrate_stream.h"

#define MIGRATE_INCOMING                                                                           \
	"incoming.json" /* the offer, in the machine's folder until it has arrived */

/* An id as text, with its NUL. */
#define MIGRATE_ID_TEXT (2 * MIGRATE_ID_BYTES + 1)
void migrate_id_text(char out[MIGRATE_ID_TEXT], const uint8_t id[MIGRATE_ID_BYTES]);
/** migrate_id_parse() - 0 or -EINVAL. */
int migrate_id_parse(uint8_t id[MIGRATE_ID_BYTES], const char *text, struct error *err);
/** migrate_id_new() - 0 or -EIO. */
int migrate_id_new(uint8_t id[MIGRATE_ID_BYTES], struct error *err);
/** migrate_socket_path() - migrations/ID.WHAT below the data root, in a folder that is there then; allocated, NULL with @err set. */
char *migrate_socket_path(const uint8_t id[MIGRATE_ID_BYTES], const char *what, struct error *err);

/** claim_open() - stable when it returns.  0, -EEXIST (the id is known), -errno.  Old ones that nobody will ask for go. */
int claim_open(const uint8_t id[MIGRATE_ID_BYTES], struct error *err);
/** claim_take() - from "open" to "ran".  0; -ECANCELED: it is aborted; -errno.  claim_sync() makes it stable. */
int claim_take(const uint8_t id[MIGRATE_ID_BYTES], struct error *err);
int claim_sync(struct error *err);
/** claim_ask() - what became of it; from "open" it becomes "aborted" now, stable.  An answer, or -errno. */
int claim_ask(const uint8_t id[MIGRATE_ID_BYTES], struct error *err);
/** claim_forget() - the source knows that it ran, and will not ask. */
void claim_forget(const uint8_t id[MIGRATE_ID_BYTES]);

struct migrate_mark {
	char id[MIGRATE_ID_TEXT];
	char to[256];	/* as the user gave it */
	bool has_moved; /* it runs there for sure, and what is left here is no machine any more */
};
/** mark_put() - in the folder of machine @name; stable when it returns.  0 or -errno. */
int mark_put(const char *name, const struct migrate_mark *mark, struct error *err);
/** mark_get() - 0; -ENOENT: there is none; -errno. */
int mark_get(const char *name, struct migrate_mark *mark, struct error *err);
int mark_remove(const char *name, struct error *err);

#endif
