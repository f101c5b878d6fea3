/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translated code for another process of the same program, which has the same bytes in the same pages of RAM: the parts of
 * the segments, as they are.
 *
 * Code is relative to the code cache, whose stubs are in the same places in each process of a build, and names records by their
 * offsets; so a segment goes where it was.  Left out are blocks that were dropped, or whose pages have changed. What has
 * an address in it is made again: the description of a decoded instruction.  Links are undone in the copy; which block
 * each led to is kept, and it is linked again if that block is one that it may lead to.  Tables and lists are built anew.
 *
 *   struct keep_head, parts of each segment
 *   parts = u32 record of each block, in order; u32 start of each block's cold part in that of the segment; code; cold code; records,
 *   each 8-byte aligned
 *
 * Invariants
 *  1. What is loaded was made by the same program (struct keep_ident: build, techniques, CPU model, stubs).  Whoever hands the bytes over
 *     knows that nobody else has written them: code is not read for what it does, but in strict mode, where the verifier does.
 *  2. All else in them is checked before anything is taken over: a damaged one is refused, and nothing has changed.
 *  3. A block is loaded only before any vCPU has run, into pages that no vCPU can write without notice.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/build_id.h"
#include "base/bytes.h"
#include "engine/dbt/mmu.h"
#include "engine/dbt/xlate.h"

#define SEGMENTS_MAX                                                                               \
	48u /* of a guest's first seconds; with more of them it would take longer than translating again */
#define SLACK (2 * MIB) /* what may be translated between measuring and stopping */

/* Compared byte by byte. */
struct keep_ident {
	uint8_t build[BUILD_ID_BYTES];
	uint8_t has_bmi2, has_far_links, has_returns, is_counting, has_segments, has_dead_flags,
		is_strict, is_compared, is_amd;
	uint32_t without, npages, vcpus, cpu_bytes, stubs_end;
	uint32_t stubs[19 + 2 * DBT_TLB_MODES * 4];
	uint64_t xcr0_mask;
	char vendor[16];
	uint8_t has[CPUF_COUNT];
};

struct keep_segment {
	uint32_t index, n, hot, cold, meta, zero;
};

struct keep_head {
	struct keep_ident ident;
	uint32_t nsegments, nblocks;
	struct keep_segment segments[SEGMENTS_MAX]; /* those that there are not: zero */
};
_Static_assert(sizeof(struct keep_head) % 8 == 0, "parts are aligned");

/* The parts of a segment within the bytes. */
struct parts {
	struct keep_segment s;
	uint32_t *names, *colds;
	uint8_t *hot, *cold, *meta;
};

static bool make_ident(const struct dbt_vm *vm, struct keep_ident *id)
{
	const struct xlate_vm *x = vm->xlate;
	const uint8_t *const stubs[] = { (const uint8_t *)(uintptr_t)x->enter,
					 x->ret_miss,
					 x->ret_again,
					 x->ret_dead,
					 x->exit_lookup,
					 x->exit_branch,
					 x->exit_far,
					 x->exit_link,
					 x->exit_interp,
					 x->exit_call,
					 x->exit_poll,
					 x->miss,
					 x->miss_group,
					 x->fault_exit,
					 x->exit_syscall,
					 x->exit_sysret };
	unsigned n = 0;

	memset(id, 0, sizeof(*id));
	id->has_bmi2 = x->has_bmi2;
	id->has_far_links = x->has_far_links;
	id->has_returns = x->has_returns;
	id->is_counting = x->is_counting;
	id->has_segments = x->has_segments;
	id->has_dead_flags = x->has_dead_flags;
	id->is_strict = vm->cfg.is_strict;
	id->is_compared = vm->cfg.check_every != 0;
	id->is_amd = vm->model.is_amd;
	id->without = vm->cfg.without;
	id->npages = (uint32_t)(vm->ram->size_bytes >> GUEST_PAGE_SHIFT);
	id->vcpus = vm->ncpus;
	id->cpu_bytes = sizeof(struct dbt_cpu);
	id->stubs_end = (uint32_t)x->cc.stubs_end;
	for (unsigned i = 0; i < ARRAY_SIZE(stubs); i++)
		id->stubs[n++] = stubs[i] ? (uint32_t)(stubs[i] - x->cc.rx) : 0;
	for (unsigned i = 0; i < 2 * DBT_TLB_MODES * 4; i++) {
		const uint8_t *stub = (&x->string[0][0][0])[i];

		id->stubs[n++] = stub ? (uint32_t)(stub - x->cc.rx) : 0;
	}
	id->xcr0_mask = vm->model.xcr0_mask;
	memcpy(id->vendor, vm->model.vendor, sizeof(vm->model.vendor));
	for (unsigned i = 0; i < CPUF_COUNT; i++)
		id->has[i] = vm->model.has[i];
	return build_id(id->build);
}

size_t xlate_code_ident(void)
{
	return sizeof(struct keep_ident);
}

/* Where the parts begin. */
#define HEAD_BYTES sizeof(struct keep_head)

/* Sets the pointers, for parts that begin at @p; returns where they end. */
static uint8_t *lay_out(struct parts *p, uint8_t *at)
{
	p->names = (uint32_t *)(void *)at;
	p->colds = p->names + p->s.n;
	p->hot = at + 8 * (size_t)p->s.n;
	p->cold = p->hot + ALIGN_UP(p->s.hot, 8u);
	p->meta = p->cold + ALIGN_UP(p->s.cold, 8u);
	return p->meta + ALIGN_UP(p->s.meta, 8u);
}

/* The copy of the record @ref of the segment. */
static struct xlate_block *block_in(const struct parts *p, uint32_t ref)
{
	return (struct xlate_block *)(void *)(p->meta + ref % (uint32_t)XLATE_META_BYTES);
}

/* The copy of the code at offset @at of the code cache. */
static uint8_t *code_in(const struct parts *p, uint32_t at)
{
	return at < xlate_cold_at(0) ? p->hot + (at - xlate_hot_at(p->s.index))
				     : p->cold + (at - xlate_cold_at(p->s.index));
}

static struct insn *decoded_of(struct xlate_block *b, const uint8_t *map_end)
{
	uint8_t *record = (uint8_t *)b;

	return (struct insn *)(void *)(record + ALIGN_UP((size_t)(map_end - record), 8));
}

/* The end of the block's map; NULL: it goes on behind @end. */
static const uint8_t *map_end(struct xlate_block *b, const uint8_t *end)
{
	const uint8_t *p = xlate_block_map(b);

	for (unsigned n = 2 * b->nmap; n; p++) {
		if (p >= end)
			return NULL;
		n -= !(*p & 0x80);
	}
	return p;
}

/* ---- saving ------------------------------------------------------------------------------- */

static bool is_clean(const struct dbt_vm *vm, const uint64_t *dirty, uint64_t page)
{
	uint8_t flags = atomic_load_explicit(&vm->ram->page_flags[page], memory_order_relaxed);

	return flags & RAM_PAGE_TRACK && !(dirty && dirty[page / 64] >> page % 64 & 1);
}

static bool is_worth(const struct dbt_vm *vm, const uint64_t *dirty, struct xlate_block *b)
{
	const struct xlate_crossing *c = xlate_block_crossing(b);

	if (b->is_dead || !is_clean(vm, dirty, xlate_block_phys(b) >> GUEST_PAGE_SHIFT))
		return false;
	/* What could not be fetched may be there, another time. */
	return !c || (c->page2 != XLATE_NO_RAM_PAGE && is_clean(vm, dirty, c->page2));
}

/* The segments to be kept: those in use, in the order of their number. */
static unsigned choose(const struct xlate_vm *x, unsigned chosen[SEGMENTS_MAX], size_t *bytes)
{
	unsigned n = 0;

	*bytes = 0;
	for (unsigned s = 0; s < XLATE_SEGMENTS && n < SEGMENTS_MAX; s++) {
		const struct xlate_segment *g = &x->cc.seg[s];

		if (!g->born || !g->n)
			continue;
		chosen[n++] = s;
		*bytes += 8 * (size_t)g->n + ALIGN_UP(g->hot, 8u) + ALIGN_UP(g->cold, 8u) +
			  ALIGN_UP(g->meta, 8u);
	}
	*bytes += HEAD_BYTES;
	return n;
}

/* With the world stopped: the segment's bytes, and which of its blocks are kept; others get is_dead in the copy. */
static uint8_t *copy_segment(struct dbt_vm *vm, const uint64_t *dirty, unsigned s, struct parts *p,
			     uint8_t *at)
{
	const struct xlate_vm *x = vm->xlate;
	const struct xlate_segment *g = &x->cc.seg[s];
	uint32_t cold = 0, n = 0;

	p->s = (struct keep_segment){ .index = s, .hot = g->hot, .cold = g->cold, .meta = g->meta };
	for (unsigned i = 0; i < g->n; i++)
		p->s.n += is_worth(vm, dirty, xlate_cache_block(x, s, i));
	uint8_t *end = lay_out(p, at);

	memcpy(p->hot, x->cc.rw + xlate_hot_at(s), g->hot);
	memcpy(p->cold, x->cc.rw + xlate_cold_at(s), g->cold);
	memcpy(p->meta, x->cc.meta + s * XLATE_META_BYTES, g->meta);
	for (unsigned i = 0; i < g->n; i++) {
		uint32_t ref = *xlate_cache_name(x, s, i);
		struct xlate_block *b = xlate_block_at(x, ref);

		if (is_worth(vm, dirty, b)) {
			p->names[n] = ref;
			p->colds[n++] = cold;
		} else {
			block_in(p, ref)->is_dead = true;
		}
		cold += b->cold_len;
	}
	return end;
}

static void put_rel(uint8_t *at, int32_t v)
{
	memcpy(at, &v, 4);
}

/* In the copy: no link is patched; those that led to a block that is kept still say so. */
static void clean_block(const struct parts *const of[XLATE_SEGMENTS], const struct parts *p,
			struct xlate_block *b)
{
	struct xlate_crossing *c = xlate_block_crossing(b);

	b->in = b->page_next = 0;
	if (c)
		c->page2_next = 0;
	for (unsigned i = 0; i < b->nlinks; i++) {
		struct xlate_link *l = &b->links[i];
		const struct parts *to = l->to ? of[xlate_segment_of(l->to)] : NULL;

		l->next_in = 0;
		if (!l->to)
			continue;
		put_rel(code_in(p, l->site), l->stub);
		if (l->far)
			put_rel(code_in(p, l->site - ((uint32_t)xlate_link_far(l)->delta & 0xfff)),
				(int32_t)XLATE_NO_RAM_PAGE);
		if (!to || block_in(to, l->to)->is_dead)
			l->to = 0;
	}
	struct insn *in = decoded_of(b, map_end(b, p->meta + p->s.meta));

	for (unsigned i = 0; i < b->ndecoded; i++)
		in[i].desc = NULL;
}

static void clean(struct parts *all, unsigned n)
{
	const struct parts *of[XLATE_SEGMENTS] = { NULL };

	for (unsigned i = 0; i < n; i++)
		of[all[i].s.index] = &all[i];
	for (unsigned i = 0; i < n; i++)
		for (unsigned k = 0; k < all[i].s.n; k++)
			clean_block(of, &all[i], block_in(&all[i], all[i].names[k]));
}

static unsigned translations(const struct dbt_vm *vm)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < vm->ncpus; i++)
		n += vm->cpus[i] ? vm->cpus[i]->xlate->translations : 0;
	return (unsigned)MIN(n, (uint64_t)UINT32_MAX);
}

int xlate_code_save(struct dbt_vm *vm, const uint64_t *dirty, struct bytes *out, struct error *err)
{
	struct xlate_vm *x = vm->xlate;
	unsigned chosen[SEGMENTS_MAX], n;
	struct parts all[SEGMENTS_MAX];
	struct keep_head head;
	size_t need, room = 0;
	uint8_t *data = NULL;

	if (!vm->is_dirty_logging)
		return error_set(err, -EINVAL, "which pages have changed is not known");
	/* Not worth the while for the few that a start does otherwise than the one before. */
	if (translations(vm) <= x->loaded / 8)
		return error_set(err, -EALREADY,
				 "next to nothing was translated that was not kept before");
	memset(&head, 0, sizeof(head));
	if (!make_ident(vm, &head.ident))
		return error_set(err, -ENOTSUP, "this program does not know which build it is");
	for (;;) {
		dbt_exclusive_begin_foreign(vm);
		pthread_mutex_lock(&vm->lock);
		n = choose(x, chosen, &need);
		if (need <= room)
			break;
		pthread_mutex_unlock(&vm->lock);
		dbt_exclusive_end_foreign(vm);
		/* Touched before: the guest does not wait for the host's memory. */
		free(data);
		room = need + SLACK;
		data = malloc(room);
		if (!data)
			return error_set(err, -ENOMEM, "no memory for %zu MiB of translated code",
					 room >> 20);
		memset(data, 0, room);
	}
	unsigned nchosen = n;
	uint8_t *at = data + HEAD_BYTES, *end;

	n = 0;
	for (unsigned i = 0; i < nchosen; i++) {
		end = copy_segment(vm, dirty, chosen[i], &all[n], at);
		if (all[n].s.n) { /* else there is nothing of worth in it */
			at = end;
			n++;
		}
	}
	pthread_mutex_unlock(&vm->lock);
	dbt_exclusive_end_foreign(vm);

	clean(all, n);
	head.nsegments = n;
	for (unsigned i = 0; i < n; i++) {
		head.nblocks += all[i].s.n;
		head.segments[i] = all[i].s;
	}
	memcpy(data, &head, sizeof(head));
	free(out->data);
	*out = (struct bytes){ .data = data, .len = (size_t)(at - data), .cap = room };
	return 0;
}

/* ---- loading: what can be wrong ----------------------------------------------------------- */

static bool is_within(uint32_t at, uint32_t len, uint32_t from, uint32_t bytes)
{
	return at >= from && at - from <= bytes && len <= bytes - (at - from);
}

/* The block's own code: hot from @b->code on, cold from @cold on, both offsets in the cache. */
static bool is_own(const struct xlate_block *b, uint32_t cold, uint32_t at, uint32_t len)
{
	return is_within(at, len, b->code, b->code_len) || is_within(at, len, cold, b->cold_len);
}

static bool is_link_good(struct xlate_block *b, unsigned i, uint32_t cold, unsigned *nfars)
{
	struct xlate_link *l = &b->links[i];

	if (l->index != i || l->next_in || l->target & 0x7000 || (l->to && !l->site))
		return false;
	if (l->site && (!is_own(b, cold, l->site, 4) || l->site % 8 > 4))
		return false;
	if (l->far) {
		/* There are as many as the record has room for. */
		if (l->far != ++*nfars || *nfars > b->nfars)
			return false;
		uint32_t back = (uint32_t)xlate_block_fars(b)[l->far - 1].delta & 0xfff;

		return !l->site || (back <= l->site && is_own(b, cold, l->site - back, 4) &&
				    (l->site - back) % 8 <= 4);
	}
	return true;
}

/* The record at @b, of which all up to @end may be read.  *@after: where it ends, with what lies behind it. */
static bool is_record_good(const struct dbt_vm *vm, const struct parts *p, struct xlate_block *b,
			   const uint8_t *end, uint32_t cold, const uint8_t **after)
{
	uint32_t npages = (uint32_t)(vm->ram->size_bytes >> GUEST_PAGE_SHIFT), s = p->s.index;
	uint64_t phys = xlate_block_phys(b), key = xlate_block_key(b);
	unsigned nfars = 0;
	uint8_t is_dead; /* hostile bytes are no bool yet */

	memcpy(&is_dead, &b->is_dead, 1);
	if (is_dead || b->in || b->page_next || phys >> GUEST_PAGE_SHIFT >= npages ||
	    !xlate_mode_ok(vm->xlate, (uint32_t)key) || (key & 3) == 3)
		return false;
	if (!b->guest_len || b->guest_len > GUEST_PAGE_SIZE - phys % GUEST_PAGE_SIZE)
		return false;
	if (!is_within(b->code, b->code_len, xlate_hot_at(s), p->s.hot) ||
	    !is_within(cold, b->cold_len, xlate_cold_at(s), p->s.cold) || b->code % 8 ||
	    !b->code_len || b->near >= b->code_len || b->landing >= b->code_len ||
	    (b->landing && (b->code + b->landing) % 8))
		return false;
	if (b->entry != b->code && !(is_within(b->entry, 8, cold, b->cold_len) && b->entry % 8 == 0))
		return false;
	if (b->nlinks > XLATE_MAX_LINKS || b->nfars > b->nlinks || b->nmap > 2 * XLATE_MAX_INSNS ||
	    b->ninsns > XLATE_MAX_INSNS || b->nmap < b->ninsns)
		return false;
	if (xlate_block_map(b) > end)
		return false;
	for (unsigned i = 0; i < b->nlinks; i++)
		if (!is_link_good(b, i, cold, &nfars))
			return false;
	if (nfars != b->nfars)
		return false;
	const struct xlate_crossing *c = xlate_block_crossing(b);
	const struct xlate_loop *loop = xlate_block_loop(b);

	if (c && (c->page2 >= npages || c->page2_next || c->guest_len2 > INSN_MAX_LEN))
		return false;
	for (unsigned i = 0; loop && i < ARRAY_SIZE(loop->host); i++)
		if (loop->host[i] >= 16 && loop->host[i] != H_NONE)
			return false;
	const uint8_t *m = map_end(b, end);

	if (!m || (const uint8_t *)decoded_of(b, m) > end)
		return false;
	*after = (const uint8_t *)(decoded_of(b, m) + b->ndecoded);
	return b->ndecoded <= (size_t)(end - (const uint8_t *)decoded_of(b, m)) / sizeof(struct insn);
}

/* In the order of their records, none of which has bytes of another; so it is with their code. */
static bool are_blocks_good(const struct dbt_vm *vm, const struct parts *p)
{
	uint32_t base = p->s.index * (uint32_t)XLATE_META_BYTES, at = 8, code = 0, cold = 0;

	for (unsigned i = 0; i < p->s.n; i++) {
		uint32_t off = p->names[i] - base;
		const uint8_t *after;

		if (p->names[i] < base || off < at || off % 8 || off > p->s.meta ||
		    p->s.meta - off < sizeof(struct xlate_block))
			return false;
		struct xlate_block *b = block_in(p, p->names[i]);

		if (b->code < code || p->colds[i] < cold || p->colds[i] > p->s.cold ||
		    !is_record_good(vm, p, b, p->meta + p->s.meta,
				    xlate_cold_at(p->s.index) + p->colds[i], &after))
			return false;
		at = (uint32_t)(after - p->meta);
		code = b->code + b->code_len;
		cold = p->colds[i] + b->cold_len;
	}
	return true;
}

/* Are the bytes whole?  Fills @all. */
static bool is_good(const struct dbt_vm *vm, const struct keep_head *head, uint8_t *data,
		    size_t len, struct parts all[SEGMENTS_MAX])
{
	uint64_t nblocks = 0;
	size_t at = HEAD_BYTES;

	if (head->nsegments > SEGMENTS_MAX)
		return false;
	for (unsigned i = 0; i < head->nsegments; i++) {
		struct parts *p = &all[i];
		const struct keep_segment *s = &p->s;

		p->s = head->segments[i];
		if (s->index >= XLATE_SEGMENTS || (i && s->index <= all[i - 1].s.index) ||
		    s->zero || s->hot > XLATE_HOT_BYTES || s->cold > XLATE_COLD_BYTES ||
		    s->meta > XLATE_META_BYTES || s->n > (XLATE_META_BYTES - s->meta) / 4 || s->meta < 8)
			return false;
		size_t bytes = 8 * (size_t)s->n + ALIGN_UP(s->hot, 8u) + ALIGN_UP(s->cold, 8u) +
			       ALIGN_UP(s->meta, 8u);

		if (bytes > len - at)
			return false;
		lay_out(p, data + at);
		at += bytes;
		nblocks += s->n;
	}
	/* No more than the table of blocks has room for. */
	if (at != len || nblocks != head->nblocks || nblocks > (1u << XLATE_HASH_BITS_MAX) / 4 * 3)
		return false;
	for (unsigned i = 0; i < head->nsegments; i++)
		if (!are_blocks_good(vm, &all[i]))
			return false;
	return true;
}

/* ---- loading: doing it -------------------------------------------------------------------- */

/* What the host has no memory for is had page by page: no matter. */
static void fill(uint8_t *to, const uint8_t *from, size_t len)
{
	uintptr_t first = (uintptr_t)to & ~(uintptr_t)(GUEST_PAGE_SIZE - 1);

	(void)madvise((void *)first, (uintptr_t)to + len - first, MADV_POPULATE_WRITE);
	memcpy(to, from, len);
}

static void put_segment(struct xlate_vm *x, const struct parts *p)
{
	unsigned s = p->s.index;

	fill(x->cc.rw + xlate_hot_at(s), p->hot, p->s.hot);
	fill(x->cc.rw + xlate_cold_at(s), p->cold, p->s.cold);
	fill(x->cc.meta + s * XLATE_META_BYTES, p->meta, p->s.meta);
	for (unsigned i = 0; i < p->s.n; i++)
		*xlate_cache_name(x, s, i) = p->names[i];
}

/* The decoded instructions behind the record once more from their bytes; false: they are none. */
static bool decode_again(struct xlate_vm *x, struct xlate_block *b)
{
	if (!b->ndecoded)
		return true;
	struct insn *in = decoded_of(b, map_end(b, x->cc.meta + XLATE_SEGMENTS * XLATE_META_BYTES));

	for (unsigned i = 0; i < b->ndecoded; i++, in++) {
		struct insn d;
		uint8_t len = in->len, mode = in->mode;

		if ((mode != 16 && mode != 32 && mode != 64) || len > INSN_MAX_LEN ||
		    insn_decode(&d, in->bytes, INSN_MAX_LEN, mode) != DECODE_OK || d.len > len)
			return false;
		d.len = len; /* a prefix that means nothing to this model is not among the bytes (interp_decode()) */
		*in = d;
	}
	return true;
}

static bool take_segment(struct dbt_vm *vm, const struct parts *p)
{
	struct xlate_vm *x = vm->xlate;

	for (unsigned i = 0; i < p->s.n; i++) {
		struct xlate_block *b = xlate_block_at(x, p->names[i]);

		if (!decode_again(x, b))
			return false;
		if (vm->cfg.is_strict &&
		    !xlate_verify(vm->cpus[0], b, xlate_cold_at(p->s.index) + p->colds[i]))
			return false;
	}
	return true;
}

static void protect(struct dbt_vm *vm, uint64_t page)
{
	uint8_t old = atomic_fetch_or_explicit(&vm->ram->page_flags[page], RAM_PAGE_CODE,
					       memory_order_seq_cst);

	if (!(old & RAM_PAGE_WMAP))
		return;
	for (unsigned i = 0; i < vm->ncpus; i++)
		if (vm->cpus[i])
			mmu_drop_write(vm->cpus[i], page << GUEST_PAGE_SHIFT);
	atomic_fetch_and_explicit(&vm->ram->page_flags[page], (uint8_t)~RAM_PAGE_WMAP,
				  memory_order_seq_cst);
}

static void enter_segment(struct dbt_vm *vm, const struct parts *p)
{
	struct xlate_vm *x = vm->xlate;
	const struct xlate_segment contents = {
		.hot = p->s.hot, .cold = p->s.cold, .meta = p->s.meta, .n = p->s.n
	};

	xlate_cache_adopt(x, p->s.index, &contents);
	for (unsigned i = 0; i < p->s.n; i++) {
		struct xlate_block *b = xlate_block_at(x, p->names[i]);
		const struct xlate_crossing *c = xlate_block_crossing(b);

		protect(vm, xlate_block_phys(b) >> GUEST_PAGE_SHIFT);
		if (c)
			protect(vm, c->page2);
		xlate_block_enter(x, b);
	}
}

/* Where records begin: a bit for each 8 bytes of records, of the loaded segments in their order. */
struct starts {
	uint64_t *bits;
	uint8_t at[XLATE_SEGMENTS]; /* which of them it is, plus 1; 0: it is not loaded */
};
#define STARTS_WORDS (XLATE_META_BYTES / 8 / 64)

static bool find_starts(struct starts *t, const struct parts *all, unsigned n)
{
	memset(t, 0, sizeof(*t));
	t->bits = calloc(MAX(n, 1u), STARTS_WORDS * sizeof(*t->bits));
	if (!t->bits)
		return false;
	for (unsigned i = 0; i < n; i++) {
		t->at[all[i].s.index] = (uint8_t)(i + 1);
		for (unsigned k = 0; k < all[i].s.n; k++) {
			uint32_t slot = all[i].names[k] % (uint32_t)XLATE_META_BYTES / 8;

			t->bits[i * STARTS_WORDS + slot / 64] |= 1ULL << slot % 64;
		}
	}
	return true;
}

/* The block that a reference in the bytes means, if it is one of a loaded segment. */
static struct xlate_block *named(const struct xlate_vm *x, const struct starts *t, uint32_t ref)
{
	unsigned s = xlate_segment_of(ref);
	uint32_t slot = ref % (uint32_t)XLATE_META_BYTES / 8;

	if (ref % 8 || s >= XLATE_SEGMENTS || !t->at[s] ||
	    !(t->bits[(t->at[s] - 1u) * STARTS_WORDS + slot / 64] >> slot % 64 & 1))
		return NULL;
	return xlate_block_at(x, ref);
}

/* As xlate_link_patch() and xlate_far() would. */
static bool may_lead(struct xlate_link *l, const struct xlate_block *from, struct xlate_block *to)
{
	uint64_t phys = xlate_block_phys(to);

	return !to->is_crossing && xlate_link_key(l) == xlate_block_key(to) &&
	       (phys & 0xfff) == xlate_link_off(l) &&
	       (l->far || phys >> GUEST_PAGE_SHIFT == xlate_block_phys(from) >> GUEST_PAGE_SHIFT);
}

static void link_segment(struct dbt_vm *vm, const struct starts *t, const struct parts *p)
{
	struct xlate_vm *x = vm->xlate;
	bool is_linking = !(vm->cfg.without & ENGINE_CHAINING) && !vm->cfg.check_every;

	for (unsigned i = 0; i < p->s.n; i++) {
		struct xlate_block *b = xlate_block_at(x, p->names[i]);

		for (unsigned k = 0; k < b->nlinks; k++) {
			struct xlate_link *l = &b->links[k];
			struct xlate_block *to = l->to && is_linking ? named(x, t, l->to) : NULL;

			l->to = 0;
			if (to && may_lead(l, b, to))
				xlate_link_to(x, l, to);
		}
	}
}

static void enter_all(struct dbt_vm *vm, const struct starts *t, const struct parts *all,
		      const struct keep_head *head)
{
	xlate_table_prepare(vm->xlate, head->nblocks);
	for (unsigned i = 0; i < head->nsegments; i++)
		enter_segment(vm, &all[i]);
	for (unsigned i = 0; i < head->nsegments; i++)
		link_segment(vm, t, &all[i]);
	vm->xlate->loaded = head->nblocks;
}

int xlate_code_load(struct dbt_vm *vm, const uint8_t *data, size_t len, struct error *err)
{
	struct xlate_vm *x = vm->xlate;
	struct parts all[SEGMENTS_MAX];
	struct keep_ident ours;
	struct keep_head head;

	if (len < HEAD_BYTES || (uintptr_t)data % 8)
		return error_set(err, -EINVAL, "the kept code is damaged");
	memcpy(&head, data, sizeof(head));
	if (!make_ident(vm, &ours) || memcmp(&ours, &head.ident, sizeof(ours)))
		return error_set(err, -ESTALE,
				 "the kept code is of another build of viv, or of another machine");
	if (vm->cfg.use_interp_only || !vm->ncpus || !vm->cpus[0])
		return error_set(err, -EINVAL, "nothing is translated here");
	/* Only read: the parts are const in all but their type. */
	if (!is_good(vm, &head, (uint8_t *)(uintptr_t)data, len, all))
		return error_set(err, -EINVAL, "the kept code is damaged");
	struct starts starts;

	if (!find_starts(&starts, all, head.nsegments))
		return error_set(err, -ENOMEM, "no memory to load kept code");
	int r = 0;
	uint64_t failures = x->verify_failures;

	pthread_mutex_lock(&vm->lock);
	if (!xlate_cache_is_new(x)) {
		r = error_set(err, -EBUSY, "something was translated already");
	} else {
		for (unsigned i = 0; i < head.nsegments; i++)
			put_segment(x, &all[i]);
		for (unsigned i = 0; r == 0 && i < head.nsegments; i++)
			if (!take_segment(vm, &all[i]))
				r = error_set(
					err, -EINVAL,
					"the kept code is refused by the verifier, or damaged");
		for (unsigned i = 0; r < 0 && i < head.nsegments; i++)
			xlate_cache_give_back(x, all[i].s.index);
		if (r == 0)
			enter_all(vm, &starts, all, &head);
	}
	x->verify_failures = failures; /* it is not what this process has translated */
	pthread_mutex_unlock(&vm->lock);
	free(starts.bits);
	return r;
}
