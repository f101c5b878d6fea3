/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/host.h"
#include "mem/ram.h"

static struct guest_ram ram;
static struct error err;

static int teardown(void **state)
{
	ram_destroy(&ram);
	host = host_calls_real;
	return 0;
}

static void layout(void **state)
{
	assert_int_equal(ram_create(&ram, 5 * GIB, 64 * KIB, &err), 0);
	assert_int_equal(ram.nregions, 2);
	assert_int_equal(ram.low_bytes, 3 * GIB);
	assert_int_equal(ram.high_bytes, 2 * GIB);
	assert_ptr_equal(ram_ptr(&ram, 0, 1), ram.base);
	assert_ptr_equal(ram_ptr(&ram, 3 * GIB - 1, 1), ram.base + 3 * GIB - 1);
	assert_null(ram_ptr(&ram, 3 * GIB - 1, 2));
	assert_null(ram_ptr(&ram, 3 * GIB, 1));
	assert_null(ram_find(&ram, 4 * GIB - 1));
	assert_ptr_equal(ram_ptr(&ram, 4 * GIB, 2 * GIB), ram.base + 3 * GIB);
	assert_null(ram_ptr(&ram, 4 * GIB, 2 * GIB + 1));
	assert_null(ram_ptr(&ram, UINT64_MAX, 2));
	assert_int_equal((uintptr_t)ram.base % (2 * MIB), 0);
	assert_int_equal(ram.base[5 * GIB - 1], 0);
	ram.base[5 * GIB - 1] = 1;
}

static void refused_sizes(void **state)
{
	assert_int_equal(ram_create(&ram, 0, 0, &err), -EINVAL);
	assert_int_equal(ram_create(&ram, MIB + 1, 0, &err), -EINVAL);
	assert_int_equal(ram_create(&ram, 2048 * GIB, 0, &err), -EINVAL);
	assert_int_equal(ram_create(&ram, MIB, 1, &err), -EINVAL);
	assert_null(ram.base);
	assert_int_equal(ram_create(&ram, 1024 * GIB, 0, &err), 0); /* reserved, not backed */
}

static sigjmp_buf guard_hit;
static void on_segv(int sig)
{
	siglongjmp(guard_hit, 1);
}

static bool faults(volatile uint8_t *p)
{
	struct sigaction sa = { .sa_handler = on_segv, .sa_flags = SA_NODEFER }, old;
	bool r = false;

	sigaction(SIGSEGV, &sa, &old);
	if (sigsetjmp(guard_hit, 1))
		r = true;
	else
		(void)*p;
	sigaction(SIGSEGV, &old, NULL);
	return r;
}

static void guards(void **state)
{
	assert_int_equal(ram_create(&ram, 4 * MIB, 4096, &err), 0);
	uint8_t *end = ram.base + ram.size_bytes;
	assert_false(faults(ram.base));
	assert_false(faults(end - 1));
	assert_true(faults(end));
	assert_true(faults(end + RAM_GUARD_BYTES - 1));
	assert_true(faults(ram.base - 1));
	assert_true(faults(ram.base - RAM_GUARD_BYTES));
}

static void rom_covers_and_splits(void **state)
{
	uint8_t v = 0x55, two[2];

	assert_int_equal(ram_create(&ram, 16 * MIB, 192 * KIB, &err), 0);
	ram_write(&ram, 0xf0000, &v, 1);
	uint8_t *rom = ram_add_rom(&ram, 0xf0000, 64 * KIB, &err);
	assert_non_null(rom);
	assert_int_equal(ram.nregions, 3);
	uint8_t *rom2 = ram_add_rom(&ram, 4 * GIB - 128 * KIB, 128 * KIB, &err);
	assert_non_null(rom2);
	assert_ptr_equal(rom2, rom + 64 * KIB);
	rom[0] = 0xea;
	assert_int_equal(ram_read(&ram, 0xf0000, &v, 1), 0);
	assert_int_equal(v, 0xea);
	assert_int_equal(ram_write(&ram, 0xf0000, &v, 1), -EFAULT);
	assert_true(ram_find(&ram, 0xfffff)->is_readonly);
	assert_false(ram_find(&ram, 0x100000)->is_readonly);
	assert_ptr_equal(ram_ptr(&ram, 0x100000, 1), ram.base + 0x100000);
	assert_null(ram_ptr(&ram, 0xeffff, 2)); /* two regions */
	ram.base[0xeffff] = 7;
	assert_int_equal(ram_read(&ram, 0xeffff, two, 2), 0);
	assert_int_equal(two[0], 7);
	assert_int_equal(two[1], 0xea);
	assert_null(ram_add_rom(&ram, 0xe0000, 4096, &err)); /* used up */
	assert_non_null(strstr(err.text, "does not fit"));

	struct iovec iov[3];
	unsigned n = 0;
	assert_int_equal(ram_iov(&ram, 0xeffff, 2, true, iov, 3, &n), -EFAULT);
	assert_int_equal(ram_iov(&ram, 0xeffff, 0x10002, false, iov, 2, &n), -E2BIG);
	assert_int_equal(n, 0);
	assert_int_equal(ram_iov(&ram, 0xeffff, 0x10002, false, iov, 3, &n), 0);
	assert_int_equal(n, 3);
	assert_int_equal(iov[1].iov_len, 0x10000);
	assert_ptr_equal(iov[1].iov_base, rom);

	assert_int_equal(ram_punch(&ram, 0xa0000, 0x20000, &err), 0);
	assert_null(ram_find(&ram, 0xa0000));
	assert_null(ram_find(&ram, 0xbffff));
	assert_ptr_equal(ram_ptr(&ram, 0xc0000, 1), ram.base + 0xc0000);
	assert_int_equal(ram_read(&ram, 0x9ffff, two, 2), -EFAULT);
	assert_int_equal(ram_punch(&ram, 0xa0001, 4096, &err), -EINVAL);
	int r = 0;
	for (gpa_t g = 0x200000; r == 0 && g < 16 * MIB; g += 0x2000)
		r = ram_punch(&ram, g, 4096, &err);
	assert_int_equal(r, -ENOSPC);
	assert_true(ram.nregions <= RAM_MAX_REGIONS);
}

/* Regions against a page-by-page model under random cuts. */
static void random_regions_against_model(void **state)
{
	enum { PAGES = 256 };
	static struct {
		bool is_there, is_ro;
		uint64_t offset;
	} model[PAGES];
	unsigned seed = 42;

	for (int round = 0; round < 200; round++) {
		assert_int_equal(ram_create(&ram, MIB, MIB, &err), 0);
		for (unsigned i = 0; i < PAGES; i++) {
			model[i].is_there = true;
			model[i].is_ro = false;
			model[i].offset = i * 4096;
		}
		for (int step = 0; step < 12; step++) {
			unsigned a = (unsigned)rand_r(&seed) % PAGES;
			unsigned n = 1 + (unsigned)rand_r(&seed) % 12;
			bool is_rom = rand_r(&seed) & 1;
			uint64_t at = 0;
			n = MIN(n, PAGES - a);
			if (is_rom) {
				uint8_t *p = ram_add_rom(&ram, a * 4096, n * 4096, &err);
				if (!p)
					continue;
				at = (uint64_t)(p - ram.base);
			} else if (ram_punch(&ram, a * 4096, n * 4096, &err)) {
				continue;
			}
			for (unsigned i = 0; i < n; i++) {
				model[a + i].is_there = is_rom;
				model[a + i].is_ro = is_rom;
				model[a + i].offset = at + i * 4096;
			}
		}
		for (unsigned i = 0; i < PAGES; i++) {
			const struct ram_region *r = ram_find(&ram, i * 4096 + 4095);
			assert_int_equal(r != NULL, model[i].is_there);
			if (!r)
				continue;
			assert_int_equal(r->is_readonly, model[i].is_ro);
			assert_int_equal(r->offset + i * 4096 - r->gpa, model[i].offset);
		}
		for (unsigned i = 1; i < ram.nregions; i++)
			assert_true(ram.regions[i - 1].gpa + ram.regions[i - 1].size_bytes <=
				    ram.regions[i].gpa);
		ram_destroy(&ram);
	}
}

static struct {
	uint64_t offset, len;
} hits[8];
static unsigned nhits;
static void on_code(void *arg, uint64_t offset, uint64_t len)
{
	assert_ptr_equal(arg, &nhits);
	hits[nhits % 8].offset = offset;
	hits[nhits++ % 8].len = len;
}

static void noted_writes(void **state)
{
	uint8_t buf[3 * 4096] = { 1 };

	assert_int_equal(ram_create(&ram, 16 * MIB, 0, &err), 0);
	ram.on_code_write = on_code;
	ram.on_code_write_arg = &nhits;
	nhits = 0;
	ram.page_flags[1] = RAM_PAGE_TRACK | RAM_PAGE_WMAP;
	ram.page_flags[2] = RAM_PAGE_CODE;
	ram.page_flags[3] = RAM_PAGE_CODE | RAM_PAGE_TRACK;
	assert_int_equal(ram_write(&ram, 0x1ff0, buf, 0x10), 0);
	assert_int_equal(ram.page_flags[1], RAM_PAGE_DIRTY | RAM_PAGE_WMAP);
	assert_int_equal(nhits, 0);
	assert_int_equal(ram_write(&ram, 0x1ff0, buf, 0x1020), 0);
	assert_int_equal(nhits, 2);
	assert_int_equal(hits[0].offset, 0x2000);
	assert_int_equal(hits[0].len, 0x1000);
	assert_int_equal(hits[1].offset, 0x3000);
	assert_int_equal(hits[1].len, 0x10);
	assert_int_equal(ram.page_flags[2], RAM_PAGE_CODE);
	assert_int_equal(ram.page_flags[3], RAM_PAGE_CODE | RAM_PAGE_DIRTY);
	assert_int_equal(ram_write(&ram, 0x4000, buf, 1), 0);
	assert_int_equal(ram.page_flags[4], 0); /* not tracked: not marked */
	ram.page_flags[4095] = RAM_PAGE_TRACK;
	ram_note_write(&ram, 16 * MIB - 1, 100); /* runs into the hole */
	assert_int_equal(ram.page_flags[4095], RAM_PAGE_DIRTY);
	assert_int_equal(ram_write(&ram, 16 * MIB - 1, buf, 2), -EFAULT);
	assert_int_equal(ram_read(&ram, UINT64_MAX, buf, 2), -EFAULT);
	assert_int_equal(ram_read(&ram, 20 * MIB, buf, 0), 0);
}

static void *failing_mmap(void *a, size_t l, int p, int f, int fd, off_t o);
static int nmaps, fail_map;
static void *failing_mmap(void *a, size_t l, int p, int f, int fd, off_t o)
{
	if (++nmaps == fail_map) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return mmap(a, l, p, f, fd, o);
}

static void no_memory(void **state)
{
	for (fail_map = 1; fail_map <= 3; fail_map++) {
		nmaps = 0;
		host.mmap = failing_mmap;
		assert_int_equal(ram_create(&ram, 64 * MIB, 0, &err), -ENOMEM);
		assert_int_equal(nmaps, fail_map);
		assert_null(ram.base);
		host = host_calls_real;
	}
	assert_int_equal(ram_create(&ram, 64 * MIB, 0, &err), 0);
}

/* Trackers and writers on several threads: no write is lost. */
static atomic_bool is_done;
static _Atomic unsigned seen;
static void *collector(void *arg)
{
	while (!atomic_load(&is_done)) {
		uint8_t old = atomic_load(&ram.page_flags[0]);
		if (old & RAM_PAGE_DIRTY &&
		    atomic_compare_exchange_strong(&ram.page_flags[0], &old,
						   (old & ~RAM_PAGE_DIRTY) | RAM_PAGE_TRACK))
			atomic_fetch_add(&seen, 1);
	}
	return NULL;
}

static void tracking_races(void **state)
{
	pthread_t th;

	assert_int_equal(ram_create(&ram, MIB, 0, &err), 0);
	ram.page_flags[0] = RAM_PAGE_TRACK;
	atomic_store(&seen, 0);
	atomic_store(&is_done, false);
	assert_int_equal(pthread_create(&th, NULL, collector, NULL), 0);
	while (atomic_load(&seen) < 1000) { /* for ever, if a write goes unseen */
		ram_note_dirty(&ram, 0);
		uint8_t f = atomic_load(&ram.page_flags[0]);
		assert_true(!(f & RAM_PAGE_TRACK) || !(f & RAM_PAGE_DIRTY));
	}
	atomic_store(&is_done, true);
	pthread_join(th, NULL);
	uint8_t f = atomic_load(&ram.page_flags[0]);
	assert_true(f == RAM_PAGE_TRACK || f == RAM_PAGE_DIRTY);
}

/* ---- handing it over ---- */

static uint64_t blocks_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static uint8_t byte_of(uint64_t page, unsigned round)
{
	return (uint8_t)(page % 5 ? 1 + (page * 7 + round) % 255 : 0);
}

static void fill(struct guest_ram *r, unsigned round)
{
	for (uint64_t p = 0; p < r->size_bytes / GUEST_PAGE_SIZE; p++)
		if (byte_of(p, round))
			memset(r->base + p * GUEST_PAGE_SIZE, byte_of(p, round), GUEST_PAGE_SIZE);
}

static void check(const struct guest_ram *r, unsigned round)
{
	for (uint64_t i = 0; i < r->size_bytes; i += 512)
		assert_int_equal(r->base[i], byte_of(i / GUEST_PAGE_SIZE, round));
}

static void for_pieces(struct guest_ram *r, int fd,
		       int (*fn)(struct guest_ram *, uint64_t, uint64_t, int, struct error *))
{
	for (uint64_t at = 0; at < r->size_bytes; at += RAM_PIECE_BYTES)
		assert_int_equal(fn(r, at, MIN(RAM_PIECE_BYTES, r->size_bytes - at), fd, &err), 0);
}

/* The one writes until the last moment, the other goes on with it, and in the end has memory of its own. */
static void handed_over(void **state)
{
	struct guest_ram other;
	int fd = memfd_create("ram", MFD_CLOEXEC);

	assert_int_equal(ram_create(&ram, 7 * MIB, 64 * KIB, &err), 0);
	assert_int_equal(ram_create(&other, 7 * MIB, 64 * KIB, &err), 0);
	other.base[12345] = 99; /* goes */
	assert_int_equal(ftruncate(fd, (off_t)ram.size_bytes), 0);
	fill(&ram, 1);
	for_pieces(&ram, fd, ram_share);
	assert_true(blocks_of(fd) < ram.size_bytes * 9 / 10); /* zero pages take no room until they are read */
	check(&ram, 1);
	fill(&ram, 2);
	assert_int_equal(ram_adopt(&other, fd, &err), 0);
	check(&other, 2);
	ram_destroy(&ram);
	for_pieces(&other, fd, ram_unshare);
	check(&other, 2);
	assert_int_equal(blocks_of(fd), 0);
	fill(&other, 3);
	pid_t pid = fork(); /* it is private */
	if (!pid) {
		fill(&other, 4);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	check(&other, 3);
	ram_destroy(&other);
	close(fd);
}

static ssize_t fail_pwrite(int fd, const void *buf, size_t len, off_t at)
{
	errno = ENOSPC;
	return -1;
}

static void *fail_malloc(size_t len)
{
	return NULL;
}

static void handed_over_not(void **state)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	assert_int_equal(ram_create(&ram, 4 * MIB, 0, &err), 0);
	assert_int_equal(ftruncate(fd, (off_t)ram.size_bytes), 0);
	fill(&ram, 1);
	host.pwrite = fail_pwrite;
	assert_int_equal(ram_share(&ram, 0, RAM_PIECE_BYTES, fd, &err), -ENOSPC);
	host = host_calls_real;
	check(&ram, 1);
	assert_int_equal(ram_share(&ram, 0, RAM_PIECE_BYTES, fd, &err), 0); /* half of it, and back */
	host.malloc = fail_malloc;
	assert_int_equal(ram_unshare(&ram, 0, RAM_PIECE_BYTES, fd, &err), -ENOMEM);
	host = host_calls_real;
	check(&ram, 1);
	assert_int_equal(ram_unshare(&ram, 0, RAM_PIECE_BYTES, fd, &err), 0);
	check(&ram, 1);
	close(fd);
}

/* What is given back is gone from the file, too, and from what is private still. */
static void discarded(void **state)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);
	uint64_t before;

	assert_int_equal(ram_create(&ram, 8 * MIB, 0, &err), 0);
	assert_int_equal(ftruncate(fd, (off_t)ram.size_bytes), 0);
	memset(ram.base, 1, ram.size_bytes);
	ram.is_shared = true;
	assert_int_equal(ram_share(&ram, 0, 2 * RAM_PIECE_BYTES, fd, &err), 0);
	before = blocks_of(fd);
	assert_int_equal(ram_discard(&ram, 3 * MIB, 4 * MIB), 0);
	assert_int_equal(blocks_of(fd), before - 1 * MIB);
	for (uint64_t i = 0; i < ram.size_bytes; i += 1024)
		assert_int_equal(ram.base[i], i < 3 * MIB || i >= 7 * MIB);
	assert_int_equal(ram_discard(&ram, 100 * MIB, 4096), 0); /* none of ours */
	close(fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(layout),
		T(refused_sizes),
		T(guards),
		T(rom_covers_and_splits),
		T(random_regions_against_model),
		T(noted_writes),
		T(no_memory),
		T(tracking_races),
		T(handed_over),
		T(handed_over_not),
		T(discarded),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
