/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The "edu" PCI device, for people who write and test drivers: identification, a liveness register, factorials,
 * DMA between memory and a buffer of 4 KiB, INTx or MSI.  Source: QEMU, docs/specs/edu.rst.  Only in machines that
 * ask for it.
 *
 * BAR 0 (1 MiB), 32-bit registers, from 80H on also 64-bit ones:
 *   00H identification   04H liveness: inverted   08H factorial   20H status: 01H computing, 80H interrupt (01H) when done
 *   24H interrupt status   60H raise   64H acknowledge   80H DMA source   88H destination   90H count
 *   98H command: 01H start (until done), 02H from buffer to memory, 04H interrupt (100H) when done
 * The buffer is at 40000H of the device's own DMA addresses.  Memory addresses have 28 bits.
 */
#ifndef VIV_DEV_DEBUG_EDU_H
#define VIV_DEV_DEBUG_EDU_H

#include "dev/pci/pci.h"

#define EDU_VENDOR	 0x1234
#define EDU_DEVICE	 0x11e8
#define EDU_BUFFER	 0x40000u
#define EDU_BUFFER_BYTES 4096u
#define EDU_DMA_MASK	 0x0fffffffu
#define EDU_WORK_NS	 20000 /* of machine time, for a factorial or a transfer */

struct edu {
	struct device dev;
	struct pci_dev pci;
	struct vclock *clock;
	struct vtimer *timer; /* both jobs end with it */
	/* state */
	uint64_t source, destination, count, command;
	uint32_t liveness, factorial, status, interrupts;
	uint8_t buffer[EDU_BUFFER_BYTES];
};

extern const struct device_class edu_class;

/** edu_create() - @slot: as pci_dev_init().  Returns 0 or -errno with @err set. */
int edu_create(struct edu **out, const struct dev_env *env, struct pci_bus *bus, int slot,
	       struct error *err);

#endif
