/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI fixed hardware (ACPI 6.4 chapter 4.8): PM1a event and control, PM timer, one GPE block.
 * ACPI mode is always on (no SMI command port: FADT.SMI_CMD = 0).  The reset register is port CF9H
 * (pci/pci_host).  The machine writes these constants into FADT and DSDT.
 *
 * The registers are always at ACPI_PM_BASE.  Firmware that knows the chipset (chipset/piix.h) and gives
 * them an address of its own finds them there as well.
 */
#ifndef VIV_DEV_CHIPSET_ACPI_PM_H
#define VIV_DEV_CHIPSET_ACPI_PM_H

#include "dev/device.h"

#define ACPI_PM_BASE	0x600
#define ACPI_PM1A_EVT	ACPI_PM_BASE	      /* 4 bytes */
#define ACPI_PM1A_CNT	(ACPI_PM_BASE + 4)    /* 2 bytes */
#define ACPI_PM_TMR	(ACPI_PM_BASE + 8)    /* 4 bytes, 32 bits wide: FADT flag TMR_VAL_EXT */
#define ACPI_GPE0	(ACPI_PM_BASE + 0x20) /* 4 bytes: 16 events */
#define ACPI_PM_TMR_HZ	3579545
#define ACPI_S5_SLP_TYP 5 /* the DSDT's \_S5 package: { 5, 5, 0, 0 } */
#define PIIX4_SOFT_OFF	0 /* firmware's without asking (PIIX4 data sheet 290562, PMCNTRL): OVMF */

struct acpi_pm {
	struct device dev;
	struct dev_env env;
	struct irq_line sci;
	struct bus_range *ranges[2];
	struct bus_range *window; /* NULL: none */
	struct vtimer *timer;	  /* next change of the PM timer's top bit, while TMR_EN */
	uint16_t pm1_sts, pm1_en, pm1_cnt;
	uint16_t gpe_sts, gpe_en;
	uint8_t pad_[6];
	int64_t tmr_seen_ns; /* TMR_STS is up to date until then */
};

extern const struct device_class acpi_pm_class;

/** acpi_pm_create() - @sci: level-triggered, active high (gsi_line(GSI_SCI)). */
int acpi_pm_create(struct acpi_pm **out, const struct dev_env *env, struct irq_line sci,
		   struct error *err);
/** acpi_pm_set_window() - PM1a and timer at port @base too, instead of where they last were; 0: nowhere. */
void acpi_pm_set_window(struct acpi_pm *p, uint16_t base);
/** acpi_pm_power_button() - press it: PWRBTN_STS, and an SCI if the guest wants it. */
void acpi_pm_power_button(struct acpi_pm *p);
/** acpi_pm_gpe() - raise general-purpose event @n, 0..15. */
void acpi_pm_gpe(struct acpi_pm *p, unsigned n);

#endif
