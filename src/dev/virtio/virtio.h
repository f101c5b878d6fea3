/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all virtio devices share (virtio 1.2, chapters 2 and 3): feature negotiation, the status
 * machine, queues, configuration space, notifications; independent of the transport.
 *
 *   guest --> transport (virtio_pci) --> virtio.c --> struct virtio_class of blk, net, ...
 *                       <-- notify ---       <-- virtio_flush, virtio_config_changed
 *
 * Status machine (3.1.1, 2.1).  0 --> ACKNOWLEDGE, DRIVER --> (features) FEATURES_OK --> (queues) DRIVER_OK;
 * writing 0 resets from anywhere.  FEATURES_OK sticks only if the driver took VERSION_1 and nothing
 * that was not offered, and ACCESS_PLATFORM if that was; from then on features are fixed.  Only a live device (virtio_is_live)
 * touches its queues.  A queue that the driver broke sets DEVICE_NEEDS_RESET.
 *
 * Invariants
 *  1. No device touches a queue unless virtio_is_live; it learns of the change by start, reset,
 *     pause and resume.
 *  2. A kick handler does a bounded amount of work (VIRTIO_BUDGET chains); the rest is done in later
 *     rounds of the loop, so that a guest that keeps adding never holds the machine's lock for good.
 *  3. At pause a device finishes what is in flight: then every chain is either in the available or
 *     the used ring, and the indices are the whole state.
 */
#ifndef VIV_DEV_VIRTIO_VIRTIO_H
#define VIV_DEV_VIRTIO_VIRTIO_H

#include "dev/device.h"
#include "dev/virtio/virtqueue.h"

#define VIRTIO_QUEUES_MAX 16
#define VIRTIO_CONFIG_MAX 256
#define VIRTIO_BUDGET	  256
#define VIRTIO_NO_VECTOR  0xffff

#define VIRTIO_IRQ_DELAY_NS 250000
#define VIRTIO_IRQ_BACKLOG  16

enum virtio_id {
	VIRTIO_ID_NET = 1,
	VIRTIO_ID_BLOCK = 2,
	VIRTIO_ID_CONSOLE = 3,
	VIRTIO_ID_RNG = 4,
	VIRTIO_ID_BALLOON = 5,
	VIRTIO_ID_9P = 9,
};

enum virtio_status {
	VIRTIO_S_ACKNOWLEDGE = 1,
	VIRTIO_S_DRIVER = 2,
	VIRTIO_S_DRIVER_OK = 4,
	VIRTIO_S_FEATURES_OK = 8,
	VIRTIO_S_NEEDS_RESET = 0x40,
	VIRTIO_S_FAILED = 0x80,
};

#define VIRTIO_F(bit)		 (1ULL << (bit))
#define VIRTIO_F_INDIRECT_DESC	 VIRTIO_F(28)
#define VIRTIO_F_EVENT_IDX	 VIRTIO_F(29)
#define VIRTIO_F_VERSION_1	 VIRTIO_F(32)
#define VIRTIO_F_ACCESS_PLATFORM VIRTIO_F(33)
#define VIRTIO_FEATURES_COMMON	 (VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1)

struct virtio_dev;

/* One kind of device.  All functions run under the machine's lock. */
struct virtio_class {
	const char *name; /* for log lines */
	uint16_t id;	  /* enum virtio_id */
	uint32_t pci_class;
	uint16_t config_len; /* bytes of configuration space */
	/* Fill all config_len bytes as they are now. */
	void (*config_read)(struct virtio_dev *v, uint8_t *config);
	/* The driver wrote @size bytes (1, 2, 4) at @offset, inside config_len.  May be NULL. */
	void (*config_write)(struct virtio_dev *v, unsigned offset, unsigned size, uint32_t value);
	/* The driver is there and its queues are: the device is live.  May be NULL. */
	void (*start)(struct virtio_dev *v);
	/* The driver published chains in queue @q (or may have).  Only when live. */
	void (*kick)(struct virtio_dev *v, unsigned q);
	/* Finish or forget what is in flight, then power-on values of the device's own fields. */
	void (*reset)(struct virtio_dev *v);
	/* Finish what is in flight / go on.  May be NULL. */
	void (*pause)(struct virtio_dev *v);
	void (*resume)(struct virtio_dev *v);
};

/* What the transport gives. */
struct virtio_transport {
	void (*notify_queue)(struct virtio_dev *v, unsigned q); /* raise the queue's interrupt */
	void (*notify_config)(struct virtio_dev *v);
	bool (*can_dma)(const struct virtio_dev *v);
};

/* Host side: set once by virtio_init, or rebuilt. */
struct virtio_host {
	const struct virtio_class *cls;
	const struct virtio_transport *transport;
	struct guest_ram *ram;
	struct vclock *clock;
	struct vtimer *defer_timer;
	struct iovec *scratch; /* VQ_IOV_MAX, for virtio_serve */
	uint64_t offered;      /* features */
	uint32_t deferred;     /* bit q: queue q is to be served in a later round */
	uint32_t moderated;    /* bit q: interrupts of queue q may come late */
	struct vtimer *irq_timer;
	unsigned nqueues;
	bool is_paused;
	bool is_serving; /* the scratch vectors are in use */
};

struct virtio_dev {
	uint64_t features; /* as the driver wrote them */
	uint8_t status;
	uint8_t config_generation;
	uint8_t reserved[6]; /* zero */
	struct virtqueue vqs[VIRTIO_QUEUES_MAX];
	struct virtio_host host;
};
extern const struct state_desc virtio_state;

/* ---- life cycle (called by the transport) ---- */

/**
 * virtio_init() - power-on state.
 * @offered: feature bits besides VIRTIO_FEATURES_COMMON
 * @sizes: largest size of each of @nqueues queues
 * Returns 0 or -ENOMEM with @err set.
 */
int virtio_init(struct virtio_dev *v, const struct virtio_class *cls,
		const struct virtio_transport *transport, const struct dev_env *env,
		uint64_t offered, const uint16_t *sizes, unsigned nqueues, struct error *err);
void virtio_fini(struct virtio_dev *v); /* zeroed or half-built is fine */
void virtio_reset(struct virtio_dev *v);
/** virtio_set_dma() - behind the IOMMU of @dma (borrowed): offers ACCESS_PLATFORM and insists on it (6.1, 6.2). */
void virtio_set_dma(struct virtio_dev *v, const struct dma_path *dma);
/** virtio_finish() - wait for what is in flight: no DMA from here on, where the transport allows none. */
void virtio_finish(struct virtio_dev *v);
/** virtio_after_load() - find the queues again and go on. */
void virtio_after_load(struct virtio_dev *v);
void virtio_pause(struct virtio_dev *v);
void virtio_resume(struct virtio_dev *v);

/* ---- what the driver does (called by the transport) ---- */
void virtio_set_status(struct virtio_dev *v, uint8_t status);
/** virtio_set_features() - 32 bits at @select 0 or 1; nothing after FEATURES_OK. */
void virtio_set_features(struct virtio_dev *v, uint32_t select, uint32_t value);
/** virtio_enable_queue() - @q any number.  Once enabled its size and addresses are fixed. */
void virtio_enable_queue(struct virtio_dev *v, unsigned q);
/** virtio_kick() - @q any number. */
void virtio_kick(struct virtio_dev *v, unsigned q);
/** virtio_kick_all() - look at every queue: something allowed the device to go on. */
void virtio_kick_all(struct virtio_dev *v);
/* Any offset and size: outside of config_len reads give 0 and writes vanish. */
uint32_t virtio_config_read(struct virtio_dev *v, unsigned offset, unsigned size);
void virtio_config_write(struct virtio_dev *v, unsigned offset, unsigned size, uint32_t value);

/* ---- for devices ---- */

/** virtio_has() - did the driver take feature @bit (a mask)? */
static inline bool virtio_has(const struct virtio_dev *v, uint64_t bit)
{
	return v->features & bit;
}
/** virtio_is_live() - DRIVER_OK, not broken, not paused, DMA allowed. */
bool virtio_is_live(const struct virtio_dev *v);
/** virtio_vq() - queue @q if the device is live and the queue usable, else NULL. */
struct virtqueue *virtio_vq(struct virtio_dev *v, unsigned q);

/**
 * virtio_flush() - publish what was put into queue @q; interrupt if the driver wants it.  Also turns a
 * broken queue into DEVICE_NEEDS_RESET: call it at the end of each piece of work.
 */
void virtio_flush(struct virtio_dev *v, unsigned q);

/**
 * virtio_moderate() - interrupts of queue @q may come up to VIRTIO_IRQ_DELAY_NS late.  For chains that the driver only
 * wants back: it mostly finds them by itself before, when it puts the next ones, and then needs no
 * interrupt.  More than VIRTIO_IRQ_BACKLOG chains given back are told at once, as is everything at a pause.
 */
void virtio_moderate(struct virtio_dev *v, unsigned q);

/** virtio_break() - the driver violated the device's protocol: queue @q is unusable until reset. */
void virtio_break(struct virtio_dev *v, unsigned q, const char *why);

/** virtio_config_changed() - configuration space changed: new generation, interrupt. */
void virtio_config_changed(struct virtio_dev *v);

/** virtio_defer() - serve queue @q again in a later round of the loop. */
void virtio_defer(struct virtio_dev *v, unsigned q);

/*
 * virtio_serve() - take chains of queue @q one after the other and give them to @handle, which returns
 * how many bytes it wrote (the chain is put back at once), or one of:
 */
enum {
	VIRTIO_KEPT = -1, /* the handler keeps the chain (copied, iovecs too) and puts it later */
	VIRTIO_STOP = -2, /* can't go on now: the chain stays in the ring; kick again later */
};
void virtio_serve(struct virtio_dev *v, unsigned q,
		  int64_t (*handle)(struct virtio_dev *v, unsigned q, struct vq_elem *elem));

#endif
