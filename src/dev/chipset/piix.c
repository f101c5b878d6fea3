/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/piix.h"

#include <errno.h>
#include <string.h>

#include "dev/chipset/gsi.h"

/* ISA bridge */
#define REG_PIRQRC  0x60 /* PIRQ route control A to D */
#define PIRQ_OFF    0x80
#define PIRQ_FIELDS 0x8f
/* power management */
#define REG_PMBA	  0x40
#define PMBA_IS_IO	  0x01
#define PMBA_ADDRESS	  0xffc0
#define REG_PMREGMISC	  0x80
#define PMREGMISC_PMIOSE  0x01 /* the registers at PMBA are decoded */
#define REG_DEVACTB_3	  0x5b /* device activity B, bits 31-24 */
#define DEVACTB_3_APMC_EN 0x02
#define REG_IRQ_LINE	  0x3c
#define REG_IRQ_PIN	  0x3d

// clang-format off
static const struct field fields[] = {
	F_HOST(struct piix, dev),
	F_HOST(struct piix, pm),
	F_STRUCT(struct piix, isa, &pci_dev_state),
	F_STRUCT(struct piix, power, &pci_dev_state),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "piix",
	.version = 1,
	.size = sizeof(struct piix),
	.fields = fields,
};

static void update_window(struct piix *p)
{
	bool is_on = pci_config_get(&p->power, REG_PMREGMISC, 1) & PMREGMISC_PMIOSE;

	acpi_pm_set_window(p->pm, is_on ? pci_config_get(&p->power, REG_PMBA, 2) & PMBA_ADDRESS : 0);
}

static void power_written(struct pci_dev *d, unsigned offset, unsigned size)
{
	if (offset <= REG_PMREGMISC && REG_PMBA < offset + size)
		update_window(container_of(d, struct piix, power));
}

static void reset(struct device *dev)
{
	struct piix *p = container_of(dev, struct piix, dev);

	pci_dev_reset(&p->isa);
	pci_dev_reset(&p->power);
	update_window(p);
}

static void after_load(struct device *dev)
{
	struct piix *p = container_of(dev, struct piix, dev);

	pci_dev_after_load(&p->isa);
	pci_dev_after_load(&p->power);
	update_window(p);
}

static void destroy(struct device *dev)
{
	struct piix *p = container_of(dev, struct piix, dev);

	pci_dev_destroy(&p->power);
	pci_dev_destroy(&p->isa);
	free(p);
}

const struct device_class piix_class = {
	.name = "piix",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

/* A byte as it is after power-on, and which bits of it the guest may change. */
static void set_byte(struct pci_dev *d, unsigned offset, uint8_t value, uint8_t writable)
{
	d->config[offset] = d->built[offset] = value;
	d->wmask[offset] = writable;
}

static void build_isa(struct pci_dev *d)
{
	set_byte(d, REG_IRQ_PIN, 0, 0);
	set_byte(d, REG_IRQ_LINE, 0, 0);
	for (unsigned i = 0; i < 4; i++)
		set_byte(d, REG_PIRQRC + i, PIRQ_OFF, PIRQ_FIELDS);
}

static void build_power(struct pci_dev *d)
{
	set_byte(d, REG_IRQ_LINE, GSI_SCI, 0);
	set_byte(d, REG_PMBA, PMBA_IS_IO, PMBA_ADDRESS & 0xff);
	set_byte(d, REG_PMBA + 1, 0, PMBA_ADDRESS >> 8);
	set_byte(d, REG_PMREGMISC, 0, PMREGMISC_PMIOSE);
	/* There is no SMM: firmware that finds this set takes its handler for installed and does not wait for it. */
	set_byte(d, REG_DEVACTB_3, DEVACTB_3_APMC_EN, 0);
}

int piix_create(struct piix **out, struct pci_bus *bus, struct acpi_pm *pm, struct error *err)
{
	static const struct pci_id isa = {
		.vendor = 0x8086,
		.device = 0x7000,
		.subvendor = 0x1af4,
		.subdevice = 0x1100,
		.class_code = 0x060100,
	};
	static const struct pci_id power = {
		.vendor = 0x8086,
		.device = 0x7113,
		.subvendor = 0x1af4,
		.subdevice = 0x1100,
		.class_code = 0x068000,
		.revision = 3,
	};
	struct piix *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return error_set(err, -ENOMEM, "no memory for the ISA bridge");
	device_init(&p->dev, &piix_class, "piix");
	p->pm = pm;
	r = pci_dev_init(&p->isa, bus, PIIX_SLOT, &isa, err);
	if (r == 0)
		r = pci_dev_init_function(&p->power, bus, PIIX_SLOT, PIIX_FUNCTION_POWER, &power, err);
	if (r < 0) {
		destroy(&p->dev);
		return r;
	}
	build_isa(&p->isa);
	build_power(&p->power);
	p->power.config_written = power_written;
	*out = p;
	return 0;
}
