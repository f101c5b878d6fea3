/* SPDX-License-Identifier: Apache-2.0 */
/* Raw images: byte n of the disk is byte n of the file or block device. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/host.h"
#include "block/layer.h"

struct raw {
	struct layer layer;
	struct image_file file;
	struct io_sync sync;
	_Atomic bool no_punch, no_zero_range, no_nowait; /* the host said so */
};

static struct raw *raw_of(struct layer *l)
{
	return container_of(l, struct raw, layer);
}

static int raw_read(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	return io_read(&raw_of(l)->file, v, len, at, IO_END_IS_ERROR);
}

static int raw_write(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct raw *d = raw_of(l);
	int r = io_write(&d->file, v, len, at);

	if (r == 0)
		io_sync_note(&d->sync);
	return r;
}

static int raw_zero(struct layer *l, uint64_t len, uint64_t at, bool may_unmap)
{
	struct raw *d = raw_of(l);
	int r = may_unmap ? io_fallocate(d->file.fd, FALLOC_FL_PUNCH_HOLE, at, len, &d->no_punch)
			  : io_fallocate(d->file.fd, FALLOC_FL_ZERO_RANGE, at, len, &d->no_zero_range);

	if (r == -EOPNOTSUPP)
		r = io_pwrite_zeroes(d->file.fd, len, at);
	if (r == 0)
		io_sync_note(&d->sync);
	return r;
}

/* A hint: what the host can't drop stays. */
static int raw_discard(struct layer *l, uint64_t len, uint64_t at)
{
	struct raw *d = raw_of(l);
	int r = io_fallocate(d->file.fd, FALLOC_FL_PUNCH_HOLE, at, len, &d->no_punch);

	if (r < 0 && r != -EOPNOTSUPP)
		return r;
	io_sync_note(&d->sync);
	return 0;
}

static int raw_flush(struct layer *l)
{
	struct raw *d = raw_of(l);

	return l->is_readonly ? 0 : io_sync(&d->sync, d->file.fd);
}

static int raw_flush_now(struct layer *l)
{
	return l->is_readonly ? 0 : io_sync_now(&raw_of(l)->sync);
}

static int raw_read_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	struct raw *d = raw_of(l);
	int r = d->no_nowait ? -EAGAIN : io_read_now(&d->file, v, len, at);

	if (r != -EOPNOTSUPP)
		return r;
	d->no_nowait = true;
	return -EAGAIN;
}

static int raw_write_now(struct layer *l, struct io_vec v, uint64_t len, uint64_t at)
{
	return raw_of(l)->file.is_direct ? -EAGAIN : raw_write(l, v, len, at);
}

static bool raw_plan(struct layer *l, enum block_op op, bool is_fua, uint64_t len, uint64_t at,
		     struct layer_plan *out)
{
	struct raw *d = raw_of(l);

	if (op == BLOCK_FLUSH && l->is_readonly)
		return false;
	*out = (struct layer_plan){ .file = &d->file, .sync = &d->sync, .at = at };
	return true;
}

static int raw_status(struct layer *l, uint64_t len, uint64_t at, enum layer_status *out, uint64_t *run)
{
	struct raw *d = raw_of(l);
	off_t data = lseek(d->file.fd, (off_t)at, SEEK_DATA);

	*run = len;
	if (data < 0 && errno == ENXIO) {
		*out = LAYER_ZERO;
		return 0;
	}
	if (data < 0 || (uint64_t)data < at + BLOCK_SECTOR) {
		*out = LAYER_DATA;
		off_t hole = data < 0 ? -1 : lseek(d->file.fd, (off_t)at, SEEK_HOLE);
		if (hole >= 0 && (uint64_t)hole < at + len)
			*run = MAX(ALIGN_UP((uint64_t)hole - at, BLOCK_SECTOR), BLOCK_SECTOR);
		return 0;
	}
	*out = LAYER_ZERO;
	*run = MIN(len, ALIGN_DOWN((uint64_t)data - at, BLOCK_SECTOR));
	return 0;
}

static int raw_seal(struct layer *l)
{
	int r = raw_flush(l);

	if (r == 0 && !l->is_readonly) {
		l->is_readonly = true;
		image_file_share(&raw_of(l)->file);
	}
	return r;
}

static void raw_close(struct layer *l)
{
	struct raw *d = raw_of(l);

	image_file_close(&d->file);
	io_sync_finish(&d->sync);
	free(d);
}

static const struct layer_ops raw_ops = {
	.name = "raw",
	.read = raw_read,
	.write = raw_write,
	.zero = raw_zero,
	.discard = raw_discard,
	.flush = raw_flush,
	.read_now = raw_read_now,
	.write_now = raw_write_now,
	.flush_now = raw_flush_now,
	.plan = raw_plan,
	.status = raw_status,
	.seal = raw_seal,
	.close = raw_close,
};

int raw_layer_open(struct layer **out, const struct layer_open *lo, struct error *err)
{
	struct raw *d = calloc(1, sizeof(*d));

	if (!d)
		return error_set(err, -ENOMEM, "out of memory");
	int r = lo->is_peek
			? image_file_peek(&d->file, lo->o->path, err)
			: image_file_open(&d->file, lo->o->path, lo->is_writer, lo->o->use_direct, err);
	if (r == 0)
		r = image_file_check_raw(&d->file, lo->o->path, err);
	if (r < 0) {
		image_file_close(&d->file);
		free(d);
		return r;
	}
	io_sync_init(&d->sync);
	d->layer = (struct layer){ .ops = &raw_ops,
				   .size_bytes = d->file.size_bytes,
				   .is_readonly = !lo->is_writer,
				   .dev = d->file.dev,
				   .ino = d->file.ino };
	*out = &d->layer;
	return 0;
}
