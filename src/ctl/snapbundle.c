/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/snapbundle.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/bytes.h"
#include "ctl/paths.h"
#include "vm/code_set.h"

static const char magic[8] = "VIVSNAP1";
#define EXTENT_MAX (1 * MIB)
#define END_MARK   UINT64_MAX
#define BUF_BYTES  (256 * KIB)

/* One direction of a compressed file; @sum is over the uncompressed bytes. */
struct stream {
	int fd;
	XXH64_state_t *sum;
	ZSTD_CCtx *c;
	ZSTD_DCtx *d;
	uint8_t *buf; /* BUF_BYTES of the compressed side */
	ZSTD_inBuffer in;
	uint64_t done_bytes, total_bytes;
	const struct ram_progress *progress;
};

static void stream_close(struct stream *s)
{
	XXH64_freeState(s->sum);
	ZSTD_freeCCtx(s->c);
	ZSTD_freeDCtx(s->d);
	free(s->buf);
}

static int stream_open(struct stream *s, int fd, bool is_writer,
		       const struct ram_progress *progress, struct error *err)
{
	*s = (struct stream){
		.fd = fd, .sum = XXH64_createState(), .buf = malloc(BUF_BYTES), .progress = progress
	};
	if (is_writer)
		s->c = ZSTD_createCCtx();
	else
		s->d = ZSTD_createDCtx();
	if (!s->sum || !s->buf || (is_writer ? !s->c : !s->d)) {
		stream_close(s);
		return error_set(err, -ENOMEM, "no memory to pack a snapshot");
	}
	XXH64_reset(s->sum, 0);
	return 0;
}

static int tick(struct stream *s, uint64_t bytes, struct error *err)
{
	s->done_bytes += bytes;
	if (s->progress && s->progress->fn &&
	    !s->progress->fn(s->progress->arg, MIN(s->done_bytes, s->total_bytes),
			     MAX(s->total_bytes, 1ull)))
		return error_set(err, -ECANCELED, "canceled");
	return 0;
}

/* ---- writing ---- */

static int write_all(int fd, const uint8_t *p, size_t len, struct error *err)
{
	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, -errno, "cannot write the file: %s", strerror(errno));
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int compress(struct stream *s, const void *data, size_t len, ZSTD_EndDirective mode,
		    struct error *err)
{
	ZSTD_inBuffer in = { data, len, 0 };
	size_t left;

	do {
		ZSTD_outBuffer out = { s->buf, BUF_BYTES, 0 };

		left = ZSTD_compressStream2(s->c, &out, &in, mode);
		if (ZSTD_isError(left))
			return error_set(err, -EIO, "cannot compress: %s", ZSTD_getErrorName(left));
		int r = write_all(s->fd, s->buf, out.pos, err);

		if (r < 0)
			return r;
	} while (mode == ZSTD_e_end ? left : in.pos < in.size);
	return 0;
}

static int put(struct stream *s, const void *data, size_t len, struct error *err)
{
	XXH64_update(s->sum, data, len);
	return compress(s, data, len, ZSTD_e_continue, err);
}

static int put_u64(struct stream *s, uint64_t v, struct error *err)
{
	return put(s, &v, sizeof(v), err);
}

static int put_extents(struct stream *s, int fd, uint64_t size, uint8_t *buf, struct error *err)
{
	uint64_t at = 0;
	int r = 0;

	while (r == 0 && at < size) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);

		if (data < 0 && errno == ENXIO)
			break;
		at = data < 0 ? at : (uint64_t)data; /* not every file system knows its holes */
		size_t len = (size_t)MIN(EXTENT_MAX, size - at);
		ssize_t n = pread(fd, buf, len, (off_t)at);

		if (n <= 0)
			return error_set(err, n < 0 ? -errno : -EIO,
					 "cannot read a file of the snapshot: %s",
					 n < 0 ? strerror(errno) : "it was cut short");
		r = tick(s, (uint64_t)n, err);
		if (r == 0 && !bytes_are_zero(buf, (size_t)n)) {
			r = put_u64(s, at, err);
			if (r == 0)
				r = put_u64(s, (uint64_t)n, err);
			if (r == 0)
				r = put(s, buf, (size_t)n, err);
		}
		at += (uint64_t)n;
	}
	return r < 0 ? r : put_u64(s, END_MARK, err);
}

static int put_file(struct stream *s, int dir_fd, const char *name, uint8_t *buf, struct error *err)
{
	_cleanup_close_ int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	uint8_t len = (uint8_t)strlen(name);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot read %s of the snapshot: %s", name,
				 strerror(errno));
	int r = put(s, &len, 1, err);

	if (r == 0)
		r = put(s, name, len, err);
	if (r == 0)
		r = put_u64(s, (uint64_t)st.st_size, err);
	return r < 0 ? r : put_extents(s, fd, (uint64_t)st.st_size, buf, err);
}

/* Code of the host goes nowhere (vm/code_set.h). */
static bool is_to_go(const char *name)
{
	return name[0] != '.' && strcmp(name, CODE_SET_FILE) != 0;
}

static int put_all(struct stream *s, const char *dir, struct error *err)
{
	_cleanup_free_ uint8_t *buf = malloc(EXTENT_MAX);
	DIR *d = opendir(dir);
	struct dirent *e;
	struct stat st;
	uint8_t end = 0;
	int r = 0;

	if (!d || !buf)
		r = error_set(err, d ? -ENOMEM : -errno, "cannot read %s: %s", dir,
			      d ? "no memory" : strerror(errno));
	while (r == 0 && (e = readdir(d)))
		if (is_to_go(e->d_name) && fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			s->total_bytes += (uint64_t)st.st_blocks * 512;
	if (r == 0) {
		rewinddir(d);
		r = put(s, magic, sizeof(magic), err);
	}
	while (r == 0 && (e = readdir(d)))
		if (is_to_go(e->d_name))
			r = put_file(s, dirfd(d), e->d_name, buf, err);
	if (r == 0)
		r = put(s, &end, 1, err);
	if (d)
		closedir(d);
	if (r < 0)
		return r;
	uint64_t sum = XXH64_digest(s->sum);

	return compress(s, &sum, sizeof(sum), ZSTD_e_end, err);
}

static bool is_file_in(const char *dir, const char *path)
{
	size_t n = strlen(dir);

	/* What comes from elsewhere may say "DIR/../../x". */
	return strncmp(path, dir, n) == 0 && path[n] == '/' && !strchr(path + n + 1, '/');
}

static int check_whole(const char *vm, const char *name, struct error *err)
{
	struct snapshot_info i;
	int r = snapstore_load(&i, vm, name, err);
	_cleanup_free_ char *dir = r == 0 ? snapstore_path(vm, name, NULL, err) : NULL;

	if (r < 0)
		return r;
	if (!dir)
		r = -ENOMEM;
	for (unsigned d = 0; r == 0 && d < i.config.ndisks; d++)
		if (!is_file_in(dir, i.config.disks[d].path))
			r = error_set(err, -EINVAL, "disk %u (%s) is read-only and not in the snapshot; it cannot go along",
				      d, i.config.disks[d].path);
	snapshot_info_free(&i);
	return r;
}

int snapbundle_write(const char *vm, const char *name, int fd, const struct ram_progress *progress,
		     struct error *err)
{
	int r = check_whole(vm, name, err);
	_cleanup_free_ char *dir = r == 0 ? snapstore_path(vm, name, NULL, err) : NULL;

	if (!dir)
		return r < 0 ? r : -ENOMEM;
	/* Index and files of one moment: no merge in between. */
	_cleanup_close_ int lock = snapstore_lock(vm, false, err);
	struct stream s;

	if (lock < 0)
		return lock;
	r = stream_open(&s, fd, true, progress, err);
	if (r == 0) {
		r = put_all(&s, dir, err);
		stream_close(&s);
	}
	return r;
}

int snapbundle_export(const char *vm, const char *name, const char *path,
		      const struct ram_progress *progress, struct error *err)
{
	int r = check_whole(vm, name, err);
	_cleanup_free_ char *tmp = r == 0 ? paths_format(err, "%s.part", path) : NULL;

	if (!tmp)
		return r < 0 ? r : -ENOMEM;
	if (access(path, F_OK) == 0)
		return error_set(err, -EEXIST, "there is a file %s already", path);
	_cleanup_close_ int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0)
		return error_set(err, -errno, "cannot write %s: %s", tmp, strerror(errno));
	r = snapbundle_write(vm, name, fd, progress, err);
	if (r == 0 && (fsync(fd) < 0 || rename(tmp, path) < 0))
		r = error_set(err, -errno, "cannot write %s: %s", path, strerror(errno));
	if (r < 0)
		unlink(tmp);
	return r;
}

/* ---- reading ---- */

static int cut_off(struct error *err)
{
	return error_set(err, -EINVAL, "the file is cut off or damaged");
}

/* Uncompressed bytes, all @len of them. */
static int take(struct stream *s, void *to, size_t len, struct error *err)
{
	ZSTD_outBuffer out = { to, len, 0 };

	while (out.pos < len) {
		size_t before = out.pos, in_before = s->in.pos;

		if (s->in.pos == s->in.size) {
			ssize_t n = read(s->fd, s->buf, BUF_BYTES);

			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0)
				return error_set(err, -errno, "cannot read the file: %s",
						 strerror(errno));
			s->in = (ZSTD_inBuffer){ s->buf, (size_t)n, 0 };
			in_before = 0;
			int r = tick(s, (uint64_t)n, err);

			if (r < 0)
				return r;
		}
		bool is_end = s->in.size == 0;
		size_t r = ZSTD_decompressStream(s->d, &out, &s->in);

		if (ZSTD_isError(r) || (is_end && out.pos == before) ||
		    (out.pos == before && s->in.pos == in_before))
			return cut_off(err);
	}
	return 0;
}

static int get(struct stream *s, void *to, size_t len, struct error *err)
{
	int r = take(s, to, len, err);

	if (r == 0)
		XXH64_update(s->sum, to, len);
	return r;
}

static int get_extents(struct stream *s, int fd, uint64_t size, uint8_t *buf, struct error *err)
{
	uint64_t at, len, end = 0;

	for (;;) {
		int r = get(s, &at, sizeof(at), err);

		if (r < 0 || at == END_MARK)
			return r;
		r = get(s, &len, sizeof(len), err);
		if (r < 0)
			return r;
		/* In order and without overlap: so a file is no longer work than it is long. */
		if (!len || len > EXTENT_MAX || at < end || at > size || len > size - at)
			return cut_off(err);
		r = get(s, buf, len, err);
		if (r < 0)
			return r;
		for (uint64_t done = 0; done < len;) {
			ssize_t n = pwrite(fd, buf + done, len - done, (off_t)(at + done));

			if (n < 0 && errno != EINTR)
				return error_set(err, -errno, "cannot write a file of the snapshot: %s",
						 strerror(errno));
			done += n > 0 ? (uint64_t)n : 0;
		}
		end = at + len;
	}
}

static bool is_plain_name(const char *name, size_t len)
{
	static const char allowed[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";

	return strlen(name) == len && name[0] != '.' && strspn(name, allowed) == len;
}

static int get_file(struct stream *s, int dir_fd, uint8_t name_len, uint8_t *buf, struct error *err)
{
	char name[256] = "";
	uint64_t size;
	int r = get(s, name, name_len, err);

	if (r == 0)
		r = get(s, &size, sizeof(size), err);
	if (r < 0)
		return r;
	if (!is_plain_name(name, name_len) || size > SNAPBUNDLE_SIZE_MAX)
		return error_set(err, -EINVAL, "the file has an entry with an impossible name or size");
	_cleanup_close_ int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return error_set(err, -errno, "cannot write %s: %s", name, strerror(errno));
	r = get_extents(s, fd, size, buf, err);
	if (!is_to_go(name)) /* nor does it come from anywhere */
		return unlinkat(dir_fd, name, 0) == 0 || r < 0
			       ? r
			       : error_set(err, -errno, "cannot remove %s: %s", name, strerror(errno));
	if (r == 0 && fsync(fd) < 0)
		r = error_set(err, -errno, "cannot write %s: %s", name, strerror(errno));
	return r;
}

static int get_all(struct stream *s, int dir_fd, uint8_t *buf, struct error *err)
{
	char head[sizeof(magic)];
	uint8_t len;
	int r = get(s, head, sizeof(head), NULL);

	if (r < 0 || memcmp(head, magic, sizeof(magic)) != 0)
		return error_set(err, -EINVAL, "it is no file of viv snapshot export");
	for (unsigned n = 0;; n++) {
		r = get(s, &len, 1, err);
		if (r < 0)
			return r;
		if (!len)
			break;
		if (n == SNAPBUNDLE_FILES_MAX)
			return error_set(err, -EINVAL, "the file has too many entries");
		r = get_file(s, dir_fd, len, buf, err);
		if (r < 0)
			return r;
	}
	uint64_t sum = XXH64_digest(s->sum), told;

	r = take(s, &told, sizeof(told), err);
	return r < 0 ? r
	       : sum == told
		       ? 0
		       : error_set(err, -EINVAL, "the file is damaged: its checksum does not match");
}

int snapbundle_unpack(const struct snapstore_build *b, int fd, const struct ram_progress *progress,
		      struct error *err)
{
	_cleanup_free_ uint8_t *buf = malloc(EXTENT_MAX);
	struct stream s;
	struct stat st;
	int r = buf ? stream_open(&s, fd, false, progress, err)
		    : error_set(err, -ENOMEM, "no memory to unpack");

	if (r < 0)
		return r;
	s.total_bytes = fstat(fd, &st) == 0 && st.st_size > 0 ? (uint64_t)st.st_size : 1;
	r = get_all(&s, b->dir_fd, buf, err);
	stream_close(&s);
	return r;
}

static void ignore_bad(void *arg, uint64_t offset, uint64_t len, const char *layer)
{
}

/* Under its name by now; it goes again if it is not whole. */
static int verify(const char *vm, const char *name, struct error *err)
{
	struct snapshot_info i;
	struct snapshot_state state;
	struct ram_files files;
	int r = check_whole(vm, name, err);

	if (r == 0)
		r = snapstore_load(&i, vm, name, err);
	if (r == 0) {
		snapshot_info_free(&i);
		r = snapstore_open_state(vm, name, &state, err);
	}
	if (r == 0) {
		snapshot_state_free(&state);
		r = snapstore_open_ram(vm, name, &files, err);
	}
	if (r < 0)
		return r;
	int64_t bad = ram_files_verify(&files, ignore_bad, NULL, NULL, err);

	ram_files_close(&files);
	return bad <= 0 ? (int)bad
			: error_set(err, -EINVAL, "its memory is damaged in %lld places", (long long)bad);
}

int snapbundle_read(const char *vm, const char *name, int fd, const struct ram_progress *progress,
		    struct error *err)
{
	struct snapstore_build b;
	struct error why;
	int r = snapstore_begin(&b, vm, name, err);

	if (r == 0)
		r = snapbundle_unpack(&b, fd, progress, err);
	if (r == 0)
		r = snapstore_commit(&b, err);
	bool is_there = r == 0;

	snapstore_end(&b);
	if (r == 0)
		r = verify(vm, name, err);
	if (r < 0 && is_there)
		snapstore_delete(vm, name, &why);
	return r;
}

int snapbundle_import(const char *vm, const char *name, const char *path,
		      const struct ram_progress *progress, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
	int r = snapbundle_read(vm, name, fd, progress, err);

	if (r < 0)
		error_prefix(err, "%s", path);
	return r;
}
