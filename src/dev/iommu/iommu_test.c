/* SPDX-License-Identifier: Apache-2.0 */
/* The VT-d unit, against tables made of plain writes to guest RAM; what devices and the IOAPIC see of it. */
#include "dev/chipset/ioapic.h"
#include "dev/iommu/vtd_regs.h"
#include "dev/testing.h"

/* Guest RAM is 1 MiB. */
#define ROOT	0x01000u
#define CONTEXT 0x02000u
#define L4	0x03000u
#define L3	0x04000u
#define L2	0x05000u
#define L1	0x06000u
#define IRT	0x08000u
#define QUEUE	0x0a000u
#define STATUS	0x0c000u
#define DATA	0x10000u
#define OUTSIDE 0x200000u /* no RAM there, a fine address all the same */

#define SID 0x0018 /* 00:03.0 */
#define RW  3u

static struct test_env t;
static struct vtd *v;
static struct dma_path path;

static int setup(void **state)
{
	test_env_init(&t);
	assert_int_equal(vtd_create(&v, &t.env, 40, NULL), 0);
	path = (struct dma_path){ .ram = &t.ram, .iommu = &v->iommu, .source_id = SID };
	return 0;
}

static int teardown(void **state)
{
	v->dev.cls->destroy(&v->dev);
	test_env_fini(&t);
	return 0;
}

static uint64_t rd(unsigned reg, unsigned size)
{
	return bus_read(t.env.bus, BUS_MMIO, VTD_BASE + reg, size);
}

static void wr(unsigned reg, unsigned size, uint64_t value)
{
	bus_write(t.env.bus, BUS_MMIO, VTD_BASE + reg, size, value);
}

static void poke(gpa_t gpa, uint64_t value)
{
	assert_int_equal(ram_write(&t.ram, gpa, &value, 8), 0);
}

static uint64_t peek(gpa_t gpa)
{
	uint64_t value;

	assert_int_equal(ram_read(&t.ram, gpa, &value, 8), 0);
	return value;
}

/* Tables of @levels for SID: page 5 of its space leads to DATA, page 6 to DATA + 0x2000. */
static void build(unsigned levels)
{
	poke(ROOT, CONTEXT | 1);
	poke(CONTEXT + SID * 16, (levels == 4 ? L4 : L3) | 1);
	poke(CONTEXT + SID * 16 + 8, 7 << 8 | (levels - 2));
	poke(L4, L3 | RW);
	poke(L3, L2 | RW);
	poke(L2, L1 | RW);
	poke(L1 + 5 * 8, DATA | RW);
	poke(L1 + 6 * 8, (DATA + 0x2000) | RW);
}

static void enable(uint32_t what)
{
	wr(VTD_RTADDR, 8, ROOT);
	wr(VTD_IRTA, 8, IRT | 2); /* 8 entries */
	wr(VTD_GCMD, 4, VTD_SRTP);
	wr(VTD_GCMD, 4, VTD_SIRTP);
	wr(VTD_GCMD, 4, what);
	assert_int_equal(rd(VTD_GSTS, 4), what | VTD_SRTP | VTD_SIRTP);
}

/* Access by the device; 0 or -EFAULT. */
static int get(uint64_t addr)
{
	uint32_t word;

	return dma_read(&path, addr, &word, 4);
}

static int put(uint64_t addr, uint32_t word)
{
	return dma_write(&path, addr, &word, 4);
}

/* The one recorded fault, and away with it. */
static void expect_fault(unsigned reason, uint64_t info, bool is_read)
{
	unsigned fri = (unsigned)rd(VTD_FSTS, 4) >> 8, at = VTD_FRCD + fri * 16;
	uint64_t high = rd(at + 8, 8);

	assert_int_equal(rd(VTD_FSTS, 4) & 0xff, VTD_PPF);
	assert_int_equal(high >> 32 & 0xff, reason);
	assert_int_equal(high >> 63, 1);
	assert_int_equal(high >> 62 & 1, is_read);
	assert_int_equal(high & 0xffff, SID);
	assert_int_equal(rd(at, 8), info);
	wr(at + 12, 4, 0x80000000);
	assert_int_equal(rd(VTD_FSTS, 4) & 0xff, 0);
	assert_int_equal(rd(at + 8, 8) >> 63, 0);
}

static void expect_no_fault(void)
{
	assert_int_equal(rd(VTD_FSTS, 4) & 0xff, 0);
}

/* ---- registers ---- */

static void test_registers(void **state)
{
	assert_int_equal(rd(VTD_VER, 4), 0x10);
	uint64_t cap = rd(VTD_CAP, 8), ecap = rd(VTD_ECAP, 8);

	assert_int_equal(cap >> 8 & 31, 6); /* 3 and 4 levels */
	assert_int_equal(cap >> 16 & 63, 47);
	assert_int_equal(cap >> 34 & 15, 3);
	assert_int_equal((cap >> 24 & 0x3ff) * 16, VTD_FRCD);
	assert_int_equal(cap >> 40 & 0xff, VTD_FAULTS - 1);
	assert_int_equal((ecap >> 8 & 0x3ff) * 16, 0xf0);
	assert_int_equal(ecap & 0xff, 0xcb); /* C, QI, IR, PT, SC */
	assert_int_equal(rd(VTD_CAP + 4, 4), cap >> 32);
	assert_int_equal(rd(VTD_CAP + 3, 1), cap >> 24 & 0xff);
	assert_int_equal(rd(VTD_GSTS, 4), 0);
	assert_int_equal(rd(VTD_FECTL, 4), VTD_EVENT_MASK);
	assert_int_equal(rd(VTD_IECTL, 4), VTD_EVENT_MASK);
	/* only aligned words, only what is there */
	wr(VTD_RTADDR, 8, UINT64_MAX);
	assert_int_equal(rd(VTD_RTADDR, 8), 0xfffffffffffff000);
	wr(VTD_RTADDR, 4, 0);
	assert_int_equal(rd(VTD_RTADDR, 8), 0xffffffff00000000);
	wr(VTD_RTADDR + 4, 4, 0);
	wr(VTD_RTADDR, 2, 0xffff);
	wr(VTD_RTADDR + 1, 4, 0xffff);
	wr(VTD_RTADDR + 4, 8, UINT64_MAX);
	assert_int_equal(rd(VTD_RTADDR, 8), 0);
	wr(VTD_CAP, 8, 0);
	assert_int_equal(rd(VTD_CAP, 8), cap);
	wr(VTD_GSTS, 4, UINT32_MAX);
	assert_int_equal(rd(VTD_GSTS, 4), 0);
	assert_int_equal(rd(0x64, 4), 0); /* no protected memory */
	wr(VTD_IQT, 8, UINT64_MAX);
	assert_int_equal(rd(VTD_IQT, 8), 0x7fff0);
	assert_int_equal(rd(0xff8, 8), 0);
	/* a table pointer counts from its command on */
	wr(VTD_RTADDR, 8, ROOT);
	assert_int_equal(v->root, 0);
	wr(VTD_GCMD, 4, VTD_SRTP);
	assert_int_equal(v->root, ROOT);
	assert_int_equal(rd(VTD_GSTS, 4), VTD_SRTP);
}

static void test_invalidation_by_register(void **state)
{
	wr(VTD_CCMD, 8, 1ULL << 63 | 2ULL << 61 | 0x12);
	assert_int_equal(rd(VTD_CCMD, 8), 2ULL << 61 | 2ULL << 59 | 0x12);
	wr(VTD_IOTLB, 4, 0);
	assert_int_equal(rd(VTD_IOTLB, 8), 0);
	wr(VTD_IOTLB + 4, 4, 0x80000000 | 3u << 28 | 5);
	assert_int_equal(rd(VTD_IOTLB + 4, 4), 3u << 28 | 3u << 25 | 5);
}

/* ---- translation ---- */

static void test_off(void **state)
{
	build(3);
	assert_int_equal(put(DATA, 0x11223344), 0);
	assert_int_equal(peek(DATA), 0x11223344);
	assert_int_equal(get(DATA), 0);
	assert_int_equal(get(OUTSIDE), -EFAULT);
	assert_int_equal(get(UINT64_MAX - 1), -EFAULT);
	expect_no_fault();
}

static void test_pages(void **state)
{
	for (unsigned levels = 3; levels <= 4; levels++) {
		build(levels);
		enable(VTD_TE);
		assert_int_equal(put(0x5010, levels), 0);
		assert_int_equal(peek(DATA + 0x10), levels);
		assert_int_equal(get(0x5010), 0);
		/* across two pages that are no neighbours */
		poke(DATA + 0xff8, 0x1111111111111111);
		poke(DATA + 0x2000, 0x2222222222222222);
		uint64_t word;

		assert_int_equal(dma_read(&path, 0x5ffc, &word, 8), 0);
		assert_int_equal(word, 0x2222222211111111);
		word = 0x3333333344444444;
		assert_int_equal(dma_write(&path, 0x5ffc, &word, 8), 0);
		assert_int_equal(peek(DATA + 0xff8), 0x4444444411111111);
		assert_int_equal(peek(DATA + 0x2000), 0x2222222233333333);
		expect_no_fault();
		/* nothing keeps the translation */
		poke(L1 + 5 * 8, (DATA + 0x5000) | RW);
		assert_int_equal(put(0x5010, 77), 0);
		assert_int_equal(peek(DATA + 0x5010), 77);
		poke(L1 + 5 * 8, 0);
		assert_int_equal(put(0x5010, 78), -EFAULT);
		expect_fault(VTD_NO_WRITE, 0x5000, false);
	}
	/* as a context entry says: straight through */
	poke(CONTEXT + SID * 16, 1 | 2 << 2);
	assert_int_equal(put(DATA + 0x20, 99), 0);
	assert_int_equal(peek(DATA + 0x20), 99);
	assert_int_equal(get(1ULL << 48), -EFAULT);
	expect_fault(VTD_ADDRESS_TOO_WIDE, 1ULL << 48, true);
}

static void test_large_pages(void **state)
{
	build(4);
	enable(VTD_TE);
	poke(L2 + 3 * 8, 0 | RW | 1 << 7); /* 2M */
	assert_int_equal(put(3 * 0x200000 + DATA + 4, 5), 0);
	assert_int_equal(peek(DATA) >> 32, 5);
	poke(L3 + 2 * 8, 0 | RW | 1 << 7); /* 1G */
	assert_int_equal(put(2 * GIB + DATA + 8, 6), 0);
	assert_int_equal(peek(DATA + 8), 6);
	assert_int_equal(get(2 * GIB + OUTSIDE), -EFAULT); /* allowed, but no memory */
	expect_no_fault();
	poke(L2 + 3 * 8, 0x1000 | RW | 1 << 7);
	assert_int_equal(get(3 * 0x200000), -EFAULT);
	expect_fault(VTD_TABLE_RESERVED, 3 * 0x200000, true);
	poke(L3 + 2 * 8, 0x200000 | RW | 1 << 7);
	assert_int_equal(get(2 * GIB), -EFAULT);
	expect_fault(VTD_TABLE_RESERVED, 2 * GIB, true);
	poke(L4, L3 | RW | 1 << 7);
	assert_int_equal(get(0x5000), -EFAULT);
	expect_fault(VTD_TABLE_RESERVED, 0x5000, true);
}

/* One word of the tables is wrong: which reason follows, for reading and for writing. */
static void test_fault_reasons(void **state)
{
	const gpa_t context = CONTEXT + SID * 16, leaf = L1 + 5 * 8;
	const struct {
		gpa_t at;
		uint64_t value;
		uint8_t read, write; /* 0: allowed */
	} rows[] = {
		{ ROOT, CONTEXT, VTD_ROOT_NOT_PRESENT, VTD_ROOT_NOT_PRESENT },
		{ ROOT, CONTEXT | 3, VTD_ROOT_RESERVED, VTD_ROOT_RESERVED },
		{ ROOT, CONTEXT | 1 | 1ULL << 40, VTD_ROOT_RESERVED, VTD_ROOT_RESERVED },
		{ ROOT + 8, 1, VTD_ROOT_RESERVED, VTD_ROOT_RESERVED },
		{ ROOT, OUTSIDE | 1, VTD_CONTEXT_ACCESS, VTD_CONTEXT_ACCESS },
		{ context, L4, VTD_CONTEXT_NOT_PRESENT, VTD_CONTEXT_NOT_PRESENT },
		{ context, L4 | 0x11, VTD_CONTEXT_RESERVED, VTD_CONTEXT_RESERVED },
		{ context, L4 | 1 | 1ULL << 63, VTD_CONTEXT_RESERVED, VTD_CONTEXT_RESERVED },
		{ context + 8, 1ULL << 24 | 2, VTD_CONTEXT_RESERVED, VTD_CONTEXT_RESERVED },
		{ context + 8, 0x80 | 2, VTD_CONTEXT_RESERVED, VTD_CONTEXT_RESERVED },
		{ context, L4 | 1 | 1 << 2, VTD_CONTEXT_INVALID, VTD_CONTEXT_INVALID }, /* device TLB */
		{ context, L4 | 1 | 3 << 2, VTD_CONTEXT_INVALID, VTD_CONTEXT_INVALID },
		{ context + 8, 0, VTD_CONTEXT_INVALID, VTD_CONTEXT_INVALID }, /* 30 bits */
		{ context + 8, 3, VTD_CONTEXT_INVALID, VTD_CONTEXT_INVALID }, /* 57 bits */
		{ context + 8, 0x78 | 2, 0, 0 },			      /* ignored bits */
		{ context, OUTSIDE | 1, VTD_TABLE_ACCESS, VTD_TABLE_ACCESS },
		{ L3, OUTSIDE | RW, VTD_TABLE_ACCESS, VTD_TABLE_ACCESS },
		{ L3, L2 | 1, 0, VTD_NO_WRITE }, /* rights of all levels */
		{ L3, L2 | 2, VTD_NO_READ, 0 },
		{ L2, L1 | RW | 1 << 11, VTD_TABLE_RESERVED, VTD_TABLE_RESERVED },
		{ L2, L1 | RW | 1ULL << 40, VTD_TABLE_RESERVED, VTD_TABLE_RESERVED },
		{ leaf, 0, VTD_NO_READ, VTD_NO_WRITE },
		{ leaf, 1ULL << 40, VTD_NO_READ, VTD_NO_WRITE }, /* no rights: nothing else counts */
		{ leaf, DATA | 1, 0, VTD_NO_WRITE },
		{ leaf, DATA | 2, VTD_NO_READ, 0 },
		{ leaf, DATA | RW | 1ULL << 51, VTD_TABLE_RESERVED, VTD_TABLE_RESERVED },
		{ leaf, DATA | RW | 1ULL << 62, VTD_TABLE_RESERVED, VTD_TABLE_RESERVED },
		{ leaf, DATA | RW | 0xbff0000000000ffcULL, 0, 0 }, /* ignored bits, snooping */
	};

	build(4);
	enable(VTD_TE);
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		uint64_t before = peek(rows[i].at);

		poke(rows[i].at, rows[i].value);
		assert_int_equal(get(0x5678), rows[i].read ? -EFAULT : 0);
		if (rows[i].read)
			expect_fault(rows[i].read, 0x5000, true);
		assert_int_equal(put(0x5678, 0), rows[i].write ? -EFAULT : 0);
		if (rows[i].write)
			expect_fault(rows[i].write, 0x5000, false);
		expect_no_fault();
		poke(rows[i].at, before);
	}
	/* the root table itself */
	wr(VTD_RTADDR, 8, OUTSIDE);
	wr(VTD_GCMD, 4, VTD_TE | VTD_SRTP);
	assert_int_equal(get(0x5000), -EFAULT);
	expect_fault(VTD_ROOT_ACCESS, 0x5000, true);
}

static void test_width(void **state)
{
	build(3);
	enable(VTD_TE);
	poke(L3 + 511 * 8, L2 | RW);
	assert_int_equal(get((511ULL << 30) + 0x5000), 0);
	assert_int_equal(get(1ULL << 39), -EFAULT);
	expect_fault(VTD_ADDRESS_TOO_WIDE, 1ULL << 39, true);
	/* a request that runs over the end is refused there */
	uint8_t buf[16];

	poke(L2 + 511 * 8, L1 | RW);
	poke(L1 + 511 * 8, DATA | RW);
	assert_int_equal(dma_read(&path, (1ULL << 39) - 8, buf, 16), -EFAULT);
	expect_fault(VTD_ADDRESS_TOO_WIDE, 1ULL << 39, true);
	/* another requester has no context */
	path.source_id = SID + 1;
	assert_int_equal(get(0x5000), -EFAULT);
	assert_int_equal(v->faults[v->fsts >> 8].high & 0xffff, SID + 1);
}

/* The interrupts' addresses are no memory, and large pages end before them. */
static void test_interrupt_range(void **state)
{
	uint64_t len = 2 * MIB;
	gpa_t gpa;

	build(4);
	enable(VTD_TE);
	poke(L3 + 3 * 8, RW | 1 << 7);
	assert_int_equal(v->iommu.ops->translate(&v->iommu, SID, 0xfedff000, true, &gpa, &len), 0);
	assert_int_equal(gpa, 0x3edff000);
	assert_int_equal(len, 0x1000);
	assert_int_equal(put(0xfee00000, 0x41), -EFAULT);
	assert_int_equal(t.msi.count, 0);
	expect_no_fault();
}

static void test_quiet_device(void **state)
{
	build(4);
	enable(VTD_TE);
	poke(CONTEXT + SID * 16, L4 | 3);
	assert_int_equal(get(0x9000), -EFAULT);
	assert_int_equal(get(1ULL << 50), -EFAULT);
	poke(CONTEXT + SID * 16, L4 | 2); /* counts in an entry that is not present, too */
	assert_int_equal(get(0x5000), -EFAULT);
	expect_no_fault();
	poke(ROOT, 0); /* but not before it was read */
	assert_int_equal(get(0x5000), -EFAULT);
	expect_fault(VTD_ROOT_NOT_PRESENT, 0x5000, true);
}

/* ---- vectors ---- */

static void test_vectors(void **state)
{
	unsigned n = 1, budget = 100;
	struct iovec iov[4];

	build(3);
	enable(VTD_TE);
	poke(L1 + 7 * 8, (DATA + 0x3000) | RW);
	assert_int_equal(dma_iov(&path, 0x5800, 0x2000, true, iov, 4, &n, &budget), 0);
	assert_int_equal(n, 3); /* pages 6 and 7 are neighbours */
	assert_int_equal(budget, 97);
	assert_ptr_equal(iov[1].iov_base, t.ram.base + DATA + 0x800);
	assert_int_equal(iov[1].iov_len, 0x800);
	assert_ptr_equal(iov[2].iov_base, t.ram.base + DATA + 0x2000);
	assert_int_equal(iov[2].iov_len, 0x1800);
	assert_int_equal(dma_iov(&path, 0x5800, 0x2000, true, iov, 4, &n, &budget), -E2BIG);
	assert_int_equal(n, 3);
	budget = 2;
	n = 0;
	assert_int_equal(dma_iov(&path, 0x5800, 0x2000, true, iov, 4, &n, &budget), -E2BIG);
	assert_int_equal(budget, 0);
	budget = 100;
	assert_int_equal(dma_iov(&path, 0x5800, 0x4000, true, iov, 4, &n, &budget), -EFAULT);
	assert_int_equal(n, 0);
	expect_fault(VTD_NO_WRITE, 0x8000, false);
	assert_ptr_equal(dma_ptr(&path, 0x6ff0, 16, false), t.ram.base + DATA + 0x2ff0);
	assert_null(dma_ptr(&path, 0x6ff0, 17, false));
	assert_null(dma_ptr(&path, 0x8000, 2, false));
	/* without an IOMMU the same, from guest-physical addresses */
	path.iommu = NULL;
	assert_int_equal(dma_iov(&path, DATA, 0x4000, true, iov, 4, &n, &budget), 0);
	assert_int_equal(n, 1);
	assert_ptr_equal(dma_ptr(&path, DATA, 8, true), t.ram.base + DATA);
	assert_null(dma_ptr(&path, MIB - 4, 8, true));
}

/* ---- faults ---- */

static void test_fault_event(void **state)
{
	build(3);
	enable(VTD_TE);
	wr(VTD_FEADDR, 4, 0xfee01003);
	wr(VTD_FEDATA, 4, 0x12340061);
	wr(VTD_FEUADDR, 4, 1);
	/* masked: pending until the mask goes */
	get(0x9000);
	assert_int_equal(t.msi.count, 0);
	assert_int_equal(rd(VTD_FECTL, 4), VTD_EVENT_MASK | VTD_EVENT_PENDING);
	wr(VTD_FECTL, 4, 0);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.addr, 0x1fee01000);
	assert_int_equal(t.msi.data, 0x61);
	assert_int_equal(rd(VTD_FECTL, 4), 0);
	/* the next ones of this requester are the same news, others are recorded without another message */
	get(0xa000);
	assert_int_equal(v->next_fault, 1);
	path.source_id = SID + 8;
	get(0xa000);
	assert_int_equal(v->next_fault, 2);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(rd(VTD_FSTS, 4), VTD_PPF);
	/* all records taken: overflow */
	for (unsigned i = 2; i <= VTD_FAULTS; i++) {
		path.source_id = (uint16_t)(SID + i * 8);
		get(0xa000);
	}
	assert_int_equal(rd(VTD_FSTS, 4), VTD_PPF | VTD_PFO);
	for (unsigned i = 0; i < VTD_FAULTS; i++) {
		assert_int_equal(rd(VTD_FRCD + i * 16 + 8, 8) & 0xffff, SID + i * 8);
		wr(VTD_FRCD + i * 16 + 8, 8, 1ULL << 63);
	}
	assert_int_equal(rd(VTD_FSTS, 4), VTD_PFO);
	get(0xa000); /* nothing is recorded before software has seen that */
	assert_int_equal(rd(VTD_FSTS, 4), VTD_PFO);
	wr(VTD_FSTS, 4, VTD_PFO);
	assert_int_equal(rd(VTD_FSTS, 4), 0);
	assert_int_equal(t.msi.count, 1);
	get(0xa000);
	assert_int_equal(t.msi.count, 2);
	assert_int_equal(rd(VTD_FSTS, 4), VTD_PPF);
	/* a pending one goes with its cause */
	wr(VTD_FRCD + 12, 4, 0x80000000);
	wr(VTD_FECTL, 4, VTD_EVENT_MASK);
	get(0xb000);
	assert_int_equal(rd(VTD_FSTS, 4), VTD_PPF | 1 << 8);
	assert_int_equal(rd(VTD_FECTL, 4), VTD_EVENT_MASK | VTD_EVENT_PENDING);
	wr(VTD_FRCD + 16 + 12, 4, 0x80000000);
	assert_int_equal(rd(VTD_FECTL, 4), VTD_EVENT_MASK);
}

/* ---- the queue ---- */

static unsigned tail;

static void start_queue(void)
{
	tail = 0;
	wr(VTD_IQA, 8, QUEUE);
	wr(VTD_GCMD, 4, VTD_QIE);
	assert_int_equal(rd(VTD_GSTS, 4), VTD_QIE);
}

static void queue(uint64_t low, uint64_t high)
{
	poke(QUEUE + tail, low);
	poke(QUEUE + tail + 8, high);
	tail = (tail + 16) % 4096;
	wr(VTD_IQT, 8, tail);
}

static void test_queue(void **state)
{
	start_queue();
	for (unsigned i = 0; i < 300; i++) { /* around its end */
		queue(1 | 1 << 4, 0);
		queue(2 | 3 << 4 | 3 << 6 | 7ull << 16, 0x5000 | 0x40 | 2);
		queue(4 | 1 << 4 | 3u << 27 | 5ull << 32, 0);
		queue(5 | 2 << 4 | (uint64_t)i << 32, STATUS);
		assert_int_equal(peek(STATUS), i);
		assert_int_equal(rd(VTD_IQH, 8), tail);
	}
	expect_no_fault();
	/* completion by interrupt, once until it is acknowledged */
	wr(VTD_IEADDR, 4, 0xfee02000);
	wr(VTD_IEDATA, 4, 0x62);
	queue(5 | 1 << 4, 0);
	assert_int_equal(t.msi.count, 0);
	assert_int_equal(rd(VTD_IECTL, 4), VTD_EVENT_MASK | VTD_EVENT_PENDING);
	assert_int_equal(rd(VTD_ICS, 4), 1);
	wr(VTD_IECTL, 4, 0);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.addr, 0xfee02000);
	assert_int_equal(t.msi.data, 0x62);
	queue(5 | 1 << 4, 0);
	assert_int_equal(t.msi.count, 1);
	wr(VTD_ICS, 4, 1);
	assert_int_equal(rd(VTD_ICS, 4), 0);
	queue(5 | 1 << 4, 0);
	assert_int_equal(t.msi.count, 2);
	/* a status word that is no memory: lost, and on it goes */
	queue(5 | 2 << 4, OUTSIDE);
	assert_int_equal(rd(VTD_IQH, 8), tail);
	/* off and on: it starts at its beginning */
	wr(VTD_GCMD, 4, 0);
	assert_int_equal(rd(VTD_IQH, 8), 0);
}

static void test_queue_errors(void **state)
{
	static const uint64_t bad[][2] = {
		{ 0, 0 },
		{ 3, 0 }, /* device TLB */
		{ 6 | 1 << 4, 0 },
		{ 15, 0 },
		{ 1, 0 },
		{ 2 | 1 << 9 | 1 << 4, 0 },
		{ 1 | 1 << 4, 1 },
		{ 2 | 1 << 4, 0x80 },
		{ 4 | 1 << 5, 0 },
		{ 5 | 1 << 7, 0 },
		{ 5 | 2 << 4, STATUS | 1 },
	};

	wr(VTD_FECTL, 4, 0);
	wr(VTD_FEDATA, 4, 0x63);
	start_queue();
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		unsigned at = tail;

		queue(bad[i][0], bad[i][1]);
		assert_int_equal(rd(VTD_FSTS, 4), VTD_IQE);
		assert_int_equal(rd(VTD_IQH, 8), at);
		assert_int_equal(t.msi.count, i + 1);
		/* it stands still whatever comes, until software has mended it and says so */
		poke(STATUS, 0);
		queue(5 | 2 << 4 | 9ULL << 32, STATUS);
		assert_int_equal(peek(STATUS), 0);
		poke(QUEUE + at, 5);
		poke(QUEUE + at + 8, 0);
		wr(VTD_FSTS, 4, VTD_IQE);
		assert_int_equal(rd(VTD_FSTS, 4), 0);
		assert_int_equal(peek(STATUS), 9);
		assert_int_equal(rd(VTD_IQH, 8), tail);
	}
	/* a tail outside of the queue; a queue outside of memory; two pages make room for the first */
	wr(VTD_IQT, 4, 4096);
	assert_int_equal(rd(VTD_FSTS, 4), VTD_IQE);
	wr(VTD_GCMD, 4, 0);
	wr(VTD_FSTS, 4, VTD_IQE);
	for (unsigned at = 0; at < 4096; at += 16) {
		poke(QUEUE + at, 5);
		poke(QUEUE + at + 8, 0);
	}
	wr(VTD_IQA, 8, QUEUE | 1);
	wr(VTD_GCMD, 4, VTD_QIE);
	assert_int_equal(rd(VTD_FSTS, 4), 0);
	assert_int_equal(rd(VTD_IQH, 8), 4096);
	wr(VTD_GCMD, 4, 0);
	wr(VTD_IQT, 4, 16);
	wr(VTD_IQA, 8, OUTSIDE);
	wr(VTD_GCMD, 4, VTD_QIE);
	assert_int_equal(rd(VTD_FSTS, 4), VTD_IQE);
}

/* ---- interrupts ---- */

static void set_irte(unsigned i, uint64_t low, uint64_t high)
{
	poke(IRT + i * 16, low);
	poke(IRT + i * 16 + 8, high);
}

/* A message in remappable format with @index, or @base with a subindex. */
static void send(unsigned index, int subindex)
{
	uint64_t addr = 0xfee00010 | (index & 0x7fff) << 5 | (index >> 15) << 2;

	t.msi = (struct test_msi){ 0 };
	v->iommu.ops->msi(&v->iommu, SID, subindex < 0 ? addr : addr | 8,
			  subindex < 0 ? 0xdead0000 : (uint32_t)subindex);
}

static void test_remapping(void **state)
{
	/* off: as it is */
	v->iommu.ops->msi(&v->iommu, SID, 0xfee03000, 0x4041);
	assert_int_equal(t.msi.addr, 0xfee03000);
	assert_int_equal(t.msi.data, 0x4041);
	enable(VTD_IRE);
	set_irte(3, 1 | 0x51u << 16 | 7ULL << 40, 1 << 18 | SID);
	send(3, -1);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.addr, 0xfee07000);
	assert_int_equal(t.msi.data, 0x4051);
	send(1, 2); /* the sum counts */
	assert_int_equal(t.msi.data, 0x4051);
	/* logical, redirected, lowest priority, level */
	set_irte(3, 1 | 4 | 8 | 0x10 | 1 << 5 | 0x52u << 16 | 9ULL << 40 | 0xf00, 0);
	send(3, -1);
	assert_int_equal(t.msi.addr, 0xfee0900c);
	assert_int_equal(t.msi.data, 0xc152);
	/* what is no interrupt goes where it went */
	v->iommu.ops->msi(&v->iommu, SID, 0x1000, 5);
	assert_int_equal(t.msi.addr, 0x1000);
	expect_no_fault();
	/* compatibility format: blocked unless allowed */
	t.msi.count = 0;
	v->iommu.ops->msi(&v->iommu, SID, 0xfee03000, 0x41);
	assert_int_equal(t.msi.count, 0);
	expect_fault(VTD_INTR_COMPATIBILITY, 0, false);
	wr(VTD_GCMD, 4, VTD_IRE | VTD_CFI);
	v->iommu.ops->msi(&v->iommu, SID, 0xfee03000, 0x41);
	assert_int_equal(t.msi.data, 0x41);
	expect_no_fault();
}

static void test_refused_interrupts(void **state)
{
	static const uint64_t fine = 1 | 0x51u << 16;
	static const struct {
		uint64_t low, high;
		uint8_t reason;
	} rows[] = {
		{ fine, 0, 0 },
		{ fine & ~1ULL, 0, VTD_INTR_NOT_PRESENT },
		{ fine | 1 << 12, 0, VTD_IRTE_RESERVED },
		{ fine | 1 << 15, 0, VTD_IRTE_RESERVED }, /* posted */
		{ fine | 1ULL << 24, 0, VTD_IRTE_RESERVED },
		{ fine | 1ULL << 32, 0, VTD_IRTE_RESERVED }, /* 32-bit ids */
		{ fine, 1 << 20, VTD_IRTE_RESERVED },
		{ fine, 3 << 18, VTD_IRTE_RESERVED },
		/* the requester: all bits, without bit 2, 2 and 1, 2 to 0 of the function */
		{ fine, 1 << 18 | (SID ^ 8), VTD_INTR_SOURCE },
		{ fine, 1 << 18 | 1 << 16 | (SID ^ 4), 0 },
		{ fine, 1 << 18 | 1 << 16 | (SID ^ 2), VTD_INTR_SOURCE },
		{ fine, 1 << 18 | 2 << 16 | (SID ^ 6), 0 },
		{ fine, 1 << 18 | 2 << 16 | (SID ^ 1), VTD_INTR_SOURCE },
		{ fine, 1 << 18 | 3 << 16 | (SID ^ 7), 0 },
		{ fine, 1 << 18 | 3 << 16 | (SID ^ 8), VTD_INTR_SOURCE },
		/* or its bus, first and last */
		{ fine, 2 << 18 | 0x0001, 0 },
		{ fine, 2 << 18 | 0x0102, VTD_INTR_SOURCE },
	};

	enable(VTD_IRE);
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		set_irte(4, rows[i].low, rows[i].high);
		send(4, -1);
		assert_int_equal(t.msi.count, !rows[i].reason);
		if (rows[i].reason)
			expect_fault(rows[i].reason, 4ULL << 48, false);
		/* quiet entries refuse as well */
		set_irte(4, rows[i].low | 2, rows[i].high);
		send(4, -1);
		assert_int_equal(t.msi.count, !rows[i].reason);
		expect_no_fault();
	}
	send(8, -1);
	expect_fault(VTD_INTR_INDEX, 8ULL << 48, false);
	send(0xffff, -1);
	expect_fault(VTD_INTR_INDEX, 0xffffULL << 48, false);
	send(4, 0x10001);
	expect_fault(VTD_INTR_RESERVED, 4ULL << 48, false);
	send(7, 0xffff);
	expect_fault(VTD_INTR_INDEX, 0x10006ULL << 48, false);
	wr(VTD_IRTA, 8, OUTSIDE | 0xf);
	wr(VTD_GCMD, 4, VTD_IRE | VTD_SIRTP);
	send(0xffff, -1);
	expect_fault(VTD_INTR_ACCESS, 0xffffULL << 48, false);
	assert_int_equal(t.msi.count, 0);
}

static void ioapic_write(uint8_t reg, uint32_t value)
{
	bus_write(t.env.bus, BUS_MMIO, IOAPIC_BASE, 4, reg);
	bus_write(t.env.bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4, value);
}

static uint32_t ioapic_read(uint8_t reg)
{
	bus_write(t.env.bus, BUS_MMIO, IOAPIC_BASE, 4, reg);
	return (uint32_t)bus_read(t.env.bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4);
}

static void test_ioapic(void **state)
{
	struct ioapic *io;

	t.env.iommu = &v->iommu;
	assert_int_equal(ioapic_create(&io, &t.env, NULL), 0);
	ioapic_write(0x10 + 2 * 5 + 1, 0x07000000); /* compatibility format, APIC 7 */
	ioapic_write(0x10 + 2 * 5, 0x45);
	ioapic_set_irq(io, 5, true);
	ioapic_set_irq(io, 5, false);
	assert_int_equal(t.msi.addr, 0xfee07000);
	assert_int_equal(t.msi.data, 0x4045);
	/* remappable: index 6 with its highest bit elsewhere, and only then a table so long */
	enable(VTD_IRE);
	set_irte(6, 1 | 0x10 | 0x53u << 16 | 3ULL << 40, 1 << 18 | IOAPIC_SOURCE_ID);
	ioapic_write(0x10 + 2 * 5 + 1, 6 << 17 | 1 << 16);
	assert_int_equal(ioapic_read(0x10 + 2 * 5 + 1), 6 << 17 | 1 << 16);
	ioapic_write(0x10 + 2 * 5, 0x8005); /* level; pin as vector, for the EOI */
	t.msi.count = 0;
	ioapic_set_irq(io, 5, true);
	assert_int_equal(t.msi.count, 1);
	assert_int_equal(t.msi.addr, 0xfee03000);
	assert_int_equal(t.msi.data, 0xc053);
	ioapic_eoi(io, 5);
	assert_int_equal(t.msi.count, 2);
	ioapic_set_irq(io, 5, false);
	ioapic_eoi(io, 5);
	expect_no_fault();
	ioapic_write(0x10 + 2 * 5, 0x8805);
	ioapic_set_irq(io, 5, true);
	assert_int_equal(t.msi.count, 2);
	assert_int_equal(v->faults[0].low, 0x8006ULL << 48);
	assert_int_equal(v->faults[0].high & 0xffff, IOAPIC_SOURCE_ID);
	io->dev.cls->destroy(&io->dev);
	/* without an IOMMU those bits do not exist */
	t.env.iommu = NULL;
	assert_int_equal(ioapic_create(&io, &t.env, NULL), 0);
	ioapic_write(0x11, UINT32_MAX);
	assert_int_equal(ioapic_read(0x11), 0xff000000);
	io->dev.cls->destroy(&io->dev);
}

/* ---- state ---- */

static void test_state_moves(void **state)
{
	struct test_env u;
	struct vtd *w;

	build(4);
	enable(VTD_TE | VTD_IRE | VTD_QIE);
	get(0x9000);
	test_env_init(&u);
	assert_int_equal(vtd_create(&w, &u.env, 40, NULL), 0);
	test_move_state(&v->dev, &w->dev);
	assert_int_equal(w->root, ROOT);
	assert_int_equal(w->gsts, v->gsts);
	assert_int_equal(bus_read(u.env.bus, BUS_MMIO, VTD_BASE + VTD_FSTS, 4), VTD_PPF);
	/* its own memory has no tables: refused, in the next record */
	path = (struct dma_path){ .ram = &u.ram, .iommu = &w->iommu, .source_id = SID + 8 };
	assert_int_equal(get(0x5000), -EFAULT);
	assert_int_equal(w->faults[1].high >> 32 & 0xff, VTD_ROOT_NOT_PRESENT);
	w->dev.cls->reset(&w->dev);
	assert_int_equal(w->gsts, 0);
	w->dev.cls->destroy(&w->dev);
	test_env_fini(&u);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_registers),
		T(test_invalidation_by_register),
		T(test_off),
		T(test_pages),
		T(test_large_pages),
		T(test_fault_reasons),
		T(test_width),
		T(test_interrupt_range),
		T(test_quiet_device),
		T(test_vectors),
		T(test_fault_event),
		T(test_queue),
		T(test_queue_errors),
		T(test_remapping),
		T(test_refused_interrupts),
		T(test_ioapic),
		T(test_state_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
