/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2, the inside.  Format: QEMU, docs/interop/qcow2.txt ("the specification").  docs/design/block.md tells how it works.
 *
 * Invariants
 *  1. Metadata in memory (L1, cached tables, refcounts) is touched under @lock only; no data moves under it.  Whoever
 *     moves data first registers a span (qcow2_span), under @lock, and takes it off after.
 *  2. Order on the storage: what an L2 entry leads to (data, count) is stable before the entry is written; an L2 table
 *     has valid content on the storage before an L1 entry leads to it; a cluster whose last reference went is not used
 *     again before the entry that lost it is stable.  qcow2_writeback() alone writes entries.
 *  3. In memory, a cluster's count is raised before anything refers to it, and lowered only by qcow2_writeback(), after
 *     the entry that referred to it is stable, and after every reader that may still read it is done.
 *  4. No data is written to a cluster in @meta: header, tables, refcount blocks, and what internal snapshots hold of them.
 *  5. A cluster is written in place only if its entry has the COPIED flag.
 */
#ifndef VIV_BLOCK_QCOW2_INT_H
#define VIV_BLOCK_QCOW2_INT_H

#include <pthread.h>

#include "block/qcow2.h"

#define QCOW2_MAGIC	       0x514649fbu
#define QCOW2_CLUSTER_BITS_MIN 9u
#define QCOW2_CLUSTER_BITS_MAX 21u
#define QCOW2_L1_MAX	       (32 * MIB / 8)
#define QCOW2_REFTABLE_MAX     (8 * MIB) /* bytes */
#define QCOW2_SNAPSHOTS_MAX    65536u
#define QCOW2_BACKING_NAME_MAX 1023u
#define QCOW2_HEADER_V2	       72u
#define QCOW2_HEADER_V3	       104u
#define QCOW2_HEADER_OURS      112u

#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ULL /* bits 9-55 of L1 and standard L2 entries */
#define QCOW2_COPIED	  (1ULL << 63)
#define QCOW2_COMPRESSED  (1ULL << 62)
#define QCOW2_ZERO	  1ULL

/* Incompatible, compatible, autoclear feature bits. */
#define QCOW2_I_DIRTY	    (1ULL << 0)
#define QCOW2_I_CORRUPT	    (1ULL << 1)
#define QCOW2_I_EXTERNAL    (1ULL << 2)
#define QCOW2_I_COMPRESSION (1ULL << 3)
#define QCOW2_I_EXTENDED_L2 (1ULL << 4)
#define QCOW2_I_KNOWN	    (QCOW2_I_DIRTY | QCOW2_I_CORRUPT | QCOW2_I_COMPRESSION | QCOW2_I_EXTENDED_L2)
#define QCOW2_C_LAZY	    (1ULL << 0)
#define QCOW2_A_BITMAPS	    (1ULL << 0)

#define QCOW2_EXT_END	   0x00000000u
#define QCOW2_EXT_BACKING  0xe2792acau
#define QCOW2_EXT_FEATURES 0x6803f857u
#define QCOW2_EXT_BITMAPS  0x23852875u
#define QCOW2_EXT_DATAFILE 0x44415441u

struct qcow2_header {
	uint32_t version, cluster_bits, crypt_method, l1_size, reftable_clusters, nsnapshots;
	uint64_t backing_offset, size, l1_offset, reftable_offset, snapshots_offset;
	uint32_t backing_len;
	uint64_t incompatible, compatible, autoclear;
	uint32_t refcount_order, header_len;
	uint8_t compression;
	uint64_t bitmaps_offset, bitmaps_len; /* directory; 0: none */
	uint32_t nbitmaps;
};

/* A cached table: an L2 table or a refcount block, as it stands in the file. */
struct qcow2_table {
	uint64_t offset;
	uint8_t *data;
	uint32_t dirty_lo, dirty_hi; /* bytes to be written; empty: lo >= hi */
	bool is_refs;
	unsigned nwriting; /* a writeback has a copy that is not yet in the file */
	uint64_t used;
	struct qcow2_table *next;
};

struct qcow2_cache {
	struct qcow2_table **buckets;
	unsigned nbuckets, n, capacity, ndirty;
	uint64_t clock;
};

/* Clusters, by number. */
struct qcow2_set {
	uint64_t *slots; /* number + 1; 0: empty */
	size_t cap, n;
};
bool qcow2_set_has(const struct qcow2_set *s, uint64_t cluster);
int qcow2_set_add(struct qcow2_set *s, uint64_t cluster); /* 1: was there; 0; -ENOMEM */
void qcow2_set_remove(struct qcow2_set *s, uint64_t cluster);
void qcow2_set_free(struct qcow2_set *s);

/* A request at work on guest clusters [first, last].  Writers in place share, whoever changes entries is alone; readers meet
 * nobody, they only keep freed clusters from being used again. */
enum qcow2_span_kind { SPAN_READ, SPAN_WRITE, SPAN_CHANGE };
struct qcow2_span {
	enum qcow2_span_kind kind;
	uint64_t first, last, ticket;
	struct qcow2_span *next, *prev;
};

/* A reference that is gone from memory and has still to go from the count. */
struct qcow2_pending {
	uint64_t cluster, ticket;
};

struct qcow2_zcache;

struct qcow2 {
	struct layer layer;
	struct image_file file;
	int meta_fd; /* the same file without O_DIRECT, or file.fd */
	char *path, *backing_name, *backing_format;

	/* Constant after open. */
	unsigned cluster_bits, l2_bits, entry_bytes, nsubs, sub_bits, ref_order, block_bits;
	uint64_t cluster_size;
	bool has_ext, is_lazy;
	struct qcow2_zcache *zcache;

	/* Under @lock. */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a span ended */
	struct qcow2_header h;
	uint64_t *l1;	       /* h.l1_size entries, host order */
	uint32_t l1_lo, l1_hi; /* entries to be written */
	uint64_t *reftable;
	uint64_t nreftable;
	struct qcow2_cache cache;
	struct qcow2_set meta;
	struct qcow2_span *spans;
	uint64_t ticket;
	struct qcow2_pending *pending;
	size_t npending, pending_cap;
	size_t npending_kept; /* of these, so many outlived the last writeback: readers hold them */
	uint64_t free_hint;   /* no cluster below is free */
	uint64_t end_cluster; /* nothing from here on was ever used */
	bool is_meta_dirty;   /* a flush has entries to write */
	bool is_broken;	      /* damage was met: no more writes */
	unsigned nflushing;
	uint64_t packed_at; /* where the next compressed cluster may go, 0: nowhere */

	pthread_mutex_t flush_lock; /* one writeback at a time; taken before @lock */
	struct io_sync sync;
	_Atomic bool no_punch, no_nowait;
};

static inline struct qcow2 *qcow2_of(struct layer *l)
{
	return container_of(l, struct qcow2, layer);
}

/* Big-endian access. */
static inline uint16_t be16(const void *p)
{
	uint16_t v;
	__builtin_memcpy(&v, p, 2);
	return __builtin_bswap16(v);
}
static inline uint32_t be32(const void *p)
{
	uint32_t v;
	__builtin_memcpy(&v, p, 4);
	return __builtin_bswap32(v);
}
static inline uint64_t be64(const void *p)
{
	uint64_t v;
	__builtin_memcpy(&v, p, 8);
	return __builtin_bswap64(v);
}
static inline void put_be16(void *p, uint16_t v)
{
	v = __builtin_bswap16(v);
	__builtin_memcpy(p, &v, 2);
}
static inline void put_be32(void *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	__builtin_memcpy(p, &v, 4);
}
static inline void put_be64(void *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	__builtin_memcpy(p, &v, 8);
}

/* ---- qcow2_header.c ---- */

/** qcow2_read_header() - parse and judge the first cluster; sets h, the names and the constants. */
int qcow2_read_header(struct qcow2 *q, struct error *err);
/** qcow2_write_fields() - the fixed part again: size, tables, features.  One sector, so it happens wholly or not. */
int qcow2_write_fields(struct qcow2 *q);

/* ---- qcow2_cache.c; all under @lock ---- */

/** qcow2_table_get() - the table at @offset (checked), good until the next call but seven; loaded where needed. */
int qcow2_table_get(struct qcow2 *q, uint64_t offset, bool is_refs, struct qcow2_table **out);
/** qcow2_table_find() - only if it is in memory; else NULL. */
struct qcow2_table *qcow2_table_find(struct qcow2 *q, uint64_t offset);
/** qcow2_table_new() - a table whose content is @data (taken, a cluster) and stands in the file already. */
int qcow2_table_new(struct qcow2 *q, uint64_t offset, bool is_refs, uint8_t *data,
		    struct qcow2_table **out);
void qcow2_table_dirty(struct qcow2 *q, struct qcow2_table *t, uint32_t at, uint32_t len);
/** qcow2_table_forget() - the cluster is no table any more. */
void qcow2_table_forget(struct qcow2 *q, uint64_t offset);
int qcow2_cache_init(struct qcow2 *q);
void qcow2_cache_free(struct qcow2 *q);
/** qcow2_is_tight() - so many tables wait to be written, or so much freed room to be used again, that a writeback is due
 * before anything more is changed.  Without the latter a guest that writes and discards, and never flushes, fills the host's
 * disk. */
bool qcow2_is_tight(const struct qcow2 *q);

/* ---- qcow2_refs.c; all under @lock ---- */

uint64_t qcow2_count_get(const uint8_t *block, unsigned order, uint64_t i);
void qcow2_count_set(uint8_t *block, unsigned order, uint64_t i, uint64_t n);
/** qcow2_refs_get() - the count of a cluster; 0 where there is no block. */
int qcow2_refs_get(struct qcow2 *q, uint64_t cluster, uint64_t *out);
int qcow2_refs_add(struct qcow2 *q, uint64_t cluster, int delta);
/** qcow2_alloc() - up to @want adjacent clusters, counted once each; *@is_fresh: they read as zeroes. */
int qcow2_alloc(struct qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got, bool *is_fresh);
/** qcow2_alloc_run() - exactly @n adjacent clusters, at the end of the file if need be. */
int qcow2_alloc_run(struct qcow2 *q, uint64_t n, uint64_t *first);
/** qcow2_unalloc() - give back clusters nothing ever referred to. */
void qcow2_unalloc(struct qcow2 *q, uint64_t first, uint64_t n);
/** qcow2_unref() - a reference to @cluster is gone from memory: invariant 3. */
int qcow2_unref(struct qcow2 *q, uint64_t cluster);
/** qcow2_unref_entry() - the same for whatever an L2 entry leads to. */
int qcow2_unref_entry(struct qcow2 *q, uint64_t entry);
/** qcow2_damaged() - the image is not as it must be: mark it, say so once; returns -EIO. */
int qcow2_damaged(struct qcow2 *q, const char *what);
/** qcow2_mark_dirty() - with lazy refcounts: before the first change of a count. */
int qcow2_mark_dirty(struct qcow2 *q);
/** qcow2_load_tables() - L1 and refcount table into memory, @meta filled for a writer. */
int qcow2_load_tables(struct qcow2 *q, bool is_writer, struct error *err);

/* ---- qcow2_map.c; all under @lock ---- */

enum qcow2_kind { MAP_ABSENT, MAP_ZERO, MAP_DATA, MAP_COMPRESSED };
struct qcow2_run {
	enum qcow2_kind kind;
	uint64_t len;
	uint64_t host;	  /* MAP_DATA: where it stands; MAP_COMPRESSED: the entry */
	bool is_writable; /* in place: invariant 5 */
};
/** qcow2_lookup() - what is at guest offset @at, and for how long, at most @len.  @only_cached: -EAGAIN instead of loading. */
int qcow2_lookup(struct qcow2 *q, uint64_t at, uint64_t len, bool only_cached, struct qcow2_run *out);

struct qcow2_entry {
	uint64_t desc, bitmap; /* bitmap: extended entries; else 0 */
};
/** qcow2_l2_get() - the table for guest offset @at in *@t; NULL: there is none. */
int qcow2_l2_get(struct qcow2 *q, uint64_t at, struct qcow2_table **t);
/** qcow2_l2_own() - the same, to be changed: made, or copied if it is shared. */
int qcow2_l2_own(struct qcow2 *q, uint64_t at, struct qcow2_table **t);
struct qcow2_entry qcow2_entry_get(const struct qcow2 *q, const struct qcow2_table *t, uint64_t at);
void qcow2_entry_set(struct qcow2 *q, struct qcow2_table *t, uint64_t at, struct qcow2_entry e);
/** qcow2_packed_extent() - where a compressed cluster stands: byte offset and length. */
void qcow2_packed_extent(const struct qcow2 *q, uint64_t entry, uint64_t *offset, uint64_t *len);

/* Spans.  begin gives false when it would have to wait: then qcow2_span_wait() and look again. */
bool qcow2_span_begin(struct qcow2 *q, struct qcow2_span *s, enum qcow2_span_kind kind, uint64_t at,
		      uint64_t len);
void qcow2_span_wait(struct qcow2 *q);
void qcow2_span_end(struct qcow2 *q, struct qcow2_span *s);

/* ---- qcow2_io.c ---- */
int qcow2_read(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
int qcow2_read_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
int qcow2_write(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
int qcow2_write_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);
bool qcow2_plan(struct layer *l, enum block_op op, bool is_fua, uint64_t len, uint64_t at,
		struct layer_plan *out);
int qcow2_take_in(struct layer *l, uint64_t len, uint64_t at);
/* ---- qcow2_zero.c ---- */
enum qcow2_drop {
	DROP_TO_ZERO,	/* reads as zeroes, the cluster goes */
	DROP_KEEP,	/* reads as zeroes, the cluster stays where it can */
	DROP_DISCARD,	/* a hint: nothing is written for partial clusters */
	DROP_TO_ABSENT, /* the backing file shows */
};
int qcow2_drop(struct qcow2 *q, uint64_t len, uint64_t at, enum qcow2_drop how);
/** qcow2_drop_clusters() - under @lock, with a span over it: whole clusters [@at, +@len) of one L2 table; *@done: how far it came. */
int qcow2_drop_clusters(struct qcow2 *q, uint64_t len, uint64_t at, enum qcow2_drop how, uint64_t *done);
int qcow2_zero(struct layer *l, uint64_t len, uint64_t at, bool may_unmap);
int qcow2_discard(struct layer *l, uint64_t len, uint64_t at);
/* ---- qcow2_flush.c ---- */

/** qcow2_writeback() - bring entries to the storage in order (invariant 2).  @refs_too: also counts that lazy refcounts leave for later. */
int qcow2_writeback(struct qcow2 *q, bool refs_too);
/** qcow2_ease() - a writeback where one is due (qcow2_is_tight()).  Under @lock, which it lets go for that time. */
int qcow2_ease(struct qcow2 *q);
int qcow2_flush(struct layer *l);
int qcow2_flush_now(struct layer *l);
/** qcow2_finish() - everything written, the dirty mark taken off. */
int qcow2_finish(struct qcow2 *q);

/* ---- qcow2_pack.c ---- */
int qcow2_zcache_create(struct qcow2 *q);
void qcow2_zcache_free(struct qcow2_zcache *z);
/** qcow2_unpack() - bytes [@skip, +@len) of the compressed cluster @entry. */
int qcow2_unpack(struct qcow2 *q, uint64_t entry, struct io_vec v, uint64_t skip, uint64_t len);

/* ---- qcow2_check.c ---- */
int qcow2_check_open(struct qcow2 *q, bool repair, struct image_check *out,
		     const struct image_progress *p, struct error *err);

#endif
