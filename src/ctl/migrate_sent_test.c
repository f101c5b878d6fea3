/* SPDX-License-Identifier: Apache-2.0 */
/* What is found of a page is what was last sent of it, whatever was sent of others. */
#include <stdlib.h>
#include <string.h>

#include "base/unit.h"
#include "ctl/migrate_sent.h"
#include "mem/ram.h"

enum { SLOTS = 16, PAGES = 100 };

static struct error err;

static void page(uint8_t *p, unsigned seed)
{
	for (unsigned i = 0; i < GUEST_PAGE_SIZE; i++)
		p[i] = (uint8_t)(seed * 31 + i * (seed | 1));
}

static void test_random(void **state)
{
	static _Alignas(8) uint8_t target[PAGES][GUEST_PAGE_SIZE], now[GUEST_PAGE_SIZE],
		delta[GUEST_PAGE_SIZE];
	struct migrate_sent *s;
	unsigned nfound = 0, seed = 1;

	assert_int_equal(migrate_sent_create(&s, SLOTS * GUEST_PAGE_SIZE, &err), 0);
	for (uint32_t step = 0; step < 20000; step++) {
		unsigned n = (unsigned)rand_r(&seed) % PAGES;
		const uint8_t *old = migrate_sent_find(s, n, step / 200);

		if (old) {
			nfound++;
			assert_memory_equal(old, target[n], GUEST_PAGE_SIZE);
		}
		page(now, step);
		switch (rand_r(&seed) % 4) {
		case 0:
			migrate_sent_drop(s, n);
			break;
		case 1:
			if (old) {
				migrate_page_xor(delta, old, now);
				migrate_sent_apply(s, n, delta);
				break;
			}
			__attribute__((fallthrough));
		default:
			migrate_sent_put(s, n, now, step / 200);
		}
		memcpy(target[n], now, GUEST_PAGE_SIZE);
	}
	assert_true(nfound > 500);
	migrate_sent_destroy(s);
}

/* Of more pages than there is room for, some keep theirs; who is not sent any more gives it away. */
static void test_who_keeps_its_place(void **state)
{
	uint8_t data[GUEST_PAGE_SIZE] = { 1 };
	struct migrate_sent *s;
	uint32_t round;

	assert_int_equal(migrate_sent_create(&s, SLOTS * GUEST_PAGE_SIZE, &err), 0);
	for (round = 1; round < 10; round++)
		for (unsigned i = 0; i < 2 * SLOTS; i++) {
			const uint8_t *old = migrate_sent_find(s, i, round);

			assert_int_equal(old != NULL, round > 1 && i < SLOTS);
			migrate_sent_put(s, i, data, round);
		}
	for (; round < 10 + MIGRATE_SENT_ROUNDS; round++)
		migrate_sent_put(s, SLOTS, data, round);
	assert_non_null(migrate_sent_find(s, SLOTS, round));
	assert_null(migrate_sent_find(s, 0, round));
	assert_non_null(migrate_sent_find(s, 1, round));
	migrate_sent_destroy(s);
	migrate_sent_destroy(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_who_keeps_its_place),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
