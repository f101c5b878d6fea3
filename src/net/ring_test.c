/* SPDX-License-Identifier: Apache-2.0 */
/* Both ends of the memory of frames, and a third hand that writes to it as a hostile end may. */
#include "net/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/host.h"
#include "net/link.h"

enum { BYTES = 4096, TAIL = 64, RING_1 = 128 };

static struct {
	struct net_ring *maker, *joiner;
	int fd;
	uint8_t *raw; /* all of it, as one mapping */
} t;

static int setup(void **state)
{
	assert_int_equal(net_ring_make(&t.maker, &t.fd), 0);
	assert_int_equal(net_ring_join(&t.joiner, t.fd), 0);
	t.raw = mmap(NULL, BYTES + 2 * NET_RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, t.fd, 0);
	assert_true(t.raw != MAP_FAILED);
	return 0;
}

static int teardown(void **state)
{
	munmap(t.raw, BYTES + 2 * NET_RING_BYTES);
	net_ring_destroy(t.maker);
	net_ring_destroy(t.joiner);
	close(t.fd);
	return 0;
}

static uint32_t get(size_t at)
{
	uint32_t v;

	memcpy(&v, t.raw + at, 4);
	return v;
}

static void set(size_t at, uint32_t v)
{
	memcpy(t.raw + at, &v, 4);
}

static uint8_t byte_of(uint32_t frame, size_t at)
{
	return (uint8_t)(frame * 31 + at * 7 + (at >> 8));
}

static int put(struct net_ring *r, uint32_t number, size_t len, bool *rings)
{
	static _Thread_local uint8_t frame[NET_FRAME_MAX + 1];
	struct net_offload off = { .flags = 1, .gso_size = (uint16_t)number, .csum_offset = 16 };
	struct iovec iov[2] = { { frame, len / 3 }, { frame + len / 3, len - len / 3 } };

	for (size_t i = 0; i < len; i++)
		frame[i] = byte_of(number, i);
	return net_ring_put(r, &off, iov, 2, rings);
}

static void check(const struct net_ring_frame *f, uint32_t number, size_t len)
{
	assert_int_equal(f->len, len);
	assert_int_equal(f->off.flags, 1);
	assert_int_equal(f->off.gso_size, (uint16_t)number);
	assert_int_equal(f->off.csum_offset, 16);
	for (size_t i = 0; i < len; i++)
		if (f->data[i] != byte_of(number, i))
			fail_msg("byte %zu of frame %u", i, number);
}

static size_t len_of(uint32_t number)
{
	return number % 5 == 0 ? NET_FRAME_MAX - number % 64 : 1 + number * 37 % 1600;
}

/* Both ways, often around. */
static void test_frames(void **state)
{
	struct net_ring *ends[2] = { t.maker, t.joiner };
	struct net_ring_frame f;
	bool rings;

	for (uint32_t n = 0; n < 400; n++)
		for (unsigned way = 0; way < 2; way++) {
			assert_int_equal(put(ends[way], n, len_of(n), &rings), 0);
			assert_int_equal(net_ring_peek(ends[!way], &f), 1);
			assert_int_equal(net_ring_peek(ends[!way], &f), 1);
			check(&f, n, len_of(n));
			net_ring_pop(ends[!way]);
			assert_int_equal(net_ring_peek(ends[!way], &f), 0);
		}
	assert_int_equal(put(t.maker, 0, NET_FRAME_MAX + 1, &rings), -EMSGSIZE);
	assert_int_equal(put(t.maker, 0, 0, &rings), -EMSGSIZE);
	assert_int_equal(net_ring_peek(t.joiner, &f), 0);
}

static void test_full(void **state)
{
	struct net_ring_frame f;
	bool rings = false, wakes = false;
	unsigned n = 0, left;

	while (net_ring_has_room(t.maker))
		assert_int_equal(put(t.maker, n++, 5000, &rings), 0);
	assert_true(n > 3);
	while (put(t.maker, n, 5000, &rings) == 0)
		n++;
	assert_int_equal(put(t.maker, n, 5000, &rings), -EAGAIN);
	/* Half of it is free before anybody is woken. */
	for (left = n; !wakes; left--) {
		assert_int_equal(net_ring_peek(t.joiner, &f), 1);
		check(&f, n - left, 5000);
		wakes = net_ring_pop(t.joiner);
		assert_true(left > 1);
	}
	assert_in_range(left, n * 4 / 10, n * 6 / 10);
	assert_true(net_ring_has_room(t.maker));
	assert_int_equal(put(t.maker, n, 5000, &rings), 0);
	/* Nobody waits: nobody is woken. */
	for (; left; left--) {
		assert_int_equal(net_ring_peek(t.joiner, &f), 1);
		assert_false(net_ring_pop(t.joiner));
	}
}

static void test_bells(void **state)
{
	struct net_ring_frame f;
	bool rings = false;

	/* Nobody has looked yet: the first frame rings, the second does not. */
	assert_int_equal(put(t.maker, 1, 60, &rings), 0);
	assert_true(rings);
	rings = false;
	assert_int_equal(put(t.maker, 2, 60, &rings), 0);
	assert_false(rings);
	assert_false(net_ring_sleep(t.joiner));
	assert_int_equal(net_ring_peek(t.joiner, &f), 1);
	net_ring_pop(t.joiner);
	assert_false(net_ring_sleep(t.joiner));
	assert_int_equal(net_ring_peek(t.joiner, &f), 1);
	net_ring_pop(t.joiner);
	assert_int_equal(put(t.maker, 3, 60, &rings), 0);
	assert_false(rings);
	assert_false(net_ring_sleep(t.joiner));
	assert_int_equal(net_ring_peek(t.joiner, &f), 1);
	net_ring_pop(t.joiner);
	assert_true(net_ring_sleep(t.joiner));
	assert_int_equal(put(t.maker, 4, 60, &rings), 0);
	assert_true(rings);
}

/* Positions and lengths of a hostile end. */
static void test_hostile_producer(void **state)
{
	static const struct {
		uint32_t head, len;
	} bad[] = {
		{ NET_RING_BYTES + 16, 60 }, /* more than there is */
		{ UINT32_MAX - 15, 60 },     /* backwards */
		{ 8, 60 },		     /* no header */
		{ 80, 0 },
		{ 80, 65 }, /* behind what was written */
		{ 80, UINT32_MAX },
		{ 80, UINT32_MAX - 15 },
		{ NET_RING_BYTES, NET_FRAME_MAX + 1 },
	};
	struct net_ring_frame f;

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		set(0, bad[i].head);
		set(BYTES, bad[i].len);
		assert_int_equal(net_ring_peek(t.joiner, &f), -EPROTO);
		assert_int_equal(net_ring_peek(t.joiner, &f), -EPROTO);
		assert_false(net_ring_sleep(t.joiner)); /* it is to be told */
		teardown(state);
		setup(state);
	}
	/* The longest. */
	set(0, NET_RING_BYTES);
	set(BYTES, NET_FRAME_MAX);
	assert_int_equal(net_ring_peek(t.joiner, &f), 1);
	assert_int_equal(f.len, NET_FRAME_MAX);
	/* What it says afterwards does not count. */
	set(BYTES, 1);
	net_ring_pop(t.joiner);
	assert_int_equal(get(TAIL), 16 + ALIGN_UP(NET_FRAME_MAX, 16));
}

static void test_hostile_consumer(void **state)
{
	bool rings;

	assert_int_equal(put(t.maker, 0, 100, &rings), 0);
	set(TAIL, 4 * NET_RING_BYTES); /* ahead of all that was written */
	int r;
	for (unsigned n = 0; (r = put(t.maker, n, 60000, &rings)) == 0; n++)
		assert_true(n < NET_RING_BYTES / 60000);
	assert_int_equal(r, -EPROTO);
	assert_int_equal(put(t.maker, 1, 60000, &rings), -EPROTO);
	assert_true(net_ring_has_room(t.maker)); /* who waits would never be told */
	/* Nothing but the ring's own bytes was written. */
	for (size_t i = BYTES + NET_RING_BYTES; i < BYTES + 2 * NET_RING_BYTES; i++)
		assert_int_equal(t.raw[i], 0);
}

static void test_no_such_memory(void **state)
{
	struct net_ring *r = NULL;
	int fds[2];

	/* It cannot be made shorter under the other's feet. */
	assert_int_equal(ftruncate(t.fd, 0), -1);
	assert_int_equal(ftruncate(t.fd, 1 << 24), -1);
	int fd = memfd_create("test", MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(fd, BYTES + 2 * NET_RING_BYTES), 0);
	assert_int_equal(net_ring_join(&r, fd), -EPROTO);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL), 0);
	assert_int_equal(net_ring_join(&r, fd), -EPROTO);
	close(fd);
	fd = memfd_create("test", MFD_ALLOW_SEALING);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	assert_int_equal(net_ring_join(&r, fd), -EPROTO);
	close(fd);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(net_ring_join(&r, fds[0]), -EPROTO);
	close(fds[0]);
	close(fds[1]);
	assert_null(r);
}

static unsigned mmaps_left;

static void *failing_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	if (mmaps_left--)
		return mmap(addr, len, prot, flags, fd, offset);
	errno = ENOMEM;
	return MAP_FAILED;
}

static int failing_ftruncate(int fd, off_t len)
{
	errno = ENOSPC;
	return -1;
}

static void *no_memory(size_t len)
{
	return NULL;
}

static void test_host_failures(void **state)
{
	struct net_ring *r = NULL;
	int fd = -1, next = dup(0);

	close(next);
	host.ftruncate = failing_ftruncate;
	assert_int_equal(net_ring_make(&r, &fd), -ENOSPC);
	host = host_calls_real;
	host.malloc = no_memory;
	assert_int_equal(net_ring_make(&r, &fd), -ENOMEM);
	host = host_calls_real;
	host.mmap = failing_mmap;
	for (unsigned i = 0; i < 6; i++) {
		mmaps_left = i;
		assert_int_equal(net_ring_make(&r, &fd), -ENOMEM);
		mmaps_left = i;
		assert_int_equal(net_ring_join(&r, t.fd), -ENOMEM);
	}
	host = host_calls_real;
	assert_null(r);
	assert_int_equal(fd, -1);
	fd = dup(0);
	assert_int_equal(fd, next); /* none was left open */
	close(fd);
	net_ring_destroy(NULL);
}

/* Where the page of controls of a ring is mapped, as the process's list of mappings has it. */
static void *find_mapping(void)
{
	char line[512];
	unsigned long from = 0;
	FILE *maps = fopen("/proc/self/maps", "r");

	while (maps && !from && fgets(line, sizeof(line), maps))
		if (strstr(line, "viv-frames"))
			sscanf(line, "%lx-", &from);
	if (maps)
		fclose(maps);
	return (void *)from;
}

/* A copy of the process does not have the memory, and leaves alone what it has in that place. */
static void test_fork(void **state)
{
	struct net_ring *rings[2] = { t.maker, t.joiner };
	int status;

	munmap(t.raw, BYTES + 2 * NET_RING_BYTES);
	uint8_t *at = find_mapping();
	assert_non_null(at);
	pid_t pid = fork();
	if (!pid) {
		if (find_mapping())
			_exit(1);
		uint8_t *own = mmap(at, BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (own != at)
			_exit(2);
		own[0] = 7;
		for (unsigned i = 0; i < 2; i++)
			net_ring_destroy(rings[i]);
		_exit(own[0] == 7 ? 0 : 3);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_ptr_equal(find_mapping(), at);
}

/* A packet that is longer than any frame is neither a frame nor the message that its first byte would be. */
static void test_cut_packet(void **state)
{
	static uint8_t packet[sizeof(struct net_offload) + NET_FRAME_MAX + 1] = { 'B' };
	static uint8_t frame[NET_FRAME_MAX];
	struct net_offload off;
	struct net_link_rx rx = { &off, frame };
	struct net_ring_frame f;
	struct net_link l;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
	net_link_open(&l, fds[0], false);
	for (size_t is_bell = 0; is_bell < 2; is_bell++) {
		assert_int_equal(send(fds[1], packet, is_bell ? 1 : sizeof(packet), 0),
				 is_bell ? 1 : sizeof(packet));
		net_link_polled(&l, POLLIN);
		assert_int_equal(net_link_next(&l, &rx, &f), 0);
		assert_int_equal(l.is_asleep, !is_bell);
	}
	net_link_close(&l);
	close(fds[1]);
}

/* ---- a link whose machine goes on in another process ---- */

static struct {
	struct net_offload off;
	uint8_t frame[NET_FRAME_MAX];
} got;
static const struct net_link_rx to_got = { &got.off, got.frame };

/* What comes out of @l now, as the first byte of each frame. */
static unsigned take_all(struct net_link *l, char *out)
{
	struct net_ring_frame f;
	uint32_t timeout = 0;
	unsigned n = 0;
	struct pollfd p = { .fd = l->fd };
	int r;

	for (unsigned round = 0; round < 8; round++) {
		p.events = net_link_poll(l, false, &timeout);
		if (poll(&p, 1, 0) < 0)
			break;
		net_link_polled(l, p.revents);
		while ((r = net_link_next(l, &to_got, &f)) == 1) {
			out[n++] = (char)f.data[0];
			net_link_done(l);
		}
		assert_true(r == 0);
		if (l->wants_move)
			net_link_move(l);
		p.fd = l->fd;
	}
	out[n] = 0;
	return n;
}

static void send_letter(struct net_link *l, char letter)
{
	uint8_t frame[100] = { (uint8_t)letter };
	const struct iovec iov = { frame, sizeof(frame) };
	const struct net_offload off = { 0 };

	assert_int_equal(net_link_send(l, &off, &iov, 1), 0);
	assert_int_equal(net_link_ring(l), 0);
}

static void link_pair(struct net_link *network, struct net_link *machine)
{
	char none[32];
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	net_link_open(network, fds[0], false);
	net_link_open(machine, fds[1], true);
	for (unsigned i = 0; i < 3; i++) {
		take_all(network, none);
		take_all(machine, none);
	}
	assert_true(network->has_rings && machine->has_rings);
}

static void test_goes_on_elsewhere(void **state)
{
	struct net_link network, old, new;
	char text[64];
	int fds[2];

	link_pair(&network, &old);
	send_letter(&old, 'a');
	take_all(&network, text);
	assert_string_equal(text, "a");
	/* On their way when it leaves: both directions. */
	send_letter(&network, '1');
	send_letter(&network, '2');
	send_letter(&old, 'b');
	send_letter(&old, 'c');
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	net_link_open(&new, fds[0], true);
	assert_int_equal(net_link_hand_over(old.fd, fds[1]), 0);
	close(fds[1]);
	take_all(&network, text);
	assert_string_equal(text, "bc");
	struct pollfd p = { .fd = old.fd, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 0), 1);
	assert_true(p.revents & POLLHUP);
	net_link_close(&old);
	send_letter(&network, '3');
	for (unsigned i = 0, n = 0; i < 4; i++) {
		n += take_all(&new, text + n);
		char more[32];
		assert_int_equal(take_all(&network, more), 0);
	}
	assert_string_equal(text, "123");
	assert_true(new.has_rings &&network.has_rings && !network.old);
	send_letter(&new, 'd');
	take_all(&network, text);
	assert_string_equal(text, "d");
	net_link_close(&new);
	net_link_close(&network);
}

/* What is no packet socket is no way to go on, nor is what comes from the network. */
static void test_goes_nowhere(void **state)
{
	struct net_link network, machine;
	char text[64];
	int fds[2];

	link_pair(&network, &machine);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(net_link_hand_over(machine.fd, fds[1]), 0);
	assert_int_equal(net_link_hand_over(network.fd, fds[1]), 0);
	take_all(&network, text);
	take_all(&machine, text);
	assert_false(network.wants_move);
	send_letter(&machine, 'x');
	take_all(&network, text);
	assert_string_equal(text, "x");
	close(fds[0]);
	close(fds[1]);
	net_link_close(&machine);
	net_link_close(&network);
}

/* Two threads; who may sleep does, until the other's bell. */
enum { FRAMES = 20000 };

struct bell {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool is_rung;
};
static struct bell to_consumer = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false },
		   to_producer = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false };

static void ring(struct bell *b)
{
	pthread_mutex_lock(&b->lock);
	b->is_rung = true;
	pthread_cond_signal(&b->cond);
	pthread_mutex_unlock(&b->lock);
}

static void await(struct bell *b)
{
	pthread_mutex_lock(&b->lock);
	while (!b->is_rung)
		pthread_cond_wait(&b->cond, &b->lock);
	b->is_rung = false;
	pthread_mutex_unlock(&b->lock);
}

static void *consume(void *arg)
{
	struct net_ring_frame f;

	for (uint32_t n = 0; n < FRAMES;) {
		int r = net_ring_peek(t.joiner, &f);
		assert_true(r >= 0);
		if (r == 1) {
			check(&f, n, 1 + n * 37 % 3000);
			n++;
			if (net_ring_pop(t.joiner))
				ring(&to_producer);
		} else if (net_ring_sleep(t.joiner)) {
			await(&to_consumer);
		}
	}
	return NULL;
}

static void test_two_threads(void **state)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, consume, NULL), 0);
	for (uint32_t n = 0; n < FRAMES;) {
		bool rings = false;
		int r = put(t.maker, n, 1 + n * 37 % 3000, &rings);
		if (rings)
			ring(&to_consumer);
		if (r == -EAGAIN)
			await(&to_producer);
		else
			n++;
		assert_true(r == 0 || r == -EAGAIN);
		if (n % 1000 == 0)
			sched_yield();
	}
	assert_int_equal(pthread_join(thread, NULL), 0);
}

int main(void)
{
#define T(x) cmocka_unit_test_setup_teardown(x, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_frames),
		T(test_full),
		T(test_bells),
		T(test_hostile_producer),
		T(test_hostile_consumer),
		T(test_no_such_memory),
		T(test_host_failures),
		T(test_fork),
		T(test_cut_packet),
		T(test_goes_on_elsewhere),
		T(test_goes_nowhere),
		T(test_two_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
