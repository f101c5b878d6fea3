/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/driver_testing.h"

bool drv_use_iommu;

#define DRIVER 0xffff /* "requester" of the driver's own accesses */

static int translate(struct iommu *u, uint16_t source_id, uint64_t addr, bool is_write, gpa_t *gpa,
		     uint64_t *len)
{
	struct drv_iommu *i = container_of(u, struct drv_iommu, iommu);
	uint64_t page = ALIGN_DOWN(addr, GUEST_PAGE_SIZE);

	assert_true(source_id == DRIVER || source_id == i->d->slot << 3);
	assert_true(*len);
	if (source_id != DRIVER && (page == i->hole || (is_write && page == i->no_write))) {
		i->refused++;
		return -EFAULT;
	}
	*len = MIN(*len, GUEST_PAGE_SIZE - addr % GUEST_PAGE_SIZE);
	*gpa = addr < MIB ? addr ^ GUEST_PAGE_SIZE : addr;
	return 0;
}

static void forward_msi(struct iommu *u, uint16_t source_id, uint64_t addr, uint32_t data)
{
	struct drv_iommu *i = container_of(u, struct drv_iommu, iommu);

	assert_int_equal(source_id, i->d->slot << 3);
	i->d->t.env.msi.send(i->d->t.env.msi.ctx, addr, data);
}

static const struct iommu_ops iommu_ops = { translate, forward_msi };

void drv_init(struct drv *d)
{
	struct irq_line intx[PCI_INTX_LINES];

	memset(d, 0, sizeof(*d));
	test_env_init(&d->t);
	d->u = (struct drv_iommu){ .iommu.ops = &iommu_ops, .d = d, .hole = UINT64_MAX, .no_write = UINT64_MAX };
	if (drv_use_iommu)
		d->t.env.iommu = &d->u.iommu;
	d->path = (struct dma_path){ .ram = &d->t.ram, .iommu = d->t.env.iommu, .source_id = DRIVER };
	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = test_line(&d->t, i);
	assert_int_equal(pci_host_create(&d->host, &d->t.env, intx, NULL), 0);
	d->slot = 1;
}

void drv_fini(struct drv *d, struct device *dev)
{
	if (dev)
		dev->cls->destroy(dev);
	d->host->dev.cls->destroy(&d->host->dev);
	test_env_fini(&d->t);
}

struct pci_bus *drv_bus(struct drv *d)
{
	return pci_host_bus(d->host);
}

uint32_t drv_cfg_read(struct drv *d, unsigned offset, unsigned size)
{
	bus_write(d->t.env.bus, BUS_PIO, 0xcf8, 4, 0x80000000u | d->slot << 11 | (offset & 0xfc));
	return bus_read(d->t.env.bus, BUS_PIO, 0xcfc + (offset & 3), size);
}

void drv_cfg_write(struct drv *d, unsigned offset, unsigned size, uint32_t v)
{
	bus_write(d->t.env.bus, BUS_PIO, 0xcf8, 4, 0x80000000u | d->slot << 11 | (offset & 0xfc));
	bus_write(d->t.env.bus, BUS_PIO, 0xcfc + (offset & 3), size, v);
}

uint64_t drv_read(struct drv *d, unsigned offset, unsigned size)
{
	return bus_read(d->t.env.bus, BUS_MMIO, d->regs + offset, size);
}

void drv_write(struct drv *d, unsigned offset, unsigned size, uint64_t v)
{
	bus_write(d->t.env.bus, BUS_MMIO, d->regs + offset, size, v);
}

void drv_poke(struct drv *d, gpa_t gpa, const void *src, size_t len)
{
	assert_int_equal(dma_write(&d->path, gpa, src, len), 0);
}

void drv_peek(struct drv *d, gpa_t gpa, void *dst, size_t len)
{
	assert_int_equal(dma_read(&d->path, gpa, dst, len), 0);
}

uint16_t drv_peek16(struct drv *d, gpa_t gpa)
{
	uint16_t v;

	drv_peek(d, gpa, &v, 2);
	return v;
}

uint8_t drv_peek8(struct drv *d, gpa_t gpa)
{
	uint8_t v;

	drv_peek(d, gpa, &v, 1);
	return v;
}

void drv_poke16(struct drv *d, gpa_t gpa, uint16_t v)
{
	drv_poke(d, gpa, &v, 2);
}

uint8_t drv_status(struct drv *d)
{
	return drv_read(d, DRV_COMMON + 20, 1);
}

void drv_probe(struct drv *d)
{
	struct error err;
	unsigned seen = 0;

	assert_int_equal(pci_bus_assign(drv_bus(d), &err), 0);
	drv_cfg_write(d, 4, 2, 0x0006);
	assert_int_equal(drv_cfg_read(d, 0, 2), 0x1af4);
	d->regs = (drv_cfg_read(d, 0x20, 4) & ~15u) | (uint64_t)drv_cfg_read(d, 0x24, 4) << 32;
	d->msix = drv_cfg_read(d, 0x14, 4) & ~15u;
	assert_true(d->regs && d->msix);
	/* Each structure is where the tests expect it. */
	static const uint32_t offsets[] = { [1] = DRV_COMMON, [2] = DRV_NOTIFY, [3] = DRV_ISR, [4] = DRV_CONFIG };
	for (unsigned cap = drv_cfg_read(d, 0x34, 1); cap; cap = drv_cfg_read(d, cap + 1, 1)) {
		if (drv_cfg_read(d, cap, 1) != 0x09)
			continue;
		unsigned type = drv_cfg_read(d, cap + 3, 1);
		seen |= 1u << type;
		if (type < ARRAY_SIZE(offsets)) {
			assert_int_equal(drv_cfg_read(d, cap + 4, 1), 4);
			assert_int_equal(drv_cfg_read(d, cap + 8, 4), offsets[type]);
		}
		if (type == 2)
			assert_int_equal(drv_cfg_read(d, cap + 16, 4), 4);
	}
	assert_int_equal(seen, 0x3e);
	drv_write(d, DRV_COMMON + 20, 1, 0);
	assert_int_equal(drv_status(d), 0);
	drv_write(d, DRV_COMMON + 20, 1, 3);
	d->offered = 0;
	for (unsigned i = 0; i < 2; i++) {
		drv_write(d, DRV_COMMON + 0, 4, i);
		d->offered |= drv_read(d, DRV_COMMON + 4, 4) << (32 * i);
	}
	assert_true(d->offered & VIRTIO_F_VERSION_1);
}

void drv_setup_queue(struct drv *d, unsigned q, uint16_t size)
{
	struct drv_queue *dq = &d->q[q];

	drv_write(d, DRV_COMMON + 22, 2, q);
	assert_true(drv_read(d, DRV_COMMON + 24, 2) >= size);
	*dq = (struct drv_queue){ .size = size,
				  .desc = DRV_RING(q),
				  .avail = DRV_RING(q) + 0x1000,
				  .used = DRV_RING(q) + 0x2000 };
	for (unsigned i = 0; i < 0x3000; i += 8) {
		uint64_t zero = 0;
		drv_poke(d, DRV_RING(q) + i, &zero, 8);
	}
	drv_write(d, DRV_COMMON + 24, 2, size);
	drv_write(d, DRV_COMMON + 32, 8, dq->desc);
	drv_write(d, DRV_COMMON + 40, 4, dq->avail);
	drv_write(d, DRV_COMMON + 44, 4, 0);
	drv_write(d, DRV_COMMON + 48, 4, dq->used);
	drv_write(d, DRV_COMMON + 52, 4, 0);
	assert_int_equal(drv_read(d, DRV_COMMON + 28, 2), 0);
	drv_write(d, DRV_COMMON + 28, 2, 1);
	assert_int_equal(drv_read(d, DRV_COMMON + 28, 2), 1);
	assert_int_equal(drv_read(d, DRV_COMMON + 30, 2), q);
}

void drv_start(struct drv *d, uint64_t want, unsigned nqueues, bool use_msix)
{
	drv_probe(d);
	d->features = ((want | VIRTIO_F_ACCESS_PLATFORM) & d->offered) | VIRTIO_F_VERSION_1;
	for (unsigned i = 0; i < 2; i++) {
		drv_write(d, DRV_COMMON + 8, 4, i);
		drv_write(d, DRV_COMMON + 12, 4, (uint32_t)(d->features >> (32 * i)));
	}
	drv_write(d, DRV_COMMON + 20, 1, 0x0b);
	assert_int_equal(drv_status(d), 0x0b);
	if (use_msix) {
		for (unsigned cap = drv_cfg_read(d, 0x34, 1); cap; cap = drv_cfg_read(d, cap + 1, 1))
			if (drv_cfg_read(d, cap, 1) == 0x11)
				drv_cfg_write(d, cap + 2, 2, 0x8000);
		for (unsigned v = 0; v <= nqueues; v++) {
			bus_write(d->t.env.bus, BUS_MMIO, d->msix + v * 16, 4, DRV_MSI_ADDR);
			bus_write(d->t.env.bus, BUS_MMIO, d->msix + v * 16 + 4, 4, 0);
			bus_write(d->t.env.bus, BUS_MMIO, d->msix + v * 16 + 8, 4, DRV_MSI_DATA(v));
			bus_write(d->t.env.bus, BUS_MMIO, d->msix + v * 16 + 12, 4, 0);
		}
		drv_write(d, DRV_COMMON + 16, 2, 0);
		assert_int_equal(drv_read(d, DRV_COMMON + 16, 2), 0);
	}
	for (unsigned q = 0; q < nqueues; q++) {
		drv_write(d, DRV_COMMON + 22, 2, q);
		drv_setup_queue(d, q, MIN(drv_read(d, DRV_COMMON + 24, 2), 128u));
		if (use_msix) {
			drv_write(d, DRV_COMMON + 26, 2, q + 1);
			assert_int_equal(drv_read(d, DRV_COMMON + 26, 2), q + 1);
		}
	}
	drv_write(d, DRV_COMMON + 20, 1, 0x0f);
	assert_int_equal(drv_status(d), 0x0f);
}

void drv_set_desc(struct drv *d, gpa_t table, unsigned i, gpa_t addr, uint32_t len, uint16_t flags,
		  uint16_t next)
{
	struct vq_desc desc = { addr, len, flags, next };

	drv_poke(d, table + i * sizeof(desc), &desc, sizeof(desc));
}

static void publish(struct drv *d, unsigned q, uint16_t head)
{
	struct drv_queue *dq = &d->q[q];

	drv_poke16(d, dq->avail + 4 + (dq->avail_idx % dq->size) * 2, head);
	drv_poke16(d, dq->avail + 2, ++dq->avail_idx);
}

uint16_t drv_add(struct drv *d, unsigned q, const struct drv_buf *bufs, unsigned n)
{
	struct drv_queue *dq = &d->q[q];
	uint16_t head = dq->next_desc;

	for (unsigned i = 0; i < n; i++) {
		uint16_t at = dq->next_desc, next = (at + 1) % dq->size;
		drv_set_desc(d, dq->desc, at, bufs[i].gpa, bufs[i].len,
			     (i + 1 < n ? VQ_DESC_F_NEXT : 0) | (bufs[i].is_in ? VQ_DESC_F_WRITE : 0),
			     next);
		dq->next_desc = next;
	}
	publish(d, q, head);
	return head;
}

uint16_t drv_add_indirect(struct drv *d, unsigned q, gpa_t table, const struct drv_buf *bufs, unsigned n)
{
	struct drv_queue *dq = &d->q[q];
	uint16_t head = dq->next_desc;

	for (unsigned i = 0; i < n; i++)
		drv_set_desc(d, table, i, bufs[i].gpa, bufs[i].len,
			     (i + 1 < n ? VQ_DESC_F_NEXT : 0) | (bufs[i].is_in ? VQ_DESC_F_WRITE : 0),
			     i + 1);
	drv_set_desc(d, dq->desc, head, table, n * sizeof(struct vq_desc), VQ_DESC_F_INDIRECT, 0);
	dq->next_desc = (head + 1) % dq->size;
	publish(d, q, head);
	return head;
}

void drv_kick(struct drv *d, unsigned q)
{
	drv_write(d, DRV_NOTIFY + q * 4, 2, q);
}

bool drv_used(struct drv *d, unsigned q, uint16_t *head, uint32_t *len)
{
	struct drv_queue *dq = &d->q[q];
	struct vq_used_elem e;

	if (drv_peek16(d, dq->used + 2) == dq->used_seen)
		return false;
	drv_peek(d, dq->used + 4 + (dq->used_seen % dq->size) * sizeof(e), &e, sizeof(e));
	dq->used_seen++;
	if (head)
		*head = e.id;
	if (len)
		*len = e.len;
	return true;
}
