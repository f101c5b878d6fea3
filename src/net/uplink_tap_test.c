/* SPDX-License-Identifier: Apache-2.0 */
/* An uplink by an interface, with a socket in the interface's place: what is read and written is the same. */
#include "net/uplink_tap.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "net/offload.h"
#include "net/testing.h"

static const uint8_t own_mac[6] = { 0x52, 0x54, 1, 0, 0, 1 }, router_mac[6] = { 0x02, 0, 0, 0, 0, 9 };

static struct {
	struct tap_uplink *u;
	int host; /* the other end */
	int64_t now_ms;
	unsigned received;
	struct net_offload off;
	uint8_t last[2048];
	size_t len;
} t;

static bool has(void *ctx, const struct net_addr *a)
{
	struct net_addr v4 = frame_addr("10.1.0.10"), v6 = frame_addr("fd00:1::10");

	return net_addr_is_equal(a, &v4) || net_addr_is_equal(a, &v6);
}

static void receive(void *ctx, const struct net_offload *off, uint8_t *frame, size_t len)
{
	memset(frame - TAP_HEADROOM, 0, TAP_HEADROOM);
	t.received++;
	t.off = *off;
	t.len = len;
}

static int setup(void **state)
{
	int fds[2];

	memset(&t, 0, sizeof(t));
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds), 0);
	struct tap_uplink_config c = { .fd = fds[0],
				       .own_v4 = frame_addr("10.1.0.1"),
				       .own_v6 = frame_addr("fd00:1::1"),
				       .router_v4 = frame_addr("10.1.0.2"),
				       .router_v6 = frame_addr("fd00:1::2"),
				       .has = has,
				       .receive = receive };
	memcpy(c.mac, own_mac, 6);
	t.host = fds[1];
	t.u = tap_uplink_create(&c);
	assert_non_null(t.u);
	t.now_ms = 5000;
	return 0;
}

static int teardown(void **state)
{
	tap_uplink_destroy(t.u);
	tap_uplink_destroy(NULL);
	close(t.host);
	return 0;
}

/* What the host's side gets; false: nothing. */
static bool got(struct packet *p)
{
	uint8_t buf[4096];
	ssize_t n = recv(t.host, buf, sizeof(buf), MSG_DONTWAIT);

	if (n < 0)
		return false;
	assert_true(n > (ssize_t)sizeof(t.off));
	memcpy(&t.off, buf, sizeof(t.off));
	t.len = (size_t)n - sizeof(t.off);
	memcpy(t.last, buf + sizeof(t.off), t.len);
	assert_int_equal(packet_parse(p, t.last, t.len), PACKET_FINE);
	assert_memory_equal(p->src_mac, own_mac, 6);
	return true;
}

static void give(const struct net_offload *off, const struct frame *f)
{
	static const struct net_offload none;
	struct iovec iov[2] = { { (void *)(uintptr_t)(off ? off : &none), sizeof(none) },
				{ (void *)(uintptr_t)f->b, f->len } };

	assert_int_equal(writev(t.host, iov, 2), sizeof(none) + f->len);
	tap_uplink_read(t.u, t.now_ms);
}

static void output(const char *src, const char *dst, uint16_t dport)
{
	struct frame_ends e = { .src = frame_addr(src), .dst = frame_addr(dst) };
	static const struct net_offload none;
	struct frame f;

	frame_tcp(&f, &e, 1000, dport, PACKET_SYN);
	tap_uplink_output(t.u, &none, f.b, f.len, t.now_ms);
}

/* The router says who it is, by @from, in an answer or a question of its own. */
static void say(const char *from, const char *about, bool is_answer)
{
	struct frame_ends e = { .src = frame_addr(from), .dst = frame_addr(about) };
	struct frame f;

	memcpy(e.src_mac, router_mac, 6);
	memcpy(e.dst_mac, own_mac, 6);
	if (net_addr_is_v4(&e.src)) {
		frame_arp(&f, &e, is_answer ? 2 : 1);
	} else {
		struct net_addr target = is_answer ? e.src : e.dst;
		frame_nd(&f, &e, is_answer ? ICMP6_NA : ICMP6_NS, &target, router_mac);
	}
	give(NULL, &f);
}

static void test_next_hop(void **state)
{
	static const struct {
		const char *own, *router, *machine, *outside;
	} rows[] = { { "10.1.0.1", "10.1.0.2", "10.1.0.10", "93.184.216.34" },
		     { "fd00:1::1", "fd00:1::2", "fd00:1::10", "2606:4700::1" } };
	struct packet p;

	for (unsigned i = 0; i < 2; i++) {
		struct net_addr router = frame_addr(rows[i].router), own = frame_addr(rows[i].own);
		/* It is asked for, once a second, and a few frames wait. */
		for (unsigned n = 0; n < TAP_WAITING + 5; n++)
			output(rows[i].machine, rows[i].outside, (uint16_t)(100 + n));
		assert_true(got(&p));
		assert_true(net_addr_is_equal(&p.src, &own));
		if (i == 0)
			assert_true(p.kind == PACKET_ARP && p.arp_op == 1 &&
				    net_addr_is_equal(&p.dst, &router));
		else
			assert_true(p.icmp_type == ICMP6_NS && net_addr_is_equal(&p.nd_target, &router));
		assert_false(got(&p));
		t.now_ms += 1500;
		output(rows[i].machine, rows[i].outside, 1);
		assert_true(got(&p));
		assert_false(got(&p));
		/* Somebody else is not it. */
		say(i ? "fd00:1::77" : "10.1.0.77", rows[i].own, true);
		assert_false(got(&p));
		say(rows[i].router, rows[i].own, true);
		for (unsigned n = 0; n < TAP_WAITING; n++) {
			assert_true(got(&p));
			assert_memory_equal(p.dst_mac, router_mac, 6);
			assert_int_equal(p.dport, 100 + n);
		}
		assert_false(got(&p));
		output(rows[i].machine, rows[i].outside, 7);
		assert_true(got(&p) && p.dport == 7);
		/* Asked for again after a while, and used meanwhile. */
		t.now_ms += 40000;
		output(rows[i].machine, rows[i].outside, 8);
		assert_true(got(&p) && (p.kind == PACKET_ARP || p.icmp_type == ICMP6_NS));
		assert_true(got(&p) && p.dport == 8);
	}
}

static void test_answers(void **state)
{
	static const char *const routers[] = { "10.1.0.2", "fd00:1::2" },
				 *const machines[] = { "10.1.0.10", "fd00:1::10" },
				 *const others[] = { "10.1.0.11", "fd00:1::11" };
	struct packet p;

	for (unsigned i = 0; i < 2; i++) {
		struct net_addr machine = frame_addr(machines[i]);
		say(routers[i], others[i], false);
		assert_false(got(&p));
		say(routers[i], machines[i], false);
		assert_true(got(&p));
		assert_memory_equal(p.dst_mac, router_mac, 6);
		if (i == 0)
			assert_true(p.arp_op == 2 && net_addr_is_equal(&p.src, &machine) &&
				    !memcmp(p.arp_sha, own_mac, 6));
		else
			assert_true(p.icmp_type == ICMP6_NA && net_addr_is_equal(&p.nd_target, &machine) &&
				    p.has_nd_lladdr && !memcmp(p.nd_lladdr, own_mac, 6));
		/* Its question said who the router is. */
		output(machines[i], i ? "2606:4700::1" : "93.184.216.34", 9);
		assert_true(got(&p) && p.dport == 9);
	}
	assert_int_equal(t.received, 0);
}

static void test_frames_in(void **state)
{
	struct frame_ends e = { .src = frame_addr("93.184.216.34"), .dst = frame_addr("10.1.0.10") };
	struct net_offload off = { .flags = NET_OFF_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 };
	struct frame f;

	memcpy(e.src_mac, router_mac, 6);
	memcpy(e.dst_mac, own_mac, 6);
	frame_tcp(&f, &e, 80, 1000, PACKET_SYN | PACKET_ACK);
	give(&off, &f);
	assert_int_equal(t.received, 1);
	assert_int_equal(t.len, f.len);
	assert_int_equal(t.off.csum_start, 34);
	/* Hints that lead nowhere, a tag, another MAC, half a frame, and what is no IP. */
	off.csum_start = 600;
	off.gso_type = NET_GSO_TCP4;
	give(&off, &f);
	struct frame bad = f;
	frame_tag(&bad, 5);
	give(NULL, &bad);
	bad = f;
	memset(bad.b, 0xff, 6);
	give(NULL, &bad);
	bad = f;
	bad.b[0] ^= 2;
	give(NULL, &bad);
	for (bad = f, bad.len = 0; bad.len < f.len; bad.len++)
		give(NULL, &bad);
	bad = f;
	net_put16(bad.b + 12, 0x88b5);
	give(NULL, &bad);
	assert_int_equal(t.received, 1);
	give(NULL, &f);
	assert_int_equal(t.received, 2);
	/* Many at once: a batch, then the rest. */
	for (unsigned i = 0; i < 100; i++) {
		static const struct net_offload none;
		struct iovec iov[2] = { { (void *)(uintptr_t)&none, sizeof(none) }, { f.b, f.len } };
		assert_true(writev(t.host, iov, 2) > 0);
	}
	tap_uplink_read(t.u, t.now_ms);
	assert_in_range(t.received, 3, 101);
	tap_uplink_read(t.u, t.now_ms);
	assert_int_equal(t.received, 102);
}

static void test_interface_goes(void **state)
{
	say("10.1.0.2", "10.1.0.1", true);
	close(t.host);
	tap_uplink_read(t.u, t.now_ms);
	assert_int_equal(tap_uplink_fd(t.u), -1);
	output("10.1.0.10", "93.184.216.34", 1);
	tap_uplink_read(t.u, t.now_ms);
	t.host = dup(0);
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, setup, teardown)
	const struct CMUnitTest tests[] = { T(test_next_hop), T(test_answers), T(test_frames_in),
					    T(test_interface_goes) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
