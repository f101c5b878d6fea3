/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lab's way to the world, in a network namespace whose loopback has the addresses of a small internet: web servers, a
 * resolver, and what no machine may reach.  A packet socket sees all that the lab sends.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "net/dns.h"
#include "net/labd.h"
#include "net/netns_testing.h"
#include "net/offload.h"
#include "net/testing.h"

#define LIMIT_MS 20000
#define FILES	 192	   /* descriptors of the lab */
#define NAMED	 "5.5.5.5" /* what updates.example.org is */
#define OTHER	 "6.6.6.6"
#define LONG	 "7.7.7.7" /* what long.example.org is, among much else */
#define OTHER6	 "2600::6"

static const char file[] =
	"networks:\n"
	"  dmz: {subnet: 10.1.0.0/24, uplink: nat}\n"
	"  app: {subnet: 10.2.0.0/24}\n"
	"machines:\n"
	"  web: {kernel: k, networks: [dmz], forward: ['8080:80', 'udp:5353:53']}\n"
	"  db: {kernel: k, networks: [app]}\n"
	"allow:\n"
	"  - dmz.web -> internet : {names: [updates.example.org, long.example.org], ports: [80]}\n"
	"  - dmz.web -> internet : udp/99\n"
	"  - dmz.web -> internet : tcp/8081\n";

static struct {
	pid_t pid;
	char dir[64], path[96], resolv[96];
	struct lab *lab;
	int web, listener, dns, dns_tcp, sniffer;
} t = { .sniffer = -1 };
static struct error err;

/* ---- the namespace ---- */

/* struct in6_ifreq of linux/ipv6.h, which does not go together with netinet/in.h. */
static void add_address6(const char *ip)
{
	struct {
		struct in6_addr addr;
		uint32_t prefix;
		int index;
	} r = { .prefix = 128, .index = (int)if_nametoindex("lo") };
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);

	inet_pton(AF_INET6, ip, &r.addr);
	assert_int_equal(ioctl(fd, SIOCSIFADDR, &r), 0);
	/* The kernel's own thread makes it one that sockets may have. */
	const struct sockaddr_in6 a = { .sin6_family = AF_INET6, .sin6_addr = r.addr };
	int bound = -1;

	for (unsigned i = 0; i < 200 && bound < 0; i++) {
		bound = bind(fd, (const struct sockaddr *)&a, sizeof(a));
		if (bound < 0)
			usleep(10000);
	}
	assert_int_equal(bound, 0);
	close(fd);
}

/* False: this host does not let it. */
static bool enter_namespace(void)
{
	if (!netns_enter())
		return false;
	assert_true(netns_up("lo"));
	assert_true(netns_add_address("lo:1", NAMED, NULL));
	assert_true(netns_add_address("lo:2", OTHER, NULL));
	assert_true(netns_add_address("lo:3", LONG, NULL));
	add_address6(OTHER6);
	return true;
}

static int listen_at(int type, const char *ip, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	bool is_v6 = strchr(ip, ':');
	int fd = socket(is_v6 ? AF_INET6 : AF_INET, type, 0), one = 1;

	inet_pton(is_v6 ? AF_INET6 : AF_INET, ip, is_v6 ? (void *)&a6.sin6_addr : (void *)&a.sin_addr);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	assert_int_equal(is_v6 ? bind(fd, (struct sockaddr *)&a6, sizeof(a6))
			       : bind(fd, (struct sockaddr *)&a, sizeof(a)),
			 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(fd, 8), 0);
	return fd;
}

/* ---- the lab ---- */

static void parse(struct lab **l)
{
	if (lab_parse(l, file, strlen(file), "file", "test", &err) < 0)
		fail_msg("%s", err.text);
}

static int dial(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(at.sun_path, sizeof(at.sun_path), "%s", t.path);
	assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	return fd;
}

static void start_lab(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int ready[2], fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	char text[512] = "";

	snprintf(t.dir, sizeof(t.dir), "/tmp/viv-uplink.XXXXXX");
	assert_non_null(mkdtemp(t.dir));
	snprintf(t.path, sizeof(t.path), "%s/sock", t.dir);
	snprintf(t.resolv, sizeof(t.resolv), "%s/resolv.conf", t.dir);
	int conf = open(t.resolv, O_WRONLY | O_CREAT, 0600);
	assert_true(dprintf(conf, "nameserver 127.0.0.1\n") > 0);
	close(conf);
	snprintf(at.sun_path, sizeof(at.sun_path), "%s", t.path);
	assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(pipe(ready), 0);
	parse(&t.lab);
	t.pid = fork();
	if (!t.pid) {
		const struct rlimit files = { FILES, FILES };
		setrlimit(RLIMIT_NOFILE, &files);
		struct labd_config cfg = { .control_fd = fd, .ready_fd = ready[1], .resolv_conf = t.resolv };
		parse(&cfg.lab);
		close(t.listener);
		close(t.dns);
		close(t.dns_tcp);
		_exit(labd_main(&cfg));
	}
	close(fd);
	close(ready[1]);
	assert_true(read(ready[0], text, sizeof(text) - 1) > 0);
	assert_string_equal(text, "ok\n");
	close(ready[0]);
	uint8_t mac[6];
	int control = dial();
	assert_int_equal(labd_attach(control, &(struct labd_attach){ "web", "dmz", NULL }, mac,
				     &t.web, NULL, &err),
			 0);
	close(control);
}

static void stop_lab(void)
{
	int status, fd = dial();

	assert_true(dprintf(fd, "{\"cmd\": \"stop\"}\n") > 0);
	assert_int_equal(waitpid(t.pid, &status, 0), t.pid);
	assert_int_equal(status, 0);
	close(fd);
	close(t.web);
	unlink(t.path);
	unlink(t.resolv);
	rmdir(t.dir);
	lab_free(t.lab);
}

/* ---- the machine ---- */

static const struct policy_port *card(void)
{
	return &t.lab->policy->ports[0];
}

static struct frame_ends ends(const char *dst)
{
	const struct policy_network *n = &t.lab->policy->networks[0];
	struct frame_ends e = { .src = strchr(dst, ':') ? card()->v6 : card()->v4,
				.dst = frame_addr(dst) };

	memcpy(e.src_mac, card()->mac, 6);
	memcpy(e.dst_mac, n->gateway_mac, 6);
	return e;
}

static void send_frame(const struct frame *f)
{
	struct net_offload off = { 0 };
	struct iovec iov[2] = { { &off, sizeof(off) }, { (void *)(uintptr_t)f->b, f->len } };

	assert_int_equal(writev(t.web, iov, 2), sizeof(off) + f->len);
}

/* The next packet of @proto for port @dport, in @out with its frame in @f. */
static bool await(uint8_t proto, uint16_t dport, struct packet *out, struct frame *f, int limit_ms)
{
	for (;;) {
		struct pollfd pfd = { .fd = t.web, .events = POLLIN };
		struct net_offload off;
		struct iovec iov[2] = { { &off, sizeof(off) }, { f->b, sizeof(f->b) } };
		if (poll(&pfd, 1, limit_ms) <= 0)
			return false;
		ssize_t n = readv(t.web, iov, 2);
		f->len = n > (ssize_t)sizeof(off) ? (size_t)n - sizeof(off) : 0;
		if (packet_parse(out, f->b, f->len) == PACKET_FINE && out->proto == proto &&
		    (proto == IP_ICMP || out->dport == dport))
			return true;
	}
}

/* A SYN to @dst: the flags of what comes back, 0: an ICMP error. */
static uint8_t knock(const char *dst, uint16_t port)
{
	static uint16_t sport = 2000;
	struct frame_ends e = ends(dst);
	struct frame f;
	struct packet p;

	frame_tcp(&f, &e, ++sport, port, PACKET_SYN);
	send_frame(&f);
	for (;;) {
		struct pollfd pfd = { .fd = t.web, .events = POLLIN };
		if (poll(&pfd, 1, LIMIT_MS) <= 0)
			fail_msg("no answer from %s:%u", dst, port);
		struct net_offload off;
		struct iovec iov[2] = { { &off, sizeof(off) }, { f.b, sizeof(f.b) } };
		ssize_t n = readv(t.web, iov, 2);
		if (n <= (ssize_t)sizeof(off) ||
		    packet_parse(&p, f.b, (size_t)n - sizeof(off)) != PACKET_FINE)
			continue;
		if (p.proto == IP_TCP && p.dport == sport)
			return p.tcp_flags;
		if ((p.proto == IP_ICMP && p.icmp_type == ICMP_UNREACHABLE) ||
		    (p.proto == IP_ICMP6 && p.icmp_type == ICMP6_UNREACHABLE))
			return 0;
	}
}

/* ---- what the host sees ---- */

static void start_sniffing(void)
{
	t.sniffer = socket(AF_PACKET, SOCK_DGRAM | SOCK_NONBLOCK, htons(ETH_P_ALL));
	assert_true(t.sniffer >= 0);
}

/* Packets to @ip since the last time. */
static unsigned count_sniffed(const char *ip)
{
	struct net_addr wanted = frame_addr(ip);
	uint8_t b[2048];
	unsigned n = 0;
	ssize_t len;

	while ((len = recv(t.sniffer, b, sizeof(b), 0)) > 0)
		n += len >= 20 && b[0] >> 4 == 4 && memcmp(b + 16, wanted.b + 12, 4) == 0;
	return n;
}

static void test_names_open_the_way(void **state)
{
	struct frame_ends e = ends("10.1.0.1");
	uint8_t q[] = "\x12\x34\1\0\0\1\0\0\0\0\0\0\7updates\7example\3org\0\0\1\0\1", m[512];
	struct sockaddr_in from;
	socklen_t from_len = sizeof(from);
	struct frame f;
	struct packet p;

	start_sniffing();
	/* Before the name was asked for, and to what it is not: refused, and not a packet leaves. */
	assert_int_equal(knock(NAMED, 80), 0);
	assert_int_equal(knock(OTHER, 80), 0);
	assert_int_equal(count_sniffed(NAMED), 0);
	frame_udp(&f, &e, 3333, 53, q, sizeof(q) - 1);
	send_frame(&f);
	ssize_t len = recvfrom(t.dns, m, sizeof(m), 0, (struct sockaddr *)&from, &from_len);
	assert_int_equal(len, sizeof(q) - 1 + DNS_OPT_BYTES); /* with EDNS of the gateway's own */
	len = sizeof(q) - 1;
	net_put16(m + 2, 0x8180);
	net_put16(m + 6, 1);
	net_put16(m + 10, 0);
	memcpy(m + len, "\xc0\x0c\0\1\0\1\0\0\1\0\0\4\5\5\5\5", 16);
	sendto(t.dns, m, (size_t)len + 16, 0, (struct sockaddr *)&from, from_len);
	assert_true(await(IP_UDP, 3333, &p, &f, LIMIT_MS));
	assert_int_equal(net_get16(p.data + p.payload), 0x1234);
	/* Now it is open, by its port only; the rest of the world stays closed. */
	assert_int_equal(knock(NAMED, 80), PACKET_SYN | PACKET_ACK);
	int fd = accept(t.listener, NULL, NULL);
	assert_true(fd >= 0);
	close(fd);
	count_sniffed(NAMED);
	assert_int_equal(knock(NAMED, 81), 0);
	assert_int_equal(knock(OTHER, 80), 0);
	assert_int_equal(count_sniffed(OTHER), 0);
}

/* ---- names over TCP ---- */

/* A connection of the guest's to its gateway's DNS. */
static struct {
	uint16_t port;
	uint32_t next, expected;
} tcp;

static void send_tcp(uint8_t flags, const void *data, size_t len)
{
	struct frame_ends e = ends("10.1.0.1");
	uint8_t b[20 + 512] = { 0 };
	struct frame f;

	net_put16(b, tcp.port);
	net_put16(b + 2, 53);
	net_put32(b + 4, tcp.next);
	net_put32(b + 8, tcp.expected);
	b[12] = 0x50;
	b[13] = flags;
	net_put16(b + 14, 64240);
	if (len)
		memcpy(b + 20, data, len);
	packet_put_sum(b, 20 + len, 16, &e.src, &e.dst, IP_TCP);
	frame_ip(&f, &e, IP_TCP, b, 20 + len);
	send_frame(&f);
	tcp.next += (uint32_t)len + !!(flags & PACKET_SYN);
}

/* What comes next on it, behind what was there. */
static size_t receive_tcp(uint8_t *out, size_t cap)
{
	struct frame f;
	struct packet p;
	size_t len;

	do {
		assert_true(await(IP_TCP, tcp.port, &p, &f, LIMIT_MS));
		len = p.end - p.payload;
	} while (!len || net_get32(p.data + p.l4 + 4) != tcp.expected);
	assert_true(len <= cap);
	memcpy(out, p.data + p.payload, len);
	tcp.expected += (uint32_t)len;
	send_tcp(PACKET_ACK, NULL, 0);
	return len;
}

static void read_whole(int fd, uint8_t *out, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = read(fd, out + at, len - at);
		assert_true(n > 0);
		at += (size_t)n;
	}
}

/* The host's resolver: truncated over UDP; over TCP LONG, and 3000 bytes of text that come first. */
static void answer_long(void)
{
	static uint8_t b[4096];
	uint8_t m[512];
	struct sockaddr_in from;
	socklen_t from_len = sizeof(from);
	ssize_t n = recvfrom(t.dns, m, sizeof(m), 0, (struct sockaddr *)&from, &from_len);

	assert_true(n > 12);
	net_put16(m + 2, 0x8380);
	net_put16(m + 10, 0);
	sendto(t.dns, m, (size_t)n - DNS_OPT_BYTES, 0, (struct sockaddr *)&from, from_len);
	int fd = accept(t.dns_tcp, NULL, NULL);
	assert_true(fd >= 0);
	read_whole(fd, b, 2);
	size_t len = net_get16(b);
	read_whole(fd, b + 2, len);
	size_t at = 2 + len - DNS_OPT_BYTES;
	net_put16(b + 4, 0x8180);
	net_put16(b + 8, 2);
	net_put16(b + 12, 0);
	memcpy(b + at, "\xc0\x0c\0\x10\0\1\0\0\1\0", 10);
	net_put16(b + at + 10, 3000);
	at += 12 + 3000;
	memcpy(b + at, "\xc0\x0c\0\1\0\1\0\0\1\0\0\4\7\7\7\7", 16);
	at += 16;
	net_put16(b, (unsigned)at - 2);
	assert_int_equal(write(fd, b, at), at);
	close(fd);
}

static void test_names_over_tcp_open_the_way(void **state)
{
	static const uint8_t q[] =
		"\0\x22\x12\x34\1\0\0\1\0\0\0\0\0\0\4long\7example\3org\0\0\1\0\1";
	uint8_t got[4096];
	struct frame f;
	struct packet p;
	size_t len = 0;
	int listener = listen_at(SOCK_STREAM, LONG, 80);

	assert_int_equal(knock(LONG, 80), 0);
	tcp.port = 999;
	tcp.next = 1000;
	send_tcp(PACKET_SYN, NULL, 0);
	assert_true(await(IP_TCP, tcp.port, &p, &f, LIMIT_MS));
	assert_int_equal(p.tcp_flags, PACKET_SYN | PACKET_ACK);
	tcp.expected = net_get32(p.data + p.l4 + 4) + 1;
	send_tcp(PACKET_ACK, q, sizeof(q) - 1);
	answer_long();
	do
		len += receive_tcp(got + len, sizeof(got) - len);
	while (len < 2 || len < 2u + net_get16(got));
	assert_int_equal(len, 2 + 34 + 12 + 3000 + 16);
	assert_int_equal(net_get16(got + 2), 0x1234);
	assert_memory_equal(got + len - 4, "\7\7\7\7", 4);
	assert_int_equal(knock(LONG, 80), PACKET_SYN | PACKET_ACK);
	assert_int_equal(knock(LONG, 81), 0);
	close(listener);
	send_tcp(PACKET_RST | PACKET_ACK, NULL, 0);
}

static void test_host_is_closed(void **state)
{
	static const char *const closed[] = { "127.0.0.1", "169.254.169.254", "10.1.0.2",
					      "10.2.0.10", "192.168.1.1" };
	int fd = listen_at(SOCK_STREAM, "127.0.0.1", 80);

	count_sniffed(NAMED);
	for (unsigned i = 0; i < ARRAY_SIZE(closed); i++) {
		assert_int_equal(knock(closed[i], 80), 0);
		assert_int_equal(count_sniffed(closed[i]), 0);
	}
	close(fd);
}

/* A datagram to a server outside, and its answer; both IP versions. */
static void test_datagrams(void **state)
{
	static const char *const servers[] = { OTHER, OTHER6 };

	for (unsigned i = 0; i < ARRAY_SIZE(servers); i++) {
		int fd = listen_at(SOCK_DGRAM, servers[i], 99);
		struct frame_ends e = ends(servers[i]);
		struct sockaddr_storage from;
		socklen_t from_len = sizeof(from);
		struct frame f;
		struct packet p;
		char text[16] = "";

		frame_udp(&f, &e, 4000, 99, "ask", 3);
		send_frame(&f);
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		assert_int_equal(poll(&pfd, 1, LIMIT_MS), 1);
		assert_int_equal(
			recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&from, &from_len), 3);
		assert_int_equal(sendto(fd, "answer", 6, 0, (struct sockaddr *)&from, from_len), 6);
		assert_true(await(IP_UDP, 4000, &p, &f, LIMIT_MS));
		assert_true(net_addr_is_equal(&p.src, &e.dst));
		assert_memory_equal(p.data + p.payload, "answer", 6);
		close(fd);
	}
}

/* A machine that opens ever more sockets of the host's has its share of them, and the lab serves on. */
static void test_many_sockets(void **state)
{
	enum { FLOWS = FILES + 70, STEP_MS = 7 }; /* 100 at once, then 100 a second: fabric.h */
	int fd = listen_at(SOCK_DGRAM, OTHER, 99);
	struct frame_ends e = ends(OTHER);
	char text[16];
	unsigned arrived = 0;

	for (unsigned i = 0; i < FLOWS; i++) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		struct frame f;
		frame_udp(&f, &e, (uint16_t)(10000 + i), 99, "ask", 3);
		send_frame(&f);
		poll(NULL, 0, STEP_MS);
		while (poll(&pfd, 1, 0) == 1 && recv(fd, text, sizeof(text), 0) == 3)
			arrived++;
	}
	assert_in_range(arrived, 100, FILES);
	assert_int_equal(waitpid(t.pid, NULL, WNOHANG), 0);
	close(fd);
}

static void test_tcp_over_ipv6(void **state)
{
	int fd = listen_at(SOCK_STREAM, OTHER6, 8081);

	assert_int_equal(knock(OTHER6, 8081), PACKET_SYN | PACKET_ACK);
	assert_int_equal(knock(OTHER6, 8082), 0);
	/* The host by its other names. */
	assert_int_equal(knock("::1", 8081), 0);
	assert_int_equal(knock("fd00:ec2::254", 8081), 0);
	close(fd);
}

static void test_forward(void **state)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(8080) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct frame f;
	struct packet p;

	inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_true(await(IP_TCP, 80, &p, &f, LIMIT_MS));
	assert_int_equal(p.tcp_flags, PACKET_SYN);
	assert_true(net_addr_is_equal(&p.src, &t.lab->policy->networks[0].uplink_v4));
	/* The machine refuses: the caller's connection ends.  Nothing else can be sent to the caller's address. */
	struct frame_ends e = ends("10.1.0.2");
	struct frame answer;
	frame_tcp(&answer, &e, 80, p.sport, PACKET_RST | PACKET_ACK);
	net_put32(answer.b + 14 + 20 + 8, net_get32(p.data + p.l4 + 4) + 1);
	send_frame(&answer);
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	char byte;
	assert_int_equal(poll(&pfd, 1, LIMIT_MS), 1);
	assert_true(read(fd, &byte, 1) <= 0);
	close(fd);
}

/* The answer finds its way back to the caller on this host. */
static void test_udp_forward(void **state)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(5353) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct frame f, answer;
	struct packet p;
	char text[16] = "";

	inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
	assert_int_equal(sendto(fd, "ask", 3, 0, (struct sockaddr *)&a, sizeof(a)), 3);
	assert_true(await(IP_UDP, 53, &p, &f, LIMIT_MS));
	assert_true(net_addr_is_equal(&p.src, &t.lab->policy->networks[0].uplink_v4));
	struct frame_ends e = ends("10.1.0.2");
	frame_udp(&answer, &e, 53, p.sport, "answer", 6);
	send_frame(&answer);
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	assert_int_equal(poll(&pfd, 1, LIMIT_MS), 1);
	assert_int_equal(recv(fd, text, sizeof(text), 0), 6);
	close(fd);
}

/* A rule with a name, added while it runs: closed until somebody asks for the name. */
static void test_live_name(void **state)
{
	static const char line[] =
		"{\"cmd\": \"allow\", \"rule\": \"dmz.web -> internet\", \"what\": \"tcp/80\", "
		"\"names\": [\"*.example.net\"]}\n";
	char reply[512] = "";
	int fd = dial();

	assert_int_equal(write(fd, line, sizeof(line) - 1), sizeof(line) - 1);
	assert_true(read(fd, reply, sizeof(reply) - 1) > 0);
	assert_non_null(strstr(reply, "\"ok\":true"));
	close(fd);
	assert_int_equal(knock(OTHER, 80), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names_open_the_way),
		cmocka_unit_test(test_names_over_tcp_open_the_way),
		cmocka_unit_test(test_host_is_closed),
		cmocka_unit_test(test_datagrams),
		cmocka_unit_test(test_tcp_over_ipv6),
		cmocka_unit_test(test_forward),
		cmocka_unit_test(test_udp_forward),
		cmocka_unit_test(test_live_name),
		cmocka_unit_test(test_many_sockets), /* the last: its sockets stay for a while */
	};

	signal(SIGPIPE, SIG_IGN);
	if (!enter_namespace()) {
		printf("skipped: this host gives no network namespace: %s\n", strerror(errno));
		return 77;
	}
	t.listener = listen_at(SOCK_STREAM, NAMED, 80);
	t.dns = listen_at(SOCK_DGRAM, "127.0.0.1", 53);
	t.dns_tcp = listen_at(SOCK_STREAM, "127.0.0.1", 53);
	start_lab();
	int r = cmocka_run_group_tests(tests, NULL, NULL);
	stop_lab();
	return r;
}
