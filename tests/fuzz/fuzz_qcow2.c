/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile qcow2 image: opened as a reader and as a writer, read, written, flushed, checked, repaired.  Nothing
 * is expected of the content; but what a repair calls clean must be clean, and a disk without errors gives
 * back what was just written.
 *
 * Input: 64 bytes that steer (0-3 the random requests, 4 whether it is repaired first, 5 how many entries are made up),
 * then the file, which ends in a hole, so that offsets have somewhere to lead to.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "block/image.h"
#include "block/qcow2.h"
#include "fuzz.h"

#define STEER	  64u
#define CLUSTER	  4096u /* of the seed */
#define FILE_MAX  (256 * KIB)
#define FILE_ROOM (1 * MIB)

static uint32_t seed;

static uint32_t next(void)
{
	seed = seed * 1664525 + 1013904223;
	return seed >> 8;
}

static int make_file(const uint8_t *data, size_t len, char path[64])
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, FILE_ROOM) < 0 || pwrite(fd, data, len, 0) != (ssize_t)len)
		abort();
	snprintf(path, 64, "/proc/self/fd/%d", fd);
	return fd;
}

static struct layer *open_layer(const char *path, bool is_writer)
{
	const struct block_open o = { .path = path, .format = "qcow2", .is_readonly = !is_writer };
	const struct layer_open lo = { .o = &o, .is_writer = is_writer };
	struct layer *l = NULL;
	struct error err = { 0 };
	int r = layer_open(&l, &lo, &err);

	if (r < 0 ? l || !err.text[0] : !l)
		abort();
	return l;
}

static void pick(const struct layer *l, uint64_t *at, uint64_t *len)
{
	uint64_t sectors = l->size_bytes / 512;
	/* Mostly where tables are likely. */
	uint64_t range = next() % 4 ? MIN(sectors, 4096ULL) : sectors;

	*at = ((uint64_t)next() << 24 | next()) % range * 512;
	*len = MIN((1 + next() % 300) * 512ULL, l->size_bytes - *at);
}

/* @is_sound: no two entries lead to one cluster to be written in place, so what was written stays. */
static void work(struct layer *l, unsigned rounds, bool is_sound)
{
	static uint8_t buf[300 * 512], back[sizeof(buf)];

	for (unsigned i = 0; i < rounds; i++) {
		uint64_t at, len, run;
		enum layer_status st;
		pick(l, &at, &len);
		struct iovec iov = { buf, len }, other = { back, len };
		struct io_vec v = { &iov, 1, 0 }, w = { &other, 1, 0 };
		unsigned what = l->is_readonly ? 1 : next() % 8;
		switch (what) {
		case 0:
			l->ops->flush(l);
			break;
		case 1:
			l->ops->read(l, v, len, at);
			l->ops->read_now(l, v, len, at);
			if (l->ops->status(l, len, at, &st, &run) == 0 && (!run || run > len))
				abort();
			break;
		case 2:
			l->ops->zero(l, len, at, next() & 1);
			break;
		case 3:
			l->ops->discard(l, len, at);
			break;
		default:
			memset(buf, (int)next(), len);
			if (l->ops->write(l, v, len, at) == 0 && l->ops->read(l, w, len, at) == 0 &&
			    is_sound && memcmp(buf, back, len) != 0)
				abort();
		}
	}
}

/* Entries that lead to likely places, in the clusters where tables are: what flipping bits seldom finds. */
static void poke(int fd, unsigned n)
{
	static const uint64_t flags[] = {
		0, 0, 1, 1ULL << 63, 1ULL << 63, 1ULL << 62, 1ULL << 63 | 1
	};

	while (n--) {
		uint64_t at = next() % 8 * CLUSTER + next() % (next() % 4 ? 16 : 512) * 8;
		uint64_t to = next() % 8 ? next() % 12 * CLUSTER : (uint64_t)next() << 24 | next();
		uint64_t e = __builtin_bswap64(to | flags[next() % (sizeof(flags) / sizeof(flags[0]))]);
		if (pwrite(fd, &e, 8, (off_t)at) != 8)
			abort();
	}
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	const struct image_create c = {
		.format = "qcow2", .size_bytes = MIB, .cluster_bytes = CLUSTER, .may_replace = true
	};
	static uint8_t bytes[CLUSTER];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct io_vec v = { &iov, 1, 0 };
	struct error err;
	char path[64];
	int fd = make_file(NULL, 0, path);

	if (image_create(path, &c, &err) < 0)
		abort();
	struct layer *l = open_layer(path, true);
	if (!l || l->ops->write(l, v, CLUSTER, 0) < 0 || l->ops->write(l, v, 512, 10 * CLUSTER) < 0 ||
	    qcow2_write_compressed(l, bytes, 20 * CLUSTER) < 0 ||
	    qcow2_write_compressed(l, bytes, 21 * CLUSTER) < 0 || l->ops->zero(l, CLUSTER, 0, false) < 0)
		abort();
	layer_close(l);
	memset(data, 0, STEER);
	data[5] = 2;
	ssize_t n = pread(fd, data + STEER, MIN(cap - STEER, (size_t)FILE_MAX), 0);
	close(fd);
	if (n < 0)
		abort();
	return STEER + (size_t)n;
}

/* True: no errors are left. */
static bool check(const char *path, bool repair)
{
	struct image_check c, again = { 0 };
	struct error err = { 0 };

	if (image_check(path, "qcow2", repair, &c, NULL, &err) < 0)
		return false;
	if (!repair || c.nfixed != c.nerrors + c.nleaks)
		return !c.nerrors;
	if (image_check(path, "qcow2", false, &again, NULL, &err) < 0 || again.nerrors + again.nleaks) {
		fprintf(stderr, "a repaired image isn't clean: %llu leaks, %s%s\n",
			(unsigned long long)again.nleaks, again.first_error, err.text);
		abort();
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	char path[64];

	if (len < STEER || len > STEER + FILE_MAX)
		return 0;
	log_set_level(LOG_ERROR);
	static int null = -1;
	if (null < 0) {
		null = open("/dev/null", O_WRONLY | O_CLOEXEC);
		log_set_fd(null);
	}
	memcpy(&seed, data, sizeof(seed));
	for (size_t i = 0; i < len; i++)
		seed = seed * 31 + data[i];
	int fd = make_file(data + STEER, len - STEER, path);
	poke(fd, data[5] % 16);
	struct layer *l = open_layer(path, false);
	if (l)
		work(l, 6, false);
	layer_close(l);
	bool is_sound = check(path, false);
	if (data[4] & 1)
		is_sound = check(path, true);
	l = open_layer(path, true);
	if (l)
		work(l, 12, is_sound);
	layer_close(l);
	check(path, true);
	close(fd);
	return 0;
}
