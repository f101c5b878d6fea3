/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM in files.
 *
 * A snapshot's RAM is an index and one or more layer files.  A layer holds RAM at its own offsets (byte n of the
 * file is byte n of the mapping, mem/ram.h), sparse: what is zero or unchanged is a hole.  The index says for each
 * granule in which layer it lies, or that it is zero, and carries the checksum of its contents.  The first snapshot has one
 * layer; a later one names the layers of its parent and adds one with the granules that hold changed pages.
 *
 * Layers never change once their snapshot is done, so that machines map them (MAP_PRIVATE) and other
 * snapshots name them.
 *
 * Index on the wire; integers little-endian
 *   "VIVRAMIX", u32 version, u32 bytes of a granule, u64 bytes of RAM, u32 layers,
 *   layer...    u8 length of the file's name, name
 *   granule...  u16 layer from 1 (0: all zero), u64 XXH64 of its bytes (0 where all zero)
 *   u64 XXH64 of all before
 */
#ifndef VIV_VM_SNAPSHOT_RAM_H
#define VIV_VM_SNAPSHOT_RAM_H

#include "base/bytes.h"
#include "base/error.h"
#include "mem/ram.h"

#define RAM_GRANULE_MIN (64 * KIB)
#define RAM_GRANULE_MAX (1024 * MIB)
#define RAM_LAYERS_MAX	1024 /* a file may have */
#define RAM_LAYERS_GOOD 64   /* a new one has: each is an open file, and a piece of every map */
#define RAM_LAYER_NAME	40   /* with the NUL */
#define RAM_GRANULES_MAX                                                                           \
	32768 /* a machine maps no more pieces than this: the host's limit is 65530 */
#define RAM_INDEX_MAX (16 * MIB)

struct ram_index {
	uint64_t ram_bytes; /* of the mapping: RAM and ROM */
	uint32_t granule_bytes;
	uint32_t ngranules, nlayers;
	char (*layers)[RAM_LAYER_NAME];
	uint16_t *layer; /* ngranules */
	uint64_t *hash;	 /* ngranules */
};

/** ram_index_init() - of @ram_bytes of RAM, all zero, without layers.  0, -EINVAL, -ENOMEM. */
int ram_index_init(struct ram_index *x, uint64_t ram_bytes, struct error *err);
void ram_index_free(struct ram_index *x); /* zeroed is fine */
int ram_index_copy(struct ram_index *to, const struct ram_index *from, struct error *err);
/** ram_index_add_layer() - its number, from 1, or -EINVAL (name), -ENOSPC, -ENOMEM. */
int ram_index_add_layer(struct ram_index *x, const char *name, struct error *err);
/** ram_index_drop_unused() - forget layers that no granule is in. */
void ram_index_drop_unused(struct ram_index *x);
/**
 * ram_index_consolidate() - where granules lie in more than @most layers, have those that hold least written anew.
 * @dirty: a bit a page, those that are written anyway (ram_write_layer()); gets those of the granules of half of the layers
 */
void ram_index_consolidate(const struct ram_index *x, uint32_t most, uint64_t *dirty);
/** ram_index_is_same() - do both say the same content, in whatever files? */
bool ram_index_is_same(const struct ram_index *a, const struct ram_index *b);
/** ram_index_save() - append to @out. */
int ram_index_save(const struct ram_index *x, struct bytes *out, struct error *err);
/** ram_index_parse() - hostile bytes.  0, -EINVAL, -ENOMEM; ram_index_free() after success. */
int ram_index_parse(struct ram_index *x, const uint8_t *data, size_t len, struct error *err);

struct ram_progress {
	bool (*fn)(void *arg, uint64_t done_bytes, uint64_t total_bytes); /* false: stop, -ECANCELED; or NULL */
	void *arg;
};

/**
 * ram_write_layer() - write RAM to the new layer file @fd and bring @x up to date.
 * @layer: the number of the new layer in @x
 * @base: RAM, @x->ram_bytes of it, which stands still
 * @dirty: a bit a page, those that may differ from what @x says; NULL: all
 * Returns 0, -ENOSPC, -EIO ..., -ECANCELED.  Not synced.
 */
int ram_write_layer(struct ram_index *x, unsigned layer, int fd, const uint8_t *base,
		    const uint64_t *dirty, const struct ram_progress *progress, struct error *err);

/* The layers of an index, open. */
struct ram_files {
	struct ram_index index;
	int *fds;
	uint64_t allocated_bytes; /* of all files on the host */
};
/** ram_files_open() - takes @index, also on failure.  @dir_fd: the folder of the layers. */
int ram_files_open(struct ram_files *f, struct ram_index *index, int dir_fd, struct error *err);
void ram_files_close(struct ram_files *f); /* zeroed is fine */

/**
 * ram_files_map() - make the files the contents of @ram: mapped privately, read when touched.
 * @is_fresh: @ram is zero and untouched, so that zero granules need no work
 * On failure RAM is in pieces: its machine must not run any more.
 */
int ram_files_map(const struct ram_files *f, struct guest_ram *ram, bool is_fresh, struct error *err);

/** ram_files_prefault() - have all that ram_files_map() mapped read and in place before it is touched.  0 or -errno. */
int ram_files_prefault(const struct ram_files *f, struct guest_ram *ram, struct error *err);

/**
 * ram_files_put_back() - make @ram, the contents of @now but for the pages of @dirty (a bit a page), that of the files.
 * Only what differs is touched; the engine is told of it.  On failure RAM is in pieces.
 * Returns how many pages were touched, or -errno.
 */
int64_t ram_files_put_back(const struct ram_files *f, const struct ram_index *now,
			   struct guest_ram *ram, const uint64_t *dirty, struct error *err);

/**
 * ram_files_copy() - granule @i, which is not zero, to the layer file @to, at the same place.
 * @buf: room for a granule
 * Returns 0, -EINVAL (its checksum does not match), -errno.
 */
int ram_files_copy(const struct ram_files *f, uint32_t i, int to, uint8_t *buf, struct error *err);

/**
 * ram_files_verify() - read all and compare with the checksums.
 * @bad: called for each damaged granule with its first byte in RAM and the layer's file name
 * Returns how many are damaged, or -errno.
 */
int64_t ram_files_verify(const struct ram_files *f,
			 void (*bad)(void *arg, uint64_t offset, uint64_t len, const char *layer),
			 void *arg, const struct ram_progress *progress, struct error *err);

#endif
