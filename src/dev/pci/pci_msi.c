/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of PCI devices, and MSI with one vector (PCI 3.0 6.8.1): its registers are bytes of config space. */
#include <errno.h>

#include "dev/pci/pci_bus.h"

/* In the capability, with a 64-bit address: 6.8.1.3 to 6.8.1.6 */
enum { MSI_CONTROL = 2, MSI_ADDR = 4, MSI_UPPER = 8, MSI_DATA = 12, MSI_BYTES = 14 };
#define MSI_ENABLE   0x01
#define MSI_MULTIPLE 0x70 /* how many vectors the guest gives: software's, one is all there is */
#define MSI_64BIT    0x80

void pci_send_msi(const struct pci_dev *d, uint64_t addr, uint32_t data)
{
	struct iommu *u = d->dma.iommu;

	if (u)
		u->ops->msi(u, d->dma.source_id, addr, data);
	else
		d->bus->env.msi.send(d->bus->env.msi.ctx, addr, data);
}

static uint32_t get(const struct pci_dev *d, unsigned reg, unsigned size)
{
	return pci_config_get(d, (unsigned)d->msi_cap + reg, size);
}

bool pci_msi_enabled(const struct pci_dev *d)
{
	return d->msi_cap && (get(d, MSI_CONTROL, 1) & MSI_ENABLE);
}

void pci_msi_notify(struct pci_dev *d)
{
	if (pci_msi_enabled(d) && pci_is_bus_master(d))
		pci_send_msi(d, get(d, MSI_ADDR, 4) | (uint64_t)get(d, MSI_UPPER, 4) << 32,
			     get(d, MSI_DATA, 2));
}

int pci_msi_init(struct pci_dev *d)
{
	/* clang-format off */
	static const uint8_t body[MSI_BYTES - 2] = { MSI_64BIT };
	static const uint8_t wmask[MSI_BYTES - 2] = {
		MSI_ENABLE | MSI_MULTIPLE, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	};
	/* clang-format on */
	int rc;

	if (d->msi_cap)
		return -EINVAL;
	rc = pci_add_cap(d, PCI_CAP_MSI, MSI_BYTES, body, wmask);
	if (rc < 0)
		return rc;
	d->msi_cap = (unsigned)rc;
	return 0;
}
