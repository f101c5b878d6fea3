/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source: a thread that is told by the table of vm/migrate.c what to do, does it, and says what came of it.
 *
 *   loop:  state --(event)--> next state, actions;   each action: done, or the event TROUBLE, LOST, REFUSED, CANCEL
 *
 * Invariants of this file
 *  1. g->state changes in step() only, under the machine's lock; who cancels looks at it under the same lock.
 *  2. From MIGRATE_PAUSE on the machine cannot be resumed by anybody (machine_forbid_resume()) until MIGRATE_RESUME.
 *  3. A page is sent after its bit of the dirty log was collected.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include "base/host.h"
#include "base/log.h"
#include "ctl/migrate_int.h"
#include "ctl/paths.h"
#include "net/port.h"
#include "vm/snapshot_state.h"

#define ANSWER_MS	120000	      /* that building a machine may take at the target */
#define LAST_WORD_MS	1000	      /* that it comes after the end of another link */
#define RETAKE_NS	10000000000LL /* that the target may take to close the disks */
#define FEW_PAGES	64
#define TRIES_TO_SHRINK 6
#define THROTTLE_STEP	15
#define THROTTLE_ENOUGH                                                                            \
	75 /* who would have to be slowed down further is better served by post-copy */

static const char not_here[] =
	"the machine is being handed over to another host; it runs again if that fails";
static const char in_doubt[] =
	"it is not known whether the machine runs at the target; viv migrate --recover asks";

static const char in_parts[] = "the machine is at the target, and a part of its memory is still "
			       "here; viv migrate --recover brings it there";

static pthread_mutex_t *lock_of(const struct migrator *g)
{
	return machine_lock(g->cfg.machine);
}

static enum migrate_event event_of(int r)
{
	return r == -ECANCELED	    ? MIGRATE_EV_CANCEL
	       : r == -ECONNREFUSED ? MIGRATE_EV_REFUSED
	       : r == -EPIPE || r == -ETIMEDOUT || r == -EPROTO || r == -ECONNRESET
		       ? MIGRATE_EV_LOST
		       : MIGRATE_EV_TROUBLE;
}

/* ---- what the machine is ---- */

static void describe_file(struct migrate_file *f, const char *path)
{
	struct stat st;

	if (path && host.fstatat(AT_FDCWD, path, &st, 0) == 0)
		*f = (struct migrate_file){ .dev = st.st_dev,
					    .ino = st.st_ino,
					    .size_bytes = (uint64_t)st.st_size,
					    .used_bytes = (uint64_t)st.st_size };
}

/* An id's text in its one form; @text may be NULL. */
static int copy_id(char out[MIGRATE_ID_TEXT], const char *text, struct error *err)
{
	uint8_t id[MIGRATE_ID_BYTES];
	int r = text ? migrate_id_parse(id, text, err) : 0;

	if (r == 0 && text)
		migrate_id_text(out, id);
	return r;
}

/* With the lock. */
static int describe(struct migrator *g, const struct migrate_request *rq, struct error *err)
{
	struct migrate_offer *o = &g->offer;

	if (g->cfg.config->nshares)
		return error_set(err, -EOPNOTSUPP, "the machine has the shared folder \"%s\" of this host, which does not go along",
				 g->cfg.config->shares[0].tag);
	json_t *json = vmconfig_to_json(g->cfg.config);
	int r = json ? migrate_offer_init(o, err) : error_set(err, -ENOMEM, "no memory for an offer");

	if (r == 0)
		r = vmconfig_from_json(&o->config, json, err);
	json_decref(json);
	if (r == 0 && rq->name)
		r = paths_check_name("a machine", rq->name, err);
	if (r == 0 && rq->name)
		r = vmconfig_set(&o->config.name, rq->name, err);
	if (r == 0 && rq->engine)
		r = vmconfig_set(&o->config.engine, rq->engine, err);
	if (r == 0 && rq->network)
		r = vmconfig_set(&o->config.net, rq->network, err);
	else if (r == 0 && !rq->upgrade) /* there it keeps its sockets */
		o->network = snapper_identity(g->cfg.snapper);
	if (r == 0)
		r = copy_id(o->token, rq->token, err);
	if (r == 0)
		r = copy_id(o->snapshots, rq->snapshots, err);
	if (r == 0)
		r = migrate_id_new(o->id, err);
	if (r < 0)
		return r;
	o->nlinks = rq->nfds;
	o->verifies = rq->verifies;
	o->copies_all = rq->copies_all;
	o->is_handover = rq->upgrade != NULL;
	o->mapping_bytes = machine_ram(g->cfg.machine)->size_bytes;
	o->folder = paths_vm(g->cfg.config->name, NULL, err);
	snprintf(o->viv, sizeof(o->viv), "%s", VIV_VERSION);
	snapshot_host_boot(o->host_boot);
	describe_file(&o->kernel, o->config.kernel);
	describe_file(&o->initrd, o->config.initrd);
	describe_file(&o->firmware, o->config.firmware);
	for (unsigned i = 0; i < o->config.ndisks; i++) {
		struct block_dev *b = machine_block(g->cfg.machine, i);
		struct block_info info;

		describe_file(&o->disks[i], o->config.disks[i].path);
		b->ops->info(b, &info);
		o->disks[i].size_bytes = info.size_bytes;
	}
	return o->folder ? 0 : -ENOMEM;
}

/* With the lock.  Stands still for a moment: the log begins, and the state is of a moment. */
static int first_look(struct migrator *g, struct error *err)
{
	struct machine *m = g->cfg.machine;
	int64_t from = migrate_now_ns();
	struct error why;

	g->was_paused = machine_state(m) == MACHINE_PAUSED;
	int r = g->was_paused ? 0 : machine_pause(m, err);

	if (r < 0)
		return r;
	r = g->is_upgrade ? 0 : snapper_share_log(g->cfg.snapper, err);
	g->is_sharing_log = r == 0 && !g->is_upgrade;
	if (r == 0)
		r = machine_save_state(m, &g->first_state, err);
	if (!g->was_paused && machine_resume(m, &why) < 0 && r == 0) {
		*err = why;
		r = -EIO;
	}
	g->f.first_pause_ns = (uint64_t)(migrate_now_ns() - from);
	return r;
}

/* ---- actions ---- */

static int do_offer(struct migrator *g, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	struct bytes *b = &l->out;
	int r = g->is_upgrade ? 0 : migrate_disks_measure(g, err);

	if (r < 0)
		return r;
	pthread_mutex_lock(lock_of(g));
	r = first_look(g, err);
	if (r == 0 && g->is_upgrade)
		r = migrate_upgrade_offer(g, err);
	pthread_mutex_unlock(lock_of(g));
	if (r < 0)
		return r;
	json_t *json = migrate_offer_json(&g->offer);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

	json_decref(json);
	if (!text)
		return error_set(err, -ENOMEM, "no memory for an offer");
	if (strlen(text) > MIGRATE_PAYLOAD_MAX)
		return error_set(err, -E2BIG, "the machine's configuration is too long");
	migrate_record_put(b, MIGRATE_R_HELLO, &l->seq_out, text, strlen(text));
	migrate_put_state(b, &l->seq_out, g->first_state.data, g->first_state.len);
	bytes_free(&g->first_state);
	r = migrate_link_send(l, b, err);
	for (uint16_t i = 1; r == 0 && i < g->nlinks; i++) {
		uint8_t join[MIGRATE_ID_BYTES + 2];

		memcpy(join, g->offer.id, MIGRATE_ID_BYTES);
		memcpy(join + MIGRATE_ID_BYTES, &i, 2);
		r = migrate_link_tell(&g->links[i], MIGRATE_R_JOIN, join, sizeof(join), err);
	}
	return r;
}

static int collect(struct migrator *g, struct error *err)
{
	pthread_mutex_lock(lock_of(g));
	int r = snapper_collect_log(g->cfg.snapper, g->todo, err);

	pthread_mutex_unlock(lock_of(g));
	return r;
}

static void throttle(struct migrator *g, unsigned percent)
{
	pthread_mutex_lock(lock_of(g));
	machine_throttle(g->cfg.machine, percent);
	pthread_mutex_unlock(lock_of(g));
	g->f.throttle_percent = percent;
}

static int put_mark(struct migrator *g, bool has_moved, struct error *err)
{
	struct migrate_mark mark = { .has_moved = has_moved };

	migrate_id_text(mark.id, g->offer.id);
	snprintf(mark.to, sizeof(mark.to), "%s", g->to);
	return mark_put(g->cfg.config->name, &mark, err);
}

/* The mark is made before the machine stands still, as it has to be stable. */
static int do_mark(struct migrator *g, struct error *err)
{
	/* Within the host the machine's lock says enough. */
	int r = g->has_mark || g->is_upgrade ? 0 : put_mark(g, false, err);

	g->has_mark = r == 0 && !g->is_upgrade;
	return r;
}

/* After a round: what would the downtime be if the machine paused now? */
static uint64_t expected_downtime(const struct migrator *g, uint64_t npages)
{
	return (uint64_t)(g->page_ns * (double)npages + 2 * g->trip_ns);
}

/* The rest of memory goes after the machine, if the target can do with that; else the machine stands still for it. */
static int leave_memory(struct migrator *g, struct error *err)
{
	g->is_lazy = g->can_be_lazy && !g->was_paused;
	return do_mark(g, err);
}

/* Copy until little is left.  Returns 0: switch over. */
static int do_copy(struct migrator *g, struct error *err)
{
	uint64_t npages = g->offer.mapping_bytes >> GUEST_PAGE_SHIFT, last = npages;
	unsigned nfutile = 0, nfits = 0, percent = 0;
	int r = g->is_upgrade ? migrate_upgrade_copy(g, err) : migrate_disks_copy(g, err);

	if (r < 0 || g->is_upgrade)
		return r;
	for (uint64_t p = 0; p < npages; p++)
		g->todo[p / 64] |= 1ULL << p % 64;
	for (;;) {
		r = migrate_disks_round(g, err);
		int64_t from = migrate_now_ns();

		if (r == 0)
			r = migrate_send_round(g, true, err);
		if (r == 0 && !g->was_paused)
			r = collect(g, err);
		if (r < 0)
			return r;
		int64_t now = migrate_now_ns();
		uint64_t left = migrate_count_pages(g);
		uint64_t expected = expected_downtime(g, left) + migrate_disks_left_ns(g);
		bool shrinks = left < last - last / 4;

		g->f.pages_left = left;
		g->f.dirty_pages_per_s = (uint64_t)((double)left * 1e9 / (double)(now - from + 1));
		g->f.expected_downtime_ns = expected;
		last = left;
		if (expected <= g->max_downtime_ns) {
			r = do_mark(g, err);
			if (r < 0 || left <= FEW_PAGES || !shrinks || ++nfits >= TRIES_TO_SHRINK)
				return r;
			continue;
		}
		if (g->deadline_ns && now - g->f.begin_ns > (int64_t)g->deadline_ns) {
			if (g->priority == MIGRATE_FINISH)
				return leave_memory(g, err);
			return error_set(err, -ETIME,
					 "the machine changes its memory faster than the link "
					 "carries it, and the "
					 "deadline is over");
		}
		if (shrinks || ++nfutile < 2 || g->priority == MIGRATE_KEEP_RUNNING)
			continue;
		if (percent >= THROTTLE_ENOUGH && g->can_be_lazy)
			return leave_memory(g, err);
		percent = percent ? MIN(percent + THROTTLE_STEP, (unsigned)MACHINE_THROTTLE_MAX)
				  : 2 * THROTTLE_STEP;
		throttle(g, percent);
		nfutile = 1;
	}
}

static int do_pause(struct migrator *g, struct error *err)
{
	struct machine *m = g->cfg.machine;

	pthread_mutex_lock(lock_of(g));
	g->paused_at_ns = migrate_now_ns();
	machine_forbid_resume(m, not_here);
	/* Its user may have paused or resumed it meanwhile. */
	g->was_paused = machine_state(m) == MACHINE_PAUSED;
	int r = g->was_paused ? 0 : machine_pause(m, err);

	g->is_paused = r == 0;
	machine_throttle(m, 0);
	pthread_mutex_unlock(lock_of(g));
	return r;
}

static int send_sums(struct migrator *g, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	const struct guest_ram *ram = machine_ram(g->cfg.machine);
	uint64_t npages = ram->size_bytes >> GUEST_PAGE_SHIFT;
	int r = 0;

	for (uint64_t p = 0; r == 0 && p < npages; p += MIGRATE_SUMS_MAX) {
		migrate_put_sums(&l->out, &l->seq_out, ram, p,
				 (uint32_t)MIN(npages - p, (uint64_t)MIGRATE_SUMS_MAX));
		r = migrate_link_send(l, &l->out, err);
	}
	return r;
}

/* With the lock.  NAT's sockets stay: its guest is told, at the target, that these connections are over. */
static void take_resets(struct migrator *g)
{
	g->resets_bytes = 0;
	if (strcmp(g->cfg.config->net, "nat") != 0 || g->is_upgrade)
		return;
	if (!g->resets)
		g->resets = malloc(NET_FRAME_MAX);
	if (g->resets)
		g->resets_bytes = machine_take_resets(g->cfg.machine, g->resets, NET_FRAME_MAX);
}

/* The machine stands still: what is left, and the state. */
static int do_rest(struct migrator *g, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	_cleanup_bytes_ struct bytes state = { 0 };
	int r = g->is_upgrade ? 0 : migrate_disks_rest(g, err);

	if (r < 0)
		return r;
	pthread_mutex_lock(lock_of(g));
	take_resets(g);
	if (g->is_upgrade)
		r = migrate_upgrade_rest(g, err);
	if (r == 0)
		r = machine_save_state(g->cfg.machine, &state, err);
	if (r == 0 && !g->is_upgrade)
		r = snapper_collect_log(g->cfg.snapper, g->todo, err);
	pthread_mutex_unlock(lock_of(g));
	if (r == 0 && g->is_lazy)
		migrate_put_missing(&l->out, &l->seq_out, g->todo,
				    g->offer.mapping_bytes >> GUEST_PAGE_SHIFT);
	else if (r == 0 && !g->is_upgrade)
		r = migrate_send_round(g, false, err);
	if (r == 0 && g->offer.verifies)
		r = send_sums(g, err);
	if (r < 0)
		return r;
	const struct migrate_rest rest = { .paused_ns = (uint64_t)(migrate_now_ns() - g->paused_at_ns),
					   .is_paused = g->was_paused };

	migrate_put_state(&l->out, &l->seq_out, state.data, state.len);
	if (g->resets_bytes)
		migrate_record_put(&l->out, MIGRATE_R_RESETS, &l->seq_out, g->resets, g->resets_bytes);
	migrate_put_rest(&l->out, &l->seq_out, &rest);
	return migrate_link_send(l, &l->out, err);
}

/* ---- disks ---- */

/* An empty file of the disk's size stands for it meanwhile: nothing reads it, as nothing runs. */
static int put_stand_in(struct migrator *g, unsigned i, struct error *err)
{
	struct block_dev *b = machine_block(g->cfg.machine, i);
	_cleanup_free_ char *path = paths_format(err, "%s/.away-%u", g->offer.folder, i);
	struct block_info info;

	if (!path)
		return -ENOMEM;
	b->ops->info(b, &info);
	const struct block_open o = { .path = path, .format = "raw" };
	int r = migrate_stand_in(path, info.size_bytes, err);

	if (r == 0)
		r = block_reopen(b, &o, err);
	host.unlinkat(AT_FDCWD, path, 0);
	return r;
}

/* Of one that is thrown away nobody else writes the file, and what it holds would be lost. */
static bool is_given_away(const struct vmconfig_disk *d)
{
	return !d->is_readonly && !d->is_snapshot;
}

static int do_release(struct migrator *g, struct error *err)
{
	const struct vmconfig *c = g->cfg.config;
	int r = 0;

	pthread_mutex_lock(lock_of(g));
	g->are_disks_away = true;
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++)
		if (is_given_away(&c->disks[i]))
			r = put_stand_in(g, i, err);
	pthread_mutex_unlock(lock_of(g));
	return r;
}

static int take_disk(struct migrator *g, unsigned i, struct error *err)
{
	const struct vmconfig_disk *d = &g->cfg.config->disks[i];
	const struct block_open o = { .path = d->path,
				      .format = d->format,
				      .use_direct = d->use_direct,
				      .backing = g->cfg.backing,
				      .max_bytes_per_s = d->max_bytes_per_s,
				      .max_ops_per_s = d->max_ops_per_s };
	int64_t end = migrate_now_ns() + RETAKE_NS;
	int r;

	while ((r = block_reopen(machine_block(g->cfg.machine, i), &o, err)) == -EBUSY &&
	       migrate_now_ns() < end) {
		pthread_mutex_unlock(lock_of(g));
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
		pthread_mutex_lock(lock_of(g));
	}
	return r;
}

static int do_retake(struct migrator *g, struct error *err)
{
	const struct vmconfig *c = g->cfg.config;
	int r = 0;

	pthread_mutex_lock(lock_of(g));
	for (unsigned i = 0; g->are_disks_away && r == 0 && i < c->ndisks; i++)
		if (is_given_away(&c->disks[i]))
			r = take_disk(g, i, err);
	g->are_disks_away &= r < 0;
	pthread_mutex_unlock(lock_of(g));
	return r;
}

/* ---- the end, either way ---- */

static int do_resume(struct migrator *g, struct error *err)
{
	struct machine *m = g->cfg.machine;
	int r = 0;

	pthread_mutex_lock(lock_of(g));
	machine_forbid_resume(m, NULL);
	migrate_upgrade_keep(g);
	if (g->is_paused && !g->was_paused)
		r = machine_resume(m, err);
	g->is_paused = false;
	g->f.downtime_ns = (uint64_t)(migrate_now_ns() - g->paused_at_ns);
	pthread_mutex_unlock(lock_of(g));
	return r;
}

static void hang_up(struct migrator *g)
{
	for (unsigned i = 0; i < g->nlinks; i++)
		migrate_link_close(&g->links[i]);
	g->nlinks = 0;
}

static int do_ask(struct migrator *g, struct error *err)
{
	struct migrate_header h;
	struct migrate_link *l = &g->links[0];
	int r = migrate_link_tell(l, MIGRATE_R_ASK, g->offer.id, MIGRATE_ID_BYTES, err);

	if (r == 0)
		r = migrate_link_receive(l, &h, MIGRATE_SILENCE_MS, err);
	if (r < 0)
		return r;
	if (h.type != MIGRATE_R_ANSWER || h.len != 1)
		return error_set(err, -EPROTO, "the target answers out of turn");
	switch (l->payload[0]) {
	case MIGRATE_ANSWER_RAN:
		return MIGRATE_EV_RAN;
	case MIGRATE_ANSWER_ABORTED:
		return MIGRATE_EV_ABORTED;
	case MIGRATE_ANSWER_LACKING:
		r = migrate_serve_again(g, err);
		return r < 0 ? r : MIGRATE_EV_LACKING;
	default:
		return error_set(err, -ENOENT, "the host that answers knows nothing of this migration");
	}
}

/* @g->todo is what the target lacks; the thread waits for its word in here.  The event is given by go(). */
static int serve(struct migrator *g, struct error *err)
{
	/* Nobody can stop it any more, see COMMIT. */
	g->links[0].stop_fd = -1;
	return migrate_serve(g, err);
}

/* It finds the link empty, where REST was queued behind the last pages: so the target knows better how long the machine has been standing still. */
static int tell_commit(struct migrator *g, struct error *err)
{
	const uint64_t ns = (uint64_t)(migrate_now_ns() - g->paused_at_ns);

	return migrate_link_tell(&g->links[0], MIGRATE_R_COMMIT, &ns, sizeof(ns), err);
}

/* A row an action, in the order of the bits. */
static int act(struct migrator *g, uint32_t action, struct error *err)
{
	switch (action) {
	case MIGRATE_OFFER:
		return do_offer(g, err);
	case MIGRATE_COPY:
		return do_copy(g, err);
	case MIGRATE_MARK:
		return do_mark(g, err);
	case MIGRATE_PAUSE:
		return do_pause(g, err);
	case MIGRATE_REST:
		return do_rest(g, err);
	case MIGRATE_RELEASE:
		return do_release(g, err);
	case MIGRATE_COMMIT:
		/* Whether or not it got through, only the target knows from here on: nobody may stop the wait for its word. */
		g->links[0].stop_fd = -1;
		return tell_commit(g, err);
	case MIGRATE_HANG_UP:
		hang_up(g);
		return 0;
	case MIGRATE_SERVE:
		return serve(g, err);
	case MIGRATE_RETAKE:
		return do_retake(g, err);
	case MIGRATE_RESUME:
		return do_resume(g, err);
	case MIGRATE_UNMARK:
		g->has_mark = false;
		return mark_remove(g->cfg.config->name, err);
	default: /* ASK waits for a link, END for the report */
		return 0;
	}
}

/* The target answers the offer when all links are there; one that is lost meanwhile would leave it waiting.  0: link 0 may be read; -EPIPE. */
static int await_answer(struct migrator *g, struct error *err)
{
	struct pollfd p[MIGRATE_STREAMS_MAX + 1];
	int n;

	for (unsigned i = 0; i < g->nlinks; i++)
		p[i] = (struct pollfd){ .fd = g->links[i].fd, .events = i ? POLLRDHUP : POLLIN };
	p[g->nlinks] = (struct pollfd){ .fd = g->stop_fd, .events = POLLIN };
	do
		n = poll(p, g->nlinks + 1, ANSWER_MS);
	while (n < 0 && errno == EINTR);
	if (n <= 0 || p[0].revents || p[g->nlinks].revents)
		return 0;
	/* A target that refuses hangs up on all, and has said why on link 0. */
	if (poll(p, 1, LAST_WORD_MS) > 0)
		return 0;
	return error_set(err, -EPIPE, "one of the links was lost");
}

/* What the target says next, as an event. */
static enum migrate_event await_word(struct migrator *g, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	struct migrate_header h;
	int r = g->state == SOURCE_OFFERED ? await_answer(g, err) : 0;

	if (r < 0)
		return event_of(r);
	do /* the last round is not waited for, but answered */
		r = migrate_link_receive(
			l, &h, g->state == SOURCE_OFFERED ? ANSWER_MS : MIGRATE_SILENCE_MS, err);
	while (r == 0 && ((g->state == SOURCE_SWITCHING && h.type == MIGRATE_R_ROUND_DONE) ||
			  migrate_serve_record(g, &h, &r, err)));
	if (r < 0)
		return event_of(r);
	switch (h.type) {
	case MIGRATE_R_ACCEPT:
		if (migrate_accept_parse(&g->offer, l->payload, h.len, err) < 0)
			return MIGRATE_EV_LOST;
		g->can_be_lazy = g->offer.can_post_copy;
		return MIGRATE_EV_ACCEPTED;
	case MIGRATE_R_LOADED:
		return MIGRATE_EV_LOADED;
	case MIGRATE_R_RUNNING:
		if (h.len == sizeof(uint64_t)) {
			uint64_t ns;

			memcpy(&ns, l->payload, sizeof(ns));
			g->f.downtime_ns = ns;
		}
		return g->is_lazy ? MIGRATE_EV_LACKING : MIGRATE_EV_RUNNING;
	case MIGRATE_R_REFUSE:
		migrate_link_text(l, &h, err);
		return MIGRATE_EV_REFUSED;
	default:
		error_set(err, -EPROTO, "the target answers out of turn");
		return MIGRATE_EV_LOST;
	}
}

/* Returns false where @event means nothing. */
static bool step(struct migrator *g, enum migrate_event event, uint32_t *actions)
{
	pthread_mutex_lock(lock_of(g));
	/* The last moment: who was told that it will not happen is right. */
	if (event == MIGRATE_EV_RELEASED && g->is_stopping)
		event = MIGRATE_EV_CANCEL;
	bool is_known = migrate_source_next(&g->state, event, actions);

	if (g->state == SOURCE_DOUBT)
		machine_forbid_resume(g->cfg.machine, in_doubt);
	if (g->state == SOURCE_SERVING)
		machine_forbid_resume(g->cfg.machine, in_parts);
	pthread_mutex_unlock(lock_of(g));
	return is_known;
}

/* From @event to a state that only somebody else can lead out of: an end, or doubt. */
static void go(struct migrator *g, enum migrate_event event)
{
	struct error err = { "canceled" };

	for (;;) {
		uint32_t actions = 0;
		bool failed = false;

		if (!step(g, event, &actions)) {
			/* The target says what it should not; or nothing can be undone any more. */
			if (event != MIGRATE_EV_LOST && step(g, MIGRATE_EV_LOST, &actions)) {
				if (event != MIGRATE_EV_TROUBLE && event != MIGRATE_EV_CANCEL)
					error_set(&err, 0, "the target answers out of turn");
				event = MIGRATE_EV_LOST;
			} else {
				machine_end(g->cfg.machine, END_FAILED, 1, err.text);
				return;
			}
		}
		if (actions & (MIGRATE_HANG_UP | MIGRATE_RETAKE))
			g->failure = err;
		for (; actions && !failed; actions &= actions - 1) {
			int r = act(g, actions & -actions, &err);

			if (r < 0) {
				failed = true;
				event = event_of(r);
			}
		}
		if (failed && migrate_source_is_end(g->state)) {
			error_prefix(&err, "the machine cannot go on here");
			pthread_mutex_lock(lock_of(g));
			machine_end(g->cfg.machine, END_FAILED, 1, err.text);
			pthread_mutex_unlock(lock_of(g));
			return;
		}
		if (g->state == SOURCE_DOUBT && g->is_upgrade) {
			event = migrate_upgrade_ask(g);
			continue;
		}
		if (migrate_source_is_end(g->state) || migrate_source_waits(g->state))
			return;
		if (failed)
			continue;
		event = g->state == SOURCE_PRECOPY     ? MIGRATE_EV_SWITCH
			: g->state == SOURCE_RELEASING ? MIGRATE_EV_RELEASED
			: g->state == SOURCE_SERVING   ? MIGRATE_EV_FETCHED
						       : await_word(g, &err);
	}
}

/* ---- reports ---- */

static json_t *report(const struct migrator *g)
{
	const struct migrate_figures *f = &g->f;
	json_t *j = json_object();

	migrator_status(g, j);
	(void)json_object_set_new(j, "downtime_us", json_integer((json_int_t)(f->downtime_ns / 1000)));
	(void)json_object_set_new(j, "first_pause_us",
				  json_integer((json_int_t)(f->first_pause_ns / 1000)));
	if (g->is_upgrade) {
		(void)json_object_set_new(j, "frozen_us",
					  json_integer((json_int_t)(g->ram.stood_ns / 1000)));
		(void)json_object_set_new(j, "longest_freeze_us",
					  json_integer((json_int_t)(g->ram.longest_ns / 1000)));
	}
	return j;
}

/* On the loop: the thread has nothing more to do. */
static void on_finished(void *arg)
{
	struct migrator *g = arg;
	migrator_done_fn done = g->done;
	char text[sizeof(((struct machine_end *)0)->text)];

	pthread_join(g->thread, NULL);
	g->has_thread = false;
	g->done = NULL;
	g->is_active = migrate_source_waits(g->state);
	if (g->state == SOURCE_MOVED) {
		json_t *j = report(g);

		if (done)
			done(g->ctx, j, NULL);
		json_decref(j);
		snprintf(text, sizeof(text),
			 g->is_upgrade ? "the machine goes on in %s" : "the machine moved to %s", g->to);
		machine_end(g->cfg.machine, END_MOVED, 0, text);
		return;
	}
	if (g->is_recovering && g->state == SOURCE_KEPT) {
		json_t *j = report(g);

		if (done)
			done(g->ctx, j, NULL);
		json_decref(j);
		return;
	}
	if (g->state == SOURCE_DOUBT && !g->is_recovering)
		error_prefix(&g->failure, "the link was lost at the very moment of the hand-over, "
					  "and only the target knows whether "
					  "the machine runs there; viv migrate --recover asks it");
	if (g->state == SOURCE_STRANDED)
		error_prefix(&g->failure, "the machine stands still at the target, as a part of "
					  "its memory is still here; "
					  "viv migrate --recover goes on with it");
	if (done)
		done(g->ctx, NULL, &g->failure);
	else
		log_warn("migrate", "%s", g->failure.text);
}

/* What only a migration under way needs. */
static void clean_up(struct migrator *g)
{
	struct machine *m = g->cfg.machine;
	struct error err;

	hang_up(g);
	migrate_upgrade_end(g);
	migrate_senders_free(g);
	bytes_free(&g->first_state);
	free(g->todo);
	g->todo = NULL;
	free(g->resets);
	g->resets = NULL;
	pthread_mutex_lock(lock_of(g));
	machine_throttle(m, 0);
	migrate_disks_end(g);
	if (g->is_sharing_log && migrate_source_runs(g->state)) {
		bool runs = machine_state(m) == MACHINE_RUNNING;

		if (!runs || machine_pause(m, &err) == 0)
			snapper_unshare_log(g->cfg.snapper);
		if (runs && machine_state(m) == MACHINE_PAUSED && machine_resume(m, &err) < 0)
			machine_end(m, END_FAILED, 1, err.text);
		g->is_sharing_log = false;
	}
	pthread_mutex_unlock(lock_of(g));
	/* Of one that was not needed in the end. */
	if (g->has_mark && g->state == SOURCE_KEPT && mark_remove(g->cfg.config->name, &err) < 0)
		log_error("migrate", "%s", err.text);
	if (g->state == SOURCE_KEPT)
		g->has_mark = false;
	g->f.end_ns = migrate_now_ns();
}

static void post_finished(struct migrator *g)
{
	if (loop_post(machine_loop(g->cfg.machine), on_finished, g) == 0)
		return;
	/* Nobody is told; what is decided is so. */
	pthread_mutex_lock(lock_of(g));
	if (g->state == SOURCE_MOVED)
		machine_end(g->cfg.machine, END_MOVED, 0, "the machine moved to another host");
	pthread_mutex_unlock(lock_of(g));
}

static void *source_thread(void *arg)
{
	struct migrator *g = arg;

	go(g, MIGRATE_EV_BEGIN);
	if (g->state == SOURCE_MOVED && !g->is_upgrade) {
		struct error err;

		/* With our mark changed, it need not remember for us any more. */
		if (put_mark(g, true, &err) < 0)
			log_error("migrate", "%s", err.text);
		else if (g->nlinks && migrate_link_tell(&g->links[0], MIGRATE_R_PING, NULL, 0, &err) < 0)
			log_debug("migrate", "%s", err.text);
	}
	clean_up(g);
	post_finished(g);
	return NULL;
}

/* What clean_up() has given back, if the machine left without some of its memory. */
static int prepare_to_serve(struct migrator *g, struct error *err)
{
	if (!g->is_lazy)
		return 0;
	g->todo = calloc((g->offer.mapping_bytes >> GUEST_PAGE_SHIFT) / 64 + 1, 8);
	return g->todo ? migrate_senders_init(g, err)
		       : error_set(err, -ENOMEM, "no memory for a migration");
}

static void *recover_thread(void *arg)
{
	struct migrator *g = arg;
	struct error err;
	int r = prepare_to_serve(g, &err);

	if (r == 0)
		r = do_ask(g, &err);
	if (r != MIGRATE_EV_LACKING)
		hang_up(g);
	if (r >= 0)
		go(g, (enum migrate_event)r);
	if (g->state == SOURCE_MOVED && put_mark(g, true, &err) < 0)
		log_error("migrate", "%s", err.text);
	if (r < 0)
		g->failure = err;
	clean_up(g);
	post_finished(g);
	return NULL;
}

/* ---- for clients ---- */

int migrator_create(struct migrator **out, const struct migrator_config *cfg, struct error *err)
{
	struct migrator *g = calloc(1, sizeof(*g));

	if (!g)
		return error_set(err, -ENOMEM, "no memory for migrations");
	g->cfg = *cfg;
	migrate_upgrade_take(g, NULL);
	g->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (g->stop_fd < 0) {
		free(g);
		return error_set(err, -errno, "cannot make an event: %s", strerror(errno));
	}
	*out = g;
	return 0;
}

static void stop(struct migrator *g)
{
	g->is_stopping = true;
	if (eventfd_write(g->stop_fd, 1) < 0)
		log_debug("migrate", "cannot stop: %s", strerror(errno));
}

void migrator_destroy(struct migrator *g)
{
	if (!g)
		return;
	if (g->has_thread) {
		stop(g);
		/* One that waits for the target's word after the commit leaves doubt, and the mark. */
		if (g->nlinks)
			shutdown(g->links[0].fd, SHUT_RDWR);
		pthread_mutex_unlock(lock_of(g));
		pthread_join(g->thread, NULL);
		pthread_mutex_lock(lock_of(g));
	}
	migrate_offer_free(&g->offer);
	close(g->stop_fd);
	free(g->to);
	free(g);
}

static void close_all(const int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		close(fds[i]);
}

/* Takes the links. */
static int open_links(struct migrator *g, const int *fds, unsigned n, struct error *err)
{
	int r = 0;

	for (g->nlinks = 0; g->nlinks < n; g->nlinks++) {
		int e = migrate_link_init(&g->links[g->nlinks], fds[g->nlinks], g->stop_fd, true,
					  r < 0 ? NULL : err);

		r = r < 0 ? r : e;
	}
	if (r < 0)
		hang_up(g);
	return r;
}

static int start_thread(struct migrator *g, void *(*fn)(void *), migrator_done_fn done, void *ctx,
			struct error *err)
{
	eventfd_t value;

	g->is_stopping = false;
	(void)eventfd_read(g->stop_fd, &value);
	g->is_recovering = fn == recover_thread;
	g->done = done;
	g->ctx = ctx;
	int e = pthread_create(&g->thread, NULL, fn, g);

	if (e)
		return error_set(err, -e, "cannot start a thread: %s", strerror(e));
	g->has_thread = g->is_active = true;
	return 0;
}

static int prepare(struct migrator *g, const struct migrate_request *rq, struct error *err)
{
	g->max_downtime_ns = rq->max_downtime_ns ? rq->max_downtime_ns : MIGRATE_MAX_DOWNTIME_NS;
	g->deadline_ns = rq->deadline_ns;
	g->bytes_per_s = rq->bytes_per_s;
	g->priority = rq->priority;
	g->page_ns = g->trip_ns = 0;
	g->round = 0;
	g->throttled_bytes = 0;
	g->limit_from_ns = migrate_now_ns();
	g->is_paused = g->are_disks_away = false;
	g->can_be_lazy = g->is_lazy = false;
	g->cursor = g->nahead = 0;
	memset(&g->f, 0, sizeof(g->f));
	g->f.begin_ns = migrate_now_ns();
	migrate_offer_free(&g->offer);
	int r = vmconfig_set(&g->to, rq->to, err);

	if (r == 0)
		r = describe(g, rq, err);
	if (r < 0)
		return r;
	g->todo = calloc((g->offer.mapping_bytes >> GUEST_PAGE_SHIFT) / 64 + 1, 8);
	return g->todo ? migrate_senders_init(g, err)
		       : error_set(err, -ENOMEM, "no memory for a migration");
}

int migrator_begin(struct migrator *g, const struct migrate_request *rq, migrator_done_fn done,
		   void *ctx, struct error *err)
{
	int r = 0;

	if (g->is_active)
		r = error_set(err, -EBUSY, "the machine is being moved to %s already", g->to);
	else if (machine_ram(g->cfg.machine)->is_shared)
		r = error_set(err, -EBUSY, "the machine's memory is just being taken over from an older process; wait for that");
	else if (machine_ram(g->cfg.machine)->is_lazy)
		r = error_set(
			err, -EBUSY,
			"a part of the machine's memory is still on its way here; wait for that");
	else if (snapper_is_busy(g->cfg.snapper))
		r = error_set(err, -EBUSY,
			      "a snapshot or copies of this machine are being made; wait for that");
	else if (!rq->nfds || rq->nfds > MIGRATE_STREAMS_MAX)
		r = error_set(err, -EINVAL, "a migration takes 1 to %d links, not %u",
			      MIGRATE_STREAMS_MAX, rq->nfds);
	struct handover_ends none = { -1, -1, -1 }, ends = rq->upgrade ? *rq->upgrade : none;

	if (r < 0) {
		close_all(rq->fds, rq->nfds);
		handover_ends_close(&ends);
		return r;
	}
	g->state = SOURCE_IDLE;
	migrate_upgrade_take(g, rq->upgrade);
	r = open_links(g, rq->fds, rq->nfds, err);
	if (r == 0 && g->is_upgrade)
		r = migrate_upgrade_check(g, err);
	if (r == 0)
		r = prepare(g, rq, err);
	if (r == 0)
		r = start_thread(g, source_thread, done, ctx, err);
	if (r < 0) {
		hang_up(g);
		handover_ends_close(&g->ends);
		migrate_senders_free(g);
		free(g->todo);
		g->todo = NULL;
	}
	return r;
}

int migrator_recover(struct migrator *g, int fd, migrator_done_fn done, void *ctx, struct error *err)
{
	if (!migrate_source_waits(g->state) || g->has_thread) {
		close(fd);
		return error_set(err, -EALREADY,
				 "this machine's whereabouts are not in doubt: it is here");
	}
	int r = open_links(g, &fd, 1, err);

	if (r == 0)
		r = start_thread(g, recover_thread, done, ctx, err);
	if (r < 0)
		hang_up(g);
	return r;
}

void migrator_forget(struct migrator *g, const void *ctx)
{
	if (g->ctx == ctx)
		g->done = NULL;
}

int migrator_cancel(struct migrator *g, struct error *err)
{
	enum migrate_source_state at = g->state;
	uint32_t actions;

	if (!g->has_thread)
		return error_set(err, -EALREADY, "no migration of this machine is under way");
	if (!migrate_source_next(&at, MIGRATE_EV_CANCEL, &actions) && g->state != SOURCE_IDLE)
		return error_set(err, -EBUSY, "it is too late: the machine has been handed over");
	stop(g);
	return 0;
}

void migrator_status(const struct migrator *g, json_t *out)
{
	const struct migrate_figures *f = &g->f;
	int64_t end = f->end_ns ? f->end_ns : migrate_now_ns();
	json_t *j = json_pack(
		"{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
		"s:I, s:I}",
		"state", migrate_source_name(g->state), "text", migrate_source_text(g->state), "to",
		g->to ? g->to : "", "elapsed_us",
		(json_int_t)(f->begin_ns ? (end - f->begin_ns) / 1000 : 0), "sent_bytes",
		(json_int_t)f->bytes_sent, "pages_sent", (json_int_t)f->pages_sent, "pages_zero",
		(json_int_t)f->pages_zero, "pages_packed", (json_int_t)f->pages_zstd, "pages_delta",
		(json_int_t)f->pages_delta, "pages_left", (json_int_t)f->pages_left,
		"dirty_bytes_per_s", (json_int_t)(f->dirty_pages_per_s * GUEST_PAGE_SIZE), "rounds",
		(json_int_t)f->rounds, "throttle_percent", (json_int_t)f->throttle_percent,
		"expected_downtime_us", (json_int_t)(f->expected_downtime_ns / 1000), "disk_bytes_sent",
		(json_int_t)f->disk_bytes_sent, "disk_bytes_left", (json_int_t)f->disk_bytes_left,
		"pages_late", (json_int_t)f->pages_late, "pages_wanted", (json_int_t)f->pages_wanted);

	(void)json_object_update(out, j);
	json_decref(j);
}

bool migrator_is_active(const struct migrator *g)
{
	return g && g->is_active;
}

bool migrator_has_gone_on(const struct migrator *g)
{
	return migrator_has_moved(g) && g->is_upgrade;
}

bool migrator_has_moved(const struct migrator *g)
{
	return g && g->state == SOURCE_MOVED;
}
