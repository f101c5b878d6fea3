/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local APIC's timer, SDM 10.5.4: one-shot and periodic countdown in machine time, TSC-deadline.
 *
 * A running countdown is one number: when it ends.  The current count is computed from it, so that
 * changing between one-shot and periodic, or the divider, keeps the count as hardware does.
 *
 * A guest may ask for a period of a nanosecond; expiries are then handled in batches of
 * MIN_INTERVAL_NS (a request bit holds one interrupt anyway).
 */
#include "dev/chipset/lapic_regs.h"

#define MIN_INTERVAL_NS 20000
#define FAR_NS		(INT64_MAX / 4)

static unsigned divide_shift(const struct lapic *l)
{
	/* 000: 2, 001: 4, ... 110: 128, 111: 1 */
	return (((l->timer_divide & 3) | (l->timer_divide & 8) >> 1) + 1) & 7;
}

static int64_t period_ns(const struct lapic *l)
{
	_Static_assert(LAPIC_TIMER_HZ == 1000000000u, "a count is a nanosecond");
	return (int64_t)l->timer_initial << divide_shift(l);
}

static uint32_t mode(const struct lapic *l)
{
	return l->lvt[LAPIC_LVT_TIMER] & LVT_TIMER_MODE;
}

static int64_t now_ns(const struct lapic *l)
{
	return vclock_now_ns(l->env.clock);
}

/* ---- TSC-deadline ---- */

static void arm_deadline(struct lapic *l)
{
	const struct lapic_up *up = &l->bus->cfg.up;
	uint64_t tsc = up->read_tsc(up->ctx, (unsigned)l->cpu);
	unsigned __int128 ns;

	if (tsc >= l->tsc_deadline) {
		l->tsc_deadline = 0;
		lapic_fire_lvt(l, LAPIC_LVT_TIMER);
		return;
	}
	ns = (unsigned __int128)(l->tsc_deadline - tsc) * 1000000 / l->bus->cfg.tsc_khz + 1;
	vtimer_arm(l->timer, now_ns(l) + (ns > FAR_NS ? FAR_NS : (int64_t)ns));
}

void lapic_timer_write_deadline(struct lapic *l, uint64_t tsc)
{
	if (mode(l) != LVT_TIMER_DEADLINE)
		return;
	vtimer_cancel(l->timer);
	l->tsc_deadline = tsc;
	if (tsc)
		arm_deadline(l);
}

/* ---- countdown ---- */

void lapic_timer_stop(struct lapic *l)
{
	vtimer_cancel(l->timer);
	l->timer_runs = false;
	l->timer_end_ns = 0;
	l->tsc_deadline = 0;
}

static void start(struct lapic *l, int64_t length_ns)
{
	l->timer_runs = true;
	l->timer_end_ns = now_ns(l) + length_ns;
	vtimer_arm(l->timer, l->timer_end_ns);
}

void lapic_timer_fired(void *lapic)
{
	struct lapic *l = lapic;
	int64_t now = now_ns(l);

	if (l->tsc_deadline) {
		arm_deadline(l);
		return;
	}
	if (!l->timer_runs)
		return;
	if (mode(l) != LVT_TIMER_PERIODIC) {
		l->timer_runs = false;
	} else {
		int64_t late = MAX(now - l->timer_end_ns, (int64_t)0);

		l->timer_end_ns += (late / period_ns(l) + 1) * period_ns(l);
		vtimer_arm(l->timer, MAX(l->timer_end_ns, now + MIN_INTERVAL_NS));
	}
	lapic_fire_lvt(l, LAPIC_LVT_TIMER);
}

void lapic_timer_settle(struct lapic *l)
{
	if (!l->timer_runs || l->timer_end_ns > now_ns(l))
		return;
	vtimer_cancel(l->timer);
	lapic_timer_fired(l);
}

uint32_t lapic_timer_count(const struct lapic *l)
{
	int64_t left = l->timer_end_ns - now_ns(l);
	unsigned shift = divide_shift(l);
	uint64_t count;

	if (!l->timer_runs)
		return 0;
	if (left <= 0) {
		/* the expiry is about to be handled */
		if (mode(l) != LVT_TIMER_PERIODIC)
			return 0;
		left = period_ns(l) - -left % period_ns(l);
	}
	count = ((uint64_t)left + (1u << shift) - 1) >> shift;
	return (uint32_t)MIN(count, (uint64_t)l->timer_initial);
}

void lapic_timer_set_count(struct lapic *l, uint32_t count)
{
	vtimer_cancel(l->timer);
	l->timer_runs = false;
	if (count && l->timer_initial && mode(l) != LVT_TIMER_DEADLINE)
		start(l, (int64_t)count << divide_shift(l));
}

void lapic_timer_write_initial(struct lapic *l, uint32_t count)
{
	if (mode(l) == LVT_TIMER_DEADLINE)
		return;
	lapic_timer_settle(l);
	l->timer_initial = count;
	lapic_timer_set_count(l, count);
}

void lapic_timer_write_divide(struct lapic *l, uint32_t value)
{
	lapic_timer_settle(l);
	uint32_t count = lapic_timer_count(l);

	l->timer_divide = value & 0xb;
	if (l->timer_runs)
		lapic_timer_set_count(l, count);
}

void lapic_timer_write_lvt(struct lapic *l, uint32_t old_lvt)
{
	uint32_t changed = (old_lvt ^ l->lvt[LAPIC_LVT_TIMER]) & LVT_TIMER_DEADLINE;

	if (changed) {
		lapic_timer_stop(l);
		l->timer_initial = 0;
	}
}

void lapic_timer_rearm(struct lapic *l)
{
	vtimer_cancel(l->timer);
	/* The TSC may not be loaded yet: look again once time runs. */
	if (l->tsc_deadline)
		vtimer_arm(l->timer, now_ns(l));
	else if (l->timer_runs)
		vtimer_arm(l->timer, l->timer_end_ns);
}
