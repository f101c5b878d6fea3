/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives a fuzz target without libFuzzer: files given as arguments (a corpus, a crash to replay), else
 * a fixed number of mutations of the target's seed from a printed, fixed start.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define INPUT_MAX 65536
#ifndef ROUNDS /* fewer for a target that takes long (meson.build) */
#define ROUNDS 200000
#endif

static uint64_t rng = 0x9e3779b97f4a7c15;

static uint32_t next(uint32_t below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)((rng >> 32) * below >> 32);
}

static size_t mutate(uint8_t *d, size_t len)
{
	static const uint8_t special[] = { 0, 1, 2, 0x7f, 0x80, 0xff, 0xfe, 0x40 };
	size_t a, n;

	if (len == 0)
		return 0;
	switch (next(7)) {
	case 0:
		d[next((uint32_t)len)] ^= (uint8_t)(1u << next(8));
		break;
	case 1:
		d[next((uint32_t)len)] = (uint8_t)next(256);
		break;
	case 2:
		d[next((uint32_t)len)] = special[next(sizeof(special))];
		break;
	case 3:
		return next((uint32_t)len + 1);
	case 4: /* cut out */
		a = next((uint32_t)len);
		n = next((uint32_t)(len - a)) % 16;
		memmove(d + a, d + a + n, len - a - n);
		return len - n;
	case 5: /* repeat */
		a = next((uint32_t)len);
		n = 1 + next((uint32_t)(len - a)) % 64;
		if (n > len - a || len + n > INPUT_MAX)
			break;
		memmove(d + a + n, d + a, len - a);
		return len + n;
	default: /* copy over */
		a = next((uint32_t)len);
		n = next((uint32_t)(len - a)) % 32;
		memmove(d + next((uint32_t)(len - n)), d + a, n);
	}
	return len;
}

/* An exact-size heap copy, so that the address sanitizer sees every overread. */
static void feed(const uint8_t *data, size_t len)
{
	uint8_t *exact = malloc(len ? len : 1);

	if (!exact)
		abort();
	memcpy(exact, data, len);
	LLVMFuzzerTestOneInput(exact, len);
	free(exact);
}

int main(int argc, char **argv)
{
	static uint8_t seed[INPUT_MAX], data[INPUT_MAX];

	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rb");
		if (!f) {
			perror(argv[i]);
			return 1;
		}
		feed(data, fread(data, 1, sizeof(data), f));
		fclose(f);
	}
	if (argc > 1)
		return 0;
	size_t seed_len = fuzz_seed(seed, sizeof(seed));
	printf("%d mutations from 0x%llx\n", ROUNDS, (unsigned long long)rng);
	feed(seed, seed_len);
	for (int i = 0; i < ROUNDS; i++) {
		size_t len = seed_len;
		memcpy(data, seed, seed_len);
		for (uint32_t k = next(6) + 1; k; k--)
			len = mutate(data, len);
		feed(data, len);
	}
	return 0;
}
