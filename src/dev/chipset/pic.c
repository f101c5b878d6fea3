/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 8259A pair.  The slave's INT pin is wired to the master's input 2 and seen there as a level: a
 * request of the slave is never lost or counted twice in the master's edge latch.
 *
 * An edge once latched stays requested when the line falls before INTA (as chipsets' 8259 cores and
 * other VMMs do); the data sheet's spurious IRQ 7 comes when a request goes away otherwise.
 */
#include "dev/chipset/pic.h"

#include <errno.h>
#include <string.h>

#define CASCADE 2

#define ICW1_INIT   0x10
#define ICW1_IC4    0x01
#define ICW1_SNGL   0x02
#define ICW1_LTIM   0x08
#define ICW4_AEOI   0x02
#define ICW4_SFNM   0x10
#define OCW3_SELECT 0x08

static const uint8_t elcr_writable[2] = { 0xf8, 0xde }; /* not IRQ 0, 1, 2, 8, 13 */

static uint8_t level_mask(const struct pic_chip *c)
{
	return c->is_level_icw ? 0xff : c->elcr;
}

/* Place in the order of priority, 0 is the highest. */
static unsigned rank_of(const struct pic_chip *c, unsigned n)
{
	return (n - c->lowest - 1) & 7;
}

static int highest(const struct pic_chip *c, uint8_t bits)
{
	for (unsigned rank = 0; rank < 8; rank++) {
		unsigned n = (rank + c->lowest + 1) & 7;

		if (bits & 1u << n)
			return (int)n;
	}
	return -1;
}

/* The input to be served now, or -1. */
static int request(const struct pic_chip *c, bool is_master)
{
	int want = highest(c, c->irr & (uint8_t)~c->imr);
	uint8_t blocking = c->isr;
	int busy;

	if (want < 0)
		return -1;
	if (c->is_special_mask)
		blocking &= (uint8_t)~c->imr;
	/* special fully nested mode: the slave may interrupt itself */
	if (is_master && (c->icw4 & ICW4_SFNM))
		blocking &= (uint8_t) ~(1u << CASCADE);
	busy = highest(c, blocking);
	if (busy >= 0 && rank_of(c, (unsigned)busy) <= rank_of(c, (unsigned)want))
		return -1;
	return want;
}

static void set_input(struct pic_chip *c, unsigned n, bool level)
{
	uint8_t bit = (uint8_t)(1u << n);

	if (level_mask(c) & bit)
		c->irr = level ? c->irr | bit : c->irr & (uint8_t)~bit;
	else if (level && !(c->lines & bit))
		c->irr |= bit;
	c->lines = level ? c->lines | bit : c->lines & (uint8_t)~bit;
}

static void update(struct pic *p)
{
	struct pic_chip *m = &p->chip[0], *s = &p->chip[1];
	const uint8_t cascade = 1u << CASCADE;

	s->is_output = request(s, false) >= 0;
	m->irr = s->is_output ? m->irr | cascade : m->irr & (uint8_t)~cascade;
	m->is_output = request(m, true) >= 0;
	irq_set(&p->intr, m->is_output);
}

static void acknowledge(struct pic_chip *c, unsigned n, bool is_master)
{
	uint8_t bit = (uint8_t)(1u << n);

	if (!(level_mask(c) & bit) && !(is_master && n == CASCADE))
		c->irr &= (uint8_t)~bit;
	if (!(c->icw4 & ICW4_AEOI))
		c->isr |= bit;
	else if (c->is_auto_rotate)
		c->lowest = (uint8_t)n;
}

void pic_set_irq(void *pic, unsigned n, bool level)
{
	struct pic *p = pic;

	if (n > 15 || n == CASCADE)
		return;
	set_input(&p->chip[n >> 3], n & 7, level);
	update(p);
}

uint8_t pic_inta(void *pic)
{
	struct pic *p = pic;
	struct pic_chip *m = &p->chip[0], *s = &p->chip[1];
	int n = request(m, true);
	uint8_t vector;

	if (n < 0)
		return m->vector | 7; /* spurious: the request went away */
	acknowledge(m, (unsigned)n, true);
	if (n == CASCADE) {
		int k = request(s, false);

		vector = s->vector | 7;
		if (k >= 0) {
			acknowledge(s, (unsigned)k, false);
			vector = s->vector | (uint8_t)k;
		}
	} else {
		vector = m->vector | (uint8_t)n;
	}
	update(p);
	return vector;
}

bool pic_output(const struct pic *p)
{
	return p->chip[0].is_output;
}

/* ---- programming ---- */

static void write_icw1(struct pic_chip *c, uint8_t v)
{
	c->is_single = v & ICW1_SNGL;
	c->is_level_icw = v & ICW1_LTIM;
	c->init_needs_icw4 = v & ICW1_IC4;
	c->init_step = 2;
	c->irr = c->lines & level_mask(c);
	c->imr = 0;
	c->isr = 0;
	c->lowest = 7;
	c->icw4 = 0;
	c->is_auto_rotate = false;
	c->is_special_mask = false;
	c->is_poll = false;
	c->reads_isr = false;
}

static void end_of_interrupt(struct pic_chip *c, int n, bool rotates)
{
	if (n < 0)
		return;
	c->isr &= (uint8_t) ~(1u << n);
	if (rotates)
		c->lowest = (uint8_t)n;
}

static void write_ocw2(struct pic_chip *c, uint8_t v)
{
	uint8_t busy = c->is_special_mask ? c->isr & (uint8_t)~c->imr : c->isr;

	switch (v >> 5) {
	case 0:
		c->is_auto_rotate = false;
		break;
	case 1:
		end_of_interrupt(c, highest(c, busy), false);
		break;
	case 3:
		end_of_interrupt(c, v & 7, false);
		break;
	case 4:
		c->is_auto_rotate = true;
		break;
	case 5:
		end_of_interrupt(c, highest(c, busy), true);
		break;
	case 6:
		c->lowest = v & 7;
		break;
	case 7:
		end_of_interrupt(c, v & 7, true);
		break;
	default: /* 2: no operation */
		break;
	}
}

static void write_ocw3(struct pic_chip *c, uint8_t v)
{
	if (v & 0x40)
		c->is_special_mask = v & 0x20;
	if (v & 0x04)
		c->is_poll = true;
	else if (v & 0x02)
		c->reads_isr = v & 0x01;
}

static void write_odd(struct pic_chip *c, uint8_t v)
{
	switch (c->init_step) {
	case 2:
		c->vector = v & 0xf8;
		c->init_step = c->is_single ? (c->init_needs_icw4 ? 4 : 0) : 3;
		break;
	case 3:
		c->icw3 = v;
		c->init_step = c->init_needs_icw4 ? 4 : 0;
		break;
	case 4:
		c->icw4 = v;
		c->init_step = 0;
		break;
	default:
		c->imr = v;
		break;
	}
}

static void port_write(struct pic *p, unsigned i, bool is_odd, uint8_t v)
{
	struct pic_chip *c = &p->chip[i];

	if (is_odd)
		write_odd(c, v);
	else if (v & ICW1_INIT)
		write_icw1(c, v);
	else if (v & OCW3_SELECT)
		write_ocw3(c, v);
	else
		write_ocw2(c, v);
	update(p);
}

static uint8_t port_read(struct pic *p, unsigned i, bool is_odd)
{
	struct pic_chip *c = &p->chip[i];

	if (c->is_poll) {
		int n = request(c, i == 0);

		c->is_poll = false;
		if (n < 0)
			return 0;
		acknowledge(c, (unsigned)n, i == 0);
		update(p);
		return 0x80 | (uint8_t)n;
	}
	if (is_odd)
		return c->imr;
	return c->reads_isr ? c->isr : c->irr;
}

static uint64_t read_n(struct pic *p, unsigned i, uint64_t offset, unsigned size)
{
	uint64_t v = 0;

	for (unsigned k = 0; k < size; k++)
		v |= (uint64_t)port_read(p, i, (offset + k) & 1) << k * 8;
	return v;
}

static void write_n(struct pic *p, unsigned i, uint64_t offset, unsigned size, uint64_t value)
{
	for (unsigned k = 0; k < size; k++)
		port_write(p, i, (offset + k) & 1, (uint8_t)(value >> k * 8));
}

static uint64_t master_read(void *dev, uint64_t offset, unsigned size)
{
	return read_n(dev, 0, offset, size);
}

static void master_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	write_n(dev, 0, offset, size, value);
}

static uint64_t slave_read(void *dev, uint64_t offset, unsigned size)
{
	return read_n(dev, 1, offset, size);
}

static void slave_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	write_n(dev, 1, offset, size, value);
}

static uint64_t elcr_read(void *dev, uint64_t offset, unsigned size)
{
	struct pic *p = dev;
	uint64_t v = 0;

	for (unsigned k = 0; k < size; k++)
		v |= (uint64_t)p->chip[(offset + k) & 1].elcr << k * 8;
	return v;
}

static void elcr_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct pic *p = dev;

	for (unsigned k = 0; k < size; k++) {
		unsigned i = (offset + k) & 1;
		struct pic_chip *c = &p->chip[i];
		uint8_t before = level_mask(c), changed;

		c->elcr = (uint8_t)(value >> k * 8) & elcr_writable[i];
		changed = before ^ level_mask(c);
		/* an input that became level-triggered requests by its level, the others start anew */
		c->irr = (c->irr & (uint8_t)~changed) | (c->lines & changed & level_mask(c));
	}
	update(p);
}

static const struct bus_ops master_ops = { master_read, master_write };
static const struct bus_ops slave_ops = { slave_read, slave_write };
static const struct bus_ops elcr_ops = { elcr_read, elcr_write };

/* ---- life cycle ---- */

static int chip_check(const void *obj, struct error *err)
{
	const struct pic_chip *c = obj;

	if (c->lowest > 7 || (c->vector & 7) || c->init_step > 4 || c->init_step == 1)
		return error_set(err, -EINVAL, "interrupt controller state is impossible");
	return 0;
}

// clang-format off
static const struct field chip_fields[] = {
	F_U8(struct pic_chip, irr),
	F_U8(struct pic_chip, imr),
	F_U8(struct pic_chip, isr),
	F_U8(struct pic_chip, lines),
	F_U8(struct pic_chip, elcr),
	F_U8(struct pic_chip, vector),
	F_U8(struct pic_chip, lowest),
	F_U8(struct pic_chip, icw3),
	F_U8(struct pic_chip, icw4),
	F_U8(struct pic_chip, init_step),
	F_BOOL(struct pic_chip, init_needs_icw4),
	F_BOOL(struct pic_chip, is_single),
	F_BOOL(struct pic_chip, is_level_icw),
	F_BOOL(struct pic_chip, is_auto_rotate),
	F_BOOL(struct pic_chip, is_special_mask),
	F_BOOL(struct pic_chip, is_poll),
	F_BOOL(struct pic_chip, reads_isr),
	F_BOOL(struct pic_chip, is_output),
	F_END,
};
static const struct state_desc chip_desc = {
	.name = "pic-chip", .version = 1, .size = sizeof(struct pic_chip),
	.fields = chip_fields, .check = chip_check,
};
static const struct field pic_fields[] = {
	F_HOST(struct pic, dev),
	F_HOST(struct pic, env),
	F_HOST(struct pic, intr),
	F_HOST(struct pic, ranges),
	F_STRUCT_ARRAY(struct pic, chip, &chip_desc),
	F_HOST(struct pic, pad_),
	F_END,
};
// clang-format on
static const struct state_desc pic_desc = {
	.name = "pic",
	.version = 1,
	.size = sizeof(struct pic),
	.fields = pic_fields,
};

static void reset(struct device *d)
{
	struct pic *p = container_of(d, struct pic, dev);

	for (unsigned i = 0; i < 2; i++) {
		struct pic_chip *c = &p->chip[i];
		uint8_t lines = c->lines;

		memset(c, 0, sizeof(*c));
		c->lines = lines; /* what the devices drive stays */
		c->lowest = 7;
		c->imr = 0xff; /* undefined in the data sheet: silent until programmed */
	}
	update(p);
}

static void after_load(struct device *d)
{
	update(container_of(d, struct pic, dev));
}

static void destroy(struct device *d)
{
	struct pic *p = container_of(d, struct pic, dev);

	for (unsigned i = 0; i < ARRAY_SIZE(p->ranges); i++)
		bus_remove(p->env.bus, p->ranges[i]);
	free(p);
}

const struct device_class pic_class = {
	.name = "pic",
	.state = &pic_desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

int pic_create(struct pic **out, const struct dev_env *env, struct irq_line intr, struct error *err)
{
	struct pic *p = calloc(1, sizeof(*p));
	int rc;

	if (!p)
		return error_set(err, -ENOMEM, "no memory for the interrupt controllers");
	device_init(&p->dev, &pic_class, "pic");
	p->env = *env;
	p->intr = intr;
	rc = bus_add(env->bus, BUS_PIO, 0x20, 2, 0, &master_ops, p, &p->ranges[0]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0xa0, 2, 0, &slave_ops, p, &p->ranges[1]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x4d0, 2, 0, &elcr_ops, p, &p->ranges[2]);
	if (rc) {
		destroy(&p->dev);
		return error_set(err, rc, "the interrupt controllers' ports are taken");
	}
	reset(&p->dev);
	*out = p;
	return 0;
}
