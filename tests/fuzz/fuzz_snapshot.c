/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine's saved state: any bytes are refused with the machine untouched, or load into one that saves again to
 * something that loads.  The checksum is made right first: it protects against accidents only.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/log.h"
#include "fuzz.h"
#include "vm/machine.h"
#include "vm/snapshot_guest.h"
#include "vm/snapshot_state.h"

static struct machine *machine;

static void end_machine(void)
{
	machine_destroy(machine);
	machine = NULL;
}

/* One machine that is never started. */
static struct machine *get_machine(void)
{
	char path[] = "/tmp/viv-fuzz-snapshot-XXXXXX";
	struct machine_config cfg = {
		.engine_ops = &engine_dbt, .cpus = 2, .mem_bytes = 4 * MIB, .kernel = path
	};

	if (machine)
		return machine;
	int fd = mkstemp(path);
	size_t len = snapshot_guest_len();

	log_set_level(LOG_ERROR);
	if (fd < 0 || write(fd, snapshot_guest_start, len) != (ssize_t)len || close(fd) < 0 ||
	    machine_create(&machine, &cfg, NULL, NULL) < 0 || unlink(path) < 0)
		abort();
	atexit(end_machine);
	return machine;
}

static void save(struct bytes *out)
{
	pthread_mutex_lock(machine_lock(machine));
	if (machine_save_state(machine, out, NULL) < 0)
		abort();
	pthread_mutex_unlock(machine_lock(machine));
}

static int load(const struct snapshot_state *s)
{
	struct error err;

	pthread_mutex_lock(machine_lock(machine));
	int r = machine_load_state(machine, s, &err);

	pthread_mutex_unlock(machine_lock(machine));
	return r;
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	struct bytes b = { 0 };

	get_machine();
	save(&b);
	if (b.len > cap)
		abort();
	memcpy(data, b.data, b.len);
	size_t len = b.len;

	bytes_free(&b);
	return len;
}

/* Not the time stamp counters: they are given anew at each load. */
static void expect_untouched(const struct bytes *before)
{
	struct bytes after = { 0 };

	save(&after);
	if (after.len != before->len)
		abort();
	bytes_free(&after);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct bytes before = { 0 }, again = { 0 }, text = { 0 };
	struct snapshot_state s, t;
	struct error err;

	get_machine();
	uint8_t *copy = malloc(len ? len : 1);

	if (!copy)
		abort();
	memcpy(copy, data, len);
	if (len >= 8) {
		uint64_t sum = XXH64(copy, len - 8, 0);

		memcpy(copy + len - 8, &sum, 8);
	}
	int r = snapshot_state_parse(&s, copy, len, &err);

	free(copy);
	if (r < 0)
		return 0;
	save(&before);
	snapshot_state_show(&s, &text, &err);
	bytes_free(&text);
	if (load(&s) < 0) {
		expect_untouched(&before);
	} else {
		save(&again);
		if (snapshot_state_parse(&t, again.data, again.len, &err) < 0 || load(&t) < 0)
			abort();
		snapshot_state_free(&t);
		bytes_free(&again);
	}
	bytes_free(&before);
	snapshot_state_free(&s);
	return 0;
}
