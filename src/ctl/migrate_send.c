/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of memory.  The pages to be sent are fixed when a round begins, after their bits of the dirty log were collected and cleared; each is copied and
 * then looked at in the copy, which nobody writes.
 *
 * How: contents go raw, through zstd, or as what they differ in from what was sent of them before (migrate_sent.h), whichever takes less time
 * altogether.  What a page costs in each and what is left of it is measured whenever it is used, what a byte costs the link with every record; every so
 * often a record goes another way, to see whether things have changed.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/bytes.h"
#include "ctl/migrate_int.h"
#include "ctl/migrate_sent.h"

#define SEND_BYTES    (256 * KIB) /* so much together */
#define TRIAL	      48	  /* records between trials of another codec */
#define SLOW_PAGE_NS  4000 /* a page takes the link so long: copies are kept of what was sent */
#define SMOOTH	      0.2
#define LIMIT_STEP_NS 20000000LL

static void learn(double *mean, double value)
{
	*mean = *mean ? *mean + SMOOTH * (value - *mean) : value;
}

uint64_t migrate_count_pages(const struct migrator *g)
{
	uint64_t n = 0, words = (g->offer.mapping_bytes >> GUEST_PAGE_SHIFT) / 64 + 1;

	for (uint64_t i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(g->todo[i]);
	return n;
}

int migrate_senders_init(struct migrator *g, struct error *err)
{
	for (unsigned i = 0; i < g->nlinks; i++) {
		struct migrate_sender *s = &g->senders[i];

		*s = (struct migrate_sender){ .g = g, .index = i, .packer.level = 1 };
		s->pages = aligned_alloc(64, MIGRATE_PAGES_MAX * GUEST_PAGE_SIZE);
		s->deltas = aligned_alloc(64, MIGRATE_PAGES_MAX * GUEST_PAGE_SIZE);
		if (!s->pages || !s->deltas)
			return error_set(err, -ENOMEM, "no memory to send pages");
		uint64_t bytes = MIN(g->offer.mapping_bytes, (uint64_t)MIGRATE_SENT_BYTES);
		int r = migrate_sent_create(&s->sent, bytes / g->nlinks, err);

		if (r < 0)
			return r;
	}
	return 0;
}

void migrate_senders_free(struct migrator *g)
{
	for (unsigned i = 0; i < MIGRATE_STREAMS_MAX; i++) {
		migrate_packer_free(&g->senders[i].packer);
		free(g->senders[i].pages);
		free(g->senders[i].deltas);
		migrate_sent_destroy(g->senders[i].sent);
		g->senders[i].pages = g->senders[i].deltas = NULL;
		g->senders[i].sent = NULL;
	}
}

/* ---- the link ---- */

/* Not more than is allowed since the limit began to count.  Short sleeps: somebody may want to stop. */
static int obey_limit(struct migrator *g, uint64_t bytes, struct error *err)
{
	if (!g->bytes_per_s || g->is_paused)
		return 0;
	uint64_t sent = __atomic_add_fetch(&g->throttled_bytes, bytes, __ATOMIC_RELAXED);
	int64_t due = g->limit_from_ns + (int64_t)((double)sent * 1e9 / (double)g->bytes_per_s);

	for (;;) {
		int64_t left = due - migrate_now_ns();

		if (left <= 0)
			return 0;
		if (g->is_stopping)
			return error_set(err, -ECANCELED, "canceled");
		nanosleep(&(struct timespec){ .tv_nsec = MIN(left, LIMIT_STEP_NS) }, NULL);
	}
}

/* The target has closed the link: it may have said why. */
static int last_word(struct migrate_link *l, struct error *err)
{
	struct migrate_header h;
	struct error why;

	while (migrate_link_receive(l, &h, 0, &why) == 0) {
		if (h.type != MIGRATE_R_REFUSE)
			continue;
		migrate_link_text(l, &h, err);
		return -ECONNREFUSED;
	}
	return -EPIPE;
}

static int flush(struct migrate_sender *s, struct error *err)
{
	struct migrator *g = s->g;
	struct migrate_link *l = &g->links[s->index];
	size_t n = l->out.len;
	int64_t before = migrate_now_ns();

	if (g->is_stopping)
		return error_set(err, -ECANCELED, "canceled");
	if (!n)
		return 0;
	int r = migrate_link_send(l, &l->out, err);

	if (n >= 16 * KIB)
		learn(&s->byte_ns, (double)(migrate_now_ns() - before) / (double)n);
	g->f.bytes_sent += n;
	if (r == -EPIPE && s->index == 0)
		return last_word(l, err);
	return r < 0 ? r : obey_limit(g, n, err);
}

int migrate_flush_link0(struct migrator *g, struct error *err)
{
	return flush(&g->senders[0], err);
}

/* ---- pages ---- */

static void put_zero_run(struct migrate_sender *s)
{
	struct migrate_link *l = &s->g->links[s->index];

	if (s->nzero)
		migrate_pack_zero(&l->out, &l->seq_out, s->zero_first, s->nzero);
	s->g->f.pages_zero += s->nzero;
	s->nzero = 0;
}

static void add_zero(struct migrate_sender *s, uint64_t page)
{
	/* With several links a run stays within its piece (migrate_page_link()). */
	bool joins = s->nzero && page == s->zero_first + s->nzero && s->nzero < MIGRATE_ZERO_MAX &&
		     (s->g->nlinks == 1 || page % MIGRATE_PAGES_MAX);

	if (!joins) {
		put_zero_run(s);
		s->zero_first = page;
	}
	s->nzero++;
	migrate_sent_drop(s->sent, page);
}

/* ns: what the link or the user allows. */
static double raw_cost(const struct migrate_sender *s)
{
	const struct migrator *g = s->g;
	double limit_ns = g->bytes_per_s && !g->is_paused ? 1e9 / (double)g->bytes_per_s : 0;

	return GUEST_PAGE_SIZE * MAX(s->byte_ns, limit_ns);
}

/* What a page takes altogether; what is not known yet is tried. */
static double page_cost(const struct migrate_sender *s, const struct migrate_cost *c)
{
	return c->ns ? c->ns + c->ratio * raw_cost(s) : 0;
}

/* Does it pay for @n pages, when a page takes @other_ns without it? */
static bool pays(struct migrate_sender *s, struct migrate_cost *c, unsigned n, double other_ns)
{
	if (raw_cost(s) == 0 || n < 4)
		return false;
	if (page_cost(s, c) < other_ns)
		return true;
	if (++c->since_trial <= TRIAL || n < 64)
		return false;
	c->since_trial = 0;
	return true;
}

static void learn_codec(struct migrate_cost *c, int64_t from_ns, size_t bytes, unsigned n)
{
	learn(&c->ns, (double)(migrate_now_ns() - from_ns) / n);
	learn(&c->ratio, (double)bytes / (double)(n * GUEST_PAGE_SIZE));
}

/* @n pages with @data of them, raw or through zstd. */
static int put_whole(struct migrate_sender *s, const uint64_t *pages, unsigned n,
		     const uint8_t *data, struct error *err)
{
	struct migrate_link *l = &s->g->links[s->index];
	enum migrate_codec codec = pays(s, &s->pack, n, raw_cost(s)) ? MIGRATE_ZSTD : MIGRATE_RAW;
	size_t before = l->out.len;
	int64_t from = migrate_now_ns();
	int r = migrate_pack(&s->packer, &l->out, &l->seq_out, codec, pages, n, data);

	if (r < 0)
		return error_set(err, r, "no memory to send pages");
	if (codec == MIGRATE_ZSTD)
		learn_codec(&s->pack, from, l->out.len - before, n);
	s->g->f.pages_sent += n;
	s->g->f.pages_zstd += r == MIGRATE_ZSTD ? n : 0;
	return 0;
}

/* @n pages of which s->deltas has what they differ in. */
static int put_deltas(struct migrate_sender *s, const uint64_t *pages, unsigned n, int64_t from,
		      struct error *err)
{
	struct migrate_link *l = &s->g->links[s->index];
	size_t before = l->out.len;
	int r = migrate_pack(&s->packer, &l->out, &l->seq_out, MIGRATE_DELTA, pages, n, s->deltas);

	if (r < 0 && r != -EMSGSIZE)
		return error_set(err, r, "no memory to send pages");
	for (unsigned i = 0; i < n; i++)
		migrate_sent_apply(s->sent, pages[i], s->deltas + i * GUEST_PAGE_SIZE);
	learn_codec(&s->delta, from, r < 0 ? n * GUEST_PAGE_SIZE : l->out.len - before, n);
	if (r >= 0) {
		s->g->f.pages_sent += n;
		s->g->f.pages_delta += n;
		return 0;
	}
	/* They have nothing in common with what they were. */
	for (unsigned i = 0; i < n; i++)
		memcpy(s->deltas + i * GUEST_PAGE_SIZE,
		       migrate_sent_find(s->sent, pages[i], s->g->round), GUEST_PAGE_SIZE);
	return put_whole(s, pages, n, s->deltas, err);
}

/*
 * @n pages, whose copies are in s->pages.
 * A copy is kept of what is sent a second time and later, over a link on which it could pay.
 */
static int put_pages(struct migrate_sender *s, uint64_t *pages, unsigned n, struct error *err)
{
	bool keeps = s->g->round > 0 && raw_cost(s) > SLOW_PAGE_NS;
	const uint8_t *old[MIGRATE_PAGES_MAX] = { NULL };
	uint64_t changed[MIGRATE_PAGES_MAX];
	unsigned nknown = 0, nchanged = 0, nwhole = 0;
	int64_t from = migrate_now_ns();
	int r = 0;

	for (unsigned i = 0; i < n; i++) {
		old[i] = migrate_sent_find(s->sent, pages[i], s->g->round);
		nknown += old[i] != NULL;
	}
	double whole_ns = s->pack.ns ? MIN(page_cost(s, &s->pack), raw_cost(s)) : raw_cost(s);
	bool has_deltas = nknown && pays(s, &s->delta, nknown, whole_ns);

	for (unsigned i = 0; i < n; i++) {
		uint8_t *copy = s->pages + i * GUEST_PAGE_SIZE;

		if (has_deltas && old[i]) {
			migrate_page_xor(s->deltas + nchanged * GUEST_PAGE_SIZE, copy, old[i]);
			changed[nchanged++] = pages[i];
			continue;
		}
		if (keeps)
			migrate_sent_put(s->sent, pages[i], copy, s->g->round);
		else
			migrate_sent_drop(s->sent, pages[i]);
		if (nwhole < i)
			memcpy(s->pages + nwhole * GUEST_PAGE_SIZE, copy, GUEST_PAGE_SIZE);
		pages[nwhole++] = pages[i];
	}
	if (nchanged)
		r = put_deltas(s, changed, nchanged, from, err);
	if (r == 0 && nwhole)
		r = put_whole(s, pages, nwhole, s->pages, err);
	if (r < 0)
		return r;
	return s->g->links[s->index].out.len >= SEND_BYTES ? flush(s, err) : 0;
}

/* The pages to be sent of [@first, @first + MIGRATE_PAGES_MAX). */
static int send_piece(struct migrate_sender *s, uint64_t first, struct error *err)
{
	struct migrator *g = s->g;
	const uint8_t *base = machine_ram(g->cfg.machine)->base;
	uint64_t pages[MIGRATE_PAGES_MAX];
	unsigned n = 0, nlooked = 0;

	for (unsigned w = 0; w < MIGRATE_PAGES_MAX / 64; w++) {
		uint64_t at = first / 64 + w, bits = 0;

		if (first + 64ULL * w < g->offer.mapping_bytes >> GUEST_PAGE_SHIFT) {
			bits = g->todo[at];
			g->todo[at] = 0;
		}
		for (; bits; bits &= bits - 1, nlooked++) {
			uint64_t page = at * 64 + (uint64_t)__builtin_ctzll(bits);
			uint8_t *copy = s->pages + n * GUEST_PAGE_SIZE;

			memcpy(copy, base + (page << GUEST_PAGE_SHIFT), GUEST_PAGE_SIZE);
			if (bytes_are_zero(copy, GUEST_PAGE_SIZE))
				add_zero(s, page);
			else
				pages[n++] = page;
		}
	}
	g->f.pages_left -= nlooked;
	return n ? put_pages(s, pages, n, err) : 0;
}

int migrate_send_pages(struct migrator *g, const uint64_t *pages, unsigned n, struct error *err)
{
	struct migrate_sender *s = &g->senders[0];
	const uint8_t *base = machine_ram(g->cfg.machine)->base;
	uint64_t full[MIGRATE_PAGES_MAX];
	unsigned nfull = 0;
	int r = 0;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *copy = s->pages + nfull * GUEST_PAGE_SIZE;

		memcpy(copy, base + (pages[i] << GUEST_PAGE_SHIFT), GUEST_PAGE_SIZE);
		if (bytes_are_zero(copy, GUEST_PAGE_SIZE))
			add_zero(s, pages[i]);
		else
			full[nfull++] = pages[i];
	}
	if (nfull) /* whole: the target has not got what was sent before any more */
		r = put_whole(s, full, nfull, s->pages, err);
	put_zero_run(s);
	return r < 0 ? r : flush(s, err);
}

/* The machine has to be there now, and what is left can go after it. */
static bool is_late(const struct migrator *g)
{
	return g->can_be_lazy && !g->is_paused && g->deadline_ns && g->priority == MIGRATE_FINISH &&
	       migrate_now_ns() - g->f.begin_ns > (int64_t)g->deadline_ns;
}

static int send_all(struct migrate_sender *s, struct error *err)
{
	struct migrator *g = s->g;
	struct migrate_link *l = &g->links[s->index];
	uint64_t npages = g->offer.mapping_bytes >> GUEST_PAGE_SHIFT;
	uint64_t step = (uint64_t)g->nlinks * MIGRATE_PAGES_MAX;
	int r = 0;

	for (uint64_t p = (uint64_t)s->index * MIGRATE_PAGES_MAX;
	     r == 0 && p < npages && !is_late(g); p += step)
		r = send_piece(s, p, err);
	if (r < 0)
		return r;
	put_zero_run(s);
	migrate_record_put(&l->out, MIGRATE_R_ROUND, &l->seq_out, &g->round, sizeof(g->round));
	return flush(s, err);
}

static void *sender_thread(void *arg)
{
	struct migrate_sender *s = arg;

	s->result = send_all(s, &s->err);
	return NULL;
}

/* ---- a round ---- */

int migrate_await_round(struct migrator *g, enum migrate_record type, uint32_t want, int limit_ms,
			struct error *err)
{
	struct migrate_link *l = &g->links[0];
	struct migrate_header h;
	uint32_t round;
	int r = migrate_link_receive(l, &h, limit_ms, err);

	if (r < 0)
		return r;
	if (h.type == MIGRATE_R_REFUSE) {
		migrate_link_text(l, &h, err);
		return -ECONNREFUSED;
	}
	if (h.type != type || h.len != sizeof(round))
		return error_set(err, -EPROTO, "the target answers out of turn");
	memcpy(&round, l->payload, sizeof(round));
	return round == want ? 0 : error_set(err, -EPROTO, "the target is at another round");
}

/* What a page, and a round, cost. */
static void learn_from_round(struct migrator *g, uint64_t npages, int64_t ns)
{
	if (npages < 64)
		learn(&g->trip_ns, (double)ns);
	else
		learn(&g->page_ns, MAX((double)ns - g->trip_ns, 1.0) / (double)npages);
}

int migrate_send_round(struct migrator *g, bool waits, struct error *err)
{
	bool started[MIGRATE_STREAMS_MAX] = { false };
	uint64_t npages = migrate_count_pages(g), zero_before = g->f.pages_zero;
	int64_t from = migrate_now_ns();
	int r = 0;

	g->f.pages_left = npages;
	for (unsigned i = 1; i < g->nlinks; i++) {
		int e = pthread_create(&g->senders[i].thread, NULL, sender_thread, &g->senders[i]);

		started[i] = e == 0;
		if (e && r == 0)
			r = error_set(err, -e, "cannot start a thread: %s", strerror(e));
	}
	if (r == 0)
		r = send_all(&g->senders[0], err);
	for (unsigned i = 1; i < g->nlinks; i++) {
		if (!started[i])
			continue;
		if (r < 0) /* it may be waiting for a peer that waits for us */
			shutdown(g->links[i].fd, SHUT_RDWR);
		pthread_join(g->senders[i].thread, NULL);
		if (r == 0 && g->senders[i].result < 0) {
			r = g->senders[i].result;
			*err = g->senders[i].err;
		}
	}
	if (r == 0 && waits)
		r = migrate_await_round(g, MIGRATE_R_ROUND_DONE, g->round, MIGRATE_SILENCE_MS, err);
	if (r == 0 && waits)
		learn_from_round(g, npages - migrate_count_pages(g) - (g->f.pages_zero - zero_before),
				 migrate_now_ns() - from);
	g->round++;
	g->f.rounds++;
	return r;
}
