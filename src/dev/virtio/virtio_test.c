/* SPDX-License-Identifier: Apache-2.0 */
/* The status machine, the PCI transport, entropy and balloon. */
#include "dev/virtio/driver_testing.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_rng.h"

static struct drv d;
static struct virtio_rng *rng;
static unsigned fills;

static void fill(void *ctx, uint8_t *buf, size_t len)
{
	assert_ptr_equal(ctx, &fills);
	fills++;
	memset(buf, 0xa5, len);
}

static const struct virtio_rng_config rng_cfg = { .fill = fill, .ctx = &fills, .slot = -1 };

static int setup_rng(void **state)
{
	struct error err;

	drv_init(&d);
	fills = 0;
	assert_int_equal(virtio_rng_create(&rng, &d.t.env, drv_bus(&d), "virtio-rng0", &rng_cfg, &err), 0);
	return 0;
}

static int teardown_rng(void **state)
{
	drv_fini(&d, virtio_rng_device(rng));
	return 0;
}

static int setup_behind_iommu(void **state)
{
	bool use_iommu = drv_use_iommu;

	drv_use_iommu = true; /* in both runs */
	setup_rng(state);
	drv_use_iommu = use_iommu;
	return 0;
}

static void add_rng(unsigned n, uint32_t len)
{
	for (unsigned i = 0; i < n; i++)
		drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS + i * 0x1000, len, true }, 1);
}

static void test_identity(void **state)
{
	drv_probe(&d);
	assert_int_equal(drv_cfg_read(&d, 0, 4), 0x10441af4);
	assert_int_equal(drv_cfg_read(&d, 8, 1), 1);
	assert_int_equal(drv_cfg_read(&d, 0x2c, 2), 0x1af4);
	assert_true(drv_cfg_read(&d, 0x2e, 2) >= 0x40);
	assert_int_equal(d.offered, VIRTIO_FEATURES_COMMON | DRV_MUST);
	assert_int_equal(drv_read(&d, DRV_COMMON + 18, 2), 1);
	/* Selects out of range. */
	drv_write(&d, DRV_COMMON + 0, 4, 2);
	assert_int_equal(drv_read(&d, DRV_COMMON + 4, 4), 0);
	drv_write(&d, DRV_COMMON + 0, 4, 0xffffffff);
	assert_int_equal(drv_read(&d, DRV_COMMON + 4, 4), 0);
	for (unsigned q = 1; q < 0x10000; q = q * 3 + 1) {
		drv_write(&d, DRV_COMMON + 22, 2, q);
		assert_int_equal(drv_read(&d, DRV_COMMON + 22, 2), q);
		assert_int_equal(drv_read(&d, DRV_COMMON + 24, 2), 0);
		drv_write(&d, DRV_COMMON + 24, 2, 8);
		drv_write(&d, DRV_COMMON + 28, 2, 1);
		drv_write(&d, DRV_COMMON + 32, 8, 0x1234);
		assert_int_equal(drv_read(&d, DRV_COMMON + 24, 2), 0);
		assert_int_equal(drv_read(&d, DRV_COMMON + 28, 2), 0);
		assert_int_equal(drv_read(&d, DRV_COMMON + 32, 4), 0);
	}
	/* Sizes: powers of two up to the largest. */
	drv_write(&d, DRV_COMMON + 22, 2, 0);
	assert_int_equal(drv_read(&d, DRV_COMMON + 24, 2), 16);
	static const uint16_t bad[] = { 0, 3, 17, 32, 0x8000, 0xffff };
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		drv_write(&d, DRV_COMMON + 24, 2, bad[i]);
		assert_int_equal(drv_read(&d, DRV_COMMON + 24, 2), 16);
	}
	drv_write(&d, DRV_COMMON + 24, 2, 4);
	assert_int_equal(drv_read(&d, DRV_COMMON + 24, 2), 4);
	/* Vectors: 0 and 1 exist. */
	drv_write(&d, DRV_COMMON + 16, 2, 2);
	assert_int_equal(drv_read(&d, DRV_COMMON + 16, 2), 0xffff);
	drv_write(&d, DRV_COMMON + 26, 2, 1);
	assert_int_equal(drv_read(&d, DRV_COMMON + 26, 2), 1);
	drv_write(&d, DRV_COMMON + 26, 2, 64);
	assert_int_equal(drv_read(&d, DRV_COMMON + 26, 2), 0xffff);
	/* Any byte of any area, any size. */
	for (unsigned off = 0; off < 0x4000; off += 3)
		for (unsigned size = 1; size <= 8; size *= 2) {
			drv_read(&d, off, size);
			if (off >= 56)
				drv_write(&d, off, size, UINT64_MAX);
		}
}

static void set_features(uint64_t f)
{
	for (unsigned i = 0; i < 2; i++) {
		drv_write(&d, DRV_COMMON + 8, 4, i);
		drv_write(&d, DRV_COMMON + 12, 4, (uint32_t)(f >> (32 * i)));
	}
}

static void test_negotiation(void **state)
{
	drv_probe(&d);
	/* Not offered. */
	set_features(DRV_MUST | VIRTIO_F(40));
	drv_write(&d, DRV_COMMON + 20, 1, 0x0b);
	assert_int_equal(drv_status(&d), 0x03);
	/* Without VERSION_1. */
	set_features(VIRTIO_F_EVENT_IDX);
	drv_write(&d, DRV_COMMON + 20, 1, 0x0b);
	assert_int_equal(drv_status(&d), 0x03);
	/* Behind an IOMMU without ACCESS_PLATFORM. */
	if (drv_use_iommu) {
		set_features(VIRTIO_F_VERSION_1);
		drv_write(&d, DRV_COMMON + 20, 1, 0x0b);
		assert_int_equal(drv_status(&d), 0x03);
	}
	/* DRIVER_OK without FEATURES_OK. */
	drv_write(&d, DRV_COMMON + 20, 1, 0x07);
	assert_int_equal(drv_status(&d), 0x03);
	/* A queue before FEATURES_OK. */
	drv_write(&d, DRV_COMMON + 28, 2, 1);
	assert_int_equal(drv_read(&d, DRV_COMMON + 28, 2), 0);
	set_features(DRV_MUST);
	drv_write(&d, DRV_COMMON + 20, 1, 0x0b);
	assert_int_equal(drv_status(&d), 0x0b);
	/* Fixed from now on. */
	set_features(DRV_MUST | VIRTIO_F_EVENT_IDX);
	drv_write(&d, DRV_COMMON + 8, 4, 0);
	assert_int_equal(drv_read(&d, DRV_COMMON + 12, 4), 0);
	/* Kicks before DRIVER_OK are nothing; what waits is served at DRIVER_OK. */
	drv_setup_queue(&d, 0, 8);
	add_rng(1, 64);
	drv_kick(&d, 0);
	assert_false(drv_used(&d, 0, NULL, NULL));
	drv_write(&d, DRV_COMMON + 20, 1, 0x0f);
	assert_int_equal(drv_status(&d), 0x0f);
	assert_true(drv_used(&d, 0, NULL, NULL));
	/* An enabled queue is fixed. */
	drv_write(&d, DRV_COMMON + 24, 2, 4);
	assert_int_equal(drv_read(&d, DRV_COMMON + 24, 2), 8);
	drv_write(&d, DRV_COMMON + 32, 4, 0);
	assert_int_equal(drv_read(&d, DRV_COMMON + 32, 4), DRV_RING(0));
	/* Bits can't be cleared, but by reset. */
	drv_write(&d, DRV_COMMON + 20, 1, 0x01);
	assert_int_equal(drv_status(&d), 0x0f);
	drv_write(&d, DRV_COMMON + 20, 1, 0x8f);
	assert_int_equal(drv_status(&d), 0x8f);
	drv_write(&d, DRV_COMMON + 20, 1, 0);
	assert_int_equal(drv_status(&d), 0);
	assert_int_equal(drv_read(&d, DRV_COMMON + 28, 2), 0);
	assert_int_equal(drv_read(&d, DRV_COMMON + 32, 4), 0);
}

static void test_rng_intx(void **state)
{
	uint16_t head;
	uint32_t len;
	unsigned line = pci_intx_index(d.slot, 0);

	drv_start(&d, 0, 1, false);
	add_rng(3, 100);
	assert_int_equal(fills, 0);
	drv_kick(&d, 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(drv_used(&d, 0, &head, &len));
		assert_int_equal(head, i);
		assert_int_equal(len, 100);
		assert_int_equal(drv_peek8(&d, DRV_BUFFERS + i * 0x1000 + 99), 0xa5);
		assert_int_equal(drv_peek8(&d, DRV_BUFFERS + i * 0x1000 + 100), 0);
	}
	assert_false(drv_used(&d, 0, NULL, NULL));
	assert_true(d.t.lines[line].level);
	assert_int_equal(drv_read(&d, DRV_ISR, 1), 1);
	assert_false(d.t.lines[line].level);
	assert_int_equal(drv_read(&d, DRV_ISR, 1), 0);
	assert_int_equal(d.t.msi.count, 0);
	/* A kick for nothing, and of queues that don't exist. */
	drv_kick(&d, 0);
	drv_write(&d, DRV_NOTIFY + 4, 2, 1);
	drv_write(&d, DRV_NOTIFY + 0xffc, 4, 0xffff);
	assert_false(d.t.lines[line].level);
}

static void test_rng_msix(void **state)
{
	drv_start(&d, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC, 1, true);
	add_rng(1, 100);
	drv_kick(&d, 0);
	assert_int_equal(d.t.msi.count, 1);
	assert_int_equal(d.t.msi.data, DRV_MSI_DATA(1));
	assert_int_equal(d.t.lines[pci_intx_index(d.slot, 0)].rises, 0);
	/* used_event coalesces: the next after five more. */
	drv_poke16(&d, d.q[0].avail + 4 + d.q[0].size * 2, 5);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(d.t.msi.count, 1);
		add_rng(1, 8);
		drv_kick(&d, 0);
	}
	assert_int_equal(d.t.msi.count, 2);
	/* No vector: no interrupt. */
	drv_write(&d, DRV_COMMON + 22, 2, 0);
	drv_write(&d, DRV_COMMON + 26, 2, 0xffff);
	drv_poke16(&d, d.q[0].avail + 4 + d.q[0].size * 2, 6);
	add_rng(1, 8);
	drv_kick(&d, 0);
	assert_int_equal(d.t.msi.count, 2);
	/* Indirect; longer than the device fills. */
	struct drv_buf bufs[2] = { { DRV_BUFFERS, 0x1f000, true },
				   { DRV_BUFFERS + 0x20000, 0x1000, true } };
	drv_add_indirect(&d, 0, 0x70000, bufs, 2);
	drv_kick(&d, 0);
	uint32_t len = 0;
	while (drv_used(&d, 0, NULL, &len))
		;
	assert_int_equal(len, 65536);
}

static void test_broken(void **state)
{
	drv_start(&d, 0, 1, true);
	drv_set_desc(&d, d.q[0].desc, 0, UINT64_MAX, 16, VQ_DESC_F_WRITE, 0);
	drv_poke16(&d, d.q[0].avail + 2, 1);
	drv_kick(&d, 0);
	assert_int_equal(drv_status(&d), 0x4f);
	assert_int_equal(d.t.msi.count, 1);
	assert_int_equal(d.t.msi.data, DRV_MSI_DATA(0));
	drv_kick(&d, 0);
	assert_int_equal(d.t.msi.count, 1);
	/* The driver can't clear it, but a reset does; then all is well again. */
	drv_write(&d, DRV_COMMON + 20, 1, 0x0f);
	assert_int_equal(drv_status(&d), 0x4f);
	drv_start(&d, 0, 1, false);
	add_rng(1, 8);
	drv_kick(&d, 0);
	assert_true(drv_used(&d, 0, NULL, NULL));
	/* A queue outside of RAM. */
	drv_write(&d, DRV_COMMON + 20, 1, 0);
	drv_write(&d, DRV_COMMON + 20, 1, 3);
	set_features(DRV_MUST);
	drv_write(&d, DRV_COMMON + 20, 1, 0x0b);
	drv_write(&d, DRV_COMMON + 32, 8, MIB);
	drv_write(&d, DRV_COMMON + 28, 2, 1);
	if (!drv_use_iommu) /* which is not asked before something is there to do */
		assert_int_equal(drv_status(&d), 0x4b);
	drv_poke16(&d, 2, 1);
	drv_write(&d, DRV_COMMON + 20, 1, 0x0f);
	drv_kick(&d, 0);
	assert_int_equal(drv_status(&d), 0x4f);
	drv_poke16(&d, 2, 0);
}

/* What the IOMMU refuses breaks the queue, wherever it is met; a reset brings it back. */
static void test_refused(void **state)
{
	static const struct {
		gpa_t hole, no_write;
		bool is_done; /* the request was carried out: only its end could not be told */
	} rows[] = {
		{ DRV_RING(0), UINT64_MAX, false },
		{ DRV_RING(0) + 0x1000, UINT64_MAX, false },
		{ UINT64_MAX, DRV_RING(0) + 0x2000, true },
		{ DRV_BUFFERS, UINT64_MAX, false },
		{ UINT64_MAX, DRV_BUFFERS + 0x1000, false },
	};

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		fills = 0;
		drv_start(&d, VIRTIO_F_EVENT_IDX, 1, true);
		d.u.hole = rows[i].hole;
		d.u.no_write = rows[i].no_write;
		d.u.refused = 0;
		drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS, 0x2000, true }, 1);
		drv_kick(&d, 0);
		assert_true(d.u.refused > 0);
		assert_int_equal(drv_status(&d), 0x4f);
		assert_int_equal(fills > 0, rows[i].is_done);
		d.u.refused = 0;
		drv_kick(&d, 0); /* it is not asked again */
		assert_int_equal(d.u.refused, 0);
		d.u.hole = d.u.no_write = UINT64_MAX;
		assert_false(drv_used(&d, 0, NULL, NULL));
	}
	drv_start(&d, 0, 1, true);
	add_rng(1, 8);
	drv_kick(&d, 0);
	assert_true(drv_used(&d, 0, NULL, NULL));
}

static void test_bus_master(void **state)
{
	drv_start(&d, 0, 1, false);
	drv_cfg_write(&d, 4, 2, 0x0002);
	add_rng(1, 8);
	drv_kick(&d, 0);
	assert_false(drv_used(&d, 0, NULL, NULL));
	drv_cfg_write(&d, 4, 2, 0x0006);
	assert_true(drv_used(&d, 0, NULL, NULL));
}

static void test_cfg_window(void **state)
{
	unsigned cap;

	drv_start(&d, 0, 1, false);
	for (cap = drv_cfg_read(&d, 0x34, 1); cap; cap = drv_cfg_read(&d, cap + 1, 1))
		if (drv_cfg_read(&d, cap, 1) == 9 && drv_cfg_read(&d, cap + 3, 1) == 5)
			break;
	assert_true(cap);
	drv_cfg_write(&d, cap + 4, 1, 4);
	drv_cfg_write(&d, cap + 8, 4, DRV_COMMON + 20);
	drv_cfg_write(&d, cap + 12, 4, 1);
	assert_int_equal(drv_cfg_read(&d, cap + 16, 1), 0x0f);
	/* A kick through it. */
	add_rng(1, 8);
	drv_cfg_write(&d, cap + 8, 4, DRV_NOTIFY);
	drv_cfg_write(&d, cap + 12, 4, 2);
	drv_cfg_write(&d, cap + 16, 2, 0);
	assert_true(drv_used(&d, 0, NULL, NULL));
	/* Windows that don't exist. */
	static const struct {
		uint32_t bar, off, len;
	} bad[] = { { 1, 0, 4 },      { 5, 0, 4 },	    { 0xff, 0, 4 },	 { 4, 0x4000, 1 },
		    { 4, 0x3ffe, 4 }, { 4, 0xfffffffc, 4 }, { 4, 1, 4 },	 { 4, 0, 0 },
		    { 4, 0, 3 },      { 4, 0, 8 },	    { 4, 0, 0xffffffff } };
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		drv_cfg_write(&d, cap + 4, 1, bad[i].bar);
		drv_cfg_write(&d, cap + 8, 4, bad[i].off);
		drv_cfg_write(&d, cap + 12, 4, bad[i].len);
		drv_cfg_read(&d, cap + 16, 4);
		drv_cfg_write(&d, cap + 16, 4, 0);
	}
	assert_int_equal(drv_status(&d), 0x0f);
}

/* More than a budget at once goes on in later rounds, and none is forgotten. */
static uint32_t other_vcpu_left;

static void busy_fill(void *ctx, uint8_t *buf, size_t len)
{
	/* As if another vCPU fed the ring while the device works. */
	if (other_vcpu_left) {
		other_vcpu_left--;
		add_rng(1, 8);
	}
	fills++;
}

static void test_budget(void **state)
{
	struct error err;
	struct virtio_rng *busy;
	struct virtio_rng_config cfg = { .fill = busy_fill, .slot = 2 };

	assert_int_equal(virtio_rng_create(&busy, &d.t.env, drv_bus(&d), "virtio-rng1", &cfg, &err), 0);
	d.slot = 2;
	drv_start(&d, VIRTIO_F_EVENT_IDX, 1, true);
	other_vcpu_left = 3000;
	fills = 0;
	add_rng(1, 8);
	drv_kick(&d, 0);
	assert_true(fills <= VIRTIO_BUDGET + 1);
	for (unsigned i = 0; i < 100 && fills < 3001; i++) {
		unsigned before = fills;
		test_advance(&d.t, 1);
		assert_true(fills - before <= 16 * VIRTIO_BUDGET);
	}
	assert_int_equal(fills, 3001);
	virtio_rng_device(busy)->cls->destroy(virtio_rng_device(busy));
	d.slot = 1;
}

static void expect_state_is_sound(const struct device *dev)
{
	struct bytes a = { 0 };
	struct error err = { 0 };

	if (state_desc_verify(dev->cls->state, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(state_save(dev->cls->state, dev, &a), 0);
	bytes_free(&a);
}

static void test_rng_state(void **state)
{
	struct virtio_rng *to;
	struct error err;

	/* Same machine, same slot: as restore builds it. */
	expect_state_is_sound(virtio_rng_device(rng));
	drv_start(&d, VIRTIO_F_EVENT_IDX, 1, true);
	add_rng(2, 8);
	drv_kick(&d, 0);
	assert_int_equal(d.t.msi.count, 1);
	struct device *from = virtio_rng_device(rng);
	from->cls->pause(from);
	add_rng(1, 8); /* a kick that the pause swallows */
	drv_kick(&d, 0);
	struct bytes b = { 0 };
	assert_int_equal(state_save(from->cls->state, from, &b), 0);
	from->cls->destroy(from);
	assert_int_equal(virtio_rng_create(&to, &d.t.env, drv_bus(&d), "virtio-rng0", &rng_cfg, &err), 0);
	rng = to;
	struct byte_reader r = { .data = b.data, .len = b.len };
	struct device *dev = virtio_rng_device(to);
	if (state_load(dev->cls->state, dev, &r, &err) < 0)
		fail_msg("%s", err.text);
	dev->cls->after_load(dev);
	bytes_free(&b);
	drv_poke16(&d, d.q[0].avail + 4 + d.q[0].size * 2, 2);
	test_advance(&d.t, 1);
	unsigned n = 0;
	while (drv_used(&d, 0, NULL, NULL))
		n++;
	assert_int_equal(n, 3);
	assert_int_equal(d.t.msi.count, 2);
	assert_int_equal(drv_status(&d), 0x0f);
	/* And pause and resume without a load. */
	dev->cls->pause(dev);
	add_rng(1, 8);
	drv_kick(&d, 0);
	assert_false(drv_used(&d, 0, NULL, NULL));
	dev->cls->resume(dev);
	test_advance(&d.t, 1);
	assert_true(drv_used(&d, 0, NULL, NULL));
	/* Reset of the machine. */
	dev->cls->reset(dev);
	assert_int_equal(pci_bus_assign(drv_bus(&d), &err), 0);
	assert_int_equal(drv_status(&d), 0);
}

/* ---- balloon ---- */

static struct virtio_balloon *balloon;
static struct {
	gpa_t gpa;
	uint64_t len;
} released[32];
static unsigned nreleased;

static void release(void *ctx, gpa_t gpa, uint64_t len)
{
	assert_true(nreleased < ARRAY_SIZE(released));
	released[nreleased].gpa = gpa;
	released[nreleased++].len = len;
}

static int setup_balloon(void **state)
{
	struct error err;
	struct virtio_balloon_config cfg = { .release = release, .slot = -1 };
	bool use_iommu = drv_use_iommu;

	drv_use_iommu = false; /* it stands behind none: pc.c */
	drv_init(&d);
	drv_use_iommu = use_iommu;
	nreleased = 0;
	assert_int_equal(
		virtio_balloon_create(&balloon, &d.t.env, drv_bus(&d), "virtio-balloon0", &cfg, &err), 0);
	return 0;
}

static int teardown_balloon(void **state)
{
	drv_fini(&d, virtio_balloon_device(balloon));
	return 0;
}

static void inflate(unsigned q, const uint32_t *pfns, unsigned n)
{
	drv_poke(&d, DRV_BUFFERS, pfns, n * 4);
	drv_add(&d, q, &(struct drv_buf){ DRV_BUFFERS, n * 4, false }, 1);
	drv_kick(&d, q);
	assert_true(drv_used(&d, q, NULL, NULL));
}

static void test_balloon(void **state)
{
	static const uint32_t pfns[] = { 0xa0,	 0xa1,	     0xa2,    0xb0, 0xb2,
					 0xffff, 0xffffffff, 0xfee00, 0xb3 };
	uint64_t stats[BALLOON_STATS];

	expect_state_is_sound(virtio_balloon_device(balloon));
	drv_start(&d, UINT64_MAX, 3, true);
	virtio_balloon_set_target(balloon, 5 * 4096 + 1);
	assert_int_equal(d.t.msi.data, DRV_MSI_DATA(0));
	assert_int_equal(drv_read(&d, DRV_CONFIG, 4), 5);
	inflate(0, pfns, ARRAY_SIZE(pfns));
	assert_int_equal(nreleased, 4);
	assert_int_equal(released[0].gpa, 0xa0000);
	assert_int_equal(released[0].len, 3 * 4096);
	assert_int_equal(released[1].gpa, 0xb0000);
	assert_int_equal(released[2].gpa, 0xb2000);
	assert_int_equal(released[3].gpa, 0xb3000);
	drv_write(&d, DRV_CONFIG + 4, 4, 5);
	assert_int_equal(virtio_balloon_actual(balloon), 5 * 4096);
	drv_write(&d, DRV_CONFIG, 4, 77); /* not the driver's */
	assert_int_equal(drv_read(&d, DRV_CONFIG, 4), 5);
	nreleased = 0;
	inflate(1, pfns, 3);
	assert_int_equal(nreleased, 0);
	/* Odd lengths: a tail that is no number is nothing. */
	drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS, 7, false }, 1);
	drv_kick(&d, 0);
	assert_int_equal(nreleased, 1);

	/* Statistics. */
	struct __attribute__((packed)) {
		uint16_t tag;
		uint64_t value;
	} s[] = { { BALLOON_FREE_BYTES, 1000 }, { 99, 5 }, { BALLOON_TOTAL_BYTES, 2000 } };
	drv_poke(&d, DRV_BUFFERS, s, sizeof(s));
	virtio_balloon_poll_stats(balloon); /* nobody there yet */
	drv_add(&d, 2, &(struct drv_buf){ DRV_BUFFERS, sizeof(s), false }, 1);
	drv_kick(&d, 2);
	virtio_balloon_stats(balloon, stats);
	assert_int_equal(stats[BALLOON_FREE_BYTES], 1000);
	assert_int_equal(stats[BALLOON_TOTAL_BYTES], 2000);
	assert_true(stats[BALLOON_SWAP_IN] == UINT64_MAX);
	assert_false(drv_used(&d, 2, NULL, NULL));
	virtio_balloon_poll_stats(balloon);
	assert_true(drv_used(&d, 2, NULL, NULL));
	virtio_balloon_poll_stats(balloon);
	assert_false(drv_used(&d, 2, NULL, NULL));
	s[0].value = 3000;
	drv_poke(&d, DRV_BUFFERS, s, sizeof(s));
	drv_add(&d, 2, &(struct drv_buf){ DRV_BUFFERS, sizeof(s), false }, 1);
	drv_kick(&d, 2);
	virtio_balloon_stats(balloon, stats);
	assert_int_equal(stats[BALLOON_FREE_BYTES], 3000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_identity, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_negotiation, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_rng_intx, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_rng_msix, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_broken, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_bus_master, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_refused, setup_behind_iommu, teardown_rng),
		cmocka_unit_test_setup_teardown(test_cfg_window, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_budget, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_rng_state, setup_rng, teardown_rng),
		cmocka_unit_test_setup_teardown(test_balloon, setup_balloon, teardown_balloon),
	};

	return drv_run(tests);
}
