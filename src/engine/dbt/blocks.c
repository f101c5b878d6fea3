/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of blocks, the lists of a page's blocks, and the links between blocks: made, patched, undone.  See xlate.h.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine/dbt/xlate.h"

/* ---- the table ---------------------------------------------------------------------------- */

static unsigned first_slot(const struct xlate_table *t, uint64_t hash)
{
	return (unsigned)(hash >> (64 - t->bits));
}

static unsigned next_slot(const struct xlate_table *t, unsigned i)
{
	return (i + 1) & ((1u << t->bits) - 1);
}

/* The bits below those that choose the slot, whatever its number of bits. */
static uint32_t slot_bits(uint64_t hash)
{
	return (uint32_t)(hash >> (64 - XLATE_HASH_BITS_MAX - XLATE_SLOT_BITS)) &
	       ((1u << XLATE_SLOT_BITS) - 1);
}

static bool is_seen(const struct xlate_table *t, uint64_t hash)
{
	uint64_t n = hash >> (64 - XLATE_SEEN_BITS);

	return atomic_load_explicit(&t->seen[n / 64], memory_order_acquire) >> n % 64 & 1;
}

static void set_seen(struct xlate_table *t, uint64_t hash)
{
	uint64_t n = hash >> (64 - XLATE_SEEN_BITS);

	atomic_fetch_or_explicit(&t->seen[n / 64], 1ULL << n % 64, memory_order_release);
}

static uint32_t slot_value(uint32_t ref, uint64_t hash)
{
	return ref / 8 << XLATE_SLOT_BITS | slot_bits(hash);
}

uint64_t xlate_phys2(struct xlate_block *b)
{
	const struct xlate_crossing *c = xlate_block_crossing(b);

	return !c			       ? 0
	       : c->page2 == XLATE_NO_RAM_PAGE ? XLATE_NO_PAGE
					       : (uint64_t)c->page2 << GUEST_PAGE_SHIFT | 1;
}

struct xlate_block *xlate_lookup(struct xlate_vm *x, uint64_t phys, uint64_t phys2, uint32_t key)
{
	const struct xlate_table *t = &x->table;
	uint64_t tag = xlate_tag(phys, key), hash = xlate_hash(tag);
	uint32_t bits = slot_bits(hash), found;

	if (!is_seen(t, hash))
		return NULL;
	for (unsigned i = first_slot(t, hash);; i = next_slot(t, i)) {
		found = atomic_load_explicit(&t->slot[i], memory_order_acquire);
		if (!found)
			return NULL;
		if ((found & ((1u << XLATE_SLOT_BITS) - 1)) != bits || found == XLATE_SLOT_GONE)
			continue;
		struct xlate_block *b = xlate_block_at(x, found >> XLATE_SLOT_BITS << 3);

		if (b->tag == tag && xlate_phys2(b) == phys2)
			return b;
	}
}

bool xlate_has_block(struct xlate_vm *x, uint64_t phys, uint32_t key)
{
	return xlate_lookup(x, phys, 0, key);
}

static void insert(struct xlate_vm *x, const struct xlate_block *b)
{
	struct xlate_table *t = &x->table;
	uint64_t hash = xlate_hash(b->tag);
	unsigned i = first_slot(t, hash);

	set_seen(t, hash);
	for (uint32_t there; (there = t->slot[i]) && there != XLATE_SLOT_GONE;)
		i = next_slot(t, i);
	t->nused += !t->slot[i];
	t->nblocks++;
	atomic_store_explicit(&t->slot[i], slot_value(xlate_ref(x, b), hash), memory_order_release);
}

static void take_out(struct xlate_vm *x, const struct xlate_block *b)
{
	struct xlate_table *t = &x->table;
	uint64_t hash = xlate_hash(b->tag);
	uint32_t value = slot_value(xlate_ref(x, b), hash);
	unsigned i = first_slot(t, hash);

	while (t->slot[i] != value)
		i = next_slot(t, i);
	atomic_store_explicit(&t->slot[i], XLATE_SLOT_GONE, memory_order_release);
	t->nblocks--;
}

bool xlate_table_has_room(const struct xlate_vm *x, unsigned n)
{
	return (uint64_t)x->table.nused + n <= (1u << x->table.bits) / 4 * 3;
}

static void table_clear(struct xlate_table *t)
{
	memset((void *)t->slot, 0, sizeof(*t->slot) << t->bits);
	memset((void *)t->seen, 0, (1u << XLATE_SEEN_BITS) / 8);
	t->nused = t->nblocks = 0;
}

void xlate_table_prepare(struct xlate_vm *x, unsigned n)
{
	struct xlate_table *t = &x->table;

	while (n > (1u << t->bits) / 2 && t->bits < XLATE_HASH_BITS_MAX)
		t->bits++;
}

void xlate_table_rebuild(struct xlate_vm *x)
{
	struct xlate_table *t = &x->table;
	unsigned nblocks = t->nblocks;

	table_clear(t);
	if (nblocks > (1u << t->bits) / 2 && t->bits < XLATE_HASH_BITS_MAX)
		t->bits++;
	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		for (unsigned i = 0; i < x->cc.seg[s].n; i++) {
			const struct xlate_block *b = xlate_cache_block(x, s, i);

			if (!b->is_dead)
				insert(x, b);
		}
}

int xlate_table_create(struct dbt_vm *vm, struct error *err)
{
	struct xlate_vm *x = vm->xlate;
	uint64_t npages = vm->ram->size_bytes >> GUEST_PAGE_SHIFT;

	x->table.bits = XLATE_HASH_BITS_MIN;
	x->table.slot = calloc(1u << XLATE_HASH_BITS_MAX, sizeof(*x->table.slot));
	x->table.seen = calloc((1u << XLATE_SEEN_BITS) / 64, sizeof(*x->table.seen));
	x->by_page = calloc(npages, sizeof(*x->by_page));
	x->by_page2 = calloc(npages, sizeof(*x->by_page2));
	return x->table.slot && x->table.seen && x->by_page && x->by_page2
		       ? 0
		       : error_set(err, -ENOMEM, "no memory for the tables of translated blocks");
}

void xlate_table_destroy(struct xlate_vm *x)
{
	free((void *)x->table.slot);
	free((void *)x->table.seen);
	free(x->by_page);
	free(x->by_page2);
}

/* ---- links -------------------------------------------------------------------------------- */

/* Four bytes of code within eight aligned ones, at once for all CPUs that may be executing them. */
static void write_code(uint8_t *at, uint32_t v)
{
	uint8_t *word = (uint8_t *)((uintptr_t)at & ~(uintptr_t)7);
	uint64_t bytes;

	memcpy(&bytes, word, 8);
	memcpy((uint8_t *)&bytes + (at - word), &v, 4);
	__atomic_store_n((uint64_t *)(void *)word, bytes, __ATOMIC_RELEASE);
}

/* The number of the page of RAM that a far link's code checks for. */
static void far_write(struct xlate_vm *x, struct xlate_link *l, uint64_t page)
{
	write_code(x->cc.rw + l->site - ((uint32_t)xlate_link_far(l)->delta & 0xfff), (uint32_t)page);
}

static void link_undo(struct xlate_vm *x, struct xlate_link *l)
{
	if (l->far)
		far_write(x, l, XLATE_NO_RAM_PAGE);
	write_code(x->cc.rw + l->site, (uint32_t)l->stub);
	l->to = 0;
}

void xlate_link_to(struct xlate_vm *x, struct xlate_link *l, struct xlate_block *b)
{
	l->to = xlate_ref(x, b);
	l->next_in = b->in;
	b->in = xlate_ref(x, l);
	write_code(x->cc.rw + l->site, b->code + b->near - (l->site + 4));
	if (l->far) /* after the jump, which nobody takes before */
		far_write(x, l, xlate_block_phys(b) >> GUEST_PAGE_SHIFT);
}

uint32_t xlate_link_key(struct xlate_link *l)
{
	return (xlate_block_key(xlate_link_from(l)) & ~(uint32_t)DBT_MODE_EACH) | xlate_link_extra(l);
}

void xlate_link_patch(struct dbt_cpu *cpu, struct xlate_link *l, struct xlate_block *b)
{
	struct dbt_vm *vm = cpu->vm;
	const struct xlate_block *from = xlate_link_from(l);
	uint64_t phys = xlate_block_phys(b);

	if (vm->cfg.without & ENGINE_CHAINING)
		return;
	pthread_mutex_lock(&vm->lock);
	if (!l->to && !from->is_dead && !b->is_dead && !b->is_crossing &&
	    xlate_link_key(l) == xlate_block_key(b) && xlate_block_phys(from) >> 12 == phys >> 12 &&
	    xlate_link_off(l) == (phys & 0xfff))
		xlate_link_to(vm->xlate, l, b);
	pthread_mutex_unlock(&vm->lock);
}

/* A new block's links to blocks that are there, itself included. */
static void link_new(struct dbt_cpu *cpu, struct xlate_block *b)
{
	struct xlate_vm *x = cpu->vm->xlate;
	uint64_t page = xlate_block_phys(b) & ~0xfffULL;

	if (cpu->vm->cfg.without & ENGINE_CHAINING || cpu->xlate->check)
		return;
	for (unsigned i = 0; i < b->nlinks; i++) {
		struct xlate_link *l = &b->links[i];

		if (l->far || !l->site)
			continue;
		struct xlate_block *to =
			xlate_lookup(x, page | xlate_link_off(l), 0, xlate_link_key(l));

		if (to)
			xlate_link_to(x, l, to);
	}
}

/* No segment has this number: all links count. */
#define NO_SEGMENT UINT_MAX

/* Nothing jumps to @b any more, but for links of segment @dropped, which nobody will run. */
static void unlink_incoming(struct xlate_vm *x, struct xlate_block *b, unsigned dropped)
{
	while (b->in) {
		struct xlate_link *l = xlate_link_at(x, b->in);

		if (xlate_segment_of(b->in) != dropped)
			link_undo(x, l);
		b->in = l->next_in;
	}
}

static void drop_link(struct xlate_vm *x, struct xlate_link *l)
{
	uint32_t *pp = &xlate_block_at(x, l->to)->in, ref = xlate_ref(x, l);

	while (*pp != ref)
		pp = &xlate_link_at(x, *pp)->next_in;
	*pp = l->next_in;
	l->to = 0;
}

/* ---- pages -------------------------------------------------------------------------------- */

void xlate_page_release(struct dbt_vm *vm, uint64_t page)
{
	const struct xlate_vm *x = vm->xlate;

	if (!x->by_page[page] && !x->by_page2[page])
		atomic_fetch_and_explicit(&vm->ram->page_flags[page], (uint8_t)~RAM_PAGE_CODE,
					  memory_order_seq_cst);
}

static uint64_t page_of(const struct xlate_block *b)
{
	return xlate_block_phys(b) >> GUEST_PAGE_SHIFT;
}

/* The struct xlate_crossing of a block that is in a list of by_page2, or NULL. */
static struct xlate_crossing *second_of(struct xlate_block *b)
{
	struct xlate_crossing *c = xlate_block_crossing(b);

	return c && c->page2 != XLATE_NO_RAM_PAGE ? c : NULL;
}

static void leave_pages(struct dbt_vm *vm, struct xlate_block *b)
{
	struct xlate_vm *x = vm->xlate;
	struct xlate_crossing *c = second_of(b);
	uint32_t ref = xlate_ref(x, b), *pp = &x->by_page[page_of(b)];

	while (*pp != ref)
		pp = &xlate_block_at(x, *pp)->page_next;
	*pp = b->page_next;
	if (c) {
		for (pp = &x->by_page2[c->page2]; *pp != ref;)
			pp = &xlate_block_crossing(xlate_block_at(x, *pp))->page2_next;
		*pp = c->page2_next;
		xlate_page_release(vm, c->page2);
	}
	xlate_page_release(vm, page_of(b));
}

void xlate_block_enter(struct xlate_vm *x, struct xlate_block *b)
{
	struct xlate_crossing *c = second_of(b);
	uint32_t ref = xlate_ref(x, b);

	b->page_next = x->by_page[page_of(b)];
	x->by_page[page_of(b)] = ref;
	if (c) {
		c->page2_next = x->by_page2[c->page2];
		x->by_page2[c->page2] = ref;
	}
	insert(x, b);
}

void xlate_block_insert(struct dbt_cpu *cpu, struct xlate_block *b)
{
	xlate_block_enter(cpu->vm->xlate, b);
	link_new(cpu, b);
}

/* ---- dropping ----------------------------------------------------------------------------- */

/* jmp rel32 to @stub over the code at offset @at, 8-byte aligned, at once for all CPUs. */
static void patch_jump(struct xlate_vm *x, uint32_t at, const uint8_t *stub)
{
	uint8_t *w = x->cc.rw + at;
	uint64_t v;

	memcpy(&v, w, 8);
	uint32_t rel = (uint32_t)(stub - (x->cc.rx + at + 5));

	v = (v & ~0xffffffffffULL) | 0xe9 | (uint64_t)rel << 8;
	__atomic_store_n((uint64_t *)(void *)w, v, __ATOMIC_RELEASE);
}

static void block_kill(struct dbt_vm *vm, struct xlate_block *b)
{
	struct xlate_vm *x = vm->xlate;

	take_out(x, b);
	leave_pages(vm, b);
	unlink_incoming(x, b, NO_SEGMENT);
	for (unsigned i = 0; i < b->nlinks; i++)
		if (b->links[i].to)
			drop_link(x, &b->links[i]);
	b->is_dead = true;
	x->invalidations++;

	patch_jump(x, b->entry, x->exit_lookup); /* s.rip is exact there */
	if (b->landing)
		patch_jump(x, b->code + b->landing, x->ret_dead);
}

void dbt_code_written(struct dbt_vm *vm, uint64_t offset, uint64_t len)
{
	struct xlate_vm *x = vm->xlate;

	if (!len)
		return;
	pthread_mutex_lock(&vm->lock);
	x->smc_hits++;
	uint64_t last = (offset + len - 1) >> 12;

	for (uint64_t page = offset >> 12; page <= last; page++) {
		for (uint32_t ref = x->by_page[page]; ref;) {
			struct xlate_block *b = xlate_block_at(x, ref);
			uint64_t phys = xlate_block_phys(b);

			ref = b->page_next;
			if (phys < offset + len && phys + b->guest_len > offset)
				block_kill(vm, b);
		}
		for (uint32_t ref = x->by_page2[page]; ref;) {
			struct xlate_block *b = xlate_block_at(x, ref);
			const struct xlate_crossing *c = xlate_block_crossing(b);

			ref = c->page2_next;
			if (offset < (page << 12) + c->guest_len2)
				block_kill(vm, b);
		}
		xlate_page_release(vm, page);
	}
	pthread_mutex_unlock(&vm->lock);
}

/*
 * The lists that a block of a dropped segment is in, or has links in, are gone through once for all of that segment's:
 * some are long, and have many of them.
 */
static void filter_page(struct dbt_vm *vm, uint64_t page, unsigned dropped)
{
	struct xlate_vm *x = vm->xlate;

	for (uint32_t *pp = &x->by_page[page]; *pp;) {
		struct xlate_block *b = xlate_block_at(x, *pp);

		if (xlate_segment_of(*pp) == dropped) {
			b->is_dead = true;
			*pp = b->page_next;
		} else {
			pp = &b->page_next;
		}
	}
	xlate_page_release(vm, page);
}

static void filter_page2(struct dbt_vm *vm, uint64_t page, unsigned dropped)
{
	struct xlate_vm *x = vm->xlate;

	for (uint32_t *pp = &x->by_page2[page]; *pp;) {
		struct xlate_crossing *c = xlate_block_crossing(xlate_block_at(x, *pp));

		if (xlate_segment_of(*pp) == dropped)
			*pp = c->page2_next;
		else
			pp = &c->page2_next;
	}
	xlate_page_release(vm, page);
}

static void filter_incoming(struct xlate_vm *x, struct xlate_block *b, unsigned dropped)
{
	for (uint32_t *pp = &b->in; *pp;) {
		struct xlate_link *l = xlate_link_at(x, *pp);

		if (xlate_segment_of(*pp) == dropped) {
			l->to = 0;
			*pp = l->next_in;
		} else {
			pp = &l->next_in;
		}
	}
}

void xlate_blocks_drop(struct dbt_vm *vm, unsigned s)
{
	struct xlate_vm *x = vm->xlate;
	unsigned n = x->cc.seg[s].n;

	/* is_dead says from here on that the block is in no list of pages; dead ones before are in no list at all. */
	for (unsigned i = 0; i < n; i++) {
		struct xlate_block *b = xlate_cache_block(x, s, i);

		if (!b->is_dead)
			take_out(x, b);
	}
	for (unsigned i = 0; i < n; i++) {
		struct xlate_block *b = xlate_cache_block(x, s, i);
		const struct xlate_crossing *c = second_of(b);

		unlink_incoming(x, b, s);
		for (unsigned k = 0; k < b->nlinks; k++)
			if (b->links[k].to && xlate_segment_of(b->links[k].to) != s)
				filter_incoming(x, xlate_block_at(x, b->links[k].to), s);
		if (c)
			filter_page2(vm, c->page2, s);
		if (!b->is_dead)
			filter_page(vm, page_of(b), s);
	}
}

void xlate_blocks_clear(struct dbt_vm *vm)
{
	struct xlate_vm *x = vm->xlate;

	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		for (unsigned i = 0; i < x->cc.seg[s].n; i++) {
			struct xlate_block *b = xlate_cache_block(x, s, i);
			const struct xlate_crossing *c = second_of(b);

			x->by_page[page_of(b)] = 0;
			xlate_page_release(vm, page_of(b));
			if (c) {
				x->by_page2[c->page2] = 0;
				xlate_page_release(vm, c->page2);
			}
		}
	table_clear(&x->table);
}
