/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "ctl/broker.h"
#include "ctl/snap_int.h"
#include "ctl/snapcode.h"
#include "vm/working_set.h"

uint64_t snap_now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

void snap_stop_threads(struct snapper *s)
{
	ram_mend_stop(s->mend);
	s->mend = NULL;
	snapcode_read_end(s->code);
	s->code = NULL;
	working_set_read_end(s->ahead);
	s->ahead = NULL;
}

void snapper_take_readers(struct snapper *s, struct snapcode_reader *code, struct working_set_reader *ahead)
{
	s->code = code;
	s->ahead = ahead;
	working_set_put_in_place(ahead);
	if (code)
		snapcode_load(code, machine_engine(s->m), machine_vm(s->m));
}

void snapper_await_readers(struct snapper *s)
{
	working_set_read_wait(s->ahead);
	s->ahead = NULL;
	snapcode_read_wait(s->code);
	s->code = NULL;
}

/* ---- the log of changed pages ---- */

size_t snap_bitmap_words(const struct snapper *s)
{
	return ((machine_ram(s->m)->size_bytes >> GUEST_PAGE_SHIFT) + 63) / 64;
}

void snap_forget_base(struct snapper *s)
{
	ram_files_close(&s->base);
	snapshot_state_free(&s->base_state);
	free(s->base_name);
	s->base_name = NULL;
}

int snap_log_collect(struct snapper *s, struct error *err)
{
	return snapper_collect_log(s, NULL, err);
}

int snapper_collect_log(struct snapper *s, uint64_t *bitmap, struct error *err)
{
	size_t n = snap_bitmap_words(s);
	uint64_t *now = s->dirty + n;
	int r = machine_engine(s->m)->dirty_collect(machine_vm(s->m), now, err);

	for (size_t i = 0; r == 0 && i < n; i++) {
		s->dirty[i] |= now[i];
		if (bitmap)
			bitmap[i] |= now[i];
	}
	return r;
}

int snapper_share_log(struct snapper *s, struct error *err)
{
	return s->is_logging ? snap_log_collect(s, err) : snap_log_start(s, err);
}

void snapper_unshare_log(struct snapper *s)
{
	if (s->base_name || !s->is_logging)
		return; /* the next snapshot wants to know */
	machine_engine(s->m)->dirty_stop(machine_vm(s->m));
	s->is_logging = false;
}

bool snapper_is_busy(const struct snapper *s)
{
	return s->take || s->forking || s->pending || s->below;
}

int snap_log_start(struct snapper *s, struct error *err)
{
	if (!s->dirty)
		s->dirty = malloc(2 * snap_bitmap_words(s) * sizeof(*s->dirty));
	if (!s->dirty)
		return error_set(err, -ENOMEM, "no memory for the log of changed pages");
	memset(s->dirty, 0, snap_bitmap_words(s) * sizeof(*s->dirty));
	/* What was logged before is older than that. */
	int r = s->is_logging ? machine_engine(s->m)->dirty_collect(machine_vm(s->m), s->dirty, err)
			      : machine_engine(s->m)->dirty_start(machine_vm(s->m), err);

	s->log_starts++;
	s->is_logging |= r == 0;
	memset(s->dirty, 0, snap_bitmap_words(s) * sizeof(*s->dirty));
	return r;
}

/* ---- new layers of the disks ---- */

int snap_layers_keep(struct snapper *s, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++) {
		struct block_dev *b = machine_block(s->m, i);
		_cleanup_free_ char *path = NULL;
		struct block_info info;

		if (!s->config->disks[i].is_snapshot)
			continue;
		b->ops->info(b, &info);
		r = vmdisks_keep(s->disks, i, info.size_bytes, &path, err);
		if (r == 0)
			r = block_keep_layer(b, path, err);
	}
	return r;
}

int snap_layers_save(const struct snapper *s, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++)
		if (s->disks->kept[i])
			r = block_save_kept(machine_block(s->m, i), s->disks->kept[i], err);
	return r;
}

void snap_layers_saved(struct snapper *s)
{
	for (unsigned i = 0; i < s->config->ndisks; i++) {
		if (s->disks->kept[i])
			block_release_kept(machine_block(s->m, i));
		free(s->disks->kept[i]);
		s->disks->kept[i] = NULL;
	}
}

int snap_layers_prepare(struct snapper *s, struct snap_layers *l, struct error *err)
{
	struct block_info info;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++) {
		_cleanup_free_ char *path = NULL;

		if (!vmdisks_is_layered(s->config, i))
			continue;
		struct block_dev *b = machine_block(s->m, i);

		b->ops->info(b, &info);
		l->old_formats[i] = strdup(s->config->disks[i].format);
		r = l->old_formats[i] ? vmdisks_new_top(s->disks, i, info.size_bytes, &path, err)
				      : error_set(err, -ENOMEM, "no memory for a layer of a disk");
		if (r == 0)
			r = vmdisks_push(s->disks, i, path, err);
		l->is_announced[i] = r == 0;
		l->has_any |= r == 0;
	}
	/* Whatever happens from here on, the machine finds what it wrote. */
	return r == 0 && l->has_any ? vmconfig_save(s->config, err) : r;
}

void snap_layers_drop(struct snapper *s, struct snap_layers *l)
{
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (l->is_announced[i])
			vmdisks_pop(s->disks, i, l->old_formats[i]);
		l->is_announced[i] = false;
	}
}

void snap_note_writes(struct snapper *s)
{
	for (unsigned i = 0; i < s->config->ndisks; i++)
		s->writes[i] = machine_block_writes(s->m, i);
}

int snap_layers_push(struct snapper *s, struct snap_layers *l, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < s->config->ndisks; i++) {
		const struct block_open top = { .path = s->config->disks[i].path,
						.format = "qcow2",
						.use_direct = s->config->disks[i].use_direct };

		if (!l->is_announced[i])
			continue;
		r = block_push_layer(machine_block(s->m, i), &top, err);
		l->is_announced[i] = r < 0;
	}
	return r;
}

static void on_flushed(struct block_req *req, int result)
{
	struct snap_layers *l = req->owner;

	l->is_failed |= result < 0;
	if (--l->nflushing == 0)
		l->flushed(l->arg);
}

void snap_layers_flush(struct snapper *s, struct snap_layers *l, void (*flushed)(void *arg), void *arg)
{
	l->flushed = flushed;
	l->arg = arg;
	for (unsigned i = 0; i < s->config->ndisks; i++) {
		struct block_dev *b = machine_block(s->m, i);

		if (!vmdisks_is_layered(s->config, i))
			continue;
		l->flushes[i] = (struct block_req){ .op = BLOCK_FLUSH, .done = on_flushed, .owner = l };
		l->nflushing++;
		b->ops->submit(b, &l->flushes[i]);
	}
}

void snap_layers_free(struct snap_layers *l)
{
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		free(l->old_formats[i]);
		l->old_formats[i] = NULL;
	}
}

/* ---- a process that was forked off ---- */

int snap_make_pipes(int *from_child, int *to_child, int child_ends[2], struct error *err)
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
	*from_child = out[0];
	*to_child = in[1];
	child_ends[0] = out[1];
	child_ends[1] = in[0];
	return 0;
}

bool snap_tell(int fd, const char *text)
{
	return write(fd, text, strlen(text)) >= 0;
}

void snap_dismiss(pid_t pid, int *to_child, int *from_child)
{
	(void)kill(pid, SIGKILL);
	if (*to_child >= 0)
		close(*to_child);
	*to_child = -1;
	if (!from_child)
		return;
	if (*from_child >= 0)
		close(*from_child);
	*from_child = -1;
}

bool snap_read_lines(struct snap_lines *l, int fd, void (*take)(void *arg, const char *line), void *arg)
{
	char buf[512];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] != '\n') {
			if (l->len < sizeof(l->line) - 1)
				l->line[l->len++] = buf[i];
			continue;
		}
		l->line[l->len] = 0;
		l->len = 0;
		take(arg, l->line);
	}
	return n > 0;
}

void snap_give_word(int fd)
{
	if (write(fd, "g", 1) != 1)
		log_debug("snapshot", "a process that was forked off is gone");
}

int snap_await_word(int fd, struct error *err)
{
	ssize_t n;
	char word;

	do
		n = read(fd, &word, 1);
	while (n < 0 && errno == EINTR);
	return n == 1 ? 0 : error_set(err, -ECANCELED, "canceled");
}

void snap_close_others(const int *keep, size_t nkeep)
{
	int door = broker_keep(), last = MAX(door, 0), logs[2];

	log_files(logs); /* stay, too */
	for (size_t i = 0; i < nkeep; i++)
		last = MAX(last, keep[i]);
	last = MAX(last, MAX(logs[0], logs[1]));
	for (int fd = 0; fd <= last; fd++) {
		bool is_kept = fd == logs[0] || fd == logs[1] || fd == door;

		for (size_t i = 0; i < nkeep; i++)
			is_kept |= keep[i] == fd;
		if (!is_kept)
			close(fd);
	}
	close_range((unsigned)last + 1, ~0u, 0);
}
