/* SPDX-License-Identifier: Apache-2.0 */
/* The throw-away layer: writes go to an unlinked temporary file (overlay.h), nothing is ever made stable. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/host.h"
#include "block/layer.h"
#include "block/overlay.h"

#define SAVE_BYTES (1 * MIB)

struct temp {
	struct layer layer;
	struct overlay overlay;
	struct image_file file; /* the overlay's descriptor, borrowed */
	int kept_fd;		/* of the file that it stands for, until that is filled; -1 */
	_Atomic bool no_punch, no_nowait;
};

static struct temp *temp_of(struct layer *l)
{
	return container_of(l, struct temp, layer);
}

typedef int (*read_fn)(struct layer *l, struct io_vec v, uint64_t len, uint64_t at);

static int read_own(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	return io_read(&temp_of(l)->file, v, len, at, IO_END_IS_ERROR);
}

static int read_own_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct temp *t = temp_of(l);
	int r = t->no_nowait ? -EAGAIN : io_read_now(&t->file, v, len, at);

	if (r != -EOPNOTSUPP)
		return r;
	t->no_nowait = true;
	return -EAGAIN;
}

static int read_both(struct layer *l, struct io_vec v, uint64_t len, uint64_t at, read_fn own,
		     read_fn below)
{
	while (len) {
		bool is_over;
		uint64_t n = overlay_run(&temp_of(l)->overlay, at / BLOCK_SECTOR,
					 len / BLOCK_SECTOR, &is_over) *
			     BLOCK_SECTOR;
		int r = is_over ? own(l, v, n, at) : below(l->backing, v, n, at);
		if (r < 0)
			return r;
		at += n;
		len -= n;
		v.skip += n;
	}
	return 0;
}

static int temp_read(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	return read_both(l, v, len, at, read_own, l->backing->ops->read);
}

static int temp_read_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	return read_both(l, v, len, at, read_own_now, l->backing->ops->read_now);
}

static int temp_write(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct temp *t = temp_of(l);
	int r = io_write(&t->file, v, len, at);

	if (r == 0)
		overlay_mark(&t->overlay, at / BLOCK_SECTOR, len / BLOCK_SECTOR);
	return r;
}

static int temp_zero(struct layer *l, uint64_t len, uint64_t at, bool may_unmap)
{
	struct temp *t = temp_of(l);
	int r = io_fallocate(t->file.fd, FALLOC_FL_PUNCH_HOLE, at, len, &t->no_punch);

	if (r == -EOPNOTSUPP)
		r = io_pwrite_zeroes(t->file.fd, len, at);
	if (r == 0)
		overlay_mark(&t->overlay, at / BLOCK_SECTOR, len / BLOCK_SECTOR);
	return r;
}

/* A hint: sectors of the layer below stay. */
static int temp_discard(struct layer *l, uint64_t len, uint64_t at)
{
	struct temp *t = temp_of(l);

	while (len) {
		bool is_over;
		uint64_t n = overlay_run(&t->overlay, at / BLOCK_SECTOR, len / BLOCK_SECTOR, &is_over) *
			     BLOCK_SECTOR;
		int r = is_over ? io_fallocate(t->file.fd, FALLOC_FL_PUNCH_HOLE, at, n, &t->no_punch)
				: 0;
		if (r < 0 && r != -EOPNOTSUPP)
			return r;
		at += n;
		len -= n;
	}
	return 0;
}

static int temp_flush(struct layer *l)
{
	return 0; /* thrown away at the end in any case */
}

static int temp_status(struct layer *l, uint64_t len, uint64_t at, enum layer_status *out, uint64_t *run)
{
	bool is_over;

	*run = overlay_run(&temp_of(l)->overlay, at / BLOCK_SECTOR, len / BLOCK_SECTOR, &is_over) *
	       BLOCK_SECTOR;
	*out = is_over ? LAYER_DATA : LAYER_ABSENT;
	return 0;
}

static void temp_close(struct layer *l)
{
	struct temp *t = temp_of(l);

	temp_layer_release(l);
	overlay_close(&t->overlay);
	free(t);
}

static const struct layer_ops temp_ops = {
	.name = "throw-away",
	.read = temp_read,
	.write = temp_write,
	.zero = temp_zero,
	.discard = temp_discard,
	.flush = temp_flush,
	.read_now = temp_read_now,
	.write_now = temp_write,
	.flush_now = temp_flush,
	.status = temp_status,
	.seal = temp_flush,
	.close = temp_close,
};

int temp_layer_push(struct layer **out, struct layer *backing, struct error *err)
{
	struct temp *t = calloc(1, sizeof(*t));
	int r = t ? overlay_open(&t->overlay, backing->size_bytes, err)
		  : error_set(err, -ENOMEM, "out of memory");

	if (r < 0) {
		free(t);
		return r;
	}
	t->kept_fd = -1;
	t->file = (struct image_file){ .fd = t->overlay.fd, .size_bytes = backing->size_bytes };
	t->layer = (struct layer){ .ops = &temp_ops, .backing = backing, .size_bytes = backing->size_bytes };
	*out = &t->layer;
	return 0;
}

int temp_layer_open(struct layer **out, struct layer *backing, struct error *err)
{
	int r = temp_layer_push(out, backing, err);

	if (r < 0)
		layer_close(backing);
	return r;
}

int temp_layer_reset(struct layer *l, struct error *err)
{
	if (l->ops != &temp_ops)
		return error_set(
			err, -EINVAL,
			"the disk has no throw-away layer on top; start the machine with one");
	struct temp *t = temp_of(l);

	overlay_reset(&t->overlay);
	/* The room comes back; the bits alone would do for the content. */
	int r = io_fallocate(t->file.fd, FALLOC_FL_PUNCH_HOLE, 0, l->size_bytes, &t->no_punch);
	return r < 0 && r != -EOPNOTSUPP ? error_set(err, r, "cannot empty the throw-away layer") : 0;
}

int temp_layer_keep(struct layer *l, const char *path, struct error *err)
{
	struct stat st;

	if (l->ops != &temp_ops)
		return error_set(err, -EINVAL, "the disk has no throw-away layer on top");
	_cleanup_close_ int fd = host.open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot open '%s': %s", path, strerror(errno));
	temp_layer_release(l);
	temp_of(l)->kept_fd = fd;
	fd = -1;
	l->dev = st.st_dev;
	l->ino = st.st_ino;
	return 0;
}

int temp_layer_kept_fd(const struct layer *l)
{
	return l->ops == &temp_ops ? container_of(l, const struct temp, layer)->kept_fd : -1;
}

void temp_layer_release(struct layer *l)
{
	int fd = temp_layer_kept_fd(l);

	if (fd < 0)
		return;
	close(fd);
	temp_of(l)->kept_fd = -1;
}

int temp_layer_save(struct layer *l, struct layer *to)
{
	if (l->ops != &temp_ops || l->dev != to->dev || l->ino != to->ino)
		return -ENOENT;
	uint8_t *buf = malloc(SAVE_BYTES);
	int r = buf ? 0 : -ENOMEM;

	for (uint64_t at = 0, run; r == 0 && at < l->size_bytes; at += run) {
		struct iovec iov = { buf, 0 };
		const struct io_vec v = { &iov, 1, 0 };
		enum layer_status st;

		r = temp_status(l, l->size_bytes - at, at, &st, &run);
		if (r < 0 || st != LAYER_DATA)
			continue;
		run = iov.iov_len = MIN(run, SAVE_BYTES);
		r = read_own(l, v, run, at);
		if (r == 0)
			r = to->ops->write(to, v, run, at);
	}
	free(buf);
	return r;
}
