/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For unit tests: the guest's side of virtio.  A machine with a PCI bus, one virtio device on it, and a
 * driver that talks to it as a guest would: config ports, BARs, rings in guest RAM.
 */
#ifndef VIV_DEV_VIRTIO_DRIVER_TESTING_H
#define VIV_DEV_VIRTIO_DRIVER_TESTING_H

#include "dev/pci/pci_host.h"
#include "dev/testing.h"
#include "dev/virtio/virtio.h"

/* Guest RAM: rings from 64 KiB on, 16 KiB a queue; free for buffers from 512 KiB on (of 1 MiB). */
#define DRV_RING(q)	(0x10000u + (q)*0x4000u)
#define DRV_BUFFERS	0x80000u
#define DRV_MSI_ADDR	0xfee00000u
#define DRV_MSI_DATA(v) (0x40u + (v))

struct drv_queue {
	uint16_t size, avail_idx, used_seen;
	uint16_t next_desc; /* simple round robin: tests stay below size */
	gpa_t desc, avail, used;
};

/* An IOMMU that leads each page of RAM to its neighbour: what lies together for the driver does not in memory. */
struct drv_iommu {
	struct iommu iommu;
	struct drv *d;
	uint64_t hole;	   /* page that it refuses, by its first byte; UINT64_MAX: none */
	uint64_t no_write; /* the same for writes */
	unsigned refused;
};

/* Every device of the tests that follow stands behind one. */
extern bool drv_use_iommu;

struct drv {
	struct test_env t;
	struct drv_iommu u;
	struct dma_path path; /* as the driver sees memory: through the IOMMU, if there is one */
	struct pci_host *host;
	unsigned slot;
	uint64_t regs; /* BAR 4 */
	uint64_t msix; /* BAR 1 */
	uint64_t offered, features;
	struct drv_queue q[VIRTIO_QUEUES_MAX];
};

struct drv_buf {
	gpa_t gpa;
	uint32_t len;
	bool is_in;
};

void drv_init(struct drv *d);			  /* bus only; make the device on drv_bus() then */
void drv_fini(struct drv *d, struct device *dev); /* destroys @dev, may be NULL */
struct pci_bus *drv_bus(struct drv *d);

/** drv_probe() - assign BARs, find the capabilities, reset, read the features. */
void drv_probe(struct drv *d);
/** drv_start() - negotiate @want of the offered features, set up @nqueues queues, DRIVER_OK. */
void drv_start(struct drv *d, uint64_t want, unsigned nqueues, bool use_msix);
void drv_setup_queue(struct drv *d, unsigned q, uint16_t size);

uint32_t drv_cfg_read(struct drv *d, unsigned offset, unsigned size);
void drv_cfg_write(struct drv *d, unsigned offset, unsigned size, uint32_t v);
uint64_t drv_read(struct drv *d, unsigned offset, unsigned size); /* in BAR 4 */
void drv_write(struct drv *d, unsigned offset, unsigned size, uint64_t v);
#define DRV_COMMON 0x0000
#define DRV_ISR	   0x1000
#define DRV_CONFIG 0x2000
#define DRV_NOTIFY 0x3000

/** drv_add() - put a chain into the available ring (visible at once).  Returns its head. */
uint16_t drv_add(struct drv *d, unsigned q, const struct drv_buf *bufs, unsigned n);
/** drv_add_indirect() - the same by one indirect descriptor, its table at @table. */
uint16_t drv_add_indirect(struct drv *d, unsigned q, gpa_t table, const struct drv_buf *bufs, unsigned n);
void drv_kick(struct drv *d, unsigned q);
/** drv_used() - next used element; false: none. */
bool drv_used(struct drv *d, unsigned q, uint16_t *head, uint32_t *len);

void drv_poke(struct drv *d, gpa_t gpa, const void *src, size_t len);
void drv_peek(struct drv *d, gpa_t gpa, void *dst, size_t len);
uint16_t drv_peek16(struct drv *d, gpa_t gpa);
void drv_poke16(struct drv *d, gpa_t gpa, uint16_t v);
uint8_t drv_peek8(struct drv *d, gpa_t gpa);

/** drv_run() - a group of tests twice: without an IOMMU, and behind one.  Returns how many failed. */
#define drv_run(tests)                                                                             \
	({                                                                                         \
		int failed_ = cmocka_run_group_tests(tests, NULL, NULL);                           \
		drv_use_iommu = true;                                                              \
		failed_ + cmocka_run_group_tests(tests, NULL, NULL);                               \
	})

/* Features that a driver must take. */
#define DRV_MUST (VIRTIO_F_VERSION_1 | (drv_use_iommu ? VIRTIO_F_ACCESS_PLATFORM : 0))

/** drv_set_desc() - a raw descriptor. */
void drv_set_desc(struct drv *d, gpa_t table, unsigned i, gpa_t addr, uint32_t len, uint16_t flags,
		  uint16_t next);
/** drv_status() - the device's status register. */
uint8_t drv_status(struct drv *d);

#endif
