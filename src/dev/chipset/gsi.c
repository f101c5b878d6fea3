/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/gsi.h"

#include <errno.h>

#include "dev/chipset/ioapic.h"
#include "dev/chipset/pic.h"

unsigned gsi_pic_input(unsigned n)
{
	return n < GSI_PCI_BASE ? n : 10 + ((n - 1) >> 1 & 1);
}

static unsigned ioapic_pin(unsigned n)
{
	return n == 0 ? 2 : n;
}

/* An ISA IRQ is the wired or of all lines on it; IOAPIC pin 0 has no line, pin 2 is IRQ 0's: IRQ 2 is the PICs' cascade. */
static void drive_isa(struct gsi *g, unsigned input)
{
	bool level = false;

	for (unsigned n = 0; n < GSI_COUNT; n++)
		level |= gsi_pic_input(n) == input && (g->levels >> n & 1);
	pic_set_irq(g->pic, input, level);
	if (input != 2)
		ioapic_set_irq(g->ioapic, ioapic_pin(input), level);
}

void gsi_set(void *gsi, unsigned n, bool level)
{
	struct gsi *g = gsi;

	if (n >= GSI_COUNT)
		return;
	g->levels = level ? g->levels | 1u << n : g->levels & ~(1u << n);
	drive_isa(g, gsi_pic_input(n));
	if (n >= GSI_PCI_BASE)
		ioapic_set_irq(g->ioapic, n, level);
}

static int check(const void *obj, struct error *err)
{
	const struct gsi *g = obj;

	if (g->levels >> GSI_COUNT)
		return error_set(err, -EINVAL, "interrupt lines beyond %u", GSI_COUNT);
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct gsi, dev),
	F_HOST(struct gsi, pic),
	F_HOST(struct gsi, ioapic),
	F_U32(struct gsi, levels),
	F_HOST(struct gsi, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "gsi",
	.version = 1,
	.size = sizeof(struct gsi),
	.fields = fields,
	.check = check,
};

/* Levels are what the devices drive: their own resets lower them. */
static void reset(struct device *d)
{
}

static void destroy(struct device *d)
{
	free(container_of(d, struct gsi, dev));
}

const struct device_class gsi_class = {
	.name = "gsi",
	.state = &desc,
	.reset = reset,
	.destroy = destroy,
};

int gsi_create(struct gsi **out, const struct dev_env *env, struct pic *pic, struct ioapic *ioapic,
	       struct error *err)
{
	struct gsi *g = calloc(1, sizeof(*g));

	if (!g)
		return error_set(err, -ENOMEM, "no memory for the interrupt lines");
	device_init(&g->dev, &gsi_class, "gsi");
	g->pic = pic;
	g->ioapic = ioapic;
	*out = g;
	return 0;
}
