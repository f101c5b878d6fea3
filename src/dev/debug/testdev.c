/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/debug/testdev.h"

#include <errno.h>
#include <string.h>

#define PORT_ECHO  0xe0
#define PORT_FLUSH 0xe4
#define PORT_BYTES 0xe8
#define PORT_IRQ   0x2000
#define IRQ_LINES  24

static uint64_t copy_out(const uint8_t *from, unsigned size)
{
	uint64_t v = 0;

	memcpy(&v, from, size);
	return v;
}

static uint64_t echo_read(void *dev, uint64_t offset, unsigned size)
{
	return copy_out(((struct testdev *)dev)->echo + offset, size);
}

static void echo_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	memcpy(((struct testdev *)dev)->echo + offset, &value, size);
}

static uint64_t flush_read(void *dev, uint64_t offset, unsigned size)
{
	return UINT64_MAX;
}

/* "Make the page at this address fault once": invisible to the guest, so there is nothing to do. */
static void flush_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
}

static uint64_t bytes_read(void *dev, uint64_t offset, unsigned size)
{
	return copy_out(((struct testdev *)dev)->bytes + offset, size);
}

static void bytes_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	memcpy(((struct testdev *)dev)->bytes + offset, &value, size);
}

static uint64_t irq_read(void *dev, uint64_t offset, unsigned size)
{
	return 0;
}

static void irq_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *t = dev;

	if (t->irq.set)
		t->irq.set(t->irq.ctx, (unsigned)offset, value != 0);
}

static uint64_t iomem_read(void *dev, uint64_t offset, unsigned size)
{
	return copy_out(((struct testdev *)dev)->iomem + offset, size);
}

static void iomem_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	memcpy(((struct testdev *)dev)->iomem + offset, &value, size);
}

static const struct bus_ops echo_ops = { echo_read, echo_write };
static const struct bus_ops flush_ops = { flush_read, flush_write };
static const struct bus_ops bytes_ops = { bytes_read, bytes_write };
static const struct bus_ops irq_ops = { irq_read, irq_write };
static const struct bus_ops iomem_ops = { iomem_read, iomem_write };

// clang-format off
static const struct field fields[] = {
	F_HOST(struct testdev, dev),
	F_HOST(struct testdev, env),
	F_HOST(struct testdev, irq),
	F_HOST(struct testdev, ranges),
	F_BYTES(struct testdev, echo),
	F_BYTES(struct testdev, bytes),
	F_HOST(struct testdev, pad_),
	F_BYTES(struct testdev, iomem),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "testdev",
	.version = 1,
	.size = sizeof(struct testdev),
	.fields = fields,
};

static void reset(struct device *d)
{
	struct testdev *t = container_of(d, struct testdev, dev);

	memset(t->echo, 0, sizeof(t->echo));
	memset(t->bytes, 0, sizeof(t->bytes));
	memset(t->iomem, 0, sizeof(t->iomem));
}

static void destroy(struct device *d)
{
	struct testdev *t = container_of(d, struct testdev, dev);

	for (unsigned i = 0; i < ARRAY_SIZE(t->ranges); i++)
		bus_remove(t->env.bus, t->ranges[i]);
	free(t);
}

const struct device_class testdev_class = {
	.name = "testdev",
	.state = &desc,
	.reset = reset,
	.destroy = destroy,
};

int testdev_create(struct testdev **out, const struct dev_env *env, struct irq_line gsi, struct error *err)
{
	static const struct {
		enum bus_space space;
		uint64_t base, len;
		const struct bus_ops *ops;
	} parts[] = {
		{ BUS_PIO, PORT_ECHO, 4, &echo_ops },
		{ BUS_PIO, PORT_FLUSH, 4, &flush_ops },
		{ BUS_PIO, PORT_BYTES, 1, &bytes_ops },
		{ BUS_PIO, PORT_IRQ, IRQ_LINES, &irq_ops },
		{ BUS_MMIO, TESTDEV_IOMEM, 4096, &iomem_ops },
	};
	struct testdev *t = calloc(1, sizeof(*t));
	int rc = 0;

	_Static_assert(ARRAY_SIZE(parts) == ARRAY_SIZE(t->ranges), "a handle a range");
	if (!t)
		return error_set(err, -ENOMEM, "no memory for the test device");
	device_init(&t->dev, &testdev_class, "testdev");
	t->env = *env;
	t->irq = gsi;
	for (unsigned i = 0; i < ARRAY_SIZE(parts) && !rc; i++)
		rc = bus_add(env->bus, parts[i].space, parts[i].base, parts[i].len, 0, parts[i].ops,
			     t, &t->ranges[i]);
	if (rc) {
		destroy(&t->dev);
		return error_set(err, rc, "the test device's addresses are taken");
	}
	*out = t;
	return 0;
}
