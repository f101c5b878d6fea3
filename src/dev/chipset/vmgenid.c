/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/chipset/vmgenid.h"

#include <errno.h>
#include <string.h>

static uint64_t id_read(void *dev, uint64_t offset, unsigned size)
{
	const struct vmgenid *v = dev;
	uint64_t value = 0;

	memcpy(&value, v->id + offset, size); /* the bus keeps it inside the range */
	return value;
}

static void id_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	log_guest("vmgenid", "write of %#llx to the generation ID", (unsigned long long)value);
}

static const struct bus_ops id_ops = { id_read, id_write };

void vmgenid_set(struct vmgenid *v, const uint8_t id[VMGENID_BYTES])
{
	memcpy(v->id, id, VMGENID_BYTES);
	acpi_pm_gpe(v->pm, VMGENID_GPE);
}

/* It is the machine's, not the guest's: a reset changes nothing. */
static void reset(struct device *d)
{
	(void)d;
}

static void destroy(struct device *d)
{
	struct vmgenid *v = container_of(d, struct vmgenid, dev);

	bus_remove(v->env.bus, v->range);
	free(v);
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct vmgenid, dev),
	F_HOST(struct vmgenid, env),
	F_HOST(struct vmgenid, pm),
	F_HOST(struct vmgenid, range),
	F_BYTES(struct vmgenid, id),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "vmgenid",
	.version = 1,
	.size = sizeof(struct vmgenid),
	.fields = fields,
};

const struct device_class vmgenid_class = {
	.name = "vmgenid",
	.state = &desc,
	.reset = reset,
	.destroy = destroy,
	.may_be_new = true,
};

int vmgenid_create(struct vmgenid **out, const struct dev_env *env, struct acpi_pm *pm,
		   const uint8_t id[VMGENID_BYTES], struct error *err)
{
	struct vmgenid *v = calloc(1, sizeof(*v));

	if (!v)
		return error_set(err, -ENOMEM, "no memory for the generation ID");
	device_init(&v->dev, &vmgenid_class, "vmgenid");
	v->env = *env;
	v->pm = pm;
	memcpy(v->id, id, VMGENID_BYTES);
	int r = bus_add(env->bus, BUS_MMIO, vmgenid_base(env->iommu), VMGENID_BYTES, 0, &id_ops, v,
			&v->range);

	if (r < 0) {
		free(v);
		return error_set(err, r, "cannot place the generation ID: %s", strerror(-r));
	}
	*out = v;
	return 0;
}
