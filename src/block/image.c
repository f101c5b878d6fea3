/* SPDX-License-Identifier: Apache-2.0 */
/* Work on closed images: make, look at, check, resize, and the names of backing files. */
#include "block/image.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/host.h"
#include "block/image_int.h"

int image_open_layer(struct layer **out, const struct block_open *o, bool is_writer,
		     bool no_backing, struct error *err)
{
	const struct layer_open lo = { .o = o, .is_writer = is_writer, .no_backing = no_backing };

	return layer_open(out, &lo, err);
}

int image_close_layer(struct layer *l, int r, const char *path, struct error *err)
{
	int s = r == 0 && !l->is_readonly ? l->ops->seal(l) : 0;

	layer_close(l);
	if (r == 0 && s < 0)
		return error_set(err, s, "cannot write disk image '%s' to its end: %s", path,
				 strerror(-s));
	return r;
}

#define REPAIR_ROUNDS 8

bool image_tell(const struct image_progress *p, uint64_t done, uint64_t total)
{
	return p && p->fn && p->fn(p->arg, done, total);
}

int image_sync_folder(const char *path)
{
	char dir[PATH_MAX];
	const char *slash = strrchr(path, '/');
	int n = slash ? snprintf(dir, sizeof(dir), "%.*s", (int)MAX(slash - path, 1), path)
		      : snprintf(dir, sizeof(dir), ".");

	if (n < 0 || (size_t)n >= sizeof(dir))
		return -ENAMETOOLONG;
	int fd = host.open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* EINVAL: a file system whose folders need none, or can't. */
	int r = host.fsync(fd) < 0 && errno != EINVAL ? -errno : 0;
	close(fd);
	return r;
}

static bool is_qcow2(const char *format)
{
	return format && !strcmp(format, "qcow2");
}

static int only_qcow2(const char *path, const char *format, struct error *err)
{
	return is_qcow2(format)
		       ? 0
		       : error_set(err, -EINVAL,
				   "disk image '%s' has to be of the format qcow2 for this", path);
}

/* ---- create ---- */

static int backing_size(const char *path, const struct image_create *c, uint64_t *out, struct error *err)
{
	const char *slash = strrchr(path, '/');
	char *joined = NULL;
	struct layer *l;

	if (c->backing_path[0] != '/' && slash &&
	    asprintf(&joined, "%.*s/%s", (int)(slash - path), path, c->backing_path) < 0)
		return error_set(err, -ENOMEM, "out of memory");
	const struct block_open o = { .path = joined ?: c->backing_path,
				      .format = c->backing_format,
				      .is_readonly = true };
	int r = image_open_layer(&l, &o, false, true, err);
	if (r == 0) {
		*out = l->size_bytes;
		layer_close(l);
	}
	free(joined);
	return r;
}

static int fill(int fd, const char *path, const struct image_create *c, struct error *err)
{
	if (is_qcow2(c->format))
		return qcow2_create(fd, path, c, err);
	if (host.ftruncate(fd, (off_t)c->size_bytes) < 0)
		return error_set(err, -errno, "cannot give disk image '%s' its size: %s", path,
				 strerror(errno));
	return 0;
}

int image_create(const char *path, const struct image_create *c, struct error *err)
{
	struct image_create full = *c;

	if (!is_qcow2(c->format) && strcmp(c->format ?: "", "raw"))
		return error_set(err, -EINVAL, "no format '%s'; this version makes: raw, qcow2",
				 c->format);
	if (!is_qcow2(c->format) && c->backing_path)
		return error_set(err, -EINVAL, "a raw image has no backing file; take the format qcow2");
	if (c->backing_path && !c->backing_format)
		return error_set(err, -EINVAL,
				 "'%s': say the format of the backing file, it is never guessed", path);
	if (!c->size_bytes && c->backing_path) {
		int r = backing_size(path, c, &full.size_bytes, err);
		if (r < 0)
			return r;
	}
	if (full.size_bytes > INT64_MAX - MIB || !full.size_bytes)
		return error_set(err, -EINVAL,
				 "'%s': the size of the disk has to be from 512 bytes to 8 EiB", path);
	full.size_bytes = ALIGN_UP(full.size_bytes, BLOCK_SECTOR);
	/* Emptied only under the lock, by image_file_open(): somebody may be using it. */
	int fd = host.open(
		path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | (c->may_replace ? 0 : O_EXCL), 0644);
	if (fd < 0)
		return error_set(
			err, -errno, "cannot make disk image '%s': %s%s", path, strerror(errno),
			errno == EEXIST ? "; remove it first, or say that it may be replaced" : "");
	close(fd);
	struct image_file f;
	int r = image_file_open(&f, path, true, false, err);
	if (r < 0)
		return r;
	if (!f.is_block_device && host.ftruncate(f.fd, 0) < 0)
		r = error_set(err, -errno, "cannot empty '%s': %s", path, strerror(errno));
	if (r == 0)
		r = fill(f.fd, path, &full, err);
	/* Whoever writes its name down somewhere counts on it. */
	if (r == 0 && !c->is_unsettled && (host.fsync(f.fd) < 0 || (r = image_sync_folder(path)) < 0))
		r = error_set(err, r < 0 ? r : -errno, "cannot make disk image '%s' stable: %s",
			      path, strerror(r < 0 ? -r : errno));
	image_file_close(&f);
	if (r < 0 && !f.is_block_device)
		host.unlinkat(AT_FDCWD, path, 0);
	return r;
}

/* ---- look ---- */

int image_info(const char *path, const char *format, struct image_info *out, struct error *err)
{
	const struct block_open o = { .path = path, .format = format, .is_readonly = true };
	struct image_info i = { .format = is_qcow2(format) ? "qcow2" : "raw" };
	struct layer *l;
	struct stat st;
	/* It may be looked at while a machine runs on it. */
	const struct layer_open lo = { .o = &o, .no_backing = true, .is_peek = true };
	int r = layer_open(&l, &lo, err);

	if (r < 0)
		return r;
	i.size_bytes = i.file_bytes = l->size_bytes;
	if (layer_is_qcow2(l))
		qcow2_info(l, &i);
	if (host.fstatat(AT_FDCWD, path, &st, 0) == 0)
		i.allocated_bytes = (uint64_t)st.st_blocks * 512;
	i.backing_path = i.backing_path ? strdup(i.backing_path) : NULL;
	i.backing_format = i.backing_format ? strdup(i.backing_format) : NULL;
	layer_close(l);
	*out = i;
	return 0;
}

void image_info_free(struct image_info *i)
{
	free(i->backing_path);
	free(i->backing_format);
	*i = (struct image_info){ 0 };
}

static int check_once(const char *path, const char *format, bool repair, struct image_check *out,
		      const struct image_progress *p, struct error *err)
{
	const struct block_open o = { .path = path, .format = format, .is_readonly = !repair };
	const struct layer_open lo = { .o = &o, .is_writer = repair, .no_backing = true, .for_repair = true };
	struct layer *l;
	int r = layer_open(&l, &lo, err);

	if (r < 0)
		return r;
	if (layer_is_qcow2(l)) {
		r = qcow2_check(l, repair, out, p, err);
		l->is_readonly = true; /* the check has written what there was to write */
	} else {
		*out = (struct image_check){ .end_bytes = l->size_bytes };
	}
	layer_close(l);
	return r;
}

int image_check(const char *path, const char *format, bool repair, struct image_check *out,
		const struct image_progress *p, struct error *err)
{
	struct image_check first, last;
	int r = check_once(path, format, repair, &first, p, err);

	/* Where tables lie on each other, correcting one damages the other: again, until nothing is left to do. */
	last = first;
	for (unsigned i = 0; r == 0 && repair && last.nerrors + last.nleaks && i < REPAIR_ROUNDS; i++)
		r = check_once(path, format, true, &last, p, err);
	if (r < 0)
		return r;
	if (repair)
		first.nfixed = first.nerrors + first.nleaks -
			       MIN(first.nerrors + first.nleaks, last.nerrors + last.nleaks);
	*out = first;
	return 0;
}

/* ---- resize ---- */

static int resize_raw(const char *path, uint64_t size, struct error *err)
{
	struct image_file f;
	int r = image_file_open(&f, path, true, false, err);

	if (r < 0)
		return r;
	if (f.is_block_device)
		r = error_set(err, -EINVAL,
			      "'%s' is a block device, which has its size from elsewhere", path);
	else if (host.ftruncate(f.fd, (off_t)size) < 0 || host.fsync(f.fd) < 0)
		r = error_set(err, -errno, "cannot resize disk image '%s': %s", path, strerror(errno));
	image_file_close(&f);
	return r;
}

int image_resize(const struct block_open *o, uint64_t size_bytes, bool may_shrink, struct error *err)
{
	struct layer *l;
	int r = image_open_layer(&l, o, true, false, err);

	if (r < 0)
		return r;
	size_bytes = ALIGN_UP(size_bytes, BLOCK_SECTOR);
	if (!size_bytes || size_bytes > INT64_MAX - MIB)
		r = error_set(err, -EINVAL, "the size of the disk has to be from 512 bytes to 8 EiB");
	else if (size_bytes < l->size_bytes && !may_shrink)
		r = error_set(err, -EINVAL,
			      "disk image '%s' would lose the end of its disk; shrink what is on "
			      "it first, then say that this is "
			      "meant (--shrink)",
			      o->path);
	else if (layer_is_qcow2(l))
		r = qcow2_resize(l, size_bytes, l->backing ? l->backing->size_bytes : 0, err);
	bool is_raw = !layer_is_qcow2(l);
	r = image_close_layer(l, r, o->path, err);
	return r == 0 && is_raw ? resize_raw(o->path, size_bytes, err) : r;
}

int image_set_backing(const char *path, const char *backing_path, const char *backing_format,
		      struct error *err)
{
	const struct block_open o = { .path = path, .format = "qcow2" };
	struct layer *l;

	if (backing_path && !backing_format)
		return error_set(err, -EINVAL,
				 "'%s': say the format of the backing file, it is never guessed", path);
	int r = image_open_layer(&l, &o, true, true, err);
	if (r < 0)
		return r;
	r = qcow2_set_backing(l, backing_path, backing_format, err);
	return image_close_layer(l, r, path, err);
}

int image_only_qcow2(const struct block_open *o, struct error *err)
{
	return only_qcow2(o->path, o->format, err);
}
