/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio 9P transport (device 9; Linux's net/9p/trans_virtio.c and include/uapi/linux/virtio_9p.h): a shared folder, which the guest mounts by its tag.
 *
 *	mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt
 *
 * A chain of its one queue is a message out and room for the answer.  The device passes both on; what they say is the server's matter (share/server.h).
 */
#ifndef VIV_DEV_VIRTIO_VIRTIO_9P_H
#define VIV_DEV_VIRTIO_VIRTIO_9P_H

#include "dev/virtio/virtio_pci.h"
#include "share/port.h"

struct virtio_9p_config {
	struct share_port *port; /* borrowed, outlives the device */
	const char *tag;	 /* 1..SHARE_TAG_MAX bytes */
	int slot;		 /* on the PCI bus; -1: any */
};

struct virtio_9p;
extern const struct device_class virtio_9p_class;

/** virtio_9p_create() - @id: instance name, "virtio-9p0".  0 or -errno with @err set. */
int virtio_9p_create(struct virtio_9p **out, const struct dev_env *env, struct pci_bus *bus,
		     const char *id, const struct virtio_9p_config *cfg, struct error *err);
struct device *virtio_9p_device(struct virtio_9p *p);

#endif
