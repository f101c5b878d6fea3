/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The split virtqueue (virtio 1.2, 2.7), device side.  Written once; every virtio device uses it.
 *
 * How a ring works.  Three areas lie in guest RAM, each written by one side only:
 *
 *   descriptor table   driver   size x { addr, len, flags, next }: one guest buffer each; chained by next
 *   available ring     driver   { flags, idx, ring[size], used_event }: heads of chains for the device
 *   used ring          device   { flags, idx, ring[size] of {id, len}, avail_event }: chains given back
 *
 * idx counts for ever modulo 2^16; the slot is idx modulo size.  The driver publishes chains by
 * raising avail.idx, the device returns them, in any order, by raising used.idx.  A descriptor
 * flagged INDIRECT points to a table of descriptors elsewhere, so that one slot carries a long chain.
 *
 * Notifications.  With EVENT_IDX each side says after which index it wants to hear: the driver
 * kicks only when avail.idx passes avail_event, the device interrupts only when used.idx passes
 * used_event.  Without it one flag on each side turns notifications off.  Whoever goes to sleep
 * first arms the other side's notification and then LOOKS AGAIN (vq_arm_kick), with a full fence
 * between the two: otherwise a chain published in the gap is never seen.
 *
 * A device's life with it:
 *	while ((r = vq_pop(vq, &elem)) > 0) { use elem.iov; vq_put(vq, &elem, written); }
 *	if (vq_flush(vq)) interrupt;
 *
 * Invariants
 *  1. Everything read from guest memory is hostile and read once.  A ring the guest broke (index
 *     jumps, loops, wild addresses, overlong chains) makes the queue broken: vq_pop gives -EINVAL
 *     until the queue is reset; nothing else happens.
 *  2. A chain has at most max_size descriptors and less than 4 GiB; a walk takes at most twice that
 *     many steps, whatever the links say.
 *  3. At most size chains are popped and not yet put back.
 *  4. After popping, a chain's iovecs point into guest RAM and stay valid while the machine lives;
 *     their contents may change under us at any time.
 *  5. Only the holder of the machine's lock touches a struct virtqueue; guest vCPUs meanwhile write
 *     the areas, hence the acquire and release accesses.
 *  6. Without an IOMMU the areas are host pointers from vq_map on.  Behind one (vq_set_dma) there are none: every
 *     access to the ring is translated when it is made, and a refused one makes the queue broken.
 */
#ifndef VIV_DEV_VIRTIO_VIRTQUEUE_H
#define VIV_DEV_VIRTIO_VIRTQUEUE_H

#include "base/iov.h"
#include "dev/iommu/dma.h"
#include "mem/ram.h"
#include "state/field.h"

#define VQ_SIZE_MAX 1024	      /* of any queue, in descriptors */
#define VQ_IOV_MAX  (VQ_SIZE_MAX + 8) /* a descriptor across two regions takes two */
#define VQ_DMA_MAX  8192u	      /* translations for the buffers of one chain */

enum { VQ_DESC_F_NEXT = 1, VQ_DESC_F_WRITE = 2, VQ_DESC_F_INDIRECT = 4 };
enum { VQ_AVAIL_F_NO_INTERRUPT = 1, VQ_USED_F_NO_NOTIFY = 1 };

struct vq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};
struct vq_avail {
	uint16_t flags, idx;
	uint16_t ring[]; /* size, then used_event */
};
struct vq_used_elem {
	uint32_t id, len;
};
struct vq_used {
	uint16_t flags, idx;
	struct vq_used_elem ring[]; /* size, then uint16_t avail_event */
};

/* Host side of a queue: rebuilt by vq_map, never on the wire. */
struct vq_host {
	struct guest_ram *ram;
	const struct vq_desc *desc;
	struct vq_avail *avail;
	struct vq_used *used;
	uint16_t max_size;  /* a power of two up to VQ_SIZE_MAX; 0: no such queue */
	uint16_t in_flight; /* popped and not yet put */
	uint16_t pending;   /* put and not yet flushed */
	bool has_event_idx, has_indirect;
	bool is_mapped;		    /* vq_map found it well */
	const struct dma_path *dma; /* NULL: no IOMMU; else the areas above are NULL */
};

struct virtqueue {
	uint64_t desc_gpa, avail_gpa, used_gpa;
	uint16_t size;		 /* a power of two up to max_size */
	uint16_t last_avail;	 /* next available index to take */
	uint16_t used_idx;	 /* next used index to fill, without pending ones */
	uint16_t signalled;	 /* used_idx at the last look whether to interrupt ... */
	uint16_t msix_vector;	 /* the transport's */
	bool is_signalled_valid; /* ... once there was one */
	bool is_enabled;
	bool is_broken;
	uint8_t reserved[3]; /* zero */
	struct vq_host host;
};
extern const struct state_desc vq_state;

/* A chain taken from the ring: first what the driver wrote (out), then what it wants filled (in). */
struct vq_elem {
	uint16_t head;
	unsigned nout, nin;
	unsigned dma_budget; /* translations left */
	uint64_t out_bytes, in_bytes;
	struct iovec *iov; /* nout + nin; the caller's array of VQ_IOV_MAX (vq_pop) */
};

/** vq_init() - give the queue its memory and its largest size; resets it. */
void vq_init(struct virtqueue *vq, struct guest_ram *ram, uint16_t max_size);

/** vq_set_dma() - addresses go through the IOMMU of @dma (borrowed); NULL: they don't.  Before the first vq_map. */
void vq_set_dma(struct virtqueue *vq, const struct dma_path *dma);

/** vq_reset() - power-on values: disabled, largest size, indices 0.  Nothing may be in flight any
 * more that will be put (the device drops such elements). */
void vq_reset(struct virtqueue *vq);

/**
 * vq_map() - find the three areas (at enable and after a load).
 * Returns 0, or -EINVAL and the queue is broken: not RAM, misaligned.
 */
int vq_map(struct virtqueue *vq, bool has_event_idx, bool has_indirect);

/** vq_is_ready() - enabled, mapped and not broken. */
static inline bool vq_is_ready(const struct virtqueue *vq)
{
	return vq->is_enabled && !vq->is_broken && vq->host.is_mapped;
}

/**
 * vq_pop() - take the next chain.
 * @elem: elem->iov is the caller's array of VQ_IOV_MAX vectors
 * Returns 1, 0 (none, or the queue is not enabled), -EINVAL (broken; see vq_is_broken).
 */
int vq_pop(struct virtqueue *vq, struct vq_elem *elem);

/** vq_peek() - the same without taking it. */
int vq_peek(struct virtqueue *vq, struct vq_elem *elem);

/** vq_unpop() - give back the last @n chains popped, none of them put: the ring is as before. */
void vq_unpop(struct virtqueue *vq, unsigned n);

/**
 * vq_put() - return a chain; the driver sees it at the next vq_flush.
 * @written: how many bytes of the in part were written (clamped to it); marks them dirty
 * No effect on a queue that was reset or broken meanwhile.
 */
void vq_put(struct virtqueue *vq, const struct vq_elem *elem, uint64_t written);

/** vq_flush() - publish what was put.  Returns whether the driver wants an interrupt. */
bool vq_flush(struct virtqueue *vq);
/** vq_publish() - the first half: the driver sees what was put. */
void vq_publish(struct virtqueue *vq);
/** vq_wants_interrupt() - the second half, at any later time: was anything published since the last look that the
 * driver still wants to be told of?  This is a look. */
bool vq_wants_interrupt(struct virtqueue *vq);
/** vq_unsignalled() - how much was published since the last look. */
static inline uint16_t vq_unsignalled(const struct virtqueue *vq)
{
	return vq->used_idx - vq->signalled;
}

/** vq_available() - how many chains wait; 0 when not ready. */
unsigned vq_available(struct virtqueue *vq);

/** vq_arm_kick() - ask for a kick at the next chain.  Returns true if one is there already: then
 * none may come, and the caller takes it now. */
bool vq_arm_kick(struct virtqueue *vq);
/** vq_arm_kick_more() - ask for a kick when more comes than is there now.  Returns true if some came
 * already.  For a device that found too little. */
bool vq_arm_kick_more(struct virtqueue *vq);
/** vq_disarm_kick() - kicks are not needed for now (a hint). */
void vq_disarm_kick(struct virtqueue *vq);

static inline struct iovec *vq_in_iov(const struct vq_elem *e)
{
	return e->iov + e->nout;
}

#endif
