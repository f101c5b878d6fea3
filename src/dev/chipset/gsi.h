/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where interrupt lines go.  Global system interrupts 0..23:
 *   0..15   ISA IRQ n: PIC input n and IOAPIC pin n (IRQ 0: pin 2)
 *   16..23  PCI INTx: IOAPIC pin n, and ISA IRQ 10 or 11 (PIC input and IOAPIC pin), wired-or: 10 for slots 1, 2,
 *           5, 6 ..., 11 for the others, which is what SeaBIOS and OVMF write into the slots' line registers
 * The machine tells the guest so in the MADT (override 0 -> 2, SCI level) and DSDT (_PRT).
 */
#ifndef VIV_DEV_CHIPSET_GSI_H
#define VIV_DEV_CHIPSET_GSI_H

#include "dev/device.h"

#define GSI_COUNT     24
#define GSI_PCI_BASE  16
#define GSI_PCI_COUNT 8
#define GSI_SCI	      9

struct pic;
struct ioapic;

struct gsi {
	struct device dev;
	struct pic *pic;
	struct ioapic *ioapic;
	uint32_t levels; /* bit n: level of GSI n */
	uint32_t pad_;
};

extern const struct device_class gsi_class;

/** gsi_create() - @pic and @ioapic are borrowed. */
int gsi_create(struct gsi **out, const struct dev_env *env, struct pic *pic, struct ioapic *ioapic,
	       struct error *err);
/** gsi_set() - level of line @n; one source a line.  Fits irq_line.set. */
void gsi_set(void *gsi, unsigned n, bool level);
static inline struct irq_line gsi_line(struct gsi *g, unsigned n)
{
	return (struct irq_line){ gsi_set, g, n };
}
/** gsi_pic_input() - the PIC input that GSI @n (0..23) reaches. */
unsigned gsi_pic_input(unsigned n);

#endif
