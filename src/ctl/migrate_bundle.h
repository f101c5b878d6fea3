/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's snapshots go before it, over a link of their own (docs/formats/migration.md).
 *
 *   viv migrate                                    viv receive
 *     { BUNDLE, BUNDLE_DATA..., an empty one  ==>    a snapshot of the machine "incoming-TOKEN", which is none
 *                                  <== BUNDLE_DONE } for each
 *     HELLO with the token                    ==>    its snapshots become the new machine's, in one step
 *     the link ends                           ==>    what nobody took is removed
 */
#ifndef VIV_CTL_MIGRATE_BUNDLE_H
#define VIV_CTL_MIGRATE_BUNDLE_H

#include "ctl/migrate_claim.h"
#include "ctl/migrate_link.h"
#include "ctl/paths.h"

/** bundle_send() - snapshot @name of @vm.  0; -ECONNREFUSED: the target said why not; -errno. */
int bundle_send(struct migrate_link *l, const char *token, const char *vm, const char *name,
		struct error *err);

/**
 * bundle_serve() - take snapshots over @l, from which the BUNDLE record @h was received, until it ends; hostile.
 * What was not taken by bundle_adopt() is removed then.  0; -errno: the source was told.
 */
int bundle_serve(struct migrate_link *l, const struct migrate_header *h, struct error *err);

/** bundle_parse() - a BUNDLE record, hostile: its token and name, of which only the length is known to be right.  0 or -EPROTO. */
int bundle_parse(const uint8_t *payload, size_t len, char token[MIGRATE_ID_TEXT],
		 char name[PATHS_NAME_MAX + 1], struct error *err);

/** bundle_adopt() - what came with @token is machine @vm's, which has a folder and no snapshot.  0, -ENOENT: nothing came; -errno. */
int bundle_adopt(const char *token, const char *vm, struct error *err);

/** bundle_drop() - nobody will take what came with @token. */
void bundle_drop(const char *token);

/** bundle_clean() - remove what processes that were killed have left over. */
void bundle_clean(void);

#endif
