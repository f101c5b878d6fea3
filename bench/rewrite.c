/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rewrite MIB PAUSE_MS [SLICE_MIB] - rewrite MIB of memory again and again and look for lost pages; part of a guest of bench/migrate.py.
 *
 * Each word of a page says which page and which pass it is of.  Before a page is written it must hold what the last pass has written.  After
 * each slice (all, unless told otherwise) it sleeps for PAUSE_MS.  Says "pass=N." now and then, "LOST" and which page when one is not what it was.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512

static uint64_t seed(uint64_t page, uint64_t pass)
{
	return (page * 0x9e3779b97f4a7c15ULL) ^ (pass * 0xbf58476d1ce4e5b9ULL);
}

static void check(const uint64_t *p, uint64_t page, uint64_t pass)
{
	uint64_t s = seed(page, pass), bad = 0;

	for (unsigned i = 0; i < WORDS; i++)
		bad |= p[i] ^ (s + i);
	if (!bad)
		return;
	printf("LOST page %llu in pass %llu: %#llx, not %#llx\n", (unsigned long long)page,
	       (unsigned long long)pass, (unsigned long long)p[0], (unsigned long long)s);
	fflush(stdout);
	for (;;)
		pause();
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	uint64_t npages = argc > 1 ? strtoull(argv[1], NULL, 0) * 256 : 0;
	unsigned pause_us = argc > 2 ? (unsigned)atoi(argv[2]) * 1000 : 0;
	uint64_t slice = argc > 3 ? strtoull(argv[3], NULL, 0) * 256 : npages;
	uint64_t *mem =
		mmap(NULL, npages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double told = 0;

	if (!npages || mem == MAP_FAILED) {
		perror("rewrite");
		return 1;
	}
	for (uint64_t pass = 1;; pass++) {
		for (uint64_t page = 0; page < npages; page++) {
			uint64_t *p = mem + page * WORDS, s = seed(page, pass);

			if (pass > 1)
				check(p, page, pass - 1);
			for (unsigned i = 0; i < WORDS; i++)
				p[i] = s + i;
			if (pause_us && page % slice == slice - 1)
				usleep(pause_us);
		}
		if (now() - told > 0.3) {
			told = now();
			printf("pass=%llu.\n", (unsigned long long)pass);
			fflush(stdout);
		}
	}
}
