/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "net/offload.h"

/* The slow and obvious sum, to compare with. */
static uint16_t slow_sum(const uint8_t *p, size_t len, uint32_t sum)
{
	for (size_t i = 0; i < len; i++)
		sum += i & 1 ? p[i] : p[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static void test_checksum(void **state)
{
	uint8_t buf[131];

	(void)state;
	for (unsigned i = 0; i < sizeof(buf); i++)
		buf[i] = i * 37 + 11;
	for (unsigned len = 0; len < sizeof(buf); len++) {
		uint16_t got = net_checksum_fold(net_checksum(buf, len, 0)),
			 want = ~slow_sum(buf, len, 0);
		assert_int_equal((uint16_t)(got << 8 | got >> 8), want);
	}
}

struct build {
	uint8_t frame[NET_FRAME_MAX];
	size_t len, l3, l4, payload;
};

/* An Ethernet frame with TCP in IPv4 or IPv6; checksums left empty. */
static void build_tcp(struct build *b, bool is_ipv6, unsigned vlans, unsigned tcp_options, size_t payload)
{
	uint8_t *p = b->frame;

	memset(b->frame, 0, sizeof(b->frame));
	memcpy(p, "\x52\x55\x0a\x00\x02\x02\x52\x54\x00\x12\x34\x56", 12);
	p += 12;
	for (unsigned i = 0; i < vlans; i++, p += 4)
		memcpy(p, "\x81\x00\x00\x05", 4);
	memcpy(p, is_ipv6 ? "\x86\xdd" : "\x08\x00", 2);
	p += 2;
	b->l3 = p - b->frame;
	if (is_ipv6) {
		p[0] = 0x60;
		p[6] = 60; /* destination options, then TCP */
		p[7] = 64;
		for (unsigned i = 8; i < 40; i++)
			p[i] = i;
		p[40] = 6;
		p += 48;
	} else {
		memcpy(p, "\x45\x00\x00\x00\xff\xfe\x40\x00\x40\x06", 10);
		memcpy(p + 12, "\x0a\x00\x02\x0f\x0a\x00\x02\x02", 8);
		p += 20;
	}
	b->l4 = p - b->frame;
	memcpy(p, "\x12\x34\x00\x50\xff\xff\xff\x00\x00\x00\x00\x01", 12);
	p[12] = (20 + tcp_options) / 4 << 4;
	p[13] = 0x80 | 0x10 | 0x08 | 0x01; /* CWR ACK PSH FIN */
	p += 20 + tcp_options;
	b->payload = p - b->frame;
	for (size_t i = 0; i < payload; i++)
		p[i] = i * 31 + (i >> 8);
	b->len = b->payload + payload;
	size_t l3_len = b->len - b->l3;
	uint16_t field = is_ipv6 ? l3_len - 40 : l3_len;
	b->frame[b->l3 + (is_ipv6 ? 4 : 2)] = field >> 8;
	b->frame[b->l3 + (is_ipv6 ? 5 : 3)] = field;
}

static void expect_tcp_sums(const uint8_t *f, size_t len, size_t l3, size_t l4, bool is_ipv6)
{
	uint32_t pseudo = 6 + (len - l4);

	if (!is_ipv6)
		assert_int_equal(slow_sum(f + l3, l4 - l3, 0), 0xffff);
	pseudo += is_ipv6 ? slow_sum(f + l3 + 8, 32, 0) : slow_sum(f + l3 + 12, 8, 0);
	assert_int_equal(slow_sum(f + l4, len - l4, pseudo), 0xffff);
}

struct sink {
	struct build *b;
	bool is_ipv6;
	unsigned n, mss, fail_at;
	size_t bytes;
	const uint8_t *want;
	size_t want_len;
};

static int take(void *arg, const uint8_t *f, size_t len)
{
	struct sink *s = arg;
	const struct build *b = s->b;

	if (s->fail_at && s->n + 1 == s->fail_at)
		return -ENOBUFS;
	size_t part = len - b->payload;
	bool is_last = s->bytes + part == s->want_len;
	assert_true(part <= s->mss && (is_last || part == s->mss));
	assert_memory_equal(f + b->payload, s->want + s->bytes, part);
	uint32_t seq =
		(uint32_t)f[b->l4 + 4] << 24 | f[b->l4 + 5] << 16 | f[b->l4 + 6] << 8 | f[b->l4 + 7];
	assert_int_equal(seq, (uint32_t)(0xffffff00u + s->bytes));
	uint8_t flags = 0x10 | (s->n ? 0 : 0x80) | (is_last ? 0x09 : 0);
	assert_int_equal(f[b->l4 + 13], flags);
	size_t l3_len = len - b->l3;
	if (s->is_ipv6) {
		assert_int_equal(f[b->l3 + 4] << 8 | f[b->l3 + 5], l3_len - 40);
	} else {
		assert_int_equal(f[b->l3 + 2] << 8 | f[b->l3 + 3], l3_len);
		assert_int_equal(f[b->l3 + 4] << 8 | f[b->l3 + 5], (uint16_t)(0xfffe + s->n));
	}
	expect_tcp_sums(f, len, b->l3, b->l4, s->is_ipv6);
	s->n++;
	s->bytes += part;
	return 0;
}

static void test_segments(void **state)
{
	static struct build b;
	static uint8_t want[NET_FRAME_MAX];
	static const size_t payloads[] = { 0, 1, 1448, 1449, 2896, 64000 };

	(void)state;
	for (unsigned v6 = 0; v6 < 2; v6++)
		for (unsigned vlans = 0; vlans < 3; vlans++)
			for (unsigned i = 0; i < ARRAY_SIZE(payloads); i++) {
				build_tcp(&b, v6, vlans, vlans * 12, payloads[i]);
				memcpy(want, b.frame + b.payload, payloads[i]);
				struct net_offload off = { .flags = 1,
							   .gso_size = 1448,
							   .gso_type = v6 ? NET_GSO_TCP6 : NET_GSO_TCP4 };
				struct sink s = { .b = &b,
						  .is_ipv6 = v6,
						  .mss = 1448,
						  .want = want,
						  .want_len = payloads[i] };
				assert_int_equal(offload_segment(&off, b.frame, b.len, take, &s), 0);
				assert_int_equal(s.bytes, payloads[i]);
				assert_int_equal(s.n, MAX((payloads[i] + 1447) / 1448, (size_t)1));

				/* As one long segment. */
				build_tcp(&b, v6, vlans, vlans * 12, payloads[i]);
				off.gso_type |= NET_GSO_ECN;
				assert_int_equal(offload_checksum(&off, b.frame, b.len), 0);
				expect_tcp_sums(b.frame, b.len, b.l3, b.l4, v6);
			}
	build_tcp(&b, false, 0, 0, 5000);
	memcpy(want, b.frame + b.payload, 5000);
	struct net_offload off = { .flags = 1, .gso_size = 1000, .gso_type = NET_GSO_TCP4 };
	struct sink s = { .b = &b, .mss = 1000, .want = want, .want_len = 5000, .fail_at = 3 };
	assert_int_equal(offload_segment(&off, b.frame, b.len, take, &s), -ENOBUFS);
	assert_int_equal(s.n, 2);
}

static int count_frames(void *arg, const uint8_t *f, size_t len)
{
	uint64_t sum = 0;

	/* Every byte is there (ASan looks). */
	for (size_t i = 0; i < len; i++)
		sum += f[i];
	(void)sum;
	++*(unsigned *)arg;
	return 0;
}

static void test_plain(void **state)
{
	uint8_t f[64] = { 0 };
	unsigned n = 0;
	struct net_offload off = { 0 };

	(void)state;
	/* A UDP checksum that comes out as 0 is written as ffff. */
	off.flags = NET_OFF_NEEDS_CSUM;
	off.csum_start = 34;
	off.csum_offset = 6;
	memset(f + 34, 0xff, 30);
	f[40] = f[41] = 0;
	assert_int_equal(offload_segment(&off, f, sizeof(f), count_frames, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(f[40] << 8 | f[41], 0xffff);
	/* Places outside of the frame. */
	off.csum_start = 63;
	assert_int_equal(offload_segment(&off, f, sizeof(f), count_frames, &n), -EINVAL);
	off.csum_start = 64;
	off.csum_offset = 0;
	assert_int_equal(offload_segment(&off, f, sizeof(f), count_frames, &n), -EINVAL);
	off.csum_start = 0xffff;
	off.csum_offset = 0xffff;
	assert_int_equal(offload_segment(&off, f, sizeof(f), count_frames, &n), -EINVAL);
	off.csum_start = 62;
	off.csum_offset = 0;
	assert_int_equal(offload_segment(&off, f, sizeof(f), count_frames, &n), 0);
	/* Without hints nothing is looked at. */
	off = (struct net_offload){ 0 };
	assert_int_equal(offload_segment(&off, f, 1, count_frames, &n), 0);
	assert_int_equal(n, 3);
}

static void test_hostile(void **state)
{
	static struct build b;
	struct net_offload off = { .flags = 1, .gso_type = NET_GSO_TCP4, .gso_size = 1448 };
	unsigned n = 0;

	(void)state;
#define REFUSED() assert_int_equal(offload_segment(&off, b.frame, b.len, count_frames, &n), -EINVAL)
	build_tcp(&b, false, 0, 0, 3000);
	off.gso_size = 0;
	REFUSED();
	off.gso_size = NET_GSO_SIZE_MIN - 1;
	REFUSED();
	off.gso_size = 1448;
	off.gso_type = NET_GSO_TCP6;
	REFUSED();
	off.gso_type = NET_GSO_UDP;
	REFUSED();
	off.gso_type = NET_GSO_ECN;
	REFUSED();
	off.gso_type = 2;
	REFUSED();
	off.gso_type = NET_GSO_TCP4;
	b.frame[b.l3] = 0x44; /* header too short */
	REFUSED();
	b.frame[b.l3] = 0x4f; /* shifts TCP into nonsense: doff 0 */
	memset(b.frame + b.l3 + 60, 0, 20);
	REFUSED();
	b.frame[b.l3] = 0x65;
	REFUSED();
	build_tcp(&b, false, 0, 0, 3000);
	b.frame[b.l3 + 9] = 17;
	REFUSED();
	build_tcp(&b, false, 0, 0, 3000);
	b.frame[b.l3 + 6] = 0x20; /* a fragment */
	REFUSED();
	build_tcp(&b, false, 0, 0, 3000);
	b.frame[b.l4 + 12] = 0x40;
	REFUSED();
	for (b.len = 0; b.len < b.payload; b.len++)
		REFUSED();
	assert_int_equal(n, 0);
#undef REFUSED

	/* Random damage to headers and hints: never out of bounds, never more frames than the bound. */
	uint32_t seed = 7;
	for (unsigned i = 0; i < 20000; i++) {
		seed = seed * 1664525 + 1013904223;
		size_t len = (seed >> 8) % 200 + (seed >> 30 == 3 ? 3000 : 0);
		build_tcp(&b, seed & 0x10000, (seed >> 17) & 3, 0, 3000);
		for (unsigned k = 0; k < 3; k++) {
			seed = seed * 1664525 + 1013904223;
			b.frame[(seed >> 8) % 100] = seed >> 24;
		}
		/* Exactly sized, so that ASan sees a step outside. */
		uint8_t *f = malloc(len ? len : 1);
		memcpy(f, b.frame, len);
		off = (struct net_offload){ .flags = seed >> 20,
					    .gso_type = (seed >> 12) % 6,
					    .gso_size = seed >> 9,
					    .csum_start = (seed >> 5) % 300,
					    .csum_offset = (seed >> 3) % 300 };
		n = 0;
		offload_segment(&off, f, len, count_frames, &n);
		assert_true(n <= len / NET_GSO_SIZE_MIN + 1);
		free(f);
	}
}

/* ---- long segments ---- */

static void put_mss(struct build *b, size_t at, unsigned mss)
{
	memcpy(b->frame + b->l4 + at, "\x02\x04", 2);
	b->frame[b->l4 + at + 2] = mss >> 8;
	b->frame[b->l4 + at + 3] = mss;
}

static unsigned mss_at(const struct build *b, size_t at)
{
	return b->frame[b->l4 + at + 2] << 8 | b->frame[b->l4 + at + 3];
}

static void build_syn(struct build *b, bool is_ipv6, size_t at, unsigned mss)
{
	struct net_offload off = { .flags = 1, .gso_type = is_ipv6 ? NET_GSO_TCP6 : NET_GSO_TCP4 };

	build_tcp(b, is_ipv6, 0, 12, 0);
	memset(b->frame + b->l4 + 20, 1, 12); /* no operation */
	put_mss(b, at, mss);
	b->frame[b->l4 + 13] = 0x02;
	assert_int_equal(offload_checksum(&off, b->frame, b->len), 0);
}

static void expect_untouched(struct build *b)
{
	static uint8_t before[NET_FRAME_MAX];

	memcpy(before, b->frame, b->len);
	assert_false(offload_raise_mss(b->frame, b->len, 21400));
	assert_memory_equal(before, b->frame, b->len);
}

static void test_raise_mss(void **state)
{
	static struct build b;

	(void)state;
	for (unsigned v6 = 0; v6 < 2; v6++) {
		unsigned least = v6 ? 1440 : 1460;
		for (unsigned at = 20; at <= 28; at++) { /* odd places as well */
			build_syn(&b, v6, at, least);
			assert_true(offload_raise_mss(b.frame, b.len, 21400));
			assert_int_equal(mss_at(&b, at), 21400);
			expect_tcp_sums(b.frame, b.len, b.l3, b.l4, v6);
		}
		build_syn(&b, v6, 20, 9000);
		b.frame[b.l4 + 13] |= 0x10; /* the answer's SYN */
		assert_true(offload_raise_mss(b.frame, b.len, 21400));
		assert_int_equal(mss_at(&b, 20), 21400);
		/* Left alone: smaller offers, larger ones, no SYN, no option, options that make no sense. */
		build_syn(&b, v6, 20, least - 1);
		expect_untouched(&b);
		build_syn(&b, v6, 20, 21400);
		expect_untouched(&b);
		build_syn(&b, v6, 20, 65535);
		expect_untouched(&b);
		build_syn(&b, v6, 20, 1460);
		b.frame[b.l4 + 13] = 0x10;
		expect_untouched(&b);
		build_syn(&b, v6, 20, 1460);
		b.frame[b.l4 + 20] = 0; /* the end before it */
		expect_untouched(&b);
		build_syn(&b, v6, 24, 1460);
		memcpy(b.frame + b.l4 + 20, "\x08\x00", 2); /* length 0 */
		expect_untouched(&b);
		memcpy(b.frame + b.l4 + 20, "\x08\x0d", 2); /* past the header */
		expect_untouched(&b);
		build_syn(&b, v6, 28, 1460);
		b.frame[b.l4 + 29] = 3;
		expect_untouched(&b);
		build_syn(&b, v6, 20, 1);
		memset(b.frame + b.l4 + 20, 1, 11);
		b.frame[b.l4 + 31] = 2; /* cut at the header's end */
		expect_untouched(&b);
	}
}

/* Hints made of a finished long frame lead to the same segments as anybody's. */
static void test_long_tcp(void **state)
{
	static struct build b;
	static uint8_t want[NET_FRAME_MAX];
	uint8_t headers[NET_HEADERS_MAX];
	struct net_offload off;

	(void)state;
	for (unsigned v6 = 0; v6 < 2; v6++) {
		build_tcp(&b, v6, 0, 12, 21400);
		struct net_offload done = { .flags = 1, .gso_type = v6 ? NET_GSO_TCP6 : NET_GSO_TCP4 };
		assert_int_equal(offload_checksum(&done, b.frame, b.len), 0);
		memcpy(want, b.frame + b.payload, 21400);
		assert_int_equal(offload_long_tcp(b.frame, b.len, headers, &off), b.payload);
		assert_int_equal(off.gso_type, v6 ? NET_GSO_TCP6 : NET_GSO_TCP4);
		assert_int_equal(off.gso_size, 1500 - (b.payload - b.l3));
		assert_int_equal(off.flags, NET_OFF_NEEDS_CSUM);
		assert_int_equal(off.hdr_len, b.payload);
		memcpy(b.frame, headers, b.payload);
		/* As a receiver that takes it whole completes it. */
		struct net_offload plain = off;
		plain.gso_type = NET_GSO_NONE;
		assert_int_equal(offload_checksum(&plain, b.frame, b.len), 0);
		expect_tcp_sums(b.frame, b.len, b.l3, b.l4, v6);
		memcpy(b.frame, headers, b.payload);
		struct sink s = {
			.b = &b, .is_ipv6 = v6, .mss = off.gso_size, .want = want, .want_len = 21400
		};
		assert_int_equal(offload_segment(&off, b.frame, b.len, take, &s), 0);
		assert_int_equal(s.bytes, 21400);
	}
	build_tcp(&b, false, 0, 0, 3000);
	b.frame[b.l3 + 9] = 17;
	assert_int_equal(offload_long_tcp(b.frame, b.len, headers, &off), -EINVAL);
	build_tcp(&b, false, 0, 0, 3000);
	for (b.len = 0; b.len < b.payload; b.len++)
		assert_int_equal(offload_long_tcp(b.frame, b.len, headers, &off), -EINVAL);
}

struct joined {
	uint8_t data[NET_FRAME_MAX];
	size_t len;
	unsigned n, fail_at;
	bool is_last;
};

static int join(void *arg, const uint8_t *f, size_t len)
{
	struct joined *j = arg;
	unsigned word = f[20] << 8 | f[21];

	if (j->fail_at && j->n + 1 == j->fail_at)
		return -ENOBUFS;
	assert_true(len <= 1514);
	assert_false(j->is_last);
	assert_int_equal(f[16] << 8 | f[17], len - 14);
	assert_int_equal((word & 0x1fff) * 8, j->len);
	assert_int_equal(slow_sum(f + 14, 20, 0), 0xffff);
	memcpy(j->data + j->len, f + 34, len - 34);
	j->len += len - 34;
	j->is_last = !(word & 0x2000);
	j->n++;
	return 0;
}

static void test_fragments(void **state)
{
	static struct build b;
	static struct joined j;

	(void)state;
	for (size_t payload = 1; payload < 9000; payload += 373) {
		build_tcp(&b, false, 0, 0, payload);
		b.frame[b.l3 + 6] = 0;
		memset(&j, 0, sizeof(j));
		assert_int_equal(offload_fragment(b.frame, b.len, join, &j), 0);
		assert_true(j.is_last);
		assert_int_equal(j.n, (20 + payload + 1479) / 1480);
		assert_int_equal(j.len, 20 + payload);
		assert_memory_equal(j.data, b.frame + b.l4, j.len);
	}
	build_tcp(&b, false, 0, 0, 8000);
	b.frame[b.l3 + 6] = 0;
	memset(&j, 0, sizeof(j));
	j.fail_at = 3;
	assert_int_equal(offload_fragment(b.frame, b.len, join, &j), -ENOBUFS);
	assert_int_equal(j.n, 2);
	build_tcp(&b, true, 0, 0, 8000);
	assert_int_equal(offload_fragment(b.frame, b.len, join, &j), -EINVAL);
	build_tcp(&b, false, 0, 0, 8000);
	assert_int_equal(offload_fragment(b.frame, b.len - 1, join, &j), -EINVAL);
	b.frame[b.l3] = 0x44;
	assert_int_equal(offload_fragment(b.frame, b.len, join, &j), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_checksum),  cmocka_unit_test(test_segments),
		cmocka_unit_test(test_plain),	  cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_raise_mss), cmocka_unit_test(test_long_tcp),
		cmocka_unit_test(test_fragments),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
