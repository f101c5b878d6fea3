/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pair of 8259A interrupt controllers (ports 20H-21H, A0H-A1H) with their edge/level control
 * registers (4D0H-4D1H).  Source: Intel 8259A data sheet 231468; ELCR: PIIX3 data sheet 290550.
 *
 * Not handled: MCS-80/85 mode vectors (ICW4.0 = 0 acts as 8086 mode), buffered mode has no effect.
 */
#ifndef VIV_DEV_CHIPSET_PIC_H
#define VIV_DEV_CHIPSET_PIC_H

#include "dev/device.h"

struct pic_chip {
	uint8_t irr;	/* requests latched (edge) or present (level) */
	uint8_t imr;	/* masked */
	uint8_t isr;	/* in service */
	uint8_t lines;	/* input levels */
	uint8_t elcr;	/* 1: level-triggered */
	uint8_t vector; /* ICW2, low 3 bits clear */
	uint8_t lowest; /* input with the lowest priority, 0..7 */
	uint8_t icw3;
	uint8_t icw4;
	uint8_t init_step; /* ICW expected next on the odd port: 2, 3, 4; 0: none */
	bool init_needs_icw4;
	bool is_single;	     /* ICW1.SNGL */
	bool is_level_icw;   /* ICW1.LTIM */
	bool is_auto_rotate; /* rotate in AEOI mode */
	bool is_special_mask;
	bool is_poll;	/* the next read is a poll */
	bool reads_isr; /* OCW3: even port reads ISR, else IRR */
	bool is_output; /* INT pin */
};

struct pic {
	struct device dev;
	struct dev_env env;
	struct irq_line intr;
	struct bus_range *ranges[3];
	struct pic_chip chip[2]; /* master, slave */
	uint8_t pad_[4];
};

extern const struct device_class pic_class;

/**
 * pic_create() - the pair, its INT output driving @intr (the CPU's INTR pin or LINT0).
 * Returns 0, -ENOMEM or -EEXIST (ports taken) with @err set.
 */
int pic_create(struct pic **out, const struct dev_env *env, struct irq_line intr, struct error *err);

/** pic_set_irq() - level of input @n, 0..15 (2 is the cascade: ignored).  Fits irq_line.set. */
void pic_set_irq(void *pic, unsigned n, bool level);

/** pic_inta() - INTA cycle: acknowledge and return the vector, 0..255 (spurious: IRQ 7 or 15). */
uint8_t pic_inta(void *pic);

/** pic_output() - level of the INT pin. */
bool pic_output(const struct pic *p);

#endif
