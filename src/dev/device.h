/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a device is, and what it may touch.
 *
 * A device sees only capabilities handed in at creation: guest memory (mem/ram.h), interrupt lines,
 * virtual timers (base/loop.h), and the small backend interfaces (block_dev, net_port, char_dev).
 * It makes no host call and reads no host clock.
 *
 * Locking: everything in a device runs under the machine's lock: bus accesses (vCPU threads), timers
 * and backend callbacks (loop thread).  A device has no lock of its own.
 *
 * State: one const state_desc a device; registry.def names every device once, and one test walks
 * it (every byte in exactly one field, save-load-save identical, hostile streams fail cleanly).
 */
#ifndef VIV_DEV_DEVICE_H
#define VIV_DEV_DEVICE_H

#include <stdio.h>

#include "base/log.h"
#include "base/loop.h"
#include "mem/ram.h"
#include "state/field.h"

/* ---- interrupt lines ---- */
struct irq_line {
	void (*set)(void *ctx, unsigned n, bool level);
	void *ctx;
	unsigned n;
};
static inline void irq_set(const struct irq_line *l, bool level)
{
	if (l->set)
		l->set(l->ctx, l->n, level);
}

/* Message-signalled interrupts. */
struct msi_sink {
	void (*send)(void *ctx, uint64_t addr, uint32_t data);
	void *ctx;
};

/* ---- device header: first member of every device's struct ---- */
struct device;
struct device_class {
	const char *name; /* "pit", "virtio-blk": stable, it names the state on the wire */
	const struct state_desc *state;
	void (*reset)(struct device *d); /* power-on values */
	/* After state_load: re-arm timers, re-drive lines.  May be NULL. */
	void (*after_load)(struct device *d);
	void (*destroy)(struct device *d);
	/* Machine paused / about to run again; drain in-flight backend work on pause.  May be NULL. */
	void (*pause)(struct device *d);
	void (*resume)(struct device *d);
	/* Younger than the oldest snapshots: where one lacks it, it has power-on values. */
	bool may_be_new;
};
struct device {
	const struct device_class *cls;
	char id[24];	     /* instance, "virtio-blk0" */
	struct device *next; /* the machine's list */
};
static inline void device_init(struct device *d, const struct device_class *cls, const char *id)
{
	d->cls = cls;
	snprintf(d->id, sizeof(d->id), "%s", id);
	d->next = NULL;
}

/* ---- the bus: ports and memory outside RAM ---- */
struct bus;

/*
 * Accesses arrive with size 1, 2, 4 (ports) or 1..8 (memory), never crossing the range's end: the bus
 * splits or drops what does not fit.  Reads give the value zero-extended.
 */
struct bus_ops {
	uint64_t (*read)(void *dev, uint64_t offset, unsigned size);
	void (*write)(void *dev, uint64_t offset, unsigned size, uint64_t value);
};
enum bus_space { BUS_PIO, BUS_MMIO };

struct bus_range; /* handle, owned by the bus */

struct bus *bus_create(void);
void bus_destroy(struct bus *b);
/**
 * bus_add() - claim [@base, @base+@len).
 * @dev and @ops are borrowed until bus_remove.  Ranges may not overlap (-EEXIST); 64 K of ports.
 * A later-added range with higher @priority may overlap a lower one and wins.
 */
int bus_add(struct bus *b, enum bus_space space, uint64_t base, uint64_t len, int priority,
	    const struct bus_ops *ops, void *dev, struct bus_range **out);
void bus_remove(struct bus *b, struct bus_range *r); /* NULL is fine */
/* Nothing there: reads give all ones, writes vanish; both are log_guest lines. */
uint64_t bus_read(struct bus *b, enum bus_space space, uint64_t addr, unsigned size);
void bus_write(struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value);
/** bus_counters() - one call of @fn a range: how often it was accessed since it was added. */
void bus_counters(const struct bus *b,
		  void (*fn)(void *arg, enum bus_space space, uint64_t base, const void *dev,
			     uint64_t accesses),
		  void *arg);

struct iommu; /* iommu/dma.h */

/* Everything a device constructor may want of the machine. */
struct dev_env {
	struct bus *bus;
	struct guest_ram *ram;
	struct loop *loop;
	struct vclock *clock;
	struct msi_sink msi;
	struct iommu *iommu; /* between PCI devices, the IOAPIC and memory, APICs; NULL: there is none */
	/* Machine-wide requests a device may make. */
	void (*request_reset)(void *ctx);
	void (*request_poweroff)(void *ctx);
	void (*debug_exit)(void *ctx, unsigned code); /* port 0xf4: process status (code << 1) | 1 */
	void *ctx;
};

#endif
