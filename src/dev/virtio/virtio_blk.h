/* SPDX-License-Identifier: Apache-2.0 */
/* virtio block device (virtio 1.2, 5.2) over a struct block_dev. */
#ifndef VIV_DEV_VIRTIO_VIRTIO_BLK_H
#define VIV_DEV_VIRTIO_VIRTIO_BLK_H

#include "block/block.h"
#include "dev/virtio/virtio_pci.h"

#define VIRTIO_BLK_QUEUES_MAX 8
#define VIRTIO_BLK_ID_BYTES   20

struct virtio_blk_config {
	struct block_dev *block; /* borrowed, outlives the device */
	const char *serial;	 /* up to 20 bytes; NULL: none */
	unsigned nqueues;	 /* 1..VIRTIO_BLK_QUEUES_MAX; one a vCPU is best */
	int slot;		 /* on the PCI bus; -1: any */
};

struct virtio_blk;
extern const struct device_class virtio_blk_class;

/** virtio_blk_create() - @id: instance name, "virtio-blk0".  0 or -errno with @err set. */
int virtio_blk_create(struct virtio_blk **out, const struct dev_env *env, struct pci_bus *bus,
		      const char *id, const struct virtio_blk_config *cfg, struct error *err);
struct device *virtio_blk_device(struct virtio_blk *b);

struct virtio_blk_stats {
	uint64_t reads, writes, flushes, discards, errors, read_bytes, written_bytes;
	uint64_t immediate; /* of them: done inside the kick */
};
void virtio_blk_stats(const struct virtio_blk *b, struct virtio_blk_stats *out);

#endif
