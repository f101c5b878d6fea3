/* SPDX-License-Identifier: Apache-2.0 */
/* The process of a lab, with the test in the place of its machines and of `viv`. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "net/labd.h"
#include "net/link.h"
#include "net/testing.h"

#define LIMIT_MS 20000

static const char file[] = "networks:\n"
			   "  a: {subnet: 10.1.0.0/24}\n"
			   "  b: {subnet: 10.2.0.0/24}\n"
			   "machines:\n"
			   "  one: {kernel: k, networks: [a]}\n"
			   "  two: {kernel: k, networks: [a]}\n"
			   "  three: {kernel: k, networks: [b]}\n"
			   "  four: {kernel: k, networks: [{trunk: {a: 10, b: 20}}]}\n";

static struct {
	pid_t pid;
	char dir[64], path[96];
	struct lab *lab; /* for its addresses */
	int control;
} t;

static struct error err;

static void parse(struct lab **l)
{
	if (lab_parse(l, file, strlen(file), "file", "test", &err) < 0)
		fail_msg("%s", err.text);
}

static int set_up(void **state)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int ready[2];
	char text[16] = "";

	memset(&t, 0, sizeof(t));
	snprintf(t.dir, sizeof(t.dir), "/tmp/viv-labd.XXXXXX");
	assert_non_null(mkdtemp(t.dir));
	snprintf(t.path, sizeof(t.path), "%s/sock", t.dir);
	snprintf(at.sun_path, sizeof(at.sun_path), "%s", t.path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(pipe(ready), 0);
	parse(&t.lab);
	t.pid = fork();
	if (!t.pid) {
		struct labd_config cfg = { .control_fd = fd, .ready_fd = ready[1], .resolv_conf = "/dev/null" };
		parse(&cfg.lab);
		close(ready[0]);
		_exit(labd_main(&cfg));
	}
	close(fd);
	close(ready[1]);
	assert_int_equal(read(ready[0], text, sizeof(text) - 1), 3);
	assert_string_equal(text, "ok\n");
	close(ready[0]);
	return 0;
}

static int dial(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(at.sun_path, sizeof(at.sun_path), "%s", t.path);
	assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	return fd;
}

/* One command; the answer, to be json_decref'ed. */
static json_t *ask(const char *line)
{
	char buf[65536];
	size_t len = 0;
	int fd = dial();

	assert_true(dprintf(fd, "%s\n", line) > 0);
	do {
		ssize_t n = read(fd, buf + len, sizeof(buf) - 1 - len);
		assert_true(n > 0);
		len += (size_t)n;
	} while (buf[len - 1] != '\n');
	close(fd);
	json_t *reply = json_loadb(buf, len, 0, NULL);
	assert_non_null(reply);
	return reply;
}

static void ask_fine(const char *line)
{
	json_t *reply = ask(line);

	if (!json_is_true(json_object_get(reply, "ok")))
		fail_msg("%s: %s", line, json_string_value(json_object_get(reply, "error")));
	json_decref(reply);
}

static int tear_down(void **state)
{
	int status;

	ask_fine("{\"cmd\": \"stop\"}");
	assert_int_equal(waitpid(t.pid, &status, 0), t.pid);
	assert_int_equal(status, 0);
	unlink(t.path);
	rmdir(t.dir);
	lab_free(t.lab);
	return 0;
}

static int attach(const char *machine, const char *network)
{
	uint8_t mac[6];
	int fd = -1, control = dial(),
	    r = labd_attach(control, &(struct labd_attach){ machine, network, NULL }, mac, &fd,
			    NULL, &err);

	close(control);
	if (r < 0)
		return r;
	int port = policy_find_port(t.lab->policy, policy_find_machine(t.lab->policy, machine),
				    policy_find_network(t.lab->policy, network));
	assert_memory_equal(mac, t.lab->policy->ports[port].mac, 6);
	return fd;
}

static void send_frame(int fd, const struct frame *f)
{
	struct net_offload off = { 0 };
	struct iovec iov[2] = { { &off, sizeof(off) }, { (void *)(uintptr_t)f->b, f->len } };

	assert_int_equal(writev(fd, iov, 2), sizeof(off) + f->len);
}

/* The next TCP packet for port @dport; false: none within @limit_ms. */
static bool await_tcp(int fd, uint16_t dport, int limit_ms)
{
	uint8_t buf[2048];
	struct packet p;

	for (;;) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		if (poll(&pfd, 1, limit_ms) <= 0)
			return false;
		ssize_t n = recv(fd, buf, sizeof(buf), 0);
		if (n > (ssize_t)sizeof(struct net_offload) &&
		    packet_parse(&p, buf + sizeof(struct net_offload),
				 (size_t)n - sizeof(struct net_offload)) == PACKET_FINE &&
		    p.proto == IP_TCP && p.dport == dport)
			return true;
	}
}

static struct frame tcp(const char *from, const char *to, uint16_t dport)
{
	const struct policy *p = t.lab->policy;
	const struct policy_port *a = NULL, *b = NULL;
	struct frame_ends e;
	struct frame f;

	for (unsigned i = 0; i < p->nports; i++) {
		if (strcmp(p->machines[p->ports[i].machine].name, from) == 0)
			a = &p->ports[i];
		if (strcmp(p->machines[p->ports[i].machine].name, to) == 0)
			b = &p->ports[i];
	}
	e = (struct frame_ends){ .src = a->v4, .dst = b->v4 };
	memcpy(e.src_mac, a->mac, 6);
	memcpy(e.dst_mac, a->network == b->network ? b->mac : p->networks[a->network].gateway_mac, 6);
	frame_tcp(&f, &e, 1000, dport, PACKET_SYN);
	return f;
}

static json_int_t card_number(const char *card, const char *key)
{
	json_t *reply = ask("{\"cmd\": \"show\"}"), *c;
	json_int_t v = -1;
	size_t i;

	json_array_foreach(json_object_get(reply, "cards"), i,
			   c) if (strcmp(json_string_value(json_object_get(c, "card")), card) == 0)
		v = json_integer_value(json_object_get(c, key));
	json_decref(reply);
	return v;
}

/* Two of a pipe's ends go along with @text; whether nobody has them is for closed() to say. */
static void send_descriptors(int fd, const char *text, int ends[2][2])
{
	char control[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct iovec iov = { (void *)(uintptr_t)text, strlen(text) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control,
			      .msg_controllen = CMSG_SPACE(2 * sizeof(int)) };
	struct cmsghdr *m = CMSG_FIRSTHDR(&msg);
	int fds[2];

	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(pipe(ends[i]), 0);
		fds[i] = ends[i][1];
	}
	m->cmsg_level = SOL_SOCKET;
	m->cmsg_type = SCM_RIGHTS;
	m->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(m), fds, sizeof(fds));
	assert_int_equal(sendmsg(fd, &msg, 0), strlen(text));
	close(fds[0]);
	close(fds[1]);
}

static void assert_closed(int ends[2][2])
{
	char byte;

	for (unsigned i = 0; i < 2; i++) {
		struct pollfd p = { .fd = ends[i][0], .events = POLLIN };
		assert_int_equal(poll(&p, 1, LIMIT_MS), 1); /* nobody holds its other end */
		assert_int_equal(read(ends[i][0], &byte, 1), 0);
		close(ends[i][0]);
	}
}

/* Descriptors that come with commands are closed: more than one of them, too. */
static void test_descriptors(void **state)
{
	int ends[2][2], client = dial();

	send_descriptors(client, " ", ends);
	close(client);
	assert_closed(ends);
}

/* So are those that come with answers. */
static void test_descriptors_of_a_lab(void **state)
{
	int ends[2][2], more[2][2], pair[2];
	json_t *record = NULL;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	send_descriptors(pair[1], "{\"ok\": ", ends);
	send_descriptors(pair[1], "true}\n", more);
	assert_true(labd_identity(pair[0], "one", &record, &err) < 0); /* there is none */
	assert_closed(ends);
	assert_closed(more);
	close(pair[0]);
	close(pair[1]);
}

static void test_frames(void **state)
{
	int one = attach("one", "a"), two = attach("two", "a"), three = attach("three", "b");
	struct frame f = tcp("one", "two", 80);

	assert_true(one >= 0 && two >= 0 && three >= 0);
	assert_int_equal(attach("one", "a"), -EREMOTEIO);
	assert_non_null(strstr(err.text, "connected"));
	assert_int_equal(attach("one", "b"), -EREMOTEIO);
	send_frame(one, &f);
	assert_true(await_tcp(two, 80, LIMIT_MS));
	/* Between the networks nothing passes before it is allowed; what follows it shows that nothing is late. */
	f = tcp("one", "three", 81);
	send_frame(one, &f);
	ask_fine("{\"cmd\": \"allow\", \"rule\": \"a.one -> b.three\", \"what\": \"tcp/82\"}");
	f = tcp("one", "three", 82);
	send_frame(one, &f);
	assert_true(await_tcp(three, 82, LIMIT_MS));
	assert_int_equal(card_number("a.one", "flows"), 2);
	ask_fine("{\"cmd\": \"deny\", \"rule\": \"a.one -> b.three\"}");
	send_frame(one, &f);
	ask_fine("{\"cmd\": \"quarantine\", \"machine\": \"two\", \"on\": true}");
	f = tcp("one", "two", 83);
	send_frame(one, &f);
	ask_fine("{\"cmd\": \"quarantine\", \"machine\": \"two\", \"on\": false}");
	f = tcp("one", "two", 84);
	send_frame(one, &f);
	assert_true(await_tcp(two, 84, LIMIT_MS));
	assert_false(await_tcp(three, 82, 0));
	/* A machine that ends and comes back. */
	close(one);
	for (unsigned i = 0; i < 1000 && (one = attach("one", "a")) < 0; i++)
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	assert_true(one >= 0);
	send_frame(one, &f);
	assert_true(await_tcp(two, 84, LIMIT_MS));
	close(one);
	close(two);
	close(three);
}

/* ---- machines with rings ---- */

static struct {
	struct net_offload off;
	uint8_t frame[NET_FRAME_MAX];
} rx;

static void link_up(struct net_link *l, const char *machine, const char *network)
{
	const struct net_link_rx to = { &rx.off, rx.frame };
	struct net_ring_frame f;
	int fd = attach(machine, network);

	assert_true(fd >= 0);
	net_link_open(l, fd, true);
	while (!l->has_rings) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		assert_int_equal(poll(&p, 1, LIMIT_MS), 1);
		l->is_readable = true;
		assert_true(net_link_next(l, &to, &f) >= 0);
	}
}

static void link_send(struct net_link *l, const struct frame *f)
{
	const struct net_link_rx to = { &rx.off, rx.frame };
	struct iovec iov = { (void *)(uintptr_t)f->b, f->len };
	struct net_offload off = { 0 };
	int r;

	while ((r = net_link_send(l, &off, &iov, 1)) == -EAGAIN) {
		uint32_t timeout_ms = LIMIT_MS;
		struct pollfd p = { .fd = l->fd, .events = net_link_poll(l, true, &timeout_ms) };
		assert_true(poll(&p, 1, (int)timeout_ms) == 1 || !timeout_ms);
		net_link_polled(l, p.revents);
		assert_true(net_link_bells(l, &to) == 0);
	}
	assert_int_equal(r, 0);
	assert_int_equal(net_link_ring(l), 0);
}

/* A machine that breaks the memory of frames is hung up on; nobody else's frames stop. */
static void test_broken_rings(void **state)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { rx.frame, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control };
	int bad = attach("one", "a"), two = attach("two", "a"), memory;
	struct net_link three;
	struct frame f = tcp("three", "two", 80);
	uint32_t head = 0x7fffff00;

	link_up(&three, "three", "b");
	ask_fine("{\"cmd\": \"allow\", \"rule\": \"b.three -> a.two\"}");
	msg.msg_controllen = sizeof(control);
	assert_int_equal(send(bad, "R", 1, 0), 1);
	assert_int_equal(recvmsg(bad, &msg, 0), 1);
	assert_int_equal(rx.frame[0], 'M');
	memcpy(&memory, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	assert_int_equal(pwrite(memory, &head, 4, 128), 4);
	assert_int_equal(ftruncate(memory, 0), -1);
	assert_int_equal(send(bad, "O", 1, 0), 1);
	assert_int_equal(send(bad, "B", 1, 0), 1);
	while (recv(bad, rx.frame, sizeof(rx.frame), 0) > 0) /* until it is closed */
		;
	assert_int_equal(card_number("a.one", "flows"), 0);
	link_send(&three, &f);
	assert_true(await_tcp(two, 80, LIMIT_MS));
	close(bad);
	close(memory);
	bad = attach("one", "a");
	assert_true(bad >= 0);
	close(bad);
	close(two);
	net_link_close(&three);
}

/* The next TCP packet for port @dport, as await_tcp(). */
static bool link_await(struct net_link *l, uint16_t dport, int limit_ms)
{
	const struct net_link_rx to = { &rx.off, rx.frame };
	struct net_ring_frame f;
	struct packet p;
	int r;

	for (;;) {
		uint32_t timeout_ms = (uint32_t)limit_ms;
		struct pollfd pfd = { .fd = l->fd, .events = net_link_poll(l, false, &timeout_ms) };
		if (poll(&pfd, 1, (int)timeout_ms) <= 0 && timeout_ms)
			return false;
		net_link_polled(l, pfd.revents);
		while ((r = net_link_next(l, &to, &f)) == 1) {
			if (!l->is_from_socket)
				memcpy(rx.frame, f.data, f.len);
			net_link_done(l);
			if (packet_parse(&p, rx.frame, f.len) == PACKET_FINE && p.proto == IP_TCP &&
			    p.dport == dport)
				return true;
		}
		assert_int_equal(r, 0);
		if (!limit_ms && net_link_is_idle(l))
			return false;
	}
}

static void test_rings(void **state)
{
	struct net_link one, two;
	int three = attach("three", "b");
	struct frame f = tcp("one", "two", 80);

	link_up(&one, "one", "a");
	link_up(&two, "two", "a");
	link_send(&one, &f);
	assert_true(link_await(&two, 80, LIMIT_MS));
	/* One that knows no rings has frames over its socket. */
	ask_fine("{\"cmd\": \"allow\", \"rule\": \"a.one -> b.three\"}");
	f = tcp("one", "three", 82);
	link_send(&one, &f);
	assert_true(await_tcp(three, 82, LIMIT_MS));
	/* A machine that does not read: what does not fit is dropped, and it goes on when it reads again. */
	f = tcp("one", "two", 83);
	for (unsigned i = 0; i < 20000; i++)
		link_send(&one, &f);
	f = tcp("one", "three", 90);
	link_send(&one, &f);
	assert_true(await_tcp(three, 90, LIMIT_MS));
	assert_true(card_number("a.two", "dropped") > 0);
	while (link_await(&two, 83, 0))
		;
	for (bool came = false; !came;) {
		f = tcp("one", "two", 84);
		link_send(&one, &f);
		came = link_await(&two, 84, 100);
	}
	net_link_close(&one);
	net_link_close(&two);
	close(three);
}

/* ---- floods ---- */

/* As many frames as fit, without waiting. */
static unsigned fill_link(struct net_link *l, const struct frame *f)
{
	struct iovec iov = { (void *)(uintptr_t)f->b, f->len };
	struct net_offload off = { 0 };
	unsigned n = 0;

	while (net_link_send(l, &off, &iov, 1) == 0)
		n++;
	assert_int_equal(net_link_ring(l), 0);
	return n;
}

static bool is_stopped(pid_t pid)
{
	int status;

	return waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status);
}

/*
 * Who floods is served a batch a round, however much waits, so that others have their turn.  Frames of all wait before the lab
 * sees any: the order in which they come says how it took them.
 */
static void test_flood_is_fair(void **state)
{
	struct net_link one, two, three;
	struct frame flood = tcp("one", "two", 80), f = tcp("three", "two", 81);
	const struct net_link_rx to = { &rx.off, rx.frame };
	unsigned before = 0, after = 0, waiting;
	struct net_ring_frame got;
	struct packet p;
	bool is_seen = false;

	link_up(&one, "one", "a");
	link_up(&two, "two", "a");
	link_up(&three, "three", "b");
	ask_fine("{\"cmd\": \"allow\", \"rule\": \"b.three -> a.two\"}");
	assert_int_equal(kill(t.pid, SIGSTOP), 0);
	assert_true(is_stopped(t.pid));
	waiting = fill_link(&one, &flood);
	assert_true(waiting > 20 * LABD_BATCH);
	link_send(&three, &f);
	assert_int_equal(kill(t.pid, SIGCONT), 0);
	while (!is_seen || after < LABD_BATCH) {
		uint32_t timeout_ms = LIMIT_MS;
		struct pollfd pfd = { .fd = two.fd, .events = net_link_poll(&two, false, &timeout_ms) };
		assert_true(poll(&pfd, 1, (int)timeout_ms) == 1 || !timeout_ms);
		net_link_polled(&two, pfd.revents);
		while (net_link_next(&two, &to, &got) == 1) {
			memcpy(rx.frame, got.data, got.len);
			net_link_done(&two);
			if (packet_parse(&p, rx.frame, got.len) != PACKET_FINE || p.proto != IP_TCP)
				continue;
			is_seen |= p.dport == 81;
			if (is_seen)
				after++;
			else
				before++;
		}
	}
	assert_true(before <= 2 * LABD_BATCH);
	net_link_close(&one);
	net_link_close(&two);
	net_link_close(&three);
}

static unsigned resident_kib(pid_t pid)
{
	char path[64], line[256];
	unsigned kib = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	FILE *status = fopen(path, "r");
	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmRSS: %u", &kib) == 1)
			break;
	if (status)
		fclose(status);
	return kib;
}

/* Frames of all kinds that keep something: flows, fragments, answers of the gateway, queues of who does not read. */
static void flood(struct net_link *l, unsigned n, unsigned seed)
{
	const struct policy *p = t.lab->policy;
	struct frame f = tcp("one", "two", 80);
	struct frame_ends e = { .src = p->ports[0].v4, .dst = p->ports[1].v4 };
	uint8_t payload[1200] = { 0 };

	memcpy(e.src_mac, p->ports[0].mac, 6);
	for (unsigned i = 0; i < n; i++) {
		unsigned v = i * 2654435761u + seed;
		memcpy(e.dst_mac, v & 64 ? p->networks[0].gateway_mac : p->ports[1].mac, 6);
		e.dst = v & 64 ? p->ports[2].v4 : p->ports[1].v4;
		switch (v >> 8 & 7) {
		case 0: /* new flows */
			frame_tcp(&f, &e, (uint16_t)(v >> 16), (uint16_t)i, PACKET_SYN);
			break;
		case 1:
			frame_udp(&f, &e, (uint16_t)(v >> 16), (uint16_t)i, payload, sizeof(payload));
			break;
		case 2: /* beginnings of packets in fragments */
			frame_udp(&f, &e, (uint16_t)(v >> 16), (uint16_t)i, payload, sizeof(payload));
			frame_fragment(&f, 0, 800, true, i);
			break;
		case 3:
			frame_echo(&f, &e, false, (uint16_t)i);
			break;
		case 4: /* for the gateway, which answers */
			e.dst = p->networks[0].gateway_v4;
			memcpy(e.dst_mac, p->networks[0].gateway_mac, 6);
			frame_echo(&f, &e, false, (uint16_t)i);
			break;
		case 5: /* for all */
			memset(e.dst_mac, 0xff, 6);
			frame_arp(&f, &e, 1);
			break;
		case 6: /* somebody else's address */
			e.src = p->ports[2].v4;
			frame_udp(&f, &e, 1, 2, payload, 60);
			e.src = p->ports[0].v4;
			break;
		default:
			f.len = 14 + v % 64;
		}
		link_send(l, &f);
	}
}

/* What a flood takes it takes once: more of it takes no more, and nobody else loses a frame by it. */
static void test_flood_takes_no_memory(void **state)
{
	struct net_link one;
	int two = attach("two", "a"), three = attach("three", "b"); /* neither reads */
	struct frame f;

	link_up(&one, "one", "a");
	ask_fine("{\"cmd\": \"allow\", \"rule\": \"a.one -> b.three\"}");
	flood(&one, 60000, 1);
	card_number("a.one", "flows"); /* an answer, so what came before has been read */
	unsigned before = resident_kib(t.pid);
	for (unsigned i = 2; i < 5; i++)
		flood(&one, 60000, i);
	assert_true(card_number("a.one", "flows") <= 4096);
	unsigned after = resident_kib(t.pid);
	printf("resident before %u KiB, after %u KiB\n", before, after);
	assert_true(before > 0 && after <= before + 1024);
	assert_true(card_number("a.two", "dropped") > 0);
	net_link_close(&one);
	close(two);
	/* Everybody else goes on as if nothing had been. */
	for (unsigned i = 0; i < 1000 && (two = attach("two", "a")) < 0; i++)
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	ask_fine("{\"cmd\": \"allow\", \"rule\": \"b.three -> a.two\"}");
	f = tcp("three", "two", 99);
	send_frame(three, &f);
	assert_true(await_tcp(two, 99, LIMIT_MS));
	close(two);
	close(three);
}

/* A card of two networks has one socket, with tags. */
static void test_trunk(void **state)
{
	const struct policy *p = t.lab->policy;
	int four = attach("four", "a"), three = attach("three", "b");
	struct frame_ends e = { .src = p->ports[4].v4, .dst = p->ports[2].v4 };
	uint8_t buf[2048];
	struct packet got;
	struct frame f;

	assert_true(four >= 0 && three >= 0);
	assert_int_equal(attach("four", "b"), -EREMOTEIO);
	assert_non_null(strstr(err.text, "part of a trunk"));
	memcpy(e.src_mac, p->ports[4].mac, 6);
	memcpy(e.dst_mac, p->ports[2].mac, 6);
	frame_tcp(&f, &e, 1000, 80, PACKET_SYN);
	frame_tag(&f, 10);
	send_frame(four, &f); /* by the other network: nowhere */
	frame_tcp(&f, &e, 1000, 81, PACKET_SYN);
	frame_tag(&f, 20);
	send_frame(four, &f);
	assert_true(await_tcp(three, 81, LIMIT_MS));
	assert_false(await_tcp(three, 80, 0));
	e = (struct frame_ends){ .src = p->ports[2].v4, .dst = p->ports[4].v4 };
	memcpy(e.src_mac, p->ports[2].mac, 6);
	memcpy(e.dst_mac, p->ports[4].mac, 6);
	frame_tcp(&f, &e, 1000, 82, PACKET_SYN);
	send_frame(three, &f);
	do {
		ssize_t n = recv(four, buf, sizeof(buf), 0);
		assert_true(n > (ssize_t)sizeof(struct net_offload));
		assert_int_equal(packet_parse(&got, buf + sizeof(struct net_offload),
					      (size_t)n - sizeof(struct net_offload)),
				 PACKET_FINE);
		assert_true(got.vlan == 10 || got.vlan == 20); /* advertisements of both */
	} while (got.proto != IP_TCP);
	assert_int_equal(got.vlan, 20);
	assert_int_equal(got.dport, 82);
	assert_int_equal(card_number("b.four", "vlan"), 20);
	assert_int_equal(card_number("b.four", "flows"), 1);
	/* Faults are the card's, whichever network names it. */
	ask_fine("{\"cmd\": \"fault\", \"card\": \"b.four\", \"settings\": {\"partition\": "
		 "\"on\"}}");
	frame_tcp(&f, &e, 1000, 83, PACKET_SYN);
	send_frame(three, &f);
	assert_true(card_number("a.four", "lost") > 0);
	close(four);
	close(three);
}

static void test_faults(void **state)
{
	int one = attach("one", "a"), two = attach("two", "a");
	struct frame f = tcp("one", "two", 80), g = tcp("one", "two", 81);

	ask_fine(
		"{\"cmd\": \"fault\", \"card\": \"a.two\", \"settings\": {\"partition\": \"on\"}}");
	send_frame(one, &f);
	ask_fine("{\"cmd\": \"fault\", \"card\": \"a.two\", \"settings\": {\"none\": \"on\", "
		 "\"latency\": \"50ms\"}}");
	struct timespec before, after;
	clock_gettime(CLOCK_MONOTONIC, &before);
	send_frame(one, &g);
	assert_true(await_tcp(two, 81, LIMIT_MS));
	clock_gettime(CLOCK_MONOTONIC, &after);
	assert_true((after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec >=
		    50000000);
	assert_false(await_tcp(two, 80, 0));
	assert_int_equal(card_number("a.two", "lost") >= 1, true);
	close(one);
	close(two);
}

/* A machine that does not read: what does not fit is dropped, others get theirs. */
static void test_queue(void **state)
{
	int one = attach("one", "a"), two = attach("two", "a"), three = attach("three", "b");
	struct frame f = tcp("one", "two", 80);

	for (unsigned i = 0; i < 20000; i++) {
		struct pollfd pfd = { .fd = one, .events = POLLOUT };
		assert_int_equal(poll(&pfd, 1, LIMIT_MS), 1);
		send_frame(one, &f);
	}
	ask_fine("{\"cmd\": \"allow\", \"rule\": \"a.one -> b.three\"}");
	f = tcp("one", "three", 90);
	send_frame(one, &f);
	assert_true(await_tcp(three, 90, LIMIT_MS));
	assert_true(card_number("a.two", "dropped") > 0);
	assert_int_equal(card_number("b.three", "dropped"), 0);
	close(one);
	close(two);
	close(three);
}

static void test_bad_commands(void **state)
{
	static const char *const bad[] = {
		"{}",
		"[]",
		"x",
		"{\"cmd\": \"nothing\"}",
		"{\"cmd\": \"attach\"}",
		"{\"cmd\": \"allow\"}",
		"{\"cmd\": \"allow\", \"rule\": \"a.one -> b.nobody\"}",
		"{\"cmd\": \"deny\", \"rule\": 7}",
		"{\"cmd\": \"allow\", \"rule\": \"a.one -> b.three\", \"names\": [\"x\"]}",
		"{\"cmd\": \"allow\", \"rule\": \"a.one -> b.three\", \"names\": \"x.org\"}",
		"{\"cmd\": \"allow\", \"rule\": \"a.one -> b.three\", \"names\": []}",
		"{\"cmd\": \"remove\", \"id\": 99}",
		"{\"cmd\": \"remove\", \"id\": 4294967297}",
		"{\"cmd\": \"remove\", \"id\": -4294967295}",
		"{\"cmd\": \"quarantine\", \"machine\": \"one\"}",
		"{\"cmd\": \"fault\", \"card\": \"a.one\", \"settings\": {\"loss\": \"x\"}}",
		"{\"cmd\": \"fault\", \"card\": \"one\"}",
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		json_t *reply = ask(bad[i]);
		assert_true(json_is_false(json_object_get(reply, "ok")));
		assert_true(json_string_length(json_object_get(reply, "error")) > 0);
		json_decref(reply);
	}
	/* More clients than it takes, and a line without an end. */
	int fds[LABD_CLIENTS + 4];
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = dial();
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	char line[4096];
	memset(line, 'x', sizeof(line));
	int fd = dial();
	for (size_t sent = 0; sent <= LABD_LINE_MAX + MIB; sent += sizeof(line))
		if (send(fd, line, sizeof(line), MSG_NOSIGNAL) < 0)
			break;
	char byte;
	assert_true(read(fd, &byte, 1) <= 0);
	close(fd);
	ask_fine("{\"cmd\": \"show\"}");
}

/* ---- copies ---- */

static json_t *record_of(const char *machine)
{
	json_t *record = NULL;
	int control = dial();

	if (labd_identity(control, machine, &record, &err) < 0)
		fail_msg("%s", err.text);
	close(control);
	return record;
}

/* The copy @name comes; its socket, and its card as the lab says. */
static int attach_copy(const char *name, json_t *record, const char *network, struct policy_port *card)
{
	int fd = -1, control = dial();
	struct labd_attach a = { name, network, record };
	json_t *own = NULL, *c;
	size_t i;

	if (labd_attach(control, &a, card->mac, &fd, &own, &err) < 0)
		fail_msg("%s", err.text);
	close(control);
	json_array_foreach(json_object_get(own, "cards"), i, c)
	{
		if (strcmp(json_string_value(json_object_get(c, "network")), network) == 0)
			assert_int_equal(
				net_addr_parse(json_string_value(json_object_get(c, "address")),
					       &card->v4),
				0);
	}
	json_decref(own);
	return fd;
}

static struct frame tcp_between(const struct policy_port *from, const struct policy_port *to,
				uint16_t dport)
{
	struct frame_ends e = { .src = from->v4, .dst = to->v4 };
	struct frame f;

	memcpy(e.src_mac, from->mac, 6);
	memcpy(e.dst_mac, to->mac, 6);
	frame_tcp(&f, &e, 1000, dport, PACKET_SYN);
	return f;
}

/* Until the lab has seen that it is off. */
static int forget(const char *name)
{
	int r;

	do {
		int control = dial();
		r = labd_forget(control, name, &err);
		close(control);
	} while (r < 0 && strstr(err.text, "is connected"));
	return r;
}

/* From another host, where it was cut off, to the place that the lab's file keeps for it. */
static void test_the_cut_off_comes_to_its_place(void **state)
{
	json_t *record = record_of("one");

	json_object_set_new(record, "quarantine", json_true());
	json_t *request =
		json_pack("{s:s, s:s, s:o}", "cmd", "admit", "machine", "one", "identity", record);
	char *line = json_dumps(request, JSON_COMPACT);
	ask_fine(line);
	free(line);
	json_decref(request);
	record = record_of("one");
	assert_true(json_is_true(json_object_get(record, "quarantine")));
	json_decref(record);
}

static void test_a_copy_disturbs_nobody(void **state)
{
	const struct policy *p = t.lab->policy;
	const struct policy_port *one = &p->ports[0], *two = &p->ports[1];
	int one_fd = attach("one", "a"), two_fd = attach("two", "a");
	json_t *record = record_of("one");
	struct policy_port card = { 0 };
	uint8_t mac[6];

	assert_true(one_fd >= 0 && two_fd >= 0);
	int control = dial(), fd = -1;
	const struct labd_attach unknown = { "w1", "a", NULL };
	assert_int_equal(labd_attach(control, &unknown, mac, &fd, NULL, &err), -EREMOTEIO);
	close(control);
	int copy_fd = attach_copy("w1", record, "a", &card);
	assert_memory_not_equal(card.mac, one->mac, 6);
	assert_int_equal(policy_port_by_addr(p, &card.v4), -1);
	/* What it still says in the name of the other is not heard; what it says as itself is. */
	struct frame f = tcp_between(one, two, 7001);
	send_frame(copy_fd, &f);
	struct policy_port half = card;
	half.v4 = one->v4;
	f = tcp_between(&half, two, 7002);
	send_frame(copy_fd, &f);
	f = tcp_between(&card, two, 7003);
	send_frame(copy_fd, &f);
	assert_true(await_tcp(two_fd, 7003, LIMIT_MS));
	assert_int_equal(card_number("a.w1", "flows"), 1);
	/* The other goes on, and the copy is found. */
	f = tcp_between(one, two, 7004);
	send_frame(one_fd, &f);
	assert_true(await_tcp(two_fd, 7004, LIMIT_MS));
	f = tcp_between(two, &card, 7005);
	send_frame(two_fd, &f);
	assert_true(await_tcp(copy_fd, 7005, LIMIT_MS));
	f = tcp_between(two, one, 7006);
	send_frame(two_fd, &f);
	assert_true(await_tcp(one_fd, 7006, LIMIT_MS));
	/* It goes. */
	control = dial();
	assert_int_equal(labd_forget(control, "w1", &err), -EREMOTEIO);
	close(control);
	close(copy_fd);
	assert_int_equal(forget("w1"), 0);
	assert_int_equal(card_number("a.w1", "flows"), -1);
	assert_int_equal(forget("three"), -EREMOTEIO);
	assert_int_equal(forget("w1"), -EREMOTEIO);
	json_decref(record);
	close(one_fd);
	close(two_fd);
}

/* Copies that are off make room for others, those that are on don't. */
static void test_copies_come_and_go(void **state)
{
	json_t *record = record_of("three");
	struct policy_port card = { 0 }, three = t.lab->policy->ports[2];
	char name[16];
	int first = attach_copy("first", record, "b", &card);

	for (unsigned i = 0; i < 2 * POLICY_MACHINES_MAX; i++) {
		snprintf(name, sizeof(name), "c%u", i);
		close(attach_copy(name, record, "b", &card));
	}
	assert_true(card_number("b.first", "flows") >= 0);
	int three_fd = attach("three", "b"), last = attach_copy("last", record, "b", &card);
	struct frame f = tcp_between(&three, &card, 7001);
	send_frame(three_fd, &f);
	assert_true(await_tcp(last, 7001, LIMIT_MS));
	json_decref(record);
	close(first);
	close(last);
	close(three_fd);
}

/* More callers than the lab serves at a time: they wait, and all are served. */
static void test_callers_wait(void **state)
{
	int idle[LABD_CLIENTS];

	for (unsigned i = 0; i < LABD_CLIENTS; i++)
		idle[i] = dial();
	int late = dial();
	assert_true(dprintf(late, "{\"cmd\": \"show\"}\n") > 0);
	struct pollfd pfd = { .fd = late, .events = POLLIN };
	close(idle[3]);
	assert_int_equal(poll(&pfd, 1, LIMIT_MS), 1);
	assert_int_equal(pfd.revents, POLLIN);
	close(late);
	for (unsigned i = 0; i < LABD_CLIENTS; i++)
		if (i != 3)
			close(idle[i]);
}

/* The number behind the highest descriptor: with that as its limit a process gets no more if there is no gap. */
static int open_files(void)
{
	char path[64];
	int last = -1;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)t.pid);
	DIR *d = opendir(path);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		last = MAX(last, atoi(e->d_name));
	closedir(d);
	return last + 1;
}

static long cpu_ticks(void)
{
	char path[64], text[1024];
	unsigned long user = 0, system = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)t.pid);
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, text, sizeof(text) - 1);
	close(fd);
	assert_true(n > 0);
	text[n] = 0;
	assert_int_equal(sscanf(strrchr(text, ')') + 2,
				"%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system),
			 2);
	return (long)(user + system);
}

/* Without a descriptor for a caller the lab does not run in circles, and goes on when there is one again. */
static void test_no_descriptors_for_callers(void **state)
{
	const struct timespec moment = { .tv_nsec = 500000000 };
	struct rlimit old, none;

	assert_int_equal(prlimit(t.pid, RLIMIT_NOFILE, NULL, &old), 0);
	none = old;
	int idle[LABD_CLIENTS - 1], n = 0;
	for (; n < LABD_CLIENTS - 1; n++) {
		idle[n] = dial();
		assert_true(dprintf(idle[n], "{\"cmd\": \"show\"}\n") > 0);
	}
	for (int i = 0; i < n; i++) {
		struct pollfd pfd = { .fd = idle[i], .events = POLLIN };
		assert_int_equal(poll(&pfd, 1, LIMIT_MS), 1);
	}
	none.rlim_cur = (rlim_t)open_files();
	assert_int_equal(prlimit(t.pid, RLIMIT_NOFILE, &none, NULL), 0);
	int fd = dial();
	long before = cpu_ticks();
	nanosleep(&moment, NULL);
	/* Half a second of circles are up to 50 of them. */
	assert_true(cpu_ticks() - before < 5);
	assert_int_equal(prlimit(t.pid, RLIMIT_NOFILE, &old, NULL), 0);
	assert_true(dprintf(fd, "{\"cmd\": \"show\"}\n") > 0);
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	assert_int_equal(poll(&pfd, 1, LIMIT_MS), 1);
	close(fd);
	for (int i = 0; i < n; i++)
		close(idle[i]);
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, set_up, tear_down)
	const struct CMUnitTest tests[] = { T(test_frames),
					    T(test_rings),
					    T(test_broken_rings),
					    T(test_flood_is_fair),
					    T(test_flood_takes_no_memory),
					    T(test_descriptors),
					    T(test_descriptors_of_a_lab),
					    T(test_trunk),
					    T(test_faults),
					    T(test_queue),
					    T(test_bad_commands),
					    T(test_the_cut_off_comes_to_its_place),
					    T(test_a_copy_disturbs_nobody),
					    T(test_copies_come_and_go),
					    T(test_callers_wait),
					    T(test_no_descriptors_for_callers) };

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
