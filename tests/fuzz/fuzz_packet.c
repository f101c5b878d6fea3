/* SPDX-License-Identifier: Apache-2.0 */
/* Frames through net/packet.h: what it says lies inside the frame, hints that pass fit it. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/offload.h"
#include "net/packet.h"

static int count(void *arg, const uint8_t *frame, size_t len)
{
	(void)frame;
	if (len > NET_MTU + ETH_HEADER + ETH_TAG)
		abort();
	++*(unsigned *)arg;
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	/* Hints of a checksum, Ethernet, IPv6 with destination options before UDP. */
	static const uint8_t seed[] = { 1,    0,  0, 0,	 0,    0,    62, 0,  6,	   0, 0x52, 0x54,
					0,    1,  2, 3,	 0x52, 0x54, 0,	 4,  5,	   6, 0x86, 0xdd,
					0x60, 0,  0, 0,	 0,    16,   60, 64, 0xfd, 0, 0,    0,
					0,    0,  0, 0,	 0,    0,    0,	 0,  0,	   0, 0,    1,
					0xfd, 0,  0, 0,	 0,    0,    0,	 0,  0,	   0, 0,    0,
					0,    0,  0, 2,	 17,   0,    1,	 4,  0,	   0, 0,    0,
					0,    68, 0, 67, 0,    8,    0,	 0 };

	if (cap < sizeof(seed))
		abort();
	memcpy(data, seed, sizeof(seed));
	return sizeof(seed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct net_offload off;
	struct packet p, q;
	unsigned n = 0;

	if (len < sizeof(off) || len - sizeof(off) > NET_FRAME_MAX)
		return 0;
	memcpy(&off, data, sizeof(off));
	len -= sizeof(off);
	uint8_t *frame = malloc(len + 1);
	if (!frame)
		return 0;
	memcpy(frame, data + sizeof(off), len);
	if (packet_parse(&p, frame, len) == PACKET_FINE) {
		if (p.end > len || p.l3 > len || (p.has_l4 && (p.l4 > p.end || p.payload > p.end)))
			abort();
		packet_quoted(&p, &q);
		if (packet_check_offload(&p, &off) && offload_segment(&off, frame, len, count, &n) < 0)
			abort();
	}
	free(frame);
	return 0;
}
