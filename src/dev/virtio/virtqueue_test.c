/* SPDX-License-Identifier: Apache-2.0 */
/* The ring alone, against a driver made of plain writes to guest RAM. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "dev/virtio/virtqueue.h"

#define DESC	0x1000u
#define AVAIL	0x3000u
#define USED	0x4000u
#define TABLE	0x6000u
#define BUFS	0x10000u
#define RAM_END (MIB)

static struct guest_ram ram;
static struct virtqueue vq;
static struct iovec iov[VQ_IOV_MAX];
static struct vq_elem elem = { .iov = iov };
static uint16_t avail_idx;

static void poke16(gpa_t gpa, uint16_t v)
{
	assert_int_equal(ram_write(&ram, gpa, &v, 2), 0);
}

static uint16_t peek16(gpa_t gpa)
{
	uint16_t v;

	assert_int_equal(ram_read(&ram, gpa, &v, 2), 0);
	return v;
}

static void set_desc(gpa_t table, unsigned i, gpa_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	struct vq_desc d = { addr, len, flags, next };

	assert_int_equal(ram_write(&ram, table + i * 16, &d, 16), 0);
}

static void publish(uint16_t head)
{
	poke16(AVAIL + 4 + (avail_idx % vq.size) * 2, head);
	poke16(AVAIL + 2, ++avail_idx);
}

static void set_used_event(uint16_t v)
{
	poke16(AVAIL + 4 + vq.size * 2, v);
}

static uint16_t get_avail_event(void)
{
	return peek16(USED + 4 + vq.size * 8);
}

static void start(uint16_t size, bool event_idx, bool indirect)
{
	static const uint8_t zeroes[0x10000];

	assert_int_equal(ram_write(&ram, 0, zeroes, sizeof(zeroes)), 0);
	vq_init(&vq, &ram, 256);
	vq.size = size;
	vq.desc_gpa = DESC;
	vq.avail_gpa = AVAIL;
	vq.used_gpa = USED;
	vq.is_enabled = true;
	assert_int_equal(vq_map(&vq, event_idx, indirect), 0);
	assert_true(vq_is_ready(&vq));
	avail_idx = 0;
}

static int setup(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(ram_create(&ram, RAM_END, 0, &err), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ram_destroy(&ram);
	return 0;
}

static void test_chain(void **state)
{
	(void)state;
	start(8, false, false);
	assert_int_equal(vq_pop(&vq, &elem), 0);
	set_desc(DESC, 3, BUFS, 100, VQ_DESC_F_NEXT, 5);
	set_desc(DESC, 5, BUFS + 0x1000, 200, VQ_DESC_F_NEXT, 0);
	set_desc(DESC, 0, BUFS + 0x2000, 0, VQ_DESC_F_NEXT | VQ_DESC_F_WRITE, 1); /* empty: legal */
	set_desc(DESC, 1, BUFS + 0x3000, 300, VQ_DESC_F_WRITE, 77);
	publish(3);
	assert_int_equal(vq_available(&vq), 1);
	assert_int_equal(vq_peek(&vq, &elem), 1);
	assert_int_equal(vq_pop(&vq, &elem), 1);
	assert_int_equal(elem.head, 3);
	assert_int_equal(elem.nout, 2);
	assert_int_equal(elem.nin, 1);
	assert_int_equal(elem.out_bytes, 300);
	assert_int_equal(elem.in_bytes, 300);
	assert_ptr_equal(elem.iov[0].iov_base, ram_ptr(&ram, BUFS, 100));
	assert_ptr_equal(vq_in_iov(&elem)->iov_base, ram_ptr(&ram, BUFS + 0x3000, 300));
	assert_int_equal(vq_pop(&vq, &elem), 0);

	/* Written pages get dirty, others not; nothing is seen before the flush. */
	size_t page = (size_t)(ram_ptr(&ram, BUFS, 1) - (void *)ram.base) >> GUEST_PAGE_SHIFT;
	memset((void *)ram.page_flags, RAM_PAGE_TRACK, ram.size_bytes >> GUEST_PAGE_SHIFT);
	elem = (struct vq_elem){
		.head = 3, .nout = 2, .nin = 1, .out_bytes = 300, .in_bytes = 300, .iov = iov
	};
	vq_put(&vq, &elem, 1000);
	assert_int_equal(peek16(USED + 2), 0);
	assert_true(vq_flush(&vq));
	assert_int_equal(peek16(USED + 2), 1);
	assert_int_equal(peek16(USED + 4), 3);
	assert_int_equal(peek16(USED + 8), 300); /* clamped */
	assert_true(ram.page_flags[page + 3] & RAM_PAGE_DIRTY);
	assert_false(ram.page_flags[page] & RAM_PAGE_DIRTY);
	assert_true(ram.page_flags[USED >> 12] & RAM_PAGE_DIRTY);
	assert_false(vq_flush(&vq));
	/* A put that nothing was popped for is nothing. */
	vq_put(&vq, &elem, 1);
	assert_false(vq_flush(&vq));
}

static void test_unpop(void **state)
{
	(void)state;
	start(4, false, false);
	for (unsigned i = 0; i < 3; i++) {
		set_desc(DESC, i, BUFS + i * 0x100, 16, VQ_DESC_F_WRITE, 0);
		publish(i);
	}
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(vq_pop(&vq, &elem), 1);
	vq_unpop(&vq, 2);
	assert_int_equal(vq_pop(&vq, &elem), 1);
	assert_int_equal(elem.head, 1);
	assert_int_equal(vq_available(&vq), 1);
}

/* 200,000 chains through a ring of 4: indices wrap thrice; out of order. */
static void test_wrap(void **state)
{
	uint16_t used_seen = 0;

	(void)state;
	start(4, true, false);
	for (unsigned i = 0; i < 4; i++)
		set_desc(DESC, i, BUFS + i * 0x100, 16, VQ_DESC_F_WRITE, 0);
	for (unsigned i = 0; i < 50000; i++) {
		struct vq_elem e[4];
		struct iovec v[4][VQ_IOV_MAX / 128];
		for (unsigned k = 0; k < 4; k++)
			publish((i + k) % 4);
		for (unsigned k = 0; k < 4; k++) {
			elem.iov = iov;
			assert_int_equal(vq_pop(&vq, &elem), 1);
			assert_int_equal(elem.head, (i + k) % 4);
			e[k] = elem;
			v[k][0] = iov[0];
			e[k].iov = v[k];
		}
		assert_int_equal(vq_pop(&vq, &elem), 0);
		for (unsigned k = 4; k--;)
			vq_put(&vq, &e[k], k);
		vq_flush(&vq);
		for (unsigned k = 4; k--; used_seen++) {
			assert_int_equal(peek16(USED + 4 + (used_seen % 4) * 8), (i + k) % 4);
			assert_int_equal(peek16(USED + 8 + (used_seen % 4) * 8), k);
		}
		assert_int_equal(peek16(USED + 2), used_seen);
	}
}

static void one_round(void)
{
	set_desc(DESC, 0, BUFS, 16, VQ_DESC_F_WRITE, 0);
	publish(0);
	assert_int_equal(vq_pop(&vq, &elem), 1);
	vq_put(&vq, &elem, 1);
}

static void test_event_idx(void **state)
{
	(void)state;
	start(8, true, false);
	set_used_event(0);
	one_round();
	assert_true(vq_flush(&vq)); /* first ever */
	set_used_event(3);	    /* tell me when element 3 is used: index 4 */
	for (unsigned i = 1; i < 3; i++) {
		one_round();
		assert_false(vq_flush(&vq));
	}
	one_round();
	assert_true(vq_flush(&vq));
	one_round();
	assert_false(vq_flush(&vq));
	/* Passed in the middle of a batch. */
	set_used_event(6);
	one_round();
	one_round();
	one_round();
	assert_true(vq_flush(&vq));
	/* Across the wrap. */
	while (avail_idx != 0xfffe) {
		one_round();
		vq_flush(&vq);
	}
	set_used_event(0);
	one_round();
	one_round();
	assert_false(vq_flush(&vq)); /* used index 0: element ffff */
	one_round();
	assert_true(vq_flush(&vq));

	/* Kicks: avail_event follows when armed only. */
	vq_disarm_kick(&vq);
	assert_false(vq_arm_kick(&vq));
	assert_int_equal(get_avail_event(), avail_idx);
	publish(0);
	assert_true(vq_arm_kick(&vq));
	assert_false(vq_arm_kick_more(&vq));
	assert_int_equal(get_avail_event(), avail_idx);
	/* NO_INTERRUPT means nothing here. */
	poke16(AVAIL, VQ_AVAIL_F_NO_INTERRUPT);
	assert_int_equal(vq_pop(&vq, &elem), 1);
	vq_put(&vq, &elem, 0);
	set_used_event(vq.used_idx);
	assert_true(vq_flush(&vq));
}

static void test_flags(void **state)
{
	(void)state;
	start(8, false, false);
	one_round();
	assert_true(vq_flush(&vq));
	poke16(AVAIL, VQ_AVAIL_F_NO_INTERRUPT);
	one_round();
	assert_false(vq_flush(&vq));
	poke16(AVAIL, 0);
	one_round();
	assert_true(vq_flush(&vq));
	vq_disarm_kick(&vq);
	assert_int_equal(peek16(USED), VQ_USED_F_NO_NOTIFY);
	assert_false(vq_arm_kick(&vq));
	assert_int_equal(peek16(USED), 0);
}

static void test_indirect(void **state)
{
	(void)state;
	start(4, false, true);
	/* Longer than the ring, at an odd address, in a strange order. */
	gpa_t table = TABLE + 3;
	for (unsigned i = 0; i < 20; i++)
		set_desc(table, i, BUFS + i * 0x100, 10, i == 13 ? VQ_DESC_F_WRITE : VQ_DESC_F_NEXT,
			 (i + 7) % 20);
	set_desc(DESC, 2, table, 20 * 16, VQ_DESC_F_INDIRECT, 0);
	publish(2);
	assert_int_equal(vq_pop(&vq, &elem), 1);
	assert_int_equal(elem.head, 2);
	assert_int_equal(elem.nin, 1);
	unsigned steps = 1;
	for (unsigned i = 0; i != 13; i = (i + 7) % 20)
		steps++;
	assert_int_equal(elem.nout + elem.nin, steps);
	vq_put(&vq, &elem, 10);
	vq_flush(&vq);
	/* After direct descriptors in a chain (2.7.5.3.1 lets the last one be indirect). */
	set_desc(DESC, 0, BUFS, 7, VQ_DESC_F_NEXT, 1);
	set_desc(DESC, 1, TABLE, 16, VQ_DESC_F_INDIRECT, 0);
	set_desc(TABLE, 0, BUFS + 0x500, 9, 0, 0);
	publish(0);
	assert_int_equal(vq_pop(&vq, &elem), 1);
	assert_int_equal(elem.out_bytes, 16);
}

/* What a broken ring looks like: each case in a fresh ring of 8 with indirect tables. */
static void expect_broken(void)
{
	assert_int_equal(vq_pop(&vq, &elem), -EINVAL);
	assert_true(vq.is_broken);
	assert_false(vq_is_ready(&vq));
	/* And it stays so, whatever comes. */
	assert_int_equal(vq_pop(&vq, &elem), -EINVAL);
	assert_int_equal(vq_available(&vq), 0);
	vq_put(&vq, &elem, 5);
	assert_false(vq_flush(&vq));
	assert_false(vq_arm_kick(&vq));
	vq_unpop(&vq, 1);
	start(8, true, true);
}

static void test_malicious(void **state)
{
	(void)state;
	start(8, true, true);

	/* Loops. */
	set_desc(DESC, 0, BUFS, 16, VQ_DESC_F_NEXT, 0);
	publish(0);
	expect_broken();
	set_desc(DESC, 0, BUFS, 0, VQ_DESC_F_NEXT, 1);
	set_desc(DESC, 1, BUFS, 0, VQ_DESC_F_NEXT, 0);
	publish(0);
	expect_broken();
	set_desc(DESC, 0, TABLE, 32, VQ_DESC_F_INDIRECT, 0);
	set_desc(TABLE, 0, BUFS, 16, VQ_DESC_F_NEXT, 1);
	set_desc(TABLE, 1, BUFS, 16, VQ_DESC_F_NEXT, 0);
	publish(0);
	expect_broken();
	/* Indices past the table. */
	publish(8);
	expect_broken();
	publish(0xffff);
	expect_broken();
	set_desc(DESC, 0, BUFS, 16, VQ_DESC_F_NEXT, 8);
	publish(0);
	expect_broken();
	set_desc(DESC, 0, TABLE, 16, VQ_DESC_F_INDIRECT, 0);
	set_desc(TABLE, 0, BUFS, 16, VQ_DESC_F_NEXT, 1);
	publish(0);
	expect_broken();
	/* Wild addresses. */
	static const struct {
		uint64_t addr;
		uint32_t len;
	} wild[] = {
		{ RAM_END, 1 },		 { RAM_END - 1, 2 },	     { UINT64_MAX, 1 },
		{ UINT64_MAX - 15, 16 }, { 0, UINT32_MAX },	     { RAM_END, 0xffff0000 },
		{ 1ULL << 63, 8 },	 { UINT64_MAX, UINT32_MAX }, { 0xfee00000, 16 },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(wild); i++)
		for (unsigned f = 0; f < 2; f++) {
			set_desc(DESC, 0, wild[i].addr, wild[i].len, f ? VQ_DESC_F_WRITE : 0, 0);
			publish(0);
			expect_broken();
		}
	/* Indirect tables: none, odd sizes, outside, nested, together with NEXT. */
	static const struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags;
	} tables[] = {
		{ TABLE, 0, VQ_DESC_F_INDIRECT },
		{ TABLE, 15, VQ_DESC_F_INDIRECT },
		{ TABLE, 24, VQ_DESC_F_INDIRECT },
		{ RAM_END - 16, 32, VQ_DESC_F_INDIRECT },
		{ UINT64_MAX - 15, 16, VQ_DESC_F_INDIRECT },
		{ TABLE, 0xfffffff0, VQ_DESC_F_INDIRECT },
		{ TABLE, 16, VQ_DESC_F_INDIRECT | VQ_DESC_F_NEXT },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(tables); i++) {
		set_desc(DESC, 0, tables[i].addr, tables[i].len, tables[i].flags, 1);
		publish(0);
		expect_broken();
	}
	set_desc(DESC, 0, TABLE, 16, VQ_DESC_F_INDIRECT, 0);
	set_desc(TABLE, 0, TABLE, 16, VQ_DESC_F_INDIRECT, 0);
	publish(0);
	expect_broken();
	/* Readable after writable. */
	set_desc(DESC, 0, BUFS, 16, VQ_DESC_F_WRITE | VQ_DESC_F_NEXT, 1);
	set_desc(DESC, 1, BUFS, 16, 0, 0);
	publish(0);
	expect_broken();
	/* The available index jumps. */
	poke16(AVAIL + 2, 9);
	expect_broken();
	poke16(AVAIL + 2, 0xffff);
	expect_broken();
	/* 4 GiB in one chain: 300 times the whole RAM. */
	vq_init(&vq, &ram, 1024);
	set_desc(DESC, 0, 0, 0, 0, 0);
	start(8, false, true);
	vq.host.max_size = 1024;
	for (unsigned i = 0; i < 1024; i++) /* the table lies over other things; good enough */
		set_desc(BUFS, i, 0, RAM_END, i < 1023 ? VQ_DESC_F_NEXT : 0, i + 1);
	for (unsigned n = 0; n < 4; n++) {
		start(8, false, true);
		vq.host.max_size = 1024;
		set_desc(DESC, 0, BUFS, 1024 * 16, VQ_DESC_F_INDIRECT, 0);
		publish(0);
		assert_int_equal(vq_pop(&vq, &elem), 1);
		assert_int_equal(elem.out_bytes, 1024 * MIB);
	}
	/* The same head again and again, never put back: more in flight than the ring holds. */
	start(8, false, false);
	set_desc(DESC, 0, BUFS, 16, 0, 0);
	for (unsigned i = 0; i < 8; i++) {
		publish(0);
		assert_int_equal(vq_pop(&vq, &elem), 1);
	}
	publish(0);
	expect_broken();
	/* Indirect without having negotiated it. */
	start(8, false, false);
	set_desc(DESC, 0, TABLE, 16, VQ_DESC_F_INDIRECT, 0);
	publish(0);
	expect_broken();
}

static void test_huge_total(void **state)
{
	/* Needs more RAM than the others: 16 times 256 MiB + some is 4 GiB. */
	struct guest_ram big;
	struct error err;
	struct virtqueue q;

	(void)state;
	assert_int_equal(ram_create(&big, 256 * MIB, 0, &err), 0);
	vq_init(&q, &big, 64);
	q.desc_gpa = DESC;
	q.avail_gpa = AVAIL;
	q.used_gpa = USED;
	q.is_enabled = true;
	assert_int_equal(vq_map(&q, false, false), 0);
	for (unsigned n = 15; n <= 16; n++) {
		for (unsigned i = 0; i < n; i++) {
			struct vq_desc d = { 0, 256 * MIB, i + 1 < n ? VQ_DESC_F_NEXT : 0, i + 1 };
			assert_int_equal(ram_write(&big, DESC + i * 16, &d, 16), 0);
		}
		uint16_t idx = n - 14;
		assert_int_equal(ram_write(&big, AVAIL + 2, &idx, 2), 0);
		assert_int_equal(vq_pop(&q, &elem), n == 15 ? 1 : -EINVAL);
	}
	ram_destroy(&big);
}

static void test_bad_areas(void **state)
{
	static const struct {
		uint64_t desc, avail, used;
	} bad[] = {
		{ DESC + 8, AVAIL, USED },	     { DESC, AVAIL + 1, USED },
		{ DESC, AVAIL, USED + 2 },	     { RAM_END, AVAIL, USED },
		{ RAM_END - 128 + 16, AVAIL, USED }, { DESC, RAM_END - 20, USED },
		{ DESC, AVAIL, RAM_END - 68 },	     { UINT64_MAX - 15, AVAIL, USED },
		{ DESC, UINT64_MAX - 1, USED },	     { DESC, AVAIL, UINT64_MAX - 3 },
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		start(8, true, true);
		vq.desc_gpa = bad[i].desc;
		vq.avail_gpa = bad[i].avail;
		vq.used_gpa = bad[i].used;
		assert_int_equal(vq_map(&vq, true, true), -EINVAL);
		assert_true(vq.is_broken);
		assert_int_equal(vq_pop(&vq, &elem), -EINVAL);
	}
	/* The last bytes of RAM are fine. */
	start(8, true, true);
	vq.desc_gpa = RAM_END - 128;
	assert_int_equal(vq_map(&vq, true, true), 0);
	vq_reset(&vq);
	assert_int_equal(vq_pop(&vq, &elem), 0);
	assert_int_equal(vq.size, 256);
}

static void test_state(void **state)
{
	struct virtqueue other;
	struct bytes b = { 0 };
	struct error err = { 0 };

	(void)state;
	if (state_desc_verify(&vq_state, &err) < 0)
		fail_msg("%s", err.text);
	start(8, true, false);
	one_round();
	vq_flush(&vq);
	publish(0);
	assert_int_equal(state_save(&vq_state, &vq, &b), 0);
	vq_init(&other, &ram, 256);
	struct byte_reader r = { .data = b.data, .len = b.len };
	assert_int_equal(state_load(&vq_state, &other, &r, &err), 0);
	assert_int_equal(vq_map(&other, true, false), 0);
	assert_int_equal(vq_pop(&other, &elem), 1);
	vq_put(&other, &elem, 1);
	vq_flush(&other);
	assert_int_equal(peek16(USED + 2), 2);
	/* Sizes that this device doesn't have. */
	vq_init(&other, &ram, 4);
	r = (struct byte_reader){ .data = b.data, .len = b.len };
	assert_int_equal(state_load(&vq_state, &other, &r, &err), -EINVAL);
	bytes_free(&b);
	vq.size = 7;
	assert_int_equal(state_save(&vq_state, &vq, &b), 0);
	vq_init(&other, &ram, 256);
	r = (struct byte_reader){ .data = b.data, .len = b.len };
	assert_int_equal(state_load(&vq_state, &other, &r, &err), -EINVAL);
	bytes_free(&b);
}

static void test_iov(void **state)
{
	uint8_t a[10], b[1], c[20], buf[64];
	struct iovec v[] = { { a, 10 }, { NULL, 0 }, { b, 1 }, { c, 20 } }, out[4];

	(void)state;
	for (unsigned i = 0; i < 31; i++)
		buf[i] = i;
	assert_int_equal(iov_bytes(v, 4), 31);
	assert_int_equal(iov_from_buf(v, 4, 0, buf, 64), 31);
	assert_int_equal(b[0], 10);
	for (size_t off = 0; off <= 33; off++)
		for (size_t len = 0; len <= 33; len++) {
			uint8_t got[64];
			size_t want = off >= 31 ? 0 : MIN(len, 31 - off);
			assert_int_equal(iov_to_buf(v, 4, off, got, len), want);
			assert_memory_equal(got, buf + off, want);
			unsigned n = iov_slice(v, 4, off, len, out);
			assert_int_equal(iov_bytes(out, n), want);
			assert_int_equal(iov_to_buf(out, n, 0, got, 64), want);
			assert_memory_equal(got, buf + off, want);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_chain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unpop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wrap, setup, teardown),
		cmocka_unit_test_setup_teardown(test_event_idx, setup, teardown),
		cmocka_unit_test_setup_teardown(test_flags, setup, teardown),
		cmocka_unit_test_setup_teardown(test_indirect, setup, teardown),
		cmocka_unit_test_setup_teardown(test_malicious, setup, teardown),
		cmocka_unit_test(test_huge_total),
		cmocka_unit_test_setup_teardown(test_bad_areas, setup, teardown),
		cmocka_unit_test_setup_teardown(test_state, setup, teardown),
		cmocka_unit_test(test_iov),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
