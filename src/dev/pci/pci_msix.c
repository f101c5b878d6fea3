/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MSI-X (PCI 3.0 6.8.2): table at 0, pending bits at 800H of a 4 KiB BAR.
 *
 * A vector is sent at once, or waits as a pending bit while anything holds it back: its own mask bit, the
 * function mask, or bus mastering off (a message is a memory write).
 */
#include <errno.h>
#include <string.h>

#include "dev/pci/pci_bus.h"

_Static_assert(sizeof(struct pci_msix_entry) == 16, "the table's layout is the specification's");
_Static_assert(PCI_MSIX_MAX * 16 <= MSIX_PBA_OFFSET, "table and PBA do not overlap");
_Static_assert(PCI_MSIX_MAX <= 64, "pending bits are one u64");

static uint16_t control(const struct pci_dev *d)
{
	return d->msix_cap ? (uint16_t)pci_config_get(d, (unsigned)d->msix_cap + 2, 2) : 0;
}

bool pci_msix_enabled(const struct pci_dev *d)
{
	return control(d) & MSIX_ENABLE;
}

static bool is_held_back(const struct pci_dev *d, unsigned vector)
{
	return (control(d) & MSIX_MASK_ALL) || (d->msix[vector].ctrl & 1) || !pci_is_bus_master(d);
}

void pci_msix_notify(struct pci_dev *d, unsigned vector)
{
	if (vector >= d->nmsix) {
		log_guest("pci", "slot %u: MSI-X vector %u of %u", (unsigned)d->slot, vector,
			  (unsigned)d->nmsix);
		return;
	}
	if (!pci_msix_enabled(d))
		return;
	if (is_held_back(d, vector)) {
		d->msix_pending |= 1ull << vector;
		return;
	}
	d->msix_pending &= ~(1ull << vector);
	pci_send_msi(d, d->msix[vector].addr, d->msix[vector].data);
}

/* Send what is pending and no longer held back. */
static void flush(struct pci_dev *d)
{
	for (unsigned v = 0; v < d->nmsix && d->msix_pending; v++)
		if ((d->msix_pending & 1ull << v) && !is_held_back(d, v))
			pci_msix_notify(d, v);
	if (d->msix_changed)
		d->msix_changed(d);
}

void pci_msix_control_written(struct pci_dev *d)
{
	if (!pci_msix_enabled(d))
		d->msix_pending = 0;
	flush(d);
}

void pci_msix_reset(struct pci_dev *d)
{
	memset(d->msix, 0, sizeof(d->msix));
	for (unsigned v = 0; v < d->nmsix; v++)
		d->msix[v].ctrl = 1;
	d->msix_pending = 0;
}

bool pci_msix_is_valid(const struct pci_dev *d)
{
	for (unsigned v = 0; v < PCI_MSIX_MAX; v++) {
		const struct pci_msix_entry *e = &d->msix[v];

		if (e->ctrl & ~1u)
			return false;
		if (v >= d->nmsix && (e->addr || e->data || e->ctrl))
			return false;
	}
	return d->nmsix == 64 || !(d->msix_pending >> d->nmsix);
}

/* ---- the BAR ---- */

static uint8_t table_byte(const struct pci_dev *d, uint64_t offset)
{
	if (offset < d->nmsix * 16)
		return ((const uint8_t *)d->msix)[offset];
	if (offset >= MSIX_PBA_OFFSET && offset < MSIX_PBA_OFFSET + 8)
		return (uint8_t)(d->msix_pending >> (offset - MSIX_PBA_OFFSET) * 8);
	return 0;
}

static uint64_t table_read(void *dev, uint64_t offset, unsigned size)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)table_byte(dev, offset + i) << i * 8;
	return v;
}

static void table_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_dev *d = dev;

	if ((size != 4 && size != 8) || offset % size || offset + size > d->nmsix * 16) {
		log_guest("pci", "slot %u: MSI-X table write of %u bytes at %#llx",
			  (unsigned)d->slot, size, (unsigned long long)offset);
		return;
	}
	memcpy((uint8_t *)d->msix + offset, &value, size);
	d->msix[offset / 16].ctrl &= 1;
	d->msix[offset / 16].addr &= ~3ull;
	flush(d);
}

static const struct bus_ops table_ops = { table_read, table_write };

int pci_msix_init(struct pci_dev *d, unsigned nvectors, unsigned bar)
{
	uint8_t body[10] = { 0 }, wmask[10] = { 0 };
	int rc;

	if (!nvectors || nvectors > PCI_MSIX_MAX || d->msix_cap)
		return -EINVAL;
	rc = pci_add_bar(d, bar, PCI_BAR_MEM32, 4096, &table_ops, d);
	if (rc)
		return rc;
	body[0] = (uint8_t)(nvectors - 1);
	wmask[1] = (MSIX_ENABLE | MSIX_MASK_ALL) >> 8;
	body[2] = (uint8_t)bar;
	body[6] = (uint8_t)bar;
	body[7] = MSIX_PBA_OFFSET >> 8;
	rc = pci_add_cap(d, PCI_CAP_MSIX, 12, body, wmask);
	if (rc < 0)
		return rc;
	d->msix_cap = (unsigned)rc;
	d->nmsix = nvectors;
	pci_msix_reset(d);
	return 0;
}

// clang-format off
static const struct field entry_fields[] = {
	F_U64(struct pci_msix_entry, addr),
	F_U32(struct pci_msix_entry, data),
	F_U32(struct pci_msix_entry, ctrl),
	F_END,
};
// clang-format on
const struct state_desc pci_msix_entry_desc = {
	.name = "msix-entry",
	.version = 1,
	.size = sizeof(struct pci_msix_entry),
	.fields = entry_fields,
};
