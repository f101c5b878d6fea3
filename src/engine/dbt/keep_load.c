/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking over kept code (keep.h), beside the running guest.
 *
 *   making room         segments are reserved, so that the translator does not begin them; under vm->lock
 *   then for each segment, so that the guest has the first of them soon:
 *     reading           into memory that is not executable, the same for all of them
 *     what can be wrong the bytes are only read, in strict mode by the verifier, too; no lock
 *     putting           them into the reserved segment, every block dead; no lock: nobody looks there
 *     entering          it is adopted, and its blocks come to life, a few at a time; under vm->lock
 *     linking           likewise; links to what comes later wait for that
 *
 * Invariants
 *  1. What is loaded was made by the same program (struct keep_ident: build, techniques, CPU model, stubs).  Whoever hands the bytes over
 *     knows that nobody else has written them: code is not read for what it does, but in strict mode, where the verifier does.
 *  2. All else in a segment is checked before anything of it is taken over; with a damaged one it ends, and what came before stays.
 *  3. A block comes to life only while its pages are as they were: the dirty log runs since memory was so, and still tracks them
 *     (RAM_PAGE_TRACK), and no vCPU may hold a write mapping of them (RAM_PAGE_WMAP).  It is looked for after RAM_PAGE_CODE was set, in one
 *     atomic step: whoever writes later finds that flag, and waits for vm->lock to drop the block; who wrote before has cleared TRACK.
 *  4. That ends for good when the log is collected, stopped or started once more: then pages are tracked again that have changed
 *     (is_log_whole()).  It also ends when a segment was emptied (xlate_vm.generation).
 *  5. Which block a link is to lead to is read from the bytes: the record's own word is the translator's once the block lives.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine/dbt/keep.h"

#define SLICE 64u /* blocks entered or linked before vCPUs get the lock */

/* Link @link of block @from leads to block @to. */
struct lead {
	uint32_t from, to;
	unsigned link;
};

struct load {
	struct dbt_vm *vm;
	const struct keep_head *head;
	const struct engine_code_source *in;
	const _Atomic bool *stop;
	uint8_t *data; /* of the segment in hand: a mapping of @data_len bytes */
	size_t data_len;
	uint64_t generation;		/* when room was made */
	unsigned entered, held;		/* blocks; how many since the lock was taken */
	bool is_over;			/* no more of them */
	bool is_coming[XLATE_SEGMENTS]; /* it was reserved, and is not read yet */
	/* Where records of blocks that are kept begin: a bit for each 8 bytes of records, of the segments in their order. */
	uint64_t *starts;
	uint8_t at[XLATE_SEGMENTS]; /* which of them it is, plus 1; 0: it is not loaded */
	struct lead *leads;	    /* to be linked */
	size_t nleads, max_leads;
};
#define STARTS_WORDS (XLATE_META_BYTES / 8 / 64)

/* ---- what can be wrong --------------------------------------------------------------------- */

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
static bool is_record_good(const struct dbt_vm *vm, const struct keep_parts *p, struct xlate_block *b,
			   const uint8_t *end, uint32_t cold, const uint8_t **after)
{
	uint32_t npages = (uint32_t)(vm->ram->size_bytes >> GUEST_PAGE_SHIFT), s = p->s.index;
	uint64_t phys = xlate_block_phys(b), key = xlate_block_key(b);
	unsigned nfars = 0;
	uint8_t is_dead; /* hostile bytes are no bool yet */

	memcpy(&is_dead, &b->is_dead, 1);
	if (is_dead > 1 || b->in || b->page_next || phys >> GUEST_PAGE_SHIFT >= npages ||
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

	if (c && ((c->page2 >= npages && !(is_dead && c->page2 == XLATE_NO_RAM_PAGE)) ||
		  c->page2_next || c->guest_len2 > INSN_MAX_LEN))
		return false;
	for (unsigned i = 0; loop && i < ARRAY_SIZE(loop->host); i++)
		if (loop->host[i] >= 16 && loop->host[i] != H_NONE)
			return false;
	const uint8_t *m = keep_map_end(b, end);

	if (!m || (const uint8_t *)keep_decoded(b, m) > end)
		return false;
	*after = (const uint8_t *)(keep_decoded(b, m) + b->ndecoded);
	return b->ndecoded <= (size_t)(end - (const uint8_t *)keep_decoded(b, m)) / sizeof(struct insn);
}

/* In the order of their records, none of which has bytes of another; so it is with their code. */
static bool are_blocks_good(const struct dbt_vm *vm, const struct keep_parts *p)
{
	uint32_t base = p->s.index * (uint32_t)XLATE_META_BYTES, at = 8, code = 0, cold = 0;

	for (unsigned i = 0; i < p->s.n; i++) {
		uint32_t off = p->names[i] - base;
		const uint8_t *after;

		if (p->names[i] < base || off < at || off % 8 || off > p->s.meta ||
		    p->s.meta - off < sizeof(struct xlate_block))
			return false;
		struct xlate_block *b = keep_block(p, p->names[i]);

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

/* Is part 0 possible, with the lengths of the others? */
static bool is_head_good(const struct keep_head *head, const struct engine_code_source *in)
{
	uint64_t nblocks = 0;

	if (head->nsegments > KEEP_SEGMENTS_MAX || in->nparts != head->nsegments + 1)
		return false;
	for (unsigned i = 0; i < head->nsegments; i++) {
		const struct keep_segment *s = &head->segments[i];

		if (s->index >= XLATE_SEGMENTS || (i && s->index <= s[-1].index) || s->zero ||
		    s->hot > XLATE_HOT_BYTES || s->cold > XLATE_COLD_BYTES ||
		    s->meta > XLATE_META_BYTES || s->n > (XLATE_META_BYTES - s->meta) / 4 || s->meta < 8)
			return false;
		if (in->len[i + 1] > ENGINE_CODE_PART_MAX || in->len[i + 1] != keep_part_bytes(s))
			return false;
		nblocks += s->n;
	}
	/* No more than the table of blocks has room for. */
	return nblocks == head->nblocks && nblocks <= (1u << XLATE_HASH_BITS_MAX) / 4 * 3;
}

static bool is_kept(const struct keep_parts *p, unsigned i)
{
	return !keep_block(p, p->names[i])->is_dead;
}

/* A decoded instruction behind a record once more from its bytes; false: it is none. */
static bool decode_again(const struct insn *in, struct insn *out)
{
	if ((in->mode != 16 && in->mode != 32 && in->mode != 64) || in->len > INSN_MAX_LEN ||
	    insn_decode(out, in->bytes, INSN_MAX_LEN, in->mode) != DECODE_OK || out->len > in->len)
		return false;
	out->len = in->len; /* a prefix that means nothing to this model is not among the bytes (interp_decode()) */
	return true;
}

static bool is_block_fit(const struct dbt_vm *vm, const struct keep_parts *p, unsigned i, char why[160])
{
	struct xlate_block *b = keep_block(p, p->names[i]);
	const struct insn *in = keep_decoded(b, keep_map_end(b, p->meta + p->s.meta));
	uint32_t cold = xlate_cold_at(p->s.index) + p->colds[i];
	struct insn d;

	for (unsigned k = 0; k < b->ndecoded; k++)
		if (!decode_again(&in[k], &d))
			return false;
	return !vm->cfg.is_strict ||
	       xlate_is_verified(vm, b, p->hot + (b->code - xlate_hot_at(p->s.index)), cold,
				 p->cold + p->colds[i], why);
}

/* The segment in hand. */
static int check_segment(const struct dbt_vm *vm, const struct keep_parts *p, struct error *err)
{
	char why[160] = "an instruction is damaged";

	if (!are_blocks_good(vm, p))
		return error_set(err, -EINVAL, "the kept code is damaged");
	for (unsigned i = 0; i < p->s.n; i++)
		if (is_kept(p, i) && !is_block_fit(vm, p, i, why))
			return error_set(err, -EINVAL,
					 "the kept code is damaged, or refused by the verifier: %s",
					 why);
	return 0;
}

/* ---- making room -------------------------------------------------------------------------- */

static bool is_stopped(const struct load *l)
{
	return l->stop && atomic_load_explicit(l->stop, memory_order_relaxed);
}

/* Under vm->lock: what has been written since the log was started is not tracked any more, whatever happened in between. */
static bool is_log_whole(const struct dbt_vm *vm)
{
	return vm->is_dirty_logging && vm->log_epoch == 1;
}

/* Under vm->lock. */
static void release_all(struct xlate_vm *x)
{
	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		xlate_cache_release(x, s);
}

void xlate_code_expect(struct dbt_vm *vm, const uint8_t *data, size_t len)
{
	struct keep_ident ours;
	struct keep_head head;
	bool is_ours = false;

	if (len >= sizeof(head)) {
		memcpy(&head, data, sizeof(head));
		is_ours = keep_ident(vm, &ours) && !memcmp(&ours, &head.ident, sizeof(ours)) &&
			  head.nsegments <= KEEP_SEGMENTS_MAX;
	}
	pthread_mutex_lock(&vm->lock);
	release_all(vm->xlate);
	for (unsigned i = 0; is_ours && i < head.nsegments; i++)
		if (head.segments[i].index < XLATE_SEGMENTS)
			(void)xlate_cache_reserve(vm->xlate, head.segments[i].index);
	if (is_ours && !vm->xlate->table.nused)
		xlate_table_prepare(vm->xlate, head.nblocks);
	pthread_mutex_unlock(&vm->lock);
}

/* The table of blocks may have to be larger than anybody expected. */
static void grow_table(struct dbt_vm *vm, unsigned nblocks)
{
	dbt_exclusive_begin_foreign(vm);
	pthread_mutex_lock(&vm->lock);
	xlate_table_prepare(vm->xlate, vm->xlate->table.nblocks + nblocks);
	xlate_table_rebuild(vm->xlate);
	pthread_mutex_unlock(&vm->lock);
	dbt_exclusive_end_foreign(vm);
}

/* Whole, before it is read here and there: then the host has nothing to tell to all processors at each page that is written for the first time. */
static void populate(void *from, size_t len)
{
	uintptr_t first = (uintptr_t)from & ~(uintptr_t)(GUEST_PAGE_SIZE - 1);

	(void)madvise((void *)first, (uintptr_t)from + len - first, MADV_POPULATE_WRITE);
}

static void populate_table(struct xlate_vm *x)
{
	populate((void *)(uintptr_t)x->table.slot, sizeof(*x->table.slot) << x->table.bits);
	populate((void *)(uintptr_t)x->table.seen, sizeof(*x->table.seen) << (XLATE_SEEN_BITS - 6));
}

/* Segments that something was translated into are not to be had. */
static int make_room(struct load *l, struct error *err)
{
	struct dbt_vm *vm = l->vm;
	bool has_any = false;

	pthread_mutex_lock(&vm->lock);
	bool is_small = !xlate_table_has_room(vm->xlate, l->head->nblocks);

	pthread_mutex_unlock(&vm->lock);
	if (is_small)
		grow_table(vm, l->head->nblocks);
	populate_table(vm->xlate);
	pthread_mutex_lock(&vm->lock);
	if (!is_log_whole(vm) || !xlate_table_has_room(vm->xlate, l->head->nblocks)) {
		bool is_whole = is_log_whole(vm);

		release_all(vm->xlate);
		pthread_mutex_unlock(&vm->lock);
		return is_whole ? error_set(err, -ENOSPC, "there is no room for so many blocks")
				: error_set(err, -EINVAL, "which pages have changed is not known");
	}
	for (unsigned s = 0, i = 0; s < XLATE_SEGMENTS; s++) {
		bool is_named = i < l->head->nsegments && l->head->segments[i].index == s;

		if (!is_named)
			xlate_cache_release(vm->xlate, s);
		else
			l->is_coming[s] = xlate_cache_reserve(vm->xlate, s);
		has_any |= l->is_coming[s];
		i += is_named;
	}
	l->generation = vm->xlate->generation;
	pthread_mutex_unlock(&vm->lock);
	return has_any ? 0 : error_set(err, -EBUSY, "something was translated already where it was");
}

/* ---- putting ------------------------------------------------------------------------------ */

/* What the host has no memory for is had page by page: no matter. */
static void fill(uint8_t *to, const uint8_t *from, size_t len)
{
	populate(to, len);
	memcpy(to, from, len);
}

/* Its decoded instructions have an address in them, which is this process's own. */
static void describe(struct xlate_block *b)
{
	if (!b->ndecoded)
		return;
	struct insn *in = keep_decoded(b, keep_map_end(b, (const uint8_t *)b + XLATE_META_BYTES));

	for (unsigned i = 0; i < b->ndecoded; i++) {
		struct insn d;

		if (decode_again(&in[i], &d)) /* it was looked at before */
			in[i] = d;
	}
}

/* Links are made later: where they are to lead to is noted.  One that there is no memory for is made by who comes by. */
static void note_lead(struct load *l, uint32_t from, unsigned link, uint32_t to)
{
	if (l->nleads == l->max_leads) {
		size_t more = l->max_leads + 4096;
		void *leads = realloc(l->leads, more * sizeof(*l->leads));

		if (!leads)
			return;
		l->leads = leads;
		l->max_leads = more;
	}
	l->leads[l->nleads++] = (struct lead){ from, to, link };
}

static void put_segment(struct load *l, const struct keep_parts *p)
{
	struct xlate_vm *x = l->vm->xlate;
	unsigned s = p->s.index;

	fill(x->cc.rw + xlate_hot_at(s), p->hot, p->s.hot);
	fill(x->cc.rw + xlate_cold_at(s), p->cold, p->s.cold);
	fill(x->cc.meta + s * XLATE_META_BYTES, p->meta, p->s.meta);
	for (unsigned i = 0; i < p->s.n; i++) {
		struct xlate_block *b = xlate_block_at(x, p->names[i]);

		*xlate_cache_name(x, s, i) = p->names[i];
		b->is_dead = true;
		for (unsigned k = 0; k < b->nlinks; k++) {
			if (b->links[k].to && is_kept(p, i))
				note_lead(l, p->names[i], k, b->links[k].to);
			b->links[k].to = 0;
		}
		if (is_kept(p, i))
			describe(b);
	}
}

/* ---- entering, under vm->lock ------------------------------------------------------------- */

/* May go on?  vCPUs that wait for the lock have it in between. */
static bool go_on(struct load *l)
{
	struct dbt_vm *vm = l->vm;

	if (++l->held > SLICE) {
		pthread_mutex_unlock(&vm->lock);
		l->is_over |= is_stopped(l);
		pthread_mutex_lock(&vm->lock);
		l->held = 0;
		l->is_over |= !is_log_whole(vm) || vm->xlate->generation != l->generation;
	}
	return !l->is_over;
}

/* Invariant 3.  The flag goes again where the page gets no block (xlate_page_release()). */
static bool claim(struct dbt_vm *vm, uint64_t page)
{
	uint8_t old = atomic_fetch_or_explicit(&vm->ram->page_flags[page], RAM_PAGE_CODE,
					       memory_order_seq_cst);

	return (old & (RAM_PAGE_TRACK | RAM_PAGE_WMAP)) == RAM_PAGE_TRACK;
}

static void enter_block(struct load *l, struct xlate_block *b)
{
	struct dbt_vm *vm = l->vm;
	const struct xlate_crossing *c = xlate_block_crossing(b);
	uint64_t phys = xlate_block_phys(b), page = phys >> GUEST_PAGE_SHIFT;
	bool is_clean = claim(vm, page);

	if (c)
		is_clean &= claim(vm, c->page2);
	l->is_over |= !xlate_table_has_room(vm->xlate, 1); /* the guest needs it itself */
	if (is_clean && !l->is_over &&
	    !xlate_lookup(vm->xlate, phys, xlate_phys2(b), xlate_block_key(b))) {
		b->is_dead = false;
		xlate_block_enter(vm->xlate, b);
		l->entered++;
	}
	xlate_page_release(vm, page);
	if (c)
		xlate_page_release(vm, c->page2);
}

static void enter_segment(struct load *l, const struct keep_parts *p)
{
	struct dbt_vm *vm = l->vm;
	const struct xlate_segment contents = {
		.hot = p->s.hot, .cold = p->s.cold, .meta = p->s.meta, .n = p->s.n
	};

	put_segment(l, p);
	pthread_mutex_lock(&vm->lock);
	l->held = SLICE; /* what has happened meanwhile is looked at first */
	if (go_on(l))
		xlate_cache_adopt(vm->xlate, p->s.index, &contents);
	for (unsigned i = 0; i < p->s.n && go_on(l); i++)
		if (is_kept(p, i))
			enter_block(l, xlate_block_at(vm->xlate, p->names[i]));
	pthread_mutex_unlock(&vm->lock);
}

/* ---- linking, under vm->lock -------------------------------------------------------------- */

/* Segment @i of the head, which is in hand. */
static void find_starts(struct load *l, unsigned i, const struct keep_parts *p)
{
	uint64_t *starts = l->starts + i * STARTS_WORDS;

	l->at[p->s.index] = (uint8_t)(i + 1);
	for (unsigned k = 0; k < p->s.n; k++) {
		uint32_t slot = p->names[k] % (uint32_t)XLATE_META_BYTES / 8;

		if (is_kept(p, k))
			starts[slot / 64] |= 1ULL << slot % 64;
	}
}

/* The block that a reference in the bytes means, if it is one that was entered and lives. */
static struct xlate_block *named(const struct load *l, uint32_t ref)
{
	unsigned s = xlate_segment_of(ref);
	uint32_t slot = ref % (uint32_t)XLATE_META_BYTES / 8;

	if (ref % 8 || s >= XLATE_SEGMENTS || !l->at[s] ||
	    !(l->starts[(l->at[s] - 1u) * STARTS_WORDS + slot / 64] >> slot % 64 & 1))
		return NULL;
	struct xlate_block *b = xlate_block_at(l->vm->xlate, ref);

	return b->is_dead ? NULL : b;
}

/* As xlate_link_patch() and xlate_far() would. */
static bool may_lead(struct xlate_link *l, const struct xlate_block *from, struct xlate_block *to)
{
	uint64_t phys = xlate_block_phys(to);

	return !to->is_crossing && xlate_link_key(l) == xlate_block_key(to) &&
	       (phys & 0xfff) == xlate_link_off(l) &&
	       (l->far || phys >> GUEST_PAGE_SHIFT == xlate_block_phys(from) >> GUEST_PAGE_SHIFT);
}

static void link_one(struct load *l, const struct lead *lead)
{
	struct xlate_vm *x = l->vm->xlate;
	struct xlate_block *b = xlate_block_at(x, lead->from), *to = named(l, lead->to);
	struct xlate_link *link = &b->links[lead->link];

	if (!b->is_dead && to && !link->to && may_lead(link, b, to))
		xlate_link_to(x, link, to);
}

/* Those that lead to what has come by now. */
static void link_all(struct load *l)
{
	struct dbt_vm *vm = l->vm;
	size_t n = 0;

	if (vm->cfg.without & ENGINE_CHAINING || vm->cfg.check_every)
		l->nleads = 0;
	pthread_mutex_lock(&vm->lock);
	l->held = SLICE;
	for (size_t i = 0; i < l->nleads && go_on(l); i++) {
		struct lead *lead = &l->leads[i];
		unsigned s = xlate_segment_of(lead->to);

		if (s < XLATE_SEGMENTS && l->is_coming[s])
			l->leads[n++] = *lead;
		else
			link_one(l, lead);
	}
	l->nleads = n;
	pthread_mutex_unlock(&vm->lock);
}

/* ---- */

static int load_segment(struct load *l, unsigned i, struct error *err)
{
	struct keep_parts p = { .s = l->head->segments[i] };
	int r = l->in->read(l->in->arg, i + 1, l->data, err);

	if (r == 0) {
		keep_lay_out(&p, l->data);
		r = check_segment(l->vm, &p, err);
	}
	if (r < 0)
		return r;
	l->is_coming[p.s.index] = false;
	find_starts(l, i, &p);
	enter_segment(l, &p);
	link_all(l);
	return 0;
}

static int load_all(struct load *l, struct error *err)
{
	struct dbt_vm *vm = l->vm;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < l->head->nsegments && !l->is_over && !is_stopped(l); i++)
		if (l->is_coming[l->head->segments[i].index])
			r = load_segment(l, i, err);
	pthread_mutex_lock(&vm->lock);
	vm->xlate->loaded += l->entered;
	/* What was not adopted, because it is over. */
	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		if (xlate_cache_release(vm->xlate, s))
			xlate_cache_give_back(vm->xlate, s);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

static int load(struct load *l, struct error *err)
{
	int r = make_room(l, err);

	if (r < 0)
		return r;
	l->starts = calloc(MAX(l->head->nsegments, 1u), STARTS_WORDS * sizeof(*l->starts));
	for (unsigned i = 0; i < l->in->nparts; i++)
		l->data_len = MAX(l->data_len, (size_t)l->in->len[i]);
	l->data = mmap(NULL, l->data_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (l->starts && l->data != MAP_FAILED) {
		r = load_all(l, err);
	} else {
		xlate_code_expect(l->vm, NULL, 0);
		r = error_set(err, -ENOMEM, "no memory to load kept code");
	}
	if (l->data != MAP_FAILED)
		munmap(l->data, l->data_len);
	free(l->starts);
	free(l->leads);
	if (r < 0)
		return r;
	return is_stopped(l) && !l->entered ? error_set(err, -ECANCELED, "canceled") : (int)l->entered;
}

int xlate_code_load(struct dbt_vm *vm, const struct engine_code_source *in,
		    const _Atomic bool *stop, struct error *err)
{
	struct keep_ident ours;
	struct keep_head head;
	int r = 0;

	if (!in->nparts || in->len[0] != sizeof(head))
		r = error_set(err, -EINVAL, "the kept code is damaged");
	else
		r = in->read(in->arg, 0, (uint8_t *)&head, err);
	if (r == 0 && (!keep_ident(vm, &ours) || memcmp(&ours, &head.ident, sizeof(ours))))
		r = error_set(err, -ESTALE,
			      "the kept code is of another build of viv, or of another machine");
	else if (r == 0 && (vm->cfg.use_interp_only || !vm->ncpus || !vm->cpus[0]))
		r = error_set(err, -EINVAL, "nothing is translated here");
	else if (r == 0 && !is_head_good(&head, in))
		r = error_set(err, -EINVAL, "the kept code is damaged");
	if (r == 0)
		return load(&(struct load){ .vm = vm, .head = &head, .in = in, .stop = stop }, err);
	xlate_code_expect(vm, NULL, 0);
	return r;
}
