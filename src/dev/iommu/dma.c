/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/iommu/dma.h"

#include <errno.h>

/* The guest-physical address of byte @addr; @len is cut to what lies together there. */
static int translate(const struct dma_path *p, uint64_t addr, bool is_write, gpa_t *gpa, uint64_t *len)
{
	/* No request wraps around the end of the address space. */
	if (*len - 1 > UINT64_MAX - addr)
		return -EFAULT;
	if (p->iommu)
		return p->iommu->ops->translate(p->iommu, p->source_id, addr, is_write, gpa, len);
	*gpa = addr;
	return 0;
}

int dma_read(const struct dma_path *p, uint64_t addr, void *dst, uint64_t len)
{
	for (uint64_t n; len; len -= n, addr += n, dst = (uint8_t *)dst + n) {
		gpa_t gpa;
		int r;

		n = len;
		r = translate(p, addr, false, &gpa, &n);
		if (r == 0)
			r = ram_read(p->ram, gpa, dst, n);
		if (r < 0)
			return r;
	}
	return 0;
}

int dma_write(const struct dma_path *p, uint64_t addr, const void *src, uint64_t len)
{
	for (uint64_t n; len; len -= n, addr += n, src = (const uint8_t *)src + n) {
		gpa_t gpa;
		int r;

		n = len;
		r = translate(p, addr, true, &gpa, &n);
		if (r == 0)
			r = ram_write(p->ram, gpa, src, n);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Is vector @i the continuation of the one before it? */
static bool continues(const struct iovec *iov, unsigned i)
{
	return (uint8_t *)iov[i - 1].iov_base + iov[i - 1].iov_len == iov[i].iov_base;
}

int dma_iov(const struct dma_path *p, uint64_t addr, uint64_t len, bool is_write, struct iovec *iov,
	    unsigned max, unsigned *n, unsigned *budget)
{
	unsigned used = *n, first = *n;

	for (uint64_t part; len; len -= part, addr += part) {
		unsigned before = used;
		gpa_t gpa;
		int r;

		if (!*budget)
			return -E2BIG;
		--*budget;
		part = len;
		r = translate(p, addr, is_write, &gpa, &part);
		if (r == 0)
			r = ram_iov(p->ram, gpa, part, is_write, iov, max, &used);
		if (r < 0)
			return r;
		if (before > first && continues(iov, before)) {
			iov[before - 1].iov_len += iov[before].iov_len;
			for (unsigned i = before + 1; i < used; i++)
				iov[i - 1] = iov[i];
			used--;
		}
	}
	*n = used;
	return 0;
}

void *dma_ptr(const struct dma_path *p, uint64_t addr, uint64_t len, bool is_write)
{
	uint64_t together = len;
	struct iovec iov;
	unsigned n = 0;
	gpa_t gpa;

	if (translate(p, addr, is_write, &gpa, &together) < 0 || together < len ||
	    ram_iov(p->ram, gpa, len, is_write, &iov, 1, &n) < 0)
		return NULL;
	return iov.iov_base;
}
