/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/virtqueue.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/log.h"

static int check_vq(const void *obj, struct error *err)
{
	const struct virtqueue *vq = obj;

	if (vq->size & (vq->size - 1) || vq->size > VQ_SIZE_MAX)
		return error_set(err, -EINVAL, "virtqueue size %u is no power of two up to %u",
				 vq->size, VQ_SIZE_MAX);
	if (vq->is_enabled && !vq->size)
		return error_set(err, -EINVAL, "virtqueue is enabled without a size");
	if (vq->size > vq->host.max_size)
		return error_set(err, -EINVAL, "virtqueue size %u, but this device has %u",
				 vq->size, vq->host.max_size);
	for (unsigned i = 0; i < sizeof(vq->reserved); i++)
		if (vq->reserved[i])
			return error_set(err, -EINVAL, "virtqueue has reserved bytes set");
	return 0;
}

// clang-format off
static const struct field vq_fields[] = {
	F_U64(struct virtqueue, desc_gpa),
	F_U64(struct virtqueue, avail_gpa),
	F_U64(struct virtqueue, used_gpa),
	F_U16(struct virtqueue, size),
	F_U16(struct virtqueue, last_avail),
	F_U16(struct virtqueue, used_idx),
	F_U16(struct virtqueue, signalled),
	F_U16(struct virtqueue, msix_vector),
	F_BOOL(struct virtqueue, is_signalled_valid),
	F_BOOL(struct virtqueue, is_enabled),
	F_BOOL(struct virtqueue, is_broken),
	F_BYTES(struct virtqueue, reserved),
	F_HOST(struct virtqueue, host),
	F_END,
};
// clang-format on
const struct state_desc vq_state = {
	.name = "virtqueue",
	.version = 1,
	.size = sizeof(struct virtqueue),
	.fields = vq_fields,
	.check = check_vq,
};

void vq_init(struct virtqueue *vq, struct guest_ram *ram, uint16_t max_size)
{
	assert(max_size <= VQ_SIZE_MAX && !(max_size & (max_size - 1)));
	memset(vq, 0, sizeof(*vq));
	vq->host.ram = ram;
	vq->host.max_size = max_size;
	vq_reset(vq);
}

void vq_set_dma(struct virtqueue *vq, const struct dma_path *dma)
{
	vq->host.dma = dma;
}

void vq_reset(struct virtqueue *vq)
{
	struct vq_host host = { .ram = vq->host.ram, .dma = vq->host.dma, .max_size = vq->host.max_size };

	memset(vq, 0, sizeof(*vq));
	vq->host = host;
	vq->size = host.max_size;
	vq->msix_vector = 0xffff;
}

static int set_broken(struct virtqueue *vq, const char *why)
{
	log_guest("virtio", "the driver broke a virtqueue: %s", why);
	vq->is_broken = true;
	return -EINVAL;
}

/* One area of the ring: in one piece of RAM, or NULL. */
static void *map_area(struct virtqueue *vq, gpa_t gpa, uint64_t len, unsigned align, bool is_written)
{
	struct iovec iov;
	unsigned n = 0;

	if (gpa & (align - 1) || ram_iov(vq->host.ram, gpa, len, is_written, &iov, 1, &n) < 0 ||
	    n != 1 || iov.iov_len != len)
		return NULL;
	return iov.iov_base;
}

/* What lies where is asked at each access: here only that words do not cross pages. */
static int map_behind_iommu(struct virtqueue *vq)
{
	if (vq->desc_gpa & 15 || vq->avail_gpa & 1 || vq->used_gpa & 3)
		return set_broken(vq, "an area is misaligned");
	vq->host.is_mapped = true;
	return 0;
}

int vq_map(struct virtqueue *vq, bool has_event_idx, bool has_indirect)
{
	uint64_t n = vq->size;

	vq->host.has_event_idx = has_event_idx;
	vq->host.has_indirect = has_indirect;
	vq->host.in_flight = 0;
	vq->host.pending = 0;
	vq->host.is_mapped = false;
	if (!n || n > vq->host.max_size)
		return set_broken(vq, "no usable size");
	if (vq->host.dma)
		return map_behind_iommu(vq);
	/* 2.7: alignments 16, 2, 4; the event words end the rings */
	vq->host.desc = map_area(vq, vq->desc_gpa, n * sizeof(struct vq_desc), 16, false);
	vq->host.avail = map_area(vq, vq->avail_gpa, sizeof(struct vq_avail) + n * 2 + 2, 2, false);
	vq->host.used = map_area(vq, vq->used_gpa,
				 sizeof(struct vq_used) + n * sizeof(struct vq_used_elem) + 2, 4, true);
	if (!vq->host.desc || !vq->host.avail || !vq->host.used)
		return set_broken(vq, "an area lies outside of RAM or is misaligned");
	vq->host.is_mapped = true;
	return 0;
}

/* ---- the ring's words: each read or written once, atomically ---- */

/* What follows with _translated is the way behind an IOMMU, kept apart from the hot path. */
__attribute__((noinline, cold)) static void *locate_translated(struct virtqueue *vq, gpa_t addr,
							       unsigned len, bool is_written)
{
	void *p = dma_ptr(vq->host.dma, addr, len, is_written);

	if (!p)
		set_broken(vq, "the IOMMU refuses access to a ring");
	return p;
}

/* @len bytes at @offset of the area at @gpa, which the host has at @area unless an IOMMU is in between.  NULL: refused. */
static inline void *locate(struct virtqueue *vq, const void *area, gpa_t gpa, uint64_t offset,
			   unsigned len, bool is_written)
{
	if (likely(area))
		return (uint8_t *)(uintptr_t)area + offset;
	return locate_translated(vq, gpa + offset, len, is_written);
}

static uint16_t *locate_avail(struct virtqueue *vq, uint64_t offset)
{
	return locate(vq, vq->host.avail, vq->avail_gpa, offset, 2, false);
}

static void *locate_used(struct virtqueue *vq, uint64_t offset, unsigned len)
{
	return locate(vq, vq->host.used, vq->used_gpa, offset, len, true);
}

/* Refused: as if nothing came. */
static uint16_t load_avail_idx(struct virtqueue *vq)
{
	const uint16_t *p = locate_avail(vq, offsetof(struct vq_avail, idx));

	return p ? __atomic_load_n(p, __ATOMIC_ACQUIRE) : vq->last_avail;
}

/* Slot @i of the available ring, the word behind the last being used_event.  Refused: 0, and the queue is broken. */
static uint16_t load_avail_ring(struct virtqueue *vq, unsigned i)
{
	const uint16_t *p = locate_avail(vq, offsetof(struct vq_avail, ring[i]));

	return p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
}

static uint16_t load_avail_flags(struct virtqueue *vq)
{
	const uint16_t *p = locate_avail(vq, offsetof(struct vq_avail, flags));

	return p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
}

/* A word of the used area. */
static void store_used(struct virtqueue *vq, uint64_t offset, uint16_t v, int order)
{
	uint16_t *p = locate_used(vq, offset, 2);

	if (!p)
		return;
	if (order == __ATOMIC_RELEASE)
		__atomic_store_n(p, v, __ATOMIC_RELEASE);
	else
		__atomic_store_n(p, v, __ATOMIC_RELAXED);
	ram_note_write_ptr(vq->host.ram, p, sizeof(*p));
}

static uint64_t avail_event(const struct virtqueue *vq)
{
	return offsetof(struct vq_used, ring[vq->size]);
}

/* Descriptors: at @area, or behind an IOMMU (NULL) at @gpa. */
struct table {
	const void *area;
	gpa_t gpa;
	unsigned len;
};

__attribute__((noinline, cold)) static struct vq_desc load_desc_translated(struct virtqueue *vq, gpa_t addr)
{
	struct vq_desc d;

	if (dma_read(vq->host.dma, addr, &d, sizeof(d)) == 0)
		return d;
	set_broken(vq, "the IOMMU refuses access to a descriptor");
	return (struct vq_desc){ 0 };
}

/* A descriptor, copied once: the guest may change it meanwhile.  Refused: an empty one, and the queue is broken. */
static inline struct vq_desc load_desc(struct virtqueue *vq, const struct table *t, unsigned i)
{
	struct vq_desc d;

	if (unlikely(!t->area))
		return load_desc_translated(vq, t->gpa + i * sizeof(d));
	/* An indirect table may lie at any address. */
	memcpy(&d, (const uint8_t *)t->area + i * sizeof(d), sizeof(d));
	__asm__ volatile("" ::: "memory");
	return d;
}

static inline int buffer_iov(struct virtqueue *vq, struct vq_elem *e, const struct vq_desc *d,
			     bool is_in, unsigned *n)
{
	if (unlikely(vq->host.dma != NULL))
		return dma_iov(vq->host.dma, d->addr, d->len, is_in, e->iov, VQ_IOV_MAX, n,
			       &e->dma_budget);
	return ram_iov(vq->host.ram, d->addr, d->len, is_in, e->iov, VQ_IOV_MAX, n);
}

/* Adds one buffer to the chain. */
static int add_buffer(struct virtqueue *vq, struct vq_elem *e, const struct vq_desc *d)
{
	bool is_in = d->flags & VQ_DESC_F_WRITE;
	unsigned n = e->nout + e->nin, before = n;

	if (!is_in && e->nin)
		return set_broken(vq, "a readable buffer follows a writable one"); /* 2.7.4.2 */
	if (!d->len)
		return 0; /* nothing there: legal, carries nothing */
	if (e->out_bytes + e->in_bytes + d->len > UINT32_MAX)
		return set_broken(vq, "a chain of 4 GiB or more");
	if (buffer_iov(vq, e, d, is_in, &n) < 0)
		return set_broken(vq, "a buffer outside of RAM");
	if (is_in) {
		e->nin += n - before;
		e->in_bytes += d->len;
	} else {
		e->nout += n - before;
		e->out_bytes += d->len;
	}
	return 0;
}

/* The table an indirect descriptor points to; without an IOMMU it must lie in one piece of RAM.  A bad one has no length. */
static struct table indirect_table(struct virtqueue *vq, const struct vq_desc *d)
{
	struct table t = { .gpa = d->addr };

	if (!vq->host.has_indirect || d->flags & VQ_DESC_F_NEXT || !d->len ||
	    d->len % sizeof(struct vq_desc))
		return t;
	if (!vq->host.dma)
		t.area = ram_ptr(vq->host.ram, d->addr, d->len);
	/* A longer table is legal as long as the chain in it is not; entries past 2^16 are unreachable. */
	if (t.area || vq->host.dma)
		t.len = d->len / sizeof(struct vq_desc);
	return t;
}

static int walk_chain(struct virtqueue *vq, struct vq_elem *e)
{
	struct table table = { vq->host.desc, vq->desc_gpa, vq->size };
	unsigned i = e->head, steps = 0;
	bool is_indirect = false;

	for (;;) {
		if (i >= table.len)
			return set_broken(vq, "a descriptor index past the table");
		if (steps++ >= vq->host.max_size)
			return set_broken(vq, "a chain longer than the queue, or a loop");
		struct vq_desc d = load_desc(vq, &table, i);
		if (d.flags & VQ_DESC_F_INDIRECT) {
			/* 2.7.5.3.1: not nested, not together with NEXT, only if negotiated */
			table = is_indirect ? (struct table){ 0 } : indirect_table(vq, &d);
			if (!table.len)
				return set_broken(vq, "a bad indirect descriptor");
			is_indirect = true;
			steps = 0; /* it is not part of the chain that it carries */
			i = 0;
			continue;
		}
		int r = add_buffer(vq, e, &d);
		if (r < 0)
			return r;
		if (!(d.flags & VQ_DESC_F_NEXT))
			return vq->is_broken ? -EINVAL : 0; /* behind an IOMMU, by a refused access */
		i = d.next;
	}
}

unsigned vq_available(struct virtqueue *vq)
{
	if (!vq_is_ready(vq))
		return 0;
	uint16_t n = load_avail_idx(vq) - vq->last_avail;
	if (n > vq->size) {
		set_broken(vq, "the available index jumped");
		return 0;
	}
	return n;
}

int vq_peek(struct virtqueue *vq, struct vq_elem *elem)
{
	struct iovec *iov = elem->iov;

	unsigned n = vq_available(vq);
	if (vq->is_broken)
		return -EINVAL;
	if (!n)
		return 0;
	if (vq->host.in_flight >= vq->size)
		return set_broken(vq, "more chains in flight than the ring holds");
	*elem = (struct vq_elem){ .iov = iov, .dma_budget = VQ_DMA_MAX };
	elem->head = load_avail_ring(vq, vq->last_avail & (vq->size - 1));
	int r = walk_chain(vq, elem);
	return r < 0 ? r : 1;
}

int vq_pop(struct virtqueue *vq, struct vq_elem *elem)
{
	int r = vq_peek(vq, elem);

	if (r > 0) {
		vq->last_avail++;
		vq->host.in_flight++;
	}
	return r;
}

void vq_unpop(struct virtqueue *vq, unsigned n)
{
	if (!vq_is_ready(vq))
		return;
	assert(n <= vq->host.in_flight);
	vq->last_avail -= n;
	vq->host.in_flight -= n;
}

/* An element of 8 bytes is aligned to 4: it may cross pages, which behind an IOMMU need not be neighbours. */
__attribute__((noinline, cold)) static void put_used_translated(struct virtqueue *vq, uint16_t slot,
								const struct vq_used_elem *u)
{
	uint64_t offset = offsetof(struct vq_used, ring[slot]);

	for (unsigned done = 0; done < sizeof(*u); done += 4) {
		void *p = locate_used(vq, offset + done, 4);

		if (!p)
			return;
		memcpy(p, (const uint8_t *)u + done, 4);
		ram_note_write_ptr(vq->host.ram, p, 4);
	}
}

void vq_put(struct virtqueue *vq, const struct vq_elem *elem, uint64_t written)
{
	if (written > elem->in_bytes)
		written = elem->in_bytes;
	uint64_t left = written;
	const struct iovec *iov = vq_in_iov(elem);
	for (unsigned i = 0; i < elem->nin && left; i++) {
		uint64_t n = MIN(left, (uint64_t)iov[i].iov_len);
		ram_note_write_ptr(vq->host.ram, iov[i].iov_base, n);
		left -= n;
	}
	if (!vq_is_ready(vq) || !vq->host.in_flight)
		return;
	uint16_t slot = (vq->used_idx + vq->host.pending) & (vq->size - 1);
	if (likely(vq->host.used)) {
		struct vq_used_elem *u = &vq->host.used->ring[slot];
		u->id = elem->head;
		u->len = written;
		ram_note_write_ptr(vq->host.ram, u, sizeof(*u));
	} else {
		put_used_translated(vq, slot, &(struct vq_used_elem){ elem->head, written });
	}
	vq->host.in_flight--;
	vq->host.pending++;
}

/* 2.7.10.1: did the index pass @event on its way from @old to @now? */
static bool passed_event(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

void vq_publish(struct virtqueue *vq)
{
	if (!vq_is_ready(vq) || !vq->host.pending)
		return;
	vq->used_idx += vq->host.pending;
	vq->host.pending = 0;
	store_used(vq, offsetof(struct vq_used, idx), vq->used_idx, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool vq_wants_interrupt(struct virtqueue *vq)
{
	if (!vq_is_ready(vq) || (vq->is_signalled_valid && !vq_unsignalled(vq)))
		return false;
	bool want;
	if (!vq->host.has_event_idx)
		want = !(load_avail_flags(vq) & VQ_AVAIL_F_NO_INTERRUPT);
	else
		want = !vq->is_signalled_valid ||
		       passed_event(load_avail_ring(vq, vq->size), vq->used_idx, vq->signalled);
	vq->signalled = vq->used_idx;
	vq->is_signalled_valid = true;
	return want && !vq->is_broken;
}

bool vq_flush(struct virtqueue *vq)
{
	if (!vq_is_ready(vq) || !vq->host.pending)
		return false;
	vq_publish(vq);
	return vq_wants_interrupt(vq);
}

static bool arm_kick(struct virtqueue *vq, uint16_t seen)
{
	if (vq->host.has_event_idx)
		store_used(vq, avail_event(vq), seen, __ATOMIC_RELAXED);
	else
		store_used(vq, offsetof(struct vq_used, flags), 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return load_avail_idx(vq) != seen && !vq->is_broken;
}

bool vq_arm_kick(struct virtqueue *vq)
{
	return vq_is_ready(vq) && arm_kick(vq, vq->last_avail);
}

bool vq_arm_kick_more(struct virtqueue *vq)
{
	return vq_is_ready(vq) && arm_kick(vq, load_avail_idx(vq));
}

void vq_disarm_kick(struct virtqueue *vq)
{
	/* With EVENT_IDX an avail_event left behind does it. */
	if (vq_is_ready(vq) && !vq->host.has_event_idx)
		store_used(vq, offsetof(struct vq_used, flags), VQ_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}
