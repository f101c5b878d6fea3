/* SPDX-License-Identifier: Apache-2.0 */
/* Recording the working set of the snapshot that this machine was started from (vm/working_set.h) and its code (vm/code_set.h), some seconds after that. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/paths.h"
#include "ctl/snap_int.h"
#include "ctl/snapcode.h"
#include "vm/working_set.h"

#define AFTER_NS 3000000000LL
#define PIECE_NS 1000000LL /* between one of them and the next */
#define PIECE_PAGES                                                                                \
	(256 * MIB / GUEST_PAGE_SIZE) /* looked at in one go, which takes a few milliseconds */

struct recording {
	struct snapper *s;
	struct vclock *clock;
	struct vtimer *timer;
	char *path, *code_path;
	bool has_set; /* the working set was there before */
	struct working_set set;
	uint64_t next_page;
	unsigned log_starts; /* struct snapper, when the machine was started */
	struct snapcode_writer *writer;
};

void snap_recording_end(struct snapper *s)
{
	struct recording *r = s->recording;

	s->recording = NULL;
	if (!r)
		return;
	machine_ram(s->m)->notes_seen = false;
	vtimer_destroy(r->timer);
	working_set_free(&r->set);
	snapcode_write_end(r->writer);
	free(r->path);
	free(r->code_path);
	free(r);
}

/* Not synced: after a power cut a damaged one is none. */
static int write_file(const char *path, const struct bytes *b, struct error *err)
{
	_cleanup_free_ char *part = paths_format(err, "%s.new", path);

	if (!part)
		return -ENOMEM;
	_cleanup_close_ int fd =
		host.open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 || write(fd, b->data, b->len) != (ssize_t)b->len ||
	    host.renameat(AT_FDCWD, part, AT_FDCWD, path) < 0) {
		int r = error_set(err, errno ? -errno : -ENOSPC, "cannot write %s: %s", path,
				  strerror(errno));

		host.unlinkat(AT_FDCWD, part, 0);
		return r;
	}
	return 0;
}

static void finish(struct recording *r)
{
	struct bytes out = { 0 };
	struct error err;

	if (working_set_save(&r->set, &out, &err) < 0 || write_file(r->path, &out, &err) < 0)
		log_info("snapshot", "the working set is not recorded: %s", err.text);
	else
		log_info("snapshot", "working set recorded: %llu pages in %zu runs",
			 (unsigned long long)working_set_pages(&r->set), r->set.nruns);
	bytes_free(&out);
}

static void record_pages(struct recording *r)
{
	struct guest_ram *ram = machine_ram(r->s->m);
	uint64_t npages = ram->size_bytes >> GUEST_PAGE_SHIFT;
	uint64_t n = MIN(npages - r->next_page, (uint64_t)PIECE_PAGES);
	struct error err;
	bool is_seen = ram->notes_seen && !machine_engine(r->s->m)->runs_in_kernel;
	int result = working_set_add(&r->set, ram, r->next_page, n, is_seen, &err);

	if (result < 0)
		log_info("snapshot", "the working set is not recorded: %s", err.text);
	r->next_page += n;
	if (result == 0 && r->next_page == npages)
		finish(r);
	r->has_set = result < 0 || r->next_page == npages;
}

/* What the engine has made of pages that are still those of the snapshot; false: nothing of it is to be written. */
static bool keeps_code(struct recording *r)
{
	struct snapper *s = r->s;
	const struct engine_ops *ops = machine_engine(s->m);
	struct engine_code code = { 0 };
	struct error err;

	/* The log is compared with another moment since another snapshot was made. */
	if (r->writer || !ops->code_save || !s->code_key || !s->is_logging || r->log_starts != s->log_starts)
		return r->writer;
	int result = ops->code_save(machine_vm(s->m), s->dirty, &code, &err);

	if (result == 0) {
		r->writer = snapcode_write(r->code_path, s->code_key, &code, &err);
		result = r->writer ? 0 : -EIO;
	}
	if (result < 0 && result != -EALREADY)
		log_info("snapshot", "the translated code is not kept: %s", err.text);
	return r->writer;
}

static void on_timer(void *arg)
{
	struct recording *r = arg;
	bool is_done = r->has_set && (!keeps_code(r) || snapcode_write_is_done(r->writer));

	if (!r->has_set)
		record_pages(r);
	if (is_done)
		snap_recording_end(r->s);
	else
		vtimer_arm(r->timer, vclock_now_ns(r->clock) + PIECE_NS);
}

void snapper_record(struct snapper *s, bool has_set)
{
	struct error err;

	if (!s->base_name || s->recording)
		return;
	char *path = snapstore_path(s->config->name, s->base_name, WORKING_SET_FILE, &err);
	char *code_path = snapstore_path(s->config->name, s->base_name, CODE_SET_FILE, &err);
	struct recording *r = path && code_path ? calloc(1, sizeof(*r)) : NULL;

	if (!r) {
		free(path);
		free(code_path);
		return;
	}
	*r = (struct recording){ .s = s,
				 .clock = s->clock,
				 .path = path,
				 .code_path = code_path,
				 .has_set = has_set,
				 .log_starts = s->log_starts };
	s->recording = r;
	r->timer = vtimer_create(machine_loop(s->m), s->clock, on_timer, r);
	if (r->timer)
		vtimer_arm(r->timer, vclock_now_ns(s->clock) + AFTER_NS);
	else
		snap_recording_end(s);
}
