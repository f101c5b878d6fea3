/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the target has copied: the empty files that migrate_make_folder() made are filled from the records of vm/migrate_disk.h.
 *
 * The machine has none of the disks open meanwhile (migrate_target_stand_in()).  Everything that comes is hostile: only files that were asked for are
 * written, and only within their size.
 */
#ifndef VIV_CTL_MIGRATE_FILES_H
#define VIV_CTL_MIGRATE_FILES_H

#include "ctl/migrate_offer.h"

#define MIGRATE_NFILES 3 /* that are no disks */

struct migrate_files {
	struct block_dev *disks[MACHINE_MAX_DISKS]; /* NULL: not copied */
	struct {
		int fd; /* -1: not copied */
		uint64_t size_bytes;
	} files[MIGRATE_NFILES];
	struct migrate_chunk_reader reader;
	uint8_t *buf; /* MIGRATE_UNIT_BYTES, for checksums */
};

/** migrate_files_init() - none is open; before anything else. */
void migrate_files_init(struct migrate_files *f);
/** migrate_files_open() - those of @o that are copied, by the names that @c has for them.  With the machine's lock.  0 or -errno; migrate_files_close() in any case. */
int migrate_files_open(struct migrate_files *f, struct migrate_offer *o, const struct vmconfig *c,
		       struct loop *loop, struct error *err);
/** migrate_files_close() - with the lock; twice is fine. */
void migrate_files_close(struct migrate_files *f);

/* Of one thread, without the lock.  0; -EPROTO: no such file, or outside of it; -ENOSPC, -errno. */
int migrate_files_take(struct migrate_files *f, const uint8_t *payload, size_t len, struct error *err);
/** migrate_files_flush() - what came is stable. */
int migrate_files_flush(struct migrate_files *f, struct error *err);
/** migrate_files_check() - a DISK_SUMS record; -EBADMSG: the content is not the source's. */
int migrate_files_check(struct migrate_files *f, const uint8_t *payload, size_t len, struct error *err);

#endif
