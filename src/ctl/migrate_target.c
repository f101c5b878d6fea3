/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The target.  Link 0 has a thread that goes through the states of vm/migrate.h; each other link has one that puts pages into memory.  When memory is
 * to come after the machine (post-copy), migrate_lazy.c reads link 0 from REST on, and this thread hears from there what happens.
 *
 * Invariants
 *  1. Memory is written by the links' threads, each its own pages, and read by nobody until all links are at the end of the last round.
 *  2. Nothing runs before the claim is "ran" (machine_forbid_resume()).
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/log.h"
#include "ctl/migrate_files.h"
#include "ctl/migrate_lazy.h"
#include "ctl/migrate_link.h"
#include "ctl/migrate_target.h"
#include "ctl/paths.h"
#include "net/port.h"
#include "vm/migrate.h"

#define COMMIT_MS    120000 /* that a source may take for giving away disks */
#define LAST_WORD_MS 10000
#define CARDS_MS     1000 /* that a network may take to turn to this process */

static const char cut_off[] = "the machine lacks memory that is still at the source, to which the "
			      "link was lost; viv migrate --recover there "
			      "brings it back";
static const char not_here_yet[] = "the machine is still on its way here";

struct link_thread {
	struct migrate_target *t;
	unsigned index;
	pthread_t thread;
	bool has_thread;
	struct migrate_unpacker unpacker;
	uint64_t rounds; /* under t->lock: ended on this link */
};

struct migrate_target {
	char *name;
	struct migrate_offer offer;
	struct migrate_link links[MIGRATE_STREAMS_MAX];
	unsigned nlinks;
	struct snapshot_state first;
	struct machine_restore restore;
	struct migrate_target_config cfg;
	bool has_claim;

	struct link_thread threads[MIGRATE_STREAMS_MAX];
	struct migrate_lazy *lazy; /* NULL: it cannot run before its memory is there */
	_Atomic bool is_lazy;	   /* and does */
	int door_fd, faults_fd;
	_Atomic uint64_t *touched;
	int stop_fd;
	_Atomic bool has_arrived, is_ended;

	pthread_mutex_t lock;
	pthread_cond_t cond; /* a round ended on a link, or a link failed */
	bool has_failed;     /* a link other than 0 */
	struct error failure;

	/* Of link 0's thread. */
	struct migrate_files files;
	uint32_t disk_round;
	struct bytes resets; /* frames for the guest, once it runs */
	enum migrate_target_state state;
	struct migrate_state_in last;
	struct migrate_rest rest;
	int64_t still_since_ns; /* that the machine stands still, as far as the source has told; on this host's clock */
	uint64_t downtime_ns;
	/* From another process here. */
	bool is_upgrade;
	struct handover_ends ends;
	struct handover_ram ram;
	struct handover handover;
	struct bytes console;
	bool is_standing; /* for want of a link */
	struct error why; /* it is GONE */
};

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* ---- before there is a machine ---- */

static int receive_first(struct migrate_target *t, struct error *err)
{
	struct migrate_state_in in = { 0 };
	struct migrate_header h;
	int r = 0;

	while (r == 0) {
		r = migrate_link_receive(&t->links[0], &h, MIGRATE_SILENCE_MS, err);
		if (r == 0 && h.type != MIGRATE_R_STATE)
			r = error_set(err, -EPROTO, "the source does not say what the machine is");
		if (r == 0)
			r = migrate_state_add(&in, t->links[0].payload, h.len, err);
	}
	if (r > 0)
		r = snapshot_state_parse(&t->first, in.data.data, in.data.len, err);
	bytes_free(&in.data);
	return r;
}

/* HELLO and the state have to be of one machine. */
static int check_memory(const struct migrate_target *t, struct error *err)
{
	uint64_t size = t->first.machine.mem_bytes + t->first.machine.rom_bytes;

	return size == t->offer.mapping_bytes && t->first.machine.mem_bytes == t->offer.config.mem_bytes
		       ? 0
		       : error_set(err, -EINVAL,
				   "the offer and the state are of machines with different memory");
}

static int open_all(struct migrate_target *t, const char *name, const int *fds, unsigned nfds,
		    struct error *err)
{
	int r = 0;

	for (t->nlinks = 0; t->nlinks < nfds; t->nlinks++) {
		int e = migrate_link_init(&t->links[t->nlinks], fds[t->nlinks], t->stop_fd, false,
					  r < 0 ? NULL : err);

		r = r < 0 ? r : e;
		t->links[t->nlinks].seq_in = 1; /* HELLO or JOIN was read elsewhere */
	}
	if (r == 0)
		r = migrate_load_incoming(&t->offer, name, err);
	if (r == 0 && t->offer.nlinks != nfds)
		r = error_set(err, -EINVAL, "%u links were announced, and %u are there",
			      t->offer.nlinks, nfds);
	if (r == 0)
		r = claim_open(t->offer.id, err);
	t->has_claim = r == 0;
	if (r == 0)
		r = receive_first(t, err);
	if (r == 0)
		r = check_memory(t, err);
	if (r < 0)
		return r;
	t->touched = calloc((t->offer.mapping_bytes >> GUEST_PAGE_SHIFT) / 64 + 1, 8);
	return t->touched ? 0 : error_set(err, -ENOMEM, "no memory to receive a machine");
}

static struct migrate_target *make(const char *name)
{
	struct migrate_target *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->cond, NULL);
	handover_init(&t->handover);
	migrate_files_init(&t->files);
	t->ends = (struct handover_ends){ -1, -1, -1 };
	t->door_fd = t->faults_fd = -1;
	t->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	t->name = strdup(name);
	t->state = TARGET_BUILDING;
	t->restore = (struct machine_restore){ .state = &t->first, .is_shape = true };
	return t;
}

static int init_offer(struct migrate_target *t, struct error *err)
{
	int r = migrate_offer_init(&t->offer, err);

	return r == 0 && (t->stop_fd < 0 || !t->name)
		       ? error_set(err, -ENOMEM, "no memory to receive a machine")
		       : r;
}

/* @r of opening. */
static int made(struct migrate_target **out, struct migrate_target *t, int r, const struct error *err)
{
	if (r < 0) {
		migrate_target_refuse(t, err);
		migrate_target_destroy(t);
		return r;
	}
	*out = t;
	return 0;
}

int migrate_target_open(struct migrate_target **out, const char *name,
			const struct migrate_fds *fds, struct error *err)
{
	struct migrate_target *t = fds->nlinks && fds->nlinks <= MIGRATE_STREAMS_MAX ? make(name) : NULL;

	if (!t) {
		for (unsigned i = 0; i < fds->nlinks; i++)
			close(fds->links[i]);
		close_fd(fds->door);
		close_fd(fds->faults);
		return error_set(err, -ENOMEM, "no memory to receive a machine");
	}
	t->door_fd = fds->door;
	t->faults_fd = fds->faults;
	int r = init_offer(t, err);

	if (r == 0)
		r = open_all(t, name, fds->links, fds->nlinks, err);
	return made(out, t, r, err);
}

/* ---- from another process here ---- */

static bool is_same_config(const struct vmconfig *a, const struct vmconfig *b)
{
	json_t *one = vmconfig_to_json(a), *other = vmconfig_to_json(b);
	bool is_same = one && other && json_equal(one, other);

	json_decref(one);
	json_decref(other);
	return is_same;
}

static int receive_hello(struct migrate_target *t, const struct vmconfig *config, struct error *err)
{
	struct migrate_link *l = &t->links[0];
	struct migrate_header h;
	int r = migrate_link_receive(l, &h, MIGRATE_SILENCE_MS, err);

	if (r == 0 && h.type != MIGRATE_R_HELLO)
		r = error_set(err, -EPROTO, "the source does not say what the machine is");
	if (r == 0)
		r = migrate_offer_parse(&t->offer, l->payload, h.len, err);
	if (r == 0 && (!t->offer.is_handover || t->offer.nlinks != 1))
		r = error_set(err, -EPROTO, "the source moves the machine to another host");
	if (r == 0 && !is_same_config(&t->offer.config, config))
		r = error_set(err, -EAGAIN,
			      "the machine's configuration has just been changed; try again");
	return r;
}

int migrate_target_take_over(struct migrate_target **out, const struct vmconfig *config, int link,
			     const struct handover_ends *ends, struct handover_cards *cards,
			     struct error *err)
{
	struct migrate_target *t = make(config->name);
	struct handover_ends own = *ends;

	*cards = (struct handover_cards){ .n = 0 };
	if (!t) {
		close_fd(link);
		handover_ends_close(&own);
		return error_set(err, -ENOMEM, "no memory to receive a machine");
	}
	t->is_upgrade = true;
	t->ends = own;
	int r = init_offer(t, err), e = migrate_link_init(&t->links[0], link, t->stop_fd, false, err);

	t->nlinks = 1;
	r = r < 0 ? r : e;
	if (r == 0)
		r = receive_hello(t, config, err);
	if (r == 0)
		r = receive_first(t, err);
	if (r == 0)
		r = check_memory(t, err);
	if (r == 0)
		r = handover_receive_cards(t->ends.hatch, cards, err);
	return made(out, t, r, err);
}

const struct machine_restore *migrate_target_restore(const struct migrate_target *t)
{
	return &t->restore;
}

int migrate_target_stand_in(const struct migrate_target *t, unsigned i, char **path, struct error *err)
{
	if (t->offer.config.disks[i].is_readonly && !t->offer.disks[i].is_copied) {
		*path = NULL;
		return 0;
	}
	_cleanup_free_ char *file = paths_format(err, ".stand-in-%u", i);
	char *full = file ? paths_vm(t->name, file, err) : NULL;
	int r = full ? migrate_stand_in(full, t->offer.disks[i].size_bytes, err) : -ENOMEM;

	if (r < 0)
		free(full);
	else
		*path = full;
	return r;
}

/* ---- actions ---- */

static int tell(struct migrate_target *t, enum migrate_record type, const void *payload, size_t len,
		struct error *err)
{
	return t->is_lazy ? migrate_lazy_tell(t->lazy, type, payload, len, err)
			  : migrate_link_tell(&t->links[0], type, payload, len, err);
}

static void tell_refused(struct migrate_target *t, const struct error *why)
{
	struct error err;

	if (t->nlinks && t->links[0].payload &&
	    tell(t, MIGRATE_R_REFUSE, why->text, strlen(why->text), &err) < 0)
		log_debug("migrate", "%s", err.text);
}

static void abort_claim(struct migrate_target *t)
{
	struct error err;

	if (t->has_claim && claim_ask(t->offer.id, &err) < 0)
		log_error("migrate", "%s", err.text);
}

void migrate_target_refuse(struct migrate_target *t, const struct error *why)
{
	abort_claim(t);
	tell_refused(t, why);
	t->state = TARGET_GONE;
}

/* With the machine's lock. */
static int take_disks(struct migrate_target *t, struct error *err)
{
	const struct vmconfig *c = t->cfg.config;
	int r = 0;

	migrate_files_close(&t->files);
	for (unsigned i = 0; r == 0 && i < c->ndisks; i++) {
		const struct vmconfig_disk *d = &c->disks[i];
		const struct block_open o = { .path = d->path,
					      .format = d->format,
					      .is_readonly = d->is_readonly,
					      .use_direct = d->use_direct,
					      .backing = t->cfg.backing,
					      .max_bytes_per_s = d->max_bytes_per_s,
					      .max_ops_per_s = d->max_ops_per_s };

		if (!d->is_readonly || t->offer.disks[i].is_copied)
			r = block_reopen(machine_block(t->cfg.machine, i), &o, err);
	}
	return r;
}

/* With the machine's lock: its link is lost, and memory is missing. */
static int stand(struct migrate_target *t, struct error *err)
{
	struct machine *m = t->cfg.machine;

	machine_forbid_resume(m, cut_off);
	t->is_standing = machine_state(m) == MACHINE_RUNNING;
	return t->is_standing ? machine_pause(m, err) : 0;
}

static int go_on(struct migrate_target *t, struct error *err)
{
	struct machine *m = t->cfg.machine;

	machine_forbid_resume(m, NULL);
	return t->is_standing ? machine_resume(m, err) : 0;
}

/* On the loop, with the lock: a page that is still to come is waited for there as for any other device's. */
static void give_resets(void *arg)
{
	struct migrate_target *t = arg;

	machine_give_resets(t->cfg.machine, t->resets.data, t->resets.len);
}

/* With the machine's lock. */
static int resume(struct migrate_target *t, struct error *err)
{
	struct machine *m = t->cfg.machine;

	machine_forbid_resume(m, NULL);
	if (t->is_upgrade)
		t->cfg.take(t->cfg.ctx, &t->handover, &t->console);
	else
		machine_reappear(m);
	if (t->rest.is_paused)
		return 0;
	/* As in a process that was not scheduled for a moment. */
	t->downtime_ns = (uint64_t)(migrate_now_ns() - t->still_since_ns);
	machine_skip(m, (int64_t)t->downtime_ns);
	int r = machine_resume(m, err);

	if (r == 0)
		r = loop_post(machine_loop(m), give_resets, t);
	if (r < 0 && machine_state(m) == MACHINE_RUNNING) {
		log_warn("migrate", "no memory to tell the guest of connections that ended");
		r = 0;
	}
	return r;
}

/* The networks' processes have to know before the old process ends, as they would end with it. */
static void await_cards(struct migrate_target *t)
{
	for (unsigned i = 0; i < t->handover.ncards; i++) {
		struct pollfd p = { .fd = t->handover.cards[i], .events = 0 };

		if (poll(&p, 1, CARDS_MS) <= 0)
			log_warn("migrate", "the network of card %u does not answer", i);
	}
	handover_close(&t->handover);
}

static int take_claim(struct migrate_target *t, struct error *err)
{
	if (!t->is_upgrade)
		return claim_take(t->offer.id, err);
	return handover_claim(t->ends.token) == 0
		       ? 0
		       : error_set(err, -ECANCELED, "the old process has taken the machine back");
}

/* Not before it is stable: with the word the source forgets the machine. */
static int tell_running(struct migrate_target *t, struct error *err)
{
	int r = 0;

	if (t->is_upgrade)
		await_cards(t);
	else
		r = claim_sync(err);
	if (r == 0 && !t->is_upgrade)
		r = migrate_arrived(t->name, err);
	if (r == 0)
		r = tell(t, MIGRATE_R_RUNNING, &t->downtime_ns, sizeof(t->downtime_ns), err);
	/* That a link is lost comes by migrate_lazy_next(), once. */
	return t->is_lazy ? 0 : r;
}

static int tell_accepted(struct migrate_target *t, struct error *err)
{
	const struct migrate_lazy_config lc = { .ram = machine_ram(t->cfg.machine),
						.link = &t->links[0],
						.engine = machine_engine(t->cfg.machine),
						.door_fd = t->door_fd,
						.faults_fd = t->faults_fd };
	struct error why;
	int r = t->is_upgrade ? -EOPNOTSUPP : migrate_lazy_create(&t->lazy, &lc, &why);

	t->door_fd = t->faults_fd = -1; /* its own */
	if (r < 0 && !t->is_upgrade)
		log_info("migrate", "all of memory has to come before the machine: %s", why.text);
	t->offer.can_post_copy = r == 0;
	json_t *json = migrate_accept_json(&t->offer);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

	json_decref(json);
	return text ? migrate_link_tell(&t->links[0], MIGRATE_R_ACCEPT, text, strlen(text), err)
		    : error_set(err, -ENOMEM, "no memory to accept a machine");
}

static int act(struct migrate_target *t, uint32_t action, struct error *err)
{
	pthread_mutex_t *lock = machine_lock(t->cfg.machine);
	int r = 0;

	switch (action) {
	case MIGRATE_ACCEPT:
		return tell_accepted(t, err);
	case MIGRATE_TELL_LOADED:
		return tell(t, MIGRATE_R_LOADED, NULL, 0, err);
	case MIGRATE_TELL_FETCHED:
		r = tell(t, MIGRATE_R_FETCHED, NULL, 0, err);
		migrate_lazy_end(t->lazy);
		t->is_lazy = false;
		return r;
	case MIGRATE_STAND:
	case MIGRATE_GO_ON:
		pthread_mutex_lock(lock);
		r = action == MIGRATE_STAND ? stand(t, err) : go_on(t, err);
		pthread_mutex_unlock(lock);
		return r;
	case MIGRATE_TAKE:
		pthread_mutex_lock(lock);
		r = take_disks(t, err);
		pthread_mutex_unlock(lock);
		return r;
	case MIGRATE_CLAIM:
		return take_claim(t, err);
	case MIGRATE_RESUME:
		pthread_mutex_lock(lock);
		t->has_arrived = true;
		r = resume(t, err);
		pthread_mutex_unlock(lock);
		return r;
	case MIGRATE_TELL_RUNNING:
		return tell_running(t, err);
	case MIGRATE_ABORT_CLAIM:
		abort_claim(t);
		return 0;
	case MIGRATE_TELL_REFUSED:
		tell_refused(t, &t->why);
		return 0;
	default: /* BUILD is done, CLEAN is the process's end */
		return 0;
	}
}

/* ---- records ---- */

static int put_pages(struct link_thread *l, const struct migrate_header *h, struct error *err)
{
	struct migrate_target *t = l->t;
	uint64_t n;

	return migrate_unpack(&l->unpacker, machine_ram(t->cfg.machine), l->index, t->nlinks,
			      t->links[l->index].payload, h->len, &n, err);
}

static int end_round(struct link_thread *l, const struct migrate_header *h, uint32_t *round,
		     struct error *err)
{
	struct migrate_target *t = l->t;

	if (h->len != sizeof(*round))
		return error_set(err, -EPROTO, "a round without a number");
	memcpy(round, t->links[l->index].payload, sizeof(*round));
	pthread_mutex_lock(&t->lock);
	bool is_next = *round == l->rounds++;

	pthread_cond_broadcast(&t->cond);
	pthread_mutex_unlock(&t->lock);
	return is_next ? 0 : error_set(err, -EPROTO, "a round is missing");
}

static void *link_main(void *arg)
{
	struct link_thread *l = arg;
	struct migrate_target *t = l->t;
	struct migrate_header h;
	struct error err;
	uint32_t round;
	int r = 0;

	while (r == 0) {
		r = migrate_link_receive(&t->links[l->index], &h, -1, &err);
		if (r == 0)
			r = h.type == MIGRATE_R_RAM ? put_pages(l, &h, &err)
			    : h.type == MIGRATE_R_ROUND
				    ? end_round(l, &h, &round, &err)
				    : error_set(&err, -EPROTO, "a record that belongs to link 0");
	}
	pthread_mutex_lock(&t->lock);
	if (!t->has_failed)
		t->failure = err;
	t->has_failed = true;
	pthread_cond_broadcast(&t->cond);
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* Until all links have ended @round. */
static int await_links(struct migrate_target *t, uint32_t round, struct error *err)
{
	int r = 0;

	pthread_mutex_lock(&t->lock);
	for (unsigned i = 1; i < t->nlinks; i++)
		while (t->threads[i].rounds <= round && !t->has_failed && !t->is_ended)
			pthread_cond_wait(&t->cond, &t->lock);
	for (unsigned i = 1; i < t->nlinks; i++) {
		if (t->threads[i].rounds > round)
			continue;
		*err = t->failure;
		r = t->is_ended ? error_set(err, -ECANCELED, "canceled") : -EPIPE;
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

static int check_sums(struct migrate_target *t, const struct migrate_header *h, struct error *err)
{
	if (t->lazy && migrate_lazy_is_noted(t->lazy))
		return migrate_lazy_sums(t->lazy, t->links[0].payload, h->len, err);
	uint64_t bad, nbad;
	int64_t n = migrate_check_sums(machine_ram(t->cfg.machine), t->links[0].payload, h->len,
				       &bad, &nbad, err);

	if (n < 0 || !nbad)
		return n < 0 ? (int)n : 0;
	return error_set(
		err, -EBADMSG,
		"memory is not the source's: %llu pages of %lld differ, the first is page %llu",
		(unsigned long long)nbad, (long long)n, (unsigned long long)bad);
}

static int end_disk_round(struct migrate_target *t, const struct migrate_header *h, struct error *err)
{
	uint32_t round;

	if (h->len != sizeof(round))
		return error_set(err, -EPROTO, "a round without a number");
	memcpy(&round, t->links[0].payload, sizeof(round));
	if (round != t->disk_round++)
		return error_set(err, -EPROTO, "a round is missing");
	int r = migrate_files_flush(&t->files, err);

	return r < 0 ? r
		     : migrate_link_tell(&t->links[0], MIGRATE_R_DISK_DONE, &round, sizeof(round), err);
}

static int load(struct migrate_target *t, const struct migrate_header *h, struct error *err)
{
	struct machine *m = t->cfg.machine;
	struct snapshot_state s;
	int r = migrate_get_rest(&t->rest, t->links[0].payload, h->len, err);

	t->still_since_ns = migrate_now_ns() - (int64_t)t->rest.paused_ns;
	if (r == 0 && (!t->last.total || t->last.data.len != t->last.total))
		r = error_set(err, -EPROTO, "the machine's state is not complete");
	/* With the commit the source forgets them. */
	if (r == 0)
		r = migrate_files_flush(&t->files, err);
	if (r == 0 && t->is_upgrade)
		r = handover_receive(t->ends.hatch, &t->handover, err);
	if (r == 0)
		r = snapshot_state_parse(&s, t->last.data.data, t->last.data.len, err);
	if (r < 0)
		return r;
	/* Devices look at memory already. */
	t->is_lazy = t->lazy && migrate_lazy_is_noted(t->lazy);
	if (t->is_lazy) {
		r = migrate_lazy_begin(t->lazy, err);
	} else {
		migrate_lazy_destroy(t->lazy);
		t->lazy = NULL;
	}
	if (r < 0) {
		snapshot_state_free(&s);
		return r;
	}
	pthread_mutex_lock(machine_lock(m));
	if (t->is_upgrade)
		r = handover_adopt_ram(m, t->ends.ram, &t->ram, err);
	if (r == 0)
		r = machine_load_state(m, &s, err);
	pthread_mutex_unlock(machine_lock(m));
	snapshot_state_free(&s);
	return r;
}

static int keep(struct bytes *b, const uint8_t *data, size_t len, struct error *err)
{
	b->len = 0;
	bytes_put(b, data, len);
	return b->is_failed ? error_set(err, -ENOMEM, "no memory for what comes with the machine") : 0;
}

/* One record of link 0 while memory and state come: 0, 1: that was all; -errno. */
static int take_record(struct migrate_target *t, const struct migrate_header *h, struct error *err)
{
	struct migrate_link *l = &t->links[0];
	uint32_t round;
	int r;

	switch (h->type) {
	case MIGRATE_R_RAM:
		return put_pages(&t->threads[0], h, err);
	case MIGRATE_R_ROUND:
		r = end_round(&t->threads[0], h, &round, err);
		if (r == 0)
			r = await_links(t, round, err);
		return r < 0 ? r : migrate_link_tell(l, MIGRATE_R_ROUND_DONE, &round, sizeof(round), err);
	case MIGRATE_R_SUMS:
		return check_sums(t, h, err);
	case MIGRATE_R_DISK:
		return migrate_files_take(&t->files, l->payload, h->len, err);
	case MIGRATE_R_DISK_ROUND:
		return end_disk_round(t, h, err);
	case MIGRATE_R_DISK_SUMS:
		return migrate_files_check(&t->files, l->payload, h->len, err);
	case MIGRATE_R_RESETS:
		return keep(&t->resets, l->payload, MIN(h->len, (uint32_t)NET_FRAME_MAX), err);
	case MIGRATE_R_CONSOLE:
		return keep(&t->console, l->payload, h->len, err);
	case MIGRATE_R_STATE:
		r = migrate_state_add(&t->last, l->payload, h->len, err);
		return r < 0 ? r : 0;
	case MIGRATE_R_MISSING:
		return t->lazy ? migrate_lazy_note(t->lazy, l->payload, h->len, err)
			       : error_set(err, -EPROTO,
					   "the source keeps memory back, which cannot be here");
	case MIGRATE_R_REST:
		r = load(t, h, err);
		return r < 0 ? r : 1;
	default:
		return error_set(err, -EPROTO, "the source says something out of turn");
	}
}

static enum migrate_event event_of(int r)
{
	return r == -ECANCELED					    ? MIGRATE_EV_CANCEL
	       : r == -EPIPE || r == -ETIMEDOUT || r == -ECONNRESET ? MIGRATE_EV_LOST
								    : MIGRATE_EV_TROUBLE;
}

/* What comes next, as an event. */
static enum migrate_event await_event(struct migrate_target *t, struct error *err)
{
	struct migrate_header h;
	int r = 0;

	if (t->is_lazy) {
		enum migrate_event ev =
			migrate_lazy_next(t->lazy, t->state == TARGET_LOADED ? COMMIT_MS : -1, err);

		if (ev == MIGRATE_EV_COMMIT)
			t->still_since_ns =
				MIN(t->still_since_ns, migrate_lazy_still_since_ns(t->lazy));
		return ev;
	}
	while (t->state == TARGET_RECEIVING && r == 0) {
		r = migrate_link_receive(&t->links[0], &h, COMMIT_MS, err);
		if (r == 0)
			r = take_record(t, &h, err);
	}
	if (r != 0)
		return r > 0 ? MIGRATE_EV_LOADED : event_of(r);
	r = migrate_link_receive(&t->links[0], &h, COMMIT_MS, err);
	if (r == 0 && h.type != MIGRATE_R_COMMIT)
		r = error_set(err, -EPIPE, "the source says something out of turn");
	if (r == 0)
		t->still_since_ns =
			MIN(t->still_since_ns,
			    migrate_now_ns() - (int64_t)migrate_get_commit(t->links[0].payload, h.len));
	return r == 0 ? MIGRATE_EV_COMMIT : event_of(r);
}

/* ---- the thread of link 0 ---- */

static void go(struct migrate_target *t)
{
	enum migrate_event event = MIGRATE_EV_BUILT;
	struct error err = { "" };

	while (!migrate_target_is_end(t->state)) {
		uint32_t actions = 0;

		t->why = err;
		/* What a state does not know ends it as a lost link does; after the claim nothing does. */
		if (!migrate_target_next(&t->state, event, &actions) &&
		    !migrate_target_next(&t->state, MIGRATE_EV_LOST, &actions))
			return;
		event = MIGRATE_NEVENTS;
		for (; actions; actions &= actions - 1) {
			uint32_t action = actions & -actions;
			int r = act(t, action, &err);

			if (action == MIGRATE_CLAIM)
				event = r == 0		  ? (t->is_lazy ? MIGRATE_EV_CLAIMED_LACKING
									: MIGRATE_EV_CLAIMED)
					: r == -ECANCELED ? MIGRATE_EV_DENIED
							  : MIGRATE_EV_TROUBLE;
			else if (r < 0)
				event = event_of(r);
			if (r < 0)
				break;
		}
		if (t->state == TARGET_RUNS && event != MIGRATE_NEVENTS)
			t->why = err; /* the word did not get out, or it cannot run */
		if (event == MIGRATE_NEVENTS && !migrate_target_is_end(t->state))
			event = await_event(t, &err);
	}
}

/* On the loop. */
static void on_done(void *arg)
{
	struct migrate_target *t = arg;

	t->cfg.done(t->cfg.ctx, t->has_arrived ? NULL : &t->why);
}

/* It is like any other machine only when its memory is its own. */
static void settle_memory(struct migrate_target *t)
{
	struct error err;

	if (handover_unshare_ram(t->cfg.machine, t->ends.ram, &t->is_ended, &t->ram, &err) == 0)
		log_info("migrate", "memory is this process's own; the machine was frozen for that for %.1f ms, %.1f at a time at most",
			 (double)t->ram.stood_ns / 1e6, (double)t->ram.longest_ns / 1e6);
	else if (!t->is_ended)
		log_error("migrate", "%s", err.text);
	handover_ends_close(&t->ends);
}

static void *target_main(void *arg)
{
	struct migrate_target *t = arg;
	struct migrate_header h;
	struct error err;

	go(t);
	if (t->has_arrived && t->why.text[0])
		log_warn("migrate", "%s", t->why.text);
	if (t->has_arrived && t->is_upgrade)
		settle_memory(t);
	if (loop_post(machine_loop(t->cfg.machine), on_done, t) < 0)
		log_error("migrate", "no memory to say that the machine is here");
	if (!t->has_arrived || t->is_upgrade)
		return NULL;
	/* The source's last word is a PING: it knows, so nobody will ask. */
	uint32_t before = t->links[0].seq_in;

	if (migrate_link_receive(&t->links[0], &h, LAST_WORD_MS, &err) < 0 && t->links[0].seq_in != before)
		claim_forget(t->offer.id);
	/* Whoever carries the links has nothing more to do. */
	for (unsigned i = 0; i < t->nlinks; i++)
		shutdown(t->links[i].fd, SHUT_RDWR);
	return NULL;
}

int migrate_target_begin(struct migrate_target *t, const struct migrate_target_config *cfg,
			 struct error *err)
{
	t->cfg = *cfg;
	machine_forbid_resume(cfg->machine, not_here_yet);
	int r = migrate_files_open(&t->files, &t->offer, cfg->config, machine_loop(cfg->machine), err);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < t->nlinks; i++)
		t->threads[i] =
			(struct link_thread){ .t = t, .index = i, .unpacker.touched = t->touched };
	for (unsigned i = t->nlinks; i-- > 0;) { /* link 0 last: it goes on with what the others do */
		struct link_thread *l = &t->threads[i];
		int e = pthread_create(&l->thread, NULL, i ? link_main : target_main, i ? (void *)l : t);

		if (e)
			return error_set(err, -e, "cannot start a thread: %s", strerror(e));
		l->has_thread = true;
	}
	return 0;
}

bool migrate_target_forgo(struct migrate_target *t)
{
	struct error err;

	if (!t || !t->has_arrived || !t->is_lazy || !migrate_lazy_is_lacking(t->lazy))
		return false;
	if (migrate_lazy_tell(t->lazy, MIGRATE_R_FETCHED, NULL, 0, &err) < 0)
		log_info("migrate", "the source is not told that the machine has ended: %s", err.text);
	return true;
}

bool migrate_target_has_arrived(const struct migrate_target *t)
{
	return t && t->has_arrived;
}

bool migrate_target_destroy(struct migrate_target *t)
{
	if (!t)
		return false;
	pthread_mutex_lock(&t->lock);
	t->is_ended = true;
	pthread_cond_broadcast(&t->cond);
	pthread_mutex_unlock(&t->lock);
	if (t->stop_fd >= 0 && eventfd_write(t->stop_fd, 1) < 0)
		log_debug("migrate", "cannot stop: %s", strerror(errno));
	for (unsigned i = 0; i < MIGRATE_STREAMS_MAX; i++) {
		if (t->threads[i].has_thread)
			pthread_join(t->threads[i].thread, NULL);
		migrate_unpacker_free(&t->threads[i].unpacker);
	}
	bool has_arrived = t->has_arrived;

	if (t->cfg.machine) {
		pthread_mutex_lock(machine_lock(t->cfg.machine));
		migrate_files_close(&t->files);
		pthread_mutex_unlock(machine_lock(t->cfg.machine));
	}
	migrate_lazy_destroy(t->lazy);
	close_fd(t->door_fd);
	close_fd(t->faults_fd);
	handover_ends_close(&t->ends);
	handover_close(&t->handover);
	bytes_free(&t->console);
	for (unsigned i = 0; i < t->nlinks; i++)
		migrate_link_close(&t->links[i]);
	bytes_free(&t->last.data);
	bytes_free(&t->resets);
	snapshot_state_free(&t->first);
	migrate_offer_free(&t->offer);
	if (t->stop_fd >= 0)
		close(t->stop_fd);
	pthread_cond_destroy(&t->cond);
	pthread_mutex_destroy(&t->lock);
	free((void *)(uintptr_t)t->touched);
	free(t->name);
	free(t);
	return has_arrived;
}
