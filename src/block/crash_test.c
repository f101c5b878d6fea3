/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kill -9 and power cuts at any moment: every flushed write is there, no image has an error.
 *
 *	test_crash [KILLS [CUTS]]	how many of each; both have a default for every day
 *
 * Killed: a child writes, the parent kills it, opens what it left behind, and starts the next child on that; or it commits a layer to the one
 * below.  Power cut: the
 * file calls of the host are replaced; what was written since the last sync of its file reaches the storage in part, sector
 * by sector, or not at all.
 *
 * After either, room may be lost (clusters counted, but used by nothing), as counts are raised first.  With lazy refcounts
 * the next machine counts anew when it opens the image, so that not even that is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/host.h"
#include "base/log.h"
#include "block/testing.h"

#define SECTORS	   8192u
#define SIZE	   (SECTORS * BLOCK_SECTOR)
#define VALUES	   14u /* of a sector since the last flush */
#define MANY	   8u
#define LAYERS_MAX 6u

static unsigned nkills = 50, ncuts = 90;

/* ---- what may be found ---- */

/* A sector is filled with one number; 0: zeroes.  v[0] is flushed, the later ones may or may not be there. */
struct cell {
	uint32_t v[VALUES], n;
};

/* Lives in memory that a killed child leaves to its parent. */
struct model {
	struct cell cells[SECTORS];
	uint32_t last;		      /* number given out */
	unsigned ntops;		      /* layers on the base */
	bool is_gone[LAYERS_MAX + 1]; /* of these: taken in by the one above */
	uint64_t nflushes, nrequests, ntaken;
};
static struct model *model;

/* The layer below the top goes into it, meanwhile. */
#define TAKE_BYTES (512 * KIB)
static uint64_t take_at;    /* how far it is */
static unsigned take_layer; /* 0: none is taken in */

static void append(uint64_t sector, uint64_t n, uint32_t v)
{
	for (uint64_t i = sector; i < sector + n; i++)
		model->cells[i].v[model->cells[i].n++] = v;
}

static bool has_room(uint64_t sector, uint64_t n)
{
	for (uint64_t i = sector; i < sector + n; i++)
		if (model->cells[i].n + 2 > VALUES)
			return false;
	return true;
}

static void flushed(void)
{
	for (unsigned i = 0; i < SECTORS; i++) {
		struct cell *c = &model->cells[i];
		c->v[0] = c->v[c->n - 1];
		c->n = 1;
	}
	model->nflushes++;
}

/* What is there now is what there is. */
static void settle(const uint32_t *content)
{
	for (unsigned i = 0; i < SECTORS; i++) {
		const uint32_t *s = content + i * 128;
		struct cell *c = &model->cells[i];
		bool is_known = false;
		for (unsigned k = 0; k < c->n; k++)
			is_known |= c->v[k] == s[0];
		for (unsigned k = 1; k < 128; k++)
			is_known &= s[k] == s[0];
		if (!is_known)
			fail_msg("sector %u has %u; flushed is %u, the last of %u is %u", i, s[0],
				 c->v[0], c->n, c->v[c->n - 1]);
		c->v[0] = s[0];
		c->n = 1;
	}
}

/* ---- the disk at work ---- */

struct kind {
	const char *name;
	struct image_create c;
	bool makes_layers;
};
static const struct kind kinds[] = {
	{ "64 KiB", { 0 }, false },
	{ "4 KiB, layers", { .cluster_bytes = 4096 }, true },
	{ "512 bytes", { .cluster_bytes = 512, .refcount_bits = 64 }, false },
	{ "extended L2, layers",
	  { .cluster_bytes = 16384, .has_extended_l2 = true, .refcount_bits = 8 },
	  true },
	{ "lazy refcounts", { .cluster_bytes = 4096, .has_lazy_refcounts = true }, false },
	{ "version 2", { .is_v2 = true, .cluster_bytes = 8192 }, false },
};

static struct error err;

#define must(call)                                                                                 \
	do {                                                                                       \
		if ((call) < 0)                                                                    \
			fail_msg("%s", err.text);                                                  \
	} while (0)

static const char *layer_name(unsigned i)
{
	static char names[LAYERS_MAX + 1][16];

	snprintf(names[i], sizeof(names[i]), "l%u.qcow2", i % 10);
	return names[i];
}

static void make_layer(struct fixture *f, const struct kind *k, unsigned i)
{
	struct image_create c = k->c;

	c.format = "qcow2";
	c.size_bytes = SIZE;
	c.may_replace = true;
	c.backing_path = i ? layer_name(i - 1) : NULL;
	c.backing_format = i ? "qcow2" : NULL;
	must(image_create(testing_path(f, layer_name(i)), &c, &err));
}

static void reset_model(struct fixture *f, const struct kind *k)
{
	memset(model, 0, sizeof(*model));
	take_layer = 0;
	for (unsigned i = 0; i < SECTORS; i++)
		model->cells[i].n = 1;
	make_layer(f, k, 0);
}

static struct block_dev *open_top(struct fixture *f, const char *folder, bool is_readonly)
{
	static const struct block_backing_rule any = { .any = true };
	char name[192];

	snprintf(name, sizeof(name), "%s%s", folder, layer_name(model->ntops));
	return testing_open(f, (struct block_open){ .path = testing_path(f, name),
						    .format = "qcow2",
						    .backing = &any,
						    .is_readonly = is_readonly });
}

struct job {
	struct block_req req;
	struct iovec iov;
	uint32_t buf[64 * 128];
	unsigned *nleft;
};

static void on_done(struct block_req *req, int result)
{
	const struct job *j = req->owner;

	if (result)
		fail_msg("operation %d: %s", req->op, strerror(-result));
	--*j->nleft;
}

static void submit(struct fixture *f, struct block_dev *b, struct job *j, uint64_t sector, uint64_t n)
{
	static const enum block_op ops[] = { BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE,
					     BLOCK_WRITE_ZEROES, BLOCK_DISCARD };
	enum block_op op = ops[testing_random(f) % ARRAY_SIZE(ops)];
	uint32_t v = op == BLOCK_WRITE ? ++model->last : 0;

	j->iov = (struct iovec){ j->buf, n * 512 };
	j->req = (struct block_req){ .op = op,
				     .may_unmap = testing_random(f) & 1,
				     .offset_bytes = sector * 512,
				     .len_bytes = n * 512,
				     .iov = &j->iov,
				     .niov = 1,
				     .done = on_done,
				     .owner = j };
	for (uint64_t i = 0; i < n * 128; i++)
		j->buf[i] = v;
	append(sector, n, v);
	model->nrequests++;
	++*j->nleft;
	int r = b->ops->try_now(b, &j->req);
	if (r != -EAGAIN)
		on_done(&j->req, r);
	else
		b->ops->submit(b, &j->req);
}

static void flush(struct fixture *f, struct block_dev *b)
{
	assert_int_equal(testing_run(f, b, (struct block_req){ .op = BLOCK_FLUSH }), 0);
	flushed();
}

/* A discard left what was there or zeroes: see which. */
static void look_at_discard(struct fixture *f, struct block_dev *b, const struct job *j)
{
	static uint32_t buf[64 * 128];

	if (j->req.op != BLOCK_DISCARD)
		return;
	assert_int_equal(testing_rw(f, b, BLOCK_READ, j->req.offset_bytes, buf, j->req.len_bytes), 0);
	for (uint64_t i = 0; i < j->req.len_bytes / 512; i++)
		append(j->req.offset_bytes / 512 + i, 1, buf[i * 128]);
}

static void push_layer(struct fixture *f, struct block_dev *b, const struct kind *k)
{
	if (model->ntops + 1 > LAYERS_MAX)
		return;
	make_layer(f, k, model->ntops + 1);
	const struct block_open top = { .path = testing_path(f, layer_name(model->ntops + 1)),
					.format = "qcow2" };
	must(block_push_layer(b, &top, &err));
	model->ntops++;
}

/* ---- the layer below the top goes into it, meanwhile ---- */

/* Of the layers below the top, those that are there. */
static unsigned below_top(unsigned top)
{
	while (top && model->is_gone[--top])
		continue;
	return top;
}

/* The next piece, beside what else is under way. */
static void begin_to_take_in(struct fixture *f, struct block_dev *b, unsigned *nleft)
{
	static struct job job;

	if (!below_top(model->ntops))
		return; /* the lowest stays */
	if (take_layer != model->ntops) {
		take_layer = model->ntops;
		take_at = 0;
		flush(f, b); /* what was pushed is sealed */
	}
	job.nleft = nleft;
	job.req = (struct block_req){ .op = BLOCK_TAKE_IN,
				      .offset_bytes = take_at,
				      .len_bytes = MIN(SIZE - take_at, TAKE_BYTES),
				      .done = on_done,
				      .owner = &job };
	take_at += job.req.len_bytes;
	++*nleft;
	b->ops->submit(b, &job.req);
}

/* It has all of it. */
static void drop_below(struct fixture *f, struct block_dev *b)
{
	unsigned below = below_top(model->ntops);

	flush(f, b);
	assert_int_equal(testing_run(f, b, (struct block_req){ .op = BLOCK_NAME_BELOW }), 0);
	must(block_drop_below(b, &err));
	model->is_gone[below] = true;
	take_layer = 0;
	model->ntaken++;
}

/* Some requests at once; @in_between is called while they are in flight. */
static void round_of_work(struct fixture *f, struct block_dev *b, const struct kind *k,
			  void (*in_between)(struct fixture *f))
{
	static struct job jobs[MANY];
	unsigned nleft = 0, n = 0;
	uint64_t base = testing_random(f) % SECTORS;

	if (k->makes_layers && testing_random(f) % 2)
		begin_to_take_in(f, b, &nleft);
	for (; n < MANY; n++) {
		uint64_t len = 1 + testing_random(f) % 64;
		base += testing_random(f) % 2 ? 0 : testing_random(f) % 64;
		if (base + len > SECTORS)
			break;
		if (!has_room(base, len)) {
			for (unsigned i = 0; nleft && i < 2000; i++)
				loop_run_once(f->loop, 10);
			flush(f, b);
		}
		jobs[n].nleft = &nleft;
		submit(f, b, &jobs[n], base, len);
		base += len;
		if (in_between)
			in_between(f);
	}
	for (unsigned i = 0; nleft && i < 2000; i++) {
		loop_run_once(f->loop, 10);
		if (in_between)
			in_between(f);
	}
	assert_int_equal(nleft, 0);
	for (unsigned i = 0; i < n; i++)
		look_at_discard(f, b, &jobs[i]);
	if (testing_random(f) % 3 == 0)
		flush(f, b);
	if (k->makes_layers && testing_random(f) % 40 == 0)
		push_layer(f, b, k);
	else if (take_layer && take_layer == model->ntops && take_at == SIZE)
		drop_below(f, b); /* a layer that came on top meanwhile holds nothing of it yet */
}

/* ---- judging ---- */

static void judge_image(struct fixture *f, const char *name, bool may_leak)
{
	struct image_check c;

	must(image_check(testing_path(f, name), "qcow2", false, &c, NULL, &err));
	if (c.nerrors || (c.nleaks && !may_leak))
		fail_msg("%s: %llu errors, %llu leaks: %s", name, (unsigned long long)c.nerrors,
			 (unsigned long long)c.nleaks, c.first_error);
	if (!f->has_qemu_img)
		return;
	int r = testing_sh(f, "qemu-img check -f qcow2 %s", name);
	if (r != 0 && !(r == 3 && may_leak)) /* 3: leaks only */
		fail_msg("qemu-img check %s: status %d", name, r);
}

/* What was left behind, in @folder ("" or "cut/"). */
static void judge(struct fixture *f, const struct kind *k, const char *folder)
{
	static uint32_t content[SIZE / 4];
	bool is_lazy = k->c.has_lazy_refcounts;
	char name[192];

	/* Lazy counts are right after the next open only. */
	for (unsigned i = 0; !is_lazy && i <= model->ntops; i++) {
		if (model->is_gone[i])
			continue;
		snprintf(name, sizeof(name), "%s%s", folder, layer_name(i));
		judge_image(f, name, true);
	}
	struct block_dev *b = open_top(f, folder, false);
	assert_int_equal(testing_rw(f, b, BLOCK_READ, 0, content, SIZE), 0);
	b->ops->close(b);
	settle(content);
	for (unsigned i = 0; i <= model->ntops; i++) {
		struct image_check c;
		if (model->is_gone[i])
			continue;
		snprintf(name, sizeof(name), "%s%s", folder, layer_name(i));
		/* A layer below was opened for reading only. */
		if (!is_lazy || i < model->ntops)
			must(image_check(testing_path(f, name), "qcow2", true, &c, NULL, &err));
		judge_image(f, name, false);
	}
}

/* ---- killed ---- */

/* Of one that was killed while it did without a layer, the top says whether it does. */
static void find_layers(struct fixture *f)
{
	struct image_info i;

	if (!model->ntops)
		return;
	must(image_info(testing_path(f, layer_name(model->ntops)), "qcow2", &i, &err));
	for (unsigned k = model->ntops; k-- && strcmp(i.backing_path, layer_name(k)) != 0;)
		model->is_gone[k] = true;
	image_info_free(&i);
}

static void child(struct fixture *f, const struct kind *k)
{
	find_layers(f);
	struct block_dev *b = open_top(f, "", false);

	take_layer = 0;
	for (;;)
		round_of_work(f, b, k, NULL);
}

static void test_killed(void **state)
{
	struct fixture *f = *state;
	uint64_t nflushes = 0, nrequests = 0, ntaken = 0;

	for (unsigned i = 0; i < nkills; i++) {
		const struct kind *k = &kinds[i / 4 % ARRAY_SIZE(kinds)];
		if (i % 4 == 0) {
			nflushes += model->nflushes;
			nrequests += model->nrequests;
			ntaken += model->ntaken;
			reset_model(f, k);
		}
		f->seed = i * 7919 + 1;
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (!pid) {
			struct loop *l;
			if (loop_create(&l, NULL, &err) == 0) {
				f->loop = l;
				child(f, k);
			}
			_exit(1);
		}
		usleep(2000 + testing_random(f) % 60000);
		int status;
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* it did not fail by itself */
		judge(f, k, "");
	}
	print_message("%u kills, %llu requests, %llu flushes, %llu layers taken in\n", nkills,
		      (unsigned long long)(nrequests + model->nrequests),
		      (unsigned long long)(nflushes + model->nflushes),
		      (unsigned long long)(ntaken + model->ntaken));
}

/* ---- killed in a commit ---- */

/* A base and a top over it, both written to; nothing is in flight, everything flushed. */
static void write_both(struct fixture *f, const struct kind *k, unsigned nrounds)
{
	struct kind plain = *k;
	struct block_dev *b = open_top(f, "", false);

	plain.makes_layers = false;
	for (unsigned i = 0; i < nrounds; i++)
		round_of_work(f, b, &plain, NULL);
	if (!model->ntops)
		push_layer(f, b, k);
	for (unsigned i = 0; i < nrounds; i++)
		round_of_work(f, b, &plain, NULL);
	flush(f, b);
	b->ops->close(b);
}

static int commit_top(struct fixture *f, const struct image_progress *p)
{
	static const struct block_backing_rule any = { .any = true };
	const struct block_open top = { .path = testing_path(f, layer_name(model->ntops)),
					.format = "qcow2",
					.backing = &any };

	return image_commit(&top, p, &err);
}

/* The base alone is the disk. */
static void judge_committed(struct fixture *f)
{
	static uint32_t content[SIZE / 4];

	must(commit_top(f, NULL));
	model->ntops = 0;
	struct block_dev *b = open_top(f, "", true);

	assert_int_equal(testing_rw(f, b, BLOCK_READ, 0, content, SIZE), 0);
	b->ops->close(b);
	settle(content);
	model->ntops = 1;
}

/* Into a base with counts that wait to be written, among others: whatever was written of it, the top has its content. */
static void test_killed_commit(void **state)
{
	struct fixture *f = *state;
	unsigned ndone = 0;

	for (unsigned i = 0; i < nkills; i++) {
		const struct kind *k = &kinds[i / 8 % ARRAY_SIZE(kinds)];
		int status;

		f->seed = i * 104729 + 1;
		if (i % 8 == 0)
			reset_model(f, k);
		write_both(f, k, 2 + testing_random(f) % 6);
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (!pid)
			_exit(commit_top(f, NULL) < 0);
		usleep(testing_random(f) % 6000);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (WIFEXITED(status)) {
			assert_int_equal(WEXITSTATUS(status), 0);
			ndone++;
		}
		judge(f, k, "");
		if (i % 4 == 3)
			judge_committed(f);
	}
	print_message("%u commits killed, %u of them at their end\n", nkills, ndone);
}

/* ---- power cuts ---- */

struct pending {
	uint64_t at, len;
	uint8_t *data; /* NULL: zeroes */
};

struct storage {
	ino_t ino;
	char name[16];
	uint8_t *stable;
	uint64_t stable_len, cap;
	struct pending *pending;
	size_t n, room;
};

#define FILES_MAX 16u
static struct storage files[FILES_MAX];
static unsigned nfiles;
static pthread_mutex_t sim_lock = PTHREAD_MUTEX_INITIALIZER;

/* Under @sim_lock.  NULL: no image. */
static struct storage *storage_of(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return NULL;
	for (unsigned i = 0; i < nfiles; i++)
		if (files[i].ino == st.st_ino)
			return &files[i];
	if (nfiles == FILES_MAX)
		return NULL;
	files[nfiles] = (struct storage){ .ino = st.st_ino };
	char link[64], path[256] = "";
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (readlink(link, path, sizeof(path) - 1) < 0)
		return NULL;
	const char *name = strrchr(path, '/');
	if (!name || strstr(path, "/cut/") || !strstr(name, ".qcow2"))
		return NULL;
	snprintf(files[nfiles].name, sizeof(files[0].name), "%s", name + 1);
	return &files[nfiles++];
}

static void apply(uint8_t **data, uint64_t *len, uint64_t *cap, const struct pending *p,
		  uint64_t from, uint64_t n)
{
	uint64_t end = p->at + from + n;

	if (end > *cap) {
		uint64_t bigger = end * 2;
		*data = realloc(*data, bigger);
		assert_non_null(*data);
		memset(*data + *cap, 0, bigger - *cap);
		*cap = bigger;
	}
	if (p->data)
		memcpy(*data + p->at + from, p->data + from, n);
	else
		memset(*data + p->at + from, 0, n);
	*len = MAX(*len, end);
}

static void log_write_of(int fd, const struct iovec *iov, int niov, uint64_t len, uint64_t at)
{
	struct storage *s = storage_of(fd);
	uint64_t done = 0;

	if (!s)
		return;
	if (s->n == s->room) {
		s->room = s->room ? 2 * s->room : 64;
		s->pending = realloc(s->pending, s->room * sizeof(*s->pending));
		assert_non_null(s->pending);
	}
	uint8_t *data = iov ? malloc(len + 1) : NULL;
	for (int i = 0; data && i < niov && done < len; i++) {
		size_t n = MIN((uint64_t)iov[i].iov_len, len - done);
		memcpy(data + done, iov[i].iov_base, n);
		done += n;
	}
	s->pending[s->n++] = (struct pending){ at, len, data };
}

static ssize_t sim_pwritev(int fd, const struct iovec *iov, int niov, off_t at)
{
	pthread_mutex_lock(&sim_lock);
	ssize_t r = host_calls_real.pwritev(fd, iov, niov, at);
	if (r > 0)
		log_write_of(fd, iov, niov, (uint64_t)r, (uint64_t)at);
	pthread_mutex_unlock(&sim_lock);
	return r;
}

static int sim_fallocate(int fd, int mode, off_t at, off_t len)
{
	pthread_mutex_lock(&sim_lock);
	int r = host_calls_real.fallocate(fd, mode, at, len);
	struct stat st;
	/* The size stays, so what lies behind the end is nothing. */
	if (r == 0 && fstat(fd, &st) == 0 && at < st.st_size)
		log_write_of(fd, NULL, 0, (uint64_t)MIN(len, st.st_size - at), (uint64_t)at);
	pthread_mutex_unlock(&sim_lock);
	return r;
}

static int sim_ftruncate(int fd, off_t len)
{
	pthread_mutex_lock(&sim_lock);
	int r = host_calls_real.ftruncate(fd, len);
	struct storage *s = storage_of(fd);
	if (s && r == 0) { /* only new files are cut: nothing of before counts */
		for (size_t i = 0; i < s->n; i++)
			free(s->pending[i].data);
		s->n = 0;
		s->stable_len = 0;
		if (s->cap)
			memset(s->stable, 0, s->cap);
	}
	pthread_mutex_unlock(&sim_lock);
	return r;
}

static int sim_fdatasync(int fd)
{
	pthread_mutex_lock(&sim_lock);
	const struct storage *s = storage_of(fd);
	size_t n = s ? s->n : 0;
	pthread_mutex_unlock(&sim_lock);
	usleep(300); /* others go on writing, and the power may fail */
	pthread_mutex_lock(&sim_lock);
	struct storage *t = storage_of(fd);
	n = t ? MIN(n, t->n) : 0;
	for (size_t i = 0; i < n; i++) {
		apply(&t->stable, &t->stable_len, &t->cap, &t->pending[i], 0, t->pending[i].len);
		free(t->pending[i].data);
	}
	if (n) {
		memmove(t->pending, t->pending + n, (t->n - n) * sizeof(*t->pending));
		t->n -= n;
	}
	pthread_mutex_unlock(&sim_lock);
	return 0;
}

/* Under @sim_lock: what the storage of @s has when the power fails now. */
static void write_cut(struct fixture *f, const struct storage *s)
{
	uint64_t cap = MAX(s->cap, 1ULL), len = s->stable_len;
	uint8_t *data = malloc(cap);
	char name[192];
	unsigned odds = testing_random(f) % 5; /* of 4 that a write arrives */

	assert_non_null(data);
	if (s->cap)
		memcpy(data, s->stable, s->cap);
	for (size_t i = 0; i < s->n; i++) {
		const struct pending *p = &s->pending[i];
		bool is_torn = testing_random(f) % 4 == 0;
		if (!is_torn && testing_random(f) % 4 < odds)
			apply(&data, &len, &cap, p, 0, p->len);
		for (uint64_t at = 0, n; is_torn && at < p->len; at += n) {
			n = MIN(p->len - at, 512 - ((p->at + at) & 511));
			if (testing_random(f) % 4 < odds)
				apply(&data, &len, &cap, p, at, n);
		}
	}
	snprintf(name, sizeof(name), "cut/%s", s->name);
	int fd = open(testing_path(f, name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), len);
	close(fd);
	free(data);
}

static unsigned cuts_left;
static const struct kind *cut_kind;

static void maybe_cut(struct fixture *f)
{
	if (!cuts_left || testing_random(f) % 24)
		return;
	cuts_left--;
	pthread_mutex_lock(&sim_lock);
	for (unsigned i = 0; i < nfiles; i++)
		write_cut(f, &files[i]);
	pthread_mutex_unlock(&sim_lock);
	/* This disk goes on as if nothing had been; the other world's model is thrown away. */
	struct model *was = malloc(sizeof(*was));
	assert_non_null(was);
	memcpy(was, model, sizeof(*was));
	judge(f, cut_kind, "cut/");
	memcpy(model, was, sizeof(*was));
	free(was);
}

static int no_uring(unsigned entries, void *ring)
{
	return -ENOSYS;
}

/* The files of the host are the simulated storage's, until power_off(); what io_uring does it would not see. */
static void power_on(void)
{
	host.uring_init = no_uring;
	host.pwritev = sim_pwritev;
	host.fallocate = sim_fallocate;
	host.fdatasync = host.fsync = sim_fdatasync;
	host.ftruncate = sim_ftruncate;
}

static void power_off(struct fixture *f)
{
	host = host_calls_real;
	for (unsigned k = 0; k < nfiles; k++) {
		for (size_t p = 0; p < files[k].n; p++)
			free(files[k].pending[p].data);
		free(files[k].pending);
		free(files[k].stable);
	}
	nfiles = 0;
	testing_sh(f, "rm -f *.qcow2 cut/*");
}

static bool cut_commit(void *arg, uint64_t done, uint64_t total)
{
	for (unsigned i = 0; i < 8; i++)
		maybe_cut(arg);
	return false; /* it goes on */
}

static void test_power_cut_commit(void **state)
{
	struct fixture *f = *state;
	const struct image_progress progress = { cut_commit, f };

	assert_int_equal(testing_sh(f, "mkdir -p cut"), 0);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		cut_kind = &kinds[i];
		cuts_left = 1 + ncuts / 3 / (unsigned)ARRAY_SIZE(kinds);
		f->seed = (uint32_t)i + 171;
		power_on();
		reset_model(f, cut_kind);
		while (cuts_left) {
			write_both(f, cut_kind, 3);
			must(commit_top(f, &progress));
		}
		judge_committed(f);
		power_off(f);
	}
}

static void test_power_cut(void **state)
{
	struct fixture *f = *state;
	uint64_t nflushes = 0, nrequests = 0, ntaken = 0;

	assert_int_equal(testing_sh(f, "mkdir -p cut"), 0);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		cut_kind = &kinds[i];
		cuts_left = (unsigned)((ncuts + i) / ARRAY_SIZE(kinds));
		f->seed = (uint32_t)i + 17;
		power_on();
		reset_model(f, cut_kind);
		struct block_dev *b = open_top(f, "", false);
		flush(f, b);
		while (cuts_left)
			round_of_work(f, b, cut_kind, maybe_cut);
		b->ops->close(b);
		nflushes += model->nflushes;
		nrequests += model->nrequests;
		ntaken += model->ntaken;
		power_off(f);
	}
	print_message("%u power cuts, %llu requests, %llu flushes, %llu layers taken in\n", ncuts,
		      (unsigned long long)nrequests, (unsigned long long)nflushes,
		      (unsigned long long)ntaken);
}

int main(int argc, char **argv)
{
#define T(name) cmocka_unit_test_setup_teardown(name, testing_setup, testing_teardown)
	const struct CMUnitTest tests[] = { T(test_killed), T(test_killed_commit),
					    T(test_power_cut), T(test_power_cut_commit) };

	if (argc > 1)
		nkills = (unsigned)strtoul(argv[1], NULL, 0);
	if (argc > 2)
		ncuts = (unsigned)strtoul(argv[2], NULL, 0);
	model = mmap(NULL, sizeof(*model), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (model == MAP_FAILED)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
