/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "char/chardev.h"

/* The guest's side. */
static struct {
	uint8_t in[1 << 16];
	size_t nin, room;
	unsigned writables, connects, disconnects;
	unsigned cols, rows;
} guest;

static size_t can_receive(void *ctx)
{
	return guest.room;
}

static void receive(void *ctx, const uint8_t *data, size_t len)
{
	assert_true(len <= guest.room);
	memcpy(guest.in + guest.nin, data, len);
	guest.nin += len;
	guest.room -= len;
}

static void writable(void *ctx)
{
	guest.writables++;
}

static void connected(void *ctx, bool is_connected)
{
	if (is_connected)
		guest.connects++;
	else
		guest.disconnects++;
}

static void resized(void *ctx, unsigned cols, unsigned rows)
{
	guest.cols = cols;
	guest.rows = rows;
}

static const struct char_user guest_user = { can_receive, receive,  resized,
					     connected,	  writable, NULL };

static struct loop *loop;

static int setup(void **state)
{
	memset(&guest, 0, sizeof(guest));
	guest.room = 1000;
	assert_int_equal(loop_create(&loop, NULL, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	loop_destroy(loop);
	return 0;
}

static void spin(void)
{
	for (unsigned i = 0; i < 20; i++)
		loop_run_once(loop, 0);
}

static void put(int fd, const char *s)
{
	assert_int_equal(write(fd, s, strlen(s)), strlen(s));
}

static void expect(int fd, const char *s)
{
	char buf[256] = { 0 };
	ssize_t n = recv(fd, buf, sizeof(buf) - 1, MSG_DONTWAIT);

	assert_int_equal(n, strlen(s) ? (ssize_t)strlen(s) : -1);
	assert_memory_equal(buf, s, strlen(s));
}

static void expect_guest(const char *s)
{
	assert_int_equal(guest.nin, strlen(s));
	assert_memory_equal(guest.in, s, strlen(s));
}

static void test_null(void **state)
{
	struct char_dev *c;

	assert_int_equal(chardev_null(&c, NULL), 0);
	assert_int_equal(c->ops->write(c, (const uint8_t *)"abc", 3), 3);
	c->ops->rx_ready(c);
	c->ops->close(c);
}

static void test_fd_pipe(void **state)
{
	struct char_dev *c;
	int in[2], out[2], flags;
	uint8_t block[5000];
	size_t sent = 0, got = 0, n;

	memset(block, 'x', sizeof(block));
	assert_int_equal(pipe(in), 0);
	assert_int_equal(pipe(out), 0);
	assert_int_equal(chardev_fd(&c, loop, in[0], out[1], NULL), 0);
	/* the borrowed descriptors stay in blocking mode */
	flags = fcntl(in[0], F_GETFL) | fcntl(out[1], F_GETFL);
	assert_int_equal(flags & O_NONBLOCK, 0);
	c->user = guest_user;
	put(in[1], "hello");
	spin();
	expect_guest("hello");
	guest.room = 2;
	put(in[1], "world");
	spin();
	expect_guest("hellowo");
	guest.room = 10;
	spin(); /* nobody said so yet */
	expect_guest("hellowo");
	c->ops->rx_ready(c);
	spin();
	expect_guest("helloworld");

	/* a full pipe: short write, then writable */
	while ((n = c->ops->write(c, block, sizeof(block))) == sizeof(block))
		sent += n;
	sent += n;
	assert_true(sent >= 4096 && sent < 10 * MIB);
	spin();
	assert_int_equal(guest.writables, 0);
	while (got < sent) {
		ssize_t r = read(out[0], block, sizeof(block));

		assert_true(r > 0);
		got += (size_t)r;
	}
	spin();
	assert_int_equal(guest.writables, 1);
	assert_int_equal(c->ops->write(c, block, 10), 10);

	close(in[1]);
	guest.room = 10;
	c->ops->rx_ready(c);
	spin();
	assert_int_equal(guest.disconnects, 1);
	close(out[0]); /* broken output: bytes vanish, the guest goes on */
	assert_int_equal(c->ops->write(c, block, 10), 10);
	assert_int_equal(c->ops->write(c, block, 10), 10);
	c->ops->close(c);
	assert_int_equal(fcntl(in[0], F_GETFD), 0);
	close(in[0]);
	close(out[1]);
}

static void test_fd_socket_both_ways(void **state)
{
	struct char_dev *c;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(chardev_fd(&c, loop, sv[0], sv[0], NULL), 0);
	c->user = guest_user;
	put(sv[1], "ping");
	spin();
	expect_guest("ping");
	assert_int_equal(c->ops->write(c, (const uint8_t *)"pong", 4), 4);
	expect(sv[1], "pong");
	assert_int_equal(fcntl(sv[0], F_GETFL) & O_NONBLOCK, 0);
	c->ops->close(c);
	close(sv[0]);
	close(sv[1]);
}

static void test_fd_file(void **state)
{
	struct char_dev *c;
	FILE *in = tmpfile(), *out = tmpfile();
	char text[8] = { 0 };

	fputs("from a file", in);
	rewind(in);
	guest.room = 6;
	assert_int_equal(chardev_fd(&c, loop, fileno(in), fileno(out), NULL), 0);
	c->user = guest_user;
	spin();
	expect_guest("from a");
	guest.room = 100;
	c->ops->rx_ready(c);
	spin();
	expect_guest("from a file");
	assert_int_equal(guest.disconnects, 1);
	assert_int_equal(c->ops->write(c, (const uint8_t *)"to one", 6), 6);
	c->ops->close(c);
	assert_int_equal(pread(fileno(out), text, 7, 0), 6);
	assert_string_equal(text, "to one");
	fclose(in);
	fclose(out);
}

static void test_fd_none_and_bad(void **state)
{
	struct char_dev *c;
	struct error err;

	assert_int_equal(chardev_fd(&c, loop, -1, -1, NULL), 0);
	assert_int_equal(c->ops->write(c, (const uint8_t *)"x", 1), 1);
	c->ops->rx_ready(c);
	c->ops->close(c);
	assert_int_equal(chardev_fd(&c, loop, 12345, -1, &err), -EBADF);
}

static void hub_write(struct char_dev *h, const char *s)
{
	assert_int_equal(h->ops->write(h, (const uint8_t *)s, strlen(s)), strlen(s));
}

static void test_hub_clients_come_and_go(void **state)
{
	struct char_dev *h;
	int a[2], b[2];
	char logged[32] = { 0 };
	FILE *log = tmpfile();

	assert_int_equal(chardev_hub(&h, loop, 8, fileno(log), NULL), 0);
	h->user = guest_user;
	hub_write(h, "nobody hears this");
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, b), 0);
	assert_int_equal(chardev_hub_attach(h, a[0], true, NULL), 0);
	expect(a[1], "ars this");
	assert_int_equal(guest.connects, 1);
	assert_int_equal(chardev_hub_attach(h, b[0], false, NULL), 0);
	expect(b[1], "");
	assert_int_equal(guest.connects, 1);
	hub_write(h, "both");
	expect(a[1], "both");
	expect(b[1], "both");
	put(a[1], "1");
	put(b[1], "2");
	spin();
	assert_int_equal(guest.nin, 2);
	close(a[1]);
	spin();
	assert_int_equal(guest.disconnects, 0);
	hub_write(h, "one");
	expect(b[1], "one");
	/* a client that vanishes between two writes */
	close(b[1]);
	hub_write(h, "x");
	hub_write(h, "y");
	spin();
	assert_int_equal(guest.disconnects, 1);
	hub_write(h, "z");
	chardev_hub_resize(h, 80, 25);
	assert_int_equal(guest.cols, 80);
	assert_int_equal(guest.rows, 25);
	h->ops->close(h);
	assert_int_equal(pread(fileno(log), logged, 31, 0), 27);
	assert_string_equal(logged, "nobody hears thisbothonexyz");
	fclose(log);
}

static void test_hub_input(void **state)
{
	struct char_dev *h;
	int a[2];

	assert_int_equal(chardev_hub(&h, loop, 0, -1, NULL), 0);
	chardev_hub_input(h, (const uint8_t *)"early ", 6); /* no guest yet */
	h->user = guest_user;
	guest.room = 3;
	h->ops->rx_ready(h);
	expect_guest("ear");
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
	assert_int_equal(chardev_hub_attach(h, a[0], true, NULL), 0);
	put(a[1], "late");
	guest.room = 1;
	spin();
	expect_guest("ear"); /* the order is kept */
	guest.room = 5;
	h->ops->rx_ready(h);
	spin();
	expect_guest("early la");
	guest.room = 5;
	h->ops->rx_ready(h);
	spin();
	expect_guest("early late");
	close(a[1]);
	h->ops->close(h);
}

/* A client that does not read must not hold up the guest, and is told what it missed. */
static void test_hub_slow_client(void **state)
{
	struct char_dev *h;
	int a[2];
	uint8_t block[4096], got[8192];
	uint64_t sent = 0, received = 0, lost = 0;
	unsigned next = 0;
	ssize_t n;
	char *text = malloc(4 * MIB), *mark;
	size_t ntext = 0;

	assert_int_equal(chardev_hub(&h, loop, 0, -1, NULL), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
	assert_int_equal(chardev_hub_attach(h, a[0], true, NULL), 0);
	for (unsigned i = 0; i < 512; i++) { /* 2 MiB */
		for (unsigned k = 0; k < sizeof(block); k++)
			block[k] = (uint8_t)('a' + next++ % 26);
		assert_int_equal(h->ops->write(h, block, sizeof(block)), sizeof(block));
		sent += sizeof(block);
	}
	for (;;) {
		spin();
		n = recv(a[1], got, sizeof(got), MSG_DONTWAIT);
		if (n <= 0)
			break;
		memcpy(text + ntext, got, (size_t)n);
		ntext += (size_t)n;
	}
	text[ntext] = 0;
	mark = strstr(text, "\r\n[");
	assert_non_null(mark);
	lost = strtoull(mark + 3, NULL, 10);
	received = ntext - (size_t)(strstr(mark, "]\r\n") + 3 - mark);
	assert_int_equal(received + lost, sent);
	/* what comes after the gap is the right text */
	mark = strstr(mark, "]\r\n") + 3;
	for (size_t k = 0; mark[k]; k++)
		assert_int_equal(
			mark[k],
			'a' + (int)(((uint64_t)(mark - text) - (ntext - received) + lost + k) % 26));
	assert_int_equal(text[ntext - 1], 'a' + (int)((sent - 1) % 26));
	free(text);
	close(a[1]);
	h->ops->close(h);
}

/* Another hub goes on: nothing is lost, nothing comes twice, and who comes later sees what was before. */
static void test_hub_goes_on_elsewhere(void **state)
{
	struct char_dev *from, *to;
	struct bytes saved = { 0 };
	int a[2], b[2], fds[CHARDEV_CLIENTS_MAX];

	assert_int_equal(chardev_hub(&from, loop, 64, -1, NULL), 0);
	assert_int_equal(chardev_hub(&to, loop, 64, -1, NULL), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, a), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, b), 0);
	assert_int_equal(chardev_hub_attach(from, a[0], false, NULL), 0);
	hub_write(from, "before ");
	chardev_hub_hold(from, true);
	hub_write(from, "meanwhile");
	chardev_hub_input(from, (const uint8_t *)"typed", 5);
	spin();
	expect(a[1], "before ");
	put(a[1], "!");
	spin();
	assert_int_equal(chardev_hub_save(from, &saved, fds), 1);
	int fd = dup(fds[0]);
	from->ops->close(from);
	assert_int_equal(chardev_hub_load(to, saved.data, saved.len, &fd, 1, NULL), 0);
	expect(a[1], "meanwhile");
	to->user = guest_user;
	guest.room = 10;
	to->ops->rx_ready(to);
	spin();
	expect_guest("typed!");
	assert_int_equal(chardev_hub_attach(to, b[0], true, NULL), 0);
	expect(b[1], "before meanwhile");
	hub_write(to, " after");
	expect(a[1], " after");
	/* It did not come to that. */
	chardev_hub_hold(to, true);
	hub_write(to, "...");
	expect(a[1], "");
	chardev_hub_hold(to, false);
	spin();
	expect(a[1], "...");
	to->ops->close(to);
	for (size_t cut = 0; cut < saved.len; cut++) {
		struct error err;

		assert_int_equal(chardev_hub(&to, loop, 64, -1, NULL), 0);
		(void)chardev_hub_load(to, saved.data, cut, NULL, 0, &err);
		to->ops->close(to);
	}
	bytes_free(&saved);
	close(a[1]);
	close(b[1]);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_null),	   T(test_fd_pipe),	    T(test_fd_socket_both_ways),
		T(test_fd_file),   T(test_fd_none_and_bad), T(test_hub_clients_come_and_go),
		T(test_hub_input), T(test_hub_slow_client), T(test_hub_goes_on_elsewhere),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
