/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hostile frames through the process of a lab as it runs, confined, with a way out; what its machines get is judged by the model of
 * hostile_model.h, and a capture of all interfaces of the host, a network namespace of this test's own, has to stay empty.
 *
 *   test_net_hostile_live [FRAMES [SEED]]     10,000 frames unless more are wanted
 *
 * After each frame the machine that sent it asks its gateway for an echo.  When that is there, so is what became of the frame.  At
 * last one connection to the outside is allowed, and the capture has to see it; then the host joins the network where that went, and the
 * next one is denied.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "net/hostile_model.h"
#include "net/labd.h"
#include "net/netns_testing.h"

#define LIMIT_MS 20000
enum { BARRIER_ID = 0xbeef };

static struct {
	char dir[64], path[96];
	pid_t pid;
	int cards[LAB_PORTS]; /* sockets; -1: a part of a trunk */
	int sniffer;
	struct policy *policy;
	uint16_t barriers;
	unsigned long frames, out, nhost;
	struct hostile_frame h;
} t;

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			printf("%s:%d: %s (%s)\n", __FILE__, __LINE__, #x, strerror(errno));       \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

/* ---- the lab ---- */

static struct lab *make_lab(void)
{
	struct lab *l = calloc(1, sizeof(*l));

	CHECK(l);
	l->policy = lab_policy();
	l->policy->nforwards = 0; /* its ports may be taken on this host */
	return l;
}

static void start(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	char text[256] = "";
	int ready[2];

	snprintf(t.dir, sizeof(t.dir), "/tmp/viv-hostile.XXXXXX");
	CHECK(mkdtemp(t.dir));
	snprintf(t.path, sizeof(t.path), "%s/sock", t.dir);
	snprintf(at.sun_path, sizeof(at.sun_path), "%s", t.path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	CHECK(bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(fd, 8) == 0);
	CHECK(pipe(ready) == 0);
	fflush(stdout);
	t.pid = fork();
	if (!t.pid) {
		struct labd_config cfg = { .lab = make_lab(),
					   .control_fd = fd,
					   .ready_fd = ready[1],
					   .resolv_conf = "/dev/null",
					   .is_confined = true,
					   .watches_host = true };
		close(ready[0]);
		_exit(labd_main(&cfg));
	}
	close(fd);
	close(ready[1]);
	CHECK(read(ready[0], text, sizeof(text) - 1) > 0);
	if (strcmp(text, "ok\n") != 0) {
		printf("%s", text);
		exit(1);
	}
	close(ready[0]);
}

static int dial(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(at.sun_path, sizeof(at.sun_path), "%s", t.path);
	CHECK(connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0);
	return fd;
}

static void ask(const char *line)
{
	char answer[4096] = "";
	int fd = dial();

	CHECK(dprintf(fd, "%s\n", line) > 0 && read(fd, answer, sizeof(answer) - 1) > 0);
	close(fd);
	if (!strstr(answer, "\"ok\":true")) {
		printf("%s: %s", line, answer);
		exit(1);
	}
}

static void attach_all(void)
{
	for (unsigned i = 0; i < LAB_PORTS; i++) {
		const struct policy_port *q = &t.policy->ports[i];
		struct labd_attach a = { t.policy->machines[q->machine].name,
					 t.policy->networks[q->network].name, NULL };
		struct error err;
		uint8_t mac[6];
		t.cards[i] = -1;
		if (q->card != i)
			continue;
		int control = dial();
		if (labd_attach(control, &a, mac, &t.cards[i], NULL, &err) < 0) {
			printf("%s.%s: %s\n", a.network, a.machine, err.text);
			exit(1);
		}
		close(control);
		CHECK(memcmp(mac, q->mac, 6) == 0);
	}
}

/* ---- frames ---- */

static void send_frame(unsigned port, const struct net_offload *off, const struct frame *f)
{
	struct iovec iov[2] = { { (void *)(uintptr_t)off, sizeof(*off) },
				{ (void *)(uintptr_t)f->b, f->len } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

	CHECK(sendmsg(t.cards[t.policy->ports[port].card], &msg, MSG_NOSIGNAL) ==
	      (ssize_t)(sizeof(*off) + f->len));
}

/* The port of a card that a frame with this tag is for. */
static int port_at(unsigned card, const struct frame *f)
{
	bool has_tag = f->len >= 18 && f->b[12] == 0x81 && f->b[13] == 0;
	int vlan = has_tag ? (f->b[14] & 15) << 8 | f->b[15] : -1;

	for (unsigned i = card; i < LAB_PORTS; i++)
		if (t.policy->ports[i].card == card && lab_tags[i] == vlan)
			return (int)i;
	return -1;
}

/* What the gateway says of itself: an answer to a barrier, or to all now and then. */
enum { OF_GATEWAY_NONE, OF_GATEWAY, OF_BARRIER };
static int is_of_gateway(unsigned port, const struct frame *f)
{
	struct frame copy = *f;
	size_t tag = lab_tags[port] >= 0 ? 4 : 0;
	struct packet p;

	memmove(copy.b + tag, copy.b, 12);
	if (packet_parse(&p, copy.b + tag, copy.len - tag) != PACKET_FINE || !p.has_l4 ||
	    memcmp(p.src_mac, t.policy->networks[t.policy->ports[port].network].gateway_mac, 6) != 0)
		return OF_GATEWAY_NONE;
	/* Its DNS says some things again, over TCP and until it is heard. */
	const struct policy_port *q = &t.policy->ports[port];
	const struct policy_network *n = &t.policy->networks[q->network];
	if (p.proto == IP_TCP && p.sport == 53 &&
	    (net_addr_is_equal(&p.src, &n->gateway_v4) || net_addr_is_equal(&p.src, &n->gateway_v6) ||
	     net_addr_is_equal(&p.src, &n->gateway_ll)) &&
	    (net_addr_is_equal(&p.dst, &q->v4) || net_addr_is_equal(&p.dst, &q->v6) ||
	     net_addr_is_equal(&p.dst, &q->ll)))
		return OF_GATEWAY;
	if (p.kind == PACKET_IPV6)
		return p.proto == IP_ICMP6 && p.icmp_type == ICMP6_RA ? OF_GATEWAY : OF_GATEWAY_NONE;
	return p.proto == IP_ICMP && p.icmp_type == ICMP_ECHO_REPLY &&
			       net_get16(p.data + p.l4 + 4) == BARRIER_ID &&
			       net_get16(p.data + p.l4 + 6) == t.barriers
		       ? OF_BARRIER
		       : OF_GATEWAY_NONE;
}

/* One frame at a card, judged.  False: there is none; @is_barrier: it was the answer that is waited for. */
static bool take_one(unsigned card, bool is_judged, bool *is_barrier)
{
	struct sent s = { 0 };
	struct iovec iov[2] = { { &s.off, sizeof(s.off) }, { s.frame.b, sizeof(s.frame.b) } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	ssize_t n = recvmsg(t.cards[card], &msg, MSG_DONTWAIT);

	*is_barrier = false;
	if (n < 0 && errno == EAGAIN)
		return false;
	CHECK(n > (ssize_t)sizeof(s.off) + 14 && !(msg.msg_flags & MSG_TRUNC));
	s.frame.len = (size_t)n - sizeof(s.off);
	s.port = port_at(card, &s.frame);
	const char *wrong = s.port < 0 ? "another tag than any network's at that card" : NULL;
	int of = s.port < 0 ? OF_GATEWAY_NONE : is_of_gateway((unsigned)s.port, &s.frame);
	*is_barrier = of == OF_BARRIER;
	if (of != OF_GATEWAY_NONE || !is_judged)
		return true;
	t.out++;
	if (!wrong)
		wrong = hostile_judge(&t.h, &s);
	if (!wrong)
		return true;
	printf("frame %lu, from port %u to %d: %s\n", t.frames, t.h.from, s.port, wrong);
	hostile_print(&s);
	exit(1);
}

/* Until all that the machine at @port has sent went its way. */
static void settle(unsigned port, bool is_judged)
{
	const struct policy_port *q = &t.policy->ports[port];
	const struct policy_network *n = &t.policy->networks[q->network];
	struct frame_ends e = { .src = q->v4, .dst = n->gateway_v4 };
	static const struct net_offload none;
	uint8_t echo[8] = { ICMP_ECHO, 0, 0, 0, BARRIER_ID >> 8, BARRIER_ID & 255 };
	bool is_there = false, is_other;
	struct frame f;

	t.barriers++;
	net_put16(echo + 6, t.barriers);
	memcpy(e.src_mac, q->mac, 6);
	memcpy(e.dst_mac, n->gateway_mac, 6);
	packet_put_sum(echo, sizeof(echo), 2, &e.src, &e.dst, IP_ICMP);
	frame_ip(&f, &e, IP_ICMP, echo, sizeof(echo));
	if (lab_tags[port] >= 0)
		frame_tag(&f, (uint16_t)lab_tags[port]);
	send_frame(port, &none, &f);
	while (!is_there) {
		struct pollfd p = { .fd = t.cards[q->card], .events = POLLIN };
		CHECK(poll(&p, 1, LIMIT_MS) == 1);
		while (!is_there && take_one(q->card, is_judged, &is_there))
			;
	}
	for (unsigned i = 0; i < LAB_PORTS; i++)
		while (t.cards[i] >= 0 && take_one(i, is_judged, &is_other))
			;
}

/* ---- the host ---- */

static void sniff(void)
{
	t.sniffer = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(ETH_P_ALL));
	CHECK(t.sniffer >= 0);
}

/* What the host's interfaces saw: counted, and the first of it shown. */
static void look_at_host(void)
{
	uint8_t b[2048];
	ssize_t n;

	while ((n = recv(t.sniffer, b, sizeof(b), 0)) >= 0) {
		if (!t.nhost++) {
			printf("the host saw, at frame %lu:", t.frames);
			for (ssize_t i = 0; i < MIN(n, (ssize_t)64); i++)
				printf(" %02x", b[i]);
			printf("\n");
		}
	}
	CHECK(errno == EAGAIN);
}

/* It sees what goes out when something may. */
static void try_capture(void)
{
	struct frame_ends e = { .src = t.policy->ports[WEB_DMZ].v4, .dst = frame_addr(LAB_LEARNT) };
	static const struct net_offload none;
	struct pollfd p = { .fd = t.sniffer, .events = POLLIN };
	uint8_t b[2048], want[4] = { 93, 184, 216, 34 };
	struct frame f;
	ssize_t n;

	memcpy(e.src_mac, t.policy->ports[WEB_DMZ].mac, 6);
	memcpy(e.dst_mac, t.policy->networks[DMZ].gateway_mac, 6);
	frame_tcp(&f, &e, 999, 81, PACKET_SYN);
	send_frame(WEB_DMZ, &none, &f);
	settle(WEB_DMZ, false);
	look_at_host();
	CHECK(t.nhost == 0);
	ask("{\"cmd\": \"allow\", \"rule\": \"dmz.web -> internet\", \"what\": \"tcp/81\"}");
	send_frame(WEB_DMZ, &none, &f);
	CHECK(poll(&p, 1, LIMIT_MS) == 1);
	n = recv(t.sniffer, b, sizeof(b), 0);
	CHECK(n >= 54 && memcmp(b + 30, want, 4) == 0);
}

/* The next frame at the card is ICMP's word for something that a rule denies. */
static bool is_denied(void)
{
	uint8_t b[2048];
	ssize_t n;
	bool is_it = false;

	while ((n = recv(t.cards[WEB_DMZ], b, sizeof(b), MSG_DONTWAIT)) > 0) {
		const uint8_t *ip = b + sizeof(struct net_offload) + 14;
		is_it |= n >= (ssize_t)sizeof(struct net_offload) + 42 && ip[9] == IP_ICMP &&
			 ip[20] == ICMP_UNREACHABLE && ip[21] == 13;
	}
	return is_it;
}

static void try_new_network(void)
{
	struct frame_ends e = { .src = t.policy->ports[WEB_DMZ].v4, .dst = frame_addr(LAB_LEARNT) };
	static const struct net_offload none;
	struct frame f;
	bool is_it = false;

	memcpy(e.src_mac, t.policy->ports[WEB_DMZ].mac, 6);
	memcpy(e.dst_mac, t.policy->networks[DMZ].gateway_mac, 6);
	is_denied();
	CHECK(netns_add_address("lo:1", "93.184.216.1", "255.255.255.0"));
	for (unsigned i = 0; i < LIMIT_MS / 20 && !is_it; i++) {
		frame_tcp(&f, &e, (uint16_t)(2000 + i), 81, PACKET_SYN);
		send_frame(WEB_DMZ, &none, &f);
		nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
		is_it = is_denied();
	}
	CHECK(is_it);
}

int main(int argc, char **argv)
{
	unsigned long frames = argc > 1 ? strtoul(argv[1], NULL, 0) : 10000;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	struct timespec begin, end;
	int status;

	if (!netns_enter()) {
		printf("this host gives no namespaces: the lab's host can't be watched here\n");
		return 77;
	}
	CHECK(netns_up("lo") && netns_route_all("lo"));
	t.policy = lab_policy();
	sniff();
	start();
	attach_all();
	for (unsigned i = 0; i < LAB_PORTS; i++)
		settle(i, false);
	hostile_seed(t.policy, seed, false);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (; t.frames < frames && !t.nhost; t.frames++) {
		if (hostile_rnd(10) == 0)
			hostile_proper(&t.h);
		else
			hostile_make(&t.h);
		send_frame(t.h.from, &t.h.hints, &t.h.frame);
		settle(t.h.from, true);
		look_at_host();
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	if (!t.nhost) {
		try_capture();
		try_new_network();
	}
	ask("{\"cmd\": \"stop\"}");
	CHECK(waitpid(t.pid, &status, 0) == t.pid && status == 0);
	unlink(t.path);
	rmdir(t.dir);
	policy_free(t.policy);
	printf("%lu frames of seed %llu in %ld s: %lu came out, none that should not; %lu on the "
	       "host's interfaces\n",
	       t.frames, (unsigned long long)seed, (long)(end.tv_sec - begin.tv_sec), t.out, t.nhost);
	/* A run in which nothing came out has tested nothing. */
	return t.nhost || !t.out;
}
