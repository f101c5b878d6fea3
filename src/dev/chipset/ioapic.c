/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IOAPIC.  A level-triggered pin sends while its line is asserted and remote IRR is clear, an edge-triggered one
 * on a rising edge seen while unmasked (82093AA 3.2.4: masked edges are lost).
 */
#include "dev/chipset/ioapic.h"

#include <errno.h>

#include "dev/chipset/apic_msg.h"
#include "dev/iommu/dma.h"

#define VERSION (0x20u | (IOAPIC_PINS - 1) << 16)

#define RED_REMOTE_IRR (1ull << 14)
#define RED_STATUS     (1ull << 12)
#define RED_LEVEL      (1ull << 15)
#define RED_MASKED     (1ull << 16)
#define RED_WRITABLE   0xff0000000001afffull
#define RED_EXTENDED   0x00ff000000000000ull /* rest of an index, and its format */

#define MMIO_SELECT 0x00
#define MMIO_WINDOW 0x10
#define MMIO_EOI    0x40

static uint64_t writable(const struct ioapic *a)
{
	return RED_WRITABLE | (a->env.iommu ? RED_EXTENDED : 0);
}

static void send(struct ioapic *a, uint64_t r)
{
	struct apic_msg m = {
		.dest = (uint32_t)(r >> 56),
		.is_logical = r & 0x800,
		.is_level = r & RED_LEVEL,
		.is_assert = true,
		.delivery = r >> 8 & 7,
		.vector = r & 0xff,
	};
	uint64_t addr;
	uint32_t data;

	apic_msg_to_msi(&m, &addr, &data);
	if (a->env.iommu)
		a->env.iommu->ops->msi(a->env.iommu, IOAPIC_SOURCE_ID,
				       addr | (r & RED_EXTENDED) >> 44, data);
	else
		a->env.msi.send(a->env.msi.ctx, addr, data);
}

/* Send for pin @n if it is due. */
static void service(struct ioapic *a, unsigned n)
{
	uint64_t *r = &a->redir[n];

	if (!(*r & RED_LEVEL) || !(a->lines & 1u << n) || (*r & (RED_MASKED | RED_REMOTE_IRR)))
		return;
	*r |= RED_REMOTE_IRR;
	send(a, *r);
}

void ioapic_set_irq(void *ioapic, unsigned n, bool level)
{
	struct ioapic *a = ioapic;
	uint32_t bit;

	if (n >= IOAPIC_PINS)
		return;
	bit = 1u << n;
	if (level == !!(a->lines & bit))
		return;
	a->lines ^= bit;
	if (!level)
		return;
	if (a->redir[n] & RED_LEVEL)
		service(a, n);
	else if (!(a->redir[n] & RED_MASKED))
		send(a, a->redir[n]);
}

void ioapic_eoi(void *ioapic, uint8_t vector)
{
	struct ioapic *a = ioapic;

	for (unsigned n = 0; n < IOAPIC_PINS; n++) {
		uint64_t *r = &a->redir[n];

		if ((*r & 0xff) != vector || !(*r & RED_REMOTE_IRR))
			continue;
		*r &= ~RED_REMOTE_IRR;
		service(a, n);
	}
}

/* ---- registers ---- */

static uint32_t window_read(const struct ioapic *a)
{
	unsigned i = a->select - 0x10u;

	switch (a->select) {
	case 0:
	case 2: /* arbitration id: follows the id */
		return (uint32_t)a->id << 24;
	case 1:
		return VERSION;
	default:
		if (i < 2 * IOAPIC_PINS)
			return (uint32_t)(a->redir[i / 2] >> (i & 1) * 32);
		log_guest("ioapic", "read of register %#x", a->select);
		return 0;
	}
}

static void redir_write(struct ioapic *a, unsigned n, unsigned half, uint32_t v)
{
	uint64_t old = a->redir[n], mask = (uint64_t)UINT32_MAX << half * 32 & writable(a);
	uint64_t r = (old & ~mask) | ((uint64_t)v << half * 32 & mask);

	/* remote IRR has no meaning for edges */
	if (!(r & RED_LEVEL))
		r &= ~RED_REMOTE_IRR;
	a->redir[n] = r;
	service(a, n);
}

static void window_write(struct ioapic *a, uint32_t v)
{
	unsigned i = a->select - 0x10u;

	if (a->select == 0)
		a->id = v >> 24 & 0xf;
	else if (a->select >= 0x10 && i < 2 * IOAPIC_PINS)
		redir_write(a, i / 2, i & 1, v);
	else
		log_guest("ioapic", "write of register %#x", a->select);
}

static uint64_t mmio_read(void *dev, uint64_t offset, unsigned size)
{
	const struct ioapic *a = dev;
	unsigned byte = offset & 0xf;
	uint32_t v = 0;

	if ((offset & 0xff0) == MMIO_SELECT)
		v = a->select;
	else if ((offset & 0xff0) == MMIO_WINDOW)
		v = window_read(a);
	return byte < 4 ? v >> byte * 8 : 0;
}

static void mmio_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct ioapic *a = dev;

	if (offset == MMIO_SELECT)
		a->select = (uint8_t)value;
	else if (offset == MMIO_WINDOW && size >= 4)
		window_write(a, (uint32_t)value);
	else if (offset == MMIO_EOI)
		ioapic_eoi(a, (uint8_t)value);
	else
		log_guest("ioapic", "write of %u bytes at %#llx", size, (unsigned long long)offset);
}

static const struct bus_ops mmio_ops = { mmio_read, mmio_write };

/* ---- life cycle ---- */

static int check(const void *obj, struct error *err)
{
	const struct ioapic *a = obj;

	for (unsigned n = 0; n < IOAPIC_PINS; n++) {
		uint64_t r = a->redir[n];

		if ((r & ~(writable(a) | RED_REMOTE_IRR)) || ((r & RED_REMOTE_IRR) && !(r & RED_LEVEL)))
			return error_set(err, -EINVAL, "IOAPIC pin %u is in an impossible state", n);
	}
	if (a->lines >> IOAPIC_PINS || a->id > 15)
		return error_set(err, -EINVAL, "IOAPIC state is impossible");
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct ioapic, dev),
	F_HOST(struct ioapic, env),
	F_HOST(struct ioapic, range),
	F_ARRAY(FIELD_U64, struct ioapic, redir),
	F_U32(struct ioapic, lines),
	F_U8(struct ioapic, id),
	F_U8(struct ioapic, select),
	F_HOST(struct ioapic, pad_),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "ioapic",
	.version = 1,
	.size = sizeof(struct ioapic),
	.fields = fields,
	.check = check,
};

static void reset(struct device *d)
{
	struct ioapic *a = container_of(d, struct ioapic, dev);

	for (unsigned n = 0; n < IOAPIC_PINS; n++)
		a->redir[n] = RED_MASKED;
	a->id = 0;
	a->select = 0;
}

static void destroy(struct device *d)
{
	struct ioapic *a = container_of(d, struct ioapic, dev);

	bus_remove(a->env.bus, a->range);
	free(a);
}

const struct device_class ioapic_class = {
	.name = "ioapic",
	.state = &desc,
	.reset = reset,
	.destroy = destroy,
};

int ioapic_create(struct ioapic **out, const struct dev_env *env, struct error *err)
{
	struct ioapic *a = calloc(1, sizeof(*a));
	int rc;

	if (!a)
		return error_set(err, -ENOMEM, "no memory for the IOAPIC");
	device_init(&a->dev, &ioapic_class, "ioapic");
	a->env = *env;
	rc = bus_add(env->bus, BUS_MMIO, IOAPIC_BASE, 4096, 0, &mmio_ops, a, &a->range);
	if (rc) {
		free(a);
		return error_set(err, rc, "the IOAPIC's address is taken");
	}
	reset(&a->dev);
	*out = a;
	return 0;
}
