/* SPDX-License-Identifier: Apache-2.0 */
/* A machine's state: a real guest goes on right after it, on its engine and on the other. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/log.h"
#include "char/chardev.h"
#include "mem/ram.h"
#include "vm/machine.h"
#include "vm/snapshot_guest.h"
#include "vm/snapshot_state.h"

#define MEM_BYTES (4 * MIB)
#define CPUS	  2

/* ---- a machine with its loop on a thread ---- */

struct output {
	struct char_dev dev;
	char text[256];
	size_t len;
};

static size_t out_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	struct output *o = container_of(c, struct output, dev);

	for (size_t i = 0; i < len && o->len < sizeof(o->text) - 1; i++)
		o->text[o->len++] = (char)data[i];
	return len;
}

static void out_nothing(struct char_dev *c)
{
}

static const struct char_ops out_ops = { .write = out_write, .rx_ready = out_nothing, .close = out_nothing };

struct rig {
	struct machine *m;
	struct output out;
	struct machine_end end;
	pthread_t thread;
	bool has_thread;
};

static struct error err;
static char kernel_path[64];

static void must(int r)
{
	if (r < 0)
		fail_msg("%s", err.text);
}

static int copy_ram(void *arg, struct guest_ram *ram, struct error *e)
{
	memcpy(ram->base, arg, ram->size_bytes);
	return 0;
}

/* A new machine; with @state it goes on from there with the RAM @ram. */
static int try_create(struct rig *r, const struct engine_ops *engine, unsigned cpus, uint64_t mem,
		      const struct snapshot_state *state, uint8_t *ram)
{
	struct machine_restore restore = { .state = state, .map_ram = copy_ram, .arg = ram };
	struct machine_config cfg = {
		.name = "t",
		.engine_ops = engine,
		.cpus = cpus,
		.mem_bytes = mem,
		.kernel = kernel_path,
		.serial = &r->out.dev,
		.no_reboot = true,
		.restore = state ? &restore : NULL,
	};

	*r = (struct rig){ .out.dev.ops = &out_ops };
	return machine_create(&r->m, &cfg, NULL, &err);
}

static void create(struct rig *r, const struct engine_ops *engine,
		   const struct snapshot_state *state, uint8_t *ram)
{
	must(try_create(r, engine, CPUS, MEM_BYTES, state, ram));
}

static void *run(void *arg)
{
	struct rig *r = arg;

	machine_run(r->m, &r->end);
	return NULL;
}

static void start(struct rig *r)
{
	pthread_mutex_lock(machine_lock(r->m));
	must(machine_start(r->m, false, &err));
	pthread_mutex_unlock(machine_lock(r->m));
	assert_int_equal(pthread_create(&r->thread, NULL, run, r), 0);
	r->has_thread = true;
}

static void join(struct rig *r)
{
	pthread_join(r->thread, NULL);
	r->has_thread = false;
}

static void destroy(struct rig *r)
{
	if (r->has_thread) {
		pthread_mutex_lock(machine_lock(r->m));
		machine_end(r->m, END_STOPPED, 0, "the test ends");
		pthread_mutex_unlock(machine_lock(r->m));
		join(r);
	}
	machine_destroy(r->m);
}

static uint32_t progress(const struct rig *r)
{
	return atomic_load((_Atomic uint32_t *)(void *)(machine_ram(r->m)->base + SNAPSHOT_GUEST_ROUND));
}

static void wait_for(const struct rig *r, uint32_t round)
{
	while (progress(r) < round)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* Paused at some moment after @round: its state, and a copy of its RAM. */
static void capture(struct rig *r, uint32_t round, struct bytes *state, uint8_t **ram)
{
	wait_for(r, round);
	pthread_mutex_lock(machine_lock(r->m));
	must(machine_pause(r->m, &err));
	must(machine_save_state(r->m, state, &err));
	*ram = malloc(machine_ram(r->m)->size_bytes);
	assert_non_null(*ram);
	memcpy(*ram, machine_ram(r->m)->base, machine_ram(r->m)->size_bytes);
	pthread_mutex_unlock(machine_lock(r->m));
}

static void expect_result(struct rig *r)
{
	char want[32];

	join(r);
	snprintf(want, sizeof(want), "%08x\n", snapshot_guest_result());
	if (r->end.reason != END_DEBUG_EXIT || strcmp(r->out.text, want) != 0)
		fail_msg("\"%s\" instead of \"%s\"; %s", r->out.text, want, r->end.text);
}

/* ---- tests ---- */

static void save(struct rig *r, struct bytes *out)
{
	pthread_mutex_lock(machine_lock(r->m));
	must(machine_save_state(r->m, out, &err));
	pthread_mutex_unlock(machine_lock(r->m));
}

static void go_on(const struct engine_ops *from, const struct engine_ops *to)
{
	struct bytes state = { 0 }, again = { 0 };
	struct snapshot_state s;
	struct rig a, b;
	uint8_t *ram;

	create(&a, from, NULL, NULL);
	start(&a);
	capture(&a, SNAPSHOT_GUEST_ROUNDS / 3, &state, &ram);
	must(snapshot_state_parse(&s, state.data, state.len, &err));
	create(&b, to, &s, ram);
	assert_memory_equal(ram, machine_ram(b.m)->base, machine_ram(b.m)->size_bytes);
	if (from == to && to == &engine_dbt) { /* not every KVM sets a TSC exactly */
		save(&b, &again);
		assert_int_equal(again.len, state.len);
		assert_memory_equal(again.data, state.data, state.len);
	}
	start(&b);
	expect_result(&b);
	/* The first one is as it was. */
	pthread_mutex_lock(machine_lock(a.m));
	must(machine_resume(a.m, &err));
	pthread_mutex_unlock(machine_lock(a.m));
	expect_result(&a);
	destroy(&a);
	destroy(&b);
	snapshot_state_free(&s);
	bytes_free(&state);
	bytes_free(&again);
	free(ram);
}

static void test_dbt(void **state)
{
	go_on(&engine_dbt, &engine_dbt);
}

static bool has_kvm(void)
{
	struct rig r;

	if (try_create(&r, &engine_kvm, 1, MEM_BYTES, NULL, NULL) < 0) {
		print_message("no KVM here: %s\n", err.text);
		return false;
	}
	destroy(&r);
	return true;
}

static void test_kvm(void **state)
{
	if (!has_kvm())
		skip();
	go_on(&engine_kvm, &engine_kvm);
}

static void test_dbt_to_kvm(void **state)
{
	if (!has_kvm())
		skip();
	go_on(&engine_dbt, &engine_kvm);
}

static void test_kvm_to_dbt(void **state)
{
	if (!has_kvm())
		skip();
	go_on(&engine_kvm, &engine_dbt);
}

/* Back to the first state, again and again, in place. */
static void test_in_place(void **state)
{
	struct bytes first = { 0 }, later = { 0 };
	struct snapshot_state s;
	uint8_t *ram, *ram_later;
	struct rig a;

	create(&a, &engine_dbt, NULL, NULL);
	start(&a);
	capture(&a, SNAPSHOT_GUEST_ROUNDS / 3, &first, &ram);
	must(snapshot_state_parse(&s, first.data, first.len, &err));
	for (unsigned i = 0; i < 5; i++) {
		pthread_mutex_lock(machine_lock(a.m));
		must(machine_resume(a.m, &err));
		pthread_mutex_unlock(machine_lock(a.m));
		later.len = 0;
		capture(&a, SNAPSHOT_GUEST_ROUNDS / 2, &later, &ram_later);
		free(ram_later);
		pthread_mutex_lock(machine_lock(a.m));
		/* It has loaded it before, from the second time on. */
		must(i ? machine_reload_state(a.m, &s, &err) : machine_load_state(a.m, &s, &err));
		memcpy(machine_ram(a.m)->base, ram, machine_ram(a.m)->size_bytes);
		ram_note_write_ptr(machine_ram(a.m), machine_ram(a.m)->base, machine_ram(a.m)->size_bytes);
		later.len = 0;
		must(machine_save_state(a.m, &later, &err));
		assert_int_equal(later.len, first.len);
		assert_memory_equal(later.data, first.data, first.len);
		pthread_mutex_unlock(machine_lock(a.m));
	}
	pthread_mutex_lock(machine_lock(a.m));
	must(machine_resume(a.m, &err));
	pthread_mutex_unlock(machine_lock(a.m));
	expect_result(&a);
	destroy(&a);
	snapshot_state_free(&s);
	bytes_free(&first);
	bytes_free(&later);
	free(ram);
}

static void test_other_machines(void **state)
{
	struct bytes bytes = { 0 }, before = { 0 }, after = { 0 };
	struct snapshot_state s;
	struct rig a, b;
	uint8_t *ram;

	create(&a, &engine_dbt, NULL, NULL);
	start(&a);
	capture(&a, 1, &bytes, &ram);
	must(snapshot_state_parse(&s, bytes.data, bytes.len, &err));
	must(try_create(&b, &engine_dbt, CPUS + 1, MEM_BYTES, NULL, NULL));
	save(&b, &before);
	pthread_mutex_lock(machine_lock(b.m));
	assert_int_equal(machine_load_state(b.m, &s, &err), -EINVAL);
	assert_non_null(strstr(err.text, "2 CPUs"));
	pthread_mutex_unlock(machine_lock(b.m));
	save(&b, &after);
	destroy(&b);
	assert_int_equal(try_create(&b, &engine_dbt, CPUS, 2 * MEM_BYTES, &s, ram), -EINVAL);
	assert_non_null(strstr(err.text, "bytes of memory"));
	/* A running one refuses, too. */
	pthread_mutex_lock(machine_lock(a.m));
	must(machine_resume(a.m, &err));
	assert_int_equal(machine_load_state(a.m, &s, &err), -EBUSY);
	assert_int_equal(machine_save_state(a.m, &after, &err), -EBUSY);
	pthread_mutex_unlock(machine_lock(a.m));
	destroy(&a);
	snapshot_state_free(&s);
	bytes_free(&bytes);
	bytes_free(&before);
	bytes_free(&after);
	free(ram);
}

static void test_damage(void **state)
{
	struct bytes bytes = { 0 }, text = { 0 };
	struct snapshot_state s;
	struct rig a;
	uint8_t *ram;

	create(&a, &engine_dbt, NULL, NULL);
	start(&a);
	capture(&a, 1, &bytes, &ram);
	must(snapshot_state_parse(&s, bytes.data, bytes.len, &err));
	must(snapshot_state_show(&s, &text, &err));
	bytes_put_u8(&text, 0);
	assert_non_null(strstr((char *)text.data, "[dev:pit]"));
	assert_non_null(strstr((char *)text.data, "[cpu1]"));
	snapshot_state_free(&s);
	for (size_t len = 0; len < bytes.len; len += 1 + bytes.len / 300) {
		uint8_t *part = malloc(len ? len : 1);

		memcpy(part, bytes.data, len);
		assert_int_equal(snapshot_state_parse(&s, part, len, &err), -EINVAL);
		free(part);
	}
	for (size_t i = 0; i < bytes.len; i += 1 + bytes.len / 300) {
		bytes.data[i] ^= 0x10;
		assert_true(snapshot_state_parse(&s, bytes.data, bytes.len, &err) < 0);
		bytes.data[i] ^= 0x10;
	}
	destroy(&a);
	bytes_free(&bytes);
	bytes_free(&text);
	free(ram);
}

static int setup(void **state)
{
	snprintf(kernel_path, sizeof(kernel_path), "/tmp/viv-snapshot-test-XXXXXX");
	int fd = mkstemp(kernel_path);

	if (fd < 0 ||
	    write(fd, snapshot_guest_start, snapshot_guest_len()) != (ssize_t)snapshot_guest_len())
		return -1;
	return close(fd);
}

static int teardown(void **state)
{
	return unlink(kernel_path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dbt),	   cmocka_unit_test(test_kvm),
		cmocka_unit_test(test_dbt_to_kvm), cmocka_unit_test(test_kvm_to_dbt),
		cmocka_unit_test(test_in_place),   cmocka_unit_test(test_other_machines),
		cmocka_unit_test(test_damage),
	};

	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests(tests, setup, teardown);
}
