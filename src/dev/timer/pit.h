/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 8254 programmable interval timer (ports 40H-43H) and system control port B (61H).
 * Source: Intel 8254 data sheet 231164; port 61H: PIIX3 data sheet 290550.
 *
 * Counters are computed from machine time; nothing ticks.  Counter 0 drives IRQ 0, counter 1 is the old
 * refresh timer (readable only), counter 2 the speaker, gated by port 61H bit 0.
 */
#ifndef VIV_DEV_TIMER_PIT_H
#define VIV_DEV_TIMER_PIT_H

#include "dev/device.h"

#define PIT_HZ 1193182

struct pit_channel {
	int64_t start_ns;    /* when the count was loaded, or the gate last triggered; machine time */
	uint32_t reload;     /* 1..65536 (10000 in BCD) */
	uint32_t start_value; /* counting element at start_ns; 0..65536 */
	uint16_t latched_count;
	uint8_t mode;	     /* 0..5 */
	uint8_t access;	     /* 1 low, 2 high, 3 both */
	uint8_t latched_status;
	uint8_t write_low;   /* first byte of a two-byte write */
	bool is_bcd;
	bool gate;
	bool is_counting;    /* a count was loaded and not stopped by the gate or a new control word */
	bool is_null_count;
	bool is_triggered;   /* modes 1 and 5: gate has triggered */
	bool is_count_latched, is_status_latched;
	bool write_high_next, read_high_next, latch_high_next;
	uint8_t pad_[2];
	uint32_t next_reload; /* written while counting in modes 1, 2, 3, 5: taken at the end of the cycle; 0: none */
};

struct pit {
	struct device dev;
	struct dev_env env;
	struct irq_line irq0;
	struct vtimer *timer;
	struct bus_range *ranges[2];
	struct pit_channel ch[3];
	int64_t irq_next_ns; /* next change of OUT0 that the timer waits for; INT64_MAX: none */
	bool irq_level;	     /* OUT0 as driven */
	uint8_t port61;	     /* bits 0..3 as written */
	uint8_t pad_[6];
};

extern const struct device_class pit_class;

int pit_create(struct pit **out, const struct dev_env *env, struct irq_line irq0, struct error *err);

#endif
