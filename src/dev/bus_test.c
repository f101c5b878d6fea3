/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"
#include <errno.h>
#include <string.h>

#include "dev/device.h"

struct probe {
	uint8_t mem[256];
	uint64_t last_offset;
	unsigned last_size;
	unsigned accesses;
};

static uint64_t probe_read(void *dev, uint64_t offset, unsigned size)
{
	struct probe *p = dev;
	uint64_t v = 0;

	assert_true(offset + size <= sizeof(p->mem));
	p->last_offset = offset;
	p->last_size = size;
	p->accesses++;
	memcpy(&v, p->mem + offset, size);
	return v | (size < 8 ? ~0ull << size * 8 : 0); /* the bus must cut this off */
}

static void probe_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct probe *p = dev;

	assert_true(offset + size <= sizeof(p->mem));
	p->last_offset = offset;
	p->last_size = size;
	p->accesses++;
	memcpy(p->mem + offset, &value, size);
}

static const struct bus_ops probe_ops = { probe_read, probe_write };

static void test_empty(void **state)
{
	struct bus *b = bus_create();

	assert_int_equal(bus_read(b, BUS_PIO, 0x80, 1), 0xff);
	assert_int_equal(bus_read(b, BUS_PIO, 0x80, 4), 0xffffffff);
	assert_true(bus_read(b, BUS_MMIO, 0xfee00000, 8) == UINT64_MAX);
	bus_write(b, BUS_MMIO, UINT64_MAX, 8, 1); /* wraps: still nothing */
	bus_destroy(b);
}

struct counted {
	const void *dev;
	uint64_t sum;
};

static void count(void *arg, enum bus_space space, uint64_t base, const void *dev, uint64_t accesses)
{
	struct counted *c = arg;

	assert_int_equal(space, BUS_PIO);
	if (dev == c->dev)
		c->sum += accesses;
}

/* What the bus counted for @p is what @p saw. */
static void check_counters(struct bus *b, const struct probe *p)
{
	struct counted c = { p, 0 };

	bus_counters(b, count, &c);
	assert_int_equal(c.sum, p->accesses);
	assert_true(c.sum > 0);
}

static void test_dispatch_and_edges(void **state)
{
	struct bus *b = bus_create();
	struct probe p = { 0 }, q = { 0 };

	assert_int_equal(bus_add(b, BUS_PIO, 0x60, 1, 0, &probe_ops, &p, NULL), 0);
	assert_int_equal(bus_add(b, BUS_PIO, 0x61, 4, 0, &probe_ops, &q, NULL), 0);
	bus_write(b, BUS_PIO, 0x61, 4, 0x11223344);
	assert_int_equal(q.last_size, 4);
	assert_int_equal(q.mem[0], 0x44);
	assert_int_equal(bus_read(b, BUS_PIO, 0x61, 4), 0x11223344);
	/* across the edge: bytes */
	bus_write(b, BUS_PIO, 0x60, 2, 0xaabb);
	assert_int_equal(p.mem[0], 0xbb);
	assert_int_equal(q.mem[0], 0xaa);
	assert_int_equal(q.last_size, 1);
	/* into nothing: the covered part is answered */
	assert_int_equal(bus_read(b, BUS_PIO, 0x64, 4), 0xffffff11);
	/* ports wrap at 64 K */
	assert_int_equal(bus_add(b, BUS_PIO, 0xffff, 1, 0, &probe_ops, &p, NULL), 0);
	assert_int_equal(bus_read(b, BUS_PIO, 0xffff, 2), 0xffbb);
	check_counters(b, &p);
	check_counters(b, &q);
	bus_destroy(b);
}

static void test_overlap_and_priority(void **state)
{
	struct bus *b = bus_create();
	struct probe p = { 0 }, q = { 0 };
	struct bus_range *r = NULL;

	memset(p.mem, 1, sizeof(p.mem));
	memset(q.mem, 2, sizeof(q.mem));
	assert_int_equal(bus_add(b, BUS_MMIO, 0x1000, 0x100, 0, &probe_ops, &p, NULL), 0);
	assert_int_equal(bus_add(b, BUS_MMIO, 0x10ff, 1, 0, &probe_ops, &q, &r), -EEXIST);
	assert_null(r);
	assert_int_equal(bus_add(b, BUS_MMIO, 0x1040, 0x10, 1, &probe_ops, &q, &r), 0);
	assert_int_equal(bus_read(b, BUS_MMIO, 0x103f, 1), 1);
	assert_int_equal(bus_read(b, BUS_MMIO, 0x1040, 1), 2);
	assert_int_equal(q.last_offset, 0);
	assert_int_equal(bus_read(b, BUS_MMIO, 0x104f, 1), 2);
	assert_int_equal(bus_read(b, BUS_MMIO, 0x1050, 1), 1);
	assert_int_equal(p.last_offset, 0x50); /* offsets count from the range's start */
	assert_int_equal(bus_read(b, BUS_MMIO, 0x103c, 8), 0x0202020201010101);
	bus_remove(b, r);
	bus_remove(b, NULL);
	assert_int_equal(bus_read(b, BUS_MMIO, 0x1040, 1), 1);
	/* the lower priority may also come later */
	assert_int_equal(bus_add(b, BUS_MMIO, 0xf00, 0x200, -1, &probe_ops, &q, &r), 0);
	assert_int_equal(bus_read(b, BUS_MMIO, 0xfff, 1), 2);
	assert_int_equal(bus_read(b, BUS_MMIO, 0x1000, 1), 1);
	bus_destroy(b);
}

static void test_bad_ranges(void **state)
{
	struct bus *b = bus_create();
	struct probe p = { 0 };

	assert_int_equal(bus_add(b, BUS_PIO, 0xffff, 2, 0, &probe_ops, &p, NULL), -EINVAL);
	assert_int_equal(bus_add(b, BUS_PIO, 0, 0, 0, &probe_ops, &p, NULL), -EINVAL);
	assert_int_equal(bus_add(b, BUS_MMIO, UINT64_MAX, 2, 0, &probe_ops, &p, NULL), -EINVAL);
	assert_int_equal(bus_add(b, BUS_MMIO, UINT64_MAX - 255, 256, 0, &probe_ops, &p, NULL), 0);
	p.mem[255] = 7;
	assert_int_equal(bus_read(b, BUS_MMIO, UINT64_MAX, 1), 7);
	assert_int_equal(bus_read(b, BUS_MMIO, UINT64_MAX, 2), 0xff07);
	bus_destroy(b);
}

/* The flat map against a search through the list, on random ranges. */
static void test_random(void **state)
{
	struct {
		struct probe p;
		struct bus_range *r;
		unsigned base, len;
		int prio;
	} *e = calloc(40, sizeof(*e));
	struct bus *b = bus_create();
	unsigned seed = 12345;

	for (unsigned round = 0; round < 2000; round++) {
		unsigned i = rand_r(&seed) % 40, best = 40;
		unsigned addr = rand_r(&seed) % 1024;

		if (e[i].r) {
			bus_remove(b, e[i].r);
			e[i].r = NULL;
		} else {
			int rc;
			bool clash = false;

			e[i].base = rand_r(&seed) % 1000;
			e[i].len = 1 + rand_r(&seed) % 200;
			e[i].prio = rand_r(&seed) % 4;
			memset(e[i].p.mem, i, sizeof(e[i].p.mem));
			for (unsigned k = 0; k < 40; k++)
				clash |= e[k].r && e[k].prio == e[i].prio &&
					 e[k].base < e[i].base + e[i].len &&
					 e[i].base < e[k].base + e[k].len;
			rc = bus_add(b, BUS_MMIO, e[i].base, e[i].len, e[i].prio, &probe_ops,
				     &e[i].p, &e[i].r);
			assert_int_equal(rc, clash ? -EEXIST : 0);
		}
		for (unsigned k = 0; k < 40; k++)
			if (e[k].r && addr >= e[k].base && addr < e[k].base + e[k].len &&
			    (best == 40 || e[k].prio > e[best].prio))
				best = k;
		assert_int_equal(bus_read(b, BUS_MMIO, addr, 1), best == 40 ? 0xff : best);
	}
	bus_destroy(b);
	free(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_dispatch_and_edges),
		cmocka_unit_test(test_overlap_and_priority),
		cmocka_unit_test(test_bad_ranges),
		cmocka_unit_test(test_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
