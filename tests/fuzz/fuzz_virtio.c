/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtio devices: any ring contents, register writes, kicks and backend events, in any order.  What a
 * device hands to its backend lies in guest RAM; nothing hangs; after a reset nothing is in flight.
 *
 * Input: operations (enum op), each followed by its operands; the sum of all bytes picks the device.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "dev/pci/pci_host.h"
#include "dev/virtio/virtio_9p.h"
#include "dev/virtio/virtio_balloon.h"
#include "dev/virtio/virtio_blk.h"
#include "dev/virtio/virtio_console.h"
#include "dev/virtio/virtio_net.h"
#include "dev/virtio/virtio_rng.h"
#include "fuzz.h"

enum op { POKE, REG_WRITE, KICK, BACKEND, INPUT, ROUND, STATE, REG_READ, OPS };

#define RING(q)	   ((q)*0x800u) /* 32 descriptors, available ring, used ring */
#define RING_SIZE  32
#define RING_BYTES 0x8000u /* all of them; zeroed for each input */
#define BUFFERS	   0x9000u
#define OPS_MAX	   400
#define NDEVICES   6

static struct {
	struct guest_ram ram;
	struct vclock clock;
	struct loop *loop;
	struct dev_env env;
	struct pci_host *host;
	struct device *devs[NDEVICES];
	uint64_t regs[NDEVICES];
	struct virtio_balloon *balloon;
	/* backends */
	struct block_dev block;
	struct block_req *reqs[1024];
	unsigned nreqs;
	struct net_port port;
	struct share_port share;
	struct share_req *shares[SHARE_REQS_MAX];
	unsigned nshares;
	struct char_dev chr[2];
	unsigned budget; /* what backends take */
} m;

/* ---- backends ---- */

static void expect_in_ram(const struct iovec *iov, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		const uint8_t *p = iov[i].iov_base;
		if (p < m.ram.base || p + iov[i].iov_len > m.ram.base + m.ram.size_bytes)
			abort();
	}
}

static void block_submit(struct block_dev *b, struct block_req *req)
{
	(void)b;
	if (m.nreqs == sizeof(m.reqs) / sizeof(*m.reqs))
		abort();
	expect_in_ram(req->iov, req->niov);
	m.reqs[m.nreqs++] = req;
}

static int block_try_now(struct block_dev *b, struct block_req *req)
{
	(void)b;
	expect_in_ram(req->iov, req->niov);
	switch (m.budget++ % 3) {
	case 0:
		if (req->op == BLOCK_READ && req->niov)
			*(uint8_t *)req->iov[0].iov_base = 0x5a;
		return 0;
	case 1:
		return -EIO;
	default:
		return -EAGAIN;
	}
}

static void block_complete(int result)
{
	struct block_req *req = m.reqs[--m.nreqs];

	if (req->op == BLOCK_READ && req->niov)
		*(uint8_t *)req->iov[0].iov_base = 0x5a;
	req->done(req, result);
}

static void block_drain(struct block_dev *b)
{
	(void)b;
	while (m.nreqs)
		block_complete(0);
}

static void block_info(const struct block_dev *b, struct block_info *out)
{
	(void)b;
	*out = (struct block_info){ 64 * MIB, false, true, true, true };
}

static const struct block_ops block_ops = { "fuzz",	 block_submit, block_info,
					    block_drain, NULL,	       block_try_now };

static int net_send(struct net_port *p, const struct net_offload *off, const struct iovec *iov, unsigned n)
{
	(void)p;
	(void)off;
	expect_in_ram(iov, n);
	return m.budget++ % 5 ? 0 : -EAGAIN;
}

static void net_rx_ready(struct net_port *p)
{
	(void)p;
}

static const struct net_ops net_ops = { net_send, net_rx_ready, NULL };

static size_t chr_write(struct char_dev *c, const uint8_t *data, size_t len)
{
	struct iovec iov = { (void *)(uintptr_t)data, len };

	(void)c;
	if (len != 1) /* the emergency byte is not in RAM */
		expect_in_ram(&iov, 1);
	return m.budget++ % 3 ? len : len / 2;
}

static void chr_rx_ready(struct char_dev *c)
{
	(void)c;
}

static const struct char_ops chr_ops = { chr_write, chr_rx_ready, NULL };

static void share_submit(struct share_port *p, struct share_req *req)
{
	(void)p;
	if (m.nshares == SHARE_REQS_MAX || req->out_bytes < P9_HEADER || req->in_bytes < P9_ERROR_LEN)
		abort();
	expect_in_ram(req->iov, req->nout + req->nin);
	m.shares[m.nshares++] = req;
}

static void share_complete(void)
{
	struct share_req *req = m.shares[--m.nshares];
	uint8_t text[P9_ERROR_LEN];

	p9_error(text, 0, 5);
	req->done(req, iov_from_buf(req->iov + req->nout, req->nin, 0, text, sizeof(text)));
}

static void share_drain(struct share_port *p)
{
	(void)p;
	while (m.nshares)
		share_complete();
}

static void share_reset(struct share_port *p)
{
	(void)p;
	if (m.nshares)
		abort();
}

static const struct share_ops share_ops = { .submit = share_submit,
					    .drain = share_drain,
					    .reset = share_reset };

static void fill(void *ctx, uint8_t *buf, size_t len)
{
	struct iovec iov = { buf, len };

	(void)ctx;
	expect_in_ram(&iov, 1);
	memset(buf, 0x5a, len < 64 ? len : 64);
}

static void release(void *ctx, gpa_t gpa, uint64_t len)
{
	(void)ctx;
	if (gpa % GUEST_PAGE_SIZE || len % GUEST_PAGE_SIZE || !ram_ptr(&m.ram, gpa, len))
		abort();
}

/* ---- the machine, built once ---- */

static void must(int r)
{
	if (r < 0)
		abort();
}

static void no_msi(void *ctx, uint64_t addr, uint32_t data)
{
	(void)ctx;
	(void)addr;
	(void)data;
}

static void build(void)
{
	static const struct irq_line lines[PCI_INTX_LINES];
	struct error err;
	struct virtio_blk *blk;
	struct virtio_net *net;
	struct virtio_console *con;
	struct virtio_rng *rng;
	struct virtio_9p *share;

	must(ram_create(&m.ram, MIB, 0, &err));
	must(loop_create(&m.loop, NULL, &err));
	vclock_init(&m.clock);
	vclock_start(&m.clock);
	m.env = (struct dev_env){ .bus = bus_create(),
				  .ram = &m.ram,
				  .loop = m.loop,
				  .clock = &m.clock,
				  .msi = { no_msi, NULL } };
	must(pci_host_create(&m.host, &m.env, lines, &err));
	struct pci_bus *bus = pci_host_bus(m.host);
	m.block.ops = &block_ops;
	m.port = (struct net_port){ .ops = &net_ops, .can_offload = true };
	m.chr[0].ops = m.chr[1].ops = &chr_ops;
	struct virtio_console_config ccfg = { .ports = { { &m.chr[0], NULL, true },
							 { &m.chr[1], "agent", false } },
					      .nports = 2,
					      .slot = 3 };
	must(virtio_blk_create(&blk, &m.env, bus, "b",
			       &(struct virtio_blk_config){ &m.block, "s", 2, 1 }, &err));
	must(virtio_net_create(&net, &m.env, bus, "n", &(struct virtio_net_config){ &m.port, 2 }, &err));
	must(virtio_console_create(&con, &m.env, bus, "c", &ccfg, &err));
	must(virtio_rng_create(&rng, &m.env, bus, "r", &(struct virtio_rng_config){ fill, NULL, 4 },
			       &err));
	must(virtio_balloon_create(&m.balloon, &m.env, bus, "m",
				   &(struct virtio_balloon_config){ release, NULL, 5 }, &err));
	m.share.ops = &share_ops;
	must(virtio_9p_create(&share, &m.env, bus, "p",
			      &(struct virtio_9p_config){ &m.share, "folder", 6 }, &err));
	m.devs[5] = virtio_9p_device(share);
	m.devs[0] = virtio_blk_device(blk);
	m.devs[1] = virtio_net_device(net);
	m.devs[2] = virtio_console_device(con);
	m.devs[3] = virtio_rng_device(rng);
	m.devs[4] = virtio_balloon_device(m.balloon);
}

static void reg_write(unsigned i, unsigned off, unsigned size, uint64_t v)
{
	bus_write(m.env.bus, BUS_MMIO, m.regs[i] + off, size, v);
}

/* Reset and bring up: every feature, every queue, live. */
static void start(unsigned i)
{
	struct error err;

	m.devs[i]->cls->reset(m.devs[i]);
	must(pci_bus_assign(pci_host_bus(m.host), &err));
	struct pci_dev *pci = pci_bus_dev(pci_host_bus(m.host), i + 1);
	pci_config_write(pci, 4, 2, 6);
	m.regs[i] = pci_bar_address(pci, 4);
	memset(m.ram.base, 0, RING_BYTES);
	reg_write(i, 20, 1, 3);
	for (unsigned w = 0; w < 2; w++) {
		reg_write(i, 0, 4, w);
		reg_write(i, 8, 4, w);
		reg_write(i, 12, 4, bus_read(m.env.bus, BUS_MMIO, m.regs[i] + 4, 4));
	}
	reg_write(i, 20, 1, 0xb);
	unsigned nqueues = bus_read(m.env.bus, BUS_MMIO, m.regs[i] + 18, 2);
	for (unsigned q = 0; q < nqueues; q++) {
		reg_write(i, 22, 2, q);
		reg_write(i, 24, 2, i == 3 ? 16 : RING_SIZE);
		reg_write(i, 32, 8, RING(q));
		reg_write(i, 40, 8, RING(q) + 0x300);
		reg_write(i, 48, 8, RING(q) + 0x400);
		reg_write(i, 28, 2, 1);
	}
	reg_write(i, 20, 1, 0xf);
}

/* ---- operations ---- */

static uint64_t get(struct byte_reader *r, unsigned n)
{
	uint64_t v = 0;

	bytes_get(r, &v, n);
	return v;
}

static void poke(struct byte_reader *r)
{
	gpa_t at = get(r, 2);
	uint8_t buf[64];
	size_t n = get(r, 1) % sizeof(buf);

	bytes_get(r, buf, n);
	must(ram_write(&m.ram, at, buf, n));
}

static void backend_event(struct byte_reader *r)
{
	unsigned what = get(r, 1);

	if (m.nreqs)
		block_complete(what & 1 ? -5 : 0);
	if (m.nshares)
		share_complete();
	if (m.port.card.tx_ready)
		m.port.card.tx_ready(m.port.card.ctx);
	for (unsigned i = 0; i < 2; i++)
		m.chr[i].user.writable(m.chr[i].user.ctx);
	if (what & 2)
		m.port.card.link_changed(m.port.card.ctx, what & 4);
	if (what & 8)
		m.chr[1].user.connected(m.chr[1].user.ctx, what & 16);
	if (what & 32)
		m.chr[0].user.resized(m.chr[0].user.ctx, what, 25);
	if (what & 64)
		virtio_balloon_poll_stats(m.balloon);
}

static void input_event(struct byte_reader *r)
{
	static uint8_t frame[NET_FRAME_MAX];
	struct net_offload off = { .flags = get(r, 1),
				   .gso_type = get(r, 1),
				   .gso_size = get(r, 2),
				   .csum_start = get(r, 1),
				   .csum_offset = get(r, 1) };
	size_t len = get(r, 2);
	struct iovec iov = { frame, len };

	bytes_get(r, frame, get(r, 1) % 80);
	m.port.card.receive(m.port.card.ctx, &off, &iov, 1);
	for (unsigned i = 0; i < 2; i++) {
		struct char_user *u = &m.chr[i].user;
		size_t room = u->can_receive(u->ctx);
		u->receive(u->ctx, frame, MIN(len, room));
	}
}

static void move_state(unsigned i)
{
	struct device *d = m.devs[i];
	struct bytes b = { 0 };
	struct error err;

	d->cls->pause(d);
	if (m.nreqs || m.nshares)
		abort();
	must(state_save(d->cls->state, d, &b));
	struct byte_reader r = { .data = b.data, .len = b.len };
	must(state_load(d->cls->state, d, &r, &err));
	d->cls->after_load(d);
	d->cls->resume(d);
	bytes_free(&b);
}

size_t fuzz_seed(uint8_t *data, size_t cap)
{
	struct bytes b = { 0 };

	/* A chain of three in queue 0, a kick, completion (blk's request); then some of everything. */
	const struct vq_desc chain[3] = { { BUFFERS, 16, 1, 1 },
					  { BUFFERS + 64, 512, 3, 2 },
					  { BUFFERS + 32, 1, 2, 0 } };
	bytes_put_u8(&b, POKE);
	bytes_put_u16(&b, RING(0));
	bytes_put_u8(&b, sizeof(chain));
	bytes_put(&b, chain, sizeof(chain));
	bytes_put_u8(&b, POKE);
	bytes_put_u16(&b, RING(0) + 0x302);
	bytes_put_u8(&b, 2);
	bytes_put_u16(&b, 1);
	bytes_put_u8(&b, KICK);
	bytes_put_u8(&b, 0);
	bytes_put_u8(&b, BACKEND);
	bytes_put_u8(&b, 0x7f);
	bytes_put_u8(&b, INPUT);
	bytes_put_u64(&b, 60ULL << 48);
	bytes_put_u8(&b, 6);
	bytes_put(&b, "\xff\xff\xff\xff\xff\xff", 6);
	bytes_put_u8(&b, ROUND);
	bytes_put_u8(&b, STATE);
	bytes_put_u8(&b, REG_WRITE);
	bytes_put_u16(&b, 22);
	bytes_put_u8(&b, 1);
	bytes_put_u16(&b, 1);
	bytes_put_u8(&b, REG_READ);
	bytes_put_u16(&b, 0x2000);
	bytes_put_u8(&b, KICK);
	bytes_put_u8(&b, 1);
	if (b.is_failed || b.len > cap)
		abort();
	memcpy(data, b.data, b.len);
	size_t len = b.len;
	bytes_free(&b);
	return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct byte_reader r = { .data = data, .len = len };
	unsigned i = 0, off, size;

	if (!m.loop)
		build();
	for (size_t k = 0; k < len; k++)
		i += data[k];
	i %= NDEVICES;
	start(i);
	for (unsigned n = 0; n < OPS_MAX && !r.is_failed && r.pos < r.len; n++) {
		switch (get(&r, 1) % OPS) {
		case POKE:
			poke(&r);
			break;
		case REG_WRITE:
			off = get(&r, 2) & 0x3fff;
			size = 1u << get(&r, 1) % 4;
			reg_write(i, off, size, get(&r, size));
			break;
		case KICK:
			reg_write(i, 0x3000 + get(&r, 1) % 17 * 4, 2, 0);
			break;
		case BACKEND:
			backend_event(&r);
			break;
		case INPUT:
			input_event(&r);
			break;
		case ROUND:
			loop_run_once(m.loop, 0);
			break;
		case STATE:
			move_state(i);
			break;
		case REG_READ:
			bus_read(m.env.bus, BUS_MMIO, m.regs[i] + (get(&r, 2) & 0x3fff), 4);
			break;
		}
	}
	m.devs[i]->cls->reset(m.devs[i]);
	if (m.nreqs || m.nshares)
		abort();
	return 0;
}
