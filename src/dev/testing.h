/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For unit tests of devices: machine time that moves only when the test says so (a replacement of
 * base/loop.h's clock and timers), an environment, and recording lines.
 */
#ifndef VIV_DEV_TESTING_H
#define VIV_DEV_TESTING_H

#include "base/unit.h"
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "dev/device.h"

struct test_line {
	bool level;
	unsigned rises; /* 0 -> 1 edges */
	unsigned falls;
};

struct test_msi {
	unsigned count;
	uint64_t addr; /* the last one */
	uint32_t data;
};

struct test_env {
	struct dev_env env;
	struct vclock clock;
	struct guest_ram ram;
	struct test_line lines[32];
	struct test_msi msi;
	unsigned resets, poweroffs, exits;
	unsigned exit_code;
};

/** test_env_init() - bus, time 0, 1 MiB of RAM at 0 (zeroed). */
void test_env_init(struct test_env *t);
void test_env_fini(struct test_env *t);
struct irq_line test_line(struct test_env *t, unsigned n);

/** test_advance() - let @ns of machine time pass; timers run in order, each at its deadline. */
void test_advance(struct test_env *t, int64_t ns);
/** test_advance_late() - @ns pass at once, then the timers run: a host that was busy. */
void test_advance_late(struct test_env *t, int64_t ns);

static inline uint8_t test_inb(struct test_env *t, uint16_t port)
{
	return bus_read(t->env.bus, BUS_PIO, port, 1);
}
static inline void test_outb(struct test_env *t, uint16_t port, uint8_t v)
{
	bus_write(t->env.bus, BUS_PIO, port, 1, v);
}

/** test_move_state() - save @from, load it into @to (same class), as restore does. */
void test_move_state(const struct device *from, struct device *to);

#endif
