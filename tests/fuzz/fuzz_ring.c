/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of frames (net/ring.h), written by a hostile end.  Input: the positions that it tells, then the bytes of the ring
 * that it produces.  What comes out lies in the ring, in bounds; what goes in does not leave it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fuzz.h"
#include "net/ring.h"

enum { BYTES = 4096, TAIL = 64, RING_1 = 128, POSITIONS = 12 };

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	/* head 64, tail 0, wants_room; two frames of 4 and of 9 bytes. */
	static const uint8_t seed[] = { 64, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 1, 0,
					0,  0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0,
					0,  0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
					0,  0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0 };

	if (cap < sizeof(seed))
		abort();
	memcpy(data, seed, sizeof(seed));
	return sizeof(seed);
}

static void read_all(struct net_ring *r, const uint8_t *raw)
{
	static uint8_t copy[NET_FRAME_MAX];
	struct net_ring_frame f;
	unsigned n = 0;

	while (net_ring_peek(r, &f) == 1) {
		if (!f.len || f.len > NET_FRAME_MAX || ++n > NET_RING_BYTES / 32)
			abort();
		memcpy(copy, f.data, f.len);
		net_ring_pop(r);
	}
	net_ring_sleep(r);
	/* The other direction's words and bytes are not the reader's. */
	if (raw[0] || raw[BYTES])
		abort();
}

static void write_some(struct net_ring *r)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct net_offload off = { 0 };
	struct iovec iov = { frame, sizeof(frame) };
	bool rings = false;

	for (unsigned i = 0; i < 2 * NET_RING_BYTES / sizeof(frame); i++)
		if (net_ring_put(r, &off, &iov, 1, &rings) < 0)
			break;
	net_ring_has_room(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t *raw;
	static int fd = -1;
	static struct net_ring *r;

	if (len < POSITIONS || len - POSITIONS > NET_RING_BYTES)
		return 0;
	if (net_ring_make(&r, &fd) < 0)
		abort();
	raw = mmap(NULL, BYTES + 2 * NET_RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (raw == MAP_FAILED)
		abort();
	memcpy(raw + RING_1, data, 4);
	memcpy(raw + RING_1 + 4, data + 8, 4);
	memcpy(raw + TAIL, data + 4, 4);
	memcpy(raw + BYTES + NET_RING_BYTES, data + POSITIONS, len - POSITIONS);
	read_all(r, raw);
	write_some(r);
	munmap(raw, BYTES + 2 * NET_RING_BYTES);
	net_ring_destroy(r);
	close(fd);
	return 0;
}
