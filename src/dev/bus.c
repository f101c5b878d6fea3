/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bus: ranges of ports and memory, and who answers in them.
 *
 * Ranges are kept in a list; a flat, sorted map of non-overlapping segments (the winner of each) is
 * rebuilt whenever a range comes or goes and searched on every access.  All memory is taken in
 * bus_add, so that bus_remove cannot fail.
 *
 * Invariants
 *  1. map[] is sorted, segments do not overlap and are not empty.
 *  2. Two ranges of the same priority never overlap.
 *  3. map_cap >= 2 * number of ranges: n ranges cut the space into at most 2n - 1 segments.
 */
#include <assert.h>
#include <errno.h>

#include "dev/device.h"

#define BUS_PORTS 0x10000ull

struct bus_range {
	struct bus_range *next;
	enum bus_space space;
	uint64_t first, last; /* inclusive */
	int priority;
	const struct bus_ops *ops;
	void *dev;
	uint64_t accesses; /* counter */
};

struct segment {
	uint64_t first, last; /* inclusive */
	struct bus_range *range;
};

struct bus_map {
	struct bus_range *ranges;
	size_t nranges;
	struct segment *map;
	size_t nmap, map_cap;
	uint64_t *cuts; /* scratch of rebuild: segment starts, map_cap of them */
	size_t last_hit;
};

struct bus {
	struct bus_map spaces[2];
};

struct bus *bus_create(void)
{
	return calloc(1, sizeof(struct bus));
}

void bus_destroy(struct bus *b)
{
	if (!b)
		return;
	for (unsigned i = 0; i < 2; i++) {
		struct bus_range *r = b->spaces[i].ranges;

		while (r) {
			struct bus_range *next = r->next;

			free(r);
			r = next;
		}
		free(b->spaces[i].map);
		free(b->spaces[i].cuts);
	}
	free(b);
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static struct bus_range *winner_at(const struct bus_map *m, uint64_t addr)
{
	struct bus_range *best = NULL;

	for (struct bus_range *r = m->ranges; r; r = r->next)
		if (addr >= r->first && addr <= r->last && (!best || r->priority > best->priority))
			best = r;
	return best;
}

/* Between two neighbouring cuts the winner does not change. */
static void rebuild(struct bus_map *m)
{
	size_t n = 0;

	for (const struct bus_range *r = m->ranges; r; r = r->next) {
		m->cuts[n++] = r->first;
		if (r->last != UINT64_MAX)
			m->cuts[n++] = r->last + 1;
	}
	if (n)
		qsort(m->cuts, n, sizeof(m->cuts[0]), compare_u64);
	m->nmap = 0;
	m->last_hit = 0;
	for (size_t i = 0; i < n; i++) {
		uint64_t first = m->cuts[i], last = i + 1 < n ? m->cuts[i + 1] - 1 : UINT64_MAX;
		struct bus_range *r;
		struct segment *prev = m->nmap ? &m->map[m->nmap - 1] : NULL;

		if (i + 1 < n && m->cuts[i + 1] == first)
			continue;
		r = winner_at(m, first);
		if (!r)
			continue;
		if (prev && prev->range == r && prev->last + 1 == first)
			prev->last = last;
		else
			m->map[m->nmap++] = (struct segment){ first, last, r };
	}
}

static int reserve(struct bus_map *m, size_t nranges)
{
	size_t cap = m->map_cap ? m->map_cap : 16;
	struct segment *map;
	uint64_t *cuts;

	while (cap < 2 * nranges)
		cap *= 2;
	if (cap == m->map_cap)
		return 0;
	map = realloc(m->map, cap * sizeof(*map));
	if (!map)
		return -ENOMEM;
	m->map = map;
	cuts = realloc(m->cuts, cap * sizeof(*cuts));
	if (!cuts)
		return -ENOMEM;
	m->cuts = cuts;
	m->map_cap = cap;
	return 0;
}

int bus_add(struct bus *b, enum bus_space space, uint64_t base, uint64_t len, int priority,
	    const struct bus_ops *ops, void *dev, struct bus_range **out)
{
	struct bus_map *m = &b->spaces[space];
	struct bus_range *r;
	uint64_t last = base + len - 1;

	if (!len || last < base || (space == BUS_PIO && last >= BUS_PORTS))
		return -EINVAL;
	for (r = m->ranges; r; r = r->next)
		if (r->priority == priority && base <= r->last && last >= r->first)
			return -EEXIST;
	if (reserve(m, m->nranges + 1))
		return -ENOMEM;
	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	*r = (struct bus_range){
		.next = m->ranges,
		.space = space,
		.first = base,
		.last = last,
		.priority = priority,
		.ops = ops,
		.dev = dev,
	};
	m->ranges = r;
	m->nranges++;
	rebuild(m);
	if (out)
		*out = r;
	return 0;
}

void bus_remove(struct bus *b, struct bus_range *r)
{
	struct bus_map *m;
	struct bus_range **p;

	if (!r)
		return;
	m = &b->spaces[r->space];
	for (p = &m->ranges; *p != r; p = &(*p)->next)
		assert(*p);
	*p = r->next;
	m->nranges--;
	free(r);
	rebuild(m);
}

/* The segment that holds @addr, or NULL. */
static const struct segment *find(struct bus_map *m, uint64_t addr)
{
	size_t lo = 0, hi = m->nmap;

	if (m->last_hit < m->nmap && addr >= m->map[m->last_hit].first &&
	    addr <= m->map[m->last_hit].last)
		return &m->map[m->last_hit];
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (addr > m->map[mid].last)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == m->nmap || addr < m->map[lo].first)
		return NULL;
	m->last_hit = lo;
	return &m->map[lo];
}

static uint64_t ones(unsigned size)
{
	return size >= 8 ? UINT64_MAX : (1ull << size * 8) - 1;
}

static uint64_t wrap(enum bus_space space, uint64_t addr)
{
	return space == BUS_PIO ? addr & (BUS_PORTS - 1) : addr;
}

static const char *space_name(enum bus_space space)
{
	return space == BUS_PIO ? "port" : "memory";
}

uint64_t bus_read(struct bus *b, enum bus_space space, uint64_t addr, unsigned size)
{
	struct bus_map *m = &b->spaces[space];
	const struct segment *s;
	uint64_t value = 0;

	assert(size >= 1 && size <= 8);
	addr = wrap(space, addr);
	s = find(m, addr);
	if (s && s->last - addr >= size - 1) {
		s->range->accesses++;
		return s->range->ops->read(s->range->dev, addr - s->range->first, size) & ones(size);
	}
	if (size == 1) {
		log_guest("bus", "read of %s %#llx: nothing there", space_name(space),
			  (unsigned long long)addr);
		return 0xff;
	}
	/* Across an edge, or from nothing: byte by byte. */
	for (unsigned i = 0; i < size; i++)
		value |= bus_read(b, space, addr + i, 1) << i * 8;
	return value;
}

void bus_write(struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value)
{
	struct bus_map *m = &b->spaces[space];
	const struct segment *s;

	assert(size >= 1 && size <= 8);
	addr = wrap(space, addr);
	s = find(m, addr);
	if (s && s->last - addr >= size - 1) {
		s->range->accesses++;
		s->range->ops->write(s->range->dev, addr - s->range->first, size, value & ones(size));
		return;
	}
	if (size == 1) {
		log_guest("bus", "write of %#x to %s %#llx: nothing there", (unsigned)value & 0xff,
			  space_name(space), (unsigned long long)addr);
		return;
	}
	for (unsigned i = 0; i < size; i++)
		bus_write(b, space, addr + i, 1, value >> i * 8 & 0xff);
}

void bus_counters(const struct bus *b,
		  void (*fn)(void *arg, enum bus_space space, uint64_t base, const void *dev,
			     uint64_t accesses),
		  void *arg)
{
	for (unsigned space = 0; space < 2; space++)
		for (const struct bus_range *r = b->spaces[space].ranges; r; r = r->next)
			fn(arg, r->space, r->first, r->dev, r->accesses);
}
