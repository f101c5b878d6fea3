/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Living copies.  The machine pauses, its state is saved to memory, its process forks once, it goes on; what that process
 * has of memory is shared until somebody writes.  It waits until the frozen layers of the disks are stable, forks
 * once for each copy, and ends; each copy builds a machine of its own around the memory and loads the state
 * (snapper_child_fn).  So the pause is that of one fork, however many copies there are.
 *
 *   parent --fork--> hatchery --fork--> copy "w1"
 *                             --fork--> copy "w2"  ...
 *
 * Every copy tells on the pipe that it runs, or why it does not; the pipe's end is the end of the request.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/paths.h"
#include "ctl/snap_int.h"

struct forking {
	struct snapper *s;
	char **names; /* @n; directories of the first @nmade exist */
	unsigned n, nmade, nready;
	json_t *network; /* of the parent, in its lab; NULL: it is in none */
	struct bytes state;
	struct snap_layers layers;
	struct snapper_moment moment;
	uint64_t pause_us;
	pid_t pid; /* the hatchery */
	int from_child, to_child;
	struct loop_fd *watch;
	struct snap_lines lines;
	struct error failure;
	bool is_gone; /* but layers are being flushed */
	snapper_done_fn done;
	void *ctx;
};

static void forking_free(struct forking *f)
{
	loop_fd_remove(f->watch);
	f->watch = NULL;
	if (f->from_child >= 0)
		close(f->from_child);
	if (f->to_child >= 0)
		close(f->to_child);
	f->from_child = f->to_child = -1;
	for (unsigned i = 0; i < f->n; i++)
		free(f->names[i]);
	free(f->names);
	f->names = NULL;
	f->n = f->nmade = 0;
	bytes_free(&f->state);
	json_decref(f->network);
	f->network = NULL;
	snap_layers_free(&f->layers);
	f->is_gone = true;
	if (!f->layers.nflushing)
		free(f);
}

static void remove_copies(struct forking *f)
{
	struct error err;

	for (unsigned i = 0; i < f->nmade; i++) {
		_cleanup_free_ char *dir = paths_vm(f->names[i], NULL, &err);

		if (!dir || paths_remove_tree(dir, &err) < 0)
			log_warn("fork", "%s", err.text);
	}
	f->nmade = 0;
}

/* ---- directories of the copies ---- */

/* A file of the parent's folder: the copy has it in its own. */
static int own_file(char **path, const char *from, const char *to, struct error *err)
{
	size_t len = strlen(from);

	if (!*path || strncmp(*path, from, len) != 0 || (*path)[len] != '/' ||
	    strchr(*path + len + 1, '/'))
		return 0;
	char *own = paths_format(err, "%s/%s", to, *path + len + 1);

	if (!own)
		return -ENOMEM;
	if (host.linkat(AT_FDCWD, *path, AT_FDCWD, own, 0) < 0) {
		int r = error_set(err, -errno, "cannot link %s to %s: %s", *path, own, strerror(errno));

		free(own);
		return r;
	}
	free(*path);
	*path = own;
	return 0;
}

static int make_config(struct forking *f, struct vmconfig *c, const char *name, const char *dir,
		       struct error *err)
{
	struct snapper *s = f->s;
	json_t *json = vmconfig_to_json(s->config);
	int r = json ? vmconfig_from_json(c, json, err)
		     : error_set(err, -ENOMEM, "no memory for a copy");

	json_decref(json);
	if (r == 0)
		r = vmconfig_set(&c->name, name, err);
	if (r == 0)
		r = vmconfig_new_mac(c, err);
	if (r == 0 && f->network)
		r = vmconfig_set_origin(c, f->network, err);
	if (r < 0)
		return r;
	/* Its disks are its own. */
	for (unsigned i = 0; i < c->ndisks; i++)
		vmconfig_own_disk(&c->disks[i]);
	/* The host's ports are the parent's. */
	while (c->nforwards)
		free(c->forwards[--c->nforwards]);
	r = own_file(&c->kernel, s->disks->folder, dir, err);
	if (r == 0)
		r = own_file(&c->initrd, s->disks->folder, dir, err);
	if (r == 0)
		r = own_file(&c->firmware, s->disks->folder, dir, err);
	return r;
}

static int make_copy(struct forking *f, unsigned i, struct error *err)
{
	struct snapper *s = f->s;
	const char *name = f->names[i];
	uint64_t sizes[MACHINE_MAX_DISKS] = { 0 };
	_cleanup_free_ char *dir = paths_vm(name, NULL, err);
	struct vmconfig c;

	if (!dir)
		return -ENOMEM;
	if (host.mkdir(dir, 0700) < 0)
		return errno == EEXIST
			       ? error_set(err, -EEXIST, "there is a machine \"%s\" already; viv rm %s removes it",
					   name, name)
			       : error_set(err, -errno, "cannot make %s: %s", dir, strerror(errno));
	f->nmade++;
	for (unsigned d = 0; d < s->config->ndisks; d++) {
		struct block_info info;

		machine_block(s->m, d)->ops->info(machine_block(s->m, d), &info);
		sizes[d] = info.size_bytes;
	}
	int r = vmconfig_init(&c, err);

	if (r == 0)
		r = make_config(f, &c, name, dir, err);
	if (r == 0)
		r = vmdisks_copy(s->disks, &c, dir, sizes, err);
	if (r == 0)
		r = vmconfig_put(&c, err);
	vmconfig_free(&c);
	return r;
}

/* ---- the child ---- */

/* As a copy would (cli/vm.c), and the end. */
static void tell_failure(int fd, const struct error *err)
{
	json_t *json = json_pack("{s:s, s:s}", "event", "failed", "text", err->text);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

	if (text && dprintf(fd, "%s\n", text) < 0)
		log_debug("fork", "the machine is gone");
	_exit(1);
}

static void hatch(struct forking *f, const int child_ends[2])
{
	struct snapper *s = f->s;
	const int keep[] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, child_ends[0], child_ends[1] };
	struct guest_ram ram = *machine_ram(s->m);
	struct snapshot_state state;
	struct machine_restore restore = { .state = &state, .ram = &ram };
	struct error err;

	/* The machine's ends: held here, they would never seem closed. */
	close(f->from_child);
	close(f->to_child);
	prctl(PR_SET_NAME, "viv-fork");
	int r = snap_await_word(child_ends[1], &err);

	if (r == 0 && snap_layers_save(s, &err) < 0)
		tell_failure(child_ends[0], &err);
	machine_abandon(s->m);
	snap_close_others(keep, ARRAY_SIZE(keep));
	if (r == 0)
		r = snapshot_state_parse(&state, f->state.data, f->state.len, &err);
	if (r < 0)
		_exit(1);
	for (unsigned i = 0; i < f->n; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			close(child_ends[1]);
			s->child(s->child_arg, f->names[i], &restore, &f->moment, child_ends[0]);
			_exit(1);
		}
		if (pid < 0)
			_exit(1);
	}
	_exit(0);
}

/* ---- the parent, afterwards ---- */

static void finish(struct forking *f)
{
	struct error err = f->failure;
	json_t *result = NULL;

	f->s->forking = NULL;
	while (waitpid(f->pid, NULL, 0) < 0 && errno == EINTR)
		continue;
	if (f->nready)
		snap_layers_saved(f->s);
	if (f->nready == f->n) {
		result = json_pack("{s:I, s:i}", "pause_us", (json_int_t)f->pause_us, "copies",
				   (int)f->n);
	} else if (!err.text[0]) {
		error_set(&err, -ECHILD, "%u of %u copies did not come to run; their vm.log may tell why",
			  f->n - f->nready, f->n);
	}
	if (!f->nready)
		remove_copies(f);
	f->done(f->ctx, result, result ? NULL : &err);
	json_decref(result);
	forking_free(f);
}

static void take_line(void *arg, const char *line)
{
	struct forking *f = arg;
	json_t *json = json_loads(line, 0, NULL);
	const char *event = json_string_value(json_object_get(json, "event"));
	const char *text = json_string_value(json_object_get(json, "text"));

	if (event && !strcmp(event, "ready"))
		f->nready++;
	else if (event && !strcmp(event, "failed"))
		error_set(&f->failure, -EIO, "a copy did not come to run: %s",
			  text ? text : "it gave no reason");
	json_decref(json);
}

static void on_child(void *arg, int fd, unsigned events)
{
	struct forking *f = arg;

	if (!snap_read_lines(&f->lines, fd, take_line, f))
		finish(f);
}

static void on_flushed(void *arg)
{
	struct forking *f = arg;

	if (f->is_gone) {
		forking_free(f);
		return;
	}
	if (!f->layers.is_failed) {
		snap_give_word(f->to_child);
		return;
	}
	error_set(&f->failure, -EIO, "a disk of the machine could not be made stable");
	snap_dismiss(f->pid, &f->to_child, NULL);
}

void snap_forking_cancel(struct forking *f)
{
	f->s->forking = NULL;
	/* Copies that run already are machines of their own. */
	loop_fd_remove(f->watch);
	f->watch = NULL;
	snap_dismiss(f->pid, &f->to_child, &f->from_child);
	while (waitpid(f->pid, NULL, 0) < 0 && errno == EINTR)
		continue;
	if (!f->nready)
		remove_copies(f);
	forking_free(f);
}

bool snap_forking_is_for(const struct forking *f, const void *ctx)
{
	return f->ctx == ctx;
}

/* ---- the parent, before ---- */

static int pause_and_fork(struct forking *f, const int child_ends[2], struct error *err)
{
	struct machine *m = f->s->m;
	bool was_running = machine_state(m) == MACHINE_RUNNING;
	uint64_t start = snap_now_us();
	struct error why;
	int r = was_running ? machine_pause(m, err) : 0;

	if (r < 0)
		return r;
	f->moment = (struct snapper_moment){ snap_real_ns(), f->s->is_frozen };
	r = machine_save_state(m, &f->state, err);
	if (r == 0)
		r = snap_layers_push(f->s, &f->layers, err);
	if (r == 0) {
		f->pid = fork();
		if (f->pid == 0)
			hatch(f, child_ends);
		if (f->pid < 0)
			r = error_set(err, -errno, "cannot fork the machine's process: %s",
				      strerror(errno));
	}
	if (was_running && machine_resume(m, &why) < 0 && r == 0) {
		*err = why;
		r = -EIO;
	}
	f->pause_us = snap_now_us() - start;
	return r;
}

static int prepare(struct forking *f, const char *const *names, unsigned n, struct error *err)
{
	int r = snap_layers_keep(f->s, err);

	f->names = calloc(n, sizeof(*f->names));
	if (!f->names)
		return error_set(err, -ENOMEM, "no memory for copies");
	for (f->n = 0; r == 0 && f->n < n;) {
		f->names[f->n] = strdup(names[f->n]);
		if (!f->names[f->n])
			return error_set(err, -ENOMEM, "no memory for copies");
		r = paths_check_name("a machine", names[f->n++], err);
	}
	f->network = f->s->identity ? f->s->identity(f->s->identity_arg) : NULL;
	for (unsigned i = 0; r == 0 && i < n; i++)
		r = make_copy(f, i, err);
	return r == 0 ? snap_layers_prepare(f->s, &f->layers, err) : r;
}

int snapper_fork(struct snapper *s, const char *const *names, unsigned n, bool freezes,
		 snapper_done_fn done, void *ctx, struct error *err)
{
	const struct snap_order order = { SNAP_FORK, names, n, { 0 }, done, ctx };

	if (s->take || s->forking || s->pending)
		return error_set(err, -EBUSY,
				 "a snapshot or copies of this machine are being made already");
	if (freezes)
		return snap_freeze(s, &order, err);
	int lock = snapstore_try_lock(s->config->name, false, err);

	if (lock == -EAGAIN)
		return snap_wait(s, &order, err);
	return lock < 0 ? lock : snap_begin_fork(s, names, n, lock, done, ctx, err);
}

int snap_begin_fork(struct snapper *s, const char *const *names, unsigned n, int lock,
		    snapper_done_fn done, void *ctx, struct error *err)
{
	int child_ends[2] = { -1, -1 };
	struct forking *f = calloc(1, sizeof(*f));

	if (!f) {
		close(lock);
		return error_set(err, -ENOMEM, "no memory for copies");
	}
	snap_below_cancel(s, NULL);
	snap_stop_threads(s);
	*f = (struct forking){ .s = s, .from_child = -1, .to_child = -1, .done = done, .ctx = ctx };
	int r = prepare(f, names, n, err);

	close(lock);
	if (r == 0)
		r = snap_make_pipes(&f->from_child, &f->to_child, child_ends, err);
	if (r == 0) {
		f->watch = loop_fd_add(machine_loop(s->m), f->from_child, LOOP_IN, on_child, f);
		if (!f->watch)
			r = error_set(err, -ENOMEM, "no memory for copies");
	}
	if (r == 0)
		r = pause_and_fork(f, child_ends, err);
	for (unsigned i = 0; i < 2; i++)
		if (child_ends[i] >= 0)
			close(child_ends[i]);
	if (r < 0) {
		snap_layers_drop(s, &f->layers);
		remove_copies(f);
		forking_free(f);
		return r;
	}
	s->forking = f;
	snap_layers_flush(s, &f->layers, on_flushed, f);
	if (!f->layers.nflushing)
		snap_give_word(f->to_child);
	return 0;
}
