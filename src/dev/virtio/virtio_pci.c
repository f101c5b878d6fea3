/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/virtio_pci.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

#define PCI_VENDOR_VIRTIO 0x1af4
#define PCI_CAP_VENDOR	  0x09

enum {
	BAR_MSIX = 1,
	BAR_REGS = 4,
	REGS_BYTES = 0x4000,
	NOTIFY_STEP = 4,
};

/* 4.1.4: cfg_type */
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_PCI = 5 };

/* The areas of BAR 4. */
enum { AREA_COMMON, AREA_ISR, AREA_DEVICE, AREA_NOTIFY, AREA_BYTES = 0x1000 };

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

/* Offsets in a vendor capability, 4.1.4. */
enum { VCAP_BAR = 4, VCAP_OFFSET = 8, VCAP_LENGTH = 12, VCAP_DATA = 16, VCAP_END = 20 };

static int check_state(const void *obj, struct error *err)
{
	const struct virtio_pci *p = obj;

	for (unsigned i = 0; i < sizeof(p->reserved); i++)
		if (p->reserved[i])
			return error_set(err, -EINVAL, "virtio-pci state has reserved bytes set");
	return 0;
}

// clang-format off
static const struct field virtio_pci_fields[] = {
	F_HOST(struct virtio_pci, dev),
	F_STRUCT(struct virtio_pci, pci, &pci_dev_state),
	F_STRUCT(struct virtio_pci, v, &virtio_state),
	F_U32(struct virtio_pci, device_feature_select),
	F_U32(struct virtio_pci, driver_feature_select),
	F_U16(struct virtio_pci, config_vector),
	F_U16(struct virtio_pci, queue_select),
	F_U8(struct virtio_pci, isr),
	F_BYTES(struct virtio_pci, reserved),
	F_END,
};
// clang-format on
const struct state_desc virtio_pci_state = {
	.name = "virtio-pci",
	.version = 1,
	.size = sizeof(struct virtio_pci),
	.fields = virtio_pci_fields,
	.check = check_state,
};

/* ---- interrupts (4.1.4.5, 4.1.5.3) ---- */

static void raise_irq(struct virtio_pci *p, uint16_t vector, uint8_t isr_bit)
{
	if (pci_msix_enabled(&p->pci)) {
		if (vector < p->pci.nmsix)
			pci_msix_notify(&p->pci, vector);
		return;
	}
	p->isr |= isr_bit;
	pci_set_intx(&p->pci, true);
}

static void notify_queue(struct virtio_dev *v, unsigned q)
{
	raise_irq(virtio_pci_of(v), v->vqs[q].msix_vector, ISR_QUEUE);
}

static void notify_config(struct virtio_dev *v)
{
	struct virtio_pci *p = virtio_pci_of(v);

	raise_irq(p, p->config_vector, ISR_CONFIG);
}

static bool can_dma(const struct virtio_dev *v)
{
	return pci_is_bus_master(&virtio_pci_of((struct virtio_dev *)(uintptr_t)v)->pci);
}

static const struct virtio_transport pci_transport = {
	.notify_queue = notify_queue,
	.notify_config = notify_config,
	.can_dma = can_dma,
};

static uint8_t read_isr(struct virtio_pci *p)
{
	uint8_t isr = p->isr;

	p->isr = 0;
	pci_set_intx(&p->pci, false);
	return isr;
}

static uint16_t accept_vector(const struct virtio_pci *p, uint32_t vector)
{
	return vector < p->pci.nmsix ? vector : VIRTIO_NO_VECTOR;
}

/* ---- common configuration (4.1.4.3) ---- */

/* The selected queue; NULL if there is none of that number. */
static struct virtqueue *selected(struct virtio_pci *p)
{
	struct virtio_host *h = &p->v.host;

	return p->queue_select < h->nqueues && p->v.vqs[p->queue_select].host.max_size
		       ? &p->v.vqs[p->queue_select]
		       : NULL;
}

static uint32_t features_word(uint64_t features, uint32_t select)
{
	return select < 2 ? features >> (select * 32) : 0;
}

/* Register names as in the specification; offset, size. */
// clang-format off
#define COMMON_REGS(R)                  \
	R(DEVICE_FEATURE_SELECT, 0, 4)  \
	R(DEVICE_FEATURE,        4, 4)  \
	R(DRIVER_FEATURE_SELECT, 8, 4)  \
	R(DRIVER_FEATURE,       12, 4)  \
	R(CONFIG_MSIX_VECTOR,   16, 2)  \
	R(NUM_QUEUES,           18, 2)  \
	R(DEVICE_STATUS,        20, 1)  \
	R(CONFIG_GENERATION,    21, 1)  \
	R(QUEUE_SELECT,         22, 2)  \
	R(QUEUE_SIZE,           24, 2)  \
	R(QUEUE_MSIX_VECTOR,    26, 2)  \
	R(QUEUE_ENABLE,         28, 2)  \
	R(QUEUE_NOTIFY_OFF,     30, 2)  \
	R(QUEUE_DESC_LO,        32, 4)  \
	R(QUEUE_DESC_HI,        36, 4)  \
	R(QUEUE_DRIVER_LO,      40, 4)  \
	R(QUEUE_DRIVER_HI,      44, 4)  \
	R(QUEUE_DEVICE_LO,      48, 4)  \
	R(QUEUE_DEVICE_HI,      52, 4)
// clang-format on
#define R(name, off, size) name = off,
enum { COMMON_REGS(R) COMMON_BYTES = 56 };
#undef R
static const struct {
	uint8_t offset, size;
} common_regs[] = {
#define R(name, off, size) { off, size },
	COMMON_REGS(R)
#undef R
};

static uint32_t common_get(struct virtio_pci *p, unsigned reg)
{
	const struct virtqueue *vq = selected(p);

	switch (reg) {
	case DEVICE_FEATURE_SELECT:
		return p->device_feature_select;
	case DEVICE_FEATURE:
		return features_word(p->v.host.offered, p->device_feature_select);
	case DRIVER_FEATURE_SELECT:
		return p->driver_feature_select;
	case DRIVER_FEATURE:
		return features_word(p->v.features, p->driver_feature_select);
	case CONFIG_MSIX_VECTOR:
		return p->config_vector;
	case NUM_QUEUES:
		return p->v.host.nqueues;
	case DEVICE_STATUS:
		return p->v.status;
	case CONFIG_GENERATION:
		return p->v.config_generation;
	case QUEUE_SELECT:
		return p->queue_select;
	case QUEUE_NOTIFY_OFF:
		return vq ? p->queue_select : 0;
	case QUEUE_SIZE: /* 0: no such queue */
		return vq ? vq->size : 0;
	case QUEUE_MSIX_VECTOR:
		return vq ? vq->msix_vector : VIRTIO_NO_VECTOR;
	case QUEUE_ENABLE:
		return vq ? vq->is_enabled : 0;
	case QUEUE_DESC_LO:
		return vq ? vq->desc_gpa : 0;
	case QUEUE_DESC_HI:
		return vq ? vq->desc_gpa >> 32 : 0;
	case QUEUE_DRIVER_LO:
		return vq ? vq->avail_gpa : 0;
	case QUEUE_DRIVER_HI:
		return vq ? vq->avail_gpa >> 32 : 0;
	case QUEUE_DEVICE_LO:
		return vq ? vq->used_gpa : 0;
	case QUEUE_DEVICE_HI:
		return vq ? vq->used_gpa >> 32 : 0;
	}
	return 0;
}

/* Any bytes of it: reading has no side effects. */
static uint64_t common_read(struct virtio_pci *p, unsigned off, unsigned size)
{
	uint8_t image[COMMON_BYTES + 8] = { 0 };
	uint64_t value = 0;

	if (off >= COMMON_BYTES)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(common_regs); i++) {
		uint32_t v = common_get(p, common_regs[i].offset);
		memcpy(image + common_regs[i].offset, &v, common_regs[i].size);
	}
	memcpy(&value, image + off, size);
	return value;
}

static void set_half(uint64_t *at, bool is_high, uint32_t v)
{
	*at = is_high ? (*at & 0xffffffff) | (uint64_t)v << 32 : (*at & ~0xffffffffULL) | v;
}

/* A register of the selected queue. */
static void queue_set(struct virtio_pci *p, struct virtqueue *vq, unsigned reg, uint32_t v)
{
	if (reg == QUEUE_MSIX_VECTOR) {
		vq->msix_vector = accept_vector(p, v);
		return;
	}
	if (vq->is_enabled) {
		log_guest("virtio", "%s: queue %u changed while enabled", p->dev.id, p->queue_select);
		return;
	}
	switch (reg) {
	case QUEUE_SIZE:
		if (v && v <= vq->host.max_size && !(v & (v - 1)))
			vq->size = v;
		else
			log_guest("virtio", "%s: queue size %u", p->dev.id, v);
		break;
	case QUEUE_ENABLE:
		if (v == 1) /* 4.1.4.3.2: nothing else may be written */
			virtio_enable_queue(&p->v, p->queue_select);
		break;
	case QUEUE_DESC_LO:
	case QUEUE_DESC_HI:
		set_half(&vq->desc_gpa, reg == QUEUE_DESC_HI, v);
		break;
	case QUEUE_DRIVER_LO:
	case QUEUE_DRIVER_HI:
		set_half(&vq->avail_gpa, reg == QUEUE_DRIVER_HI, v);
		break;
	case QUEUE_DEVICE_LO:
	case QUEUE_DEVICE_HI:
		set_half(&vq->used_gpa, reg == QUEUE_DEVICE_HI, v);
		break;
	}
}

static void reset_regs(struct virtio_pci *p)
{
	p->device_feature_select = 0;
	p->driver_feature_select = 0;
	p->queue_select = 0;
	p->config_vector = VIRTIO_NO_VECTOR;
	p->isr = 0;
	pci_set_intx(&p->pci, false);
}

static void common_set(struct virtio_pci *p, unsigned reg, uint32_t v)
{
	struct virtqueue *vq = selected(p);

	switch (reg) {
	case DEVICE_FEATURE_SELECT:
		p->device_feature_select = v;
		break;
	case DRIVER_FEATURE_SELECT:
		p->driver_feature_select = v;
		break;
	case DRIVER_FEATURE:
		virtio_set_features(&p->v, p->driver_feature_select, v);
		break;
	case CONFIG_MSIX_VECTOR:
		p->config_vector = accept_vector(p, v);
		break;
	case DEVICE_STATUS:
		virtio_set_status(&p->v, v);
		if (!v)
			reset_regs(p);
		break;
	case QUEUE_SELECT:
		p->queue_select = v;
		break;
	case DEVICE_FEATURE:
	case NUM_QUEUES:
	case CONFIG_GENERATION:
	case QUEUE_NOTIFY_OFF:
		log_guest("virtio", "%s: write to a read-only register", p->dev.id);
		break;
	default:
		if (vq)
			queue_set(p, vq, reg, v);
	}
}

static void common_write(struct virtio_pci *p, unsigned off, unsigned size, uint64_t value)
{
	if (size == 8) { /* the 64-bit addresses, by drivers that can */
		common_write(p, off, 4, value);
		common_write(p, off + 4, 4, value >> 32);
		return;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(common_regs); i++)
		if (common_regs[i].offset == off && common_regs[i].size == size) {
			common_set(p, off, value);
			return;
		}
	log_guest("virtio", "%s: write of %u bytes to common configuration byte %u", p->dev.id,
		  size, off);
}

/* ---- BAR 4 ---- */

static uint64_t regs_read(void *dev, uint64_t offset, unsigned size)
{
	struct virtio_pci *p = dev;
	unsigned off = offset % AREA_BYTES;

	switch (offset / AREA_BYTES) {
	case AREA_COMMON:
		return common_read(p, off, size);
	case AREA_ISR:
		return off ? 0 : read_isr(p);
	case AREA_DEVICE:
		if (size == 8)
			return virtio_config_read(&p->v, off, 4) |
			       (uint64_t)virtio_config_read(&p->v, off + 4, 4) << 32;
		return virtio_config_read(&p->v, off, size);
	}
	return 0;
}

static void regs_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_pci *p = dev;
	unsigned off = offset % AREA_BYTES;

	switch (offset / AREA_BYTES) {
	case AREA_COMMON:
		common_write(p, off, size, value);
		break;
	case AREA_DEVICE:
		if (size == 8) {
			virtio_config_write(&p->v, off, 4, value);
			virtio_config_write(&p->v, off + 4, 4, value >> 32);
		} else {
			virtio_config_write(&p->v, off, size, value);
		}
		break;
	case AREA_NOTIFY:
		/* The address says which queue; the value repeats it. */
		virtio_kick(&p->v, off / NOTIFY_STEP);
		break;
	}
}

static const struct bus_ops regs_ops = { .read = regs_read, .write = regs_write };

/* ---- the PCI_CFG capability (4.1.4.9): BAR 4 through config space ---- */

/* Which access does the capability describe?  False: none that exists. */
static bool window(const struct virtio_pci *p, unsigned cap, uint64_t *off, unsigned *size)
{
	*off = pci_config_get(&p->pci, cap + VCAP_OFFSET, 4);
	*size = pci_config_get(&p->pci, cap + VCAP_LENGTH, 4);
	return pci_config_get(&p->pci, cap + VCAP_BAR, 1) == BAR_REGS &&
	       (*size == 1 || *size == 2 || *size == 4) && !(*off % *size) &&
	       *off <= REGS_BYTES - *size;
}

/* The PCI_CFG capability, if [@offset, +@size) touches its data; else 0. */
static unsigned touched_window(const struct virtio_pci *p, unsigned offset, unsigned size)
{
	unsigned cap = p->pci.config[0x34];

	/* The list is ours: it ends. */
	while (cap && !(p->pci.config[cap] == PCI_CAP_VENDOR && p->pci.config[cap + 3] == CAP_PCI))
		cap = p->pci.config[cap + 1];
	return cap && offset < cap + VCAP_END && offset + size > cap + VCAP_DATA ? cap : 0;
}

static void config_before_read(struct pci_dev *d, unsigned offset, unsigned size)
{
	struct virtio_pci *p = container_of(d, struct virtio_pci, pci);
	unsigned cap = touched_window(p, offset, size), n;
	uint64_t off;

	if (cap && window(p, cap, &off, &n))
		pci_config_set(d, cap + VCAP_DATA, n, regs_read(p, off, n));
}

static void config_written(struct pci_dev *d, unsigned offset, unsigned size)
{
	struct virtio_pci *p = container_of(d, struct virtio_pci, pci);
	unsigned cap = touched_window(p, offset, size), n;
	uint64_t off;

	if (cap && window(p, cap, &off, &n))
		regs_write(p, off, n, pci_config_get(d, cap + VCAP_DATA, n));
	/* Bus mastering may have come on: look at what waited; or gone: what a guest then takes away is no longer used. */
	if (offset < 6 && offset + size > 4) {
		if (!pci_is_bus_master(d))
			virtio_finish(&p->v);
		virtio_kick_all(&p->v);
	}
}

/* ---- building ---- */

static void put_u32(uint8_t *at, uint32_t v)
{
	memcpy(at, &v, 4);
}

/* A vendor capability; @len 16 or 20.  pci_add_cap takes it from byte 2 on. */
static int add_vendor_cap(struct pci_dev *d, unsigned len, unsigned type, unsigned bar,
			  uint32_t off, uint32_t length, uint32_t extra, bool is_writable)
{
	uint8_t cap[VCAP_END] = { 0 }, wmask[VCAP_END] = { 0 };

	cap[2] = len;
	cap[3] = type;
	cap[VCAP_BAR] = bar;
	put_u32(cap + VCAP_OFFSET, off);
	put_u32(cap + VCAP_LENGTH, length);
	put_u32(cap + VCAP_DATA, extra);
	if (is_writable) {
		wmask[VCAP_BAR] = 0xff;
		memset(wmask + VCAP_OFFSET, 0xff, VCAP_END - VCAP_OFFSET);
	}
	return pci_add_cap(d, PCI_CAP_VENDOR, len, cap + 2, is_writable ? wmask + 2 : NULL);
}

static int add_caps(struct virtio_pci *p)
{
	struct pci_dev *d = &p->pci;
	struct {
		unsigned len, type, bar;
		uint32_t off, length, extra;
		bool is_writable;
	} caps[] = {
		{ 16, CAP_COMMON, BAR_REGS, AREA_COMMON * AREA_BYTES, COMMON_BYTES, 0, false },
		{ 16, CAP_ISR, BAR_REGS, AREA_ISR * AREA_BYTES, 1, 0, false },
		{ 16, CAP_DEVICE, BAR_REGS, AREA_DEVICE * AREA_BYTES, AREA_BYTES, 0, false },
		{ 20, CAP_NOTIFY, BAR_REGS, AREA_NOTIFY * AREA_BYTES,
		  VIRTIO_QUEUES_MAX * NOTIFY_STEP, NOTIFY_STEP, false },
		{ 20, CAP_PCI, 0, 0, 0, 0, true },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(caps); i++) {
		int r = add_vendor_cap(d, caps[i].len, caps[i].type, caps[i].bar, caps[i].off,
				       caps[i].length, caps[i].extra, caps[i].is_writable);
		if (r < 0)
			return r;
	}
	return 0;
}

int virtio_pci_init(struct virtio_pci *p, const struct device_class *dcls, const char *id,
		    struct pci_bus *bus, int slot, const struct dev_env *env,
		    const struct virtio_class *cls, uint64_t offered, const uint16_t *sizes,
		    unsigned nqueues, struct error *err)
{
	struct pci_id pci_id = {
		.vendor = PCI_VENDOR_VIRTIO,
		.device = 0x1040 + cls->id,
		.subvendor = PCI_VENDOR_VIRTIO,
		.subdevice = 0x1100,
		.class_code = cls->pci_class,
		.revision = 1,
	};

	device_init(&p->dev, dcls, id);
	int r = virtio_init(&p->v, cls, &pci_transport, env, offered, sizes, nqueues, err);
	if (r < 0)
		return r;
	r = pci_dev_init(&p->pci, bus, slot, &pci_id, err);
	if (r < 0) {
		virtio_fini(&p->v);
		return r;
	}
	if (p->pci.dma.iommu)
		virtio_set_dma(&p->v, &p->pci.dma);
	p->pci.config_before_read = config_before_read;
	p->pci.config_written = config_written;
	r = pci_msix_init(&p->pci, nqueues + 1, BAR_MSIX);
	if (r == 0)
		r = pci_add_bar(&p->pci, BAR_REGS, PCI_BAR_MEM64 | PCI_BAR_PREFETCH, REGS_BYTES,
				&regs_ops, p);
	if (r == 0)
		r = add_caps(p);
	if (r < 0) {
		virtio_pci_fini(p);
		return error_set(err, r, "cannot put %s on the PCI bus: %s", id, strerror(-r));
	}
	reset_regs(p);
	return 0;
}

void virtio_pci_fini(struct virtio_pci *p)
{
	pci_dev_destroy(&p->pci);
	virtio_fini(&p->v);
}

/* ---- for device classes ---- */

void virtio_pci_device_reset(struct device *d)
{
	struct virtio_pci *p = container_of(d, struct virtio_pci, dev);

	virtio_reset(&p->v);
	reset_regs(p);
	pci_dev_reset(&p->pci);
}

void virtio_pci_device_after_load(struct device *d)
{
	struct virtio_pci *p = container_of(d, struct virtio_pci, dev);

	pci_dev_after_load(&p->pci);
	virtio_after_load(&p->v);
}

void virtio_pci_device_pause(struct device *d)
{
	virtio_pause(&container_of(d, struct virtio_pci, dev)->v);
}

void virtio_pci_device_resume(struct device *d)
{
	virtio_resume(&container_of(d, struct virtio_pci, dev)->v);
}
