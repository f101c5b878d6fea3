/* SPDX-License-Identifier: Apache-2.0 */
#include "block/io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/host.h"
#include "base/log.h"

#define BOUNCE_LEN (256 * KIB)

unsigned io_cut(struct io_vec v, uint64_t len, struct iovec *out, uint64_t *got)
{
	uint64_t off = v.skip;
	unsigned n = 0;

	*got = 0;
	for (unsigned i = 0; i < v.niov && *got < len && n < IO_IOV_BATCH; i++) {
		if (off >= v.iov[i].iov_len) {
			off -= v.iov[i].iov_len;
			continue;
		}
		size_t part = MIN((uint64_t)(v.iov[i].iov_len - off), len - *got);
		out[n++] = (struct iovec){ (uint8_t *)v.iov[i].iov_base + off, part };
		*got += part;
		off = 0;
	}
	return n;
}

enum copy { COPY_PUT, COPY_GET, COPY_ZERO };

static int copy(struct io_vec v, uint8_t *buf, uint64_t len, enum copy how)
{
	uint64_t off = v.skip;

	for (unsigned i = 0; i < v.niov && len; i++) {
		if (off >= v.iov[i].iov_len) {
			off -= v.iov[i].iov_len;
			continue;
		}
		size_t part = MIN((uint64_t)(v.iov[i].iov_len - off), len);
		uint8_t *p = (uint8_t *)v.iov[i].iov_base + off;
		if (how == COPY_ZERO) {
			memset(p, 0, part);
		} else {
			memcpy(how == COPY_PUT ? p : buf, how == COPY_PUT ? buf : p, part);
			buf += part;
		}
		len -= part;
		off = 0;
	}
	return len ? -EINVAL : 0;
}

int io_put(struct io_vec v, const void *src, uint64_t len)
{
	return copy(v, (uint8_t *)(uintptr_t)src, len, COPY_PUT);
}

int io_get(struct io_vec v, void *dst, uint64_t len)
{
	return copy(v, dst, len, COPY_GET);
}

int io_zero(struct io_vec v, uint64_t len)
{
	return copy(v, NULL, len, COPY_ZERO);
}

/* One preadv or pwritev of what *@iov covers, repeated until it is all there. */
static int move_all(int fd, bool is_write, struct iovec *iov, unsigned n, uint64_t at, enum io_end end)
{
	while (n) {
		ssize_t r = is_write ? host.pwritev(fd, iov, (int)n, (off_t)at)
				     : host.preadv(fd, iov, (int)n, (off_t)at);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0) {
			if (is_write || end == IO_END_IS_ERROR)
				return -EIO; /* the file was cut short behind our back */
			for (unsigned i = 0; i < n; i++)
				memset(iov[i].iov_base, 0, iov[i].iov_len);
			return 0;
		}
		at += (uint64_t)r;
		while (n && (size_t)r >= iov->iov_len) {
			r -= (ssize_t)iov->iov_len;
			iov++;
			n--;
		}
		if (n) {
			iov->iov_base = (uint8_t *)iov->iov_base + r;
			iov->iov_len -= (size_t)r;
		}
	}
	return 0;
}

bool io_is_aligned(const struct iovec *iov, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (((uintptr_t)iov[i].iov_base | iov[i].iov_len) & (BLOCK_SECTOR - 1))
			return false;
	return true;
}

/* O_DIRECT wants aligned memory; guests need not give it. */
static int move_bounced(int fd, bool is_write, struct io_vec v, uint64_t len, uint64_t at, enum io_end end)
{
	_cleanup_free_ uint8_t *buf = NULL;
	int r = 0;

	if (posix_memalign((void **)&buf, 4096, BOUNCE_LEN))
		return -ENOMEM;
	for (uint64_t done = 0; done < len && r == 0;) {
		uint64_t part = MIN(len - done, (uint64_t)BOUNCE_LEN);
		struct iovec one = { buf, part };
		r = is_write ? io_get(io_vec_at(v, done), buf, part) : 0;
		if (r == 0)
			r = move_all(fd, is_write, &one, 1, at + done, end);
		if (r == 0 && !is_write)
			r = io_put(io_vec_at(v, done), buf, part);
		done += part;
	}
	return r;
}

static int move(const struct image_file *f, bool is_write, struct io_vec v, uint64_t len,
		uint64_t at, enum io_end end)
{
	struct iovec iov[IO_IOV_BATCH];

	while (len) {
		uint64_t got;
		unsigned n = io_cut(v, len, iov, &got);
		if (!n)
			return -EINVAL; /* the vectors don't add up: refused, not trusted */
		int r = f->is_direct && !io_is_aligned(iov, n)
				? move_bounced(f->fd, is_write, v, got, at, end)
				: move_all(f->fd, is_write, iov, n, at, end);
		if (r < 0)
			return r;
		v.skip += got;
		at += got;
		len -= got;
	}
	return 0;
}

int io_read(const struct image_file *f, struct io_vec v, uint64_t len, uint64_t at, enum io_end end)
{
	return move(f, false, v, len, at, end);
}

int io_write(const struct image_file *f, struct io_vec v, uint64_t len, uint64_t at)
{
	return move(f, true, v, len, at, IO_END_IS_ERROR);
}

int io_read_now(const struct image_file *f, struct io_vec v, uint64_t len, uint64_t at)
{
	struct iovec iov[IO_IOV_BATCH];
	uint64_t got;
	unsigned n = io_cut(v, len, iov, &got);

	if (got < len || f->is_direct)
		return -EAGAIN; /* very many pieces, or they don't add up */
	ssize_t r = host.preadv2(f->fd, iov, (int)n, (off_t)at, RWF_NOWAIT);
	if (r == (ssize_t)len)
		return 0;
	if (r < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
		return -EOPNOTSUPP;
	return -EAGAIN; /* an error as well: whoever reads in earnest meets it again */
}

int io_pread(int fd, void *buf, uint64_t len, uint64_t at)
{
	struct iovec iov = { buf, len };

	return move_all(fd, false, &iov, 1, at, IO_END_IS_ZEROES);
}

int io_pwrite(int fd, const void *buf, uint64_t len, uint64_t at)
{
	struct iovec iov = { (void *)(uintptr_t)buf, len };

	return len ? move_all(fd, true, &iov, 1, at, IO_END_IS_ERROR) : 0;
}

int io_pwrite_zeroes(int fd, uint64_t len, uint64_t at)
{
	static const _Alignas(4096) uint8_t zeroes[64 * KIB];

	while (len) {
		size_t part = MIN(len, (uint64_t)sizeof(zeroes));
		int r = io_pwrite(fd, zeroes, part, at);
		if (r < 0)
			return r;
		at += part;
		len -= part;
	}
	return 0;
}

int io_fallocate(int fd, int mode, uint64_t at, uint64_t len, _Atomic bool *is_missing)
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

/* ---- stable ---- */

void io_sync_init(struct io_sync *s)
{
	*s = (struct io_sync){ .is_dirty = true };
	pthread_mutex_init(&s->lock, NULL);
}

void io_sync_finish(struct io_sync *s)
{
	pthread_mutex_destroy(&s->lock);
}

void io_sync_note(struct io_sync *s)
{
	pthread_mutex_lock(&s->lock);
	s->is_dirty = true;
	pthread_mutex_unlock(&s->lock);
}

int io_sync_now(struct io_sync *s)
{
	if (s->error)
		return s->error;
	pthread_mutex_lock(&s->lock);
	bool is_clean = !s->is_dirty && !s->nsyncing;
	pthread_mutex_unlock(&s->lock);
	return is_clean ? 0 : -EAGAIN;
}

int io_sync_begin(struct io_sync *s)
{
	int r = io_sync_now(s);

	if (r != -EAGAIN)
		return r;
	pthread_mutex_lock(&s->lock);
	s->is_dirty = false;
	s->nsyncing++;
	pthread_mutex_unlock(&s->lock);
	return -EAGAIN;
}

int io_sync_end(struct io_sync *s, int result)
{
	if (result < 0)
		s->error = result; /* before anybody may find the file clean */
	pthread_mutex_lock(&s->lock);
	s->nsyncing--;
	pthread_mutex_unlock(&s->lock);
	if (result < 0)
		log_error("block",
			  "a disk's data could not be made stable: %s; every later flush will fail",
			  strerror(-result));
	return result;
}

void io_sync_cancel(struct io_sync *s)
{
	pthread_mutex_lock(&s->lock);
	s->is_dirty = true;
	s->nsyncing--;
	pthread_mutex_unlock(&s->lock);
}

int io_sync(struct io_sync *s, int fd)
{
	int r = io_sync_begin(s);

	if (r != -EAGAIN)
		return r;
	do
		r = host.fdatasync(fd);
	while (r < 0 && errno == EINTR);
	return io_sync_end(s, r < 0 ? -errno : 0);
}
