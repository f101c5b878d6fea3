/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PIIX: the ISA bridge (0:1.0, ids of a PIIX3) and the power management function (0:1.3, of a PIIX4).
 * Source: Intel 290550 (PIIX3), 290562 (PIIX4).
 *
 * Both are configuration space only: the devices behind them stand in files of their own.  Firmware looks
 * for them: OVMF finds serial ports below an ISA bridge; SeaBIOS programs the routes of PCI interrupts.
 * Here wiring is fixed (chipset/gsi.h): the route registers keep what is written, and that is what SeaBIOS
 * and OVMF write anyway.  PMBA opens a window onto the registers of chipset/acpi_pm.h: each firmware has its
 * own idea of where they are (SeaBIOS 600H, OVMF B000H, U-Boot E400H).
 */
#ifndef VIV_DEV_CHIPSET_PIIX_H
#define VIV_DEV_CHIPSET_PIIX_H

#include "dev/chipset/acpi_pm.h"
#include "dev/pci/pci.h"

#define PIIX_SLOT	    1
#define PIIX_FUNCTION_POWER 3

struct piix {
	struct device dev;
	struct acpi_pm *pm;
	struct pci_dev isa, power;
};

extern const struct device_class piix_class;

/** piix_create() - both functions, at PIIX_SLOT of @bus.  @pm is borrowed. */
int piix_create(struct piix **out, struct pci_bus *bus, struct acpi_pm *pm, struct error *err);

#endif
