/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VT-d unit, the edu device and a virtio device behind it: any tables, registers, queues, messages and rings,
 * in any order.  What a translation allows lies where the tables say and is no longer than asked for; what a
 * device gets lies in guest RAM; messages are interrupt messages; a state that was saved loads; nothing hangs.
 *
 * Input: operations (enum op), each followed by its operands.  Memory starts with tables that work (fill_tables).
 */
#include <stdlib.h>
#include <string.h>

#include "dev/chipset/ioapic.h"
#include "dev/debug/edu.h"
#include "dev/iommu/vtd_regs.h"
#include "dev/pci/pci_host.h"
#include "dev/testing.h"
#include "dev/virtio/virtio_rng.h"
#include "fuzz.h"

#define OPS_MAX	 300
#define NDEVICES 5

enum op {
	POKE,
	WORD,
	REG_WRITE,
	REG_READ,
	ACCESS,
	VECTORS,
	MSI,
	LINE,
	REDIR,
	EDU,
	RING,
	STATE,
	RESET,
	TIME,
	OPS
};

/* Guest RAM: tables in the first pages, rings and buffers behind. */
#define ROOT	0x1000u
#define CONTEXT 0x2000u
#define L4	0x3000u
#define L3	0x4000u
#define L2	0x5000u
#define L1	0x6000u
#define IRT	0x7000u
#define QUEUE	0x8000u
#define TABLES	0x9000u /* end of them */
#define RINGS	0x20000u

static struct {
	struct test_env t;
	struct vtd *v;
	struct ioapic *ioapic;
	struct pci_host *host;
	struct edu *edu;
	struct virtio_rng *rng;
	struct device *devs[NDEVICES];
	struct bytes fresh[NDEVICES];
	uint64_t edu_regs, rng_regs;
} m;

static void must(bool is_true)
{
	if (!is_true)
		abort();
}

static void fill(void *ctx, uint8_t *buf, size_t len)
{
	(void)ctx;
	must(buf >= m.t.ram.base && buf + len <= m.t.ram.base + m.t.ram.size_bytes);
	memset(buf, 0x5a, MIN(len, (size_t)64));
}

static void save(const struct device *d, struct bytes *out)
{
	out->len = 0;
	must(state_save(d->cls->state, d, out) == 0);
}

static void load(struct device *d, const struct bytes *from)
{
	struct byte_reader r = { .data = from->data, .len = from->len };

	must(state_load(d->cls->state, d, &r, NULL) == 0);
	if (d->cls->after_load)
		d->cls->after_load(d);
}

static void build(void)
{
	struct irq_line intx[PCI_INTX_LINES];
	struct virtio_rng_config cfg = { .fill = fill, .slot = 2 };
	struct dev_env *env = &m.t.env;

	log_set_level(LOG_ERROR);
	test_env_init(&m.t);
	must(!vtd_create(&m.v, env, 40, NULL));
	env->iommu = &m.v->iommu;
	must(!ioapic_create(&m.ioapic, env, NULL));
	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = (struct irq_line){ ioapic_set_irq, m.ioapic, 16 + i };
	must(!pci_host_create(&m.host, env, intx, NULL));
	must(!edu_create(&m.edu, env, pci_host_bus(m.host), 1, NULL));
	must(!virtio_rng_create(&m.rng, env, pci_host_bus(m.host), "rng", &cfg, NULL));
	m.devs[0] = &m.v->dev;
	m.devs[1] = &m.ioapic->dev;
	m.devs[2] = &m.host->dev;
	m.devs[3] = &m.edu->dev;
	m.devs[4] = virtio_rng_device(m.rng);
	for (unsigned i = 0; i < NDEVICES; i++)
		save(m.devs[i], &m.fresh[i]);
}

/* ---- memory that works at first ---- */

static void poke64(gpa_t gpa, uint64_t v)
{
	must(ram_write(&m.t.ram, gpa, &v, 8) == 0);
}

/* Everything mapped to itself, by pages of 4K (the first 2M), 2M and 1G; two interrupts. */
static void fill_tables(void)
{
	memset(m.t.ram.base, 0, TABLES);
	memset(m.t.ram.base + RINGS, 0, 0x4000);
	poke64(ROOT, CONTEXT | 1);
	for (unsigned slot = 1; slot <= 2; slot++) {
		poke64(CONTEXT + slot * 128, L4 | 1);
		poke64(CONTEXT + slot * 128 + 8, slot << 8 | 2);
	}
	poke64(L4, L3 | 3);
	poke64(L3, L2 | 3);
	poke64(L3 + 8, 1 << 30 | 0x83);
	poke64(L2, L1 | 3);
	poke64(L2 + 8, 0x200083);
	for (unsigned i = 0; i < 512; i++)
		poke64(L1 + i * 8, i << 12 | 3);
	poke64(IRT + 16, 1 | 0x41u << 16);
	poke64(IRT + 32, 1 | 0x42u << 16);
	poke64(IRT + 40, 1 << 18 | 1 << 3);
}

static void vtd_write(unsigned reg, unsigned size, uint64_t value)
{
	bus_write(m.t.env.bus, BUS_MMIO, VTD_BASE + reg, size, value);
}

static void rng_write(unsigned reg, unsigned size, uint64_t value)
{
	bus_write(m.t.env.bus, BUS_MMIO, m.rng_regs + reg, size, value);
}

static void start_rng(void)
{
	rng_write(20, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		rng_write(8, 4, i);
		rng_write(12, 4, i ? 3 : 1u << 28);
	}
	rng_write(20, 1, 0xb);
	rng_write(32, 8, RINGS);
	rng_write(40, 8, RINGS + 0xff0); /* across pages */
	rng_write(48, 8, RINGS + 0x1ffc);
	rng_write(28, 2, 1);
	rng_write(20, 1, 0xf);
}

/* Everything as after build(), then as a driver sets it up. */
static void start(void)
{
	vclock_set(&m.t.clock, 0);
	fill_tables();
	for (unsigned i = 0; i < NDEVICES; i++)
		m.devs[i]->cls->reset(m.devs[i]);
	for (unsigned i = 0; i < NDEVICES; i++)
		load(m.devs[i], &m.fresh[i]);
	must(!pci_bus_assign(pci_host_bus(m.host), NULL));
	pci_config_write(&m.edu->pci, 4, 2, 6);
	pci_config_write(pci_bus_dev(pci_host_bus(m.host), 2), 4, 2, 6);
	m.edu_regs = pci_bar_address(&m.edu->pci, 0);
	m.rng_regs = pci_bar_address(pci_bus_dev(pci_host_bus(m.host), 2), 4);
	must(m.edu_regs && m.rng_regs);
	start_rng();
	vtd_write(VTD_RTADDR, 8, ROOT);
	vtd_write(VTD_IRTA, 8, IRT | 3);
	vtd_write(VTD_IQA, 8, QUEUE);
	vtd_write(VTD_GCMD, 4, VTD_SRTP);
	vtd_write(VTD_GCMD, 4, VTD_SIRTP);
	vtd_write(VTD_GCMD, 4, VTD_TE | VTD_QIE | VTD_IRE);
}

/* ---- steps ---- */

static uint64_t get(struct byte_reader *r, unsigned size)
{
	uint64_t v = 0;

	bytes_get(r, &v, size);
	return v;
}

/* An address that tables may know, or any. */
static uint64_t address(struct byte_reader *r)
{
	uint8_t how = (uint8_t)get(r, 1);

	return how < 0xc0 ? get(r, 3) : how < 0xe0 ? get(r, 4) : get(r, 8);
}

static struct dma_path path(struct byte_reader *r)
{
	return (struct dma_path){ .ram = &m.t.ram,
				  .iommu = &m.v->iommu,
				  .source_id = (uint16_t)((get(r, 1) & 3) << 3) };
}

static void transfer(struct byte_reader *r)
{
	struct dma_path p = path(r);
	uint64_t addr = address(r), len = 1 + get(r, 2), asked = len;
	bool is_write = get(r, 1) & 1;
	gpa_t gpa;
	uint8_t buf[64] = { 0 };

	if (m.v->iommu.ops->translate(&m.v->iommu, p.source_id, addr, is_write, &gpa, &len) == 0)
		must(len && len <= asked && (gpa ^ addr) % GUEST_PAGE_SIZE == 0);
	if (is_write)
		dma_write(&p, addr, buf, asked % sizeof(buf));
	else
		dma_read(&p, addr, buf, asked % sizeof(buf));
	uint8_t *at = dma_ptr(&p, addr, 8, is_write);

	must(!at || (at >= m.t.ram.base && at + 8 <= m.t.ram.base + m.t.ram.size_bytes));
}

static void vectors(struct byte_reader *r)
{
	struct dma_path p = path(r);
	struct iovec iov[8];
	unsigned n = 0, budget = 32;
	uint64_t addr = address(r), len = get(r, 3), sum = 0;
	int rc = dma_iov(&p, addr, len, get(r, 1) & 1, iov, ARRAY_SIZE(iov), &n, &budget);

	must(rc == 0 || n == 0);
	must(n <= ARRAY_SIZE(iov) && budget <= 32);
	for (unsigned i = 0; i < n; i++) {
		uint8_t *at = iov[i].iov_base;

		must(at >= m.t.ram.base && at + iov[i].iov_len <= m.t.ram.base + m.t.ram.size_bytes);
		sum += iov[i].iov_len;
	}
	must(rc || sum == len);
}

static void msi(struct byte_reader *r)
{
	uint16_t source = (uint16_t)get(r, 2);
	uint32_t addr = 0xfee00000 | (uint32_t)get(r, 3) % 0x100000, data = (uint32_t)get(r, 4);

	m.t.msi.addr = 0xfee00000;
	m.v->iommu.ops->msi(&m.v->iommu, source, addr, data);
	must(m.t.msi.addr >> 20 == 0xfee || m.t.msi.addr == ((uint64_t)m.v->feuaddr << 32 | m.v->feaddr));
}

static void redirect(struct byte_reader *r)
{
	bus_write(m.t.env.bus, BUS_MMIO, IOAPIC_BASE, 4, 0x10 + get(r, 1) % 48);
	bus_write(m.t.env.bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4, get(r, 4));
}

static void edu(struct byte_reader *r)
{
	unsigned reg = (unsigned)get(r, 1) & 0xfc, size = get(r, 1) & 1 ? 8 : 4;

	bus_write(m.t.env.bus, BUS_MMIO, m.edu_regs + reg, size, get(r, size));
}

/* A chain of one buffer in the ring, at an address that may be anything; then a kick. */
static void ring(struct byte_reader *r)
{
	struct vq_desc d = { address(r), (uint32_t)get(r, 2), (uint16_t)(get(r, 1) & 7),
			     (uint16_t)get(r, 1) };
	uint16_t idx;

	must(ram_write(&m.t.ram, RINGS, &d, sizeof(d)) == 0);
	must(ram_read(&m.t.ram, RINGS + 0xff2, &idx, 2) == 0);
	idx++;
	must(ram_write(&m.t.ram, RINGS + 0xff2, &idx, 2) == 0);
	rng_write(0x3000, 2, 0);
	if (get(r, 1) & 1) { /* and back to life */
		rng_write(20, 1, 0);
		memset(m.t.ram.base + RINGS, 0, 0x4000);
		start_rng();
	}
}

static void step(struct byte_reader *r)
{
	struct bytes s = { 0 };
	struct device *d;
	uint64_t addr;
	unsigned size;

	switch (get(r, 1) % OPS) {
	case POKE: /* a word of a table */
		addr = ROOT + (get(r, 2) * 8) % (TABLES - ROOT);
		poke64(addr, get(r, 8));
		break;
	case WORD: /* a small change of one */
		addr = ROOT + (get(r, 2) * 8) % (TABLES - ROOT);
		size = (unsigned)get(r, 1) % 64;
		m.t.ram.base[addr + size / 8] ^= (uint8_t)(1u << size % 8);
		break;
	case REG_WRITE:
		addr = get(r, 2) & 0xfff;
		size = 1u << get(r, 1) % 4;
		bus_write(m.t.env.bus, BUS_MMIO, VTD_BASE + addr, size, get(r, size));
		break;
	case REG_READ:
		addr = get(r, 2) & 0xfff;
		bus_read(m.t.env.bus, BUS_MMIO, VTD_BASE + addr, 1 + get(r, 1) % 8);
		break;
	case ACCESS:
		transfer(r);
		break;
	case VECTORS:
		vectors(r);
		break;
	case MSI:
		msi(r);
		break;
	case LINE:
		addr = get(r, 1);
		ioapic_set_irq(m.ioapic, (unsigned)addr & 31, addr & 32);
		ioapic_eoi(m.ioapic, (uint8_t)get(r, 1));
		break;
	case REDIR:
		redirect(r);
		break;
	case EDU:
		edu(r);
		break;
	case RING:
		ring(r);
		break;
	case STATE:
		d = m.devs[get(r, 1) % NDEVICES];
		save(d, &s);
		load(d, &s);
		bytes_free(&s);
		break;
	case RESET:
		d = m.devs[get(r, 1) % NDEVICES];
		if (d != &m.host->dev)
			d->cls->reset(d);
		break;
	default: /* TIME */
		test_advance(&m.t, (int64_t)get(r, 2) * 100);
		break;
	}
}

/* A bit of everything that works. */
size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const uint8_t seed[] = {
		/* clang-format off */
		ACCESS, 1, 0, 0x80, 0, 0, 16, 0, 1, ACCESS, 2, 0xd0, 0x10, 0, 0x20, 0, 8, 0, 0, ACCESS, 0, 0, 0, 0, 0, 4, 0, 0,
		VECTORS, 1, 0, 0xf0, 0x0f, 1, 0, 0x20, 0, 1,
		/* an invalidation and a wait at the queue's start, and its tail */
		POKE, 0, 0x0e, 0x12, 0, 0, 0, 0, 0, 0, 0, POKE, 2, 0x0e, 0x35, 0, 0, 0, 7, 0, 0, 0, POKE, 3, 0x0e, 0, 0, 1, 0, 0, 0, 0, 0,
		REG_WRITE, 0x88, 0, 3, 0x20, 0, 0, 0, 0, 0, 0, 0, REG_READ, 0x80, 0, 7,
		/* remapped messages; the IOAPIC's; a blocked one; the fault is read and cleared */
		MSI, 8, 0, 0x30, 0, 0, 0, 0, 0, 0, MSI, 8, 0, 0x50, 0, 0, 0, 0, 0, 0,
		REDIR, 11, 0, 0, 3, 0, REDIR, 10, 5, 0x80, 0, 0, LINE, 37, 5,
		MSI, 8, 0, 0, 0, 0, 0x41, 0, 0, 0, REG_READ, 0x20, 2, 7, REG_WRITE, 0x2c, 2, 2, 0, 0, 0, 0x80,
		REG_WRITE, 0x38, 0, 2, 0, 0, 0, 0, REG_WRITE, 0x18, 0, 2, 0, 0, 0x80, 0x86,
		/* edu: DMA of 16 bytes to its buffer and back, a factorial */
		EDU, 0x80, 1, 0, 0, 1, 0, 0, 0, 0, 0, EDU, 0x88, 1, 0, 0, 4, 0, 0, 0, 0, 0, EDU, 0x90, 1, 16, 0, 0, 0, 0, 0, 0, 0,
		EDU, 0x98, 0, 5, 0, 0, 0, TIME, 0, 2, EDU, 0x64, 0, 0, 1, 0, 0, EDU, 0x08, 0, 5, 0, 0, 0, STATE, 3, TIME, 0, 2,
		/* rings: a buffer, an indirect table that is none, alive again, a buffer that is not mapped */
		RING, 0, 0, 0, 3, 64, 0, 2, 0, 0, RING, 0, 0, 0, 3, 16, 0, 4, 0, 1, RING, 0xe0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 1,
		/* tables that are a little wrong */
		WORD, 0, 0, 0, ACCESS, 1, 0, 0x80, 0, 0, 16, 0, 1, WORD, 0, 0, 0, WORD, 0, 0x0a, 5, ACCESS, 1, 0, 0, 0, 0, 16, 0, 1,
		STATE, 0, STATE, 1, STATE, 4, RESET, 4, RESET, 0, STATE, 2,
		/* clang-format on */
	};

	must(sizeof(seed) <= cap);
	memcpy(data, seed, sizeof(seed));
	return sizeof(seed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct byte_reader r = { .data = data, .len = len };

	if (!m.v)
		build();
	start();
	for (unsigned n = 0; n < OPS_MAX && !r.is_failed && r.pos < r.len; n++)
		step(&r);
	return 0;
}
