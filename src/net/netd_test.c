/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network process, started as the machine starts it, and a guest made of hand-written frames.  Only
 * loopback is used.  This program is both sides: with the verb "net" it is the network process.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "net/netd.h"
#include "net/offload.h"

#define GUEST_IP "\x0a\x00\x02\x0f"
#define HOST_IP	 "\x0a\x00\x02\x02"
static const uint8_t guest_mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };

static struct {
	int fd;
	pid_t pid;
	uint8_t frame[NET_FRAME_MAX]; /* the last one received */
	struct net_offload off;	      /* ... and its hints */
	size_t len;
	uint8_t out[NET_FRAME_MAX];
} g;

static void put16(uint8_t *p, unsigned v)
{
	p[0] = v >> 8;
	p[1] = v;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v);
}

static unsigned get16(const uint8_t *p)
{
	return p[0] << 8 | p[1];
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void spawn(const struct netd_options *o)
{
	struct error err = { 0 };

	if (netd_spawn(o, &g.fd, &g.pid, &err) < 0)
		fail_msg("%s", err.text);
}

/* Closes the socket; the process must end by itself, with status 0. */
static void end(void)
{
	int status = -1;

	close(g.fd);
	for (unsigned i = 0; i < 1000 && waitpid(g.pid, &status, WNOHANG) == 0; i++)
		usleep(10000);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void send_frame(const struct net_offload *off, size_t len)
{
	static const struct net_offload none;
	struct iovec iov[2] = { { (void *)(uintptr_t)(off ? off : &none), sizeof(none) },
				{ g.out, len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

	assert_int_equal(sendmsg(g.fd, &msg, 0), sizeof(none) + len);
}

static void eth(const uint8_t *dst, unsigned type)
{
	memcpy(g.out, dst, 6);
	memcpy(g.out + 6, guest_mac, 6);
	put16(g.out + 12, type);
}

/* Answers "who has 10.0.2.15". */
static bool answer_arp(void)
{
	const uint8_t *a = g.frame + 14;

	if (get16(g.frame + 12) != 0x0806 || get16(a + 6) != 1 || memcmp(a + 24, GUEST_IP, 4) != 0)
		return false;
	eth(g.frame + 6, 0x0806);
	memcpy(g.out + 14, a, 6);
	put16(g.out + 20, 2);
	memcpy(g.out + 22, guest_mac, 6);
	memcpy(g.out + 28, GUEST_IP, 4);
	memcpy(g.out + 32, a + 8, 10);
	send_frame(NULL, 60);
	return true;
}

/* The next frame for us, ARP answered on the way; false after 5 s without one. */
static bool receive_frame(void)
{
	static uint8_t buf[sizeof(struct net_offload) + NET_FRAME_MAX];

	for (;;) {
		struct pollfd p = { .fd = g.fd, .events = POLLIN };
		if (poll(&p, 1, 5000) <= 0)
			return false;
		ssize_t n = recv(g.fd, buf, sizeof(buf), 0);
		assert_true(n > (ssize_t)sizeof(struct net_offload));
		g.len = n - sizeof(struct net_offload);
		memcpy(&g.off, buf, sizeof(g.off));
		memcpy(g.frame, buf + sizeof(struct net_offload), g.len);
		if (!answer_arp())
			return true;
	}
}

/* Waits for an IPv4 packet of @proto to port @dport (0: any). */
static const uint8_t *receive_ip(uint8_t proto, unsigned dport)
{
	for (unsigned i = 0; i < 100; i++) {
		if (!receive_frame())
			fail_msg("nothing came");
		if (get16(g.frame + 12) == 0x0800 && g.frame[23] == proto &&
		    (!dport || get16(g.frame + 14 + 20 + 2) == dport))
			return g.frame + 34;
	}
	fail_msg("only other packets came");
	return NULL;
}

/* An IPv4 header over @len bytes of payload, which stands from byte 34 on. */
static void ip(const char *src, const char *dst, uint8_t proto, size_t len)
{
	uint8_t *p = g.out + 14;
	uint16_t sum;

	eth((const uint8_t *)"\x52\x55\x0a\x00\x02\x02", 0x0800);
	memset(p, 0, 20);
	p[0] = 0x45;
	put16(p + 2, 20 + len);
	p[8] = 64;
	p[9] = proto;
	memcpy(p + 12, src, 4);
	memcpy(p + 16, dst, 4);
	sum = net_checksum_fold(net_checksum(p, 20, 0));
	memcpy(p + 10, &sum, 2);
}

static void send_udp(const char *src, const char *dst, unsigned sport, unsigned dport, size_t len)
{
	uint8_t *u = g.out + 34;

	ip(src, dst, 17, 8 + len);
	put16(u, sport);
	put16(u + 2, dport);
	put16(u + 4, 8 + len);
	put16(u + 6, 0);
	if (!memcmp(dst, "\xff\xff\xff\xff", 4))
		memset(g.out, 0xff, 6);
	send_frame(NULL, 42 + len);
}

/* ---- tests ---- */

static void dhcp(uint8_t type, uint8_t want)
{
	uint8_t *b = g.out + 42;

	memset(b, 0, 300);
	b[0] = 1;
	b[1] = 1;
	b[2] = 6;
	memcpy(b + 4, "\x11\x22\x33\x44", 4);
	memcpy(b + 28, guest_mac, 6);
	memcpy(b + 236, "\x63\x82\x53\x63\x35\x01", 6);
	b[242] = type;
	if (type == 3)
		memcpy(b + 243, "\x32\x04" GUEST_IP "\xff", 7);
	else
		b[243] = 0xff;
	send_udp("\0\0\0\0", "\xff\xff\xff\xff", 68, 67, 300);
	const uint8_t *r = receive_ip(17, 68) + 8;
	assert_int_equal(r[0], 2);
	assert_memory_equal(r + 4, "\x11\x22\x33\x44", 4);
	assert_memory_equal(r + 16, GUEST_IP, 4);
	assert_memory_equal(r + 236, "\x63\x82\x53\x63\x35\x01", 6);
	assert_int_equal(r[242], want);
}

static void test_dhcp(void **state)
{
	(void)state;
	spawn(&(struct netd_options){ .exe = "/proc/self/exe" });
	dhcp(1, 2); /* discover, offer */
	dhcp(3, 5); /* request, ack */
	end();
}

static int host_socket(int type, unsigned *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(fd, 5), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	*port = ntohs(a.sin_port);
	return fd;
}

static void expect_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&p, 1, 5000), 1);
}

static void test_udp(void **state)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	unsigned port;
	char buf[64];
	int fd = host_socket(SOCK_DGRAM, &port);

	(void)state;
	spawn(&(struct netd_options){ 0 });
	memcpy(g.out + 42, "ping", 4);
	send_udp(GUEST_IP, HOST_IP, 4000, port, 4);
	expect_readable(fd);
	assert_int_equal(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len), 4);
	assert_memory_equal(buf, "ping", 4);
	assert_int_equal(sendto(fd, "pong!", 5, 0, (struct sockaddr *)&from, len), 5);
	const uint8_t *u = receive_ip(17, 4000);
	assert_int_equal(get16(u), port);
	assert_int_equal(get16(u + 4), 13);
	assert_memory_equal(u + 8, "pong!", 5);
	close(fd);
	end();
}

/* Without the loopback nothing gets there. */
static void test_no_host_loopback(void **state)
{
	unsigned port;
	int fd = host_socket(SOCK_DGRAM, &port);

	(void)state;
	spawn(&(struct netd_options){ .no_host_loopback = true, .no_ipv6 = true });
	send_udp(GUEST_IP, HOST_IP, 4000, port, 4);
	dhcp(1, 2); /* comes later, is answered: the packet before is dealt with */
	struct pollfd p = { .fd = fd, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 100), 0);
	close(fd);
	end();
}

/* One side of a TCP connection. */
static uint32_t tcp_seq, tcp_ack;
static unsigned tcp_sport, tcp_dport;

/* With SYN in @flags @data are options. */
static void send_tcp(uint8_t flags, const void *data, size_t len, const struct net_offload *off)
{
	uint8_t *t = g.out + 34;
	struct net_offload plain = { .flags = NET_OFF_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16 };
	uint64_t pseudo;
	uint16_t sum;

	ip(GUEST_IP, HOST_IP, 6, 20 + len);
	memset(t, 0, 20);
	put16(t, tcp_sport);
	put16(t + 2, tcp_dport);
	put32(t + 4, tcp_seq);
	put32(t + 8, tcp_ack);
	t[12] = flags & 2 ? (20 + len) / 4 << 4 : 0x50;
	t[13] = flags;
	put16(t + 14, 60000);
	if (len)
		memcpy(t + 20, data, len);
	/* As a driver leaves it: the pseudo header's sum, not complemented. */
	pseudo = net_checksum(g.out + 26, 8, 0) + htons(6) + htons(20 + len);
	sum = (uint16_t)~net_checksum_fold(pseudo);
	memcpy(t + 16, &sum, 2);
	send_frame(off ? off : &plain, 54 + len);
	tcp_seq += flags & 2 ? 1 : len + (flags & 1);
}

/* @offer: the MSS that the guest tells, 0: none; @largest: what comes at once, to be cut into @segment. */
static void tcp(unsigned offer, size_t largest, unsigned segment)
{
	enum { BIG = 30000 };
	static uint8_t data[BIG], got[BIG];
	struct net_offload tso = { .flags = 1,
				   .gso_type = NET_GSO_TCP4,
				   .gso_size = 1460,
				   .hdr_len = 54,
				   .csum_start = 34,
				   .csum_offset = 16 };
	int listener = host_socket(SOCK_STREAM, &tcp_dport);
	const uint8_t options[4] = { 2, 4, offer >> 8, offer };

	for (unsigned i = 0; i < BIG; i++)
		data[i] = i * 7 + (i >> 8);
	spawn(&(struct netd_options){ 0 });
	tcp_sport = 5000;
	tcp_seq = 1000;
	tcp_ack = 0;
	send_tcp(0x02, options, offer ? 4 : 0, NULL);
	expect_readable(listener);
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd >= 0);
	const uint8_t *t = receive_ip(6, 5000);
	assert_int_equal(t[13], 0x12);
	assert_int_equal(get32(t + 8), 1001);
	tcp_ack = get32(t + 4) + 1;
	send_tcp(0x10, NULL, 0, NULL);
	/* One frame of 30,000 bytes goes in whole. */
	send_tcp(0x18, data, BIG, &tso);
	size_t n = 0;
	while (n < BIG) {
		expect_readable(fd);
		ssize_t r = read(fd, got + n, BIG - n);
		assert_true(r > 0);
		n += r;
	}
	assert_memory_equal(got, data, BIG);
	/* And back, in frames that the guest's own MTU allows, or in long ones that may be cut to it. */
	size_t longest = 0;
	assert_int_equal(write(fd, data, BIG), BIG);
	for (n = 0; n < BIG;) {
		t = receive_ip(6, 5000);
		size_t head = (t[12] >> 4) * 4u, len = get16(g.frame + 16) - 20 - head;
		if (len > segment) {
			assert_int_equal(g.off.gso_type, NET_GSO_TCP4);
			assert_int_equal(g.off.gso_size, segment);
			assert_int_equal(g.off.flags, NET_OFF_NEEDS_CSUM);
		} else {
			assert_int_equal(g.off.gso_type, NET_GSO_NONE);
		}
		longest = MAX(longest, len);
		if (!len || get32(t + 4) != tcp_ack)
			continue;
		assert_memory_equal(t + head, data + n, len);
		n += len;
		tcp_ack += len;
		send_tcp(0x10, NULL, 0, NULL);
	}
	assert_true(longest <= largest && longest > largest / 2);
	close(fd);
	close(listener);
	end();
}

static void test_tcp(void **state)
{
	(void)state;
	tcp(1460, 30000, 1460);
	tcp(9000, 30000, 1460);
	tcp(0, 30000, 536); /* nothing told: RFC 9293, 3.7.1 */
}

/* A datagram longer than the wire comes in fragments. */
static void test_udp_fragments(void **state)
{
	static uint8_t data[5000], got[sizeof(data) + 8];
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	unsigned port;
	char buf[64];
	int fd = host_socket(SOCK_DGRAM, &port);

	(void)state;
	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = i * 11 + (i >> 8);
	spawn(&(struct netd_options){ 0 });
	send_udp(GUEST_IP, HOST_IP, 4000, port, 4);
	expect_readable(fd);
	assert_int_equal(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len), 4);
	assert_int_equal(sendto(fd, data, sizeof(data), 0, (struct sockaddr *)&from, len), sizeof(data));
	for (size_t n = 0; n < sizeof(got);) {
		receive_ip(17, 0);
		size_t part = get16(g.frame + 16) - 20;
		assert_true(g.len <= 1514);
		assert_int_equal((get16(g.frame + 20) & 0x1fff) * 8, n);
		assert_true(n + part <= sizeof(got));
		memcpy(got + n, g.frame + 34, part);
		n += part;
		assert_int_equal(!(get16(g.frame + 20) & 0x2000), n == sizeof(got));
	}
	assert_int_equal(get16(got + 4), sizeof(got));
	assert_memory_equal(got + 8, data, sizeof(data));
	close(fd);
	end();
}

static void test_forward(void **state)
{
	unsigned port;
	char text[64];
	const char *texts[1] = { text };

	(void)state;
	close(host_socket(SOCK_STREAM, &port)); /* free a moment ago */
	snprintf(text, sizeof(text), "tcp:127.0.0.1:%u:7777", port);
	spawn(&(struct netd_options){ .forwards = texts, .nforwards = 1, .is_restricted = true });
	dhcp(1, 2);
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_addr = { htonl(INADDR_LOOPBACK) },
				 .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	const uint8_t *t = receive_ip(6, 7777);
	assert_int_equal(t[13], 0x02);
	assert_memory_equal(g.frame + 30, GUEST_IP, 4);
	close(fd);

	/* A second one can't have the port. */
	struct error err = { 0 };
	int other = -1;
	pid_t pid = -1;
	struct netd_options o = { .forwards = texts, .nforwards = 1 };
	assert_int_equal(netd_spawn(&o, &other, &pid, &err), -ECONNABORTED);
	if (!strstr(err.text, text + 4 + 10) && !strstr(err.text, "Address already in use"))
		fail_msg("%s", err.text);
	assert_non_null(strstr(err.text, "choose another host port"));
	assert_non_null(strstr(err.text, "guest's port 7777"));
	assert_int_equal(pid, -1);
	assert_int_equal(other, -1);
	end();
}

static void test_spawn_failures(void **state)
{
	struct error err = { 0 };
	int fd = -1;
	pid_t pid = -1;

	(void)state;
	struct netd_options o = { .exe = "/nonexistent/viv" };
	assert_int_equal(netd_spawn(&o, &fd, &pid, &err), -ECONNABORTED);
	assert_non_null(strstr(err.text, "cannot start the network process"));
	o = (struct netd_options){ .exe = "/bin/true" };
	assert_int_equal(netd_spawn(&o, &fd, &pid, &err), -ECONNABORTED);
	assert_non_null(strstr(err.text, "ended at once"));
	const char *bad[1] = { "22" };
	o = (struct netd_options){ .forwards = bad, .nforwards = 1 };
	assert_int_equal(netd_spawn(&o, &fd, &pid, &err), -EINVAL);
	assert_non_null(strstr(err.text, "2222:22"));
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child left */
}

/* The starter dies, the socket stays open elsewhere: the network process dies with the starter. */
static void test_dies_with_parent(void **state)
{
	int pipe_fds[2], status;
	pid_t net = 0, got;

	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	assert_int_equal(pipe(pipe_fds), 0);
	pid_t starter = fork();
	if (!starter) {
		struct error err;
		int fd;
		pid_t pid;
		if (netd_spawn(&(struct netd_options){ 0 }, &fd, &pid, &err) < 0)
			_exit(1);
		/* Somebody else keeps the socket. */
		if (!fork()) {
			pause();
			_exit(0);
		}
		_exit(write(pipe_fds[1], &pid, sizeof(pid)) == sizeof(pid) ? 0 : 1);
	}
	close(pipe_fds[1]);
	assert_int_equal(read(pipe_fds[0], &net, sizeof(net)), sizeof(net));
	assert_int_equal(waitpid(starter, &status, 0), starter);
	assert_int_equal(status, 0);
	assert_int_equal(waitpid(net, &status, 0), net);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	/* The keeper is ours now: end it. */
	char path[64], line[256];
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	FILE *fp = fopen(path, "re");
	if (fp && fgets(line, sizeof(line), fp)) {
		pid_t keeper = atoi(line);
		assert_true(keeper > 0);
		kill(keeper, SIGKILL);
	} else {
		fail_msg("cannot find the keeper in %s", path);
	}
	fclose(fp);
	got = waitpid(-1, &status, 0);
	assert_true(got > 0);
	close(pipe_fds[0]);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
}

static long resident_kib(pid_t pid)
{
	char path[64];
	long size = 0, rss = 0;

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	FILE *fp = fopen(path, "re");
	assert_non_null(fp);
	assert_int_equal(fscanf(fp, "%ld %ld", &size, &rss), 2);
	fclose(fp);
	return rss * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Fragments, connections to everywhere, nonsense, and not one frame read: memory stays bounded. */
static void test_flood(void **state)
{
	unsigned port, seed = 1;
	int sink = host_socket(SOCK_DGRAM, &port);

	(void)state;
	/* What a sanitizer holds back of freed memory is no growth. */
	const char *options = getenv("ASAN_OPTIONS");
	char text[512];
	snprintf(text, sizeof(text), "%s%squarantine_size_mb=1", options ? options : "",
		 options ? ":" : "");
	setenv("ASAN_OPTIONS", text, 1);
	spawn(&(struct netd_options){ .is_restricted = true });
	dhcp(1, 2);
	long before = resident_kib(g.pid);
	for (unsigned i = 0; i < 30000; i++) {
		seed = seed * 1664525 + 1013904223;
		if (i % 3 == 0) {
			ip(GUEST_IP, HOST_IP, 17, 1400);
			put16(g.out + 14 + 4, i);      /* ever new datagrams */
			put16(g.out + 14 + 6, 0x2000); /* more to come */
			put16(g.out + 14 + 10, 0);
			uint16_t sum = net_checksum_fold(net_checksum(g.out + 14, 20, 0));
			memcpy(g.out + 14 + 10, &sum, 2);
			send_frame(NULL, 14 + 1420);
		} else if (i % 3 == 1) {
			send_udp(GUEST_IP, HOST_IP, 1 + i % 60000, port, 100);
		} else {
			for (unsigned k = 14; k < 80; k++)
				g.out[k] = (seed = seed * 1664525 + 1013904223) >> 24;
			eth((const uint8_t *)"\x52\x55\x0a\x00\x02\x02", i & 1 ? 0x0800 : 0x86dd);
			g.out[14] = i & 1 ? 0x45 : 0x60;
			struct net_offload off = { .flags = seed,
						   .gso_type = (seed >> 8) % 6,
						   .gso_size = seed >> 9,
						   .csum_start = (seed >> 3) & 127,
						   .csum_offset = seed & 127 };
			send_frame(&off, 80 + seed % 3000);
		}
		/* What it answers is not read, until the pipe to us is full; then some of it. */
		if (i % 1000 == 999) {
			uint8_t buf[2048];
			while (recv(g.fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
				;
		}
	}
	long after = resident_kib(g.pid);
	print_message("resident before %ld KiB, after %ld KiB\n", before, after);
	assert_true(after - before < 100 * 1024);
	close(sink);
	end();
}

static void test_parse_forward(void **state)
{
	static const struct {
		const char *text;
		bool is_udp, is_v6;
		const char *host;
		unsigned host_port;
		const char *guest;
		unsigned guest_port;
	} good[] = {
		{ "2222:22", false, false, "127.0.0.1", 2222, "0.0.0.0", 22 },
		{ "tcp:2222:22", false, false, "127.0.0.1", 2222, "0.0.0.0", 22 },
		{ "udp:53:5353", true, false, "127.0.0.1", 53, "0.0.0.0", 5353 },
		{ "0.0.0.0:80:8080", false, false, "0.0.0.0", 80, "0.0.0.0", 8080 },
		{ "80:10.0.2.20:8080", false, false, "127.0.0.1", 80, "10.0.2.20", 8080 },
		{ "tcp:192.168.1.1:80:10.0.2.20:8080", false, false, "192.168.1.1", 80, "10.0.2.20", 8080 },
		{ "[::1]:65535:1", false, true, "::1", 65535, "0.0.0.0", 1 },
		{ "udp:[fe80::1]:1:10.0.2.15:65535", true, true, "fe80::1", 1, "10.0.2.15", 65535 },
	};
	/* clang-format off */
	static const char *bad[] = {
		"",	   "22",	 ":",		"22:",	     ":22",	   "0:22",	 "22:0",
		"65536:1", "1:65536",	 "sctp:1:2",	"1.2.3:4:5", "[::1:1:2",   "[::1]1:2",	 "[x]:1:2",
		"1:2:3",   "1:2:3:4:5",	 "tcp:udp:1:2", "-1:22",     "22:22 ",	   "1:[::1]:22", "[]",
		"a:b",	   "tcp:1.1.1.1:1:2.2.2.2:3:4",
		"11111111111111111111111111111111111111111111111111111111111111111111111111111111:1",
	};
	/* clang-format on */
	struct netd_forward f;
	struct error err;
	char addr[64];

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(good); i++) {
		if (netd_parse_forward(good[i].text, &f, &err) < 0)
			fail_msg("%s", err.text);
		const struct sockaddr_in *v4 = (void *)&f.host;
		const struct sockaddr_in6 *v6 = (void *)&f.host;
		assert_int_equal(f.is_udp, good[i].is_udp);
		assert_int_equal(f.host.ss_family, good[i].is_v6 ? AF_INET6 : AF_INET);
		inet_ntop(f.host.ss_family, good[i].is_v6 ? (void *)&v6->sin6_addr : (void *)&v4->sin_addr,
			  addr, sizeof(addr));
		assert_string_equal(addr, good[i].host);
		assert_int_equal(ntohs(v4->sin_port), good[i].host_port);
		assert_string_equal(inet_ntop(AF_INET, &f.guest, addr, sizeof(addr)), good[i].guest);
		assert_int_equal(f.guest_port, good[i].guest_port);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		if (netd_parse_forward(bad[i], &f, &err) == 0)
			fail_msg("'%s' was taken", bad[i]);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse_forward),
		cmocka_unit_test(test_dhcp),
		cmocka_unit_test(test_udp),
		cmocka_unit_test(test_no_host_loopback),
		cmocka_unit_test(test_udp_fragments),
		cmocka_unit_test(test_tcp),
		cmocka_unit_test(test_forward),
		cmocka_unit_test(test_spawn_failures),
		cmocka_unit_test(test_dies_with_parent),
		cmocka_unit_test(test_flood),
	};

	if (argc > 1 && !strcmp(argv[1], "net"))
		return netd_cli(argc - 1, argv + 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
