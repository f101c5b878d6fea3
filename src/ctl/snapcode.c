/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/snapcode.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/paths.h"
#include "ctl/snapstore.h"

/* ---- the secret ---- */

/* -ENOENT without @err: there is none. */
static int read_secret(const char *path, uint8_t secret[CODE_SET_KEY_BYTES], struct error *err)
{
	_cleanup_close_ int fd = host.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
	struct stat st;

	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "cannot read %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 077)
		return error_set(err, -EPERM, "%s is not a file that only its owner may read; remove it, or set its mode to 0600",
				 path);
	if (st.st_size != CODE_SET_KEY_BYTES || read(fd, secret, CODE_SET_KEY_BYTES) != CODE_SET_KEY_BYTES)
		return error_set(err, -EINVAL, "%s is damaged; remove it", path);
	return 0;
}

/* In one step: of several that make one at a time, all get the same. */
static int make_secret(const char *path, struct error *err)
{
	_cleanup_free_ char *tmp = paths_format(err, "%s.%d", path, (int)getpid());
	uint8_t secret[CODE_SET_KEY_BYTES];
	int r = 0;

	if (!tmp)
		return -ENOMEM;
	if (getrandom(secret, sizeof(secret), 0) != sizeof(secret))
		return error_set(err, -EIO, "the host gives no random numbers");
	_cleanup_close_ int fd =
		host.open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0)
		return error_set(err, -errno, "cannot write %s: %s", tmp, strerror(errno));
	if (write(fd, secret, sizeof(secret)) != sizeof(secret) || host.fsync(fd) < 0 ||
	    (host.linkat(AT_FDCWD, tmp, AT_FDCWD, path, 0) < 0 && errno != EEXIST))
		r = error_set(err, errno ? -errno : -ENOSPC, "cannot write %s: %s", path,
			      strerror(errno));
	host.unlinkat(AT_FDCWD, tmp, 0);
	return r;
}

static int load_secret(uint8_t secret[CODE_SET_KEY_BYTES], struct error *err)
{
	_cleanup_free_ char *path = paths_data(SNAPCODE_SECRET_FILE, err);
	int r = path ? read_secret(path, secret, err) : -ENOMEM;

	if (!path || r != -ENOENT)
		return r;
	r = make_secret(path, err);
	if (r == 0)
		r = read_secret(path, secret, err);
	return r == -ENOENT ? error_set(err, r, "%s went away", path) : r;
}

int snapcode_key(const char *vm, const char *name, uint8_t key[CODE_SET_KEY_BYTES], struct error *err)
{
	_cleanup_free_ char *path = snapstore_path(vm, name, "ram.index", err), *data = NULL;
	uint8_t secret[CODE_SET_KEY_BYTES];
	struct ram_index x;
	size_t len;
	int r = path ? paths_read_file(path, RAM_INDEX_MAX, &data, &len, err) : -ENOMEM;

	if (r == 0)
		r = ram_index_parse(&x, (const uint8_t *)data, len, err);
	if (r < 0)
		return r;
	r = load_secret(secret, err);
	if (r == 0)
		code_set_key(secret, &x, key);
	explicit_bzero(secret, sizeof(secret));
	ram_index_free(&x);
	return r;
}

/* ---- reading, and taking over ---- */

#define HEAD_READ_BYTES	 4096u
#define PIECE_READ_BYTES (1 * MIB)

enum word { WAIT, LOAD, END };

struct snapcode_reader {
	pthread_t thread;
	int fd;
	uint8_t key[CODE_SET_KEY_BYTES];
	uint8_t head[HEAD_READ_BYTES];
	size_t head_len;
	uint8_t *data;
	size_t size, mapped;
	pthread_mutex_t lock;
	pthread_cond_t said;
	enum word word; /* under lock */
	_Atomic bool is_ending;
	const struct engine_ops *ops; /* from snapcode_load() on */
	struct engine_vm *vm;
};

static int read_all(const struct snapcode_reader *r, struct error *err)
{
	size_t done = 0;

	while (done < r->size) {
		if (r->is_ending)
			return error_set(err, -ECANCELED, "canceled");
		ssize_t n = host.pread(r->fd, r->data + done,
				       MIN(r->size - done, (size_t)PIECE_READ_BYTES), (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n < 0 ? -errno : -EINVAL,
					 "the file of translated code cannot be read");
		done += (size_t)n;
	}
	return 0;
}

static enum word await_word(struct snapcode_reader *r)
{
	pthread_mutex_lock(&r->lock);
	while (r->word == WAIT)
		pthread_cond_wait(&r->said, &r->lock);
	enum word word = r->word;

	pthread_mutex_unlock(&r->lock);
	return word;
}

static void say(struct snapcode_reader *r, enum word word)
{
	pthread_mutex_lock(&r->lock);
	r->word = word;
	pthread_cond_signal(&r->said);
	pthread_mutex_unlock(&r->lock);
}

static void *reader_main(void *arg)
{
	struct snapcode_reader *r = arg;
	const uint8_t *code;
	struct error err;
	size_t len;
	int result = read_all(r, &err);

	if (result == 0)
		result = code_set_open(r->key, r->data, r->size, &code, &len, &err);
	if (await_word(r) == LOAD) {
		if (result == 0)
			result = r->ops->code_load(r->vm, code, len, &r->is_ending, &err);
		else
			r->ops->code_expect(r->vm, NULL, 0);
		if (result >= 0)
			log_info("vm", "translated code taken over: %d blocks", result);
		else if (result != -ECANCELED)
			log_info("vm", "translated code is not used: %s", err.text);
	}
	/* All that is left of it is small. */
	munmap(r->data, r->mapped);
	return NULL;
}

static void reader_free(struct snapcode_reader *r)
{
	if (r->fd >= 0)
		close(r->fd);
	pthread_cond_destroy(&r->said);
	pthread_mutex_destroy(&r->lock);
	explicit_bzero(r->key, sizeof(r->key));
	free(r);
}

/* The file, and memory for it. */
static bool reader_open(struct snapcode_reader *r, const char *path)
{
	struct stat st;

	r->fd = host.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
	if (r->fd < 0 || fstat(r->fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 ||
	    (uint64_t)st.st_size > CODE_SET_MAX)
		return false;
	r->size = (size_t)st.st_size;
	r->mapped = ALIGN_UP(r->size, (size_t)(2 * MIB));
	ssize_t n = host.pread(r->fd, r->head, sizeof(r->head), CODE_SET_HEAD_BYTES);

	r->head_len = n > 0 ? (size_t)n : 0;
	r->data = mmap(NULL, r->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r->data == MAP_FAILED)
		return false;
	(void)madvise(r->data, r->mapped, MADV_HUGEPAGE); /* some faults in place of thousands */
	return true;
}

struct snapcode_reader *snapcode_read(const char *vm, const char *name,
				      const uint8_t key[CODE_SET_KEY_BYTES])
{
	struct error err;
	_cleanup_free_ char *path = snapstore_path(vm, name, CODE_SET_FILE, &err);
	struct snapcode_reader *r = path ? calloc(1, sizeof(*r)) : NULL;

	if (!r)
		return NULL;
	memcpy(r->key, key, sizeof(r->key));
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->said, NULL);
	if (reader_open(r, path)) {
		if (pthread_create(&r->thread, NULL, reader_main, r) == 0)
			return r;
		munmap(r->data, r->mapped);
	}
	reader_free(r);
	return NULL;
}

const uint8_t *snapcode_head(const struct snapcode_reader *r, size_t *len)
{
	*len = r->head_len;
	return r->head;
}

void snapcode_load(struct snapcode_reader *r, const struct engine_ops *ops, struct engine_vm *vm)
{
	r->ops = ops;
	r->vm = vm;
	say(r, ops->code_load ? LOAD : END);
}

void snapcode_read_end(struct snapcode_reader *r)
{
	if (!r)
		return;
	r->is_ending = true;
	if (!r->ops)
		say(r, END);
	pthread_join(r->thread, NULL);
	reader_free(r);
}

/* ---- writing ---- */

struct snapcode_writer {
	pthread_t thread;
	int fd;
	uint8_t key[CODE_SET_KEY_BYTES];
	struct bytes code;
	size_t len;
	char *path, *part;
	_Atomic bool is_done;
	int result;
};

static int write_vectors(int fd, struct iovec *v, int n)
{
	off_t at = 0;

	while (n) {
		ssize_t done = host.pwritev(fd, v, n, at);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done < 0 ? -errno : -ENOSPC;
		at += done;
		while (n && (size_t)done >= v->iov_len) {
			done -= (ssize_t)v->iov_len;
			v++;
			n--;
		}
		if (n) {
			v->iov_base = (uint8_t *)v->iov_base + done;
			v->iov_len -= (size_t)done;
		}
	}
	return 0;
}

/* Not synced: after a power cut a damaged one is none. */
static void *writer_main(void *arg)
{
	struct snapcode_writer *w = arg;
	uint8_t head[CODE_SET_HEAD_BYTES], mac[CODE_SET_MAC_BYTES], salt[CODE_SET_SALT_BYTES];
	struct iovec v[] = { { head, sizeof(head) }, { w->code.data, w->code.len }, { mac, sizeof(mac) } };

	if (getrandom(salt, sizeof(salt), 0) == sizeof(salt)) {
		code_set_seal(w->key, salt, w->code.data, w->code.len, head, mac);
		w->result = write_vectors(w->fd, v, ARRAY_SIZE(v));
	} else {
		w->result = -EIO;
	}
	bytes_free(&w->code);
	w->is_done = true;
	return NULL;
}

static void writer_free(struct snapcode_writer *w)
{
	explicit_bzero(w->key, sizeof(w->key));
	bytes_free(&w->code);
	if (w->fd >= 0)
		close(w->fd);
	free(w->path);
	free(w->part);
	free(w);
}

/* The file, and the thread that fills it. */
static int writer_begin(struct snapcode_writer *w, const char *path, struct error *err)
{
	w->path = strdup(path);
	w->part = paths_format(err, "%s.new", path);
	if (!w->path || !w->part)
		return error_set(err, -ENOMEM, "no memory");
	if (w->len > CODE_SET_MAX - CODE_SET_HEAD_BYTES - CODE_SET_MAC_BYTES)
		return error_set(err, -EFBIG, "%zu MiB are too much", w->len >> 20);
	w->fd = host.open(w->part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (w->fd < 0)
		return error_set(err, -errno, "cannot write %s: %s", w->part, strerror(errno));
	if (pthread_create(&w->thread, NULL, writer_main, w) == 0)
		return 0;
	host.unlinkat(AT_FDCWD, w->part, 0);
	return error_set(err, -EAGAIN, "the host gives no thread");
}

struct snapcode_writer *snapcode_write(const char *path, const uint8_t key[CODE_SET_KEY_BYTES],
				       struct bytes *code, struct error *err)
{
	struct snapcode_writer *w = calloc(1, sizeof(*w));

	if (!w) {
		bytes_free(code);
		error_set(err, -ENOMEM, "no memory");
		return NULL;
	}
	w->fd = -1;
	w->code = *code;
	w->len = code->len;
	*code = (struct bytes){ 0 };
	memcpy(w->key, key, sizeof(w->key));
	if (writer_begin(w, path, err) == 0)
		return w;
	writer_free(w);
	return NULL;
}

bool snapcode_write_is_done(const struct snapcode_writer *w)
{
	return w->is_done;
}

void snapcode_write_end(struct snapcode_writer *w)
{
	if (!w)
		return;
	pthread_join(w->thread, NULL);
	if (w->result == 0 && host.renameat(AT_FDCWD, w->part, AT_FDCWD, w->path) < 0)
		w->result = -errno;
	if (w->result < 0) {
		log_info("snapshot", "the translated code is not kept: cannot write %s: %s",
			 w->path, strerror(-w->result));
		host.unlinkat(AT_FDCWD, w->part, 0);
	} else {
		log_info("snapshot", "translated code kept: %zu KiB", w->len / 1024);
	}
	writer_free(w);
}
