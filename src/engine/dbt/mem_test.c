/* SPDX-License-Identifier: Apache-2.0 */
/* Memory operands at every kind of edge. */
#include "engine/dbt/mmu_test.h"

#define VA	0x10000000ULL
#define ROM_GPA 0xf0000000ULL
/* VA: RAM, RAM, ROM, device, RAM, not present */
static void make_operands(void)
{
	struct error err;

	make_long(16 * MIB, 64 * KIB);
	assert_non_null(ram_add_rom(&ram, ROM_GPA, 64 * KIB, &err));
	*pte_of(VA, 12) = DATA_BASE | 7;
	*pte_of(VA + 0x1000, 12) = (DATA_BASE + 0x8000) | 7; /* not adjacent */
	*pte_of(VA + 0x2000, 12) = ROM_GPA | 7;
	*pte_of(VA + 0x3000, 12) = 0xfed00007;
	*pte_of(VA + 0x4000, 12) = (DATA_BASE + 0x1000) | 7;
	for (unsigned i = 0; i < 4096; i++) {
		ram.base[DATA_BASE + i] = (uint8_t)(i * 3 + 1);
		ram.base[DATA_BASE + 0x8000 + i] = (uint8_t)(i * 5 + 2);
		ram.base[DATA_BASE + 0x1000 + i] = (uint8_t)(i * 7 + 3);
		((uint8_t *)ram_ptr(&ram, ROM_GPA, 1))[i] = (uint8_t)(i * 11 + 4);
	}
}

/* The byte a read of the operand space finds. */
static uint8_t byte_at(uint64_t off)
{
	uint64_t in = off & 0xfff;

	switch (off >> 12) {
	case 0:
		return ram.base[DATA_BASE + in];
	case 1:
		return ram.base[DATA_BASE + 0x8000 + in];
	case 2:
		return *(uint8_t *)ram_ptr(&ram, ROM_GPA + in, 1);
	case 3:
		return (uint8_t)(0xfed00000 + in + 1);
	default:
		return ram.base[DATA_BASE + 0x1000 + in];
	}
}

static uint64_t value_at(uint64_t off, unsigned size)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)byte_at(off + i) << (8 * i);
	return v;
}

static void reads_over_every_edge(void **state)
{
	make_operands();
	for (unsigned pass = 0; pass < 2; pass++)
		for (uint64_t page = 0; page < 5; page++)
			for (uint64_t off = page * 4096 + 4080; off < page * 4096 + 4104; off++)
				for (unsigned size = 1; size <= 8; size *= 2) {
					nmmio = 0;
					uint64_t got = 0;
					bool is_fault =
						RAISES(got = mem_read(cpu, SEG_DS, VA + off, size));
					assert_int_equal(is_fault, off + size > 0x5000);
					if (is_fault) {
						assert_int_equal(raised.cr2, MAX(VA + off, VA + 0x5000));
						assert_int_equal(raised.err, 0);
						continue;
					}
					assert_int_equal(got, value_at(off, size));
					for (unsigned i = 0; i < nmmio; i++) {
						assert_int_equal(mmio[i].addr % mmio[i].size, 0);
						assert_false(mmio[i].is_write);
					}
				}
	nmmio = 0;
	mem_read(cpu, SEG_DS, VA + 0x3008, 8);
	assert_int_equal(nmmio, 1);
	assert_int_equal(mmio[0].size, 8);
	nmmio = 0;
	mem_read(cpu, SEG_DS, VA + 0x3ffd, 4); /* 1, 2 from the device, 1 from RAM */
	assert_int_equal(nmmio, 2);
	assert_int_equal(mmio[0].size, 1);
	assert_int_equal(mmio[1].size, 2);
	assert_tlb_true();
}

static void writes_over_every_edge(void **state)
{
	make_operands();
	static uint8_t want[0x5000];
	for (unsigned i = 0; i < sizeof(want); i++)
		want[i] = byte_at(i);
	for (uint64_t page = 0; page < 5; page++)
		for (uint64_t off = page * 4096 + 4080; off < page * 4096 + 4104; off++)
			for (unsigned size = 1; size <= 8; size *= 2) {
				uint64_t v = rnd();
				nmmio = 0;
				bool is_fault = RAISES(mem_write(cpu, SEG_DS, VA + off, size, v));
				assert_int_equal(is_fault, off + size > 0x5000);
				unsigned device_bytes = 0;
				for (unsigned i = 0; i < nmmio; i++) {
					assert_true(mmio[i].is_write);
					assert_int_equal(mmio[i].addr % mmio[i].size, 0);
					unsigned at =
						(unsigned)(mmio[i].addr - 0xfed00000 + 0x3000 - off);
					uint64_t mask = ~0ULL >> (64 - 8 * mmio[i].size);
					assert_int_equal(mmio[i].data, v >> (8 * at) & mask);
					device_bytes += mmio[i].size;
				}
				for (unsigned i = 0; i < size; i++) {
					uint64_t o = off + i;
					if (!is_fault && (o >> 12 < 2 || o >> 12 == 4))
						want[o] = (uint8_t)(v >> (8 * i));
					if (!is_fault && o >> 12 == 3)
						device_bytes--;
				}
				assert_int_equal(device_bytes, 0);
				if (is_fault) { /* nothing was written, not even in the first page */
					assert_int_equal(raised.cr2, MAX(VA + off, VA + 0x5000));
					assert_int_equal(raised.err, PF_W);
					assert_int_equal(nmmio, 0);
				}
				for (unsigned i = 0; i < sizeof(want); i++)
					if (i >> 12 != 3 && want[i] != byte_at(i))
						fail_msg("byte %#x", i);
			}
	assert_tlb_true();
}

static void noted_writes(void **state)
{
	make_operands();
	_Atomic uint8_t *flags = &ram.page_flags[DATA_BASE >> 12];

	mem_write(cpu, SEG_DS, VA, 4, 1);
	assert_int_equal(*flags, RAM_PAGE_WMAP);
	mmu_drop_write(cpu, DATA_BASE);
	*flags = RAM_PAGE_TRACK;
	mem_write(cpu, SEG_DS, VA + 8, 4, 2);
	assert_int_equal(*flags & ~RAM_PAGE_WMAP, RAM_PAGE_DIRTY);
	*flags = RAM_PAGE_CODE;
	mmu_drop_write(cpu, DATA_BASE);
	mem_write(cpu, SEG_DS, VA + 0x123, 2, 0x5566);
	assert_int_equal(ncode_hits, 1);
	assert_int_equal(code_hits[0].offset, DATA_BASE + 0x123);
	assert_int_equal(code_hits[0].len, 2);
	assert_int_equal(value_at(0x123, 2), 0x5566);
	mem_write(cpu, SEG_DS, VA + 0xffe, 4, 0); /* each page is noted with its own part */
	assert_int_equal(ncode_hits, 2);
	assert_int_equal(code_hits[1].offset, DATA_BASE + 0xffe);
	assert_int_equal(code_hits[1].len, 2);
	mem_read(cpu, SEG_DS, VA + 0x123, 2);
	assert_int_equal(ncode_hits, 2);

	struct mem_op op;
	mem_begin(cpu, &op, SEG_DS, VA + 0x40, 8, ACC_RW, false);
	assert_false(op.is_bounced);
	assert_true(op.is_noted);
	assert_int_equal(ncode_hits, 2);
	mem_commit(cpu, &op);
	assert_int_equal(ncode_hits, 3);
	assert_int_equal(code_hits[2].offset, DATA_BASE + 0x40);
	mem_begin(cpu, &op, SEG_DS, VA + 0x40, 8, ACC_RW, false);
	mem_abort(cpu, &op);
	assert_int_equal(ncode_hits, 3);
	assert_tlb_true();
}

static void unmap_second_page(void)
{
	*pte_of(VA + 0x1000, 12) = 0;
	mmu_flush_page(cpu, VA + 0x1000);
}

static void thunk_operands(void **state)
{
	struct mem_op op;

	make_operands();
	for (unsigned k = 0; k < 2; k++) { /* miss, then hit */
		mem_begin(cpu, &op, SEG_DS, VA + 0x10, 16, ACC_RW, true);
		assert_false(op.is_bounced);
		assert_ptr_equal(op.ptr, ram.base + DATA_BASE + 0x10);
		mem_commit(cpu, &op);
	}
	assert_int_equal(nexclusive, 0);

	/* Over a page end: bounced and, if locked, alone in the world. */
	for (unsigned locked = 0; locked < 2; locked++) {
		uint64_t before = value_at(0xffc, 8);
		mem_begin(cpu, &op, SEG_DS, VA + 0xffc, 8, ACC_RW, locked);
		assert_true(op.is_bounced);
		assert_int_equal(exclusive_depth, locked);
		assert_memory_equal(op.ptr, &before, 8);
		memset(op.ptr, 0x5a + (int)locked, 8);
		assert_int_equal(value_at(0xffc, 8), before);
		mem_commit(cpu, &op);
		assert_int_equal(value_at(0xffc, 8),
				 0x5a5a5a5a5a5a5a5aULL + locked * 0x0101010101010101ULL);
		assert_int_equal(exclusive_depth, 0);
		mem_begin(cpu, &op, SEG_DS, VA + 0xffc, 8, ACC_RW, locked);
		memset(op.ptr, 0, 8);
		mem_abort(cpu, &op);
		assert_int_equal(value_at(0xffc, 8),
				 0x5a5a5a5a5a5a5a5aULL + locked * 0x0101010101010101ULL);
		assert_int_equal(exclusive_depth, 0);
	}

	/* Over the end of a cache line the same, TLB hit or not; and not up to it. */
	for (unsigned k = 0; k < 2; k++) {
		mem_begin(cpu, &op, SEG_DS, VA + 0x7c, 4, ACC_RW, true);
		assert_ptr_equal(op.ptr, ram.base + DATA_BASE + 0x7c);
		mem_commit(cpu, &op);
		mem_begin(cpu, &op, SEG_DS, VA + 0x7d, 4, ACC_RW, false);
		assert_ptr_equal(op.ptr, ram.base + DATA_BASE + 0x7d);
		mem_commit(cpu, &op);
		assert_int_equal(exclusive_depth, 0);
		uint64_t before = value_at(0x7d, 4);
		mem_begin(cpu, &op, SEG_DS, VA + 0x7d, 4, ACC_RW, true);
		assert_true(op.is_bounced);
		assert_int_equal(exclusive_depth, 1);
		assert_memory_equal(op.ptr, &before, 4);
		memset(op.ptr, 0x31 + (int)k, 4);
		assert_int_equal(value_at(0x7d, 4), before);
		mem_commit(cpu, &op);
		assert_int_equal(value_at(0x7d, 4), 0x31313131 + k * 0x01010101);
		assert_int_equal(exclusive_depth, 0);
		mmu_flush_all(cpu);
	}
	nexclusive -= 2;

	/* Write-only: what the instruction leaves alone stays; devices are not read. */
	nmmio = 0;
	uint64_t before = value_at(0xfff, 2);
	mem_begin(cpu, &op, SEG_DS, VA + 0xfff, 2, ACC_WRITE, false);
	mem_commit(cpu, &op);
	assert_int_equal(value_at(0xfff, 2), before);
	uint64_t after = value_at(0x1000, 8);
	mem_begin(cpu, &op, SEG_DS, VA + 0x3010, 16, ACC_WRITE, false);
	assert_int_equal(nmmio, 0);
	memset(op.ptr, 0x77, 16);
	mem_commit(cpu, &op);
	assert_int_equal(nmmio, 2);
	assert_true(mmio[1].is_write);
	assert_int_equal(mmio[1].addr, 0xfed00018);
	assert_int_equal(mmio[1].data, 0x7777777777777777);
	assert_int_equal(value_at(0x1000, 8), after);

	/* Read-modify-write of a device: read once, written once. */
	nmmio = 0;
	mem_begin(cpu, &op, SEG_DS, VA + 0x3020, 4, ACC_RW, true);
	assert_int_equal(nmmio, 1);
	mem_commit(cpu, &op);
	assert_int_equal(nmmio, 2);
	assert_int_equal(mmio[1].data, mmio[0].data);
	assert_int_equal(nexclusive, 2 + 0);

	/* ROM: reads directly, writes vanish. */
	mem_begin(cpu, &op, SEG_DS, VA + 0x2010, 8, ACC_READ, false);
	assert_false(op.is_bounced);
	mem_commit(cpu, &op);
	before = value_at(0x2010, 8);
	mem_begin(cpu, &op, SEG_DS, VA + 0x2010, 8, ACC_RW, true);
	assert_true(op.is_bounced);
	memset(op.ptr, 0, 8);
	mem_commit(cpu, &op);
	assert_int_equal(value_at(0x2010, 8), before);

	/* The largest operand, and faults that leave nothing behind. */
	mem_begin(cpu, &op, SEG_DS, VA + 0x1000 - 500, 832, ACC_RW, false);
	assert_true(op.is_bounced);
	for (unsigned i = 0; i < 832; i++)
		assert_int_equal(op.bounce[i], byte_at(0x1000 - 500 + i));
	mem_commit(cpu, &op);
	nmmio = 0;
	assert_true(RAISES(mem_begin(cpu, &op, SEG_DS, VA + 0x4ffc, 8, ACC_RW, true)));
	assert_int_equal(raised.cr2, VA + 0x5000);
	assert_int_equal(raised.err, PF_W);
	assert_int_equal(exclusive_depth, 0);
	while_waiting = unmap_second_page; /* another vCPU was faster */
	assert_true(RAISES(mem_begin(cpu, &op, SEG_DS, VA + 0xffc, 8, ACC_RW, true)));
	assert_int_equal(raised.cr2, VA + 0x1000);
	assert_int_equal(exclusive_depth, 0);
	assert_tlb_true();
}

static void alignment_checks(void **state)
{
	struct mem_op op;

	make_operands();
	assert_false(RAISES(mem_read(cpu, SEG_DS, VA + 1, 4)));
	cpu->mode_key |= DBT_MODE_ALIGN;
	cpu->tlb_mode = DBT_TLB_USER;
	for (unsigned size = 1; size <= 8; size *= 2)
		for (unsigned off = 0; off < 8; off++) {
			assert_int_equal(RAISES(mem_read(cpu, SEG_DS, VA + off, size)), off % size != 0);
			if (off % size) {
				assert_int_equal(raised.vector, EXC_AC);
				assert_int_equal(raised.err, 0);
			}
			assert_int_equal(RAISES(mem_write(cpu, SEG_DS, VA + off, size, 0)),
					 off % size != 0);
			assert_int_equal(
				RAISES(mem_begin(cpu, &op, SEG_DS, VA + off, size, ACC_READ, false)),
				off % size != 0);
			assert_false(RAISES(sys_read(cpu, VA + off, size)));
		}
	assert_false(RAISES(mem_begin(cpu, &op, SEG_DS, VA + 1, 16, ACC_READ, false)));
	assert_true(RAISES(mem_begin(cpu, &op, SEG_DS, VA + 4, 10, ACC_READ, false)));
	assert_true(RAISES(mem_begin(cpu, &op, SEG_DS, VA + 2, 28, ACC_WRITE, false)));
	assert_false(RAISES(mem_begin(cpu, &op, SEG_DS, VA + 2, 14, ACC_WRITE, false)));
}

static void canonical_checks(void **state)
{
	make_operands();
	*pte_of(0x7ffffffff000, 12) = DATA_BASE | 7;
	*pte_of(0xfffffffffffff000, 12) = DATA_BASE | 7;
	*pte_of(0, 12) = (DATA_BASE + 0x1000) | 7;
	assert_false(RAISES(mem_read(cpu, SEG_DS, 0x7ffffffffff8, 8)));
	assert_true(RAISES(mem_read(cpu, SEG_DS, 0x7ffffffffff9, 8)));
	assert_int_equal(raised.vector, EXC_GP);
	assert_int_equal(raised.err, 0);
	assert_true(RAISES(mem_write(cpu, SEG_SS, 0x800000000000, 1, 0)));
	assert_int_equal(raised.vector, EXC_SS);
	assert_true(RAISES(sys_write(cpu, 0x800000000000, 8, 0)));
	assert_int_equal(raised.vector, EXC_GP);
	assert_false(RAISES(mem_read(cpu, SEG_DS, 0xfffffffffffffffc, 8))); /* over the top to 0 */
	/* FS and GS have bases, the others have none. */
	cpu->s.seg[SEG_GS].base = VA;
	cpu->s.seg[SEG_DS].base = 0x999999;
	cpu->s.seg[SEG_DS].attr = SEG_ATTR_UNUSABLE;
	assert_int_equal(mem_read(cpu, SEG_GS, 8, 8), value_at(8, 8));
	assert_int_equal(mem_read(cpu, SEG_DS, VA, 8), value_at(0, 8));
}

static struct x86_seg segment(uint32_t base, uint32_t limit, uint16_t attr)
{
	return (struct x86_seg){ .base = base,
				 .limit = limit,
				 .attr = (uint16_t)(attr | SEG_ATTR_P | SEG_ATTR_S) };
}

static int linear_fault(unsigned seg, uint64_t ea, unsigned size, unsigned acc, uint64_t *va)
{
	return RAISES(*va = mem_linear(cpu, seg, ea, size, acc)) ? raised.vector : -1;
}

static void segments(void **state)
{
	uint64_t va;

	make_operands();
	cpu->code_bits = 32;
	cpu->mode_key = DBT_MODE_CODE32 | DBT_MODE_PE;
	cpu->s.efer = 0;
	cpu->s.seg[SEG_DS] = segment(0x1000, 0xffff, 3);
	cpu->s.seg[SEG_SS] = segment(0x2000, 0xfff, 3 | SEG_ATTR_DB);
	assert_int_equal(linear_fault(SEG_DS, 0xfffc, 4, ACC_RW, &va), -1);
	assert_int_equal(va, 0x10ffc);
	assert_int_equal(linear_fault(SEG_DS, 0xfffd, 4, ACC_READ, &va), EXC_GP);
	assert_int_equal(linear_fault(SEG_DS, 0xffffffff, 4, ACC_READ, &va), EXC_GP);
	assert_int_equal(linear_fault(SEG_SS, 0x1000, 1, ACC_READ, &va), EXC_SS);
	assert_int_equal(raised.err, 0);

	cpu->s.seg[SEG_DS] = segment(0, 0xffff, 1); /* read-only */
	assert_int_equal(linear_fault(SEG_DS, 0, 4, ACC_READ, &va), -1);
	assert_int_equal(linear_fault(SEG_DS, 0, 4, ACC_WRITE, &va), EXC_GP);
	assert_int_equal(linear_fault(SEG_DS, 0, 4, ACC_RW, &va), EXC_GP);
	cpu->s.seg[SEG_CS] = segment(0, 0xffff, 8); /* execute-only */
	assert_int_equal(linear_fault(SEG_CS, 0, 4, ACC_READ, &va), EXC_GP);
	assert_int_equal(linear_fault(SEG_CS, 0, 4, ACC_EXEC, &va), -1);
	cpu->s.seg[SEG_CS] = segment(0, 0xffff, 10); /* readable code */
	assert_int_equal(linear_fault(SEG_CS, 0, 4, ACC_READ, &va), -1);
	assert_int_equal(linear_fault(SEG_CS, 0, 4, ACC_WRITE, &va), EXC_GP);
	cpu->s.seg[SEG_CS] = segment(0, 0xffff, 14); /* conforming is not expand-down */
	assert_int_equal(linear_fault(SEG_CS, 0, 4, ACC_READ, &va), -1);
	cpu->s.seg[SEG_ES] = segment(0, 0xffff, 3);
	cpu->s.seg[SEG_ES].attr |= SEG_ATTR_UNUSABLE;
	assert_int_equal(linear_fault(SEG_ES, 0, 1, ACC_READ, &va), EXC_GP);

	cpu->s.seg[SEG_DS] = segment(0x100, 0xfff, 7); /* expand-down, 64K */
	assert_int_equal(linear_fault(SEG_DS, 0xfff, 1, ACC_READ, &va), EXC_GP);
	assert_int_equal(linear_fault(SEG_DS, 0x1000, 1, ACC_READ, &va), -1);
	assert_int_equal(linear_fault(SEG_DS, 0xffff, 1, ACC_READ, &va), -1);
	assert_int_equal(linear_fault(SEG_DS, 0xffff, 2, ACC_READ, &va), EXC_GP);
	cpu->s.seg[SEG_DS].attr |= SEG_ATTR_DB; /* expand-down, 4G */
	assert_int_equal(linear_fault(SEG_DS, 0xffff, 2, ACC_READ, &va), -1);
	assert_int_equal(linear_fault(SEG_DS, 0xffffffff, 2, ACC_READ, &va), EXC_GP);

	cpu->s.seg[SEG_DS] = segment(0xfffff000, 0xffffffff, 3); /* linear addresses wrap at 4G */
	assert_int_equal(linear_fault(SEG_DS, 0x1234, 4, ACC_READ, &va), -1);
	assert_int_equal(va, 0x234);

	/* Real mode: no types, but limits. */
	cpu->mode_key = DBT_MODE_CODE16;
	cpu->code_bits = 16;
	cpu->s.cr0 = 0;
	cpu->s.seg[SEG_CS] = segment(0xf0000, 0xffff, 11);
	assert_int_equal(linear_fault(SEG_CS, 0xfffe, 2, ACC_WRITE, &va), -1);
	assert_int_equal(linear_fault(SEG_CS, 0xffff, 2, ACC_READ, &va), EXC_GP);
	mmu_flush_all(cpu);
	cpu->s.seg[SEG_DS] = segment(0x3ffff0, 0xffff, 3); /* no paging: linear is physical */
	assert_int_equal(mem_read(cpu, SEG_DS, 0x10, 4), value_at(0, 4));
	cpu->s.seg[SEG_DS] = segment(0, 0xffffffff, 3);
	nmmio = 0;
	mem_read(cpu, SEG_DS, 0xfffffffe, 4); /* over 4G: a device, then RAM at 0 */
	assert_int_equal(nmmio, 1);
	assert_int_equal(mmio[0].addr, 0xfffffffe);
	assert_int_equal(mmio[0].size, 2);
}

static void rights_of_system_accesses(void **state)
{
	make_operands();
	*pte_of(VA + 0x6000, 12) = (DATA_BASE + 0x2000) | 3; /* supervisor */
	cpu->tlb_mode = DBT_TLB_USER;
	cpu->cpl = 3;
	assert_true(RAISES(mem_read(cpu, SEG_DS, VA + 0x6000, 8)));
	assert_int_equal(raised.err, PF_P | PF_U);
	assert_false(RAISES(sys_read(cpu, VA + 0x6000, 8)));
	assert_false(RAISES(sys_write(cpu, VA + 0x6000, 8, 0x1122)));
	assert_true(RAISES(mem_read(cpu, SEG_DS, VA + 0x6000, 8))); /* the kernel's entry is not ours */
	assert_true(RAISES(sys_read(cpu, VA + 0x7000, 8)));
	assert_int_equal(raised.err, 0); /* not U */
	assert_true(RAISES(sys_check_write(cpu, VA + 0x6ff8, 64)));
	assert_int_equal(raised.cr2, VA + 0x7000);
	assert_int_equal(raised.err, PF_W);
	assert_false(RAISES(sys_check_write(cpu, VA + 0x6000, 4096)));
	/* SMAP holds for them whatever AC says. */
	cpu->s.cr4 |= X86_CR4_SMAP;
	mmu_flush_all(cpu);
	cpu->cpl = 0;
	cpu->tlb_mode = DBT_TLB_KERNEL_AC;
	assert_false(RAISES(mem_read(cpu, SEG_DS, VA, 8)));
	assert_true(RAISES(sys_read(cpu, VA, 8)));
	assert_int_equal(raised.err, PF_P);
	cpu->tlb_mode = DBT_TLB_KERNEL;
	assert_true(RAISES(mem_write(cpu, SEG_DS, VA, 8, 1)));
	assert_int_equal(raised.err, PF_P | PF_W);
	assert_tlb_true();
}

static void data_breakpoints(void **state)
{
	make_operands();
	cpu->s.dr[0] = VA + 0x100;
	cpu->s.dr[2] = VA + 0x203; /* low bits are ignored: 200H */
	cpu->s.dr7 = 1 | 1 << 16 | 3 << 18 /* 0: write, 4 bytes */ | 2 << 4 | 3 << 24 |
		     2u << 26 /* 2, global: read or write, 8 bytes */;
#define HITS(stmt)                                                                                 \
	({                                                                                         \
		cpu->dr6_pending = 0;                                                              \
		stmt;                                                                              \
		cpu->dr6_pending;                                                                  \
	})
	assert_int_equal(HITS(mem_read(cpu, SEG_DS, VA + 0x100, 4)), 0);
	assert_int_equal(HITS(mem_write(cpu, SEG_DS, VA + 0x100, 4, 0)), 1);
	assert_int_equal(HITS(mem_write(cpu, SEG_DS, VA + 0x103, 8, 0)), 1);
	assert_int_equal(HITS(mem_write(cpu, SEG_DS, VA + 0xfc, 4, 0)), 0);
	assert_int_equal(HITS(mem_write(cpu, SEG_DS, VA + 0xfd, 4, 0)), 1);
	assert_int_equal(HITS(mem_write(cpu, SEG_DS, VA + 0x104, 1, 0)), 0);
	assert_int_equal(HITS(mem_read(cpu, SEG_DS, VA + 0x207, 1)), 4);
	assert_int_equal(HITS(mem_read(cpu, SEG_DS, VA + 0x208, 1)), 0);
	assert_int_equal(HITS(mem_write(cpu, SEG_DS, VA + 0x1ff, 2, 0)), 4);
	struct mem_op op;
	assert_int_equal(HITS(mem_begin(cpu, &op, SEG_DS, VA + 0xf0, 0x200, ACC_RW, false);
			      mem_commit(cpu, &op)),
			 5);
	/* An access that faults hits nothing. */
	cpu->s.dr[0] = VA + 0x5000;
	assert_int_equal(HITS((void)RAISES(mem_write(cpu, SEG_DS, VA + 0x5000, 4, 0))), 0);
	cpu->s.dr7 &= ~0xffULL;
	assert_int_equal(HITS(mem_write(cpu, SEG_DS, VA + 0x200, 4, 0)), 0);

	cpu->debug.nbreak = 1;
	cpu->debug.bp[0].addr = VA + 0x300;
	cpu->debug.bp[0].kind = 1;
	cpu->debug.bp[0].len = 2;
	mem_read(cpu, SEG_DS, VA + 0x301, 1);
	assert_false(cpu->is_debug_hit);
	mem_write(cpu, SEG_DS, VA + 0x301, 1, 0);
	assert_true(cpu->is_debug_hit);
}

/* A page fault forgets the page, as hardware does; so a lazily widened right is seen. */
static void stale_rights(void **state)
{
	make_operands();
	uint64_t *pte = pte_of(VA, 12);

	*pte = DATA_BASE | 1;
	mmu_flush_page(cpu, VA);
	mem_read(cpu, SEG_DS, VA, 8);
	assert_true(RAISES(mem_write(cpu, SEG_DS, VA, 8, 5)));
	assert_int_equal(raised.err, PF_P | PF_W);
	assert_null(emitted_lookup(VA, DBT_TLB_KERNEL, false));
	mem_read(cpu, SEG_DS, VA, 8);
	*pte = DATA_BASE | 3; /* no INVLPG */
	assert_false(RAISES(mem_write(cpu, SEG_DS, VA, 8, 5)));
	assert_int_equal(mem_read(cpu, SEG_DS, VA, 8), 5);
	*pte = 0; /* the old translation may be used until it is invalidated */
	assert_false(RAISES(mem_read(cpu, SEG_DS, VA, 8)));
	uint64_t bad = 0;
	assert_false(mmu_verify_tlb(cpu, &bad)); /* and the verifier sees it */
	assert_int_equal(bad, VA);
	mmu_flush_page(cpu, VA);
	assert_true(RAISES(mem_read(cpu, SEG_DS, VA, 8)));
	assert_tlb_true();
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(reads_over_every_edge),
		T(writes_over_every_edge),
		T(noted_writes),
		T(thunk_operands),
		T(alignment_checks),
		T(canonical_checks),
		T(segments),
		T(rights_of_system_accesses),
		T(data_breakpoints),
		T(stale_rights),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
