/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtio over PCI, modern only (virtio 1.2, 4.1): a virtio device's first member.
 *
 * BAR 1: MSI-X table and PBA.  BAR 4 (64-bit, 16 KiB):
 *   0000H common configuration   1000H ISR status   2000H device configuration   3000H notifications, 4 bytes a queue
 * The vendor capabilities name them; a PCI_CFG capability reaches BAR 4 without mapping it.
 *
 * One MSI-X vector a queue and one for configuration changes; INTx with the ISR byte otherwise.
 *
 * A device writes one struct virtio_class and lists in its device_class the functions named
 * virtio_pci_device_... below, except destroy.
 */
#ifndef VIV_DEV_VIRTIO_VIRTIO_PCI_H
#define VIV_DEV_VIRTIO_VIRTIO_PCI_H

#include "dev/pci/pci.h"
#include "dev/virtio/virtio.h"

struct virtio_pci {
	struct device dev;
	struct pci_dev pci;
	struct virtio_dev v;
	uint32_t device_feature_select, driver_feature_select;
	uint16_t config_vector;
	uint16_t queue_select;
	uint8_t isr;
	uint8_t reserved[3]; /* zero */
};
extern const struct state_desc virtio_pci_state;

/** virtio_pci_of() - from the core to the whole. */
static inline struct virtio_pci *virtio_pci_of(struct virtio_dev *v)
{
	return container_of(v, struct virtio_pci, v);
}

/**
 * virtio_pci_init() - build @p (zeroed) on @bus.
 * @slot: as pci_dev_init
 * The rest as virtio_init.  Returns 0 or -errno with @err set, nothing left behind.
 */
int virtio_pci_init(struct virtio_pci *p, const struct device_class *dcls, const char *id,
		    struct pci_bus *bus, int slot, const struct dev_env *env,
		    const struct virtio_class *cls, uint64_t offered, const uint16_t *sizes,
		    unsigned nqueues, struct error *err);
void virtio_pci_fini(struct virtio_pci *p); /* zeroed or half-built is fine */

void virtio_pci_device_reset(struct device *d);
void virtio_pci_device_after_load(struct device *d);
void virtio_pci_device_pause(struct device *d);
void virtio_pci_device_resume(struct device *d);

#endif
