/* SPDX-License-Identifier: Apache-2.0 */
/* L2 tables and refcount blocks in memory, and sets of clusters. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "block/qcow2_int.h"

#define CACHE_BYTES   (16 * MIB)
#define PENDING_BYTES (64 * MIB) /* freed, and not yet to be used again */
#define PENDING_MIN   64u
#define CACHE_MIN     16u
#define CACHE_KEEP    8u /* the last so many stay, whatever comes */

static unsigned bucket_of(const struct qcow2 *q, uint64_t offset)
{
	return (unsigned)((offset >> q->cluster_bits) * 0x9e3779b97f4a7c15ULL >> 40) % q->cache.nbuckets;
}

static bool is_dirty(const struct qcow2_table *t)
{
	return t->dirty_lo < t->dirty_hi;
}

int qcow2_cache_init(struct qcow2 *q)
{
	struct qcow2_cache *c = &q->cache;

	c->capacity = MAX((unsigned)(CACHE_BYTES >> q->cluster_bits), CACHE_MIN);
	c->nbuckets = c->capacity;
	c->buckets = calloc(c->nbuckets, sizeof(struct qcow2_table *));
	return c->buckets ? 0 : -ENOMEM;
}

static void table_free(struct qcow2_table *t)
{
	free(t->data);
	free(t);
}

void qcow2_cache_free(struct qcow2 *q)
{
	for (unsigned i = 0; q->cache.buckets && i < q->cache.nbuckets; i++) {
		while (q->cache.buckets[i]) {
			struct qcow2_table *t = q->cache.buckets[i];
			q->cache.buckets[i] = t->next;
			table_free(t);
		}
	}
	free(q->cache.buckets);
	q->cache = (struct qcow2_cache){ 0 };
}

bool qcow2_is_tight(const struct qcow2 *q)
{
	size_t most = MAX((size_t)(PENDING_BYTES >> q->cluster_bits), (size_t)PENDING_MIN);

	return q->cache.ndirty > q->cache.capacity / 2 || q->npending > q->npending_kept + most;
}

struct qcow2_table *qcow2_table_find(struct qcow2 *q, uint64_t offset)
{
	struct qcow2_table *t = q->cache.buckets[bucket_of(q, offset)];

	while (t && t->offset != offset)
		t = t->next;
	if (t)
		t->used = ++q->cache.clock;
	return t;
}

static void unlink_table(struct qcow2 *q, struct qcow2_table *t)
{
	struct qcow2_table **p = &q->cache.buckets[bucket_of(q, t->offset)];

	while (*p != t)
		p = &(*p)->next;
	*p = t->next;
	q->cache.n--;
	if (is_dirty(t))
		q->cache.ndirty--;
}

/* The table unused for longest of those in some buckets: near enough to the oldest, without a list to keep. */
static void make_room(struct qcow2 *q)
{
	struct qcow2_cache *c = &q->cache;
	struct qcow2_table *victim = NULL;
	unsigned seen = 0, start = (unsigned)(c->clock * 0x9e3779b9u) % c->nbuckets;

	for (unsigned i = 0; i < c->nbuckets && seen < 64; i++)
		for (struct qcow2_table *t = c->buckets[(start + i) % c->nbuckets]; t; t = t->next) {
			seen++;
			if (!is_dirty(t) && !t->nwriting && c->clock - t->used > CACHE_KEEP &&
			    (!victim || t->used < victim->used))
				victim = t;
		}
	if (!victim)
		return; /* all are dirty or in use: more than planned for a moment, see qcow2_is_tight() */
	unlink_table(q, victim);
	table_free(victim);
}

int qcow2_table_new(struct qcow2 *q, uint64_t offset, bool is_refs, uint8_t *data,
		    struct qcow2_table **out)
{
	struct qcow2_table *t = calloc(1, sizeof(*t));

	if (!t) {
		free(data);
		return -ENOMEM;
	}
	while (q->cache.n >= q->cache.capacity) {
		unsigned before = q->cache.n;
		make_room(q);
		if (q->cache.n == before)
			break;
	}
	t->offset = offset;
	t->is_refs = is_refs;
	t->data = data;
	t->used = ++q->cache.clock;
	t->dirty_lo = UINT32_MAX;
	unsigned b = bucket_of(q, offset);
	t->next = q->cache.buckets[b];
	q->cache.buckets[b] = t;
	q->cache.n++;
	*out = t;
	return 0;
}

int qcow2_table_get(struct qcow2 *q, uint64_t offset, bool is_refs, struct qcow2_table **out)
{
	struct qcow2_table *t = qcow2_table_find(q, offset);

	if (t) {
		if (t->is_refs != is_refs)
			return qcow2_damaged(q, "a table is used for two things");
		*out = t;
		return 0;
	}
	if (!offset || offset % q->cluster_size || offset >> q->cluster_bits >= q->end_cluster)
		return qcow2_damaged(q, "a table lies outside of the file");
	uint8_t *data = malloc(q->cluster_size);
	if (!data)
		return -ENOMEM;
	int r = io_pread(q->meta_fd, data, q->cluster_size, offset);
	if (r < 0) {
		free(data);
		return r;
	}
	return qcow2_table_new(q, offset, is_refs, data, out);
}

void qcow2_table_dirty(struct qcow2 *q, struct qcow2_table *t, uint32_t at, uint32_t len)
{
	if (!is_dirty(t))
		q->cache.ndirty++;
	t->dirty_lo = MIN(t->dirty_lo, ALIGN_DOWN(at, 512u));
	t->dirty_hi = MAX(t->dirty_hi, ALIGN_UP(at + len, 512u));
}

void qcow2_table_forget(struct qcow2 *q, uint64_t offset)
{
	struct qcow2_table *t = qcow2_table_find(q, offset);

	if (!t)
		return;
	/* Only a writeback forgets tables, and there is one at a time, done with its copies. */
	assert(!t->nwriting);
	unlink_table(q, t);
	table_free(t);
}

/* ---- sets ---- */

static size_t slot_of(const struct qcow2_set *s, uint64_t cluster)
{
	size_t i = (size_t)((cluster + 1) * 0x9e3779b97f4a7c15ULL >> 20) & (s->cap - 1);

	while (s->slots[i] && s->slots[i] != cluster + 1)
		i = (i + 1) & (s->cap - 1);
	return i;
}

bool qcow2_set_has(const struct qcow2_set *s, uint64_t cluster)
{
	return s->cap && s->slots[slot_of(s, cluster)];
}

static int grow(struct qcow2_set *s)
{
	struct qcow2_set bigger = { .cap = s->cap ? 2 * s->cap : 64 };

	bigger.slots = calloc(bigger.cap, sizeof(uint64_t));
	if (!bigger.slots)
		return -ENOMEM;
	for (size_t i = 0; i < s->cap; i++)
		if (s->slots[i])
			bigger.slots[slot_of(&bigger, s->slots[i] - 1)] = s->slots[i];
	bigger.n = s->n;
	free(s->slots);
	*s = bigger;
	return 0;
}

int qcow2_set_add(struct qcow2_set *s, uint64_t cluster)
{
	if (2 * s->n >= s->cap) {
		int r = grow(s);
		if (r < 0)
			return r;
	}
	size_t i = slot_of(s, cluster);
	if (s->slots[i])
		return 1;
	s->slots[i] = cluster + 1;
	s->n++;
	return 0;
}

void qcow2_set_remove(struct qcow2_set *s, uint64_t cluster)
{
	if (!qcow2_set_has(s, cluster))
		return;
	size_t hole = slot_of(s, cluster);
	s->slots[hole] = 0;
	s->n--;
	/* Whatever stands behind the hole finds its place anew. */
	for (size_t i = (hole + 1) & (s->cap - 1); s->slots[i]; i = (i + 1) & (s->cap - 1)) {
		uint64_t v = s->slots[i];
		s->slots[i] = 0;
		s->slots[slot_of(s, v - 1)] = v;
	}
}

void qcow2_set_free(struct qcow2_set *s)
{
	free(s->slots);
	*s = (struct qcow2_set){ 0 };
}
