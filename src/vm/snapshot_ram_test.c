/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <xxhash.h>

#include "base/host.h"
#include "vm/snapshot_mend.h"
#include "vm/snapshot_ram.h"

#define RAM_BYTES (2 * MIB)
#define ROM_BYTES (68 * KIB) /* the last granule is not whole */
#define ALL_BYTES (RAM_BYTES + ROM_BYTES)
#define NPAGES	  (ALL_BYTES / GUEST_PAGE_SIZE)

static struct error err;
static char folder[64];
static int dir_fd;
static struct guest_ram ram;
static uint64_t dirty[(NPAGES + 63) / 64];

static int setup(void **state)
{
	snprintf(folder, sizeof(folder), "/tmp/viv-ram-test-XXXXXX");
	if (!mkdtemp(folder) || ram_create(&ram, RAM_BYTES, ROM_BYTES, &err) < 0)
		return -1;
	dir_fd = open(folder, O_RDONLY | O_DIRECTORY);
	memset(dirty, 0, sizeof(dirty));
	return dir_fd < 0;
}

static int teardown(void **state)
{
	static const char *const names[] = { "ram-1", "ram-2", "ram-3" };

	host = host_calls_real;
	for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
		unlinkat(dir_fd, names[i], 0);
	close(dir_fd);
	ram_destroy(&ram);
	return rmdir(folder);
}

static void must(int64_t r)
{
	if (r < 0)
		fail_msg("%s", err.text);
}

static void poke(uint64_t at, uint8_t value)
{
	ram.base[at] = value;
	dirty[at / GUEST_PAGE_SIZE / 64] |= 1ULL << at / GUEST_PAGE_SIZE % 64;
}

static void write_layer(struct ram_index *x, const char *name, bool is_first)
{
	int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);
	int layer = ram_index_add_layer(x, name, &err);

	must(fd);
	must(layer);
	must(ram_write_layer(x, (unsigned)layer, fd, ram.base, is_first ? NULL : dirty, NULL, &err));
	close(fd);
	memset(dirty, 0, sizeof(dirty));
}

static struct ram_files open_files(const struct ram_index *x)
{
	struct bytes b = { 0 };
	struct ram_index y;
	struct ram_files f;

	must(ram_index_save(x, &b, &err));
	must(ram_index_parse(&y, b.data, b.len, &err));
	bytes_free(&b);
	must(ram_files_open(&f, &y, dir_fd, &err));
	return f;
}

static void expect_mapped(const struct ram_files *f, const uint8_t *want)
{
	struct guest_ram other;

	must(ram_create(&other, RAM_BYTES, ROM_BYTES, &err));
	must(ram_files_map(f, &other, true, &err));
	assert_memory_equal(other.base, want, ALL_BYTES);
	memset(other.base, 0x77, ALL_BYTES); /* a copy of its own */
	ram_destroy(&other);
	must(ram_create(&other, RAM_BYTES, ROM_BYTES, &err));
	memset(other.base, 0x55, ALL_BYTES);
	must(ram_files_map(f, &other, false, &err));
	assert_memory_equal(other.base, want, ALL_BYTES);
	ram_destroy(&other);
}

static void no_damage(void *arg, uint64_t offset, uint64_t len, const char *layer)
{
	fail_msg("%s is damaged at %llu", layer, (unsigned long long)offset);
}

static void layers(void **state)
{
	struct ram_index x;
	struct ram_files f;
	struct stat st;

	must(ram_index_init(&x, ALL_BYTES, &err));
	poke(5, 1);
	poke(RAM_BYTES - 1, 2);
	poke(ALL_BYTES - 1, 3);
	write_layer(&x, "ram-1", true);
	assert_int_equal(fstatat(dir_fd, "ram-1", &st, 0), 0);
	assert_int_equal(st.st_size, ALL_BYTES);
	assert_true(st.st_blocks * 512 <= (blkcnt_t)(3 * GUEST_PAGE_SIZE)); /* zero pages are absent */
	f = open_files(&x);
	expect_mapped(&f, ram.base);
	assert_int_equal(ram_files_verify(&f, no_damage, NULL, NULL, &err), 0);
	ram_files_close(&f);

	/* A second one: a page changed, one became zero, one is new; unmarked ones are not looked at. */
	poke(6, 9);
	poke(RAM_BYTES - 1, 0);
	poke(RAM_BYTES / 2, 4);
	uint8_t *want = malloc(ALL_BYTES);

	memcpy(want, ram.base, ALL_BYTES);
	ram.base[RAM_BYTES / 4] = 8;
	write_layer(&x, "ram-2", false);
	f = open_files(&x);
	assert_int_equal(f.index.nlayers, 2);
	expect_mapped(&f, want);
	assert_int_equal(ram_files_verify(&f, no_damage, NULL, NULL, &err), 0);

	/* Back again in place. */
	memset(dirty, 0, sizeof(dirty));
	poke(0, 0xee);
	poke(RAM_BYTES / 4, 0xee);
	poke(RAM_BYTES - 2, 0xee);
	assert_int_equal(ram_files_put_back(&f, &f.index, &ram, dirty, &err), 3);
	assert_memory_equal(ram.base, want, ALL_BYTES);
	/* Pages in a row: over the ends of granules and of the bitmap's words, whole words, the last page. */
	static const struct {
		uint64_t first, n;
	} runs[] = { { 14, 4 }, { 60, 8 }, { 127, 130 }, { (ALL_BYTES >> GUEST_PAGE_SHIFT) - 2, 2 } };
	int64_t npages = 0;

	memset(dirty, 0, sizeof(dirty));
	for (unsigned i = 0; i < ARRAY_SIZE(runs); i++)
		for (uint64_t k = 0; k < runs[i].n; k++, npages++)
			poke((runs[i].first + k) << GUEST_PAGE_SHIFT, 0xee);
	assert_int_equal(ram_files_put_back(&f, &f.index, &ram, dirty, &err), npages);
	assert_memory_equal(ram.base, want, ALL_BYTES);
	ram_files_close(&f);
	/* And to the first one: three granules differ, one page was written since. */
	struct ram_index second;

	must(ram_index_copy(&second, &x, &err));
	ram_index_free(&x);
	must(ram_index_init(&x, ALL_BYTES, &err));
	memset(want, 0, ALL_BYTES);
	want[5] = 1;
	want[RAM_BYTES - 1] = 2;
	want[ALL_BYTES - 1] = 3;
	must(ram_index_add_layer(&x, "ram-1", &err));
	x.layer[0] = x.layer[RAM_BYTES / RAM_GRANULE_MIN - 1] = x.layer[x.ngranules - 1] = 1;
	x.hash[0] = 1;
	x.hash[x.ngranules - 1] = second.hash[x.ngranules - 1];
	f = open_files(&x);
	memset(dirty, 0, sizeof(dirty));
	poke(RAM_BYTES / 4, 0xee);
	assert_int_equal(ram_files_put_back(&f, &second, &ram, dirty, &err),
			 3 * RAM_GRANULE_MIN / GUEST_PAGE_SIZE + 1);
	assert_memory_equal(ram.base, want, ALL_BYTES);
	ram_files_close(&f);
	ram_index_free(&second);
	free(want);
	ram_index_free(&x);
}

static void unused_layers(void **state)
{
	struct ram_index x;

	must(ram_index_init(&x, ALL_BYTES, &err));
	poke(5, 1);
	write_layer(&x, "ram-1", true);
	poke(5, 2);
	write_layer(&x, "ram-2", false);
	ram_index_drop_unused(&x);
	assert_int_equal(x.nlayers, 1);
	assert_string_equal(x.layers[0], "ram-2");
	assert_int_equal(x.layer[0], 1);
	ram_index_free(&x);
}

static unsigned nbad;
static void count_bad(void *arg, uint64_t offset, uint64_t len, const char *layer)
{
	assert_string_equal(layer, "ram-1");
	assert_int_equal(offset, RAM_BYTES / 2);
	nbad++;
}

static void damage(void **state)
{
	struct ram_index x, y;
	struct bytes b = { 0 };

	must(ram_index_init(&x, ALL_BYTES, &err));
	poke(RAM_BYTES / 2, 1);
	write_layer(&x, "ram-1", true);
	struct ram_files f = open_files(&x);
	int fd = openat(dir_fd, "ram-1", O_RDWR);

	assert_int_equal(pwrite(fd, "x", 1, RAM_BYTES / 2 + 70), 1);
	nbad = 0;
	assert_int_equal(ram_files_verify(&f, count_bad, NULL, NULL, &err), 1);
	assert_int_equal(nbad, 1);
	ram_files_close(&f);
	assert_int_equal(ftruncate(fd, ALL_BYTES - 1), 0);
	must(ram_index_copy(&y, &x, &err));
	assert_int_equal(ram_files_open(&f, &y, dir_fd, &err), -EINVAL);
	close(fd);
	/* The index: cut off, bits flipped, and with the checksum made right a wild layer. */
	must(ram_index_save(&x, &b, &err));
	for (size_t len = 0; len < b.len; len++) {
		uint8_t *part = malloc(len ? len : 1);

		memcpy(part, b.data, len);
		assert_int_equal(ram_index_parse(&y, part, len, &err), -EINVAL);
		free(part);
	}
	for (size_t bit = 0; bit < b.len * 8; bit++) {
		b.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_true(ram_index_parse(&y, b.data, b.len, &err) < 0);
		b.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	/* A name with a NUL inside, the checksum made right. */
	b.data[28 + 3] = 0;
	uint64_t sum = XXH64(b.data, b.len - 8, 0);

	memcpy(b.data + b.len - 8, &sum, 8);
	assert_int_equal(ram_index_parse(&y, b.data, b.len, &err), -EINVAL);
	bytes_free(&b);
	x.layer[0] = 2;
	must(ram_index_save(&x, &b, &err));
	assert_int_equal(ram_index_parse(&y, b.data, b.len, &err), -EINVAL);
	assert_int_equal(ram_index_add_layer(&x, "../etc", &err), -EINVAL);
	assert_int_equal(ram_index_add_layer(&x, "ram-1", &err), -EINVAL);
	bytes_free(&b);
	ram_index_free(&x);
}

static ssize_t full_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	errno = ENOSPC;
	return -1;
}

static bool stop(void *arg, uint64_t done, uint64_t total)
{
	return false;
}

static void failures(void **state)
{
	struct ram_index x;
	struct ram_progress p = { .fn = stop };
	int fd = openat(dir_fd, "ram-1", O_RDWR | O_CREAT, 0600);

	must(ram_index_init(&x, ALL_BYTES, &err));
	poke(5, 1);
	assert_int_equal(ram_write_layer(&x, 1, fd, ram.base, NULL, &p, &err), -ECANCELED);
	host.pwrite = full_pwrite;
	assert_int_equal(ram_write_layer(&x, 1, fd, ram.base, NULL, NULL, &err), -ENOSPC);
	close(fd);
	ram_index_free(&x);
}

/* One snapshot after the other, each with a page of its own: what is written anew keeps the layers few. */
static void many_layers(void **state)
{
	struct ram_index x;
	unsigned nwritten = 0;

	must(ram_index_init(&x, ALL_BYTES, &err));
	for (unsigned i = 0; i < 200; i++) {
		char name[16];

		snprintf(name, sizeof(name), "ram-n%u", i);
		poke(i * 7 % (ALL_BYTES / RAM_GRANULE_MIN) * RAM_GRANULE_MIN + i, (uint8_t)(i + 1));
		ram_index_consolidate(&x, 8, dirty);
		for (uint32_t g = 0; g < x.ngranules; g++)
			nwritten += dirty[g / 4] >> g % 4 * 16 & 0xffff ? 1 : 0;
		write_layer(&x, name, !i);
		ram_index_drop_unused(&x);
		assert_true(x.nlayers <= 8 + 1);
	}
	/* Not everything each time: one is dirty, the others are those that hold least. */
	assert_true(nwritten < 200 * 8);
	struct ram_files f = open_files(&x);

	expect_mapped(&f, ram.base);
	ram_files_close(&f);
	ram_index_free(&x);
	for (unsigned i = 0; i < 200; i++) {
		char name[16];

		snprintf(name, sizeof(name), "ram-n%u", i);
		unlinkat(dir_fd, name, 0);
	}
}

/* More layers than a process may have files open by default. */
static void more_than_the_limit(void **state)
{
	struct rlimit old, few = { 20, 0 };
	struct ram_index x;
	char name[16];

	must(ram_index_init(&x, ALL_BYTES, &err));
	for (unsigned i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "ram-m%u", i);
		write_layer(&x, name, !i);
	}
	must(getrlimit(RLIMIT_NOFILE, &old));
	few.rlim_max = old.rlim_max;
	must(setrlimit(RLIMIT_NOFILE, &few));
	struct ram_files f = open_files(&x);

	ram_files_close(&f);
	must(setrlimit(RLIMIT_NOFILE, &old));
	ram_index_free(&x);
	for (unsigned i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "ram-m%u", i);
		unlinkat(dir_fd, name, 0);
	}
}

/* kB of @what of the mapping at @at; -1: not known. */
static long smaps_kib(const void *at, const char *what)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	char line[256], key[32];
	bool is_it = false;
	long kib = -1, n;

	while (f && fgets(line, sizeof(line), f)) {
		unsigned long from, to;

		if (sscanf(line, "%lx-%lx", &from, &to) == 2)
			is_it = (uintptr_t)at >= from && (uintptr_t)at < to;
		else if (is_it && sscanf(line, "%31[^:]: %ld kB", key, &n) == 2 && !strcmp(key, what))
			kib = n;
	}
	if (f)
		fclose(f);
	return kib;
}

/* Written to while a child of fork() lives, then put together: the content stays, no memory comes on top, what is shared stays shared. */
static void mend(void **state)
{
	struct guest_ram big;
	const uint64_t size = 16 * MIB, used = 11 * MIB;

	must(ram_create(&big, size, 0, &err));
	for (uint64_t at = 0; at < used; at += GUEST_PAGE_SIZE)
		big.base[at] = (uint8_t)(at >> 12);
	for (unsigned round = 0; round < 2; round++) {
		pid_t pid = fork();

		if (pid == 0)
			for (;;)
				pause();
		assert_true(pid > 0);
		for (uint64_t at = 0; at < used; at += 256 * KIB)
			big.base[at] = (uint8_t)(at >> 12);
		long rss = smaps_kib(big.base, "Rss"), shared = smaps_kib(big.base, "Shared_Dirty");

		ram_mend_wait(ram_mend_start(&big));
		assert_int_equal(smaps_kib(big.base, "Shared_Dirty"), shared);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, NULL, 0), pid);
		ram_mend_wait(ram_mend_start(&big));
		assert_int_equal(smaps_kib(big.base, "Rss"), rss);
		print_message("%ld KiB in huge pages\n", smaps_kib(big.base, "AnonHugePages"));
	}
	ram_mend_stop(ram_mend_start(&big));
	ram_mend_stop(NULL);
	for (uint64_t at = 0; at < size; at += GUEST_PAGE_SIZE)
		assert_int_equal(big.base[at], at < used ? (uint8_t)(at >> 12) : 0);
	ram_destroy(&big);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(layers, setup, teardown),
		cmocka_unit_test_setup_teardown(unused_layers, setup, teardown),
		cmocka_unit_test_setup_teardown(damage, setup, teardown),
		cmocka_unit_test_setup_teardown(failures, setup, teardown),
		cmocka_unit_test_setup_teardown(many_layers, setup, teardown),
		cmocka_unit_test_setup_teardown(mend, setup, teardown),
		cmocka_unit_test_setup_teardown(more_than_the_limit, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
