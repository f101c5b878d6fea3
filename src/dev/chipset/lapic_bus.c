/* SPDX-License-Identifier: Apache-2.0 */
/* Who gets an interrupt message: SDM 10.6.2, 10.12.10; lowest priority: 10.6.2.4. */
#include <errno.h>

#include "dev/chipset/lapic_regs.h"

#define BROADCAST	 0xffu
#define X2APIC_BROADCAST 0xffffffffu

int lapic_bus_create(struct lapic_bus **out, const struct lapic_bus_config *cfg, struct error *err)
{
	struct lapic_bus *b = calloc(1, sizeof(*b));

	if (!b)
		return error_set(err, -ENOMEM, "no memory for the APIC bus");
	b->cfg = *cfg;
	*out = b;
	return 0;
}

void lapic_bus_destroy(struct lapic_bus *b)
{
	free(b);
}

static bool matches_logical(const struct lapic *l, uint32_t dest)
{
	uint32_t ldr = l->ldr >> 24;

	if (lapic_is_x2apic(l))
		return dest >> 16 == l->ldr >> 16 && (dest & l->ldr & 0xffff);
	if (dest > 0xff)
		return false;
	switch (l->dfr >> 28) {
	case 0xf: /* flat */
		return dest & ldr;
	case 0: /* cluster */
		return dest >> 4 == ldr >> 4 && (dest & ldr & 0xf);
	default:
		return false;
	}
}

/* @has_wide_dest: the sender names 32-bit ids (an IPI in x2APIC mode). */
static bool matches(const struct lapic *l, uint32_t dest, bool is_logical, bool has_wide_dest)
{
	if (dest == (has_wide_dest ? X2APIC_BROADCAST : BROADCAST))
		return true;
	return is_logical ? matches_logical(l, dest) : dest == l->id;
}

static bool can_take(const struct lapic *l)
{
	return lapic_is_enabled(l) && lapic_is_soft_enabled(l);
}

/* The receiver with the lowest task priority; among equals the next one in turn. */
static struct lapic *lowest(struct lapic_bus *b, uint32_t dest, bool is_logical, bool has_wide_dest)
{
	struct lapic *best = NULL;

	for (unsigned i = 1; i <= b->n; i++) {
		struct lapic *l = b->cpu[(b->last_lowest + i) % b->n];

		if (l && can_take(l) && matches(l, dest, is_logical, has_wide_dest) &&
		    (!best || lapic_ppr(l) < lapic_ppr(best)))
			best = l;
	}
	if (best)
		b->last_lowest = (unsigned)best->cpu;
	return best;
}

static unsigned deliver(struct lapic_bus *b, const struct apic_msg *m, bool has_wide_dest)
{
	unsigned n = 0;

	/* INIT level de-assert, and the release of a level-triggered message, have no effect. */
	if (m->is_level && !m->is_assert)
		return 0;
	if (m->delivery == APIC_LOWEST) {
		struct lapic *l = lowest(b, m->dest, m->is_logical, has_wide_dest);

		if (!l)
			return 0;
		lapic_accept(l, APIC_FIXED, m->vector, m->is_level);
		return 1;
	}
	for (unsigned i = 0; i < b->n; i++) {
		struct lapic *l = b->cpu[i];

		if (!l || !matches(l, m->dest, m->is_logical, has_wide_dest))
			continue;
		lapic_accept(l, m->delivery, m->vector, m->is_level);
		n++;
	}
	return n;
}

unsigned lapic_bus_deliver(struct lapic_bus *b, const struct apic_msg *m)
{
	return deliver(b, m, false);
}

void lapic_bus_msi(void *bus, uint64_t addr, uint32_t data)
{
	struct apic_msg m;

	if (!apic_msg_from_msi(&m, addr, data)) {
		log_guest("lapic", "interrupt message to %#llx dropped", (unsigned long long)addr);
		return;
	}
	deliver(bus, &m, false);
}

static void set_lint0(void *bus, unsigned n, bool level)
{
	struct lapic_bus *b = bus;

	b->lint0 = level;
	for (unsigned i = 0; i < b->n; i++)
		if (b->cpu[i])
			lapic_set_lint0(b->cpu[i], level);
}

struct irq_line lapic_bus_lint0_line(struct lapic_bus *b)
{
	return (struct irq_line){ set_lint0, b, 0 };
}

/* ---- IPIs ---- */

void lapic_send_icr(struct lapic *l, uint64_t icr)
{
	struct lapic_bus *b = l->bus;
	uint8_t delivery = icr >> 8 & 7, vector = icr & 0xff;
	bool is_logical = icr & 0x800, is_level = icr & 0x8000, is_assert = icr & 0x4000;
	unsigned shorthand = icr >> 18 & 3;
	struct apic_msg m = {
		.dest = (uint32_t)(icr >> 32),
		.is_logical = is_logical,
		.is_assert = true,
		.delivery = delivery,
		.vector = vector,
	};

	if (delivery == APIC_INIT && is_level && !is_assert)
		return;
	if ((delivery == APIC_FIXED || delivery == APIC_LOWEST) && vector < 16) {
		lapic_error(l, ESR_SEND_ILLEGAL);
		return;
	}
	if (shorthand == 0) {
		deliver(b, &m, lapic_is_x2apic(l));
	} else if (shorthand == 1) {
		lapic_accept(l, delivery, vector, false);
	} else {
		for (unsigned i = 0; i < b->n; i++)
			if (b->cpu[i] && (shorthand == 2 || b->cpu[i] != l))
				lapic_accept(b->cpu[i], delivery, vector, false);
	}
}

int lapic_pv_send_ipi(struct lapic *l, const uint64_t bitmap[2], unsigned width, uint32_t min, uint32_t icr)
{
	struct lapic_bus *b = l->bus;
	uint8_t delivery = icr >> 8 & 7, vector = icr & 0xff;
	int n = 0;

	if (icr & 0xc0800)
		return -EINVAL;
	for (unsigned i = 0; i < 2 * width; i++) {
		uint64_t id = (uint64_t)min + i;

		if (!(bitmap[i / width] >> i % width & 1) || id >= b->n || !b->cpu[id])
			continue;
		lapic_accept(b->cpu[id], delivery, vector, false);
		n++;
	}
	return n;
}
