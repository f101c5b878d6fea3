/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "net/dhcp6.h"
#include "net/fabric_testing.h"

enum {
	SOLICIT = 1,
	ADVERTISE,
	REQUEST,
	CONFIRM,
	RENEW,
	REBIND,
	REPLY,
	RELEASE,
	DECLINE,
	INFORMATION = 11
};
enum {
	CLIENT_ID = 1,
	SERVER_ID,
	IA_NA,
	IA_TA,
	IAADDR,
	WANTED,
	PREFERENCE,
	STATUS = 13,
	RAPID,
	DNS = 23,
	SEARCH,
	IA_PD
};

static struct lab_fixture lab;

/* A message under way to the gateway, and the answer. */
static uint8_t m[1400], duid[10];
static size_t len;
static struct {
	uint8_t b[DHCP6_REPLY_MAX];
	size_t len;
} got;

static int set_up(void **state)
{
	lab_set_up(&lab);
	net_put16(duid, 3);
	net_put16(duid + 2, 1);
	memcpy(duid + 4, lab.policy->networks[MAL].gateway_mac, 6);
	return 0;
}

static int tear_down(void **state)
{
	lab_tear_down(&lab);
	return 0;
}

static void begin(uint8_t type)
{
	memcpy(m, "\0\xab\xcd\xef", 4);
	m[0] = type;
	len = 4;
}

static void add(uint16_t code, const void *data, size_t n)
{
	net_put16(m + len, code);
	net_put16(m + len + 2, (unsigned)n);
	if (n)
		memcpy(m + len + 4, data, n);
	len += 4 + n;
}

static void add_ids(bool has_server)
{
	add(CLIENT_ID, "\0\3\0\1\1\2\3\4\5\6", 10);
	if (has_server)
		add(SERVER_ID, duid, sizeof(duid));
}

/* With these addresses; NULL ends them. */
static void add_ia(uint8_t iaid, const struct net_addr *a, const struct net_addr *b)
{
	uint8_t ia[12 + 2 * 28] = { 0, 0, 0, iaid };
	const struct net_addr *both[] = { a, b };
	size_t n = 12;

	for (unsigned i = 0; i < 2 && both[i]; i++) {
		net_put16(ia + n, IAADDR);
		net_put16(ia + n + 2, 24);
		memcpy(ia + n + 4, both[i]->b, 16);
		n += 28;
	}
	add(IA_NA, ia, n);
}

/* By a frame, from the guest at SUS.  Returns the answer's type, 0: there is none. */
static unsigned ask(void)
{
	const struct policy_port *q = &lab.policy->ports[SUS];
	struct frame_ends e = { .src = q->ll,
				.dst = frame_addr("ff02::1:2"),
				.dst_mac = { 0x33, 0x33, 0, 1, 0, 2 } };
	struct frame f;
	struct packet p;

	memcpy(e.src_mac, q->mac, 6);
	frame_udp(&f, &e, 546, 547, m, len);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	got.len = 0;
	if (!lab.nsent)
		return 0;
	assert_int_equal(lab.nsent, 1);
	const struct sent *s = lab_got(&lab, SUS);
	assert_int_equal(packet_parse(&p, (uint8_t *)(uintptr_t)s->frame.b, s->frame.len), PACKET_FINE);
	assert_true(net_addr_is_equal(&p.src, &lab.policy->networks[MAL].gateway_ll));
	assert_true(net_addr_is_equal(&p.dst, &q->ll));
	assert_true(p.sport == 547 && p.dport == 546);
	got.len = p.end - p.payload;
	memcpy(got.b, p.data + p.payload, got.len);
	assert_memory_equal(got.b + 1, "\xab\xcd\xef", 3);
	return got.b[0];
}

/* The @i-th option @code in @n bytes at @b. */
static const uint8_t *find_in(const uint8_t *b, size_t n, uint16_t code, unsigned i, size_t *size)
{
	for (size_t at = 0; at < n; at += 4u + net_get16(b + at + 2)) {
		assert_true(n - at >= 4 && net_get16(b + at + 2) <= n - at - 4);
		if (net_get16(b + at) == code && !i--) {
			*size = net_get16(b + at + 2);
			return b + at + 4;
		}
	}
	return NULL;
}

static const uint8_t *find(uint16_t code, unsigned i, size_t *size)
{
	return find_in(got.b + 4, got.len - 4, code, i, size);
}

static void assert_option(uint16_t code, const void *data, size_t n)
{
	size_t size;
	const uint8_t *o = find(code, 0, &size);

	assert_non_null(o);
	assert_int_equal(size, n);
	assert_memory_equal(o, data, n);
}

static bool has(uint16_t code)
{
	size_t size;

	return find(code, 0, &size) != NULL;
}

static unsigned status_in(const uint8_t *b, size_t n)
{
	size_t size;
	const uint8_t *o = find_in(b, n, STATUS, 0, &size);

	return o ? net_get16(o) : 99;
}

/* That @a is given in IA @ia for @lifetime seconds. */
static void assert_address(unsigned ia, unsigned i, const struct net_addr *a, uint32_t lifetime)
{
	size_t size, n;
	const uint8_t *o = find(IA_NA, ia, &size), *addr;

	assert_non_null(o);
	addr = find_in(o + 12, size - 12, IAADDR, i, &n);
	assert_non_null(addr);
	assert_int_equal(n, 24);
	assert_memory_equal(addr, a->b, 16);
	assert_int_equal(net_get32(addr + 16), lifetime);
	assert_int_equal(net_get32(addr + 20), lifetime);
	assert_int_equal(net_get32(o + 4), lifetime ? DHCP6_LEASE_S / 2 : net_get32(o + 4));
}

static void assert_settings(void)
{
	assert_option(DNS, lab.policy->networks[MAL].gateway_v6.b, 16);
	assert_option(SEARCH, "\3lab", 5);
}

/* Stateless: RFC 8415, 6.1. */
static void test_information(void **state)
{
	begin(INFORMATION);
	assert_int_equal(ask(), REPLY);
	assert_settings();
	assert_option(SERVER_ID, duid, sizeof(duid));
	assert_false(has(CLIENT_ID));
	add_ids(true);
	assert_int_equal(ask(), REPLY);
	assert_option(CLIENT_ID, "\0\3\0\1\1\2\3\4\5\6", 10);
	/* What is wanted. */
	add(WANTED, "\0\x17\0\x2a", 4);
	assert_int_equal(ask(), REPLY);
	assert_true(has(DNS) && !has(SEARCH));
	begin(INFORMATION);
	add(WANTED, "\0\x18", 2);
	assert_int_equal(ask(), REPLY);
	assert_true(!has(DNS) && has(SEARCH));
	/* To another server; for an address. */
	add(SERVER_ID, "\0\3\0\1\1\2\3\4\5\6", 10);
	assert_int_equal(ask(), 0);
	begin(INFORMATION);
	add_ia(1, NULL, NULL);
	assert_int_equal(ask(), 0);
}

static void test_an_address(void **state)
{
	const struct net_addr *own = &lab.policy->ports[SUS].v6, *other = &lab.policy->ports[EVIL].v6;

	begin(SOLICIT);
	add_ids(false);
	add_ia(7, NULL, NULL);
	assert_int_equal(ask(), ADVERTISE);
	assert_address(0, 0, own, DHCP6_LEASE_S);
	assert_option(PREFERENCE, "\xff", 1);
	assert_settings();
	size_t size;
	assert_memory_equal(find(IA_NA, 0, &size), "\0\0\0\7", 4);
	assert_false(has(RAPID));
	/* A hint of another's. */
	begin(SOLICIT);
	add_ids(false);
	add(RAPID, NULL, 0);
	add_ia(7, other, NULL);
	assert_int_equal(ask(), REPLY);
	assert_true(has(RAPID) && !has(PREFERENCE));
	assert_address(0, 0, own, DHCP6_LEASE_S);
	assert_int_equal(size, 12 + 28);
	begin(REQUEST);
	add_ids(true);
	add_ia(7, own, NULL);
	assert_int_equal(ask(), REPLY);
	assert_address(0, 0, own, DHCP6_LEASE_S);
	/* One that is no longer its own is to be given up. */
	for (unsigned type = RENEW; type <= REBIND; type++) {
		begin((uint8_t)type);
		add_ids(type == RENEW);
		add_ia(7, other, own);
		assert_int_equal(ask(), REPLY);
		assert_address(0, 0, own, DHCP6_LEASE_S);
		assert_address(0, 1, other, 0);
	}
	/* A second one, temporary ones, prefixes: there are none. */
	begin(REQUEST);
	add_ids(true);
	add(IA_TA, "\0\0\0\1", 4);
	add(IA_PD, "\0\0\0\1\0\0\0\0\0\0\0\0", 12);
	add_ia(1, NULL, NULL);
	add_ia(2, own, NULL);
	assert_int_equal(ask(), REPLY);
	assert_address(0, 0, own, DHCP6_LEASE_S);
	const uint8_t *o = find(IA_TA, 0, &size);
	assert_int_equal(status_in(o + 4, size - 4), 2);
	o = find(IA_PD, 0, &size);
	assert_int_equal(status_in(o + 12, size - 12), 6);
	o = find(IA_NA, 1, &size);
	assert_int_equal(status_in(o + 12, size - 12), 2);
	assert_address(1, 0, own, 0);
	for (unsigned type = RELEASE; type <= DECLINE; type++) {
		begin((uint8_t)type);
		add_ids(true);
		add_ia(7, own, NULL);
		assert_int_equal(ask(), REPLY);
		assert_option(STATUS, "\0\0", 2);
	}
}

/* RFC 8415, 18.3.3 */
static void test_confirm(void **state)
{
	const struct net_addr *own = &lab.policy->ports[SUS].v6, *other = &lab.policy->ports[EVIL].v6;

	begin(CONFIRM);
	add_ids(false);
	assert_int_equal(ask(), 0);
	add_ia(7, NULL, NULL);
	assert_int_equal(ask(), 0);
	add_ia(8, own, NULL);
	assert_int_equal(ask(), REPLY);
	assert_option(STATUS, "\0\0", 2);
	add_ia(9, own, other);
	assert_int_equal(ask(), REPLY);
	assert_option(STATUS, "\0\4", 2);
}

/* The guard lets the machine speak from what it was given, and nobody else. */
static void test_guard_agrees(void **state)
{
	struct frame_ends e = lab_ends(lab.policy, SUS, EVIL, true);
	struct frame f;

	begin(SOLICIT);
	add_ids(false);
	add_ia(1, NULL, NULL);
	assert_int_equal(ask(), ADVERTISE);
	size_t size, n;
	const uint8_t *ia = find(IA_NA, 0, &size);
	e.src = net_addr_v6(find_in(ia + 12, size - 12, IAADDR, 0, &n));
	frame_echo(&f, &e, false, 1);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_PASSED);
	memcpy(e.src_mac, lab.policy->ports[EVIL].mac, 6);
	memcpy(e.dst_mac, lab.policy->ports[SUS].mac, 6);
	e.dst = lab.policy->ports[SUS].v6;
	frame_echo(&f, &e, false, 1);
	assert_int_equal(lab_send(&lab, EVIL, &f), FABRIC_SPOOFED_IP);
}

static void test_bad_messages(void **state)
{
	uint8_t reply[DHCP6_REPLY_MAX], id[131] = { 0 };

	for (unsigned type = 0; type < 256; type++) {
		begin((uint8_t)type);
		assert_int_equal(ask() != 0, type == INFORMATION); /* nobody says who he is */
		begin((uint8_t)type);
		add(CLIENT_ID, "x", 1);
		add(SERVER_ID, "y", 1);
		add_ia(1, NULL, NULL);
		assert_int_equal(ask(), 0);
	}
	begin(SOLICIT);
	add_ids(false);
	add_ia(7, &lab.policy->ports[EVIL].v6, NULL);
	size_t all = len;
	for (size_t cut = 0; cut < all; cut++)
		if (cut != 4 + 14) /* without what it asks for it is a message, too */
			assert_int_equal(dhcp6_reply(lab.policy, SUS, m, cut, reply), 0);
	/* IDs that are none. */
	begin(SOLICIT);
	add(CLIENT_ID, NULL, 0);
	assert_int_equal(ask(), 0);
	begin(SOLICIT);
	add(CLIENT_ID, id, 131);
	assert_int_equal(ask(), 0);
	begin(SOLICIT);
	add(CLIENT_ID, id, 130);
	assert_int_equal(ask(), ADVERTISE);
	/* More than there is room for an answer. */
	for (unsigned i = 0; i < 60; i++)
		add(IA_NA, "\0\0\0\1\0\0\0\0\0\0\0\0", 12);
	assert_int_equal(ask(), 0);
	/* By an address that is no link-local one, or another port. */
	const struct policy_port *q = &lab.policy->ports[SUS];
	struct frame_ends e = { .src = q->v6,
				.dst = frame_addr("ff02::1:2"),
				.dst_mac = { 0x33, 0x33, 0, 1, 0, 2 } };
	struct frame f;
	memcpy(e.src_mac, q->mac, 6);
	begin(INFORMATION);
	frame_udp(&f, &e, 546, 547, m, len);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	assert_int_equal(lab.nsent, 0);
	e.src = q->ll;
	frame_udp(&f, &e, 5000, 547, m, len);
	assert_int_equal(lab_send(&lab, SUS, &f), FABRIC_GATEWAY);
	assert_int_equal(lab.nsent, 0);
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_information),  T(test_an_address),   T(test_confirm),
		T(test_guard_agrees), T(test_bad_messages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
