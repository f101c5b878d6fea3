/* SPDX-License-Identifier: Apache-2.0 */
/* Layers of memory (snapmerge.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/paths.h"
#include "ctl/snapmerge.h"
#include "ctl/snapstore.h"

#define INDEX	  "ram.index"
#define INDEX_NEW "ram.index.new" /* snapstore_remove_unnamed() knows it, too */

/* A snapshot that reads layers. */
struct user {
	char *dir;
	int dir_fd;
	struct ram_files files; /* as they were found */
	struct ram_index now;	/* with merged ones */
	bool has_changed;
};

/* One file. */
struct layer {
	dev_t dev;
	ino_t ino;
	bool *users;	     /* by user */
	uint64_t *needed;    /* a bit a granule that some user reads from it */
	uint64_t used_bytes; /* of these on the host */
	uint64_t all_bytes;  /* of the file on the host */
	bool is_taken;	     /* goes into the merged file that is being made */
	bool is_done;
};

struct merge {
	struct user *users;
	unsigned nusers;
	struct layer *layers;
	unsigned nlayers;
	const struct ram_progress *progress;
	uint8_t *buf; /* a granule */
};

static size_t bitmap_words(const struct ram_index *x)
{
	return (x->ngranules + 63) / 64;
}

static bool has_bit(const uint64_t *map, uint32_t i)
{
	return map[i / 64] >> i % 64 & 1;
}

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no memory to merge snapshots");
}

/* ---- what there is ---- */

static void merge_free(struct merge *m)
{
	for (unsigned i = 0; i < m->nusers; i++) {
		struct user *u = &m->users[i];

		ram_files_close(&u->files);
		ram_index_free(&u->now);
		if (u->dir_fd >= 0)
			close(u->dir_fd);
		free(u->dir);
	}
	for (unsigned i = 0; i < m->nlayers; i++) {
		free(m->layers[i].users);
		free(m->layers[i].needed);
	}
	free(m->users);
	free(m->layers);
	free(m->buf);
}

/* A snapshot that can't be read is left alone: it has links of its own. */
static int add_user(struct merge *m, const char *vm, const char *name, struct error *err)
{
	struct user *u = &m->users[m->nusers];
	struct error why;

	*u = (struct user){ .dir_fd = -1 };
	if (snapstore_open_ram(vm, name, &u->files, &why) < 0) {
		log_warn("snapshot", "%s of %s is left as it is: %s", name, vm, why.text);
		return 0;
	}
	m->nusers++;
	u->dir = snapstore_path(vm, name, NULL, err);
	if (!u->dir)
		return -ENOMEM;
	u->dir_fd = host.open(u->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (u->dir_fd < 0)
		return error_set(err, -errno, "cannot open %s: %s", u->dir, strerror(errno));
	return ram_index_copy(&u->now, &u->files.index, err);
}

static struct layer *find_layer(struct merge *m, const struct stat *st, const struct ram_index *x)
{
	for (unsigned i = 0; i < m->nlayers; i++)
		if (m->layers[i].dev == st->st_dev && m->layers[i].ino == st->st_ino)
			return &m->layers[i];
	struct layer *more = realloc(m->layers, (m->nlayers + 1) * sizeof(*more));

	if (!more)
		return NULL;
	m->layers = more;
	struct layer *l = &more[m->nlayers];

	*l = (struct layer){ .dev = st->st_dev,
			     .ino = st->st_ino,
			     .all_bytes = (uint64_t)st->st_blocks * 512,
			     .users = calloc(m->nusers, sizeof(*l->users)),
			     .needed = calloc(bitmap_words(x), sizeof(*l->needed)) };
	if (!l->users || !l->needed) {
		free(l->users);
		free(l->needed);
		return NULL;
	}
	m->nlayers++;
	return l;
}

/* How much of @len bytes from @at on @fd has of its own. */
static uint64_t data_bytes(int fd, uint64_t at, uint64_t len)
{
	uint64_t end = at + len, sum = 0;

	while (at < end) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);

		if (data < 0 || (uint64_t)data >= end)
			break;
		off_t hole = lseek(fd, data, SEEK_HOLE);

		at = hole < 0 ? end : MIN((uint64_t)hole, end);
		sum += at - (uint64_t)data;
	}
	return sum;
}

static int note_layers(struct merge *m, unsigned user, struct error *err)
{
	const struct ram_files *f = &m->users[user].files;
	const struct ram_index *x = &f->index;

	for (uint32_t n = 0; n < x->nlayers; n++) {
		struct stat st;

		if (fstat(f->fds[n], &st) < 0)
			return error_set(err, -errno, "cannot look at %s: %s", x->layers[n],
					 strerror(errno));
		struct layer *l = find_layer(m, &st, x);

		if (!l)
			return no_memory(err);
		l->users[user] = true;
		for (uint32_t g = 0; g < x->ngranules; g++) {
			uint64_t at = (uint64_t)g * x->granule_bytes;

			if (x->layer[g] != n + 1 || has_bit(l->needed, g))
				continue;
			l->needed[g / 64] |= 1ull << g % 64;
			l->used_bytes += data_bytes(f->fds[n], at, x->granule_bytes);
		}
	}
	return 0;
}

/* ---- which belong together ---- */

static bool is_mostly_unused(const struct layer *l)
{
	return l->used_bytes < l->all_bytes && (l->all_bytes - l->used_bytes) * 4 >= l->all_bytes;
}

static bool has_same_users(const struct merge *m, const struct layer *a, const struct layer *b)
{
	return !memcmp(a->users, b->users, m->nusers * sizeof(*a->users));
}

/* Do both hold granule n, for different snapshots? */
static bool is_at_odds(const struct layer *l, const uint64_t *taken, size_t words)
{
	for (size_t i = 0; i < words; i++)
		if (l->needed[i] & taken[i])
			return true;
	return false;
}

/*
 * The smallest of a group and those that are not much larger than all smaller ones together: so a byte is copied about as
 * often as the logarithm of the number of snapshots.  Returns how many were taken.
 */
static unsigned take_group(struct merge *m, const struct layer *first, uint64_t *taken, size_t words)
{
	uint64_t sum = 0;
	unsigned n = 0;

	memset(taken, 0, words * sizeof(*taken));
	for (;;) {
		struct layer *next = NULL;

		for (unsigned i = 0; i < m->nlayers; i++) {
			struct layer *l = &m->layers[i];

			if (!l->is_done && !l->is_taken && has_same_users(m, l, first) &&
			    (!next || l->used_bytes < next->used_bytes) && !is_at_odds(l, taken, words))
				next = l;
		}
		if (!next || (n && next->used_bytes > MAX(2 * sum, SNAPMERGE_ALWAYS_BYTES)))
			return n;
		next->is_taken = true;
		sum += next->used_bytes;
		for (size_t i = 0; i < words; i++)
			taken[i] |= next->needed[i];
		n++;
	}
}

/* ---- making one ---- */

static struct layer *layer_of(const struct merge *m, const struct user *u, uint16_t number)
{
	struct stat st;

	if (!number || fstat(u->files.fds[number - 1], &st) < 0)
		return NULL;
	for (unsigned i = 0; i < m->nlayers; i++)
		if (m->layers[i].dev == st.st_dev && m->layers[i].ino == st.st_ino)
			return &m->layers[i];
	return NULL;
}

/* Which numbers in @u's index stand for layers that are taken; @out has nlayers + 1 elements. */
static void find_taken(const struct merge *m, const struct user *u, bool *out)
{
	memset(out, 0, (u->files.index.nlayers + 1) * sizeof(*out));
	for (uint32_t n = 1; n <= u->files.index.nlayers; n++) {
		const struct layer *l = layer_of(m, u, (uint16_t)n);

		out[n] = l && l->is_taken;
	}
}

/* All granules of @u in layers that are taken and not in the file yet (@written). */
static int copy_from(struct merge *m, const struct user *u, int fd, uint64_t *written, struct error *err)
{
	const struct ram_index *x = &u->files.index;
	bool is_taken[RAM_LAYERS_MAX + 1];
	int r = 0;

	find_taken(m, u, is_taken);
	for (uint32_t g = 0; r == 0 && g < x->ngranules; g++) {
		uint64_t at = (uint64_t)g * x->granule_bytes;

		if (m->progress && m->progress->fn && at % (8 * MIB) == 0 &&
		    !m->progress->fn(m->progress->arg, at, x->ram_bytes))
			return error_set(err, -ECANCELED, "canceled");
		if (!is_taken[x->layer[g]] || has_bit(written, g))
			continue;
		written[g / 64] |= 1ull << g % 64;
		r = ram_files_copy(&u->files, g, fd, m->buf, err);
	}
	return r;
}

static int write_merged(struct merge *m, const struct layer *group, int fd, struct error *err)
{
	const struct ram_index *x = &m->users[0].files.index;
	_cleanup_free_ uint64_t *written = calloc(bitmap_words(x), sizeof(*written));
	int r = written ? 0 : no_memory(err);

	if (r == 0 && host.ftruncate(fd, (off_t)x->ram_bytes) < 0)
		r = error_set(err, -errno, "cannot write guest memory: %s", strerror(errno));
	for (unsigned i = 0; r == 0 && i < m->nusers; i++)
		if (group->users[i])
			r = copy_from(m, &m->users[i], fd, written, err);
	if (r == 0 && host.fsync(fd) < 0)
		r = error_set(err, -errno, "cannot write guest memory: %s", strerror(errno));
	return r;
}

/* Where there is no room for one more, it takes the place of one that it replaces. */
static int add_layer(struct user *u, const bool *is_taken, const char *name, struct error *err)
{
	if (u->now.nlayers < RAM_LAYERS_MAX)
		return ram_index_add_layer(&u->now, name, err);
	int n = 1;

	while (!is_taken[n])
		n++;
	snprintf(u->now.layers[n - 1], RAM_LAYER_NAME, "%s", name);
	return n;
}

/* @name, a file of @from, becomes one of @u as well, and its index in memory leads to it. */
static int give(struct merge *m, struct user *u, const struct user *from, const char *name,
		struct error *err)
{
	bool is_taken[RAM_LAYERS_MAX + 1];

	if (u != from && host.linkat(from->dir_fd, name, u->dir_fd, name, 0) < 0)
		return error_set(err, -errno, "cannot link %s into %s: %s", name, u->dir,
				 strerror(errno));
	find_taken(m, u, is_taken);
	int n = add_layer(u, is_taken, name, err);

	if (n < 0)
		return n;
	for (uint32_t g = 0; g < u->now.ngranules; g++)
		if (is_taken[u->files.index.layer[g]])
			u->now.layer[g] = (uint16_t)n;
	u->has_changed = true;
	return 0;
}

static int make_merged(struct merge *m, const struct layer *group, struct error *err)
{
	char name[RAM_LAYER_NAME];
	struct user *first = NULL;
	uint64_t random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	snprintf(name, sizeof(name), "ram-%016llx", (unsigned long long)random);
	for (unsigned i = 0; i < m->nusers && !first; i++)
		if (group->users[i])
			first = &m->users[i];
	_cleanup_close_ int fd =
		host.openat(first->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r = fd < 0 ? error_set(err, -errno, "cannot write %s/%s: %s", first->dir, name,
				   strerror(errno))
		       : write_merged(m, group, fd, err);

	for (unsigned i = 0; r == 0 && i < m->nusers; i++)
		if (group->users[i])
			r = give(m, &m->users[i], first, name, err);
	return r;
}

static int make_all(struct merge *m, struct error *err)
{
	size_t words = bitmap_words(&m->users[0].files.index);
	_cleanup_free_ uint64_t *taken = malloc(words * sizeof(*taken));
	int r = taken ? 0 : no_memory(err);

	for (unsigned i = 0; r == 0 && i < m->nlayers; i++) {
		/* What is left of a group may be one by itself. */
		while (r == 0 && !m->layers[i].is_done) {
			unsigned n = take_group(m, &m->layers[i], taken, words);
			bool is_worth_it = n > 1;

			for (unsigned k = 0; k < m->nlayers; k++)
				is_worth_it |= m->layers[k].is_taken && is_mostly_unused(&m->layers[k]);
			if (is_worth_it)
				r = make_merged(m, &m->layers[i], err);
			for (unsigned k = 0; k < m->nlayers; k++) {
				m->layers[k].is_done |= m->layers[k].is_taken;
				m->layers[k].is_taken = false;
			}
		}
	}
	return r;
}

/* ---- putting them to use ---- */

/*
 * By the folder as it was opened: its name may have become another snapshot's.  One that was deleted meanwhile is no
 * failure.
 */
static int save_index(struct user *u, struct error *err)
{
	const struct snapstore_build folder = { .dir = u->dir, .dir_fd = u->dir_fd };
	struct bytes out = { 0 };
	struct stat st;

	ram_index_drop_unused(&u->now);
	int r = ram_index_save(&u->now, &out, err);

	/* The names of the new layers first. */
	if (r == 0 && host.fsync(u->dir_fd) < 0)
		r = error_set(err, -errno, "cannot sync %s: %s", u->dir, strerror(errno));
	if (r == 0)
		r = snapstore_write(&folder, INDEX_NEW, out.data, out.len, err);
	if (r == 0 && host.renameat(u->dir_fd, INDEX_NEW, u->dir_fd, INDEX) < 0)
		r = error_set(err, -errno, "cannot write %s/%s: %s", u->dir, INDEX, strerror(errno));
	if (r == 0 && host.fsync(u->dir_fd) < 0)
		r = error_set(err, -errno, "cannot sync %s: %s", u->dir, strerror(errno));
	bytes_free(&out);
	return r == -ENOENT && fstat(u->dir_fd, &st) == 0 && !st.st_nlink ? 0 : r;
}

static int save_all(struct merge *m, const char *vm, struct error *err)
{
	_cleanup_close_ int lock = snapstore_lock(vm, true, err);
	int r = lock < 0 ? lock : 0;

	for (unsigned i = 0; r == 0 && i < m->nusers; i++) {
		if (!m->users[i].has_changed)
			continue;
		r = save_index(&m->users[i], err);
		if (r == 0)
			snapstore_remove_unnamed(m->users[i].dir_fd, &m->users[i].now);
	}
	return r;
}

/* No index leads to what was made. */
static void take_back(struct merge *m)
{
	for (unsigned i = 0; i < m->nusers; i++)
		snapstore_remove_unnamed(m->users[i].dir_fd, &m->users[i].files.index);
}

/* By a merge that was killed, or failed. */
static int remove_left_over(struct merge *m, const char *vm, struct error *err)
{
	_cleanup_close_ int lock = snapstore_lock(vm, true, err);

	for (unsigned i = 0; lock >= 0 && i < m->nusers; i++)
		snapstore_remove_unnamed(m->users[i].dir_fd, &m->users[i].now);
	return lock < 0 ? lock : 0;
}

int snapmerge_ram(const char *vm, const struct ram_progress *progress, struct error *err)
{
	struct merge m = { .progress = progress };
	struct snapshot_info *list;
	unsigned n;
	int r = snapstore_list(vm, &list, &n, NULL, NULL, err);

	if (r < 0)
		return r;
	m.users = calloc(n + 1, sizeof(*m.users));
	if (!m.users)
		r = no_memory(err);
	for (unsigned i = 0; r == 0 && i < n; i++)
		r = add_user(&m, vm, list[i].name, err);
	snapstore_list_free(list, n);
	if (r == 0)
		r = remove_left_over(&m, vm, err);
	/* All of one size: a machine's memory does not change, but imported snapshots may be another's. */
	for (unsigned i = 1; i < m.nusers; i++)
		if (m.users[i].now.ram_bytes != m.users[0].now.ram_bytes)
			goto out;
	for (unsigned i = 0; r == 0 && i < m.nusers; i++)
		r = note_layers(&m, i, err);
	if (r == 0 && m.nlayers) {
		m.buf = malloc(m.users[0].now.granule_bytes);
		r = m.buf ? make_all(&m, err) : no_memory(err);
		if (r < 0)
			take_back(&m);
	}
	if (r == 0)
		r = save_all(&m, vm, err);
out:
	merge_free(&m);
	return r;
}
