/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queues: port 0 receive and send, control receive and send, then a pair for each further port; a device
 * with one port has the first two only.  All ports exist from the start.  With MULTIPORT the two sides talk over the control queues: the driver
 * says DEVICE_READY, learns of the ports, says PORT_READY for each and learns what it is.
 *
 * Messages to the driver that found no buffer are not queued: each port has a set of messages due
 * (DUE_ bits), sent in a fixed order as buffers come.  So nothing grows, and the set is plain state.
 *
 * Output that the backend does not take leaves the chain in the ring; tx_done says how much of it is
 * out already.
 */
#include "dev/virtio/virtio_console.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

#define F_SIZE	      VIRTIO_F(0)
#define F_MULTIPORT   VIRTIO_F(1)
#define F_EMERG_WRITE VIRTIO_F(2)

enum { QUEUE_CTRL_RX = 2, QUEUE_CTRL_TX = 3, QUEUE_SIZE = 128, CTRL_SIZE = 32 };
#define NQUEUES(ports) (2 + 2 * (ports))

/* 5.3.6.2 */
/* clang-format off */
enum { MSG_DEVICE_READY, MSG_ADD, MSG_REMOVE, MSG_READY, MSG_CONSOLE, MSG_RESIZE, MSG_OPEN, MSG_NAME };
/* clang-format on */

/* What the driver is to be told about a port, in this order. */
enum {
	DUE_ADD = 1,
	DUE_CONSOLE = 2,
	DUE_NAME = 4,
	DUE_OPEN = 8,
	DUE_RESIZE = 16,
	DUE_ALL = 31,
};

struct control_msg {
	uint32_t id;
	uint16_t event, value;
};

struct config_space {
	uint16_t cols, rows;
	uint32_t max_nr_ports, emerg_wr;
};
_Static_assert(sizeof(struct config_space) == 12, "virtio 1.2, 5.3.4");

struct console_port {
	uint32_t tx_done; /* bytes of the first waiting chain that are out */
	uint16_t cols, rows;
	uint8_t due;	     /* DUE_ bits */
	bool is_host_open;   /* somebody is at the backend */
	bool is_guest_open;  /* somebody in the guest has it open */
	bool is_ready;	     /* the driver said PORT_READY */
	uint8_t reserved[4]; /* zero */
	struct port_host {
		struct virtio_console *c;
		struct char_dev *chr;
		bool is_console;
		bool is_rx_starved; /* the backend was told 0 */
		char name[VIRTIO_CONSOLE_NAME_MAX + 1];
	} host;
};

struct virtio_console {
	struct virtio_pci pci;
	struct console_port ports[VIRTIO_CONSOLE_PORTS_MAX];
	struct console_host {
		unsigned nports;
		struct iovec *rx_iov; /* VQ_IOV_MAX */
	} host;
};

static int check_port(const void *obj, struct error *err)
{
	const struct console_port *p = obj;

	if (p->due & ~DUE_ALL)
		return error_set(err, -EINVAL, "virtio-console: unknown messages are due");
	for (unsigned i = 0; i < sizeof(p->reserved); i++)
		if (p->reserved[i])
			return error_set(err, -EINVAL, "virtio-console has reserved bytes set");
	return 0;
}

// clang-format off
static const struct field port_fields[] = {
	F_U32(struct console_port, tx_done),
	F_U16(struct console_port, cols),
	F_U16(struct console_port, rows),
	F_U8(struct console_port, due),
	F_BOOL(struct console_port, is_host_open),
	F_BOOL(struct console_port, is_guest_open),
	F_BOOL(struct console_port, is_ready),
	F_BYTES(struct console_port, reserved),
	F_HOST(struct console_port, host),
	F_END,
};
static const struct state_desc port_state = {
	.name = "virtio-console-port",
	.version = 1,
	.size = sizeof(struct console_port),
	.fields = port_fields,
	.check = check_port,
};
static const struct field virtio_console_fields[] = {
	F_STRUCT(struct virtio_console, pci, &virtio_pci_state),
	F_STRUCT_ARRAY(struct virtio_console, ports, &port_state),
	F_HOST(struct virtio_console, host),
	F_END,
};
// clang-format on
static const struct state_desc virtio_console_state = {
	.name = "virtio-console",
	.version = 1,
	.size = sizeof(struct virtio_console),
	.fields = virtio_console_fields,
};

static struct virtio_console *console_of(struct virtio_dev *v)
{
	return container_of(v, struct virtio_console, pci.v);
}

static bool is_multiport(const struct virtio_console *c)
{
	return virtio_has(&c->pci.v, F_MULTIPORT);
}

static unsigned rx_queue(unsigned port)
{
	return port ? 2 + 2 * port : 0;
}

static struct console_port *port_of_queue(struct virtio_console *c, unsigned q)
{
	return &c->ports[q < 2 ? 0 : (q - 2) / 2];
}

static unsigned port_index(const struct console_port *p)
{
	return p - p->host.c->ports;
}

/* ---- control messages to the driver ---- */

static uint16_t due_event(unsigned due)
{
	switch (due) {
	case DUE_ADD:
		return MSG_ADD;
	case DUE_CONSOLE:
		return MSG_CONSOLE;
	case DUE_NAME:
		return MSG_NAME;
	case DUE_OPEN:
		return MSG_OPEN;
	default:
		return MSG_RESIZE;
	}
}

/* The bytes of message @due about port @p; returns how many. */
static size_t build_message(const struct console_port *p, unsigned due, uint8_t *buf)
{
	struct control_msg m = { .id = port_index(p), .event = due_event(due), .value = 1 };
	size_t len = sizeof(m);

	if (due == DUE_OPEN)
		m.value = p->is_host_open;
	memcpy(buf, &m, sizeof(m));
	if (due == DUE_NAME) {
		size_t n = strlen(p->host.name);
		memcpy(buf + len, p->host.name, n);
		len += n;
	} else if (due == DUE_RESIZE) {
		/* The specification's order; Linux before 6.15 reads rows first. */
		memcpy(buf + len, &p->cols, 2);
		memcpy(buf + len + 2, &p->rows, 2);
		len += 4;
	}
	return len;
}

/* Sends what is due while there are buffers. */
static void send_control(struct virtio_console *c)
{
	struct virtqueue *vq = virtio_vq(&c->pci.v, QUEUE_CTRL_RX);
	struct vq_elem e = { .iov = c->host.rx_iov };
	uint8_t buf[sizeof(struct control_msg) + VIRTIO_CONSOLE_NAME_MAX];

	if (!vq || !is_multiport(c))
		return;
	for (unsigned i = 0; i < c->host.nports; i++) {
		struct console_port *p = &c->ports[i];
		while (p->due) {
			unsigned due = p->due & -p->due;
			/* What a port is, is told when its driver asks. */
			if (due != DUE_ADD && !p->is_ready)
				break;
			int r = vq_pop(vq, &e);
			if (r == 0 && vq_arm_kick(vq))
				r = vq_pop(vq, &e);
			if (r <= 0)
				goto out;
			size_t len = build_message(p, due, buf);
			vq_put(vq, &e, iov_from_buf(vq_in_iov(&e), e.nin, 0, buf, len));
			p->due &= ~due;
		}
	}
out:
	virtio_flush(&c->pci.v, QUEUE_CTRL_RX);
}

/* ---- from the driver ---- */

static void feed_port(struct console_port *p)
{
	if (!p->host.is_rx_starved || !p->host.chr)
		return;
	p->host.is_rx_starved = false;
	p->host.chr->ops->rx_ready(p->host.chr);
}

static void on_port_ready(struct console_port *p)
{
	p->is_ready = true;
	if (p->host.is_console)
		p->due |= DUE_CONSOLE |
			  (p->cols && virtio_has(&p->host.c->pci.v, F_SIZE) ? DUE_RESIZE : 0);
	if (p->host.name[0])
		p->due |= DUE_NAME;
	if (p->is_host_open)
		p->due |= DUE_OPEN;
}

static int64_t handle_control(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	struct virtio_console *c = console_of(v);
	struct control_msg m;

	(void)q;
	if (iov_to_buf(e->iov, e->nout, 0, &m, sizeof(m)) != sizeof(m))
		return 0;
	if (m.event == MSG_DEVICE_READY) {
		for (unsigned i = 0; m.value && i < c->host.nports; i++)
			if (c->ports[i].host.chr)
				c->ports[i].due |= DUE_ADD;
		return 0;
	}
	if (m.id >= c->host.nports) {
		log_guest("virtio-console", "%s: message %u for port %u", c->pci.dev.id, m.event, m.id);
		return 0;
	}
	struct console_port *p = &c->ports[m.id];
	if (m.event == MSG_READY && m.value) {
		on_port_ready(p);
	} else if (m.event == MSG_OPEN) {
		p->is_guest_open = m.value;
		feed_port(p);
	}
	return 0;
}

static int64_t handle_output(struct virtio_dev *v, unsigned q, struct vq_elem *e)
{
	struct virtio_console *c = console_of(v);
	struct console_port *p = port_of_queue(c, q);
	uint64_t off = 0;

	for (unsigned i = 0; i < e->nout; off += e->iov[i++].iov_len) {
		size_t len = e->iov[i].iov_len, skip;
		if (p->tx_done >= off + len)
			continue;
		skip = p->tx_done - off;
		size_t n = !p->host.chr ? len - skip
					: p->host.chr->ops->write(p->host.chr,
								  (uint8_t *)e->iov[i].iov_base + skip,
								  len - skip);
		p->tx_done += n;
		if (n < len - skip)
			return VIRTIO_STOP;
	}
	p->tx_done = 0;
	return 0;
}

/* ---- the backend's side (struct char_user) ---- */

static struct virtqueue *port_rx(struct console_port *p)
{
	struct virtio_console *c = p->host.c;
	unsigned i = port_index(p);

	if (is_multiport(c) ? !p->is_guest_open : i != 0)
		return NULL;
	return virtio_vq(&c->pci.v, rx_queue(i));
}

static size_t port_can_receive(void *ctx)
{
	struct console_port *p = ctx;
	struct virtio_console *c = p->host.c;
	struct virtqueue *vq = port_rx(p);
	struct vq_elem e = { .iov = c->host.rx_iov };

	int r = vq ? vq_peek(vq, &e) : 0;
	if (vq && r == 0 && vq_arm_kick(vq))
		r = vq_peek(vq, &e);
	if (r < 0)
		virtio_flush(&c->pci.v, rx_queue(port_index(p)));
	if (r > 0 && e.in_bytes)
		return e.in_bytes;
	if (r > 0)
		virtio_break(&c->pci.v, rx_queue(port_index(p)), "an empty receive buffer");
	p->host.is_rx_starved = true;
	return 0;
}

static void port_receive(void *ctx, const uint8_t *data, size_t len)
{
	struct console_port *p = ctx;
	struct virtio_console *c = p->host.c;
	struct virtqueue *vq = port_rx(p);
	struct vq_elem e = { .iov = c->host.rx_iov };

	/* What is more than can_receive said finds no place, and is lost as on a wire. */
	while (vq && len && vq_pop(vq, &e) > 0) {
		size_t n = iov_from_buf(vq_in_iov(&e), e.nin, 0, data, len);
		vq_put(vq, &e, n);
		data += n;
		len -= n;
	}
	if (vq)
		virtio_flush(&c->pci.v, rx_queue(port_index(p)));
}

static void port_resized(void *ctx, unsigned cols, unsigned rows)
{
	struct console_port *p = ctx;
	struct virtio_console *c = p->host.c;

	p->cols = MIN(cols, 0xffffu);
	p->rows = MIN(rows, 0xffffu);
	if (!p->host.is_console || !virtio_has(&c->pci.v, F_SIZE))
		return;
	if (is_multiport(c)) {
		p->due |= DUE_RESIZE;
		send_control(c);
	} else if (!port_index(p)) {
		virtio_config_changed(&c->pci.v);
	}
}

static void port_connected(void *ctx, bool is_connected)
{
	struct console_port *p = ctx;

	if (p->is_host_open == is_connected)
		return;
	p->is_host_open = is_connected;
	if (p->is_ready) {
		p->due |= DUE_OPEN;
		send_control(p->host.c);
	}
}

static void port_writable(void *ctx)
{
	struct console_port *p = ctx;

	virtio_kick(&p->host.c->pci.v, rx_queue(port_index(p)) + 1);
}

/* ---- virtio_class ---- */

static void console_kick(struct virtio_dev *v, unsigned q)
{
	struct virtio_console *c = console_of(v);

	if (q == QUEUE_CTRL_RX) {
		send_control(c);
	} else if (q == QUEUE_CTRL_TX) {
		virtio_serve(v, q, handle_control);
		send_control(c);
	} else if (q & 1) {
		virtio_serve(v, q, handle_output);
	} else {
		feed_port(port_of_queue(c, q));
	}
}

static void console_config_read(struct virtio_dev *v, uint8_t *config)
{
	const struct virtio_console *c = console_of(v);
	struct config_space s = { .cols = c->ports[0].cols,
				  .rows = c->ports[0].rows,
				  .max_nr_ports = c->host.nports };

	memcpy(config, &s, sizeof(s));
}

static void console_config_write(struct virtio_dev *v, unsigned offset, unsigned size, uint32_t value)
{
	struct console_port *p = &console_of(v)->ports[0];
	uint8_t byte = value;

	/* 5.3.5: a character of a driver that has no queues yet, or panics */
	if (offset == offsetof(struct config_space, emerg_wr) && p->host.chr)
		p->host.chr->ops->write(p->host.chr, &byte, 1);
	(void)size;
}

static void console_reset(struct virtio_dev *v)
{
	struct virtio_console *c = console_of(v);

	for (unsigned i = 0; i < VIRTIO_CONSOLE_PORTS_MAX; i++) {
		struct console_port *p = &c->ports[i];
		p->tx_done = 0;
		p->due = 0;
		p->is_guest_open = false;
		p->is_ready = false;
	}
}

static const struct virtio_class console_virtio_class = {
	.name = "virtio-console",
	.id = VIRTIO_ID_CONSOLE,
	.pci_class = 0x078000,
	.config_len = sizeof(struct config_space),
	.config_read = console_config_read,
	.config_write = console_config_write,
	.kick = console_kick,
	.reset = console_reset,
};

/* ---- device ---- */

static void console_destroy(struct device *d)
{
	struct virtio_console *c = container_of(d, struct virtio_console, pci.dev);

	for (unsigned i = 0; i < c->host.nports; i++)
		if (c->ports[i].host.chr)
			c->ports[i].host.chr->user = (struct char_user){ 0 };
	virtio_pci_fini(&c->pci);
	free(c->host.rx_iov);
	free(c);
}

const struct device_class virtio_console_class = {
	.name = "virtio-console",
	.state = &virtio_console_state,
	.reset = virtio_pci_device_reset,
	.after_load = virtio_pci_device_after_load,
	.destroy = console_destroy,
	.pause = virtio_pci_device_pause,
	.resume = virtio_pci_device_resume,
};

static void init_port(struct virtio_console *c, unsigned i, const struct virtio_console_port *cfg)
{
	struct console_port *p = &c->ports[i];

	p->host.c = c;
	p->host.chr = cfg->chr;
	p->host.is_console = !i || cfg->is_console;
	p->host.is_rx_starved = true;
	p->is_host_open = cfg->chr;
	if (cfg->name)
		strncpy(p->host.name, cfg->name, VIRTIO_CONSOLE_NAME_MAX);
	if (cfg->chr)
		cfg->chr->user = (struct char_user){
			.can_receive = port_can_receive,
			.receive = port_receive,
			.resized = port_resized,
			.connected = port_connected,
			.writable = port_writable,
			.ctx = p,
		};
}

int virtio_console_create(struct virtio_console **out, const struct dev_env *env, struct pci_bus *bus,
			  const char *id, const struct virtio_console_config *cfg, struct error *err)
{
	uint16_t sizes[NQUEUES(VIRTIO_CONSOLE_PORTS_MAX)];
	struct virtio_console *c = calloc(1, sizeof(*c));

	if (!c)
		return error_set(err, -ENOMEM, "out of memory");
	c->host.nports = MAX(1u, MIN(cfg->nports, (unsigned)VIRTIO_CONSOLE_PORTS_MAX));
	c->host.rx_iov = calloc(VQ_IOV_MAX, sizeof(struct iovec));
	if (!c->host.rx_iov) {
		free(c);
		return error_set(err, -ENOMEM, "out of memory");
	}
	uint64_t offered = F_SIZE | F_EMERG_WRITE | (c->host.nports > 1 ? F_MULTIPORT : 0);
	for (unsigned q = 0; q < ARRAY_SIZE(sizes); q++)
		sizes[q] = q == QUEUE_CTRL_RX || q == QUEUE_CTRL_TX ? CTRL_SIZE : QUEUE_SIZE;
	int r = virtio_pci_init(&c->pci, &virtio_console_class, id, bus, cfg->slot, env,
				&console_virtio_class, offered, sizes,
				c->host.nports > 1 ? NQUEUES(c->host.nports) : 2, err);
	if (r < 0) {
		free(c->host.rx_iov);
		free(c);
		return r;
	}
	for (unsigned i = 0; i < VIRTIO_CONSOLE_PORTS_MAX; i++)
		init_port(c, i, i < c->host.nports ? &cfg->ports[i] : &(struct virtio_console_port){ 0 });
	*out = c;
	return 0;
}

struct device *virtio_console_device(struct virtio_console *c)
{
	return &c->pci.dev;
}

bool virtio_console_is_open(const struct virtio_console *c, unsigned i)
{
	return i < c->host.nports && c->ports[i].is_guest_open;
}
