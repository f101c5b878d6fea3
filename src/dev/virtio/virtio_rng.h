/* SPDX-License-Identifier: Apache-2.0 */
/* virtio entropy device (virtio 1.2, 5.4). */
#ifndef VIV_DEV_VIRTIO_VIRTIO_RNG_H
#define VIV_DEV_VIRTIO_VIRTIO_RNG_H

#include "dev/virtio/virtio_pci.h"

struct virtio_rng_config {
	void (*fill)(void *ctx, uint8_t *buf, size_t len); /* random bytes; never fails, never blocks long */
	void *ctx;
	int slot; /* on the PCI bus; -1: any */
};

struct virtio_rng;
extern const struct device_class virtio_rng_class;

/** virtio_rng_create() - @id: instance name, "virtio-rng0".  0 or -errno with @err set. */
int virtio_rng_create(struct virtio_rng **out, const struct dev_env *env, struct pci_bus *bus,
		      const char *id, const struct virtio_rng_config *cfg, struct error *err);
struct device *virtio_rng_device(struct virtio_rng *g);

#endif
