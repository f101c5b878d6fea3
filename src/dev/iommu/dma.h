/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a PCI device reaches memory: the one door for its DMA, with or without an IOMMU in between.
 *
 *   device --dma_read, dma_write, dma_iov--> [iommu->ops->translate] --> guest RAM (mem/ram.h)
 *   device --pci_send_msi-----------------> [iommu->ops->msi] --------> local APICs
 *
 * Without an IOMMU (path->iommu NULL) these are ram_read() and its like, and a device on a hot path may call those
 * itself.  With one, every access is translated at that moment: nobody but the IOMMU keeps a translation, so a page that
 * the guest takes away from a device is gone with the next access.  The exception are vectors of dma_iov(): they
 * are host addresses and stay what they are while a request is under way.
 *
 * All under the machine's lock.
 */
#ifndef VIV_DEV_IOMMU_DMA_H
#define VIV_DEV_IOMMU_DMA_H

#include <sys/uio.h>

#include "mem/ram.h"

struct iommu;

struct iommu_ops {
	/*
	 * Where does byte @addr of requester @source_id lie?  @len: at least 1; cut to what lies together from there.
	 * Returns 0, or -EFAULT: the request is refused, and the IOMMU has noted the fault.
	 */
	int (*translate)(struct iommu *u, uint16_t source_id, uint64_t addr, bool is_write,
			 gpa_t *gpa, uint64_t *len);
	/* A message of requester @source_id, a write of 4 bytes to FEEx_xxxxH; a refused one vanishes. */
	void (*msi)(struct iommu *u, uint16_t source_id, uint64_t addr, uint32_t data);
};

/* First member of an IOMMU's public part. */
struct iommu {
	const struct iommu_ops *ops;
};

struct dma_path {
	struct guest_ram *ram;
	struct iommu *iommu; /* NULL: addresses are guest-physical */
	uint16_t source_id;  /* bus << 8 | slot << 3 | function */
	uint8_t pad_[6];
};

/* 0 or -EFAULT: part of the range is refused or no RAM; what lies before it may have been copied. */
int dma_read(const struct dma_path *p, uint64_t addr, void *dst, uint64_t len);
int dma_write(const struct dma_path *p, uint64_t addr, const void *src, uint64_t len);

/**
 * dma_iov() - a range as at most @max host vectors (appends at *@n; neighbours become one).
 * @is_write: the device writes; the caller calls ram_note_write_ptr afterwards
 * @budget: how many translations it may take, lowered by those it took
 * Returns 0, -EFAULT, or -E2BIG: too many vectors or translations.
 */
int dma_iov(const struct dma_path *p, uint64_t addr, uint64_t len, bool is_write, struct iovec *iov,
	    unsigned max, unsigned *n, unsigned *budget);

/** dma_ptr() - the host address of [@addr, +@len), for this access only; NULL unless one
 * translation covers it and it is RAM. */
void *dma_ptr(const struct dma_path *p, uint64_t addr, uint64_t len, bool is_write);

#endif
