/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/timer/pit.h"

#include <errno.h>
#include <string.h>

#define NS_PER_S 1000000000
#define FAR_NS	 (INT64_MAX / 4)
/* IRQ 0 comes at most this often: a guest's tiny period does not hold up the host. */
#define MIN_INTERVAL_NS 20000
/* Ticks that a late host still delivers; beyond, they are lost. */
#define MAX_BACKLOG 16
#define REFRESH_NS  15085 /* port 61H bit 4 toggles */

/* ---- time ---- */

static int64_t now_ns(const struct pit *p)
{
	return vclock_now_ns(p->env.clock);
}

static uint64_t ticks_since(const struct pit *p, int64_t start_ns)
{
	int64_t ns = now_ns(p) - start_ns;

	return ns <= 0 ? 0 : (uint64_t)((unsigned __int128)ns * PIT_HZ / NS_PER_S);
}

/* When tick @n after @start_ns has come. */
static int64_t tick_ns(int64_t start_ns, uint64_t n)
{
	unsigned __int128 ns = ((unsigned __int128)n * NS_PER_S + PIT_HZ - 1) / PIT_HZ;

	return ns > FAR_NS ? FAR_NS : start_ns + (int64_t)ns;
}

static bool is_periodic(const struct pit_channel *c)
{
	return c->mode == 2 || c->mode == 3;
}

static uint32_t modulus(const struct pit_channel *c)
{
	return c->is_bcd ? 10000 : 65536;
}

static uint32_t period(const struct pit_channel *c)
{
	return MAX(c->reload, 2u);
}

/* Count from the beginning of the period that runs now. */
static void rebase(struct pit *p, struct pit_channel *c)
{
	uint64_t e = ticks_since(p, c->start_ns);

	c->start_ns = tick_ns(c->start_ns, e - e % period(c));
}

/* A count that was written while a period ran takes over at its end. */
static void take_reload(struct pit *p, struct pit_channel *c)
{
	if (!c->next_reload || !c->is_counting || ticks_since(p, c->start_ns) < period(c))
		return;
	c->start_ns = tick_ns(c->start_ns, period(c));
	c->reload = c->start_value = c->next_reload;
	c->next_reload = 0;
	c->is_null_count = false;
}

static uint32_t square_wave_count(uint32_t n, uint32_t phase)
{
	uint32_t high = (n + 1) / 2, even = n & ~1u;

	return even - 2 * (phase < high ? phase : phase - high);
}

/* The counting element, 0..modulus-1. */
static uint32_t count(const struct pit *p, const struct pit_channel *c)
{
	uint64_t e;
	uint32_t m = modulus(c);

	if (!c->is_counting)
		return c->start_value % m;
	e = ticks_since(p, c->start_ns);
	if (c->mode == 2)
		return (period(c) - (uint32_t)(e % period(c))) % m;
	if (c->mode == 3)
		return square_wave_count(period(c), (uint32_t)(e % period(c))) % m;
	return (uint32_t)((c->start_value + m - e % m) % m);
}

static bool output(const struct pit *p, const struct pit_channel *c)
{
	uint64_t e = c->is_counting ? ticks_since(p, c->start_ns) : 0;

	switch (c->mode) {
	case 0:
		return c->is_expired || (c->is_counting && e >= c->start_value);
	case 1:
		return !c->is_counting || e >= c->start_value;
	case 2:
		return !c->is_counting || e % period(c) != period(c) - 1;
	case 3:
		return !c->is_counting || e % period(c) < (period(c) + 1) / 2;
	default: /* 4, 5: low for one clock */
		return !c->is_counting || c->is_expired || e != c->start_value;
	}
}

/* ---- IRQ 0 ---- */

/* The next rise of OUT0 after @after_ns. */
static int64_t next_rise_ns(const struct pit_channel *c, uint64_t e)
{
	if (!c->is_counting)
		return INT64_MAX;
	switch (c->mode) {
	case 0:
		return c->is_expired || e >= c->start_value ? INT64_MAX
							    : tick_ns(c->start_ns, c->start_value);
	case 2:
	case 3:
		return tick_ns(c->start_ns, (e / period(c) + 1) * period(c));
	case 4:
		return c->is_expired || e > c->start_value
			       ? INT64_MAX
			       : tick_ns(c->start_ns, c->start_value + 1ull);
	default: /* 1, 5: counter 0's gate never rises */
		return INT64_MAX;
	}
}

static void arm(struct pit *p, int64_t earliest_ns)
{
	if (p->irq_next_ns == INT64_MAX)
		vtimer_cancel(p->timer);
	else
		vtimer_arm(p->timer, MAX(p->irq_next_ns, earliest_ns));
}

/* Counter 0 was programmed. */
static void restart_irq(struct pit *p)
{
	const struct pit_channel *c = &p->ch[0];

	p->irq_next_ns = next_rise_ns(c, ticks_since(p, c->start_ns));
	irq_set(&p->irq0, output(p, c));
	arm(p, 0);
}

static void on_timer(void *arg)
{
	struct pit *p = arg;
	struct pit_channel *c = &p->ch[0];
	int64_t now = now_ns(p), due = p->irq_next_ns, next;

	if (due == INT64_MAX)
		return;
	if (now < due) {
		arm(p, 0);
		return;
	}
	irq_set(&p->irq0, false);
	irq_set(&p->irq0, true);
	take_reload(p, c);
	next = next_rise_ns(c, ticks_since(p, c->start_ns));
	if (is_periodic(c) && next != INT64_MAX) {
		int64_t length = tick_ns(0, period(c));

		/* late: one period after the last one, as long as that can be caught up */
		if (due >= c->start_ns && now - due < MAX_BACKLOG * length)
			next = MIN(next, due + length);
	}
	p->irq_next_ns = next;
	arm(p, now + MIN_INTERVAL_NS);
}

/* ---- programming ---- */

static void freeze(struct pit *p, struct pit_channel *c)
{
	if (!c->is_counting)
		return;
	if (ticks_since(p, c->start_ns) >= c->start_value)
		c->is_expired = true;
	c->start_value = count(p, c);
	c->is_counting = false;
}

static void start(struct pit *p, struct pit_channel *c, uint32_t value)
{
	c->start_value = value;
	c->start_ns = now_ns(p);
	c->is_counting = true;
}

static void load(struct pit *p, struct pit_channel *c)
{
	c->is_null_count = false;
	c->is_expired = false;
	c->next_reload = 0;
	start(p, c, c->reload);
}

static uint32_t from_bcd(uint16_t v)
{
	return (v >> 12) * 1000u + (v >> 8 & 15) * 100u + (v >> 4 & 15) * 10u + (v & 15);
}

static uint16_t to_bcd(uint32_t v)
{
	return (uint16_t)(v / 1000 % 10 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

static void write_count(struct pit *p, struct pit_channel *c, uint16_t raw)
{
	uint32_t value = c->is_bcd ? from_bcd(raw) % 10000 : raw;

	if (!value)
		value = modulus(c);
	take_reload(p, c);
	c->is_null_count = true;
	switch (c->mode) {
	case 0:
	case 4:
		c->reload = value;
		load(p, c);
		if (!c->gate)
			freeze(p, c);
		break;
	case 2:
	case 3:
		if (c->is_counting) {
			rebase(p, c);
			c->next_reload = value;
			if (c == &p->ch[0]) /* the same moment, but rounded from the new start */
				p->irq_next_ns = next_rise_ns(c, ticks_since(p, c->start_ns));
		} else {
			c->reload = value;
			if (c->gate)
				load(p, c);
		}
		break;
	default: /* 1, 5: at the next trigger */
		c->reload = value;
		break;
	}
	if (c == &p->ch[0] && !c->next_reload)
		restart_irq(p);
}

static void write_data(struct pit *p, struct pit_channel *c, uint8_t v)
{
	if (c->access == 1) {
		write_count(p, c, v);
	} else if (c->access == 2) {
		write_count(p, c, (uint16_t)(v << 8));
	} else if (!c->write_high_next) {
		c->write_low = v;
		c->write_high_next = true;
		if (c->mode == 0) { /* the first byte stops the count, OUT goes low */
			freeze(p, c);
			c->is_expired = false;
			if (c == &p->ch[0])
				restart_irq(p);
		}
	} else {
		c->write_high_next = false;
		write_count(p, c, (uint16_t)(v << 8 | c->write_low));
	}
}

static uint16_t readable_count(const struct pit *p, const struct pit_channel *c)
{
	uint32_t v = count(p, c);

	return c->is_bcd ? to_bcd(v) : (uint16_t)v;
}

static uint8_t read_data(struct pit *p, struct pit_channel *c)
{
	uint16_t v;
	bool is_high, is_last;

	take_reload(p, c);
	if (c->is_status_latched) {
		c->is_status_latched = false;
		return c->latched_status;
	}
	v = c->is_count_latched ? c->latched_count : readable_count(p, c);
	is_high = c->access == 2 || (c->access == 3 && c->read_high_next);
	is_last = c->access != 3 || c->read_high_next;
	c->read_high_next = c->access == 3 && !c->read_high_next;
	if (is_last)
		c->is_count_latched = false;
	return (uint8_t)(is_high ? v >> 8 : v);
}

static void latch_count(struct pit *p, struct pit_channel *c)
{
	if (c->is_count_latched)
		return;
	take_reload(p, c);
	c->latched_count = readable_count(p, c);
	c->is_count_latched = true;
	c->read_high_next = false;
}

static void latch_status(struct pit *p, struct pit_channel *c)
{
	if (c->is_status_latched)
		return;
	take_reload(p, c);
	c->latched_status = (uint8_t)(output(p, c) << 7 | c->is_null_count << 6 | c->access << 4 |
				      c->mode << 1 | c->is_bcd);
	c->is_status_latched = true;
}

static void write_mode(struct pit *p, struct pit_channel *c, uint8_t v)
{
	freeze(p, c);
	c->is_bcd = v & 1;
	c->start_value %= modulus(c);
	c->reload = MIN(c->reload, modulus(c));
	c->mode = v >> 1 & 7;
	if (c->mode > 5)
		c->mode -= 4; /* x10, x11 */
	c->access = v >> 4 & 3;
	c->next_reload = 0;
	c->is_expired = false;
	c->is_null_count = true;
	c->is_count_latched = c->is_status_latched = false;
	c->write_high_next = c->read_high_next = false;
	if (c == &p->ch[0])
		restart_irq(p);
}

static void write_control(struct pit *p, uint8_t v)
{
	if (v >> 6 == 3) { /* read-back */
		for (unsigned i = 0; i < 3; i++) {
			if (!(v >> 1 & 1u << i))
				continue;
			if (!(v & 0x20))
				latch_count(p, &p->ch[i]);
			if (!(v & 0x10))
				latch_status(p, &p->ch[i]);
		}
	} else if (v >> 4 & 3) {
		write_mode(p, &p->ch[v >> 6], v);
	} else {
		latch_count(p, &p->ch[v >> 6]);
	}
}

static void set_gate(struct pit *p, struct pit_channel *c, bool gate)
{
	bool is_rise = gate && !c->gate;

	if (gate == c->gate)
		return;
	take_reload(p, c);
	c->gate = gate;
	switch (c->mode) {
	case 0:
	case 4:
		if (!gate)
			freeze(p, c);
		else if (!c->is_null_count && !(c->mode == 0 && c->write_high_next))
			start(p, c, c->start_value ? c->start_value : modulus(c));
		break;
	case 2:
	case 3:
		if (!gate) {
			if (c->next_reload)
				c->reload = c->next_reload;
			freeze(p, c);
		} else if (c->reload) {
			load(p, c);
		}
		break;
	default:
		if (is_rise && c->reload)
			load(p, c);
		break;
	}
}

/* ---- ports ---- */

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	struct pit *p = dev;
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++) {
		uint64_t reg = offset + i;

		v |= (uint64_t)(reg < 3 ? read_data(p, &p->ch[reg]) : 0xff) << i * 8;
	}
	return v;
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit *p = dev;

	for (unsigned i = 0; i < size; i++, value >>= 8) {
		if (offset + i < 3)
			write_data(p, &p->ch[offset + i], (uint8_t)value);
		else
			write_control(p, (uint8_t)value);
	}
}

static uint64_t port61_read(void *dev, uint64_t offset, unsigned size)
{
	struct pit *p = dev;
	uint8_t v = p->port61;

	take_reload(p, &p->ch[2]);
	if (now_ns(p) / REFRESH_NS & 1)
		v |= 0x10;
	if (output(p, &p->ch[2]))
		v |= 0x20;
	return v;
}

static void port61_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit *p = dev;

	p->port61 = value & 0x0f;
	set_gate(p, &p->ch[2], value & 1);
}

static const struct bus_ops port_ops = { port_read, port_write };
static const struct bus_ops port61_ops = { port61_read, port61_write };

/* ---- life cycle ---- */

static int channel_check(const void *obj, struct error *err)
{
	const struct pit_channel *c = obj;
	uint32_t m = modulus(c);

	if (c->mode > 5 || c->access < 1 || c->access > 3 || c->reload > m || !c->reload ||
	    c->next_reload > m || c->start_value > m || c->start_ns < 0 || c->start_ns > FAR_NS ||
	    (c->is_counting && !c->start_value))
		return error_set(err, -EINVAL, "timer channel state is impossible");
	return 0;
}

static int check(const void *obj, struct error *err)
{
	const struct pit *p = obj;

	if (p->port61 > 15 || p->irq_next_ns < 0 || (p->port61 & 1) != p->ch[2].gate ||
	    !p->ch[0].gate || !p->ch[1].gate)
		return error_set(err, -EINVAL, "timer state is impossible");
	return 0;
}

// clang-format off
static const struct field channel_fields[] = {
	F_I64(struct pit_channel, start_ns),
	F_U32(struct pit_channel, reload),
	F_U32(struct pit_channel, start_value),
	F_U32(struct pit_channel, next_reload),
	F_U16(struct pit_channel, latched_count),
	F_U8(struct pit_channel, mode),
	F_U8(struct pit_channel, access),
	F_U8(struct pit_channel, latched_status),
	F_U8(struct pit_channel, write_low),
	F_BOOL(struct pit_channel, is_bcd),
	F_BOOL(struct pit_channel, gate),
	F_BOOL(struct pit_channel, is_counting),
	F_BOOL(struct pit_channel, is_null_count),
	F_BOOL(struct pit_channel, is_expired),
	F_BOOL(struct pit_channel, is_count_latched),
	F_BOOL(struct pit_channel, is_status_latched),
	F_BOOL(struct pit_channel, write_high_next),
	F_BOOL(struct pit_channel, read_high_next),
	F_HOST(struct pit_channel, pad_),
	F_END,
};
static const struct state_desc channel_desc = {
	.name = "pit-channel", .version = 1, .size = sizeof(struct pit_channel),
	.fields = channel_fields, .check = channel_check,
};
static const struct field fields[] = {
	F_HOST(struct pit, dev),
	F_HOST(struct pit, env),
	F_HOST(struct pit, irq0),
	F_HOST(struct pit, timer),
	F_HOST(struct pit, ranges),
	F_STRUCT_ARRAY(struct pit, ch, &channel_desc),
	F_I64(struct pit, irq_next_ns),
	F_U8(struct pit, port61),
	F_HOST(struct pit, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "pit",
	.version = 1,
	.size = sizeof(struct pit),
	.fields = fields,
	.check = check,
};

/* Undefined in the data sheet: nothing counts until it is programmed. */
static void reset(struct device *d)
{
	struct pit *p = container_of(d, struct pit, dev);

	for (unsigned i = 0; i < 3; i++)
		p->ch[i] = (struct pit_channel){
			.reload = 65536,
			.mode = 3,
			.access = 3,
			.gate = i != 2,
			.is_null_count = true,
		};
	p->port61 = 0;
	restart_irq(p);
}

static void after_load(struct device *d)
{
	arm(container_of(d, struct pit, dev), 0);
}

static void destroy(struct device *d)
{
	struct pit *p = container_of(d, struct pit, dev);

	vtimer_destroy(p->timer);
	bus_remove(p->env.bus, p->ranges[0]);
	bus_remove(p->env.bus, p->ranges[1]);
	free(p);
}

const struct device_class pit_class = {
	.name = "pit",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

int pit_create(struct pit **out, const struct dev_env *env, struct irq_line irq0, struct error *err)
{
	struct pit *p = calloc(1, sizeof(*p));
	int rc = 0;

	if (!p)
		return error_set(err, -ENOMEM, "no memory for the interval timer");
	device_init(&p->dev, &pit_class, "pit");
	p->env = *env;
	p->irq0 = irq0;
	p->timer = vtimer_create(env->loop, env->clock, on_timer, p);
	if (!p->timer)
		rc = -ENOMEM;
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x40, 4, 0, &port_ops, p, &p->ranges[0]);
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x61, 1, 0, &port61_ops, p, &p->ranges[1]);
	if (rc) {
		destroy(&p->dev);
		return error_set(err, rc, "the interval timer cannot be set up: %s", strerror(-rc));
	}
	reset(&p->dev);
	*out = p;
	return 0;
}
