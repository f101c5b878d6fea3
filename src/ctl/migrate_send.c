/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of memory.  The pages to be sent are fixed when a round begins, after their bits of the dirty log were collected and cleared; each is copied and
 * then looked at in the copy, which nobody writes.
 *
 * How: contents go raw or through zstd, whichever takes less time altogether.  What a page costs zstd and what zstd leaves of it is measured whenever it is used,
 * what a byte costs the link with every record; every so often a record goes the other way, to see whether things have changed.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/bytes.h"
#include "ctl/migrate_int.h"

#define SEND_BYTES    (256 * KIB) /* so much together */
#define TRIAL	      48	  /* records between trials of the other codec */
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
		if (!s->pages)
			return error_set(err, -ENOMEM, "no memory to send pages");
	}
	return 0;
}

void migrate_senders_free(struct migrator *g)
{
	for (unsigned i = 0; i < MIGRATE_STREAMS_MAX; i++) {
		migrate_packer_free(&g->senders[i].packer);
		free(g->senders[i].pages);
		g->senders[i].pages = NULL;
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
}

/* Does packing pay?  What is not known yet is tried. */
static enum migrate_codec choose(struct migrate_sender *s, unsigned n)
{
	double raw = GUEST_PAGE_SIZE * s->byte_ns;
	bool packs = !s->pack_ns || s->pack_ns + s->pack_ratio * raw < raw;

	if (!s->byte_ns || n < 4)
		packs = false;
	else if (++s->since_trial > TRIAL && n >= 64 && !packs) {
		s->since_trial = 0;
		packs = true;
	}
	return packs ? MIGRATE_ZSTD : MIGRATE_RAW;
}

static int put_pages(struct migrate_sender *s, const uint64_t *pages, unsigned n, struct error *err)
{
	struct migrate_link *l = &s->g->links[s->index];
	enum migrate_codec codec = choose(s, n);
	size_t before = l->out.len;
	int64_t from = migrate_now_ns();
	int r = migrate_pack(&s->packer, &l->out, &l->seq_out, codec, pages, n, s->pages);

	if (r < 0)
		return error_set(err, r, "no memory to send pages");
	if (codec == MIGRATE_ZSTD) {
		learn(&s->pack_ns, (double)(migrate_now_ns() - from) / n);
		learn(&s->pack_ratio, (double)(l->out.len - before) / (double)(n * GUEST_PAGE_SIZE));
	}
	s->g->f.pages_sent += n;
	s->g->f.pages_zstd += r == MIGRATE_ZSTD ? n : 0;
	return l->out.len >= SEND_BYTES ? flush(s, err) : 0;
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
	if (nfull)
		r = put_pages(s, full, nfull, err);
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
