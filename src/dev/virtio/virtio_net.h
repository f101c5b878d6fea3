/* SPDX-License-Identifier: Apache-2.0 */
/* virtio network device (virtio 1.2, 5.1) over a struct net_port. */
#ifndef VIV_DEV_VIRTIO_VIRTIO_NET_H
#define VIV_DEV_VIRTIO_VIRTIO_NET_H

#include "dev/virtio/virtio_pci.h"
#include "net/port.h"

struct virtio_net_config {
	struct net_port *port; /* borrowed, outlives the device; its MAC is the card's */
	int slot;	       /* on the PCI bus; -1: any */
};

struct virtio_net;
extern const struct device_class virtio_net_class;

/** virtio_net_create() - @id: instance name, "virtio-net0".  0 or -errno with @err set. */
int virtio_net_create(struct virtio_net **out, const struct dev_env *env, struct pci_bus *bus,
		      const char *id, const struct virtio_net_config *cfg, struct error *err);
struct device *virtio_net_device(struct virtio_net *n);

/**
 * virtio_net_reappear() - after a state was loaded: the card is plugged in elsewhere, and its MAC is that of its port.
 * Configuration space says so, frames to either MAC are received until the driver sets one, and a driver that can (VIRTIO_NET_F_GUEST_ANNOUNCE)
 * is asked to announce itself: 5.1.6.5.4; but not where its port is alone.
 */
void virtio_net_reappear(struct virtio_net *n);
/** virtio_net_mac() - the one that the driver works with. */
void virtio_net_mac(const struct virtio_net *n, uint8_t mac[6]);

struct virtio_net_stats {
	uint64_t rx_frames, rx_bytes, rx_dropped, rx_filtered;
	uint64_t tx_frames, tx_bytes, tx_dropped;
};
void virtio_net_stats(const struct virtio_net *n, struct virtio_net_stats *out);

#endif
