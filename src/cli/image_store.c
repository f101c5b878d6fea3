/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/image.h"
#include "cli/store.h"
#include "ctl/paths.h"

#define IMAGE_JSON_MAX (64 * KIB)
#define COPY_CHUNK     (8 * MIB)

void image_free(struct image *im)
{
	free(im->kernel);
	free(im->initrd);
	free(im->disk);
	free(im->append);
	free(im->disk_format);
	free(im->title);
	memset(im, 0, sizeof(*im));
}

static int get_string(json_t *json, const char *key, const char *dflt, char **out, struct error *err)
{
	json_t *v = json_object_get(json, key);

	if (v && !json_is_string(v))
		return error_set(err, -EINVAL, "\"%s\" is not a string", key);
	return vmconfig_set(out, v ? json_string_value(v) : dflt, err);
}

/* Files of an image lie beside its image.json; a machine is told the blob, which stays what it is. */
static int get_file(json_t *json, const char *key, const char *image, char **out, struct error *err)
{
	_cleanup_free_ char *name = NULL;
	int r = get_string(json, key, NULL, &name, err);

	if (r < 0 || !name)
		return r;
	if (!name[0] || name[0] == '.' || strchr(name, '/'))
		return error_set(err, -EINVAL,
				 "\"%s\" must name a file of the image's own directory", key);
	*out = store_blob(image, name);
	if (!*out)
		*out = paths_image(image, name, err);
	return *out ? 0 : -ENOMEM;
}

static int from_json(struct image *im, const char *name, json_t *json, struct error *err)
{
	json_t *format = json_object_get(json, "format");

	if (!json_is_object(json) || !json_is_integer(format) || json_integer_value(format) != 1)
		return error_set(err, -EINVAL, "its format is not 1, the one this version knows");
	int r = get_file(json, "kernel", name, &im->kernel, err);

	if (r == 0)
		r = get_file(json, "initrd", name, &im->initrd, err);
	if (r == 0)
		r = get_file(json, "disk", name, &im->disk, err);
	if (r == 0)
		r = get_string(json, "append", "", &im->append, err);
	if (r == 0)
		r = get_string(json, "disk_format", "raw", &im->disk_format, err);
	if (r == 0)
		r = get_string(json, "title", name, &im->title, err);
	im->has_agent = json_is_true(json_object_get(json, "agent"));
	const char *console = json_string_value(json_object_get(json, "console"));

	im->uses_virtio_console = console && strcmp(console, "virtio") == 0;
	return r;
}

int image_load(struct image *im, const char *name, struct error *err)
{
	*im = (struct image){ 0 };
	int r = paths_check_name("an image", name, err);

	if (r < 0)
		return r;
	_cleanup_free_ char *path = paths_image(name, "image.json", err);
	_cleanup_free_ char *text = NULL;
	json_error_t je;
	size_t len;

	if (!path)
		return -ENOMEM;
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return error_set(err, -ENOENT,
				 "there is no image \"%s\"; viv image list shows those there are, "
				 "viv image build %s makes it if it is a known one",
				 name, name);
	r = paths_read_file(path, IMAGE_JSON_MAX, &text, &len, err);
	if (r < 0)
		return r;
	json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);

	if (!json)
		return error_set(err, -EINVAL, "%s, line %d: %s", path, je.line, je.text);
	r = from_json(im, name, json, err);
	json_decref(json);
	if (r < 0)
		error_prefix(err, "%s", path);
	return r;
}

/* ---- copying ---- */

/* One piece of data at @off; 0 or -errno. */
static int copy_range(int in, int out, off_t off, off_t end, off_t size, struct progress *p)
{
	_cleanup_free_ char *buf = NULL;

	while (off < end) {
		off_t in_off = off, out_off = off;
		ssize_t n = buf ? -1
				: copy_file_range(in, &in_off, out, &out_off,
						  (size_t)MIN(end - off, (off_t)COPY_CHUNK), 0);

		if (n <= 0) { /* other file systems, old kernels: by hand */
			if (!buf && !(buf = malloc(COPY_CHUNK)))
				return -ENOMEM;
			n = pread(in, buf, (size_t)MIN(end - off, (off_t)COPY_CHUNK), off);
			if (n > 0)
				n = pwrite(out, buf, (size_t)n, off);
			if (n < 0 && errno != EINTR)
				return -errno;
			if (n == 0)
				return -EIO;
			n = MAX(n, (ssize_t)0);
		}
		off += n;
		progress_tick(p, (int)(off * 1000 / size));
	}
	return 0;
}

static int copy_sparse(int in, int out, off_t size, struct progress *p)
{
	off_t data = 0, hole;
	int r = ftruncate(out, size) < 0 ? -errno : 0;

	while (r == 0 && data < size) {
		data = lseek(in, data, SEEK_DATA);
		if (data < 0)
			return errno == ENXIO ? 0 : -errno; /* only a hole is left */
		hole = lseek(in, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		r = copy_range(in, out, data, hole, size, p);
		data = hole;
	}
	return r;
}

int image_copy_disk(const char *from, const char *to, struct error *err)
{
	struct progress p;
	struct stat st;
	_cleanup_close_ int in = open(from, O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (in < 0 || fstat(in, &st) < 0)
		return error_set(err, -errno, "cannot read %s: %s", from, strerror(errno));
	if (out < 0)
		return error_set(err, -errno, "cannot write %s: %s", to, strerror(errno));
	if (ioctl(out, FICLONE, in) == 0)
		return 0;
	progress_start(&p, "copying the image's disk");
	int r = copy_sparse(in, out, st.st_size, &p);

	if (r == 0 && fsync(out) < 0)
		r = -errno;
	progress_end(&p);
	if (r < 0) {
		unlink(to);
		return error_set(err, r, "cannot copy %s to %s: %s", from, to, strerror(-r));
	}
	return 0;
}
