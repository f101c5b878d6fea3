/* SPDX-License-Identifier: Apache-2.0 */
/* The machine's end of the socket: order, sizes, waiting, and a server that lies or goes away. */
#include "share/port.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "base/iov.h"
#include "share/testing.h"

#define NREQS SHARE_REQS_MAX

/* A request as a guest has it: in pieces. */
struct guest_req {
	struct share_req req;
	struct iovec iov[6];
	uint8_t out[P9_MSIZE_MAX], in[P9_MSIZE_MAX];
	size_t written;
	unsigned ndone;
};

static struct loop *loop;
static struct share_port *port;
static int server; /* the other end */
static struct guest_req *reqs;

static void on_done(struct share_req *req, size_t written)
{
	struct guest_req *g = req->owner;

	g->written = written;
	g->ndone++;
}

static int set_up(void **state)
{
	struct error err;
	int fds[2];

	reqs = calloc(NREQS + 1, sizeof(*reqs));
	assert_non_null(reqs);
	assert_int_equal(loop_create(&loop, NULL, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(share_port_socket(&port, loop, fds[0], "test", &err), 0);
	server = fds[1];
	return 0;
}

static int tear_down(void **state)
{
	port->ops->close(port);
	loop_destroy(loop);
	if (server >= 0)
		close(server);
	free(reqs);
	return 0;
}

/* A message of @len bytes with @room for its answer, both cut in three. */
static struct guest_req *submit(unsigned i, uint8_t type, uint16_t tag, uint32_t len, size_t room)
{
	struct guest_req *g = &reqs[i];
	const size_t cuts[] = { MIN(3u, len), MIN(9u, len) };

	memcpy(g->out, &len, 4);
	g->out[4] = type;
	memcpy(g->out + 5, &tag, 2);
	for (uint32_t k = P9_HEADER; k < len; k++)
		g->out[k] = (uint8_t)(k * 7 + i);
	memset(g->in, 0xee, 70000);
	g->iov[0] = (struct iovec){ g->out, cuts[0] };
	g->iov[1] = (struct iovec){ g->out + cuts[0], cuts[1] - cuts[0] };
	g->iov[2] = (struct iovec){ g->out + cuts[1], len - cuts[1] };
	g->iov[3] = (struct iovec){ g->in, 5 };
	g->iov[4] = (struct iovec){ g->in + 5, 6 };
	g->iov[5] = (struct iovec){ g->in + 11, room - 11 };
	g->ndone = 0;
	g->req = (struct share_req){ .iov = g->iov,
				     .nout = 3,
				     .nin = 3,
				     .out_bytes = len,
				     .in_bytes = room,
				     .done = on_done,
				     .owner = g };
	port->ops->submit(port, &g->req);
	return g;
}

static uint32_t take(uint8_t *buf)
{
	uint32_t size;

	assert_int_equal(recv(server, buf, P9_HEADER, MSG_WAITALL), P9_HEADER);
	memcpy(&size, buf, 4);
	assert_true(size >= P9_HEADER && size <= P9_MSIZE_MAX);
	if (size > P9_HEADER)
		assert_int_equal(recv(server, buf + P9_HEADER, size - P9_HEADER, MSG_WAITALL),
				 size - P9_HEADER);
	return size;
}

static void give(uint16_t tag, uint8_t type, uint32_t size)
{
	static uint8_t buf[P9_MSIZE_MAX];

	memcpy(buf, &size, 4);
	buf[4] = type;
	memcpy(buf + 5, &tag, 2);
	for (uint32_t k = P9_HEADER; k < size; k++)
		buf[k] = (uint8_t)(k * 3 + tag);
	for (uint32_t at = 0; at < size;) {
		ssize_t n = send(server, buf + at, size - at, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0) /* full */
			loop_run_once(loop, 0);
		else
			at += (uint32_t)n;
	}
}

static uint16_t tag_at(const uint8_t *message)
{
	uint16_t tag;

	memcpy(&tag, message + 5, 2);
	return tag;
}

static int error_of(const struct guest_req *g)
{
	uint32_t e;

	if (g->written != P9_ERROR_LEN || g->in[4] != P9_RLERROR)
		return 0;
	memcpy(&e, g->in + 7, 4);
	return (int)e;
}

static void run(void)
{
	for (unsigned i = 0; i < 20; i++)
		loop_run_once(loop, 0);
}

/* Answers find their requests in any order; the guest's tags, all the same here, come back. */
static void order(void **state)
{
	static uint8_t buf[P9_MSIZE_MAX];
	uint16_t tags[3];

	for (unsigned i = 0; i < 3; i++)
		submit(i, P9_TREAD, 0xbeef, 23 + i, 4096);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(take(buf), 23 + i);
		assert_int_equal(memcmp(buf + P9_HEADER, reqs[i].out + P9_HEADER, 16 + i), 0);
		tags[i] = tag_at(buf);
		assert_true(tags[i] < SHARE_REQS_MAX);
	}
	for (int i = 2; i >= 0; i--)
		give(tags[i], P9_TREAD + 1, 100 + (uint32_t)i);
	run();
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(reqs[i].ndone, 1);
		assert_int_equal(reqs[i].written, 100 + i);
		assert_int_equal(tag_at(reqs[i].in), 0xbeef);
		assert_int_equal(reqs[i].in[50], (uint8_t)(50 * 3 + tags[i]));
		assert_int_equal(reqs[i].in[100 + i], 0xee);
	}
}

/* Messages as long as may be, more than the socket holds; answers that are, too. */
static void large(void **state)
{
	static uint8_t buf[P9_MSIZE_MAX];
	unsigned n = 8;

	for (unsigned i = 0; i < n; i++)
		submit(i, P9_TWRITE, (uint16_t)i, P9_MSIZE_MAX, P9_MSIZE_MAX);
	for (unsigned i = 0; i < n; i++) {
		for (size_t at = 0; at < P9_MSIZE_MAX;) {
			ssize_t r = recv(server, buf + at, P9_MSIZE_MAX - at, MSG_DONTWAIT);

			if (r < 0)
				loop_run_once(loop, 100);
			else
				at += (size_t)r;
		}
		assert_int_equal(
			memcmp(buf + P9_HEADER, reqs[i].out + P9_HEADER, P9_MSIZE_MAX - P9_HEADER), 0);
		give(tag_at(buf), P9_TWRITE + 1, P9_MSIZE_MAX);
		run();
	}
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(reqs[i].written, P9_MSIZE_MAX);
		assert_int_equal(tag_at(reqs[i].in), i);
	}
}

/* What a guest says of sizes is checked here; the server does not see it. */
static void bad_sizes(void **state)
{
	uint32_t size = 3;
	struct guest_req *g = &reqs[0];

	submit(0, P9_TREAD, 1, P9_HEADER, 64);
	assert_int_equal(g->ndone, 0);
	g = &reqs[1];
	for (unsigned i = 0; i < 3; i++) {
		size = i == 0 ? 3 : i == 1 ? 31 : P9_MSIZE_MAX + 1;
		memcpy(g->out, &size, 4);
		g->iov[0] = (struct iovec){ g->out, 30 };
		g->iov[1] = (struct iovec){ g->in, 64 };
		g->req = (struct share_req){ .iov = g->iov,
					     .nout = 1,
					     .nin = 1,
					     .out_bytes = i == 2 ? size : 30,
					     .in_bytes = 64,
					     .done = on_done,
					     .owner = g };
		port->ops->submit(port, &g->req);
		assert_int_equal(g->ndone, i + 1);
		assert_int_equal(error_of(g), i == 2 ? EMSGSIZE : EINVAL);
	}
	assert_int_equal(recv(server, g->out, 64, MSG_DONTWAIT), P9_HEADER);
}

/* An answer longer than the guest's room is an error; what comes after it is read right. */
static void no_room(void **state)
{
	static uint8_t buf[P9_MSIZE_MAX];
	uint16_t tags[2];

	for (unsigned i = 0; i < 2; i++)
		submit(i, P9_TREAD, (uint16_t)i, 23, i ? 200 : 50);
	for (unsigned i = 0; i < 2; i++) {
		take(buf);
		tags[i] = tag_at(buf);
	}
	give(tags[0], P9_TREAD + 1, 20000);
	give(tags[1], P9_TREAD + 1, 200);
	run();
	assert_int_equal(error_of(&reqs[0]), EMSGSIZE);
	assert_int_equal(reqs[0].in[50], 0xee);
	assert_int_equal(reqs[1].written, 200);
}

/* A server that was taken over: nothing is written that it was not asked for, and it is heard no more. */
static void lies(void **state)
{
	static uint8_t buf[P9_MSIZE_MAX];
	const unsigned kind = *(const unsigned *)*state;
	uint16_t tag;

	submit(0, P9_TREAD, 5, 23, 4096);
	take(buf);
	tag = tag_at(buf);
	if (kind == 3) { /* shorter than a header */
		memset(buf, 0, 4);
		assert_int_equal(send(server, buf, P9_HEADER, MSG_NOSIGNAL), P9_HEADER);
	} else {
		give(kind == 0 ? tag + 1 : kind == 1 ? SHARE_CONTROL : 500, P9_TREAD + 1, 100);
	}
	run();
	assert_int_equal(reqs[0].ndone, 1);
	assert_int_equal(error_of(&reqs[0]), EIO);
	assert_int_equal(reqs[0].in[P9_ERROR_LEN], 0xee);
	submit(1, P9_TREAD, 6, 23, 4096);
	assert_int_equal(error_of(&reqs[1]), EIO);
}

static int set_up_lies(void **state)
{
	void *kind = *state;
	int r = set_up(state);

	*state = kind;
	return r;
}

static void goes_away(void **state)
{
	struct bytes b = { 0 };
	struct error err;

	for (unsigned i = 0; i < NREQS; i++)
		submit(i, P9_TREAD, (uint16_t)i, 23, 4096);
	/* One more than there may be: it is said, not lost. */
	submit(NREQS, P9_TREAD, 1, 23, 4096);
	assert_int_equal(error_of(&reqs[NREQS]), EAGAIN);
	close(server);
	server = -1;
	run();
	for (unsigned i = 0; i < NREQS; i++)
		assert_true(reqs[i].ndone == 1 && error_of(&reqs[i]) == EIO);
	port->ops->drain(port);
	port->ops->reset(port);
	assert_int_equal(port->ops->save(port, &b, &err), -EIO);
	assert_int_equal(port->ops->load(port, (const uint8_t *)"", 0, &err), -EIO);
}

/* ---- waiting: with a server that works ---- */

static struct share_rig rig;

static void *serve(void *arg)
{
	static uint8_t buf[P9_MSIZE_MAX];
	unsigned *ncontrol = arg;

	for (;;) {
		uint32_t size;

		if (recv(server, buf, P9_HEADER, MSG_WAITALL) != P9_HEADER)
			return NULL;
		memcpy(&size, buf, 4);
		if (size > P9_HEADER)
			assert_int_equal(recv(server, buf + P9_HEADER, size - P9_HEADER, MSG_WAITALL),
					 size - P9_HEADER);
		if (tag_at(buf) == SHARE_CONTROL) {
			struct bytes out = { 0 }, state = { 0 };
			int32_t result = 3;

			++*ncontrol;
			if (buf[4] == SHARE_C_RESET)
				share_server_reset(rig.s);
			if (buf[4] == SHARE_C_SAVE)
				share_server_save(rig.s, &state);
			if (buf[4] == SHARE_C_LOAD)
				bytes_put(&state, &result, sizeof(result));
			bytes_put_u32(&out, (uint32_t)(P9_HEADER + state.len));
			bytes_put_u8(&out, buf[4]);
			bytes_put_u16(&out, SHARE_CONTROL);
			bytes_put(&out, state.data, state.len);
			assert_int_equal(send(server, out.data, out.len, MSG_NOSIGNAL), out.len);
			bytes_free(&out);
			bytes_free(&state);
			continue;
		}
		size_t len = share_server_handle(rig.s, buf, size, rig.reply);

		for (size_t at = 0; at < len;) {
			ssize_t n = send(server, rig.reply + at, len - at, MSG_NOSIGNAL);

			if (n < 0)
				return NULL;
			at += (size_t)n;
		}
	}
}

static void waits(void **state)
{
	struct bytes saved = { 0 };
	struct error err;
	unsigned ncontrol = 0;
	pthread_t thread;

	share_rig_open(&rig, false);
	assert_int_equal(pthread_create(&thread, NULL, serve, &ncontrol), 0);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < NREQS;
		     i++) /* long and wrong ones, with short answers; more than the socket holds */
			submit(i, P9_TWRITE, (uint16_t)i, round % 2 ? 60000 : 23, 65536);
		port->ops->drain(port);
		for (unsigned i = 0; i < NREQS; i++) {
			assert_int_equal(reqs[i].ndone, 1);
			assert_int_equal(error_of(&reqs[i]), EINVAL);
			assert_int_equal(tag_at(reqs[i].in), i);
		}
	}
	assert_int_equal(port->ops->save(port, &saved, &err), 0);
	assert_int_equal(share_state_check(saved.data, saved.len, &err), 0);
	assert_int_equal(port->ops->load(port, saved.data, saved.len, &err), 0);
	port->ops->reset(port);
	unsigned before = ncontrol;

	port->ops->reset(port); /* there is nothing to forget */
	assert_int_equal(ncontrol, before);
	assert_int_equal(share_server_fids(rig.s), 0);
	shutdown(server, SHUT_RDWR);
	pthread_join(thread, NULL);
	bytes_free(&saved);
	share_rig_close(&rig);
}

int main(void)
{
	static unsigned kinds[] = { 0, 1, 2, 3 };
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define LIES(i)	   cmocka_unit_test_prestate_setup_teardown(lies, set_up_lies, tear_down, &kinds[i])
	const struct CMUnitTest tests[] = { TEST(order),   TEST(large),	    TEST(bad_sizes),
					    TEST(no_room), TEST(goes_away), TEST(waits),
					    LIES(0),	   LIES(1),	    LIES(2),
					    LIES(3) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
