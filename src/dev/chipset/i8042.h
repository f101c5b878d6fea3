/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The i8042 keyboard controller (ports 60H, 64H) with a PS/2 keyboard and mouse behind it, and port
 * 92H (fast A20, fast reset).  Sources: IBM PS/2 Hardware Interface Technical Reference, keyboard and
 * auxiliary device controller; ibid. keyboard; ibid. mouse.
 *
 * A20 is always open inside; the bit a guest reads back follows what it wrote.
 */
#ifndef VIV_DEV_CHIPSET_I8042_H
#define VIV_DEV_CHIPSET_I8042_H

#include "dev/device.h"

#define PS2_QUEUE 32

struct ps2_queue {
	uint8_t data[PS2_QUEUE];
	uint8_t head, len; /* head: next to give */
};

struct ps2_kbd {
	struct ps2_queue q;
	uint8_t cmd; /* command that waits for its argument; 0: none */
	uint8_t leds, rate;
	uint8_t scan_set; /* 1, 2 */
	uint8_t last;	  /* byte given last, for resend */
	bool is_scanning;
};

struct ps2_mouse {
	struct ps2_queue q;
	uint8_t cmd;
	uint8_t rate, resolution, buttons;
	uint8_t id;	  /* 0, 3 (wheel), 4 (5 buttons) */
	uint8_t knock[2]; /* the last two sample rates: 200, 100, 80 turns the wheel on */
	uint8_t last;
	bool is_reporting, is_remote, is_wrap, is_scaling;
};

struct i8042 {
	struct device dev;
	struct dev_env env;
	struct irq_line irq_kbd, irq_mouse;
	struct bus_range *ranges[3];
	uint8_t ram[32]; /* 0: the command byte */
	uint8_t cmd;	 /* controller command that waits for data on port 60H; 0: none */
	uint8_t obuf;	 /* output buffer, valid while is_full */
	uint8_t source;	 /* whose byte obuf is: 0 controller, 1 keyboard, 2 mouse */
	uint8_t port92;
	bool is_full;
	bool is_aux;	  /* status bit 5: obuf is (as if) from the mouse */
	bool is_system;	  /* status bit 2: self-test passed */
	bool was_command; /* status bit 3: the last write went to port 64H */
	bool is_a20;
	bool is_break; /* translation: F0H was swallowed */
	struct ps2_kbd kbd;
	struct ps2_mouse mouse;
	uint8_t pad_[8];
};

extern const struct device_class i8042_class;

int i8042_create(struct i8042 **out, const struct dev_env *env, struct irq_line irq_kbd,
		 struct irq_line irq_mouse, struct error *err);

/** i8042_key() - bytes of a scan code, set 2 (as sent by the keyboard); dropped when there is no room. */
void i8042_key(struct i8042 *k, const uint8_t *code, unsigned len);
/** i8042_mouse() - movement (dy upwards) and buttons (bit 0 left, 1 right, 2 middle). */
void i8042_mouse(struct i8042 *k, int dx, int dy, int dz, unsigned buttons);

#endif
