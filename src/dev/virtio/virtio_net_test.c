/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/driver_testing.h"
#include "dev/virtio/virtio_net.h"
#include "net/offload.h"

#define CSUM	  (1ULL << 0)
#define MRG_RXBUF (1ULL << 15)

static const uint8_t own_mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };

/* A port that records. */
static struct fake_port {
	struct net_port port;
	unsigned sends, rx_readies;
	bool is_congested;
	struct net_offload off;
	uint8_t frame[NET_FRAME_MAX];
	size_t len;
} port;

static int port_send(struct net_port *p, const struct net_offload *off, const struct iovec *iov,
		     unsigned niov)
{
	if (port.is_congested)
		return -EAGAIN;
	port.sends++;
	port.off = *off;
	port.len = iov_to_buf(iov, niov, 0, port.frame, sizeof(port.frame));
	return 0;
}

static void port_rx_ready(struct net_port *p)
{
	port.rx_readies++;
}

static const struct net_ops port_ops = { .send = port_send, .rx_ready = port_rx_ready };

static struct drv d;
static struct virtio_net *net;

static void make(bool can_offload)
{
	struct error err;
	struct virtio_net_config cfg = { &port.port, -1 };

	drv_init(&d);
	memset(&port, 0, sizeof(port));
	port.port.ops = &port_ops;
	port.port.can_offload = can_offload;
	memcpy(port.port.mac, own_mac, 6);
	assert_int_equal(virtio_net_create(&net, &d.t.env, drv_bus(&d), "virtio-net0", &cfg, &err), 0);
}

static int setup(void **state)
{
	make(true);
	return 0;
}

static int setup_plain(void **state)
{
	make(false);
	return 0;
}

static int teardown(void **state)
{
	drv_fini(&d, virtio_net_device(net));
	return 0;
}

static int receive(const struct net_offload *off, const uint8_t *frame, size_t len)
{
	static const struct net_offload none;
	struct iovec iov[2] = { { (void *)(uintptr_t)frame, MIN(len, (size_t)33) },
				{ (void *)(uintptr_t)(frame + MIN(len, (size_t)33)),
				  len - MIN(len, (size_t)33) } };

	return port.port.card.receive(port.port.card.ctx, off ? off : &none, iov, 2);
}

static int receive_to(const uint8_t *mac)
{
	uint8_t frame[60] = { 0 };

	memcpy(frame, mac, 6);
	return receive(NULL, frame, sizeof(frame));
}

static void add_rx(unsigned n, uint32_t len)
{
	for (unsigned i = 0; i < n; i++)
		drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS + i * 0x1000, len, true }, 1);
	drv_kick(&d, 0);
}

static uint64_t filtered(void)
{
	struct virtio_net_stats s;

	virtio_net_stats(net, &s);
	return s.rx_filtered;
}

static void test_config(void **state)
{
	uint8_t mac[6];

	drv_probe(&d);
	assert_int_equal(drv_cfg_read(&d, 2, 2), 0x1041);
	for (unsigned i = 0; i < 6; i++)
		mac[i] = drv_read(&d, DRV_CONFIG + i, 1);
	assert_memory_equal(mac, own_mac, 6);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 6, 2), 1);
	assert_true(d.offered & CSUM);
	assert_int_equal(drv_read(&d, DRV_COMMON + 18, 2), 3);
}

static void test_tx(void **state)
{
	struct {
		struct net_offload off;
		uint16_t num;
	} h = { { .flags = 1, .gso_type = 1, .gso_size = 1448, .csum_start = 34, .csum_offset = 16 }, 0 };
	uint8_t frame[3000];

	drv_start(&d, UINT64_MAX, 3, true);
	for (unsigned i = 0; i < sizeof(frame); i++)
		frame[i] = i * 3;
	drv_poke(&d, DRV_BUFFERS, &h, 12);
	drv_poke(&d, DRV_BUFFERS + 12, frame, sizeof(frame));
	struct drv_buf bufs[3] = { { DRV_BUFFERS, 10, false },
				   { DRV_BUFFERS + 10, 100, false },
				   { DRV_BUFFERS + 110, 2902, false } };
	drv_add(&d, 1, bufs, 3);
	drv_kick(&d, 1);
	assert_int_equal(port.sends, 1);
	assert_int_equal(port.len, sizeof(frame));
	assert_memory_equal(port.frame, frame, sizeof(frame));
	assert_memory_equal(&port.off, &h.off, sizeof(h.off));
	assert_true(drv_used(&d, 1, NULL, NULL));
	test_advance(&d.t, VIRTIO_IRQ_DELAY_NS);
	assert_int_equal(d.t.msi.data, DRV_MSI_DATA(2));

	/* Congestion: the chain stays until tx_ready. */
	port.is_congested = true;
	drv_add(&d, 1, bufs, 3);
	drv_add(&d, 1, bufs, 3);
	drv_kick(&d, 1);
	assert_false(drv_used(&d, 1, NULL, NULL));
	port.is_congested = false;
	port.port.card.tx_ready(port.port.card.ctx);
	assert_int_equal(port.sends, 3);
	assert_true(drv_used(&d, 1, NULL, NULL));
	assert_true(drv_used(&d, 1, NULL, NULL));

	/* Frames that are none. */
	static const uint32_t lens[] = { 0, 11, 12, 25 };
	for (unsigned i = 0; i < ARRAY_SIZE(lens); i++) {
		drv_add(&d, 1, &(struct drv_buf){ DRV_BUFFERS, lens[i], false }, 1);
		drv_kick(&d, 1);
		assert_true(drv_used(&d, 1, NULL, NULL));
	}
	drv_add(&d, 1, &(struct drv_buf){ DRV_BUFFERS, NET_FRAME_MAX + 13, false }, 1);
	drv_kick(&d, 1);
	h.off.gso_type = 3; /* UDP: not offered */
	drv_poke(&d, DRV_BUFFERS, &h, 12);
	drv_add(&d, 1, bufs, 3);
	drv_kick(&d, 1);
	assert_int_equal(port.sends, 3);
	struct virtio_net_stats s;
	virtio_net_stats(net, &s);
	assert_int_equal(s.tx_dropped, 6);
	assert_int_equal(s.tx_frames, 3);
}

static void test_tx_not_negotiated(void **state)
{
	struct net_offload off = { .flags = 1, .csum_start = 34, .csum_offset = 16 };

	assert_true(port.port.can_offload == false);
	drv_start(&d, UINT64_MAX, 3, true);
	assert_false(d.offered & 0x3fff & ~(1u << 5));
	drv_poke(&d, DRV_BUFFERS, &off, sizeof(off));
	drv_add(&d, 1, &(struct drv_buf){ DRV_BUFFERS, 112, false }, 1);
	drv_kick(&d, 1);
	assert_int_equal(port.sends, 0);
	memset(&off, 0, sizeof(off));
	drv_poke(&d, DRV_BUFFERS, &off, sizeof(off));
	drv_add(&d, 1, &(struct drv_buf){ DRV_BUFFERS, 112, false }, 1);
	drv_kick(&d, 1);
	assert_int_equal(port.sends, 1);
	assert_int_equal(port.len, 100);
}

static void test_rx(void **state)
{
	uint8_t frame[5000];
	uint32_t len;

	memcpy(frame, own_mac, 6);
	for (unsigned i = 6; i < sizeof(frame); i++)
		frame[i] = i * 5;
	/* Nobody there: lost. */
	assert_int_equal(receive(NULL, frame, 60), 0);
	drv_start(&d, UINT64_MAX, 3, true);
	/* No buffers: kept by the port, called again at the kick. */
	assert_int_equal(receive(NULL, frame, 60), -ENOBUFS);
	add_rx(1, 2000);
	assert_int_equal(port.rx_readies, 1);
	add_rx(1, 2000);
	assert_int_equal(port.rx_readies, 1);
	assert_int_equal(receive(NULL, frame, 60), 0);
	assert_true(drv_used(&d, 0, NULL, &len));
	assert_int_equal(len, 72);
	assert_int_equal(d.t.msi.data, DRV_MSI_DATA(1));
	assert_int_equal(drv_peek16(&d, DRV_BUFFERS + 10), 1);
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(drv_peek8(&d, DRV_BUFFERS + 12 + i), frame[i]);

	/* Merged: 5012 bytes in 2000s; one waits already. */
	assert_int_equal(receive(NULL, frame, sizeof(frame)), -ENOBUFS);
	assert_false(drv_used(&d, 0, NULL, NULL));
	drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS + 0x1000, 2000, true }, 1);
	drv_kick(&d, 0);
	assert_int_equal(port.rx_readies, 2);
	assert_int_equal(receive(NULL, frame, sizeof(frame)), -ENOBUFS);
	drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS + 0x2000, 2000, true }, 1);
	drv_kick(&d, 0);
	assert_int_equal(port.rx_readies, 3);
	unsigned before = d.t.msi.count;
	assert_int_equal(receive(NULL, frame, sizeof(frame)), 0);
	static const uint32_t lens[] = { 2000, 2000, 1012 };
	for (unsigned i = 0; i < 3; i++) {
		assert_true(drv_used(&d, 0, NULL, &len));
		assert_int_equal(len, lens[i]);
	}
	assert_false(drv_used(&d, 0, NULL, NULL));
	assert_true(d.t.msi.count <= before + 1); /* one interrupt for all */
	assert_int_equal(drv_peek16(&d, DRV_BUFFERS + 10), 3);
	for (unsigned i = 1988; i < 3988; i++)
		assert_int_equal(drv_peek8(&d, DRV_BUFFERS + 0x1000 + i - 1988), frame[i]);
	assert_int_equal(drv_peek8(&d, DRV_BUFFERS + 0x2000 + 1011), frame[4999]);

	/* No Ethernet frames. */
	assert_int_equal(receive(NULL, frame, 13), 0);
	/* A buffer that can't even take the header. */
	add_rx(1, 11);
	assert_int_equal(receive(NULL, frame, 60), -ENOBUFS);
	assert_int_equal(drv_status(&d), 0x4f);
}

static void test_rx_unmerged(void **state)
{
	uint8_t frame[200] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	uint32_t len;

	drv_start(&d, ~MRG_RXBUF, 3, true);
	drv_add(&d, 0,
		(struct drv_buf[]){ { DRV_BUFFERS, 12, true }, { DRV_BUFFERS + 0x1000, 150, true } }, 2);
	drv_kick(&d, 0);
	assert_int_equal(receive(NULL, frame, 151), 0); /* too long for the buffer: dropped */
	assert_false(drv_used(&d, 0, NULL, NULL));
	assert_int_equal(receive(NULL, frame, 150), 0);
	assert_true(drv_used(&d, 0, NULL, &len));
	assert_int_equal(len, 162);
}

/* A frame with hints to a driver that took none. */
static void test_rx_software_offload(void **state)
{
	uint8_t frame[14 + 40 + 2500] = { 0 };
	struct net_offload off = { .flags = 1, .gso_type = NET_GSO_TCP4, .gso_size = 1000 };
	uint32_t len;

	memcpy(frame, own_mac, 6);
	frame[12] = 8;
	memcpy(frame + 14, "\x45\x00\x09\xec\x00\x01\x40\x00\x40\x06", 10);
	frame[14 + 20 + 12] = 0x50;
	drv_start(&d, MRG_RXBUF, 3, true);
	for (unsigned i = 0; i < 3; i++)
		drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS + i * 0x1000, 1600, true }, 1);
	assert_int_equal(receive(&off, frame, sizeof(frame)), 0);
	static const uint32_t lens[] = { 1066, 1066, 566 };
	for (unsigned i = 0; i < 3; i++) {
		assert_true(drv_used(&d, 0, NULL, &len));
		assert_int_equal(len, lens[i]);
		assert_int_equal(drv_peek16(&d, DRV_BUFFERS + i * 0x1000), 0);
	}
	/* With the features it passes whole. */
	drv_start(&d, UINT64_MAX, 3, true);
	for (unsigned i = 0; i < 3; i++)
		drv_add(&d, 0, &(struct drv_buf){ DRV_BUFFERS + i * 0x1000, 1600, true }, 1);
	assert_int_equal(receive(&off, frame, sizeof(frame)), 0);
	assert_true(drv_used(&d, 0, NULL, &len));
	assert_int_equal(len, 1600);
	assert_true(drv_used(&d, 0, NULL, &len));
	assert_int_equal(len, 12 + 2554 - 1600);
	assert_int_equal(drv_peek16(&d, DRV_BUFFERS), 0x0101);
	/* Hints nobody knows. */
	off.gso_type = 77;
	assert_int_equal(receive(&off, frame, sizeof(frame)), 0);
	assert_false(drv_used(&d, 0, NULL, NULL));
}

static uint8_t control(uint8_t class, uint8_t cmd, const void *data, uint32_t len)
{
	uint8_t head[2] = { class, cmd }, unset = 0x77;

	drv_poke(&d, 0x70000, head, 2);
	drv_poke(&d, 0x70002, data, len);
	drv_poke(&d, 0x6fff0, &unset, 1);
	drv_add(&d, 2,
		(struct drv_buf[]){ { 0x70000, 2, false }, { 0x70002, len, false }, { 0x6fff0, 1, true } },
		3);
	drv_kick(&d, 2);
	assert_true(drv_used(&d, 2, NULL, NULL));
	return drv_peek8(&d, 0x6fff0);
}

static bool gets(const uint8_t *mac)
{
	uint64_t before = filtered();

	assert_int_equal(receive_to(mac), 0);
	return filtered() == before;
}

static void test_filter(void **state)
{
	static const uint8_t other[6] = { 2, 0, 0, 0, 0, 9 }, multi[6] = { 1, 0, 0x5e, 0, 0, 1 },
			     bcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	uint8_t on = 1, off = 0, table[4 + 6 + 4 + 6] = { 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 1 };

	drv_start(&d, UINT64_MAX, 3, true);
	add_rx(60, 1600);
	assert_true(gets(own_mac) && gets(bcast));
	assert_false(gets(other) || gets(multi));
	assert_int_equal(control(0, 0, &on, 1), 0);
	assert_true(gets(other) && gets(multi));
	assert_int_equal(control(0, 0, &off, 1), 0);
	assert_int_equal(control(0, 1, &on, 1), 0);
	assert_true(gets(multi));
	assert_false(gets(other));
	assert_int_equal(control(0, 1, &off, 1), 0);
	memcpy(table + 14, multi, 6);
	assert_int_equal(control(1, 0, table, sizeof(table)), 0);
	assert_true(gets(multi) && gets(other));
	assert_int_equal(control(0, 3, &on, 1), 0); /* NOMULTI */
	assert_int_equal(control(0, 5, &on, 1), 0); /* NOBCAST */
	assert_false(gets(multi) || gets(bcast));
	/* An address of its own. */
	assert_int_equal(control(1, 1, "\x52\x54\x00\xaa\xbb\xcc", 6), 0);
	assert_false(gets(own_mac));
	assert_int_equal(drv_read(&d, DRV_CONFIG + 3, 1), 0xaa);
	/* Malformed. */
	assert_int_equal(control(0, 6, &on, 1), 1);
	assert_int_equal(control(0, 0, &on, 0), 1);
	assert_int_equal(control(0, 0, "\x02", 1), 1);
	assert_int_equal(control(1, 1, "abc", 3), 1);
	assert_int_equal(control(1, 0, table, 9), 1);
	assert_int_equal(control(1, 0, "\xff\xff\xff\xff", 4), 1);
	assert_int_equal(control(1, 2, table, 4), 1);
	assert_int_equal(control(3, 0, table, 4), 1);
	assert_int_equal(control(9, 9, table, 4), 1);
	/* A table that overflows: everything of that kind passes. */
	static uint8_t big[4 + 6 * 100 + 4];
	big[0] = 100;
	assert_int_equal(control(1, 0, big, sizeof(big)), 0);
	assert_true(gets(other));
	/* Guest offloads. */
	uint64_t offloads = 1ULL << 7;
	assert_int_equal(control(5, 0, &offloads, 8), 0);
	offloads = 1ULL << 11;
	assert_int_equal(control(5, 0, &offloads, 8), 1);
	assert_int_equal(control(5, 0, &offloads, 7), 1);
	/* Back to the built-in address by reset. */
	drv_write(&d, DRV_COMMON + 20, 1, 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 3, 1), own_mac[3]);
}

static void test_link_and_state(void **state)
{
	struct device *dev = virtio_net_device(net);
	struct error err = { 0 };
	struct bytes b = { 0 };

	if (state_desc_verify(dev->cls->state, &err) < 0)
		fail_msg("%s", err.text);
	drv_start(&d, UINT64_MAX, 3, true);
	uint8_t gen = drv_read(&d, DRV_COMMON + 21, 1);
	port.port.card.link_changed(port.port.card.ctx, false);
	port.port.card.link_changed(port.port.card.ctx, false);
	assert_int_equal(d.t.msi.count, 1);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 6, 2), 0);
	assert_int_not_equal(drv_read(&d, DRV_COMMON + 21, 1), gen);
	/* While paused frames wait in the port. */
	add_rx(4, 1600);
	dev->cls->pause(dev);
	assert_int_equal(receive_to(own_mac), -ENOBUFS);
	assert_int_equal(state_save(dev->cls->state, dev, &b), 0);
	dev->cls->resume(dev);
	unsigned before = port.rx_readies;
	test_advance(&d.t, 1);
	assert_int_equal(port.rx_readies, before + 1);
	assert_int_equal(receive_to(own_mac), 0);
	assert_true(drv_used(&d, 0, NULL, NULL));
	struct byte_reader r = { .data = b.data, .len = b.len };
	if (state_load(dev->cls->state, dev, &r, &err) < 0)
		fail_msg("%s", err.text);
	dev->cls->after_load(dev);
	assert_int_equal(receive_to(own_mac), 0);
	assert_int_equal(drv_peek16(&d, d.q[0].used + 2), 1);
	bytes_free(&b);
}

static void config_mac(uint8_t mac[6])
{
	for (unsigned i = 0; i < 6; i++)
		mac[i] = drv_read(&d, DRV_CONFIG + i, 1);
}

/* A copy of the machine: the card has another address, which its driver does not know yet. */
static void test_reappears(void **state)
{
	static const uint8_t new_mac[6] = { 0x52, 0x54, 0, 7, 8, 9 };
	uint8_t mac[6];

	drv_start(&d, UINT64_MAX, 3, true);
	add_rx(8, 1600);
	virtio_net_reappear(net);
	config_mac(mac);
	assert_memory_equal(mac, own_mac, 6);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 6, 2), 3); /* up, to be announced */
	assert_int_equal(d.t.msi.count, 1);
	assert_int_equal(control(3, 1, NULL, 0), 1);
	assert_int_equal(control(3, 0, NULL, 0), 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 6, 2), 1);
	memcpy(port.port.mac, new_mac, 6);
	virtio_net_reappear(net);
	config_mac(mac);
	assert_memory_equal(mac, new_mac, 6);
	virtio_net_mac(net, mac);
	assert_memory_equal(mac, own_mac, 6);
	assert_true(gets(own_mac));
	assert_true(gets(new_mac));
	assert_int_equal(control(1, 1, new_mac, 6), 0);
	config_mac(mac);
	assert_memory_equal(mac, new_mac, 6);
	assert_false(gets(own_mac));
	assert_true(gets(new_mac));
}

/* One that cannot announce itself is not asked. */
static void test_reappears_quietly(void **state)
{
	drv_start(&d, ~(1ull << 21), 3, true);
	virtio_net_reappear(net);
	assert_int_equal(d.t.msi.count, 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 6, 2), 1);
}

/* Behind a NAT of its own there is nobody to be told. */
static void test_reappears_alone(void **state)
{
	static const uint8_t new_mac[6] = { 0x52, 0x54, 0, 7, 8, 9 };
	uint8_t mac[6];

	drv_start(&d, UINT64_MAX, 3, true);
	add_rx(8, 1600);
	memcpy(port.port.mac, new_mac, 6);
	port.port.is_alone = true;
	virtio_net_reappear(net);
	assert_int_equal(d.t.msi.count, 0);
	assert_int_equal(drv_read(&d, DRV_CONFIG + 6, 2), 1);
	config_mac(mac);
	assert_memory_equal(mac, new_mac, 6);
	assert_true(gets(own_mac));
	assert_true(gets(new_mac));
}

static void send_frames(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		drv_add(&d, 1, &(struct drv_buf){ DRV_BUFFERS, 72, false }, 1);
	drv_kick(&d, 1);
}

/* As a driver does that has found what it was given back up to now. */
static void want_next(void)
{
	while (drv_used(&d, 1, NULL, NULL))
		;
	drv_poke16(&d, d.q[1].avail + 4 + 2 * d.q[1].size, d.q[1].used_seen);
}

/* That a frame was sent is told late, or not at all if the driver saw it by itself. */
static void test_late_interrupts(void **state)
{
	struct device *dev = virtio_net_device(net);

	for (unsigned event_idx = 0; event_idx < 2; event_idx++) {
		drv_start(&d, event_idx ? UINT64_MAX : ~VIRTIO_F_EVENT_IDX, 3, true);
		d.t.msi.count = 0;
		send_frames(1);
		assert_int_equal(d.t.msi.count, 0);
		test_advance(&d.t, VIRTIO_IRQ_DELAY_NS - 1);
		assert_int_equal(d.t.msi.count, 0);
		assert_true(drv_used(&d, 1, NULL, NULL)); /* it is there */
		test_advance(&d.t, 1);
		assert_int_equal(d.t.msi.count, 1);
		test_advance(&d.t, 10 * VIRTIO_IRQ_DELAY_NS);
		assert_int_equal(d.t.msi.count, 1);
		want_next();
		/* Many are told at once. */
		send_frames(VIRTIO_IRQ_BACKLOG);
		assert_int_equal(d.t.msi.count, 2);
		want_next();
		/* A pause leaves nothing untold. */
		send_frames(1);
		assert_int_equal(d.t.msi.count, 2);
		dev->cls->pause(dev);
		assert_int_equal(d.t.msi.count, 3);
		dev->cls->resume(dev);
		test_advance(&d.t, 10 * VIRTIO_IRQ_DELAY_NS);
		assert_int_equal(d.t.msi.count, 3);
		want_next();
		/* A reset forgets. */
		send_frames(1);
		drv_write(&d, DRV_COMMON + 20, 1, 0);
		test_advance(&d.t, 10 * VIRTIO_IRQ_DELAY_NS);
		assert_int_equal(d.t.msi.count, 3);
	}
	drv_start(&d, UINT64_MAX, 3, true);
	send_frames(1);
	test_advance(&d.t, VIRTIO_IRQ_DELAY_NS);
	want_next();
	d.t.msi.count = 0;
	for (unsigned i = 0; i < 5; i++) {
		send_frames(1);
		want_next();
		test_advance(&d.t, VIRTIO_IRQ_DELAY_NS);
		assert_int_equal(d.t.msi.count, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_config, setup, teardown),
		cmocka_unit_test_setup_teardown(test_tx, setup, teardown),
		cmocka_unit_test_setup_teardown(test_late_interrupts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_tx_not_negotiated, setup_plain, teardown),
		cmocka_unit_test_setup_teardown(test_rx, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rx_unmerged, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rx_software_offload, setup, teardown),
		cmocka_unit_test_setup_teardown(test_filter, setup, teardown),
		cmocka_unit_test_setup_teardown(test_link_and_state, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reappears, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reappears_quietly, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reappears_alone, setup, teardown),
	};

	return drv_run(tests);
}
