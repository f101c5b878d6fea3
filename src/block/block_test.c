/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/host.h"
#include "block/block.h"
#include "block/overlay.h"
#include "block/uring.h"

#define IMAGE_SECTORS 4096
#define IMAGE_BYTES   (IMAGE_SECTORS * BLOCK_SECTOR)

/* All tests run twice: transfers by io_uring, and by threads. */
static bool use_threads;

static int no_uring(unsigned entries, void *ring)
{
	return -ENOSYS;
}

/* What a test puts in place of a host call counts for the ring, too: it is asked there, or by a thread. */
static int result_of_calls(int op, int fd, int res)
{
	if (op == URING_SYNC && host.fdatasync != host_calls_real.fdatasync)
		return host.fdatasync(fd) < 0 ? -errno : 0;
	if ((op == URING_READ && host.preadv != host_calls_real.preadv) ||
	    (op == URING_WRITE && host.pwritev != host_calls_real.pwritev))
		return -EAGAIN;
	return res;
}

static void real_host(void)
{
	host = host_calls_real;
	if (use_threads)
		host.uring_init = no_uring;
	else
		host.uring_result = result_of_calls;
}

struct fixture {
	char dir[64], path[96];
	struct loop *loop;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	real_host();
	strcpy(f->dir, "/tmp/viv-block-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/disk.img", f->dir);
	int fd = open(f->path, O_RDWR | O_CREAT, 0600);
	assert_true(fd >= 0);
	uint8_t sector[BLOCK_SECTOR];
	for (unsigned i = 0; i < IMAGE_SECTORS; i++) {
		memset(sector, i & 0xff, sizeof(sector));
		assert_int_equal(write(fd, sector, sizeof(sector)), sizeof(sector));
	}
	close(fd);
	struct error err;
	assert_int_equal(loop_create(&f->loop, NULL, &err), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	host = host_calls_real;
	loop_destroy(f->loop);
	unlink(f->path);
	rmdir(f->dir);
	free(f);
	return 0;
}

static struct block_dev *open_image(struct fixture *f, struct block_open o)
{
	struct block_dev *b = NULL;
	struct error err = { 0 };

	o.path = f->path;
	o.format = "raw";
	if (block_open(&b, f->loop, &o, &err) < 0)
		fail_msg("%s", err.text);
	return b;
}

struct waiter {
	struct block_req req;
	bool is_done;
	int result;
};

static void on_done(struct block_req *req, int result)
{
	struct waiter *w = req->owner;

	assert_false(w->is_done);
	w->is_done = true;
	w->result = result;
}

static void start(struct block_dev *b, struct waiter *w, struct block_req req)
{
	*w = (struct waiter){ .req = req };
	w->req.done = on_done;
	w->req.owner = w;
	b->ops->submit(b, &w->req);
	assert_false(w->is_done); /* never from inside the submit */
}

static int run(struct fixture *f, struct block_dev *b, struct block_req req)
{
	struct waiter w;

	start(b, &w, req);
	for (unsigned i = 0; i < 1000 && !w.is_done; i++)
		loop_run_once(f->loop, 10);
	assert_true(w.is_done);
	return w.result;
}

static int rw(struct fixture *f, struct block_dev *b, enum block_op op, uint64_t sector, void *buf,
	      size_t len)
{
	struct iovec iov = { buf, len };

	return run(f, b,
		   (struct block_req){ .op = op,
				       .offset_bytes = sector * BLOCK_SECTOR,
				       .len_bytes = len,
				       .iov = &iov,
				       .niov = 1 });
}

static void expect_sectors(struct fixture *f, struct block_dev *b, uint64_t sector, unsigned n, int value)
{
	uint8_t *buf = malloc(n * BLOCK_SECTOR);

	assert_int_equal(rw(f, b, BLOCK_READ, sector, buf, n * BLOCK_SECTOR), 0);
	for (unsigned i = 0; i < n * BLOCK_SECTOR; i++)
		assert_int_equal(buf[i], value >= 0 ? value : (int)((sector + i / BLOCK_SECTOR) & 0xff));
	free(buf);
}

static void test_read_write(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	struct block_info info;

	b->ops->info(b, &info);
	assert_int_equal(info.size_bytes, IMAGE_BYTES);
	assert_false(info.is_readonly);
	assert_true(info.can_discard && info.can_write_zeroes && info.has_write_cache);
	assert_string_equal(info.io, use_threads ? "threads" : "io_uring");
	expect_sectors(f, b, 0, 64, -1);

	/* Scattered over odd vectors, more of them than one batch holds. */
	enum { N = 700 };
	static uint8_t data[N * BLOCK_SECTOR], back[sizeof(data)];
	static struct iovec iov[2 * N + 1];
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = i * 7 + i / 251;
	unsigned n = 0;
	for (size_t at = 0; at < sizeof(data);) {
		size_t part = MIN(sizeof(data) - at, (size_t)(n % 3 ? 301 : 256));
		iov[n++] = (struct iovec){ data + at, part };
		at += part;
	}
	struct block_req req = { .op = BLOCK_WRITE,
				 .is_fua = true,
				 .offset_bytes = 100 * BLOCK_SECTOR,
				 .len_bytes = sizeof(data),
				 .iov = iov,
				 .niov = n };
	assert_int_equal(run(f, b, req), 0);
	assert_int_equal(rw(f, b, BLOCK_READ, 100, back, sizeof(back)), 0);
	assert_memory_equal(data, back, sizeof(data));
	expect_sectors(f, b, 99, 1, -1);
	expect_sectors(f, b, 100 + N, 1, -1);

	/* Past the end, misaligned, vectors that don't add up. */
	assert_int_equal(rw(f, b, BLOCK_READ, IMAGE_SECTORS, back, BLOCK_SECTOR), -EIO);
	assert_int_equal(rw(f, b, BLOCK_WRITE, IMAGE_SECTORS - 1, back, 2 * BLOCK_SECTOR), -EIO);
	assert_int_equal(rw(f, b, BLOCK_READ, UINT64_MAX / BLOCK_SECTOR, back, BLOCK_SECTOR), -EIO);
	assert_int_equal(rw(f, b, BLOCK_READ, 0, back, 100), -EIO);
	struct iovec little = { back, 512 };
	req = (struct block_req){ .op = BLOCK_READ, .len_bytes = 1024, .iov = &little, .niov = 1 };
	assert_int_equal(run(f, b, req), -EINVAL);
	b->ops->close(b);
}

static void test_zero_and_discard(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	struct stat st;
	uint8_t sector[512];

	struct block_req req = { .op = BLOCK_WRITE_ZEROES, .offset_bytes = 10 * 512, .len_bytes = 5 * 512 };
	assert_int_equal(run(f, b, req), 0);
	expect_sectors(f, b, 9, 1, -1);
	expect_sectors(f, b, 10, 5, 0);
	expect_sectors(f, b, 15, 1, -1);
	req.may_unmap = true;
	req.offset_bytes = 1024 * 512;
	req.len_bytes = 1024 * 512;
	assert_int_equal(run(f, b, req), 0);
	expect_sectors(f, b, 1024, 1024, 0);
	expect_sectors(f, b, 2048, 1, -1);
	req.op = BLOCK_DISCARD;
	req.offset_bytes = 2048 * 512;
	assert_int_equal(run(f, b, req), 0);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_size, IMAGE_BYTES);
	assert_int_equal(rw(f, b, BLOCK_READ, 2048, sector, sizeof(sector)), 0);
	b->ops->close(b);
}

static int no_fallocate(int fd, int mode, off_t off, off_t len)
{
	errno = EOPNOTSUPP;
	return -1;
}

static void test_without_fallocate(void **state)
{
	struct fixture *f = *state;

	host.fallocate = no_fallocate;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	struct block_req req = {
		.op = BLOCK_WRITE_ZEROES, .may_unmap = true, .offset_bytes = 512, .len_bytes = 300 * 512
	};
	assert_int_equal(run(f, b, req), 0);
	expect_sectors(f, b, 0, 1, -1);
	expect_sectors(f, b, 1, 256, 0);
	expect_sectors(f, b, 301, 1, -1);
	req = (struct block_req){ .op = BLOCK_WRITE_ZEROES, .offset_bytes = 400 * 512, .len_bytes = 512 };
	assert_int_equal(run(f, b, req), 0);
	expect_sectors(f, b, 400, 1, 0);
	req.op = BLOCK_DISCARD;
	assert_int_equal(run(f, b, req), 0);
	b->ops->close(b);
}

static void test_readonly(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ .is_readonly = true });
	struct block_dev *second = open_image(f, (struct block_open){ .is_readonly = true });
	struct block_info info;
	uint8_t buf[512] = { 0 };

	b->ops->info(b, &info);
	assert_true(info.is_readonly);
	assert_false(info.can_discard || info.can_write_zeroes);
	assert_int_equal(rw(f, b, BLOCK_WRITE, 0, buf, sizeof(buf)), -EROFS);
	assert_int_equal(run(f, b, (struct block_req){ .op = BLOCK_DISCARD, .len_bytes = 512 }), -EROFS);
	assert_int_equal(run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), 0);
	expect_sectors(f, b, 0, 8, -1);
	expect_sectors(f, second, 0, 8, -1);
	second->ops->close(second);
	b->ops->close(b);
}

static void expect_open(struct fixture *f, struct block_open o, int want, const char *sentence)
{
	struct block_dev *b = NULL;
	struct error err = { 0 };

	if (!o.path)
		o.path = f->path;
	int r = block_open(&b, f->loop, &o, &err);
	assert_int_equal(r, want);
	assert_null(b);
	if (!strstr(err.text, sentence) || !strstr(err.text, o.path))
		fail_msg("'%s' does not say '%s'", err.text, sentence);
}

static void test_locks(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });

	expect_open(f, (struct block_open){ 0 }, -EBUSY, "in use by another machine, which writes to it");
	expect_open(f, (struct block_open){ .is_readonly = true }, -EBUSY, "in use by another machine");
	expect_open(f, (struct block_open){ .is_snapshot = true }, -EBUSY, "in use by another machine");
	b->ops->close(b);
	b = open_image(f, (struct block_open){ .is_snapshot = true });
	struct block_dev *second = open_image(f, (struct block_open){ .is_snapshot = true });
	expect_open(f, (struct block_open){ 0 }, -EBUSY, "in use by another machine, which reads it");
	second->ops->close(second);
	b->ops->close(b);
	b = open_image(f, (struct block_open){ 0 });
	b->ops->close(b);
}

static void test_bad_images(void **state)
{
	struct fixture *f = *state;
	char path[128];

	expect_open(f, (struct block_open){ .path = f->dir, .is_readonly = true }, -EISDIR, "folder");
	expect_open(f, (struct block_open){ .path = f->dir }, -EISDIR, "directory");
	snprintf(path, sizeof(path), "%s/none", f->dir);
	expect_open(f, (struct block_open){ .path = path }, -ENOENT, "check the path");
	expect_open(f, (struct block_open){ .path = "/dev/null" }, -EINVAL, "neither");
	expect_open(f, (struct block_open){ .format = "qcow9" }, -EINVAL, "qcow9");
	assert_int_equal(truncate(f->path, IMAGE_BYTES - 1), 0);
	expect_open(f, (struct block_open){ 0 }, -EINVAL, "no multiple of 512");
	assert_int_equal(truncate(f->path, 0), 0);
	expect_open(f, (struct block_open){ 0 }, -EINVAL, "empty");
}

static void test_snapshot(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ .is_snapshot = true });
	static uint8_t shadow[IMAGE_BYTES], buf[64 * 512];
	struct block_info info;

	b->ops->info(b, &info);
	assert_false(info.is_readonly);
	for (unsigned i = 0; i < IMAGE_SECTORS; i++)
		memset(shadow + i * 512, i & 0xff, 512);
	/* Random operations against a model; fixed seed. */
	uint32_t seed = 12345;
	for (unsigned i = 0; i < 400; i++) {
		seed = seed * 1664525 + 1013904223;
		unsigned n = 1 + (seed >> 8) % 64, sector = (seed >> 14) % (IMAGE_SECTORS - 64);
		struct block_req req = { .offset_bytes = sector * 512, .len_bytes = n * 512 };
		switch (seed >> 30) {
		case 0:
			memset(buf, i, n * 512);
			memset(shadow + sector * 512, i, n * 512);
			assert_int_equal(rw(f, b, BLOCK_WRITE, sector, buf, n * 512), 0);
			break;
		case 1:
			req.op = BLOCK_WRITE_ZEROES;
			req.may_unmap = i & 1;
			memset(shadow + sector * 512, 0, n * 512);
			assert_int_equal(run(f, b, req), 0);
			break;
		case 2:
			req.op = BLOCK_DISCARD;
			assert_int_equal(run(f, b, req), 0);
			/* What it gives afterwards is not said, but it stays. */
			assert_int_equal(rw(f, b, BLOCK_READ, sector, shadow + sector * 512, n * 512), 0);
			break;
		default:
			assert_int_equal(rw(f, b, BLOCK_READ, sector, buf, n * 512), 0);
			assert_memory_equal(buf, shadow + sector * 512, n * 512);
		}
	}
	static uint8_t all[IMAGE_BYTES];
	assert_int_equal(rw(f, b, BLOCK_READ, 0, all, sizeof(all)), 0);
	assert_memory_equal(all, shadow, sizeof(all));
	b->ops->close(b);
	/* The image itself is untouched. */
	b = open_image(f, (struct block_open){ .is_readonly = true });
	expect_sectors(f, b, 0, IMAGE_SECTORS, -1);
	b->ops->close(b);
}

static void test_overlay_runs(void **state)
{
	struct overlay o;
	struct error err;
	bool model[300] = { 0 }, is_over;

	(void)state;
	assert_int_equal(overlay_open(&o, 300 * 512, &err), 0);
	uint32_t seed = 1;
	for (unsigned round = 0; round < 40; round++) {
		seed = seed * 1664525 + 1013904223;
		unsigned at = (seed >> 8) % 300, n = 1 + (seed >> 20) % MIN(90u, 300 - at);
		n = MIN(n, 300 - at);
		overlay_mark(&o, at, n);
		memset(model + at, 1, n);
		for (unsigned s = 0; s < 300; s++) {
			unsigned len = 1;
			while (s + len < 300 && model[s + len] == model[s])
				len++;
			assert_int_equal(overlay_run(&o, s, 300 - s, &is_over), len);
			assert_int_equal(is_over, model[s]);
			assert_int_equal(overlay_run(&o, s, 1, &is_over), 1);
		}
		if (round % 10 == 9) {
			memset(model, 0, sizeof(model));
			overlay_close(&o);
			assert_int_equal(overlay_open(&o, 300 * 512, &err), 0);
		}
	}
	overlay_close(&o);
}

/* ---- a failing host ---- */

static _Atomic int fail_after; /* calls that still work */
static int fail_errno;

static ssize_t failing_pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
	if (fail_after-- > 0)
		return host_calls_real.pwritev(fd, iov, n, off);
	errno = fail_errno;
	return -1;
}

static ssize_t short_pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
	if (fail_after++ % 3 == 0) {
		errno = EINTR;
		return -1;
	}
	struct iovec one = { iov->iov_base, MIN(iov->iov_len, (size_t)77) };
	return host_calls_real.pwritev(fd, &one, 1, off);
}

static ssize_t failing_preadv(int fd, const struct iovec *iov, int n, off_t off)
{
	errno = EIO;
	return -1;
}

static ssize_t ended_preadv(int fd, const struct iovec *iov, int n, off_t off)
{
	return 0;
}

static int failing_fdatasync(int fd)
{
	if (fail_after-- > 0)
		return host_calls_real.fdatasync(fd);
	errno = fail_errno;
	return -1;
}

static int failing_fallocate(int fd, int mode, off_t off, off_t len)
{
	errno = ENOSPC;
	return -1;
}

static void test_host_failures(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	uint8_t buf[4 * 512];

	memset(buf, 0xaa, sizeof(buf));
	host.pwritev = failing_pwritev;
	fail_errno = ENOSPC;
	fail_after = 0;
	assert_int_equal(rw(f, b, BLOCK_WRITE, 5, buf, sizeof(buf)), -ENOSPC);
	fail_errno = EIO;
	assert_int_equal(rw(f, b, BLOCK_WRITE, 5, buf, sizeof(buf)), -EIO);
	fail_after = 1;
	assert_int_equal(rw(f, b, BLOCK_WRITE, 5, buf, sizeof(buf)), 0);
	expect_sectors(f, b, 5, 4, 0xaa);

	memset(buf, 0xbb, sizeof(buf));
	host.pwritev = short_pwritev;
	fail_after = 0;
	assert_int_equal(rw(f, b, BLOCK_WRITE, 5, buf, sizeof(buf)), 0);
	expect_sectors(f, b, 5, 4, 0xbb);
	expect_sectors(f, b, 9, 1, -1);

	host.preadv = failing_preadv;
	assert_int_equal(rw(f, b, BLOCK_READ, 5, buf, sizeof(buf)), -EIO);
	host.preadv = ended_preadv;
	assert_int_equal(rw(f, b, BLOCK_READ, 5, buf, sizeof(buf)), -EIO);
	real_host();

	host.fallocate = failing_fallocate;
	struct block_req req = { .op = BLOCK_WRITE_ZEROES, .len_bytes = 512 };
	assert_int_equal(run(f, b, req), -ENOSPC);
	real_host();

	/* Once lost, always lost. */
	host.fdatasync = failing_fdatasync;
	fail_errno = EIO;
	fail_after = 1;
	assert_int_equal(run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), 0);
	assert_int_equal(rw(f, b, BLOCK_WRITE, 5, buf, sizeof(buf)), 0);
	assert_int_equal(run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), -EIO);
	real_host();
	assert_int_equal(run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), -EIO);
	struct iovec iov = { buf, 512 };
	req = (struct block_req){
		.op = BLOCK_WRITE, .is_fua = true, .len_bytes = 512, .iov = &iov, .niov = 1
	};
	assert_int_equal(run(f, b, req), -EIO);
	b->ops->close(b);
}

/* ---- at once ---- */

static _Atomic unsigned nsyncs;

static int counting_fdatasync(int fd)
{
	nsyncs++;
	return host_calls_real.fdatasync(fd);
}

static ssize_t waiting_preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	assert_int_equal(flags, RWF_NOWAIT);
	errno = EAGAIN;
	return -1;
}

static ssize_t half_preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	return (ssize_t)iov->iov_len / 2;
}

static ssize_t missing_preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	nsyncs++;
	errno = EOPNOTSUPP;
	return -1;
}

static ssize_t slow_pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
	usleep(20000);
	return host_calls_real.pwritev(fd, iov, n, off);
}

static int now(struct block_dev *b, enum block_op op, uint64_t sector, void *buf, size_t len)
{
	struct iovec iov = { buf, len };
	struct block_req req = {
		.op = op, .offset_bytes = sector * BLOCK_SECTOR, .len_bytes = len, .iov = &iov, .niov = 1
	};

	return b->ops->try_now(b, &req);
}

static void test_now(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	static uint8_t buf[512 * KIB];

	memset(buf, 0x5a, 1024);
	assert_int_equal(now(b, BLOCK_WRITE, 10, buf, 1024), 0);
	expect_sectors(f, b, 10, 2, 0x5a);
	expect_sectors(f, b, 12, 1, -1);
	memset(buf, 0, 1024);
	assert_int_equal(now(b, BLOCK_READ, 11, buf, 1024), 0);
	assert_int_equal(buf[511], 0x5a);
	assert_int_equal(buf[512], 12);
	/* What is wrong, large, or waits by nature is submit's. */
	assert_int_equal(now(b, BLOCK_READ, IMAGE_SECTORS, buf, 512), -EAGAIN);
	assert_int_equal(now(b, BLOCK_READ, 0, buf, sizeof(buf)), -EAGAIN);
	assert_int_equal(now(b, BLOCK_WRITE, 0, buf, sizeof(buf)), -EAGAIN);
	assert_int_equal(now(b, BLOCK_WRITE_ZEROES, 0, buf, 512), -EAGAIN);
	assert_int_equal(now(b, BLOCK_DISCARD, 0, buf, 512), -EAGAIN);
	struct iovec iov = { buf, 512 };
	struct block_req fua = {
		.op = BLOCK_WRITE, .is_fua = true, .len_bytes = 512, .iov = &iov, .niov = 1
	};
	assert_int_equal(b->ops->try_now(b, &fua), -EAGAIN);
	fua.is_fua = false;
	fua.len_bytes = 1024; /* the vectors don't add up */
	fua.op = BLOCK_READ;
	assert_int_equal(b->ops->try_now(b, &fua), -EAGAIN);
	/* A page that is not there, half of the bytes: nothing counts. */
	host.preadv2 = waiting_preadv2;
	assert_int_equal(now(b, BLOCK_READ, 10, buf, 512), -EAGAIN);
	host.preadv2 = half_preadv2;
	assert_int_equal(now(b, BLOCK_READ, 10, buf, 512), -EAGAIN);
	host.preadv2 = missing_preadv2;
	nsyncs = 0;
	assert_int_equal(now(b, BLOCK_READ, 10, buf, 512), -EAGAIN);
	assert_int_equal(now(b, BLOCK_READ, 10, buf, 512), -EAGAIN);
	assert_int_equal(nsyncs, 1); /* asked once */
	expect_sectors(f, b, 10, 1, 0x5a);
	b->ops->close(b);
	/* A write that waited sends the next ones to the pool. */
	b = open_image(f, (struct block_open){ 0 });
	host.pwritev = slow_pwritev;
	for (unsigned rest = 8; rest <= 64; rest *= 2) {
		assert_int_equal(now(b, BLOCK_WRITE, 10, buf, 512), 0);
		for (unsigned i = 0; i < rest; i++)
			assert_int_equal(now(b, BLOCK_WRITE, 10, buf, 512), -EAGAIN);
	}
	b->ops->close(b);
	real_host();

	b = open_image(f, (struct block_open){ .is_snapshot = true });
	memset(buf, 0x77, 512);
	assert_int_equal(now(b, BLOCK_WRITE, 21, buf, 512), 0);
	memset(buf, 0, sizeof(buf));
	assert_int_equal(now(b, BLOCK_READ, 20, buf, 3 * 512), 0);
	assert_int_equal(buf[0], 20);
	assert_int_equal(buf[512], 0x77);
	assert_int_equal(buf[1024], 22);
	assert_int_equal(now(b, BLOCK_FLUSH, 0, NULL, 0), 0);
	b->ops->close(b);
	b = open_image(f, (struct block_open){ .is_readonly = true });
	assert_int_equal(now(b, BLOCK_WRITE, 0, buf, 512), -EAGAIN);
	assert_int_equal(now(b, BLOCK_READ, 0, buf, 512), 0);
	b->ops->close(b);
}

/* A flush costs nothing only when all that was written is stable. */
static void test_clean_flush(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	const struct block_req flush = { .op = BLOCK_FLUSH };
	uint8_t buf[512] = { 0 };
	struct iovec iov = { buf, 512 };
	struct block_req dirt[] = {
		{ .op = BLOCK_WRITE, .len_bytes = 512, .iov = &iov, .niov = 1 },
		{ .op = BLOCK_WRITE_ZEROES, .len_bytes = 512 },
		{ .op = BLOCK_DISCARD, .len_bytes = 512 },
	};

	host.fdatasync = counting_fdatasync;
	nsyncs = 0;
	assert_int_equal(now(b, BLOCK_FLUSH, 0, NULL, 0), -EAGAIN); /* by others before us, perhaps */
	assert_int_equal(run(f, b, flush), 0);
	assert_int_equal(nsyncs, 1);
	assert_int_equal(now(b, BLOCK_FLUSH, 0, NULL, 0), 0);
	assert_int_equal(run(f, b, flush), 0);
	assert_int_equal(nsyncs, 1);
	for (unsigned i = 0; i < ARRAY_SIZE(dirt); i++) {
		assert_int_equal(run(f, b, dirt[i]), 0);
		assert_int_equal(now(b, BLOCK_FLUSH, 0, NULL, 0), -EAGAIN);
		assert_int_equal(run(f, b, flush), 0);
		assert_int_equal(nsyncs, 2 + i);
		assert_int_equal(now(b, BLOCK_FLUSH, 0, NULL, 0), 0);
	}
	assert_int_equal(now(b, BLOCK_WRITE, 0, buf, 512), 0);
	assert_int_equal(now(b, BLOCK_FLUSH, 0, NULL, 0), -EAGAIN);
	assert_int_equal(run(f, b, flush), 0);
	assert_int_equal(nsyncs, 5);
	/* Lost once: a clean file is no excuse. */
	host.fdatasync = failing_fdatasync;
	fail_errno = EIO;
	fail_after = 0;
	assert_int_equal(run(f, b, dirt[0]), 0);
	assert_int_equal(run(f, b, flush), -EIO);
	assert_int_equal(now(b, BLOCK_FLUSH, 0, NULL, 0), -EIO);
	b->ops->close(b);
}

static int failing_ftruncate(int fd, off_t len)
{
	errno = ENOSPC;
	return -1;
}

static void test_open_failures(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = NULL;
	struct block_open o = { .path = f->path, .format = "raw", .is_snapshot = true };
	struct error err;

	host.ftruncate = failing_ftruncate;
	assert_int_equal(block_open(&b, f->loop, &o, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "throw-away"));
	real_host();
	/* The lock went with it. */
	b = open_image(f, (struct block_open){ 0 });
	b->ops->close(b);
}

/* Many at once, drained without the loop running; callbacks that submit again count as well. */
struct chain {
	struct block_dev *b;
	struct block_req req;
	struct iovec iov;
	uint8_t buf[512];
	unsigned left, *done;
};

static void on_chain(struct block_req *req, int result)
{
	struct chain *c = req->owner;

	assert_int_equal(result, 0);
	++*c->done;
	if (c->left--)
		c->b->ops->submit(c->b, req);
}

/* Until its file's name is stable, nothing that is written to it counts as stable. */
static void test_unsettled(void **state)
{
	struct fixture *f = *state;
	uint8_t data[BLOCK_SECTOR] = { 1 };
	const struct iovec iov = { data, sizeof(data) };
	const struct block_req flush = { .op = BLOCK_FLUSH }, write = {
		.op = BLOCK_WRITE, .len_bytes = sizeof(data), .iov = &iov, .niov = 1
	};
	struct block_req fua = write;

	fua.is_fua = true;
	for (int result = 0; result >= -EIO; result -= EIO) {
		struct block_dev *b = open_image(f, (struct block_open){ .is_unsettled = true });
		struct waiter flushing, writing;

		assert_int_equal(run(f, b, write), 0);
		assert_int_equal(b->ops->try_now(b, &(struct block_req){ .op = BLOCK_FLUSH }), -EAGAIN);
		start(b, &flushing, flush);
		start(b, &writing, fua);
		for (unsigned i = 0; i < 5; i++)
			loop_run_once(f->loop, 10);
		assert_false(flushing.is_done || writing.is_done);
		block_settled(b, result);
		b->ops->drain(b);
		assert_true(flushing.is_done && writing.is_done);
		assert_int_equal(flushing.result, result);
		assert_int_equal(writing.result, result);
		assert_int_equal(run(f, b, flush), result);
		b->ops->close(b);
	}
}

static void test_drain(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	static struct chain chains[64];
	unsigned done = 0;

	for (unsigned i = 0; i < 64; i++) {
		struct chain *c = &chains[i];
		*c = (struct chain){ .b = b, .left = 3, .done = &done, .iov = { c->buf, 512 } };
		memset(c->buf, i + 100, 512);
		c->req = (struct block_req){ .op = BLOCK_WRITE,
					     .offset_bytes = i * 512,
					     .len_bytes = 512,
					     .iov = &c->iov,
					     .niov = 1,
					     .done = on_chain,
					     .owner = c };
		b->ops->submit(b, &c->req);
	}
	assert_int_equal(done, 0);
	b->ops->drain(b);
	assert_int_equal(done, 64 * 4);
	for (unsigned i = 0; i < 64; i++)
		expect_sectors(f, b, i, 1, i + 100);
	b->ops->drain(b);
	b->ops->close(b);
}

static void test_direct(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = NULL;
	struct block_open o = { .path = f->path, .format = "raw", .use_direct = true };
	struct error err = { 0 };

	int r = block_open(&b, f->loop, &o, &err);
	if (r < 0) {
		/* tmpfs of old kernels, 4096-byte devices: then the refusal must say what to do. */
		print_message("no O_DIRECT here: %s\n", err.text);
		assert_non_null(strstr(err.text, "leave out the direct option"));
		return;
	}
	static uint8_t data[600 * 1024 + 1], back[sizeof(data)];
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = i * 13 + i / 4099;
	assert_int_equal(rw(f, b, BLOCK_WRITE, 3, data + 1, sizeof(data) - 1), 0);
	assert_int_equal(rw(f, b, BLOCK_READ, 3, back + 1, sizeof(back) - 1), 0);
	assert_memory_equal(data + 1, back + 1, sizeof(data) - 1);
	struct block_req req = { .op = BLOCK_WRITE_ZEROES, .offset_bytes = 512, .len_bytes = 512 };
	assert_int_equal(run(f, b, req), 0);
	expect_sectors(f, b, 1, 1, 0);
	expect_sectors(f, b, 2, 1, -1);
	b->ops->close(b);
}

static uint64_t collected(struct block_dev *b)
{
	uint64_t bits = 0;

	assert_int_equal(block_track_words(b), 1);
	block_track_collect(b, &bits);
	return bits;
}

/* Every way to change a disk is noted, by unit; what is read after that has it. */
static void test_track(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	static uint8_t data[2 * BLOCK_TRACK_BYTES], back[sizeof(data)];
	struct iovec iov = { data, 4096 };
	const uint64_t last = IMAGE_BYTES / BLOCK_TRACK_BYTES - 1;
	struct error err;

	memset(data, 0xa5, sizeof(data));
	assert_int_equal(rw(f, b, BLOCK_WRITE, 0, data, 512), 0); /* before: not noted */
	assert_int_equal(block_track_begin(b, &err), 0);
	assert_int_equal(collected(b), 0);
	assert_int_equal(rw(f, b, BLOCK_WRITE, 0, data, 512), 0);
	assert_int_equal(rw(f, b, BLOCK_WRITE, IMAGE_SECTORS - 1, data, 512), 0);
	assert_int_equal(rw(f, b, BLOCK_READ, 300, back, 512), 0);
	assert_int_equal(collected(b), 1 | 1ULL << last);
	assert_int_equal(collected(b), 0);
	/* Over a border between units; and on the spot, where that is done. */
	assert_int_equal(rw(f, b, BLOCK_WRITE, BLOCK_TRACK_BYTES / 512 - 1, data, 1024), 0);
	assert_int_equal(collected(b), 3);
	struct block_req now = { .op = BLOCK_WRITE,
				 .offset_bytes = 5 * BLOCK_TRACK_BYTES,
				 .len_bytes = 4096,
				 .iov = &iov,
				 .niov = 1 };
	assert_int_equal(collected(b), b->ops->try_now(b, &now) == 0 ? 1 << 5 : 0);
	struct block_req req = { .op = BLOCK_WRITE_ZEROES,
				 .offset_bytes = 2 * BLOCK_TRACK_BYTES,
				 .len_bytes = BLOCK_TRACK_BYTES };
	assert_int_equal(run(f, b, req), 0);
	assert_int_equal(collected(b), 4);
	req.op = BLOCK_DISCARD;
	req.offset_bytes = 3 * BLOCK_TRACK_BYTES;
	assert_int_equal(run(f, b, req), 0);
	assert_int_equal(collected(b), 8);
	req.offset_bytes = IMAGE_BYTES; /* refused: nothing changed */
	assert_int_equal(run(f, b, req), -EIO);
	assert_int_equal(collected(b), 0);
	block_track_end(b);
	block_track_end(b);
	b->ops->close(b);
}

static void test_copy(void **state)
{
	struct fixture *f = *state;
	struct block_dev *b = open_image(f, (struct block_open){ 0 });
	static uint8_t data[BLOCK_TRACK_BYTES], back[sizeof(data)];
	uint64_t run_bytes;
	bool is_zero;

	memset(data, 0x5a, sizeof(data));
	assert_int_equal(block_copy_write(b, data, 4096, sizeof(data)), 0);
	assert_int_equal(rw(f, b, BLOCK_READ, 8, back, sizeof(back)), 0);
	assert_memory_equal(data, back, sizeof(data));
	assert_int_equal(block_copy_zero(b, 4096, 4096), 0);
	assert_int_equal(block_copy_flush(b), 0);
	memset(data, 0, 4096);
	assert_int_equal(block_copy_read(b, back, 4096, sizeof(back)), 0);
	assert_memory_equal(data, back, sizeof(data));
	for (uint64_t at = 0; at < IMAGE_BYTES; at += run_bytes) {
		assert_int_equal(block_copy_status(b, at, IMAGE_BYTES - at, &is_zero, &run_bytes), 0);
		assert_true(run_bytes && run_bytes <= IMAGE_BYTES - at);
		/* A hole may be told as data where the host has none, never the other way round. */
		if (is_zero)
			assert_true(at == 4096 && run_bytes == 4096);
	}
	assert_int_equal(block_copy_read(b, back, IMAGE_BYTES - 512, 1024), -EIO);
	assert_int_equal(block_copy_write(b, back, UINT64_MAX - 511, 1024), -EIO);
	assert_int_equal(block_copy_write(b, back, 100, 512), -EIO);
	assert_int_equal(block_copy_status(b, IMAGE_BYTES, 0, &is_zero, &run_bytes), -EIO);
	b->ops->close(b);
	b = open_image(f, (struct block_open){ .is_readonly = true });
	assert_int_equal(block_copy_read(b, back, 4096, sizeof(back)), 0);
	assert_memory_equal(data, back, sizeof(data));
	assert_int_equal(block_copy_write(b, back, 0, 512), -EROFS);
	assert_int_equal(block_copy_zero(b, 0, 512), -EROFS);
	b->ops->close(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_read_write, setup, teardown),
		cmocka_unit_test_setup_teardown(test_zero_and_discard, setup, teardown),
		cmocka_unit_test_setup_teardown(test_without_fallocate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_readonly, setup, teardown),
		cmocka_unit_test_setup_teardown(test_locks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_images, setup, teardown),
		cmocka_unit_test_setup_teardown(test_snapshot, setup, teardown),
		cmocka_unit_test(test_overlay_runs),
		cmocka_unit_test_setup_teardown(test_host_failures, setup, teardown),
		cmocka_unit_test_setup_teardown(test_now, setup, teardown),
		cmocka_unit_test_setup_teardown(test_clean_flush, setup, teardown),
		cmocka_unit_test_setup_teardown(test_open_failures, setup, teardown),
		cmocka_unit_test_setup_teardown(test_drain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unsettled, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct, setup, teardown),
		cmocka_unit_test_setup_teardown(test_track, setup, teardown),
		cmocka_unit_test_setup_teardown(test_copy, setup, teardown),
	};

	struct uring *u = NULL;
	int r = uring_create(&u), failed = 0;

	if (r < 0)
		printf("skipped: disks by io_uring (%s)\n", strerror(-r));
	else
		failed = cmocka_run_group_tests(tests, NULL, NULL);
	uring_destroy(u);
	use_threads = true;
	return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
