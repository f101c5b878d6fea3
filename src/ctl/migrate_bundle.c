/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migrate_bundle.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "base/log.h"
#include "ctl/paths.h"
#include "ctl/snapbundle.h"

#define PIECE_BYTES (1 * MIB)
#define CHECK_MS    600000 /* the target writes it down and compares all of its memory */
#define PREFIX	    "incoming-"

/* ---- a pipe with a thread at its other end ---- */

struct worker {
	pthread_t thread;
	const char *vm, *name;
	int fd; /* its end */
	int r;
	struct error err;
};

static void *export_main(void *arg)
{
	struct worker *w = arg;

	w->r = snapbundle_write(w->vm, w->name, w->fd, NULL, &w->err);
	close(w->fd);
	return NULL;
}

static void *import_main(void *arg)
{
	struct worker *w = arg;

	w->r = snapbundle_read(w->vm, w->name, w->fd, NULL, &w->err);
	close(w->fd); /* who still writes learns it */
	return NULL;
}

/* Returns this side's end, or -errno.  SIGPIPE is not wanted by either. */
static int start(struct worker *w, bool is_export, const char *vm, const char *name, struct error *err)
{
	int fds[2];
	sigset_t pipe_signal;

	*w = (struct worker){ .vm = vm, .name = name };
	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
	sigemptyset(&pipe_signal);
	sigaddset(&pipe_signal, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe_signal, NULL);
	w->fd = fds[is_export];
	int e = pthread_create(&w->thread, NULL, is_export ? export_main : import_main, w);

	if (e == 0)
		return fds[!is_export];
	close(fds[0]);
	close(fds[1]);
	return error_set(err, -e, "cannot start a thread: %s", strerror(e));
}

/* ---- the source ---- */

/* The target hangs up after its last word. */
static int last_word(struct migrate_link *l, int r, struct error *err)
{
	struct migrate_header h;
	struct error why;

	if (r != -EPIPE || migrate_link_receive(l, &h, MIGRATE_SILENCE_MS, &why) < 0 ||
	    h.type != MIGRATE_R_REFUSE)
		return r;
	migrate_link_text(l, &h, err);
	return -ECONNREFUSED;
}

static int send_all(struct migrate_link *l, int from, struct error *err)
{
	_cleanup_free_ uint8_t *buf = malloc(PIECE_BYTES);
	int r = buf ? 0 : error_set(err, -ENOMEM, "no memory to send a snapshot");

	while (r == 0) {
		size_t have = 0;
		ssize_t n = 1;

		while (have < PIECE_BYTES && (n = read(from, buf + have, PIECE_BYTES - have)) != 0) {
			if (n > 0)
				have += (size_t)n;
			else if (errno != EINTR)
				return error_set(err, -errno, "cannot read a snapshot: %s",
						 strerror(errno));
		}
		if (have)
			r = migrate_link_tell(l, MIGRATE_R_BUNDLE_DATA, buf, have, err);
		if (n == 0)
			break;
	}
	return r;
}

static int await_done(struct migrate_link *l, struct error *err)
{
	struct migrate_header h;
	int r = migrate_link_receive(l, &h, CHECK_MS, err);

	if (r < 0)
		return r;
	if (h.type == MIGRATE_R_REFUSE) {
		migrate_link_text(l, &h, err);
		return -ECONNREFUSED;
	}
	return h.type == MIGRATE_R_BUNDLE_DONE
		       ? 0
		       : error_set(err, -EPROTO, "the target answers out of turn");
}

int bundle_send(struct migrate_link *l, const char *token, const char *vm, const char *name,
		struct error *err)
{
	json_t *json = json_pack("{s:s, s:s}", "token", token, "snapshot", name);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
	struct worker w;

	json_decref(json);
	if (!text)
		return error_set(err, -ENOMEM, "no memory to send a snapshot");
	int r = migrate_link_tell(l, MIGRATE_R_BUNDLE, text, strlen(text), err);
	int from = r < 0 ? r : start(&w, true, vm, name, err);

	if (from < 0)
		return last_word(l, from, err);
	r = send_all(l, from, err);
	close(from);
	pthread_join(w.thread, NULL);
	if (r == 0 && w.r < 0) {
		*err = w.err;
		return w.r;
	}
	if (r == 0)
		r = migrate_link_tell(l, MIGRATE_R_BUNDLE_DATA, NULL, 0, err);
	return r < 0 ? last_word(l, r, err) : await_done(l, err);
}

/* ---- the target ---- */

static int stage_name(char out[sizeof(PREFIX) + MIGRATE_ID_TEXT], const char *token, struct error *err)
{
	uint8_t id[MIGRATE_ID_BYTES];
	int r = migrate_id_parse(id, token, err);

	if (r == 0) {
		strcpy(out, PREFIX);
		migrate_id_text(out + strlen(PREFIX), id);
	}
	return r;
}

static int out_of_turn(struct error *err)
{
	return error_set(err, -EPROTO, "the source sends no snapshot where one was to come");
}

/* All of one into the pipe; 0 also when nobody reads any more, who has said why. */
static int take_all(struct migrate_link *l, int to, struct error *err)
{
	struct migrate_header h;

	for (;;) {
		int r = migrate_link_receive(l, &h, MIGRATE_SILENCE_MS, err);

		if (r == 0 && h.type != MIGRATE_R_BUNDLE_DATA)
			r = out_of_turn(err);
		if (r < 0 || !h.len)
			return r;
		for (size_t done = 0; done < h.len;) {
			ssize_t n = write(to, l->payload + done, h.len - done);

			if (n < 0 && errno != EINTR)
				return 0;
			done += n > 0 ? (size_t)n : 0;
		}
	}
}

static int take_one(struct migrate_link *l, const char *stage, const char *name, struct error *err)
{
	struct worker w;
	int to = start(&w, false, stage, name, err);

	if (to < 0)
		return to;
	int r = take_all(l, to, err);

	close(to);
	pthread_join(w.thread, NULL);
	if (r == 0 && w.r < 0) {
		*err = w.err;
		r = w.r;
	} else if (r < 0 && w.r == 0 && snapstore_delete(stage, name, &w.err) < 0) {
		log_warn("migrate", "%s", w.err.text);
	}
	return r == 0 ? migrate_link_tell(l, MIGRATE_R_BUNDLE_DONE, NULL, 0, err) : r;
}

int bundle_parse(const uint8_t *payload, size_t len, char token[MIGRATE_ID_TEXT],
		 char name[PATHS_NAME_MAX + 1], struct error *err)
{
	json_t *j = json_loadb((const char *)payload, len, JSON_REJECT_DUPLICATES, NULL);
	const char *t = json_string_value(json_object_get(j, "token")),
		   *n = json_string_value(json_object_get(j, "snapshot"));
	int r = t && n && strlen(t) < MIGRATE_ID_TEXT && strlen(n) <= PATHS_NAME_MAX
			? 0
			: out_of_turn(err);

	if (r == 0) {
		strcpy(token, t);
		strcpy(name, n);
	}
	json_decref(j);
	return r;
}

/* @h, which came last: the next one, with the same token. */
static int take_next(const struct migrate_link *l, const struct migrate_header *h,
		     const char *token, char name[PATHS_NAME_MAX + 1], struct error *err)
{
	char its[MIGRATE_ID_TEXT];
	int r = h->type == MIGRATE_R_BUNDLE ? bundle_parse(l->payload, h->len, its, name, err)
					    : out_of_turn(err);

	return r == 0 && strcmp(its, token) != 0 ? out_of_turn(err) : r;
}

static int refuse(struct migrate_link *l, int r, const struct error *why)
{
	struct error err;

	if (migrate_link_tell(l, MIGRATE_R_REFUSE, why->text, strlen(why->text), &err) < 0)
		log_debug("migrate", "%s", err.text);
	return r;
}

/* The folder, locked as long as the descriptor that is returned is open: nobody cleans it up. */
static int make_stage(const char *stage, struct error *err)
{
	_cleanup_free_ char *folder = paths_vm(stage, NULL, err);
	int r = folder ? paths_make(folder, err) : -ENOMEM;
	int fd = r < 0 ? r : open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (r == 0 && (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)) {
		r = error_set(err, -errno, "cannot use %s: %s", folder, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	return r < 0 ? r : fd;
}

static void discard(const char *stage)
{
	_cleanup_free_ char *folder = paths_vm(stage, NULL, NULL);
	struct error err;

	if (folder && access(folder, F_OK) == 0 && paths_remove_tree(folder, &err) < 0)
		log_warn("migrate", "%s", err.text);
}

/* All that come, the first of which is called @name. */
static int take_each(struct migrate_link *l, const char *stage, const char *token,
		     char name[PATHS_NAME_MAX + 1], struct error *err)
{
	struct migrate_header h;
	struct error end;

	for (;;) {
		int r = take_one(l, stage, name, err);

		if (r < 0)
			return r;
		r = migrate_link_receive(l, &h, -1, &end); /* as long as the machine takes */
		if (r == -EPIPE)
			return 0;
		if (r < 0)
			*err = end;
		else
			r = take_next(l, &h, token, name, err);
		if (r < 0)
			return r;
	}
}

int bundle_serve(struct migrate_link *l, const struct migrate_header *first, struct error *err)
{
	char token[MIGRATE_ID_TEXT], name[PATHS_NAME_MAX + 1], stage[sizeof(PREFIX) + MIGRATE_ID_TEXT];
	int r = bundle_parse(l->payload, first->len, token, name, err);

	if (r == 0)
		r = stage_name(stage, token, err);
	_cleanup_close_ int lock = r < 0 ? r : make_stage(stage, err);

	if (lock < 0)
		return refuse(l, lock, err);
	r = take_each(l, stage, token, name, err);
	discard(stage);
	return r < 0 ? refuse(l, r, err) : 0;
}

int bundle_adopt(const char *token, const char *vm, struct error *err)
{
	char stage[sizeof(PREFIX) + MIGRATE_ID_TEXT];
	int r = stage_name(stage, token, err);
	_cleanup_free_ char *from = r == 0 ? paths_vm(stage, "snapshots", err) : NULL;
	_cleanup_free_ char *to = from ? paths_vm(vm, "snapshots", err) : NULL;

	if (!to)
		return r < 0 ? r : -ENOMEM;
	if (rename(from, to) < 0)
		return error_set(err, -errno, "cannot take the snapshots that came before the machine: %s",
				 strerror(errno));
	discard(stage);
	return 0;
}

void bundle_drop(const char *token)
{
	char stage[sizeof(PREFIX) + MIGRATE_ID_TEXT];

	if (stage_name(stage, token, NULL) == 0)
		discard(stage);
}

void bundle_clean(void)
{
	_cleanup_free_ char *vms = paths_data("vms", NULL);
	DIR *d = vms ? opendir(vms) : NULL;
	struct dirent *e;

	while (d && (e = readdir(d))) {
		if (strncmp(e->d_name, PREFIX, strlen(PREFIX)) != 0)
			continue;
		_cleanup_close_ int fd = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
			discard(e->d_name);
	}
	if (d)
		closedir(d);
}
