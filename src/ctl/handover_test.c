/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ctl/handover.h"

static struct error err;
static int hatch[2];

static int setup(void **state)
{
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, hatch);
}

static int teardown(void **state)
{
	close(hatch[0]);
	close(hatch[1]);
	return 0;
}

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Whoever comes first has decided; a process that got no further than that keeps it. */
static void test_token(void **state)
{
	int token = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC), other = dup(token);

	assert_int_equal(handover_claim(other), 0);
	assert_int_equal(handover_claim(token), -ECANCELED);
	assert_int_equal(handover_claim(other), -ECANCELED);
	close(token);
	close(other);
	assert_int_equal(handover_claim(token), -ECANCELED);
}

static void test_cards(void **state)
{
	struct handover_cards c = { .n = 2,
				    .macs = { { 0x52, 0x54, 0, 0x12, 0x34, 0x56 },
					      { 2, 0, 0, 0, 0xab, 1 } },
				    .fds = { -1, -1, -1, -1 } };
	struct handover_cards got;
	unsigned before = count_fds();

	assert_int_equal(handover_send_cards(hatch[0], &c, &err), 0);
	assert_int_equal(handover_receive_cards(hatch[1], &got, &err), 0);
	assert_int_equal(got.n, 2);
	assert_false(got.is_tap);
	assert_memory_equal(got.macs, c.macs, 12);
	assert_int_equal(got.fds[0], -1);
	c.is_tap = true;
	c.n = 1;
	c.fds[0] = 0;
	assert_int_equal(handover_send_cards(hatch[0], &c, &err), 0);
	assert_int_equal(handover_receive_cards(hatch[1], &got, &err), 0);
	assert_true(got.is_tap && got.fds[0] > 2);
	close(got.fds[0]);
	assert_int_equal(count_fds(), before);
}

static void test_descriptors(void **state)
{
	struct handover h, got;
	unsigned before = count_fds();

	handover_init(&h);
	assert_int_equal(handover_send(hatch[0], &h, &err), 0); /* nothing */
	assert_int_equal(handover_receive(hatch[1], &got, &err), 0);
	assert_true(got.lock < 0 && got.listen < 0 && got.status < 0 && got.lifeline < 0 &&
		    !got.ncards && !got.nclients);
	h.lock = 0;
	h.lifeline = 1;
	h.ncards = 2;
	h.cards[0] = h.cards[1] = 0;
	h.nclients = CHARDEV_CLIENTS_MAX;
	for (unsigned i = 0; i < h.nclients; i++)
		h.clients[i] = 0;
	assert_int_equal(handover_send(hatch[0], &h, &err), 0);
	assert_int_equal(handover_receive(hatch[1], &got, &err), 0);
	assert_true(got.lock > 2 && got.listen < 0 && got.status < 0 && got.lifeline > 2);
	assert_int_equal(got.ncards, 2);
	assert_int_equal(got.nclients, CHARDEV_CLIENTS_MAX);
	handover_close(&got);
	assert_int_equal(count_fds(), before);
	handover_close(&got); /* closed already */
}

/* Nothing that was not understood stays open. */
static void test_hostile(void **state)
{
	static const char *const texts[] = {
		"",
		"[]",
		"{",
		"{\"format\": 2, \"fds\": [\"lock\"], \"cards\": []}",
		"{\"format\": 1}",
		"{\"format\": 1, \"fds\": [], \"cards\": [1]}",
		"{\"format\": 1, \"fds\": [\"lock\", \"lock\"], \"cards\": "
		"[\"52:54:00:12:34:56:78\"]}",
		"{\"format\": 1, \"fds\": [\"key\"], \"cards\": [\"52:54:00:12:34\"]}",
		"{\"format\": 1, \"fds\": [null], \"cards\": [\"a\", \"b\", \"c\", \"d\", \"e\"], "
		"\"tap\": true}",
	};
	struct handover_cards c;
	struct handover h;
	unsigned before = count_fds();

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		for (unsigned is_cards = 0; is_cards < 2; is_cards++) {
			union {
				struct cmsghdr hdr;
				char room[CMSG_SPACE(sizeof(int))];
			} control = { .hdr = { .cmsg_len = CMSG_LEN(sizeof(int)),
					       .cmsg_level = SOL_SOCKET,
					       .cmsg_type = SCM_RIGHTS } };
			struct iovec iov = { (void *)(uintptr_t)texts[i], strlen(texts[i]) };
			struct msghdr msg = { .msg_iov = &iov,
					      .msg_iovlen = 1,
					      .msg_control = &control,
					      .msg_controllen = sizeof(control) };

			memset(CMSG_DATA(&control.hdr), 0, sizeof(int));
			assert_true(sendmsg(hatch[0], &msg, 0) >= 0);
			assert_int_equal(is_cards ? handover_receive_cards(hatch[1], &c, &err)
						  : handover_receive(hatch[1], &h, &err),
					 iov.iov_len ? -EPROTO : -EPIPE); /* empty: an end */
			assert_int_equal(count_fds(), before);
		}
	}
	close(hatch[0]);
	assert_int_equal(handover_receive(hatch[1], &h, &err), -EPIPE);
	hatch[0] = dup(hatch[1]);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = { T(test_token), T(test_cards), T(test_descriptors),
					    T(test_hostile) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
