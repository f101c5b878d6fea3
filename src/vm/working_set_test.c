/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "vm/snapshot_ram.h"
#include "vm/working_set.h"

#define RAM_BYTES (4 * MIB)

static struct error err;
static struct guest_ram ram;

static int setup(void **state)
{
	return ram_create(&ram, RAM_BYTES, 0, &err);
}

static int teardown(void **state)
{
	ram_destroy(&ram);
	return 0;
}

static bool has(const struct working_set *w, uint32_t page)
{
	for (size_t i = 0; i < w->nruns; i++)
		if (page - w->runs[i].first < w->runs[i].n)
			return true;
	return false;
}

static void test_touched_pages(void **state)
{
	struct working_set w = { 0 }, back = { 0 };
	struct bytes a = { 0 }, b = { 0 };

	madvise(ram.base, RAM_BYTES, MADV_NOHUGEPAGE);
	ram.base[3 * GUEST_PAGE_SIZE] = 1;
	ram.base[4 * GUEST_PAGE_SIZE] = 1;
	ram.base[900 * GUEST_PAGE_SIZE] = 1;
	for (uint64_t page = 0; page < RAM_BYTES / GUEST_PAGE_SIZE; page += 256)
		assert_int_equal(working_set_add(&w, &ram, page, 256, false, &err), 0);
	assert_true(has(&w, 3) && has(&w, 4) && has(&w, 900));
	assert_false(has(&w, 0) || has(&w, 1000));
	assert_int_equal(working_set_save(&w, &a, &err), 0);
	assert_int_equal(working_set_parse(&back, a.data, a.len, &err), 0);
	assert_int_equal(working_set_pages(&back), working_set_pages(&w));
	assert_int_equal(working_set_save(&back, &b, &err), 0);
	assert_int_equal(a.len, b.len);
	assert_memory_equal(a.data, b.data, a.len);
	struct ram_files files = { .index = { .ram_bytes = RAM_BYTES } };

	back.ram_bytes /= 2;
	assert_null(working_set_read_ahead(&back, &ram, &files)); /* of another machine */
	working_set_free(&w);
	working_set_free(&back);
	bytes_free(&a);
	bytes_free(&b);
}

static bool is_in_place(uint64_t page)
{
	struct working_set w = { 0 };

	assert_int_equal(working_set_add(&w, &ram, page, 1, false, &err), 0);
	bool is_there = has(&w, (uint32_t)page);

	working_set_free(&w);
	return is_there;
}

/* Its own copy, no page of a file. */
static bool is_own(uint64_t page)
{
	struct working_set w = { 0 };

	assert_int_equal(working_set_add(&w, &ram, page, 1, false, &err), 0);
	bool is_written = w.nruns == 1 && w.runs[0].is_written;

	working_set_free(&w);
	return is_written;
}

/* Pages of a file are put in place by the thread, and those that were written are copied; it can be ended at any time. */
static void test_read_ahead(void **state)
{
	int fd = memfd_create("ahead", MFD_CLOEXEC);
	struct ram_files files = { .fds = &fd };

	assert_int_equal(ftruncate(fd, RAM_BYTES), 0);
	assert_int_equal(pwrite(fd, "x", 1, 7 * GUEST_PAGE_SIZE), 1);
	assert_int_equal(pwrite(fd, "y", 1, 901 * GUEST_PAGE_SIZE), 1);
	assert_int_equal(ram_index_init(&files.index, RAM_BYTES, &err), 0);
	assert_int_equal(ram_index_add_layer(&files.index, "ram-1", &err), 1);
	for (uint32_t i = 0; i < files.index.ngranules; i++)
		files.index.layer[i] = 1;
	for (unsigned i = 0; i < 20; i++) {
		struct working_set w = { .ram_bytes = RAM_BYTES, .nruns = 2 };

		w.runs = calloc(2, sizeof(*w.runs));
		w.runs[0] = (struct page_run){ 7, 1, false };
		w.runs[1] = (struct page_run){ 901, 1, true };
		assert_int_equal(ram_map(&ram, 0, RAM_BYTES, fd, &err), 0);
		assert_false(is_in_place(7) || is_in_place(901));
		struct working_set_reader *r = working_set_read_ahead(&w, &ram, &files);

		assert_non_null(r);
		if (i % 4) /* else it ends before it came to that */
			working_set_put_in_place(r);
		assert_null(w.runs);
		while (i % 2 && !(is_in_place(7) && is_in_place(901)))
			sched_yield();
		if (i == 6) {
			working_set_read_wait(r);
			assert_true(is_in_place(7) && is_in_place(901));
		} else {
			working_set_read_end(r);
		}
		if (i % 2 || i == 6) {
			assert_false(is_own(7));
			assert_true(is_own(901));
		}
	}
	assert_int_equal(ram.base[901 * GUEST_PAGE_SIZE], 'y');
	assert_int_equal(ram_map(&ram, 0, RAM_BYTES, -1, &err), 0);
	ram_index_free(&files.index);
	close(fd);
}

/* Only pages that somebody came by, where that is known; neighbours that the host has put in place are none of them. */
static void test_seen_pages(void **state)
{
	struct working_set w = { 0 };
	uint8_t buf[8];

	madvise(ram.base, RAM_BYTES, MADV_NOHUGEPAGE);
	memset(ram.base, 1, 20 * GUEST_PAGE_SIZE);
	ram.notes_seen = true;
	assert_int_equal(ram_read(&ram, 5 * GUEST_PAGE_SIZE - 4, buf, 8), 0);
	assert_int_equal(ram_write(&ram, 9 * GUEST_PAGE_SIZE, buf, 8), 0);
	assert_int_equal(working_set_add(&w, &ram, 0, RAM_BYTES / GUEST_PAGE_SIZE, true, &err), 0);
	assert_int_equal(working_set_pages(&w), 3);
	assert_true(has(&w, 4) && has(&w, 5) && has(&w, 9));
	working_set_free(&w);
}

static void expect_refused(struct bytes *b)
{
	struct working_set w;
	uint64_t sum = XXH64(b->data, b->len - 8, 0);

	memcpy(b->data + b->len - 8, &sum, 8);
	assert_int_equal(working_set_parse(&w, b->data, b->len, &err), -EINVAL);
}

static void test_damaged_ones(void **state)
{
	struct page_run runs[] = { { 1, 2, false }, { 5, 1, true } };
	struct working_set w = { RAM_BYTES, runs, 2 }, back;
	struct bytes b = { 0 };

	assert_int_equal(working_set_save(&w, &b, &err), 0);
	for (size_t len = 0; len < b.len; len++)
		assert_int_equal(working_set_parse(&back, b.data, len, &err), -EINVAL);
	for (size_t i = 0; i < b.len; i++) {
		b.data[i] ^= 4;
		assert_int_equal(working_set_parse(&back, b.data, b.len, &err), -EINVAL);
		b.data[i] ^= 4;
	}
	/* With the right checksum: overlapping, empty, past the end, endless. */
	static const uint32_t bad[][2][2] = {
		{ { 1, 5 }, { 5, 1 } },	   { { 1, 0 }, { 5, 1 } },	    { { 5, 1 }, { 1, 1 } },
		{ { 1, 1 }, { 1023, 2 } }, { { 1, 1 }, { 5, UINT32_MAX } },
	};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		memcpy(b.data + 20, bad[i], sizeof(bad[i]));
		expect_refused(&b);
	}
	bytes_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_touched_pages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_ahead, setup, teardown),
		cmocka_unit_test_setup_teardown(test_seen_pages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged_ones, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
