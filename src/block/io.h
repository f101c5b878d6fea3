/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving bytes between a request's vectors and files, completely or not at all: short transfers and EINTR are repeated.
 * Any thread.
 */
#ifndef VIV_BLOCK_IO_H
#define VIV_BLOCK_IO_H

#include <pthread.h>
#include <sys/uio.h>

#include "block/image_file.h"

#define IO_IOV_BATCH 256

/* A place inside a request's vectors: what lies behind the first @skip bytes. */
struct io_vec {
	const struct iovec *iov;
	unsigned niov;
	uint64_t skip;
};
static inline struct io_vec io_vec_at(struct io_vec v, uint64_t more)
{
	v.skip += more;
	return v;
}

/** io_cut() - fill @out (IO_IOV_BATCH entries) with at most @len bytes of @v; returns how many, their bytes in *@got. */
unsigned io_cut(struct io_vec v, uint64_t len, struct iovec *out, uint64_t *got);

/** io_is_aligned() - could O_DIRECT take these vectors as they are? */
bool io_is_aligned(const struct iovec *iov, unsigned n);

/* To, from and over memory.  0 or -EINVAL: the vectors hold less than @len. */
int io_put(struct io_vec v, const void *src, uint64_t len);
int io_get(struct io_vec v, void *dst, uint64_t len);
int io_zero(struct io_vec v, uint64_t len);

enum io_end { IO_END_IS_ERROR, IO_END_IS_ZEROES }; /* what a read past the end of the file gives */

/**
 * io_read(), io_write() - [@at, +@len) of @f from or into @v; with O_DIRECT through aligned memory where needed.
 * 0, -EINVAL (the vectors don't add up), -EIO (past the end), -errno.
 */
int io_read(const struct image_file *f, struct io_vec v, uint64_t len, uint64_t at, enum io_end end);
int io_write(const struct image_file *f, struct io_vec v, uint64_t len, uint64_t at);

/** io_read_now() - from the page cache without waiting: 0, -EAGAIN, -EOPNOTSUPP (the host can't tell, ever). */
int io_read_now(const struct image_file *f, struct io_vec v, uint64_t len, uint64_t at);

/* One buffer; a read past the end gives zeroes. */
int io_pread(int fd, void *buf, uint64_t len, uint64_t at);
int io_pwrite(int fd, const void *buf, uint64_t len, uint64_t at);
int io_pwrite_zeroes(int fd, uint64_t len, uint64_t at);

/** io_fallocate() - KEEP_SIZE is added; 0, -EOPNOTSUPP (remembered in *@is_missing, may be NULL), -errno. */
int io_fallocate(int fd, int mode, uint64_t at, uint64_t len, _Atomic bool *is_missing);

/*
 * Making a file stable.
 *  1. After one failed fdatasync every later one fails as well: the kernel forgets which pages it could not write, so that
 *     a second one that "works" would be a lie.
 *  2. is_dirty is set after a write's bytes are in the file and before the write completes; it is cleared only by a
 *     fdatasync about to start, and while one runs (nsyncing) nobody trusts it.
 */
struct io_sync {
	pthread_mutex_t lock;
	bool is_dirty;
	unsigned nsyncing;
	_Atomic int error; /* sticky */
};
void io_sync_init(struct io_sync *s); /* dirty: by others before us, for all we know */
void io_sync_finish(struct io_sync *s);
void io_sync_note(struct io_sync *s); /* something was written */
/** io_sync_now() - 0 (nothing to do), the sticky error, or -EAGAIN. */
int io_sync_now(struct io_sync *s);
int io_sync(struct io_sync *s, int fd);
/*
 * The same in steps, for whoever has an fdatasync done by others: begin as io_sync_now, and -EAGAIN means: do it, then
 * tell by io_sync_end what came of it (0 or -errno), or by io_sync_cancel that it was not even tried.
 */
int io_sync_begin(struct io_sync *s);
int io_sync_end(struct io_sync *s, int result);
void io_sync_cancel(struct io_sync *s);

#endif
