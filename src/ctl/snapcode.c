/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/snapcode.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
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

#define HEAD_READ_BYTES 4096u
#define READER_NICE	10

enum word { WAIT, LOAD, END };

struct snapcode_reader {
	pthread_t thread;
	int fd;
	uint8_t key[CODE_SET_KEY_BYTES];
	struct code_set set;
	uint8_t head[HEAD_READ_BYTES]; /* part 0 */
	size_t head_len;
	pthread_mutex_t lock;
	pthread_cond_t said;
	enum word word; /* under lock */
	_Atomic bool is_ending;
	const struct engine_ops *ops; /* from snapcode_load() on */
	struct engine_vm *vm;
};

static int read_all(const struct snapcode_reader *r, uint8_t *to, size_t len, uint64_t at,
		    struct error *err)
{
	while (len) {
		if (r->is_ending)
			return error_set(err, -ECANCELED, "canceled");
		ssize_t n = host.pread(r->fd, to, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n < 0 ? -errno : -EINVAL,
					 "the file of translated code cannot be read");
		to += n;
		len -= (size_t)n;
		at += (uint64_t)n;
	}
	return 0;
}

/* engine_code_source.read: nothing that was not authenticated is left at @to. */
static int read_part(void *arg, unsigned i, uint8_t *to, struct error *err)
{
	const struct snapcode_reader *r = arg;
	uint64_t at = code_set_at(&r->set, i);
	uint8_t mac[CODE_SET_MAC_BYTES];
	int result = read_all(r, to, r->set.len[i], at, err);

	if (result == 0)
		result = read_all(r, mac, sizeof(mac), at + r->set.len[i], err);
	if (result == 0)
		result = code_set_check(&r->set, i, to, mac, err);
	if (result < 0)
		memset(to, 0, r->set.len[i]);
	return result;
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
	const struct engine_code_source in = {
		.nparts = r->set.nparts, .len = r->set.len, .read = read_part, .arg = r
	};
	struct error err;

	/* The guest comes first, where there are few processors. */
	(void)setpriority(PRIO_PROCESS, 0, READER_NICE);
	if (await_word(r) != LOAD)
		return NULL;
	int result = r->ops->code_load(r->vm, &in, &r->is_ending, &err);

	if (result >= 0)
		log_info("vm", "translated code taken over: %d blocks", result);
	else if (result != -ECANCELED)
		log_info("vm", "translated code is not used, or not all of it: %s", err.text);
	return NULL;
}

static void reader_free(struct snapcode_reader *r)
{
	if (r->fd >= 0)
		close(r->fd);
	pthread_cond_destroy(&r->said);
	pthread_mutex_destroy(&r->lock);
	explicit_bzero(r->key, sizeof(r->key));
	explicit_bzero(&r->set, sizeof(r->set));
	free(r);
}

static bool reader_open(struct snapcode_reader *r, const char *path)
{
	uint8_t head[CODE_SET_HEAD_BYTES];
	struct error err;
	struct stat st;

	r->fd = host.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
	if (r->fd < 0 || fstat(r->fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 ||
	    (uint64_t)st.st_size > CODE_SET_MAX)
		return false;
	int result = read_all(r, head, sizeof(head), 0, &err);

	if (result == 0)
		result = code_set_parse(&r->set, r->key, head, (uint64_t)st.st_size, &err);
	if (result == 0) {
		r->head_len = MIN((size_t)r->set.len[0], sizeof(r->head));
		result = read_all(r, r->head, r->head_len, code_set_at(&r->set, 0), &err);
	}
	if (result < 0)
		log_info("vm", "translated code is not used: %s", err.text);
	return result == 0;
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
	r->fd = -1;
	if (reader_open(r, path) && pthread_create(&r->thread, NULL, reader_main, r) == 0)
		return r;
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

void snapcode_read_wait(struct snapcode_reader *r)
{
	if (!r)
		return;
	pthread_join(r->thread, NULL);
	reader_free(r);
}

void snapcode_read_end(struct snapcode_reader *r)
{
	if (!r)
		return;
	r->is_ending = true;
	if (!r->ops)
		say(r, END);
	snapcode_read_wait(r);
}

/* ---- writing ---- */

struct snapcode_writer {
	pthread_t thread;
	int fd;
	uint8_t key[CODE_SET_KEY_BYTES];
	struct engine_code code;
	uint64_t len; /* of the file */
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
static int write_code(struct snapcode_writer *w)
{
	uint8_t macs[CODE_SET_PARTS][CODE_SET_MAC_BYTES], salt[CODE_SET_SALT_BYTES],
		*part = w->code.bytes.data;
	struct iovec v[1 + 2 * CODE_SET_PARTS];
	struct code_set set;
	int n = 0;

	if (getrandom(salt, sizeof(salt), 0) != sizeof(salt))
		return -EIO;
	code_set_begin(&set, w->key, salt, w->code.len, w->code.nparts);
	v[n++] = (struct iovec){ set.head, sizeof(set.head) };
	for (unsigned i = 0; i < set.nparts; i++) {
		code_set_mac(&set, i, part, macs[i]);
		v[n++] = (struct iovec){ part, set.len[i] };
		v[n++] = (struct iovec){ macs[i], sizeof(macs[i]) };
		part += set.len[i];
	}
	int r = write_vectors(w->fd, v, n);

	explicit_bzero(&set, sizeof(set));
	return r;
}

static void *writer_main(void *arg)
{
	struct snapcode_writer *w = arg;

	w->result = write_code(w);
	bytes_free(&w->code.bytes);
	w->is_done = true;
	return NULL;
}

static void writer_free(struct snapcode_writer *w)
{
	explicit_bzero(w->key, sizeof(w->key));
	bytes_free(&w->code.bytes);
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
	if (w->len > CODE_SET_MAX)
		return error_set(err, -EFBIG, "%llu MiB are too much", (unsigned long long)w->len >> 20);
	w->fd = host.open(w->part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (w->fd < 0)
		return error_set(err, -errno, "cannot write %s: %s", w->part, strerror(errno));
	if (pthread_create(&w->thread, NULL, writer_main, w) == 0)
		return 0;
	host.unlinkat(AT_FDCWD, w->part, 0);
	return error_set(err, -EAGAIN, "the host gives no thread");
}

struct snapcode_writer *snapcode_write(const char *path, const uint8_t key[CODE_SET_KEY_BYTES],
				       struct engine_code *code, struct error *err)
{
	struct snapcode_writer *w = calloc(1, sizeof(*w));

	if (!w) {
		bytes_free(&code->bytes);
		error_set(err, -ENOMEM, "no memory");
		return NULL;
	}
	w->fd = -1;
	w->code = *code;
	w->len = CODE_SET_HEAD_BYTES + code->bytes.len + (uint64_t)code->nparts * CODE_SET_MAC_BYTES;
	*code = (struct engine_code){ 0 };
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
		log_info("snapshot", "translated code kept: %llu KiB", (unsigned long long)w->len / 1024);
	}
	writer_free(w);
}
