/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/pci/pci_bus.h"

#include <errno.h>
#include <string.h>

#include "dev/chipset/gsi.h"

struct pci_bus *pci_bus_create(const struct dev_env *env, const struct irq_line intx[PCI_INTX_LINES])
{
	struct pci_bus *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->env = *env;
	memcpy(b->intx, intx, sizeof(b->intx));
	return b;
}

void pci_bus_destroy(struct pci_bus *b)
{
	free(b);
}

struct pci_dev *pci_bus_function(struct pci_bus *b, unsigned slot, unsigned function)
{
	return slot < PCI_SLOTS && function < PCI_FUNCTIONS ? b->devs[slot * PCI_FUNCTIONS + function]
							    : NULL;
}

struct pci_dev *pci_bus_dev(struct pci_bus *b, unsigned slot)
{
	return pci_bus_function(b, slot, 0);
}

unsigned pci_intx_index(unsigned slot, unsigned pin)
{
	return (slot + pin) % PCI_INTX_LINES;
}

unsigned pci_pic_input(unsigned slot)
{
	return gsi_pic_input(GSI_PCI_BASE + pci_intx_index(slot, 0));
}

void pci_bus_drive_intx(struct pci_dev *d, bool level)
{
	struct pci_bus *b = d->bus;
	unsigned line = pci_intx_index((unsigned)d->slot, 0);
	uint8_t bit = (uint8_t)(1u << d->function), any = 0;

	if (level)
		b->intx_levels[d->slot] |= bit;
	else
		b->intx_levels[d->slot] &= (uint8_t)~bit;
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
		if (pci_intx_index(slot, 0) == line)
			any |= b->intx_levels[slot];
	irq_set(&b->intx[line], any);
}

/* ---- BAR mapping ---- */

/* Where the BAR wants to be on the machine's bus; 0: nowhere. */
static uint64_t wanted_address(const struct pci_dev *d, unsigned idx)
{
	const struct pci_bar *bar = &d->bar[idx];
	uint32_t command = pci_config_get(d, PCI_REG_COMMAND, 2);
	uint64_t addr, last;

	if (!bar->flags)
		return 0;
	addr = pci_config_get(d, PCI_REG_BAR0 + 4 * idx, 4);
	if (bar->flags & PCI_BAR_IO) {
		addr &= ~3ull;
		last = addr + bar->size_bytes - 1;
		return (command & PCI_CMD_IO) && last < 0x10000 ? addr : 0;
	}
	addr &= ~15ull;
	if (bar->flags & PCI_BAR_MEM64)
		addr |= (uint64_t)pci_config_get(d, PCI_REG_BAR0 + 4 * idx + 4, 4) << 32;
	last = addr + bar->size_bytes - 1;
	if (!(command & PCI_CMD_MEM) || last < addr)
		return 0;
	/* the values while a guest sizes the BAR; the top of 4G is the firmware's */
	if (last == UINT32_MAX || last >= 1ull << 52)
		return 0;
	return addr;
}

static void map(struct pci_bar *bar, uint64_t addr)
{
	enum bus_space space = bar->flags & PCI_BAR_IO ? BUS_PIO : BUS_MMIO;
	int rc = bus_add(bar->dev->bus->env.bus, space, addr, bar->size_bytes, 0, bar->ops,
			 bar->opaque, &bar->range);

	if (rc) {
		bar->range = NULL;
		log_guest("pci", "slot %u: BAR at %#llx+%#llx is not mapped: %s",
			  (unsigned)bar->dev->slot, (unsigned long long)addr,
			  (unsigned long long)bar->size_bytes, strerror(-rc));
		return;
	}
	bar->mapped_at = addr;
}

static void unmap(struct pci_bar *bar)
{
	bus_remove(bar->dev->bus->env.bus, bar->range);
	bar->range = NULL;
	bar->mapped_at = 0;
}

void pci_bus_remap(struct pci_bus *b)
{
	/* All that leave first, so that BARs may swap places. */
	for (unsigned n = 0; n < b->devs_end; n++) {
		struct pci_dev *d = b->devs[n];

		for (unsigned i = 0; d && i < PCI_BARS; i++)
			if (d->bar[i].range && d->bar[i].mapped_at != wanted_address(d, i))
				unmap(&d->bar[i]);
	}
	for (unsigned n = 0; n < b->devs_end; n++) {
		struct pci_dev *d = b->devs[n];

		for (unsigned i = 0; d && i < PCI_BARS; i++) {
			uint64_t addr = wanted_address(d, i);

			if (addr && !d->bar[i].range)
				map(&d->bar[i], addr);
		}
	}
}

uint64_t pci_bar_address(const struct pci_dev *d, unsigned idx)
{
	return idx < PCI_BARS && d->bar[idx].range ? d->bar[idx].mapped_at : 0;
}

/* ---- what firmware does ---- */

static int assign(struct pci_dev *d, unsigned idx, uint64_t *next, uint64_t end)
{
	const struct pci_bar *bar = &d->bar[idx];
	uint64_t addr = ALIGN_UP(*next, bar->size_bytes);

	if (addr + bar->size_bytes - 1 > end)
		return -ENOSPC;
	pci_config_write(d, PCI_REG_BAR0 + 4 * idx, 4, (uint32_t)addr);
	if (bar->flags & PCI_BAR_MEM64)
		pci_config_write(d, PCI_REG_BAR0 + 4 * idx + 4, 4, (uint32_t)(addr >> 32));
	*next = addr + bar->size_bytes;
	return 0;
}

int pci_bus_assign(struct pci_bus *b, struct error *err)
{
	uint64_t next_io = PCI_IO_BASE, next_mem = PCI_MMIO_BASE;

	/* Large ones first: no holes. */
	for (unsigned shift = 40; shift >= 2; shift--) {
		for (unsigned n = 0; n < b->devs_end; n++) {
			struct pci_dev *d = b->devs[n];

			for (unsigned i = 0; d && i < PCI_BARS; i++) {
				bool is_io = d->bar[i].flags & PCI_BAR_IO;
				int rc;

				if (!d->bar[i].flags || d->bar[i].size_bytes != 1ull << shift)
					continue;
				rc = is_io ? assign(d, i, &next_io, PCI_IO_END)
					   : assign(d, i, &next_mem, PCI_MMIO_END);
				if (rc)
					return error_set(err, rc,
							 "no room in PCI address space for slot %u",
							 n / PCI_FUNCTIONS);
			}
		}
	}
	for (unsigned n = 0; n < b->devs_end; n++) {
		struct pci_dev *d = b->devs[n];

		if (d)
			pci_config_write(d, PCI_REG_COMMAND, 2,
					 pci_config_get(d, PCI_REG_COMMAND, 2) | PCI_CMD_IO | PCI_CMD_MEM);
	}
	return 0;
}
