/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw images: byte n of the disk is byte n of the file or block device; optionally under a throw-away
 * overlay.
 *
 * Small requests are served at once on the submitter's thread (raw_try_now): reads that the page cache answers
 * without waiting (RWF_NOWAIT), writes into the page cache as long as these are quick, flushes when
 * nothing was written since the last.  The rest goes to the pool.
 *
 * Invariants
 *  1. The functions named do_... run on any thread, in parallel; they touch the constant part
 *     of struct raw, the overlay (safe by itself), the atomics and what is under sync_lock.
 *  2. After one failed fdatasync every later flush fails as well: the kernel forgets which pages it could not
 *     write, so that a second flush that "works" would be a lie.
 *  3. is_dirty is set after a write's bytes are in the file and before the write completes; it is cleared only
 *     by a fdatasync about to start, and while one runs (nsyncing) nobody trusts it.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "base/host.h"
#include "base/log.h"
#include "block/formats.h"
#include "block/image_file.h"
#include "block/overlay.h"
#include "block/pool.h"

#define RAW_THREADS    4
#define RAW_IOV_BATCH  256
#define RAW_BOUNCE_LEN (256 * KIB)

/* On the submitter's thread: requests up to this size.  After a slow write the next few go to the pool, twice as many
 * after each further slow one in a row: one alone is mostly a thread that lost its CPU. */
#define NOW_BYTES_MAX (128 * KIB)
#define NOW_SLOW_NS   1000000LL
#define NOW_REST_MIN  8u
#define NOW_REST_MAX  1024u

struct raw {
	struct block_dev dev;
	struct io_pool *pool;
	struct image_file file;
	struct overlay overlay;
	bool has_overlay, is_readonly;
	_Atomic bool no_punch, no_zero_range; /* the host said so */
	_Atomic int flush_error;	      /* sticky, invariant 2 */
	/* Under @sync_lock, invariant 3. */
	pthread_mutex_t sync_lock;
	bool is_dirty;
	unsigned nsyncing;
	/* Of try_now: under the machine's lock. */
	bool no_nowait;	    /* the host can't tell whether a read would wait */
	unsigned resting;   /* so many writes go to the pool */
	unsigned next_rest; /* so many after the next slow one */
};

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* ---- moving bytes ---- */

/* Fills @out with the vectors of [@off, +@len) of @iov; returns how many, and their bytes in *@got. */
static unsigned cut_iov(const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len,
			struct iovec *out, uint64_t *got)
{
	unsigned n = 0;

	*got = 0;
	for (unsigned i = 0; i < niov && *got < len && n < RAW_IOV_BATCH; i++) {
		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		size_t part = MIN((uint64_t)(iov[i].iov_len - off), len - *got);
		out[n++] = (struct iovec){ (uint8_t *)iov[i].iov_base + off, part };
		*got += part;
		off = 0;
	}
	return n;
}

/* One pread or pwrite of what *@iov covers, repeated until it is all there. */
static int move_all(int fd, bool is_write, struct iovec *iov, unsigned n, uint64_t at)
{
	while (n) {
		ssize_t r = is_write ? host.pwritev(fd, iov, n, (off_t)at)
				     : host.preadv(fd, iov, n, (off_t)at);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return -EIO; /* the file was cut short behind our back */
		at += r;
		while (n && (size_t)r >= iov->iov_len) {
			r -= iov->iov_len;
			iov++;
			n--;
		}
		if (n) {
			iov->iov_base = (uint8_t *)iov->iov_base + r;
			iov->iov_len -= r;
		}
	}
	return 0;
}

static bool is_aligned(const struct iovec *iov, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (((uintptr_t)iov[i].iov_base | iov[i].iov_len) & (BLOCK_SECTOR - 1))
			return false;
	return true;
}

/* O_DIRECT wants aligned memory; guests need not give it. */
static int move_bounced(int fd, bool is_write, struct iovec *iov, uint64_t len, uint64_t at)
{
	_cleanup_free_ uint8_t *buf = NULL;
	int r = 0;

	if (posix_memalign((void **)&buf, 4096, RAW_BOUNCE_LEN))
		return -ENOMEM;
	for (uint64_t done = 0; done < len && r == 0;) {
		struct iovec one = { buf, MIN(len - done, (uint64_t)RAW_BOUNCE_LEN) };
		uint64_t part = one.iov_len;
		uint8_t *p = buf;
		if (!is_write)
			r = move_all(fd, false, &one, 1, at + done);
		for (uint64_t left = part; left && r == 0;) {
			size_t k = MIN(left, (uint64_t)iov->iov_len);
			if (is_write)
				memcpy(p, iov->iov_base, k);
			else
				memcpy(iov->iov_base, p, k);
			p += k;
			left -= k;
			iov->iov_base = (uint8_t *)iov->iov_base + k;
			iov->iov_len -= k;
			if (!iov->iov_len)
				iov++;
		}
		if (is_write)
			r = move_all(fd, true, &one, 1, at + done);
		done += part;
	}
	return r;
}

/* Moves [@skip, +@len) of the request's vectors to or from @fd at @at. */
static int move(const struct raw *d, int fd, bool is_write, const struct block_req *req,
		uint64_t skip, uint64_t len, uint64_t at)
{
	struct iovec iov[RAW_IOV_BATCH];

	while (len) {
		uint64_t got;
		unsigned n = cut_iov(req->iov, req->niov, skip, len, iov, &got);
		if (!n)
			return -EINVAL; /* the vectors don't add up: refused, not trusted */
		bool bounce = d->file.is_direct && fd == d->file.fd && !is_aligned(iov, n);
		int r = bounce ? move_bounced(fd, is_write, iov, got, at)
			       : move_all(fd, is_write, iov, n, at);
		if (r < 0)
			return r;
		skip += got;
		at += got;
		len -= got;
	}
	return 0;
}

static int write_zeroes_by_hand(int fd, uint64_t at, uint64_t len)
{
	static const _Alignas(4096) uint8_t zeroes[64 * KIB];

	while (len) {
		size_t part = MIN(len, (uint64_t)sizeof(zeroes));
		struct iovec iov = { (void *)(uintptr_t)zeroes, part };
		int r = move_all(fd, true, &iov, 1, at);
		if (r < 0)
			return r;
		at += part;
		len -= part;
	}
	return 0;
}

/* fallocate, or -EOPNOTSUPP, remembered. */
static int try_fallocate(int fd, int mode, uint64_t at, uint64_t len, _Atomic bool *is_missing)
{
	if (is_missing && *is_missing)
		return -EOPNOTSUPP;
	for (;;) {
		if (host.fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)len) == 0)
			return 0;
		if (errno == EINTR)
			continue;
		if (errno != EOPNOTSUPP && errno != ENOSYS && errno != ENODEV)
			return -errno;
		if (is_missing)
			*is_missing = true;
		return -EOPNOTSUPP;
	}
}

/* ---- the operations ---- */

static int do_read(struct raw *d, struct block_req *req)
{
	if (!d->has_overlay)
		return move(d, d->file.fd, false, req, 0, req->len_bytes, req->offset_bytes);
	uint64_t sector = req->offset_bytes / BLOCK_SECTOR, left = req->len_bytes / BLOCK_SECTOR,
		 skip = 0;
	while (left) {
		bool is_over;
		uint64_t n = overlay_run(&d->overlay, sector, left, &is_over);
		int r = move(d, is_over ? d->overlay.fd : d->file.fd, false, req, skip,
			     n * BLOCK_SECTOR, sector * BLOCK_SECTOR);
		if (r < 0)
			return r;
		sector += n;
		left -= n;
		skip += n * BLOCK_SECTOR;
	}
	return 0;
}

/* Where writes go. */
static int write_fd(const struct raw *d)
{
	return d->has_overlay ? d->overlay.fd : d->file.fd;
}

/* After the bytes are in the file, before the request completes. */
static void note_dirty(struct raw *d)
{
	pthread_mutex_lock(&d->sync_lock);
	d->is_dirty = true;
	pthread_mutex_unlock(&d->sync_lock);
}

static void note_written(struct raw *d, const struct block_req *req)
{
	note_dirty(d);
	if (d->has_overlay)
		overlay_mark(&d->overlay, req->offset_bytes / BLOCK_SECTOR, req->len_bytes / BLOCK_SECTOR);
}

/* Nothing to wait for: 0 or the sticky error; else -EAGAIN. */
static int flush_now(struct raw *d)
{
	if (d->has_overlay || d->is_readonly)
		return 0; /* thrown away at the end in any case */
	if (d->flush_error)
		return d->flush_error;
	pthread_mutex_lock(&d->sync_lock);
	bool is_clean = !d->is_dirty && !d->nsyncing;
	pthread_mutex_unlock(&d->sync_lock);
	return is_clean ? 0 : -EAGAIN;
}

static int do_flush(struct raw *d)
{
	int r = flush_now(d);

	if (r != -EAGAIN)
		return r;
	pthread_mutex_lock(&d->sync_lock);
	d->is_dirty = false;
	d->nsyncing++;
	pthread_mutex_unlock(&d->sync_lock);
	do
		r = host.fdatasync(d->file.fd);
	while (r < 0 && errno == EINTR);
	int sync_errno = errno;
	if (r < 0)
		d->flush_error = -sync_errno; /* before anybody may find the file clean */
	pthread_mutex_lock(&d->sync_lock);
	d->nsyncing--;
	pthread_mutex_unlock(&d->sync_lock);
	if (r == 0)
		return 0;
	int e = -sync_errno;
	log_error("block", "a disk's data could not be made stable: %s; every later flush will fail",
		  strerror(-e));
	return e;
}

static int do_write(struct raw *d, struct block_req *req)
{
	int r = move(d, write_fd(d), true, req, 0, req->len_bytes, req->offset_bytes);

	if (r == 0)
		note_written(d, req);
	return r;
}

static int do_write_zeroes(struct raw *d, struct block_req *req)
{
	int r = -EOPNOTSUPP;

	if (d->has_overlay || req->may_unmap)
		r = try_fallocate(write_fd(d), FALLOC_FL_PUNCH_HOLE, req->offset_bytes,
				  req->len_bytes, &d->no_punch);
	else
		r = try_fallocate(write_fd(d), FALLOC_FL_ZERO_RANGE, req->offset_bytes,
				  req->len_bytes, &d->no_zero_range);
	if (r == -EOPNOTSUPP)
		r = write_zeroes_by_hand(write_fd(d), req->offset_bytes, req->len_bytes);
	if (r == 0)
		note_written(d, req);
	return r;
}

static int do_discard(struct raw *d, struct block_req *req)
{
	uint64_t sector = req->offset_bytes / BLOCK_SECTOR, left = req->len_bytes / BLOCK_SECTOR;

	/* Discard is a hint: what the host can't drop stays.  Sectors of the base stay as well. */
	while (left) {
		bool is_over = true;
		uint64_t n = d->has_overlay ? overlay_run(&d->overlay, sector, left, &is_over) : left;
		int r = !is_over ? 0
				 : try_fallocate(write_fd(d), FALLOC_FL_PUNCH_HOLE,
						 sector * BLOCK_SECTOR, n * BLOCK_SECTOR, &d->no_punch);
		if (r < 0 && r != -EOPNOTSUPP)
			return r;
		sector += n;
		left -= n;
	}
	note_dirty(d);
	return 0;
}

static int check_req(const struct raw *d, const struct block_req *req)
{
	if (req->op != BLOCK_READ && req->op != BLOCK_FLUSH && d->is_readonly)
		return -EROFS;
	if (req->op == BLOCK_FLUSH)
		return 0;
	if ((req->offset_bytes | req->len_bytes) % BLOCK_SECTOR || req->offset_bytes > d->file.size_bytes ||
	    req->len_bytes > d->file.size_bytes - req->offset_bytes)
		return -EIO;
	return 0;
}

static int do_request(void *ctx, struct block_req *req)
{
	struct raw *d = ctx;
	int r = check_req(d, req);

	if (r < 0)
		return r;
	switch (req->op) {
	case BLOCK_READ:
		return do_read(d, req);
	case BLOCK_WRITE:
		r = do_write(d, req);
		break;
	case BLOCK_FLUSH:
		return do_flush(d);
	case BLOCK_DISCARD:
		return do_discard(d, req);
	case BLOCK_WRITE_ZEROES:
		r = do_write_zeroes(d, req);
		break;
	}
	if (r == 0 && req->is_fua)
		r = do_flush(d);
	return r;
}

/* ---- at once ---- */

/* [@skip, +@len) of the request's vectors from @fd at @at, all of it from the page cache, or -EAGAIN. */
static int read_cached(struct raw *d, int fd, const struct block_req *req, uint64_t skip,
		       uint64_t len, uint64_t at)
{
	struct iovec iov[RAW_IOV_BATCH];
	uint64_t got;
	unsigned n = cut_iov(req->iov, req->niov, skip, len, iov, &got);

	if (got < len)
		return -EAGAIN; /* very many pieces, or they don't add up: the pool's */
	ssize_t r = host.preadv2(fd, iov, n, (off_t)at, RWF_NOWAIT);
	if (r == (ssize_t)len)
		return 0;
	if (r < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
		d->no_nowait = true;
	return -EAGAIN; /* an error as well: the pool meets it again */
}

static int read_now(struct raw *d, const struct block_req *req)
{
	uint64_t sector = req->offset_bytes / BLOCK_SECTOR, left = req->len_bytes / BLOCK_SECTOR,
		 skip = 0;
	int r = d->no_nowait ? -EAGAIN : 0;

	while (left && r == 0) {
		bool is_over = false;
		uint64_t n = d->has_overlay ? overlay_run(&d->overlay, sector, left, &is_over) : left;
		r = read_cached(d, is_over ? d->overlay.fd : d->file.fd, req, skip,
				n * BLOCK_SECTOR, sector * BLOCK_SECTOR);
		sector += n;
		left -= n;
		skip += n * BLOCK_SECTOR;
	}
	return r;
}

/*
 * No host tells reliably whether a buffered write would wait; most are a copy.  So writes are tried, and after one
 * that did wait, for room or for a journal, the pool has them for a while.
 */
static int write_now(struct raw *d, struct block_req *req)
{
	if (req->is_fua)
		return -EAGAIN;
	if (d->resting) {
		d->resting--;
		return -EAGAIN;
	}
	int64_t before = now_ns();
	int r = do_write(d, req);
	if (now_ns() - before > NOW_SLOW_NS) {
		d->resting = d->next_rest;
		d->next_rest = MIN(2 * d->next_rest, NOW_REST_MAX);
	} else {
		d->next_rest = NOW_REST_MIN;
	}
	return r;
}

static int raw_try_now(struct block_dev *b, struct block_req *req)
{
	struct raw *d = container_of(b, struct raw, dev);

	if (check_req(d, req) < 0)
		return -EAGAIN;
	if (req->op == BLOCK_FLUSH)
		return flush_now(d);
	if (d->file.is_direct || req->len_bytes > NOW_BYTES_MAX)
		return -EAGAIN;
	switch (req->op) {
	case BLOCK_READ:
		return read_now(d, req);
	case BLOCK_WRITE:
		return write_now(d, req);
	default:
		return -EAGAIN;
	}
}

/* ---- block_ops ---- */

static void raw_submit(struct block_dev *b, struct block_req *req)
{
	io_pool_submit(container_of(b, struct raw, dev)->pool, req);
}

static void raw_info(const struct block_dev *b, struct block_info *out)
{
	const struct raw *d = container_of(b, struct raw, dev);

	*out = (struct block_info){
		.size_bytes = d->file.size_bytes,
		.is_readonly = d->is_readonly,
		.can_discard = !d->is_readonly,
		.can_write_zeroes = !d->is_readonly,
		.has_write_cache = true,
	};
}

static void raw_drain(struct block_dev *b)
{
	io_pool_drain(container_of(b, struct raw, dev)->pool);
}

static void raw_close(struct block_dev *b)
{
	if (!b)
		return;
	struct raw *d = container_of(b, struct raw, dev);
	io_pool_destroy(d->pool);
	overlay_close(&d->overlay);
	image_file_close(&d->file);
	pthread_mutex_destroy(&d->sync_lock);
	free(d);
}

static const struct block_ops raw_ops = {
	.name = "raw",
	.submit = raw_submit,
	.info = raw_info,
	.drain = raw_drain,
	.close = raw_close,
	.try_now = raw_try_now,
};

int raw_open(struct block_dev **out, struct loop *loop, const struct block_open *o, struct error *err)
{
	struct raw *d = calloc(1, sizeof(*d));

	if (!d)
		return error_set(err, -ENOMEM, "out of memory");
	d->dev.ops = &raw_ops;
	d->overlay.fd = -1;
	pthread_mutex_init(&d->sync_lock, NULL);
	d->next_rest = NOW_REST_MIN;
	d->is_dirty = true; /* by others before us, for all we know */
	d->is_readonly = o->is_readonly && !o->is_snapshot;
	int r = image_file_open(&d->file, o, err);
	if (r == 0 && o->is_snapshot) {
		r = overlay_open(&d->overlay, d->file.size_bytes, err);
		d->has_overlay = r == 0;
	}
	if (r == 0)
		r = io_pool_create(&d->pool, loop, RAW_THREADS, do_request, d, err);
	if (r < 0) {
		raw_close(&d->dev);
		return r;
	}
	*out = &d->dev;
	return 0;
}
