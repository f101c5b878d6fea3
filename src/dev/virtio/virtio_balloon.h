/* SPDX-License-Identifier: Apache-2.0 */
/* virtio memory balloon (virtio 1.2, 5.5): the guest gives pages back, and tells how it fares. */
#ifndef VIV_DEV_VIRTIO_VIRTIO_BALLOON_H
#define VIV_DEV_VIRTIO_VIRTIO_BALLOON_H

#include "dev/virtio/virtio_pci.h"

struct virtio_balloon_config {
	/* The guest no longer needs [@gpa, @gpa+@len), page-aligned RAM: its contents may go. */
	void (*release)(void *ctx, gpa_t gpa, uint64_t len);
	void *ctx;
	int slot; /* on the PCI bus; -1: any */
};

/* 5.5.6.3: by tag; UINT64_MAX: not told. */
enum virtio_balloon_stat {
	BALLOON_SWAP_IN,
	BALLOON_SWAP_OUT,
	BALLOON_MAJOR_FAULTS,
	BALLOON_MINOR_FAULTS,
	BALLOON_FREE_BYTES,
	BALLOON_TOTAL_BYTES,
	BALLOON_AVAILABLE_BYTES,
	BALLOON_CACHE_BYTES,
	BALLOON_HUGE_ALLOC,
	BALLOON_HUGE_FAIL,
	BALLOON_STATS,
};

struct virtio_balloon;
extern const struct device_class virtio_balloon_class;

/** virtio_balloon_create() - @id: instance name, "virtio-balloon0".  0 or -errno with @err set. */
int virtio_balloon_create(struct virtio_balloon **out, const struct dev_env *env, struct pci_bus *bus,
			  const char *id, const struct virtio_balloon_config *cfg, struct error *err);
struct device *virtio_balloon_device(struct virtio_balloon *b);

/** virtio_balloon_set_target() - ask the guest to give @bytes (rounded down to pages) back. */
void virtio_balloon_set_target(struct virtio_balloon *b, uint64_t bytes);
/** virtio_balloon_actual() - bytes it has given. */
uint64_t virtio_balloon_actual(const struct virtio_balloon *b);
/** virtio_balloon_poll_stats() - ask for fresh statistics; they arrive later. */
void virtio_balloon_poll_stats(struct virtio_balloon *b);
/** virtio_balloon_stats() - the last ones, by enum virtio_balloon_stat. */
void virtio_balloon_stats(const struct virtio_balloon *b, uint64_t out[BALLOON_STATS]);

#endif
