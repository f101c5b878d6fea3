/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments of the code cache are filled, emptied and filled again, and nothing of what was dropped is left anywhere.  The
 * guest is a page of 64-bit code after the other, in long mode on one 1 GiB identity page.
 */
#include "base/unit.h"

#include <string.h>

#include "engine/dbt/thunk.h"
#include "engine/dbt/xlate.h"

enum {
	PML4 = 0x2000,
	PDPT = 0x3000,
	CODE = 0x10000,
	NPAGES = 128,
	STEP = 64, /* a block begins every so many bytes */
	NBLOCKS = NPAGES * 4096 / STEP,
	OUT = CODE + NPAGES * 4096, /* hlt */
};

static struct guest_ram ram;
static struct cpu_model model;
static struct engine_vm *vm;
static struct engine_vcpu *vcpu;
static struct dbt_cpu *cpu;
static struct xlate_vm *x;

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

/* Block @i: dec ecx; jz OUT; jmp to block @to. */
static void write_block(unsigned i, unsigned to)
{
	uint8_t code[13] = { 0xff, 0xc9, 0x0f, 0x84 };
	uint64_t at = place(i);
	uint32_t out = (uint32_t)(OUT - (at + 8)), rel = (uint32_t)(place(to) - (at + 13));

	memcpy(code + 4, &out, 4);
	code[8] = 0xe9;
	memcpy(code + 9, &rel, 4);
	memcpy(ram.base + at, code, sizeof(code));
}

static int setup(void **state)
{
	struct vcpu_up up = { .on_exit = on_exit_, .intr_ack = intr_ack };
	struct engine_config cfg = { .ram = &ram, .model = &model, .vcpus = 1, .without = ENGINE_CODE_ROOM };
	struct x86_state s;
	struct error err = { "" };

	if (ram_create(&ram, 2 * MIB, 0, &err) || cpu_model_init(&model, "host", 1, &err) ||
	    engine_dbt.vm_create(&vm, &cfg, &err) || engine_dbt.vcpu_create(&vcpu, vm, 0, &up, &err)) {
		print_error("%s\n", err.text);
		return -1;
	}
	cpu = (struct dbt_cpu *)(void *)vcpu;
	x = cpu->vm->xlate;
	for (unsigned i = 0; i < NBLOCKS; i++)
		write_block(i, (i * 5 + 1) % NBLOCKS); /* goes by all of them */
	ram.base[OUT] = 0xf4;
	memcpy(ram.base + PML4, &(uint64_t){ PDPT | 7 }, 8);
	memcpy(ram.base + PDPT, &(uint64_t){ 0x87 }, 8);
	engine_dbt.get_state(vcpu, &s);
	s.cr3 = PML4;
	s.cr4 = X86_CR4_PAE;
	s.cr0 |= X86_CR0_PE | X86_CR0_PG | X86_CR0_WP;
	s.efer = X86_EFER_LME | X86_EFER_LMA;
	s.seg[SEG_CS] = (struct x86_seg){ .selector = 8, .limit = 0xffffffff, .attr = 0xa09b };
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			s.seg[i] = (struct x86_seg){ .selector = 16, .limit = 0xffffffff, .attr = 0xc093 };
	if (engine_dbt.set_state(vcpu, &s, &err) || thunk_thread_init(cpu, &err)) {
		print_error("%s\n", err.text);
		return -1;
	}
	return 0;
}

static int teardown(void **state)
{
	engine_dbt.vcpu_destroy(vcpu);
	engine_dbt.vm_destroy(vm);
	ram_destroy(&ram);
	return 0;
}

/* Through @n blocks from block @first on, whatever was translated before. */
static void run(unsigned first, unsigned n)
{
	cpu->s.rip = place(first);
	cpu->s.gpr[R_RCX] = n;
	cpu->s.mp_state = MP_RUNNABLE;
	assert_int_equal(engine_dbt.vcpu_run(vcpu, NULL), RUN_HALTED);
	assert_int_equal(cpu->s.rip, OUT + 1);
	assert_int_equal(cpu->s.gpr[R_RCX], 0);
}

static bool is_live(const struct xlate_block *b)
{
	uint32_t ref = xlate_ref(x, b);
	unsigned s = xlate_segment_of(ref);

	for (unsigned i = 0; s < XLATE_SEGMENTS && i < x->cc.seg[s].n; i++)
		if (xlate_cache_block(x, s, i) == b)
			return !b->is_dead;
	return false;
}

static unsigned list_len(uint32_t ref, bool of_links)
{
	unsigned n = 0;

	for (; ref; n++)
		ref = of_links ? xlate_link_at(x, ref)->next_in : xlate_block_at(x, ref)->page_next;
	return n;
}

static struct xlate_block *entered_at(const uint8_t *code)
{
	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		for (unsigned i = 0; i < x->cc.seg[s].n; i++)
			if (xlate_far_entry(x, xlate_cache_block(x, s, i)) == code)
				return xlate_cache_block(x, s, i);
	return NULL;
}

/* Everything that names a block names one that is there, and each is where it can be found.  How many links there are. */
static unsigned check_tables(void)
{
	unsigned nlive = 0, nlisted = 0, nlinked = 0, nincoming = 0;

	for (unsigned s = 0; s < XLATE_SEGMENTS; s++)
		for (unsigned i = 0; i < x->cc.seg[s].n; i++) {
			struct xlate_block *b = xlate_cache_block(x, s, i);

			if (b->is_dead)
				continue;
			nlive++;
			assert_ptr_equal(xlate_lookup(x, xlate_block_phys(b), 0, xlate_block_key(b)), b);
			assert_ptr_equal(xlate_cache_find(x, xlate_code(x, b)), b);
			assert_ptr_equal(xlate_cache_find(x, xlate_code(x, b) + b->code_len - 1), b);
			assert_true(ram.page_flags[xlate_block_phys(b) >> 12] & RAM_PAGE_CODE);
			nincoming += list_len(b->in, true);
			for (unsigned k = 0; k < b->nlinks; k++) {
				struct xlate_link *l = &b->links[k];

				assert_ptr_equal(xlate_link_from(l), b);
				if (!l->to)
					continue;
				nlinked++;
				assert_true(is_live(xlate_block_at(x, l->to)));
			}
		}
	for (uint64_t page = 0; page < ram.size_bytes >> 12; page++)
		nlisted += list_len(x->by_page[page], false);
	assert_int_equal(x->table.nblocks, nlive);
	assert_int_equal(nlisted, nlive);
	assert_int_equal(nincoming, nlinked);
	for (unsigned i = 0; i < DBT_JC_SIZE; i++)
		if (cpu->jc_neg[i]) { /* a block whose bytes were written has an entry that leaves */
			struct xlate_block *b = entered_at(cpu->jc_code[i]);

			assert_non_null(b);
			assert_true(b->is_dead || xlate_block_phys(b) >= CODE);
		}
	return nlinked;
}

static void test_nothing_is_left(void **state)
{
	uint64_t dropped = x->evictions;

	for (unsigned i = 0; i < 40; i++) {
		run(i * 97 % NBLOCKS, 100 + i * 10);
		check_tables();
		assert_in_range(x->cc.nsegs, 1, x->cc.limit);
	}
	run(0, 2 * NBLOCKS);
	for (unsigned i = 0; i < 4; i++) /* the same few: they get linked */
		run(0, 20);
	assert_true(check_tables() > 20);
	assert_true(x->evictions > dropped + 40);
	assert_true(x->translated_again > NBLOCKS / 2);
}

static void test_written_and_dropped(void **state)
{
	for (unsigned i = 0; i < 30; i++) {
		unsigned block = i * 131 % NBLOCKS;

		run(block, 60);
		for (unsigned k = 0; k < 8; k++) /* some are there, some are not */
			ram_note_write(&ram, place((block + k * k) % NBLOCKS), 8);
		check_tables();
		run(block, 60);
	}
}

/* A limit that is too low for a guest rises; one that nobody needs falls. */
static void test_limit(void **state)
{
	x->cc.limit_max = 100;
	for (unsigned i = 0; i < 20; i++)
		run(0, NBLOCKS);
	unsigned risen = x->cc.limit;
	uint64_t before = x->evictions;

	assert_true(risen > x->cc.limit_min);
	for (unsigned i = 0; i < 3; i++)
		run(0, NBLOCKS);
	assert_int_equal(x->evictions, before); /* all blocks are there now */
	assert_in_range(x->table.nblocks, NBLOCKS, 2 * NBLOCKS);
	check_tables();
	for (unsigned i = 0; i < 6; i++) { /* other code: nothing of it was there before */
		for (unsigned k = 0; k < NBLOCKS; k++)
			ram_note_write(&ram, place(k), 8);
		memset(x->cc.dropped, 0, sizeof(*x->cc.dropped) << XLATE_DROPPED_BITS);
		run(0, NBLOCKS);
	}
	assert_true(x->cc.limit < risen);
	check_tables();
	xlate_flush(cpu->vm);
	x->cc.limit = x->cc.limit_max = x->cc.limit_min;
	run(0, 100);
	check_tables();
}

/* The next segment, as if of @fresh translations in the last one @again had been dropped before. */
static unsigned limit_after(unsigned fresh, unsigned again)
{
	uint32_t bytes = x->cc.segment_bytes;

	x->cc.fresh += fresh;
	x->cc.again += again;
	x->cc.segment_bytes = 0; /* so it is full */
	xlate_cache_make_room(cpu);
	x->cc.segment_bytes = bytes;
	return x->cc.limit;
}

/* One segment that should not have been dropped is no reason to have more of them; several in a row are. */
static void test_limit_after_one(void **state)
{
	xlate_flush(cpu->vm);
	x->cc.limit_max = 100;
	unsigned limit = x->cc.limit;

	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(limit_after(2000, 200), limit);
	assert_int_equal(limit_after(2000, 1400), limit);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(limit_after(2000, 200), limit);
	assert_int_equal(limit_after(2000, 1400), limit);
	assert_true(limit_after(2000, 1400) > limit);
	xlate_flush(cpu->vm);
	x->cc.limit = x->cc.limit_max = x->cc.limit_min;
	run(0, 100);
	check_tables();
}

static void test_map(void **state)
{
	run(7, 2);
	struct xlate_block *b = xlate_lookup(x, place(7), 0, cpu->mode_key);
	unsigned index = 9;

	assert_non_null(b);
	assert_int_equal(b->ninsns, 3);
	assert_int_equal(xlate_map_find(b, 0, &index), -1); /* the entry */
	assert_int_equal(xlate_map_find(b, b->near, &index), place(7) & 0xfff);
	assert_int_equal(index, 0);
	assert_int_equal(xlate_map_find(b, b->code_len - 1u, &index), (place(7) & 0xfff) + 8);
	assert_int_equal(index, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_limit_after_one), cmocka_unit_test(test_map),
		cmocka_unit_test(test_nothing_is_left), cmocka_unit_test(test_written_and_dropped),
		cmocka_unit_test(test_limit),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
