/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "cli/cli.h"
#include "ctl/paths.h"

#define CHUNK	    (1 * MIB)
#define LONG_BYTES  (off_t)(256 * MIB) /* whose reading a person may have to wait for */
#define DIGESTS_MAX 4096

static int lock_file(const char *file, int how, struct error *err)
{
	_cleanup_free_ char *dir = paths_data("images", err);
	int r = dir ? paths_make(dir, err) : -ENOMEM;
	_cleanup_free_ char *path = r == 0 ? paths_format(err, "%s/%s", dir, file) : NULL;

	if (!path)
		return r < 0 ? r : -ENOMEM;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	while (flock(fd, how) < 0) {
		r = -errno;
		if (r == -EINTR)
			continue;
		close(fd);
		return error_set(err, r, "cannot lock %s: %s", path, strerror(-r));
	}
	return fd;
}

int store_lock(bool is_exclusive, struct error *err)
{
	return lock_file(".lock", is_exclusive ? LOCK_EX : LOCK_SH, err);
}

int store_lock_builder(const char *image, struct error *err)
{
	_cleanup_free_ char *file = paths_format(err, ".%s.lock", image);

	return file ? lock_file(file, LOCK_EX, err) : -ENOMEM;
}

/* ---- digests ---- */

static void put_hex(char hex[STORE_HEX + 1], struct sha256_ctx *sha)
{
	uint8_t digest[SHA256_DIGEST_SIZE];

	sha256_digest(sha, sizeof(digest), digest);
	for (unsigned i = 0; i < sizeof(digest); i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

/* Of @len bytes from @off on; a hole is zeros that are not read. */
static int hash_range(struct sha256_ctx *sha, int fd, uint8_t *buf, off_t off, off_t len, bool is_hole)
{
	while (len > 0) {
		size_t want = (size_t)MIN(len, (off_t)CHUNK);
		ssize_t n = is_hole ? (ssize_t)want : pread(fd, buf, want, off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO; /* it became shorter */
		sha256_update(sha, (size_t)n, buf);
		off += n;
		len -= n;
	}
	return 0;
}

static int hash_file(struct sha256_ctx *sha, int fd, off_t size)
{
	_cleanup_free_ uint8_t *buf = malloc(CHUNK), *zeros = calloc(1, CHUNK);
	struct progress p;
	int r = buf && zeros ? 0 : -ENOMEM;

	bool is_long = size >= LONG_BYTES;

	if (is_long)
		progress_start(&p, "reading");
	for (off_t off = 0; r == 0 && off < size;) {
		off_t data = lseek(fd, off, SEEK_DATA);

		if (data < 0 && errno != ENXIO)
			data = off; /* the file system tells of no holes */
		if (data < 0)
			data = size;
		r = hash_range(sha, fd, zeros, off, data - off, true);
		off_t hole = data < size ? lseek(fd, data, SEEK_HOLE) : size;

		off = data;
		/* In pieces, so that progress is seen. */
		for (hole = hole < 0 ? size : MIN(hole, size); r == 0 && off < hole;) {
			off_t n = MIN(hole - off, (off_t)(16 * CHUNK));

			r = hash_range(sha, fd, buf, off, n, false);
			off += n;
			if (is_long)
				progress_tick(&p, (int)(off * 1000 / size));
		}
	}
	if (is_long)
		progress_end(&p);
	return r;
}

int store_hash(const char *path, char hex[STORE_HEX + 1], struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct sha256_ctx sha;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot read %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s is no file", path);
	sha256_init(&sha);
	int r = hash_file(&sha, fd, st.st_size);

	if (r < 0)
		return error_set(err, r, "cannot read %s: %s", path, strerror(-r));
	put_hex(hex, &sha);
	return 0;
}

/* ---- the record ---- */

static bool is_hex(const char *text)
{
	return strspn(text, "0123456789abcdef") >= STORE_HEX;
}

static bool is_file_name(const char *name)
{
	return *name && *name != '.' && !strchr(name, '/') && strcmp(name, STORE_DIGESTS) != 0;
}

/* "HEX  NAME\n" */
static int parse_line(struct store_digests *d, const char *line)
{
	struct store_file *f = &d->files[d->n];
	const char *name = line + STORE_HEX + 2;

	if (d->n == STORE_FILES_MAX || strlen(line) <= STORE_HEX + 2 || !is_hex(line) ||
	    memcmp(line + STORE_HEX, "  ", 2) != 0 || strlen(name) >= sizeof(f->name) ||
	    !is_file_name(name) || (d->n && strcmp(d->files[d->n - 1].name, name) >= 0))
		return -EINVAL;
	memcpy(f->hex, line, STORE_HEX);
	f->hex[STORE_HEX] = 0;
	strcpy(f->name, name);
	d->n++;
	return 0;
}

int store_parse(const char *text, size_t len, struct store_digests *out, struct error *err)
{
	struct store_digests d = { .n = 0 };
	struct sha256_ctx sha;
	char line[STORE_HEX + 2 + sizeof(d.files[0].name) + 1];

	sha256_init(&sha);
	for (const char *at = text; at < text + len;) {
		const char *end = memchr(at, '\n', (size_t)(text + len - at));
		size_t n = end ? (size_t)(end - at) : 0;

		if (!end || n >= sizeof(line) || memchr(at, 0, n))
			return error_set(err, -EINVAL, "it is no list of digests");
		memcpy(line, at, n);
		line[n] = 0;
		if (parse_line(&d, line) < 0)
			return error_set(err, -EINVAL, "it is no list of digests");
		/* What it is called is no content. */
		if (strcmp(d.files[d.n - 1].name, "image.json") != 0)
			sha256_update(&sha, n + 1, (const uint8_t *)at);
		at = end + 1;
	}
	if (!d.n)
		return error_set(err, -EINVAL, "it is empty");
	put_hex(d.image, &sha);
	*out = d;
	return 0;
}

/* Is @file of the folder newer than the record, which was made at @since? */
static bool is_newer(const char *image, const char *file, const struct timespec *since)
{
	_cleanup_free_ char *path = paths_image(image, file, NULL);
	struct stat st;

	return !path || stat(path, &st) < 0 || st.st_mtim.tv_sec > since->tv_sec ||
	       (st.st_mtim.tv_sec == since->tv_sec && st.st_mtim.tv_nsec > since->tv_nsec);
}

/* @ignores_time: as it was recorded, whatever happened since. */
static int read_record(const char *name, bool ignores_time, struct store_digests *out, struct error *err)
{
	_cleanup_free_ char *path = paths_image(name, STORE_DIGESTS, err);
	_cleanup_free_ char *text = NULL;
	struct store_digests d;
	struct stat st;
	size_t len;

	if (!path)
		return -ENOMEM;
	if (stat(path, &st) < 0 && errno == ENOENT)
		return -ENOENT;
	int r = paths_read_file(path, DIGESTS_MAX, &text, &len, err);

	if (r == 0)
		r = store_parse(text, len, &d, err);
	if (r < 0) {
		error_prefix(err, "%s", path);
		return r;
	}
	for (unsigned i = 0; !ignores_time && i < d.n; i++)
		if (is_newer(name, d.files[i].name, &st.st_mtim))
			return -ENOENT;
	*out = d;
	return 0;
}

int store_read(const char *name, struct store_digests *out, struct error *err)
{
	return read_record(name, false, out, err);
}

static char *blob_path(const char *hex, struct error *err)
{
	_cleanup_free_ char *blobs = paths_data("images/.blobs", err);

	return blobs ? paths_format(err, "%s/%s", blobs, hex) : NULL;
}

static bool is_one_file(const char *a, const char *b)
{
	struct stat s, t;

	return stat(a, &s) == 0 && stat(b, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

char *store_blob(const char *image, const char *file)
{
	_cleanup_free_ char *own = paths_image(image, file, NULL);
	struct store_digests d;
	struct error why;

	if (!own || store_read(image, &d, &why) < 0)
		return NULL;
	for (unsigned i = 0; i < d.n; i++) {
		char *path = strcmp(d.files[i].name, file) == 0 ? blob_path(d.files[i].hex, &why) : NULL;

		if (path && is_one_file(path, own))
			return path;
		free(path);
	}
	return NULL;
}

/* ---- sealing ---- */

static int sync_file(const char *path, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	return fd < 0 || fsync(fd) < 0
		       ? error_set(err, -errno, "cannot sync %s: %s", path, strerror(errno))
		       : 0;
}

/* The blob in place of @path, which says the same, in one step. */
static int take_blob(const char *blob, const char *path, struct error *err)
{
	_cleanup_free_ char *part = paths_format(err, "%s.new", path);

	if (!part)
		return -ENOMEM;
	(void)unlink(part);
	if (link(blob, part) < 0 || rename(part, path) < 0)
		return error_set(err, -errno, "cannot put %s in place of %s: %s", blob, path,
				 strerror(errno));
	(void)unlink(part); /* they were one file: rename(2) does nothing then */
	return 0;
}

/* One file of an image: known by its digest from now on. */
static int seal_file(const char *path, const char *hex, struct error *err)
{
	_cleanup_free_ char *blob = blob_path(hex, err);
	int r = blob ? sync_file(path, err) : -ENOMEM;

	if (r < 0)
		return r;
	if (link(path, blob) == 0)
		return 0;
	if (errno == EEXIST)
		return take_blob(blob, path, err);
	/* A file system without links, or one file with too many: the image has it for itself. */
	if (errno == EPERM || errno == EMLINK || errno == ENOTSUP)
		return 0;
	return error_set(err, -errno, "cannot make %s: %s", blob, strerror(errno));
}

static int is_content(const struct dirent *e)
{
	return is_file_name(e->d_name);
}

static int seal_all(const char *dir, struct dirent **names, int n, struct bytes *text, struct error *err)
{
	int r = n <= STORE_FILES_MAX
			? 0
			: error_set(err, -EINVAL, "%s has more than %d files, so it is no image",
				    dir, STORE_FILES_MAX);

	for (int i = 0; r == 0 && i < n; i++) {
		_cleanup_free_ char *path = paths_format(err, "%s/%s", dir, names[i]->d_name);
		char hex[STORE_HEX + 1];

		r = path ? store_hash(path, hex, err) : -ENOMEM;
		if (r == 0)
			r = seal_file(path, hex, err);
		if (r == 0)
			bytes_printf(text, "%s  %s\n", hex, names[i]->d_name);
	}
	return r == 0 && text->is_failed ? error_set(err, -ENOMEM, "no memory for digests") : r;
}

/* In the order of bytes, whatever the locale. */
static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

int store_seal(const char *dir, struct error *err)
{
	_cleanup_free_ char *path = paths_format(err, "%s/" STORE_DIGESTS, dir);
	_cleanup_free_ char *blobs = path ? paths_data("images/.blobs", err) : NULL;
	_cleanup_bytes_ struct bytes text = { 0 };
	struct dirent **names = NULL;
	int r = blobs ? paths_make(blobs, err) : -ENOMEM;

	if (r < 0)
		return r;
	int n = scandir(dir, &names, is_content, by_name);

	if (n < 0)
		return error_set(err, -errno, "cannot read %s: %s", dir, strerror(errno));
	r = seal_all(dir, names, n, &text, err);
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
	return r < 0 ? r : paths_write_file(path, text.data, text.len, err);
}

int store_verify(const char *name, struct error *err)
{
	struct store_digests d;
	int r = read_record(name, true, &d, err);

	if (r == -ENOENT)
		return error_set(err, r, "nothing is recorded of image \"%s\"; viv image seal %s records it",
				 name, name);
	for (unsigned i = 0; r == 0 && i < d.n; i++) {
		_cleanup_free_ char *path = paths_image(name, d.files[i].name, err);
		char hex[STORE_HEX + 1];

		r = path ? store_hash(path, hex, err) : -ENOMEM;
		if (r == 0 && strcmp(hex, d.files[i].hex) != 0)
			r = error_set(err, -EBADMSG,
				      "%s is not what was recorded: its digest is %s, not %s", path,
				      hex, d.files[i].hex);
	}
	return r;
}
