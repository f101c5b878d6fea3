/* SPDX-License-Identifier: Apache-2.0 */
/* Moving content between images: convert, compact, commit, rebase. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/host.h"
#include "block/image_int.h"

#define COPY_BYTES (2 * MIB)

struct copy {
	struct layer *from;	 /* status and content from here */
	const struct layer *end; /* looking through as far as this (exclusive) */
	bool is_own_only;	 /* not looking through at all */
	struct layer *to;
	uint64_t size_bytes;
	bool skips_zeroes; /* the target reads as zeroes where nothing is written */
	bool keeps_own;	   /* only where the target itself holds nothing */
	uint64_t pack;	   /* compressed clusters of this size; 0: plain */
	uint8_t *buf;
	const struct image_progress *progress;
	const char *what;
};

static int read_buf(struct layer *l, void *buf, uint64_t len, uint64_t at)
{
	struct iovec iov = { buf, len };

	return layer_read_through(l, (struct io_vec){ &iov, 1, 0 }, len, at);
}

static int write_buf(struct layer *l, void *buf, uint64_t len, uint64_t at)
{
	struct iovec iov = { buf, len };

	return l->ops->write(l, (struct io_vec){ &iov, 1, 0 }, len, at);
}

/* Pieces of 64 KiB, so that runs of zeroes in the data become holes. */
static int copy_data(const struct copy *c, uint64_t len, uint64_t at)
{
	int r = read_buf(c->from, c->buf, len, at);

	for (uint64_t done = 0, n; r == 0 && done < len; done += n) {
		uint64_t unit = 64 * KIB;
		n = MIN(len - done, unit - ((at + done) & (unit - 1)));
		if (c->skips_zeroes && bytes_are_zero(c->buf + done, n))
			continue;
		while (done + n < len &&
		       !(c->skips_zeroes && bytes_are_zero(c->buf + done + n, MIN(unit, len - done - n))))
			n += MIN(unit, len - done - n);
		r = write_buf(c->to, c->buf + done, n, at + done);
	}
	return r;
}

static int copy_packed(const struct copy *c, uint64_t at)
{
	uint64_t len = MIN(c->pack, c->size_bytes - at);
	int r = read_buf(c->from, c->buf, len, at);

	memset(c->buf + len, 0, c->pack - len);
	return r < 0 || bytes_are_zero(c->buf, len) ? r : qcow2_write_compressed(c->to, c->buf, at);
}

static int copy_run(const struct copy *c, enum layer_status st, uint64_t *len, uint64_t at)
{
	if (st == LAYER_ABSENT || (st == LAYER_ZERO && c->skips_zeroes)) {
		/* A packed cluster starts at its border, also after a hole inside of it. */
		if (c->pack && (at + *len) % c->pack && at + *len < c->size_bytes) {
			uint64_t start = ALIGN_DOWN(at + *len, c->pack);
			*len = start > at ? start - at : c->pack;
			return start > at ? 0 : copy_packed(c, at);
		}
		return 0;
	}
	if (c->pack) {
		*len = MIN(c->pack, c->size_bytes - at);
		return copy_packed(c, at);
	}
	*len = MIN(*len, COPY_BYTES);
	return st == LAYER_ZERO ? c->to->ops->zero(c->to, *len, at, true) : copy_data(c, *len, at);
}

static int copy_all(struct copy *c, struct error *err)
{
	int r = 0;

	c->buf = malloc(COPY_BYTES);
	if (!c->buf)
		return error_set(err, -ENOMEM, "out of memory");
	for (uint64_t at = 0, len; r == 0 && at < c->size_bytes; at += len) {
		enum layer_status st;
		len = c->size_bytes - at;
		if (image_tell(c->progress, at, c->size_bytes))
			r = -ECANCELED;
		if (r == 0 && c->keeps_own) {
			r = c->to->ops->status(c->to, len, at, &st, &len);
			if (r == 0 && st != LAYER_ABSENT)
				continue;
		}
		if (r == 0)
			r = c->is_own_only ? c->from->ops->status(c->from, len, at, &st, &len)
					   : layer_status_through(c->from, c->end, len, at, &st, &len);
		if (r == 0)
			r = copy_run(c, st, &len, at);
	}
	free(c->buf);
	if (r == 0)
		image_tell(c->progress, c->size_bytes, c->size_bytes);
	if (r == -ECANCELED)
		return error_set(err, r, "canceled");
	return r < 0 ? error_set(err, r, "cannot %s: %s", c->what, strerror(-r)) : 0;
}

/* ---- convert, compact ---- */

/* @l's content into a new file at @to, by way of a temporary name. */
static int copy_to_file(struct copy *c, const char *to, const struct image_create *as,
			bool compress, const struct block_backing_rule *rule, struct error *err)
{
	char part[PATH_MAX];
	struct image_create full = *as;
	int n = snprintf(part, sizeof(part), "%s.%d.part", to, (int)getpid());

	if (n < 0 || (size_t)n >= sizeof(part))
		return error_set(err, -ENAMETOOLONG, "'%s' is too long", to);
	if (!as->may_replace && host.access(to, F_OK) == 0)
		return error_set(err, -EEXIST,
				 "'%s' exists; remove it first, or say that it may be replaced", to);
	full.size_bytes = c->size_bytes;
	full.may_replace = false;
	int r = image_create(part, &full, err);
	if (r < 0)
		return r;
	const struct block_open o = { .path = part, .format = as->format, .backing = rule };
	r = image_open_layer(&c->to, &o, true, false, err);
	if (r == 0) {
		c->pack = compress ? (as->cluster_bytes ?: 64 * KIB) : 0;
		r = copy_all(c, err);
		r = image_close_layer(c->to, r, part, err);
	}
	if (r == 0 &&
	    (host.renameat(AT_FDCWD, part, AT_FDCWD, to) < 0 || (r = image_sync_folder(to)) < 0))
		r = error_set(err, r < 0 ? r : -errno, "cannot put '%s' in place: %s", to,
			      strerror(r < 0 ? -r : errno));
	if (r < 0)
		host.unlinkat(AT_FDCWD, part, 0);
	return r;
}

int image_convert(const struct block_open *from, const char *to, const struct image_create *c,
		  bool compress, const struct image_progress *p, struct error *err)
{
	struct copy copy = { .skips_zeroes = true, .progress = p, .what = "convert the image" };

	if (compress && strcmp(c->format ?: "", "qcow2"))
		return error_set(err, -EINVAL, "only the format qcow2 has compression");
	if (c->backing_path)
		return error_set(err, -EINVAL, "the copy stands alone: it has no backing file");
	int r = image_open_layer(&copy.from, from, false, false, err);
	if (r < 0)
		return r;
	copy.size_bytes = copy.from->size_bytes;
	r = copy_to_file(&copy, to, c, compress, NULL, err);
	layer_close(copy.from);
	return r;
}

int image_compact(const struct block_open *o, const struct image_progress *p, struct error *err)
{
	struct copy copy = { .progress = p, .what = "compact the image" };
	struct image_info i = { 0 };
	int r = image_only_qcow2(o, err);

	/* As a writer: nobody else may hold it while it is exchanged. */
	if (r == 0)
		r = image_open_layer(&copy.from, o, true, false, err);
	if (r < 0)
		return r;
	qcow2_info(copy.from, &i);
	struct image_create as = { .format = "qcow2",
				   .backing_path = i.backing_path,
				   .backing_format = i.backing_format,
				   .cluster_bytes = i.cluster_bytes,
				   .refcount_bits = i.refcount_bits,
				   .is_v2 = i.version == 2,
				   .has_extended_l2 = i.has_extended_l2,
				   .has_lazy_refcounts = i.has_lazy_refcounts,
				   .compression = i.compression,
				   .may_replace = true };
	copy.size_bytes = copy.from->size_bytes;
	copy.is_own_only = true;
	copy.skips_zeroes = !copy.from->backing;
	if (i.nsnapshots)
		r = error_set(err, -EINVAL, "disk image '%s' has internal snapshots, which would be lost; delete them first",
			      o->path);
	else
		r = copy_to_file(&copy, o->path, &as, false, o->backing, err);
	layer_close(copy.from);
	return r;
}

/* ---- commit ---- */

static int open_committed(const struct block_open *o, const char *path, const char *format,
			  struct layer **out, struct error *err)
{
	const struct block_open below = { .path = path, .format = format, .backing = o->backing };

	return image_open_layer(out, &below, true, false, err);
}

int image_commit(const struct block_open *o, const struct image_progress *p, struct error *err)
{
	struct copy c = { .progress = p, .what = "write into the backing file", .is_own_only = true };
	struct image_info i = { 0 };
	int r = image_only_qcow2(o, err);

	/* First with its backing files, so that the rule has its say; then alone, as the backing file is to be written. */
	if (r == 0)
		r = image_open_layer(&c.from, o, false, false, err);
	if (r < 0)
		return r;
	bool has_backing = c.from->backing;
	layer_close(c.from);
	if (!has_backing)
		return error_set(err, -EINVAL, "disk image '%s' has no backing file to commit to",
				 o->path);
	r = image_open_layer(&c.from, o, false, true, err);
	if (r < 0)
		return r;
	qcow2_info(c.from, &i);
	_cleanup_free_ char *path = qcow2_backing_path(c.from);
	r = path ? open_committed(o, path, i.backing_format, &c.to, err)
		 : error_set(err, -ENOMEM, "out of memory");
	if (r == 0) {
		c.size_bytes = c.from->size_bytes;
		if (c.to->size_bytes < c.size_bytes)
			r = error_set(err, -EINVAL,
				      "the backing file '%s' is smaller than '%s'; resize it first",
				      path, o->path);
		else
			r = copy_all(&c, err);
		r = image_close_layer(c.to, r, path, err);
	}
	layer_close(c.from);
	return r;
}

/* ---- rebase ---- */

/* The layer under @top that is the file @path; NULL: none. */
static struct layer *find_below(struct layer *top, const char *path)
{
	struct stat st;

	if (host.fstatat(AT_FDCWD, path, &st, 0) < 0)
		return NULL;
	for (struct layer *l = top->backing; l; l = l->backing)
		if (l->dev == st.st_dev && l->ino == st.st_ino)
			return l;
	return NULL;
}

/* Where the top holds nothing and the two bases differ, the old content is written. */
static int copy_differences(struct layer *top, struct layer *base, const struct image_progress *p,
			    struct error *err)
{
	uint8_t *a = malloc(COPY_BYTES), *b = malloc(COPY_BYTES);
	int r = a && b ? 0 : -ENOMEM;

	for (uint64_t at = 0, len; r == 0 && at < top->size_bytes; at += len) {
		enum layer_status st;
		len = top->size_bytes - at;
		r = image_tell(p, at, top->size_bytes) ? -ECANCELED
						       : top->ops->status(top, len, at, &st, &len);
		if (r < 0 || st != LAYER_ABSENT)
			continue;
		len = MIN(len, COPY_BYTES);
		r = read_buf(top->backing, a, len, at);
		if (r == 0)
			r = read_buf(base, b, len, at);
		for (uint64_t k = 0, n; r == 0 && k < len; k += n) {
			n = MIN(len - k, 4 * KIB);
			if (memcmp(a + k, b + k, n) != 0)
				r = write_buf(top, a + k, n, at + k);
		}
	}
	free(a);
	free(b);
	return r < 0 ? error_set(err, r, "cannot rebase the image: %s", strerror(-r)) : 0;
}

static char *joined_path(const char *image, const char *backing)
{
	const char *slash = strrchr(image, '/');
	char *out;

	if (backing[0] == '/' || !slash)
		return strdup(backing);
	return asprintf(&out, "%.*s/%s", (int)(slash - image), image, backing) < 0 ? NULL : out;
}

static int copy_up(const struct block_open *o, struct layer *top, const char *backing_path,
		   const char *backing_format, const struct image_progress *p, struct error *err)
{
	struct copy c = { .from = top->backing,
			  .to = top,
			  .size_bytes = top->size_bytes,
			  .keeps_own = true,
			  .progress = p,
			  .what = "rebase the image" };

	if (!backing_path) {
		c.skips_zeroes = true; /* nothing shows through any more */
		return top->backing ? copy_all(&c, err) : 0;
	}
	_cleanup_free_ char *path = joined_path(o->path, backing_path);
	if (!path)
		return error_set(err, -ENOMEM, "out of memory");
	c.end = find_below(top, path);
	if (c.end)
		return c.end == top->backing ? 0 : copy_all(&c, err);
	const struct block_open bo = {
		.path = path, .format = backing_format, .is_readonly = true, .backing = o->backing
	};
	struct layer *base;
	int r = image_open_layer(&base, &bo, false, false, err);
	if (r < 0)
		return r;
	r = copy_differences(top, base, p, err);
	layer_close(base);
	return r;
}

int image_rebase(const struct block_open *o, const char *backing_path, const char *backing_format,
		 const struct image_progress *p, struct error *err)
{
	struct layer *top;
	int r = image_only_qcow2(o, err);

	if (r == 0 && backing_path && !backing_format)
		r = error_set(err, -EINVAL,
			      "'%s': say the format of the backing file, it is never guessed", o->path);
	if (r == 0)
		r = image_open_layer(&top, o, true, false, err);
	if (r < 0)
		return r;
	r = copy_up(o, top, backing_path, backing_format, p, err);
	/* What was copied is stable before the old backing file is let go. */
	if (r == 0) {
		r = top->ops->flush(top);
		if (r < 0)
			error_set(err, r, "cannot make disk image '%s' stable: %s", o->path,
				  strerror(-r));
	}
	if (r == 0)
		r = qcow2_set_backing(top, backing_path, backing_format, err);
	return image_close_layer(top, r, o->path, err);
}
