/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/pci/pci_host.h"

#include <errno.h>
#include <string.h>

#include "dev/pci/pci_bus.h"

#define RESET_CPU  0x04
#define RESET_BITS 0x0a /* system reset, full reset: remembered */

#define ADDRESS_BITS 0x80ffffffu

#define PAM_FIRST 0x59
#define PAM_COUNT 7
#define SMRAM	  0x72

static struct pci_dev *selected(struct pci_host *h)
{
	unsigned bus = h->address >> 16 & 0xff, slot = h->address >> 11 & 31,
		 function = h->address >> 8 & 7;

	if (!(h->address & 0x80000000) || bus)
		return NULL;
	return pci_bus_function(h->bus, slot, function);
}

/*
 * The register in config space that an access to CFCH + @port means.  Bits 1:0 of CONFIG_ADDRESS read as 0 (PCI 3.0
 * 3.2.2.3.2); where a guest writes them nevertheless, the public kvm-unit-tests do, they name the byte as the port does.
 */
static unsigned config_reg(const struct pci_host *h, uint64_t port)
{
	return (h->address & 0xff) | (unsigned)(port & 3);
}

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	struct pci_host *h = dev;

	if (offset >= 4) {
		struct pci_dev *d = selected(h);

		return d ? pci_config_read(d, config_reg(h, offset), size) : UINT32_MAX;
	}
	if (offset == 0 && size == 4)
		return h->address & ~3u;
	if (offset == 1 && size == 1)
		return h->reset_control;
	return UINT32_MAX;
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_host *h = dev;

	if (offset >= 4) {
		struct pci_dev *d = selected(h);

		if (d)
			pci_config_write(d, config_reg(h, offset), size, (uint32_t)value);
		return;
	}
	if (offset == 0 && size == 4) {
		h->address = (uint32_t)value & ADDRESS_BITS;
	} else if (offset == 1 && size == 1) {
		h->reset_control = value & RESET_BITS;
		if (value & RESET_CPU)
			h->env.request_reset(h->env.ctx);
	} else {
		log_guest("pci", "write of %u bytes to port %#x", size, 0xcf8 + (unsigned)offset);
	}
}

static const struct bus_ops port_ops = { port_read, port_write };

static int check(const void *obj, struct error *err)
{
	const struct pci_host *h = obj;

	if ((h->address & ~ADDRESS_BITS) || (h->reset_control & ~RESET_BITS))
		return error_set(err, -EINVAL, "PCI host bridge state is impossible");
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct pci_host, dev),
	F_HOST(struct pci_host, env),
	F_HOST(struct pci_host, range),
	F_HOST(struct pci_host, bus),
	F_STRUCT(struct pci_host, pci, &pci_dev_state),
	F_U32(struct pci_host, address),
	F_U8(struct pci_host, reset_control),
	F_HOST(struct pci_host, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "pci_host",
	.version = 1,
	.size = sizeof(struct pci_host),
	.fields = fields,
	.check = check,
};

static void reset(struct device *dev)
{
	struct pci_host *h = container_of(dev, struct pci_host, dev);

	pci_dev_reset(&h->pci);
	h->address = 0;
	h->reset_control = 0;
}

static void after_load(struct device *dev)
{
	pci_dev_after_load(&container_of(dev, struct pci_host, dev)->pci);
}

static void destroy(struct device *dev)
{
	struct pci_host *h = container_of(dev, struct pci_host, dev);

	pci_dev_destroy(&h->pci);
	pci_bus_destroy(h->bus);
	bus_remove(h->env.bus, h->range);
	free(h);
}

const struct device_class pci_host_class = {
	.name = "pci_host",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

int pci_host_create(struct pci_host **out, const struct dev_env *env,
		    const struct irq_line intx[PCI_INTX_LINES], struct error *err)
{
	static const struct pci_id id = {
		.vendor = 0x8086,
		.device = 0x1237,
		.subvendor = 0x1af4,
		.subdevice = 0x1100,
		.class_code = 0x060000,
		.revision = 2,
	};
	struct pci_host *h = calloc(1, sizeof(*h));
	int rc;

	if (!h)
		return error_set(err, -ENOMEM, "no memory for the PCI host bridge");
	device_init(&h->dev, &pci_host_class, "pci_host");
	h->env = *env;
	h->bus = pci_bus_create(env, intx);
	rc = h->bus ? 0 : error_set(err, -ENOMEM, "no memory for the PCI bus");
	if (!rc)
		rc = pci_dev_init(&h->pci, h->bus, 0, &id, err);
	if (!rc) {
		rc = bus_add(env->bus, BUS_PIO, 0xcf8, 8, 0, &port_ops, h, &h->range);
		if (rc)
			error_set(err, rc, "the PCI configuration ports are taken");
	}
	if (rc) {
		destroy(&h->dev);
		return rc;
	}
	h->pci.config[PCI_REG_IRQ_PIN] = h->pci.built[PCI_REG_IRQ_PIN] = 0;
	h->pci.config[PCI_REG_IRQ_LINE] = h->pci.built[PCI_REG_IRQ_LINE] = 0;
	memset(h->pci.wmask + PAM_FIRST, 0x33, PAM_COUNT);
	h->pci.wmask[SMRAM] = 0x7f;
	*out = h;
	return 0;
}

struct pci_bus *pci_host_bus(struct pci_host *h)
{
	return h->bus;
}
