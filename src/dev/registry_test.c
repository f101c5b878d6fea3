/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What holds for every device class of registry.def, whatever it is:
 *  - its state table covers every byte exactly once;
 *  - after any traffic, save -> load into a fresh device -> save gives the same bytes;
 *  - a truncated stream is refused and changes nothing;
 *  - a stream with a flipped bit is refused and changes nothing, or gives a device that goes on
 *    working (no crash, no sanitizer report);
 *  - reset brings a used device to the state of a new one that was reset.
 * Traffic here is that of platform and configuration ports; registers and rings of virtio devices get
 * theirs in tests/fuzz/fuzz_virtio.c.
 * A new row needs a make_##name here, or this file does not compile.
 */
#include <stdio.h>

#include "char/chardev.h"
#include "dev/chipset/acpi_pm.h"
#include "dev/chipset/fw_cfg.h"
#include "dev/chipset/gsi.h"
#include "dev/chipset/i8042.h"
#include "dev/chipset/ioapic.h"
#include "dev/chipset/lapic.h"
#include "dev/chipset/pic.h"
#include "dev/chipset/piix.h"
#include "dev/chipset/vmgenid.h"
#include "dev/debug/debugports.h"
#include "dev/debug/edu.h"
#include "dev/debug/testdev.h"
#include "dev/iommu/vtd.h"
#include "dev/pci/pci_host.h"
#include "dev/registry.h"
#include "dev/serial/uart.h"
#include "dev/testing.h"
#include "dev/timer/pit.h"
#include "dev/timer/rtc.h"
#include "dev/virtio/virtio_9p.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_console.h"
#include "dev/virtio/virtio_net.h"
#include "dev/virtio/virtio_rng.h"

/* One device and what it needs around it. */
struct rig {
	struct test_env t;
	struct device *dev;
	struct device *helpers[4]; /* destroyed after it, last first */
	unsigned nhelpers;
	struct lapic_bus *lapics;
	struct pci_bus *pci;
	struct lapic *lapic;
	struct block_dev block;
	struct net_port port;
	struct share_port share;
	struct char_dev *chr;
};

/* ---- backends and callbacks that do the least ---- */

static void cpu_level(void *ctx, unsigned cpu, bool level)
{
}

static void cpu_event(void *ctx, unsigned cpu)
{
}

static void cpu_vector(void *ctx, unsigned cpu, uint8_t vector)
{
}

static uint64_t read_tsc(void *ctx, unsigned cpu)
{
	return (uint64_t)vclock_now_ns(&((struct rig *)ctx)->t.clock) * 2;
}

static void eoi(void *ctx, uint8_t vector)
{
}

static uint8_t extint_ack(void *ctx)
{
	return 0x20;
}

static void block_submit(struct block_dev *b, struct block_req *req)
{
	req->done(req, -EIO);
}

static void block_get_info(const struct block_dev *b, struct block_info *out)
{
	*out = (struct block_info){ .size_bytes = MIB };
}

static void block_nothing(struct block_dev *b)
{
}

static const struct block_ops block_ops = { "test", block_submit, block_get_info, block_nothing, NULL };

static int net_send(struct net_port *p, const struct net_offload *off, const struct iovec *iov,
		    unsigned niov)
{
	return 0;
}

static void net_nothing(struct net_port *p)
{
}

static const struct net_ops net_ops = { net_send, net_nothing, NULL };

static void share_submit(struct share_port *p, struct share_req *req)
{
	req->done(req, 0);
}

static void share_nothing(struct share_port *p)
{
}

static const struct share_ops share_ops = { .submit = share_submit,
					    .drain = share_nothing,
					    .reset = share_nothing };

static void fill(void *ctx, uint8_t *buf, size_t len)
{
	memset(buf, 0x55, len);
}

static void release(void *ctx, gpa_t gpa, uint64_t len)
{
}

/* ---- constructors, one a row ---- */

static struct device *help(struct rig *r, struct device *d)
{
	r->helpers[r->nhelpers++] = d;
	return d;
}

static struct pci_bus *make_bus(struct rig *r)
{
	struct irq_line intx[PCI_INTX_LINES];
	struct pci_host *h;

	for (unsigned i = 0; i < PCI_INTX_LINES; i++)
		intx[i] = test_line(&r->t, i);
	assert_int_equal(pci_host_create(&h, &r->t.env, intx, NULL), 0);
	help(r, &h->dev);
	r->pci = pci_host_bus(h);
	return r->pci;
}

static struct device *make_pic(struct rig *r)
{
	struct pic *p;

	assert_int_equal(pic_create(&p, &r->t.env, test_line(&r->t, 0), NULL), 0);
	return &p->dev;
}

static struct device *make_lapic(struct rig *r)
{
	struct lapic_bus_config cfg = {
		.up = { cpu_level, cpu_event, cpu_event, cpu_vector, read_tsc, NULL, eoi, extint_ack, r },
		.tsc_khz = 2000000,
		.phys_bits = 40,
		.has_x2apic = true,
		.has_tsc_deadline = true,
	};

	assert_int_equal(lapic_bus_create(&r->lapics, &cfg, NULL), 0);
	assert_int_equal(lapic_create(&r->lapic, &r->t.env, r->lapics, 0, NULL), 0);
	return &r->lapic->dev;
}

static struct device *make_ioapic(struct rig *r)
{
	struct ioapic *a;

	assert_int_equal(ioapic_create(&a, &r->t.env, NULL), 0);
	return &a->dev;
}

static struct device *make_gsi(struct rig *r)
{
	struct device *pic = help(r, make_pic(r)), *ioapic = help(r, make_ioapic(r));
	struct gsi *g;

	assert_int_equal(gsi_create(&g, &r->t.env, container_of(pic, struct pic, dev),
				    container_of(ioapic, struct ioapic, dev), NULL),
			 0);
	gsi_set(g, 5, true);
	return &g->dev;
}

static struct device *make_vtd(struct rig *r)
{
	struct vtd *v;

	assert_int_equal(vtd_create(&v, &r->t.env, 40, NULL), 0);
	return &v->dev;
}

static struct device *make_i8042(struct rig *r)
{
	static const uint8_t key[] = { 0xe0, 0xf0, 0x75 };
	struct i8042 *k;

	assert_int_equal(i8042_create(&k, &r->t.env, test_line(&r->t, 1), test_line(&r->t, 12), NULL), 0);
	i8042_key(k, key, 3);
	return &k->dev;
}

static struct device *make_acpi_pm(struct rig *r)
{
	struct acpi_pm *p;

	assert_int_equal(acpi_pm_create(&p, &r->t.env, test_line(&r->t, 9), NULL), 0);
	acpi_pm_power_button(p);
	return &p->dev;
}

static struct device *make_vmgenid(struct rig *r)
{
	static const uint8_t id[VMGENID_BYTES] = { 7 };
	struct device *pm = help(r, make_acpi_pm(r));
	struct vmgenid *v;

	assert_int_equal(
		vmgenid_create(&v, &r->t.env, container_of(pm, struct acpi_pm, dev), id, NULL), 0);
	return &v->dev;
}

static struct device *make_fw_cfg(struct rig *r)
{
	struct fw_cfg *f;

	assert_int_equal(fw_cfg_create(&f, &r->t.env, NULL), 0);
	assert_int_equal(fw_cfg_add_file(f, "etc/test", "0123456789", 10), 0);
	return &f->dev;
}

static struct device *make_pit(struct rig *r)
{
	struct pit *p;

	assert_int_equal(pit_create(&p, &r->t.env, test_line(&r->t, 0), NULL), 0);
	return &p->dev;
}

static struct device *make_rtc(struct rig *r)
{
	struct rtc_config cfg = { .wall_ns_at_zero = 1700000000ll * 1000000000, .cpus = 1 };
	struct rtc *c;

	assert_int_equal(rtc_create(&c, &r->t.env, test_line(&r->t, 8), &cfg, NULL), 0);
	return &c->dev;
}

static struct device *make_uart(struct rig *r)
{
	struct uart *u;

	assert_int_equal(chardev_null(&r->chr, NULL), 0);
	assert_int_equal(uart_create(&u, &r->t.env, 0, test_line(&r->t, 4), r->chr, NULL), 0);
	r->chr->user.receive(r->chr->user.ctx, (const uint8_t *)"x", 1);
	return &u->dev;
}

static struct device *make_pci_host(struct rig *r)
{
	make_bus(r);
	return r->helpers[--r->nhelpers];
}

static struct device *make_piix(struct rig *r)
{
	struct acpi_pm *pm;
	struct piix *p;

	assert_int_equal(acpi_pm_create(&pm, &r->t.env, test_line(&r->t, 9), NULL), 0);
	help(r, &pm->dev);
	assert_int_equal(piix_create(&p, make_bus(r), pm, NULL), 0);
	return &p->dev;
}

static struct device *make_debugports(struct rig *r)
{
	struct debugports *p;

	assert_int_equal(debugports_create(&p, &r->t.env, true, NULL), 0);
	return &p->dev;
}

static struct device *make_testdev(struct rig *r)
{
	struct testdev *d;

	assert_int_equal(testdev_create(&d, &r->t.env, test_line(&r->t, 0), NULL), 0);
	return &d->dev;
}

static struct device *make_edu(struct rig *r)
{
	struct edu *e;

	assert_int_equal(edu_create(&e, &r->t.env, make_bus(r), -1, NULL), 0);
	return &e->dev;
}

static struct device *make_virtio_9p(struct rig *r)
{
	struct virtio_9p_config cfg = { .port = &r->share, .tag = "folder", .slot = -1 };
	struct virtio_9p *d;

	r->share.ops = &share_ops;
	assert_int_equal(virtio_9p_create(&d, &r->t.env, make_bus(r), "p", &cfg, NULL), 0);
	return virtio_9p_device(d);
}

static struct device *make_virtio_balloon(struct rig *r)
{
	struct virtio_balloon_config cfg = { .release = release, .slot = -1 };
	struct virtio_balloon *b;

	assert_int_equal(virtio_balloon_create(&b, &r->t.env, make_bus(r), "b", &cfg, NULL), 0);
	return virtio_balloon_device(b);
}

static struct device *make_virtio_blk(struct rig *r)
{
	struct virtio_blk_config cfg = { .block = &r->block, .nqueues = 2, .slot = -1 };
	struct virtio_blk *b;

	r->block.ops = &block_ops;
	assert_int_equal(virtio_blk_create(&b, &r->t.env, make_bus(r), "b", &cfg, NULL), 0);
	return virtio_blk_device(b);
}

static struct device *make_virtio_console(struct rig *r)
{
	struct virtio_console_config cfg = { .nports = 2, .slot = -1 };
	struct virtio_console *c;

	assert_int_equal(chardev_null(&r->chr, NULL), 0);
	cfg.ports[1] = (struct virtio_console_port){ .chr = r->chr, .name = "one" };
	assert_int_equal(virtio_console_create(&c, &r->t.env, make_bus(r), "c", &cfg, NULL), 0);
	return virtio_console_device(c);
}

static struct device *make_virtio_net(struct rig *r)
{
	struct virtio_net_config cfg = { .port = &r->port, .slot = -1 };
	struct virtio_net *n;

	r->port = (struct net_port){ .ops = &net_ops, .mac = { 2 } };
	assert_int_equal(virtio_net_create(&n, &r->t.env, make_bus(r), "n", &cfg, NULL), 0);
	return virtio_net_device(n);
}

static struct device *make_virtio_rng(struct rig *r)
{
	struct virtio_rng_config cfg = { .fill = fill, .slot = -1 };
	struct virtio_rng *g;

	assert_int_equal(virtio_rng_create(&g, &r->t.env, make_bus(r), "r", &cfg, NULL), 0);
	return virtio_rng_device(g);
}

static const struct row {
	const char *name;
	const struct device_class *cls;
	struct device *(*make)(struct rig *r);
} rows[] = {
#define DEVICE(name) { #name, &name##_class, make_##name },
#include "dev/registry.def"
#undef DEVICE
};

/* ---- rigs ---- */

static void rig_init(struct rig *r, const struct row *row)
{
	memset(r, 0, sizeof(*r));
	test_env_init(&r->t);
	r->dev = row->make(r);
	assert_ptr_equal(r->dev->cls, row->cls);
	if (r->pci)
		assert_int_equal(pci_bus_assign(r->pci, NULL), 0);
}

static void rig_fini(struct rig *r)
{
	r->dev->cls->destroy(r->dev);
	while (r->nhelpers) {
		struct device *d = r->helpers[--r->nhelpers];

		d->cls->destroy(d);
	}
	lapic_bus_destroy(r->lapics);
	if (r->chr)
		r->chr->ops->close(r->chr);
	test_env_fini(&r->t);
}

/* Ports and addresses of devices, which random ones would not find. */
static uint64_t random_port(unsigned *seed)
{
	static const uint16_t ports[] = { 0x20, 0xa0,  0x4d0, 0x40,  0x61,  0x60,   0x64,  0x70,
					  0x92, 0x3f8, 0x600, 0x620, 0x510, 0x514,  0xcf8, 0xcfc,
					  0x80, 0xe0,  0xe8,  0x402, 0xe9,  0xc000, 0x2000 };

	return ports[(unsigned)rand_r(seed) % ARRAY_SIZE(ports)] + (unsigned)rand_r(seed) % 8;
}

static uint64_t random_address(unsigned *seed)
{
	static const uint64_t addresses[] = { IOAPIC_BASE,	   IOAPIC_BASE + 0x10,
					      TESTDEV_IOMEM,	   VTD_BASE,
					      VTD_BASE + 0x18,	   VTD_BASE + 0x80,
					      VTD_BASE + 0x220,	   PCI_MMIO_BASE,
					      PCI_MMIO_BASE + 0x80 };

	return addresses[(unsigned)rand_r(seed) % ARRAY_SIZE(addresses)] + (unsigned)rand_r(seed) % 64;
}

static uint64_t random_value(unsigned *seed)
{
	uint64_t v =
		(uint64_t)rand_r(seed) << 40 ^ (uint64_t)rand_r(seed) << 20 ^ (uint64_t)rand_r(seed);

	return rand_r(seed) % 2 ? v : v & 0xff;
}

static void poke_lapic(struct rig *r, unsigned *seed)
{
	uint64_t v = random_value(seed);
	unsigned reg = (unsigned)rand_r(seed) % 64;
	bool is_write = rand_r(seed) % 2;

	if (rand_r(seed) % 16 == 0)
		lapic_ack(r->lapic);
	if (rand_r(seed) % 2)
		lapic_mmio(r->lapic, LAPIC_DEFAULT_BASE + reg * 16, 4, is_write, &v);
	else if (is_write)
		lapic_msr_write(r->lapic, rand_r(seed) % 8 ? 0x800 + reg : 0x6e0, v);
	else
		lapic_msr_read(r->lapic, 0x800 + reg, &v);
	if (rand_r(seed) % 200 == 0)
		lapic_msr_write(r->lapic, 0x1b, 0xfee00d00);
}

static void stir(struct rig *r, unsigned *seed, unsigned steps)
{
	struct bus *b = r->t.env.bus;

	for (unsigned i = 0; i < steps; i++) {
		bool is_pio = rand_r(seed) % 2;
		enum bus_space space = is_pio ? BUS_PIO : BUS_MMIO;
		uint64_t addr = is_pio ? random_port(seed) : random_address(seed);
		unsigned size = is_pio ? 1u << rand_r(seed) % 3 : 1 + (unsigned)rand_r(seed) % 8;

		if (rand_r(seed) % 2)
			bus_write(b, space, addr, size, random_value(seed));
		else
			bus_read(b, space, addr, size);
		if (r->lapic)
			poke_lapic(r, seed);
		if (rand_r(seed) % 8 == 0)
			test_advance(&r->t, rand_r(seed) % 100000);
	}
}

static void save(const struct rig *r, struct bytes *out)
{
	out->len = 0;
	assert_int_equal(state_save(r->dev->cls->state, r->dev, out), 0);
}

static struct error err;

static int load(struct rig *r, const uint8_t *data, size_t len)
{
	struct byte_reader in = { .data = data, .len = len };
	int rc;

	err.text[0] = 0;
	rc = state_load(r->dev->cls->state, r->dev, &in, &err);
	if (rc)
		assert_true(err.text[0]);
	return rc;
}

static void expect_same(const struct bytes *a, const struct bytes *b, const char *name)
{
	if (a->len != b->len || memcmp(a->data, b->data, a->len))
		fail_msg("%s: the states differ", name);
}

/* ---- the properties ---- */

static void test_tables(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct device_class *c = rows[i].cls;

		if (state_desc_verify(c->state, &err))
			fail_msg("%s: %s", rows[i].name, err.text);
		assert_string_equal(c->name, c->state->name);
		assert_ptr_equal(device_class_find(c->name), c);
		assert_ptr_equal(device_classes[i], c);
		assert_non_null(c->reset);
		assert_non_null(c->destroy);
	}
	assert_null(device_classes[ARRAY_SIZE(rows)]);
	assert_null(device_class_find("no such device"));
}

static void test_save_load_save(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		unsigned seed = 1000 + i;

		for (unsigned round = 0; round < 20; round++) {
			struct rig a, b;
			struct bytes one = { 0 }, two = { 0 };

			rig_init(&a, &rows[i]);
			rig_init(&b, &rows[i]);
			stir(&a, &seed, round * 50);
			save(&a, &one);
			if (load(&b, one.data, one.len))
				fail_msg("its own state: %s", err.text);
			save(&b, &two);
			expect_same(&one, &two, rows[i].name);
			/* and it goes on from there */
			vclock_set(&b.t.clock, vclock_now_ns(&a.t.clock));
			if (b.dev->cls->after_load)
				b.dev->cls->after_load(b.dev);
			stir(&b, &seed, 100);
			bytes_free(&one);
			bytes_free(&two);
			rig_fini(&a);
			rig_fini(&b);
		}
	}
}

static void test_truncated(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		unsigned seed = 2000 + i;
		struct rig a, b;
		struct bytes stream = { 0 }, before = { 0 }, after = { 0 };

		rig_init(&a, &rows[i]);
		rig_init(&b, &rows[i]);
		stir(&a, &seed, 300);
		save(&a, &stream);
		save(&b, &before);
		for (size_t len = 0; len < stream.len; len += 1 + stream.len / 500) {
			/* exactly so long: a byte too far is a sanitizer's finding */
			uint8_t *part = malloc(len ? len : 1);

			memcpy(part, stream.data, len);
			assert_int_equal(load(&b, part, len), -EINVAL);
			free(part);
		}
		save(&b, &after);
		expect_same(&before, &after, rows[i].name);
		bytes_free(&stream);
		bytes_free(&before);
		bytes_free(&after);
		rig_fini(&a);
		rig_fini(&b);
	}
}

static void test_bit_flips(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		unsigned seed = 3000 + i, refused = 0, taken = 0;
		struct rig a, b;
		struct bytes stream = { 0 }, before = { 0 }, after = { 0 };
		size_t nbits, step;

		rig_init(&a, &rows[i]);
		stir(&a, &seed, 300);
		save(&a, &stream);
		nbits = stream.len * 8;
		step = 1 + nbits / 1500;
		rig_init(&b, &rows[i]);
		for (size_t bit = (unsigned)rand_r(&seed) % step; bit < nbits; bit += step) {
			stream.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
			save(&b, &before);
			if (load(&b, stream.data, stream.len)) {
				save(&b, &after);
				expect_same(&before, &after, rows[i].name);
				refused++;
			} else {
				taken++;
				if (b.dev->cls->after_load)
					b.dev->cls->after_load(b.dev);
				stir(&b, &seed, 20);
				rig_fini(&b);
				rig_init(&b, &rows[i]);
			}
			stream.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
		printf("%-16s %6zu bytes: of %u flips %u refused\n", rows[i].name, stream.len,
		       refused + taken, refused);
		assert_true(refused);
		bytes_free(&stream);
		bytes_free(&before);
		bytes_free(&after);
		rig_fini(&a);
		rig_fini(&b);
	}
}

/* What survives a reset by design: time and memory on a battery, lines that others drive. */
static bool survives_reset(const struct device_class *c)
{
	return c == &rtc_class || c == &gsi_class;
}

static void test_reset(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		unsigned seed = 4000 + i;
		struct rig a, b;
		struct bytes one = { 0 }, two = { 0 };

		if (survives_reset(rows[i].cls))
			continue;
		rig_init(&a, &rows[i]);
		rig_init(&b, &rows[i]);
		stir(&a, &seed, 1000);
		vclock_set(&b.t.clock, vclock_now_ns(&a.t.clock));
		a.dev->cls->reset(a.dev);
		b.dev->cls->reset(b.dev);
		save(&a, &one);
		save(&b, &two);
		expect_same(&one, &two, rows[i].name);
		bytes_free(&one);
		bytes_free(&two);
		rig_fini(&a);
		rig_fini(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables),	  cmocka_unit_test(test_save_load_save),
		cmocka_unit_test(test_truncated), cmocka_unit_test(test_bit_flips),
		cmocka_unit_test(test_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
