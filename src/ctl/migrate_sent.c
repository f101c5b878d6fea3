/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migrate_sent.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "mem/ram.h"

struct slot {
	uint64_t page; /* plus 1; 0: free */
	uint32_t round;
};

struct migrate_sent {
	uint64_t nslots;
	struct slot *slots;
	uint8_t *pages;
};

int migrate_sent_create(struct migrate_sent **out, uint64_t bytes, struct error *err)
{
	struct migrate_sent *s = calloc(1, sizeof(*s));

	if (s) {
		s->nslots = MAX(bytes >> GUEST_PAGE_SHIFT, 1ull);
		s->slots = calloc(s->nslots, sizeof(*s->slots));
		s->pages = mmap(NULL, s->nslots << GUEST_PAGE_SHIFT, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	}
	if (!s || !s->slots || s->pages == MAP_FAILED) {
		if (s && s->pages == MAP_FAILED)
			s->pages = NULL;
		migrate_sent_destroy(s);
		return error_set(err, -ENOMEM, "no memory to send pages");
	}
	*out = s;
	return 0;
}

void migrate_sent_destroy(struct migrate_sent *s)
{
	if (!s)
		return;
	if (s->pages)
		munmap(s->pages, s->nslots << GUEST_PAGE_SHIFT);
	free(s->slots);
	free(s);
}

static struct slot *slot_of(struct migrate_sent *s, uint64_t page)
{
	return &s->slots[page % s->nslots];
}

static uint8_t *data_of(struct migrate_sent *s, const struct slot *slot)
{
	return s->pages + ((uint64_t)(slot - s->slots) << GUEST_PAGE_SHIFT);
}

const uint8_t *migrate_sent_find(struct migrate_sent *s, uint64_t page, uint32_t round)
{
	struct slot *slot = slot_of(s, page);

	if (slot->page != page + 1)
		return NULL;
	slot->round = round;
	return data_of(s, slot);
}

void migrate_sent_put(struct migrate_sent *s, uint64_t page, const uint8_t *data, uint32_t round)
{
	struct slot *slot = slot_of(s, page);

	if (slot->page && slot->page != page + 1 && round - slot->round < MIGRATE_SENT_ROUNDS)
		return;
	*slot = (struct slot){ page + 1, round };
	memcpy(data_of(s, slot), data, GUEST_PAGE_SIZE);
}

void migrate_sent_apply(struct migrate_sent *s, uint64_t page, const uint8_t *delta)
{
	struct slot *slot = slot_of(s, page);
	uint8_t *data = data_of(s, slot);

	assert(slot->page == page + 1);
	migrate_page_xor(data, data, delta);
}

void migrate_sent_drop(struct migrate_sent *s, uint64_t page)
{
	struct slot *slot = slot_of(s, page);

	if (slot->page == page + 1)
		slot->page = 0;
}

void migrate_page_xor(uint8_t *out, const uint8_t *a, const uint8_t *b)
{
	uint64_t *to = (void *)out;
	const uint64_t *x = (const void *)a, *y = (const void *)b;

	for (unsigned i = 0; i < GUEST_PAGE_SIZE / 8; i++)
		to[i] = x[i] ^ y[i];
}
