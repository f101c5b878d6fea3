/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 8254 programmable interval timer (ports 40H-43H) and system control port B (61H).
 * Source: Intel 8254 data sheet 231164; port 61H: PIIX3 data sheet 290550.
 *
 * Counters are computed from machine time; nothing ticks.  Counter 0 drives IRQ 0, counter 1 is the old
 * refresh timer (readable only), counter 2 the speaker, gated by port 61H bit 0.
 *
 * Simplified: a count is loaded when it is written, not one clock later; a count written in mode 3 is
 * taken at the end of the period, not of the half period; OUT0's low phase reaches IRQ 0 as a short
 * pulse before the rise; a count of 1 in modes 2 and 3 (illegal) acts as 2.
 */
#ifndef VIV_DEV_TIMER_PIT_H
#define VIV_DEV_TIMER_PIT_H

#include "dev/device.h"

#define PIT_HZ 1193182

struct pit_channel {
	int64_t start_ns;     /* machine time when counting (re)started from start_value */
	uint32_t reload;      /* count register: 1..65536 (10000 in BCD) */
	uint32_t start_value; /* counting element at start_ns; while not counting: now */
	uint32_t next_reload; /* modes 2, 3: written while counting, taken at the end of the period; 0: none */
	uint16_t latched_count;
	uint8_t mode;	/* 0..5 */
	uint8_t access; /* 1 low, 2 high, 3 both */
	uint8_t latched_status;
	uint8_t write_low; /* first byte of a two-byte write */
	bool is_bcd;
	bool gate;
	bool is_counting;
	bool is_null_count; /* a written count is not in the counting element yet */
	bool is_expired;    /* modes 0, 4: terminal count was reached before start_ns */
	bool is_count_latched, is_status_latched;
	bool write_high_next, read_high_next;
	uint8_t pad_[13];
};

struct pit {
	struct device dev;
	struct dev_env env;
	struct irq_line irq0;
	struct vtimer *timer;
	struct bus_range *ranges[2];
	struct pit_channel ch[3];
	int64_t irq_next_ns; /* next rise of OUT0; INT64_MAX: none */
	uint8_t port61;	     /* bits 0..3 as written */
	uint8_t pad_[7];
};

extern const struct device_class pit_class;

int pit_create(struct pit **out, const struct dev_env *env, struct irq_line irq0, struct error *err);

#endif
