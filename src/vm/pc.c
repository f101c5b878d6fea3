/* SPDX-License-Identifier: Apache-2.0 */
/* The PC: which devices there are, in order, and how their lines are wired. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

#include "dev/chipset/piix.h"
#include "dev/debug/edu.h"
#include "dev/virtio/virtio_9p.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_console.h"
#include "dev/virtio/virtio_net.h"
#include "dev/virtio/virtio_rng.h"
#include "net/tap.h"
#include "net/tcp_nat.h"
#include "vm/machine_int.h"

/* ---- what devices ask of the machine ---- */

static void request_reset(void *ctx)
{
	machine_request_reset(ctx);
}

static void request_poweroff(void *ctx)
{
	machine_end(ctx, END_POWEROFF, 0, "the guest switched the machine off");
}

static void debug_exit(void *ctx, unsigned code)
{
	char text[64];

	snprintf(text, sizeof(text), "the guest wrote %#x to the debug exit port", code);
	machine_end(ctx, END_DEBUG_EXIT, (int)((code << 1 | 1) & 0xff), text);
}

/* ---- what LAPICs ask of CPUs ---- */

static void up_set_intr(void *ctx, unsigned cpu, bool level)
{
	struct machine *m = ctx;
	struct vcpu *v = &m->cpus[cpu];

	m->ops->set_intr(v->ev, level);
	if (level)
		vcpu_wake(v);
}

static void up_raise_nmi(void *ctx, unsigned cpu)
{
	struct machine *m = ctx;

	m->ops->raise_nmi(m->cpus[cpu].ev);
	vcpu_wake(&m->cpus[cpu]);
}

static void up_init(void *ctx, unsigned cpu)
{
	struct machine *m = ctx;
	struct vcpu *v = &m->cpus[cpu];

	v->init_pending = true;
	v->sipi_pending = false;
	vcpu_wake(v);
	vcpu_kick(v);
}

static void up_sipi(void *ctx, unsigned cpu, uint8_t vector)
{
	struct machine *m = ctx;
	struct vcpu *v = &m->cpus[cpu];

	/* Only a CPU that waits for one takes it (SDM vol. 3 8.4.2); the first of two counts. */
	if (v->sipi_pending || !(v->init_pending || v->is_waiting_sipi))
		return;
	v->sipi_vector = vector;
	v->sipi_pending = true;
	vcpu_wake(v);
}

static uint64_t up_read_tsc(void *ctx, unsigned cpu)
{
	struct machine *m = ctx;

	return m->ops->read_tsc(m->cpus[cpu].ev);
}

static void up_eoi(void *ctx, uint8_t vector)
{
	struct machine *m = ctx;

	ioapic_eoi(m->ioapic, vector);
}

static uint8_t up_extint_ack(void *ctx)
{
	struct machine *m = ctx;

	return pic_inta(m->pic);
}

/* ---- where the engine owns the LAPICs ---- */

static void engine_msi(void *ctx, uint64_t addr, uint32_t data)
{
	struct machine *m = ctx;
	int r = m->ops->deliver_msi(m->vm, addr, data);

	if (r < 0)
		log_guest("vm", "MSI %#llx %#x not delivered: %s", (unsigned long long)addr, data,
			  strerror(-r));
}

static void engine_extint(void *ctx, unsigned n, bool level)
{
	struct machine *m = ctx;

	(void)n;
	m->ops->set_intr(m->cpus[0].ev, level);
	if (level)
		vcpu_wake(&m->cpus[0]);
}

/* ---- building ---- */

static void fill_random(void *ctx, uint8_t *buf, size_t len)
{
	(void)ctx;
	while (len) {
		ssize_t n = getrandom(buf, len, 0); /* interrupted only above 256 bytes */

		if (n > 0) {
			buf += n;
			len -= (size_t)n;
		}
	}
}

static void add_device(struct machine *m, struct device *d)
{
	*m->devices_end = d;
	m->devices_end = &d->next;
}

static int create_lapics(struct machine *m, struct error *err)
{
	struct lapic_bus_config cfg = {
		.up = { up_set_intr, up_raise_nmi, up_init, up_sipi, up_read_tsc, NULL, up_eoi,
			up_extint_ack, m },
		.tsc_khz = m->tsc_khz,
		.phys_bits = m->model.phys_bits,
		.has_x2apic = cpu_has(&m->model, CPUF_X2APIC),
		.has_tsc_deadline = cpu_has(&m->model, CPUF_TSC_DEADLINE),
	};
	int r = lapic_bus_create(&m->lapic_bus, &cfg, err);

	if (r < 0)
		return r;
	m->env.msi = (struct msi_sink){ lapic_bus_msi, m->lapic_bus };
	for (unsigned i = 0; i < m->ncpus; i++) {
		r = lapic_create(&m->cpus[i].lapic, &m->env, m->lapic_bus, i, err);
		if (r < 0)
			return r;
		add_device(m, &m->cpus[i].lapic->dev);
	}
	return 0;
}

static int create_interrupts(struct machine *m, struct error *err)
{
	struct irq_line intr = { engine_extint, m, 0 };
	int r;

	if (m->ops->owns_lapic) {
		m->env.msi = (struct msi_sink){ engine_msi, m };
	} else {
		r = create_lapics(m, err);
		if (r < 0)
			return r;
		intr = lapic_bus_lint0_line(m->lapic_bus);
	}
	r = pic_create(&m->pic, &m->env, intr, err);
	if (r < 0)
		return r;
	add_device(m, &m->pic->dev);
	if (m->cfg.has_iommu) {
		r = vtd_create(&m->vtd, &m->env, m->model.phys_bits, err);
		if (r < 0)
			return r;
		add_device(m, &m->vtd->dev);
		m->env.iommu = &m->vtd->iommu;
	}
	r = ioapic_create(&m->ioapic, &m->env, err);
	if (r < 0)
		return r;
	add_device(m, &m->ioapic->dev);
	r = gsi_create(&m->gsi, &m->env, m->pic, m->ioapic, err);
	if (r < 0)
		return r;
	add_device(m, &m->gsi->dev);
	return 0;
}

static int64_t wall_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static int create_platform(struct machine *m, struct error *err)
{
	struct rtc_config rtc = {
		.wall_ns_at_zero = wall_now_ns() - vclock_now_ns(&m->clock),
		.low_ram_bytes = m->ram.low_bytes,
		.high_ram_bytes = m->ram.high_bytes,
		.boot_order = 2,
		.cpus = m->ncpus,
	};
	uint8_t generation[VMGENID_BYTES];
	int r;

	fill_random(NULL, generation, sizeof(generation));
// One device a line, in the order of reset.
// clang-format off
#define ADD(member, ...) do { r = __VA_ARGS__; if (r < 0) return r; add_device(m, &m->member->dev); } while (0)
	ADD(pit,     pit_create(&m->pit, &m->env, gsi_line(m->gsi, 0), err));
	ADD(rtc,     rtc_create(&m->rtc, &m->env, gsi_line(m->gsi, 8), &rtc, err));
	ADD(i8042,   i8042_create(&m->i8042, &m->env, gsi_line(m->gsi, 1), gsi_line(m->gsi, 12), err));
	ADD(uart,    uart_create(&m->uart, &m->env, 0, gsi_line(m->gsi, 4), m->cfg.serial, err));
	ADD(acpi_pm, acpi_pm_create(&m->acpi_pm, &m->env, gsi_line(m->gsi, GSI_SCI), err));
	ADD(vmgenid, vmgenid_create(&m->vmgenid, &m->env, m->acpi_pm, generation, err));
	ADD(fw_cfg,  fw_cfg_create(&m->fw_cfg, &m->env, err));
	/* Test guests are kernels: a disk's system gets no port that ends the machine. */
	ADD(debugports, debugports_create(&m->debugports, &m->env, m->kernel.name != NULL, err));
	if (m->format == BOOT_MULTIBOOT)
		ADD(testdev, testdev_create(&m->testdev, &m->env, gsi_line(m->gsi, 0), err));
#undef ADD
	// clang-format on
	return 0;
}

static int create_pci(struct machine *m, struct error *err)
{
	struct irq_line intx[PCI_INTX_LINES];
	struct piix *piix;
	int r;

	_Static_assert(PCI_INTX_LINES == GSI_PCI_COUNT, "one GSI a line");
	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = gsi_line(m->gsi, GSI_PCI_BASE + i);
	r = pci_host_create(&m->pci, &m->env, intx, err);
	if (r < 0)
		return r;
	add_device(m, &m->pci->dev);
	r = piix_create(&piix, pci_host_bus(m->pci), m->acpi_pm, err);
	if (r < 0)
		return r;
	add_device(m, &piix->dev);
	return 0;
}

static int create_disk(struct machine *m, unsigned i, struct error *err)
{
	const struct machine_disk *d = &m->cfg.disks[i];
	struct block_open open = { .path = d->path,
				   .format = d->format ? d->format : "raw",
				   .is_readonly = d->is_readonly,
				   .is_snapshot = d->is_snapshot,
				   .use_direct = d->use_direct,
				   .backing = d->backing,
				   .max_bytes_per_s = d->max_bytes_per_s,
				   .max_ops_per_s = d->max_ops_per_s,
				   .is_unsettled = d->is_unsettled };
	struct virtio_blk_config cfg = { .nqueues = MIN(m->ncpus, (unsigned)VIRTIO_BLK_QUEUES_MAX),
					 .slot = -1 };
	struct virtio_blk *blk;
	char id[24], serial[20];
	int r = block_open(&m->blocks[i], m->loop, &open, err);

	if (r < 0)
		return r;
	snprintf(id, sizeof(id), "virtio-blk%u", i);
	snprintf(serial, sizeof(serial), "viv-disk%u", i);
	cfg.block = m->blocks[i];
	cfg.serial = serial;
	r = virtio_blk_create(&blk, &m->env, pci_host_bus(m->pci), id, &cfg, err);
	if (r < 0)
		return r;
	m->disks[i] = blk;
	add_device(m, virtio_blk_device(blk));
	return 0;
}

static int create_nic(struct machine *m, unsigned i, struct error *err)
{
	struct virtio_net_config cfg = { .slot = -1 };
	struct machine_nic *n = &m->cfg.nics[i];
	struct virtio_net *nic;
	char id[24];
	int fd = n->fd;

	n->fd = -1; /* taken, whatever comes */
	int r = n->is_tap ? net_port_tap(&m->ports[i], m->loop, fd, n->mac, err)
			  : net_port_socket(&m->ports[i], m->loop, fd, n->mac, err);

	if (r < 0)
		return r;
	m->ports[i]->is_alone = n->is_alone;
	snprintf(id, sizeof(id), "virtio-net%u", i);
	cfg.port = m->ports[i];
	r = virtio_net_create(&nic, &m->env, pci_host_bus(m->pci), id, &cfg, err);
	if (r < 0)
		return r;
	m->cards[i] = nic;
	add_device(m, virtio_net_device(nic));
	return 0;
}

/* The agent's port stands on a device of its own: a console is best alone (virtio_console.h). */
static int create_consoles(struct machine *m, struct error *err)
{
	const struct {
		const char *id;
		struct virtio_console_config cfg;
	} consoles[] = {
		{ "virtio-console0",
		  { .ports = { { .chr = m->cfg.console, .is_console = true } }, .nports = 1, .slot = -1 } },
		{ "virtio-console1",
		  { .ports = { { 0 }, { .chr = m->cfg.agent, .name = VIRTIO_PORT_GUEST_AGENT } },
		    .nports = 2,
		    .slot = -1 } },
	};

	for (unsigned i = 0; i < 2; i++) {
		struct virtio_console *c;

		if (!(i ? m->cfg.agent : m->cfg.console))
			continue;
		int r = virtio_console_create(&c, &m->env, pci_host_bus(m->pci), consoles[i].id,
					      &consoles[i].cfg, err);

		if (r < 0)
			return r;
		add_device(m, virtio_console_device(c));
	}
	return 0;
}

/* A page given back reads as zero when the guest takes it again, and costs the host nothing until then. */
static void release_memory(void *ctx, gpa_t gpa, uint64_t len)
{
	struct machine *m = ctx;
	int r = ram_discard(&m->ram, gpa, len);

	if (r < 0)
		log_debug("vm", "balloon: %s", strerror(-r));
	ram_note_write(&m->ram, gpa, len);
}

static int create_helpers(struct machine *m, struct error *err)
{
	struct virtio_rng_config rng_cfg = { .fill = fill_random, .slot = -1 };
	struct virtio_balloon_config balloon_cfg = { .release = release_memory, .ctx = m, .slot = -1 };
	struct virtio_rng *rng;
	struct virtio_balloon *balloon;
	struct edu *edu;
	int r = virtio_rng_create(&rng, &m->env, pci_host_bus(m->pci), "virtio-rng0", &rng_cfg, err);

	if (r < 0)
		return r;
	add_device(m, virtio_rng_device(rng));
	/* A balloon is about physical pages: its driver takes no translated addresses, so it cannot stand behind an IOMMU. */
	if (!m->cfg.has_iommu) {
		r = virtio_balloon_create(&balloon, &m->env, pci_host_bus(m->pci),
					  "virtio-balloon0", &balloon_cfg, err);
		if (r < 0)
			return r;
		add_device(m, virtio_balloon_device(balloon));
	}
	if (m->cfg.has_edu) {
		r = edu_create(&edu, &m->env, pci_host_bus(m->pci), -1, err);
		if (r < 0)
			return r;
		add_device(m, &edu->dev);
	}
	return 0;
}

static int create_share(struct machine *m, unsigned i, struct error *err)
{
	struct virtio_9p_config cfg = { .tag = m->cfg.shares[i].tag, .slot = -1 };
	struct virtio_9p *dev;
	char id[24];
	int fd = m->cfg.shares[i].fd;

	m->cfg.shares[i].fd = -1; /* taken, whatever comes */
	int r = share_port_socket(&m->shares[i], m->loop, fd, cfg.tag, err);

	if (r < 0)
		return r;
	snprintf(id, sizeof(id), "virtio-9p%u", i);
	cfg.port = m->shares[i];
	r = virtio_9p_create(&dev, &m->env, pci_host_bus(m->pci), id, &cfg, err);
	if (r < 0)
		return r;
	add_device(m, virtio_9p_device(dev));
	return 0;
}

void machine_new_generation(struct machine *m)
{
	uint8_t id[VMGENID_BYTES];

	fill_random(NULL, id, sizeof(id));
	vmgenid_set(m->vmgenid, id);
}

void machine_reappear(struct machine *m)
{
	for (unsigned i = 0; i < m->cfg.nnics; i++)
		virtio_net_reappear(m->cards[i]);
}

size_t machine_take_resets(struct machine *m, uint8_t *out, size_t cap)
{
	struct net_port *p = m->cfg.nnics ? m->ports[0] : NULL;

	return p && p->ops->resets ? p->ops->resets(p, out, cap) : 0;
}

void machine_give_resets(struct machine *m, const uint8_t *frames, size_t len)
{
	static const struct net_offload sums = { .flags = 1, .csum_start = 14 + 20, .csum_offset = 16 };
	struct net_port *p = m->cfg.nnics ? m->ports[0] : NULL;

	for (size_t at = 0; p && p->card.receive && len - at >= TCP_NAT_RESET_BYTES;
	     at += TCP_NAT_RESET_BYTES) {
		const struct iovec iov = { (void *)(uintptr_t)(frames + at), TCP_NAT_RESET_BYTES };

		if (p->card.receive(p->card.ctx, &sums, &iov, 1) < 0)
			return;
	}
}

void machine_hold_cards(struct machine *m, bool is_held)
{
	for (unsigned i = 0; i < m->cfg.nnics; i++)
		if (m->ports[i] && m->ports[i]->ops->hold)
			m->ports[i]->ops->hold(m->ports[i], is_held);
}

bool machine_card_mac(const struct machine *m, unsigned i, uint8_t mac[6])
{
	if (i >= m->cfg.nnics)
		return false;
	virtio_net_mac(m->cards[i], mac);
	return true;
}

void machine_slept(struct machine *m, int64_t ns)
{
	rtc_advance(m->rtc, ns);
}

int pc_create(struct machine *m, struct error *err)
{
	int r;

	m->devices_end = &m->devices;
	m->bus = bus_create();
	if (!m->bus)
		return error_set(err, -ENOMEM, "no memory for the bus");
	m->env = (struct dev_env){
		.bus = m->bus,
		.ram = &m->ram,
		.loop = m->loop,
		.clock = &m->clock,
		.request_reset = request_reset,
		.request_poweroff = request_poweroff,
		.debug_exit = debug_exit,
		.ctx = m,
	};
	r = create_interrupts(m, err);
	if (r == 0)
		r = create_platform(m, err);
	if (r == 0)
		r = create_pci(m, err);
	for (unsigned i = 0; r == 0 && i < m->cfg.ndisks; i++)
		r = create_disk(m, i, err);
	for (unsigned i = 0; r == 0 && i < m->cfg.nnics; i++)
		r = create_nic(m, i, err);
	if (r == 0)
		r = create_consoles(m, err);
	if (r == 0)
		r = create_helpers(m, err);
	for (unsigned i = 0; r == 0 && i < m->cfg.nshares; i++)
		r = create_share(m, i, err);
	return r;
}

void pc_reset(struct machine *m)
{
	/* The IOMMU is the last: what devices have under way goes to where it was meant to. */
	struct device *iommu = m->vtd ? &m->vtd->dev : NULL;

	for (struct device *d = m->devices; d; d = d->next)
		if (d != iommu)
			d->cls->reset(d);
	if (iommu)
		iommu->cls->reset(iommu);
}

/* In reverse: what was built later uses what was built before. */
static void destroy_devices(struct device *d)
{
	struct device *reversed = NULL;

	while (d) {
		struct device *next = d->next;

		d->next = reversed;
		reversed = d;
		d = next;
	}
	while (reversed) {
		struct device *next = reversed->next;

		reversed->cls->destroy(reversed);
		reversed = next;
	}
}

void pc_destroy(struct machine *m)
{
	destroy_devices(m->devices);
	m->devices = NULL;
	lapic_bus_destroy(m->lapic_bus);
	for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
		if (m->blocks[i])
			m->blocks[i]->ops->close(m->blocks[i]);
	}
	for (unsigned i = 0; i < MACHINE_MAX_NICS; i++) {
		if (m->ports[i])
			m->ports[i]->ops->close(m->ports[i]);
	}
	for (unsigned i = 0; i < MACHINE_MAX_SHARES; i++) {
		if (m->shares[i])
			m->shares[i]->ops->close(m->shares[i]);
	}
	bus_destroy(m->bus);
}
