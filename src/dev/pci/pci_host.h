/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCI host bridge: device 0:0.0 and the configuration ports CF8H (address), CFCH-CFFH (data); the
 * reset control register CF9H lies between them (PIIX3 data sheet 290550; FADT: reset value 06H).
 * The device shows the ids of an i440FX (8086:1237, subsystem 1AF4:1100) because SeaBIOS and OVMF look
 * for them; its PAM registers are plain bytes: C0000H-FFFFFH is RAM, filled by the machine.
 */
#ifndef VIV_DEV_PCI_PCI_HOST_H
#define VIV_DEV_PCI_PCI_HOST_H

#include "dev/pci/pci.h"

#define PCI_RESET_PORT	0xcf9
#define PCI_RESET_VALUE 0x06

struct pci_host {
	struct device dev;
	struct dev_env env;
	struct bus_range *range;
	struct pci_bus *bus; /* owned */
	struct pci_dev pci;
	uint32_t address; /* CF8H */
	uint8_t reset_control;
	uint8_t pad_[3];
};

extern const struct device_class pci_host_class;

/**
 * pci_host_create() - the bridge and its bus.
 * @intx: lines for INTx (gsi_line(g, GSI_PCI_BASE + i))
 */
int pci_host_create(struct pci_host **out, const struct dev_env *env,
		    const struct irq_line intx[PCI_INTX_LINES], struct error *err);
struct pci_bus *pci_host_bus(struct pci_host *h);

#endif
