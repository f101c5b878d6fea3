/* SPDX-License-Identifier: Apache-2.0 */
/* Opening, closing and stacking qcow2 images; the table of operations. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/host.h"
#include "base/log.h"
#include "block/qcow2_int.h"

static int qcow2_status(struct layer *l, uint64_t len, uint64_t at, enum layer_status *out, uint64_t *run)
{
	struct qcow2 *q = qcow2_of(l);
	struct qcow2_run one;

	pthread_mutex_lock(&q->lock);
	int r = qcow2_lookup(q, at, len, false, &one);
	pthread_mutex_unlock(&q->lock);
	if (r < 0)
		return r;
	*out = one.kind == MAP_ABSENT ? LAYER_ABSENT
	       : one.kind == MAP_ZERO ? LAYER_ZERO
				      : LAYER_DATA;
	*run = one.len;
	return 0;
}

static void close_files(struct qcow2 *q)
{
	if (q->meta_fd >= 0 && q->meta_fd != q->file.fd)
		close(q->meta_fd);
	q->meta_fd = -1;
	image_file_close(&q->file);
}

static void qcow2_free(struct qcow2 *q)
{
	close_files(q);
	qcow2_cache_free(q);
	qcow2_set_free(&q->meta);
	qcow2_zcache_free(q->zcache);
	free(q->l1);
	free(q->reftable);
	free(q->pending);
	free(q->path);
	free(q->backing_name);
	free(q->backing_format);
	io_sync_finish(&q->sync);
	pthread_mutex_destroy(&q->lock);
	pthread_mutex_destroy(&q->flush_lock);
	pthread_cond_destroy(&q->changed);
	free(q);
}

static void qcow2_close(struct layer *l)
{
	struct qcow2 *q = qcow2_of(l);

	if (!l->is_readonly) {
		int r = qcow2_finish(q);
		if (r < 0)
			log_error("block", "disk image '%s' could not be closed in order: %s",
				  q->path, strerror(-r));
	}
	qcow2_free(q);
}

static int qcow2_seal(struct layer *l)
{
	struct qcow2 *q = qcow2_of(l);
	int r = l->is_readonly ? 0 : qcow2_finish(q);

	if (r == 0 && !l->is_readonly) {
		l->is_readonly = true;
		image_file_share(&q->file);
	}
	return r;
}

static const struct layer_ops qcow2_ops = {
	.name = "qcow2",
	.read = qcow2_read,
	.write = qcow2_write,
	.zero = qcow2_zero,
	.discard = qcow2_discard,
	.flush = qcow2_flush,
	.read_now = qcow2_read_now,
	.write_now = qcow2_write_now,
	.flush_now = qcow2_flush_now,
	.plan = qcow2_plan,
	.take_in = qcow2_take_in,
	.status = qcow2_status,
	.seal = qcow2_seal,
	.close = qcow2_close,
};

bool layer_is_qcow2(const struct layer *l)
{
	return l->ops == &qcow2_ops;
}

/* ---- the backing file ---- */

char *qcow2_backing_path(struct layer *l)
{
	const struct qcow2 *q = qcow2_of(l);
	const char *slash = strrchr(q->path, '/');
	char *out;

	if (!q->backing_name)
		return NULL;
	if (q->backing_name[0] == '/' || !slash)
		return strdup(q->backing_name);
	return asprintf(&out, "%.*s/%s", (int)(slash - q->path), q->path, q->backing_name) < 0 ? NULL
											       : out;
}

static bool is_allowed(const struct block_backing_rule *rule, const char *real)
{
	char one[PATH_MAX];

	if (!rule || rule->any)
		return rule;
	for (const char *const *p = rule->paths; p && *p; p++) {
		if (!host.realpath(*p, one))
			continue;
		size_t n = strlen(one);
		if (!strncmp(real, one, n) && (!real[n] || real[n] == '/' || one[n - 1] == '/'))
			return true;
	}
	return false;
}

static int open_backing(struct qcow2 *q, const struct layer_open *lo, struct layer **out,
			struct error *err)
{
	_cleanup_free_ char *path = qcow2_backing_path(&q->layer);
	const struct layer_chain chain = { lo->chain, q->layer.dev, q->layer.ino,
					   lo->chain ? lo->chain->depth + 1 : 1 };
	char real[PATH_MAX];

	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	/* What a colon means to others: "nbd:...", "json:...". */
	if (q->backing_name[strcspn(q->backing_name, ":/")] == ':')
		return error_set(err, -ENOTSUP,
				 "disk image '%s' stands on '%.200s', which is no plain file; "
				 "flatten it with qemu-img "
				 "convert",
				 q->path, q->backing_name);
	if (!q->backing_format)
		return error_set(err, -EINVAL,
				 "disk image '%s' doesn't say which format its backing file "
				 "'%.200s' has, and guessing it is not "
				 "safe; say it with qemu-img rebase -u -F FORMAT -b FILE",
				 q->path, q->backing_name);
	if (!lo->o->backing)
		return error_set(err, -EACCES,
				 "disk image '%s' stands on the file '%.200s', which was not "
				 "allowed; if that is right, allow it "
				 "(backing=FILE or the folder)",
				 q->path, q->backing_name);
	/* Where it is may not even be asked, in a confined process, or it is in a folder that nobody may enter. */
	bool is_found = host.realpath(path, real);

	if (!is_found && errno != EACCES)
		return error_set(err, -errno,
				 "the backing file '%.200s' of disk image '%s' can't be found: %s",
				 path, q->path, strerror(errno));
	if (!is_found || !is_allowed(lo->o->backing, real))
		return error_set(err, -EACCES,
				 "disk image '%s' stands on the file '%.200s', which is not among "
				 "those allowed; if that is "
				 "right, allow it (backing=FILE or the folder)",
				 q->path, is_found ? real : path);
	if (chain.depth >= LAYER_DEPTH_MAX)
		return error_set(err, -ELOOP,
				 "disk image '%s' stands on too many others; flatten one of them",
				 q->path);
	const struct block_open o = { .path = real,
				      .format = q->backing_format,
				      .is_readonly = true,
				      .use_direct = lo->o->use_direct,
				      .backing = lo->o->backing };
	const struct layer_open below = { .o = &o, .chain = &chain };
	return layer_open(out, &below, err);
}

int qcow2_open_backing(struct layer *l, const struct block_backing_rule *rule, struct layer **out,
		       struct error *err)
{
	struct qcow2 *q = qcow2_of(l);
	const struct block_open o = { .use_direct = q->file.is_direct, .backing = rule };
	const struct layer_open lo = { .o = &o };

	if (!q->backing_name)
		return error_set(err, -EINVAL, "disk image '%s' has no backing file", q->path);
	return open_backing(q, &lo, out, err);
}

bool qcow2_has_same_backing(struct layer *a, struct layer *b)
{
	const struct qcow2 *x = qcow2_of(a), *y = qcow2_of(b);

	return x->backing_name && y->backing_name && !strcmp(x->backing_name, y->backing_name) &&
	       !strcmp(x->backing_format, y->backing_format);
}

static int check_chain(const struct qcow2 *q, const struct layer_open *lo, struct error *err)
{
	for (const struct layer_chain *c = lo->chain; c; c = c->up)
		if (c->dev == q->layer.dev && c->ino == q->layer.ino)
			return error_set(err, -ELOOP, "disk image '%s' stands on itself; restore it from a backup",
					 q->path);
	return 0;
}

/* ---- open ---- */

static int open_files(struct qcow2 *q, const struct layer_open *lo, struct error *err)
{
	int r = lo->is_peek ? image_file_peek(&q->file, lo->o->path, err)
		: lo->fd    ? image_file_take(&q->file, lo->fd, lo->o->path, err)
			 : image_file_open(&q->file, lo->o->path, lo->is_writer, lo->o->use_direct, err);

	if (r < 0)
		return r;
	q->meta_fd = q->file.fd;
	if (lo->o->use_direct) {
		q->meta_fd = host.open(lo->o->path, (lo->is_writer ? O_RDWR : O_RDONLY) | O_CLOEXEC, 0);
		if (q->meta_fd < 0)
			return error_set(err, -errno, "cannot open disk image '%s': %s",
					 lo->o->path, strerror(errno));
	}
	q->layer = (struct layer){
		.ops = &qcow2_ops, .is_readonly = !lo->is_writer, .dev = q->file.dev, .ino = q->file.ino
	};
	return 0;
}

static void drop_tables(struct qcow2 *q)
{
	free(q->l1);
	free(q->reftable);
	q->l1 = q->reftable = NULL;
	qcow2_cache_free(q);
	qcow2_set_free(&q->meta);
	q->free_hint = 0;
	q->npending = q->npending_kept = 0;
	q->l1_lo = UINT32_MAX;
	q->l1_hi = 0;
	q->is_meta_dirty = false;
}

/* A machine was killed while lazy refcounts were on: count anew (bit 0 of the incompatible features). */
static int repair_dirty(struct qcow2 *q, struct error *err)
{
	struct image_check c = { 0 };
	int r = qcow2_cache_init(q);

	if (r == 0)
		r = qcow2_load_tables(q, false, err);
	if (r == 0)
		r = qcow2_check_open(q, true, &c, NULL, err);
	if (r == 0 && c.nerrors + c.nleaks > c.nfixed)
		r = error_set(err, -EIO,
			      "disk image '%s' was not closed in order and can't be repaired on "
			      "its own (%s); run 'viv image "
			      "check --repair'",
			      q->path, c.first_error);
	if (r == 0)
		log_info("block", "disk image '%s' was not closed in order: its counts were made anew",
			 q->path);
	drop_tables(q);
	/* The new counts may stand behind what was the end of the file. */
	struct stat st;
	if (r == 0 && !q->file.is_block_device && fstat(q->file.fd, &st) == 0)
		q->file.size_bytes = (uint64_t)st.st_size;
	return r;
}

static int prepare_writer(struct qcow2 *q, struct error *err)
{
	int r = 0;

	if (q->h.incompatible & QCOW2_I_CORRUPT)
		return error_set(err, -EROFS, "disk image '%s' is marked as damaged; run 'viv image check --repair', or open it read-only",
				 q->path);
	if (q->h.autoclear) {
		/* Bitmaps and whatever else would have to be kept up: readers see that they were not. */
		q->h.autoclear = 0;
		r = qcow2_write_fields(q);
		if (r < 0)
			return error_set(err, r, "cannot write to disk image '%s': %s", q->path,
					 strerror(-r));
	}
	return q->h.incompatible & QCOW2_I_DIRTY ? repair_dirty(q, err) : 0;
}

static int open_all(struct qcow2 *q, const struct layer_open *lo, struct error *err)
{
	int r = open_files(q, lo, err);

	if (r == 0)
		r = check_chain(q, lo, err);
	if (r == 0)
		r = qcow2_read_header(q, err);
	if (r == 0 && !q->layer.size_bytes)
		r = error_set(err, -EINVAL,
			      "disk image '%s' has a disk of size 0; give it a size first", q->path);
	if (r == 0 && lo->is_writer && !lo->for_repair)
		r = prepare_writer(q, err);
	if (r == 0 && (qcow2_cache_init(q) < 0 || qcow2_zcache_create(q) < 0))
		r = error_set(err, -ENOMEM, "out of memory");
	if (r == 0)
		r = qcow2_load_tables(q, lo->is_writer && !lo->for_repair, err);
	if (r == 0 && q->backing_name && !lo->no_backing)
		r = open_backing(q, lo, &q->layer.backing, err);
	return r;
}

int qcow2_layer_open(struct layer **out, const struct layer_open *lo, struct error *err)
{
	struct qcow2 *q = calloc(1, sizeof(*q));

	if (!q)
		return error_set(err, -ENOMEM, "out of memory");
	q->file.fd = q->meta_fd = -1;
	pthread_mutex_init(&q->lock, NULL);
	pthread_mutex_init(&q->flush_lock, NULL);
	pthread_cond_init(&q->changed, NULL);
	io_sync_init(&q->sync);
	q->path = strdup(lo->o->path);
	int r = q->path ? open_all(q, lo, err) : error_set(err, -ENOMEM, "out of memory");
	if (r < 0) {
		qcow2_free(q);
		return r;
	}
	*out = &q->layer;
	return 0;
}

int qcow2_layer_stack(struct layer *l, struct layer *backing, const char *path, struct error *err)
{
	struct stat st;

	if (!layer_is_qcow2(l))
		return error_set(err, -EINVAL,
				 "'%s' is not of the format qcow2: it can't be a layer", path);
	struct qcow2 *q = qcow2_of(l);
	_cleanup_free_ char *below = qcow2_backing_path(l);
	if (l->size_bytes != backing->size_bytes)
		return error_set(err, -EINVAL, "'%s' has another size than the disk", path);
	if (!below || host.fstatat(AT_FDCWD, below, &st, 0) < 0 || st.st_dev != backing->dev ||
	    st.st_ino != backing->ino)
		return error_set(err, -EINVAL,
				 "'%s' doesn't name the disk's present file as its backing file", path);
	for (uint32_t i = 0; i < q->h.l1_size; i++)
		if (q->l1[i])
			return error_set(err, -EINVAL, "'%s' is not empty: it can't be a new layer", path);
	l->backing = backing;
	return 0;
}

void qcow2_info(struct layer *l, struct image_info *out)
{
	const struct qcow2 *q = qcow2_of(l);

	out->version = q->h.version;
	out->refcount_bits = 1u << q->ref_order;
	out->nsnapshots = q->h.nsnapshots;
	out->cluster_bytes = q->cluster_size;
	out->has_extended_l2 = q->has_ext;
	out->has_lazy_refcounts = q->is_lazy;
	out->is_dirty = q->h.incompatible & QCOW2_I_DIRTY;
	out->is_corrupt = q->h.incompatible & QCOW2_I_CORRUPT;
	out->compression = q->h.compression ? IMAGE_ZSTD : IMAGE_ZLIB;
	out->backing_path = q->backing_name;
	out->backing_format = q->backing_format;
	out->size_bytes = l->size_bytes;
	out->file_bytes = q->file.size_bytes;
}
