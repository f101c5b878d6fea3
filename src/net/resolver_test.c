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
static int server, tcp_server; /* play the host's resolver */
static struct {
	unsigned n, port;
	uint8_t m[DNS_MESSAGE_MAX + 1];
	size_t len;
} got;
static struct dns_client from; /* the last that asked */
static int64_t now_ms;

static void on_reply(void *ctx, const struct dns_client *to, const uint8_t *m, size_t len)
{
	assert_true(to->port == from.port && to->udp_port == from.udp_port && to->conn == from.conn);
	assert_true(net_addr_is_equal(&to->addr, &from.addr));
	assert_true(net_addr_is_equal(&to->gateway, &from.gateway));
	assert_true(len <= DNS_MESSAGE_MAX);
	got.n++;
	got.port = to->port;
	memcpy(got.m, m, len);
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

/* Both have the same port. */
static void open_servers(struct sockaddr_storage *at)
{
	struct sockaddr_in *v4 = (void *)at;
	socklen_t len = sizeof(*v4);

	for (unsigned i = 0; i < 100; i++) {
		memset(at, 0, sizeof(*at));
		v4->sin_family = AF_INET;
		v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		server = socket(AF_INET, SOCK_DGRAM, 0);
		tcp_server = socket(AF_INET, SOCK_STREAM, 0);
		assert_int_equal(bind(server, (struct sockaddr *)at, len), 0);
		assert_int_equal(getsockname(server, (struct sockaddr *)at, &len), 0);
		if (bind(tcp_server, (struct sockaddr *)at, len) == 0 && listen(tcp_server, 8) == 0)
			return;
		close(server);
		close(tcp_server);
	}
	fail_msg("no port is free for both");
}

static int set_up(void **state)
{
	struct sockaddr_storage at;
	struct resolver_ops ops = { on_reply, on_now, on_addr6, NULL };

	open_servers(&at);
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
	close(tcp_server);
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

/* An OPT record behind @len bytes, counted as additional. */
static size_t add_opt(uint8_t *m, size_t len, uint16_t size, uint32_t ttl)
{
	net_put16(m + 10, net_get16(m + 10) + 1u);
	memcpy(m + len, "\0\0\x29", 3);
	net_put16(m + len + 3, size);
	net_put32(m + len + 5, ttl);
	net_put16(m + len + 9, 0);
	return len + 11;
}

static void ask_message(unsigned port, uint32_t conn, const uint8_t *m, size_t len)
{
	from = (struct dns_client){ .port = port,
				    .gateway = policy->networks[0].gateway_v4,
				    .addr = policy->ports[port].v4,
				    .udp_port = conn ? 0 : 4444,
				    .conn = conn };
	got.n = 0;
	assert_true(resolver_ask(r, policy, &from, m, len));
}

static void ask(unsigned port, const char *name, uint16_t type)
{
	uint8_t m[512];

	ask_message(port, 0, m, make_query(m, 0x1234, name, type));
}

/* The name of the rule, for WEB_DMZ; @size: of EDNS, 0: none. */
static void ask_named(uint32_t conn, uint16_t size)
{
	uint8_t m[512];
	size_t len = make_query(m, 0x1234, "updates.example.org", DNS_A);

	if (size)
		len = add_opt(m, len, size, 0x8000);
	ask_message(WEB_DMZ, conn, m, len);
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

/* ---- the host's resolver ---- */

/* Of one socket at the most. */
static void poll_resolver(void)
{
	struct pollfd pfds[RESOLVER_PENDING];
	uint32_t timeout = 1000;
	unsigned n = resolver_fill(r, pfds, RESOLVER_PENDING, &timeout);

	assert_int_equal(n, 1);
	assert_int_equal(poll(pfds, n, 10000), 1);
	resolver_polled(r, policy, pfds, n);
}

static unsigned count_pending(void)
{
	struct pollfd pfds[RESOLVER_PENDING];
	uint32_t timeout = 1000;

	return resolver_fill(r, pfds, RESOLVER_PENDING, &timeout);
}

static struct sockaddr_in asker;

/* The question that waits at the server, without its OPT record, as an answer without records. */
static size_t take_question(uint8_t m[512], bool has_opt)
{
	socklen_t len = sizeof(asker);
	ssize_t n = recvfrom(server, m, 512, 0, (struct sockaddr *)&asker, &len);
	struct dns_question q;
	struct dns_edns edns;

	assert_true(n > 0 && dns_parse_question(m, (size_t)n, &q));
	assert_true(dns_parse_edns(m, (size_t)n, &q, &edns));
	assert_int_equal(q.end + (has_opt ? 11 : 0), n);
	assert_int_equal(edns.is_there, has_opt);
	assert_int_equal(edns.udp_size, has_opt ? DNS_UDP_MAX : 512);
	assert_int_equal(q.flags, DNS_RD);
	assert_int_equal(edns.version, 0);
	assert_false(edns.wants_dnssec); /* of a rule's name */
	net_put16(m + 2, 0x8180);
	net_put16(m + 10, 0);
	return q.end;
}

static void send_answer(const uint8_t *m, size_t len)
{
	got.n = 0;
	assert_int_equal(sendto(server, m, len, 0, (struct sockaddr *)&asker, sizeof(asker)), len);
	poll_resolver();
}

static size_t add_address(uint8_t *m, size_t len, const char *ip)
{
	net_put16(m + 6, net_get16(m + 6) + 1u);
	memcpy(m + len, "\xc0\x0c\0\1\0\1\0\0\0\5\0\4", 12);
	inet_pton(AF_INET, ip, m + len + 12);
	return len + 16;
}

/* @n of 93.184.0.0/16. */
static size_t add_addresses(uint8_t *m, size_t len, unsigned n)
{
	char ip[32];

	for (unsigned i = 0; i < n; i++) {
		snprintf(ip, sizeof(ip), "93.184.%u.%u", i / 250, i % 250 + 1);
		len = add_address(m, len, ip);
	}
	return len;
}

/* Answers the question that waits at the server with one record for the name behind a CNAME. */
static void answer(uint16_t wrong, const char *ip)
{
	uint8_t m[512];
	size_t at = take_question(m, true);

	net_put16(m, net_get16(m) ^ wrong);
	net_put16(m + 6, 1);
	memcpy(m + at, "\xc0\x0c\0\5\0\1\0\0\1\0\0\6\3cdn\xc0\x14", 18);
	send_answer(m, add_address(m, at + 18, ip));
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
	assert_int_equal(timeout, RESOLVER_UDP_MS);
	/* Over TCP nobody asks again by himself. */
	ask_named(1, 0);
	assert_int_equal(rcode(), DNS_SERVFAIL);
	from = (struct dns_client){ .port = WEB_DMZ,
				    .gateway = policy->networks[0].gateway_v4,
				    .addr = policy->ports[WEB_DMZ].v4,
				    .udp_port = 4444 };
	now_ms += RESOLVER_MS;
	got.n = 0;
	resolver_polled(r, policy, pfds, 0);
	assert_int_equal(got.n, RESOLVER_PER_PORT);
	assert_int_equal(got.m[3] & 15, DNS_SERVFAIL);
	assert_int_equal(count_pending(), 0);
}

/* Machines that have many cards, or are many, leave something for others. */
static void test_bounds_of_many(void **state)
{
	struct policy_rule any;
	struct error err;
	unsigned first = policy->nports;

	assert_int_equal(policy_parse_rule(policy, "*.* -> internet", NULL, &any, &err), 0);
	any.is_allow = true;
	assert_true(policy_add_rule(policy, 0, &any, &err) == 0);
	for (unsigned i = 0; i < policy->nnetworks; i++)
		policy->networks[i].has_uplink = true;
	int many = policy_add_machine(policy, "many", &err),
	    late = policy_add_machine(policy, "late", &err);
	for (unsigned i = 0; i < policy->nnetworks; i++)
		assert_true(policy_add_port(policy, (unsigned)many, i, NULL, &err) >= 0);
	int last = policy_add_port(policy, (unsigned)late, 0, NULL, &err);
	/* One machine by all of its cards. */
	for (unsigned i = 0; i < 400; i++)
		ask(first + i % 4, "example.net", DNS_A);
	assert_int_equal(count_pending(), RESOLVER_PENDING / 2);
	/* All others, and there is room for who comes last. */
	for (unsigned i = 0; i < 1000; i++)
		ask(i % first, "example.net", DNS_A);
	unsigned n = count_pending();
	assert_in_range(n, RESOLVER_PENDING / 2 + 1, RESOLVER_PENDING - 1);
	ask((unsigned)last, "example.net", DNS_A);
	assert_int_equal(count_pending(), n + 1);
}

/* ---- EDNS, truncation, TCP ---- */

/* What the last answer says of itself; its sections have to be whole. */
static struct dns_edns edns_of_got(void)
{
	struct dns_question q;
	struct dns_edns e;

	assert_true(dns_parse_question(got.m, got.len, &q));
	assert_true(dns_parse_edns(got.m, got.len, &q, &e));
	return e;
}

static void test_edns(void **state)
{
	uint8_t m[512];
	size_t len = make_query(m, 0x1234, "db", DNS_A);

	/* Who has none gets none. */
	ask_message(WEB_APP, 0, m, len);
	assert_false(edns_of_got().is_there);
	ask_message(WEB_APP, 0, m, add_opt(m, len, 4096, 0x8000));
	assert_int_equal(rcode(), 0);
	assert_int_equal(net_get16(got.m + 6), 1);
	struct dns_edns e = edns_of_got();
	assert_true(e.is_there && e.wants_dnssec && e.udp_size == DNS_UDP_MAX && e.version == 0);
	/* A version that is not there yet: BADVERS, whose upper bits are in the record. */
	len = make_query(m, 0x1234, "db", DNS_A);
	ask_message(WEB_APP, 0, m, add_opt(m, len, 4096, 0x10000));
	assert_int_equal(rcode(), 0);
	assert_int_equal(net_get16(got.m + 6), 0);
	assert_int_equal(got.m[got.len - 6], 1);
	assert_int_equal(edns_of_got().version, 0);
	/* Two of them, or one that is cut, and one of another name than the root's. */
	len = make_query(m, 0x1234, "db", DNS_A);
	size_t twice = add_opt(m, add_opt(m, len, 4096, 0), 4096, 0);
	ask_message(WEB_APP, 0, m, twice);
	assert_int_equal(rcode(), DNS_FORMERR);
	for (size_t cut = len; cut < twice; cut++) {
		ask_message(WEB_APP, 0, m, cut);
		assert_int_equal(rcode(), DNS_FORMERR);
	}
	len = make_query(m, 0x1234, "db", DNS_A);
	net_put16(m + 10, 1);
	memcpy(m + len, "\xc0\x0c\0\x29\x10\0\0\0\0\0\0\0", 12);
	ask_message(WEB_APP, 0, m, len + 12);
	assert_int_equal(rcode(), DNS_FORMERR);
	/* What is no question of ours. */
	len = make_query(m, 0x1234, "db", DNS_A);
	net_put16(m + 2, 0x2800);
	ask_message(WEB_APP, 0, m, len);
	assert_int_equal(rcode(), DNS_NOTIMP);
	net_put16(m + 2, 0x8000);
	assert_false(resolver_ask(r, policy, &from, m, len));
}

/* The other side's options end at the gateway. */
static void test_upstream_options(void **state)
{
	uint8_t m[512];

	for (unsigned edns = 0; edns < 2; edns++) {
		ask_named(0, edns ? 1232 : 0);
		size_t len = add_address(m, take_question(m, true), "93.184.0.1");
		len = add_opt(m, len, 512, 0x8000);
		/* Behind it one more, and it has an option. */
		net_put16(m + len - 2, 8);
		memcpy(m + len, "\0\x0a\0\4abcd", 8);
		len += 8;
		net_put16(m + 10, 2);
		memcpy(m + len, "\xc0\x0c\0\1\0\1\0\0\0\5\0\4\1\2\3\4", 16);
		send_answer(m, len + 16);
		assert_int_equal(rcode(), 0);
		assert_int_equal(net_get16(got.m + 6), 1);
		assert_int_equal(net_get16(got.m + 10), edns);
		struct dns_edns e = edns_of_got();
		assert_true(e.is_there == edns && e.wants_dnssec == edns);
		assert_int_equal(e.udp_size, edns ? DNS_UDP_MAX : 512);
		assert_true(knows("93.184.0.1"));
		assert_false(knows("1.2.3.4"));
	}
	/* Bytes behind the last record. */
	ask_named(0, 1232);
	size_t end = add_address(m, take_question(m, true), "93.184.0.1");
	memset(m + end, 0, 20);
	send_answer(m, end + 20);
	assert_int_equal(got.len, end + 11);
	assert_true(edns_of_got().is_there);
	/* Its extended errors are about what we asked. */
	ask_named(0, 0);
	send_answer(m, add_opt(m, take_question(m, true), 512, 0x01000000));
	assert_int_equal(rcode(), DNS_SERVFAIL);
}

/* A resolver from before EDNS. */
static void test_plain_upstream(void **state)
{
	uint8_t m[512];

	for (unsigned code = DNS_FORMERR; code <= DNS_NOTIMP; code += DNS_NOTIMP - DNS_FORMERR) {
		ask_named(0, 1232);
		size_t len = take_question(m, true);
		net_put16(m + 2, 0x8180 | code);
		send_answer(m, len);
		assert_int_equal(got.n, 0);
		send_answer(m, add_address(m, take_question(m, false), "93.184.0.1"));
		assert_int_equal(rcode(), 0);
		assert_true(edns_of_got().is_there);
		/* It may mean it, too. */
		ask_named(0, 1232);
		take_question(m, true);
		net_put16(m + 2, 0x8180 | code);
		send_answer(m, len);
		len = take_question(m, false);
		net_put16(m + 2, 0x8180 | code);
		send_answer(m, len);
		assert_int_equal(rcode(), code);
	}
}

static void test_truncation(void **state)
{
	uint8_t m[DNS_UDP_MAX];
	/* The question is 37 bytes, an address 16, the gateway's record 11, and so is one more that the server adds. */
	static const struct {
		uint16_t size;
		uint32_t conn;
		unsigned addresses;
		bool has_more, is_cut;
	} rows[] = {
		{ 0, 0, 29, false, false },    { 0, 0, 30, false, true },
		{ 100, 0, 29, false, false },  { 100, 0, 30, false, true }, /* the least is 512 */
		{ 512, 0, 29, false, false },  { 512, 0, 29, true, true },
		{ 600, 0, 34, false, false },  { 600, 0, 35, false, true },
		{ 4096, 0, 74, false, false }, { 4096, 0, 74, true, true }, /* the most is 1232 */
		{ 0, 9, 74, true, false },     { 512, 9, 74, true, false }, /* over TCP */
	};

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		unsigned n = rows[i].addresses;
		resolver_forget(r, WEB_DMZ);
		ask_named(rows[i].conn, rows[i].size);
		size_t len = add_addresses(m, take_question(m, true), n);
		if (rows[i].has_more) {
			memcpy(m + len, "\0\0\x10\0\1\0\0\0\5\0\0", 11);
			net_put16(m + 10, 1);
			len += 11;
		}
		send_answer(m, len);
		assert_int_equal(rcode(), 0);
		assert_int_equal(!!(got.m[2] & 2), rows[i].is_cut);
		assert_int_equal(net_get16(got.m + 6), rows[i].is_cut ? 0 : n);
		assert_int_equal(edns_of_got().is_there, rows[i].size != 0);
		assert_true(rows[i].conn || got.len <= MAX((unsigned)rows[i].size, 512u));
		/* What the guest was not told of is not open. */
		assert_int_equal(knows("93.184.0.1"), !rows[i].is_cut);
	}
}

static size_t read_all(int fd, uint8_t *buf, size_t len)
{
	size_t n = 0;

	while (n < len) {
		ssize_t k = recv(fd, buf + n, len - n, 0);
		assert_true(k > 0);
		n += (size_t)k;
	}
	return n;
}

/* The resolver asks over TCP: the connection, with the question read into @m as an answer without records. */
static int take_tcp_question(uint8_t m[512], size_t *len, bool has_opt)
{
	uint8_t length[2];
	struct dns_question q;

	poll_resolver(); /* it is connected, and asks */
	int fd = accept(tcp_server, NULL, NULL);
	assert_true(fd >= 0);
	read_all(fd, length, 2);
	size_t n = read_all(fd, m, net_get16(length));
	assert_true(dns_parse_question(m, n, &q));
	assert_int_equal(n, q.end + (has_opt ? 11 : 0));
	net_put16(m + 2, 0x8180);
	net_put16(m + 10, 0);
	*len = q.end;
	return fd;
}

/* In pieces: the length alone, and the rest at once or twice. */
static void send_tcp_answer(int fd, const uint8_t *m, size_t len, size_t first)
{
	uint8_t length[2];

	got.n = 0;
	net_put16(length, (unsigned)len);
	assert_int_equal(send(fd, length, 1, 0), 1);
	poll_resolver();
	assert_int_equal(send(fd, length + 1, 1, 0), 1);
	poll_resolver();
	assert_int_equal(send(fd, m, first, 0), first);
	poll_resolver();
	assert_int_equal(got.n, 0);
	assert_int_equal(send(fd, m + first, len - first, 0), len - first);
	while (!got.n)
		poll_resolver();
}

static void test_tcp_upstream(void **state)
{
	static uint8_t m[DNS_MESSAGE_MAX];
	size_t len;

	/* Truncated: over TCP it is asked for again over TCP; over UDP the guest is told. */
	ask_named(0, 0);
	len = take_question(m, true);
	net_put16(m + 2, 0x8380);
	send_answer(m, len);
	assert_int_equal(rcode(), 0);
	assert_int_equal(got.m[2] & 2, 2);
	assert_int_equal(count_pending(), 0);
	for (unsigned n = 1; n < 4094; n += 1000) {
		ask_named(5, n == 1 ? 0 : 1232);
		len = take_question(m, true);
		net_put16(m + 2, 0x8380);
		net_put16(m + 6, 7); /* of which there are none: it is cut */
		send_answer(m, len);
		assert_int_equal(got.n, 0);
		int fd = take_tcp_question(m, &len, true);
		len = add_addresses(m, len, n);
		send_tcp_answer(fd, m, len, len / 2);
		assert_int_equal(rcode(), 0);
		assert_int_equal(got.m[2] & 2, 0);
		assert_int_equal(net_get16(got.m + 6), n);
		assert_int_equal(knows("93.184.0.1"), n == 1); /* of very many not all are kept */
		assert_int_equal(count_pending(), 0);
		close(fd);
	}
	/* 65535 bytes: the gateway's own record has no place. */
	ask_named(5, 1232);
	len = take_question(m, true);
	net_put16(m + 2, 0x8380);
	send_answer(m, len);
	int fd = take_tcp_question(m, &len, true);
	net_put16(m + 6, 1);
	memcpy(m + len, "\xc0\x0c\0\x10\0\1\0\0\0\5", 10);
	net_put16(m + len + 10, (unsigned)(sizeof(m) - len - 12));
	send_tcp_answer(fd, m, sizeof(m), 100);
	assert_int_equal(rcode(), 0);
	assert_int_equal(got.m[2] & 2, 2);
	assert_int_equal(net_get16(got.m + 6), 0);
	close(fd);
}

static void test_bad_tcp_upstream(void **state)
{
	uint8_t m[512];
	size_t len;

	for (unsigned i = 0; i < 4; i++) {
		ask_named(5, 0);
		len = take_question(m, true);
		net_put16(m + 2, 0x8380);
		send_answer(m, len);
		int fd = take_tcp_question(m, &len, true);
		if (i == 1) { /* another number */
			net_put16(m, net_get16(m) ^ 1);
			send_tcp_answer(fd, m, len, 5);
		} else if (i == 2) { /* it is cut again */
			net_put16(m + 2, 0x8380);
			send_tcp_answer(fd, m, len, 5);
		} else if (i == 3) { /* nonsense */
			net_put16(m + 6, 1);
			send_tcp_answer(fd, m, len, 5);
		} else { /* half an answer */
			assert_int_equal(send(fd, "\0", 1, 0), 1);
			poll_resolver();
		}
		close(fd);
		if (!got.n)
			poll_resolver();
		assert_int_equal(rcode(), DNS_SERVFAIL);
		assert_int_equal(count_pending(), 0);
	}
	/* Nobody listens. */
	close(tcp_server);
	tcp_server = -1;
	ask_named(5, 0);
	len = take_question(m, true);
	net_put16(m + 2, 0x8380);
	send_answer(m, len);
	if (!got.n)
		poll_resolver();
	assert_int_equal(rcode(), DNS_SERVFAIL);
	close(server);
	server = -1;
	ask_named(0, 0);
	while (!got.n)
		poll_resolver();
	assert_int_equal(rcode(), DNS_SERVFAIL);
}

/* No answer over UDP: it may not get through. */
static void test_silent_upstream(void **state)
{
	uint8_t m[512];
	size_t len;

	ask_named(0, 0);
	take_question(m, true);
	now_ms += RESOLVER_UDP_MS - 1;
	resolver_polled(r, policy, NULL, 0);
	assert_int_equal(count_pending(), 1);
	now_ms++;
	resolver_polled(r, policy, NULL, 0);
	int fd = take_tcp_question(m, &len, true);
	send_tcp_answer(fd, m, add_address(m, len, "93.184.0.1"), 3);
	assert_int_equal(rcode(), 0);
	assert_true(knows("93.184.0.1"));
	close(fd);
	ask_named(0, 0);
	take_question(m, true);
	now_ms += RESOLVER_UDP_MS;
	resolver_polled(r, policy, NULL, 0);
	fd = take_tcp_question(m, &len, true);
	now_ms += RESOLVER_MS - RESOLVER_UDP_MS;
	assert_int_equal(got.n, 0);
	resolver_polled(r, policy, NULL, 0);
	assert_int_equal(rcode(), DNS_SERVFAIL);
	close(fd);
}

/* A resolver from before EDNS is asked without over TCP, too. */
static void test_plain_tcp_upstream(void **state)
{
	uint8_t m[512], length[2];
	size_t len;

	/* Known from an answer over UDP ... */
	ask_named(7, 1232);
	len = take_question(m, true);
	net_put16(m + 2, 0x8180 | DNS_FORMERR);
	send_answer(m, len);
	len = take_question(m, false);
	net_put16(m + 2, 0x8380);
	send_answer(m, len);
	int fd = take_tcp_question(m, &len, false);
	send_tcp_answer(fd, m, add_address(m, len, "93.184.0.1"), 3);
	assert_int_equal(rcode(), 0);
	close(fd);
	/* ... or not before there is one over TCP. */
	ask_named(7, 1232);
	take_question(m, true);
	now_ms += RESOLVER_UDP_MS;
	resolver_polled(r, policy, NULL, 0);
	fd = take_tcp_question(m, &len, true);
	net_put16(m + 2, 0x8180 | DNS_FORMERR);
	net_put16(length, (unsigned)len);
	assert_int_equal(send(fd, length, 2, 0), 2);
	poll_resolver();
	assert_int_equal(send(fd, m, len, 0), len);
	poll_resolver();
	close(fd);
	assert_int_equal(got.n, 0);
	fd = take_tcp_question(m, &len, false);
	send_tcp_answer(fd, m, add_address(m, len, "93.184.0.2"), 3);
	assert_int_equal(rcode(), 0);
	assert_true(knows("93.184.0.2"));
	close(fd);
}

/* Another machine at the same place. */
static void test_forget(void **state)
{
	ask_named(0, 0);
	answer(0, "93.184.0.1");
	assert_true(knows("93.184.0.1"));
	ask_named(0, 0);
	assert_int_equal(count_pending(), 1);
	resolver_forget(r, WEB_DMZ);
	assert_int_equal(count_pending(), 0);
	assert_false(knows("93.184.0.1"));
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

/* A name has 253 bytes in text at most, which are 255 of a message (RFC 1035, 2.3.4). */
static void test_long_names(void **state)
{
	char name[DNS_NAME_MAX + 2];
	uint8_t m[512];
	struct dns_question q;

	for (unsigned i = 0; i < sizeof(name) - 1; i++)
		name[i] = i % 64 == 63 ? '.' : 'a';
	name[DNS_NAME_MAX + 1] = 0;
	assert_false(dns_parse_question(m, make_query(m, 1, name, DNS_A), &q));
	name[DNS_NAME_MAX] = 0;
	assert_true(dns_parse_question(m, make_query(m, 1, name, DNS_A), &q));
	assert_string_equal(q.name, name);
	/* And it has an answer, with and without EDNS. */
	ask(WEB_DMZ, name, DNS_A);
	assert_int_equal(rcode(), DNS_REFUSED);
	ask_message(WEB_DMZ, 0, m, add_opt(m, make_query(m, 0x1234, name, DNS_A), 1232, 0));
	assert_int_equal(rcode(), DNS_REFUSED);
	assert_int_equal(got.len, DNS_QUERY_MAX);
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
		T(test_machines),
		T(test_refused),
		T(test_learns),
		T(test_learns_for_one),
		T(test_bounds),
		T(test_bad_messages),
		T(test_long_names),
		T(test_bounds_of_many),
		T(test_host_upstream),
		T(test_edns),
		T(test_upstream_options),
		T(test_plain_upstream),
		T(test_truncation),
		T(test_tcp_upstream),
		T(test_bad_tcp_upstream),
		T(test_silent_upstream),
		T(test_plain_tcp_upstream),
		T(test_forget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
