/* SPDX-License-Identifier: Apache-2.0 */
#include "block/testing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/host.h"

#define MANY 6u /* requests at a time */

/* What is on the storage is crash_test's business; here it would only take long. */
static int no_sync(int fd)
{
	return 0;
}

int testing_setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err;

	strcpy(f->dir, "/tmp/viv-image-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(loop_create(&f->loop, NULL, &err), 0);
	f->seed = 4711;
	host.fdatasync = host.fsync = no_sync;
	f->has_qemu_img = system("command -v qemu-img >/dev/null") == 0;
	if (!f->has_qemu_img)
		print_message("qemu-img is not installed: its opinion is left out\n");
	*state = f;
	return 0;
}

int testing_teardown(void **state)
{
	struct fixture *f = *state;

	host = host_calls_real;
	loop_destroy(f->loop);
	testing_sh(f, "rm -rf '%s'", f->dir);
	for (unsigned i = 0; i < f->npaths; i++)
		free(f->paths[i]);
	free(f);
	return 0;
}

const char *testing_path(struct fixture *f, const char *name)
{
	char path[192];

	snprintf(path, sizeof(path), "%s/%s", f->dir, name);
	for (unsigned i = 0; i < f->npaths; i++)
		if (!strcmp(f->paths[i], path))
			return f->paths[i];
	assert_true(f->npaths < ARRAY_SIZE(f->paths));
	return f->paths[f->npaths++] = strdup(path);
}

uint32_t testing_random(struct fixture *f)
{
	f->seed = f->seed * 1664525 + 1013904223;
	return f->seed >> 7;
}

static int shell(struct fixture *f, const char *prefix, const char *fmt, va_list ap)
{
	char args[2048], cmd[2304];

	vsnprintf(args, sizeof(args), fmt, ap);
	snprintf(cmd, sizeof(cmd), "cd '%s' && %s%s >out.txt 2>&1", f->dir, prefix, args);
	int r = system(cmd);
	return WIFEXITED(r) ? WEXITSTATUS(r) : -1;
}

int testing_sh(struct fixture *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	int r = shell(f, "", fmt, ap);
	va_end(ap);
	return r;
}

bool testing_qemu(struct fixture *f, const char *fmt, ...)
{
	va_list ap;

	if (!f->has_qemu_img)
		return false;
	va_start(ap, fmt);
	int r = shell(f, "qemu-img ", fmt, ap);
	va_end(ap);
	if (r) {
		char text[4000] = "";
		FILE *out = fopen(testing_path(f, "out.txt"), "r");
		if (out) {
			text[fread(text, 1, sizeof(text) - 1, out)] = 0;
			fclose(out);
		}
		fail_msg("qemu-img %s: status %d: %s", fmt, r, text);
	}
	return true;
}

/* ---- requests ---- */

struct block_dev *testing_open(struct fixture *f, struct block_open o)
{
	struct block_dev *b = NULL;
	struct error err = { 0 };

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
	int r = b->ops->try_now(b, &w->req);
	if (r != -EAGAIN)
		on_done(&w->req, r);
	else
		b->ops->submit(b, &w->req);
}

static int wait_for(struct fixture *f, const struct waiter *w)
{
	for (unsigned i = 0; i < 2000 && !w->is_done; i++)
		loop_run_once(f->loop, 10);
	assert_true(w->is_done);
	return w->result;
}

int testing_run(struct fixture *f, struct block_dev *b, struct block_req req)
{
	struct waiter w;

	start(b, &w, req);
	return wait_for(f, &w);
}

int testing_rw(struct fixture *f, struct block_dev *b, enum block_op op, uint64_t at, void *buf, size_t len)
{
	struct iovec iov = { buf, len };

	return testing_run(
		f, b,
		(struct block_req){
			.op = op, .offset_bytes = at, .len_bytes = len, .iov = &iov, .niov = 1 });
}

/* ---- random work ---- */

struct job {
	struct waiter w;
	struct iovec iov[3];
	uint8_t *buf;
};

static void prepare(struct fixture *f, struct job *j, uint64_t at, uint64_t len)
{
	static const enum block_op ops[] = { BLOCK_WRITE,	 BLOCK_WRITE,  BLOCK_WRITE,
					     BLOCK_READ,	 BLOCK_READ,   BLOCK_WRITE_ZEROES,
					     BLOCK_WRITE_ZEROES, BLOCK_DISCARD };
	struct block_req *req = &j->w.req;

	*req = (struct block_req){ .op = ops[testing_random(f) % ARRAY_SIZE(ops)],
				   .offset_bytes = at,
				   .len_bytes = len,
				   .may_unmap = testing_random(f) & 1,
				   .is_fua = testing_random(f) % 50 == 0,
				   .iov = j->iov,
				   .niov = 3 };
	uint64_t a = testing_random(f) % len, b = a + testing_random(f) % (len - a);
	j->buf = malloc(len);
	j->iov[0] = (struct iovec){ j->buf, a };
	j->iov[1] = (struct iovec){ j->buf + a, b - a };
	j->iov[2] = (struct iovec){ j->buf + b, len - b };
	for (uint64_t i = 0; i < len; i += 512)
		memset(j->buf + i, (int)(testing_random(f) % 255 + 1), 512);
}

static void settle(struct fixture *f, struct block_dev *b, struct job *j, uint8_t *shadow)
{
	const struct block_req *req = &j->w.req;
	uint8_t *there = shadow + req->offset_bytes;
	int r = wait_for(f, &j->w);

	if (r)
		fail_msg("operation %d at %llu: %s", req->op, (unsigned long long)req->offset_bytes,
			 strerror(-r));
	switch (req->op) {
	case BLOCK_WRITE:
		memcpy(there, j->buf, req->len_bytes);
		break;
	case BLOCK_READ:
		assert_memory_equal(there, j->buf, req->len_bytes);
		break;
	case BLOCK_WRITE_ZEROES:
		memset(there, 0, req->len_bytes);
		break;
	case BLOCK_DISCARD: /* what it gives afterwards is not said, but it stays */
		assert_int_equal(
			testing_rw(f, b, BLOCK_READ, req->offset_bytes, there, req->len_bytes), 0);
		break;
	case BLOCK_TAKE_IN:
	case BLOCK_NAME_BELOW:
	case BLOCK_FLUSH:
		break;
	}
	free(j->buf);
}

void testing_work(struct fixture *f, struct block_dev *b, uint8_t *shadow, uint64_t size, unsigned rounds)
{
	struct job jobs[MANY];

	for (unsigned i = 0; i < rounds; i++) {
		/* Each gets its own part of the disk; the borders move, so that neighbours share clusters. */
		uint64_t base = testing_random(f) % (size / 512) * 512;
		unsigned n = 0;
		for (; n < MANY; n++) {
			uint64_t most = testing_random(f) % 8 ? 64 : 1024;
			uint64_t len = (1 + testing_random(f) % most) * 512;
			base += testing_random(f) % 3 ? 0 : testing_random(f) % 64 * 512;
			if (base >= size || len > size - base)
				break;
			prepare(f, &jobs[n], base, len);
			base += len;
		}
		for (unsigned k = 0; k < n; k++)
			start(b, &jobs[k].w, jobs[k].w.req);
		for (unsigned k = 0; k < n; k++)
			settle(f, b, &jobs[k], shadow);
		if (testing_random(f) % 20 == 0)
			assert_int_equal(testing_run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), 0);
	}
}

void testing_expect(struct fixture *f, struct block_dev *b, const uint8_t *shadow, uint64_t size)
{
	uint8_t *all = malloc(size);

	assert_int_equal(testing_rw(f, b, BLOCK_READ, 0, all, size), 0);
	for (uint64_t i = 0; i < size; i += 512)
		if (memcmp(all + i, shadow + i, 512) != 0)
			fail_msg("the sector at %llu has %u, not %u", (unsigned long long)i, all[i],
				 shadow[i]);
	free(all);
}

static void write_file(const char *path, const uint8_t *data, uint64_t size)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, size), size);
	close(fd);
}

void testing_judge(struct fixture *f, const char *name, const char *format, const uint8_t *shadow,
		   uint64_t size)
{
	struct image_check c;
	struct error err = { 0 };

	if (image_check(testing_path(f, name), format, false, &c, NULL, &err) < 0)
		fail_msg("%s", err.text);
	if (c.nerrors || c.nleaks)
		fail_msg("%s: %llu errors, %llu leaks: %s", name, (unsigned long long)c.nerrors,
			 (unsigned long long)c.nleaks, c.first_error);
	if (!strcmp(format, "qcow2"))
		testing_qemu(f, "check -f qcow2 %s", name);
	write_file(testing_path(f, "expected.raw"), shadow, size);
	testing_qemu(f, "compare -f %s -F raw %s expected.raw", format, name);
	unlink(testing_path(f, "expected.raw"));
}

void testing_fill(struct fixture *f, const char *name, uint8_t *shadow, uint64_t size)
{
	memset(shadow, 0, size);
	for (uint64_t at = 0; at < size;) {
		uint64_t len = MIN(size - at, (1 + testing_random(f) % 400) * 512ULL);
		if (testing_random(f) % 3)
			for (uint64_t i = 0; i < len; i++)
				shadow[at + i] = testing_random(f) % 4 ? (uint8_t)(i / 7)
								       : (uint8_t)testing_random(f);
		at += len;
	}
	write_file(testing_path(f, name), shadow, size);
}
