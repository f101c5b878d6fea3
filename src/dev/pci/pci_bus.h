/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of this folder: the inside of the bus. */
#ifndef VIV_DEV_PCI_PCI_BUS_H
#define VIV_DEV_PCI_PCI_BUS_H

#include "dev/pci/pci.h"

struct pci_bus {
	struct dev_env env;
	struct irq_line intx[PCI_INTX_LINES];
	uint8_t intx_levels[PCI_SLOTS]; /* INTA# of each slot: wired or, a bit a function */
	struct pci_dev *devs[PCI_SLOTS * PCI_FUNCTIONS];
	unsigned devs_end; /* there are none from here on */
};

/** pci_bus_remap() - make the machine's bus agree with all command registers and BARs. */
void pci_bus_remap(struct pci_bus *b);
void pci_bus_drive_intx(struct pci_dev *d, bool level);

/* config space registers */
#define PCI_REG_COMMAND	 0x04
#define PCI_REG_STATUS	 0x06
#define PCI_REG_HEADER	 0x0e
#define PCI_REG_BAR0	 0x10
#define PCI_REG_CAP_PTR	 0x34
#define PCI_REG_IRQ_LINE 0x3c
#define PCI_REG_IRQ_PIN	 0x3d

#define PCI_HEADER_MULTI 0x80

#define PCI_CMD_IO	 0x0001
#define PCI_CMD_MEM	 0x0002
#define PCI_CMD_MASTER	 0x0004
#define PCI_CMD_WRITABLE 0x0547
#define PCI_CMD_INTX_OFF 0x0400
#define PCI_STATUS_INTX	 0x0008
#define PCI_STATUS_CAPS	 0x0010

#define PCI_CAP_MSI	0x05
#define PCI_CAP_MSIX	0x11
#define MSIX_PBA_OFFSET 0x800
#define MSIX_ENABLE	0x8000
#define MSIX_MASK_ALL	0x4000

/* inside pci_msix.c */
void pci_msix_reset(struct pci_dev *d);
void pci_msix_control_written(struct pci_dev *d);
bool pci_msix_is_valid(const struct pci_dev *d);
extern const struct state_desc pci_msix_entry_desc;
void pci_update_intx(struct pci_dev *d);

#endif
