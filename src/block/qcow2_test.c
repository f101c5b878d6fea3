/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2 as a disk: random work against a model in all variants of the format, ours and qemu-img's images. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/host.h"
#include "block/testing.h"

#define SIZE (6 * MIB + 5 * 512)

static const struct block_backing_rule any = { .any = true };
static uint8_t shadow[16 * MIB];

static void make(struct fixture *f, const char *name, struct image_create c)
{
	struct error err = { 0 };

	c.format = "qcow2";
	if (image_create(testing_path(f, name), &c, &err) < 0)
		fail_msg("%s", err.text);
}

static void work_and_judge(struct fixture *f, const char *name, uint64_t size, unsigned rounds)
{
	for (unsigned i = 0; i < 2; i++) {
		struct block_dev *b = testing_open(f, (struct block_open){ .path = testing_path(f, name),
									   .format = "qcow2",
									   .backing = &any });
		testing_expect(f, b, shadow, size);
		testing_work(f, b, shadow, size, rounds);
		testing_expect(f, b, shadow, size);
		b->ops->close(b);
		testing_judge(f, name, "qcow2", shadow, size);
	}
}

static void test_own_images(void **state)
{
	struct fixture *f = *state;
	static const struct image_create variants[] = {
		{ .size_bytes = SIZE },
		{ .size_bytes = SIZE, .is_v2 = true },
		{ .size_bytes = SIZE, .cluster_bytes = 512 },
		{ .size_bytes = SIZE, .cluster_bytes = 512, .refcount_bits = 64 },
		{ .size_bytes = SIZE, .cluster_bytes = 4096, .refcount_bits = 1 },
		{ .size_bytes = SIZE, .cluster_bytes = 4096, .refcount_bits = 2, .has_lazy_refcounts = true },
		{ .size_bytes = SIZE, .cluster_bytes = 2 * MIB, .refcount_bits = 8 },
		{ .size_bytes = SIZE, .has_extended_l2 = true },
		{ .size_bytes = SIZE, .has_extended_l2 = true, .cluster_bytes = 16 * KIB, .refcount_bits = 4 },
		{ .size_bytes = SIZE, .has_lazy_refcounts = true, .refcount_bits = 32 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(variants); i++) {
		memset(shadow, 0, sizeof(shadow));
		make(f, "a.qcow2", variants[i]);
		work_and_judge(f, "a.qcow2", SIZE, 60);
		unlink(testing_path(f, "a.qcow2"));
	}
}

static void test_own_layers(void **state)
{
	struct fixture *f = *state;
	static const struct image_create variants[] = {
		{ .size_bytes = SIZE },
		{ .size_bytes = SIZE, .is_v2 = true },
		{ .size_bytes = SIZE, .cluster_bytes = 512 },
		{ .size_bytes = SIZE, .has_extended_l2 = true },
		{ .size_bytes = SIZE, .cluster_bytes = 256 * KIB, .has_lazy_refcounts = true },
	};

	for (size_t i = 0; i < ARRAY_SIZE(variants); i++) {
		struct image_create c = variants[i];
		/* A base that is shorter than what stands on it. */
		memset(shadow, 0, sizeof(shadow));
		testing_fill(f, "base.raw", shadow, 5 * MIB + 512);
		c.backing_path = "base.raw";
		c.backing_format = "raw";
		make(f, "a.qcow2", c);
		work_and_judge(f, "a.qcow2", SIZE, 40);
		c.backing_path = "a.qcow2";
		c.backing_format = "qcow2";
		make(f, "b.qcow2", c);
		work_and_judge(f, "b.qcow2", SIZE, 40);
		unlink(testing_path(f, "a.qcow2"));
		unlink(testing_path(f, "b.qcow2"));
	}
}

static void test_foreign_images(void **state)
{
	struct fixture *f = *state;
	static const char *const variants[] = {
		"-o compat=0.10",
		"-o compat=1.1",
		"-o cluster_size=512",
		"-o cluster_size=2M,refcount_bits=64",
		"-o extended_l2=on",
		"-o extended_l2=on,cluster_size=128k,refcount_bits=1",
		"-o lazy_refcounts=on,refcount_bits=8",
		"-o preallocation=metadata",
		"-o preallocation=full,cluster_size=4k",
		"-c",
		"-c -o compression_type=zstd",
		"-c -o cluster_size=4k,compat=0.10",
		"-c -o extended_l2=on,compression_type=zstd",
	};

	for (size_t i = 0; i < ARRAY_SIZE(variants); i++) {
		testing_fill(f, "raw", shadow, 4 * MIB);
		if (!testing_qemu(f, "convert -f raw -O qcow2 %s raw a.qcow2", variants[i]))
			return;
		work_and_judge(f, "a.qcow2", 4 * MIB, 30);
	}
}

/* An internal snapshot stays as it was, whatever is written after it. */
static void test_internal_snapshots(void **state)
{
	struct fixture *f = *state;
	static const char *const variants[] = { "-o compat=1.1", "-o cluster_size=4k",
						"-o extended_l2=on", "-c" };
	static uint8_t before[4 * MIB];

	for (size_t i = 0; i < ARRAY_SIZE(variants); i++) {
		testing_fill(f, "raw", shadow, 4 * MIB);
		if (!testing_qemu(f, "convert -f raw -O qcow2 %s raw a.qcow2", variants[i]))
			return;
		testing_qemu(f, "snapshot -c one a.qcow2");
		memcpy(before, shadow, sizeof(before));
		work_and_judge(f, "a.qcow2", 4 * MIB, 30);
		testing_qemu(f, "convert -l one -O raw a.qcow2 one.raw");
		testing_qemu(f, "compare -f raw -F raw raw one.raw");
		testing_qemu(f, "snapshot -d one a.qcow2");
		work_and_judge(f, "a.qcow2", 4 * MIB, 10);
	}
}

/* ---- refusals ---- */

static void expect_refused(struct fixture *f, struct block_open o, int want, const char *sentence)
{
	struct block_dev *b = NULL;
	struct error err = { 0 };

	o.format = o.format ?: "qcow2";
	int r = block_open(&b, f->loop, &o, &err);
	if (r != want || !strstr(err.text, sentence))
		fail_msg("%d, '%s' is not %d, '%s'", r, err.text, want, sentence);
}

static void poke(struct fixture *f, const char *name, uint64_t at, const void *d, size_t len)
{
	int fd = open(testing_path(f, name), O_RDWR);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, d, len, (off_t)at), len);
	close(fd);
}

static void test_features(void **state)
{
	struct fixture *f = *state;
	static const struct {
		uint64_t at;
		uint8_t byte;
		int want;
		const char *sentence;
	} cases[] = {
		{ 0, 'X', -EINVAL, "no qcow2 image" },
		{ 7, 4, -ENOTSUP, "version 4" },
		{ 35, 2, -ENOTSUP, "LUKS" },
		{ 79, 4, -ENOTSUP, "in another file" },
		{ 79, 2, -EROFS, "marked as damaged" },
		{ 78, 1, -ENOTSUP, "bit 8" },
		{ 79, 8, -EINVAL, "compression" },
		{ 23, 8, -EINVAL, "clusters" },
		{ 23, 22, -EINVAL, "clusters" },
		{ 99, 7, -EINVAL, "reference counts" },
		{ 39, 0, -EINVAL, "first-level table is too small" },
		{ 40, 1, -EINVAL, "outside" },
		{ 47, 1, -EINVAL, "outside" },
		{ 48, 1, -EINVAL, "outside" },
		{ 56, 1, -EINVAL, "impossible" },
		{ 24, 0x7f, -EINVAL, "larger than this format" },
		{ 103, 105, -EINVAL, "header" },
		{ 60, 1, -EINVAL, "snapshots" },
		{ 116, 0xff, 0, NULL },
	};
	const char *path = testing_path(f, "a.qcow2");

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		make(f, "a.qcow2", (struct image_create){ .size_bytes = MIB, .may_replace = true });
		if (cases[i].sentence) {
			poke(f, "a.qcow2", cases[i].at, &cases[i].byte, 1);
			expect_refused(f, (struct block_open){ .path = path }, cases[i].want,
				       cases[i].sentence);
		}
	}
	/* Marked as damaged, it can be read. */
	poke(f, "a.qcow2", 79, "\2", 1);
	struct block_dev *b = testing_open(
		f, (struct block_open){ .path = path, .format = "qcow2", .is_readonly = true });
	b->ops->close(b);
	if (testing_qemu(f, "create -f qcow2 -o data_file=data.raw ext.qcow2 1M"))
		expect_refused(f, (struct block_open){ .path = testing_path(f, "ext.qcow2") },
			       -ENOTSUP, "data.raw");
}

static void test_backing_rule(void **state)
{
	struct fixture *f = *state;
	const char *path = testing_path(f, "dir/a.qcow2");

	assert_int_equal(testing_sh(f, "mkdir dir other; truncate -s 1M dir/base.raw "
				       "other/base.raw; ln -s ../other/base.raw "
				       "dir/link.raw"),
			 0);
	const struct image_create c = { .size_bytes = MIB,
					.backing_path = "base.raw",
					.backing_format = "raw",
					.may_replace = true };
	make(f, "dir/a.qcow2", c);
	expect_refused(f, (struct block_open){ .path = path }, -EACCES, "was not allowed");
	const char *other[] = { testing_path(f, "other"), testing_path(f, "dir/bas"), NULL };
	struct block_backing_rule rule = { .paths = other };
	expect_refused(f, (struct block_open){ .path = path, .backing = &rule }, -EACCES,
		       "not among those allowed");
	const char *dir[] = { testing_path(f, "dir"), NULL },
		   *file[] = { testing_path(f, "dir/base.raw"), NULL };
	rule.paths = dir;
	struct block_dev *b = testing_open(
		f, (struct block_open){ .path = path, .format = "qcow2", .backing = &rule });
	b->ops->close(b);
	rule.paths = file;
	b = testing_open(f, (struct block_open){ .path = path, .format = "qcow2", .backing = &rule });
	b->ops->close(b);
	/* A link out of the folder doesn't help, nor does climbing out of it. */
	rule.paths = dir;
	struct image_create bad = c;
	bad.backing_path = "link.raw";
	make(f, "dir/a.qcow2", bad);
	expect_refused(f, (struct block_open){ .path = path, .backing = &rule }, -EACCES,
		       "other/base.raw");
	bad.backing_path = "../other/base.raw";
	make(f, "dir/a.qcow2", bad);
	expect_refused(f, (struct block_open){ .path = path, .backing = &rule }, -EACCES,
		       "not among those allowed");
	bad.backing_path = "nbd:localhost:1";
	make(f, "dir/a.qcow2", bad);
	expect_refused(f, (struct block_open){ .path = path, .backing = &any }, -ENOTSUP, "no plain file");
	/* Rings. */
	bad.backing_format = "qcow2";
	bad.backing_path = "b.qcow2";
	make(f, "dir/a.qcow2", bad);
	bad.backing_path = "a.qcow2";
	make(f, "dir/b.qcow2", bad);
	expect_refused(f, (struct block_open){ .path = path, .backing = &any, .is_readonly = true },
		       -ELOOP, "stands on itself");
	if (testing_qemu(f, "create -f qcow2 -u -b base.raw -F raw dir/a.qcow2 1M")) {
		/* Without the format it is not guessed. */
		testing_sh(f, "printf '\\377' | dd of=dir/a.qcow2 bs=1 seek=112 conv=notrunc");
		expect_refused(f, (struct block_open){ .path = path, .backing = &any }, -EINVAL,
			       "which format");
	}
}

/* Entries that lead to tables or out of the file: nothing is written, the image is marked. */
static void test_overlaps(void **state)
{
	struct fixture *f = *state;
	static uint8_t buf[64 * KIB];
	const char *path = testing_path(f, "a.qcow2");

	/* Cluster 0 header, 1 L1, 2 refcount table, 3 block, 4 L2, 5 data. */
	static const uint64_t targets[] = { 0, 1, 2, 3, 4, 1000 };
	for (size_t i = 0; i < ARRAY_SIZE(targets); i++) {
		make(f, "a.qcow2", (struct image_create){ .size_bytes = MIB, .may_replace = true });
		struct block_dev *b =
			testing_open(f, (struct block_open){ .path = path, .format = "qcow2" });
		assert_int_equal(testing_rw(f, b, BLOCK_WRITE, 0, buf, sizeof(buf)), 0);
		b->ops->close(b);
		uint64_t e = __builtin_bswap64((targets[i] ?: 0) << 16 | 1ULL << 63);
		poke(f, "a.qcow2", 4 * 64 * KIB, &e, 8);
		b = testing_open(f, (struct block_open){ .path = path, .format = "qcow2" });
		int r = testing_rw(f, b, BLOCK_WRITE, 0, buf, 512);
		if (targets[i]) {
			assert_int_equal(r, -EIO);
			assert_int_equal(testing_rw(f, b, BLOCK_WRITE, 512 * KIB, buf, 512), -EIO);
		}
		b->ops->close(b);
		if (!targets[i])
			continue;
		expect_refused(f, (struct block_open){ .path = path }, -EROFS, "marked as damaged");
		struct image_check c;
		struct error err;
		assert_int_equal(image_check(path, "qcow2", false, &c, NULL, &err), 0);
		assert_true(c.nerrors > 0);
		assert_int_equal(image_check(path, "qcow2", true, &c, NULL, &err), 0);
		assert_int_equal(c.nfixed, c.nerrors + c.nleaks);
		assert_int_equal(image_check(path, "qcow2", false, &c, NULL, &err), 0);
		assert_int_equal(c.nerrors + c.nleaks, 0);
		testing_qemu(f, "check -f qcow2 a.qcow2");
		b = testing_open(f, (struct block_open){ .path = path, .format = "qcow2" });
		assert_int_equal(testing_rw(f, b, BLOCK_WRITE, 0, buf, 512), 0);
		b->ops->close(b);
	}
}

/* Lazy refcounts: killed, and opened again. */
static void test_dirty(void **state)
{
	struct fixture *f = *state;
	const char *path = testing_path(f, "a.qcow2");
	struct image_info info;
	struct error err;

	memset(shadow, 0, SIZE);
	make(f, "a.qcow2",
	     (struct image_create){ .size_bytes = SIZE, .has_lazy_refcounts = true, .cluster_bytes = 4096 });
	struct block_dev *b = testing_open(f, (struct block_open){ .path = path, .format = "qcow2" });
	testing_work(f, b, shadow, SIZE, 30);
	assert_int_equal(testing_run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), 0);
	/* What a kill leaves behind is what the file holds now. */
	assert_int_equal(testing_sh(f, "cp a.qcow2 killed.qcow2"), 0);
	b->ops->close(b);
	testing_judge(f, "a.qcow2", "qcow2", shadow, SIZE);
	assert_int_equal(image_info(testing_path(f, "killed.qcow2"), "qcow2", &info, &err), 0);
	assert_true(info.is_dirty);
	image_info_free(&info);
	b = testing_open(f, (struct block_open){ .path = testing_path(f, "killed.qcow2"),
						 .format = "qcow2" });
	testing_expect(f, b, shadow, SIZE);
	testing_work(f, b, shadow, SIZE, 30);
	b->ops->close(b);
	testing_judge(f, "killed.qcow2", "qcow2", shadow, SIZE);
}

/* Written and discarded again and again without a flush: the file doesn't grow for ever. */
static void test_room(void **state)
{
	struct fixture *f = *state;
	static uint8_t buf[512 * KIB];
	const char *path = testing_path(f, "a.qcow2");
	struct stat st;

	make(f, "a.qcow2", (struct image_create){ .size_bytes = SIZE });
	struct block_dev *b = testing_open(f, (struct block_open){ .path = path, .format = "qcow2" });
	for (unsigned i = 0; i < 600; i++) {
		memset(buf, (int)i, sizeof(buf));
		assert_int_equal(testing_rw(f, b, BLOCK_WRITE, MIB, buf, sizeof(buf)), 0);
		assert_int_equal(testing_run(f, b,
					     (struct block_req){ .op = BLOCK_DISCARD,
								 .offset_bytes = MIB,
								 .len_bytes = sizeof(buf) }),
				 0);
	}
	assert_int_equal(stat(path, &st), 0);
	assert_true((uint64_t)st.st_size < 100 * MIB); /* of the 300 written */
	b->ops->close(b);
	memset(shadow, 0, SIZE);
	testing_judge(f, "a.qcow2", "qcow2", shadow, SIZE);
}

/* Past the page cache, and with limits that are far away. */
static void test_direct(void **state)
{
	struct fixture *f = *state;
	static const uint64_t clusters[] = { 64 * KIB, 4096, 512 };
	struct error err = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(clusters); i++) {
		struct block_open o = { .path = testing_path(f, "a.qcow2"),
					.format = "qcow2",
					.use_direct = true,
					.max_bytes_per_s = 64 * GIB,
					.max_ops_per_s = 10000000 };
		struct block_dev *b = NULL;
		memset(shadow, 0, SIZE);
		make(f, "a.qcow2",
		     (struct image_create){
			     .size_bytes = SIZE, .cluster_bytes = clusters[i], .may_replace = true });
		if (block_open(&b, f->loop, &o, &err) < 0) {
			print_message("no O_DIRECT here: %s\n", err.text);
			assert_non_null(strstr(err.text, "leave out the direct option"));
			return;
		}
		testing_work(f, b, shadow, SIZE, 20);
		testing_expect(f, b, shadow, SIZE);
		b->ops->close(b);
		testing_judge(f, "a.qcow2", "qcow2", shadow, SIZE);
	}
}

/* ---- a failing host ---- */

static _Atomic int fail_after; /* calls that still work; then one fails */
static int fail_errno;

static bool fails(void)
{
	if (fail_after-- != 0)
		return false;
	errno = fail_errno;
	return true;
}

static ssize_t failing_pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
	return fails() ? -1 : host_calls_real.pwritev(fd, iov, n, at);
}

static ssize_t failing_preadv(int fd, const struct iovec *iov, int n, off_t at)
{
	return fails() ? -1 : host_calls_real.preadv(fd, iov, n, at);
}

static int failing_fallocate(int fd, int mode, off_t at, off_t len)
{
	return fails() ? -1 : host_calls_real.fallocate(fd, mode, at, len);
}

/* One request after the other: what is said to be done is done, what failed left the sector as it was or as wanted. */
static void work_and_fail(struct fixture *f, struct block_dev *b)
{
	static uint8_t buf[96 * 512], back[sizeof(buf)];

	for (unsigned i = 0; i < 12; i++) {
		uint64_t at = testing_random(f) % (SIZE / 512 - 96) * 512,
			 len = (1 + testing_random(f) % 96) * 512;
		bool is_zero = testing_random(f) % 4 == 0;
		memset(buf, is_zero ? 0 : (int)(1 + i), len);
		int r = is_zero ? testing_run(f, b,
					      (struct block_req){ .op = BLOCK_WRITE_ZEROES,
								  .may_unmap = true,
								  .offset_bytes = at,
								  .len_bytes = len })
				: testing_rw(f, b, BLOCK_WRITE, at, buf, len);
		if (testing_random(f) % 3 == 0)
			testing_run(f, b, (struct block_req){ .op = BLOCK_FLUSH });
		if (testing_rw(f, b, BLOCK_READ, at, back, len) < 0 &&
		    testing_rw(f, b, BLOCK_READ, at, back, len) < 0)
			fail_msg("two reads fail, though one call does");
		for (uint64_t k = 0; k < len; k++)
			if (back[k] != buf[k] && (r == 0 || back[k] != shadow[at + k]))
				fail_msg("%u is neither new nor old after %d", back[k], r);
		memcpy(shadow + at, back, len);
	}
}

static void test_failures(void **state)
{
	struct fixture *f = *state;
	const char *path = testing_path(f, "a.qcow2");
	struct image_check c;
	struct error err;

	for (int n = 0; n < 72; n++) {
		memset(shadow, 0, SIZE);
		make(f, "a.qcow2",
		     (struct image_create){ .size_bytes = SIZE,
					    .cluster_bytes = n % 2 ? 4096 : 65536,
					    .has_extended_l2 = n % 4 == 0,
					    .has_lazy_refcounts = n % 3 == 0,
					    .may_replace = true });
		struct block_dev *b =
			testing_open(f, (struct block_open){ .path = path, .format = "qcow2" });
		f->seed = (uint32_t)n / 6;
		fail_errno = n % 5 ? ENOSPC : EIO;
		fail_after = n / 2;
		host.pwritev = n % 3 == 0 ? failing_pwritev : host.pwritev;
		host.preadv = n % 3 == 1 ? failing_preadv : host.preadv;
		host.fallocate = n % 3 == 2 ? failing_fallocate : host.fallocate;
		work_and_fail(f, b);
		host.pwritev = host_calls_real.pwritev;
		host.preadv = host_calls_real.preadv;
		host.fallocate = host_calls_real.fallocate;
		testing_expect(f, b, shadow, SIZE);
		b->ops->close(b);
		assert_int_equal(image_check(path, "qcow2", false, &c, NULL, &err), 0);
		if (c.nerrors)
			fail_msg("call %d: %s", n, c.first_error);
		/* Room may be lost where giving it back failed. */
		assert_int_equal(image_check(path, "qcow2", true, &c, NULL, &err), 0);
		if (n % 6 == 0) /* the other opinion takes long */
			testing_judge(f, "a.qcow2", "qcow2", shadow, SIZE);
	}
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, testing_setup, testing_teardown)
	const struct CMUnitTest tests[] = {
		T(test_own_images),	T(test_own_layers),
		T(test_foreign_images), T(test_internal_snapshots),
		T(test_features),	T(test_backing_rule),
		T(test_overlaps),	T(test_dirty),
		T(test_failures),	T(test_direct),
		T(test_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
