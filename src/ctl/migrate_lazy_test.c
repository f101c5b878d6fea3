/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that comes after the machine: this test is the source, and the guest that touches what is missing. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <unistd.h>
#include <poll.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "ctl/migrate_lazy.h"

#include "ctl/migrate_claim.h"
#include "ctl/socket.h"
#include "ctl/paths.h"
#include "engine/engine.h"

#define PAGES	   130 /* no whole words */
#define MISSING	   70
#define PAGE(r, n) ((r)->ram.base + (uint64_t)(n)*GUEST_PAGE_SIZE)

static struct error err;
static const struct engine_ops engine = { .name = "test" };
static const uint8_t id[MIGRATE_ID_BYTES] = { 1, 2, 3 };

struct rig {
	struct guest_ram ram;
	struct migrate_link source, target;
	struct migrate_packer packer;
	struct migrate_lazy *z;
	char home[64];
};

static void connect_links(struct rig *r)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(migrate_link_init(&r->source, fds[0], -1, true, &err), 0);
	assert_int_equal(migrate_link_init(&r->target, fds[1], -1, false, &err), 0);
}

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));
	int faults = migrate_faults_open(&err);

	if (faults < 0) {
		print_message("%s: nothing of this can be tested here\n", err.text);
		free(r);
		return 0;
	}
	snprintf(r->home, sizeof(r->home), "/tmp/viv-lazy-XXXXXX");
	assert_non_null(mkdtemp(r->home));
	setenv("VIVARIUM_HOME", r->home, 1);
	assert_int_equal(ram_create(&r->ram, PAGES * GUEST_PAGE_SIZE + MIB, 0, &err), 0);
	connect_links(r);
	const struct migrate_lazy_config cfg = { .ram = &r->ram,
						 .link = &r->target,
						 .engine = &engine,
						 .door_fd = migrate_door_listen(id, &err),
						 .faults_fd = faults };

	assert_true(cfg.door_fd >= 0);
	assert_int_equal(migrate_lazy_create(&r->z, &cfg, &err), 0);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	if (!r)
		return 0;
	shutdown(r->source.fd, SHUT_RDWR);
	migrate_lazy_destroy(r->z);
	migrate_door_close(id);
	migrate_link_close(&r->source);
	migrate_link_close(&r->target);
	migrate_packer_free(&r->packer);
	ram_destroy(&r->ram);
	assert_int_equal(paths_remove_tree(r->home, &err), 0);
	free(r);
	return 0;
}

static uint64_t npages(const struct rig *r)
{
	return r->ram.size_bytes / GUEST_PAGE_SIZE;
}

static void note(struct rig *r)
{
	uint64_t map[(PAGES + 256) / 64 + 1] = { 0 };
	struct migrate_header h;

	for (unsigned p = MISSING; p < PAGES; p++)
		map[p / 64] |= 1ULL << p % 64;
	migrate_put_missing(&r->source.out, &r->source.seq_out, map, npages(r));
	assert_int_equal(migrate_link_send(&r->source, &r->source.out, &err), 0);
	assert_int_equal(migrate_link_receive(&r->target, &h, 1000, &err), 0);
	assert_int_equal(h.type, MIGRATE_R_MISSING);
	assert_int_equal(migrate_lazy_note(r->z, r->target.payload, h.len, &err), 0);
	assert_true(migrate_lazy_is_noted(r->z));
}

static void send_page(struct rig *r, uint64_t page, uint8_t content)
{
	uint8_t data[GUEST_PAGE_SIZE];

	memset(data, content, sizeof(data));
	assert_true(migrate_pack(&r->packer, &r->source.out, &r->source.seq_out, MIGRATE_RAW, &page,
				 1, data) >= 0);
	assert_int_equal(migrate_link_send(&r->source, &r->source.out, &err), 0);
}

static void hears(struct rig *r, enum migrate_record type)
{
	struct migrate_header h;

	assert_int_equal(migrate_link_receive(&r->source, &h, 10000, &err), 0);
	assert_string_equal(migrate_record_name(h.type), migrate_record_name(type));
}

/* GOT may come before or after it: these are two threads. */
static void wants(struct rig *r, uint64_t page)
{
	struct migrate_header h;
	uint64_t wanted;

	do
		assert_int_equal(migrate_link_receive(&r->source, &h, 10000, &err), 0);
	while (h.type == MIGRATE_R_GOT);
	assert_int_equal(h.type, MIGRATE_R_WANT);
	memcpy(&wanted, r->source.payload, sizeof(wanted));
	assert_int_equal(wanted, page);
}

struct touch {
	const uint8_t *at;
	uint8_t seen;
};

static void *touch(void *arg)
{
	struct touch *t = arg;

	t->seen = *(const volatile uint8_t *)t->at;
	return NULL;
}

static void commit(struct rig *r)
{
	assert_int_equal(migrate_link_tell(&r->source, MIGRATE_R_COMMIT, NULL, 0, &err), 0);
	assert_int_equal(migrate_lazy_next(r->z, 10000, &err), MIGRATE_EV_COMMIT);
}

static void test_who_touches_waits(void **state)
{
	struct rig *r = *state;
	struct touch t;
	pthread_t thread;

	if (!r)
		return;
	memset(PAGE(r, MISSING), 7, GUEST_PAGE_SIZE); /* what it was before */
	memset(PAGE(r, 1), 9, GUEST_PAGE_SIZE);
	note(r);
	assert_int_equal(migrate_lazy_begin(r->z, &err), 0);
	assert_int_equal(PAGE(r, 1)[5], 9);
	assert_int_equal(PAGE(r, 2)[5], 0); /* never touched, not missing */
	commit(r);
	for (unsigned p = MISSING; p < PAGES; p++) {
		t.at = PAGE(r, p) + 17;
		pthread_create(&thread, NULL, touch, &t);
		wants(r, p);
		send_page(r, p, (uint8_t)p);
		pthread_join(thread, NULL);
		assert_int_equal(t.seen, (uint8_t)p);
		send_page(r, p, 1); /* too late: the guest has it */
	}
	assert_int_equal(migrate_lazy_next(r->z, -1, &err), MIGRATE_EV_FETCHED);
	assert_false(migrate_lazy_is_lacking(r->z));
	migrate_lazy_end(r->z);
	assert_false(r->ram.is_lazy);
	for (unsigned p = MISSING; p < PAGES; p++)
		assert_int_equal(PAGE(r, p)[4095], (uint8_t)p);
}

/* What the kernel gets an address of is there. */
static void *take_iov(void *arg)
{
	struct rig *r = arg;
	struct iovec iov[2];
	unsigned n = 0;
	int fds[2];

	assert_int_equal(ram_iov(&r->ram, MISSING * GUEST_PAGE_SIZE + 4000, 200, false, iov, 2, &n), 0);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(writev(fds[1], iov, (int)n), 200);
	close(fds[0]);
	close(fds[1]);
	return NULL;
}

static void test_system_calls(void **state)
{
	struct rig *r = *state;
	pthread_t thread;

	if (!r)
		return;
	note(r);
	assert_int_equal(migrate_lazy_begin(r->z, &err), 0);
	commit(r);
	pthread_create(&thread, NULL, take_iov, r);
	wants(r, MISSING);
	send_page(r, MISSING, 1);
	wants(r, MISSING + 1);
	send_page(r, MISSING + 1, 1);
	pthread_join(thread, NULL);
}

/* A link that is lost, or carries nonsense; over another one it is told again what is missing. */
/* Two descriptors come to the door at once, neither of them a link: none is kept. */
static void pass_two(const struct rig *r)
{
	char text[MIGRATE_ID_TEXT], path[256], byte = 0;
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(2 * sizeof(int))];
	} control = { .h = { CMSG_LEN(2 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = CMSG_SPACE(2 * sizeof(int)) };
	int pipes[2][2];

	migrate_id_text(text, id);
	snprintf(path, sizeof(path), "%s/migrations/%s.door", r->home, text);
	int conn = socket_connect(path, &err);

	assert_true(conn >= 0);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(pipe2(pipes[i], O_CLOEXEC), 0);
		memcpy(CMSG_DATA(&control.h) + i * sizeof(int), &pipes[i][1], sizeof(int));
	}
	assert_int_equal(sendmsg(conn, &msg, 0), 1);
	close(conn);
	for (unsigned i = 0; i < 2; i++)
		close(pipes[i][1]);
	struct pollfd p = { .fd = pipes[0][0], .events = POLLIN };
	assert_int_equal(poll(&p, 1, 20000), 1); /* nobody holds its other end */
	for (unsigned i = 0; i < 2; i++)
		close(pipes[i][0]);
}

static void test_lost_and_back(void **state)
{
	struct rig *r = *state;
	uint64_t map[8], next = 0;
	struct touch t;
	pthread_t thread;
	int fds[2];

	if (!r)
		return;
	note(r);
	assert_int_equal(migrate_lazy_begin(r->z, &err), 0);
	commit(r);
	t.at = PAGE(r, MISSING + 3);
	pthread_create(&thread, NULL, touch, &t);
	wants(r, MISSING + 3);
	send_page(r, MISSING, 1);
	hears(r, MIGRATE_R_GOT);
	assert_int_equal(send(r->source.fd, "nonsense, and not little of it", 30, 0), 30);
	assert_int_equal(migrate_lazy_next(r->z, -1, &err), MIGRATE_EV_LOST);
	assert_true(migrate_lazy_tell(r->z, MIGRATE_R_RUNNING, NULL, 0, &err) < 0);

	migrate_link_close(&r->source);
	pass_two(r);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(migrate_link_init(&r->source, fds[0], -1, true, &err), 0);
	r->source.seq_out = 1; /* ASK, that somebody else has read */
	assert_int_equal(migrate_door_pass(id, fds[1], &err), 0);
	close(fds[1]);
	hears(r, MIGRATE_R_ANSWER);
	assert_int_equal(r->source.payload[0], MIGRATE_ANSWER_LACKING);
	hears(r, MIGRATE_R_MISSING);
	assert_int_equal(migrate_get_missing(map, npages(r), &next, r->source.payload,
					     12 + (npages(r) + 63) / 64 * 8, &err),
			 1);
	assert_false(map[MISSING / 64] >> MISSING % 64 & 1);
	assert_true(map[MISSING / 64] >> (MISSING + 1) % 64 & 1);
	wants(r, MISSING + 3);
	assert_int_equal(migrate_lazy_next(r->z, -1, &err), MIGRATE_EV_BACK);
	send_page(r, MISSING + 3, 3);
	pthread_join(thread, NULL);
	assert_int_equal(t.seen, 3);
}

/* A page that is not what the source had is not let in. */
static void test_sums(void **state)
{
	struct rig *r = *state;
	_cleanup_bytes_ struct bytes b = { 0 };
	uint32_t seq = 0;

	if (!r)
		return;
	note(r);
	migrate_put_sums(&b, &seq, &r->ram, 0, PAGES); /* all zero */
	assert_int_equal(migrate_lazy_sums(r->z, b.data + MIGRATE_HEADER_BYTES,
					   b.len - MIGRATE_HEADER_BYTES, &err),
			 0);
	PAGE(r, 1)[0] = 1;
	assert_int_equal(migrate_lazy_sums(r->z, b.data + MIGRATE_HEADER_BYTES,
					   b.len - MIGRATE_HEADER_BYTES, &err),
			 -EBADMSG);
	assert_int_equal(migrate_lazy_sums(r->z, b.data + MIGRATE_HEADER_BYTES,
					   b.len - MIGRATE_HEADER_BYTES - 1, &err),
			 -EPROTO);
	assert_int_equal(migrate_lazy_begin(r->z, &err), 0);
	commit(r);
	send_page(r, MISSING, 0);
	hears(r, MIGRATE_R_GOT);
	send_page(r, MISSING + 1, 1);
	assert_int_equal(migrate_lazy_next(r->z, -1, &err), MIGRATE_EV_LOST);
	assert_true(migrate_lazy_is_lacking(r->z));
}

static void test_not_on_kvm(void **state)
{
	static const struct engine_ops kernel = { .name = "test", .runs_in_kernel = true };
	const struct migrate_lazy_config cfg = { .engine = &kernel, .door_fd = -1, .faults_fd = -1 };
	const struct migrate_lazy_config none = { .engine = &engine, .door_fd = -1, .faults_fd = -1 };
	struct migrate_lazy *z;

	assert_int_equal(migrate_lazy_create(&z, &cfg, &err), -EOPNOTSUPP);
	assert_int_equal(migrate_lazy_create(&z, &none, &err), -EOPNOTSUPP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_who_touches_waits, setup, teardown),
		cmocka_unit_test_setup_teardown(test_system_calls, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lost_and_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sums, setup, teardown),
		cmocka_unit_test(test_not_on_kvm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
