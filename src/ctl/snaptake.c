/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/snap_int.h"

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

#include "base/host.h"
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
	struct snapper_moment moment;
	uint64_t pause_us;
	bool is_written;
	struct snap_layers layers;
	bool is_gone; /* canceled, but its layers are being flushed */

	pid_t pid;
	int from_child, to_child;
	struct loop_fd *watch;
	struct snap_lines lines;
	uint64_t done_bytes, total_bytes, written_bytes;
	struct error failure; /* what the child said */
	snapper_done_fn done;
	void *ctx;
};

/* ---- life cycle ---- */

json_t *snapper_identity(struct snapper *s)
{
	return s->identity ? s->identity(s->identity_arg) : NULL;
}

int snapper_create(struct snapper **out, const struct snapper_config *cfg, struct error *err)
{
	struct snapper *s = calloc(1, sizeof(*s));

	if (!s)
		return error_set(err, -ENOMEM, "no memory for snapshots");
	s->m = cfg->machine;
	s->config = cfg->config;
	s->disks = cfg->disks;
	s->backing = cfg->backing;
	s->clock = cfg->clock;
	s->agent = cfg->agent;
	s->code_key = cfg->code_key;
	s->identity = cfg->identity;
	s->identity_arg = cfg->identity_arg;
	s->child = cfg->child;
	s->child_arg = cfg->child_arg;
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
	snap_layers_free(&t->layers);
	t->watch = NULL;
	t->from_child = t->to_child = t->ram_fd = -1;
	t->is_gone = true;
	if (!t->layers.nflushing) /* else the last flush calls again */
		free(t);
}

/* Kill the child, remove its folder. */
static void take_cancel(struct take *t)
{
	t->s->take = NULL;
	if (t->pid > 0) {
		loop_fd_remove(t->watch);
		t->watch = NULL;
		snap_dismiss(t->pid, &t->to_child, &t->from_child);
		while (waitpid(t->pid, NULL, 0) < 0 && errno == EINTR)
			continue;
	}
	/* It may have come to its end in this very moment. */
	if (t->is_written && t->build.final && host.access(t->build.final, F_OK) == 0)
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
	if (s->forking)
		snap_forking_cancel(s->forking);
	snap_stop_threads(s);
	snap_below_destroy(s);
	snap_guest_destroy(s);
	snap_recording_end(s);
	snap_forget_base(s);
	free(s->dirty);
	free(s);
}

void snapper_forget(struct snapper *s, void *ctx)
{
	snap_pending_cancel(s, ctx);
	snap_below_cancel(s, ctx);
	if (s->take && s->take->ctx == ctx)
		take_cancel(s->take);
	if (s->forking && snap_forking_is_for(s->forking, ctx))
		snap_forking_cancel(s->forking);
}

bool snapper_progress(const struct snapper *s, uint64_t *done_bytes, uint64_t *total_bytes)
{
	if (snap_below_progress(s->below, done_bytes, total_bytes))
		return true;
	*done_bytes = s->take ? s->take->done_bytes : 0;
	*total_bytes = s->take ? s->take->total_bytes : 0;
	return s->take || s->forking || s->pending;
}

/* ---- the child ---- */

static bool tell_progress(void *arg, uint64_t done, uint64_t total)
{
	const struct take *t = arg;
	char line[64];

	snprintf(line, sizeof(line), "p %llu %llu\n", (unsigned long long)done, (unsigned long long)total);
	return snap_tell(t->from_child, line);
}

static int child_write(struct take *t, struct error *err)
{
	struct ram_progress progress = { tell_progress, t };
	struct bytes index = { 0 };
	struct stat st;
	char line[64];
	if (t->dirty)
		ram_index_consolidate(&t->index, RAM_LAYERS_GOOD, t->dirty);
	int r = ram_write_layer(&t->index, t->layer, t->ram_fd, machine_ram(t->s->m)->base,
				t->dirty, &progress, err);

	if (r == 0 && fsync(t->ram_fd) < 0)
		r = error_set(err, -errno, "cannot write guest memory: %s", strerror(errno));
	for (uint32_t i = 0; r == 0 && i < t->index.nlayers; i++) {
		bool is_used = false;

		for (uint32_t g = 0; g < t->index.ngranules && !is_used; g++)
			is_used = t->index.layer[g] == i + 1;
		if (!is_used && host.unlinkat(t->build.dir_fd, t->index.layers[i], 0) < 0)
			r = error_set(err, -errno, "cannot remove %s: %s", t->index.layers[i],
				      strerror(errno));
	}
	if (r == 0) {
		snprintf(line, sizeof(line), "b %llu\n",
			 fstat(t->ram_fd, &st) == 0 ? (unsigned long long)st.st_blocks * 512 : 0ULL);
		snap_tell(t->from_child, line);
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

static void child_main(struct take *t)
{
	const int keep[] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO,  t->from_child,
			     t->to_child,  t->ram_fd,	  t->build.dir_fd };
	struct error err = { "" };
	char line[600];

	/* Without the machine there is nobody whose word makes a snapshot of what it writes. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "viv-snapshot");
	/* The machine goes on first, and has the processors when it wants them. */
	int r = snap_await_word(t->to_child, &err);

	setpriority(PRIO_PROCESS, 0, CHILD_NICE);
	if (r == 0)
		r = snap_layers_save(t->s, &err);
	snap_close_others(keep, ARRAY_SIZE(keep));
	if (r == 0)
		r = child_write(t, &err);
	if (r == 0) {
		snap_tell(t->from_child, "w\n");
		r = snap_await_word(t->to_child, &err);
	}
	if (r == 0)
		r = snapstore_commit(&t->build, &err);
	if (r < 0) {
		snapstore_end(&t->build);
		snprintf(line, sizeof(line), "e %s\n", err.text);
		snap_tell(t->from_child, line);
	}
	_exit(r < 0);
}

/* ---- the parent, afterwards ---- */

/* What was taken is what memory is compared with from now on.  Without it the next snapshot is a whole one. */
static void adopt_base(struct take *t)
{
	struct snapper *s = t->s;
	struct error err;

	snap_forget_base(s);
	s->base_name = strdup(t->build.name);
	if (!s->base_name || snapstore_open_ram(s->config->name, t->build.name, &s->base, &err) < 0 ||
	    snapshot_state_parse(&s->base_state, t->state.data, t->state.len, &err) < 0) {
		log_warn("snapshot", "the next snapshot will be a whole one: %s",
			 s->base_name ? err.text : "no memory");
		snap_forget_base(s);
	}
	s->base_moment = t->moment;
}

/* The bits that were moved to the snapshot under way belong to the base again. */
static void give_back_dirty(struct take *t)
{
	struct snapper *s = t->s;

	if (!s->base_name)
		return;
	if (!t->dirty || !s->dirty) {
		snap_forget_base(s); /* unknown what changed */
		return;
	}
	for (size_t i = 0; i < snap_bitmap_words(s); i++)
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
		snap_layers_saved(t->s);
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
	snap_stop_threads(t->s);
	t->s->mend = ram_mend_start(machine_ram(t->s->m));
	t->done(t->ctx, result, result ? NULL : &err);
	json_decref(result);
	take_free(t);
}

/* All is written, disks too: the snapshot may get its name. */
static void go_if_done(struct take *t)
{
	if (!t->is_written || t->layers.nflushing)
		return;
	if (t->layers.is_failed) {
		error_set(&t->failure, -EIO, "a disk of the machine could not be made stable");
		snap_dismiss(t->pid, &t->to_child, NULL);
		return;
	}
	snap_give_word(t->to_child);
}

static void on_flushed(void *arg)
{
	struct take *t = arg;

	if (t->is_gone)
		take_free(t);
	else
		go_if_done(t);
}

static void take_line(void *arg, const char *line)
{
	struct take *t = arg;
	unsigned long long a, b;

	if (sscanf(line, "p %llu %llu", &a, &b) == 2) {
		t->done_bytes = a;
		t->total_bytes = b;
	} else if (sscanf(line, "b %llu", &a) == 1) {
		t->written_bytes = a;
	} else if (line[0] == 'w') {
		t->is_written = true;
		go_if_done(t);
	} else if (!strncmp(line, "e ", 2) && !t->failure.text[0]) {
		error_set(&t->failure, -EIO, "%s", line + 2);
	}
}

static void on_child(void *arg, int fd, unsigned events)
{
	struct take *t = arg;

	if (!snap_read_lines(&t->lines, fd, take_line, t))
		finish(t);
}

/* ---- the parent, before ---- */

/* Its memory may lie in other files by now, if snapshots were merged.  What comes from there is what it was, or it is another one. */
static bool open_base_again(struct snapper *s)
{
	struct ram_files files;
	struct error err;

	if (snapstore_open_ram(s->config->name, s->base_name, &files, &err) < 0)
		return false;
	if (!ram_index_is_same(&files.index, &s->base.index)) {
		ram_files_close(&files);
		return false;
	}
	ram_files_close(&s->base);
	s->base = files;
	return true;
}

/* Layers of the base into the new folder.  The base may have been deleted meanwhile: then all is written. */
static bool link_base(struct take *t)
{
	struct snapper *s = t->s;
	struct error err;

	if (!s->base_name || !open_base_again(s))
		return false;
	for (uint32_t i = 0; i < s->base.index.nlayers; i++) {
		_cleanup_free_ char *path =
			snapstore_path(s->config->name, s->base_name, s->base.index.layers[i], &err);

		if (!path ||
		    snapstore_add_file(&t->build, path, s->base.index.layers[i], false, &err) < 0) {
			for (uint32_t k = 0; k < i; k++)
				host.unlinkat(t->build.dir_fd, s->base.index.layers[k], 0);
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
	t->ram_fd = host.openat(t->build.dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return t->ram_fd < 0 ? error_set(err, -errno, "cannot write the snapshot's memory: %s",
					 strerror(errno))
			     : 0;
}

/* Under the lock of the snapshots. */
static int prepare(struct take *t, const char *name, bool *has_base, struct error *err)
{
	struct snapper *s = t->s;
	const char *names[MACHINE_MAX_DISKS];
	json_t *config = NULL;
	int r = snapstore_begin(&t->build, s->config->name, name, err);

	if (r == 0)
		r = snap_layers_keep(s, err);
	if (r == 0)
		r = vmdisks_add_to(s->disks, &t->build, names, err);
	if (r == 0)
		r = snapstore_add_config(&t->build, s->config, names, &config, err);
	if (r == 0)
		r = snap_layers_prepare(s, &t->layers, err);
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
	json_t *network = s->identity ? s->identity(s->identity_arg) : NULL;
	if (t->info && network)
		(void)json_object_set(t->info, "network", network);
	json_decref(network);
	if (!t->info ||
	    (s->base_name && json_object_set_new(t->info, "parent", json_string(s->base_name)) < 0))
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	return 0;
}

/* Paused: all that belongs to one moment. */
static int capture(struct take *t, bool has_base, struct error *err)
{
	struct snapper *s = t->s;
	t->moment = (struct snapper_moment){ snap_real_ns(), s->is_frozen };
	(void)json_object_set_new(t->info, "real_ns", json_integer(t->moment.real_ns));
	(void)json_object_set_new(t->info, "frozen", json_boolean(t->moment.is_frozen));
	int r = machine_save_state(s->m, &t->state, err);

	if (r == 0 && has_base && s->is_logging)
		r = snap_log_collect(s, err);
	if (r == 0 && has_base && s->is_logging) {
		t->dirty = malloc(snap_bitmap_words(s) * sizeof(*t->dirty));
		if (!t->dirty)
			return error_set(err, -ENOMEM, "no memory for the log of changed pages");
		memcpy(t->dirty, s->dirty, snap_bitmap_words(s) * sizeof(*t->dirty));
	}
	if (r == 0)
		r = snap_log_start(s, err);
	if (r == 0)
		r = snap_layers_push(s, &t->layers, err);
	snap_note_writes(s);
	return r;
}

static int pause_and_fork(struct take *t, bool has_base, const int child_ends[2], struct error *err)
{
	struct machine *m = t->s->m;
	bool was_running = machine_state(m) == MACHINE_RUNNING;
	uint64_t start = snap_now_us();
	struct error why;
	int r = was_running ? machine_pause(m, err) : 0;

	if (r < 0)
		return r;
	r = capture(t, has_base, err);
	if (r == 0) {
		(void)json_object_set_new(t->info, "pause_us",
					  json_integer((json_int_t)(snap_now_us() - start)));
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
	t->pause_us = snap_now_us() - start;
	if (r == 0) {
		snap_give_word(t->to_child);
		snap_layers_flush(t->s, &t->layers, on_flushed, t);
	}
	return r;
}

int snapper_take(struct snapper *s, const char *name, bool freezes, snapper_done_fn done, void *ctx,
		 struct error *err)
{
	const struct snap_order order = { SNAP_TAKE, &name, 1, { 0 }, done, ctx };

	if (s->take || s->forking || s->pending)
		return error_set(err, -EBUSY,
				 "a snapshot or copies of this machine are being made already");
	if (freezes)
		return snap_freeze(s, &order, err);
	int lock = snapstore_try_lock(s->config->name, false, err);

	if (lock == -EAGAIN)
		return snap_wait(s, &order, err);
	return lock < 0 ? lock : snap_begin_take(s, name, lock, done, ctx, err);
}

int snap_begin_take(struct snapper *s, const char *name, int lock, snapper_done_fn done, void *ctx,
		    struct error *err)
{
	int child_ends[2] = { -1, -1 };
	bool has_base = false;
	struct take *t = calloc(1, sizeof(*t));

	if (!t) {
		close(lock);
		return error_set(err, -ENOMEM, "no memory for a snapshot");
	}
	*t = (struct take){ .s = s, .ram_fd = -1, .from_child = -1, .to_child = -1, .done = done, .ctx = ctx };
	snap_below_cancel(s, NULL);
	snap_stop_threads(s);
	t->build = (struct snapstore_build){ .dir_fd = -1 };
	t->total_bytes = machine_ram(s->m)->size_bytes;
	int r = prepare(t, name, &has_base, err);

	close(lock);
	if (r == 0)
		r = snap_make_pipes(&t->from_child, &t->to_child, child_ends, err);
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
		snap_layers_drop(s, &t->layers);
		give_back_dirty(t);
		take_cancel(t);
		return r;
	}
	s->take = t;
	return 0;
}
