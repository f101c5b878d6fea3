/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/driver_testing.h"
#include "dev/virtio/virtio_9p.h"

#include <string.h>

#define OUT DRV_BUFFERS
#define IN  (DRV_BUFFERS + 0x1000)

/* A server that keeps requests until it is told to answer. */
static struct {
	struct share_port port;
	struct share_req *reqs[SHARE_REQS_MAX];
	unsigned nreqs, drains, resets;
} folder;
static struct drv d;
static struct virtio_9p *dev;

static void on_submit(struct share_port *p, struct share_req *req)
{
	assert_true(folder.nreqs < SHARE_REQS_MAX);
	folder.reqs[folder.nreqs++] = req;
}

static void answer(void)
{
	struct share_req *req = folder.reqs[--folder.nreqs];
	uint8_t text[P9_ERROR_LEN], header[P9_HEADER];
	uint16_t tag;

	assert_int_equal(iov_to_buf(req->iov, req->nout, 0, header, sizeof(header)), sizeof(header));
	memcpy(&tag, header + 5, 2);
	p9_error(text, tag, 2);
	req->done(req, iov_from_buf(req->iov + req->nout, req->nin, 0, text, sizeof(text)));
}

static void on_drain(struct share_port *p)
{
	folder.drains++;
	while (folder.nreqs)
		answer();
}

static void on_reset(struct share_port *p)
{
	assert_int_equal(folder.nreqs, 0);
	folder.resets++;
}

static const struct share_ops ops = { .submit = on_submit, .drain = on_drain, .reset = on_reset };

static int setup(void **state)
{
	struct virtio_9p_config cfg = { .port = &folder.port, .tag = "folder", .slot = -1 };
	struct error err;

	drv_init(&d);
	memset(&folder, 0, sizeof(folder));
	folder.port.ops = &ops;
	assert_int_equal(virtio_9p_create(&dev, &d.t.env, drv_bus(&d), "virtio-9p0", &cfg, &err), 0);
	drv_probe(&d);
	return 0;
}

static int teardown(void **state)
{
	drv_fini(&d, virtio_9p_device(dev));
	assert_int_equal(folder.nreqs, 0);
	return 0;
}

static void start(void)
{
	drv_start(&d, DRV_MUST | VIRTIO_F(0), 1, true);
}

static void put_message(uint16_t tag)
{
	const uint32_t size = 23;
	uint8_t message[23] = { 0 };

	memcpy(message, &size, 4);
	message[4] = P9_TREAD;
	memcpy(message + 5, &tag, 2);
	drv_poke(&d, OUT, message, sizeof(message));
}

static void tag(void **state)
{
	char name[7] = "";

	assert_true(d.offered & VIRTIO_F(0));
	assert_int_equal(drv_read(&d, DRV_CONFIG, 2), 6);
	for (unsigned i = 0; i < 6; i++)
		name[i] = (char)drv_read(&d, DRV_CONFIG + 2 + i, 1);
	assert_string_equal(name, "folder");
	assert_int_equal(drv_read(&d, DRV_CONFIG + 8, 1), 0);
}

static void request(void **state)
{
	const struct drv_buf bufs[] = {
		{ OUT, 5, false }, { OUT + 5, 18, false }, { IN, 4, true }, { IN + 4, 500, true }
	};
	uint16_t head, got;
	uint32_t len;

	start();
	put_message(77);
	uint16_t want = drv_add(&d, 0, bufs, 4);

	drv_kick(&d, 0);
	assert_int_equal(folder.nreqs, 1);
	assert_int_equal(folder.reqs[0]->out_bytes, 23);
	assert_int_equal(folder.reqs[0]->in_bytes, 504);
	assert_false(drv_used(&d, 0, &head, &len));
	answer();
	assert_true(drv_used(&d, 0, &head, &len));
	assert_int_equal(head, want);
	assert_int_equal(len, P9_ERROR_LEN);
	assert_int_equal(drv_peek8(&d, IN + 4), P9_RLERROR);
	drv_peek(&d, IN + 5, &got, 2);
	assert_int_equal(got, 77);
}

/* What is under way is finished at a pause and before a reset; the session goes with a reset only. */
static void pause_and_reset(void **state)
{
	const struct drv_buf bufs[] = { { OUT, 23, false }, { IN, 500, true } };
	struct device *device = virtio_9p_device(dev);
	uint16_t head;
	uint32_t len;

	start();
	put_message(1);
	for (unsigned i = 0; i < 3; i++)
		drv_add(&d, 0, bufs, 2);
	drv_kick(&d, 0);
	assert_int_equal(folder.nreqs, 3);
	unsigned resets = folder.resets;

	device->cls->pause(device);
	assert_int_equal(folder.nreqs, 0);
	assert_int_equal(folder.resets, resets);
	for (unsigned i = 0; i < 3; i++)
		assert_true(drv_used(&d, 0, &head, &len));
	device->cls->resume(device);
	drv_add(&d, 0, bufs, 2);
	drv_kick(&d, 0);
	assert_int_equal(folder.nreqs, 1);
	drv_write(&d, DRV_COMMON + 20, 1, 0); /* the driver resets it */
	assert_int_equal(folder.nreqs, 0);
	assert_int_equal(folder.resets, resets + 1);
}

static void no_room(void **state)
{
	const struct drv_buf small[] = { { OUT, 23, false }, { IN, 10, true } };
	uint16_t head;
	uint32_t len;

	start();
	drv_add(&d, 0, small, 2);
	drv_kick(&d, 0);
	assert_int_equal(folder.nreqs, 0);
	assert_true(drv_status(&d) & VIRTIO_S_NEEDS_RESET);
	assert_false(drv_used(&d, 0, &head, &len));
}

static void no_message(void **state)
{
	const struct drv_buf none[] = { { OUT, 6, false }, { IN, 100, true } };

	start();
	drv_add(&d, 0, none, 2);
	drv_kick(&d, 0);
	assert_int_equal(folder.nreqs, 0);
	assert_true(drv_status(&d) & VIRTIO_S_NEEDS_RESET);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = { TEST(tag), TEST(request), TEST(pause_and_reset),
					    TEST(no_room), TEST(no_message) };

	return drv_run(tests);
}
