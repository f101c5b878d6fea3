/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The platform devices together, wired as in a PC: any accesses to ports, memory, LAPIC registers and
 * MSRs, any input from outside, any passing of time.  After each step the CPUs' INTR inputs are what the
 * LAPICs say; a device always loads the state it saved; nothing hangs.
 *
 * Input: operations (enum op), each followed by its operands.
 */
#include <stdlib.h>

#include "char/chardev.h"
#include "dev/chipset/acpi_pm.h"
#include "dev/chipset/fw_cfg.h"
#include "dev/chipset/gsi.h"
#include "dev/chipset/i8042.h"
#include "dev/chipset/ioapic.h"
#include "dev/chipset/lapic.h"
#include "dev/chipset/pic.h"
#include "dev/chipset/piix.h"
#include "dev/debug/debugports.h"
#include "dev/debug/testdev.h"
#include "dev/pci/pci_host.h"
#include "dev/serial/uart.h"
#include "dev/testing.h"
#include "dev/timer/pit.h"
#include "dev/timer/rtc.h"
#include "fuzz.h"

#define OPS_MAX	 400
#define CPUS	 2
#define NDEVICES 15

/* clang-format off */
enum op {
	OUT, IN, MMIO_WRITE, MMIO_READ, LAPIC_WRITE, LAPIC_READ, WRMSR, RDMSR, CR8, ACK,
	TIME, TIME_LATE, LINE, KEY, MOUSE, TYPE, POKE, STATE, RESET, MSIX, BUTTON, OPS,
};
/* clang-format on */

static struct {
	struct test_env t;
	struct lapic_bus *lapics;
	struct lapic *lapic[CPUS];
	bool intr[CPUS];
	struct pic *pic;
	struct ioapic *ioapic;
	struct gsi *gsi;
	struct i8042 *i8042;
	struct acpi_pm *acpi_pm;
	struct pci_host *host;
	struct pci_dev card;
	uint32_t card_reg;
	struct char_dev chr;
	unsigned chr_room; /* bytes that the backend takes */
	struct device *devs[NDEVICES];
	unsigned ndevs;
	struct bytes fresh[NDEVICES]; /* states right after building */
} m;

/* ---- around the devices ---- */

static void set_intr(void *ctx, unsigned cpu, bool level)
{
	m.intr[cpu] = level;
}

static void cpu_event(void *ctx, unsigned cpu)
{
}

static void cpu_sipi(void *ctx, unsigned cpu, uint8_t vector)
{
}

static uint64_t read_tsc(void *ctx, unsigned cpu)
{
	return (uint64_t)vclock_now_ns(&m.t.clock) * 3;
}

static void eoi(void *ctx, uint8_t vector)
{
	ioapic_eoi(m.ioapic, vector);
}

static uint8_t extint_ack(void *ctx)
{
	return pic_inta(m.pic);
}

static size_t chr_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	size_t n = MIN(len, (size_t)m.chr_room);

	m.chr_room -= (unsigned)n;
	return n;
}

static void chr_rx_ready(struct char_dev *c)
{
}

static const struct char_ops chr_ops = { chr_write, chr_rx_ready, NULL };

static uint64_t card_read(void *opaque, uint64_t offset, unsigned size)
{
	return m.card_reg;
}

static void card_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	m.card_reg = (uint32_t)value;
}

static const struct bus_ops card_ops = { card_read, card_write };

static void must(bool is_true)
{
	if (!is_true)
		abort();
}

static void add(struct device *d)
{
	must(m.ndevs < NDEVICES);
	m.devs[m.ndevs++] = d;
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

static void build_interrupts(struct dev_env *env)
{
	struct lapic_bus_config cfg = {
		.up = { set_intr, cpu_event, cpu_event, cpu_sipi, read_tsc, NULL, eoi, extint_ack, NULL },
		.tsc_khz = 3000000,
		.phys_bits = 40,
		.has_x2apic = true,
		.has_tsc_deadline = true,
	};

	must(!lapic_bus_create(&m.lapics, &cfg, NULL));
	env->msi = (struct msi_sink){ lapic_bus_msi, m.lapics };
	for (unsigned i = 0; i < CPUS; i++) {
		must(!lapic_create(&m.lapic[i], env, m.lapics, i, NULL));
		add(&m.lapic[i]->dev);
	}
	must(!pic_create(&m.pic, env, lapic_bus_lint0_line(m.lapics), NULL));
	add(&m.pic->dev);
	must(!ioapic_create(&m.ioapic, env, NULL));
	add(&m.ioapic->dev);
	must(!gsi_create(&m.gsi, env, m.pic, m.ioapic, NULL));
	add(&m.gsi->dev);
}

static void build_platform(const struct dev_env *env)
{
	struct rtc_config cfg = { .wall_ns_at_zero = 1700000000ll * 1000000000 };
	struct fw_cfg *fw_cfg;
	struct pit *pit;
	struct rtc *rtc;
	struct uart *uart;
	struct debugports *ports;
	struct testdev *testdev;

	must(!pit_create(&pit, env, gsi_line(m.gsi, 0), NULL));
	add(&pit->dev);
	must(!rtc_create(&rtc, env, gsi_line(m.gsi, 8), &cfg, NULL));
	add(&rtc->dev);
	must(!i8042_create(&m.i8042, env, gsi_line(m.gsi, 1), gsi_line(m.gsi, 12), NULL));
	add(&m.i8042->dev);
	m.chr.ops = &chr_ops;
	must(!uart_create(&uart, env, 0, gsi_line(m.gsi, 4), &m.chr, NULL));
	add(&uart->dev);
	must(!acpi_pm_create(&m.acpi_pm, env, gsi_line(m.gsi, GSI_SCI), NULL));
	add(&m.acpi_pm->dev);
	must(!fw_cfg_create(&fw_cfg, env, NULL));
	must(!fw_cfg_add_file(fw_cfg, "etc/test", "0123456789", 10));
	add(&fw_cfg->dev);
	must(!debugports_create(&ports, env, true, NULL));
	add(&ports->dev);
	must(!testdev_create(&testdev, env, gsi_line(m.gsi, 0), NULL));
	add(&testdev->dev);
}

static void build(void)
{
	static const struct pci_id id = { 0x1234, 0x5678, 0, 0, 0xff0000, 0 };
	struct irq_line intx[PCI_INTX_LINES];
	struct dev_env *env = &m.t.env;
	struct piix *piix;

	log_set_level(LOG_ERROR);
	test_env_init(&m.t);
	build_interrupts(env);
	build_platform(env);
	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = gsi_line(m.gsi, GSI_PCI_BASE + i);
	must(!pci_host_create(&m.host, env, intx, NULL));
	add(&m.host->dev);
	must(!piix_create(&piix, pci_host_bus(m.host), m.acpi_pm, NULL));
	add(&piix->dev);
	must(!pci_dev_init(&m.card, pci_host_bus(m.host), 2, &id, NULL));
	must(!pci_add_bar(&m.card, 0, PCI_BAR_IO, 32, &card_ops, NULL));
	must(!pci_add_bar(&m.card, 4, PCI_BAR_MEM64, 8192, &card_ops, NULL));
	must(!pci_msix_init(&m.card, 5, 1));
	for (unsigned i = 0; i < m.ndevs; i++)
		save(m.devs[i], &m.fresh[i]);
}

/* Everything as after build(). */
static void start(void)
{
	vclock_set(&m.t.clock, 0);
	pci_dev_reset(&m.card);
	memset(m.t.ram.base, 0, 64 * KIB);
	for (unsigned i = 0; i < m.ndevs; i++)
		m.devs[i]->cls->reset(m.devs[i]);
	for (unsigned i = 0; i < m.ndevs; i++)
		load(m.devs[i], &m.fresh[i]);
	m.chr_room = 100;
	m.card_reg = 0;
	must(!pci_bus_assign(pci_host_bus(m.host), NULL));
}

/* ---- steps ---- */

static uint64_t get(struct byte_reader *r, unsigned size)
{
	uint64_t v = 0;

	bytes_get(r, &v, size);
	return v;
}

/* A byte picks one of the places where something is, the next one moves about. */
static uint64_t port(struct byte_reader *r)
{
	static const uint16_t ports[] = { 0x20,	 0xa0,	0x4d0, 0x40,  0x43,  0x61,  0x60,   0x64,
					  0x70,	 0x92,	0x3f8, 0x600, 0x608, 0x620, 0x510,  0x514,
					  0xcf8, 0xcfc, 0x80,  0xe0,  0xf4,  0x402, 0xc000, 0x2000 };
	uint64_t base = ports[get(r, 1) % ARRAY_SIZE(ports)];

	return base + (get(r, 1) & 31);
}

static uint64_t address(struct byte_reader *r)
{
	static const uint64_t bases[] = { IOAPIC_BASE,		 IOAPIC_BASE + 0x10,
					  TESTDEV_IOMEM,	 TESTDEV_IOMEM + 0xff0,
					  PCI_MMIO_BASE,	 PCI_MMIO_BASE + 0x2000,
					  PCI_MMIO_BASE + 0x2800 };
	uint64_t base = bases[get(r, 1) % ARRAY_SIZE(bases)];

	return base + get(r, 1);
}

static void lapic_access(struct byte_reader *r, bool is_write)
{
	struct lapic *l = m.lapic[get(r, 1) % CPUS];
	unsigned reg = (unsigned)get(r, 1), size = 1 + get(r, 1) % 8;
	uint64_t v = is_write ? get(r, 4) : 0;

	lapic_mmio(l, LAPIC_DEFAULT_BASE + (reg & 63) * 16 + (reg >> 6), size, is_write, &v);
}

static void msr_access(struct byte_reader *r, bool is_write)
{
	struct lapic *l = m.lapic[get(r, 1) % CPUS];
	unsigned reg = (unsigned)get(r, 1);
	uint32_t msr = reg < 0x60 ? 0x800 + reg : reg & 1 ? 0x1b : 0x6e0;
	uint64_t v;

	if (!is_write)
		lapic_msr_read(l, msr, &v);
	else if (msr == 0x1b) /* most values fault: pick likely ones, too */
		lapic_msr_write(l, msr, reg & 2 ? get(r, 8) : 0xfee00000 | (get(r, 2) & 0xd00));
	else
		lapic_msr_write(l, msr, get(r, 8));
}

static void poke(struct byte_reader *r)
{
	gpa_t gpa = get(r, 2);
	uint64_t v = get(r, 8);

	ram_write(&m.t.ram, gpa, &v, 8);
}

static void step(struct byte_reader *r)
{
	struct bus *b = m.t.env.bus;
	uint64_t addr;
	unsigned size;
	uint8_t buf[16] = { 0 };

	switch (get(r, 1) % OPS) {
	case OUT:
		addr = port(r);
		size = 1u << get(r, 1) % 3;
		bus_write(b, BUS_PIO, addr, size, get(r, size));
		break;
	case IN:
		addr = port(r);
		bus_read(b, BUS_PIO, addr, 1u << get(r, 1) % 3);
		break;
	case MMIO_WRITE:
		addr = address(r);
		size = 1 + get(r, 1) % 8;
		bus_write(b, BUS_MMIO, addr, size, get(r, size));
		break;
	case MMIO_READ:
		addr = address(r);
		bus_read(b, BUS_MMIO, addr, 1 + get(r, 1) % 8);
		break;
	case LAPIC_WRITE:
		lapic_access(r, true);
		break;
	case LAPIC_READ:
		lapic_access(r, false);
		break;
	case WRMSR:
		msr_access(r, true);
		break;
	case RDMSR:
		msr_access(r, false);
		break;
	case CR8:
		lapic_set_cr8(m.lapic[get(r, 1) % CPUS], get(r, 1));
		break;
	case ACK:
		lapic_ack(m.lapic[get(r, 1) % CPUS]);
		break;
	case TIME:
		test_advance(&m.t, (int64_t)get(r, 2) * 100);
		break;
	case TIME_LATE:
		test_advance_late(&m.t, (int64_t)get(r, 4) * 1000);
		break;
	case LINE:
		addr = get(r, 1);
		gsi_set(m.gsi, (unsigned)addr & 31, addr & 32);
		break;
	case KEY:
		bytes_get(r, buf, 3);
		i8042_key(m.i8042, buf, 3);
		break;
	case MOUSE:
		i8042_mouse(m.i8042, (int8_t)get(r, 1), (int8_t)get(r, 1), 0, (unsigned)get(r, 1));
		break;
	case TYPE:
		m.chr_room = (unsigned)get(r, 1);
		m.chr.user.writable(m.chr.user.ctx);
		chardev_give(&m.chr, buf, MIN(chardev_room(&m.chr), sizeof(buf)));
		break;
	case POKE:
		poke(r);
		break;
	case STATE: {
		struct device *d = m.devs[get(r, 1) % m.ndevs];
		struct bytes s = { 0 };

		save(d, &s);
		load(d, &s);
		bytes_free(&s);
		break;
	}
	case RESET: {
		struct device *d = m.devs[get(r, 1) % m.ndevs];

		d->cls->reset(d);
		break;
	}
	case MSIX:
		addr = get(r, 1);
		pci_msix_notify(&m.card, (unsigned)addr & 7);
		pci_set_intx(&m.card, addr & 8);
		break;
	default: /* BUTTON */
		acpi_pm_power_button(m.acpi_pm);
		acpi_pm_gpe(m.acpi_pm, (unsigned)get(r, 1));
		lapic_inject_nmi(m.lapic[0]);
		break;
	}
}

/* LAPICs on, PIC and IOAPIC programmed, PIT, serial line and MSI-X in use: so that mutations meet them alive. */
size_t fuzz_seed(uint8_t *data, size_t cap)
{
	static const uint8_t seed[] = {
		/* spurious vector registers: enabled */
		/* clang-format off */
		LAPIC_WRITE, 0, 0x0f, 3, 0xff, 1, 0, 0, LAPIC_WRITE, 1, 0x0f, 3, 0xff, 1, 0, 0,
		/* PIC: ICW1..4, mask */
		OUT, 0, 0, 0, 0x11, OUT, 0, 1, 0, 0x30, OUT, 0, 1, 0, 4, OUT, 0, 1, 0, 1, OUT, 0, 1, 0, 0,
		OUT, 1, 0, 0, 0x11, OUT, 1, 1, 0, 0x38, OUT, 1, 1, 0, 2, OUT, 1, 1, 0, 1, OUT, 1, 1, 0, 0,
		/* IOAPIC pins 4 (edge) and 17 (level) */
		MMIO_WRITE, 0, 0, 3, 0x18, 0, 0, 0, MMIO_WRITE, 1, 0, 3, 0x44, 0, 0, 0,
		MMIO_WRITE, 0, 0, 3, 0x32, 0, 0, 0, MMIO_WRITE, 1, 0, 3, 0x51, 0x80, 0, 0,
		/* PIT channel 0: mode 2, 1000 */
		OUT, 4, 0, 0, 0x34, OUT, 3, 0, 0, 0xe8, OUT, 3, 0, 0, 3,
		TIME, 0x00, 0x40, ACK, 0, OUT, 0, 0, 0, 0x20, ACK, 0,
		/* serial: FIFO, interrupts, a byte, input */
		OUT, 10, 2, 0, 0x81, OUT, 10, 1, 0, 0x0f, OUT, 10, 0, 0, 'x', TYPE, 3, IN, 10, 2, 0, IN, 10, 0, 0,
		/* RTC: periodic interrupt */
		OUT, 8, 0, 0, 0x0b, OUT, 8, 1, 0, 0x42, TIME, 0xff, 0xff, ACK, 0, OUT, 8, 0, 0, 0x0c, IN, 8, 1, 0,
		/* LAPIC timer periodic, IPI to the other CPU */
		LAPIC_WRITE, 1, 0x32, 3, 0x80, 0, 2, 0, LAPIC_WRITE, 1, 0x38, 3, 0, 0x10, 0, 0, TIME, 0x00, 0x20,
		LAPIC_WRITE, 0, 0x31, 3, 0, 0, 0, 1, LAPIC_WRITE, 0, 0x30, 3, 0x61, 0x40, 0, 0, ACK, 1,
		LAPIC_WRITE, 1, 0x0b, 3, 0, 0, 0, 0,
		/* MSI-X: command register, enable, entry 0 */
		OUT, 16, 0, 2, 4, 0x10, 0, 0x80, OUT, 17, 0, 1, 7, 0, OUT, 16, 0, 2, 0x40, 0x10, 0, 0x80,
		OUT, 17, 2, 1, 0, 0x80, MMIO_WRITE, 5, 0, 3, 0, 0, 0xe0, 0xfe, MMIO_WRITE, 5, 8, 3, 0x71, 0, 0, 0,
		MMIO_WRITE, 5, 12, 3, 0, 0, 0, 0, MSIX, 0, ACK, 0, MSIX, 8,
		/* keyboard, mouse */
		OUT, 7, 0, 0, 0xa8, OUT, 7, 0, 0, 0xd4, OUT, 6, 0, 0, 0xf4, KEY, 0xe0, 0xf0, 0x75, MOUSE, 1, 2, 3,
		IN, 6, 0, 0, IN, 6, 0, 0,
		/* fw_cfg by DMA: select the directory and read 16 bytes to 2000H; descriptor at 100H */
		POKE, 0, 1, 0, 0x19, 0, 0x0a, 0, 0, 0, 0x10, POKE, 8, 1, 0, 0, 0, 0, 0, 0, 0x20, 0,
		OUT, 15, 4, 2, 0, 0, 1, 0,
		/* x2APIC and its timer by deadline */
		WRMSR, 0, 0x61, 0, 0x0d, WRMSR, 0, 0x32, 0x80, 0, 4, 0, 0, 0, 0, 0,
		WRMSR, 0, 0x60, 0, 0, 0, 1, 0, 0, 0, 0, TIME, 0, 0x80, ACK, 0, WRMSR, 0, 0x3f, 0x91, 0, 0, 0, 0, 0, 0, 0,
		CR8, 0, 9, CR8, 0, 0, ACK, 0,
		STATE, 0, STATE, 2, STATE, 5, STATE, 6, STATE, 8, TIME_LATE, 0, 0, 0x10, 0, BUTTON, 3, RESET, 5,
	};
	/* clang-format on */

	must(sizeof(seed) <= cap);
	memcpy(data, seed, sizeof(seed));
	return sizeof(seed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct byte_reader r = { .data = data, .len = len };

	if (!m.ndevs)
		build();
	start();
	for (unsigned n = 0; n < OPS_MAX && !r.is_failed && r.pos < r.len; n++) {
		step(&r);
		for (unsigned i = 0; i < CPUS; i++)
			must(m.intr[i] == lapic_has_intr(m.lapic[i]));
	}
	return 0;
}
