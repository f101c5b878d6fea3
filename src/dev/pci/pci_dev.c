/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "dev/pci/pci_bus.h"

/* ---- bytes ---- */

uint32_t pci_config_get(const struct pci_dev *d, unsigned offset, unsigned size)
{
	uint32_t v = 0;

	assert(size <= 4 && offset + size <= PCI_CONFIG_BYTES);
	memcpy(&v, d->config + offset, size);
	return v;
}

void pci_config_set(struct pci_dev *d, unsigned offset, unsigned size, uint32_t value)
{
	assert(size <= 4 && offset + size <= PCI_CONFIG_BYTES);
	memcpy(d->config + offset, &value, size);
}

/* While building: the power-on value too. */
static void build(struct pci_dev *d, unsigned offset, unsigned size, uint32_t value)
{
	pci_config_set(d, offset, size, value);
	memcpy(d->built + offset, &value, size);
}

static void build_writable(struct pci_dev *d, unsigned offset, unsigned size, uint32_t mask)
{
	memcpy(d->wmask + offset, &mask, size);
}

/* ---- building ---- */

int pci_dev_init_function(struct pci_dev *d, struct pci_bus *bus, int slot, unsigned function,
			  const struct pci_id *id, struct error *err)
{
	if (slot < 0) {
		for (slot = 1; slot < PCI_SLOTS && pci_bus_dev(bus, (unsigned)slot); slot++)
			;
		if (slot == PCI_SLOTS)
			return error_set(err, -ENOSPC, "all PCI slots are taken");
	}
	assert(function < PCI_FUNCTIONS);
	if (slot >= PCI_SLOTS || pci_bus_function(bus, (unsigned)slot, function))
		return error_set(err, -EEXIST, "PCI slot %d is taken", slot);
	d->bus = bus;
	d->dma = (struct dma_path){
		.ram = bus->env.ram,
		.iommu = bus->env.iommu,
		.source_id = (uint16_t)((unsigned)slot << 3 | function),
	};
	d->slot = (unsigned)slot;
	d->function = function;
	d->cap_next = 0x40;
	bus->devs[(unsigned)slot * PCI_FUNCTIONS + function] = d;
	bus->devs_end = MAX(bus->devs_end, (unsigned)slot * PCI_FUNCTIONS + function + 1);
	if (function) { /* 6.2.1: who looks for more functions reads function 0 */
		struct pci_dev *first = pci_bus_dev(bus, (unsigned)slot);

		assert(first);
		build(first, PCI_REG_HEADER, 1, PCI_HEADER_MULTI);
	}

	build(d, 0x00, 2, id->vendor);
	build(d, 0x02, 2, id->device);
	build_writable(d, PCI_REG_COMMAND, 2, PCI_CMD_WRITABLE);
	d->vmask[PCI_REG_STATUS] = PCI_STATUS_INTX;
	build(d, 0x08, 1, id->revision);
	build(d, 0x09, 1, id->class_code & 0xff);
	build(d, 0x0a, 2, id->class_code >> 8);
	build_writable(d, 0x0c, 2, 0xffff); /* cache line size, latency timer */
	build(d, 0x2c, 2, id->subvendor);
	build(d, 0x2e, 2, id->subdevice);
	build(d, PCI_REG_IRQ_LINE, 1, pci_pic_input((unsigned)slot));
	build_writable(d, PCI_REG_IRQ_LINE, 1, 0xff);
	build(d, PCI_REG_IRQ_PIN, 1, 1);
	return 0;
}

int pci_dev_init(struct pci_dev *d, struct pci_bus *bus, int slot, const struct pci_id *id,
		 struct error *err)
{
	return pci_dev_init_function(d, bus, slot, 0, id, err);
}

void pci_dev_destroy(struct pci_dev *d)
{
	if (!d->bus)
		return;
	for (unsigned i = 0; i < PCI_BARS; i++)
		bus_remove(d->bus->env.bus, d->bar[i].range);
	pci_bus_drive_intx(d, false);
	d->bus->devs[d->slot * PCI_FUNCTIONS + d->function] = NULL;
	d->bus = NULL;
}

int pci_add_cap(struct pci_dev *d, uint8_t cap_id, unsigned len, const uint8_t *body, const uint8_t *wmask)
{
	unsigned offset = (unsigned)d->cap_next, link = PCI_REG_CAP_PTR;

	assert(len >= 2);
	if (offset + len > PCI_CONFIG_BYTES)
		return -ENOSPC;
	while (d->built[link])
		link = d->built[link] + 1;
	build(d, link, 1, offset);
	build(d, PCI_REG_STATUS, 2, pci_config_get(d, PCI_REG_STATUS, 2) | PCI_STATUS_CAPS);
	build(d, offset, 1, cap_id);
	for (unsigned i = 2; i < len; i++) {
		build(d, offset + i, 1, body ? body[i - 2] : 0);
		d->wmask[offset + i] = wmask ? wmask[i - 2] : 0;
	}
	d->cap_next = ALIGN_UP(offset + len, 4);
	return (int)offset;
}

static bool is_power_of_two(uint64_t x)
{
	return x && !(x & (x - 1));
}

int pci_add_bar(struct pci_dev *d, unsigned idx, unsigned flags, uint64_t size_bytes,
		const struct bus_ops *ops, void *opaque)
{
	unsigned kind = flags & (PCI_BAR_IO | PCI_BAR_MEM32 | PCI_BAR_MEM64);
	uint64_t mask = ~(size_bytes - 1), min = 16, max = 2 * GIB;
	uint32_t low = 0;

	if (kind == PCI_BAR_IO) {
		min = 4;
		max = 256;
		low = 1;
	} else if (kind == PCI_BAR_MEM64) {
		max = 1024 * GIB;
		low = 4;
	} else if (kind != PCI_BAR_MEM32) {
		return -EINVAL;
	}
	if (flags & PCI_BAR_PREFETCH) {
		if (kind == PCI_BAR_IO)
			return -EINVAL;
		low |= 8;
	}
	if (idx >= PCI_BARS || !is_power_of_two(size_bytes) || size_bytes < min || size_bytes > max ||
	    d->bar[idx].flags || (idx && (d->bar[idx - 1].flags & PCI_BAR_MEM64)) ||
	    (kind == PCI_BAR_MEM64 && (idx + 1 == PCI_BARS || d->bar[idx + 1].flags)))
		return -EINVAL;
	d->bar[idx] = (struct pci_bar){
		.dev = d, .flags = flags, .size_bytes = size_bytes, .ops = ops, .opaque = opaque
	};
	build(d, PCI_REG_BAR0 + 4 * idx, 4, low);
	build_writable(d, PCI_REG_BAR0 + 4 * idx, 4, (uint32_t)mask);
	if (kind == PCI_BAR_MEM64)
		build_writable(d, PCI_REG_BAR0 + 4 * idx + 4, 4, (uint32_t)(mask >> 32));
	return 0;
}

/* ---- running ---- */

bool pci_is_bus_master(const struct pci_dev *d)
{
	return pci_config_get(d, PCI_REG_COMMAND, 2) & PCI_CMD_MASTER;
}

void pci_update_intx(struct pci_dev *d)
{
	bool is_off = pci_config_get(d, PCI_REG_COMMAND, 2) & PCI_CMD_INTX_OFF;

	if (d->intx_level)
		d->config[PCI_REG_STATUS] |= PCI_STATUS_INTX;
	else
		d->config[PCI_REG_STATUS] &= (uint8_t)~PCI_STATUS_INTX;
	pci_bus_drive_intx(d, d->intx_level && !is_off && !pci_msix_enabled(d) && !pci_msi_enabled(d));
}

void pci_set_intx(struct pci_dev *d, bool level)
{
	if (d->intx_level == level)
		return;
	d->intx_level = level;
	pci_update_intx(d);
}

uint32_t pci_config_read(struct pci_dev *d, unsigned offset, unsigned size)
{
	if (size > 4 || offset + size > PCI_CONFIG_BYTES)
		return UINT32_MAX;
	if (d->config_before_read)
		d->config_before_read(d, offset, size);
	return pci_config_get(d, offset, size);
}

static bool touches(unsigned offset, unsigned size, unsigned reg, unsigned reg_size)
{
	return offset < reg + reg_size && reg < offset + size;
}

void pci_config_write(struct pci_dev *d, unsigned offset, unsigned size, uint32_t value)
{
	bool has_changed = false;

	if (size > 4 || offset + size > PCI_CONFIG_BYTES)
		return;
	for (unsigned i = 0; i < size; i++) {
		uint8_t *byte = &d->config[offset + i], v = (uint8_t)(value >> i * 8);
		uint8_t old = *byte, w = d->wmask[offset + i];

		*byte = (old & (uint8_t)~w) | (v & w);
		*byte &= (uint8_t) ~(v & d->w1cmask[offset + i]);
		has_changed |= *byte != old;
	}
	if (has_changed && (touches(offset, size, PCI_REG_COMMAND, 2) ||
			    touches(offset, size, PCI_REG_BAR0, 4 * PCI_BARS)))
		pci_bus_remap(d->bus);
	if (d->msix_cap && (touches(offset, size, (unsigned)d->msix_cap + 2, 2) ||
			    touches(offset, size, PCI_REG_COMMAND, 2)))
		pci_msix_control_written(d);
	pci_update_intx(d);
	if (d->config_written)
		d->config_written(d, offset, size);
}

void pci_dev_reset(struct pci_dev *d)
{
	memcpy(d->config, d->built, sizeof(d->config));
	d->intx_level = false;
	pci_msix_reset(d);
	pci_bus_remap(d->bus);
	pci_update_intx(d);
}

void pci_dev_after_load(struct pci_dev *d)
{
	pci_bus_remap(d->bus);
	pci_update_intx(d);
}

/* ---- state ---- */

static int check(const void *obj, struct error *err)
{
	const struct pci_dev *d = obj;

	for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++) {
		uint8_t fixed = (uint8_t) ~(d->wmask[i] | d->w1cmask[i] | d->vmask[i]);

		if ((d->config[i] ^ d->built[i]) & fixed)
			return error_set(err, -EINVAL,
					 "PCI configuration byte %#x is not that of this device", i);
	}
	if (!(d->config[PCI_REG_STATUS] & PCI_STATUS_INTX) != !d->intx_level)
		return error_set(err, -EINVAL, "PCI interrupt status contradicts itself");
	if (!pci_msix_is_valid(d))
		return error_set(err, -EINVAL, "MSI-X state is impossible");
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct pci_dev, bus),
	F_HOST(struct pci_dev, bar),
	F_HOST(struct pci_dev, wmask),
	F_HOST(struct pci_dev, w1cmask),
	F_HOST(struct pci_dev, vmask),
	F_HOST(struct pci_dev, built),
	F_HOST(struct pci_dev, nmsix),
	F_HOST(struct pci_dev, slot),
	F_HOST(struct pci_dev, function),
	F_HOST(struct pci_dev, cap_next),
	F_HOST(struct pci_dev, msix_cap),
	F_HOST(struct pci_dev, msi_cap),
	F_HOST(struct pci_dev, dma),
	F_HOST(struct pci_dev, config_before_read),
	F_HOST(struct pci_dev, config_written),
	F_HOST(struct pci_dev, msix_changed),
	F_BYTES(struct pci_dev, config),
	F_STRUCT_ARRAY(struct pci_dev, msix, &pci_msix_entry_desc),
	F_U64(struct pci_dev, msix_pending),
	F_BOOL(struct pci_dev, intx_level),
	F_HOST(struct pci_dev, pad_),
	F_END,
};
// clang-format on
const struct state_desc pci_dev_state = {
	.name = "pci",
	.version = 1,
	.size = sizeof(struct pci_dev),
	.fields = fields,
	.check = check,
};
