/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/driver_testing.h"
#include "dev/virtio/virtio_blk.h"

#define DISK_BYTES (256 * 1024)
#define HDR	   DRV_BUFFERS /* header, then room for segments */
#define DATA	   (DRV_BUFFERS + 0x1000)
#define STATUS	   (DRV_BUFFERS + 0x800)

/* A disk in memory that completes when told to. */
struct mem_disk {
	struct block_dev dev;
	struct block_info info;
	uint8_t data[DISK_BYTES];
	struct block_req *queue[512];
	unsigned nqueue, drains, flushes, fuas;
	int result; /* of everything */
	bool may_unmap;
	unsigned now, nnow; /* how many try_now does yet, and did */
};
static struct mem_disk disk;

static void disk_submit(struct block_dev *b, struct block_req *req)
{
	assert_true(disk.nqueue < ARRAY_SIZE(disk.queue));
	disk.queue[disk.nqueue++] = req;
}

static void disk_do(struct block_req *req)
{
	size_t off = req->offset_bytes;

	assert_true(req->op == BLOCK_FLUSH || off + req->len_bytes <= DISK_BYTES);
	disk.fuas += req->is_fua;
	switch (req->op) {
	case BLOCK_READ:
		assert_int_equal(iov_from_buf(req->iov, req->niov, 0, disk.data + off, req->len_bytes),
				 req->len_bytes);
		break;
	case BLOCK_WRITE:
		assert_int_equal(iov_to_buf(req->iov, req->niov, 0, disk.data + off, req->len_bytes),
				 req->len_bytes);
		break;
	case BLOCK_TAKE_IN:
	case BLOCK_NAME_BELOW: /* not by controllers */
		fail();
		break;
	case BLOCK_FLUSH:
		disk.flushes++;
		break;
	case BLOCK_DISCARD:
		memset(disk.data + off, 0xdd, req->len_bytes);
		break;
	case BLOCK_WRITE_ZEROES:
		disk.may_unmap = req->may_unmap;
		memset(disk.data + off, 0, req->len_bytes);
		break;
	}
	req->done(req, disk.result);
}

static void no_done(struct block_req *req, int result)
{
	(void)req;
	assert_int_equal(result, disk.result);
}

static int disk_try_now(struct block_dev *b, struct block_req *req)
{
	if (!disk.now)
		return -EAGAIN;
	disk.now--;
	disk.nnow++;
	assert_null(req->done);
	req->done = no_done;
	disk_do(req);
	req->done = NULL;
	return disk.result;
}

/* Last in, first out: nobody may count on an order. */
static void disk_complete(void)
{
	while (disk.nqueue)
		disk_do(disk.queue[--disk.nqueue]);
}

static void disk_info(const struct block_dev *b, struct block_info *out)
{
	*out = disk.info;
}

static void disk_drain(struct block_dev *b)
{
	disk.drains++;
	disk_complete();
}

static const struct block_ops disk_ops = { "mem",      disk_submit, disk_info,
					   disk_drain, NULL,	    disk_try_now };

static struct drv d;
static struct virtio_blk *blk;

static void make(unsigned nqueues, struct block_info info)
{
	struct error err;
	struct virtio_blk_config cfg = { &disk.dev, "serial-number-too-long-for-it", nqueues, -1 };

	drv_init(&d);
	memset(&disk, 0, sizeof(disk));
	disk.dev.ops = &disk_ops;
	disk.info = info;
	for (unsigned i = 0; i < DISK_BYTES; i++)
		disk.data[i] = i / 512;
	assert_int_equal(virtio_blk_create(&blk, &d.t.env, drv_bus(&d), "virtio-blk0", &cfg, &err), 0);
}

static int setup(void **state)
{
	make(2, (struct block_info){ DISK_BYTES, false, true, true, true });
	return 0;
}

static int setup_readonly(void **state)
{
	make(1, (struct block_info){ DISK_BYTES, true, false, false, false });
	return 0;
}

static int teardown(void **state)
{
	drv_fini(&d, virtio_blk_device(blk));
	assert_int_equal(disk.nqueue, 0);
	return 0;
}

static void put_header(uint32_t type, uint64_t sector)
{
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} h = { type, 0, sector };
	uint8_t unset = 0x77;

	drv_poke(&d, HDR, &h, sizeof(h));
	drv_poke(&d, STATUS, &unset, 1);
}

/* Header, @len bytes of data, status: a request in three buffers. */
static void add_request(unsigned q, uint32_t type, uint64_t sector, uint32_t len, bool is_in)
{
	struct drv_buf bufs[3] = { { HDR, 16, false }, { DATA, len, is_in }, { STATUS, 1, true } };

	put_header(type, sector);
	if (!len)
		bufs[1] = bufs[2];
	drv_add(&d, q, bufs, len ? 3 : 2);
	drv_kick(&d, q);
}

static uint8_t finish(unsigned q, uint32_t want_len)
{
	uint32_t len;

	disk_complete();
	assert_true(drv_used(&d, q, NULL, &len));
	assert_int_equal(len, want_len);
	assert_false(drv_used(&d, q, NULL, NULL));
	return drv_peek8(&d, STATUS);
}

static void test_config(void **state)
{
	drv_probe(&d);
	assert_int_equal(drv_cfg_read(&d, 2, 2), 0x1042);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 0, 8), DISK_BYTES / 512);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 12, 4), 254);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 20, 4), 512);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 24, 1), 3);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 32, 1), 1);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 34, 2), 2);
	assert_int_equal(drv_read(&d, DRV_COMMON + 18, 2), 2);
	/* flush, wce, mq, discard, write zeroes, seg_max, blk_size, topology; not ro */
	assert_int_equal(d.offered & 0xffff, drv_use_iommu ? 0x7e46 : 0x7e44);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 8, 4), drv_use_iommu ? 12288 : 0);
}

static void test_read_write(void **state)
{
	uint8_t buf[1024];

	drv_start(&d, UINT64_MAX, 2, true);
	add_request(1, 0, 3, 1024, true);
	assert_false(drv_used(&d, 1, NULL, NULL));
	assert_int_equal(d.t.msi.count, 0);
	assert_int_equal(finish(1, 1025), 0);
	assert_int_equal(d.t.msi.count, 1);
	assert_int_equal(d.t.msi.data, DRV_MSI_DATA(2));
	drv_peek(&d, DATA, buf, 1024);
	assert_int_equal(buf[0], 3);
	assert_int_equal(buf[1023], 4);
	memset(buf, 0xee, sizeof(buf));
	drv_poke(&d, DATA, buf, 1024);
	add_request(0, 1, 7, 1024, false);
	assert_int_equal(finish(0, 1), 0);
	assert_memory_equal(disk.data + 7 * 512, buf, 1024);
	assert_int_equal(disk.data[9 * 512], 9);
	assert_int_equal(disk.fuas, 0);
	add_request(0, 4, 0, 0, false);
	assert_int_equal(finish(0, 1), 0);
	assert_int_equal(disk.flushes, 1);
	add_request(0, 8, 0, 20, true);
	assert_int_equal(finish(0, 21), 0);
	drv_peek(&d, DATA, buf, 20);
	assert_memory_equal(buf, "serial-number-too-lo", 20);
	/* Errors of the host. */
	disk.result = -ENOSPC;
	add_request(0, 1, 7, 512, false);
	assert_int_equal(finish(0, 1), 1);
	disk.result = -EIO;
	add_request(0, 0, 7, 512, true);
	assert_int_equal(finish(0, 513), 1);
	add_request(0, 4, 0, 0, false);
	assert_int_equal(finish(0, 1), 1);
	disk.result = 0;
	struct virtio_blk_stats s;
	virtio_blk_stats(blk, &s);
	assert_int_equal(s.reads, 2);
	assert_int_equal(s.writes, 2);
	assert_int_equal(s.flushes, 2);
	assert_int_equal(s.errors, 3);
}

/* Any framing: cut into buffers of any size. */
static void test_framing(void **state)
{
	drv_start(&d, UINT64_MAX, 1, true);
	for (unsigned cut = 1; cut < 700; cut = cut * 2 + 3) {
		struct drv_buf bufs[64];
		unsigned n = 0;
		/* header and data out of one stretch */
		put_header(1, 20);
		for (unsigned i = 0; i < 512; i++) {
			uint8_t v = i + cut;
			drv_poke(&d, HDR + 16 + i, &v, 1);
		}
		for (unsigned at = 0; at < 528; n++) {
			unsigned part = MIN(n < 20 ? cut : 528u, 528 - at);
			bufs[n] = (struct drv_buf){ HDR + at, part, false };
			at += part;
		}
		bufs[n++] = (struct drv_buf){ STATUS, 1, true };
		drv_add_indirect(&d, 0, 0x70000, bufs, n);
		drv_kick(&d, 0);
		assert_int_equal(finish(0, 1), 0);
		for (unsigned i = 0; i < 512; i++)
			assert_int_equal(disk.data[20 * 512 + i], (uint8_t)(i + cut));
		/* back, with the status in the buffer of the data's end */
		put_header(0, 20);
		n = 0;
		bufs[n++] = (struct drv_buf){ HDR, 16, false };
		for (unsigned at = 0; at < 513; n++) {
			unsigned part = MIN(n < 20 ? cut : 513u, 513 - at);
			bufs[n] = (struct drv_buf){ DATA + at, part, true };
			at += part;
		}
		drv_add(&d, 0, bufs, n);
		drv_kick(&d, 0);
		disk_complete();
		uint32_t len;
		assert_true(drv_used(&d, 0, NULL, &len));
		assert_int_equal(len, 513);
		assert_int_equal(drv_peek8(&d, DATA + 512), 0);
		for (unsigned i = 0; i < 512; i++)
			assert_int_equal(drv_peek8(&d, DATA + i), (uint8_t)(i + cut));
	}
}

static void test_bad_requests(void **state)
{
	drv_start(&d, UINT64_MAX, 2, true);
	static const struct {
		uint32_t type;
		uint64_t sector;
		uint32_t len;
		uint8_t status;
	} bad[] = {
		{ 0, 512, 512, 1 },	   { 0, 511, 1024, 1 },
		{ 0, UINT64_MAX, 512, 1 }, { 0, UINT64_MAX / 512, 512, 1 },
		{ 0, 0, 511, 1 },	   { 0, 0, 513, 1 },
		{ 2, 0, 512, 2 },	   { 7, 0, 512, 2 },
		{ 0xffffffff, 0, 512, 2 },
	};
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		add_request(0, bad[i].type, bad[i].sector, bad[i].len, true);
		assert_int_equal(disk.nqueue, 0);
		assert_int_equal(finish(0, bad[i].len + 1), bad[i].status);
	}
	add_request(0, 1, 512, 512, false);
	assert_int_equal(finish(0, 1), 1);
	/* Without a status byte, without a header: the ring is unusable. */
	drv_add(&d, 0, &(struct drv_buf){ HDR, 16, false }, 1);
	drv_kick(&d, 0);
	assert_int_equal(drv_status(&d), 0x4f);
	drv_start(&d, UINT64_MAX, 2, false);
	drv_add(&d, 0, (struct drv_buf[]){ { HDR, 15, false }, { STATUS, 1, true } }, 2);
	drv_kick(&d, 0);
	assert_int_equal(drv_status(&d), 0x4f);
	assert_int_equal(disk.nqueue, 0);
}

struct seg {
	uint64_t sector;
	uint32_t n, flags;
};

static uint8_t discard(uint32_t type, const struct seg *segs, unsigned n)
{
	put_header(type, 0);
	drv_poke(&d, DATA, segs, n * sizeof(*segs));
	drv_add(&d, 0,
		(struct drv_buf[]){ { HDR, 16, false }, { DATA, n * 16, false }, { STATUS, 1, true } },
		3);
	drv_kick(&d, 0);
	return finish(0, 1);
}

static void test_discard(void **state)
{
	drv_start(&d, UINT64_MAX, 1, true);
	struct seg s[17] = { { 8, 2, 0 }, { 100, 1, 0 } };
	assert_int_equal(discard(11, s, 2), 0);
	assert_int_equal(disk.data[7 * 512], 7);
	assert_int_equal(disk.data[8 * 512], 0xdd);
	assert_int_equal(disk.data[9 * 512 + 511], 0xdd);
	assert_int_equal(disk.data[10 * 512], 10);
	assert_int_equal(disk.data[100 * 512], 0xdd);
	assert_int_equal(discard(13, s, 2), 0);
	assert_int_equal(disk.data[8 * 512], 0);
	assert_false(disk.may_unmap);
	s[1].flags = 1;
	assert_int_equal(discard(13, s, 2), 0);
	assert_true(disk.may_unmap);
	assert_int_equal(discard(11, s, 2), 2);
	s[1].flags = 2;
	assert_int_equal(discard(13, s, 2), 2);
	s[1].flags = 0;
	s[1].sector = 512;
	assert_int_equal(discard(11, s, 2), 1);
	s[1].sector = UINT64_MAX;
	assert_int_equal(discard(11, s, 2), 1);
	s[1].sector = 0;
	s[1].n = UINT32_MAX;
	assert_int_equal(discard(13, s, 2), 1);
	assert_int_equal(discard(11, s, 17), 1);
	assert_int_equal(discard(11, s, 0), 1);
	disk.result = -EIO; /* the first fails: the second is not tried */
	s[1] = (struct seg){ 200, 1, 0 };
	assert_int_equal(discard(11, s, 2), 1);
	assert_int_equal(disk.data[200 * 512], 200);
}

static void test_write_through(void **state)
{
	/* Without FLUSH every write is stable. */
	drv_start(&d, ~(1ULL << 9), 1, true);
	add_request(0, 1, 0, 512, false);
	assert_int_equal(finish(0, 1), 0);
	assert_int_equal(disk.fuas, 1);
	/* With it the driver chooses. */
	drv_start(&d, UINT64_MAX, 1, false);
	add_request(0, 1, 0, 512, false);
	assert_int_equal(finish(0, 1), 0);
	assert_int_equal(disk.fuas, 1);
	drv_write(&d, DRV_CONFIG + 32, 1, 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 32, 1), 0);
	drv_write(&d, DRV_CONFIG + 32, 1, 2);
	drv_write(&d, DRV_CONFIG + 0, 4, 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 32, 1), 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 0, 4), DISK_BYTES / 512);
	add_request(0, 1, 0, 512, false);
	assert_int_equal(finish(0, 1), 0);
	assert_int_equal(disk.fuas, 2);
}

static void test_readonly(void **state)
{
	drv_start(&d, UINT64_MAX, 1, true);
	assert_true(d.offered & (1 << 5));
	assert_false(d.offered & (1 << 12 | 1 << 13 | 1 << 14));
	add_request(0, 1, 0, 512, false);
	assert_int_equal(finish(0, 1), 1);
	add_request(0, 0, 0, 512, true);
	assert_int_equal(finish(0, 513), 0);
	struct seg s = { 0, 1, 0 };
	assert_int_equal(discard(11, &s, 1), 2);
	assert_int_equal(disk.data[0], 0);
}

/* As many and as large segments as it says it takes, wherever they lie: not page by page together, nor at the start of one. */
static void test_largest_request(void **state)
{
	struct drv_buf bufs[256];
	unsigned nsegs, len;

	drv_fini(&d, virtio_blk_device(blk));
	make(1, (struct block_info){ 64 * MIB, false, true, true, true });
	drv_start(&d, UINT64_MAX, 1, true);
	len = drv_use_iommu ? (unsigned)drv_read(&d, DRV_CONFIG + 8, 4) : 64 * KIB;
	nsegs = (unsigned)drv_read(&d, DRV_CONFIG + 12, 4);
	assert_true(nsegs + 2 <= ARRAY_SIZE(bufs) && len >= 2 * GUEST_PAGE_SIZE && len <= 64 * KIB);
	put_header(0, 0);
	bufs[0] = (struct drv_buf){ HDR, 16, false };
	for (unsigned i = 1; i <= nsegs; i++)
		bufs[i] = (struct drv_buf){ DATA + 512, len, true };
	bufs[nsegs + 1] = (struct drv_buf){ STATUS, 1, true };
	drv_add_indirect(&d, 0, DRV_BUFFERS + 128 * KIB, bufs, nsegs + 2);
	drv_kick(&d, 0);
	assert_int_equal(disk.nqueue, 1);
	assert_int_equal(disk.queue[0]->len_bytes, (uint64_t)nsegs * len);
	assert_int_equal(iov_bytes(disk.queue[0]->iov, disk.queue[0]->niov), (uint64_t)nsegs * len);
	disk.nqueue = 0;
	disk.queue[0]->done(disk.queue[0], 0);
	assert_int_equal(finish(0, nsegs * len + 1), 0);
	assert_false(drv_status(&d) & VIRTIO_S_NEEDS_RESET);
}

/* Whoever takes the bus from it, and then the memory, finds nothing under way any more. */
static void test_bus_master(void **state)
{
	drv_start(&d, UINT64_MAX, 1, true);
	add_request(0, 0, 1, 512, true);
	assert_int_equal(disk.nqueue, 1);
	drv_cfg_write(&d, 4, 2, 0x0002);
	assert_int_equal(disk.nqueue, 0);
	assert_int_equal(disk.drains, 1);
	drv_cfg_write(&d, 4, 2, 0x0006);
	assert_int_equal(finish(0, 513), 0);
}

/* Pause finishes what is in flight; reset as well, and the ring is empty after. */
static void test_pause_and_reset(void **state)
{
	struct device *dev = virtio_blk_device(blk);
	struct error err = { 0 };

	if (state_desc_verify(dev->cls->state, &err) < 0)
		fail_msg("%s", err.text);
	drv_start(&d, UINT64_MAX, 2, true);
	drv_write(&d, DRV_CONFIG + 32, 1, 0);
	for (unsigned i = 0; i < 10; i++)
		add_request(i & 1, 0, i, 512, true);
	assert_int_equal(disk.nqueue, 10);
	dev->cls->pause(dev);
	assert_int_equal(disk.nqueue, 0);
	assert_int_equal(disk.drains, 1);
	unsigned n = 0;
	while (drv_used(&d, 0, NULL, NULL) || drv_used(&d, 1, NULL, NULL))
		n++;
	assert_int_equal(n, 10);
	add_request(0, 0, 0, 512, true);
	assert_int_equal(disk.nqueue, 0);

	struct bytes b = { 0 };
	assert_int_equal(state_save(dev->cls->state, dev, &b), 0);
	dev->cls->resume(dev);
	test_advance(&d.t, 1);
	assert_int_equal(finish(0, 513), 0);
	/* Back to the saved state: the request is there again. */
	struct byte_reader r = { .data = b.data, .len = b.len };
	if (state_load(dev->cls->state, dev, &r, &err) < 0)
		fail_msg("%s", err.text);
	dev->cls->after_load(dev);
	test_advance(&d.t, 1);
	assert_int_equal(disk.nqueue, 1);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 32, 1), 0);
	bytes_free(&b);
	/* Reset with something in flight. */
	drv_write(&d, DRV_COMMON + 20, 1, 0);
	assert_int_equal(disk.nqueue, 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 32, 1), 1);
	drv_start(&d, UINT64_MAX, 2, true);
	add_request(0, 0, 0, 512, true);
	assert_int_equal(disk.nqueue, 1);
	dev->cls->reset(dev);
	assert_int_equal(disk.nqueue, 0);
	/* Destroyed with something in flight. */
	drv_start(&d, UINT64_MAX, 2, true);
	add_request(0, 0, 0, 512, true);
}

/* What needs no waiting is back before the kick is over, all of it with one interrupt. */
static void test_now(void **state)
{
	uint8_t buf[512];
	struct virtio_blk_stats s;

	drv_start(&d, UINT64_MAX, 2, true);
	disk.now = 3;
	put_header(0, 5);
	for (unsigned i = 0; i < 4; i++)
		drv_add(&d, 1,
			(struct drv_buf[]){
				{ HDR, 16, false }, { DATA + i * 512, 512, true }, { STATUS, 1, true } },
			3);
	drv_kick(&d, 1);
	assert_int_equal(d.t.msi.count, 1);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(drv_used(&d, 1, NULL, NULL));
		drv_peek(&d, DATA + i * 512, buf, 512);
		assert_int_equal(buf[511], 5);
	}
	assert_false(drv_used(&d, 1, NULL, NULL)); /* the fourth waits */
	assert_int_equal(disk.nqueue, 1);
	assert_int_equal(finish(1, 513), 0);
	drv_peek(&d, DATA + 3 * 512, buf, 512);
	assert_int_equal(buf[0], 5);
	assert_int_equal(disk.nnow, 3);

	/* Its failures are the guest's as well; writes and flushes; the cache switched off. */
	disk.now = 4;
	disk.result = -EIO;
	add_request(0, 0, 0, 512, true);
	assert_int_equal(finish(0, 513), 1);
	disk.result = 0;
	memset(buf, 0xaa, sizeof(buf));
	drv_poke(&d, DATA, buf, 512);
	add_request(0, 1, 9, 512, false);
	assert_int_equal(finish(0, 1), 0);
	assert_memory_equal(disk.data + 9 * 512, buf, 512);
	add_request(0, 4, 0, 0, false);
	assert_int_equal(finish(0, 1), 0);
	drv_write(&d, DRV_CONFIG + 32, 1, 0);
	add_request(0, 1, 9, 512, false);
	assert_int_equal(finish(0, 1), 0);
	assert_int_equal(disk.fuas, 1);
	assert_int_equal(disk.nnow, 7);
	virtio_blk_stats(blk, &s);
	assert_int_equal(s.immediate, 7);
	assert_int_equal(s.errors, 1);
	assert_int_equal(s.reads, 5);

	/* One kick does a bounded amount of it. */
	disk.now = 100;
	put_header(0, 0);
	for (unsigned i = 0; i < 8; i++)
		drv_add(&d, 1,
			(struct drv_buf[]){
				{ HDR, 16, false }, { DATA, DISK_BYTES, true }, { STATUS, 1, true } },
			3);
	drv_kick(&d, 1);
	assert_int_equal(disk.now, 96);
	assert_int_equal(disk.nqueue, 4);
	disk_complete();
	for (unsigned i = 0; i < 8; i++)
		assert_true(drv_used(&d, 1, NULL, NULL));
}

/* One head again and again while nothing completes: bounded by the ring. */
static void test_flood(void **state)
{
	drv_start(&d, UINT64_MAX, 1, false);
	for (unsigned i = 0; i < 500; i++) {
		if (i % 100 == 0)
			put_header(0, 0);
		d.q[0].next_desc = 0;
		drv_add(&d, 0,
			(struct drv_buf[]){ { HDR, 16, false }, { DATA, 512, true }, { STATUS, 1, true } },
			3);
		if (i % 50 == 49)
			drv_kick(&d, 0);
	}
	assert_true(disk.nqueue <= 128);
	assert_int_equal(drv_status(&d), 0x4f);
	disk_complete();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_config, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_write, setup, teardown),
		cmocka_unit_test_setup_teardown(test_framing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_requests, setup, teardown),
		cmocka_unit_test_setup_teardown(test_discard, setup, teardown),
		cmocka_unit_test_setup_teardown(test_write_through, setup, teardown),
		cmocka_unit_test_setup_teardown(test_readonly, setup_readonly, teardown),
		cmocka_unit_test_setup_teardown(test_largest_request, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bus_master, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pause_and_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_now, setup, teardown),
		cmocka_unit_test_setup_teardown(test_flood, setup, teardown),
	};

	return drv_run(tests);
}
