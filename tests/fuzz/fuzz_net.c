/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames and hints from a guest, through everything that net/offload.c does with them: nothing outside of the frame
 * is touched, what comes out is bounded.
 *
 * Input: which function, hints, then the frame.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "fuzz.h"
#include "net/offload.h"

struct count {
	unsigned n;
	size_t longest;
};

static int emit(void *arg, const uint8_t *frame, size_t len)
{
	struct count *c = arg;
	uint64_t sum = 0;

	for (size_t i = 0; i < len; i++) /* every byte is there */
		sum += frame[i];
	c->n++;
	c->longest = MAX(c->longest, len + (sum & 0));
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	/* A SYN of IPv4 with MSS 1460, as one that is to be raised. */
	static const uint8_t seed[] = { 2, 1, 1, 0, 0, 0xb4, 5, 34, 0, 16, 0,
					/* Ethernet */
					0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 1, 2, 3, 8, 0,
					/* IPv4 */
					0x45, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10,
					0, 2, 2,
					/* TCP */
					0x13, 0x88, 0, 80, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0x60, 2, 0xea,
					0x60, 0, 0, 0, 0, 2, 4, 5, 0xb4 };

	if (cap < sizeof(seed))
		abort();
	memcpy(data, seed, sizeof(seed));
	return sizeof(seed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct byte_reader r = { .data = data, .len = len };
	uint8_t what = 0, headers[NET_HEADERS_MAX];
	struct net_offload off = { 0 };
	struct count c = { 0 };

	bytes_get(&r, &what, 1);
	bytes_get(&r, &off, sizeof(off));
	if (r.is_failed || len - r.pos > NET_FRAME_MAX)
		return 0;
	size_t n = len - r.pos;
	uint8_t *frame = malloc(n + 1); /* its own block, so that a step outside is seen */
	if (!frame)
		return 0;
	memcpy(frame, data + r.pos, n);
	switch (what % 5) {
	case 0:
		offload_checksum(&off, frame, n);
		break;
	case 1:
		offload_segment(&off, frame, n, emit, &c);
		if (c.n > n / NET_GSO_SIZE_MIN + 1 || c.longest > MAX(n, (size_t)1))
			abort();
		break;
	case 2:
		if (offload_raise_mss(frame, n, 21400) && offload_raise_mss(frame, n, 21400))
			abort();
		break;
	case 3: {
		int head = offload_long_tcp(frame, n, headers, &off);
		if (head > (int)n || (head >= 0 && (off.gso_size < NET_GSO_SIZE_MIN || head < 54)))
			abort();
		break;
	}
	case 4:
		offload_fragment(frame, n, emit, &c);
		if (c.longest > NET_MTU + 22 || c.n > n / 1400 + 1)
			abort();
		break;
	}
	free(frame);
	return 0;
}
