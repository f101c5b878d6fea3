/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/driver_testing.h"
#include "dev/virtio/virtio_console.h"

/* A backend that takes as much as it is told to. */
struct fake_chr {
	struct char_dev chr;
	size_t room, len;
	unsigned rx_readies;
	char out[4096];
};
static struct fake_chr chr[2];

static size_t chr_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	struct fake_chr *f = container_of(c, struct fake_chr, chr);
	size_t n = MIN(len, f->room);

	assert_true(f->len + n <= sizeof(f->out));
	memcpy(f->out + f->len, data, n);
	f->len += n;
	f->room -= n;
	return n;
}

static void chr_rx_ready(struct char_dev *c)
{
	container_of(c, struct fake_chr, chr)->rx_readies++;
}

static const struct char_ops chr_ops = { .write = chr_write, .rx_ready = chr_rx_ready };

static struct drv d;
static struct virtio_console *con;

static void make(unsigned nports, bool has_console)
{
	struct error err;
	struct virtio_console_config cfg = { .nports = nports, .slot = -1 };

	drv_init(&d);
	memset(chr, 0, sizeof(chr));
	for (unsigned i = 0; i < 2; i++) {
		chr[i].chr.ops = &chr_ops;
		chr[i].room = SIZE_MAX;
	}
	cfg.ports[0].chr = has_console ? &chr[0].chr : NULL;
	cfg.ports[1] = (struct virtio_console_port){ &chr[1].chr, VIRTIO_PORT_GUEST_AGENT, false };
	assert_int_equal(
		virtio_console_create(&con, &d.t.env, drv_bus(&d), "virtio-console0", &cfg, &err), 0);
}

static int setup_one(void **state)
{
	make(1, true);
	return 0;
}

static int setup_two(void **state)
{
	make(2, true);
	return 0;
}

static int setup_agent(void **state)
{
	make(2, false);
	return 0;
}

static int teardown(void **state)
{
	drv_fini(&d, virtio_console_device(con));
	assert_null(chr[1].chr.user.receive);
	return 0;
}

static size_t can_receive(unsigned i)
{
	return chr[i].chr.user.can_receive(chr[i].chr.user.ctx);
}

static void type(unsigned i, const char *s)
{
	chr[i].chr.user.receive(chr[i].chr.user.ctx, (const uint8_t *)s, strlen(s));
}

static void print(unsigned q, const char *s)
{
	drv_poke(&d, DRV_BUFFERS + 0x8000, s, strlen(s));
	drv_add(&d, q,
		(struct drv_buf[]){ { DRV_BUFFERS + 0x8000, 2, false },
				    { DRV_BUFFERS + 0x8002, strlen(s) - 2, false } },
		2);
	drv_kick(&d, q);
}

static void expect_out(unsigned i, const char *s)
{
	assert_int_equal(chr[i].len, strlen(s));
	assert_memory_equal(chr[i].out, s, chr[i].len);
	chr[i].len = 0;
}

static void test_single(void **state)
{
	uint32_t len;

	/* Early output without queues. */
	drv_probe(&d);
	drv_write(&d, DRV_CONFIG + 8, 4, '!');
	expect_out(0, "!");
	assert_int_equal(drv_read(&d, DRV_CONFIG + 4, 4), 1);
	assert_false(d.offered & 2);
	assert_int_equal(can_receive(0), 0);

	drv_start(&d, UINT64_MAX, 2, true);
	print(1, "hello");
	expect_out(0, "hello");
	assert_true(drv_used(&d, 1, NULL, NULL));
	assert_int_equal(can_receive(0), 0);
	unsigned readies = chr[0].rx_readies;
	drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS, 10, true }, 1);
	drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS + 0x1000, 4, true }, 1);
	drv_kick(&d, 0);
	assert_int_equal(chr[0].rx_readies, readies + 1);
	assert_int_equal(can_receive(0), 10);
	type(0, "abc");
	assert_true(drv_used(&d, 0, NULL, &len));
	assert_int_equal(len, 3);
	assert_int_equal(drv_peek8(&d, DRV_BUFFERS + 2), 'c');
	assert_int_equal(can_receive(0), 4);
	type(0, "too long"); /* more than was said: cut */
	assert_true(drv_used(&d, 0, NULL, &len));
	assert_int_equal(len, 4);
	assert_int_equal(can_receive(0), 0);
	/* The window. */
	unsigned before = d.t.msi.count;
	chr[0].chr.user.resized(chr[0].chr.user.ctx, 132, 50);
	assert_int_equal(d.t.msi.count, before + 1);
	assert_int_equal(d.t.msi.data, DRV_MSI_DATA(0));
	assert_int_equal(drv_read(&d, DRV_CONFIG, 2), 132);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 2, 2), 50);
	/* An empty buffer is nonsense. */
	drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS, 10, false }, 1);
	drv_kick(&d, 0);
	assert_int_equal(can_receive(0), 0);
	assert_int_equal(drv_status(&d), 0x4f);
}

static void test_slow_backend(void **state)
{
	drv_start(&d, UINT64_MAX, 2, true);
	chr[0].room = 3;
	print(1, "hello world");
	print(1, "..");
	assert_false(drv_used(&d, 1, NULL, NULL));
	chr[0].room = 4;
	chr[0].chr.user.writable(chr[0].chr.user.ctx);
	assert_false(drv_used(&d, 1, NULL, NULL));
	/* Saved in the middle of it. */
	struct device *dev = virtio_console_device(con);
	struct bytes b = { 0 };
	struct error err = { 0 };
	dev->cls->pause(dev);
	assert_int_equal(state_save(dev->cls->state, dev, &b), 0);
	dev->cls->resume(dev);
	dev->cls->reset(dev);
	struct byte_reader r = { .data = b.data, .len = b.len };
	if (state_load(dev->cls->state, dev, &r, &err) < 0)
		fail_msg("%s", err.text);
	chr[0].room = SIZE_MAX;
	dev->cls->after_load(dev);
	bytes_free(&b);
	test_advance(&d.t, 1);
	assert_true(drv_used(&d, 1, NULL, NULL));
	assert_true(drv_used(&d, 1, NULL, NULL));
	/* The second chain's buffer is the first's; what it holds now went out. */
	assert_int_equal(chr[0].len, 11 + 2);
	assert_memory_equal(chr[0].out, "hel", 3);
}

static void send_ctrl(uint32_t id, uint16_t event, uint16_t value)
{
	struct {
		uint32_t id;
		uint16_t event, value;
	} m = { id, event, value };

	drv_poke(&d, 0x70000, &m, sizeof(m));
	drv_add(&d, 3, &(struct drv_buf){ 0x70000, sizeof(m), false }, 1);
	drv_kick(&d, 3);
	assert_true(drv_used(&d, 3, NULL, NULL));
}

static void post_ctrl(unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		gpa_t gpa = 0x60000 + d.q[2].next_desc * 0x100;
		drv_add(&d, 2, &(struct drv_buf){ gpa, 0x100, true }, 1);
	}
	drv_kick(&d, 2);
}

static void expect_ctrl(uint32_t id, uint16_t event, uint16_t value, const void *tail, size_t tail_len)
{
	uint16_t head;
	uint32_t len, got_id;
	uint8_t buf[0x100];

	assert_true(drv_used(&d, 2, &head, &len));
	drv_peek(&d, 0x60000 + head * 0x100, buf, len);
	memcpy(&got_id, buf, 4);
	assert_int_equal(got_id, id);
	assert_int_equal(buf[4], event);
	assert_int_equal(buf[6], value);
	assert_int_equal(len, 8 + tail_len);
	assert_memory_equal(buf + 8, tail ? tail : "", tail_len);
}

static void test_multiport(void **state)
{
	static const uint16_t size[2] = { 80, 25 };

	chr[0].chr.user.resized(chr[0].chr.user.ctx, 80, 25);
	drv_start(&d, UINT64_MAX, 6, true);
	assert_true(d.offered & 2);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 4, 4), 2);
	/* Said before there is a buffer; sent when there is. */
	send_ctrl(0xffffffff, 0, 1);
	assert_false(drv_used(&d, 2, NULL, NULL));
	post_ctrl(1);
	expect_ctrl(0, 1, 1, NULL, 0);
	assert_false(drv_used(&d, 2, NULL, NULL));
	post_ctrl(10);
	expect_ctrl(1, 1, 1, NULL, 0);
	send_ctrl(0, 3, 1);
	expect_ctrl(0, 4, 1, NULL, 0);
	expect_ctrl(0, 6, 1, NULL, 0);
	expect_ctrl(0, 5, 1, size, 4);
	send_ctrl(1, 3, 1);
	expect_ctrl(1, 7, 1, VIRTIO_PORT_GUEST_AGENT, strlen(VIRTIO_PORT_GUEST_AGENT));
	expect_ctrl(1, 6, 1, NULL, 0);
	assert_false(drv_used(&d, 2, NULL, NULL));
	/* Input waits until somebody has the port open. */
	drv_add(&d, 4, &(struct drv_buf){ DRV_BUFFERS, 64, true }, 1);
	drv_kick(&d, 4);
	assert_int_equal(can_receive(1), 0);
	assert_false(virtio_console_is_open(con, 1));
	unsigned before = chr[1].rx_readies;
	send_ctrl(1, 6, 1);
	assert_true(virtio_console_is_open(con, 1));
	assert_int_equal(chr[1].rx_readies, before + 1);
	assert_int_equal(can_receive(1), 64);
	type(1, "{}");
	assert_true(drv_used(&d, 4, NULL, NULL));
	print(5, "{\"return\": {}}");
	expect_out(1, "{\"return\": {}}");
	print(1, "console");
	expect_out(0, "console");
	/* The host side goes and comes. */
	chr[1].chr.user.connected(chr[1].chr.user.ctx, false);
	expect_ctrl(1, 6, 0, NULL, 0);
	chr[1].chr.user.connected(chr[1].chr.user.ctx, true);
	expect_ctrl(1, 6, 1, NULL, 0);
	send_ctrl(1, 6, 0);
	assert_false(virtio_console_is_open(con, 1));
	/* Ports that don't exist, messages nobody knows, too short ones. */
	send_ctrl(2, 3, 1);
	send_ctrl(0xffffffff, 6, 1);
	send_ctrl(0, 99, 1);
	drv_add(&d, 3, &(struct drv_buf){ 0x70000, 7, false }, 1);
	drv_kick(&d, 3);
	assert_false(drv_used(&d, 2, NULL, NULL));
	assert_int_equal(drv_status(&d), 0x0f);
	/* A flood of requests gives one answer each, not a queue. */
	for (unsigned i = 0; i < 1000; i++)
		send_ctrl(0, 0, 1);
	unsigned n = 0;
	for (;; n++) {
		post_ctrl(1);
		unsigned k = 0;
		while (drv_used(&d, 2, NULL, NULL))
			k++;
		if (!k)
			break;
	}
	assert_true(n <= 8);
}

static void test_agent_only(void **state)
{
	struct error err = { 0 };
	struct device *dev = virtio_console_device(con);

	if (state_desc_verify(dev->cls->state, &err) < 0)
		fail_msg("%s", err.text);
	drv_start(&d, UINT64_MAX, 6, true);
	post_ctrl(8);
	send_ctrl(0xffffffff, 0, 1);
	expect_ctrl(1, 1, 1, NULL, 0); /* port 0 is not shown */
	assert_false(drv_used(&d, 2, NULL, NULL));
	print(1, "into nothing");
	assert_true(drv_used(&d, 1, NULL, NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_single, setup_one, teardown),
		cmocka_unit_test_setup_teardown(test_slow_backend, setup_one, teardown),
		cmocka_unit_test_setup_teardown(test_multiport, setup_two, teardown),
		cmocka_unit_test_setup_teardown(test_agent_only, setup_agent, teardown),
	};

	return drv_run(tests);
}
