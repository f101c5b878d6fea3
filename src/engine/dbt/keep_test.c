/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Translated code that another VM takes over: nothing is translated again, the guest does the same, what has changed is left out, and
 * bytes that are damaged or of something else change nothing.
 *
 * The guest is a page of 64-bit code after the other, in long mode on one 1 GiB identity page.
 */
#include "base/unit.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"

enum {
	PML4 = 0x2000,
	PDPT = 0x3000,
	CODE = 0x10000,
	NPAGES = 32,
	STEP = 64, /* a block begins every so many bytes */
	NBLOCKS = NPAGES * 4096 / STEP,
	OUT = CODE + NPAGES * 4096, /* hlt */
	SUB = OUT + 0x1000 - 2, /* a function whose second instruction goes on in the next page */
	LOOP = OUT + 0x2000,
	EACH = 11900, /* the smallest records that a segment has room for */
};

struct world {
	struct guest_ram ram;
	struct cpu_model model;
	struct engine_vm *vm;
	struct engine_vcpu *vcpu;
	struct dbt_cpu *cpu;
	struct xlate_vm *x;
};

static struct error err;

static int on_exit_(void *ctx, struct vcpu_exit *exit)
{
	return 0;
}

static int intr_ack(void *ctx)
{
	return -1;
}

static uint64_t place(unsigned block)
{
	return CODE + (uint64_t)block * STEP;
}

/* Block @i: dec ecx; jz OUT; cpuid (interpreted); call SUB; rdi[rcx & 7]; jmp to block @to. */
static void write_block(struct world *w, unsigned i, unsigned to)
{
	uint64_t at = place(i);
	uint8_t code[] = { 0xff, 0xc9, 0x0f, 0x84, 0,	 0, 0, 0, 0x51, 0x53, 0x0f,
			   0xa2, 0x5b, 0x59, 0xe8, 0,	 0, 0, 0, 0x48, 0x03, 0x17,
			   0x48, 0x01, 0x57, 0x08, 0xe9, 0, 0, 0, 0 };
	uint32_t out = (uint32_t)(OUT - (at + 8)), sub = (uint32_t)(SUB - (at + 19)),
		 rel = (uint32_t)(place(to) - (at + sizeof(code)));

	memcpy(code + 4, &out, 4);
	memcpy(code + 15, &sub, 4);
	memcpy(code + sizeof(code) - 4, &rel, 4);
	memcpy(w->ram.base + at, code, sizeof(code));
}

static void write_guest(struct world *w)
{
	/* inc rax; add rbx, 12345678H (over the page's end); ret */
	static const uint8_t sub[] = { 0x90, 0x48, 0x81, 0xc3, 0x78, 0x56, 0x34, 0x12, 0xc3 };
	/* again: add rbx, [rsi]; add rsi, 8; dec rdx; jnz again; hlt */
	static const uint8_t loop[] = { 0x48, 0x03, 0x1e, 0x48, 0x83, 0xc6, 0x08,
					0x48, 0xff, 0xca, 0x75, 0xf4, 0xf4 };

	for (unsigned i = 0; i < NBLOCKS; i++)
		write_block(w, i, (i * 5 + 1) % NBLOCKS); /* goes by all of them */
	w->ram.base[OUT] = 0xf4;
	memcpy(w->ram.base + SUB, sub, sizeof(sub));
	memcpy(w->ram.base + LOOP, loop, sizeof(loop));
	memcpy(w->ram.base + PML4, &(uint64_t){ PDPT | 7 }, 8);
	memcpy(w->ram.base + PDPT, &(uint64_t){ 0x87 }, 8);
}

static void open_world(struct world *w, const struct engine_config *like)
{
	struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = intr_ack };
	struct engine_config cfg = *like;
	struct x86_state s;

	*w = (struct world){ 0 };
	cfg.ram = &w->ram;
	cfg.model = &w->model;
	cfg.vcpus = 1;
	cfg.tsc_khz = 2000000; /* measured, it is another one now and then, and CPUID tells it */
	assert_int_equal(ram_create(&w->ram, 2 * MIB, 0, &err), 0);
	assert_int_equal(cpu_model_init(&w->model, "host", 1, &err), 0);
	write_guest(w);
	assert_int_equal(engine_dbt.vm_create(&w->vm, &cfg, &err), 0);
	assert_int_equal(engine_dbt.vcpu_create(&w->vcpu, w->vm, 0, &up, &err), 0);
	w->cpu = (struct dbt_cpu *)(void *)w->vcpu;
	w->x = w->cpu->vm->xlate;
	engine_dbt.get_state(w->vcpu, &s);
	s.cr3 = PML4;
	s.cr4 = X86_CR4_PAE;
	s.cr0 |= X86_CR0_PE | X86_CR0_PG | X86_CR0_WP;
	s.efer = X86_EFER_LME | X86_EFER_LMA;
	s.seg[SEG_CS] = (struct x86_seg){ .selector = 8, .limit = 0xffffffff, .attr = 0xa09b };
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			s.seg[i] = (struct x86_seg){ .selector = 16, .limit = 0xffffffff, .attr = 0xc093 };
	assert_int_equal(engine_dbt.set_state(w->vcpu, &s, &err), 0);
	assert_int_equal(engine_dbt.dirty_start(w->vm, &err), 0);
}

static void close_world(struct world *w)
{
	thunk_thread_finish();
	engine_dbt.vcpu_destroy(w->vcpu);
	engine_dbt.vm_destroy(w->vm);
	ram_destroy(&w->ram);
}

/* @n blocks from block @first on, then the loop; the sum of what was computed. */
static uint64_t run(struct world *w, unsigned first, unsigned n)
{
	uint64_t *gpr = w->cpu->s.gpr;

	assert_int_equal(thunk_thread_init(w->cpu, &err), 0);
	for (unsigned i = 0; i < 16; i++)
		gpr[i] = 0x1111111111111111ULL * i;
	gpr[R_RCX] = n;
	gpr[R_RDI] = 0x8000;
	gpr[R_RSP] = 0x7000;
	w->cpu->s.rip = place(first);
	w->cpu->s.mp_state = MP_RUNNABLE;
	assert_int_equal(engine_dbt.vcpu_run(w->vcpu, &err), RUN_HALTED);
	assert_int_equal(w->cpu->s.rip, OUT + 1);
	gpr[R_RSI] = CODE;
	gpr[R_RDX] = 3000;
	w->cpu->s.rip = LOOP;
	w->cpu->s.mp_state = MP_RUNNABLE;
	assert_int_equal(engine_dbt.vcpu_run(w->vcpu, &err), RUN_HALTED);
	uint64_t sum = 0;

	for (unsigned i = 0; i < 16; i++)
		sum = sum * 31 + gpr[i];
	return sum;
}

static uint64_t translations(const struct world *w)
{
	return w->cpu->xlate->translations;
}

static unsigned links(const struct world *w)
{
	unsigned n = 0;

	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		for (unsigned i = 0; i < w->x->cc.seg[s].n; i++) {
			struct xlate_block *b = xlate_cache_block(w->x, s, i);

			for (unsigned k = 0; !b->is_dead && k < b->nlinks; k++)
				n += b->links[k].to != 0;
		}
	return n;
}

static void save(struct world *w, struct engine_code *out)
{
	assert_int_equal(engine_dbt.code_save(w->vm, NULL, out, &err), 0);
}

/* engine_code_source.read; each part is memory of its own: what is read behind it is noticed. */
static int read_part(void *arg, unsigned i, uint8_t *to, struct error *e)
{
	const struct engine_code *c = arg;
	size_t at = 0;

	for (unsigned k = 0; k < i; k++)
		at += c->len[k];
	if (at + c->len[i] > c->bytes.len)
		return error_set(e, -EINVAL, "cut off");
	memcpy(to, c->bytes.data + at, c->len[i]);
	return 0;
}

static struct engine_code_source source(const struct engine_code *c)
{
	return (struct engine_code_source){ c->nparts, c->len, read_part, (void *)(uintptr_t)c };
}

static int load(struct world *w, const struct engine_code *c)
{
	const struct engine_code_source in = source(c);

	return engine_dbt.code_load(w->vm, &in, NULL, &err);
}

/* All @nblocks of them. */
static void load_all(struct world *w, const struct engine_code *b, uint64_t nblocks)
{
	assert_int_equal(load(w, b), nblocks);
	assert_int_equal(w->x->table.nblocks, nblocks);
}

static void check_same(const struct engine_config *cfg)
{
	struct world a, b;
	struct engine_code kept = { 0 };

	open_world(&a, cfg);
	uint64_t sum = run(&a, 3, NBLOCKS);

	assert_int_equal(run(&a, 3, 40), run(&a, 3, 40));
	save(&a, &kept);
	unsigned linked = links(&a);
	uint64_t nblocks = a.x->table.nblocks;

	close_world(&a);
	open_world(&b, cfg);
	load_all(&b, &kept, nblocks);
	assert_int_equal(links(&b), linked);
	assert_int_equal(run(&b, 3, NBLOCKS), sum);
	/* The place of two of them is chosen by where the first one began. */
	assert_in_range(translations(&b), 0, 2);
	/* The page of a block is written: it is made anew, of the new bytes. */
	assert_true(b.ram.page_flags[place(7) >> 12] & RAM_PAGE_CODE);
	b.ram.base[place(3)] = 0x90;
	b.ram.base[place(3) + 1] = 0x90;
	ram_note_write(&b.ram, place(3), 2);
	assert_true(run(&b, 3, 5) != 0);
	assert_true(translations(&b) > 0);
	close_world(&b);
	bytes_free(&kept.bytes);
}

static void test_same(void **state)
{
	check_same(&(struct engine_config){ 0 });
	check_same(&(struct engine_config){ .is_strict = true });
	check_same(&(struct engine_config){ .without = ENGINE_RETURNS | ENGINE_LOOPS });
	check_same(&(struct engine_config){ .without = ENGINE_CHAINING });
}

/* Every block that was taken over is executed both ways. */
static void test_lockstep(void **state)
{
	const struct engine_config cfg = { .check_every = 1 };
	struct engine_code kept = { 0 };
	struct world a, b;

	open_world(&a, &cfg);
	uint64_t sum = run(&a, 0, 600);

	save(&a, &kept);
	close_world(&a);
	open_world(&b, &cfg);
	assert_true(load(&b, &kept) > 0);
	assert_int_equal(run(&b, 0, 600), sum);
	assert_in_range(translations(&b), 0, 2);
	assert_true(b.cpu->xlate->compared > 1000);
	close_world(&b);
	bytes_free(&kept.bytes);
}

/* A page that has changed since, and one that the caller knows of, are left out; links to their blocks, too. */
static void test_changed_pages(void **state)
{
	const struct engine_config cfg = { .is_strict = true };
	uint64_t dirty[2 * MIB / 4096 / 64] = { 0 };
	struct engine_code kept = { 0 };
	struct world a, b;

	open_world(&a, &cfg);
	run(&a, 0, NBLOCKS);
	ram_note_write(&a.ram, CODE + 0x1000 + STEP - 2, 1); /* no block is there */
	dirty[(CODE + 0x2000) >> 18] |= 1ULL << ((CODE + 0x2000) >> 12) % 64;
	assert_int_equal(engine_dbt.code_save(a.vm, dirty, &kept, &err), 0);
	close_world(&a);
	open_world(&b, &cfg);
	assert_true(load(&b, &kept) > 0);
	assert_int_equal(b.x->by_page[(CODE + 0x1000) >> 12], 0);
	assert_int_equal(b.x->by_page[(CODE + 0x2000) >> 12], 0);
	assert_int_not_equal(b.x->by_page[CODE >> 12], 0);
	run(&b, 0, NBLOCKS);
	assert_in_range(translations(&b), 4096 / STEP, 8 * 4096 / STEP);
	close_world(&b);
	bytes_free(&kept.bytes);
}

/* It is worth to be kept again if something came to it, and only before anything has run. */
static void test_again(void **state)
{
	const struct engine_config cfg = { 0 };
	struct engine_code kept = { 0 }, more = { 0 };
	struct world a, b;

	open_world(&a, &cfg);
	run(&a, 0, 50);
	save(&a, &kept);
	assert_int_equal(load(&a, &kept), -EBUSY);
	close_world(&a);
	open_world(&b, &cfg);
	assert_true(load(&b, &kept) > 0);
	assert_int_equal(load(&b, &kept), -EBUSY);
	run(&b, 0, 50);
	assert_int_equal(engine_dbt.code_save(b.vm, NULL, &more, &err), -EALREADY);
	run(&b, 0, NBLOCKS);
	save(&b, &more);
	assert_true(more.bytes.len > kept.bytes.len);
	engine_dbt.dirty_stop(b.vm);
	assert_int_equal(engine_dbt.code_save(b.vm, NULL, &more, &err), -EINVAL);
	close_world(&b);
	bytes_free(&kept.bytes);
	bytes_free(&more.bytes);
}

static void test_of_something_else(void **state)
{
	static const struct engine_config others[] = { { .is_strict = true },
						       { .is_counting = true },
						       { .without = ENGINE_RETURNS },
						       { .without = ENGINE_CODE_ROOM } };
	struct engine_code kept = { 0 };
	struct world a, b;

	open_world(&a, &(struct engine_config){ 0 });
	run(&a, 0, 50);
	save(&a, &kept);
	close_world(&a);
	for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
		open_world(&b, &others[i]);
		assert_int_equal(load(&b, &kept), -ESTALE);
		assert_int_equal(b.x->table.nblocks, 0);
		close_world(&b);
	}
	open_world(&b, &(struct engine_config){ 0 });
	b.cpu->vm->model.has[CPUF_COUNT - 1] ^= true;
	assert_int_equal(load(&b, &kept), -ESTALE);
	b.cpu->vm->model.has[CPUF_COUNT - 1] ^= true;
	for (unsigned i = 0; i < 20; i++) { /* of another build */
		kept.bytes.data[i] ^= 1;
		assert_int_equal(load(&b, &kept), -ESTALE);
		kept.bytes.data[i] ^= 1;
	}
	assert_true(load(&b, &kept) > 0);
	close_world(&b);
	bytes_free(&kept.bytes);
}

/* Loops leave after each round where blocks are compared, and only there. */
static void test_of_lockstep(void **state)
{
	static const struct engine_config ways[] = { { .is_strict = true },
						     { .is_strict = true, .check_every = 1 } };

	for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
		struct engine_code kept = { 0 };
		struct world a, b;

		open_world(&a, &ways[i]);
		run(&a, 0, 50);
		save(&a, &kept);
		close_world(&a);
		open_world(&b, &ways[!i]);
		assert_int_equal(load(&b, &kept), -ESTALE);
		assert_int_equal(b.x->table.nblocks, 0);
		close_world(&b);
		bytes_free(&kept.bytes);
	}
}

/* Who was loaded once with dead blocks in between is kept again, and loaded again, whole. */
static void test_kept_again(void **state)
{
	const struct engine_config cfg = { .is_strict = true };
	struct engine_code kept = { 0 }, more = { 0 };
	struct world a, b, c;

	open_world(&a, &cfg);
	run(&a, 0, NBLOCKS / 2);
	ram_note_write(&a.ram, CODE + 0x1000 + STEP - 2, 1); /* no block is there, but others are in the page */
	ram_note_write(&a.ram, place(3), 1);
	save(&a, &kept);
	close_world(&a);
	open_world(&b, &cfg);
	assert_true(load(&b, &kept) > 0);
	uint64_t sum = run(&b, 0, NBLOCKS);

	save(&b, &more);
	uint64_t nblocks = b.x->table.nblocks;

	close_world(&b);
	open_world(&c, &cfg);
	load_all(&c, &more, nblocks);
	assert_int_equal(run(&c, 0, NBLOCKS), sum);
	assert_in_range(translations(&c), 0, 2);
	close_world(&c);
	bytes_free(&kept.bytes);
	bytes_free(&more.bytes);
}

/* Every block that lives is found, and by its name alone. */
static void check_found(const struct world *w)
{
	unsigned n = 0;

	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		for (unsigned i = 0; i < w->x->cc.seg[s].n; i++) {
			struct xlate_block *b = xlate_cache_block(w->x, s, i);

			if (b->is_dead)
				continue;
			n++;
			assert_ptr_equal(xlate_lookup(w->x, xlate_block_phys(b), xlate_phys2(b),
						      xlate_block_key(b)),
					 b);
		}
	assert_int_equal(n, w->x->table.nblocks);
	assert_int_equal(w->x->cc.nreserved, 0);
}

struct beside {
	struct world *w;
	const struct engine_code *kept;
	_Atomic bool stop;
	struct error why;
	int result;
};

static void *load_main(void *arg)
{
	struct beside *t = arg;

	const struct engine_code_source in = source(t->kept);

	t->result = engine_dbt.code_load(t->w->vm, &in, &t->stop, &t->why);
	return NULL;
}

static void keep_all(const struct engine_config *cfg, struct engine_code *kept, uint64_t *sum)
{
	struct world a;

	open_world(&a, cfg);
	*sum = run(&a, 3, NBLOCKS);
	save(&a, kept);
	close_world(&a);
}

/* The guest runs meanwhile: what it has translated by then stays, and whatever it comes to does the same. */
static void test_beside(void **state)
{
	static const struct engine_config ways[] = { { .is_strict = true }, { 0 } };

	for (unsigned i = 0; i < 6; i++) {
		struct engine_code kept = { 0 };
		struct world b;
		struct beside t = { .w = &b, .kept = &kept };
		pthread_t thread;
		uint64_t sum;

		keep_all(&ways[i % 2], &kept, &sum);
		open_world(&b, &ways[i % 2]);
		if (i >= 2) /* else something may have been translated where it was */
			engine_dbt.code_expect(b.vm, kept.bytes.data, kept.len[0]);
		assert_int_equal(pthread_create(&thread, NULL, load_main, &t), 0);
		for (unsigned k = 0; k < 5; k++)
			assert_int_equal(run(&b, 3, NBLOCKS), sum);
		pthread_join(thread, NULL);
		assert_int_equal(run(&b, 3, NBLOCKS), sum);
		assert_true(t.result >= 0 || (i < 2 && t.result == -EBUSY));
		assert_true(b.x->loaded == (t.result >= 0 ? (uint64_t)t.result : 0));
		check_found(&b);
		close_world(&b);
		bytes_free(&kept.bytes);
	}
}

/* Pages are written meanwhile, and the log is collected: no block is there afterwards whose bytes were written. */
static void test_written_beside(void **state)
{
	enum { STOPPED, COLLECTED, WRITTEN, WAYS };

	for (unsigned way = 0; way < WAYS; way++) {
		uint64_t dirty[2 * MIB / 4096 / 64], sum;
		struct engine_code kept = { 0 };
		struct world b;
		struct beside t = { .w = &b, .kept = &kept };
		pthread_t thread;

		keep_all(&(struct engine_config){ 0 }, &kept, &sum);
		open_world(&b, &(struct engine_config){ 0 });
		engine_dbt.code_expect(b.vm, kept.bytes.data, kept.len[0]);
		assert_int_equal(pthread_create(&thread, NULL, load_main, &t), 0);
		for (unsigned i = 0; i < NBLOCKS; i += 3) {
			ram_note_write(&b.ram, place(i), 1);
			if (way == COLLECTED && i % 64 == 0)
				assert_int_equal(engine_dbt.dirty_collect(b.vm, dirty, &err), 0);
		}
		t.stop = way == STOPPED;
		pthread_join(thread, NULL);
		assert_true(t.result >= 0 || t.result == -ECANCELED || way == COLLECTED);
		for (unsigned i = 0; i < NBLOCKS; i += 3)
			for (uint32_t ref = b.x->by_page[place(i) >> 12]; ref;) {
				const struct xlate_block *block = xlate_block_at(b.x, ref);

				ref = block->page_next;
				assert_true(xlate_block_phys(block) != place(i));
			}
		check_found(&b);
		assert_int_equal(run(&b, 3, NBLOCKS), sum);
		check_found(&b);
		close_world(&b);
		bytes_free(&kept.bytes);
	}
}

/* Pages that were collected are tracked again: which of them have changed is not known any more. */
static void test_collected_before(void **state)
{
	uint64_t dirty[2 * MIB / 4096 / 64], sum;
	struct engine_code kept = { 0 };
	struct world b;

	keep_all(&(struct engine_config){ 0 }, &kept, &sum);
	open_world(&b, &(struct engine_config){ 0 });
	engine_dbt.code_expect(b.vm, kept.bytes.data, kept.len[0]);
	assert_true(b.x->cc.nreserved > 0);
	assert_int_equal(engine_dbt.dirty_collect(b.vm, dirty, &err), 0);
	assert_int_equal(load(&b, &kept), -EINVAL);
	assert_int_equal(b.x->cc.nreserved, 0);
	engine_dbt.dirty_stop(b.vm);
	assert_int_equal(load(&b, &kept), -EINVAL);
	assert_int_equal(engine_dbt.dirty_start(b.vm, &err), 0);
	assert_int_equal(load(&b, &kept), -EINVAL);
	assert_int_equal(run(&b, 3, NBLOCKS), sum);
	close_world(&b);
	bytes_free(&kept.bytes);
}

/* What comes may say anything of where it goes; the guest has room, and what is not loaded after all is to be had again. */
static void test_expected(void **state)
{
	struct engine_code kept = { 0 };
	struct world b;
	uint64_t sum;

	keep_all(&(struct engine_config){ 0 }, &kept, &sum);
	open_world(&b, &(struct engine_config){ 0 });
	size_t at = xlate_code_ident();

	memcpy(kept.bytes.data + at, &(uint32_t){ 48 }, 4);
	memset(kept.bytes.data + at + 4, 0xff, 4);
	for (uint32_t i = 0; i < 48; i++)
		memcpy(kept.bytes.data + at + 8 + 24 * i, &(uint32_t){ i == 47 ? 1000 : i }, 4);
	for (size_t len = 0; len < 4096; len += 100)
		engine_dbt.code_expect(b.vm, kept.bytes.data, len);
	assert_int_equal(b.x->cc.nreserved, 47);
	assert_int_equal(run(&b, 3, NBLOCKS), sum);
	assert_true(b.x->cc.now >= 47);
	assert_int_equal(load(&b, &kept), -EINVAL);
	assert_int_equal(b.x->cc.nreserved, 0);
	assert_int_equal(run(&b, 3, NBLOCKS), sum);
	check_found(&b);
	close_world(&b);
	bytes_free(&kept.bytes);
}

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	return *s ^= *s << 17;
}

/* More blocks than the table of blocks has room for: each is well-formed, and the smallest there can be. */
static void test_too_many(void **state)
{
	enum {
		NSEGMENTS = 48,
		META = 8 + EACH * (unsigned)sizeof(struct xlate_block),
		HOT = 8 * EACH
	};
	struct engine_code kept = { 0 }, all = { .nparts = NSEGMENTS + 1 };
	struct bytes b = { 0 };
	struct world a;

	open_world(&a, &(struct engine_config){ 0 });
	run(&a, 0, 50);
	uint32_t key = xlate_block_key(xlate_cache_block(a.x, 0, 0));
	save(&a, &kept);
	xlate_flush(a.cpu->vm);
	bytes_put(&b, kept.bytes.data, xlate_code_ident());
	bytes_put_u32(&b, NSEGMENTS);
	bytes_put_u32(&b, NSEGMENTS * EACH);
	for (uint32_t i = 0; i < NSEGMENTS; i++) {
		const uint32_t segment[6] = { i, EACH, HOT, 0, META, 0 };

		bytes_put(&b, segment, sizeof(segment));
	}
	all.len[0] = (uint32_t)b.len;
	size_t end = b.len;

	for (uint32_t i = 0; i < NSEGMENTS; i++) {
		for (uint32_t k = 0; k < EACH; k++)
			bytes_put_u32(&b, i * (uint32_t)XLATE_META_BYTES + 8 +
						  k * (uint32_t)sizeof(struct xlate_block));
		for (uint32_t k = 0; k < EACH + HOT / 4 + 2; k++)
			bytes_put_u32(&b, 0); /* their cold parts, their code, the place of record 0 */
		for (uint32_t k = 0; k < EACH; k++) {
			const struct xlate_block block = { .tag = xlate_tag(2 * (i * EACH + k), key),
							   .code = xlate_hot_at(i) + 8 * k,
							   .entry = xlate_hot_at(i) + 8 * k,
							   .code_len = 8,
							   .guest_len = 1 };

			bytes_put(&b, &block, sizeof(block));
		}
		all.len[i + 1] = (uint32_t)(b.len - end);
		end = b.len;
	}
	assert_false(b.is_failed);
	all.bytes = b;
	assert_int_equal(load(&a, &all), -EINVAL);
	assert_int_equal(a.x->table.nblocks, 0);
	close_world(&a);
	bytes_free(&kept.bytes);
	bytes_free(&b);
}

/* Whatever the bytes are, what is there afterwards is whole, and can be dropped again. */
static void test_damaged(void **state)
{
	struct engine_code kept = { 0 };
	struct world a, b;
	uint64_t seed = 88172645463325252ULL;
	unsigned refused = 0;

	open_world(&a, &(struct engine_config){ .is_strict = true });
	run(&a, 0, 60);
	save(&a, &kept);
	close_world(&a);
	open_world(&b, &(struct engine_config){ .is_strict = true });
	size_t whole = kept.bytes.len;

	/* What there is of it may have been taken over by the time that its end is missed. */
	for (size_t len = 0; len < whole; len += 1 + len / 64) {
		kept.bytes.len = len;
		assert_int_equal(load(&b, &kept), -EINVAL);
		xlate_flush(b.cpu->vm);
	}
	kept.bytes.len = whole;
	for (unsigned part = 0; part < kept.nparts; part++)
		for (int by = -8; by <= 8; by += 16) {
			kept.len[part] += (uint32_t)by;
			assert_int_equal(load(&b, &kept), -EINVAL);
			kept.len[part] -= (uint32_t)by;
			xlate_flush(b.cpu->vm);
		}
	for (unsigned n = 0; n <= ENGINE_CODE_PARTS; n++) {
		struct engine_code other = kept;

		other.nparts = n;
		assert_true(n == kept.nparts || load(&b, &other) == -EINVAL);
	}
	for (unsigned i = 0; i < 3000; i++) {
		size_t at = next_random(&seed) % whole;
		uint8_t old = kept.bytes.data[at];

		kept.bytes.data[at] ^= 1u << (i % 8);
		int r = load(&b, &kept);

		kept.bytes.data[at] = old;
		refused += r < 0;
		assert_int_equal(b.x->verify_failures, 0);
		check_found(&b);
		xlate_flush(b.cpu->vm);
	}
	assert_true(refused > 300);
	assert_true(load(&b, &kept) > 0);
	close_world(&b);
	bytes_free(&kept.bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same),
		cmocka_unit_test(test_lockstep),
		cmocka_unit_test(test_changed_pages),
		cmocka_unit_test(test_again),
		cmocka_unit_test(test_of_something_else),
		cmocka_unit_test(test_of_lockstep),
		cmocka_unit_test(test_kept_again),
		cmocka_unit_test(test_beside),
		cmocka_unit_test(test_written_beside),
		cmocka_unit_test(test_collected_before),
		cmocka_unit_test(test_expected),
		cmocka_unit_test(test_too_many),
		cmocka_unit_test(test_damaged),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
