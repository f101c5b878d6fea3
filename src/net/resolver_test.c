/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "net/fabric_testing.h"
#include "net/resolver.h"

static struct policy *policy;
static struct resolver *r;
static int server; /* plays the host's resolver */
static struct {
	unsigned n, port;
	uint8_t m[DNS_MESSAGE_MAX];
	size_t len;
} got;
static int64_t now_ms;

static void on_reply(void *ctx, unsigned port, const struct net_addr *src, const struct net_addr *dst,
		     uint16_t sport, uint16_t dport, const void *payload, size_t len)
{
	assert_int_equal(sport, 53);
	got.n++;
	got.port = port;
	memcpy(got.m, payload, len);
	got.len = len;
}

static int64_t on_now(void *ctx)
{
	return now_ms;
}

static struct net_addr on_addr6(void *ctx, unsigned port)
{
	return port == EVIL ? frame_addr("fd00::77") : policy->ports[port].v6;
}

static int set_up(void **state)
{
	struct sockaddr_storage at = { 0 };
	struct sockaddr_in *v4 = (void *)&at;
	socklen_t len = sizeof(*v4);
	struct resolver_ops ops = { on_reply, on_now, on_addr6, NULL };

	server = socket(AF_INET, SOCK_DGRAM, 0);
	v4->sin_family = AF_INET;
	v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(server, (struct sockaddr *)&at, len), 0);
	assert_int_equal(getsockname(server, (struct sockaddr *)&at, &len), 0);
	memset(&got, 0, sizeof(got));
	now_ms = 1000;
	policy = lab_policy();
	r = resolver_create(&at, &ops);
	assert_non_null(r);
	return 0;
}

static int tear_down(void **state)
{
	resolver_destroy(r);
	policy_free(policy);
	close(server);
	return 0;
}

static size_t make_query(uint8_t *m, uint16_t id, const char *name, uint16_t type)
{
	size_t at = 12;

	memset(m, 0, 12);
	net_put16(m, id);
	net_put16(m + 2, 0x0100);
	net_put16(m + 4, 1);
	for (const char *p = name; *p;) {
		size_t n = strcspn(p, ".");
		m[at++] = (uint8_t)n;
		memcpy(m + at, p, n);
		at += n;
		p += n + (p[n] == '.');
	}
	m[at++] = 0;
	net_put16(m + at, type);
	net_put16(m + at + 2, 1);
	return at + 4;
}

static void ask(unsigned port, const char *name, uint16_t type)
{
	struct packet p = { .src = policy->ports[port].v4,
			    .dst = policy->networks[0].gateway_v4,
			    .sport = 4444 };
	uint8_t m[512];
	size_t len = make_query(m, 0x1234, name, type);

	got.n = 0;
	resolver_ask(r, policy, port, &p, m, len);
}

static unsigned rcode(void)
{
	assert_int_equal(got.n, 1);
	assert_int_equal(net_get16(got.m), 0x1234);
	return got.m[3] & 15;
}

static void assert_answer(const struct net_addr *a)
{
	assert_int_equal(rcode(), 0);
	assert_int_equal(net_get16(got.m + 6), 1);
	size_t size = net_addr_is_v4(a) ? 4 : 16;
	assert_memory_equal(got.m + got.len - size, a->b + 16 - size, size);
}

static void test_machines(void **state)
{
	ask(WEB_APP, "db", DNS_A);
	assert_answer(&policy->ports[DB].v4);
	ask(WEB_APP, "DB.app.lab", DNS_AAAA);
	assert_answer(&policy->ports[DB].v6);
	struct net_addr made = frame_addr("fd00::77");
	ask(SUS, "evil", DNS_AAAA); /* the one that its guest has made */
	assert_answer(&made);
	/* The card in the own network first. */
	ask(DB, "web.lab", DNS_A);
	assert_answer(&policy->ports[WEB_APP].v4);
	ask(OPS, "web", DNS_A);
	assert_answer(&policy->ports[WEB_DMZ].v4);
	/* A rule lets it reach the machine. */
	ask(WEB_DMZ, "db", DNS_A);
	assert_answer(&policy->ports[DB].v4);
	/* To others it isn't there. */
	ask(SUS, "db", DNS_A);
	assert_int_equal(rcode(), 3);
	ask(SUS, "nobody.lab", DNS_A);
	assert_int_equal(rcode(), 3);
	ask(SUS, "evil", 16); /* another type: no record */
	assert_int_equal(rcode(), 0);
	assert_int_equal(net_get16(got.m + 6), 0);
}

static void test_refused(void **state)
{
	char byte;

	ask(SUS, "updates.example.org", DNS_A);
	assert_int_equal(rcode(), 5);
	ask(WEB_DMZ, "other.example.org", DNS_A);
	assert_int_equal(rcode(), 5);
	ask(WEB_APP, "updates.example.org", DNS_A); /* by a card without uplink */
	assert_int_equal(rcode(), 5);
	ask(WEB_DMZ, "updates.example.org", 16); /* nothing is carried out in texts */
	assert_int_equal(rcode(), 0);
	assert_int_equal(recv(server, &byte, 1, MSG_DONTWAIT), -1);
}

/* Answers the question that waits at the server with one record for the name behind a CNAME. */
static void answer(uint16_t wrong, const char *ip)
{
	uint8_t m[512];
	struct sockaddr_in from;
	socklen_t from_len = sizeof(from);
	struct pollfd pfds[RESOLVER_PENDING];
	uint32_t timeout = 1000;
	ssize_t len = recvfrom(server, m, sizeof(m), 0, (struct sockaddr *)&from, &from_len);
	size_t at = (size_t)len;

	net_put16(m, net_get16(m) ^ wrong);
	net_put16(m + 2, 0x8180);
	net_put16(m + 6, 2);
	memcpy(m + at, "\xc0\x0c\0\5\0\1\0\0\1\0\0\6\3cdn\xc0\x14", 18);
	at += 18;
	memcpy(m + at, "\xc0\x0c\0\1\0\1\0\0\0\5\0\4", 12);
	inet_pton(AF_INET, ip, m + at + 12);
	at += 16;
	got.n = 0;
	assert_int_equal(sendto(server, m, at, 0, (struct sockaddr *)&from, from_len), at);
	unsigned n = resolver_fill(r, pfds, RESOLVER_PENDING, &timeout);
	assert_int_equal(n, 1);
	assert_int_equal(poll(pfds, n, 10000), 1);
	resolver_polled(r, policy, pfds, n);
}

static bool knows_at(unsigned port, const char *ip)
{
	struct policy_names names = resolver_names(r);
	struct net_addr a = frame_addr(ip);
	uint32_t id = 0;

	for (unsigned i = 0; i < policy->nrules; i++)
		if (policy->rules[i].nnames)
			id = policy->rules[i].id;
	return names.has(names.ctx, port, id, &a);
}

static bool knows(const char *ip)
{
	return knows_at(WEB_DMZ, ip);
}

static void test_learns(void **state)
{
	ask(WEB_DMZ, "Updates.example.org", DNS_A);
	assert_int_equal(got.n, 0);
	answer(0, "93.184.216.34");
	assert_int_equal(rcode(), 0);
	assert_int_equal(got.port, WEB_DMZ);
	assert_true(knows("93.184.216.34"));
	assert_false(knows("93.184.216.35"));
	now_ms += 59000;
	assert_true(knows("93.184.216.34"));
	now_ms += 2000;
	assert_false(knows("93.184.216.34"));
	/* An answer that leads to the host. */
	ask(WEB_DMZ, "updates.example.org", DNS_A);
	answer(0, "169.254.169.254");
	assert_false(knows("169.254.169.254"));
	/* An answer with another number is none. */
	ask(WEB_DMZ, "updates.example.org", DNS_A);
	answer(1, "93.184.216.36");
	assert_int_equal(got.n, 0);
	assert_false(knows("93.184.216.36"));
}

/* What one machine has asked for opens nothing to another, and pushes out nothing of its own. */
static void test_learns_for_one(void **state)
{
	char ip[INET_ADDRSTRLEN];

	ask(WEB_DMZ, "updates.example.org", DNS_A);
	answer(0, "93.184.216.34");
	for (unsigned i = 0; i < 1000; i++) {
		now_ms++; /* later answers expire later */
		snprintf(ip, sizeof(ip), "93.184.%u.%u", i / 250, i % 250);
		ask(OPS, "updates.example.org", DNS_A);
		answer(0, ip);
	}
	assert_true(knows_at(OPS, "93.184.3.249"));
	assert_false(knows("93.184.3.249"));
	assert_true(knows("93.184.216.34"));
	assert_false(knows_at(OPS, "93.184.216.34"));
}

static void test_bounds(void **state)
{
	struct pollfd pfds[RESOLVER_PENDING];
	uint32_t timeout = 60000;

	for (unsigned i = 0; i < 100; i++)
		ask(WEB_DMZ, "updates.example.org", DNS_A);
	assert_int_equal(resolver_fill(r, pfds, RESOLVER_PENDING, &timeout), RESOLVER_PER_PORT);
	assert_int_equal(timeout, 5000);
	now_ms += 5000;
	assert_int_equal(resolver_fill(r, pfds, RESOLVER_PENDING, &timeout), 0);
}

static void test_bad_messages(void **state)
{
	uint8_t m[512];
	struct dns_question q;
	size_t len = make_query(m, 1, "updates.example.org", DNS_A);

	assert_true(dns_parse_question(m, len, &q));
	assert_string_equal(q.name, "updates.example.org");
	for (size_t cut = 0; cut < len; cut++)
		assert_false(dns_parse_question(m, cut, &q));
	m[12] = 0xc0; /* a question that points somewhere */
	assert_false(dns_parse_question(m, len, &q));
	make_query(m, 1, "updates.example.org", DNS_A);
	m[13] = '.'; /* a dot inside of a label */
	assert_false(dns_parse_question(m, len, &q));
	net_put16(m + 4, 2);
	assert_false(dns_parse_question(m, len, &q));
}

static void test_host_upstream(void **state)
{
	char path[] = "/tmp/viv-resolv.XXXXXX";
	static const char text[] =
		"# x\nsearch a\nnameserver nonsense\n  nameserver 192.0.2.7\nnameserver ::1\n";
	struct sockaddr_storage at;
	int fd = mkstemp(path);

	assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
	close(fd);
	assert_int_equal(resolver_host_upstream(path, &at), 0);
	assert_int_equal(((struct sockaddr_in *)&at)->sin_addr.s_addr, inet_addr("192.0.2.7"));
	unlink(path);
	assert_int_equal(resolver_host_upstream(path, &at), -ENOENT);
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_machines),	T(test_refused), T(test_learns),
		T(test_learns_for_one), T(test_bounds),	 T(test_bad_messages),
		T(test_host_upstream),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
