/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/debug/edu.h"

#include <errno.h>
#include <string.h>

#define IDENTIFICATION 0x010000edu
#define BAR_BYTES      MIB

/* clang-format off */
enum {
	REG_ID = 0x00, REG_LIVENESS = 0x04, REG_FACTORIAL = 0x08, REG_STATUS = 0x20, REG_INTR_STATUS = 0x24,
	REG_INTR_RAISE = 0x60, REG_INTR_ACK = 0x64, REG_SOURCE = 0x80, REG_DESTINATION = 0x88, REG_COUNT = 0x90,
	REG_COMMAND = 0x98, REG_WIDE = REG_SOURCE,
};
/* clang-format on */

enum { STATUS_COMPUTING = 0x01, STATUS_INTERRUPT = 0x80 };
enum { COMMAND_START = 1, COMMAND_TO_MEMORY = 2, COMMAND_INTERRUPT = 4, COMMAND_MASK = 7 };
enum { INTR_FACTORIAL = 0x001, INTR_DMA = 0x100 };

/* ---- interrupts ---- */

static void raise(struct edu *e, uint32_t value)
{
	e->interrupts |= value;
	if (!e->interrupts)
		return;
	if (pci_msi_enabled(&e->pci))
		pci_msi_notify(&e->pci);
	pci_set_intx(&e->pci, true); /* seen only while MSI is off */
}

static void acknowledge(struct edu *e, uint32_t value)
{
	e->interrupts &= ~value;
	if (!e->interrupts)
		pci_set_intx(&e->pci, false);
}

/* ---- work ---- */

static bool is_computing(const struct edu *e)
{
	return e->status & STATUS_COMPUTING;
}

static bool is_transferring(const struct edu *e)
{
	return e->command & COMMAND_START;
}

/* n! modulo 2^32; from 34! on it is 0, having 32 factors of two. */
static uint32_t factorial(uint32_t n)
{
	uint32_t product = 1;

	if (n >= 34)
		return 0;
	for (; n > 1; n--)
		product *= n;
	return product;
}

/* The part of the buffer at the device's address @addr, NULL if not all of it is inside. */
static uint8_t *buffer(struct edu *e, uint64_t addr)
{
	uint64_t offset = addr - EDU_BUFFER;

	if (offset > EDU_BUFFER_BYTES || e->count > EDU_BUFFER_BYTES - offset)
		return NULL;
	return e->buffer + offset;
}

static void transfer(struct edu *e)
{
	bool is_to_memory = e->command & COMMAND_TO_MEMORY;
	uint8_t *own = buffer(e, is_to_memory ? e->source : e->destination);
	uint64_t addr = (is_to_memory ? e->destination : e->source) & EDU_DMA_MASK;
	int r;

	if (!own) {
		log_guest("edu", "DMA of %llu bytes outside of the buffer", (unsigned long long)e->count);
		return;
	}
	if (!pci_is_bus_master(&e->pci))
		return;
	r = is_to_memory ? dma_write(&e->pci.dma, addr, own, e->count)
			 : dma_read(&e->pci.dma, addr, own, e->count);
	if (r < 0)
		log_guest("edu", "DMA %s %#llx refused", is_to_memory ? "to" : "from",
			  (unsigned long long)addr);
}

static void work_done(void *arg)
{
	struct edu *e = arg;

	if (is_computing(e)) {
		e->factorial = factorial(e->factorial);
		e->status &= ~(uint32_t)STATUS_COMPUTING;
		if (e->status & STATUS_INTERRUPT)
			raise(e, INTR_FACTORIAL);
	}
	if (is_transferring(e)) {
		transfer(e);
		e->command &= ~(uint64_t)COMMAND_START;
		if (e->command & COMMAND_INTERRUPT)
			raise(e, INTR_DMA);
	}
}

static void start_work(struct edu *e)
{
	if (!vtimer_is_armed(e->timer))
		vtimer_arm(e->timer, vclock_now_ns(e->clock) + EDU_WORK_NS);
}

/* ---- registers ---- */

static uint64_t *wide_reg(struct edu *e, unsigned offset)
{
	switch (offset & ~7u) {
	case REG_SOURCE:
		return &e->source;
	case REG_DESTINATION:
		return &e->destination;
	case REG_COUNT:
		return &e->count;
	case REG_COMMAND:
		return &e->command;
	}
	return NULL;
}

static bool is_allowed(uint64_t offset, unsigned size)
{
	return !(offset % size) && (size == 4 || (size == 8 && offset >= REG_WIDE));
}

static uint64_t regs_read(void *dev, uint64_t offset, unsigned size)
{
	struct edu *e = dev;
	uint64_t *wide = wide_reg(e, (unsigned)offset);

	if (!is_allowed(offset, size))
		return UINT64_MAX;
	if (wide)
		return size == 8 ? *wide : (uint32_t)(*wide >> (offset & 4) * 8);
	switch (offset) {
	case REG_ID:
		return IDENTIFICATION;
	case REG_LIVENESS:
		return e->liveness;
	case REG_FACTORIAL:
		return e->factorial;
	case REG_STATUS:
		return e->status;
	case REG_INTR_STATUS:
		return e->interrupts;
	}
	return UINT64_MAX;
}

/* While a transfer runs its registers hold still. */
static void write_wide(struct edu *e, uint64_t *reg, unsigned offset, unsigned size, uint64_t value)
{
	if (is_transferring(e))
		return;
	if (size == 4 && (offset & 4))
		value = (uint32_t)*reg | value << 32;
	else if (size == 4)
		value = (*reg & ~(uint64_t)UINT32_MAX) | (uint32_t)value;
	*reg = reg == &e->command ? value & COMMAND_MASK : value;
	if (reg == &e->command && is_transferring(e))
		start_work(e);
}

static void regs_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct edu *e = dev;
	uint64_t *wide = wide_reg(e, (unsigned)offset);

	if (!is_allowed(offset, size)) {
		log_guest("edu", "write of %u bytes at %#llx", size, (unsigned long long)offset);
		return;
	}
	if (wide) {
		write_wide(e, wide, (unsigned)offset, size, value);
		return;
	}
	switch (offset) {
	case REG_LIVENESS:
		e->liveness = ~(uint32_t)value;
		break;
	case REG_FACTORIAL:
		if (is_computing(e))
			break;
		e->factorial = (uint32_t)value;
		e->status |= STATUS_COMPUTING;
		start_work(e);
		break;
	case REG_STATUS:
		e->status = (e->status & STATUS_COMPUTING) | (value & STATUS_INTERRUPT);
		break;
	case REG_INTR_RAISE:
		raise(e, (uint32_t)value);
		break;
	case REG_INTR_ACK:
		acknowledge(e, (uint32_t)value);
		break;
	}
}

static const struct bus_ops regs_ops = { regs_read, regs_write };

/* ---- state ---- */

static int check(const void *obj, struct error *err)
{
	const struct edu *e = obj;

	if ((e->command & ~(uint64_t)COMMAND_MASK) ||
	    (e->status & ~(uint32_t)(STATUS_COMPUTING | STATUS_INTERRUPT)) ||
	    e->pci.intx_level != (e->interrupts != 0))
		return error_set(err, -EINVAL, "the edu device's state is impossible");
	return 0;
}

// clang-format off
static const struct field fields[] = {
	F_HOST(struct edu, dev),
	F_STRUCT(struct edu, pci, &pci_dev_state),
	F_HOST(struct edu, clock),
	F_HOST(struct edu, timer),
	F_U64(struct edu, source),
	F_U64(struct edu, destination),
	F_U64(struct edu, count),
	F_U64(struct edu, command),
	F_U32(struct edu, liveness),
	F_U32(struct edu, factorial),
	F_U32(struct edu, status),
	F_U32(struct edu, interrupts),
	F_BYTES(struct edu, buffer),
	F_END,
};
// clang-format on
static const struct state_desc desc = {
	.name = "edu",
	.version = 1,
	.size = sizeof(struct edu),
	.fields = fields,
	.check = check,
};

/* ---- life cycle ---- */

static void reset(struct device *d)
{
	struct edu *e = container_of(d, struct edu, dev);

	vtimer_cancel(e->timer);
	e->source = e->destination = e->count = e->command = 0;
	e->liveness = e->factorial = e->status = e->interrupts = 0;
	memset(e->buffer, 0, sizeof(e->buffer));
	pci_dev_reset(&e->pci);
}

/* Work that was under way takes its time again. */
static void after_load(struct device *d)
{
	struct edu *e = container_of(d, struct edu, dev);

	pci_dev_after_load(&e->pci);
	vtimer_cancel(e->timer);
	if (is_computing(e) || is_transferring(e))
		start_work(e);
}

static void destroy(struct device *d)
{
	struct edu *e = container_of(d, struct edu, dev);

	vtimer_destroy(e->timer);
	pci_dev_destroy(&e->pci);
	free(e);
}

const struct device_class edu_class = {
	.name = "edu",
	.state = &desc,
	.reset = reset,
	.after_load = after_load,
	.destroy = destroy,
};

int edu_create(struct edu **out, const struct dev_env *env, struct pci_bus *bus, int slot,
	       struct error *err)
{
	static const struct pci_id id = {
		.vendor = EDU_VENDOR,
		.device = EDU_DEVICE,
		.subvendor = 0x1af4,
		.subdevice = 0x1100,
		.class_code = 0x00ff00, /* no class */
		.revision = 0x10,
	};
	struct edu *e = calloc(1, sizeof(*e));
	int rc;

	if (!e)
		return error_set(err, -ENOMEM, "no memory for the edu device");
	device_init(&e->dev, &edu_class, "edu");
	e->clock = env->clock;
	e->timer = vtimer_create(env->loop, env->clock, work_done, e);
	rc = e->timer ? pci_dev_init(&e->pci, bus, slot, &id, err)
		      : error_set(err, -ENOMEM, "no memory for the edu device");
	if (!rc) {
		rc = pci_add_bar(&e->pci, 0, PCI_BAR_MEM32, BAR_BYTES, &regs_ops, e);
		if (!rc)
			rc = pci_msi_init(&e->pci);
		if (rc)
			error_set(err, rc, "cannot put the edu device on the PCI bus: %s",
				  strerror(-rc));
	}
	if (rc) {
		destroy(&e->dev);
		return rc;
	}
	*out = e;
	return 0;
}
