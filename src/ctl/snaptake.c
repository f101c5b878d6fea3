/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/snaptake.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/log.h"
#include "block/block.h"
#include "ctl/paths.h"
#include "vm/machine.h"

#define CHILD_NICE 10

struct take {
	struct snapper *s;
	struct snapstore_build build;
	struct ram_index index; /* of the new snapshot; the child completes its copy */
	unsigned layer;
	int ram_fd;
	struct bytes state;
	json_t *info;
	uint64_t *dirty; /* changed since the parent; NULL: all counts as changed */
	uint64_t pause_us;
	bool is_written;
	/* New layers of the disks: in the configuration, not on top yet; formats of what is below. */
	bool is_announced[MACHINE_MAX_DISKS], has_announced;
	char *old_formats[MACHINE_MAX_DISKS];
	struct block_req flushes[MACHINE_MAX_DISKS];
	unsigned nflushing;
	bool is_flush_failed;
	bool is_gone; /* canceled, but flushes are under way */

	pid_t pid;
	int from_child, to_child;
	struct loop_fd *watch;
	char line[512];
	size_t line_len;
	uint64_t done_bytes, total_bytes, written_bytes;
	struct error failure; /* what the child said */
	snapper_done_fn done;
	void *ctx;
};

struct snapper {
	struct machine *m;
	struct vmconfig *config;
	struct vmdisks *disks;
	const struct block_backing_rule *backing;
	/* What memory is compared with: the last snapshot taken or restored. */
	char *base_name;
	struct ram_files base;
	struct snapshot_state base_state;
	uint64_t *dirty; /* changed since then, as far as collected */
	bool is_logging;
	uint64_t writes[MACHINE_MAX_DISKS]; /* machine_block_writes() at that time */
	struct take *take;
};

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static size_t bitmap_words(const struct snapper *s)
{
	return ((machine_ram(s->m)->size_bytes >> GUEST_PAGE_SHIFT) + 63) / 64;
}

/* ---- the log of changed pages ---- */

static void forget_base(struct snapper *s)
{
	ram_files_close(&s->base);
	snapshot_state_free(&s->base_state);
	free(s->base_name);
	s->base_name = NULL;
}

static int collect(struct snapper *s, struct error *err)
{
	size_t n = bitmap_words(s);
	_cleanup_free_ uint64_t *now = malloc(n * sizeof(*now));

	if (!now)
		return error_set(err, -ENOMEM, "no memory for the log of changed pages");
	int r = machine_engine(s->m)->dirty_collect(machine_vm(s->m), now, err);

	for (size_t i = 0; r == 0 && i < n; i++)
		s->dirty[i] |= now[i];
	return r;
}

/* From now on against what memory is now; the machine is paused. */
static int start_log(struct snapper *s, struct error *err)
{
	if (!s->dirty)
		s->dirty = malloc(bitmap_words(s) * sizeof(*s->dirty));
	if (!s->dirty)
		return error_set(err, -ENOMEM, "no memory for the log of changed pages");
	memset(s->dirty, 0, bitmap_words(s) * sizeof(*s->dirty));
	/* What was logged before is older than that. */
	int r = s->is_logging ? machine_engine(s->m)->dirty_collect(machine_vm(s->m), s->dirty, err)
			      : machine_engine(s->m)->dirty_start(machine_vm(s->m), err);

	s->is_logging |= r == 0;
	memset(s->dirty, 0, bitmap_words(s) * sizeof(*s->dirty));
	return r;
}

/* ---- life cycle ---- */

int snapper_create(struct snapper **out, const struct snapper_config *cfg, struct error *err)
{
	struct snapper *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(err, -ENOMEM, "no memory for snapshots");
	s->m = cfg->machine;
	s->config = cfg->config;
	s->disks = cfg->disks;
	s->backing = cfg->backing;
	*out = s;
	return 0;
}

static void take_free(struct take *t)
{
	loop_fd_remove(t->watch);
	if (t->from_child >= 0)
		close(t->from_child);
	if (t->to_child >= 0)
		close(t->to_child);
	if (t->ram_fd >= 0)
		close(t->ram_fd);
	ram_index_free(&t->index);
	bytes_free(&t->state);
	json_decref(t->info);
	t->info = NULL;
	free(t->dirty);
	t->dirty = NULL;
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		free(t->old_formats[i]);
		t->old_formats[i] = NULL;
	}
	t->watch = NULL;
	t->from_child = t->to_child = t->ram_fd = -1;
	t->is_gone = true;
	if (!t->nflushing) /* else the last flush calls again */
		free(t);
}

/* Kill the child, remove its folder. */
static void take_cancel(struct take *t)
{
	t->s->take = NULL;
	if (t->pid > 0) {
		kill(t->pid, SIGKILL);
		while (waitpid(t->pid, NULL, 0) < 0 && errno == EINTR)
			continue;
	}
	/* It may have come to its end in this very moment. */
	if (t->is_written && t->build.final && access(t->build.final, F_OK) == 0)
		snapstore_release(&t->build);
	else
		snapstore_end(&t->build);
	take_free(t);
}

void snapper_destroy(struct snapper *s)
{
	if (!s)
		return;
	if (s->take)
		take_cancel(s->take);
	forget_base(s);
	free(s->dirty);
	free(s);
}

void snapper_forget(struct snapper *s, void *ctx)
{
	if (s->take && s->take->ctx == ctx)
		take_cancel(s->take);
}

bool snapper_progress(const struct snapper *s, uint64_t *done_bytes, uint64_t *total_bytes)
{
	if (!s->take)
		return false;
	*done_bytes = s->take->done_bytes;
	*total_bytes = s->take->total_bytes;
	return true;
}

/* ---- the child ---- */

static void tell_parent(int fd, const char *text)
{
	/* A parent that is gone shows when its word is awaited. */
	if (write(fd, text, strlen(text)) < 0)
		return;
}

static bool tell_progress(void *arg, uint64_t done, uint64_t total)
{
	const struct take *t = arg;
	char line[64];

	snprintf(line, sizeof(line), "p %llu %llu\n", (unsigned long long)done, (unsigned long long)total);
	tell_parent(t->from_child, line);
	return true;
}

static int child_write(struct take *t, struct error *err)
{
	struct ram_progress progress = { tell_progress, t };
	struct bytes index = { 0 };
	struct stat st;
	char line[64];
	int r = ram_write_layer(&t->index, t->layer, t->ram_fd, machine_ram(t->s->m)->base,
				t->dirty, &progress, err);

	if (r == 0 && fsync(t->ram_fd) < 0)
		r = error_set(err, -errno, "cannot write guest memory: %s", strerror(errno));
	for (uint32_t i = 0; r == 0 && i < t->index.nlayers; i++) {
		bool is_used = false;

		for (uint32_t g = 0; g < t->index.ngranules && !is_used; g++)
			is_used = t->index.layer[g] == i + 1;
		if (!is_used && unlinkat(t->build.dir_fd, t->index.layers[i], 0) < 0)
			r = error_set(err, -errno, "cannot remove %s: %s", t->index.layers[i],
				      strerror(errno));
	}
	if (r == 0) {
		snprintf(line, sizeof(line), "b %llu\n",
			 fstat(t->ram_fd, &st) == 0 ? (unsigned long long)st.st_blocks * 512 : 0ULL);
		tell_parent(t->from_child, line);
		ram_index_drop_unused(&t->index);
		r = ram_index_save(&t->index, &index, err);
	}
	if (r == 0)
		r = snapstore_write(&t->build, "ram.index", index.data, index.len, err);
	if (r == 0)
		r = snapstore_write(&t->build, "state", t->state.data, t->state.len, err);
	if (r == 0) {
		char *text = json_dumps(t->info, JSON_INDENT(2));

		r = text ? snapstore_write(&t->build, "snapshot.json", text, strlen(text), err)
			 : error_set(err, -ENOMEM, "no memory for the snapshot's description");
	}
	return r;
}

/* Everything but what it writes to: a socket held open here would outlive the machine. */
static void close_others(const struct take *t)
{
	int keep[] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO,  t->from_child,
		       t->to_child,  t->ram_fd,	    t->build.dir_fd };
	int last = 0;

	for (size_t i = 0; i < ARRAY_SIZE(keep); i++)
		last = MAX(last, keep[i]);
	for (int fd = 0; fd <= last; fd++) {
		bool is_kept = false;

		for (size_t i = 0; i < ARRAY_SIZE(keep); i++)
			is_kept |= keep[i] == fd;
		if (!is_kept)
			close(fd);
	}
	close_range((unsigned)last + 1, ~0u, 0);
}

static int await_word(const struct take *t, struct error *err)
{
	ssize_t n;
	char word;

	do
		n = read(t->to_child, &word, 1);
	while (n < 0 && errno == EINTR);
	return n == 1 ? 0 : error_set(err, -ECANCELED, "canceled");
}

static void child_main(struct take *t)
{
	struct error err = { "" };
	char line[600];

	prctl(PR_SET_NAME, "viv-snapshot");
	/* The machine goes on first, and has the processors when it wants them. */
	int r = await_word(t, &err);

	setpriority(PRIO_PROCESS, 0, CHILD_NICE);
	close_others(t);
	if (r == 0)
		r = child_write(t, &err);
	if (r == 0) {
		tell_parent(t->from_child, "w\n");
		r = await_word(t, &err);
	}
	if (r == 0)
		r = snapstore_commit(&t->build, &err);
	if (r < 0) {
		snapstore_end(&t->build);
		snprintf(line, sizeof(line), "e %s\n", err.text);
		tell_parent(t->from_child, line);
	}
	_exit(r < 0);
}

/* ---- the parent, afterwards ---- */

/* What was taken is what memory is compared with from now on.  Without it the next snapshot is a whole one. */
static void adopt_base(struct take *t)
{
	struct snapper *s = t->s;
	struct error err;

	forget_base(s);
	s->base_name = strdup(t->build.name);
	if (!s->base_name || snapstore_open_ram(s->config->name, t->build.name, &s->base, &err) < 0 ||
	    snapshot_state_parse(&s->base_state, t->state.data, t->state.len, &err) < 0) {
		log_warn("snapshot", "the next snapshot will be a whole one: %s",
			 s->base_name ? err.text : "no memory");
		forget_base(s);
	}
}

/* The bits that were moved to the snapshot under way belong to the base again. */
static void give_back_dirty(struct take *t)
{
	struct snapper *s = t->s;

	if (!s->base_name)
		return;
	if (!t->dirty || !s->dirty) {
		forget_base(s); /* unknown what changed */
		return;
	}
	for (size_t i = 0; i < bitmap_words(s); i++)
		s->dirty[i] |= t->dirty[i];
}

static void finish(struct take *t)
{
	struct error err = t->failure;
	json_t *result = NULL;
	int status = -1;

	t->s->take = NULL;
	while (waitpid(t->pid, &status, 0) < 0 && errno == EINTR)
		continue;
	t->pid = 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		adopt_base(t);
		result = json_pack("{s:I, s:I, s:o}", "pause_us", (json_int_t)t->pause_us, "bytes",
				   (json_int_t)t->written_bytes, "parent",
				   json_incref(json_object_get(t->info, "parent")) ?: json_null());
		snapstore_release(&t->build);
	} else {
		if (!err.text[0])
			error_set(&err, -ECHILD,
				  "the process that wrote the snapshot died; vm.log may tell why");
		give_back_dirty(t);
		snapstore_end(&t->build);
	}
	t->done(t->ctx, result, result ? NULL : &err);
	json_decref(result);
	take_free(t);
}

/* The child waits for one after the fork and one after writing.  One that is gone is noticed by its pipe. */
static void give_word(const struct take *t)
{
	if (write(t->to_child, "g", 1) != 1)
		log_debug("snapshot", "the writing process is gone");
}

/* All is written, disks too: the snapshot may get its name. */
static void go_if_done(struct take *t)
{
	if (!t->is_written || t->nflushing)
		return;
	if (t->is_flush_failed) {
		error_set(&t->failure, -EIO, "a disk of the machine could not be made stable");
		kill(t->pid, SIGKILL);
		return;
	}
	give_word(t);
}

static void on_flushed(struct block_req *req, int result)
{
	struct take *t = req->owner;

	t->nflushing--;
	t->is_flush_failed |= result < 0;
	if (!t->is_gone)
		go_if_done(t);
	else if (!t->nflushing)
		take_free(t);
}

static void take_line(struct take *t, const char *line)
{
	unsigned long long a, b;

	if (sscanf(line, "p %llu %llu", &a, &b) == 2) {
		t->done_bytes = a;
		t->total_bytes = b;
	} else if (sscanf(line, "b %llu", &a) == 1) {
		t->written_bytes = a;
	} else if (line[0] == 'w') {
		t->is_written = true;
		go_if_done(t);
	} else if (line[0] == 'e') {
		error_set(&t->failure, -EIO, "%s", line + 2);
	}
}

static void on_child(void *arg, int fd, unsigned events)
{
	struct take *t = arg;
	char buf[512];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		finish(t);
		return;
	}
	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] != '\n') {
			if (t->line_len < sizeof(t->line) - 1)
				t->line[t->line_len++] = buf[i];
			continue;
		}
		t->line[t->line_len] = 0;
		t->line_len = 0;
		take_line(t, t->line);
	}
}

/* ---- the parent, before ---- */

/* Layers of the base into the new folder.  The base may have been deleted meanwhile: then all is written. */
static bool link_base(struct take *t)
{
	struct snapper *s = t->s;
	struct error err;

	if (!s->base_name)
		return false;
	for (uint32_t i = 0; i < s->base.index.nlayers; i++) {
		_cleanup_free_ char *path =
			snapstore_path(s->config->name, s->base_name, s->base.index.layers[i], &err);

		if (!path ||
		    snapstore_add_file(&t->build, path, s->base.index.layers[i], false, &err) < 0) {
			for (uint32_t k = 0; k < i; k++)
				unlinkat(t->build.dir_fd, s->base.index.layers[k], 0);
			return false;
		}
	}
	return true;
}

static int prepare_memory(struct take *t, bool *has_base, struct error *err)
{
	char name[RAM_LAYER_NAME];
	uint64_t random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "the host gives no random numbers");
	snprintf(name, sizeof(name), "ram-%016llx", (unsigned long long)random);
	*has_base = t->s->base.index.nlayers < RAM_LAYERS_MAX - 1 && link_base(t);
	int r = *has_base ? ram_index_copy(&t->index, &t->s->base.index, err)
			  : ram_index_init(&t->index, machine_ram(t->s->m)->size_bytes, err);

	if (r < 0)
		return r;
	r = ram_index_add_layer(&t->index, name, err);
	if (r < 0)
		return r;
	t->layer = (unsigned)r;
	t->ram_fd = openat(t->build.dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return t->ram_fd < 0 ? error_set(err, -errno, "cannot write the snapshot's memory: %s",
					 strerror(errno))
			     : 0;
}

static int check_disks(const struct snapper *s, struct error *err)
{
	for (unsigned i = 0; i < s->config->ndisks; i++)
		if (s->config->disks[i].is_snapshot)
			return error_set(err, -ENOTSUP,
					 "what this machine writes to disk %u (%s) is thrown away "
					 "at its end, so a snapshot "
					 "cannot keep it; a machine with a name (viv run --name) "
					 "has a disk of its own",
					 i, s->config->disks[i].path);
	return 0;
}

/* Layers for the time after the snapshot, empty: until they are on top, the disks read the same through either. */
static int prepare_disks(struct take *t, struct error *err)
{
	struct snapper *s = t->s;
	struct block_info info;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++) {
		_cleanup_free_ char *path = NULL;

		if (!vmdisks_is_layered(s->config, i))
			continue;
		struct block_dev *b = machine_block(s->m, i);

		b->ops->info(b, &info);
		t->old_formats[i] = strdup(s->config->disks[i].format);
		r = t->old_formats[i] ? vmdisks_new_top(s->disks, i, info.size_bytes, &path, err)
				      : error_set(err, -ENOMEM, "no memory for a snapshot");
		if (r == 0)
			r = vmdisks_push(s->disks, i, path, err);
		t->is_announced[i] = r == 0;
		t->has_announced |= r == 0;
	}
	/* Whatever happens from here on, the machine finds what it wrote. */
	return r == 0 && t->has_announced ? vmconfig_save(s->config, err) : r;
}

/* Layers that did not come on top. */
static void drop_disks(struct take *t)
{
	bool has_any = false;
	struct error err;

	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (!t->is_announced[i])
			continue;
		vmdisks_pop(t->s->disks, i, t->old_formats[i]);
		t->is_announced[i] = false;
		has_any = true;
	}
	if (has_any && vmconfig_save(t->s->config, &err) < 0)
		log_error("snapshot", "%s", err.text);
}

static int prepare(struct take *t, const char *name, bool *has_base, struct error *err)
{
	struct snapper *s = t->s;
	const char *names[MACHINE_MAX_DISKS];
	json_t *config = NULL;
	int r = check_disks(s, err);

	if (r == 0)
		r = snapstore_begin(&t->build, s->config->name, name, err);
	if (r == 0)
		r = vmdisks_add_to(s->disks, &t->build, names, err);
	if (r == 0)
		r = snapstore_add_config(&t->build, s->config, names, &config, err);
	if (r == 0)
		r = prepare_disks(t, err);
	if (r == 0)
		r = prepare_memory(t, has_base, err);
	if (r < 0) {
		json_decref(config);
		return r;
	}
	t->info = json_pack("{s:i, s:s, s:s, s:I, s:s, s:I, s:o}", "format", SNAPSTORE_FORMAT,
			    "name", t->build.name, "viv", VIV_VERSION, "created",
			    (json_int_t)time(NULL), "engine", machine_engine(s->m)->name,
			    "pause_us", (json_int_t)0, "config", config);
	if (!t->info ||
	    (s->base_name && json_object_set_new(t->info, "parent", json_string(s->base_name)) < 0))
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	return 0;
}

static int make_pipes(struct take *t, int child_ends[2], struct error *err)
{
	int out[2], in[2];

	if (pipe2(out, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	if (pipe2(in, O_CLOEXEC) < 0) {
		int r = error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));

		close(out[0]);
		close(out[1]);
		return r;
	}
	t->from_child = out[0];
	t->to_child = in[1];
	child_ends[0] = out[1];
	child_ends[1] = in[0];
	return 0;
}

static void note_writes(struct snapper *s)
{
	for (unsigned i = 0; i < s->config->ndisks; i++)
		s->writes[i] = machine_block_writes(s->m, i);
}

static int push_disks(struct take *t, struct error *err)
{
	struct snapper *s = t->s;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++) {
		const struct block_open top = { .path = s->config->disks[i].path, .format = "qcow2" };

		if (!t->is_announced[i])
			continue;
		r = block_push_layer(machine_block(s->m, i), &top, err);
		t->is_announced[i] = r < 0;
	}
	note_writes(s);
	return r;
}

/* Paused: all that belongs to one moment. */
static int capture(struct take *t, bool has_base, struct error *err)
{
	struct snapper *s = t->s;
	int r = machine_save_state(s->m, &t->state, err);

	if (r == 0 && has_base && s->is_logging)
		r = collect(s, err);
	if (r == 0 && has_base && s->is_logging) {
		t->dirty = malloc(bitmap_words(s) * sizeof(*t->dirty));
		if (!t->dirty)
			return error_set(err, -ENOMEM, "no memory for the log of changed pages");
		memcpy(t->dirty, s->dirty, bitmap_words(s) * sizeof(*t->dirty));
	}
	if (r == 0)
		r = start_log(s, err);
	return r == 0 ? push_disks(t, err) : r;
}

/* What was frozen gets to stable storage, and is whole on its own then. */
static void flush_disks(struct take *t)
{
	struct snapper *s = t->s;

	for (unsigned i = 0; i < s->config->ndisks; i++) {
		struct block_dev *b = machine_block(s->m, i);

		if (!vmdisks_is_layered(s->config, i))
			continue;
		t->flushes[i] = (struct block_req){ .op = BLOCK_FLUSH, .done = on_flushed, .owner = t };
		t->nflushing++;
		b->ops->submit(b, &t->flushes[i]);
	}
}

static int pause_and_fork(struct take *t, bool has_base, const int child_ends[2], struct error *err)
{
	struct machine *m = t->s->m;
	bool was_running = machine_state(m) == MACHINE_RUNNING;
	uint64_t start = now_us();
	struct error why;
	int r = was_running ? machine_pause(m, err) : 0;

	if (r < 0)
		return r;
	r = capture(t, has_base, err);
	if (r == 0) {
		(void)json_object_set_new(t->info, "pause_us",
					  json_integer((json_int_t)(now_us() - start)));
		t->pid = fork();
		if (t->pid == 0) {
			close(t->from_child);
			close(t->to_child);
			t->from_child = child_ends[0];
			t->to_child = child_ends[1];
			child_main(t);
		}
		if (t->pid < 0)
			r = error_set(err, -errno, "cannot start the process that writes the snapshot: %s",
				      strerror(errno));
	}
	if (was_running && machine_resume(m, &why) < 0 && r == 0) {
		*err = why;
		r = -EIO;
	}
	t->pause_us = now_us() - start;
	if (r == 0) {
		give_word(t);
		flush_disks(t);
	}
	return r;
}

int snapper_take(struct snapper *s, const char *name, snapper_done_fn done, void *ctx, struct error *err)
{
	int child_ends[2] = { -1, -1 };
	bool has_base = false;

	if (s->take)
		return error_set(err, -EBUSY, "a snapshot of this machine is being written already");
	struct take *t = calloc(1, sizeof(*t));

	if (!t)
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	*t = (struct take){ .s = s, .ram_fd = -1, .from_child = -1, .to_child = -1, .done = done, .ctx = ctx };
	t->build = (struct snapstore_build){ .dir_fd = -1 };
	t->total_bytes = machine_ram(s->m)->size_bytes;
	int r = prepare(t, name, &has_base, err);

	if (r == 0)
		r = make_pipes(t, child_ends, err);
	if (r == 0) {
		t->watch = loop_fd_add(machine_loop(s->m), t->from_child, LOOP_IN, on_child, t);
		if (!t->watch)
			r = error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	if (r == 0)
		r = pause_and_fork(t, has_base, child_ends, err);
	for (unsigned i = 0; i < 2; i++)
		if (child_ends[i] >= 0)
			close(child_ends[i]);
	if (r < 0) {
		drop_disks(t);
		give_back_dirty(t);
		take_cancel(t);
		return r;
	}
	s->take = t;
	return 0;
}

/* ---- going back ---- */

int snapper_restored(struct snapper *s, const char *name, struct error *err)
{
	int r;

	forget_base(s);
	s->base_name = strdup(name);
	if (!s->base_name)
		return error_set(err, -ENOMEM, "no memory for snapshots");
	r = snapstore_open_ram(s->config->name, name, &s->base, err);
	if (r == 0)
		r = snapstore_open_state(s->config->name, name, &s->base_state, err);
	if (r == 0)
		r = start_log(s, err);
	if (r < 0)
		forget_base(s);
	return r;
}

/* Which snapshot, opened and fit for this machine, becomes the base. */
static int open_target(struct snapper *s, const char *name, struct ram_files *files,
		       struct snapshot_state *state, struct error *err)
{
	int r = snapstore_open_state(s->config->name, name, state, err);

	if (r < 0)
		return r;
	r = snapstore_open_ram(s->config->name, name, files, err);
	if (r == 0 && files->index.ram_bytes != machine_ram(s->m)->size_bytes) {
		r = error_set(err, -EINVAL, "the snapshot has another amount of memory");
		ram_files_close(files);
	}
	if (r < 0)
		snapshot_state_free(state);
	return r;
}

/* Paused.  New layers over the snapshot's disks; none where disks are as they were then. */
static int prepare_tops(struct snapper *s, const char *name, bool is_base,
			char *tops[MACHINE_MAX_DISKS], struct error *err)
{
	struct snapshot_info info;
	bool has_changed = !is_base;

	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
		tops[i] = NULL;
	for (unsigned i = 0; i < s->config->ndisks; i++)
		has_changed |= s->writes[i] != machine_block_writes(s->m, i);
	if (!has_changed)
		return 0;
	int r = snapstore_load(&info, s->config->name, name, err);

	if (r == 0) {
		r = vmdisks_go_back(s->disks, &info, tops, err);
		snapshot_info_free(&info);
	}
	return r;
}

/* The disks on the new layers over the snapshot's. */
static int reopen_disks(struct snapper *s, char *tops[MACHINE_MAX_DISKS], struct error *err)
{
	bool has_any = false;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++) {
		const struct block_open o = { .path = tops[i], .format = "qcow2", .backing = s->backing };

		if (!tops[i])
			continue;
		has_any = true;
		r = block_reopen(machine_block(s->m, i), machine_loop(s->m), &o, false, err);
	}
	if (r == 0 && has_any)
		r = vmdisks_went_back(s->disks, tops, err);
	note_writes(s);
	return r;
}

/* Paused.  Disks, memory, then state; nothing that can be refused is left by now but by the host. */
static int64_t go_back(struct snapper *s, const struct ram_files *files,
		       const struct snapshot_state *state, char *tops[MACHINE_MAX_DISKS],
		       struct error *err)
{
	struct guest_ram *ram = machine_ram(s->m);
	int64_t pages = 0;
	int r;

	r = reopen_disks(s, tops, err);
	if (r < 0)
		return r;
	if (s->base_name && s->is_logging) {
		r = collect(s, err);
		if (r < 0)
			return r;
		pages = ram_files_put_back(files, &s->base.index, ram, s->dirty, err);
		if (pages < 0)
			return pages;
	} else {
		r = ram_files_map(files, ram, false, err);
		if (r < 0)
			return r;
		machine_ram_replaced(s->m);
		pages = (int64_t)(ram->size_bytes >> GUEST_PAGE_SHIFT);
	}
	r = machine_load_state(s->m, state, err);
	if (r == 0)
		r = start_log(s, err);
	return r < 0 ? r : pages;
}

int snapper_restore(struct snapper *s, const char *name, json_t *result, struct error *err)
{
	bool is_base = s->base_name && !strcmp(s->base_name, name) && s->base_state.data;
	struct snapshot_state state = { 0 };
	struct ram_files files = { 0 };
	char *tops[MACHINE_MAX_DISKS];
	struct error why;

	if (s->take)
		return error_set(err, -EBUSY, "a snapshot of this machine is being written; wait for it");
	int r = is_base ? 0 : open_target(s, name, &files, &state, err);
	const struct snapshot_state *st = is_base ? &s->base_state : &state;

	if (r < 0)
		return r;
	uint64_t start = now_us();
	bool was_running = machine_state(s->m) == MACHINE_RUNNING;

	r = was_running ? machine_pause(s->m, err) : 0;
	if (r == 0)
		r = machine_check_state(s->m, st, err);
	if (r == 0)
		r = prepare_tops(s, name, is_base, tops, err);
	if (r < 0) {
		if (was_running && machine_state(s->m) == MACHINE_PAUSED && machine_resume(s->m, &why) < 0)
			log_error("snapshot", "%s", why.text);
		snapshot_state_free(&state);
		ram_files_close(&files);
		return r;
	}
	int64_t pages = go_back(s, is_base ? &s->base : &files, st, tops, err);

	if (pages < 0) { /* memory is neither the old nor the new */
		error_prefix(err, "going back to %s failed half-way", name);
		machine_end(s->m, END_FAILED, 1, err->text);
		snapshot_state_free(&state);
		ram_files_close(&files);
		return (int)pages;
	}
	if (!is_base) {
		forget_base(s);
		s->base_name = strdup(name);
		s->base = files;
		s->base_state = state;
		if (!s->base_name)
			forget_base(s);
	}
	r = machine_resume(s->m, err);
	(void)json_object_set_new(result, "pause_us", json_integer((json_int_t)(now_us() - start)));
	(void)json_object_set_new(result, "pages", json_integer((json_int_t)pages));
	return r;
}
