/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records of files that a machine takes along: disks, and what it is started from.  All go over link 0, between the rounds of memory.
 *
 *   DISK       = u32 file, u8 codec, u8 0, u16 0, u64 offset, u64 len, data
 *   DISK_ROUND = u32 number: what came of files up to here is to be stable
 *   DISK_DONE  = u32 number: it is (from the target)
 *   DISK_SUMS  = u32 file, u64 first unit, u32 number of units, u64 XXH64 of each with its number as seed
 *
 * A file is what it is for the guest, not what it is on the host: of a disk with layers, the content of all of them.  What never comes is zero.
 */
#ifndef VIV_VM_MIGRATE_DISK_H
#define VIV_VM_MIGRATE_DISK_H

#include "vm/migrate_stream.h"

/* Disks are files 0, 1, ... in their order. */
#define MIGRATE_FILE_KERNEL   256u
#define MIGRATE_FILE_INITRD   257u
#define MIGRATE_FILE_FIRMWARE 258u

#define MIGRATE_CHUNK_BYTES (1 * MIB)  /* contents in one record, at most */
#define MIGRATE_UNIT_BYTES  (64 * KIB) /* that a checksum is of; the last may be shorter */
#define MIGRATE_UNITS_MAX   4096       /* in one record */

enum migrate_chunk_codec {
	MIGRATE_CHUNK_ZERO,
	MIGRATE_CHUNK_RAW,
	MIGRATE_CHUNK_ZSTD,
	MIGRATE_NCHUNK_CODECS
};

struct migrate_chunk {
	uint32_t file;
	uint64_t offset, len; /* len is not 0; with contents at most MIGRATE_CHUNK_BYTES */
	const uint8_t *data;  /* NULL: zeroes */
};

/**
 * migrate_chunk_put() - append a DISK record.
 * @packs: try zstd; what that does not make shorter goes as it is
 * 0 or -ENOMEM, nothing appended.
 */
int migrate_chunk_put(struct migrate_packer *p, struct bytes *out, uint32_t *seq, bool packs,
		      const struct migrate_chunk *c);

struct migrate_chunk_reader {
	void *zstd;
	uint8_t *buf; /* MIGRATE_CHUNK_BYTES; made when needed */
};
void migrate_chunk_reader_free(struct migrate_chunk_reader *r); /* zeroed is fine */
/**
 * migrate_chunk_get() - a DISK payload, hostile.
 * @out: c->data borrowed from the payload or from @r until the next
 * Returns 0; -EPROTO; -ENOMEM.  The caller knows how long the file is: c->offset + c->len does not overflow, no more was checked.
 */
int migrate_chunk_get(struct migrate_chunk_reader *r, struct migrate_chunk *c,
		      const uint8_t *payload, size_t len, struct error *err);

struct migrate_units {
	uint32_t file, n;
	uint64_t first;
	const uint8_t *sums; /* u64 each, borrowed from the payload */
};
void migrate_units_put(struct bytes *out, uint32_t *seq, uint32_t file, uint64_t first,
		       const uint64_t *sums, uint32_t n);
/** migrate_units_get() - a DISK_SUMS payload, hostile.  0 or -EPROTO. */
int migrate_units_get(struct migrate_units *u, const uint8_t *payload, size_t len, struct error *err);
uint64_t migrate_unit_sum(uint64_t unit, const uint8_t *data, size_t len);

#endif
