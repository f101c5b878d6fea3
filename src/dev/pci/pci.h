/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCI bus 0: what a PCI device embeds and calls.  Source: PCI Local Bus Specification 3.0.
 *
 * A device embeds struct pci_dev, builds its config space and BARs once, and lists F_STRUCT(type,
 * pci, &pci_dev_state) in its state table; its reset, after_load and destroy call the functions of the
 * same name here.  BARs map themselves on the machine's bus as the guest programs them.
 *
 * Invariants
 *  1. Config bytes change only under wmask (guest writes, w1c included), by the device through
 *     pci_config_set*, or by load, whose check refuses any other difference from the built image.
 *  2. A BAR is on the bus iff its decode bit is set, its address is not 0 and the range is free; one that
 *     lost a fight is retried whenever another BAR moves.
 *  3. MSI-X vector numbers are checked here: out of range is a bug of the device, ignored with a log
 *     line; the guest reaches table and PBA only through bounded accessors.
 */
#ifndef VIV_DEV_PCI_PCI_H
#define VIV_DEV_PCI_PCI_H

#include "dev/device.h"
#include "dev/iommu/dma.h"

#define PCI_SLOTS	 32
#define PCI_FUNCTIONS	 8
#define PCI_BARS	 6
#define PCI_CONFIG_BYTES 256
#define PCI_MSIX_MAX	 64
#define PCI_INTX_LINES	 8

/* The window for BARs below 4G; 64-bit BARs of direct-booted guests too (the DSDT's _CRS says it). */
#define PCI_MMIO_BASE 0xc0000000u
#define PCI_MMIO_END  0xfebfffffu
#define PCI_IO_BASE   0xc000u
#define PCI_IO_END    0xffffu

struct pci_bus;
struct pci_dev;

struct pci_id {
	uint16_t vendor, device, subvendor, subdevice;
	uint32_t class_code; /* 24 bits: class, subclass, interface */
	uint8_t revision;
};

enum pci_bar_flags {
	PCI_BAR_IO = 1,
	PCI_BAR_MEM32 = 2,
	PCI_BAR_MEM64 = 4, /* takes @idx and @idx + 1 */
	PCI_BAR_PREFETCH = 8,
};

struct pci_bar {
	struct pci_dev *dev;
	unsigned flags; /* 0: no BAR */
	uint64_t size_bytes;
	const struct bus_ops *ops;
	void *opaque;
	struct bus_range *range; /* mapped now */
	uint64_t mapped_at;
};

struct pci_msix_entry {
	uint64_t addr;
	uint32_t data;
	uint32_t ctrl; /* bit 0: masked */
};

struct pci_dev {
	/* host part */
	struct pci_bus *bus;
	struct pci_bar bar[PCI_BARS];
	uint8_t wmask[PCI_CONFIG_BYTES];   /* guest-writable bits */
	uint8_t w1cmask[PCI_CONFIG_BYTES]; /* bits cleared by writing 1 */
	uint8_t vmask[PCI_CONFIG_BYTES];   /* bits that the device itself changes (status) */
	uint8_t built[PCI_CONFIG_BYTES];   /* image at power-on */
	uint64_t nmsix;
	uint64_t slot, function;
	uint64_t cap_next; /* first free byte for capabilities */
	uint64_t msix_cap; /* offset in config space; 0: none */
	uint64_t msi_cap;  /* the same */
	struct dma_path dma;
	/*
	 * Optional hooks of the owner: around accesses to its own config bytes (virtio's PCI_CFG
	 * capability).  before_read may refresh bytes by pci_config_set; written comes after the masked write.
	 */
	void (*config_before_read)(struct pci_dev *d, unsigned offset, unsigned size);
	void (*config_written)(struct pci_dev *d, unsigned offset, unsigned size);
	/* MSI-X became unmasked or enabled: nothing to do for most; may be NULL. */
	void (*msix_changed)(struct pci_dev *d);

	/* state: pci_dev_state */
	uint8_t config[PCI_CONFIG_BYTES];
	struct pci_msix_entry msix[PCI_MSIX_MAX];
	uint64_t msix_pending; /* PBA */
	bool intx_level;       /* what the device asks for */
	uint8_t pad_[7];
};

extern const struct state_desc pci_dev_state;

/* ---- building ---- */

/**
 * pci_dev_init() - put @d (zeroed) into a slot.
 * @slot: 0..31, or -1: the first free one from 1
 * Interrupt pin is INTA#.  Returns 0, -EEXIST, -ENOSPC with @err set.
 */
int pci_dev_init(struct pci_dev *d, struct pci_bus *bus, int slot, const struct pci_id *id,
		 struct error *err);
/**
 * pci_dev_init_function() - the same for a device of several functions.
 * @function: 0..7; function 0 comes first and is told apart by its header type
 */
int pci_dev_init_function(struct pci_dev *d, struct pci_bus *bus, int slot, unsigned function,
			  const struct pci_id *id, struct error *err);
/** pci_dev_destroy() - unmaps and leaves the slot.  Zeroed or half-built is fine. */
void pci_dev_destroy(struct pci_dev *d);

/**
 * pci_add_cap() - append a capability of @len bytes (with its 2-byte header, which is filled in).
 * @body: bytes from offset 2 on (@len - 2 of them); NULL: zeros
 * @wmask: guest-writable bits of the same bytes; NULL: none
 * Returns its offset in config space, or -ENOSPC.
 */
int pci_add_cap(struct pci_dev *d, uint8_t cap_id, unsigned len, const uint8_t *body,
		const uint8_t *wmask);

/**
 * pci_add_bar() - BAR @idx.
 * @flags: one of PCI_BAR_IO/MEM32/MEM64, and PCI_BAR_PREFETCH
 * @size_bytes: power of two; I/O 4..256, memory 16 B..2 GiB (64-bit: 1 TiB)
 * @ops, @opaque: borrowed; offsets are from the BAR's start
 * Returns 0 or -EINVAL.
 */
int pci_add_bar(struct pci_dev *d, unsigned idx, unsigned flags, uint64_t size_bytes,
		const struct bus_ops *ops, void *opaque);

/**
 * pci_msix_init() - MSI-X capability with @nvectors (1..PCI_MSIX_MAX), table and PBA in a 4 KiB memory
 * BAR of their own, @bar.  Returns 0, -EINVAL, -ENOSPC.
 */
int pci_msix_init(struct pci_dev *d, unsigned nvectors, unsigned bar);

/** pci_msi_init() - MSI capability with one vector and a 64-bit address.  Returns 0, -EINVAL, -ENOSPC. */
int pci_msi_init(struct pci_dev *d);

/* ---- running ---- */

/** pci_send_msi() - a message from @d, through the IOMMU where there is one. */
void pci_send_msi(const struct pci_dev *d, uint64_t addr, uint32_t data);
/** pci_msi_enabled() - the guest switched MSI on: no INTx then. */
bool pci_msi_enabled(const struct pci_dev *d);
/** pci_msi_notify() - send it; nothing while MSI or bus mastering is off. */
void pci_msi_notify(struct pci_dev *d);

/** pci_msix_enabled() - the guest switched MSI-X on: no INTx then. */
bool pci_msix_enabled(const struct pci_dev *d);
/** pci_msix_notify() - send @vector, or mark it pending while masked.  Out of range, or MSI-X off: nothing. */
void pci_msix_notify(struct pci_dev *d, unsigned vector);
/** pci_set_intx() - level of INTA#; gated by the command register, by MSI and MSI-X. */
void pci_set_intx(struct pci_dev *d, bool level);
/** pci_is_bus_master() - command register bit 2: DMA allowed. */
bool pci_is_bus_master(const struct pci_dev *d);

/* Config bytes, little-endian, as the device itself sees and changes them.  @offset + size <= 256. */
uint32_t pci_config_get(const struct pci_dev *d, unsigned offset, unsigned size);
void pci_config_set(struct pci_dev *d, unsigned offset, unsigned size, uint32_t value);

/** pci_bar_address() - where the guest put BAR @idx; 0 when not decoded. */
uint64_t pci_bar_address(const struct pci_dev *d, unsigned idx);

void pci_dev_reset(struct pci_dev *d);
void pci_dev_after_load(struct pci_dev *d);

/* Guest accesses to config space (the host bridge calls these); also how code of the machine that
 * stands in for firmware programs BARs. */
uint32_t pci_config_read(struct pci_dev *d, unsigned offset, unsigned size);
void pci_config_write(struct pci_dev *d, unsigned offset, unsigned size, uint32_t value);

/* ---- the bus ---- */
struct pci_bus *pci_bus_create(const struct dev_env *env, const struct irq_line intx[PCI_INTX_LINES]);
void pci_bus_destroy(struct pci_bus *b); /* after its devices; NULL is fine */
/** pci_bus_dev() - function 0 of the device in @slot, or NULL. */
struct pci_dev *pci_bus_dev(struct pci_bus *b, unsigned slot);
struct pci_dev *pci_bus_function(struct pci_bus *b, unsigned slot, unsigned function);
/** pci_intx_index() - which of the PCI_INTX_LINES the pin (0: INTA#) of @slot drives: for _PRT. */
unsigned pci_intx_index(unsigned slot, unsigned pin);
/** pci_pic_input() - the input of the PIC pair that INTA# of @slot reaches. */
unsigned pci_pic_input(unsigned slot);
/**
 * pci_bus_assign() - what firmware does: give every BAR an address in the windows above and switch decoding
 * on.  For machines that boot a kernel directly.  Returns 0 or -ENOSPC.
 */
int pci_bus_assign(struct pci_bus *b, struct error *err);

#endif
