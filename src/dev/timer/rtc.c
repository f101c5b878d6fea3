/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock is one number, offset_ns, while it runs.  It stands still while register B's SET bit is on or the
 * divider is held in reset (A: DV = 11x); then the time and date lie in ram[], where the guest
 * writes them.  Starting again takes them from there.
 *
 * Nothing ticks: flags of register C are brought up to date (catch_up) when somebody looks, and a timer
 * runs only for events that will interrupt.
 */
#include "dev/timer/rtc.h"

#include <errno.h>
#include <string.h>

#define NS_PER_S 1000000000ll
#define UIP_NS	 244000 /* the update is announced so long before */
/* Times are held in ns: what a guest sets ends up in 1779..2160. */
#define SECONDS_MAX    6000000000ll
#define MACHINE_NS_MAX (INT64_MAX / 4)

enum {
	R_SEC = 0,
	R_SEC_ALARM = 1,
	R_MIN = 2,
	R_MIN_ALARM = 3,
	R_HOUR = 4,
	R_HOUR_ALARM = 5,
	R_DOW = 6,
	R_DAY = 7,
	R_MONTH = 8,
	R_YEAR = 9,
	R_A = 10,
	R_B = 11,
	R_C = 12,
	R_D = 13,
	R_CENTURY = 0x32,
};

#define A_UIP	  0x80
#define B_SET	  0x80
#define B_PIE	  0x40
#define B_AIE	  0x20
#define B_UIE	  0x10
#define B_BINARY  0x04
#define B_24H	  0x02
#define C_IRQF	  0x80
#define C_PF	  0x40
#define C_AF	  0x20
#define C_UF	  0x10
#define D_VALID	  0x80
#define HOUR_PM	  0x80
#define ALARM_ANY 0xc0

/* ---- calendar: days since 1970-01-01, proleptic Gregorian ---- */

struct civil {
	int64_t year;
	unsigned month, day;	       /* 1..12, 1..31 */
	unsigned hour, minute, second; /* 0..23 ... */
};

static int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b < 0);
}

/* The year begins in March here, so that the leap day is its last. */
static int64_t days_from_civil(int64_t year, int64_t month, int64_t day)
{
	int64_t y = year - (month <= 2), era = floor_div(y, 400), yoe = y - era * 400;
	int64_t doy = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

	return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static struct civil civil_from_seconds(int64_t s)
{
	int64_t days = floor_div(s, 86400), z = days + 719468, era = floor_div(z, 146097);
	int64_t doe = z - era * 146097;
	int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	unsigned rest = (unsigned)(s - days * 86400);
	struct civil c = {
		.month = (unsigned)(mp < 10 ? mp + 3 : mp - 9),
		.day = (unsigned)(doy - (153 * mp + 2) / 5 + 1),
		.hour = rest / 3600,
		.minute = rest / 60 % 60,
		.second = rest % 60,
	};

	c.year = yoe + era * 400 + (c.month <= 2);
	return c;
}

/* ---- representation ---- */

static uint8_t encode(const struct rtc *r, unsigned v)
{
	return (uint8_t)(r->ram[R_B] & B_BINARY ? v : v / 10 % 10 << 4 | v % 10);
}

static unsigned decode(const struct rtc *r, uint8_t v)
{
	return r->ram[R_B] & B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static uint8_t encode_hour(const struct rtc *r, unsigned hour)
{
	if (r->ram[R_B] & B_24H)
		return encode(r, hour);
	return encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

static unsigned decode_hour(const struct rtc *r, uint8_t v)
{
	if (r->ram[R_B] & B_24H)
		return decode(r, v);
	return decode(r, v & 0x7f) % 12 + (v & HOUR_PM ? 12 : 0);
}

/* ---- running and standing still ---- */

static int64_t now_ns(const struct rtc *r)
{
	return vclock_now_ns(r->env.clock);
}

static bool is_divider_reset(uint8_t a)
{
	return (a & 0x60) == 0x60;
}

static bool is_stopped(const struct rtc *r)
{
	return (r->ram[R_B] & B_SET) || is_divider_reset(r->ram[R_A]);
}

static int64_t seconds_at(const struct rtc *r, int64_t machine_ns)
{
	return floor_div(machine_ns + r->offset_ns, NS_PER_S);
}

static void put_time(struct rtc *r, int64_t seconds)
{
	struct civil c = civil_from_seconds(seconds);
	int64_t days = floor_div(seconds, 86400);

	r->ram[R_SEC] = encode(r, c.second);
	r->ram[R_MIN] = encode(r, c.minute);
	r->ram[R_HOUR] = encode_hour(r, c.hour);
	r->ram[R_DOW] = encode(r, (unsigned)((days % 7 + 11) % 7 + 1)); /* 1970-01-01: Thursday, 5 */
	r->ram[R_DAY] = encode(r, c.day);
	r->ram[R_MONTH] = encode(r, c.month);
	r->ram[R_YEAR] = encode(r, (unsigned)((c.year % 100 + 100) % 100));
	/* by convention of firmware and kernels always BCD */
	unsigned century = (unsigned)(c.year / 100 % 100 + 100) % 100;

	r->ram[R_CENTURY] = (uint8_t)(century / 10 << 4 | century % 10);
}

/* Seconds since 1970 of what ram[] says; nonsense gives some other time. */
static int64_t take_time(const struct rtc *r)
{
	unsigned century = (r->ram[R_CENTURY] >> 4) * 10u + (r->ram[R_CENTURY] & 15);
	int64_t year = century * 100ll + decode(r, r->ram[R_YEAR]);
	unsigned month = decode(r, r->ram[R_MONTH]);
	int64_t days, seconds;

	month = month < 1 ? 1 : MIN(month, 12u);
	days = days_from_civil(year, month, decode(r, r->ram[R_DAY]));
	seconds = days * 86400 + decode_hour(r, r->ram[R_HOUR]) * 3600ll +
		  decode(r, r->ram[R_MIN]) * 60ll + decode(r, r->ram[R_SEC]);
	return MAX(MIN(seconds, SECONDS_MAX), -SECONDS_MAX);
}

/* Let the clock run on from ram[], @fraction_ns into the second. */
static void set_running(struct rtc *r, int64_t fraction_ns)
{
	r->offset_ns = take_time(r) * NS_PER_S + fraction_ns - now_ns(r);
	r->seen_ns = now_ns(r);
}

static int64_t fraction_ns(const struct rtc *r)
{
	int64_t tod = now_ns(r) + r->offset_ns;

	return tod - floor_div(tod, NS_PER_S) * NS_PER_S;
}

/* ---- events ---- */

/* Length of the periodic interrupt in 1/32768 s; 0: off. */
static uint32_t period_ticks(const struct rtc *r)
{
	unsigned rs = r->ram[R_A] & 15;

	if (!rs || is_divider_reset(r->ram[R_A]))
		return 0;
	return 1u << (rs < 3 ? rs + 6 : rs - 1);
}

/* How many periods have ended at @machine_ns. */
static int64_t periods_until(const struct rtc *r, int64_t machine_ns)
{
	return (int64_t)((__int128)machine_ns * 32768 / NS_PER_S / period_ticks(r));
}

static bool alarm_matches(const struct rtc *r, unsigned reg, unsigned value)
{
	uint8_t want = r->ram[reg];

	if ((want & ALARM_ANY) == ALARM_ANY)
		return true;
	return (reg == R_HOUR_ALARM ? decode_hour(r, want) : decode(r, want)) == value;
}

/* The first second after @after (since 1970) at which the alarm goes off, or INT64_MAX. */
static int64_t next_alarm(const struct rtc *r, int64_t after)
{
	int64_t midnight = floor_div(after, 86400) * 86400;

	for (unsigned hour = 0; hour < 48; hour++) {
		if (!alarm_matches(r, R_HOUR_ALARM, hour % 24) || midnight + (hour + 1) * 3600ll <= after)
			continue;
		for (unsigned minute = 0; minute < 60; minute++) {
			int64_t at = midnight + hour * 3600ll + minute * 60ll;

			if (!alarm_matches(r, R_MIN_ALARM, minute) || at + 60 <= after)
				continue;
			for (unsigned second = 0; second < 60; second++)
				if (alarm_matches(r, R_SEC_ALARM, second) && at + second > after)
					return at + second;
		}
	}
	return INT64_MAX;
}

static void update_irq(struct rtc *r)
{
	/* flag and enable bits have the same places */
	if (r->ram[R_C] & r->ram[R_B] & (C_PF | C_AF | C_UF))
		r->ram[R_C] |= C_IRQF;
	else
		r->ram[R_C] &= (uint8_t)~C_IRQF;
	irq_set(&r->irq8, r->ram[R_C] & C_IRQF);
}

/* Raise the flags of what happened since seen_ns. */
static void catch_up(struct rtc *r)
{
	int64_t now = now_ns(r);

	if (now <= r->seen_ns)
		return;
	if (period_ticks(r) && periods_until(r, now) > periods_until(r, r->seen_ns))
		r->ram[R_C] |= C_PF;
	if (!is_stopped(r)) {
		int64_t then = seconds_at(r, r->seen_ns), s = seconds_at(r, now);

		if (s > then) {
			r->ram[R_C] |= C_UF;
			if (next_alarm(r, then) <= s)
				r->ram[R_C] |= C_AF;
		}
	}
	r->seen_ns = now;
	update_irq(r);
}

/* Wait for the first event that would interrupt. */
static void arm(struct rtc *r)
{
	uint8_t waiting = r->ram[R_B] & (uint8_t)~r->ram[R_C];
	int64_t at = INT64_MAX, now = now_ns(r);

	if ((waiting & B_PIE) && period_ticks(r)) {
		__int128 ticks = (__int128)(periods_until(r, now) + 1) * period_ticks(r);

		at = (int64_t)((ticks * NS_PER_S + 32767) / 32768);
	}
	if ((waiting & B_UIE) && !is_stopped(r))
		at = MIN(at, (seconds_at(r, now) + 1) * NS_PER_S - r->offset_ns);
	if ((waiting & B_AIE) && !is_stopped(r)) {
		int64_t alarm = next_alarm(r, seconds_at(r, now));

		if (alarm != INT64_MAX)
			at = MIN(at, alarm * NS_PER_S - r->offset_ns);
	}
	if (at == INT64_MAX)
		vtimer_cancel(r->timer);
	else
		vtimer_arm(r->timer, at);
}

void rtc_advance(struct rtc *r, int64_t ns)
{
	if (is_stopped(r) || ns <= 0 || ns > SECONDS_MAX * NS_PER_S - MAX(r->offset_ns, 0))
		return;
	catch_up(r);
	int64_t then = seconds_at(r, now_ns(r));

	r->offset_ns += ns;
	int64_t now = seconds_at(r, now_ns(r));

	if (now > then) {
		r->ram[R_C] |= C_UF;
		if (next_alarm(r, then) <= now)
			r->ram[R_C] |= C_AF;
	}
	update_irq(r);
	arm(r);
}

static void on_timer(void *arg)
{
	struct rtc *r = arg;

	catch_up(r);
	arm(r);
}

/* ---- registers ---- */

static bool is_time(unsigned reg)
{
	return reg == R_SEC || reg == R_MIN || reg == R_HOUR || (reg >= R_DOW && reg <= R_YEAR) ||
	       reg == R_CENTURY;
}

static uint8_t reg_read(struct rtc *r, unsigned reg)
{
	uint8_t v;

	catch_up(r);
	if (is_time(reg) && !is_stopped(r))
		put_time(r, seconds_at(r, now_ns(r)));
	v = r->ram[reg];
	if (reg == R_A && !is_stopped(r) && fraction_ns(r) >= NS_PER_S - UIP_NS)
		v |= A_UIP;
	if (reg == R_C) {
		r->ram[R_C] = 0;
		update_irq(r);
		arm(r);
	}
	return v;
}

/* Registers A and B: changes may stop or start the clock. */
static void write_control(struct rtc *r, unsigned reg, uint8_t v)
{
	bool was_stopped = is_stopped(r), was_reset = is_divider_reset(r->ram[R_A]);
	int64_t fraction = fraction_ns(r);

	if (!was_stopped)
		put_time(r, seconds_at(r, now_ns(r))); /* in the old representation */
	if (reg == R_B && (v & B_SET))
		v &= (uint8_t)~B_UIE; /* SET clears UIE */
	r->ram[reg] = v;
	if (was_stopped && !is_stopped(r))
		/* the first update comes half a second after the divider starts */
		set_running(r, was_reset ? NS_PER_S / 2 : fraction);
	update_irq(r);
}

static void write_time(struct rtc *r, unsigned reg, uint8_t v)
{
	int64_t fraction = fraction_ns(r);

	if (!is_stopped(r))
		put_time(r, seconds_at(r, now_ns(r)));
	r->ram[reg] = v;
	if (!is_stopped(r))
		set_running(r, fraction);
}

static void reg_write(struct rtc *r, unsigned reg, uint8_t v)
{
	catch_up(r);
	if (is_time(reg))
		write_time(r, reg, v);
	else if (reg == R_A)
		write_control(r, reg, v & 0x7f);
	else if (reg == R_B)
		write_control(r, reg, v);
	else if (reg != R_C && reg != R_D)
		r->ram[reg] = v;
	arm(r);
}

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	struct rtc *r = dev;

	if (offset == 1 && size == 1)
		return reg_read(r, r->index);
	return UINT64_MAX; /* the index register is write-only */
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct rtc *r = dev;

	if (offset == 0) {
		r->index = value & 0x7f;
		r->is_nmi_masked = value & 0x80;
		offset++, size--, value >>= 8;
	}
	if (size)
		reg_write(r, r->index, (uint8_t)value);
}

static const struct bus_ops port_ops = { port_read, port_write };

/* ---- life cycle ---- */

static int check(const void *obj, struct error *err)
{
	const struct rtc *r = obj;
	const int64_t far = SECONDS_MAX * NS_PER_S + MACHINE_NS_MAX;

	if (r->index > 127 || r->seen_ns < 0 || r->seen_ns > MACHINE_NS_MAX ||
	    r->offset_ns > SECONDS_MAX * NS_PER_S + NS_PER_S || r->offset_ns < -far ||
	    (r->ram[R_A] & A_UIP) || (r->ram[R_C] & 0x0f) || r->ram[R_D] != D_VALID)
		return error_set(err, -EINVAL, "real-time clock state is impossible");
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct rtc, dev),
	F_HOST(struct rtc, env),
	F_HOST(struct rtc, irq8),
	F_HOST(struct rtc, timer),
	F_HOST(struct rtc, range),
	F_I64(struct rtc, offset_ns),
	F_I64(struct rtc, seen_ns),
	F_BYTES(struct rtc, ram),
	F_U8(struct rtc, index),
	F_BOOL(struct rtc, is_nmi_masked),
	F_HOST(struct rtc, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "rtc",
	.version = 1,
	.size = sizeof(struct rtc),
	.fields = fields,
	.check = check,
};

/* The battery keeps time and memory; RESET# clears the enables and flags. */
static void reset(struct device *d)
{
	struct rtc *r = container_of(d, struct rtc, dev);

	catch_up(r);
	r->ram[R_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE | 0x08);
	r->ram[R_C] = 0;
	r->index = 0;
	r->is_nmi_masked = false;
	update_irq(r);
	arm(r);
}

static void after_load(struct device *d)
{
	struct rtc *r = container_of(d, struct rtc, dev);

	update_irq(r);
	arm(r);
}

static void destroy(struct device *d)
{
	struct rtc *r = container_of(d, struct rtc, dev);

	vtimer_destroy(r->timer);
	bus_remove(r->env.bus, r->range);
	free(r);
}

const struct device_class rtc_class = {
	.name = "rtc",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

/* What firmware finds in the memory (the layout of SeaBIOS and QEMU's machines). */
static void fill_memory(struct rtc *r, const struct rtc_config *cfg)
{
	uint64_t above_1m = cfg->low_ram_bytes > MIB ? (cfg->low_ram_bytes - MIB) / KIB : 0;
	uint64_t above_16m = cfg->low_ram_bytes > 16 * MIB ? (cfg->low_ram_bytes - 16 * MIB) >> 16 : 0;
	uint64_t above_4g = cfg->high_ram_bytes >> 16;
	uint8_t *m = r->ram;
	unsigned sum = 0;

	above_1m = MIN(above_1m, (uint64_t)0xffff);
	above_16m = MIN(above_16m, (uint64_t)0xffff);
	m[R_A] = 0x26;
	m[R_B] = B_24H;
	m[R_D] = D_VALID;
	m[0x14] = 0x06; /* equipment: coprocessor, PS/2 mouse */
	m[0x15] = 640 & 0xff;
	m[0x16] = 640 >> 8;
	m[0x17] = m[0x30] = (uint8_t)above_1m;
	m[0x18] = m[0x31] = (uint8_t)(above_1m >> 8);
	m[0x34] = (uint8_t)above_16m;
	m[0x35] = (uint8_t)(above_16m >> 8);
	m[0x3d] = cfg->boot_order;
	m[0x5b] = (uint8_t)above_4g;
	m[0x5c] = (uint8_t)(above_4g >> 8);
	m[0x5d] = (uint8_t)(above_4g >> 16);
	m[0x5f] = (uint8_t)(cfg->cpus ? cfg->cpus - 1 : 0);
	for (unsigned i = 0x10; i <= 0x2d; i++)
		sum += m[i];
	m[0x2e] = (uint8_t)(sum >> 8);
	m[0x2f] = (uint8_t)sum;
}

int rtc_create(struct rtc **out, const struct dev_env *env, struct irq_line irq8,
	       const struct rtc_config *cfg, struct error *err)
{
	struct rtc *r = calloc(1, sizeof(*r));
	int rc = 0;

	if (!r)
		return error_set(err, -ENOMEM, "no memory for the real-time clock");
	device_init(&r->dev, &rtc_class, "rtc");
	r->env = *env;
	r->irq8 = irq8;
	r->offset_ns = cfg->wall_ns_at_zero;
	r->seen_ns = now_ns(r);
	fill_memory(r, cfg);
	r->timer = vtimer_create(env->loop, env->clock, on_timer, r);
	if (!r->timer)
		rc = -ENOMEM;
	if (!rc)
		rc = bus_add(env->bus, BUS_PIO, 0x70, 2, 0, &port_ops, r, &r->range);
	if (rc) {
		destroy(&r->dev);
		return error_set(err, rc, "the real-time clock cannot be set up: %s", strerror(-rc));
	}
	reset(&r->dev);
	*out = r;
	return 0;
}
