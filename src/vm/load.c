/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in RAM and registers when the first instruction runs: a kernel and what firmware would
 * have left behind, or firmware itself.  Files stay open and are read again at each reset.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/host.h"
#include "vm/machine_int.h"

#define KERNEL_MAX_BYTES (1 * GIB)

static const char *const default_firmware[] = {
	"/usr/share/seabios/bios-256k.bin",
	"/usr/share/qemu/bios-256k.bin",
	"/usr/share/seabios/bios.bin",
	NULL,
};

const char *const *machine_default_firmware(void)
{
	return default_firmware;
}

static int source_open(struct boot_source *s, const char *what, const char *path, struct error *err)
{
	int fd = host.open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);

	if (fd < 0)
		return error_set(err, -errno, "cannot open %s %s: %s", what, path, strerror(errno));
	s->fd = fd;
	s->name = strdup(path);
	return s->name ? 0 : error_set(err, -ENOMEM, "no memory for a file name");
}

static int open_firmware(struct machine *m, const struct machine_config *cfg, struct error *err)
{
	if (cfg->firmware)
		return source_open(&m->firmware, "firmware", cfg->firmware, err);
	for (size_t i = 0; default_firmware[i]; i++) {
		if (host.access(default_firmware[i], R_OK) == 0)
			return source_open(&m->firmware, "firmware", default_firmware[i], err);
	}
	return error_set(
		err, -ENOENT,
		"nothing to boot: give --kernel, or install the package seabios for a machine "
		"that boots from its disk");
}

int load_open(struct machine *m, const struct machine_config *cfg, struct error *err)
{
	int r;

	m->kernel.fd = m->initrd.fd = m->firmware.fd = -1;
	if (cfg->kernel && cfg->firmware)
		return error_set(err, -EINVAL, "--kernel and --firmware exclude each other");
	if (cfg->initrd && !cfg->kernel)
		return error_set(err, -EINVAL, "--initrd needs --kernel");
	if (cfg->append && cfg->append[0] && !cfg->kernel)
		return error_set(err, -EINVAL, "--append needs --kernel");
	if (!cfg->kernel)
		return open_firmware(m, cfg, err);
	r = source_open(&m->kernel, "kernel", cfg->kernel, err);
	if (r == 0 && cfg->initrd)
		r = source_open(&m->initrd, "initrd", cfg->initrd, err);
	return r;
}

static void source_close(struct boot_source *s)
{
	if (s->name && s->fd >= 0)
		close(s->fd);
	free(s->name);
	*s = (struct boot_source){ .fd = -1 };
}

void load_close(struct machine *m)
{
	source_close(&m->kernel);
	source_close(&m->initrd);
	source_close(&m->firmware);
}

static int read_source(const struct boot_source *s, struct boot_blob *out, size_t max, struct error *err)
{
	*out = (struct boot_blob){ 0 };
	return s->name ? boot_blob_read(out, s->fd, s->name, max, err) : 0;
}

int load_rom_bytes(struct machine *m, uint64_t *bytes, struct error *err)
{
	struct boot_blob fw;

	*bytes = 0;
	if (!m->firmware.name)
		return 0;
	int r = read_source(&m->firmware, &fw, FIRMWARE_MAX_BYTES, err);

	if (r < 0)
		return r;
	r = firmware_check(&fw, err);
	*bytes = fw.len;
	boot_blob_free(&fw);
	return r;
}

/* ---- direct boot ---- */

static struct acpi_config acpi_config(const struct machine *m)
{
	return (struct acpi_config){ .cpus = m->ncpus,
				     .ioapic_addr = IOAPIC_BASE,
				     .has_serial = { true },
				     .has_iommu = m->vtd,
				     .phys_bits = m->model.phys_bits };
}

static int place_acpi(struct machine *m, struct error *err)
{
	struct acpi_config cfg = acpi_config(m);
	struct acpi_tables t;
	struct bytes placed = { 0 };
	int r = acpi_build(&t, &cfg, err);

	if (r == 0)
		r = acpi_place(&t, BOOT_ACPI_BASE, BOOT_ACPI_BYTES, &placed, err);
	if (r == 0) {
		r = ram_write(&m->ram, BOOT_ACPI_BASE, placed.data, placed.len);
		if (r < 0)
			error_set(err, r, "the ACPI tables do not fit into guest RAM");
	}
	acpi_free(&t);
	bytes_free(&placed);
	return r;
}

/* BIOS data area: the words that boot code reads even without a BIOS. */
static int place_bda(struct machine *m, struct error *err)
{
	uint16_t com1 = 0x3f8, ebda = BOOT_EBDA >> 4, base_kib = BOOT_EBDA / KIB;

	if (ram_write(&m->ram, 0x400, &com1, 2) < 0 || ram_write(&m->ram, 0x40e, &ebda, 2) < 0 ||
	    ram_write(&m->ram, 0x413, &base_kib, 2) < 0)
		return error_set(err, -EFAULT, "guest RAM has no first page");
	return 0;
}

/* Virtual wire mode, as every BIOS leaves it: PIC through LINT0, NMI through LINT1 of the BSP. */
static void wire_lapic(struct machine *m)
{
	static const struct {
		uint16_t reg;
		uint32_t value;
	} init[] = { { 0xf0, 0x1ff }, { 0x350, 0x8700 }, { 0x360, 0x8400 } };
	struct lapic *l = m->cpus[0].lapic;

	for (size_t i = 0; l && i < ARRAY_SIZE(init); i++) {
		uint64_t v = init[i].value;

		lapic_mmio(l, LAPIC_DEFAULT_BASE + init[i].reg, 4, true, &v);
	}
}

/*
 * The 8259A pair as a BIOS leaves it: IRQ 0-7 at vector 8, 8-15 at 70H, none masked.  No device asks for
 * anything before the guest programs it.
 */
static void wire_pic(struct machine *m)
{
	static const struct {
		uint8_t port, value;
	} init[] = {
		{ 0x20, 0x11 }, { 0x21, 0x08 }, { 0x21, 0x04 }, { 0x21, 0x01 }, { 0x21, 0x00 },
		{ 0xa0, 0x11 }, { 0xa1, 0x70 }, { 0xa1, 0x02 }, { 0xa1, 0x01 }, { 0xa1, 0x00 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(init); i++)
		bus_write(m->bus, BUS_PIO, init[i].port, 1, init[i].value);
}

static int load_kernel(struct machine *m, struct error *err)
{
	struct boot_blob kernel, initrd;
	struct boot_request rq = {
		.ram = &m->ram, .kernel = &kernel, .cmdline = m->append, .rsdp = BOOT_ACPI_BASE
	};
	int r = read_source(&m->kernel, &kernel, KERNEL_MAX_BYTES, err);

	if (r < 0)
		return r;
	r = read_source(&m->initrd, &initrd, m->ram.low_bytes, err);
	if (r == 0) {
		rq.initrd = m->initrd.name ? &initrd : NULL;
		m->format = boot_detect(&kernel);
		r = boot_load(&rq, m->bsp, err);
	}
	boot_blob_free(&kernel);
	boot_blob_free(&initrd);
	if (r == 0)
		r = place_acpi(m, err);
	if (r == 0)
		r = place_bda(m, err);
	if (r == 0)
		r = boot_place_bios_stubs(&m->ram, err);
	return r;
}

int load_boot(struct machine *m, struct error *err)
{
	struct boot_blob fw;
	int r;

	memset(m->bsp, 0, sizeof(*m->bsp));
	x86_state_reset(m->bsp, true);
	if (m->kernel.name) {
		r = load_kernel(m, err);
		if (r == 0)
			r = pci_bus_assign(pci_host_bus(m->pci), err);
		if (r == 0)
			wire_lapic(m);
		if (r == 0)
			wire_pic(m);
		return r;
	}
	r = read_source(&m->firmware, &fw, FIRMWARE_MAX_BYTES, err);
	if (r < 0)
		return r;
	r = firmware_check(&fw, err);
	if (r == 0 && (uint8_t *)m->rom + fw.len != m->ram.base + m->ram.size_bytes)
		r = error_set(err, -EINVAL, "%s changed its size while the machine ran", fw.name);
	if (r == 0)
		firmware_load(&fw, &m->ram, m->rom);
	boot_blob_free(&fw);
	return r;
}

/* MTRRs as a BIOS sets them on all CPUs: RAM write-back, A0000-BFFFF and the PCI hole uncached. */
static void set_mtrrs(const struct machine *m, struct x86_state *s)
{
	uint64_t phys_mask = (1ULL << m->model.phys_bits) - 1;

	for (unsigned i = 0; i < 11; i++)
		s->mtrr_fixed[i] = i < 2    ? 0x0606060606060606ULL
				   : i == 2 ? 0
					    : 0x0505050505050505ULL;
	s->mtrr_var_base[0] = PCI_MMIO_BASE;
	s->mtrr_var_mask[0] = (phys_mask & ~(uint64_t)(4 * GIB - PCI_MMIO_BASE - 1)) | 0x800;
	s->mtrr_def_type = 0xc06;
}

void load_cpu_state(struct machine *m, unsigned index, struct x86_state *out)
{
	memset(out, 0, sizeof(*out));
	if (index == 0)
		*out = *m->bsp;
	else
		x86_state_reset(out, false);
	if (m->kernel.name)
		set_mtrrs(m, out);
}

/* ---- fw_cfg ---- */

static int add_acpi_files(struct machine *m, struct error *err)
{
	struct acpi_config cfg = acpi_config(m);
	struct acpi_tables t;
	struct bytes script = { 0 };
	int r = acpi_build(&t, &cfg, err);

	if (r == 0)
		r = acpi_loader_script(&t, &script);
	if (r == 0)
		r = fw_cfg_add_file(m->fw_cfg, ACPI_FILE_TABLES, t.tables.data, t.tables.len);
	if (r == 0)
		r = fw_cfg_add_file(m->fw_cfg, ACPI_FILE_RSDP, t.rsdp, sizeof(t.rsdp));
	if (r == 0)
		r = fw_cfg_add_file(m->fw_cfg, ACPI_FILE_LOADER, script.data, script.len);
	acpi_free(&t);
	bytes_free(&script);
	return r;
}

/* RAM as it is; firmware reserves what it takes. */
static unsigned firmware_e820(const struct machine *m, struct e820_entry out[3])
{
	unsigned n = 0;

	out[n++] = (struct e820_entry){ 0, m->ram.low_bytes, E820_RAM };
	if (m->ram.high_bytes)
		out[n++] = (struct e820_entry){ 4 * GIB, m->ram.high_bytes, E820_RAM };
	return n;
}

int load_fw_cfg(struct machine *m, struct error *err)
{
	struct fw_cfg *f = m->fw_cfg;
	struct e820_entry e820[3];
	unsigned n = firmware_e820(m, e820);
	uint16_t sercon = 0x3f8;
	uint16_t cpus = (uint16_t)m->ncpus;
	int r = fw_cfg_add_u64(f, FW_CFG_RAM_SIZE, m->cfg.mem_bytes);

	if (r == 0)
		r = fw_cfg_add_u16(f, FW_CFG_NB_CPUS, cpus);
	if (r == 0)
		r = fw_cfg_add_u16(f, FW_CFG_MAX_CPUS, cpus);
	if (r == 0)
		r = fw_cfg_add_u16(f, FW_CFG_NOGRAPHIC, 1);
	if (r == 0)
		r = fw_cfg_add_file(f, "etc/e820", e820, n * sizeof(e820[0]));
	if (r == 0) /* SeaBIOS shows its text output there: there is no screen */
		r = fw_cfg_add_file(f, "etc/sercon-port", &sercon, sizeof(sercon));
	if (r == 0)
		r = add_acpi_files(m, err);
	if (r < 0)
		return error_set(err, r, "cannot fill the firmware configuration: %s", strerror(-r));
	return 0;
}
