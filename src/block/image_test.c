/* SPDX-License-Identifier: Apache-2.0 */
/* Layers of running devices, and work on closed images. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "block/testing.h"

#define SIZE (4 * MIB)

static const struct block_backing_rule any = { .any = true };
static uint8_t shadow[8 * MIB], older[8 * MIB];

static struct error err; /* of the last call */

/* Fails the test with the sentence. */
#define must(call)                                                                                 \
	do {                                                                                       \
		if ((call) < 0)                                                                    \
			fail_msg("%s", err.text);                                                  \
	} while (0)

static void make(struct fixture *f, const char *name, const char *backing, const char *format,
		 uint64_t size)
{
	const struct image_create c = { .format = "qcow2",
					.size_bytes = size,
					.backing_path = backing,
					.backing_format = format,
					.may_replace = true };

	must(image_create(testing_path(f, name), &c, &err));
}

static struct block_open at(struct fixture *f, const char *name, const char *format)
{
	return (struct block_open){ .path = testing_path(f, name), .format = format, .backing = &any };
}

static void flush(struct fixture *f, struct block_dev *b)
{
	assert_int_equal(testing_run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), 0);
}

static void expect_push_refused(struct fixture *f, struct block_dev *b, const char *name,
				const char *format, const char *sentence)
{
	struct block_open top = at(f, name, format);

	assert_int_equal(block_push_layer(b, &top, &err), -EINVAL);
	if (!strstr(err.text, sentence))
		fail_msg("'%s' does not say '%s'", err.text, sentence);
}

/* While a machine has it as a backing file, qemu-img can't look. */
static void expect_file(struct fixture *f, const char *name, const char *format, const uint8_t *model)
{
	struct block_open o = at(f, name, format);
	struct image_check c;

	o.is_readonly = true;
	struct block_dev *b = testing_open(f, o);
	testing_expect(f, b, model, SIZE);
	b->ops->close(b);
	must(image_check(o.path, format, false, &c, NULL, &err));
	assert_int_equal(c.nerrors + c.nleaks, 0);
}

static unsigned ndone;

static void on_done(struct block_req *req, int result)
{
	assert_int_equal(result, 0);
	ndone++;
}

/* Requests in flight at the moment of the push lie in the old layer. */
static void push_busy(struct fixture *f, struct block_dev *b, const char *name)
{
	static struct block_req reqs[16];
	static uint8_t data[16][4096];
	static struct iovec iov[16];
	struct block_open top = at(f, name, "qcow2");

	ndone = 0;
	for (unsigned i = 0; i < 16; i++) {
		memset(data[i], (int)i + 1, sizeof(data[i]));
		iov[i] = (struct iovec){ data[i], sizeof(data[i]) };
		reqs[i] = (struct block_req){ .op = BLOCK_WRITE,
					      .offset_bytes = i * 100 * KIB,
					      .len_bytes = sizeof(data[i]),
					      .iov = &iov[i],
					      .niov = 1,
					      .done = on_done };
		b->ops->submit(b, &reqs[i]);
		memcpy(shadow + i * 100 * KIB, data[i], sizeof(data[i]));
	}
	must(block_push_layer(b, &top, &err));
	assert_int_equal(ndone, 16);
	memcpy(older, shadow, SIZE);
}

static void expect_busy(struct fixture *f, const char *name, const char *format, bool is_busy)
{
	struct block_open o = at(f, name, format);
	struct block_dev *b = NULL;

	o.is_readonly = true;
	int r = block_open(&b, f->loop, &o, &err);
	assert_int_equal(r, is_busy ? -EBUSY : 0);
	if (b)
		b->ops->close(b);
}

static void test_push(void **state)
{
	struct fixture *f = *state;

	testing_fill(f, "base", shadow, SIZE);
	make(f, "one", "base", "raw", SIZE);
	make(f, "two", "one", "qcow2", SIZE);
	make(f, "small", "base", "raw", SIZE / 2);
	make(f, "full", "base", "raw", SIZE);
	struct block_dev *b = testing_open(f, at(f, "full", "qcow2"));
	assert_int_equal(testing_rw(f, b, BLOCK_WRITE, 0, older, 512), 0);
	b->ops->close(b);

	b = testing_open(f, at(f, "base", "raw"));
	testing_work(f, b, shadow, SIZE, 20);
	expect_push_refused(f, b, "small", "qcow2", "another size");
	expect_push_refused(f, b, "two", "qcow2", "doesn't name");
	expect_push_refused(f, b, "full", "qcow2", "not empty");
	testing_work(f, b, shadow, SIZE, 5);
	push_busy(f, b, "one");
	expect_busy(f, "base", "raw", true);
	struct image_info info;
	must(image_info(testing_path(f, "one"), "qcow2", &info, &err));
	assert_string_equal(info.backing_path, "base");
	image_info_free(&info);
	testing_expect(f, b, shadow, SIZE);
	testing_work(f, b, shadow, SIZE, 20);
	flush(f, b);
	expect_busy(f, "base", "raw", false);
	expect_file(f, "base", "raw", older);
	push_busy(f, b, "two");
	expect_busy(f, "one", "qcow2", true);
	testing_work(f, b, shadow, SIZE, 20);
	flush(f, b);
	expect_file(f, "one", "qcow2", older);
	/* A throw-away layer, used again and again. */
	assert_int_equal(block_reset_layer(b, &err), -EINVAL);
	must(block_push_layer(b, &(struct block_open){ .is_snapshot = true }, &err));
	memcpy(older, shadow, SIZE);
	for (unsigned i = 0; i < 3; i++) {
		testing_work(f, b, shadow, SIZE, 10);
		must(block_reset_layer(b, &err));
		memcpy(shadow, older, SIZE);
		testing_expect(f, b, shadow, SIZE);
	}
	flush(f, b);
	expect_file(f, "two", "qcow2", older);
	b->ops->close(b);
	testing_judge(f, "two", "qcow2", older, SIZE);
}

static void test_reopen(void **state)
{
	struct fixture *f = *state;

	testing_fill(f, "base", shadow, SIZE);
	make(f, "one", "base", "raw", SIZE);
	make(f, "two", "base", "raw", SIZE);
	make(f, "small", NULL, NULL, SIZE / 2);
	memcpy(older, shadow, SIZE);
	struct block_dev *b = testing_open(f, at(f, "one", "qcow2"));
	testing_work(f, b, shadow, SIZE, 20);
	struct block_open o = at(f, "small", "qcow2");
	assert_int_equal(block_reopen(b, &o, &err), -EINVAL);
	testing_expect(f, b, shadow, SIZE);
	o = at(f, "two", "qcow2");
	must(block_reopen(b, &o, &err));
	expect_file(f, "one", "qcow2", shadow);
	testing_expect(f, b, older, SIZE);
	testing_work(f, b, older, SIZE, 20);
	b->ops->close(b);
	testing_judge(f, "two", "qcow2", older, SIZE);
}

static void test_resize(void **state)
{
	struct fixture *f = *state;
	static const uint64_t clusters[] = { 64 * KIB, 512, 2 * MIB };

	for (size_t i = 0; i < ARRAY_SIZE(clusters); i++) {
		memset(shadow, 0, sizeof(shadow));
		testing_fill(f, "base", shadow, SIZE); /* longer than the disk at first */
		const struct image_create c = { .format = "qcow2",
						.size_bytes = MIB + 512,
						.cluster_bytes = clusters[i],
						.backing_path = "base",
						.backing_format = "raw",
						.may_replace = true };
		must(image_create(testing_path(f, "a"), &c, &err));
		memset(shadow + MIB + 512, 0, sizeof(shadow) - MIB - 512);
		struct block_open o = at(f, "a", "qcow2");
		struct block_dev *b = testing_open(f, o);
		testing_work(f, b, shadow, MIB + 512, 20);
		b->ops->close(b);
		must(image_resize(&o, 6 * MIB, false, &err));
		testing_judge(f, "a", "qcow2", shadow, 6 * MIB);
		b = testing_open(f, o);
		testing_work(f, b, shadow, 6 * MIB, 30);
		b->ops->close(b);
		testing_judge(f, "a", "qcow2", shadow, 6 * MIB);
		assert_int_equal(image_resize(&o, MIB, false, &err), -EINVAL);
		must(image_resize(&o, 3 * MIB - 512, true, &err));
		memset(shadow + 3 * MIB - 512, 0, sizeof(shadow) - 3 * MIB + 512);
		testing_judge(f, "a", "qcow2", shadow, 3 * MIB - 512);
		must(image_resize(&o, 5 * MIB, false, &err));
		testing_judge(f, "a", "qcow2", shadow, 5 * MIB);
	}
	testing_fill(f, "raw", shadow, MIB);
	memset(shadow + MIB, 0, MIB);
	struct block_open o = at(f, "raw", "raw");
	must(image_resize(&o, 2 * MIB, false, &err));
	testing_judge(f, "raw", "raw", shadow, 2 * MIB);
}

static void test_convert(void **state)
{
	struct fixture *f = *state;
	static const struct {
		struct image_create c;
		bool compress;
	} variants[] = {
		{ { .format = "qcow2" }, false },
		{ { .format = "qcow2" }, true },
		{ { .format = "qcow2", .compression = IMAGE_ZSTD }, true },
		{ { .format = "qcow2", .cluster_bytes = 4096, .refcount_bits = 1 }, true },
		{ { .format = "qcow2", .cluster_bytes = 2 * MIB, .is_v2 = true }, true },
		{ { .format = "qcow2", .has_extended_l2 = true }, true },
		{ { .format = "raw" }, false },
	};
	uint64_t size = SIZE - 512;

	testing_fill(f, "base", shadow, size);
	make(f, "top", "base", "raw", size);
	struct block_dev *b = testing_open(f, at(f, "top", "qcow2"));
	testing_work(f, b, shadow, size, 20);
	b->ops->close(b);
	for (size_t i = 0; i < ARRAY_SIZE(variants); i++) {
		struct block_open o = at(f, "top", "qcow2");
		o.is_readonly = true;
		must(image_convert(&o, testing_path(f, "copy"), &variants[i].c,
				   variants[i].compress, NULL, &err));
		testing_judge(f, "copy", variants[i].c.format, shadow, size);
		assert_int_equal(image_convert(&o, testing_path(f, "copy"), &variants[i].c, false,
					       NULL, &err),
				 -EEXIST);
		/* And what was packed is written to. */
		memcpy(older, shadow, size);
		b = testing_open(f, at(f, "copy", variants[i].c.format));
		testing_work(f, b, older, size, 10);
		b->ops->close(b);
		testing_judge(f, "copy", variants[i].c.format, older, size);
		unlink(testing_path(f, "copy"));
	}
	assert_int_equal(testing_sh(f, "! ls *.part"), 0);
}

/* base <- a <- b <- c: what is in the middle goes in every way there is. */
static void make_chain(struct fixture *f)
{
	static const char *const names[] = { "base", "a", "b", "c" };

	testing_fill(f, "base", shadow, SIZE);
	for (unsigned i = 1; i < 4; i++) {
		memcpy(older, shadow, SIZE);
		make(f, names[i], names[i - 1], i == 1 ? "raw" : "qcow2", SIZE);
		struct block_dev *b = testing_open(f, at(f, names[i], "qcow2"));
		testing_work(f, b, shadow, SIZE, 12);
		b->ops->close(b);
	}
}

static void test_merge(void **state)
{
	struct fixture *f = *state;
	struct image_info info;

	/* c onto a, without b: b's content comes up. */
	make_chain(f);
	struct block_open c = at(f, "c", "qcow2");
	must(image_rebase(&c, "a", "qcow2", NULL, &err));
	unlink(testing_path(f, "b"));
	testing_judge(f, "c", "qcow2", shadow, SIZE);
	must(image_rebase(&c, NULL, NULL, NULL, &err));
	must(image_info(c.path, "qcow2", &info, &err));
	assert_null(info.backing_path);
	image_info_free(&info);
	unlink(testing_path(f, "a"));
	testing_judge(f, "c", "qcow2", shadow, SIZE);

	/* c onto something else altogether. */
	make_chain(f);
	static uint8_t other[SIZE];
	testing_fill(f, "other", other, SIZE);
	must(image_rebase(&c, "other", "raw", NULL, &err));
	testing_judge(f, "c", "qcow2", shadow, SIZE);

	/* b into a; c then stands on a.  Then down to the base. */
	make_chain(f);
	struct block_open b = at(f, "b", "qcow2");
	must(image_commit(&b, NULL, &err));
	testing_judge(f, "a", "qcow2", older, SIZE);
	must(image_set_backing(c.path, "a", "qcow2", &err));
	unlink(testing_path(f, "b"));
	testing_judge(f, "c", "qcow2", shadow, SIZE);
	must(image_commit(&c, NULL, &err));
	testing_judge(f, "a", "qcow2", shadow, SIZE);
	struct block_open a = at(f, "a", "qcow2");
	must(image_commit(&a, NULL, &err));
	testing_judge(f, "base", "raw", shadow, SIZE);

	struct block_open refused = a;
	refused.backing = NULL;
	assert_int_equal(image_commit(&refused, NULL, &err), -EACCES);
	assert_int_equal(image_rebase(&refused, NULL, NULL, NULL, &err), -EACCES);
}

static void test_compact(void **state)
{
	struct fixture *f = *state;
	struct stat before, after;
	struct image_info info;

	make_chain(f);
	struct block_open c = at(f, "c", "qcow2");
	struct block_dev *b = testing_open(f, c);
	assert_int_equal(testing_run(f, b,
				     (struct block_req){ .op = BLOCK_WRITE_ZEROES,
							 .may_unmap = true,
							 .len_bytes = SIZE - MIB }),
			 0);
	memset(shadow, 0, SIZE - MIB);
	b->ops->close(b);
	assert_int_equal(stat(c.path, &before), 0);
	must(image_compact(&c, NULL, &err));
	assert_int_equal(stat(c.path, &after), 0);
	assert_true(after.st_size < before.st_size);
	testing_judge(f, "c", "qcow2", shadow, SIZE);
	must(image_info(c.path, "qcow2", &info, &err));
	assert_string_equal(info.backing_path, "b");
	image_info_free(&info);
}

static bool stop_at_once(void *arg, uint64_t done, uint64_t total)
{
	++*(unsigned *)arg;
	return true;
}

static void test_cancel(void **state)
{
	struct fixture *f = *state;
	unsigned n = 0;
	const struct image_progress p = { stop_at_once, &n };

	make_chain(f);
	struct block_open c = at(f, "c", "qcow2");
	const struct image_create as = { .format = "qcow2" };
	assert_int_equal(image_convert(&c, testing_path(f, "copy"), &as, false, &p, &err), -ECANCELED);
	assert_int_equal(image_rebase(&c, NULL, NULL, &p, &err), -ECANCELED);
	assert_int_equal(image_commit(&c, &p, &err), -ECANCELED);
	assert_int_equal(image_compact(&c, &p, &err), -ECANCELED);
	assert_true(n >= 4);
	assert_int_equal(testing_sh(f, "! ls *.part copy"), 0);
	testing_judge(f, "c", "qcow2", shadow, SIZE);
}

/* Counts that are wrong in either direction, missing ones, a file cut short. */
static void test_repair(void **state)
{
	struct fixture *f = *state;
	static const char *const damage[] = {
		"dd if=/dev/zero of=a bs=64k seek=3 count=1 conv=notrunc", /* no counts at all */
		"dd if=/dev/zero of=a bs=64k seek=2 count=1 conv=notrunc", /* no table of counts */
		"head -c 3000 /dev/zero | tr '\\0' '\\1' | dd of=a bs=64k seek=3 conv=notrunc", /* leaks and too high */
		"truncate -s 1M a",
		"head -c 4096 /dev/urandom | dd of=a bs=64k seek=4 conv=notrunc", /* an L2 table */
	};
	struct image_check c;

	for (size_t i = 0; i < ARRAY_SIZE(damage); i++) {
		memset(shadow, 0, SIZE);
		make(f, "a", NULL, NULL, SIZE);
		struct block_open o = at(f, "a", "qcow2");
		struct block_dev *b = testing_open(f, o);
		testing_work(f, b, shadow, SIZE, 20);
		b->ops->close(b);
		assert_int_equal(testing_sh(f, "%s", damage[i]), 0);
		must(image_check(o.path, "qcow2", false, &c, NULL, &err));
		assert_true(c.nerrors + c.nleaks > 0);
		must(image_check(o.path, "qcow2", true, &c, NULL, &err));
		if (c.nfixed != c.nerrors + c.nleaks)
			fail_msg("damage %zu: %s", i, c.first_error);
		must(image_check(o.path, "qcow2", false, &c, NULL, &err));
		if (c.nerrors + c.nleaks)
			fail_msg("damage %zu: %s", i, c.first_error);
		testing_qemu(f, "check -f qcow2 a");
		b = testing_open(f, o);
		if (i < 3)
			testing_expect(f, b, shadow, SIZE);
		assert_int_equal(testing_rw(f, b, BLOCK_READ, 0, shadow, SIZE), 0);
		testing_work(f, b, shadow, SIZE, 10);
		b->ops->close(b);
		testing_judge(f, "a", "qcow2", shadow, SIZE);
	}
}

/* What was to be thrown away becomes a file, filled while the machine writes on. */
static void test_keep(void **state)
{
	struct fixture *f = *state;
	struct block_open o = at(f, "base", "raw");

	testing_fill(f, "base", shadow, SIZE);
	struct block_dev *b = testing_open(f, o);

	make(f, "kept", "base", "raw", SIZE);
	assert_int_equal(block_keep_layer(b, testing_path(f, "kept"), &err), -EINVAL);
	b->ops->close(b);
	o.is_snapshot = true;
	b = testing_open(f, o);
	testing_work(f, b, shadow, SIZE, 30);
	assert_int_equal(block_save_kept(b, testing_path(f, "kept"), &err), -EINVAL);
	assert_int_equal(block_keep_layer(b, testing_path(f, "none"), &err), -ENOENT);
	must(block_keep_layer(b, testing_path(f, "kept"), &err));
	make(f, "top", "kept", "qcow2", SIZE);
	push_busy(f, b, "top");
	testing_work(f, b, shadow, SIZE, 10);
	/* By the descriptor, whatever its name is by now.  Twice: the first may have been cut short. */
	assert_int_equal(rename(testing_path(f, "kept"), testing_path(f, "elsewhere")), 0);
	must(block_save_kept(b, testing_path(f, "kept"), &err));
	assert_int_equal(rename(testing_path(f, "elsewhere"), testing_path(f, "kept")), 0);
	testing_work(f, b, shadow, SIZE, 10);
	must(block_save_kept(b, testing_path(f, "kept"), &err));
	block_release_kept(b);
	assert_int_equal(block_save_kept(b, testing_path(f, "kept"), &err), -EINVAL);
	expect_file(f, "kept", "qcow2", older);
	testing_expect(f, b, shadow, SIZE);
	flush(f, b);
	b->ops->close(b);
	testing_judge(f, "kept", "qcow2", older, SIZE);
	testing_judge(f, "top", "qcow2", shadow, SIZE);
}

/* ---- the layer below the top ---- */

static void make_as(struct fixture *f, const char *name, const char *backing,
		    const struct image_create *as)
{
	struct image_create c = *as;

	c.format = "qcow2";
	c.size_bytes = SIZE;
	c.backing_path = backing;
	c.backing_format = "qcow2";
	must(image_create(testing_path(f, name), &c, &err));
}

static int take(struct fixture *f, struct block_dev *b, uint64_t at_bytes, uint64_t len)
{
	return testing_run(
		f, b,
		(struct block_req){ .op = BLOCK_TAKE_IN, .offset_bytes = at_bytes, .len_bytes = len });
}

static int name_below(struct fixture *f, struct block_dev *b)
{
	return testing_run(f, b, (struct block_req){ .op = BLOCK_NAME_BELOW });
}

static void push(struct fixture *f, struct block_dev *b, const char *name)
{
	const struct block_open top = at(f, name, "qcow2");

	must(block_push_layer(b, &top, &err));
}

static bool is_layer(struct fixture *f, const struct block_dev *b, unsigned depth, const char *name)
{
	struct stat st;
	dev_t dev;
	ino_t ino;

	assert_int_equal(stat(testing_path(f, name), &st), 0);
	return block_layer_file(b, depth, &dev, &ino) && dev == st.st_dev && ino == st.st_ino;
}

/* @middle goes into @top, while the disk is written to. */
static void take_in_middle(struct fixture *f, const struct image_create *middle,
			   const struct image_create *top)
{
	make(f, "one", NULL, NULL, SIZE);
	memset(shadow, 0, SIZE);
	struct block_dev *b = testing_open(f, at(f, "one", "qcow2"));

	testing_work(f, b, shadow, SIZE, 60);
	assert_int_equal(take(f, b, 0, SIZE), -EINVAL);
	make_as(f, "two", "one", middle);
	push(f, b, "two");
	testing_work(f, b, shadow, SIZE, 20);
	flush(f, b);
	assert_int_equal(take(f, b, 0, SIZE), -EINVAL); /* what is below is the lowest */
	make_as(f, "three", "two", top);
	push(f, b, "three");
	assert_int_equal(take(f, b, 0, SIZE), -EINVAL); /* it is not stable yet */
	memcpy(older, shadow, SIZE);
	testing_work(f, b, shadow, SIZE, 10);
	flush(f, b);
	static struct block_req reqs[16];

	ndone = 0;
	for (unsigned i = 0; i < 16; i++) {
		reqs[i] = (struct block_req){ .op = BLOCK_TAKE_IN,
					      .offset_bytes = i * (SIZE / 16),
					      .len_bytes = SIZE / 16,
					      .done = on_done };
		b->ops->submit(b, &reqs[i]);
		testing_work(f, b, shadow, SIZE, 2);
	}
	b->ops->drain(b);
	assert_int_equal(ndone, 16);
	assert_int_equal(block_drop_below(b, &err), -EINVAL);
	flush(f, b);
	assert_int_equal(name_below(f, b), 0);
	assert_true(is_layer(f, b, 1, "two"));
	testing_expect(f, b, shadow, SIZE);
	must(block_drop_below(b, &err));
	assert_true(is_layer(f, b, 0, "three") && is_layer(f, b, 1, "one"));
	assert_int_equal(take(f, b, 0, SIZE), -EINVAL);
	testing_expect(f, b, shadow, SIZE);
	testing_work(f, b, shadow, SIZE, 10);
	expect_file(f, "two", "qcow2", older);
	b->ops->close(b);
	testing_judge(f, "two", "qcow2", older, SIZE);
	unlink(testing_path(f, "two"));
	testing_judge(f, "three", "qcow2", shadow, SIZE);
	unlink(testing_path(f, "three"));
}

static void test_take_in(void **state)
{
	struct fixture *f = *state;
	const struct image_create plain = { 0 }, small = { .cluster_bytes = 4096 },
				  ext = { .cluster_bytes = 16 * KIB, .has_extended_l2 = true },
				  v2 = { .is_v2 = true, .cluster_bytes = 16 * KIB };

	take_in_middle(f, &plain, &plain);
	take_in_middle(f, &small, &plain);
	take_in_middle(f, &ext, &ext);
	take_in_middle(f, &plain, &ext);
	take_in_middle(f, &plain, &v2);
	take_in_middle(f, &small, &(struct image_create){ .cluster_bytes = 512 });
}

/* Others put a file of the same content in place: a disk in use takes it. */
static void test_reopen_below(void **state)
{
	struct fixture *f = *state;

	make(f, "one", NULL, NULL, SIZE);
	make(f, "two", "one", "qcow2", SIZE);
	memset(shadow, 0, SIZE);
	struct block_dev *b = testing_open(f, at(f, "one", "qcow2"));

	assert_int_equal(block_reopen_below(b, &any, &err), -EINVAL);
	testing_work(f, b, shadow, SIZE, 20);
	push(f, b, "two");
	assert_int_equal(block_reopen_below(b, &any, &err), -EINVAL);
	flush(f, b);
	testing_work(f, b, shadow, SIZE, 10);
	assert_int_equal(testing_sh(f, "cp one copy && mv copy one"), 0);
	assert_false(is_layer(f, b, 1, "one"));
	must(block_reopen_below(b, &any, &err));
	assert_true(is_layer(f, b, 1, "one"));
	testing_expect(f, b, shadow, SIZE);
	testing_work(f, b, shadow, SIZE, 10);
	/* What can't be opened leaves it as it is. */
	unlink(testing_path(f, "one"));
	assert_int_equal(block_reopen_below(b, &any, &err), -ENOENT);
	make(f, "one", NULL, NULL, SIZE / 2);
	assert_int_equal(block_reopen_below(b, &any, &err), -EINVAL);
	assert_int_equal(block_reopen_below(b, NULL, &err), -EACCES);
	testing_expect(f, b, shadow, SIZE);
	b->ops->close(b);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, testing_setup, testing_teardown)
	const struct CMUnitTest tests[] = {
		T(test_push),	T(test_reopen),	 T(test_resize),       T(test_convert),
		T(test_keep),	T(test_merge),	 T(test_compact),      T(test_cancel),
		T(test_repair), T(test_take_in), T(test_reopen_below),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
