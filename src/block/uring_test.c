/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transfers by io_uring: what comes short, is interrupted, fails or finds no room.  That requests do the same by
 * ring and by threads is block_test.c's, which runs over both.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/host.h"
#include "block/image.h"
#include "block/uring.h"

#define IMAGE_BYTES (4 * MIB)
#define OPS_MAX	    4096

static char path[64];
static struct loop *loop;
static struct block_dev *b;

/* Operations in the order in which they were over, and what is made of their results. */
static struct {
	uint8_t op[OPS_MAX];
	unsigned n;
	int (*change)(int op, int res); /* NULL: nothing */
	unsigned refused;
	_Atomic unsigned syncs_by_thread, writes_by_thread;
} seen;

static int on_result(int op, int fd, int res)
{
	assert_true(fd >= 0 && seen.n < OPS_MAX);
	seen.op[seen.n++] = (uint8_t)op;
	return seen.change ? seen.change(op, res) : res;
}

static int count_fdatasync(int fd)
{
	seen.syncs_by_thread++;
	return host_calls_real.fdatasync(fd);
}

static ssize_t count_pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
	seen.writes_by_thread++;
	return host_calls_real.pwritev(fd, iov, n, off);
}

static int setup(void **state)
{
	struct block_open o = { .path = path, .format = "raw" };
	struct error err;

	strcpy(path, "/tmp/viv-uring-XXXXXX");
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, IMAGE_BYTES), 0);
	close(fd);
	memset(&seen, 0, sizeof(seen));
	host.uring_result = on_result;
	host.fdatasync = count_fdatasync;
	host.pwritev = count_pwritev;
	assert_int_equal(loop_create(&loop, NULL, &err), 0);
	assert_int_equal(block_open(&b, loop, &o, &err), 0);
	return 0;
}

static int teardown(void **state)
{
	b->ops->close(b);
	loop_destroy(loop);
	unlink(path);
	host = host_calls_real;
	return 0;
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

static void start(struct waiter *w, struct block_req req)
{
	*w = (struct waiter){ .req = req };
	w->req.done = on_done;
	w->req.owner = w;
	b->ops->submit(b, &w->req);
	assert_false(w->is_done);
}

static int run(struct block_req req)
{
	struct waiter w;

	start(&w, req);
	for (unsigned i = 0; i < 1000 && !w.is_done; i++)
		loop_run_once(loop, 10);
	assert_true(w.is_done);
	return w.result;
}

static struct block_req transfer(enum block_op op, uint64_t at, struct iovec *iov, unsigned n)
{
	struct block_req req = { .op = op, .offset_bytes = at, .iov = iov, .niov = n };

	for (unsigned i = 0; i < n; i++)
		req.len_bytes += iov[i].iov_len;
	return req;
}

static const struct block_req flush = { .op = BLOCK_FLUSH };

/* Bytes that tell where they belong. */
static void fill(uint8_t *p, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)(i * 13 + i / 4099 + seed);
}

/* Out and back in @n pieces of @len bytes. */
static void round_trip(uint64_t at, unsigned n, size_t len, unsigned seed)
{
	uint8_t *out = malloc(n * len), *back = calloc(n, len);
	struct iovec *iov = calloc(n, sizeof(*iov));

	fill(out, n * len, seed);
	for (unsigned i = 0; i < n; i++)
		iov[i] = (struct iovec){ out + i * len, len };
	assert_int_equal(run(transfer(BLOCK_WRITE, at, iov, n)), 0);
	for (unsigned i = 0; i < n; i++)
		iov[i].iov_base = back + i * len;
	assert_int_equal(run(transfer(BLOCK_READ, at, iov, n)), 0);
	assert_memory_equal(out, back, n * len);
	free(out);
	free(back);
	free(iov);
}

static unsigned count(enum uring_op op)
{
	unsigned n = 0;

	for (unsigned i = 0; i < seen.n; i++)
		n += seen.op[i] == op;
	return n;
}

/* ---- tests ---- */

static void test_sizes(void **state)
{
	struct block_info info;

	b->ops->info(b, &info);
	assert_string_equal(info.io, "io_uring");
	round_trip(512, 1, 512, 1);
	round_trip(4096, 7, 1024, 2);
	assert_int_equal(seen.n, 4);
	round_trip(MIB, 1024, 64, 4); /* more pieces than one call takes */
	assert_int_equal(seen.n, 4 + 2 * 4);
	round_trip(MIB, 1, 128 * KIB, 5);
	assert_int_equal(seen.n, 4 + 2 * 4 + 2);
	assert_int_equal(seen.writes_by_thread, 0);
	round_trip(0, 1, 2 * MIB, 3); /* a long copy */
	assert_int_equal(seen.n, 4 + 2 * 4 + 2);
	assert_true(seen.writes_by_thread > 0);
}

static int shorten(int op, int res)
{
	return op != URING_SYNC && res > 700 ? 700 : res;
}

static void test_short(void **state)
{
	seen.change = shorten;
	round_trip(1024, 3, 4096, 5);
	assert_int_equal(count(URING_WRITE), (3 * 4096 + 699) / 700);
	assert_int_equal(count(URING_READ), (3 * 4096 + 699) / 700);
	assert_int_equal(seen.writes_by_thread, 0);
}

static int refusal;

static int refuse(int op, int res)
{
	return op == URING_SYNC || seen.refused++ ? res : refusal;
}

/* Not carried out, or wrongly, or at the file's end: a thread does it from the start and says what is so. */
static void test_given_to_threads(void **state)
{
	static const int refusals[] = { -EINTR, -EAGAIN, -ECANCELED, -EINVAL, -EIO, 0 };

	seen.change = refuse;
	for (unsigned i = 0; i < ARRAY_SIZE(refusals); i++) {
		seen.refused = 0;
		seen.writes_by_thread = 0;
		refusal = refusals[i];
		round_trip(i * 8192, 2, 4096, i);
		assert_int_equal(seen.writes_by_thread, 1);
	}
	/* the file became shorter behind our back */
	uint8_t buf[1024];
	struct iovec iov = { buf, sizeof(buf) };

	seen.change = NULL;
	assert_int_equal(truncate(path, IMAGE_BYTES - 512), 0);
	assert_int_equal(run(transfer(BLOCK_READ, IMAGE_BYTES - 1024, &iov, 1)), -EIO);
	/* what is wrong with a request is found before */
	assert_int_equal(run(transfer(BLOCK_READ, IMAGE_BYTES, &iov, 1)), -EIO);
}

static void test_flush(void **state)
{
	uint8_t buf[512] = { 1 };
	struct iovec iov = { buf, sizeof(buf) };
	struct block_req fua = transfer(BLOCK_WRITE, 0, &iov, 1);

	assert_int_equal(run(flush), 0);
	assert_int_equal(count(URING_SYNC), 1);
	assert_int_equal(b->ops->try_now(b, &(struct block_req){ .op = BLOCK_FLUSH }), 0); /* clean */
	/* FUA: first all bytes, then fdatasync, then the callback */
	fua.is_fua = true;
	seen.n = 0;
	assert_int_equal(run(fua), 0);
	assert_int_equal(seen.n, 2);
	assert_int_equal(seen.op[0], URING_WRITE);
	assert_int_equal(seen.op[1], URING_SYNC);
	assert_int_equal(b->ops->try_now(b, &(struct block_req){ .op = BLOCK_FLUSH }), 0);
	/* a write makes it dirty before it completes */
	fua.is_fua = false;
	assert_int_equal(run(fua), 0);
	assert_int_equal(b->ops->try_now(b, &(struct block_req){ .op = BLOCK_FLUSH }), -EAGAIN);
	assert_int_equal(seen.syncs_by_thread, 0);
}

static int lose_sync(int op, int res)
{
	return op == URING_SYNC ? refusal : res;
}

static void test_flush_not_tried(void **state)
{
	uint8_t buf[512] = { 1 };
	struct iovec iov = { buf, sizeof(buf) };
	struct block_req fua = transfer(BLOCK_WRITE, 0, &iov, 1);

	fua.is_fua = true;
	seen.change = lose_sync;
	refusal = -EINTR;
	assert_int_equal(run(flush), 0);
	assert_int_equal(seen.syncs_by_thread, 1);
	assert_int_equal(run(fua), 0);
	assert_int_equal(seen.syncs_by_thread, 2);
}

/* Once lost, always lost, and not asked again. */
static void test_flush_failed(void **state)
{
	uint8_t buf[512] = { 1 };
	struct iovec iov = { buf, sizeof(buf) };
	struct block_req write = transfer(BLOCK_WRITE, 0, &iov, 1), fua = write;

	fua.is_fua = true;
	seen.change = lose_sync;
	refusal = -EIO;
	assert_int_equal(run(fua), -EIO);
	seen.change = NULL;
	seen.n = 0;
	assert_int_equal(run(flush), -EIO);
	assert_int_equal(run(fua), -EIO);
	assert_int_equal(run(write), 0);
	assert_int_equal(run(flush), -EIO);
	assert_int_equal(b->ops->try_now(b, &(struct block_req){ .op = BLOCK_FLUSH }), -EIO);
	assert_int_equal(count(URING_SYNC), 0);
	assert_int_equal(seen.syncs_by_thread, 0);
}

static int full_submit(void *ring)
{
	seen.refused++;
	return -EBUSY;
}

static int interrupted_submit(void *ring)
{
	return seen.refused++ % 2 ? host_calls_real.uring_submit(ring) : -EINTR;
}

static void test_submit_fails(void **state)
{
	host.uring_submit = full_submit;
	for (unsigned i = 0; i < 100; i++) /* more than the ring has room for */
		round_trip(i * 1024, 1, 1024, i);
	assert_int_equal(run(flush), 0);
	assert_true(seen.refused >= 100);
	assert_int_equal(seen.n, 0);
	assert_int_equal(seen.writes_by_thread, 100);
	assert_int_equal(seen.syncs_by_thread, 1);
	/* and it is back at once */
	host.uring_submit = interrupted_submit;
	for (unsigned i = 0; i < 100; i++)
		round_trip(i * 1024, 1, 1024, i + 7);
	assert_int_equal(seen.n, 200);
	assert_int_equal(seen.writes_by_thread, 100);
}

/* More at once than there are slots; drained without the loop. */
static void test_many(void **state)
{
	static struct waiter w[300];
	static uint8_t data[300][1024];
	static struct iovec iov[300];

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 300; i++) {
			if (!round)
				fill(data[i], 1024, i);
			else
				memset(data[i], 0, 1024);
			iov[i] = (struct iovec){ data[i], 1024 };
			start(&w[i], i == 150 ? flush
					      : transfer(round ? BLOCK_READ : BLOCK_WRITE,
							 i * 1024ULL, &iov[i], 1));
		}
		b->ops->drain(b);
		for (unsigned i = 0; i < 300; i++)
			assert_true(w[i].is_done && w[i].result == 0);
	}
	for (unsigned i = 0; i < 300; i++) {
		uint8_t want[1024];

		fill(want, 1024, i);
		if (i != 150)
			assert_memory_equal(data[i], want, 1024);
	}
	assert_true(count(URING_READ) >= 64);
}

/* ---- a qcow2 image on a raw one ---- */

#define CLUSTER (64 * KIB)

static char top[72];
static uint8_t *model; /* what the disk holds */

static int setup_qcow2(void **state)
{
	const struct image_create c = { .format = "qcow2", .backing_path = path, .backing_format = "raw" };
	static const struct block_backing_rule rule = { .any = true };
	struct block_open o = { .path = top, .format = "qcow2", .backing = &rule };
	struct error err;

	assert_int_equal(setup(state), 0);
	model = malloc(IMAGE_BYTES);
	fill(model, IMAGE_BYTES, 77);
	struct iovec iov = { model, IMAGE_BYTES };

	assert_int_equal(run(transfer(BLOCK_WRITE, 0, &iov, 1)), 0);
	b->ops->close(b);
	snprintf(top, sizeof(top), "%s.qcow2", path);
	assert_int_equal(image_create(top, &c, &err), 0);
	assert_int_equal(block_open(&b, loop, &o, &err), 0);
	seen.n = 0;
	seen.writes_by_thread = seen.syncs_by_thread = 0;
	return 0;
}

static int teardown_qcow2(void **state)
{
	free(model);
	unlink(top);
	return teardown(state);
}

static void check_read(uint64_t at, size_t len)
{
	uint8_t *buf = malloc(len);
	struct iovec iov = { buf, len };

	assert_int_equal(run(transfer(BLOCK_READ, at, &iov, 1)), 0);
	assert_memory_equal(buf, model + at, len);
	free(buf);
}

static int write_model(uint64_t at, size_t len, unsigned seed, bool is_fua)
{
	struct iovec iov = { model + at, len };
	struct block_req req = transfer(BLOCK_WRITE, at, &iov, 1);

	fill(model + at, len, seed);
	req.is_fua = is_fua;
	return run(req);
}

static void test_qcow2(void **state)
{
	struct block_info info;

	b->ops->info(b, &info);
	assert_string_equal(info.io, "io_uring");
	check_read(CLUSTER + 512, 4096); /* the backing image's */
	assert_int_equal(count(URING_READ), 1);
	assert_int_equal(write_model(CLUSTER, 4096, 1, false), 0); /* a new cluster */
	assert_int_equal(count(URING_WRITE), 0);
	assert_int_equal(write_model(CLUSTER + 512, 4096, 2, false), 0); /* in place */
	assert_int_equal(count(URING_WRITE), 1);
	check_read(CLUSTER, 8192);
	assert_int_equal(count(URING_READ), 2);
	check_read(CLUSTER - 4096, 8192); /* of two files */
	assert_int_equal(count(URING_READ), 2);
	/* What leads to the cluster is not stable yet: that is more than bytes. */
	assert_int_equal(write_model(CLUSTER, 512, 3, true), 0);
	assert_int_equal(count(URING_SYNC), 0);
	assert_int_equal(write_model(CLUSTER, 512, 4, true), 0);
	assert_int_equal(count(URING_WRITE), 2);
	assert_int_equal(count(URING_SYNC), 1);
	assert_int_equal(write_model(2 * CLUSTER, 512, 5, false), 0);
	assert_int_equal(run(flush), 0);
	assert_int_equal(count(URING_SYNC), 1);
	assert_int_equal(write_model(2 * CLUSTER, 512, 6, false), 0);
	assert_int_equal(run(flush), 0);
	assert_int_equal(count(URING_SYNC), 2);
	check_read(0, 4 * CLUSTER);
}

/* A cluster that is being moved to or from is not exchanged meanwhile, and is free to be afterwards, whatever became of the transfer. */
static void test_qcow2_refused(void **state)
{
	static const int refusals[] = { -EINTR, -EINVAL, -EIO, 0 };

	assert_int_equal(write_model(0, CLUSTER, 1, false), 0);
	seen.change = refuse;
	for (unsigned i = 0; i < ARRAY_SIZE(refusals); i++) {
		const struct block_req discard = { .op = BLOCK_WRITE_ZEROES,
						   .len_bytes = CLUSTER,
						   .may_unmap = true };

		refusal = refusals[i];
		seen.refused = 0;
		assert_int_equal(write_model(512 * i, 1024, i, false), 0);
		seen.refused = 0;
		check_read(0, CLUSTER);
		assert_int_equal(run(discard), 0);
		memset(model, 0, CLUSTER);
		check_read(0, CLUSTER);
		assert_int_equal(write_model(0, CLUSTER, i, false), 0);
	}
}

/* Many at once, none of which has bytes of another: transfers, clusters that come and go, flushes. */
static void test_qcow2_many(void **state)
{
	enum { BATCH = 48, PART = IMAGE_BYTES / BATCH / 512 * 512 };
	static struct waiter w[BATCH];
	static uint8_t data[BATCH][8192];
	static struct iovec iov[BATCH];
	unsigned seed = 12345;

	for (unsigned round = 0; round < 300; round++) {
		for (unsigned i = 0; i < BATCH; i++) {
			unsigned dice = (seed = seed * 1103515245 + 12345) >> 16;
			uint64_t at = i * (uint64_t)PART + dice % (PART - 8192) / 512 * 512;
			size_t len = (dice / 7 % 16 + 1) * 512;
			struct block_req req = { .op = BLOCK_WRITE_ZEROES,
						 .offset_bytes = at,
						 .len_bytes = len,
						 .may_unmap = true };

			iov[i] = (struct iovec){ data[i], len };
			if (dice % 5 == 0) {
				memset(model + at, 0, len);
			} else if (dice % 5 < 3) {
				fill(data[i], len, dice);
				memcpy(model + at, data[i], len);
				req = transfer(BLOCK_WRITE, at, &iov[i], 1);
				req.is_fua = dice % 40 == 1;
			} else {
				req = transfer(BLOCK_READ, at, &iov[i], 1);
			}
			start(&w[i], i == BATCH - 1 ? flush : req);
			if (i == BATCH - 1 && req.op != BLOCK_READ) /* it was not started */
				assert_int_equal(run(req), 0);
		}
		b->ops->drain(b);
		for (unsigned i = 0; i < BATCH; i++) {
			assert_true(w[i].is_done && w[i].result == 0);
			if (w[i].req.op == BLOCK_READ)
				assert_memory_equal(data[i], model + w[i].req.offset_bytes,
						    iov[i].iov_len);
		}
		if (seen.n > OPS_MAX / 2)
			seen.n = 0;
	}
	check_read(0, IMAGE_BYTES);
}

int main(void)
{
#define Q(f) cmocka_unit_test_setup_teardown(f, setup_qcow2, teardown_qcow2)
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_sizes),
		T(test_short),
		T(test_given_to_threads),
		T(test_flush),
		T(test_flush_not_tried),
		T(test_flush_failed),
		T(test_submit_fails),
		T(test_many),
		Q(test_qcow2),
		Q(test_qcow2_refused),
		Q(test_qcow2_many),
	};
	struct uring *u;
	int r = uring_create(&u);

	if (r < 0) {
		printf("skipped: io_uring (%s)\n", strerror(-r));
		return 77;
	}
	uring_destroy(u);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
