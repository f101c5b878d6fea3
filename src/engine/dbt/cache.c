/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of translated code and of the blocks' records: segments, and how many of them there may be.
 *
 * Segments are filled one after the other.  When there are as many as the limit allows, one is emptied and filled again, by
 * whoever needs room, with the world stopped: the one whose blocks were least looked for of late, by vCPUs that did not
 * know where to go on.  A jump that is linked does not look, but each address space, and each entry of a table that was
 * overwritten, does again, so that what is in use is looked for now and then.
 *
 * What has been dropped is remembered for a while, by a hash of its name: if many of a segment's blocks are translated
 * again, the limit was too low for what the guest does, and there are some segments more from then on; if next to none are,
 * one less.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine/dbt/xlate.h"

/*
 * Segments that every guest may fill, of one vCPU; fewer by what every further one has for tables of its own, so that what is resident
 * after a boot is bounded whatever the number of vCPUs.
 */
#define LIMIT_MIN     50u
#define LIMIT_PER_CPU 2u
#define LIMIT_LEAST   32u
/* With ENGINE_CODE_ROOM off, for tests: so small that blocks are dropped all the time. */
#define TINY_LIMIT	   2u
#define TINY_SEGMENT_BYTES (32 * KIB)
/*
 * GROW_BY more if one of so many blocks had been dropped before; one less if not even one of so many had.  Each segment before the last
 * counts half of the one after it: a single one that should not have been dropped is no reason.
 */
#define GROW_FROM   2u
#define GROW_BY	    2u
#define SHRINK_FROM 64u
/* Least room a translation may start with. */
#define CODE_BLOCK_MAX (64 * KIB)
#define META_BLOCK_MAX (32 * KIB)

/* ---- where things are --------------------------------------------------------------------- */

static struct xlate_segment *now(struct xlate_vm *x)
{
	return &x->cc.seg[x->cc.now];
}

uint32_t *xlate_cache_name(const struct xlate_vm *x, unsigned s, unsigned i)
{
	return (uint32_t *)(void *)(x->cc.meta + (s + 1) * XLATE_META_BYTES) - 1 - i;
}

struct xlate_block *xlate_cache_block(const struct xlate_vm *x, unsigned s, unsigned i)
{
	return xlate_block_at(x, *xlate_cache_name(x, s, i));
}

struct xlate_block *xlate_cache_find(struct xlate_vm *x, const uint8_t *pc)
{
	size_t at = (size_t)(pc - x->cc.rx);
	unsigned s = (unsigned)((at - XLATE_STUB_BYTES) / XLATE_HOT_BYTES);

	if (at < XLATE_STUB_BYTES || s >= XLATE_SEGMENTS)
		return NULL;
	unsigned lo = 0, hi = atomic_load_explicit(&x->cc.seg[s].n, memory_order_acquire);

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (xlate_cache_block(x, s, mid)->code <= at)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo)
		return NULL;
	struct xlate_block *b = xlate_cache_block(x, s, lo - 1);

	return at < b->code + b->code_len ? b : NULL;
}

uint64_t xlate_cache_bytes(const struct xlate_vm *x)
{
	uint64_t sum = x->cc.used;

	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		sum += x->cc.seg[s].hot + x->cc.seg[s].cold;
	return sum;
}

uint64_t xlate_cache_meta_bytes(const struct xlate_vm *x)
{
	uint64_t sum = 0;

	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		sum += x->cc.seg[s].meta + 4 * (uint64_t)x->cc.seg[s].n;
	return sum;
}

/* ---- life cycle --------------------------------------------------------------------------- */

static void begin(struct xlate_vm *x, unsigned s)
{
	struct code_cache *cc = &x->cc;

	/* No record has the reference 0. */
	cc->seg[s] = (struct xlate_segment){ .meta = 8, .born = ++cc->births };
	atomic_store_explicit(&cc->used_of[s], 0, memory_order_relaxed);
	cc->now = s;
	cc->nsegs++;
	cc->fresh /= 2;
	cc->again /= 2;
}

/* One that is neither in use nor reserved, or XLATE_SEGMENTS. */
static unsigned find_free(const struct code_cache *cc)
{
	unsigned s = 0;

	while (s < XLATE_SEGMENTS && (cc->seg[s].born || cc->is_reserved[s]))
		s++;
	return s;
}

/* ---- for kept code ------------------------------------------------------------------------ */

/* The only segment in use, @s, with nothing in it: another one is begun in its place. */
static bool move_away(struct xlate_vm *x, unsigned s)
{
	struct code_cache *cc = &x->cc;
	const struct xlate_segment *g = &cc->seg[s];
	unsigned other = find_free(cc);

	if (s != cc->now || cc->nsegs - cc->nreserved != 1 || g->n || g->hot || g->cold ||
	    g->meta != 8 || other == XLATE_SEGMENTS)
		return false;
	cc->seg[s] = (struct xlate_segment){ 0 };
	cc->nsegs--;
	begin(x, other);
	return true;
}

bool xlate_cache_reserve(struct xlate_vm *x, unsigned s)
{
	struct code_cache *cc = &x->cc;

	if (cc->is_reserved[s])
		return true;
	if (cc->seg[s].born && !move_away(x, s))
		return false;
	cc->is_reserved[s] = true;
	cc->nreserved++;
	cc->nsegs++;
	cc->limit = MAX(cc->limit, cc->nsegs);
	return true;
}

bool xlate_cache_release(struct xlate_vm *x, unsigned s)
{
	struct code_cache *cc = &x->cc;

	if (!cc->is_reserved[s])
		return false;
	cc->is_reserved[s] = false;
	cc->nreserved--;
	cc->nsegs--;
	return true;
}

void xlate_cache_adopt(struct xlate_vm *x, unsigned s, const struct xlate_segment *contents)
{
	struct code_cache *cc = &x->cc;
	struct xlate_segment *g = &cc->seg[s];

	assert(cc->is_reserved[s] && !g->born);
	cc->is_reserved[s] = false;
	cc->nreserved--;
	g->hot = contents->hot;
	g->cold = contents->cold;
	g->meta = contents->meta;
	g->born = ++cc->births;
	atomic_store_explicit(&cc->used_of[s], 0, memory_order_relaxed);
	atomic_store_explicit(&g->n, contents->n, memory_order_release);
}

static int map(struct code_cache *cc, struct error *err)
{
	int fd = memfd_create("viv-code", MFD_CLOEXEC);

	if (fd < 0)
		return error_set(err, -errno, "cannot create the code cache (memfd_create: %m)");
	cc->size = xlate_cold_at(XLATE_SEGMENTS);
	if (ftruncate(fd, (off_t)cc->size) < 0) {
		int rc = error_set(err, -errno, "cannot size the code cache: %m");

		close(fd);
		return rc;
	}
	cc->rw = mmap(NULL, cc->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cc->rx = mmap(NULL, cc->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	close(fd);
	cc->meta = mmap(NULL, XLATE_SEGMENTS * XLATE_META_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (cc->rw == MAP_FAILED || cc->rx == MAP_FAILED || cc->meta == MAP_FAILED)
		return error_set(err, -ENOMEM, "cannot map the code cache of %zu MiB: %m",
				 cc->size >> 20);
	return 0;
}

int xlate_cache_create(struct dbt_vm *vm, struct error *err)
{
	struct xlate_vm *x = vm->xlate;
	struct code_cache *cc = &x->cc;
	bool is_tiny = vm->cfg.without & ENGINE_CODE_ROOM;
	unsigned fewer = MIN(LIMIT_PER_CPU * (vm->ncpus - 1), LIMIT_MIN - LIMIT_LEAST);

	cc->rw = cc->rx = cc->meta = MAP_FAILED;
	int rc = map(cc, err);

	if (rc)
		return rc;
	cc->dropped = calloc(1u << XLATE_DROPPED_BITS, sizeof(*cc->dropped));
	if (!cc->dropped)
		return error_set(err, -ENOMEM, "no memory for what is remembered of translated blocks");
	cc->limit = cc->limit_min = is_tiny ? TINY_LIMIT : LIMIT_MIN - fewer;
	cc->limit_max = is_tiny ? TINY_LIMIT : XLATE_SEGMENTS;
	cc->segment_bytes = is_tiny ? TINY_SEGMENT_BYTES : XLATE_SEGMENT_BYTES;
	begin(x, 0);
	return 0;
}

void xlate_cache_destroy(struct xlate_vm *x)
{
	struct code_cache *cc = &x->cc;

	if (cc->rw && cc->rw != MAP_FAILED)
		munmap(cc->rw, cc->size);
	if (cc->rx && cc->rx != MAP_FAILED)
		munmap(cc->rx, cc->size);
	if (cc->meta && cc->meta != MAP_FAILED)
		munmap(cc->meta, XLATE_SEGMENTS * XLATE_META_BYTES);
	free(cc->dropped);
	cc->dropped = NULL;
}

/* ---- filling ------------------------------------------------------------------------------ */

static uint32_t meta_used(const struct xlate_segment *g)
{
	return g->meta + 4 * g->n;
}

void *xlate_alloc(struct xlate_vm *x, size_t bytes)
{
	struct xlate_segment *g = now(x);

	bytes = ALIGN_UP(bytes, 8);
	if (meta_used(g) + bytes + 4 > XLATE_META_BYTES)
		return NULL;
	void *p = x->cc.meta + x->cc.now * XLATE_META_BYTES + g->meta;

	g->meta += (uint32_t)bytes;
	return p;
}

uint8_t *xlate_hot(struct xlate_vm *x, uint8_t **end)
{
	struct xlate_segment *g = now(x);

	g->hot = ALIGN_UP(g->hot, 8u);
	*end = x->cc.rw + xlate_hot_at(x->cc.now + 1);
	return x->cc.rw + xlate_hot_at(x->cc.now) + g->hot;
}

uint8_t *xlate_cold(struct xlate_vm *x, uint8_t **end)
{
	*end = x->cc.rw + xlate_cold_at(x->cc.now + 1);
	return x->cc.rw + xlate_cold_at(x->cc.now) + now(x)->cold;
}

/* Where a dropped block is remembered, and by what. */
static uint16_t *memory_of(struct xlate_vm *x, const struct xlate_block *b, uint16_t *sign)
{
	uint64_t hash = xlate_hash(b->tag);

	*sign = (uint16_t)(hash >> (48 - XLATE_DROPPED_BITS)) | 1;
	return &x->cc.dropped[hash >> (64 - XLATE_DROPPED_BITS)];
}

void xlate_cache_take(struct xlate_vm *x, struct xlate_block *b, size_t hot, size_t cold)
{
	struct xlate_segment *g = now(x);
	uint16_t sign, *memory = memory_of(x, b, &sign);

	g->hot += (uint32_t)hot;
	g->cold += (uint32_t)cold;
	*xlate_cache_name(x, x->cc.now, g->n) = xlate_ref(x, b);
	atomic_store_explicit(&g->n, g->n + 1, memory_order_release);
	x->cc.fresh++;
	if (*memory == sign) {
		*memory = 0;
		x->cc.again++;
		x->translated_again++;
	}
}

static bool is_full(const struct xlate_vm *x)
{
	const struct xlate_segment *g = &x->cc.seg[x->cc.now];

	return g->hot + g->cold + meta_used(g) >= x->cc.segment_bytes ||
	       g->hot + CODE_BLOCK_MAX > XLATE_HOT_BYTES ||
	       g->cold + CODE_BLOCK_MAX > XLATE_COLD_BYTES ||
	       meta_used(g) + META_BLOCK_MAX > XLATE_META_BYTES;
}

bool xlate_cache_has_room(const struct xlate_vm *x)
{
	return !is_full(x) && xlate_table_has_room(x, 1);
}

/* ---- dropping ----------------------------------------------------------------------------- */

/* The segment to empty: the least looked for, of those the oldest; the one just filled only if there is no other. */
static unsigned least_used(const struct code_cache *cc)
{
	unsigned found = cc->now;
	uint64_t least = UINT64_MAX;

	for (unsigned s = 0; s < XLATE_SEGMENTS; s++) {
		const struct xlate_segment *g = &cc->seg[s];
		uint64_t use = (uint64_t)atomic_load_explicit(&cc->used_of[s], memory_order_relaxed)
				       << 32 |
			       g->born;

		if (g->born && s != cc->now && use < least) {
			least = use;
			found = s;
		}
	}
	return found;
}

/* What was looked for long ago counts less and less. */
static void forget_use(struct code_cache *cc)
{
	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		atomic_store_explicit(&cc->used_of[s],
				      atomic_load_explicit(&cc->used_of[s], memory_order_relaxed) / 2,
				      memory_order_relaxed);
}

void xlate_cache_give_back(struct xlate_vm *x, unsigned s)
{
	(void)madvise(x->cc.rw + xlate_hot_at(s), XLATE_HOT_BYTES, MADV_REMOVE);
	(void)madvise(x->cc.rw + xlate_cold_at(s), XLATE_COLD_BYTES, MADV_REMOVE);
	(void)madvise(x->cc.meta + s * XLATE_META_BYTES, XLATE_META_BYTES, MADV_DONTNEED);
}

static void empty(struct dbt_vm *vm, unsigned s)
{
	struct xlate_vm *x = vm->xlate;
	struct xlate_segment *g = &x->cc.seg[s];

	for (unsigned i = 0; i < g->n; i++) {
		const struct xlate_block *b = xlate_cache_block(x, s, i);
		uint16_t sign, *memory = memory_of(x, b, &sign);

		if (b->is_dead)
			continue;
		*memory = sign;
		x->evicted++;
	}
	xlate_blocks_drop(vm, s);
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i]) {
			xlate_jc_forget(vm->cpus[i], x->cc.rx + xlate_hot_at(s),
					x->cc.rx + xlate_hot_at(s + 1));
			xlate_jc_forget(vm->cpus[i], x->cc.rx + xlate_cold_at(s),
					x->cc.rx + xlate_cold_at(s + 1));
		}
	*g = (struct xlate_segment){ 0 };
	x->cc.nsegs--;
	x->evictions++;
	x->generation++;
}

static void adapt(struct code_cache *cc)
{
	if (cc->again * GROW_FROM >= cc->fresh && cc->limit < cc->limit_max)
		cc->limit = MIN(cc->limit + GROW_BY, cc->limit_max);
	else if (cc->again * SHRINK_FROM < cc->fresh && cc->limit > MAX(cc->limit_min, cc->nreserved + 1))
		cc->limit--;
}

static void next_segment(struct dbt_vm *vm)
{
	struct xlate_vm *x = vm->xlate;
	struct code_cache *cc = &x->cc;
	unsigned s = XLATE_SEGMENTS;

	adapt(cc);
	forget_use(cc);
	while (cc->nsegs >= cc->limit) {
		if (s < XLATE_SEGMENTS)
			xlate_cache_give_back(x, s);
		s = least_used(cc);
		empty(vm, s);
	}
	begin(x, s < XLATE_SEGMENTS ? s : find_free(cc));
}

void xlate_cache_make_room(struct dbt_cpu *cpu)
{
	struct xlate_vm *x = cpu->vm->xlate;

	dbt_exclusive_begin(cpu);
	pthread_mutex_lock(&cpu->vm->lock);
	if (!xlate_table_has_room(x, 1))
		xlate_table_rebuild(x);
	if (!xlate_cache_has_room(x)) /* another vCPU may have been here before */
		next_segment(cpu->vm);
	pthread_mutex_unlock(&cpu->vm->lock);
	dbt_exclusive_end(cpu);
}

void xlate_flush(struct dbt_vm *vm)
{
	struct xlate_vm *x = vm->xlate;

	pthread_mutex_lock(&vm->lock);
	xlate_blocks_clear(vm);
	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		if (x->cc.seg[s].born) {
			x->cc.seg[s] = (struct xlate_segment){ 0 };
			xlate_cache_give_back(x, s);
		}
	x->cc.nsegs = x->cc.nreserved;
	begin(x, find_free(&x->cc));
	x->flushes++;
	x->generation++;
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i])
			xlate_jc_forget(vm->cpus[i], x->cc.rx, x->cc.rx + x->cc.size);
	pthread_mutex_unlock(&vm->lock);
}
