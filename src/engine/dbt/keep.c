/* SPDX-License-Identifier: Apache-2.0 */
/* Writing kept code: see keep.h. */
#include <errno.h>
#include <stdlib.h>

#include "engine/dbt/keep.h"

#define SLACK (2 * MIB) /* what may be translated between measuring and stopping */

bool keep_ident(const struct dbt_vm *vm, struct keep_ident *id)
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

uint8_t *keep_lay_out(struct keep_parts *p, uint8_t *at)
{
	p->names = (uint32_t *)(void *)at;
	p->colds = p->names + p->s.n;
	p->hot = at + 8 * (size_t)p->s.n;
	p->cold = p->hot + ALIGN_UP(p->s.hot, 8u);
	p->meta = p->cold + ALIGN_UP(p->s.cold, 8u);
	return p->meta + ALIGN_UP(p->s.meta, 8u);
}

const uint8_t *keep_map_end(struct xlate_block *b, const uint8_t *end)
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

/* The copy of the code at offset @at of the code cache. */
static uint8_t *code_in(const struct keep_parts *p, uint32_t at)
{
	return at < xlate_cold_at(0) ? p->hot + (at - xlate_hot_at(p->s.index))
				     : p->cold + (at - xlate_cold_at(p->s.index));
}

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
static unsigned choose(const struct xlate_vm *x, unsigned chosen[KEEP_SEGMENTS_MAX], size_t *bytes)
{
	unsigned n = 0;

	*bytes = 0;
	for (unsigned s = 0; s < XLATE_SEGMENTS && n < KEEP_SEGMENTS_MAX; s++) {
		const struct xlate_segment *g = &x->cc.seg[s];

		if (!g->born || !g->n)
			continue;
		chosen[n++] = s;
		*bytes += keep_part_bytes(&(struct keep_segment){
			.n = g->n, .hot = g->hot, .cold = g->cold, .meta = g->meta });
	}
	*bytes += sizeof(struct keep_head);
	return n;
}

/*
 * With the world stopped: the segment's bytes.  Blocks that are not kept get is_dead in the copy: where the cold part of the next one
 * begins is known by them.  Returns how many are kept.
 */
static unsigned copy_segment(struct dbt_vm *vm, const uint64_t *dirty, unsigned s,
			     struct keep_parts *p, uint8_t *at, uint8_t **end)
{
	const struct xlate_vm *x = vm->xlate;
	const struct xlate_segment *g = &x->cc.seg[s];
	uint32_t cold = 0;
	unsigned kept = 0;

	p->s = (struct keep_segment){ .index = s, .n = g->n, .hot = g->hot, .cold = g->cold, .meta = g->meta };
	*end = keep_lay_out(p, at);
	memcpy(p->hot, x->cc.rw + xlate_hot_at(s), g->hot);
	memcpy(p->cold, x->cc.rw + xlate_cold_at(s), g->cold);
	memcpy(p->meta, x->cc.meta + s * XLATE_META_BYTES, g->meta);
	for (unsigned i = 0; i < g->n; i++) {
		uint32_t ref = *xlate_cache_name(x, s, i);
		struct xlate_block *b = xlate_block_at(x, ref);

		p->names[i] = ref;
		p->colds[i] = cold;
		cold += b->cold_len;
		if (is_worth(vm, dirty, b))
			kept++;
		else
			keep_block(p, ref)->is_dead = true;
	}
	return kept;
}

static void put_rel(uint8_t *at, int32_t v)
{
	memcpy(at, &v, 4);
}

/* In the copy: no link is patched; those of a block that is kept to another still say so. */
static void clean_block(const struct keep_parts *const of[XLATE_SEGMENTS],
			const struct keep_parts *p, struct xlate_block *b)
{
	struct xlate_crossing *c = xlate_block_crossing(b);

	b->in = b->page_next = 0;
	if (c)
		c->page2_next = 0;
	for (unsigned i = 0; i < b->nlinks; i++) {
		struct xlate_link *l = &b->links[i];
		const struct keep_parts *to = l->to ? of[xlate_segment_of(l->to)] : NULL;

		l->next_in = 0;
		if (!l->to)
			continue;
		put_rel(code_in(p, l->site), l->stub);
		if (l->far)
			put_rel(code_in(p, l->site - ((uint32_t)xlate_link_far(l)->delta & 0xfff)),
				(int32_t)XLATE_NO_RAM_PAGE);
		if (b->is_dead || !to || keep_block(to, l->to)->is_dead)
			l->to = 0;
	}
	struct insn *in = keep_decoded(b, keep_map_end(b, p->meta + p->s.meta));

	for (unsigned i = 0; i < b->ndecoded; i++)
		in[i].desc = NULL;
}

static void clean(struct keep_parts *all, unsigned n)
{
	const struct keep_parts *of[XLATE_SEGMENTS] = { NULL };

	for (unsigned i = 0; i < n; i++)
		of[all[i].s.index] = &all[i];
	for (unsigned i = 0; i < n; i++)
		for (unsigned k = 0; k < all[i].s.n; k++)
			clean_block(of, &all[i], keep_block(&all[i], all[i].names[k]));
}

static unsigned translations(const struct dbt_vm *vm)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < vm->ncpus; i++)
		n += vm->cpus[i] ? vm->cpus[i]->xlate->translations : 0;
	return (unsigned)MIN(n, (uint64_t)UINT32_MAX);
}

int xlate_code_save(struct dbt_vm *vm, const uint64_t *dirty, struct engine_code *out, struct error *err)
{
	struct xlate_vm *x = vm->xlate;
	unsigned chosen[KEEP_SEGMENTS_MAX], n;
	struct keep_parts all[KEEP_SEGMENTS_MAX];
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
	if (!keep_ident(vm, &head.ident))
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
	uint8_t *at = data + sizeof(struct keep_head), *end;

	n = 0;
	for (unsigned i = 0; i < nchosen; i++)
		if (copy_segment(vm, dirty, chosen[i], &all[n], at, &end)) {
			at = end;
			n++;
		}
	pthread_mutex_unlock(&vm->lock);
	dbt_exclusive_end_foreign(vm);

	clean(all, n);
	head.nsegments = n;
	free(out->bytes.data);
	*out = (struct engine_code){ .nparts = n + 1, .len = { sizeof(head) } };
	for (unsigned i = 0; i < n; i++) {
		head.nblocks += all[i].s.n;
		head.segments[i] = all[i].s;
		out->len[i + 1] = (uint32_t)keep_part_bytes(&all[i].s);
	}
	memcpy(data, &head, sizeof(head));
	out->bytes = (struct bytes){ .data = data, .len = (size_t)(at - data), .cap = room };
	return 0;
}
