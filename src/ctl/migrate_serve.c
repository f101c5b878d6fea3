/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source after the machine has gone without some of its memory (post-copy): pages are sent until the target has all.
 *
 * One that is waited for goes at once, and what lies behind it next: so a guest that walks through memory waits once.  Not more is on its way
 * than the link needs to be busy, so that a page that is waited for does not queue up behind others.
 *
 * Invariant: a page's bit in todo is clear only if the page was sent over the present link; after a loss todo is what the target says.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "ctl/migrate_int.h"

#define PIECE	  32	 /* pages at a time */
#define AHEAD_MIN 256ULL /* pages */
#define AHEAD_MAX 2048ULL

static uint64_t npages_of(const struct migrator *g)
{
	return g->offer.mapping_bytes >> GUEST_PAGE_SHIFT;
}

static bool take_todo(struct migrator *g, uint64_t page)
{
	uint64_t bit = 1ULL << page % 64;
	bool is_todo = g->todo[page / 64] & bit;

	g->todo[page / 64] &= ~bit;
	return is_todo;
}

/* The next page of todo from the cursor on, once around; npages: none. */
static uint64_t find_todo(const struct migrator *g)
{
	uint64_t npages = npages_of(g), nwords = npages / 64 + 1, from = g->cursor % npages;

	for (uint64_t i = 0; i <= nwords; i++) {
		uint64_t w = (from / 64 + i) % nwords, bits = g->todo[w];

		if (i == 0)
			bits &= ~0ULL << from % 64;
		if (bits)
			return w * 64 + (uint64_t)__builtin_ctzll(bits);
	}
	return npages;
}

static int send_some(struct migrator *g, const uint64_t *pages, unsigned n, struct error *err)
{
	g->nahead += n;
	g->f.pages_late += n;
	g->f.pages_left -= n;
	return migrate_send_pages(g, pages, n, err);
}

static int push(struct migrator *g, uint64_t first, struct error *err)
{
	uint64_t pages[PIECE], npages = npages_of(g);
	unsigned n = 0;

	for (uint64_t p = first; p < npages && p < first + PIECE; p++)
		if (take_todo(g, p))
			pages[n++] = p;
	g->cursor = first + PIECE;
	return send_some(g, pages, n, err);
}

bool migrate_serve_record(struct migrator *g, const struct migrate_header *h, int *r, struct error *err)
{
	const uint8_t *payload = g->links[0].payload;
	uint64_t page;
	uint32_t n;

	if (!g->is_lazy || (h->type != MIGRATE_R_WANT && h->type != MIGRATE_R_GOT))
		return false;
	*r = 0;
	if (h->type == MIGRATE_R_GOT && h->len == sizeof(n)) {
		memcpy(&n, payload, sizeof(n));
		g->nahead -= MIN(g->nahead, (uint64_t)n);
	} else if (h->type == MIGRATE_R_WANT && h->len == sizeof(page)) {
		memcpy(&page, payload, sizeof(page));
		if (page >= npages_of(g)) {
			*r = error_set(err, -EPROTO,
				       "the target wants memory that the machine does not have");
		} else if (take_todo(g, page)) { /* else it is on its way */
			g->f.pages_wanted++;
			g->cursor = page + 1;
			*r = send_some(g, &page, 1, err);
		}
	} else {
		*r = error_set(err, -EPROTO, "the target answers out of turn");
	}
	return true;
}

/* So many pages keep the link busy for a round trip. */
static uint64_t ahead(const struct migrator *g)
{
	double byte_ns = g->senders[0].byte_ns;
	unsigned long long n =
		byte_ns > 0 ? (unsigned long long)(2 * g->trip_ns / (byte_ns * GUEST_PAGE_SIZE)) : 0;

	return MAX(AHEAD_MIN, MIN(n, AHEAD_MAX));
}

static bool has_word(const struct migrator *g)
{
	struct pollfd p = { .fd = g->links[0].fd, .events = POLLIN };

	return poll(&p, 1, 0) != 0;
}

int migrate_serve(struct migrator *g, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	uint64_t window = ahead(g);
	struct migrate_header h;
	int r = 0;

	g->f.pages_left = migrate_count_pages(g);
	while (r == 0) {
		uint64_t page = g->nahead < window ? find_todo(g) : npages_of(g);

		if (page < npages_of(g) && !has_word(g)) {
			r = push(g, page, err);
			continue;
		}
		r = migrate_link_receive(l, &h, MIGRATE_SILENCE_MS, err);
		if (r < 0 || migrate_serve_record(g, &h, &r, err))
			continue;
		if (h.type == MIGRATE_R_FETCHED)
			return 0;
		r = error_set(err, -EPROTO, "the target answers out of turn");
	}
	return r;
}

int migrate_serve_again(struct migrator *g, struct error *err)
{
	struct migrate_link *l = &g->links[0];
	struct migrate_header h;
	uint64_t next = 0;
	int r = 0;

	g->nahead = 0;
	while (r == 0) {
		r = migrate_link_receive(l, &h, MIGRATE_SILENCE_MS, err);
		if (r == 0 && h.type != MIGRATE_R_MISSING)
			r = error_set(err, -EPROTO, "the target does not say what it lacks");
		if (r == 0)
			r = migrate_get_missing(g->todo, npages_of(g), &next, l->payload, h.len, err);
	}
	return MIN(r, 0);
}
