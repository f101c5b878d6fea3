/* SPDX-License-Identifier: Apache-2.0 */
/* Going back to a snapshot in place. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "ctl/snap_int.h"

static int load_moment(const char *vm, const char *name, struct snapper_moment *out, struct error *err)
{
	struct snapshot_info info;
	int r = snapstore_load(&info, vm, name, err);

	if (r < 0)
		return r;
	*out = info.moment;
	snapshot_info_free(&info);
	return 0;
}

int snapper_restored(struct snapper *s, const struct snapshot_info *from, struct ram_files *files,
		     struct snapshot_state *state, struct error *err)
{
	snap_forget_base(s);
	s->base = *files;
	s->base_state = *state;
	*files = (struct ram_files){ 0 };
	*state = (struct snapshot_state){ 0 };
	s->base_moment = from->moment;
	s->base_name = strdup(from->name);
	int r = s->base_name ? snap_log_start(s, err)
			     : error_set(err, -ENOMEM, "no memory for snapshots");

	if (r < 0)
		snap_forget_base(s);
	return r;
}

const struct snapper_moment *snapper_base(const struct snapper *s)
{
	return &s->base_moment;
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

static bool is_base(const struct snapper *s, const char *name)
{
	return s->base_name && !strcmp(s->base_name, name) && s->base_state.data;
}

static bool have_disks_changed(const struct snapper *s)
{
	bool have = false;

	for (unsigned i = 0; i < s->config->ndisks; i++)
		have |= s->writes[i] != machine_block_writes(s->m, i);
	return have;
}

/*
 * Paused.  New layers over the snapshot's disks; none where disks are as they were then.
 * @lock: of the snapshots; -1: is taken where files are looked for.  -EAGAIN: somebody exchanges them.
 */
static int prepare_tops(struct snapper *s, const char *name, int *lock,
			char *tops[MACHINE_MAX_DISKS], struct error *err)
{
	struct snapshot_info info;

	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++)
		tops[i] = NULL;
	if (is_base(s, name) && !have_disks_changed(s))
		return 0;
	if (*lock < 0)
		*lock = snapstore_try_lock(s->config->name, false, err);
	int r = *lock < 0 ? *lock : snapstore_load(&info, s->config->name, name, err);

	if (r == 0) {
		r = vmdisks_go_back(s->disks, &info, false, tops, err);
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
		const struct vmconfig_disk *d = &s->config->disks[i];
		const struct block_open o = { .path = tops[i],
					      .format = "qcow2",
					      .use_direct = d->use_direct,
					      .max_bytes_per_s = d->max_bytes_per_s,
					      .max_ops_per_s = d->max_ops_per_s,
					      .backing = s->backing };

		if (!tops[i])
			continue;
		has_any = true;
		r = block_reopen(machine_block(s->m, i), &o, err);
	}
	if (r == 0 && has_any)
		r = vmdisks_went_back(s->disks, tops, err);
	snap_note_writes(s);
	return r;
}

void snapper_slept(struct machine *m, const struct snapper_moment *moment,
		   const struct snapper_waking *waking)
{
	int64_t ns = snap_real_ns() - moment->real_ns;

	if (waking->skips_time)
		machine_skip(m, ns);
	else
		machine_slept(m, ns);
}

/* Paused.  Disks, memory, then state; nothing that can be refused is left by now but by the host. */
static int64_t go_back(struct snapper *s, const struct ram_files *files,
		       const struct snapshot_state *state, const struct snapper_moment *moment,
		       const struct snapper_waking *waking, char *tops[MACHINE_MAX_DISKS],
		       struct error *err)
{
	struct guest_ram *ram = machine_ram(s->m);
	int64_t pages = 0;
	int r;

	r = reopen_disks(s, tops, err);
	if (r < 0)
		return r;
	if (s->base_name && s->is_logging) {
		r = snap_log_collect(s, err);
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
	/* It was saved, loaded or tried by this machine before. */
	r = machine_reload_state(s->m, state, err);
	if (r == 0) {
		machine_new_generation(s->m);
		snapper_slept(s->m, moment, waking);
		if (waking->tells_guest)
			machine_reappear(s->m);
		if (s->agent)
			agent_restart(s->agent);
	}
	if (r == 0)
		r = snap_log_start(s, err);
	return r < 0 ? r : pages;
}

int snapper_restore(struct snapper *s, const char *name, const struct snapper_waking *waking,
		    json_t *result, snapper_done_fn done, void *ctx, struct error *err)
{
	const struct snap_order order = { SNAP_RESTORE, &name, 1, *waking, done, ctx };
	int r = 0, lock = -1;

	if (s->take || s->forking || s->pending)
		return error_set(
			err, -EBUSY, "a snapshot or copies of this machine are being made; wait for that");
	/* What is open already is enough for going back to the same again. */
	if (!is_base(s, name) || have_disks_changed(s) || s->below)
		r = lock = snapstore_try_lock(s->config->name, false, err);
	if (r >= 0)
		r = snap_go_back(s, name, waking, lock, result, err);
	if (r != -EAGAIN)
		return r;
	r = snap_wait(s, &order, err);
	return r < 0 ? r : -EINPROGRESS;
}

static int go_back_to(struct snapper *s, const char *name, const struct snapper_waking *waking,
		      int *lock, json_t *result, struct error *err)
{
	bool is_same = is_base(s, name);
	struct snapshot_state state = { 0 };
	struct ram_files files = { 0 };
	struct snapper_moment moment = s->base_moment;
	char *tops[MACHINE_MAX_DISKS];
	struct error why;

	int r = is_same ? 0 : open_target(s, name, &files, &state, err);
	const struct snapshot_state *st = is_same ? &s->base_state : &state;

	if (r == 0 && !is_same)
		r = load_moment(s->config->name, name, &moment, err);
	if (r < 0) {
		snapshot_state_free(&state);
		ram_files_close(&files);
		return r;
	}
	snap_recording_end(s);
	uint64_t start = snap_now_us();
	bool was_running = machine_state(s->m) == MACHINE_RUNNING;

	r = was_running ? machine_pause(s->m, err) : 0;
	/* The base's state is this machine's: it was saved or loaded here. */
	if (r == 0 && !is_same)
		r = machine_check_state(s->m, st, err);
	if (r == 0)
		r = prepare_tops(s, name, lock, tops, err);
	if (r < 0) {
		if (was_running && machine_state(s->m) == MACHINE_PAUSED && machine_resume(s->m, &why) < 0)
			log_error("snapshot", "%s", why.text);
		snapshot_state_free(&state);
		ram_files_close(&files);
		return r;
	}
	int64_t pages = go_back(s, is_same ? &s->base : &files, st, &moment, waking, tops, err);

	if (pages < 0) { /* memory is neither the old nor the new */
		error_prefix(err, "going back to %s failed half-way", name);
		machine_end(s->m, END_FAILED, 1, err->text);
		snapshot_state_free(&state);
		ram_files_close(&files);
		return (int)pages;
	}
	if (!is_same) {
		snap_forget_base(s);
		s->base_name = strdup(name);
		s->base = files;
		s->base_state = state;
		if (!s->base_name)
			snap_forget_base(s);
	}
	s->base_moment = moment;
	r = machine_resume(s->m, err);
	if (r == 0)
		snapper_woke(s, &moment, waking->tells_guest);
	(void)json_object_set_new(result, "pause_us", json_integer((json_int_t)(snap_now_us() - start)));
	(void)json_object_set_new(result, "pages", json_integer((json_int_t)pages));
	return r;
}

int snap_go_back(struct snapper *s, const char *name, const struct snapper_waking *waking, int lock,
		 json_t *result, struct error *err)
{
	snap_below_cancel(s, NULL);
	snap_stop_threads(s);
	int r = go_back_to(s, name, waking, &lock, result, err);

	if (lock >= 0)
		close(lock);
	return r;
}
